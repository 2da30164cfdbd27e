"""Where blobs were seen, and that a push mounts them from there."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest

from ocis2i.blobs import VerifiedReader
from ocis2i.keychain import Keychain
from ocis2i.manifest import (
    OCI_CONFIG,
    OCI_LAYER_GZIP,
    OCI_MANIFEST,
    Descriptor,
    Encoded,
    encode_descriptor,
    encode_json,
)
from ocis2i.reference import Digest, Reference
from ocis2i.registry import Registry
from ocis2i.transfer import push_image
from ocis2i.whereabouts import Whereabouts
from tests.fakes.registry import FakeRegistry

LAYER = b"a layer of a base image"
DIGEST = Digest.of(LAYER)


@pytest.fixture
def seen(tmp_path: Path) -> Whereabouts:
    return Whereabouts(tmp_path)


@pytest.fixture
def fake() -> Iterator[FakeRegistry]:
    with FakeRegistry() as running:
        yield running


def names(seen: Whereabouts) -> list[str]:
    return [reference.name for reference in seen.of(DIGEST)]


def test_last_places_come_first_and_only_few_are_kept(seen: Whereabouts) -> None:
    for name in ("a", "b", "c", "b", "d"):
        seen.note(DIGEST, Reference.parse(f"example.com/{name}:1"))
    assert names(seen) == ["example.com/d", "example.com/b", "example.com/c"]


def test_nothing_is_known_of_others(seen: Whereabouts) -> None:
    assert not seen.of(DIGEST)


def test_broken_memory_is_no_memory(seen: Whereabouts, tmp_path: Path) -> None:
    path = tmp_path / f"sha256-{DIGEST.hex}"
    path.write_bytes(b"\xff\xfe")
    assert not names(seen)
    path.write_text("Not A Name\nexample.com/good")
    assert names(seen) == ["example.com/good"]


def test_what_the_store_lost_is_forgotten(seen: Whereabouts) -> None:
    other = Digest.of(b"other")
    for digest in (DIGEST, other):
        seen.note(digest, Reference.parse("example.com/app:1"))
    seen.forget_but({other})
    assert not seen.of(DIGEST)
    assert seen.of(other)


class Source:
    def open_blob(self, descriptor: Descriptor) -> VerifiedReader:
        return VerifiedReader(io.BytesIO(LAYER), descriptor, "memory")


def encode() -> tuple[Encoded, Descriptor]:
    config = b'{"architecture":"amd64","os":"linux"}'
    layer = Descriptor(OCI_LAYER_GZIP, DIGEST, len(LAYER))
    about = Descriptor(OCI_CONFIG, Digest.of(config), len(config))
    raw = encode_json(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": encode_descriptor(about),
            "layers": [encode_descriptor(layer)],
        }
    )
    return Encoded(raw, config, Descriptor(OCI_MANIFEST, Digest.of(raw), len(raw)), about), layer


def test_second_repository_gets_the_layer_from_the_first(
    fake: FakeRegistry, seen: Whereabouts
) -> None:
    encoded, layer = encode()
    registry = Registry(Keychain({}), environment={})
    for name in ("one:1", "two:1"):
        push_image(registry, fake.reference(name), encoded, [layer], Source(), whereabouts=seen)
    mounted = [entry for entry in fake.requests("POST", "/two/") if "mount" in entry.query]
    assert [entry.query["from"] for entry in mounted] == [["one"]]
    assert sum(entry.received for entry in fake.requests("PUT", "/two/blobs")) == len(
        encoded.config
    )
