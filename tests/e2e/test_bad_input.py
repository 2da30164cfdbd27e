"""Whatever is wrong with what it is given: one clear error, its exit code, nothing half-written."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import RUNC, needs
from tests.contract import better, same
from tests.fakes.docker_registry import HTPASSWD, USER, docker_registry, registry_program
from tests.fakes.images import ASSEMBLE, SCRIPTS, Layer, busybox_builder, make_index, make_layout
from tests.fakes.judges import validate_layout
from tests.fakes.processes import command_lines
from tests.fakes.program import Done, Program, called
from tests.fakes.registry import FakeRegistry

TAG = "app:1"
FULL_NAME = "docker.io/library/app:1"

# An address that is not loopback and belongs to this host, where it has one at all: ocis2i wants
# HTTPS there. The block is for documentation (RFC 5737), nothing is sent by `connect` on UDP.
_ELSEWHERE = ("192.0.2.1", 9)


@dataclass(frozen=True)
class World:
    """What the cases are made of: one directory for all, a builder that works, and registries."""

    path: Path
    fake: FakeRegistry

    @property
    def source(self) -> Path:
        """A source that can be built."""
        return self.path / "source"

    @property
    def good(self) -> str:
        """A builder that works."""
        return f"oci:{self.path}/good:builder:latest"

    def new(self) -> Path:
        """A path that is not there yet."""
        path = self.path / f"new-{len(list(self.path.iterdir()))}"
        assert not path.exists()
        return path

    def builder(self, **how: Any) -> str:
        """A builder made by `busybox_builder` with these parameters."""
        path = self.new()
        busybox_builder(path, "b:1", **how)
        return f"oci:{path}:b:1"

    def config_of(self, **how: Any) -> str:
        """An image with a config of one's own and without any files."""
        path = self.new()
        make_layout(path, "b:1", [Layer().dir("etc")], **how)
        return f"oci:{path}:b:1"

    def spoiled(self, spoil: Callable[[Path, dict[str, Any]], None]) -> str:
        """A builder whose last layer no store has yet, changed by `spoil(layout, manifest)`."""
        path = self.new()
        layer = Layer().file("noise", os.urandom(50_000).hex())
        busybox_builder(path, "builder:latest", more_layers=[layer])
        index = json.loads((path / "index.json").read_bytes())
        spoil(path, json.loads(_blob(path, index["manifests"][0]).read_bytes()))
        return f"oci:{path}:builder:latest"

    def git(self, *, commit: bool = True) -> Path:
        """A git repository; with a file `a/b` in one commit, or empty."""
        path = self.new()
        _git(path.parent, "init", "-q", "-b", "main", str(path))
        if commit:
            (path / "a").mkdir()
            (path / "a" / "b").write_text("text")
            _git(path, "add", ".")
            _git(path, "commit", "-q", "-m", "first")
        return path


def _git(cwd: Path, *arguments: str) -> None:
    who = {f"GIT_{role}_{what}": f"{what.lower()}@example.org" for role in ("AUTHOR", "COMMITTER")
           for what in ("NAME", "EMAIL")}  # fmt: skip
    environment = {"PATH": os.environ["PATH"], "HOME": str(cwd)} | who
    subprocess.run(["git", *arguments], cwd=cwd, env=environment, check=True)


def _blob(layout: Path, descriptor: Mapping[str, str]) -> Path:
    return layout / "blobs" / "sha256" / descriptor["digest"].partition(":")[2]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    if not Path("/bin/busybox").exists():
        pytest.skip("the package busybox-static is not installed")
    path = tmp_path_factory.mktemp("world")
    busybox_builder(path / "good", "builder:latest")
    (path / "source").mkdir()
    (path / "source" / "index.html").write_text("hello\n")
    with FakeRegistry() as fake:
        yield World(path, fake)


# --- what every failure has in common ---------------------------------------------------------


def check_failure(done: Done, code: int, said: str) -> None:
    """One `error:` line that says `said`, at most one `hint:`, the exit code, no traceback."""
    # What is known of a script that failed stands behind, each line indented.
    lines = [line for line in done.err.splitlines() if not line.startswith("  ")]
    errors = [line for line in lines if line.startswith("error: ")]
    assert done.code == code, f"exit code {done.code}\n{done.out}\n{done.err}"
    assert "Traceback" not in done.err
    assert len(errors) == 1, done.err
    assert said in errors[0]
    hints = [line for line in lines if line.startswith("hint: ")]
    assert len(hints) <= 1
    assert lines[-1 - len(hints) :] == errors + hints  # and they are the last that is said


