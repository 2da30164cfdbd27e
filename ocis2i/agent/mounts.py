"""The writable tree of a build: overlayfs over unpacked layers, inside the agent's mount namespace.

In the build's directory:  `layers/N` links to the unpacked layers, `shim` a directory layer of our
own on top of them, `base` the image read-only, `upper` and `work` the writable side, `rootfs` the
whole. `upper` is the change set (`ocis2i.agent.changes` reads it). A session has one such directory
or, for the previous and the runtime image, more of them below its own.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from typing import NamedTuple

from ocis2i import syscalls
from ocis2i.agent.failure import AgentError, explain
from ocis2i.agent.placing import Target, make_directories, make_targets
from ocis2i.agent.sides import Side, is_whole, make_build
from ocis2i.agent.tree import OPAQUE_XATTR, copy_attributes, opened, remove_tree

_OPTIONS = "userxattr,index=off"


class LowerLayer(NamedTuple):
    """An unpacked layer: its directory, and the directories in it that no entry described.

    `whiteouts` and `opaque` are paths where the disk could not hold the mark for overlayfs.
    """

    path: str
    implied: tuple[str, ...]
    whiteouts: tuple[str, ...] = ()
    opaque: tuple[str, ...] = ()


def prepare(build: str, lowers: list[LowerLayer], targets: list[Target]) -> list[str]:
    """Mounts `base` of `lowers` (lowest first) and makes the writable side; `build` when missing.

    Returns the mount targets that the image does not have and that exist only in the shim, as
    paths relative to the root. Raises `AgentError` of kind `isolation` when overlayfs is refused.
    """
    make_build(build, ("layers", "shim", "base", "upper", "work", "rootfs"))
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
            made = make_targets(Side(shim, base, base), targets)
        if made:
            _mount_base(build)
    with opened(f"{build}/base") as base, opened(f"{build}/upper") as upper:
        copy_attributes(base, upper, mounted=True)
    return made


def mount(build: str) -> None:
    """Mounts `rootfs`, writable."""
    if is_whole(build):
        return  # a copy, in which whoever runs something makes the mount points that it needs
    # `volatile` spares every fsync of the payload: a half-built upper directory is never reused.
    _mount_overlay(build, "rootfs", "upperdir=upper,workdir=work,volatile")


def unmount(build: str) -> None:
    """Detaches `rootfs` and what was injected; `base` and `upper` stay for reading the changes."""
    for name in ("rootfs", "secrets"):
        if os.path.ismount(f"{build}/{name}"):
            syscalls.umount2(f"{build}/{name}", syscalls.MNT_DETACH)


def release(path: str) -> None:
    """Detaches all that is mounted at or below `path`, so that it can be removed.

    Raises `AgentError` when something stays: removing would go on in it.
    """
    for point in _mounted_below(path):
        try:
            syscalls.umount2(os.fsdecode(point), syscalls.MNT_DETACH)
        except OSError as error:
            if error.errno != errno.EINVAL:  # gone with the one that it was mounted in
                raise
    left = _mounted_below(path)
    if left:
        raise AgentError("isolation", f"`{os.fsdecode(left[0])}` cannot be unmounted")


def _mounted_below(path: str) -> list[bytes]:
    """Mount points at or below `path`, the deepest first; one for each mount on it."""
    # The last part as it is: what a link of this name leads to, as to `/`, is not meant.
    parent, name = os.path.split(path)
    top = os.fsencode(os.path.join(os.path.realpath(parent), name))
    points = [unescaped(line.split(b" ")[4]) for line in mountinfo()]
    below = [one for one in points if one == top or one.startswith(top.rstrip(b"/") + b"/")]
    return sorted(below, key=lambda point: -point.count(b"/"))


def mountinfo() -> list[bytes]:
    """What is mounted where this process is, a line each (proc_pid_mountinfo(5))."""
    with open("/proc/self/mountinfo", "rb") as file:
        return file.readlines()


def unescaped(field: bytes) -> bytes:
    """A path in proc_pid_mountinfo(5): spaces and the like are octal numbers there."""
    return re.sub(rb"\\([0-7]{3})", lambda found: bytes([int(found[1], 8)]), field)


def overlay_refusal(directory: str) -> str | None:
    """Why overlayfs cannot be used in a directory of ours; `None`: it was tried and works."""
    here = f"{directory}/try-overlay"
    try:
        make_build(here, ("layers", "base", "upper", "work", "rootfs"))
        for number in (0, 1):
            os.makedirs(f"{here}/layers/{number}/directory/inner")
        os.mkdir(f"{here}/shim")
        mount(here)
        try:
            # Without `userxattr` it mounts, and this is EIO.
            os.rmdir(f"{here}/rootfs/directory/inner")
            os.rmdir(f"{here}/rootfs/directory")
            os.mkdir(f"{here}/rootfs/directory")
            shown_entries = os.listdir(f"{here}/rootfs/directory")
        finally:
            unmount(here)
        marked = _is_opaque(f"{here}/upper/directory")
    except AgentError as error:
        return error.message
    except OSError as error:
        return f"overlayfs does not work in the store's file system: {error.strerror}"
    finally:
        with opened(directory) as above:
            remove_tree(above, os.path.basename(here))
    if shown_entries or not marked:
        return "overlayfs does not keep its marks in the store's file system"
    return None


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
            target, _ = make_directories(shim, base, os.fsencode(path))
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
        if kind in ("directory", "opaque") and path not in layer.implied:
            return None if number == _topmost(path, lowers) else number
        if kind == "opaque":
            return None
    return None


def _topmost(path: str, lowers: list[LowerLayer]) -> int:
    return max(n for n, layer in enumerate(lowers) if _look(layer.path, path) != "absent")


def _look(root: str, path: str) -> str:
    """What a layer has at `path`: absent, directory, opaque (a directory that hides) or hidden."""
    here = root
    kind = "directory"
    for part in path.split("/") if path else []:
        here = f"{here}/{part}"
        try:
            facts = os.lstat(here)
        except (FileNotFoundError, NotADirectoryError):
            return "hidden" if kind == "opaque" else "absent"
        if not stat.S_ISDIR(facts.st_mode):
            return "hidden"
        if _is_opaque(here):
            kind = "opaque"
    return kind


def _is_opaque(path: str) -> bool:
    try:
        return os.getxattr(path, OPAQUE_XATTR, follow_symlinks=False) == b"y"
    except OSError:
        return False
