"""Blobs to a registry: looked for, mounted, or sent in one request; in chunks where that must be.

A blob is the unit that is tried again: a registry forgets an upload that broke.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import field
from functools import partial
from typing import Literal
from urllib.parse import quote, urlsplit

from ocis2i.blobs import Readable
from ocis2i.endpoints import Place
from ocis2i.errors import ImageError, RegistryError
from ocis2i.growing import Growing
from ocis2i.lazy_dataclass import dataclass
from ocis2i.manifest import Descriptor
from ocis2i.net import (
    BLOCK,
    FINAL_SECONDS,
    READ_SECONDS,
    SLOW_COMMIT_BYTES_PER_SECOND,
    Request,
    RequestError,
    final_seconds,
    header_number,
    redacted,
)
from ocis2i.reference import Digest, Reference
from ocis2i.registry.dialog import Answer, Dialog, pull_scopes, push_scopes
from ocis2i.retries import CancelledError, Retries
from ocis2i.settings import UploadMode

CANCEL_SECONDS = 5.0
# One is sent within the time-out of the connection, also over a slow line.
SEND_BYTES = 128 << 10
CHUNK_BYTES = 16 << 20
# Whoever limits an upload takes this much, as a rule.
LIMITED_CHUNK_BYTES = 4 << 20
TOO_LARGE = 413
OUT_OF_ORDER = 416

Pushed = Literal["exists", "mounted", "sent"]

_OCTETS = {"Content-Type": "application/octet-stream"}
_RANGE = re.compile(r"(?:bytes=)?0-(\d+)\Z")


class Feed:
    """A blob while it is sent; to go back it is opened anew."""

    def __init__(
        self,
        descriptor: Descriptor,
        open_blob: Callable[[], Readable],
        tell: Callable[[Descriptor, int], None],
        check: Callable[[], None],
    ) -> None:
        self.descriptor = descriptor
        self._open_blob = open_blob
        self._tell = tell
        self.check = check
        self._stream: Readable | None = None
        self._offset = 0

    def read(self, start: int, length: int) -> Iterator[memoryview]:
        """The bytes of a range, in pieces small enough to be sent at once."""
        self._go_to(start)
        while self._offset < start + length:
            block = memoryview(self._next(min(BLOCK, start + length - self._offset)))
            for at in range(0, len(block), SEND_BYTES):
                yield block[at : at + SEND_BYTES]
            self._tell(self.descriptor, self._offset)

    def close(self) -> None:
        """Gives the blob back."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _go_to(self, offset: int) -> None:
        if self._stream is None or offset < self._offset:
            self.close()
            self._stream, self._offset = self._open_blob(), 0
        while self._offset < offset:
            self._next(min(BLOCK, offset - self._offset))

    def _next(self, wanted: int) -> bytes:
        self.check()
        digest = self.descriptor.digest
        try:
            block = self._stream.read(wanted) if self._stream else b""
        except OSError as error:
            # Told apart from errors of the connection, after which one would try again.
            raise ImageError(f"blob `{digest}` cannot be read: {error.strerror}") from error
        if not block:
            raise ImageError(f"blob `{digest}` ends too early")
        self._offset += len(block)
        return block


@dataclass(slots=True)
class _Errand:
    """A blob on its way, and what was tried of it already; a `turn` once it is sent."""

    feed: Feed
    sources: list[Reference]
    is_new: bool = False
    turns: threading.Semaphore | None = None
    has_turn: bool = False

    def take_turn(self, *, wait: bool) -> bool:
        """Whether it may be sent now."""
        if self.turns and not self.has_turn:
            self.has_turn = self.turns.acquire(blocking=wait)
            return self.has_turn
        return True

    def close(self) -> None:
        """Gives back what it has."""
        self.feed.close()
        if self.turns and self.has_turn:
            self.turns.release()


