"""Measures what each executor costs: a program that only ends, as assemble.

*run* is one container through an agent that is there already, *build* a whole `ocis2i build` from
the start of Python on, its builder unpacked in the store; both are medians. *times* compares the
runs with the fastest one. *memory* is the peak resident size of the largest process of a build:
Python's own, unless an executor is larger. Not for root.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter

from ocis2i.errors import Ocis2iError
from ocis2i.isolation.oci_runtime import MOUNT_TARGETS
from ocis2i.isolation.smallest import smallest_program
from ocis2i.rootfs import prepare
from ocis2i.runner import RunSpec, Stdio
from ocis2i.s2i import Identity
from ocis2i.session import session
from ocis2i.settings import Settings
from ocis2i.store import Store
from tests.fakes.images import SCRIPTS, Layer, make_layout
from tests.fakes.program import ARGV, PROJECT

EXECUTORS = ("runc", "crun", "builtin", "buildah")
ROUNDS = 15
BUILDS = 5
_KIB = 1024


@dataclass(frozen=True, slots=True)
class Cost:
    """What an executor takes, or the `reason` why it cannot be used here."""

    executor: str
    run_seconds: float = 0.0
    build_seconds: float = 0.0
    peak_bytes: int = 0
    times: float = 0.0
    reason: str = ""


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; its exit code."""
    parser = argparse.ArgumentParser(prog="isolation_overhead", description=__doc__)
    parser.add_argument("executors", nargs="*", metavar="EXECUTOR", default=[])
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"runs of each ({ROUNDS})")
    parser.add_argument("--builds", type=int, default=BUILDS, help=f"builds of each ({BUILDS})")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of a table")
    options = parser.parse_args(argv)
    if os.geteuid() == 0:
        parser.error("ocis2i builds as an ordinary user, and you are root")
    with tempfile.TemporaryDirectory(prefix="overhead-") as directory:
        costs = measure(
            Path(directory), options.executors or EXECUTORS, options.rounds, options.builds
        )
    costs = compared(costs)
    if options.json:
        document = {"rounds": options.rounds, "builds": options.builds}
        text = json.dumps(document | {"executors": [asdict(cost) for cost in costs]}, indent=2)
    else:
        text = table(costs)
    sys.stdout.write(text + "\n")
    return 0 if any(not cost.reason for cost in costs) else 1


def measure(directory: Path, executors: Sequence[str], rounds: int, builds: int) -> list[Cost]:
    """The cost of each, in a store of their own in `directory`."""
    environment = {**os.environ, "HOME": str(directory), "PYTHONPATH": str(PROJECT)}
    environment |= {"OCIS2I_ROOT": str(directory / "store"), "PYTHONDONTWRITEBYTECODE": "1"}
    builder, source = _builder(directory), directory / "source"
    source.mkdir()
    try:
        return [_cost(name, environment, builder, source, rounds, builds) for name in executors]
    finally:
        # What belongs to subordinate ids is not for us to remove.
        subprocess.run([*ARGV, "prune", "--all"], env=environment, capture_output=True, check=False)


def _cost(
    name: str, environment: Mapping[str, str], builder: str, source: Path, rounds: int, builds: int
) -> Cost:
    try:
        run_seconds = statistics.median(_runs(name, environment, rounds))
    except Ocis2iError as error:
        return Cost(name, reason=str(error))
    command = [*ARGV, "build", str(source), builder, "app:1", "--isolation", name, "--quiet"]
    measured = [_build(command, environment) for _ in range(builds + 1)][1:]
    seconds = statistics.median(seconds for seconds, _ in measured)
    return Cost(name, run_seconds, seconds, max(peak for _, peak in measured))


def _runs(name: str, environment: Mapping[str, str], rounds: int) -> list[float]:
    """Seconds of each run, the first one not counted, through one agent."""
    settings = Settings.from_environ(environment)
    with session(Store.open(settings.store_root), settings) as here:
        program = here.directory / "true"
        program.write_bytes(_program())
        rootfs = prepare(here.agent, here.directory, (), (), kind=here.rootfs)
        for target in MOUNT_TARGETS:
            rootfs.make_directory(target)
        rootfs.put_file(program, "/true", 0, 0, 0o755)
        rootfs.mount()
        runner = here.runner(name)
        spec = RunSpec(("/true",), ("PATH=/",), "/", Identity(0, 0))
        seconds = []
        for _ in range(rounds + 1):
            started = perf_counter()
            done = runner.run(rootfs, spec, Stdio(lambda *_: None))
            seconds.append(perf_counter() - started)
            assert done.exit_code == 0, f"{name}: exit code {done.exit_code}"
    return seconds[1:]


def _build(command: Sequence[str], environment: Mapping[str, str]) -> tuple[float, int]:
    """Seconds and peak bytes of a command that has to succeed."""
    started = perf_counter()
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    seconds = perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, f"exit code {process.returncode}: {' '.join(command)}"
    return seconds, usage.ru_maxrss * _KIB


def _program() -> bytes:
    program = smallest_program(os.uname().machine)
    assert program is not None, f"no smallest program for {os.uname().machine}"
    return program


def _builder(directory: Path) -> str:
    """A builder image with nothing in it but two programs that end at once."""
    layer = Layer()
    for path in ("etc", "proc", "dev", "sys", "tmp", "usr", "usr/libexec", SCRIPTS.lstrip("/")):
        layer.dir(path)
    for script in ("assemble", "run"):
        layer.file(f"{SCRIPTS.lstrip('/')}/{script}", _program(), mode=0o755)
    labels = {"io.openshift.s2i.scripts-url": f"image://{SCRIPTS}"}
    machine = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
    config = {"User": "1001", "Labels": labels}
    make_layout(directory / "builder", "b:1", [layer], config, platform=f"linux/{machine}")
    return f"oci:{directory}/builder:b:1"


def compared(costs: Sequence[Cost]) -> list[Cost]:
    """The costs with how many times as long as the fastest each one's run takes."""
    fastest = min((cost.run_seconds for cost in costs if not cost.reason), default=0.0)
    return [
        cost
        if cost.reason
        else Cost(
            cost.executor,
            cost.run_seconds,
            cost.build_seconds,
            cost.peak_bytes,
            round(cost.run_seconds / fastest, 2),
        )
        for cost in costs
    ]


def table(costs: Sequence[Cost]) -> str:
    """The costs for people, the fastest run first; those that cannot be used come last."""
    rows = [f"{'executor':10}{'run ms':>8}{'times':>8}{'build ms':>10}{'memory MiB':>12}"]
    rows += [
        f"{cost.executor:10}{cost.run_seconds * 1000:8.1f}{cost.times:8.1f}"
        f"{cost.build_seconds * 1000:10.0f}{cost.peak_bytes / _KIB**2:12.1f}"
        for cost in sorted(costs, key=lambda cost: cost.run_seconds)
        if not cost.reason
    ]
    return "\n".join(
        [*rows, *(f"{cost.executor:10}{cost.reason}" for cost in costs if cost.reason)]
    )
