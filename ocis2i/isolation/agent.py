"""Starts the agent of a build and talks to it. See `ocis2i.agent` for the other side."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import ocis2i.agent
from ocis2i.agent.running import kill_descendants
from ocis2i.agent.wire import receive, send
from ocis2i.errors import (
    ImageError,
    IsolationError,
    Ocis2iError,
    OutputError,
    PolicyError,
    ScriptError,
    UsageError,
)
from ocis2i.isolation.ground import Ground, Ids
from ocis2i.isolation.ids import NoIdsError, is_whole_host, map_ids, subordinate_ids, user_name
from ocis2i.isolation.place import find_place
from ocis2i.isolation.sentences import (
    Cause,
    Place,
    cause_of_mount,
    cause_of_unshare,
    refusal,
)
from ocis2i.proc import Process, TimeoutExpired, find_program, spawn

Reply = dict[str, Any]

_PROGRAM = Path(ocis2i.agent.__file__).with_name("__main__.py")
_ERRORS: dict[str, type[Ocis2iError]] = {
    "image": ImageError,
    "isolation": IsolationError,
    "output": OutputError,
    "policy": PolicyError,
    "usage": UsageError,
}
# How long an agent may take to end what it started.
_LAST_SECONDS = 5.0
_HIGH = 64
# What a shell says of a program that cannot be started.
_EXIT_CODES = {"not-found": 127, "not-executable": 126}


class ForbiddenError(IsolationError):
    """The kernel, or a security module, says no to this program; it may not to another."""


class Agent:
    """A running agent. Requests are answered one at a time; not for several threads."""

    def __init__(self, process: Process, channel: socket.socket, ground: Ground) -> None:
        self._process = process
        self._channel = channel
        self._serial = 0
        self.ground = ground

    def fileno(self) -> int:
        """The channel's descriptor, to wait for a reply."""
        return self._channel.fileno()

    def post(self, operation: str, *fds: int, **fields: object) -> None:
        """Sends a request without waiting for its reply (`reply` reads that)."""
        if operation != "signal":
            self._serial += 1
        try:
            send(self._channel, {"op": operation, "id": self._serial, **fields}, fds)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise self._died() from error

    def reply(self) -> Reply:
        """The reply to the request before; raises the error that the agent met."""
        answer: Reply | None = {}
        # A signal to us may have kept an earlier request's reply from being read.
        while answer is not None and answer.get("id") != self._serial:
            try:
                answer, _ = receive(self._channel)
            except ConnectionResetError:
                answer = None
        if answer is None:
            raise self._died()
        if "error" in answer:
            raise _error(answer)
        return answer

    def request(self, operation: str, *fds: int, **fields: object) -> Reply:
        """Sends a request and waits for its reply."""
        self.post(operation, *fds, **fields)
        return self.reply()

    def kill(self) -> None:
        """Ends the agent and, with its pid namespace, everything it started."""
        if self.ground.ids == "none":
            self._let_it_kill()
        self._process.kill()
        self._channel.close()
        self._process.wait()
        self._end_orphans()

    def _let_it_kill(self) -> None:
        """Without a pid namespace nobody but the agent finds what it started: it may do that."""
        self._channel.close()
        with contextlib.suppress(TimeoutExpired):
            self._process.wait(_LAST_SECONDS)

    def _end_orphans(self) -> None:
        """Ends what it had started, which has come to us (`ocis2i.session`), if it could not."""
        if self.ground.ids == "none":
            kill_descendants()

    def close(self) -> None:
        """Ends the agent in peace; everything it mounted is gone with it."""
        try:
            send(self._channel, {"op": "quit"})
        except OSError:
            self._process.kill()
        self._channel.close()
        self._process.wait()

    def _died(self) -> IsolationError:
        self._process.kill()
        code = self._process.wait()
        self._end_orphans()
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return IsolationError(f"the build agent ended unexpectedly ({how})")


def _error(answer: Reply) -> Ocis2iError:
    kind, message, hint = str(answer.get("kind")), str(answer["error"]), answer.get("hint")
    if kind in _EXIT_CODES:
        return ScriptError(message, script_exit_code=_EXIT_CODES[kind], hint=hint)
    return _ERRORS.get(kind, IsolationError)(message, hint=hint)


@contextmanager
def agent(
    *,
    search_path: str | None,
    keep_open: Sequence[int] = (),
    ids: Literal["auto"] | Ids = "auto",
    store: Path | None = None,
) -> Iterator[Agent]:
    """Starts an agent and ends it. Call from the main thread: the agent dies with the thread.

    `keep_open` are descriptors that the agent holds as long as it lives (the build's lock). With
    `auto` the `ids` are the best that this host gives the caller and the file system of `store`
    takes, and `Agent.ground` says which.
    Raises `IsolationError` with the reason why this host does not allow it.
    """
    if ids == "auto":
        running = _start_best(search_path, keep_open, store)
    else:
        running = _start(search_path, keep_open, ids)
    try:
        yield running
    except BaseException:
        running.kill()
        raise
    running.close()


