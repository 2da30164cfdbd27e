"""Waits for a program or a container, passing the parent's signals on, and ends what is left."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import time
from typing import Any, NamedTuple

from ocis2i.agent.confine import IDLE, Watch
from ocis2i.agent.failure import AgentError
from ocis2i.agent.wire import receive

_MOST_LOOKS = 100
_PAUSE_SECONDS = 0.002


def wait_for(
    pid: int,
    parent: socket.socket,
    *,
    contained: bool = True,
    limit_seconds: float | None = None,
    watch: Watch = IDLE,
) -> int:
    """Waits for the end of `pid`; its exit code, or 128 plus the signal that ended it.

    Meanwhile the parent may send `{"op": "signal", "number": N}`, which goes to every process of
    the container: the first process of a pid namespace ignores signals that it does not handle.
    The end of the parent is the end of this process, and with it of the whole pid namespace.
    Without one (not `contained`) whatever the program left behind is killed here. A program that
    takes longer than `limit_seconds`, or where `watch` finds too much, is killed with all that is
    in its container.
    """
    latest = None if limit_seconds is None else time.monotonic() + limit_seconds
    pidfd = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    poll.register(parent, select.POLLIN)
    try:
        while True:
            ready = [fd for fd, _ in poll.poll(_pause(latest, watch))]
            if pidfd in ready:
                break
            if not ready:
                is_late = latest is not None and time.monotonic() >= latest
                if not is_late and not watch.look(_names(contained=contained)):
                    continue
                latest = None
                os.kill(pid, signal.SIGKILL)
                signal_container(signal.SIGKILL, contained=contained)
                continue
            message, fds = receive(parent)
            for fd in fds:
                os.close(fd)
            if message is None:
                if not contained:
                    kill_descendants()
                os._exit(1)
            _take(message, contained=contained)
    finally:
        os.close(pidfd)
    _, status = os.waitpid(pid, 0)
    if not contained:
        kill_descendants()
    reap()
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _pause(latest: float | None, watch: Watch) -> float | None:
    """How many milliseconds to wait for something to happen."""
    pauses = [] if latest is None else [max(0.0, latest - time.monotonic())]
    if watch.pause_seconds is not None:
        pauses.append(watch.pause_seconds)
    return min(pauses) * 1000 + 1 if pauses else None


def _take(message: dict[str, Any], *, contained: bool) -> None:
    if message.get("op") == "signal":
        signal_container(int(message["number"]), contained=contained)
        # Whoever has stopped itself hears of a signal only when it goes on.
        signal_container(signal.SIGCONT, contained=contained)


class Task(NamedTuple):
    """A process: its number and its parent's as /proc has them, and in each pid namespace.

    `still`: it is stopped or dead, and starts nothing.
    """

    pid: int
    parent: int
    numbers: tuple[int, ...]
    still: bool = False


def signal_container(number: int, *, contained: bool = True) -> None:
    """Sends a signal to every process in a pid namespace below ours, or to all descendants."""
    for pid in descendants(contained=contained):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def descendants(*, contained: bool) -> list[int]:
    """Every process that this one started, directly or not; `contained`: in namespaces below ours.

    The numbers are those that this process knows them by. /proc may be that of a namespace above,
    with other numbers and with processes that are none of ours.
    """
    level, found = _descendants(contained=contained)
    return [task.numbers[level] for task in found]


def _names(*, contained: bool) -> list[str]:
    """The names in /proc of the processes that `descendants` finds."""
    return [str(task.pid) for task in _descendants(contained=contained)[1]]


def _descendants(*, contained: bool) -> tuple[int, list[Task]]:
    tasks = {task.pid: task for task in map(_read_task, _listed()) if task}
    own = _read_task("self")
    if own is None:
        return 0, []
    # What /proc calls us is the first of our numbers, and our own namespace's the last.
    level = len(own.numbers) - 1
    deep = level + (1 if contained else 0)
    return level, [task for task in below(own.pid, tasks) if len(task.numbers) > deep]


def below(top: int, tasks: dict[int, Task]) -> list[Task]:
    """The tasks that descend from `top`. Pure."""
    found = []
    for task in tasks.values():
        above, steps = task.parent, 0
        # Listed at different moments, the links might form a circle.
        while above in tasks and above != top and steps < len(tasks):
            above, steps = tasks[above].parent, steps + 1
        if above == top:
            found.append(task)
    return found


def _listed() -> list[str]:
    return [name for name in os.listdir("/proc") if name.isdigit()]


def _read_task(name: str) -> Task | None:
    """A process by its name in /proc; `None` when it is gone, or not for us to see."""
    facts: dict[bytes, bytes] = {}
    try:
        with open(f"/proc/{name}/status", "rb") as status:
            for line in status:
                key, _, value = line.partition(b":")
                facts[key] = value
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    numbers = tuple(map(int, facts[b"NSpid"].split()))
    state = facts[b"State"].split()[0]
    # Threads go on when the first of them has ended.
    still = state in (b"T", b"t") or (state in (b"Z", b"X") and int(facts[b"Threads"]) <= 1)
    return Task(int(facts[b"Pid"]), int(facts[b"PPid"]), numbers, still)


def kill_descendants() -> None:
    """Ends all that is left below this process, which orphans come to (PR_SET_CHILD_SUBREAPER).

    All are stopped before one is killed, or a fork bomb would put others in the places that get
    free. The dead are not collected meanwhile either: they take up places.
    """
    try:
        while reap():
            _stop_descendants()
            signal_container(signal.SIGKILL, contained=False)
            time.sleep(_PAUSE_SECONDS)
    except PermissionError as error:
        raise AgentError(
            "isolation", "a process that the script left behind cannot be ended"
        ) from error


def _stop_descendants() -> None:
    """Stops them, until two looks show the same ones and all of them still."""
    before: set[int] = set()
    # One that waits in the kernel, as in vfork(2), stops later: it can be killed all the same.
    for _ in range(_MOST_LOOKS):
        _stop_orphans()
        level, found = _descendants(contained=False)
        now = {task.pid for task in found}
        moving = [task.numbers[level] for task in found if not task.still]
        if not moving and now == before:
            return
        before = now
        for pid in moving:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)


def _stop_orphans() -> None:
    """Stops our own children, as fast as that can be.

    Who forks and ends again and again is gone before all of /proc is read; but it is always here.
    """
    seen: set[bytes] = set()
    try:
        with open(f"/proc/self/task/{os.getpid()}/children", "rb", buffering=0) as children:
            while new := [name for name in children.read().split() if name not in seen]:
                for name in reversed(new):  # the last one is the youngest
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(name), signal.SIGSTOP)
                seen.update(new)
                children.seek(0)
    except FileNotFoundError:  # a kernel without CONFIG_PROC_CHILDREN
        return


def reap() -> bool:
    """Collects orphans, which come to this process; whether it has children that live."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True
