"""The other verbs of source-to-image, `--run` and `--callback-url`, seen through the program.

The sections 1.4, 1.5, 10.4 and 12.3 of the contract.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import needs
from tests.contract import better, same
from tests.fakes.bench import Maker, error, warnings
from tests.fakes.images import (
    BUSYBOX,
    HOME,
    Layer,
    LayoutImage,
)
from tests.fakes.program import ARGV, PROJECT, Done, Program
from tests.fakes.registry import FakeRegistry
from tests.fakes.web import Answer, FakeWeb

pytestmark = [
    pytest.mark.sandbox,
    pytest.mark.skipif(not BUSYBOX.exists(), reason="busybox-static is not installed"),
]

Json = dict[str, Any]
SHELL = "#!/bin/sh\n"
BUILD = "io.openshift.s2i.build."
CANARY = "the canary of this host"


def config(program: Program, image: str) -> Json:
    found: Json = program.ok("inspect", image).document["config"]
    return found


def in_home(program: Program, image: str, name: str) -> str:
    """A file that assemble put into the home directory of an image."""
    return program.ok("run", image, "cat", f"{HOME}/{name}").out


# --- rebuild ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Repository:
    """A git repository whose directory `web` is an application."""

    path: Path

    def git(self, *words: str) -> str:
        who = {
            f"GIT_{role}_{what}": f"{what.lower()}@example.org"
            for role in ("AUTHOR", "COMMITTER")
            for what in ("NAME", "EMAIL")
        }
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.path)} | who
        done = subprocess.run(
            ["git", *words],
            cwd=self.path,
            env=environment,
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout.strip()

    def commit(self, page: str) -> str:
        """Commits another page; the id of the commit."""
        (self.path / "web").mkdir(exist_ok=True)
        (self.path / "web" / "index.html").write_text(page)
        self.git("add", ".")
        self.git("commit", "-q", "-m", page)
        return self.git("rev-parse", "HEAD")


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    made = Repository(tmp_path / "repository")
    made.path.mkdir()
    made.git("init", "-q", "-b", "main")
    return made


@same("rebuild")
@better("rebuild.commit", "the recorded commit is built")
@same("rebuild.context-dir")
@same("rebuild.names")
@same("rebuild.tag")
@better("rebuild.not-restored", "not known, but all flags of `build` for them are there")
def test_rebuild_repeats_a_build_of_git(
    ocis2i: Program, builder: str, repository: Repository
) -> None:
    first = repository.commit("first")
    repository.git("tag", "v1")
    repository.commit("second")
    ocis2i.ok(
        *("build", repository.path, builder, "app:1", "--ref", "v1", "--context-dir", "web"),
        *("--description", "An app", "-n", "The app", "-e", "COLOUR=red"),
    )
    repository.commit("third")
    done = ocis2i.ok("rebuild", "app:1", "app:2", "-e", "SHAPE=round")
    assert done.out.startswith("docker.io/library/app@sha256:")
    assert in_home(ocis2i, "app:2", "index.html") == "first"
    made = config(ocis2i, "app:2")
    assert made["Labels"][f"{BUILD}commit.id"] == first
    assert made["Labels"][f"{BUILD}source-context-dir"] == "web"
    assert made["Labels"]["io.k8s.description"] == "An app"
    assert made["Labels"]["io.k8s.display-name"] == "The app"
    assert made["Labels"][f"{BUILD}image"] == builder
    assert "SHAPE=round" in made["Env"]
    assert not [one for one in made["Env"] if one.startswith("COLOUR")]
    # Without a new tag the image itself is replaced; the other one stays.
    before = ocis2i.ok("inspect", "app:1").document["digest"]
    again = ocis2i.ok("rebuild", "app:1")
    after = ocis2i.ok("inspect", "app:1").document["digest"]
    assert again.out == f"docker.io/library/app@{after}\n"
    assert before != after


@better("rebuild.source-scripts", "they count, as in the build")
def test_rebuild_uses_the_scripts_of_the_source(
    shared: Program, builder: str, source: Path
) -> None:
    (source / ".s2i" / "bin").mkdir(parents=True)
    (source / ".s2i" / "bin" / "assemble").write_text(f"{SHELL}echo of the source\n")
    shared.ok("build", source, builder, "app:scripts")
    done = shared.ok("rebuild", "app:scripts")
    assert "\nof the source\n" in done.err
    assert warnings(done) == [
        f"`{source}` is built as it is now: the image does not say what was in it"
    ]


@same("rebuild.builder-label-required")
@same("rebuild.source-label-required")
@pytest.mark.parametrize("missing", ["image", "source-location"])
def test_rebuild_needs_labels(ocis2i: Program, make: Maker, missing: str) -> None:
    labels = {f"{BUILD}image": "b:1", f"{BUILD}source-location": "https://x.example/y"}
    del labels[BUILD + missing]
    done = ocis2i("rebuild", make(labels=labels), "new:1")
    assert (done.code, done.out) == (4, "")
    assert f"required label `{BUILD}{missing}` not found in image" in error(done)


def test_rebuild_of_a_file_needs_a_new_tag(shared: Program, builder: str) -> None:
    done = shared("rebuild", builder)
    assert done.code == 2
    assert "is no name for the result" in error(done)


@needs("git")
def test_rebuild_of_an_image_from_elsewhere(
    ocis2i: Program, make: Maker, repository: Repository
) -> None:
    """Builder, source and image are all far away."""
    commit = repository.commit("from afar")
    repository.git("update-server-info")
    with FakeRegistry() as registry, FakeWeb() as web:
        for path in (repository.path / ".git").rglob("*"):
            if path.is_file():
                name = f"/app.git/{path.relative_to(repository.path / '.git')}"
                web.put(name, path.read_bytes())
                web.put(f"{name}?service=git-upload-pack", path.read_bytes())
        made = registry.put_layout("b", "1", Path(make().split(":")[1]))
        labels = {
            f"{BUILD}image": made,
            f"{BUILD}source-location": f"{web.url}/app.git",
            f"{BUILD}source-context-dir": "web",
            f"{BUILD}commit.id": commit,
        }
        # Only the image's labels count: its layers stay where they are.
        own = Layer().file("opt/unwanted", "a layer of its own")
        layout = Path(make(labels=labels, more_layers=[own]).split(":")[1])
        ocis2i.ok("rebuild", registry.put_layout("far", "1", layout), "near:1")
        assert registry.requests("GET", "/far/blobs/") != []
        unwanted = LayoutImage(layout, "b:1").layers[-1]
        assert registry.requests("GET", f"/far/blobs/{unwanted}") == []
    assert in_home(ocis2i, "near:1", "index.html") == "from afar"


# --- rebuild of images that somebody else made ------------------------------------------------


@dataclass(frozen=True)
class Victim:
    """A directory of this host, and an image that wants to have it built."""

    directory: Path
    labels: Mapping[str, str]


@pytest.fixture
def victim(tmp_path: Path, builder: str) -> Victim:
    directory = tmp_path / "private"
    directory.mkdir()
    (directory / "index.html").write_text(CANARY)
    labels = {f"{BUILD}image": builder, f"{BUILD}source-location": str(directory)}
    return Victim(directory, labels)


def assert_refused(ocis2i: Program, done: Done, what: str) -> None:
    assert (done.code, done.out) == (9, "")
    assert f"names the {what} `" in error(done)
    assert "a path of this host" in error(done)
    assert CANARY not in done.err
    found = subprocess.run(
        ["grep", "-rl", CANARY, ocis2i.store], capture_output=True, text=True, check=False
    )
    assert found.stdout == ""
    assert "new:1" not in ocis2i.ok("images").out


@pytest.mark.parametrize("way", ["registry", "pulled before", "file"])
def test_image_from_elsewhere_chooses_no_directory_of_this_host(
    ocis2i: Program, make: Maker, victim: Victim, way: str
) -> None:
    image = make(labels=victim.labels)
    with FakeRegistry() as registry:
        if way != "file":
            image = registry.put_layout("hostile", "1", Path(image.split(":")[1]))
        if way == "pulled before":
            ocis2i.ok("pull", image)
        assert_refused(ocis2i, ocis2i("rebuild", image, "new:1"), "source")


def test_image_from_elsewhere_chooses_no_builder_of_this_host(
    ocis2i: Program, make: Maker, victim: Victim
) -> None:
    labels = {**victim.labels, f"{BUILD}source-location": "https://x.example/app.git"}
    with FakeRegistry() as registry:
        layout = Path(make(labels=labels).split(":")[1])
        image = registry.put_layout("hostile", "1", layout)
        assert_refused(ocis2i, ocis2i("rebuild", image, "new:1"), "builder")


def test_assemble_chooses_no_directory_of_this_host(
    ocis2i: Program, make: Maker, source: Path, victim: Victim
) -> None:
    """Labels of `image_metadata.json` beat those that the build writes itself."""
    metadata = json.dumps({"labels": [{f"{BUILD}source-location": str(victim.directory)}]})
    script = f"{SHELL}mkdir -p /tmp/.s2i\necho '{metadata}' > /tmp/.s2i/image_metadata.json\n"
    ocis2i.ok("build", source, make({"assemble": script}), "app:1")
    labels = config(ocis2i, "app:1")["Labels"]
    assert labels[f"{BUILD}source-location"] == str(victim.directory)
    assert_refused(ocis2i, ocis2i("rebuild", "app:1", "new:1"), "source")


# --- usage ------------------------------------------------------------------------------------


@better("usage.stdout", "on standard output, as the script prints it")
@better("usage.leaves-nothing", "no image is made")
def test_usage_is_printed_as_it_is(ocis2i: Program, make: Maker) -> None:
    script = f"{SHELL}printf '  two blanks \\n\\n\\tand a tab'\necho to stderr >&2\n"
    done = ocis2i.ok("usage", make({"usage": script}))
    assert done.out == "  two blanks \n\n\tand a tab"
    assert done.err == "to stderr\n"
    assert ocis2i.ok("images", "--json").document["images"] == []
    assert os.listdir(ocis2i.store / "builds") == []


@same("usage --location")
def test_usage_has_the_outdated_name_of_destination(
    shared: Program, builder: str, tmp_path: Path
) -> None:
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "usage").write_text(f'{SHELL}echo "$0 $(id -u) $COLOUR"\n')
    words: list[str | Path] = [
        "usage",
        builder,
        "-s",
        f"file://{tmp_path}/scripts",
        "-e",
        "COLOUR=red",
    ]
    done = shared.ok(*words, "-l", "/opt/given")
    assert done.out == "/opt/given/scripts/usage 1001 red\n"
    assert warnings(done) == ["--location is deprecated, use --destination"]
    assert shared.ok(*words, "-d", "/opt/other").out == "/opt/other/scripts/usage 1001 red\n"


@same("usage.missing-script")
def test_usage_without_the_script(shared: Program, make: Maker) -> None:
    done = shared("usage", make({"usage": None}))
    assert (done.code, done.out) == (4, "")
    assert "`/usr/libexec/s2i/usage`" in error(done)


def test_usage_ends_with_the_exit_code_of_the_script(shared: Program, make: Maker) -> None:
    done = shared("usage", make({"usage": f"{SHELL}echo bye\nexit 42\n"}))
    assert (done.code, done.out) == (42, "bye\n")


@better("s2iignore.no-source", "no file is looked at, and none removed")
def test_usage_and_generate_leave_the_current_directory_alone(
    shared: Program, builder: str, tmp_path: Path
) -> None:
    (tmp_path / ".s2iignore").write_text("precious\n")
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "out").mkdir()
    shared.ok("usage", builder, cwd=tmp_path)
    shared.ok("generate", builder, tmp_path / "out" / "Dockerfile", cwd=tmp_path)
    assert (tmp_path / "precious").read_text() == "mine"


# --- signals ----------------------------------------------------------------------------------

WAITS = f"{SHELL}trap 'exit 1' INT TERM\necho ready\nwhile :; do sleep 0.1; done\n"
IGNORES = f"{SHELL}trap '' INT TERM\necho ready\nwhile :; do sleep 0.1; done\n"


def stopped(ocis2i: Program, words: Sequence[str | Path], number: signal.Signals) -> Done:
    """Sends a signal to the whole foreground as soon as the script says `ready`."""
    process = ocis2i.start(*words)
    assert process.stdout is not None and process.stderr is not None
    stream = process.stdout if words[0] == "usage" else process.stderr
    seen = []
    try:
        for line in stream:
            seen.append(line)
            if line == "ready\n":
                os.killpg(process.pid, number)
                break
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    before = "".join(seen)
    usage = words[0] == "usage"
    return Done(process.returncode, before + out if usage else out, err if usage else before + err)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["INT", "TERM"]
)
def test_signal_ends_usage(shared: Program, make: Maker, number: signal.Signals, code: int) -> None:
    done = stopped(shared, ("usage", make({"usage": WAITS})), number)
    assert done.code == code
    assert done.out == "ready\n"
    assert error(done).startswith("error: stopped by ")
    assert os.listdir(shared.store / "builds") == []


@better("--run", "it ends with 7 when the image does not end with 0; it needs no tag")
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["INT", "TERM"]
)
@pytest.mark.parametrize("script", [WAITS, IGNORES], ids=["traps", "ignores"])
def test_signal_ends_the_image_that_is_run(
    shared: Program, make: Maker, source: Path, script: str, number: signal.Signals, code: int
) -> None:
    tag = f"run:{number.name.lower()}"
    words = ("build", source, make({"run": script}), tag, "--run")
    done = stopped(shared, words, number)
    assert done.code == code
    # The build itself is over: its result was told, and stays.
    digest = shared.ok("inspect", tag).document["digest"]
    assert done.out == f"docker.io/library/run@{digest}\n"
    assert os.listdir(shared.store / "builds") == []


# --- run --------------------------------------------------------------------------------------


@better("--run", "it ends with 7 when the image does not end with 0; it needs no tag")
@pytest.mark.parametrize("tag", [["run:ends"], []], ids=["tag", "no-tag"])
def test_result_is_run(shared: Program, make: Maker, source: Path, tag: list[str]) -> None:
    script = f"{SHELL}echo I am $(id -u) with $COLOUR\necho and this is stderr >&2\n"
    words: list[str | Path] = ["build", source, make({"run": script}), *tag, "--run"]
    done = shared.ok(*words, "-e", "COLOUR=red")
    assert len(done.out.splitlines()) == 1
    assert "sha256:" in done.out
    lines = done.err.splitlines()
    assert "I am 1001 with red" in lines
    assert "and this is stderr" in lines
    assert lines.index("I am 1001 with red") > lines.index("---> Installing application source")


@better("--run", "it ends with 7 when the image does not end with 0; it needs no tag")
def test_image_that_fails_fails_the_command(shared: Program, make: Maker, source: Path) -> None:
    builder = make({"run": f"{SHELL}exit 3\n"})
    done = shared("build", source, builder, "run:fails", "--run", "--json")
    assert done.code == 7
    assert error(done) == "error: the image ran and ended with exit code 3"
    # One document: that of the build, which succeeded.
    assert (done.document["state"], done.document["name"]) == (
        "succeeded",
        "docker.io/library/run:fails",
    )


def test_nothing_is_run_after_a_build_that_failed(
    shared: Program, make: Maker, source: Path
) -> None:
    scripts = {"assemble": f"{SHELL}exit 1\n", "run": f"{SHELL}echo it runs\n"}
    done = shared("build", source, make(scripts), "run:never", "--run")
    assert done.code == 7
    assert "it runs" not in done.err


# --- callback ---------------------------------------------------------------------------------


@pytest.fixture
def web(web: FakeWeb) -> FakeWeb:
    """The web server, which takes callbacks."""
    web.put("/done", b"thanks\n")
    return web


@same("--callback-url")
@same("callback.success")
def test_callback_of_a_build(shared: Program, builder: str, source: Path, web: FakeWeb) -> None:
    words = ("build", source, builder, "called:1", "--description", "a < b & c > d")
    done = shared.ok(*words, "--callback-url", f"{web.url}/done", "--json")
    (asked,) = web.log
    assert (asked.method, asked.path) == ("POST", "/done")
    assert asked.headers["content-type"] == "application/json"
    assert asked.body.endswith(b"}\n")
    assert b"a \\u003c b \\u0026 c \\u003e d" in asked.body
    assert json.loads(asked.body) == {
        "labels": config(shared, "called:1")["Labels"],
        "success": True,
    }
    assert done.document["messages"] == []
    assert warnings(done) == []


@same("callback.failure")
def test_callback_of_a_build_that_fails(
    shared: Program, make: Maker, source: Path, web: FakeWeb
) -> None:
    builder = make({"assemble": f"{SHELL}exit 13\n"})
    done = shared("build", source, builder, "called:3", "--callback-url", f"{web.url}/done")
    assert done.code == 7
    assert [one.body for one in web.log] == [b'{"success":false}\n']


@better("callback.early-failure", "it is sent, too")
def test_callback_of_a_build_without_a_builder(shared: Program, source: Path, web: FakeWeb) -> None:
    words = ("build", source, "no/builder:1", "--pull-policy", "never")
    done = shared(*words, "--callback-url", f"{web.url}/done")
    assert done.code == 4
    assert [one.body for one in web.log] == [b'{"success":false}\n']


def test_callback_of_a_rebuild(shared: Program, builder: str, source: Path, web: FakeWeb) -> None:
    shared.ok("build", source, builder, "called:4")
    shared.ok("rebuild", "called:4", "--callback-url", f"{web.url}/done")
    assert [json.loads(one.body)["success"] for one in web.log] == [True]


@same("callback.answer")
@same("callback.exit-code")
@pytest.mark.parametrize(("assemble", "code"), [("true", 0), ("exit 1", 7)])
def test_answer_of_an_error_is_a_message(
    shared: Program, make: Maker, source: Path, web: FakeWeb, assemble: str, code: int
) -> None:
    web.put("/gone", Answer(b"no", 410))
    builder = make({"assemble": f"{SHELL}{assemble}\n"})
    words = ("build", source, builder, "--callback-url", f"{web.url}/gone", "--json")
    done = shared(*words)
    assert done.code == code
    message = "Callback returned with error code: 410"
    assert warnings(done) == [message]
    assert len(web.log) == 1
    if code == 0:
        assert done.document["messages"] == [message]


@better("callback.retries", "up to three attempts, each with the whole body")
def test_callback_is_tried_three_times(
    shared: Program, builder: str, source: Path, web: FakeWeb
) -> None:
    web.put("/done", Answer(drop=True), Answer(drop=True), Answer(b"thanks\n"))
    done = shared.ok("build", source, builder, "--callback-url", f"{web.url}/done")
    assert warnings(done) == []
    assert len(web.log) == 3
    assert len({one.body for one in web.log}) == 1
    assert json.loads(web.log[0].body)["success"] is True


@same("callback.exit-code")
def test_nobody_takes_the_callback(
    shared: Program, builder: str, source: Path, web: FakeWeb
) -> None:
    web.put("/done", Answer(drop=True))
    url = f"http://jane:hunter2@{web.host}/done"
    done = shared.ok("build", source, builder, "--callback-url", url, "--json")
    assert len(web.log) == 3
    (message,) = done.document["messages"]
    assert message.startswith("Unable to invoke callback: ")
    assert "hunter2" not in done.out + done.err


@pytest.mark.parametrize("verb", ["build", "rebuild"])
def test_callback_to_no_url_is_refused(
    shared: Program, builder: str, source: Path, verb: str
) -> None:
    words: dict[str, list[str | Path]] = {"build": [source, builder], "rebuild": ["app:1"]}
    done = shared(verb, *words[verb], "--callback-url", "ftp://somewhere/done")
    assert (done.code, done.out) == (2, "")
    assert "--callback-url is `ftp://somewhere/done`" in error(done)


# --- completion -------------------------------------------------------------------------------


@same("completion")
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(shared: Program, shell: str) -> None:
    done = shared.ok("completion", shell)
    assert "ocis2i" in done.out
    assert done.err == ""
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=done.out, text=True, check=True)


@same("completion")
@pytest.mark.parametrize("words", [[], ["tcsh"], ["bash", "zsh"]])
def test_completion_of_another_shell_is_refused(shared: Program, words: list[str]) -> None:
    done = shared("completion", *words)
    assert (done.code, done.out) == (2, "")
    assert error(done)


@needs("bash")
@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (["ocis2i", "reb"], ["rebuild"]),
        (["ocis2i", "build", "--incremental-p"], ["--incremental-pull-policy"]),
        (["ocis2i", "usage", "--loc"], ["--location"]),
    ],
)
def test_bash_completes_verbs_and_flags(
    shared: Program, tmp_path: Path, typed: list[str], offered: list[str]
) -> None:
    (tmp_path / "ocis2i").write_text(f'{SHELL}exec {ARGV[0]} -m ocis2i "$@"\n')
    (tmp_path / "ocis2i").chmod(0o755)
    ask = (
        "source <(ocis2i completion bash)\n"
        'COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))\n'
        '_ocis2i_completion "$1"\n'
        "printf '%s\\n' \"${COMPREPLY[@]}\"\n"
    )
    done = subprocess.run(
        ["bash", "-uc", ask, "bash", *typed],
        env={**shared.environment, "PATH": f"{tmp_path}:{shared.environment['PATH']}"},
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == offered
