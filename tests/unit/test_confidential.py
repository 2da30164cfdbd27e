"""Which values are secrets."""

from __future__ import annotations

import base64
import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocis2i.confidential import (
    Secret,
    credentials_in,
    is_telling,
    secrets_of_file,
    secrets_of_variable,
)

TOKEN = "Zx81kQpW-77ab_cd"
KEY_LINES = ["MIIEvQIBADANBgkqhkiG9w0BAQEF", "AASCBKcwggSjAgEAAoIBAQC7VJTU", "Lk0pQ3vKd8aZ"]


def values(content: str | bytes, *, whole: bool = False) -> set[str]:
    data = content.encode() if isinstance(content, str) else content
    return {secret.value.decode() for secret in secrets_of_file("f", data, whole=whole)}


@pytest.mark.parametrize(
    "text",
    [
        TOKEN,
        "hunter2hunter2",
        "correct horse battery",
        "admin:Passw0rd!",
        "AKIAIOSFODNN7EXAMPLE",
        "dGhpcyBpcyBhIHNlY3JldA==",
        "/9fT3kZx81kQpW77abcd+x=",
        "1234567890123456",
        "-Zx81kQpW77abcd",
        "geheimes Wört",
    ],
)
def test_telling(text: str) -> None:
    assert is_telling(text.encode())


@pytest.mark.parametrize(
    "text",
    [
        "short",
        "aaaaaaaaaaaa",
        "********",
        "12345678",
        "2024-05-06",
        "127.0.0.1:8080",
        "production",
        "password",
        "disabled",
        "1.22.333-alpine3.18",
        "/usr/share/app/File.txt",
        "/usr/local/bin:/usr/bin:/bin",
        "https://mirror.example/simple",
        "https://user:hunter2hunter2@mirror.example/simple",
        "https://mirror.example,direct",
        "registry.example.com:5000",
        "localhost,127.0.0.1,.example.com,*.internal.example",
        "-Xmx1024m -Xms512m",
        "--no-progress",
        "${NPM_TOKEN}",
        "en_US.UTF-8",
    ],
)
def test_not_telling(text: str) -> None:
    assert not is_telling(text.encode())


@pytest.mark.parametrize(
    "line",
    [
        TOKEN,
        f"PASSWORD={TOKEN}",
        f"export PASSWORD='{TOKEN}'",
        f'  password: "{TOKEN}",',
        f"password = {TOKEN};",
        f"//npm.example/:_authToken={TOKEN}",
        f"machine git.example login bob password {TOKEN}",
        f"bob:{TOKEN}",
        f"db.example:5432:*:bob:{TOKEN}",
        f"index-url = https://bob:{TOKEN}@mirror.example/simple",
        f"https://{TOKEN}@git.example",
        f"https://{TOKEN}:x-oauth-basic@git.example",
        f"hook: https://chat.example/x?token={TOKEN}",
        f"-Drepo.password={TOKEN} -B",
        f"    <password>{TOKEN}</password>",
        f"<value>{TOKEN}</value>",
        f'{{"auths": {{"r.example": {{"secret": "{TOKEN}"}}}}}}',
        f"# https://bob:{TOKEN}@old.example",
    ],
)
def test_value_is_taken_out_of_a_line(line: str) -> None:
    assert TOKEN in values(f"# comment\nother words stand here\n\n{line}\nmore words to read\n")


@pytest.mark.parametrize(
    "line",
    [
        "[global]",
        "# a comment that is quite long",
        "<settings>",
        "timeout = 60",
        "username=jenkins-robot-17",
        "email = Robot_17@example.com",
        "registry=https://npm.example/repo/",
        "//npm.example/:_authToken=${NPM_TOKEN}",
        "trusted-host = mirror.example",
        "git@git.example:group/project.git",
        "ssh://jenkins-robot-17@git.example/x",
        "if test -f /etc/bashrc; then",
        "strict-ssl=true",
    ],
)
def test_ordinary_line_holds_no_value(line: str) -> None:
    assert values(f"first words here\nsecond words here\nthird words here\n{line}\n") <= {
        "git@git.example:group/project.git",
        "group/project.git",
    }


def test_escaped_forms_are_read() -> None:
    assert "p&ssword<1" in values("<password>p&amp;ssword&lt;1</password>")
    assert "p@ss/word1" in values("https://bob:p%40ss%2Fword1@h.example/")
    assert "line one\nline two" not in values(json.dumps({"x": "line one\nline two"}))


def test_docker_and_npm_logins_are_read() -> None:
    auth = base64.b64encode(f"bob:{TOKEN}".encode()).decode()
    assert values(json.dumps({"auths": {"r": {"auth": auth}}})) == {auth, TOKEN}
    assert values(f"_auth={auth}") == {auth, TOKEN}


def test_short_password_counts_with_its_user() -> None:
    assert values("https://robot:pw1@h.example/x") == {"robot:pw1@"}


