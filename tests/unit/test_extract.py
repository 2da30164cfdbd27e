"""Artifacts out of a tar from a stranger: what arrives, what is refused, what never happens."""

from __future__ import annotations

import gzip
import io
import os
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocis2i import tar
from ocis2i.agent.extract import Extracted, extract, is_header, member_path
from ocis2i.agent.failure import AgentError
from ocis2i.agent.unpack import Limits
from tests.fakes.images import MTIME, Layer

BIG = Limits(1 << 30, 1000)


def extracted(data: bytes, into: Path, limits: Limits = BIG) -> Extracted:
    """Extracts `data` into `into`, which must not be there afterwards when that fails."""
    try:
        return extract(io.BytesIO(data), str(into), limits)
    except AgentError:
        assert not into.exists()
        raise


def names(directory: Path) -> list[str]:
    """All paths below a directory."""
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


# --- what arrives -----------------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", bytes(512), bytes(1024), bytes(10240), bytes(7)])
def test_no_output_is_an_empty_directory(tmp_path: Path, data: bytes) -> None:
    assert extracted(data, tmp_path / "a") == Extracted(0, 0, 0, 0)
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("dialect", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_dialect_is_read(tmp_path: Path, dialect: int) -> None:
    long = "d/" * 49 + "f"
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=dialect) as archive:
        for name in ("short", long):
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.mode = 3, MTIME, 0o640
            archive.addfile(info, io.BytesIO(b"abc"))
    assert extracted(buffer.getvalue(), tmp_path / "a").size_bytes == 6
    for name in ("short", long):
        facts = (tmp_path / "a" / name).stat()
        assert (facts.st_size, facts.st_mtime, stat.S_IMODE(facts.st_mode)) == (3, MTIME, 0o640)


def test_two_archives_one_after_the_other_are_both_taken(tmp_path: Path) -> None:
    first = Layer().dir("./").dir("pkg").file("pkg/one", "1")
    second = Layer().dir("./").dir("pkg").file("pkg/two", "2")
    done = extracted(first.tar() + bytes(512) + second.tar() + bytes(512), tmp_path / "a")
    assert (done.size_bytes, done.skipped, done.trailing_bytes) == (2, 0, 0)
    assert names(tmp_path / "a") == ["pkg", "pkg/one", "pkg/two"]


def test_words_behind_the_archive_are_counted_and_read_to_the_end(tmp_path: Path) -> None:
    stream = io.BytesIO(Layer().file("f", "x").tar() + b"saved 1 file\n" + bytes(5000))
    done = extract(stream, str(tmp_path / "a"), BIG)
    assert done.trailing_bytes == 5013
    assert stream.read() == b""
    assert names(tmp_path / "a") == ["f"]


def test_directories_that_forbid_writing_get_their_content_first(tmp_path: Path) -> None:
    layer = Layer().dir("d", mode=0o555, mtime=MTIME).dir("d/e", mode=0o555, mtime=MTIME)
    layer.file("d/e/f", "x", mode=0o444)
    extracted(layer.tar(), tmp_path / "a")
    try:
        for name, mode in (("d", 0o555), ("d/e", 0o555), ("d/e/f", 0o444)):
            facts = (tmp_path / "a" / name).stat()
            assert (stat.S_IMODE(facts.st_mode), facts.st_mtime) == (mode, MTIME), name
    finally:
        for name in ("d", "d/e"):  # for pytest to remove
            (tmp_path / "a" / name).chmod(0o755)


def test_the_top_stays_writable_whatever_the_archive_says(tmp_path: Path) -> None:
    extracted(Layer().dir("./", mode=0o000).file("./f", "x").tar(), tmp_path / "a")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) & 0o700 == 0o700
    assert names(tmp_path / "a") == ["f"]


def test_links_are_what_they_were(tmp_path: Path) -> None:
    layer = Layer().file("d/f", "x").hardlink("d/g", "d/f").hardlink("h", "./d/g")
    layer.symlink("absolute", "/etc/passwd").symlink("up", "../../..").symlink("d/dangling", "no")
    layer.hardlink("also-up", "up")
    extracted(layer.tar(), tmp_path / "a")
    top = tmp_path / "a"
    assert len({(top / name).stat().st_ino for name in ("d/f", "d/g", "h")}) == 1
    assert (top / "absolute").readlink() == Path("/etc/passwd")
    assert (top / "up").readlink() == (top / "also-up").readlink() == Path("../../..")
    assert (top / "d/dangling").is_symlink()


