"""Runs other programs: a list of arguments, a built environment, a stated time-out, no shell."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from ocis2i import syscalls
from ocis2i.lazy_dataclass import dataclass

OUTPUT_LIMIT = 1 << 20

# A program that `spawn` started, and what waiting for it may raise.
Process = subprocess.Popen[bytes]
TimeoutExpired = subprocess.TimeoutExpired


@dataclass(frozen=True, slots=True)
class Finished:
    """How a program ended and what it printed (each stream cut after `OUTPUT_LIMIT` bytes)."""

    argv: tuple[str, ...]
    exit_code: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """Standard output as text, without white space around it."""
        return self.stdout.decode(errors="replace").strip()

    @property
    def complaint(self) -> str:
        """The last lines of standard error, for a message."""
        lines = self.stderr.decode(errors="replace").strip().splitlines()
        return "; ".join(line.strip() for line in lines[-4:] if line.strip())


def find_program(name: str, search_path: str | None = None) -> str | None:
    """The absolute path of a program on `search_path` (default: of the usual directories)."""
    usual = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    return shutil.which(name, path=f"{search_path}:{usual}" if search_path else usual)


def run(
    argv: Sequence[str],
    *,
    environment: Mapping[str, str],
    timeout_seconds: float,
    stdin: bytes = b"",
    cwd: Path | None = None,
) -> Finished:
    """Runs a program to its end and keeps what it printed.

    A program that outlives `timeout_seconds` is killed with its process group; its exit code is
    then 124, as timeout(1) has it. Raises `FileNotFoundError` when there is no such program.
    """
    with subprocess.Popen(
        list(argv),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=dict(environment),
        cwd=cwd,
        start_new_session=True,
        preexec_fn=_die_with_parent,  # noqa: PLW1509 - one system call, no lock is taken
    ) as process:
        try:
            out, err = process.communicate(stdin, timeout=timeout_seconds)
            code = process.returncode
        except subprocess.TimeoutExpired:
            _kill_group(process)
            out, err = process.communicate()
            code = 124
        except BaseException:
            _kill_group(process)
            raise
    return Finished(tuple(argv), code, out[:OUTPUT_LIMIT], err[-OUTPUT_LIMIT:])


def spawn(
    argv: Sequence[str],
    *,
    environment: Mapping[str, str],
    pass_fds: Sequence[int] = (),
    quiet: bool = False,
) -> Process:
    """Starts a program that goes on beside us, in a session of its own, with nothing on stdin.

    What a `quiet` one has to say is not shown: it is only tried.
    """
    return subprocess.Popen(
        list(argv),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL if quiet else None,
        stderr=subprocess.DEVNULL if quiet else None,
        env=dict(environment),
        pass_fds=tuple(pass_fds),
        start_new_session=True,
    )


def _die_with_parent() -> None:
    """In the child: a program must not outlive us, however we end (prctl(2), PR_SET_PDEATHSIG)."""
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)


def _kill_group(process: Process) -> None:
    try:
        os.killpg(process.pid, 9)
    except ProcessLookupError:
        process.kill()
