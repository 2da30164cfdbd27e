"""Blobs as streams: the seam between places that hold them, and reading that checks the digest."""

from __future__ import annotations

import hashlib
from typing import BinaryIO, Protocol

from ocis2i.errors import ImageError
from ocis2i.manifest import DOCUMENT_LIMIT, Descriptor, Index, Manifest

CHUNK = 1 << 20


class Readable(Protocol):
    """A stream of bytes that ends with an empty read."""

    def read(self, size: int = -1, /) -> bytes:
        """Up to `size` bytes; nothing at the end."""

    def close(self) -> None:
        """Gives the stream back."""


class BlobSource(Protocol):
    """A place that blobs can be read from."""

    def open_blob(self, descriptor: Descriptor) -> VerifiedReader:
        """The blob's bytes. Raises `ImageError` when it is not there."""


class ImageSource(BlobSource, Protocol):
    """A place that holds one image, or one index of images."""

    def manifest(self) -> Manifest | Index:
        """What the place's name points at."""

    def child(self, descriptor: Descriptor) -> Manifest | Index:
        """A manifest of the index, by its descriptor."""


class VerifiedReader:
    """Reads a blob and raises `ImageError` at its end unless digest and size are as promised.

    Never returns more than the promised size (umoci's `hardening` package has the same guarantee).
    A reader that was not read to its end has verified nothing.
    """

    def __init__(self, stream: BinaryIO | Readable, descriptor: Descriptor, where: str) -> None:
        self._stream = stream
        self._descriptor = descriptor
        self._where = where
        self._left = descriptor.size
        self._hash = hashlib.new(descriptor.digest.algorithm)
        self._verified = False

    def read(self, size: int = -1, /) -> bytes:
        """Up to `size` bytes (all that is left when negative)."""
        wanted = self._left if size < 0 else min(size, self._left)
        data = self._stream.read(wanted) if wanted else b""
        self._count(data)
        self._left -= len(data)
        if wanted and not data:
            raise ImageError(
                f"blob `{self._descriptor.digest}` in {self._where} is {self._left} bytes too short"
            )
        if not self._left and not self._verified:
            self._verify()
        return data

    def _count(self, data: bytes) -> None:
        self._hash.update(data)

    def _found(self) -> str:
        """The digest of all that was read."""
        return self._hash.hexdigest()

    def close(self) -> None:
        """Closes the stream below."""
        self._stream.close()

    def __enter__(self) -> VerifiedReader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _verify(self) -> None:
        if self._stream.read(1):
            raise ImageError(
                f"blob `{self._descriptor.digest}` in {self._where} is longer than its "
                f"{self._descriptor.size} bytes"
            )
        found = self._found()
        if found != self._descriptor.digest.hex:
            raise ImageError(
                f"blob `{self._descriptor.digest}` in {self._where} has digest "
                f"`{self._descriptor.digest.algorithm}:{found}`"
            )
        self._verified = True


def read_exactly(stream: Readable, size: int) -> bytes:
    """`size` bytes, fewer only at the end of the stream."""
    data = stream.read(size)
    if not data or len(data) == size:
        return data
    parts = [data]
    missing = size - len(data)
    while missing and (data := stream.read(missing)):
        parts.append(data)
        missing -= len(data)
    return b"".join(parts)


def read_document(source: BlobSource, descriptor: Descriptor) -> bytes:
    """A manifest or config, whole and verified; raises `ImageError` over `DOCUMENT_LIMIT` bytes."""
    if descriptor.size > DOCUMENT_LIMIT:
        raise ImageError(
            f"`{descriptor.digest}` has {descriptor.size} bytes, "
            f"a manifest or config may have {DOCUMENT_LIMIT}"
        )
    with source.open_blob(descriptor) as reader:
        parts = []
        while part := reader.read(CHUNK):
            parts.append(part)
        return b"".join(parts)
