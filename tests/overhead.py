"""Measures what each executor costs: a program that only ends, as assemble.

*run* is one container through an agent that is there already, *build* a whole `ocis2i build` from
the start of Python on, its builder unpacked in the store; both are medians. *times* compares with
the fastest one. *memory* is the peak of all processes of a build together. Not for root.

`single` is builtin with one user id, `copy` builtin with `--rootfs copy`; `chroot` and `in-place`
are in a container of the builder image, `chroot` as root of a user namespace whose manager makes
the devices. Of these four there is no *run* to tell apart from the rest.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter

from ocis2i.errors import IsolationError, Ocis2iError
from ocis2i.isolation.oci_runtime import MOUNT_TARGETS
from ocis2i.isolation.smallest import smallest_program
from ocis2i.rootfs import prepare
from ocis2i.runner import RunSpec, Stdio
from ocis2i.s2i import Identity
from ocis2i.session import session
from ocis2i.settings import Settings
from ocis2i.store import Store
from tests.fakes.hosts import ARBITRARY, DOCKER_CAPABILITIES, ROOT, Host, fresh
from tests.fakes.images import SCRIPTS, Layer, make_layout
from tests.fakes.program import ARGV, PROJECT
from tests.meter import Measured, measure_runs

EXECUTORS = ("runc", "crun", "builtin", "buildah", "single", "copy", "chroot", "in-place")
ALONE = EXECUTORS[4:]
FLAGS = {"single": ("builtin",), "copy": ("builtin", "--rootfs", "copy")}
ROUNDS = 15
BUILDS = 5
FILES = 5000
_FILE = 4096
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Cost:
    """What an executor takes, or the `reason` why it cannot be used here."""

    executor: str
    run_seconds: float | None = None
    build_seconds: float = 0.0
    peak_bytes: int = 0
    times: float | None = None
    build_times: float = 0.0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Bench:
    """A store of its own in `directory`, and how often each thing is done."""

    directory: Path
    rounds: int
    builds: int
    files: int

    @property
    def environment(self) -> dict[str, str]:
        """That of the builds."""
        made = {"HOME": str(self.directory), "PYTHONPATH": str(PROJECT)}
        made |= {"OCIS2I_ROOT": str(self.directory / "store"), "PYTHONDONTWRITEBYTECODE": "1"}
        return {**os.environ, **made}


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; its exit code."""
    parser = argparse.ArgumentParser(prog="isolation_overhead", description=__doc__)
    parser.add_argument("executors", nargs="*", metavar="EXECUTOR", default=[])
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"runs of each ({ROUNDS})")
    parser.add_argument("--builds", type=int, default=BUILDS, help=f"builds of each ({BUILDS})")
    parser.add_argument("--files", type=int, default=FILES, help=f"in the builder ({FILES})")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of a table")
    options = parser.parse_args(argv)
    if os.geteuid() == 0:
        parser.error("ocis2i builds as an ordinary user, and you are root")
    with tempfile.TemporaryDirectory(prefix="overhead-") as directory:
        bench = Bench(Path(directory), options.rounds, options.builds, options.files)
        costs = measure(bench, options.executors or EXECUTORS)
    costs = compared(costs)
    if options.json:
        document = {"rounds": options.rounds, "builds": options.builds, "files": options.files}
        text = json.dumps(document | {"executors": [asdict(cost) for cost in costs]}, indent=2)
    else:
        text = table(costs)
    sys.stdout.write(text + "\n")
    return 0 if any(not cost.reason for cost in costs) else 1


def measure(bench: Bench, executors: Sequence[str]) -> list[Cost]:
    """The cost of each."""
    _make_builder(bench)
    (bench.directory / "source").mkdir()
    # For whoever the caller is in a container.
    bench.directory.chmod(0o755)
    try:
        return [_cost(name, bench) for name in executors]
    finally:
        # What belongs to subordinate ids is not for us to remove.
        prune = [*ARGV, "prune", "--all"]
        subprocess.run(prune, env=bench.environment, capture_output=True, check=False)


def _cost(name: str, bench: Bench) -> Cost:
    try:
        run_seconds = None if name in ALONE else statistics.median(_runs(name, bench))
        measured = _builds(name, bench)
    except Ocis2iError as error:
        return Cost(name, reason=str(error))
    seconds = statistics.median(run.seconds for run in measured)
    return Cost(name, run_seconds, seconds, max(run.peak_bytes for run in measured))


