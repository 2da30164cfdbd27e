"""Secrets that got out are found, whatever they are written in."""

from __future__ import annotations

import base64
import html
import io
import json
import tarfile
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ocis2i.confidential import Secret
from ocis2i.leaks import LEAK_LIMIT, Finder, Leak, forms_of, leak_error

VALUE = b'p@ss/w\xc3\xb6rd "x"+<&>\'1'
TOKEN = b"Zx81kQpW-77ab_cd"


class Short(io.BytesIO):
    """A stream that gives a few bytes at a time, as a pipe may."""

    def __init__(self, data: bytes, most: int) -> None:
        super().__init__(data)
        self._most = most

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(self._most if size is None or size < 0 else min(size, self._most))


def drain(finder: Finder, data: bytes, *, most: int = 1 << 20, size: int = 1 << 16) -> bytes:
    reader = finder.stream(Short(data, most), "the layer")
    parts = []
    while part := reader.read(size):
        parts.append(part)
    reader.close()
    return b"".join(parts)


def found_in(data: bytes, *values: bytes) -> set[tuple[str, str]]:
    finder = Finder([Secret(f"s{number}", value) for number, value in enumerate(values)])
    assert drain(finder, data) == data
    return {(leak.name, leak.form) for leak in finder.leaks}


def tar_of(files: dict[str, bytes], *, kind: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=kind) as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return out.getvalue()


# --- forms ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "written"),
    [
        ("plain", VALUE),
        ("URL-encoded", quote(VALUE).encode()),
        ("URL-encoded", quote(VALUE, safe="").encode()),
        ("URL-encoded", quote(VALUE, safe="").lower().encode()),
        ("URL-encoded", quote_plus(VALUE).encode()),
        ("JSON", json.dumps(VALUE.decode()).encode()),
        ("JSON", json.dumps(VALUE.decode(), ensure_ascii=False).encode()),
        ("JSON", json.dumps(VALUE.decode()).replace("/", "\\/").encode()),
        ("XML", html.escape(VALUE.decode()).encode()),
        ("XML", html.escape(VALUE.decode(), quote=False).encode()),
        ("base64", base64.b64encode(VALUE)),
        ("base64", base64.urlsafe_b64encode(VALUE)),
        ("base64", base64.b64encode(b"bob:" + VALUE)),
        ("base64", base64.b64encode(b"user:" + VALUE + b"tail")),
        ("base64", base64.urlsafe_b64encode(b"robot:" + VALUE + b"\n")),
    ],
)
def test_every_form_is_found(form: str, written: bytes) -> None:
    assert found_in(b"some text " + written + b" and more", VALUE) == {("s0", form)}


@given(st.binary(max_size=5), st.binary(min_size=8, max_size=120), st.binary(max_size=5))
def test_base64_is_found_whatever_stands_around(before: bytes, value: bytes, after: bytes) -> None:
    finder = Finder([Secret("s", value)])
    finder.text(base64.b64encode(before + value + after).decode(), "x")
    assert finder.leaks


@pytest.mark.parametrize("width", [64, 76])
@pytest.mark.parametrize("before", range(76))
def test_base64_in_lines_is_found_for_long_values(width: int, before: int) -> None:
    value = TOKEN * 4
    encoded = base64.b64encode(bytes(before) + value)
    lines = b"\n".join(encoded[at : at + width] for at in range(0, len(encoded), width))
    assert found_in(lines, value) == {("s0", "base64")}


@given(st.binary(min_size=1, max_size=40))
def test_forms_of_any_value_begin_with_itself(value: bytes) -> None:
    forms = list(forms_of(value))
    assert forms[0] == ("plain", value)
    assert all(data for _, data in forms)


# --- streams ----------------------------------------------------------------------------------


def test_nothing_to_find_costs_nothing() -> None:
    reader = io.BytesIO(b"x")
    assert Finder([]).stream(reader, "the layer") is reader
    assert Finder([Secret("empty", b"")]).stream(reader, "the layer") is reader


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 3000),
    st.integers(1, 700),
    st.lists(st.binary(min_size=6, max_size=60), min_size=1, max_size=30),
    st.data(),
)
def test_value_is_found_at_any_place_in_any_pieces(
    at: int, most: int, values: list[bytes], data: st.DataObject
) -> None:
    value = data.draw(st.sampled_from(values))
    finder = Finder([Secret("s", one) for one in values])
    content = bytes(at) + value + bytes(3000 - at)
    assert drain(finder, content, most=most) == content
    assert Leak("s", "the layer", "plain") in finder.leaks


@pytest.mark.parametrize("shift", range(-20, 3))
def test_value_across_two_pieces_is_found(shift: int) -> None:
    content = bytes((1 << 20) + shift) + TOKEN + bytes(1 << 20)
    assert found_in(content, TOKEN) == {("s0", "plain")}


