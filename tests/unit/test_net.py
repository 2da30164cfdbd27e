"""Proxies, addresses and TLS, as far as they can be told without a registry."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from ocis2i.auth import Authorizer, parse_challenges
from ocis2i.certificates import TlsSettings
from ocis2i.errors import RegistryError
from ocis2i.keychain import Keychain
from ocis2i.net import (
    FINAL_SECONDS,
    Http,
    Request,
    RequestError,
    _failure,
    check_foreign_address,
    final_seconds,
    header_number,
    is_web_url,
    message_with_url,
    origin,
    proxy_for,
    read_body,
    read_start,
    redacted,
    retry_after_seconds,
    split_credentials,
)
from ocis2i.registry import Registry
from tests.fakes.registry import FakeRegistry
from tests.fakes.web import Answer, FakeWeb


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "12"}, 12.0),
        ({}, None),
        ({"Retry-After": "soon"}, None),
        (
            {
                "Retry-After": "Wed, 21 Oct 2026 07:28:30 GMT",
                "Date": "Wed, 21 Oct 2026 07:28:00 GMT",
            },
            30.0,
        ),
        ({"Retry-After": "Wed, 21 Oct 2026 07:28:30 GMT"}, None),
    ],
)
def test_retry_after_is_read(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_seconds(headers) == seconds


def test_redacted_url_has_neither_password_nor_query() -> None:
    url = "https://ann:secret@example.com:5000/v2/a?signature=abc#part"
    assert redacted(url) == "https://example.com:5000/v2/a"


def test_origin_fills_in_the_port() -> None:
    assert origin("https://Example.com/x") == origin("https://example.com:443/")
    assert origin("http://example.com") != origin("https://example.com")
    for url in ("ftp://example.com", "/path", "http://example.com:x/"):
        with pytest.raises(RegistryError):
            origin(url)


@pytest.mark.parametrize("url", ["http://h", "https://ann:pw@[::1]:8443/a?x=1#y", "HTTPS://h/"])
def test_web_url_is_one(url: str) -> None:
    assert is_web_url(url)


@pytest.mark.parametrize(
    "url", ["", "h", "/h", "file:///h", "http:h", "http://", "http://h:x", "http://[h", "http:// h"]
)
def test_other_text_is_no_web_url(url: str) -> None:
    assert not is_web_url(url)
    for char in ("\n", "\x1b", "\\", "\u202e"):
        assert not is_web_url(f"https://h/{char}")


@pytest.mark.parametrize(
    ("url", "bare", "authorization"),
    [
        ("http://h/a?b=c#d", "http://h/a?b=c", None),
        ("http://@h:1/", "http://h:1/", None),
        ("https://a:b@h/x", "https://h/x", "Basic YTpi"),
        ("https://a@h/x", "https://h/x", "Basic YTo="),
        ("https://a%40b:c%3Ad@h/", "https://h/", "Basic YUBiOmM6ZA=="),
        ("https://a:b@c@h/", "https://h/", "Basic YTpiQGM="),
    ],
)
def test_credentials_are_taken_off_a_url(url: str, bare: str, authorization: str | None) -> None:
    assert split_credentials(url) == (bare, authorization)


def test_message_names_the_url_once() -> None:
    url = "https://ann:s3cret@h/a?b"
    assert message_with_url(RegistryError("no"), url) == "https://h/a: no"
    assert message_with_url(RegistryError("GET https://h/a: no"), url) == "GET https://h/a: no"


@pytest.mark.parametrize(
    ("url", "target", "registry", "allowed"),
    [
        ("https://a/", "https://b/", True, True),
        ("https://a/", "https://b/", False, True),
        ("https://a/", "http://b/", True, False),
        ("https://a/", "http://a/", False, False),
        ("https://a/", "http://127.0.0.1/", False, False),
        ("http://a/", "http://b/", False, True),
        ("http://a/", "http://b/", True, False),
        ("http://a/", "https://b/", False, True),
    ],
)
def test_redirects_never_lead_from_https_to_http(
    url: str, target: str, registry: bool, allowed: bool
) -> None:
    request = Request("GET", url, authorization="Basic s3cret", registry=registry)
    if not allowed:
        with pytest.raises(RequestError, match="redirected to plain http"):
            Http({})._redirected(request, 302, target)
        return
    redirected = Http({})._redirected(request, 302, target)
    assert (redirected.url, redirected.authorization) == (target, None)


def test_server_that_is_no_registry_is_not_called_one(secure: FakeRegistry) -> None:
    plain = Request("GET", f"https://{secure.host}/", registry=False)
    with pytest.raises(RequestError, match="cannot reach server `127"):
        Http({}).exchange(plain)
    with FakeWeb() as web:
        web.put("/", Answer(status=200))
        with pytest.raises(RequestError, match="does not speak TLS") as caught:
            Http({}).exchange(Request("GET", f"https://{web.host}/", registry=False))
    assert caught.value.hint == "does it speak plain http?"


def test_post_is_redirected_only_with_its_body() -> None:
    request = Request("POST", "https://a/", body=b"x")
    assert Http({})._redirected(request, 308, "/b").body == b"x"
    with pytest.raises(RequestError) as caught:
        Http({})._redirected(request, 303, "/b")
    assert (caught.value.kind, caught.value.status) == ("redirect", 303)


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/",
        "https://10.0.0.1/t",
        "http://[::1]:80/",
        "http://127.0.0.1:9/",
        "https://127.1/",
        "https://2852039166/",
        "https://0x7f000001/",
        "https://localhost:9/",
    ],
)
def test_private_address_of_another_host_is_refused(url: str) -> None:
    with pytest.raises(RegistryError, match="private address"):
        check_foreign_address(url, "https://example.com", "the token service")


def test_own_and_public_addresses_are_fine() -> None:
    check_foreign_address("http://127.0.0.1:5000/token", "http://127.0.0.1:5000", "it")
    check_foreign_address("https://auth.example.com/token", "https://example.com", "it")
    check_foreign_address("http://localhost:6000/token", "http://127.0.0.1:5000", "it")


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("PUT", "https://10.0.0.1/upload"),
        ("POST", "http://127.0.0.1:9/"),
        ("DELETE", "https://169.254.169.254/"),
        ("GET", "http://127.0.0.1:9/"),
        ("GET", "http://localhost:9/"),
    ],
)
def test_registry_does_not_lead_a_request_into_this_network(method: str, target: str) -> None:
    with pytest.raises(RegistryError, match="private address"):
        Http({})._redirected(Request(method, "https://example.com/"), 307, target)


def test_storage_of_a_private_registry_may_be_read() -> None:
    request = Request("GET", "https://registry.internal/v2/")
    assert Http({})._redirected(request, 307, "https://10.0.0.1/blob").url.startswith("https://10")


@pytest.mark.parametrize("text", ["", "-1", "+1", "\xb2", "1 2", "9" * 5000])
def test_header_that_is_no_number_counts_nothing(text: str) -> None:
    assert header_number(text) is None
    assert header_number("0123") == 123


@pytest.mark.parametrize(
    ("url", "excepted", "proxied"),
    [
        ("https://example.com/", "", True),
        ("https://example.com/", "other.example", True),
        ("https://example.com/", "example.com", False),
        ("https://sub.example.com/", "example.com", False),
        ("https://sub.example.com/", ".example.com", False),
        ("https://sub.example.com/", "*.example.com", False),
        ("https://myexample.com/", "example.com", True),
        ("https://example.com:5000/", "example.com:5000", False),
        ("https://example.com/", "example.com:5000", True),
        ("https://10.1.2.3/", "192.168.0.0/16, 10.0.0.0/8", False),
        ("https://11.1.2.3/", "10.0.0.0/8", True),
        ("https://example.com/", "*", False),
        ("https://example.com/", ".com", False),
        ("https://EXAMPLE.com/", "Example.COM", False),
        ("https://example.com:443/", "example.com:443", False),
        ("https://10.1.2.3/", "10.1.2.3", False),
        ("https://10.1.2.3/", "1.2.3", True),
        ("https://[fd00::5]/", "fd00::/8", False),
        ("https://[fd00::5]:5000/", "[fd00::5]:5000", False),
        ("https://example.com/", " , example.com ,", False),
        ("https://localhost:5000/", "", False),
        ("https://[::1]:5000/", "", False),
    ],
)
def test_proxy_exceptions(url: str, excepted: str, proxied: bool) -> None:
    environment = {"HTTPS_PROXY": "proxy.example:3128", "NO_PROXY": excepted}
    assert proxy_for(url, environment) == ("http://proxy.example:3128" if proxied else None)


def test_proxy_names_in_lower_case_win_and_all_proxy_comes_last() -> None:
    environment = {"HTTPS_PROXY": "http://upper", "https_proxy": "http://lower"}
    assert proxy_for("https://example.com/", environment) == "http://lower"
    assert proxy_for("http://example.com/", environment) is None
    assert proxy_for("http://example.com/", {"all_proxy": "http://all"}) == "http://all"


def test_password_of_a_proxy_is_not_told() -> None:
    http = Http({"http_proxy": "http://ann:s3cret@127.0.0.1:1"}, tls_verify=False)
    with pytest.raises(RequestError, match=r"through the proxy `http://127\.0\.0\.1:1`") as caught:
        http.exchange(Request("GET", "http://registry.example/v2/"))
    assert "s3cret" not in caught.value.message


def test_big_commits_get_more_time() -> None:
    assert final_seconds(1000) == FINAL_SECONDS
    assert final_seconds(100 << 30) > FINAL_SECONDS


def test_body_over_the_limit_is_refused() -> None:
    with FakeRegistry() as fake:
        fake.fail("GET", "/v2/", times=2, status=200, body=b"x" * 1000)
        http = Http({})
        request = Request("GET", f"http://{fake.host}/v2/")
        assert len(read_body(http.exchange(request), 1000)) == 1000
        with pytest.raises(RequestError, match="more than 999 bytes"):
            read_body(http.exchange(request), 999)


def test_request_does_not_show_its_authorization() -> None:
    assert "s3cret" not in repr(Request("GET", "http://a/", authorization="Basic s3cret"))


def test_netrc_and_cookies_play_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login ann password secret\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    with FakeRegistry() as fake:
        fake.fail("GET", "/v2/", status=200, headers={"Set-Cookie": "csrf=1"})
        http = Http({})
        for _ in range(2):
            http.exchange(Request("GET", f"http://{fake.host}/v2/")).close()
        assert all("authorization" not in entry.headers for entry in fake.log)
        assert all("cookie" not in entry.headers for entry in fake.log)
        assert fake.log[0].headers["accept-encoding"] == "identity"


# --- answers that do not come -------------------------------------------------------------------


def test_a_head_that_comes_byte_by_byte_has_an_end() -> None:
    with dripping(b"HTTP/1.1 200 OK\r\nX-Slow: ") as url, pytest.raises(RequestError) as caught:
        Http({}).exchange(Request("GET", url, read_seconds=0.3))
    assert caught.value.kind == "broken"


@contextmanager
def dripping(head: bytes) -> Iterator[str]:
    """The URL of a server that answers one request with `head`, and then byte after byte."""
    over = threading.Event()

    def drip(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection, suppress(OSError):
            connection.recv(1 << 16)
            connection.sendall(head)
            while not over.wait(0.02):
                connection.sendall(b"x")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=drip, args=(listener,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        finally:
            over.set()


_LONG_BODY = b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"


def test_a_small_answer_that_comes_byte_by_byte_has_an_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ocis2i.net.ANSWER_SECONDS", 0.2)
    with dripping(_LONG_BODY) as url:
        response = Http({}).exchange(Request("GET", url))
        with pytest.raises(RequestError, match="was not answered whole in 0 seconds"):
            read_body(response, 1 << 20)


def test_the_words_of_a_refusal_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ocis2i.net.ERROR_SECONDS", 0.2)
    with dripping(_LONG_BODY) as url:
        response = Http({}).exchange(Request("GET", url))
        assert set(read_start(response, 1 << 16)) == {ord("x")}


def test_a_token_that_comes_byte_by_byte_is_given_up_with_the_rest_of_the_time() -> None:
    class OutOfTimeError(Exception):
        pass

    def check() -> None:
        raise OutOfTimeError

    with dripping(_LONG_BODY) as url:
        challenges = parse_challenges(f'Bearer realm="{url}",service="s"')
        authorizer = Authorizer(Http({}), url, None, challenges, check=check)
        with pytest.raises(OutOfTimeError):
            authorizer.header(["repository:app:pull"])


@pytest.mark.parametrize("proxy", ["socks5://proxy.example:1", "file:///etc/passwd"])
def test_a_proxy_that_cannot_be_gone_through_is_named(proxy: str) -> None:
    http = Http({"https_proxy": proxy})
    with pytest.raises(RequestError, match=f"through the proxy `{proxy}`") as caught:
        http.exchange(Request("GET", "https://registry.example/v2/"))
    assert "https_proxy" in (caught.value.hint or "")


# --- TLS --------------------------------------------------------------------------------------


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A self-signed certificate with its key in one file."""
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("openssl is not installed")
    path = tmp_path / "certificate.pem"
    arguments = f"req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -out {path}"
    more = f"-keyout {tmp_path}/key.pem -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    argv = [program, *arguments.split(), *more.split()]
    subprocess.run(argv, check=True, capture_output=True)
    path.write_text(path.read_text() + (tmp_path / "key.pem").read_text())
    return path


