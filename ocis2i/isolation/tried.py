"""Remembers what was tried on this host and works, so that not every build tries it again."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias

from ocis2i.fs import boot_id
from ocis2i.isolation.ground import Ground

# What a file system does or not, by the agent's request that tries it.
Deed: TypeAlias = Literal["overlay", "owners"]


class Trying(Protocol):
    """An agent, as far as it is asked here."""

    ground: Ground

    def request(self, operation: str, *fds: int, **fields: object) -> dict[str, Any]:
        """The reply to a request."""


class Tried:
    """What a store's `tried.json` says: one line of facts for each thing, which must be as then.

    Only what worked is kept: what did not may have been mended. A file that cannot be read or
    written is one that says nothing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    @classmethod
    def beside(cls, directory: Path) -> Tried:
        """That of the store which the build's `directory` is in."""
        return cls(directory.parent.parent / "tried.json")

    def knows(self, program: str, ground: Ground) -> bool:
        """Whether this very program worked on such a ground since the kernel started."""
        return self._knows(program, _program_facts(program, ground))

    def note(self, program: str, ground: Ground) -> None:
        """Keeps that the program works."""
        self._note(program, _program_facts(program, ground))

    def knows_disk(self, what: Deed, ground: Ground) -> bool:
        """Whether the file system of the store did this on such a ground since then."""
        return self._knows(what, self._disk_facts(ground))

    def note_disk(self, what: Deed, ground: Ground) -> None:
        """Keeps that the file system does it."""
        self._note(what, self._disk_facts(ground))

    def _knows(self, name: str, facts: list[object]) -> bool:
        return bool(facts) and self._read().get(name) == facts

    def _note(self, name: str, facts: list[object]) -> None:
        said = self._read() | {name: facts}
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

    def _disk_facts(self, ground: Ground) -> list[object]:
        """A copy of the store on another disk has this file too: it is not the same directory."""
        try:
            builds = self._path.with_name("builds")
            directory, disk = builds.stat(), os.statvfs(builds)
        except OSError:
            return []
        identity = [directory.st_dev, directory.st_ino, disk.f_fsid, disk.f_flag]
        return _facts(identity, ground)


def disk_refusal(what: Deed, directory: Path, agent: Trying) -> str | None:
    """Why the disk of a build's `directory` does not do this; `None`: it does, or lately did."""
    tried = Tried.beside(directory)
    if tried.knows_disk(what, agent.ground):
        return None
    refusal = agent.request(what, directory=str(directory))["refusal"]
    if refusal is None:
        tried.note_disk(what, agent.ground)
        return None
    return str(refusal)


def _program_facts(program: str, ground: Ground) -> list[object]:
    try:
        facts = Path(program).stat()
    except OSError:
        return []
    identity = [facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns]
    return _facts([*identity, ground.fresh_proc], ground)


def _facts(identity: list[int], ground: Ground) -> list[object]:
    """Another kernel, another ground or another limit: then it has to be tried again."""
    boot = boot_id()
    if not boot:
        return []
    return [boot, *identity, ground.ids, ground.map, _limits()]


def _limits() -> list[str]:
    """What was done to this process, which may differ from call to call."""
    status = Path("/proc/self/status").read_text().splitlines()
    said = [line for line in status if line.startswith(("Seccomp", "NoNewPrivs", "CapBnd"))]
    with contextlib.suppress(OSError):
        said.append(Path("/proc/self/attr/current").read_text(errors="replace"))
    return said
