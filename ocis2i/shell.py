"""Shell scripts as lists of commands, for who looks for faults in them. Pure.

It reads what POSIX (XCU 2) and bash have: quotes, here-documents, expansions, compound commands,
functions, `[[ ]]`, `(( ))` and arrays. Nothing is expanded, and aliases are not known; `eval` and a
command in a variable stay words. What it cannot read is a `ShellError` with its line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import field

from ocis2i.lazy_dataclass import dataclass

MOST_COMMANDS = 20_000
_DEEPEST = 40
_LONGEST_ARITHMETIC = 4096

_OPENING = frozenset(("if", "while", "until", "for", "select", "case", "{"))
_CLOSING = {
    "fi": ("if",),
    "done": ("while", "until", "for", "select"),
    "esac": ("case",),
    "}": ("{",),
}
_BETWEEN = frozenset(("then", "else", "elif", "do", "!", "time", "in"))
_BLANK = " \t"
_BREAKS = " \t\n;&|<>()"
# What bash's `${...}` has beyond POSIX: substrings, replacements, cases, indirection, elements.
_BEYOND_BRACES = re.compile(r"!\w|(?:\w+|[@*])(?::(?![-=?+])|[/^,@\[])")


class ShellError(ValueError):
    """What is no shell script, or none that is understood; `line` counts from 1."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line
        self.message = message


@dataclass(frozen=True, slots=True)
class Word:
    """A word as it was written (`raw`), and without its quotes (`text`).

    `bare` has the expansions in it that stand outside of quotes, as `$@` or `$(ls)`; `quoted` is
    whether anything in it is. Of a substitution there is nothing in `text`.
    """

    raw: str
    text: str
    line: int
    bare: tuple[str, ...] = ()
    expansions: tuple[str, ...] = ()
    quoted: bool = False


@dataclass(frozen=True, slots=True)
class Redirect:
    """`fd` is the number before the operator, or what it stands for; `target` is what follows."""

    fd: int
    operator: str
    target: str


@dataclass(slots=True, eq=False)
class Command:
    """One simple command: assignments, words and redirections.

    `elsewhere`: its standard output goes to a pipe, a file, another descriptor or a substitution.
    `inside` are the compound commands around it, the outermost first, and `ways` a number for each
    of them and for its branch; `function` the one that it
    defines a part of. `background`: it ends in `&`. `body` are the texts of its here-documents.
    """

    line: int
    assignments: list[Word] = field(default_factory=list)
    words: list[Word] = field(default_factory=list)
    redirects: list[Redirect] = field(default_factory=list)
    body: list[str] = field(default_factory=list)
    inside: tuple[str, ...] = ()
    ways: tuple[tuple[int, int], ...] = ()
    function: str = ""
    elsewhere: bool = False
    substituted: bool = False
    background: bool = False
    followed_by: str = ""

    @property
    def name(self) -> str:
        """The program or built-in, without its directory; empty for an assignment alone."""
        return self.words[0].text.rpartition("/")[2] if self.words else ""

    @property
    def arguments(self) -> list[str]:
        """The words after the first, without quotes."""
        return [word.text for word in self.words[1:]]


@dataclass(frozen=True, slots=True)
class Script:
    """A script that was read: `comments` are text by line, without the `#`.

    `beyond` is the grammar in it that POSIX does not have, by line: what a shell such as dash
    refuses or reads otherwise.
    """

    commands: tuple[Command, ...]
    comments: tuple[tuple[int, str], ...]
    beyond: tuple[tuple[int, str], ...] = ()

    def named(self, *names: str) -> Iterator[Command]:
        """The commands of these names."""
        return (one for one in self.commands if one.name in names)


def parse(text: str) -> Script:
    """Reads a script; raises `ShellError`."""
    reader = _Reader(text)
    reader.program()
    if reader.frames:
        frame = reader.frames[-1]
        raise ShellError(frame.line, f"`{frame.word}` has no end")
    return Script(tuple(reader.commands), tuple(reader.comments), tuple(reader.beyond))


@dataclass(slots=True)
class _Frame:
    """A compound command that is open, and the first command in it."""

    word: str
    line: int
    first: int
    expects_pattern: bool = False
    number: int = 0
    branch: int = 0


