"""Whose files are in a layer, and which processes are whose: what the agent decides by itself."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocis2i.agent.owners import (
    ROOT,
    Owner,
    Owners,
    Placed,
    Squashed,
    giving_refusal,
    layer_owners,
)
from ocis2i.agent.running import Task, below
from ocis2i.errors import IsolationError
from ocis2i.isolation.ground import Ground, check_one_id
from ocis2i.isolation.ids import is_whole_host
from ocis2i.isolation.oci_runtime import runtime_config
from ocis2i.runner import RunSpec
from ocis2i.s2i import Identity

JOB = (1001, 0)
SINGLE = Ground("single", squashed=True, reason="`newuidmap` is not installed")


def squashed(
    *layers: tuple[Path, list[str], dict[str, list[int]]], placed: dict[bytes, Owner] | None = None
) -> Squashed:
    """Owners over layers, the topmost first."""
    known = [layer_owners(str(tree), implied, owners) for tree, implied, owners in layers]
    return Squashed(JOB, known, placed or {})


@pytest.fixture
def lower(tmp_path: Path) -> Path:
    tree = tmp_path / "lower"
    (tree / "etc").mkdir(parents=True)
    (tree / "etc/file").write_text("")
    return tree


@pytest.fixture
def upper(tmp_path: Path) -> Path:
    tree = tmp_path / "upper"
    (tree / "etc").mkdir(parents=True)
    (tree / "etc/file").write_text("")
    return tree


# --- owners -----------------------------------------------------------------------------------


@given(st.binary(), st.integers(), st.integers(), st.booleans())
def test_a_disk_that_remembers_is_believed(path: bytes, uid: int, gid: int, new: bool) -> None:
    assert Owners().real(path, uid, gid, new=new) == (uid, gid)


def test_what_is_new_belongs_to_the_user_of_the_job() -> None:
    assert squashed().real(b"a", 0, 0, new=True) == JOB


def test_what_was_there_keeps_its_owner(lower: Path) -> None:
    owners = squashed((lower, [], {"etc/file": [5, 6]}))
    assert owners.real(b"etc/file", 0, 0, new=False) == (5, 6)
    assert owners.real(b"etc", 0, 0, new=False) == ROOT
    # A place for a mount, which no layer has.
    assert owners.real(b"proc", 0, 0, new=False) == ROOT


def test_a_file_in_place_of_another_is_new(lower: Path) -> None:
    owners = squashed((lower, [], {"etc/file": [5, 6]}))
    assert owners.real(b"etc/file", 0, 0, new=True) == JOB


def test_the_topmost_layer_that_has_a_path_counts(lower: Path, upper: Path) -> None:
    owners = squashed((upper, [], {}), (lower, [], {"etc/file": [5, 6], "etc": [7, 8]}))
    assert owners.real(b"etc/file", 0, 0, new=False) == ROOT
    assert owners.real(b"etc", 0, 0, new=False) == ROOT


def test_a_directory_that_a_layer_does_not_describe_is_looked_up_below(
    lower: Path, upper: Path
) -> None:
    owners = squashed((upper, ["etc"], {"etc": [1, 1]}), (lower, [], {"etc": [7, 8]}))
    assert owners.real(b"etc", 0, 0, new=False) == (7, 8)


def test_what_the_agent_put_there_has_the_owner_it_was_put_for() -> None:
    placed = Placed()
    placed.note("build", [b"a/b/src"], [b"a", b"a/b"], (7, 8))
    placed.note("build", [b"tmp/src"], [b"tmp"], (7, 8))
    placed.note("build", [], [b"work"])
    placed.note("other", [b"x"], [], (9, 9))
    assert placed.of("build") == {
        b"a": ROOT,
        b"a/b": (7, 8),
        b"a/b/src": (7, 8),
        b"tmp": ROOT,
        b"tmp/src": (7, 8),
        b"work": ROOT,
    }
    owners = squashed(placed=dict(placed.of("build")))
    assert owners.real(b"work", 0, 0, new=True) == ROOT
    assert placed.of("never heard of") == {}


# --- processes --------------------------------------------------------------------------------


def tasks(**parents: int) -> dict[int, Task]:
    """Processes `pN` with the number of their parent."""
    numbers = {int(name[1:]): parent for name, parent in parents.items()}
    return {pid: Task(pid, parent, (pid,)) for pid, parent in numbers.items()}


def test_descendants_are_found_at_any_depth_and_nobody_else() -> None:
    found = below(10, tasks(p1=0, p10=1, p11=10, p12=11, p13=12, p20=1, p21=20))
    assert sorted(task.pid for task in found) == [11, 12, 13]


def test_links_in_a_circle_end() -> None:
    assert below(10, tasks(p10=1, p30=31, p31=30)) == []


# --- ids --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("         0          0 4294967295\n", True),
        ("         0       1000          1\n", False),
        ("         0     100000      65536\n", False),
        ("0 1000 1\n1 100000 65535\n", False),
    ],
)
def test_the_first_user_namespace_is_known_by_its_map(text: str, whole: bool) -> None:
    assert is_whole_host(text) == whole


def spec(uid: int, gid: int = 0) -> RunSpec:
    """A process of this user."""
    return RunSpec(("/bin/true",), (), "/", Identity(uid, gid, (5, 6)))


def test_config_for_one_id_asks_for_no_other() -> None:
    config = runtime_config(spec(1001), "/rootfs", SINGLE)
    assert config["process"]["user"]["additionalGids"] == []
    (terminals,) = (one for one in config["mounts"] if one["type"] == "devpts")
    assert not [option for option in terminals["options"] if option.startswith("gid=")]


def test_config_without_a_fresh_proc_shows_the_outer_one_with_its_masks() -> None:
    config = runtime_config(spec(0), "/rootfs", Ground(fresh_proc=False))
    (proc,) = (one for one in config["mounts"] if one["destination"] == "/proc")
    assert (proc["source"], proc["options"][0]) == ("/proc", "rbind")
    assert {"nosuid", "nodev", "noexec"} <= set(proc["options"])


@pytest.mark.parametrize(("uid", "gid"), [(1001, 0), (0, 5)])
def test_an_executor_for_root_alone_says_so(uid: int, gid: int) -> None:
    check_one_id("runc", Ground(), spec(uid, gid))
    check_one_id("runc", SINGLE, spec(0))
    with pytest.raises(IsolationError, match=f"runc cannot run anything as {uid}:{gid}.*newuidmap"):
        check_one_id("runc", SINGLE, spec(uid, gid))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may give files away")
def test_who_may_give_nothing_away_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    assert giving_refusal(str(tmp_path)) == "Operation not permitted"
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_takes_no_file_says_nothing_of_owners(tmp_path: Path) -> None:
    assert giving_refusal(str(tmp_path / "none")) is None
