"""What a build writes, as other tools see it: skopeo, umoci, buildah, a registry, the schemas.

The assemble script of the first half is a Python program that runs with the host's interpreter,
bound into the container: it can do to a tree what no shell can. It ends by writing down the tree
that it sees, and every other view of the image has to be the same.
"""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import zstandard

from ocis2i.reference import Digest
from tests.conftest import needs
from tests.contract import better, same
from tests.fakes.docker_registry import RegistryUnderTest, docker_registry, registry_program
from tests.fakes.images import (
    BUSYBOX,
    CompressionName,
    Layer,
    busybox_builder,
    busybox_config,
    make_archive,
    make_docker_archive,
)
from tests.fakes.images import _busybox_layer as busybox_layer
from tests.fakes.images import _scripts_layer as scripts_layer
from tests.fakes.judges import (
    have,
    schema_check,
    skopeo_config,
    skopeo_copy,
    skopeo_inspect,
    validate_layout,
)
from tests.fakes.program import Program, program

pytestmark = [
    pytest.mark.sandbox,
    pytest.mark.skipif(not BUSYBOX.exists(), reason="busybox-static is not installed"),
]

Json = dict[str, Any]
Tree = dict[str, Json]

HOST_PYTHON = Path("/usr/bin/python3")
LABEL_TAG = "judged:1"

# Mounted over, so every view has something else there; `test_nothing_of_ours_is_in_the_layer`
# looks at these.
NOT_THE_IMAGES = ("proc", "sys", "dev", "host", "etc/resolv.conf", "etc/hosts")

PYTHON = """\
#!/bin/sh
# The host's interpreter with the host's libraries, in a container that has neither.
for loader in /host/usr/lib/*/ld-linux-*.so.* /host/usr/lib64/ld-linux-*.so.*; do
    [ -e "$loader" ] && break
done
libraries=/host/usr/lib64:/host/usr/lib
for directory in /host/usr/lib/*-linux-gnu; do libraries=$directory:$libraries; done
export PYTHONHOME=/host/usr PYTHONDONTWRITEBYTECODE=1
exec "$loader" --library-path "$libraries" /host/usr/bin/python3 -s -S "$@"
"""

LISTER = '''\
"""Prints a tree as JSON: lister.py ROOT [NOT THIS ...]"""
import hashlib, json, os, stat, sys

root, skipped = os.fsencode(sys.argv[1]), set(map(os.fsencode, sys.argv[2:]))
tree, first = {}, {}

def look(path):
    full = os.path.join(root, path) if path else root
    facts = os.lstat(full)
    kind = stat.S_IFMT(facts.st_mode)
    entry = {"mode": oct(facts.st_mode), "owner": [facts.st_uid, facts.st_gid]}
    names = os.listxattr(full, follow_symlinks=False)
    entry["xattrs"] = {
        name: os.getxattr(full, name, follow_symlinks=False).hex()
        for name in sorted(names)
        if name.startswith("user.") or name == "security.capability"
    }
    if kind != stat.S_IFDIR:
        # Making an entry in a directory changes its time, and no layer says so.
        entry["mtime"] = int(facts.st_mtime_ns // 10**9)
        inode = (facts.st_dev, facts.st_ino)
        entry["same_as"] = os.fsdecode(first.setdefault(inode, path))
    if kind == stat.S_IFREG:
        with open(full, "rb") as file:
            entry["content"] = [facts.st_size, hashlib.sha256(file.read()).hexdigest()]
    if kind == stat.S_IFLNK:
        entry["target"] = os.fsdecode(os.readlink(full))
    tree[os.fsdecode(path) or "."] = entry
    if kind == stat.S_IFDIR:
        for name in sorted(os.listdir(full)):
            inner = os.path.join(path, name)
            if inner not in skipped:
                look(inner)

look(b"")
print(json.dumps(tree))
'''

ASSEMBLE = "#!/bin/sh\nexec /host/tools/python /tmp/src/assemble.py\n"

