"""A registry that takes the specification lightly, in ways that real ones have.

It works, as they do: what it leaves out a client can do without.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from http.server import BaseHTTPRequestHandler
from typing import Any, Literal

from tests.fakes.registry import FakeRegistry, _Handler

# What each of them does; none has a `Location` on 201.
QUIRKS = {
    "no-digest": "no `Docker-Content-Digest`",
    "no-head": "405 for HEAD",
    "head-403": "403 for a HEAD of what is not there",
    "relative": "a `Location` that is relative to the address asked",
    "cookies": "cookies, and 403 for whoever brings them back",
    "parameters": "`Content-Type` with parameters, and in other letters",
    "octets": "no `Content-Type` of its own for manifests",
    "manifest-202": "202 for a manifest that was stored",
    "put-204": "204 for a blob that was stored",
    "patch-201": "201 for a chunk",
    "patch-204": "204 for a chunk",
    "no-range": "no `Range` in the answer to a chunk",
    "range-ignored": "the whole blob for a part of it",
    "no-length": "no `Content-Length`, and the end of the connection for the end of an answer",
    "mount-400": "400 for a mount",
    "mount-401": "401 for a mount",
    "mount-404": "404 for a mount",
    "mount-202": "an upload instead of a mount",
    "silent-401": "401 without a challenge, but for `/v2/`",
    "pages": "web pages for errors",
}


class SloppyRegistry(FakeRegistry):
    """A `FakeRegistry` with some of the `QUIRKS`."""

    def __init__(
        self,
        quirks: Collection[str],
        auth: Literal["none", "basic", "bearer"] = "none",
        users: Mapping[str, str] | None = None,
    ) -> None:
        assert set(quirks) <= set(QUIRKS)
        self.quirks = frozenset(quirks)
        super().__init__(auth, users=users)
        self.allow_mount = "mount-202" not in quirks
        for status in (201, 204):
            if f"patch-{status}" in quirks:
                self.patch_status = status

    def handler(self) -> type[BaseHTTPRequestHandler]:
        """What answers requests."""
        return _Sloppy


class _Sloppy(_Handler):
    def _is(self, quirk: str) -> bool:
        fake = self.server.fake
        return isinstance(fake, SloppyRegistry) and quirk in fake.quirks

    def _authorized(self, path: str) -> bool:
        if self._is("cookies") and self.headers.get("Cookie"):
            self._error(403, "CSRF_TOKEN_INVALID")
            return False
        return super()._authorized(path)

    def _blob(self, repository: str, digest: str) -> None:
        if self._is("range-ignored"):
            del self.headers["Range"]
        super()._blob(repository, digest)

    def _start_upload(self, repository: str) -> None:
        for status in (400, 401, 404):
            if "mount" in self.entry.query and self._is(f"mount-{status}"):
                self._error(status, "UNKNOWN")
                return
        super()._start_upload(repository)

    def _answer(
        self, status: int, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> None:
        status = self._other_status(status)
        if self._is("pages") and status >= 400:
            body = b"<html><body>Something went wrong</body></html>"
        super()._answer(status, body, self._other_headers(status, headers or {}))

    def _other_status(self, status: int) -> int:
        kind = f"{self.command} {status}"
        blob = "/blobs/" in self.path
        if self.command == "HEAD" and self._is("no-head"):
            return 405
        others = {
            "HEAD 404": (403, self._is("head-403")),
            "PUT 201": (204, self._is("put-204")) if blob else (202, self._is("manifest-202")),
        }
        other, wanted = others.get(kind, (status, False))
        return other if wanted else status

    def _other_headers(self, status: int, headers: Mapping[str, str]) -> dict[str, str]:
        changed = dict(headers)
        kind = changed.get("Content-Type")
        if self._is("no-digest"):
            changed.pop("Docker-Content-Digest", None)
        if self._is("no-range") and self.command == "PATCH":
            changed.pop("Range", None)
        if self._is("silent-401") and self.path != "/v2/":
            changed.pop("WWW-Authenticate", None)
        if self._is("relative") and "Location" in changed:
            changed["Location"] = changed["Location"].rpartition("/")[2]
        if self._is("cookies"):
            changed["Set-Cookie"] = "sid=0123456789; Path=/; HttpOnly"
        if kind and self._is("octets"):
            changed["Content-Type"] = "application/octet-stream"
        elif kind and self._is("parameters"):
            changed["Content-Type"] = f"{kind.upper()}; charset=utf-8"
        return changed

    def send_header(self, keyword: str, value: str) -> None:
        """Leaves out what is left out."""
        if keyword == "Content-Length" and self._is("no-length") and self.command == "GET":
            keyword, value = "Connection", "close"
            self.close_connection = True
        super().send_header(keyword, value)

    def _error(self, status: int, code: str, headers: Any = None) -> None:
        unknown = self._is("pages") and status == 404
        super()._error(status, "UNKNOWN" if unknown else code, headers)
