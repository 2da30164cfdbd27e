"""The command that measures whole jobs: each of them runs, tiny, by the code of the real one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes.program import PROJECT
from tests.speed import JOBS

pytestmark = pytest.mark.skipif(os.geteuid() == 0, reason="ocis2i builds as an ordinary user")


def run(directory: Path, *words: str) -> list[dict[str, object]]:
    done = subprocess.run(
        [
            *(
                sys.executable,
                str(PROJECT / "benchmarks/run"),
                "--quick",
                "--rounds",
                "1",
                "--json",
            ),
            *("--directory", str(directory), *words),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(directory.iterdir()) == []
    found: list[dict[str, object]] = json.loads(done.stdout)["costs"]
    return found


# The builder of `flask` takes minutes: tests/e2e/test_package_managers.py has the same build. And
# `one-line` is `files` with another source.
def test_every_job_runs_with_ocis2i(tmp_path: Path) -> None:
    names = [job.name for job in JOBS if job.name not in ("flask", "trivial", "one-line")]
    costs = run(tmp_path, "--tools", "ocis2i", *names)
    assert [cost["job"] for cost in costs] == names
    for cost in costs:
        assert not cost["reason"]
        assert cost["times"] == 1.0
        assert float(str(cost["peak_bytes"])) > 20 << 20


def test_costs_of_more_and_more_files_are_plotted(tmp_path: Path) -> None:
    words = ("--files", "5,20", "--mib", "", "--rounds", "1", "--json", "--svg", tmp_path / "svg")
    (tmp_path / "work").mkdir()
    done = subprocess.run(
        [sys.executable, PROJECT / "benchmarks/flat", *words, "--directory", tmp_path / "work"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    costs = json.loads(done.stdout)["costs"]
    assert [(cost["series"], cost["count"]) for cost in costs] == [("files", 5), ("files", 20)]
    assert all(cost["cpu_seconds"] > 0 for cost in costs)
    assert (tmp_path / "svg").read_text().startswith("<svg")
    assert list((tmp_path / "work").iterdir()) == []


def test_rivals_do_the_same_job(tmp_path: Path) -> None:
    costs = run(tmp_path, "trivial", "--tools", "ocis2i,direct")
    assert [(cost["tool"], cost["reason"]) for cost in costs] == [
        ("ocis2i", ""),
        ("direct", ""),
    ]
