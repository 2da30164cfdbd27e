"""Which paths of a source stay out of a build: `.s2iignore` and `--exclude`. No input or output.

The glob language is that of Go's `filepath.Match`, as source-to-image's `pkg/ignore` uses it.
Paths are decided one by one while a tree is walked, so nothing is ever deleted by pattern.
"""

from __future__ import annotations

import posixpath
import re
import warnings
from dataclasses import field

from ocis2i.errors import SourceError, UsageError
from ocis2i.lazy_dataclass import dataclass

IGNORE_FILE = ".s2iignore"
DEFAULT_EXCLUDE = r"(^|/)\.git(/|$)"
_GIT = re.compile(DEFAULT_EXCLUDE)
# What Go's expressions (RE2) have and Python's do not: `[[:alpha:]]` and `\z`.
_ESCAPE_OR_CLASS = re.compile(r"\\.|\[\^?\]?(?:\[:\w+:\]|\\.|[^\]\\])*\]", re.DOTALL)
_POSIX_CLASS = re.compile(r"\[:(\w+):\]")
_POSIX_CLASSES = {
    "alnum": "0-9A-Za-z",
    "alpha": "A-Za-z",
    "ascii": r"\x00-\x7f",
    "blank": r"\t ",
    "cntrl": r"\x00-\x1f\x7f",
    "digit": "0-9",
    "graph": "!-~",
    "lower": "a-z",
    "print": " -~",
    "punct": r"!-/:-@\[-`{-~",
    "space": r"\t\n\v\f\r ",
    "upper": "A-Z",
    "word": "0-9A-Za-z_",
    "xdigit": "0-9A-Fa-f",
}


@dataclass(frozen=True, slots=True)
class Rule:
    """One line: a pattern for whole paths, which ignores them or (`!`) takes them out again."""

    pattern: re.Pattern[str]
    rescues: bool = False


@dataclass(frozen=True, slots=True)
class IgnoreRules:
    """The rules of `.s2iignore` in their order, and the lines that are no pattern."""

    rules: tuple[Rule, ...] = ()
    malformed: tuple[str, ...] = ()

    def ignores(self, path: str) -> bool:
        """Whether `path`, relative to the source root, is named; the last rule that fits counts.

        A path below an ignored directory is not asked for: `!` cannot rescue it.
        """
        ignored = False
        for rule in self.rules:
            if ignored == rule.rescues and rule.pattern.fullmatch(path):
                ignored = not rule.rescues
        return ignored


@dataclass(frozen=True, slots=True)
class Filter:
    """What a walk over a source leaves out. `spared` paths (the S2I scripts) always stay.

    `own` paths are what the build writes there itself, such as its record.
    """

    exclude: re.Pattern[str] | None = None
    ignore: IgnoreRules = field(default_factory=IgnoreRules)
    spared: frozenset[str] = frozenset()
    own: frozenset[str] = frozenset()

    def drops(self, path: str) -> bool:
        """Whether a rule names `path`, relative to the source root."""
        return path in self.own or self.excludes(path) or self.ignore.ignores(path)

    def excludes(self, path: str) -> bool:
        """Whether `--exclude` alone names `path`.

        `.git` stays out with any expression, not only with the default one that names it: who
        excludes `docs` does not ask for the history. Only an empty `--exclude` takes it in.
        """
        if self.exclude is None:
            return False
        return self.exclude.search(path) is not None or _GIT.search(path) is not None

    def excludes_within(self, path: str) -> bool:
        """Whether `--exclude` names `path` or a directory that contains it."""
        parts = path.split("/")
        return any(self.excludes("/".join(parts[:end])) for end in range(1, len(parts) + 1))


def compile_exclude(text: str) -> re.Pattern[str] | None:
    """The expression of `--exclude`; empty text excludes nothing. Raises `UsageError`."""
    if not text:
        return None
    try:
        with warnings.catch_warnings():
            # Python means to change what `[` in a class is one day; here it is Go's.
            warnings.simplefilter("ignore", FutureWarning)
            return re.compile(_ESCAPE_OR_CLASS.sub(_from_go, text))
    except (re.error, RecursionError, OverflowError) as error:
        raise UsageError(
            f"--exclude `{text}` is not a regular expression: {error}",
            hint="put it right at that place; an empty --exclude leaves nothing out",
        ) from error


