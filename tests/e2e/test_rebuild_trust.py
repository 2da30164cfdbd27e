"""Whom `rebuild` believes: the store's own record of a build, and no label, about this host."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.fakes.bench import Maker, error, sh
from tests.fakes.images import BUSYBOX, LayoutImage
from tests.fakes.program import Program

pytestmark = [
    pytest.mark.sandbox,
    pytest.mark.skipif(not BUSYBOX.exists(), reason="busybox-static is not installed"),
]

IMAGE_LABEL = "io.openshift.s2i.build.image"


def relabelling(label: str, value: str) -> dict[str, str | None]:
    """Scripts whose assemble writes a label over that of the build."""
    metadata = json.dumps({"labels": [{label: value}]})
    file = "/tmp/.s2i/image_metadata.json"
    return sh("mkdir -p /tmp/.s2i", f"echo '{metadata}' >{file}")


def stored_digest(program: Program, location: str) -> str:
    """Puts an image into the store; its digest there."""
    layout, _, name = location.removeprefix("oci:").partition(":")
    assert LayoutImage(Path(layout), name).layers
    return str(program.ok("build", layout, location, "inner:1", "--json").document["digest"])


def test_path_of_the_builder_is_believed_when_the_store_knows_it(
    shared: Program, make: Maker, source: Path
) -> None:
    shared.ok("build", source, make(), "honest:1")
    shared.ok("rebuild", "honest:1", "honest:2")
    shared.ok("rebuild", "honest:2", "honest:3")


def test_assemble_chooses_no_builder_path_of_this_host(
    shared: Program, make: Maker, source: Path
) -> None:
    private = make(sh("echo the private builder ran"))
    shared.ok("build", source, make(relabelling(IMAGE_LABEL, private)), "liar:1")
    assert shared.ok("inspect", "liar:1").document["config"]["Labels"][IMAGE_LABEL] == private
    done = shared("rebuild", "liar:1", "liar:2")
    assert (done.code, done.out) == (9, "")
    assert f"names the builder `{private}`, a path of this host" in error(done)
    assert "ocis2i build SOURCE BUILDER TAG" in done.err
    assert "private builder ran" not in done.err


def test_assemble_chooses_no_stored_image_as_builder(
    shared: Program, make: Maker, source: Path
) -> None:
    digest = stored_digest(shared, make())
    shared.ok("build", source, make(relabelling(IMAGE_LABEL, digest)), "liar:3")
    done = shared("rebuild", "liar:3", "liar:4")
    assert done.code == 9
    assert f"names the builder `{digest}`, an image of this store" in error(done)


def test_assemble_sends_no_directory_of_this_host_to_another_builder(
    shared: Program, make: Maker, source: Path
) -> None:
    another = make(relabelling(IMAGE_LABEL, "evil.example/builder:1"))
    shared.ok("build", source, another, "liar:5")
    done = shared("rebuild", "liar:5", "liar:6", "--pull-policy", "never")
    assert done.code == 9
    assert f"names the source `{source}`" in error(done)
