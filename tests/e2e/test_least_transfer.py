"""No byte travels that need not: between registries, the store and a build. The requests tell."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import needs_registry
from tests.fakes.bench import RUN, Bench, error, offer, sh
from tests.fakes.docker_registry import docker_registry
from tests.fakes.fault_proxy import FaultProxy
from tests.fakes.images import Layer, LayoutImage
from tests.fakes.registry import FakeRegistry

BUILDER = "team/builder"
APP = "team/app"


@dataclass(frozen=True)
class World:
    """A builder in one registry, and another registry for results."""

    bench: Bench
    near: FakeRegistry
    far: FakeRegistry
    builder: str
    layers: tuple[str, ...]

    def build(self, target: str, *arguments: str) -> None:
        self.bench.ocis2i.ok("build", self.bench.source(), self.builder, target, *arguments)

    @property
    def large(self) -> str:
        """The digest of the builder's largest layer."""
        return self.layers[-1]


def layers_of(bench: Bench, name: str) -> tuple[str, ...]:
    image = LayoutImage(bench.directory / name, f"{name}:1")
    return tuple(str(layer["digest"]) for layer in image.manifest["layers"])


@pytest.fixture
def world(bench: Bench, registry: FakeRegistry) -> Iterator[World]:
    more = [Layer().file("opt/large", os.urandom(2 << 20))]
    location = bench.image("builder", sh("echo built > result"), more_layers=more)
    with FakeRegistry() as far:
        name = offer(registry, location, BUILDER, "1")
        yield World(bench, registry, far, name, layers_of(bench, "builder"))


def received(registry: FakeRegistry) -> int:
    """The bytes of all blobs that a registry was sent."""
    return sum(one.received for one in registry.log if "/blobs/" in one.path)


def test_base_is_mounted_and_only_what_is_new_is_sent(world: World) -> None:
    world.build(f"{world.near.host}/{APP}:1", "--push")
    mounts = [one.query["mount"] for one in world.near.requests("POST") if "mount" in one.query]
    assert {digest for (digest,) in mounts} >= set(world.layers)
    assert received(world.near) < 10_000
    world.near.log.clear()
    world.build(f"{world.near.host}/{APP}:2", "--push")
    assert received(world.near) < 10_000
    assert not world.near.requests("GET", world.large)


def test_a_build_looks_for_nothing_that_only_it_can_have_made(world: World) -> None:
    world.build(f"{world.near.host}/{APP}:1", f"--tag={world.near.host}/{APP}:2", "--push")
    asked = [one.path for one in world.near.requests("HEAD")]
    assert not [path for path in asked if path.startswith(f"/v2/{APP}/manifests/")]
    manifest = json.loads(world.near.manifests[APP]["1"][1])
    made = [manifest["config"]["digest"], manifest["layers"][-1]["digest"]]
    assert not [path for path in asked if path.endswith(tuple(made))]
    assert world.near.manifests[APP]["2"] == world.near.manifests[APP]["1"]


def test_a_repeatable_build_asks_for_what_another_may_have_made(world: World) -> None:
    for _ in range(2):
        world.near.log.clear()
        name = f"{world.near.host}/{APP}:1"
        world.build(name, "--push", "--timestamp=1700000000", "--no-cache")
        assert world.near.requests("HEAD", f"/v2/{APP}/manifests/1")
    assert not world.near.requests("PUT")


def test_base_goes_from_registry_to_registry_and_not_through_the_store(world: World) -> None:
    world.build(f"{world.far.host}/{APP}:1", "--push")
    for layer in world.layers:
        assert world.far.blobs[APP][layer] == world.near.blobs[BUILDER][layer]
        assert not (world.bench.ocis2i.layout / "blobs/sha256" / layer[7:]).exists()
    world.near.log.clear()
    world.far.log.clear()
    world.build(f"{world.far.host}/{APP}:2", "--push")
    assert received(world.far) < 10_000
    assert not world.near.requests("GET", "blobs")


def test_broken_upload_of_a_passing_layer_opens_the_download_anew(world: World) -> None:
    world.far.fail("PUT", "blobs/uploads", reset_after=500_000)
    world.far.fail("PATCH", "blobs/uploads", reset_after=500_000)
    world.near.fail("GET", world.large, truncate=1_000_000, times=1)
    world.build(f"{world.far.host}/{APP}:1", "--push", "--jobs", "1")
    assert world.far.blobs[APP][world.large] == world.near.blobs[BUILDER][world.large]


