"""HTTP as a registry client needs it: single exchanges with limits, TLS and proxies.

Other servers are spoken to in the same way, see `Request.registry`.

The first exchange loads what makes connections (`connections`), and much with it.
"""

from __future__ import annotations

import base64
import contextlib
import ipaddress
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import field, replace
from functools import partial
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias
from urllib.parse import unquote_to_bytes, urljoin, urlsplit, urlunsplit

from ocis2i import __version__
from ocis2i.certificates import TlsSettings
from ocis2i.errors import RegistryError
from ocis2i.lazy_dataclass import dataclass
from ocis2i.reference import is_loopback

if TYPE_CHECKING:
    import ssl

    import requests

    from ocis2i.net.connections import Adapter

CONNECT_SECONDS = 10.0
READ_SECONDS = 60.0
# In the middle of a body, in either direction, silence is a sign that nothing will come any more.
STALL_SECONDS = 30.0
# Object stores behind a registry commit late: the answer to the last PUT may take minutes.
FINAL_SECONDS = 300.0
# A document, a token or the words of a refusal, from its first byte to its last.
ANSWER_SECONDS = 120.0
ERROR_SECONDS = 5.0
SLOW_COMMIT_BYTES_PER_SECOND = 10 << 20
BLOCK = 1 << 20
REDIRECT_LIMIT = 10

RETRYABLE_STATUS = frozenset({408, 429, 500, 502, 503, 504, 522})
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/")
_PROXY_SCHEMES = ("http://", "https://")
_REDIRECTS = frozenset({301, 302, 303, 307, 308})

# So many connections to a registry are kept.
POOL_SIZE = 16

# unreachable: no connection came about; broken: it ended too early; tls: no TLS on the other side;
# alert: TLS that does not like ours
FailureKind = Literal[
    "unreachable", "certificate", "alert", "tls", "broken", "redirect", "status", "other"
]


