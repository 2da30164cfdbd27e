from __future__ import annotations

import base64
import gzip
import hashlib
import io
import random
import subprocess
import threading
import tracemalloc
import zlib
from collections.abc import Callable

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from ocis2i import compression
from ocis2i.compression import Compression, compress, detect
from ocis2i.decompression import DiffIdReader, open_decompressed
from ocis2i.errors import ImageError, PolicyError, UsageError
from ocis2i.manifest import (
    DOCKER_LAYER,
    DOCKER_LAYER_GZIP,
    OCI_LAYER,
    OCI_LAYER_GZIP,
    OCI_LAYER_ZSTD,
)
from ocis2i.reference import Digest

MIB = 1 << 20


def mixed(size: int) -> bytes:
    """Half noise, half text, in turns: neither stored blocks only nor matches only."""
    source = random.Random(7)
    data = bytearray()
    while len(data) < size:
        data += source.randbytes(40_000) + b"the same words again and again " * 2000
    return bytes(data[:size])


DATA = mixed(3 * MIB + 12_345)


class Trickle:
    """A stream that gives less than it is asked for, as pipes and sockets do."""

    def __init__(self, data: bytes, step: int = 1000) -> None:
        self._stream = io.BytesIO(data)
        self._step = step
        self.closed = False

    def read(self, size: int = -1, /) -> bytes:
        return self._stream.read(self._step if size < 0 else min(size, self._step))

    def close(self) -> None:
        self.closed = True


def packed(data: bytes, kind: Compression, level: int | None = None, workers: int = 2) -> bytes:
    out = io.BytesIO()
    written = compress(io.BytesIO(data), out, compression=kind, level=level, workers=workers)
    blob = out.getvalue()
    assert written.digest == Digest.of(blob)
    assert written.diff_id == Digest.of(data)
    assert (written.size, written.uncompressed_size) == (len(blob), len(data))
    return blob


def unpacked(blob: bytes, media_type: str, limit: int | None = None) -> bytes:
    with open_decompressed(io.BytesIO(blob), media_type, limit=limit) as reader:
        return reader.read()


SIZES = [0, 1, MIB - 1, MIB, MIB + 1, 2 * MIB, len(DATA)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", Compression)
def test_what_was_compressed_comes_out_again(kind: Compression, size: int) -> None:
    blob = packed(DATA[:size], kind)
    assert unpacked(blob, kind.media_type) == DATA[:size]


@pytest.mark.parametrize("size", SIZES)
def test_other_readers_of_gzip_accept_ours(size: int) -> None:
    blob = packed(DATA[:size], Compression.GZIP)
    assert gzip.decompress(blob) == DATA[:size]
    single = zlib.decompressobj(wbits=31)
    assert single.decompress(blob) == DATA[:size]
    assert single.eof and not single.unused_data
    assert subprocess.run(["gzip", "-t"], input=blob, check=False).returncode == 0


def test_python_zstandard_accepts_our_zstd_in_one_frame() -> None:
    blob = packed(DATA, Compression.ZSTD)
    assert zstandard.ZstdDecompressor().decompressobj().decompress(blob) == DATA


@pytest.mark.parametrize("kind", Compression)
def test_the_blob_does_not_depend_on_the_number_of_threads(kind: Compression) -> None:
    data = mixed(9 * MIB)
    assert len({packed(data, kind, workers=workers) for workers in (1, 2, 5)}) == 1


@pytest.mark.parametrize("kind", Compression)
def test_the_blob_does_not_depend_on_how_the_source_is_cut(kind: Compression) -> None:
    out = io.BytesIO()
    compress(Trickle(DATA[:100_000], 777), out, compression=kind, level=None, workers=2)
    assert out.getvalue() == packed(DATA[:100_000], kind)


def test_the_gzip_header_names_neither_time_nor_system() -> None:
    assert packed(b"x", Compression.GZIP)[:10] == bytes.fromhex("1f8b08000000000000ff")


def test_blocks_profit_from_the_block_before() -> None:
    text = random.Random(1).randbytes(30_000) * 70
    alone = len(zlib.compress(text, 4))
    assert len(packed(text, Compression.GZIP, level=4)) < alone * 1.01 + 100


def fast(data: bytes, workers: int = 2, step: int = MIB) -> bytes:
    out = io.BytesIO()
    source = Trickle(data, step)
    written = compress(source, out, compression=Compression.GZIP, workers=workers, fast=True)
    assert written.digest == Digest.of(out.getvalue())
    assert written.diff_id == Digest.of(data)
    return out.getvalue()


@pytest.mark.parametrize("size", [0, 1, MIB - 1, MIB, MIB + 1, len(DATA)])
def test_the_fast_way_gives_one_gzip_member_that_all_can_read(size: int) -> None:
    blob = fast(DATA[:size])
    assert gzip.decompress(blob) == DATA[:size]
    reader = zlib.decompressobj(wbits=31)
    reader.decompress(blob)
    assert reader.eof and not reader.unused_data
    assert blob == fast(DATA[:size], workers=1, step=1000)


def test_a_level_is_never_for_the_fast_way() -> None:
    out = io.BytesIO()
    compress(io.BytesIO(DATA), out, compression=Compression.GZIP, level=4, fast=True)
    assert out.getvalue() == packed(DATA, Compression.GZIP, 4)


def test_the_fast_way_is_the_usual_one_where_its_package_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compression, "_fast_deflate", lambda: None)
    assert fast(DATA) == packed(DATA, Compression.GZIP)


