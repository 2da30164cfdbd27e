"""Credentials are found as podman and docker find them, and challenges are read as servers mean."""

from __future__ import annotations

import base64
import json
import stat
from pathlib import Path
from typing import Any

import pytest

from ocis2i.auth import Credentials, Keychain, choose_challenge, parse_challenges, printable
from ocis2i.errors import RegistryError, UsageError
from ocis2i.reference import Reference


def entry(user: str, password: str) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


def write(path: Path, document: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def auths(user: str, password: str = "x") -> dict[str, Any]:
    return {"auths": {"example.com": entry(user, password)}}


def find(environment: dict[str, str], name: str = "example.com/team/app:1") -> Credentials | None:
    return Keychain(environment).find(Reference.parse(name))


def find_in(tmp_path: Path, document: Any, name: str) -> Credentials | None:
    path = write(tmp_path / "auth.json", document)
    return find({"REGISTRY_AUTH_FILE": str(path)}, name)


def helper(directory: Path, name: str, script: str) -> dict[str, str]:
    path = write(directory / f"docker-credential-{name}", f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return {"PATH": f"{directory}:/usr/bin:/bin"}


# --- where ------------------------------------------------------------------------------------


def test_files_are_looked_through_in_podmans_order(tmp_path: Path) -> None:
    environment = {
        "HOME": str(tmp_path / "home"),
        "XDG_RUNTIME_DIR": str(tmp_path / "run"),
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
    }
    places = [
        (tmp_path / "home/.dockercfg", {"example.com": entry("legacy", "x")}),
        (tmp_path / "home/.docker/config.json", auths("docker", "x")),
        (tmp_path / "config/containers/auth.json", auths("config", "x")),
        (tmp_path / "run/containers/auth.json", auths("runtime", "x")),
    ]
    seen = []
    for path, document in places:
        write(path, document)
        found = find(environment)
        seen.append(found.username if found else None)
    assert seen == ["legacy", "docker", "config", "runtime"]


def test_file_without_a_match_leads_on_to_the_next(tmp_path: Path) -> None:
    environment = {"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path / "run")}
    write(tmp_path / "run/containers/auth.json", {"auths": {"other.example": entry("a", "b")}})
    write(tmp_path / ".docker/config.json", auths("ann", "secret"))
    assert find(environment) == Credentials("ann", "secret")


def test_a_key_that_is_no_url_is_passed_over(tmp_path: Path) -> None:
    odd = {"http://[": entry("eve", "x"), "https://example.com/v1/": entry("ann", "secret")}
    write(tmp_path / ".docker/config.json", {"auths": odd})
    assert find({"HOME": str(tmp_path)}) == Credentials("ann", "secret")


def test_docker_config_replaces_the_search(tmp_path: Path) -> None:
    write(tmp_path / ".docker/config.json", auths("home", "x"))
    environment = {"HOME": str(tmp_path), "DOCKER_CONFIG": str(tmp_path / "elsewhere")}
    assert find(environment) is None
    write(tmp_path / "elsewhere/config.json", auths("elsewhere", "x"))
    assert find(environment) == Credentials("elsewhere", "x")


def test_files_that_have_credentials_are_known_also_those_that_are_not_asked(
    tmp_path: Path,
) -> None:
    named = write(tmp_path / "named.json", auths("ann", "secret"))
    usual = write(tmp_path / ".docker/config.json", {"credsStore": "desktop"})
    write(tmp_path / ".config/containers/auth.json", {"auths": {}})
    (tmp_path / ".dockercfg").write_text("{ not JSON")
    environment = {"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)}
    assert Keychain(environment).readable_files() == (usual,)
    environment["REGISTRY_AUTH_FILE"] = str(named)
    assert Keychain(environment).readable_files() == (named, usual)


def test_named_auth_file_wins_and_must_exist(tmp_path: Path) -> None:
    write(tmp_path / ".docker/config.json", auths("home", "x"))
    path = write(tmp_path / "named.json", {})
    environment = {"HOME": str(tmp_path)}
    assert Keychain(environment, authfile=path).find(Reference.parse("example.com/a")) is None
    with pytest.raises(UsageError, match=r"nowhere\.json` does not exist"):
        Keychain(environment, authfile=tmp_path / "nowhere.json")


def test_given_credentials_are_for_their_registry_only() -> None:
    keychain = Keychain({}, given={"example.com": Credentials("ann", "x")})
    assert keychain.find(Reference.parse("example.com/a")) == Credentials("ann", "x")
    assert keychain.find(Reference.parse("other.example/a")) is None


def test_malformed_files_are_named_and_not_quoted(tmp_path: Path) -> None:
    documents: tuple[Any, ...] = (
        '{"auths": {"example.com": {"auth": "c2VjcmV0',
        "[]",
        {"auths": []},
        {"auths": {"example.com": []}},
        {"auths": {"example.com": {"auth": "not base64!"}}},
        {"auths": {"example.com": {"auth": base64.b64encode(b"secret").decode()}}},
        {"auths": {"example.com": {"auth": 7}}},
    )
    for document in documents:
        with pytest.raises(RegistryError, match=r"auth\.json`") as caught:
            find_in(tmp_path, document, "example.com/app")
        assert "c2VjcmV0" not in caught.value.message


# --- which ------------------------------------------------------------------------------------


def test_most_specific_key_wins(tmp_path: Path) -> None:
    document = {
        "auths": {
            "example.com": entry("host", "x"),
            "example.com/team": entry("team", "x"),
            "example.com/team/app": entry("app", "x"),
        }
    }
    names = {
        "example.com/team/app:1": "app",
        "example.com/team/other": "team",
        "example.com/teams/app": "host",
    }
    for name, user in names.items():
        found = find_in(tmp_path, document, name)
        assert found is not None
        assert found.username == user


def test_no_other_registrys_credentials(tmp_path: Path) -> None:
    document = {
        "auths": {
            "example.com:5000": entry("a", "x"),
            "example.com.evil.example": entry("b", "x"),
            "example.com/private": entry("c", "x"),
            "https://example.org/v1/": entry("d", "x"),
        }
    }
    assert find_in(tmp_path, document, "example.com/team/app") is None


@pytest.mark.parametrize(
    "key", ["docker.io", "https://index.docker.io/v1/", "index.docker.io", "docker.io/library"]
)
def test_docker_hub_goes_by_several_names(tmp_path: Path, key: str) -> None:
    found = find_in(tmp_path, {"auths": {key: entry("ann", "x")}}, "alpine")
    assert found == Credentials("ann", "x")


def test_key_written_as_a_url_means_its_host(tmp_path: Path) -> None:
    document = {"auths": {"https://example.com/v2/": entry("ann", "x")}}
    assert find_in(tmp_path, document, "example.com/app") == Credentials("ann", "x")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (entry("ann", "pass:with:colons"), Credentials("ann", "pass:with:colons")),
        (entry("ann", "padded\0\0"), Credentials("ann", "padded")),
        ({"username": "ann", "password": "x"}, Credentials("ann", "x")),
        ({"identitytoken": "t"}, Credentials(identity_token="t")),
        (entry("ann", "") | {"identitytoken": "t"}, Credentials("ann", "", "t")),
        ({"registrytoken": "t"}, Credentials(registry_token="t")),
        ({}, None),
    ],
)
def test_entries_of_all_kinds(
    tmp_path: Path, fields: dict[str, str], expected: Credentials | None
) -> None:
    assert find_in(tmp_path, {"auths": {"example.com": fields}}, "example.com/a") == expected


def test_secrets_do_not_show_in_a_representation() -> None:
    shown = repr(Credentials("ann", "s3cret-a", "s3cret-b", "s3cret-c"))
    assert "ann" in shown
    assert "s3cret" not in shown


# --- helpers ----------------------------------------------------------------------------------

TELLS = 'read host; echo "{\\"Username\\":\\"ann\\",\\"Secret\\":\\"for-$host\\"}"'


def ask(tmp_path: Path, document: Any, script: str, name: str) -> Credentials | None:
    path = write(tmp_path / "auth.json", document)
    environment = helper(tmp_path / "bin", "mine", script)
    return find(environment | {"REGISTRY_AUTH_FILE": str(path)}, name)


def test_helper_for_a_host_beats_an_entry(tmp_path: Path) -> None:
    document = auths("stored", "x") | {"credHelpers": {"example.com": "mine"}}
    found = ask(tmp_path, document, TELLS, "example.com/app")
    assert found == Credentials("ann", "for-example.com")


def test_helper_for_another_host_is_not_asked(tmp_path: Path) -> None:
    document = {"credHelpers": {"other.example": "mine"}}
    assert ask(tmp_path, document, TELLS, "example.com/app") is None


def test_store_is_asked_after_the_entries(tmp_path: Path) -> None:
    document = auths("stored", "x") | {"credsStore": "mine"}
    assert ask(tmp_path, document, TELLS, "example.com/app") == Credentials("stored", "x")
    found = ask(tmp_path, {"auths": {"example.com": {}}} | {"credsStore": "mine"}, TELLS, "alpine")
    assert found == Credentials("ann", "for-https://index.docker.io/v1/")


def test_helper_may_give_an_identity_token_or_nothing(tmp_path: Path) -> None:
    document = {"credsStore": "mine"}
    token = """echo '{"Username":"<token>","Secret":"t"}'"""
    assert ask(tmp_path, document, token, "example.com/a") == Credentials(identity_token="t")
    nothing = "echo 'credentials not found in native keychain'; exit 1"
    assert ask(tmp_path, document, nothing, "example.com/a") is None


def test_failing_helper_is_an_error_with_its_own_words(tmp_path: Path) -> None:
    document = {"credsStore": "mine"}
    with pytest.raises(
        RegistryError, match=r"docker-credential-mine` failed .*: the vault is shut"
    ):
        ask(tmp_path, document, "echo the vault is shut; exit 1", "example.com/a")
    with pytest.raises(RegistryError, match="did not answer with JSON") as caught:
        ask(tmp_path, document, "echo s3cret", "example.com/a")
    assert "s3cret" not in caught.value.message


def test_missing_or_strange_helper_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match=r"`docker-credential-absent` .* no such program"):
        find_in(tmp_path, {"credsStore": "absent"}, "example.com/a")
    with pytest.raises(RegistryError, match="which is no name"):
        find_in(tmp_path, {"credsStore": "../../bin/sh"}, "example.com/a")


# --- challenges -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ('Basic realm="x"', [("basic", {"realm": "x"})]),
        (
            'BASIC realm="Sonatype Nexus, Repository Manager"',
            [("basic", {"realm": "Sonatype Nexus, Repository Manager"})],
        ),
        (
            'Bearer realm="https://a/token",service="s",scope="repository:a/b:pull,push"',
            [
                (
                    "bearer",
                    {
                        "realm": "https://a/token",
                        "service": "s",
                        "scope": "repository:a/b:pull,push",
                    },
                )
            ],
        ),
        (
            'bearer  Realm = "r" , Service=plain,Basic realm="b"',
            [("bearer", {"realm": "r", "service": "plain"}), ("basic", {"realm": "b"})],
        ),
        (
            'Negotiate, NTLM TlRMTVNTUAAB==, Basic realm="quoted \\" here"',
            [("negotiate", {}), ("ntlm", {}), ("basic", {"realm": 'quoted " here'})],
        ),
        ("", []),
        ('="', []),
    ],
)
def test_challenges_are_read(header: str, expected: list[tuple[str, dict[str, str]]]) -> None:
    assert [(one.scheme, one.parameters) for one in parse_challenges(header)] == expected


def test_bearer_is_preferred_and_unknown_schemes_are_passed_over() -> None:
    chosen = choose_challenge(parse_challenges('Negotiate, Basic realm="b", Bearer realm="r"'))
    assert chosen is not None
    assert chosen.scheme == "bearer"
    assert choose_challenge(parse_challenges("Negotiate")) is None


def test_foreign_text_becomes_one_harmless_line() -> None:
    assert printable("a\n\x1b[31mb\t c") == "a [31mb c"
    assert len(printable("x" * 1000)) == 300
