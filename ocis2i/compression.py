"""Compressed layers: reading gzip and zstd with bounds, writing them in one parallel pass.

gzip is written as one member whose deflate blocks are compressed in parallel, as pigz does it: a
block of 1 MiB starts with the 32 KiB before it as its dictionary and ends byte-aligned (sync
flush), so the pieces are one valid stream when put together. Where the blocks lie depends on the
data alone; the bytes are therefore the same for any number of threads (and one build of zlib).

Level 4 is the default. Measured on a 391 MiB tar of programs and Python sources, per core: level 1
74 MiB/s and ratio 2.52, level 4 52 MiB/s and 2.71, level 6 23 MiB/s and 2.79: more than twice
the time of level 4 for 3 % fewer bytes. (zstd at level 3: 175 MiB/s and 2.96.)

ISA-L is five times as fast as that for 10 % more bytes, and eighteen times on what cannot be
compressed, but its bytes may depend on the processor: it is for layers whose times already make
them unlike all others.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from enum import Enum
from itertools import chain
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, Protocol, cast

from ocis2i.blobs import CHUNK, Readable
from ocis2i.errors import ImageError, PolicyError, UsageError
from ocis2i.manifest import OCI_LAYER, OCI_LAYER_GZIP, OCI_LAYER_ZSTD, layer_type_as_oci
from ocis2i.reference import Digest

if TYPE_CHECKING:
    from concurrent.futures import Future

_GZIP_MAGIC = b"\x1f\x8b"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE = b"\x2a\x4d\x18"  # after a first byte of 0x50 to 0x5f (RFC 8878, section 3.1.2)
# What one window may need when reading: the limit of the zstd program itself.
_ZSTD_WINDOW = 1 << 27
_ZSTD_RLE = 1  # a block that is one byte, repeated
_INPUT = 1 << 17
_BUFFER = 1 << 18

DEFAULT_GZIP_LEVEL = 4
DEFAULT_ZSTD_LEVEL = 3
_MEM_LEVEL = 9
# Of ISA-L's levels: 1 and 2 take the same time, 3 twice as long for 2 % fewer bytes.
_FAST_LEVEL = 2
_SAMPLE = 4096
# A sample that keeps so much of its size is of what was compressed or encrypted before.
_DENSE = 0.99
_DICTIONARY = 1 << 15
# What one stored block of deflate can have.
_STORED = 65_535
# Blocks on their way, each with its source and its result: about 2 MiB.
_IN_FLIGHT = 14
_ZSTD_JOB = 2 << 20
_ZSTD_WORKERS = 4


class Compression(Enum):
    """How a layer's tar is stored."""

    GZIP = "gzip"
    ZSTD = "zstd"
    NONE = "none"

    @property
    def media_type(self) -> str:
        """The OCI media type of such a layer."""
        return _MEDIA_TYPES[self]

    @classmethod
    def of_media_type(cls, media_type: str) -> Compression:
        """What a layer's media type (OCI's or Docker's) promises; raises `ImageError`."""
        return _COMPRESSIONS[layer_type_as_oci(media_type)]


_MEDIA_TYPES = {
    Compression.GZIP: OCI_LAYER_GZIP,
    Compression.ZSTD: OCI_LAYER_ZSTD,
    Compression.NONE: OCI_LAYER,
}
# Larger levels of zstd need hundreds of MiB, on the reader's side too.
_LEVELS = {Compression.GZIP: range(10), Compression.ZSTD: range(1, 20)}
_COMPRESSIONS = {media_type: kind for kind, media_type in _MEDIA_TYPES.items()}


def detect(head: bytes) -> Compression:
    """The compression that the first four or more bytes of a blob show."""
    if head.startswith(_GZIP_MAGIC):
        return Compression.GZIP
    if head.startswith(_ZSTD_MAGIC) or (head[1:4] == _ZSTD_SKIPPABLE and head[0] >> 4 == 5):
        return Compression.ZSTD
    return Compression.NONE


# --- reading ----------------------------------------------------------------------------------


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
    head = _read_exactly(stream, len(_ZSTD_MAGIC))
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
        while len(self._input) < len(_GZIP_MAGIC) and (more := self._source.read(_INPUT)):
            self._input += more
        if not self._input.startswith(_GZIP_MAGIC):
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
            if magic != _ZSTD_MAGIC:
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


def _read_exactly(stream: Readable | _Prefixed, size: int) -> bytes:
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


