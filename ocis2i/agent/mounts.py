"""The writable tree of a build: overlayfs over unpacked layers, inside the agent's mount namespace.

In the build's directory:  `layers/N` links to the unpacked layers, `shim` a directory layer of our
own on top of them, `base` the image read-only, `upper` and `work` the writable side, `rootfs` the
whole. `upper` is the change set (`ocis2i.agent.changes` reads it).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from ocis2i import syscalls
from ocis2i.agent.failure import AgentError, explain
from ocis2i.agent.tree import DIRECTORY, OPAQUE_XATTR, copy_attributes, join, resolve

_OPTIONS = "userxattr,index=off"


class LowerLayer(NamedTuple):
    """An unpacked layer: its directory, and the directories in it that no entry described."""

    path: str
    implied: tuple[str, ...]


class Target(NamedTuple):
    """A place that something will be mounted on: `path` in the container, a directory or a file."""

    path: str
    directory: bool


class Upload(NamedTuple):
    """A tree to be in the container before it starts: `name` in the build's directory becomes
    `path` in the container, everything in it owned by `uid`:`gid`."""

    name: str
    path: str
    uid: int
    gid: int


def prepare(build: str, lowers: list[LowerLayer], targets: list[Target]) -> list[str]:
    """Mounts `base` of `lowers` (lowest first) and makes the writable side.

    Returns the mount targets that the image does not have and that exist only in the shim, as
    paths relative to the root. Raises `AgentError` of kind `isolation` when overlayfs is refused.
    """
    for name in ("layers", "shim", "base", "upper", "work", "rootfs"):
        os.mkdir(f"{build}/{name}", 0o755)
    for number, layer in enumerate(reversed(lowers)):
        os.symlink(layer.path, f"{build}/layers/{number}")
    if not lowers:
        os.mkdir(f"{build}/layers/0", 0o755)  # read-only, overlayfs wants two directories at least
    with opened(f"{build}/shim") as shim:
        _copy_root(shim, lowers)
        _mount_base(build)
        with opened(f"{build}/base") as base:
            changed = _restore_implied(shim, base, lowers)
        # An overlay does not see what changes below it: mount again, then look.
        if changed:
            _mount_base(build)
        with opened(f"{build}/base") as base:
            made = [path for target in targets for path in _make_target(shim, base, target)]
        if made:
            _mount_base(build)
    with opened(f"{build}/base") as base, opened(f"{build}/upper") as upper:
        copy_attributes(base, upper, mounted=True)
    return sorted(set(made))


@contextmanager
def opened(path: str) -> Iterator[int]:
    """A directory's descriptor, closed at the end."""
    fd = os.open(path, DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


def place(build: str, uploads: list[Upload]) -> list[str]:
    """Moves uploaded trees into the writable side; before `mount`. Returns their real paths."""
    with opened(f"{build}/upper") as upper, opened(f"{build}/base") as base:
        return [_place_one(build, upper, base, upload) for upload in uploads]


def make_directory(build: str, path: str) -> None:
    """`mkdir -p` of `path` in the writable side; after `place`, before `mount`."""
    with opened(f"{build}/upper") as upper, opened(f"{build}/base") as base:
        found, missing = resolve(base, os.fsencode(path))
        if not missing:
            return
        try:
            os.close(_make_directories(upper, base, join(found, missing)))
        except OSError as error:
            raise explain(error, f"the directory `{path}` cannot be made") from error


def mount(build: str) -> None:
    """Mounts `rootfs`, writable."""
    # `volatile` spares every fsync of the payload: a half-built upper directory is never reused.
    _mount_overlay(build, "rootfs", "upperdir=upper,workdir=work,volatile")


def unmount(build: str) -> None:
    """Detaches `rootfs`; `base` and `upper` stay for reading the changes."""
    syscalls.umount2(f"{build}/rootfs", syscalls.MNT_DETACH)


def release(build: str) -> None:
    """Detaches all that is mounted below `build`, so that it can be removed."""
    for name in ("rootfs", "base"):
        if os.path.ismount(f"{build}/{name}"):
            syscalls.umount2(f"{build}/{name}", syscalls.MNT_DETACH)


def _mount_base(build: str) -> None:
    if os.path.ismount(f"{build}/base"):
        syscalls.umount2(f"{build}/base", syscalls.MNT_DETACH)
    _mount_overlay(build, "base")


def _mount_overlay(build: str, target: str, more: str = "") -> None:
    # Short names relative to the build's directory: the options must fit into one page, and a
    # colon or comma in the store's path cannot be mistaken.
    count = len(os.listdir(f"{build}/layers"))
    lowers = ["shim", *(f"layers/{number}" for number in range(count))]
    options = f"lowerdir={':'.join(lowers)},{_OPTIONS}" + (f",{more}" if more else "")
    if len(options) > 4000:
        raise AgentError("image", f"the image has {count} layers, overlayfs takes fewer")
    os.chdir(build)
    try:
        syscalls.mount("overlay", target, "overlay", syscalls.MS_NODEV, options)
    except OSError as error:
        if error.errno == 28:
            raise explain(error, "the rootfs cannot be mounted") from error
        raise AgentError(
            "isolation",
            f"overlayfs refuses the store's file system: {error.strerror}",
            "put the store on a local disk (ext4, xfs, btrfs) or tmpfs with --root; "
            "a directory that is itself on overlayfs or NFS cannot hold it",
        ) from error
    finally:
        os.chdir("/")


# --- directories that a layer used but did not describe ---


def _restore_implied(shim: int, base: int, lowers: list[LowerLayer]) -> bool:
    """Gives merged directories the attributes that a lower layer wrote down.

    A layer may hold `tmp/x` without an entry `tmp`; other tools keep the `1777` that `/tmp` has
    from below, overlayfs would show the attributes of the upper layer's implied directory.
    Returns whether anything was put into the shim.
    """
    restored = False
    for path in sorted({path for layer in lowers for path in layer.implied if path}):
        described = _describing_layer(path, lowers)
        if described is None:
            continue
        with opened(f"{lowers[described].path}/{path}") as source:
            target = _make_directories(shim, base, os.fsencode(path))
            copy_attributes(source, target)
            os.close(target)
        restored = True
    return restored


def _copy_root(shim: int, lowers: list[LowerLayer]) -> None:
    """The shim is on top, so its own attributes are what the container sees of `/`."""
    for layer in reversed(lowers):
        if "" not in layer.implied:
            with opened(layer.path) as source:
                copy_attributes(source, shim)
            return


def _describing_layer(path: str, lowers: list[LowerLayer]) -> int | None:
    """The layer whose entry says what the merged directory is like; `None`: nothing to restore."""
    for number in reversed(range(len(lowers))):
        layer = lowers[number]
        kind = _look(layer.path, path)
        if kind == "hidden":
            return None
        if kind == "directory" and path not in layer.implied:
            return None if number == _topmost(path, lowers) else number
        if kind == "opaque":
            return None
    return None


def _topmost(path: str, lowers: list[LowerLayer]) -> int:
    return max(n for n, layer in enumerate(lowers) if _look(layer.path, path) != "absent")


def _look(root: str, path: str) -> str:
    """What a layer has at `path`: absent, directory, opaque (a directory that hides) or hidden."""
    here = root
    for part in path.split("/") if path else []:
        here = f"{here}/{part}"
        try:
            facts = os.lstat(here)
        except (FileNotFoundError, NotADirectoryError):
            return "absent"
        if not stat.S_ISDIR(facts.st_mode):
            return "hidden"
        if _is_opaque(here):
            return "opaque"
    return "directory"


def _is_opaque(path: str) -> bool:
    try:
        return os.getxattr(path, OPAQUE_XATTR, follow_symlinks=False) == b"y"
    except OSError:
        return False


# --- places for mounts and uploads ---


def _make_target(shim: int, base: int, target: Target) -> list[str]:
    """Makes a mount target in the shim where the image has none; the paths made."""
    found, missing = resolve(base, os.fsencode(target.path))
    if not missing:
        return []
    path = join(found, missing)
    parent, _, name = path.rpartition(b"/")
    made = [b"/".join(path.split(b"/")[: n + 1]) for n in range(path.count(b"/") + 1)]
    fd = _make_directories(shim, base, path if target.directory else parent)
    if not target.directory:
        os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644, dir_fd=fd))
    os.close(fd)
    existing = found.count(b"/") + 1 if found else 0
    return [os.fsdecode(one) for one in made[existing:]]


