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
# Where containers have file systems in memory.
_IN_MEMORY = ("/dev", "/dev/shm")  # noqa: S108 - nothing is put there

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
        if self._memory is None:
            return None
        files = _files_bytes(found)
        if sum(map(_resident_bytes, found)) + files <= self._memory:
            return None
        # What processes share was counted for each: only now the slow, exact way is worth it.
        private, shared = map(sum, zip(*map(_parts_bytes, found), strict=True))
        # A file in memory that is mapped is in both: the lesser part is not counted twice.
        return "memory" if private + max(shared, files) > self._memory else None


# For what nobody gave a limit.
IDLE = Watch({})


def _threads(name: str) -> int:
    try:
        # Each thread is a directory in it, and so a link to it (proc(5)).
        return max(1, os.stat(f"/proc/{name}/task").st_nlink - 2)
    except OSError:
        return 0


def _resident_bytes(name: str) -> int:
    """What a process has, and all that it shares with others as well."""
    fields = _kibibytes(f"/proc/{name}/status")
    return fields.get(b"RssAnon:", 0) + fields.get(b"RssShmem:", 0)


def _parts_bytes(name: str) -> tuple[int, int]:
    """What is a process's own, and its part of the memory that several have mapped."""
    fields = _kibibytes(f"/proc/{name}/smaps_rollup")
    if b"Pss_Anon:" in fields:  # Linux 5.4
        return fields[b"Pss_Anon:"], fields[b"Pss_Shmem:"]
    if b"Pss:" in fields:
        return fields[b"Pss:"], 0
    return _kibibytes(f"/proc/{name}/status").get(b"RssAnon:", 0), 0


def _kibibytes(path: str) -> dict[bytes, int]:
    """The sizes in a file of /proc, in bytes; none for a process that is gone."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        lines = [line.split() for line in file]
        # A process may call itself what it likes: its name is in there as well.
        sizes = [words for words in lines if words[2:] == [b"kB"] and words[1].isdigit()]
        return {words[0]: int(words[1]) << 10 for words in sizes}
    return {}


def _files_bytes(names: Sequence[str]) -> int:
    """What lies in the containers' own file systems in memory, whether it is mapped or not."""
    # The host's are not theirs: the container runtime sees those until it has entered the tree.
    known = {_device(path) for path in ("/", *_IN_MEMORY)}
    found: dict[int, int] = {}
    for root in (f"/proc/{name}/root" for name in names):
        tree = _device(f"{root}/")
        for path in (root + place for place in _IN_MEMORY):
            device = _device(path)
            # A directory of the tree, as without namespaces, is on its disk.
            if device is not None and device not in (tree, *known, *found):
                with contextlib.suppress(OSError):
                    facts = os.statvfs(path)
                    found[device] = (facts.f_blocks - facts.f_bfree) * facts.f_frsize
    return sum(found.values())


def _device(path: str) -> int | None:
    try:
        return os.stat(path).st_dev
    except OSError:
        return None
