"""Applies a layer's tar to a directory, with right owners, and never outside of it.

Whiteouts become what overlayfs knows: a character device 0:0, and `user.overlay.opaque`
(Documentation/filesystems/overlayfs.rst). Rules of the format: image-spec `layer.md`.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, NamedTuple

from ocis2i import syscalls, tar
from ocis2i.agent.failure import AgentError, explain
from ocis2i.agent.owners import ROOT, Owner, give, give_entry, squashed
from ocis2i.agent.tree import (
    DIRECTORY,
    OPAQUE_XATTR,
    ORIGIN_XATTR,
    OVERLAY_XATTR,
    measure,
    remove_tree,
    resolve,
)
from ocis2i.layers import OPAQUE_MARKER, WHITEOUT_PREFIX
from ocis2i.tar import Header

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_PARENT = os.O_PATH | os.O_DIRECTORY
_CACHED = 64
_CHUNK = 1 << 20
_WHITEOUT_MODE = 0o020000  # S_IFCHR
# Overlayfs refuses whiteouts made by others, an old tmpfs or NFS has no attributes of users.
_NO_MARK = (errno.EPERM, errno.ENOTSUP, errno.EACCES, errno.EINVAL)
_ACL_XATTR = b"system.posix_acl_"
_DEFAULT_ACL = "system.posix_acl_default"
_EARLIEST_NS = -(2**31) * 10**9
_LATEST_NS = 2**33 * 10**9
_DEEPEST = 1000
_LAST_ID = 2**32 - 2  # the one above means "leave it" to chown(2)
# Errors that no honest entry meets: the archive's fault, and not the host's.
_ITS_OWN_FAULT = frozenset(
    (
        errno.ENAMETOOLONG,
        errno.ELOOP,
        errno.ENOTDIR,
        errno.ENOENT,  # a symbolic link to the empty name
        errno.EPERM,  # a hard link to a directory
        errno.EMLINK,
        errno.EINVAL,
        errno.ERANGE,  # the name of an extended attribute
        errno.E2BIG,  # its value
    )
)


class Limits(NamedTuple):
    """How much one layer may be: bytes of content and number of entries."""

    size_bytes: int
    entries: int


class Unpacked(NamedTuple):
    """What was unpacked. `implied` are directories that no entry described, relative paths.

    `owners` are those that the disk cannot remember: of all paths that are not root's. What it
    could not mark for overlayfs: `whiteouts`, and `opaque` directories. `made` and `made_bytes`
    are what `tree.measure` would find.
    """

    made: int
    made_bytes: int
    implied: tuple[bytes, ...]
    devices: int
    owners: dict[bytes, Owner]
    whiteouts: tuple[bytes, ...]
    opaque: tuple[bytes, ...]


def unpack(stream: BinaryIO, root: str, limits: Limits) -> Unpacked:
    """Unpacks a plain tar into the empty directory `root`.

    Raises `AgentError` of kind `image` for an archive that is broken or hostile, of kind `policy`
    for one beyond the limits, of kind `output` when the disk is full.
    """
    with _Unpacker(root, limits) as unpacker, _any_mode():
        reader = tar.Reader(stream)
        name = b""
        try:
            while (header := reader.next()) is not None:
                name = header.name
                unpacker.apply(header, reader)
            reader.drain()
            return unpacker.finish()
        except tar.TarError as error:
            raise AgentError("image", f"broken tar archive: {error}") from error
        except OSError as error:
            raise explain_entry(error, name) from error


@contextmanager
def _any_mode() -> Iterator[None]:
    """Files are made with the modes that the layer says, whatever the caller's umask is."""
    before = os.umask(0)
    try:
        yield
    finally:
        os.umask(before)


def explain_entry(error: OSError, name: bytes) -> AgentError:
    """An error met at an archive's entry: the archive's fault, or the host's."""
    shown = name.decode(errors="backslashreplace")
    if error.errno in _ITS_OWN_FAULT:
        return AgentError("image", f"entry `{shown}` cannot be unpacked: {error.strerror}")
    return explain(error, f"entry `{shown}` cannot be unpacked")


