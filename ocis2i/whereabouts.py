"""Which repositories have had a blob: memory of the store, so that a push can mount from there.

It is no more than a hint: what is wrong costs a request, what is lost an upload.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from pathlib import Path

from ocis2i.errors import UsageError
from ocis2i.fs import write_atomic
from ocis2i.reference import Digest, Reference

KEPT = 3


class Whereabouts:
    """A directory with a small file for each blob; the repository that was seen last is first."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def note(self, digest: Digest, reference: Reference) -> None:
        """Remembers that the repository of `reference` has the blob."""
        known = self._lines(digest)
        lines = [reference.name, *(line for line in known if line != reference.name)][:KEPT]
        if lines == known:
            return
        with contextlib.suppress(OSError):
            path, data = self._path(digest), "\n".join(lines).encode()
            write_atomic(path, data, scratch=self._directory, mode=0o600, durable=False)

    def of(self, digest: Digest) -> list[Reference]:
        """The repositories that had the blob."""
        found = []
        for line in self._lines(digest):
            with contextlib.suppress(UsageError):
                found.append(Reference.parse(line))
        return found

    def forget_but(self, digests: Collection[Digest]) -> None:
        """Forgets all other blobs."""
        kept = {self._path(digest).name for digest in digests}
        for path in self._directory.iterdir():
            if path.name not in kept:
                path.unlink(missing_ok=True)

    def _path(self, digest: Digest) -> Path:
        return self._directory / f"{digest.algorithm}-{digest.hex}"

    def _lines(self, digest: Digest) -> list[str]:
        try:
            return self._path(digest).read_text().splitlines()
        except (OSError, ValueError):
            return []
