"""How many layers of an image are fetched at a time: small ones wait for little but an answer."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import pytest

from ocis2i.errors import RegistryError
from ocis2i.events import silent
from ocis2i.images import Places, keep
from ocis2i.keychain import Keychain
from ocis2i.manifest import (
    OCI_LAYER,
    OCI_MANIFEST,
    Descriptor,
    decode_manifest,
    encode_descriptor,
    encode_json,
)
from ocis2i.reference import Digest, Reference
from ocis2i.registry import Registry
from ocis2i.store import Store
from ocis2i.transfer import SMALL_BYTES, RegistryImage
from tests.fakes.registry import FakeRegistry

PATIENCE_SECONDS = 10.0
SMALL = [bytes([number]) * 100 for number in range(12)]
LARGE = [bytes([number]) * (SMALL_BYTES + 1) for number in range(6)]


class Crowd:
    """Counts who is inside at the same time; lets nobody out before `expected` came, if they do."""

    def __init__(self, expected: int) -> None:
        self._expected = expected
        self._changed = threading.Condition()
        self._now = 0
        self.most = 0

    def enter(self) -> None:
        with self._changed:
            self._now += 1
            self.most = max(self.most, self._now)
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: self.most >= self._expected, PATIENCE_SECONDS)
            self._now -= 1


def fetch(fake: FakeRegistry, contents: Sequence[bytes], places: Places, crowd: Crowd) -> None:
    config = fake.put_blob("app", b'{"architecture":"amd64","os":"linux"}')
    layers = [fake.put_blob("app", data, OCI_LAYER) for data in contents]
    raw = encode_json(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": encode_descriptor(config),
            "layers": [encode_descriptor(layer) for layer in layers],
        }
    )
    reference = fake.reference("app:1")
    real = places.registry.fetch_blob

    def counted(name: Reference, descriptor: Descriptor, into: BinaryIO, **flags: object) -> None:
        if descriptor.media_type == OCI_LAYER:
            crowd.enter()
        real(name, descriptor, into, **flags)  # type: ignore[arg-type]

    places.registry.fetch_blob = counted  # type: ignore[method-assign, assignment]
    found = decode_manifest(raw, OCI_MANIFEST)
    keep(found, RegistryImage(places.registry, reference), places, reference)


@pytest.mark.parametrize(
    ("contents", "jobs", "most"),
    [(SMALL, 4, 8), (LARGE, 4, 4), (SMALL, 1, 1), (LARGE, 1, 1), (LARGE, 2, 2), (SMALL, 2, 4)],
)
def test_so_many_layers_are_fetched_at_a_time(
    tmp_path: Path, contents: list[bytes], jobs: int, most: int
) -> None:
    crowd = Crowd(most)
    with FakeRegistry() as fake, Registry(Keychain({}), environment={}) as registry:
        places = Places(Store.open(tmp_path / "store"), registry, silent, jobs=jobs)
        fetch(fake, contents, places, crowd)
    assert crowd.most == most
    for data in contents:
        assert places.store.has_blob(Descriptor(OCI_LAYER, Digest.of(data), len(data)))


def test_one_that_fails_ends_all(tmp_path: Path) -> None:
    with (
        FakeRegistry() as fake,
        Registry(Keychain({}), environment={}, sleep=lambda _: None) as registry,
    ):
        places = Places(Store.open(tmp_path / "store"), registry, silent)
        fake.fail("GET", f"/blobs/{Digest.of(LARGE[3])}", times=-1, status=403)
        with pytest.raises(RegistryError, match="403"):
            fetch(fake, LARGE + SMALL, places, Crowd(1))
