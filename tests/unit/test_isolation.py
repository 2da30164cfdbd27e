"""Isolation without a sandbox: ids, the runtime config, lines of output, runc's log."""

from __future__ import annotations

import errno
import io
import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocis2i.errors import OutputError, PolicyError
from ocis2i.isolation.ids import IdRange, map_arguments, parse_ranges
from ocis2i.isolation.oci_runtime import runtime_config
from ocis2i.isolation.programs import last_error
from ocis2i.isolation.streams import LineSplitter, RawOutput
from ocis2i.runner import (
    ROOT_CAPABILITIES,
    BindMount,
    Network,
    RunSpec,
)
from ocis2i.s2i import Identity
from ocis2i.syscalls import CAPABILITIES

# --- ids --------------------------------------------------------------------------------------


def test_ranges_of_a_user_are_found_by_name_and_number() -> None:
    text = "root:1:5\nme:100000:65536\n1000:300000:10\nother:5:5\nme:400000:7\n"
    assert parse_ranges(text, "me", "1000") == (
        IdRange(100000, 65536),
        IdRange(300000, 10),
        IdRange(400000, 7),
    )


@pytest.mark.parametrize(
    "line",
    ["me", "me:", "me:1", "me:a:5", "me:1:", "me:1:0", "me:-1:5", "# me:1:5", "me:1:5:9", ""],
)
def test_malformed_lines_count_for_nothing(line: str) -> None:
    assert parse_ranges(f"{line}\nme:10:20\n", "me") == (IdRange(10, 20),)


def test_the_caller_is_root_and_the_rest_follows_in_order() -> None:
    ranges = (IdRange(100000, 1000), IdRange(300000, 50))
    assert map_arguments(1000, ranges) == "0 1000 1 1 100000 1000 1001 300000 50".split()


def test_no_more_ids_are_mapped_than_an_image_can_have() -> None:
    one, two = IdRange(100000, 65536), IdRange(500000, 65536)
    assert map_arguments(7, (one, two)) == "0 7 1 1 100000 65535".split()


@given(st.lists(st.builds(IdRange, st.integers(1, 10**6), st.integers(1, 70000)), max_size=5))
def test_mapped_ids_are_without_gap_and_below_65536(ranges: list[IdRange]) -> None:
    numbers = list(map(int, map_arguments(1000, tuple(ranges))))
    pieces = list(zip(numbers[0::3], numbers[2::3], strict=True))
    for (start, count), (following, _) in itertools.pairwise(pieces):
        assert start + count == following
    assert sum(count for _, count in pieces) == min(65536, 1 + sum(r.count for r in ranges))


# --- the runtime config -----------------------------------------------------------------------


def spec(uid: int = 1001, mounts: tuple[BindMount, ...] = ()) -> RunSpec:
    """A process to run."""
    return RunSpec(("/bin/sh", "-c", "x"), ("A=1",), "/app", Identity(uid, 0, (5, 6)), mounts)


def test_config_has_what_the_runtime_specification_requires() -> None:
    config = runtime_config(spec(), "/rootfs")
    assert config["ociVersion"].startswith("1.")
    assert config["root"] == {"path": "/rootfs", "readonly": False}
    process = config["process"]
    assert process["cwd"].startswith("/")
    assert (process["args"], process["env"]) == (["/bin/sh", "-c", "x"], ["A=1"])
    user = {"uid": 1001, "gid": 0, "additionalGids": [5, 6], "umask": 0o022}
    assert process["user"] == user
    assert all(mount["destination"].startswith("/") for mount in config["mounts"])
    assert json.loads(json.dumps(config)) == config


def test_network_is_the_host_and_everything_else_is_not() -> None:
    kinds = {entry["type"] for entry in runtime_config(spec(), "/r")["linux"]["namespaces"]}
    # No user namespace: the agent is in one; no network namespace: it is the host's.
    assert kinds == {"mount", "pid", "ipc", "uts", "cgroup"}


