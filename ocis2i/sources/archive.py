"""A source that comes as an archive: tar, compressed tar or zip, from a file or standard input.

What an archive is, its content says and not its name. It is unpacked beside the source's place, as
hostile as it may be, and is a directory from then on: what a build takes of it is decided there.
"""

from __future__ import annotations

import bz2
import lzma
import os
import re
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Literal, Protocol

from ocis2i import tar
from ocis2i.blobs import CHUNK
from ocis2i.compression import Compression, detect
from ocis2i.errors import ImageError, SourceError, shown
from ocis2i.events import Report
from ocis2i.lazy_dataclass import dataclass
from ocis2i.s2i import SourceInfo
from ocis2i.settings import Settings
from ocis2i.sources.ignore import DEFAULT_EXCLUDE
from ocis2i.sources.local import CopyOrder, DirectoryFacts, Fetched, copy_tree
from ocis2i.sources.paths import open_directory
from ocis2i.sources.unpacking import Kind, Member, Unpacker, special_member, too_large

ACCEPTED = "a tar archive, plain or compressed by gzip, bzip2, xz or zstd, or a zip archive"

Format = Literal["tar", "gzip", "zstd", "bzip2", "xz", "zip"]

COMMIT_ID = re.compile(r"[0-9a-f]{64}|[0-9a-f]{40}")
_COMMIT_RECORD = re.compile(rb"(?:52|76) comment=(%s)\n" % COMMIT_ID.pattern.encode())
_INPUT = 1 << 17
# xz -9 needs 65 MiB to unpack; a header can ask for 4 GiB.
_XZ_MEMORY = 128 << 20


@dataclass(frozen=True, slots=True)
class ArchiveSource:
    """An archive; `path` is None for standard input, `typed` is how the user wrote it."""

    path: Path | None
    typed: str
    context_dir: str = ""
    exclude: str = DEFAULT_EXCLUDE
    keep_symlinks: bool = False

    @property
    def where(self) -> str:
        """The archive's name for messages."""
        return "standard input" if self.path is None else f"`{shown(self.typed)}`"


def recognise(head: bytes) -> Format | None:
    """What the first 512 bytes of a file show it to be."""
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "zip"
    if head.startswith(b"BZh") and head[4:10] in (b"1AY&SY", b"\x17\x72\x45\x38\x50\x90"):
        return "bzip2"
    if head.startswith(b"\xfd7zXZ\0"):
        return "xz"
    compression = detect(head)
    if compression is Compression.GZIP:
        return "gzip"
    if compression is Compression.ZSTD:
        return "zstd"
    return "tar" if _is_tar(head) else None


def _is_tar(head: bytes) -> bool:
    """POSIX and GNU write `ustar`; before them only the checksum tells. Zeros are an empty one."""
    if len(head) < tar.BLOCK:
        return False
    block = head[: tar.BLOCK]
    if block[257:262] == b"ustar" or not any(block):
        return True
    written = block[148:156].strip(b" \0")
    if not re.fullmatch(rb"[0-7]{1,7}", written):
        return False
    return int(written, 8) == sum(block[:148]) + 8 * 32 + sum(block[156:])


def is_archive(path: Path, typed: str) -> bool:
    """Whether a file is an archive by its beginning. Raises `SourceError`."""
    try:
        with open_file(path, f"`{shown(typed)}`") as file:
            return recognise(file.read(tar.BLOCK)) is not None
    except OSError as error:
        raise SourceError(
            f"cannot read `{shown(typed)}`: {error.strerror}", hint="let this user read it"
        ) from error


def fetch_archive(
    source: ArchiveSource,
    into: Path,
    *,
    stdin: BinaryIO | None,
    settings: Settings,
    report: Report,
) -> Fetched:
    """Unpacks `source` and puts it into the empty directory `into`.

    The unpacked tree is made beside `into` and is gone afterwards. Raises `SourceError`, and
    `PolicyError` for an archive that unpacks to more than a layer may have.
    """
    with tempfile.TemporaryDirectory(
        dir=into.parent, prefix="archive-", ignore_cleanup_errors=True
    ) as scratch:
        root = Path(scratch) / "source"
        root.mkdir(0o700)
        limit = settings.layer_limit
        with _open_stream(source, stdin) as file, _explained(source.where):
            seekable = source.path is not None
            unpacked = _unpack(file, root, source.where, limit, seekable=seekable)
        order = CopyOrder(
            source.context_dir,
            source.exclude,
            links="keep" if source.keep_symlinks else "confine",
            unpacked=unpacked.directories,
            followed_limit_bytes=limit,
        )
        ignored = copy_tree(root, into, order, report)
    info = SourceInfo(
        location="" if source.path is None else source.typed,
        commit_id=unpacked.commit_id,
        context_dir=source.context_dir,
    )
    return Fetched(info, ignored)


