"""The trees of a build: which one the container sees, and where things are put now.

Before an overlay is mounted, what the container will see is `base` and what is new goes to `upper`.
Once it is mounted, and in a copy from the beginning, both are `rootfs`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from ocis2i.agent.tree import opened


class Side(NamedTuple):
    """Where things are put: the tree `into`, of which the container sees `seen`.

    Before the rootfs is mounted these are the upper directory and the image below it; `base` is
    then the image, else -1: a mounted tree has the image's directories in it.
    """

    into: int
    seen: int
    base: int


def make_build(build: str, names: tuple[str, ...]) -> None:
    """Makes a build's directory, when it is missing, and new directories in it."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(build, 0o700)
    for name in names:
        os.mkdir(f"{build}/{name}", 0o755)


def is_whole(build: str) -> bool:
    """Whether `rootfs` has all that the container sees: a copy always, an overlay once mounted."""
    return not os.path.lexists(f"{build}/upper") or os.path.ismount(f"{build}/rootfs")


@contextmanager
def shown(build: str) -> Iterator[int]:
    """What the container sees now, to look at."""
    with opened(_tree(build) if is_whole(build) else f"{build}/base") as fd:
        yield fd


@contextmanager
def changed(build: str) -> Iterator[int]:
    """The tree in which files that were changed have one inode number for all their names."""
    copied = not os.path.lexists(f"{build}/upper")
    with opened(_tree(build) if copied else f"{build}/upper") as fd:
        yield fd


@contextmanager
def writable(build: str) -> Iterator[Side]:
    """Where things are put now: the rootfs once it is whole, before that the upper directory."""
    if is_whole(build):
        with opened(_tree(build)) as root:
            yield Side(root, root, -1)
    else:
        with opened(f"{build}/upper") as upper, opened(f"{build}/base") as base:
            yield Side(upper, base, base)


def _tree(build: str) -> str:
    """The container's tree: a link leads to that of a container which was there before."""
    rootfs = f"{build}/rootfs"
    return os.readlink(rootfs) if os.path.islink(rootfs) else rootfs
