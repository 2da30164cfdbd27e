"""Faults in one S2I script: in its bytes, and in what its commands do. Pure.

Commands are looked at as they are written: nothing is run, and what a variable holds is not known.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator

from ocis2i.lazy_dataclass import dataclass
from ocis2i.rules import RULES, Finding, suppressed
from ocis2i.s2i import SCRIPT_NAMES
from ocis2i.shell import Command, Script, ShellError, parse

SCRIPT_LIMIT = 256 << 10

_MARK = b"\xef\xbb\xbf"
_SHELLS = frozenset(("sh", "bash", "dash", "ash", "ksh", "mksh", "busybox"))
_BASH_WORDS = frozenset(("pushd", "popd", "dirs", "shopt", "[[", "declare", "typeset", "source",
                         "mapfile", "readarray", "select", "let", "disown"))  # fmt: skip
_PRINTING = frozenset(("echo", "printf", "ls", "pwd", "date", "env", "id", "find", "du", "pushd",
                       "popd"))  # fmt: skip
# Of what dash does not know, what busybox has in its shell as distributions build it.
_BUSYBOX_KNOWS = frozenset(("[[", "source", "let", "function", "==", "pipefail", "&>", "$'...'"))
_LISTING = re.compile(r"\$\(\s*(?:ls|find)\b|`\s*(?:ls|find)\b")
_COUNTED = re.compile(r"\|\s*wc\b")  # a number, whatever the names were
_ONLY_LOOKING = frozenset(("[", "[[", "test", "case", "echo", "printf", "shift"))
_ARGUMENTS = frozenset(("$@", "$*", "${@}", "${*}"))
_SYSTEM = ("/etc", "/usr", "/bin", "/sbin", "/lib", "/lib64", "/root", "/boot", "/var/lib")
_MAKING = frozenset(("cp", "mv", "install", "ln", "mkdir", "touch", "tee", "rsync"))
_INSTALLING = {
    "apt-get": "install", "apt": "install", "yum": "install", "dnf": "install",
    "microdnf": "install", "apk": "add", "rpm": "-i",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Place:
    """Where a script is found, for what depends on that.

    `path` is shown in findings. `directory` is that of the scripts in the image, empty when not
    known; `destination` where source and artifacts go. `is_root`: its user may write anywhere.
    """

    path: str
    name: str
    directory: str = ""
    destination: str = "/tmp"  # noqa: S108 - a path inside the image
    is_root: bool = False
    sh_is_bash: bool = False
    sh_is_busybox: bool = False


def check_script(content: bytes, place: Place) -> list[Finding]:
    """All faults of one script, in the order of its lines."""
    findings = list(_of_bytes(content, place))
    text = content.removeprefix(_MARK).decode(errors="replace").replace("\r\n", "\n")
    if not _is_shell(text):
        return findings
    try:
        script = parse(text)
    except ShellError as error:
        return [*findings, _found("S2I007", place, error.line, error.message)]
    except RecursionError:
        return [*findings, _found("S2I007", place, 0, "it is nested too deep")]
    first = next((line for line, _ in _lines_of_commands(script)), 1 << 30)
    for check in _CHECKS:
        findings += check(script, text, place)
    return sorted(
        suppressed(findings, script.comments, first), key=lambda one: (one.line, one.rule.code)
    )


def interpreter(content: bytes) -> str:
    """The program in the first line; empty without one."""
    first = content.removeprefix(_MARK).partition(b"\n")[0].decode(errors="replace")
    words = first.removeprefix("#!").split() if first.startswith("#!") else []
    return words[0] if words else ""


def words_of(content: bytes) -> frozenset[str]:
    """All names in a script, for who looks whether a variable is read somewhere."""
    return frozenset(re.findall(r"[A-Za-z_][A-Za-z0-9_]*", content.decode(errors="replace")))


def _found(code: str, place: Place, line: int, detail: str = "") -> Finding:
    rule = RULES[code]
    return Finding(rule, place.path, line, f"{rule.title}: {detail}" if detail else rule.title)


def _lines_of_commands(script: Script) -> list[tuple[int, Command]]:
    return sorted(((one.line, one) for one in script.commands), key=lambda two: two[0])


# --- the file ---------------------------------------------------------------------------------


def _of_bytes(content: bytes, place: Place) -> Iterator[Finding]:
    if content.startswith(_MARK):
        yield _found("S2I004", place, 1)
    at = content.find(b"\r\n")
    if at >= 0:
        yield _found("S2I003", place, content.count(b"\n", 0, at) + 1)
    if not content.startswith((b"#!", _MARK, b"\x7fELF")):
        yield _found("S2I005", place, 1)


def _is_shell(text: str) -> bool:
    first, _, _ = text.partition("\n")
    if text.startswith("\x7fELF") or "\0" in first:
        return False
    if not first.startswith("#!"):
        return True  # ocis2i starts it by /bin/sh
    return bool(_SHELLS & set(_program_words(first)))


def _program_words(first: str) -> list[str]:
    return [posixpath.basename(word) for word in first.removeprefix("#!").split()]


# --- its commands -----------------------------------------------------------------------------


def _errors_end(script: Script, text: str, place: Place) -> Iterator[Finding]:
    if place.name == "usage" or not script.commands:
        return
    words = text.partition("\n")[0].split()[1:]
    behind = any(re.fullmatch(r"-[a-z]*e[a-z]*", word) for word in words)
    if behind or any(_sets(one, "e", "errexit") for one in script.named("set")):
        return
    real = [one for one in script.commands if one.words and one.name not in ("exec", "cat", "for")]
    if len(real) + sum(one.name == "exec" for one in script.commands) > 1:
        yield _found("S2I010", place, 1)


def _sets(command: Command, letter: str, option: str) -> bool:
    arguments = command.arguments
    for number, word in enumerate(arguments):
        if re.fullmatch(rf"-[a-zA-Z]*{letter}[a-zA-Z]*", word):
            return True
        if word.endswith("o") and word.startswith("-") and arguments[number + 1 :][:1] == [option]:
            return True
    return False


def _bash_words(script: Script, text: str, place: Place) -> Iterator[Finding]:
    names = _program_words(text.partition("\n")[0])
    if place.sh_is_bash or (names and "bash" in names) or not ({"sh", "dash", "ash"} & set(names)):
        return
    known = _BUSYBOX_KNOWS if place.sh_is_busybox else frozenset()
    own = {one.function for one in script.commands}
    for one in script.commands:
        if one.name in _BASH_WORDS and one.name not in own | known:
            yield _found("S2I011", place, one.line, f"`{one.name}`")
    told: set[str] = set()
    for line, word in _beyond_posix(script):
        kind = word.partition("{")[0]
        of_text = place.sh_is_busybox and re.fullmatch(r"\$\{\w+[:/]\.\.\.\}", word)
        if kind not in told | known and not of_text:
            told.add(kind)
            yield _found("S2I011", place, line, f"`{word}`")


def _beyond_posix(script: Script) -> Iterator[tuple[int, str]]:
    """What is no command, and dash has not: its grammar, `[ a == b ]` and `set -o pipefail`."""
    yield from script.beyond
    for one in script.commands:
        if one.name in ("[", "test") and "==" in one.arguments:
            yield one.line, "=="
        if one.name == "set" and _sets(one, "\0", "pipefail"):
            yield one.line, "pipefail"


def _starts_server(script: Script, _: str, place: Place) -> Iterator[Finding]:
    """S2I012 and S2I013."""
    if place.name != "run" or not script.commands:
        return
    last = script.commands[-1]
    execs = [one for one in script.named("exec") if len(one.words) > 1 and not one.substituted]
    hands_on = any(script.named("trap")) and any(script.named("wait"))
    if not execs and not hands_on:
        yield _found("S2I012", place, last.line, f"`{last.name}`" if last.name else "")
    starts = execs or [last]
    if not _passes_arguments(script):
        yield _found("S2I013", place, starts[-1].line)


def _passes_arguments(script: Script) -> bool:
    """Whether the script's own arguments reach a command, also through `set -- ... "$@"`."""
    for _, one in _lines_of_commands(script):
        if one.function or one.name in _ONLY_LOOKING:
            continue
        every = {part for word in one.words for part in word.expansions}
        every |= {part for word in one.assignments for part in word.expansions}
        passes = bool(
            every & {"$@", "$*", "${@}", "${*}", "${@:1}"} or _is_array_of_arguments(every)
        )
        if one.name == "set" and "--" in one.arguments:
            if not passes:
                return False
        elif passes:
            return True
    return False


