"""The writable tree of a build: overlayfs over unpacked layers, inside the agent's mount namespace.

In the build's directory:  `layers/N` links to the unpacked layers, `shim` a directory layer of our
own on top of them, `base` the image read-only, `upper` and `work` the writable side, `rootfs` the
whole. `upper` is the change set (`ocis2i.agent.changes` reads it). A session has one such directory
or, for the previous and the runtime image, more of them below its own.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from ocis2i import syscalls
from ocis2i.agent.failure import AgentError, explain
from ocis2i.agent.owners import give, give_entry
from ocis2i.agent.tree import (
    DIRECTORY,
    OPAQUE_XATTR,
    Attributes,
    clear_name,
    copy_attributes,
    join,
    merge_tree,
    open_regular,
    remove_merged,
    remove_tree,
    resolve,
    write_file,
)

_OPTIONS = "userxattr,index=off"


class LowerLayer(NamedTuple):
    """An unpacked layer: its directory, and the directories in it that no entry described.

    `whiteouts` and `opaque` are paths where the disk could not hold the mark for overlayfs.
    """

    path: str
    implied: tuple[str, ...]
    whiteouts: tuple[str, ...] = ()
    opaque: tuple[str, ...] = ()


class Target(NamedTuple):
    """A place that something will be mounted on: `path` in the container, a directory or a file."""

    path: str
    directory: bool


class Upload(NamedTuple):
    """A tree to be in the container before it starts: `name` in the session's directory becomes
    `path` in the container, everything in it owned by `uid`:`gid`."""

    name: str
    path: str
    uid: int
    gid: int


class Side(NamedTuple):
    """Where things are put: the tree `into`, of which the container sees `seen`.

    Before the rootfs is mounted these are the upper directory and the image below it; `base` is
    then the image, else -1: a mounted tree has the image's directories in it.
    """

    into: int
    seen: int
    base: int


class Placed(NamedTuple):
    """Real paths of what was put into the container, and the directories made above them; both
    relative to the root."""

    paths: tuple[bytes, ...]
    made: tuple[bytes, ...]


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


def make_build(build: str, names: tuple[str, ...]) -> None:
    """Makes a build's directory, when it is missing, and new directories in it."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(build, 0o700)
    for name in names:
        os.mkdir(f"{build}/{name}", 0o755)


def make_targets(side: Side, targets: Sequence[Target]) -> list[str]:
    """Makes the mount targets that the image lacks; all paths made, sorted."""
    return sorted({path for target in targets for path in _make_target(side, target)})


@contextmanager
def opened(path: str) -> Iterator[int]:
    """A directory's descriptor, closed at the end."""
    fd = os.open(path, DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


def is_whole(build: str) -> bool:
    """Whether `rootfs` has all that the container sees: a copy always, an overlay once mounted."""
    return not os.path.lexists(f"{build}/upper") or os.path.ismount(f"{build}/rootfs")


def _tree(build: str) -> str:
    """The container's tree: a link leads to that of a container which was there before."""
    rootfs = f"{build}/rootfs"
    return os.readlink(rootfs) if os.path.islink(rootfs) else rootfs


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


def place(session: str, build: str, uploads: list[Upload]) -> Placed:
    """Moves trees of the session's directory into the writable side; before `mount`.

    They merge with what is there, and win.
    """
    paths: list[bytes] = []
    made: list[bytes] = []
    with writable(build) as side:
        for upload in uploads:
            path, above = _place_one(session, side, upload)
            paths.append(path)
            made += above
    return Placed(tuple(paths), tuple(made))


def make_directory(build: str, path: str) -> tuple[bytes, ...]:
    """`mkdir -p` of `path` in the writable side, after `place`; returns what was made."""
    with writable(build) as side:
        found, missing = resolve(side.seen, os.fsencode(path))
        if not missing:
            return ()
        try:
            fd, made = _make_directories(side.into, side.base, join(found, missing))
        except OSError as error:
            raise explain(error, f"the directory `{path}` cannot be made") from error
        os.close(fd)
        return tuple(made)


def put_file(build: str, source: str, path: str, owner: tuple[int, int], mode: int) -> Placed:
    """Copies the regular file `source` of the host to `path`; what else is there stays.

    A file or a link that has the name is replaced. Links above it are followed inside the root.
    """
    parent, _, name = os.fsencode(path).rstrip(b"/").rpartition(b"/")
    if name in (b"", b".", b".."):
        raise AgentError("usage", f"`{path}` cannot be the name of a file")
    with writable(build) as side, _file_to_put(source, path) as content:
        try:
            found, missing = resolve(side.seen, parent)
            above = join(found, missing)
            if not missing and not _is_directory(side.seen, found):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), parent)
            directory, made = _make_directories(side.into, side.base, above)
        except OSError as error:
            raise explain(error, f"`{path}` cannot be put into the image") from error
        try:
            _give_made(directory, made, above, *owner)
            whole = join(above, name)
            if _is_directory(side.seen, whole) or not clear_name(directory, name):
                raise AgentError("image", f"`{path}` is a directory in the image, not a file")
            mtime_ns = os.fstat(content).st_mtime_ns
            write_file(directory, name, content, Attributes(*owner, mode, mtime_ns))
        except OSError as error:
            raise explain(error, f"`{path}` cannot be put into the image") from error
        finally:
            os.close(directory)
    return Placed((whole,), tuple(made))


