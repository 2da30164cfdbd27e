"""Waits for a program or a container, passing the parent's signals on, and ends what is left."""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from typing import Any, NamedTuple

from ocis2i.agent.confine import IDLE, Watch
from ocis2i.agent.failure import AgentError
from ocis2i.agent.wire import receive


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


class Task(NamedTuple):
    """A process: its number and its parent's as /proc has them, and in each pid namespace."""

    pid: int
    parent: int
    numbers: tuple[int, ...]


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
    return Task(int(facts[b"Pid"]), int(facts[b"PPid"]), numbers)


def kill_descendants() -> None:
    """Ends all that is left below this process, which orphans come to (PR_SET_CHILD_SUBREAPER).

    A process that forks while it is looked for is found in the next round.
    """
    while True:
        try:
            signal_container(signal.SIGKILL, contained=False)
        except PermissionError as error:
            raise AgentError(
                "isolation", "a process that the script left behind cannot be ended"
            ) from error
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def reap() -> None:
    """Collects orphans: this process is the first of its pid namespace."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return
