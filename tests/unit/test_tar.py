"""The tar codec against Python's own `tarfile`, and against broken input."""

from __future__ import annotations

import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocis2i import tar

_NAME = st.binary(min_size=1, max_size=300).map(
    lambda raw: raw.replace(b"\0", b"0").replace(b"/", b"_")
)


@given(
    name=st.lists(_NAME, min_size=1, max_size=6).map(b"/".join),
    target=_NAME,
    kind=st.sampled_from([tar.REGULAR, tar.SYMLINK, tar.HARD_LINK, tar.FIFO, tar.DIRECTORY]),
    mode=st.integers(0, 0o7777),
    uid=st.integers(0, 2**31),
    gid=st.integers(0, 2**31),
    mtime_ns=st.integers(-(2**33), 2**40).map(lambda seconds: seconds * 1_000_000_000 + 123),
    xattrs=st.dictionaries(
        st.text("abc.", min_size=1).map(str.encode), st.binary(max_size=50), max_size=3
    ),
)
def test_what_is_written_is_read_back(
    name: bytes,
    target: bytes,
    kind: bytes,
    mode: int,
    uid: int,
    gid: int,
    mtime_ns: int,
    xattrs: dict[bytes, bytes],
) -> None:
    link = target if kind in (tar.SYMLINK, tar.HARD_LINK) else b""
    header = tar.Header(
        name, kind, mode, uid, gid, 0, mtime_ns, link, xattrs=tuple(sorted(xattrs.items()))
    )
    data = tar.encode_header(header) + tar.END
    assert tar.Reader(io.BytesIO(data)).next() == header


def test_tarfile_reads_what_we_write() -> None:
    long = b"d" * 90 + b"/" + b"f" * 120
    content = b"hello"
    data = b"".join(
        [
            tar.encode_header(
                tar.Header(long, tar.REGULAR, 0o4755, 1001, 0, len(content), 5 * 10**9)
            ),
            content,
            tar.padding(len(content)),
            tar.encode_header(
                tar.Header("grüße".encode(), tar.SYMLINK, 0o777, 0, 3_000_000, 0, 0, b"x" * 150)
            ),
            tar.END,
        ]
    )
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        first, second = archive.getmembers()
        stored = archive.extractfile(first)
        assert stored is not None
        assert stored.read() == content
    assert (first.name, first.mode, first.uid, first.mtime) == (long.decode(), 0o4755, 1001, 5)
    assert (second.name, second.linkname, second.gid) == ("grüße", "x" * 150, 3_000_000)
    assert (first.uname, first.gname) == ("", "")


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_archives_of_other_writers_are_read(form: int) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        info = tarfile.TarInfo("a/" + "n" * (60 if form == tarfile.USTAR_FORMAT else 200))
        info.size, info.mode, info.uid, info.mtime = 700, 0o640, 42, 1234
        archive.addfile(info, io.BytesIO(b"z" * 700))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.LNKTYPE, info.name
        archive.addfile(link)
    reader = tar.Reader(io.BytesIO(buffer.getvalue()))
    first = reader.next()
    assert first is not None
    assert (first.name.decode(), first.mode, first.uid) == (info.name, 0o640, 42)
    assert (first.size, first.mtime_ns) == (700, 1234 * 10**9)
    second = reader.next()
    assert second is not None
    assert (second.kind, second.target.decode()) == (tar.HARD_LINK, info.name)
    assert reader.next() is None


def _one_file(size: int = 4) -> bytes:
    header = tar.encode_header(tar.Header(b"f", tar.REGULAR, 0o644, 0, 0, size, 0))
    return header + b"d" * size + tar.padding(size)


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"x" * 512, "checksum"),
        (_one_file()[:300], "inside a header"),
        (_one_file(2000)[:900], "before the end of a file"),
        (_one_file()[:600], "padding"),
        (tar.encode_header(tar.Header(b"d", b"Z", 0o644, 0, 0, 0, 0)), "unknown type"),
        (tar.encode_header(tar.Header(b"s", b"S", 0o644, 0, 0, 0, 0)), "sparse"),
    ],
)
def test_broken_archives_are_refused(data: bytes, complaint: str) -> None:
    reader = tar.Reader(io.BytesIO(data))
    with pytest.raises(tar.TarError, match=complaint):
        while reader.next():
            pass


@pytest.mark.parametrize("form", [b" %5o\0 ", b"%07o\0", b"%06o \0", b"%08o", b"%o\0\0\0\0"])
def test_checksum_counts_however_it_is_written(form: bytes) -> None:
    for wrong in (0, 1):
        block = bytearray(
            tar.encode_header(tar.Header(b"f", tar.REGULAR, 0o644, 1, 2, 0, 3 * 10**9))
        )
        block[148:156] = b"        "
        block[148:156] = (form % (sum(block) + wrong))[:8].ljust(8, b"\0")
        reader = tar.Reader(io.BytesIO(bytes(block)))
        if wrong:
            with pytest.raises(tar.TarError, match="checksum"):
                reader.next()
        else:
            header = reader.next()
            assert header is not None
            assert header == tar.Header(b"f", tar.REGULAR, 0o644, 1, 2, 0, 3 * 10**9)


@pytest.mark.parametrize(
    "records",
    [
        b"0 a=\n",
        b"1 a=\n",
        b"4 a=\n",
        b"6 a=\n",
        b"5 a=x",
        b"5a=x\n",
        b"-5 a=\n",
        b"000000005 a=\n",
    ],
)
def test_malformed_records_are_refused(records: bytes) -> None:
    data = b"9 path=f\n" + records
    block = bytearray(tar.encode_header(tar.Header(b"p", b"x", 0o644, 0, 0, 0, 0)))
    block[124:136] = b"%011o\0" % len(data)
    block[148:156] = b"        "
    block[148:156] = b"%06o\0 " % sum(block)
    archive = bytes(block) + data + tar.padding(len(data)) + _one_file()
    with pytest.raises(tar.TarError, match="malformed"):
        tar.Reader(io.BytesIO(archive)).next()


def test_absurd_extended_header_is_refused_before_it_is_read() -> None:
    block = bytearray(tar.encode_header(tar.Header(b"p", b"x", 0o644, 0, 0, 0, 0)))
    block[124:136] = b"%011o\0" % (1 << 32)
    block[148:156] = b"        "
    block[148:156] = b"%06o\0 " % sum(block)
    with pytest.raises(tar.TarError, match="absurd"):
        tar.Reader(io.BytesIO(bytes(block))).next()


def test_same_value_gives_same_bytes_whatever_the_order_of_attributes() -> None:
    one = tar.Header(
        b"f", tar.REGULAR, 0o644, 0, 0, 0, 0, xattrs=((b"user.a", b"1"), (b"user.b", b"2"))
    )
    other = one._replace(xattrs=one.xattrs[::-1])
    assert tar.encode_header(one) == tar.encode_header(other)
