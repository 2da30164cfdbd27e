"""Removes from the store what nothing refers to."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from pathlib import Path

from ocis2i import record_files
from ocis2i.errors import OutputError
from ocis2i.events import Notice, Report
from ocis2i.finished import Finished
from ocis2i.lazy_dataclass import dataclass
from ocis2i.records import KEPT
from ocis2i.reference import Digest
from ocis2i.session import dead_builds, remove_leftovers
from ocis2i.settings import Settings
from ocis2i.store import Store


@dataclass(frozen=True, slots=True)
class Pruned:
    """What was removed: counts, bytes of blobs, and whether a running build kept us from more.

    `kept` are the containers of builds that failed.
    """

    builds: int = 0
    blobs: int = 0
    layers: int = 0
    leftovers: int = 0
    blob_bytes: int = 0
    busy: bool = False
    records: int = 0
    kept: int = 0


@dataclass(frozen=True, slots=True)
class OldRecords:
    """Which records of finished builds stay: the last `keep`, without those from `before`."""

    keep: int
    before: datetime | None = None


def prune(
    store: Store, settings: Settings, *, everything: bool = False, old: OldRecords | None = None
) -> Pruned:
    """Removes dead builds, leftovers of killed processes, and blobs and layers out of use.

    `everything` takes all images out first, and the records of all builds. While a build runs,
    only dead builds and `old` records are removed. Raises `OutputError` when something cannot be
    removed.
    """
    old = old or OldRecords(0 if everything else settings.keep_builds)
    _remove(record_files.leftovers(store.root), None)
    records = record_files.retire(store.root, old.keep, before=old.before)
    return replace(_prune_store(store, settings, everything=everything), records=records)


def _prune_store(store: Store, settings: Settings, *, everything: bool) -> Pruned:
    search_path = settings.environment.get("PATH")
    with store.alone() as alone:
        dead = dead_builds(store, alone=alone)
        if not alone:
            kept = _kept(dead)
            _remove(dead, search_path)
            return Pruned(builds=len(dead) - kept, busy=True, kept=kept)
        if everything:
            store.forget_images()
        used = store.referenced()
        blobs = [path for path in _blobs(store) if _digest(path) not in used]
        layers = [path for path in store.layer_paths() if _digest(path) not in used]
        leftovers = [*sorted((store.root / "tmp").iterdir()), *store.stale_artifacts()]
        size = sum(path.stat().st_size for path in blobs)
        for path in blobs:
            path.unlink()
        for path in (store.root / "locks").glob("*-*"):
            path.unlink()
        store.whereabouts.forget_but(used)
        Finished(store).forget_but(used)
        for path in layers:
            store.forget_layer(path)
        kept = _kept(dead)
        _remove([*dead, *layers, *leftovers], search_path)
        builds = len(dead) - kept
        return Pruned(builds, len(blobs), len(layers), len(leftovers), size, kept=kept)


def _kept(dead: list[Path]) -> int:
    """How many of them are there because `--keep-failed` kept them."""
    return sum((path / KEPT).exists() for path in dead)


def discard(store: Store, digest: Digest, report: Report) -> None:
    """Frees what an image that nothing refers to any more has alone.

    While somebody else uses the store, that is left to the next `prune`.
    """
    with store.alone() as alone:
        manifest = store.blob_path(digest)
        if not alone or not manifest.exists():
            report(Notice("info", f"the previous image `{digest}` is left to `ocis2i prune`"))
            return
        used = store.referenced()
        blobs = store.reached(digest)
        for blob in blobs - used:
            store.blob_path(blob).unlink(missing_ok=True)


def _remove(paths: list[Path], search_path: str | None) -> None:
    left = remove_leftovers(paths, search_path=search_path)
    if left:
        raise OutputError(
            f"`{left[0]}` cannot be removed",
            hint="its files belong to subordinate ids: they can be removed where newuidmap works, "
            "while /etc/subuid and /etc/subgid have the ids that they were made with",
        )


def _blobs(store: Store) -> list[Path]:
    return sorted((store.root / "images/blobs").glob("*/*"))


def _digest(path: Path) -> Digest:
    return Digest(path.name, path.parent.name)
