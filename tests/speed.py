"""Measures whole jobs side by side: ocis2i, and what Debian has for them, in turn.

A job is what a user waits for, from a source directory to the image in a registry on this machine
unless its line says otherwise. *seconds* and *cpu s* are medians of all rounds, *times* compares
with ocis2i, *memory* is the peak of all processes of the tool together. `hand` is buildah by its
single commands (benchmarks/buildah_hand), `direct` the same with a commit straight to the registry.
`tar+gzip` and `tar+pigz` only pack the source; `alone` are the requests of a push, from a process
that runs already, so no memory or processor time is told. `push-far` is `push-small` with a
registry whose answers take 40 ms each. Not for root. docs/speed.md explains the results.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tests.bare_push import push_alone
from tests.fakes.docker_registry import docker_registry
from tests.fakes.fault_proxy import FaultProxy
from tests.fakes.images import Layer, LayoutImage, busybox_builder, fixture_image
from tests.fakes.program import ARGV, PROJECT
from tests.meter import Measured, measure, own_environment

ROUNDS = 3
# What the largest job may need: three rounds of three tools with 1 GiB each.
ROOM_BYTES = 16 << 30
# How long each answer of a registry far away takes.
FAR_SECONDS = 0.04
# The name, in the store, of what is pushed.
RESULT = "result:1"
_MIB = 1 << 20
_WORDS = "the quick brown fox jumps over a lazy dog and reads what it has written there ".split()


@dataclass(frozen=True, slots=True)
class Scale:
    """How large the jobs are."""

    files: int = 20_000
    mib: int = 1024
    builder_files: int = 50_000
    builder_mib: int = 1024
    base_mib: int = 256


QUICK = Scale(files=100, mib=3, builder_files=100, builder_mib=2, base_mib=2)


@dataclass(frozen=True, slots=True)
class Cost:
    """What a job took a tool; `times` is relative to ocis2i, `reason` why there is no number."""

    job: str
    tool: str
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_bytes: int = 0
    times: float = 0.0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Job:
    """`prepare` makes what it needs in the directory; `run` is one measured run of a tool."""

    name: str
    tools: tuple[str, ...]
    prepare: Callable[[Bench], None]
    run: Callable[[Bench, str, int], Measured]


@dataclass(frozen=True)
class Bench:
    """The directory of one job, with a registry beside it."""

    directory: Path
    registry: str
    scale: Scale
    tools: tuple[str, ...] = ()

    @property
    def source(self) -> Path:
        """The application."""
        return self.directory / "source"

    @property
    def builder(self) -> Path:
        """The layout of the builder."""
        return self.directory / "builder"

    @property
    def result(self) -> Path:
        """The layout of what is pushed."""
        return self.directory / "result"

    @property
    def in_registry(self) -> str:
        """The builder's name in the registry."""
        return f"{self.registry}/builder:1"

    def environment(self, store: str = "store", **more: str) -> dict[str, str]:
        """Of a tool, with a store of that name."""
        own = own_environment(self.directory, PROJECT)
        storage = str(self.directory / f"hand-{store}")
        own |= {"OCIS2I_ROOT": str(self.directory / store), "BUILDAH_HAND_STORAGE": storage}
        own |= {
            "TMPDIR": str(self.directory / "tmp"),
            "XDG_RUNTIME_DIR": str(self.directory / "run"),
        }
        return own | more

    def target(self, tool: str, number: int) -> str:
        """Where a run pushes to: nothing is there yet."""
        return f"{self.registry}/{tool.replace('+', '-')}-{number}/app:1"

    def skopeo(self, source: str, target: str) -> list[str]:
        """The command that copies an image."""
        flags = ("--insecure-policy", "--src-tls-verify=false", "--dest-tls-verify=false")
        return ["skopeo", "copy", "--quiet", *flags, source, target]

    def call(self, command: Sequence[str | Path], store: str = "store") -> None:
        """Something that is not measured."""
        measure(command, self.environment(store), cwd=self.directory)


# --- the tools ----------------------------------------------------------------------------------


