"""Credentials that the caller gives: for one registry, and never quoted."""

from __future__ import annotations

import pytest

from ocis2i.credentials import (
    Credentials,
    Given,
    credentials_of_environment,
    decode_password,
    parse_credentials,
    registry_key,
)
from ocis2i.errors import UsageError


def given(**variables: str) -> Given:
    environment = {f"OCIS2I_REGISTRY{name}": value for name, value in variables.items()}
    return credentials_of_environment(environment, lambda path: f"from {path}\n".encode())


def test_variables_are_for_the_named_registry() -> None:
    found = given(**{"": "example.com:5000", "_USER": "ci", "_PASSWORD": "a:b"})
    assert found == {"example.com:5000": Credentials("ci", "a:b")}
    assert given() == {}
    assert given(**{"": "example.com"}) == {}


def test_the_password_may_be_in_a_file() -> None:
    found = given(**{"": "example.com/team", "_USER": "ci", "_PASSWORD_FILE": "/run/p"})
    assert found == {"example.com/team": Credentials("ci", "from /run/p")}


def test_a_token_stands_alone() -> None:
    found = given(**{"": "example.com", "_TOKEN": "t"})
    assert found == {"example.com": Credentials(registry_token="t")}


@pytest.mark.parametrize(
    ("variables", "complaint"),
    [
        ({"_USER": "ci", "_PASSWORD": "s3cret"}, "_USER is set, but not OCIS2I_REGISTRY"),
        ({"_TOKEN": "s3cret"}, "_TOKEN is set, but not OCIS2I_REGISTRY"),
        ({"": "example.com", "_USER": "ci"}, "go together"),
        ({"": "example.com", "_PASSWORD": "s3cret"}, "go together"),
        ({"": "example.com", "_USER": "ci", "_TOKEN": "s3cret"}, "exclude each other"),
        (
            {"": "example.com", "_USER": "ci", "_PASSWORD": "s3cret", "_PASSWORD_FILE": "f"},
            "exclude each other",
        ),
        ({"": "nobody", "_USER": "ci", "_PASSWORD": "s3cret"}, "`nobody` is no registry"),
    ],
)
def test_half_of_the_variables_is_an_error(variables: dict[str, str], complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint) as caught:
        given(**variables)
    assert "s3cret" not in caught.value.message


def test_creds_are_a_user_and_a_password() -> None:
    assert parse_credentials("ann:pass:word") == Credentials("ann", "pass:word")
    for text in ("s3cret", ":s3cret", ""):
        with pytest.raises(UsageError, match="must be USER:PASSWORD") as caught:
            parse_credentials(text)
        assert "s3cret" not in caught.value.message


def test_a_password_is_one_line() -> None:
    assert decode_password(b"pass word \r\n", "it") == "pass word "
    for data in (b"", b"\n", b"s3cret\nmore\n", b"s3cret\0", b"\xff"):
        with pytest.raises(UsageError) as caught:
            decode_password(data, "it")
        assert "s3cret" not in caught.value.message


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("example.com", "example.com"),
        ("localhost:5000", "localhost:5000"),
        ("https://example.com/", "example.com"),
        ("example.com/team/sub", "example.com/team/sub"),
        ("docker.io", "docker.io"),
        ("https://index.docker.io/v1/", "docker.io"),
        ("docker.io/team", "docker.io/team"),
        ("https://localhost:5000/v1/", "localhost:5000"),
        ("localhost:5000/v2", "localhost:5000"),
    ],
)
def test_registries_are_written_in_several_ways(text: str, key: str) -> None:
    assert registry_key(text, "REGISTRY") == key


@pytest.mark.parametrize(
    "text", ["", "team", "team/app", "example.com/team:1", "exa mple.com", "a@b"]
)
def test_what_is_no_registry_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="REGISTRY"):
        registry_key(text, "REGISTRY")
