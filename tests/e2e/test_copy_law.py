"""The same changes are the same bytes, whether an overlay or a copy of the image was changed.

What a layer has to be is the law of `test_layer_property`; here an overlay's is the measure.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from ocis2i.isolation.agent import agent
from tests.e2e.test_layer_property import (
    CAPABILITY,
    ODD_LAYERS,
    SEARCH_PATH,
    Draft,
    Operation,
    Sandbox,
    Tree,
    assert_same,
    change,
    check_layer,
    drafts,
    examples,
    make_socket,
    scan,
)
from tests.fakes.images import MTIME, Layer

pytestmark = pytest.mark.sandbox

# Later than the image and earlier than the test: what somebody set anew is seen by its time.
CLAMP = MTIME + 1000
TARGETS = ["/proc", "/etc/deep/resolv.conf"]


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    """One agent for all examples of a module."""
    with agent(search_path=SEARCH_PATH) as running:
        yield Sandbox(running, tmp_path_factory.mktemp("examples"))


def layers_of(
    sandbox: Sandbox,
    here: Path,
    base: Sequence[bytes],
    operations: Sequence[Operation],
    sockets: Sequence[str] = (),
) -> tuple[bytes, bytes]:
    """The layer of `operations` in an overlay over `base`, and in a copy of it."""
    lowers = [sandbox.unpack(tar, here / f"lower-{number}") for number, tar in enumerate(base)]
    made = []
    for copied in (False, True):
        build = here / f"build-{copied}"
        build.mkdir()
        targets = [[path, True] for path in TARGETS]
        answer = sandbox.agent.request(
            "prepare", build=str(build), lowers=lowers, targets=targets, copied=copied
        )
        sandbox.agent.request("mount", build=str(build))
        sandbox.call(change, f"{build}/rootfs", list(operations))
        for path in sockets:
            sandbox.call(make_socket, f"{build}/rootfs/{path}")
        sandbox.agent.request("unmount", build=str(build))
        with tempfile.TemporaryFile() as file:
            sandbox.agent.request(
                "diff", file.fileno(), build=str(build), clamp_mtime=CLAMP, ours=answer["ours"]
            )
            file.seek(0)
            made.append(file.read())
    return made[0], made[1]


def copied_tree(sandbox: Sandbox, here: Path, lowers: Sequence[list[object]]) -> Tree:
    """What a container sees in a copy of these layers."""
    build = here / "build-copy"
    build.mkdir()
    sandbox.agent.request("prepare", build=str(build), lowers=lowers, targets=[], copied=True)
    return dict(sandbox.call(scan, f"{build}/rootfs"))


def without_links(tree: Tree) -> Tree:
    """A tree without which names are one file: in a copy each is a file of its own."""
    return {path: (*facts[:5], None, *facts[6:]) for path, facts in tree.items()}


def comparable(operation: Operation) -> bool:
    """Whether both can do it, and both can tell that it was done.

    Overlayfs moves no directory of the image; and what was only opened for writing is copied up
    there, where it is no more a link of the image's, and unchanged in a copy.
    """
    name, *arguments = operation
    return name != "rename" and (name != "append" or bool(arguments[1]))


def assert_same_layer(overlay: bytes, copied: bytes) -> None:
    assert check_layer(copied) == check_layer(overlay)
    assert copied == overlay


@settings(
    max_examples=80,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(example=examples())
def test_an_overlay_and_a_copy_make_the_same_layer(
    sandbox: Sandbox, example: tuple[list[Draft], list[Operation]]
) -> None:
    drafted, operations = example
    base = [draft.tar() for draft in drafted]
    with sandbox.directory() as here:
        assert_same_layer(*layers_of(sandbox, here, base, list(filter(comparable, operations))))


@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(base=drafts())
def test_a_copy_shows_what_an_overlay_shows(sandbox: Sandbox, base: list[Draft]) -> None:
    with sandbox.directory() as here:
        lowers = [sandbox.unpack(one.tar(), here / f"{n}") for n, one in enumerate(base)]
        merged = without_links(sandbox.merged(here / "build", lowers))
        assert_same(without_links(copied_tree(sandbox, here, lowers)), merged, "copy")


@pytest.mark.parametrize("case", ODD_LAYERS)
def test_a_copy_of_odd_layers_shows_what_an_overlay_shows(sandbox: Sandbox, case: str) -> None:
    layer, _ = ODD_LAYERS[case]
    with sandbox.directory() as here:
        lowers = [
            sandbox.unpack(tar, here / f"{number}")
            for number, tar in enumerate((image().tar(), layer.tar()))
        ]
        merged = without_links(sandbox.merged(here / "build", lowers))
        assert_same(without_links(copied_tree(sandbox, here, lowers)), merged, "copy")


def test_a_directory_keeps_what_the_layer_says_that_hides_those_below(sandbox: Sandbox) -> None:
    """The third layer has the directory and does not say what it is like."""
    layers = (
        Layer().dir("d", mode=0o700).file("d/one"),
        Layer().dir("d", mode=0o1777).opaque("d"),
        Layer().file("d/two"),
    )
    with sandbox.directory() as here:
        lowers = [sandbox.unpack(one.tar(), here / f"{n}") for n, one in enumerate(layers)]
        merged = sandbox.merged(here / "build", lowers)
        assert merged[b"d"][0] == oct(0o41777)
        assert set(merged) == {b"", b"d", b"d/two"}
        assert_same(copied_tree(sandbox, here, lowers), merged, "copy")


# --- each way to change something, one by one ---------------------------------------------------


def image() -> Layer:
    layer = Layer().dir("./").dir("d", mode=0o2750, uid=1001).file("d/old", "old", uid=1001)
    layer.dir("d/deep").file("d/deep/older", "older").dir("tmp", mode=0o1777)
    layer.file("s", mode=0o4755, uid=7).symlink("l", "s").device("p", kind="fifo")
    layer.file("one", "1").hardlink("two", "one").file("x", xattrs={"user.one": "1"})
    return layer.dir("etc").file("etc/conf", "1\n").dir("empty")


ROWS: dict[str, list[Operation]] = {
    "nothing": [],
    "a file is removed": [("remove", b"d/old")],
    "a directory is removed": [("remove", b"d")],
    "a directory is made anew": [("replace-by-mkdir", b"d", 0o2750), ("utime", b"d", 10**18)],
    "a directory is made anew with files of the old names": [
        ("replace-by-mkdir", b"d", 0o755),
        ("write", b"d/old", b"old", 0o644),
        ("utime", b"d/old", MTIME * 10**9),
    ],
    "an empty directory is made anew": [("replace-by-mkdir", b"empty", 0o755)],
    "a directory becomes a file": [("replace-by-write", b"d", b"file", 0o644)],
    "a file becomes a directory": [("replace-by-mkdir", b"d/old", 0o755)],
    "a link becomes a file": [("replace-by-write", b"l", b"file", 0o644)],
    "a file becomes a link": [("replace-by-symlink", b"s", b"d/old")],
    "modes and owners are set to what they are": [
        ("chmod", b"s", 0o4755),
        ("chmod", b"d", 0o2750),
        ("chown", b"d/old", 1001, 0),
        ("chown", b"l", 0, 0),
        ("utime", b"d/old", MTIME * 10**9),
    ],
    "the time of a file is set": [("utime", b"d/old", 10**18)],
    "the owner of a link is changed": [("chown", b"l", 1001, 0)],
    "a pipe is touched": [("utime", b"p", MTIME * 10**9)],
    "as many bytes in the same second, and the old time": [
        ("write", b"d/old", b"new", 0o644),
        ("utime", b"d/old", MTIME * 10**9),
    ],
    "a file is written as it was": [
        ("replace-by-write", b"s", b"", 0o4755),
        ("chown", b"s", 7, 0),
        ("chmod", b"s", 0o4755),
        ("utime", b"s", MTIME * 10**9),
    ],
    "one name of two is changed": [("append", b"one", b"more")],
    "one name of two is touched": [("touch", b"two")],
    "one name of two is removed": [("remove", b"one")],
    "a file gets a second name": [("link", b"d/old", b"d/a"), ("link", b"d/old", b"z")],
    "a name of two gets a third": [("link", b"two", b"a")],
    "links of what is new": [
        ("write", b"tmp/new", b"1", 0o6755),
        ("link", b"tmp/new", b"a"),
        ("link", b"l", b"m"),
        ("fifo", b"q", 0o622),
        ("link", b"q", b"r"),
    ],
    "a file is moved": [("rename", b"d/old", b"d/renamed")],
    "two files change places": [
        ("rename", b"d/old", b"tmp/t"),
        ("rename", b"etc/conf", b"d/old"),
        ("rename", b"tmp/t", b"etc/conf"),
    ],
    "a new directory takes the place of one": [
        ("mkdir", b"made", 0o755),
        ("write", b"made/file", b"1", 0o644),
        ("remove", b"d"),
        ("rename", b"made", b"d"),
    ],
    "odd names": [
        ("write", b"new\nline", b"1", 0o644),
        ("write", b"\xff\t", b"1", 0o644),
        ("write", b"n" * 255, b"1", 0o644),
        ("symlink", b"far", b"t" * 4000),
    ],
    "deep directories": [("mkdir", b"/".join([b"n" * 30] * n), 0o750) for n in range(1, 101)],
    "attributes come": [
        ("setxattr", b"d/old", "user.b", b"2"),
        ("setxattr", b"d", "user.a", b"1"),
        ("setxattr", b"s", "security.capability", CAPABILITY),
        ("setxattr", b"etc/conf", "user.overlay.opaque", b"y"),
        ("setxattr", b".", "user.overlay.redirect", b"/etc"),
    ],
    "attributes go": [("removexattr", b"x", "user.one")],
    "a file with a hole": [("write", b"sparse", b"1", 0o644), ("truncate", b"sparse", 3 << 20)],
    "a file grows by a hole": [("truncate", b"d/old", 1 << 20)],
    "owners": [("chown", b"d/old", 65534, 65535), ("chown", b"d", 1, 2)],
    "the root": [("chmod", b".", 0o700)],
    "below a place made for a mount": [("write", b"etc/deep/more", b"1", 0o644)],
    "a place made for a mount is removed": [("remove", b"etc/deep")],
    "a directory beside a place made for a mount": [("mkdir", b"etc/other", 0o755)],
}


@pytest.mark.parametrize("row", ROWS)
def test_each_change_is_the_same_in_an_overlay_and_a_copy(sandbox: Sandbox, row: str) -> None:
    with sandbox.directory() as here:
        overlay, copied = layers_of(sandbox, here, [image().tar()], ROWS[row])
        assert_same_layer(overlay, copied)


def test_a_file_that_a_socket_replaces_is_gone(sandbox: Sandbox) -> None:
    with sandbox.directory() as here:
        removed: list[Operation] = [("remove", b"d/old")]
        sockets = ["d/old", "new"]
        overlay, copied = layers_of(sandbox, here, [image().tar()], removed, sockets)
        assert_same_layer(overlay, copied)
        assert check_layer(copied) == ["d", "d/.wh.old"]


def test_a_device_that_stands_for_nothing_hides_what_it_replaces(sandbox: Sandbox) -> None:
    """Anybody may make 0:0, which overlayfs takes for a whiteout; an overlay itself refuses it."""
    with sandbox.directory() as here:
        build = here / "build"
        build.mkdir()
        lowers = [sandbox.unpack(image().tar(), here / "lower")]
        sandbox.agent.request("prepare", build=str(build), lowers=lowers, targets=[], copied=True)
        for path in ("d/old", "new"):
            sandbox.call(make_device, f"{build}/rootfs/{path}")
        with tempfile.TemporaryFile() as file:
            sandbox.agent.request(
                "diff", file.fileno(), build=str(build), clamp_mtime=CLAMP, ours=[]
            )
            file.seek(0)
            assert check_layer(file.read()) == ["d", "d/.wh.old"]


def make_device(path: str) -> None:
    """The device 0:0 at `path`, whatever was there."""
    if os.path.lexists(path):
        os.unlink(path)
    os.mknod(path, stat.S_IFCHR, 0)


def test_a_directory_that_is_moved_is_whole_in_its_new_place(sandbox: Sandbox) -> None:
    """Overlayfs refuses this (EXDEV), so that there is nothing to compare with."""
    with sandbox.directory() as here:
        _, copied = layers_of(sandbox, here, [image().tar()], [("rename", b"d", b"tmp/d")])
        assert check_layer(copied) == [
            ".wh.d",
            "tmp",
            "tmp/d",
            "tmp/d/deep",
            "tmp/d/deep/older",
            "tmp/d/old",
        ]


def test_layers_hide_also_what_the_disk_has_no_mark_for(sandbox: Sandbox) -> None:
    """On an overlayfs or an old NFS nobody can make what overlayfs takes for a whiteout."""
    changed = Layer().dir("d").file("d/new").dir("etc").file("etc/more")
    with sandbox.directory() as here:
        lower = sandbox.unpack(image().tar(), here / "lower")
        marks = [["etc/conf", "tmp", "d"], ["d"]]
        upper = [*sandbox.unpack(changed.tar(), here / "upper"), *marks]
        tree = copied_tree(sandbox, here, [lower, upper])
        assert set(tree) == {b"", b"d", b"d/new", b"s", b"l", b"p", b"one", b"two", b"x"} | {
            b"etc",
            b"etc/more",
            b"empty",
        }
