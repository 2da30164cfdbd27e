"""Pulls that are stopped in the middle, and the flags of whoever moves images."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from ocis2i.manifest import (
    OCI_CONFIG,
    OCI_LAYER,
    OCI_MANIFEST,
    encode_descriptor,
    encode_json,
)
from ocis2i.reference import Digest
from tests.fakes.program import Program
from tests.fakes.registry import FakeRegistry

HALF = 1_500_000
PATIENCE_SECONDS = 20.0


class Image:
    """An image of one layer that no store has yet, straight into the registry."""

    def __init__(self, registry: FakeRegistry) -> None:
        self.layer = os.urandom(3 << 20)
        self.digest = Digest.of(self.layer)
        config = encode_json(
            {
                "architecture": "amd64",
                "os": "linux",
                "rootfs": {"type": "layers", "diff_ids": [str(self.digest)]},
            }
        )
        layer = registry.put_blob("team/app", self.layer, OCI_LAYER)
        about = registry.put_blob("team/app", config, OCI_CONFIG)
        manifest = encode_json(
            {
                "schemaVersion": 2,
                "mediaType": OCI_MANIFEST,
                "config": encode_descriptor(about),
                "layers": [encode_descriptor(layer)],
            }
        )
        registry.put_manifest("team/app", "1", manifest, OCI_MANIFEST)
        self.name = f"{registry.host}/team/app:1"

    def part(self, ocis2i: Program) -> Path:
        """What a stopped pull leaves."""
        return ocis2i.store / "tmp" / f"sha256-{self.digest.hex}.part"

    def blob(self, ocis2i: Program) -> Path:
        """The layer in the store."""
        return ocis2i.layout / "blobs/sha256" / self.digest.hex


@pytest.fixture
def image(registry: FakeRegistry) -> Image:
    return Image(registry)


def wait_for(path: Path, size: int) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not path.exists() or path.stat().st_size < size:
        assert time.monotonic() < end, f"{path} does not come"
        time.sleep(0.02)


def stopped_pull(shared: Program, registry: FakeRegistry, image: Image, number: int) -> int:
    """A pull that gets half of the layer and then a signal; its exit code."""
    registry.fail("GET", str(image.digest), truncate=HALF, silent=True)
    running = shared.start("pull", image.name)
    wait_for(image.part(shared), 1)
    running.send_signal(number)
    running.communicate(timeout=PATIENCE_SECONDS)
    registry.log.clear()
    return running.returncode


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)]
)
def test_next_pull_goes_on_where_the_last_was_stopped(
    shared: Program, registry: FakeRegistry, image: Image, number: int, code: int
) -> None:
    assert stopped_pull(shared, registry, image, number) == code
    have = image.part(shared).read_bytes()
    assert have
    assert image.layer.startswith(have)
    assert not image.blob(shared).exists()
    shared.ok("pull", image.name)
    (get,) = registry.requests("GET", str(image.digest))
    assert get.headers["range"] == f"bytes={len(have)}-"
    assert image.blob(shared).read_bytes() == image.layer
    assert not image.part(shared).exists()


def test_prune_takes_what_a_stopped_pull_left(
    shared: Program, registry: FakeRegistry, image: Image
) -> None:
    stopped_pull(shared, registry, image, signal.SIGTERM)
    assert image.part(shared).exists()
    shared.ok("prune")
    assert not image.part(shared).exists()


def test_registry_that_falls_silent_does_not_hold_a_pull_longer_than_wanted(
    shared: Program, registry: FakeRegistry, image: Image
) -> None:
    registry.fail("GET", str(image.digest), times=-1, truncate=HALF, silent=True)
    done = shared("pull", image.name, "--registry-timeout", "2s", timeout=PATIENCE_SECONDS)
    assert done.code != 0
    assert "registries took longer than 2 seconds in all" in done.err
    assert "--registry-timeout" in done.err
    assert not image.blob(shared).exists()


def test_silence_is_waited_for_as_long_as_the_environment_says(
    shared: Program, registry: FakeRegistry, image: Image
) -> None:
    registry.fail("GET", str(image.digest), truncate=HALF, silent=True)
    shared.ok("pull", image.name, OCIS2I_STALL_TIMEOUT="1s", timeout=PATIENCE_SECONDS)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--jobs", "17"), "less than or equal to 16"),
        (("--upload", "often"), "it must be auto, monolithic or chunked"),
        (("--registry-timeout", "soon"), "write a time as 90s, 10m or 1h30m"),
    ],
)
def test_senseless_flags_are_refused(
    shared: Program, arguments: tuple[str, ...], said: str
) -> None:
    done = shared("push", "app:1", *arguments)
    assert done.code == 2
    assert said in done.err


def test_pulled_layer_is_mounted_and_never_sent(
    shared: Program, registry: FakeRegistry, image: Image
) -> None:
    shared.ok("pull", image.name)
    for name in ("first", "second"):
        chunked = ("--upload", "chunked", "--jobs", "1")
        shared.ok("push", image.name, f"{registry.host}/{name}:1", *chunked)
        assert registry.manifests[name]["1"] == registry.manifests["team/app"]["1"]
    uploads = (*registry.requests("PUT", "blobs"), *registry.requests("PATCH"))
    sent = [entry.received for entry in uploads]
    # The configs, in one chunk each, and the ends of their uploads.
    assert len(sent) == 4
    assert sum(sent) < 1000
