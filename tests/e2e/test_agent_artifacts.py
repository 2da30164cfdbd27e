"""Artifacts, runtime images and injected files: what moves between trees, and what never stays."""

from __future__ import annotations

import io
import os
import posixpath
import socket
import stat
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from ocis2i.artifacts import extract
from ocis2i.errors import ImageError, Ocis2iError, PolicyError, UsageError
from ocis2i.injections import InjectedFile
from ocis2i.isolation.builtin import Builtin
from ocis2i.isolation.programs import OciProgram
from ocis2i.rootfs import Copied, Rootfs, Upload, prepare
from ocis2i.runner import BindMount, Runner, RunSpec, Stdio
from ocis2i.s2i import Identity
from ocis2i.store import LayerRecord
from tests.conftest import RUNC, needs
from tests.e2e.test_layer_property import CAPABILITY, SEARCH_PATH, Sandbox, sandbox, scan
from tests.fakes.images import APPLETS, BUSYBOX, MTIME, Layer

pytestmark = [pytest.mark.sandbox, needs("busybox")]
__all__ = ["sandbox"]  # the fixture, for pytest to find

EXECUTORS = [RUNC, "builtin"]
UID = 1001
SECRET = "hunter2-do-not-tell"


@dataclass
class Desk:
    """A session's directory and an image of busybox."""

    sandbox: Sandbox
    here: Path
    busybox: LayerRecord
    count: int = 0

    def record(self, layer: Layer) -> LayerRecord:
        """A layer, unpacked."""
        self.count += 1
        tree = self.here / f"layer-{self.count}"
        _, implied = self.sandbox.unpack(layer.tar(), tree)
        assert isinstance(implied, list)
        return LayerRecord(tree, tuple(implied), 0, 0, "")

    def rootfs(
        self, name: str, *layers: Layer, mounts: Sequence[BindMount] = (), empty: bool = False
    ) -> Rootfs:
        """A rootfs in a directory of the session, which nobody has made."""
        records = [] if empty else [self.busybox, *map(self.record, layers)]
        return prepare(
            self.sandbox.agent, self.session / name, records, mounts, session=self.session
        )

    @property
    def session(self) -> Path:
        """The directory that uploads are relative to; its builds are released with it."""
        return self.here / "build"

    def run(
        self,
        rootfs: Rootfs,
        script: str,
        mounts: Sequence[BindMount] = (),
        *,
        executor: str = "builtin",
        uid: int = UID,
    ) -> list[str]:
        """The lines that a script writes, which must succeed."""
        rootfs.mount()
        said: list[str] = []
        spec = RunSpec(
            ("/bin/sh", "-ec", script), ("PATH=/bin",), "/", Identity(uid, 0), tuple(mounts)
        )
        stdio = Stdio(lambda _, line: said.append(line))
        agent = self.sandbox.agent
        runner: Runner = (
            OciProgram("runc", agent, search_path=SEARCH_PATH, directory=Path())
            if executor == "runc"
            else Builtin(agent)
        )
        assert runner.run(rootfs, spec, stdio).exit_code == 0, said
        return said

    def layer(self, rootfs: Rootfs, unlisted: Sequence[str] = ()) -> Tar:
        """The layer of what changed."""
        with tempfile.TemporaryFile() as file:
            rootfs.write_changes(file.fileno(), clamp_mtime=None, unlisted=unlisted)
            rootfs.finish_changes()
            file.seek(0)
            return Tar(file.read())

    def mountpoints(self) -> list[str]:
        """What the agent has mounted below the session."""
        _, out, _ = self.sandbox.program("/bin/cat", "/proc/self/mountinfo")
        points = [line.split()[4] for line in out.decode().splitlines()]
        return [point for point in points if point.startswith(f"{self.session}/")]

    def facts(self, rootfs: Rootfs, path: str) -> tuple[str, int, int]:
        """Mode, uid and gid of a path in a mounted rootfs."""
        above, _, name = path.rpartition("/")
        found = self.sandbox.call(scan, f"{rootfs.path}/{above}")[name.encode()]
        return found[0], found[1], found[2]


@dataclass
class Tar:
    """A layer's tar and, by name, what is in it."""

    data: bytes

    @property
    def members(self) -> dict[str, tarfile.TarInfo]:
        """All entries by their names."""
        with tarfile.open(fileobj=io.BytesIO(self.data)) as archive:
            return {one.name: one for one in archive.getmembers()}

    @property
    def names(self) -> list[str]:
        """The names, in order."""
        return list(self.members)


@pytest.fixture(scope="module")
def busybox(sandbox: Sandbox) -> Iterator[LayerRecord]:
    """The image, unpacked once."""
    layer = Layer().dir("./").dir("bin").dir("etc").dir("opt").dir("tmp", mode=0o1777)
    layer.file("bin/busybox", BUSYBOX.read_bytes(), mode=0o755)
    for applet in APPLETS:
        layer.symlink(f"bin/{applet}", "busybox")
    with sandbox.directory() as here:
        _, implied = sandbox.unpack(layer.tar(), here / "busybox")
        assert isinstance(implied, list)
        yield LayerRecord(here / "busybox", tuple(implied), 0, 0, "")