def test_layer_that_comes_wrong_on_its_way_is_not_stored_and_sent_again(world: World) -> None:
    world.build("app:1")
    body = bytearray(world.near.blobs[BUILDER][world.large])
    body[-1] ^= 0xFF
    world.near.fail("GET", world.large, status=200, body=bytes(body))
    world.bench.ocis2i.ok("push", "app:1", f"{world.far.host}/{APP}:1")
    assert world.far.blobs[APP][world.large] == world.near.blobs[BUILDER][world.large]
    assert len(world.near.requests("GET", world.large)) >= 2


def test_layer_that_always_comes_wrong_ends_the_push(world: World) -> None:
    world.build("app:1")
    body = bytearray(world.near.blobs[BUILDER][world.large])
    body[-1] ^= 0xFF
    world.near.fail("GET", world.large, times=-1, status=200, body=bytes(body))
    done = world.bench.ocis2i("push", "app:1", f"{world.far.host}/{APP}:1")
    assert done.code != 0
    assert f"layers of the image are only in `{world.builder}`" in error(done)
    assert world.large not in world.far.blobs.get(APP, {})
    assert not world.far.manifests.get(APP)


def test_origin_that_is_gone_is_named(world: World) -> None:
    world.build("app:1")
    world.near.fail("GET", "blobs", times=-1, status=404)
    done = world.bench.ocis2i("push", "app:1", f"{world.far.host}/{APP}:1")
    assert done.code != 0
    assert f"layers of the image are only in `{world.builder}`" in error(done)


def test_layers_of_a_runtime_image_that_runs_nothing_stay_where_they_are(world: World) -> None:
    bench = world.bench
    more = [Layer().file("opt/other", os.urandom(1 << 20))]
    location = bench.image("runtime", {}, {"Labels": {}}, more_layers=more)
    name = offer(world.far, location, "team/runtime", "1")
    bench.source({".s2i/bin/run": RUN})
    flags = ("--runtime-image", name, "--runtime-artifact", "/opt/app-root/src:app")
    world.build(f"{world.far.host}/{APP}:1", *flags, "--push")
    # The config alone.
    assert len(world.far.requests("GET", "blobs/sha256:")) == 1
    assert set(world.far.blobs[APP]) >= set(layers_of(bench, "runtime"))
    assert received(world.far) < 10_000


def test_target_that_refuses_is_known_before_anything_is_fetched(world: World) -> None:
    world.far.fail("POST", "blobs/uploads", times=-1, status=403)
    target = f"{world.far.host}/{APP}:1"
    done = world.bench.ocis2i("build", world.bench.source(), world.builder, target, "--push")
    assert done.code == 5
    assert f"cannot push to `{world.far.host}/{APP}`" in error(done)
    assert world.near.log == []


def test_result_stays_when_its_push_fails_in_the_end(world: World) -> None:
    world.far.fail("PUT", "manifests", times=-1, status=403)
    target = f"{world.far.host}/{APP}:1"
    done = world.bench.ocis2i("build", world.bench.source(), world.builder, target, "--push")
    assert done.code == 5
    assert target in world.bench.ocis2i.ok("images").out


@contextlib.contextmanager
def real_registry(directory: Path) -> Iterator[FaultProxy]:
    """The registry program, with a log of what it is asked."""
    with docker_registry(directory) as running, FaultProxy(running.host) as proxy:
        yield proxy


@pytest.mark.registry
@needs_registry
def test_real_registry_gets_no_byte_of_a_base_that_it_has(bench: Bench, tmp_path: Path) -> None:
    more = [Layer().file("opt/large", os.urandom(2 << 20))]
    location = bench.image("builder", sh("echo built > result"), more_layers=more)
    layers = layers_of(bench, "builder")
    with real_registry(tmp_path / "registry") as proxy:
        builder = f"{proxy.host}/{BUILDER}:1"
        bench.ocis2i.ok("build", bench.source(), location, builder, "--push")
        proxy.log.clear()
        bench.ocis2i.ok("build", bench.source(), builder, f"{proxy.host}/{APP}:1", "--push")
        assert sum(size for _, size in proxy.uploads()) < 10_000
        assert all(len(proxy.requests("GET", layer)) <= 1 for layer in layers)
        mounted = [one for one in proxy.requests("POST") if one.status == 201]
        assert len(mounted) == len(layers) + 1
