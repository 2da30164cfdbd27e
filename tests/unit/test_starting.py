"""How the program starts: which command lines get an agent at once, and what frames cost."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ocis2i.commands.ahead import wants_agent
from ocis2i.errors import IsolationError
from ocis2i.isolation import agent
from ocis2i.proc import Process, spawn

PROJECT = Path(__file__).parent.parent.parent


@pytest.fixture(autouse=True)
def _no_isolation_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OCIS2I_ISOLATION", raising=False)


@pytest.mark.parametrize(
    "line",
    [
        "build . builder app",
        "build . builder app --isolation runc",
        "build --isolation=builtin . builder",
        "build",
    ],
)
def test_a_build_gets_an_agent_before_it_is_understood(line: str) -> None:
    assert wants_agent(line.split())


@pytest.mark.parametrize(
    "line",
    [
        "",
        "images",
        "--root /r build . builder",
        "build --help",
        "build -h",
        "build . builder --as-dockerfile Dockerfile",
        "build . builder --as-dockerfile=Dockerfile",
        "build . builder --isolation chroot",
        "build . builder --isolation=in-place",
        "build chroot builder",
    ],
)
def test_who_may_do_without_an_agent_gets_none_before_it_asks(line: str) -> None:
    assert not wants_agent(line.split())


def test_the_isolation_of_the_environment_counts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCIS2I_ISOLATION", "in-place")
    assert not wants_agent(["build", ".", "builder"])
    monkeypatch.setenv("OCIS2I_ISOLATION", "runc")
    assert wants_agent(["build", ".", "builder"])


def test_an_agent_finds_its_modules_compiled_where_ours_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "pycache_prefix", None)
    assert agent.bytecode_options() == []
    monkeypatch.setattr(sys, "pycache_prefix", "/var/cache/py c")
    assert agent.bytecode_options() == ["-X", "pycache_prefix=/var/cache/py c"]


# Calls from every depth: somewhere on the way a chunk of frames ends, and each call across that
# point makes the kernel take away a page and give one back.
CALLS = """
import resource, sys
from ocis2i import __main__

def leaf():
    return 0

def deeper(depth):
    for _ in range(500):
        leaf()
    if depth:
        deeper(depth - 1)

def measure():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    deeper(400)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

if sys.argv[1] == "with-room":
    __main__.call_with_room(measure)
else:
    measure()
"""


def faults(how: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", CALLS, how],
        env={"PYTHONPATH": str(PROJECT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return int(done.stdout)


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="of CPython alone")
def test_no_depth_of_calls_keeps_the_kernel_busy() -> None:
    assert faults("with-room") < 400


def test_an_agent_that_ends_before_it_is_ready_leaves_no_channel_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def ends_at_once(
        theirs: socket.socket, search_path: str | None, through: str | None
    ) -> Process:
        theirs.close()
        return spawn(["true"], environment={"PATH": search_path or os.defpath})

    monkeypatch.setattr(agent, "_spawn", ends_at_once)
    starting = agent._Starting("single", os.environ.get("PATH"))
    with pytest.raises(IsolationError, match="ended before it was ready"):
        starting.ready()
    assert starting._channel.fileno() == -1
