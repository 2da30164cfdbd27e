"""Measures whether the cost of a build grows evenly: by number of files, and by bytes.

Each point is one whole build and push, builder in the store, as benchmarks/run does it. *cpu s* and
*seconds* are those of the build, *each* is the processor time that one more file (in microseconds)
or one more MiB (in milliseconds) takes: the build without any is taken off. Of short builds they
are medians. The files are text of
200 bytes; of the bytes three quarters are holes in the source, as what the disk has to hold is no
part of the question. Not for root. docs/speed.md has the result.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.chart import Panel, Point, chart
from tests.fakes.docker_registry import docker_registry
from tests.fakes.images import busybox_builder
from tests.fakes.program import ARGV
from tests.meter import Measured
from tests.speed import Bench, Scale, build, machine, median, remove

_MIB = 1 << 20
FILES = (1_000, 3_000, 10_000, 30_000, 100_000, 200_000)
MIB = (1, 16, 128, 1024, 4096, 8192)
SEVERAL, SHORT_SECONDS = 5, 1.5
# How much of each stretch of a large file is data.
_STRETCH, _DATA = 4 * _MIB, _MIB


@dataclass(frozen=True, slots=True)
class Cost:
    """What a build of so many files, or of so many MiB, took; `each` in seconds for one of them."""

    series: str
    count: int
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    each: float = 0.0


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; its exit code."""
    parser = argparse.ArgumentParser(prog="flat", description=__doc__)
    parser.add_argument("--files", type=_numbers, default=FILES, help="how many, with commas")
    parser.add_argument("--mib", type=_numbers, default=MIB, help="how many, with commas")
    parser.add_argument("--rounds", type=int, default=SEVERAL, help=f"of short ones ({SEVERAL})")
    parser.add_argument("--directory", help="where to work, on the disk to be measured")
    parser.add_argument("--svg", type=Path, help="where to write the plot")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of a table")
    options = parser.parse_args(argv)
    if os.geteuid() == 0:
        parser.error("ocis2i builds as an ordinary user, and you are root")
    costs = []
    with tempfile.TemporaryDirectory(prefix="flat-", dir=options.directory) as directory:
        Path(directory).chmod(0o755)
        for series, counts, fill in (
            ("files", options.files, many_files),
            ("MiB", options.mib, large_file),
        ):
            if counts:
                costs += measured(series, counts, fill, Path(directory), options.rounds)
    if options.svg:
        options.svg.write_text(plot(costs))
    document = {"machine": machine(), "costs": [asdict(cost) for cost in costs]}
    sys.stdout.write((json.dumps(document, indent=2) if options.json else table(costs)) + "\n")
    return 0


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(sorted(int(word) for word in text.split(",") if word))


def measured(
    series: str,
    counts: Sequence[int],
    fill: Callable[[Path, int], None],
    directory: Path,
    rounds: int,
) -> list[Cost]:
    """One build of each size, the smallest first; none at all is measured to be taken off."""
    place = directory / series
    place.mkdir()
    for name in ("tmp", "run"):
        (place / name).mkdir(mode=0o700)
    costs = []
    try:
        with docker_registry(place / "registry") as server:
            bench = Bench(place, server.host, Scale(), ("ocis2i",))
            busybox_builder(bench.builder, "b:1", scripts={"assemble": "#!/bin/sh\n"})
            bench.call(bench.skopeo(f"oci:{bench.builder}:b:1", f"docker://{bench.in_registry}"))
            none = _one(bench, series, 0, fill, 0, 1)  # the builder is unpacked by this one
            none = _one(bench, series, 0, fill, 1, rounds)
            for number, count in enumerate(counts, 2):
                costs.append(_one(bench, series, count, fill, number, rounds))
                sys.stderr.write(f"{series} {count}: {costs[-1].cpu_seconds:.2f} s\n")
    finally:
        remove(place)
    return per_each(costs, none)


