from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from ocis2i import archives
from ocis2i.archives import open_image
from ocis2i.blobs import ImageSource, read_document
from ocis2i.decompression import open_decompressed
from ocis2i.errors import ImageError, PolicyError, UsageError
from ocis2i.manifest import OCI_LAYER, Descriptor, Image, Index, Manifest, decode_image
from ocis2i.reference import Digest, PathLocation, parse_location
from tests.fakes import images
from tests.fakes.images import Layer, make_archive, make_docker_archive, make_index, make_layout

BASE = Layer().dir("etc").file("etc/motd", "hello\n")
TOP = Layer().dir("etc").file("etc/app", "x" * 5000).whiteout("etc/motd")


def at(text: str) -> PathLocation:
    location = parse_location(text)
    assert isinstance(location, PathLocation)
    return location


def image_of(source: ImageSource) -> Image:
    manifest = source.manifest()
    assert isinstance(manifest, Manifest)
    return decode_image(manifest, read_document(source, manifest.config))


def tars_of(source: ImageSource) -> list[bytes]:
    tars = []
    for layer in image_of(source).layers:
        stream = source.open_blob(layer.descriptor)
        with open_decompressed(stream, layer.descriptor.media_type) as reader:
            tars.append(reader.read())
        assert Digest.of(tars[-1]) == layer.diff_id
    return tars


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    path = tmp_path / "layout"
    make_layout(path, "app:1", [BASE, TOP], {"User": "1001"})
    return path


# --- oci: -------------------------------------------------------------------------------------


@pytest.mark.parametrize("docker", [False, True])
@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
def test_a_layout_gives_its_image(
    tmp_path: Path, compression: images.CompressionName, docker: bool
) -> None:
    path = tmp_path / "layout"
    digest = make_layout(
        path, "app", [BASE, TOP], {"User": "7"}, compression=compression, docker=docker
    )
    with open_image(at(f"oci:{path}:app")) as source:
        assert source.manifest().descriptor.digest == digest
        assert image_of(source).config.runtime.user == "7"
        assert tars_of(source) == [BASE.tar(), TOP.tar()]


def test_the_only_image_needs_no_name(layout: Path) -> None:
    with open_image(at(f"oci:{layout}")) as source:
        assert len(image_of(source).layers) == 2


def test_a_name_without_tag_also_means_latest(tmp_path: Path) -> None:
    first = make_layout(tmp_path, "app:latest", [BASE])
    second = make_layout(tmp_path, "other", [TOP])
    with open_image(at(f"oci:{tmp_path}:app")) as source:
        assert source.manifest().descriptor.digest == first
    exact = make_layout(tmp_path, "app", [BASE, TOP])
    with open_image(at(f"oci:{tmp_path}:app")) as source:
        assert source.manifest().descriptor.digest == exact
    with open_image(at(f"oci:{tmp_path}:@{second}")) as source:
        assert source.manifest().descriptor.digest == second


def test_several_images_are_listed_when_none_is_named(tmp_path: Path) -> None:
    make_layout(tmp_path, "app:1", [BASE])
    unnamed = make_layout(tmp_path, None, [TOP])
    with (
        pytest.raises(ImageError, match="holds 2 images") as caught,
        open_image(at(f"oci:{tmp_path}")),
    ):
        pass
    assert caught.value.hint == f"name one of them: @{unnamed}, app:1"


def test_two_images_of_one_name_are_told_apart_by_digest(tmp_path: Path) -> None:
    one = make_layout(tmp_path, "app", [BASE])
    make_layout(tmp_path, "app", [TOP])
    with (
        pytest.raises(ImageError, match="2 images named `app`"),
        open_image(at(f"oci:{tmp_path}:app")),
    ):
        pass
    with open_image(at(f"oci:{tmp_path}:app@{one}")) as source:
        assert source.manifest().descriptor.digest == one


def test_the_same_image_under_two_names_is_one_image(tmp_path: Path) -> None:
    make_layout(tmp_path, "a", [BASE])
    make_layout(tmp_path, "b", [BASE])
    with open_image(at(f"oci:{tmp_path}")) as source:
        assert len(image_of(source).layers) == 1


