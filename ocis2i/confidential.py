"""Which values are secrets: read out of injected files and build-only variables. Pure.

Too few and a secret gets out unseen; too many and innocent builds fail. A value counts when it is
*telling*: long enough, and not only made of words that stand in many images (`is_telling`).
"""

from __future__ import annotations

import base64
import binascii
import html
import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import field
from itertools import islice
from urllib.parse import parse_qsl, unquote, urlsplit

from ocis2i.lazy_dataclass import dataclass

LEAST_BYTES = 8
# What a user injected as a file of its own is a secret even when it is a little shorter.
LEAST_WHOLE_BYTES = 6

_LEAST_KINDS = 4
_WHOLE_LIMIT = 4096
_VALUES_LIMIT = 200
_FEW_LINES = 3
_WINDOW = 48
_WINDOWS = 4

_URL = re.compile(r"[a-z][a-z0-9+.-]{1,30}://[^\s,;|\"'<>]+", re.IGNORECASE)
_SEPARATORS = re.compile(r"[\s,;|:=]+")
_COMMON = frozenset(
    """true false yes no on off null none nil auto always never default direct enabled disabled
    required optional production development staging testing test debug info warn warning error
    release snapshot localhost password passwd username secret changeit changeme admin
    administrator anonymous root user default public private internal external https http utf-8
    unknown undefined""".split()
)
_ORDINARY = re.compile(
    r"""
      [0-9.,:/_+-]{1,15}                                  # numbers, dates, ports, addresses
    | v?[0-9]+(\.[0-9]+){1,3}([-.+][0-9a-z.]{1,16})?      # versions
    | [a-z]{2}_[A-Z]{2}(\.[\w-]+)?                        # locales
    | (~|\.|\.\.)?/([a-z.][a-z0-9._-]+(/[\w.@+-]*)*)?     # paths
    | [*.]{0,2}[a-z0-9-]+(\.[a-z0-9-]+)*\.[a-z]{2,}       # hosts and file names
    | --?[a-z][a-z.-]*                                    # options
    | -X(mx|ms|ss|mn)[0-9]+[kmgKMG]?
    | sha(1|256|512)
    | \$\{?\w+\}? | \{\{.*\}\} | \*+                      # placeholders
    """,
    re.VERBOSE,
)
_HARMLESS_KEY = re.compile(
    r"(^|[._:/-])(e-?mail|user(name)?|login|author|host(name)?|registry|ur[li]|index|repository"
    r"|server|port|path|file|dir(ectory)?|name|id|region|type|format|version|timeout|level|mode"
    r"|scope)$",
    re.IGNORECASE,
)
_TELLING_KEY = re.compile(r"pass|pwd|token|secret|key|auth|sig|credential|code", re.IGNORECASE)
_PAIR = re.compile(
    r"\s*(?:(?:export|set|ENV)\s+)?['\"]?(?P<key>[\w.@/:*\[\]-]{1,200}?)['\"]?"
    r"\s*(?:=>|:=|=|:(?=\s))\s*(?P<value>\S.*)"
)
_NETRC = re.compile(r"\b(?:password|passwd|account)\s+(\S+)")
_COMMENT = re.compile(r"\s*(#|;|//|<|\*|\[[^\]]*\]\s*$|[{}\[\]()]+,?\s*$)")
_XML = re.compile(
    r"<([\w.-]{0,60}(?:pass(?:word|phrase|wd)|token|secret|api-?key|value))>([^<]{1,4096})</\1>",
    re.IGNORECASE,
)
_PEM_BEGIN = re.compile(r"-----BEGIN (?P<label>[A-Z0-9 ]{1,60})-----")
_PEM_LINES = re.compile(r"(?:\\r)?\\n|\s+")
_PUBLIC_PEM = re.compile(r"CERTIFICATE|PUBLIC KEY|X509 CRL|PARAMETERS|PKCS7")
_PEM_LINE = 16
_PEM_BLOCKS = 1000
_TEXT_LIMIT = 1 << 20


@dataclass(frozen=True, slots=True)
class Secret:
    """A value that must not get out; `name` is what messages call it."""

    name: str
    value: bytes = field(repr=False)


def is_telling(value: bytes, *, least_bytes: int = LEAST_BYTES) -> bool:
    """Whether finding `value` somewhere tells that a secret is there.

    It has `least_bytes` and four different ones, and when it is taken apart at white space and
    `, ; | : =`, some part is not ordinary. Ordinary are URLs (their passwords are values of their
    own), absolute and relative paths, host and file names in lower case, numbers and dates of up
    to 15 digits, versions, options, placeholders like `${NAME}`, and a few dozen common words.
    """
    if len(value) < least_bytes or len(set(value)) < _LEAST_KINDS:
        return False
    rest = _URL.sub(" ", value.decode(errors="replace"))
    return any(word and not _is_ordinary(word) for word in _SEPARATORS.split(rest))


