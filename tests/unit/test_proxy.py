"""The proxy on a real socket: what it carries, refuses, writes down, and how it ends."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pytest

from ocis2i import proxy as module
from ocis2i import relay
from ocis2i.allowed_hosts import AllowList, parse_allow_host
from ocis2i.errors import UsageError
from ocis2i.forwarding import Place
from ocis2i.proxy import Contacts, Proxy, ProxyVariables, direct_hosts, is_own, own_proxies
from tests.fakes.web import Answer, FakeWeb


def allow(*rules: str) -> AllowList:
    return AllowList(tuple(map(parse_allow_host, rules)), open=not rules)


@contextmanager
def serving(
    *rules: str,
    environment: Mapping[str, str] | None = None,
    known: Mapping[str, str] | None = None,
) -> Iterator[tuple[Proxy, int]]:
    """A proxy with these rules, and its port."""
    listener = socket.create_server(("127.0.0.1", 0))
    with Proxy(listener, allow(*rules), environment=environment or {}, known=known) as running:
        yield running, listener.getsockname()[1]


def ask(port: int, *data: bytes) -> bytes:
    """What comes back for these bytes, to the end of the connection."""
    with socket.create_connection(("127.0.0.1", port), 20) as client:
        for piece in data:
            client.sendall(piece)
        with contextlib.suppress(OSError):
            client.shutdown(socket.SHUT_WR)
        parts = []
        while block := client.recv(65536):
            parts.append(block)
    return b"".join(parts)


def get(port: int, url: str, *headers: str) -> bytes:
    return ask(port, "\r\n".join([f"GET {url} HTTP/1.1", *headers, "", ""]).encode())


def fates(running: Proxy) -> dict[str, str]:
    return {str(one.place): one.fate for one in running.contacts.hosts}


@contextmanager
def server(talk: bytes, *, wait: bool = False) -> Iterator[tuple[int, list[bytes]]]:
    """A server of one connection: says `talk` (after it was told all, with `wait`); what it got."""
    got: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            client, _ = listener.accept()
            with client:
                if not wait:
                    client.sendall(talk)
                while block := client.recv(65536):
                    got.append(block)
                if wait:
                    client.sendall(talk)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1], got
        thread.join(20)


# --- what it carries --------------------------------------------------------------------------


def test_a_page_comes_through_and_is_written_down() -> None:
    with FakeWeb() as web, serving(web.host) as (running, port):
        web.put("/a", b"the page\n")
        found = get(port, f"{web.url}/a", "X-Mine: 1", "Proxy-Authorization: Basic x")
        assert found.startswith(b"HTTP/1.0 200")
        assert found.endswith(b"the page\n")
        assert fates(running) == {web.host: "reached"}
    (asked,) = web.log
    assert (asked.path, asked.headers["host"], asked.headers["x-mine"]) == ("/a", web.host, "1")
    assert "proxy-authorization" not in asked.headers


def test_a_body_arrives_whole_and_nothing_behind_it() -> None:
    body = bytes(range(256)) * 2000
    with FakeWeb() as web, serving(web.host) as (_, port):
        web.put("/in", Answer(b"taken"))
        head = f"POST {web.url}/in HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        second = f"GET {web.url}/second HTTP/1.1\r\n\r\n".encode()
        assert ask(port, head, body, second).endswith(b"taken")
        assert [(one.path, one.body) for one in web.log] == [("/in", body)]


def test_a_tunnel_carries_bytes_both_ways() -> None:
    answer, said = b"\0pong" * 300_000, b"ping\xff" * 300_000
    with (
        server(answer, wait=True) as (there, got),
        serving(f"127.0.0.1:{there}") as (running, port),
    ):
        found = ask(port, f"CONNECT 127.0.0.1:{there} HTTP/1.1\r\n\r\n".encode(), said)
        assert found == b"HTTP/1.1 200 Connection established\r\n\r\n" + answer
        assert b"".join(got) == said
        assert fates(running) == {f"127.0.0.1:{there}": "reached"}


def test_a_server_that_does_not_listen_yet_is_heard() -> None:
    # Its buffers are full before it reads: whoever copies one way at a time is stuck.
    much = 32 << 20
    with (
        server(b"x" * much) as (there, got),
        serving("127.0.0.1") as (_, port),
        socket.create_connection(("127.0.0.1", port), 20) as client,
    ):
        client.sendall(f"CONNECT 127.0.0.1:{there} HTTP/1.1\r\n\r\n".encode())

        def talk() -> None:
            client.sendall(b"y" * much)
            client.shutdown(socket.SHUT_WR)

        talking = threading.Thread(target=talk, daemon=True)
        talking.start()
        found = 0
        while block := client.recv(1 << 20):
            found += block.count(b"x")
        talking.join(20)
    assert found == much
    assert sum(map(len, got)) == much


def test_a_name_of_the_user_leads_where_he_says() -> None:
    with FakeWeb() as web:
        web.put("/", b"here\n")
        with serving("db.example", known={"db.example": "127.0.0.1"}) as (running, port):
            assert get(port, f"http://db.example:{web.port}/").endswith(b"here\n")
            assert fates(running) == {f"db.example:{web.port}": "reached"}


# --- what it refuses --------------------------------------------------------------------------


def test_a_host_that_is_not_listed_is_refused_and_not_looked_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def never(host: str, port: int) -> list[ipaddress.IPv4Address]:
        raise AssertionError((host, port))

    monkeypatch.setattr(module, "resolve", never)
    with serving("example.com") as (running, port):
        found = get(port, "http://other.example/x")
        start, _, body = found.partition(b"\r\n\r\n")
        assert start.startswith(
            b"HTTP/1.1 403 Forbidden by ocis2i, add --allow-host other.example:80"
        )
        assert body == (
            b"ocis2i: other.example:80 is not among the allowed hosts; "
            b"to allow it, add --allow-host other.example:80\n"
        )
        assert fates(running) == {"other.example:80": "refused"}


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.1", "2130706433", "[::1]"])
def test_this_host_is_reached_by_nobody_who_does_not_name_it(host: str) -> None:
    with FakeWeb() as web, serving() as (running, port):
        found = get(port, f"http://{host}:{web.port}/")
        assert b" 403 " in found.partition(b"\r\n")[0], found
        assert b"and --allow-host '*' to keep what is public" in found
        assert list(fates(running).values()) == ["refused"]
        assert web.log == []


def test_a_name_that_changes_its_mind_is_connected_to_as_judged(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []
    connected: list[object] = []

    def rebinding(host: str, _: int) -> list[ipaddress.IPv4Address]:
        asked.append(host)
        return [ipaddress.IPv4Address("8.8.8.8" if len(asked) == 1 else "127.0.0.1")]

    def record(address: object, timeout: float) -> socket.socket:
        connected.append(address)
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr(module, "resolve", rebinding)
    monkeypatch.setattr(socket, "create_connection", record)
    listener = socket.create_server(("127.0.0.1", 0))
    with Proxy(listener, allow("*.example"), environment={}) as running:
        with socket.socket() as client:
            client.connect(("127.0.0.1", listener.getsockname()[1]))
            client.sendall(b"CONNECT evil.example:80 HTTP/1.1\r\n\r\n")
            assert client.recv(1000).startswith(b"HTTP/1.1 502 ")
        assert fates(running) == {"evil.example:80": "failed"}
    assert (asked, connected) == (["evil.example"], [("8.8.8.8", 80)])


def test_of_several_addresses_only_those_outside_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    addresses = ["127.0.0.1", "10.0.0.1", "8.8.8.8", "169.254.169.254", "9.9.9.9"]
    monkeypatch.setattr(
        module, "resolve", lambda *_: [ipaddress.ip_address(one) for one in addresses]
    )
    with serving() as (running, _):
        found = running._lead(Place("x.example", 80), "listed")
    assert [str(one) for one in found] == ["8.8.8.8", "9.9.9.9"]


def test_an_address_of_this_host_is_known() -> None:
    assert is_own(ipaddress.ip_address("127.0.0.1"))
    assert not is_own(ipaddress.ip_address("8.8.8.8"))
    assert not is_own(ipaddress.ip_address("2606:4700::1111"))


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", b"400"),
        (b"\x16\x03\x01hello\r\n\r\n", b"400"),
        (b"GET http://a/ HTTP/1.1\r\n", b"400"),
        (b"GET http://a/ HTTP/1.1\r\nA: " + b"b" * 70_000, b"431"),
    ],
)
def test_a_request_that_is_none_is_answered(data: bytes, status: bytes) -> None:
    with serving() as (running, port):
        assert ask(port, data).startswith(b"HTTP/1.1 " + status)
        assert fates(running) == {}


def test_whoever_is_slow_to_ask_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HEAD_SECONDS", 0.2)
    with serving() as (_, port), socket.create_connection(("127.0.0.1", port), 20) as client:
        client.sendall(b"GET http://")
        assert client.recv(1000).startswith(b"HTTP/1.1 408 ")


def test_a_tunnel_where_nothing_moves_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "IDLE_SECONDS", 0.2)
    with (
        server(b"hello") as (there, _),
        serving("127.0.0.1") as (_, port),
        socket.create_connection(("127.0.0.1", port), 20) as client,
    ):
        client.sendall(f"CONNECT 127.0.0.1:{there} HTTP/1.1\r\n\r\n".encode())
        data = b""
        while block := client.recv(1000):
            data += block
        assert data.endswith(b"hello")


def test_more_connections_than_allowed_wait_for_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CONNECTIONS", 2)
    with FakeWeb() as web, serving("127.0.0.1") as (_, port):
        web.put("/", b"fine")
        idle = [socket.create_connection(("127.0.0.1", port), 20) for _ in range(2)]
        with socket.create_connection(("127.0.0.1", port), 20) as third:
            third.sendall(f"GET {web.url}/ HTTP/1.1\r\n\r\n".encode())
            third.settimeout(0.3)
            with pytest.raises(TimeoutError):
                third.recv(1)
            idle.pop().close()
            third.settimeout(20)
            assert third.recv(1000).startswith(b"HTTP/1.0 200")
        idle.pop().close()


def test_hosts_are_kept_up_to_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HOSTS", 3)
    with serving("none.example") as (running, port):
        for number in (1, 2, 3, 4, 5, 1):
            get(port, f"http://h{number}.example/")
        found = running.contacts
    assert [str(one.place) for one in found.hosts] == [f"h{n}.example:80" for n in (1, 2, 3)]
    assert found.more == 2
    assert found.refused
    assert found.describe() == (
        "refused h1.example:80, h2.example:80, h3.example:80; 2 others not kept"
    )


def test_the_end_breaks_off_what_is_going_on() -> None:
    with server(b"hello") as (there, _):
        with serving("127.0.0.1") as (_, port):
            client = socket.create_connection(("127.0.0.1", port), 20)
            client.sendall(f"CONNECT 127.0.0.1:{there} HTTP/1.1\r\n\r\n".encode())
            data = b""
            while not data.endswith(b"hello"):
                data += client.recv(1000)
        with client, contextlib.suppress(ConnectionError):
            assert client.recv(1) == b""
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), 20)


# --- through the host's own proxy -------------------------------------------------------------


def test_the_hosts_proxy_is_gone_through_with_its_password() -> None:
    with FakeWeb() as web:
        web.put("http://far.example/x", b"from afar\n")
        environment = {"http_proxy": f"http://me:s%20cret@{web.host}"}
        with serving("far.example", environment=environment) as (_, port):
            assert get(port, "http://far.example/x").endswith(b"from afar\n")
    (asked,) = web.log
    assert asked.headers["proxy-authorization"] == "Basic bWU6cyBjcmV0"


def test_a_tunnel_goes_through_the_hosts_proxy() -> None:
    with server(b"HTTP/1.1 200 ok\r\nA: b\r\n\r\nfirst words") as (there, got):
        environment = {"HTTPS_PROXY": f"me:pw@127.0.0.1:{there}"}
        with serving("far.example", environment=environment) as (_, port):
            found = ask(port, b"CONNECT far.example:443 HTTP/1.1\r\n\r\n", b"hello")
    assert found == b"HTTP/1.1 200 Connection established\r\n\r\nfirst words"
    assert b"".join(got) == (
        b"CONNECT far.example:443 HTTP/1.1\r\nHost: far.example:443\r\n"
        b"Proxy-Authorization: Basic bWU6cHc=\r\n\r\nhello"
    )


def test_a_proxy_that_refuses_is_told_of_by_its_number() -> None:
    with server(b"HTTP/1.1 407 secret words\r\n\r\n") as (there, _):
        environment = {"https_proxy": f"http://127.0.0.1:{there}"}
        with serving("far.example", environment=environment) as (running, port):
            found = ask(port, b"CONNECT far.example:443 HTTP/1.1\r\n\r\n")
            assert fates(running) == {"far.example:443": "failed"}
    assert found.endswith(
        b"ocis2i: far.example:443 cannot be reached: this host's proxy answers 407\n"
    )


def test_exceptions_of_the_hosts_proxy_count() -> None:
    with FakeWeb() as web:
        web.put("/", b"direct\n")
        environment = {"http_proxy": "http://127.0.0.1:9", "no_proxy": "near.example"}
        with serving(
            "near.example", environment=environment, known={"near.example": "127.0.0.1"}
        ) as (_, port):
            assert get(port, f"http://near.example:{web.port}/").endswith(b"direct\n")


def test_what_leads_inside_is_not_given_to_the_next_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "resolve", lambda *_: [ipaddress.ip_address("169.254.169.254")])
    with FakeWeb() as web, serving(environment={"http_proxy": web.url}) as (_, port):
        assert b" 403 " in get(port, "http://metadata.example/")
        assert web.log == []


@pytest.mark.parametrize(
    "url", ["socks5://p:1080", "https://me:pw@p:3128", "http://", "http://p:x"]
)
def test_a_proxy_of_another_kind_is_named(url: str) -> None:
    with pytest.raises(UsageError, match="`--network proxy` cannot go through") as caught:
        own_proxies({"all_proxy": url, "NO_PROXY": "*"})
    assert "pw" not in caught.value.message


# --- what the container is told ---------------------------------------------------------------


def test_programs_find_the_proxy_in_every_way_they_know() -> None:
    found = ProxyVariables().beside({"http_proxy": "http://corp:1", "MAVEN_OPTS": "-Xmx1g"})
    assert found["http_proxy"] == found["HTTPS_PROXY"] == "http://127.0.0.1:3128"
    assert found["no_proxy"] == found["NO_PROXY"] == "localhost,127.0.0.1,::1"
    assert found["MAVEN_OPTS"].startswith("-Xmx1g -Dhttp.proxyHost=127.0.0.1 -Dhttp.proxyPort=3128")
    assert "-Dhttps.proxyPort=3128" in found["GRADLE_OPTS"]


def test_java_options_of_the_user_are_left_alone() -> None:
    found = ProxyVariables(chosen=frozenset({"MAVEN_OPTS"})).beside({"MAVEN_OPTS": "-Xmx1g"})
    assert "MAVEN_OPTS" not in found
    assert "GRADLE_OPTS" in found


@pytest.mark.parametrize(
    ("rules", "direct"),
    [
        ((), ("localhost", "127.0.0.1", "::1")),
        (("example.com", "*", "10.0.0.0/8"), ("localhost", "127.0.0.1", "::1")),
        (("localhost:3141",), ("127.0.0.1", "::1")),
        (("127.0.0.1:80",), ("localhost", "::1")),
        (("127.0.0.0/8", "[::1]:80"), ("localhost",)),
    ],
)
def test_the_hosts_own_services_are_asked_for_by_name(
    rules: tuple[str, ...], direct: tuple[str, ...]
) -> None:
    assert direct_hosts(allow(*rules)) == direct


def test_nothing_asked_for_is_said_as_well() -> None:
    assert Contacts().describe() == "nothing was asked for"
    assert not Contacts().refused
