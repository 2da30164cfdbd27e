"""Follows the Job of a build to its end: its pod, and the log of each container."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import field
from typing import Any

from ocis2i.events import Notice, Report, ScriptOutput
from ocis2i.kube.cluster import Cluster, ClusterError, LostError
from ocis2i.kube.loglines import LogPlace
from ocis2i.kube.outcome import (
    MARK,
    ContainerState,
    Trouble,
    containers,
    failed_container,
    fields,
    parse_mark,
    phase,
    text,
    trouble_of,
    trouble_of_events,
    trouble_of_job,
)
from ocis2i.lazy_dataclass import dataclass

Json = dict[str, Any]

_ATTEMPTS = 10
_LONGEST_PAUSE = 15.0


@dataclass(frozen=True, slots=True)
class Waiting:
    """A clock in seconds, and how to wait for some."""

    now: Callable[[], float]
    pause: Callable[[float], None]
    shortest: float = 0.1
    longest: float = 2.0


@dataclass(slots=True)
class Followed:
    """What is known of a Job at its end."""

    pod: Json = field(default_factory=dict)
    documents: dict[str, Json] = field(default_factory=dict)

    @property
    def failed(self) -> ContainerState | None:
        """The container that ended the build."""
        return failed_container(self.pod)

    @property
    def pod_name(self) -> str:
        """As the cluster called it."""
        return text(fields(self.pod, "metadata"), "name")


def follow(
    cluster: Cluster, job: str, *, waiting: Waiting, pending_seconds: float, report: Report
) -> Followed:
    """Shows the logs of the Job's containers one after the other until its pod has ended.

    Raises `ClusterError` where it never ends well: `pending_seconds` is how long a pod may wait
    for a node.
    """
    return _Follower(cluster, job, waiting, pending_seconds, report).run()


class _Follower:
    def __init__(
        self,
        cluster: Cluster,
        job: str,
        waiting: Waiting,
        pending_seconds: float,
        report: Report,
    ) -> None:
        self._cluster = cluster
        self._job = job
        self._waiting = waiting
        self._deadline = waiting.now() + pending_seconds
        self._report = report
        self._told = ""
        self._interval = waiting.shortest
        self._shown: set[str] = set()
        self._places: dict[str, LogPlace] = {}
        self._seen = Followed()

    def run(self) -> Followed:
        while True:
            pod = self._pod()
            if pod is None:
                self._check_job()
            else:
                self._see(pod)
                self._show_logs(pod)
                if phase(pod) in ("Succeeded", "Failed"):
                    return self._end(pod)
                self._check_pod(pod)
            self._pause()

    def _see(self, pod: Json) -> None:
        before, self._seen.pod = self._seen.pod_name, pod
        if before and before != self._seen.pod_name:
            # Another in the place of one that was lost: it begins anew.
            self._shown.clear()
            self._places.clear()
            self._seen.documents.clear()

    def _pause(self) -> None:
        """Longer each time, while nothing happens."""
        self._waiting.pause(self._interval)
        self._interval = min(self._interval * 1.5, self._waiting.longest)

    def _pod(self) -> Json | None:
        found = self._patiently(lambda: self._cluster.pods(f"job-name={self._job}"))
        return max(found, key=_created) if found else None

    def _check_job(self) -> None:
        """There is no pod, or none any more."""
        job = self._patiently(lambda: self._cluster.job(self._job))
        if job is None or self._seen.pod:
            what = "job" if job is None else "pod"
            if job is not None and (trouble := trouble_of_job(job)):
                raise _error(trouble)
            raise ClusterError(
                f"the {what} `{self._job}` was deleted by somebody else",
                hint="run it again",
                reason="Deleted",
            )
        if trouble := trouble_of_job(job):
            raise _error(trouble)
        trouble = trouble_of_events(self._patiently(lambda: self._cluster.events(self._job)))
        if trouble:
            raise _error(trouble)
        self._wait_for(Trouble("NoPod", f"the job `{self._job}` has no pod yet", fatal=False))

    def _check_pod(self, pod: Json) -> None:
        trouble = trouble_of(pod)
        if trouble is None:
            if phase(pod) == "Running":
                self._deadline = float("inf")
            elif not any(one.state != "waiting" for one in containers(pod)):
                self._wait_for(Trouble("Pending", "the pod waits to be started", fatal=False))
            return
        if trouble.fatal:
            raise _error(trouble)
        self._wait_for(trouble)

    def _wait_for(self, trouble: Trouble) -> None:
        """Says once what is waited for, and gives up after a while."""
        if self._waiting.now() >= self._deadline:
            raise _error(trouble)
        if trouble.hint and trouble.message != self._told:
            self._told = trouble.message
            self._report(Notice("warning", f"{trouble.message}; {trouble.hint}"))

    def _show_logs(self, pod: Json) -> None:
        for one in containers(pod):
            if one.state == "waiting" or one.name in self._shown:
                continue
            place = self._places.setdefault(one.name, LogPlace())
            before = place.count
            self._show_log(one.name, place)
            # A log can end before its container does: where something between closes what is idle.
            if one.state == "ended":
                self._shown.add(one.name)
            if one.state == "ended" or place.count > before:
                self._interval = self._waiting.shortest

    def _show_log(self, container: str, place: LogPlace) -> None:
        """To its end, also over several connections."""
        attempts = 0
        while True:
            place.connected()
            lines = self._cluster.log(self._seen.pod_name, container, place.since)
            try:
                for time, line in lines:
                    if place.is_new(time, line):
                        attempts = 0
                        self._line(container, line)
            except LostError as error:
                attempts += 1
                if attempts >= _ATTEMPTS:
                    raise _lost(self._cluster, error) from error
                self._waiting.pause(_pause(attempts, self._waiting.shortest))
                continue
            return

    def _line(self, container: str, line: str) -> None:
        if line.startswith(MARK):
            self._mark(container, line)
            return
        self._report(ScriptOutput("stderr", line))

    def _mark(self, container: str, line: str) -> None:
        document = parse_mark(line)
        if document is not None:
            # What comes last counts: nothing that a script started is left by then.
            self._seen.documents[container] = document

    def _end(self, pod: Json) -> Followed:
        if phase(pod) == "Failed":
            trouble = trouble_of(pod)
            if trouble and trouble.fatal:
                raise _error(trouble)
            if self._seen.failed is None:
                job = self._patiently(lambda: self._cluster.job(self._job))
                status = fields(pod, "status")
                words = text(status, "message") or text(status, "reason") or "no reason is given"
                raise _error(
                    trouble_of_job(job or {}) or Trouble("PodFailed", f"the pod failed: {words}")
                )
        return self._seen

    def _patiently(self, ask: Callable[[], Any]) -> Any:
        """Asks again while the connection is lost or the server busy."""
        for attempt in _attempts():
            try:
                return ask()
            except LostError as error:
                if attempt == _ATTEMPTS:
                    raise _lost(self._cluster, error) from error
                self._waiting.pause(_pause(attempt, self._waiting.shortest))
        raise AssertionError  # the last attempt raises


def _attempts() -> Iterator[int]:
    yield from range(1, _ATTEMPTS + 1)


def _pause(attempt: int, interval: float) -> float:
    return float(min(interval * 2 ** (attempt - 1), _LONGEST_PAUSE))


def _created(pod: Json) -> str:
    return text(fields(pod, "metadata"), "creationTimestamp")


def _error(trouble: Trouble) -> ClusterError:
    return ClusterError(trouble.message, hint=trouble.hint, reason=trouble.reason)


def _lost(cluster: Cluster, error: LostError) -> ClusterError:
    return ClusterError(
        f"the connection to {cluster.where} is lost: {error}",
        hint="the job goes on there: `kubectl get jobs` lists it",
        reason="ClusterLost",
    )
