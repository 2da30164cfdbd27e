"""What chroot and in-place decide: who may, what is refused, whose files are whose."""

from __future__ import annotations

import os
import shutil
import stat
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from ocis2i import fs
from ocis2i.agent import tree
from ocis2i.agent.in_place import ByRule, Suspects, read_mounts
from ocis2i.agent.tree import merge_tree
from ocis2i.container_options import HostEntry
from ocis2i.errors import IsolationError
from ocis2i.in_place import differences, hidden_by_mounts
from ocis2i.isolation.chroot import NEEDED, chroot_refusal
from ocis2i.mappings import PathPair
from ocis2i.reference import parse_location
from ocis2i.refusals import refuse
from ocis2i.remote_cache import CacheSpec
from ocis2i.runner import BindMount, Hardening
from ocis2i.sources import parse_source
from ocis2i.spec import BuildSpec, RuntimeSpec, SecretSpec
from ocis2i.syscalls import CAPABILITIES
from ocis2i.uids import parse_uid_ranges

JOB = (1001, 0)
ALIEN = (1_000_660_000, 0)


# --- who may ----------------------------------------------------------------------------------


def status(uid: int, *names: str) -> str:
    """A part of /proc/self/status."""
    mask = sum(1 << CAPABILITIES.index(name) for name in names)
    return f"Name:\tpython\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\nCapEff:\t{mask:016x}\n"


def test_chroot_takes_root_with_what_docker_gives() -> None:
    assert chroot_refusal(status(0, *NEEDED)) is None
    assert chroot_refusal(status(1001)) == "it takes root, and this is user 1001"
    few = [name for name in NEEDED if name != "CAP_MKNOD"]
    assert chroot_refusal(status(0, *few)) == "root has not the capabilities CAP_MKNOD"


# --- what is refused ----------------------------------------------------------------------------

PLAIN = BuildSpec(
    source=parse_source(".", cwd=Path("/")),
    builder=parse_location("builder"),
    created=datetime(2020, 1, 1, tzinfo=UTC),
)
WITHOUT_MOUNTS: dict[str, dict[str, Any]] = {
    "--volume for `/data`": {"mounts": (BindMount("/srv", "/data"),)},
    "--inject of `/key`": {"secrets": SecretSpec(injections=(PathPair("/key", "/etc"),))},
    "--host-mirrors": {"secrets": SecretSpec(host_mirrors=True)},
    "--network proxy": {"network": "proxy"},
    "no-new-privileges=false": {"hardening": Hardening(no_new_privs=False)},
}
IN_PLACE: dict[str, dict[str, Any]] = {
    "--add-host db": {"add_hosts": (HostEntry("db", "10.0.0.1"),)},
    "--runtime-image": {"runtime": RuntimeSpec(parse_location("runtime"))},
    "--incremental": {"incremental": True},
    "--cache-from or --cache-to": {"cache": CacheSpec(datetime(2020, 1, 1, tzinfo=UTC))},
}


def wish(fields: dict[str, Any]) -> BuildSpec:
    """A build with something special."""
    values = {name: getattr(PLAIN, name) for name in PLAIN.__slots__}
    return BuildSpec(**{**values, **fields})


@pytest.mark.parametrize("named", [*WITHOUT_MOUNTS, *IN_PLACE])
def test_wishes_are_refused_by_name_and_with_a_way_out(named: str) -> None:
    spec = wish((WITHOUT_MOUNTS | IN_PLACE)[named])
    with pytest.raises(IsolationError, match="in-place") as caught:
        refuse("in-place", spec)
    assert named in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("named", IN_PLACE)
def test_chroot_has_trees_and_files_of_its_own(named: str) -> None:
    refuse("chroot", wish(IN_PLACE[named]))


def test_the_current_user_has_to_be_an_allowed_one() -> None:
    me = os.geteuid()
    refuse("in-place", replace(PLAIN, allowed_uids=parse_uid_ranges(str(me))))
    with pytest.raises(IsolationError, match=f"as the current user, and that is {me}"):
        refuse("in-place", replace(PLAIN, allowed_uids=parse_uid_ranges(str(me + 1))))


def test_a_plain_build_is_not_refused() -> None:
    refuse("chroot", PLAIN)
    refuse("in-place", PLAIN)


# --- which container ----------------------------------------------------------------------------


def test_variables_that_a_container_sets_itself_say_nothing() -> None:
    image = ("PATH=/opt/bin", "HOME=/opt", "VERSION=3", "NAME=python", "=odd")
    assert differences(image, {"PATH": "/bin", "VERSION": "3", "NAME": "python"}) == ()
    assert differences(image, {"VERSION": "4"}) == ("VERSION", "NAME")


def test_places_below_a_mount_are_hidden() -> None:
    mounts = ("/", "/tmp", "/opt/cache")
    assert hidden_by_mounts(("/tmp", "/opt", "/tmpfs", "/opt/cache/x"), mounts) == (
        "/tmp",
        "/opt/cache/x",
    )


def test_mounts_are_read_with_their_names_and_kinds() -> None:
    lines = [
        b"22 1 0:20 / / rw,relatime shared:1 - overlay overlay rw,lowerdir=/a\n",
        b"23 22 8:1 /x /a\\040b rw,nosuid - ext4 /dev/sda rw\n",
    ]
    root, other = read_mounts(lines)
    assert (root.path, root.kind) == (b"/", b"overlay")
    assert (other.path, other.kind) == (b"/a b", b"ext4")


