"""A blob that is sent while it is still written."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from typing import BinaryIO

from ocis2i.errors import OutputError
from ocis2i.manifest import Descriptor
from ocis2i.retries import CancelledError

# Of what is written so far, read and sent at once.
_BLOCK = 128 << 10


class Growing:
    """A file that one thread writes and another one reads from its start, as often as it likes.

    `begin` is called once, when the file has `least_bytes`: what is smaller is not worth it. While
    all of it was read and sent, and no answer has come, it `is_awaited`, as its sender says.
    """

    def __init__(self, file: BinaryIO, begin: Callable[[Growing], None], least_bytes: int) -> None:
        self._file = file
        self._begin = begin
        self._least_bytes = least_bytes
        # Its own: the file of the writer is closed when the blob has its name.
        self._fd = os.dup(file.fileno())
        self._changed = threading.Condition()
        self._size = 0
        self._begun = False
        self._descriptor: Descriptor | None = None
        self._given_up = False
        self.is_awaited = False

    def write(self, data: bytes, /) -> int:
        """Writes on; raises what the file raises."""
        self._file.write(data)
        self._file.flush()
        with self._changed:
            self._size += len(data)
            self._changed.notify_all()
        if not self._begun and self._size >= self._least_bytes:
            self._begun = True
            self._begin(self)
        return len(data)

    @property
    def begun(self) -> bool:
        """Whether it became large enough to be read."""
        return self._begun

    def complete(self, descriptor: Descriptor) -> None:
        """All is written, and this is what it is."""
        with self._changed:
            self._descriptor = descriptor
            self._changed.notify_all()

    def give_up(self) -> None:
        """There will be no more of it, and nobody shall have it."""
        with self._changed:
            self._given_up = True
            self._changed.notify_all()

    def close(self) -> None:
        """Nobody reads it any more."""
        with contextlib.suppress(OSError):
            os.close(self._fd)
        self._fd = -1

    def __iter__(self) -> Iterator[bytes]:
        """The blob from its start to its end, which is waited for; raises `CancelledError`."""
        offset = 0
        while self._has_more(offset):
            try:
                block = os.pread(self._fd, _BLOCK, offset)
            except OSError as error:
                # Told apart from errors of the connection.
                raise OutputError(f"the layer cannot be read: {error.strerror}") from error
            offset += len(block)
            yield block

    @property
    def known(self) -> Descriptor | None:
        """What it has become; `None` while it is not whole."""
        return self._descriptor

    def descriptor(self) -> Descriptor:
        """What it has become, which is waited for; raises `CancelledError`."""
        with self._changed:
            self._changed.wait_for(lambda: self._descriptor or self._given_up)
            if self._descriptor is None or self._given_up:
                raise CancelledError("the upload was given up")
            return self._descriptor

    def _has_more(self, offset: int) -> bool:
        with self._changed:
            self._changed.wait_for(
                lambda: self._size > offset or self._descriptor or self._given_up
            )
            if self._given_up:
                raise CancelledError("the upload was given up")
            return self._size > offset
