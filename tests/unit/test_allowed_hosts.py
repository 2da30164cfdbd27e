"""The rules of `--allow-host`: how they are read, and which hosts and addresses they allow."""

from __future__ import annotations

import contextlib
import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocis2i.allowed_hosts import (
    AllowList,
    Below,
    HostName,
    Range,
    Rule,
    Standing,
    is_public,
    parse_address,
    parse_allow_host,
)
from ocis2i.errors import UsageError

NAMES = st.from_regex(r"[a-z]([a-z0-9-]{0,9}[a-z0-9])?(\.[a-z][a-z0-9]{0,8}){0,3}", fullmatch=True)
PORTS = st.integers(1, 65535)


def network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    return ipaddress.ip_network(text)


# --- reading ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("example.com", HostName("example.com")),
        ("EXAMPLE.com.:8443", HostName("example.com", 8443)),
        ("localhost:3141", HostName("localhost", 3141)),
        ("my_host", HostName("my_host")),
        ("*.example.com", Below("example.com")),
        ("*.example.com:443", Below("example.com", 443)),
        ("*", Below("")),
        ("*:443", Below("", 443)),
        ("192.0.2.7", Range(network("192.0.2.7/32"))),
        ("192.0.2.7:80", Range(network("192.0.2.7/32"), 80)),
        ("10.0.0.0/8", Range(network("10.0.0.0/8"))),
        ("10.1.2.3/8:443", Range(network("10.0.0.0/8"), 443)),
        ("2001:db8::7", Range(network("2001:db8::7/128"))),
        ("[2001:db8::7]", Range(network("2001:db8::7/128"))),
        ("[2001:db8::]:443", Range(network("2001:db8::/128"), 443)),
        ("[fd00::/8]:443", Range(network("fd00::/8"), 443)),
    ],
)
def test_a_rule_is_a_name_a_domain_or_a_network(text: str, rule: Rule) -> None:
    assert parse_allow_host(text) == rule


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", ":", ":80", "a b", "a:0", "a:65536", "a:x", "a:", "a:+1", "a:\u0661", "a:80:80"),
        *("https://example.com", "http://example.com/x", "example.com/x", "me@example.com"),
        *("*example.com", "a.*.com", "*.", "*.*", "**", "-a", "a..b", ".a", "b\u00fccher.example"),
        *("10.0.0.0/33", "10.0.0.0/8/8", "[10.0.0.1]", "[::1", "::1]", "[::1]80", "[]", "[]:80"),
        *("fe80::1%eth0", "[fe80::1%eth0]:80", "a\n", "a\0b", "a" * 64, ".".join(["a" * 60] * 5)),
    ],
)
def test_what_is_no_rule_is_refused_with_the_form_of_one(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_allow_host(text)
    assert caught.value.message.startswith(f"`--allow-host` is `{text}`")
    assert "write HOST" in (caught.value.hint or "")


@given(NAMES, st.none() | PORTS)
def test_a_name_reads_as_it_is_written(name: str, port: int | None) -> None:
    assert parse_allow_host(name if port is None else f"{name}:{port}") == HostName(name, port)


@given(st.text(max_size=30))
def test_any_text_is_a_rule_or_an_error_of_usage(text: str) -> None:
    with contextlib.suppress(UsageError):
        parse_allow_host(text)


# --- addresses --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        *("127.0.0.1", "127.8.9.1", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1"),
        *("169.254.169.254", "100.64.0.1", "100.100.100.200", "192.0.0.192", "224.0.0.1"),
        *("255.255.255.255", "240.0.0.1", "198.18.0.1", "192.0.2.1"),
        *("::", "::1", "fe80::1", "fec0::1", "fc00::1", "fd00:ec2::254", "ff02::1", "2001:db8::1"),
        # Others that lead to an IPv4 address: mapped, compatible, NAT64, 6to4, Teredo.
        *("::ffff:127.0.0.1", "::ffff:8.8.8.8", "::127.0.0.1", "64:ff9b::a9fe:a9fe"),
        *("64:ff9b:1::1", "2002:7f00:1::1", "2002:808:808::1", "2001:0:7f00:1::"),
    ],
)
def test_an_address_that_means_something_here_alone_is_not_public(text: str) -> None:
    assert not is_public(ipaddress.ip_address(text))


