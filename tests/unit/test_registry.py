"""The registry client against a registry that fails in every way that registries do."""

from __future__ import annotations

import io
import signal
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from ocis2i.blobs import VerifiedReader
from ocis2i.credentials import Credentials
from ocis2i.errors import ImageError, RegistryError
from ocis2i.events import Event, Notice, Transfer
from ocis2i.keychain import Keychain
from ocis2i.manifest import (
    OCI_CONFIG,
    OCI_LAYER_GZIP,
    OCI_MANIFEST,
    Descriptor,
    Encoded,
    Manifest,
    encode_descriptor,
    encode_json,
)
from ocis2i.reference import Digest, Reference
from ocis2i.registry import Registry
from ocis2i.retries import CancelledError
from ocis2i.transfer import RegistryImage, push_image
from tests.fakes.registry import FakeRegistry

BIG = bytes(range(256)) * (3 << 12)  # 3 MiB
SMALL = b"a small blob"


class Client:
    """A client that does not wait, and what it reported and would have slept."""

    def __init__(self) -> None:
        self.slept: list[float] = []
        self.events: list[Event] = []

    def __call__(self, given: dict[str, Credentials] | None = None) -> Registry:
        return Registry(
            Keychain({}, given=given),
            environment={},
            sleep=self.slept.append,
            report=self.events.append,
        )


@pytest.fixture
def fake() -> Iterator[FakeRegistry]:
    with FakeRegistry() as running:
        yield running


@pytest.fixture
def client() -> Client:
    return Client()


class Blobs:
    """A blob source of bytes that counts what is opened."""

    def __init__(self, *contents: bytes) -> None:
        self.contents = {Digest.of(content): content for content in contents}
        self.opened: list[Digest] = []

    def open_blob(self, descriptor: Descriptor) -> VerifiedReader:
        self.opened.append(descriptor.digest)
        stream = io.BytesIO(self.contents[descriptor.digest])
        return VerifiedReader(stream, descriptor, "memory")


def describe(data: bytes, media_type: str = OCI_LAYER_GZIP) -> Descriptor:
    return Descriptor(media_type, Digest.of(data), len(data))


def encode(*layers: bytes) -> tuple[Encoded, list[Descriptor]]:
    config = b'{"architecture":"amd64","os":"linux"}'
    descriptors = [describe(layer) for layer in layers]
    manifest = encode_json(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": encode_descriptor(describe(config, OCI_CONFIG)),
            "layers": [encode_descriptor(layer) for layer in descriptors],
        }
    )
    encoded = Encoded(
        manifest, config, describe(manifest, OCI_MANIFEST), describe(config, OCI_CONFIG)
    )
    return encoded, descriptors


def publish(fake: FakeRegistry, repository: str, tag: str, *layers: bytes) -> Encoded:
    encoded, _ = encode(*layers)
    for data in (*layers, encoded.config):
        fake.put_blob(repository, data)
    fake.put_manifest(repository, tag, encoded.manifest, OCI_MANIFEST)
    return encoded


def fetch(registry: Registry, reference: Reference, data: bytes) -> bytes:
    into = io.BytesIO(b"left over from before, and longer than nothing")
    registry.fetch_blob(reference, describe(data), into)
    return into.getvalue()


# --- manifests --------------------------------------------------------------------------------


def test_manifest_comes_with_its_own_bytes(fake: FakeRegistry, client: Client) -> None:
    encoded = publish(fake, "team/app", "1", SMALL)
    manifest = client().get_manifest(fake.reference("team/app:1"))
    assert isinstance(manifest, Manifest)
    assert manifest.raw == encoded.manifest
    assert manifest.descriptor == encoded.descriptor


def test_digest_in_a_reference_beats_the_tag(fake: FakeRegistry, client: Client) -> None:
    first = publish(fake, "app", "1", SMALL)
    publish(fake, "app", "1", BIG)
    reference = fake.reference(f"app:1@{first.descriptor.digest}")
    assert client().get_manifest(reference).raw == first.manifest


def test_missing_manifest_is_named(fake: FakeRegistry, client: Client) -> None:
    with pytest.raises(RegistryError) as caught:
        client().get_manifest(fake.reference("app:none"))
    assert caught.value.message == (
        f"cannot get the manifest `none` of `{fake.host}/app:none`: "
        f"GET http://{fake.host}/v2/app/manifests/none answered 404 "
        "MANIFEST_UNKNOWN: manifest unknown"
    )
    assert caught.value.hint
    assert not client.slept


