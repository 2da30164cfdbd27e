"""What a layer is made of, and its deterministic tar. Pure; used by the agent.

The rules are those of image-spec `layer.md`: whiteouts are empty files named `.wh.NAME`, an opaque
directory holds `.wh..wh..opq`, and both stand for something that is gone.
"""

from __future__ import annotations

from typing import NamedTuple

from ocis2i import tar

WHITEOUT_PREFIX = b".wh."
OPAQUE_MARKER = b".wh..wh..opq"


class Member(NamedTuple):
    """Something that is there: `path` without a leading slash, `mtime_ns` in nanoseconds.

    `kind` is one of the type bytes of `ocis2i.tar`; `target` the text of a symbolic link or the
    path of an earlier member for a hard link; `xattrs` sorted by name.
    """

    path: bytes
    kind: bytes
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int = 0
    target: bytes = b""
    xattrs: tuple[tuple[bytes, bytes], ...] = ()


class Whiteout(NamedTuple):
    """Something that is gone: `path` itself, or for `opaque` everything below it in the base."""

    path: bytes
    opaque: bool = False


Entry = Member | Whiteout


class TarPolicy(NamedTuple):
    """What could differ between two machines, decided once.

    `clamp_mtime` in seconds: no time in the layer is later. Times are whole seconds always.
    """

    clamp_mtime: int | None = None


class ReservedNameError(Exception):
    """A file's name begins with `.wh.`, which no layer can hold."""


def encode_entry(entry: Entry, policy: TarPolicy) -> bytes:
    """The tar header of an entry; the content of a regular file follows it, padded.

    Raises `ReservedNameError` for a real file with a whiteout's name.
    """
    if isinstance(entry, Whiteout):
        return tar.encode_header(
            tar.Header(_whiteout_name(entry), tar.REGULAR, 0o644, 0, 0, size=0, mtime_ns=0)
        )
    if entry.path.rpartition(b"/")[2].startswith(WHITEOUT_PREFIX):
        raise ReservedNameError(entry.path.decode(errors="backslashreplace"))
    seconds = entry.mtime_ns // 1_000_000_000
    if policy.clamp_mtime is not None:
        seconds = min(seconds, policy.clamp_mtime)
    name = (entry.path or b".") + b"/" if entry.kind == tar.DIRECTORY else entry.path
    return tar.encode_header(
        tar.Header(
            name,
            entry.kind,
            entry.mode,
            entry.uid,
            entry.gid,
            entry.size,
            seconds * 1_000_000_000,
            entry.target,
            xattrs=entry.xattrs,
        )
    )


def _whiteout_name(entry: Whiteout) -> bytes:
    if entry.opaque:
        return entry.path + b"/" + OPAQUE_MARKER if entry.path else OPAQUE_MARKER
    parent, slash, name = entry.path.rpartition(b"/")
    return parent + slash + WHITEOUT_PREFIX + name
