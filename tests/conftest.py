"""What all tests have in common."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.fakes.docker_registry import registry_program
from tests.fakes.images import busybox_builder
from tests.fakes.program import Program, program

# A deadline per example says how busy the machine is, not whether the code is right; and what
# failed once is printed in a form that makes it fail again. No database: nothing is written
# beside the tests. Continuous integration judges a change by the same examples every time; runs
# by hand look for new ones.
settings.register_profile(
    "ocis2i",
    deadline=None,
    print_blob=True,
    database=None,
    derandomize=bool(os.environ.get("CI")),
)
settings.load_profile("ocis2i")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what takes another caller: `scripts/test` runs the tests as both."""
    other = "as_user" if os.geteuid() == 0 else "as_root"
    left_out = [item for item in items if item.get_closest_marker(other)]
    if left_out:
        items[:] = [item for item in items if not item.get_closest_marker(other)]
        config.hook.pytest_deselected(items=left_out)


@pytest.fixture
def ocis2i(tmp_path: Path) -> Iterator[Program]:
    """The program with an empty store of its own; skipped where no user may have one."""
    if os.geteuid() == 0:
        pytest.skip("the tests run as root; ocis2i builds as an ordinary user")
    directory = tmp_path / "ocis2i"
    directory.mkdir()
    with program(directory) as running:
        yield running


@pytest.fixture(scope="session")
def builder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny real S2I builder image (busybox), as an `oci:` location."""
    if not Path("/bin/busybox").exists():
        pytest.skip("the package busybox-static is not installed")
    path = tmp_path_factory.mktemp("builder") / "layout"
    busybox_builder(path, "builder:latest")
    return f"oci:{path}:builder:latest"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A small source directory."""
    directory = tmp_path / "source"
    directory.mkdir()
    (directory / "index.html").write_text("hello from the source\n")
    return directory


def pytest_make_parametrize_id(val: object) -> str | None:
    """Bytes are named by their length: compressed ones hold the time at which they were made."""
    return f"{len(val)}-bytes" if isinstance(val, bytes) else None


def needs(*names: str) -> pytest.MarkDecorator:
    """Skips where one of these programs is not installed."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    missing = [name for name in names if shutil.which(name, path=path) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


needs_registry = pytest.mark.skipif(
    registry_program() is None, reason="no registry program on PATH"
)

# Executors that a test runs with where their programs are installed.
RUNC = pytest.param("runc", marks=needs("runc"))
CRUN = pytest.param("crun", marks=needs("crun"))
BUILDAH = pytest.param("buildah", marks=needs("buildah", "runc"))
