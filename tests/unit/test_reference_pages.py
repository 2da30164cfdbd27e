"""The reference is what the program accepts, in both languages, and its examples can be typed."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_type_hints

import pytest

from ocis2i import completion, preferences, variables
from ocis2i.commands import building
from ocis2i.commands.application import VERBS
from ocis2i.commands.build_spec import build_spec
from ocis2i.errors import UsageError
from ocis2i.isolation import buildah
from ocis2i.s2i import SCRIPT_NAMES
from ocis2i.settings import LAST_SECOND, Settings
from tests import declared
from tests.contract_rows import GROUPS
from tests.declared import PROJECT, reads
from tests.reference_pages import (
    COMING_FROM,
    LANGUAGES,
    PAGES,
    Data,
    IncompleteError,
    Language,
    examples_of,
    grouped,
    load,
    main,
    render,
)

DATA = load()
CHINESE = re.compile(r"[\u4e00-\u9fff]")
NARRATIVE = ["docs/why.md", "docs/why.zh.md", "docs/glossary.md", "README.zh.md"]


def _quoted(texts: list[str]) -> list[str]:
    return [name for text in texts for name in re.findall(r"`([^`]*)`", text)]


@pytest.fixture(scope="module")
def pages() -> Mapping[Language, str]:
    return {language: PAGES[language].read_text() for language in LANGUAGES}


def sections(page: str) -> Iterator[tuple[str, str]]:
    """The anchor and the text of each entry."""
    for part in page.split('\n<a id="')[1:]:
        anchor, _, text = part.partition('"')
        yield anchor, text


def anchors(page: str) -> set[str]:
    return set(re.findall(r'<a id="([^"]+)"', page))


def test_the_pages_are_current(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check"]) == 0, capsys.readouterr().err


def test_both_languages_have_the_same_entries(pages: Mapping[Language, str]) -> None:
    assert anchors(pages["en"]) == anchors(pages["zh"])
    assert len(anchors(pages["en"])) > 200


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_flags_of_the_page_are_those_that_the_program_takes(
    pages: Mapping[Language, str], language: Language
) -> None:
    """By the verb and every name, whoever is hidden or deprecated too."""
    before = DATA.words["words"]["before"][LANGUAGES.index(language)]
    found: set[tuple[str, str]] = set()
    for anchor, text in sections(pages[language]):
        if not anchor.startswith("flag-"):
            continue
        also, of_verbs = (
            DATA.words["words"][one][LANGUAGES.index(language)] for one in ("also", "verbs")
        )
        colon = DATA.words["texts"]["colon"][LANGUAGES.index(language)]
        names = re.findall(r"^### `(-[^`]*)`", text, re.MULTILINE)
        names += _quoted(re.findall(rf"^{also}{colon}([^·\n]*)", text, re.MULTILINE))
        line = re.findall(rf"^\* {of_verbs}{colon}(.*)$", text, re.MULTILINE)
        verbs = re.findall(r"\[`([^`]+)`\]", line[0]) + ([""] if before in line[0] else [])
        found |= {(verb, name) for verb in verbs for name in names}
    assert found == accepted()


def accepted() -> set[tuple[str, str]]:
    """What the option parser itself says: each verb with each of its flags' names."""
    program = declared.program()
    commands = {"": program, **{name: program.verb(name) for name in VERBS}}
    return {
        (verb, name)
        for verb, command in commands.items()
        for one in command.params
        if one.param_type_name == "option" and one.name != "help"
        for name in (*one.opts, *one.secondary_opts)
    }


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_verbs_and_arguments_of_the_page_are_the_program_s(
    pages: Mapping[Language, str], language: Language
) -> None:
    found = {
        anchor.removeprefix("verb-")
        for anchor in anchors(pages[language])
        if anchor.startswith("verb-")
    }
    assert found == set(VERBS)
    for anchor, text in sections(pages[language]):
        if anchor.startswith("verb-"):
            command = declared.program().verb(anchor.removeprefix("verb-"))
            arguments = [one.name for one in command.params if one.param_type_name == "argument"]
            assert re.findall(r"^\* `([A-Z_]+)`[^`\w]", text, re.MULTILINE) == [
                one.upper() for one in arguments
            ]


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_keys_of_the_page_are_those_that_the_file_may_have(
    pages: Mapping[Language, str], language: Language
) -> None:
    found = {one.removeprefix("key-") for one in anchors(pages[language]) if one.startswith("key-")}
    assert found == set(preferences.KEYS)
    with pytest.raises(UsageError, match="unknown key `nothing`"):
        preferences.parse(b"nothing = 1", "config.toml")


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("label", declared.labels()),
        ("code", {str(code) for code in declared.exit_codes()}),
        ("reason", set(declared.reasons())),
    ],
)
def test_labels_codes_and_reasons_of_the_page_are_those_of_the_code(
    pages: Mapping[Language, str], language: Language, kind: str, names: set[str]
) -> None:
    found = {one for one in anchors(pages[language]) if one.startswith(f"{kind}-")}
    assert found == {f"{kind}-{name}" for name in names}