def check_document(done: Done, code: int) -> dict[str, Any]:
    """The failure document of `--json`."""
    document = done.document
    assert document["version"] == 1
    assert document["state"] == "failed"
    assert document["exit_code"] == code
    assert document["reason"].isalnum()
    assert f"error: {document['message']}" in done.err
    return document


def check_store(store: Path, *, tagged: bool = False) -> None:
    """A valid layout without the tag, and nothing that was being written."""
    entries = validate_layout(store / "images", strict=False)
    names = [one.get("annotations", {}).get("org.opencontainers.image.ref.name") for one in entries]
    assert (FULL_NAME in names) == tagged
    assert os.listdir(store / "builds") == []
    assert os.listdir(store / "tmp") == []


# --- the table --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One thing that is wrong. `arguments` makes what follows `ocis2i build`."""

    name: str
    code: int
    said: str
    arguments: Callable[[World], list[str | Path]]
    epoch: str | None = None
    script_exit_code: int | None = None


def _build(*more: str, builder: Callable[[World], str] = lambda w: w.good) -> Callable[..., Any]:
    return lambda world: [world.source, builder(world), TAG, *more]


def _source(make: Callable[[World], str | Path], *more: str) -> Callable[..., Any]:
    return lambda world: [make(world), world.good, TAG, *more]


def _scripts(**texts: str | None) -> Callable[[World], str]:
    return lambda world: world.builder(scripts=texts)


def _no_scripts(world: World) -> str:
    return world.builder(labels={"io.openshift.s2i.scripts-url": ""})


def _not_executable(world: World) -> str:
    layer = Layer().file(f"{SCRIPTS.lstrip('/')}/assemble", ASSEMBLE, mode=0o644)
    return world.builder(more_layers=[layer])


def _on_build(world: World) -> str:
    return world.config_of(config={"OnBuild": ["RUN true"]})


def _last_layer(layout: Path, manifest: dict[str, Any]) -> Path:
    return _blob(layout, manifest["layers"][-1])


def _unreadable(world: World) -> str:
    def spoil(layout: Path, _: dict[str, Any]) -> None:
        (layout / "index.json").chmod(0)

    return world.spoiled(spoil)


def _broken_index(world: World) -> str:
    return world.spoiled(lambda layout, _: _cut(layout / "index.json", 40))