CHANGE = '''\
"""Does to a tree all that a layer can hold."""
import os, shutil, subprocess

def write(path, text="new\\n", mode=None):
    with open(path, "w") as file:
        file.write(text)
    if mode is not None:
        os.chmod(path, mode)

os.chdir("/data")

# No change at all, though overlayfs copies every one of these up.
os.chmod("noop-chmod", os.stat("noop-chmod").st_mode)
os.chown("noop-chown", 1001, 0)
open("noop-open", "r+").close()
os.rename("noop-rename", "elsewhere"); os.rename("elsewhere", "noop-rename")
os.chmod("noop-directory", 0o755)
os.utime("noop-directory/inside", ns=(os.stat("noop-directory/inside").st_mtime_ns,) * 2)

# Changes of attributes.
os.chmod("chmod", 0o600)
os.chown("chown", 65534, 65535)
os.chmod("chmod-directory", 0o2770)
os.setxattr("setfattr", "user.note", b"set by assemble")
os.setxattr("setfattr-directory", "user.note", b"\\x00binary\\xff")
os.removexattr("noted-once", "user.note")
os.setxattr("capable-now", "security.capability", CAPABILITY)
os.setxattr("overlay-xattr", "user.overlay.opaque", b"y")
with open("append", "a") as file:
    file.write("more\\n")
with open("noted", "a") as file:  # its attribute stays
    file.write("more\\n")
with open("linked-1", "a") as file:  # with index=off this is one of the names only, as in Docker
    file.write("more\\n")

# Gone.
os.remove("remove")
os.remove("linked-3")
shutil.rmtree("remove-directory")
os.remove("dangling")

# Something else under the same name.
shutil.rmtree("replaced"); os.mkdir("replaced", 0o750)
write("replaced/kept"); write("replaced/new")
shutil.rmtree("emptied"); os.mkdir("emptied")
shutil.rmtree("directory-to-file"); write("directory-to-file")
os.remove("file-to-directory"); os.mkdir("file-to-directory"); write("file-to-directory/inside")
shutil.rmtree("directory-to-link"); os.symlink("untouched", "directory-to-link")
os.remove("link-to-directory"); os.mkdir("link-to-directory"); write("link-to-directory/inside")
shutil.rmtree("there-and-back"); write("there-and-back"); os.remove("there-and-back")
os.mkdir("there-and-back"); os.mkdir("there-and-back/inner"); write("there-and-back/inner/new")
os.remove("to-file"); os.symlink("owner-nobody", "to-file")
shutil.move("moved", "moved-here")
write("opaque/old", "back again, above an opaque directory\\n")

# New.
os.makedirs("/srv/new/deep")
os.chdir("/srv/new")
write("suid", mode=0o4755); write("sgid", mode=0o2711)
os.mkdir("sticky"); os.chmod("sticky", 0o1777)
write("no-permissions", mode=0)
write("a"); os.link("a", "b"); os.link("a", "deep/c"); os.chown("a", 1001, 65534)
os.link("/data/link-me", "/data/link-me-too")
os.symlink("/absolute/nowhere", "absolute"); os.symlink("../" * 90 + "far", "far-link")
os.symlink("../data", "link-to-a-link"); os.link("absolute", "absolute-too", follow_symlinks=False)
os.mkfifo("fifo", 0o640); os.chown("fifo", 1001, 65535)
write("n" * 255); os.makedirs("/".join(["d" * 120] * 4)); write("/".join(["d" * 120] * 4) + "/leaf")
write("line\\nbreak"); write(b"not-utf-8-\\xff\\xfe"); write("umlaut-\\u00fc"); write(" blank ")
os.symlink(b"target-\\xff", b"link-\\xff\\n")
with open("sparse", "wb") as file:
    file.seek(9 << 20); file.write(b"end"); file.truncate(10 << 20)
open("empty", "w").close()
os.utime("empty", ns=(0, 1_234_567_890_987_654_321))
os.makedirs("/tmp/kept"); write("/tmp/kept/file"); os.chmod("/tmp/kept/file", 0o606)
write("/dev/shm/not-in-the-image"); write("/host/out/not-in-the-image")
write("/opt/app-root/src/index.html", "hello\\n")

with open("/host/out/tree.json", "w") as out:
    subprocess.run(["/host/tools/python", "/host/tools/lister.py", "/", *NOT_THE_IMAGES],
                   stdout=out, check=True)
'''


def capability(*numbers: int) -> bytes:
    """A `security.capability` of revision 2 with these permitted and effective (capability.h)."""
    mask = sum(1 << number for number in numbers)
    return struct.pack("<IIIII", 0x02000001, mask & 0xFFFFFFFF, 0, mask >> 32, 0)


NET_BIND_SERVICE = capability(10)

# Everything that CHANGE does, as names of the layer: nothing else may be in it.
DEEP = ["/".join(["d" * 120] * n) for n in range(1, 5)]
CHANGED = {
    *("data", "data/chmod", "data/chown", "data/chmod-directory", "data/setfattr"),
    *("data/setfattr-directory", "data/noted-once", "data/capable-now", "data/overlay-xattr"),
    *("data/append", "data/noted", "data/linked-1"),
    *("data/.wh.remove", "data/.wh.linked-3", "data/.wh.remove-directory", "data/.wh.dangling"),
    *("data/replaced", "data/replaced/.wh..wh..opq", "data/replaced/kept", "data/replaced/new"),
    *("data/emptied", "data/emptied/.wh..wh..opq", "data/directory-to-file"),
    *("data/file-to-directory", "data/file-to-directory/inside", "data/directory-to-link"),
    *("data/link-to-directory", "data/link-to-directory/inside"),
    *("data/there-and-back", "data/there-and-back/.wh..wh..opq", "data/there-and-back/inner"),
    *("data/there-and-back/inner/new", "data/to-file", "data/.wh.moved", "data/moved-here"),
    *("data/moved-here/inner", "data/moved-here/inner/file", "data/moved-here/inside"),
    *("data/moved-here/kept", "data/opaque", "data/opaque/old"),
    *("data/link-me", "data/link-me-too"),
    *("srv", "srv/new", "srv/new/deep", "srv/new/suid", "srv/new/sgid", "srv/new/sticky"),
    *("srv/new/no-permissions", "srv/new/a", "srv/new/b", "srv/new/deep/c", "srv/new/absolute"),
    *("srv/new/far-link", "srv/new/link-to-a-link", "srv/new/absolute-too", "srv/new/fifo"),
    *("srv/new/" + "n" * 255, *(f"srv/new/{path}" for path in DEEP), f"srv/new/{DEEP[-1]}/leaf"),
    *("srv/new/line\nbreak", os.fsdecode(b"srv/new/not-utf-8-\xff\xfe"), "srv/new/umlaut-ü"),
    *("srv/new/ blank ", os.fsdecode(b"srv/new/link-\xff\n"), "srv/new/sparse", "srv/new/empty"),
    *("tmp", "tmp/kept", "tmp/kept/file", "tmp/src", "tmp/src/assemble.py"),
    *("opt", "opt/app-root", "opt/app-root/src", "opt/app-root/src/index.html"),
    "tmp/scripts",
}