@dataclass(frozen=True, slots=True)
class _Unpacked:
    """What directories are to look like, and the commit that `git archive` noted."""

    directories: Mapping[str, DirectoryFacts]
    commit_id: str


def _unpack(
    file: BinaryIO, root: Path, where: str, limit_bytes: int, *, seekable: bool
) -> _Unpacked:
    stream = _Stream(file.read, None, where)
    kind = recognise(head := stream.peek(tar.BLOCK))
    if kind is None:
        raise _no_archive(where, head)
    with (
        open_directory(root) as root_fd,
        Unpacker(root_fd, where, limit_bytes=limit_bytes, replace=kind != "zip") as unpacker,
    ):
        if kind == "zip":
            with _seekable(file, stream, root.parent, limit_bytes, seekable=seekable) as whole:
                from ocis2i.sources.zipped import unpack_zip  # noqa: PLC0415 - few sources are one

                commit_id = unpack_zip(whole, unpacker, where)
        else:
            commit_id = _unpack_tar(_plain(kind, stream, where, limit_bytes), unpacker, where)
        if not unpacker.entries:
            raise SourceError(f"{where} is an empty archive", hint="pack the source again")
        return _Unpacked(unpacker.directories, commit_id)


def add_archive(file: BinaryIO, unpacker: Unpacker, where: str, limit_bytes: int) -> None:
    """Adds what is in a tar archive, compressed or not; raises as `fetch_archive`."""
    with _explained(where):
        stream = _Stream(file.read, None, where)
        kind = recognise(head := stream.peek(tar.BLOCK))
        if kind is None or kind == "zip":
            raise _no_archive(where, head)
        _unpack_tar(_plain(kind, stream, where, limit_bytes), unpacker, where)


def _no_archive(what: str, head: bytes) -> SourceError:
    if not head:
        return SourceError(f"{what} is empty", hint=f"accepted is {ACCEPTED}")
    return SourceError(
        f"{what} is no archive", hint=f"accepted is {ACCEPTED}, a directory or a git URL"
    )


@contextmanager
def _explained(where: str) -> Iterator[None]:
    """Errors of the formats as the source's."""
    try:
        yield
    except tar.TarError as error:
        raise SourceError(
            f"{where} is not a good tar archive: {shown(str(error))}",
            hint="pack or download it again",
        ) from error
    except ImageError as error:
        raise SourceError(error.message, hint=error.hint) from error


# --- streams ----------------------------------------------------------------------------------


@contextmanager
def _open_stream(source: ArchiveSource, stdin: BinaryIO | None) -> Iterator[BinaryIO]:
    if source.path is not None:
        with open_file(source.path, source.where) as file:
            yield file
        return
    if stdin is None or stdin.isatty():
        raise SourceError(
            "there is no archive on standard input",
            hint="pipe one in: `git archive HEAD | ocis2i build - …`",
        )
    yield stdin


def open_file(path: Path, where: str) -> BinaryIO:
    """A regular file to read; raises `SourceError` for anything else, and `OSError`."""
    # A FIFO would wait for a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise SourceError(f"{where} is no regular file", hint="`-` reads an archive from a pipe")
    return os.fdopen(descriptor, "rb")


class _Stream:
    """Reads exactly what is asked for, less only at the end; can look ahead.

    It is bounded to `limit_bytes` of content and `room_bytes` for what is not content.
    """

    def __init__(
        self,
        read: Callable[[int], bytes],
        limit_bytes: int | None,
        where: str,
        *,
        room_bytes: int = 0,
    ) -> None:
        self._read = read
        self._limit_bytes = limit_bytes
        self._room_bytes = room_bytes
        self._where = where
        self._ahead = b""
        self._taken = 0

    def peek(self, size: int) -> bytes:
        """The next `size` bytes, which stay there."""
        self._ahead = self.read(size)
        return self._ahead

    def read(self, size: int = -1, /) -> bytes:
        """`size` bytes (a piece when negative). Raises `PolicyError` over the limit."""
        wanted = CHUNK if size < 0 else size
        parts = [self._ahead[:wanted]]
        self._ahead = self._ahead[wanted:]
        missing = wanted - len(parts[0])
        while missing and (data := self._read(missing)):
            parts.append(data)
            missing -= len(data)
            self._taken += len(data)
            if self._limit_bytes is not None and self._taken > self._limit_bytes + self._room_bytes:
                raise too_large(self._where, self._limit_bytes)
        return b"".join(parts)

    def close(self) -> None:
        """Whoever opened the stream closes it."""