# --- variables --------------------------------------------------------------------------------


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_variables_of_the_page_are_those_that_are_read(
    pages: Mapping[Language, str], language: Language
) -> None:
    found = {
        one.removeprefix("variable-")
        for one in anchors(pages[language])
        if one.startswith("variable-")
    }
    by_libraries = {name for name, entry in DATA.variables.items() if entry.get("read_by")}
    assert found == declared.variables_of_code() | by_libraries


def test_a_variable_of_ocis2i_s_own_is_declared() -> None:
    assert declared.own_names_in_code() <= {one.name for one in variables.OWN}


def test_every_look_into_the_environment_is_understood() -> None:
    assert declared.unexplained_reads() == [], "give ELSEWHERE of tests/declared.py its names"


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ('os.environ.get("NEW")', "NEW"),
        ('os.environ["NEW"]', "NEW"),
        ('"NEW" in os.environ', "NEW"),
        ('settings.environment.get("NEW", "")', "NEW"),
        ('NAME = "NEW"\ndef f(environ): return environ.get(NAME)', "NEW"),
        ("def f(environ, name): return environ[name]", None),
    ],
)
def test_a_variable_that_is_read_anyhow_is_seen(code: str, name: str | None) -> None:
    assert [one.name for one in reads(ast.parse(code), "new.py")] == [name]


def test_what_is_declared_elsewhere_is_the_same() -> None:
    assert variables.COMPLETE.name == completion.VARIABLE
    assert variables.BUILDAH_ISOLATION.values == declared.values_of("ocis2i.isolation.buildah:Mode")
    assert buildah.Mode is not None
    assert variables.SOURCE_DATE_EPOCH.largest == LAST_SECOND
    assert len({one.name for one in variables.OWN}) == len(variables.OWN)
    flags = {one.name for one in declared.flags()}
    assert {one.flag for one in variables.OWN if one.flag} <= flags