class DiffIdReader:
    """A decompressed stream with the digest of what was read so far."""

    def __init__(self, stream: Readable, *, algorithm: str = "sha256", what: str = "a layer"):
        self._stream = stream
        self._hash = hashlib.new(algorithm)
        self._what = what

    def read(self, size: int = -1, /) -> bytes:
        """Up to `size` bytes."""
        data = self._stream.read(size)
        self._hash.update(data)
        return data

    def feed(self, data: bytes) -> None:
        """Counts in what was read past this reader."""
        self._hash.update(data)

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


# --- writing ----------------------------------------------------------------------------------

_Blocks = Generator[bytes, None, None]


@dataclass(frozen=True, slots=True)
class WrittenLayer:
    """What one pass over a tar made of it; sizes in bytes."""

    digest: Digest
    diff_id: Digest
    size: int
    uncompressed_size: int


class Writable(Protocol):
    """What the blob is written to."""

    def write(self, data: bytes, /) -> int:
        """All of the data."""


def compress(
    source: Readable,
    out: Writable,
    *,
    compression: Compression,
    level: int | None = None,
    workers: int | None = None,
    fast: bool = False,
) -> WrittenLayer:
    """Copies a tar into a blob and computes both digests on the way.

    `level` is 0 to 9 for gzip, 1 to 19 for zstd, and nothing for no compression; `None` is the
    default. `fast`: for the default level of gzip, ISA-L where it is installed, whose bytes may be
    others on other processors. The blob does not depend on `workers`, the number of threads, one
    for each processor that we may use. Memory does not grow with the tar: gzip and zstd's default
    need less than 40 MiB, zstd's highest level some 220. Raises `UsageError` for a level that is
    not there; an `OSError` of `out` is the caller's, who knows its name.
    """
    encode = _encoder(compression, level, workers or len(os.sched_getaffinity(0)), fast=fast)
    tar_hash, blob_hash = hashlib.sha256(), hashlib.sha256()
    sizes = [0, 0]

    def blocks() -> _Blocks:
        while block := _read_exactly(source, CHUNK):
            tar_hash.update(block)
            sizes[0] += len(block)
            yield block

    with closing(encode(blocks())) as pieces:
        for piece in pieces:
            blob_hash.update(piece)
            sizes[1] += len(piece)
            out.write(piece)
    return WrittenLayer(
        Digest(blob_hash.hexdigest()), Digest(tar_hash.hexdigest()), sizes[1], sizes[0]
    )


_Encoder = Callable[[_Blocks], _Blocks]


class _Way(NamedTuple):
    """A library that compresses and counts.

    `deflate` takes a block, what is before it, the level, and whether it is the last one.
    """

    deflate: Callable[[bytes, bytes, int, bool], bytes]
    crc32: Callable[[bytes, int], int]


def _encoder(compression: Compression, level: int | None, workers: int, *, fast: bool) -> _Encoder:
    check_level(compression, level)
    workers = max(1, workers)
    match compression:
        case Compression.GZIP:
            chosen = DEFAULT_GZIP_LEVEL if level is None else level
            way = (_fast_deflate() if fast and level is None else None) or _ZLIB
            return lambda blocks: _gzip(blocks, way, chosen, workers)
        case Compression.ZSTD:
            chosen = DEFAULT_ZSTD_LEVEL if level is None else level
            return lambda blocks: _zstd(blocks, chosen, workers)
        case Compression.NONE:
            return lambda blocks: blocks


def check_level(compression: Compression, level: int | None) -> None:
    """Raises `UsageError` when the compression does not have that level."""
    if level is None:
        return
    if compression not in _LEVELS:
        raise UsageError(
            f"there is no compression to have the level `{level}`",
            hint="leave --compression-level out, or choose gzip or zstd",
        )
    levels = _LEVELS[compression]
    if level not in levels:
        raise UsageError(
            f"{compression.value} has no level `{level}`",
            hint=f"choose one of {levels.start} to {levels.stop - 1}",
        )


def _gzip(blocks: _Blocks, way: _Way, level: int, workers: int) -> _Blocks:
    # No time and no name: the bytes depend on the content only (RFC 1952, section 2.3.1).
    yield b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
    crc, size = 0, 0

    def counted() -> Iterator[tuple[bytes, bytes, int, bool]]:
        nonlocal crc, size
        window = b""
        for block, last in _with_last(blocks):
            crc = way.crc32(block, crc)
            size += len(block)
            yield block, window, level, last
            window = block[-_DICTIONARY:]

    work = counted()
    first = next(work)
    if first[-1]:  # all there is: it needs no thread
        yield way.deflate(*first)
    else:
        yield from _in_threads(way, chain([first], work), workers)
    yield struct.pack("<II", crc, size & 0xFFFFFFFF)


