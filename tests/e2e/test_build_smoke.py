"""The main job in one go, by each executor."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.contract import better, same
from tests.fakes.program import Program


@same("build")
@same("exit.success")
@same("source.directory-without-git")
@same("cli.short-names")
@pytest.mark.sandbox
@pytest.mark.parametrize("isolation", ["runc", "builtin"])
def test_source_becomes_an_image_that_runs(
    ocis2i: Program, builder: str, source: Path, isolation: str
) -> None:
    done = ocis2i.ok("build", source, builder, "app:1", "--isolation", isolation)
    assert done.out.startswith("docker.io/library/app@sha256:")
    assert done.out.count("\n") == 1
    page = ocis2i.ok(
        "run", "--isolation", isolation, "app:1", "cat", "/opt/app-root/src/index.html"
    )
    assert page.out == "hello from the source\n"


@better("image.untagged", "its digest is the result")
@better("cli.tag-is-optional", "the digest is on standard output")
@pytest.mark.sandbox
def test_both_executors_make_the_same_image(ocis2i: Program, builder: str, source: Path) -> None:
    digests = {
        ocis2i.ok(
            "build", source, builder, "--isolation", isolation, "--timestamp", "1000000000"
        ).out
        for isolation in ("runc", "builtin")
    }
    assert len(digests) == 1
