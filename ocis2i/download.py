"""The scripts of a build over HTTP: small files from a server that is no registry.

Nothing vouches for what such a server sends (source-to-image takes every body that comes with
status 200), so a web page or an empty body is an error here, and plain http is pointed out.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from functools import partial

from ocis2i.errors import RegistryError, ScriptsError
from ocis2i.events import Notice, Report
from ocis2i.net import (
    RETRYABLE_STATUS,
    Http,
    Request,
    RequestError,
    message_with_url,
    origin,
    read_body,
    redacted,
    retry_after_seconds,
    split_credentials,
)
from ocis2i.retries import Retries, Sleep
from ocis2i.web_files import HTML_TYPES, looks_like_html

_FOUND = (200, 201)  # upstream's, `pkg/scripts/download.go`
_REFUSED = (401, 403)
_PROXY_WANTS_PASSWORD = 407


class ScriptDownloads:
    """Fetches scripts; `scripts.resolve` takes it as its `download`."""

    def __init__(self, http: Http, report: Report, *, sleep: Sleep | None = None) -> None:
        self._http = http
        self._report = report
        self._retries = Retries(sleep or threading.Event().wait)
        self._warned: set[tuple[str, str, int]] = set()

    def __call__(self, url: str, limit: int) -> bytes | None:
        """The file at `url`, None when the server says that there is none (any lasting 4xx).

        User and password in `url` go to its own host only. Raises `ScriptsError`: no answer or
        one of status 5xx after several tries, more than `limit` bytes, a web page, an empty body.
        """
        try:
            self._warn_of_plain_http(url)
            address, authorization = split_credentials(url)
            request = Request("GET", address, authorization=authorization, registry=False)
            return self._retries.call(partial(self._get, request, limit))
        except RegistryError as error:
            raise ScriptsError(
                f"cannot fetch a script: {message_with_url(error, url)}",
                hint=error.hint,
                reason="FetchScriptsFailed",
            ) from error

    def _get(self, request: Request, limit: int) -> bytes | None:
        response = self._http.exchange(request)
        status = response.status_code
        if status not in _FOUND:
            response.close()
            self._check_absent(request, status, response.headers)
            return None
        media_type = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        encoding = response.headers.get("Content-Encoding", "").strip().lower()
        if encoding not in ("", "identity"):
            response.close()
            raise RequestError("the answer is compressed, which nobody asked for", kind="other")
        body = read_body(response, limit)
        if not body:
            raise RequestError("the answer is empty", kind="other")
        if media_type in HTML_TYPES or looks_like_html(body):
            raise RequestError(
                "the answer is a web page and no script",
                kind="other",
                hint="is it the page of an error or a login? name the address of the bare files",
            )
        return body

    def _check_absent(self, request: Request, status: int, headers: Mapping[str, str]) -> None:
        """Reports that the file is not there; raises `RequestError` for any other answer."""
        lasting = status not in RETRYABLE_STATUS and status != _PROXY_WANTS_PASSWORD
        if not (400 <= status < 500 and lasting):
            raise RequestError(
                f"{request} answered with status {status}",
                kind="status",
                status=status,
                retry_after_seconds=retry_after_seconds(headers),
            )
        refused = status in _REFUSED
        words = "is refused" if refused else "is not there"
        text = f"the script `{redacted(request.url)}` {words} (status {status})"
        self._report(Notice("warning" if refused else "info", text))

    def _warn_of_plain_http(self, url: str) -> None:
        server = origin(url)
        if server[0] == "http" and server not in self._warned:
            self._warned.add(server)
            text = "are not encrypted: anybody on the way can change what the build runs"
            self._report(Notice("warning", f"scripts from `http://{server[1]}` {text}"))
