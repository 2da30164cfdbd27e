from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import tarfile
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from ocis2i.archives import open_image
from ocis2i.blobs import BlobSource, ImageSource, VerifiedReader, read_document
from ocis2i.errors import ImageError, Ocis2iError, OutputError, UsageError
from ocis2i.manifest import Descriptor, Encoded, Image, Manifest, decode_image, encode_image
from ocis2i.outputs import (
    ArchiveOutput,
    DockerArchiveOutput,
    LayoutOutput,
    Output,
    deliver,
    docker_archive,
    files,
    parse_output,
)
from ocis2i.reference import PathLocation, Reference
from tests.fakes import judges
from tests.fakes.images import CompressionName, Layer, make_layout

BASE = Layer().dir("etc").file("etc/motd", "hello\n" * 3000)
TOP = Layer().dir("etc").file("etc/app", "x" * 5000)
NAME = Reference.parse("quay.io/me/app:1")

needs_skopeo = pytest.mark.skipif(not judges.have("skopeo"), reason="skopeo is not installed")
needs_umoci = pytest.mark.skipif(not judges.have("umoci"), reason="umoci is not installed")


class Built:
    """An image as a build leaves it: values, bytes, and a place with the layers."""

    def __init__(self, source: ImageSource) -> None:
        manifest = source.manifest()
        assert isinstance(manifest, Manifest)
        self.image: Image = decode_image(manifest, read_document(source, manifest.config))
        self.encoded: Encoded = encode_image(self.image)
        self.blobs: BlobSource = source

    def to(self, output: Output | str, name: Reference | None = NAME) -> str:
        chosen = parse_output(output) if isinstance(output, str) else output
        done = deliver(chosen, self.image, self.encoded, self.blobs, name=name)
        assert done.digest == self.encoded.descriptor.digest
        return done.where


def build(
    path: Path, *layers: Layer, compression: CompressionName = "gzip", docker: bool = False
) -> None:
    config = {"User": "1001", "Labels": {"a": "b"}, "Cmd": ["/run"]}
    make_layout(path, None, layers, config, compression=compression, docker=docker)


@pytest.fixture(params=["gzip", "zstd", "none"])
def built(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Built]:
    build(tmp_path / "store", BASE, TOP, BASE, compression=request.param)
    with open_image(PathLocation("oci", str(tmp_path / "store"))) as source:
        yield Built(source)


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[Built]:
    build(tmp_path / "store", BASE, TOP, docker=True)
    with open_image(PathLocation("oci", str(tmp_path / "store"))) as source:
        yield Built(source)


def read_back(place: str) -> tuple[Image, str]:
    transport, path = place.split(":", 1)
    location = PathLocation(transport, path.split(":")[0])  # type: ignore[arg-type]
    with open_image(location) as source:
        manifest = source.manifest()
        assert isinstance(manifest, Manifest)
        for layer in manifest.layers:
            with source.open_blob(layer) as reader:
                reader.read()
        image = decode_image(manifest, read_document(source, manifest.config))
        return image, str(manifest.descriptor.digest)


def rest_of(path: Path) -> list[str]:
    return sorted(str(one.relative_to(path)) for one in path.rglob("*"))


# --- what to write ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "output"),
    [
        ("oci:out", LayoutOutput(Path("out"))),
        ("oci:/tmp/out:app:1", LayoutOutput(Path("/tmp/out"), "app:1")),
        ("oci-archive:a.tar:x/y:1", ArchiveOutput(Path("a.tar"), "x/y:1")),
        ("docker-archive:a.tar", DockerArchiveOutput(Path("a.tar"))),
        (
            "docker-archive:a.tar:docker.io/library/app",
            DockerArchiveOutput(Path("a.tar"), Reference.parse("app")),
        ),
    ],
)
def test_an_output_is_read_and_shown(text: str, output: Output) -> None:
    assert parse_output(text) == output
    assert str(output) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("docker://quay.io/a/b", "not a directory or file"),
        ("quay.io/a/b", "not a directory or file"),
        ("oci:", "names no path"),
        ("oci:dir:@sha256:1", "cannot be the name"),
        ("oci:dir:-x", "cannot be the name"),
        ("oci-archive:a.tar:two words", "cannot be the name"),
        ("docker-archive:a.tar:App", "lower case"),
        (f"docker-archive:a.tar:app@sha256:{'0' * 64}", "not by a digest"),
        ("docker-daemon:app", "no Docker daemon"),
    ],
)
def test_an_output_that_cannot_be_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        parse_output(text)
    if "registry" in str(caught.value.hint):
        assert "--push" in str(caught.value.hint)


