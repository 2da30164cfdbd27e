"""A compiled language, step by step: a C builder with a cache, a runtime image without a compiler.

The scenario is that of https://github.com/jromero/learning-s2i, with C in place of Go. What is kept
between two builds comes as two archives one after the other, and has directories nobody may write.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import needs
from tests.contract import better, same
from tests.fakes.images import BUSYBOX, FIXTURES, LayoutImage, fixture_image
from tests.fakes.program import Done, Program, program

pytestmark = [
    pytest.mark.sandbox,
    pytest.mark.network,  # the compiler's packages
    pytest.mark.skipif(not BUSYBOX.exists(), reason="busybox-static is not installed"),
    needs("mmdebstrap", "newuidmap"),
]

SOURCE = FIXTURES / "apps" / "c-hello"
BINARY = "/opt/app-root/bin/app"
CACHE = "opt/app-root/cache"
APP, SLIM, CACHED = "c-app:1", "c-app-slim:1", "c-app-cached:1"
# No file can be compiled with it: what is built has been compiled before.
NO_COMPILER = ("-e", "CC=/bin/false")
MIB = 1 << 20


@dataclass(frozen=True)
class Images:
    """The two images, as `oci:` locations."""

    builder: str
    runtime: str


@dataclass(frozen=True)
class Bench:
    """A store that the steps share, and what they build with."""

    ocis2i: Program
    images: Images

    def build(self, tag: str, *arguments: str | Path) -> Done:
        """One step; it has to succeed."""
        return self.ocis2i.ok("build", "--copy", SOURCE, self.images.builder, tag, *arguments)

    def extended(self, tag: str, *arguments: str | Path) -> Done:
        """One step that puts the program on the runtime image."""
        runtime = ("--runtime-image", self.images.runtime, "--runtime-artifact", BINARY)
        return self.build(tag, *runtime, *arguments)

    def image(self, tag: str) -> LayoutImage:
        return LayoutImage(self.ocis2i.layout, f"docker.io/library/{tag}")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    if os.geteuid() == 0:
        pytest.skip("the tests run as root; ocis2i builds as an ordinary user")
    path = tmp_path_factory.mktemp("images")
    return Images(fixture_image("c", path / "c"), fixture_image("c-runtime", path / "c-runtime"))


@pytest.fixture(scope="module")
def bench(images: Images, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with program(tmp_path_factory.mktemp("learning")) as ocis2i:
        yield Bench(ocis2i, images)


# Every step goes on from the one before; a test that runs alone makes those that it needs.


@pytest.fixture(scope="module")
def first(bench: Bench) -> Done:
    """Step 4: incremental, and nothing to go on from."""
    return bench.build(APP, "--incremental")


@pytest.fixture(scope="module")
def second(bench: Bench, first: Done) -> Done:
    """Step 6: the same again."""
    return bench.build(APP, "--incremental")


@pytest.fixture(scope="module")
def cut_off(bench: Bench, second: Done) -> Done:
    """Step 7: nothing can be compiled any more."""
    return bench.build(APP, "--incremental", *NO_COMPILER)


@pytest.fixture(scope="module")
def slim(bench: Bench) -> Done:
    """Step 8: the program on the runtime image."""
    return bench.extended(SLIM)


@contextmanager
def running(bench: Bench, tag: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The image as a container with the host's network, and the port that it listens on."""
    process = bench.ocis2i.start("run", "-e", "PORT=0", tag)
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        line = process.stdout.readline()
        if not line.startswith("listening on port "):
            process.terminate()
            pytest.fail(f"the application says {line!r}\n{process.stderr.read()}")
        yield process, int(line.split()[-1])
    finally:
        process.terminate()
        try:
            process.wait(timeout=60)
        finally:
            process.kill()
        process.stdout.close()
        process.stderr.close()


