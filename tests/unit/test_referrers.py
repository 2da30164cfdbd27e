"""Attaching to images: registries with a list of referrers, and those without."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ocis2i.errors import RegistryError
from ocis2i.keychain import Keychain
from ocis2i.manifest import OCI_INDEX, OCI_MANIFEST, Descriptor, encode_json
from ocis2i.oci_artifacts import fallback_tag, referrer_type
from ocis2i.oras_client import OrasRegistry, Part, push_artifact
from ocis2i.reference import Digest
from ocis2i.referrers import list_under_tag, referrers_of
from ocis2i.registry import Registry
from tests.fakes.registry import FakeRegistry

SUBJECT = Descriptor(OCI_MANIFEST, Digest.of(b"the image"), 9)
SPDX, OTHER = "application/spdx+json", "application/vnd.example.v1"


@pytest.fixture
def fake() -> Iterator[FakeRegistry]:
    with FakeRegistry() as running:
        yield running


@pytest.fixture
def client() -> Iterator[Registry]:
    with Registry(Keychain({}), environment={}, sleep=lambda _: None) as registry:
        yield registry


def entry(content: bytes, kind: str) -> dict[str, Any]:
    digest = str(Digest.of(content))
    return {"mediaType": OCI_MANIFEST, "digest": digest, "size": 5, "artifactType": kind}


def page(*entries: dict[str, Any]) -> bytes:
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}
    return encode_json(document)


def file(path: Path) -> Part:
    path.write_text("{}\n")
    return Part(path, SPDX)


def test_all_pages_of_the_registrys_list_are_read(fake: FakeRegistry, client: Registry) -> None:
    more = f'</v2/app/referrers/{SUBJECT.digest}?page=2>; rel="next"'
    fake.fail("GET", "referrers", status=200, headers={"Link": more}, body=page(entry(b"1", SPDX)))
    fake.fail("GET", "referrers", status=200, body=page(entry(b"2", OTHER)))
    found = referrers_of(client, fake.reference("app:1"), SUBJECT.digest)
    assert [referrer_type(one) for one in found] == [SPDX, OTHER]
    first, second = fake.requests("GET", "referrers")
    assert (first.query, second.query) == ({}, {"page": ["2"]})


def test_what_a_registry_does_not_filter_is_filtered_here(
    fake: FakeRegistry, client: Registry
) -> None:
    fake.fail("GET", "referrers", status=200, body=page(entry(b"1", SPDX), entry(b"2", OTHER)))
    found = referrers_of(client, fake.reference("app:1"), SUBJECT.digest, OTHER)
    assert [str(one.digest) for one in found] == [str(Digest.of(b"2"))]
    (asked,) = fake.requests("GET", "referrers")
    assert asked.query == {"artifactType": [OTHER]}


def test_list_that_never_ends_ends(
    fake: FakeRegistry, client: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ocis2i.referrers.PAGE_LIMIT", 3)
    again = f'</v2/app/referrers/{SUBJECT.digest}>; rel="next"'
    fake.fail("GET", "referrers", status=200, headers={"Link": again}, body=page(), times=-1)
    with pytest.raises(RegistryError, match="over 3 pages"):
        referrers_of(client, fake.reference("app:1"), SUBJECT.digest)


def test_registry_in_trouble_is_no_registry_without_referrers(
    fake: FakeRegistry, client: Registry
) -> None:
    fake.fail("GET", "referrers", status=403)
    with pytest.raises(RegistryError, match="cannot list what refers to"):
        referrers_of(client, fake.reference("app:1"), SUBJECT.digest)


def test_without_a_list_the_tag_is_read_and_written(
    fake: FakeRegistry, client: Registry, tmp_path: Path
) -> None:
    image = fake.reference("app:1")
    assert referrers_of(client, image, SUBJECT.digest) == ()
    for kind in (SPDX, OTHER, SPDX):
        part = file(tmp_path / "file")
        pushed = push_artifact(client, fake.reference("app"), kind, [part], subject=SUBJECT)
        assert not pushed.listed
        list_under_tag(client, image, SUBJECT.digest, pushed.descriptor)
    found = referrers_of(client, image, SUBJECT.digest)
    assert [referrer_type(one) for one in found] == [SPDX, OTHER]
    _, raw = fake.manifests["app"][str(found[0].digest)]
    assert json.loads(raw)["subject"] == {
        "mediaType": OCI_MANIFEST,
        "digest": str(SUBJECT.digest),
        "size": 9,
    }


def test_tag_that_somebody_uses_for_an_image_is_left_alone(
    fake: FakeRegistry, client: Registry
) -> None:
    raw = encode_json(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {"mediaType": "a/b", "digest": str(SUBJECT.digest), "size": 9},
            "layers": [],
        }
    )
    fake.put_manifest("app", fallback_tag(SUBJECT.digest), raw, OCI_MANIFEST)
    with pytest.raises(RegistryError, match="is not an index of referrers"):
        list_under_tag(client, fake.reference("app:1"), SUBJECT.digest, SUBJECT)
    assert fake.requests("PUT") == []


def test_registry_that_lists_by_itself_says_so(
    fake: FakeRegistry, client: Registry, tmp_path: Path
) -> None:
    noted = {"OCI-Subject": str(SUBJECT.digest)}
    fake.fail("PUT", "manifests", status=201, headers=noted)
    part = file(tmp_path / "file")
    pushed = push_artifact(client, fake.reference("app"), SPDX, [part], subject=SUBJECT)
    assert pushed.listed


def test_registry_that_noted_another_subject_is_not_believed(
    fake: FakeRegistry, client: Registry, tmp_path: Path
) -> None:
    fake.fail("PUT", "manifests", status=201, headers={"OCI-Subject": "sha256:other"})
    part = file(tmp_path / "file")
    with pytest.raises(RegistryError, match="lists the artifact at `sha256:other`"):
        push_artifact(client, fake.reference("app"), SPDX, [part], subject=SUBJECT)


def test_refused_manifest_is_told_in_the_registrys_words(
    fake: FakeRegistry, client: Registry, tmp_path: Path
) -> None:
    body = b'{"errors": [{"code": "MANIFEST_INVALID", "message": "no artifacts here"}]}'
    fake.fail("PUT", "manifests", status=400, body=body)
    with pytest.raises(RegistryError, match="MANIFEST_INVALID: no artifacts here"):
        push_artifact(client, fake.reference("app:1"), SPDX, [file(tmp_path / "file")])


def test_second_push_of_the_same_sends_nothing(
    fake: FakeRegistry, client: Registry, tmp_path: Path
) -> None:
    part = file(tmp_path / "file")
    first = push_artifact(client, fake.reference("app:1"), SPDX, [part])
    before = len(fake.requests("PUT"))
    assert push_artifact(client, fake.reference("app:1"), SPDX, [part]) == first
    assert len(fake.requests("PUT")) == before


def test_strict_tokens_are_enough_for_oras(client: Registry, tmp_path: Path) -> None:
    with FakeRegistry("bearer") as strict:
        strict.fail("PUT", "manifests", status=503)
        push_artifact(client, strict.reference("team/app:1"), SPDX, [file(tmp_path / "file")])
        assert set(strict.manifests["team/app"]) >= {"1"}


def test_other_programs_can_use_oras_on_our_connection(
    fake: FakeRegistry, client: Registry, tmp_path: Path
) -> None:
    reference = fake.reference("localhost/odd--name:1")
    push_artifact(client, reference, SPDX, [file(tmp_path / "file")])
    found = OrasRegistry(client, reference).get_manifest(str(reference))
    assert found["artifactType"] == SPDX
