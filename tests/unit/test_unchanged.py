"""Which builds have the same result as an earlier one, by their wishes, and what is noted of it."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from ocis2i import unchanged
from ocis2i.allowed_hosts import AllowList
from ocis2i.compression import Compression
from ocis2i.container_options import parse_add_host
from ocis2i.finished import KEPT, Finished, Note
from ocis2i.images import PullPolicy
from ocis2i.limits import Limits
from ocis2i.outputs import parse_output
from ocis2i.reference import Digest, Platform, Reference, parse_location
from ocis2i.remote_cache import CacheSpec
from ocis2i.runner import BindMount, Hardening
from ocis2i.sources import ArchiveSource, DirSource, SingleSource
from ocis2i.sources.git import GitSource, read_names
from ocis2i.spec import BuildSpec, RuntimeSpec, SecretSpec
from ocis2i.store import Store
from ocis2i.uids import parse_uid_ranges
from ocis2i.unchanged import _ELSEWHERE, Question, is_repeatable, settings_key

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SPEC = BuildSpec(
    source=DirSource(Path("/app"), "app"),
    builder=parse_location("builder"),
    created=NOW,
    environment={"A": "1", "B": "2"},
    runtime=RuntimeSpec(parse_location("runtime")),
    reuse_seconds=60.0,
)
NAME = Reference.parse("app:2")
# For each field of a spec another value than SPEC has.
OTHERS: dict[str, Any] = {
    "source": DirSource(Path("/app"), "./app"),
    "builder": parse_location("builder:2"),
    "created": datetime(2027, 1, 1, tzinfo=UTC),
    "tag": "app:2",
    "name": NAME,
    "more_names": (NAME,),
    "push": True,
    "outputs": (parse_output("oci:dir"),),
    "platform": Platform.parse("linux/riscv64"),
    "pull_policy": PullPolicy.ALWAYS,
    "environment": {"B": "2", "A": "1"},
    "secrets": SecretSpec(host_mirrors=True),
    "mounts": (BindMount("/a", "/b"),),
    "cap_drop": frozenset({"ALL"}),
    "limits": Limits(seconds=9.0),
    "hardening": Hardening(seccomp=False),
    "network": "none",
    "allowed_hosts": AllowList((), open=False),
    "add_hosts": (parse_add_host("a:127.0.0.1"),),
    "scripts_url": "image:///s",
    "destination": "/d",
    "assemble_user": "7",
    "allowed_uids": parse_uid_ranges("1-"),
    "ignore_onbuild": True,
    "via_entrypoint": True,
    "description": "d",
    "application_name": "n",
    "incremental": True,
    "cache": CacheSpec(NOW, None, NAME, 1),
    "previous_pull_policy": PullPolicy.ALWAYS,
    "runtime": RuntimeSpec(parse_location("runtime"), run_nothing=True),
    "keep_entrypoint": True,
    "prune_upload": True,
    "save_upload": True,
    "keep_failed": True,
    "size_budget": 5,
    "keep_blobs": True,
    "clamp_seconds": 5,
    "compression": Compression.ZSTD,
    "compression_level": 1,
    "isolation": "builtin",
    "reuse_seconds": 61.0,
}


@pytest.mark.parametrize("name", [one.name for one in dataclasses.fields(BuildSpec)])
def test_every_wish_counts_but_where_the_result_goes(name: str) -> None:
    if name not in OTHERS:
        # A field of later: it counts, unless somebody says that it is only about the way.
        assert name not in _ELSEWHERE
        return
    other = replace(SPEC, **{name: OTHERS[name]})
    assert getattr(other, name) != getattr(SPEC, name) or name == "environment"
    same = settings_key(other) == settings_key(SPEC) is not None
    assert same == (name in _ELSEWHERE)


def test_when_a_runtime_image_is_asked_for_does_not_count() -> None:
    assert SPEC.runtime is not None
    asked = replace(SPEC.runtime, pull_policy=PullPolicy.ALWAYS)
    assert settings_key(replace(SPEC, runtime=asked)) == settings_key(SPEC)


@pytest.mark.parametrize(
    "wish",
    [
        {"incremental": True},
        {"cache": OTHERS["cache"]},
        {"mounts": OTHERS["mounts"]},
        {"save_upload": True},
        {"isolation": "in-place"},
        {"secrets": SecretSpec(environment={"TOKEN": "t"})},
        {"secrets": SecretSpec(host_mirrors=True)},
        {"source": ArchiveSource(None, "-")},
        {"source": SingleSource(None, "https://h/a.jar", "a.jar", url="https://h/a.jar")},
    ],
    ids=str,
)
def test_what_nobody_can_compare_is_built(wish: dict[str, Any]) -> None:
    assert is_repeatable(SPEC)
    assert not is_repeatable(replace(SPEC, **wish))


@pytest.mark.parametrize(
    "source",
    [
        GitSource("https://h/p.git"),
        ArchiveSource(Path("/a"), "a"),
        SingleSource(Path("/a.jar"), "a.jar", "a.jar"),
    ],
)
def test_other_sources_can_be_compared(source: Any) -> None:
    assert is_repeatable(replace(SPEC, source=source))


# --- what git answers -------------------------------------------------------------------------

A, B = "a" * 40, "b" * 40


@pytest.mark.parametrize(
    ("ref", "answer", "told"),
    [
        (None, f"ref: refs/heads/main\tHEAD\n{A}\tHEAD\n", (A, "main")),
        (None, f"{A}\tHEAD\n", None),  # detached: its branch has no name
        (None, "", None),
        ("dev", f"{A}\trefs/heads/dev\n", (A, "dev")),
        ("v1", f"{A}\trefs/tags/v1\n", (A, "HEAD")),
        ("v1", f"{A}\trefs/tags/v1\n{B}\trefs/tags/v1^{{}}\n", (B, "HEAD")),
        ("v1", f"{A}\trefs/tags/v1\n{B}\trefs/heads/v1\n", None),
        ("v1", f"{A}\trefs/tags/v10\n", None),
        ("HEAD~1", "", None),
        (B.upper(), "", (B, "HEAD")),
    ],
)
def test_names_of_a_repository_tell_the_commit(
    ref: str | None, answer: str, told: tuple[str, str] | None
) -> None:
    assert read_names(answer, ref) == told


# --- notes ------------------------------------------------------------------------------------


def note(source: str = "s", manifest: str = f"sha256:{A}{A[:24]}", finished: float = 1.0) -> Note:
    inputs = {"source": source, "scripts": "", "builder": "b"}
    return Note(inputs, manifest, "m", 1, {"d": [1, 2]}, finished, 3, 4, "runc", "app", "b")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A new store."""
    return Store.open(tmp_path / "store")


