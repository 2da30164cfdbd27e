"""A builder repository as `create` writes it passes its own test, with buildah and ocis2i."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import needs
from tests.contract import better, same
from tests.fakes.images import Layer, _architecture, _busybox_layer, busybox_builder, make_layout
from tests.fakes.program import Done, Program, called

pytestmark = pytest.mark.sandbox

STORAGE = '[storage]\ndriver = "vfs"\n'


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        assert isinstance(port, int)
        return port


@dataclass(frozen=True)
class Repository:
    """A generated repository, and a place in which its test leaves nothing."""

    path: Path
    home: Path
    environment: dict[str, str]

    def call(self, *argv: str | Path, **variables: str) -> Done:
        return called(argv, self.environment | variables, cwd=self.path)

    @property
    def temporary(self) -> Path:
        return self.home / "tmp"


@pytest.fixture
def repository(ocis2i: Program, tmp_path: Path) -> Iterator[Repository]:
    path, home = tmp_path / "repository", tmp_path / "user"
    ocis2i.ok("create", "acme/static", path)
    for directory in (home, home / "tmp", home / "run", home / ".config" / "containers"):
        directory.mkdir(parents=True, mode=0o700)
    (home / ".config" / "containers" / "storage.conf").write_text(STORAGE)
    program = home / "ocis2i"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ocis2i "$@"\n')
    program.chmod(0o755)
    environment = dict(ocis2i.environment) | {
        "HOME": str(home),
        "XDG_RUNTIME_DIR": str(home / "run"),
        "TMPDIR": str(home / "tmp"),
        "BUILDAH_ISOLATION": "chroot",
        "OCIS2I": str(program),
        "PORT": str(free_port()),
    }
    made = Repository(path, home, environment)
    yield made
    if (home / ".local").exists():
        # Files of subordinate ids, which only their namespace can remove.
        assert made.call("buildah", "unshare", "rm", "-rf", home / ".local").code == 0


@pytest.fixture
def base(tmp_path: Path) -> str:
    """A base image with a shell and a web server, which no network is needed for."""
    if not Path("/bin/busybox").exists():
        pytest.skip("the package busybox-static is not installed")
    layers: list[Layer] = [_busybox_layer()]
    config = {"Env": ["PATH=/usr/bin:/bin"], "Cmd": ["/bin/sh"]}
    platform = f"linux/{_architecture()}"
    make_layout(tmp_path / "base", "base:latest", layers, config, platform=platform)
    return f"oci:{tmp_path / 'base'}:base:latest"


@same("create")
@better("create.works", "it needs buildah and ocis2i; the base is chosen by `BASE`")
@needs("buildah", "make", "curl")
def test_generated_repository_passes_its_own_test(repository: Repository, base: str) -> None:
    done = repository.call("make", "test", BASE=base)
    assert done.code == 0, f"{done.out}\n{done.err}"
    assert done.out.splitlines()[-1] == "===> All tests passed"
    assert os.listdir(repository.temporary) == []
    # The base is what buildah keeps for the next time.
    names = repository.call("buildah", "images", "--format", "{{.Name}}").out.split()
    assert names == [f"localhost{Path(base.split(':')[1])}"]
    assert repository.call("buildah", "containers", "--quiet").out == ""


@needs("buildah", "make")
def test_generated_builder_is_built_under_its_name(
    repository: Repository, base: str, ocis2i: Program, tmp_path: Path
) -> None:
    done = repository.call("make", "build", BASE=base)
    assert done.code == 0, f"{done.out}\n{done.err}"
    target = f"oci:{tmp_path / 'pushed'}:latest"
    assert repository.call("buildah", "push", "acme/static", target).code == 0
    config = ocis2i.ok("inspect", target).document["config"]
    assert config["User"] == "1001"
    assert config["WorkingDir"] == "/opt/app-root/src"
    assert config["Labels"]["io.openshift.s2i.scripts-url"] == "image:///usr/libexec/s2i"
    usage = ocis2i.ok("run", target, "/usr/libexec/s2i/usage")
    assert "ocis2i build SOURCE acme/static NAME" in usage.out


@needs("curl")
def test_generated_test_sees_that_the_application_ends(
    repository: Repository, tmp_path: Path
) -> None:
    scripts = {"run": "#!/bin/sh\necho 'I am gone'\n"}
    busybox_builder(tmp_path / "broken", "builder:latest", scripts=scripts)
    builder = f"oci:{tmp_path / 'broken'}:builder:latest"
    done = repository.call("test/run", BUILDER=builder)
    assert done.code == 1
    assert done.err.splitlines()[-1] == "FAILED: the application has ended"
    assert "application: I am gone" in done.err
    assert os.listdir(repository.temporary) == []


@needs("curl")
def test_generated_test_sees_another_page(repository: Repository, builder: str) -> None:
    (repository.path / "test" / "test-app" / "index.html").write_text("Goodbye\n")
    done = repository.call("test/run", BUILDER=builder)
    assert done.code == 1
    assert done.err.splitlines()[-1] == "FAILED: the page does not say: Hello World"
    assert os.listdir(repository.temporary) == []


@needs("curl")
def test_generated_test_sees_a_missing_usage(repository: Repository, tmp_path: Path) -> None:
    busybox_builder(tmp_path / "silent", "b:1", scripts={"usage": "#!/bin/sh\n"})
    done = repository.call("test/run", BUILDER=f"oci:{tmp_path / 'silent'}:b:1")
    assert done.code == 1
    assert done.err.splitlines()[-1] == "FAILED: the usage script prints nothing"
    assert os.listdir(repository.temporary) == []


@needs("busybox", "unshare")
def test_generated_run_stops_as_the_first_process_of_a_container(repository: Repository) -> None:
    """There signals without a handler are ignored (pid_namespaces(7)), and busybox has none."""
    port = int(repository.environment["PORT"])
    namespace = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child"]
    with subprocess.Popen(
        [*namespace, "sh", "-c", 'exec "$0" "$@"', repository.path / "s2i" / "bin" / "run"],
        cwd=repository.path / "test" / "test-app",
        env=repository.environment,
        stdin=subprocess.DEVNULL,
    ) as outside:
        try:
            assert "Hello World" in page_of(outside, port)
            first = only_child(outside.pid)
            os.kill(first, signal.SIGTERM)
            assert outside.wait(timeout=60) == 128 + signal.SIGTERM
        finally:
            outside.kill()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def page_of(server: subprocess.Popen[bytes], port: int) -> str:
    """The page, as soon as the server listens."""
    for _ in range(600):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        try:
            connection.request("GET", "/index.html")
            return connection.getresponse().read().decode()
        except ConnectionRefusedError:
            with pytest.raises(subprocess.TimeoutExpired):  # it has to live meanwhile
                server.wait(timeout=0.1)
        finally:
            connection.close()
    pytest.fail("nothing listens")


def only_child(pid: int) -> int:
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(child)


# --- the verb ---------------------------------------------------------------------------------


@same("create.files")
@better("create.modes", "the rest is as the umask has it, for others to read")
def test_create_writes_these_files(ocis2i: Program, tmp_path: Path) -> None:
    path = tmp_path / "repository"
    done = ocis2i.ok("create", "acme/static", path)
    found = {
        str(one.relative_to(path)): stat.S_IMODE(one.stat().st_mode)
        for one in path.rglob("*")
        if one.is_file()
    }
    assert found == {
        "s2i/bin/assemble": 0o755,
        "s2i/bin/run": 0o755,
        "s2i/bin/save-artifacts": 0o755,
        "s2i/bin/usage": 0o755,
        "Dockerfile": 0o644,
        "Makefile": 0o644,
        "README.md": 0o644,
        "test/run": 0o755,
        "test/test-app/index.html": 0o644,
    }
    assert sorted(done.out.splitlines()) == sorted(f"written  {path}/{name}" for name in found)
    assert done.err == ""


@better("create.existing", "are left alone, and named on standard output")
def test_create_keeps_what_is_there(ocis2i: Program, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM mine\n")
    done = ocis2i.ok("create", "acme/static", tmp_path)
    assert (tmp_path / "Dockerfile").read_text() == "FROM mine\n"
    assert (tmp_path / "s2i" / "bin" / "assemble").stat().st_mode & 0o777 == 0o755
    assert f"kept  {tmp_path}/Dockerfile\n" in done.out
    assert not ocis2i.store.exists()


def test_create_refuses_a_bad_name(ocis2i: Program, tmp_path: Path) -> None:
    done = ocis2i("create", "Not A Name", tmp_path / "repository")
    assert done.code == 2
    assert "invalid image name" in done.err
    assert not (tmp_path / "repository").exists()


def test_create_names_the_directory_that_it_cannot_write(ocis2i: Program, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o555)
    done = ocis2i("create", "acme/static", tmp_path / "locked" / "repository")
    assert done.code == 8
    assert f"`{tmp_path}/locked/repository`" in done.err


@pytest.mark.parametrize("arguments", [[], ["acme/static"], ["acme/static", "a", "b"]])
def test_create_needs_a_name_and_a_directory(ocis2i: Program, arguments: list[str]) -> None:
    assert ocis2i("create", *arguments).code == 2
