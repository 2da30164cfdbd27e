"""`ocis2i login` and `logout` with the real registry program, a token service and helpers."""

from __future__ import annotations

import json
import os
import pty
import shutil
import stat
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import needs_registry
from tests.fakes.docker_registry import (
    PASSWORD,
    USER,
    RegistryUnderTest,
)
from tests.fakes.images import Layer, make_layout
from tests.fakes.program import ARGV, Done, Program
from tests.fakes.registry import FakeRegistry

pytestmark = [
    pytest.mark.registry,
    needs_registry,
]

HELPER = """#!/bin/sh
echo "$@" >> {log}
case $1 in
store) cat > {kept} ;;
get) if [ -e {kept} ]; then cat {kept}; else echo credentials not found; exit 1; fi ;;
erase) rm {kept} ;;
esac
"""


@dataclass(frozen=True)
class User:
    """Somebody with a home of his own, who types commands."""

    ocis2i: Program
    home: Path

    def __call__(self, *arguments: str, said: str = "", **variables: str) -> Done:
        given = self.home / "stdin"
        given.write_text(said)
        environment = {**self.ocis2i.environment, **variables}
        done = replace(self.ocis2i, environment=environment)(*arguments, stdin=given)
        assert PASSWORD not in done.out + done.err
        assert "Traceback" not in done.err
        return done

    @property
    def file(self) -> Path:
        return self.home / ".config/containers/auth.json"

    def log_in(self, host: str, *more: str, said: str = f"{PASSWORD}\n", **variables: str) -> Done:
        name = ("--username", USER, "--password-stdin")
        return self("login", *name, *more, host, said=said, **variables)


@pytest.fixture(scope="module")
def stored(shared: Program, tmp_path_factory: pytest.TempPathFactory) -> Program:
    """The module's store with the image `little:1` in it."""
    layout = tmp_path_factory.mktemp("images") / "little"
    make_layout(layout, "little:1", [Layer().file("hello", b"hello\n")])
    with FakeRegistry() as registry:
        name = registry.put_layout("little", "1", layout)
        aliases = layout.parent / "registries.conf"
        aliases.write_text(f'[[registry]]\nprefix = "docker.io/library"\nlocation = "{name[:-9]}"')
        shared.ok("pull", "little:1", CONTAINERS_REGISTRIES_CONF=str(aliases))
    return shared


@pytest.fixture
def user(stored: Program, tmp_path: Path) -> User:
    environment = {**stored.environment, "HOME": str(tmp_path)}
    return User(replace(stored, environment=environment), tmp_path)


def helper(user: User) -> dict[str, str]:
    """Installs the helper `mine`; the variables with which it is found."""
    program = user.home / "bin/docker-credential-mine"
    program.parent.mkdir()
    program.write_text(HELPER.format(log=user.home / "log", kept=user.home / "kept"))
    program.chmod(0o755)
    return {"PATH": f"{program.parent}:{user.ocis2i.environment['PATH']}"}


def error(done: Done) -> str:
    (line,) = [line for line in done.err.splitlines() if line.startswith("error: ")]
    return line


# --- login --------------------------------------------------------------------------------------


def test_login_push_logout(user: User, guarded: RegistryUnderTest) -> None:
    name = f"{guarded.host}/app:1"
    refused = user("push", "little:1", name)
    assert refused.code == 5
    assert f"ocis2i login {guarded.host}" in refused.err
    done = user.log_in(guarded.host)
    assert done.code == 0, done.err
    assert done.out == f"logged in to {guarded.host} as {USER}, kept in `{user.file}`\n"
    assert stat.S_IMODE(user.file.stat().st_mode) == 0o600
    assert user("login", "--get-login", guarded.host).out == f"{USER}\n"
    pushed = user("push", "--loglevel", "2", "little:1", name)
    assert pushed.code == 0, pushed.err
    assert f"credentials for {guarded.host}/app: `{user.file}`" in pushed.err
    assert user("logout", guarded.host).out == f"logged out of {guarded.host}\n"
    assert json.loads(user.file.read_text()) == {"auths": {}}
    assert user("pull", name).code == 5
    assert "nobody is logged in" in error(user("logout", guarded.host))
    assert "nobody is logged in" in error(user("login", "--get-login", guarded.host))


