"""The agent's own `/` as the tree of a build: the container that it is in is the builder image.

Nothing is unpacked or mounted. What is there before the build counts as the image, whoever put it
there; what the build makes of it is told by a snapshot (`ocis2i.agent.snapshot`).
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterable
from typing import NamedTuple

from ocis2i.agent.direct import KERNELS_PLACES
from ocis2i.agent.mounts import mountinfo, unescaped
from ocis2i.agent.owners import Owner, Owners
from ocis2i.agent.snapshot import BY_NUMBER, Snapshot, settle, take
from ocis2i.agent.tree import opened

# Reading stops to be worth it: what is larger, or comes later, is in the layer when it is touched.
_LARGEST_BYTES = 64 << 20
_MOST_BYTES = 1 << 30
# Ids beyond those are nobody's in an image; OpenShift, for one, gives each project its own.
_IDS_OF_IMAGES = 65536
# Their directories get another age, and maybe number, when something in them is changed first.
_STACKED = (b"overlay", b"fuse.fuse-overlayfs", b"aufs")


class Mount(NamedTuple):
    """A line of proc_pid_mountinfo(5): where, and of which type."""

    path: bytes
    kind: bytes


class Container(NamedTuple):
    """The tree as it was `before`, and the places in it that are not the image's."""

    before: Snapshot
    mounts: tuple[Mount, ...]


def prepare(build: str, skipped: Iterable[str]) -> Container:
    """Looks at the whole container but for what is mounted into it, and the paths `skipped`."""
    sys.dont_write_bytecode = True  # nothing shall be added to what is there
    mounts = tuple(read_mounts(mountinfo()))
    kind = [one.kind for one in mounts if one.path == b"/"][-1]  # the last one lies on top
    os.symlink("/", f"{build}/rootfs")
    places = {*KERNELS_PLACES, *(one.path for one in mounts), *map(os.fsencode, skipped)}
    with opened("/") as root:
        suspects = Suspects(os.geteuid(), {os.getegid(), *os.getgroups()})
        before = take(
            root,
            {place.strip(b"/") for place in places} - {b""},
            hash_if=suspects,
            births=kind not in _STACKED,
        )
        settle(root, before.latest_ns)
    if kind in _STACKED:
        before = by_number(before)
    return Container(before, mounts)


def by_number(before: Snapshot) -> Snapshot:
    """Directories told apart by their number, where an overlay keeps it when they are copied up.

    It does when all layers are on one file system, and shows that by one device for everything
    (Documentation/filesystems/overlayfs.rst, "Inode properties").
    """
    device = before.root.device
    listed = before.directories.items()
    if any(fact.device != device for _, names in listed for fact in names.values()):
        return before
    return before._replace(
        root=before.root._replace(birth_ns=BY_NUMBER),
        directories={
            path: {
                name: fact._replace(birth_ns=BY_NUMBER) if stat.S_ISDIR(fact.mode) else fact
                for name, fact in names.items()
            }
            for path, names in listed
        },
    )


def read_mounts(lines: Iterable[bytes]) -> Iterable[Mount]:
    """The mounts of proc_pid_mountinfo(5), a line each. Pure."""
    for line in lines:
        fields, _, more = line.partition(b" - ")
        yield Mount(unescaped(fields.split(b" ")[4]), more.split(b" ")[0])


class Suspects:
    """Whose content is remembered: files that this user could change, as long as they are few."""

    def __init__(self, uid: int, groups: set[int]) -> None:
        self._uid = uid
        self._groups = groups
        self._left_bytes = _MOST_BYTES

    def __call__(self, _: bytes, facts: os.stat_result) -> bool:
        if not (stat.S_ISREG(facts.st_mode) or stat.S_ISLNK(facts.st_mode)):
            return False
        if not self._may_change(facts) or facts.st_size > min(_LARGEST_BYTES, self._left_bytes):
            return False
        self._left_bytes -= facts.st_size
        return True

    def _may_change(self, facts: os.stat_result) -> bool:
        if self._uid in (0, facts.st_uid):
            return True
        if facts.st_gid in self._groups and facts.st_mode & stat.S_IWGRP:
            return True
        return bool(facts.st_mode & stat.S_IWOTH)


class ByRule(Owners):
    """What the current user made belongs to the image's user; all else to whom it belonged.

    `me` is the current user, `job` the one whom the image or the caller names for the script,
    `known` are the users whose files were there before.
    """

    def __init__(self, me: Owner, job: Owner, known: frozenset[int]) -> None:
        self._me = me
        self._job = job
        self._is_alien = me[0] >= _IDS_OF_IMAGES or me[0] not in known

    def real(self, path: bytes, uid: int, gid: int, *, new: bool) -> Owner:  # noqa: ARG002
        """See `Owners.real`."""
        # An inode's number may be given to a new file: a user without files here made it anyway.
        if uid != self._me[0] or not (new or self._is_alien):
            return uid, gid
        return self._job[0], self._job[1] if gid == self._me[1] else gid


def owners(container: Container, job: Owner) -> ByRule:
    """The rule for this process."""
    entries = container.before.directories.values()
    known = frozenset(fact.uid for names in entries for fact in names.values())
    return ByRule((os.geteuid(), os.getegid()), job, known)
