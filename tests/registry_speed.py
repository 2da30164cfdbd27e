"""Measures what pushes and pulls take, each tool with a registry of its own on this machine.

*large* is one layer of incompressible bytes, straight to the registry. *small* are 24 little layers
through a proxy that lets every request wait, as a registry far away does; *again* is their second
push, *mounted* their push to another repository of the same registry. All are medians, from the
start of the program on; *times* compares the seconds with the fastest tool's, *memory* is the peak
of all its processes together, *requests* are those that the proxy saw. skopeo copies from and to an
OCI layout; buildah is left out: it packs and unpacks the layers, too. Not for root.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from tests.fakes.docker_registry import docker_registry
from tests.fakes.fault_proxy import FaultProxy
from tests.fakes.images import LayoutImage, make_layout
from tests.fakes.program import ARGV, PROJECT
from tests.fakes.seeds import TAG, plant_layout, random_layer
from tests.meter import measure

TOOLS = ("ocis2i", "skopeo")
ROUNDS = 3
SIZE_MIB = 1024
LAYERS = 24
LAYER_BYTES = 50_000
DELAY_SECONDS = 0.04
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Cost:
    """What a task took a tool; `requests` is 0 where nobody counted them."""

    task: str
    tool: str
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    requests: int = 0
    times: float = 0.0


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; its exit code."""
    parser = argparse.ArgumentParser(prog="registry", description=__doc__)
    parser.add_argument("tools", nargs="*", metavar="TOOL", default=[], help="ocis2i, skopeo")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"rounds of each ({ROUNDS})")
    parser.add_argument("--size", type=int, default=SIZE_MIB, help=f"MiB, large ({SIZE_MIB})")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of a table")
    options = parser.parse_args(argv)
    if os.geteuid() == 0:
        parser.error("ocis2i works as an ordinary user, and you are root")
    tools = [name for name in options.tools or TOOLS if name == "ocis2i" or shutil.which(name)]
    with tempfile.TemporaryDirectory(prefix="registry-speed-") as directory:
        bench = Bench.prepared(Path(directory), options.size * _MIB)
        try:
            found = [cost for number in range(options.rounds) for tool in tools
                     for cost in bench.round(tool, number)]  # fmt: skip
        finally:
            bench.clean_up()
    costs = compared(medians(found))
    document = {"rounds": options.rounds, "size_mib": options.size, "layers": LAYERS}
    document |= {"delay_ms": round(DELAY_SECONDS * 1000)}
    text = json.dumps(document | {"costs": [asdict(cost) for cost in costs]}, indent=2)
    sys.stdout.write((text if options.json else table(costs)) + "\n")
    return 0


@dataclass(frozen=True)
class Bench:
    """A directory with both images: as layouts, and in the store of ocis2i."""

    directory: Path

    @classmethod
    def prepared(cls, directory: Path, size: int) -> Bench:
        """Makes the images."""
        bench = cls(directory)
        write_large(directory / "large", size)
        small = [random_layer(LAYER_BYTES, f"data-{number}") for number in range(LAYERS)]
        make_layout(directory / "small", TAG, small, platform="linux/amd64")
        with docker_registry(directory / "seed") as seed:
            for name in ("large", "small"):
                plant_layout(seed.host, name, LayoutImage(directory / name, TAG))
                pull = ["pull", f"{seed.host}/{name}:{TAG}", "--quiet"]
                bench._run("", *_ocis2i(*pull, "--platform", "linux/amd64"))
            names = {name: f"{seed.host}/{name}:{TAG}" for name in ("large", "small")}
        (directory / "names").write_text(json.dumps(names))
        shutil.rmtree(directory / "seed")
        return bench

    def round(self, tool: str, number: int) -> Iterable[Cost]:
        """All tasks, with a registry that nobody has spoken to."""
        place = self.directory / f"{tool}-{number}"
        fetched = place / "fetched"
        with docker_registry(place) as server, FaultProxy(server.host) as proxy:
            yield self._run("push large", *self._push(tool, "large", f"{server.host}/large"))
            yield self._run("pull large", *self._pull(tool, f"{server.host}/large", fetched))
            self._forget(tool, fetched)
            proxy.delay_seconds = DELAY_SECONDS
            for task, repository in (("push small", "a"), ("again", "a"), ("mounted", "b")):
                proxy.log.clear()
                cost = self._run(task, *self._push(tool, "small", f"{proxy.host}/{repository}"))
                yield replace(cost, requests=len(proxy.log))
            proxy.log.clear()
            cost = self._run("pull small", *self._pull(tool, f"{proxy.host}/a", fetched))
            yield replace(cost, requests=len(proxy.log))
            self._forget(tool, fetched)
        shutil.rmtree(place)

    def clean_up(self) -> None:
        """Empties the store."""
        self._run("", *_ocis2i("prune", "--all"))

    def _push(self, tool: str, image: str, target: str) -> list[str]:
        if tool == "ocis2i":
            names = json.loads((self.directory / "names").read_text())
            return _ocis2i("push", names[image], f"{target}:{TAG}", "--quiet")
        source = f"oci:{self.directory / image}:{TAG}"
        return _skopeo("--dest-tls-verify=false", source, f"docker://{target}:{TAG}")

    def _pull(self, tool: str, source: str, into: Path) -> list[str]:
        if tool == "ocis2i":
            where = ("--root", str(into), "--platform", "linux/amd64")
            return _ocis2i("pull", f"{source}:{TAG}", "--quiet", *where)
        return _skopeo("--src-tls-verify=false", f"docker://{source}:{TAG}", f"oci:{into}:{TAG}")

    def _forget(self, tool: str, fetched: Path) -> None:
        if tool == "ocis2i":
            self._run("", *_ocis2i("prune", "--all", "--root", str(fetched)))
        shutil.rmtree(fetched)

    def _run(self, task: str, *command: str) -> Cost:
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.directory)}
        environment |= {"PYTHONPATH": str(PROJECT), "PYTHONDONTWRITEBYTECODE": "1"}
        environment |= {"OCIS2I_ROOT": str(self.directory / "store"), "LC_ALL": "C.UTF-8"}
        took = measure(command, environment)
        tool = "ocis2i" if command[0] == ARGV[0] else Path(command[0]).name
        return Cost(task, tool, took.seconds, took.cpu_seconds, took.peak_bytes)


