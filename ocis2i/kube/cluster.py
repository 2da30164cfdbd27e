"""The API of a cluster, by the official client: the only place that loads it.

Answers are taken as the JSON they are: the client's models refuse what they do not know.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from typing import Any

from ocis2i.errors import IsolationError, Ocis2iError, UsageError
from ocis2i.kube.outcome import entries
from ocis2i.kube.text import EXTRA
from ocis2i.lazy_dataclass import dataclass
from ocis2i.manifest import json_object

CONNECT_SECONDS = 10
READ_SECONDS = 60
# More than this no answer has, and no line: the first is refused, the second cut.
ANSWER_LIMIT = 64 << 20
LINE_LIMIT = 8 << 20
_STATUS_LIMIT = 64 << 10
# Without a word for so long, a log is asked for again: proxies in between forget connections.
LOG_SECONDS = 120

# What `kube run` does, for the Role that a message gives.
ROLE = """\
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: ocis2i-build, namespace: NAMESPACE}
rules:
- {apiGroups: [batch], resources: [jobs], verbs: [create, get, delete]}
- {apiGroups: [""], resources: [pods], verbs: [list]}
- {apiGroups: [""], resources: [pods/log], verbs: [get]}
- {apiGroups: [""], resources: [events], verbs: [list]}"""

Json = dict[str, Any]


class ClusterError(IsolationError):
    """The cluster cannot be asked, or does not do what a build needs of it."""

    default_reason = "ClusterFailed"
    last_hint = "`kubectl get events` in the namespace says more"


class LostError(Exception):
    """The connection broke, or the server is busy: asking again may help."""


@dataclass(frozen=True, slots=True)
class Call:
    """One question to the API, in its own words."""

    verb: str
    resource: str
    group: str = ""


CREATE_JOB = Call("create", "jobs", "batch")
GET_JOB = Call("get", "jobs", "batch")
DELETE_JOB = Call("delete", "jobs", "batch")
LIST_PODS = Call("list", "pods")
GET_LOG = Call("get", "pods/log")
LIST_EVENTS = Call("list", "events")


class Cluster:
    """One namespace of a cluster."""

    def __init__(self, api: Any, module: Any, namespace: str, where: str) -> None:
        self._api = api
        self._batch = module.BatchV1Api(api)
        self._core = module.CoreV1Api(api)
        self._failure: type[Exception] = module.exceptions.ApiException
        self.namespace = namespace
        self.where = where

    def create_job(self, job: Json) -> Json:
        """Raises `ClusterError`; `LostError` where it may be there all the same."""
        return self._ask(
            CREATE_JOB,
            lambda: self._batch.create_namespaced_job(self.namespace, job, **_PLAIN),
        )

    def job(self, name: str) -> Json | None:
        """The Job; `None` when it is gone."""
        return self._find(
            GET_JOB, lambda: self._batch.read_namespaced_job(name, self.namespace, **_PLAIN)
        )

    def delete_job(self, name: str) -> None:
        """Deletes a Job with its pods; that it is gone already is well."""
        self._find(
            DELETE_JOB,
            lambda: self._batch.delete_namespaced_job(
                name, self.namespace, propagation_policy="Background", **_PLAIN
            ),
        )

    def pods(self, label: str) -> list[Json]:
        """The pods with a label, `name=value`."""
        answer = self._ask(
            LIST_PODS,
            lambda: self._core.list_namespaced_pod(self.namespace, label_selector=label, **_PLAIN),
        )
        return [dict(one) for one in entries(answer, "items")]

    def events(self, job: str) -> list[Json]:
        """What the cluster says of a Job, the oldest first; nothing where we may not ask."""
        try:
            answer = self._ask(
                LIST_EVENTS,
                lambda: self._core.list_namespaced_event(
                    self.namespace,
                    field_selector=f"involvedObject.kind=Job,involvedObject.name={job}",
                    **_PLAIN,
                ),
            )
        except ClusterError:
            return []
        return [dict(one) for one in entries(answer, "items")]

    def log(self, pod: str, container: str, since: str | None = None) -> Iterator[tuple[str, str]]:
        """The log of a container as far as the node has it: time and line, until it ends.

        Not much more than 8 MiB of a line are read. `since` is a time by RFC 3339, whole seconds.
        Raises `LostError` where the connection breaks.
        """
        try:
            response = self._call(GET_LOG, lambda: self._open_log(pod, container, since))
        except _GoneError:
            # With its pod: who looks for that next says so.
            return
        with closing(response):
            try:
                yield from map(_timed, _lines(response.stream(1 << 16)))
            except Exception as error:
                if not _is_broken(error):
                    raise
                raise LostError from error

    def _open_log(self, pod: str, container: str, since: str | None) -> Any:
        """The client's own method knows no `sinceTime`: the API's schema has left it out."""
        query = {"container": container, "follow": "true", "timestamps": "true"}
        if since:
            query["sinceTime"] = since
        request = self._api.param_serialize(
            method="GET",
            resource_path="/api/v1/namespaces/{namespace}/pods/{name}/log",
            path_params={"namespace": self.namespace, "name": pod},
            query_params=list(query.items()),
            header_params={"Accept": "text/plain"},
            auth_settings=["BearerToken"],
        )
        answer = self._api.call_api(*request, _request_timeout=(CONNECT_SECONDS, LOG_SECONDS))
        response = answer.response
        if not 200 <= response.status <= 299:
            with closing(response):
                failure: Any = self._failure
                refused = failure(status=response.status, reason=response.reason)
                refused.body = response.read(_STATUS_LIMIT)
            raise refused
        return response

    def _find(self, call: Call, ask: Callable[[], Any]) -> Json | None:
        try:
            return self._ask(call, ask)
        except _GoneError:
            return None

    def _ask(self, call: Call, ask: Callable[[], Any]) -> Json:
        with closing(self._call(call, ask)) as response:
            data = self._read(response)
        answer = json_object(data)
        if answer is None:
            raise ClusterError(
                f"the API of {self.where} answers with what is no JSON object",
                hint="is the address in the kubeconfig that of a cluster, or of a login page?",
            )
        return answer

    def _read(self, response: Any) -> bytes:
        try:
            data: bytes = response.read(ANSWER_LIMIT + 1)
        except Exception as error:
            if not _is_broken(error):
                raise
            raise LostError(str(error)) from error
        if len(data) > ANSWER_LIMIT:
            raise ClusterError(
                f"the API of {self.where} answers with over {ANSWER_LIMIT >> 20} MiB",
                hint="is the address in the kubeconfig that of a cluster?",
            )
        return data

    def _call(self, call: Call, ask: Callable[[], Any]) -> Any:
        try:
            return ask()
        except self._failure as error:
            raise self._explained(call, error) from error
        except Exception as error:
            if _is_certificate(error):
                raise ClusterError(
                    f"the certificate of {self.where} is not trusted",
                    hint="is certificate-authority in the kubeconfig that of this cluster?",
                ) from error
            if _is_broken(error):
                raise LostError(str(error)) from error
            raise

    def _explained(self, call: Call, error: Any) -> Exception:
        """An answer that is none: what it means, and what to do."""
        status, said = int(error.status or 0), _message(error)
        if status in (404, 410) and call.verb != "create":
            return _GoneError(said)
        if status in (0, 408, 429) or status >= 500:
            return LostError(said)
        message, hint = self._sentence(call, status, said)
        return ClusterError(message, hint=hint)

    def _sentence(self, call: Call, status: int, said: str) -> tuple[str, str | None]:
        known: dict[int, tuple[str, str]] = {
            401: (
                f"{self.where} does not know who asks: {said}",
                "log in to the cluster again; `kubectl auth whoami` says who you are",
            ),
            403: self._forbidden(call, said),
            404: (f"the cluster has no namespace `{self.namespace}`: {said}", "give --namespace"),
            409: (f"there is such a job already: {said}", "give another --name, or delete it"),
        }
        what = f"{self.where} refuses to {call.verb} {call.resource} ({status}): {said}"
        return known.get(status, (what, None))

    def _forbidden(self, call: Call, said: str) -> tuple[str, str]:
        if "quota" in said:
            return (
                f"the quota of namespace `{self.namespace}` has no room: {said}",
                "ask for less with --pod-cpu, --pod-memory and --disk",
            )
        group = f" of apiGroup `{call.group}`" if call.group else ""
        role = ROLE.replace("NAMESPACE", self.namespace)
        return (
            f"you may not `{call.verb}` `{call.resource}`{group} in namespace "
            f"`{self.namespace}`: {said}",
            f"ask for this, and for a RoleBinding to it:\n{role}",
        )


class _GoneError(Ocis2iError):
    """The object is not there any more."""


_PLAIN: Json = {"_preload_content": False, "_request_timeout": (CONNECT_SECONDS, READ_SECONDS)}


def _message(error: Any) -> str:
    """The sentence of a `Status` object, or what there is of one."""
    try:
        body = error.body if isinstance(error.body, str) else bytes(error.body or b"").decode()
        return str(json.loads(body)["message"])[:1000]
    except (ValueError, KeyError, TypeError):
        return str(error.reason or error)[:200]


def _lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The lines that the pieces make; of one that is too long its beginning."""
    rest = b""
    cut = False  # what comes up to the end of the line is of one that was too long
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        if lines and cut:
            del lines[0]
            cut = False
        yield from lines
        if len(rest) > LINE_LIMIT and not cut:
            yield rest
            cut = True
        rest = b"" if cut else rest
    if rest:
        yield rest


