"""Reading compressed layers, in bounded memory: the tar inside, and its digest."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Generator
from typing import BinaryIO, NamedTuple, Protocol, cast

from ocis2i.blobs import CHUNK, Readable, read_exactly
from ocis2i.compression import GZIP_MAGIC, ZSTD_MAGIC, Compression, detect
from ocis2i.errors import ImageError, PolicyError
from ocis2i.reference import Digest

# What one window may need when reading: the limit of the zstd program itself.
_ZSTD_WINDOW = 1 << 27
_ZSTD_RLE = 1  # a block that is one byte, repeated
_INPUT = 1 << 17
_BUFFER = 1 << 18


class _Decoder(Protocol):
    def decode(self, limit: int) -> bytes:
        """At most `limit` bytes; nothing at the end of good data."""


class DecompressedReader:
    """The tar inside a compressed blob; `read` returns less than asked only at the end.

    Raises `ImageError` for broken, truncated or trailing data and `PolicyError` over the limit.
    """

    def __init__(
        self, stream: Readable, decoder: _Decoder, *, limit: int | None, what: str
    ) -> None:
        self._stream = stream
        self._decoder = decoder
        self._limit = limit
        self._what = what
        self._produced = 0
        self._buffer = b""

    def read(self, size: int = -1, /) -> bytes:
        """Up to `size` bytes (all that is left when negative)."""
        parts: list[bytes] = []
        missing = size
        while missing:
            # Large reads go straight through; small ones are cut from a buffer.
            data = self._buffer or self._produce(max(missing, _BUFFER) if size >= 0 else CHUNK)
            if not data:
                break
            part = data if size < 0 or len(data) <= missing else data[:missing]
            self._buffer = data[len(part) :]
            parts.append(part)
            missing -= len(part) if size >= 0 else 0
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def read1(self, size: int, /) -> bytes:
        """What comes next, at most `size` bytes and nothing at the end: not put together."""
        data = self._buffer or self._produce(size)
        self._buffer = data[size:]
        return data[:size] if self._buffer else data

    def close(self) -> None:
        """Closes the stream below."""
        self._stream.close()

    def __enter__(self) -> DecompressedReader:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _produce(self, wanted: int) -> bytes:
        data = self._decoder.decode(min(wanted, CHUNK))
        self._produced += len(data)
        if self._limit is not None and self._produced > self._limit:
            raise PolicyError(
                f"{self._what} unpacks to more than {self._limit} bytes",
                hint="raise the limit if you trust the image",
            )
        return data


def open_decompressed(
    stream: Readable,
    media_type: str,
    *,
    limit: int | None = None,
    what: str = "a layer",
    large: bool = False,
) -> DecompressedReader:
    """The tar inside a layer blob of the given media type, in bounded memory.

    gzip data may have several members (RFC 1952, section 2.2), zstd data several frames. `what`
    names the blob in messages ("blob `sha256:…`"). One that is `large` is worth loading ISA-L for.
    Raises `ImageError` when the data is not what the type says, or, while reading, when it is
    broken; `PolicyError` when more than `limit` bytes come out.
    """
    expected = Compression.of_media_type(media_type)
    head = read_exactly(stream, len(ZSTD_MAGIC))
    found = detect(head)
    if found is not expected and (head or expected is not Compression.NONE):
        raise ImageError(
            f"{what} is said to be {_WORDS[expected]} (`{media_type}`), but is {_WORDS[found]}"
        )
    source = _Prefixed(head, stream)
    decoder: _Decoder
    match expected:
        case Compression.GZIP:
            decoder = _GzipDecoder(source, what, _inflating(large=large))
        case Compression.ZSTD:
            decoder = _ZstdDecoder(source, what)
        case Compression.NONE:
            decoder = _PlainDecoder(source)
    return DecompressedReader(stream, decoder, limit=limit, what=what)


_WORDS = {
    Compression.GZIP: "gzip data",
    Compression.ZSTD: "zstd data",
    Compression.NONE: "not compressed",
}


class _Prefixed:
    """A stream with the bytes in front again that were read to look at them."""

    def __init__(self, head: bytes, stream: Readable) -> None:
        self._head = head
        self._stream = stream

    def read(self, size: int = -1, /) -> bytes:
        if not self._head:
            return self._stream.read(size)
        data = self._head if size < 0 else self._head[:size]
        self._head = self._head[len(data) :]
        return data


class _PlainDecoder:
    def __init__(self, source: _Prefixed) -> None:
        self._source = source

    def decode(self, limit: int) -> bytes:
        return self._source.read(limit)


class _Member(Protocol):
    """What inflates one member of gzip data, as `zlib.decompressobj` does, with its checksum."""

    eof: bool
    unused_data: bytes
    unconsumed_tail: bytes

    def decompress(self, data: bytes, max_length: int, /) -> bytes:
        """At most `max_length` bytes."""


class _Inflating(NamedTuple):
    """A library that inflates: how a member begins, and what it raises when that is broken."""

    member: Callable[[], _Member]
    broken: type[Exception]


def _zlib_member() -> _Member:
    return cast(_Member, zlib.decompressobj(wbits=31))


def _inflating(*, large: bool) -> _Inflating:
    """ISA-L takes two thirds of zlib's time, and 2 ms to load."""
    if large:
        try:
            from isal import isal_zlib  # noqa: PLC0415 - for large layers
        except ImportError:
            pass
        else:
            # Its stubs take the class for an object of it.
            broken = cast(type[Exception], isal_zlib.error)
            return _Inflating(lambda: isal_zlib.decompressobj(wbits=31), broken)
    return _Inflating(_zlib_member, zlib.error)


