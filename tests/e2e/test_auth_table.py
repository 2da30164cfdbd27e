"""Every way to prove to a registry who one is, and every way for a secret to get lost.

The program, a real registry, and a proxy as its gate; a second proxy is another host.
"""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import needs_registry
from tests.fakes.bench import error
from tests.fakes.docker_registry import RegistryUnderTest
from tests.fakes.fault_proxy import FaultProxy
from tests.fakes.images import Layer, make_layout
from tests.fakes.program import Done, Program
from tests.fakes.registry import FakeRegistry
from tests.fakes.seeds import Seed, has, plant, random_layer

pytestmark = [
    pytest.mark.registry,
    needs_registry,
]

USER, PASSWORD, IDENTITY = "ann", "s3cret-of-ann", "identity-of-ann"
NETRC_PASSWORD = "s3cret-of-netrc"
USERS = {USER: PASSWORD}


@dataclass(frozen=True)
class World:
    """A registry with an image that the store has, too, and what the user has written."""

    server: RegistryUnderTest
    ocis2i: Program
    image: Seed
    directory: Path

    @property
    def name(self) -> str:
        """The image of the store."""
        return f"{self.server.host}/{self.image.repository}:1"

    def auths(self, document: Mapping[str, Any]) -> tuple[str, Path]:
        """The flag for a file with this content."""
        path = self.directory / "auth.json"
        path.write_text(json.dumps(document))
        return "--authfile", path

    def known(self, proxy: FaultProxy, password: str = PASSWORD, **more: str) -> tuple[str, Path]:
        """The flag for a file with the user's password, or what is in its place."""
        auth = base64.b64encode(f"{USER}:{password}".encode()).decode()
        return self.auths({"auths": {proxy.host: {"auth": auth, **more}}})

    def push(self, proxy: FaultProxy, *arguments: str | Path, **variables: str) -> Done:
        """Pushes the image to the repository of the test."""
        return self.run(variables, "push", self.name, self.there(proxy), *arguments)

    def pull(self, proxy: FaultProxy, *arguments: str | Path, **variables: str) -> Done:
        """Pulls an image that the store does not have yet."""
        plant(self.server.host, self.repository, [random_layer(50_000)], self.directory)
        return self.run(variables, "pull", self.there(proxy), *arguments)

    def run(self, variables: Mapping[str, str], *command: str | Path) -> Done:
        """Runs a command with these variables besides."""
        environment = {**self.ocis2i.environment, **variables}
        return replace(self.ocis2i, environment=environment)(*command)

    @property
    def repository(self) -> str:
        """The repository of the test."""
        return self.directory.name.rstrip("_").lower()

    def there(self, proxy: FaultProxy) -> str:
        """The image in that repository."""
        return f"{proxy.host}/{self.repository}:1"

    def is_pushed(self) -> bool:
        """Whether the registry has it."""
        return has(self.server.host, f"{self.repository}/manifests/1")


@pytest.fixture(scope="module")
def image(
    server: RegistryUnderTest, shared: Program, tmp_path_factory: pytest.TempPathFactory
) -> Seed:
    seed = plant(server.host, "seed", [random_layer(300_000)], tmp_path_factory.mktemp("seed"))
    shared.ok("pull", f"{server.host}/seed:1")
    return seed


@pytest.fixture
def world(server: RegistryUnderTest, shared: Program, image: Seed, tmp_path: Path) -> World:
    return World(server, shared, image, tmp_path)


@pytest.fixture
def foreign(server: RegistryUnderTest) -> Iterator[FaultProxy]:
    """Another host, in front of the same registry."""
    with FaultProxy(server.host) as running:
        yield running


def gate(world: World, auth: Any, users: Mapping[str, str] | None = None) -> FaultProxy:
    return FaultProxy(world.server.host, auth, users=users)


def shown(proxy: FaultProxy) -> set[str]:
    """The schemes of what was shown to a host."""
    return {one.header("authorization").partition(" ")[0] for one in proxy.log}


def statuses(proxy: FaultProxy, status: int) -> list[str]:
    return [f"{one.method} {one.path}" for one in proxy.log if one.status == status]


def said_by(proxy: FaultProxy) -> str:
    """All that a client told a host, in headers and addresses."""
    return "".join(one.text for one in proxy.log)


# --- being let in ---------------------------------------------------------------------------------


