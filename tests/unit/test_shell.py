"""Shell scripts are read as a shell does, whatever is in quotes, comments and here-documents."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ocis2i.shell import MOST_COMMANDS, Command, ShellError, parse

PROJECT = Path(__file__).parents[2]


def commands(text: str) -> list[Command]:
    return list(parse(text).commands)


def texts(text: str) -> list[list[str]]:
    return [[word.text for word in one.words] for one in commands(text)]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("echo a b", [["echo", "a", "b"]]),
        ("echo a; echo b && echo c || echo d &", [["echo", one] for one in "abcd"]),
        ("echo 'a b' \"c d\" e\\ f", [["echo", "a b", "c d", "e f"]]),
        ("echo a\\\n b", [["echo", "a", "b"]]),
        ("echo # exec x\n# exec y\necho b#c", [["echo"], ["echo", "b#c"]]),
        ("echo 'it''s # no' \"# comment\"", [["echo", "its # no", "# comment"]]),
        ("cat <<EOF\nexec x\nEOF\necho b", [["cat"], ["echo", "b"]]),
        ("cat <<-'A' <<B\n\tone\n\tA\ntwo\nB\necho", [["cat"], ["echo"]]),
        ("if true; then echo a; else echo b; fi", [["true"], ["echo", "a"], ["echo", "b"]]),
        ("for x in a b; do echo $x; done", [["for", "x", "in", "a", "b"], ["echo", "$x"]]),
        ("for ((i=0;i<3;i++)); do echo; done", [["for"], ["echo"]]),
        ("while read -r x; do echo; done <f", [["read", "-r", "x"], ["echo"]]),
        (
            "case $1 in\n a|b) echo a;;\n (c) echo c ;;\n *) echo d\nesac",
            [["case", "$1", "in"], ["echo", "a"], ["echo", "c"], ["echo", "d"]],
        ),
        ("case x in a) ;; esac; echo", [["case", "x", "in"], ["echo"]]),
        ("f() { echo a; }\nf", [["echo", "a"], ["f"]]),
        ("function f { echo a; }; f", [["echo", "a"], ["f"]]),
        ("f() (echo a)\nf", [["echo", "a"], ["f"]]),
        ("(cd x && echo a) | cat", [["cd", "x"], ["echo", "a"], ["cat"]]),
        ("[[ -f x && $y == a* ]] && echo", [["[[", "-f", "x", "$y", "==", "a*"], ["echo"]]),
        ("[[ $x =~ ^(a|b)$ ]] || echo", [["[[", "$x", "=~", "^(a|b)$"], ["echo"]]),
        ("((x++)); echo $((1 + (2))) a", [[], ["echo", "", "a"]]),
        ("x=(a 'b c' $(ls)) y=1 env", [["ls"], ["env"]]),
        ('x=${y:-\'}\'} echo "${z:+"a b"}"', [["echo", '${z:+"a b"}']]),
        ("echo $(case a in a) echo b;; esac)", [["case", "a", "in"], ["echo", "b"], ["echo", ""]]),
        ('echo "$(echo "$(echo \')\')")"', [["echo", ")"], ["echo", ""], ["echo", ""]]),
        ("echo `ls \\`pwd\\``", [["pwd"], ["ls", ""], ["echo", ""]]),
        ("diff <(ls a) <(ls b)", [["ls", "a"], ["ls", "b"], ["diff", "", ""]]),
        ("echo $'a\\'b' $\"c\"", [["echo", "a\\'b", "c"]]),
        ("echo a >f 2>&1 b", [["echo", "a", "b"]]),
        ("! echo a", [["echo", "a"]]),
        ("{ echo a; echo b; } >&2", [["echo", "a"], ["echo", "b"]]),
        (
            "if true; then\n  echo a # fi\nfi # done\n\n\necho b",
            [["true"], ["echo", "a"], ["echo", "b"]],
        ),
        ("", []),
    ],
)
def test_a_script_is_its_commands(text: str, found: list[list[str]]) -> None:
    assert texts(text) == found


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("echo a", True),
        ("echo a >f", False),
        ("echo a >&2", False),
        ("echo a 2>/dev/null", True),
        ("echo a | cat >f", False),
        ("x=$(echo a)", False),
        ("{ echo a; } >&2", False),
        ("if true; then echo a; fi | cat >f", False),
        ("for x in 1; do echo a; done >f", False),
        ("for x in 1; do echo a; done; ls >f", True),
        ("(echo a) &>f", False),
        ("echo a &>>f", False),
        ("echo a <f", True),
    ],
)
def test_where_output_goes_is_known(text: str, shown: bool) -> None:
    assert any(one.name == "echo" and not one.elsewhere for one in commands(text)) == shown


def test_words_know_what_stands_outside_of_quotes() -> None:
    (command,) = commands('mv $1 "$2" "a"$(: ) ${x}y "$@" $@\n')[1:]
    assert [word.bare for word in command.words[1:]] == [
        ("$1",),
        (),
        ("$(: )",),
        ("${x}",),
        (),
        ("$@",),
    ]
    assert command.words[5].expansions == ("$@",)


def test_lines_and_comments_are_counted() -> None:
    script = parse("#!/bin/sh\n# one\ncat <<E\na\nE\necho \\\n a # two\nf() {\n  ls\n}\n")
    assert script.comments == ((1, "!/bin/sh"), (2, "one"), (7, "two"))
    assert [(one.name, one.line, one.function) for one in script.commands] == [
        ("cat", 3, ""),
        ("echo", 6, ""),
        ("ls", 9, "f"),
    ]
    assert script.commands[0].body == ["a"]


@pytest.mark.parametrize(
    ("text", "line", "why"),
    [
        ("echo 'a\n", 1, "has no end"),
        ('echo\necho "a\n', 2, "has no end"),
        ("if true; then echo\n", 1, "`if` has no end"),
        ("fi", 1, "closes nothing"),
        ("echo )", 1, "closes nothing"),
        ("echo $(ls", 1, "has no `)`"),
        ("echo ${a", 1, "has no `}`"),
        ("cat <<E\na\n", 2, "has no end"),
        ("cat <<E", 1, "has no end"),
        ("echo >", 1, "nothing follows"),
        ("echo (a)", 1, "none can be"),
        ("$(" * 60, 1, "deeper"),
        ("(" * 500, 1, "too deep"),
        ('"${a:-' * 5000, 1, "deeper"),
        ("`\\`" * 5000, 1, "has no end"),
    ],
)
def test_what_is_no_script_is_told_with_its_line(text: str, line: int, why: str) -> None:
    with pytest.raises(ShellError) as caught:
        parse(text)
    assert caught.value.line == line
    assert why in caught.value.message


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from("ab '\"$(){}[]`\\;&|<>\n#=!*?-1"), max_size=30))
def test_no_text_breaks_the_reader(text: str) -> None:
    try:
        parse(text)
    except ShellError as error:
        assert error.message


def scripts_of_this_machine() -> list[Path]:
    found = [one for one in sorted(PROJECT.glob("scripts/*")) if one.is_file()]
    found += sorted(Path("/usr/bin").glob("*"))[:2500]
    return [one for one in found if is_script(one)]


def is_script(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return b"sh" in file.readline(64).partition(b"#!")[2].split(b"/")[-1][:5]
    except OSError:
        return False


def test_real_scripts_that_a_shell_reads_are_read() -> None:
    unread = {}
    for path in scripts_of_this_machine():
        try:
            parse(path.read_text())
        except (ShellError, UnicodeDecodeError) as error:
            good = subprocess.run(["bash", "-n", path], capture_output=True, check=False)
            if good.returncode == 0:
                unread[str(path)] = f"{getattr(error, 'line', 0)}: {error}"
    assert unread == {}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("function f { ls; }\nf", [(1, "function")]),
        ("ls\nx=(a b)\ndeclare -a y=(c)", [(2, "an array"), (3, "an array")]),
        ("ls &>f\nls &>>f\nls <<<x", [(1, "&>"), (2, "&>>"), (3, "<<<")]),
        ("ls |& cat", [(1, "|&")]),
        ("diff <(ls) >(cat)", [(1, "<(...)"), (1, ">(...)")]),
        ("((a++))\nfor ((;;)); do ls; done", [(1, "((...))"), (2, "for ((...))")]),
        ("echo $'a' \"${x:1}\" ${x//a/b}", [(1, "$'...'"), (1, "${x:...}"), (1, "${x/...}")]),
        ("echo ${!x} ${x^} ${x[1]} ${@:2}", [(1, "${!x...}"), (1, "${x^...}"), (1, "${x[...}"),
                                             (1, "${@:...}")]),
        ('echo "$(\n  ls <(ls)\n)"', [(2, "<(...)")]),
        ("echo ${x:-a} ${x:=b} ${x:?c} ${x:+d} ${x-e} ${#x} ${x#*/} ${x%%/*} ${?} ${10} ${@}", []),
        ("echo $((1 << 2)) '<(' \"&> x=(a)\" # <<<", []),
        ("cat <<E\n((a)) <(b) $'c' ${x:1}\nE\n", []),
    ],
)  # fmt: skip
def test_what_posix_has_not_is_told_with_its_line(text: str, found: list[tuple[int, str]]) -> None:
    assert list(parse(text).beyond) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        # Delimiters of here-documents with quotes, blanks, and an expansion that is none.
        ("cat <<'E F'\n$(\nE F\nls", [["cat"], ["ls"]]),
        ("cat <<\\E\n`\nE\nls", [["cat"], ["ls"]]),
        ('cat <<"a$b"\n"\na$b\nls', [["cat"], ["ls"]]),
        ("if cat <<E; then\nfi\nE\nls\nfi", [["cat"], ["ls"]]),
        ("x=$(cat <<E\n)\nE\n)\nls", [["cat"], [], ["ls"]]),
        ("cat <<A <<-B | ls\nA\n\tB\nls", [["cat"], ["ls"], ["ls"]]),
        # Parentheses that close nothing.
        ("case $(ls) in (a|b) ls;; *')'*) :;; esac", [["case", "", "in"], ["ls"], ["ls"], [":"]]),
        ("echo $(case x in y) ls;; (z) :;; esac)", [["case", "x", "in"], ["ls"], [":"],
                                                  ["echo", ""]]),
        ("echo $((1 + (2 * (3))) ) )$(ls)", None),
        ("echo $( (ls) ) $((ls) | cat)", [["ls"], ["ls"], ["cat"], ["echo", "", ""]]),
        ("echo \"${x:-$(echo \"${y:-')'}\")}\"", [["echo", "${y:-')'}"],
                                                 ["echo", "${x:-$(echo \"${y:-')'}\")}"]]),
        ('echo "a`ls "b c"`d"', [["ls", "b c"], ["echo", "ad"]]),
        ("f () { ls; }; g() if :; then ls; fi", [["ls"], [":"], ["ls"]]),
        ("time ls; ! ls", [["ls"], ["ls"]]),
        ("for x in <(ls) >(a); do b; done", [["for", "x", "in", "", ""], ["ls"], ["a"], ["b"]]),
        ("case <(ls) in a) b;; esac", [["case", "", "in"], ["ls"], ["b"]]),
        ("echo {a,b} }x if fi\\\n done", [["echo", "{a,b}", "}x", "if", "fi", "done"]]),
        ("ls \\\r\n", [["ls", "\r"]]),
        ("ls 2>&1 >/dev/null <&- 3<>f >|g", [["ls"]]),
    ],
)  # fmt: skip
def test_odd_scripts_are_read_as_bash_reads_them(text: str, found: list[list[str]] | None) -> None:
    good = subprocess.run(["bash", "-n"], input=text.encode(), capture_output=True, check=False)
    assert (good.returncode == 0) == (found is not None), good.stderr
    if found is None:
        with pytest.raises(ShellError):
            parse(text)
    else:
        assert texts(text) == found


@pytest.mark.parametrize(
    "piece",
    ["a b;", "a|", "`a` ", "$(a) ", "x=$(a)\n", "a<<E\nE\n", "{ a; }>f|b\n", "f() { a; }\n",
     "((a)) ", "$((a) ) ", "${a:-b} ", "case a in a)b;;esac\n", "{ a;}" + ">f" * 9,
     "[[ a ]];", "\\\n"],
)  # fmt: skip
def test_the_work_grows_with_the_text_alone(piece: str) -> None:
    few, many = (_lines_run(piece * count) for count in (50, 400))
    assert many < 10 * few


@pytest.mark.parametrize("piece", ["a;", ">f"])
def test_a_group_of_many_commands_is_marked_once(piece: str) -> None:
    def text(count: int) -> str:
        inside, behind = (count, 4) if piece == "a;" else (4, count)
        return "{ " + "a;" * (8 * inside) + "}" + ">f" * (8 * behind)

    together = _lines_run("{ " + "a;" * 400 + "}" + ">f" * 400)
    assert together < 2 * (_lines_run(text(50)) + _lines_run("{ a;}" + ">f" * 400))


def _lines_run(text: str) -> int:
    """How many lines of the reader's code a text takes: the same on every machine."""
    count = 0

    def trace(frame: object, event: str, _: object) -> object:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)  # type: ignore[arg-type]
    try:
        parse(text)
    except ShellError:
        pass
    finally:
        sys.settrace(before)
    return count


def test_more_commands_than_a_script_has_are_refused() -> None:
    with pytest.raises(ShellError, match="more than"):
        parse("a\n" * (MOST_COMMANDS + 1))
