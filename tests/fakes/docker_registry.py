"""The real `docker-registry` program on a free loopback port, for as long as a `with` block lasts.

It needs no privileges; all it writes is in the given directory.
"""

from __future__ import annotations

import http.client
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

START_SECONDS = 20.0
PROGRAMS = ("docker-registry", "registry")

# One user, and what to give as `htpasswd` for him (bcrypt, cost 5).
USER = "probe"
PASSWORD = "probe-secret"
HTPASSWD = "probe:$2y$05$lZX2KgxO3viam9aam4q9zunRjeFiPNN31VoFpIDy5pgRf2vrpOqpG\n"


@dataclass(frozen=True, slots=True)
class RegistryUnderTest:
    """A running registry: where it listens and where its data is."""

    host: str
    storage: Path


def registry_program() -> str | None:
    """The path of the registry program, if it is installed."""
    return next((found for name in PROGRAMS if (found := shutil.which(name))), None)


@contextmanager
def docker_registry(directory: Path, *, htpasswd: str | None = None) -> Iterator[RegistryUnderTest]:
    """Starts the program with its data in `directory` and stops it in any case.

    `htpasswd` is the text of a password file (bcrypt only), such as `HTPASSWD`.
    """
    program = registry_program()
    if program is None:
        raise FileNotFoundError(f"none of {', '.join(PROGRAMS)} is on PATH")
    directory.mkdir(parents=True, exist_ok=True)
    storage = directory / "data"
    for _ in range(3):
        # Another process may take the port between our look and the program's bind.
        port = _free_port()
        config = directory / "config.yml"
        config.write_text(_config(directory, port, htpasswd))
        with (
            (directory / "log").open("ab") as log,
            subprocess.Popen(
                [program, "serve", str(config)], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            ) as process,
        ):
            try:
                if _wait_until_ready(process, port):
                    yield RegistryUnderTest(f"127.0.0.1:{port}", storage)
                    return
            finally:
                process.kill()
    raise RuntimeError(f"{program} does not start: {(directory / 'log').read_text()[-2000:]}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _config(directory: Path, port: int, htpasswd: str | None) -> str:
    text = f"""version: 0.1
log: {{level: warn, accesslog: {{disabled: true}}}}
storage:
  filesystem: {{rootdirectory: {directory / "data"}}}
  delete: {{enabled: true}}
http:
  addr: 127.0.0.1:{port}
  secret: only-for-tests
"""
    if htpasswd is not None:
        path = directory / "htpasswd"
        path.write_text(htpasswd)
        text += f"auth:\n  htpasswd: {{realm: a test realm, path: {path}}}\n"
    return text


def _wait_until_ready(process: subprocess.Popen[bytes], port: int) -> bool:
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
        try:
            connection.request("GET", "/v2/")
            return connection.getresponse().status in (200, 401)
        except OSError:
            time.sleep(0.05)
        finally:
            connection.close()
    return False