def _cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def _wrong_digest(world: World) -> str:
    def spoil(layout: Path, manifest: dict[str, Any]) -> None:
        blob = _last_layer(layout, manifest)
        data = bytearray(blob.read_bytes())
        data[len(data) // 2] ^= 0xFF
        blob.write_bytes(data)

    return world.spoiled(spoil)


def _missing_blob(world: World) -> str:
    return world.spoiled(lambda layout, manifest: _last_layer(layout, manifest).unlink())


def _with_layer(world: World, change: Callable[[bytes], bytes]) -> str:
    """The good builder with another last layer under a digest that is right for its bytes."""

    def spoil(layout: Path, manifest: dict[str, Any]) -> None:
        manifest["layers"][-1] |= _put(layout, change(_last_layer(layout, manifest).read_bytes()))
        index = json.loads((layout / "index.json").read_bytes())
        index["manifests"][0] |= _put(layout, json.dumps(manifest).encode())
        (layout / "index.json").write_text(json.dumps(index))

    return world.spoiled(spoil)


def _put(layout: Path, data: bytes) -> dict[str, Any]:
    digest = hashlib.sha256(data).hexdigest()
    (layout / "blobs" / "sha256" / digest).write_bytes(data)
    return {"digest": f"sha256:{digest}", "size": len(data)}


def _broken_gzip(world: World) -> str:
    return _with_layer(world, lambda data: data[: len(data) // 2])


def _no_gzip(world: World) -> str:
    return _with_layer(world, lambda _: b"this is no gzip at all" * 100)


def _other_content(world: World) -> str:
    other = gzip.compress(Layer().dir("etc").tar(), mtime=0)
    return _with_layer(world, lambda _: other)


def _no_tar(world: World) -> str:
    return _with_layer(world, lambda _: gzip.compress(b"no tar" * 1000, mtime=0))


def _several(world: World) -> str:
    path = world.new()
    for name in ("one", "two"):
        make_layout(path, name, [Layer().dir(name)])
    return f"oci:{path}"


def _other_platform(world: World) -> str:
    return world.config_of(platform="linux/s390x")


def _other_platforms(world: World) -> str:
    path = world.new()
    images = {
        text: make_layout(path, None, [Layer().dir("etc")], platform=text, listed=False)
        for text in ("linux/s390x", "windows/amd64")
    }
    make_index(path, "b:1", images)
    return f"oci:{path}:b:1"


def _file(world: World, text: str = "not an image") -> Path:
    path = world.new()
    path.write_text(text)
    return path


def _directory(world: World) -> Path:
    path = world.new()
    path.mkdir()
    (path / "something").write_text("of somebody")
    return path


def _closed_directory(world: World) -> Path:
    path = world.new()
    path.mkdir()
    path.chmod(0o555)
    return path


def _closed_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _big_label(world: World) -> str:
    # By a script: an argument of that size is allowed, but the label is of the image's metadata.
    text = (
        "#!/bin/sh\nmkdir -p /tmp/.s2i\n"
        'printf \'{"labels":[{"big":"%s"}]}\' "$(head -c 10300 /dev/zero | tr "\\0" x)" '
        "> /tmp/.s2i/image_metadata.json\n"
    )
    return world.builder(scripts={"assemble": text})


SHELL = "#!/bin/sh\n"

CASES = [
    # the source
    Case("no_such_directory", 3, "neither a directory nor a git URL", _source(lambda w: w.new())),
    Case("source_is_a_file", 3, "is no archive and no program", _source(_file)),
    Case("not_a_git_url", 3, "no transport", _source(lambda _: "gopher://localhost/x.git")),
    Case("url_without_host", 3, "names no host", _source(lambda _: "https:///x.git")),
    Case("no_git_server", 3, "127.0.0.1",
         _source(lambda _: f"http://u:pass@127.0.0.1:{_closed_port()}/x.git")),
    Case("unknown_ref", 3, "`nowhere`", _source(lambda w: w.git(), "--ref", "nowhere")),
    Case("unknown_ref_in_url", 3, "`nowhere`", _source(lambda w: f"file://{w.git()}#nowhere")),
    Case("ref_of_no_repository", 3, "no git repository", _build("--ref", "main")),
    Case("empty_repository", 3, "no commit", _source(lambda w: w.git(commit=False))),
    Case("missing_context", 3, "`nowhere`", _build("--context-dir", "nowhere")),
    Case("missing_context_in_git", 3, "`nowhere`",
         _source(lambda w: w.git(), "--context-dir", "nowhere")),
    Case("context_outside", 3, "out of the source", _build("--context-dir", "../x")),
    Case("context_is_a_file", 3, "`index.html`", _build("--context-dir", "index.html")),
    # the builder
    Case("no_scripts_label", 4, "has no label", _build(builder=_no_scripts)),
    Case("missing_assemble", 4, f"`{SCRIPTS}/assemble`", _build(builder=_scripts(assemble=None))),
    Case("missing_run", 4, f"`{SCRIPTS}/run`", _build(builder=_scripts(run=None))),
    Case("assemble_not_executable", 4, "not executable", _build(builder=_not_executable)),
    Case("on_build", 9, "ONBUILD", _build(builder=_on_build)),
    Case("unreadable_layout", 4, "ermission", _build(builder=_unreadable)),
    Case("broken_index", 4, "index.json", _build(builder=_broken_index)),
    Case("unknown_name_in_layout", 4, "`nobody:1`",
         _build(builder=lambda w: f"oci:{w.path}/good:nobody:1")),
    Case("several_names_none_chosen", 4, "", _build(builder=_several)),
    Case("not_a_layout", 4, "", _build(builder=lambda w: f"oci:{w.source}:b:1")),
    Case("no_layout_there", 4, "", _build(builder=lambda w: f"oci:{w.path}/nowhere:b:1")),
    Case("not_an_archive", 4, "", _build(builder=lambda w: f"oci-archive:{_file(w)}:b:1")),
    Case("not_a_docker_archive", 4, "", _build(builder=lambda w: f"docker-archive:{_file(w)}")),
    Case("wrong_digest", 4, "sha256:", _build(builder=_wrong_digest)),
    Case("missing_blob", 4, "blobs/sha256/", _build(builder=_missing_blob)),
    Case("broken_gzip", 4, "sha256:", _build(builder=_broken_gzip)),
    Case("no_gzip", 4, "sha256:", _build(builder=_no_gzip)),
    Case("wrong_diff_id", 4, "sha256:", _build(builder=_other_content)),
    Case("layer_is_no_tar", 4, "sha256:", _build(builder=_no_tar)),
    Case("wrong_platform", 4, "linux/s390x", _build(builder=_other_platform)),
    Case("no_platform_of_ours", 4, "is not there for", _build(builder=_other_platforms)),
    Case("never_pulled", 4, "policy is `never`",
         _build("--pull-policy", "never", builder=lambda _: "nobody/nothing:1")),
    # registries
    Case("registry_down", 5, "127.0.0.1",
         _build(builder=lambda _: f"127.0.0.1:{_closed_port()}/b:1")),
    Case("registry_has_no_such_image", 5, "nobody/nothing",
         _build(builder=lambda w: f"{w.fake.host}/nobody/nothing:1")),
    Case("no_name_to_push_to", 2, "--push needs a name",
         lambda w: [w.source, w.good, "--push"]),
    # scripts
    Case("assemble_fails", 7, "exit code 3", _build(builder=_scripts(assemble=SHELL + "exit 3\n")),
         script_exit_code=3),
    Case("assemble_kills_itself", 7, "137: it was killed",
         _build(builder=_scripts(assemble=SHELL + "sh -c 'kill -9 $$'; exit $?\n")),
         script_exit_code=137),
    Case("assemble_uses_a_missing_command", 7, "127",
         _build(builder=_scripts(assemble=SHELL + "no-such-command\n")), script_exit_code=127),
    # usage
    Case("tag_in_upper_case", 2, "App", lambda w: [w.source, w.good, "App:1"]),
    Case("tag_is_a_url", 2, "http://", lambda w: [w.source, w.good, "http://localhost/app:1"]),
    Case("tag_is_a_digest", 2, "digest",
         lambda w: [w.source, w.good, f"app@sha256:{'0' * 64}"]),
    Case("variable_without_name", 2, "`=`", _build("-e", "=x")),
    Case("variable_without_value", 2, "NAME", _build("-e", "NAME")),
    Case("volume_of_nothing", 2, "there is no", _build("-v", "/no/such/place:/data")),
    Case("relative_volume", 2, "not an absolute path", _build("-v", "data:/data")),
    Case("volume_to_relative", 2, "must be an absolute", _build("-v", "/etc:data")),
    Case("volume_option", 2, "`often`", _build("-v", "/etc:/data:often")),
    Case("volume_without_target", 2, "invalid volume", _build("-v", "/etc")),
    Case("timestamp", 2, "--timestamp", _build("--timestamp", "yesterday")),
    Case("negative_timestamp", 2, "--timestamp", _build("--timestamp=-1")),
    Case("source_date_epoch", 2, "SOURCE_DATE_EPOCH", _build(),
         epoch="yesterday"),
    Case("unknown_isolation", 2, "`strong`", _build("--isolation", "strong")),
    Case("unknown_pull_policy", 2, "`often`", _build("--pull-policy", "often")),
    Case("unknown_compression", 2, "`lzma`", _build("--compression", "lzma")),
    Case("unknown_level", 2, "99", _build("--compression-level", "99")),
    Case("bad_platform", 2, "linux", _build("--platform", "linux")),
    Case("unknown_flag", 2, "--frobnicate", _build("--frobnicate")),
    Case("unknown_short_flag", 2, "-Z", _build("-Z")),
    Case("switch_with_value", 2, "--incremental", _build("--incremental=often")),
    Case("too_many_words", 2, "unexpected extra argument", _build("one-more")),
    Case("flag_not_there_yet", 2, "`--layers` is not there yet", _build("--layers", "app")),
    Case("missing_argument", 2, "missing argument", lambda w: [w.source]),
    Case("log_level", 2, "loglevel", _build("--loglevel", "9")),
    Case("output_transport", 2, "not a directory or file", _build("-o", "docker://x/y")),
    Case("scripts_of_nobody", 4, "127.0.0.1",
         lambda w: [w.source, w.good, TAG,
                    "--scripts-url", f"http://127.0.0.1:{_closed_port()}/s"]),
    Case("exclude", 2, "exclude", _build("--exclude", "(")),
    Case("relative_destination", 2, "--destination", _build("--destination", "tmp")),
    Case("unknown_user", 4, "nobody-here", _build("--assemble-user", "nobody-here")),
    # outputs
    Case("output_not_writable", 8, "cannot write",
         lambda w: [w.source, w.good, "-o", f"oci-archive:{_closed_directory(w)}/a.tar"]),
    Case("output_into_nowhere", 8, "cannot write",
         lambda w: [w.source, w.good, "-o", f"docker-archive:{w.new()}/a.tar"]),
    Case("output_to_other_things", 8, "no OCI image layout",
         lambda w: [w.source, w.good, "-o", f"oci:{_directory(w)}"]),
    Case("reserved_name", 8, ".wh.x`",
         lambda w: [w.source, w.builder(scripts={"assemble": SHELL + "touch .wh.x\n"}), TAG]),
    Case("label_too_large", 9, "10240", _build(builder=_big_label)),
]  # fmt: skip


@better("cli.invalid-tag", "ends with 2")
@better("cli.unknown-flag", "ends with 2")
@same("source.unknown-ref")
@same("source.empty-repository")
@better("exit.empty-repository", "3")
@better("exit.usage", "2")
@pytest.mark.sandbox
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_one_clear_error_and_nothing_half_written(
    case: Case, world: World, shared: Program
) -> None:
    arguments = ["build", *case.arguments(world), "--json"]
    done = shared(*arguments, SOURCE_DATE_EPOCH=case.epoch) if case.epoch else shared(*arguments)
    check_failure(done, case.code, case.said)
    document = check_document(done, case.code)
    assert document["script_exit_code"] == case.script_exit_code
    assert "u:pass@" not in done.err + done.out
    if shared.store.exists():  # not when the very arguments were refused
        check_store(shared.store)


EXECUTORS = [RUNC, "builtin"]


@pytest.mark.sandbox
@pytest.mark.parametrize("isolation", EXECUTORS)
def test_a_missing_interpreter(world: World, shared: Program, source: Path, isolation: str) -> None:
    builder = world.builder(scripts={"assemble": "#!/no/such/shell\n"})
    done = shared("build", source, builder, TAG, "--json", "--isolation", isolation)
    check_failure(done, 7, f"`{SCRIPTS}/assemble`")
    assert "needs `/no/such/shell`" in done.err
    assert check_document(done, 7)["script_exit_code"] == 127
    check_store(shared.store)


@pytest.mark.sandbox
@pytest.mark.parametrize("isolation", EXECUTORS)
def test_an_assemble_that_is_killed(
    world: World, shared: Program, source: Path, isolation: str
) -> None:
    command = ["sleep", f"1000.{os.getpid()}"]
    builder = world.builder(scripts={"assemble": f"{SHELL}exec {' '.join(command)}\n"})
    process = shared.start("build", source, builder, TAG, "--json", "--isolation", isolation)
    try:
        os.kill(_wait_for(command, process), signal.SIGKILL)
    finally:
        out, err = process.communicate(timeout=60)
    done = Done(process.returncode, out, err)
    check_failure(done, 7, "137: it was killed")
    assert check_document(done, 7)["script_exit_code"] == 137
    check_store(shared.store)


def _wait_for(command: list[str], process: subprocess.Popen[str]) -> int:
    """The pid of a process with this command line, once there is one."""
    wanted = b"".join(word.encode() + b"\0" for word in command)
    while process.poll() is None:
        for pid, line in command_lines():
            if line == wanted:
                return pid
        time.sleep(0.02)
    raise AssertionError("the build ended by itself")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["rebuild"], "missing argument"),
        (["usage"], "missing argument"),
        (["build", ".", "builder", "--ref"], "--ref"),
        (["frobnicate"], "frobnicate"),
        (["run"], "missing argument"),
        (["run", "--frobnicate", "app:1"], "--frobnicate"),
        (["rm", "UPPER"], "UPPER"),
        (["pull", "oci:/somewhere"], "not in a registry"),
    ],
)
def test_other_verbs_refuse_in_the_same_form(
    shared: Program, arguments: list[str], said: str
) -> None:
    done = shared(*arguments)
    check_failure(done, 2, said)
    assert done.out == ""