def split_name(name: bytes) -> tuple[bytes, bytes]:
    """Parent and last component of an entry's name, `.` and `//` cleaned, `..` applied.

    An absolute name counts from the image's root. Raises `AgentError` when `..` leads out of it.
    """
    parts: list[bytes] = []
    for part in name.split(b"/"):
        if part in (b"", b"."):
            continue
        if part != b"..":
            parts.append(part)
        elif parts:
            parts.pop()
        else:
            shown = name.decode(errors="backslashreplace")
            raise AgentError("image", f"hostile archive: entry `{shown}` leads out of the image")
    if len(parts) > _DEEPEST:
        raise AgentError("image", f"hostile archive: an entry lies {len(parts)} directories deep")
    return b"/".join(parts[:-1]), parts[-1] if parts else b""


class _Unpacker:
    """The state of one layer: open parents, directories to finish, what was seen."""

    def __init__(self, root: str, limits: Limits) -> None:
        self._root = os.open(root, DIRECTORY)
        self._limits = limits
        self._parents: dict[bytes, int] = {}
        self._directories: dict[bytes, Header] = {}
        self._implied: set[bytes] = {b""}
        self._opaque: set[bytes] = set()
        self._unmarked_whiteouts: set[bytes] = set()
        self._unmarked_opaque: set[bytes] = set()
        self._owners: dict[int, Owner] = {}
        self._entries = self._size = self._devices = 0
        # What is on the disk, as `tree.measure` counts: a hard link's file with each name.
        self._made = self._made_bytes = 0
        self._replaced = False
        self._squashed = squashed()
        self._inherits = _inherits(self._root)
        self._raw_parent: bytes | None = None
        self._clean_parent = b""

    def __enter__(self) -> _Unpacker:
        return self

    def __exit__(self, *exc: object) -> None:
        self._forget_parents()
        os.close(self._root)

    def _split(self, name: bytes) -> tuple[bytes, bytes]:
        """`split_name`, which most often has cleaned the same parent just before."""
        raw, _, last = name.rpartition(b"/")
        if last in (b"", b".", b".."):
            return split_name(name)
        if raw != self._raw_parent:
            self._clean_parent = split_name(name)[0]
            self._raw_parent = raw
        return self._clean_parent, last

    def apply(self, header: Header, content: tar.Reader) -> None:
        self._count(header)
        parent, name = self._split(header.name)
        if name.startswith(WHITEOUT_PREFIX):
            self._whiteout(parent, name)
        elif not name:
            self._take_root(header)
        elif header.kind in (tar.CHARACTER, tar.BLOCK_DEVICE):
            # A user namespace may not make devices (EPERM), and containers get their own /dev.
            # 0:0 could be made, but would be a whiteout.
            self._devices += 1
        elif header.kind == tar.DIRECTORY:
            self._directory(parent, name, header)
        else:
            self._non_directory(parent, name, header, content)

    def finish(self) -> Unpacked:
        # Last, because making entries changes the times, and a mode may lock us... not root, but
        # a directory without write permission would stop an agent with a single id.
        for path in sorted(self._directories, reverse=True):
            header = self._directories[path]
            fd = syscalls.open_in_root(self._root, path, DIRECTORY)
            try:
                self._set_attributes(fd, header)
            finally:
                os.close(fd)
        if self._replaced:
            self._made, self._made_bytes = measure(os.readlink(_fd_path(self._root)))
        return Unpacked(
            self._made,
            self._made_bytes,
            tuple(sorted(self._implied)),
            self._devices,
            _paths_of(self._root, self._owners),
            tuple(sorted(self._unmarked_whiteouts)),
            tuple(sorted(self._unmarked_opaque)),
        )

    def _count(self, header: Header) -> None:
        self._entries += 1
        self._size += header.size
        if self._entries > self._limits.entries:
            raise AgentError("policy", f"the layer has more than {self._limits.entries} entries")
        if self._size > self._limits.size_bytes:
            raise AgentError(
                "policy",
                f"the layer unpacks to more than {self._limits.size_bytes} bytes",
                "raise the limit with OCIS2I_LAYER_LIMIT if the image is to be trusted",
            )

    # --- parents ---

    def _parent(self, path: bytes) -> int:
        fd = self._parents.get(path)
        if fd is None:
            if len(self._parents) >= _CACHED:
                self._forget_parents()
            fd = self._open_parent(path)
            self._parents[path] = fd
        return fd

    def _open_parent(self, path: bytes) -> int:
        try:
            return syscalls.open_in_root(self._root, path, _PARENT)
        except FileNotFoundError:
            pass
        # Some part is missing: make it, one component after the other.
        above, _, last = path.rpartition(b"/")
        parent = self._parent(above)
        try:
            os.mkdir(last, 0o755, dir_fd=parent)
            self._made += 1
            self._implied.add(path)
        except FileExistsError:
            # A dangling link: what it names is made, inside the root.
            found, missing = resolve(self._root, path)
            self._parent(b"/".join(part for part in (found, missing) if part))
        return syscalls.open_in_root(self._root, path, _PARENT)

    def _forget_parents(self) -> None:
        for fd in self._parents.values():
            os.close(fd)
        self._parents.clear()

    # --- kinds of entries ---

    def _take_root(self, header: Header) -> None:
        if header.kind == tar.DIRECTORY:
            self._directories[b""] = header
            self._implied.discard(b"")

    def _whiteout(self, parent: bytes, name: bytes) -> None:
        if name == OPAQUE_MARKER:
            self._make_opaque(self._parent(parent), parent)
            return
        hidden = name[len(WHITEOUT_PREFIX) :]
        if hidden.startswith(WHITEOUT_PREFIX):
            return  # leftovers of aufs, which every tool skips
        if hidden in (b"", b".", b".."):
            raise AgentError("image", f"hostile archive: whiteout of `{os.fsdecode(hidden)}`")
        if parent in self._opaque:
            return  # hidden already; the device would show in a directory that nothing is below
        fd = self._parent(parent)
        path = parent + b"/" + hidden if parent else hidden
        try:
            os.mknod(hidden, _WHITEOUT_MODE, 0, dir_fd=fd)
            self._made += 1
            # With an origin, overlayfs looks for whiteouts also where it has nothing to merge.
            _set_xattr(_fd_path(fd), ORIGIN_XATTR, b"")
        except FileExistsError:
            # The entry came with this layer and stays; a whiteout is for the layers below.
            if path in self._directories or path in self._implied:
                self._make_opaque(self._parent(path), path)
        except OSError as error:
            if error.errno not in _NO_MARK:
                raise
            self._unmarked_whiteouts.add(path)

    def _make_opaque(self, fd: int, path: bytes) -> None:
        self._opaque.add(path)
        try:
            _set_xattr(_fd_path(fd), OPAQUE_XATTR, b"y")
        except OSError as error:
            if error.errno not in _NO_MARK:
                raise
            self._unmarked_opaque.add(path)

    def _directory(self, parent: bytes, name: bytes, header: Header) -> None:
        fd = self._parent(parent)
        path = parent + b"/" + name if parent else name
        hid_something = False
        try:
            os.mkdir(name, 0o700, dir_fd=fd)
        except FileExistsError:
            if not _is_directory(fd, name):
                hid_something = _is_whiteout(fd, name)
                self._replace(fd, name)
                os.mkdir(name, 0o700, dir_fd=fd)
                self._made += 1
        else:
            self._made += 1
        self._directories[path] = header
        self._implied.discard(path)
        if hid_something:
            self._make_opaque(self._parent(path), path)

    def _non_directory(
        self, parent: bytes, name: bytes, header: Header, content: tar.Reader
    ) -> None:
        fd = self._parent(parent)
        try:
            self._make(fd, name, header, content)
        except FileExistsError:
            self._replace(fd, name)
            self._make(fd, name, header, content)
        self._made += 1

    def _replace(self, fd: int, name: bytes) -> None:
        """Makes room: of two entries with one name the later counts."""
        self._replaced = True
        self._forget_directories_of(fd, name)
        remove_tree(fd, name)

    def _forget_directories_of(self, fd: int, name: bytes) -> None:
        if _is_directory(fd, name):
            base = os.readlink(_fd_path(self._root))
            path = os.readlink(_fd_path(fd))[len(base) + 1 :] + "/" + os.fsdecode(name)
            gone = os.fsencode(path.lstrip("/"))
            for known in (
                self._directories,
                self._implied,
                self._opaque,
                self._unmarked_whiteouts,
                self._unmarked_opaque,
            ):
                for other in [p for p in known if p == gone or p.startswith(gone + b"/")]:
                    known.pop(other) if isinstance(known, dict) else known.discard(other)
            self._forget_parents_except(fd)

    def _forget_parents_except(self, kept: int) -> None:
        for path in [path for path, fd in self._parents.items() if fd != kept]:
            os.close(self._parents.pop(path))

    def _make(self, fd: int, name: bytes, header: Header, content: tar.Reader) -> None:
        if header.kind == tar.REGULAR:
            self._make_file(fd, name, header, content)
            self._made_bytes += header.size
        elif header.kind == tar.HARD_LINK:
            self._hard_link(fd, name, header)
        elif header.kind == tar.SYMLINK:
            os.symlink(header.target, name, dir_fd=fd)
            self._set_attributes_by_name(fd, name, header)
        else:
            os.mkfifo(name, 0o600, dir_fd=fd)
            self._set_attributes_by_name(fd, name, header)

    def _make_file(self, fd: int, name: bytes, header: Header, content: tar.Reader) -> None:
        # Most files can be made as they shall be. Others are told so when they are there: chown(2)
        # takes bits of the mode away again, and attributes cannot be written to what is read-only.
        whole = not (self._inherits or self._squashed or header.xattrs or header.mode > 0o777)
        out = os.open(name, _CREATE, header.mode if whole else 0o600, dir_fd=fd)
        try:
            if header.size:
                copy_content(content, out, header.size)
            if whole:
                if header.uid or header.gid:
                    _own(out, header)
                os.utime(out, ns=times(header))
            else:
                self._set_attributes(out, header)
        finally:
            os.close(out)

    def _hard_link(self, fd: int, name: bytes, header: Header) -> None:
        parent, last = split_name(header.target)
        try:
            source = syscalls.open_in_root(self._root, parent, _PARENT)
            try:
                os.link(last, name, src_dir_fd=source, dst_dir_fd=fd, follow_symlinks=False)
                facts = os.stat(name, dir_fd=fd, follow_symlinks=False)
                self._made_bytes += facts.st_size if stat.S_ISREG(facts.st_mode) else 0
            finally:
                os.close(source)
        except FileNotFoundError:
            raise AgentError(
                "image",
                f"entry `{os.fsdecode(header.name)}` is a hard link to "
                f"`{os.fsdecode(header.target)}`, which is not in the layer",
            ) from None

    def _set_attributes(self, fd: int, header: Header) -> None:
        # chown clears setuid bits and capabilities, so it comes first.
        if header.uid or header.gid or self._inherits:
            _own(fd, header)
        if self._squashed:
            self._note_owner(os.fstat(fd), header)
        for name, value in header.xattrs:
            _set_image_xattr(fd, name, value)
        os.fchmod(fd, header.mode)
        os.utime(fd, ns=times(header))

    def _set_attributes_by_name(self, fd: int, name: bytes, header: Header) -> None:
        if header.uid or header.gid or self._inherits:
            _own(name, header, fd)
        if self._squashed:
            self._note_owner(os.stat(name, dir_fd=fd, follow_symlinks=False), header)
        if header.kind != tar.SYMLINK:
            for attribute, value in header.xattrs:
                _set_image_xattr(os.fsencode(_fd_path(fd)) + b"/" + name, attribute, value)
            os.chmod(name, header.mode, dir_fd=fd)
        os.utime(name, ns=times(header), dir_fd=fd, follow_symlinks=False)

    def _note_owner(self, facts: os.stat_result, header: Header) -> None:
        """By inode: a path may lead over links, and a file have several."""
        # Also root's: the number may be that of a file which a later entry replaced.
        self._owners[facts.st_ino] = (header.uid, header.gid)


