"""Sources that are archives: what arrives, and what hostile ones get to hear."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import shutil
import stat
import subprocess
import tarfile
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from ocis2i.errors import Ocis2iError, PolicyError, SourceError
from ocis2i.events import Event, Notice
from ocis2i.settings import DEFAULT_LAYER_LIMIT, Settings
from ocis2i.sources import (
    ArchiveSource,
    SingleSource,
    SourceInfo,
    SourceTree,
    empty_tree,
    fetch,
    parse_source,
)
from ocis2i.sources.archive import commit_of_tar, recognise
from ocis2i.sources.unpacking import split_member
from ocis2i.sources.zipped import zip_name

MTIME = 1_500_000_000

Pairs = Iterable[tuple[tarfile.TarInfo, bytes]]


def entry(name: str, data: bytes = b"", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = len(data), MTIME, 0o644
    for field, value in fields.items():
        setattr(info, field, value)
    return info, data


def directory(name: str, mode: int = 0o755) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, type=tarfile.DIRTYPE, mode=mode)


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, type=kind, linkname=target)


def make_tar(*entries: tuple[tarfile.TarInfo, bytes], **options: object) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", **options) as archive:  # type: ignore[call-overload]
        for info, data in entries:
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def zip_entry(name: str, mode: int = stat.S_IFREG | 0o644) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, (2020, 2, 3, 4, 5, 6))
    info.create_system, info.external_attr = 3, mode << 16
    info.compress_type = zipfile.ZIP_DEFLATED
    return info


def make_zip(*entries: tuple[zipfile.ZipInfo | str, bytes], comment: bytes = b"") -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for info, data in entries:
            archive.writestr(info, data)
        archive.comment = comment
    return buffer.getvalue()


class Unpacked:
    """A fetched archive."""

    def __init__(self, tree: SourceTree, warnings: list[str]) -> None:
        self.root = tree.root
        self.info = tree.info
        self.warnings = warnings

    @property
    def names(self) -> set[str]:
        return {str(path.relative_to(self.root)) for path in self.root.rglob("*")}

    def mode(self, name: str) -> int:
        return stat.S_IMODE((self.root / name).lstat().st_mode)


class Fetcher:
    """Fetches an archive into a new directory each time, and looks that nothing else changes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "canary").write_text("untouched")
        (directory / "outside").mkdir()

    def __call__(
        self,
        data: bytes,
        *,
        stdin: bool = False,
        limit: int = DEFAULT_LAYER_LIMIT,
        **options: object,
    ) -> Unpacked:
        work = self.directory / "work"
        shutil.rmtree(work, ignore_errors=True)
        (work / "src").mkdir(parents=True)
        (self.directory / "app").write_bytes(data)
        text = "-" if stdin else "app"
        events: list[Event] = []
        try:
            source = parse_source(text, cwd=self.directory, **options)  # type: ignore[arg-type]
            settings = Settings(self.directory, self.directory, layer_limit=limit)
            tree = fetch(
                source,
                work / "src",
                settings=settings,
                report=events.append,
                stdin=Pipe(data) if stdin else None,
            )
        finally:
            self.check_outside()
        return Unpacked(tree, [event.message for event in events if isinstance(event, Notice)])

    def check_outside(self) -> None:
        assert os.listdir(self.directory / "work") == ["src"]
        assert sorted(os.listdir(self.directory)) == ["app", "canary", "outside", "work"]
        assert os.listdir(self.directory / "outside") == []
        canary = self.directory / "canary"
        assert (canary.read_text(), canary.stat().st_nlink) == ("untouched", 1)


class Pipe(io.BytesIO):
    """Standard input: it cannot seek, and gives less than what is asked for."""

    def seekable(self) -> bool:
        return False

    def seek(self, *position: int) -> int:
        raise io.UnsupportedOperation("seek")

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(min(size, 1000) if size is not None and size > 0 else size)


@pytest.fixture
def fetched(tmp_path: Path) -> Fetcher:
    (tmp_path / "here").mkdir()
    return Fetcher(tmp_path / "here")


# --- formats ----------------------------------------------------------------------------------

TAR = make_tar(entry("run.sh", b"echo", mode=0o755), directory("d"), entry("d/f", b"x" * 5000))

