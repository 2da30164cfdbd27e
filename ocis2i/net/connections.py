"""Connections to web servers: the adapters of `requests` that hold them, and why one failed.

Requests are prepared and handed to `requests` adapters directly. A `requests.Session` would read
the process environment and `~/.netrc`, keep cookies, follow redirects with credentials of others
and is not made for threads; an adapter has none of that and its connection pool is thread-safe.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from ocis2i.net import POOL_SIZE, Body, EndlessBody, FailureKind

# A malformed address, of a proxy too, is often a plain ValueError.
FAILURES = (requests.RequestException, urllib3.exceptions.HTTPError, ValueError)
READ_FAILURES = (urllib3.exceptions.HTTPError, OSError)


# --- adapters ---------------------------------------------------------------------------------


class _Stalling:
    """A connection that breaks when a body, sent or received, does not move for some time."""

    patience: Callable[[], float]
    sock: Any
    timeout: Any

    # urllib3 keeps the time-out for connecting on the socket until the body is sent, and sets it
    # again on a connection that is used again.

    def connect(self) -> None:
        super().connect()  # type: ignore[misc]
        self._be_patient()

    def putrequest(self, *args: Any, **kwargs: Any) -> None:
        self._be_patient()
        super().putrequest(*args, **kwargs)  # type: ignore[misc]

    def _be_patient(self) -> None:
        if self.sock is not None:
            self.sock.settimeout(self.patience())

    def getresponse(self) -> Any:
        # Held here: the connection lets go of it when the answer is its last.
        sock = self.sock
        with _cut_off(sock, self.timeout) as over:
            response = super().getresponse()  # type: ignore[misc]
        if over.is_set():  # half a head passes for a whole one
            response.close()
            raise TimeoutError
        if sock is not None:
            sock.settimeout(self.patience())
        return response


@contextmanager
def _cut_off(sock: socket.socket | None, seconds: float | None) -> Iterator[threading.Event]:
    """Ends a connection whose answer has no whole head after `seconds`, and says so.

    One that comes byte by byte never lets the time-out of a single reading run out.
    """
    over = threading.Event()
    if sock is None or seconds is None:
        yield over
        return
    timer = threading.Timer(seconds, _cut, (sock, over))
    timer.daemon = True
    timer.start()
    try:
        yield over
    finally:
        timer.cancel()


def _cut(sock: socket.socket, over: threading.Event) -> None:
    over.set()
    with suppress(OSError):
        # Below TLS: its own objects are in use by whoever waits.
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


def _pools(patience: Callable[[], float]) -> dict[str, type[HTTPConnectionPool]]:
    """The kinds of connection pools, by scheme; urllib3 takes only classes for this."""
    given = {"patience": staticmethod(patience)}
    plain = type("PlainConnection", (_Stalling, HTTPConnection), given)
    tls = type("TlsConnection", (_Stalling, HTTPSConnection), given)
    return {
        "http": type("PlainPool", (HTTPConnectionPool,), {"ConnectionCls": plain}),
        "https": type("TlsPool", (HTTPSConnectionPool,), {"ConnectionCls": tls}),
    }


class Adapter(HTTPAdapter):
    """An adapter with a TLS context of its own; `requests` would add certifi's roots to it."""

    def __init__(self, context: ssl.SSLContext, patience: Callable[[], float]) -> None:
        self._context = context
        self._pools = _pools(patience)
        super().__init__(pool_maxsize=POOL_SIZE)
        if context.verify_mode == ssl.CERT_NONE:
            urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)

    def exchange(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | Body | EndlessBody,
        *,
        connect_seconds: float,
        read_seconds: float,
        proxies: dict[str, str],
    ) -> requests.Response:
        """The answer, its body not yet read. Raises `FAILURES`."""
        prepared = requests.Request(method, url, headers, data=body or None).prepare()
        times = (connect_seconds, read_seconds)
        return self.send(prepared, stream=True, timeout=times, proxies=proxies)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, ssl_context=self._context, **kwargs)
        self.poolmanager.pool_classes_by_scheme = self._pools

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(proxy, ssl_context=self._context, **kwargs)
        manager.pool_classes_by_scheme = self._pools
        return manager

    def build_connection_pool_key_attributes(
        self, request: requests.PreparedRequest, verify: Any, cert: Any = None
    ) -> Any:
        host, _ = super().build_connection_pool_key_attributes(request, verify, cert)
        return host, {"ssl_context": self._context, "cert_reqs": self._context.verify_mode}

    def cert_verify(self, *_args: Any, **_kwargs: Any) -> None:
        """Nothing: the context says what is trusted."""


# --- failures ---------------------------------------------------------------------------------

# What can go wrong below HTTP, most telling first, and what to call it.
_RULES: tuple[tuple[tuple[type[BaseException], ...], FailureKind, str], ...] = (
    ((ssl.SSLCertVerificationError,), "certificate", "its certificate is not trusted"),
    ((ssl.SSLEOFError, ssl.SSLZeroReturnError), "broken", "the connection was closed"),
    ((ssl.SSLError,), "tls", "it does not speak TLS"),
    ((socket.gaierror,), "unreachable", "its name cannot be resolved"),
    ((ConnectionRefusedError,), "unreachable", "connection refused"),
    ((urllib3.exceptions.ConnectTimeoutError,), "unreachable", "no connection in 10 seconds"),
    ((urllib3.exceptions.NewConnectionError,), "unreachable", "no route to it"),
    ((urllib3.exceptions.ReadTimeoutError, TimeoutError), "broken", "no data for too long"),
    ((urllib3.exceptions.IncompleteRead,), "broken", "the answer ended too early"),
    ((urllib3.exceptions.ProtocolError, ConnectionError), "broken", "the connection broke"),
)


def kind_and_reason(error: BaseException) -> tuple[FailureKind, str]:
    """What `error` means for a request, and in words without secrets."""
    causes = list(_causes(error))
    for cause in causes:
        # An alert is TLS itself: the other side speaks it, and does not like ours.
        if isinstance(cause, ssl.SSLError) and "ALERT" in (alert := str(cause.reason)):
            return "alert", f"it refuses our side of TLS ({alert.lower().replace('_', ' ')})"
    for types, kind, reason in _RULES:
        for cause in causes:
            if isinstance(cause, types):
                detail = getattr(cause, "verify_message", "")
                return kind, f"{reason} ({detail})" if detail else reason
    # The text of these errors may quote URLs with signatures in them, so only the type is told.
    return "other", " / ".join(dict.fromkeys(type(cause).__name__ for cause in causes))


def _causes(error: BaseException) -> Iterator[BaseException]:
    waiting, seen = [error], set[int]()
    while waiting:
        current = waiting.pop(0)
        if id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        linked = (*current.args, getattr(current, "reason", None), current.__cause__)
        waiting += [link for link in linked if isinstance(link, BaseException)]