def test_without_network_there_is_a_namespace_and_a_sysfs_of_its_own() -> None:
    config = runtime_config(replace(spec(), network="none"), "/r")
    # Without a path: a new one.
    assert {"type": "network"} in config["linux"]["namespaces"]
    sys, cgroup = (m for m in config["mounts"] if m["destination"].startswith("/sys"))
    assert (sys["type"], sys["destination"]) == ("sysfs", "/sys")
    assert {"ro", "nosuid", "nodev", "noexec"} <= set(sys["options"])
    assert {"rbind", "ro", "nosuid", "nodev", "noexec"} <= set(cgroup["options"])


def test_a_network_that_is_there_is_joined_by_its_path() -> None:
    config = runtime_config(replace(spec(), network="proxy", netns="/build/netns"), "/r")
    assert {"type": "network", "path": "/build/netns"} in config["linux"]["namespaces"]
    sys = next(m for m in config["mounts"] if m["destination"] == "/sys")
    assert sys["type"] == "sysfs"


def test_no_cgroup_is_asked_for_without_delegation() -> None:
    linux = runtime_config(spec(), "/r")["linux"]
    assert "resources" not in linux
    assert "cgroupsPath" not in linux


@pytest.mark.parametrize(("uid", "names"), [(0, list(ROOT_CAPABILITIES)), (1001, [])])
def test_capabilities_are_for_root_alone(uid: int, names: list[str]) -> None:
    process = runtime_config(spec(uid), "/r")["process"]
    assert process["noNewPrivileges"] is True
    assert process["capabilities"] == dict.fromkeys(("bounding", "effective", "permitted"), names)


@pytest.mark.parametrize("uid", [0, 1001])
def test_dropped_capabilities_are_in_no_set(uid: int) -> None:
    run = replace(spec(uid), cap_drop=frozenset({"CAP_CHOWN", "CAP_SYS_ADMIN"}))
    found = runtime_config(run, "/r")["process"]["capabilities"]
    kept = [name for name in ROOT_CAPABILITIES if name != "CAP_CHOWN"] if uid == 0 else []
    assert found == dict.fromkeys(("bounding", "effective", "permitted"), kept)


def test_all_capabilities_may_be_dropped_at_once() -> None:
    assert replace(spec(0), cap_drop=frozenset({"ALL"})).capabilities == ()


def test_every_capability_of_root_has_a_number() -> None:
    assert set(ROOT_CAPABILITIES) <= set(CAPABILITIES)
    assert CAPABILITIES.index("CAP_CHECKPOINT_RESTORE") == 40


@pytest.mark.parametrize("network", ["host", "none"])
def test_every_container_has_the_same_file_systems_of_the_kernel(network: Network) -> None:
    config = runtime_config(replace(spec(), network=network), "/r")
    mounts = {mount["destination"]: mount for mount in config["mounts"]}
    assert {"/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue", "/sys"} <= set(mounts)
    assert {"size=65536k", "mode=1777"} <= set(mounts["/dev/shm"]["options"])


def test_mounts_of_the_kernel_come_before_those_of_the_user() -> None:
    mount = BindMount("/host/data", "/dev/data", read_only=True)
    mounts = runtime_config(spec(mounts=(mount,)), "/r")["mounts"]
    assert [m["destination"] for m in mounts[:2]] == ["/proc", "/dev"]
    assert mounts[-1]["source"] == "/host/data"
    assert {"rbind", "ro", "nosuid", "nodev"} <= set(mounts[-1]["options"])


def test_a_writable_mount_is_not_read_only() -> None:
    mounts = runtime_config(spec(mounts=(BindMount("/a", "/b"),)), "/r")["mounts"]
    assert "ro" not in mounts[-1]["options"]


def test_system_files_are_read_only_or_hidden() -> None:
    config = runtime_config(spec(0), "/r")
    sys = next(m for m in config["mounts"] if m["destination"] == "/sys")
    assert "ro" in sys["options"]
    assert {"/proc/kcore", "/proc/keys", "/sys/firmware"} <= set(config["linux"]["maskedPaths"])
    assert {"/proc/sys", "/proc/sysrq-trigger"} <= set(config["linux"]["readonlyPaths"])


