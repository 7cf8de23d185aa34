"""Ray's labels of machines, as Kubernetes is asked for such machines.

A worker group's labels are told to Ray as they stand; a pod with them has to land where they are
true.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from dopsd.errors import ConfigError

MARKET, CARD = "ray.io/market-type", "ray.io/accelerator-type"
ON_DEMAND, SPOT = "on-demand", "spot"
_SPOT_NODES = {
    "karpenter.sh/capacity-type": "spot",
    "eks.amazonaws.com/capacityType": "SPOT",
    "cloud.google.com/gke-spot": "true",
    "kubernetes.azure.com/scalesetpriority": "spot",
}
"""How the clouds call a machine that they may take away."""
_CARD_KEYS = (
    "nvidia.com/gpu.product",
    "cloud.google.com/gke-accelerator",
    "karpenter.k8s.aws/instance-gpu-name",
)
"""NVIDIA's feature discovery, GKE, Karpenter on AWS."""
_CARD_NODES: dict[str, tuple[tuple[str, ...], ...]] = {
    "T4": (("Tesla-T4",), ("nvidia-tesla-t4",), ("t4",)),
    "V100": (
        ("Tesla-V100-SXM2-16GB", "Tesla-V100-SXM2-32GB"),
        ("nvidia-tesla-v100",),
        ("v100",),
    ),
    "A10G": (("NVIDIA-A10G",), (), ("a10g",)),
    "L4": (("NVIDIA-L4",), ("nvidia-l4",), ("l4",)),
    "L40S": (("NVIDIA-L40S",), (), ("l40s",)),
    "A100": (
        (
            "NVIDIA-A100-SXM4-40GB",
            "NVIDIA-A100-SXM4-80GB",
            "NVIDIA-A100-PCIE-40GB",
            "NVIDIA-A100-80GB-PCIe",
        ),
        ("nvidia-tesla-a100", "nvidia-a100-80gb"),
        ("a100",),
    ),
    "H100": (
        ("NVIDIA-H100-80GB-HBM3", "NVIDIA-H100-PCIe", "NVIDIA-H100-NVL"),
        ("nvidia-h100-80gb", "nvidia-h100-mega-80gb"),
        ("h100",),
    ),
    "H200": (("NVIDIA-H200",), ("nvidia-h200-141gb",), ("h200",)),
    "B200": (("NVIDIA-B200",), ("nvidia-b200",), ("b200",)),
}
"""Of Ray's card types: the values of each of those keys."""
_PLACES = {
    "ray.io/availability-zone": "topology.kubernetes.io/zone",
    "ray.io/availability-region": "topology.kubernetes.io/region",
}
_RAYS = "ray.io/"
"""Keys that are Ray's own: a node has them or not, whatever a manifest would like."""

Expression = dict[str, Any]


def opposite_market(choice: str) -> str | None:
    """Ray knows two markets, so what is not the one is the other; None of any other choice."""
    return {f"!{SPOT}": ON_DEMAND, f"!{ON_DEMAND}": SPOT}.get(choice)


def is_rays(key: str) -> bool:
    return key.startswith(_RAYS)


def refuse_unknown(role: str, labels: Mapping[str, str]) -> None:
    """Raises ConfigError for a label by which nobody knows how to ask for a machine."""
    allowed = {MARKET: (ON_DEMAND, SPOT), CARD: tuple(_CARD_NODES)}
    for key, value in labels.items():
        if key in allowed and value not in allowed[key]:
            raise ConfigError(
                f"{role}.labels: {key}: {value}, allowed for a job: {', '.join(allowed[key])}"
            )
        if is_rays(key) and key not in allowed and key not in _PLACES:
            keys = ", ".join([*allowed, *_PLACES])
            raise ConfigError(
                f"{role}.labels: {key}, which Ray gives a node when it starts; allowed for a job: "
                f"{keys}, or a key of your own"
            )


def affinity(labels: Mapping[str, str]) -> dict[str, Any] | None:
    """Of pods whose Ray nodes have ``labels``; None when any machine will do."""
    needed = [_ways(key, value) for key, value in labels.items()]
    terms = [
        {"matchExpressions": list(itertools.chain(*chosen))}
        for chosen in itertools.product(*filter(None, needed))
    ]
    if not any(needed):
        return None
    required = {"nodeSelectorTerms": terms}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}}


def tolerations(labels: Mapping[str, str], gpus: int) -> list[dict[str, str]]:
    """GPU nodes and those that may go are usually tainted, so that nothing else lands on them."""
    taints = ["nvidia.com/gpu"] if gpus or CARD in labels else []
    if labels.get(MARKET) == SPOT:
        taints += _SPOT_NODES
    return [{"key": key, "operator": "Exists", "effect": "NoSchedule"} for key in taints]


def _ways(key: str, value: str) -> list[list[Expression]]:
    """By which a machine may show that it has the label, each of them enough; none: it need not."""
    if key == MARKET and value == SPOT:
        return [[_in(cloud, said)] for cloud, said in _SPOT_NODES.items()]
    if key == MARKET:
        return [[_in(cloud, said) | {"operator": "NotIn"} for cloud, said in _SPOT_NODES.items()]]
    if key == CARD:
        return [[_in(cloud, *said)] for cloud, said in zip(_CARD_KEYS, _CARD_NODES[value]) if said]
    return [[_in(_PLACES[key], value)]] if key in _PLACES else []


def _in(key: str, *values: str) -> Expression:
    return {"key": key, "operator": "In", "values": list(values)}
