"""Limits by cgroups of version 2, where some are delegated to us, and else by what is left.

Delegated means: the cgroup that we are in is ours to write, has the controllers, and nobody is in
it but us (`systemd-run --user --scope -p Delegate=yes`). A container then gets a cgroup of its own.
Processes may only be in leaves (cgroups(7), "no internal processes"): meanwhile we move into one.

Elsewhere each process has the memory limit for itself (`RLIMIT_DATA`), the agent watches their sum
and their number, and a number of processors is that of a set to run on.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import field
from pathlib import Path
from typing import Any, Literal

from ocis2i.errors import IsolationError
from ocis2i.lazy_dataclass import dataclass
from ocis2i.limits import TASKS_BESIDE, Kind, Limits

_PERIOD_MICROSECONDS = 100_000
# How often, and how long, the kernel is asked to let go of a cgroup whose processes just ended.
_TRIES, _PAUSE_MILLISECONDS = 50, 20


class NotDelegatedError(Exception):
    """Why there is no cgroup for a container here."""


@dataclass(frozen=True, slots=True)
class Group:
    """A container's cgroup, and the one that we are in meanwhile."""

    path: Path
    ours: Path

    def reached(self) -> Kind | None:
        """The limit that its processes met, by the kernel's own count."""
        if _count(self.path / "memory.events", "oom_kill"):
            return "memory"
        return "tasks" if _count(self.path / "pids.events", "max") else None


@dataclass(frozen=True, slots=True)
class Confinement:
    """How a container is kept within limits.

    `wish` and the descriptors are for the agent (`ocis2i.agent.confine`).
    """

    limits: Limits = field(default_factory=Limits)
    group: Group | None = None
    wish: Mapping[str, Any] = field(default_factory=dict)
    fds: tuple[int, ...] = ()

    def reached(self) -> Kind | None:
        """The limit that the kernel says was met."""
        return self.group.reached() if self.group else None


@contextmanager
def confinement(limits: Limits) -> Iterator[Confinement]:
    """Makes the cgroup for a container, where it can be had.

    Raises `IsolationError` for a limit that cannot be kept without.
    """
    with contextlib.ExitStack() as stack:
        try:
            group = stack.enter_context(_group(limits, own_cgroup(_read_own())))
        except NotDelegatedError as error:
            yield Confinement(limits, wish=wish_without_group(limits, _usable(), str(error)))
            return
        fds = []
        for directory in (group.path, group.ours):
            # Opened by us: the kernel asks who did (6.18 and, as a fix, before), not who writes.
            fds.append(os.open(directory / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC))
            stack.callback(os.close, fds[-1])
        # The kernel keeps processes from becoming more, and ends none of those that try.
        wish = {"cgroup": True, "tasks": limits.tasks}
        yield Confinement(limits, group, wish, tuple(fds))


def wish_without_group(limits: Limits, usable: list[int], why: str) -> dict[str, Any]:
    """What the agent is to do where no cgroup can be had for the reason `why`. Pure."""
    wish: dict[str, Any] = {"tasks": limits.tasks, "memory": limits.memory_bytes}
    if limits.processors is None:
        return wish
    if limits.processors % 1:
        raise IsolationError(
            f"`--cpus` is {limits.processors:g}: parts of a processor take a cgroup, and {why}",
            hint="give a whole number, or start ocis2i by "
            "`systemd-run --user --scope -p Delegate=yes`",
        )
    return wish | {"processors": usable[: int(limits.processors)]}


def _usable() -> list[int]:
    """The processors that we may run on, from another one on for each of us."""
    found = sorted(os.sched_getaffinity(0))
    start = os.getpid() % len(found)
    return found[start:] + found[:start]


# --- where we are -----------------------------------------------------------------------------


def _read_own() -> tuple[str, str]:
    try:
        return Path("/proc/self/cgroup").read_text(), Path("/proc/self/mountinfo").read_text()
    except OSError:
        return "", ""


def own_cgroup(texts: tuple[str, str]) -> Path:
    """The directory of our cgroup, from /proc/self/cgroup and /proc/self/mountinfo. Pure.

    Raises `NotDelegatedError` when there is no cgroup of version 2, or it cannot be seen.
    """
    memberships, mounts = texts
    paths = [line[3:] for line in memberships.splitlines() if line.startswith("0::")]
    for line in mounts.splitlines() if paths else ():
        left, _, right = line.partition(" - ")
        if not right.startswith("cgroup2 "):
            continue
        root, point = left.split()[3:5]
        root = root.rstrip("/")
        if paths[0] == root or paths[0].startswith(f"{root}/"):
            return Path(point + paths[0].removeprefix(root).rstrip("/"))
    raise NotDelegatedError("this host shows no cgroup of version 2")


def controllers(limits: Limits) -> tuple[str, ...]:
    """The controllers that keep these limits."""
    wanted = {
        "cpu": limits.processors is not None,
        "memory": limits.memory_bytes is not None,
        "pids": limits.tasks is not None,
    }
    return tuple(name for name, needed in wanted.items() if needed)


def settings(limits: Limits) -> dict[str, str]:
    """What is written into the files of the container's cgroup."""
    found = {}
    if limits.processors is not None:
        quota = math.ceil(limits.processors * _PERIOD_MICROSECONDS)
        found["cpu.max"] = f"{quota} {_PERIOD_MICROSECONDS}"
    if limits.memory_bytes is not None:
        found["memory.max"] = str(limits.memory_bytes)
        # Else it goes on in swap, and takes all of that.
        found["memory.swap.max"] = "0"
        found["memory.oom.group"] = "1"
    if limits.tasks is not None:
        found["pids.max"] = str(limits.tasks + TASKS_BESIDE)
    return found


