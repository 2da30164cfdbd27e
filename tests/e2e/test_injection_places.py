"""Where nothing is injected: what ocis2i itself mounts, reads or runs in the container."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.contract import better, refused
from tests.fakes.bench import Bench, error, sh
from tests.fakes.images import BUSYBOX, SCRIPTS, Layer
from tests.fakes.registry import FakeRegistry
from tests.fakes.web import FakeWeb

pytestmark = [
    pytest.mark.sandbox,
    pytest.mark.skipif(not BUSYBOX.exists(), reason="busybox-static is not installed"),
]


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text("the content of the secret\n")
    return path


def assert_refused(bench: Bench, builder: str, given: Path, destination: str) -> str:
    """The build ends before assemble, with a message that names the destination."""
    done = bench.attempt(builder, "--inject", f"{given}:{destination}")
    assert done.code == 2, done.err
    assert f"`{destination}`" in error(done)
    assert "assemble ran" not in done.err
    assert not bench.is_stored
    return error(done)


@pytest.mark.parametrize(
    "destination",
    [
        "/etc/resolv.conf",
        "/etc/hosts",
        "/etc/passwd",
        "/etc/group",
        "/tmp/.s2i/image_metadata.json",
        f"{SCRIPTS}/assemble",
        f"{SCRIPTS}/run",
        f"{SCRIPTS}/save-artifacts",
    ],
)
@refused("--inject /etc/hosts", "ocis2i itself mounts it, as it reads or runs others")
def test_what_ocis2i_needs_is_no_destination(bench: Bench, secret: Path, destination: str) -> None:
    scripts = sh("echo assemble ran") | {"save-artifacts": "#!/bin/sh\ntar -c -f - .\n"}
    assert_refused(bench, bench.image("builder", scripts), secret, destination)


def test_scripts_of_the_source_are_no_destination(bench: Bench, secret: Path) -> None:
    bench.source({".s2i/bin/assemble": "#!/bin/sh\necho assemble ran\n"})
    builder = bench.image("builder", sh("echo of the image"))
    assert_refused(bench, builder, secret, "/tmp/scripts/assemble")


@pytest.mark.parametrize(
    ("destination", "leads_to"),
    [
        ("/opt/way/hosts", "/etc/hosts"),
        ("/opt/way/passwd", "/etc/passwd"),
        ("/opt/scripts/assemble", f"{SCRIPTS}/assemble"),
    ],
)
def test_links_of_the_image_lead_to_no_such_place(
    bench: Bench, secret: Path, destination: str, leads_to: str
) -> None:
    links = Layer().symlink("opt/way", "../etc").symlink("opt/scripts", SCRIPTS)
    builder = bench.image("builder", sh("echo assemble ran"), more_layers=[links])
    assert f"`{leads_to}`" in assert_refused(bench, builder, secret, destination)


def test_directory_that_would_take_in_what_assemble_writes_is_refused(
    bench: Bench, secret: Path, tmp_path: Path
) -> None:
    """As a mount of its own it would hide the labels that assemble writes."""
    (tmp_path / "given").mkdir()
    secret.rename(tmp_path / "given" / "other")
    builder = bench.image("builder", sh("echo assemble ran"), more_layers=[Layer().dir("tmp")])
    assert_refused(bench, builder, tmp_path / "given", "/tmp/.s2i")


def test_file_beside_the_scripts_is_injected(bench: Bench, secret: Path) -> None:
    builder = bench.image("builder", sh(f"cat {SCRIPTS}/more | wc -c"))
    done = bench.built(builder, "--inject", f"{secret}:{SCRIPTS}/more")
    assert f"\n{secret.stat().st_size}\n" in done.err


@pytest.mark.parametrize("verb", ["build", "rebuild", "export"])
@better("inject.file", "one that is missing on the host is told before anything is pulled")
def test_missing_file_is_told_before_anything_is_asked_for(
    bench: Bench, registry: FakeRegistry, web: FakeWeb, verb: str
) -> None:
    image = f"{registry.host}/some/builder:1"
    words: dict[str, list[str]] = {
        "build": ["build", f"{web.url}/app.tar.gz", image, "new:1"],
        "rebuild": ["rebuild", image, "new:1"],
        "export": ["build", f"{web.url}/app.tar.gz", image, "--as-dockerfile", "out/"],
    }
    given = bench.directory / "not" / "there"
    done = bench.ocis2i(*words[verb], "--inject", f"{given}:/opt/x", cwd=bench.directory)
    assert done.code == 2
    assert error(done) == f"error: `--inject`: cannot read `{given}`: No such file or directory"
    assert registry.log == []
    assert web.log == []


def test_upload_that_cannot_be_kept_is_a_sentence(bench: Bench, tmp_path: Path) -> None:
    nowhere = str(tmp_path / "nowhere")
    here = bench.with_variables(TMPDIR=nowhere)
    done = here.built(bench.image("builder", sh("true")), "--save-temp-dir")
    assert f"warning: --save-temp-dir: what was uploaded cannot be kept in `{nowhere}`" in done.err
    assert "No such file or directory" in done.err
    assert "Errno" not in done.err