@dataclass(slots=True)
class _Pending:
    """A here-document whose text begins after this line."""

    delimiter: str
    strip_tabs: bool
    command: Command


class _Reader:
    """Goes through the text once."""

    def __init__(self, text: str, line: int = 1, depth: int = 0) -> None:
        if depth > _DEEPEST:
            raise ShellError(line, f"substitutions are nested deeper than {_DEEPEST}")
        self.text = text
        self.at = 0
        self.line = line
        self.depth = depth
        self.braces = 0
        self.commands: list[Command] = []
        self.comments: list[tuple[int, str]] = []
        self.frames: list[_Frame] = []
        self.opened = 0
        self.pending: list[_Pending] = []
        self.functions: list[tuple[str, int]] = []
        self.current: Command | None = None
        self.beyond: list[tuple[int, str]] = []
        self.closed_from: int | None = None  # a compound command has just ended; its first command
        self.marked = (-1, 0)  # the last one whose output goes elsewhere, and up to which command

    # --- characters ---------------------------------------------------------------------------

    def _peek(self, ahead: int = 0) -> str:
        at = self.at + ahead
        return self.text[at] if at < len(self.text) else ""

    def _take(self, count: int = 1) -> str:
        taken = self.text[self.at : self.at + count]
        self.line += taken.count("\n")
        self.at += len(taken)
        return taken

    # --- the program --------------------------------------------------------------------------

    def program(self) -> None:
        """Reads to the end."""
        while self.at < len(self.text):
            self._step()
        self._end_command("\n")
        if self.pending:
            raise ShellError(
                self.line, f"the here-document `{self.pending[0].delimiter}` has no end"
            )

    def _step(self) -> None:
        char = self._peek()
        if char in _BLANK:
            self._take()
        elif char == "\\" and self._peek(1) == "\n":
            self._take(2)
        elif char == "#":
            self._comment()
        elif char == "\n":
            self._end_command("\n")
            self._take()
            self._here_documents()
        elif char in ";&|":
            self._operator()
        elif char == "(":
            self._open_parenthesis()
        elif char == ")":
            self._close_parenthesis()
        elif char in "<>" and self._peek(1) != "(":
            self._redirect(0 if char == "<" else 1)
        else:
            self._word()

    def _comment(self) -> None:
        line = self.line
        end = self.text.find("\n", self.at)
        taken = self._take((end if end >= 0 else len(self.text)) - self.at)
        self.comments.append((line, taken[1:].strip()))

    def _operator(self) -> None:
        two = self.text[self.at : self.at + 2]
        if two == "&>":
            self._redirect(1)
            return
        three = self.text[self.at : self.at + 3]
        operator = next((one for one in (";;&",) if one == three), "")
        operator = operator or (two if two in ("&&", "||", "|&", ";;", ";&") else self._peek())
        if operator == "|&":
            self.beyond.append((self.line, operator))
        self._take(len(operator))
        self._end_command(operator)
        if operator in (";;", ";&", ";;&") and self.frames:
            self.frames[-1].expects_pattern = True
            self.frames[-1].branch += 1

    def _end_command(self, operator: str) -> None:
        command, self.current = self.current, None
        if command is not None:
            command.followed_by = operator
            command.background = operator == "&"
            self._check_output(command)
        if operator in ("|", "|&"):
            start = len(self.commands) if command is None else self._index(command)
            if command is None and self.closed_from is not None:
                start = self.closed_from
            for one in self.commands[start:]:
                one.elsewhere = True
        self.closed_from = None

    @staticmethod
    def _check_output(command: Command) -> None:
        for one in command.redirects:
            if one.fd == 1 and one.operator != "<":
                command.elsewhere = True

    # --- compound commands --------------------------------------------------------------------

    def _push(self, word: str) -> None:
        self.opened += 1
        frame = _Frame(word, self.line, len(self.commands), word == "case", self.opened)
        self.frames.append(frame)
        if len(self.frames) > 4 * _DEEPEST:
            raise ShellError(self.line, "compound commands are nested too deep")

    def _pop(self, words: tuple[str, ...], closing: str) -> None:
        if not self.frames or self.frames[-1].word not in words:
            raise ShellError(self.line, f"`{closing}` closes nothing")
        frame = self.frames.pop()
        self.closed_from = frame.first
        if self.functions and self.functions[-1][1] == len(self.frames):
            self.functions.pop()

    def _open_parenthesis(self) -> None:
        frame = self.frames[-1] if self.frames else None
        if frame and frame.word == "case" and frame.expects_pattern:
            self._take()
            self._pattern()
            return
        if self.current is None and self._peek(1) == "(" and self._is_arithmetic(self.at + 1):
            line = self.line
            self.beyond.append((line, "((...))"))
            self._take(2)
            self._arithmetic(line)
            self.commands.append(Command(line, inside=self._inside()))
            self.closed_from = len(self.commands) - 1
            return
        command = self.current
        if command is not None:
            self._function(command)
            return
        self._take()
        self._push("(")

    def _function(self, command: Command) -> None:
        """`name()`: what was read as a command is the name of a function."""
        self._take()
        while self._peek() and self._peek() in _BLANK:
            self._take()
        if self._peek() != ")" or not command.words:
            raise ShellError(self.line, "`(` stands where none can be")
        self._take()
        self.commands.remove(command)
        self.current = None
        self.functions.append((command.words[-1].text, len(self.frames)))

    def _close_parenthesis(self) -> None:
        self._end_command("\n")
        self._take()
        self._pop(("(",), ")")

    def _pattern(self) -> None:
        """The pattern of a case, up to its `)`."""
        line = self.line
        depth = 0
        while char := self._peek():
            if char == "'":
                self._single()
            elif char == '"':
                self._double([])
            elif char == "\\":
                self._take(2)
            elif char == "(":
                depth += 1
                self._take()
            elif char == ")":
                self._take()
                if depth == 0:
                    self.frames[-1].expects_pattern = False
                    return
                depth -= 1
            else:
                self._take()
        raise ShellError(line, "a pattern of `case` has no `)`")

    def _arithmetic(self, line: int) -> None:
        depth = 0
        while char := self._peek():
            if self.text.startswith("))", self.at) and depth == 0:
                self._take(2)
                return
            depth += (char == "(") - (char == ")")
            self._take()
        raise ShellError(line, "`((` has no end")

    def _index(self, command: Command) -> int:
        """Its place, which is near the end."""
        places = range(len(self.commands) - 1, -1, -1)
        return next((at for at in places if self.commands[at] is command), len(self.commands))

    def _inside(self) -> tuple[str, ...]:
        return tuple(frame.word for frame in self.frames)

    # --- words --------------------------------------------------------------------------------

    def _word(self) -> None:
        frame = self.frames[-1] if self.frames else None
        in_case = frame is not None and frame.word == "case" and frame.expects_pattern
        if self.current is None and in_case and not self._at_word("esac"):
            self._pattern()
            return
        word = self._read_word()
        if word.raw.isdigit() and self._peek() and self._peek() in "<>":
            self._redirect(int(word.raw))
            return
        if self.current is None and not word.quoted and self._reserved(word):
            return
        self._add(word)

    def _at_word(self, word: str) -> bool:
        end = self.at + len(word)
        following = self.text[end : end + 1]
        return self.text.startswith(word, self.at) and (not following or following in _BREAKS)

    def _reserved(self, word: Word) -> bool:
        raw = word.raw
        if raw in _CLOSING:
            self._end_command("\n")
            if raw == "esac" and self.frames:
                self.frames[-1].expects_pattern = False
            self._pop(_CLOSING[raw], raw)
            return True
        if raw in _BETWEEN:
            self.closed_from = None
            if raw in ("else", "elif") and self.frames:
                self.frames[-1].branch += 1
            return True
        if raw == "[[":
            self._test(word.line)
            return True
        if raw == "function":
            self._named_function()
            return True
        if raw not in _OPENING:
            return False
        self.closed_from = None
        if raw in ("for", "select", "case"):
            self._head(raw, word.line)
        self._push(raw)
        return True

    def _named_function(self) -> None:
        self.beyond.append((self.line, "function"))
        while self._peek() and self._peek() in _BLANK:
            self._take()
        name = self._read_word().text
        while self._peek() and self._peek() in _BLANK:
            self._take()
        if self.text.startswith("()", self.at):
            self._take(2)
        self.functions.append((name, len(self.frames)))

    def _head(self, kind: str, line: int) -> None:
        """`for NAME in WORDS`, `case WORD in`: kept as a command called by its first word."""
        command = Command(line, words=[Word(kind, kind, line)], inside=self._inside())
        command.elsewhere = True
        self.commands.append(command)
        while char := self._peek():
            if char in _BLANK or self.text.startswith("\\\n", self.at):
                self._take(2 if char == "\\" else 1)
            elif char in ";\n":
                if kind == "case" and char == "\n" and len(command.words) < 3:
                    self._take()
                    continue
                return
            elif self.text.startswith("((", self.at):
                self.beyond.append((self.line, f"{kind} ((...))"))
                self._take(2)
                self._arithmetic(line)
            elif char in "&|<>()" and not (char in "<>" and self._peek(1) == "("):
                raise ShellError(self.line, f"`{char}` stands where `{kind}` begins")
            else:
                if kind != "case" and self._at_word("do"):
                    return
                word = self._read_word()
                command.words.append(word)
                if kind == "case" and word.raw == "in":
                    return

    def _test(self, line: int) -> None:
        """`[[ ... ]]`: kept as a command `[[` with its words."""
        command = Command(line, words=[Word("[[", "[[", line)], inside=self._inside())
        command.function = self.functions[-1][0] if self.functions else ""
        self.commands.append(command)
        self.current = command
        while self._peek():
            char = self._peek()
            if char in " \t\n<>&|();!":
                self._take()
            else:
                word = self._read_word(in_test=True)
                if word.raw == "]]":
                    return
                command.words.append(word)
        raise ShellError(line, "`[[` has no `]]`")

    def _add(self, word: Word) -> None:
        if self.current is None:
            if len(self.commands) >= MOST_COMMANDS:
                raise ShellError(word.line, f"it has more than {MOST_COMMANDS} commands")
            self.closed_from = None
            self.current = Command(word.line, inside=self._inside())
            self.current.function = self.functions[-1][0] if self.functions else ""
            self.current.substituted = self.depth > 0
            self.current.ways = tuple((one.number, one.branch) for one in self.frames)
            self.commands.append(self.current)
        if not self.current.words and _is_assignment(word.raw):
            if self._peek() == "(" and word.raw.endswith("="):
                self._array(word)
            self.current.assignments.append(word)
        else:
            if self.current.words and self._peek() == "(" and _is_assignment(word.raw):
                self._array(word)  # declare -a x=(...)
            self.current.words.append(word)

    def _array(self, word: Word) -> None:
        line = self.line
        self.beyond.append((line, "an array"))
        self._take()
        while self._peek():
            char = self._peek()
            if char in " \t\n":
                self._take()
            elif char == "#":
                self._comment()
            elif char == ")":
                self._take()
                return
            elif char in "&|;<>(":
                raise ShellError(self.line, f"`{char}` stands in an array")
            elif self.current is not None:
                self.current.assignments.append(self._read_word())
        raise ShellError(line, f"the array `{word.raw}` has no `)`")

    def _read_word(self, *, in_test: bool = False) -> Word:
        start, line = self.at, self.line
        text: list[str] = []
        bare: list[str] = []
        every: list[str] = []
        quoted = False
        while char := self._peek():
            if in_test and char in "()<>&|" and self.at > start:
                if char in "<>&" or self.text.startswith("||", self.at):
                    break
                text.append(self._take())  # of a regular expression
                continue
            if char in _BREAKS and not (char in "<>" and self._peek(1) == "(" and self.at == start):
                break
            part = self._quoted(char, every)
            if part is not None:
                quoted = True
                text.append(part)
            elif char in "$`<>":
                found = self._expansion()
                text.append(found if not found.startswith(("$(", "`", "<", ">")) else "")
                if len(found) > 1:
                    bare.append(found)
                    every.append(found)
            else:
                text.append(self._take())
        if self.at == start:
            raise ShellError(line, f"`{self._peek()}` stands where no word can begin")
        return Word(
            self.text[start : self.at], "".join(text), line, tuple(bare), tuple(every), quoted
        )

    def _quoted(self, char: str, every: list[str]) -> str | None:
        """What is quoted here, without its quotes; `None`: nothing is."""
        if char == "'":
            return self._single()
        if char == '"':
            return self._double(every)
        if char == "\\":
            taken = self._take(2)
            return "" if taken == "\\\n" else taken[1:]
        if char == "$" and self._peek(1) == "'":
            self.beyond.append((self.line, "$'...'"))
            self._take()
            return self._ansi()
        if char == "$" and self._peek(1) == '"':
            self._take()
            return self._double(every)
        return None

    def _single(self) -> str:
        line = self.line
        end = self.text.find("'", self.at + 1)
        if end < 0:
            raise ShellError(line, "a `'` has no end")
        return self._take(end + 1 - self.at)[1:-1]

    def _ansi(self) -> str:
        line, start = self.line, self.at
        self._take()
        while char := self._peek():
            if char == "'":
                self._take()
                return self.text[start + 1 : self.at - 1]
            self._take(2 if char == "\\" else 1)
        raise ShellError(line, "a `$'` has no end")

    def _double(self, every: list[str]) -> str:
        line = self.line
        self._take()
        parts: list[str] = []
        while char := self._peek():
            if char == '"':
                self._take()
                return "".join(parts)
            if char == "\\":
                taken = self._take(2)
                escaped = taken[1:] in ("$", "`", '"', "\\", "\n")
                parts.append(
                    taken[1:] if escaped and taken[1:] != "\n" else "" if escaped else taken
                )
            elif char in "$`":
                found = self._expansion()
                if len(found) > 1:
                    every.append(found)
                parts.append("" if found.startswith(("$(", "`")) else found)
            else:
                parts.append(self._take())
        raise ShellError(line, 'a `"` has no end')

    # --- expansions ---------------------------------------------------------------------------

    def _expansion(self) -> str:
        """What begins with `$`, a backtick, or is `<(...)`; as it was written."""
        start, line = self.at, self.line
        char = self._take()
        following = self._peek()
        if char == "`":
            self._backticks(line)
        elif following == "(":
            self._take()
            self._parenthesis(char, line)
        elif char == "$" and following == "{":
            self._take()
            self._braces(line)
        elif char == "$" and (following.isalnum() or following in ("_", *"@*#?$!-")) and following:
            if following.isalpha() or following == "_":
                while (one := self._peek()) and one.isascii() and (one.isalnum() or one == "_"):
                    self._take()
                if self.at == start + 1:  # a letter of another alphabet
                    return "$"
            else:
                self._take()
        return self.text[start : self.at]

    def _parenthesis(self, char: str, line: int) -> None:
        """What follows `$(`, `<(` and `>(`."""
        if char != "$":
            self.beyond.append((line, f"{char}(...)"))
        if char == "$" and self._peek() == "(" and self._is_arithmetic(self.at):
            self._take()
            self._arithmetic(line)
        else:
            self._substitution(line)

    def _is_arithmetic(self, start: int) -> bool:
        """Whether `((` closes with `))`; else it is a subshell in a substitution."""
        depth = 0
        for at in range(start, min(len(self.text), start + _LONGEST_ARITHMETIC)):
            char = self.text[at]
            depth += (char == "(") - (char == ")")
            if depth == 0:
                return self.text[at + 1 : at + 2] == ")"
        return False

    def _substitution(self, line: int) -> None:
        """`$(...)`: its commands are commands of the script, whose output goes to it."""
        inner = _Reader(self.text, self.line, self.depth + 1)
        inner.at = self.at
        inner.functions = list(self.functions)
        depth_of_frames = 0
        while inner.at < len(inner.text):
            if (
                inner._peek() == ")"
                and len(inner.frames) == depth_of_frames
                and not _in_case(inner)
            ):
                inner._end_command("\n")
                self._adopt(inner)
                self._take()
                return
            inner._step()
        raise ShellError(line, "`$(` has no `)`")

    def _adopt(self, inner: _Reader) -> None:
        if inner.frames:
            raise ShellError(inner.frames[-1].line, f"`{inner.frames[-1].word}` has no end")
        for one in inner.commands:
            one.substituted = one.elsewhere = True
            one.inside = (*self._inside(), "$(", *one.inside)
        at = len(self.commands) if self.current is None else self._index(self.current)
        self.commands[at:at] = inner.commands
        self.comments += inner.comments
        self.beyond += inner.beyond
        self.at, self.line = inner.at, inner.line

    def _backticks(self, line: int) -> None:
        start = self.at
        while char := self._peek():
            if char == "`":
                break
            self._take(2 if char == "\\" else 1)
        if not self._peek():
            raise ShellError(line, "a backtick has no end")
        inner = _Reader(self.text[start : self.at].replace("\\`", "`"), line, self.depth + 1)
        inner.program()
        at, after = self.at, self.line
        self._adopt(inner)
        self.at, self.line = at, after
        self._take()

    def _braces(self, line: int) -> None:
        self.braces += 1
        if self.braces > _DEEPEST:
            raise ShellError(line, f"expansions are nested deeper than {_DEEPEST}")
        if found := _BEYOND_BRACES.match(self.text, self.at):
            self.beyond.append((line, f"${{{found[0]}...}}"))
        while char := self._peek():
            if char == "}":
                self._take()
                self.braces -= 1
                return
            if char == "'":
                self._single()
            elif char == '"':
                self._double([])
            elif char == "\\":
                self._take(2)
            elif char in "$`":
                self._expansion()
            else:
                self._take()
        raise ShellError(line, "`${` has no `}`")

    # --- redirections -------------------------------------------------------------------------

    def _redirect(self, fd: int) -> None:
        operators = ("&>>", "<<<", "<<-", "&>", "<<", ">>", ">&", "<&", "<>", ">|", "<", ">")
        operator = next(one for one in operators if self.text.startswith(one, self.at))
        if operator in ("<<<", "&>", "&>>"):
            self.beyond.append((self.line, operator))
        self._take(len(operator))
        while self._peek() and self._peek() in _BLANK:
            self._take()
        if not self._peek() or self._peek() in "\n;&|":
            raise ShellError(self.line, f"nothing follows `{operator}`")
        word = self._read_word()
        redirect = Redirect(0 if operator.startswith("<") and fd == 1 else fd, operator, word.text)
        if self.closed_from is not None and self.current is None:
            self._redirect_group(redirect)
            return
        if self.current is None:
            self.current = Command(word.line, inside=self._inside())
            self.current.function = self.functions[-1][0] if self.functions else ""
            self.commands.append(self.current)
        self.current.redirects.append(redirect)
        if operator in ("<<", "<<-"):
            self.pending.append(_Pending(word.text, operator == "<<-", self.current))

    def _redirect_group(self, redirect: Redirect) -> None:
        """`done >file`, `} >&2`: for all commands in it."""
        if redirect.fd == 1 and redirect.operator.startswith((">", "&>")):
            first, end = self.closed_from or 0, len(self.commands)
            # Another redirection of the same one looks at what is new alone: their number may be
            # as large as the script.
            start = self.marked[1] if self.marked[0] == first else first
            for one in self.commands[start:]:
                one.elsewhere = True
            self.marked = (first, end)
        if redirect.operator in ("<<", "<<-"):
            holder = self.commands[-1] if self.commands else Command(self.line)
            self.pending.append(_Pending(redirect.target, redirect.operator == "<<-", holder))

    def _here_documents(self) -> None:
        for one in self.pending:
            lines: list[str] = []
            line = self.line
            while True:
                if self.at >= len(self.text):
                    raise ShellError(line, f"the here-document `{one.delimiter}` has no end")
                end = self.text.find("\n", self.at)
                stop = end + 1 if end >= 0 else len(self.text)
                taken = self._take(stop - self.at).removesuffix("\n")
                if (taken.lstrip("\t") if one.strip_tabs else taken) == one.delimiter:
                    break
                lines.append(taken)
            one.command.body.append("\n".join(lines))
        self.pending = []


def _in_case(reader: _Reader) -> bool:
    return bool(reader.frames) and reader.frames[-1].word == "case"


def _is_assignment(raw: str) -> bool:
    name, equals, _ = raw.partition("=")
    name = name.removesuffix("+")
    if "[" in name and name.endswith("]"):
        name = name.partition("[")[0]
    return bool(equals) and name.isascii() and name.isidentifier()
