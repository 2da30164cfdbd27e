"""A registry in this process: a loopback HTTP server that checks what it gets and fails on request.

It keeps a log of every request, which is what tests look at.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

from ocis2i.manifest import Descriptor
from ocis2i.reference import Digest, Reference
from tests.fakes.server import LoopbackServer, Served
from tests.fakes.token_server import Gate

BLOB_TYPE = "application/octet-stream"
SILENT_SECONDS = 60
_PATH = re.compile(r"/v2/(?P<repo>.+)/(?P<kind>blobs/uploads|blobs|manifests)/(?P<rest>.*)\Z")


@dataclass
class Logged:
    """One request as it came; `received` counts the bytes of its body that were read."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    status: int = 0
    received: int = 0


@dataclass
class Fault:
    """Something to go wrong with requests whose method and path match; `times` is -1 for always.

    `reset_after` bytes of the request's body the connection is reset; `truncate` cuts the answer
    after so many bytes; `corrupt` turns over the answer's first byte; `drop` does as asked, but
    closes the connection instead of answering. A `silent` one does not end the connection after
    `reset_after` or `truncate`, it just says nothing more.
    """

    method: str
    path: str
    times: int = 1
    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    reset_after: int | None = None
    truncate: int | None = None
    corrupt: bool = False
    drop: bool = False
    silent: bool = False


class FakeRegistry(Gate, Served):
    """A registry on `host` while its `with` block lasts; all data and knobs are open attributes.

    It speaks http, or https with `certificate`, a PEM file that holds the key, too. With
    `clients` it speaks only to those who show a certificate that this file vouches for.
    """

    def __init__(
        self,
        auth: Literal["none", "basic", "bearer"] = "none",
        *,
        users: Mapping[str, str] | None = None,
        certificate: Path | None = None,
        clients: Path | None = None,
    ) -> None:
        Gate.__init__(self, auth, users)
        self.allow_mount = True
        self.rewrite_location: Callable[[str], str] = lambda location: location
        self.blobs: dict[str, dict[str, bytes]] = {}
        self.manifests: dict[str, dict[str, tuple[str, bytes]]] = {}
        self.uploads: set[str] = set()
        self.chunks: dict[str, bytes] = {}
        self.body_limit: int | None = None
        self.least_chunk: int | None = None
        self.patch_status = 202
        self.faults: list[Fault] = []
        self.log: list[Logged] = []
        self.lock = threading.Lock()
        self.over = threading.Event()
        Served.__init__(self, _Server(self, self.handler()))
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            if clients is not None:
                context.load_verify_locations(clients)
                context.verify_mode = ssl.CERT_REQUIRED
                # Later versions say so only after the client has begun to speak.
                context.maximum_version = ssl.TLSVersion.TLSv1_2
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )

    def __exit__(self, *exc: object) -> None:
        self.over.set()
        super().__exit__(*exc)

    def handler(self) -> type[BaseHTTPRequestHandler]:
        """What answers requests."""
        return _Handler

    def reference(self, name: str) -> Reference:
        """`name` (repository with tag or digest) in this registry."""
        return Reference.parse(f"{self.host}/{name}")

    def put_blob(self, repository: str, data: bytes, media_type: str = BLOB_TYPE) -> Descriptor:
        """Stores a blob without a request."""
        digest = Digest.of(data)
        self.blobs.setdefault(repository, {})[str(digest)] = data
        return Descriptor(media_type, digest, len(data))

    def put_manifest(self, repository: str, tag: str, raw: bytes, media_type: str) -> Digest:
        """Stores a manifest without a request and without a look at what it refers to."""
        digest = Digest.of(raw)
        known = self.manifests.setdefault(repository, {})
        known[tag] = known[str(digest)] = (media_type, raw)
        return digest

    def put_layout(self, repository: str, tag: str, layout: Path) -> str:
        """Stores the first image of an OCI layout without a request; its name in this registry."""
        for blob in sorted((layout / "blobs" / "sha256").iterdir()):
            self.put_blob(repository, blob.read_bytes())
        entry = json.loads((layout / "index.json").read_bytes())["manifests"][0]
        raw = (layout / "blobs" / "sha256" / entry["digest"][7:]).read_bytes()
        self.put_manifest(repository, tag, raw, entry["mediaType"])
        return f"{self.host}/{repository}:{tag}"

    def fail(self, method: str, path: str, **how: Any) -> None:
        """Adds a `Fault`; `path` is searched for as a regular expression."""
        self.faults.append(Fault(method, path, **how))

    def requests(self, method: str, path: str = "") -> list[Logged]:
        """The logged requests with this method whose path contains the expression `path`."""
        return [e for e in self.log if e.method == method and re.search(path, e.path)]

    def calls(self) -> list[str]:
        """`METHOD status` of all requests, for looking at."""
        return [f"{e.method} {e.path} {e.status}" for e in self.log]

    def take_fault(self, method: str, path: str) -> Fault | None:
        """The first fault for a request, counted down."""
        with self.lock:
            for fault in self.faults:
                if fault.times and fault.method == method and re.search(fault.path, path):
                    fault.times -= 1
                    return fault
        return None


