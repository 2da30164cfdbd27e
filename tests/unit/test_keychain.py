"""Credentials are found as podman and docker find them."""

from __future__ import annotations

import base64
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from ocis2i.credentials import Credentials
from ocis2i.errors import RegistryError, UsageError
from ocis2i.events import Event, Notice
from ocis2i.keychain import Keychain
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


def test_file_with_a_password_is_a_readable_one(tmp_path: Path) -> None:
    path = tmp_path / "password"
    environment = {"HOME": str(tmp_path), "OCIS2I_REGISTRY_PASSWORD_FILE": str(path)}
    assert Keychain(environment).readable_files() == ()
    path.write_text("secret")
    assert Keychain(environment).readable_files() == (path,)


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


def test_a_helper_that_prints_a_secret_and_fails_is_not_quoted(tmp_path: Path) -> None:
    says = """echo '{"Username":"ann","Secret":"s3cret"}'; exit 1"""
    with pytest.raises(RegistryError, match="exit code 1") as caught:
        ask(tmp_path, {"credsStore": "mine"}, says, "example.com/a")
    assert "s3cret" not in caught.value.message


@pytest.mark.parametrize("answer", ["[]", "7", '{"Username": 1, "Secret": "s3cret"}', "{" * 9000])
def test_a_helper_that_lies_is_an_error(tmp_path: Path, answer: str) -> None:
    (tmp_path / "answer").write_text(answer)
    with pytest.raises(RegistryError, match=r"docker-credential-mine` (did not )?answer") as caught:
        ask(tmp_path, {"credsStore": "mine"}, f"cat {tmp_path}/answer", "example.com/a")
    assert "s3cret" not in caught.value.message


def test_a_helper_that_hangs_is_given_up_and_named(tmp_path: Path) -> None:
    path = write(tmp_path / "auth.json", {"credsStore": "mine"})
    environment = helper(tmp_path / "bin", "mine", "sleep 60")
    environment |= {"REGISTRY_AUTH_FILE": str(path), "OCIS2I_HELPER_TIMEOUT": "0.2"}
    with pytest.raises(RegistryError, match=r"docker-credential-mine` failed .*OCIS2I_HELPER_TIME"):
        find(environment)


def test_a_helper_without_the_credentials_leads_on_to_the_entries(tmp_path: Path) -> None:
    document = auths("stored") | {"credHelpers": {"example.com": "mine"}}
    nothing = "echo 'credentials not found in native keychain'; exit 1"
    assert ask(tmp_path, document, nothing, "example.com/app") == Credentials("stored", "x")


def test_an_empty_entry_leads_on_to_the_next_file(tmp_path: Path) -> None:
    environment = {"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path / "run")}
    write(tmp_path / "run/containers/auth.json", {"auths": {"example.com": {}}})
    write(tmp_path / ".docker/config.json", auths("ann", "secret"))
    assert find(environment) == Credentials("ann", "secret")


# --- registries.conf's helpers --------------------------------------------------------------------


def with_helpers(tmp_path: Path, script: str, *names: str) -> Credentials | None:
    environment = helper(tmp_path / "bin", "mine", script) | {"HOME": str(tmp_path)}
    write(tmp_path / ".docker/config.json", auths("file"))
    keychain = Keychain(environment, helpers=names)
    return keychain.find(Reference.parse("example.com/team/app"))


def test_helpers_of_registries_conf_are_asked_in_their_order(tmp_path: Path) -> None:
    asked = Credentials("ann", "for-example.com")
    stored = Credentials("file", "x")
    assert with_helpers(tmp_path, TELLS, "mine", "containers-auth.json") == asked
    assert with_helpers(tmp_path, TELLS, "containers-auth.json", "mine") == stored
    assert with_helpers(tmp_path, "exit 1", "mine", "containers-auth.json") == stored
    with pytest.raises(RegistryError, match="docker-credential-mine` failed"):
        with_helpers(tmp_path, "exit 1", "mine")


def test_a_named_auth_file_is_all_that_is_asked(tmp_path: Path) -> None:
    environment = helper(tmp_path / "bin", "mine", TELLS)
    path = write(tmp_path / "named.json", {})
    keychain = Keychain(environment, authfile=path, helpers=("mine",))
    assert keychain.find(Reference.parse("example.com/a")) is None


# --- telling --------------------------------------------------------------------------------------


def test_it_is_known_where_credentials_came_from(tmp_path: Path) -> None:
    path = write(tmp_path / ".docker/config.json", auths("ann"))
    found = find({"HOME": str(tmp_path)})
    assert found is not None
    assert found.source == f"`{path}`"
    asked = ask(tmp_path, {"credsStore": "mine"}, TELLS, "example.com/app")
    assert asked is not None
    assert "docker-credential-mine" in asked.source


def test_a_missing_runtime_directory_is_a_warning_and_no_error(tmp_path: Path) -> None:
    events: list[Event] = []
    environment = {"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path / "gone")}
    keychain = Keychain(environment, report=events.append)
    assert keychain.find(Reference.parse("example.com/a")) is None
    assert keychain.find(Reference.parse("example.com/b")) is None
    assert [type(event) for event in events] == [Notice]
    assert isinstance(events[0], Notice)
    assert "gone" in events[0].message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may look into every directory")
def test_the_runtime_directory_of_somebody_else_is_gone_around(tmp_path: Path) -> None:
    write(tmp_path / ".docker/config.json", auths("ann"))
    write(tmp_path / "run/containers/auth.json", auths("eve"))
    (tmp_path / "run").chmod(0)
    environment = {"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path / "run")}
    assert find(environment) == Credentials("ann", "x")
    (tmp_path / "run").chmod(0o700)
    assert find(environment) == Credentials("eve", "x")


def test_given_credentials_may_be_for_a_namespace_only() -> None:
    keychain = Keychain({}, given={"example.com/team": Credentials("ann", "x")})
    assert keychain.find(Reference.parse("example.com/team/app")) == Credentials("ann", "x")
    assert keychain.find(Reference.parse("example.com/teams/app")) is None