@pytest.fixture
def secure(certificate: Path) -> Iterator[FakeRegistry]:
    with FakeRegistry(certificate=certificate) as running:
        yield running


def status_of(host: str, environment: dict[str, str], *, tls_verify: bool = True) -> int:
    http = Http(environment, tls_verify=tls_verify)
    response = http.exchange(Request("GET", f"https://{host}/v2/"))
    response.close()
    http.close()
    return response.status_code


def test_unknown_certificate_is_refused_with_a_hint(secure: FakeRegistry) -> None:
    with pytest.raises(RequestError, match="its certificate is not trusted") as caught:
        status_of(secure.host, {})
    assert caught.value.hint
    assert not caught.value.retryable


@pytest.mark.parametrize("name", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_certificate_named_in_the_environment_is_trusted(
    secure: FakeRegistry, certificate: Path, name: str
) -> None:
    assert status_of(secure.host, {name: str(certificate)}) == 200


def test_certificate_in_certs_d_is_trusted(
    secure: FakeRegistry, certificate: Path, tmp_path: Path
) -> None:
    directory = tmp_path / ".config/containers/certs.d" / secure.host
    directory.mkdir(parents=True)
    shutil.copy(certificate, directory / "ca.crt")
    assert status_of(secure.host, {"HOME": str(tmp_path)}) == 200


@pytest.mark.parametrize("named", [False, True])
def test_verification_can_be_turned_off(secure: FakeRegistry, tmp_path: Path, named: bool) -> None:
    other = tmp_path / "other.pem"
    roots = ssl.create_default_context().get_ca_certs(binary_form=True)
    if named and not roots:
        pytest.skip("the system has no roots to make another bundle of")
    if named:
        other.write_text(ssl.DER_cert_to_PEM_cert(roots[0]))
    environment = {"REQUESTS_CA_BUNDLE": str(other)} if named else {}
    assert status_of(secure.host, environment, tls_verify=False) == 200


def test_bad_certificate_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "empty.pem"
    path.write_text("")
    for name in (path, tmp_path / "absent.pem"):
        with pytest.raises(RegistryError, match=name.name):
            TlsSettings({"SSL_CERT_FILE": str(name)})("example.com", True)
    assert TlsSettings({})("example.com", True).verify_mode == ssl.CERT_REQUIRED


def test_untrusted_certificate_is_no_reason_for_plain_http(secure: FakeRegistry) -> None:
    reference = secure.reference("app:1")
    with pytest.raises(RegistryError, match="its certificate is not trusted"):
        Registry(Keychain({}), environment={}).head_manifest(reference)
    assert not secure.log
    trusting = Registry(Keychain({}), environment={}, tls_verify=False)
    assert trusting.head_manifest(reference) is None
    assert secure.log


def test_malformed_addresses_are_refused_and_no_bug() -> None:
    assert redacted("http://user:secret@[x") == "(a malformed address)"
    for environment in ({}, {"https_proxy": "http://["}):
        with pytest.raises(RegistryError):
            Http(environment).exchange(Request("GET", "https://[x/v2/"))
    with pytest.raises(RegistryError):
        Http({"https_proxy": "http://["}).exchange(Request("GET", "https://example.invalid/v2/"))


def test_redirect_to_a_malformed_address_is_refused() -> None:
    with pytest.raises(RequestError, match="not an http URL"):
        Http({})._redirected(Request("GET", "https://example.invalid/v2/"), 302, "http://[x")


def test_alert_of_the_other_side_is_told_with_what_it_may_want() -> None:
    error = ssl.SSLError(1, "[SSL: TLSV13_ALERT_CERTIFICATE_REQUIRED] tlsv13 alert")
    error.reason = "TLSV13_ALERT_CERTIFICATE_REQUIRED"
    failure = _failure(Request("GET", "https://example.com/v2/"), error, None)
    assert "refuses our side of TLS (tlsv13 alert certificate required)" in failure.message
    assert "client certificate" in (failure.hint or "")
    assert not failure.retryable
