"""A blob of a registry that is read while it comes: little of it is here at a time."""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from typing import BinaryIO, cast

from ocis2i.blobs import VerifiedReader
from ocis2i.errors import ImageError
from ocis2i.manifest import Descriptor
from ocis2i.reference import Reference
from ocis2i.registry import Registry
from ocis2i.registry.downloads import BadContentError
from ocis2i.retries import check_cancelled

_LOOK_SECONDS = 0.25
_MOST_BYTES = 1 << 20


class BlobStream(VerifiedReader):
    """Reads a blob from a registry without keeping it.

    A broken connection is gone on with where it broke, by the client. What was read already cannot
    be taken back, so wrong bytes end it: `BadContentError` says that a new stream may bring better
    ones. Raises `RegistryError`, and `CancelledError` soon after `cancel` is set.
    """

    def __init__(
        self,
        registry: Registry,
        reference: Reference,
        descriptor: Descriptor,
        cancel: threading.Event | None = None,
    ) -> None:
        self._tube = _Tube(registry, reference, descriptor, cancel)
        super().__init__(self._tube, descriptor, f"`{reference.name}`")

    def read(self, size: int = -1, /) -> bytes:
        """Up to `size` bytes, as they come."""
        try:
            return super().read(size)
        except ImageError as error:
            raise BadContentError(error.message) from error

    def _count(self, data: bytes) -> None:
        """Counted by the thread that downloads, which has more time."""

    def _found(self) -> str:
        return self._tube.digest()


class _Tube:
    """What a thread downloads, on its way to the thread that reads: `_MOST_BYTES` at a time.

    Handed over as it came: a pipe would copy it twice.
    """

    def __init__(
        self,
        registry: Registry,
        reference: Reference,
        descriptor: Descriptor,
        cancel: threading.Event | None,
    ) -> None:
        self._cancel = cancel
        self._into = _Inlet(descriptor)
        self._block = b""
        self._at = 0
        self._failure: BaseException | None = None

        def fill() -> None:
            try:
                into = cast(BinaryIO, self._into)  # it has what `fetch_blob` uses
                spoiled = self._into.spoiled
                registry.fetch_blob(reference, descriptor, into, hashed=False, cancel=spoiled)
            except BaseException as error:  # noqa: BLE001 - raised by the thread that reads
                self._failure = error
            finally:
                self._into.finish()

        self._thread = threading.Thread(target=fill, daemon=True)
        self._thread.start()

    def read(self, size: int = -1, /) -> bytes:
        if self._at >= len(self._block):
            self._block, self._at = self._next(), 0
        start = self._at
        self._at = len(self._block) if size < 0 else start + size
        return self._block[start : self._at]  # the block itself where that is the whole

    def _next(self) -> bytes:
        while (block := self._into.take(_LOOK_SECONDS)) is None:
            check_cancelled(self._cancel)
        if not block:
            self._thread.join()
            if self._failure and not self._into.spoiled.is_set():
                raise self._failure
        return block

    def digest(self) -> str:
        """Of all that has gone through; at the end of the stream nothing is added to it."""
        return self._into.digest()

    def close(self) -> None:
        """Ends the download; it may take its time where a registry is silent."""
        self._into.close()


class _Inlet:
    """What a blob is downloaded into. Told to begin again, it leaves out what has gone through.

    When that was the whole, and wrong, it is `spoiled`.
    """

    def __init__(self, descriptor: Descriptor) -> None:
        self.spoiled = threading.Event()
        self._size = descriptor.size
        self._hash = hashlib.new(descriptor.digest.algorithm)
        self._offset = 0
        self._passed = 0
        self._change = threading.Condition()
        self._blocks: deque[bytes] = deque()
        self._waiting = 0
        self._finished = False

    # --- by the thread that downloads ---

    def seek(self, offset: int) -> int:
        self._offset = offset
        return offset

    def truncate(self) -> None:
        if self._passed and self._passed == self._size:
            self.spoiled.set()

    def write(self, data: bytes) -> int:
        rest = data[max(0, self._passed - self._offset) :]
        self._offset += len(data)
        self._passed += len(rest)
        self._hash.update(rest)
        with self._change:
            while self._waiting and self._waiting + len(rest) > _MOST_BYTES:
                if self.spoiled.is_set():
                    break  # nobody reads on; the client looks at it next
                self._change.wait()
            if rest:
                self._blocks.append(rest)
                self._waiting += len(rest)
                self._change.notify()
        return len(data)

    def finish(self) -> None:
        """Nothing more comes."""
        with self._change:
            self._finished = True
            self._change.notify()

    # --- by the thread that reads ---

    def take(self, seconds: float) -> bytes | None:
        """The next bytes, empty at the end; `None` when nothing has come for so long."""
        with self._change:
            if not self._blocks and not self._finished:
                self._change.wait(seconds)
            if self._blocks:
                block = self._blocks.popleft()
                self._waiting -= len(block)
                self._change.notify()
                return block
            return b"" if self._finished else None

    def close(self) -> None:
        """Nothing more is read."""
        with self._change:
            self.spoiled.set()
            self._change.notify()

    def digest(self) -> str:
        return self._hash.hexdigest()
