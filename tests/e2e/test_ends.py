"""The end of a build: what is done is done, whoever is not there any more to hear of it."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from ocis2i import session
from ocis2i.events import Notice
from ocis2i.store import BUILD_LOCK
from tests.fakes.bench import Bench, Maker, sh, warnings
from tests.fakes.program import ARGV, Done, Program
from tests.fakes.registry import FakeRegistry

# Files of another user, which nobody but an agent can remove.
ASSEMBLE = sh("mkdir -p /srv/d", "chown -R 5:5 /srv", "chmod 700 /srv", "echo built")


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    return [
        int(child)
        for task in Path(f"/proc/{pid}/task").iterdir()
        for child in (task / "children").read_text().split()
    ]


def test_a_finished_build_whose_agent_is_killed_during_the_push_has_succeeded(
    bench: Bench, make: Maker, registry: FakeRegistry
) -> None:
    killed: list[int] = []
    name = f"{registry.host}/team/app:1"
    builder = make(ASSEMBLE, user="0")

    def kill(location: str) -> str:
        # The base goes ahead while assemble runs: wait for what is sent of the finished image.
        if not killed and '"' + name + '"' in (bench.ocis2i.layout / "index.json").read_text():
            killed.extend(children(started.pid))
            for child in killed:
                os.kill(child, signal.SIGKILL)
        return location

    registry.rewrite_location = kill
    words = ("build", bench.source(), builder, name, "--push", "--no-tls-verify", "--json")
    started = bench.ocis2i.start(*words)
    out, err = started.communicate(timeout=60)
    done = Done(started.returncode, out, err)
    assert killed
    assert done.code == 0, done.err
    assert done.document["pushed"]
    assert warnings(done) == []
    assert list((bench.ocis2i.store / "builds").iterdir()) == []


def test_what_cannot_be_removed_after_a_build_is_a_warning_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[object] = []
    (tmp_path / BUILD_LOCK).touch()
    (tmp_path / "upper").mkdir()
    asked: list[list[Path]] = []

    def refuses(paths: list[Path], *, search_path: str | None) -> list[Path]:
        asked.append(paths)
        return paths

    monkeypatch.setattr(session, "remove_leftovers", refuses)
    session._clean_up(tmp_path, "the agent is gone", None, told.append)
    assert asked == [[tmp_path / "upper"]]
    said = f"files of the build are left in `{tmp_path}`: the agent is gone"
    assert told == [Notice("warning", f"{said}; `ocis2i prune` removes them")]


def test_who_reads_no_more_ends_any_verb_without_a_word(shared: Program, make: Maker) -> None:
    builder = make(sh("true"))
    for words in (
        ("build", "--help"),
        ("--help",),
        ("help", "build"),
        ("completion", "bash"),
        ("doctor",),
        ("ps", "-a"),
        ("images",),
        ("version",),
        ("explain", builder),
        ("lint", builder),
    ):
        reading, writing = os.pipe()
        os.close(reading)
        done = subprocess.run(
            [*ARGV, *words],
            env=dict(shared.environment),
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        os.close(writing)
        assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, ""), words


def test_the_list_of_verbs_to_nobody_ends_the_same_way(shared: Program) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        list(ARGV), env=dict(shared.environment), stdout=writing, stderr=writing, check=False
    )
    os.close(writing)
    assert done.returncode == 128 + signal.SIGPIPE