def test_owners_and_attributes_are_not_taken(tmp_path: Path) -> None:
    extracted(Layer().file("f", uid=4711, gid=4711, xattrs={"user.x": "1"}).tar(), tmp_path / "a")
    facts = (tmp_path / "a/f").stat()
    assert (facts.st_uid, facts.st_gid) == (os.geteuid(), os.getegid())
    assert os.listxattr(tmp_path / "a/f") == []


def test_devices_and_pipes_are_passed_over_and_counted(tmp_path: Path) -> None:
    layer = Layer().device("c").device("p", kind="fifo").file("f", "x").device("b", kind="block")
    assert extracted(layer.tar(), tmp_path / "a").skipped == 3
    assert names(tmp_path / "a") == ["f"]


def test_the_later_of_two_files_counts_and_other_names_keep_the_first(tmp_path: Path) -> None:
    layer = Layer().file("f", "first").hardlink("g", "f").file("f", "second").symlink("l", "x")
    layer.symlink("l", "y").hardlink("g", "g").hardlink("h", "f").hardlink("h", "f")
    extracted(layer.tar(), tmp_path / "a")
    top = tmp_path / "a"
    assert [(top / name).read_text() for name in "fgh"] == ["second", "first", "second"]
    assert (top / "l").readlink() == Path("y")


# --- what is refused --------------------------------------------------------------------------


HOSTILE: dict[str, tuple[Callable[[], Layer], str]] = {
    "absolute name": (lambda: Layer().file("/evil", "x"), "absolute"),
    "climbing name": (lambda: Layer().file("../evil", "x"), "leads out"),
    "climbing later": (lambda: Layer().file("d/../../evil", "x"), "leads out"),
    "through a link": (
        lambda: Layer().symlink("d", "..").file("d/evil", "x"),
        "lies below `d`, which is no directory",
    ),
    "through an absolute link": (
        lambda: Layer().symlink("d", "/tmp").dir("d/evil"),
        "lies below `d`",
    ),
    "through a link deep down": (
        lambda: Layer().dir("a").symlink("a/d", "../..").symlink("a/d/evil", "x"),
        "lies below `d`",
    ),
    "directory over a link": (lambda: Layer().symlink("d", "..").dir("d"), "is there twice"),
    "file over a link": (
        lambda: Layer().symlink("f", "../evil").file("f", "x"),
        "as a symbolic link and as a file",
    ),
    "link over a directory": (lambda: Layer().dir("d").symlink("d", "/"), "is there twice"),
    "file over a directory": (lambda: Layer().dir("d").file("d", "x"), "is there twice"),
    "directory over a file": (lambda: Layer().file("d", "x").dir("d"), "is there twice"),
    "below a file": (lambda: Layer().file("d", "x").file("d/e", "x"), "lies below `d`"),
    "file as the top": (lambda: Layer().file("./", "x"), "whole directory"),
    "link as the top": (lambda: Layer().symlink("d/..", "/"), "whole directory"),
    "hard link to outside": (lambda: Layer().hardlink("f", "../secret"), "leads out"),
    "hard link to the host": (lambda: Layer().hardlink("f", "/etc/passwd"), "absolute"),
    "hard link through a link": (
        lambda: Layer().symlink("d", "..").hardlink("f", "d/secret"),
        "lies below `d`",
    ),
    "hard link to nothing": (lambda: Layer().hardlink("f", "g"), "not in the archive"),
    "hard link to a directory": (lambda: Layer().dir("d").hardlink("f", "d"), "to a directory"),
    "hard link to the top": (lambda: Layer().hardlink("f", "."), "to a directory"),
    "hard link over a link": (
        lambda: Layer().file("g", "x").symlink("f", "../evil").hardlink("f", "g"),
        "is there twice",
    ),
    "very deep": (lambda: Layer().file("d/" * 1001 + "f", "x"), "1002 directories deep"),
    "very long name": (lambda: Layer().file("n" * 256, "x"), "too long"),
    "empty link": (lambda: Layer().symlink("l", ""), "cannot be unpacked"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_archive_is_refused_and_touches_nothing(tmp_path: Path, case: str) -> None:
    (tmp_path / "secret").write_text("of the host")
    make, message = HOSTILE[case]
    data = Layer().file("before", "x").tar() + make().tar()
    with pytest.raises(AgentError, match=message) as caught:
        extracted(data, tmp_path / "a")
    assert caught.value.kind == "image"
    assert names(tmp_path) == ["secret"]
    assert (tmp_path / "secret").stat().st_nlink == 1


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (b"saving artifacts...\n", "stdout starts with `saving artifacts...`, which is no tar"),
        (b"x" * 5000, "`" + "x" * 40 + "`"),
        (b"\x1b[31mred \xff\n", r"`\\x1b\[31mred \\xff`"),
        (b"hello\n" + Layer().file("f", "x").tar(), r"`hello\\nf`"),
        (gzip.compress(Layer().file("f").tar(), mtime=0), "compressed by gzip"),
    ],
)
def test_what_is_no_tar_is_shown(tmp_path: Path, data: bytes, shown: str) -> None:
    with pytest.raises(AgentError, match=shown) as caught:
        extracted(data, tmp_path / "a")
    assert caught.value.hint
    assert "save-artifacts" in caught.value.hint


