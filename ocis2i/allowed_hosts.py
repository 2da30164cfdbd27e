"""Which hosts a build may reach through the proxy: the rules of `--allow-host`. Pure.

A host stands in one of two ways. One that is *named*, by its full name or its address, may lead
anywhere. One that is only *listed*, by `*.DOMAIN` or because everything public is allowed, must not
lead to the inside of this network: whoever owns a domain decides what its names lead to, and that
may be a service of this machine or the metadata of a cloud (DNS rebinding).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Literal, TypeAlias

from ocis2i.container_options import is_host_name
from ocis2i.errors import UsageError
from ocis2i.lazy_dataclass import dataclass

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Standing: TypeAlias = Literal["named", "listed"]

_HINT = "write HOST, *.DOMAIN, an address or a network such as 10.0.0.0/8, and :PORT behind it"
# RFC 6052, 2.1: the last four bytes are an IPv4 address.
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
# RFC 4291, 2.4: what is handed out to be reached from everywhere.
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")


@dataclass(frozen=True, slots=True)
class HostName:
    """One host by its name, in small letters; `port` is `None` for every port."""

    name: str
    port: int | None = None


@dataclass(frozen=True, slots=True)
class Below:
    """All hosts below a domain; an empty one is the whole public network."""

    domain: str
    port: int | None = None


@dataclass(frozen=True, slots=True)
class Range:
    """A network, or one address."""

    network: ipaddress.IPv4Network | ipaddress.IPv6Network
    port: int | None = None


Rule: TypeAlias = HostName | Below | Range


def parse_allow_host(text: str) -> Rule:
    """Reads `--allow-host`. Raises `UsageError`."""
    whole = _network(text)
    if whole is not None:
        return Range(whole)
    host, port = _split(text)
    network = _network(host)
    if network is not None:
        return Range(network, port)
    name = host.lower().removesuffix(".")
    if host == "*":
        return Below("", port)
    if name.startswith("*.") and is_host_name(name[2:]):
        return Below(name[2:], port)
    if not is_host_name(name):
        raise UsageError(f"`--allow-host` is `{text}`", hint=_HINT)
    return HostName(name, port)


def _split(text: str) -> tuple[str, int | None]:
    """Host and port; an IPv6 address with a port stands in brackets."""
    if text.startswith("["):
        host, closing, rest = text[1:].partition("]")
        if not closing or (rest and not rest.startswith(":")) or ":" not in host:
            raise UsageError(f"`--allow-host` is `{text}`", hint=_HINT)
        colon, port = rest[:1], rest[1:]
    else:
        host, colon, port = text.partition(":")
    if not colon:
        return host, None
    if not is_port(port):
        raise UsageError(f"`--allow-host` is `{text}`: `{port}` is no port", hint=_HINT)
    return host, int(port)


def is_port(text: str) -> bool:
    """Whether `text` is the number of a TCP port."""
    return text.isascii() and text.isdigit() and len(text) <= 5 and 0 < int(text) < 1 << 16


def _network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return None if "%" in text else ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None


def parse_address(text: str) -> Address | None:
    """An address literal; one of IPv4 in IPv6's clothes (`::ffff:127.0.0.1`) is one of IPv4."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        return address.ipv4_mapped
    return address


def is_public(address: Address) -> bool:
    """Whether an address means the same host everywhere: not loopback, link-local, private, …

    Of an IPv6 address that leads to an IPv4 one by NAT64 that counts; 6to4 is no more in use.
    """
    if isinstance(address, ipaddress.IPv4Address):
        return address.is_global and not (address.is_multicast or address.is_reserved)
    if address in _NAT64:
        return is_public(ipaddress.IPv4Address(address.packed[12:]))
    return address in _GLOBAL_UNICAST and address.is_global and not address.sixtofour


@dataclass(frozen=True, slots=True)
class AllowList:
    """The rules of a build. When `open`, everything public is listed besides."""

    rules: tuple[Rule, ...] = ()
    open: bool = True

    def standing(self, host: str, port: int) -> Standing | None:
        """How `host` (a name in small letters, or an address) stands; `None`: it is refused.

        Decided without looking the name up: what is asked of name servers gets out as well.
        """
        address = parse_address(host)
        listed = self.open
        for rule in self._rules(port):
            match rule:
                case HostName(name) if name == host:
                    return "named"
                case Range(network) if address is not None and address in network:
                    return "named"
                case Below(domain) if address is None and host.endswith(f".{domain}"):
                    listed = True
                case Below(""):
                    listed = True
                case _:
                    pass
        return "listed" if listed else None

    def takes(self, standing: Standing, address: Address, port: int, *, own: bool) -> bool:
        """Whether a host that stands like this may lead to `address`; `own`: it is this host's."""
        if standing == "named" or (is_public(address) and not own):
            return True
        return any(
            isinstance(rule, Range) and address in rule.network for rule in self._rules(port)
        )

    def _rules(self, port: int) -> Iterable[Rule]:
        return (rule for rule in self.rules if rule.port in (None, port))