@dataclass(frozen=True, slots=True)
class _Range:
    """A range of a blob as the body of a request; iterated again, it is read again."""

    feed: Feed
    start: int
    length: int

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[memoryview]:
        return self.feed.read(self.start, self.length)


@dataclass(frozen=True, slots=True)
class _Following:
    """A blob that is still written as the body of a request; iterated again, it is read again.

    It is reported how far it has come once it is known what of.
    """

    growing: Growing
    report: Callable[[Descriptor, int], None]  # `requests` takes what can `tell` for a file

    def __iter__(self) -> Iterator[bytes]:
        self.growing.is_awaited = False
        sent = told = 0
        for block in self.growing:
            yield block
            sent += len(block)
            if sent - told >= BLOCK and (descriptor := self.growing.known):
                self.report(descriptor, sent)
                told = sent
        self.growing.is_awaited = True


@dataclass(slots=True)
class _Session:
    """An upload that has begun: where it goes on, and how much the registry has of it."""

    location: str
    least_chunk: int
    offset: int = 0


@dataclass(slots=True)
class _Known:
    """What earlier blobs have taught us; a wrong belief costs a request, never an error."""

    limited: set[str] = field(default_factory=set)
    no_mount: set[tuple[str, str]] = field(default_factory=set)
    # What was sent early, and how it got there: it is not asked for again.
    early: dict[tuple[str, Digest], Pushed] = field(default_factory=dict)
    # What was tried early and failed for the moment, and after how many seconds.
    failed: dict[tuple[str, Digest], float] = field(default_factory=dict)


