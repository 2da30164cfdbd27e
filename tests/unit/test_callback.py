"""What a callback says, and that nothing it meets disturbs a build."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocis2i.callback import check_callback_url, encode_callback, notify
from ocis2i.errors import UsageError
from ocis2i.events import Event, Notice
from ocis2i.net import Http
from tests.fakes.web import Answer, FakeWeb

BODY = b'{"labels":{"a":"1","b":"2"},"success":true}\n'


class Caller:
    """Sends callbacks; `events` is what was reported, `slept` the pauses in seconds."""

    def __init__(self, environment: dict[str, str] | None = None) -> None:
        self.http = Http(environment or {})
        self.events: list[Event] = []
        self.slept: list[float] = []

    def notify(self, url: str, *, success: bool = True) -> tuple[str, ...]:
        labels = {"b": "2", "a": "1"} if success else {}
        messages = notify(
            url,
            success=success,
            labels=labels,
            http=self.http,
            report=self.events.append,
            sleep=self.slept.append,
        )
        assert self.events == [Notice("warning", message) for message in messages]
        return messages


@pytest.fixture
def caller() -> Iterator[Caller]:
    made = Caller()
    yield made
    made.http.close()


@pytest.fixture
def web() -> Iterator[FakeWeb]:
    with FakeWeb() as running:
        yield running


def test_success_and_its_labels_are_posted(web: FakeWeb, caller: Caller) -> None:
    web.put("/hook?id=1", Answer(status=204))
    assert caller.notify(f"{web.url}/hook?id=1") == ()
    [asked] = web.log
    assert (asked.method, asked.path, asked.body) == ("POST", "/hook?id=1", BODY)
    assert asked.headers["content-type"] == "application/json"
    assert caller.slept == []


def test_failure_has_no_labels(web: FakeWeb, caller: Caller) -> None:
    web.put("/", b"ok")
    caller.notify(web.url, success=False)
    assert web.log[0].body == b'{"success":false}\n'


def test_body_is_what_go_writes() -> None:
    body = encode_callback(success=True, labels={"k": "<a&b>\u2028é", "b\ud800": ""})
    assert body == (
        '{"labels":{"b?":"","k":"\\u003ca\\u0026b\\u003e\\u2028é"},"success":true}\n'.encode()
    )


@given(labels=st.dictionaries(st.text(), st.text()), success=st.booleans())
def test_body_is_one_line_of_json(labels: dict[str, str], success: bool) -> None:
    body = encode_callback(success=success, labels=labels)
    document = json.loads(body)
    assert document["success"] is success
    assert document.get("labels", {}) == labels
    assert body.endswith(b"\n")
    assert not set(body.removesuffix(b"\n")) & set(b"<>&\n\r")


@pytest.mark.parametrize("status", [300, 400, 404, 500, 503])
def test_any_answer_ends_it(web: FakeWeb, caller: Caller, status: int) -> None:
    web.put("/hook", Answer(status=status))
    messages = caller.notify(f"{web.url}/hook")
    assert messages == (f"Callback returned with error code: {status}",)
    assert len(web.log) == 1


def test_redirect_that_keeps_the_body_is_followed(web: FakeWeb, caller: Caller) -> None:
    web.put("/hook", Answer(status=307, headers={"Location": "/there"}))
    web.put("/there", b"")
    assert caller.notify(f"{web.url}/hook") == ()
    assert [one.body for one in web.log] == [BODY, BODY]


def test_redirect_that_loses_the_body_is_an_answer(web: FakeWeb, caller: Caller) -> None:
    web.put("/hook", Answer(status=302, headers={"Location": "/there"}))
    assert caller.notify(f"{web.url}/hook") == ("Callback returned with error code: 302",)
    assert web.asked == ["/hook"]


def test_every_attempt_sends_the_whole_body(web: FakeWeb, caller: Caller) -> None:
    web.put("/hook", Answer(drop=True), Answer(drop=True), b"")
    assert caller.notify(f"{web.url}/hook") == ()
    assert [one.body for one in web.log] == [BODY] * 3
    assert len(caller.slept) == 2


def test_it_gives_up_after_three_attempts(web: FakeWeb, caller: Caller) -> None:
    web.put("/hook", Answer(drop=True))
    [message] = caller.notify(f"{web.url}/hook")
    assert message.startswith("Unable to invoke callback: ")
    assert f"{web.url}/hook" in message
    assert len(web.log) == 3
    assert max(caller.slept) < 1


def test_server_that_is_not_there_is_named_without_its_password(caller: Caller) -> None:
    with FakeWeb() as gone:
        address = gone.host
    [message] = caller.notify(f"http://ann:s3cret@{address}/hook?token=s3cret")
    assert message == (
        f"Unable to invoke callback: http://{address}/hook: cannot reach server `{address}`: "
        "connection refused"
    )
    assert len(caller.slept) == 2


def test_credentials_of_the_url_are_sent(web: FakeWeb, caller: Caller) -> None:
    web.put("/hook", b"")
    caller.notify(f"http://ann:s3cret@{web.host}/hook")
    expected = "Basic " + base64.b64encode(b"ann:s3cret").decode()
    assert web.log[0].headers["authorization"] == expected


def test_broken_settings_of_the_network_raise_nothing() -> None:
    for environment in ({"SSL_CERT_FILE": "/nowhere/ca.pem"}, {"https_proxy": "http://["}):
        caller = Caller(environment)
        [message] = caller.notify("https://host.example/hook")
        assert message.startswith("Unable to invoke callback: ")
        caller.http.close()


@pytest.mark.parametrize("url", ["http://host", "https://ann:pw@host:8443/hook?x=1", "HTTP://h/"])
def test_web_address_is_a_callback_url(url: str) -> None:
    check_callback_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "host/hook",
        "file:///etc/passwd",
        "ftp://ann:s3cret@host/",
        "http:///hook",
        "http://h:x/",
        "http://[x/",
        "http://h/a b",
        "http://h/\n",
        "http://ann:s3cret\\@host/",
    ],
)
def test_other_text_is_no_callback_url(url: str) -> None:
    with pytest.raises(UsageError, match="--callback-url") as caught:
        check_callback_url(url)
    assert "s3cret" not in caught.value.message
    assert caught.value.message.isprintable()