@pytest.mark.parametrize("scheme", ["basic", "bearer"])
def test_wrong_password_is_refused_at_once_and_not_kept(user: User, scheme: Any) -> None:
    with FakeRegistry(scheme, users={USER: PASSWORD}) as registry:
        done = user.log_in(registry.host, said="wr0ng\n")
        assert done.code == 5
        assert "401" in error(done)
        assert "wr0ng" not in done.err
        assert not user.file.exists()
        assert len(registry.log) <= 3
        assert user.log_in(registry.host).code == 0


def test_real_registry_refuses_a_wrong_password(user: User, guarded: RegistryUnderTest) -> None:
    done = user.log_in(guarded.host, said="wr0ng\n")
    assert done.code == 5
    assert "does not let these credentials in" in error(done)
    assert not user.file.exists()


def test_login_needs_a_terminal_or_standard_input(user: User) -> None:
    done = user("login", "registry.test")
    assert done.code == 2
    assert "no terminal" in error(done)
    assert "--username" in done.err
    done = user("login", "-u", USER, "registry.test")
    assert "--password-stdin" in done.err
    assert user("login", "--password-stdin", "registry.test").code == 2
    assert user.log_in("registry.test", said="").code == 2
    assert user.log_in("team/app").code == 2


def test_password_is_asked_for_without_an_echo(user: User, guarded: RegistryUnderTest) -> None:
    parent, child = pty.fork()
    if parent == 0:  # the child: all that follows is in the terminal
        os.execve(ARGV[0], [*ARGV, "login", guarded.host], dict(user.ocis2i.environment))
    with os.fdopen(child, "r+b", buffering=0) as terminal:
        shown = last = b""
        for prompt, answer in ((b"user name", USER), (b"password of", PASSWORD)):
            while prompt not in shown or not shown.endswith(b": "):
                shown += terminal.read(1000)
            terminal.write(answer.encode() + b"\n")
            last, shown = shown, b""
        try:
            while block := terminal.read(1000):
                shown += block
        except OSError:  # so ends a terminal
            pass
    _, status = os.waitpid(parent, 0)
    assert os.waitstatus_to_exitcode(status) == 0, shown
    assert PASSWORD.encode() not in last + shown
    assert f"logged in to {guarded.host}".encode() in shown


def test_password_on_the_command_line_is_warned_of(user: User, guarded: RegistryUnderTest) -> None:
    done = user("login", "-u", USER, "-p", PASSWORD, guarded.host)
    assert done.code == 0, done.err
    assert "warning: --password shows it" in done.err


def test_authfile_says_where(user: User, guarded: RegistryUnderTest) -> None:
    path = user.home / "there/auth.json"
    assert user.log_in(guarded.host, "--authfile", str(path)).code == 0
    assert list(json.loads(path.read_text())["auths"]) == [guarded.host]
    assert not user.file.exists()
    assert user("pull", f"{guarded.host}/absent", "--authfile", str(path)).code == 5
    assert user("logout", "--authfile", str(path), "--all").out == f"logged out of {guarded.host}\n"


def test_namespaces_have_logins_of_their_own(user: User) -> None:
    with FakeRegistry("basic", users={USER: PASSWORD}) as registry:
        assert user.log_in(f"{registry.host}/team").code == 0
        name = f"{registry.host}/team/app:1"
        assert user("push", "little:1", name).code == 0
        assert user("push", "little:1", f"{registry.host}/other:1").code == 5


def test_helper_keeps_the_secret(user: User, guarded: RegistryUnderTest) -> None:
    variables = helper(user)
    config = user.home / "docker/config.json"
    config.parent.mkdir()
    config.write_text('{"credsStore": "mine"}')
    variables["DOCKER_CONFIG"] = str(config.parent)
    done = user.log_in(guarded.host, **variables)
    assert done.code == 0, done.err
    assert "the helper `docker-credential-mine`" in done.out
    assert json.loads(config.read_text()) == {"credsStore": "mine"}
    assert json.loads((user.home / "kept").read_text())["Secret"] == PASSWORD
    assert PASSWORD not in (user.home / "log").read_text()
    assert user("push", "little:1", f"{guarded.host}/helped:1", **variables).code == 0
    assert user("logout", guarded.host, **variables).code == 0
    assert not (user.home / "kept").exists()


