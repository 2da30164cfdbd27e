"""Carries out `kube run`: a build by a Job, as if it were one of this machine."""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from ocis2i.commands.context import Context, context, digest_file
from ocis2i.commands.kube_flags import KubeFlags, order_of, pod_of
from ocis2i.commands.state import State, print_json
from ocis2i.errors import (
    ImageError,
    Interrupted,
    IsolationError,
    Ocis2iError,
    OutputError,
    PolicyError,
    RegistryError,
    ScriptError,
    SourceError,
    UsageError,
)
from ocis2i.events import Notice, stage
from ocis2i.kube.cluster import Cluster, ClusterError, LostError, open_cluster
from ocis2i.kube.following import Followed, Waiting, follow
from ocis2i.kube.hidden import refuse_secrets
from ocis2i.kube.kinds import job
from ocis2i.kube.names import label_name
from ocis2i.kube.outcome import ContainerState, containers, without_code
from ocis2i.kube.plan import Order, Pod, check, check_variables
from ocis2i.limits import parse_duration
from ocis2i.oci_artifacts import SCHEME
from ocis2i.reference import Reference, parse_registry_name
from ocis2i.sources import ArtifactSource

_SUFFIX_BYTES = 3
_CREATE_ATTEMPTS = 3


def run_in_cluster(flags: KubeFlags, words: list[str]) -> None:
    """Uploads the source, makes the Job, follows it, and says what came of it."""
    if flags.file is not None:
        raise UsageError("--file is for `kube render`", hint="leave it out")
    pending = parse_duration(flags.pending_timeout, "--pending-timeout") or 0.0
    with context(flags) as here:
        order = order_of(flags, words, here.tools.cwd)
        pod = pod_of(flags, order, os.environ)
        check(order, pod)
        check_variables(order, pod)
        # The source is fetched here.
        refuse_secrets(replace(order, source=""))
        if names := flags.typed_parameters:
            from ocis2i.commands.kube_secrets import refuse_declared  # noqa: PLC0415 - few have one

            refuse_declared(names, order, flags, here)
        pod = replace(pod, name=_fresh(pod.name))
        written = digest_file(flags, here)
        cluster = open_cluster(
            context=flags.cluster_context,
            namespace=flags.namespace,
            config=os.environ.get("KUBECONFIG") or None,
        )
        order = _uploaded(order, flags, pod, here)
        manifest = job(order, replace(pod, namespace=cluster.namespace))
        with (
            _job(cluster, manifest, flags, here) as name,
            stage(here.recorder, "cluster", f"job {name} in {cluster.namespace}"),
        ):
            ended = follow(
                cluster, name, waiting=_waiting(), pending_seconds=pending, report=here.recorder
            )
        document = _document(ended, cluster, name)
        if ended.failed is not None:
            if flags.as_json:
                print_json(document)
                # The document is out: that of a failure here would be a second one.
                State.as_json = False
            raise _failure(document, ended.failed)
        if written:
            written.write(str(document.get("digest")))
        if flags.as_json:
            print_json(document)
        else:
            print(document.get("reference") or document.get("digest"))


def _fresh(name: str) -> str:
    """A name of its own for each run."""
    suffix = secrets.token_hex(_SUFFIX_BYTES)
    return f"{label_name(name, longest=62 - len(suffix))}-{suffix}"


def _waiting() -> Waiting:
    # Nothing sets the event: it is a wait that a signal ends.
    never = threading.Event()

    def pause(seconds: float) -> None:
        never.wait(seconds)

    return Waiting(time.monotonic, pause)


# --- the source -----------------------------------------------------------------------------------


def _uploaded(order: Order, flags: KubeFlags, pod: Pod, here: Context) -> Order:
    """The order with a source that a pod can reach: any other is put into the registry."""
    source = flags.parsed(order.source, here.tools.cwd, depth=flags.depth)
    if isinstance(source, ArtifactSource):
        return order
    # A repository is cloned here: with the user's own keys, which the pod does not have.
    from ocis2i.upload import upload  # noqa: PLC0415 - see above

    result = Reference.parse(order.names[0])
    text = flags.source_repository or result.name
    target = replace(parse_registry_name(text), tag=f"source-{pod.name}"[:128])
    artifact = upload(
        source,
        target,
        here.tools.places,
        settings=here.tools.settings,
        report=here.recorder,
        stdin=here.tools.stdin,
    )
    pinned = replace(target, tag=None, digest=artifact.digest)
    # What these say is done: the artifact is what they left.
    return replace(order, source=f"{SCHEME}{pinned}", fetch=_still_to_say(order.fetch))


