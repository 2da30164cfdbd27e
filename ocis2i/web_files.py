"""One large file over HTTP, from a server that is no registry, into a file of ours.

What comes is counted and hashed on the way; a digest that the user knows decides whether it is
right. Nothing else vouches for a file: KubeSphere's downloader stores the page of an error as the
program, which is why an answer of another status, a web page and an empty body are errors here.
"""

from __future__ import annotations

import codecs
import hashlib
import re
import threading
from dataclasses import field
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import unquote, urlsplit

from ocis2i.errors import PolicyError, RegistryError, SourceError, UsageError
from ocis2i.lazy_dataclass import dataclass
from ocis2i.net import (
    Http,
    Request,
    RequestError,
    continues_at,
    message_with_url,
    read_blocks,
    redacted,
    retry_after_seconds,
    split_credentials,
)
from ocis2i.retries import Retries, Sleep

if TYPE_CHECKING:
    import requests

HTML_TYPES = frozenset({"text/html", "application/xhtml+xml"})

_HTML_STARTS = (b"<!doctype html", b"<html")
_HTML_LOOK = 1024
_DIGEST = re.compile(r"[0-9a-f]{64}\Z")
_PIN = "sha256="
# Of other tools: they would be taken for a branch of git.
_OTHER_PINS = ("md5=", "sha1=", "sha512=", "sha384=", "checksum=")
_MUCH = 1 << 20  # who got on so far over a bad line is not at the end of its patience
_GONE = (404, 410)
_REFUSED = (401, 403)


def looks_like_html(body: bytes) -> bool:
    """Whether `body` begins as a web page, after a byte order mark and white space."""
    start = body.removeprefix(codecs.BOM_UTF8).lstrip()[:32].lower()
    return start.startswith(_HTML_STARTS)


def is_pinned(fragment: str) -> bool:
    """Whether what stands behind `#` is a digest of a file, and no ref of git."""
    return fragment.lower().startswith((_PIN, *_OTHER_PINS))


def parse_pin(fragment: str) -> str:
    """The SHA-256 of `sha256=HEX`, in lower case; raises `UsageError`."""
    if not fragment.lower().startswith(_PIN):
        raise UsageError(
            f"`#{fragment[:80]}` is no digest that is known here",
            hint="write #sha256= and 64 hexadecimal digits, which `sha256sum FILE` prints",
        )
    digest = fragment[len(_PIN) :].lower()
    if not _DIGEST.match(digest):
        raise UsageError(
            f"`#{fragment[:80]}` is no digest", hint="write #sha256= and 64 hexadecimal digits"
        )
    return digest


def pinned(url: str, digest: str) -> str:
    """`url` with the digest of what is there."""
    return f"{url}#{_PIN}{digest}"


def name_in_url(url: str) -> str:
    """The file's name that the path of a URL ends in; empty when it has none."""
    return unquote(urlsplit(url).path, errors="surrogateescape").rpartition("/")[2]


@dataclass(slots=True)
class _Arrived:
    """How much of the file is there, and its hash."""

    into: BinaryIO
    limit_bytes: int
    size: int = 0
    hash: hashlib._Hash = field(default_factory=hashlib.sha256)

    def restart(self) -> None:
        self.size = 0
        self.hash = hashlib.sha256()
        self.into.seek(0)
        self.into.truncate()

    def write(self, block: bytes, url: str) -> None:
        self.into.write(block)
        self.hash.update(block)
        self.size += len(block)
        if self.size > self.limit_bytes:
            raise PolicyError(
                f"`{redacted(url)}` has more than {self.limit_bytes} bytes",
                hint="raise the limit with OCIS2I_LAYER_LIMIT if the file is to be trusted",
            )


