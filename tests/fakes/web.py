"""A web server in this process: answers by the path what it was told to, and logs what it got.

It speaks HTTP/1.0, so every answer closes its connection and nothing stays open after a test. It
may also be named as a proxy: then the path of a request is a whole URL.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler

from tests.fakes.server import LoopbackServer, Served


@dataclass(frozen=True)
class Asked:
    """One request as it came; the names of headers are in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass
class Answer:
    """What a path answers; `drop` closes the connection instead, `announced` lies of the length."""

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    drop: bool = False
    announced: int | None = None


class FakeWeb(Served):
    """A web server on `url` while its `with` block lasts; what it does not know is a 404."""

    def __init__(self) -> None:
        self.log: list[Asked] = []
        self._answers: dict[str, list[Answer]] = {}
        self._lock = threading.Lock()
        super().__init__(_Server(self))
        self.url = f"http://{self.host}"

    def put(self, path: str, *answers: Answer | bytes) -> None:
        """Answers requests of `path` (with its query) one after the other, the last for ever."""
        made = [Answer(one) if isinstance(one, bytes) else one for one in answers]
        with self._lock:
            self._answers[path] = made

    @property
    def asked(self) -> list[str]:
        """The paths of all requests, in order."""
        return [one.path for one in self.log]

    def answer_to(self, asked: Asked) -> Answer:
        """The next answer to a request, which is logged."""
        with self._lock:
            self.log.append(asked)
            waiting = self._answers.get(asked.path, [Answer(b"not found\n", 404)])
            return waiting.pop(0) if len(waiting) > 1 else waiting[0]


class _Server(LoopbackServer):
    def __init__(self, web: FakeWeb) -> None:
        self.web = web
        super().__init__(_Handler)


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        self._handle()

    def do_POST(self) -> None:
        self._handle()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        answer = self.server.web.answer_to(Asked(self.command, self.path, headers, body))
        if answer.drop:
            return
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        length = len(answer.body) if answer.announced is None else answer.announced
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(answer.body)
