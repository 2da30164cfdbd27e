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
from ocis2i.isolation.ids import (
    NoIdsError,
    is_whole_host,
    mapper_refusal,
    mappers,
    subordinate_ids,
    user_name,
)
from ocis2i.isolation.place import find_place
from ocis2i.isolation.sentences import (
    Cause,
    Place,
    cause_of_mount,
    cause_of_unshare,
    refusal,
    start_way_out,
)
from ocis2i.isolation.tried import disk_refusal
from ocis2i.proc import Finished, Process, TimeoutExpired, find_program, spawn

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


_KILLED = "the kernel may have ended it for want of memory (`dmesg`); try again"


class ForbiddenError(IsolationError):
    """The kernel, or a security module, says no to this program; it may not to another."""


class Answering:
    """Who answers requests, one at a time; not for several threads. An agent, or one beside it."""

    def __init__(self, channel: socket.socket, ground: Ground) -> None:
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

    def _died(self) -> IsolationError:
        return IsolationError(
            "a process of the build agent ended unexpectedly",
            hint=_KILLED,
        )


class Agent(Answering):
    """A running agent."""

    def __init__(self, process: Process, channel: socket.socket, ground: Ground) -> None:
        super().__init__(channel, ground)
        self._process = process

    @contextmanager
    def helpers(self, number: int) -> Iterator[list[Answering]]:
        """More processes like the agent, for as many threads: each does what the agent can."""
        with contextlib.ExitStack() as stack:
            found = []
            for _ in range(number):
                ours, theirs = _channel()
                stack.enter_context(ours)
                with theirs:
                    self.request("fork", theirs.fileno())
                found.append(Answering(ours, self.ground))
            yield found

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
        return IsolationError(
            f"the build agent ended unexpectedly ({how})",
            hint=_KILLED,
        )


def _error(answer: Reply) -> Ocis2iError:
    kind, message, hint = str(answer.get("kind")), str(answer["error"]), answer.get("hint")
    if kind in _EXIT_CODES:
        code = _EXIT_CODES[kind]
        program = message.partition("` cannot be started")[0].removeprefix("`")
        hint = hint or start_way_out(program, code)
        return ScriptError(message, script_exit_code=code, hint=hint, started=False)
    return _ERRORS.get(kind, IsolationError)(message, hint=hint)


class Ahead:
    """An agent that is started before anything is known of what it shall do, or `None`.

    Meanwhile others load. `take` gives it away once; what is wrong with it is said to the taker.
    """

    def __init__(self, starting: _Starting | None) -> None:
        self._starting = starting

    def take(self, ids: Ids) -> _Starting | None:
        """It, when it is of the right kind and still there."""
        if self._starting is None or self._starting.ids != ids:
            return None
        taken, self._starting = self._starting, None
        return taken

    def give_up(self) -> None:
        """Nobody will take it: it may end while others work."""
        if self._starting:
            self._starting.give_up()

    def end(self) -> None:
        """Ends it, if nobody took it."""
        starting, self._starting = self._starting, None
        if starting:
            starting.kill()


@contextmanager
def ahead(search_path: str | None) -> Iterator[Ahead]:
    """Starts the agent that this caller gets where nothing stands in its way.

    Call from the main thread, and take it there: see `agent`.
    """
    started = Ahead(_begin_ahead(search_path))
    try:
        yield started
    finally:
        started.end()


def _begin_ahead(search_path: str | None) -> _Starting | None:
    try:
        return _Starting(_wanted_ids()[0], search_path)
    except (IsolationError, OSError):
        return None  # who asks for an agent will hear of it


@contextmanager
def agent(
    *,
    search_path: str | None,
    keep_open: Sequence[int] = (),
    ids: Literal["auto"] | Ids = "auto",
    store: Path | None = None,
    ahead: Ahead | None = None,
) -> Iterator[Agent]:
    """Starts an agent and ends it. Call from the main thread: the agent dies with the thread.

    `keep_open` are descriptors that the agent holds as long as it lives (the build's lock). With
    `auto` the `ids` are the best that this host gives the caller and the file system of `store`, a
    build's directory in it, takes, and `Agent.ground` says which. One that is `ahead` is taken
    where it has them.
    Raises `IsolationError` with the reason why this host does not allow it.
    """
    if ids == "auto":
        running = _start_best(search_path, store, ahead or Ahead(None))
    else:
        running = _Starting(ids, search_path).ready()
    try:
        if keep_open:
            running.request("hold", *keep_open)
        yield running
    except BaseException:
        running.kill()
        raise
    running.close()


# Why this process cannot have `full` ids, by the search path for newuidmap: a build starts several
# agents, and all of them shall stand on the same ground.
_not_full: dict[str | None, str] = {}


def _wanted_ids() -> tuple[Ids, str]:
    """The most that this caller may ask for, and why it is not more. Refuses root of the host."""
    if os.geteuid() == 0:
        # Who is root of a user namespace alone may be all that there is.
        if is_whole_host(Path("/proc/self/uid_map").read_text()):
            raise refusal("root", find_place()).error()
        return "native", "the user namespace that you are root of has no more ids"
    try:
        for kind in ("subuid", "subgid"):
            subordinate_ids(kind, user_name(), os.getuid())
    except NoIdsError as error:
        return "single", error.message
    return "full", ""