class _GzipDecoder:
    def __init__(self, source: _Prefixed, what: str, inflating: _Inflating) -> None:
        self._source = source
        self._what = what
        self._inflating = inflating
        self._member = inflating.member()
        self._input = b""

    def decode(self, limit: int) -> bytes:
        while True:
            if not self._input:
                self._input = self._source.read(CHUNK)  # as it comes, not cut
            if self._member.eof:
                if not self._input:
                    return b""
                self._start_next_member()
            data = self._inflate(limit)
            if data:
                return data

    def _inflate(self, limit: int) -> bytes:
        # An empty input may still have output waiting inside zlib; only then is it truncated.
        exhausted = not self._input
        try:
            data = self._member.decompress(self._input, limit)
        except self._inflating.broken as error:
            raise ImageError(f"broken gzip data in {self._what}: {error}") from error
        self._input = self._member.unused_data or self._member.unconsumed_tail
        if exhausted and not data and not self._member.eof:
            raise ImageError(f"broken gzip data in {self._what}: it ends too early")
        return data

    def _start_next_member(self) -> None:
        while len(self._input) < len(GZIP_MAGIC) and (more := self._source.read(_INPUT)):
            self._input += more
        if not self._input.startswith(GZIP_MAGIC):
            raise ImageError(f"broken gzip data in {self._what}: there is more after its end")
        self._member = self._inflating.member()


class _ZstdDecoder:
    """The package's reader bounds its output but takes a truncated frame for the end of data.

    `_ZstdFrames` watches the input beside it and knows better.
    """

    def __init__(self, source: _Prefixed, what: str) -> None:
        import zstandard  # noqa: PLC0415 - few images need it

        self._what = what
        self._broken = zstandard.ZstdError
        self._frames = _ZstdFrames(source)
        decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
        self._reader = decompressor.stream_reader(
            cast(BinaryIO, self._frames),  # it only ever calls `read`
            read_size=_INPUT,
            read_across_frames=True,
        )

    def decode(self, limit: int) -> bytes:
        try:
            data = self._reader.read(limit)
        except self._broken as error:
            raise ImageError(f"broken zstd data in {self._what}: {error}") from error
        if not data and not self._frames.complete:
            raise ImageError(f"broken zstd data in {self._what}: it ends too early")
        return data


class _ZstdFrames:
    """Follows the frames and blocks of the zstd data that is read through it (RFC 8878, 3.1)."""

    def __init__(self, source: _Prefixed) -> None:
        self._source = source
        self._between_frames = True
        self._field = b""
        self._parser = self._parse()
        self._need = next(self._parser)

    @property
    def complete(self) -> bool:
        """Whether the data so far ends where a frame ends."""
        return self._between_frames and not self._field

    def read(self, size: int = -1, /) -> bytes:
        """What the stream gives; its structure is noted."""
        data = self._source.read(size)
        at = 0
        while at < len(data):
            at += self._take(data, at)
        return data

    def _take(self, data: bytes, at: int) -> int:
        if self._need > 0:
            taken = min(self._need - len(self._field), len(data) - at)
            self._field += data[at : at + taken]
            done = len(self._field) == self._need
        else:
            taken = min(-self._need, len(data) - at)
            self._need += taken
            done = not self._need
        if done:
            field, self._field = self._field, b""
            self._need = self._parser.send(field) or self._next_field()
        return taken

    def _next_field(self) -> int:
        # Nothing to pass over is passed over at once: there may be no more data to wait for.
        while not (need := self._parser.send(b"")):
            pass
        return need

    def _parse(self) -> Generator[int, bytes, None]:
        """Yields how many bytes it wants to see (positive) or to pass over (negative or 0)."""
        while True:
            self._between_frames = True
            magic = yield 4
            self._between_frames = False
            if magic != ZSTD_MAGIC:
                # A skippable frame; anything else is refused by the package.
                yield -int.from_bytes((yield 4), "little")
                continue
            descriptor = (yield 1)[0]
            single_segment = descriptor >> 5 & 1
            content_size = (single_segment, 2, 4, 8)[descriptor >> 6]
            yield -((1 - single_segment) + (0, 1, 2, 4)[descriptor & 3] + content_size)
            last = 0
            while not last:
                header = int.from_bytes((yield 3), "little")
                last, kind, block_size = header & 1, header >> 1 & 3, header >> 3
                yield -(1 if kind == _ZSTD_RLE else block_size)
            yield -4 if descriptor & 4 else 0


class Pieces(Readable, Protocol):
    """A stream that can be read as it comes, as `DecompressedReader` and Python's own."""

    def read1(self, size: int, /) -> bytes:
        """What comes next, at most `size` bytes and nothing at the end."""


class DiffIdReader:
    """A decompressed stream with the digest of what was read so far."""

    def __init__(self, stream: Pieces, *, algorithm: str = "sha256", what: str = "a layer"):
        self._stream = stream
        self._hash = hashlib.new(algorithm)
        self._what = what

    def read(self, size: int = -1, /) -> bytes:
        """Up to `size` bytes."""
        data = self._stream.read(size)
        self._hash.update(data)
        return data

    def read1(self, size: int, /) -> bytes:
        """What comes next, at most `size` bytes and nothing at the end: not put together."""
        data = self._stream.read1(size)
        self._hash.update(data)
        return data

    def close(self) -> None:
        """Closes the stream below."""
        self._stream.close()

    def finish(self, expected: Digest) -> None:
        """Reads what is left and raises `ImageError` unless the whole has that diff_id.

        A reader of tar entries stops at the end marker; padding after it belongs to the diff_id.
        """
        while self.read(CHUNK):
            pass
        found = Digest(self._hash.hexdigest(), self._hash.name)
        if found != expected:
            raise ImageError(
                f"{self._what} unpacks to `{found}`, but its diff_id is `{expected}`",
                hint="the image is damaged or its config belongs to other layers",
            )
