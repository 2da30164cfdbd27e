"""The faults that `ocis2i lint` knows, one declaration for each, and what a finding is. Pure.

The list in `docs/lint.md` is rendered from here. A code keeps its meaning for ever.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from ocis2i.errors import UsageError, shown
from ocis2i.lazy_dataclass import dataclass

VERSION = 1

Severity = Literal["error", "warning"]


@dataclass(frozen=True, slots=True)
class Rule:
    """One fault: `why` it is one, and how to `mend` it, a sentence each."""

    code: str
    severity: Severity
    title: str
    why: str
    mend: str


@dataclass(frozen=True, slots=True)
class Finding:
    """A fault that was found; `path` is a file, or empty for the image; `line` is 0 for a whole."""

    rule: Rule
    path: str
    line: int
    detail: str

    def text(self) -> str:
        """One line of text, as compilers have it, and two that help."""
        place = shown(self.path) or "image"
        place += f":{self.line}" if self.line else ""
        rule = self.rule
        return (
            f"{place}: {rule.severity} {rule.code}: {shown(self.detail)}\n"
            f"    why: {rule.why}\n    mend: {rule.mend}\n"
        )

    def row(self) -> dict[str, Any]:
        """The same for `--json`."""
        return {
            "code": self.rule.code,
            "severity": self.rule.severity,
            "path": self.path or None,
            "line": self.line or None,
            "message": self.detail,
            "why": self.rule.why,
            "mend": self.rule.mend,
        }


def _rules(*rules: Rule) -> Mapping[str, Rule]:
    return {rule.code: rule for rule in rules}


RULES = _rules(
    # --- a script as a file -------------------------------------------------------------------
    Rule(
        "S2I001",
        "error",
        "a required script is missing",
        "Every build needs assemble and run.",
        "Add it beside the others.",
    ),
    Rule(
        "S2I002",
        "error",
        "a script is not executable",
        "It is started as a program, and the start fails with exit code 126.",
        "chmod 0755, in the repository or by COPY --chmod=0755.",
    ),
    Rule(
        "S2I003",
        "error",
        "lines end with a carriage return",
        "The kernel looks for an interpreter whose name ends with it, and shells take it as text.",
        "Save it with line feeds alone; `* text eol=lf` in .gitattributes keeps it so.",
    ),
    Rule(
        "S2I004",
        "error",
        "it begins with a byte order mark",
        "The first two bytes are then not `#!`, so the kernel finds no interpreter.",
        "Save it as UTF-8 without a mark.",
    ),
    Rule(
        "S2I005",
        "error",
        "no interpreter in the first line",
        "A container engine starts run without a shell around it, and that fails.",
        "Begin with #!/bin/sh or #!/bin/bash.",
    ),
    Rule(
        "S2I006",
        "error",
        "the interpreter is not in the image",
        "The script cannot start, and the kernel's message names the script instead.",
        "Name one that the image has, or add it.",
    ),
    Rule(
        "S2I007",
        "error",
        "it is no shell script that can be read",
        "A quote, a here-document or a compound command has no end, so the shell stops there.",
        "Close it; `sh -n SCRIPT` says where the shell stops.",
    ),
    Rule(
        "S2I008",
        "warning",
        "no usage script",
        "`s2i usage` and the image's own command have nothing to say.",
        "Add a script `usage` that prints how to build with this image.",
    ),
    # --- what a script does -------------------------------------------------------------------
    Rule(
        "S2I010",
        "warning",
        "errors do not end it",
        "Without `set -e` only the last command's status tells whether the build worked.",
        "Write `set -e` after the first line, as a command: options behind #! are lost when the "
        "script is started as `sh script`.",
    ),
    Rule(
        "S2I011",
        "error",
        "bash words under sh",
        "It works only where /bin/sh is bash; others know no such word, or read it otherwise.",
        "Begin with #!/bin/bash, or use what POSIX has: cd in a subshell, [ a = b ], `.`, >f 2>&1.",
    ),
    Rule(
        "S2I012",
        "warning",
        "run does not exec the server",
        "The shell stays the first process, and the signal that stops the container ends there.",
        'Write `exec server "$@"` as the last command, or hand signals on with trap and wait.',
    ),
    Rule(
        "S2I013",
        "warning",
        'run drops its arguments: no "$@"',
        "What is written behind the image's name never reaches the program.",
        'Add "$@" to the command that starts the program.',
    ),
    Rule(
        "S2I014",
        "warning",
        "arguments are taken apart",
        "$@ and $* without quotes lose blanks and empty arguments.",
        'Write "$@".',
    ),
    Rule(
        "S2I015",
        "error",
        "a listing without quotes",
        "A blank in a name, or a second file, makes several words of it, and the command breaks.",
        'Use a pattern: for file in /tmp/src/*; do ... "$file"; done.',
    ),
    Rule(
        "S2I016",
        "warning",
        "the execute bit is set at run time",
        "It fails on a read-only root filesystem, and for every user who does not own the file.",
        "Do it in assemble.",
    ),
    Rule(
        "S2I017",
        "error",
        "`cd -` prints to standard output",
        "save-artifacts writes a tar there, and the path lands in it.",
        "Write `cd - >/dev/null`, or change directory in a subshell.",
    ),
    Rule(
        "S2I018",
        "error",
        "save-artifacts prints beside its tar",
        "Its standard output is the tar: text in it breaks the next incremental build.",
        "Send messages to standard error: echo ... >&2.",
    ),
    Rule(
        "S2I019",
        "warning",
        "save-artifacts writes more than one tar",
        "Readers stop at the end of the first; source-to-image loses the others.",
        "Collect the names, and write them with one tar.",
    ),
    Rule(
        "S2I020",
        "warning",
        "commands are shown with their values",
        "`set -x` writes every variable into the log, passwords too.",
        "Leave it out, or switch it on by a variable of your own for a while.",
    ),
    Rule(
        "S2I021",
        "warning",
        "a fixed /tmp where the image says otherwise",
        "The label io.openshift.s2i.destination puts source and artifacts elsewhere.",
        "Use that directory, or drop the label.",
    ),
    Rule(
        "S2I022",
        "warning",
        "it writes where its user may not",
        "assemble runs as the image's user, who cannot write to directories of the system.",
        "Write below WORKDIR, or do it in the Dockerfile as root.",
    ),
    Rule(
        "S2I023",
        "error",
        "it asks for another user's rights",
        "No new privileges are given to scripts, so sudo and su fail.",
        "Do it in the Dockerfile as root.",
    ),
    Rule(
        "S2I024",
        "error",
        "it names a script that is elsewhere",
        "The path does not exist in the image, so that branch fails.",
        'Name the directory of the scripts-url label, or use "$(dirname "$0")".',
    ),
    Rule(
        "S2I025",
        "warning",
        "files only their owner can use",
        "OpenShift and others run images as any user, in group 0.",
        "Give the group what the owner may: chgrp -R 0 DIR && chmod -R g=u DIR.",
    ),
    # --- the image ----------------------------------------------------------------------------
    Rule(
        "S2I030",
        "error",
        "no label names the scripts",
        "Without io.openshift.s2i.scripts-url the scripts are only found with --scripts-url.",
        'LABEL io.openshift.s2i.scripts-url="image:///usr/libexec/s2i".',
    ),
    Rule(
        "S2I031",
        "error",
        "the scripts label points nowhere",
        "There is no such directory in the image, or it is no absolute image:/// URL.",
        "Name the directory that the scripts were copied to.",
    ),
    Rule(
        "S2I032",
        "warning",
        "an old word for where the scripts are",
        "io.s2i.* and STI_* are deprecated; newer tools do not read them.",
        "Add the label io.openshift.s2i.scripts-url.",
    ),
    Rule(
        "S2I033",
        "error",
        "the image's command does not exist",
        "Starting the builder plainly fails, where it should say how to use it.",
        "Point CMD to the usage script, by the path that it has in the image.",
    ),
    Rule(
        "S2I034",
        "warning",
        "the user has a name, not a number",
        "Clusters cannot tell whether it is root, and refuse it with runAsNonRoot.",
        "USER 1001.",
    ),
    Rule(
        "S2I035",
        "warning",
        "the user is root",
        "Scripts of the application and its result would run as root; OpenShift refuses that.",
        "USER 1001, after what needs root.",
    ),
    Rule(
        "S2I036",
        "warning",
        "no WORKDIR",
        "Scripts then run in /, and relative paths end up there.",
        "WORKDIR /opt/app-root/src.",
    ),
    Rule(
        "S2I037",
        "error",
        "the user cannot write to WORKDIR",
        "assemble puts the application there, and cannot.",
        "RUN chown 1001:0 DIR && chmod 0775 DIR, before USER.",
    ),
    Rule(
        "S2I038",
        "warning",
        "ONBUILD instructions",
        "An S2I build does not run them, and ocis2i refuses such a builder.",
        "Put what they do into assemble.",
    ),
    # --- parameters ---------------------------------------------------------------------------
    Rule(
        "S2I040",
        "error",
        "the declared parameters cannot be read",
        "Every build with this builder fails.",
        "docs/parameters.md has the form, docs/schemas/parameters.schema.json the schema.",
    ),
    Rule(
        "S2I041",
        "warning",
        "a parameter that no script reads",
        "Who sets it waits for an effect: the declaration has drifted from the scripts.",
        "Use it, or take it out of the declaration.",
    ),
    Rule(
        "S2I042",
        "warning",
        "label and file both declare parameters",
        "The label counts, and the file is never read.",
        "Keep one of them.",
    ),
)

_DISABLE = re.compile(r"ocis2i-lint:\s*disable=([A-Z0-9, ]+)")


def parse_codes(texts: Iterable[str]) -> frozenset[str]:
    """The codes of `--ignore`; raises `UsageError` for one that there is not."""
    codes = [code.strip().upper() for text in texts for code in text.split(",")]
    for code in codes:
        if code not in RULES:
            raise UsageError(
                f"--ignore: there is no rule `{shown(code[:40])}`", hint="docs/lint.md lists them"
            )
    return frozenset(codes)


def suppressed(
    findings: Iterable[Finding], comments: Sequence[tuple[int, str]], first_command: int
) -> list[Finding]:
    """The findings of one script that no comment in it switches off.

    A comment counts for its own line and the next; before the first command, for all of the script.
    """
    everywhere: set[str] = set()
    lines: dict[int, set[str]] = {}
    for line, text in comments:
        if (found := _DISABLE.search(text)) is None:
            continue
        codes = {code.strip() for code in found[1].split(",")}
        if line < first_command:
            everywhere |= codes
        for one in (line, line + 1):
            lines.setdefault(one, set()).update(codes)
    return [
        one
        for one in findings
        if one.rule.code not in everywhere and one.rule.code not in lines.get(one.line, ())
    ]


def table() -> str:
    """The rules as a table in Markdown, for `docs/lint.md`."""
    rows = ["| code | severity | fault | why | how to mend |", "| --- | --- | --- | --- | --- |"]
    for rule in RULES.values():
        cells = (rule.code, rule.severity, rule.title, rule.why, rule.mend)
        rows.append(f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |")
    return "\n".join(rows) + "\n"


def document(subject: str, findings: Sequence[Finding], *, failed: bool) -> dict[str, Any]:
    """What `--json` prints."""
    return {
        "version": VERSION,
        "subject": subject,
        "state": "failed" if failed else "succeeded",
        "errors": sum(one.rule.severity == "error" for one in findings),
        "warnings": sum(one.rule.severity == "warning" for one in findings),
        "findings": [one.row() for one in findings],
    }
