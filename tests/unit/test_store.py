"""The store: whole or not at all, for one process and for several at once."""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
import time
from pathlib import Path
from typing import BinaryIO

import pytest

from ocis2i.blobs import CHUNK
from ocis2i.errors import ImageError, OutputError
from ocis2i.manifest import OCI_INDEX, OCI_LAYER_GZIP, OCI_MANIFEST, Descriptor, Manifest
from ocis2i.prune import prune
from ocis2i.reference import Digest, Reference
from ocis2i.settings import Settings
from ocis2i.store import Store
from tests.conftest import needs
from tests.fakes.judges import skopeo_inspect, validate_layout
from tests.fakes.program import Program


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store.open(tmp_path / "store")


def describe(data: bytes, media_type: str = OCI_LAYER_GZIP) -> Descriptor:
    """The descriptor of `data`."""
    return Descriptor(media_type, Digest.of(data), len(data))


def put(store: Store, data: bytes) -> Descriptor:
    """Puts a blob."""
    descriptor = describe(data)
    store.add_blob(descriptor, lambda file: _write(file, data))
    return descriptor


def _write(file: BinaryIO, data: bytes) -> None:
    file.write(data)


def put_image(store: Store, name: str, content: bytes = b"content") -> Manifest:
    """Puts an image of one layer (a blob that nobody unpacks)."""
    layer = put(store, content)
    diff_id = str(Digest.of(b"tar of " + content))
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        }
    ).encode()
    config_descriptor = describe(config, "application/vnd.oci.image.config.v1+json")
    store.add_document(config, config_descriptor)
    raw = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": _json(config_descriptor),
            "layers": [_json(layer)],
        }
    ).encode()
    store.put_manifest(raw, describe(raw, OCI_MANIFEST), name)
    found = store.manifest(describe(raw, OCI_MANIFEST))
    assert isinstance(found, Manifest)
    return found


def _json(descriptor: Descriptor) -> dict[str, object]:
    return {
        "mediaType": descriptor.media_type,
        "digest": str(descriptor.digest),
        "size": descriptor.size,
    }


def names(store: Store) -> list[str]:
    """What the index holds."""
    return [image.name for image in store.images()]


def leftovers(store: Store) -> list[Path]:
    """What lies about in `tmp/`."""
    return list((store.root / "tmp").iterdir())


# --- blobs ------------------------------------------------------------------------------------


