"""The reference in two languages: what the program declares, and what docs/reference/ adds."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeAlias

from ocis2i import __version__, preferences, variables
from ocis2i.commands.application import VERBS
from ocis2i.s2i import REQUIRED_SCRIPTS, SCRIPT_NAMES
from tests import declared
from tests.declared import BEFORE_THE_VERB, Parameter
from tests.pages import PROJECT, check_parser, write_or_check

DATA = PROJECT / "docs/reference"
Language: TypeAlias = Literal["en", "zh"]
LANGUAGES: tuple[Language, ...] = ("en", "zh")
PAGES: Mapping[Language, Path] = {
    "en": PROJECT / "docs/reference.md",
    "zh": PROJECT / "docs/reference.zh.md",
}
COMING_FROM: Mapping[Language, Path] = {
    "en": PROJECT / "docs/coming-from.md",
    "zh": PROJECT / "docs/coming-from.zh.md",
}
# Whoever this names has a table of what it calls our things.
TOOLS = {"s2i": "s2i", "kubesphere": "KubeSphere", "buildconfig": "BuildConfig", "kaniko": "kaniko"}


class IncompleteError(Exception):
    """Something is declared in the program and not described, or the other way round."""


@dataclass(frozen=True, slots=True)
class Data:
    """What docs/reference/*.toml say, by kind of thing."""

    verbs: Mapping[str, Any] = field(default_factory=dict)
    flags: Mapping[str, Any] = field(default_factory=dict)
    variables: Mapping[str, Any] = field(default_factory=dict)
    labels: Mapping[str, Any] = field(default_factory=dict)
    codes: Mapping[str, Any] = field(default_factory=dict)
    reasons: Mapping[str, Any] = field(default_factory=dict)
    scripts: Mapping[str, Any] = field(default_factory=dict)
    phrases: Mapping[str, Any] = field(default_factory=dict)
    tables: Mapping[str, Any] = field(default_factory=dict)
    words: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Flag:
    """An entry: the flag of one name, in all verbs that mean the same by it."""

    key: str
    entry: Mapping[str, Any]
    of_verbs: tuple[Parameter, ...]

    @property
    def main(self) -> Parameter:
        """The one that the help and the type are taken from."""
        return next((one for one in self.of_verbs if one.help), self.of_verbs[0])

    @property
    def anchor(self) -> str:
        """Where the pages have it."""
        return f"flag-{self.key.replace(' --', '-').removeprefix('--').replace(' ', '-')}"


@cache
def load() -> Data:
    """All files together. Raises `IncompleteError` for what is described twice."""
    kinds: dict[str, dict[str, Any]] = {name: {} for name in Data.__slots__}
    for path in sorted(DATA.glob("*.toml")):
        for kind, entries in tomllib.loads(path.read_text()).items():
            if kind not in kinds:
                raise IncompleteError(f"{path.name}: there is no [{kind}]")
            if twice := entries.keys() & kinds[kind].keys():
                raise IncompleteError(f"{path.name}: described twice: {', '.join(sorted(twice))}")
            kinds[kind] |= entries
    return Data(**kinds)


def flag_key(one: Parameter, data: Data) -> str:
    """Under which name a flag of one verb is described: a description of this verb's wins."""
    own = f"{one.verb} {one.name}"
    return own if own in data.flags else one.name


def grouped(data: Data) -> tuple[Flag, ...]:
    """The flags by the entry that describes them, in the order of the program."""
    groups: dict[str, list[Parameter]] = {}
    for one in declared.flags():
        groups.setdefault(flag_key(one, data), []).append(one)
    order = [(data.flags.get(key, {}), key, found) for key, found in groups.items()]
    return tuple(Flag(key, entry, _best_first(found)) for entry, key, found in order)


def _best_first(found: Sequence[Parameter]) -> tuple[Parameter, ...]:
    """Those of verbs, then those before the verb, whose help is shorter."""
    return tuple(sorted(found, key=lambda one: one.verb == BEFORE_THE_VERB))


def variants(flag: Flag) -> dict[str, list[str]]:
    """Other words of help that some verbs have, with these verbs."""
    found: dict[str, list[str]] = {}
    for one in flag.of_verbs:
        if one.help and one.help != flag.main.help and one.verb != BEFORE_THE_VERB:
            found.setdefault(one.help, []).append(one.verb)
    return found


# --- what is missing --------------------------------------------------------------------------


def problems(data: Data) -> list[str]:
    """What is declared and not described, and the reverse, as lines to put into a file."""
    flags = grouped(data)
    found = [
        f'[flags."{flag.key}"]  # {flag.main.help}\narea = ""\nzh = ""'
        for flag in flags
        if not flag.entry.get("zh") or flag.entry.get("area") not in data.words["areas"]
    ]
    found += [
        f'[phrases]\n"{text}" = ""  # {flag.key} of {", ".join(verbs)}'
        for flag in flags
        for text, verbs in variants(flag).items()
        if not data.phrases.get(text)
    ]
    found += _missing("verbs", VERBS.keys(), data.verbs)
    found += [
        f'[verbs.{one.verb}.arguments]\n{one.name} = ""  # {one.help}'
        for one in declared.parameters()
        if not one.is_flag and one.name not in data.verbs.get(one.verb, {}).get("arguments", {})
    ]
    found += _missing("labels", declared.labels(), data.labels)
    found += _missing("codes", map(str, declared.exit_codes()), data.codes)
    found += _missing("reasons", declared.reasons(), data.reasons)
    found += _missing("scripts", SCRIPT_NAMES, data.scripts)
    found += _missing("variables", declared.variables_of_code(), data.variables)
    return found + _too_many(data, flags)


def _missing(kind: str, names: Iterable[str], entries: Mapping[str, Any]) -> list[str]:
    return [f'[{kind}."{name}"]\nzh = ""' for name in names if not entries.get(name, {}).get("zh")]


def _too_many(data: Data, flags: Sequence[Flag]) -> list[str]:
    """What is described and not there."""
    known: list[tuple[str, set[str], Mapping[str, Any]]] = [
        ("flags", {flag.key for flag in flags}, data.flags),
        ("verbs", set(VERBS), data.verbs),
        ("labels", set(declared.labels()), data.labels),
        ("codes", set(map(str, declared.exit_codes())), data.codes),
        ("reasons", set(declared.reasons()), data.reasons),
        ("scripts", set(SCRIPT_NAMES), data.scripts),
    ]
    found = [
        f'[{kind}."{name}"] is described, and there is no such thing'
        for kind, names, entries in known
        for name in entries
        if name not in names
    ]
    # What a library reads for us is described, and not in our code.
    return found + [
        f'[variables."{name}"] is described, and nothing reads it (or say `read_by = "..."`)'
        for name, entry in data.variables.items()
        if name not in declared.variables_of_code() and not entry.get("read_by")
    ]


# --- rendering --------------------------------------------------------------------------------


class Page:
    """One page in one language."""

    def __init__(self, language: Language, data: Data) -> None:
        self._index = LANGUAGES.index(language)
        self.language = language
        self.data = data
        self.flags = grouped(data)
        self.lines: list[str] = []

    def word(self, name: str, table: str = "words") -> str:
        """A word of a table of words.toml in this page's language."""
        return str(self.data.words[table][name][self._index])

    def said(self, name: str) -> str:
        """A text of words.toml."""
        return self.word(name, "texts")

    def pick(self, entry: Mapping[str, Any], name: str) -> str:
        """`NAME_en` or `NAME_zh`, or the one that is for both."""
        return str(entry.get(f"{name}_{self.language}") or entry.get(name) or "")

    def head(self, name: str) -> str:
        """A word with the colon after it."""
        return f"{self.word(name)}{self.said('colon')}"

    def either(self, english: str, chinese: str) -> str:
        """One of two texts."""
        return (english, chinese)[self._index]

    def add(self, *lines: str) -> None:
        """Lines at the end."""
        self.lines += lines

    def table(self, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """A table of Markdown."""
        self.add("", _row(head), _row(["---"] * len(head)), *map(_row, rows), "")

    def text(self) -> str:
        """The page."""
        return "\n".join(self.lines).rstrip() + "\n"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _code(text: object) -> str:
    return f"``{text}``" if "`" in str(text) else f"`{text}`"


def _plain(text: str) -> str:
    """A text of the program, in which only what stands between backticks is marked."""
    parts = text.split("`")
    parts[::2] = [part.replace("*", "\\*").replace("<", "\\<") for part in parts[::2]]
    return "`".join(parts)


def _anchored(anchor: str, shown: str) -> str:
    return f'<a id="{anchor}"></a>{shown}'


def render(language: Language, data: Data | None = None) -> str:
    """The reference. Raises `IncompleteError` naming what is not described."""
    data = data or load()
    if found := problems(data):
        raise IncompleteError("\n".join(found))
    page = Page(language, data)
    page.add(*page.said("head").format(version=__version__).splitlines(), "")
    page.add(f"## {page.said('contents')}", "")
    contents = [
        ("verbs", page.said("verbs")),
        *((name, page.word(name, "areas")) for name in _used_areas(page)),
        ("contract", page.said("contract")),
        ("keys", "config.toml"),
        ("variables", page.said("environment_variables")),
        ("labels", page.said("labels_and_annotations")),
        ("codes", page.said("exit_codes")),
        ("reasons", page.said("reasons")),
    ]
    page.add(*(f"* [{title}](#area-{name})" for name, title in contents), "")
    titles = dict(contents)
    _verbs(page, titles["verbs"])
    for name in _used_areas(page):
        page.add(_anchored(f"area-{name}", ""), "", f"## {page.word(name, 'areas')}", "")
        for flag in page.flags:
            if flag.entry["area"] == name:
                _flag(page, flag)
    for name, part in (
        ("contract", _scripts),
        ("keys", _keys),
        ("variables", _variables),
        ("labels", _labels),
        ("codes", _codes),
        ("reasons", _reasons),
    ):
        page.add(_anchored(f"area-{name}", ""), "", f"## {titles[name]}", "")
        part(page)
    return page.text()


def _used_areas(page: Page) -> list[str]:
    used = {flag.entry["area"] for flag in page.flags}
    return [name for name in page.data.words["areas"] if name in used]


def _verbs(page: Page, title: str) -> None:
    page.add(_anchored("area-verbs", ""), "", f"## {title}", "")
    for name, verb in VERBS.items():
        entry = page.data.verbs[name]
        arguments = [one for one in declared.parameters() if one.verb == name and not one.is_flag]
        words = " ".join(_argument(one) for one in arguments)
        page.add(
            _anchored(f"verb-{name}", ""),
            "",
            f"### `ocis2i {name}{' ' + words if words else ''}`",
            "",
        )
        page.add(page.either(_plain(verb.help), entry["zh"]) + _more(page, entry), "")
        for one in arguments:
            text = page.either(_plain(one.help), entry["arguments"][one.name])
            page.add(f"* `{one.name.upper()}`{page.said('colon')}{text}")
        _flags_of(page, name)
        _examples(page, entry)
        page.add("")


# So many flags are read without being put in order.
_FEW = 12


def _flags_of(page: Page, verb: str) -> None:
    """The flags of a verb: many of them by chapter."""
    mine = [flag for flag in page.flags if any(one.verb == verb for one in flag.of_verbs)]
    if len(mine) <= _FEW:
        page.add(f"* {page.head('flags')}{_links(mine)}")
        return
    page.add(f"* {page.head('flags').rstrip()}")
    for area in _used_areas(page):
        if found := [flag for flag in mine if flag.entry["area"] == area]:
            page.add(f"  * {page.word(area, 'areas')}{page.said('colon')}{_links(found)}")


def _links(flags: Iterable[Flag]) -> str:
    return ", ".join(f"[`{flag.main.name}`](#{flag.anchor})" for flag in flags)


def _argument(one: Parameter) -> str:
    shown = one.name.upper() + ("…" if one.repeatable else "")
    return shown if one.required else f"[{shown}]"


def _more(page: Page, entry: Mapping[str, Any]) -> str:
    more = page.pick(entry, "more")
    return f" {more}" if more and page.language == "en" else more


def _flag(page: Page, flag: Flag) -> None:
    main, entry = flag.main, flag.entry
    also = [_code(name) for name in (*main.names, *main.off) if name != main.name]
    names = [f"{page.head('also')}{', '.join(also)}"] if also else []
    shown = f"`{main.name}`"
    variable = next((one for one in variables.OWN if one.flag == main.name), None)
    names += [f"[`{variable.name}`](#variable-{variable.name})"] if variable else []
    if main.name.removeprefix("--") in preferences.KEYS:
        names.append(f"{page.head('key')}`{main.name.removeprefix('--')}`")
    verb = flag.key.partition(" --")[0] if " --" in flag.key else ""
    page.add(
        _anchored(flag.anchor, ""), "", f"### {shown}{' (`' + verb + '`)' if verb else ''}", ""
    )
    if names:
        page.add(" · ".join(names), "")
    page.add(
        page.either(_plain(main.help or entry.get("en", "")), entry["zh"]) + _more(page, entry), ""
    )
    for text, verbs in variants(flag).items():
        listed = ", ".join(_code(one) for one in verbs)
        said = page.either(_plain(text), page.data.phrases[text])
        page.add(f"{page.word('with')} {listed}{page.said('colon')}{said}", "")
    page.add(f"* {page.head('verbs')}{_of_verbs(page, flag)}")
    page.add(f"* {page.head('type')}{_type(page, flag)}")
    page.add(f"* {_facts(page, entry)}")
    if same := _elsewhere(page, flag):
        page.add(f"* {page.head('elsewhere')}{same}")
    if wrong := page.pick(entry, "wrong"):
        listed = "".join(
            f"{page.said('space')}[`{one}`](#reason-{one})" for one in entry.get("reasons", ())
        )
        page.add(f"* {page.head('wrong')}{wrong}{listed}")
    _examples(page, entry)
    page.add("")


def _of_verbs(page: Page, flag: Flag) -> str:
    found = [f"[`{one.verb}`](#verb-{one.verb.split()[0]})" for one in flag.of_verbs if one.verb]
    hidden = all(one.hidden for one in flag.of_verbs if not one.verb)
    if any(not one.verb for one in flag.of_verbs):
        more = f" ({page.word('hidden')})" if hidden else ""
        found.append(page.word("before") + more)
    notes = [page.word("deprecated")] if flag.main.deprecated else []
    notes += [page.word("hidden")] if flag.main.hidden else []
    return ", ".join(found) + "".join(f" · {note}" for note in notes)


def _values(entry: Mapping[str, Any]) -> tuple[str, ...]:
    """The words that a flag takes; none where it takes more than words."""
    values = entry.get("values")
    return declared.values_of(values) if isinstance(values, str) else tuple(values or ())


def _type(page: Page, flag: Flag) -> str:
    main, entry = flag.main, flag.entry
    words = _values(entry)
    parts = [page.word("choice" if words else main.kind, "kinds")]
    if words:
        parts[0] += page.said("colon") + ", ".join(_code(one) for one in words)
    elif main.metavar:
        parts[0] += f" {_code(main.metavar)}"
    if main.smallest is not None:
        largest = f" {page.word('to')} {main.largest}" if main.largest is not None else "+"
        parts.append(f"{main.smallest}{largest}")
    parts += [page.word("repeatable")] if main.repeatable else []
    parts += [page.word("required")] if main.required else []
    default = _default(page, main, entry)
    if default:
        parts.append(page.head("default") + default)
    return page.said("semicolon").join(parts)


def _default(page: Page, main: Parameter, entry: Mapping[str, Any]) -> str:
    if said := page.pick(entry, "default"):
        return said
    if main.kind == "switch":
        return page.word("on" if main.default else "off")
    return _code(main.default) if main.default is not None else ""


def _facts(page: Page, entry: Mapping[str, Any]) -> str:
    acts = entry.get("acts", ["verb"])
    image = entry.get("image", ["no"])
    comma = page.said("comma")
    said = [
        f"{page.head('acts')}{comma.join(page.word(one, 'acts') for one in acts)}",
        f"{page.head('image')}{comma.join(page.word(one, 'in_image') for one in image)}",
    ]
    said += [page.word("secret")] if entry.get("secret") else []
    said += [f"{page.word('since')} {entry['since']}"] if entry.get("since") else []
    return page.said("semicolon").join(said)


def _elsewhere(page: Page, flag: Flag) -> str:
    found = []
    for tool, shown in TOOLS.items():
        theirs = [
            _code(row[0])
            for row in page.data.tables.get(tool, ())
            if any(_means(one.strip(), flag) for one in row[1].split(","))
        ]
        if theirs:
            found.append(f"{shown} {', '.join(dict.fromkeys(theirs))}")
    return page.said("semicolon").join(found)


def _means(said: str, flag: Flag) -> bool:
    """Whether a word of a table is this flag, by itself or with a verb of it."""
    verb, _, name = said.rpartition(" ")
    return said == flag.key or (name == flag.key and any(one.verb == verb for one in flag.of_verbs))


def _examples(page: Page, entry: Mapping[str, Any]) -> None:
    for example in examples_of(entry):
        page.add(f"* {page.head('example')}{_code('ocis2i ' + example)}")


def examples_of(entry: Mapping[str, Any]) -> list[str]:
    """The command lines of an entry, without the program's name."""
    said = entry.get("example", ())
    return [said] if isinstance(said, str) else list(said)


def _scripts(page: Page) -> None:
    page.add(page.said("contract_head"), "")
    for name in SCRIPT_NAMES:
        entry = page.data.scripts[name]
        need = page.word("required" if name in REQUIRED_SCRIPTS else "optional")
        page.add(_anchored(f"script-{name}", ""), "", f"### `{name}`", "")
        page.add(
            f"{page.either(entry['en'], entry['zh'])}{page.said('open')}{need}{page.said('close')}",
            "",
        )
        page.add(*(f"* {page.head(key)}{page.pick(entry, key)}" for key in _ABOUT_SCRIPTS))
        page.add("", "```sh", *entry["example"].strip().splitlines(), "```", "")


_ABOUT_SCRIPTS = ("where", "user", "stdin", "stdout", "arguments_of", "exit")


def _keys(page: Page) -> None:
    page.add(page.said("keys_head"))
    by_name = {flag.key: flag for flag in page.flags}
    rows = []
    for key in preferences.KEYS:
        flag = by_name[f"--{key}"]
        kind = page.said("list") if key in preferences._LISTS else page.said("text_or_number")
        text = page.either(_plain(flag.main.help), flag.entry["zh"])
        rows.append(
            [_anchored(f"key-{key}", _code(key)), f"[`--{key}`](#{flag.anchor})", kind, text]
        )
    page.table(
        [
            page.said("key"),
            page.word("flag"),
            page.word("type"),
            page.said("meaning"),
        ],
        rows,
    )


def _variables(page: Page) -> None:
    own = {one.name: one for one in variables.OWN}
    rows = []
    for name in sorted(
        page.data.variables, key=lambda one: (one not in own, one[0] == "_", one.lower(), one)
    ):
        entry, mine = page.data.variables[name], own.get(name)
        kind = page.word(mine.kind if mine else entry.get("kind", "text"), "kinds")
        flag = next((one for one in page.flags if mine and one.key == mine.flag), None)
        words = (mine.values if mine else ()) or (_values(flag.entry) if flag else ())
        kind += page.said("colon") + ", ".join(_code(one) for one in words) if words else ""
        text = page.either(entry["en"], entry["zh"])
        if flag:
            text += f" → [`{flag.key}`](#{flag.anchor})"
        text += (
            page.said("open") + page.word("secret") + page.said("close")
            if (mine and mine.secret) or entry.get("secret")
            else ""
        )
        rows.append([_anchored(f"variable-{name}", _code(name)), kind, text])
    page.add(page.said("variables_head"))
    page.table([page.said("variable"), page.word("type"), page.said("meaning")], rows)


def _labels(page: Page) -> None:
    page.add(page.said("labels_head"))
    rows = [
        [
            _anchored(f"label-{name}", _code(name)),
            ", ".join(entry["where"]),
            page.either(entry["en"], entry["zh"]),
        ]
        for name, entry in sorted(page.data.labels.items())
    ]
    page.table(
        [
            page.said("label"),
            page.said("where"),
            page.said("meaning"),
        ],
        rows,
    )


def _codes(page: Page) -> None:
    rows = [
        [_anchored(f"code-{code}", str(code)), page.either(entry["en"], entry["zh"])]
        for code in declared.exit_codes()
        for entry in [page.data.codes[str(code)]]
    ]
    page.table([page.said("code"), page.said("what_failed")], rows)


def _reasons(page: Page) -> None:
    rows = [
        [_anchored(f"reason-{name}", _code(name)), page.either(text, page.data.reasons[name]["zh"])]
        for name, text in declared.reasons().items()
    ]
    page.table([page.said("reason"), page.said("what_went_wrong")], rows)


# --- coming from ------------------------------------------------------------------------------


def render_coming_from(language: Language, data: Data | None = None) -> str:
    """The tables of what other tools call our things."""
    page = Page(language, data or load())
    page.add(
        page.said("coming_from_title"),
        "",
        page.said("coming_from_head"),
        "",
    )
    for tool in TOOLS:
        page.add(page.word(tool, "tools"))
        rows = [
            [_code(theirs), _ours(page, ours), page.either(english, chinese)]
            for theirs, ours, english, chinese in page.data.tables[tool]
        ]
        page.table([page.said("theirs"), "ocis2i", page.said("note")], rows)
    return page.text()


def _ours(page: Page, ours: str) -> str:
    if not ours:
        return "—"
    return ", ".join(_linked(page, one.strip()) for one in ours.split(","))


def _linked(page: Page, said: str) -> str:
    name = said.rpartition(" ")[2]
    keys = {flag.key: flag for flag in page.flags}
    flag = keys.get(said) or keys.get(name)
    if flag:
        return (
            f"[{_code(said)}](reference{'.zh' if page.language == 'zh' else ''}.md#{flag.anchor})"
        )
    return _code(said)


# --- the program ------------------------------------------------------------------------------


def pages() -> Iterator[tuple[Path, str]]:
    """Every page with its text."""
    for language in LANGUAGES:
        yield PAGES[language], render(language)
        yield COMING_FROM[language], render_coming_from(language)


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the pages, or with `--check` only says whether they are current; the exit code."""
    options = check_parser("reference").parse_args(arguments)
    try:
        made = list(pages())
    except IncompleteError as error:
        sys.stderr.write(f"{error}\n\nerror: the above is to be put right in docs/reference/\n")
        return 1
    return max(
        write_or_check(path, text, program="reference", check=options.check) for path, text in made
    )
