"""The files of an image as its layers list them: as a container would see them."""

from __future__ import annotations

import gzip
import io

import pytest

from ocis2i.blobs import VerifiedReader
from ocis2i.errors import ImageError
from ocis2i.image_files import Entry, Tree, _LayerReader, merge
from ocis2i.manifest import OCI_LAYER, OCI_LAYER_GZIP, Descriptor
from ocis2i.manifest import Layer as ImageLayer
from ocis2i.reference import Digest
from tests.fakes.images import Layer


class OneBlob:
    def __init__(self, data: bytes) -> None:
        self._data = data

    def open_blob(self, descriptor: Descriptor) -> VerifiedReader:
        return VerifiedReader(io.BytesIO(self._data), descriptor, "the test")


def tree(*layers: Layer, room: int = 1 << 20) -> Tree:
    entries: dict[str, Entry] = {}
    for layer in layers:
        data = gzip.compress(layer.tar())
        descriptor = Descriptor(OCI_LAYER_GZIP, Digest.of(data), len(data))
        reader = _LayerReader(lambda path: path.endswith(".txt"), room)
        reader.read(ImageLayer(descriptor, Digest.of(layer.tar())), OneBlob(data))
        entries = merge(entries, reader)
    return Tree(entries)


def test_small_files_that_were_wanted_have_their_content() -> None:
    found = tree(Layer().dir("a").file("a/b.txt", "text", mode=0o640, uid=7, gid=8).file("c", "no"))
    entry = found.find("/a/b.txt")
    assert entry is not None
    assert (entry.content, entry.mode, entry.uid, entry.gid) == (b"text", 0o640, 7, 8)
    assert found.entries["c"].content is None
    assert tree(Layer().file("b.txt", "text"), room=3).entries["b.txt"].content is None


def test_upper_layers_hide_what_is_below() -> None:
    below = Layer().dir("a").file("a/x.txt", "1").file("a/y.txt", "1").dir("b").file("b/z.txt", "1")
    gone = tree(below, Layer().whiteout("a/x.txt"))
    assert sorted(gone.entries) == ["a", "a/y.txt", "b", "b/z.txt"]
    opaque = tree(below, Layer().dir("a").opaque("a").file("a/n.txt", "2"))
    assert sorted(opaque.entries) == ["a", "a/n.txt", "b", "b/z.txt"]
    whole = tree(below, Layer().whiteout("a"), Layer().dir("a"))
    assert sorted(whole.entries) == ["a", "b", "b/z.txt"]
    replaced = tree(below, Layer().file("b", "a file now"))
    assert sorted(replaced.entries) == ["a", "a/x.txt", "a/y.txt", "b"]
    newer = tree(below, Layer().file("a/x.txt", "2"))
    assert newer.entries["a/x.txt"].content == b"2"


def test_links_lead_where_they_do_in_a_container() -> None:
    found = tree(
        Layer().dir("usr").dir("usr/bin").file("usr/bin/real.txt", "x")
        .symlink("bin", "usr/bin").symlink("abs", "/usr/bin/../bin").symlink("up", "../../../usr")
        .symlink("loop", "loop").symlink("gone", "nowhere").hardlink("same.txt", "usr/bin/real.txt")
    )  # fmt: skip
    for path in ("/bin/real.txt", "/abs/real.txt", "/up/bin/real.txt", "/same.txt"):
        entry = found.find(path)
        assert entry is not None and entry.content == b"x", path
    for path in ("/loop", "/gone", "/bin/real.txt/more", "/bin/other", "/usr/bin/real.txt/.."):
        assert found.find(path) is None, path
    root = found.find("/")
    assert root is not None and root.kind == "directory"
    assert [path for path, _ in found.below("/bin")] == ["/usr/bin", "/usr/bin/real.txt"]


def test_names_that_lead_out_are_nothing() -> None:
    assert dict(tree(Layer().file("../etc/x.txt", "x").file("./a.txt", "a")).entries).keys() == {
        "a.txt"
    }


@pytest.mark.parametrize("data", [b"no tar", b"\0" * 100, b"x" * 2000])
def test_a_broken_layer_is_told(data: bytes) -> None:
    descriptor = Descriptor(OCI_LAYER, Digest.of(data), len(data))
    reader = _LayerReader(lambda _: False, 0)
    with pytest.raises(ImageError, match="the layer"):
        reader.read(ImageLayer(descriptor, Digest.of(data)), OneBlob(data))
