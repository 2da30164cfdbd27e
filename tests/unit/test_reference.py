"""The grammar's cases follow those that distribution/reference tests, rule by rule."""

from __future__ import annotations

import platform as host

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocis2i.errors import UsageError
from ocis2i.reference import (
    Digest,
    PathLocation,
    Platform,
    Reference,
    RegistryLocation,
    is_loopback,
    parse_location,
    parse_registry_name,
    registry_host,
)

SHA256 = "sha256:" + "0123456789abcdef" * 4
SHA512 = "sha512:" + "0123456789abcdef" * 8
IMAGE_ID = "c0ffee15" * 8


def parts(text: str) -> tuple[str, str, str | None, str | None]:
    parsed = Reference.parse(text)
    digest = str(parsed.digest) if parsed.digest else None
    return parsed.registry, parsed.repository, parsed.tag, digest


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # what is a registry and what is not
        ("app", ("docker.io", "library/app", None, None)),
        ("app:1", ("docker.io", "library/app", "1", None)),
        ("me/app", ("docker.io", "me/app", None, None)),
        ("my_org/app", ("docker.io", "my_org/app", None, None)),
        ("a/b/c/d:t", ("docker.io", "a/b/c/d", "t", None)),
        ("docker.io/app", ("docker.io", "library/app", None, None)),
        ("docker.io/library/app", ("docker.io", "library/app", None, None)),
        ("index.docker.io/app:2", ("docker.io", "library/app", "2", None)),
        ("index.docker.io/me/app", ("docker.io", "me/app", None, None)),
        ("library/app/sub", ("docker.io", "library/app/sub", None, None)),
        ("localhost/app", ("localhost", "app", None, None)),
        ("localhost:5000/app:1", ("localhost:5000", "app", "1", None)),
        ("reg:5000/app", ("reg:5000", "app", None, None)),
        ("reg:5000/app:t@" + SHA256, ("reg:5000", "app", "t", SHA256)),
        ("sub-1.example.com/a/b/c", ("sub-1.example.com", "a/b/c", None, None)),
        ("Host/app", ("Host", "app", None, None)),
        ("HOST/app", ("HOST", "app", None, None)),
        ("xn--nxasmq6b.com/app", ("xn--nxasmq6b.com", "app", None, None)),
        ("xn--nxasmq6b.com:18080/app", ("xn--nxasmq6b.com:18080", "app", None, None)),
        # without a slash, the colon is that of a tag
        ("example.com", ("docker.io", "library/example.com", None, None)),
        ("example.com:5000", ("docker.io", "library/example.com", "5000", None)),
        ("odd_name.com:8080", ("docker.io", "library/odd_name.com", "8080", None)),
        ("me/odd_name.com:8080", ("docker.io", "me/odd_name.com", "8080", None)),
        # tags and digests
        ("app:UPPER", ("docker.io", "library/app", "UPPER", None)),
        ("app:_x.y-z", ("docker.io", "library/app", "_x.y-z", None)),
        ("app:" + "t" * 128, ("docker.io", "library/app", "t" * 128, None)),
        ("g.io/t.eu.org/app:t.eu.org", ("g.io", "t.eu.org/app", "t.eu.org", None)),
        ("app@" + SHA256, ("docker.io", "library/app", None, SHA256)),
        ("q.io/app:1@" + SHA512, ("q.io", "app", "1", SHA512)),
        # addresses
        ("10.0.0.1", ("docker.io", "library/10.0.0.1", None, None)),
        ("10.0.0.1:80", ("docker.io", "library/10.0.0.1", "80", None)),
        ("10.0.0.1/app", ("10.0.0.1", "app", None, None)),
        ("10.0.0.1:5000/app:5050", ("10.0.0.1:5000", "app", "5050", None)),
        ("[2001:db8::7]/app", ("[2001:db8::7]", "app", None, None)),
        ("[2001:db8::7]:5000/app:t", ("[2001:db8::7]:5000", "app", "t", None)),
        ("[2001:db8:1:2:3:4:5:6]/app:t", ("[2001:db8:1:2:3:4:5:6]", "app", "t", None)),
        ("[::1]:5000/app@" + SHA256, ("[::1]:5000", "app", None, SHA256)),
        ("[2001:db8::]:5000/app", ("[2001:db8::]:5000", "app", None, None)),
        # components
        ("a/b", ("docker.io", "a/b", None, None)),
        ("do---ck/a__b.c_d", ("docker.io", "do---ck/a__b.c_d", None, None)),
        ("q.io/" + IMAGE_ID, ("q.io", IMAGE_ID, None, None)),
        (IMAGE_ID[:-1], ("docker.io", "library/" + IMAGE_ID[:-1], None, None)),
        (SHA256, ("docker.io", "library/sha256", SHA256[7:], None)),
        ("a/" * 127 + "a:not-counted", ("docker.io", "a/" * 127 + "a", "not-counted", None)),
    ],
)  # fmt: skip
def test_a_name_is_normalised(text: str, expected: tuple[str, str, str | None, str | None]) -> None:
    assert parts(text) == expected


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "must not be empty"),
        (":tag", "the repository is empty"),
        ("docker.io/", "the repository is empty"),
        ("q.io/", "the repository is empty"),
        ("q.io/:tag", "the repository is empty"),
        ("@" + SHA256, "the repository is empty"),
        ("https://q.io/app", "it is a URL"),
        (IMAGE_ID, "an image id"),
        ("two words", "white space"),
        ("app\n", "white space"),
        ("App:tag", "must be lower case"),
        ("me/App", "must be lower case"),
        ("q.io/me/App", "must be lower case"),
        ("reg:5000/Me/app:tag", "must be lower case"),
        ("app:", "the tag ``"),
        ("app:-x", "the tag `-x`"),
        ("app:.x", "the tag `.x`"),
        ("app:a+b", "the tag `a\\+b`"),
        ("app:" + "t" * 129, "1 to 128"),
        ("app:täg", "the tag"),
        ("app@sha256:" + "f" * 34, "needs 64"),
        ("app@md6:" + "f" * 64, "unknown algorithm `md6`"),
        ("app@sha256:" + "F" * 64, "lower-case hexadecimal"),
        ("app@" + SHA256 + "@" + SHA256, "needs 64"),
        ("a/" * 128 + "a:tag", "longer than 255"),
        ("x" * 256, "longer than 255"),
        ("aa/bc$$^/aa", "path component `bc"),
        ("-app", "path component `-app`"),
        ("app-", "path component `app-`"),
        ("-a/app", "path component `-a`"),
        ("-a-/app", "path component `-a-`"),
        ("a-/app", "path component `a-`"),
        ("_a/_b", "path component `_a`"),
        ("____/____", "path component"),
        ("a..b/app", "is not a host name"),
        ("x/a..b", "path component"),
        ("x/a_.b", "path component"),
        ("x/a-.b", "path component"),
        ("x/a___b", "path component"),
        ("a///b", "path component ``"),
        ("q.io/a///b", "path component ``"),
        ("/app", "path component ``"),
        ("-q.io/app", "is not a host name"),
        ("q.io-/app", "is not a host name"),
        ("q_x.io/app", "is not a host name"),
        ("reg:port/app", "is not a host name"),
        ("reg:70000/app", "above 65535"),
        ("reg:" + "9" * 5000 + "/app", "above 65535"),
        ("[2001:db8::7]", "path component"),
        ("[2001:db8::7]:5000", "path component"),
        ("[2001:db8::7]:tag", "path component"),
        ("2001:db8::7:5000/app", "is not a host name"),
        ("[fe80::1%eth0]:5000/app", "is not a host name"),
        ("[fe80::1%@zone]:5000/app", "must be a digest"),
        ("[2001:db8:3:4::192.0.2.33]:5000/app", "is not a host name"),
        ("[1:2]/app", "is not an IPv6 address"),
    ],
)
def test_a_name_that_breaks_a_rule_is_told_the_rule(text: str, rule: str) -> None:
    with pytest.raises(UsageError, match=rule):
        Reference.parse(text)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("App:Tag", "app:Tag"),
        ("q.io/Me/App:Tag", "q.io/me/app:Tag"),
        ("Q.io/App@" + SHA256, "Q.io/app@" + SHA256),
        ("https://q.io/app", "leave out the scheme: q.io/app"),
    ],
)
def test_the_hint_is_the_name_that_was_meant(text: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        Reference.parse(text)
    assert caught.value.hint == hint


@pytest.mark.parametrize(
    "text",
    [
        "https://me:s3cret@q.io/app",
        "https://me:s3cret@q.io",
        "me:s3cret@q.io/app",
        "me:s3cret@q.io",
        "me:s3cret@q.io:5000/App",
        "docker://me:s3/cr@et:s3cret@q.io/app",
        "two me:s3cret@q.io/app",
    ],
)
def test_a_password_in_a_name_is_not_repeated(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_location(text)
    assert "s3" not in f"{caught.value.message} {caught.value.hint}"


def test_tag_and_digest_together_keep_both() -> None:
    text = f"busybox:latest@{SHA256}"
    assert str(Reference.parse(text)) == f"docker.io/library/{text}"
    assert Reference.parse(text).target == SHA256


def test_the_registry_is_asked_for_a_tag_when_there_is_no_digest() -> None:
    assert Reference.parse("app:1").target == "1"
    assert Reference.parse("app").target == "latest"


def test_latest_is_added_only_to_a_bare_name() -> None:
    assert str(Reference.parse("q.io/a").with_default_tag()) == "q.io/a:latest"
    assert str(Reference.parse("q.io/a:1").with_default_tag()) == "q.io/a:1"
    pinned = Reference.parse(f"q.io/a@{SHA256}")
    assert pinned.with_default_tag() == pinned
    assert Reference.parse("q.io/a:1").with_digest(Digest.parse(SHA256)) == Reference.parse(
        f"q.io/a:1@{SHA256}"
    )


COMPONENT = st.from_regex(r"[a-z0-9]{1,8}((\.|_|__|-{1,3})[a-z0-9]{1,4}){0,2}", fullmatch=True)
REGISTRY = st.one_of(
    st.just("docker.io"),
    st.just("localhost"),
    st.from_regex(r"\A[a-zA-Z0-9]{1,9}(-[a-z0-9]{1,3})?\.[a-z]{2,5}(:[1-5][0-9]{0,4})?\Z"),
    st.from_regex(r"[A-Z][a-z]{0,5}", fullmatch=True),
    st.ip_addresses(v=6).filter(lambda ip: not getattr(ip, "ipv4_mapped", None)).map("[{}]".format),
    st.ip_addresses(v=4).map("{}:5000".format),
)  # fmt: skip
REFERENCES = st.builds(
    Reference,
    REGISTRY,
    st.lists(COMPONENT, min_size=2, max_size=5).map("/".join),
    st.none() | st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}", fullmatch=True),
    st.none() | st.binary().map(Digest.of),
)


@given(REFERENCES)
def test_law_a_reference_is_read_as_it_is_written(reference: Reference) -> None:
    assert Reference.parse(str(reference)) == reference


@given(st.text(st.sampled_from("aA0.:/@-_[]% \n"), max_size=30) | st.text(max_size=30))
def test_law_any_text_is_a_stable_reference_or_a_usage_error(text: str) -> None:
    try:
        reference = Reference.parse(text)
    except UsageError:
        return
    assert Reference.parse(str(reference)) == reference


# --- digests and platforms --------------------------------------------------------------------


@pytest.mark.parametrize("text", [SHA256, SHA512, "sha384:" + "a" * 96])
def test_a_digest_is_read_and_shown(text: str) -> None:
    assert str(Digest.parse(text)) == text
    assert Digest.parse(text).short == text.partition(":")[2][:12]


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "ALGORITHM:HEX"),
        ("abc", "ALGORITHM:HEX"),
        ("md5:" + "0" * 32, "unknown algorithm"),
        ("SHA256:" + "0" * 64, "unknown algorithm"),
        ("sha256:" + "0" * 63, "needs 64"),
        ("sha256:" + "0" * 63 + "g", "needs 64"),
        ("sha256:" + "0" * 64 + "\n", "needs 64"),
        ("sha256:../" + "0" * 61, "needs 64"),
        ("sha256:" + "٣" * 64, "needs 64"),
    ],
)
def test_a_malformed_digest_is_refused(text: str, rule: str) -> None:
    with pytest.raises(UsageError, match=rule):
        Digest.parse(text)