@pytest.mark.parametrize(
    "text", ["8.8.8.8", "151.101.0.223", "2606:4700::1111", "64:ff9b::808:808"]
)
def test_an_address_that_means_the_same_everywhere_is_public(text: str) -> None:
    assert is_public(ipaddress.ip_address(text))


@given(st.ip_addresses(v=4))
def test_an_address_is_judged_alike_in_all_its_clothes(address: ipaddress.IPv4Address) -> None:
    wrapped = parse_address(f"::ffff:{address}")
    assert wrapped == address
    by_nat64 = ipaddress.IPv6Address(
        ipaddress.IPv6Address("64:ff9b::").packed[:12] + address.packed
    )
    assert is_public(by_nat64) == is_public(address)


@given(st.ip_addresses())
def test_nothing_is_public_that_python_knows_as_private(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    inside = address.is_loopback or address.is_link_local or address.is_multicast
    if inside or address.is_unspecified:
        assert not is_public(address)


# --- rules ------------------------------------------------------------------------------------


def allowed(*rules: str) -> AllowList:
    return AllowList(tuple(map(parse_allow_host, rules)), open=not rules)


@pytest.mark.parametrize(
    ("rules", "host", "port", "standing"),
    [
        ((), "example.com", 443, "listed"),
        ((), "127.0.0.1", 80, "listed"),
        (("example.com",), "example.com", 22, "named"),
        (("example.com",), "www.example.com", 443, None),
        (("example.com",), "badexample.com", 443, None),
        (("example.com:443",), "example.com", 443, "named"),
        (("example.com:443",), "example.com", 80, None),
        (("*.example.com",), "www.example.com", 443, "listed"),
        (("*.example.com",), "a.b.example.com", 443, "listed"),
        (("*.example.com",), "example.com", 443, None),
        (("*.example.com",), "badexample.com", 443, None),
        (("*.example.com", "www.example.com"), "www.example.com", 1, "named"),
        (("*",), "example.com", 443, "listed"),
        (("*",), "8.8.8.8", 443, "listed"),
        (("*:443",), "example.com", 80, None),
        (("10.0.0.0/8",), "10.1.2.3", 80, "named"),
        (("10.0.0.0/8",), "11.1.2.3", 80, None),
        # A name is not looked up to see whether it leads into a network.
        (("10.0.0.0/8",), "example.com", 80, None),
        (("127.0.0.1:80",), "::ffff:127.0.0.1", 80, "named"),
        # Not a part of an address, however it looks.
        (("*.0.0.1",), "127.0.0.1", 80, None),
    ],
)
def test_a_host_stands_by_its_strongest_rule(
    rules: tuple[str, ...], host: str, port: int, standing: Standing | None
) -> None:
    assert allowed(*rules).standing(host, port) == standing


@pytest.mark.parametrize(
    ("rules", "standing", "address", "own", "taken"),
    [
        ((), "listed", "8.8.8.8", False, True),
        ((), "listed", "8.8.8.8", True, False),
        ((), "listed", "10.0.0.1", False, False),
        ((), "listed", "169.254.169.254", False, False),
        (("corp.example",), "named", "10.0.0.1", False, True),
        (("corp.example",), "named", "8.8.8.8", True, True),
        (("*.corp.example",), "listed", "10.0.0.1", False, False),
        (("*.corp.example", "10.0.0.0/8"), "listed", "10.0.0.1", False, True),
        (("*.corp.example", "10.0.0.0/8:80"), "listed", "10.0.0.1", False, False),
        (("*", "10.0.0.0/8"), "listed", "127.0.0.1", False, False),
    ],
)
def test_where_a_name_leads_is_judged_too(
    rules: tuple[str, ...], standing: Standing, address: str, own: bool, taken: bool
) -> None:
    found = allowed(*rules).takes(standing, ipaddress.ip_address(address), 443, own=own)
    assert found is taken


@given(NAMES, PORTS, st.ip_addresses())
def test_a_domain_never_leads_inside(
    name: str, port: int, address: ipaddress.IPv4Address | ipaddress.IPv6Address
) -> None:
    rules = allowed(f"*.{name}", "*")
    standing = rules.standing(f"x.{name}", port)
    assert standing == "listed"
    assert rules.takes(standing, address, port, own=False) == is_public(address)


@given(NAMES, PORTS)
def test_a_rule_for_one_port_is_for_no_other(name: str, port: int) -> None:
    rules = allowed(f"{name}:{port}")
    assert rules.standing(name, port) == "named"
    assert rules.standing(name, port % 65535 + 1) is None