def test_what_was_read_is_searched_when_closed_early() -> None:
    finder = Finder([Secret("s", TOKEN)])
    reader = finder.stream(io.BytesIO(TOKEN + bytes(1000)), "the layer")
    reader.read(100)
    reader.close()
    assert finder.leaks


def test_one_of_thousands_of_values_is_found() -> None:
    values = [b"%06d-%s" % (number, TOKEN) for number in range(3000)]
    assert ("s2345", "plain") in found_in(bytes(99) + values[2345] + bytes(99), *values)


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("most", [7, 512, 1 << 20])
def test_entry_of_the_layer_is_named(kind: int, most: int) -> None:
    long = f"opt/{'d' * 90}/{'e' * 60}/leaky"
    files = {"a": b"x" * 1500, long: b"y" * 700 + TOKEN, "empty": b"", "z": b"z" + TOKEN}
    finder = Finder([Secret("s", TOKEN)])
    drain(finder, tar_of(files, kind=kind), most=most)
    assert {leak.where for leak in finder.leaks} == {
        f"the layer, in `{long}`",
        "the layer, in `z`",
    }


def test_secret_in_a_name_is_not_repeated() -> None:
    finder = Finder([Secret("s", TOKEN)])
    drain(finder, tar_of({f"cache/\x1b{TOKEN.decode()}.txt": b""}))
    assert finder.leaks == (Leak("s", "the layer, in `cache/\\x1b***.txt`", "plain"),)


@given(st.binary(max_size=3000))
def test_stream_that_is_no_tar_is_searched_too(noise: bytes) -> None:
    assert ("s0", "plain") in found_in(noise + TOKEN, TOKEN)


def test_leaks_are_bounded() -> None:
    finder = Finder([Secret("s", TOKEN)])
    drain(finder, tar_of({f"f{number}": TOKEN for number in range(LEAK_LIMIT + 50)}))
    assert len(finder.leaks) == LEAK_LIMIT


# --- texts and the log ------------------------------------------------------------------------


def test_text_is_searched() -> None:
    finder = Finder([Secret("s", TOKEN)])
    finder.text(json.dumps({"Env": [f"X={TOKEN.decode()}"]}), "the image config")
    finder.text("nothing here", "the labels")
    assert finder.leaks == (Leak("s", "the image config", "plain"),)


@pytest.mark.parametrize(
    ("line", "masked"),
    [
        ("nothing to see", "nothing to see"),
        ("", ""),
        ("ä {} ö {}", "ä *** ö ***"),
        ("{}{}", "***"),
        ("{}", "***"),
        ("a\udcff{}b", "a\ufffd***b"),
        ("a\ud800{}b", "a?***b"),
    ],
)
def test_line_is_masked(line: str, masked: str) -> None:
    finder = Finder([Secret("s", TOKEN)])
    assert finder.mask(line.replace("{}", TOKEN.decode())) == masked
    expected = (Leak("s", "the log", "plain"),) if "***" in masked else ()
    assert finder.leaks == expected


def test_whole_base64_word_is_masked() -> None:
    finder = Finder([Secret("s", TOKEN)])
    encoded = base64.b64encode(b"robot:" + TOKEN + b"!!").decode()
    assert finder.mask(f"auth: {encoded}.") == "auth: ***."


def test_values_that_overlap_are_masked_together() -> None:
    finder = Finder([Secret("a", b"abcdefghij"), Secret("b", b"ghijklmnop")])
    assert finder.mask("<abcdefghijklmnop>") == "<***>"


def test_no_secrets_leave_lines_alone() -> None:
    assert Finder([]).mask("a\udcffb") == "a\udcffb"


@given(st.text(max_size=50), st.text(max_size=50))
def test_no_masked_line_has_the_secret(before: str, after: str) -> None:
    assert TOKEN.decode() not in Finder([Secret("s", TOKEN)]).mask(
        f"{before}{TOKEN.decode()}{after}"
    )


# --- the error --------------------------------------------------------------------------------


def test_error_names_what_where_and_how() -> None:
    error = leak_error(
        [Leak("`npmrc`", "the layer, in `x`", "base64"), Leak("`t`", "the log", "plain")]
    )
    assert error.message == (
        "secrets got out: `npmrc` is in the layer, in `x`, as base64; `t` is in the log"
    )
    assert (error.exit_code, error.reason) == (9, "SecretLeaked")
    assert "--allow-leaks" in (error.hint or "")


def test_error_does_not_list_them_all() -> None:
    error = leak_error([Leak(f"s{number}", "the log", "plain") for number in range(25)])
    assert error.message.endswith("; and 15 more")
