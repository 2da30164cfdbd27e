"""Downloads that break, stall, are given up and gone on with, by this process or the next."""

from __future__ import annotations

import errno
import io
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO

import pytest

from ocis2i.errors import OutputError, RegistryError
from ocis2i.events import Event, Transfer
from ocis2i.keychain import Keychain
from ocis2i.manifest import OCI_LAYER_GZIP, Descriptor
from ocis2i.reference import Digest
from ocis2i.registry import Registry
from ocis2i.retries import CancelledError
from ocis2i.store import Store
from tests.fakes.registry import FakeRegistry

DATA = bytes(range(256)) * (3 << 12)  # 3 MiB
BLOB = Descriptor(OCI_LAYER_GZIP, Digest.of(DATA), len(DATA))
HALF = 1_500_000


@pytest.fixture
def fake() -> Iterator[FakeRegistry]:
    with FakeRegistry() as running:
        running.put_blob("app", DATA)
        yield running


@pytest.fixture
def registry() -> Registry:
    return Registry(Keychain({}), environment={}, sleep=lambda _: None, stall_seconds=0.3)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store")


def fetch(store: Store, registry: Registry, fake: FakeRegistry) -> None:
    store.fetch_blob(BLOB, partial(registry.fetch_blob, fake.reference("app:1"), BLOB, resume=True))


def parts(store: Store) -> list[Path]:
    return sorted((store.root / "tmp").iterdir())


def break_down(store: Store, registry: Registry, fake: FakeRegistry) -> None:
    """A download that breaks in the middle for good."""
    fake.fail("GET", "blobs", truncate=HALF)
    fake.fail("GET", "blobs", status=404)
    with pytest.raises(RegistryError, match="answered 404"):
        fetch(store, registry, fake)
    fake.log.clear()


# --- stalls -----------------------------------------------------------------------------------


def test_download_that_falls_silent_goes_on_over_another_connection(
    fake: FakeRegistry, registry: Registry
) -> None:
    fake.fail("GET", "blobs", truncate=HALF, silent=True)
    into = io.BytesIO()
    registry.fetch_blob(fake.reference("app:1"), BLOB, into)
    assert into.getvalue() == DATA
    assert fake.requests("GET", "blobs")[1].headers["range"] == f"bytes={HALF}-"


def test_upload_that_nobody_reads_is_begun_anew(fake: FakeRegistry, registry: Registry) -> None:
    # More than the buffers of both ends can take.
    data = bytes(32 << 20)
    blob = Descriptor(OCI_LAYER_GZIP, Digest.of(data), len(data))
    fake.fail("PUT", "uploads", reset_after=1000, silent=True)
    pushed = registry.push_blob(fake.reference("app:1"), blob, lambda: io.BytesIO(data))
    assert pushed == "sent"
    assert len(fake.requests("PUT")) == 2


# --- going on in another process --------------------------------------------------------------


def test_next_try_asks_for_the_rest_alone(
    fake: FakeRegistry, registry: Registry, store: Store
) -> None:
    break_down(store, registry, fake)
    (part,) = parts(store)
    assert part.name == f"sha256-{BLOB.digest.hex}.part"
    assert part.read_bytes() == DATA[:HALF]
    fetch(store, registry, fake)
    (get,) = fake.requests("GET", "blobs")
    assert get.headers["range"] == f"bytes={HALF}-"
    assert store.blob_path(BLOB.digest).read_bytes() == DATA
    assert not parts(store)


def test_progress_begins_where_the_part_ends(fake: FakeRegistry, store: Store) -> None:
    events: list[Event] = []
    registry = Registry(Keychain({}), environment={}, sleep=lambda _: None, report=events.append)
    break_down(store, registry, fake)
    events.clear()
    fetch(store, registry, fake)
    moved = [event for event in events if isinstance(event, Transfer)]
    assert min(event.done for event in moved) > HALF
    assert moved[-1].state == "done"