def test_an_unknown_name_lists_what_is_there(layout: Path) -> None:
    with (
        pytest.raises(ImageError, match="no image `web`") as caught,
        open_image(at(f"oci:{layout}:web")),
    ):
        pass
    assert caught.value.hint == "it holds app:1"


def test_an_index_in_a_layout_comes_out_as_index(tmp_path: Path) -> None:
    one = make_layout(tmp_path, None, [BASE], listed=False)
    two = make_layout(tmp_path, None, [TOP], platform="linux/arm64/v8", listed=False)
    make_index(tmp_path, "multi", {"linux/amd64": one, "linux/arm64/v8": two})
    with open_image(at(f"oci:{tmp_path}:multi")) as source:
        index = source.manifest()
        assert isinstance(index, Index)
        assert [str(entry.platform) for entry in index.manifests] == [
            "linux/amd64",
            "linux/arm64/v8",
        ]
        assert source.child(index.manifests[1]).descriptor.digest == two


def test_a_damaged_blob_is_found_while_reading(layout: Path) -> None:
    with open_image(at(f"oci:{layout}")) as source:
        layer = image_of(source).layers[0].descriptor
        file = layout / "blobs/sha256" / layer.digest.hex
        file.write_bytes(file.read_bytes()[:-1] + b"!")
        with pytest.raises(ImageError, match="has digest"), source.open_blob(layer) as reader:
            reader.read()
        file.write_bytes(b"short")
        with pytest.raises(ImageError, match="has 5 bytes"):
            source.open_blob(layer)
        file.unlink()
        with pytest.raises(ImageError, match="there is no `blobs/sha256"):
            source.open_blob(layer)


@pytest.mark.parametrize("trap", ["link", "fifo", "directory"])
def test_a_blob_that_is_no_regular_file_is_not_opened(layout: Path, trap: str) -> None:
    with open_image(at(f"oci:{layout}")) as source:
        layer = image_of(source).layers[0].descriptor
        file = layout / "blobs/sha256" / layer.digest.hex
        moved = file.rename(layout / "moved")
        if trap == "link":
            file.symlink_to(moved)
        elif trap == "fifo":
            os.mkfifo(file)
        else:
            file.mkdir()
        with pytest.raises(ImageError, match=r"cannot read|not a regular file"):
            source.open_blob(layer)


def test_a_linked_blob_directory_is_not_followed(layout: Path) -> None:
    (layout / "blobs").rename(layout.parent / "elsewhere")
    (layout / "blobs").symlink_to(layout.parent / "elsewhere")
    with pytest.raises(ImageError, match="cannot read"), open_image(at(f"oci:{layout}")) as source:
        source.manifest()


def test_two_blobs_can_be_read_at_once(layout: Path) -> None:
    with open_image(at(f"oci:{layout}")) as source:
        one, two = (source.open_blob(layer.descriptor) for layer in image_of(source).layers)
        with one, two:
            assert one.read(10) != b"" and two.read() and one.read()


Damage = Callable[[Path], object]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: (p / "oci-layout").unlink(), "is not an OCI image layout"),
        (lambda p: (p / "oci-layout").write_text("{"), "is not an OCI image layout"),
        (lambda p: (p / "oci-layout").write_text('{"imageLayoutVersion":"2"}'), "version `2`"),
        (lambda p: (p / "index.json").unlink(), "there is no `index.json`"),
        (lambda p: (p / "index.json").write_text("[]"), "not a JSON object"),
        (lambda p: (p / "index.json").write_text("{}"), "must be a list"),
        (lambda p: (p / "index.json").write_text('{"manifests": []}'), "holds no image"),
        (lambda p: (p / "index.json").write_text('{"manifests": [3]}'), "must be an object"),
        (lambda p: os.truncate(p / "index.json", 9 << 20), "too much"),
    ],
)
def test_a_broken_layout_is_explained(layout: Path, damage: Damage, message: str) -> None:
    damage(layout)
    with pytest.raises(ImageError, match=message), open_image(at(f"oci:{layout}")):
        pass


