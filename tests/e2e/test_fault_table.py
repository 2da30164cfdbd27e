"""The rows of `tests/fault_rows.py`, with the real program and a real registry behind a proxy."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.conftest import needs, needs_registry
from tests.fakes.bench import error
from tests.fakes.docker_registry import RegistryUnderTest, docker_registry
from tests.fakes.fault_proxy import FaultProxy
from tests.fakes.images import LayoutImage, busybox_builder
from tests.fakes.program import Done, Program, program
from tests.fakes.seeds import Seed, has, plant, plant_layout, random_layer
from tests.fault_rows import BUILDS, MIDDLE, PULLS, PUSHES, ROWS, Row

pytestmark = [
    pytest.mark.registry,
    pytest.mark.as_user,
    needs_registry,
    needs("prlimit"),
]

USER, PASSWORD = "probe", "s3cret-probe"
# What always goes wrong has to come to its end by then.
TIME_LIMIT_SECONDS = 30
RECOVERY_SECONDS = 5
SIZE = 1_200_000
# Pauses are most of the time.
AT_ONCE = 6


@dataclass(frozen=True)
class Setting:
    """What all rows have in common, and a place for their files."""

    server: RegistryUnderTest
    ocis2i: Program
    directory: Path
    pushed: Seed

    def run(self, row: Row) -> Outcome:
        """Does what the row says, through a proxy of its own."""
        with FaultProxy(self.server.host, "bearer", users={USER: PASSWORD}) as proxy:
            for one in row.troubles:
                proxy.rule(one.method, f"^/v2/{row.id}/{one.path}", **one.how)
            seed = self._plant(row)
            done = self._program(row)(
                *self._command(row, proxy), *row.flags, timeout=TIME_LIMIT_SECONDS
            )
        return Outcome(row, done, proxy, seed, self.ocis2i)

    def _plant(self, row: Row) -> Seed:
        if row.verb == "push":
            return self.pushed
        if row.verb == "pull":
            layers = [random_layer(SIZE)]
            return plant(self.server.host, row.id, layers, self.directory)
        path = self.directory / row.id
        busybox_builder(path, "1", more_layers=[random_layer(SIZE)])
        return plant_layout(self.server.host, row.id, LayoutImage(path, "1"))

    def _program(self, row: Row) -> Program:
        limit = ("prlimit", f"--fsize={SIZE // 2}", "--") if row.full_disk else ()
        return replace(self.ocis2i, launcher=limit)

    def _command(self, row: Row, proxy: FaultProxy) -> list[str | Path]:
        pair = f"{USER}:{row.password or PASSWORD}".encode()
        known = {"auths": {proxy.host: {"auth": base64.b64encode(pair).decode()}}}
        authfile = self.directory / f"{row.id}.json"
        authfile.write_text(json.dumps(known))
        flags: list[str | Path] = ["--authfile", authfile]
        name = f"{proxy.host}/{row.id}"
        if row.verb == "push":
            return ["push", f"{self.server.host}/{self.pushed.repository}:1", f"{name}:1", *flags]
        if row.verb == "pull":
            return ["pull", f"{name}:1", *flags]
        source = self.directory / f"{row.id}-source"
        source.mkdir()
        (source / "data").write_bytes(Path("/bin/busybox").read_bytes())
        return ["build", source, f"{name}:1", f"{name}:2", "--push", *flags]


@dataclass(frozen=True)
class Outcome:
    """How it ended, and what the proxy saw."""

    row: Row
    done: Done
    proxy: FaultProxy
    seed: Seed
    ocis2i: Program

    @property
    def name(self) -> str:
        """The image that was pushed or pulled."""
        return f"{self.proxy.host}/{self.row.id}:1"

    def count(self, request: str) -> int:
        """How many requests there were of a method and a beginning of a path."""
        method, _, path = request.partition(" ")
        return len(self.proxy.requests(method, f"^/v2/{self.row.id}/{path}"))

    def pauses(self) -> float:
        """How long no request was under way between the first and the last, in seconds."""
        waited, until = 0.0, self.proxy.log[0].came
        for one in sorted(self.proxy.log, key=lambda seen: seen.came):
            waited += max(0.0, one.came - until)
            until = max(until, one.ended)
        return waited

    def taken(self, digest: str) -> list[int]:
        """How much of a blob each of its uploads brought."""
        return [size for one, size in self.proxy.uploads() if one == digest]


@pytest.fixture(scope="module")
def outcomes(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[dict[str, Future[Outcome]]]:
    """The outcomes of the rows whose tests are asked for, several of them under way at a time."""
    directory = tmp_path_factory.mktemp("faults")
    wanted = {item.callspec.params["row"].id for item in request.session.items
              if item.path == request.path and hasattr(item, "callspec")}  # fmt: skip
    with (
        docker_registry(directory / "registry") as server,
        program(directory) as ocis2i,
        ThreadPoolExecutor(AT_ONCE) as pool,
    ):
        pushed = plant(server.host, "pushed", [random_layer(SIZE)], directory)
        ocis2i.ok("pull", f"{server.host}/pushed:1")
        setting = Setting(server, ocis2i, directory, pushed)
        rows = sorted(ROWS, key=lambda row: not row.said)  # the long ones first
        yield {row.id: pool.submit(setting.run, row) for row in rows if row.id in wanted}


@pytest.fixture
def outcome(row: Row, outcomes: dict[str, Future[Outcome]]) -> Outcome:
    """How the row of the test came out, as it has to in any case."""
    outcome = outcomes[row.id].result()
    if row.recovers:
        assert outcome.done.code == 0, (outcome.done.err, calls(outcome))
        # What is no waiting depends on the machine: seen were 3 seconds for all of it.
        assert outcome.pauses() < RECOVERY_SECONDS, calls(outcome)
    else:
        line = error(outcome.done)
        assert row.said in line
        assert "?" not in line
        assert outcome.done.code == row.code
    for request, number in row.asked.items():
        assert outcome.count(request) == number, (request, calls(outcome))
    for rule, one in zip(outcome.proxy.rules, row.troubles, strict=True):
        assert rule.times != one.how.get("times", 1), f"{one} did not happen"
    for seen in outcome.proxy.log:
        assert "Basic " not in seen.header("authorization") or seen.path == "/token"
    return outcome


def calls(outcome: Outcome) -> list[str]:
    return [f"{one.method} {one.path} {one.status}" for one in outcome.proxy.log]


def rows(*rows: Row) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("row", rows, ids=lambda row: row.id)


@rows(*PUSHES)
def test_push_recovers_or_leaves_no_tag(row: Row, outcome: Outcome) -> None:
    registry = outcome.proxy.upstream
    assert has(registry, f"{row.id}/manifests/1") == bool(row.recovers)
    if row.recovers:
        assert f"@{outcome.seed.digest}\n" in outcome.done.out
        assert all(has(registry, f"{row.id}/blobs/{one}") for one in outcome.seed.blobs)
    if outcome.count("PUT blobs") == len(outcome.seed.blobs) and "--upload" not in row.flags:
        assert all(len(outcome.taken(one)) == 1 for one in outcome.seed.blobs)


@rows(*PULLS)
def test_pull_recovers_or_leaves_no_blob(row: Row, outcome: Outcome) -> None:
    blobs = [outcome.ocis2i.layout / "blobs" / one.replace(":", "/") for one in outcome.seed.blobs]
    for path in blobs:
        if path.exists():
            assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name
    if row.recovers:
        assert f"@{outcome.seed.digest}\n" in outcome.done.out
    else:
        assert not blobs[0].exists()
        assert f'"{outcome.name}"' not in (outcome.ocis2i.layout / "index.json").read_text()
    ranges = [one.header("range") for one in outcome.proxy.requests("GET", "/blobs/")]
    starts = [int(one.removeprefix("bytes=").rstrip("-")) for one in ranges if one]
    assert bool(starts) == row.again
    assert all(0 < start <= MIDDLE for start in starts[:1])


@rows(*BUILDS)
def test_build_recovers_and_sends_nothing_of_its_builder(row: Row, outcome: Outcome) -> None:
    assert has(outcome.proxy.upstream, f"{row.id}/manifests/2") == bool(row.recovers)
    assert [outcome.taken(layer) for layer in outcome.seed.layers] == [[]] * 3
    assert outcome.proxy.uploads()