@pytest.fixture
def desk(sandbox: Sandbox, busybox: LayerRecord) -> Iterator[Desk]:
    """A session with nothing in it."""
    with sandbox.directory() as here:
        (here / "build").mkdir()
        yield Desk(sandbox, here, busybox)


@contextmanager
def tar_file(data: bytes) -> Iterator[int]:
    """A file like the one that keeps the output of save-artifacts."""
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        file.seek(0)
        yield file.fileno()


# --- extract ----------------------------------------------------------------------------------


def test_artifacts_become_the_assemble_user_s(desk: Desk) -> None:
    layer = Layer().dir("pkg", mode=0o555).file("pkg/f", "cached", mode=0o400, uid=99, gid=99)
    layer.hardlink("pkg/g", "pkg/f").symlink("l", "/etc/passwd").device("null")
    more = Layer().file("second", "x")
    into = desk.session / "upload/artifacts"
    into.parent.mkdir()
    with tar_file(layer.tar() + more.tar()) as fd:
        done = extract(desk.sandbox.agent, fd, into, size_limit=1 << 20)
    assert (done.entries, done.size_bytes, done.skipped, done.trailing_bytes) == (6, 7, 1, 0)
    rootfs = desk.rootfs("x")
    rootfs.place([Upload("upload/artifacts", "/tmp/artifacts", UID, 0)])
    said = desk.run(
        rootfs,
        "cd /tmp/artifacts; cat pkg/f; echo; stat -c '%a %u:%g %h' pkg pkg/f; readlink l;"
        "chmod 755 pkg; mv pkg/* l second /tmp; rmdir pkg; ls",
    )
    assert said == ["cached", "555 1001:0 2", "400 1001:0 2", "/etc/passwd"]
    assert "tmp/f" in desk.layer(rootfs).names


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"Saving artifacts\n", ImageError),
        (Layer().symlink("d", "/").file("d/x").tar(), ImageError),
        (Layer().file("big", bytes(2000)).tar(), PolicyError),
        (Layer().dir("d", mode=0).dir("d/e", mode=0).file("/x").tar(), ImageError),
    ],
)
def test_failed_artifacts_leave_nothing(desk: Desk, data: bytes, error: type[Ocis2iError]) -> None:
    with tar_file(data) as fd, pytest.raises(error):
        extract(desk.sandbox.agent, fd, desk.session / "artifacts", size_limit=1000)
    assert list(desk.session.iterdir()) == []


def test_artifacts_can_come_through_a_pipe(desk: Desk) -> None:
    read_end, write_end = os.pipe()
    os.write(write_end, Layer().file("f", "x").tar())
    os.close(write_end)
    done = extract(desk.sandbox.agent, read_end, desk.session / "a", size_limit=1000)
    os.close(read_end)
    assert done.entries == 1


# --- transfer ---------------------------------------------------------------------------------


def app() -> Layer:
    """What assemble left in the builder."""
    layer = Layer().dir("opt/app", mode=0o700, uid=7).dir("opt/app/bin", mode=0o2770)
    layer.file("opt/app/bin/run", "program", mode=0o700, uid=7, xattrs={"user.x": "1"})
    layer.file("opt/app/group", "g", mode=0o610).file("opt/app/other", "o", mode=0o601)
    layer.file("opt/app/data", "d" * 5000, mode=0o4600).hardlink("opt/app/bin/data", "opt/app/data")
    layer.symlink("opt/app/absolute", "/etc/passwd").symlink("opt/app/up", "../../../..")
    layer.symlink("opt/link", "/opt/app").symlink("opt/loop", "loop")
    return layer.device("opt/app/pipe", kind="fifo").dir("opt/app/empty")


def test_a_directory_is_copied_with_the_modes_of_uploads(desk: Desk) -> None:
    builder, runtime = desk.rootfs("x", app()), desk.rootfs("runtime")
    done = runtime.copy_from(builder, "/opt/app", "/srv/new/place", UID, 5)
    size = len("program") + 1 + 1 + 5000
    assert done == Copied(10, size, 1, ("/srv", "/srv/new", "/srv/new/place"))
    layer = desk.layer(runtime).members
    found = {
        name.removeprefix("srv/new/place/app/"): (oct(one.mode), one.uid, one.gid, one.mtime)
        for name, one in layer.items()
        if name.startswith("srv/new/place/app/")
    }
    modes = {"bin": "0o755", "bin/run": "0o755", "group": "0o755", "other": "0o755"}
    modes |= {"bin/data": "0o644", "data": "0o644", "empty": "0o755"}
    modes |= {"absolute": "0o777", "up": "0o777"}
    assert found == {name: (mode, UID, 5, MTIME) for name, mode in modes.items()}
    for name in ("srv", "srv/new", "srv/new/place", "srv/new/place/app"):
        assert (layer[name].mode, layer[name].uid, layer[name].gid) == (0o755, UID, 5)
    assert layer["srv/new/place/app/absolute"].linkname == "/etc/passwd"
    assert layer["srv/new/place/app/up"].linkname == "../../../.."
    assert layer["srv/new/place/app/data"].islnk()
    assert layer["srv/new/place/app/data"].linkname == "srv/new/place/app/bin/data"
    assert not any(one.pax_headers for one in layer.values())


