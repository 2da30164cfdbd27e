"""Puts the members of an archive into a directory, and nothing anywhere else.

Every step is relative to an open directory and follows no link: a member can be written neither
through a link nor outside. Links themselves are written as they are; whether they lead out is
decided where the tree is used (`ocis2i.sources.local`). Owners and extended attributes are left
behind.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from typing import Literal

from ocis2i.errors import PolicyError, SourceError, shown
from ocis2i.fs import is_full
from ocis2i.lazy_dataclass import dataclass
from ocis2i.sources.local import DEPTH_LIMIT, DirectoryFacts

ENTRY_LIMIT = 1_000_000

_CHUNK = 1 << 20
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# What every usual file system can hold; other times are an archive's mistake or its malice.
_EARLIEST_NS = -(2**31) * 10**9
_LATEST_NS = 2**33 * 10**9

Kind = Literal["file", "directory", "link", "hard link"]
Read = Callable[[int], bytes]


@dataclass(frozen=True, slots=True)
class Member:
    """One entry of an archive: `size` in bytes, `mtime_ns` in nanoseconds since 1970.

    `target` is what a link holds, or the name of the member that a hard link is another name of.
    """

    name: str
    kind: Kind
    mode: int
    mtime_ns: int
    size: int = 0
    target: str = ""


class Unpacker:
    """Writes members below an open directory.

    `where` names the archive in messages. `replace`: a later member may take the place of an
    earlier one of its name, as in tar. `directories` has what directories are to look like at the
    end; until then they are open to us, whatever the archive says.
    """

    def __init__(self, root_fd: int, where: str, *, limit_bytes: int, replace: bool) -> None:
        self._root_fd = root_fd
        self._where = where
        self._limit_bytes = limit_bytes
        self._replace = replace
        self._size = 0
        self._parent: tuple[str, ...] = ()
        self._parent_fd = -1
        self.entries = 0
        self.directories: dict[str, DirectoryFacts] = {}

    def __enter__(self) -> Unpacker:
        return self

    def __exit__(self, *exc: object) -> None:
        self._forget_parent()

    def add(self, member: Member, read: Read | None = None) -> None:
        """Writes one member; `read` gives the content of a file, nothing at its end.

        Raises `SourceError` for a name or a hard link that leads out, a way through something that
        is no directory, and what the file system refuses; `PolicyError` over a limit.
        """
        self._count(member)
        parts = split_member(member.name, self._where)
        try:
            if member.kind == "directory":
                self._directory(parts, member)
            else:
                self._make(parts, member, read)
        except OSError as error:
            if is_full(error):
                raise
            raise SourceError(
                f"cannot unpack {self._name(member)}: {error.strerror or error}"
            ) from error

    def _name(self, member: Member) -> str:
        return f"`{shown(member.name)}` of {self._where}"

    def _count(self, member: Member) -> None:
        self.entries += 1
        self._size += member.size
        if self.entries > ENTRY_LIMIT:
            raise PolicyError(
                f"{self._where} has more than {ENTRY_LIMIT} entries",
                hint="it is a fixed limit: pack the source in a few archives, or leave files out",
            )
        if self._size > self._limit_bytes:
            raise too_large(self._where, self._limit_bytes)

    def _directory(self, parts: tuple[str, ...], member: Member) -> None:
        if not parts:
            return  # the root of the archive; ours has its mode already
        parent = self._open_parent(parts[:-1], member)
        try:
            os.mkdir(parts[-1], 0o700, dir_fd=parent)
        except FileExistsError:
            if not stat.S_ISDIR(self._kind(parent, parts[-1])):
                raise self._twice(member) from None
        self.directories["/".join(parts)] = DirectoryFacts(
            stat.S_IMODE(member.mode), _clamped(member.mtime_ns)
        )

    def _make(self, parts: tuple[str, ...], member: Member, read: Read | None) -> None:
        if not parts:
            raise SourceError(f"{self._name(member)} has no name")
        parent, name = self._open_parent(parts[:-1], member), parts[-1]
        if member.kind == "hard link" and split_member(member.target, self._where) == parts:
            raise SourceError(f"{self._name(member)} is a hard link to itself")
        try:
            self._create(parent, name, member, read)
        except FileExistsError:
            if not self._replace or stat.S_ISDIR(self._kind(parent, name)):
                raise self._twice(member) from None
            os.unlink(name, dir_fd=parent)
            self._create(parent, name, member, read)

    def _create(self, parent: int, name: str, member: Member, read: Read | None) -> None:
        if member.kind == "link":
            os.symlink(member.target, name, dir_fd=parent)
            _set_time(parent, name, member)
        elif member.kind == "hard link":
            self._hard_link(parent, name, member)
        else:
            self._file(parent, name, member, read)

    def _file(self, parent: int, name: str, member: Member, read: Read | None) -> None:
        descriptor = os.open(name, _CREATE, 0o600, dir_fd=parent)
        try:
            left = member.size
            while left and read and (data := read(min(left, _CHUNK))):
                left -= len(data)
                _write(descriptor, data)
            if left:
                raise SourceError(f"{self._name(member)} ends {left} bytes too early")
            os.fchmod(descriptor, stat.S_IMODE(member.mode))
            times = (_clamped(member.mtime_ns),) * 2
            os.utime(descriptor, ns=times)
        finally:
            os.close(descriptor)

    def _hard_link(self, parent: int, name: str, member: Member) -> None:
        # The target's directories are opened without following links, so it is inside.
        *above, last = split_member(member.target, self._where) or ("",)
        with_nothing = SourceError(
            f"{self._name(member)} is a hard link to `{shown(member.target)}`, "
            "which is no file before it in the archive"
        )
        try:
            source = self._walk(tuple(above), member, make=False)
        except FileNotFoundError:
            raise with_nothing from None
        try:
            if stat.S_ISDIR(self._kind(source, last)):
                raise with_nothing
            os.link(last, name, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            raise with_nothing from None
        finally:
            os.close(source)

    def _twice(self, member: Member) -> SourceError:
        return SourceError(f"{self._name(member)} is there twice", hint="make the archive anew")

    @staticmethod
    def _kind(directory: int, name: str) -> int:
        return os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode

    # --- the directory of a member ---

    def _open_parent(self, parts: tuple[str, ...], member: Member) -> int:
        if self._parent_fd < 0 or parts != self._parent:
            found = self._walk(parts, member, make=True)
            self._forget_parent()
            self._parent, self._parent_fd = parts, found
        return self._parent_fd

    def _forget_parent(self) -> None:
        if self._parent_fd >= 0:
            os.close(self._parent_fd)
        self._parent_fd = -1

    def _walk(self, parts: tuple[str, ...], member: Member, *, make: bool) -> int:
        current = os.open(".", _DIRECTORY, dir_fd=self._root_fd)
        done = 0
        try:
            for part in parts:
                below = self._step(current, part, make=make)
                os.close(current)
                current = below
                done += 1
        except OSError as error:
            os.close(current)
            if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                raise
            way = shown("/".join(parts[: done + 1]))
            # Attack: a link first, and then a member with the link's name in its path.
            raise SourceError(
                f"{self._name(member)} leads through `{way}`, which is no directory"
            ) from error
        return current

    @staticmethod
    def _step(current: int, part: str, *, make: bool) -> int:
        try:
            return os.open(part, _DIRECTORY, dir_fd=current)
        except FileNotFoundError:
            if not make:
                raise
        os.mkdir(part, 0o700, dir_fd=current)
        return os.open(part, _DIRECTORY, dir_fd=current)


def split_member(name: str, where: str) -> tuple[str, ...]:
    """The components of a member's name, without `.` and doubled slashes.

    Raises `SourceError` for an absolute name, one with `..` or a zero byte in it, and one that
    lies absurdly deep. `where` names the archive.
    """
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    if name.startswith("/") or ".." in parts or "\0" in name:
        raise SourceError(
            f"`{shown(name)}` of {where} leads out of it",
            hint="a source archive has relative names without `..`",
        )
    if len(parts) > DEPTH_LIMIT:
        raise SourceError(f"{where} has directories more than {DEPTH_LIMIT} deep")
    return parts


def special_member(name: str, what: str, where: str) -> SourceError:
    """The refusal of a device, a FIFO and the like."""
    return SourceError(
        f"`{shown(name)}` of {where} is a {what}",
        hint="a source has files, directories and links",
    )


def too_large(where: str, limit_bytes: int) -> PolicyError:
    """The refusal of an archive that is a bomb, or that nobody expected to be so large."""
    return PolicyError(
        f"{where} unpacks to more than {limit_bytes} bytes",
        hint="raise the limit with OCIS2I_LAYER_LIMIT if the archive is to be trusted",
    )


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _set_time(directory: int, name: str, member: Member) -> None:
    times = (_clamped(member.mtime_ns),) * 2
    os.utime(name, ns=times, dir_fd=directory, follow_symlinks=False)


def _clamped(mtime_ns: int) -> int:
    return min(max(mtime_ns, _EARLIEST_NS), _LATEST_NS)
