"""Pull, build and push with registries that take the specification lightly."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fakes.images import Layer, LayoutImage, busybox_builder, make_layout
from tests.fakes.program import Program
from tests.fakes.seeds import random_layer
from tests.fakes.sloppy_registry import QUIRKS, SloppyRegistry

USERS = {"ann": "s3cret"}

# Each quirk is in one of them; together as in one or the other product.
KINDS: dict[str, tuple[str, ...]] = {
    "no-frills": ("no-digest", "patch-204", "no-range", "range-ignored", "mount-202"),
    "guarded": ("silent-401", "octets", "mount-404", "put-204"),
    "project": ("cookies", "mount-401", "pages", "no-length"),
    "top-level": ("head-403", "mount-400", "relative", "parameters"),
    "old": ("no-head", "no-digest", "manifest-202", "patch-201"),
}
SIZE = 1_200_000


@dataclass(frozen=True)
class World:
    """One of these registries, and a user that it knows."""

    registry: SloppyRegistry
    ocis2i: Program
    directory: Path

    @property
    def login(self) -> tuple[str, Path]:
        """The flag for what the user has written."""
        auth = base64.b64encode(b"ann:s3cret").decode()
        path = self.directory / "auth.json"
        path.write_text(json.dumps({"auths": {self.registry.host: {"auth": auth}}}))
        return "--authfile", path

    def offer(self, repository: str) -> tuple[str, LayoutImage]:
        """An image that no store has; its name, and what it is."""
        path = self.directory / repository
        make_layout(path, "1", [random_layer(SIZE), Layer().file("a", str(self.directory))])
        return self.registry.put_layout(repository, "1", path), LayoutImage(path, "1")

    def has_all_of(self, repository: str) -> bool:
        """Whether an image is there with all that its manifest names."""
        _, raw = self.registry.manifests[repository]["1"]
        manifest = json.loads(raw)
        blobs = [manifest["config"]["digest"], *(one["digest"] for one in manifest["layers"])]
        return set(blobs) <= set(self.registry.blobs[repository])


@pytest.fixture(params=KINDS)
def world(request: pytest.FixtureRequest, shared: Program, tmp_path: Path) -> Iterator[World]:
    quirks = KINDS[request.param]
    auth = "bearer" if "silent-401" in quirks else "none"
    with SloppyRegistry(quirks, auth, USERS if auth == "bearer" else None) as registry:  # type: ignore[arg-type]
        yield World(registry, shared, tmp_path)


def test_every_quirk_is_tried() -> None:
    assert {quirk for kind in KINDS.values() for quirk in kind} == set(QUIRKS)


def test_pull_that_breaks_comes_to_its_end(world: World) -> None:
    name, image = world.offer("app")
    world.registry.fail("GET", image.layers[0], truncate=SIZE // 2)
    world.ocis2i.ok("pull", name, *world.login)
    path = world.ocis2i.layout / "blobs" / image.layers[0].replace(":", "/")
    assert not path.exists() or path.read_bytes() == image.blob(image.layers[0]).read_bytes()
    assert len(world.registry.requests("GET", image.layers[0])) == 2


def test_pushed_image_is_whole_in_two_repositories(world: World) -> None:
    name, _ = world.offer("app")
    world.ocis2i.ok("pull", name, *world.login)
    for repository, upload in (("first", "chunked"), ("second", "auto")):
        target = f"{world.registry.host}/{repository}:1"
        world.ocis2i.ok("push", name, target, *world.login, "--upload", upload)
        assert world.has_all_of(repository)
    assert world.registry.manifests["first"]["1"][1] == world.registry.manifests["app"]["1"][1]


def test_build_takes_its_builder_there_and_pushes(world: World) -> None:
    path = world.directory / "builder"
    busybox_builder(path, "1", more_layers=[random_layer(1000)])
    builder = world.registry.put_layout("builder", "1", path)
    source = world.directory / "source"
    source.mkdir()
    (source / "index.html").write_text("hello\n")
    world.ocis2i.ok(
        "build", source, builder, f"{world.registry.host}/built:1", "--push", *world.login
    )
    assert world.has_all_of("built")