def test_file_capabilities_stay_behind(desk: Desk) -> None:
    layer = Layer().file("opt/p", "x", mode=0o755)
    layer.members[-1][0].pax_headers = {"SCHILY.xattr.security.capability": os.fsdecode(CAPABILITY)}
    builder, runtime = desk.rootfs("x", layer), desk.rootfs("runtime")
    runtime.copy_from(builder, "/opt/p", "/opt", 0, 0)
    assert desk.layer(runtime).members["opt/p"].pax_headers == {}


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("/opt/app/bin/run", "run"),
        ("/opt/link/bin/run", "run"),
        ("/opt/link/./bin/../bin/run", "run"),
    ],
)
def test_a_file_keeps_its_name(desk: Desk, source: str, name: str) -> None:
    builder, runtime = desk.rootfs("x", app()), desk.rootfs("runtime")
    done = runtime.copy_from(builder, source, "/", 0, 0)
    assert done == Copied(1, len("program"), 0, ())
    assert runtime.read_text(f"/{name}") == "program"
    assert desk.facts(runtime, name) == ("0o100755", 0, 0)


def test_a_link_is_followed_and_gives_the_name(desk: Desk) -> None:
    builder, runtime = desk.rootfs("x", app()), desk.rootfs("runtime")
    runtime.copy_from(builder, "/opt/link", "/opt", 0, 0)
    assert runtime.read_text("/opt/link/bin/run") == "program"
    assert stat.S_ISDIR(os.stat(builder.build).st_mode)
    assert desk.run(runtime, "test -d /opt/link; test ! -L /opt/link; echo yes") == ["yes"]


def test_what_assemble_changed_is_what_is_copied(desk: Desk) -> None:
    builder, runtime = desk.rootfs("x", app()), desk.rootfs("runtime")
    desk.run(builder, "cd /opt/app; rm data bin/data; echo new >other; ln other again", uid=0)
    runtime.copy_from(builder, "/opt/app", "/opt", UID, 0)
    said = desk.run(
        runtime, "cd /opt/app; cat other; stat -c %h other again; ls data 2>&1 || true", uid=0
    )
    assert said == ["new", "2", "2", "ls: data: No such file or directory"]


def test_directories_merge_and_files_are_replaced(desk: Desk) -> None:
    there = Layer().dir("opt/app", mode=0o711, uid=3).file("opt/app/kept", "k")
    there.file("opt/app/other", "old").symlink("opt/app/data", "/etc/target")
    there.dir("opt/real").symlink("opt/app/bin", "/opt/real").symlink("opt/app/empty", "nowhere")
    there.file("etc/target", "untouched")
    builder, runtime = desk.rootfs("x", app()), desk.rootfs("runtime", there)
    runtime.copy_from(builder, "/opt/app", "/opt", UID, 0)
    assert runtime.read_text("/opt/app/kept") == "k"
    assert runtime.read_text("/opt/app/other") == "o"
    assert runtime.read_text("/etc/target") == "untouched"
    assert desk.facts(runtime, "opt/app") == ("0o40711", 3, 0)  # it was there: it stays
    assert runtime.read_text("/opt/real/run") == "program"  # by the image's own link
    names = desk.layer(runtime).names
    assert "opt/real/run" in names
    assert not {"opt/app/bin", "opt/app/kept", "etc/target"} & set(names)


CONFLICTS: dict[str, tuple[Layer, str, str, str]] = {
    "file over directory": (
        Layer().dir("opt/run"),
        "/opt/app/bin/run",
        "/opt",
        "`/opt/run` is a file to be copied, and a directory in the runtime image",
    ),
    "directory over file": (
        Layer().file("opt/app", "x"),
        "/opt/app",
        "/opt",
        "`/opt/app` is a directory to be copied, and a file in the runtime image",
    ),
    "link over directory": (
        Layer().dir("srv/app").dir("srv/app/up"),
        "/opt/app",
        "/srv",
        "`/srv/app/up` is a file to be copied, and a directory",
    ),
    "destination is a file": (
        Layer().file("srv", "x"),
        "/opt/app",
        "/srv",
        "the destination `/srv` is no directory",
    ),
    "destination below a file": (
        Layer().file("srv", "x"),
        "/opt/app",
        "/srv/x/y",
        "the destination `/srv/x/y` is no directory",
    ),
    "the whole image": (Layer(), "/", "/srv", "`/` is the whole image"),
    "the whole image by another name": (Layer(), "/opt/..", "/srv", "is the whole image"),
}


@pytest.mark.parametrize("case", CONFLICTS)
def test_what_cannot_be_copied_is_explained(desk: Desk, case: str) -> None:
    there, source, directory, message = CONFLICTS[case]
    builder, runtime = desk.rootfs("x", app()), desk.rootfs("runtime", there)
    with pytest.raises(UsageError, match=message):
        runtime.copy_from(builder, source, directory, 0, 0)