FORMATS: dict[str, bytes] = {
    "tar": TAR,
    "gzip": gzip.compress(TAR),
    "bzip2": bz2.compress(TAR),
    "xz": lzma.compress(TAR),
    "zstd": zstandard.compress(TAR),
    "zip": make_zip(
        (zip_entry("run.sh", stat.S_IFREG | 0o755), b"echo"),
        (zip_entry("d/", stat.S_IFDIR | 0o755), b""),
        (zip_entry("d/f"), b"x" * 5000),
    ),
}


@pytest.mark.parametrize("stdin", [False, True], ids=["file", "stdin"])
@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_known_by_its_content(fetched: Fetcher, kind: str, stdin: bool) -> None:
    data = FORMATS[kind]
    assert recognise(data[:512]) == kind
    result = fetched(data, stdin=stdin)
    assert result.names == {"run.sh", "d", "d/f"}
    assert (result.root / "d/f").read_bytes() == b"x" * 5000
    assert (result.mode("run.sh"), result.mode("d"), result.mode("d/f")) == (0o755, 0o755, 0o644)
    assert result.info == SourceInfo(location="" if stdin else "app")
    assert result.warnings == []


@pytest.mark.parametrize("kind", ["bzip2", "xz", "gzip", "zstd"])
def test_several_streams_in_one_file_are_one(fetched: Fetcher, kind: str) -> None:
    pack: dict[str, Callable[[bytes], bytes]] = {
        "bzip2": bz2.compress,
        "xz": lambda data: lzma.compress(data) + bytes(8),
        "gzip": gzip.compress,
        "zstd": zstandard.compress,
    }
    data = pack[kind](TAR[:700]) + pack[kind](TAR[700:])
    assert fetched(data).names == {"run.sh", "d", "d/f"}


def test_tar_of_before_posix_is_known_by_its_checksum(fetched: Fetcher) -> None:
    old = bytearray(make_tar(entry("a", b"1")))
    old[257:265] = bytes(8)
    old[148:156] = b" " * 8
    old[148:156] = b"%06o\0 " % sum(old[:512])
    assert fetched(bytes(old)).names == {"a"}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b"hello", "no archive"),
        (b"\x7fELFX" + bytes(2000), "no archive"),
        (os.urandom(8).hex().encode() * 100, "no archive"),
        (b"0" * 148 + b"99999999" + b"0" * 500, "no archive"),
    ],
)
@pytest.mark.parametrize("stdin", [False, True], ids=["file", "stdin"])
def test_what_is_no_archive_hears_what_would_be(
    fetched: Fetcher, data: bytes, words: str, stdin: bool
) -> None:
    with pytest.raises(SourceError, match=words) as caught:
        fetched(data, stdin=stdin)
    assert "zip" in (caught.value.hint or "")


@pytest.mark.parametrize(
    "data",
    [gzip.compress(b"no tar"), bz2.compress(b"no tar" * 200), lzma.compress(b""), TAR[:512]],
    ids=["gzip", "bzip2", "xz", "cut"],
)
def test_compressed_data_that_is_no_tar_is_refused(fetched: Fetcher, data: bytes) -> None:
    with pytest.raises(SourceError):
        fetched(data)


@pytest.mark.parametrize(
    "data", [bytes(10240), gzip.compress(bytes(1024)), make_zip()], ids=["tar", "gzip", "zip"]
)
def test_archive_without_members_is_refused(fetched: Fetcher, data: bytes) -> None:
    with pytest.raises(SourceError, match="is an empty archive"):
        fetched(data)