@pytest.mark.parametrize(
    ("text", "said"),
    [("2", "X is `2`"), ("yes", "X is `yes`"), ("-1", "X is `-1`"), ("9" * 99, "X is `9999")],
)
def test_a_variable_with_a_value_of_another_kind_is_refused(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        variables.Variable("X", "switch").is_on({"X": text})
    assert caught.value.hint == "it must be 1 or 0"
    with pytest.raises(UsageError, match=said) as caught:
        variables.Variable("X", "number", unit="bytes", largest=1).number({"X": text})
    assert caught.value.hint == "it must be a number of bytes, 1 at most"


def test_an_empty_variable_is_one_that_is_not_set() -> None:
    one = variables.Variable("X")
    assert (one.text({"X": ""}), one.is_on({"X": ""}), one.number({"X": ""})) == (None, False, None)


# --- the words --------------------------------------------------------------------------------


def test_what_nobody_describes_is_named_as_a_line_to_fill_in() -> None:
    flags = {name: entry for name, entry in DATA.flags.items() if name != "--incremental"}
    poor = Data(**{**{name: getattr(DATA, name) for name in Data.__slots__}, "flags": flags})
    with pytest.raises(IncompleteError, match=r'\[flags\."--incremental"\]  # Go on from'):
        render("zh", poor)


def test_what_is_described_and_gone_is_named() -> None:
    flags = {**DATA.flags, "--gone": {"zh": "无", "area": "source"}}
    rich = Data(**{**{name: getattr(DATA, name) for name in Data.__slots__}, "flags": flags})
    with pytest.raises(IncompleteError, match=r'\[flags\."--gone"\] is described'):
        render("en", rich)


def texts(entry: object) -> Iterator[tuple[str, str]]:
    """Every text of an entry with its key."""
    if isinstance(entry, dict):
        for key, value in entry.items():
            if isinstance(value, str):
                yield key, value
            else:
                yield from texts(value)


def test_chinese_is_chinese_and_english_is_not() -> None:
    for kind in ("verbs", "flags", "variables", "labels", "codes", "reasons", "scripts"):
        for key, text in texts(getattr(DATA, kind)):
            if key == "zh" or key.endswith("_zh"):
                assert CHINESE.search(text) or re.fullmatch(r"`\w+`", text), text
            elif key == "en" or key.endswith("_en"):
                assert not CHINESE.search(text), text
    for rows in DATA.tables.values():
        for theirs, _, english, chinese in rows:
            assert CHINESE.search(chinese), (theirs, chinese)
            assert english, theirs
            assert not CHINESE.search(english), (theirs, english)


def test_what_is_said_in_one_language_is_said_in_the_other() -> None:
    for name, entry in DATA.flags.items():
        for key in ("more", "wrong", "default"):
            assert (f"{key}_en" in entry) == (f"{key}_zh" in entry), f"{name}: {key}"


@pytest.mark.parametrize("path", [*PAGES.values(), *COMING_FROM.values()], ids=lambda one: one.name)
def test_links_inside_the_pages_have_an_end(path: Path) -> None:
    links = set(re.findall(r"\]\(([\w.-]*)#([^)]+)\)", path.read_text()))
    for page in {page for page, _ in links}:
        target = path.parent / page if page else path
        assert {anchor for one, anchor in links if one == page} <= anchors(target.read_text())


# --- examples ---------------------------------------------------------------------------------

EXAMPLES = [
    (kind, name, example)
    for kind in ("verbs", "flags")
    for name, entry in getattr(DATA, kind).items()
    for example in examples_of(entry)
]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the files that examples name."""
    here = tmp_path_factory.mktemp("workplace")
    for name in (".netrc", "build.env", "app.jar"):
        (here / name).write_text("# a file\n")
    (here / "parameters.toml").write_text("PYTHON_VERSION = '3.11'")
    (here / ".m2").mkdir()
    return here


@pytest.mark.parametrize(("kind", "name", "example"), EXAMPLES)
def test_an_example_is_read_by_the_option_parser(
    kind: str, name: str, example: str, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(workplace))
    words = [
        word.replace("~/", f"{workplace}/").replace("$HOME", str(workplace))
        for word in shlex.split(example)
    ]
    program = declared.program()
    outer = program.make_context("ocis2i", list(words), resilient_parsing=False)
    rest = [*outer._protected_args, *outer.args]
    if kind == "flags":
        _, _, flag = name.rpartition(" ")
        used = {*_names(program, outer.params), *_used(rest)}
        assert flag in used or set(_same(flag)) & used, f"the example has no {flag}"
    if not rest:
        return
    verb = rest[0]
    command = program.verb(verb)
    assert command is not None, verb
    inner = command.make_context(verb, rest[1:], parent=outer)
    if verb == "build":
        assert_values(inner.params, workplace)


def assert_values(values: dict[str, Any], workplace: Path) -> None:
    """What the parser leaves as text means something, too."""
    kind = get_type_hints(building.build_image)["flags"]
    settings = Settings.from_environ({"HOME": str(workplace), "NPM_TOKEN": "token"})
    here = SimpleNamespace(
        tools=SimpleNamespace(settings=settings, cwd=workplace),
        recorder=SimpleNamespace(warn=lambda text: None),
    )
    build_spec(kind(**values), here)  # type: ignore[arg-type]


def _names(program: Any, values: Mapping[str, Any]) -> set[str]:
    return {name for one in program.params if values.get(one.name) for name in one.opts}


def _used(words: list[str]) -> set[str]:
    return {word.partition("=")[0] for word in words if word.startswith("-")}


def _same(flag: str) -> list[str]:
    return [name for one in declared.flags() if one.name == flag for name in (*one.names, *one.off)]


@pytest.mark.parametrize("name", SCRIPT_NAMES)
def test_an_example_of_a_script_is_shell(name: str) -> None:
    done = subprocess.run(["sh", "-n"], input=DATA.scripts[name]["example"], text=True, check=False)
    assert done.returncode == 0


def test_a_flag_that_does_something_has_an_example() -> None:
    for flag in grouped(DATA):
        shown = any(not one.hidden for one in flag.of_verbs)
        assert examples_of(flag.entry) or flag.entry["area"] == "docker" or not shown, flag.key


# --- coming from ------------------------------------------------------------------------------


def known_words() -> set[str]:
    flags = {name for _, name in accepted()}
    of_verbs = {f"{verb} {name}" for verb, name in accepted() if verb}
    return {*flags, *of_verbs, *VERBS, "SOURCE", "BUILDER", "TAG", *declared.variables_of_code()}


@pytest.mark.parametrize("tool", ["s2i", "kubesphere", "buildconfig", "kaniko"])
def test_what_a_table_calls_ours_is_there(tool: str) -> None:
    for theirs, ours, english, _ in DATA.tables[tool]:
        words = [one.strip() for one in ours.split(",") if one.strip()]
        assert set(words) <= known_words(), theirs
        says_why = re.search(r"because|the same|no equivalent", english)
        assert words or says_why, f"{theirs}: say why there is none"
    fields = [row[0] for row in DATA.tables[tool]]
    assert len(fields) == len(set(fields))


def test_every_flag_of_the_contract_is_in_the_table_of_s2i() -> None:
    flags = {row.id for group in GROUPS for row in group.rows if re.fullmatch(r"--[a-z-]+", row.id)}
    assert flags
    assert flags - {"--help"} <= {row[0] for row in DATA.tables["s2i"]}


@pytest.mark.parametrize("page", NARRATIVE)
def test_flags_and_verbs_that_the_narrative_names_are_there(page: str) -> None:
    text = (PROJECT / page).read_text()
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text))
    assert named <= {name for _, name in accepted()}
    verbs = set(re.findall(r"(?:^|`|\$ )ocis2i ([a-z]+)\b", text, re.MULTILINE))
    assert verbs <= set(VERBS), verbs - set(VERBS)


def test_each_narrative_page_has_its_other_language_and_a_link_to_it() -> None:
    for english, chinese in (
        ("docs/why.md", "docs/why.zh.md"),
        ("docs/coming-from.md", "docs/coming-from.zh.md"),
        ("docs/reference.md", "docs/reference.zh.md"),
        ("README.md", "README.zh.md"),
    ):
        assert f"({Path(chinese).name})" in (PROJECT / english).read_text(), english
        assert f"({Path(english).name})" in (PROJECT / chinese).read_text(), chinese
        heads = [
            len(re.findall(r"^## ", (PROJECT / one).read_text(), re.MULTILINE))
            for one in (english, chinese)
        ]
        assert heads[0] == heads[1], english


def shape(page: str) -> list[str]:
    """What a page is made of, without its words: headings, rows of tables, and code."""
    found, in_code = [], False
    for line in (PROJECT / page).read_text().splitlines():
        in_code ^= line.startswith("```")
        if line.startswith("```"):
            found.append(line)
        elif in_code:
            # Of a line of commands what is typed; what is said of it is in another language.
            found.append(re.split(r"  +|(?<=\S)\s+#", line.strip())[0])
        elif line.startswith("#"):
            found.append(line.split()[0])
        elif line.startswith("|"):
            found.append(f"{line.count('|')} columns")
    return found


@pytest.mark.parametrize("english", ["README.md", "docs/coming-from.md"])
def test_both_languages_have_the_same_headings_rows_and_commands(english: str) -> None:
    assert shape(english) == shape(english.replace(".md", ".zh.md"))


def test_the_page_on_why_has_the_same_headings_rows_and_points_in_both_languages() -> None:
    # Its pictures are drawn with words.
    both = []
    for page in ("docs/why.md", "docs/why.zh.md"):
        text = (PROJECT / page).read_text()
        rows = [line.count("|") for line in text.splitlines() if line.startswith("|")]
        heads = re.findall(r"^#+", text, re.MULTILINE)
        points = len(re.findall(r"^\* ", text, re.MULTILINE))
        both.append((heads, rows, points, re.findall(r"^ocis2i .*", text, re.MULTILINE)))
    assert both[0] == both[1]


def test_the_front_pages_lead_to_the_same_documents() -> None:
    english, chinese = (
        {
            target.replace(".zh.md", ".md")
            for target in re.findall(r"\]\((?!https?:)([^)#]+)", (PROJECT / page).read_text())
        }
        for page in ("README.md", "README.zh.md")
    )
    assert english == chinese


def chinese_texts() -> Iterator[str]:
    for page in ("README.zh.md", "docs/why.zh.md", "docs/glossary.md"):
        yield from (PROJECT / page).read_text().splitlines()
    for kind in ("verbs", "flags", "variables", "labels", "codes", "reasons", "scripts", "words"):
        yield from (text for _, text in texts(getattr(DATA, kind)))
    yield from (row[3] for rows in DATA.tables.values() for row in rows)


def test_chinese_has_its_own_punctuation_and_one_word_for_a_thing() -> None:
    for text in chinese_texts():
        if not CHINESE.search(text):
            continue
        bare = re.sub(r"`[^`]*`|\]\([^)]*\)", "X", text)
        assert not re.search(r"[\u4e00-\u9fff][,;:!?()]|[,;:!?(][\u4e00-\u9fff]", bare), text
        # A registry is 镜像仓库, a repository of sources git 仓库; docs/glossary.md has the words.
        assert not re.search("(?<!镜像)(?<!git )仓库|您|映像|注册表|存储库|秘密", bare), text


def test_links_of_the_chinese_front_page_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", (PROJECT / "README.zh.md").read_text()):
        assert (PROJECT / target).exists(), target
