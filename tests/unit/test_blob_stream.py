"""Blobs that are read while they come."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest

from ocis2i.blob_stream import BlobStream
from ocis2i.errors import RegistryError
from ocis2i.keychain import Keychain
from ocis2i.manifest import Descriptor
from ocis2i.registry import Registry
from ocis2i.registry.downloads import BadContentError
from ocis2i.retries import CancelledError
from tests.fakes.registry import FakeRegistry

DATA = os.urandom(5 << 20)
HALF = 2_500_000


@pytest.fixture
def fake() -> Iterator[FakeRegistry]:
    with FakeRegistry() as running:
        yield running


@pytest.fixture
def client(fake: FakeRegistry) -> Iterator[Registry]:
    del fake  # it has to be there before
    with Registry(Keychain({}), environment={}, sleep=lambda _: None) as registry:
        yield registry


def offered(fake: FakeRegistry, data: bytes = DATA) -> Descriptor:
    return fake.put_blob("app", data)


def read_all(stream: BlobStream) -> bytes:
    with stream:
        return b"".join(iter(lambda: stream.read(100_000), b""))


@pytest.mark.parametrize("data", [DATA, b"x", b""], ids=["large", "one byte", "empty"])
def test_all_bytes_come(fake: FakeRegistry, client: Registry, data: bytes) -> None:
    blob = offered(fake, data)
    assert read_all(BlobStream(client, fake.reference("app"), blob)) == data


def test_broken_connection_is_gone_on_with(fake: FakeRegistry, client: Registry) -> None:
    blob = offered(fake)
    fake.fail("GET", str(blob.digest), truncate=HALF)
    assert read_all(BlobStream(client, fake.reference("app"), blob)) == DATA
    assert [get.headers.get("range") for get in fake.requests("GET", "blobs")] == [
        None,
        f"bytes={HALF}-",
    ]


def test_no_byte_comes_twice_when_the_registry_begins_again(
    fake: FakeRegistry, client: Registry
) -> None:
    blob = offered(fake)
    fake.fail("GET", str(blob.digest), truncate=HALF)
    fake.fail("GET", str(blob.digest), status=200, body=DATA)
    assert read_all(BlobStream(client, fake.reference("app"), blob)) == DATA


def test_wrong_bytes_are_known_at_their_end_and_not_asked_for_again(
    fake: FakeRegistry, client: Registry
) -> None:
    blob = offered(fake)
    fake.fail("GET", str(blob.digest), corrupt=True)
    with pytest.raises(BadContentError, match="has digest"):
        read_all(BlobStream(client, fake.reference("app"), blob))
    assert len(fake.requests("GET", "blobs")) == 1


def test_bytes_that_passed_before_the_registry_began_again_are_verified(
    fake: FakeRegistry, client: Registry
) -> None:
    # The second answer is right as a whole, but half of the first is what the reader has got.
    blob = offered(fake)
    fake.fail("GET", str(blob.digest), truncate=HALF, corrupt=True)
    fake.fail("GET", str(blob.digest), status=200, body=DATA)
    with pytest.raises(BadContentError, match="has digest"):
        read_all(BlobStream(client, fake.reference("app"), blob))


def test_web_page_in_place_of_the_blob_is_not_passed_on(
    fake: FakeRegistry, client: Registry
) -> None:
    blob = offered(fake)
    fake.fail("GET", str(blob.digest), times=-1, status=200, body=b"<html>")
    with (
        BlobStream(client, fake.reference("app"), blob) as stream,
        pytest.raises(RegistryError, match="came with 6 bytes"),
    ):
        stream.read(1)


def test_missing_blob_is_an_error_of_the_registry(fake: FakeRegistry, client: Registry) -> None:
    blob = offered(fake)
    fake.fail("GET", str(blob.digest), times=-1, status=404)
    with pytest.raises(RegistryError, match="404"):
        read_all(BlobStream(client, fake.reference("app"), blob))


def test_cancelled_stream_ends_although_the_registry_is_silent(
    fake: FakeRegistry, client: Registry
) -> None:
    blob = offered(fake)
    fake.fail("GET", str(blob.digest), truncate=HALF, silent=True)
    cancel = threading.Event()
    with BlobStream(client, fake.reference("app"), blob, cancel) as stream:
        got = 0
        while got < HALF:
            got += len(stream.read(100_000))
        cancel.set()
        with pytest.raises(CancelledError):
            stream.read(1)
    fake.over.set()


def test_little_is_taken_from_the_registry_before_it_is_read(
    fake: FakeRegistry, client: Registry
) -> None:
    waiting: list[int] = []
    stream = BlobStream(client, fake.reference("app"), offered(fake, DATA * 4))
    inlet = stream._tube._into  # what waits cannot be seen from outside
    for size in (1, 1000, 1 << 20, 3 << 20) * 3:
        stream.read(size)
        waiting.append(inlet._waiting)
    assert (DATA * 4).endswith(read_all(stream))
    assert max(waiting) <= 1 << 20


def test_stream_may_be_left_in_the_middle(fake: FakeRegistry, client: Registry) -> None:
    blob = offered(fake)
    with BlobStream(client, fake.reference("app"), blob) as stream:
        stream.read(1000)
    assert read_all(BlobStream(client, fake.reference("app"), blob)) == DATA
