"""Copies artifacts from one rootfs into another: from the builder's into the runtime image's.

Both trees are strangers': every path is resolved inside its own root, and what is copied has the
modes that source-to-image gives uploads, for any execute bit and not for the group's alone.
"""

from __future__ import annotations

import os
import posixpath
import stat
from typing import NamedTuple

from ocis2i import syscalls
from ocis2i.agent.failure import AgentError, explain
from ocis2i.agent.owners import give, give_entry
from ocis2i.agent.sides import changed, shown
from ocis2i.agent.tree import (
    DIRECTORY,
    Attributes,
    clear_name,
    join,
    open_regular,
    opened,
    resolve,
    write_file,
)

_INSIDE = os.O_RDONLY | os.O_DIRECTORY
_DEEPEST = 1000
_COPIED = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK)


class Copied(NamedTuple):
    """What was copied: entries, bytes of content, and devices, pipes and sockets passed over.

    `parents` are the directories made for the destination, relative to its root.
    """

    entries: int
    size_bytes: int
    skipped: int
    parents: tuple[bytes, ...]


class Here(NamedTuple):
    """A directory: open, and its path in its root."""

    fd: int
    path: bytes


def transfer(build: str, source: str, root: str, directory: str, owner: tuple[int, int]) -> Copied:
    """Copies `source` of the tree of `build` into `directory` of the mounted tree `root`.

    It keeps its name there. Directories are 0755 and merge into those that are there, files 0755
    or 0644, owned by `owner` (uid and gid); times, links and hard links among themselves are
    kept, extended attributes (file capabilities too) are not. Raises `AgentError`: kind `image`
    for a source that is not there, `usage` for a destination that cannot take it.
    """
    with shown(build) as origin, changed(build) as upper, opened(root) as into:
        copier = _Copier(upper, into, owner)
        try:
            copier.copy(origin, source, directory)
        except OSError as error:
            raise explain(error, f"`{source}` cannot be copied to `{directory}`") from error
        return Copied(copier.entries, copier.size, copier.skipped, tuple(copier.parents))