def test_a_damaged_archive_says_where(tmp_path: Path) -> None:
    good = Layer().file("one", "x" * 600).file("two", "y").tar()
    damaged = bytearray(good)
    damaged[512 + 1024 + 3] ^= 0xFF  # in the second member's name
    with pytest.raises(AgentError, match="checksum"):
        extracted(bytes(damaged), tmp_path / "a")


@given(cut=st.integers(1, 512 + 700 - 1))
def test_a_truncated_archive_is_refused(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    data = Layer().file("one", "x" * 700).tar()[:cut]
    with pytest.raises(AgentError) as caught:
        extracted(data, tmp_path_factory.mktemp("cut") / "a")
    assert caught.value.kind == "image"


@pytest.mark.parametrize("limits", [Limits(999, 100), Limits(1 << 20, 1)])
def test_limits_hold_over_all_archives_together(tmp_path: Path, limits: Limits) -> None:
    data = b"".join(Layer().file(name, "x" * 500).tar() for name in "ab")
    with pytest.raises(AgentError) as caught:
        extracted(data, tmp_path / "a", limits)
    assert caught.value.kind == "policy"


def test_a_directory_that_is_there_is_not_removed(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/f").touch()
    with pytest.raises(FileExistsError):
        extract(io.BytesIO(b""), str(tmp_path / "a"), BIG)
    assert names(tmp_path) == ["a", "a/f"]


# --- pure parts -------------------------------------------------------------------------------


@given(st.binary(max_size=60).filter(lambda raw: b"\0" not in raw))
def test_a_path_never_leads_out(name: bytes) -> None:
    try:
        parts = member_path(name)
    except AgentError:
        return
    assert not {b"", b".", b".."} & set(parts)
    assert not any(b"/" in part for part in parts)


@given(st.binary(min_size=512, max_size=512))
def test_random_bytes_are_no_header(block: bytes) -> None:
    # The checksum is octal digits: chance does not meet it.
    assert not is_header(block)


def test_a_header_is_known_by_its_checksum() -> None:
    block = tar.encode_header(tar.Header(b"f", tar.REGULAR, 0o644, 0, 0, 0, 0))
    assert is_header(block)
    assert not is_header(block[:511])
    assert not is_header(bytes(512))
    assert not is_header(b"g" + block[1:])


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["file", "dir", "symlink", "hardlink", "fifo"]),
            st.lists(st.sampled_from(["a", "b", "..", ".", "", "c"]), max_size=4).map("/".join),
            st.sampled_from(["a", "b/c", "../x", "/", "..", "a/b"]),
        ),
        max_size=10,
    )
)
def test_nothing_is_ever_made_outside(
    tmp_path_factory: pytest.TempPathFactory, members: list[tuple[str, str, str]]
) -> None:
    top = tmp_path_factory.mktemp("random")
    (top / "x").write_text("of the host")
    before = (top / "x").stat()
    layer = Layer()
    for kind, name, target in members:
        if kind == "file":
            layer.file(name, "content")
        elif kind == "dir":
            layer.dir(name)
        elif kind == "symlink":
            layer.symlink(name, target)
        elif kind == "hardlink":
            layer.hardlink(name, target)
        else:
            layer.device(name, kind="fifo")
    try:
        extract(io.BytesIO(layer.tar()), str(top / "a"), BIG)
    except AgentError:
        assert not (top / "a").exists()
    assert {path.name for path in top.iterdir()} <= {"a", "x"}
    after = (top / "x").stat()
    assert (after.st_nlink, after.st_mtime_ns) == (before.st_nlink, before.st_mtime_ns)
