"""What every verb does besides building, seen from outside: streams, exit codes, the store."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ocis2i import __version__
from ocis2i.reference import Digest
from tests.conftest import RUNC
from tests.contract import same
from tests.fakes.docker_registry import docker_registry, registry_program
from tests.fakes.images import HOME, busybox_builder
from tests.fakes.judges import validate_layout
from tests.fakes.program import ARGV, Program, program

APP = "app:1"
FULL_NAME = "docker.io/library/app:1"
VERBS = """
build rebuild usage create generate pull push images inspect rm prune run doctor completion
version
""".split()
EXECUTORS = [RUNC, "builtin"]

pytestmark = pytest.mark.sandbox


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, builder: str) -> Iterator[Program]:
    """A store with one built image, which the tests of this module leave as it is."""
    if os.geteuid() == 0:
        pytest.skip("the tests run as root; ocis2i builds as an ordinary user")
    source = tmp_path_factory.mktemp("source")
    (source / "index.html").write_text("hello\n")
    with program(tmp_path_factory.mktemp("built")) as running:
        running.ok("build", source, builder, APP, "-e", "COLOUR=red")
        yield running


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if registry_program() is None:
        pytest.skip("no registry program on PATH")
    with docker_registry(tmp_path_factory.mktemp("registry")) as running:
        yield running.host


def manifest_of(store: Program, name: str = FULL_NAME) -> bytes:
    """The bytes of a manifest, read without ocis2i."""
    index = json.loads((store.layout / "index.json").read_bytes())
    entry = next(
        one
        for one in index["manifests"]
        if one.get("annotations", {}).get("org.opencontainers.image.ref.name") == name
    )
    return (store.layout / "blobs" / Path(*entry["digest"].split(":"))).read_bytes()


# --- looking ----------------------------------------------------------------------------------


def test_images_as_a_table(built: Program) -> None:
    done = built.ok("images")
    heads, *rows = done.out.splitlines()
    assert heads.split() == ["NAME", "DIGEST", "PLATFORM", "CREATED", "SIZE"]
    assert rows[0].split()[0] == FULL_NAME
    assert Digest.of(manifest_of(built)).hex[:12] in rows[0]
    assert done.err == ""


def test_images_as_json(built: Program) -> None:
    document = built.ok("images", "--json").document
    assert document["version"] == 1
    image = next(one for one in document["images"] if one["name"] == FULL_NAME)
    manifest = json.loads(manifest_of(built))
    assert image["digest"] == str(Digest.of(manifest_of(built)))
    assert image["size"] == sum(layer["size"] for layer in manifest["layers"])


def test_images_of_an_empty_store(ocis2i: Program) -> None:
    assert ocis2i.ok("images").out.split() == ["NAME", "DIGEST", "PLATFORM", "CREATED", "SIZE"]
    assert ocis2i.ok("images", "--json").document["images"] == []


def test_inspect_tells_what_the_image_is(built: Program) -> None:
    document = json.loads(built.ok("inspect", APP).out)
    manifest = json.loads(manifest_of(built))
    assert document["name"] == FULL_NAME
    assert document["digest"] == str(Digest.of(manifest_of(built)))
    assert document["config"]["Cmd"] == ["/usr/libexec/s2i/run"]
    assert "COLOUR=red" in document["config"]["Env"]
    assert [one["digest"] for one in document["layers"]] == [
        one["digest"] for one in manifest["layers"]
    ]


def test_inspect_raw_gives_the_very_bytes(built: Program) -> None:
    done = subprocess.run(
        [*ARGV, "inspect", "--raw", APP],
        env=dict(built.environment),
        capture_output=True,
        check=True,
    )
    assert done.stdout == manifest_of(built)
    assert done.stderr == b""


def test_inspect_prints_one_document(built: Program) -> None:
    done = built("inspect", "--raw", "--config", APP)
    assert (done.code, done.out) == (2, "")
    assert "--raw and --config exclude each other" in done.err


def test_inspect_raw_keeps_bytes_that_are_no_utf_8(ocis2i: Program, tmp_path: Path) -> None:
    busybox_builder(tmp_path / "layout", "b:1")
    index_file = tmp_path / "layout" / "index.json"
    index = json.loads(index_file.read_bytes())
    entry = index["manifests"][0]
    blobs = tmp_path / "layout" / "blobs" / "sha256"
    raw = (blobs / entry["digest"][7:]).read_bytes()
    # Escapes, white space and an unknown field: nothing of it survives a re-encoding.
    changed = raw.replace(b"{", '{ "x-\u00e9": "\\u00e9",'.encode(), 1) + b"\n\n"
    digest = Digest.of(changed)
    (blobs / digest.hex).write_bytes(changed)
    entry |= {"digest": str(digest), "size": len(changed)}
    index_file.write_text(json.dumps(index))
    done = subprocess.run(
        [*ARGV, "inspect", "--raw", f"oci:{tmp_path}/layout:b:1"],
        env=dict(ocis2i.environment),
        capture_output=True,
        check=True,
    )
    assert done.stdout == changed


def test_inspect_config_is_the_config(built: Program) -> None:
    config = json.loads(built.ok("inspect", "--config", APP).out)
    wanted = json.loads(manifest_of(built))["config"]["digest"]
    stored = built.layout / "blobs" / Path(*wanted.split(":"))
    assert config == json.loads(stored.read_bytes())


def test_inspect_of_a_layout(built: Program, builder: str) -> None:
    document = json.loads(built.ok("inspect", builder).out)
    assert document["name"] == builder
    assert document["config"]["Labels"]["io.openshift.s2i.scripts-url"].startswith("image://")


@same("--help")
@pytest.mark.parametrize("verb", VERBS)
def test_help_of_every_verb(built: Program, verb: str) -> None:
    done = built.ok(verb, "-h" if verb == "run" else "--help")
    assert done.out.startswith("Usage: ocis2i " + verb)
    assert done.err == ""


@same("help")
def test_help_lists_all_verbs(built: Program) -> None:
    words = set(built.ok("--help").out.split())
    assert words >= set(VERBS)


@same("version")
def test_version(built: Program) -> None:
    assert built.ok("version").out == f"ocis2i {__version__}\n"
    assert built.ok("version", "--json").document["ocis2i"] == __version__


def test_a_closed_stdout_is_no_traceback(built: Program) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        done = subprocess.run(
            [*ARGV, "images"],
            env=dict(built.environment),
            stdout=write_end,
            stderr=subprocess.PIPE,
            check=False,
        )
    finally:
        os.close(write_end)
    assert done.stderr == b""
    assert done.returncode in (1, 141)  # click's own answer, or ours


# --- moving -----------------------------------------------------------------------------------


@pytest.mark.registry
def test_push_and_pull_give_the_same_image(built: Program, registry: str, ocis2i: Program) -> None:
    digest = Digest.of(manifest_of(built))
    pushed = built.ok("push", APP, f"{registry}/team/other:2")
    assert pushed.out == f"{registry}/team/other@{digest}\n"
    pulled = ocis2i.ok("pull", f"{registry}/team/other:2")
    assert pulled.out == pushed.out
    assert manifest_of(ocis2i, f"{registry}/team/other:2") == manifest_of(built)
    validate_layout(ocis2i.layout)


@pytest.mark.registry
def test_push_pull_and_rm_tell_programs_what_they_did(
    built: Program, registry: str, ocis2i: Program
) -> None:
    name = f"{registry}/told/app"
    digest = str(Digest.of(manifest_of(built)))
    for done in (
        built.ok("push", "--json", APP, f"{name}:1"),
        ocis2i.ok("pull", "--json", f"{name}:1"),
    ):
        assert done.document == {
            "version": 1,
            "state": "succeeded",
            "where": name,
            "digest": digest,
            "reference": f"{name}@{digest}",
        }
    removed = ocis2i.ok("rm", "--json", digest)
    assert removed.document == {"version": 1, "removed": [digest]}
    assert ocis2i.ok("images", "--json").document["images"] == []


@pytest.mark.registry
def test_inspect_asks_the_registry_when_told_to(
    built: Program, registry: str, ocis2i: Program
) -> None:
    built.ok("push", APP, f"{registry}/asked:1")
    place = f"docker://{registry}/asked:1"
    assert ocis2i.ok("inspect", "--raw", place).out.encode() == manifest_of(built)
    assert json.loads(ocis2i.ok("inspect", place).out)["config"]["Cmd"]
    assert ocis2i.ok("images", "--json").document["images"] == []


@pytest.mark.parametrize("kind", ["oci", "oci-archive", "docker-archive"])
def test_push_to_a_path_and_run_from_there(
    built: Program, ocis2i: Program, tmp_path: Path, kind: str
) -> None:
    place = f"{kind}:{tmp_path}/place"
    done = built.ok("push", APP, place)
    assert done.out == f"{place}@{Digest.of(manifest_of(built))}\n"
    assert (tmp_path / "place").exists()
    if kind == "oci":
        validate_layout(tmp_path / "place")
    elif kind == "docker-archive":
        with tarfile.open(tmp_path / "place") as archive:
            assert json.load(archive.extractfile("manifest.json"))  # type: ignore[arg-type]
    page = ocis2i.ok("run", place, "cat", "index.html")
    assert page.out == "hello\n"


# --- removing ---------------------------------------------------------------------------------


def test_rm_and_prune_make_room(ocis2i: Program, builder: str, source: Path) -> None:
    ocis2i.ok("build", source, builder, APP)
    ocis2i.ok("build", source, builder, "kept:1", "-e", "A=1")
    removed = ocis2i.ok("rm", APP)
    assert removed.out == f"{FULL_NAME}\n"
    pruned = ocis2i.ok("prune", "--json").document
    assert pruned["busy"] is False
    assert pruned["blobs"] >= 2  # its manifest and config; the builder's layers are in use
    assert pruned["layers"] == 0
    assert [one["name"] for one in ocis2i.ok("images", "--json").document["images"]] == [
        "docker.io/library/kept:1"
    ]
    validate_layout(ocis2i.layout)
    assert ocis2i.ok("run", "kept:1", "cat", "index.html").out == "hello from the source\n"


def test_rm_of_several_takes_all_or_none(ocis2i: Program, builder: str, source: Path) -> None:
    ocis2i.ok("build", source, builder, APP)
    done = ocis2i("rm", APP, "not/there:1")
    assert done.code != 0
    assert done.out == ""
    assert FULL_NAME in ocis2i.ok("images").out


def test_prune_all_empties_the_store(ocis2i: Program, builder: str, source: Path) -> None:
    ocis2i.ok("build", source, builder, APP)
    ocis2i.ok("prune", "--all")
    assert validate_layout(ocis2i.layout) == []
    for place in ("images/blobs/sha256", "layers/sha256", "builds", "tmp"):
        assert os.listdir(ocis2i.store / place) == []


def test_prune_leaves_a_running_build_alone(ocis2i: Program, source: Path, tmp_path: Path) -> None:
    script = '#!/bin/sh\nuntil [ -e /gate/open ]; do sleep 0.05; done\ncp -R /tmp/src/. "$HOME/"\n'
    busybox_builder(tmp_path / "builder", "b:1", scripts={"assemble": script})
    gate = tmp_path / "gate"
    gate.mkdir()
    place = f"oci:{tmp_path}/builder:b:1"
    process = ocis2i.start("build", source, place, APP, "-v", f"{gate}:/gate")
    try:
        assert process.stderr is not None
        _read_until(process, "---> assembling")
        pruned = ocis2i.ok("prune", "--all", "--json")
        assert pruned.document["busy"] is True
        assert "in use" in pruned.err
    finally:
        (gate / "open").touch()
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert out.startswith("docker.io/library/app@sha256:")
    assert ocis2i.ok("run", APP, "cat", "index.html").out == "hello from the source\n"


def _read_until(process: subprocess.Popen[str], start: str) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith(start):
            return
    raise AssertionError(f"it never said `{start}`")


# --- running ----------------------------------------------------------------------------------


@pytest.fixture(params=EXECUTORS)
def run(request: pytest.FixtureRequest, built: Program) -> list[str]:
    """The beginning of a command line that runs something, by each executor."""
    return [*ARGV, "run", "--isolation", str(request.param)]


def call(
    built: Program, command: list[str], *, stdin: str | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env=dict(built.environment),
        input=stdin if stdin is not None else "",
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_run_passes_streams_and_exit_code_through(built: Program, run: list[str]) -> None:
    script = "cat; echo to-stderr >&2; exit 42"
    done = call(built, [*run, APP, "sh", "-c", script], stdin="from stdin\n")
    assert (done.returncode, done.stdout, done.stderr) == (42, "from stdin\n", "to-stderr\n")


def test_run_tells_of_a_death_by_signal(built: Program, run: list[str]) -> None:
    done = call(built, [*run, APP, "sh", "-c", "sh -c 'kill -9 $$'; exit $?"])
    assert done.returncode == 137


def test_run_starts_what_the_image_says(built: Program, run: list[str]) -> None:
    # The image's own command is the run script, a web server that does not like this port.
    done = call(built, [*run, "-e", "PORT=none", APP])
    assert done.returncode != 0
    assert "httpd" in done.stderr


def test_run_with_environment_directory_and_user(built: Program, run: list[str]) -> None:
    script = 'echo "$COLOUR $SIZE $(pwd) $(id -u):$(id -g) $HOME"'
    done = call(built, [*run, APP, "sh", "-c", script])
    assert done.stdout == f"red  {HOME} 1001:0 {HOME}\n"
    options = ["-e", "COLOUR=blue", "-e", "SIZE=10", "-w", "/tmp", "-u", "nobody"]
    done = call(built, [*run, *options, APP, "sh", "-c", script])
    assert done.stdout.startswith("blue 10 /tmp 65534:65534 ")


def test_run_with_an_entrypoint(built: Program, run: list[str]) -> None:
    done = call(built, [*run, "--entrypoint", "echo", APP, "--json", "-x", "word"])
    assert (done.returncode, done.stdout) == (0, "--json -x word\n")
    done = call(built, [*run, "--entrypoint", "", APP, "echo", "plain"])
    assert done.stdout == "plain\n"


def test_run_with_volumes(built: Program, run: list[str], tmp_path: Path) -> None:
    shared, fixed = tmp_path / "shared", tmp_path / "fixed"
    shared.mkdir(mode=0o777)
    shared.chmod(0o777)
    fixed.write_text("fixed\n")
    script = "cat /fixed; echo new > /shared/file; echo no > /fixed || echo read-only"
    volumes = ["-v", f"{shared}:/shared", "-v", f"{fixed}:/fixed:ro"]
    done = call(built, [*run, *volumes, APP, "sh", "-c", script])
    assert done.stdout == "fixed\nread-only\n"
    assert (shared / "file").read_text() == "new\n"
    assert fixed.read_text() == "fixed\n"
    # The file is of a subordinate id, only its directory is ours.
    (shared / "file").unlink()


def test_nothing_that_a_run_writes_survives(built: Program, run: list[str]) -> None:
    script = "test ! -e mark && touch mark && rm index.html && ls"
    for _ in range(2):
        done = call(built, [*run, APP, "sh", "-c", script])
        assert (done.returncode, done.stdout) == (0, "mark\n"), done.stderr
    assert os.listdir(built.store / "builds") == []


def test_run_of_a_missing_program(built: Program, run: list[str]) -> None:
    done = call(built, [*run, APP, "no-such-program"])
    assert done.returncode == 7
    assert done.stdout == ""
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "`no-such-program` cannot be started" in errors[0]
    assert "Traceback" not in done.stderr


LISTENS = "trap 'echo bye; exit 3' TERM INT; echo ready; while :; do sleep 0.1; done"
DEAF = "trap '' TERM INT; echo ready; while :; do sleep 0.1; done"


def _start(built: Program, command: list[str]) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        command,
        env=dict(built.environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_what_runs(built: Program, run: list[str], number: signal.Signals) -> None:
    process = _start(built, [*run, APP, "sh", "-c", LISTENS])
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert out == "bye\n"
    assert process.returncode == 128 + number
    assert err.count("error: stopped by") == 1
    assert "Traceback" not in err
    assert os.listdir(built.store / "builds") == []


def test_a_second_signal_kills_what_does_not_listen(built: Program, run: list[str]) -> None:
    process = _start(built, [*run, APP, "sh", "-c", DEAF])
    began = time.monotonic()
    while process.poll() is None and time.monotonic() < began + 60:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.5)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in err
    assert os.listdir(built.store / "builds") == []


# --- streams ----------------------------------------------------------------------------------


def test_stdout_of_a_build_is_the_reference_alone(
    ocis2i: Program, source: Path, tmp_path: Path
) -> None:
    script = '#!/bin/sh\necho loud\necho louder >&2\ncp -R /tmp/src/. "$HOME/"\n'
    busybox_builder(tmp_path / "builder", "b:1", scripts={"assemble": script})
    place = f"oci:{tmp_path}/builder:b:1"
    done = ocis2i.ok("build", source, place, APP, "--loglevel", "5")
    assert re.fullmatch(r"docker\.io/library/app@sha256:[0-9a-f]{64}\n", done.out)
    assert "loud\n" in done.err
    assert "louder\n" in done.err
    untagged = ocis2i.ok("build", source, place, "--quiet")
    assert re.fullmatch(r"sha256:[0-9a-f]{64}\n", untagged.out)
    assert untagged.err == ""
    document = ocis2i.ok("build", source, place, "--json").document
    assert (document["state"], document["script_exit_code"]) == ("succeeded", 0)


def test_the_module_and_the_script_are_the_same_program(built: Program) -> None:
    script = Path(sys.executable).with_name("ocis2i")
    if not script.exists():
        pytest.skip("the console script is not installed")
    assert call(built, [str(script), "version"]).stdout == built.ok("version").out
    nothing = call(built, [str(script)])
    assert "Usage: ocis2i" in nothing.stdout + nothing.stderr