def _still_to_say(options: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the options that say nothing of the source: the artifact is what they left."""
    done = "ref context-dir copy exclude keep-symlinks ignore-submodules depth source-type "
    names = {f"--{name}" for name in (done + "source-name").split()}
    return tuple(word for word in options if word.partition("=")[0] not in names)


# --- the job --------------------------------------------------------------------------------------


@contextmanager
def _job(
    cluster: Cluster, manifest: dict[str, Any], flags: KubeFlags, here: Context
) -> Iterator[str]:
    """The Job while it is followed; deleted at the end, however that comes, unless it is kept."""
    name = str(manifest["metadata"]["name"])
    try:
        _create(cluster, manifest)
    except (Interrupted, KeyboardInterrupt):
        # It may be there already, and only the answer is not.
        _delete(cluster, name, here, keep=False)
        raise
    try:
        yield name
    except BaseException as error:
        # Who stops it wants it to end; and a build that is not followed any more is nobody's.
        keep = flags.keep_job and not isinstance(error, Interrupted | KeyboardInterrupt)
        _delete(cluster, name, here, keep=keep)
        raise
    _delete(cluster, name, here, keep=flags.keep_job)


def _create(cluster: Cluster, manifest: dict[str, Any]) -> None:
    """Makes the Job; where no answer came, it looks whether it is there."""
    name = manifest["metadata"]["name"]
    for attempt in range(1, _CREATE_ATTEMPTS + 1):
        try:
            cluster.create_job(manifest)
        except LostError as error:
            if _is_there(cluster, name):
                return
            if attempt == _CREATE_ATTEMPTS:
                raise ClusterError(
                    f"{cluster.where} cannot be reached: {error}",
                    hint="is the address in the kubeconfig right, and is a VPN or proxy needed?",
                    reason="ClusterUnreachable",
                ) from error
        except ClusterError:
            # Of this name, which is nobody else's, there is one: of an attempt without an answer.
            if attempt == 1 or not _is_there(cluster, name):
                raise
            return
        else:
            return


def _is_there(cluster: Cluster, name: str) -> bool:
    try:
        return cluster.job(name) is not None
    except LostError:
        return False


def _delete(cluster: Cluster, name: str, here: Context, *, keep: bool) -> None:
    if keep:
        here.recorder.warn(f"job `{name}` stays in namespace `{cluster.namespace}`")
        return
    try:
        cluster.delete_job(name)
    except (ClusterError, LostError) as error:
        here.recorder.warn(
            f"job `{name}` could not be deleted: {error}; "
            f"write: kubectl delete job {name} -n {cluster.namespace}"
        )
    else:
        here.recorder(Notice("info", f"job `{name}` is deleted"))


# --- what came of it ------------------------------------------------------------------------------


def _document(ended: Followed, cluster: Cluster, name: str) -> dict[str, Any]:
    """The document of the container that had the last word, with where it was."""
    where = {"kube": {"namespace": cluster.namespace, "job": name, "pod": ended.pod_name or None}}
    failed = ended.failed
    if failed is None:
        document = next((ended.documents.get(one.name) for one in containers(ended.pod)[-1:]), None)
        if document is None:
            raise ClusterError(
                "the pod succeeded, and its log has no result",
                hint="is the image of --tool-image of another version of ocis2i?",
                reason="ResultLost",
            )
        return {**document, **where}
    document = ended.documents.get(failed.name)
    if document is None or document.get("state") != "failed":
        reason, message, code = without_code(failed)
        document = {
            "version": 1,
            "state": "failed",
            "reason": reason,
            "message": message,
            "hint": "what it said is shown above; give it more with --pod-memory"
            if reason == "OutOfMemory"
            else "what it said is shown above",
            "exit_code": code,
            "script_exit_code": None,
            "network": None,
            "stages": [],
            "build_info": {"stages": [], "failureReason": {"reason": reason, "message": message}},
        }
    return {**document, **where}


_CLASSES: dict[int, type[Ocis2iError]] = {
    2: UsageError,
    3: SourceError,
    4: ImageError,
    5: RegistryError,
    6: IsolationError,
    8: OutputError,
    9: PolicyError,
}


def _failure(document: dict[str, Any], failed: ContainerState) -> Ocis2iError:
    """The error that the pod's ocis2i ended with, to end with it here.

    Where that was killed, the document can be a script's: any value may stand in it.
    """
    message, reason = str(document.get("message")), str(document.get("reason"))
    hint = str(document["hint"]) if document.get("hint") else None
    code, script_code = document.get("exit_code"), document.get("script_exit_code")
    if code == ScriptError.exit_code:
        return ScriptError(
            message,
            script_exit_code=script_code if isinstance(script_code, int) else failed.exit_code or 1,
            hint=hint,
            reason=reason,
        )
    kind = _CLASSES.get(code if isinstance(code, int) else 0, ClusterError)
    return kind(message, hint=hint, reason=reason)
