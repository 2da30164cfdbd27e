"""Odd images and odd hosts that once gave a wrong result, a hang or a traceback."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from ocis2i.fs import Lock
from ocis2i.reference import Digest
from ocis2i.session import dead_builds
from ocis2i.store import Store
from tests.conftest import RUNC, needs
from tests.fakes.bench import Bench
from tests.fakes.images import Layer, busybox_builder, make_layout
from tests.fakes.program import ARGV, Done, Program, called

pytestmark = pytest.mark.sandbox

EXECUTORS = [RUNC, "builtin"]

Change = Callable[[dict[str, object]], None]


def changed(path: Path, change: Change, *, layers: bool = True) -> str:
    """The busybox builder with another runtime config, or without any layer."""
    busybox_builder(path / "usual", "usual")
    (manifest,) = json.loads((path / "usual/index.json").read_bytes())["manifests"]
    blobs = path / "usual/blobs/sha256"
    document = json.loads((blobs / manifest["digest"][7:]).read_bytes())
    config = json.loads((blobs / document["config"]["digest"][7:]).read_bytes())
    change(config["config"])
    if not layers:
        make_layout(path / "odd", "odd", [], config["config"])
        return f"oci:{path}/odd:odd"
    data = json.dumps(config).encode()
    return relink(path, document, data)


def relink(path: Path, document: dict[str, object], config: bytes) -> str:
    """Puts another config under the manifest `document` of the layout in `path`."""
    blobs = path / "usual/blobs/sha256"
    digest = Digest.of(config)
    (blobs / digest.hex).write_bytes(config)
    entry = document["config"]
    assert isinstance(entry, dict)
    document["config"] = entry | {"digest": str(digest), "size": len(config)}
    raw = json.dumps(document).encode()
    (blobs / Digest.of(raw).hex).write_bytes(raw)
    index = json.loads((path / "usual/index.json").read_bytes())
    index["manifests"][0] |= {"digest": str(Digest.of(raw)), "size": len(raw)}
    (path / "usual/index.json").write_text(json.dumps(index))
    return f"oci:{path}/usual:usual"


def scripted(path: Path, script: str, *more: Layer, user: str = "1001") -> str:
    """The busybox builder with another `assemble`."""
    scripts = {"assemble": f"#!/bin/sh\nset -e\n{script}\n"}
    busybox_builder(path / "layout", "b", scripts=scripts, more_layers=more, user=user)
    return f"oci:{path}/layout:b"


def sh(program: Program, command: str, *arguments: str | Path) -> Done:
    """ocis2i with `arguments` started by a shell, where `"$@"` stands for it."""
    return called(["sh", "-c", command, "sh", *ARGV, *arguments], program.environment, timeout=120)


# --- odd images -------------------------------------------------------------------------------


def test_a_layer_that_is_there_several_times(shared: Program, tmp_path: Path, source: Path) -> None:
    again = Layer().dir("data").file("data/f", "first")
    more = [Layer(), again, Layer().file("data/f", "second"), Layer(), again, Layer()]
    builder = scripted(tmp_path, "cat /data/f >&2; rm -r /opt/app-root/src", *more)
    done = shared.ok("build", source, builder, "app")
    assert "first" in done.err
    # Deleted below, made again by a later occurrence: the last one counts.
    gone = [again, Layer().whiteout("data/f"), again, Layer().whiteout("data/f")]
    builder = scripted(tmp_path / "gone", "ls -A /data >&2; ! test -e /data/f", *gone)
    shared.ok("build", source, builder, "app")


@pytest.mark.parametrize("isolation", EXECUTORS)
def test_a_builder_without_layers_lacks_a_script_and_not_an_overlay(
    shared: Program, tmp_path: Path, source: Path, isolation: str
) -> None:
    builder = changed(tmp_path, lambda _: None, layers=False)
    done = shared("build", source, builder, "--isolation", isolation)
    assert done.code == 4
    assert "has no script" in done.err


@pytest.mark.parametrize("cwd", ["/tmp/src", "/tmp/src/sub", "/tmp/src/deep/er", "/tmp", "/a/b"])
def test_a_working_directory_that_only_the_build_brings(
    shared: Program, tmp_path: Path, source: Path, cwd: str
) -> None:
    (source / "sub").mkdir()
    (source / "sub/file").write_text("x")
    usual = changed(tmp_path, lambda config: config.update(WorkingDir=cwd))
    shared.ok("build", source, usual, "app")
    seen = shared.ok("run", "app", "sh", "-c", "pwd; cat /tmp/src/sub/file").out
    assert seen == f"{cwd}\nx"


def test_a_working_directory_above_the_source_that_the_image_lacks(
    shared: Program, tmp_path: Path, source: Path
) -> None:
    (source / ".s2i/bin").mkdir(parents=True)
    (source / ".s2i/bin/assemble").write_text("#!/bin/sh\npwd >&2\n")
    usual = changed(tmp_path, lambda config: config.update(WorkingDir="/work"))
    shared.ok("build", source, usual, "app", "--destination", "/work")
    assert shared.ok("run", "app", "ls", "/work").out == "scripts\nsrc\n"


@pytest.mark.parametrize("isolation", EXECUTORS)
def test_run_makes_a_working_directory_that_the_image_lacks(
    shared: Program, builder: str, isolation: str
) -> None:
    done = shared.ok("run", "--isolation", isolation, "-w", "/not/there", builder, "pwd")
    assert done.out == "/not/there\n"


@pytest.mark.parametrize("isolation", EXECUTORS)
@pytest.mark.parametrize(
    "change",
    [
        {"WorkingDir": "/etc/passwd"},
        {"Env": ["PATH=/bin", "A=\0b"]},
        {"WorkingDir": "/a\0b"},
    ],
    ids=str,
)
def test_what_no_process_can_have_is_the_images_fault(
    shared: Program, tmp_path: Path, source: Path, isolation: str, change: dict[str, object]
) -> None:
    usual = changed(tmp_path, lambda config: config.update(change))
    done = shared("build", source, usual, "--isolation", isolation)
    assert (done.code, done.err.count("error: ")) == (4, 1)
    assert "Traceback" not in done.err


@pytest.mark.parametrize("isolation", EXECUTORS)
@pytest.mark.parametrize("entry", ["FOO", "=b"])
def test_a_variable_that_is_none_is_not_set(
    shared: Program, tmp_path: Path, source: Path, isolation: str, entry: str
) -> None:
    usual = changed(tmp_path, lambda config: config.update(Env=["PATH=/bin", entry]))
    shared.ok("build", source, usual, "app:1", "--isolation", isolation)
    seen = shared.ok("run", "--isolation", isolation, "app:1", "env").out.splitlines()
    assert "PATH=/bin" in seen
    assert not [line for line in seen if line.startswith(("FOO", "="))]


@pytest.mark.parametrize("isolation", EXECUTORS)
def test_a_user_beyond_the_mapped_ids_is_named(
    shared: Program, builder: str, source: Path, isolation: str
) -> None:
    arguments = ("--isolation", isolation, "--assemble-user", "1000620000")
    done = shared("build", source, builder, *arguments)
    assert (done.code, done.err.count("error: user `1000620000` has the id")) == (4, 1)
    done = shared("run", "--isolation", isolation, "--user", "1:65536", builder, "id")
    assert (done.code, done.err.count("has the id 65536")) == (4, 1)


@pytest.mark.parametrize("label", ["destination", "scripts-url", "assemble-user"])
def test_a_label_with_a_zero_byte_is_refused(
    shared: Program, tmp_path: Path, source: Path, label: str
) -> None:
    prefix = "io.openshift.s2i."
    labels = {f"{prefix}scripts-url": "image:///usr/libexec/s2i"}
    labels[f"{prefix}{label}"] = labels.get(f"{prefix}{label}", "/1") + "\0x"
    odd = changed(tmp_path, lambda config: config.update(Labels=labels))
    done = shared("build", source, odd)
    assert (done.code in (2, 4, 6), done.err.count("error: ")) == (True, 1)
    assert "Traceback" not in done.err


# --- odd hosts --------------------------------------------------------------------------------


@pytest.mark.parametrize("isolation", EXECUTORS)
def test_a_strict_umask_changes_nothing(
    ocis2i: Program, tmp_path: Path, source: Path, isolation: str
) -> None:
    builder = scripted(tmp_path, "cat /etc/resolv.conf /etc/hosts >/dev/null; cd /new/work")
    arguments = ("build", source, builder, "app", "--isolation", isolation)
    done = sh(ocis2i, 'umask 077; "$@"', *arguments, "--destination", "/new/work")
    assert done.code == 0, done.err


def test_what_runs_may_not_change_a_mount_below_a_read_only_volume(
    shared: Program, builder: str
) -> None:
    if not os.path.ismount("/dev/shm"):
        pytest.skip("/dev/shm is no mount of its own here")
    for isolation in ("runc", "builtin"):
        script = f"! touch /v/shm/{os.getpid()} && grep ' /sys' /proc/mounts"
        volume = ("-v", "/dev:/v:ro")
        done = shared.ok("run", "--isolation", isolation, *volume, builder, "sh", "-c", script)
        assert "Read-only file system" in done.err
        options = re.findall(r" (r[ow])[, ]", done.out)
        assert set(options) == {"ro"}, done.out


@needs("unshare")
def test_a_pipe_of_another_user_is_used_as_it_is(shared: Program, builder: str) -> None:
    # As behind `su` or a service manager: here a subordinate id makes it and hands it over, the
    # one that is too many for the agent's map.
    ours, theirs = socket.socketpair()
    number = str(theirs.fileno())
    script = (
        f"import os, socket; socket.send_fds(socket.socket(fileno={number}), [b'x'], os.pipe())"
    )
    subprocess.run(
        [
            "unshare",
            "--map-auto",
            "--setuid",
            "65535",
            "--setgid",
            "1",
            sys.executable,
            "-c",
            script,
        ],
        env=dict(shared.environment),
        pass_fds=[theirs.fileno()],
        timeout=60,
        check=True,
    )
    _, (read_end, write_end), _, _ = socket.recv_fds(ours, 1, 2)
    assert os.fstat(write_end).st_uid != os.getuid()
    arguments = ["run", "--isolation", "builtin", builder, "echo", "out"]
    done = subprocess.run(
        [*ARGV, *arguments], env=dict(shared.environment), stdout=write_end, timeout=60, check=False
    )
    os.close(write_end)
    with os.fdopen(read_end) as pipe:
        assert (done.returncode, pipe.read()) == (0, "out\n")
    ours.close()
    theirs.close()


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_standard_streams(bench: Bench, builder: str, source: Path, closed: str) -> None:
    done = sh(bench.ocis2i, f'"$@" {closed}', "build", source, builder, bench.tag)
    assert done.code == 0, done.err
    assert bench.is_stored
    assert sh(bench.ocis2i, f'"$@" {closed}', "inspect", bench.tag).code == 0


def test_a_current_directory_that_is_gone(shared: Program, tmp_path: Path) -> None:
    command = f'mkdir {tmp_path}/gone; cd {tmp_path}/gone; rmdir {tmp_path}/gone; "$@"'
    done = sh(shared, command, "images")
    assert (done.code, done.err.count("\n")) == (2, 2)
    assert "no current directory" in done.err


def test_names_that_are_no_utf8(shared: Program, builder: str, source: Path) -> None:
    odd = source.with_name("s\udcff")
    source.rename(odd)
    layout = Path(builder.split(":")[1])
    link = odd.with_name("b\udcff")
    link.symlink_to(layout)
    done = shared.ok("build", odd, f"oci:{link}:builder:latest", "app", "--json")
    assert done.document["state"] == "succeeded"
    labels = shared.ok("inspect", "--config", "app").document["config"]["Labels"]
    assert labels["io.openshift.s2i.build.source-location"].endswith("/s\\udcff")
    for wrong in ("-e", "A=\udcff"), ("--destination", "/\udcff"):
        refused = shared("build", odd, builder, *wrong)
        assert refused.code == 2
        assert "Traceback" not in refused.err


def test_json_for_a_terminal_that_cannot_show_it(shared: Program, source: Path) -> None:
    for encoding in ("utf-8:strict", "ascii:strict", "latin-1:strict"):
        done = shared("build", "/none/\udcff\u4e2d", "oci:x", "--json", PYTHONIOENCODING=encoding)
        assert done.code == 3
        assert "/none/" in done.document["message"]


# --- signals and company ----------------------------------------------------------------------


def test_nohup_means_it(shared: Program, tmp_path: Path, source: Path) -> None:
    builder = scripted(tmp_path, "echo ready; sleep 1")
    process = subprocess.Popen(
        ["sh", "-c", 'trap "" HUP; exec "$@"', "sh", *ARGV, "build", str(source), builder],
        env=dict(shared.environment),
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stderr
    while "ready" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=60)
    assert process.returncode == 0


def test_an_interrupt_while_a_layer_is_unpacked_leaves_nothing(
    shared: Program, tmp_path: Path, source: Path
) -> None:
    many = Layer()
    for number in range(30_000):
        many.file(f"many/{number // 1000}/{number}", "x")
    builder = scripted(tmp_path, "true", many)
    process = shared.start("build", source, builder)
    tree = shared.store / "tmp"
    while not any(tree.glob("*/fs/many/2")):
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143
    assert not list((shared.store / "tmp").iterdir())
    assert not list((shared.store / "builds").iterdir())


def test_pruning_while_a_build_removes_its_directory(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    leaving = store.root / "builds/leaving"
    leaving.mkdir()
    assert dead_builds(store, alone=False) == []
    assert not list(leaving.iterdir())
    assert dead_builds(store, alone=True) == [leaving]
    Lock(leaving / "lock").release()
    assert dead_builds(store, alone=False) == [leaving]


def test_pruning_beside_many_short_builds(shared: Program, builder: str, source: Path) -> None:
    results: list[Done] = []
    thread = threading.Thread(
        target=lambda: results.extend(shared("build", source, builder) for _ in range(4))
    )
    thread.start()
    while thread.is_alive():
        results.append(shared("prune"))
    assert [done.err for done in results if done.code] == []


def test_a_reader_that_goes_away_ends_us_like_any_program(
    shared: Program, builder: str, source: Path
) -> None:
    for arguments in (("images",), ("build", str(source), builder, "app:1")):
        with shared.start(*arguments) as running:
            assert running.stdout
            assert running.stderr
            running.stdout.close()
            running.stderr.close()
        assert running.returncode == 128 + signal.SIGPIPE
    assert list((shared.store / "builds").iterdir()) == []


@pytest.mark.parametrize("isolation", EXECUTORS)
def test_a_variable_too_long_for_the_kernel_is_named(
    shared: Program, builder: str, source: Path, isolation: str
) -> None:
    (source / ".s2i").mkdir()
    (source / ".s2i/environment").write_text(f"LONG={'x' * 300_000}\n")
    done = shared("build", source, builder, "--isolation", isolation)
    assert (done.code, done.err.count("error: variable `LONG` has")) == (9, 1)