def pem(label: str, lines: list[str] = KEY_LINES) -> str:
    return "\n".join([f"-----BEGIN {label}-----", *lines, f"-----END {label}-----", ""])


def test_lines_of_a_private_key_count_without_the_first() -> None:
    assert values(pem("RSA PRIVATE KEY", [*KEY_LINES, "QkJCQkJCQkJCQkJC"])) == {
        KEY_LINES[1],
        "QkJCQkJCQkJCQkJC",
    }


def test_private_key_inside_json_is_found() -> None:
    assert KEY_LINES[1] in values(json.dumps({"private_key": pem("PRIVATE KEY")}))


def test_private_key_with_written_line_ends_is_found() -> None:
    assert KEY_LINES[0] in values('KEY="' + pem("EC PRIVATE KEY").replace("\n", "\\n") + '"')


@pytest.mark.parametrize("label", ["CERTIFICATE", "PUBLIC KEY", "PGP PUBLIC KEY BLOCK"])
def test_certificates_and_public_keys_are_no_secret(label: str) -> None:
    assert values(f"# A comment\n{pem(label)}\n{pem(label)}", whole=True) == set()


def test_certificate_with_its_key_is_a_secret() -> None:
    found = values(pem("CERTIFICATE") + pem("PRIVATE KEY", [*KEY_LINES, KEY_LINES[1][::-1]]))
    assert found == {KEY_LINES[1], KEY_LINES[1][::-1]}


@pytest.mark.parametrize("header", ["-----BEGIN PRIVATE KEY-----\n", "-----BEGIN A-----"])
def test_many_keys_without_end_are_read_in_bounds(header: str) -> None:
    assert len(secrets_of_file("f", (header * 100_000).encode(), whole=False)) <= 200


# --- the whole --------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["s3cr3t\n", "  hunter2 \n", TOKEN])
def test_whole_content_counts_when_short(text: str) -> None:
    assert text.strip() in values(text, whole=True)


@pytest.mark.parametrize("text", ["", "\n", "true", "123456", "secret", "abc", "aaaaaa"])
def test_content_that_is_everywhere_does_not_count(text: str) -> None:
    assert values(text, whole=True) == set()


def test_large_text_is_stood_for_by_the_piece_with_the_first_value() -> None:
    words = "".join(f"some words of a licence {number}\n" for number in range(2000))
    found = secrets_of_file("f", f"{words}password={TOKEN}\n{words}".encode())
    whole = next(secret for secret in found if secret.name == "f")
    assert len(whole.value) == 4096
    assert TOKEN.encode() in whole.value


@pytest.mark.parametrize("size", [6, 20, 48, 49, 100, 5000])
def test_binary_content_is_stood_for_by_pieces(size: int) -> None:
    content = b"\0\xff" + random.Random(size).randbytes(size)
    found = secrets_of_file("keystore", content)
    assert 1 <= len(found) <= 5
    assert all(secret.value in content for secret in found)


def test_empty_parts_of_binary_content_do_not_count() -> None:
    assert secrets_of_file("f", bytes(100_000)) == []


def test_same_value_counts_once_and_values_are_counted() -> None:
    lines = "".join(f"{TOKEN}{number}\n" for number in range(1000))
    assert len(values(f"{TOKEN}\n{TOKEN}\n")) == 1
    assert len(secrets_of_file("f", lines.encode(), whole=False)) == 200


# --- variables and names ----------------------------------------------------------------------


def test_variable_counts_whole_or_by_its_parts() -> None:
    assert [one.value for one in secrets_of_variable("v", TOKEN)] == [TOKEN.encode()]
    found = secrets_of_variable("v", f"https://bob:{TOKEN}@proxy.example,direct")
    assert [one.value for one in found] == [TOKEN.encode()]
    assert secrets_of_variable("v", "production") == []


def test_only_credentials_of_urls() -> None:
    assert credentials_in("v", f"x=Abcdefgh123 http://u:{TOKEN}@h,direct") == [
        Secret("v", TOKEN.encode())
    ]


def test_name_tells_the_line_and_never_the_value() -> None:
    found = secrets_of_file("`npmrc`", f"registry=https://h.example\n_authToken={TOKEN}\n".encode())
    assert [one.name for one in found] == ["`npmrc`", "`npmrc` (line 2)"]
    assert TOKEN not in repr(found)


@given(st.binary(max_size=400))
def test_any_content_is_read(content: bytes) -> None:
    assert all(secret.value for secret in secrets_of_file("f", content))


@given(st.text(max_size=200))
def test_any_variable_is_read(value: str) -> None:
    assert all(secret.value for secret in secrets_of_variable("v", value))


@given(st.text(st.sampled_from('-BEGIN KEY<password>/={}":\n@ a'), max_size=200))
def test_any_structure_is_read(text: str) -> None:
    assert all(secret.value for secret in secrets_of_file("f", text.encode()))