@pytest.mark.parametrize("verb", ["push", "run", "inspect", "rm"])
def test_an_image_that_is_not_there(shared: Program, verb: str) -> None:
    policy = ["--pull-policy", "never"] if verb == "run" else []
    done = shared(verb, *policy, "not/there:1")
    check_failure(done, 4, "not in the store")
    assert done.out == ""


# --- places that cannot be written ------------------------------------------------------------


def test_a_store_that_cannot_be_written(ocis2i: Program, builder: str, source: Path) -> None:
    ocis2i.store.parent.joinpath("closed").mkdir(mode=0o555)
    root = ocis2i.store.parent / "closed" / "store"
    done = ocis2i("build", source, builder, TAG, "--json", "--root", root)
    check_failure(done, 8, f"`{root}` cannot be used")
    check_document(done, 8)


def test_a_store_that_is_a_file(ocis2i: Program, builder: str, source: Path) -> None:
    root = ocis2i.store.parent / "file"
    root.write_text("mine")
    check_failure(ocis2i("build", source, builder, TAG, "--root", root), 8, "cannot be used")
    assert root.read_text() == "mine"


@pytest.mark.sandbox
def test_a_failed_output_leaves_no_file(ocis2i: Program, builder: str, source: Path) -> None:
    target = source.parent / "target"
    target.mkdir()
    (target / "archive.tar").mkdir()
    done = ocis2i("build", source, builder, TAG, "-o", f"oci-archive:{target}/archive.tar")
    check_failure(done, 8, "cannot write")
    assert os.listdir(target) == ["archive.tar"]
    assert os.listdir(target / "archive.tar") == []


