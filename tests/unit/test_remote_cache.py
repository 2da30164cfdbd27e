"""The cache of a build in a registry: what is found again, and what is never taken for one."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ocis2i.errors import ImageError, Ocis2iError, PolicyError, RegistryError
from ocis2i.events import silent
from ocis2i.images import Obtained, Places
from ocis2i.keychain import Keychain
from ocis2i.manifest import (
    OCI_MANIFEST,
    Descriptor,
    Image,
    ImageConfig,
    Manifest,
    RuntimeConfig,
    encode_json,
    parse_json,
)
from ocis2i.oci_artifacts import CACHE_EXPIRES
from ocis2i.reference import Digest, Platform, Reference
from ocis2i.registry import Registry
from ocis2i.remote_cache import CacheEntry, CacheSpec, cache_key, read_cache, write_cache
from ocis2i.scripts import ScriptPlace
from ocis2i.store import Store
from tests.fakes.registry import FakeRegistry

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LIMIT = 1 << 20
TAR = b"what save-artifacts wrote" * 400


@pytest.fixture
def fake() -> Iterator[FakeRegistry]:
    with FakeRegistry() as running:
        yield running


@pytest.fixture
def places(tmp_path: Path) -> Iterator[Places]:
    with Registry(Keychain({}), environment={}, sleep=lambda _: None) as registry:
        yield Places(Store.open(tmp_path / "store"), registry, silent)


@pytest.fixture
def entry(fake: FakeRegistry) -> CacheEntry:
    place = Reference.parse(f"{fake.host}/team/cache")
    return CacheEntry(CacheSpec(NOW, place, place), "a" * 64)


def written(entry: CacheEntry, places: Places, tar: bytes = TAR) -> Reference:
    assert entry.target is not None
    write_cache(entry, entry.target, places, io.BytesIO(tar))
    return entry.target


def read(entry: CacheEntry, source: Reference, places: Places, limit: int = LIMIT) -> bytes:
    into = io.BytesIO()
    read_cache(entry, source, places, into, size_limit=limit)
    return into.read()


def later(entry: CacheEntry, **how_much: int) -> CacheEntry:
    return replace(entry, spec=replace(entry.spec, now=NOW + timedelta(**how_much)))


def test_what_was_written_is_read_back(entry: CacheEntry, places: Places) -> None:
    assert read(entry, written(entry, places), places) == TAR


def test_tag_is_the_key_unless_the_user_gives_one(entry: CacheEntry) -> None:
    assert entry.target and entry.target.tag == f"cache-{'a' * 32}"
    named = Reference.parse("host:1/cache:main")
    assert replace(entry, spec=CacheSpec(NOW, write=named)).target == named
    pinned = named.with_digest(Digest.of(b"x"))
    assert replace(entry, spec=CacheSpec(NOW, read=pinned)).source == pinned


def test_cache_counts_until_its_time_is_over(entry: CacheEntry, places: Places) -> None:
    source = written(entry, places)
    assert read(later(entry, days=13), source, places) == TAR
    with pytest.raises(PolicyError, match="has expired: it counted until 2026-01-15T00:00:00Z"):
        read(later(entry, days=14), source, places)


def test_cache_of_another_build_is_not_taken(entry: CacheEntry, places: Places) -> None:
    source = written(entry, places)
    with pytest.raises(ImageError, match="that of another name, builder, platform or other"):
        read(replace(entry, key="b" * 64), source, places)


def test_no_cache_is_told_in_one_short_sentence(entry: CacheEntry, places: Places) -> None:
    assert entry.source is not None
    with pytest.raises(ImageError, match="there is none yet at"):
        read(entry, entry.source, places)


@pytest.mark.parametrize("expires", ["", "soon", "2026-02-01T00:00:00"])
def test_cache_without_a_time_is_not_taken(
    expires: str, entry: CacheEntry, places: Places, fake: FakeRegistry
) -> None:
    source = written(entry, places)
    known = fake.manifests["team/cache"]
    document = parse_json(known[str(source.tag)][1], "it")
    document["annotations"][CACHE_EXPIRES] = expires
    fake.put_manifest("team/cache", "changed", encode_json(document), OCI_MANIFEST)
    with pytest.raises(ImageError, match="does not say until when it counts"):
        read(entry, replace(source, tag="changed"), places)


def test_artifact_of_another_kind_is_no_cache(
    entry: CacheEntry, places: Places, fake: FakeRegistry
) -> None:
    source = written(entry, places)
    document = parse_json(fake.manifests["team/cache"][str(source.tag)][1], "it")
    document["artifactType"] = "application/vnd.example.v1"
    fake.put_manifest("team/cache", "changed", encode_json(document), OCI_MANIFEST)
    with pytest.raises(ImageError, match="is no cache of a build, but an artifact of"):
        read(entry, replace(source, tag="changed"), places)


def test_damaged_cache_is_not_taken(entry: CacheEntry, places: Places, fake: FakeRegistry) -> None:
    source = written(entry, places)
    blobs = fake.blobs["team/cache"]
    (digest,) = (one for one, data in blobs.items() if len(data) > 2)
    blobs[digest] = bytes([blobs[digest][0] ^ 1]) + blobs[digest][1:]
    with pytest.raises(RegistryError, match="came with digest"):
        read(entry, source, places)


def test_cache_that_unpacks_to_too_much_is_not_taken(entry: CacheEntry, places: Places) -> None:
    source = written(entry, places, bytes(2 * LIMIT))
    with pytest.raises(PolicyError, match="unpacks to more than"):
        read(entry, source, places)
    with pytest.raises(PolicyError, match="the limit is 10"):
        read(entry, source, places, limit=10)


def test_registry_that_is_not_there_is_an_expected_failure(
    entry: CacheEntry, places: Places
) -> None:
    nowhere = Reference.parse("127.0.0.1:1/cache:x")
    with pytest.raises(Ocis2iError, match=r"127\.0\.0\.1:1"):
        read(entry, nowhere, places)


# --- the key ------------------------------------------------------------------------------------


def builder(content: bytes = b"{}", architecture: str = "amd64") -> Obtained:
    one = Descriptor(OCI_MANIFEST, Digest.of(content), len(content))
    config = ImageConfig(Platform(architecture), RuntimeConfig())
    return Obtained(Image(config, ()), Manifest(content, one, one, ()), "builder", None)


def script(file: Path | None = None) -> ScriptPlace:
    return ScriptPlace("assemble", "image", "image:///s2i/assemble", "/s2i/assemble", file)


def test_key_depends_on_what_artifacts_depend_on(tmp_path: Path) -> None:
    name = Reference.parse("host/app:1")
    (tmp_path / "one").write_text("1")
    (tmp_path / "two").write_text("2")
    keys = {
        cache_key(name, builder(), [script()]),
        cache_key(Reference.parse("host/other:1"), builder(), [script()]),
        cache_key(None, builder(), [script()]),
        cache_key(name, builder(b"{ }"), [script()]),
        cache_key(name, builder(architecture="arm64"), [script()]),
        cache_key(name, builder(), [script(tmp_path / "one")]),
        cache_key(name, builder(), [script(tmp_path / "two")]),
    }
    assert len(keys) == 7


def test_key_is_the_same_for_every_tag_of_a_name() -> None:
    one, two = (cache_key(Reference.parse(f"host/app:{tag}"), builder(), []) for tag in "12")
    assert one == two
