"""Limits: what is typed, what is told, and where a cgroup can be had."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocis2i.agent.confine import Watch
from ocis2i.container_options import parse_security_options
from ocis2i.errors import IsolationError, UsageError
from ocis2i.isolation import cgroups
from ocis2i.isolation.cgroups import NotDelegatedError, check, own_cgroup, wish_without_group
from ocis2i.limits import (
    DEFAULT_TASKS,
    Limits,
    counted,
    exceeded,
    mention,
    parse_duration,
    parse_memory,
    parse_processors,
    parse_size,
    parse_tasks,
    plural,
    show_size,
)
from ocis2i.runner import Hardening


@pytest.mark.parametrize(("text", "size"), [
    ("512", 512), ("1b", 1), ("512m", 512 << 20), ("2g", 2 << 30), ("2G", 2 << 30),
    ("1.5GiB", 3 << 29), ("10kb", 10 << 10), ("1 MB", 1 << 20), ("1t", 1 << 40),
])  # fmt: skip
def test_sizes_are_read_as_docker_reads_them(text: str, size: int) -> None:
    assert parse_size(text, "--memory") == size


@pytest.mark.parametrize("text", [
    "", "m", "0", "-1", "1x", "1.2.3m", "0x10", "1e9", "½", "٣", "9" * 40, "1mm",
])  # fmt: skip
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="`--memory` is"):
        parse_size(text, "--memory")


@given(st.integers(1, 1 << 40))
def test_a_size_that_is_shown_can_be_read(size: int) -> None:
    assert parse_size(show_size(size).replace(" bytes", ""), "--memory") == size


@pytest.mark.parametrize(("text", "seconds"), [
    ("90", 90), ("90s", 90), ("0.5", 0.5), ("10m", 600), ("1h30m", 5400), ("1h0m1.5s", 3601.5),
])  # fmt: skip
def test_times(text: str, seconds: float) -> None:
    assert parse_duration(text, "--timeout") == seconds


@pytest.mark.parametrize("text", ["", "0", "0s", "-1", "m", "30m1h", "1d", "ten", "9" * 10])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="`--timeout` is"):
        parse_duration(text, "--timeout")


def test_numbers_of_processes() -> None:
    assert parse_tasks(None) == DEFAULT_TASKS
    assert parse_tasks("512") == 512
    assert [parse_tasks(text) for text in ("0", "-1", "unlimited")] == [None] * 3
    for text in ("", "many", "-2", "1.5", "9" * 30):
        with pytest.raises(UsageError, match="`--pids-limit` is"):
            parse_tasks(text)


def test_numbers_of_processors() -> None:
    assert parse_processors("2") == 2
    assert parse_processors("1.5") == 1.5
    for text in ("", "0", "-1", "1/2", "nan", "inf", "99999"):
        with pytest.raises(UsageError, match="`--cpus` is"):
            parse_processors(text)


def test_too_little_memory_to_start_with_is_refused() -> None:
    with pytest.raises(UsageError, match="less than 32 MiB"):
        parse_memory("1m")


def test_every_limit_has_its_sentence_and_its_word() -> None:
    limits = Limits(1 << 30, None, 64, 90.0, 10 << 20)
    errors = [exceeded(kind, limits, "assemble") for kind in ("memory", "tasks", "time", "output")]
    said = " ".join(error.message for error in errors)
    for value in ("1 GiB", "64", "90 seconds", "10 MiB"):
        assert value in said
    assert len({error.reason for error in errors}) == 4
    assert all(error.exit_code == 9 and error.hint for error in errors)


def test_only_limits_that_somebody_set_are_mentioned() -> None:
    assert mention(Limits()) is None
    assert mention(Limits(tasks=None)) is None
    assert mention(Limits(512 << 20, tasks=9)) == "it may use 512 MiB of memory and 9 processes"


def test_security_options() -> None:
    assert parse_security_options([]) == Hardening()
    assert parse_security_options(["seccomp=unconfined"]) == Hardening(seccomp=False)
    assert parse_security_options(["no-new-privileges:false"]) == Hardening(no_new_privs=False)
    assert parse_security_options(["no-new-privileges"]) == Hardening()
    for text in ("", "seccomp", "seccomp=", "apparmor=unconfined", "no-new-privileges=1"):
        with pytest.raises(UsageError, match="`--security-opt` is"):
            parse_security_options([text])


# --- cgroups ----------------------------------------------------------------------------------

UNIFIED = "24 23 0:22 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
HYBRID = (
    "30 23 0:25 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    "31 23 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
)
IN_CONTAINER = "24 23 0:22 /kubepods/pod1 /sys/fs/cgroup rw - cgroup2 cgroup rw\n"


@pytest.mark.parametrize(("memberships", "mounts", "path"), [
    ("0::/user.slice/run-1.scope\n", UNIFIED, "/sys/fs/cgroup/user.slice/run-1.scope"),
    ("0::/\n", UNIFIED, "/sys/fs/cgroup"),
    ("4:memory:/x\n0::/a\n", HYBRID, "/sys/fs/cgroup/unified/a"),
    ("0::/kubepods/pod1/c\n", IN_CONTAINER, "/sys/fs/cgroup/c"),
    ("0::/kubepods/pod1\n", IN_CONTAINER, "/sys/fs/cgroup"),
])  # fmt: skip
def test_where_our_cgroup_is(memberships: str, mounts: str, path: str) -> None:
    assert own_cgroup((memberships, mounts)) == Path(path)


@pytest.mark.parametrize(("memberships", "mounts"), [
    ("", ""), ("4:memory:/x\n", HYBRID), ("0::/a\n", ""), ("0::/other\n", IN_CONTAINER),
    ("0::/kubepods/pod10\n", IN_CONTAINER),
])  # fmt: skip
def test_a_cgroup_that_cannot_be_seen(memberships: str, mounts: str) -> None:
    with pytest.raises(NotDelegatedError, match="shows no cgroup"):
        own_cgroup((memberships, mounts))


def test_what_is_written_into_a_cgroup() -> None:
    limits = Limits(memory_bytes=1 << 30, processors=1.5, tasks=64)
    assert cgroups.controllers(limits) == ("cpu", "memory", "pids")
    assert cgroups.settings(limits) == {
        "cpu.max": "150000 100000",
        "memory.max": "1073741824",
        "memory.swap.max": "0",
        "memory.oom.group": "1",
        "pids.max": "128",
    }
    assert cgroups.controllers(Limits(tasks=None)) == ()


@pytest.fixture
def cgroup(tmp_path: Path) -> Path:
    """A directory that looks like a cgroup of our own."""
    (tmp_path / "cgroup.controllers").write_text("cpu memory pids\n")
    (tmp_path / "cgroup.subtree_control").write_text("")
    (tmp_path / "cgroup.procs").write_text(f"{os.getpid()}\n")
    return tmp_path


def test_a_cgroup_of_our_own_is_taken(cgroup: Path) -> None:
    check(cgroup, ("memory", "pids"))


def test_a_cgroup_with_somebody_else_in_it_is_not_taken(cgroup: Path) -> None:
    (cgroup / "cgroup.procs").write_text(f"{os.getpid()}\n{os.getppid()}\n")
    with pytest.raises(NotDelegatedError, match=f"process {os.getppid()} is in the same one"):
        check(cgroup, ("pids",))


def test_a_cgroup_without_the_controller_is_not_taken(cgroup: Path) -> None:
    (cgroup / "cgroup.controllers").write_text("hugetlb\n")
    with pytest.raises(NotDelegatedError, match="no controller `memory`"):
        check(cgroup, ("memory", "pids"))


def test_a_cgroup_that_is_not_there_is_not_taken(tmp_path: Path) -> None:
    with pytest.raises(NotDelegatedError, match="not ours to write"):
        check(tmp_path / "none", ("pids",))


def test_without_a_cgroup_processors_are_a_set() -> None:
    wish = wish_without_group(Limits(1 << 30, 2, 64), [3, 0, 1, 2], "it is not ours")
    assert wish == {"tasks": 64, "memory": 1 << 30, "processors": [3, 0]}
    assert "processors" not in wish_without_group(Limits(), [0], "it is not ours")
    with pytest.raises(IsolationError, match=r"`--cpus` is 1.5: .* and it is not ours"):
        wish_without_group(Limits(processors=1.5), [0, 1], "it is not ours")


# --- the watch --------------------------------------------------------------------------------


def test_a_watch_without_limits_never_looks() -> None:
    assert Watch({}).pause_seconds is None
    assert not Watch({}).look([str(os.getpid())])


def test_a_watch_counts_processes_and_forgives_our_own() -> None:
    names = [str(os.getpid()), str(os.getppid())]
    threads = sum(len(os.listdir(f"/proc/{name}/task")) for name in names)
    watch = Watch({"tasks": threads - 2})
    assert watch.look(names)
    assert watch.reached == "tasks"
    assert not Watch({"tasks": threads + 8}).look(names)


def test_a_watch_adds_up_memory() -> None:
    own = str(os.getpid())
    watch = Watch({"memory": 1 << 20})
    assert watch.look([own])
    assert watch.reached == "memory"
    assert not Watch({"memory": 1 << 50}).look([own])
    # A process that is gone uses nothing.
    assert not Watch({"memory": 1 << 20, "tasks": 1}).look(["999999999"])


# Fills memory that its child has mapped too, and says so; both wait for the end of the input.
_SHARING = """
import mmap, os, sys
memory = mmap.mmap(-1, 64 << 20)
ready, told = os.pipe()
child = os.fork()
memory.write(bytes(len(memory)))
memory[0:len(memory):4096]
if child == 0:
    os.write(told, b"x")