def build(
    bench: Bench, tool: str, number: int, *, cold: bool = False, cache: str = "--no-cache"
) -> Measured:
    """A whole build and push; a `cold` one has a store of its own."""
    store = f"{tool}-{number}" if cold else "store"
    target = bench.target(tool, number)
    environment = bench.environment(store)
    match tool:
        case "ocis2i":
            command: list[str | Path] = [*ARGV, "build", bench.source, bench.in_registry, target]
            command += ["--push", "--tls-verify=false", "--quiet", "--copy", cache]
        case "hand" | "direct":
            command = [PROJECT / "benchmarks/buildah_hand", f"docker://{bench.in_registry}"]
            command += [bench.source, target]
            environment["BUILDAH_HAND_DIRECT"] = "yes" if tool == "direct" else ""
        case _:
            return _pack(bench, tool)
    return measure(command, environment, cwd=bench.directory)


def _pack(bench: Bench, tool: str) -> Measured:
    program = tool.partition("+")[2]
    command = f"tar -C {bench.source} -cf - . | {program} >{bench.directory}/packed"
    return measure(["sh", "-c", command], bench.environment())


def warm_up(bench: Bench) -> None:
    """Lets every tool have the builder in its store, and its own modules compiled."""
    if "ocis2i" in bench.tools:
        build(bench, "ocis2i", 99)
    if {"hand", "direct"} & set(bench.tools):
        build(bench, "hand", 99)


def cold_unpack(bench: Bench, tool: str, number: int) -> Measured:
    """Only the builder: from the registry to files that a container could have."""
    store = f"{tool}-{number}"
    environment = bench.environment(store)
    match tool:
        case "ocis2i":
            command = [*ARGV, "run", "--tls-verify=false", bench.in_registry, "true"]
        case "buildah":
            place = f"--root {bench.directory}/{store} --runroot {bench.directory}/run-{store}"
            words = f"buildah {place} --storage-driver overlay pull --quiet --tls-verify=false"
            command = [*words.split(), f"docker://{bench.in_registry}"]
        case _:
            layout = bench.directory / store
            copy = bench.skopeo(f"docker://{bench.in_registry}", f"oci:{layout}:1")
            unpack = f"umoci unpack --rootless --image {layout}:1 {layout}-bundle"
            command = ["sh", "-ec", f"{' '.join(copy)}; {unpack}"]
    return measure(command, environment)


def push_small(bench: Bench, tool: str, number: int, *, host: str = "") -> Measured:
    """A result whose base the repository has already, from each tool's own store, to `host`."""
    repository = f"{tool}-{number}-{'far' if host else 'near'}/app"
    base = f"docker://{bench.registry}/base:builder"
    bench.call(bench.skopeo(base, f"docker://{bench.registry}/{repository}:base"))
    host = host or bench.registry
    match tool:
        case "alone":
            return push_alone(LayoutImage(bench.result, "1"), host, repository, "1")
        case "ocis2i":
            flags = ("--tls-verify=false", "--quiet")
            command = [*ARGV, "push", RESULT, f"{host}/{repository}:1", *flags]
        case _:
            command = bench.skopeo(f"oci:{bench.result}:1", f"docker://{host}/{repository}:1")
    return measure(command, bench.environment())


def push_far(bench: Bench, tool: str, number: int) -> Measured:
    """The same, where each answer takes its time."""
    with FaultProxy(bench.registry) as proxy:
        proxy.delay_seconds = FAR_SECONDS
        return push_small(bench, tool, number, host=proxy.host)


# --- the jobs -----------------------------------------------------------------------------------


def _trivial(bench: Bench) -> None:
    bench.source.mkdir()
    (bench.source / "index.html").write_text("hello\n")


def _small_builder(bench: Bench) -> None:
    busybox_builder(bench.builder, "b:1")
    bench.call(bench.skopeo(f"oci:{bench.builder}:b:1", f"docker://{bench.in_registry}"))


def _prepare_trivial(bench: Bench) -> None:
    _trivial(bench)
    _small_builder(bench)
    warm_up(bench)


def _prepare_cold(bench: Bench) -> None:
    _trivial(bench)
    _small_builder(bench)
    if "ocis2i" in bench.tools:  # its modules are to be compiled, as those of a package are
        build(bench, "ocis2i", 99, cold=True)