def _is_array_of_arguments(every: set[str]) -> bool:
    return any(part.startswith(("${@", "${*", "${1", "$1")) for part in every)


def _whole_arguments(script: Script, _: str, place: Place) -> Iterator[Finding]:
    for one in script.commands:
        if any(set(word.bare) & _ARGUMENTS for word in one.words):
            yield _found("S2I014", place, one.line)


def _listings(script: Script, _: str, place: Place) -> Iterator[Finding]:
    """`mv $(ls dir) x`, and `name=$(ls dir)` with `$name` without quotes later."""
    names = {
        word.raw.partition("=")[0]
        for one in script.commands
        for word in one.assignments
        if any(map(_lists, word.expansions))
    }
    for one in script.commands:
        if one.name in ("echo", "printf"):
            continue
        for word in one.words:
            parts = [part for part in word.bare if _lists(part)]
            used = [part for part in word.bare if part.strip("${}") in names]
            if (parts or used) and one.name not in ("[[", "case"):
                yield _found("S2I015", place, word.line, f"`{(parts + used)[0][:60]}`")


def _lists(part: str) -> bool:
    return bool(_LISTING.match(part)) and not _COUNTED.search(part)


def _execute_bit(script: Script, _: str, place: Place) -> Iterator[Finding]:
    if place.name != "run":
        return
    for one in script.named("chmod"):
        if any(re.fullmatch(r"[ugoa]*\+[rw]*x|0?[1357]?[1357][0-7]{2}", w) for w in one.arguments):
            yield _found("S2I016", place, one.line)


