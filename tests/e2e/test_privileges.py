"""No process has root on the host, only the tools that map ids are setuid, secrets stay in."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import RUNC, needs
from tests.contract import same
from tests.fakes.docker_registry import HTPASSWD, PASSWORD, USER, docker_registry, registry_program
from tests.fakes.images import busybox_builder
from tests.fakes.processes import below
from tests.fakes.program import Program

MAPPERS = {"newuidmap", "newgidmap"}
EXECUTORS = [RUNC, "builtin"]
PATIENCE_SECONDS = 60.0

# Ends when the file of the volume is there: the test looks around meanwhile.
ASSEMBLE = """\
#!/bin/sh
echo "I am $(id -u)"
until [ -e /gate/open ]; do sleep 0.05; done
cp -R /tmp/src/. "$HOME/"
"""


@dataclass(frozen=True)
class Process:
    """A process as the host sees it: real, effective, saved and file system ids, and groups."""

    pid: int
    name: str
    uids: tuple[int, ...]
    gids: tuple[int, ...]
    groups: tuple[int, ...]

    @property
    def is_privileged(self) -> bool:
        """Whether it has root's ids on the host, in whatever role."""
        return 0 in (*self.uids, *self.gids, *self.groups)


def _read(pid: int) -> Process:
    fields = {}
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        key, _, value = line.partition(":")
        fields[key] = value.split()

    def numbers(key: str) -> tuple[int, ...]:
        return tuple(map(int, fields[key]))

    return Process(pid, " ".join(fields["Name"]), numbers("Uid"), numbers("Gid"), numbers("Groups"))


def descendants(pid: int) -> list[Process]:
    """All processes below one that are there now."""
    found = []
    for one in below(pid):
        with contextlib.suppress(OSError):
            found.append(_read(one))
    return found


@pytest.fixture
def waiting_builder(tmp_path: Path) -> str:
    """A builder whose assemble waits for the gate."""
    if not Path("/bin/busybox").exists():
        pytest.skip("the package busybox-static is not installed")
    busybox_builder(tmp_path / "waiting", "b:1", scripts={"assemble": ASSEMBLE})
    return f"oci:{tmp_path}/waiting:b:1"


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """A directory for the container to look into."""
    directory = tmp_path / "gate"
    directory.mkdir(mode=0o755)
    return directory