def drop(tree: str, path: str) -> None:
    """Removes `path` from the mounted `tree`, with all that is in it; nothing there is no error.

    A link that has the name is removed and not followed; links above it lead inside the root: a
    script may have put them there for us to remove something of the host.
    """
    parent, _, name = os.fsencode(path).rstrip(b"/").rpartition(b"/")
    if name in (b"", b".", b".."):
        raise AgentError("usage", f"`{path}` cannot be removed")
    with opened(tree) as root:
        try:
            directory = syscalls.open_in_root(root, parent, os.O_RDONLY | os.O_DIRECTORY)
        except (FileNotFoundError, NotADirectoryError):
            return
        try:
            remove_merged(directory, name)
        except OSError as error:
            raise explain(error, f"`{path}` cannot be removed from the image") from error
        finally:
            os.close(directory)


@contextmanager
def _file_to_put(source: str, path: str) -> Iterator[int]:
    try:
        fd = open_regular(source)
    except OSError as error:
        raise explain(error, f"`{source}` cannot be read to be `{path}`") from error
    try:
        yield fd
    finally:
        os.close(fd)


def _is_directory(root: int, path: bytes) -> bool:
    try:
        fd = syscalls.open_in_root(root, path, os.O_PATH | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        return stat.S_ISDIR(os.fstat(fd).st_mode)
    finally:
        os.close(fd)


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
    top = os.fsencode(os.path.realpath(path))
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


def _mount_base(build: str) -> None:
    if os.path.ismount(f"{build}/base"):
        syscalls.umount2(f"{build}/base", syscalls.MNT_DETACH)
    _mount_overlay(build, "base")


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
            target, _ = _make_directories(shim, base, os.fsencode(path))
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


# --- places for mounts and uploads ---


def _make_target(side: Side, target: Target) -> list[str]:
    """Makes a mount target where the image has none; the paths made."""
    found, missing = resolve(side.seen, os.fsencode(target.path))
    if not found and not missing:  # an image's link would have it over everything
        raise AgentError("usage", f"`{target.path}` is `/` in the image: nothing can go there")
    if not missing:
        return []
    path = join(found, missing)
    parent, _, name = path.rpartition(b"/")
    made = [b"/".join(path.split(b"/")[: n + 1]) for n in range(path.count(b"/") + 1)]
    fd, _ = _make_directories(side.into, side.base, path if target.directory else parent)
    if not target.directory:
        os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644, dir_fd=fd))
    os.close(fd)
    existing = found.count(b"/") + 1 if found else 0
    return [os.fsdecode(one) for one in made[existing:]]


def _make_directories(into: int, base: int, path: bytes) -> tuple[int, list[bytes]]:
    """`mkdir -p` below `into`; directories that `base` has too look as they do there.

    Returns the last one, open, and the paths of those that are new, which are 0755 and root's.
    """
    fd = os.dup(into)
    seen = b""
    new: list[bytes] = []
    for part in path.split(b"/") if path else []:
        seen = seen + b"/" + part if seen else part
        before = os.fstat(fd)
        try:
            os.mkdir(part, 0o755, dir_fd=fd)
            made = True
        except FileExistsError:
            made = False
        inner = os.open(part, DIRECTORY, dir_fd=fd)
        if made and not _look_like(base, seen, inner):
            new.append(seen)
        elif made:  # nothing new is in the directory above, and its time says so
            os.utime(fd, ns=(before.st_atime_ns, before.st_mtime_ns))
        os.close(fd)
        fd = inner
    return fd, new


def _look_like(base: int, path: bytes, target: int) -> bool:
    """Gives a directory the attributes that it has in the base; false: it is not there."""
    if base < 0:
        return False
    try:
        source = syscalls.open_in_root(base, path, DIRECTORY)
    except (FileNotFoundError, NotADirectoryError):
        return False
    copy_attributes(source, target, mounted=True)
    os.close(source)
    return True


def _place_one(session: str, side: Side, upload: Upload) -> tuple[bytes, list[bytes]]:
    found, missing = resolve(side.seen, os.fsencode(upload.path))
    path = join(found, missing)
    parent, _, name = path.rpartition(b"/")
    if not name:
        raise AgentError("usage", f"`{upload.path}` cannot be the destination of files")
    if upload.name.startswith("/") or ".." in upload.name.split("/"):
        raise AgentError("usage", f"`{upload.name}` is not in the session's directory")
    source = f"{session}/{upload.name}"
    give_away(source, upload.uid, upload.gid)
    try:
        directory, made = _make_directories(side.into, side.base, parent)
    except OSError as error:
        raise AgentError(
            "usage",
            f"files cannot be placed at `{upload.path}`: {error.strerror}",
            "choose another destination with --destination",
        ) from error
    try:
        _give_made(directory, made, parent, upload.uid, upload.gid)
        if side.base < 0:
            with opened(session) as above:
                merge_tree(above, os.fsencode(upload.name), directory, name)
        else:  # overlayfs merges by itself
            os.rename(source, name, dst_dir_fd=directory)
    except OSError as error:
        raise explain(error, f"files cannot be placed at `{upload.path}`") from error
    finally:
        os.close(directory)
    return path, made


def _give_made(directory: int, made: list[bytes], path: bytes, uid: int, gid: int) -> None:
    if path not in made:
        return
    if path == b"tmp":
        os.fchmod(directory, 0o1777)  # everybody's, as in the images that have it
    else:
        # A destination that the image lacks is the assemble user's: the script works in it.
        give(directory, uid, gid)


def give_away(path: str, uid: int, gid: int) -> None:
    """Changes the owner of a whole tree, links not followed; modes stay."""
    with opened(path) as root:
        give(root, uid, gid)
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
            give_entry(directory, entry.name, uid, gid)
            if stat.S_ISDIR(facts.st_mode):
                directories.append(entry.name)
            elif stat.S_ISREG(facts.st_mode) and facts.st_mode & 0o6000:
                # chown took the setuid bits away
                os.chmod(entry.name, stat.S_IMODE(facts.st_mode), dir_fd=directory)
    return directories