def secrets_of_file(name: str, content: bytes, *, whole: bool = True) -> list[Secret]:
    """The secrets in a file: the whole, if `whole`, and the values in it that are telling.

    Understood are lines with one word, `KEY=VALUE` and `key: value`, URLs with credentials,
    JSON, passwords in XML, `.netrc`, `user:password` and PEM. Values of keys such as `username`,
    `registry` or `email` are none. A file that has only certificates and public keys has no
    secrets. Of a large or binary file a few pieces stand for the whole; values are read from the
    first MiB, 200 of them at most.
    """
    try:
        text = None if b"\0" in content else content.decode()
    except UnicodeDecodeError:
        text = None
    if text is None:
        return _unique(name, _binary_pieces(content)) if whole else []
    if _is_public(text):
        return []
    values = list(islice(_values_of_text(text), _VALUES_LIMIT))
    found = [("", _whole(text, values))] if whole else []
    return _unique(name, [*found, *values])


def secrets_of_variable(name: str, value: str) -> list[Secret]:
    """The secrets in a variable: the value if it is telling, and what is in it as in a file."""
    data = value.encode(errors="surrogateescape")
    found = [("", data)] if is_telling(data) else []
    return _unique(name, [*found, *islice(_values_of_text(value), _VALUES_LIMIT)])


def credentials_in(name: str, text: str) -> list[Secret]:
    """The passwords and tokens of the URLs in `text`, and nothing else."""
    return _unique(name, [("", value) for value in _values_of_urls(text)])


_Values = Iterator[tuple[str, bytes]]


def _unique(name: str, found: list[tuple[str, bytes]]) -> list[Secret]:
    values: dict[bytes, str] = {}
    for detail, value in found:
        if value:
            values.setdefault(value, f"{name} ({detail})" if detail else name)
    return [Secret(called, value) for value, called in values.items()]


def _is_ordinary(word: str) -> bool:
    stripped = word.strip("'\"()[]<>")
    return not stripped or stripped.lower() in _COMMON or bool(_ORDINARY.fullmatch(stripped))


