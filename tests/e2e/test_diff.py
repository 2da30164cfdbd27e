"""`diff`: what a build added, changed and removed, wherever the image and its base are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.fakes.bench import Bench, Maker, error, offer, sh
from tests.fakes.images import Layer, make_archive, make_layout
from tests.fakes.program import Done
from tests.fakes.registry import FakeRegistry

BASE = (
    Layer()
    .dir("srv")
    .dir("srv/gone")
    .file("srv/gone/a", "x" * 5000)
    .file("srv/kept", "1")
    .file("srv/changed", "1")
    .dir("srv/closed", mode=0o700, uid=1001)
    .file("srv/closed/f", "1", uid=1001)
)
# In no image whose blobs another test brings into the store.
CLOSED = (
    Layer()
    .dir("srv")
    .dir("srv/closed", mode=0o700, uid=1001)
    .file("srv/closed/f", "of this test alone", uid=1001)
)
PRIVATE = Layer().dir("srv").file("srv/private", mode=0o600, uid=5, xattrs={"user.note": "1"})
ASSEMBLE = sh(
    'cp -R /tmp/src/. "$HOME/"',
    'cd "$HOME"; mkdir -p node_modules/a',
    "dd if=/dev/zero of=node_modules/a/big bs=1024 count=200 2>/dev/null",
    "cp /bin/busybox suid; chmod 4755 suid",
    ": > all; chmod 666 all",
    "rm -rf /srv/gone; echo 2 > /srv/changed; echo 2 > /srv/closed/f",
    "printf x > \"$(printf 'e\\033[31mvil\\n\\377')\"",
)


def paths(done: Done) -> dict[str, str]:
    """The paths of a document and their states."""
    return {one["path"]: one["state"] for one in done.document["files"]}


def kinds(done: Done) -> dict[str, list[str]]:
    return {note["kind"]: note["paths"] for note in done.document["notes"]}


HOME = "/opt/app-root/src"
CHANGES = {
    f"{HOME}/all": "added",
    f"{HOME}/e\x1b[31mvil\n\\xff": "added",
    f"{HOME}/index.html": "added",
    f"{HOME}/node_modules": "added",
    f"{HOME}/node_modules/a": "added",
    f"{HOME}/node_modules/a/big": "added",
    f"{HOME}/suid": "added",
    "/srv/changed": "changed",
    "/srv/closed/f": "changed",
    "/srv/gone": "removed",
    "/srv/gone/a": "removed",
}


def without_uploads(found: dict[str, str]) -> dict[str, str]:
    return {path: state for path, state in found.items() if not path.startswith("/tmp/")}


def test_what_assemble_did_is_told_by_path_directory_owner_and_note(
    bench: Bench, make: Maker, tmp_path: Path
) -> None:
    builder = make(ASSEMBLE, user="0", more_layers=[BASE])
    bench.built(builder)
    done = bench.ocis2i.ok("diff", bench.tag, "--files", "--json")
    assert without_uploads(paths(done)) == CHANGES
    document = done.document
    assert (document["changed"], document["removed"]) == (2, 2)
    assert document["bytes_removed"] == 5000
    assert document["base"] is None
    assert [one["uid"] for one in document["owners"]] == [0, 1001]
    found = kinds(done)
    assert found["setuid"] == [f"{HOME}/suid"]
    assert found["world-writable"] == [f"{HOME}/all"]
    assert found["cache"] == [f"{HOME}/node_modules"]
    assert found["upload"] == ["/tmp/src/index.html"]

    text = bench.ocis2i.ok("diff", bench.tag, "--large", "100k")
    assert f"{HOME}/*" in text.out
    assert "setuid" in text.out
    assert "is large" in text.out
    assert f"      {HOME}/node_modules/a/big" in text.out
    listed = bench.ocis2i.ok("diff", bench.tag, "--files").out
    assert "e\\x1b[31mvil\\n\\xff" in listed
    assert "\x1b" not in listed
    assert "- 0755" in listed
    deep = bench.ocis2i.ok("diff", bench.tag, "--depth", "1", "--json").document
    assert [row["path"] for row in deep["directories"]] == ["/opt", "/tmp", "/srv"]

    # The same against the builder by its name, and from a layout and an archive without the store.
    layout = tmp_path / "layout"
    bench.ocis2i.ok("push", bench.tag, f"oci:{layout}:app")
    archive = tmp_path / "archive.tar"
    make_archive(archive, layout)
    for image in (bench.tag, f"oci-archive:{archive}:app"):
        same = bench.ocis2i.ok("diff", image, builder, "--files", "--json")
        assert without_uploads(paths(same)) == CHANGES
        assert same.document["base"] == builder


def test_a_base_that_is_only_unpacked_is_looked_up_in_its_tree(
    bench: Bench, make: Maker, registry: FakeRegistry
) -> None:
    """Of a builder from a registry the store has no blobs; what is closed there comes again."""
    open_base = Layer().dir("srv").file("srv/changed", "1").dir("srv/gone").dir("srv/gone/d")
    open_base.file("srv/gone/d/a", "xyz").symlink("srv/link", "/etc")
    for marked in ("srv/marked", "srv/noted"):
        open_base.file(marked, "1", xattrs={"user.note": "1", "user.overlay.metacopy": "1"})
    lines = ["rm -rf /srv/gone", "echo 2 > /srv/changed", "rm /srv/link; mkdir /srv/link"]
    lines += ["cp /srv/marked /srv/m; mv /srv/m /srv/marked", "echo 2 > /srv/noted"]
    location = make(sh(*lines, "echo 1 > /srv/link/passwd"), user="0", more_layers=[open_base])
    name = offer(registry, location, "builder", "1")
    bench.built(name, "--no-tls-verify")
    asked = len(registry.log)
    done = bench.ocis2i.ok("diff", bench.tag, "--files", "--json")
    assert len(registry.log) == asked
    assert without_uploads(paths(done)) == {
        "/srv/changed": "changed",
        "/srv/gone": "removed",
        "/srv/gone/d": "removed",
        "/srv/gone/d/a": "removed",
        "/srv/link": "changed",
        "/srv/link/passwd": "added",
        "/srv/marked": "changed",
        "/srv/noted": "changed",
    }
    what = {one["path"]: one["what"] for one in done.document["files"]}
    assert what["/srv/link"] == ["type"]
    # The copy has lost them, the other one has kept them.
    assert (what["/srv/marked"], what["/srv/noted"]) == (["attributes"], ["content"])

    bench.ocis2i.ok("push", "--no-tls-verify", bench.tag, f"{registry.host}/result:1")
    far = bench.ocis2i.ok(
        "diff", "--no-tls-verify", f"docker://{registry.host}/result:1", "--files", "--json"
    )
    assert far.document["files"] == done.document["files"]


def test_what_is_closed_in_an_unpacked_base_is_read_from_its_blob(
    bench: Bench, make: Maker, registry: FakeRegistry
) -> None:
    location = make(sh("echo 2 > /srv/closed/f; echo 3 > /srv/closed/new"), more_layers=[CLOSED])
    name = offer(registry, location, "builder", "1")
    bench.built(name, "--no-tls-verify", "-u", "1001", "--no-cache")
    before = len(registry.requests("GET", "/blobs/"))
    arguments = ("diff", bench.tag, "--files", "--json")
    done = bench.ocis2i.ok(*arguments, "--no-tls-verify")
    assert without_uploads(paths(done)) == {
        "/srv/closed/f": "changed",
        "/srv/closed/new": "added",
    }
    assert len(registry.requests("GET", "/blobs/")) == before + 1
    registry.fail("GET", "/blobs/", status=403, times=99)
    refused = bench.ocis2i(*arguments[:2], "--no-tls-verify")
    assert refused.code == 4
    assert "cannot be looked into: `/srv/closed/f` belongs to another id" in error(refused)
    # The report asks no registry, and says what it cannot know.
    page = bench.ocis2i.ok("report", bench.tag, "-o", "-").out
    assert "New and changed files are not told apart" in page


def test_attributes_of_a_file_that_is_closed_to_us_are_read_from_the_blob_as_well(
    bench: Bench, make: Maker, registry: FakeRegistry
) -> None:
    location = make(sh("echo 2 > /srv/private"), user="0", more_layers=[PRIVATE])
    bench.built(offer(registry, location, "builder", "1"), "--no-tls-verify")
    before = len(registry.requests("GET", "/blobs/"))
    done = bench.ocis2i.ok("diff", bench.tag, "--files", "--json", "--no-tls-verify")
    (private,) = (one for one in done.document["files"] if one["path"] == "/srv/private")
    assert private["what"] == ["content"]
    assert len(registry.requests("GET", "/blobs/")) == before + 1


def test_a_size_budget_that_is_exceeded_ends_with_9(bench: Bench, make: Maker) -> None:
    bench.built(make(sh("dd if=/dev/zero of=/opt/app-root/src/fat bs=1024 count=300")))
    assert bench.ocis2i.ok("diff", bench.tag, "--size-budget", "301k").err == ""
    done = bench.ocis2i("diff", bench.tag, "--size-budget", "299k")
    assert done.code == 9
    assert "its size budget is 299.0 KiB" in error(done)
    assert "`/opt/app-root/src/fat` (300.0 KiB)" in error(done)
    assert ".s2iignore" in done.err
    as_json = bench.ocis2i("diff", bench.tag, "--size-budget", "299k", "--json")
    assert as_json.code == 9
    assert as_json.document["budget"] == {"bytes": 299 << 10, "exceeded": True}


def test_images_that_share_nothing_are_compared_as_trees(bench: Bench, tmp_path: Path) -> None:
    one = Layer().dir("d").file("d/same", "1").file("d/other", "12").file("d/gone")
    other = Layer().dir("d", mtime=5).file("d/same", "1", mtime=5).file("d/other", "21")
    make_layout(tmp_path / "images", "one:1", [one], {})
    make_layout(tmp_path / "images", "other:1", [other.file("d/new")], {})
    images = (f"oci:{tmp_path}/images:other:1", f"oci:{tmp_path}/images:one:1")
    done = bench.ocis2i.ok("diff", *images, "--files", "--json")
    assert paths(done) == {"/d/gone": "removed", "/d/new": "added", "/d/other": "changed"}
    assert bench.ocis2i.ok("diff", images[0], images[0]).out.count("\n") == 2


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nothing:1"], 4, "is not in the store"),
        (["oci:{layout}:foreign:1"], 4, "nothing says where its base ends"),
        (["oci:{layout}:broken:1"], 4, "broken tar archive"),
        (["oci:{layout}:lying:1"], 4, "its diff_id is"),
        (["oci:{layout}:foreign:1", "oci:{layout}:none:1"], 4, "none:1"),
        (["oci:{layout}:foreign:1", "--files", "--depth", "2"], 2, "exclude each other"),
        (["oci:{layout}:foreign:1", "--size-budget", "much"], 2, "`--size-budget` is `much`"),
        (["oci:{layout}:foreign:1", "--large", "-1"], 2, "`--large` is `-1`"),
    ],
)
def test_what_cannot_be_compared_says_why(
    bench: Bench, tmp_path: Path, arguments: list[str], code: int, words: str
) -> None:
    ours: dict[str, Any] = {"history": [{"created_by": "x", "comment": "ocis2i build"}]}
    layout = tmp_path / "l"
    make_layout(layout, "foreign:1", [Layer().file("a")], {})
    make_layout(layout, "broken:1", [Broken().file("a")], {}, extra=ours)
    lying = ours | {"rootfs": {"type": "layers", "diff_ids": ["sha256:" + "0" * 64]}}
    make_layout(layout, "lying:1", [Layer().file("a")], {}, extra=lying)
    done = bench.ocis2i("diff", *(one.format(layout=layout) for one in arguments))
    assert done.code == code, done.err
    assert words in error(done)


class Broken(Layer):
    """A layer whose bytes are no tar, though they are what the digests say."""

    __slots__ = ()

    def tar(self) -> bytes:
        return b"no tar " * 200


def test_very_many_entries_take_little_time_and_memory(bench: Bench, tmp_path: Path) -> None:
    top = Layer()
    for one in range(40):
        top.dir(f"opt/d{one}")
        for two in range(500):
            top.file(f"opt/d{one}/some-file-{two}.js", b"x" * (two % 7))
    ours = {"history": [{"created_by": "x", "comment": "ocis2i build"}]}
    make_layout(tmp_path / "l", "big:1", [top], {}, extra=ours)
    done = bench.ocis2i.ok("diff", f"oci:{tmp_path}/l:big:1", "--json", timeout=30)
    assert done.document["added"] == 20_040
    assert len(done.out) < 4096  # a summary, whatever the number