def _in_threads(way: _Way, work: Iterator[tuple[bytes, bytes, int, bool]], workers: int) -> _Blocks:
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 - loads logging

    on_their_way: deque[Future[bytes]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="gzip") as pool:
        try:
            for one in work:
                on_their_way.append(pool.submit(way.deflate, *one))
                # One block waits for each that is worked on, and no more.
                if len(on_their_way) >= min(2 * workers, _IN_FLIGHT):
                    yield on_their_way.popleft().result()
            while on_their_way:
                yield on_their_way.popleft().result()
        finally:
            for future in on_their_way:
                future.cancel()


def _with_last(blocks: _Blocks) -> Iterator[tuple[bytes, bool]]:
    """Each block, and whether it is the last; an empty stream is one empty block."""
    block = next(blocks, b"")
    for following in blocks:
        yield block, False
        block = following
    yield block, True


def _deflate(block: bytes, dictionary: bytes, level: int, last: bool) -> bytes:  # noqa: FBT001
    if level and _is_dense(block, zlib.compress, 1):
        return _stored(block, last=last)
    if dictionary:
        compressor = zlib.compressobj(
            level, wbits=-zlib.MAX_WBITS, memLevel=_MEM_LEVEL, zdict=dictionary
        )
    else:
        compressor = zlib.compressobj(level, wbits=-zlib.MAX_WBITS, memLevel=_MEM_LEVEL)
    data = compressor.compress(block)
    return data + compressor.flush(zlib.Z_FINISH if last else zlib.Z_SYNC_FLUSH)


_ZLIB = _Way(_deflate, zlib.crc32)


def _is_dense(
    block: bytes, compress_sample: Callable[[bytes, int], bytes], long_level: int
) -> bool:
    """Whether a block will not become smaller, by a few samples: zlib is slowest with those.

    `long_level` is that for the long sample, to find what repeats itself far apart.
    """
    if len(block) < 4 * _DICTIONARY:
        return False
    step = len(block) // 8
    # The last is as long as what zlib looks back: dense data may repeat itself. What is not dense
    # is mostly known by a short one.
    samples = [(block[at * step : at * step + _SAMPLE], 1) for at in range(1, 8)]
    samples.append((block[: 2 * _DICTIONARY], long_level))
    return all(
        len(compress_sample(sample, level)) > _DENSE * len(sample) for sample, level in samples
    )


def _stored(block: bytes, *, last: bool) -> bytes:
    """A block that is not compressed (RFC 1951, section 3.2.4); what is before it ends at a byte.

    zlib's level 0 makes the same of it, and takes fifty times as long.
    """
    view = memoryview(block)
    parts: list[bytes | memoryview] = []
    for at in range(0, len(block), _STORED):
        piece = view[at : at + _STORED]
        final = last and at + _STORED >= len(block)
        parts += [struct.pack("<BHH", final, len(piece), len(piece) ^ 0xFFFF), piece]
    return b"".join(parts)


def _fast_deflate() -> _Way | None:
    """The same by ISA-L; `None` where it is not installed."""
    try:
        from isal import isal_zlib  # noqa: PLC0415 - for who writes a layer
    except ImportError:
        return None

    def deflate(block: bytes, dictionary: bytes, _: int, last: bool) -> bytes:  # noqa: FBT001
        # ISA-L knows by itself what is dense, and takes three times as long to find it out. Of
        # its levels only the third sees repetitions in what is dense otherwise.
        if _is_dense(block, isal_zlib.compress, 3):
            return _stored(block, last=last)
        compressor = isal_zlib.compressobj(_FAST_LEVEL, wbits=-zlib.MAX_WBITS, zdict=dictionary)
        data: bytes = compressor.compress(block)
        end: bytes = compressor.flush(zlib.Z_FINISH if last else zlib.Z_SYNC_FLUSH)
        return data + end

    return _Way(deflate, isal_zlib.crc32)


def _zstd(blocks: _Blocks, level: int, workers: int) -> _Blocks:
    # Always the multi-threaded way, with jobs of a fixed size: its bytes are the same for any
    # number of threads, those of the single-threaded way are different ones.
    import zstandard  # noqa: PLC0415 - few images need it

    parameters = zstandard.ZstdCompressionParameters.from_level(
        level, threads=min(workers, _ZSTD_WORKERS), job_size=_ZSTD_JOB, write_checksum=True
    )
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    for block in blocks:
        if piece := compressor.compress(block):
            yield piece
    yield compressor.flush()