@pytest.mark.parametrize(
    "source", ["/opt/none", "/none/x", "/opt/app/data/x", "/opt/app/up/etc/no"]
)
def test_a_missing_artifact_is_named(desk: Desk, source: str) -> None:
    builder, runtime = desk.rootfs("x", app()), desk.rootfs("runtime")
    with pytest.raises(ImageError, match=f"there is no `{source}` in the builder"):
        runtime.copy_from(builder, source, "/opt", 0, 0)


@pytest.mark.parametrize("source", ["/opt/app/pipe", "/opt/loop"])
def test_an_artifact_that_is_no_file_is_an_error(desk: Desk, source: str) -> None:
    builder, runtime = desk.rootfs("x", app()), desk.rootfs("runtime")
    with pytest.raises(Ocis2iError, match=source):
        runtime.copy_from(builder, source, "/opt", 0, 0)


def test_no_link_of_either_image_leads_to_the_host(desk: Desk) -> None:
    outside = desk.here / "outside"
    outside.mkdir()
    (outside / "secret").write_text(SECRET)
    up = "../" * 30 + str(outside).lstrip("/")
    builder = desk.rootfs("x", Layer().symlink("opt/a", str(outside)).symlink("opt/u", up), app())
    runtime = desk.rootfs(
        "runtime", Layer().symlink("opt/app", str(outside)).symlink("srv", up).dir("opt/sub")
    )
    for source in ("/opt/a/secret", "/opt/u/secret"):
        with pytest.raises(ImageError, match="there is no"):
            runtime.copy_from(builder, source, "/opt/sub", 0, 0)
    runtime.copy_from(builder, "/opt/app", "/opt", 0, 0)  # a link to nothing, inside
    runtime.copy_from(builder, "/opt/app", "/srv", 0, 0)
    runtime.copy_from(builder, "/opt/app/other", "/../../srv/../srv", 0, 0)
    assert [path.name for path in outside.iterdir()] == ["secret"]
    assert runtime.read_text(f"{outside}/app/other") == "o"
    assert SECRET.encode() not in desk.layer(runtime).data


def test_a_deep_tree_is_copied(desk: Desk) -> None:
    deep = "/".join(["d"] * 400)
    builder, runtime = desk.rootfs("x", Layer().file(f"opt/{deep}/f", "x")), desk.rootfs("runtime")
    assert runtime.copy_from(builder, "/opt/d", "/opt", 0, 0).entries == 401
    assert runtime.read_text(f"/opt/{deep}/f") == "x"


def test_a_runtime_image_that_nobody_has_seen_gets_only_what_was_put(desk: Desk) -> None:
    builder = desk.rootfs("x", app())
    runtime = desk.rootfs("runtime", empty=True)
    script = desk.session / "run"
    script.write_text("#!/bin/sh\n")
    runtime.put_file(script, "/opt/app-root/scripts/run", UID, 0, 0o755)
    runtime.mount()
    done = runtime.copy_from(builder, "/opt/app/bin", "/opt/app-root/src/lib", UID, 0)
    assert done.parents == ("/opt/app-root/src", "/opt/app-root/src/lib")
    assert runtime.made == (
        "/opt",
        "/opt/app-root",
        "/opt/app-root/scripts",
        "/opt/app-root/src",
        "/opt/app-root/src/lib",
    )
    assert desk.layer(runtime, unlisted=["/", *runtime.made]).names == [
        "opt/app-root/scripts/run",
        "opt/app-root/src/lib/bin",
        "opt/app-root/src/lib/bin/data",
        "opt/app-root/src/lib/bin/run",
    ]


def test_an_unlisted_directory_hides_no_change_in_it(desk: Desk) -> None:
    rootfs = desk.rootfs("x", Layer().dir("a").file("a/gone", "x").dir("a/b").dir("c"))
    desk.run(rootfs, "rm /a/gone; chmod 700 /a /a/b /c; chmod 711 /; echo x >/a/b/f", uid=0)
    names = desk.layer(rootfs, unlisted=["/", "/a", "c/"]).names
    assert names == ["a/b", "a/b/f", "a/.wh.gone"]


# --- single files, directories, several rootfs ------------------------------------------------


def test_a_file_is_put_beside_what_is_there(desk: Desk) -> None:
    there = Layer().dir("tmp/scripts", mode=0o750, uid=7).file("tmp/scripts/run", "old run")
    there.file("tmp/scripts/save-artifacts", "old", mode=0o755)
    rootfs = desk.rootfs("previous", there)
    script = desk.session / "save-artifacts"
    script.write_text("new")
    os.utime(script, (MTIME, MTIME))
    rootfs.put_file(script, "/tmp/scripts/save-artifacts", UID, 0, 0o755)
    rootfs.mount()
    assert rootfs.read_text("/tmp/scripts/save-artifacts") == "new"
    assert rootfs.read_text("/tmp/scripts/run") == "old run"
    assert desk.facts(rootfs, "tmp/scripts") == ("0o40750", 7, 0)
    assert script.read_text() == "new"
    assert rootfs.made == ()
    layer = desk.layer(rootfs)
    assert layer.names == ["tmp", "tmp/scripts", "tmp/scripts/save-artifacts"]
    member = layer.members["tmp/scripts/save-artifacts"]
    assert (member.mode, member.uid, member.gid, member.mtime) == (0o755, UID, 0, MTIME)