# --- whose is what ------------------------------------------------------------------------------


def facts(mode: int, uid: int, gid: int, size: int = 10) -> os.stat_result:
    """What stat(2) says of a file."""
    return os.stat_result((mode, 1, 1, 1, uid, gid, size, 0, 0, 0))


def test_contents_are_kept_of_what_the_user_may_change() -> None:
    suspects = Suspects(1234, {0, 55})
    assert suspects(b"own", facts(stat.S_IFREG | 0o400, 1234, 9))
    assert suspects(b"group", facts(stat.S_IFREG | 0o464, 1, 55))
    assert suspects(b"all", facts(stat.S_IFREG | 0o602, 1, 9))
    assert suspects(b"link", facts(stat.S_IFLNK | 0o777, 1, 9))
    assert not suspects(b"other", facts(stat.S_IFREG | 0o644, 1, 9))
    assert not suspects(b"group-read", facts(stat.S_IFREG | 0o644, 1, 55))
    assert not suspects(b"device", facts(stat.S_IFCHR | 0o666, 1234, 9))
    assert Suspects(0, {0})(b"other", facts(stat.S_IFREG | 0o444, 1, 9))


def test_contents_are_kept_within_bounds() -> None:
    suspects = Suspects(1, set())
    assert not suspects(b"large", facts(stat.S_IFREG | 0o600, 1, 1, 1 << 40))
    size = 60 << 20
    count = sum(suspects(b"file", facts(stat.S_IFREG | 0o600, 1, 1, size)) for _ in range(100))
    assert count == (1 << 30) // size


def test_new_files_belong_to_the_user_of_the_image() -> None:
    owners = ByRule(ALIEN, JOB, frozenset({0, 1001}))
    assert owners.real(b"new", *ALIEN, new=True) == JOB
    # A number that no image knows is never kept, and every other one is.
    assert owners.real(b"kept", *ALIEN, new=False) == JOB
    assert owners.real(b"theirs", 7, 8, new=False) == (7, 8)
    assert owners.real(b"group", ALIEN[0], 8, new=True) == (1001, 8)


def test_files_of_the_image_keep_a_user_that_is_the_current_one() -> None:
    owners = ByRule((1002, 0), JOB, frozenset({0, 1002}))
    assert owners.real(b"kept", 1002, 0, new=False) == (1002, 0)
    assert owners.real(b"new", 1002, 0, new=True) == JOB
    root = ByRule((0, 0), JOB, frozenset({0}))
    assert root.real(b"kept", 0, 0, new=False) == (0, 0)
    assert root.real(b"new", 0, 0, new=True) == JOB


# --- from one file system to another --------------------------------------------------------------


@pytest.mark.skipif(
    not Path("/dev/shm").is_dir() or os.stat("/dev/shm").st_dev == os.stat("/tmp").st_dev,
    reason="there is no second file system",
)
def test_read_only_directories_move_and_go(tmp_path: Path) -> None:
    # Of a user who is not root: no mode stands in the way of root.
    for name in ("moved", "removed", "left"):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "deep/file").write_text("content")
        for path in (f"{name}/deep", name):
            (tmp_path / path).chmod(0o555)
    (tmp_path / "into").mkdir()
    source, into = (os.open(one, os.O_RDONLY) for one in (tmp_path, tmp_path / "into"))
    merge_tree(source, b"moved", into, b"as")
    tree.remove_tree(source, "removed")
    os.close(source)
    os.close(into)
    assert fs.remove_tree(tmp_path / "left")
    assert os.listdir(tmp_path) == ["into"]
    for name in ("as", "as/deep"):
        assert (tmp_path / "into" / name).stat().st_mode & 0o777 == 0o555
        (tmp_path / "into" / name).chmod(0o755)
    assert (tmp_path / "into/as/deep/file").read_text() == "content"


def test_a_tree_moves_to_another_file_system(tmp_path: Path) -> None:
    here, there = tmp_path / "here", Path("/dev/shm", f"ocis2i-{os.getpid()}")
    (here / "tree/deep").mkdir(parents=True)
    (here / "tree/deep/file").write_text("content")
    (here / "tree/deep/file").chmod(0o755)
    os.utime(here / "tree/deep/file", (5, 5))
    (here / "tree/link").symlink_to("nowhere")
    (here / "tree").chmod(0o750)
    os.utime(here / "tree", (7, 7))
    there.mkdir()
    try:
        for name in (here, there):
            name.chmod(0o755)
        source, into = (os.open(one, os.O_RDONLY | os.O_DIRECTORY) for one in (here, there))
        merge_tree(source, b"tree", into, b"as")
        os.close(source)
        os.close(into)
        file = (there / "as/deep/file").stat()
        assert (file.st_mode & 0o777, file.st_mtime, file.st_size) == (0o755, 5, 7)
        assert os.readlink(there / "as/link") == "nowhere"
        assert ((there / "as").stat().st_mode & 0o777, (there / "as").stat().st_mtime) == (0o750, 7)
        assert not os.listdir(here)
    finally:
        shutil.rmtree(there)
