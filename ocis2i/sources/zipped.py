"""The members of a zip archive, from the list at its end; nothing in it is believed."""

from __future__ import annotations

import calendar
import os
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from ocis2i.errors import PolicyError, SourceError, shown
from ocis2i.sources.unpacking import Kind, Member, Unpacker, special_member

_COMMIT = re.compile(rb"[0-9a-f]{40}(?:[0-9a-f]{24})?\Z")
# The list of members is read whole; this is room for some half a million.
_LIST_LIMIT = 64 << 20
_LINK_LIMIT = 4096


# `zipfile` raises these for broken data, and no others are expected of it.
BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    RuntimeError,
    ValueError,
    OverflowError,
)


@contextmanager
def _explained(where: str) -> Iterator[None]:
    try:
        yield
    except BROKEN as error:
        said = shown(str(error)) or type(error).__name__
        raise SourceError(f"{where} is not a good zip archive: {said}") from error


class BoundedZip:
    """A file that lets `zipfile` read no more at once than a list of members may be."""

    def __init__(self, file: BinaryIO, where: str) -> None:
        self._file = file
        self._where = where
        self.seek = file.seek
        self.tell = file.tell
        self.seekable = file.seekable

    def read(self, size: int = -1, /) -> bytes:
        """Raises `PolicyError` for a size that only a bomb asks for."""
        if size > _LIST_LIMIT:
            raise PolicyError(
                f"{self._where} has a list of members of {size} bytes",
                hint="it is a fixed limit: pack it as a tar archive",
            )
        return self._file.read(_LIST_LIMIT if size < 0 else size)

    def close(self) -> None:
        """Whoever opened the file closes it."""


def unpack_zip(file: BinaryIO, unpacker: Unpacker, where: str) -> str:
    """Unpacks every member of a seekable `file`; gives the commit that the archive notes, or "".

    Raises `SourceError` for a broken or encrypted archive and `PolicyError` over a limit.
    """
    with _explained(where):
        archive = zipfile.ZipFile(BoundedZip(file, where))
    with archive:
        for info in archive.infolist():
            _unpack_member(archive, info, unpacker, where)
        comment = archive.comment
    # `git archive --format=zip` has the commit as the archive's comment.
    return comment.decode() if _COMMIT.match(comment) else ""


def _unpack_member(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, unpacker: Unpacker, where: str
) -> None:
    member = _member_of_info(info, where)
    if member.kind == "directory":
        unpacker.add(member)
        return
    with _explained(f"`{shown(member.name)}` of {where}"):
        content = archive.open(info)
    with content:

        def read(size: int) -> bytes:
            with _explained(f"`{shown(member.name)}` of {where}"):
                return content.read(size)

        if member.kind == "link":
            target = os.fsdecode(read(_LINK_LIMIT))
            member = Member(member.name, "link", member.mode, member.mtime_ns, target=target)
            _check_link(member, where)
        unpacker.add(member, read)


def _check_link(member: Member, where: str) -> None:
    if not 0 < len(member.target) < _LINK_LIMIT or "\0" in member.target:
        raise SourceError(f"`{shown(member.name)}` of {where} is a link to nothing that can be")


def _member_of_info(info: zipfile.ZipInfo, where: str) -> Member:
    name = zip_name(info)
    if info.flag_bits & 0x1:
        raise SourceError(
            f"`{shown(name)}` of {where} is encrypted", hint="make the archive without a password"
        )
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise SourceError(
            f"`{shown(name)}` of {where} is compressed by method {info.compress_type}",
            hint="make the archive with the usual method, deflate",
        )
    kind = _kind_of_info(info, name, where)
    mode = stat.S_IMODE(_unix_mode(info)) or (0o755 if kind == "directory" else 0o644)
    size = 0 if kind == "directory" else info.file_size
    return Member(name, kind, mode, _time_of_info(info), size)


def _unix_mode(info: zipfile.ZipInfo) -> int:
    # Of the systems that write zips, Unix (3) and macOS (19) put the mode there.
    return info.external_attr >> 16 if info.create_system in (3, 19) else 0


def _kind_of_info(info: zipfile.ZipInfo, name: str, where: str) -> Kind:
    match stat.S_IFMT(_unix_mode(info)):
        case stat.S_IFLNK:
            return "link"
        case stat.S_IFDIR:
            return "directory"
        case 0 | stat.S_IFREG:
            return "directory" if name.endswith("/") else "file"
        case _:
            raise special_member(name, "special file", where)


def zip_name(info: zipfile.ZipInfo) -> str:
    """A member's name: UTF-8 where it is said to be or is, what Unix wrote, else code page 437.

    The flag for UTF-8 (APPNOTE 4.4.4) is often forgotten.
    """
    if info.flag_bits & 0x800:
        return info.orig_filename
    raw = info.orig_filename.encode("cp437")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return os.fsdecode(raw) if info.create_system == 3 else info.orig_filename


def _time_of_info(info: zipfile.ZipInfo) -> int:
    """Nanoseconds since 1970: the Unix time in the extra field, else the DOS time taken as UTC.

    A DOS time has no zone, and the host's must not decide: the same archive gives the same layer.
    """
    extra = info.extra
    while len(extra) >= 4:
        tag, size = struct.unpack_from("<HH", extra)
        if tag == 0x5455 and size >= 5 and len(extra) >= 9 and extra[4] & 1:
            seconds: int = struct.unpack_from("<i", extra, 5)[0]
            return seconds * 10**9
        extra = extra[4 + size :]
    year, month, day, *clock = info.date_time
    return calendar.timegm((year, min(max(month, 1), 12), max(day, 1), *clock)) * 10**9