def test_manifest_by_digest_with_other_bytes_is_refused(fake: FakeRegistry, client: Client) -> None:
    encoded = publish(fake, "app", "1", SMALL)
    other, _ = encode(BIG)
    digest = str(encoded.descriptor.digest)
    fake.manifests["app"][digest] = (OCI_MANIFEST, other.manifest)
    with pytest.raises(RegistryError, match="has digest `sha256:"):
        client().get_manifest(fake.reference(f"app@{digest}"))


def test_manifest_corrupted_once_is_fetched_again(fake: FakeRegistry, client: Client) -> None:
    encoded = publish(fake, "app", "1", SMALL)
    fake.fail("GET", "manifests", corrupt=True)
    assert client().get_manifest(fake.reference("app:1")).raw == encoded.manifest


@pytest.mark.parametrize("what", ["manifests/1", "blobs/sha256"])
def test_web_page_is_neither_manifest_nor_blob(
    fake: FakeRegistry, client: Client, what: str
) -> None:
    publish(fake, "app", "1", SMALL)
    page = {"status": 200, "body": b"<html>log in</html>", "headers": {"Content-Type": "text/html"}}
    fake.fail("GET", what, times=-1, **page)
    with pytest.raises(RegistryError, match=r"web page|text/html"):
        if what.startswith("manifests"):
            client().get_manifest(fake.reference("app:1"))
        else:
            fetch(client(), fake.reference("app:1"), SMALL)
    assert len(fake.requests("GET", what)) == 2


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_status_of_a_passing_trouble_is_tried_again(
    fake: FakeRegistry, client: Client, status: int
) -> None:
    publish(fake, "app", "1", SMALL)
    fake.fail("GET", "manifests", status=status)
    fake.fail("GET", "blobs", status=status)
    registry = client()
    registry.get_manifest(fake.reference("app:1"))
    assert fetch(registry, fake.reference("app:1"), SMALL) == SMALL
    assert len(client.slept) == 2
    assert all(0.15 <= seconds <= 0.3 for seconds in client.slept)


def test_retry_after_is_waited_for(fake: FakeRegistry, client: Client) -> None:
    publish(fake, "app", "1", SMALL)
    fake.fail("GET", "manifests", status=429, headers={"Retry-After": "7"})
    client().get_manifest(fake.reference("app:1"))
    assert client.slept == [7.0]


def test_lasting_trouble_ends_after_five_tries(fake: FakeRegistry, client: Client) -> None:
    fake.fail("GET", "manifests", times=-1, status=503)
    with pytest.raises(RegistryError, match="answered 503"):
        client().get_manifest(fake.reference("app:1"))
    assert len(fake.requests("GET", "manifests")) == 5
    assert sum(client.slept) < 30


def test_head_gives_the_digest_and_none_for_what_is_not_there(
    fake: FakeRegistry, client: Client
) -> None:
    encoded = publish(fake, "app", "1", SMALL)
    registry = client()
    assert registry.head_manifest(fake.reference("app:1")) == encoded.descriptor.digest
    assert registry.head_manifest(fake.reference("app:2")) is None
    assert not fake.requests("GET", "manifests")


def test_registry_without_head_is_asked_with_get(fake: FakeRegistry, client: Client) -> None:
    encoded = publish(fake, "app", "1", SMALL)
    fake.fail("HEAD", "manifests", status=405)
    assert client().head_manifest(fake.reference("app:1")) == encoded.descriptor.digest


# --- downloads --------------------------------------------------------------------------------


def test_fetched_blob_is_all_that_the_file_holds(fake: FakeRegistry, client: Client) -> None:
    for data in (BIG, b"", SMALL):
        fake.put_blob("app", data)
        assert fetch(client(), fake.reference("app:1"), data) == data


def test_truncated_download_goes_on_where_it_broke(fake: FakeRegistry, client: Client) -> None:
    fake.put_blob("app", BIG)
    fake.fail("GET", "blobs", truncate=1_500_000)
    assert fetch(client(), fake.reference("app:1"), BIG) == BIG
    first, second = fake.requests("GET", "blobs")
    assert "range" not in first.headers
    assert second.headers["range"] == "bytes=1500000-"


def test_download_that_breaks_often_but_moves_on_arrives(
    fake: FakeRegistry, client: Client
) -> None:
    data = BIG * 4
    fake.put_blob("app", data)
    fake.fail("GET", "blobs", times=9, truncate=(1 << 20) + 1000)
    assert fetch(client(), fake.reference("app:1"), data) == data
    assert len(fake.requests("GET", "blobs")) == 10


def test_registry_that_ignores_ranges_makes_it_start_again(
    fake: FakeRegistry, client: Client
) -> None:
    fake.put_blob("app", BIG)
    fake.fail("GET", "blobs", truncate=2_000_000)
    fake.fail("GET", "blobs", status=200, body=BIG)
    assert fetch(client(), fake.reference("app:1"), BIG) == BIG


