"""The same build on hosts that allow less: the same layer, or the documented sentence."""

from __future__ import annotations

import json
import os
import pwd
import re
import shutil
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from ocis2i import syscalls
from tests.conftest import needs
from tests.fakes import hosts
from tests.fakes.hosts import ARBITRARY, DOCKER_CAPABILITIES, ROOT, Host, bind, fresh, hidden
from tests.fakes.images import BUSYBOX, Layer, LayoutImage, busybox_builder
from tests.fakes.program import Done, Program, program
from tests.host_rows import CELLS, Cell

pytestmark = [
    pytest.mark.sandbox,
    pytest.mark.skipif(not BUSYBOX.exists(), reason="busybox-static is not installed"),
    needs("runc", "crun", "newuidmap"),
]

STAMP = "1577836800"
BUILDER = ("builder", "builder:latest")
SEARCHED = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# What any user of group 0 may do in an image that is made for OpenShift.
ASSEMBLE = """\
#!/bin/sh
set -e
umask 002
cp -R /tmp/src/. "$HOME/"
cd /opt/app-root
mkdir -p new/deep; echo x > new/file; ln new/file new/hard; ln -s file new/soft; mkfifo new/pipe
chmod 640 new/file; echo deep > new/deep/file
echo more >> own; rm gone; echo again > again
rm -r dir; mkdir dir; echo x > dir/new
test "$(id -g)" = 0
"""


def builder(directory: Path) -> str:
    """A builder image; its `oci:` location."""
    layer = Layer().dir("opt").dir("opt/app-root", mode=0o775, uid=1001, gid=0)
    for name in ("own", "gone", "again"):
        layer.file(f"opt/app-root/{name}", name, uid=1001, gid=0, mode=0o664)
    layer.dir("opt/app-root/dir", mode=0o775, uid=1001, gid=0)
    layer.file("opt/app-root/dir/old", "old", uid=1001, gid=0, mode=0o664)
    layer.file("opt/theirs", "t", uid=7, gid=8)
    place, name = BUILDER
    scripts = {"assemble": ASSEMBLE}
    busybox_builder(directory / place, name, scripts=scripts, more_layers=[layer])
    return f"oci:{directory / place}:{name}"


@dataclass(frozen=True)
class World:
    """A directory with all that a build takes, and a program to do it with."""

    ocis2i: Program
    directory: Path

    def make(self, name: str) -> Path:
        """A new directory."""
        path = self.directory / name
        path.mkdir()
        return path

    def subordinate(self, text: str | None = None) -> tuple[hosts.Mount, ...]:
        """Other subordinate ids: by default some of those that a `range` has."""
        path = self.directory / "subordinate"
        path.write_text(
            f"{pwd.getpwuid(os.getuid()).pw_name}:2000:40000\n" if text is None else text
        )
        return tuple(bind(path, f"/etc/{kind}") for kind in ("subuid", "subgid"))

    def range(self, *mounts: hosts.Mount, ids: str | None = None) -> Host:
        """A host with subordinate ids and these mounts."""
        return Host(
            ids="range",
            mounts=(*self.subordinate(ids), *mounts),
            capabilities=("CAP_SETUID", "CAP_SETGID"),
        )

    def container(self, **how: object) -> Host:
        """A container of the builder image, with a tmpfs on /var/tmp."""
        host = Host(
            ids="container" if os.geteuid() else "host",
            image=(str(self.directory / BUILDER[0]), BUILDER[1]),
            shared=(str(self.directory),),
            filter="docker",
        )
        return replace(host, **how)  # type: ignore[arg-type]

    def without(self, *names: str) -> tuple[hosts.Mount, ...]:
        """Mounts that take programs away."""
        return hidden(names, f"{self.ocis2i.environment['PATH']}:{SEARCHED}")


@dataclass(frozen=True)
class Place:
    """A host, and what is said to ocis2i there."""

    host: Host
    variables: Mapping[str, str]


def plain(world: World) -> Place:
    return Place(Host(), {})