def test_an_index_entry_cannot_lead_out_of_the_layout(layout: Path) -> None:
    index = json.loads((layout / "index.json").read_text())
    index["manifests"][0]["digest"] = "sha256:../../../etc/passwd"
    (layout / "index.json").write_text(json.dumps(index))
    with pytest.raises(ImageError, match="invalid digest"), open_image(at(f"oci:{layout}")):
        pass


@pytest.mark.parametrize("transport", ["oci", "oci-archive", "docker-archive"])
def test_a_place_that_is_not_there_is_explained(tmp_path: Path, transport: str) -> None:
    with (
        pytest.raises(ImageError, match="No such file") as caught,
        open_image(at(f"{transport}:{tmp_path}/none")),
    ):
        pass
    assert caught.value.hint


def test_a_file_is_no_layout_and_a_directory_no_archive(layout: Path) -> None:
    with (
        pytest.raises(ImageError, match="Not a directory") as caught,
        open_image(at(f"oci:{layout}/index.json")),
    ):
        pass
    assert "oci-archive:FILE" in str(caught.value.hint)
    for transport in ("oci-archive", "docker-archive"):
        with (
            pytest.raises(ImageError, match="is a directory") as caught,
            open_image(at(f"{transport}:{layout}")),
        ):
            pass
        assert caught.value.hint == f"write oci:{layout} for a layout"


@pytest.mark.parametrize("transport", ["oci", "oci-archive", "docker-archive"])
def test_a_place_that_may_not_be_read_is_explained(
    layout: Path, monkeypatch: pytest.MonkeyPatch, transport: str
) -> None:
    def refuse(*args: object, **more: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)  # root, who may run this, may read everything
    with pytest.raises(ImageError, match="Permission denied") as caught:
        with_image(f"{transport}:{layout}")
    assert "permission to read" in str(caught.value.hint)


def with_image(place: str) -> None:
    with open_image(at(place)):
        pass


# --- oci-archive: -----------------------------------------------------------------------------


@pytest.mark.parametrize("packed", ["", "gzip", "zstd"])
def test_an_oci_archive_gives_its_image(layout: Path, tmp_path: Path, packed: str) -> None:
    file = tmp_path / "image.tar"
    make_archive(file, layout, gzipped=packed == "gzip")
    if packed == "zstd":
        file.write_bytes(zstandard.compress(file.read_bytes()))
    before = sorted(tmp_path.iterdir())
    with open_image(at(f"oci-archive:{file}:app:1")) as source:
        assert tars_of(source) == [BASE.tar(), TOP.tar()]
        assert sorted(tmp_path.iterdir()) == before
    assert sorted(tmp_path.iterdir()) == before


def test_a_compressed_archive_has_a_limit(
    layout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "INFLATED_LIMIT", 5000)
    make_archive(tmp_path / "image.tar", layout, gzipped=True)
    with (
        pytest.raises(PolicyError, match="more than 5000"),
        open_image(at(f"oci-archive:{tmp_path}/image.tar")),
    ):
        pass


def hostile(**fields: object) -> bytes:
    info = tarfile.TarInfo("blobs/x")
    for key, value in fields.items():
        setattr(info, key, value)
    return Layer().file("oci-layout", "{}").raw(info).tar()


def sparse_huge_header() -> bytes:
    info = tarfile.TarInfo("huge")
    info.size = 1 << 40
    return info.tobuf(tarfile.GNU_FORMAT) + b"\0" * 1024


def long_records() -> bytes:
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, 1 << 33
    return info.tobuf(tarfile.GNU_FORMAT) + b"\0" * 1024


