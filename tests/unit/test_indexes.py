"""Indexes made of images, and files that say what was pushed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from ocis2i.errors import ImageError, OutputError, UsageError
from ocis2i.images import WIDEST, children
from ocis2i.indexes import (
    Member,
    check_platforms,
    encode_index,
    member_of,
    parse_annotations,
    platform_words,
)
from ocis2i.manifest import (
    DOCKER_CONFIG,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    Index,
    Manifest,
    decode_manifest,
    encode_json,
)
from ocis2i.outputs.files import ResultFile
from ocis2i.reference import Digest, Platform
from tests.fakes.judges import schema_check


def member(
    config: dict[str, Any],
    *,
    config_type: str = OCI_CONFIG,
    kind: str = OCI_MANIFEST,
    name: str = "app",
    entry: Descriptor | None = None,
    **more: Any,
) -> Member:
    raw_config = encode_json(config)
    raw = encode_json(
        {
            "schemaVersion": 2,
            "mediaType": kind,
            "config": {
                "mediaType": config_type,
                "digest": str(Digest.of(raw_config)),
                "size": len(raw_config),
            },
            "layers": [],
            **more,
        }
    )
    manifest = decode_manifest(raw)
    assert isinstance(manifest, Manifest)
    return member_of(manifest, raw_config, name, entry)


def for_platform(text: str, **more: Any) -> Member:
    system, architecture, *variant = text.split("/")
    config = {"os": system, "architecture": architecture, **more}
    return member(config | ({"variant": variant[0]} if variant else {}), name=text)


def document(*members: Member, **annotations: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        encode_index([one.entry for one in members], annotations).raw
    )
    return found


# --- what an index says -------------------------------------------------------------------------


def test_index_has_the_platforms_of_the_configs() -> None:
    windows = {
        "os": "windows",
        "architecture": "amd64",
        "os.version": "10.0.1",
        "os.features": ["a"],
    }
    arm = for_platform("linux/arm/v7")
    made = document(arm, member(windows), **{"org.example": "yes"})
    assert made["manifests"][0] == {
        "mediaType": OCI_MANIFEST,
        "digest": str(Digest.of(arm.manifest.raw)),
        "size": len(arm.manifest.raw),
        "platform": {"os": "linux", "architecture": "arm", "variant": "v7"},
    }
    assert made["manifests"][1]["platform"] == windows
    assert made["annotations"] == {"org.example": "yes"}
    schema_check("index", made)


def test_same_images_make_the_same_bytes() -> None:
    entries = [for_platform("linux/amd64").entry, for_platform("linux/arm64").entry]
    first, second = encode_index(entries, {}), encode_index(entries, {})
    assert first.raw == second.raw
    assert first.descriptor == Descriptor(OCI_INDEX, Digest.of(first.raw), len(first.raw))


def test_images_of_docker_stay_what_they_are() -> None:
    config = {"os": "linux", "architecture": "s390x"}
    made = document(member(config, config_type=DOCKER_CONFIG, kind=DOCKER_MANIFEST))
    assert made["mediaType"] == OCI_INDEX
    assert made["manifests"][0]["mediaType"] == DOCKER_MANIFEST


def test_what_another_index_says_of_an_image_is_kept() -> None:
    plain = for_platform("linux/arm64")
    entry = Descriptor(
        OCI_MANIFEST,
        plain.manifest.descriptor.digest,
        plain.manifest.descriptor.size,
        {"org.example": "kept"},
        Platform("arm64", variant="v8"),
        {"artifactType": "application/x", "platform": {"os": "linux", "architecture": "arm64"}},
    )
    found = member({"os": "linux", "architecture": "arm64"}, entry=entry)
    assert found.entry is entry


def test_type_of_an_artifact_is_in_its_descriptor() -> None:
    config = {"os": "linux", "architecture": "amd64"}
    made = document(member(config, artifactType="application/x.y"))
    assert made["manifests"][0]["artifactType"] == "application/x.y"


@pytest.mark.parametrize(
    ("config", "config_type", "said"),
    [
        ({}, "application/vnd.oci.empty.v1+json", "is no image"),
        ({"os": "linux"}, OCI_CONFIG, "does not say its platform"),
        ({"os": "linux", "architecture": ["x"]}, OCI_CONFIG, "does not say its platform"),
    ],
)
def test_what_has_no_platform_is_refused(
    config: dict[str, Any], config_type: str, said: str
) -> None:
    with pytest.raises(ImageError, match=said):
        member(config, config_type=config_type)


# --- platforms ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "platforms", [("linux/amd64", "linux/amd64"), ("linux/arm64", "linux/arm64/v8")]
)
def test_two_images_of_one_platform_are_refused(platforms: tuple[str, str]) -> None:
    members = [for_platform(text) for text in platforms]
    with pytest.raises(UsageError, match=f"`{platforms[0]}` and `{platforms[1]}` are both for"):
        check_platforms(members)


@pytest.mark.parametrize(
    "members",
    [
        [for_platform("linux/arm/v6"), for_platform("linux/arm/v7")],
        [for_platform("linux/amd64"), for_platform("linux/amd64/v3")],
        [for_platform("unknown/unknown"), for_platform("unknown/unknown")],
        [for_platform("windows/amd64", **{"os.version": v}) for v in ("10.0.1", "10.0.2")],
    ],
    ids=["variants", "levels", "attestations", "versions"],
)
def test_what_differs_goes_together(members: list[Member]) -> None:
    check_platforms(members)
    assert len(document(*members)["manifests"]) == 2


def test_platforms_are_said_in_words() -> None:
    unnamed = Descriptor(OCI_MANIFEST, Digest.of(b""), 0)
    entries = [for_platform("linux/amd64").entry, for_platform("linux/arm/v7").entry, unnamed]
    assert platform_words(entries) == f"linux/amd64, linux/arm/v7, {Digest.of(b'')}"


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("linux/x86_64", "linux/amd64"),
        ("linux/aarch64", "linux/arm64"),
        ("linux/armv7l", "linux/arm/v7"),
    ],
)
def test_names_of_the_kernel_are_understood(written: str, meant: str) -> None:
    assert str(Platform.parse(written)) == meant


# --- annotations --------------------------------------------------------------------------------


def test_last_annotation_of_a_key_counts() -> None:
    assert parse_annotations(["a=1", "b=x=y", "a="]) == {"a": "", "b": "x=y"}


@pytest.mark.parametrize("text", ["", "key", "=value", " =value"])
def test_annotation_needs_a_key_and_a_value(text: str) -> None:
    with pytest.raises(UsageError, match="is not KEY=VALUE"):
        parse_annotations([text])


# --- files of results ---------------------------------------------------------------------------


def test_file_of_an_earlier_command_is_gone_until_it_is_written_anew(tmp_path: Path) -> None:
    path = tmp_path / "digest"
    path.write_text("old")
    file = ResultFile(path, "--digest-file")
    assert list(tmp_path.iterdir()) == []
    file.write("sha256:new")
    assert path.read_text() == "sha256:new"


def test_link_stays_and_its_target_is_written(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("target")
    ResultFile(tmp_path / "link", "--iidfile").write("x")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "x"


def test_pipe_is_written_to_as_it_is(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    end = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    ResultFile(tmp_path / "pipe", "--digest-file").write("x")
    assert os.read(end, 10) == b"x"
    os.close(end)
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize(
    ("place", "said"),
    [
        (".", "is a directory"),
        ("missing/file", "No such file or directory"),
        ("file/below", "Not a directory"),
        ("circle", "links lead in a circle"),
    ],
)
def test_what_cannot_be_written_is_said_at_once(tmp_path: Path, place: str, said: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(OutputError, match=f"--iidfile: cannot write .*{said}"):
        ResultFile(tmp_path / place, "--iidfile")


def test_of_equal_entries_one_counts_and_too_many_are_refused() -> None:
    def index(digests: list[Digest]) -> Index:
        entries = [Descriptor(OCI_MANIFEST, digest, 2) for digest in digests]
        return encode_index(entries, {})

    (one,) = children(index([Digest.of(b"{}")] * 20_000))
    assert one.digest == Digest.of(b"{}")
    with pytest.raises(ImageError, match=f"has {WIDEST + 1} images, {WIDEST} are the most"):
        children(index([Digest.of(b"%d" % number) for number in range(WIDEST + 1)]))