def _timed(line: bytes) -> tuple[str, str]:
    time, _, text = line.decode("utf-8", "replace").partition(" ")
    return time, text.rstrip("\r")


def _is_broken(error: BaseException) -> bool:
    """Whether it is a connection that failed; without loading who raises it."""
    known = {f"{one.__module__.partition('.')[0]}.{one.__name__}" for one in type(error).__mro__}
    return isinstance(error, OSError) or "urllib3.HTTPError" in known


def _is_certificate(error: BaseException) -> bool:
    return "CERTIFICATE_VERIFY_FAILED" in str(error)


def open_cluster(*, context: str | None, namespace: str | None, config: str | None) -> Cluster:
    """The cluster of the kubeconfig file `config`, or the one that this pod is in.

    Raises `UsageError` where the client is not installed, `ClusterError` without a cluster.
    """
    try:
        from kubernetes import client  # noqa: PLC0415 - an extra
        from kubernetes import config as settings  # noqa: PLC0415
    except ImportError as error:
        raise UsageError(
            "`kube run` takes the client of Kubernetes, which is not installed", hint=EXTRA
        ) from error
    try:
        load: Any = settings  # without annotations
        api = load.new_client_from_config(config_file=config, context=context)
        known, active = load.list_kube_config_contexts(config_file=config)
        chosen = next(one for one in known if one["name"] == context) if context else active
        found = (chosen.get("context") or {}).get("namespace") or "default"
        where = f"cluster `{(chosen.get('context') or {}).get('cluster') or context}`"
    except Exception as error:
        # A file that is no YAML is PyYAML's error, an unknown context nobody's.
        known_errors = (settings.ConfigException, OSError, ValueError, KeyError, TypeError)
        is_yaml = type(error).__module__.startswith("yaml")
        if not is_yaml and not isinstance(error, (*known_errors, StopIteration)):
            raise
        looked = f" from `{config}`" if config else ""
        raise ClusterError(
            f"no cluster is known{looked}: {error}",
            hint="give --context, or set KUBECONFIG to a file that names one",
        ) from error
    # Retrying is done where it is known what was asked for.
    api.configuration.retries = False
    return Cluster(api, client, namespace or found, where)