else:
    os.read(ready, 1)
    print(child, flush=True)
sys.stdin.read()
"""


@contextmanager
def sharing() -> Iterator[list[str]]:
    """Two processes with 64 MiB that both of them have mapped; their names in /proc."""
    with subprocess.Popen(
        [sys.executable, "-S", "-c", _SHARING], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as running:
        assert running.stdin and running.stdout
        yield [str(running.pid), running.stdout.readline().decode().strip()]
        running.stdin.close()


def test_a_watch_counts_memory_that_processes_share_once() -> None:
    with sharing() as names:
        watch = Watch({"memory": 60 << 20})
        assert watch.look(names)
        assert watch.reached == "memory"
        assert not Watch({"memory": 110 << 20}).look(names)


def test_a_process_may_not_confuse_a_watch_by_its_name() -> None:
    own = Path("/proc/self/comm")
    name = own.read_text()
    own.write_text("much kB")
    try:
        assert not Watch({"memory": 1 << 50}).look([str(os.getpid())])
        assert Watch({"memory": 1 << 20}).look([str(os.getpid())])
    finally:
        own.write_text(name)


def test_a_word_goes_with_its_number() -> None:
    assert [counted(number, "layer") for number in range(3)] == ["0 layers", "1 layer", "2 layers"]
    assert [plural(number, "is", "are") for number in range(3)] == ["are", "is", "are"]
    assert counted(1, "entry", "entries") == "1 entry"
    assert counted(21, "entry", "entries") == "21 entries"