# --- registries -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if registry_program() is None:
        pytest.skip("no registry program on PATH")
    with docker_registry(tmp_path_factory.mktemp("guarded"), htpasswd=HTPASSWD) as running:
        yield running.host


def auth_file(path: Path, host: str, secret: str) -> Path:
    """Credentials as docker and podman write them."""
    path.write_text(
        json.dumps({"auths": {host: {"auth": base64.b64encode(secret.encode()).decode()}}})
    )
    return path


@pytest.mark.registry
def test_a_wrong_password_is_told_at_once(ocis2i: Program, guarded: str, source: Path) -> None:
    file = auth_file(source.parent / "auth.json", guarded, f"{USER}:wrong-secret")
    began = time.monotonic()
    done = ocis2i("build", source, f"{guarded}/b:1", TAG, "--json", "--authfile", file)
    # Retrying what a registry refuses would take far longer, and may lock an account.
    assert time.monotonic() - began < 15
    check_failure(done, 5, guarded)
    check_document(done, 5)
    assert "wrong-secret" not in done.out + done.err
    check_store(ocis2i.store)


@pytest.mark.registry
def test_no_password_at_all(ocis2i: Program, guarded: str) -> None:
    check_failure(ocis2i("pull", f"{guarded}/b:1"), 5, guarded)
    check_store(ocis2i.store)