def copy_content(content: tar.Reader, out: int, size: int) -> None:
    """Writes an entry's `size` bytes into a file."""
    while size:
        data = content.read(min(size, _CHUNK))
        size -= len(data)
        written = os.write(out, data)
        while written < len(data):
            written += os.write(out, memoryview(data)[written:])


def _own(target: int | bytes, header: Header, directory: int = -1) -> None:
    if not (0 <= header.uid <= _LAST_ID and 0 <= header.gid <= _LAST_ID):
        raise _not_mapped(header)
    try:
        if isinstance(target, int):
            give(target, header.uid, header.gid)
        else:
            give_entry(directory, target, header.uid, header.gid)
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise _not_mapped(header) from error
        raise


def _not_mapped(header: Header) -> AgentError:
    return AgentError(
        "image",
        f"entry `{os.fsdecode(header.name)}` belongs to {header.uid}:{header.gid}, "
        "which is not among the mapped ids",
        "give the user 65536 subordinate ids in /etc/subuid and /etc/subgid",
    )


def times(header: Header) -> tuple[int, int]:
    """An entry's time as utime wants it, in nanoseconds."""
    # What ext4 and xfs can hold; anything else is a broken or hostile archive's idea of a time.
    mtime_ns = header.mtime_ns
    if not _EARLIEST_NS <= mtime_ns <= _LATEST_NS:
        mtime_ns = min(max(mtime_ns, _EARLIEST_NS), _LATEST_NS)
    return mtime_ns, mtime_ns


