"""A source that is one file: a program, a jar or a war, built elsewhere.

It comes from this host, from standard input or over HTTP, and becomes `src/NAME`. What it is, its
content says (`binaries`); what turns out to be an archive is unpacked as every other.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, cast

from ocis2i import tar
from ocis2i.binaries import (
    HEAD_SIZE,
    MANIFEST,
    Binary,
    SourceType,
    check_name,
    foreign_format,
    has_java_name,
    recognise_java,
    recognise_program,
)
from ocis2i.blobs import CHUNK
from ocis2i.errors import PolicyError, SourceError, shown
from ocis2i.events import Notice, Report
from ocis2i.lazy_dataclass import dataclass
from ocis2i.s2i import SourceInfo, redact_url
from ocis2i.settings import Settings
from ocis2i.sources.archive import (
    ACCEPTED,
    ArchiveSource,
    fetch_archive,
    open_file,
    recognise,
)
from ocis2i.sources.ignore import DEFAULT_EXCLUDE
from ocis2i.sources.local import Fetched

_MANIFEST_LIMIT = 1 << 20
_AS_IT_IS = "--source-type file takes any file as it is"


@dataclass(frozen=True, slots=True)
class SingleSource:
    """A file; of `path` and `url` one is set, or none: standard input.

    `typed` is how the user wrote it, `url` has no fragment, `digest` is the SHA-256 that it must
    have. `type` `auto` may turn out to be an archive, of which `context_dir` and the rest are.
    """

    path: Path | None
    typed: str
    name: str
    url: str | None = None
    digest: str | None = None
    type: SourceType = "auto"
    context_dir: str = ""
    exclude: str = DEFAULT_EXCLUDE
    keep_symlinks: bool = False

    @property
    def where(self) -> str:
        """What messages call it."""
        if self.path is None and self.url is None:
            return "standard input"
        return f"`{shown(redact_url(self.typed))}`"


# --- what it is -------------------------------------------------------------------------------


def is_single(path: Path, name: str) -> bool:
    """Whether the file at `path` is a source by itself, not an archive of one.

    Raises `SourceError` for what no container runs, and `OSError`.
    """
    with open_file(path, f"`{shown(str(path))}`") as file:
        return inspect(file, name, f"`{shown(name)}`") is not None


def inspect(file: BinaryIO, name: str, where: str) -> Binary | None:
    """What a seekable file is; `None` for an archive and for what is nothing known.

    Raises `SourceError` for what no container runs.
    """
    file.seek(0)
    head = file.read(tar.BLOCK)
    # A Spring Boot jar may begin with a script and still be a jar: its name says so.
    if has_java_name(name) and (found := _java(file, name)):
        return found
    if foreign := foreign_format(head[:HEAD_SIZE]):
        what, hint = foreign
        raise SourceError(f"{where} is {what}", hint=f"{hint}; {_AS_IT_IS}")
    return recognise_program(head[:HEAD_SIZE])


def _java(file: BinaryIO, name: str) -> Binary | None:
    import zipfile  # noqa: PLC0415 - few sources are one

    from ocis2i.sources.zipped import BROKEN, BoundedZip  # noqa: PLC0415

    try:
        with zipfile.ZipFile(BoundedZip(file, f"`{shown(name)}`")) as archive:
            manifest = None
            with suppress(KeyError), archive.open(MANIFEST) as entry:
                manifest = entry.read(_MANIFEST_LIMIT)
            return recognise_java(name, archive.NameToInfo, manifest)
    except BROKEN:
        return None


def check_single(path: Path, typed: str) -> None:
    """Raises `SourceError` for a file that cannot be read, or is empty."""
    try:
        with open_file(path, f"`{shown(typed)}`") as file:
            if not file.read(1):
                text = f"the source `{shown(typed)}` is empty"
                raise SourceError(text, hint=f"accepted is {ACCEPTED}, or a program")
    except OSError as error:
        raise SourceError(
            f"cannot read `{shown(typed)}`: {error.strerror}", hint="let this user read it"
        ) from error


# --- fetching it ------------------------------------------------------------------------------


def fetch_single(
    source: SingleSource,
    into: Path,
    *,
    stdin: BinaryIO | None,
    settings: Settings,
    report: Report,
) -> Fetched:
    """Puts the file, or what is in it if it is an archive, into the empty directory `into`.

    Raises `SourceError`, and `PolicyError` for one that is larger than a layer may be.
    """
    with tempfile.TemporaryDirectory(
        dir=into.parent, prefix="file-", ignore_cleanup_errors=True
    ) as scratch:
        content = Path(scratch) / "content"
        if source.url is not None:
            source = replace(source, digest=_download(source, content, settings, report))
        elif source.path is None:
            piped = _piped(stdin)
            if source.type == "auto" and (rest := _archive_in(piped, source.name)):
                # An archive is unpacked as it comes.
                archive = _as_archive(source, None)
                return fetch_archive(archive, into, stdin=rest, settings=settings, report=report)
            with content.open("xb") as out:
                _copy(piped, out, source.where, settings.layer_limit)
        else:
            content = source.path
        with open_file(content, source.where) as file:
            found = _decide(file, source)
            if found is not None:
                return _place(
                    file, source, found, into, limit_bytes=settings.layer_limit, report=report
                )
        archive = _as_archive(source, content)
        fetched = fetch_archive(archive, into, stdin=None, settings=settings, report=report)
    return replace(fetched, info=replace(fetched.info, location=_location(source)))


def _decide(file: BinaryIO, source: SingleSource) -> Binary | None:
    """What is to be done: a file to be placed, or `None` for an archive to be unpacked."""
    if source.type == "archive":
        return None
    if source.type == "file":
        try:
            found = inspect(file, source.name, source.where)
        except SourceError:
            found = None
        # The user's word: it may be data for another machine.
        return replace(found, architecture="") if found else Binary("other")
    found = inspect(file, source.name, source.where)
    if found is None and source.url is not None:
        file.seek(0)
        if recognise(file.read(tar.BLOCK)) is None:
            raise no_source(source.where)
    return found


def no_source(where: str) -> SourceError:
    """The refusal of a file that is nothing known."""
    return SourceError(
        f"{where} is no archive and no program",
        hint=f"accepted is {ACCEPTED}; an ELF program, a script with `#!`, a .jar or a .war; "
        f"{_AS_IT_IS}",
    )


def _place(
    file: BinaryIO,
    source: SingleSource,
    found: Binary,
    into: Path,
    *,
    limit_bytes: int,
    report: Report,
) -> Fetched:
    name = check_name(source.name)
    target = into / name
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    status = os.fstat(file.fileno())
    file.seek(0)
    with os.fdopen(os.open(target, flags, 0o600), "wb") as out:
        digest, size = _copy(file, out, source.where, limit_bytes)
        out.flush()
        os.fchmod(out.fileno(), found.mode)
        # A download is as old as it is here.
        now = time.time_ns()
        os.utime(out.fileno(), ns=(status.st_mtime_ns if source.path else now,) * 2)
    if not size:
        raise SourceError(f"{source.where} is empty", hint="name a file that has something in it")
    for sentence in found.warnings:
        report(Notice("warning", f"`{shown(name)}`: {sentence}"))
    info = SourceInfo(
        location=_location(source),
        file_name=name,
        file_sha256=digest,
        file_kind=found.kind,
        file_architecture=found.architecture,
    )
    return Fetched(info)


def _location(source: SingleSource) -> str:
    if source.url is None:
        return source.typed  # `-` too: a rebuild says then that it is not kept
    from ocis2i.web_files import pinned  # noqa: PLC0415 - few sources are one

    return pinned(redact_url(source.url), source.digest or "")


def _as_archive(source: SingleSource, content: Path | None) -> ArchiveSource:
    typed = redact_url(source.typed)
    return ArchiveSource(content, typed, source.context_dir, source.exclude, source.keep_symlinks)


def _copy(file: BinaryIO, out: BinaryIO, where: str, limit_bytes: int) -> tuple[str, int]:
    """Copies to the end; the SHA-256 in hex, and the size in bytes."""
    found, size = hashlib.sha256(), 0
    while data := file.read(CHUNK):
        size += len(data)
        if size > limit_bytes:
            raise PolicyError(
                f"{where} has more than {limit_bytes} bytes",
                hint="raise the limit with OCIS2I_LAYER_LIMIT if the file is to be trusted",
            )
        found.update(data)
        out.write(data)
    return found.hexdigest(), size


# --- standard input -----------------------------------------------------------------------------


def _piped(stdin: BinaryIO | None) -> BinaryIO:
    if stdin is None or stdin.isatty():
        raise SourceError(
            "there is no archive on standard input, and no program",
            hint="pipe one in: `git archive HEAD | ocis2i build - …`",
        )
    return cast(BinaryIO, _Ahead(stdin))


class _Ahead:
    """A stream whose beginning can be looked at."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._ahead = b""

    def peek(self, size: int) -> bytes:
        while len(self._ahead) < size and (data := self._stream.read(size - len(self._ahead))):
            self._ahead += data
        return self._ahead[:size]

    def read(self, size: int = -1, /) -> bytes:
        if not self._ahead:
            return self._stream.read(size)
        wanted = len(self._ahead) if size < 0 else size
        data, self._ahead = self._ahead[:wanted], self._ahead[wanted:]
        return data

    def isatty(self) -> bool:
        return False


