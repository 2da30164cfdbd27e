"""Transfers that are ended in the middle: the next one goes on from what was verified.

The real program and a real registry, and a proxy that lets nothing more through in time.
"""

from __future__ import annotations

import hashlib
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.conftest import needs, needs_registry
from tests.fakes import mounted
from tests.fakes.bench import error
from tests.fakes.docker_registry import RegistryUnderTest
from tests.fakes.fault_proxy import FaultProxy
from tests.fakes.program import Program
from tests.fakes.seeds import Seed, has, plant, random_layer

pytestmark = [
    pytest.mark.registry,
    needs_registry,
]

SMALL, LARGE = 100_000, 6_000_000
HALF = LARGE // 2
PATIENCE_SECONDS = 30.0
SIGNALS = pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)]
)


@dataclass(frozen=True)
class World:
    """An image in a registry, of a small layer and a large one."""

    proxy: FaultProxy
    ocis2i: Program
    image: Seed

    @property
    def name(self) -> str:
        """The image."""
        return f"{self.proxy.host}/{self.image.repository}:1"

    @property
    def large(self) -> str:
        """The layer that nothing gets through of in time."""
        return self.image.layers[1]

    def blob(self, digest: str) -> Path:
        """Where the store has a blob."""
        return self.ocis2i.layout / "blobs" / digest.replace(":", "/")

    @property
    def part(self) -> Path:
        """What the store has of the large layer until it is whole."""
        return self.ocis2i.store / "tmp" / f"{self.large.replace(':', '-')}.part"

    @property
    def others(self) -> list[str]:
        """What comes through: the small layer and the config."""
        return [digest for digest in self.image.blobs if digest != self.large]

    def asked(self) -> dict[str, str]:
        """The blobs that were asked for, and from where on."""
        gets = self.proxy.requests("GET", "/blobs/")
        return {one.path.rpartition("/")[2]: one.header("range") for one in gets}


@pytest.fixture
def world(server: RegistryUnderTest, shared: Program, tmp_path: Path) -> Iterator[World]:
    repository = tmp_path.name.rstrip("_").lower()
    layers = [random_layer(SMALL), random_layer(LARGE)]
    image = plant(server.host, repository, layers, tmp_path)
    with FaultProxy(server.host) as proxy:
        yield World(proxy, shared, image)


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < end, "it does not come to that"
        time.sleep(0.02)


def ended(ocis2i: Program, number: int, ready: Callable[[], bool], *command: str) -> int:
    """Starts a command, sends it a signal once it is `ready`, and says how it ended."""
    with ocis2i.start(*command) as running:
        try:
            wait_until(ready)
            running.send_signal(number)
            running.communicate(timeout=PATIENCE_SECONDS)
        finally:
            running.kill()
    return running.returncode


@SIGNALS
def test_pull_goes_on_in_the_middle_of_a_layer(world: World, number: int, code: int) -> None:
    small, _ = world.image.layers
    world.proxy.rule("GET", world.large, after_received=HALF, end="stall")

    def half() -> bool:
        there = world.blob(small).exists()
        return there and world.part.exists() and world.part.stat().st_size > SMALL

    assert ended(world.ocis2i, number, half, "pull", world.name) == code
    assert not world.blob(world.large).exists()
    have = world.part.stat().st_size
    world.proxy.log.clear()
    world.ocis2i.ok("pull", world.name)
    assert world.asked()[world.large] == f"bytes={have}-"
    assert small not in world.asked()
    content = world.blob(world.large).read_bytes()
    assert hashlib.sha256(content).hexdigest() == world.blob(world.large).name
    assert not world.part.exists()


@SIGNALS
def test_push_sends_again_what_was_not_whole_and_nothing_else(
    world: World, number: int, code: int
) -> None:
    world.ocis2i.ok("pull", f"{world.proxy.upstream}/{world.image.repository}:1")
    there = f"{world.proxy.host}/{world.image.repository}-copy:1"
    copy = f"{world.image.repository}-copy"
    world.proxy.rule("PUT", "/blobs/", after_sent=HALF, end="stall")

    def half() -> bool:
        stored = all(has(world.proxy.upstream, f"{copy}/blobs/{one}") for one in world.others)
        return stored and (world.large, HALF) in world.proxy.uploads()

    push = ("push", f"{world.proxy.upstream}/{world.image.repository}:1", there)
    assert ended(world.ocis2i, number, half, *push) == code
    assert not has(world.proxy.upstream, f"{copy}/manifests/1")
    world.proxy.log.clear()
    world.ocis2i.ok(*push)
    ((digest, size),) = world.proxy.uploads()
    assert digest == world.large
    assert size > LARGE
    assert has(world.proxy.upstream, f"{copy}/manifests/1")


@needs("prlimit")
def test_pull_after_the_disk_was_full_goes_on(world: World) -> None:
    limited = replace(world.ocis2i, launcher=("prlimit", f"--fsize={HALF}", "--"))
    # One after the other: with several at a time the first error may stop the small one, too.
    done = limited("pull", world.name, "--jobs", "1")
    assert done.code == 8
    assert "the store cannot be written" in error(done)
    assert not world.blob(world.large).exists()
    have = world.part.stat().st_size
    assert have
    world.proxy.log.clear()
    world.ocis2i.ok("pull", world.name)
    assert world.asked()[world.large] == f"bytes={have}-"
    assert world.image.layers[0] not in world.asked()


def test_full_file_system_is_named_and_has_no_half_blob(world: World, tmp_path: Path) -> None:
    there = tmp_path / "small"
    # The file system is gone with the program: what it has is told before.
    script = f'"$@"; code=$?; ls {there}/images/blobs/sha256; exit $code'
    launcher = (sys.executable, mounted.__file__, "tiny", str(there), "sh", "-c", script, "sh")
    limited = replace(world.ocis2i, launcher=launcher)
    done = limited("pull", world.name, OCIS2I_ROOT=str(there))
    assert done.code == 8
    assert "the disk is full" in error(done)
    assert world.large.partition(":")[2] not in done.out.split()
