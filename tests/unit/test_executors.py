"""What runc, crun and buildah are told and what they say, without running them."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocis2i.errors import IsolationError, ScriptError, UsageError
from ocis2i.isolation.buildah import (
    LastWords,
    Mode,
    complaint_in,
    environment,
    from_options,
    image_files,
    modes_to_try,
    refuse,
    run_options,
    settings_files,
    signal_number,
)
from ocis2i.isolation.oci_runtime import runtime_config
from ocis2i.isolation.programs import (
    hybrid_view,
    is_hybrid,
    raise_not_started,
    start_failure,
)
from ocis2i.isolation.smallest import smallest_program
from ocis2i.reference import Digest
from ocis2i.runner import BindMount, RunSpec
from ocis2i.s2i import Identity

PLACE = Path("/store/builds/x/buildah")
SPEC = RunSpec(("/bin/sh", "-c", "x"), ("WORD=secret",), "/app", Identity(1001, 0))

# --- runc and crun ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("complaint", "program", "code"),
    [
        ('… container process: exec: "/x": stat /x: no such file or directory', "/x", 127),
        ('… container process: exec: "x": executable file not found in $PATH', "x", 127),
        ('… container process: exec: "/etc": permission denied', "/etc", 126),
        ('… container process: exec: "/x": exec format error', "/x", 126),
        ("executable file `/x` not found in $PATH: No such file or directory", "/x", 127),
        ("open executable: Operation not permitted", "/etc", 126),
        ("open executable: Permission denied", "/x", 126),
        ("exec container process `/x`: Exec format error", "/x", 126),
        (
            "exec container process (missing dynamic library?) `/x`: No such file or directory",
            "/x",
            127,
        ),
        ("cgroups in hybrid mode not supported, drop all controllers from cgroupv2", "/x", None),
        ("mount `proc` to `proc`: Operation not permitted", "/x", None),
        ('error mounting "proc" to rootfs at "/proc": operation not permitted', "/proc", None),
    ],
)
def test_program_that_cannot_be_started_is_told_from_a_runtime_that_fails(
    complaint: str, program: str, code: int | None
) -> None:
    assert start_failure(complaint, program) == code
    if code is None:
        raise_not_started(complaint, program)
        return
    with pytest.raises(ScriptError, match=f"`{program}` cannot be started: ") as caught:
        raise_not_started(complaint, program)
    assert caught.value.script_exit_code == code


@pytest.mark.parametrize(("controllers", "hybrid"), [("hugetlb\n", True), ("\n", False)])
def test_hybrid_is_where_version_two_has_controllers(
    tmp_path: Path, controllers: str, hybrid: bool
) -> None:
    (tmp_path / "cgroup.controllers").write_text(controllers)
    assert is_hybrid(tmp_path) is hybrid


def test_without_version_two_nothing_is_hybrid(tmp_path: Path) -> None:
    assert not is_hybrid(tmp_path / "unified")


@pytest.mark.parametrize("network", ["host", "none"])
def test_container_of_crun_sees_the_host_s_cgroups_and_crun_only_version_two(
    network: Any,
) -> None:
    config = runtime_config(replace(SPEC, network=network), "/rootfs")
    view, seen = hybrid_view(config, Path("/build"))
    assert view == {"binds": [["/sys", "/build/sys"], ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"]]}
    sources = {m["destination"]: m["source"] for m in seen["mounts"]}
    if network == "host":
        assert sources["/sys"] == "/build/sys"
    else:
        assert sources["/sys"] == "sysfs"
        assert sources["/sys/fs/cgroup"] == "/build/sys/fs/cgroup"
    assert {**seen, "mounts": []} == {**config, "mounts": []}


def test_smallest_program_runs_and_succeeds(tmp_path: Path) -> None:
    data = smallest_program(os.uname().machine)
    if data is None:
        pytest.skip(f"none for {os.uname().machine}")
    program = tmp_path / "true"
    program.write_bytes(data)
    program.chmod(0o755)
    done = subprocess.run([program], capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.parametrize(("machine", "number"), [("x86_64", 62), ("aarch64", 183)])
def test_smallest_program_is_for_its_processor(machine: str, number: int) -> None:
    data = smallest_program(machine)
    assert data is not None
    assert data.startswith(b"\x7fELF\x02\x01\x01")
    assert int.from_bytes(data[18:20], "little") == number
    assert len(data) < 200


def test_there_is_no_smallest_program_for_a_processor_nobody_wrote_one_for() -> None:
    assert smallest_program("pdp11") is None


# --- what buildah is told ---------------------------------------------------------------------


@pytest.mark.parametrize("mode", [None, "", "auto"])
def test_weak_mode_of_buildah_is_never_tried(mode: str | None) -> None:
    assert modes_to_try(mode) == ("oci", "rootless")


@pytest.mark.parametrize("mode", ["oci", "rootless", "chroot"])
def test_mode_of_buildah_can_be_named(mode: str) -> None:
    assert modes_to_try(mode) == (mode,)


def test_unknown_mode_of_buildah_is_refused() -> None:
    with pytest.raises(UsageError, match="`OCIS2I_BUILDAH_ISOLATION` is `vm`"):
        modes_to_try("vm")


def test_values_are_in_files_and_never_on_a_command_line() -> None:
    config = runtime_config(SPEC, "/rootfs")
    files = settings_files(PLACE, config)
    assert any("secret" in text for text in files.values())
    words = [
        *from_options(PLACE, config, SPEC),
        *run_options("oci", "/usr/bin/runc", config, SPEC),
        *environment(PLACE, "oci").values(),
    ]
    assert not any("secret" in word for word in words)


def test_nothing_of_the_image_is_in_buildah_s_own_environment() -> None:
    hostile = replace(SPEC, environment=("LD_PRELOAD=/evil.so", "BUILDAH_RUNTIME=/evil"))
    names = set(environment(PLACE, "oci"))
    assert not names & {entry.partition("=")[0] for entry in hostile.environment}


def test_image_for_buildah_is_whole_and_has_no_layer() -> None:
    variables = ["A=b c", "EMPTY=", "LINES=a\nb"]
    files = image_files(variables)
    index = json.loads(files["image/index.json"])
    manifest = json.loads(blob(files, index["manifests"][0]))
    assert manifest["layers"] == []
    config = json.loads(blob(files, manifest["config"]))
    assert config["config"] == {"Env": variables}
    assert config["rootfs"] == {"type": "layers", "diff_ids": []}


def blob(files: dict[str, str], descriptor: dict[str, Any]) -> str:
    """What a descriptor stands for; it has to be right."""
    text = files["image/blobs/" + descriptor["digest"].replace(":", "/")]
    assert descriptor["size"] == len(text.encode())
    assert descriptor["digest"] == str(Digest.of(text.encode()))
    return text


@pytest.mark.parametrize(("uid", "some"), [(0, '"CHOWN"'), (1001, "[]")])
def test_buildah_gives_the_capabilities_that_every_executor_gives(uid: int, some: str) -> None:
    run = replace(SPEC, identity=Identity(uid, 0))
    settings = settings_files(PLACE, runtime_config(run, "/rootfs"))["containers.conf"]
    (line,) = (line for line in settings.splitlines() if line.startswith("default_capabilities"))
    assert some in line
    assert "NET_RAW" not in line
    assert '"core=0:0"' in settings


@pytest.mark.parametrize(("network", "word"), [("host", "host"), ("none", "none")])
def test_network_of_buildah(network: Any, word: str) -> None:
    run = replace(SPEC, network=network)
    words = run_options("oci", None, runtime_config(run, "/rootfs"), run)
    assert words[words.index("--network") + 1] == word
    assert words[-3:] == ["/bin/sh", "-c", "x"]


def test_chroot_of_buildah_has_no_network_of_its_own() -> None:
    run = replace(SPEC, network="none")
    config = runtime_config(run, "/rootfs")
    refuse(run, "oci", config)
    with pytest.raises(IsolationError, match="has no network of its own"):
        refuse(run, "chroot", config)


@pytest.mark.parametrize("target", ["/dev/data", "/proc", "/sys/fs/x"])
def test_volume_where_buildah_mounts_itself_is_refused(target: str) -> None:
    run = replace(SPEC, mounts=(BindMount("/data", target),))
    with pytest.raises(IsolationError, match=f"buildah cannot mount anything on `{target}`"):
        refuse(run, "oci", runtime_config(run, "/rootfs"))
    near = replace(SPEC, mounts=(BindMount("/data", "/devices"),))
    refuse(near, "oci", runtime_config(near, "/rootfs"))


# --- what buildah says ------------------------------------------------------------------------

EXITED = "Error: while running runtime: exit status 5\n"
KILLED = "container exited on killed\nError: while running runtime: exit status 1\n"
NOT_STARTED = (
    "error running container: from /usr/bin/runc creating container for [/x]: "
    'time="2026-01-01T00:00:00Z" level=warning msg="unable to get oom kill count"\n'
    'time="2026-01-01T00:00:00Z" level=error msg="runc create failed: exec: \\"/x\\": '
    'stat /x: no such file or directory"\n: exit status 1\n'
    "Error: while running runtime: exit status 1\n"
)
CHROOT = "subprocess exited with status 5\nsubprocess exited with status 5\nError: exit status 5\n"


class Kept:
    """A sink that keeps what it gets."""

    def __init__(self) -> None:
        self.data = b""
        self.closed = False

    def feed(self, data: bytes) -> None:
        self.data += data

    def close(self) -> None:
        self.closed = True


def heard(mode: Mode, *pieces: bytes) -> tuple[bytes, str]:
    """What of standard error is the script's, and what is buildah's."""
    kept = Kept()
    words = LastWords(mode)
    sink = words.before(kept)
    for piece in pieces:
        sink.feed(piece)
    sink.close()
    assert kept.closed
    return kept.data, words.said


@pytest.mark.parametrize("end", [EXITED, KILLED, NOT_STARTED])
@given(
    script=st.text(alphabet="Error:xit whl\n", max_size=40),
    cuts=st.lists(st.integers(0, 600), max_size=6),
)
def test_last_words_of_buildah_are_told_from_the_script_s(
    end: str, script: str, cuts: list[int]
) -> None:
    data = (script + end).encode()
    places = [0, *sorted(cuts), len(data)]
    pieces = [data[a:b] for a, b in itertools.pairwise(places)]
    assert heard("oci", *pieces) == (script.encode(), end)


@given(st.lists(st.binary(max_size=20), max_size=8))
def test_words_of_a_script_that_succeeds_stay_as_they_are(pieces: list[bytes]) -> None:
    assert heard("oci", *pieces) == (b"".join(pieces), "")


def test_words_of_buildah_s_chroot_are_others() -> None:
    assert heard("chroot", b"mine\n" + CHROOT.encode()) == (b"mine\n", CHROOT)
    assert heard("oci", CHROOT.encode())[0] == CHROOT.encode()


def test_script_may_say_what_buildah_could_say() -> None:
    line = b"error running container: it is I who says that\n"
    assert heard("oci", line) == (line, "")


def test_errors_of_a_script_are_passed_on_at_once() -> None:
    kept = Kept()
    sink = LastWords("oci").before(kept)
    for line in (b"Error: no such thing\n", b"container exited\n", b"E2\n"):
        sink.feed(line)
        assert kept.data.endswith(line)


@pytest.mark.parametrize(
    ("said", "complaint"),
    [
        (EXITED, None),
        (KILLED, None),
        (
            NOT_STARTED,
            'runc create failed: exec: "/x": stat /x: no such file or directory',
        ),
        ("error running container: no runtime\nError: …\n", "no runtime"),
        (
            "process failed to start with error: fork/exec /x: permission denied"
            "process exited with error: exec: not started\nError: exit status 1\n",
            "exec: fork/exec /x: permission denied",
        ),
    ],
)
def test_what_was_never_started_is_told_from_what_failed(said: str, complaint: str | None) -> None:
    assert complaint_in(said) == complaint


@pytest.mark.parametrize(
    ("words", "number"), [("killed", 9), ("terminated", 15), ("segmentation fault", 11)]
)
def test_signal_has_the_number_of_its_name(words: str, number: int) -> None:
    assert signal_number(words) == number
