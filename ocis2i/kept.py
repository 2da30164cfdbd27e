"""Keeps the container of a script that failed, and opens it again: `--keep-failed`, `shell`.

What is kept is the build's own directory, where it is and as the script left it; nothing is copied.
`kept.json` in it makes the end of the session leave it, and says what a later process in it is to
have. Values that are for the build alone are not written down; injected files were only mounted,
and of them empty files are left.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ocis2i.allowed_hosts import AllowList
from ocis2i.container import Failed, Job, Surroundings, choose_runner
from ocis2i.container_options import parse_add_host
from ocis2i.errors import IsolationError, OutputError, UsageError
from ocis2i.events import ContainerKept, Notice, Report
from ocis2i.failed_shell import find_shell, plan_shell
from ocis2i.fs import Lock, write_atomic
from ocis2i.isolation.agent import Agent, agent
from ocis2i.isolation.console import is_terminal, size
from ocis2i.isolation.network import connected
from ocis2i.kept_document import VERSION, faults
from ocis2i.lazy_dataclass import dataclass
from ocis2i.manifest import Json, encode_json, json_object
from ocis2i.records import KEPT
from ocis2i.rootfs import Rootfs
from ocis2i.runner import BindMount, Hardening, Network, RunSpec, Stdio
from ocis2i.s2i import Identity
from ocis2i.session import Session, check_weak
from ocis2i.settings import Settings
from ocis2i.spec import BuildSpec
from ocis2i.store import BUILD_LOCK, Store


@dataclass(frozen=True, slots=True)
class Kept:
    """A failed container: the build's directory, and what `kept.json` says of it."""

    directory: Path
    document: Json

    @property
    def tree(self) -> Path:
        """The directory in which the container's own trees are."""
        return self.directory / str(self.document["tree"])

    @property
    def left_out(self) -> tuple[str, ...]:
        """What the script had and a later process has not, in words."""
        return tuple(map(str, self.document["left_out"]))


# --- keeping ----------------------------------------------------------------------------------


def keep(failed: Failed, spec: BuildSpec) -> None:
    """Has the session's directory stay, and names it in the failure; a warning where that fails."""
    here, error = failed.site.here, failed.error
    document = describe(failed, spec)
    try:
        data = encode_json(document)
        write_atomic(here.directory / KEPT, data, scratch=here.directory, mode=0o600)
    except OSError as refused:
        said = f"the failed container cannot be kept: {refused.strerror}"
        failed.site.report(Notice("warning", said))
        return
    failed.site.report(ContainerKept(str(here.directory)))
    if error.failure:
        error.failure = replace(error.failure, container=str(here.directory))


def describe(failed: Failed, spec: BuildSpec) -> Json:
    """What is to be known of a container to start something in it again. Pure.

    Without secrets: neither variables for the build alone, nor others that have such a value.
    """
    job, here = failed.job, failed.site.here
    secrets = spec.secrets.telling
    public = [entry for entry in job.environment if not any(secret in entry for secret in secrets)]
    hidden = sorted({*job.more, *(_name(one) for one in job.environment if one not in public)})
    left_out = [f"the variable {name}" for name in hidden if name != "SOURCE_DATE_EPOCH"]
    left_out += [f"the content of `{mount.target}`" for mount in job.mounts]
    identity = job.identity
    return {
        "version": VERSION,
        "script": job.argv[-1],
        "tree": str(Path(failed.rootfs.build).relative_to(here.directory)),
        "environment": public,
        "cwd": job.cwd,
        "identity": {
            "uid": identity.uid,
            "gid": identity.gid,
            "groups": list(identity.groups),
            "home": identity.home,
            "name": identity.name,
        },
        "volumes": [[one.source, one.target, one.read_only, one.directory] for one in spec.mounts],
        "add_hosts": list(map(str, spec.add_hosts)),
        "cap_drop": sorted(spec.cap_drop),
        # The hosts that a proxy lets through belong to the build.
        "network": "none" if spec.network == "proxy" else spec.network,
        "seccomp": spec.hardening.seccomp,
        "no_new_privs": spec.hardening.no_new_privs,
        "isolation": failed.site.runner.name,
        "weak": here.weak,
        "ids": here.agent.ground.ids,
        "rootfs": here.rootfs,
        "buildah_mode": here.buildah_mode,
        "left_out": [*left_out, *(["the network"] if spec.network == "proxy" else [])],
    }


def _name(entry: str) -> str:
    return entry.partition("=")[0]


# --- going in ---------------------------------------------------------------------------------


def load(directory: Path) -> Kept | None:
    """The container that is kept in a directory; `None` when there is none, or none of ours.

    Raises `OutputError` where nobody can tell any more how to open it.
    """
    path = directory / KEPT
    try:
        if path.stat().st_uid != os.geteuid():
            return None  # it would choose what is mounted
        data = path.read_bytes()
    except (OSError, ValueError):
        return None
    document = json_object(data) or {}
    if wrong := faults(document):
        raise OutputError(
            f"the kept container `{directory}` cannot be opened: `{KEPT}` is damaged, or of "
            f"another ocis2i ({', '.join(wrong)})",
            hint="build again with --keep-failed; `ocis2i prune` removes what is there",
        )
    return Kept(directory.resolve(), document)


