"""What the store remembers of finished builds, so that one that would make the same is not begun.

    finished/KEY.json   notes of the latest results that builds with these wishes had
    finished/KEY.files  what the source's files were, to know them again without reading them

It is no more than a hint: what is lost costs a build, and whoever uses a note checks that its image
is whole.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Mapping
from dataclasses import asdict
from typing import Any

from ocis2i.fs import locked, write_atomic
from ocis2i.lazy_dataclass import dataclass
from ocis2i.reference import Digest
from ocis2i.store import Store

KEPT = 16
_VERSION = 1


@dataclass(frozen=True, slots=True)
class Note:
    """A build that ended well: what it was made of, and what came of it.

    `inputs` are digests and names by what they are. `stamps` has size, times and inode of the
    blobs that were written, `finished` is in seconds since 1970, `entries` and `size_bytes` are
    those of the layer. `ids` is what the scripts ran on (`isolation.ground.Ids`).
    """

    inputs: Mapping[str, str]
    manifest: str
    media_type: str
    size: int
    stamps: Mapping[str, list[int]]
    finished: float
    entries: int
    size_bytes: int
    isolation: str
    built_from: str
    built_with: str
    ids: str = "full"


class Finished:
    """The notes of a store."""

    def __init__(self, store: Store) -> None:
        self._directory = store.root / "finished"
        self._lock = store.root / "locks/finished"
        self._scratch = store.root / "tmp"

    def notes(self, key: str) -> tuple[Note, ...]:
        """What is known of builds with these wishes, the latest first."""
        document = self._read(f"{key}.json")
        if document.get("version") != _VERSION:
            return ()
        try:
            notes = tuple(Note(**row) for row in document["notes"])
        except (KeyError, TypeError):
            return ()
        return notes if all(map(_is_sound, notes)) else ()

    def add(self, key: str, note: Note) -> None:
        """Remembers one more; of two with the same inputs the later counts."""
        with contextlib.suppress(OSError):
            self._directory.mkdir(mode=0o700, exist_ok=True)
            with locked(self._lock):
                known = [one for one in self.notes(key) if dict(one.inputs) != dict(note.inputs)]
                rows = [asdict(one) for one in (note, *known[: KEPT - 1])]
                self._write(f"{key}.json", {"version": _VERSION, "notes": rows})

    def files(self, key: str) -> dict[str, Any]:
        """What the files of the source were."""
        files = self._read(f"{key}.files").get("files")
        if not isinstance(files, dict) or not all(map(_is_row, files.values())):
            return {}
        return files

    def keep_files(self, key: str, files: Mapping[str, Any]) -> None:
        """Remembers what they are now."""
        with contextlib.suppress(OSError):
            self._directory.mkdir(mode=0o700, exist_ok=True)
            self._write(f"{key}.files", {"files": files})

    def forget_but(self, used: Collection[Digest]) -> None:
        """Forgets results that the store does not have. Needs the store for oneself."""
        kept = set(map(str, used))
        for path in sorted(self._directory.glob("*.json")):
            notes = self.notes(path.stem)
            left = [asdict(one) for one in notes if one.manifest in kept]
            if left and len(left) < len(notes):
                self._write(path.name, {"version": _VERSION, "notes": left})
            elif not left:
                path.unlink(missing_ok=True)
                path.with_suffix(".files").unlink(missing_ok=True)
        for path in self._directory.glob("*.files"):
            if not path.with_suffix(".json").exists():
                path.unlink(missing_ok=True)

    def _read(self, name: str) -> dict[str, Any]:
        try:
            document = json.loads((self._directory / name).read_bytes())
        except (OSError, ValueError):
            return {}
        return document if isinstance(document, dict) else {}

    def _write(self, name: str, document: Mapping[str, Any]) -> None:
        # Not synced: a crash may cost the note, and what it says is checked before it is believed.
        data = json.dumps(document, separators=(",", ":")).encode("ascii")
        path = self._directory / name
        write_atomic(path, data, scratch=self._scratch, mode=0o600, durable=False)


# The types that `add` writes, by the names of what has them.
_TYPES: dict[type | tuple[type, ...], str] = {
    str: "manifest media_type isolation built_from built_with ids",
    int: "size entries size_bytes",
    (int, float): "finished",
    dict: "inputs stamps",
}


def _is_sound(note: Note) -> bool:
    """Whether it is as `add` wrote it: a damaged file costs a build, and no more."""
    for kind, names in _TYPES.items():
        if not all(isinstance(getattr(note, name), kind) for name in names.split()):
            return False
    return {"source", "scripts"} <= note.inputs.keys()


def _is_row(row: object) -> bool:
    return isinstance(row, list) and len(row) == 6 and isinstance(row[5], str)
