"""Takes the artifacts out of what a save-artifacts script wrote: a tar from an untrusted image.

Nothing is followed and nothing leaves the new directory: source-to-image wrote through links that
came in the same archive. Several archives may stand one after the other, and zeros behind them.
"""

from __future__ import annotations

import os
import stat
from typing import BinaryIO, NamedTuple

from ocis2i import tar
from ocis2i.agent.failure import AgentError
from ocis2i.agent.tree import DIRECTORY, remove_tree
from ocis2i.agent.unpack import Limits, copy_content, explain_entry, times
from ocis2i.tar import Header

Parts = tuple[bytes, ...]

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_CACHED = 64
_CHUNK = 1 << 20
_DEEPEST = 1000
_SHOWN = 40
_KINDS = {tar.REGULAR: stat.S_IFREG, tar.SYMLINK: stat.S_IFLNK, tar.DIRECTORY: stat.S_IFDIR}
_SKIPPED = frozenset((tar.CHARACTER, tar.BLOCK_DEVICE, tar.FIFO))
_WORDS = {stat.S_IFREG: "a file", stat.S_IFLNK: "a symbolic link", stat.S_IFDIR: "a directory"}
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


class Extracted(NamedTuple):
    """What was extracted: entries, bytes of content, devices and pipes that were passed over.

    `trailing_bytes` follow the last archive and are neither zeros nor a tar.
    """

    entries: int
    size_bytes: int
    skipped: int
    trailing_bytes: int


def extract(stream: BinaryIO, into: str, limits: Limits) -> Extracted:
    """Extracts tar archives into the new directory `into`; after an error it is not there.

    Types, names and links by contract: files, directories, symbolic links (as they are, never
    followed) and hard links. Owners are not taken. Raises `AgentError` of kind `image` for what is
    no tar, broken or hostile, of kind `policy` beyond the limits.
    """
    parent, name = os.path.split(into)
    above = os.open(parent, DIRECTORY)
    try:
        os.mkdir(name, 0o755, dir_fd=above)
        try:
            with _Extractor(os.open(name, DIRECTORY, dir_fd=above), limits) as extractor:
                return extractor.read_all(_Joined(stream))
        except BaseException:
            remove_tree(above, name)
            raise
    finally:
        os.close(above)


def member_path(name: bytes) -> Parts:
    """The components of a member's name; empty for the top itself.

    Raises `AgentError` for a name that is absolute or climbs out of the directory.
    """
    parts: list[bytes] = []
    if name.startswith(b"/"):
        raise _hostile(name, "has an absolute name")
    for part in name.split(b"/"):
        if part == b".." and not parts:
            raise _hostile(name, "leads out of the artifacts")
        if part == b"..":
            parts.pop()
        elif part not in (b"", b"."):
            parts.append(part)
    if len(parts) > _DEEPEST:
        raise AgentError("image", f"hostile archive: a member lies {len(parts)} directories deep")
    return tuple(parts)


def is_header(block: bytes) -> bool:
    """Whether 512 bytes have the checksum of a tar header (POSIX ustar, `chksum`)."""
    text = block[148:156].strip(b" \0")
    if len(block) != tar.BLOCK or not text or not all(byte in b"01234567" for byte in text):
        return False
    return sum(block) - sum(block[148:156]) + 8 * 32 == int(text, 8)


