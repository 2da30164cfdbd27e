"""registries.conf, certs.d and policy.json, as the program obeys them."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.bench import Maker, error
from tests.fakes.images import Layer, make_layout
from tests.fakes.program import Done, Program
from tests.fakes.registry import FakeRegistry


@pytest.fixture
def layout(tmp_path: Path) -> Path:
    """A little image of this test's own."""
    path = tmp_path / "layout"
    make_layout(path, "app:1", [Layer().file("hello", str(tmp_path).encode())])
    return path


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    return tmp_path / "registries.conf"


def pull(shared: Program, conf: Path, name: str, *more: str) -> Done:
    return shared("pull", *more, name, CONTAINERS_REGISTRIES_CONF=str(conf))


# --- registries.conf ----------------------------------------------------------------------------


def test_mirror_serves_what_is_named_otherwise(
    shared: Program, registry: FakeRegistry, layout: Path, conf: Path
) -> None:
    registry.put_layout("mirrored/team/app", "1", layout)
    conf.write_text(
        '[[registry]]\nlocation = "origin.test"\n'
        f'[[registry.mirror]]\nlocation = "{registry.host}/mirrored"\n'
    )
    done = pull(shared, conf, "origin.test/team/app:1", "--loglevel", "1")
    assert done.code == 0, done.err
    assert done.out.startswith("origin.test/team/app@sha256:")
    assert f"{registry.host}/mirrored/team/app" in done.err


def test_mirror_without_the_image_leads_on_to_the_registry(
    shared: Program, registry: FakeRegistry, layout: Path, conf: Path
) -> None:
    name = registry.put_layout("app", "1", layout)
    conf.write_text(
        f'[[registry]]\nlocation = "{registry.host}"\n'
        '[[registry.mirror]]\nlocation = "127.0.0.1:1"\ninsecure = true\n'
        f'[[registry.mirror]]\nlocation = "{registry.host}/empty"\n'
    )
    done = pull(shared, conf, name)
    assert done.code == 0, done.err
    asked = [entry.path for entry in registry.requests("GET", "/manifests/")]
    assert asked == ["/v2/empty/app/manifests/1", "/v2/app/manifests/1"]


def test_mirror_gets_credentials_of_its_own_or_none(
    shared: Program, registry: FakeRegistry, layout: Path, conf: Path, tmp_path: Path
) -> None:
    name = registry.put_layout("app", "1", layout)
    conf.write_text(f'[[registry]]\nprefix = "origin.test"\nlocation = "{registry.host}"\n')
    authfile = tmp_path / "auth.json"
    authfile.write_text(json.dumps({"auths": {"origin.test": {"auth": "YTpzM2NyZXQ="}}}))
    done = pull(shared, conf, "origin.test/app:1", "--authfile", str(authfile))
    assert done.code == 0, name
    assert all("authorization" not in entry.headers for entry in registry.log)


def test_blocked_registry_is_not_asked(
    shared: Program, registry: FakeRegistry, layout: Path, conf: Path
) -> None:
    name = registry.put_layout("app", "1", layout)
    conf.write_text(f'[[registry]]\nlocation = "{registry.host}"\nblocked = true\n')
    done = pull(shared, conf, name)
    assert done.code == 9
    assert "is blocked" in error(done)
    assert not registry.log


def test_a_short_name_is_an_alias_or_in_the_only_search_registry(
    shared: Program, registry: FakeRegistry, layout: Path, conf: Path
) -> None:
    registry.put_layout("far/tool", "1", layout)
    registry.put_layout("tool", "1", layout)
    conf.write_text(
        f'unqualified-search-registries = ["{registry.host}"]\n'
        f'[aliases]\n"alias" = "{registry.host}/far/tool"\n'
    )
    assert pull(shared, conf, "alias:1").out.startswith(f"{registry.host}/far/tool@")
    assert pull(shared, conf, "tool:1").out.startswith(f"{registry.host}/tool@")


def test_old_registries_conf_is_refused(shared: Program, conf: Path) -> None:
    conf.write_text('[registries.search]\nregistries = ["a.test"]\n')
    done = pull(shared, conf, "a.test/app")
    assert done.code == 2
    assert "the old form" in error(done)


# --- policy.json --------------------------------------------------------------------------------


