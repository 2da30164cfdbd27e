"""The numbers that `benchmarks/run` makes of what it measured."""

from __future__ import annotations

import sys

import pytest

from tests.meter import Measured, measure
from tests.speed import Cost, compared, main, median, table

PYTHON = {"PATH": "/usr/bin:/bin"}


def test_median_of_seconds_and_peak_of_memory() -> None:
    runs = [Measured(3.0, 1.0, 5), Measured(1.0, 2.0, 9), Measured(2.0, 3.0, 7)]
    assert median("job", "tool", runs) == Cost("job", "tool", 2.0, 2.0, 9)


def test_tools_are_compared_with_ocis2i() -> None:
    costs = compared(
        [Cost("j", "ocis2i", 2.0), Cost("j", "hand", 7.0), Cost("j", "x", reason="no")]
    )
    assert [cost.times for cost in costs] == [1.0, 3.5, 0.0]
    assert table(costs).splitlines()[2].split() == "j hand 7.00 3.50 0.00 0.0".split()
    assert table(costs).splitlines()[3].split() == "j x no".split()
    assert compared([Cost("j", "hand", 7.0)])[0].times == 0.0


def test_memory_is_that_of_all_processes() -> None:
    hungry = "import time; x = bytearray(30 << 20); time.sleep(0.3)"
    start = "import subprocess, sys; p = [subprocess.Popen([sys.executable, '-c', sys.argv[1]])"
    both = measure(
        [sys.executable, "-c", f"{start} for _ in '12']; [one.wait() for one in p]", hungry], PYTHON
    )
    assert 60 << 20 < both.peak_bytes < 150 << 20
    assert both.cpu_seconds > 0
    assert both.seconds >= 0.3


def test_a_command_that_fails_says_why() -> None:
    with pytest.raises(RuntimeError, match="7: oh no"):
        measure(["sh", "-c", "echo oh no >&2; exit 7"], PYTHON)


def test_an_unknown_job_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["nothing"])
    assert "there are trivial" in capsys.readouterr().err