def test_range_at_another_offset_is_not_appended(fake: FakeRegistry, client: Client) -> None:
    fake.put_blob("app", BIG)
    fake.fail("GET", "blobs", truncate=2_000_000)
    fake.fail("GET", "blobs", status=206, body=BIG, headers={"Content-Range": "bytes 0-9/10"})
    assert fetch(client(), fake.reference("app:1"), BIG) == BIG


def test_blob_corrupted_once_is_fetched_again(fake: FakeRegistry, client: Client) -> None:
    fake.put_blob("app", BIG)
    fake.fail("GET", "blobs", corrupt=True)
    assert fetch(client(), fake.reference("app:1"), BIG) == BIG


def test_blob_corrupted_always_is_refused(fake: FakeRegistry, client: Client) -> None:
    fake.put_blob("app", SMALL)
    fake.fail("GET", "blobs", times=-1, corrupt=True)
    with pytest.raises(RegistryError, match=f"`{Digest.of(SMALL)}` of .* came with digest"):
        fetch(client(), fake.reference("app:1"), SMALL)
    assert len(fake.requests("GET", "blobs")) == 2


def test_blob_longer_than_promised_is_refused(fake: FakeRegistry, client: Client) -> None:
    body = {"status": 200, "body": SMALL + b"!"}
    fake.fail("GET", "blobs", times=-1, **body)
    with pytest.raises(RegistryError, match="13 bytes"):
        fetch(client(), fake.reference("app:1"), SMALL)


def test_redirects_in_a_circle_end_at_once(fake: FakeRegistry, client: Client) -> None:
    where = {"Location": "/v2/app/blobs/again"}
    fake.fail("GET", "blobs", times=-1, status=307, headers=where)
    with pytest.raises(RegistryError, match="was redirected 10 times"):
        fetch(client(), fake.reference("app:1"), SMALL)
    assert len(fake.requests("GET", "blobs")) == 11
    assert not client.slept


def test_redirect_to_another_host_carries_no_credentials(client: Client) -> None:
    users = {"ann": "secret"}
    with FakeRegistry("basic", users=users) as fake, FakeRegistry() as store:
        fake.put_blob("app", SMALL)
        store.put_blob("app", SMALL)
        path = f"/v2/app/blobs/{Digest.of(SMALL)}"
        where = {"Location": f"http://{store.host}{path}?signature=abc"}
        fake.fail("GET", "blobs", status=307, headers=where)
        registry = client({fake.host: Credentials("ann", "secret")})
        assert fetch(registry, fake.reference("app:1"), SMALL) == SMALL
        assert fake.requests("GET", "blobs")[0].headers["authorization"].startswith("Basic ")
        assert len(store.log) == 1
        assert "authorization" not in store.log[0].headers


def test_plain_http_is_not_spoken_to_other_machines(fake: FakeRegistry, client: Client) -> None:
    where = {"Location": "http://store.example/blob"}
    fake.fail("GET", "blobs", status=307, headers=where)
    with pytest.raises(RegistryError, match=r"plain http at `http://store\.example/blob`"):
        fetch(client(), fake.reference("app:1"), SMALL)


def test_small_blob_is_read_whole_and_a_big_one_is_not(fake: FakeRegistry, client: Client) -> None:
    fake.put_blob("app", SMALL)
    registry = client()
    assert registry.read_blob(fake.reference("app:1"), describe(SMALL)) == SMALL
    huge = Descriptor(OCI_CONFIG, Digest.of(SMALL), 1 << 40)
    with pytest.raises(RegistryError, match=f"{1 << 40} bytes"):
        registry.read_blob(fake.reference("app:1"), huge)


def test_registry_image_reads_manifest_and_blobs(fake: FakeRegistry, client: Client) -> None:
    data = BIG * 3
    encoded = publish(fake, "app", "1", data)
    image = RegistryImage(client(), fake.reference("app:1"))
    assert image.manifest().raw == encoded.manifest
    assert image.child(encoded.descriptor).raw == encoded.manifest
    for wanted in (data, encoded.config):
        with image.open_blob(describe(wanted)) as reader:
            assert reader.read() == wanted


# --- uploads ----------------------------------------------------------------------------------


def push(registry: Registry, reference: Reference, data: bytes, *mount_from: Reference) -> str:
    return registry.push_blob(reference, describe(data), lambda: io.BytesIO(data), mount_from)


def test_sent_blob_arrives_in_one_put_of_known_length(fake: FakeRegistry, client: Client) -> None:
    assert push(client(), fake.reference("app:1"), BIG) == "sent"
    (put,) = fake.requests("PUT")
    assert put.headers["content-length"] == str(len(BIG))
    assert "transfer-encoding" not in put.headers
    assert fake.blobs["app"][str(Digest.of(BIG))] == BIG