@pytest.mark.parametrize("mounted", [False, True])
def test_directories_above_a_file_are_made(desk: Desk, mounted: bool) -> None:
    rootfs = desk.rootfs("x")
    script = desk.session / "s"
    script.write_text("new")
    if mounted:
        rootfs.mount()
    for name in ("one", "two"):
        rootfs.put_file(script, f"/srv/app/scripts/{name}", UID, 5, 0o700)
    rootfs.make_directory("/srv/work/dir")
    rootfs.mount()
    assert desk.facts(rootfs, "srv/app/scripts/two") == ("0o100700", UID, 5)
    assert desk.facts(rootfs, "srv/app/scripts") == ("0o40755", UID, 5)
    assert desk.facts(rootfs, "srv/app") == ("0o40755", 0, 0)
    assert desk.facts(rootfs, "srv/work/dir") == ("0o40755", 0, 0)
    assert rootfs.made == (
        "/srv", "/srv/app", "/srv/app/scripts", "/srv/work", "/srv/work/dir",
    )  # fmt: skip


@pytest.mark.parametrize("mounted", [False, True])
def test_a_link_of_the_name_is_replaced_and_links_above_stay_inside(
    desk: Desk, mounted: bool
) -> None:
    there = Layer().symlink("tmp/f", "/etc/target").file("etc/target", "kept")
    there.symlink("opt/out", str(desk.here)).symlink("opt/in", "/srv").dir("srv")
    rootfs = desk.rootfs("x", there)
    script = desk.session / "s"
    script.write_text("new")
    if mounted:
        rootfs.mount()
    for path in ("/tmp/f", "/opt/out/f", "/opt/in/f", "/no/../../../up/f"):
        rootfs.put_file(script, path, 0, 0, 0o644)
    rootfs.mount()
    texts = [rootfs.read_text(p) for p in ("/tmp/f", "/etc/target", "/srv/f", f"{desk.here}/f")]
    assert texts == ["new", "kept", "new", "new"]
    assert rootfs.read_text("/up/f") == "new"
    assert {path.name for path in desk.here.iterdir()} == {"build", "layer-1"}


def test_a_directory_is_never_made_outside_of_the_tree(desk: Desk) -> None:
    # What does not exist has no `..` that could be looked up: it must not be taken literally.
    rootfs = desk.rootfs("x")
    rootfs.make_directory("/no/../../../../../escaped/no/..")
    rootfs.mount()
    assert rootfs.modes(["/escaped", "/no"])[0] is not None
    assert {path.name for path in desk.here.iterdir()} == {"build"}
    assert not (desk.session / "escaped").exists()
    assert not (desk.here.parent / "escaped").exists()


def test_what_is_removed_is_not_in_the_layer(desk: Desk) -> None:
    source = desk.session / "upload/src"
    source.mkdir(parents=True)
    (source / "app").touch()
    there = Layer().file("tmp/src/old/deep/er/f").dir("tmp/new")
    rootfs = desk.rootfs("x", there)
    rootfs.place([Upload("upload/src", "/tmp/src", UID, 0), Upload("upload", "/tmp/up", UID, 0)])
    desk.run(rootfs, "mkdir -p /tmp/src/a/b; chmod 0 /tmp/src/a", uid=0)
    rootfs.mount()
    for path in ("/tmp/src", "/tmp/up/", "/tmp/none", "/none/x", "/bin/busybox/x"):
        rootfs.remove(path)
    assert desk.layer(rootfs).names == ["tmp", "tmp/.wh.src"]


def test_removing_follows_no_link_to_the_host(desk: Desk) -> None:
    kept = desk.here / "kept"
    (kept / "src").mkdir(parents=True)
    (kept / "src/f").write_text("x")
    rootfs = desk.rootfs("x", Layer().dir("work").dir("work/src").file("work/src/f"))
    desk.run(rootfs, f"ln -s {kept} /l; ln -s ../../../..{kept}/src /work/link", uid=0)
    rootfs.remove("/l/src")
    rootfs.remove("/work/link")
    rootfs.remove("/work/../work/src")
    assert (kept / "src/f").read_text() == "x"
    assert desk.layer(rootfs).names == ["l", "work", "work/.wh.src"]
    for path in ("/", "/work/..", "."):
        with pytest.raises(UsageError, match="cannot be removed"):
            rootfs.remove(path)


def test_a_tree_too_deep_to_be_removed_is_told_of(desk: Desk) -> None:
    rootfs = desk.rootfs("x")
    loop = "cd /opt; i=0; while [ $i -lt 1100 ]; do mkdir d; cd d; i=$((i+1)); done"
    desk.run(rootfs, loop, uid=0)
    with pytest.raises(Ocis2iError, match="deeper than 1000 levels"):
        rootfs.remove("/opt/d")