def _whole(text: str, values: list[tuple[str, bytes]]) -> bytes:
    data = text.strip().encode()
    if not is_telling(data, least_bytes=LEAST_WHOLE_BYTES):
        return b""
    if len(data) <= _WHOLE_LIMIT:
        return data
    # The piece around the first value: what stands at the beginning may be anybody's licence.
    at = max(0, data.find(values[0][1]) - _WHOLE_LIMIT // 2) if values else 0
    return data[at : at + _WHOLE_LIMIT]


def _binary_pieces(content: bytes) -> list[tuple[str, bytes]]:
    if len(content) <= _WINDOW:
        telling = is_telling(content, least_bytes=LEAST_WHOLE_BYTES)
        return [("", content)] if telling else []
    pieces = []
    step = max(1, (len(content) - _WINDOW) // _WINDOWS)
    for start in range(0, len(content) - _WINDOW + 1, step):
        for at in range(start, min(start + step, len(content) - _WINDOW + 1), _WINDOW):
            piece = content[at : at + _WINDOW]
            if len(set(piece)) >= _WINDOW // 2:  # not the zeros or the table between the keys
                pieces.append((f"bytes from {at}", piece))
                break
    return pieces


# --- values in text ---------------------------------------------------------------------------


def _values_of_text(text: str) -> _Values:
    blocks, text = _split_pem(text[:_TEXT_LIMIT])
    for label, body in blocks:
        for line in _pem_lines(label, body):
            yield label.lower(), line.encode()
    for _, value in _XML.findall(text):
        yield from _values_of_word("", html.unescape(value).strip())
    document = _json(text)
    if document is not None:
        yield from _values_of_json("", document)
        return
    lines = text.splitlines()
    few = sum(1 for line in lines if line.strip()) <= _FEW_LINES
    for number, line in enumerate(lines, start=1):
        for value in _values_of_line(line, few_lines=few):
            yield (f"line {number}" if len(lines) > 1 else "", value)


def _split_pem(text: str) -> tuple[list[tuple[str, str]], str]:
    """The PEM blocks as label and body, and the text without them, its lines still counted."""
    blocks: list[tuple[str, str]] = []
    rest: list[str] = []
    endless: set[str] = set()
    done = 0
    for begin in islice(_PEM_BEGIN.finditer(text), _PEM_BLOCKS):
        footer = f"-----END {begin['label']}-----"
        if begin.start() < done or footer in endless:
            continue
        end = text.find(footer, begin.end())
        if end < 0:
            endless.add(footer)
            continue
        blocks.append((begin["label"], text[begin.end() : end]))
        rest += [text[done : begin.start()], "\n" * text.count("\n", begin.start(), end)]
        done = end + len(footer)
    return blocks, "".join([*rest, text[done:]])


def _pem_lines(label: str, body: str) -> list[str]:
    if _PUBLIC_PEM.search(label):
        return []
    lines = [line for line in _PEM_LINES.split(body) if len(line) >= _PEM_LINE]
    # The first line of an OpenSSH key is the same in all of them.
    return [line for line in (lines[1:] if len(lines) > 2 else lines) if ":" not in line]


def _is_public(text: str) -> bool:
    """Whether there is nothing but white space, certificates, public keys and their comments."""
    blocks, rest = _split_pem(text)
    if not all(_PUBLIC_PEM.search(label) for label, _ in blocks):
        return False
    lines = [line.strip() for line in rest.splitlines()]
    return all(not line or (blocks and line.startswith("#")) for line in lines)


def _json(text: str) -> object:
    if not text.lstrip().startswith(("{", "[")):
        return None
    try:
        document: object = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return document


def _values_of_json(key: str, document: object) -> _Values:
    waiting = [(key, document)]
    while waiting:
        key, item = waiting.pop()
        if isinstance(item, dict):
            waiting += [(str(name), value) for name, value in item.items()][::-1]
        elif isinstance(item, list):
            waiting += [(key, value) for value in item][::-1]
        elif isinstance(item, str):
            # Lone surrogates can be written in JSON, but are no text that a file could hold.
            clean = item.encode(errors="replace").decode()
            yield from _values_of_text(clean) if "\n" in clean else _values_of_word(key, clean)


def _values_of_word(key: str, value: str) -> _Values:
    for found in _values_of_value(key, value):
        yield "", found


def _values_of_line(line: str, *, few_lines: bool) -> Iterator[bytes]:
    words = line.split()
    pairs = [_PAIR.fullmatch(line)]
    if len(words) > 1 and words[0].startswith("-"):
        pairs = [_PAIR.fullmatch(word) for word in words]
    matches = [pair for pair in pairs if pair and pair["value"].strip("= ")]
    for match in matches:
        yield from _values_of_value(match["key"], match["value"])
    document = _json(line)
    if document is not None:
        yield from (value for _, value in _values_of_json("", document))
    if matches or document is not None:
        return
    yield from _values_of_urls(line)
    if _COMMENT.match(line):
        return
    for password in _NETRC.findall(line):
        yield from _if_telling(password)
    if len(words) == 1 or few_lines:
        yield from _if_telling(line.strip())
    if len(words) == 1 and ":" in line and "://" not in line:
        yield from _if_telling(line.strip().rpartition(":")[2])


def _values_of_value(key: str, value: str) -> Iterator[bytes]:
    value = value.strip().rstrip(",;").strip("\"'")
    yield from _values_of_urls(value)
    document = _json(value)
    if document is not None:
        yield from (found for _, found in _values_of_json(key, document))
    if _HARMLESS_KEY.search(key):
        return
    yield from _if_telling(value)
    if key.lower().endswith("auth"):
        yield from _password_of_basic(value)


def _password_of_basic(value: str) -> Iterator[bytes]:
    """The password inside `auth` of Docker's and `_auth` of npm's configuration."""
    with suppress(binascii.Error, ValueError):
        user, colon, password = base64.b64decode(value, validate=True).partition(b":")
        if colon and user.isascii() and is_telling(password):
            yield password


def _values_of_urls(text: str) -> Iterator[bytes]:
    for url in _URL.findall(text):
        with suppress(ValueError):
            yield from _values_of_url(url)


def _values_of_url(url: str) -> Iterator[bytes]:
    parts = urlsplit(url)
    login = parts.netloc.rpartition("@")[0]
    user, _, password = login.partition(":")
    chosen = password
    if password in ("", "x-oauth-basic") and parts.scheme != "ssh":
        chosen = user
    telling = [*_if_telling(chosen), *_if_telling(unquote(chosen))]
    yield from telling
    if not telling and password and not _is_ordinary(password):
        # A short password is found together with its user only.
        yield from _if_telling(f"{login}@")
    for name, value in parse_qsl(parts.query, max_num_fields=100):
        if _TELLING_KEY.search(name):
            yield from _if_telling(value)


def _if_telling(text: str) -> Iterator[bytes]:
    data = text.encode(errors="surrogateescape")
    if is_telling(data):
        yield data
