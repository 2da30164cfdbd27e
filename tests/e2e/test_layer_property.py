"""The law that all depends on: what a script left is what another tool unpacks.

Random builder layers, random changes inside a real overlay mount, our layer of them; then umoci,
and our own unpacking as a second judge, have to make the tree that the container saw.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import io
import json
import os
import shutil
import stat
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ocis2i.errors import OutputError
from ocis2i.isolation.agent import Agent, agent
from ocis2i.unpack import ENTRY_LIMIT
from tests.conftest import needs
from tests.fakes.images import MTIME, Layer
from tests.fakes.judges import check_tar

SEARCH_PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
BIG = 1 << 30
_HEADER = "from __future__ import annotations\nimport ast, hashlib, os, shutil, stat, sys\n"

Tree = dict[bytes, tuple[Any, ...]]
Operation = tuple[Any, ...]


# --- what runs as root of the namespace, beside the agent --------------------------------------
#
# These functions are sent to a Python without anything of ours, so they stand for themselves.


def scan(root: str) -> Tree:
    """All facts of a tree that an image can hold: path to kind, mode, owner, and so on."""
    found: Tree = {}
    links: dict[tuple[int, int], bytes] = {}
    top = os.fsencode(root)
    pending = [b""]
    while pending:
        path = pending.pop()
        full = top + b"/" + path
        facts = os.lstat(full)
        kind = stat.S_IFMT(facts.st_mode)
        content: object = None
        when: int | None = facts.st_mtime_ns // 10**9
        group = path
        if kind == stat.S_IFDIR:
            when = None  # that anything was made in it changes it
            inside = sorted(os.listdir(full), reverse=True)
            pending += [path + b"/" + name if path else name for name in inside]
        elif kind == stat.S_IFREG:
            with open(full, "rb") as file:
                content = (facts.st_size, hashlib.sha256(file.read()).hexdigest()[:12])
        elif kind == stat.S_IFLNK:
            content = os.readlink(full)
        if kind != stat.S_IFDIR and facts.st_nlink > 1:
            group = links.setdefault((facts.st_dev, facts.st_ino), path)
        xattrs = [
            (name, os.getxattr(full, name, follow_symlinks=False))
            for name in sorted(os.listxattr(full, follow_symlinks=False))
            if name.startswith(("user.", "security.capability"))
        ]
        found[path] = (
            oct(facts.st_mode), facts.st_uid, facts.st_gid, content, when, group, xattrs,
        )  # fmt: skip
    return found


def change(root: str, operations: list[tuple[Any, ...]]) -> dict[bytes, tuple[Any, ...]]:
    """Does what it can of `operations` in the tree, then looks at it from inside."""

    def remove(path: bytes) -> None:
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        elif os.path.lexists(path):
            os.unlink(path)

    def write(path: bytes, flags: int, data: bytes, mode: int = 0o644) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | flags, mode)
        try:
            os.write(fd, data)
        finally:
            os.close(fd)

    def touch(path: bytes) -> None:  # copied up, and as it was
        os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK))
        os.chmod(path, stat.S_IMODE(os.stat(path).st_mode))

    known: dict[str, Callable[..., object]] = {
        "write": lambda path, data, mode: write(path, os.O_TRUNC, data, mode),
        "append": lambda path, data: write(path, os.O_APPEND, data),
        "touch": touch,
        "truncate": os.truncate,
        "mkdir": os.mkdir,
        "symlink": lambda path, target: os.symlink(target, path),
        "fifo": os.mkfifo,
        "link": lambda old, new: os.link(old, new, follow_symlinks=False),
        "rename": os.rename,
        "chmod": os.chmod,
        "chown": lambda path, uid, gid: os.chown(path, uid, gid, follow_symlinks=False),
        "utime": lambda path, when: os.utime(path, ns=(when, when), follow_symlinks=False),
        "setxattr": os.setxattr,
        "removexattr": os.removexattr,
        "remove": remove,
    }
    os.umask(0)
    os.chroot(root)  # so that no link of the example leads to the host
    os.chdir("/")
    for name, *arguments in operations:
        kind = name.removeprefix("replace-by-")
        try:
            if kind != name:
                remove(arguments[0])
            known[kind](*arguments)
        except OSError:
            continue
    return scan("/")


# --- the sandbox ------------------------------------------------------------------------------


@dataclass
class Sandbox:
    """An agent, and a directory for examples."""

    agent: Agent
    root: Path
    serial: int = 0

    def program(self, *argv: str, stdin: bytes = b"") -> tuple[int, bytes, bytes]:
        """Runs a program of the host as root of the namespace: exit code, output, complaints."""
        with (
            tempfile.TemporaryFile() as source,
            tempfile.TemporaryFile() as out,
            tempfile.TemporaryFile() as err,
        ):
            source.write(stdin)
            source.seek(0)
            answer = self.agent.request(
                "run",
                *(file.fileno() for file in (source, out, err)),
                argv=list(argv),
                environment={"PATH": SEARCH_PATH, "HOME": str(self.root)},
            )
            out.seek(0)
            err.seek(0)
            return answer["exit"], out.read(), err.read()

    def call(self, function: Callable[..., Any], *arguments: object) -> Any:
        """Calls a function that stands for itself, as root of the namespace."""
        used = (scan, function) if function is not scan else (scan,)
        source = _HEADER + "from typing import Any, Callable\nTree = Any\n"
        source += "\n".join(map(inspect.getsource, used))
        source += f"\nprint(ascii({function.__name__}(*ast.literal_eval(sys.stdin.read()))))"
        code, out, err = self.program(
            sys.executable, "-I", "-S", "-c", source, stdin=ascii(arguments).encode()
        )
        assert code == 0, err.decode()
        return ast.literal_eval(out.decode())

    def unpack(self, tar: bytes, into: Path) -> list[object]:
        """Our unpacking; what `prepare` takes as a lower layer."""
        with tempfile.TemporaryFile() as file:
            file.write(tar)
            file.seek(0)
            done = self.agent.request(
                "unpack", file.fileno(), into=str(into), size_limit=BIG, entry_limit=ENTRY_LIMIT
            )
        return [str(into), done["implied"]]

    @contextmanager
    def directory(self) -> Iterator[Path]:
        """A directory for one example, removed with all that belongs to whomever."""
        self.serial += 1
        path = self.root / f"example-{self.serial}"
        path.mkdir()
        try:
            yield path
        finally:
            for build in path.glob("build*"):
                self.agent.request("release", build=str(build))
            self.agent.request("remove", parent=str(self.root), name=path.name)

    def prepare(
        self, build: Path, lowers: Sequence[list[object]], targets: Sequence[str] = ()
    ) -> Path:
        """An overlay over unpacked layers, not yet mounted for writing."""
        build.mkdir()
        places = [[path, True] for path in targets]
        self.agent.request("prepare", build=str(build), lowers=list(lowers), targets=places)
        return build

    def merged(self, build: Path, lowers: Sequence[list[object]]) -> Tree:
        """What a container over these layers sees."""
        return dict(self.call(scan, f"{self.prepare(build, lowers)}/base"))

    def layer(self, build: Path) -> bytes:
        """The tar of what changed."""
        with tempfile.TemporaryFile() as file:
            self.agent.request("diff", file.fileno(), build=str(build), clamp_mtime=None, ours=[])
            file.seek(0)
            return file.read()

    def changed(
        self, here: Path, base: Sequence[bytes], operations: Sequence[Operation]
    ) -> tuple[Tree, bytes, list[list[object]]]:
        """Does `operations` over `base`: what the container saw, our layer, the lowers of both."""
        lowers = [self.unpack(tar, here / f"lower-{number}") for number, tar in enumerate(base)]
        build = self.prepare(here / "build", lowers)
        self.agent.request("mount", build=str(build))
        seen: Tree = self.call(change, f"{build}/rootfs", list(operations))
        self.agent.request("unmount", build=str(build))
        # While it is mounted, overlayfs gives names of one file that it copied up different inode
        # numbers (index=off): which names are one file is seen in a second mount.
        again = self.merged(here / "build-again", [*lowers, [f"{build}/upper", []]])
        seen = {path: (*facts[:5], again[path][5], *facts[6:]) for path, facts in seen.items()}
        return seen, self.layer(build), lowers

    def by_umoci(self, here: Path, tars: Sequence[bytes]) -> Tree:
        """The tree that umoci makes of these layers."""
        layout = here / "layout"
        write_layout(layout, tars)
        # The agent's umask is 0; umoci shall make what nobody describes as users have it.
        code, out, err = self.program(
            *("/bin/sh", "-c", 'umask 022; exec "$@"', "sh"),
            str(shutil.which("umoci", path=SEARCH_PATH)),
            *("unpack", "--image", f"{layout}:image", str(here / "umoci")),
        )
        assert code == 0, (out + err).decode(errors="replace")
        return dict(self.call(scan, str(here / "umoci/rootfs")))


def write_layout(path: Path, tars: Sequence[bytes]) -> None:
    """An image of plain tars, as it is, in a layout."""
    blobs = path / "blobs/sha256"
    blobs.mkdir(parents=True)

    def put(data: bytes, kind: str) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        media_type = f"application/vnd.oci.image.{kind}"
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}

    layers = [put(tar, "layer.v1.tar") for tar in tars]
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"] for layer in layers]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": put(json.dumps(config).encode(), "config.v1+json"),
        "layers": layers,
    }
    entry = put(json.dumps(manifest).encode(), "manifest.v1+json")
    entry["annotations"] = {"org.opencontainers.image.ref.name": "image"}
    (path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    """One agent for all examples of a module."""
    if os.geteuid() == 0:
        pytest.skip("the tests run as root; the agent is for ordinary users")
    with agent(search_path=SEARCH_PATH) as running:
        yield Sandbox(running, tmp_path_factory.mktemp("examples"))


def assert_same(tree: Tree, wanted: Tree, who: str) -> None:
    """Fails with the paths that differ."""
    paths = sorted(tree.keys() | wanted.keys())
    wrong = [
        f"{path!r}:\n  {who}: {tree.get(path)}\n  seen: {wanted.get(path)}"
        for path in paths
        if tree.get(path) != wanted.get(path)
    ]
    assert not wrong, "\n".join(wrong)


# --- examples ---------------------------------------------------------------------------------

_NAMES = [b"a", b"b", b"c", b"new\nline", b"\xff\xfe", b".whx", b"long" * 60]
_IDS = st.sampled_from([0, 1, 1001, 65534, 65535])
_MODES = st.sampled_from([0o644, 0o755, 0o600, 0o000, 0o4755, 0o2755, 0o1777, 0o6711])
_TIMES = st.sampled_from([0, -1, MTIME * 10**9, 10**18 + 999_999_999, 2**33 * 10**9, 1])
_TARGETS = st.sampled_from([b"a", b"/a/b", b"../c", b"nowhere", b"/", b"\xff" * 120, b"a/" * 60])
_CONTENTS = st.sampled_from([b"", b"one", b"two", b"x" * 511, b"y" * 513, bytes(5000)])
# VFS_CAP_REVISION_2 with CAP_NET_BIND_SERVICE, effective: what setcap(8) writes.
CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")
_XATTRS = st.sampled_from(
    [
        ("user.one", b"1"),
        ("user.one", b"\0\xff"),
        # Not empty: POSIX pax takes a record without value for "not said" (and umoci, which reads
        # with Go's archive/tar, does), so no layer can tell others of an empty attribute.
        ("user.two", b"2"),
        ("user.overlay.opaque", b"y"),
        ("user.overlay.redirect", b"/etc"),
        ("security.capability", CAPABILITY),
    ]
)
_PATHS = st.lists(st.sampled_from(_NAMES), min_size=1, max_size=3).map(b"/".join)


@dataclass(frozen=True)
class Node:
    """An entry of a builder layer."""

    path: bytes
    kind: str
    mode: int = 0o755
    uid: int = 0
    gid: int = 0
    data: bytes = b""
    xattr: tuple[str, bytes] | None = None


def _node(path: bytes) -> st.SearchStrategy[Node]:
    common = {"mode": _MODES, "uid": _IDS, "gid": _IDS}
    xattr = st.none() | _XATTRS.filter(lambda pair: not pair[0].startswith("user.overlay"))
    plain = xattr.filter(lambda pair: pair is None or pair[0].startswith("user."))
    here = st.just(path)
    return st.one_of(
        st.builds(Node, here, st.just("file"), data=_CONTENTS, xattr=xattr, **common),
        st.builds(Node, here, st.just("directory"), xattr=plain, **common),
        st.builds(Node, here, st.just("symlink"), data=_TARGETS, uid=_IDS, gid=_IDS),
        st.builds(Node, here, st.just("fifo"), **common),
        st.builds(Node, here, st.just("hardlink"), data=_PATHS),
    )


@dataclass
class Draft:
    """A layer that is complete: parents come before what is in them, links after their target."""

    nodes: dict[bytes, Node] = field(default_factory=dict)
    gone: list[bytes] = field(default_factory=list)

    def add(self, node: Node) -> None:
        """Takes an entry, or leaves it where it cannot be."""
        parts = node.path.split(b"/")
        parents = [b"/".join(parts[:end]) for end in range(1, len(parts))]
        if node.path in self.nodes:
            return
        if any(p in self.nodes and self.nodes[p].kind != "directory" for p in parents):
            return
        if node.kind == "hardlink":
            target = self.nodes.get(node.data)
            if target is None or target.kind in ("directory", "hardlink"):
                return
        for parent in parents:
            self.nodes.setdefault(parent, Node(parent, "directory"))
        self.nodes[node.path] = node

    def tar(self) -> bytes:
        """Written by Python's own tarfile."""
        layer = Layer().dir("./")
        for node in self.nodes.values():
            layer.raw(*_member(node))
        for path in self.gone:
            layer.whiteout(os.fsdecode(path))
        return layer.tar()


