"""Kubernetes' `restricted` Pod Security Standard, as far as a pod's own fields go.

https://kubernetes.io/docs/concepts/security/pod-security-standards/
"""

from __future__ import annotations

from typing import Any

_VOLUMES = {
    *("configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim"),
    *("projected", "secret"),
}
_SECCOMP = ("RuntimeDefault", "Localhost")


def violations(pod: dict[str, Any]) -> list[str]:
    """What an admission controller that enforces `restricted` would refuse of a pod's spec."""
    found = [key for key in ("hostNetwork", "hostPID", "hostIPC") if pod.get(key)]
    own = pod.get("securityContext", {})
    for volume in pod.get("volumes", []):
        if not set(volume) - {"name"} <= _VOLUMES:
            found.append(f"volume {volume['name']}: {sorted(set(volume) - {'name'})}")
    for container in [*pod.get("initContainers", []), *pod["containers"]]:
        context = own | container.get("securityContext", {})
        found += [f"{container['name']}: {line}" for line in container_violations(context)]
        if any(port.get("hostPort") for port in container.get("ports", [])):
            found.append(f"{container['name']}: hostPort")
    return found


def container_violations(context: dict[str, Any]) -> list[str]:
    """The same of a security context, with what the pod's gives."""
    found = []
    if context.get("runAsNonRoot") is not True or context.get("runAsUser") == 0:
        found.append("may be root")
    if context.get("allowPrivilegeEscalation") is not False or context.get("privileged"):
        found.append("may gain privileges")
    capabilities = context.get("capabilities", {})
    if capabilities.get("drop") != ["ALL"]:
        found.append("keeps capabilities")
    if set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}:
        found.append("adds capabilities")
    if context.get("seccompProfile", {}).get("type") not in _SECCOMP:
        found.append("no seccomp profile")
    return found
