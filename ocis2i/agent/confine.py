"""Keeps what is started within limits: born in its cgroup or on its processors, and watched.

The other side is `ocis2i.isolation.cgroups`. The watch is for where there is no cgroup: the kernel
has limits for one process there, and none for the sum of them.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

# What lies between two looks: what memory is taken meanwhile is over the limit for that long.
_MEMORY_SECONDS, _TASKS_SECONDS = 0.25, 1.0
# The first process of a container may be ours.
_OURS = 1

Wish = dict[str, Any]


@contextmanager
def entered(wish: Wish, fds: list[int]) -> Iterator[None]:
    """Whatever is started meanwhile inherits the wish's cgroup and processors.

    `fds`: "cgroup.procs" of the container's cgroup and of our own.
    """
    processors = wish.get("processors")
    before = os.sched_getaffinity(0) if processors else None
    if wish.get("cgroup"):
        os.write(fds[0], b"0")
    if processors:
        os.sched_setaffinity(0, processors)
    try:
        yield
    finally:
        if wish.get("cgroup"):
            os.write(fds[1], b"0")
        if before:
            os.sched_setaffinity(0, before)


class Watch:
    """Looks at a container's processes now and then, and says which limit they are over."""

    def __init__(self, wish: Wish) -> None:
        self.reached: str | None = None
        self._tasks: int | None = wish.get("tasks")
        self._memory: int | None = wish.get("memory")

    @property
    def pause_seconds(self) -> float | None:
        """When to look again; `None`: there is nothing to look for."""
        if self._memory is not None:
            return _MEMORY_SECONDS
        return None if self._tasks is None else _TASKS_SECONDS

    def look(self, names: Sequence[str]) -> bool:
        """Whether a limit is reached; `names` are those of the container's processes in /proc."""
        self.reached = self.reached or self._judge(names)
        return self.reached is not None

    def _judge(self, found: Sequence[str]) -> str | None:
        if self._tasks is not None and sum(map(_threads, found)) - _OURS > self._tasks:
            return "tasks"
        if self._memory is None or sum(map(_private_bytes, found)) <= self._memory:
            return None
        # What a fork shares was counted for each: only now the slow, exact way is worth it.
        return "memory" if sum(map(_share_bytes, found)) > self._memory else None


# For what nobody gave a limit.
IDLE = Watch({})


def _threads(name: str) -> int:
    try:
        # Each thread is a directory in it, and so a link to it (proc(5)).
        return max(1, os.stat(f"/proc/{name}/task").st_nlink - 2)
    except OSError:
        return 0


def _private_bytes(name: str) -> int:
    return _kibibytes(f"/proc/{name}/status", b"RssAnon:")


def _share_bytes(name: str) -> int:
    return _kibibytes(f"/proc/{name}/smaps_rollup", b"Pss_Anon:", b"Pss:")


def _kibibytes(path: str, *keys: bytes) -> int:
    with contextlib.suppress(OSError), open(path, "rb") as file:
        fields = {words[0]: words[1] for line in file if len(words := line.split()) > 1}
        for key in keys:
            if key in fields:
                return int(fields[key]) << 10
    return 0
