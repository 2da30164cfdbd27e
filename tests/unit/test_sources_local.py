"""Copying a directory: what arrives, what stays out, and what is refused."""

from __future__ import annotations

import os
import re
import socket
import stat
from pathlib import Path

import pytest

from ocis2i.errors import SourceError, UsageError
from ocis2i.events import Event, Notice, silent
from ocis2i.settings import Settings
from ocis2i.sources import DirSource, GitSource, SourceTree, fetch, parse_source
from ocis2i.sources.content import read_tree
from ocis2i.sources.copying import copy_file
from ocis2i.sources.local import DEPTH_LIMIT, CopyOrder, copy_tree, fetch_directory


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "my[app]*?"
    path.mkdir()
    return path


@pytest.fixture
def into(tmp_path: Path) -> Path:
    path = tmp_path / "work" / "src"
    path.mkdir(parents=True)
    return path


def write(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def names(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*")}


def copy(root: Path, into: Path, **options: object) -> list[Event]:
    events: list[Event] = []
    copy_tree(root, into, CopyOrder(**options), events.append)  # type: ignore[arg-type]
    return events


def test_files_modes_times_and_empty_directories_arrive(root: Path, into: Path) -> None:
    write(root / "run.sh", "echo").chmod(0o4755)
    write(root / "d/secret", "x").chmod(0o400)
    (root / "empty").mkdir()
    (root / "d").chmod(0o1555)
    os.utime(root / "run.sh", ns=(1, 1_500_000_000_123_456_789))
    os.utime(root / "empty", ns=(1, 1_400_000_000_000_000_000))
    assert copy(root, into) == []
    assert names(into) == {"run.sh", "d", "d/secret", "empty"}
    assert stat.S_IMODE((into / "run.sh").stat().st_mode) == 0o4755
    assert stat.S_IMODE((into / "d").stat().st_mode) == 0o1555
    assert stat.S_IMODE((into / "d/secret").stat().st_mode) == 0o400
    assert (into / "run.sh").stat().st_mtime_ns == 1_500_000_000_123_456_789
    assert (into / "empty").stat().st_mtime_ns == 1_400_000_000_000_000_000
    assert (into / "run.sh").read_text() == "echo"


def test_names_that_are_no_text_arrive(root: Path, into: Path) -> None:
    odd = os.fsencode(root) + b"/\xff\n"
    Path(os.fsdecode(odd)).write_text("odd")
    copy(root, into)
    assert os.listdir(os.fsencode(into)) == [b"\xff\n"]


def test_sparse_file_stays_sparse(root: Path, into: Path) -> None:
    size = 1 << 36
    with (root / "big").open("wb") as stream:
        stream.write(b"begin")
        stream.seek(1 << 30)
        stream.write(b"middle")
        stream.truncate(size)
    copy(root, into)
    copied = into / "big"
    assert copied.stat().st_size == size
    assert copied.stat().st_blocks * 512 < 1 << 20
    with copied.open("rb") as stream:
        assert stream.read(6) == b"begin\0"
        stream.seek(1 << 30)
        assert stream.read(7) == b"middle\0"


def test_copying_works_where_the_kernel_offers_no_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> int:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "copy_file_range", refuse)
    source = write(tmp_path / "a", "text" * 100_000)
    (tmp_path / "to").mkdir()
    source_fd = os.open(source, os.O_RDONLY)
    target_fd = os.open(tmp_path / "to", os.O_RDONLY)
    copy_file(source_fd, target_fd, "b", 0o640)
    os.close(source_fd)
    os.close(target_fd)
    assert (tmp_path / "to/b").read_text() == source.read_text()
    assert stat.S_IMODE((tmp_path / "to/b").stat().st_mode) == 0o640


# --- links ------------------------------------------------------------------------------------


def test_links_inside_are_followed(root: Path, into: Path) -> None:
    write(root / "real/file", "text")
    (root / "link").symlink_to("real/file")
    (root / "dir").symlink_to("real")
    (root / "real/up").symlink_to("../real/file")
    copy(root, into)
    assert names(into) == {"real", "real/file", "real/up", "link", "dir", "dir/file", "dir/up"}
    assert not (into / "link").is_symlink()
    assert (into / "dir/up").read_text() == "text"


def test_links_are_kept_on_request(root: Path, into: Path) -> None:
    write(root / "file")
    (root / "in").symlink_to("file")
    (root / "out").symlink_to("/etc/hostname")
    copy(root, into, links="keep")
    assert (into / "in").readlink() == Path("file")
    assert (into / "out").readlink() == Path("/etc/hostname")


def test_dangling_links_stay_links(root: Path, into: Path) -> None:
    for name, target in {"a": "missing", "b": "/no/such/file", "c": "../../../no/such"}.items():
        (root / name).symlink_to(target)
    (root / "self").symlink_to("self")
    copy(root, into)
    assert {path.name: str(path.readlink()) for path in into.iterdir()} == {
        "a": "missing",
        "b": "/no/such/file",
        "c": "../../../no/such",
        "self": "self",
    }


@pytest.mark.parametrize("target", ["{outside}/secret", "../outside/secret", "hop", "../outside"])
def test_link_that_leaves_the_source_is_refused_by_name(
    root: Path, into: Path, tmp_path: Path, target: str
) -> None:
    write(tmp_path / "outside/secret", "password")
    (root / "hop").symlink_to("../outside/secret")
    (root / "a-link").symlink_to(target.format(outside=tmp_path / "outside"))
    with pytest.raises(SourceError, match="`a-link` leads out of the source") as caught:
        copy(root, into)
    assert "--keep-symlinks" in (caught.value.hint or "")
    assert "password" not in "".join(p.read_text() for p in into.rglob("*") if p.is_file())


def test_link_through_a_directory_link_cannot_leave(root: Path, into: Path, tmp_path: Path) -> None:
    write(tmp_path / "outside/secret", "password")
    (root / "a/b").mkdir(parents=True)
    (root / "deep").symlink_to("a/b")
    # Read as text it stays inside; through the link it does not.
    (root / "z").symlink_to("deep/../../../outside/secret")
    with pytest.raises(SourceError, match="`z`"):
        copy(root, into)


def test_directory_loop_is_refused(root: Path, into: Path) -> None:
    (root / "a").mkdir()
    (root / "a/loop").symlink_to("..")
    with pytest.raises(SourceError, match="`a/loop` leads back"):
        copy(root, into)


def test_links_that_multiply_are_stopped(
    root: Path, into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ocis2i.sources.local.FOLLOWED_LIMIT", 500)
    for level in range(30):
        (root / f"{level:02}").mkdir()
        for name in "ab":
            (root / f"{level:02}/{name}").symlink_to(f"../{level + 1:02}")
    write(root / "30")
    with pytest.raises(SourceError, match="more than 500 files"):
        copy(root, into)


def test_links_that_multiply_one_large_file_are_stopped(root: Path, into: Path) -> None:
    (root / "big").write_bytes(os.urandom(8192))
    for number in range(20):
        (root / f"link-{number}").symlink_to("big")
    with pytest.raises(SourceError, match="lead to more than 100000 bytes"):
        copy(root, into, followed_limit_bytes=100_000)


def test_link_to_something_excluded_stays_a_link(root: Path, into: Path) -> None:
    write(root / ".git/config", "password")
    (root / "config").symlink_to(".git/config")
    copy(root, into)
    assert (into / "config").is_symlink()
    assert names(into) == {"config"}


def test_link_below_something_excluded_stays_a_link(root: Path, into: Path) -> None:
    write(root / "private/deep/key", "password")
    (root / "key").symlink_to("private/deep/key")
    copy(root, into, exclude="^private$")
    assert names(into) == {"key"}
    assert (into / "key").is_symlink()


# --- hostile trees ----------------------------------------------------------------------------


def make_special(root: Path, kind: str) -> None:
    if kind == "FIFO":
        os.mkfifo(root / "odd\x1b")
        return
    with socket.socket(socket.AF_UNIX) as server:
        here = os.open(root, os.O_RDONLY)
        server.bind(f"/proc/self/fd/{here}/odd\x1b")
        os.close(here)


@pytest.mark.parametrize("kind", ["FIFO", "socket"])
def test_special_file_is_refused_by_name_and_not_waited_for(
    root: Path, into: Path, kind: str
) -> None:
    make_special(root, kind)
    with pytest.raises(SourceError, match=rf"`odd\\x1b` in the source is a {kind}") as caught:
        copy(root, into)
    assert ".s2iignore" in (caught.value.hint or "")


@pytest.mark.parametrize("kind", ["FIFO", "socket"])
@pytest.mark.parametrize("way", ["exclude", "ignore"])
def test_special_file_that_a_rule_names_is_left_out(
    root: Path, into: Path, kind: str, way: str
) -> None:
    make_special(root, kind)
    write(root / ".s2iignore", "odd*" if way == "ignore" else "")
    copy(root, into, exclude="^odd" if way == "exclude" else "x{9}")
    assert names(into) == {".s2iignore"}


def test_link_to_a_special_file_is_refused_or_stays_a_link(root: Path, into: Path) -> None:
    (root / "a").symlink_to("d/fifo")
    (root / "d").mkdir()
    os.mkfifo(root / "d/fifo")
    with pytest.raises(SourceError, match="`a` in the source is a FIFO"):
        copy(root, into)
    again = into.parent / "again"
    again.mkdir()
    copy(root, again, exclude="fifo")
    assert (again / "a").is_symlink()


def test_device_behind_a_kept_link_is_not_opened(root: Path, into: Path) -> None:
    (root / "null").symlink_to("/dev/null")
    copy(root, into, links="keep")
    assert (into / "null").readlink() == Path("/dev/null")


def test_very_deep_tree_is_refused_and_a_deep_one_copied(root: Path, into: Path) -> None:
    here = os.open(root, os.O_RDONLY)
    for depth in range(DEPTH_LIMIT + 1):
        if depth == DEPTH_LIMIT:
            copy(root, into)
            os.close(os.open("x", os.O_CREAT, dir_fd=here))
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    assert (into / "/".join(["d"] * DEPTH_LIMIT)).is_dir()
    again = into.parent / "again"
    again.mkdir()
    with pytest.raises(SourceError, match="200 deep"):
        copy(root, again)


def test_source_is_not_copied_into_itself(root: Path) -> None:
    inside = root / "work"
    inside.mkdir()
    with pytest.raises(SourceError, match="into itself"):
        copy(root, inside)


def test_sibling_with_the_same_prefix_is_no_part_of_the_source(tmp_path: Path) -> None:
    write(tmp_path / "b/file")
    (tmp_path / "bc").mkdir()
    copy(tmp_path / "b", tmp_path / "bc")
    assert names(tmp_path / "bc") == {"file"}


def test_link_to_the_target_is_refused(tmp_path: Path) -> None:
    (tmp_path / "root/app").mkdir(parents=True)
    target = tmp_path / "root/work"
    target.mkdir()
    (tmp_path / "root/app/link").symlink_to("../work")
    with pytest.raises(SourceError, match="leads back"):
        copy(tmp_path / "root", target, context_dir="app")


# --- filters and the context directory ---------------------------------------------------------


def test_ignored_and_excluded_paths_leave_no_trace(root: Path, into: Path) -> None:
    for path in ("a.log", "keep.txt", "build/x/y", ".git/HEAD", "tmp/t", "fifo.d/f"):
        write(root / path, "x")
    os.mkfifo(root / "pipe.log")
    write(root / ".s2iignore", "*.log\nbuild\n")
    assert copy(root, into, exclude=r"^tmp$|(^|/)\.git(/|$)") == []
    assert names(into) == {".s2iignore", "keep.txt", "fifo.d", "fifo.d/f"}


@pytest.mark.parametrize("exclude", ["", "^tmp$"])
def test_what_the_build_writes_there_itself_is_no_part_of_it(
    root: Path, into: Path, exclude: str
) -> None:
    for path in ("sub/record/record.json", "sub/a", "record/b"):
        write(root / path, "x")
    os.mkfifo(root / "sub/events")
    own = (root / "sub/record", root / "sub/events", root.parent / "elsewhere", root / "sub")
    source = DirSource(root, ".", "sub", exclude, own=own)
    fetch_directory(source, into, silent)
    assert names(into) == {"a"}
    before = read_tree(source, {})
    (root / "sub/record/more").touch()
    after = read_tree(source, {})
    assert before and after and before.digest == after.digest


def test_exclude_sees_paths_relative_to_the_source(root: Path, into: Path) -> None:
    write(root / "sub/file", "x")
    copy(root, into, exclude="my|^file")
    assert names(into) == {"sub", "sub/file"}


def test_scripts_are_there_although_ignored_or_excluded(root: Path, into: Path) -> None:
    for path in (".s2i/bin/assemble", ".s2i/bin/other", ".s2i/environment", "a"):
        write(root / path, "x")
    write(root / ".s2iignore", ".s2i\n")
    copy(root, into, exclude="assemble")
    assert names(into) == {".s2i", ".s2i/bin", ".s2i/bin/assemble", ".s2iignore", "a"}


def test_ignored_s2i_directory_without_scripts_is_gone(root: Path, into: Path) -> None:
    write(root / ".s2i/environment", "A=1")
    write(root / ".s2iignore", ".s2i\n")
    copy(root, into)
    assert names(into) == {".s2iignore"}


@pytest.mark.parametrize(
    ("exclude", "stays"),
    [("^docs$", False), (r"(^|/)\.git(/|$)", False), ("(?i)DOCS", False), ("", True)],
)
def test_git_directories_stay_out_unless_nothing_is_excluded(
    root: Path, into: Path, exclude: str, stays: bool
) -> None:
    for path in (".git/HEAD", "sub/.git", ".gitignore", "a"):
        write(root / path, "x")
    copy(root, into, exclude=exclude)
    git = {".git", ".git/HEAD", "sub/.git"} if stays else set()
    assert names(into) == {".gitignore", "a", "sub"} | git


def test_pointers_of_git_lfs_are_counted_where_they_count(root: Path, into: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    for number in range(7):
        write(root / f"{number}.bin", pointer)
    write(root / "ignored.bin", pointer)
    write(root / "quoted.md", f"It begins so: {pointer}")
    write(root / ".s2iignore", "ignored.bin")
    (event,) = copy(root, into)
    assert isinstance(event, Notice)
    assert event.message.startswith("7 files are Git LFS pointers")
    assert "`4.bin` and 2 more" in event.message


def test_malformed_pattern_is_reported(root: Path, into: Path) -> None:
    write(root / ".s2iignore", "[\n")
    (event,) = copy(root, into)
    assert isinstance(event, Notice)
    assert "`[` in `.s2iignore` is no pattern" in event.message


def test_pattern_out_of_the_source_deletes_nothing(root: Path, into: Path, tmp_path: Path) -> None:
    victim = write(tmp_path / "victim", "x")
    write(root / ".s2iignore", "../victim\n")
    with pytest.raises(SourceError, match=re.escape("`../victim`")):
        copy(root, into)
    assert victim.exists()


def test_ignore_file_that_leaves_the_source_is_refused(root: Path, into: Path) -> None:
    (root / ".s2iignore").symlink_to("/etc/passwd")
    with pytest.raises(SourceError, match="leaves the source"):
        copy(root, into)


def test_context_directory_has_its_own_ignore_file_and_may_link_beside(
    root: Path, into: Path
) -> None:
    write(root / ".s2iignore", "*\n")
    write(root / "app/.s2iignore", "x\n")
    write(root / "app/x")
    write(root / "shared/lib", "lib")
    (root / "app/lib").symlink_to("../shared")
    copy(root, into, context_dir="app")
    assert names(into) == {".s2iignore", "lib", "lib/lib"}


def test_unfold_keeps_links_except_those_to_the_rest_of_the_source(root: Path, into: Path) -> None:
    write(root / "app/own", "own")
    write(root / "shared", "shared")
    write(root / ".git/config", "password")
    for name, target in {
        "to-own": "own",
        "to-shared": "../shared",
        "out": "/etc/hostname",
        "to-config": "../.git/config",
    }.items():
        (root / "app" / name).symlink_to(target)
    copy(root, into, context_dir="app", links="unfold", checkout=True)
    assert {path.name for path in into.iterdir() if path.is_symlink()} == {
        "to-own",
        "out",
        "to-config",
    }
    assert (into / "to-shared").read_text() == "shared"


@pytest.mark.parametrize("context", ["missing", "file", "out"])
def test_context_directory_must_be_a_directory_inside(root: Path, into: Path, context: str) -> None:
    write(root / "file")
    (root / "out").symlink_to("/etc")
    with pytest.raises(SourceError, match=f"`{context}`"):
        copy(root, into, context_dir=context)


# --- what the user typed ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "url", "ref"),
    [
        ("https://host/x.git", "https://host/x.git", None),
        ("https://host/x.git#v1", "https://host/x.git", "v1"),
        ("http://user:pass@h:443/p?query#fragment", "http://user:pass@h:443/p?query", "fragment"),
        ("ssh://git@host:22/x", "ssh://git@host:22/x", None),
        ("git://host/x", "git://host/x", None),
        ("user@host:repo.git#f", "user@host:repo.git", "f"),
        ("myhost:repo", "myhost:repo", None),
    ],
)
def test_git_urls_are_recognised(tmp_path: Path, text: str, url: str, ref: str | None) -> None:
    assert parse_source(text, cwd=tmp_path) == GitSource(url, ref)


def test_ref_wins_over_the_fragment(tmp_path: Path) -> None:
    source = parse_source("https://host/x#a", cwd=tmp_path, ref="b", context_dir="/sub//dir/")
    assert source == GitSource("https://host/x", "b", "sub/dir")


def test_copy_means_nothing_to_a_url(tmp_path: Path) -> None:
    assert parse_source("https://h/x", cwd=tmp_path, copy=True) == GitSource("https://h/x")


@pytest.mark.parametrize("text", [".", "./", "file://{cwd}"])
def test_plain_directory_is_copied(tmp_path: Path, text: str) -> None:
    typed = text.format(cwd=tmp_path)
    assert parse_source(typed, cwd=tmp_path, keep_symlinks=True) == DirSource(
        tmp_path, typed, keep_symlinks=True
    )


def test_directory_whose_name_looks_like_something_else_is_one(tmp_path: Path) -> None:
    for name in ("a#b", "host:dir", "u@h:d"):
        (tmp_path / name).mkdir()
        assert parse_source(name, cwd=tmp_path) == DirSource(tmp_path / name, name)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("missing", "neither a directory nor a git URL"),
        ("app.jar", "the source `app.jar` is empty"),
        ("app.jar/x", "neither a directory"),
        ("notes.txt", "is no archive and no program"),
        ("", "empty text"),
        ("no/such\0file", "neither a directory nor a git URL"),
        ("x" * 5000, "File name too long"),
        ("ext::sh -c id", "no transport"),
        ("http::http://h/x", "no transport"),
        ("fd::17", "no transport"),
        ("ftp://host/x", "no transport"),
        ("svn+ssh://host/x", "no transport"),
        ("file://relative/path", "names a host"),
        ("ssh://git@host:org/repo", "invalid URL"),
        ("ssh://-oProxyCommand=x/y", "is an option"),
        ("-oProxyCommand=x:y", "is an option"),
        ("https://me:secret@/x", "names no host"),
        ("https:x", "names no host"),
        ("https://h/x#-f", "invalid ref"),
        ("https://h/x#a b", "invalid ref"),
        ("https://h/x#main:refs/heads/x", "invalid ref"),
        ("https://h/x#refs/heads/*", "invalid ref"),
        ("https://h/x#a..b", "invalid ref"),
    ],
)
def test_what_is_no_source_is_refused(tmp_path: Path, text: str, words: str) -> None:
    write(tmp_path / "app.jar")
    write(tmp_path / "notes.txt", "notes")
    with pytest.raises(SourceError, match=words) as caught:
        parse_source(text, cwd=tmp_path)
    assert "secret" not in caught.value.message


