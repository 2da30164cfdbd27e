"""What end-to-end tests have in common: a store for a whole module, and whom a build talks to."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.bench import Bench, Maker
from tests.fakes.docker_registry import HTPASSWD, RegistryUnderTest, docker_registry
from tests.fakes.processes import adopting
from tests.fakes.program import Program, program
from tests.fakes.registry import FakeRegistry
from tests.fakes.web import FakeWeb


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """One store for all tests of a module that do not look at all of it."""
    if os.geteuid() == 0:
        pytest.skip("the tests run as root; ocis2i builds as an ordinary user")
    with program(tmp_path_factory.mktemp("shared")) as running:
        yield running


@pytest.fixture
def bench(shared: Program, tmp_path: Path) -> Bench:
    """The store of the module, and a directory for this test."""
    return Bench(shared, tmp_path)


@pytest.fixture
def make(tmp_path: Path) -> Maker:
    """Makes builders for this test."""
    (tmp_path / "made").mkdir()
    return Maker(tmp_path / "made")


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    """An empty registry that lets everybody in."""
    with FakeRegistry() as running:
        yield running


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryUnderTest]:
    """A real registry that lets everybody in, for a module whose tests have names of their own."""
    with docker_registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryUnderTest]:
    """The same that asks for `USER` and `PASSWORD`."""
    with docker_registry(tmp_path_factory.mktemp("guarded"), htpasswd=HTPASSWD) as running:
        yield running


@pytest.fixture
def web() -> Iterator[FakeWeb]:
    """A web server without any pages."""
    with FakeWeb() as running:
        yield running


@pytest.fixture
def _orphans() -> Iterator[None]:
    """Processes that lose their parent become children of the test: nothing gets away."""
    with adopting():
        yield