def test_nobody_else_gets_into_a_store_whose_directory_was_there(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        Store.open(tmp_path)
    finally:
        os.umask(before)
    assert {place.stat().st_mode & 0o077 for place in tmp_path.iterdir() if place.is_dir()} == {0}


def test_a_blob_is_read_as_it_was_put(store: Store) -> None:
    data = os.urandom(3_000_000)
    descriptor = put(store, data)
    with store.open_blob(descriptor) as reader:
        parts = []
        while part := reader.read(CHUNK):
            parts.append(part)
    assert b"".join(parts) == data
    assert store.blob_path(descriptor.digest).stat().st_mode & 0o777 == 0o444
    assert leftovers(store) == []


def test_a_writer_that_fails_leaves_nothing(store: Store) -> None:
    def fill(file: BinaryIO) -> None:
        file.write(b"half")
        raise ZeroDivisionError

    descriptor = describe(b"whole")
    with pytest.raises(ZeroDivisionError):
        store.add_blob(descriptor, fill)
    assert not store.has_blob(descriptor)
    assert leftovers(store) == []
    put(store, b"whole")
    assert store.has_blob(descriptor)


@pytest.mark.parametrize("data", [b"", b"shor", b"longer than it"])
def test_a_blob_of_another_size_is_refused(store: Store, data: bytes) -> None:
    descriptor = describe(b"short")
    with pytest.raises(ImageError, match="it must have 5"):
        store.add_blob(descriptor, lambda file: _write(file, data))
    assert not store.blob_path(descriptor.digest).exists()


def test_a_blob_that_is_there_is_not_written_again(store: Store) -> None:
    descriptor = put(store, b"data")
    store.add_blob(descriptor, lambda _: pytest.fail("written again"))
    assert store.has_blob(descriptor)


def test_a_blob_cut_short_by_a_crash_is_written_again(store: Store) -> None:
    descriptor = put(store, b"data")
    path = store.blob_path(descriptor.digest)
    path.unlink()
    path.write_bytes(b"da")
    assert not store.has_blob(descriptor)
    put(store, b"data")
    assert path.read_bytes() == b"data"


@pytest.mark.parametrize(
    ("damaged", "complaint"),
    [(b"dat!", "has digest"), (b"dat", "too short"), (b"data+", "longer than")],
)
def test_a_damaged_blob_is_found_out_when_read(
    store: Store, damaged: bytes, complaint: str
) -> None:
    descriptor = put(store, b"data")
    path = store.blob_path(descriptor.digest)
    path.chmod(0o644)
    path.write_bytes(damaged)
    with pytest.raises(ImageError, match=complaint), store.open_blob(descriptor) as reader:
        while reader.read(2):
            pass


def test_a_missing_blob_is_told_with_what_to_do(store: Store) -> None:
    with pytest.raises(ImageError, match="is not in the store") as caught:
        store.open_blob(describe(b"none"))
    assert caught.value.hint


def test_a_document_must_have_its_digest(store: Store) -> None:
    with pytest.raises(ImageError, match="has not the digest"):
        store.add_document(b"other", describe(b"{}"))


def test_of_two_writers_of_one_blob_one_writes(store: Store) -> None:
    descriptor = describe(b"shared")
    written = []
    both = threading.Barrier(2)

    def fill(file: BinaryIO) -> None:
        written.append(file.name)
        file.write(b"shared")

    def writer() -> None:
        both.wait()
        store.add_blob(descriptor, fill)

    threads = [threading.Thread(target=writer) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(written) == 1
    assert store.blob_path(descriptor.digest).read_bytes() == b"shared"


# --- images -----------------------------------------------------------------------------------


def test_an_image_is_found_by_tag_and_by_digest(store: Store) -> None:
    manifest = put_image(store, "docker.io/library/app:1")
    digest = manifest.descriptor.digest
    for text in ("app:1", f"app@{digest}", f"docker.io/library/app@{digest}"):
        found = store.find(Reference.parse(text))
        assert isinstance(found, Manifest)
        assert found.descriptor.digest == digest
    assert store.find(Reference.parse("app:2")) is None
    assert store.find(Reference.parse(f"other@{digest}")) is None
    assert store.find(Reference.parse("app@sha256:" + "0" * 64)) is None


def test_a_name_that_is_put_again_points_to_the_newer(store: Store) -> None:
    put_image(store, "docker.io/library/app:1", b"old")
    newer = put_image(store, "docker.io/library/app:1", b"new")
    assert names(store) == ["docker.io/library/app:1"]
    assert store.images()[0].descriptor.digest == newer.descriptor.digest


def test_two_names_may_stand_for_one_image(store: Store) -> None:
    for tag in "ab":
        put_image(store, f"docker.io/library/app:{tag}")
    assert len({image.descriptor.digest for image in store.images()}) == 1
    assert store.remove(Reference.parse("app:a"))
    assert names(store) == ["docker.io/library/app:b"]


def test_an_untagged_image_is_there_once_and_gets_its_name_later(store: Store) -> None:
    digest = put_image(store, "").descriptor.digest
    put_image(store, "")
    assert names(store) == [""]
    assert store.find(Reference.parse(f"any@{digest}")) is not None
    put_image(store, "docker.io/library/app:1")
    assert names(store) == ["docker.io/library/app:1"]
    put_image(store, "")
    assert names(store) == ["docker.io/library/app:1"]


def test_removing_what_is_not_there_says_so(store: Store) -> None:
    put_image(store, "docker.io/library/app:1")
    assert not store.remove(Reference.parse("app:2"))
    assert len(names(store)) == 1


def _put_many(root: Path, prefix: str) -> None:
    store = Store.open(root)
    for number in range(15):
        put_image(store, f"docker.io/library/{prefix}:{number}", f"{prefix}{number}".encode())


def test_processes_that_write_at_once_lose_nothing(store: Store) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_put_many, args=(store.root, name)) for name in "abc"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert len(names(store)) == len(set(names(store))) == 45
    assert leftovers(store) == []


def test_an_index_that_could_not_be_written_is_as_before(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_image(store, "docker.io/library/app:1")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OutputError, match="the disk is full"):
            store.remove(Reference.parse("app:1"))
    assert names(store) == ["docker.io/library/app:1"]
    assert leftovers(store) == []


# --- the directory ----------------------------------------------------------------------------


def test_opening_twice_changes_nothing(store: Store) -> None:
    put_image(store, "docker.io/library/app:1")
    assert names(Store.open(store.root)) == names(store)


def test_a_store_of_another_version_is_refused(store: Store) -> None:
    (store.root / "store.json").write_text('{"version": 99}')
    with pytest.raises(OutputError, match="version 99") as caught:
        Store.open(store.root)
    assert caught.value.hint


@pytest.mark.parametrize("content", ["no json", "[]", "{}", '{"version": "1"}', ""])
def test_a_broken_marker_is_an_error_and_no_traceback(store: Store, content: str) -> None:
    (store.root / "store.json").write_text(content)
    with pytest.raises(OutputError, match="store"):
        Store.open(store.root)


def test_a_store_is_for_its_user_alone(store: Store) -> None:
    assert store.root.stat().st_mode & 0o777 == 0o700


def test_a_file_in_the_way_of_the_store_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"the store `.*/file` cannot be used"):
        Store.open(tmp_path / "file")


