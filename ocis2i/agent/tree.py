"""Directory trees by descriptors: nothing here follows a link that an image brought along."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from ocis2i import syscalls
from ocis2i.agent.owners import give, give_entry

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

# Overlayfs keeps its own marks in this namespace; with `userxattr` it hides them from containers
# and shows `user.overlay.overlay.X` as `user.overlay.X` (Documentation/filesystems/overlayfs.rst).
OVERLAY_XATTR = b"user.overlay."
ESCAPED_XATTR = OVERLAY_XATTR + b"overlay."
OPAQUE_XATTR = "user.overlay.opaque"
ORIGIN_XATTR = "user.overlay.origin"
_IMAGE_XATTRS = (b"user.", b"system.posix_acl_", b"security.capability")

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_DEEPEST = 1000
# So many directories are worth another process.
_MANY = 32
_CHUNK = 1 << 30  # sendfile(2) takes no more than 2 GiB at once


class Attributes(NamedTuple):
    """What a copied file shall be like; `mtime_ns` in nanoseconds."""

    uid: int
    gid: int
    mode: int
    mtime_ns: int


@contextmanager
def opened(path: str) -> Iterator[int]:
    """A directory's descriptor, closed at the end."""
    fd = os.open(path, DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def opened_below(root: int, path: bytes) -> Iterator[int]:
    """The same of a directory below `root`, whatever links lead to it inside."""
    fd = syscalls.open_in_root(root, path, DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


def remove_tree(parent_fd: int, name: bytes | str, *, by_two: bool = False) -> None:
    """Removes whatever `name` is, whatever its mode. A name that is not there is no error.

    Iterative: a tree may be deeper than Python's stack and its path longer than PATH_MAX. Many
    directories are removed `by_two` processes.
    """
    try:
        is_directory = _unlink(parent_fd, name)
    except FileNotFoundError:
        return
    if not is_directory:
        return
    top = _open_to_empty(parent_fd, name)
    try:
        # Another time for what a helper left, which failed: what was wrong is said here.
        while pending := [entry for entry in os.listdir(top) if _unlink(top, entry)]:
            _flatten(top, pending, by_two=by_two)
    finally:
        os.close(top)
    os.rmdir(name, dir_fd=parent_fd)


def _flatten(top: int, pending: list[str], *, by_two: bool) -> None:
    """Removes the directories `pending` of `top`, with help that may fail.

    Every directory found is moved up beside the top one, so that no more than three descriptors
    are open at any depth.
    """
    taken = frozenset(pending)
    serial = helper = 0
    try:
        while pending:
            if by_two and len(pending) >= _MANY and not _lives(helper):
                half = pending[::2]
                if helper := _fork(top, half):
                    del pending[::2]
            current = pending.pop()
            inner = _open_to_empty(top, current)
            try:
                for entry in os.listdir(inner):
                    if _unlink(inner, entry):
                        while (lifted := f".ocis2i-{os.getpid()}-{serial}") in taken:
                            serial += 1
                        serial += 1
                        _open_up(inner, entry)  # its `..` is written
                        os.rename(entry, lifted, src_dir_fd=inner, dst_dir_fd=top)
                        pending.append(lifted)
            finally:
                os.close(inner)
            os.rmdir(current, dir_fd=top)
    finally:
        if helper:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(helper, 0)


def _fork(top: int, pending: list[str]) -> int:
    """Another process, which removes the directories `pending` of `top`; 0 where there is none."""
    try:
        child = os.fork()
    except OSError:  # too many processes
        return 0
    if child == 0:
        try:
            syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
            _flatten(top, pending, by_two=False)
        finally:
            os._exit(0)
    return child


def _lives(child: int) -> bool:
    if not child:
        return False
    try:
        return os.waitpid(child, os.WNOHANG)[0] == 0
    except ChildProcessError:
        return False


def _open_to_empty(parent_fd: int, name: bytes | str) -> int:
    _open_up(parent_fd, name)
    return os.open(name, DIRECTORY, dir_fd=parent_fd)


def _open_up(parent_fd: int, name: bytes | str) -> None:
    """Lets us into a directory of our own: whoever is not root is kept out by its mode."""
    if os.geteuid() == 0:
        return
    with contextlib.suppress(PermissionError):  # somebody else's: then what follows says so
        # By a descriptor: chmod(2) would follow a link that took the name meanwhile.
        fd = os.open(name, DIRECTORY | os.O_PATH, dir_fd=parent_fd)
        try:
            os.chmod(f"/proc/self/fd/{fd}", 0o700)
        finally:
            os.close(fd)


def remove_merged(parent_fd: int, name: bytes | str, depth: int = 0) -> None:
    """`remove_tree` in a mounted overlay, which moves no directory of its lower layers (`EXDEV`).

    Raises `OSError` (`ELOOP`) for a tree deeper than what a layer can hold.
    """
    try:
        if not _unlink(parent_fd, name):
            return
    except FileNotFoundError:
        return
    if depth > _DEEPEST:
        raise OSError(errno.ELOOP, f"directories lie deeper than {_DEEPEST} levels")
    inner = _open_to_empty(parent_fd, name)
    try:
        for entry in os.listdir(inner):
            remove_merged(inner, entry, depth + 1)
    finally:
        os.close(inner)
    os.rmdir(name, dir_fd=parent_fd)


def _unlink(directory: int, entry: bytes | str) -> bool:
    """Removes a non-directory; true when `entry` is a directory and still there."""
    try:
        os.unlink(entry, dir_fd=directory)
    except OSError as error:
        if error.errno in (errno.EISDIR, errno.EPERM):
            return True
        raise
    return False


def merge_tree(source: int, name: bytes, into: int, as_name: bytes) -> None:
    """Moves the entry `name` of `source` over what is `as_name` in `into`.

    Directories merge and get the attributes of the one that comes; anything else gives way.
    """
    facts = os.stat(name, dir_fd=source, follow_symlinks=False)
    if stat.S_ISDIR(facts.st_mode) and _is_directory(into, as_name):
        with _directory(source, name) as above, _directory(into, as_name) as below:
            for entry in map(os.fsencode, os.listdir(above)):
                merge_tree(above, entry, below, entry)
            for known, _ in image_xattrs(below, mounted=True):
                os.removexattr(below, known)
            copy_attributes(above, below)
            os.utime(below, ns=(facts.st_atime_ns, facts.st_mtime_ns))
        os.rmdir(name, dir_fd=source)
        return
    remove_tree(into, as_name)
    try:
        os.rename(name, as_name, src_dir_fd=source, dst_dir_fd=into)
    except OSError as error:
        # Whoever is not root moves no directory that is read-only: its `..` would be written.
        if error.errno not in (errno.EXDEV, errno.EACCES):
            raise
        _copy_over(source, name, into, as_name)
        remove_tree(source, name)


def _copy_over(source: int, name: bytes, into: int, as_name: bytes) -> None:
    """Copies a tree to another file system, but for what is no file, directory or link."""
    facts = os.stat(name, dir_fd=source, follow_symlinks=False)
    if stat.S_ISDIR(facts.st_mode):
        os.mkdir(as_name, 0o700, dir_fd=into)
        with _directory(source, name) as above, _directory(into, as_name) as below:
            for entry in map(os.fsencode, os.listdir(above)):
                _copy_over(above, entry, below, entry)
            copy_attributes(above, below)
            os.utime(below, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    elif stat.S_ISREG(facts.st_mode):
        attributes = Attributes(
            facts.st_uid, facts.st_gid, stat.S_IMODE(facts.st_mode), facts.st_mtime_ns
        )
        content = open_regular(name, source)
        try:
            write_file(into, as_name, content, attributes)
        finally:
            os.close(content)
    elif stat.S_ISLNK(facts.st_mode):
        os.symlink(os.readlink(name, dir_fd=source), as_name, dir_fd=into)
        give_entry(into, as_name, facts.st_uid, facts.st_gid)
        ns = (facts.st_atime_ns, facts.st_mtime_ns)
        os.utime(as_name, ns=ns, dir_fd=into, follow_symlinks=False)


@contextmanager
def _directory(parent: int, name: bytes) -> Iterator[int]:
    fd = os.open(name, DIRECTORY, dir_fd=parent)
    try:
        yield fd
    finally:
        os.close(fd)


def _is_directory(parent: int, name: bytes) -> bool:
    try:
        facts = os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return stat.S_ISDIR(facts.st_mode)


@contextmanager
def times_kept(directory: int) -> Iterator[None]:
    """An open directory has the times from before at the end."""
    facts = os.fstat(directory)
    yield
    os.utime(directory, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def measure(path: str) -> tuple[int, int]:
    """How many entries a tree has and how many bytes its regular files hold."""
    entries = size = 0
    root = os.open(path, DIRECTORY)
    try:
        pending = ["."]
        while pending:
            inside = pending.pop()
            fd = os.open(inside, DIRECTORY, dir_fd=root)
            try:
                with os.scandir(fd) as listing:
                    for entry in listing:
                        entries += 1
                        if entry.is_dir(follow_symlinks=False):
                            pending.append(f"{inside}/{entry.name}")
                        elif entry.is_file(follow_symlinks=False):
                            size += entry.stat(follow_symlinks=False).st_size
            finally:
                os.close(fd)
    finally:
        os.close(root)
    return entries, size


def copy_attributes(source: int, target: int, *, mounted: bool = False) -> None:
    """Owner, mode, times and extended attributes of one open directory to another.

    The source is a layer's own directory or, `mounted`, what overlayfs shows of it.
    """
    facts = os.fstat(source)
    give(target, facts.st_uid, facts.st_gid)
    for name, value in read_xattrs(source):
        if mounted and name.startswith(OVERLAY_XATTR):
            os.setxattr(target, ESCAPED_XATTR + name[len(OVERLAY_XATTR) :], value)
        elif name.startswith(ESCAPED_XATTR) or not name.startswith(OVERLAY_XATTR):
            os.setxattr(target, name, value)
    os.fchmod(target, stat.S_IMODE(facts.st_mode))
    os.utime(target, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def open_regular(name: bytes | str, directory: int | None = None) -> int:
    """A regular file, open for reading: no link, and no pipe to wait for.

    Raises `OSError` (`ELOOP` for a link, `EINVAL` for what is no file).
    """
    fd = os.open(name, _READ, dir_fd=directory)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "it is no regular file", os.fsdecode(name))
    return fd


def clear_name(directory: int, name: bytes) -> bool:
    """Takes away a file, a link or whatever else has the name; false: it is a directory."""
    try:
        return not _unlink(directory, name)
    except FileNotFoundError:
        return True


def write_file(
    directory: int, name: bytes, source: int, attributes: Attributes, limit: int | None = None
) -> int:
    """Copies the open file `source` to the new file `name`; returns its size in bytes.

    No more than `limit` bytes are copied. Raises `FileExistsError` when the name is taken.
    """
    out = os.open(name, _CREATE, 0o600, dir_fd=directory)
    size = 0
    try:
        while sent := os.sendfile(out, source, size, _chunk(limit, size)):
            size += sent
        # chown clears setuid bits and writing changes the time: in this order.
        give(out, attributes.uid, attributes.gid)
        os.fchmod(out, attributes.mode)
        os.utime(out, ns=(attributes.mtime_ns, attributes.mtime_ns))
    finally:
        os.close(out)
    return size


def _chunk(limit: int | None, size: int) -> int:
    return _CHUNK if limit is None else min(_CHUNK, limit - size)


def read_xattrs(fd: int) -> list[tuple[bytes, bytes]]:
    """All extended attributes of an open file that this process may see, sorted by name."""
    try:
        names = os.listxattr(fd)
    except OSError as error:
        if error.errno in (errno.ENOTSUP, errno.EPERM, errno.EACCES):
            return []
        raise
    found = []
    for name in sorted(names):
        try:
            found.append((os.fsencode(name), os.getxattr(fd, name)))
        except OSError as error:  # seen in the list, but not ours to read, as security.ima
            if error.errno not in (errno.ENODATA, errno.EPERM, errno.EACCES, errno.ENOTSUP):
                raise
    return found


def open_to_walk(parent: int, name: bytes) -> int:
    """A directory, open, whose entries can be listed and looked at; or raises `PermissionError`."""
    fd = os.open(name, DIRECTORY, dir_fd=parent)
    try:
        os.stat(b".", dir_fd=fd)  # who may list them may not always look at them
    except OSError:
        os.close(fd)
        raise
    return fd


@contextmanager
def readable(parent: int, name: bytes, facts: os.stat_result) -> Iterator[None]:
    """Lets us read a file or directory of our own meanwhile; afterwards its mode is as it was."""
    mode = stat.S_IMODE(facts.st_mode)
    wanted = 0o500 if stat.S_ISDIR(facts.st_mode) else 0o400
    if mode & wanted == wanted or facts.st_uid != os.geteuid():
        yield
        return
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        os.chmod(f"/proc/self/fd/{fd}", mode | wanted)
        try:
            yield
        finally:
            os.chmod(f"/proc/self/fd/{fd}", mode)
    finally:
        os.close(fd)


def image_xattrs(fd: int, *, mounted: bool = False) -> tuple[tuple[bytes, bytes], ...]:
    """The extended attributes that belong into an image, sorted.

    Overlayfs' own marks are left out; those it escaped for the container get their name back.
    `mounted` is seen through overlayfs, which did both already.
    """
    found = []
    for name, value in read_xattrs(fd):
        if name.startswith(ESCAPED_XATTR) and not mounted:
            found.append((OVERLAY_XATTR + name[len(ESCAPED_XATTR) :], value))
        elif name.startswith(_IMAGE_XATTRS) and (mounted or not name.startswith(OVERLAY_XATTR)):
            found.append((name, value))
    return tuple(sorted(found))


def resolve(root_fd: int, path: bytes) -> tuple[bytes, bytes]:
    """Where `path` leads inside a root: the part that exists, links resolved, and the rest.

    Both are relative to the root, without leading or trailing slash. `..` and absolute links stay
    inside; a link to nothing counts as the place that it names. The rest has no `..` in it: whoever
    makes it must not be led upwards.
    """
    todo = [part for part in path.split(b"/") if part not in (b"", b".")][::-1]
    done: list[bytes] = []
    missing: list[bytes] = []
    links = 0
    while todo:
        part = todo.pop()
        if part == b"..":
            del (missing or done)[-1:]
            continue
        here = b"/".join([*done, part])
        target = None if missing else _read_link(root_fd, here)
        if target is None:
            missing.append(part)
            continue
        if not target:
            done.append(part)
            continue
        links += 1
        if links > 40:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        if target.startswith(b"/"):
            done = []
        todo += [piece for piece in target.split(b"/") if piece not in (b"", b".")][::-1]
    return b"/".join(done), b"/".join(missing)


def join(found: bytes, missing: bytes) -> bytes:
    """The one path that `resolve` took apart; empty for the root."""
    return b"/".join(part for part in (found, missing) if part)


def _read_link(root_fd: int, path: bytes) -> bytes | None:
    """A link's target, nothing for what is no link, `None` where there is nothing."""
    try:
        fd = syscalls.open_in_root(root_fd, path, os.O_PATH | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        if not stat.S_ISLNK(os.fstat(fd).st_mode):
            return b""
        return os.readlink(b"", dir_fd=fd)
    finally:
        os.close(fd)
