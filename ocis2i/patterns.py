"""Regular expressions whose matching takes linear time, for patterns of somebody else. Pure.

Python's `re` goes back and forth: `(a+)+b` takes years for forty letters. Here all that a pattern
can mean is followed at once, one character after the other (Thompson, 1968), so the time is at
most the length of the text times the size of the pattern, which is bounded. Known are literals,
`.`, classes, the escapes of `_CLASSES`, groups, `|`, `*`, `+`, `?` and `{m,n}`. A pattern is for
the whole text. There are no backward references, no looking around, no lazy repetition: what only
a machine that backtracks can do, or what changes nothing in a match of the whole.
"""

from __future__ import annotations

from dataclasses import field
from itertools import pairwise

from ocis2i.lazy_dataclass import dataclass

LONGEST_PATTERN = 256
MOST_STATES = 2000
MOST_REPEATS = 256
_DEEPEST = 32

_DIGITS = (("0", "9"),)
_WORD = (("0", "9"), ("A", "Z"), ("_", "_"), ("a", "z"))
_SPACE = ((" ", " "), ("\t", "\r"))
_CLASSES = {"d": _DIGITS, "w": _WORD, "s": _SPACE}
_CONTROLS = {"t": "\t", "n": "\n", "r": "\r"}
_SPECIAL = frozenset(".*+?|()[]{}^$\\")

_Range = tuple[str, str]


class PatternError(ValueError):
    """A pattern that is none, or none of ours; the message says why."""


@dataclass(frozen=True, slots=True)
class _Set:
    """Which characters one step takes."""

    ranges: tuple[_Range, ...]
    negated: bool = False

    def takes(self, char: str) -> bool:
        return any(low <= char <= high for low, high in self.ranges) != self.negated


_ANY = _Set((("\n", "\n"),), negated=True)


@dataclass(slots=True)
class _State:
    """A place in the machine: with a `step` it takes a character, else it leads on for nothing."""

    step: _Set | None = None
    after: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Pattern:
    """A pattern that was read; `text` is how it is written."""

    text: str
    _states: tuple[_State, ...] = field(repr=False, compare=False)
    _start: int = field(repr=False, compare=False)
    _end: int = field(repr=False, compare=False)

    def work(self, value: str) -> int:
        """How many steps `matches` takes for a value at most: about a fifth of a microsecond each.

        Linear in its length is no bound in practice: a pattern of 256 characters may mean 2000
        places, and all of them at every character.
        """
        return len(value) * len(self._states)

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """Raises `PatternError`."""
        if len(text) > LONGEST_PATTERN:
            raise PatternError(f"it has {len(text)} characters, at most {LONGEST_PATTERN} are read")
        reader = _Reader(text)
        node = reader.alternatives(0)
        if reader.rest:
            raise PatternError(f"`{reader.rest[0]}` at {reader.at} closes nothing")
        machine = _Machine()
        start, end = machine.add(node)
        return cls(text, tuple(machine.states), start, end)

    def matches(self, value: str) -> bool:
        """Whether all of `value` is what the pattern describes."""
        now = self._reach({self._start})
        for char in value:
            stepped = {
                target
                for one in now
                if (step := self._states[one].step) and step.takes(char)
                for target in self._states[one].after
            }
            if not stepped:
                return False
            now = self._reach(stepped)
        return self._end in now

    def _reach(self, states: set[int]) -> set[int]:
        """These states, and all that they lead to without a character."""
        reached, waiting = set(states), list(states)
        while waiting:
            state = self._states[waiting.pop()]
            if state.step is None:
                new = [one for one in state.after if one not in reached]
                reached.update(new)
                waiting += new
        return reached


# --- what a pattern says ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Sequence:
    parts: tuple[_Node, ...]


@dataclass(frozen=True, slots=True)
class _Either:
    ways: tuple[_Node, ...]


@dataclass(frozen=True, slots=True)
class _Repeat:
    part: _Node
    least: int
    most: int | None


_Node = _Set | _Sequence | _Either | _Repeat


