"""`ocis2i doctor` on this host and on lesser ones: what it says is what a build then does."""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.conftest import needs
from tests.fakes import hosts
from tests.fakes.hosts import ARBITRARY, DOCKER_CAPABILITIES, ROOT, Host
from tests.fakes.program import Done, Program
from tests.fakes.registry import FakeRegistry

pytestmark = [pytest.mark.sandbox, needs("runc", "newuidmap")]

SCHEMA = json.loads((Path(__file__).parent.parent / "schemas/doctor.json").read_text())
NO_NAMESPACES = Host(ids="own", writes=(("/proc/sys/user/max_user_namespaces", "0"),))


def on(host: Host, program: Program) -> Program:
    """The program on another host."""
    return replace(program, launcher=host.launcher)


def examined(program: Program, *flags: str, **variables: str) -> dict[str, Any]:
    """The document of a doctor who comes to an end, held against the schema."""
    program = replace(program, environment={**program.environment, **variables})
    done = program("doctor", "--json", *flags)
    assert done.code in (0, 6), done.err
    document = done.document
    jsonschema.Draft202012Validator(SCHEMA).validate(document)
    assert document["exit_code"] == done.code
    assert document["usable"] == (done.code == 0)
    return document


def facility(document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    (found,) = (one for one in document["facilities"] if one["name"] == name)
    return dict(found)


def rungs(document: Mapping[str, Any]) -> dict[str, bool]:
    return {one["name"]: one["usable"] for one in document["rungs"]}


def failed_build(program: Program, builder: str, source: Path) -> Done:
    done = program("build", source, builder, "app:1")
    assert done.code == 6, done.err
    return done


# --- this host ----------------------------------------------------------------------------------


def test_a_host_that_has_everything_is_found_good(ocis2i: Program) -> None:
    document = examined(ocis2i)
    assert document["exit_code"] == 0
    assert document["choice"] == {
        "isolation": "runc",
        "label": "isolated",
        "strength": "isolated",
        "ids": "full",
        "rootfs": "overlay",
        "own_proc": True,
    }
    assert document["changes"] == []
    assert rungs(document) == rungs(document) | {"runc": True, "builtin": True, "chroot": False}
    for kind in ("user", "mount", "pid", "ipc", "uts", "cgroup", "net"):
        assert facility(document, f"{kind} namespace")["state"] == "yes"


def test_the_doctor_takes_what_a_build_takes(ocis2i: Program, builder: str, source: Path) -> None:
    built = ocis2i.ok("build", source, builder, "app:1", "--json").document
    assert examined(ocis2i)["choice"]["isolation"] == built["isolation"]


def test_the_text_has_80_columns_and_the_verdict(ocis2i: Program) -> None:
    done = ocis2i.ok("doctor")
    text = done.out.splitlines()
    assert max(map(len, text)) <= 80
    assert "--isolation auto takes runc: isolated (" in done.out
    assert done.err == ""


def test_nothing_is_left_of_an_examination(ocis2i: Program) -> None:
    ocis2i.ok("doctor")
    assert list((ocis2i.store / "builds").iterdir()) == []
    assert list((ocis2i.store / "tmp").iterdir()) == []


def test_another_store_is_examined(ocis2i: Program, tmp_path: Path) -> None:
    document = examined(ocis2i, "--root", str(tmp_path / "another"))
    assert f"`{tmp_path}/another` on " in facility(document, "store")["said"]


# --- lesser hosts -------------------------------------------------------------------------------


def test_without_newuidmap_there_is_one_id(ocis2i: Program) -> None:
    path = ocis2i.environment["PATH"]
    host = Host(
        ids="range",
        mounts=hosts.hidden(["newuidmap", "newgidmap"], path),
        capabilities=("CAP_SETUID", "CAP_SETGID"),
    )
    document = examined(on(host, ocis2i))
    assert document["exit_code"] == 0
    assert document["choice"]["isolation"] == "builtin"
    assert document["choice"]["label"] == "isolated, single-uid"
    (change, *_) = document["changes"]
    assert change["why"] == "`newuidmap` is not installed"


def test_without_any_program_the_builtin_executor_is_taken(ocis2i: Program) -> None:
    path = ocis2i.environment["PATH"]
    host = Host(ids="own", mounts=hosts.hidden(["runc", "crun", "buildah"], path))
    # In a user namespace of one id mounts need its capabilities, until the program starts.
    document = examined(on(host, ocis2i))
    assert document["choice"]["isolation"] == "builtin"
    found = rungs(document)
    assert not any(found[name] for name in ("runc", "crun", "buildah"))
    assert facility(document, "runc")["said"] == "`runc` is not installed"


def test_under_no_new_privs_the_cause_is_named(ocis2i: Program) -> None:
    document = examined(on(Host(no_new_privs=True), ocis2i))
    assert document["exit_code"] == 0
    assert facility(document, "no_new_privs")["said"] == "set"
    assert facility(document, "ids: full")["state"] == "no"
    (change, *_) = document["changes"]
    assert "no_new_privs is set" in change["why"]


def test_a_limit_of_no_user_namespaces_ends_it(ocis2i: Program, builder: str, source: Path) -> None:
    there = on(NO_NAMESPACES, ocis2i)
    document = examined(there)
    assert document["exit_code"] == 6
    assert document["choice"] is None
    assert document["changes"][0]["exact"] == ["sysctl user.max_user_namespaces=15000"]
    done = failed_build(there, builder, source)
    assert f"error: {document['refusal']['message']}\n" in done.err
    assert f"hint: {document['refusal']['hint']}\n" in done.err


def test_a_filter_is_told_from_a_limit(ocis2i: Program, builder: str, source: Path) -> None:
    there = on(Host(filter="namespaces"), ocis2i)
    document = examined(there)
    assert document["refusal"]["message"] == "a seccomp filter forbids user namespaces"
    done = failed_build(there, builder, source)
    assert f"error: {document['refusal']['message']}\n" in done.err
    assert f"hint: {document['refusal']['hint']}\n" in done.err


def test_a_failing_examination_is_printed_all_the_same(ocis2i: Program) -> None:
    done = on(NO_NAMESPACES, ocis2i)("doctor")
    assert done.code == 6
    assert done.err == ""
    assert max(map(len, done.out.splitlines())) <= 80
    assert "The one change that gives more:" in done.out
    assert "\n    sysctl user.max_user_namespaces=15000\n" in done.out


def in_container(ocis2i: Program, builder: str, **how: Any) -> Program:
    """The program in a container of the builder image, with a store in memory."""
    _, place, *name = builder.split(":")
    host = Host(
        ids="container",
        image=(place, ":".join(name)),
        mounts=(hosts.fresh("tmpfs", "/var/tmp", options="mode=1777"),),
        **{"filter": "docker", **how},
    )
    variables = {"OCIS2I_ROOT": "/var/tmp/store", "HOME": "/", "TMPDIR": "/var/tmp"}
    environment = {**ocis2i.environment, **variables}
    return replace(ocis2i, launcher=host.launcher, environment=environment)


def test_a_restricted_pod_of_openshift_is_told_of_the_scc(ocis2i: Program, builder: str) -> None:
    pod = in_container(ocis2i, builder, user=ARBITRARY, no_new_privs=True, kubernetes=True)
    document = examined(pod)
    assert document["exit_code"] == 6
    assert document["host"]["place"] == "openshift"
    assert rungs(document) == {name: name == "in-place" for name in rungs(document)}
    assert "openshift.io/required-scc: nested-container" in document["changes"][0]["exact"][0]
    assert examined(pod, "--isolation", "in-place")["exit_code"] == 0


def test_a_pod_is_told_its_security_context(ocis2i: Program, builder: str) -> None:
    pod = in_container(ocis2i, builder, user=(1001, 0), no_new_privs=True, kubernetes=True)
    document = examined(pod)
    assert document["host"]["place"] == "pod"
    assert document["changes"][0]["exact"][0] == "securityContext:"


def test_root_of_a_container_is_told_the_flags_of_its_engine(ocis2i: Program, builder: str) -> None:
    there = in_container(ocis2i, builder, user=ROOT, capabilities=tuple(DOCKER_CAPABILITIES))
    document = examined(there)
    assert document["exit_code"] == 6
    assert document["host"]["caller"] == "namespace-root"
    assert document["host"]["place"] == "container"
    assert "--cap-add SYS_ADMIN" in document["changes"][0]["exact"]


def test_a_root_with_its_own_user_namespace_is_good(ocis2i: Program, builder: str) -> None:
    capabilities = (*DOCKER_CAPABILITIES, "CAP_SYS_ADMIN")
    there = in_container(ocis2i, builder, user=ROOT, capabilities=capabilities, filter="none")
    document = examined(there)
    assert document["exit_code"] == 0
    assert document["choice"]["ids"] == "native"
    assert document["choice"]["label"].startswith("isolated, privileged caller")


def test_a_masked_proc_is_found(ocis2i: Program) -> None:
    host = Host(
        ids="range",
        mounts=(hosts.bind("/dev/null", "/proc/keys"),),
        capabilities=("CAP_SETUID", "CAP_SETGID"),
    )
    document = examined(on(host, ocis2i))
    assert facility(document, "own /proc")["state"] == "no"
    assert document["choice"]["own_proc"] is False
    assert document["choice"]["label"].endswith(", nested")
    assert document["choice"]["isolation"] == "builtin"
    assert rungs(document) == {
        "runc": False,
        "crun": False,
        "builtin": True,
        "buildah": False,
        "chroot": False,
        "in-place": False,
    }
    assert "start ocis2i where /proc is whole" in [one["change"] for one in document["changes"]]


def test_a_store_that_cannot_be_is_a_finding(ocis2i: Program, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    document = examined(ocis2i, "--root", str(tmp_path / "file/store"))
    assert document["exit_code"] == 6
    found = facility(document, "store")
    assert found["state"] == "no"
    assert "Not a directory" in found["said"]
    assert found["hint"] == "use another directory with --root"


# --- what is wanted -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["runc", "builtin"])
def test_a_named_rung_is_examined(ocis2i: Program, name: str) -> None:
    document = examined(ocis2i, "--isolation", name)
    assert document["wanted"] == name
    assert document["choice"]["isolation"] == name


def test_chroot_is_not_for_ordinary_users(ocis2i: Program) -> None:
    document = examined(ocis2i, "--isolation", "chroot")
    assert document["exit_code"] == 6
    assert document["refusal"]["message"].startswith("isolation `chroot` cannot be used: ")


@pytest.mark.parametrize("name", ["docker", ""])
@pytest.mark.parametrize("verb", [("doctor",), ("build", "nowhere", "nothing", "app")])
def test_an_unknown_rung_is_a_usage_error(
    ocis2i: Program, verb: tuple[str, ...], name: str
) -> None:
    done = ocis2i(*verb, "--isolation", name)
    assert done.code == 2
    assert f"unknown isolation `{name}`" in done.err


def configured(ocis2i: Program, text: str) -> Program:
    """The program of a user with that config.toml."""
    path = Path(ocis2i.environment["HOME"], ".config/ocis2i/config.toml")
    path.parent.mkdir(parents=True)
    path.write_text(text)
    return ocis2i


def test_flags_win_over_variables_and_those_over_the_file(ocis2i: Program) -> None:
    there = configured(ocis2i, 'isolation = "builtin"\n')
    assert examined(there)["wanted"] == "builtin"
    assert examined(there, OCIS2I_ISOLATION="runc")["wanted"] == "runc"
    flag = ("--isolation", "crun")
    assert examined(there, *flag, OCIS2I_ISOLATION="runc")["wanted"] == "crun"


def test_a_build_heeds_the_file_and_the_variable(
    ocis2i: Program, builder: str, source: Path
) -> None:
    there = configured(ocis2i, 'isolation = "builtin"\nnetwork = "none"\nmemory = "1g"\n')
    build = ("build", source, builder, "app:1", "--json")
    document = there.ok(*build).document
    assert document["isolation"] == "builtin"
    assert document["network"]["mode"] == "none"
    assert there.ok(*build, OCIS2I_ISOLATION="runc").document["isolation"] == "runc"
    assert there.ok(*build, "--network", "host").document["network"]["mode"] == "host"


def test_hosts_of_the_file_are_for_the_proxy_alone(
    ocis2i: Program, builder: str, source: Path
) -> None:
    there = configured(ocis2i, 'allow-host = ["example.org"]\n')
    there.ok("build", source, builder, "app:1")
    there.ok("build", source, builder, "app:1", "--network", "proxy")
    done = there("build", source, builder, "app:1", "--allow-host", "example.com")
    assert done.code == 2
    assert "--allow-host has no meaning with --network host" in done.err


def test_a_mistake_in_the_file_is_refused_by_file_and_key(ocis2i: Program) -> None:
    there = configured(ocis2i, 'isolaton = "builtin"\n')
    done = there("doctor")
    assert done.code == 2
    assert ".config/ocis2i/config.toml` has the unknown key `isolaton`" in done.err
    assert there("version").code == 0


# --- registries ---------------------------------------------------------------------------------


def test_a_registry_is_asked_and_its_clock_compared(ocis2i: Program) -> None:
    with FakeRegistry() as registry:
        document = examined(ocis2i, "--registry", registry.host)
        assert [one.method for one in registry.log if one.path == "/v2/"] == ["GET", "HEAD"]
    found = facility(document, f"registry {registry.host}")
    assert found["state"] == "yes"
    assert "lets us in anonymously" in found["said"]
    assert f"as that of `{registry.host}`" in facility(document, "clock")["said"]


@pytest.mark.parametrize("scheme", ["basic", "bearer"])
def test_credentials_are_tried(ocis2i: Program, tmp_path: Path, scheme: Any) -> None:
    users = {"me": "secret-password"}
    authfile = tmp_path / "auth.json"
    with FakeRegistry(scheme, users=users) as registry:

        def ask(password: str) -> Mapping[str, Any]:
            encoded = base64.b64encode(f"me:{password}".encode()).decode()
            authfile.write_text(json.dumps({"auths": {registry.host: {"auth": encoded}}}))
            name = f"{registry.host}/team/app"
            done = ocis2i("doctor", "--json", "--registry", name, "--authfile", str(authfile))
            assert password not in done.out + done.err
            return facility(done.document, f"registry {name}")

        good, bad = ask("secret-password"), ask("wrong-password")
    assert (good["state"], bad["state"]) == ("yes", "no")
    assert f"lets us in with credentials from `{authfile}`" in good["said"]
    assert bad["said"]


def test_a_registry_that_is_not_there_is_a_finding(ocis2i: Program) -> None:
    document = examined(ocis2i, "--registry", "127.0.0.1:1/app")
    found = facility(document, "registry 127.0.0.1:1/app")
    assert found["state"] == "no"
    assert document["exit_code"] == 0


# --- root ---------------------------------------------------------------------------------------


@pytest.mark.as_root
def test_root_is_told_to_be_somebody_else(tmp_path: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": sys.path[0]}
    document = examined(Program(tmp_path / "store", environment), "--root", str(tmp_path / "s"))
    assert document["exit_code"] == 6
    assert document["host"]["caller"] == "root"
    assert "you are root" in document["refusal"]["message"]