def _on_store(kind: str, flags: int = 0, options: str = "") -> Callable[[World], Place]:
    def make(world: World) -> Place:
        store = world.make("store")
        if kind == "overlay":
            parts = {name: world.make(f"store-{name}") for name in ("lower", "upper", "work")}
            given = ",".join(f"{name}dir={path}" for name, path in parts.items())
            mount = fresh("overlay", store, flags, f"userxattr,{given}")
        else:
            mount = fresh(kind, store, flags, options)
        return Place(world.range(mount), {"OCIS2I_ROOT": str(store)})

    return make


def _without(*names: str, only_path: bool = False) -> Callable[[World], Place]:
    def make(world: World) -> Place:
        variables = {}
        if only_path:
            programs = world.make("bin")
            for name, target in {"python3": sys.executable, "git": shutil.which("git")}.items():
                if target:
                    (programs / name).symlink_to(target)
            variables = {"PATH": str(programs)}
        return Place(world.range(*world.without(*names)), variables)

    return make


def no_subordinate_ids(world: World) -> Place:
    return Place(world.range(ids="somebody-else:2000:40000\n"), {})


def noexec_tmp(world: World) -> Place:
    path = world.make("temporary")
    mount = fresh("tmpfs", path, syscalls.MS_NOEXEC)
    return Place(world.range(mount), {"TMPDIR": str(path)})


def read_only_home(world: World) -> Place:
    home = world.make("quiet-home")
    mounts = hosts.read_only(home)
    return Place(world.range(*mounts), {"HOME": str(home)})


def read_only_home_and_store(world: World) -> Place:
    place = read_only_home(world)
    return replace(place, variables={**place.variables, "OCIS2I_ROOT": ""})


def masked_proc(world: World) -> Place:
    return Place(world.range(*(bind("/dev/null", f"/proc/{name}") for name in ("keys",))), {})


def no_namespaces_left(world: World) -> Place:
    limit = ("/proc/sys/user/max_user_namespaces", "0")
    return Place(replace(world.range(), writes=(limit,)), {})


def _in_pod(uid: int, gid: int = 0) -> Callable[[World], Place]:
    def make(world: World) -> Place:
        host = world.container(user=(uid, gid), no_new_privs=True, kubernetes=True)
        mounts = (fresh("tmpfs", "/var/tmp", options="mode=1777"),)
        variables = {"OCIS2I_ROOT": "/var/tmp/store", "HOME": "/", "TMPDIR": "/var/tmp"}
        return Place(replace(host, mounts=mounts), variables)

    return make


def pod_with_user_namespace(world: World) -> Place:
    host = world.container(
        user=ROOT,
        kubernetes=True,
        filter="none",
        capabilities=(*DOCKER_CAPABILITIES, "CAP_SYS_ADMIN"),
        mounts=(fresh("tmpfs", "/var/tmp", options="mode=1777"),),
    )
    return Place(host, {"OCIS2I_ROOT": "/var/tmp/store", "HOME": "/root", "TMPDIR": "/var/tmp"})


def container_root(world: World) -> Place:
    host = world.container(user=ROOT, capabilities=tuple(DOCKER_CAPABILITIES))
    return Place(host, {"OCIS2I_ROOT": "/var/store", "HOME": "/root"})