@pytest.mark.parametrize("kind", FORMATS)
def test_truncated_archive_is_refused(fetched: Fetcher, kind: str) -> None:
    data = FORMATS[kind]
    for size in (len(data) * 2 // 3 if kind != "tar" else 5000, len(data) - 5):
        if kind == "tar" and size == len(data) - 5:
            continue  # what is missing is padding
        with pytest.raises(SourceError, match="`app`"):
            fetched(data[:size])


@pytest.mark.parametrize("kind", ["gzip", "bzip2", "xz", "zip"])
def test_damaged_archive_is_refused(fetched: Fetcher, kind: str) -> None:
    data = bytearray(FORMATS[kind])
    middle = data.index(b"d/f") + 5 if kind == "zip" else len(data) // 2
    for at in range(middle, middle + 8):
        data[at] ^= 0xFF
    with pytest.raises(SourceError, match="`app`"):
        fetched(bytes(data))


def test_damaged_header_is_named_as_such(fetched: Fetcher) -> None:
    with pytest.raises(SourceError, match=r"is not a good tar archive.*checksum"):
        fetched(b"X" + TAR[1:])


@given(st.binary(max_size=600), st.sampled_from(sorted(FORMATS)), st.integers(0, 400))
def test_no_damage_makes_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes, kind: str, at: int
) -> None:
    data = FORMATS[kind][:at] + noise + FORMATS[kind][at + len(noise) :]
    fetched = Fetcher(tmp_path_factory.mktemp("noise"))
    try:
        fetched(data, stdin=True)
    except Ocis2iError as error:
        assert error.message.isprintable()


# --- what arrives -----------------------------------------------------------------------------


def test_modes_and_times_arrive_and_owners_do_not(fetched: Fetcher) -> None:
    result = fetched(
        make_tar(
            directory("closed", 0o555),
            entry("closed/f", b"x", mode=0o4755, uid=1234, gid=1234, uname="somebody"),
            entry("secret", b"x", mode=0o400),
            directory("shut", 0o000),
            entry("later/implied", b"x"),
        )
    )
    assert result.names == {"closed", "closed/f", "secret", "shut", "later", "later/implied"}
    modes = {name: result.mode(name) for name in ("closed", "closed/f", "secret", "shut", "later")}
    assert modes == {
        "closed": 0o555,
        "closed/f": 0o4755,
        "secret": 0o400,
        "shut": 0o000,
        "later": 0o755,
    }
    status = (result.root / "closed/f").stat()
    assert (status.st_uid, status.st_mtime) == (os.getuid(), MTIME)
    assert (result.root / "closed").stat().st_mtime == MTIME
    (result.root / "closed").chmod(0o755)


def test_times_that_no_file_system_has_are_bounded(fetched: Fetcher) -> None:
    data = make_tar(entry("a", pax_headers={"mtime": "99999999999999999"}, mtime=99999999999999))
    assert (fetched(data).root / "a").stat().st_mtime == 2**33


def test_names_that_are_no_text_arrive(fetched: Fetcher) -> None:
    data = make_tar(entry("d/\udcff\udcfe"), format=tarfile.GNU_FORMAT, errors="surrogateescape")
    assert os.listdir(os.fsencode(fetched(data).root / "d")) == [b"\xff\xfe"]


def test_dots_and_doubled_slashes_mean_nothing(fetched: Fetcher) -> None:
    data = make_tar(directory("./"), entry("./a"), entry("b//./c"), entry("...", b"x"))
    assert fetched(data).names == {"a", "b", "b/c", "..."}


def test_a_directory_on_top_is_kept_and_can_be_named(fetched: Fetcher) -> None:
    data = make_tar(entry("app-1.0/a"), entry("app-1.0/sub/b"))
    assert fetched(data).names == {"app-1.0", "app-1.0/a", "app-1.0/sub", "app-1.0/sub/b"}
    result = fetched(data, context_dir="app-1.0")
    assert result.names == {"a", "sub", "sub/b"}
    assert result.info == SourceInfo(location="app", context_dir="app-1.0")


@pytest.mark.parametrize("stdin", [False, True], ids=["file", "stdin"])
def test_filters_apply_as_for_a_directory(fetched: Fetcher, stdin: bool) -> None:
    files = [".git/HEAD", ".s2iignore", "a.log", "docs/x", ".s2i/bin/run", ".s2i/environment"]
    contents = {".s2iignore": b"*.log\n.s2i\n"}
    data = make_tar(*(entry(name, contents.get(name, b"x")) for name in files))
    result = fetched(data, exclude="^docs$", stdin=stdin)
    assert result.names == {".s2iignore", ".s2i", ".s2i/bin", ".s2i/bin/run"}


def test_pattern_that_leaves_the_source_deletes_nothing(fetched: Fetcher) -> None:
    with pytest.raises(SourceError, match="leads out of the source"):
        fetched(make_tar(entry(".s2iignore", b"../../canary\n")))


