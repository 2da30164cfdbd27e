"""A server on a free port of the loopback device, in this process: what the fakes of HTTP share."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self


class LoopbackServer(ThreadingHTTPServer):
    """Listens from the start; requests that are still open do not hold up its end."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)


class Served:
    """What answers on `host` and `port` while its `with` block lasts."""

    def __init__(self, server: LoopbackServer) -> None:
        self._server = server
        self.port = int(server.server_address[1])
        self.host = f"127.0.0.1:{self.port}"
        self._thread = threading.Thread(
            target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