def wanted_ids() -> Ids | None:
    """The ids that an agent would begin with; `None` where there would be none."""
    try:
        return _wanted_ids()[0]
    except IsolationError:
        return None


def _start_best(search_path: str | None, store: Path | None, ahead: Ahead) -> Agent:
    ids, reason = _wanted_ids()
    if ids == "full" and search_path not in _not_full:
        try:
            return _start_full(search_path, store, ahead)
        except NoIdsError as error:
            _not_full[search_path] = error.message
        except ForbiddenError as error:
            return _start_through_buildah(search_path, error)
    if ids == "full":
        ids, reason = "single", _not_full[search_path]
    running = (ahead.take(ids) or _Starting(ids, search_path)).ready()
    running.ground = replace(running.ground, reason=reason)
    return running


def _start_full(search_path: str | None, store: Path | None, ahead: Ahead) -> Agent:
    running = (ahead.take("full") or _Starting("full", search_path)).ready()
    said = disk_refusal("owners", store, running) if store else None
    if said is None:
        return running
    running.close()
    raise NoIdsError(refusal("owners-refused", find_place(), said=said))


def _start_through_buildah(search_path: str | None, refused: ForbiddenError) -> Agent:
    """AppArmor may give user namespaces to programs that it knows and to no other (Ubuntu 23.10).

    Raises `refused` where buildah does not get one either.
    """
    helper = find_program("buildah", search_path)
    if helper is None:
        raise refused
    try:
        return _Starting("native", search_path, through=helper).ready()
    except IsolationError:
        raise refused from None


class _Starting:
    """An agent on its way into its namespaces; `ready` waits for it.

    `through` is a buildah whose user namespace it shall be root of.
    """

    def __init__(self, ids: Ids, search_path: str | None, *, through: str | None = None) -> None:
        self.ids = ids
        self._no_ids: NoIdsError | None = None
        commands: list[list[str]] = []
        if ids == "full":
            try:
                commands = mappers(search_path=search_path)
            except NoIdsError as error:
                # What the kernel says to a namespace comes first.
                self._no_ids = error
        self._channel, theirs = _channel()
        # In its buffer before anybody reads: it is all that an agent has to know.
        send(self._channel, {"ids": ids, "mappers": commands})
        self._process = _spawn(theirs, search_path, through)

    def ready(self) -> Agent:
        """The agent, in its namespaces. Raises why there is none."""
        try:
            return Agent(self._process, self._channel, self._greet())
        except (BrokenPipeError, ConnectionResetError) as error:
            self._channel.close()
            self._process.wait()
            raise IsolationError(
                "the build agent ended before it was ready",
                hint="`ocis2i doctor` says what this host allows",
            ) from error
        except BaseException:
            self.kill()
            raise

    def give_up(self) -> None:
        """Lets it end, and does not wait for that: its namespaces take their time."""
        self._process.kill()

    def kill(self) -> None:
        """Ends it; nobody has asked it for anything yet."""
        self._process.kill()
        self._channel.close()
        self._process.wait()

    def _greet(self) -> Ground:
        first, _ = receive(self._channel)
        if first is None or "error" in first:
            raise _cannot_unshare(first, self.ids)
        if self._no_ids:
            raise self._no_ids
        second, _ = receive(self._channel)
        if second is not None and "mapper" in second:
            raise _cannot_map(second)
        if second is None or "error" in second:
            raise _cannot_settle(second)
        return Ground(
            self.ids,
            fresh_proc=bool(second["fresh_proc"]),
            can_mount=bool(second["can_mount"]),
            squashed=bool(second["squashed"]),
            map=str(second["map"]),
        )


def _spawn(theirs: socket.socket, search_path: str | None, through: str | None) -> Process:
    # A high number: buildah has files of its own at the low ones.
    passed = fcntl.fcntl(theirs.fileno(), fcntl.F_DUPFD_CLOEXEC, _HIGH)
    theirs.close()
    argv = [sys.executable, *bytecode_options(), "-I", "-S", str(_PROGRAM), str(passed)]
    environment = {}
    if through:
        argv = [through, "unshare", *argv]
        environment["PATH"] = search_path or os.defpath  # newuidmap is on it
    try:
        return spawn(argv, environment=environment, pass_fds=(passed,), quiet=bool(through))
    finally:
        os.close(passed)


def bytecode_options() -> list[str]:
    """Options of Python: where our own modules are kept compiled, theirs are found, too."""
    return ["-X", f"pycache_prefix={sys.pycache_prefix}"] if sys.pycache_prefix else []


def _channel() -> tuple[socket.socket, socket.socket]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    return ours, theirs


def _cannot_map(answer: Reply) -> NoIdsError:
    ended = Finished((), int(answer["exit"]), b"", str(answer["said"]).encode())
    tool = Path(str(answer["mapper"])).name
    said = ended.complaint or f"exit code {ended.exit_code}"
    return NoIdsError(mapper_refusal(tool, said, find_place()))


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