class _Decompressor(Protocol):
    """What `bz2` and `lzma` have in common."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


class _Inflated:
    """The content of bzip2 or xz data, in which several streams may follow each other."""

    def __init__(self, source: _Stream, make: Callable[[], _Decompressor], what: str) -> None:
        self._source = source
        self._make = make
        self._what = what
        self._current = make()

    def read(self, size: int) -> bytes:
        """A piece of `size` bytes at most; nothing at the end. Raises `SourceError`."""
        try:
            while True:
                if self._current.eof and not self._next():
                    return b""
                if data := self._decompress(size):
                    return data
        except (OSError, EOFError, lzma.LZMAError, MemoryError) as error:
            raise SourceError(
                f"broken {self._what}: {error}", hint="pack or download it again"
            ) from error

    def _decompress(self, size: int) -> bytes:
        needed = self._current.needs_input
        more = self._source.read(_INPUT) if needed else b""
        if needed and not more:
            raise EOFError("it ends too early")
        return self._current.decompress(more, size)

    def _next(self) -> bool:
        rest = self._current.unused_data or self._source.read(_INPUT)
        # xz allows zeros between and after streams.
        while rest and not (rest := rest.lstrip(b"\0")):
            rest = self._source.read(_INPUT)
        if not rest:
            return False
        self._source = _Stream(_chained(rest, self._source), None, self._what)
        self._current = self._make()
        return True


def _chained(first: bytes, then: _Stream) -> Callable[[int], bytes]:
    ahead = [first]

    def read(size: int) -> bytes:
        if not ahead[0]:
            return then.read(size)
        data, ahead[0] = ahead[0][:size], ahead[0][size:]
        return data

    return read


def _plain(kind: Format, stream: _Stream, where: str, limit_bytes: int) -> _Stream:
    """The tar inside, with room for its headers and padding beside the content."""
    room = limit_bytes + CHUNK
    read: Callable[[int], bytes]
    match kind:
        case "gzip" | "zstd":
            from ocis2i.decompression import open_decompressed  # noqa: PLC0415 - few sources

            media_type = Compression(kind).media_type
            read = open_decompressed(stream, media_type, what=where).read
        case "bzip2":
            read = _Inflated(stream, bz2.BZ2Decompressor, f"bzip2 data in {where}").read
        case "xz":
            read = _Inflated(stream, _xz, f"xz data in {where}").read
        case _:
            return _Stream(stream.read, limit_bytes, where, room_bytes=room)
    plain = _Stream(read, limit_bytes, where, room_bytes=room)
    if not _is_tar(plain.peek(tar.BLOCK)):
        raise SourceError(
            f"{where} is {kind} data, but no tar archive is inside", hint=f"accepted is {ACCEPTED}"
        )
    return plain


def _xz() -> lzma.LZMADecompressor:
    return lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)


# --- tar --------------------------------------------------------------------------------------


def _unpack_tar(stream: _Stream, unpacker: Unpacker, where: str) -> str:
    commit_id = commit_of_tar(stream.peek(2 * tar.BLOCK))
    reader = tar.Reader(stream)
    while (header := reader.next()) is not None:
        unpacker.add(_member_of_header(header, where), reader.read)
    # So that whoever writes into the pipe can finish, and the sums of compressed data are checked.
    reader.drain()
    return commit_id


_KINDS: Mapping[bytes, Kind] = {
    tar.REGULAR: "file",
    tar.DIRECTORY: "directory",
    tar.SYMLINK: "link",
    tar.HARD_LINK: "hard link",
}


def _member_of_header(header: tar.Header, where: str) -> Member:
    name = os.fsdecode(header.name)
    kind = _KINDS.get(header.kind)
    if kind is None:
        raise special_member(name, "FIFO" if header.kind == tar.FIFO else "device", where)
    return Member(
        name, kind, header.mode, header.mtime_ns, header.size, target=os.fsdecode(header.target)
    )


def commit_of_tar(head: bytes) -> str:
    """The commit that `git archive` notes in the first, global header; empty when there is none.

    `head` is the first 1024 bytes; git-get-tar-commit-id(1) looks at the same ones.
    """
    if head[156:157] != b"g":
        return ""
    found = _COMMIT_RECORD.match(head[tar.BLOCK :])
    return found[1].decode() if found else ""


@contextmanager
def _seekable(
    file: BinaryIO, stream: _Stream, scratch: Path, limit_bytes: int, *, seekable: bool
) -> Iterator[BinaryIO]:
    """The whole zip: its list of members stands at its end, so a stream is first written down."""
    if seekable:
        yield file
        return
    with tempfile.TemporaryFile(dir=scratch) as spool:
        bounded = _Stream(stream.read, limit_bytes, "standard input")
        while data := bounded.read(CHUNK):
            spool.write(data)
        yield spool