def test_notes_come_back_the_latest_first(store: Store) -> None:
    notes = Finished(store)
    for number in range(KEPT + 2):
        notes.add("k", note(str(number)))
    notes.add("k", note("5", finished=9.0))
    found = notes.notes("k")
    assert [one.inputs["source"] for one in found[:3]] == ["5", str(KEPT + 1), str(KEPT)]
    assert found[0] == note("5", finished=9.0)
    assert len(found) == KEPT
    assert notes.notes("other") == ()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"version": 2}', '{"version": 1, "notes": [{"a": 1}]}', "\0" * 50]
)
def test_a_broken_note_is_none(store: Store, text: str) -> None:
    notes = Finished(store)
    notes.add("k", note())
    (store.root / "finished/k.json").write_text(text)
    assert notes.notes("k") == ()
    notes.add("k", note())
    assert notes.notes("k") == (note(),)


@pytest.mark.parametrize(
    ("name", "value"),
    [("finished", "1"), ("inputs", []), ("inputs", {}), ("manifest", 1), ("stamps", [])],
)
def test_a_note_of_other_types_is_none(store: Store, name: str, value: object) -> None:
    notes = Finished(store)
    notes.add("k", replace(note(), **{name: value}))  # type: ignore[arg-type]
    assert notes.notes("k") == ()


@pytest.mark.parametrize(
    ("ids", "isolation", "today", "fits"),
    [
        ("full", None, "single", True),
        ("single", None, "single", True),
        ("single", None, "full", False),
        ("native", None, "full", False),
        ("none", None, None, False),
        ("none", "chroot", None, True),
    ],
)
def test_a_result_made_with_fewer_user_ids_is_for_where_there_are_no_more(
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    ids: str,
    isolation: str | None,
    today: str | None,
    *,
    fits: bool,
) -> None:
    monkeypatch.setattr(unchanged, "wanted_ids", lambda: today)
    spec = replace(SPEC, isolation=isolation)
    tools: Any = None  # nothing is asked of them
    question = Question("k", spec, tools, 0, "", Finished(store))
    question.notes.add("k", replace(note(finished=time.time()), ids=ids, isolation="chroot"))
    assert bool(question._young_notes()) == fits


def test_files_of_any_name_come_back(store: Store) -> None:
    notes = Finished(store)
    odd = os_name(b"\xff\n")
    notes.keep_files("k", {odd: (1, 2, 3, 4, 5, "d")})
    assert notes.files("k") == {odd: [1, 2, 3, 4, 5, "d"]}
    for text in ('{"files": 7}', '{"files": {"a": 7}}', '{"files": {"a": [1, 2]}}'):
        (store.root / "finished/k.files").write_text(text)
        assert notes.files("k") == {}


def os_name(name: bytes) -> str:
    return name.decode(errors="surrogateescape")


def test_results_that_are_gone_are_forgotten(store: Store) -> None:
    notes = Finished(store)
    kept, gone = f"sha256:{A}{A[:24]}", f"sha256:{B}{B[:24]}"
    notes.add("k", note("1", gone))
    notes.add("k", note("2", kept))
    notes.add("other", note("1", gone))
    for key in ("k", "other", "stray"):
        notes.keep_files(key, {})
    notes.forget_but({Digest.parse(kept)})
    assert [one.manifest for one in notes.notes("k")] == [kept]
    assert sorted(path.name for path in (store.root / "finished").iterdir()) == [
        "k.files",
        "k.json",
    ]