def test_empty_blob_can_be_sent(fake: FakeRegistry, client: Client) -> None:
    assert push(client(), fake.reference("app:1"), b"") == "sent"


def test_existing_blob_is_not_opened(fake: FakeRegistry, client: Client) -> None:
    fake.put_blob("app", BIG)

    def never() -> io.BytesIO:
        raise AssertionError("opened")

    assert client().push_blob(fake.reference("app:1"), describe(BIG), never) == "exists"
    assert not fake.requests("POST")


def test_blob_of_another_repository_is_mounted(fake: FakeRegistry, client: Client) -> None:
    fake.put_blob("base", BIG)
    sources = (Reference.parse("docker.io/library/base"), fake.reference("base:1"))
    assert push(client(), fake.reference("app:1"), BIG, *sources) == "mounted"
    assert not fake.requests("PUT")
    (post,) = fake.requests("POST")
    assert post.query == {"mount": [str(Digest.of(BIG))], "from": ["base"]}


def test_refused_mount_becomes_an_upload_in_the_same_session(
    fake: FakeRegistry, client: Client
) -> None:
    fake.allow_mount = False
    assert push(client(), fake.reference("app:1"), BIG, fake.reference("base:1")) == "sent"
    assert len(fake.requests("POST")) == 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 500])
def test_failed_mount_is_no_failure(fake: FakeRegistry, client: Client, status: int) -> None:
    fake.fail("POST", "uploads", status=status)
    assert push(client(), fake.reference("app:1"), BIG, fake.reference("base:1")) == "sent"


@pytest.mark.parametrize(
    ("method", "how"),
    [
        ("HEAD", {"status": 503}),
        ("POST", {"status": 503}),
        ("POST", {"status": 429, "headers": {"Retry-After": "1"}}),
        ("PUT", {"status": 500}),
        ("PUT", {"status": 502}),
        ("PUT", {"reset_after": 1_000_000}),
        ("PUT", {"reset_after": 0}),
        ("PUT", {"status": 404, "body": b'{"errors":[{"code":"BLOB_UPLOAD_UNKNOWN"}]}'}),
    ],
)
def test_upload_broken_once_is_begun_anew(
    fake: FakeRegistry, client: Client, method: str, how: dict[str, object]
) -> None:
    fake.fail(method, "blobs", **how)
    assert push(client(), fake.reference("app:1"), BIG) == "sent"
    assert fake.blobs["app"][str(Digest.of(BIG))] == BIG
    assert len(client.slept) == 1


def test_lost_answer_to_a_finished_upload_sends_nothing_again(
    fake: FakeRegistry, client: Client
) -> None:
    fake.fail("PUT", "uploads", drop=True)
    assert push(client(), fake.reference("app:1"), BIG) == "exists"
    assert len(fake.requests("PUT")) == 1


@pytest.mark.parametrize("status", [400, 403, 501])
def test_refused_upload_is_not_repeated(fake: FakeRegistry, client: Client, status: int) -> None:
    fake.fail("PUT", "uploads", times=-1, status=status)
    with pytest.raises(RegistryError, match=f"cannot push blob .* answered {status}"):
        push(client(), fake.reference("app:1"), BIG)
    assert len(fake.requests("PUT")) == 1


def test_error_names_the_address_without_its_query(fake: FakeRegistry, client: Client) -> None:
    fake.fail("PUT", "uploads", times=-1, status=400)
    with pytest.raises(RegistryError) as caught:
        push(client(), fake.reference("app:1"), BIG)
    assert "_state" not in caught.value.message
    assert "?" not in caught.value.message


def test_blob_that_cannot_be_read_is_not_a_trouble_of_the_registry(
    fake: FakeRegistry, client: Client
) -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise OSError(5, "Input/output error")

    with pytest.raises(ImageError, match="cannot be read: Input/output error"):
        client().push_blob(fake.reference("app:1"), describe(BIG), Broken)
    with pytest.raises(ImageError, match="ends too early"):
        client().push_blob(fake.reference("app:1"), describe(BIG), lambda: io.BytesIO(b"short"))
    assert not client.slept


def test_upload_to_a_private_address_of_another_host_is_refused(
    fake: FakeRegistry, client: Client
) -> None:
    fake.rewrite_location = lambda _: "http://169.254.169.254/latest"
    with pytest.raises(RegistryError, match=r"private address `169\.254\.169\.254:80`"):
        push(client(), fake.reference("app:1"), BIG)


