"""Requests to a proxy: what is read of them, what goes on, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocis2i.forwarding import (
    BadRequestError,
    Exchange,
    Place,
    Tunnel,
    answer,
    connect_head,
    parse_request,
    parse_status,
)


def head(*lines: str) -> bytes:
    return "\r\n".join([*lines, "", ""]).encode()


def exchange(*lines: str) -> Exchange:
    found = parse_request(head(*lines))
    assert isinstance(found, Exchange)
    return found


@pytest.mark.parametrize(
    ("target", "place"),
    [
        ("example.com:443", Place("example.com", 443)),
        ("EXAMPLE.com.:443", Place("example.com", 443)),
        ("192.0.2.7:22", Place("192.0.2.7", 22)),
        ("[2001:DB8::7]:443", Place("2001:db8::7", 443)),
        ("[::ffff:127.0.0.1]:80", Place("127.0.0.1", 80)),
    ],
)
def test_a_tunnel_names_a_host_and_a_port(target: str, place: Place) -> None:
    assert parse_request(head(f"CONNECT {target} HTTP/1.1", "Host: other")) == Tunnel(place)


@pytest.mark.parametrize(
    "line",
    [
        *("", "GET", "GET /", "GET / HTTP/1.1", "GET * HTTP/1.1", "GET https://a/ HTTP/1.1"),
        *("GET ftp://a/ HTTP/1.1", "GET http:///x HTTP/1.1", "GET http://a b/ HTTP/1.1"),
        *("GET http://a/ HTTP/2.0", "get http://a/ HTTP/1.1", "GET  http://a/ HTTP/1.1"),
        *("CONNECT a HTTP/1.1", "CONNECT a:0 HTTP/1.1", "CONNECT a:99999 HTTP/1.1"),
        *("CONNECT :80 HTTP/1.1", "CONNECT a/b:80 HTTP/1.1", "CONNECT me@a:80 HTTP/1.1"),
        *("CONNECT [::1]80 HTTP/1.1", "CONNECT [fe80::1%25eth0]:80 HTTP/1.1"),
        *("CONNECT [a]:80 HTTP/1.1", "CONNECT ::1:80 HTTP/1.1", "GET http://a:x/ HTTP/1.1"),
        *("GET http://a\\b/ HTTP/1.1", "GET http://a%2f/ HTTP/1.1"),
    ],
)
def test_what_is_no_request_for_a_proxy_is_answered_with_400(line: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        parse_request(head(line))
    assert caught.value.status.startswith("400 ")


def test_the_server_gets_the_path_and_the_place_that_was_judged() -> None:
    found = exchange("GET http://Example.com/a?b=c#d HTTP/1.1", "Host: inside.example", "A: b")
    assert found.place == Place("example.com", 80)
    assert found.head() == head(
        "GET /a?b=c HTTP/1.1", "Host: example.com", "A: b", "Connection: close"
    )


@pytest.mark.parametrize(
    ("url", "line", "host"),
    [
        ("http://a", "GET / HTTP/1.0", "a"),
        ("http://a?x", "GET /?x HTTP/1.0", "a"),
        ("http://a:8080/x", "GET /x HTTP/1.0", "a:8080"),
        ("http://me:pw@a/x", "GET /x HTTP/1.0", "a"),
        ("http://good@evil@a/x", "GET /x HTTP/1.0", "a"),
        ("HTTP://[::1]:81/", "GET / HTTP/1.0", "[::1]:81"),
    ],
)
def test_urls_in_all_their_forms(url: str, line: str, host: str) -> None:
    assert exchange(f"GET {url} HTTP/1.0").head().decode().split("\r\n")[:2] == [
        line,
        f"Host: {host}",
    ]


def test_headers_for_one_connection_stay_on_it() -> None:
    found = exchange(
        "GET http://a/ HTTP/1.1",
        "Proxy-Authorization: Basic x",
        "Connection: keep-alive, X-Mine,Content-Length",
        "Keep-Alive: 5",
        "Proxy-Connection: keep-alive",
        "TE: trailers",
        "Upgrade: websocket",
        "X-Mine: 1",
        "Accept: */*",
    )
    assert found.fields == ((b"Accept", b"*/*"),)


def test_a_body_has_its_length_and_no_other_form() -> None:
    found = exchange(
        "POST http://a/ HTTP/1.1",
        "Content-Length: 5",
        "content-length: 5",
        "Connection: content-length",
    )
    assert found.body_bytes == 5
    assert b"\r\nContent-Length: 5\r\n" in found.head()
    assert b"\r\nContent-Length: 0\r\n" in exchange("POST http://a/ HTTP/1.1").head()


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        (("Transfer-Encoding: chunked",), "411"),
        (("Content-Length: 5", "Transfer-Encoding: chunked"), "411"),
        (("Content-Length: 5", "Content-Length: 6"), "400"),
        (("Content-Length: +5",), "400"),
        (("Content-Length: 5, 5",), "400"),
        (("Content-Length: ",), "400"),
        (("Content-Length: 9999999999999999999",), "400"),
        (("A : b",), "400"),
        (("A: b", " folded"), "400"),
        (("no colon",), "400"),
        (("A: b\nContent-Length: 5",), "400"),
        (("A: b\0",), "400"),
    ],
)
def test_a_request_that_may_be_read_in_two_ways_goes_nowhere(
    fields: tuple[str, ...], status: str
) -> None:
    with pytest.raises(BadRequestError) as caught:
        parse_request(head("POST http://a/ HTTP/1.1", *fields))
    assert caught.value.status.startswith(status)


def test_nobody_is_asked_what_he_was_sent() -> None:
    with pytest.raises(BadRequestError) as caught:
        parse_request(head("TRACE http://a/ HTTP/1.1", "Max-Forwards: 0"))
    assert caught.value.status.startswith("405")


def test_a_proxy_before_the_server_gets_the_url_and_its_password() -> None:
    found = exchange("GET http://a:81/x HTTP/1.1", "Proxy-Authorization: Basic theirs")
    assert found.head(proxied=True, authorization="Basic ours") == head(
        "GET http://a:81/x HTTP/1.1",
        "Host: a:81",
        "Proxy-Authorization: Basic ours",
        "Connection: close",
    )
    assert connect_head(Place("::1", 443), "Basic ours") == head(
        "CONNECT [::1]:443 HTTP/1.1", "Host: [::1]:443", "Proxy-Authorization: Basic ours"
    )


@given(st.binary(max_size=300))
def test_any_bytes_are_a_request_or_an_error(data: bytes) -> None:
    try:
        found = parse_request(data + b"\r\n\r\n")
    except BadRequestError:
        return
    assert 0 < found.place.port < 1 << 16


@given(
    st.lists(
        st.tuples(
            st.from_regex(r"[A-Za-z-]{1,12}", fullmatch=True),
            st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40),
        ),
        max_size=8,
    )
)
def test_what_goes_on_is_one_request(fields: list[tuple[str, str]]) -> None:
    try:
        found = exchange("GET http://a/x HTTP/1.1", *(f"{name}: {value}" for name, value in fields))
    except BadRequestError:
        return
    sent = found.head()
    assert sent.count(b"\r\n\r\n") == 1
    assert sent.endswith(b"\r\n\r\n")
    lines = [line.lower() for line in sent.split(b"\r\n")]
    assert [line for line in lines if line.startswith(b"host:")] == [b"host: a"]
    assert [line for line in lines if line.startswith(b"connection:")] == [b"connection: close"]
    assert not [line for line in lines if line.startswith(b"transfer-encoding:")]


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"HTTP/1.1 200 Fine\r\n\r\n", 200),
        (b"HTTP/1.0 407\r\n\r\n", 407),
        (b"", 0),
        (b"SSH-2.0-x\r\n\r\n", 0),
        (b"HTTP/1.1 2000 x\r\n\r\n", 0),
    ],
)
def test_a_status_is_read_or_is_none(data: bytes, status: int) -> None:
    assert parse_status(data) == status


def test_an_answer_of_ours_is_one_line() -> None:
    start, _, body = answer("403 Forbidden", "no").partition(b"\r\n\r\n")
    assert start.startswith(b"HTTP/1.1 403 Forbidden\r\n")
    assert body == b"ocis2i: no\n"
    assert b"Content-Length: 11" in start
