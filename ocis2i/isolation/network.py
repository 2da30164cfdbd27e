"""What connects the containers of a build: the host's network, none, a proxy of ours, a program."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ocis2i.agent.network import READY, Helper
from ocis2i.allowed_hosts import AllowList
from ocis2i.container_options import HostEntry
from ocis2i.errors import IsolationError
from ocis2i.events import NetworkEnded, Notice, Report
from ocis2i.isolation.agent import Agent
from ocis2i.isolation.programs import PROGRAM_PATH
from ocis2i.lazy_dataclass import dataclass
from ocis2i.proc import find_program
from ocis2i.runner import Network

if TYPE_CHECKING:
    from ocis2i.proxy import Contacts, Proxy

# What a program of this kind may take to be ready: they need a tenth of a second.
HELPER_SECONDS = 5.0
_TUN = "/dev/net/tun"

# By these addresses the programs stand for the host's name servers.
_SLIRP_RESOLVER = "10.0.2.3"
_PASTA_RESOLVER = "169.254.1.1"
RESOLVERS: Mapping[Network, str] = {"slirp4netns": _SLIRP_RESOLVER, "pasta": _PASTA_RESOLVER}


def _slirp4netns(netns: str) -> list[str]:
    # Without the last one 10.0.2.2 would be the host's loopback device.
    options = ["--configure", "--mtu=65520", "--enable-sandbox", "--disable-host-loopback"]
    return [*options, f"--ready-fd={READY}", "--netns-type=path", netns, "tap0"]


def _pasta(netns: str) -> list[str]:
    # No ports either way, and the address of the gateway is not the host's loopback device.
    closed = [word for option in ("-t", "-u", "-T", "-U") for word in (option, "none")]
    names = ["--dns-forward", _PASTA_RESOLVER]
    return ["--config-net", "--quiet", "--no-map-gw", *names, *closed, "--netns", netns]


_ARGUMENTS: Mapping[Network, Callable[[str], list[str]]] = {
    "slirp4netns": _slirp4netns,
    "pasta": _pasta,
}


@dataclass(frozen=True, slots=True)
class Uplink:
    """How the containers are connected; `netns` is the network namespace they share."""

    network: Network
    netns: str | None = None
    proxy: Proxy | None = None


@contextmanager
def connected(
    agent: Agent,
    directory: Path,
    network: Network,
    allowed: AllowList,
    *,
    environment: Mapping[str, str],
    add_hosts: Sequence[HostEntry] = (),
    report: Report,
) -> Iterator[Uplink]:
    """Connects the containers of a build in `directory`, and says at the end what they asked for.

    Raises `IsolationError` where this host does not allow it, `UsageError` for settings of it by
    which nobody can be reached.
    """
    if network != "host" and agent.ground.ids == "none":
        raise IsolationError(
            f"`--network {network}` takes a network namespace, and there are no namespaces here",
            hint="leave it out, or choose a stronger --isolation",
        )
    if network in ("host", "none"):
        yield Uplink(network)
        return
    netns = str(directory / "netns")
    if network != "proxy":
        helper = _helper(network, netns, environment.get("PATH"))
        agent.request("network", path=netns, helper=helper)
        yield Uplink(network, netns)
        return
    from ocis2i.proxy import PORT, Proxy  # noqa: PLC0415 - few builds load it

    known = {entry.name.lower(): entry.address for entry in reversed(add_hosts)}
    with _listener(agent, netns, PORT) as listener:
        proxy = Proxy(listener, allowed, environment=environment, known=known)
        try:
            with proxy:
                yield Uplink(network, netns, proxy)
        finally:
            _tell(network, proxy.contacts, report)


def _tell(network: Network, contacts: Contacts, report: Report) -> None:
    listed = tuple((one.place.host, one.place.port, one.fate) for one in contacts.hosts)
    report(NetworkEnded(network, listed, contacts.more))
    sentence = f"network: {contacts.describe()}"
    report(Notice("warning" if contacts.refused else "info", sentence))


@contextmanager
def _listener(agent: Agent, netns: str, port: int) -> Iterator[socket.socket]:
    """A socket that listens on the loopback device of a new network namespace."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        agent.request("network", theirs.fileno(), path=netns, port=port)
        _, (fd, *_), _, _ = socket.recv_fds(ours, 16, 1)
    with socket.socket(fileno=fd) as listener:
        yield listener


def _helper(network: Network, netns: str, search_path: str | None) -> dict[str, Any]:
    program = find_program(network, search_path)
    if program is None:
        raise IsolationError(
            f"`--network {network}`: `{network}` is not installed",
            hint="install it, or use --network proxy, which needs no other program",
        )
    argv = [program, *_ARGUMENTS[network](netns)]
    return Helper(argv, {"PATH": PROGRAM_PATH}, _TUN, HELPER_SECONDS)._asdict()
