"""policy.json is obeyed, and where it cannot be, nothing is taken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ocis2i.errors import PolicyError, UsageError
from ocis2i.policy import Policy, parse_policy, registry_scopes
from ocis2i.reference import Digest, PathLocation, Reference

ACCEPT = [{"type": "insecureAcceptAnything"}]
REJECT = [{"type": "reject"}]
SIGNED = [{"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/k"}]
PATH = Path("/etc/policy.json")
DIGEST = Digest.of(b"")


def policy(default: Any, **transports: Any) -> Policy:
    return parse_policy(json.dumps({"default": default, "transports": transports}).encode(), PATH)


def takes(rules: Policy, name: str) -> bool:
    try:
        rules.check_registry(Reference.parse(name))
    except PolicyError as error:
        assert str(PATH) in error.message
        return False
    return True


def test_without_a_file_everything_is_taken(tmp_path: Path) -> None:
    rules = Policy.load({"HOME": str(tmp_path)}, system=tmp_path)
    rules.check_registry(Reference.parse("example.com/app"))
    assert rules == Policy()


def test_scopes_go_from_the_image_to_all_of_a_domain() -> None:
    assert list(registry_scopes(Reference.parse("a.example.com:5000/ns/app:1"))) == [
        "a.example.com:5000/ns/app:1",
        "a.example.com:5000/ns/app",
        "a.example.com:5000/ns",
        "a.example.com:5000",
        "*.example.com",
        "*.com",
    ]


@pytest.mark.parametrize(
    ("name", "taken"),
    [
        ("other.test/app", False),
        ("good.test/app", True),
        ("good.test/bad/app", False),
        ("good.test/bad/but/this", True),
        ("good.test/tagged", True),
        ("good.test/tagged:1", False),
        (f"good.test/tagged:1@{DIGEST}", True),
        ("x.y.wild.test/app", True),
        ("wild.test/app", False),
        ("alpine", True),
    ],
)
def test_most_specific_scope_decides(name: str, taken: bool) -> None:
    scopes = {
        "good.test": ACCEPT,
        "good.test/bad": REJECT,
        "good.test/bad/but": ACCEPT,
        "good.test/tagged:1": REJECT,
        "*.wild.test": ACCEPT,
        "docker.io/library": ACCEPT,
    }
    assert takes(policy(REJECT, docker=scopes), name) is taken


def test_a_transport_has_a_default_of_its_own() -> None:
    rules = policy(REJECT, docker={"": ACCEPT})
    assert takes(rules, "example.com/app")
    with pytest.raises(PolicyError, match="rejected"):
        rules.check_path(PathLocation("oci", "/x"))


def test_all_requirements_have_to_be_fulfilled() -> None:
    assert not takes(policy(ACCEPT + REJECT), "example.com/app")


@pytest.mark.parametrize("kind", ["signedBy", "signedBaseLayer", "sigstoreSigned"])
def test_a_signature_that_is_wanted_is_a_refusal(kind: str) -> None:
    rules = policy([{"type": kind}])
    with pytest.raises(PolicyError, match=f"`{kind}`.*verifies no signatures") as caught:
        rules.check_registry(Reference.parse("example.com/app"))
    assert "--signature-policy" in (caught.value.hint or "")


def test_paths_are_judged_by_where_they_really_are(tmp_path: Path) -> None:
    (tmp_path / "trusted").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "trusted")
    (tmp_path / "trusted/way-out").symlink_to(tmp_path)
    rules = policy(REJECT, oci={str(tmp_path / "trusted"): ACCEPT})
    rules.check_path(PathLocation("oci", str(tmp_path / "trusted/image")))
    rules.check_path(PathLocation("oci", str(tmp_path / "link/image"), "name"))
    for outside in ("image", "trusted/../image", "trusted/way-out/image"):
        with pytest.raises(PolicyError):
            rules.check_path(PathLocation("oci", str(tmp_path / outside)))
    with pytest.raises(PolicyError):
        rules.check_path(PathLocation("oci-archive", str(tmp_path / "trusted/image")))


def test_docker_archives_have_their_transport_only() -> None:
    rules = policy(REJECT, **{"docker-archive": {"": ACCEPT}})
    rules.check_path(PathLocation("docker-archive", "/x.tar"))
    with pytest.raises(PolicyError):
        policy(REJECT, **{"docker-archive": {"/": ACCEPT, "/x.tar": ACCEPT}}).check_path(
            PathLocation("docker-archive", "/x.tar")
        )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"default": []}',
        '{"default": {}}',
        '{"default": [{"type": "new"}]}',
        '{"default": ["reject"]}',
        '{"default": [{"type": "reject"}], "more": 1}',
        '{"default": [{"type": "reject"}], "transports": []}',
        '{"default": [{"type": "reject"}], "transports": {"docker": []}}',
        '{"default": [{"type": "reject"}], "default": [{"type": "insecureAcceptAnything"}]}',
    ],
)
def test_a_policy_that_is_not_clear_is_an_error(text: str) -> None:
    with pytest.raises(UsageError, match=str(PATH)):
        parse_policy(text.encode(), PATH)


def test_the_users_policy_replaces_the_systems_and_a_flag_both(tmp_path: Path) -> None:
    def write(path: Path, requirements: Any) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"default": requirements}))
        return path

    system, environment = tmp_path / "etc", {"HOME": str(tmp_path)}
    write(system / "policy.json", REJECT)
    assert Policy.load(environment, system=system).default == ("reject",)
    write(tmp_path / ".config/containers/policy.json", ACCEPT)
    assert Policy.load(environment, system=system).default == ("insecureAcceptAnything",)
    named = write(tmp_path / "named", SIGNED)
    assert Policy.load(environment, path=named, system=system).default == ("signedBy",)
    with pytest.raises(UsageError, match="does not exist"):
        Policy.load(environment, path=tmp_path / "absent", system=system)