def test_what_cannot_be_put_is_explained(desk: Desk) -> None:
    rootfs = desk.rootfs("x", Layer().dir("srv/d").file("srv/f"))
    script = desk.session / "s"
    script.write_text("new")
    (desk.session / "link").symlink_to("s")
    with pytest.raises(ImageError, match="`/srv/d` is a directory in the image"):
        rootfs.put_file(script, "/srv/d", 0, 0, 0o644)
    for source, path in (("s", "/srv/f/x"), ("link", "/x"), ("none", "/x"), ("s", "/")):
        with pytest.raises(Ocis2iError, match=path):
            rootfs.put_file(desk.session / source, path, 0, 0, 0o644)


@pytest.mark.parametrize("name", ["../layer-1", "/etc", "a/../../x"])
def test_uploads_come_from_the_session_alone(desk: Desk, name: str) -> None:
    with pytest.raises(UsageError, match="not in the session's directory"):
        desk.rootfs("x", Layer()).place([Upload(name, "/tmp/x", 0, 0)])


def test_a_session_with_several_trees_leaves_nothing_mounted(desk: Desk) -> None:
    trees = [desk.rootfs(name, app()) for name in ("build-1", "previous", "runtime")]
    for tree in trees:
        tree.mount()
    (desk.session / "f").write_text("x")
    trees[0].inject([InjectedFile(str(desk.session / "f"), "/f", "/f", directory=False)],
                    uid=0, gid=0, keep_names=False)  # fmt: skip
    assert len(desk.mountpoints()) == 7
    desk.sandbox.agent.request("release", build=str(desk.session))
    assert desk.mountpoints() == []


def test_removing_takes_nothing_of_what_is_mounted(desk: Desk) -> None:
    kept = desk.here / "kept"
    (kept / "inside").mkdir(parents=True)
    (kept / "inside/f").write_text("x")
    place = desk.session / "d/with space\\and more"
    place.mkdir(parents=True)
    for _ in range(2):
        code, _, said = desk.sandbox.program("/bin/mount", "--bind", str(kept), str(place))
        assert code == 0, said
    code, _, said = desk.sandbox.program("/bin/mount", "--bind", str(kept), f"{place}/inside")
    assert code == 0, said
    assert len(desk.mountpoints()) == 3
    desk.sandbox.agent.request("remove", parent=str(desk.here), name="build")
    assert not desk.session.exists()
    assert (kept / "inside/f").read_text() == "x"


# --- injections -------------------------------------------------------------------------------


def secret(desk: Desk, name: str, text: str = SECRET) -> str:
    """A file of the host."""
    path = desk.here / "host" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o600)
    return str(path)


def file(desk: Desk, target: str, text: str = SECRET, *, keep: bool = False) -> InjectedFile:
    """An injection of one file."""
    source = secret(desk, target.replace("/", "_"), text)
    return InjectedFile(source, target, target, directory=False, keep=keep)


def directory(desk: Desk, top: str, *names: str, keep: bool = False) -> list[InjectedFile]:
    """An injection of a directory with files."""
    return [
        InjectedFile(
            secret(desk, f"dir/{name}"), posixpath.join(top, name), top, directory=True, keep=keep
        )
        for name in names
    ]


def injected(
    rootfs: Rootfs, items: Sequence[InjectedFile], *, keep_names: bool = False
) -> tuple[BindMount, ...]:
    """The mounts for user 1001."""
    return rootfs.inject(items, uid=UID, gid=0, keep_names=keep_names)


SCRIPTS: dict[str, str] = {
    "only reads": "cat /etc/token /opt/conf/a /opt/conf/sub/b /srv/x >/dev/null",
    "writes": "for f in /etc/token /opt/conf/a /opt/conf/sub/b /srv/x; do"
    " echo more >>$f; echo again >$f; done; echo new >/opt/conf/new",
    "removes": "rm /opt/conf/a; rm -r /opt/conf/sub; rm -f /etc/token /srv/x || true;"
    " rm -rf /opt/conf /srv 2>/dev/null || true",
    "moves": "mv /opt/conf/a /opt/conf/z; mv /opt/conf/sub /opt/conf/other;"
    " mv -f /etc/token /etc/t2 2>/dev/null && exit 1;"
    " mv /opt/conf /opt/conf2 2>/dev/null && exit 1; true",
    "replaces": "mv /opt/conf/a /opt/conf/sub/b; ln -s a /opt/conf/l; chmod 600 /opt/conf/sub/b",
    "truncates": "truncate -s 0 /etc/token /opt/conf/a /opt/conf/sub/b /srv/x",
}


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("keep_names", [False, True])
@pytest.mark.parametrize("does", SCRIPTS)
def test_injected_content_is_in_no_layer(
    desk: Desk, executor: str, does: str, keep_names: bool
) -> None:
    there = Layer().file("etc/token", "of the image").dir("srv", uid=UID).file("srv/kept", "k")
    rootfs = desk.rootfs("x", there.dir("opt", uid=UID))
    items = [file(desk, "/etc/token"), *directory(desk, "/opt/conf", "a", "sub/b")]
    items += directory(desk, "/srv", "x")
    mounts = injected(rootfs, items, keep_names=keep_names)
    said = desk.run(
        rootfs, "cat /etc/token /opt/conf/a /opt/conf/sub/b /srv/x", mounts, executor=executor
    )
    assert said == [SECRET * 4]
    desk.run(rootfs, SCRIPTS[does] + "; echo done >/tmp/proof", mounts, executor=executor)
    layer = desk.layer(rootfs)
    assert SECRET.encode() not in layer.data
    gone = ["srv/.wh.kept"] if does == "removes" else []
    names = {"tmp", "tmp/proof"}
    if keep_names:
        names |= {"opt", "opt/conf", "opt/conf/a", "opt/conf/sub", "opt/conf/sub/b", "srv", "srv/x"}
    assert set(layer.names) == names | ({"srv", *gone} if gone else set())
    if keep_names:
        facts = {n: layer.members[n] for n in names if not n.startswith("tmp")}
        assert all(one.size == 0 for one in facts.values())
        assert oct(facts["opt/conf/a"].mode) == "0o644"
        assert oct(facts["opt/conf/sub"].mode) == "0o755"
        assert (facts["opt/conf"].uid, facts["srv/x"].uid) == (UID, UID)


