"""Isolation without a sandbox: ids, the runtime config, lines of output, runc's log."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocis2i.errors import IsolationError, UsageError
from ocis2i.isolation.ids import IdRange, map_arguments, parse_ranges
from ocis2i.isolation.oci_runtime import runtime_config
from ocis2i.isolation.runc import last_error
from ocis2i.isolation.streams import LineSplitter
from ocis2i.runner import (
    ROOT_CAPABILITIES,
    Availability,
    BindMount,
    RootfsHandle,
    Runner,
    RunResult,
    RunSpec,
    Stdio,
    choose,
)
from ocis2i.s2i import Identity

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


def test_no_cgroup_is_asked_for_without_delegation() -> None:
    linux = runtime_config(spec(), "/r")["linux"]
    assert "resources" not in linux
    assert "cgroupsPath" not in linux


@pytest.mark.parametrize(("uid", "names"), [(0, list(ROOT_CAPABILITIES)), (1001, [])])
def test_capabilities_are_for_root_alone(uid: int, names: list[str]) -> None:
    process = runtime_config(spec(uid), "/r")["process"]
    assert process["noNewPrivileges"] is True
    assert process["capabilities"] == dict.fromkeys(("bounding", "effective", "permitted"), names)


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


# --- the choice -------------------------------------------------------------------------------


class Choice:
    """A runner that is there or not."""

    def __init__(self, name: str, *, usable: bool) -> None:
        self.name = name
        self._usable = usable

    def check(self) -> Availability:
        return Availability(usable=self._usable, reason="because")

    def run(self, rootfs: RootfsHandle, spec: RunSpec, stdio: Stdio) -> RunResult:
        raise NotImplementedError


@pytest.mark.parametrize("wanted", [None, "auto"])
def test_the_first_runner_that_works_is_taken(wanted: str | None) -> None:
    runners: list[Runner] = [Choice("a", usable=False), Choice("b", usable=True)]
    assert choose(runners, wanted).name == "b"


def test_a_runner_that_was_named_has_to_work() -> None:
    with pytest.raises(IsolationError, match="`a` cannot be used: because"):
        choose([Choice("a", usable=False), Choice("b", usable=True)], "a")


def test_an_unknown_runner_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError) as caught:
        choose([Choice("a", usable=True)], "docker")
    assert caught.value.hint == "there are auto, a"


def test_without_any_runner_all_reasons_are_told() -> None:
    with pytest.raises(IsolationError, match="a: because; b: because"):
        choose([Choice("a", usable=False), Choice("b", usable=False)], None)
