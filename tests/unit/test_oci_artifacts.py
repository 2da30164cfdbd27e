"""Artifacts as values: which manifest is one, what its files are, and what goes into a new one."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from ocis2i.commands.application import VERBS
from ocis2i.errors import ImageError
from ocis2i.manifest import (
    OCI_CONFIG,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    Index,
    decode_manifest,
    encode_json,
)
from ocis2i.oci_artifacts import (
    EMPTY_CONFIG,
    EMPTY_TYPE,
    TITLE,
    UNPACK,
    add_to_index,
    decode_artifact,
    fallback_tag,
    files_of,
    referrer_type,
)
from ocis2i.reference import Digest
from ocis2i.s2i import SourceInfo
from ocis2i.upload import annotations_of, tar_of

BLOB = Digest.of(b"a blob")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def descriptor(media_type: str = "text/plain", **annotations: str) -> dict[str, Any]:
    found: dict[str, Any] = {"mediaType": media_type, "digest": str(BLOB), "size": 6}
    return found | ({"annotations": annotations} if annotations else {})


def manifest(config: str = EMPTY_TYPE, *layers: dict[str, Any], **fields: Any) -> bytes:
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor(config),
        "layers": list(layers),
    }
    return encode_json(document | fields)


def titled(title: str, **more: str) -> dict[str, Any]:
    return descriptor("text/plain", **{TITLE: title}, **more)


# --- reading ------------------------------------------------------------------------------------


def test_kind_is_the_artifact_type() -> None:
    raw = manifest(EMPTY_TYPE, titled("a"), artifactType="application/vnd.example.v1")
    assert decode_artifact(decode_manifest(raw), "x").kind == "application/vnd.example.v1"


def test_kind_of_an_old_artifact_is_the_type_of_its_config() -> None:
    raw = manifest("application/vnd.unknown.config.v1+json", titled("a"))
    found = decode_artifact(decode_manifest(raw), "x")
    assert found.kind == "application/vnd.unknown.config.v1+json"
    assert [file.path for file in files_of(found, "x")] == ["a"]


def test_image_is_refused_by_what_it_is() -> None:
    found = decode_manifest(manifest(OCI_CONFIG, titled("a")))
    with pytest.raises(ImageError, match="`x` is a container image, not an artifact"):
        decode_artifact(found, "x")


def test_index_is_refused_by_what_it_is() -> None:
    raw = encode_json({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []})
    with pytest.raises(ImageError, match="`x` is an index of images"):
        decode_artifact(decode_manifest(raw), "x")


def test_artifact_type_that_is_no_text_is_refused() -> None:
    with pytest.raises(ImageError, match="`artifactType` of `x` must be text"):
        decode_artifact(decode_manifest(manifest(artifactType=["a"])), "x")


def test_blobs_without_a_name_are_no_files() -> None:
    raw = manifest(EMPTY_TYPE, descriptor("a/b"), artifactType="application/vnd.example.v1")
    found = decode_artifact(decode_manifest(raw), "x")
    with pytest.raises(ImageError, match=r"of type `application/vnd.example.v1` has no files"):
        files_of(found, "x")


def test_annotation_says_what_is_to_be_unpacked() -> None:
    raw = manifest(EMPTY_TYPE, titled("a"), titled("b", **{UNPACK: "true"}))
    files = files_of(decode_artifact(decode_manifest(raw), "x"), "x")
    assert [(file.path, file.unpack) for file in files] == [("a", False), ("b", True)]


# --- referrers ----------------------------------------------------------------------------------


def test_fallback_tag_is_the_digest_with_a_dash() -> None:
    assert fallback_tag(BLOB) == f"sha256-{BLOB.hex}"
    long = Digest("ab" * 64, "sha512")
    assert fallback_tag(long) == f"sha512-{'ab' * 32}"


def referrer() -> Descriptor:
    extra = {"artifactType": "application/spdx+json"}
    return Descriptor(OCI_MANIFEST, BLOB, 6, extra=extra)


def test_first_referrer_makes_an_index() -> None:
    raw = add_to_index(None, referrer())
    assert raw is not None
    found = decode_manifest(raw)
    assert isinstance(found, Index)
    assert [referrer_type(one) for one in found.manifests] == ["application/spdx+json"]


def test_known_referrer_changes_nothing() -> None:
    raw = add_to_index(None, referrer())
    assert raw is not None
    known = decode_manifest(raw)
    assert isinstance(known, Index)
    assert add_to_index(known, referrer()) is None


def test_referrer_is_added_to_what_others_have_written() -> None:
    other = descriptor(OCI_MANIFEST) | {"digest": str(EMPTY_CONFIG.digest), "x": 1}
    document = {"schemaVersion": 2, "manifests": [other], "annotations": {"by": "somebody"}}
    known = decode_manifest(encode_json(document), OCI_INDEX)
    assert isinstance(known, Index)
    raw = add_to_index(known, referrer())
    assert raw is not None
    found = decode_manifest(raw)
    assert isinstance(found, Index)
    assert found.annotations == {"by": "somebody"}
    assert [one.digest for one in found.manifests] == [EMPTY_CONFIG.digest, BLOB]
    assert found.manifests[0].extra == {"x": 1}


def test_type_of_a_referrer_that_is_no_text_is_none() -> None:
    assert referrer_type(Descriptor(OCI_MANIFEST, BLOB, 6, extra={"artifactType": 7})) == ""


# --- a new one ----------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "bin").mkdir(parents=True)
    (root / "bin/run").write_text("run\n")
    (root / "bin/run").chmod(0o755)
    (root / "bin-2").write_text("x" * 600)
    (root / "link").symlink_to("bin/run")
    for path in (root / "bin/run", root / "bin-2", root / "bin"):
        os.utime(path, ns=(0, 1_600_000_000_123_456_789))
    os.utime(root / "link", ns=(0, 1_600_000_000_000_000_000), follow_symlinks=False)
    return root


def members(data: bytes) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return {member.name: member for member in archive}


def test_tree_becomes_a_tar_with_modes_links_and_whole_seconds(tree: Path) -> None:
    found = members(b"".join(tar_of(tree)))
    assert list(found) == ["bin", "bin/run", "bin-2", "link"]
    assert found["bin/run"].mode == 0o755
    assert found["link"].linkname == "bin/run"
    assert {one.mtime for one in found.values()} == {1_600_000_000}
    assert {(one.uid, one.gid, one.uname, one.gname) for one in found.values()} == {(0, 0, "", "")}


def test_same_tree_is_the_same_tar(tree: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tree, copy, symlinks=True)
    assert b"".join(tar_of(tree)) == b"".join(tar_of(copy))


def test_times_are_clamped_or_replaced(tree: Path) -> None:
    clamped = members(b"".join(tar_of(tree, latest=1_500_000_000)))
    assert {one.mtime for one in clamped.values()} == {1_500_000_000}
    untouched = members(b"".join(tar_of(tree, latest=1_700_000_000)))
    assert {one.mtime for one in untouched.values()} == {1_600_000_000}
    replaced = members(b"".join(tar_of(tree, exact=1_700_000_000)))
    assert {one.mtime for one in replaced.values()} == {1_700_000_000}


def test_commit_is_in_the_annotations_and_paths_of_the_host_are_not() -> None:
    info = SourceInfo("https://host/project.git", commit_id=COMMIT, commit_time=0)
    assert annotations_of(info) == {
        "org.opencontainers.image.revision": COMMIT,
        "org.opencontainers.image.source": "https://host/project.git",
        "org.opencontainers.image.created": "1970-01-01T00:00:00Z",
    }
    assert annotations_of(SourceInfo("/home/me/project")) == {}
    assert annotations_of(SourceInfo("file:///home/me/project")) == {}


def test_oras_is_loaded_by_those_who_need_it_alone() -> None:
    verbs = ", ".join(sorted({f"ocis2i.commands.{verb.module}" for verb in VERBS.values()}))
    look = f"import sys, {verbs}; sys.exit('oras' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", look], check=False).returncode == 0
