"""Finding secrets that got out: in the layer while it is written, in the config and in the log.

Searched are the values themselves and their base64, URL, JSON and XML forms. Not found are values
inside compressed files, in hexadecimal or other encodings, and halves of values.

A layer is searched at memory speed whatever the number of values: one pass looks at a few of its
four-byte words only, as many as any occurrence must contain one of, and a value is searched for
where one of its words was seen. Measured on 300 MB of programs and sources: 20 values of
20 characters, which have 80 forms, run at 490 MB/s, 200 of 40 at 600, 20 of 8 at 165.
"""

from __future__ import annotations

import base64
import json
from bisect import bisect_right
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING
from urllib.parse import quote_from_bytes, quote_plus

from ocis2i.blobs import Readable
from ocis2i.errors import PolicyError, shown
from ocis2i.lazy_dataclass import dataclass

if TYPE_CHECKING:  # few builds have one
    from ocis2i.confidential import Secret

MASK = "***"
LEAK_LIMIT = 100
LOG = "the log"

_BUFFER = 1 << 20
_SHOWN_LEAKS = 10
_LEAST_CORE = 8
# Base64 is often written in lines of 64 or 76 characters: of two windows of 32, one is unbroken.
_WINDOW = 24
_WORD = 4
_LONGEST_STEP = 16 * _WORD
_WORDS_LIMIT = 400_000
# Measured, in nanoseconds: looking at one word, and one byte of a search for one value.
_WORD_NS = 30.0
_FIND_NS = 0.45

_BASE64 = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/-_=")
_RARE = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789!$%&*+?@^~") | frozenset(range(128, 256))


@dataclass(frozen=True, slots=True)
class Leak:
    """The secret `name` is in `where`; `form` says how it is written there."""

    name: str
    where: str
    form: str


@dataclass(frozen=True, slots=True)
class _Needle:
    name: str
    form: str