@pytest.mark.sandbox
@pytest.mark.registry
def test_a_refused_push(ocis2i: Program, guarded: str, builder: str, source: Path) -> None:
    done = ocis2i("build", source, builder, f"{guarded}/{TAG}", "--push", "--json")
    check_failure(done, 5, guarded)
    check_document(done, 5)
    # It is known before anything is built.
    assert f"{guarded}/{TAG}" not in ocis2i.ok("images").out
    assert os.listdir(ocis2i.store / "builds") == []


@pytest.mark.sandbox
def test_a_registry_that_forbids_uploads(
    ocis2i: Program, world: World, builder: str, source: Path
) -> None:
    world.fake.fail("POST", "/v2/closed/", status=403, times=100)
    done = ocis2i("build", source, builder, f"{world.fake.host}/closed/{TAG}", "--push")
    check_failure(done, 5, "closed/app")
    assert not world.fake.manifests.get("closed/app")


def test_plain_http_only_on_loopback(ocis2i: Program) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(_ELSEWHERE)
        except OSError:
            pytest.skip("this host has no address but loopback")
        address = probe.getsockname()[0]
    with socket.create_server((address, 0)) as server:
        server.settimeout(20)
        process = ocis2i.start("pull", f"{address}:{server.getsockname()[1]}/b:1")
        try:
            first = b""
            while process.poll() is None and not first:
                connection, _ = server.accept()
                with connection:
                    connection.settimeout(10)
                    first = connection.recv(5)
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        finally:
            server.close()
            out, err = process.communicate(timeout=120)
    assert first[:1] == b"\x16"  # a TLS handshake: nothing of the request went out in clear
    check_failure(Done(process.returncode, out, err), 5, address)


