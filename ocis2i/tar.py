"""The tar format, both ways: headers to values and values to headers. Pure; used by the agent.

Read are ustar, PAX (POSIX.1-2001) and GNU's long names and base-256 numbers; written is ustar with
PAX records where ustar has no room. Names are bytes, as in the kernel.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple, Protocol

BLOCK = 512
END = bytes(2 * BLOCK)

REGULAR, HARD_LINK, SYMLINK, CHARACTER, BLOCK_DEVICE, DIRECTORY, FIFO = (
    b"0", b"1", b"2", b"3", b"4", b"5", b"6",
)  # fmt: skip
_CONTIGUOUS = b"7"
_PAX, _PAX_GLOBAL, _GNU_NAME, _GNU_LINK, _GNU_SPARSE = b"x", b"g", b"L", b"K", b"S"
_EXTENSIONS = frozenset((_PAX, _PAX_GLOBAL, _GNU_NAME, _GNU_LINK))
_KNOWN = frozenset((REGULAR, HARD_LINK, SYMLINK, CHARACTER, BLOCK_DEVICE, DIRECTORY, FIFO))

# One header's records or long name are read whole; real ones are a few hundred bytes.
_RECORDS_LIMIT = 1 << 20
_XATTR = b"SCHILY.xattr."
_OCTAL_8 = 0o7777777
_OCTAL_12 = 0o77777777777


class TarError(Exception):
    """An archive that breaks the format; the message says where and how."""


class Header(NamedTuple):
    """One entry. `mtime_ns` in nanoseconds since 1970, `size` in bytes of content that follow."""

    name: bytes
    kind: bytes
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    target: bytes = b""
    device: tuple[int, int] = (0, 0)
    xattrs: tuple[tuple[bytes, bytes], ...] = ()


class Input(Protocol):
    """A stream to read from; short reads only at its end."""

    def read(self, size: int, /) -> bytes:
        """Exactly `size` bytes, fewer at the end."""


# --- writing ----------------------------------------------------------------------------------


def encode_header(header: Header) -> bytes:
    """The header blocks of an entry, PAX records first where ustar cannot hold a value.

    The same value always gives the same bytes: user and group names are empty, records sorted.
    """
    records: dict[bytes, bytes] = {_XATTR + name: value for name, value in header.xattrs}
    name = header.name
    prefix = b""
    if len(name) > 100 or not name.isascii():
        split = _split_name(name) if name.isascii() else None
        if split:
            prefix, name = split
        else:
            records[b"path"] = header.name
            name = _ascii(name)[-100:].lstrip(b"/")
    target = header.target
    if len(target) > 100 or not target.isascii():
        records[b"linkpath"] = target
        target = _ascii(target)[:100]
    size = header.size if header.kind == REGULAR else 0
    numbers = {b"uid": header.uid, b"gid": header.gid, b"size": size}
    limits = {b"uid": _OCTAL_8, b"gid": _OCTAL_8, b"size": _OCTAL_12}
    for key, number in numbers.items():
        if number > limits[key]:
            records[key] = b"%d" % number
            numbers[key] = 0
    mtime, nanoseconds = divmod(header.mtime_ns, 1_000_000_000)
    if nanoseconds or not 0 <= mtime <= _OCTAL_12:
        records[b"mtime"] = _decimal_time(header.mtime_ns)
        mtime = min(max(mtime, 0), _OCTAL_12)
    fitting = header._replace(
        name=name, target=target, mtime_ns=mtime * 1_000_000_000, uid=numbers[b"uid"],
        gid=numbers[b"gid"], size=numbers[b"size"],
    )  # fmt: skip
    block = _block(fitting, prefix)
    return (_encode_records(header.name, records) if records else b"") + block


def padding(size: int) -> bytes:
    """The zeros that fill the last block of `size` bytes of content."""
    return bytes(-size % BLOCK)


def _block(header: Header, prefix: bytes = b"") -> bytes:
    """The 512 bytes of a header whose values all fit (POSIX.1-1988 ustar)."""
    head = b"%b%07o\0%07o\0%07o\0%011o\0%011o\0" % (
        header.name.ljust(100, b"\0"), header.mode & 0o7777, header.uid, header.gid,
        header.size, header.mtime_ns // 1_000_000_000,
    )  # fmt: skip
    major, minor = header.device
    tail = b"%b%bustar\x0000%b%07o\0%07o\0%b" % (
        header.kind, header.target.ljust(100, b"\0"), bytes(64), major, minor,
        prefix.ljust(155, b"\0"),
    )  # fmt: skip
    checksum = sum(head) + 8 * 32 + sum(tail)
    return head + b"%06o\0 " % checksum + tail + bytes(12)


def _split_name(name: bytes) -> tuple[bytes, bytes] | None:
    """Prefix and name of ustar: cut at a slash, 155 and 100 bytes at most."""
    cut = name.rfind(b"/", 0, 156)
    if cut <= 0 or not 0 < len(name) - cut - 1 <= 100:
        return None
    return name[:cut], name[cut + 1 :]


def _ascii(text: bytes) -> bytes:
    return text.decode("ascii", "replace").encode("ascii", "replace")


def _decimal_time(nanoseconds: int) -> bytes:
    sign = b"-" if nanoseconds < 0 else b""
    seconds, fraction = divmod(abs(nanoseconds), 1_000_000_000)
    digits = (b".%09d" % fraction).rstrip(b"0") if fraction else b""
    return b"%b%d%b" % (sign, seconds, digits)


def _encode_records(name: bytes, records: dict[bytes, bytes]) -> bytes:
    data = b"".join(_record(key, records[key]) for key in sorted(records))
    label = b"PaxHeaders.0/" + _ascii(name.rstrip(b"/").rpartition(b"/")[2])[:80]
    block = _block(Header(label, _PAX, 0o644, 0, 0, len(data), mtime_ns=0))
    return block + data + padding(len(data))


def _record(key: bytes, value: bytes) -> bytes:
    # The length counts its own digits (POSIX pax, "extended header keyword/value").
    body = b" %b=%b\n" % (key, value)
    length = len(body)
    while len(b"%d" % length) + len(body) != length:
        length = len(b"%d" % length) + len(body)
    return b"%d%b" % (length, body)


# --- reading ----------------------------------------------------------------------------------


class Reader:
    """Reads headers one after the other; the caller reads each entry's content in between.

    After `next()` gave a header, exactly `header.size` bytes of content must be taken by `read`
    or left: what is left is skipped by the following `next()`.
    """

    def __init__(self, stream: Input) -> None:
        self._stream = stream
        self._take = stream.read
        self._left = 0
        self._pad = 0
        self._global: dict[bytes, bytes] = {}

    def next(self) -> Header | None:
        """The next entry, `None` at the end. Raises `TarError`."""
        if self._left or self._pad:
            self._skip_content()
        pending: dict[bytes, bytes] = {}
        while (block := self._next_block()) is not None:
            header = _decode_block(block)
            if header.kind == REGULAR and not pending and not self._global:
                size = self._left = header.size
                self._pad = -size % BLOCK
                return header
            if header.kind in _EXTENSIONS:
                self._take_extension(header, pending)
                continue
            return self._finish(header, self._global | pending)
        if pending:
            raise TarError("the archive ends after an extended header")
        return None

    def read(self, size: int) -> bytes:
        """Up to `size` bytes of the current entry's content. Raises `TarError` when cut short."""
        wanted = min(size, self._left)
        if not wanted:
            return b""
        data = self._take(wanted)
        if not data:
            raise TarError(f"the archive ends {self._left} bytes before the end of a file")
        self._left -= len(data)
        return data

    def drain(self) -> None:
        """Reads what follows the end mark, so that whoever writes to us can finish."""
        while self._stream.read(1 << 20):
            pass

    def _skip_content(self) -> None:
        while self._left:
            self.read(1 << 20)
        if self._pad:
            if len(self._take(self._pad)) != self._pad:
                raise TarError("the archive ends inside the padding of a file")
            self._pad = 0

    def _next_block(self) -> bytes | None:
        block = self._take(BLOCK)
        if not block:
            return None  # no end mark; GNU tar and Go accept that too
        if len(block) != BLOCK:
            raise TarError("the archive ends inside a header")
        return block if any(block) else None

    def _take_extension(self, header: Header, pending: dict[bytes, bytes]) -> None:
        if header.size > _RECORDS_LIMIT:
            raise TarError(f"an extended header of {header.size} bytes is absurd")
        self._left, self._pad = header.size, -header.size % BLOCK
        parts = []
        while part := self.read(self._left):
            parts.append(part)
        self._skip_content()
        data = b"".join(parts)
        if header.kind == _PAX:
            pending |= _decode_records(data)
        elif header.kind == _PAX_GLOBAL:
            self._global |= _decode_records(data)
        else:
            pending[b"path" if header.kind == _GNU_NAME else b"linkpath"] = data.split(b"\0")[0]

    def _finish(self, header: Header, records: dict[bytes, bytes]) -> Header:
        if header.kind == _GNU_SPARSE or any(key.startswith(b"GNU.sparse.") for key in records):
            raise TarError(f"`{_show(header.name)}` is a sparse entry, which is not supported")
        if header.kind in (b"\0", _CONTIGUOUS):
            # Before POSIX, a directory was a file whose name ends with a slash.
            old_directory = header.kind == b"\0" and header.name.endswith(b"/")
            header = header._replace(kind=DIRECTORY if old_directory else REGULAR)
        if records:
            header = _with_records(header, records)
        if header.kind not in _KNOWN:
            raise TarError(f"`{_show(header.name)}` has the unknown type {header.kind!r}")
        if header.kind != REGULAR and header.size:
            # Some writers put the target's size into links; no content follows (GNU, Go agree).
            header = header._replace(size=0)
        self._left, self._pad = header.size, -header.size % BLOCK
        return header