def base_layers() -> list[Layer]:
    """Two layers with all that images hold, the upper one with whiteouts; below comes busybox."""
    one = Layer().dir("data").dir("data/sticky", mode=0o1777, uid=1001, gid=65535)
    one.file("data/owner-app", "a", uid=1001).file("data/owner-nobody", uid=65534, gid=65534)
    one.file("data/owner-last", "l", uid=65535, gid=65535, mode=0o640)
    one.file("data/suid", mode=0o4755).file("data/sgid", mode=0o2755, uid=1001, gid=1001)
    one.file("data/linked-1", "one inode\n")
    one.hardlink("data/linked-2", "data/linked-1").hardlink("data/linked-3", "data/linked-1")
    one.file("data/noted", "n\n", xattrs={"user.note": "from the base"})
    one.file("data/noted-once", xattrs={"user.note": "from the base", "user.more": "stays"})
    one.file("data/capable", mode=0o755, xattrs={"security.capability": NET_BIND_SERVICE.decode()})
    one.symlink("data/to-file", "owner-app", uid=1001, gid=1001).symlink("data/dangling", "nowhere")
    one.symlink("data/link-to-directory", "untouched").file("data/file-to-directory", "f")
    one.dir("data/lower").file("data/lower/hidden", "h").file("data/lower/stays", "s")
    one.dir("data/lower/hidden-directory").file("data/lower/hidden-directory/x")
    one.dir("data/opaque").file("data/opaque/old", "old").dir("data/opaque/old-directory")
    for name in "noop-chmod noop-open noop-rename chmod chown setfattr append remove".split():
        one.file(f"data/{name}", f"{name}\n", mtime=1_400_000_000.5)
    one.file("data/noop-chown", uid=1001, xattrs={"user.note": "x"})
    one.file("data/capable-now", mode=0o755).file("data/overlay-xattr").file("data/link-me", "l")
    one.dir("data/chmod-directory", mode=0o700).dir("data/setfattr-directory")
    for name in (
        "remove-directory replaced emptied directory-to-file directory-to-link there-and-back "
        "moved untouched noop-directory"
    ).split():
        one.dir(f"data/{name}").dir(f"data/{name}/inner").file(f"data/{name}/inner/file", name)
        one.file(f"data/{name}/inside", name).file(f"data/{name}/kept", name)
    two = Layer().dir("data").dir("data/lower").whiteout("data/lower/hidden")
    two.whiteout("data/lower/hidden-directory").dir("data/opaque", mode=0o751, uid=65534)
    two.opaque("data/opaque").file("data/opaque/new", "new in the second layer\n")
    return [one, two]


@dataclass(frozen=True)
class Judged:
    """A build that did everything, and what was seen of it."""

    ocis2i: Program
    directory: Path
    builder: Path
    result: Json
    seen: Tree

    @property
    def output(self) -> Path:
        """The result as a layout with nothing else in it."""
        return self.directory / "output"

    @property
    def tools(self) -> tuple[str, ...]:
        """What brings the host's Python and the lister into a container."""
        return ("-v", "/usr:/host/usr:ro", "-v", f"{self.directory / 'tools'}:/host/tools:ro")

    def tree_in_container(self, image: str) -> Tree:
        """The tree as a container of ocis2i shows it to its root."""
        lister = ("/host/tools/python", "/host/tools/lister.py", "/", *NOT_THE_IMAGES)
        done = self.ocis2i.ok("run", *self.tools, "--user", "0", image, *lister)
        return done.document


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Judged]:
    if os.geteuid() == 0:
        pytest.skip("the tests run as root; ocis2i builds as an ordinary user")
    if not HOST_PYTHON.exists():
        pytest.skip(f"no {HOST_PYTHON} to lend to the container")
    directory = tmp_path_factory.mktemp("judged")
    for name in ("tools", "out", "source", "program"):
        (directory / name).mkdir()
    python = directory / "tools/python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    (directory / "tools/lister.py").write_text(LISTER)
    values = f"CAPABILITY = {NET_BIND_SERVICE!r}\nNOT_THE_IMAGES = {NOT_THE_IMAGES!r}\n"
    (directory / "source/assemble.py").write_text(values + CHANGE)
    builder = directory / "builder"
    busybox_builder(builder, user="0", scripts={"assemble": ASSEMBLE}, more_layers=base_layers())
    with program(directory / "program") as ocis2i:
        draft = Judged(ocis2i, directory, builder, {}, {})
        result = ocis2i.ok(
            *("build", directory / "source", f"oci:{builder}:builder:latest", LABEL_TAG),
            *(*draft.tools, "-v", f"{directory / 'out'}:/host/out"),
            *("-o", f"oci:{draft.output}:{LABEL_TAG}", "--json"),
        ).document
        seen = json.loads((directory / "out/tree.json").read_bytes())
        # In a user namespace overlayfs cannot follow its own marks of origin, and shows two inode
        # numbers for the links of a file that came from below (overlayfs.rst, "Inode properties").
        seen["data/link-me-too"]["same_as"] = "data/link-me"
        yield Judged(ocis2i, directory, builder, result, seen)


