"""Who may reach a cluster's pods, and whom they may reach."""

from __future__ import annotations

from typing import Any

from dopsd.kuberay.pods import HEAD_PORTS, Manifest, Setting

_API = 6443
_METRICS = ("metrics", "as-metrics", "dash-metrics")


def network_policy(setting: Setting) -> Manifest:
    """Ray runs any code for whoever reaches its ports: its own pods, KubeRay's operator (the
    dashboard) and Prometheus (metrics) do. Out go names, and HTTPS to S3, hub and identity; with an
    autoscaler also Kubernetes' own server, wherever its service leads."""
    own = {"podSelector": {"matchLabels": setting.labels}}
    operator = _anywhere("kuberay-operator")
    prometheus = _anywhere("prometheus")
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": setting.name, "labels": setting.labels},
        "spec": {
            "podSelector": {"matchLabels": setting.labels},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [
                {"from": [own]},
                {"from": [operator], "ports": [_port(HEAD_PORTS["dashboard"])]},
                {"from": [prometheus], "ports": [_port(HEAD_PORTS[name]) for name in _METRICS]},
            ],
            "egress": [
                {"to": [own]},
                {"ports": [_port(53, "UDP"), _port(53)]},
                {"ports": [_port(443), *([_port(_API)] if setting.scaled else [])]},
            ],
        },
    }


def _anywhere(name: str) -> Manifest:
    """Pods of an application, in whichever namespace."""
    labels = {"app.kubernetes.io/name": name}
    return {"namespaceSelector": {}, "podSelector": {"matchLabels": labels}}


def _port(number: int, protocol: str = "TCP") -> dict[str, Any]:
    return {"protocol": protocol, "port": number}
