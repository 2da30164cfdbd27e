"""Scripts from a web server: what is a script, what is not there, and what is an error."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from ocis2i.download import ScriptDownloads
from ocis2i.errors import ScriptsError
from ocis2i.events import Event, Notice
from ocis2i.net import Http
from ocis2i.web_files import looks_like_html
from tests.fakes.web import Answer, FakeWeb

SCRIPT = b"#!/bin/sh\necho hello\n"
LIMIT = 1000


class Desk:
    """A client of scripts, what it reported and how long it would have slept."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.http = Http(environment)
        self.events: list[Event] = []
        self.slept: list[float] = []
        self.fetch = ScriptDownloads(self.http, self.events.append, sleep=self.slept.append)

    def notices(self, level: str) -> list[str]:
        return [
            one.message for one in self.events if isinstance(one, Notice) and one.level == level
        ]


@contextmanager
def client(**environment: str) -> Iterator[Desk]:
    desk = Desk(environment)
    try:
        yield desk
    finally:
        desk.http.close()


@pytest.fixture
def desk() -> Iterator[Desk]:
    with client() as made:
        yield made


@pytest.fixture
def web() -> Iterator[FakeWeb]:
    with FakeWeb() as running:
        yield running


@pytest.mark.parametrize("status", [200, 201])
def test_script_is_fetched_as_it_is(web: FakeWeb, desk: Desk, status: int) -> None:
    web.put("/assemble?x=1", Answer(SCRIPT, status))
    assert desk.fetch(f"{web.url}/assemble?x=1", LIMIT) == SCRIPT
    assert [(one.method, one.path) for one in web.log] == [("GET", "/assemble?x=1")]
    assert "authorization" not in web.log[0].headers


@pytest.mark.parametrize("status", [400, 404, 405, 410, 451])
def test_lasting_4xx_means_not_there_and_is_noted(web: FakeWeb, desk: Desk, status: int) -> None:
    web.put("/run", Answer(b"<html>no", status, {"Content-Type": "text/html"}))
    assert desk.fetch(f"{web.url}/run", LIMIT) is None
    assert desk.notices("info") == [f"the script `{web.url}/run` is not there (status {status})"]
    assert desk.slept == []


@pytest.mark.parametrize("status", [401, 403])
def test_refusal_is_not_there_with_a_warning(web: FakeWeb, desk: Desk, status: int) -> None:
    web.put("/run?token=s3cret", Answer(status=status))
    assert desk.fetch(f"{web.url}/run?token=s3cret", LIMIT) is None
    expected = f"the script `{web.url}/run` is refused (status {status})"
    assert desk.notices("warning")[-1] == expected


def test_passing_fault_is_tried_again(web: FakeWeb, desk: Desk) -> None:
    busy = Answer(status=429, headers={"Retry-After": "7"})
    web.put("/run", Answer(status=500), busy, Answer(drop=True), SCRIPT)
    assert desk.fetch(f"{web.url}/run", LIMIT) == SCRIPT
    assert len(web.log) == 4
    assert len(desk.slept) == 3
    assert desk.slept[1] == 7.0


def test_script_that_ends_too_early_is_fetched_again(web: FakeWeb, desk: Desk) -> None:
    web.put("/run", Answer(SCRIPT[:5], announced=len(SCRIPT)), SCRIPT)
    assert desk.fetch(f"{web.url}/run", LIMIT) == SCRIPT


@pytest.mark.parametrize(("status", "tries"), [(503, 5), (429, 5), (501, 1), (407, 1), (204, 1)])
def test_status_that_decides_nothing_is_an_error(
    web: FakeWeb, desk: Desk, status: int, tries: int
) -> None:
    web.put("/run?token=s3cret", Answer(status=status))
    with pytest.raises(ScriptsError, match=f"status {status}") as caught:
        desk.fetch(f"{web.url}/run?token=s3cret", LIMIT)
    assert f"{web.url}/run" in caught.value.message
    assert "s3cret" not in caught.value.message
    assert caught.value.reason == "FetchScriptsFailed"
    assert len(web.log) == tries


def test_server_that_is_not_there_is_named_without_its_password(desk: Desk) -> None:
    with FakeWeb() as web:
        address = web.host
    with pytest.raises(ScriptsError, match="connection refused") as caught:
        desk.fetch(f"http://ann:s3cret@{address}/dir/run?key=s3cret", LIMIT)
    assert f"http://{address}/dir/run: cannot reach server `{address}`" in caught.value.message
    assert "s3cret" not in caught.value.message
    assert "registry" not in caught.value.message
    assert len(desk.slept) == 2