# --- hosts that lack something ----------------------------------------------------------------

BIND = 4096

# Runs a command with some files of the host replaced, and with file systems of its own. It is the
# host's own user in a namespace where the ids above are mapped once more; CAP_SETUID and
# CAP_SETGID are what the setuid bit of newuidmap gives on the host itself, and which no user
# namespace lets it give.
_INSIDE = """
import ctypes, json, os, sys
libc = ctypes.CDLL(None, use_errno=True)
for source, target, kind, flags, options in json.loads(sys.argv[1]):
    if libc.mount(source.encode(), target.encode(), kind.encode(), flags, options.encode()):
        sys.exit(f"mount {target}: {os.strerror(ctypes.get_errno())}")
caps = "-all,+setuid,+setgid"
command = ["setpriv", f"--ambient-caps={caps}", f"--inh-caps={caps}", *sys.argv[2:]]
os.execvp(command[0], command)
"""

Mount = tuple[str, str, str, int, str]


@dataclass(frozen=True)
class Elsewhere:
    """The program on a host that differs in a few files."""

    ocis2i: Program
    subordinate: Path

    def __call__(self, *arguments: str | Path, mounts: tuple[Mount, ...] = ()) -> Done:
        """Runs one command line there, and another after it that tells what the store holds."""
        plan = [
            (str(self.subordinate), "/etc/subuid", "", BIND, ""),
            (str(self.subordinate), "/etc/subgid", "", BIND, ""),
            *mounts,
        ]
        ours = [sys.executable, "-m", "ocis2i", *map(str, arguments)]
        return self.run(plan, ours)

    def run(self, plan: list[Mount], command: list[str]) -> Done:
        """Any command, with these mounts."""
        return called(
            [
                *("unshare", "--user", "--mount", "--keep-caps", "--map-auto"),
                *(f"--map-user={os.getuid()}", f"--map-group={os.getgid()}"),
                *(sys.executable, "-c", _INSIDE, json.dumps(plan), *command),
            ],
            self.ocis2i.environment,
            timeout=120,
        )


@pytest.fixture
def elsewhere(ocis2i: Program, tmp_path: Path) -> Elsewhere:
    user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
    subordinate = tmp_path / "subordinate"
    # Not all of the 65536 ids that are mapped: the outer namespace has its own holes in them.
    subordinate.write_text(f"{user}:2000:40000\n")
    here = Elsewhere(ocis2i, subordinate)
    tried = here.run([(str(subordinate), "/etc/subuid", "", BIND, "")], ["true"])
    if tried.code:
        pytest.skip(f"no user namespace with mounts of its own: {tried.err.strip()}")
    return here


def hidden(name: str) -> tuple[Mount, ...]:
    """Mounts that take a program away, wherever it is."""
    directories = "/usr/local/sbin /usr/local/bin /usr/sbin /usr/bin /sbin /bin".split()
    found = {os.path.realpath(f"{one}/{name}") for one in directories}
    on_path = shutil.which(name)
    if on_path:
        found.add(os.path.realpath(on_path))
    return tuple(("/dev/null", path, "", BIND, "") for path in found if os.path.exists(path))


@pytest.mark.sandbox
@needs("runc", "unshare", "setpriv")
def test_without_runc_and_crun_the_builtin_executor_does_it(
    elsewhere: Elsewhere, builder: str, source: Path
) -> None:
    gone = (*hidden("runc"), *hidden("crun"))
    done = elsewhere("build", source, builder, TAG, "--json", mounts=gone)
    assert done.code == 0, done.err
    assert done.document["isolation"] == "builtin"


