"""An input that did not change finds its finished image, and everything that changes is built."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fakes.bench import Bench, offer, sh
from tests.fakes.program import Done
from tests.fakes.registry import FakeRegistry

BUILDER = sh('cp -r /tmp/src/. "$HOME"', 'date +%N > "$HOME/moment"', "echo assembled: yes")


@dataclass
class Scene:
    """A source and a builder, and builds of them by one command line."""

    bench: Bench
    builder: str

    @property
    def source(self) -> Path:
        """Where the source is."""
        return self.bench.directory / "source"

    def build(self, *flags: str | Path) -> Done:
        """One build that succeeds."""
        done = self.bench.ocis2i.ok("build", self.source, self.builder, self.bench.tag, *flags)
        assert ("---> unchanged" in done.err) != ("assembled: yes" in done.err), done.err
        return done

    def is_built(self, *flags: str | Path) -> bool:
        """Whether assemble runs."""
        return "assembled: yes" in self.build(*flags).err


@pytest.fixture
def scene(bench: Bench) -> Scene:
    """A scene where the cache is on, as it is for users; nothing is built yet."""
    bench = bench.with_variables(OCIS2I_NO_CACHE="0")
    bench.source({"lib/app.py": "print(1)\n", "run.sh": "true\n"})
    (bench.directory / "source/link").symlink_to("run.sh")
    builder = bench.image("builder", BUILDER)
    time.sleep(0.05)  # a source that is younger than the clock's tick is not known by its times
    return Scene(bench, builder)


def test_the_second_build_is_none_and_says_so(scene: Scene, tmp_path: Path) -> None:
    first = scene.build("--json").document
    second = scene.build("--json", "-o", f"oci:{tmp_path}/out:x", "--tag", "other:1").document
    assert first["unchanged_since"] is None
    assert second["unchanged_since"].endswith("Z")
    for field in ("digest", "config", "layers", "changes", "isolation", "builder", "base"):
        assert second[field] == first[field]
    assert [stage["name"] for stage in second["stages"]] == ["unchanged", "output"]
    assert second["names"][1:] == ["docker.io/library/other:1"]
    assert (tmp_path / "out/oci-layout").exists()
    said = scene.build().err.splitlines()
    (line,) = [line for line in said if "unchanged" in line]
    assert line.endswith("--no-cache builds again")
    time.sleep(1)  # images of one second may be the same: their times are in seconds
    assert scene.is_built("--no-cache")
    third = scene.build("--json").document
    assert third["digest"] != first["digest"]  # what was built last


def _own_script(root: Path) -> None:
    (root / ".s2i/bin").mkdir(parents=True)
    (root / ".s2i/bin/assemble").write_text("#!/bin/sh\necho assembled: yes\n")


CHANGES: dict[str, Callable[[Path], object]] = {
    "a mode bit": lambda root: (root / "run.sh").chmod(0o755),
    "an empty directory": lambda root: (root / "empty").mkdir(),
    "a script of its own": _own_script,
    "a variable": lambda root: (root / ".s2i/environment").write_text("A=1\n"),
}
FLAGS = [
    ["--env", "A=1", "--env", "B=2"],
    ["--env", "B=2", "--env", "A=1"],
    ["--timestamp", "1700000000"],
    ["--compression", "zstd"],
]


def test_everything_that_changes_is_built(scene: Scene) -> None:
    assert scene.is_built()
    for path in (scene.source / "lib/app.py", scene.source / "lib", scene.source):
        os.utime(path, (1_000_000_000, 1_000_000_000))
    assert not scene.is_built(), "times alone"
    copy = shutil.copytree(scene.source, scene.bench.directory / "before", symlinks=True)
    for change, make in CHANGES.items():
        make(scene.source)
        time.sleep(0.03)
        assert scene.is_built(), change
    shutil.rmtree(scene.source)
    copy.rename(scene.source)
    assert not scene.is_built(), "all as it was first"


def test_every_flag_that_makes_another_image_is_built(scene: Scene) -> None:
    assert scene.is_built()
    for flags in FLAGS:
        assert scene.is_built(*flags), flags
    assert not scene.is_built(*FLAGS[0])
    time.sleep(1)
    assert scene.is_built("--reuse-within", "1s")


@pytest.mark.parametrize(
    "flags",
    [["--incremental"], ["--build-env", "A=1"], ["--save-temp-dir"]],
    ids=" ".join,
)
def test_what_cannot_be_compared_is_built_each_time(scene: Scene, flags: list[str]) -> None:
    assert scene.is_built(*flags)
    assert scene.is_built(*flags)


def test_scripts_of_the_host_count(scene: Scene) -> None:
    scripts = scene.bench.directory / "scripts"
    scripts.mkdir()
    (scripts / "assemble").write_text("#!/bin/sh\necho assembled: yes\n")
    flags = ("--scripts-url", f"file://{scripts}")
    assert scene.is_built(*flags)
    assert not scene.is_built(*flags)
    (scripts / "run").write_text("#!/bin/sh\n")
    assert scene.is_built(*flags)
    (scripts / "assemble").write_text("#!/bin/sh\necho assembled: yes # other\n")
    assert scene.is_built(*flags)


def test_a_builder_of_the_same_name_counts_and_a_push_still_happens(
    scene: Scene, registry: FakeRegistry
) -> None:
    name = offer(registry, scene.builder, "builder", "1")
    target = f"{registry.host}/app:1"

    def build() -> Done:
        words = ("build", scene.source, name, target, "--tls-verify=false", "--push")
        return scene.bench.ocis2i.ok(*words, "--pull-policy", "always", "--json")

    first = build().document
    assert first["pushed"] and first["unchanged_since"] is None
    again = build().document
    assert again["pushed"] and again["unchanged_since"]
    assert again["digest"] == first["digest"]
    offer(registry, scene.bench.image("builder2", sh("echo assembled: yes")), "builder", "1")
    other = build().document
    assert other["unchanged_since"] is None and other["digest"] != first["digest"]


def test_an_image_that_is_not_whole_is_built_again(scene: Scene) -> None:
    def layer() -> Path:
        digest = scene.bench.result().layers[-1]
        return scene.bench.result().blob(digest)

    scene.build()
    blob = layer()
    data = bytearray(blob.read_bytes())
    blob.chmod(0o644)
    blob.write_bytes(bytes(data))
    assert not scene.is_built(), "touched, and whole"
    data[-1] ^= 1
    blob.write_bytes(bytes(data))
    assert scene.is_built(), "damaged"
    layer().unlink()
    assert scene.is_built(), "lost"
    scene.bench.ocis2i.ok("rm", scene.bench.tag)
    assert not scene.is_built(), "its name removed, and not pruned"
    scene.bench.ocis2i.ok("rm", scene.bench.tag)
    scene.bench.ocis2i.ok("prune")
    assert scene.is_built(), "pruned"


def test_a_build_of_a_repository_is_known_by_its_commit(scene: Scene) -> None:
    def git(*words: str) -> None:
        subprocess.run(
            ["git", "-c", "user.name=a", "-c", "user.email=a@b", *words],
            cwd=scene.source,
            check=True,
            capture_output=True,
        )

    git("init", "--quiet", "--initial-branch=main")
    git("add", "--all")
    git("commit", "--quiet", "--message=one")
    assert scene.is_built()
    (scene.source / "run.sh").write_text("not committed\n")
    done = scene.build()
    assert "---> unchanged" in done.err
    assert "1 file with changes not committed" in done.err
    git("commit", "--quiet", "--all", "--message=two")
    assert scene.is_built()
    assert not scene.is_built()
    git("checkout", "--quiet", "-b", "other")
    assert scene.is_built(), "the label of the branch is another"
    settings = scene.bench.directory / "gitconfig"
    settings.write_text("[core]\n\tautocrlf = true\n[http]\n\textraHeader = A: secret\n")
    scene.bench = scene.bench.with_variables(GIT_CONFIG_GLOBAL=str(settings))
    assert scene.is_built(), "files are checked out in another way"
    settings.write_text("[core]\n\tautocrlf = true\n")
    assert not scene.is_built(), "credentials do not count"


def test_a_source_that_changes_during_the_build_is_not_taken_for_what_was_built(
    bench: Bench,
) -> None:
    bench = bench.with_variables(OCIS2I_NO_CACHE="0")
    bench.source()
    time.sleep(0.05)
    builder = bench.image("builder", sh("echo now", "sleep 0.4", "echo assembled: yes"))
    command = ("build", bench.directory / "source", builder, bench.tag)
    with bench.ocis2i.start(*command) as started:
        assert started.stderr is not None
        for line in started.stderr:
            if line == "now\n":
                (bench.directory / "source/index.html").write_text("changed")
        assert started.wait(60) == 0
    assert Scene(bench, builder).is_built()
    assert not Scene(bench, builder).is_built()


def test_killed_and_concurrent_builds_leave_no_wrong_note(scene: Scene) -> None:
    scene.builder = scene.bench.image(
        "slow", sh("echo now", "[ -e /tmp/src/slow ] && sleep 20", "echo assembled: yes")
    )
    (scene.source / "slow").touch()
    time.sleep(0.05)
    command = ("build", scene.source, scene.builder, scene.bench.tag)
    with scene.bench.ocis2i.start(*command) as started:
        assert started.stderr is not None
        for line in started.stderr:
            if line == "now\n":
                break
        started.send_signal(signal.SIGKILL)
        started.communicate(timeout=60)
    scene.builder = scene.bench.image("quick", BUILDER)
    with ThreadPoolExecutor(3) as pool:
        done = list(pool.map(lambda _: scene.bench.ocis2i.ok(*_words(scene)), range(3)))
    assert all(one.code == 0 for one in done)
    assert not scene.is_built()


def _words(scene: Scene) -> tuple[str | Path, ...]:
    return ("build", scene.source, scene.builder, scene.bench.tag)