def test_the_host_s_files_are_never_touched(desk: Desk) -> None:
    rootfs = desk.rootfs("x")
    items = [file(desk, "/tmp/f"), *directory(desk, "/opt/conf", "a")]
    before = [os.stat(item.source) for item in items]
    mounts = injected(rootfs, items)
    desk.run(rootfs, "echo x >/tmp/f; rm /opt/conf/a", mounts)
    after = [os.stat(item.source) for item in items]
    for one, other in zip(before, after, strict=True):
        assert (one.st_size, one.st_mtime_ns, one.st_mode) == (
            other.st_size, other.st_mtime_ns, other.st_mode,
        )  # fmt: skip
    assert Path(items[0].source).read_text() == SECRET


def test_content_is_in_memory_and_for_us_alone(desk: Desk) -> None:
    rootfs = desk.rootfs("x")
    injected(rootfs, [file(desk, "/tmp/f")])
    secrets = Path(rootfs.build, "secrets")
    assert list(secrets.iterdir()) == []  # from outside of the agent
    _, out, _ = desk.sandbox.program("/bin/cat", "/proc/self/mountinfo")
    [line] = [text for text in out.decode().splitlines() if f" {secrets} " in text]
    options = line.split(" - ")[0].split()[5].split(",")
    assert {"nosuid", "nodev"} <= set(options)
    assert " - tmpfs " in line
    assert "mode=700" in line
    assert "size=" in line
    assert desk.layer(rootfs).names == []
    assert str(secrets) not in desk.mountpoints()  # gone with the run


def test_a_new_directory_is_one_mount_and_an_old_one_has_one_for_each_file(desk: Desk) -> None:
    there = Layer().dir("old").file("old/kept", "k").dir("old/deep").file("old/deep/kept", "k")
    rootfs = desk.rootfs("x", there)
    items = [*directory(desk, "/new", "a", "b/c"), *directory(desk, "/old", "a", "b/c", "deep/d")]
    mounts = injected(rootfs, items)
    targets = sorted((mount.target, mount.directory, mount.read_only) for mount in mounts)
    assert targets == [
        ("/new", True, False),
        ("/old/a", False, False),
        ("/old/b", True, False),
        ("/old/deep/d", False, False),
    ]
    said = desk.run(
        rootfs, "cd /old; find . -type f | sort; stat -c '%a %u:%g' /new /new/a", mounts
    )
    assert said == [
        *("./a", "./b/c", "./deep/d", "./deep/kept", "./kept"),
        *("777 1001:0", "666 1001:0"),
    ]
    assert desk.layer(rootfs).names == []


@pytest.mark.parametrize("executor", EXECUTORS)
def test_one_injection_can_go_into_another(desk: Desk, executor: str) -> None:
    rootfs = desk.rootfs("x")
    items = [*directory(desk, "/opt/conf", "a", "sub/b"), file(desk, "/opt/conf/sub/c", "third")]
    mounts = injected(rootfs, items)
    assert desk.run(rootfs, "cat /opt/conf/sub/c", mounts, executor=executor) == ["third"]
    assert desk.layer(rootfs).names == []


def test_a_target_may_be_in_what_was_uploaded(desk: Desk) -> None:
    source = desk.session / "upload/src"
    source.mkdir(parents=True)
    (source / "app").touch()
    (source / "link").symlink_to("/etc")
    rootfs = desk.rootfs("x")
    rootfs.place([Upload("upload/src", "/tmp/src", UID, 0)])
    mounts = injected(rootfs, [file(desk, "/tmp/src/settings"), file(desk, "/tmp/src/link/f")])
    assert [mount.target for mount in mounts] == ["/tmp/src/settings", "/etc/f"]
    assert desk.run(rootfs, "cat /tmp/src/settings /etc/f", mounts) == [SECRET * 2]
    layer = desk.layer(rootfs)
    assert SECRET.encode() not in layer.data
    assert layer.names == ["tmp", "tmp/src", "tmp/src/app", "tmp/src/link"]


