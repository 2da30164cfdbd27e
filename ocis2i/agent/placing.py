"""What a build puts into its tree, and takes out of it: files, trees, places for mounts.

Paths are those of the container: their links are followed inside its root.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from ocis2i import syscalls
from ocis2i.agent.failure import AgentError, explain
from ocis2i.agent.owners import give, give_entry
from ocis2i.agent.sides import Side, writable
from ocis2i.agent.tree import (
    DIRECTORY,
    Attributes,
    clear_name,
    copy_attributes,
    join,
    merge_tree,
    open_regular,
    opened,
    remove_merged,
    resolve,
    write_file,
)


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


class Placed(NamedTuple):
    """Real paths of what was put into the container, and the directories made above them; both
    relative to the root."""

    paths: tuple[bytes, ...]
    made: tuple[bytes, ...]


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
            fd, made = make_directories(side.into, side.base, join(found, missing))
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
            directory, made = make_directories(side.into, side.base, above)
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


def make_targets(side: Side, targets: Sequence[Target]) -> list[str]:
    """Makes the mount targets that the image lacks; all paths made, sorted."""
    return sorted({path for target in targets for path in _make_target(side, target)})


def make_directories(into: int, base: int, path: bytes) -> tuple[int, list[bytes]]:
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


def _place_one(session: str, side: Side, upload: Upload) -> tuple[bytes, list[bytes]]:
    found, missing = resolve(side.seen, os.fsencode(upload.path))
    path = join(found, missing)
    parent, _, name = path.rpartition(b"/")
    if not name:
        raise AgentError("usage", f"`{upload.path}` cannot be the destination of files")
    if upload.name.startswith("/") or ".." in upload.name.split("/"):
        raise AgentError("usage", f"`{upload.name}` is not in the session's directory")
    source = f"{session}/{upload.name}"
    _give_away(source, upload.uid, upload.gid)
    try:
        directory, made = make_directories(side.into, side.base, parent)
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
    fd, _ = make_directories(side.into, side.base, path if target.directory else parent)
    if not target.directory:
        os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644, dir_fd=fd))
    os.close(fd)
    existing = found.count(b"/") + 1 if found else 0
    return [os.fsdecode(one) for one in made[existing:]]


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


def _give_made(directory: int, made: list[bytes], path: bytes, uid: int, gid: int) -> None:
    if path not in made:
        return
    if path == b"tmp":
        os.fchmod(directory, 0o1777)  # everybody's, as in the images that have it
    else:
        # A destination that the image lacks is the assemble user's: the script works in it.
        give(directory, uid, gid)


def _give_away(path: str, uid: int, gid: int) -> None:
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
