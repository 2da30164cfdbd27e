"""A stand-in for the API server of Kubernetes: as much of it as a Job and its pod take.

What is sent to it is checked with the published OpenAPI schema, strictly: unknown fields are
refused. A `play` is what becomes of the pod; it runs in a thread of its own and changes the state.
"""

from __future__ import annotations

import copy
import json
import re
import threading
import urllib.parse
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache
from http.server import BaseHTTPRequestHandler
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema

from tests.fakes.server import LoopbackServer, Served

Json = dict[str, Any]

SCHEMA = "1.36"
TOKEN = "cluster-token"
_PATH = re.compile(r"/(?:api/v1|apis/batch/v1)/namespaces/([^/]+)/([a-z]+)(?:/([^/]+))?(/log)?\Z")


def definitions() -> Json:
    """The published definitions of Kubernetes' objects, by their full names."""
    package = resources.files("kubernetes_validate") / "kubernetes-json-schema"
    text = (package / f"v{SCHEMA}.0-local-strict/_definitions.json").read_text()
    found: Json = json.loads(text)["$defs"]
    return found


@cache
def _validator(name: str) -> Any:
    schema = {"$ref": f"#/$defs/{name}", "$defs": definitions()}
    return jsonschema.validators.validator_for(schema)(schema)


_DEFINED = {"Job": "io.k8s.api.batch.v1.Job", "Pod": "io.k8s.api.core.v1.Pod"}


def check_object(document: Json) -> None:
    """Raises `jsonschema.ValidationError` for what the API would refuse."""
    _validator(_DEFINED[document["kind"]]).validate(document)


class FakeKubeApi(Served):
    """One namespace, `builds`, that holds Jobs and their pods while its `with` block lasts."""

    def __init__(self, play: Callable[[PlayedPod], None] | None = None) -> None:
        self.play = play or (lambda _: None)
        self.namespace = "builds"
        self.jobs: dict[str, Json] = {}
        self.pods: dict[str, Json] = {}
        self.logs: dict[str, list[str]] = {}
        self.events: list[Json] = []
        self.created: list[Json] = []
        self.calls: list[str] = []
        # (status, message) by "VERB resource", each given so many times.
        self.faults: dict[str, list[tuple[int, str]]] = {}
        # After how many lines a log breaks off, each time it is asked for.
        self.broken_logs: list[int] = []
        # After how many lines the next logs end as if there were no more.
        self.short_logs: list[int] = []
        # How many lines the node drops off the front before a log is asked for again: it rotates.
        self.rotations: list[int] = []
        # What was asked for as `sinceTime`.
        self.since: list[str | None] = []
        # "VERB resource" of what is done, and then the connection breaks without an answer.
        self.unanswered: list[str] = []
        # The body of every answer, where it is not that of a cluster.
        self.raw: bytes | None = None
        self.with_pod = True
        self.changed = threading.Condition()
        self.threads: list[threading.Thread] = []
        self.errors: list[Exception] = []
        fake = self

        class Handler(_Handler):
            api = fake

        super().__init__(LoopbackServer(Handler))

    def kubeconfig(self, path: Path, *, token: str = TOKEN) -> Path:
        """A file that names this server; its current namespace is this one."""
        name = "cluster-of-tests"
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": name,
            "clusters": [{"name": name, "cluster": {"server": f"http://{self.host}"}}],
            "users": [{"name": "tester", "user": {"token": token}}],
            "contexts": [
                {
                    "name": name,
                    "context": {"cluster": name, "user": "tester", "namespace": self.namespace},
                }
            ],
        }
        path.write_text(json.dumps(document))
        return path

    # --- what happens to a Job --------------------------------------------------------------------

    def create(self, job: Json) -> Json:
        check_object(job)
        name = job["metadata"]["name"]
        with self.changed:
            if name in self.jobs:
                raise _Refused(409, f'jobs.batch "{name}" already exists')
            self.created.append(copy.deepcopy(job))
            job["metadata"] |= {"uid": f"uid-{name}", "creationTimestamp": _now()}
            job["status"] = {}
            self.jobs[name] = job
        if self.with_pod:
            pod = PlayedPod(self, job)
            thread = threading.Thread(target=self._played, args=(pod,), daemon=True)
            self.threads.append(thread)
            thread.start()
        return job

    def _played(self, pod: PlayedPod) -> None:
        try:
            self.play(pod)
        except Exception as error:  # noqa: BLE001 - the test is to see it, and not to wait
            self.errors.append(error)
            pod.finish("Failed", message=f"the play failed: {error!r}")

    def __exit__(self, *exc: object) -> None:
        super().__exit__(*exc)
        if not any(exc):
            assert self.errors == []

    def delete(self, name: str) -> None:
        with self.changed:
            self.jobs.pop(name)
            for pod in [one for one in self.pods if one.startswith(f"{name}-")]:
                del self.pods[pod]
            self.changed.notify_all()