def _prepare_flask(bench: Bench) -> None:
    shutil.copytree(PROJECT / "fixtures/apps/flask-hello", bench.source)
    fixture_image("python", bench.builder)
    bench.call(bench.skopeo(f"oci:{bench.builder}:latest", f"docker://{bench.in_registry}"))
    for tool in bench.tools[:2]:
        _flask(bench, tool, 99)


def _flask(bench: Bench, tool: str, number: int) -> Measured:
    environment = {**os.environ, **bench.environment(), "BUILDAH_HAND_PIP": "yes"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # installed modules are compiled
    environment |= {"HOME": os.environ.get("HOME", "/"), "BUILDAH_HAND_PYTHON": sys.executable}
    target = bench.target(tool, number)
    if tool == "ocis2i":
        command: list[str | Path] = [*ARGV, "build", bench.source, bench.in_registry, target]
        command += "--push --tls-verify=false --quiet --copy --no-cache --host-mirrors".split()
    else:
        command = [PROJECT / "benchmarks/buildah_hand", f"docker://{bench.in_registry}"]
        command += [bench.source, target]
        environment["BUILDAH_HAND_DIRECT"] = "yes" if tool == "direct" else ""
    return measure(command, environment, cwd=bench.directory)


def _many(bench: Bench) -> None:
    """Many small files of text in directories of a hundred."""
    noise = random.Random(1)
    for number in range(bench.scale.files):
        place = bench.source / f"d{number // 100}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"f{number}.txt").write_text(
            " ".join(noise.choices(_WORDS, k=noise.randint(1, 500)))
        )


def _prepare_many(bench: Bench) -> None:
    _many(bench)
    _small_builder(bench)
    warm_up(bench)


