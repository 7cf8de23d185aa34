"""A cluster of its own that begins with a head and grows by itself: Ray's autoscaler with Ray's
own provider of nodes that are processes of this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

HEAD = {
    "RAY_enable_autoscaler_v2": "1",
    "RAY_FAKE_CLUSTER": "1",
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
    "CUDA_VISIBLE_DEVICES": "0",  # Ray starts no node with a GPU where none may be seen
}
"""In the environment of `ray start --head`."""


def autoscaling_words(folder: Path, address: str, groups: dict[str, dict[str, Any]]) -> list[str]:
    """Of `ray start --head`. ``groups``: `resources`, `labels` and `max_workers` of each."""
    head = {"resources": {"CPU": 1}, "max_workers": 0}
    types = {"ray.head.default": head, **groups}
    config = {
        "cluster_name": "fake_multinode",
        "max_workers": 8,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 0.5,
        "provider": {
            # Named by its class: Ray's wheels lack the defaults of `fake_multinode`.
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "gcs_address": address,
            "launch_multiple": True,
            "head_node_id": FAKE_HEAD_NODE_ID,
        },
        "available_node_types": {
            name: {"node_config": {}, "min_workers": 0, **group} for name, group in types.items()
        },
        "head_node_type": "ray.head.default",
        "docker": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        **{
            f"{name}_commands": []
            for name in (
                "initialization",
                "setup",
                "head_setup",
                "worker_setup",
                "head_start_ray",
                "worker_start_ray",
            )
        },
    }
    path = folder / "autoscaling.json"
    path.write_text(json.dumps(config))
    return [f"--autoscaling-config={path}"]
