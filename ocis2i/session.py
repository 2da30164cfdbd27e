"""A build's own directory and agent, and their end: nothing stays behind, however it ends."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, TypeAlias

from ocis2i import syscalls, variables
from ocis2i.container_options import HostEntry
from ocis2i.errors import Interrupted, IsolationError, Ocis2iError
from ocis2i.events import Event, Notice, Report
from ocis2i.fs import Lock, remove_tree
from ocis2i.isolation.agent import Agent, Ahead, agent
from ocis2i.isolation.buildah import Buildah
from ocis2i.isolation.builtin import Builtin
from ocis2i.isolation.chroot import Chroot, chroot_refusal
from ocis2i.isolation.ground import Ground
from ocis2i.isolation.in_place import InPlace, in_place_refusal, root_is_read_only
from ocis2i.isolation.ladder import Finding, Refused, choose_executor
from ocis2i.isolation.network import RESOLVERS
from ocis2i.isolation.place import find_place
from ocis2i.isolation.programs import OciProgram
from ocis2i.isolation.sentences import Refusal, refusal
from ocis2i.isolation.tried import Tried
from ocis2i.lazy_dataclass import dataclass
from ocis2i.proc import find_program
from ocis2i.records import KEPT
from ocis2i.rootfs import choose_kind
from ocis2i.runner import HOSTNAME, BindMount, Network, Runner
from ocis2i.settings import RootfsKind, Settings
from ocis2i.store import BUILD_LOCK, Store

_RESOLVER = "resolv.conf"
_HOSTS = "hosts"
# Whoever asks for a name in a container without network is told at once that there is none.
_NO_RESOLVER = b"# no network, no name servers\n"
_LOOPBACK = b"127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"


# Ways without namespaces, and what a script is not kept from. For who names them.
Weak: TypeAlias = Literal["chroot", "in-place"]
_WEAK: dict[Weak, str] = {
    "chroot": "it shares processes, network and limits with all that is in this container",
    "in-place": "it may do in this container whatever this user may, and read what it may read",
}


@dataclass(frozen=True, slots=True)
class Session:
    """What a build or a run works with: its directory and its agent.

    `weak` is the way without namespaces that was taken, `None` for the usual ones.
    """

    agent: Agent
    directory: Path
    search_path: str | None
    rootfs: RootfsKind = "overlay"
    buildah_mode: str | None = None
    weak: Weak | None = None

    @property
    def in_place(self) -> bool:
        """Whether the container that this process is in is the builder itself."""
        return self.weak == "in-place"

    def begin_to_empty(self) -> None:
        """Lets the agent remove the session's files while the caller goes on without them.

        The agent does nothing else until it is through, and the session's end waits for that. Where
        it is gone, the session's end says so: what was made by it is whole.
        """
        with suppress(IsolationError):
            self._post_empty()

    def empty(self) -> str | None:
        """Removes the session's files; why that failed, or `None`."""
        try:
            self._post_empty()
            self.agent.reply()
        except Interrupted:
            raise
        except Ocis2iError as error:
            return error.message
        return None

    def _post_empty(self) -> None:
        self.agent.post("empty", build=str(self.directory), keep=BUILD_LOCK)

    def runner(self, wanted: str | None) -> Runner:
        """The executor to use; see `ocis2i.isolation.ladder`.

        Raises `IsolationError` where it cannot be used, `UsageError` for one that there is not.
        """
        runners = {runner.name: runner for runner in self.runners()}

        def look(name: str) -> Finding:
            runner = runners.get(name)
            if runner is None:
                return Finding(usable=False, said="the session is of another kind")
            return self._find_or_remember(runner)

        one_id = self.agent.ground.squashed
        chosen = choose_executor(self.weak or wanted or "auto", look, one_id=one_id)
        if isinstance(chosen, Refused):
            raise chosen.error()
        return runners[chosen]

    def runners(self) -> list[Runner]:
        """Every executor that there is on this session's ground; they are not tried yet."""
        if self.weak:
            return [Chroot(self.agent), InPlace(self.agent)]
        buildah = Buildah(
            self.agent,
            search_path=self.search_path,
            directory=self.directory,
            mode=self.buildah_mode,
        )
        return [self._program("runc"), self._program("crun"), Builtin(self.agent), buildah]

    def _find_or_remember(self, runner: Runner) -> Finding:
        """`find`, but for a program that worked for another build of the same store."""
        program = runner.program if isinstance(runner, OciProgram) else None
        if program is None:
            return self.find(runner)
        tried = Tried.beside(self.directory)
        if tried.knows(program, self.agent.ground):
            return Finding(usable=True, said=program)
        found = self.find(runner)
        if found.usable:
            tried.note(program, self.agent.ground)
        return found

    def find(self, runner: Runner) -> Finding:
        """Tries an executor."""
        found = runner.check()
        if found.usable:
            return Finding(usable=True, said=found.reason)
        if find_program(runner.name, self.search_path) is None:
            return Finding.refused(refusal("no-program", tool=runner.name))
        return Finding.refused(refusal("no-runtime", said=found.reason))

    def _program(self, name: Literal["runc", "crun"]) -> Runner:
        return OciProgram(name, self.agent, search_path=self.search_path, directory=self.directory)

    def network_files(
        self, add_hosts: Sequence[HostEntry] = (), network: Network = "host"
    ) -> tuple[BindMount, ...]:
        """Name resolution for the containers: as the host has it, and `add_hosts` before that.

        In a network of their own there are only `add_hosts` and the loopback device's names. A
        proxy looks names up itself.
        """
        if self.in_place:
            return ()  # its own are the right ones
        contents = {_RESOLVER: _NO_RESOLVER, _HOSTS: _LOOPBACK}
        if network == "host":
            contents = {name: _read_lines(Path("/etc", name)) for name in contents}
        elif network in RESOLVERS:
            contents[_RESOLVER] = f"nameserver {RESOLVERS[network]}\n".encode()
        contents[_HOSTS] = hosts_file(contents[_HOSTS], add_hosts)
        mounts = []
        for name, content in contents.items():
            copy = self.directory / name
            copy.write_bytes(content)
            copy.chmod(0o644)  # for every user of the container, whatever the umask
            mounts.append(BindMount(str(copy), f"/etc/{name}", read_only=True, directory=False))
        return tuple(mounts)