def test_what_is_dense_is_stored_as_it_is() -> None:
    noise = random.Random(3).randbytes(2 * MIB)
    assert len(noise) < len(packed(noise, Compression.GZIP)) < len(noise) * 1.001
    # One compressible sample is enough for another try.
    some = noise[: MIB // 2] + bytes(MIB // 2) + noise[:MIB]
    assert len(packed(some, Compression.GZIP)) < 1.6 * MIB


@pytest.mark.parametrize("size", [MIB // 8, MIB, MIB + MIB // 2, 3 * MIB])
@pytest.mark.parametrize("quick", [False, True])
def test_dense_data_is_stored_so_that_all_can_read_it(size: int, quick: bool) -> None:
    noise = random.Random(size).randbytes(size)
    for data in (noise, b"text " * 200_000 + noise, noise + b"text " * 200_000):
        blob = fast(data) if quick else packed(data, Compression.GZIP)
        assert gzip.decompress(blob) == data
        # Header, end, and five bytes for each 64 KiB.
        assert len(blob) < size + 50_000
    assert (
        len(fast(noise) if quick else packed(noise, Compression.GZIP)) <= size + 100 + size // 6000
    )


def test_dense_data_that_repeats_itself_is_not_stored() -> None:
    noise = random.Random(5).randbytes(20_000)
    assert len(packed(noise * 100, Compression.GZIP)) < 200_000
    assert len(fast(noise[:5000] * 400)) < 1_600_000


def test_data_of_few_kinds_of_bytes_is_not_dense() -> None:
    letters = base64.b64encode(random.Random(6).randbytes(MIB))
    for blob in (fast(letters), packed(letters, Compression.GZIP)):
        assert len(blob) < 0.78 * len(letters)


def test_one_block_needs_no_thread() -> None:
    class Counting(io.BytesIO):
        def write(self, data: object, /) -> int:
            threads.update(one.name for one in threading.enumerate())
            return 0

    threads: set[str] = set()
    compress(io.BytesIO(DATA[:MIB]), Counting(), compression=Compression.GZIP, workers=2)
    assert not [name for name in threads if name.startswith("gzip")]


def test_a_higher_level_is_smaller() -> None:
    sizes = [len(packed(DATA, Compression.GZIP, level)) for level in (0, 1, 9)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > len(DATA)


@pytest.mark.parametrize(
    ("kind", "level"),
    [
        (Compression.GZIP, 10),
        (Compression.GZIP, -1),
        (Compression.ZSTD, 0),
        (Compression.ZSTD, 20),
        (Compression.NONE, 1),
    ],
)
def test_a_level_that_is_not_there_is_refused(kind: Compression, level: int) -> None:
    with pytest.raises(UsageError, match=f"level `{level}`"):
        packed(b"x", kind, level)


@pytest.mark.parametrize("kind", Compression)
def test_memory_stays_flat_while_compressing(kind: Compression) -> None:
    class Zeros:
        left = 200 * MIB

        def read(self, size: int = -1, /) -> bytes:
            size = min(size, self.left)
            self.left -= size
            return noise[:size]

        def close(self) -> None: ...

    class Nowhere(io.BytesIO):
        def write(self, data: object, /) -> int:
            return 0

    noise = random.Random(3).randbytes(MIB)
    tracemalloc.start()
    compress(Zeros(), Nowhere(), compression=kind, level=1 if kind.value != "none" else None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 * MIB


def test_a_failing_destination_leaves_no_thread_behind() -> None:
    class Full(io.BytesIO):
        def write(self, data: object, /) -> int:
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        compress(io.BytesIO(DATA), Full(), compression=Compression.GZIP, workers=3)
    assert not [one for one in threading.enumerate() if one.name.startswith("gzip")]


def test_a_failing_source_is_not_mistaken_for_its_end() -> None:
    class Broken(Trickle):
        def read(self, size: int = -1, /) -> bytes:
            return super().read(size) or self.fail()

        def fail(self) -> bytes:
            raise ImageError("gone")

    with pytest.raises(ImageError, match="gone"):
        compress(Broken(b"x" * 5000), io.BytesIO(), compression=Compression.GZIP, workers=2)


# --- reading ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("media_type", "kind"),
    [
        (OCI_LAYER, Compression.NONE),
        (OCI_LAYER_GZIP, Compression.GZIP),
        (OCI_LAYER_ZSTD, Compression.ZSTD),
        (DOCKER_LAYER, Compression.NONE),
        (DOCKER_LAYER_GZIP, Compression.GZIP),
    ],
)
def test_a_media_type_says_the_compression(media_type: str, kind: Compression) -> None:
    assert Compression.of_media_type(media_type) is kind
    blob = packed(b"some tar", kind)
    assert detect(blob) is kind
    assert unpacked(blob, media_type) == b"some tar"


def test_a_media_type_that_is_no_layer_is_refused() -> None:
    with pytest.raises(ImageError, match="cannot be read"):
        open_decompressed(io.BytesIO(b""), "application/json")


@pytest.mark.parametrize(
    ("data", "media_type", "message"),
    [
        (gzip.compress(b"x"), OCI_LAYER, "not compressed .* but is gzip data"),
        (gzip.compress(b"x"), OCI_LAYER_ZSTD, "zstd data .* but is gzip data"),
        (b"plain text", OCI_LAYER_GZIP, "gzip data .* but is not compressed"),
        (zstandard.compress(b"x"), OCI_LAYER_GZIP, "gzip data .* but is zstd data"),
        (b"", OCI_LAYER_GZIP, "gzip data"),
        (b"", OCI_LAYER_ZSTD, "zstd data"),
    ],
)
def test_data_of_another_kind_than_announced_is_refused(
    data: bytes, media_type: str, message: str
) -> None:
    with pytest.raises(ImageError, match=message):
        open_decompressed(io.BytesIO(data), media_type, what="blob `sha256:abc`")


def test_several_gzip_members_are_one_tar() -> None:
    blob = gzip.compress(b"one ") + gzip.compress(b"") + gzip.compress(b"two")
    assert unpacked(blob, OCI_LAYER_GZIP) == b"one two"


def test_several_zstd_frames_are_one_tar() -> None:
    skippable = b"\x5a\x2a\x4d\x18" + (7).to_bytes(4, "little") + b"padding"
    blob = skippable + zstandard.compress(b"one ") + skippable + zstandard.compress(b"two")
    assert unpacked(blob + skippable, OCI_LAYER_ZSTD) == b"one two"


Packer = Callable[[bytes], bytes]


def frames_of_all_shapes() -> list[bytes]:
    shapes = []
    for size in (0, 1, 300, 70_000, 400_000):
        data = DATA[:size]
        shapes.append(zstandard.compress(data))
        for checksum in (False, True):
            maker = zstandard.ZstdCompressor(
                write_checksum=checksum, write_content_size=False, level=5
            ).compressobj()
            shapes.append(maker.compress(data) + maker.flush())
    shapes.append(zstandard.compress(bytes(500_000)))
    return shapes


def test_zstd_frames_of_all_shapes_end_where_they_end() -> None:
    shapes = frames_of_all_shapes()
    whole = b"".join(zstandard.ZstdDecompressor().decompressobj().decompress(s) for s in shapes)
    assert unpacked(b"".join(shapes), OCI_LAYER_ZSTD) == whole
    with open_decompressed(Trickle(b"".join(shapes), 11), OCI_LAYER_ZSTD) as reader:
        assert reader.read() == whole


@pytest.mark.parametrize(
    ("pack", "media_type"),
    [(gzip.compress, OCI_LAYER_GZIP), (zstandard.compress, OCI_LAYER_ZSTD)],
)
class TestDamage:
    def test_truncated_anywhere_is_refused(self, pack: Packer, media_type: str) -> None:
        blob = pack(DATA[:3000]) + pack(b"and a second part")
        boundary = len(pack(DATA[:3000]))
        for end in {*range(1, 60), *range(boundary - 40, len(blob))} - {boundary}:
            with pytest.raises(ImageError):
                unpacked(blob[:end], media_type)

    def test_trailing_garbage_is_refused(self, pack: Packer, media_type: str) -> None:
        for garbage in (b"\0", b"g", b"junk", b"\0" * 600, pack(b"")[:2], pack(b"")[:5]):
            stream = io.BytesIO(pack(b"data") + garbage)
            reader = open_decompressed(stream, media_type, what="blob `x`")
            with pytest.raises(ImageError, match=r"broken (gzip|zstd) data in blob `x`"):
                reader.read()

    def test_a_flipped_byte_never_gives_other_data_silently(
        self, pack: Packer, media_type: str
    ) -> None:
        blob = bytearray(pack(DATA[:3000]))
        for at in range(len(blob) - 9, len(blob)):
            damaged = bytes(blob[:at]) + bytes([blob[at] ^ 0x55]) + bytes(blob[at + 1 :])
            try:
                result = unpacked(damaged, media_type)
            except ImageError:
                continue
            # zstandard.compress writes no checksum: the diff_id is what finds such damage.
            assert media_type == OCI_LAYER_ZSTD
            assert result != DATA[:3000]

    def test_a_bomb_is_stopped_at_the_limit(self, pack: Packer, media_type: str) -> None:
        bomb = pack(bytes(64 * MIB))
        assert len(bomb) < MIB / 8
        tracemalloc.start()
        reader = open_decompressed(io.BytesIO(bomb), media_type, limit=3 * MIB)
        with pytest.raises(PolicyError, match=r"more than 3145728 bytes"):
            while reader.read(65536):
                pass
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 8 * MIB

    def test_exactly_the_limit_is_allowed(self, pack: Packer, media_type: str) -> None:
        assert len(unpacked(pack(bytes(5000)), media_type, limit=5000)) == 5000

    def test_small_and_large_reads_give_the_same(self, pack: Packer, media_type: str) -> None:
        blob = pack(DATA)
        for step in (512, 4096, 100_000, 3 * MIB):
            found = hashlib.sha256()
            with open_decompressed(Trickle(blob, 50_000), media_type) as reader:
                while data := reader.read(step):
                    assert len(data) == step or not reader.read(1)
                    found.update(data)
            assert found.digest() == hashlib.sha256(DATA).digest()


def test_closing_the_reader_closes_the_stream() -> None:
    stream = Trickle(b"tar")
    open_decompressed(stream, OCI_LAYER).close()
    assert stream.closed


def test_a_read_of_nothing_is_not_the_end() -> None:
    with open_decompressed(io.BytesIO(gzip.compress(b"data")), OCI_LAYER_GZIP) as reader:
        assert reader.read(0) == b""
        assert reader.read(2) == b"da"
        assert reader.read() == b"ta"
        assert reader.read() == b""


@given(st.binary(max_size=2000), st.sampled_from(list(Compression)), st.integers(1, 700))
def test_law_reading_undoes_writing(data: bytes, kind: Compression, step: int) -> None:
    data = b"name" + data  # a plain tar that begins like gzip data is refused on purpose
    with open_decompressed(Trickle(packed(data, kind), step), kind.media_type) as reader:
        assert reader.read() == data


@given(st.binary(max_size=300))
def test_law_arbitrary_data_gives_an_image_error_or_data(data: bytes) -> None:
    for media_type, magic in ((OCI_LAYER_GZIP, b"\x1f\x8b\x08"), (OCI_LAYER_ZSTD, b"(\xb5/\xfd")):
        try:
            unpacked(magic + data, media_type, limit=MIB)
        except (ImageError, PolicyError) as error:
            assert error.message


def test_the_diff_id_covers_what_was_not_read() -> None:
    data = b"entries" + bytes(2 * MIB)
    reader = DiffIdReader(io.BytesIO(data))
    assert reader.read(7) == b"entries"
    reader.finish(Digest.of(data))


def test_a_wrong_diff_id_is_named() -> None:
    reader = DiffIdReader(io.BytesIO(b"tar"), what="blob `sha256:1`")
    with pytest.raises(ImageError, match="blob `sha256:1` unpacks to `sha256:"):
        reader.finish(Digest.of(b"another"))


def test_a_diff_id_of_another_algorithm_can_be_checked() -> None:
    expected = Digest(hashlib.sha512(b"tar").hexdigest(), "sha512")
    reader = DiffIdReader(io.BytesIO(b"tar"), algorithm="sha512")
    reader.finish(expected)
    assert reader.read() == b""


def test_the_numbers_in_the_module_are_the_defaults() -> None:
    assert packed(DATA, Compression.GZIP) == packed(DATA, Compression.GZIP, 4)
    assert packed(DATA, Compression.ZSTD) == packed(DATA, Compression.ZSTD, 3)
    assert compression.DEFAULT_GZIP_LEVEL == 4