def _member(node: Node) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(os.fsdecode(node.path))
    info.mode, info.uid, info.gid, info.mtime = node.mode, node.uid, node.gid, MTIME
    info.type = {
        "file": tarfile.REGTYPE,
        "directory": tarfile.DIRTYPE,
        "symlink": tarfile.SYMTYPE,
        "fifo": tarfile.FIFOTYPE,
        "hardlink": tarfile.LNKTYPE,
    }[node.kind]
    if node.xattr:
        name, value = node.xattr
        info.pax_headers = {f"SCHILY.xattr.{name}": os.fsdecode(value)}
    if node.kind == "file":
        info.size = len(node.data)
        return info, node.data
    info.linkname = os.fsdecode(node.data)
    return info, b""


_nodes = st.lists(_PATHS.flatmap(_node), min_size=1, max_size=12)


@st.composite
def drafts(draw: st.DrawFn) -> list[Draft]:
    """One builder layer, or two of which the second changes the first."""
    first = Draft()
    for node in draw(_nodes):
        first.add(node)
    if not draw(st.booleans()):
        return [first]
    second = Draft()
    for node in draw(_nodes):
        second.add(node)
    there = sorted(first.nodes) or [b"a"]
    for path in draw(st.lists(st.sampled_from(there), max_size=3, unique=True)):
        parent = path.rpartition(b"/")[0]
        # What the second layer has at the place, or a file above it, would be a contradiction.
        known = second.nodes.get(parent)
        if path not in second.nodes and (not parent or (known and known.kind == "directory")):
            second.gone.append(path)
    return [first, second]


