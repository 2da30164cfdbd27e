"""What of a push goes ahead of its image: the base while assemble runs, the layer as it is made."""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import needs_registry
from tests.fakes.bench import Bench, sh
from tests.fakes.docker_registry import docker_registry
from tests.fakes.fault_proxy import FaultProxy
from tests.fakes.images import LayoutImage

pytestmark = [
    pytest.mark.skipif(os.geteuid() == 0, reason="ocis2i builds as an ordinary user"),
    needs_registry,
]

# More than what is sent only when it is whole.
NOISE = "dd if=/dev/urandom of=noise bs=1M count=24"
UNKNOWN = b'{"errors": [{"code": "MANIFEST_BLOB_UNKNOWN", "message": "blob unknown"}]}'
INVALID = b'{"errors": [{"code": "MANIFEST_INVALID", "message": "invalid"}]}'


@dataclass(frozen=True)
class World:
    """A builder whose assemble makes something large, and a registry behind a proxy."""

    bench: Bench
    proxy: FaultProxy
    builder: str

    @property
    def name(self) -> str:
        return f"{self.proxy.host}/team/app:1"

    @property
    def base(self) -> list[str]:
        """The digests of the builder's layers."""
        image = LayoutImage(self.bench.directory / "builder", "builder:1")
        return [str(layer["digest"]) for layer in image.manifest["layers"]]

    def words(self, *more: str | Path) -> list[str | Path]:
        return ["build", self.bench.source(), self.builder, self.name, "--push", *more]

    def manifest(self) -> dict[str, Any] | None:
        """What the registry has under the name."""
        kind = "application/vnd.oci.image.manifest.v1+json"
        url = f"http://{self.proxy.upstream}/v2/team/app/manifests/1"
        try:
            with urllib.request.urlopen(
                urllib.request.Request(url, headers={"Accept": kind})
            ) as answer:
                found: dict[str, Any] = json.load(answer)
        except urllib.error.HTTPError as error:
            assert error.code == 404
            return None
        return found

    def has_all(self) -> bool:
        """Whether the registry has the image with all its layers."""
        found = self.manifest()
        assert found is not None
        for blob in (*found["layers"], found["config"]):
            url = f"http://{self.proxy.upstream}/v2/team/app/blobs/{blob['digest']}"
            with urllib.request.urlopen(urllib.request.Request(url, method="HEAD")) as answer:
                assert int(answer.headers["Content-Length"]) == blob["size"]
        return True

    def asked(self, digest: str) -> int:
        """How often a blob was looked for or mounted."""
        looks = self.proxy.requests("HEAD", digest)
        mounts = [
            one
            for one in self.proxy.requests("POST")
            if one.query.get("mount", [""])[0] == digest and one.status == 201
        ]
        return len(looks) + len(mounts)


@pytest.fixture
def world(bench: Bench) -> Iterator[World]:
    builder = bench.image("builder", sh(NOISE))
    with docker_registry(bench.directory / "registry") as server, FaultProxy(server.host) as proxy:
        yield World(bench, proxy, builder)


def test_a_large_layer_is_sent_as_it_is_made_and_nothing_is_asked_twice(world: World) -> None:
    world.bench.ocis2i.ok(*world.words())
    (patch,) = world.proxy.requests("PATCH")
    assert patch.header("transfer-encoding") == "chunked"
    assert patch.received > 24 << 20
    assert world.has_all()
    found = world.manifest()
    assert found is not None
    layer = str(found["layers"][-1]["digest"])
    assert (layer, 0) in world.proxy.uploads()
    assert world.asked(layer) == 0
    assert [world.asked(digest) for digest in world.base] == [1] * len(world.base)


@pytest.mark.parametrize(
    "how",
    [{"status": 500}, {"status": 404, "early": True}, {"drop": True}, {"after_sent": 8 << 20}],
    ids=["refused", "refused at once", "answer lost", "broken in the middle"],
)
def test_a_registry_that_does_not_take_it_so_gets_it_whole(
    world: World, how: dict[str, Any]
) -> None:
    world.proxy.rule("PATCH", "uploads", **how)
    world.bench.ocis2i.ok(*world.words())
    assert len(world.proxy.requests("PATCH")) == 1
    assert max(size for _, size in world.proxy.uploads()) > 24 << 20
    assert world.has_all()


def test_an_answer_that_does_not_come_leaves_time_for_the_push(world: World) -> None:
    # As of something in between that takes all of it, and says nothing.
    world.proxy.rule("PATCH", "uploads", drop=True, end="stall")
    world.bench.ocis2i.ok(*world.words("--registry-timeout", "10s"))
    assert max(size for _, size in world.proxy.uploads()) > 24 << 20
    assert world.has_all()


@pytest.mark.parametrize(("status", "body"), [(404, UNKNOWN), (400, INVALID)])
def test_what_the_registry_has_lost_meanwhile_is_sent_again(
    world: World, status: int, body: bytes
) -> None:
    world.proxy.rule("PUT", "manifests", status=status, body=body)
    world.bench.ocis2i.ok(*world.words())
    assert len(world.proxy.requests("PUT", "manifests")) == 2
    assert [world.asked(digest) for digest in world.base] == [2] * len(world.base)
    assert world.has_all()


def test_a_layer_that_may_not_be_is_taken_back(world: World) -> None:
    done = world.bench.ocis2i(*world.words("--size-budget", "1MiB"))
    assert done.code == 9
    (patch,) = world.proxy.requests("PATCH")
    assert [one.path for one in world.proxy.requests("DELETE")][-1] == patch.path
    assert world.manifest() is None
    assert not [digest for digest, _ in world.proxy.uploads() if digest not in world.base]


@pytest.mark.parametrize(
    "flags",
    [
        ("--timestamp", "1000000000"),
        ("--build-env", "TOKEN=quite-a-secret-value"),
        ("--upload", "monolithic"),
    ],
    ids=["repeatable", "with a secret", "as the user wants it"],
)
def test_some_layers_are_sent_only_when_they_are_whole(
    world: World, flags: tuple[str, ...]
) -> None:
    world.bench.ocis2i.ok(*world.words(*flags))
    assert world.proxy.requests("PATCH") == []
    assert world.has_all()


def test_a_failed_assemble_has_published_no_image_and_sent_no_layer(world: World) -> None:
    builder = world.bench.image("failing", sh(f"{NOISE}; exit 3"))
    done = world.bench.ocis2i("build", world.bench.source(), builder, world.name, "--push")
    assert done.code == 7
    assert world.proxy.requests("PATCH") == []
    assert world.proxy.requests("PUT", "manifests") == []
    assert world.manifest() is None


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_an_interrupted_upload_is_done_by_the_next_push(
    world: World, number: signal.Signals, code: int
) -> None:
    rule = world.proxy.rule("PATCH", "uploads", bytes_per_second=4 << 20)
    with world.bench.ocis2i.start(*world.words()) as started:
        until = time.monotonic() + 60
        # Stored is what the push waits for the registry with.
        while not _is_stored(world) and time.monotonic() < until:
            time.sleep(0.05)
        started.send_signal(number)
        started.communicate(timeout=30)
    assert started.returncode == code
    (patch,) = world.proxy.requests("PATCH")
    assert 0 < patch.received < 24 << 20
    assert world.manifest() is None
    world.proxy.rules.remove(rule)
    world.bench.ocis2i.ok("push", world.name)
    assert world.has_all()


def _is_stored(world: World) -> bool:
    index = world.bench.ocis2i.layout / "index.json"
    return index.exists() and world.name in index.read_text()
