"""A source that was fetched before: the same tree and facts, and nothing that it may not say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocis2i.cli import invoke
from ocis2i.errors import SourceError, UsageError
from ocis2i.s2i import SourceInfo
from ocis2i.settings import Settings
from ocis2i.sources import PreparedSource, fetch, parse_source
from ocis2i.sources.prepared import check_empty, decode_facts, encode_facts

INFO = SourceInfo("https://h/a.git", "main", "0" * 40, "A <a@h>", "today", "why", "web", 1577836800)


@given(st.text(), st.lists(st.sampled_from([".s2i/bin/run", "a\udc80b", "x"])))
def test_the_facts_come_back(message: str, ignored: list[str]) -> None:
    info = SourceInfo(message=message, commit_time=3)
    found = decode_facts(encode_facts(info, tuple(ignored)), "it")
    assert (found.info, found.ignored) == (info, tuple(ignored))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("version", 2), ("info", None), ("info", {}), ("ignored", None), ("ignored", [1]),
        ("ignored", ["../x"]), ("ignored", ["/etc"]), ("ignored", [""]),
    ],
)  # fmt: skip
def test_facts_that_nobody_wrote_so_are_refused(key: str, value: object) -> None:
    document = json.loads(encode_facts(INFO, ("x",)))
    with pytest.raises(SourceError, match=r"damaged|another version"):
        decode_facts(json.dumps({**document, key: value}).encode(), "it")


def test_a_fetched_source_is_built_as_it_was(tmp_path: Path) -> None:
    tree = tmp_path / "got" / "tree"
    tree.mkdir(parents=True)
    (tree / ".s2iignore").write_text("kept\n")  # it counted when it was fetched
    (tree / "link").symlink_to("kept")
    (tree / ".git").mkdir()
    (tmp_path / "got/source.json").write_bytes(encode_facts(INFO, ()))
    into = tmp_path / "into"
    into.mkdir()
    source = parse_source("fetched:got", cwd=tmp_path)
    assert source == PreparedSource(tmp_path / "got")
    settings = Settings.from_environ({"HOME": str(tmp_path)})
    found = fetch(source, into, settings=settings, report=lambda _: None)
    assert found.info == INFO
    assert (into / "link").is_symlink()
    assert (into / ".git").is_dir()


def test_a_directory_that_was_not_fetched_is_no_source(tmp_path: Path) -> None:
    (tmp_path / "into").mkdir()
    settings = Settings.from_environ({"HOME": str(tmp_path)})
    source = parse_source("fetched:.", cwd=tmp_path)
    with pytest.raises(SourceError, match=r"no fetched source") as caught:
        fetch(source, tmp_path / "into", settings=settings, report=lambda _: None)
    assert "ocis2i fetch" in (caught.value.hint or "")


@pytest.mark.parametrize("more", [{"ref": "main"}, {"context_dir": "web"}])
def test_what_is_fetched_cannot_be_chosen_again(tmp_path: Path, more: dict[str, str]) -> None:
    with pytest.raises(SourceError, match="fetched already"):
        parse_source("fetched:x", cwd=tmp_path, **more)  # type: ignore[arg-type]


def test_nothing_is_fetched_over_what_is_there(tmp_path: Path) -> None:
    check_empty(tmp_path)
    check_empty(tmp_path / "new")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="not empty"):
        check_empty(tmp_path)


@pytest.mark.parametrize("is_there", [True, False])
def test_what_fails_leaves_the_directory_as_it_was(tmp_path: Path, is_there: bool) -> None:
    (tmp_path / "source/locked").mkdir(parents=True)
    (tmp_path / "source/locked/file").touch()
    (tmp_path / "source/locked").chmod(0o555)
    into = tmp_path / "into"
    if is_there:
        into.mkdir()
    given = ["--root", str(tmp_path / "store"), "fetch", str(tmp_path / "source"), str(into)]
    assert invoke([*given, "--builder", f"oci:{tmp_path}/none"]) == 4
    assert into.exists() == is_there
    check_empty(into)
    assert invoke(given) == 0