def test_an_unwritable_place_ends_the_program_with_eight(ocis2i: Program, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    done = ocis2i("images", "--root", locked / "store")
    assert done.code == 8
    assert done.err.startswith("error: the store `")
    assert "Permission denied" in done.err


@needs("skopeo")
def test_others_read_the_store_as_a_layout(store: Store) -> None:
    manifest = put_image(store, "docker.io/library/app:1")
    seen = skopeo_inspect(store.root / "images", "docker.io/library/app:1")
    assert seen["Digest"] == str(manifest.descriptor.digest)


def test_an_empty_store_is_a_valid_layout(store: Store) -> None:
    assert validate_layout(store.root / "images") == []


# --- pruning ----------------------------------------------------------------------------------


@pytest.fixture
def settings(store: Store, tmp_path: Path) -> Settings:
    """Settings for that store."""
    return Settings(store.root, tmp_path)


def blobs(store: Store) -> set[str]:
    """The blobs that are there."""
    return {path.name for path in (store.root / "images/blobs/sha256").iterdir()}


def test_pruning_keeps_what_is_referred_to_and_frees_the_rest(
    store: Store, settings: Settings
) -> None:
    kept = put_image(store, "docker.io/library/app:1", b"kept")
    wanted = blobs(store)
    put_image(store, "docker.io/library/app:2", b"gone")
    put(store, b"nobody's")
    store.remove(Reference.parse("app:2"))
    done = prune(store, settings)
    assert blobs(store) == wanted
    assert done.blobs == 4
    assert done.blob_bytes > 0
    assert store.find(Reference.parse("app:1")) == kept


def test_pruning_keeps_what_an_index_refers_to(store: Store, settings: Settings) -> None:
    child = put_image(store, "")
    store.forget_images()
    absent = {"mediaType": OCI_MANIFEST, "digest": "sha256:" + "1" * 64, "size": 7}
    raw = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": OCI_INDEX,
            "manifests": [_json(child.descriptor), absent],
        }
    ).encode()
    store.put_manifest(raw, describe(raw, OCI_INDEX), "docker.io/library/multi:1")
    wanted = blobs(store)
    prune(store, settings)
    assert blobs(store) == wanted


def test_pruning_everything_empties_the_store(store: Store, settings: Settings) -> None:
    put_image(store, "docker.io/library/app:1")
    (store.root / "tmp/half").write_bytes(b"x")
    (store.root / "tmp/directory/deep").mkdir(parents=True)
    done = prune(store, settings, everything=True)
    assert (blobs(store), names(store), leftovers(store)) == (set(), [], [])
    assert done.leftovers == 2


def test_pruning_waits_for_nobody_and_takes_nothing_from_a_build(
    store: Store, settings: Settings
) -> None:
    put(store, b"being used")
    with store.in_use(), store.new_build() as (directory, _):
        (directory / "upper").mkdir()
        done = prune(store, settings)
        assert done.busy
        assert directory.exists()
        assert len(blobs(store)) == 1
    assert prune(store, settings).builds == 1  # its process is gone now
    assert blobs(store) == set()


def test_the_directory_of_a_build_that_was_emptied_goes_with_its_lock(store: Store) -> None:
    with store.in_use(), store.new_build() as (directory, lock):
        assert [path.name for path in directory.iterdir()] == [lock.path.name]
    assert not directory.exists()


def test_it_remembers_for_a_while_where_much_was_deleted(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = store.new_scratch_directory()
    store.note_emptied(directory, 999)
    assert not (store.root / "emptied.json").exists()
    store.note_emptied(directory, 1000)
    asked: list[list[int]] = []

    def new_directory(parent: Path, emptied: list[int]) -> Path:
        asked.append(emptied)
        return parent

    monkeypatch.setattr("ocis2i.store.new_directory", new_directory)
    store.new_scratch_directory()
    later = time.time() + 301
    monkeypatch.setattr("time.time", lambda: later)
    store.new_scratch_directory()
    (store.root / "emptied.json").write_text('[[1], "x"]')
    store.new_scratch_directory()
    assert asked == [[directory.stat().st_ino], [], []]


def test_layers_without_an_image_are_pruned_and_others_kept(
    store: Store, settings: Settings
) -> None:
    put_image(store, "docker.io/library/app:1", b"kept")
    kept = store.layer_path(Digest.of(b"tar of kept"))
    other = store.layer_path(Digest.of(b"tar of other"))
    for path in (kept, other):
        (path / "fs").mkdir(parents=True)
    assert prune(store, settings).layers == 1
    assert (kept.exists(), other.exists()) == (True, False)


def test_a_torn_record_of_a_layer_is_no_layer(store: Store) -> None:
    path = store.layer_path(Digest.of(b"x"))
    path.mkdir()
    assert store.layer(Digest.of(b"x")) is None
    for text in ('{"impl', "[]", '{"implied": []}', ""):
        (path / "layer.json").write_text(text)
        assert store.layer(Digest.of(b"x")) is None