def _host(name: str, bench: Bench) -> Host:
    """Where an executor is to be had."""
    container = Host(
        ids="container",
        image=(str(bench.directory / "builder"), "b:1"),
        shared=(str(bench.directory),),
        mounts=(fresh("tmpfs", "/var/tmp", options="mode=1777"),),
    )
    match name:
        case "single":
            return Host(no_new_privs=True)
        case "chroot":
            rights = tuple(DOCKER_CAPABILITIES)
            return replace(
                container, user=ROOT, capabilities=rights, devices=True, filter="namespaces"
            )
        case "in-place":
            return replace(container, user=ARBITRARY, no_new_privs=True, filter="docker")
        case _:
            return Host()


def _builds(name: str, bench: Bench) -> list[Measured]:
    """What each build took, the first one not counted."""
    if name != "in-place":
        return _timed(name, bench, bench.builds + 1)[1:]
    # Each of them takes a container of its own.
    return [one for _ in range(bench.builds + 1) for one in _timed(name, bench, 1)][1:]


def _timed(name: str, bench: Bench, count: int) -> list[Measured]:
    command = [*ARGV]
    command += ["build", str(bench.directory / "source"), f"oci:{bench.directory}/builder:b:1"]
    command += ["app:1", "--quiet", "--isolation", *FLAGS.get(name, (name,))]
    # Where the caller of a container may write; that of `chroot` may nowhere else.
    stores = {"chroot": "/var/tmp/store", "in-place": str(bench.directory / "in-place")}
    store = {"OCIS2I_ROOT": stores[name]} if name in stores else {}
    launcher = _host(name, bench).launcher
    try:
        return measure_runs(command, {**bench.environment, **store}, count, inside=launcher)
    except RuntimeError as error:
        words = " ".join(str(error).split())
        raise IsolationError(f"no build by `{name}`: {words}") from error


def _runs(name: str, bench: Bench) -> list[float]:
    """Seconds of each run, the first one not counted, through one agent."""
    settings = Settings.from_environ(bench.environment)
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
        for _ in range(bench.rounds + 1):
            started = perf_counter()
            done = runner.run(rootfs, spec, Stdio(lambda *_: None))
            seconds.append(perf_counter() - started)
            assert done.exit_code == 0, f"{name}: exit code {done.exit_code}"
    return seconds[1:]


def _program() -> bytes:
    program = smallest_program(os.uname().machine)
    assert program is not None, f"no smallest program for {os.uname().machine}"
    return program


def _make_builder(bench: Bench) -> None:
    """A builder image with two programs that end at once, and files that nobody reads."""
    layer = Layer()
    for path in "etc proc dev sys var var/tmp usr usr/libexec data".split():
        layer.dir(path)
    layer.dir("tmp", mode=0o1777)
    layer.dir(SCRIPTS.lstrip("/"))
    for number in range(bench.files):
        layer.file(f"data/{number}", b"x" * _FILE)
    for script in ("assemble", "run"):
        layer.file(f"{SCRIPTS.lstrip('/')}/{script}", _program(), mode=0o755)
    labels = {"io.openshift.s2i.scripts-url": f"image://{SCRIPTS}"}
    machine = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
    config = {"User": "1001", "Labels": labels}
    layout = bench.directory / "builder"
    make_layout(layout, "b:1", [layer], config, platform=f"linux/{machine}")


def compared(costs: Sequence[Cost]) -> list[Cost]:
    """The costs with how many times as long as the fastest each one's run and build take."""
    runs = [cost.run_seconds for cost in costs if cost.run_seconds]
    builds = [cost.build_seconds for cost in costs if not cost.reason]
    return [
        cost
        if cost.reason
        else replace(
            cost,
            times=round(cost.run_seconds / min(runs), 2) if cost.run_seconds else None,
            build_times=round(cost.build_seconds / min(builds), 2),
        )
        for cost in costs
    ]


def table(costs: Sequence[Cost]) -> str:
    """The costs for people, the fastest build first; those that cannot be used come last."""
    rows = [
        f"{'executor':10}{'run ms':>8}{'times':>8}{'build ms':>10}{'times':>8}{'memory MiB':>12}"
    ]
    rows += [
        f"{cost.executor:10}{_run(cost)}{cost.build_seconds * 1000:10.0f}{cost.build_times:8.1f}"
        f"{cost.peak_bytes / _MIB:12.1f}"
        for cost in sorted(costs, key=lambda cost: cost.build_seconds)
        if not cost.reason
    ]
    return "\n".join(
        [*rows, *(f"{cost.executor:10}{cost.reason}" for cost in costs if cost.reason)]
    )


def _run(cost: Cost) -> str:
    if cost.run_seconds is None:
        return f"{'-':>8}{'-':>8}"
    return f"{cost.run_seconds * 1000:8.1f}{cost.times:8.1f}"