def _one(
    bench: Bench,
    series: str,
    count: int,
    fill: Callable[[Path, int], None],
    number: int,
    rounds: int,
) -> Cost:
    bench.source.mkdir()
    fill(bench.source, count)
    os.sync()
    runs: list[Measured] = []
    try:
        # Of short builds several, and the median: what is looked for is smaller than their noise.
        while len(runs) < rounds and (not runs or runs[0].cpu_seconds < SHORT_SECONDS):
            runs.append(build(bench, "ocis2i", number))
    finally:
        # The disk has room for one of them: the source, the image and what was pushed go at once.
        shutil.rmtree(bench.source)
        subprocess.run(
            [*ARGV, "rm", bench.target("ocis2i", number)],
            env=bench.environment(),
            capture_output=True,
            check=False,
        )
        subprocess.run([*ARGV, "prune"], env=bench.environment(), capture_output=True, check=False)
        shutil.rmtree(bench.directory / "registry/docker/registry/v2/blobs", ignore_errors=True)
    whole = median(series, "ocis2i", runs)
    return Cost(series, count, whole.seconds, whole.cpu_seconds, whole.peak_bytes)


def many_files(source: Path, count: int) -> None:
    """Small files of text, a hundred in a directory, a hundred of these in another."""
    noise = random.Random(1)
    for number in range(count):
        place = source / f"d{number // 10_000}" / f"d{number // 100 % 100}"
        if number % 100 == 0:
            place.mkdir(parents=True, exist_ok=True)
        (place / f"f{number}.txt").write_text(f"{noise.getrandbits(64)} " * 10)


def large_file(source: Path, mib: int) -> None:
    """Files of up to 1 GiB; what is data in them is half noise and half text."""
    noise = random.Random(2)
    text = (
        f"{noise.getrandbits(64)} the quick brown fox jumps over a lazy dog\n" * 10_000
    ).encode()
    data = noise.randbytes(_DATA // 2) + text[: _DATA // 2]
    for start in range(0, mib, 1024):
        size = min(mib - start, 1024) * _MIB
        with (source / f"data-{start}").open("wb") as file:
            for at in range(0, size, _STRETCH):
                file.seek(at)
                file.write(data[: min(_DATA, size - at)])
            file.truncate(size)


def per_each(costs: Sequence[Cost], none: Cost) -> list[Cost]:
    """The costs with what one more file or MiB takes of processor time."""
    return [
        Cost(
            cost.series,
            cost.count,
            cost.seconds,
            cost.cpu_seconds,
            cost.peak_bytes,
            max(cost.cpu_seconds - none.cpu_seconds, 0.0) / cost.count,
        )
        for cost in costs
    ]


def table(costs: Sequence[Cost]) -> str:
    """The costs for people."""
    rows = [f"{'':7}{'count':>9}{'seconds':>10}{'cpu s':>9}{'each':>11}{'memory MiB':>12}"]
    for cost in costs:
        number, unit = _each(cost)
        rows.append(
            f"{cost.series:7}{cost.count:9}{cost.seconds:10.2f}{cost.cpu_seconds:9.2f}"
            f"{number:8.1f} {unit}{cost.peak_bytes / _MIB:12.1f}"
        )
    return "\n".join(rows)


def _each(cost: Cost) -> tuple[float, str]:
    return (cost.each * 1e6, "µs") if cost.series == "files" else (cost.each * 1e3, "ms")


def _short(cost: Cost) -> str:
    """The number of files or MiB, in the room that there is below an axis."""
    step, units = (1000, ("", "k")) if cost.series == "files" else (1024, (" M", " G"))
    large = cost.count >= step
    return f"{cost.count / step if large else cost.count:g}{units[large]}"


def plot(costs: Sequence[Cost]) -> str:
    """The costs as an SVG: for each series what one more takes, and the memory."""
    panels = []
    for series, what, unit in (
        ("files", "processor time per file, by number of files", "µs"),
        ("MiB", "processor time per MiB, by size of the source", "ms"),
    ):
        row = [cost for cost in costs if cost.series == series]
        times = [Point(cost.count, _each(cost)[0], _short(cost)) for cost in row]
        memory = [Point(cost.count, cost.peak_bytes / _MIB, _short(cost)) for cost in row]
        if row:
            by = what.partition(", ")[2]
            panels.append(Panel(what, unit, times))
            panels.append(Panel(f"peak memory of all processes, {by}", "MiB", memory))
    return chart("What one more file or MiB costs a build", panels)