class _Server(LoopbackServer):
    def __init__(self, fake: FakeRegistry, handler: type[BaseHTTPRequestHandler]) -> None:
        self.fake = fake
        super().__init__(handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: clients that go away are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server
    timeout = 20

    def log_message(self, *args: Any) -> None:
        """Nothing: the fake has its own log."""

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_GET  # noqa: N815 - http.server's names

    def _serve(self) -> None:
        self.fake = self.server.fake
        parts = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        query = parse_qs(parts.query, keep_blank_values=True)
        self.entry = Logged(self.command, parts.path, query, headers)
        self.fake.log.append(self.entry)
        self.fault = self.fake.take_fault(self.command, parts.path)
        if self.fault and self.fault.reset_after is not None:
            self._reset(self.fault.reset_after)
            return
        if self._too_large():
            return
        self.body = self._read_body()
        if self.fault and self.fault.status:
            self._answer(self.fault.status, self.fault.body, dict(self.fault.headers))
        elif parts.path == "/token":
            self._token()
        elif self._authorized(parts.path):
            self._route(parts.path)

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b"".join(self._chunks())
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.entry.received = len(body)
        return body

    def _chunks(self) -> Iterator[bytes]:
        """(RFC 9112, section 7.1.)"""
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def _too_large(self) -> bool:
        """Answers before the body was read, as a proxy with a limit does."""
        limit = self.fake.body_limit
        if limit is None or int(self.headers.get("Content-Length") or 0) <= limit:
            return False
        self.body = b""
        self.close_connection = True
        self._answer(413, b"<html>Request Entity Too Large</html>", {"Connection": "close"})
        return True

    def _reset(self, after: int) -> None:
        self.entry.received = len(self.rfile.read(after)) if after else 0
        if self.fault and self.fault.silent:
            self.fake.over.wait(SILENT_SECONDS)
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.close_connection = True

    def _answer(
        self, status: int, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> None:
        fault = self.fault
        if fault and fault.drop:
            self.close_connection = True
            return
        self.entry.status = status
        if fault and fault.corrupt and body:
            body = bytes([body[0] ^ 0xFF]) + body[1:]
        self.send_response(status)
        headers = {"Content-Length": str(len(body)), **(headers or {})}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault and fault.truncate is not None:
            body = body[: fault.truncate]
            self.close_connection = True
        self.wfile.write(body)
        if fault and fault.silent:
            self.wfile.flush()
            self.fake.over.wait(SILENT_SECONDS)

    def _error(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        message = code.replace("_", " ").lower()
        body = json.dumps({"errors": [{"code": code, "message": message}]}).encode()
        self._answer(status, body, headers)

    # --- who may ------------------------------------------------------------------------------

    def _authorized(self, path: str) -> bool:
        authorization = self.headers.get("Authorization", "")
        challenge = self.fake.challenge(self.command, path, authorization, self.fake.host)
        if challenge is not None:
            self._error(401, "UNAUTHORIZED", {"WWW-Authenticate": challenge})
        return challenge is None

    def _token(self) -> None:
        authorization = self.headers.get("Authorization", "")
        status, answer = self.fake.issue(self.command, self.entry.query, authorization, self.body)
        self._answer(status, json.dumps(answer).encode())

    # --- what is asked ------------------------------------------------------------------------

    def _route(self, path: str) -> None:
        if path == "/v2/":
            self._answer(200, b"{}")
            return
        match = _PATH.match(path)
        if not match:
            self._error(404, "NAME_UNKNOWN")
        elif match["kind"] == "manifests":
            self._manifest(match["repo"], match["rest"])
        elif match["kind"] == "blobs":
            self._blob(match["repo"], match["rest"])
        else:
            self._upload(match["repo"], match["rest"])

    def _manifest(self, repository: str, target: str) -> None:
        known = self.fake.manifests.setdefault(repository, {})
        if self.command == "PUT":
            self._put_manifest(repository, target)
        elif target in known:
            media_type, raw = known[target]
            digest = str(Digest.of(raw))
            headers = {"Content-Type": media_type, "Docker-Content-Digest": digest}
            self._answer(200, raw, headers)
        else:
            self._error(404, "MANIFEST_UNKNOWN")

    def _put_manifest(self, repository: str, target: str) -> None:
        document = json.loads(self.body)
        blobs = self.fake.blobs.get(repository, {})
        needed = [*document.get("layers", []), document["config"]] if "config" in document else []
        if any(one["digest"] not in blobs for one in needed):
            self._error(400, "MANIFEST_BLOB_UNKNOWN")
            return
        media_type = self.headers.get("Content-Type", "")
        digest = self.fake.put_manifest(repository, target, self.body, media_type)
        self._answer(201, b"", {"Docker-Content-Digest": str(digest)})

    def _blob(self, repository: str, digest: str) -> None:
        data = self.fake.blobs.get(repository, {}).get(digest)
        if data is None:
            self._error(404, "BLOB_UNKNOWN")
            return
        match = re.match(r"bytes=(\d+)-\Z", self.headers.get("Range", ""))
        if not match:
            self._answer(200, data, {"Content-Type": BLOB_TYPE})
            return
        start = int(match[1])
        if start >= len(data):
            self._error(416, "RANGE_INVALID")
            return
        where = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self._answer(206, data[start:], {"Content-Range": where})

    def _upload(self, repository: str, upload: str) -> None:
        if self.command == "POST":
            self._start_upload(repository)
        elif upload not in self.fake.uploads:
            self._error(404, "BLOB_UPLOAD_UNKNOWN")
        elif self.command == "DELETE":
            self.fake.uploads.discard(upload)
            self._answer(204)
        elif self.command == "GET":
            self._answer(204, b"", self._how_far(repository, upload))
        elif self.command == "PATCH":
            self._take_chunk(repository, upload)
        else:
            self._finish_upload(repository, upload)

    def _start_upload(self, repository: str) -> None:
        mount, source = (self.entry.query.get(name, [""])[0] for name in ("mount", "from"))
        data = self.fake.blobs.get(source, {}).get(mount)
        authorization = self.headers.get("Authorization", "")
        readable = self.fake.auth != "bearer" or self.fake.allows(
            authorization, f"repository:{source}:pull"
        )
        if mount and data is not None and self.fake.allow_mount and readable:
            self.fake.put_blob(repository, data)
            self._answer(201)
            return
        upload = secrets.token_hex(8)
        self.fake.uploads.add(upload)
        location = f"/v2/{repository}/blobs/uploads/{upload}?_state=a%2Fb==&empty="
        headers = {"Location": self.fake.rewrite_location(location)}
        if self.fake.least_chunk is not None:
            headers["OCI-Chunk-Min-Length"] = str(self.fake.least_chunk)
        self._answer(202, b"", headers)

    def _how_far(self, repository: str, upload: str) -> dict[str, str]:
        end = len(self.fake.chunks.get(upload, b""))
        location = f"/v2/{repository}/blobs/uploads/{upload}?_state=a%2Fb==&empty=&end={end}"
        return {"Location": location, "Range": f"0-{max(end - 1, 0)}"}

    def _take_chunk(self, repository: str, upload: str) -> None:
        have = self.fake.chunks.get(upload, b"")
        expected = f"{len(have)}-{len(have) + len(self.body) - 1}"
        newest = not have or self.entry.query.get("end") == [str(len(have))]
        # A stream of unknown length, as docker sends it, has no range.
        said = self.headers.get("Content-Range")
        streamed = said is None and self.headers.get("Transfer-Encoding") == "chunked"
        if not (streamed or said == expected) or not newest:
            self._error(416, "BLOB_UPLOAD_INVALID", self._how_far(repository, upload))
            return
        self.fake.chunks[upload] = have + self.body
        self._answer(self.fake.patch_status, b"", self._how_far(repository, upload))

    def _finish_upload(self, repository: str, upload: str) -> None:
        self.fake.uploads.discard(upload)
        self.body = self.fake.chunks.pop(upload, b"") + self.body
        digest = self.entry.query.get("digest", [""])[0]
        if self.entry.query.get("_state") != ["a/b=="] or "empty" not in self.entry.query:
            self._error(400, "BLOB_UPLOAD_INVALID")
        elif f"sha256:{hashlib.sha256(self.body).hexdigest()}" != digest:
            self._error(400, "DIGEST_INVALID")
        else:
            self.fake.put_blob(repository, self.body)
            self._answer(201, b"", {"Docker-Content-Digest": digest})
