"""The two libraries that inflate layers take the same, and refuse the same."""

from __future__ import annotations

import gzip
import io
import random

import pytest

from ocis2i.decompression import DiffIdReader, open_decompressed
from ocis2i.errors import ImageError, PolicyError
from ocis2i.manifest import OCI_LAYER, OCI_LAYER_GZIP
from ocis2i.reference import Digest

MIB = 1 << 20


def inflated(blob: bytes, *, large: bool, step: int = 50_000) -> bytes | None:
    """What comes out; `None` when it is refused."""
    parts = []
    try:
        with open_decompressed(io.BytesIO(blob), OCI_LAYER_GZIP, large=large) as reader:
            while part := reader.read1(step):
                assert len(part) <= step
                parts.append(part)
    except ImageError:
        return None
    return b"".join(parts)


def hurt(blob: bytes, way: str, dice: random.Random) -> bytes:
    """Blobs as bad disks, lines and people make them."""
    match way:
        case "bits":
            data = bytearray(blob)
            data[dice.randrange(4, len(data))] ^= 1 << dice.randrange(8)
            return bytes(data)
        case "cut":
            return blob[: dice.randrange(4, len(blob))]
        case "more":
            return blob + dice.choice([b"\0" * 10, b"junk", b"\x1f\x8b", gzip.compress(b"more")])
        case _:
            return blob


@pytest.mark.parametrize("way", ["whole", "bits", "cut", "more"])
def test_both_libraries_judge_alike(way: str) -> None:
    dice = random.Random(f"gzip {way}")
    for _ in range(150):
        plain = dice.randbytes(dice.randrange(300)) + b"abc" * dice.randrange(3000)
        blob = hurt(gzip.compress(plain, dice.choice([0, 1, 6, 9])), way, dice)
        expected = inflated(blob, large=False)
        assert inflated(blob, large=True) == expected
        if way == "whole":
            assert expected == plain


def test_bomb_is_met_in_pieces_and_stopped_by_the_limit() -> None:
    bomb = gzip.compress(bytes(16 * MIB))
    with (
        open_decompressed(io.BytesIO(bomb), OCI_LAYER_GZIP, limit=3 * MIB, large=True) as reader,
        pytest.raises(PolicyError, match="unpacks to more than"),
    ):
        while part := reader.read1(100 * MIB):
            assert len(part) <= MIB


@pytest.mark.parametrize("large", [False, True])
def test_pieces_and_whole_reads_may_take_turns(*, large: bool) -> None:
    plain = random.Random(1).randbytes(3 * MIB)
    with open_decompressed(
        io.BytesIO(gzip.compress(plain, 1)), OCI_LAYER_GZIP, large=large
    ) as reader:
        found = reader.read(10)
        for _ in range(20):
            found += reader.read1(7) + reader.read(100_000) + reader.read1(MIB)
        found += reader.read()
    assert found == plain


def test_digest_counts_pieces_and_whole_reads() -> None:
    plain = b"header" + bytes(1000)
    tar = DiffIdReader(open_decompressed(io.BytesIO(plain), OCI_LAYER))
    first = tar.read1(100)
    assert first
    assert plain.startswith(first)
    assert tar.read(6) == plain[len(first) : len(first) + 6]
    tar.finish(Digest.of(plain))