class _Joined:
    """A stream that takes back what was only looked at."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._returned = b""

    def read(self, size: int, /) -> bytes:
        """See `tar.Input`."""
        if not self._returned:
            return self._stream.read(size)
        first, self._returned = self._returned[:size], self._returned[size:]
        return first + (self._stream.read(size - len(first)) if len(first) < size else b"")

    def give_back(self, data: bytes) -> None:
        """`data` is what the next `read` begins with."""
        self._returned = data + self._returned


class _Extractor:
    """The state of one extraction: open parents, directories to finish, what was counted."""

    def __init__(self, root: int, limits: Limits) -> None:
        self._root = root
        self._limits = limits
        self._open: dict[Parts, int] = {}
        self._directories: dict[Parts, Header] = {}
        self._entries = self._size = self._skipped = 0

    def __enter__(self) -> _Extractor:
        return self

    def __exit__(self, *exc: object) -> None:
        self._forget_open()
        os.close(self._root)

    def read_all(self, stream: _Joined) -> Extracted:
        """Every archive of the stream, to its end: whoever writes to it must be able to finish."""
        first = True
        while block := _next_block(stream):
            if is_header(block):
                stream.give_back(block)
                self._read_archive(stream)
            elif first:
                raise _no_tar(block)
            else:
                return self._finish(len(block) + _drain(stream))
            first = False
        return self._finish(0)

    def _read_archive(self, stream: _Joined) -> None:
        reader = tar.Reader(stream)
        name = b""
        try:
            while (header := reader.next()) is not None:
                name = header.name
                self._apply(header, reader)
        except tar.TarError as error:
            raise AgentError("image", f"the tar on stdout is broken: {error}") from error
        except OSError as error:
            raise explain_entry(error, name) from error

    def _apply(self, header: Header, content: tar.Reader) -> None:
        self._count(header)
        parts = member_path(header.name)
        if header.kind in _SKIPPED:
            self._skipped += 1
        elif not parts:
            # The top is the place that assemble moves things out of, whatever `.` was there.
            if header.kind != tar.DIRECTORY:
                raise _hostile(header.name, "takes the place of the whole directory")
        elif header.kind == tar.DIRECTORY:
            self._directory(parts, header)
        elif header.kind == tar.HARD_LINK:
            self._hard_link(parts, header)
        else:
            self._plain(parts, header, content)

    def _count(self, header: Header) -> None:
        self._entries += 1
        self._size += header.size
        if self._entries > self._limits.entries:
            raise AgentError("policy", f"there are more than {self._limits.entries} artifacts")
        if self._size > self._limits.size_bytes:
            raise AgentError(
                "policy",
                f"the artifacts are larger than {self._limits.size_bytes} bytes",
                "raise the limit with OCIS2I_LAYER_LIMIT if that is right",
            )

    # --- kinds of members ---

    def _directory(self, parts: Parts, header: Header) -> None:
        fd, name = self._parent(parts, header), parts[-1]
        try:
            os.mkdir(name, 0o755, dir_fd=fd)
        except FileExistsError:
            _check_kind(fd, name, header, stat.S_IFDIR)
        self._directories[parts] = header

    def _plain(self, parts: Parts, header: Header, content: tar.Reader) -> None:
        fd, name = self._parent(parts, header), parts[-1]
        try:
            _make(fd, name, header, content)
        except FileExistsError:
            # Never written into what is there: it may be another name of something.
            _check_kind(fd, name, header, _KINDS[header.kind])
            os.unlink(name, dir_fd=fd)
            _make(fd, name, header, content)

    def _hard_link(self, parts: Parts, header: Header) -> None:
        target = member_path(header.target)
        if not target:
            raise _hostile(header.name, "is a hard link to a directory")
        source = self._parent(target, header)
        try:
            facts = os.stat(target[-1], dir_fd=source, follow_symlinks=False)
        except FileNotFoundError:
            raise _hostile(
                header.name,
                f"is a hard link to `{_printable(header.target)}`, which is not in the archive",
            ) from None
        if stat.S_ISDIR(facts.st_mode):
            raise _hostile(header.name, "is a hard link to a directory")
        source = os.dup(source)  # the cache may close it
        try:
            self._link(source, target[-1], parts, header, facts)
        finally:
            os.close(source)

    def _link(
        self, source: int, old: bytes, parts: Parts, header: Header, facts: os.stat_result
    ) -> None:
        fd, name = self._parent(parts, header), parts[-1]
        try:
            os.link(old, name, src_dir_fd=source, dst_dir_fd=fd, follow_symlinks=False)
        except FileExistsError:
            there = _check_kind(fd, name, header, stat.S_IFMT(facts.st_mode))
            if there.st_ino == facts.st_ino:
                return
            os.unlink(name, dir_fd=fd)
            os.link(old, name, src_dir_fd=source, dst_dir_fd=fd, follow_symlinks=False)

    # --- directories ---

    def _parent(self, parts: Parts, header: Header) -> int:
        return self._descend(parts[:-1], header)

    def _descend(self, parts: Parts, header: Header) -> int:
        """The open directory `parts`, made where it is missing; no component may be a link."""
        known = len(parts)
        while known and parts[:known] not in self._open:
            known -= 1
        fd = self._open[parts[:known]] if known else self._root
        for end in range(known + 1, len(parts) + 1):
            inner = _open_inside(fd, parts[end - 1], header)
            if len(self._open) >= _CACHED:
                self._forget_open()
            self._open[parts[:end]] = fd = inner
        return fd

    def _forget_open(self) -> None:
        for fd in self._open.values():
            os.close(fd)
        self._open.clear()

    def _finish(self, trailing_bytes: int) -> Extracted:
        # Last and from below: a mode may forbid to make entries, and making them sets the time.
        for parts in sorted(self._directories, key=len, reverse=True):
            header = self._directories[parts]
            fd = self._descend(parts, header)
            os.fchmod(fd, header.mode)
            os.utime(fd, ns=times(header))
        return Extracted(self._entries, self._size, self._skipped, trailing_bytes)


def _open_inside(fd: int, name: bytes, header: Header) -> int:
    try:
        return os.open(name, DIRECTORY, dir_fd=fd)
    except FileNotFoundError:
        os.mkdir(name, 0o755, dir_fd=fd)
    except NotADirectoryError:
        # The attack: a link out of the tree, and then a member that is written through it.
        raise _hostile(
            header.name, f"lies below `{_printable(name)}`, which is no directory"
        ) from None
    return os.open(name, DIRECTORY, dir_fd=fd)


def _make(fd: int, name: bytes, header: Header, content: tar.Reader) -> None:
    if header.kind == tar.SYMLINK:
        os.symlink(header.target, name, dir_fd=fd)
        os.utime(name, ns=times(header), dir_fd=fd, follow_symlinks=False)
        return
    out = os.open(name, _CREATE, 0o600, dir_fd=fd)
    try:
        copy_content(content, out, header.size)
        os.fchmod(out, header.mode)
        os.utime(out, ns=times(header))
    finally:
        os.close(out)


def _check_kind(fd: int, name: bytes, header: Header, wanted: int) -> os.stat_result:
    """What has the name must be of the same kind to be replaced."""
    facts = os.stat(name, dir_fd=fd, follow_symlinks=False)
    kind = stat.S_IFMT(facts.st_mode)
    if kind != wanted:
        raise _hostile(header.name, f"is there twice, as {_WORDS[kind]} and as {_WORDS[wanted]}")
    return facts


def _next_block(stream: _Joined) -> bytes:
    """The next bytes that are not all zero, up to a block of them; empty at the end."""
    while block := stream.read(tar.BLOCK):
        if any(block):
            return block
    return b""


def _drain(stream: _Joined) -> int:
    size = 0
    while data := stream.read(_CHUNK):
        size += len(data)
    return size


def _no_tar(block: bytes) -> AgentError:
    for magic, name in _COMPRESSED.items():
        if block.startswith(magic):
            return AgentError(
                "image",
                f"stdout is compressed by {name}, and must be a plain tar",
                "let save-artifacts write an uncompressed tar: `tar -cf - ...`",
            )
    return AgentError(
        "image",
        f"stdout starts with `{_printable(block[:_SHOWN])}`, which is no tar",
        "save-artifacts must write messages to stderr: `>&2`",
    )


def _printable(data: bytes) -> str:
    text = data.rstrip(b"\0\n").decode("ascii", "backslashreplace")
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)


def _hostile(name: bytes, how: str) -> AgentError:
    return AgentError("image", f"hostile archive: `{_printable(name)}` {how}")