# --- making one -------------------------------------------------------------------------------


@contextmanager
def _group(limits: Limits, own: Path) -> Iterator[Group]:
    wanted = controllers(limits)
    if not wanted:
        raise NotDelegatedError("no limit needs one")
    check(own, wanted)
    with contextlib.ExitStack() as stack:
        try:
            ours = _directory(own / f"ocis2i-{os.getpid()}-own", stack)
            stack.callback(_undo, own, wanted)
            _move(ours)
            _switch(own, wanted, "+")
            path = _directory(own / f"ocis2i-{os.getpid()}-run", stack)
            for name, value in settings(limits).items():
                if name != "memory.swap.max" or (path / name).exists():
                    _write(path / name, value)
        except OSError as error:
            raise NotDelegatedError(f"the one we are in is not ours: {error}") from error
        stack.callback(_end, path)
        yield Group(path, ours)


def check(own: Path, wanted: tuple[str, ...]) -> None:
    """Whether a cgroup is ours to divide; raises `NotDelegatedError` with the reason."""
    if not os.access(own, os.W_OK) or not os.access(own / "cgroup.subtree_control", os.W_OK):
        raise NotDelegatedError("the one we are in is not ours to write")
    present = _read(own / "cgroup.controllers").split()
    if missing := [name for name in wanted if name not in present]:
        raise NotDelegatedError(f"the one we are in has no controller `{missing[0]}`")
    # Another process there stands in the way (EBUSY), and is not ours to move.
    others = [pid for pid in _members(own) if not _is_ours(pid)]
    if others:
        raise NotDelegatedError(f"process {others[0]} is in the same one as we are")


def refusal() -> str | None:
    """Why containers get no cgroup of their own here; `None`: they do."""
    try:
        check(own_cgroup(_read_own()), ("cpu", "memory", "pids"))
    except NotDelegatedError as error:
        return str(error)
    return None


@dataclass(frozen=True, slots=True)
class MemoryKills:
    """How many processes the kernel has ended for want of memory: in our cgroup, and anywhere.

    `None` where it does not tell.
    """

    cgroup: int | None = None
    machine: int | None = None

    def since(self, before: MemoryKills) -> Literal["cgroup", "machine", "none", "unknown"]:
        """Whose count has grown since `before`; the narrower one counts. Pure."""
        if self.cgroup is not None and self.cgroup > (before.cgroup or 0):
            return "cgroup"
        if self.machine is None or before.machine is None:
            return "unknown"
        return "machine" if self.machine > before.machine else "none"


def memory_kills() -> MemoryKills:
    """The counts of now: `memory.events` of cgroups of version 2, `oom_kill` of /proc/vmstat."""
    machine = None
    for line in _read(Path("/proc/vmstat")).splitlines():
        if line.startswith("oom_kill "):  # Linux 4.13
            machine = int(line.split()[1])
    try:
        events = own_cgroup(_read_own()) / "memory.events"
    except NotDelegatedError:
        return MemoryKills(None, machine)
    return MemoryKills(_count(events, "oom_kill") if events.exists() else None, machine)


def _members(directory: Path) -> list[int]:
    return [int(word) for word in _read(directory / "cgroup.procs").split()]


def _is_ours(pid: int) -> bool:
    """Whether it is this process, or was started by it."""
    while pid > 1:
        if pid == os.getpid():
            return True
        try:
            # The name, in brackets, may have anything in it.
            text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        except OSError:
            return True  # it is gone
        pid = int(text.rpartition(")")[2].split()[1])
    return False


def _directory(path: Path, stack: contextlib.ExitStack) -> Path:
    path.mkdir()
    stack.callback(_remove, path)
    return path


def _move(directory: Path) -> None:
    """Moves us, and what we started, from the cgroup where we are."""
    current = own_cgroup(_read_own())
    for pid in _members(current):
        if current != directory and _is_ours(pid):
            with contextlib.suppress(ProcessLookupError):
                _write(directory / "cgroup.procs", str(pid))


def _switch(own: Path, wanted: tuple[str, ...], sign: str) -> None:
    _write(own / "cgroup.subtree_control", " ".join(f"{sign}{name}" for name in wanted))


def _undo(own: Path, wanted: tuple[str, ...]) -> None:
    """A cgroup with controllers for those below takes no processes: first those, then we."""
    with contextlib.suppress(OSError):
        _switch(own, wanted, "-")
    with contextlib.suppress(OSError):
        _move(own)


def _end(path: Path) -> None:
    """Ends whatever is left in it; since 5.14, before that the pid namespace's end does it."""
    with contextlib.suppress(OSError):
        _write(path / "cgroup.kill", "1")


def _remove(path: Path) -> None:
    """Removes a cgroup once the last process in it is gone."""
    for _ in range(_TRIES):
        try:
            path.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            _wait_for_change(path / "cgroup.events")
        else:
            return


def _wait_for_change(events: Path) -> None:
    with contextlib.suppress(OSError), events.open("rb") as file:
        file.read()
        poll = select.poll()
        poll.register(file, select.POLLPRI)
        poll.poll(_PAUSE_MILLISECONDS)


def _write(path: Path, text: str) -> None:
    # No O_CREAT: a file that is not there is a controller that is not there.
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _count(path: Path, name: str) -> int:
    for line in _read(path).splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return 0
