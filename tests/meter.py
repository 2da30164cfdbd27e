"""Measures one command: time, processor time, and memory of all its processes together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# Takes a number of runs and a command; prints seconds, processor seconds and bytes of each run.
# Small itself: what a process was before exec counts as its memory, too. Memory is the sum over the
# tree of the proportional sizes (shared pages count once), or of the resident ones where the
# kernel does not show those; the largest process alone is the least of it. It is looked at every
# 20 ms, and after two seconds every 100 ms: a look takes processor time from what is measured.
METER = """\
import json, os, signal, sys, threading, time

def children(pid):
    found = []
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children") as file:
                found += file.read().split()
    except OSError:
        pass
    return found

def size(pid):
    try:
        with open(f"/proc/{pid}/smaps_rollup") as file:
            for line in file:
                if line.startswith("Pss:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        with open(f"/proc/{pid}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")
    except (OSError, IndexError):
        return 0

def watch(root, over):
    global peak
    looks = 0
    while not over.wait(0.02 if looks < 100 else 0.1):
        looks += 1
        total, todo = 0, [root]
        while todo:
            pid = todo.pop()
            total += size(pid)
            todo += children(pid)
        peak = max(peak, total)

runs = []
for _ in range(int(sys.argv[1])):
    peak, over = 0, threading.Event()
    started = time.perf_counter()
    pid = os.posix_spawnp(sys.argv[2], sys.argv[2:], os.environ)
    watching = threading.Thread(target=watch, args=(pid, over))
    watching.start()
    _, status, usage = os.wait4(pid, 0)
    seconds = time.perf_counter() - started
    over.set()
    watching.join()
    if status:
        sys.exit(os.waitstatus_to_exitcode(status) & 255)
    runs.append([seconds, usage.ru_utime + usage.ru_stime, max(peak, usage.ru_maxrss * 1024)])
print(json.dumps(runs))
"""


@dataclass(frozen=True, slots=True)
class Measured:
    """What a command took; `peak_bytes` is the memory of all its processes together."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int


def measure(
    command: Sequence[str | Path], environment: Mapping[str, str], *, cwd: Path | None = None
) -> Measured:
    """Runs a command that has to succeed; raises `RuntimeError` with what it said."""
    (run,) = measure_runs(command, environment, cwd=cwd)
    return run


def measure_runs(
    command: Sequence[str | Path],
    environment: Mapping[str, str],
    count: int = 1,
    *,
    inside: Sequence[str] = (),
    cwd: Path | None = None,
) -> list[Measured]:
    """The same, several times one after the other, `inside` of what a launcher makes.

    The start of the launcher is not counted.
    """
    done = subprocess.run(
        [*inside, sys.executable, "-ISc", METER, str(count), *map(str, command)],
        env=dict(environment),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        said = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise RuntimeError(f"`{' '.join(map(str, command[:6]))}`: {done.returncode}: {said}")
    return [Measured(*run) for run in json.loads(done.stdout.splitlines()[-1])]


def own_environment(directory: Path, project: Path) -> dict[str, str]:
    """That of programs under measurement: a home of their own, modules compiled as if installed.

    Those are beside the `directory`, for all jobs.
    """
    return {
        "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin",
        "HOME": str(directory),
        "LC_ALL": "C.UTF-8",
        "PYTHONPATH": str(project),
        "PYTHONPYCACHEPREFIX": str(directory.parent / "pyc"),
    }