@pytest.mark.parametrize("transport", ["oci-archive", "docker-archive"])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (hostile(name="../evil"), "leads out of it"),
        (hostile(name="/etc/passwd"), "leads out of it"),
        (hostile(name="a/../../b"), "leads out of it"),
        (hostile(type=tarfile.SYMTYPE, linkname="../../etc/passwd"), "leads out of it"),
        (hostile(type=tarfile.SYMTYPE, linkname="/etc/passwd"), "leads out of it"),
        (hostile(type=tarfile.LNKTYPE, linkname="../x"), "leads out of it"),
        (hostile(type=tarfile.CHRTYPE), "is a device"),
        (hostile(type=tarfile.FIFOTYPE), "is a device"),
        (sparse_huge_header(), "larger than the archive"),
        (long_records(), "absurd"),
        (b"no archive at all" * 100, "not a good tar archive"),
        (hostile()[:1100], "ends inside a header"),
        (b"", "is not a"),
        (gzip.compress(b"x" * 2000, mtime=0), "not a good tar archive"),
        (gzip.compress(b"x" * 2000, mtime=0)[:-3], "ends too early"),
    ],
)
def test_a_hostile_archive_is_refused(
    tmp_path: Path, transport: str, data: bytes, message: str
) -> None:
    file = tmp_path / "image.tar"
    file.write_bytes(data)
    with pytest.raises(ImageError, match=message), open_image(at(f"{transport}:{file}")):
        pass
    assert list(tmp_path.iterdir()) == [file]


def test_too_many_members_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MEMBER_LIMIT", 3)
    file = tmp_path / "image.tar"
    file.write_bytes(Layer().dir("a").dir("b").dir("c").dir("d").tar())
    with (
        pytest.raises(ImageError, match="more than 3 members"),
        open_image(at(f"oci-archive:{file}")),
    ):
        pass


def test_a_linked_blob_in_an_archive_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "image.tar"
    file.write_bytes(Layer().symlink("oci-layout", "other").file("other", "{}").tar())
    with pytest.raises(ImageError, match="is a link"), open_image(at(f"oci-archive:{file}")):
        pass


# --- docker-archive: --------------------------------------------------------------------------


@pytest.mark.parametrize("compression", ["none", "gzip"])
@pytest.mark.parametrize("style", ["classic", "flat", "oci"])
def test_docker_archives_of_all_ages_give_their_image(
    tmp_path: Path, style: str, compression: images.CompressionName
) -> None:
    file = tmp_path / "image.tar"
    layers = [BASE, TOP, BASE]  # one layer twice, which `docker save` links
    digest = make_docker_archive(
        file,
        ["app:1"],
        layers,
        {"User": "1001"},
        style=style,  # type: ignore[arg-type]
        compression=compression,
        extra={"docker_version": "20.10"},
    )
    with open_image(at(f"docker-archive:{file}:docker.io/library/app:1")) as source:
        manifest = source.manifest()
        assert isinstance(manifest, Manifest)
        assert manifest.config.digest == digest
        assert manifest.descriptor.digest == Digest.of(manifest.raw)
        assert image_of(source).config.extra == {"docker_version": "20.10"}
        assert tars_of(source) == [layer.tar() for layer in layers]


def test_a_docker_archive_can_be_compressed_as_a_whole(tmp_path: Path) -> None:
    file = tmp_path / "image.tar"
    make_docker_archive(file, [], [BASE])
    file.write_bytes(gzip.compress(file.read_bytes()))
    with open_image(at(f"docker-archive:{file}")) as source:
        assert tars_of(source) == [BASE.tar()]


def two_images(file: Path) -> None:
    layer = BASE.tar()
    config = json.dumps(images.config_document([BASE])).encode()
    entries = [
        {"Config": "c.json", "RepoTags": ["app:1", "app:2"], "Layers": ["l.tar"]},
        {"Config": "c.json", "RepoTags": ["BAD NAME", "quay.io/x/y"], "Layers": ["l.tar"]},
        {"Config": "c.json", "RepoTags": None, "Layers": ["l.tar"]},
    ]
    writer = Layer().file("c.json", config).file("l.tar", layer)
    file.write_bytes(writer.file("manifest.json", json.dumps(entries)).tar())


@pytest.mark.parametrize("name", ["app:1", "docker.io/app:2", "quay.io/x/y:latest", "@2"])
def test_an_image_of_several_is_found_by_its_normalised_name(tmp_path: Path, name: str) -> None:
    two_images(tmp_path / "image.tar")
    with open_image(at(f"docker-archive:{tmp_path}/image.tar:{name}")) as source:
        assert tars_of(source) == [BASE.tar()]


