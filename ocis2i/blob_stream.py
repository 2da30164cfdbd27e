"""A blob of a registry that is read while it comes: no more of it is here than fits into a pipe."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import threading
from typing import BinaryIO, cast

from ocis2i.blobs import VerifiedReader
from ocis2i.errors import ImageError
from ocis2i.manifest import Descriptor
from ocis2i.reference import Reference
from ocis2i.registry import Registry
from ocis2i.registry.downloads import BadContentError
from ocis2i.retries import check_cancelled

_LOOK_SECONDS = 0.25
_PIPE_BYTES = 1 << 20


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
        tube = _Tube(registry, reference, descriptor, cancel)
        super().__init__(tube, descriptor, f"`{reference.name}`")

    def read(self, size: int = -1, /) -> bytes:
        """Up to `size` bytes, as they come."""
        try:
            return super().read(size)
        except ImageError as error:
            raise BadContentError(error.message) from error


class _Tube:
    """Both ends of a pipe: a thread downloads into it."""

    def __init__(
        self,
        registry: Registry,
        reference: Reference,
        descriptor: Descriptor,
        cancel: threading.Event | None,
    ) -> None:
        self._cancel = cancel
        self._end, write_end = os.pipe()
        with contextlib.suppress(OSError):  # its user has many wide ones already
            fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        self._poll = select.poll()
        self._poll.register(self._end, select.POLLIN)
        self._into = _Inlet(write_end, descriptor.size)
        self._failure: BaseException | None = None

        def fill() -> None:
            try:
                into = cast(BinaryIO, self._into)  # it has what `fetch_blob` uses
                registry.fetch_blob(reference, descriptor, into, cancel=self._into.spoiled)
            except BaseException as error:  # noqa: BLE001 - raised by the thread that reads
                self._failure = error
            finally:
                os.close(write_end)

        self._thread = threading.Thread(target=fill, daemon=True)
        self._thread.start()

    def read(self, size: int = -1, /) -> bytes:
        while not self._poll.poll(_LOOK_SECONDS * 1000):
            check_cancelled(self._cancel)
        data = os.read(self._end, size)
        if not data:
            self._thread.join()
            if self._failure and not self._into.spoiled.is_set():
                raise self._failure
        return data

    def close(self) -> None:
        """Ends the download; it may take its time where a registry is silent."""
        self._into.spoiled.set()
        if self._end >= 0:
            os.close(self._end)
            self._end = -1


class _Inlet:
    """What a blob is downloaded into. Told to begin again, it leaves out what has gone through.

    When that was the whole, and wrong, it is `spoiled`.
    """

    def __init__(self, fd: int, size: int) -> None:
        self.spoiled = threading.Event()
        self._fd = fd
        self._size = size
        self._offset = 0
        self._passed = 0

    def seek(self, offset: int) -> int:
        self._offset = offset
        return offset

    def truncate(self) -> None:
        if self._passed and self._passed == self._size:
            self.spoiled.set()

    def write(self, data: bytes) -> int:
        rest = memoryview(data)[max(0, self._passed - self._offset) :]
        self._offset += len(data)
        self._passed += len(rest)
        while rest:
            rest = rest[os.write(self._fd, rest) :]
        return len(data)