def _make_directories(into: int, base: int, path: bytes) -> int:
    """`mkdir -p` below `into`; directories that `base` has too look as they do there.

    Returns the last one, open. New ones are 0755 and root's.
    """
    fd = os.dup(into)
    seen = b""
    for part in path.split(b"/") if path else []:
        seen = seen + b"/" + part if seen else part
        try:
            os.mkdir(part, 0o755, dir_fd=fd)
            made = True
        except FileExistsError:
            made = False
        inner = os.open(part, DIRECTORY, dir_fd=fd)
        os.close(fd)
        fd = inner
        if made:
            _look_like(base, seen, fd)
    return fd


def _look_like(base: int, path: bytes, target: int) -> None:
    try:
        source = syscalls.open_in_root(base, path, DIRECTORY)
    except (FileNotFoundError, NotADirectoryError):
        return
    copy_attributes(source, target, mounted=True)
    os.close(source)


def _place_one(build: str, upper: int, base: int, upload: Upload) -> str:
    found, missing = resolve(base, os.fsencode(upload.path))
    path = join(found, missing)
    parent, _, name = path.rpartition(b"/")
    if not name:
        raise AgentError("usage", f"`{upload.path}` cannot be the destination of files")
    source = f"{build}/{upload.name}"
    give_away(source, upload.uid, upload.gid)
    directory = _make_directories(upper, base, parent)
    try:
        _give_missing(directory, found, parent, upload)
        os.rename(source, name, dst_dir_fd=directory)
    except OSError as error:
        raise explain(error, f"files cannot be placed at `{upload.path}`") from error
    finally:
        os.close(directory)
    return os.fsdecode(path)


