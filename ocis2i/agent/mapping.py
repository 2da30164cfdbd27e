"""newuidmap and newgidmap: the setuid programs that map a range of ids into a user namespace.

They have to run outside of it. So they are started before it is made, and wait.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from ocis2i import syscalls

# Who asks a directory service for the ranges may wait for it.
_LIMIT_SECONDS = 20
_COMPLAINT_BYTES = 4096
_TIMED_OUT = 124  # as timeout(1) has it


class Mapper(NamedTuple):
    """A process that becomes `program` at a byte into `go`; `said` is what it prints."""

    program: str
    pid: int
    go: int
    said: int


class Refused(NamedTuple):
    """How a program failed."""

    program: str
    code: int
    said: str


@contextmanager
def waiting(commands: Sequence[Sequence[str]]) -> Iterator[list[Mapper]]:
    """Processes that will run `commands`, each of which says `PID` for this process.

    Who was not let go ends with the context.
    """
    own = str(os.getpid())
    mappers: list[Mapper] = []
    try:
        for command in commands:
            words = [own if word == "PID" else word for word in command]
            mappers.append(_start(words))
        yield mappers
    finally:
        for mapper in mappers:
            os.close(mapper.go)
            os.close(mapper.said)


def let_go(mappers: Sequence[Mapper]) -> Refused | None:
    """Runs them side by side to their end; the first one that failed, `None`: none did."""
    for mapper in mappers:
        os.write(mapper.go, b"m")
    ends = [_end(mapper) for mapper in mappers]
    return next((one for one in ends if one.code), None)


def _end(mapper: Mapper) -> Refused:
    said = b""
    while piece := os.read(mapper.said, _COMPLAINT_BYTES):
        said = (said + piece)[-_COMPLAINT_BYTES:]
    _, status = os.waitpid(mapper.pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code == -signal.SIGALRM:
        code = _TIMED_OUT
    return Refused(mapper.program, code, said.decode(errors="replace"))


def _start(command: list[str]) -> Mapper:
    begin, go = os.pipe()
    said, complaints = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(go)
        os.close(said)
        _become(command, begin, complaints)
    os.close(begin)
    os.close(complaints)
    return Mapper(command[0], pid, go, said)


def _become(command: list[str], begin: int, complaints: int) -> None:
    """In the child: waits, and is the program then; never returns."""
    try:
        # Who should have let us go may die before that.
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.read(begin, 1):
            os.dup2(complaints, 1)
            os.dup2(complaints, 2)
            signal.alarm(_LIMIT_SECONDS)
            os.execve(command[0], command, {})
    except OSError as error:
        os.write(complaints, f"{command[0]}: {error.strerror}\n".encode())
    finally:
        os._exit(127)