class Finder:
    """Looks for secrets and remembers where they were; keeps `LEAK_LIMIT` places at most."""

    def __init__(self, secrets: Iterable[Secret]) -> None:
        self._needles: dict[bytes, _Needle] = {}
        for secret in secrets:
            for form, data in forms_of(secret.value):
                if data:
                    self._needles.setdefault(data, _Needle(secret.name, form))
        self._search = _Search(self._needles)
        self._leaks: dict[Leak, None] = {}

    @property
    def leaks(self) -> tuple[Leak, ...]:
        """What was found so far, each place once."""
        return tuple(self._leaks)

    def stream(self, reader: Readable, where: str) -> Readable:
        """`reader`, searched while it is read; a tar's entries are named. Costs nothing without
        secrets. What was read is searched by the end of the stream, or by `close`.
        """
        return _Searched(reader, self, where) if self._needles else reader

    def text(self, text: str, where: str) -> None:
        """Searches a text, such as an image config."""
        for _, data in self._search.hits(_encoded(text)):
            self.record(data, where)

    def mask(self, line: str) -> str:
        """A line of the log with `***` for each secret, which is a leak into the log."""
        return self._masked(line, record=True)

    def record(self, data: bytes, where: str) -> None:
        """Remembers that the value or form `data` was found."""
        if len(self._leaks) < LEAK_LIMIT:
            needle = self._needles[data]
            leak = Leak(needle.name, self._masked(shown(where), record=False), needle.form)
            self._leaks.setdefault(leak)

    def hits(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Where in `data` which value or form begins."""
        return self._search.hits(data)

    @property
    def longest(self) -> int:
        """The length in bytes of the longest form."""
        return max(map(len, self._needles), default=0)

    def _masked(self, line: str, *, record: bool) -> str:
        if not self._needles:
            return line
        data = _encoded(line)
        spans = []
        for at, found in self._search.hits(data):
            if record:
                self.record(found, LOG)
            spans.append(_widened(data, at, at + len(found), self._needles[found].form))
        if not spans:
            return line
        return _replaced(data, sorted(spans)).decode(errors="replace")


def leak_error(leaks: Sequence[Leak]) -> PolicyError:
    """The end of a build whose secrets got out; names them and never says them."""
    listed = [
        f"{leak.name} is in {leak.where}" + ("" if leak.form == "plain" else f", as {leak.form}")
        for leak in leaks[:_SHOWN_LEAKS]
    ]
    if len(leaks) > _SHOWN_LEAKS:
        listed.append(f"and {len(leaks) - _SHOWN_LEAKS} more")
    return PolicyError(
        f"secrets got out: {'; '.join(listed)}",
        hint="let the scripts read secrets where they are, without copying or printing them; "
        "`--allow-leaks` builds anyway",
        reason="SecretLeaked",
    )


# --- how a value may be written ---------------------------------------------------------------


def forms_of(value: bytes) -> Iterator[tuple[str, bytes]]:
    """The forms to search for: `plain`, `URL-encoded`, `JSON`, `XML` and `base64`."""
    yield "plain", value
    for safe in ("", "/"):
        quoted = quote_from_bytes(value, safe=safe)
        for form in (quoted, _lower_hex(quoted)):
            yield "URL-encoded", form.encode()
    plus = quote_plus(value)
    for form in (plus, _lower_hex(plus)):
        yield "URL-encoded", form.encode()
    yield from _text_forms(value)
    windows = [value]
    if len(value) >= 2 * _WINDOW and b"\n" not in value:
        windows = [value[-2 * _WINDOW : -_WINDOW], value[-_WINDOW:]]
    for window in windows:
        for core in _base64_cores(window):
            yield "base64", core


def _text_forms(value: bytes) -> Iterator[tuple[str, bytes]]:
    try:
        text = value.decode()
    except UnicodeDecodeError:
        return
    for ascii_only in (True, False):
        escaped = json.dumps(text, ensure_ascii=ascii_only)[1:-1]
        yield "JSON", escaped.encode()
        yield "JSON", escaped.replace("/", "\\/").encode()
    import html  # noqa: PLC0415 - its table of names takes 5 ms, and few builds have secrets

    for quotes in (True, False):
        yield "XML", html.escape(text, quote=quotes).encode()


def _lower_hex(quoted: str) -> str:
    head, *pieces = quoted.split("%")
    return head + "".join(f"%{piece[:2].lower()}{piece[2:]}" for piece in pieces)


def _base64_cores(value: bytes) -> Iterator[bytes]:
    """The characters that `value` gives whatever stands before and after it (RFC 4648).

    Three of them, for what comes before is a number of bytes that leaves 0, 1 or 2 by 3; in both
    alphabets.
    """
    for before in range(3):
        encoded = base64.b64encode(bytes(before) + value)
        core = encoded[-(-8 * before // 6) : 8 * (before + len(value)) // 6]
        if len(core) >= _LEAST_CORE:
            yield core
            yield core.translate(bytes.maketrans(b"+/", b"-_"))


def _widened(data: bytes, start: int, end: int, form: str) -> tuple[int, int]:
    """For base64 the whole word: the characters at both ends hold some bits of the secret."""
    if form == "base64":
        while start and data[start - 1] in _BASE64:
            start -= 1
        while end < len(data) and data[end] in _BASE64:
            end += 1
    return start, end


def _replaced(data: bytes, spans: list[tuple[int, int]]) -> bytes:
    parts: list[bytes] = []
    done = 0
    for start, end in spans:
        if start > done or not done:  # one mask for secrets side by side
            parts.append(data[done:start] + MASK.encode())
        done = max(done, end)
    return b"".join([*parts, data[done:]])


def _encoded(text: str) -> bytes:
    try:
        return text.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        return text.encode(errors="replace")


# --- searching for many at once ---------------------------------------------------------------


class _Search:
    """Finds many byte strings in large data, fast for any number of them.

    With words looked at every `step` bytes, an occurrence of `step + 3` bytes or more contains
    one of them whole, at one of `step` offsets: these words of each needle are known beforehand.
    """

    def __init__(self, needles: Iterable[bytes]) -> None:
        lengths = sorted(map(len, needles))
        self._step = _best_step(lengths)
        self._singly: list[bytes] = []
        self._by_word: dict[int, list[bytes]] = {}
        for needle in needles:
            if not self._step or len(needle) < self._step + _WORD - 1:
                self._singly.append(needle)
                continue
            for word in _words(needle, self._step):
                self._by_word.setdefault(word, []).append(needle)
        self._words = frozenset(self._by_word)

    def hits(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Each occurrence of each needle: its offset, and the needle."""
        for needle in self._candidates(data):
            at = data.find(needle)
            while at >= 0:
                yield at, needle
                at = data.find(needle, at + len(needle))

    def _candidates(self, data: bytes) -> Iterable[bytes]:
        if not self._step:
            return self._singly
        view = memoryview(data)[: len(data) // _WORD * _WORD].cast("I")[:: self._step // _WORD]
        seen = self._words.intersection(view)
        if not seen:
            return self._singly
        return dict.fromkeys(
            [*self._singly, *(needle for word in seen for needle in self._by_word[word])]
        )


def _best_step(lengths: Sequence[int]) -> int:
    """The cheapest distance of words for needles of these lengths (sorted); 0: search singly."""
    best, cheapest = 0, _FIND_NS * len(lengths)
    for step in range(_WORD, _LONGEST_STEP + 1, _WORD):
        short = bisect_right(lengths, step + _WORD - 2)
        cost = _FIND_NS * short + _WORD_NS / step
        large = step * (len(lengths) - short) > _WORDS_LIMIT
        if cost < cheapest and (not large or not best):
            best, cheapest = step, cost
    return best


def _words(needle: bytes, step: int) -> Iterator[int]:
    """For each offset that words can have in `needle`, the least common of those there."""
    for offset in range(step):
        pieces = [
            needle[at : at + _WORD] for at in range(offset, len(needle) - _WORD + 1, step)[:8]
        ]
        rarest = max(pieces, key=lambda piece: sum(byte in _RARE for byte in piece))
        yield memoryview(rarest).cast("I")[0]


# --- streams ----------------------------------------------------------------------------------


class _Searched:
    """A stream that is searched in pieces of about 1 MiB while it goes by."""

    def __init__(self, reader: Readable, finder: Finder, where: str) -> None:
        self._reader = reader
        self._finder = finder
        self._where = where
        self._members = _Members()
        self._overlap = finder.longest - 1
        self._parts: list[bytes] = []
        self._waiting = 0
        self._tail = b""
        self._searched = 0

    def read(self, size: int = -1, /) -> bytes:
        """Up to `size` bytes (all that is left when negative)."""
        data = self._reader.read(size)
        if data:
            self._parts.append(data)
            self._waiting += len(data)
        if self._waiting >= _BUFFER or (not data and size):
            self._search()
        return data

    def close(self) -> None:
        """Searches what was read and closes the stream below."""
        self._search()
        self._reader.close()

    def _search(self) -> None:
        if not self._parts:
            return
        for part in self._parts:
            self._members.feed(part)
        data = b"".join([self._tail, *self._parts])
        start = self._searched - len(self._tail)
        found = {(self._members.at(start + at), hit) for at, hit in self._finder.hits(data)}
        for name, hit in sorted(found):
            self._finder.record(hit, f"{self._where}, in `{name}`" if name else self._where)
        self._searched = start + len(data)
        self._tail = data[-self._overlap :] if self._overlap else b""
        self._members.forget(self._searched - len(self._tail))
        self._parts.clear()
        self._waiting = 0


_HEADER = 512
_LONG_LIMIT = 1 << 20


class _Members:
    """Which entry of a tar an offset belongs to; knows nothing once the data is no tar."""

    def __init__(self) -> None:
        self._starts = [0]
        self._names = [""]
        self._field = bytearray()
        self._offset = 0
        self._lost = False
        self._parser = self._parse()
        self._need = next(self._parser)

    def at(self, offset: int) -> str:
        """The path of the entry at `offset`, empty when there is none."""
        return "" if self._lost else self._names[max(0, bisect_right(self._starts, offset) - 1)]

    def forget(self, offset: int) -> None:
        """Drops the entries that end before `offset`."""
        keep = max(0, bisect_right(self._starts, offset) - 1)
        del self._starts[:keep], self._names[:keep]

    def feed(self, data: bytes) -> None:
        """Follows the headers in the next part of the stream."""
        at = 0
        while at < len(data) and not self._lost:
            # Positive: bytes to see; negative: bytes to pass over.
            left = abs(self._need) - (len(self._field) if self._need > 0 else 0)
            taken = min(left, len(data) - at)
            if self._need > 0:
                self._field += data[at : at + taken]
            else:
                self._need += taken
            at += taken
            self._offset += taken
            if taken == left:
                field, self._field = bytes(self._field), bytearray()
                self._advance(field)

    def _advance(self, field: bytes) -> None:
        try:
            self._need = self._parser.send(field)
            while not self._need:
                self._need = self._parser.send(b"")
        except (StopIteration, ValueError):
            self._lost = True

    def _parse(self) -> Generator[int, bytes, None]:
        while True:
            start = self._offset
            path = None
            header = yield _HEADER
            while (kind := header[156:157]) in b"xgLK" and kind:
                size = _number(header[124:136])
                if size > _LONG_LIMIT:
                    raise ValueError(size)
                content = yield size
                yield -(-size % _HEADER)
                if kind == b"x":
                    path = _pax_path(content) or path
                elif kind == b"L":
                    path = content.rstrip(b"\0")
                header = yield _HEADER
            if not header.strip(b"\0"):
                continue
            if header[257:262] != b"ustar":
                raise ValueError
            # GNU's own format ("ustar  ") has times where POSIX has the beginning of the name.
            prefix = header[345:500].rstrip(b"\0") if header[262:263] == b"\0" else b""
            name = path or b"/".join(filter(None, (prefix, header[:100].rstrip(b"\0"))))
            self._starts.append(start)
            self._names.append(name.decode(errors="surrogateescape"))
            size = _number(header[124:136])
            yield -(size + -size % _HEADER)


def _number(field: bytes) -> int:
    if field[0] & 0x80:  # GNU's way for more than 8 GiB
        return int.from_bytes(field, "big") & ((1 << 88) - 1)
    return int(field.strip(b"\0 ") or b"0", 8)


def _pax_path(records: bytes) -> bytes | None:
    while records:
        length, _, _ = records.partition(b" ")
        record, records = records[: int(length)], records[int(length) :]
        key, _, value = record[len(length) + 1 :].partition(b"=")
        if key == b"path":
            return value.removesuffix(b"\n")
    return None