def test_upload_to_another_host_carries_no_credentials(client: Client) -> None:
    with FakeRegistry("basic", users={"ann": "secret"}) as fake, FakeRegistry() as store:
        store.uploads.add("x")
        name = store.host.replace("127.0.0.1", "localhost")
        fake.rewrite_location = lambda _: (
            f"http://{name}/v2/app/blobs/uploads/x?_state=a%2Fb==&empty="
        )
        registry = client({fake.host: Credentials("ann", "secret")})
        assert push(registry, fake.reference("app:1"), BIG) == "sent"
        assert store.requests("PUT")
        assert all("authorization" not in entry.headers for entry in store.log)


def test_cancelled_upload_stops_and_gives_the_session_back(
    fake: FakeRegistry, client: Client
) -> None:
    cancel = threading.Event()

    class Cancelling(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            cancel.set()
            return super().read(size)

    with pytest.raises(CancelledError):
        client().push_blob(
            fake.reference("app:1"), describe(BIG), lambda: Cancelling(BIG), cancel=cancel
        )
    assert len(fake.requests("DELETE", "uploads")) == 1


# --- images -----------------------------------------------------------------------------------


def test_pushed_image_is_complete(fake: FakeRegistry, client: Client) -> None:
    layers = [bytes([number]) * 1000 for number in range(10)]
    encoded, descriptors = encode(*layers)
    registry = client()
    push_image(registry, fake.reference("app:1"), encoded, descriptors, Blobs(*layers))
    assert registry.get_manifest(fake.reference("app:1")).raw == encoded.manifest
    assert set(fake.blobs["app"].values()) == {*layers, encoded.config}
    assert fake.requests("PUT")[-1].path == "/v2/app/manifests/1"


def test_second_push_sends_nothing_and_looks_at_no_blob(fake: FakeRegistry, client: Client) -> None:
    encoded, descriptors = encode(BIG)
    push_image(client(), fake.reference("app:1"), encoded, descriptors, Blobs(BIG))
    fake.log.clear()
    push_image(client(), fake.reference("app:1"), encoded, descriptors, Blobs())
    assert [entry.method for entry in fake.log] == ["GET", "HEAD"]


def test_requests_are_few(fake: FakeRegistry, client: Client) -> None:
    layers = [bytes([number]) * 100 for number in range(24)]
    encoded, descriptors = encode(*layers)
    push_image(client(), fake.reference("base:1"), encoded, descriptors, Blobs(*layers))
    # Who we speak to, the tag, then a look, a beginning and an end for each blob, the manifest.
    assert len(fake.log) == 2 + 3 * (24 + 1) + 1
    fake.log.clear()
    mount_from = [fake.reference("base:1")]
    push_image(
        client(), fake.reference("app:1"), encoded, descriptors, Blobs(), mount_from=mount_from
    )
    assert len(fake.log) == 2 + 24 + 3 + 1


def all_of(encoded: Encoded, layers: Sequence[Descriptor]) -> frozenset[Digest]:
    blobs = (encoded.config_descriptor, *layers)
    return frozenset((encoded.descriptor.digest, *(blob.digest for blob in blobs)))


def test_what_is_new_is_not_looked_for(fake: FakeRegistry, client: Client) -> None:
    encoded, descriptors = encode(BIG, SMALL)
    new = all_of(encoded, descriptors)
    source = Blobs(BIG, SMALL)
    mount_from = [fake.reference("base:1")]
    name = fake.reference("app:1")
    push_image(client(), name, encoded, descriptors, source, mount_from=mount_from, new=new)
    methods = [entry.method for entry in fake.log]
    assert sorted(methods) == ["GET", *["POST"] * 3, *["PUT"] * 4]
    assert not any("mount" in entry.query for entry in fake.log)
    assert fake.manifests["app"]["1"][1] == encoded.manifest


def test_what_is_new_may_be_there_after_a_try_that_broke(
    fake: FakeRegistry, client: Client
) -> None:
    encoded, descriptors = encode(BIG)
    fake.fail("PUT", "uploads", times=2, drop=True)
    new = all_of(encoded, descriptors)
    push_image(client(), fake.reference("app:1"), encoded, descriptors, Blobs(BIG), new=new)
    assert len(fake.requests("PUT", "uploads")) == 2
    assert len(fake.requests("HEAD", "blobs")) == 2
    assert fake.manifests["app"]["1"][1] == encoded.manifest


class Gauge(Blobs):
    """Knows how many blobs are read at a time; `wait` is called before each is."""

    def __init__(self, *contents: bytes, wait: Callable[[], object]) -> None:
        super().__init__(*contents)
        self.now = self.most = 0
        self.wait = wait
        self.lock = threading.Lock()

    def count(self, more: int) -> None:
        with self.lock:
            self.now += more
            self.most = max(self.most, self.now)

    def open_blob(self, descriptor: Descriptor) -> VerifiedReader:
        self.count(1)
        self.wait()

        class Counted(io.BytesIO):
            def close(stream) -> None:  # noqa: N805 - `self` is the gauge
                self.count(stream.closed - 1)
                super().close()

        return VerifiedReader(Counted(self.contents[descriptor.digest]), descriptor, "memory")


def test_more_blobs_are_looked_up_at_a_time_than_sent(fake: FakeRegistry, client: Client) -> None:
    layers = [bytes([number]) * 1000 for number in range(12)]
    encoded, descriptors = encode(*layers)
    looked_up = threading.Event()

    def wait() -> None:
        # Those that are sent first wait for the look-ups of others.
        for _ in range(1000):
            if len(fake.requests("HEAD", "blobs")) >= 4:
                looked_up.set()
                return
            time.sleep(0.01)

    source = Gauge(*layers, wait=wait)
    push_image(client(), fake.reference("app:1"), encoded, descriptors, source, jobs=2)
    assert looked_up.is_set()
    assert source.most == 2
    assert source.now == 0
    assert set(fake.blobs["app"].values()) == {*layers, encoded.config}


def test_uploads_that_wait_for_their_turn_do_not_begin(fake: FakeRegistry, client: Client) -> None:
    layers = [bytes([number]) * 1000 for number in range(12)]
    encoded, descriptors = encode(*layers)
    began: list[int] = []

    def wait() -> None:
        time.sleep(0.05)
        began.append(len(fake.requests("POST")) - len(fake.requests("PUT")))

    source = Gauge(*layers, wait=wait)
    push_image(client(), fake.reference("app:1"), encoded, descriptors, source, jobs=2)
    assert max(began) <= 2


def test_one_job_does_one_thing_at_a_time(fake: FakeRegistry, client: Client) -> None:
    layers = [bytes([number]) * 1000 for number in range(5)]
    encoded, descriptors = encode(*layers)
    push_image(client(), fake.reference("app:1"), encoded, descriptors, Blobs(*layers), jobs=1)
    methods = [entry.method for entry in fake.log]
    assert methods == ["GET", "HEAD", *["HEAD", "POST", "PUT"] * 6, "PUT"]


def test_what_waits_for_its_turn_when_another_fails_is_not_sent(
    fake: FakeRegistry, client: Client
) -> None:
    layers = [bytes([number]) * 1000 for number in range(20)]
    encoded, descriptors = encode(*layers)
    fake.fail("PUT", "uploads", times=-1, status=403)
    with pytest.raises(RegistryError, match="answered 403"):
        push_image(client(), fake.reference("app:1"), encoded, descriptors, Blobs(*layers), jobs=2)
    assert len(fake.requests("POST")) <= 2 + 2  # one more each, if the error is not yet told
    assert not fake.requests("PUT", "manifests")


@pytest.mark.parametrize(("method", "path"), [("POST", "uploads"), ("PUT", "uploads")])
def test_layers_that_always_fail_are_not_tried_one_after_the_other(
    fake: FakeRegistry, client: Client, method: str, path: str
) -> None:
    layers = [bytes([number]) * 1000 for number in range(20)]
    encoded, descriptors = encode(*layers)
    fake.fail(method, path, times=-1, status=503)
    with pytest.raises(RegistryError, match="answered 503"):
        push_image(client(), fake.reference("app:1"), encoded, descriptors, Blobs(*layers), jobs=4)
    assert len(fake.requests(method, path)) <= 4 * 5
    # All sleep at the same time.
    assert sum(client.slept) / 4 < 15
    assert not fake.requests("PUT", "manifests")


def test_only_missing_layers_are_opened(fake: FakeRegistry, client: Client) -> None:
    fake.put_blob("app", BIG)
    encoded, descriptors = encode(BIG, SMALL)
    source = Blobs(SMALL)
    push_image(client(), fake.reference("app:1"), encoded, descriptors, source)
    assert source.opened == [Digest.of(SMALL)]


def test_failing_layer_stops_the_push_before_the_manifest(
    fake: FakeRegistry, client: Client
) -> None:
    layers = [bytes([number]) * 1000 for number in range(20)]
    encoded, descriptors = encode(*layers)
    fake.fail("POST", "uploads", times=-1, status=403)
    with pytest.raises(RegistryError, match="answered 403"):
        push_image(client(), fake.reference("app:1"), encoded, descriptors, Blobs(*layers))
    assert len(fake.requests("POST")) < 20
    assert not fake.requests("PUT")


def test_interrupt_ends_a_push_that_waits(fake: FakeRegistry) -> None:
    encoded, descriptors = encode(BIG)
    fake.fail("POST", "uploads", times=-1, status=429, headers={"Retry-After": "60"})
    registry = Registry(Keychain({}), environment={})

    class ImpatientError(Exception):
        pass

    def interrupt(signal_number: int, frame: object) -> None:
        raise ImpatientError

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    started = time.monotonic()
    try:
        with pytest.raises(ImpatientError):
            push_image(registry, fake.reference("app:1"), encoded, descriptors, Blobs(BIG))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("how", [{"status": 503}, {"drop": True}, {"reset_after": 0}])
def test_manifest_put_is_tried_again(
    fake: FakeRegistry, client: Client, how: dict[str, object]
) -> None:
    encoded, descriptors = encode(SMALL)
    fake.fail("PUT", "manifests", **how)
    push_image(client(), fake.reference("app:1"), encoded, descriptors, Blobs(SMALL))
    assert fake.manifests["app"]["1"] == (OCI_MANIFEST, encoded.manifest)


def test_registry_that_stored_another_manifest_is_found_out(
    fake: FakeRegistry, client: Client
) -> None:
    other = {"Docker-Content-Digest": str(Digest.of(b"other"))}
    fake.fail("PUT", "manifests", status=201, headers=other)
    with pytest.raises(RegistryError, match="the manifest stored at"):
        client().put_manifest(fake.reference("app:1"), b"{}", OCI_MANIFEST)


def test_warning_of_a_registry_is_passed_on_once(fake: FakeRegistry, client: Client) -> None:
    warning = {"Warning": '299 - "this registry\x1b closes"', "Content-Length": "0"}
    fake.fail("HEAD", "manifests", times=2, status=404, headers=warning)
    registry = client()
    for _ in range(2):
        registry.head_manifest(fake.reference("app:1"))
    assert client.events == [
        Notice("warning", f"registry `{fake.host}` warns: this registry closes")
    ]


def test_transfers_are_reported(fake: FakeRegistry, client: Client) -> None:
    push(client(), fake.reference("app:1"), BIG)
    fetch(client(), fake.reference("app:1"), BIG)
    moved = [event for event in client.events if isinstance(event, Transfer)]
    assert {event.state for event in moved} == {"pushing", "pulling", "done"}
    assert all(event.total == len(BIG) for event in moved)
    assert moved[-1].state == "done"
    assert moved[-1].done == len(BIG)


# --- who we are -------------------------------------------------------------------------------

ANN = Credentials("ann", "secret")


@pytest.fixture
def strict() -> Iterator[FakeRegistry]:
    with FakeRegistry("bearer", users={"ann": "secret"}) as running:
        yield running


def test_push_works_with_strict_scopes(strict: FakeRegistry, client: Client) -> None:
    encoded, descriptors = encode(BIG, SMALL)
    registry = client({strict.host: ANN})
    push_image(registry, strict.reference("app:1"), encoded, descriptors, Blobs(BIG, SMALL))
    assert registry.get_manifest(strict.reference("app:1")).raw == encoded.manifest
    asked = [entry.query["scope"] for entry in strict.requests("GET", "/token")]
    assert asked == [["repository:app:pull,push"], ["repository:app:pull"]]


def test_mount_asks_for_the_right_to_read_the_other_repository(
    strict: FakeRegistry, client: Client
) -> None:
    strict.put_blob("base", BIG)
    registry = client({strict.host: ANN})
    assert push(registry, strict.reference("app:1"), BIG, strict.reference("base:1")) == "mounted"
    asked = strict.requests("GET", "/token")[-1].query["scope"]
    assert asked == ["repository:app:pull,push", "repository:base:pull"]


def test_mount_without_the_right_to_read_becomes_an_upload(
    strict: FakeRegistry, client: Client
) -> None:
    strict.put_blob("base", BIG)
    strict.grant = lambda scope: "base" not in scope
    registry = client({strict.host: ANN})
    assert push(registry, strict.reference("app:1"), BIG, strict.reference("base:1")) == "sent"


@pytest.mark.parametrize("uses", [1, 2, 3])
def test_token_that_expires_in_the_middle_of_a_push_is_renewed(
    strict: FakeRegistry, client: Client, uses: int
) -> None:
    strict.token_uses = uses
    encoded, descriptors = encode(BIG, SMALL)
    registry = client({strict.host: ANN})
    push_image(registry, strict.reference("app:1"), encoded, descriptors, Blobs(BIG, SMALL), jobs=1)
    assert strict.manifests["app"]["1"][1] == encoded.manifest


def test_token_may_last_longer_than_any_number(strict: FakeRegistry, client: Client) -> None:
    forever = b'{"token": "t", "expires_in": ' + b"9" * 400 + b"}"
    strict.fail("GET", "/token", times=-1, status=200, body=forever)
    with pytest.raises(RegistryError, match="does not let these credentials in"):
        push(client({strict.host: ANN}), strict.reference("app:1"), SMALL)


@pytest.mark.parametrize("auth", ["basic", "bearer"])
def test_wrong_password_fails_at_once(auth: str, client: Client) -> None:
    with FakeRegistry("bearer" if auth == "bearer" else "basic", users={"ann": "secret"}) as fake:
        registry = client({fake.host: Credentials("ann", "wr0ng-pass")})
        started = time.monotonic()
        with pytest.raises(RegistryError) as caught:
            push(registry, fake.reference("app:1"), BIG)
        assert time.monotonic() - started < 1
        assert not client.slept
        assert len(fake.log) <= 3
        assert "401" in caught.value.message
        assert "wr0ng" not in f"{caught.value.message}{caught.value.hint}"


def test_no_credentials_where_some_are_wanted_gives_the_hint_to_log_in(client: Client) -> None:
    with FakeRegistry("basic", users={"ann": "secret"}) as fake:
        with pytest.raises(RegistryError, match="wants a login") as caught:
            client().get_manifest(fake.reference("app:1"))
        assert f"log in first: ocis2i login {fake.host}" in (caught.value.hint or "")


def test_anonymous_token_is_fetched_where_it_is_enough(client: Client) -> None:
    with FakeRegistry("bearer") as fake:
        encoded = publish(fake, "app", "1", SMALL)
        assert client().get_manifest(fake.reference("app:1")).raw == encoded.manifest


@pytest.mark.parametrize("refuse", [0, 400, 401, 404, 405])
def test_identity_token_works_with_and_without_the_oauth_form(
    strict: FakeRegistry, client: Client, refuse: int
) -> None:
    strict.refuse_oauth_status = refuse
    strict.identity_tokens.add("refresh-me")
    encoded = publish(strict, "app", "1", SMALL)
    credentials = Credentials("00000000-0000-0000-0000-000000000000", "", "refresh-me")
    registry = client({strict.host: credentials})
    assert registry.get_manifest(strict.reference("app:1")).raw == encoded.manifest
    assert len(strict.requests("POST", "/token")) == 1


def test_token_service_on_a_private_address_gets_no_credentials(
    strict: FakeRegistry, client: Client
) -> None:
    with FakeRegistry() as spy:
        strict.realm = f"http://{spy.host}/token"
        with pytest.raises(RegistryError, match="private address"):
            client({strict.host: ANN}).get_manifest(strict.reference("app:1"))
        assert not spy.log


def test_credentials_of_another_registry_are_not_used(strict: FakeRegistry, client: Client) -> None:
    registry = client({"127.0.0.1:1": ANN})
    with pytest.raises(RegistryError):
        registry.get_manifest(strict.reference("app:1"))
    assert all("authorization" not in entry.headers for entry in strict.log)


def test_threads_share_one_token(strict: FakeRegistry, client: Client) -> None:
    strict.put_blob("app", SMALL)
    registry = client({strict.host: ANN})
    look = (strict.reference("app:1"), describe(SMALL))
    threads = [threading.Thread(target=registry.has_blob, args=look) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(strict.requests("GET", "/token")) == 1
    assert len(strict.requests("HEAD", "blobs")) == 8


# --- reaching it ------------------------------------------------------------------------------


def test_registry_that_does_not_listen_is_named(client: Client) -> None:
    with pytest.raises(RegistryError) as caught:
        client().get_manifest(Reference.parse("127.0.0.1:1/app:1"))
    assert caught.value.message == "cannot reach registry `127.0.0.1:1`: connection refused"
    assert caught.value.hint
    assert len(client.slept) == 2


def test_https_is_tried_before_http_and_the_choice_is_kept(
    fake: FakeRegistry, client: Client
) -> None:
    publish(fake, "app", "1", SMALL)
    registry = client()
    for _ in range(3):
        registry.get_manifest(fake.reference("app:1"))
    assert len(fake.requests("GET", r"^/v2/\Z")) == 1


def test_memory_stays_small_for_a_big_blob(fake: FakeRegistry, tmp_path: Path) -> None:
    size = 64 << 20
    path = tmp_path / "blob"
    path.write_bytes(b"\0" * size)
    data = path.read_bytes()
    descriptor = fake.put_blob("app", data)
    registry = Registry(Keychain({}), environment={})
    tracemalloc.start()
    try:
        with (tmp_path / "copy").open("w+b") as into:
            registry.fetch_blob(fake.reference("app:1"), descriptor, into)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (tmp_path / "copy").stat().st_size == size
    assert peak < 32 << 20