@pytest.mark.parametrize(
    "answer",
    [
        Answer(b"please log in", headers={"Content-Type": "text/html; charset=utf-8"}),
        Answer(b"please log in", headers={"Content-Type": "application/xhtml+xml"}),
        Answer(b"\xef\xbb\xbf \r\n<!DOCTYPE HTML>\n", headers={"Content-Type": "text/plain"}),
        Answer(b"\n<HTML lang=en>", headers={"Content-Type": "application/x-sh"}),
    ],
)
def test_web_page_is_no_script(web: FakeWeb, desk: Desk, answer: Answer) -> None:
    web.put("/run", answer)
    with pytest.raises(ScriptsError, match="web page") as caught:
        desk.fetch(f"{web.url}/run", LIMIT)
    assert caught.value.reason == "FetchScriptsFailed"
    assert caught.value.hint
    assert len(web.log) == 1


def test_script_that_writes_a_web_page_is_one() -> None:
    assert not looks_like_html(b"#!/bin/sh\necho '<!doctype html>'\n")
    assert not looks_like_html(b"<htm")
    assert not looks_like_html(b"")


def test_empty_or_compressed_or_large_answer_is_an_error(web: FakeWeb, desk: Desk) -> None:
    web.put("/empty", b"")
    web.put("/packed", Answer(b"\x1f\x8b", headers={"Content-Encoding": "gzip"}))
    web.put("/large", b"#" * (LIMIT + 1))
    web.put("/just", b"#" * LIMIT)
    for path, words in (("empty", "is empty"), ("packed", "compressed"), ("large", "more than")):
        with pytest.raises(ScriptsError, match=words) as caught:
            desk.fetch(f"{web.url}/{path}", LIMIT)
        assert f"{web.url}/{path}" in caught.value.message
    assert desk.fetch(f"{web.url}/just", LIMIT) == b"#" * LIMIT


def test_user_and_password_go_to_their_own_host_only(web: FakeWeb, desk: Desk) -> None:
    with FakeWeb() as other:
        other.put("/run", SCRIPT)
        web.put("/run", Answer(status=302, headers={"Location": "/here"}))
        web.put("/here", Answer(status=307, headers={"Location": f"{other.url}/run"}))
        assert desk.fetch(f"http://a%40nn:s3%3Acret@{web.host}/run", LIMIT) == SCRIPT
        expected = "Basic " + base64.b64encode(b"a@nn:s3:cret").decode()
        assert [one.headers["authorization"] for one in web.log] == [expected] * 2
        assert "authorization" not in other.log[0].headers


def test_redirects_in_a_circle_end(web: FakeWeb, desk: Desk) -> None:
    web.put("/run", Answer(status=301, headers={"Location": "/run"}))
    with pytest.raises(ScriptsError, match="redirected 10 times"):
        desk.fetch(f"{web.url}/run", LIMIT)
    assert len(web.log) == 11


def test_plain_http_is_pointed_out_once_for_each_server(web: FakeWeb, desk: Desk) -> None:
    web.put("/run", SCRIPT)
    web.put("/assemble", SCRIPT)
    for name in ("run", "assemble"):
        desk.fetch(f"{web.url}/{name}", LIMIT)
    [warning] = desk.notices("warning")
    assert "not encrypted" in warning


def test_proxy_of_the_environment_is_used(web: FakeWeb) -> None:
    web.put("http://scripts.example/dir/run", SCRIPT)
    with client(http_proxy=f"http://{web.host}") as desk:
        assert desk.fetch("http://scripts.example/dir/run", LIMIT) == SCRIPT


def test_proxy_that_wants_a_password_is_an_error(web: FakeWeb) -> None:
    web.put("http://scripts.example/run", Answer(status=407))
    with (
        client(http_proxy=f"http://{web.host}") as desk,
        pytest.raises(ScriptsError, match="status 407"),
    ):
        desk.fetch("http://scripts.example/run", LIMIT)


def test_certificate_file_that_is_no_good_is_an_error() -> None:
    with (
        client(SSL_CERT_FILE="/nowhere/ca.pem") as desk,
        pytest.raises(ScriptsError, match=r"/nowhere/ca\.pem"),
    ):
        desk.fetch("https://scripts.example/run", LIMIT)
