"""The agent that a build starts before its own modules: who does not need it never hears of it."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.fakes.images import busybox_builder
from tests.fakes.processes import descendants
from tests.fakes.program import Program

pytestmark = pytest.mark.sandbox

PATIENCE_SECONDS = 20.0

# Python imports this at its start: the module that a build needs next never comes.
STUCK = """
import os, sys, time

class Stuck:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ.get("STUCK_AT", "ocis2i.commands.build_work"):
            time.sleep(60)

sys.meta_path.insert(0, Stuck())
"""

# What few builds use, and each takes long to load.
OF_FEW = {
    f"ocis2i.{name}"
    for name in "confidential extended forwarding injections mirrors proxy relay".split()
} | {"ocis2i.sources.zipped", "configparser", "zipfile", "requests", "rich"}
OF_FEW |= {"ocis2i.prune", "ocis2i.commands.rebuilding", "ssl"}


@pytest.fixture
def builder(tmp_path: Path) -> str:
    script = "#!/bin/sh\nexit 0\n"
    busybox_builder(tmp_path / "builder", "b:1", scripts={"assemble": script})
    return f"oci:{tmp_path}/builder:b:1"


def wait_until_gone(pids: set[int]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while left := {pid for pid in pids if Path(f"/proc/{pid}").exists()}:
        assert time.monotonic() < deadline, left
        time.sleep(0.01)


def agents_of(process: subprocess.Popen[str]) -> set[int]:
    """The agent and its process 1, once both are there."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while len(found := descendants(process.pid)) < 2:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, found
        time.sleep(0.01)
    return found


@pytest.mark.parametrize("module", ["ocis2i.commands.application", "ocis2i.commands.build_work"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_modules_load_is_one_line_and_ends_the_agent(
    ocis2i: Program,
    builder: str,
    source: Path,
    tmp_path: Path,
    number: signal.Signals,
    module: str,
) -> None:
    (tmp_path / "stuck").mkdir()
    (tmp_path / "stuck" / "sitecustomize.py").write_text(STUCK)
    path = f"{tmp_path}/stuck:{ocis2i.environment['PYTHONPATH']}"
    process = ocis2i.start("build", source, builder, "app:1", PYTHONPATH=path, STUCK_AT=module)
    agents = agents_of(process)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (128 + number, "")
    assert err.startswith("error: stopped by ")
    assert err.count("\n") == 1
    wait_until_gone(agents)


def test_a_killed_start_leaves_no_agent(
    ocis2i: Program, builder: str, source: Path, tmp_path: Path
) -> None:
    (tmp_path / "stuck").mkdir()
    (tmp_path / "stuck" / "sitecustomize.py").write_text(STUCK)
    path = f"{tmp_path}/stuck:{ocis2i.environment['PYTHONPATH']}"
    process = ocis2i.start("build", source, builder, "app:1", PYTHONPATH=path)
    agents = agents_of(process)
    process.kill()
    process.communicate(timeout=60)
    wait_until_gone(agents)


def test_a_wrong_value_of_a_flag_is_all_that_is_said(
    ocis2i: Program, builder: str, source: Path
) -> None:
    done = ocis2i("build", source, builder, "app:1", "--add-host", "nonsense")
    assert (done.code, done.out) == (2, "")
    assert [line.partition(":")[0] for line in done.err.splitlines()] == ["error", "hint"]
    assert not (ocis2i.store / "builds").exists() or not list((ocis2i.store / "builds").iterdir())


def test_a_plain_build_loads_nothing_that_few_need(
    ocis2i: Program, builder: str, source: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "ocis2i", "build", source, builder, "app:1"],
        env=dict(ocis2i.environment),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    names = set(re.findall(r"^import time:.*\| +(\S+)$", done.stderr, re.MULTILINE))
    assert "ocis2i.build" in names
    assert names & OF_FEW == set()
