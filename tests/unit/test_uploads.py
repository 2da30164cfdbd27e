"""How blobs get to a registry: mounted, in one request, or in chunks where it must be."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pytest

from ocis2i.errors import RegistryError
from ocis2i.keychain import Keychain
from ocis2i.manifest import OCI_LAYER_GZIP, Descriptor
from ocis2i.reference import Digest, Reference
from ocis2i.registry import Registry, uploads
from ocis2i.settings import UploadMode
from tests.fakes.registry import FakeRegistry

KIB = 1 << 10
DATA = bytes(range(256)) * 4 * 1000  # 1000 KiB


@pytest.fixture
def fake() -> Iterator[FakeRegistry]:
    with FakeRegistry() as running:
        yield running


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks that a test's blob has several of."""
    monkeypatch.setattr(uploads, "CHUNK_BYTES", 300 * KIB)
    monkeypatch.setattr(uploads, "LIMITED_CHUNK_BYTES", 200 * KIB)


class Opened:
    """A blob that counts how often it is opened, and knows how to be pushed."""

    def __init__(self, data: bytes = DATA) -> None:
        self.data = data
        self.times = 0

    def __call__(self) -> io.BytesIO:
        self.times += 1
        return io.BytesIO(self.data)

    def push(self, registry: Registry, reference: Reference, *mount_from: Reference) -> str:
        descriptor = Descriptor(OCI_LAYER_GZIP, Digest.of(self.data), len(self.data))
        return registry.push_blob(reference, descriptor, self, mount_from)


def client(mode: UploadMode = "auto") -> Registry:
    return Registry(Keychain({}), environment={}, upload=mode, sleep=lambda _: None)


def ranges(fake: FakeRegistry) -> list[str]:
    return [entry.headers["content-range"] for entry in fake.requests("PATCH")]


def stored(fake: FakeRegistry, data: bytes = DATA) -> bool:
    return fake.blobs["app"].get(str(Digest.of(data))) == data


# --- chunks -----------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 201, 202, 204])
def test_chunks_go_in_order_and_each_to_the_newest_address(fake: FakeRegistry, status: int) -> None:
    fake.patch_status = status
    assert Opened().push(client("chunked"), fake.reference("app:1")) == "sent"
    assert ranges(fake) == ["0-307199", "307200-614399", "614400-921599", "921600-1023999"]
    (start,) = fake.requests("POST")
    assert start.headers["content-length"] == "0"
    (end,) = fake.requests("PUT")
    assert end.query["end"] == [str(len(DATA))]
    assert end.headers["content-length"] == "0"
    assert stored(fake)


@pytest.mark.parametrize("data", [b"", b"x", b"xy"])
def test_tiny_blobs_can_be_sent_in_chunks(fake: FakeRegistry, data: bytes) -> None:
    assert Opened(data).push(client("chunked"), fake.reference("app:1")) == "sent"
    assert stored(fake, data)


def test_least_chunk_of_a_registry_is_kept_to(fake: FakeRegistry) -> None:
    fake.least_chunk = 600 * KIB
    assert Opened().push(client("chunked"), fake.reference("app:1")) == "sent"
    assert ranges(fake) == ["0-614399", "614400-1023999"]


def test_blob_that_is_too_large_for_one_request_goes_in_chunks(fake: FakeRegistry) -> None:
    fake.body_limit = 200 * KIB
    registry = client()
    assert Opened().push(registry, fake.reference("app:1")) == "sent"
    assert [entry.status for entry in fake.requests("PUT")] == [413, 201]
    assert stored(fake)
    other = DATA[::-1]
    assert Opened(other).push(registry, fake.reference("app:1")) == "sent"
    assert [entry.status for entry in fake.requests("PUT")] == [413, 201, 201]
    assert stored(fake, other)


def test_monolithic_means_that(fake: FakeRegistry) -> None:
    fake.body_limit = 200 * KIB
    with pytest.raises(RegistryError, match="answered 413") as caught:
        Opened().push(client("monolithic"), fake.reference("app:1"))
    assert "limits the size" in (caught.value.hint or "")
    assert not fake.requests("PATCH")


def test_limit_that_no_chunk_passes_ends_it_at_once(fake: FakeRegistry) -> None:
    fake.body_limit = 10 * KIB
    with pytest.raises(RegistryError, match=r"PATCH .* answered 413"):
        Opened().push(client(), fake.reference("app:1"))
    assert len(fake.requests("PATCH")) == 1


