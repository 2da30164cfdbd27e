"""Remembers which container programs were tried and worked, so that not every build tries them."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from ocis2i.isolation.ground import Ground


class Tried:
    """What the file `path` says: one line of facts for each program, which must all be as then.

    Only what worked is kept: what did not may have been mended. A file that cannot be read or
    written is one that says nothing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def knows(self, program: str, ground: Ground) -> bool:
        """Whether this very program worked on such a ground since the kernel started."""
        facts = _facts(program, ground)
        return bool(facts) and self._read().get(program) == facts

    def note(self, program: str, ground: Ground) -> None:
        """Keeps that the program works."""
        said = self._read() | {program: _facts(program, ground)}
        mine = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        try:
            mine.write_text(json.dumps(said))
            mine.replace(self._path)
        except OSError:
            with contextlib.suppress(OSError):
                mine.unlink()

    def _read(self) -> dict[str, Any]:
        try:
            said = json.loads(self._path.read_text())
        except (OSError, ValueError):
            return {}
        return said if isinstance(said, dict) else {}


def _facts(program: str, ground: Ground) -> list[object]:
    """Another kernel, another program or another ground: then it has to be tried again."""
    try:
        facts = Path(program).stat()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return []
    identity = [facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns]
    return [boot, *identity, ground.ids, ground.fresh_proc, _limits()]


def _limits() -> list[str]:
    """What was done to this process, which may differ from call to call."""
    status = Path("/proc/self/status").read_text().splitlines()
    said = [line for line in status if line.startswith(("Seccomp", "NoNewPrivs", "CapBnd"))]
    with contextlib.suppress(OSError):
        said.append(Path("/proc/self/attr/current").read_text(errors="replace"))
    return said