def policy(tmp_path: Path, default: str, **transports: Any) -> tuple[str, str]:
    path = tmp_path / "policy.json"
    path.write_text(json.dumps({"default": [{"type": default}], "transports": transports}))
    return "--signature-policy", str(path)


def test_rejected_image_is_not_asked_for(
    shared: Program, registry: FakeRegistry, layout: Path, tmp_path: Path
) -> None:
    name = registry.put_layout("team/app", "1", layout)
    good = {f"{registry.host}/team": [{"type": "insecureAcceptAnything"}]}
    flags = policy(tmp_path, "reject", docker=good)
    assert shared("pull", *flags, name).code == 0
    registry.log.clear()
    done = shared("pull", *flags, f"{registry.host}/other:1")
    assert done.code == 9
    assert "is rejected by the signature policy" in error(done)
    assert not registry.log


def test_wanted_signature_is_a_refusal(
    shared: Program, registry: FakeRegistry, layout: Path, tmp_path: Path
) -> None:
    name = registry.put_layout("app", "1", layout)
    done = shared("pull", *policy(tmp_path, "signedBy"), name)
    assert done.code == 9
    assert "verifies no signatures" in error(done)
    assert "cosign" in done.err


def test_builder_runtime_and_previous_image_are_under_the_policy(
    shared: Program, registry: FakeRegistry, make: Maker, tmp_path: Path
) -> None:
    builder = make()
    (tmp_path / "source").mkdir()
    command = ("build", tmp_path / "source", builder, f"{registry.host}/policy:1")
    rejected = shared(*command, *policy(tmp_path, "reject"))
    assert rejected.code == 9
    only_builder = policy(tmp_path, "reject", oci={"": [{"type": "insecureAcceptAnything"}]})
    runtime = shared(*command, *only_builder, "--runtime-image", f"{registry.host}/runtime:1")
    assert runtime.code == 9, runtime.err
    done = shared.ok(*command, *only_builder, "--incremental", "--incremental-pull-policy=always")
    assert "no previous image, a clean build" in done.err
    assert "is rejected" in done.err
    assert not registry.log


# --- certs.d ------------------------------------------------------------------------------------


def certificate(directory: Path, name: str) -> Path:
    """A self-signed certificate, its key in the same file."""
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("openssl is not installed")
    path, key = directory / f"{name}.pem", directory / f"{name}.key"
    arguments = f"req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -out {path}"
    more = f"-keyout {key} -subj /CN={name} -addext subjectAltName=IP:127.0.0.1"
    subprocess.run([program, *arguments.split(), *more.split()], check=True, capture_output=True)
    path.write_text(path.read_text() + key.read_text())
    return path


def test_client_certificate_of_certs_d_is_shown(
    shared: Program, layout: Path, tmp_path: Path
) -> None:
    server, client = certificate(tmp_path, "server"), certificate(tmp_path, "client")
    with FakeRegistry(certificate=server, clients=client) as registry:
        name = registry.put_layout("app", "1", layout)
        given = tmp_path / ".config/containers/certs.d" / registry.host
        given.mkdir(parents=True)
        shutil.copy(server, given / "ca.crt")
        refused = shared("pull", name, HOME=str(tmp_path))
        assert refused.code == 5
        assert "refuses our side of TLS" in error(refused)
        shutil.copy(client, given / "me.cert")
        done = shared("pull", name, HOME=str(tmp_path))
        assert done.code == 5
        assert "has no key `me.key`" in error(done)
        shutil.copy(client, given / "me.key")
        assert shared.ok("pull", name, HOME=str(tmp_path)).out
        assert shared.ok("pull", "--cert-dir", given, name).out


def test_insecure_registry_may_show_any_certificate(
    shared: Program, layout: Path, conf: Path, tmp_path: Path
) -> None:
    with FakeRegistry(certificate=certificate(tmp_path, "server")) as registry:
        name = registry.put_layout("app", "1", layout)
        conf.write_text("")
        assert "not trusted" in error(pull(shared, conf, name))
        conf.write_text(f'[[registry]]\nlocation = "{registry.host}"\ninsecure = true\n')
        assert pull(shared, conf, name).code == 0
        assert shared("push", name, CONTAINERS_REGISTRIES_CONF=str(conf)).code == 0
