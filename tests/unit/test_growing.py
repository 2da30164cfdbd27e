"""A blob that is read while it is written."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ocis2i.growing import Growing
from ocis2i.manifest import OCI_LAYER, Descriptor
from ocis2i.reference import Digest
from ocis2i.retries import CancelledError

DATA = bytes(range(256)) * 4096


@pytest.fixture
def begun() -> list[Growing]:
    return []


@pytest.fixture
def growing(tmp_path: Path, begun: list[Growing]) -> Iterator[Growing]:
    with (tmp_path / "blob").open("w+b") as file:
        blob = Growing(file, begun.append, 1000)
        yield blob
        blob.close()


def whole(data: bytes) -> Descriptor:
    return Descriptor(OCI_LAYER, Digest.of(data), len(data))


def test_a_small_blob_is_not_begun(growing: Growing, begun: list[Growing]) -> None:
    growing.write(b"x" * 999)
    assert not begun and not growing.begun
    growing.write(b"x")
    growing.write(b"x" * 5000)
    assert begun == [growing] and growing.begun


def test_a_reader_gets_all_of_it_and_waits_for_the_end(growing: Growing) -> None:
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.extend(growing))
    reader.start()
    for at in range(0, len(DATA), 70_001):
        growing.write(DATA[at : at + 70_001])
    assert reader.is_alive()
    growing.complete(whole(DATA))
    reader.join(20)
    assert b"".join(found) == DATA
    assert growing.descriptor() == whole(DATA)


def test_it_can_be_read_again_also_when_its_file_has_gone(growing: Growing, tmp_path: Path) -> None:
    growing.write(DATA)
    growing.complete(whole(DATA))
    (tmp_path / "blob").unlink()
    assert b"".join(growing) == b"".join(growing) == DATA


def test_who_waits_for_more_hears_that_there_will_be_none(growing: Growing) -> None:
    heard: list[BaseException] = []

    def read() -> None:
        try:
            list(growing)
        except CancelledError as error:
            heard.append(error)

    growing.write(DATA)
    reader = threading.Thread(target=read)
    reader.start()
    growing.give_up()
    reader.join(20)
    assert len(heard) == 1
    with pytest.raises(CancelledError):
        growing.descriptor()


def test_what_was_given_up_stays_so(growing: Growing) -> None:
    growing.write(DATA)
    growing.complete(whole(DATA))
    growing.give_up()
    with pytest.raises(CancelledError):
        next(iter(growing))
