"""What end-to-end tests have in common: a store for a whole module, and whom a build talks to."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.bench import Bench, Maker
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


@pytest.fixture
def web() -> Iterator[FakeWeb]:
    """A web server without any pages."""
    with FakeWeb() as running:
        yield running
