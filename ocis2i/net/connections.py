"""Connections to web servers: TLS, the adapters of `requests` that hold them, why one failed.

Requests are prepared and handed to `requests` adapters directly. A `requests.Session` would read
the process environment and `~/.netrc`, keep cookies, follow redirects with credentials of others
and is not made for threads; an adapter has none of that and its connection pool is thread-safe.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from ocis2i.errors import RegistryError
from ocis2i.net import CONNECT_SECONDS, READ_SECONDS, Body, FailureKind

POOL_SIZE = 8

# A malformed address, of a proxy too, is often a plain ValueError.
FAILURES = (requests.RequestException, urllib3.exceptions.HTTPError, ValueError)
READ_FAILURES = (urllib3.exceptions.HTTPError, OSError)


def tls_context(host: str, environment: Mapping[str, str], *, verify: bool) -> ssl.SSLContext:
    """The TLS settings for `host` (with its port, if not 443).

    Trusted are the system's roots, those of `SSL_CERT_FILE`, `REQUESTS_CA_BUNDLE` and
    `CURL_CA_BUNDLE`, and those in `certs.d/HOST/*.crt` (containers-certs.d(5)), where `*.cert` and
    `*.key` may hold a client certificate. Raises `RegistryError` naming a file that is no good.
    """
    context = ssl.create_default_context()
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        if environment.get(name):
            _load(context, Path(environment[name]), f"`{name}`")
    for directory in _certificate_directories(host, environment):
        for path in sorted(directory.glob("*.crt")):
            _load(context, path, "certs.d")
        for path in sorted(directory.glob("*.cert")):
            _load(context, path, "certs.d", key=path.with_suffix(".key"))
    return context


def _load(context: ssl.SSLContext, path: Path, what: str, key: Path | None = None) -> None:
    try:
        if key:
            context.load_cert_chain(path, key)
        elif path.is_dir():
            context.load_verify_locations(capath=path)
        else:
            context.load_verify_locations(cafile=path)
    except (OSError, ssl.SSLError) as error:
        named = f"`{path}`" + (f" with its key `{key}`" if key else "")
        reason = getattr(error, "strerror", None) or "no certificate in it"
        raise RegistryError(
            f"{what} names the certificate file {named}, which cannot be used: {reason}"
        ) from error


def _certificate_directories(host: str, environment: Mapping[str, str]) -> list[Path]:
    places = [Path("/etc/containers/certs.d"), Path("/etc/docker/certs.d")]
    if home := environment.get("HOME"):
        config = environment.get("XDG_CONFIG_HOME") or f"{home}/.config"
        places.insert(0, Path(config) / "containers/certs.d")
    return [place / host for place in places if (place / host).is_dir()]


# --- adapters ---------------------------------------------------------------------------------


class _PatientConnection(HTTPConnection):
    def connect(self) -> None:
        super().connect()
        _be_patient(self)


class _PatientTlsConnection(HTTPSConnection):
    def connect(self) -> None:
        super().connect()
        _be_patient(self)


def _be_patient(connection: HTTPConnection) -> None:
    # urllib3 keeps the time-out for connecting on the socket until the body is sent, so that a
    # registry that stops reading for a few seconds would break an upload.
    if connection.sock is not None:
        connection.sock.settimeout(READ_SECONDS)


class _PatientPool(HTTPConnectionPool):
    ConnectionCls = _PatientConnection


class _PatientTlsPool(HTTPSConnectionPool):
    ConnectionCls = _PatientTlsConnection


class Adapter(HTTPAdapter):
    """An adapter with a TLS context of its own; `requests` would add certifi's roots to it."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context
        super().__init__(pool_maxsize=POOL_SIZE)

        if context.verify_mode == ssl.CERT_NONE:
            urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)

    def exchange(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: bytes | Body,
        *,
        read_seconds: float,
        proxies: dict[str, str],
    ) -> requests.Response:
        """The answer, its body not yet read. Raises `FAILURES`."""
        prepared = requests.Request(method, url, headers, data=body or None).prepare()
        times = (CONNECT_SECONDS, read_seconds)
        return self.send(prepared, stream=True, timeout=times, proxies=proxies)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, ssl_context=self._context, **kwargs)
        self.poolmanager.pool_classes_by_scheme = _POOLS

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(proxy, ssl_context=self._context, **kwargs)
        manager.pool_classes_by_scheme = _POOLS
        return manager

    def build_connection_pool_key_attributes(
        self, request: requests.PreparedRequest, verify: Any, cert: Any = None
    ) -> Any:
        host, _ = super().build_connection_pool_key_attributes(request, verify, cert)
        return host, {"ssl_context": self._context, "cert_reqs": self._context.verify_mode}

    def cert_verify(self, *_args: Any, **_kwargs: Any) -> None:
        """Nothing: the context says what is trusted."""


_POOLS = {"http": _PatientPool, "https": _PatientTlsPool}


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
