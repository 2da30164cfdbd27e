"""A file of 1 GiB goes through every stage, and no process of ours needs 150 MiB for it."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.fakes.docker_registry import docker_registry, registry_program
from tests.fakes.images import busybox_builder
from tests.fakes.processes import below
from tests.fakes.program import Program, program

GIBIBYTE = 1 << 30
LIMIT_KILOBYTES = 150 << 10
FREE_BYTES_NEEDED = 6 << 30

ASSEMBLE = '#!/bin/sh\nset -e\nmv /tmp/src/* "$HOME/"\n'

# Starts a program and writes its greatest memory to the file named first, in kilobytes. In a
# process of its own: what a child is forked from counts for its `ru_maxrss` too, and pytest is big.
_MEASURE = """
import os, sys
pid = os.posix_spawn(sys.argv[2], sys.argv[2:], os.environ)
_, status, usage = os.wait4(pid, 0)
with open(sys.argv[1], "w") as file:
    file.write(str(usage.ru_maxrss))
sys.exit(os.waitstatus_to_exitcode(status))
"""


@dataclass
class Watch:
    """Looks at every process below one, again and again: its greatest memory so far."""

    pid: int
    peaks: dict[str, int] = field(default_factory=dict)

    def look(self) -> None:
        """Takes the peaks of all that are there now."""
        for pid in below(self.pid):
            with contextlib.suppress(OSError):
                status = Path(f"/proc/{pid}/status").read_text()
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                name = f"{pid} {b' '.join(words).decode(errors='replace')[:200]}"
                # A process that is about to end has no memory any more, and no such line.
                for line in status.splitlines():
                    if line.startswith("VmHWM:"):
                        self.peaks[name] = max(self.peaks.get(name, 0), int(line.split()[1]))

    def until(self, done: threading.Event) -> None:
        """Looks until it is done. The peak is kept by the kernel: seldom is often enough."""
        while not done.wait(0.03):
            self.look()


def measured(ocis2i: Program, *arguments: str | Path) -> tuple[dict[str, int], int]:
    """Runs a command line; the peaks of all its processes, and the one that the kernel counted."""
    result = ocis2i.store.parent / "maxrss"
    command = [sys.executable, "-m", "ocis2i", *map(str, arguments)]
    with subprocess.Popen(
        [sys.executable, "-S", "-c", _MEASURE, str(result), *command],
        env=dict(ocis2i.environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        watch, done = Watch(process.pid), threading.Event()
        thread = threading.Thread(target=watch.until, args=(done,))
        thread.start()
        try:
            out, _ = process.communicate(timeout=570)
        finally:
            done.set()
            thread.join()
    assert process.returncode == 0, out
    return watch.peaks, int(result.read_text())


def check(measurement: tuple[dict[str, int], int]) -> None:
    """No process was above the limit, and the agent was among those that were looked at."""
    peaks, counted = measurement
    too_big = {name: peak for name, peak in peaks.items() if peak > LIMIT_KILOBYTES}
    assert not too_big
    assert counted <= LIMIT_KILOBYTES
    assert sum("agent/__main__.py" in name for name in peaks) >= 2


@pytest.fixture
def big_source(tmp_path: Path) -> Iterator[Path]:
    """A directory with a file of 1 GiB: mostly a hole, here and there what does not compress."""
    free = shutil.disk_usage(tmp_path).free
    if free < FREE_BYTES_NEEDED:
        pytest.skip(f"only {free >> 20} MiB are free in {tmp_path}, the test needs 6 GiB")
    directory = tmp_path / "big"
    directory.mkdir()
    chance = random.Random(7)
    with (directory / "file").open("wb") as file:
        file.truncate(GIBIBYTE)
        for number in range(48):
            file.seek(number * (GIBIBYTE // 48))
            file.write(chance.randbytes(1 << 20))
    yield directory
    shutil.rmtree(directory)


@pytest.mark.sandbox
@pytest.mark.registry
def test_a_gibibyte_goes_through_in_little_memory(
    ocis2i: Program, tmp_path: Path, big_source: Path
) -> None:
    if registry_program() is None:
        pytest.skip("no registry program on PATH")
    busybox_builder(tmp_path / "builder", "b:1", scripts={"assemble": ASSEMBLE})
    archive = tmp_path / "app.tar"
    with docker_registry(tmp_path / "registry") as running:
        name = f"{running.host}/app:1"
        check(
            measured(
                *(ocis2i, "build", "--copy", big_source, f"oci:{tmp_path}/builder:b:1", name),
                *("--push", "-o", f"oci-archive:{archive}"),
            )
        )
        assert archive.stat().st_size > 48 << 20
        archive.unlink()
        # The first store is not needed any more, and the disk may not have room for both.
        ocis2i.ok("prune", "--all")
        (tmp_path / "other").mkdir()
        with program(tmp_path / "other") as other:
            check(measured(other, "run", name, "test", "-s", "file"))
            size = other.ok("run", name, "stat", "-c", "%s", "file")
            assert int(size.out) == GIBIBYTE
    shutil.rmtree(tmp_path / "registry")
    assert os.listdir(ocis2i.store / "tmp") == []