def test_later_member_of_a_tar_takes_the_place(fetched: Fetcher) -> None:
    data = make_tar(entry("a", b"old"), link("b", "a"), entry("a", b"new"), entry("b", b"file"))
    result = fetched(data)
    assert (result.root / "a").read_text() == "new"
    assert (result.root / "b").read_text() == "file"
    assert not (result.root / "b").is_symlink()


def test_pointers_of_git_lfs_are_counted(fetched: Fetcher) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    result = fetched(make_tar(entry("a", pointer), entry("b", pointer), entry("c", b"c")))
    assert len(result.warnings) == 1
    assert "2 files are Git LFS pointers without the content: `a`, `b`" in result.warnings[0]


# --- the commit -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip"])
@pytest.mark.parametrize("stdin", [False, True], ids=["file", "stdin"])
def test_git_archive_brings_the_commit(
    tmp_path: Path, fetched: Fetcher, kind: str, stdin: bool
) -> None:
    def git(*arguments: str) -> bytes:
        environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
        command = ["git", "-c", "user.name=a", "-c", "user.email=b", *arguments]
        finished = subprocess.run(
            command, cwd=tmp_path / "repo", env=environment, check=True, stdout=subprocess.PIPE
        )
        return finished.stdout

    (tmp_path / "repo").mkdir()
    git("init", "--quiet")
    (tmp_path / "repo/ä").write_text("x")
    (tmp_path / "repo/link").symlink_to("ä")
    git("add", "--all")
    git("commit", "--quiet", "-m", "x")
    data = git("archive", f"--format={kind}", "--prefix=app/", "HEAD")
    result = fetched(data, stdin=stdin)
    assert result.names == {"app", "app/ä", "app/link"}
    assert (result.root / "app/link").readlink() == Path("ä")
    assert result.info.commit_id == git("rev-parse", "HEAD").decode().strip()


@pytest.mark.parametrize(
    "comment", ["x" * 40, "a" * 39, "a" * 41, "A" * 40, "a" * 40 + "\n", "a" * 63]
)
def test_comment_that_is_no_commit_is_none(comment: str) -> None:
    head = make_tar(entry("a"), format=tarfile.PAX_FORMAT, pax_headers={"comment": comment})
    assert commit_of_tar(head[:1024]) == ""
    assert commit_of_tar(b"") == ""


def test_commit_by_sha256_is_one(fetched: Fetcher) -> None:
    head = make_tar(entry("a"), format=tarfile.PAX_FORMAT, pax_headers={"comment": "b" * 64})
    assert fetched(head).info.commit_id == "b" * 64
    assert fetched(make_zip(("a", b""), comment=b"c" * 40)).info.commit_id == "c" * 40
    assert fetched(make_zip(("a", b""), comment=b"by hand")).info.commit_id == ""


# --- links ------------------------------------------------------------------------------------


def test_links_inside_stay_links(fetched: Fetcher) -> None:
    data = make_tar(
        entry("real/f", b"x"), link("a", "real/f"), link("d", "real"), link("real/up", "../a"),
        link("dangling", "missing"), link("self", "self"),
    )  # fmt: skip
    result = fetched(data)
    links = {"a": "real/f", "d": "real", "real/up": "../a", "dangling": "missing", "self": "self"}
    assert {name: os.readlink(result.root / name) for name in links} == links


@pytest.mark.parametrize(
    ("target", "before"),
    [
        ("/etc/hostname", ()),
        ("/", ()),
        ("../canary", ()),
        ("..", ()),
        ("missing/../../../canary", ()),
        ("real/../../canary", (entry("real/f"),)),
        ("deep/../../x", (entry("real/d/f"), link("deep", "real"))),
    ],
)
def test_link_that_leaves_the_archive_is_refused_by_name(
    fetched: Fetcher, target: str, before: Iterable[tuple[tarfile.TarInfo, bytes]]
) -> None:
    with pytest.raises(SourceError, match="the link `bad` leads out of the source") as caught:
        fetched(make_tar(*before, link("bad", target)))
    assert "--keep-symlinks" in (caught.value.hint or "")