class _Reader:
    """Reads by recursive descent; no deeper than `_DEEPEST` groups."""

    def __init__(self, text: str) -> None:
        self._text = text
        self.at = 0

    @property
    def rest(self) -> str:
        return self._text[self.at :]

    def alternatives(self, depth: int) -> _Node:
        if depth > _DEEPEST:
            raise PatternError(f"its groups are nested deeper than {_DEEPEST}")
        ways = [self._sequence(depth)]
        while self.rest.startswith("|"):
            self.at += 1
            ways.append(self._sequence(depth))
        return ways[0] if len(ways) == 1 else _Either(tuple(ways))

    def _sequence(self, depth: int) -> _Node:
        parts: list[_Node] = []
        # The whole is matched anyway: anchors at the ends, as others need them, mean nothing.
        if depth == 0 and self.at == 0 and self.rest.startswith("^"):
            self.at += 1
        while self.rest and self.rest[0] not in "|)":
            if depth == 0 and self.rest == "$":
                self.at += 1
                break
            parts.append(self._repeated(self._atom(depth)))
        return _Sequence(tuple(parts))

    def _atom(self, depth: int) -> _Node:
        char = self._next()
        if char == "(":
            if self.rest.startswith("?:"):
                self.at += 2
            elif self.rest.startswith("?"):
                raise PatternError(f"`(?` at {self.at - 1} begins what is not known here")
            inner = self.alternatives(depth + 1)
            if not self.rest:
                raise PatternError("a group is not closed")
            self.at += 1
            return inner
        if char == "[":
            return self._class()
        if char == ".":
            return _ANY
        if char == "\\":
            return self._escape()
        if char in _SPECIAL:
            raise PatternError(f"`{char}` at {self.at - 1} must be written as `\\{char}`")
        return _Set(((char, char),))

    def _escape(self) -> _Set:
        char = self._next("a `\\` is the last character")
        if char in _CLASSES:
            return _Set(_CLASSES[char])
        if char.lower() in _CLASSES and char.isupper():
            return _Set(_CLASSES[char.lower()], negated=True)
        literal = self._literal(char)
        return _Set(((literal, literal),))

    def _literal(self, char: str) -> str:
        if char in _CONTROLS:
            return _CONTROLS[char]
        if char.isascii() and char.isalnum():
            raise PatternError(f"`\\{char}` is not known here")
        return char

    def _class(self) -> _Set:
        negated = self.rest.startswith("^")
        self.at += negated
        ranges: list[_Range] = []
        first = True
        while first or not self.rest.startswith("]"):
            char = self._next("a class is not closed")
            if char == "[" or (first and char == "]"):
                raise PatternError(f"`{char}` in a class must be written as `\\{char}`")
            first = False
            if char == "\\":
                char = self._next("a class is not closed")
                if char in _CLASSES:
                    ranges += _CLASSES[char]
                    continue
                char = self._literal(char)
            ranges.append(self._range(char))
        self.at += 1
        return _Set(tuple(ranges), negated)

    def _range(self, low: str) -> _Range:
        if not self.rest.startswith("-") or self.rest[1:2] in ("]", ""):
            return low, low
        self.at += 1
        high = self._next("a class is not closed")
        if high == "\\":
            high = self._next("a class is not closed")
            if high in _CLASSES:
                raise PatternError(f"a range cannot end with `\\{high}`")
            high = self._literal(high)
        elif high == "[":
            raise PatternError("`[` in a class must be written as `\\[`")
        if high < low:
            raise PatternError(f"the range `{low}-{high}` is empty")
        return low, high

    def _repeated(self, part: _Node) -> _Node:
        if not self.rest or self.rest[0] not in "*+?{":
            return part
        char = self._next()
        least, most = {"*": (0, None), "+": (1, None), "?": (0, 1)}.get(char) or self._bounds()
        if self.rest and self.rest[0] in "*+?{":
            raise PatternError(f"`{self.rest[0]}` at {self.at} repeats a repetition")
        return _Repeat(part, least, most)

    def _bounds(self) -> tuple[int, int | None]:
        inner, brace, _ = self.rest.partition("}")
        low, comma, high = inner.partition(",")
        numbers = [one for one in (low, high) if one or one is low]
        if not brace or not all(one.isascii() and one.isdigit() for one in numbers):
            raise PatternError("a `{` must begin a repetition, as `{2}`, `{2,}` or `{2,5}`")
        if any(len(one) > 4 or int(one) > MOST_REPEATS for one in numbers):
            raise PatternError(f"it repeats more than {MOST_REPEATS} times")
        self.at += len(inner) + 1
        least = int(low)
        most = (int(high) if high else None) if comma else least
        if most is not None and most < least:
            raise PatternError(f"the repetition `{{{inner}}}` is empty")
        return least, most

    def _next(self, missing: str = "it ends too early") -> str:
        if not self.rest:
            raise PatternError(missing)
        self.at += 1
        return self._text[self.at - 1]


class _Machine:
    """Makes states of nodes; no more than `MOST_STATES`."""

    def __init__(self) -> None:
        self.states: list[_State] = []

    def add(self, node: _Node) -> tuple[int, int]:
        """The states where a node begins and ends; the end has nothing after it."""
        match node:
            case _Set():
                start, end = self._new(node), self._new()
                self._link(start, end)
                return start, end
            case _Sequence(parts):
                return self._chain([self.add(part) for part in parts])
            case _Either(ways):
                start, end = self._new(), self._new()
                for way in ways:
                    first, last = self.add(way)
                    self._link(start, first)
                    self._link(last, end)
                return start, end
            case _Repeat(part, least, most):
                return self._repeat(part, least, most)

    def _repeat(self, part: _Node, least: int, most: int | None) -> tuple[int, int]:
        chain = [self.add(part) for _ in range(least)]
        if most is None:
            start, end = self._new(), self._new()
            first, last = self.add(part)
            for origin, target in ((start, first), (last, first), (last, end), (start, end)):
                self._link(origin, target)
            return self._chain([*chain, (start, end)])
        optional = [self.add(part) for _ in range(most - least)]
        start, end = self._chain([*chain, *optional])
        for first, _ in optional:
            self._link(first, end) if self.states[first].step is None else self._skip(first, end)
        return start, end

    def _skip(self, first: int, end: int) -> None:
        """A way past a state that takes a character: it is moved behind one that does not."""
        state = self.states[first]
        moved = self._new(state.step)
        self.states[moved].after = state.after
        self.states[first] = _State(None, [moved, end])

    def _chain(self, pieces: list[tuple[int, int]]) -> tuple[int, int]:
        if not pieces:
            only = self._new()
            return only, only
        for (_, last), (first, _) in pairwise(pieces):
            self._link(last, first)
        return pieces[0][0], pieces[-1][1]

    def _new(self, step: _Set | None = None) -> int:
        if len(self.states) >= MOST_STATES:
            raise PatternError("it says too much: write it shorter, or with smaller repetitions")
        self.states.append(_State(step))
        return len(self.states) - 1

    def _link(self, origin: int, target: int) -> None:
        self.states[origin].after.append(target)