class RequestError(RegistryError):
    """A request that got no usable answer; `status` is 0 when it got none at all."""

    def __init__(
        self,
        message: str,
        *,
        kind: FailureKind,
        hint: str | None = None,
        status: int = 0,
        code: str = "",
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.kind = kind
        self.status = status
        self.code = code
        self.retry_after_seconds = retry_after_seconds
        self.given_up = False

    @property
    def retryable(self) -> bool:
        """Whether the same request may well succeed a moment later.

        An error that was tried often enough is not, or loops around loops would multiply.
        """
        passing = self.kind in ("unreachable", "broken") or self.status in RETRYABLE_STATUS
        return passing and not self.given_up


def retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """`Retry-After` in seconds (RFC 9110, 10.2.3): a number, or a date read against `Date`."""
    text = headers.get("Retry-After", "").strip()
    if (seconds := header_number(text)) is not None:
        return float(seconds)
    from email.utils import parsedate_to_datetime  # noqa: PLC0415 - loads much, needed rarely

    try:
        then = parsedate_to_datetime(text)
        now = parsedate_to_datetime(headers.get("Date", ""))
        return max(0.0, (then - now).total_seconds())
    except (TypeError, ValueError):
        return None


def header_number(text: str) -> int | None:
    """The number that a header gives; `None` for what is none, or too long to count anything."""
    # `isdigit` alone takes `²`, and `int` refuses thousands of digits: both come from strangers.
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None


# --- addresses --------------------------------------------------------------------------------


def continues_at(response: requests.Response, offset: int) -> bool:
    """Whether the answer to a `Range` request is the rest from `offset` on, not the whole."""
    match = _CONTENT_RANGE.match(response.headers.get("Content-Range", ""))
    return response.status_code == 206 and match is not None and match.group(1) == str(offset)


def redacted(url: str) -> str:
    """`url` without user, password, query and fragment, all of which may hold secrets."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "(a malformed address)"
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def origin(url: str) -> tuple[str, str, int]:
    """Scheme, host and port of `url`, default ports filled in (RFC 6454).

    Raises `RequestError` when `url` is not an absolute http or https URL.
    """
    try:
        parts = urlsplit(url)
        scheme, host, port = parts.scheme.lower(), parts.hostname, parts.port
    except ValueError:
        scheme, host, port = "", None, None
    if scheme not in ("http", "https") or not host:
        raise RequestError(
            "a server answered with an address that is not an http URL", kind="other"
        )
    return scheme, host.lower(), port or (443 if scheme == "https" else 80)


def is_web_url(text: str) -> bool:
    """Whether `text` is an absolute http or https URL, without spaces or control characters."""
    # Of `http://a\@b` parsers differ on which is the host, and so on who gets the password.
    if not text.isprintable() or " " in text or "\\" in text:
        return False
    try:
        origin(text)
    except RequestError:
        return False
    return True


def split_credentials(url: str) -> tuple[str, str | None]:
    """A URL without user, password and fragment, and the value of `Authorization` they make.

    Like curl and Go's client, which send what the URL brings as basic authentication (RFC 7617).
    """
    parts = urlsplit(url)
    user_info, _, host = parts.netloc.rpartition("@")
    bare = urlunsplit((parts.scheme, host, parts.path, parts.query, ""))
    if not user_info:
        return bare, None
    user, _, password = user_info.partition(":")
    pair = unquote_to_bytes(user) + b":" + unquote_to_bytes(password)
    return bare, f"Basic {base64.b64encode(pair).decode()}"


def is_private_address(host: str) -> bool:
    """Whether `host` is an IP literal that only means something on this network."""
    with contextlib.suppress(ValueError):
        return not ipaddress.ip_address(host).is_global
    # The resolver takes `127.1`, `0x7f000001` and `2130706433` for addresses, too.
    with contextlib.suppress(OSError):
        return not ipaddress.ip_address(socket.inet_aton(host)).is_global
    return False


def check_foreign_address(url: str, own: str, what: str) -> None:
    """Refuses to be sent to the inside of this network by a registry (go-containerregistry's rule).

    `url` is where the registry at `own` sends us. Raises `RegistryError` when it is on another
    host and port and a private or link-local address, such as a cloud's metadata service; or this
    machine, unless the registry is here, too.
    """
    _, host, port = origin(url)
    here = is_loopback(host) and not is_loopback(urlsplit(own).netloc)
    if (host, port) != origin(own)[1:] and (here or is_private_address(host)):
        raise RegistryError(
            f"{what} of {redacted(own)} points at the private address `{host}:{port}`",
            hint="the registry is set up wrongly, or somebody wants to reach into your network",
        )


def proxy_for(url: str, environment: Mapping[str, str]) -> str | None:
    """The proxy that `environment` names for `url`, by the rules of curl and Go.

    Lower-case names win; `NO_PROXY` takes host names with their subdomains, `host:port`, addresses,
    networks and `*`. This machine itself is never reached through a proxy.
    """
    scheme, host, port = origin(url)
    names = (f"{scheme}_proxy", f"{scheme.upper()}_PROXY", "all_proxy", "ALL_PROXY")
    proxy = next((environment[name] for name in names if environment.get(name)), None)
    exceptions = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    if not proxy or is_loopback(f"[{host}]" if ":" in host else host):
        return None
    if any(_is_excepted(host, port, entry.strip().lower()) for entry in exceptions.split(",")):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def _is_excepted(host: str, port: int, entry: str) -> bool:
    if not entry:
        return False
    if entry == "*":
        return True
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(entry, strict=False)
    except ValueError:
        pass
    name, colon, wanted_port = entry.rpartition(":")
    if colon and wanted_port.isdigit():
        if int(wanted_port) != port:
            return False
        entry = name
    entry = entry.strip("[]").removeprefix("*").removeprefix(".")
    # Of an address no end is a domain: `1.2.3` is not above 10.1.2.3.
    is_name = ":" not in host and not host.replace(".", "").isdigit()
    return bool(entry) and (host == entry or (is_name and host.endswith(f".{entry}")))


# --- exchanges --------------------------------------------------------------------------------


# The TLS settings for a host (with its port, if not 443), verifying its certificate or not.
TlsContexts: TypeAlias = Callable[[str, bool], "ssl.SSLContext"]


class Body(Protocol):
    """Bytes to send that can be read again from the start, in blocks, and know their number."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[bytes | memoryview]: ...


class EndlessBody(Protocol):
    """The same of a number that nobody knows yet: `Transfer-Encoding: chunked`."""

    def __iter__(self) -> Iterator[bytes | memoryview]: ...


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request. `authorization` goes to the origin of `url` only, never to another.

    To an `insecure` server, and where it sends on to, no TLS is needed, and any certificate does.
    `registry` is false for any other server: from plain http it may send on to plain http, from
    https never, and no error speaks of a registry.
    """

    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | Body | EndlessBody = b""
    authorization: str | None = field(default=None, repr=False)
    read_seconds: float = READ_SECONDS
    follow_redirects: bool = True
    registry: bool = True
    insecure: bool = False

    def __str__(self) -> str:
        return f"{self.method} {redacted(self.url)}"


class Http:
    """Sends requests and follows redirects; safe to use from several threads."""

    def __init__(
        self,
        environment: Mapping[str, str],
        *,
        tls_verify: bool = True,
        tls: TlsContexts | None = None,
        stall_seconds: float = STALL_SECONDS,
        longest_wait: Callable[[float], float] = lambda seconds: seconds,
    ) -> None:
        self._environment = environment
        self._tls_verify = tls_verify
        self._tls = tls or TlsSettings(environment)
        self._longest_wait = longest_wait
        self._patience = partial(longest_wait, stall_seconds)
        self._adapters: dict[tuple[str, bool], Adapter] = {}
        self._lock = threading.Lock()

    def exchange(self, request: Request) -> requests.Response:
        """The answer, its body not yet read; any status but a redirect.

        Raises `RequestError` when there is no answer, after too many redirects, and for one that
        a write cannot follow or that leads from https to http.
        """
        first = request
        for _ in range(REDIRECT_LIMIT + 1):
            response = self._send(request)
            location = response.headers.get("Location")
            redirect = response.status_code in _REDIRECTS and request.follow_redirects
            if not redirect or not location:
                return response
            response.close()
            request = self._redirected(request, response.status_code, location)
        raise RequestError(f"{first} was redirected {REDIRECT_LIMIT} times", kind="redirect")

    def plain_http_allowed(self, host: str, insecure: bool = False) -> bool:  # noqa: FBT001, FBT002
        """Whether `host` (port or not) may be spoken to without TLS."""
        return insecure or not self._tls_verify or is_loopback(host)

    def close(self) -> None:
        """Closes the connections that are kept for later."""
        with self._lock:
            for adapter in self._adapters.values():
                adapter.close()

    def _redirected(self, request: Request, status: int, location: str) -> Request:
        try:
            target = urljoin(request.url, location)
        except ValueError:
            target = location  # `origin` refuses it
        if request.method not in ("GET", "HEAD") and status not in (307, 308):
            raise RequestError(
                f"{request} was redirected with status {status}", kind="redirect", status=status
            )
        if not self._may_lead_to(request, target):
            raise RequestError(
                f"{request} was redirected to plain http at `{redacted(target)}`", kind="redirect"
            )
        if request.registry:
            _check_redirect(request, target)
        same = origin(target) == origin(request.url)
        return replace(request, url=target, authorization=request.authorization if same else None)

    def _may_lead_to(self, request: Request, target: str) -> bool:
        scheme, _, _ = origin(target)
        if scheme == "https":
            return True
        if request.registry:
            return self.plain_http_allowed(urlsplit(target).netloc, request.insecure)
        return origin(request.url)[0] == "http"

    def _send(self, request: Request) -> requests.Response:
        from ocis2i.net.connections import FAILURES  # noqa: PLC0415 - see the top

        headers = {
            "User-Agent": f"ocis2i/{__version__}",
            # A registry that compresses on the way would change the bytes that were hashed.
            "Accept-Encoding": "identity",
            **request.headers,
        }
        if request.authorization:
            headers["Authorization"] = request.authorization
        scheme, _, _ = origin(request.url)
        proxy = proxy_for(request.url, self._environment)
        if proxy and not proxy.startswith(_PROXY_SCHEMES):
            raise RequestError(
                f"{request} cannot go through the proxy `{redacted(proxy)}`",
                kind="other",
                hint=f"set {scheme}_proxy to one that begins with http:// or https://",
            )
        verify = self._tls_verify and not request.insecure
        try:
            return self._adapter(urlsplit(request.url).netloc, verify=verify).exchange(
                request.method,
                request.url,
                headers,
                request.body,
                connect_seconds=self._longest_wait(CONNECT_SECONDS),
                read_seconds=self._longest_wait(request.read_seconds),
                proxies={scheme: proxy} if proxy else {},
            )
        except FAILURES as error:
            raise _failure(request, error, proxy) from error

    def _adapter(self, host: str, *, verify: bool) -> Adapter:
        from ocis2i.net.connections import Adapter  # noqa: PLC0415 - likewise

        key = (host.rpartition("@")[2], verify)
        with self._lock:
            if key not in self._adapters:
                self._adapters[key] = Adapter(self._tls(*key), self._patience)
            return self._adapters[key]


def _check_redirect(request: Request, target: str) -> None:
    """Refuses to be led by a registry to write into this network, or to read from this machine.

    To read elsewhere in this network may be right: a registry there has its storage there.
    """
    to_here = is_loopback(urlsplit(target).netloc) and not is_loopback(urlsplit(request.url).netloc)
    if to_here or request.method not in ("GET", "HEAD"):
        check_foreign_address(target, request.url, "a redirect")


def read_blocks(response: requests.Response) -> Iterator[bytes]:
    """The body as it came over the wire, in blocks of at most `BLOCK` bytes, as they arrive.

    Raises `RequestError` when it ends before its announced length.
    """
    from ocis2i.net.connections import READ_FAILURES  # noqa: PLC0415 - likewise

    try:
        while block := response.raw.read1(BLOCK, decode_content=False):
            yield block
    except READ_FAILURES as error:
        request = Request(response.request.method or "GET", str(response.url))
        raise _failure(request, error, None) from error


def read_start(response: requests.Response, limit: int) -> bytes:
    """At most `limit` bytes of the body, and the end of the exchange: for what an error says."""
    parts = bytearray()
    until = time.monotonic() + ERROR_SECONDS
    with response, contextlib.suppress(RequestError):
        for block in read_blocks(response):
            parts += block
            if time.monotonic() > until:
                break
            if len(parts) >= limit:
                break
    return bytes(parts[:limit])


def read_body(
    response: requests.Response, limit: int, check: Callable[[], object] = lambda: None
) -> bytes:
    """The whole body and the end of the exchange.

    Raises `RequestError` for more than `limit` bytes, so that no server can fill the memory, and
    after `ANSWER_SECONDS`: one that sends byte after byte never falls silent. `check` is called
    for each block, and may raise.
    """
    with response:
        parts = bytearray()
        until = time.monotonic() + ANSWER_SECONDS
        for block in read_blocks(response):
            check()
            if time.monotonic() > until:
                raise RequestError(
                    f"{response.request.method} {redacted(str(response.url))} was not answered "
                    f"whole in {ANSWER_SECONDS:.0f} seconds",
                    kind="broken",
                )
            parts += block
            if len(parts) > limit:
                raise RequestError(
                    f"{response.request.method} {redacted(str(response.url))} answered with more "
                    f"than {limit} bytes",
                    kind="other",
                )
        return bytes(parts)


_HINTS: Mapping[FailureKind, str] = {
    "unreachable": "check the name, the port, the network and the proxy settings",
    "certificate": "name its CA in SSL_CERT_FILE, or turn TLS verification off if you trust the "
    "network",
    "alert": "it may want a client certificate: put one into certs.d, or name --cert-dir",
    "tls": "a registry without TLS needs TLS verification turned off",
}


def _failure(request: Request, error: BaseException, proxy: str | None) -> RequestError:
    from ocis2i.net.connections import kind_and_reason  # noqa: PLC0415 - likewise

    kind, reason = kind_and_reason(error)
    through = f" through the proxy `{redacted(proxy)}`" if proxy else ""
    host = urlsplit(request.url).netloc.rpartition("@")[2]
    hint = _HINTS.get(kind)
    if kind in ("unreachable", "certificate", "alert", "tls"):
        peer = "registry" if request.registry else "server"
        message = f"cannot reach {peer} `{host}`{through}: {reason}"
    else:
        message = f"{request}{through} failed: {reason}"
    if kind == "tls" and not request.registry:
        hint = "does it speak plain http?"
    return RequestError(message, kind=kind, hint=hint)


def message_with_url(error: RegistryError, url: str) -> str:
    """The message of an error, after the URL that was asked for if it does not name it."""
    named = redacted(url)
    return error.message if named in error.message else f"{named}: {error.message}"


def final_seconds(size_bytes: int) -> float:
    """How long to wait for the answer to a PUT of `size_bytes`."""
    return max(FINAL_SECONDS, size_bytes / SLOW_COMMIT_BYTES_PER_SECOND)