def test_long_url_is_a_url(tmp_path: Path) -> None:
    url = f"https://{'x' * 300}:@host/x"
    assert parse_source(url, cwd=tmp_path) == GitSource(url)


@pytest.mark.parametrize("depth", [0, -1, 1 << 31])
def test_depth_that_is_none_is_refused(tmp_path: Path, depth: int) -> None:
    with pytest.raises(UsageError, match=f"--depth is `{depth}`"):
        parse_source("https://h/x", cwd=tmp_path, depth=depth)


def test_depth_is_for_clones_only(tmp_path: Path) -> None:
    assert parse_source("https://h/x", cwd=tmp_path, depth=3) == GitSource("https://h/x", depth=3)
    assert parse_source(".", cwd=tmp_path, depth=3) == DirSource(tmp_path, ".")


@pytest.mark.parametrize("context", ["..", "a/../../b", "/../x"])
def test_context_directory_with_dots_is_refused(tmp_path: Path, context: str) -> None:
    with pytest.raises(SourceError, match="context directory"):
        parse_source(".", cwd=tmp_path, context_dir=context)


def test_bad_exclude_and_a_ref_of_a_plain_directory_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        parse_source(".", cwd=tmp_path, exclude="(")
    with pytest.raises(SourceError, match="no git repository"):
        parse_source(".#main", cwd=tmp_path)


def test_fetch_of_a_directory_says_where_it_came_from(root: Path, into: Path) -> None:
    write(root / "sub/a", "x")
    source = parse_source(root.name, cwd=root.parent, context_dir="sub")
    tree = fetch(source, into, settings=Settings(into, into), report=silent)
    assert isinstance(tree, SourceTree)
    assert (tree.root, tree.info.location, tree.info.context_dir) == (into, root.name, "sub")
    assert tree.info.commit_time is None
    assert names(into) == {"a"}


def test_directory_that_is_gone_is_a_source_error(tmp_path: Path, into: Path) -> None:
    with pytest.raises(SourceError, match="cannot open directory"):
        fetch(
            DirSource(tmp_path / "gone", "gone"),
            into,
            settings=Settings(into, into),
            report=silent,
        )