def _inherits(root: int) -> bool:
    """Whether what is made in a directory gets more from it than a place: a group, or a list."""
    facts = os.fstat(root)
    if facts.st_gid != os.getegid() or facts.st_mode & stat.S_ISGID:
        return True
    try:
        return bool(os.getxattr(root, _DEFAULT_ACL))
    except OSError:
        return False


def _set_image_xattr(target: int | bytes, name: bytes, value: bytes) -> None:
    if name.startswith(OVERLAY_XATTR):
        # An image must not speak to overlayfs (a `redirect` could lead anywhere): escaped, it is
        # data for the container and nothing to the kernel.
        name = OVERLAY_XATTR + b"overlay." + name[len(OVERLAY_XATTR) :]
    try:
        os.setxattr(target, name, value)
    except OSError as error:
        # Labels of a security module that this host lacks or guards (security.selinux).
        refused = error.errno in (errno.EPERM, errno.ENOTSUP, errno.EACCES)
        # A list that names somebody whom a single id does not have (posix_acl_from_xattr).
        unknown = error.errno == errno.EINVAL and name.startswith(_ACL_XATTR) and squashed()
        if not (refused or unknown):
            raise


def _set_xattr(path: str, name: str, value: bytes) -> None:
    os.setxattr(path, name, value)


def _fd_path(fd: int) -> str:
    return f"/proc/self/fd/{fd}"


def _is_directory(fd: int, name: bytes) -> bool:
    return os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode & 0o170000 == 0o040000


def _paths_of(root: int, owners: dict[int, Owner]) -> dict[bytes, Owner]:
    """The paths of all files, by inode, that do not belong to root."""
    foreign = {inode: owner for inode, owner in owners.items() if owner != ROOT}
    found: dict[bytes, Owner] = {}
    top = foreign.get(os.fstat(root).st_ino)
    if top:
        found[b""] = top
    pending = [b""] if foreign else []
    while pending:
        path = pending.pop()
        fd = syscalls.open_in_root(root, path, DIRECTORY)
        try:
            with os.scandir(fd) as entries:
                for entry in entries:
                    name = os.fsencode(entry.name)
                    inside = path + b"/" + name if path else name
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(inside)
                    owner = foreign.get(entry.inode())
                    if owner:
                        found[inside] = owner
        finally:
            os.close(fd)
    return found


def _is_whiteout(fd: int, name: bytes) -> bool:
    facts = os.stat(name, dir_fd=fd, follow_symlinks=False)
    return facts.st_mode & 0o170000 == 0o020000 and facts.st_rdev == 0
