"""The restricted Pod Security Standard as one table (kubernetes.io, Pod Security Standards)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.helm.charts import Document, containers

VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}

Context = dict[str, Any]
"""A container's securityContext over its pod's, as Kubernetes sees it."""

OF_PODS: dict[str, Callable[[Document], bool]] = {
    "host namespaces": lambda spec: (
        not any(spec.get(name) for name in ("hostNetwork", "hostPID", "hostIPC"))
    ),
    "volume types": lambda spec: all(set(v) - {"name"} <= VOLUMES for v in spec.get("volumes", [])),
    "sysctls": lambda spec: not spec.get("securityContext", {}).get("sysctls"),
    "windows host process": lambda spec: "windowsOptions" not in spec.get("securityContext", {}),
}

OF_CONTAINERS: dict[str, Callable[[Context], bool]] = {
    "privileged": lambda context: not context.get("privileged"),
    "privilege escalation": lambda context: context.get("allowPrivilegeEscalation") is False,
    "capabilities": lambda context: (
        context.get("capabilities", {}).get("drop") == ["ALL"]
        and set(context["capabilities"].get("add", [])) <= {"NET_BIND_SERVICE"}
    ),
    "non-root": lambda context: context.get("runAsNonRoot") is True,
    "user": lambda context: context.get("runAsUser") != 0,
    "seccomp": lambda context: (
        context.get("seccompProfile", {}).get("type") in ("RuntimeDefault", "Localhost")
    ),
    "proc mount": lambda context: context.get("procMount", "Default") == "Default",
    "SELinux": lambda context: not context.get("seLinuxOptions"),
    "AppArmor": lambda context: "appArmorProfile" not in context,
}


def violations(pod: Document) -> list[str]:
    """What of a pod the restricted standard would refuse."""
    spec = pod["spec"]
    found = [name for name, holds in OF_PODS.items() if not holds(spec)]
    for container in containers(pod):
        context = {**spec.get("securityContext", {}), **container.get("securityContext", {})}
        broken = [name for name, holds in OF_CONTAINERS.items() if not holds(context)]
        if any(port.get("hostPort") for port in container.get("ports", [])):
            broken.append("host ports")
        found += [f"{container['name']}: {name}" for name in broken]
    return found