class _Refused(Exception):  # noqa: N818 - an answer
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


class PlayedPod:
    """The pod of a Job, for a play to change."""

    def __init__(self, api: FakeKubeApi, job: Json) -> None:
        self.api = api
        self.job = job["metadata"]["name"]
        self.name = f"{self.job}-x1y2z"
        template = copy.deepcopy(job["spec"]["template"])
        check_object({"apiVersion": "v1", "kind": "Pod", **template})
        self.spec = template["spec"]
        self.document: Json = {
            "metadata": {
                "name": self.name,
                "creationTimestamp": _now(),
                "labels": {**template["metadata"]["labels"], "job-name": self.job},
            },
            "spec": self.spec,
            "status": {"phase": "Pending"},
        }
        self.init = [one["name"] for one in self.spec["initContainers"]]
        self.main = [one["name"] for one in self.spec["containers"]]
        with api.changed:
            api.pods[self.name] = self.document

    @property
    def is_there(self) -> bool:
        return self.name in self.api.pods

    def status(self, **fields: Any) -> None:
        with self.api.changed:
            self.document["status"] |= fields
            self.api.changed.notify_all()

    def state(self, container: str, **state: Json) -> None:
        """What a container does: `waiting`, `running` or `terminated`."""
        key = "initContainerStatuses" if container in self.init else "containerStatuses"
        with self.api.changed:
            known = self.document["status"].setdefault(key, [])
            known[:] = [one for one in known if one["name"] != container]
            known.append({"name": container, "state": state, "image": "", "imageID": "",
                          "ready": False, "restartCount": 0})  # fmt: skip
            self.api.changed.notify_all()

    def say(self, container: str, *lines: str) -> None:
        with self.api.changed:
            log = self.api.logs.setdefault(f"{self.name}/{container}", [])
            log.extend(f"{_now()} {line}" for line in lines)
            self.api.changed.notify_all()

    def start(self, container: str) -> None:
        self.state(container, running={"startedAt": _now()})
        if container in self.main:
            self.status(phase="Running")

    def end(self, container: str, code: int = 0, reason: str = "", message: str = "") -> None:
        why = reason or ("Completed" if code == 0 else "Error")
        ended = {"exitCode": code, "reason": why, "message": message,
                 "startedAt": _now(), "finishedAt": _now()}  # fmt: skip
        self.state(container, terminated=ended)

    def runs(self, container: str, *lines: str, code: int = 0, **how: str) -> None:
        """A container from start to end."""
        self.start(container)
        self.say(container, *lines)
        self.end(container, code, **how)

    def finish(self, phase: str, **fields: Any) -> None:
        """The pod has ended, and with it its Job."""
        kind = {"Succeeded": "Complete", "Failed": "Failed"}[phase]
        with self.api.changed:
            if self.job in self.api.jobs:
                reason = fields.pop("job_reason", "BackoffLimitExceeded")
                condition = {"type": kind, "status": "True", "reason": reason}
                self.api.jobs[self.job]["status"] = {"conditions": [condition]}
        self.status(phase=phase, **fields)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    api: FakeKubeApi

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._serve()

    do_POST = do_DELETE = do_GET  # noqa: N815 - http.server's names

    def _serve(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        found = _PATH.match(url.path)
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length) or b"null")
        try:
            self._act(found, query, body)
        except _Refused as refused:
            if refused.status == 0:  # the connection breaks
                self.close_connection = True
                return
            status = {"kind": "Status", "apiVersion": "v1", "status": "Failure",
                      "message": refused.message, "code": refused.status}  # fmt: skip
            self._answer(refused.status, status)

    def _act(self, found: re.Match[str] | None, query: dict[str, str], body: Json) -> None:
        if found is None:
            raise _Refused(404, "the server could not find the requested resource")
        namespace, resource, name, log = found.groups()
        verb = {"POST": "create", "DELETE": "delete"}.get(self.command, "get" if name else "list")
        what = f"{verb} {resource}{log or ''}"
        with self.api.changed:
            self.api.calls.append(what)
            self.api.changed.notify_all()
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise _Refused(401, "Unauthorized")
        if self.api.faults.get(what):
            raise _Refused(*self.api.faults[what].pop(0))
        if namespace != self.api.namespace:
            raise _Refused(404, f'namespaces "{namespace}" not found')
        if log:
            self._log(f"{name}/{query['container']}", query)
            return
        found_object = self._object(what, name, query, body)
        if what in self.api.unanswered:
            self.api.unanswered.remove(what)
            raise _Refused(0, "")
        self._answer(200, found_object)

    def _object(self, what: str, name: str, query: dict[str, str], body: Json) -> Json:
        api = self.api
        match what:
            case "create jobs":
                try:
                    return api.create(body)
                except jsonschema.ValidationError as error:
                    raise _Refused(422, error.message) from error
            case "get jobs" | "delete jobs":
                if name not in api.jobs:
                    raise _Refused(404, f'jobs.batch "{name}" not found')
                job = api.jobs[name]
                if what == "delete jobs":
                    policy = query.get("propagationPolicy") or (body or {}).get("propagationPolicy")
                    assert policy == "Background", "the pods would stay"
                    api.delete(name)
                return job
            case "list pods":
                key, _, value = query["labelSelector"].partition("=")
                with api.changed:
                    pods = [copy.deepcopy(one) for one in api.pods.values()]
                items = [one for one in pods if one["metadata"]["labels"].get(key) == value]
                return {"kind": "PodList", "apiVersion": "v1", "items": items}
            case "list events":
                return {"kind": "EventList", "apiVersion": "v1", "items": api.events}
            case _:
                raise _Refused(405, f"{what} is not there")

    def _log(self, key: str, query: dict[str, str]) -> None:
        """The log of a container, until it has ended and all is said."""
        assert query["follow"] == "true"
        pod, _, container = key.partition("/")
        if pod not in self.api.pods:
            raise _Refused(404, f'pods "{pod}" not found')
        since = query.get("sinceTime")
        with self.api.changed:
            self.api.since.append(since)
            dropped = self.api.rotations.pop(0) if self.api.rotations else 0
            del self.api.logs.setdefault(key, [])[:dropped]
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        breaks = self.api.broken_logs.pop(0) if self.api.broken_logs else None
        short = self.api.short_logs.pop(0) if self.api.short_logs else None
        sent = given = 0
        while True:
            with self.api.changed:
                lines = self.api.logs.get(key, [])[sent:]
                over = self._is_over(pod, container)
                if not lines and not over:
                    self.api.changed.wait(1)
                    continue
            for line in lines:
                if since and not _is_since(line, since):
                    sent += 1
                    continue
                if breaks is not None and given >= breaks:
                    self.close_connection = True
                    return
                if short is not None and given >= short:
                    self._chunk(b"")
                    return
                self._chunk(line.encode() + b"\n")
                sent, given = sent + 1, given + 1
            if over and not lines:
                self._chunk(b"")
                return

    def _is_over(self, pod: str, container: str) -> bool:
        document = self.api.pods.get(pod)
        if document is None or document["status"].get("phase") in ("Succeeded", "Failed"):
            return True
        status = document["status"]
        for key in ("initContainerStatuses", "containerStatuses"):
            for one in status.get(key, []):
                if one["name"] == container:
                    return "terminated" in one["state"]
        return False

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def _answer(self, status: int, document: Json) -> None:
        data = json.dumps(document).encode() if self.api.raw is None else self.api.raw
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _is_since(line: str, since: str) -> bool:
    """As the kubelet has it: by whole seconds, each line for itself."""
    start = datetime.fromisoformat(since).replace(microsecond=0)
    return datetime.fromisoformat(line.partition(" ")[0]) >= start


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