class Uploads:
    """Sees to it that repositories have blobs; `tell` hears how far each has come."""

    def __init__(
        self,
        dialog: Dialog,
        retries: Retries,
        tell: Callable[[Descriptor, int], None],
        *,
        mode: UploadMode = "auto",
    ) -> None:
        self._dialog = dialog
        self._retries = retries
        self._tell = tell
        self._mode = mode
        self._known = _Known()

    def beside(self, tell: Callable[[Descriptor, int], None]) -> Uploads:
        """The same, with what is known, for one who tells it otherwise."""
        other = Uploads(self._dialog, self._retries, tell, mode=self._mode)
        other._known = self._known
        return other

    def push(
        self,
        place: Place,
        descriptor: Descriptor,
        open_blob: Callable[[], Readable],
        mount_from: Sequence[Reference],
        cancel: threading.Event | None,
        *,
        is_new: bool = False,
        turns: threading.Semaphore | None = None,
    ) -> Pushed:
        """Brings the blob there and says how it got there.

        One that `is_new`, as nobody else has made it, is sent without a look whether it is there.
        """
        key = place.reference.name, descriptor.digest
        if early := self._known.early.get(key):
            return early
        # A registry that does not read what is sent costs a long wait each time.
        failed_for = self._known.failed.pop(key, None)
        errand = self._errand(place, descriptor, open_blob, mount_from, cancel)
        errand.is_new, errand.turns = is_new and failed_for is None, turns
        with closing(errand):
            once = partial(self._push_once, place, errand)
            return self._retries.call(once, cancel, failed_for=failed_for)

    def push_early(
        self,
        place: Place,
        descriptor: Descriptor,
        open_blob: Callable[[], Readable],
        mount_from: Sequence[Reference],
        cancel: threading.Event,
    ) -> None:
        """Brings the blob there before its image, and remembers it. Tried once."""
        key = place.reference.name, descriptor.digest
        with closing(self._errand(place, descriptor, open_blob, mount_from, cancel)) as errand:
            self._known.early[key] = self._retries.timed(
                partial(self._push_once, place, errand),
                partial(self._known.failed.__setitem__, key),
            )

    def push_growing(self, place: Place, growing: Growing) -> None:
        """Sends a blob that is still written, in one request of unknown length, as docker does.

        Once only, and not where the user wants another kind of upload. Nothing is kept unless
        the blob becomes whole.
        """
        if self._mode != "auto" or place.reference.registry in self._known.limited:
            return
        try:
            self._send_growing(place, growing)
        except RequestError as error:
            if error.retryable:
                # Which blob it was is known once it is whole; who gives it up does not push it.
                with suppress(CancelledError):
                    key = place.reference.name, growing.descriptor().digest
                    # A try, but its time was that of the compression.
                    self._known.failed[key] = 0.0
            raise

    def give_up_growing(self, place: Place, growing: Growing, waited_seconds: float) -> None:
        """Expects no answer any more to what `push_growing` has sent whole: it counts as a try.

        One that comes yet makes it take the upload back.
        """
        descriptor = growing.descriptor()
        self._known.failed[place.reference.name, descriptor.digest] = waited_seconds
        growing.give_up()

    def _errand(
        self,
        place: Place,
        descriptor: Descriptor,
        open_blob: Callable[[], Readable],
        mount_from: Sequence[Reference],
        cancel: threading.Event | None,
    ) -> _Errand:
        feed = Feed(descriptor, open_blob, self._tell, partial(self._retries.check, cancel))
        return _Errand(feed, _mountable(place.reference, mount_from))

    def _send_growing(self, place: Place, growing: Growing) -> None:
        what = f"cannot push a layer to `{place.reference.name}`"
        session = self._start(place, what)
        try:
            answer = self._dialog.ask(
                place,
                Request(
                    "PATCH",
                    session.location,
                    _OCTETS,
                    _Following(growing, self._tell),
                    # Whoever waits for it decides: see `give_up_growing`.
                    read_seconds=FINAL_SECONDS,
                ),
                push_scopes(place.reference),
                expected=(200, 201, 202, 204),
                what=what,
            )
            growing.is_awaited = False
            descriptor = growing.descriptor()
            self._follow(place, session, answer, descriptor.size)
            self._finish(place, descriptor, session.location, b"")
        except BaseException as error:
            if isinstance(error, RequestError) and error.status == TOO_LARGE:
                self._known.limited.add(place.reference.registry)
            self._abandon(place, session.location)
            raise
        self._known.early[place.reference.name, descriptor.digest] = "sent"

    def forget_early(self, place: Place) -> bool:
        """Believes no more that the repository has what was sent early; false: nothing was."""
        name = place.reference.name
        early = [key for key in self._known.early if key[0] == name]
        for key in early:
            del self._known.early[key]
        return bool(early)

    def try_out(self, place: Place) -> None:
        """Begins an upload and gives it up, to hear whether that is allowed."""
        what = f"cannot push to `{place.reference.name}`"
        session = self._retries.call(partial(self._start, place, what))
        self._abandon(place, session.location)

    def exists(self, place: Place, descriptor: Descriptor, scopes: Sequence[str]) -> bool:
        """Whether the repository has the blob."""
        # The length is not compared: Harbor's HEAD has been seen to give another than its GET.
        answer = self._dialog.ask(
            place,
            Request("HEAD", self._dialog.url(place, f"blobs/{descriptor.digest}")),
            scopes,
            expected=(200, 403, 404, 405),
            what=f"cannot look up blob `{descriptor.digest}`",
        )
        return answer.status == 200

    def _push_once(self, place: Place, errand: _Errand) -> Pushed:
        descriptor, sources, location = errand.feed.descriptor, errand.sources, None
        # After a broken try a look tells whether only the answer was lost.
        is_new, errand.is_new = errand.is_new, False
        if not is_new:
            if sources and self._mount_is_likely(place, sources[0]):
                mounted, location = self._mount(place, descriptor, sources.pop(0))
                if mounted:
                    return "mounted"
            if self.exists(place, descriptor, push_scopes(place.reference)):
                self._abandon(place, location)
                return "exists"
            while sources:
                self._abandon(place, location)
                mounted, location = self._mount(place, descriptor, sources.pop(0))
                if mounted:
                    return "mounted"
        if not errand.take_turn(wait=False):
            # Nobody knows how long a registry keeps an upload to which nothing is sent.
            self._abandon(place, location)
            location = None
            errand.take_turn(wait=True)
            errand.feed.check()
        self._send(place, errand.feed, location)
        return "sent"

    # --- mounting -----------------------------------------------------------------------------

    def _mount_is_likely(self, place: Place, source: Reference) -> bool:
        return (place.reference.name, source.name) not in self._known.no_mount

    def _mount(
        self, place: Place, descriptor: Descriptor, source: Reference
    ) -> tuple[bool, str | None]:
        """Whether the blob was mounted, else perhaps where it may be uploaded instead.

        No error counts: registries refuse mounts with whatever status comes to their mind.
        """
        url = self._dialog.url(place, "blobs/uploads/")
        query = f"mount={quote(str(descriptor.digest))}&from={quote(source.repository, safe='')}"
        scopes = (*push_scopes(place.reference), *pull_scopes(source))
        request = Request("POST", f"{url}?{query}")
        try:
            answer = self._dialog.ask(place, request, scopes, expected=(201, 202), what="no mount")
            if answer.status == 201:
                return True, None
            self._known.no_mount.add((place.reference.name, source.name))
            return False, self._location(place, answer)
        except RegistryError:
            self._known.no_mount.add((place.reference.name, source.name))
            return False, None

    # --- sending ------------------------------------------------------------------------------

    def _send(self, place: Place, feed: Feed, location: str | None) -> None:
        limited = place.reference.registry in self._known.limited
        if self._mode == "chunked":
            self._send_in_chunks(place, feed, CHUNK_BYTES, location)
        elif limited and feed.descriptor.size > LIMITED_CHUNK_BYTES:
            self._send_in_chunks(place, feed, LIMITED_CHUNK_BYTES, location)
        else:
            self._send_at_once(place, feed, location)

    def _send_at_once(self, place: Place, feed: Feed, location: str | None) -> None:
        location = location or self._start(place, _what(place, feed.descriptor)).location
        body = _Range(feed, 0, feed.descriptor.size)
        try:
            self._finish(place, feed.descriptor, location, body)
        except CancelledError:
            self._abandon(place, location)
            raise
        except RequestError as error:
            if error.status != TOO_LARGE or self._mode != "auto":
                raise
            self._known.limited.add(place.reference.registry)
            self._send_in_chunks(place, feed, LIMITED_CHUNK_BYTES, None)

    def _send_in_chunks(
        self, place: Place, feed: Feed, chunk_bytes: int, location: str | None
    ) -> None:
        """(distribution-spec, Pushing a blob in chunks.)"""
        self._abandon(place, location)  # a session for another kind of upload
        session = self._start(place, _what(place, feed.descriptor))
        try:
            self._send_chunks(place, feed, session, max(chunk_bytes, session.least_chunk))
            self._finish(place, feed.descriptor, session.location, b"")
        except CancelledError:
            self._abandon(place, session.location)
            raise

    def _send_chunks(self, place: Place, feed: Feed, session: _Session, chunk_bytes: int) -> None:
        size, series = feed.descriptor.size, self._retries.series()
        while session.offset < size:
            before = session.offset
            chunk = _Range(feed, before, min(chunk_bytes, size - before))
            try:
                self._send_chunk(place, session, chunk)
            except RequestError as error:
                if not error.retryable and error.status != OUT_OF_ORDER:
                    raise
                if not self._ask_how_far(place, session):
                    raise
                error.kind = "broken"  # being out of order passes, now that we know better
                series.failed(error, moved=session.offset != before)

    def _send_chunk(self, place: Place, session: _Session, chunk: _Range) -> None:
        end = chunk.start + chunk.length
        headers = {**_OCTETS, "Content-Range": f"{chunk.start}-{end - 1}"}
        answer = self._dialog.ask(
            place,
            Request("PATCH", session.location, headers, chunk),
            push_scopes(place.reference),
            expected=(200, 201, 202, 204),
            what=_what(place, chunk.feed.descriptor),
        )
        self._follow(place, session, answer, end)
        if not chunk.start < session.offset <= end:
            raise RegistryError(
                f"PATCH {redacted(answer.url)} took {end} bytes and speaks of {session.offset}"
            )

    def _ask_how_far(self, place: Place, session: _Session) -> bool:
        """Brings the session up to date after a failure; false when the registry forgot it."""
        try:
            answer = self._dialog.ask(
                place,
                Request("GET", session.location),
                push_scopes(place.reference),
                expected=(200, 202, 204),
                what="no such upload",
            )
        except RegistryError:
            return False
        self._follow(place, session, answer, session.offset)
        return True

    def _follow(self, place: Place, session: _Session, answer: Answer, end: int) -> None:
        if answer.headers.get("Location"):
            session.location = self._location(place, answer)
        match = _RANGE.match(answer.headers.get("Range", "").strip())
        # `0-0` may mean one byte or none; of one byte that was sent it means one.
        last = header_number(match.group(1)) if match else end - 1
        if last is None:
            raise RegistryError(f"{redacted(answer.url)} answered with a senseless `Range`")
        session.offset = 0 if match and last == 0 and end != 1 else last + 1

    def _start(self, place: Place, what: str) -> _Session:
        answer = self._dialog.ask(
            place,
            Request("POST", self._dialog.url(place, "blobs/uploads/")),
            push_scopes(place.reference),
            expected=(202,),
            what=what,
        )
        least = header_number(answer.headers.get("OCI-Chunk-Min-Length", "").strip())
        return _Session(self._location(place, answer), least or 0)

    def _finish(
        self, place: Place, descriptor: Descriptor, location: str, body: _Range | bytes
    ) -> None:
        # The query of a location is the registry's own affair: nothing in it may be touched.
        joint = "&" if urlsplit(location).query else "?"
        self._dialog.ask(
            place,
            Request(
                "PUT",
                f"{location}{joint}digest={quote(str(descriptor.digest), safe='')}",
                _OCTETS,
                body,
                read_seconds=final_seconds(descriptor.size),
            ),
            push_scopes(place.reference),
            expected=(200, 201, 204),
            what=_what(place, descriptor),
        )

    def _abandon(self, place: Place, location: str | None) -> None:
        """Ends an upload that nobody will finish; the registry's own clean-up does it, too."""
        if location is None:
            return
        request = Request("DELETE", location, read_seconds=CANCEL_SECONDS)
        try:
            self._dialog.send(place, request, push_scopes(place.reference)).close()
        except RegistryError:
            return

    def _location(self, place: Place, answer: Answer) -> str:
        location = answer.headers.get("Location")
        if not location:
            raise RegistryError(f"POST {redacted(answer.url)} answered without a `Location`")
        return self._dialog.resolve(place, location, answer.url)


def answer_seconds(size_bytes: int) -> float:
    """How long an answer is worth waiting for to a blob that was sent while it grew.

    A proxy that buffers requests (nginx, unless it is told otherwise) has it all by then, and sends
    it on: to send it anew takes longer. Whoever takes no such upload and does not say so would hold
    up the push for as long.
    """
    return max(READ_SECONDS, size_bytes / SLOW_COMMIT_BYTES_PER_SECOND)


def _what(place: Place, descriptor: Descriptor) -> str:
    return f"cannot push blob `{descriptor.digest}` to `{place.reference.name}`"


def _mountable(reference: Reference, sources: Sequence[Reference]) -> list[Reference]:
    """The repositories of the same registry that a blob may be mounted from, each once."""
    others = {
        source.repository: source for source in sources if source.registry == reference.registry
    }
    others.pop(reference.repository, None)
    return list(others.values())