class _Copier:
    """The state of one copy: the destination, files seen with several names, what was counted."""

    def __init__(self, upper: int, root: int, owner: tuple[int, int]) -> None:
        self._upper = upper
        self._root = root
        self._uid, self._gid = owner
        self._links: dict[tuple[int, int], tuple[bytes, bytes]] = {}
        self.entries = self.size = self.skipped = 0
        self.parents: list[bytes] = []

    def copy(self, origin: int, source: str, directory: str) -> None:
        name = os.fsencode(posixpath.basename(posixpath.normpath(source)))
        path = _find(origin, source)
        if not path or not name:
            raise AgentError("usage", f"`{source}` is the whole image, and no artifact")
        above, _, last = path.rpartition(b"/")
        inside = Here(syscalls.open_in_root(origin, above, _INSIDE), above)
        try:
            kind = stat.S_IFMT(os.stat(last, dir_fd=inside.fd, follow_symlinks=False).st_mode)
            if kind not in _COPIED:
                raise AgentError("image", f"the artifact `{source}` is no file or directory")
            here = self._destination(directory)
            try:
                self._entry(inside, last, here, name)
            finally:
                os.close(here.fd)
        finally:
            os.close(inside.fd)

    def _destination(self, directory: str) -> Here:
        """The directory, and every one above it that is missing, given to the owner."""
        try:
            found, missing = resolve(self._root, os.fsencode(directory))
            fd = syscalls.open_in_root(self._root, found, _INSIDE)
        except NotADirectoryError:
            raise AgentError(
                "usage", f"the destination `{directory}` is no directory in the runtime image"
            ) from None
        path = found
        for part in missing.split(b"/") if missing else []:
            path = join(path, part)
            inner = self._make(fd, part)
            os.close(fd)
            give(inner, self._uid, self._gid)
            fd = inner
            self.parents.append(path)
        return Here(fd, path)

    def _make(self, fd: int, name: bytes) -> int:
        os.mkdir(name, 0o755, dir_fd=fd)
        made = os.open(name, DIRECTORY, dir_fd=fd)
        os.fchmod(made, 0o755)  # in a setgid directory it is one too
        return made

    def _entry(self, inside: Here, name: bytes, here: Here, as_name: bytes) -> None:
        facts = os.stat(name, dir_fd=inside.fd, follow_symlinks=False)
        kind = stat.S_IFMT(facts.st_mode)
        if kind not in _COPIED:
            self.skipped += 1
            return
        self.entries += 1
        if kind == stat.S_IFDIR:
            self._directory(inside, name, here, as_name)
        elif kind == stat.S_IFREG:
            self._file(inside, name, here, as_name)
        else:
            self._clear(here, as_name)
            os.symlink(os.readlink(name, dir_fd=inside.fd), as_name, dir_fd=here.fd)
            give_entry(here.fd, as_name, self._uid, self._gid)
            ns = (facts.st_mtime_ns, facts.st_mtime_ns)
            os.utime(as_name, ns=ns, dir_fd=here.fd, follow_symlinks=False)

    def _directory(self, inside: Here, name: bytes, here: Here, as_name: bytes) -> None:
        path = join(here.path, as_name)
        if path.count(b"/") >= _DEEPEST:
            raise AgentError("image", f"artifacts lie deeper than {_DEEPEST} directories")
        fd, made = self._enter(here, as_name, path)
        source = os.open(name, DIRECTORY, dir_fd=inside.fd)
        below = Here(source, join(inside.path, name))
        try:
            # In order: which of several names is the file and which are links is always the same.
            for entry in sorted(map(os.fsencode, os.listdir(source))):
                self._entry(below, entry, Here(fd, path), entry)
            if made:
                mtime_ns = os.fstat(source).st_mtime_ns
                give(fd, self._uid, self._gid)
                os.utime(fd, ns=(mtime_ns, mtime_ns))
        finally:
            os.close(source)
            os.close(fd)

    def _enter(self, here: Here, name: bytes, path: bytes) -> tuple[int, bool]:
        """A directory to merge into, links followed inside the root, or a new one."""
        try:
            return syscalls.open_in_root(self._root, path, _INSIDE), False
        except FileNotFoundError:
            clear_name(here.fd, name)  # a link to nothing
            return self._make(here.fd, name), True
        except NotADirectoryError:
            raise _conflict(path, "a directory", "a file") from None

    def _file(self, inside: Here, name: bytes, here: Here, as_name: bytes) -> None:
        source = open_regular(name, inside.fd)
        try:
            facts = os.fstat(source)
            self._clear(here, as_name)
            if facts.st_nlink > 1 and self._link(
                self._identity(join(inside.path, name), facts), here, as_name
            ):
                return
            mode = 0o755 if facts.st_mode & 0o111 else 0o644
            attributes = Attributes(self._uid, self._gid, mode, facts.st_mtime_ns)
            self.size += write_file(here.fd, as_name, source, attributes)
        finally:
            os.close(source)

    def _identity(self, path: bytes, facts: os.stat_result) -> tuple[int, int]:
        """Which file it is. Names of one that was copied up have different inode numbers in the
        mounted tree (overlayfs without `index`), but not in the upper directory."""
        try:
            fd = syscalls.open_in_root(self._upper, path, os.O_PATH | os.O_NOFOLLOW)
        except (FileNotFoundError, NotADirectoryError):
            return facts.st_dev, facts.st_ino
        try:
            facts = os.fstat(fd)
            return facts.st_dev, facts.st_ino
        finally:
            os.close(fd)

    def _link(self, key: tuple[int, int], here: Here, name: bytes) -> bool:
        """Makes a further name of a file that was copied already; false for the first."""
        if key not in self._links:
            self._links[key] = (here.path, name)
            return False
        directory, first = self._links[key]
        source = syscalls.open_in_root(self._root, directory, _INSIDE)
        try:
            os.link(first, name, src_dir_fd=source, dst_dir_fd=here.fd, follow_symlinks=False)
        finally:
            os.close(source)
        return True

    def _clear(self, here: Here, name: bytes) -> None:
        if not clear_name(here.fd, name):
            raise _conflict(join(here.path, name), "a file", "a directory")


def _find(origin: int, source: str) -> bytes:
    try:
        path, missing = resolve(origin, os.fsencode(source))
    except NotADirectoryError:
        missing = b"?"
        path = b""
    if missing:
        raise AgentError(
            "image",
            f"there is no `{source}` in the builder's container",
            "the assemble script must have made it; name it by its absolute path",
        )
    return path


def _conflict(path: bytes, what: str, there: str) -> AgentError:
    return AgentError(
        "usage", f"`/{os.fsdecode(path)}` is {what} to be copied, and {there} in the runtime image"
    )