def test_the_digest_of_nothing_is_the_known_one() -> None:
    assert Digest.of(b"").hex == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


@pytest.mark.parametrize("text", ["linux/amd64", "linux/arm/v7", "windows/amd64"])
def test_a_platform_is_read_and_shown(text: str) -> None:
    assert str(Platform.parse(text)) == text


@pytest.mark.parametrize("text", ["", "linux", "linux/", "/amd64", "a/b/c/d", "linux//v7"])
def test_a_malformed_platform_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="invalid platform"):
        Platform.parse(text)


@pytest.mark.parametrize(
    ("machine", "expected"),
    [("x86_64", "linux/amd64"), ("aarch64", "linux/arm64"), ("armv7l", "linux/arm/v7")],
)
def test_the_platform_of_the_host_is_in_gos_words(
    monkeypatch: pytest.MonkeyPatch, machine: str, expected: str
) -> None:
    monkeypatch.setattr(host, "machine", lambda: machine)
    assert str(Platform.of_host()) == expected


# --- transports -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("oci:dir", PathLocation("oci", "dir")),
        ("oci:/a/b:name:1", PathLocation("oci", "/a/b", "name:1")),
        ("oci:dir:", PathLocation("oci", "dir")),
        (f"oci:dir:@{SHA256}", PathLocation("oci", "dir", f"@{SHA256}")),
        ("oci-archive:f.tar:x", PathLocation("oci-archive", "f.tar", "x")),
        (
            "docker-archive:f.tar:q.io:5000/a:1",
            PathLocation("docker-archive", "f.tar", "q.io:5000/a:1"),
        ),
    ],
)
def test_a_path_ends_at_the_first_colon(text: str, expected: PathLocation) -> None:
    assert parse_location(text) == expected
    assert str(expected) == text.removesuffix(":")