def hosts_file(known: bytes, add_hosts: Sequence[HostEntry]) -> bytes:
    """`/etc/hosts` with the user's entries before the `known` lines: the first one counts."""
    added = "".join(f"{entry.address}\t{entry.name}\n" for entry in add_hosts).encode()
    # The container's own name must resolve: Java, for one, asks for it.
    return added + known + f"127.0.0.1\t{HOSTNAME}\n".encode()


def _read_lines(path: Path) -> bytes:
    """A file of the host's, its last line ended; empty for none or one that is not for us."""
    try:
        content = path.read_bytes()
    except OSError:
        return b""
    return content if not content or content.endswith(b"\n") else content + b"\n"


def _say_nothing(_: Event) -> None:
    """For whom the ground of a session is no news."""


@contextmanager
def session(
    store: Store,
    settings: Settings,
    report: Report = _say_nothing,
    *,
    isolation: str | None = None,
    ahead: Ahead | None = None,
) -> Iterator[Session]:
    """A new session in `store`. Call from the main thread (see `isolation.agent.agent`).

    `isolation` is the executor's name, as far as it is known: those without namespaces need an
    agent without. An agent that was started `ahead` is taken where it fits. Raises
    `IsolationError` where there is no agent of that kind.
    """
    search_path = settings.environment.get("PATH")
    weak = weak_way(isolation, settings)
    if weak:
        check_weak(weak)
        # What a script leaves running comes to us when the agent was killed, and is ended then.
        syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
        # A script may be of the same user: our memory has credentials in it (ptrace(2)).
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
    ids: Literal["auto", "none"] = "none" if weak else "auto"
    buildah_mode = variables.BUILDAH_ISOLATION.text(settings.environment)
    with store.in_use(), store.new_build() as (directory, lock):
        try:
            with agent(
                search_path=search_path,
                keep_open=(lock.fileno(),),
                ids=ids,
                store=directory,
                ahead=ahead,
            ) as running:
                _announce(running.ground, report)
                kind: RootfsKind = "copy"
                if weak:
                    report(Notice("warning", f"isolation `{weak}` is weak: {_WEAK[weak]}"))
                if weak != "in-place":
                    kind = choose_kind(running, directory, settings.rootfs, report)
                here = Session(running, directory, search_path, kind, buildah_mode, weak)
                yield here
                refused = here.empty()
            if refused:
                _clean_up(directory, refused, search_path, report)
        except BaseException:
            if not (directory / KEPT).exists():
                remove_leftovers([directory], search_path=search_path)
            raise