def get(port: int, path: str) -> tuple[int, str]:
    """Status and text of an answer; a proxy of the host would not find the container."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(f"http://127.0.0.1:{port}{path}", timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def assert_answers(bench: Bench, tag: str) -> None:
    """Step 5: the three pages, and one that is not there."""
    with running(bench, tag) as (_, port):
        assert get(port, "/") == (200, "This is a test app!\n")
        status, host = get(port, "/host")
        assert status == 200
        assert re.fullmatch(r"This request was processed by host: \S+\n", host)
        assert get(port, "/hello/you") == (200, "Hello you!\n")
        assert get(port, "/nothing")[0] == 404


# --- the builder alone ----------------------------------------------------------------------------


@same("usage")
@same("usage.script")
@better("usage.stdout", "on standard output, as the script prints it")
@better("usage.leaves-nothing", "no image is made")
def test_usage_is_found_by_label_and_not_by_cmd(bench: Bench) -> None:
    before = bench.ocis2i.ok("images").out
    done = bench.ocis2i.ok("usage", bench.images.builder)
    printed = "This image builds C programs by Source-to-Image: all C files of the source become"
    assert done.out.startswith(printed)
    assert "\n    ocis2i build SOURCE THIS-IMAGE NAME:TAG\n" in done.out
    assert bench.ocis2i.ok("images").out == before
    assert os.listdir(bench.ocis2i.store / "builds") == []


@same("incremental.first", section="5.1")
def test_first_incremental_build_is_a_clean_one_with_a_warning(first: Done) -> None:
    assert "---> Compiling answer.c\n" in first.err
    assert "---> Compiling main.c\n" in first.err
    assert "Pulling cache..." not in first.err
    warnings = [line for line in first.err.splitlines() if line.startswith("warning:")]
    assert any("clean build" in line for line in warnings), first.err


@same("--copy")
@same("image.cmd")
@better("image.entrypoint", "none, so that `Cmd` alone is what runs")
@better("assemble.entrypoint", "scripts are run directly")
def test_result_runs_its_script_as_the_builders_user(bench: Bench, first: Done) -> None:
    config = bench.image(APP).config
    assert config["Cmd"] == ["/usr/libexec/s2i/bin/run"]
    assert "Entrypoint" not in config
    assert config["User"] == "1001"
    # `LANG` and the rest are the builder's: nothing was given.
    assert "APP_ROOT=/opt/app-root" in config["Env"]


def test_result_answers(bench: Bench, first: Done) -> None:
    assert_answers(bench, APP)


def test_signal_ends_the_application(bench: Bench, first: Done) -> None:
    with running(bench, APP) as (process, _):
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 128 + signal.SIGTERM
    assert os.listdir(bench.ocis2i.store / "builds") == []


def test_program_belongs_to_the_assemble_user(bench: Bench, first: Done) -> None:
    members = bench.image(APP).members()
    program_file = members[BINARY.lstrip("/")]
    assert (program_file.mode, program_file.uid, program_file.gid) == (0o755, 1001, 1001)
    kept = members[f"{CACHE}/pkg/main"]
    assert (kept.isdir(), kept.mode, kept.uid) == (True, 0o555, 1001)


# --- what the last build saved --------------------------------------------------------------------


@same("--incremental")
@same("incremental.previous-image")
@same("incremental.tar")
@better("incremental.two-archives", "all of them count")
def test_second_build_restores_the_cache(second: Done) -> None:
    lines = second.err.splitlines()
    assert "Pulling cache..." in lines
    assert "Restoring cache /opt/app-root/cache/src ..." in lines
    assert "Restoring cache /opt/app-root/cache/pkg ..." in lines
    assert "---> Using main.c from the cache" in lines
    assert not [line for line in lines if "Compiling" in line]


@same("incremental.modes")
def test_restored_cache_is_really_used(bench: Bench, cut_off: Done) -> None:
    assert "---> Using answer.c from the cache\n" in cut_off.err
    assert "---> Using main.c from the cache\n" in cut_off.err
    assert_answers(bench, APP)
    members = bench.image(APP).members()
    kept, file = members[f"{CACHE}/pkg/main"], members[f"{CACHE}/pkg/main/main.o"]
    assert (kept.mode, kept.uid) == (0o555, 1001)
    assert (file.mode, file.uid) == (0o444, 1001)


@same("incremental.needs-the-flag")
def test_without_the_flag_nothing_is_restored(bench: Bench, first: Done) -> None:
    done = bench.ocis2i("build", "--copy", SOURCE, bench.images.builder, APP, *NO_COMPILER)
    assert done.code == 7
    assert "---> Compiling answer.c\n" in done.err
    assert "Pulling cache..." not in done.err


def test_changed_file_is_compiled_and_the_others_are_not(
    bench: Bench, second: Done, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for path in SOURCE.iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    answers = source / "answer.c"
    answers.write_text(answers.read_text().replace("This is a test app!", "This is another!"))
    done = bench.ocis2i.ok("build", source, bench.images.builder, APP, "--incremental")
    assert "---> Compiling answer.c\n" in done.err
    assert "---> Using main.c from the cache\n" in done.err
    with running(bench, APP) as (_, port):
        assert get(port, "/") == (200, "This is another!\n")


# --- on a runtime image ---------------------------------------------------------------------------


@same("--runtime-image")
@same("--runtime-artifact")
@same("runtime.assemble-runtime")
@better("runtime.modes", "executable is what its owner may execute")
@better("runtime.owner", "the user of the runtime image")
def test_program_lands_in_the_working_directory(bench: Bench, slim: Done) -> None:
    assert "Nothing special to do here...\n" in slim.err
    app = bench.image(SLIM).members()["app"]
    assert (app.isreg(), app.mode, app.uid) == (True, 0o755, 1001)
    seen = bench.ocis2i.ok("run", SLIM, "stat", "-c", "%a %u", "/app").out
    assert seen == "755 1001\n"


@same("runtime.nothing-of-the-builder")
@better("runtime.marker", "nothing but the artifacts and what `assemble-runtime` made")
def test_nothing_else_travels(bench: Bench, slim: Done) -> None:
    image = bench.image(SLIM)
    assert sorted(image.members()) == ["app"]
    base = LayoutImage(Path(bench.images.runtime.split(":")[1]), "latest")
    assert image.layers[:-1] == base.layers
    assert bench.ocis2i.ok("run", SLIM, "find", "/tmp").out == "/tmp\n"
    assert "gcc" not in bench.ocis2i.ok("run", SLIM, "find", "/bin", "/usr", "/var").out


def test_size_is_that_of_the_runtime_image_and_the_program(bench: Bench, slim: Done) -> None:
    image = bench.image(SLIM)
    base = LayoutImage(Path(bench.images.runtime.split(":")[1]), "latest")
    assert image.size <= base.size + image.members()["app"].size + MIB


@better("runtime.run-script", "an absolute path, of the runtime image's own script")
@same("runtime.config")
def test_command_and_config_are_the_runtime_images(bench: Bench, slim: Done) -> None:
    config = bench.image(SLIM).config
    assert config["Cmd"] == ["/usr/libexec/s2i/bin/run"]
    assert "Entrypoint" not in config
    assert config["User"] == "1001"
    assert not config.get("WorkingDir")
    assert config["Env"] == ["PATH=/usr/bin:/bin"]
    assert config["Labels"]["io.k8s.description"] == "Runs what the C builder image makes"
    assert config["Labels"]["io.openshift.s2i.build.image"].startswith("oci:")


def test_result_on_the_runtime_image_answers(bench: Bench, slim: Done) -> None:
    assert_answers(bench, SLIM)


@better("incremental.with-runtime-image", "what `save-artifacts` gives is kept in the store")
def test_incremental_build_on_a_runtime_image(bench: Bench) -> None:
    clean = bench.extended(CACHED, "--incremental")
    assert "---> Compiling main.c\n" in clean.err
    again = bench.extended(CACHED, "--incremental", *NO_COMPILER)
    assert "Pulling cache...\n" in again.err
    assert "---> Using main.c from the cache\n" in again.err
    assert "Nothing special to do here...\n" in again.err
    assert sorted(bench.image(CACHED).members()) == ["app"]
    assert_answers(bench, CACHED)


# --- as a Dockerfile ------------------------------------------------------------------------------


def instructions(text: str, word: str) -> list[str]:
    """The instructions of a Dockerfile with this word, continuation lines joined."""
    joined = text.replace("\\\n", " ")
    return [line for line in joined.splitlines() if line.startswith(f"{word} ")]


@same("--as-dockerfile")
@same("dockerfile.source")
@same("dockerfile.assemble")
@better("dockerfile.cmd", "in exec form")
def test_dockerfile_has_source_assemble_and_command(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "out" / "Dockerfile.gen"
    path.parent.mkdir()
    bench.build(APP, "--as-dockerfile", path)
    text = path.read_text()
    assert len(instructions(text, "FROM")) == 1
    assert [line for line in instructions(text, "COPY") if "upload/src" in line]
    assert [line for line in instructions(text, "RUN") if "/usr/libexec/s2i/bin/assemble" in line]
    assert instructions(text, "CMD") == ['CMD ["/usr/libexec/s2i/bin/run"]']
    copied = path.parent / "upload" / "src" / "main.c"
    assert copied.read_bytes() == (SOURCE / "main.c").read_bytes()


@better("dockerfile.runtime-image", "a second stage")
def test_dockerfile_with_a_runtime_image_has_two_stages(bench: Bench, tmp_path: Path) -> None:
    path = tmp_path / "out" / "Dockerfile"
    path.parent.mkdir()
    bench.extended(SLIM, "--as-dockerfile", path)
    text = path.read_text()
    assert len(instructions(text, "FROM")) == 2
    assert [line for line in instructions(text, "COPY") if "--from=" in line and BINARY in line]
    assert instructions(text, "CMD")[-1] == 'CMD ["/usr/libexec/s2i/bin/run"]'