def test_whole_part_needs_no_request(fake: FakeRegistry, registry: Registry, store: Store) -> None:
    (store.root / "tmp" / f"sha256-{BLOB.digest.hex}.part").write_bytes(DATA)
    fetch(store, registry, fake)
    assert not fake.requests("GET", "blobs")
    assert store.has_blob(BLOB)


@pytest.mark.parametrize("wrong", [bytes(HALF), DATA + b"!", bytes(len(DATA))])
def test_wrong_part_is_dropped_and_all_fetched(
    fake: FakeRegistry, registry: Registry, store: Store, wrong: bytes
) -> None:
    (store.root / "tmp" / f"sha256-{BLOB.digest.hex}.part").write_bytes(wrong)
    fetch(store, registry, fake)
    assert "range" not in fake.requests("GET", "blobs")[-1].headers
    assert store.blob_path(BLOB.digest).read_bytes() == DATA


def test_registry_without_ranges_sends_all_again(
    fake: FakeRegistry, registry: Registry, store: Store
) -> None:
    break_down(store, registry, fake)
    fake.fail("GET", "blobs", status=200, body=DATA)
    fetch(store, registry, fake)
    assert store.blob_path(BLOB.digest).read_bytes() == DATA


def test_blob_that_is_always_wrong_leaves_no_part(
    fake: FakeRegistry, registry: Registry, store: Store
) -> None:
    fake.fail("GET", "blobs", times=-1, corrupt=True)
    with pytest.raises(RegistryError, match="came with digest"):
        fetch(store, registry, fake)
    assert not parts(store)
    assert not store.has_blob(BLOB)


def test_cancelled_download_keeps_its_part(fake: FakeRegistry, store: Store) -> None:
    cancel = threading.Event()

    def report(event: Event) -> None:
        if isinstance(event, Transfer) and event.done > HALF:
            cancel.set()

    registry = Registry(Keychain({}), environment={}, report=report)
    fill = partial(registry.fetch_blob, fake.reference("app:1"), BLOB, resume=True, cancel=cancel)
    with pytest.raises(CancelledError):
        store.fetch_blob(BLOB, fill)
    (part,) = parts(store)
    have = part.read_bytes()
    assert HALF < len(have) < len(DATA)
    assert DATA.startswith(have)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_is_named_and_given_its_space_back(store: Store, number: int) -> None:
    def fill(file: BinaryIO) -> None:
        file.write(DATA[:HALF])
        raise OSError(number, "full")

    with pytest.raises(OutputError, match="the disk is full"):
        store.fetch_blob(BLOB, fill)
    assert not parts(store)


def test_other_trouble_with_the_disk_keeps_the_part(store: Store) -> None:
    def fill(file: BinaryIO) -> None:
        file.write(DATA[:HALF])
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(OutputError, match="Input/output error"):
        store.fetch_blob(BLOB, fill)
    assert len(parts(store)) == 1


# --- what a registry may send -----------------------------------------------------------------


def test_blob_is_taken_as_it_comes_whatever_its_encoding_is_called(
    fake: FakeRegistry, registry: Registry
) -> None:
    headers = {"Content-Encoding": "gzip"}
    fake.fail("GET", "blobs", status=200, body=DATA, headers=headers)
    into = io.BytesIO()
    registry.fetch_blob(fake.reference("app:1"), BLOB, into)
    assert into.getvalue() == DATA
    assert fake.requests("GET", "blobs")[0].headers["accept-encoding"] == "identity"


def test_refusal_with_an_endless_page_is_still_a_refusal(
    fake: FakeRegistry, registry: Registry
) -> None:
    fake.fail("GET", "blobs", times=-1, status=403, body=bytes(8 << 20))
    with pytest.raises(RegistryError, match="answered 403"):
        registry.fetch_blob(fake.reference("app:1"), BLOB, io.BytesIO())