def test_link_out_of_a_zip_is_refused_by_name(fetched: Fetcher) -> None:
    data = make_zip((zip_entry("d/bad", stat.S_IFLNK | 0o777), b"../../canary"))
    for stdin in (True, False):
        with pytest.raises(SourceError, match="the link `d/bad` leads out of the source"):
            fetched(data, stdin=stdin)


def test_link_out_stays_a_link_on_request_and_is_not_read(fetched: Fetcher) -> None:
    result = fetched(make_tar(link("out", "../../canary")), keep_symlinks=True)
    assert (result.root / "out").readlink() == Path("../../canary")


def test_link_out_that_is_ignored_harms_nobody(fetched: Fetcher) -> None:
    data = make_tar(link("out", "/etc/passwd"), entry(".s2iignore", b"out\n"))
    assert fetched(data).names == {".s2iignore"}


def test_context_directory_cannot_be_a_link_out(fetched: Fetcher) -> None:
    for target in ("/etc", "../outside"):
        with pytest.raises(SourceError, match="leads out of the source"):
            fetched(make_tar(link("ctx", target)), context_dir="ctx")
    with pytest.raises(SourceError, match="no directory `ctx`"):
        fetched(make_tar(entry("ctx")), context_dir="ctx")


def test_ignore_file_that_is_a_link_out_is_not_read(fetched: Fetcher) -> None:
    with pytest.raises(SourceError, match="leaves the source"):
        fetched(make_tar(link(".s2iignore", "/etc/passwd")))


def test_link_beside_the_context_directory_becomes_content(fetched: Fetcher) -> None:
    data = make_tar(directory("app"), link("app/lib", "../lib"), entry("lib/f", b"text"))
    result = fetched(data, context_dir="app")
    assert (result.root / "lib/f").read_text() == "text"
    assert not (result.root / "lib").is_symlink()


def test_links_beside_that_multiply_a_file_are_stopped(fetched: Fetcher) -> None:
    links = (link(f"app/{number}", "../big") for number in range(20))
    data = make_tar(entry("big", os.urandom(8192)), *links)
    with pytest.raises(SourceError, match="lead to more than 100000 bytes"):
        fetched(data, context_dir="app", limit=100_000)


@pytest.mark.parametrize("target", ["/outside", "../outside", "{outside}"])
def test_member_through_a_link_is_refused(fetched: Fetcher, target: str) -> None:
    target = target.format(outside=fetched.directory / "outside")
    data = make_tar(link("d", target), entry("d/evil", b"evil"))
    with pytest.raises(SourceError, match="`d/evil` of `app` leads through `d`"):
        fetched(data, keep_symlinks=True)
    data = make_zip((zip_entry("d", stat.S_IFLNK | 0o777), target.encode()), ("d/evil", b"evil"))
    with pytest.raises(SourceError, match="`d/evil` of `app` leads through `d`"):
        fetched(data, keep_symlinks=True)


def test_member_with_the_name_of_a_link_does_not_follow_it(fetched: Fetcher) -> None:
    data = make_tar(link("a", str(fetched.directory / "canary")), entry("a", b"evil"))
    assert (fetched(data).root / "a").read_text() == "evil"
    data = make_tar(link("a", "../outside"), directory("a"))
    with pytest.raises(SourceError, match="`a/` of `app` is there twice"):
        fetched(data)


def test_hard_links_inside_share_their_content(fetched: Fetcher) -> None:
    result = fetched(make_tar(entry("d/a", b"x"), link("b", "./d/a", tarfile.LNKTYPE)))
    assert (result.root / "b").read_text() == "x"
    assert (result.root / "b").samefile(result.root / "d/a")


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("../../canary", "leads out of it"),
        ("/etc/passwd", "leads out of it"),
        ("missing", "no file before it"),
        ("no/such/file", "no file before it"),
        ("d", "no file before it"),
        (".", "no file before it"),
        ("out/canary", "leads through `out`"),
        ("bad", "to itself"),
    ],
)
def test_hard_link_to_anything_else_is_refused(fetched: Fetcher, target: str, words: str) -> None:
    before = (directory("d"), link("out", ".."))
    with pytest.raises(SourceError, match=words):
        fetched(make_tar(*before, link("bad", target, tarfile.LNKTYPE)))