def _ocis2i(*arguments: str) -> list[str]:
    return [*ARGV, *arguments]


def _skopeo(*arguments: str) -> list[str]:
    return ["skopeo", "copy", "--quiet", "--insecure-policy", *arguments]


class _Hashed:
    """A file that knows the digest and the number of its bytes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.hash = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> int:
        """Writes, and counts."""
        self.hash.update(data)
        self.size += len(data)
        return self._file.write(data)


class _Random:
    """A file of random bytes."""

    def read(self, size: int) -> bytes:
        """So many of them."""
        return os.urandom(size)


def write_large(path: Path, size: int) -> None:
    """An OCI layout of an image with one layer of so many bytes, which are never in memory."""
    make_layout(path, TAG, [], platform="linux/amd64")
    blobs = path / "blobs" / "sha256"
    with (path / "layer").open("wb") as file:
        hashed = _Hashed(file)
        info = tarfile.TarInfo("data")
        info.size = size
        with tarfile.open(fileobj=hashed, mode="w|") as archive:  # type: ignore[call-overload]
            archive.addfile(info, _Random())
    digest = hashed.hash.hexdigest()
    (path / "layer").rename(blobs / digest)
    image = LayoutImage(path, TAG)
    manifest = image.manifest
    config = json.loads(image.blob(manifest["config"]["digest"]).read_bytes())
    config["rootfs"]["diff_ids"] = [f"sha256:{digest}"]
    config["history"] = [{"created_by": "random"}]
    manifest["config"] |= _put(blobs, config)
    kind = "application/vnd.oci.image.layer.v1.tar"
    manifest["layers"] = [
        {"mediaType": kind, "digest": f"sha256:{digest}", "size": hashed.size},
    ]
    index = json.loads((path / "index.json").read_bytes())
    index["manifests"][0] |= _put(blobs, manifest)
    (path / "index.json").write_text(json.dumps(index))


def _put(blobs: Path, document: Any) -> dict[str, Any]:
    raw = json.dumps(document).encode()
    digest = hashlib.sha256(raw).hexdigest()
    (blobs / digest).write_bytes(raw)
    return {"digest": f"sha256:{digest}", "size": len(raw)}


def medians(costs: Sequence[Cost]) -> list[Cost]:
    """One cost for each task and tool, out of those of all rounds; of the memory the peak."""
    rows: dict[tuple[str, str], list[Cost]] = {}
    for cost in costs:
        rows.setdefault((cost.task, cost.tool), []).append(cost)
    return [
        Cost(
            task,
            tool,
            statistics.median(cost.seconds for cost in row),
            statistics.median(cost.cpu_seconds for cost in row),
            max(cost.peak_bytes for cost in row),
            round(statistics.median(cost.requests for cost in row)),
        )
        for (task, tool), row in rows.items()
    ]


def compared(costs: Sequence[Cost]) -> list[Cost]:
    """The costs with how many times as long as the fastest tool each one takes; task by task."""
    tasks = list(dict.fromkeys(cost.task for cost in costs))
    fastest = {task: min(cost.seconds for cost in costs if cost.task == task) for task in tasks}
    return [
        replace(cost, times=round(cost.seconds / fastest[cost.task], 2))
        for cost in sorted(costs, key=lambda cost: tasks.index(cost.task))
    ]


def table(costs: Sequence[Cost]) -> str:
    """The costs for people."""
    heads = ("task", "tool", "seconds", "times", "cpu s", "memory MiB", "requests")
    rows = [f"{heads[0]:12}{heads[1]:8}" + "".join(f"{head:>12}" for head in heads[2:])]
    rows += [
        f"{cost.task:12}{cost.tool:8}{cost.seconds:12.2f}{cost.times:12.2f}"
        f"{cost.cpu_seconds:12.2f}{cost.peak_bytes / _MIB:12.1f}{cost.requests or '-':>12}"
        for cost in costs
    ]
    return "\n".join(rows)