def _from_go(found: re.Match[str]) -> str:
    text = found[0]
    if text == r"\z":
        return r"\Z"
    return text[0] + _POSIX_CLASS.sub(lambda one: _POSIX_CLASSES.get(one[1], one[0]), text[1:])


def parse_ignore(text: str) -> IgnoreRules:
    """Reads `.s2iignore`. Raises `SourceError` for a pattern that leads out of the source."""
    rules: list[Rule] = []
    malformed: list[str] = []
    for raw in text.split("\n"):
        line = raw.removesuffix("\r").strip(" ")
        if not line or line.startswith("#"):
            continue
        pattern = compile_glob(_relative(line.removeprefix("!"), line))
        if pattern is None:
            malformed.append(line)
        else:
            rules.append(Rule(pattern, rescues=line.startswith("!")))
    return IgnoreRules(tuple(rules), tuple(malformed))


def _relative(path: str, line: str) -> str:
    # Upstream joins the line to the source's own path: `../../x` deletes files of the host.
    cleaned = posixpath.normpath(path.lstrip("/") or ".")
    if cleaned == ".." or cleaned.startswith("../"):
        raise SourceError(
            f"`{line}` in `{IGNORE_FILE}` leads out of the source",
            hint="patterns are relative to the directory of the file",
        )
    return "*" if cleaned == "." else cleaned


def compile_glob(pattern: str) -> re.Pattern[str] | None:
    """The expression for a whole path that equals Go's `filepath.Match`; None when malformed."""
    parts: list[str] = []
    for component in pattern.split("/"):
        part = _translate(component)
        if part is None:
            return None
        parts.append(part)
    return re.compile("/".join(parts), re.DOTALL)


def _translate(component: str) -> str | None:
    """Chunks between stars, each of fixed length, so that the leftmost fit is as good as any.

    Atomic groups keep that choice: `*a*a*a*a` costs no exponential time (as in Go).
    """
    chunks = [""]
    position = 0
    while position < len(component):
        if component[position] == "*":
            chunks.append("")
            position += 1
            continue
        single = _single(component, position)
        if single is None:
            return None
        expression, position = single
        chunks[-1] += expression
    first, *others = chunks
    if not others:
        return first
    middle = "".join(f"(?>[^/]*?{chunk})" for chunk in others[:-1])
    return f"{first}{middle}[^/]*{others[-1]}"


def _single(text: str, position: int) -> tuple[str, int] | None:
    """The expression for one character of a name, and where the pattern goes on."""
    match text[position]:
        case "?":
            return "[^/]", position + 1
        case "[":
            return _class(text, position + 1)
        case "\\":
            if position + 1 == len(text):
                return None
            return re.escape(text[position + 1]), position + 2
        case other:
            return re.escape(other), position + 1


def _class(text: str, position: int) -> tuple[str, int] | None:
    negated = text.startswith("^", position)
    position += negated
    ranges: list[tuple[str, str]] = []
    while not (ranges and text.startswith("]", position)):
        low = _class_character(text, position)
        if low is None:
            return None
        first, position = low
        last = first
        if text.startswith("-", position):
            high = _class_character(text, position + 1)
            if high is None:
                return None
            last, position = high
        ranges.append((first, last))
    return _class_expression(ranges, negated=negated), position + 1


def _class_character(text: str, position: int) -> tuple[str, int] | None:
    if position >= len(text) or text[position] in "-]":
        return None
    if text[position] == "\\":
        position += 1
    # A class has to be closed, so something must follow.
    if position + 1 >= len(text):
        return None
    return text[position], position + 1


def _class_expression(ranges: list[tuple[str, str]], *, negated: bool) -> str:
    members = "".join(
        f"\\U{ord(first):08x}-\\U{ord(last):08x}" for first, last in ranges if first <= last
    )
    if not members:
        return "[^/]" if negated else "(?!)"
    return f"(?!/)[{'^' if negated else ''}{members}]"
