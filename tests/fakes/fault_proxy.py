"""A proxy in front of a real registry that lets things go wrong, and logs all that passes.

It is not a proxy in the sense of HTTP: clients take it for the registry itself. With `auth` it is
the gate, too, and the registry behind it lets everybody in. A second one is another host.
"""

from __future__ import annotations

import collections
import contextlib
import http.client
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

from tests.fakes.server import LoopbackServer, Served
from tests.fakes.token_server import Gate

BLOCK = 64 << 10
SILENT_SECONDS = 120
UPSTREAM_SECONDS = 60
READ_SECONDS = 0.2
# To close with this is to reset the connection.
_LINGER = struct.pack("ii", 1, 0)
_UNKNOWN = 1 << 62
_HOP_BY_HOP = ("connection", "keep-alive", "transfer-encoding", "content-length")


@dataclass
class Rule:
    """Something to go wrong with requests whose method and path match the expressions.

    The first `skip` of them pass, and after `times` (-1 is always) all do. What is in the middle of
    a body counts only for a body that is longer: clients send their blobs in parallel. One whose
    length is not said (chunked) is taken to be longer than all others.

    Instead of the registry the proxy answers with a `status` (with `early`: before it has read the
    request's body, and hangs up), `headers` and `body`; `{host}` in a header is the proxy's own,
    `{path}` what was asked for. `after_sent` bytes of the request's body, or `after_received` bytes
    of the answer's, the connection comes to its `end`. `drop` passes the request on, but not the
    answer: the connection is closed, or stalls where that is its `end`. `corrupt` turns over a byte
    of the answer, `more_headers` are added to it. Bodies take their time with `bytes_per_second`.
    """

    method: str
    path: str
    times: int = 1
    skip: int = 0
    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    early: bool = False
    after_sent: int | None = None
    after_received: int | None = None
    end: Literal["reset", "close", "stall", "answer"] = "reset"
    drop: bool = False
    corrupt: int | None = None
    more_headers: Mapping[str, str] = field(default_factory=dict)
    delay_seconds: float = 0.0
    bytes_per_second: float = 0.0

    def fits(self, method: str, path: str, length: int) -> bool:
        """Whether it may be for a request with so long a body."""
        return (
            self.times != 0
            and re.fullmatch(self.method, method) is not None
            and re.search(self.path, path) is not None
            and length > (-1 if self.after_sent is None else self.after_sent)
        )

    @property
    def of_answer(self) -> bool:
        """Whether it is for the middle of an answer, which has to be known first."""
        return self.after_received is not None or self.corrupt is not None


@dataclass
class Seen:
    """One request as it came, with all header lines; the counts are of bodies, both ways.

    `passed` says that the registry got to see it; it `came` and `ended` by a clock in seconds.
    """

    method: str
    path: str
    query: dict[str, list[str]]
    headers: tuple[tuple[str, str], ...]
    status: int = 0
    received: int = 0
    sent: int = 0
    passed: bool = False
    came: float = field(default_factory=time.monotonic)
    ended: float = 0.0

    def header(self, name: str) -> str:
        """All lines of a header; empty if there is none."""
        return ", ".join(value for key, value in self.headers if key.lower() == name)

    @property
    def text(self) -> str:
        """All that the client said, but for the body."""
        return f"{self.method} {self.path} {self.query} {self.headers}"


class FaultProxy(Gate, Served):
    """A proxy in front of the registry `upstream` (host and port) while its `with` block lasts."""

    def __init__(
        self,
        upstream: str,
        auth: Literal["none", "basic", "bearer"] = "none",
        *,
        users: Mapping[str, str] | None = None,
    ) -> None:
        Gate.__init__(self, auth, users)
        self.upstream = upstream
        self.rules: list[Rule] = []
        self.log: list[Seen] = []
        self.delay_seconds = 0.0
        self.rewrite_location: Callable[[str], str] = lambda location: location
        self.over = threading.Event()
        self._lock = threading.Lock()
        Served.__init__(self, _Server(self))

    def __exit__(self, *exc: object) -> None:
        self.over.set()
        super().__exit__(*exc)

    @property
    def other_name(self) -> str:
        """The same proxy by a name, which to clients is another host than its address."""
        return f"localhost:{self.port}"

    def rule(self, method: str, path: str, **how: Any) -> Rule:
        """Adds a `Rule`."""
        added = Rule(method, path, **how)
        self.rules.append(added)
        return added

    def requests(self, method: str = "", path: str = "") -> list[Seen]:
        """The logged requests of this method (any, if empty) whose path has the expression."""
        found = [one for one in self.log if not method or one.method == method]
        return [one for one in found if re.search(path, one.path)]

    def uploads(self, path: str = "") -> list[tuple[str, int]]:
        """The digests of blobs for which a PUT began, and how much of each came in."""
        puts = self.requests("PUT", rf"{path}.*/blobs/uploads/")
        return [(one.query.get("digest", [""])[0], one.received) for one in puts]

    def take(self, method: str, path: str, length: int, *, answer: bool) -> Rule | None:
        """The first rule for a request, or for an answer to it, with so long a body."""
        with self._lock:
            for rule in self.rules:
                known = -1 if rule.after_received is None else rule.after_received
                fits = rule.of_answer == answer and (not answer or length > known)
                if not fits or not rule.fits(method, path, 0 if answer else length):
                    continue
                if rule.skip:
                    rule.skip -= 1
                    continue
                rule.times -= 1
                return rule
        return None


