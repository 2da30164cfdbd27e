"""What the state of a pod means for the build in it: the API's data in, a verdict out. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ocis2i.lazy_dataclass import dataclass
from ocis2i.manifest import json_object

Json = Mapping[str, Any]

# The last line of a step's log that begins with it has the step's document. Nothing that a script
# started is left when it is written.
MARK = "ocis2i-result: "

# Why a container does not start, and whether it may be waited for: words of the kubelet
# (pkg/kubelet/images/types.go, pkg/kubelet/container/sync_result.go).
_NEVER_STARTS = {
    "ImagePullBackOff": "the node cannot pull its image",
    "InvalidImageName": "its image has no valid name",
    "ErrImageNeverPull": "its image is not on the node, which may not pull it",
    "ImageInspectError": "the node cannot read its image",
    "RegistryUnavailable": "the node does not reach the registry of its image",
    "SignatureValidationFailed": "the signature of its image is not valid",
    "CreateContainerConfigError": "its configuration names what is not there",
    "CreateContainerError": "the node cannot make it",
    "RunContainerError": "the node cannot start it",
    "CrashLoopBackOff": "it ends as soon as it is started",
}
_HINTS = {
    "ImagePullBackOff": "is the name right, and has the node the rights? give --image-pull-secret, "
    "the name of a secret of type kubernetes.io/dockerconfigjson in this namespace",
    "CreateContainerConfigError": "does the secret of --push-secret or --pull-secret exist in this "
    "namespace, and has it the key .dockerconfigjson? And that of --build-secret, with a key for "
    "each variable?",
    "RunContainerError": "has the image of --tool-image the tool in /ocis2i/tool?",
    "CreateContainerError": "has the image of --tool-image the tool in /ocis2i/tool?",
    "CrashLoopBackOff": "see its log",
}


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a build does not go on: `fatal`, or `waiting` for what may still come."""

    reason: str
    message: str
    hint: str | None = None
    fatal: bool = True


@dataclass(frozen=True, slots=True)
class ContainerState:
    """A container of the pod: `waiting`, `running` or `ended`, with exit code, reason and times."""

    name: str
    state: str = "waiting"
    exit_code: int | None = None
    reason: str = ""
    message: str = ""
    started: str = ""
    finished: str = ""


def fields(value: Any, name: str) -> Json:
    """The object `name` of an object; empty where there is none. Nothing of the API is trusted."""
    found = value.get(name) if isinstance(value, dict) else None
    return found if isinstance(found, dict) else {}


def entries(value: Any, name: str) -> list[Json]:
    """The objects in the list `name` of an object."""
    found = value.get(name) if isinstance(value, dict) else None
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def text(value: Json, name: str) -> str:
    """The text `name` of an object; empty where it is none."""
    found = value.get(name)
    return found if isinstance(found, str) else ""


def containers(pod: Json) -> tuple[ContainerState, ...]:
    """All containers in the order in which they run."""
    spec, status = fields(pod, "spec"), fields(pod, "status")
    known = {
        text(one, "name"): one
        for key in ("initContainerStatuses", "containerStatuses")
        for one in entries(status, key)
    }
    names = [
        text(one, "name") for key in ("initContainers", "containers") for one in entries(spec, key)
    ]
    return tuple(_state(name, fields(known.get(name), "state")) for name in names)


def _state(name: str, state: Json) -> ContainerState:
    if "terminated" in state:
        ended = fields(state, "terminated")
        code = ended.get("exitCode")
        return ContainerState(
            name,
            "ended",
            code if isinstance(code, int) else 1,
            text(ended, "reason"),
            text(ended, "message"),
            text(ended, "startedAt"),
            text(ended, "finishedAt"),
        )
    if "running" in state:
        return ContainerState(name, "running", started=text(fields(state, "running"), "startedAt"))
    waiting = fields(state, "waiting")
    return ContainerState(name, reason=text(waiting, "reason"), message=text(waiting, "message"))


def phase(pod: Json) -> str:
    """Of the pod: Pending, Running, Succeeded, Failed or Unknown."""
    return text(fields(pod, "status"), "phase") or "Pending"