def test_links_of_the_image_are_followed_inside_it(desk: Desk) -> None:
    there = Layer().dir("real").symlink("etc/l", "/real/new").symlink("opt/d", "../../../../real")
    there.symlink("opt/out", str(desk.here))
    rootfs = desk.rootfs("x", there)
    mounts = injected(rootfs, [file(desk, "/etc/l"), file(desk, "/opt/d/f")])
    assert [mount.target for mount in mounts] == ["/real/new", "/real/f"]
    with pytest.raises(UsageError, match="must exist in container"):
        injected(desk.rootfs("y", there), [file(desk, "/opt/out/f")])
    assert not (desk.here / "f").exists()


def test_kept_files_are_files_of_the_layer(desk: Desk) -> None:
    rootfs = desk.rootfs("x", Layer().file("etc/f", "old").symlink("etc/g", "f"))
    items = [file(desk, "/etc/f", "new", keep=True), file(desk, "/tmp/secret")]
    items += directory(desk, "/opt/conf", "sub/a", keep=True)
    mounts = injected(rootfs, items)
    assert [mount.target for mount in mounts] == ["/tmp/secret"]
    members = desk.layer(rootfs).members
    assert list(members) == ["etc", "etc/f", "opt", "opt/conf", "opt/conf/sub", "opt/conf/sub/a"]
    for name, mode in (("etc/f", 0o644), ("opt/conf/sub", 0o755), ("opt/conf/sub/a", 0o644)):
        assert (members[name].mode, members[name].uid, members[name].gid) == (mode, UID, 0)
    assert members["etc/f"].size == 3


WRONG: dict[str, tuple[Callable[[Desk], list[InjectedFile]], str]] = {
    "no directory": (
        lambda desk: [file(desk, "/none/f")],
        r'destination directory for ".*_none_f" injection must exist in container \("/none/f"\)',
    ),
    "no directory for a directory": (
        lambda desk: directory(desk, "/no/such", "a"),
        r'directory for ".*/dir" injection must exist in container \("/no/such"\)',
    ),
    "below a file": (lambda desk: [file(desk, "/bin/busybox/f")], "must exist in container"),
    "file over a directory": (lambda desk: [file(desk, "/opt")], "`/opt` is a directory"),
    "directory over a file": (
        lambda desk: directory(desk, "/bin/busybox", "a"),
        "`/bin/busybox` is a file",
    ),
    "file over a directory inside": (
        lambda desk: directory(desk, "/", "opt"),
        "`/opt` is a directory",
    ),
    "in a volume": (lambda desk: [file(desk, "/volume/f")], "mounted on `/volume`"),
    "in the devices": (lambda desk: [file(desk, "/dev/f")], "mounted on `/dev`"),
    "kept in a volume": (lambda desk: [file(desk, "/volume/f", keep=True)], "mounted on"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_injected_is_explained(desk: Desk, case: str) -> None:
    make, message = WRONG[case]
    volume = BindMount(str(desk.here), "/volume", directory=True)
    rootfs = desk.rootfs("x", mounts=[volume])
    with pytest.raises(UsageError, match=message):
        injected(rootfs, make(desk))
    assert not (desk.here / "f").exists()


def test_only_files_are_injected(desk: Desk) -> None:
    place = desk.here / "host"
    place.mkdir()
    os.mkfifo(place / "pipe")
    (place / "link").symlink_to("pipe")
    (place / "d").mkdir()
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(place / "socket"))
        for name in ("pipe", "link", "d", "socket", "none"):
            item = InjectedFile(str(place / name), "/tmp/f", "/tmp/f", directory=False)
            with pytest.raises(UsageError, match=f"`{place}/{name}` cannot be injected"):
                injected(desk.rootfs(f"x-{name}"), [item])


def test_too_much_is_refused_before_anything_is_copied(desk: Desk) -> None:
    items = []
    for number in range(3):
        items.append(file(desk, f"/tmp/{number}", "x"))
        os.truncate(items[-1].source, 30 << 20)
    with pytest.raises(PolicyError, match="larger than 64 MiB"):
        injected(desk.rootfs("x"), items)
    assert len(injected(desk.rootfs("y"), items[:2])) == 2
    with pytest.raises(PolicyError, match="10001 files"):
        injected(desk.rootfs("z"), items[:1] * 10_001)


def test_a_script_has_room_to_edit_and_not_for_more(desk: Desk) -> None:
    rootfs = desk.rootfs("x")
    mounts = injected(rootfs, directory(desk, "/opt/conf", "a"))
    said = desk.run(
        rootfs,
        "sed -i s/hunter2/other/ /opt/conf/a; cat /opt/conf/a; echo;"
        "dd if=/dev/zero of=/opt/conf/big bs=1M count=9 2>/dev/null || echo full",
        mounts,
    )
    assert said == [SECRET.replace("hunter2", "other"), "full"]


def test_nothing_to_inject_mounts_nothing(desk: Desk) -> None:
    rootfs = desk.rootfs("x")
    assert injected(rootfs, []) == ()
    assert f"{rootfs.build}/rootfs" not in desk.mountpoints()