def _decode_block(block: bytes) -> Header:
    written = block[148:156]
    unsigned = sum(block) - sum(written) + 8 * 32
    # As all of today write it; else what the number says.
    if written != b"%06o\0 " % unsigned and _number(written, "checksum") != unsigned:
        raise TarError("a header has a wrong checksum: the data is not a tar archive or is damaged")
    name = block[:100].split(b"\0", 1)[0]
    if block[345] and block[257:263] == b"ustar\0":
        name = block[345:500].split(b"\0", 1)[0] + b"/" + name
    kind = block[156:157]
    device = (0, 0)
    if kind in (CHARACTER, BLOCK_DEVICE):
        device = (_number(block[329:337], "major"), _number(block[337:345], "minor"))
    mode, uid, gid = _access(block[100:124])
    return Header(
        name,
        kind,
        mode,
        uid,
        gid,
        _size(_number(block[124:136], "size")),
        _seconds(block[136:148]) * 1_000_000_000,
        block[157:257].split(b"\0", 1)[0] if block[157] else b"",
        device,
    )


# Most entries of an archive are alike in these.
@lru_cache(256)
def _access(fields: bytes) -> tuple[int, int, int]:
    return (
        _number(fields[:8], "mode") & 0o7777,
        _number(fields[8:16], "uid"),
        _number(fields[16:], "gid"),
    )