def watch(
    process: subprocess.Popen[str], gate: Path, look: Callable[[], None], *, times: int = 20
) -> tuple[str, str]:
    """Looks again and again while a build runs; opens the gate after it got to assemble."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    at_work = 0
    while process.poll() is None and time.monotonic() < deadline:
        look()
        at_work += any(one.name == "sleep" for one in descendants(process.pid))
        if at_work == times:
            (gate / "open").touch()
    out, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, err
    assert at_work >= times
    return out, err


@pytest.mark.sandbox
@pytest.mark.parametrize("isolation", EXECUTORS)
@pytest.mark.parametrize("user", ["0", "1001"])
def test_nobody_is_root_on_the_host(
    ocis2i: Program, source: Path, gate: Path, tmp_path: Path, isolation: str, user: str
) -> None:
    busybox_builder(tmp_path / "waiting", "b:1", user=user, scripts={"assemble": ASSEMBLE})
    process = ocis2i.start(
        *("build", source, f"oci:{tmp_path}/waiting:b:1", "app:1"),
        *("--isolation", isolation, "-v", f"{gate}:/gate:ro"),
    )
    seen: dict[tuple[int, str], Process] = {}
    privileged: set[Process] = set()

    def look() -> None:
        for one in descendants(process.pid):
            seen[one.pid, one.name] = one
            if one.is_privileged:
                privileged.add(one)

    _, err = watch(process, gate, look)
    assert f"I am {user}" in err
    names = {name for _, name in seen}
    assert {"assemble", "sleep"} <= names
    # The setuid step itself may be seen, for an instant.
    assert {one.name for one in privileged} <= MAPPERS
    # In the container, even root is somebody who owns nothing on the host.
    payload = next(one for one in seen.values() if one.name == "sleep")
    assert (payload.uids[0] == os.getuid()) == (user == "0")


def _setuid_programs() -> Iterator[Path]:
    """Every program of this host with a setuid or setgid bit, or with file capabilities."""
    directories = [*os.environ["PATH"].split(":"), "/usr/sbin", "/sbin", "/usr/bin", "/bin"]
    for directory in directories:
        if not os.access(directory, os.R_OK | os.X_OK):
            continue
        for path in Path(directory).iterdir():
            with contextlib.suppress(OSError):
                mode = path.stat().st_mode
                special = mode & (stat.S_ISUID | stat.S_ISGID)
                if stat.S_ISREG(mode) and (special or "security.capability" in os.listxattr(path)):
                    yield path


@pytest.mark.sandbox
@pytest.mark.parametrize("isolation", EXECUTORS)
def test_only_the_mappers_are_setuid(
    ocis2i: Program, builder: str, source: Path, tmp_path: Path, isolation: str
) -> None:
    wrappers, log = tmp_path / "wrappers", tmp_path / "log"
    wrappers.mkdir()
    programs = {path.name: path for path in _setuid_programs()}
    assert programs.keys() >= MAPPERS
    for name, path in programs.items():
        wrapper = wrappers / name
        wrapper.write_text(f'#!/bin/sh\necho {name} >> {log}\nexec {path} "$@"\n')
        wrapper.chmod(0o755)
    search_path = f"{wrappers}:{ocis2i.environment['PATH']}"
    ocis2i.ok("build", source, builder, "app:1", "--isolation", isolation, PATH=search_path)
    ocis2i.ok("run", "--isolation", isolation, "app:1", "true", PATH=search_path)
    assert set(log.read_text().split()) == MAPPERS


@needs("strace")
def test_agent_starts_with_an_empty_environment(
    ocis2i: Program, builder: str, source: Path, tmp_path: Path
) -> None:
    log = tmp_path / "strace"
    done = subprocess.run(
        [
            *("strace", "-f", "-s", "500", "-v", "-e", "trace=execve", "-o", str(log)),
            *(sys.executable, "-m", "ocis2i", "build", str(source), builder, "app:1"),
        ],
        env={**ocis2i.environment, "SECRET_OF_THE_CALLER": "a-secret"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    lines = log.read_text().splitlines() if log.exists() else []
    if not any("execve" in line for line in lines):
        pytest.skip(f"strace cannot trace here: {done.stderr[:200]}")
    agents = [line for line in lines if "agent/__main__.py" in line]
    assert agents
    for line in agents:
        assert line.split("], ")[-1].startswith("[])"), line
    # The first line is how the program itself was started.
    assert not [line for line in lines[1:] if "a-secret" in line]
    # Under strace a setuid bit has no effect, and the build says so in one sentence.
    if done.returncode:
        assert done.returncode == 6
        assert "`newuidmap` failed" in done.stderr
        assert "Traceback" not in done.stderr


@same("credentials.auths")
@same("security.secrets")
@pytest.mark.sandbox
@pytest.mark.registry
def test_passwords_are_nowhere_to_be_seen(
    ocis2i: Program, source: Path, gate: Path, waiting_builder: str, tmp_path: Path
) -> None:
    if registry_program() is None:
        pytest.skip("no registry program on PATH")
    encoded = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    secrets = [PASSWORD.encode(), encoded.encode()]
    archive = tmp_path / "app.tar"
    with docker_registry(tmp_path / "registry", htpasswd=HTPASSWD) as running:
        authfile = tmp_path / "auth.json"
        authfile.write_text(json.dumps({"auths": {running.host: {"auth": encoded}}}))
        process = ocis2i.start(
            *("build", source, waiting_builder, f"{running.host}/app:1", "--push", "--json"),
            *("--loglevel", "5", "-v", f"{gate}:/gate", "-o", f"oci-archive:{archive}"),
            *("--authfile", authfile),
        )
        shown: set[bytes] = set()

        def look() -> None:
            for pid in (process.pid, *(one.pid for one in descendants(process.pid))):
                for name in ("cmdline", "environ"):
                    # The agent's environment is not readable, that of the container is.
                    with contextlib.suppress(OSError):
                        shown.add(Path(f"/proc/{pid}/{name}").read_bytes())

        out, err = watch(process, gate, look)
        assert json.loads(out)["pushed"] is True
        stored = [path for path in running.storage.rglob("*") if path.is_file()]
    written = [path for path in ocis2i.store.rglob("*") if _is_readable_file(path)]
    texts = [*shown, out.encode(), err.encode(), archive.read_bytes()]
    texts += [path.read_bytes() for path in (*stored, *written)]
    assert any(b"assemble" in text for text in shown)
    assert len(written) > 5
    for secret in secrets:
        assert not [text[:100] for text in texts if secret in text]


def _is_readable_file(path: Path) -> bool:
    try:
        return path.is_file() and os.access(path, os.R_OK)
    except OSError:
        return False
