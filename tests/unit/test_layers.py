"""Entries as bytes of a layer's tar, read back by Python's own tarfile."""

from __future__ import annotations

import io
import tarfile

import pytest

from ocis2i import tar
from ocis2i.layers import Entry, Member, ReservedNameError, TarPolicy, Whiteout, encode_entry


def read_back(*entries: Entry, clamp: int | None = None) -> list[tarfile.TarInfo]:
    """What tarfile makes of the entries."""
    data = b"".join(encode_entry(entry, TarPolicy(clamp)) for entry in entries) + tar.END
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return archive.getmembers()


def test_a_whiteout_is_an_empty_file_named_after_what_is_gone() -> None:
    (found,) = read_back(Whiteout(b"etc/motd"))
    assert (found.name, found.size, found.isreg()) == ("etc/.wh.motd", 0, True)
    assert (found.uid, found.gid, found.mtime) == (0, 0, 0)


def test_a_whiteout_in_the_root_has_no_slash() -> None:
    assert read_back(Whiteout(b"motd"))[0].name == ".wh.motd"


def test_an_opaque_directory_holds_the_mark() -> None:
    names = [
        one.name for one in read_back(Whiteout(b"etc", opaque=True), Whiteout(b"", opaque=True))
    ]
    assert names == ["etc/.wh..wh..opq", ".wh..wh..opq"]


@pytest.mark.parametrize("path", [b".wh.x", b"etc/.wh.motd", b"a/.wh..wh..opq", b".wh."])
def test_a_real_file_with_a_name_of_a_whiteout_is_refused(path: bytes) -> None:
    with pytest.raises(ReservedNameError, match=r"\.wh\."):
        encode_entry(Member(path, tar.REGULAR, 0o644, 0, 0, 0), TarPolicy())


@pytest.mark.parametrize("path", [b".whx", b"a.wh.b", b".wh.d/x"])
def test_a_name_that_only_looks_like_a_whiteout_is_taken(path: bytes) -> None:
    assert read_back(Member(path, tar.REGULAR, 0o644, 0, 0, 0))[0].name == path.decode()


def test_a_directory_ends_with_a_slash_and_the_root_is_a_dot() -> None:
    for path, name in ((b"a", b"a/"), (b"", b"./")):
        data = encode_entry(Member(path, tar.DIRECTORY, 0o755, 0, 0, 0), TarPolicy())
        assert data[:100].rstrip(b"\0") == name


def test_times_are_whole_seconds() -> None:
    member = Member(b"f", tar.REGULAR, 0o644, 0, 0, 1_999_999_999)
    data = encode_entry(member, TarPolicy())
    assert len(data) == tar.BLOCK  # no extended header for the fraction
    assert read_back(member)[0].mtime == 1


def test_a_time_before_1970_is_rounded_down() -> None:
    assert read_back(Member(b"f", tar.REGULAR, 0o644, 0, 0, -1))[0].mtime == -1


@pytest.mark.parametrize(("seconds", "expected"), [(5, 5), (100, 100), (101, 100), (10**12, 100)])
def test_clamping_changes_later_times_alone(seconds: int, expected: int) -> None:
    member = Member(b"f", tar.REGULAR, 0o644, 0, 0, seconds * 10**9)
    assert read_back(member, clamp=100)[0].mtime == expected


def test_a_hard_link_names_its_target_and_has_no_content() -> None:
    (found,) = read_back(Member(b"b", tar.HARD_LINK, 0o644, 0, 0, 0, target=b"a"))
    assert (found.islnk(), found.linkname, found.size) == (True, "a", 0)


def test_attributes_are_records_in_the_order_of_their_names() -> None:
    xattrs = ((b"user.a", b"1"), (b"user.b", b"\xff\n="))
    data = encode_entry(Member(b"f", tar.REGULAR, 0o644, 0, 0, 0, xattrs=xattrs), TarPolicy())
    records = data[tar.BLOCK : 2 * tar.BLOCK]
    assert records.index(b"SCHILY.xattr.user.a=1\n") < records.index(
        b"SCHILY.xattr.user.b=\xff\n=\n"
    )


def test_no_entry_names_a_user_or_group() -> None:
    found = read_back(Member(b"f", tar.REGULAR, 0o644, 1001, 0, 0), Whiteout(b"g"))
    assert {(one.uname, one.gname) for one in found} == {("", "")}
