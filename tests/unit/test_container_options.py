"""Options of containers: hosts, capabilities, networks, and the name files made of them."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocis2i.container_options import (
    HostEntry,
    parse_add_host,
    parse_cap_drop,
    parse_network,
)
from ocis2i.errors import UsageError
from ocis2i.isolation.agent import Agent
from ocis2i.runner import HOSTNAME, NETWORKS, Network
from ocis2i.session import Session, hosts_file
from ocis2i.syscalls import CAPABILITIES

# --- hosts ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "name", "address"),
    [
        ("db:192.0.2.7", "db", "192.0.2.7"),
        ("my_db.example.com:0.0.0.0", "my_db.example.com", "0.0.0.0"),
        ("h:::1", "h", "::1"),
        ("h:[::1]", "h", "::1"),
        ("h:2001:DB8:0::7", "h", "2001:db8::7"),
        ("3com:::ffff:192.0.2.7", "3com", "::ffff:c000:207"),
        (f"{'a' * 63}.b:::", f"{'a' * 63}.b", "::"),
    ],
)
def test_a_host_is_a_name_and_an_address(text: str, name: str, address: str) -> None:
    found = parse_add_host(text)
    assert (found.name, ipaddress.ip_address(found.address)) == (
        name,
        ipaddress.ip_address(address),
    )


@given(
    st.from_regex(r"[a-z0-9]([a-z0-9-]{0,9}[a-z0-9])?(\.[a-z0-9]{1,9}){0,3}", fullmatch=True),
    st.ip_addresses(),
)
def test_an_entry_reads_as_it_is_written(
    name: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address
) -> None:
    entry = HostEntry(name, str(address))
    assert parse_add_host(str(entry)) == entry
    if address.version == 6:
        assert parse_add_host(f"{name}:[{address}]") == entry


@pytest.mark.parametrize("text", ["", "db", ":192.0.2.7", "db:", ":"])
def test_a_host_needs_both_parts(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_add_host(text)
    assert caught.value.message == f"`--add-host` is `{text}`"
    assert caught.value.hint == "write it as NAME:ADDRESS"


@pytest.mark.parametrize(
    "name",
    [
        *("a b", "a\tb", "a\nb", "#a", "-a", "a-", "a..b", ".a", "a.", "a/b", "b\u00fccher", "a\0"),
        *("a" * 64, ".".join(["a" * 60] * 5)),
    ],
)
def test_a_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be the name of a host"):
        parse_add_host(f"{name}:192.0.2.7")


@pytest.mark.parametrize(
    "address",
    [
        *("192.0.2", "192.0.2.256", "192.0.2.07", "192.0.2.7\n", " 192.0.2.7", "192.0.2.7 evil"),
        *("[192.0.2.7]", "[::1", "::1]", "[[::1]]", "[]", ":::1::", "fe80::1%eth0", "::1%\nevil x"),
        *("example.com", "192.0.2.7/24", "\u0661.2.3.4", "3221225991"),
    ],
)
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(UsageError, match="is not an IP address") as caught:
        parse_add_host(f"db:{address}")
    assert caught.value.hint
    assert "NAME:ADDRESS" in caught.value.hint


def test_gateway_of_a_daemon_is_refused_with_what_to_write() -> None:
    with pytest.raises(UsageError, match="no gateway") as caught:
        parse_add_host("outside:host-gateway")
    assert caught.value.hint == "write it as outside:127.0.0.1"


# --- capabilities -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ([], set()),
        ([""], set()),
        (["CAP_CHOWN"], {"CAP_CHOWN"}),
        (["chown", "CHOWN", "cap_chown", "Cap_Chown"], {"CAP_CHOWN"}),
        (["setuid, setgid", "net_raw"], {"CAP_SETUID", "CAP_SETGID", "CAP_NET_RAW"}),
        (["all"], {"ALL"}),
        (["chown,ALL", "kill"], {"ALL"}),
    ],
)
def test_capabilities_are_lists_of_names(values: list[str], names: set[str]) -> None:
    assert parse_cap_drop(values) == names


@given(st.lists(st.sampled_from(CAPABILITIES), max_size=9))
def test_one_list_is_as_good_as_many_flags(names: list[str]) -> None:
    short = [name.removeprefix("CAP_").lower() for name in names]
    assert parse_cap_drop(names) == parse_cap_drop([",".join(short)]) == set(names)


@pytest.mark.parametrize(
    "value", ["CAP_NONE", "root", "chown,", ",", "cap_", "cap_all", "chown;kill", "cap_cap_chown"]
)
def test_what_is_no_capability_is_named(value: str) -> None:
    wrong = next(piece for piece in value.split(",") if piece != "chown")
    with pytest.raises(UsageError) as caught:
        parse_cap_drop(["kill", value])
    assert caught.value.message == f"`--cap-drop` has `{wrong}`, which is no capability"


# --- networks ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "network"),
    [(None, "host"), ("", "host"), *((name, name) for name in NETWORKS)],
)
def test_a_network_is_one_of_a_few(text: str | None, network: str) -> None:
    assert parse_network(text) == (network, None)


@pytest.mark.parametrize("text", ["bridge", "default", "private"])
def test_networks_that_a_daemon_always_has_become_the_host_network(text: str) -> None:
    network, warning = parse_network(text)
    assert network == "host"
    assert warning
    assert f"`{text}`" in warning


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("container:web", "network of another container"),
        ("netns:/run/netns/x", "namespace cannot be joined"),
        ("ns:/run/netns/x", "namespace cannot be joined"),
        ("backend", "named networks take a daemon"),
        ("container", "named networks take a daemon"),
        ("host:x", "named networks take a daemon"),
        ("HOST", "named networks take a daemon"),
        (" none", "named networks take a daemon"),
        ("slirp4netns:port_handler=x", "named networks take a daemon"),
    ],
)
def test_other_networks_are_refused_with_those_that_are_there(text: str, why: str) -> None:
    with pytest.raises(UsageError, match=why) as caught:
        parse_network(text)
    assert f"`{text}`" in caught.value.message
    assert caught.value.hint == "there are host, none, proxy, slirp4netns, pasta"


# --- files of names ---------------------------------------------------------------------------

EXTRA = (HostEntry("db", "192.0.2.7"), HostEntry("db6", "2001:db8::7"))


def files(directory: Path, network: Network) -> dict[str, str]:
    """What a container finds, by the place it finds it at."""
    here = Session(cast("Agent", None), directory, None)
    mounts = here.network_files(EXTRA, network)
    assert all(mount.read_only and not mount.directory for mount in mounts)
    assert all(Path(mount.source).stat().st_mode & 0o777 == 0o644 for mount in mounts)
    return {mount.target: Path(mount.source).read_text() for mount in mounts}


def test_entries_of_the_user_come_first_and_the_own_name_last() -> None:
    made = hosts_file(b"10.0.0.1\tdb\n", EXTRA).decode()
    assert made.splitlines() == [
        "192.0.2.7\tdb",
        "2001:db8::7\tdb6",
        "10.0.0.1\tdb",
        f"127.0.0.1\t{HOSTNAME}",
    ]


def test_names_of_the_host_are_known_in_its_network(tmp_path: Path) -> None:
    found = files(tmp_path, "host")
    assert set(found) == {"/etc/hosts", "/etc/resolv.conf"}
    assert found["/etc/hosts"].startswith("192.0.2.7\tdb\n2001:db8::7\tdb6\n")
    for path, content in found.items():
        if Path(path).exists():
            assert Path(path).read_text().strip() in content


@pytest.mark.parametrize(
    ("network", "address"), [("slirp4netns", "10.0.2.3"), ("pasta", "169.254.1.1")]
)
def test_a_program_answers_for_the_name_servers(
    tmp_path: Path, network: Network, address: str
) -> None:
    found = files(tmp_path, network)
    assert found["/etc/resolv.conf"] == f"nameserver {address}\n"
    assert found["/etc/hosts"] == files(tmp_path, "none")["/etc/hosts"]


@pytest.mark.parametrize("network", ["none", "proxy"])
def test_without_network_there_are_only_names_of_the_user_and_of_loopback(
    tmp_path: Path, network: Network
) -> None:
    assert files(tmp_path, network) == {
        "/etc/resolv.conf": "# no network, no name servers\n",
        "/etc/hosts": "192.0.2.7\tdb\n2001:db8::7\tdb6\n"
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
        f"127.0.0.1\t{HOSTNAME}\n",
    }