def test_a_bare_name_and_an_explicit_one_are_told_apart() -> None:
    bare, explicit = parse_location("q.io/a:1"), parse_location("docker://q.io/a:1")
    assert bare == RegistryLocation(Reference.parse("q.io/a:1"), explicit=False)
    assert explicit == RegistryLocation(Reference.parse("q.io/a:1"), explicit=True)
    assert (str(bare), str(explicit)) == ("q.io/a:1", "docker://q.io/a:1")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("docker-daemon:app:1", "no Docker daemon"),
        ("dir:/x", "not there yet"),
        ("containers-storage:app", "not there yet"),
        ("oci:", "names no path"),
        ("oci::name", "names no path"),
        ("docker://", "must not be empty"),
    ],
)
def test_a_place_that_ocis2i_does_not_have_is_explained(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        parse_location(text)
    assert caught.value.hint or "empty" in caught.value.message


@pytest.mark.parametrize(
    ("registry", "expected"),
    [
        ("localhost", True),
        ("localhost:5000", True),
        ("x.localhost", True),
        ("127.0.0.1:5000", True),
        ("127.9.9.9", True),
        ("[::1]:5000", True),
        ("10.0.0.1", False),
        ("[2001:db8::7]", False),
        ("localhost.example.com", False),
        ("example.com", False),
    ],
)
def test_loopback_is_this_machine_only(registry: str, expected: bool) -> None:
    assert is_loopback(registry) is expected


def test_the_host_of_a_registry_has_no_port_and_no_brackets() -> None:
    assert registry_host("[::1]:5000") == "::1"
    assert registry_host("q.io:443") == registry_host("q.io") == "q.io"


@pytest.mark.parametrize("text", ["oci:app", "oci-archive:app.tar", f"sha256:{'a' * 64}"])
def test_a_name_in_a_registry_is_no_path(text: str) -> None:
    with pytest.raises(UsageError, match="is no name in a registry"):
        parse_registry_name(text)


def test_a_name_in_a_registry_may_have_its_transport() -> None:
    for text in ("example.com/app:1", "docker://example.com/app:1"):
        assert parse_registry_name(text) == Reference.parse("example.com/app:1")