def test_helper_of_registries_conf_keeps_the_secret(user: User, guarded: RegistryUnderTest) -> None:
    variables = helper(user)
    conf = user.home / "registries.conf"
    conf.write_text('credential-helpers = ["mine"]')
    variables["CONTAINERS_REGISTRIES_CONF"] = str(conf)
    assert user.log_in(guarded.host, **variables).code == 0
    assert not user.file.exists()
    assert user("login", "--get-login", guarded.host, **variables).out == f"{USER}\n"


def test_helper_that_hangs_is_named(user: User, guarded: RegistryUnderTest) -> None:
    variables = helper(user)
    (user.home / "bin/docker-credential-mine").write_text("#!/bin/sh\nsleep 600\n")
    authfile = user.home / "auth.json"
    authfile.write_text(json.dumps({"credHelpers": {guarded.host: "mine"}}))
    variables["OCIS2I_HELPER_TIMEOUT"] = "1s"
    done = user("pull", f"{guarded.host}/app:1", "--authfile", str(authfile), **variables)
    assert done.code == 5
    assert "docker-credential-mine` failed" in error(done)


def test_logins_at_once_lose_nothing(user: User) -> None:
    with FakeRegistry() as registry:
        hosts = [f"{registry.host}/team{number}" for number in range(4)]
        started = [user.ocis2i.start("login", "-u", USER, "-p", PASSWORD, host) for host in hosts]
        for process in started:
            _, err = process.communicate(timeout=60)
            assert process.returncode == 0, err
    assert set(json.loads(user.file.read_text())["auths"]) == set(hosts)


@pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed")
def test_skopeo_finds_our_login_and_we_find_its(user: User, guarded: RegistryUnderTest) -> None:
    path = user.home / "auth.json"

    def skopeo(verb: str, *arguments: str) -> str:
        command = ["skopeo", verb, "--authfile", str(path), *arguments, guarded.host]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    assert user.log_in(guarded.host, "--authfile", str(path)).code == 0
    assert skopeo("login", "--get-login") == USER
    skopeo("logout")
    assert user("login", "--get-login", "--authfile", str(path), guarded.host).code == 5
    skopeo("login", "--tls-verify=false", "-u", USER, "-p", PASSWORD)
    assert user("login", "--get-login", "--authfile", str(path), guarded.host).out == f"{USER}\n"
    assert user("logout", "--authfile", str(path), guarded.host).code == 0


# --- without a login ----------------------------------------------------------------------------


def test_creds_are_for_the_registry_of_the_image(user: User, guarded: RegistryUnderTest) -> None:
    creds = f"{USER}:{PASSWORD}"
    assert user("push", "--creds", creds, "little:1", f"{guarded.host}/creds:1").code == 0
    assert user("pull", "--creds", creds, f"{guarded.host}/creds:1").code == 0
    authfile = user.home / "auth.json"
    authfile.write_text("{}")
    done = user("pull", "--creds", creds, "--authfile", str(authfile), f"{guarded.host}/creds:1")
    assert done.code == 2
    assert "exclude each other" in error(done)


def test_variables_are_for_the_registry_that_they_name(
    user: User, guarded: RegistryUnderTest
) -> None:
    secret = user.home / "secret"
    secret.write_text(f"{PASSWORD}\n")
    variables = {"OCIS2I_REGISTRY_USER": USER, "OCIS2I_REGISTRY_PASSWORD_FILE": str(secret)}
    command = ("push", "little:1", f"{guarded.host}/variables:1")
    done = user(*command, **variables)
    assert done.code == 2
    assert "but not OCIS2I_REGISTRY" in error(done)
    assert user("images", **variables).code == 0
    variables["OCIS2I_REGISTRY"] = guarded.host
    assert user(*command, **variables).code == 0
    with FakeRegistry("basic", users={"somebody": "else"}) as other:
        assert user("pull", f"{other.host}/app:1", **variables).code == 5
        assert all("authorization" not in entry.headers for entry in other.log)
