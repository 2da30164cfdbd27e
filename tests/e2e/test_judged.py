"""Command lines and sources as users of source-to-image have them, which once went wrong here."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.images import BUSYBOX, busybox_builder
from tests.fakes.program import Program, program

pytestmark = [
    pytest.mark.sandbox,
    pytest.mark.skipif(not BUSYBOX.exists(), reason="busybox-static is not installed"),
]

TELL = """\
#!/bin/sh
cd /tmp && find src scripts ! -type d | sort | sed 's/^/file: /'
find src -name '.s2i' | sed 's/^/left: /'
"""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """One store for all tests here."""
    if os.geteuid() == 0:
        pytest.skip("the tests run as root; ocis2i builds as an ordinary user")
    with program(tmp_path_factory.mktemp("judged")) as one:
        yield one


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A builder whose assemble tells which files it sees."""
    path = tmp_path_factory.mktemp("builder") / "layout"
    busybox_builder(path, "b", scripts={"assemble": TELL})
    return f"oci:{path}:b"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A source of one file."""
    path = tmp_path / "app"
    path.mkdir()
    (path / "index.html").write_text("hello\n")
    return path


def write(path: Path, text: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def told(text: str, key: str) -> list[str]:
    return [line.partition(": ")[2] for line in text.splitlines() if line.startswith(f"{key}: ")]


def labels(running: Program, name: str) -> dict[str, str]:
    document = json.loads(running.ok("inspect", "--config", name).out)
    found: dict[str, str] = document["config"]["Labels"]
    return found


# --- words ------------------------------------------------------------------------------------


def test_the_line_of_every_builders_own_test_is_understood(
    running: Program, builder: str, source: Path
) -> None:
    # `test/run` as `s2i create` writes it, and the test suites of many builder images.
    line = ("--incremental=true", "--pull-policy=never", "--loglevel=2")
    again = ("--incremental-pull-policy=never", "--rm=true")
    first = running.ok("build", *line, *again, source, builder, "words:1")
    assert "no previous image" in first.err
    second = running.ok("build", *line, *again, source, builder, "words:1")
    assert "restoring artifacts" in second.err


def test_a_switch_that_is_false_is_off(running: Program, builder: str, source: Path) -> None:
    done = running.ok(
        "build", "--quiet", "-q=false", "--incremental=true", "--incremental=0", source, builder
    )
    assert "assembling" in done.err
    assert "--incremental needs a tag" not in done.err


def test_a_switch_is_true_or_false_and_nothing_else(running: Program, source: Path) -> None:
    done = running("build", "--incremental=perhaps", source, "oci:/nowhere")
    assert done.code == 2
    assert "`--incremental` is `perhaps`" in done.err


def test_an_equals_sign_after_a_short_flag_is_not_part_of_the_value(
    running: Program, builder: str, source: Path
) -> None:
    running.ok("build", "-q=true", "-n=shop", "-e=GREETING=a=b", source, builder, "words:2")
    assert labels(running, "words:2")["io.k8s.display-name"] == "shop"
    document = json.loads(running.ok("inspect", "--config", "words:2").out)
    assert document["config"]["Env"][0] == "GREETING=a=b"


def test_words_of_a_command_in_an_image_are_left_alone(
    running: Program, builder: str, source: Path
) -> None:
    running.ok("build", "-q", source, builder, "words:3")
    done = running.ok("run", "words:3", "sh", "-c", 'echo "$0 $1"', "--quiet=no", "-n=x")
    assert done.out == "--quiet=no -n=x\n"


def test_a_switch_that_is_false_beats_the_stored_one(
    running: Program, builder: str, source: Path, tmp_path: Path
) -> None:
    running.ok("build", "--use-config", "--incremental", "-q", source, builder, cwd=tmp_path)
    again = running.ok("build", "--use-config", "--incremental=false", cwd=tmp_path)
    assert "--incremental needs a tag" not in again.err
    stored = json.loads((tmp_path / ".s2ifile").read_text())
    assert stored["flags"]["incremental"] == "false"


def test_help_is_a_verb(running: Program) -> None:
    assert running.ok("help").out == running.ok("--help").out
    assert running.ok("help", "build").out == running.ok("build", "--help").out
    unknown = running("help", "frobnicate")
    assert (unknown.code, unknown.out) == (2, "")
    assert "`frobnicate`" in unknown.err


def test_switches_before_the_verb_may_have_a_value_too(running: Program) -> None:
    on = running.ok("--tls=true", "images")
    off = running.ok("--tls=false", "images")
    assert "--tls: ignored" in on.err
    assert off.err == ""
    assert running("--tls=perhaps", "images").code == 2


# --- sources ----------------------------------------------------------------------------------


@pytest.mark.parametrize("cloned", [False, True], ids=["copied", "cloned"])
def test_nothing_of_an_ignored_s2i_directory_is_in_the_image(
    running: Program, builder: str, source: Path, cloned: bool
) -> None:
    for name in ("run", "usage", "assemble-runtime"):
        write(source / ".s2i/bin" / name, f"#!/bin/sh\necho {name}\n")
    write(source / ".s2i/bin/README")
    write(source / ".s2iignore", ".s2i\n")
    if cloned:
        for words in ("init -q", "add -A", "-c user.name=a -c user.email=b commit -qm x"):
            subprocess.run(["git", *words.split()], cwd=source, check=True, timeout=60)
    done = running.ok("build", source, builder, "ignored:1")
    assert told(done.err, "file") == ["scripts/run", "src/.s2iignore", "src/index.html"]
    assert told(done.err, "left") == []


def test_ignored_script_stays_out_when_another_place_has_it(
    running: Program, builder: str, source: Path, tmp_path: Path
) -> None:
    write(source / ".s2i/bin/run", "#!/bin/sh\necho mine\n")
    write(tmp_path / "scripts/run", "#!/bin/sh\necho other\n")
    done = running.ok(
        "build", source, builder, "--exclude=[.]s2i", "-s", f"file://{tmp_path}/scripts"
    )
    assert told(done.err, "file") == ["scripts/run", "src/index.html"]
    assert told(done.err, "left") == []


def test_scripts_directory_that_no_rule_names_stays(
    running: Program, builder: str, source: Path
) -> None:
    write(source / ".s2i/bin/run", "#!/bin/sh\n")
    write(source / ".s2i/bin/usage", "#!/bin/sh\n")
    done = running.ok("build", source, builder)
    assert told(done.err, "file") == ["scripts/run", "src/.s2i/bin/usage", "src/index.html"]


def test_exclude_knows_the_classes_of_go(running: Program, builder: str, source: Path) -> None:
    for name in ("v1", "vd", "v:"):
        write(source / name)
    done = running.ok("build", source, builder, "--exclude", r"^v[[:digit:]]\z")
    assert told(done.err, "file") == ["src/index.html", "src/v:", "src/vd"]
    assert "Warning" not in done.err


def test_an_empty_fragment_is_none(running: Program, builder: str, source: Path) -> None:
    running.ok("build", "-q", f"{source}#", builder, "fragment:1")
    assert labels(running, "fragment:1")["io.openshift.s2i.build.source-location"] == str(source)