@pytest.mark.parametrize(
    ("name", "message"),
    [("", "holds 3 images"), (":app", "no image `app`"), (":@3", "no image `@3`")],
)
def test_what_a_docker_archive_holds_is_listed(tmp_path: Path, name: str, message: str) -> None:
    two_images(tmp_path / "image.tar")
    with (
        pytest.raises(ImageError, match=message) as caught,
        open_image(at(f"docker-archive:{tmp_path}/image.tar{name}")),
    ):
        pass
    assert "app:1, app:2, BAD NAME, quay.io/x/y, @2" in str(caught.value.hint)


def test_a_malformed_name_is_the_users_error(tmp_path: Path) -> None:
    two_images(tmp_path / "image.tar")
    with (
        pytest.raises(UsageError, match="lower case"),
        open_image(at(f"docker-archive:{tmp_path}/image.tar:App")),
    ):
        pass


def docker_tar(manifest: str, *, layer: bytes = BASE.tar(), config: str | None = None) -> bytes:
    text = config or json.dumps(images.config_document([BASE]))
    writer = Layer().file("c.json", text).file("l.tar", layer).file("manifest.json", manifest)
    return writer.symlink("loop", "loop").tar()


GOOD = '[{"Config": "c.json", "Layers": ["l.tar"]}]'


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (docker_tar("{"), "is not JSON"),
        (docker_tar("{}"), "lists no image"),
        (docker_tar("[]"), "lists no image"),
        (docker_tar("[3]"), "needs `Config`"),
        (docker_tar('[{"Config": 3, "Layers": []}]'), "needs `Config`"),
        (docker_tar('[{"Config": "c.json", "Layers": "l.tar"}]'), "needs `Config`"),
        (docker_tar('[{"Config": "../c", "Layers": []}]'), "leads out"),
        (docker_tar('[{"Config": "none", "Layers": []}]'), "there is no `none`"),
        (docker_tar('[{"Config": "c.json", "Layers": ["none"]}]'), "there is no `none`"),
        (docker_tar('[{"Config": "c.json", "Layers": ["loop"]}]'), "link to a link"),
        (docker_tar('[{"Config": "c.json", "Layers": []}]'), r"layers \(0\) as diff_ids \(1\)"),
        (docker_tar(GOOD, config="[]"), "not a JSON object"),
        (docker_tar(GOOD, layer=TOP.tar()), "but the config says"),
        (Layer().file("repositories", "{}").tar(), "no `manifest.json`"),
    ],
)
def test_a_broken_docker_archive_is_explained(tmp_path: Path, data: bytes, message: str) -> None:
    file = tmp_path / "image.tar"
    file.write_bytes(data)
    with pytest.raises(ImageError, match=message), open_image(at(f"docker-archive:{file}")):
        pass


def test_an_oci_archive_named_docker_archive_is_recognised(layout: Path, tmp_path: Path) -> None:
    make_archive(tmp_path / "image.tar", layout)
    with (
        pytest.raises(ImageError) as caught,
        open_image(at(f"docker-archive:{tmp_path}/image.tar")),
    ):
        pass
    assert caught.value.hint == "is it an oci-archive:?"


def test_only_blobs_of_the_chosen_image_can_be_opened(tmp_path: Path) -> None:
    file = tmp_path / "image.tar"
    make_docker_archive(file, [], [BASE])
    with open_image(at(f"docker-archive:{file}")) as source:
        stranger = Descriptor(OCI_LAYER, Digest.of(b"x"), 1)
        with pytest.raises(ImageError, match="there is no `sha256:"):
            source.open_blob(stranger)
        with pytest.raises(ImageError, match="no index"):
            source.child(stranger)


def test_no_file_stays_open(layout: Path, tmp_path: Path) -> None:
    file = tmp_path / "image.tar"
    make_archive(file, layout, gzipped=True)
    before = set(os.listdir("/proc/self/fd"))
    for place in (f"oci:{layout}", f"oci-archive:{file}"):
        with open_image(at(place)) as source:
            tars_of(source)
    with pytest.raises(ImageError), open_image(at(f"docker-archive:{file}")):
        pass
    assert set(os.listdir("/proc/self/fd")) == before


def test_the_fake_layer_reads_back() -> None:
    with tarfile.open(fileobj=io.BytesIO(TOP.tar())) as archive:
        assert archive.getnames() == ["etc", "etc/app", "etc/.wh.motd"]
