"""Blobs from a registry: verified, and gone on with where they broke."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, BinaryIO, TypeVar

from ocis2i.auth import printable
from ocis2i.endpoints import Place
from ocis2i.errors import RegistryError
from ocis2i.manifest import Descriptor
from ocis2i.net import (
    BLOCK,
    Request,
    RequestError,
    continues_at,
    header_number,
    read_blocks,
    redacted,
)
from ocis2i.registry.dialog import Dialog, pull_scopes
from ocis2i.retries import Retries

if TYPE_CHECKING:
    import requests

T = TypeVar("T")


class BadContentError(RegistryError):
    """Bytes that are not what they were said to be; a second try may bring better ones."""


def twice(action: Callable[[], T]) -> T:
    """The value of `action()`, tried again once after bad content."""
    try:
        return action()
    except BadContentError:
        return action()


class Sink:
    """A file that a blob is downloaded into, and how far it has come.

    `resume` goes on after what the file holds already, which is hashed first. What is not
    `hashed` here is verified by who reads it.
    """

    def __init__(
        self,
        into: BinaryIO,
        descriptor: Descriptor,
        *,
        resume: bool = False,
        hashed: bool = True,
    ) -> None:
        self.descriptor = descriptor
        self.offset = 0
        self._into = into
        self._hashed = hashed
        self._hash = hashlib.new(descriptor.digest.algorithm)
        if resume:
            self._go_on()
        else:
            self.restart()

    def _go_on(self) -> None:
        self._into.seek(0)
        while block := self._into.read(BLOCK):
            self._hash.update(block)
            self.offset += len(block)
        if self.offset > self.descriptor.size:
            self.restart()

    def restart(self) -> None:
        """Drops all that was received."""
        self.offset = 0
        self._hash = hashlib.new(self.descriptor.digest.algorithm)
        self._into.seek(0)
        self._into.truncate()

    def check_announced(self, response: requests.Response, name: str) -> None:
        """Refuses a body that cannot be the rest of the blob before it is read."""
        length = header_number(response.headers.get("Content-Length", ""))
        left = self.descriptor.size - self.offset
        if length is not None and length != left:
            kind = response.headers.get("Content-Type", "of no type")
            raise BadContentError(
                f"{name} came with {length} bytes ({printable(kind, 60)}) instead of {left}"
            )

    def write(self, block: bytes, name: str) -> None:
        """Takes the next bytes; raises `BadContentError` when they are too many."""
        if self.offset + len(block) > self.descriptor.size:
            self.restart()
            raise BadContentError(f"{name} is longer than {self.descriptor.size} bytes")
        self._into.write(block)
        if self._hashed:
            self._hash.update(block)
        self.offset += len(block)

    def verify(self, name: str) -> None:
        """Raises `BadContentError` unless the whole has its digest, and keeps nothing of it."""
        if not self._hashed:
            return
        found = self._hash.hexdigest()
        if found != self.descriptor.digest.hex:
            self.restart()
            raise BadContentError(
                f"{name} came with digest `{self.descriptor.digest.algorithm}:{found}`"
            )


class Downloads:
    """Downloads blobs; `tell` hears how far each has come."""

    def __init__(
        self, dialog: Dialog, retries: Retries, tell: Callable[[Descriptor, int], None]
    ) -> None:
        self._dialog = dialog
        self._retries = retries
        self._tell = tell

    def fetch(self, place: Place, sink: Sink, cancel: threading.Event | None) -> None:
        """Fills the sink; the rest of a broken download is asked for, not the whole."""
        series = self._retries.series(cancel)
        while sink.offset < sink.descriptor.size:
            self._retries.check(cancel)
            before = sink.offset
            try:
                self._receive(place, sink, cancel)
            except RequestError as error:
                # A long way over a bad line may break often, as long as it gets on.
                series.failed(error, moved=sink.offset - before >= BLOCK)
        sink.verify(_name(place, sink.descriptor))

    def _receive(self, place: Place, sink: Sink, cancel: threading.Event | None) -> None:
        descriptor, start = sink.descriptor, sink.offset
        name = _name(place, descriptor)
        url = self._dialog.url(place, f"blobs/{descriptor.digest}")
        response = self._dialog.open(
            place,
            Request("GET", url, {"Range": f"bytes={start}-"} if start else {}),
            pull_scopes(place.reference),
            expected=(200, 206, 416) if start else (200,),
            what=f"cannot get {name}",
        )
        with response:
            if start and not continues_at(response, start):
                sink.restart()
                if response.status_code != 200:
                    return
            sink.check_announced(response, name)
            for block in read_blocks(response):
                self._retries.check(cancel)
                sink.write(block, name)
                self._tell(descriptor, sink.offset)
        if sink.offset < descriptor.size:
            raise RequestError(
                f"GET {redacted(url)} ended after {sink.offset} of {descriptor.size} bytes",
                kind="broken",
            )


def _name(place: Place, descriptor: Descriptor) -> str:
    return f"blob `{descriptor.digest}` of `{place.reference.name}`"
