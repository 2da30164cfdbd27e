"""What a client asks of an HTTP proxy, and what of it goes on to the server (RFC 9110, 9112). Pure.

A container writes these requests. One connection carries one request, of a length that is known:
whatever follows it cannot become a second request, which a proxy behind us would take for ours.
"""

from __future__ import annotations

import re

from ocis2i.allowed_hosts import is_port, parse_address
from ocis2i.container_options import is_host_name
from ocis2i.lazy_dataclass import dataclass

# More than a header with a large cookie and token has; Apache takes 8 KiB a line.
HEAD_LIMIT = 32 << 10

_REQUEST_LINE = re.compile(rb"([A-Z][A-Z-]{0,30}) ([\x21-\x7e]+) (HTTP/1\.[01])")
# RFC 9110, 5.1 and 5.5: a token, and a value without control characters but the tab.
_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_PLAIN_URL = re.compile(r"http://([^/?#]+)([/?].*)?", re.IGNORECASE)
_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2})(?: |\r|$)")
# For one connection alone (RFC 9110, 7.6.1), for the proxy alone, or said anew by us.
_NOT_PASSED_ON = frozenset(
    b"connection proxy-connection keep-alive proxy-authorization proxy-authenticate te trailer "
    b"transfer-encoding upgrade host content-length".split()
)
_WHOLE_NUMBER = re.compile(rb"[0-9]{1,18}")


class BadRequestError(Exception):
    """A request that is not forwarded: the status and the sentence for an answer."""

    def __init__(self, status: str, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


@dataclass(frozen=True, slots=True)
class Place:
    """A host, by its name in small letters or its address without brackets, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        """As in a URL."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Tunnel:
    """`CONNECT`: bytes both ways."""

    place: Place


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request of plain HTTP, whose body has `body_bytes`, and its answer."""

    place: Place
    method: bytes
    target: bytes
    version: bytes
    fields: tuple[tuple[bytes, bytes], ...]
    body_bytes: int

    def head(self, *, proxied: bool = False, authorization: str | None = None) -> bytes:
        """For the server, or, when `proxied`, for a proxy before it, which takes a password."""
        # The place that was judged, whatever the client's own `Host` says (RFC 9112, 3.2.2).
        host = str(self.place).removesuffix(":80").encode()
        target = b"http://" + host + self.target if proxied else self.target
        lines = [self.method + b" " + target + b" " + self.version, b"Host: " + host]
        lines += [name + b": " + value for name, value in self.fields]
        if self.body_bytes or self.method in (b"POST", b"PUT", b"PATCH"):
            lines.append(b"Content-Length: %d" % self.body_bytes)
        if authorization:
            lines.append(b"Proxy-Authorization: " + authorization.encode())
        return b"\r\n".join([*lines, b"Connection: close", b"", b""])


def parse_request(head: bytes) -> Tunnel | Exchange:
    """Reads the head of a request, to its empty line. Raises `BadRequestError`."""
    first, *lines = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
    found = _REQUEST_LINE.fullmatch(first)
    if found is None:
        raise BadRequestError("400 Bad Request", "this is no request for an HTTP proxy")
    method, target, version = found.groups()
    text = target.decode()
    if method == b"CONNECT":
        return Tunnel(_place(text, default=None))
    url = _PLAIN_URL.fullmatch(text)
    if url is None:
        raise BadRequestError(
            "400 Bad Request", "a proxy takes CONNECT HOST:PORT, or a whole URL that begins http://"
        )
    if method == b"TRACE":
        # What it answers is what the last proxy got: with the password for that (RFC 9110, 9.3.8).
        raise BadRequestError("405 Method Not Allowed", "TRACE is not forwarded")
    path = url[2] or "/"
    fields = [_field(line) for line in lines]
    return Exchange(
        place=_place(url[1].rpartition("@")[2], default=80),
        method=method,
        target=(path if path.startswith("/") else f"/{path}").partition("#")[0].encode(),
        version=version,
        fields=tuple(_passed_on(fields)),
        body_bytes=_body_bytes(fields),
    )


def _field(line: bytes) -> tuple[bytes, bytes]:
    name, colon, value = line.partition(b":")
    # Also a line that goes on with the one before: long forbidden.
    if not colon or not _TOKEN.fullmatch(name) or _CONTROL.search(value):
        raise BadRequestError("400 Bad Request", "a header of the request is malformed")
    return name, value.strip(b" \t")


def _passed_on(fields: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    named = b",".join(value for name, value in fields if name.lower() == b"connection")
    dropped = _NOT_PASSED_ON | {one.strip().lower() for one in named.split(b",")}
    return [(name, value) for name, value in fields if name.lower() not in dropped]


def _body_bytes(fields: list[tuple[bytes, bytes]]) -> int:
    """How long the body is. In pieces it has no length that everybody behind us agrees on."""
    if any(name.lower() == b"transfer-encoding" for name, _ in fields):
        raise BadRequestError("411 Length Required", "say how long the request is: Content-Length")
    lengths = {value for name, value in fields if name.lower() == b"content-length"}
    if not lengths:
        return 0
    (length, *others) = lengths
    if others or not _WHOLE_NUMBER.fullmatch(length):
        raise BadRequestError("400 Bad Request", "the Content-Length is malformed")
    return int(length)


def _place(authority: str, *, default: int | None) -> Place:
    """Host and port of `HOST:PORT`; without a `default` the port has to be there."""
    if authority.startswith("["):
        host, _, rest = authority[1:].partition("]")
        colon, port = rest[:1], rest[1:]
        known = ":" in host and "%" not in host and colon in ("", ":")
        address = parse_address(host) if known else None
        name = str(address) if address is not None else ""
    else:
        name, colon, port = authority.lower().partition(":")
        name = name.removesuffix(".")
    if not colon and default is not None:
        port = str(default)
    if not name or not (is_host_name(name) or parse_address(name)) or not is_port(port):
        raise BadRequestError("400 Bad Request", "the request names no HOST:PORT")
    return Place(name, int(port))


def connect_head(place: Place, authorization: str | None) -> bytes:
    """`CONNECT`, for a proxy that is before the server."""
    lines = [f"CONNECT {place} HTTP/1.1", f"Host: {place}"]
    if authorization:
        lines.append(f"Proxy-Authorization: {authorization}")
    return "\r\n".join([*lines, "", ""]).encode()


def parse_status(head: bytes) -> int:
    """The status of an answer; 0 for what is none."""
    found = _STATUS_LINE.match(head)
    return int(found[1]) if found else 0


def answer(status: str, text: str) -> bytes:
    """An answer of our own: one line. Clients show little of it, and of `CONNECT` only `status`."""
    body = f"ocis2i: {text}\n".encode()
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body


ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"