def _clean_up(directory: Path, refused: str, search_path: str | None, report: Report) -> None:
    """Removes what an agent could not; what it was there for is done, whatever comes of that."""
    lock = directory / BUILD_LOCK
    left = remove_leftovers(
        [path for path in directory.iterdir() if path != lock], search_path=search_path
    )
    if left:
        said = f"files of the build are left in `{directory}`: {refused}"
        report(Notice("warning", f"{said}; `ocis2i prune` removes them"))


def weak_way(isolation: str | None, settings: Settings) -> Weak | None:
    """The way without namespaces that is to be taken, `None`: another one.

    The caller names it, or allows chroot for where nothing else works.
    """
    for name in _WEAK:
        if isolation == name:
            return name
    allowed = settings.allow_weak and os.geteuid() == 0
    if not allowed or isolation not in (None, "auto"):
        return None
    try:
        with agent(search_path=settings.environment.get("PATH")):
            return None
    except IsolationError:
        return "chroot"


def check_weak(weak: Weak) -> None:
    """Raises `IsolationError` where this way without namespaces cannot be taken."""
    place = find_place()
    why: Refusal | None = None
    if weak == "in-place":
        why = in_place_refusal(place, read_only=root_is_read_only())
    elif reason := chroot_refusal(Path("/proc/self/status").read_text()):
        why = refusal("no-capability", place, said=reason)
    if why:
        raise IsolationError(
            f"isolation `{weak}` cannot be used: {why.text}", hint=why.way_out.hint
        )


def _announce(ground: Ground, report: Report) -> None:
    """Says what is not as usual: a script may notice, or fail where it would not elsewhere."""
    if ground.squashed and ground.can_mount:
        report(Notice("warning", f"{ground.reason}: one user id only, all files are its own"))
    if ground.can_mount and not ground.fresh_proc:
        report(Notice("info", "parts of /proc are hidden here: containers see that of the host"))


def remove_leftovers(paths: Sequence[Path], *, search_path: str | None) -> list[Path]:
    """Removes trees that may belong to subordinate ids; returns those that could not be."""
    left = [path for path in paths if not remove_tree(path)]
    # Where the manager of a container makes devices for it (LXD, Incus), those of a build by chroot
    # are mounts: root detaches them where it is, also where it can have no namespaces.
    ways: list[Literal["auto", "none"]] = ["auto"] if os.geteuid() else ["auto", "none"]
    for ids in ways:
        left = left and _remove_by_agent(left, ids, search_path)
    return left


def _remove_by_agent(
    paths: Sequence[Path], ids: Literal["auto", "none"], search_path: str | None
) -> list[Path]:
    with suppress(Ocis2iError), agent(search_path=search_path, ids=ids) as running:
        for path in paths:
            running.request("remove", parent=str(path.parent), name=path.name)
    return [path for path in paths if path.exists()]


def dead_builds(store: Store, *, alone: bool) -> list[Path]:
    """Directories of builds whose process is gone; `alone`: nobody else uses the store."""
    dead = []
    for directory in sorted((store.root / "builds").iterdir()):
        try:
            lock = Lock(directory / BUILD_LOCK, create=False)
        except FileNotFoundError:
            # Its build is about to remove it, and must not find a new file in it, or was killed
            # at that.
            if alone:
                dead.append(directory)
            continue
        try:
            if lock.acquire(wait=False):
                dead.append(directory)
        finally:
            lock.release()
    return dead