def _operations(paths: Sequence[bytes]) -> st.SearchStrategy[Operation]:
    path = st.sampled_from(paths) | _PATHS
    one = [
        st.tuples(st.just("write"), path, _CONTENTS, _MODES),
        st.tuples(st.just("append"), path, _CONTENTS),
        st.tuples(st.just("touch"), path),
        st.tuples(st.just("truncate"), path, st.sampled_from([0, 1, 700])),
        st.tuples(st.just("mkdir"), path, _MODES),
        st.tuples(st.just("symlink"), path, _TARGETS),
        st.tuples(st.just("fifo"), path, _MODES),
        st.tuples(st.just("link"), path, path),
        st.tuples(st.just("rename"), path, path),
        st.tuples(st.just("chmod"), path, _MODES),
        st.tuples(st.just("chown"), path, _IDS, _IDS),
        st.tuples(st.just("utime"), path, _TIMES),
        st.tuples(st.just("setxattr"), path, _XATTRS).map(lambda t: (t[0], t[1], *t[2])),
        st.tuples(st.just("removexattr"), path, st.just("user.one")),
        st.tuples(st.just("remove"), path),
        st.tuples(st.just("replace-by-mkdir"), path, _MODES),
        st.tuples(st.just("replace-by-write"), path, _CONTENTS, _MODES),
        st.tuples(st.just("replace-by-symlink"), path, _TARGETS),
    ]
    return st.one_of(one)


