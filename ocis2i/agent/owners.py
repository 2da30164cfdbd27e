"""Whose files are where the disk cannot say so: with one user id all of them are the caller's.

An agent with a full map gives files away as chown(2) does, and the disk remembers. One with a
single id cannot (`EINVAL`): its unpacked layers have a record of owners beside them, and the layer
that is written gets its owners from there, by rule.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import NamedTuple

Owner = tuple[int, int]

ROOT: Owner = (0, 0)


@cache
def squashed() -> bool:
    """Whether this process can give nothing away: it has one user id, or is not root at all."""
    if os.geteuid() != 0:
        return True
    with open("/proc/self/uid_map", "rb") as file:
        lines = file.read().splitlines()
    return len(lines) == 1 and lines[0].split()[2] == b"1"


def give(fd: int, uid: int, gid: int) -> None:
    """fchown(2) where there is somebody to give to."""
    if not squashed():
        os.fchown(fd, uid, gid)


def give_entry(directory: int, name: bytes | str, uid: int, gid: int) -> None:
    """The same for an entry of an open directory; a link is not followed."""
    if not squashed():
        os.chown(name, uid, gid, dir_fd=directory, follow_symlinks=False)


def giving_refusal(directory: str) -> str | None:
    """Why no file in `directory` can be given to another id, by trying; or `None`.

    A server of NFS lets only its own root do that, and root of a user namespace is not.
    """
    path = f"{directory}/try-owner"
    try:
        # Closed before it is unlinked: NFS keeps open files, under another name.
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except OSError:
        return None  # about the disk; who has something to write there will say so
    try:
        os.chown(path, 1, 1)
    except OSError as error:
        return error.strerror
    finally:
        os.unlink(path)
    return None


class Owners:
    """Whose an entry of a layer is: on a disk that remembers, who the disk says."""

    def real(self, path: bytes, uid: int, gid: int, *, new: bool) -> Owner:  # noqa: ARG002
        """The owner for the layer of `path`, which on the disk belongs to `uid`:`gid`.

        `new` is what the base does not have.
        """
        return uid, gid


class LayerOwners(NamedTuple):
    """An unpacked layer: its directory, what it has without describing it, and its owners.

    In `owners` are the paths that do not belong to root.
    """

    tree: str
    implied: frozenset[bytes]
    owners: Mapping[bytes, Owner]


def layer_owners(
    tree: str, implied: Sequence[str], owners: Mapping[str, Sequence[int]]
) -> LayerOwners:
    """The same from what JSON has for it."""
    return LayerOwners(
        tree,
        frozenset(map(os.fsencode, implied)),
        {os.fsencode(path): (owner[0], owner[1]) for path, owner in owners.items()},
    )


class Squashed(Owners):
    """What the base has keeps its owner, what is new belongs to the user of the job.

    `layers` is the base, topmost first; `placed` is what the agent itself put there.
    """

    def __init__(
        self, job: Owner, layers: Sequence[LayerOwners], placed: Mapping[bytes, Owner]
    ) -> None:
        self._job = job
        self._layers = layers
        self._placed = placed

    def real(self, path: bytes, uid: int, gid: int, *, new: bool) -> Owner:  # noqa: ARG002
        """See `Owners.real`."""
        if path in self._placed:
            return self._placed[path]
        return self._job if new else self._below(path)

    def _below(self, path: bytes) -> Owner:
        for layer in self._layers:
            if path not in layer.implied and _has(layer.tree, path):
                return layer.owners.get(path, ROOT)
        return ROOT


def _has(tree: str, path: bytes) -> bool:
    # Only whether something is there: of a path of the merged tree every directory above it is a
    # directory in the topmost layer that has it, and not a link that leads elsewhere.
    try:
        os.lstat(os.fsencode(tree) + b"/" + path)
    except OSError:
        return False
    return True


class Placed:
    """What the agent put into the trees of its builds, and for whom. By the build's directory."""

    def __init__(self) -> None:
        self._builds: dict[str, dict[bytes, Owner]] = {}

    def of(self, build: str) -> Mapping[bytes, Owner]:
        """The paths in `build`'s tree, with their owners."""
        return self._builds.get(build, {})

    def note(
        self, build: str, paths: Iterable[bytes], made: Iterable[bytes], owner: Owner = ROOT
    ) -> None:
        """`paths` were put there for `owner`; directories `made` above them are root's.

        The last of those, which they are in, is the owner's as well, but for /tmp.
        """
        known = self._builds.setdefault(build, {})
        known.update((path, ROOT) for path in made)
        for path in paths:
            parent = path.rpartition(b"/")[0]
            if parent in known and parent != b"tmp":
                known[parent] = owner
            known[path] = owner
