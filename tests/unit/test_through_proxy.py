"""Registries behind a proxy, which gets its own credentials and sees no others."""

from __future__ import annotations

import base64
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from ocis2i.credentials import Credentials
from ocis2i.errors import RegistryError
from ocis2i.keychain import Keychain
from ocis2i.manifest import OCI_LAYER_GZIP, Descriptor
from ocis2i.reference import Digest, Reference
from ocis2i.registry import Registry
from tests.fakes.registry import FakeRegistry
from tests.fakes.server import LoopbackServer, Served

DATA = b"a blob"
BLOB = Descriptor(OCI_LAYER_GZIP, Digest.of(DATA), len(DATA))
IMAGE = Reference.parse("registry.example/team/app:1")


class FakeProxy(Served):
    """A proxy that tunnels to `target`, whatever name it is asked for."""

    def __init__(self, target: FakeRegistry, *, user: str, password: str) -> None:
        self.target = ("127.0.0.1", target.port)
        pair = base64.b64encode(f"{user}:{password}".encode()).decode()
        self.wanted = f"Basic {pair}"
        self.asked: list[str] = []
        self.headers: list[dict[str, str]] = []
        super().__init__(LoopbackServer(partial(_Handler, self)))  # type: ignore[arg-type]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, proxy: FakeProxy, *arguments: object) -> None:
        self.proxy = proxy
        super().__init__(*arguments)  # type: ignore[arg-type]

    def log_message(self, *_: object) -> None:
        """Nothing."""

    def do_CONNECT(self) -> None:
        self.proxy.asked.append(self.path)
        self.proxy.headers.append(dict(self.headers))
        if self.headers.get("Proxy-Authorization") != self.proxy.wanted:
            self.send_error(407)
            return
        with socket.create_connection(self.proxy.target) as server:
            self.send_response(200)
            self.end_headers()
            back = threading.Thread(target=_pump, args=(server, self.connection), daemon=True)
            back.start()
            _pump(self.connection, server)
            back.join()
        self.close_connection = True


def _pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for `registry.example`, with its key in the same file."""
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("openssl is not installed")
    directory = tmp_path_factory.mktemp("certificate")
    path, key = directory / "certificate.pem", directory / "key.pem"
    arguments = f"req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -out {path}"
    more = f"-keyout {key} -subj /CN=registry.example -addext subjectAltName=DNS:registry.example"
    subprocess.run([program, *arguments.split(), *more.split()], check=True, capture_output=True)
    path.write_text(path.read_text() + key.read_text())
    return path


@pytest.fixture
def registry(certificate: Path) -> Iterator[FakeRegistry]:
    with FakeRegistry(
        "basic", users={"bob": "of-the-registry"}, certificate=certificate
    ) as running:
        running.put_blob("team/app", DATA)
        yield running


@pytest.fixture
def proxy(registry: FakeRegistry) -> Iterator[FakeProxy]:
    with FakeProxy(registry, user="ann", password="of-the-proxy") as running:
        yield running


def client(proxy: FakeProxy, certificate: Path, password: str) -> Registry:
    given = {"registry.example": Credentials("bob", "of-the-registry")}
    environment = {
        "https_proxy": f"http://ann:{password}@{proxy.host}",
        "SSL_CERT_FILE": str(certificate),
    }
    return Registry(Keychain({}, given=given), environment=environment, sleep=lambda _: None)


def test_a_registry_is_reached_through_a_tunnel_that_sees_only_its_name(
    proxy: FakeProxy, registry: FakeRegistry, certificate: Path
) -> None:
    with client(proxy, certificate, "of-the-proxy") as through:
        assert through.read_blob(IMAGE, BLOB) == DATA
    assert set(proxy.asked) == {"registry.example:443"}
    assert all("Authorization" not in headers for headers in proxy.headers)
    assert registry.log
    assert all("Proxy-Authorization" not in logged.headers for logged in registry.log)


def test_a_proxy_that_refuses_is_named_without_its_password(
    proxy: FakeProxy, registry: FakeRegistry, certificate: Path
) -> None:
    with client(proxy, certificate, "wrong") as through, pytest.raises(RegistryError) as caught:
        through.read_blob(IMAGE, BLOB)
    assert f"through the proxy `http://{proxy.host}`" in caught.value.message
    assert "wrong" not in caught.value.message
    assert not registry.log
