"""The pod of a build as Kubernetes describes it. Pure.

What each level of Pod Security forces: https://kubernetes.io/docs/concepts/security/
pod-security-standards/. Which rung works there: docs/isolation.md.
"""

from __future__ import annotations

from typing import Any

from ocis2i.kube.names import as_argument
from ocis2i.kube.plan import (
    AUTH,
    COPY,
    PROGRAM,
    TERMINATION_LOG,
    TOOL,
    WORK,
    Kind,
    Order,
    Pod,
    Step,
    steps,
)

Json = dict[str, Any]

# What root takes to build by chroot(2): of those that `baseline` lets a container add. All others
# are dropped.
CHROOT_CAPABILITIES = (
    "CHOWN DAC_OVERRIDE FOWNER FSETID KILL MKNOD SETFCAP SETGID SETUID SYS_CHROOT".split()
)
_SMALL = {"cpu": "100m", "memory": "256Mi", "ephemeral-storage": "1Gi"}
_TOOL_SIZE = "512Mi"
_SCRATCH_SIZE = "2Gi"


def pod_spec(order: Order, pod: Pod) -> Json:
    """The pod: what comes before the last step are init containers, which run one by one."""
    all_steps = steps(order, pod)
    containers = [container(step, pod) for step in all_steps]
    return {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 30,
        **({"serviceAccountName": pod.service_account} if pod.service_account else {}),
        **image_pull_secrets(pod),
        **({"hostUsers": False} if pod.level == "user-namespace" else {}),
        "securityContext": pod_security(pod),
        "initContainers": containers[:-1],
        "containers": containers[-1:],
        "volumes": volumes(all_steps, pod),
    }


def image_pull_secrets(pod: Pod) -> Json:
    """What the node itself pulls images with; no container sees it."""
    return {"imagePullSecrets": [{"name": pod.image_pull_secret}]} if pod.image_pull_secret else {}


def pod_security(pod: Pod) -> Json:
    """The security context of the pod."""
    return {**ids(pod), "seccompProfile": {"type": "RuntimeDefault"}}


def ids(pod: Pod) -> Json:
    """Who the containers run as: they share files, so all are one user."""
    if pod.level != "restricted":
        return {"runAsUser": 0, "runAsGroup": 0, "runAsNonRoot": False}
    if pod.user is None:
        return {"runAsNonRoot": True}
    return {"runAsUser": pod.user, "runAsGroup": 0, "runAsNonRoot": True}


def container(step: Step, pod: Pod) -> Json:
    """One container of the pod."""
    return {
        "name": step.name,
        "image": str(step.image),
        "imagePullPolicy": pull_policy(step),
        "command": [PROGRAM],
        "args": [as_argument(word) for word in step.words],
        "env": environment(step),
        "resources": resources(step.kind, pod),
        "securityContext": security(step.kind, pod),
        "terminationMessagePath": TERMINATION_LOG,
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": mounts(step, pod),
    }


def pull_policy(step: Step) -> str:
    """An old builder on the node under a tag that moved would be built in, and another pushed."""
    return "Always" if step.kind == "build" else "IfNotPresent"


def environment(step: Step) -> list[Json]:
    """The file of credentials, for who may hold it; nobody looks for any other."""
    if step.secret is None:
        return secret_variables(step)
    return [
        {"name": "REGISTRY_AUTH_FILE", "value": f"{AUTH}/config.json"},
        *secret_variables(step),
    ]


def secret_variables(step: Step) -> list[Json]:
    """The variables that the cluster fills in: their values are in no manifest."""
    return [
        {"name": name, "valueFrom": {"secretKeyRef": {"name": step.values_of, "key": name}}}
        for name in step.values
    ]


def resources(kind: Kind, pod: Pod) -> Json:
    """What is asked for, and the most; processors have no limit but what others leave."""
    if kind == "build":
        asked = {"cpu": pod.cpu, "memory": pod.memory, "ephemeral-storage": pod.disk}
    else:
        asked = dict(_SMALL)
    most = {name: asked[name] for name in ("memory", "ephemeral-storage")}
    return {"requests": asked, "limits": most}


def security(kind: Kind, pod: Pod) -> Json:
    """The security context of a container."""
    if kind == "build" and pod.level == "baseline":
        return {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"], "add": list(CHROOT_CAPABILITIES)},
            "seccompProfile": {"type": "RuntimeDefault"},
        }
    if kind == "build" and pod.level == "user-namespace":
        # Kubernetes refuses `allowPrivilegeEscalation: false` beside SYS_ADMIN, which counts in the
        # pod's own user namespace alone.
        return {
            "capabilities": {"add": ["SYS_ADMIN"]},
            "procMount": "Unmasked",
            "appArmorProfile": {"type": "Unconfined"},
            "seccompProfile": _nested_profile(pod),
        }
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        # To build in place is to change this container.
        "readOnlyRootFilesystem": kind != "build",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _nested_profile(pod: Pod) -> Json:
    if pod.seccomp_profile is None:
        return {"type": "Unconfined"}
    return {"type": "Localhost", "localhostProfile": pod.seccomp_profile}


def mounts(step: Step, pod: Pod) -> list[Json]:
    """What a container sees of the pod's volumes."""
    if step.kind == "tool":
        return [{"name": "tool", "mountPath": COPY}]
    found: list[Json] = [{"name": "work", "mountPath": WORK}]
    if step.kind == "build":
        if pod.level == "restricted":
            found.append({"name": "tool", "mountPath": TOOL, "readOnly": True})
        return found
    found.append({"name": "scratch", "mountPath": "/tmp"})  # noqa: S108 - the container's own
    if step.secret is not None:
        name = "push-auth" if step.kind == "push" else "pull-auth"
        found.append({"name": name, "mountPath": AUTH, "readOnly": True})
    return found


def volumes(all_steps: tuple[Step, ...], pod: Pod) -> list[Json]:
    """The pod's volumes: none outlives it, and none but secrets comes from outside."""
    found: list[Json] = [
        {"name": "work", "emptyDir": {"sizeLimit": pod.disk}},
        {"name": "scratch", "emptyDir": {"sizeLimit": _SCRATCH_SIZE}},
    ]
    if pod.level == "restricted":
        found.append({"name": "tool", "emptyDir": {"sizeLimit": _TOOL_SIZE}})
    held = {one.kind: one.secret for one in all_steps if one.secret is not None}
    for kind, name in (("fetch", "pull-auth"), ("push", "push-auth")):
        if secret := held.get(kind):  # type: ignore[call-overload]
            items = [{"key": ".dockerconfigjson", "path": "config.json"}]
            found.append({"name": name, "secret": {"secretName": secret, "items": items}})
    return found
