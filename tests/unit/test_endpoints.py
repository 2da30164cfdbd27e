"""Names that stand for several places: mirrors first, then the registry itself; raw requests."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence

import pytest

from ocis2i.credentials import Credentials
from ocis2i.endpoints import Place
from ocis2i.errors import PolicyError, RegistryError
from ocis2i.events import Event, Notice
from ocis2i.keychain import Keychain
from ocis2i.manifest import (
    OCI_CONFIG,
    OCI_LAYER_GZIP,
    OCI_MANIFEST,
    Descriptor,
    encode_descriptor,
    encode_json,
)
from ocis2i.reference import Digest, Reference
from ocis2i.registry import Registry
from tests.fakes.registry import FakeRegistry

DATA = b"a blob"
BLOB = Descriptor(OCI_LAYER_GZIP, Digest.of(DATA), len(DATA))
MANIFEST = encode_json(
    {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": encode_descriptor(Descriptor(OCI_CONFIG, BLOB.digest, BLOB.size)),
        "layers": [],
    }
)
IMAGE = Reference.parse("registry.example/app:1")


class Mirrored:
    """Every name has the mirrors and is in the end at the main place; one name is blocked."""

    def __init__(self, *places: FakeRegistry) -> None:
        self.places = [Place(fake.reference("mirrored/app:1")) for fake in places]

    def to_pull(self, reference: Reference) -> Sequence[Place]:
        return self.places

    def to_push(self, reference: Reference) -> Place:
        if "blocked" in reference.repository:
            raise PolicyError(f"`{reference}` is blocked")
        return self.places[-1]


@pytest.fixture
def mirror() -> Iterator[FakeRegistry]:
    with FakeRegistry() as running:
        yield running


@pytest.fixture
def main() -> Iterator[FakeRegistry]:
    with FakeRegistry() as running:
        running.put_manifest("mirrored/app", "1", MANIFEST, OCI_MANIFEST)
        running.put_blob("mirrored/app", DATA)
        yield running


class Client:
    """A client of two places, and what it told."""

    def __init__(self, *places: FakeRegistry) -> None:
        self.events: list[Event] = []
        self.registry = Registry(
            Keychain({}),
            environment={},
            endpoints=Mirrored(*places),
            sleep=lambda _: None,
            report=self.events.append,
        )

    @property
    def said(self) -> list[str]:
        return [event.message for event in self.events if isinstance(event, Notice)]


def test_mirror_that_has_it_is_all_that_is_asked(mirror: FakeRegistry, main: FakeRegistry) -> None:
    mirror.put_manifest("mirrored/app", "1", MANIFEST, OCI_MANIFEST)
    mirror.put_blob("mirrored/app", DATA)
    client = Client(mirror, main)
    assert client.registry.get_manifest(IMAGE).raw == MANIFEST
    assert client.registry.read_blob(IMAGE, BLOB) == DATA
    assert not main.log
    assert client.said == [f"`{IMAGE}` came from `{mirror.host}/mirrored/app`"]


@pytest.mark.parametrize("how", [{"status": 404}, {"status": 500}, {"drop": True}])
def test_mirror_that_fails_is_passed_over_and_named(
    mirror: FakeRegistry, main: FakeRegistry, how: dict[str, object]
) -> None:
    mirror.fail("GET", "manifests", times=-1, **how)
    client = Client(mirror, main)
    assert client.registry.get_manifest(IMAGE).raw == MANIFEST
    assert client.said[0].startswith(f"`{mirror.host}/mirrored/app` did not serve: ")


def test_when_no_place_serves_each_is_named(mirror: FakeRegistry, main: FakeRegistry) -> None:
    for one in (mirror, main):
        one.fail("GET", "manifests", times=-1, status=404)
    with pytest.raises(RegistryError) as caught:
        Client(mirror, main).registry.get_manifest(IMAGE)
    assert f"; `{mirror.host}/mirrored/app` did not serve: " in caught.value.message


def test_blobs_are_asked_for_where_the_manifest_came_from(
    mirror: FakeRegistry, main: FakeRegistry
) -> None:
    client = Client(mirror, main)
    client.registry.get_manifest(IMAGE)
    mirror.log.clear()
    assert client.registry.read_blob(IMAGE, BLOB) == DATA
    assert not mirror.log


def test_rest_of_a_blob_comes_from_the_next_place(mirror: FakeRegistry, main: FakeRegistry) -> None:
    mirror.put_blob("mirrored/app", DATA)
    mirror.fail("GET", "blobs", truncate=2)
    mirror.fail("GET", "blobs", status=404)
    client = Client(mirror, main)
    into = io.BytesIO()
    client.registry.fetch_blob(IMAGE, BLOB, into)
    assert into.getvalue() == DATA
    (rest,) = main.requests("GET", "blobs")
    assert rest.headers["range"] == "bytes=2-"


def test_last_place_has_the_last_word(mirror: FakeRegistry, main: FakeRegistry) -> None:
    main.manifests.clear()
    with pytest.raises(RegistryError, match=main.host):
        Client(mirror, main).registry.get_manifest(IMAGE)


def test_nothing_is_pushed_to_a_mirror(mirror: FakeRegistry, main: FakeRegistry) -> None:
    client = Client(mirror, main)
    data = b"something new"
    blob = Descriptor(OCI_LAYER_GZIP, Digest.of(data), len(data))
    blocked = Reference.parse("registry.example/blocked:1")
    client.registry.push_blob(IMAGE, blob, lambda: io.BytesIO(data), (blocked,))
    client.registry.put_manifest(IMAGE, MANIFEST, OCI_MANIFEST)
    assert not mirror.log
    assert main.requests("PUT", "manifests")
    with pytest.raises(PolicyError, match="is blocked"):
        client.registry.put_manifest(blocked, MANIFEST, OCI_MANIFEST)


# --- raw requests -----------------------------------------------------------------------------


@pytest.fixture
def strict() -> Iterator[FakeRegistry]:
    with FakeRegistry("bearer", users={"ann": "secret"}) as running:
        yield running


@pytest.fixture
def ann(strict: FakeRegistry) -> Registry:
    keychain = Keychain({}, given={strict.host: Credentials("ann", "secret")})
    return Registry(keychain, environment={}, sleep=lambda _: None)


def test_raw_request_comes_with_credentials(strict: FakeRegistry, ann: Registry) -> None:
    reference = strict.reference("app:1")
    headers = {"Content-Type": OCI_MANIFEST}
    strict.put_blob("app", DATA)
    path = "manifests/by-hand"
    answer = ann.request(reference, "PUT", path, headers=headers, body=MANIFEST, push=True)
    assert answer.status == 201
    assert answer.headers["docker-content-digest"] == str(Digest.of(MANIFEST))
    answer = ann.request(reference, "GET", path)
    assert (answer.status, answer.body) == (200, MANIFEST)
    assert ann.request(reference, "GET", "referrers/none").status == 404


def test_raw_request_is_tried_again_and_refused_in_words(
    strict: FakeRegistry, ann: Registry
) -> None:
    reference = strict.reference("app:1")
    strict.fail("GET", "tags", status=503)
    assert ann.request(reference, "GET", "tags/list").status == 404
    strict.fail("GET", "tags", times=-1, status=503)
    with pytest.raises(RegistryError, match="answered 503"):
        ann.request(reference, "GET", "tags/list")
    with pytest.raises(RegistryError, match="without credentials failed"):
        Registry(Keychain({}), environment={}).request(reference, "GET", "tags/list")


def test_raw_request_to_another_host_carries_no_credentials(
    strict: FakeRegistry, ann: Registry
) -> None:
    with FakeRegistry() as other:
        where = f"http://{other.host.replace('127.0.0.1', 'localhost')}/v2/"
        assert ann.request(strict.reference("app:1"), "GET", where).status == 200
        assert all("authorization" not in entry.headers for entry in other.log)
    with pytest.raises(RegistryError, match="private address"):
        ann.request(strict.reference("app:1"), "GET", "http://169.254.169.254/latest")