@st.composite
def examples(draw: st.DrawFn) -> tuple[list[Draft], list[Operation]]:
    """Builder layers and changes, most of them of what is there."""
    base = draw(drafts())
    paths = sorted({path for draft in base for path in draft.nodes})
    return base, draw(st.lists(_operations([*paths, b"."]), max_size=14))


@pytest.mark.sandbox
@needs("umoci")
@settings(
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(example=examples())
def test_umoci_unpacks_what_the_container_saw(
    sandbox: Sandbox, example: tuple[list[Draft], list[Operation]]
) -> None:
    drafted, operations = example
    base = [draft.tar() for draft in drafted]
    with sandbox.directory() as here:
        seen, layer, lowers = sandbox.changed(here, base, operations)
        check_layer(layer)
        ours = sandbox.unpack(layer, here / "layer")
        assert_same(sandbox.merged(here / "build-2", [*lowers, ours]), seen, "ocis2i")
        assert_same(sandbox.by_umoci(here, [*base, layer]), seen, "umoci")


def check_layer(tar: bytes) -> list[str]:
    """The names in a layer, when it is clean."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(tar)
        file.flush()
        return check_tar(Path(file.name))


# --- single cases -----------------------------------------------------------------------------

pytestmark = pytest.mark.sandbox


def _base() -> Layer:
    layer = Layer().dir("./").dir("d", mode=0o2750, uid=1001).file("d/old", "old")
    return layer.dir("d/deep").file("d/deep/older", "older").dir("tmp", mode=0o1777)


# A second layer over `_base`, and the paths that are there with both.
_BASE = {"d", "d/old", "d/deep", "d/deep/older", "tmp"}
ODD_LAYERS = {
    "a whiteout in a directory that no lower layer has": (
        Layer().dir("e").whiteout("e/x"),
        _BASE | {"e"},
    ),
    "a whiteout below directories that nobody describes": (
        Layer().whiteout("e/f/x"),
        _BASE | {"e", "e/f"},
    ),
    "an opaque directory with whiteouts in it": (
        Layer().dir("d").opaque("d").whiteout("d/old").whiteout("d/never").file("d/new"),
        {"d", "d/new", "tmp"},
    ),
    "the opaque mark after what is in the directory": (
        Layer().dir("d").file("d/new").opaque("d"),
        {"d", "d/new", "tmp"},
    ),
    "an opaque mark in a directory without an entry": (
        Layer().file("d/new").opaque("d"),
        {"d", "d/new", "tmp"},
    ),
    "a whiteout before the file of its name": (
        Layer().dir("d").whiteout("d/old").file("d/old", "new"),
        _BASE,
    ),
    "a whiteout after the file of its name": (
        Layer().dir("d").file("d/old", "new").whiteout("d/old"),
        _BASE,
    ),
    "a whiteout before the directory of its name": (
        Layer().whiteout("d").dir("d").file("d/new"),
        {"d", "d/new", "tmp"},
    ),
    "a whiteout after the directory of its name": (
        Layer().dir("d").file("d/new").whiteout("d"),
        {"d", "d/new", "tmp"},
    ),
    "a whiteout of a directory": (Layer().whiteout("d"), {"tmp"}),
    "a directory that becomes a file in one layer": (
        Layer().dir("e").file("e/x").dir("e/y").file("e", "file"),
        _BASE | {"e"},
    ),
    "a file that becomes a directory in one layer": (
        Layer().file("e", "file").dir("e").file("e/x"),
        _BASE | {"e", "e/x"},
    ),
    "an entry that is there twice": (Layer().file("e", "1").file("e", "2"), _BASE | {"e"}),
    "files below a link to a directory": (
        Layer().dir("usr").dir("usr/lib").symlink("lib", "usr/lib").file("lib/x", "x"),
        _BASE | {"usr", "usr/lib", "lib", "usr/lib/x"},
    ),
    "files below an absolute link": (
        Layer().dir("usr").symlink("lib", "/usr").file("lib/x", "x"),
        _BASE | {"usr", "lib", "usr/x"},
    ),
    "files below a link to nothing": (
        Layer().symlink("lib", "usr/lib").file("lib/x", "x"),
        _BASE | {"usr", "usr/lib", "lib", "usr/lib/x"},
    ),
    "files below an absolute link to nothing": (
        Layer().dir("a").symlink("a/lib", "/usr/lib").file("a/lib/x", "x"),
        _BASE | {"usr", "usr/lib", "a", "a/lib", "usr/lib/x"},
    ),
    "files below a link that leads above the root": (
        Layer().dir("a").symlink("a/up", "../../../up").file("a/up/x", "x"),
        _BASE | {"a", "a/up", "up", "up/x"},
    ),
    "files below directories of odd modes without an entry": (
        Layer().file("tmp/x").file("d/deep/y"),
        _BASE | {"tmp/x", "d/deep/y"},
    ),
    "a hard link to a symbolic link": (
        Layer().symlink("one", "nowhere").hardlink("two", "one"),
        _BASE | {"one", "two"},
    ),
    "names with `.`, `//` and a leading slash": (
        Layer().dir("/e/").file(".//e/./x").file("e//y/../z"),
        _BASE | {"e", "e/x", "e/z"},
    ),
}
# Where layer.md leaves the choice and umoci takes the other one: it does not make the directories
# that hold nothing but a whiteout (Docker does), and gives an opaque directory without an entry
# the attributes that it had below (Docker does not).
NOT_AS_UMOCI = {
    "a whiteout below directories that nobody describes",
    "an opaque mark in a directory without an entry",
}


@needs("umoci")
@pytest.mark.parametrize("case", ODD_LAYERS)
def test_odd_layers_mean_what_other_tools_take_them_for(sandbox: Sandbox, case: str) -> None:
    layer, wanted = ODD_LAYERS[case]
    base = _base().tar()
    with sandbox.directory() as here:
        lowers = [sandbox.unpack(base, here / "1"), sandbox.unpack(layer.tar(), here / "2")]
        ours = sandbox.merged(here / "build", lowers)
        assert {os.fsdecode(path) for path in ours} == {"", *wanted}
        if case not in NOT_AS_UMOCI:
            assert_same(ours, sandbox.by_umoci(here, [base, layer.tar()]), "ocis2i, umoci")


def _layer_of(sandbox: Sandbox, base: Layer, *operations: Operation) -> list[str]:
    with sandbox.directory() as here:
        _, layer, _ = sandbox.changed(here, [base.tar()], operations)
        return check_layer(layer)


def test_what_was_only_touched_is_not_in_the_layer(sandbox: Sandbox) -> None:
    base = _base().file("s", mode=0o4755).symlink("l", "s")
    assert _layer_of(sandbox, base, ("touch", b"d/old"), ("chmod", b"d", 0o2750)) == []


def test_a_touched_name_of_a_hard_link_stands_alone_as_the_container_saw_it(
    sandbox: Sandbox,
) -> None:
    base = Layer().dir("./").file("one", "1").hardlink("two", "one")
    with sandbox.directory() as here:
        seen, layer, lowers = sandbox.changed(here, [base.tar()], [("touch", b"one")])
        both = [*lowers, sandbox.unpack(layer, here / "layer")]
        assert seen[b"one"][-2] != seen[b"two"][-2]
        assert_same(sandbox.merged(here / "build-2", both), seen, "ocis2i")


@needs("umoci")
def test_a_fifo_keeps_its_second_name_and_its_capabilities(sandbox: Sandbox) -> None:
    changes = [
        ("fifo", b"one", 0o600),
        ("setxattr", b"one", "security.capability", CAPABILITY),
        ("link", b"one", b"two"),
    ]
    with sandbox.directory() as here:
        seen, layer, lowers = sandbox.changed(here, [_base().tar()], changes)
        both = [*lowers, sandbox.unpack(layer, here / "layer")]
        assert seen[b"one"][-1] != []
        assert_same(sandbox.merged(here / "build-2", both), seen, "ocis2i")
        assert_same(sandbox.by_umoci(here, [_base().tar(), layer]), seen, "umoci")


def test_attributes_of_the_root_that_overlayfs_escapes_come_and_go(sandbox: Sandbox) -> None:
    ours = ("setxattr", b".", "user.overlay.opaque", b"y")
    with sandbox.directory() as here:
        seen, layer, lowers = sandbox.changed(here, [_base().tar()], [ours])
        both = [*lowers, sandbox.unpack(layer, here / "layer")]
        assert seen[b""][-1] == [("user.overlay.opaque", b"y")]
        assert_same(sandbox.merged(here / "build-2", both), seen, "ocis2i")
        assert check_layer(sandbox.layer(here / "build-2")) == []


def test_same_changes_make_the_same_bytes(sandbox: Sandbox) -> None:
    changes = [
        ("write", b"d/new", b"1", 0o644),
        ("utime", b"d/new", 10**18),
        ("link", b"d/new", b"d/again"),
        ("remove", b"d/deep"),
        ("setxattr", b"d/old", "user.b", b"2"),
        ("setxattr", b"d/old", "user.a", b"1"),
    ]
    tars = set()
    for order in (changes, [*changes[:3], *reversed(changes[3:])]):
        with sandbox.directory() as here:
            _, layer, _ = sandbox.changed(here, [_base().tar()], order)
            tars.add(_without_times(layer))
    assert len(tars) == 1


def _without_times(tar: bytes) -> tuple[tuple[object, ...], ...]:
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        return tuple(
            (m.name, m.type, m.mode, m.uid, m.size, m.linkname, *sorted(m.pax_headers.items()))
            for m in archive
        )


def test_a_file_with_the_name_of_a_whiteout_is_refused(sandbox: Sandbox) -> None:
    with pytest.raises(OutputError, match=r"`d/\.wh\.old`.*reserved"):
        _layer_of(sandbox, _base(), ("write", b"d/.wh.old", b"", 0o644))


def test_a_socket_is_left_out_and_counted(sandbox: Sandbox) -> None:
    with sandbox.directory() as here:
        build = sandbox.prepare(here / "build", [sandbox.unpack(_base().tar(), here / "1")])
        sandbox.call(make_socket, f"{build}/upper/socket")
        with tempfile.TemporaryFile() as out:
            done = sandbox.agent.request(
                "diff", out.fileno(), build=str(build), clamp_mtime=None, ours=[]
            )
        assert (done["sockets"], done["entries"]) == (1, 0)


def make_socket(path: str) -> None:
    """A socket's inode at `path`."""
    os.mknod(path, stat.S_IFSOCK | 0o600)