def test_hard_link_to_a_link_out_is_a_link_out(fetched: Fetcher) -> None:
    data = make_tar(link("a", "/etc/passwd"), link("b", "a", tarfile.LNKTYPE))
    with pytest.raises(SourceError, match="leads out"):
        fetched(data)


# --- hostile members --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["/abs", "//abs", "../x", "a/../../x", "a/..", "..", "/"])
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_name_that_leads_out_is_refused(fetched: Fetcher, name: str, kind: str) -> None:
    data = make_tar(entry(name)) if kind == "tar" else make_zip((zip_entry(name), b""))
    for stdin in (False, True):
        with pytest.raises(SourceError, match="leads out of it"):
            fetched(data, stdin=stdin)


@given(st.text(alphabet="./a\0\\-~ \udcff", max_size=40))
def test_accepted_names_stay_inside(name: str) -> None:
    try:
        parts = split_member(name, "`x`")
    except SourceError:
        return
    assert not [part for part in parts if part in ("", ".", "..") or "/" in part or "\0" in part]


@pytest.mark.parametrize(
    ("kind", "words"),
    [(tarfile.CHRTYPE, "device"), (tarfile.BLKTYPE, "device"), (tarfile.FIFOTYPE, "FIFO")],
)
def test_special_members_are_refused(fetched: Fetcher, kind: bytes, words: str) -> None:
    with pytest.raises(SourceError, match=f"`d/x` of `app` is a {words}"):
        fetched(make_tar(entry("d/x", type=kind)))


def test_special_member_of_a_zip_is_refused(fetched: Fetcher) -> None:
    with pytest.raises(SourceError, match="`x` of `app` is a special file"):
        fetched(make_zip((zip_entry("x", stat.S_IFIFO | 0o644), b"")))


@pytest.mark.parametrize("last", [entry("d"), link("d", "x")])
def test_directory_is_not_replaced(fetched: Fetcher, last: tuple[tarfile.TarInfo, bytes]) -> None:
    with pytest.raises(SourceError, match="`d` of `app` is there twice"):
        fetched(make_tar(entry("d/f"), last))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_zip_with_one_name_twice_is_refused(fetched: Fetcher) -> None:
    with pytest.raises(SourceError, match="`a` of `app` is there twice"):
        fetched(make_zip(("a", b"one"), ("a", b"other")))


def test_file_below_a_file_is_refused(fetched: Fetcher) -> None:
    with pytest.raises(SourceError, match="`a/b` of `app` leads through `a`"):
        fetched(make_tar(entry("a"), entry("a/b")))


def test_name_that_is_too_long_is_refused(fetched: Fetcher) -> None:
    with pytest.raises(SourceError, match=r"cannot unpack .*: File name too long"):
        fetched(make_tar(entry("n" * 300)))
    with pytest.raises(SourceError, match="more than 200 deep"):
        fetched(make_tar(entry("d/" * 201 + "f")))


def test_terminal_does_not_obey_names(fetched: Fetcher) -> None:
    with pytest.raises(SourceError) as caught:
        fetched(make_tar(entry("../\x1b[31m\n")))
    assert caught.value.message.isprintable()


@pytest.mark.parametrize("kind", ["tar", "gzip", "zip"])
@pytest.mark.parametrize("stdin", [False, True], ids=["file", "stdin"])
def test_bomb_is_stopped_by_the_limit(fetched: Fetcher, kind: str, stdin: bool) -> None:
    tar = make_tar(entry("zeros", bytes(1 << 20)))
    bombs = {
        "tar": tar,
        "gzip": gzip.compress(tar),
        "zip": make_zip((zip_entry("zeros"), bytes(1 << 20))),
    }
    with pytest.raises(PolicyError, match="unpacks to more than 100000 bytes") as caught:
        fetched(bombs[kind], limit=100_000, stdin=stdin)
    assert "OCIS2I_LAYER_LIMIT" in (caught.value.hint or "")


def test_endless_padding_is_stopped_by_the_limit(fetched: Fetcher) -> None:
    bomb = gzip.compress(make_tar(entry("a")) + bytes(16 << 20))
    with pytest.raises(PolicyError, match="unpacks to more than 100000 bytes"):
        fetched(bomb, limit=100_000, stdin=True)