def test_anonymous_token_is_asked_for_without_a_name(world: World) -> None:
    with gate(world, "bearer") as proxy:
        done = world.pull(proxy, *world.auths({}))
    assert done.code == 0, done.err
    assert [one.header("authorization") for one in proxy.requests("GET", "/token")] == [""]
    assert shown(proxy) == {"", "Bearer"}


def test_password_is_shown_to_each_request_but_the_first(world: World) -> None:
    with gate(world, "basic", USERS) as proxy:
        done = world.push(proxy, *world.known(proxy))
    assert done.code == 0, done.err
    assert statuses(proxy, 401) == ["GET /v2/"]
    assert shown(proxy) == {"", "Basic"}
    assert world.is_pushed()


def test_one_token_with_both_rights_is_enough_for_a_push(world: World) -> None:
    with gate(world, "bearer", USERS) as proxy:
        done = world.push(proxy, *world.known(proxy))
    assert done.code == 0, done.err
    assert statuses(proxy, 401) == ["GET /v2/"]
    (asked,) = proxy.requests("GET", "/token")
    assert asked.query["scope"] == [f"repository:{world.repository}:pull,push"]
    assert asked.header("authorization").startswith("Basic ")
    assert world.is_pushed()


def test_identity_token_is_posted_and_no_password(world: World) -> None:
    with gate(world, "bearer", {USER: "another"}) as proxy:
        proxy.identity_tokens = {IDENTITY}
        done = world.push(proxy, *world.known(proxy, "", identitytoken=IDENTITY))
    assert done.code == 0, done.err
    assert proxy.requests("POST", "/token")
    assert not proxy.requests("GET", "/token")
    assert shown(proxy) == {"", "Bearer"}
    assert IDENTITY not in said_by(proxy)


def test_identity_token_of_a_registry_without_oauth_falls_back_to_get(world: World) -> None:
    with gate(world, "bearer", USERS) as proxy:
        proxy.identity_tokens, proxy.refuse_oauth_status = {IDENTITY}, 405
        done = world.push(proxy, *world.known(proxy, identitytoken=IDENTITY))
    assert done.code == 0, done.err
    assert proxy.requests("GET", "/token")


def test_tokens_that_expire_in_the_middle_of_a_push_are_renewed(world: World) -> None:
    with gate(world, "bearer", USERS) as proxy:
        proxy.token_uses = 2
        done = world.push(proxy, *world.known(proxy), "--jobs", "1")
    assert done.code == 0, done.err
    assert len(proxy.requests("GET", "/token")) > 2
    stored = [one for one in proxy.requests("PUT", "/blobs/") if one.status == 201]
    assert len(stored) == len(world.image.blobs)
    assert world.is_pushed()


# --- not being let in -----------------------------------------------------------------------------


@pytest.mark.parametrize("auth", ["basic", "bearer"])
def test_wrong_password_takes_two_requests(world: World, auth: str) -> None:
    with gate(world, auth, USERS) as proxy:
        done = world.push(proxy, *world.known(proxy, "wr0ng"))
    assert done.code == 5
    assert "401" in error(done)
    assert "wr0ng" not in done.err
    assert len(proxy.log) == 2


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("exec sleep 60", "no answer in 1 seconds"),
        ("echo hello", "did not answer with JSON"),
        ("echo '{\"Username\": 1}'", "answered with something else"),
        ('echo \'{"Username": "ann", "Secret": "s3cret-lie"}\'', "as `ann` failed"),
        ("echo no session; exit 1", "`: no session"),
    ],
    ids=["hangs", "no-json", "no-text", "wrong-secret", "fails"],
)
def test_helper_that_hangs_or_lies_is_named(world: World, script: str, said: str) -> None:
    helper = world.directory / "docker-credential-odd"
    helper.write_text(f"#!/bin/sh\n{script}\n")
    helper.chmod(0o755)
    path = f"{world.directory}:{world.ocis2i.environment['PATH']}"
    with gate(world, "bearer", USERS) as proxy:
        file = world.auths({"credHelpers": {proxy.host: "odd"}})
        done = world.push(proxy, *file, PATH=path, OCIS2I_HELPER_TIMEOUT="1s")
    assert done.code == 5
    assert said in error(done)
    assert "s3cret-lie" not in done.err
    assert len(proxy.log) <= 2


# --- other hosts ----------------------------------------------------------------------------------


def netrc(world: World) -> str:
    """A home with passwords for everybody, which are none of ours."""
    path = world.directory / ".netrc"
    hosts = ("localhost", "127.0.0.1")
    path.write_text("".join(f"machine {one} login x password {NETRC_PASSWORD}\n" for one in hosts))
    path.chmod(0o600)
    return str(world.directory)