def enter(
    kept: Kept, command: tuple[str, ...], store: Store, settings: Settings, report: Report
) -> int:
    """Runs a command in a kept container, or a shell; its exit code. What it changes stays.

    A shell has our terminal; raises `UsageError` where there is none, or somebody else is in it.
    """
    if not command and not is_terminal():
        raise UsageError(
            "a shell needs a terminal, as standard input and as standard error",
            hint="or name a command: ocis2i shell BUILD COMMAND...",
        )
    with _session(kept, store, settings) as here:
        rootfs = _mounted(kept, here.agent)
        hosts = tuple(map(parse_add_host, kept.document["add_hosts"]))
        network: Network = kept.document["network"]
        uplink = connected(
            here.agent,
            here.directory,
            network,
            AllowList((), open=True),
            environment=settings.environment,
            add_hosts=hosts,
            report=report,
        )
        with uplink as connection:
            mounts = here.network_files(hosts, network)
            around = _surroundings(kept, mounts, connection.netns).fitted(here)
            run = job_of(kept.document).spec(around)
            runner = choose_runner(here, kept.document["isolation"], around.hardening, report)
            if kept.left_out:
                what = ", ".join(kept.left_out)
                report(Notice("warning", f"not kept with the container: {what}"))
            run = _planned(run, command, rootfs, settings.environment)
            return runner.run(rootfs, run, Stdio()).exit_code


def _planned(
    run: RunSpec, command: tuple[str, ...], rootfs: Rootfs, environment: Mapping[str, str]
) -> RunSpec:
    if command:
        return replace(run, argv=command)
    shell = find_shell(rootfs)
    if shell is None:
        raise UsageError("there is no shell in the container", hint="name a command that it has")
    return plan_shell(shell, run, environment.get("TERM") or "linux", size())


def job_of(document: Json) -> Job:
    """What is to run in the container, but for its command line. Pure."""
    who: dict[str, Any] = document["identity"]
    identity = Identity(who["uid"], who["gid"], tuple(who["groups"]), who["home"], who["name"])
    return Job((document["script"],), identity, document["cwd"], tuple(document["environment"]))


def _surroundings(kept: Kept, mounts: tuple[BindMount, ...], netns: str | None) -> Surroundings:
    told = kept.document
    volumes = tuple(BindMount(*one) for one in told["volumes"])
    return Surroundings(
        (*mounts, *volumes),
        frozenset(told["cap_drop"]),
        told["network"],
        hardening=Hardening(seccomp=told["seccomp"], no_new_privs=told["no_new_privs"]),
        netns=netns,
    )


@contextmanager
def _session(kept: Kept, store: Store, settings: Settings) -> Iterator[Session]:
    """A session in the kept directory, which stays as it is then."""
    told, search_path = kept.document, settings.environment.get("PATH")
    if told["weak"]:
        check_weak(told["weak"])
    with store.in_use(), _held(kept.directory) as lock:
        started = agent(
            search_path=search_path,
            keep_open=(lock.fileno(),),
            ids="none" if told["weak"] else "auto",
            store=kept.directory,
        )
        with started as running:
            if running.ground.ids != told["ids"]:
                raise IsolationError(
                    f"the container was kept with {told['ids']} user ids, and now they are "
                    f"{running.ground.ids}: its files would be somebody else's",
                    hint="`ocis2i doctor` says why; build again with --keep-failed",
                )
            yield Session(
                running,
                kept.directory,
                search_path,
                told["rootfs"],
                told["buildah_mode"],
                told["weak"],
            )


@contextmanager
def _held(directory: Path) -> Iterator[Lock]:
    try:
        lock = Lock(directory / BUILD_LOCK, create=False)
    except OSError as error:
        raise OutputError(
            f"the kept container `{directory}` cannot be opened: {error.strerror}",
            hint="it may have been removed by `ocis2i prune`: build again with --keep-failed",
        ) from error
    try:
        if not lock.acquire(wait=False):
            raise UsageError(
                f"somebody is in the container `{directory}` already",
                hint="wait until that shell has ended",
            )
        yield lock
    finally:
        lock.release()


def _mounted(kept: Kept, running: Agent) -> Rootfs:
    """The container's tree, writable as it was."""
    tree = kept.tree
    if (tree / "upper").is_dir():
        # What a volatile overlay has left of its work says that it must not be used again.
        running.request("remove", parent=str(tree), name="work")
        (tree / "work").mkdir(mode=0o755)
    rootfs = Rootfs(
        running, tree, kept.directory, (), (), layers=(), copied=not (tree / "upper").is_dir()
    )
    rootfs.mount()
    return rootfs