class WebFiles:
    """Fetches files; a broken download goes on where it broke, if the digest is known."""

    def __init__(self, http: Http, *, sleep: Sleep | None = None) -> None:
        self._http = http
        self._retries = Retries(sleep or threading.Event().wait)

    def fetch(self, url: str, into: BinaryIO, *, digest: str | None, limit_bytes: int) -> str:
        """Writes the file at `url` to the empty file `into`; its SHA-256.

        User and password in `url` go to its own host only. Raises `SourceError`: no answer or a
        passing error after several tries, another status than 200, a web page, an empty body, less
        than was announced, another digest than `digest`; `PolicyError` over the limit.
        """
        address, authorization = split_credentials(url)
        arrived = _Arrived(into, limit_bytes)
        series = self._retries.series()
        resumed = False
        while True:
            before = arrived.size
            try:
                self._receive(
                    Request("GET", address, authorization=authorization, registry=False),
                    arrived,
                    digest,
                )
            except RequestError as error:
                moved = arrived.size - before >= _MUCH
                try:
                    series.failed(error, moved=moved)
                except RegistryError as last:
                    raise _not_fetched(last, url) from last
                if digest is None:
                    arrived.restart()  # it may be another file by now
                resumed = resumed or arrived.size > 0
                continue
            found = arrived.hash.hexdigest()
            if digest in (None, found):
                return found
            if not resumed:
                raise _other_digest(url, digest or "", found, into)
            # The two parts may be of two files.
            resumed = False
            arrived.restart()

    def _receive(self, request: Request, arrived: _Arrived, digest: str | None) -> None:
        start = arrived.size
        if start:
            headers = {"Range": f"bytes={start}-"}
            request = Request(
                "GET",
                request.url,
                headers,
                authorization=request.authorization,
                registry=False,
            )
        response = self._http.exchange(request)
        with response:
            _check(request, response, start=start, is_pinned=digest is not None)
            if start and not continues_at(response, start):
                arrived.restart()
                if response.status_code in (206, 416):
                    raise RequestError(f"{request} did not go on where it broke", kind="broken")
            first = arrived.size == 0
            for block in read_blocks(response):
                if first and digest is None and looks_like_html(block[:_HTML_LOOK]):
                    raise _web_page(request)
                first = False
                arrived.write(block, request.url)
        if not arrived.size:
            raise SourceError(f"`{redacted(request.url)}` is empty", hint="look at the address")


def _check(request: Request, response: requests.Response, *, start: int, is_pinned: bool) -> None:
    """Raises for an answer that is not the file, or what follows `start` bytes of it."""
    status, name = response.status_code, redacted(request.url)
    if status in _GONE:
        raise SourceError(
            f"`{name}` is not there (status {status})",
            hint="look at the address, and whether it is there without credentials",
        )
    if status in _REFUSED:
        raise SourceError(
            f"`{name}` is refused (status {status})",
            hint="has the address expired? user and password go before the host: https://USER:PASSWORD@…",
        )
    if status not in ((200, 206, 416) if start else (200,)):
        raise RequestError(
            f"{request} answered with status {status}",
            kind="status",
            status=status,
            retry_after_seconds=retry_after_seconds(response.headers),
        )
    if response.headers.get("Content-Encoding", "").strip().lower() not in ("", "identity"):
        raise SourceError(
            f"`{name}` comes compressed, which nobody asked for",
            hint="let the server send the file as it is",
        )
    media_type = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if media_type in HTML_TYPES and not is_pinned:
        raise _web_page(request)


def _web_page(request: Request) -> SourceError:
    return SourceError(
        f"`{redacted(request.url)}` is a web page and no file",
        hint="is it the page of an error or a login? name the address of the bare file",
    )


def _other_digest(url: str, wanted: str, found: str, into: BinaryIO) -> SourceError:
    into.seek(0)
    page = ", and looks like a web page" if looks_like_html(into.read(_HTML_LOOK)) else ""
    return SourceError(
        f"`{redacted(url)}` has the digest sha256={found}{page}, not sha256={wanted}",
        hint="it is not the file that was pinned: ask who serves it, and change the digest only "
        "if the new file is to be trusted",
    )


def _not_fetched(error: RegistryError, url: str) -> SourceError:
    return SourceError(f"cannot fetch the source: {message_with_url(error, url)}", hint=error.hint)
