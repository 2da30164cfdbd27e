"""Options of the command line for every container of a build: hosts, capabilities, network."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import replace

from ocis2i.errors import UsageError
from ocis2i.lazy_dataclass import dataclass
from ocis2i.runner import NETWORKS, Hardening, Network
from ocis2i.syscalls import CAPABILITIES

ALL = "ALL"

# hosts(5), with the `_` that many have in their names.
_LABEL = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_LONGEST_HOST_NAME = 253

# The networks that a daemon has from the start (Docker) and the default of Podman.
_DAEMON_NETWORKS = frozenset({"bridge", "default", "private"})
_NO_OTHER_NETWORK = f"there are {', '.join(NETWORKS)}"
_JOINED_NETWORKS = {
    "container": "a network of another container cannot be joined without a daemon",
    "netns": "a network namespace cannot be joined without root",
    "ns": "a network namespace cannot be joined without root",
}


@dataclass(frozen=True, slots=True)
class HostEntry:
    """A line of `/etc/hosts`; `address` is an IPv4 or IPv6 address in its usual form."""

    name: str
    address: str

    def __str__(self) -> str:
        """As `--add-host` takes it."""
        return f"{self.name}:{self.address}"


def parse_add_host(text: str) -> HostEntry:
    """Reads `NAME:ADDRESS` as `docker run --add-host` has it; an IPv6 address may be in brackets.

    Raises `UsageError`.
    """
    name, colon, address = text.partition(":")
    if not colon or not name or not address:
        raise UsageError(f"`--add-host` is `{text}`", hint="write it as NAME:ADDRESS")
    if not is_host_name(name):
        raise UsageError(
            f"`--add-host` is `{text}`: `{name}` cannot be the name of a host",
            hint="write NAME:ADDRESS, the name of letters, digits, dots and hyphens",
        )
    if address == "host-gateway":
        raise UsageError(
            f"`--add-host` is `{text}`: there is no gateway to the host, a build is in its network",
            hint=f"write it as {name}:127.0.0.1",
        )
    return HostEntry(name, _address(address, text))


def is_host_name(text: str) -> bool:
    """Whether `text` can be the name of a host."""
    return len(text) <= _LONGEST_HOST_NAME and _HOST_NAME.fullmatch(text) is not None


def _address(address: str, text: str) -> str:
    bare = address[1:-1] if address.startswith("[") and address.endswith("]") else address
    try:
        found = ipaddress.ip_address(bare)
    except ValueError:
        found = None
    # A zone (`%eth0`) may be any text, and means nothing in another network namespace.
    if found is None or "%" in bare or (bare != address and found.version == 4):
        raise UsageError(
            f"`--add-host` is `{text}`: `{address}` is not an IP address",
            hint="write it as NAME:ADDRESS, as in db:192.0.2.7 or db:[2001:db8::7]",
        )
    return str(found)


def parse_cap_drop(values: Iterable[str]) -> frozenset[str]:
    """Reads `--cap-drop` flags, each a list with commas, as `linux/capability.h` has the names.

    `CAP_` may be left out, in large or small letters; `ALL` stands alone in what is returned.
    Raises `UsageError` for a capability that Linux does not have.
    """
    given = [piece.strip() for value in values if value.strip() for piece in value.split(",")]
    found = {_capability(piece) for piece in given}
    return frozenset({ALL} if ALL in found else found)


def _capability(text: str) -> str:
    name = text.upper()
    if name == ALL:
        return name
    name = name if name.startswith("CAP_") else f"CAP_{name}"
    if name not in CAPABILITIES:
        raise UsageError(
            f"`--cap-drop` has `{text}`, which is no capability",
            hint="capabilities(7) has the names, as in CAP_CHOWN or chown; ALL stands for all",
        )
    return name


_SECURITY_OPTIONS = "there are seccomp=unconfined and no-new-privileges=false"


def parse_security_options(values: Iterable[str]) -> Hardening:
    """Reads `--security-opt` flags, as Docker writes them. Raises `UsageError`."""
    found = Hardening()
    for text in values:
        name, separator, value = text.replace(":", "=", 1).partition("=")
        match name, value:
            case "seccomp", "default" | "builtin":
                found = replace(found, seccomp=True)
            case "seccomp", "unconfined":
                found = replace(found, seccomp=False)
            case "no-new-privileges", "true" | "false":
                found = replace(found, no_new_privs=value == "true")
            case "no-new-privileges", "" if not separator:
                found = replace(found, no_new_privs=True)
            case "seccomp", _:
                raise UsageError(
                    f"`--security-opt` is `{text}`: profiles of one's own are not taken",
                    hint=_SECURITY_OPTIONS,
                )
            case _:
                raise UsageError(f"`--security-opt` is `{text}`", hint=_SECURITY_OPTIONS)
    return found


def parse_network(text: str | None) -> tuple[Network, str | None]:
    """Reads `--network`; what it comes to, and a sentence where that is not what was asked for.

    Raises `UsageError` for networks that only a daemon or root can have.
    """
    for network in NETWORKS:
        if network == (text or "host"):
            return network, None
    match text or "":
        case name if name in _DAEMON_NETWORKS:
            return "host", (
                f"`--network` is `{name}`, which takes a daemon: the build is in the host's network"
            )
        case name:
            kind, colon, _ = name.partition(":")
            why = _JOINED_NETWORKS.get(kind) if colon else None
            raise UsageError(
                f"`--network` is `{name}`: {why or 'named networks take a daemon'}",
                hint=_NO_OTHER_NETWORK,
            )