def _saves_cleanly(script: Script, _: str, place: Place) -> Iterator[Finding]:
    """S2I017 to S2I019."""
    if place.name != "save-artifacts":
        return
    tars: list[Command] = []
    moved = False
    for one in script.commands:
        if one.name == "exec" and len(one.words) == 1 and one.elsewhere:
            moved = True
        if one.name == "tar" and not one.substituted:
            tars.append(one)
        elif one.elsewhere or moved:
            continue
        elif one.name == "cd" and one.arguments == ["-"]:
            yield _found("S2I017", place, one.line)
        elif one.name in _PRINTING or (one.name == "cat" and one.body):
            yield _found("S2I018", place, one.line, f"`{one.name}`")
        elif one.name == "set" and _sets(one, "v", "verbose"):
            continue
    yield from _more_tars(tars, place)


def _more_tars(tars: list[Command], place: Place) -> Iterator[Finding]:
    for one in tars:
        if any(word in ("for", "while", "until") for word in one.inside):
            yield _found("S2I019", place, one.line, "it is in a loop")
            return
    for number, one in enumerate(tars):
        if any(not _exclude(one, other) for other in tars[:number]):
            yield _found("S2I019", place, one.line)
            return


def _exclude(one: Command, other: Command) -> bool:
    """Whether the two are in different branches of one `if` or `case`."""
    known = dict(other.ways)
    return any(known.get(number, branch) != branch for number, branch in one.ways)


def _shows_values(script: Script, text: str, place: Place) -> Iterator[Finding]:
    if re.match(r"#!\S*sh\s+-[a-z]*x", text):
        yield _found("S2I020", place, 1)
    before = ""
    for one in script.commands:
        on_a_condition = before in ("&&", "||") or {"if", "case"} & set(one.inside)
        if one.name == "set" and _sets(one, "x", "xtrace") and not on_a_condition:
            yield _found("S2I020", place, one.line)
        before = one.followed_by


def _fixed_destination(script: Script, _: str, place: Place) -> Iterator[Finding]:
    if place.destination in ("", "/tmp"):  # noqa: S108 - likewise
        return
    for one in script.commands:
        words = [word.text for word in (*one.words, *one.assignments)]
        if any(re.search(r"(^|[=:])/tmp/(src|artifacts|scripts)(/|$)", word) for word in words):
            yield _found("S2I021", place, one.line, f"the label says `{place.destination}`")
            return


def _writes_elsewhere(script: Script, _: str, place: Place) -> Iterator[Finding]:
    """S2I022 and S2I023."""
    if place.name not in ("assemble", "run", "save-artifacts"):
        return
    for one in script.commands:
        if one.name in ("sudo", "su", "gosu", "su-exec") and one.words:
            yield _found("S2I023", place, one.line, f"`{one.name}`")
        if place.is_root:
            continue
        targets = [
            redirect.target for redirect in one.redirects if redirect.operator in (">", ">>", ">|")
        ]
        if one.name in _MAKING and len(one.arguments) > (one.name not in ("mkdir", "touch", "tee")):
            targets.append(one.arguments[-1])
        for target in targets:
            if target.startswith(tuple(f"{top}/" for top in _SYSTEM)):
                yield _found("S2I022", place, one.line, f"`{target}`")
        if _INSTALLING.get(one.name) in one.arguments:
            yield _found("S2I022", place, one.line, f"`{one.name}` installs packages of the system")


def _names_scripts(script: Script, _: str, place: Place) -> Iterator[Finding]:
    if not place.directory:
        return
    for one in script.commands:
        for word in one.words:
            directory, name = posixpath.split(word.text)
            near = directory.startswith("/") and "s2i" in directory
            if near and name in SCRIPT_NAMES and posixpath.normpath(directory) != place.directory:
                detail = f"`{word.text}`, and the scripts are in `{place.directory}`"
                yield _found("S2I024", place, word.line, detail)


_CHECKS = (
    _errors_end,
    _bash_words,
    _starts_server,
    _whole_arguments,
    _listings,
    _execute_bit,
    _saves_cleanly,
    _shows_values,
    _fixed_destination,
    _writes_elsewhere,
    _names_scripts,
)