def _archive_in(piped: BinaryIO, name: str) -> BinaryIO | None:
    """The stream again if it is to be unpacked, or to be refused as no archive.

    Raises `SourceError` for what no container runs.
    """
    head = cast(_Ahead, piped).peek(tar.BLOCK)
    if not head:
        return piped
    if recognise(head) == "zip":
        return None if has_java_name(name) else piped
    if foreign := foreign_format(head[:HEAD_SIZE]):
        what, hint = foreign
        raise SourceError(f"standard input is {what}", hint=f"{hint}; {_AS_IT_IS}")
    # A jar with a script before it is one by its end.
    if recognise_program(head[:HEAD_SIZE]):
        return None
    if recognise(head) is None:
        raise no_source("standard input")
    return piped


# --- over HTTP ----------------------------------------------------------------------------------


def _download(source: SingleSource, content: Path, settings: Settings, report: Report) -> str:
    from ocis2i.net import Http  # noqa: PLC0415 - few sources are one
    from ocis2i.web_files import WebFiles, pinned  # noqa: PLC0415

    url = source.url or ""
    limit = settings.layer_limit
    report(Notice("info", f"downloading `{shown(redact_url(url))}`"))
    with closing(Http(settings.environment)) as http, content.open("xb+") as out:
        digest = WebFiles(http).fetch(url, out, digest=source.digest, limit_bytes=limit)
    if source.digest is None:
        text = f"nothing vouches for this file; pin it: `{shown(pinned(redact_url(url), digest))}`"
        plain = "it came over plain http, and " if url.lower().startswith("http:") else ""
        report(Notice("warning", f"{plain}{text}"))
    return digest