@pytest.mark.sandbox
@needs("runc", "unshare", "setpriv")
def test_runc_that_is_asked_for_must_be_there(
    elsewhere: Elsewhere, builder: str, source: Path
) -> None:
    arguments = ("build", source, builder, TAG, "--json", "--isolation", "runc")
    done = elsewhere(*arguments, mounts=hidden("runc"))
    check_failure(done, 6, "`runc` is not installed")
    check_document(done, 6)
    check_store(elsewhere.ocis2i.store)


# --- a full disk ------------------------------------------------------------------------------


def _no_overlay_on_tmpfs() -> bool:
    # tmpfs can be an upper directory of an unprivileged overlay since Linux 6.6 (user xattrs).
    major, minor = platform.release().split(".")[:2]
    return (int(major), int("".join(filter(str.isdigit, minor)))) < (6, 6)


# A file of the layer is removed once it is in it: the last part of each needs no room of its own.
RANDOM = "#!/bin/sh\ndd if=/dev/urandom of=noise bs=1024 count=8500 2>/dev/null\n"


@dataclass(frozen=True)
class FullDisk:
    """A disk of some size, and what does not fit on it."""

    name: str
    kilobytes: int
    source_kilobytes: int = 0
    assemble: str | None = None
    files: int = 0


# The builder's blobs take 1 MB, its files 2 MB more.
FULL = [
    FullDisk("the_source", 3000, source_kilobytes=4000),
    FullDisk("the_builder", 600),
    FullDisk("the_unpacked_layers", 2000),
    FullDisk("the_layer", 12000, assemble=RANDOM),
    # Every file and directory that is made can be the one too many, in both processes.
    *(
        FullDisk(f"file_{files}", 20000, files=files)
        for files in (5, 11, 13, 14, 16, 18, 20, 26, 28, 70, 141, 160)
    ),
]


@pytest.mark.sandbox
@needs("unshare", "setpriv")
@pytest.mark.skipif(_no_overlay_on_tmpfs(), reason="the kernel has no overlay on tmpfs")
@pytest.mark.parametrize("disk", FULL, ids=lambda disk: disk.name)
def test_a_full_disk(
    elsewhere: Elsewhere, world: World, tmp_path: Path, source: Path, disk: FullDisk
) -> None:
    (source / "noise").write_bytes(os.urandom(disk.source_kilobytes << 10))
    builder = world.builder(scripts={"assemble": disk.assemble}) if disk.assemble else world.good
    done, seen = _on_small_disk(
        elsewhere, tmp_path, disk, ["build", str(source), builder, TAG, "--isolation", "builtin"]
    )
    check_failure(done, 8, "the disk is full")
    if (seen / "images" / "index.json").exists():
        check_store(seen)


def _on_small_disk(
    elsewhere: Elsewhere, tmp_path: Path, disk: FullDisk, arguments: list[str]
) -> tuple[Done, Path]:
    """Runs one command with its store on a small disk; the store as it was afterwards."""
    store, seen = elsewhere.ocis2i.store, tmp_path / "seen"
    store.mkdir()
    limits = f"size={disk.kilobytes}k,nr_inodes={disk.files}"
    options = f"{limits},mode=700,uid={os.getuid()},gid={os.getgid()}"
    plan: list[Mount] = [
        (str(elsewhere.subordinate), "/etc/subuid", "", BIND, ""),
        (str(elsewhere.subordinate), "/etc/subgid", "", BIND, ""),
        ("tmpfs", str(store), "tmpfs", 0, options),
    ]
    # What was unpacked belongs to ids of that namespace; the rest shows what was left.
    script = (
        '"$@"; code=$?; mkdir "$SEEN"; cd "$STORE"; '
        'cp -R images builds tmp "$SEEN" 2>/dev/null; exit $code'
    )
    variables = [f"SEEN={seen}", f"STORE={store}"]
    ours = [sys.executable, "-m", "ocis2i", *arguments]
    done = elsewhere.run(plan, ["env", *variables, "sh", "-c", script, "sh", *ours])
    return done, seen