@pytest.mark.parametrize("auth", ["basic", "bearer"])
def test_blob_on_another_host_is_fetched_without_credentials(
    world: World, foreign: FaultProxy, auth: str
) -> None:
    with gate(world, auth, USERS) as proxy:
        there = {"Location": f"http://{foreign.other_name}{{path}}"}
        proxy.rule("GET", "/blobs/", times=-1, status=307, headers=there)
        done = world.pull(proxy, *world.known(proxy), HOME=netrc(world))
    assert done.code == 0, done.err
    assert len(foreign.requests("GET", "/blobs/")) == 2
    assert shown(foreign) == {""}


def test_upload_on_another_host_goes_without_credentials(world: World, foreign: FaultProxy) -> None:
    with gate(world, "bearer", USERS) as proxy:
        proxy.rewrite_location = lambda url: url.replace(proxy.host, foreign.other_name)
        done = world.push(proxy, *world.known(proxy), HOME=netrc(world))
    assert done.code == 0, done.err
    assert sorted(digest for digest, _ in foreign.uploads()) == sorted(world.image.blobs)
    assert shown(foreign) == {""}
    assert world.is_pushed()


def test_upload_is_not_sent_to_a_private_address(world: World, foreign: FaultProxy) -> None:
    with gate(world, "basic", USERS) as proxy:
        proxy.rewrite_location = lambda url: url.replace(proxy.host, foreign.host)
        done = world.push(proxy, *world.known(proxy))
    assert done.code == 5
    assert f"points at the private address `{foreign.host}`" in error(done)
    assert foreign.log == []


def test_token_service_on_another_host_gets_the_password_and_nobody_else(
    world: World, foreign: FaultProxy
) -> None:
    foreign.users = USERS
    with gate(world, "bearer", USERS) as proxy:
        proxy.realm, proxy.tokens = f"http://{foreign.other_name}/token", foreign.tokens
        done = world.push(proxy, *world.known(proxy))
    assert done.code == 0, done.err
    assert shown(proxy) == {"", "Bearer"}
    assert {one.path for one in foreign.log} == {"/token"}


def test_token_service_at_a_private_address_gets_nothing(world: World, foreign: FaultProxy) -> None:
    with gate(world, "bearer", USERS) as proxy:
        proxy.realm = f"http://{foreign.host}/token"
        done = world.push(proxy, *world.known(proxy))
    assert done.code == 5
    assert "the token service of" in error(done)
    assert foreign.log == []


def test_netrc_is_not_for_us(world: World) -> None:
    with gate(world, "basic", USERS) as proxy:
        done = world.push(proxy, *world.known(proxy), HOME=netrc(world))
        stranger = world.push(proxy, *world.auths({}), HOME=netrc(world))
    assert done.code == 0, done.err
    assert stranger.code == 5
    pairs = {base64.b64decode(one.header("authorization").partition(" ")[2]) for one in proxy.log}
    assert pairs == {b"", f"{USER}:{PASSWORD}".encode()}


# --- certificates of requests ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two certificates for this host, with their keys; neither vouches for the other."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    directory = tmp_path_factory.mktemp("certificates")
    return _certificate(directory / "ours.crt"), _certificate(directory / "other.pem")


def _certificate(path: Path) -> Path:
    kind = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=a"
    name = "subjectAltName=IP:127.0.0.1"
    files = ["-keyout", str(path), "-out", str(path.with_suffix(".new"))]
    command = ["openssl", *kind.split(), "-addext", name, *files]
    subprocess.run(command, check=True, capture_output=True)
    path.write_text(path.read_text() + path.with_suffix(".new").read_text())
    return path


@pytest.mark.parametrize("flags", ["--cert-dir", "--no-tls-verify"])
def test_bundle_for_requests_adds_to_what_is_trusted_and_decides_nothing(
    world: World, certificates: tuple[Path, Path], flags: str
) -> None:
    ours, other = certificates
    layout = world.directory / "layout"
    make_layout(layout, "1", [Layer().file("hello", flags)])
    given = [flags, ours.parent] if flags == "--cert-dir" else [flags]
    with FakeRegistry(certificate=ours) as registry:
        name = registry.put_layout("app", "1", layout)
        refused = world.ocis2i("pull", name, REQUESTS_CA_BUNDLE=str(other))
        done = world.ocis2i("pull", name, *given, REQUESTS_CA_BUNDLE=str(other))
    assert "its certificate is not trusted" in error(refused)
    assert done.code == 0, done.err