# Why this process cannot have `full` ids, by the search path for newuidmap: a build starts several
# agents, and all of them shall stand on the same ground.
_not_full: dict[str | None, str] = {}


def _start_best(search_path: str | None, keep_open: Sequence[int], store: Path | None) -> Agent:
    if os.geteuid() == 0:
        _refuse_root()
        running = _start(search_path, keep_open, "native")
        reason = "the user namespace that you are root of has no more ids"
        running.ground = replace(running.ground, reason=reason)
        return running
    if search_path not in _not_full:
        try:
            for kind in ("subuid", "subgid"):
                subordinate_ids(kind, user_name(), os.getuid())
            return _start_full(search_path, keep_open, store)
        except NoIdsError as error:
            _not_full[search_path] = error.message
        except ForbiddenError as error:
            return _start_through_buildah(search_path, keep_open, error)
    running = _start(search_path, keep_open, "single")
    running.ground = replace(running.ground, reason=_not_full[search_path])
    return running


def _start_full(search_path: str | None, keep_open: Sequence[int], store: Path | None) -> Agent:
    running = _start(search_path, keep_open, "full")
    said = running.request("owners", directory=str(store))["refusal"] if store else None
    if said is None:
        return running
    running.close()
    raise NoIdsError(refusal("owners-refused", find_place(), said=said))


def _start_through_buildah(
    search_path: str | None, keep_open: Sequence[int], refused: ForbiddenError
) -> Agent:
    """AppArmor may give user namespaces to programs that it knows and to no other (Ubuntu 23.10).

    Raises `refused` where buildah does not get one either.
    """
    helper = find_program("buildah", search_path)
    if helper is None:
        raise refused
    try:
        return _start(search_path, keep_open, "native", through=helper)
    except IsolationError:
        raise refused from None


def _start(
    search_path: str | None, keep_open: Sequence[int], ids: Ids, *, through: str | None = None
) -> Agent:
    """Starts an agent; `through` is a buildah whose user namespace it shall be root of."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    # High numbers: buildah has files of its own at the low ones.
    passed = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _HIGH) for fd in (theirs.fileno(), *keep_open)]
    theirs.close()
    argv = [sys.executable, "-I", "-S", str(_PROGRAM), str(passed[0])]
    environment = {}
    if through:
        argv = [through, "unshare", *argv]
        environment["PATH"] = search_path or os.defpath  # newuidmap is on it
    try:
        process = spawn(argv, environment=environment, pass_fds=passed, quiet=bool(through))
    finally:
        for fd in passed:
            os.close(fd)
    try:
        return Agent(process, ours, _shake_hands(process.pid, ours, search_path, ids))
    except (BrokenPipeError, ConnectionResetError) as error:
        process.wait()
        raise IsolationError("the build agent ended before it was ready") from error
    except BaseException:
        process.kill()
        ours.close()
        process.wait()
        raise


def _refuse_root() -> None:
    """Refuses root of the host; who is root of a user namespace alone may be all that there is."""
    if is_whole_host(Path("/proc/self/uid_map").read_text()):
        raise refusal("root", find_place()).error()


def _shake_hands(pid: int, channel: socket.socket, search_path: str | None, ids: Ids) -> Ground:
    send(channel, {"ids": ids})
    first, _ = receive(channel)
    if first is None or "error" in first:
        raise _cannot_unshare(first, ids)
    if ids == "full":
        map_ids(pid, search_path=search_path)
        send(channel, {"mapped": True})
    second, _ = receive(channel)
    if second is None or "error" in second:
        raise _cannot_settle(second)
    return Ground(
        ids,
        fresh_proc=bool(second["fresh_proc"]),
        can_mount=bool(second["can_mount"]),
        squashed=bool(second["squashed"]),
        map=str(second["map"]),
    )


def _cannot_unshare(answer: Reply | None, ids: Ids) -> IsolationError:
    place = find_place()
    number = answer.get("errno") if answer else None
    cause = cause_of_unshare(number, place, native=ids == "native")
    return _because(cause, place, answer, "cannot make a user namespace")


def _cannot_settle(answer: Reply | None) -> IsolationError:
    place = find_place()
    cause = cause_of_mount(answer.get("errno") if answer else None, place)
    return _because(cause, place, answer, "cannot set up its namespaces")


def _because(cause: Cause | None, place: Place, answer: Reply | None, what: str) -> IsolationError:
    if cause is None:
        said = answer["error"] if answer else "it ended"
        return IsolationError(f"the build agent {what}: {said}")
    why = refusal(cause, place)
    # Where there are no more, nobody else gets one either.
    kind = IsolationError if cause == "no-namespaces-left" else ForbiddenError
    return kind(why.text, hint=why.way_out.hint)