# --- layouts ----------------------------------------------------------------------------------


def test_a_new_layout_holds_the_image_and_nothing_else(built: Built, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    assert built.to(f"oci:{out}:app:1") == f"oci:{out}:app:1"
    (entry,) = judges.validate_layout(out)
    assert entry["digest"] == str(built.encoded.descriptor.digest)
    assert entry["annotations"] == {"org.opencontainers.image.ref.name": "app:1"}
    assert read_back(f"oci:{out}") == (built.image, entry["digest"])


def test_the_name_of_the_build_is_used_without_another(plain: Built, tmp_path: Path) -> None:
    plain.to(f"oci:{tmp_path}/out")
    plain.to(f"oci:{tmp_path}/bare", None)
    index = json.loads((tmp_path / "out/index.json").read_text())
    assert index["manifests"][0]["annotations"] == {
        "org.opencontainers.image.ref.name": "quay.io/me/app:1"
    }
    assert "annotations" not in (tmp_path / "bare/index.json").read_text()


def test_other_images_in_a_layout_stay_and_the_same_name_is_replaced(
    plain: Built, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    other = make_layout(out, "other", [TOP])
    make_layout(out, "app", [TOP])
    index = json.loads((out / "index.json").read_text()) | {"x-mine": 1}
    (out / "index.json").write_text(json.dumps(index))
    plain.to(f"oci:{out}:app")
    plain.to(f"oci:{out}:app")
    index = json.loads((out / "index.json").read_text())
    assert index["x-mine"] == 1
    assert [entry["digest"] for entry in index["manifests"]] == [
        str(other),
        str(plain.encoded.descriptor.digest),
    ]


def test_the_unnamed_image_is_replaced_when_it_is_the_only_one(
    plain: Built, tmp_path: Path
) -> None:
    make_layout(tmp_path / "one", None, [TOP])
    plain.to(f"oci:{tmp_path}/one", None)
    assert len(json.loads((tmp_path / "one/index.json").read_text())["manifests"]) == 1
    make_layout(tmp_path / "two", None, [TOP])
    make_layout(tmp_path / "two", None, [BASE])
    plain.to(f"oci:{tmp_path}/two", None)
    plain.to(f"oci:{tmp_path}/two", None)
    assert len(json.loads((tmp_path / "two/index.json").read_text())["manifests"]) == 3


def test_good_blobs_are_not_written_again_and_bad_ones_are(plain: Built, tmp_path: Path) -> None:
    out = tmp_path / "out"
    plain.to(f"oci:{out}")
    good, bad, short = (
        out / "blobs/sha256" / one.hex
        for one in (
            plain.image.layers[0].descriptor.digest,
            plain.image.layers[1].descriptor.digest,
            plain.encoded.config_descriptor.digest,
        )
    )
    before = good.stat()
    bad.write_bytes(bytes(bad.stat().st_size))
    short.write_bytes(b"")
    plain.to(f"oci:{out}")
    assert (good.stat().st_ino, good.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert len(judges.validate_layout(out)) == 1


def test_an_empty_directory_becomes_a_layout_and_a_full_one_does_not(
    plain: Built, tmp_path: Path
) -> None:
    empty, full = tmp_path / "empty", tmp_path / "full"
    empty.mkdir()
    plain.to(f"oci:{empty}")
    assert judges.validate_layout(empty)
    full.mkdir()
    (full / "mine.txt").write_text("precious")
    with pytest.raises(OutputError, match="other things in it"):
        plain.to(f"oci:{full}")
    assert rest_of(full) == ["mine.txt"]


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_a_broken_index_is_not_overwritten(plain: Built, tmp_path: Path, text: str) -> None:
    out = tmp_path / "out"
    make_layout(out, "x", [TOP])
    (out / "index.json").write_text(text)
    with pytest.raises(OutputError, match=r"is broken|is not the index"):
        plain.to(f"oci:{out}")
    assert (out / "index.json").read_text() == text


def test_parallel_deliveries_lose_no_entry(plain: Built, tmp_path: Path) -> None:
    out = tmp_path / "out"
    failures: list[Exception] = []

    def one(number: int) -> None:
        try:
            plain.to(f"oci:{out}:app:{number}")
        except Ocis2iError as error:
            failures.append(error)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(judges.validate_layout(out)) == 8


# --- archives ---------------------------------------------------------------------------------


def test_an_oci_archive_reads_back(built: Built, tmp_path: Path) -> None:
    file = tmp_path / "image.tar"
    assert built.to(f"oci-archive:{file}:app") == f"oci-archive:{file}:app"
    image, digest = read_back(f"oci-archive:{file}")
    assert (image, digest) == (built.image, str(built.encoded.descriptor.digest))
    with tarfile.open(file) as archive:
        members = archive.getmembers()
    judges.check_tar(file)
    (tmp_path / "unpacked").mkdir()
    subprocess.run(["tar", "-xf", str(file), "-C", str(tmp_path / "unpacked")], check=True)
    assert [one.name for one in members] == sorted(one.name for one in members)
    assert {(one.mtime, one.uid, one.gid) for one in members} == {(0, 0, 0)}
    assert len(judges.validate_layout(tmp_path / "unpacked")) == 1


def test_a_docker_archive_reads_back_with_plain_layers(built: Built, tmp_path: Path) -> None:
    file = tmp_path / "image.tar"
    built.to(f"docker-archive:{file}")
    image, _ = read_back(f"docker-archive:{file}")
    assert image.config == built.image.config
    assert image.diff_ids == built.image.diff_ids
    with tarfile.open(file) as archive:
        names = archive.getnames()
        (entry,) = json.load(archive.extractfile("manifest.json") or pytest.fail("no manifest"))
        for layer in image.layers:
            content = archive.extractfile(f"{layer.diff_id.hex}.tar")
            assert content
            assert hashlib.sha256(content.read()).hexdigest() == layer.diff_id.hex
    assert len(names) == len(set(names)) == 4  # the repeated layer once
    assert entry["RepoTags"] == ["quay.io/me/app:1"]
    assert len(entry["Layers"]) == 3


@pytest.mark.parametrize(
    ("own", "name", "tags"),
    [
        (":web:2", NAME, ["docker.io/library/web:2"]),
        (":web", None, ["docker.io/library/web:latest"]),
        ("", NAME, ["quay.io/me/app:1"]),
        ("", None, None),
    ],
)
def test_the_tag_in_a_docker_archive(
    plain: Built, tmp_path: Path, own: str, name: Reference | None, tags: list[str] | None
) -> None:
    plain.to(f"docker-archive:{tmp_path}/image.tar{own}", name)
    with tarfile.open(tmp_path / "image.tar") as archive:
        (entry,) = json.load(archive.extractfile("manifest.json") or pytest.fail("no manifest"))
    assert entry["RepoTags"] == tags


@pytest.mark.parametrize("transport", ["oci-archive", "docker-archive"])
class TestArchives:
    def test_the_same_image_gives_the_same_file(
        self, plain: Built, tmp_path: Path, transport: str
    ) -> None:
        plain.to(f"{transport}:{tmp_path}/a.tar")
        os.utime(tmp_path / "store")
        plain.to(f"{transport}:{tmp_path}/b.tar")
        assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()

    def test_a_file_is_replaced_and_a_link_followed(
        self, plain: Built, tmp_path: Path, transport: str
    ) -> None:
        (tmp_path / "old.tar").write_text("old")
        (tmp_path / "link.tar").symlink_to("old.tar")
        plain.to(f"{transport}:{tmp_path}/link.tar")
        assert (tmp_path / "link.tar").is_symlink()
        assert read_back(f"{transport}:{tmp_path}/old.tar")

    def test_the_file_has_the_usual_mode(
        self, plain: Built, tmp_path: Path, transport: str
    ) -> None:
        (tmp_path / "usual").touch()
        plain.to(f"{transport}:{tmp_path}/a.tar")
        assert (tmp_path / "a.tar").stat().st_mode == (tmp_path / "usual").stat().st_mode

    def test_what_is_no_file_is_not_replaced(
        self, plain: Built, tmp_path: Path, transport: str
    ) -> None:
        (tmp_path / "dir").mkdir()
        os.mkfifo(tmp_path / "pipe")
        (tmp_path / "loop").symlink_to("loop")
        for name, message in (
            ("dir", "is a directory"),
            ("pipe", "device or pipe"),
            ("loop", "circle|levels of symbolic"),
            ("none/a.tar", "No such file"),
            ("pipe/a.tar", "Not a directory"),
        ):
            with pytest.raises(OutputError, match=message):
                plain.to(f"{transport}:{tmp_path}/{name}")
        assert (tmp_path / "pipe").is_fifo()


class Spoilt:
    """A source whose second layer fails in the middle."""

    def __init__(self, blobs: BlobSource, image: Image, error: Exception) -> None:
        self._blobs = blobs
        self._bad = image.layers[1].descriptor.digest
        self._error = error

    def open_blob(self, descriptor: Descriptor) -> VerifiedReader:
        reader = self._blobs.open_blob(descriptor)
        if descriptor.digest == self._bad:
            reader.read(10)
            reader.read = self._fail  # type: ignore[method-assign]
        return reader

    def _fail(self, size: int = -1, /) -> bytes:
        raise self._error


@pytest.mark.parametrize("transport", ["oci", "oci-archive", "docker-archive"])
class TestFailures:
    @pytest.mark.parametrize(
        ("error", "expected"),
        [
            (OSError(errno.ENOSPC, "No space left on device"), OutputError),
            (OSError(errno.EACCES, "Permission denied"), OutputError),
            (ImageError("blob is damaged"), ImageError),
            (KeyboardInterrupt(), KeyboardInterrupt),
        ],
    )
    def test_nothing_half_written_is_left(
        self,
        plain: Built,
        tmp_path: Path,
        transport: str,
        error: Exception,
        expected: type[BaseException],
    ) -> None:
        good, plain.blobs = plain.blobs, Spoilt(plain.blobs, plain.image, error)
        out = tmp_path / "out"
        out.mkdir()
        with pytest.raises(expected) as caught:
            plain.to(f"{transport}:{out}/image")
        if isinstance(caught.value, OutputError):
            assert f"`{out}/image`" in caught.value.message
            assert caught.value.hint
        left = [name for name in rest_of(out) if (out / name).is_file()]
        first = plain.image.layers[0].descriptor.digest.hex
        whole = [f"image/blobs/sha256/{first}", "image/oci-layout"]
        assert left == (whole if transport == "oci" else [])
        plain.blobs = good
        plain.to(f"{transport}:{out}/image")
        assert read_back(f"{transport}:{out}/image")

    def test_an_old_result_survives_a_failure(
        self, plain: Built, tmp_path: Path, transport: str
    ) -> None:
        plain.to(f"{transport}:{tmp_path}/image")
        before = read_back(f"{transport}:{tmp_path}/image")
        error = OSError(errno.ENOSPC, "No space left on device")
        plain.blobs = Spoilt(plain.blobs, plain.image, error)
        blob = f"image/blobs/sha256/{plain.image.layers[1].descriptor.digest.hex}"
        if transport == "oci":  # what is there would not be written
            (tmp_path / blob).rename(tmp_path / "aside")
        with pytest.raises(OutputError, match="No space left"):
            plain.to(f"{transport}:{tmp_path}/image")
        if transport == "oci":
            (tmp_path / "aside").rename(tmp_path / blob)
        assert read_back(f"{transport}:{tmp_path}/image") == before

    def test_a_missing_layer_is_an_image_error(
        self, plain: Built, tmp_path: Path, transport: str
    ) -> None:
        hexadecimal = plain.image.layers[1].descriptor.digest.hex
        (tmp_path / "store/blobs/sha256" / hexadecimal).unlink()
        with pytest.raises(ImageError, match="there is no"):
            plain.to(f"{transport}:{tmp_path}/out")


def test_a_wrong_diff_id_does_not_get_into_a_docker_archive(tmp_path: Path) -> None:
    store = tmp_path / "store"
    build(store, BASE)
    with open_image(PathLocation("oci", str(store))) as source:
        one = Built(source)
        build(tmp_path / "other", TOP)
        with open_image(PathLocation("oci", str(tmp_path / "other"))) as other:
            wrong = Built(other).image.layers[0].diff_id
        layer = one.image.layers[0]
        one.image = Image(one.image.config, (type(layer)(layer.descriptor, wrong),))
        with pytest.raises(ImageError, match="but its diff_id is"):
            one.to(f"docker-archive:{tmp_path}/image.tar")
    assert not (tmp_path / "image.tar").exists()


def test_a_layer_beyond_eight_gibibytes_has_a_header_of_one_block() -> None:
    for size in (0, 512, 8 * 2**30 - 1, 8 * 2**30, 3 * 2**40):
        block = docker_archive.one_block_header("a" * 64 + ".tar", size)
        assert len(block) == 512
        assert tarfile.TarInfo.frombuf(block, "utf-8", "strict").size == size


def test_writing_needs_little_memory(tmp_path: Path) -> None:
    big = Layer().file("big", os.urandom(24 << 20))
    build(tmp_path / "store", big)
    with open_image(PathLocation("oci", str(tmp_path / "store"))) as source:
        image = Built(source)
        for place in ("oci:out", "oci-archive:a.tar", "docker-archive:b.tar"):
            transport, name = place.split(":")
            tracemalloc.start()
            image.to(f"{transport}:{tmp_path}/{name}")
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peak < 8 << 20, place


def test_a_whole_file_is_unknown_until_it_is_whole(tmp_path: Path) -> None:
    with files.whole_file(tmp_path / "a") as out:
        out.write(b"data")
        assert not (tmp_path / "a").exists()
    assert (tmp_path / "a").read_bytes() == b"data"
    assert rest_of(tmp_path) == ["a"]


# --- judges -----------------------------------------------------------------------------------


@needs_skopeo
def test_skopeo_accepts_every_output(built: Built, tmp_path: Path) -> None:
    built.to(f"oci:{tmp_path}/out:app")
    built.to(f"oci-archive:{tmp_path}/a.tar:app")
    built.to(f"docker-archive:{tmp_path}/d.tar:app:1")
    digest = str(built.encoded.descriptor.digest)
    assert judges.skopeo_inspect(tmp_path / "out", "app")["Digest"] == digest
    assert judges.skopeo_inspect(f"oci-archive:{tmp_path}/a.tar:app")["Digest"] == digest
    shown = judges.skopeo_inspect(f"docker-archive:{tmp_path}/d.tar:app:1")
    assert shown["Labels"] == {"a": "b"}
    config = judges.skopeo_config(f"docker-archive:{tmp_path}/d.tar")
    assert config["config"]["Cmd"] == ["/run"]
    for number, place in enumerate(
        (
            f"oci:{tmp_path}/out:app",
            f"oci-archive:{tmp_path}/a.tar",
            f"docker-archive:{tmp_path}/d.tar",
        )
    ):
        judges.skopeo_copy(place, f"dir:{tmp_path}/copy{number}")
        assert (tmp_path / f"copy{number}" / "manifest.json").exists()


@needs_skopeo
@pytest.mark.parametrize("transport", ["oci", "oci-archive", "docker-archive"])
def test_we_accept_what_skopeo_writes(plain: Built, tmp_path: Path, transport: str) -> None:
    plain.to(f"oci:{tmp_path}/out:app")
    name = "docker.io/library/app:1" if transport == "docker-archive" else "app"
    judges.skopeo_copy(f"oci:{tmp_path}/out:app", f"{transport}:{tmp_path}/theirs:{name}")
    image, _ = read_back(f"{transport}:{tmp_path}/theirs")
    assert image.diff_ids == plain.image.diff_ids


@needs_umoci
def test_umoci_unpacks_a_layout(plain: Built, tmp_path: Path) -> None:
    plain.to(f"oci:{tmp_path}/out:app")
    root = judges.umoci_unpack(tmp_path / "out", "app", tmp_path / "bundle")
    assert (root / "etc/app").read_text() == "x" * 5000
    assert (root / "etc/motd").read_text() == "hello\n" * 3000


def test_the_validator_finds_what_is_wrong(plain: Built, tmp_path: Path) -> None:
    out = tmp_path / "out"
    plain.to(f"oci:{out}:app")
    blob = out / "blobs/sha256" / plain.image.layers[0].descriptor.digest.hex
    content = blob.read_bytes()
    blob.write_bytes(content + b"\0")
    with pytest.raises(judges.RejectedError, match="another size"):
        judges.validate_layout(out)
    blob.write_bytes(content)
    (out / "blobs/sha256" / ("0" * 64)).write_bytes(b"")
    with pytest.raises(judges.RejectedError, match="has the digest"):
        judges.validate_layout(out)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (Layer().file("a/b"), "no directory before"),
        (Layer().file("a").file("a"), "there twice"),
        (Layer().file("../a"), "bad name"),
        (Layer().hardlink("b", "a"), "links to nothing"),
    ],
)
def test_the_validator_finds_unclean_tars(tmp_path: Path, layer: Layer, message: str) -> None:
    make_layout(tmp_path, "app", [layer])
    with pytest.raises(judges.RejectedError, match=message):
        judges.validate_layout(tmp_path)
