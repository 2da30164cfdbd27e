"""Which processes and mounts are there: what a build started, and what is left of one."""

from __future__ import annotations

import contextlib
import ctypes
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# The kernel kills at once, but a busy machine may take its time to show it.
PATIENCE_SECONDS = 20.0

_PR_SET_CHILD_SUBREAPER = 36


@contextmanager
def adopting() -> Iterator[None]:
    """While it lasts, whatever loses its parent becomes a child of the test: nothing gets away."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    try:
        yield
    finally:
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def command_lines() -> Iterator[tuple[int, bytes]]:
    """Every process with its words, each followed by a zero byte."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            yield int(path.parent.name), path.read_bytes()


def command(pid: int) -> str:
    """The words of one process."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError as error:
        return f"{pid}: {error}"


def descendants(of: int) -> set[int]:
    """All processes below one; of those that have ended only children of the test itself."""
    parents = _parents()
    found = {of}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {of}


def _parents() -> dict[int, int]:
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
            if state != "Z" or int(parent) == os.getpid():
                found[int(path.parent.name)] = int(parent)
    return found


def below(pid: int) -> list[int]:
    """All processes below one, asked from the top: for who looks again and again."""
    found, todo = [], [pid]
    while todo:
        one = todo.pop()
        with contextlib.suppress(OSError):
            for children in Path(f"/proc/{one}/task").glob("*/children"):
                todo += map(int, children.read_text().split())
        found.append(one)
    return found[1:]


def wait_until_alone(before: set[int]) -> None:
    """Until no process is left that this test did not have before; fails when some stay."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while rest := descendants(os.getpid()) - before:
        for pid in rest:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        assert time.monotonic() < deadline, [command(pid) for pid in rest]
        time.sleep(0.01)


def wait_for_sleepers(pid: int, count: int = 3) -> None:
    """Until so many processes below one are in `sleep 1000`."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while sum("sleep 1000" in command(one) for one in descendants(pid)) < count:
        assert time.monotonic() < deadline, "assemble does not get to its end"
        time.sleep(0.02)


def mounts_of(store: Path) -> list[str]:
    """Mounts below the store, in every process that lets us look."""
    found = []
    for path in Path("/proc").glob("[0-9]*/mountinfo"):
        with contextlib.suppress(OSError):
            found += [line for line in path.read_text().splitlines() if str(store) in line]
    return found
