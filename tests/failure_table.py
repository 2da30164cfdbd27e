"""Makes `docs/failures.md` out of the rows of `tests/failure_rows.py`.

The tests take what they expect from the same rows; here they are only told. Neither pytest nor
ocis2i is imported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tests.failure_rows import ROWS, TITLES, Row
from tests.pages import PROJECT, line, write_page

PAGE = PROJECT / "docs" / "failures.md"

INTRODUCTION = """\
# What goes wrong, and what is said of it

This page is written by `scripts/failure_table` from `tests/failure_rows.py`, and so is what the
tests expect; a test says when it is not current. Each row is brought about
([test_failure_table.py](../tests/e2e/test_failure_table.py)), and its error names the thing and the
way out. What the reasons mean is in [json.md](json.md#reasons).

## When a script fails

After the `error:` and the `hint:` line stands what is known of the script, each line indented:

| line | what it says |
| --- | --- |
| `stage` | assemble, assemble-runtime, usage |
| `script` | its path in the container, and where it came from |
| `ran as` | user and group, the image's name for the user, the directory, the isolation |
| `meaning`, `way out` | the exit code in words, where error and hint did not say it already |
| `kept` | the directory of the build's record, with all that the scripts printed |
| `container`, `enter` | with `--keep-failed`: where the container is, and the way into it |
| `repeat` | the command that does it again, with a shell where it fails |
| `output` | the last ten lines again, when more than that went by; the rest is above |

Exit code and last lines together say more than each alone: of 127 the command that is missing, of
137 whether `--memory`, `--timeout`, the kernel or somebody else killed it, of 126 and of a program
for another processor which file it is. A full disk, a directory of another user, a name that is not
resolved with `--network none` or `proxy`, and a certificate that is not trusted are known by what
the usual programs say of them. It is a guess where a script ends with an exit code of its own: the
output itself is always shown.

The same is in `failure` of the [`--json` document](json.md#any-verb-failed). Secrets are masked in
all of it, also in the command: a `--build-env NAME=VALUE` becomes `--build-env NAME`, which takes
the variable of that name from your environment.

### A shell where it failed

`--shell-on-failure` opens a shell (bash, else sh, else busybox) when assemble or assemble-runtime
fails or goes over a limit: in the same tree, as the same user, with the same environment,
directory, mounts, network, isolation, and limits of memory and processes. `--timeout` and
`--output-limit` do not count for it. Standard input and standard error have to be a terminal, or
the build does not begin. Keys are for what runs in the shell, Ctrl-C and Ctrl-Z too; `exit` ends
it, and the build ends with its failure as it would have. What is changed in the shell is gone then.

Injected files and build variables are there as they were for the script, and what the shell shows
is not masked and not kept anywhere. With buildah the store needs a path of at most 60 bytes or so.
A kill of ocis2i by SIGKILL ends the shell and leaves your terminal raw: `reset` puts it right.

Other scripts have none, as there is nothing that it could show: after a failed save-artifacts the
build goes on without artifacts (`ocis2i run --entrypoint /bin/sh IMAGE` opens the image that it ran
in), and a usage or run script starts in the image as it is (`ocis2i run --entrypoint /bin/sh`).

`--keep-failed` needs no terminal: it keeps the container, and `ocis2i shell BUILD` opens a shell in
it later, as often as you like: [builds](builds.md#the-container-of-a-build-that-failed).
"""


def render(chapters: Mapping[str, Sequence[Row]] | None = None) -> str:
    """The page."""
    parts = [INTRODUCTION]
    titled = chapters or {TITLES[kind]: rows for kind, rows in ROWS.items()}
    for title, rows in titled.items():
        parts.append(f"\n## {title}\n\n" + line("what", "reason", "exit code", "what is said"))
        parts.append(line("---", "---", "---", "---"))
        parts += (line(row.what, f"`{row.reason}`", str(row.code), answer(row)) for row in rows)
    return "".join(parts)


def answer(row: Row) -> str:
    """What the user reads of it, in parts."""
    thing = row.thing.replace("{place}", "DIRECTORY").replace("{source}", "SOURCE")
    way_out = f"; way out: “{row.way_out}”" if row.way_out else ""
    return f"“{thing}”{way_out}" if thing else "what it was"


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the page, or with `--check` only says whether it is current; the exit code."""
    return write_page(PAGE, render, "failure_table", arguments)