def blob(layout: Path, digest: str) -> Path:
    return layout / "blobs" / Path(*digest.split(":"))


def manifest_of(layout: Path) -> Json:
    index = json.loads((layout / "index.json").read_bytes())
    document: Json = json.loads(blob(layout, index["manifests"][0]["digest"]).read_bytes())
    return document


def config_of(layout: Path) -> Json:
    document: Json = json.loads(blob(layout, manifest_of(layout)["config"]["digest"]).read_bytes())
    return document


def top_layer(layout: Path) -> dict[str, tarfile.TarInfo]:
    """The members of the last layer, by name without slash at the end."""
    path = blob(layout, manifest_of(layout)["layers"][-1]["digest"])
    with tarfile.open(path, "r:*", errors="surrogateescape") as archive:
        return {member.name.rstrip("/"): member for member in archive}


def in_user_namespace(*argv: str | Path) -> str:
    """Runs a program as root of a namespace with the same ids as ocis2i's containers."""
    done = subprocess.run(
        ["unshare", "--user", "--map-auto", "--map-root-user", *map(str, argv)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={"PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin", "HOME": "/nonexistent"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def tree_on_host(judged: Judged, root: Path) -> Tree:
    """The tree below `root` with the owners that it has in a user namespace."""
    lister = judged.directory / "tools/lister.py"
    text = in_user_namespace(HOST_PYTHON, "-s", "-S", lister, root, *NOT_THE_IMAGES)
    tree: Tree = json.loads(text)
    return tree


@pytest.fixture
def subordinate_tmp(tmp_path: Path) -> Iterator[Path]:
    """A directory for files of subordinate ids, which only their namespace can remove."""
    offered = subprocess.run(["unshare", "--help"], capture_output=True, text=True, check=False)
    if "--map-auto" not in offered.stdout:
        pytest.skip("unshare has no --map-auto, it is older than util-linux 2.38")
    path = tmp_path / "subordinate"
    path.mkdir()
    yield path
    in_user_namespace("rm", "-rf", path)


def assert_same_tree(one: Tree, other: Tree) -> None:
    """Names what differs: pytest's own comparison of two trees of this size is of no help."""
    assert sorted(one) == sorted(other)
    different = {
        f"{path}: {fact}": (one[path].get(fact), other[path].get(fact))
        for path in one
        for fact in one[path].keys() | other[path].keys()
        if one[path].get(fact) != other[path].get(fact)
    }
    assert not different


# --- the layer --------------------------------------------------------------------------------


def test_layer_holds_exactly_what_assemble_changed(judged: Judged) -> None:
    assert set(top_layer(judged.output)) == CHANGED


@same("image.nothing-of-the-engine")
def test_nothing_of_ours_is_in_the_layer(judged: Judged) -> None:
    names = set(top_layer(judged.output))
    for ours in (*NOT_THE_IMAGES, ".dockerenv", "etc", "run", "etc/hostname"):
        assert not {name for name in names if name == ours or name.startswith(f"{ours}/")}


@same("image.deletions")
def test_every_whiteout_is_for_something_in_the_base(judged: Judged) -> None:
    base = judged.tree_in_container(f"oci:{judged.builder}:builder:latest")
    for name in top_layer(judged.output):
        parent, _, last = name.rpartition("/")
        if last == ".wh..wh..opq":
            assert parent in base
        elif last.startswith(".wh."):
            assert f"{parent}/{last.removeprefix('.wh.')}" in base


def test_times_in_the_layer_are_whole_seconds(judged: Judged) -> None:
    members = top_layer(judged.output)
    assert all(float(member.mtime).is_integer() for member in members.values())
    assert members["srv/new/empty"].mtime == 1_234_567_890


def test_hard_links_are_links_in_the_layer(judged: Judged) -> None:
    members = top_layer(judged.output)
    assert members["srv/new/b"].linkname == members["srv/new/deep/c"].linkname == "srv/new/a"
    assert members["data/link-me-too"].linkname == "data/link-me"
    assert members["srv/new/absolute-too"].linkname == "srv/new/absolute"
    assert members["data/linked-1"].isreg()


@same("image.one-layer")
def test_exactly_one_layer_is_added_and_the_base_is_left_alone(judged: Judged) -> None:
    base, result = manifest_of(judged.builder), manifest_of(judged.output)
    assert result["layers"][:-1] == base["layers"]
    assert len(result["layers"]) == len(base["layers"]) + 1
    base_config, config = config_of(judged.builder), config_of(judged.output)
    assert config["rootfs"]["diff_ids"][:-1] == base_config["rootfs"]["diff_ids"]
    assert config["history"][:-1] == base_config["history"]
    assert len(config["history"]) == len(config["rootfs"]["diff_ids"])


@better("output.machine-readable", "`--json`")
@better("result.document", "`--json`")
def test_result_document_agrees_with_the_image(judged: Judged) -> None:
    layers = manifest_of(judged.output)["layers"]
    assert [layer["digest"] for layer in judged.result["layers"]] == [
        layer["digest"] for layer in layers
    ]
    assert judged.result["changes"]["entries"] == len(top_layer(judged.output))
    assert judged.result["outputs"]


# --- the judges -------------------------------------------------------------------------------


def test_layout_is_valid_to_the_last_digest(judged: Judged) -> None:
    (entry,) = validate_layout(judged.output)
    assert entry["digest"] == judged.result["digest"]
    schema_check("manifest", manifest_of(judged.output))
    schema_check("config", config_of(judged.output))


def test_store_is_itself_a_valid_layout(judged: Judged) -> None:
    entries = validate_layout(judged.ocis2i.layout, strict=False)
    assert judged.result["digest"] in {entry["digest"] for entry in entries}


@needs("skopeo")
def test_skopeo_inspects_and_copies_it(judged: Judged, tmp_path: Path) -> None:
    seen = skopeo_inspect(judged.output, LABEL_TAG)
    assert seen["Digest"] == judged.result["digest"]
    assert len(seen["Layers"]) == len(judged.result["layers"])
    skopeo_copy(f"oci:{judged.output}:{LABEL_TAG}", tmp_path / "copy")
    assert manifest_of(tmp_path / "copy") == manifest_of(judged.output)
    validate_layout(tmp_path / "copy")


@needs("skopeo")
def test_skopeo_reads_the_store_by_name(judged: Judged) -> None:
    name = f"docker.io/library/{LABEL_TAG}"
    assert skopeo_inspect(judged.ocis2i.layout, name)["Digest"] == judged.result["digest"]


@needs("umoci", "unshare")
def test_umoci_unpacks_the_tree_that_assemble_saw(judged: Judged, subordinate_tmp: Path) -> None:
    bundle = subordinate_tmp / "bundle"
    in_user_namespace("umoci", "unpack", "--image", f"{judged.output}:{LABEL_TAG}", bundle)
    assert_same_tree(tree_on_host(judged, bundle / "rootfs"), judged.seen)


@needs("umoci", "unshare")
def test_builder_looks_the_same_to_umoci_and_to_us(judged: Judged, subordinate_tmp: Path) -> None:
    bundle = subordinate_tmp / "bundle"
    in_user_namespace("umoci", "unpack", "--image", f"{judged.builder}:builder:latest", bundle)
    ours = judged.tree_in_container(f"oci:{judged.builder}:builder:latest")
    assert "data/lower/hidden" not in ours
    assert "data/opaque/old" not in ours
    assert_same_tree(tree_on_host(judged, bundle / "rootfs"), ours)


def test_container_of_the_result_shows_the_tree_that_assemble_saw(judged: Judged) -> None:
    assert_same_tree(judged.tree_in_container(LABEL_TAG), judged.seen)


def test_what_assemble_saw_was_what_it_did(judged: Judged) -> None:
    """Against two views that are wrong in the same way: some facts, one by one."""
    seen = judged.seen
    assert seen["data/owner-last"]["owner"] == [65535, 65535]
    assert seen["srv/new/suid"]["mode"] == "0o104755"
    assert seen["srv/new/b"]["same_as"] == seen["srv/new/deep/c"]["same_as"] == "srv/new/a"
    assert seen["data/capable"]["xattrs"] == {"security.capability": NET_BIND_SERVICE.hex()}
    assert seen["data/capable-now"]["xattrs"] == {"security.capability": NET_BIND_SERVICE.hex()}
    assert seen["data/noted-once"]["xattrs"] == {"user.more": b"stays".hex()}
    assert seen["data/overlay-xattr"]["xattrs"] == {"user.overlay.opaque": b"y".hex()}
    assert seen["srv/new/far-link"]["target"] == "../" * 90 + "far"
    assert seen["data/linked-2"]["same_as"] == "data/linked-2"
    assert seen["tmp"]["mode"] == "0o41777"
    assert not {"data/remove", "data/remove-directory", "data/replaced/inside"} & set(seen)


class Buildah:
    """Buildah with storage of its own, as the calling user."""

    def __init__(self, directory: Path) -> None:
        storage = ("--root", directory / "root", "--runroot", directory / "runroot")
        self.places = (*map(str, storage), "--storage-driver", "vfs")
        runtime = directory / "run"
        runtime.mkdir(mode=0o700)
        self._environment = {
            "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin",
            "HOME": str(directory),
            "XDG_RUNTIME_DIR": str(runtime),
            "TMPDIR": str(directory),
            "BUILDAH_ISOLATION": "chroot",
        }

    def __call__(self, *arguments: str | Path) -> str:
        done = subprocess.run(
            ["buildah", *self.places, *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
            env=self._environment,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


@pytest.fixture
def buildah(subordinate_tmp: Path) -> Buildah:
    return Buildah(subordinate_tmp)


@needs("buildah", "unshare")
def test_buildah_runs_the_result_and_sees_the_same_tree(judged: Judged, buildah: Buildah) -> None:
    container = buildah("from", "--pull=never", f"oci:{judged.output}:{LABEL_TAG}")
    page = buildah("run", container, "--", "cat", "/opt/app-root/src/index.html")
    assert page == "hello"
    root = Path(buildah("unshare", "buildah", *buildah.places, "mount", container))
    # Storage of the kind `vfs` gives `/` another mode and copies links to links; the rest of this
    # is what `buildah run` adds.
    not_compared = {".", "srv/new/absolute-too", "run/.containerenv"}
    tree = tree_on_host(judged, root)
    assert_same_tree(without(tree, not_compared), without(judged.seen, not_compared))


def without(tree: Tree, paths: set[str]) -> Tree:
    return {path: entry for path, entry in tree.items() if path not in paths}


# --- every form of builder and result ---------------------------------------------------------


@pytest.fixture(scope="module")
def ocis2i(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """One store for all tests here: no test looks at what else is in it."""
    if os.geteuid() == 0:
        pytest.skip("the tests run as root; ocis2i builds as an ordinary user")
    with program(tmp_path_factory.mktemp("forms")) as running:
        yield running


def a_change(ocis2i: Program, builder: str, source: Path, output: Path, *more: str) -> Json:
    """A small build with one whiteout; its result document. `output` becomes a layout."""
    done = ocis2i.ok("build", source, builder, "app:1", "-o", f"oci:{output}:app", "--json", *more)
    return done.document


def layer_types(layout: Path) -> list[str]:
    return [layer["mediaType"].rpartition(".")[2] for layer in manifest_of(layout)["layers"]]


REMOVING = """\
#!/bin/sh
set -e
rm /usr/libexec/s2i/usage
cp /tmp/src/index.html "$HOME/"
"""


def assert_runs(ocis2i: Program, image: str) -> None:
    script = 'cat "$HOME/index.html" && test ! -e /usr/libexec/s2i/usage && id -u'
    done = ocis2i.ok("run", image, "sh", "-c", script)
    assert done.out == "hello from the source\n1001\n"


TAR_SUFFIX = {"gzip": "tar+gzip", "zstd": "tar+zstd", "none": "tar"}


@pytest.mark.parametrize("of_result", ["gzip", "zstd", "none"])
@pytest.mark.parametrize("of_builder", ["gzip", "zstd", "none"])
def test_any_compression_goes_on_any_other(
    ocis2i: Program,
    source: Path,
    tmp_path: Path,
    of_builder: CompressionName,
    of_result: CompressionName,
) -> None:
    builder, output = tmp_path / "builder", tmp_path / "output"
    busybox_builder(builder, user="0", scripts={"assemble": REMOVING}, compression=of_builder)
    options = ("--compression", of_result)
    a_change(ocis2i, f"oci:{builder}:builder:latest", source, output, *options)
    validate_layout(output)
    assert layer_types(output) == [TAR_SUFFIX[of_builder]] * 2 + [TAR_SUFFIX[of_result]]
    assert "usr/libexec/s2i/.wh.usage" in top_layer_plain(output)
    skopeo_copy_if_there(output, tmp_path / "copy")


def top_layer_plain(layout: Path) -> set[str]:
    """Names in the last layer, also of one that this Python's tarfile cannot decompress."""
    layer = manifest_of(layout)["layers"][-1]
    data = blob(layout, layer["digest"]).read_bytes()
    if layer["mediaType"].endswith("+zstd"):
        data = zstandard.ZstdDecompressor().decompressobj().decompress(data)
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:*") as archive:
        return {member.name.rstrip("/") for member in archive}


def skopeo_copy_if_there(layout: Path, target: Path) -> None:
    if have("skopeo"):
        skopeo_copy(f"oci:{layout}:app", target)
        validate_layout(target)


def test_docker_builder_becomes_an_oci_image(ocis2i: Program, source: Path, tmp_path: Path) -> None:
    builder, output = tmp_path / "builder", tmp_path / "output"
    busybox_builder(builder, scripts={"assemble": REMOVING}, docker=True)
    options = ("--assemble-user", "0")
    a_change(ocis2i, f"oci:{builder}:builder:latest", source, output, *options)
    validate_layout(output)
    assert manifest_of(output)["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    digests = [layer["digest"] for layer in manifest_of(output)["layers"]]
    assert digests[:-1] == [layer["digest"] for layer in manifest_of(builder)["layers"]]
    assert_runs(ocis2i, "app:1")
    skopeo_copy_if_there(output, tmp_path / "copy")


def builder_layers() -> list[Layer]:
    scripts: dict[str, str | None] = {"assemble": REMOVING, "run": "#!/bin/sh\n", "usage": "#!\n"}
    return [busybox_layer(), scripts_layer(scripts)]


@better("cli.transports", "`docker-archive:`, `oci-archive:` and `oci:` too")
@pytest.mark.parametrize("style", ["classic", "flat", "oci"])
def test_docker_archive_serves_as_builder(
    ocis2i: Program, source: Path, tmp_path: Path, style: Literal["classic", "flat", "oci"]
) -> None:
    archive, output = tmp_path / "builder.tar", tmp_path / "output"
    layers = builder_layers()
    make_docker_archive(archive, ["builder:latest"], layers, busybox_config(), style=style)
    options = ("--assemble-user", "0")
    a_change(ocis2i, f"docker-archive:{archive}:builder:latest", source, output, *options)
    validate_layout(output)
    diff_ids = config_of(output)["rootfs"]["diff_ids"]
    assert diff_ids[:-1] == [str(Digest.of(layer.tar())) for layer in layers]
    assert_runs(ocis2i, "app:1")


@better("cli.transports", "`docker-archive:`, `oci-archive:` and `oci:` too")
@pytest.mark.parametrize("gzipped", [False, True])
def test_oci_archive_serves_as_builder(
    ocis2i: Program, source: Path, tmp_path: Path, gzipped: bool
) -> None:
    layout, archive, output = tmp_path / "builder", tmp_path / "builder.tar", tmp_path / "output"
    busybox_builder(layout, scripts={"assemble": REMOVING})
    make_archive(archive, layout, gzipped=gzipped)
    options = ("--assemble-user", "0")
    a_change(ocis2i, f"oci-archive:{archive}:builder:latest", source, output, *options)
    validate_layout(output)
    assert manifest_of(output)["layers"][:-1] == manifest_of(layout)["layers"]
    assert_runs(ocis2i, "app:1")


def test_directory_without_an_entry_keeps_the_mode_from_below(
    ocis2i: Program, source: Path, tmp_path: Path
) -> None:
    # `tmp/left-behind` comes without `tmp`, as layers of some builders have it.
    sparse = Layer().file("tmp/left-behind", "x").file("opt/app-root/src/seen", "x")
    builder = tmp_path / "builder"
    busybox_builder(builder, scripts={"assemble": REMOVING}, more_layers=[sparse])
    options = ("--assemble-user", "0")
    output = tmp_path / "output"
    a_change(ocis2i, f"oci:{builder}:builder:latest", source, output, *options)
    members = top_layer(output)
    assert members["tmp"].mode == 0o1777
    home = members["opt/app-root/src"]
    assert (home.mode, home.uid, home.gid) == (0o775, 1001, 0)
    done = ocis2i.ok("run", "app:1", "stat", "-c", "%a %u %g", "/tmp", "/opt/app-root/src")
    assert done.out == "1777 0 0\n775 1001 0\n"


def test_builder_without_an_entry_for_the_root_gets_an_ordinary_one(
    ocis2i: Program, source: Path, builder: str
) -> None:
    # No layer of the test builder has an entry `./`.
    ocis2i.ok("build", source, builder, "app:1")
    assert ocis2i.ok("run", "app:1", "stat", "-c", "%a %u %g", "/").out == "755 0 0\n"


def test_mode_of_the_root_comes_from_the_builder(
    ocis2i: Program, source: Path, tmp_path: Path
) -> None:
    root = tmp_path / "builder"
    busybox_builder(root, more_layers=[Layer().dir("./", mode=0o711, gid=1001)])
    output = tmp_path / "output"
    a_change(ocis2i, f"oci:{root}:builder:latest", source, output)
    assert "." not in top_layer(output)
    assert ocis2i.ok("run", "app:1", "stat", "-c", "%a %u %g", "/").out == "711 0 1001\n"


def test_changed_mode_of_the_root_is_in_the_layer(
    ocis2i: Program, source: Path, tmp_path: Path
) -> None:
    root, output = tmp_path / "builder", tmp_path / "output"
    busybox_builder(root, user="0", scripts={"assemble": "#!/bin/sh\nchmod 750 /\n"})
    a_change(ocis2i, f"oci:{root}:builder:latest", source, output)
    assert top_layer(output)["."].mode == 0o750
    assert ocis2i.ok("run", "app:1", "stat", "-c", "%a", "/").out == "750\n"


def test_nothing_changed_is_an_image_with_one_small_layer_more(
    ocis2i: Program, tmp_path: Path
) -> None:
    # What assemble finds in /tmp it may throw away; then nothing is left of the build.
    root, output, source = tmp_path / "builder", tmp_path / "output", tmp_path / "empty"
    source.mkdir()
    tidy = "#!/bin/sh\nrm -r /tmp/src /tmp/scripts\n"
    busybox_builder(root, user="0", scripts={"assemble": tidy})
    result = a_change(ocis2i, f"oci:{root}:builder:latest", source, output)
    validate_layout(output)
    assert result["changes"] == {"entries": 0, "bytes": 0}
    assert top_layer(output) == {}


def test_file_with_the_name_of_a_whiteout_fails_the_build(
    ocis2i: Program, source: Path, tmp_path: Path
) -> None:
    root = tmp_path / "builder"
    busybox_builder(root, user="0", scripts={"assemble": "#!/bin/sh\n: > /opt/.wh.evil\n"})
    done = ocis2i("build", source, f"oci:{root}:builder:latest", "evil:1")
    assert done.code != 0
    assert "`opt/.wh.evil` cannot be in a layer" in done.err
    assert "evil:1" not in (ocis2i.layout / "index.json").read_text()


def test_archives_as_output_hold_the_same_image(
    ocis2i: Program, source: Path, builder: str, tmp_path: Path
) -> None:
    oci, docker = tmp_path / "app.oci", tmp_path / "app.docker"
    outputs = ("-o", f"oci-archive:{oci}:app", "-o", f"docker-archive:{docker}:app:1")
    result = a_change(ocis2i, builder, source, tmp_path / "output", *outputs)
    assert len(result["outputs"]) == 3
    config = config_of(tmp_path / "output")
    with tarfile.open(oci) as archive:
        for member in filter(tarfile.TarInfo.isfile, archive):
            file = tmp_path / "unpacked" / member.name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes((archive.extractfile(member) or io.BytesIO()).read())
    validate_layout(tmp_path / "unpacked")
    assert manifest_of(tmp_path / "unpacked") == manifest_of(tmp_path / "output")
    with tarfile.open(docker) as archive:
        (entry,) = json.load(archive.extractfile("manifest.json") or io.BytesIO())
        assert entry["RepoTags"] == ["docker.io/library/app:1"]
        assert json.load(archive.extractfile(entry["Config"]) or io.BytesIO()) == config
    if have("skopeo"):
        for place in (f"oci-archive:{oci}", f"docker-archive:{docker}"):
            assert skopeo_config(place)["rootfs"] == config["rootfs"]


# --- a registry -------------------------------------------------------------------------------


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[RegistryUnderTest]:
    if registry_program() is None:
        pytest.skip("no registry program is installed")
    with docker_registry(tmp_path / "registry") as running:
        yield running


def blob_files(registry: RegistryUnderTest) -> dict[str, int]:
    """Every blob's content in the registry: the inode says whether it was written again."""
    files = registry.storage.glob("docker/registry/v2/blobs/*/*/*/data")
    return {file.parent.name: file.stat().st_ino for file in files}


@pytest.mark.registry
def test_second_push_sends_nothing(
    ocis2i: Program, source: Path, builder: str, registry: RegistryUnderTest
) -> None:
    command = ("build", source, builder, f"{registry.host}/team/app:1", "--timestamp", "0")
    first = ocis2i.ok(*command, "--push", "--loglevel", "1")
    before = blob_files(registry)
    again = ocis2i.ok(*command, "--push", "--loglevel", "1")
    assert again.out == first.out
    assert blob_files(registry) == before
    assert " done " in first.err
    assert " done " not in again.err


@better("image.push", "`--push`")
@pytest.mark.registry
@needs("skopeo")
def test_pushed_image_is_what_is_in_the_store(
    ocis2i: Program, source: Path, builder: str, registry: RegistryUnderTest, tmp_path: Path
) -> None:
    name = f"{registry.host}/team/app:1"
    done = ocis2i.ok("build", source, builder, name, "--push")
    digest = done.out.strip().rpartition("@")[2]
    assert done.out == f"{registry.host}/team/app@{digest}\n"
    skopeo_copy(f"docker://{name}", tmp_path / "copy", "--src-tls-verify=false")
    (entry,) = validate_layout(tmp_path / "copy")
    assert entry["digest"] == digest


@pytest.mark.registry
def test_base_layers_are_mounted_from_the_builders_repository(
    ocis2i: Program, source: Path, registry: RegistryUnderTest, tmp_path: Path
) -> None:
    busybox_builder(tmp_path / "builder")
    builder = f"{registry.host}/builders/busybox:1"
    if not have("skopeo"):
        pytest.skip("skopeo is not installed")
    place = f"oci:{tmp_path / 'builder'}:builder:latest"
    skopeo_copy(place, f"docker://{builder}", "--dest-tls-verify=false")
    ocis2i.ok("pull", builder)
    before = blob_files(registry)
    done = ocis2i.ok(
        *("build", source, builder, f"{registry.host}/team/app:1"),
        *("--push", "--loglevel", "1", "--pull-policy", "never"),
    )
    after = blob_files(registry)
    assert {digest: after[digest] for digest in before} == before
    assert done.err.count(" mounted ") == len(manifest_of(tmp_path / "builder")["layers"])
    # The new layer, its config and its manifest.
    assert len(after) == len(before) + 3