def trouble_of(pod: Json) -> Trouble | None:
    """What keeps a pod from going on; `None` where nothing does."""
    status = fields(pod, "status")
    reason = text(status, "reason")
    if reason in ("Evicted", "Preempting", "NodeLost", "Shutdown", "Terminated"):
        return Trouble(
            reason,
            f"the pod was taken off its node: {text(status, 'message') or reason}",
            "give it what it needs with --pod-memory and --disk, and run it again",
        )
    for one in containers(pod):
        if one.state == "waiting" and one.reason in _NEVER_STARTS:
            return Trouble(
                one.reason,
                f"container `{one.name}` does not start, {_NEVER_STARTS[one.reason]}: "
                f"{one.message or one.reason}",
                _HINTS.get(one.reason),
            )
    for condition in entries(status, "conditions"):
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return Trouble(
                text(condition, "reason") or "Unschedulable",
                f"no node takes the pod: {text(condition, 'message') or 'no reason is given'}",
                "ask for less with --pod-cpu, --pod-memory and --disk, or wait for a node",
                fatal=False,
            )
    return None


def trouble_of_events(events: Sequence[Json]) -> Trouble | None:
    """Why a Job has no pod: what its controller said of it last."""
    failed = [one for one in events if one.get("reason") == "FailedCreate"]
    if not failed:
        return None
    # The API lists them by name.
    message = text(max(failed, key=_when), "message")
    hint = "ask the namespace's administrator"
    if "quota" in message:
        hint = "ask for less with --pod-cpu, --pod-memory and --disk, or wait until others end"
    elif "PodSecurity" in message or "security context constraint" in message:
        hint = "choose another --pod-security, or another namespace"
    elif "serviceaccount" in message:
        hint = "name one of this namespace with --service-account"
    return Trouble("FailedCreate", f"the cluster makes no pod for the job: {message}", hint)


def _when(event: Json) -> str:
    times = (text(event, name) for name in ("lastTimestamp", "eventTime", "firstTimestamp"))
    return next(filter(None, times), "")


def trouble_of_job(job: Json) -> Trouble | None:
    """Why a Job failed, where not its pod did."""
    for condition in entries(fields(job, "status"), "conditions"):
        if (
            condition.get("type") in ("Failed", "FailureTarget")
            and condition.get("status") == "True"
        ):
            reason = text(condition, "reason")
            if reason == "DeadlineExceeded":
                return Trouble(
                    reason, "the job took longer than it may", "give more with --deadline"
                )
    return None


def failed_container(pod: Json) -> ContainerState | None:
    """The container that ended the build, `None` where none failed."""
    for one in containers(pod):
        if one.state == "ended" and one.exit_code:
            return one
    return None


# --- what a step says ---------------------------------------------------------------------------

LONGEST_MESSAGE = 4096
_TEXT = 600


def mark_line(document: Json) -> str:
    """The document of a step as one line of its log."""
    return MARK + json.dumps(document, separators=(",", ":"), sort_keys=True)


def parse_mark(line: str) -> dict[str, Any] | None:
    """The document of a marked line; `None` for one that is damaged."""
    return json_object(line.removeprefix(MARK))


_IN_MESSAGE = ("state", "reason", "message", "hint", "exit_code", "script_exit_code",
               "name", "digest", "reference", "isolation")  # fmt: skip


def termination_message(document: Json) -> str:
    """What of a document fits into a termination message, of 4096 bytes at most."""
    kept = {key: document[key] for key in _IN_MESSAGE if document.get(key) is not None}
    for key in ("message", "hint"):
        if key in kept:
            kept[key] = str(kept[key])[:_TEXT]
    written = json.dumps(kept, separators=(",", ":"), sort_keys=True)
    return written if len(written) <= LONGEST_MESSAGE else json.dumps({"state": kept.get("state")})


def without_code(container: ContainerState) -> tuple[str, str, int]:
    """Reason, message and exit code of a container that left no document."""
    code = container.exit_code or 1
    words = f"container `{container.name}` ended with exit code {code}"
    if container.reason == "OOMKilled":
        return "OutOfMemory", f"{words}: it used more memory than it may", 9
    if container.reason and container.reason != "Error":
        words += f" ({container.reason})"
    if container.reason in ("StartError", "ContainerCannotRun"):
        return container.reason, f"{words}: {container.message[:_TEXT]}", 6
    return "BuildContainerDied", f"{words}, and left no result", code if 2 <= code <= 9 else 6