PLACES: dict[str, Callable[[World], Place]] = {
    "unrestricted": plain,
    "no-subordinate-ids": no_subordinate_ids,
    "no-newuidmap": _without("newuidmap", "newgidmap"),
    "no-new-privs": lambda _: Place(Host(no_new_privs=True), {}),
    "no-runc": _without("runc"),
    "no-runtime": _without("runc", "crun"),
    "nothing-installed": _without(
        *("runc", "crun", "buildah", "newuidmap", "newgidmap"), only_path=True
    ),
    "store-on-overlay": _on_store("overlay"),
    "store-without-attributes": _on_store("ramfs"),
    "store-of-one-owner": lambda world: Place(replace(world.range(), filter="owners"), {}),
    "store-on-tmpfs": _on_store("tmpfs"),
    "noexec-store": _on_store("tmpfs", syscalls.MS_NOEXEC),
    "noexec-store-copy": _on_store("tmpfs", syscalls.MS_NOEXEC),
    "noexec-tmp": noexec_tmp,
    "full-disk": _on_store("tmpfs", options="size=1m"),
    "read-only-home": read_only_home,
    "read-only-home-and-store": read_only_home_and_store,
    "masked-proc": masked_proc,
    "no-namespaces-left": no_namespaces_left,
    "namespaces-filtered": lambda _: Place(Host(filter="namespaces"), {}),
    "restricted-pod": _in_pod(*ARBITRARY),
    "restricted-pod-in-place": _in_pod(*ARBITRARY),
    "ordinary-pod-in-place": _in_pod(1001),
    "pod-with-user-namespace": pod_with_user_namespace,
    "container-root": container_root,
    "container-root-chroot": container_root,
    "rootless-container-root-chroot": container_root,
}


AS = {True: pytest.mark.as_root, False: pytest.mark.as_user}
CASES = [pytest.param(cell, id=cell.id, marks=AS[cell.root]) for cell in CELLS]


def build(world: World, place: Place, *flags: str) -> tuple[Done, Path]:
    """The build of all cells; how it went, and the archive that it makes."""
    archive = world.directory / "out/app.tar"
    image = f"oci:{world.directory / BUILDER[0]}:{BUILDER[1]}"
    output = (
        "-o",
        f"oci-archive:{archive}:app:latest",
        "--timestamp",
        STAMP,
        "--json",
        "--loglevel",
        "3",
    )
    given = {**world.ocis2i.environment, **place.variables}
    running = replace(
        world.ocis2i,
        environment={name: value for name, value in given.items() if value},
        launcher=place.host.launcher,
    )
    done = running("build", world.directory / "source", image, "app:latest", *output, *flags)
    return done, archive


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """The layers of the image that an unrestricted host makes."""
    directory = tmp_path_factory.mktemp("reference")
    with program(directory) as ocis2i:
        world = furnished(ocis2i, directory)
        # Root of the host may build in a user namespace of its own.
        place = Place(Host() if os.geteuid() else Host(ids="container"), {})
        done, archive = build(world, place, "--isolation", "builtin")
        assert done.code == 0, done.err
        yield layers_of(archive)


def furnished(ocis2i: Program, directory: Path) -> World:
    """A world with the sample's source and builder."""
    source = directory / "source"
    (source / "deep").mkdir(parents=True)
    (source / "index.html").write_text("hello from the source\n")
    (source / "deep/file").write_text("deep\n")
    builder(directory)
    # For whoever the caller is inside a container.
    (directory / "out").mkdir()
    (directory / "out").chmod(0o777)
    return World(ocis2i, directory)


def layers_of(archive: Path) -> list[str]:
    """The digests of an archive's layers, the lowest first."""
    place = archive.with_suffix(".layout")
    with tarfile.open(archive) as tar:
        tar.extractall(place)
    return LayoutImage(place, "app:latest").layers


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """Where the cell's build is done."""
    directory = tmp_path / "world"
    directory.mkdir(mode=0o755)
    with program(directory) as ocis2i:
        yield furnished(ocis2i, directory)


@pytest.mark.parametrize("cell", CASES)
def test_build_gives_the_same_layer_or_the_documented_sentence(
    cell: Cell, world: World, reference: list[str]
) -> None:
    place = PLACES[cell.id](world)
    done, archive = build(world, place, *cell.flags)
    assert done.code == cell.code, f"{done.out}\n{done.err}"
    if cell.by:
        assert cell.said in done.err
        assert done.document["isolation"] == cell.by
        assert layers_of(archive) == reference
        return
    assert not archive.exists()
    assert "Traceback" not in done.err
    (error,) = re.findall("(?m)^error: (.*)$", done.err)
    assert cell.refusal in error
    assert cell.way_out in " ".join(done.err.split("hint: ")[1:])
    assert json.loads(done.out)["state"] == "failed"