def test_zip_that_is_larger_than_the_limit_is_not_written_down(fetched: Fetcher) -> None:
    data = make_zip(("a", os.urandom(200_000)))
    with pytest.raises(PolicyError, match="more than 100000 bytes"):
        fetched(data, limit=100_000, stdin=True)


def test_number_of_members_has_a_limit(fetched: Fetcher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ocis2i.sources.unpacking.ENTRY_LIMIT", 3)
    for data in (make_tar(*map(entry, "abcd")), make_zip(*((name, b"") for name in "abcd"))):
        with pytest.raises(PolicyError, match="more than 3 entries"):
            fetched(data)


def test_list_of_members_has_a_limit(fetched: Fetcher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ocis2i.sources.zipped._LIST_LIMIT", 1000)
    data = make_zip(*((f"file-{number}", b"") for number in range(100)))
    with pytest.raises(PolicyError, match="list of members"):
        fetched(data)


def test_xz_that_wants_much_memory_is_refused(fetched: Fetcher) -> None:
    filters = [
        {"id": lzma.FILTER_LZMA2, "dict_size": 200 << 20, "mode": lzma.MODE_FAST, "mf": lzma.MF_HC3}
    ]
    packer = lzma.LZMACompressor(filters=filters)
    with pytest.raises(SourceError, match="broken xz data in `app`: Memory usage limit"):
        fetched(packer.compress(TAR) + packer.flush())


# --- zip --------------------------------------------------------------------------------------


def test_zip_brings_modes_links_and_times(fetched: Fetcher) -> None:
    data = make_zip(
        (zip_entry("run", stat.S_IFREG | 0o755), b"x"),
        (zip_entry("d/", stat.S_IFDIR | 0o700), b""),
        (zip_entry("link", stat.S_IFLNK | 0o777), b"run"),
    )
    result = fetched(data)
    assert (result.mode("run"), result.mode("d")) == (0o755, 0o700)
    assert (result.root / "link").readlink() == Path("run")
    assert (result.root / "run").stat().st_mtime == 1580702706  # the DOS time, in no zone


def test_zip_of_windows_has_usual_modes(fetched: Fetcher) -> None:
    info = zip_entry("a", stat.S_IFIFO | 0o7777)
    info.create_system = 0
    assert fetched(make_zip((info, b""))).mode("a") == 0o644


@pytest.mark.parametrize(
    ("extra", "seconds"),
    [
        (b"UT\x05\x00\x01" + MTIME.to_bytes(4, "little"), MTIME),
        (b"xx\x01\x00.UT\x05\x00\x03" + MTIME.to_bytes(4, "little"), MTIME),
        (b"UT\x05\x00\x00" + MTIME.to_bytes(4, "little"), 1580702706),
        (b"UT\x01\x00\x01", 1580702706),
    ],
)
def test_unix_time_of_a_zip_counts(fetched: Fetcher, extra: bytes, seconds: int) -> None:
    info = zip_entry("a")
    info.extra = extra
    assert (fetched(make_zip((info, b""))).root / "a").stat().st_mtime == seconds


def test_broken_extra_field_is_refused(fetched: Fetcher) -> None:
    info = zip_entry("a")
    info.extra = b"UT\xff\xff\x01"
    with pytest.raises(SourceError, match="not a good zip archive: Corrupt extra field"):
        fetched(make_zip((info, b"")))


def test_dos_time_that_cannot_be_is_no_failure(fetched: Fetcher) -> None:
    info = zip_entry("a")
    info.date_time = (2020, 0, 0, 31, 63, 62)
    assert fetched(make_zip((info, b""))).names == {"a"}


def test_encrypted_zip_is_refused(fetched: Fetcher) -> None:
    data = bytearray(make_zip((zip_entry("secret"), b"x")))
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    with pytest.raises(SourceError, match="`secret` of `app` is encrypted") as caught:
        fetched(bytes(data))
    assert "password" in (caught.value.hint or "")


def test_rare_method_of_a_zip_is_refused(fetched: Fetcher) -> None:
    info = zip_entry("a")
    info.compress_type = zipfile.ZIP_LZMA
    with pytest.raises(SourceError, match="compressed by method 14"):
        fetched(make_zip((info, b"x")))


def test_zip_whose_two_lists_disagree_is_refused(fetched: Fetcher) -> None:
    data = make_zip((zip_entry("innocent"), b"x")).replace(b"innocent", b"../../ev", 1)
    with pytest.raises(SourceError, match="is not a good zip archive"):
        fetched(data)


def test_zip_with_a_wrong_sum_is_refused(fetched: Fetcher) -> None:
    info = zip_entry("a")
    info.compress_type = zipfile.ZIP_STORED
    with pytest.raises(SourceError, match="`a` of `app` is not a good zip archive: Bad CRC"):
        fetched(make_zip((info, b"before")).replace(b"before", b"behind"))


@pytest.mark.parametrize("target", [b"", b"x\0y", b"x" * 5000])
def test_impossible_link_of_a_zip_is_refused(fetched: Fetcher, target: bytes) -> None:
    with pytest.raises(SourceError, match="`l` of `app` is a link to nothing"):
        fetched(make_zip((zip_entry("l", stat.S_IFLNK | 0o777), target)))


@pytest.mark.parametrize(
    ("raw", "flag", "system", "name"),
    [
        ("ä".encode(), 0x800, 3, "ä"),
        ("ä".encode(), 0, 3, "ä"),
        ("ä".encode(), 0, 0, "ä"),
        (b"\x84", 0, 0, "ä"),
        (b"\xe4", 0, 3, "\udce4"),
    ],
)
def test_names_of_a_zip_are_read_as_they_were_meant(
    raw: bytes, flag: int, system: int, name: str
) -> None:
    info = zipfile.ZipInfo(raw.decode("utf-8" if flag else "cp437"))
    info.flag_bits, info.create_system = flag, system
    assert zip_name(info) == name


# --- what the user typed ----------------------------------------------------------------------


def test_file_and_standard_input_are_archives(tmp_path: Path) -> None:
    for name in ("app.tgz", "a#b", "host:x.tar"):
        (tmp_path / name).write_bytes(TAR)
        assert parse_source(name, cwd=tmp_path) == ArchiveSource(tmp_path / name, name)
    url = f"file://{tmp_path}/app.tgz"
    assert parse_source(url, cwd=tmp_path) == ArchiveSource(tmp_path / "app.tgz", url)
    assert parse_source("-", cwd=tmp_path, context_dir="/sub/", copy=True, depth=3) == (
        SingleSource(None, "-", "app", context_dir="sub")
    )
    assert parse_source("-", cwd=tmp_path, type="archive") == ArchiveSource(None, "-")


@pytest.mark.parametrize("text", ["-", "app.tar", "app.tar#v1"])
def test_archive_has_no_refs(tmp_path: Path, text: str) -> None:
    (tmp_path / "app.tar").write_bytes(TAR)
    ref = None if "#" in text else "v1"
    with pytest.raises(SourceError, match="ref `v1` was asked for, but the source is an archive"):
        parse_source(text, cwd=tmp_path, ref=ref)


def test_fifo_is_no_source_and_waits_for_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(SourceError, match="`fifo` is no regular file") as caught:
        parse_source("fifo", cwd=tmp_path)
    assert "`-`" in (caught.value.hint or "")


class Terminal(io.BytesIO):
    """Standard input when nobody redirected it."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stdin", [None, Terminal(TAR)])
def test_standard_input_must_be_redirected(tmp_path: Path, stdin: io.BytesIO | None) -> None:
    (tmp_path / "src").mkdir()
    settings = Settings(tmp_path, tmp_path)
    source = parse_source("-", cwd=tmp_path)
    with pytest.raises(SourceError, match="no archive on standard input"):
        fetch(source, tmp_path / "src", settings=settings, report=print, stdin=stdin)


def test_archive_that_is_gone_is_a_source_error(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    source = ArchiveSource(tmp_path / "gone", "gone")
    with pytest.raises(SourceError, match="No such file"):
        fetch(source, tmp_path / "src", settings=Settings(tmp_path, tmp_path), report=print)


def test_no_source_is_an_empty_tree(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    assert empty_tree(tmp_path / "src") == SourceTree(tmp_path / "src", SourceInfo())
    assert os.listdir(tmp_path / "src") == []
