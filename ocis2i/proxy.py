"""The only way out for a build with `--network proxy`: an HTTP proxy of ours that keeps a list.

It listens in the container's network namespace and connects in ours. Names are looked up here, and
the address that was judged is the one that is connected to: a name that leads elsewhere the next
time gains nothing (DNS rebinding). TLS goes through unread, so a host is known by the name in
`CONNECT`, and what a server of that host does with another name inside is not seen.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal, TypeAlias
from urllib.parse import urlsplit

from ocis2i.allowed_hosts import Address, AllowList, HostName, Range, Standing, parse_address
from ocis2i.errors import UsageError
from ocis2i.forwarding import (
    ESTABLISHED,
    HEAD_LIMIT,
    BadRequestError,
    Exchange,
    Place,
    Tunnel,
    answer,
    connect_head,
    parse_request,
    parse_status,
)
from ocis2i.lazy_dataclass import dataclass
from ocis2i.limits import counted
from ocis2i.net import proxy_for, redacted, split_credentials
from ocis2i.relay import linger, relay

# Where it listens: in a namespace of its own nobody else does.
PORT = 3128
# At once; who comes after that waits until one of them is over. npm keeps 15, browsers 6 a host.
CONNECTIONS = 128
CONNECT_SECONDS = 10.0
HEAD_SECONDS = 30.0
# Of a name that leads to many.
ADDRESSES = 6
# A script may ask for a new name every millisecond.
HOSTS = 1000

_NO_EXCEPTIONS = {"no_proxy": "", "NO_PROXY": ""}

Fate: TypeAlias = Literal["reached", "refused", "failed"]
Resolve: TypeAlias = Callable[[str, int], Sequence[Address]]


@dataclass(frozen=True, slots=True)
class Contact:
    """A host that a build wanted to reach, and what came of it."""

    place: Place
    fate: Fate


@dataclass(frozen=True, slots=True)
class Contacts:
    """All hosts in the order of the first request; `more` were not kept."""

    hosts: tuple[Contact, ...] = ()
    more: int = 0

    def describe(self, shown: int = 12) -> str:
        """One line for people."""
        parts = []
        for fate in ("reached", "refused", "failed"):
            names = [str(one.place) for one in self.hosts if one.fate == fate]
            rest = f" and {len(names) - shown} more" if len(names) > shown else ""
            if names:
                parts.append(f"{fate} {', '.join(names[:shown])}{rest}")
        if self.more:
            parts.append(f"{counted(self.more, 'other')} not kept")
        return "; ".join(parts) or "nothing was asked for"

    @property
    def refused(self) -> bool:
        """Whether somebody asked in vain."""
        return any(one.fate == "refused" for one in self.hosts)


def own_proxies(environment: Mapping[str, str]) -> dict[str, str]:
    """This host's proxies, by the scheme of what they are for. Raises `UsageError`.

    Only those that speak plain HTTP themselves can be gone through.
    """
    found = {}
    for scheme in ("http", "https"):
        proxy = proxy_for(f"{scheme}://ocis2i.invalid/", {**environment, **_NO_EXCEPTIONS})
        if proxy is None:
            continue
        try:
            parts = urlsplit(proxy)
            usable = parts.scheme == "http" and parts.hostname and parts.port != 0
        except ValueError:
            usable = False
        if not usable:
            raise UsageError(
                f"`--network proxy` cannot go through this host's proxy `{redacted(proxy)}`",
                hint=f"set {scheme}_proxy to one that begins with http://, or use --network host",
            )
        found[scheme] = proxy
    return found


class _Refused(Exception):  # noqa: N818 - named for what happened, as in `Contact`
    """A place that is not allowed; the text is the end of a sentence."""


class _Failed(Exception):  # noqa: N818
    """A place that cannot be reached."""


class Proxy:
    """Serves on `listener` while its `with` block lasts.

    `environment` may name this host's own proxies, which are then gone through. `known` are names
    with an address of the user's.
    """

    def __init__(
        self,
        listener: socket.socket,
        allowed: AllowList,
        *,
        environment: Mapping[str, str],
        known: Mapping[str, str] | None = None,
    ) -> None:
        own_proxies(environment)
        self._listener = listener
        self._allowed = allowed
        self._environment = environment
        self._known = dict(known or {})
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._ending = threading.Event()
        self._slots = threading.Semaphore(CONNECTIONS)
        self._contacts: dict[Place, Fate] = {}
        self._more = 0
        # Daemons: a name server that does not answer must not hold up the end of the build.
        self._thread = threading.Thread(target=self._accept, name="proxy", daemon=True)

    def __enter__(self) -> Proxy:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        with self._lock:
            self._ending.set()
            ending = [self._listener, *self._open]
        for one in ending:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)  # wakes whoever waits for it
        self._slots.release()
        self._thread.join()
        self._listener.close()

    @property
    def contacts(self) -> Contacts:
        """The hosts so far."""
        with self._lock:
            hosts = tuple(Contact(place, fate) for place, fate in self._contacts.items())
            return Contacts(hosts, self._more)

    def _record(self, place: Place, fate: Fate) -> None:
        with self._lock:
            if place not in self._contacts and len(self._contacts) >= HOSTS:
                self._more += 1
            elif self._contacts.get(place) != "reached":
                self._contacts[place] = fate

    # --- one connection ---

    def _accept(self) -> None:
        while True:
            self._slots.acquire()
            if self._ending.is_set():
                return
            try:
                client, _ = self._listener.accept()
            except OSError:
                if self._ending.is_set():
                    return
                self._ending.wait(0.1)  # no more descriptors: they come back when others end
                self._slots.release()
                continue
            try:
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()
            except RuntimeError:  # no more threads
                client.close()
                self._slots.release()

    def _serve(self, client: socket.socket) -> None:
        try:
            with self._tracked(client), contextlib.suppress(OSError):
                said = self._answer(client)
                if said:
                    client.sendall(said)
                linger(client)
        finally:
            self._slots.release()

    @contextmanager
    def _tracked(self, connection: socket.socket) -> Iterator[None]:
        """Closes a socket at the end, which is at the latest that of the proxy."""
        with connection:
            with self._lock:
                if self._ending.is_set():
                    raise ConnectionAbortedError
                self._open.add(connection)
            try:
                yield
            finally:
                with self._lock:
                    self._open.discard(connection)

    def _answer(self, client: socket.socket) -> bytes:
        """Does what a client asks for; an answer of our own when that did not come about."""
        try:
            head, rest = _read_head(client)
            request = parse_request(head)
        except BadRequestError as error:
            return answer(error.status, error.text)
        place = request.place
        try:
            with self._connected(request) as (server, first, early):
                self._record(place, "reached")
                client.sendall(early)
                server.sendall(first)
                length = None if isinstance(request, Tunnel) else request.body_bytes
                relay(client, server, rest, length)
        except _Refused as refusal:
            self._record(place, "refused")
            # The status is all that most clients show of a refused CONNECT.
            status = f"403 Forbidden by ocis2i, add --allow-host {place}"
            # A first rule ends that everything public is allowed.
            also = ", and --allow-host '*' to keep what is public" if self._allowed.open else ""
            return answer(status, f"{place} {refusal}; to allow it, add --allow-host {place}{also}")
        except _Failed as failure:
            self._record(place, "failed")
            return answer("502 Bad Gateway", f"{place} {failure}")
        return b""

    @contextmanager
    def _connected(
        self, request: Tunnel | Exchange
    ) -> Iterator[tuple[socket.socket, bytes, bytes]]:
        """A connection to the server; what it is sent first, and the client is."""
        place = request.place
        standing = self._allowed.standing(place.host, place.port)
        if standing is None:
            raise _Refused("is not among the allowed hosts")
        scheme = "https" if isinstance(request, Tunnel) else "http"
        proxy = proxy_for(f"{scheme}://{place}/", self._environment)
        if proxy is None:
            addresses = self._lead(place, standing)
            with self._dialled([(str(one), place.port) for one in addresses]) as server:
                if isinstance(request, Tunnel):
                    yield server, b"", ESTABLISHED
                else:
                    yield server, request.head(), b""
            return
        self._judge_for_proxy(place, standing)
        bare, authorization = split_credentials(proxy)
        parts = urlsplit(bare)
        next_one = (str(parts.hostname), parts.port or 80)
        with self._dialled([next_one], "this host's proxy") as server:
            if isinstance(request, Exchange):
                yield server, request.head(proxied=True, authorization=authorization), b""
                return
            server.sendall(connect_head(place, authorization))
            yield server, b"", ESTABLISHED + _tunnelled(server)

    def _lead(self, place: Place, standing: Standing) -> list[Address]:
        """The addresses of a place that may be connected to."""
        found = self._resolve(place)
        if not found:
            raise _Failed("cannot be found: there is no such name")
        kept = [one for one in found if self._takes(standing, one, place.port)]
        if not kept:
            raise _Refused("leads to an address that is not public")
        return kept[:ADDRESSES]

    def _judge_for_proxy(self, place: Place, standing: Standing) -> None:
        """The next proxy looks the name up itself: all that we know of it has to be allowed."""
        if standing == "named":
            return
        found = self._resolve(place)
        if not all(self._takes(standing, one, place.port) for one in found):
            raise _Refused("leads to an address that is not public")

    def _takes(self, standing: Standing, address: Address, port: int) -> bool:
        return self._allowed.takes(standing, address, port, own=is_own(address))

    def _resolve(self, place: Place) -> Sequence[Address]:
        return resolve(self._known.get(place.host, place.host), place.port)

    @contextmanager
    def _dialled(
        self, addresses: Sequence[tuple[str, int]], what: str = ""
    ) -> Iterator[socket.socket]:
        reason = "no address"
        for address in addresses:
            try:
                server = socket.create_connection(address, CONNECT_SECONDS)
            except OSError as error:
                timed_out = isinstance(error, TimeoutError)
                reason = "no answer in time" if timed_out else str(error.strerror or error)
                continue
            with self._tracked(server):
                yield server
            return
        raise _Failed(f"cannot be reached: {f'{what}: ' if what else ''}{reason}")


def _tunnelled(server: socket.socket) -> bytes:
    """Reads a proxy's answer to `CONNECT`; what came after it."""
    try:
        head, rest = _read_head(server)
    except (BadRequestError, OSError):
        head, rest = b"", b""
    status = parse_status(head)
    if not 200 <= status < 300:
        raise _Failed(f"cannot be reached: this host's proxy answers {status or 'nothing'}")
    return rest