def _prepare_large(bench: Bench) -> None:
    bench.source.mkdir()
    noise = random.Random(2)
    text = " ".join(noise.choices(_WORDS, k=400_000)).encode()
    for number in range(bench.scale.mib // 2 or 1):
        (bench.source / f"random-{number}").write_bytes(os.urandom(_MIB))
        start = noise.randrange(len(text) // 2)
        (bench.source / f"text-{number}").write_bytes((text[start:] + text)[:_MIB])
    _small_builder(bench)
    warm_up(bench)


def _prepare_unchanged(bench: Bench) -> None:
    _prepare_trivial(bench)
    time.sleep(0.1)
    _unchanged(bench, "ocis2i", 0)


def _unchanged(bench: Bench, tool: str, number: int) -> Measured:
    return build(bench, tool, 0 if tool == "ocis2i" else number, cache="--reuse-within=24h")


def _prepare_line(bench: Bench) -> None:
    _prepare_many(bench)
    time.sleep(0.1)
    build(bench, "ocis2i", 98, cache="--reuse-within=24h")


def _line(bench: Bench, tool: str, number: int) -> Measured:
    with (bench.source / "d0/f0.txt").open("a") as file:
        file.write(f"{tool} {number}\n")
    return build(bench, tool, number, cache="--reuse-within=24h")


def _prepare_base(bench: Bench) -> None:
    _trivial(bench)
    large = Layer().file("data", os.urandom(bench.scale.base_mib * _MIB))
    busybox_builder(bench.builder, "b:1", more_layers=[large], compression="none")
    bench.call(bench.skopeo(f"oci:{bench.builder}:b:1", f"docker://{bench.registry}/base:builder"))
    name = f"{bench.registry}/base:builder"
    flags = ["--tls-verify=false", "--quiet", "-o", f"oci:{bench.result}:1"]
    bench.call([*ARGV, "build", bench.source, name, RESULT, *flags])
    push_small(bench, "ocis2i", 99)  # its modules are to be compiled, as those of a package are


def _prepare_builder(bench: Bench) -> None:
    """Some layers of files, half of their bytes noise."""
    layers = []
    each = max(bench.scale.builder_mib * _MIB // bench.scale.builder_files, 1)
    noise = random.Random(3)
    text = (" ".join(noise.choices(_WORDS, k=each // 3 + 1)) * 2).encode()
    count = bench.scale.builder_files // 5
    for number in range(5):
        layer = Layer()
        for one in range(count):
            data = noise.randbytes(each) if one % 2 else text[:each]
            layer.file(f"opt/l{number}/d{one // 100}/f{one}", data)
        layers.append(layer)
    busybox_builder(bench.builder, "b:1", more_layers=layers)
    if "ocis2i" in bench.tools:  # see `_prepare_cold`
        bench.call([*ARGV, "images"])
    bench.call(bench.skopeo(f"oci:{bench.builder}:b:1", f"docker://{bench.in_registry}"))


_BUILDS = ("ocis2i", "hand", "direct")
_PACKS = ("tar+gzip", "tar+pigz")
_PUSHES = ("ocis2i", "skopeo", "alone")
JOBS = (
    Job("trivial", _BUILDS, _prepare_trivial, build),
    Job("trivial-cold", _BUILDS, _prepare_cold, lambda *run: build(*run, cold=True)),
    Job("flask", _BUILDS, _prepare_flask, _flask),
    Job("files", (*_BUILDS, *_PACKS), _prepare_many, build),
    Job("large", (*_BUILDS, *_PACKS), _prepare_large, build),
    Job("unchanged", _BUILDS, _prepare_unchanged, _unchanged),
    Job("one-line", _BUILDS, _prepare_line, _line),
    Job("push-small", _PUSHES, _prepare_base, push_small),
    Job("push-far", _PUSHES, _prepare_base, push_far),
    Job("cold-builder", ("ocis2i", "buildah", "umoci"), _prepare_builder, cold_unpack),
)
# What a tool needs, where that is not a program of its own name.
_NEEDS = {
    "ocis2i": (),
    "hand": ("buildah", "runc"),
    "direct": ("buildah", "runc"),
    "tar+gzip": ("tar", "gzip"),
    "tar+pigz": ("tar", "pigz"),
    "umoci": ("umoci", "skopeo"),
    "alone": (),
}


# --- the command line ---------------------------------------------------------------------------


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; its exit code."""
    names = [job.name for job in JOBS]
    parser = argparse.ArgumentParser(prog="run", description=__doc__)
    parser.add_argument("jobs", nargs="*", metavar="JOB", help=", ".join(names))
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"rounds of each ({ROUNDS})")
    parser.add_argument("--quick", action="store_true", help="tiny jobs, to see that all works")
    parser.add_argument("--tools", help="only these, with commas between them")
    parser.add_argument("--directory", help="where to work, on the disk to be measured")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of a table")
    options = parser.parse_args(argv)
    if unknown := set(options.jobs) - set(names):
        parser.error(f"no job {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    if os.geteuid() == 0:
        parser.error("ocis2i builds as an ordinary user, and you are root")
    scale = QUICK if options.quick else Scale()
    wanted = options.tools.split(",") if options.tools else None
    chosen = [job for job in JOBS if job.name in (options.jobs or names)]
    costs: list[Cost] = []
    if options.directory:
        Path(options.directory).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="speed-", dir=options.directory) as directory:
        Path(directory).chmod(0o755)
        with Kept(least_bytes=0 if options.quick else ROOM_BYTES) as kept:
            for job in chosen:
                tools = [tool for tool in job.tools if wanted is None or tool in wanted]
                place = kept.new(Path(directory) / job.name)
                costs += compared(list(run_job(job, tools, options.rounds, scale, place)))
    document = {"rounds": options.rounds, "scale": asdict(scale), "machine": machine()}
    text = json.dumps(document | {"costs": [asdict(cost) for cost in costs]}, indent=2)
    sys.stdout.write((text if options.json else table(costs)) + "\n")
    return 1 if any(cost.tool == "ocis2i" and cost.reason for cost in costs) else 0


def machine() -> dict[str, object]:
    """Of which kind the numbers are: processors, and how busy they were with others."""
    return {
        "processors": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 2),
        "kernel": os.uname().release,
        "date": time.strftime("%Y-%m-%d"),
    }


class Kept:
    """The directories of all jobs, removed only at the end.

    Where much was deleted lately, ext4 may take ten times as long to make files: what a tool itself
    deletes counts for the tool, but the clean-up after a job is not to meet whoever comes next.
    Without room for another job all before it are removed, which is said.
    """

    def __init__(self, least_bytes: int) -> None:
        self._least_bytes = least_bytes
        self._places: list[Path] = []

    def __enter__(self) -> Kept:
        return self

    def __exit__(self, *exc: object) -> None:
        self._empty()

    def new(self, place: Path) -> Path:
        """Makes the directory of the next job."""
        if self._places and shutil.disk_usage(place.parent).free < self._least_bytes:
            sys.stderr.write("the disk has no room to keep all jobs: times may be too long\n")
            self._empty()
            os.sync()
        place.mkdir()
        self._places.append(place)
        return place

    def _empty(self) -> None:
        while self._places:
            remove(self._places.pop())


def run_job(
    job: Job, tools: Sequence[str], rounds: int, scale: Scale, place: Path
) -> Iterator[Cost]:
    """All rounds of a job; the tools take turns, so that a busy moment meets all of them."""
    usable = []
    for tool in tools:
        missing = [one for one in _NEEDS.get(tool, (tool,)) if not _is_there(one)]
        if missing:
            yield Cost(job.name, tool, reason=f"{', '.join(missing)} is not installed")
        else:
            usable.append(tool)
    with ExitStack() as stack:
        for name in ("tmp", "run"):
            (place / name).mkdir(mode=0o700)
        server = stack.enter_context(docker_registry(place / "registry"))
        bench = Bench(place, server.host, scale, tuple(usable))
        try:
            job.prepare(bench)
        except (RuntimeError, AssertionError) as error:
            why = " ".join(str(error).split())[:300]
            yield from (Cost(job.name, tool, reason=why) for tool in usable)
            return
        os.sync()
        found: dict[str, list[Measured]] = {tool: [] for tool in usable}
        failed: dict[str, str] = {}
        for number in range(rounds):
            for tool in (one for one in usable if one not in failed):
                try:
                    found[tool].append(job.run(bench, tool, number))
                except RuntimeError as error:
                    failed[tool] = " ".join(str(error).split())[:300]
        for tool, runs in found.items():
            why = failed.get(tool, "")
            yield Cost(job.name, tool, reason=why) if why else median(job.name, tool, runs)


def _is_there(program: str) -> bool:
    return shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is not None


def remove(place: Path) -> None:
    """Empties the stores by who knows how: their files belong to subordinate ids."""
    for store in sorted(place.iterdir()):
        environment = {**own_environment(place, PROJECT), "OCIS2I_ROOT": str(store)}
        if (store / "store.json").exists():
            subprocess.run(
                [*ARGV, "prune", "--all"], env=environment, capture_output=True, check=False
            )
    shutil.rmtree(place, ignore_errors=True)
    if place.exists():
        subprocess.run(["buildah", "unshare", "rm", "-rf", place], capture_output=True, check=False)


def median(job: str, tool: str, runs: Sequence[Measured]) -> Cost:
    """One cost of several runs; of the memory the peak."""
    return Cost(
        job,
        tool,
        statistics.median(run.seconds for run in runs),
        statistics.median(run.cpu_seconds for run in runs),
        max(run.peak_bytes for run in runs),
    )


def compared(costs: Sequence[Cost]) -> list[Cost]:
    """The costs of one job, with how many times as long as ocis2i each tool takes."""
    own = [cost.seconds for cost in costs if cost.tool == "ocis2i" and not cost.reason]
    return [
        replace(cost, times=round(cost.seconds / own[0], 2)) if own and not cost.reason else cost
        for cost in costs
    ]


def table(costs: Sequence[Cost]) -> str:
    """The costs for people."""
    rows = [f"{'job':14}{'tool':10}{'seconds':>9}{'times':>8}{'cpu s':>9}{'memory MiB':>12}"]
    for cost in costs:
        numbers = (
            f"{cost.seconds:9.2f}{cost.times:8.2f}{cost.cpu_seconds:9.2f}"
            f"{cost.peak_bytes / _MIB:12.1f}"
        )
        rows.append(f"{cost.job:14}{cost.tool:10}{f'  {cost.reason}' if cost.reason else numbers}")
    return "\n".join(rows)