class _Server(LoopbackServer):
    request_queue_size = 128

    def __init__(self, proxy: FaultProxy) -> None:
        self.proxy = proxy
        super().__init__(_Handler)

    def shutdown_request(self, request: Any) -> None:
        """Ends a connection; in order, unless it is to be reset."""
        with contextlib.suppress(OSError):
            if request.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, len(_LINGER)) == _LINGER:
                self.close_request(request)
                return
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: clients that go away are part of the tests."""


class _Ended(Exception):  # noqa: N818 - not an error, the rule wants it so
    """The connection has come to its end."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server
    timeout = 60

    def log_message(self, *args: Any) -> None:
        """Nothing: the proxy has its own log."""

    def do_GET(self) -> None:
        with contextlib.suppress(_Ended):
            self._serve()

    do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_GET  # noqa: N815 - http.server's names

    def _serve(self) -> None:
        self.proxy = self.server.proxy
        parts = urlsplit(self.path)
        query = parse_qs(parts.query, keep_blank_values=True)
        self.entry = Seen(self.command, parts.path, query, tuple(self.headers.items()))
        self.proxy.log.append(self.entry)
        self.length = int(self.headers.get("Content-Length") or 0)
        self.chunked = "chunked" in self.headers.get("Transfer-Encoding", "").lower()
        size = _UNKNOWN if self.chunked else self.length
        self.rule = self.proxy.take(self.command, self.path, size, answer=False)
        time.sleep(self.proxy.delay_seconds + (self.rule.delay_seconds if self.rule else 0.0))
        try:
            self._follow(parts.path, query)
        finally:
            self.entry.ended = time.monotonic()

    def _follow(self, path: str, query: dict[str, list[str]]) -> None:
        if self.rule and self.rule.early:
            self._hang_up_with(self.rule)
        if self.rule and self.rule.status and self.rule.after_sent is None:
            self._read_all()
            self._answer(self.rule.status, self.rule.body, self.rule.headers)
        elif path == "/token":
            self._token(query)
        elif self._let_in(path):
            self._pass_on()

    # --- the gate -----------------------------------------------------------------------------

    def _let_in(self, path: str) -> bool:
        authorization = self.headers.get("Authorization", "")
        challenge = self.proxy.challenge(self.command, path, authorization, self.proxy.host)
        if challenge is not None:
            self._read_all()
            body = b'{"errors": [{"code": "UNAUTHORIZED", "message": "authentication required"}]}'
            self._answer(401, body, {"WWW-Authenticate": challenge})
        return challenge is None

    def _token(self, query: Mapping[str, list[str]]) -> None:
        body = self._read_all()
        authorization = self.headers.get("Authorization", "")
        status, document = self.proxy.issue(self.command, query, authorization, body)
        self._answer(status, json.dumps(document).encode(), {})

    # --- passing on ---------------------------------------------------------------------------

    def _pass_on(self) -> None:
        connection = http.client.HTTPConnection(self.proxy.upstream, timeout=UPSTREAM_SECONDS)
        with contextlib.closing(connection):
            connection.putrequest(
                self.command, self.path, skip_host=True, skip_accept_encoding=True
            )
            for name, value in self.headers.items():
                # The registry behind knows nothing of the gate.
                if name.lower() != "authorization" or self.proxy.auth == "none":
                    connection.putheader(name, value)
            connection.endheaders()
            for block in self._body():
                connection.send(block)
            self.entry.passed = True
            answer = connection.getresponse()
            if self.rule and self.rule.drop:
                answer.read()
                self._end("stall" if self.rule.end == "stall" else "close")
            self._pass_back(answer)

    def _body(self) -> Iterator[bytes]:
        """The request's body as it stands on the wire, until its end or that of the connection."""
        limit = self.rule.after_sent if self.rule else None
        yield from self._chunks(limit) if self.chunked else self._blocks(limit)
        if limit is not None and self.rule:
            if self.rule.end == "answer":
                self._hang_up_with(self.rule)
            self._end(self.rule.end)

    def _blocks(self, limit: int | None) -> Iterator[bytes]:
        left = self.length if limit is None else limit
        while left > 0 and (block := self.rfile.read1(min(BLOCK, left))):
            left -= len(block)
            self.entry.received += len(block)
            yield block
            self._take_time(len(block))

    def _chunks(self, limit: int | None) -> Iterator[bytes]:
        while line := self.rfile.readline():
            size = int(line.partition(b";")[0], 16)
            left = size if limit is None else min(size, limit - self.entry.received)
            self.entry.received += left
            yield line + self.rfile.read(left + 2 if left == size else left)
            if not size or left < size:
                return
            self._take_time(size)

    def _pass_back(self, answer: http.client.HTTPResponse) -> None:
        length = answer.getheader("Content-Length")
        size = int(length) if length and self.command != "HEAD" else 0
        rule = self.rule
        if answer.status in (200, 206):
            rule = self.proxy.take(self.command, self.path, size, answer=True) or rule
        self.entry.status = answer.status
        self.send_response_only(answer.status)
        for name, value in answer.getheaders():
            if name.lower() == "location":
                value = self.proxy.rewrite_location(value)  # noqa: PLW2901
            if name.lower() not in _HOP_BY_HOP:
                self.send_header(name, value)
        for name, value in (rule.more_headers if rule else {}).items():
            self.send_header(name, value)
        whole = b"" if length is not None or self.command == "HEAD" else answer.read()
        if answer.status != 204:
            self.send_header("Content-Length", length if length is not None else str(len(whole)))
        self.end_headers()
        self._send(whole)
        if size:
            self._copy(answer, rule)

    def _copy(self, answer: http.client.HTTPResponse, rule: Rule | None) -> None:
        left = rule.after_received if rule else None
        while left != 0 and (block := answer.read(BLOCK if left is None else min(BLOCK, left))):
            if rule and rule.corrupt is not None:
                block = _damaged(block, rule.corrupt - self.entry.sent)
            self._send(block)
            self._take_time(len(block), rule)
            left = None if left is None else left - len(block)
        if left is not None and rule:
            self._end(rule.end)

    # --- answering ----------------------------------------------------------------------------

    def _answer(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.entry.status = status
        self.send_response_only(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            value = value.replace("{host}", self.proxy.host)  # noqa: PLW2901
            self.send_header(name, value.replace("{path}", self.path))
        self.end_headers()
        if self.command != "HEAD":
            self._send(body)

    def _send(self, data: bytes) -> None:
        self.wfile.write(data)
        self.entry.sent += len(data)

    def _read_all(self) -> bytes:
        if self.chunked:  # only what comes of it counts, and its length
            collections.deque(self._chunks(None), maxlen=0)
            return b""
        parts = []
        while self.length > self.entry.received and (
            block := self.rfile.read1(min(BLOCK, self.length - self.entry.received))
        ):
            self.entry.received += len(block)
            parts.append(block)
        return b"".join(parts)

    def _take_time(self, size: int, rule: Rule | None = None) -> None:
        rule = rule or self.rule
        if rule and rule.bytes_per_second:
            self.proxy.over.wait(size / rule.bytes_per_second)

    def _hang_up_with(self, rule: Rule) -> None:
        self.close_connection = True
        self._answer(rule.status, rule.body, {**rule.headers, "Connection": "close"})
        raise _Ended

    def _end(self, how: str) -> None:
        self.close_connection = True
        if how == "stall":
            self.wfile.flush()
            self.proxy.over.wait(SILENT_SECONDS)
        elif how == "reset":
            # What the client has not read by then is lost to it.
            time.sleep(READ_SECONDS)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER)
        raise _Ended


def _damaged(block: bytes, at: int) -> bytes:
    if not 0 <= at < len(block):
        return block
    return block[:at] + bytes([block[at] ^ 0xFF]) + block[at + 1 :]