def _give_missing(directory: int, found: bytes, parent: bytes, upload: Upload) -> None:
    if len(parent) <= len(found):
        return
    if parent == b"tmp":
        os.fchmod(directory, 0o1777)  # everybody's, as in the images that have it
    else:
        # A destination that the image lacks is the assemble user's: the script works in it.
        os.fchown(directory, upload.uid, upload.gid)


def give_away(path: str, uid: int, gid: int) -> None:
    """Changes the owner of a whole tree, links not followed; modes stay."""
    with opened(path) as root:
        os.fchown(root, uid, gid)
        pending = ["."]
        while pending:
            inside = pending.pop()
            fd = os.open(inside, DIRECTORY, dir_fd=root)
            try:
                pending += [f"{inside}/{name}" for name in _give_entries(fd, uid, gid)]
            finally:
                os.close(fd)


def _give_entries(directory: int, uid: int, gid: int) -> list[str]:
    """Gives away everything in one directory; returns the directories in it."""
    directories = []
    with os.scandir(directory) as entries:
        for entry in entries:
            facts = entry.stat(follow_symlinks=False)
            os.chown(entry.name, uid, gid, dir_fd=directory, follow_symlinks=False)
            if stat.S_ISDIR(facts.st_mode):
                directories.append(entry.name)
            elif stat.S_ISREG(facts.st_mode) and facts.st_mode & 0o6000:
                # chown took the setuid bits away
                os.chmod(entry.name, stat.S_IMODE(facts.st_mode), dir_fd=directory)
    return directories