# --- lines ------------------------------------------------------------------------------------


def split(*pieces: bytes) -> list[str]:
    """The lines that come out for these pieces."""
    lines: list[str] = []
    splitter = LineSplitter("stdout", lambda _, line: lines.append(line))
    for piece in pieces:
        splitter.feed(piece)
    splitter.close()
    return lines


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=6))
def test_lines_do_not_depend_on_how_they_come(data: bytes, cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(data)]
    pieces = [data[a:b] for a, b in itertools.pairwise(places)]
    assert split(*pieces) == split(data)


def test_a_last_line_without_end_comes_too() -> None:
    assert split(b"one\ntw", b"o\nthree") == ["one", "two", "three"]


def test_empty_lines_are_lines() -> None:
    assert split(b"\n\na\n") == ["", "", "a"]


def test_line_ends_of_windows_are_taken_off() -> None:
    assert split(b"a\r\nb\r\n") == ["a", "b"]


def test_a_letter_may_come_in_two_pieces() -> None:
    assert split("gr\xfc".encode()[:3], "gr\xfc\n".encode()[3:]) == ["gr\xfc"]


def test_bytes_that_are_no_text_are_shown_as_such() -> None:
    assert split(b"a\xff\n") == ["a�"]


def test_a_line_without_end_is_cut_and_nothing_is_lost() -> None:
    lines = split(*[b"x" * 100_000] * 10)
    assert "".join(lines) == "x" * 1_000_000
    assert max(map(len, lines)) == 64 << 10


# --- bytes as they are -------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=50), max_size=8))
def test_bytes_arrive_as_they_are(pieces: list[bytes]) -> None:
    file = io.BytesIO()
    output = RawOutput(file, sum(map(len, pieces)), "x")
    for piece in pieces:
        output.feed(piece)
    output.close()
    assert file.getvalue() == b"".join(pieces)


def test_one_byte_over_the_limit_is_refused_and_the_rest_thrown_away() -> None:
    file = io.BytesIO()
    output = RawOutput(file, 5, "/bin/save")
    output.feed(b"12345")
    with pytest.raises(PolicyError, match="`/bin/save` writes more than 5 bytes"):
        output.feed(b"6")
    output.feed(b"7")
    output.close()
    assert file.getvalue() == b"12345"


def test_a_full_disk_is_told_of_once() -> None:
    with Path("/dev/full").open("r+b", buffering=0) as file:
        output = RawOutput(file, None, "/bin/save")
        with pytest.raises(OutputError, match="`/bin/save` cannot be kept: the disk is full"):
            output.feed(b"1")
        output.feed(b"2")
        output.close()


class Full(io.RawIOBase):
    """A file whose disk is full."""

    def writable(self) -> bool:
        return True

    def write(self, _: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_seen_when_what_is_in_memory_is_written() -> None:
    file = io.BufferedWriter(Full())
    output = RawOutput(file, None, "/bin/save")
    output.feed(b"1")
    with pytest.raises(OutputError, match="the disk is full"):
        output.close()
    with pytest.raises(OSError, match="No space left"):  # or it complains when it is collected
        file.close()


# --- runc's log -------------------------------------------------------------------------------


def entry(level: str, message: str) -> str:
    """A line of runc's log."""
    return json.dumps({"level": level, "msg": message, "time": "2026-01-01T00:00:00Z"})


def test_the_last_error_counts() -> None:
    log = "\n".join([entry("error", "first"), entry("error", "second "), entry("warning", "no")])
    assert last_error(log) == "second"


@pytest.mark.parametrize("log", ["", "\n", "no json\n", '"text"\n[1]\n', entry("warning", "x")])
def test_a_log_without_errors_has_none(log: str) -> None:
    assert last_error(log) is None


def test_a_torn_last_line_is_passed_over() -> None:
    assert last_error(entry("fatal", "cause") + '\n{"level": "err') == "cause"