@lru_cache(256)
def _seconds(field: bytes) -> int:
    return _number(field, "mtime")


def _size(number: int) -> int:
    if number < 0:
        raise TarError(f"a header has the negative size {number}")
    return number


def _number(data: bytes, what: str) -> int:
    if data[0] & 0x80:  # base-256, GNU
        value = int.from_bytes(data, "big") & ~(0x80 << (8 * (len(data) - 1)))
        negative = data[0] & 0x40
        return value - (1 << (8 * len(data) - 1)) if negative else value
    text = data.strip(b" \0").split(b"\0", 1)[0]
    try:
        return int(text, 8) if text else 0
    except ValueError:
        raise TarError(f"a header has the {what} {text!r}, which is no octal number") from None


def _decode_records(data: bytes) -> dict[bytes, bytes]:
    records: dict[bytes, bytes] = {}
    at = 0
    while at < len(data):
        # Eight digits at most. Cut out and not cut off: a header may have many records.
        length_text, space, _ = data[at : at + 9].partition(b" ")
        if not space or not length_text.isdigit():
            raise TarError("an extended header is malformed")
        end = at + int(length_text)
        key, equals, value = data[at + len(length_text) + 1 : end].partition(b"=")
        if end > len(data) or not equals or not value.endswith(b"\n"):
            raise TarError("an extended header is malformed")
        records[key] = value[:-1]
        at = end
    return records


def _with_records(header: Header, records: dict[bytes, bytes]) -> Header:
    name = records.get(b"path", header.name)
    target = records.get(b"linkpath", header.target)
    if b"\0" in name or b"\0" in target:
        raise TarError(f"`{_show(name)}` has a zero byte in its name")
    xattrs = tuple(
        (key[len(_XATTR) :], value) for key, value in records.items() if key.startswith(_XATTR)
    )
    mtime_ns = header.mtime_ns
    if b"mtime" in records:
        mtime_ns = _time_of_record(records[b"mtime"])
    return header._replace(
        name=name,
        target=target,
        uid=_integer(records.get(b"uid"), header.uid),
        gid=_integer(records.get(b"gid"), header.gid),
        size=_integer(records.get(b"size"), header.size),
        mtime_ns=mtime_ns,
        xattrs=xattrs,
    )


def _integer(text: bytes | None, default: int) -> int:
    if not text:
        return default
    if not text.isdigit() or len(text) > 19:
        raise TarError(f"an extended header has the number {text!r}")
    return int(text)


def _time_of_record(text: bytes) -> int:
    sign = -1 if text.startswith(b"-") else 1
    seconds, _, fraction = text.lstrip(b"+-").partition(b".")
    if not seconds.isdigit() or len(seconds) > 18 or (fraction and not fraction.isdigit()):
        raise TarError(f"an extended header has the time {text!r}")
    return sign * (int(seconds) * 1_000_000_000 + int(fraction[:9].ljust(9, b"0") or b"0"))


def _show(name: bytes) -> str:
    return name.decode(errors="backslashreplace")