@pytest.mark.parametrize(
    "how", [{"status": 503}, {"drop": True}, {"reset_after": 100 * KIB}, {"status": 416}]
)
def test_broken_chunk_is_gone_on_from_where_the_registry_stands(
    fake: FakeRegistry, how: dict[str, Any]
) -> None:
    fake.fail("PATCH", "uploads", **how)
    assert Opened().push(client("chunked"), fake.reference("app:1")) == "sent"
    assert len(fake.requests("GET", "uploads")) == 1
    assert len(fake.requests("POST")) == 1
    assert stored(fake)


def test_upload_that_the_registry_forgot_is_begun_anew(fake: FakeRegistry) -> None:
    fake.fail("PATCH", "uploads", reset_after=1)
    fake.fail("GET", "uploads", status=404)
    assert Opened().push(client("chunked"), fake.reference("app:1")) == "sent"
    assert len(fake.requests("POST")) == 2
    assert stored(fake)


def test_chunks_that_never_arrive_are_given_up(fake: FakeRegistry) -> None:
    fake.fail("PATCH", "uploads", times=-1, status=503)
    with pytest.raises(RegistryError, match=r"PATCH .* answered 503"):
        Opened().push(client("chunked"), fake.reference("app:1"))
    assert len(fake.requests("PATCH")) == 5


def test_chunk_that_is_always_out_of_order_is_given_up(fake: FakeRegistry) -> None:
    fake.fail("PATCH", "uploads", times=-1, status=416)
    with pytest.raises(RegistryError, match=r"PATCH .* answered 416"):
        Opened().push(client("chunked"), fake.reference("app:1"))
    assert len(fake.requests("PATCH")) == 5


def test_registry_that_counts_wrongly_is_not_believed(fake: FakeRegistry) -> None:
    fake.fail("PATCH", "uploads", times=-1, status=202, headers={"Range": "0-9999999"})
    with pytest.raises(RegistryError, match="speaks of 10000000"):
        Opened().push(client("chunked"), fake.reference("app:1"))


def test_registry_that_counts_in_thousands_of_digits_is_not_believed(fake: FakeRegistry) -> None:
    fake.fail("PATCH", "uploads", times=-1, status=202, headers={"Range": f"0-{'9' * 5000}"})
    with pytest.raises(RegistryError, match="senseless `Range`"):
        Opened().push(client("chunked"), fake.reference("app:1"))


def test_upload_that_is_redirected_takes_the_whole_blob_along(fake: FakeRegistry) -> None:
    with FakeRegistry() as store:
        store.uploads.add("x")
        where = store.host.replace("127.0.0.1", "localhost")
        location = f"http://{where}/v2/app/blobs/uploads/x?_state=a%2Fb==&empty=&digest="
        headers = {"Location": location + str(Digest.of(DATA))}
        fake.fail("PUT", "uploads", status=307, headers=headers)
        assert Opened().push(client(), fake.reference("app:1")) == "sent"
        assert stored(store)


# --- mounts -----------------------------------------------------------------------------------


def test_mount_takes_one_request(fake: FakeRegistry) -> None:
    fake.put_blob("base", DATA)
    blob = Opened()
    assert blob.push(client(), fake.reference("app:1"), fake.reference("base:1")) == "mounted"
    assert [entry.method for entry in fake.log] == ["GET", "POST"]
    assert blob.times == 0


def test_refused_mount_of_what_is_there_sends_nothing(fake: FakeRegistry) -> None:
    fake.allow_mount = False
    fake.put_blob("app", DATA)
    registry = client()
    for _ in range(2):
        blob = Opened()
        assert blob.push(registry, fake.reference("app:1"), fake.reference("base:1")) == "exists"
        assert blob.times == 0
    # The second time nobody hopes for the mount any more.
    assert len(fake.requests("POST")) == 1
    assert not fake.uploads


def test_next_repository_is_tried_where_the_first_lacks_it(fake: FakeRegistry) -> None:
    fake.put_blob("other", DATA)
    sources = (fake.reference("base:1"), fake.reference("other:1"))
    assert Opened().push(client(), fake.reference("app:1"), *sources) == "mounted"


def test_small_blob_is_not_read_again_for_a_second_look(fake: FakeRegistry) -> None:
    blob = Opened(b"small")
    assert blob.push(client(), fake.reference("app:1")) == "sent"
    assert blob.times == 1