def resolve(host: str, port: int) -> list[Address]:
    """The addresses of a name or a literal, those to be tried first in front."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return []
    addresses = (parse_address(str(entry[4][0])) for entry in found)
    return list(dict.fromkeys(one for one in addresses if one is not None))


def is_own(address: Address) -> bool:
    """Whether an address is one of this host's: then it can be bound to.

    A service that listens on all of them is for the neighbours, and not for a build.
    """
    # Addresses for documentation (RFC 5737, RFC 3849), which nobody has.
    nobodys = "192.0.2.1" if address.version == 4 else "2001:db8::1"
    # Where the sysctl `ip_nonlocal_bind` is set any can be bound to: then it says nothing.
    return _is_bindable(str(address)) and not _is_bindable(nobodys)


def _is_bindable(address: str) -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))
    except OSError:
        return False
    return True


# --- bytes --------------------------------------------------------------------------------------


def _read_head(connection: socket.socket) -> tuple[bytes, bytes]:
    """To the empty line, and what came after it; bounded in size and time."""
    data = bytearray()
    latest = time.monotonic() + HEAD_SECONDS
    while (end := data.find(b"\r\n\r\n")) < 0:
        left = latest - time.monotonic()
        if left <= 0:
            raise BadRequestError("408 Request Timeout", "the request takes too long")
        if len(data) > HEAD_LIMIT:
            raise BadRequestError(
                "431 Request Header Fields Too Large", f"the header is over {HEAD_LIMIT} bytes"
            )
        connection.settimeout(left)
        try:
            block = connection.recv(8192)
        except TimeoutError:
            continue
        if not block:
            raise BadRequestError("400 Bad Request", "the request ends in its header")
        data += block
    return bytes(data[: end + 4]), bytes(data[end + 4 :])


# --- what the container is told -------------------------------------------------------------------

_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def direct_hosts(allowed: AllowList) -> tuple[str, ...]:
    """Names of the container's own loopback device, which no proxy is asked for.

    Those that are allowed by name mean this host's: a mirror on localhost, for example.
    """
    taken = {rule.name for rule in allowed.rules if isinstance(rule, HostName)}
    networks = [rule.network for rule in allowed.rules if isinstance(rule, Range)]
    return tuple(
        name
        for name in _LOOPBACK
        if name not in taken
        and not any(address in one for one in networks if (address := parse_address(name)))
    )


@dataclass(frozen=True, slots=True)
class ProxyVariables:
    """The variables by which programs find the proxy; `chosen` are those the user has set."""

    direct: tuple[str, ...] = _LOOPBACK
    chosen: frozenset[str] = frozenset()

    def beside(self, environment: Mapping[str, str]) -> dict[str, str]:
        """What a process with this environment is given in addition.

        Another proxy cannot be reached, so these win. Java's programs know no such variables.
        """
        proxy, direct = f"http://127.0.0.1:{PORT}", ",".join(self.direct)
        names = {"http_proxy": proxy, "https_proxy": proxy, "no_proxy": direct}
        both = {**names, **{name.upper(): value for name, value in names.items()}}
        return both | {
            name: f"{environment.get(name, '')} {_java_options(self.direct)}".strip()
            for name in ("MAVEN_OPTS", "GRADLE_OPTS")
            if name not in self.chosen
        }


def _java_options(direct: Container[str]) -> str:
    options = [
        f"-D{scheme}.proxy{key}={value}"
        for scheme in ("http", "https")
        for key, value in (("Host", "127.0.0.1"), ("Port", PORT))
    ]
    # Without a word about it Java takes all of localhost for direct (`DefaultProxySelector`).
    alone = [name for name in ("localhost", "127.*", "[::1]") if _plain(name) in direct]
    return " ".join([*options, f"-Dhttp.nonProxyHosts={'|'.join(alone)}"])


def _plain(name: str) -> str:
    return {"127.*": "127.0.0.1", "[::1]": "::1"}.get(name, name)
