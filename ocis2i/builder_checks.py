"""Faults around S2I scripts: in a builder image, or in a directory that one is made of. Pure."""

from __future__ import annotations

import json
import posixpath
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from typing import TYPE_CHECKING

from ocis2i.errors import ImageError
from ocis2i.lazy_dataclass import dataclass
from ocis2i.manifest import RuntimeConfig
from ocis2i.parameters import Declaration, parse_declaration
from ocis2i.rules import RULES, Finding
from ocis2i.s2i import (
    PARAMETERS_FILE,
    PARAMETERS_LABEL,
    SCRIPT_NAMES,
    SCRIPTS_URL_LABELS,
    SCRIPTS_URL_VARIABLE,
    Contract,
    image_directory,
)
from ocis2i.script_checks import Place, check_script, interpreter, words_of

if TYPE_CHECKING:
    from ocis2i.image_files import Entry, Tree

_MOST_FILES = 5  # of one kind that are named
_LABEL = SCRIPTS_URL_LABELS[0]
# Bases that bring label, user and working directory; of others nothing is known either, but these
# are common.
_S2I_BASE = re.compile(r"s2i|openshift/base|centos7|/ubi[0-9]*/(python|nodejs|php|ruby|perl)")


@dataclass(frozen=True, slots=True)
class ScriptFile:
    """A script of a directory: its content, and the execute bits of its mode."""

    path: str
    content: bytes = field(repr=False)
    executable: bool = True


@dataclass(frozen=True, slots=True)
class Context:
    """A directory with scripts: `files` by name, and the Dockerfile that belongs to them.

    `relative` is the directory as the Dockerfile's COPY names it; `of_source` is for `.s2i/bin`,
    where every script is optional.
    """

    path: str
    files: Mapping[str, ScriptFile]
    dockerfile: str = ""
    dockerfile_path: str = ""
    relative: str = ""
    of_source: bool = False
    parameters: bytes | None = None


def _found(code: str, path: str, line: int = 0, detail: str = "") -> Finding:
    rule = RULES[code]
    return Finding(rule, path, line, f"{rule.title}: {detail}" if detail else rule.title)


# --- an image ---------------------------------------------------------------------------------


def check_image(runtime: RuntimeConfig, contract: Contract, tree: Tree) -> list[Finding]:
    """All faults of a builder image, in the order of their files."""
    directory = image_directory(contract.scripts_url or "") or ""
    findings = [*_image_config(runtime, contract, tree, directory)]
    contents: dict[str, bytes] = {}
    if directory and tree.find(directory):
        findings += _image_scripts(runtime, contract, tree, directory, contents)
        findings += _closed_files(tree, directory, runtime.working_dir)
    text = runtime.labels.get(PARAMETERS_LABEL)
    declared = tree.find(f"{directory}/{PARAMETERS_FILE}") if directory else None
    in_file = declared.content if declared and declared.kind == "file" else None
    where = f"{directory}/{PARAMETERS_FILE}"
    findings += _parameters(text, in_file, where, "", list(contents.values()))
    return sorted(findings, key=lambda one: (one.path, one.line, one.rule.code))


def _image_config(
    runtime: RuntimeConfig, contract: Contract, tree: Tree, directory: str
) -> Iterator[Finding]:
    if contract.scripts_url is None:
        yield _found("S2I030", "")
    elif not directory:
        if not contract.scripts_url.startswith(("http://", "https://")):
            yield _found("S2I031", "", 0, f"`{contract.scripts_url}`")
    else:
        entry = tree.find(directory)
        if entry is None or entry.kind != "directory":
            yield _found("S2I031", "", 0, f"`{directory}`")
    if contract.scripts_url and not runtime.labels.get(_LABEL, "").strip():
        yield _found("S2I032", "")
    yield from _start(runtime, tree)
    yield from _user(runtime.user, "", 0)
    yield from _working_directory(runtime, contract, tree)
    if runtime.on_build:
        yield _found("S2I038", "", 0, f"{len(runtime.on_build)} of them")


def _start(runtime: RuntimeConfig, tree: Tree) -> Iterator[Finding]:
    """Programs of Entrypoint and Cmd that are not there."""
    entrypoint, cmd = runtime.entrypoint or (), runtime.cmd or ()
    argv = (*entrypoint, *cmd)
    paths = [*entrypoint[:1], *cmd[:1]]
    if len(argv) > 2 and argv[0].endswith("sh") and argv[1] == "-c":
        paths += argv[2].split()[:1]
    for path in paths:
        if path.startswith("/") and tree.find(path) is None:
            yield _found("S2I033", "", 0, f"`{path}`")


def _user(text: str, path: str, line: int) -> Iterator[Finding]:
    user = text.partition(":")[0]
    if user in ("", "root", "0"):
        yield _found("S2I035", path, line)
    elif not user.isdigit():
        yield _found("S2I034", path, line, f"`{user}`")


def _working_directory(runtime: RuntimeConfig, contract: Contract, tree: Tree) -> Iterator[Finding]:
    if not runtime.working_dir or runtime.working_dir == "/":
        yield _found("S2I036", "")
        return
    entry = tree.find(runtime.working_dir)
    user = (contract.assemble_user or runtime.user).partition(":")[0]
    if entry is None or entry.kind != "directory" or not user.isdigit() or user == "0":
        return
    if not _may(entry, int(user), 0o2):
        owner = f"{entry.uid}:{entry.gid}, mode {entry.mode & 0o7777:04o}"
        yield _found("S2I037", "", 0, f"`{runtime.working_dir}` is of {owner}")


def _may(entry: Entry, uid: int, bit: int) -> bool:
    """Whether a user of group 0 has that right (of 4, 2 and 1)."""
    if entry.uid == uid:
        return bool(entry.mode & bit << 6)
    return bool(entry.mode & (bit << 3 if entry.gid == 0 else bit))


def _image_scripts(
    runtime: RuntimeConfig,
    contract: Contract,
    tree: Tree,
    directory: str,
    contents: dict[str, bytes],
) -> Iterator[Finding]:
    there = {name: tree.find(f"{directory}/{name}") for name in SCRIPT_NAMES}
    names = frozenset(name for name, entry in there.items() if entry and entry.kind == "file")
    yield from _missing(names, directory, of_source=False)
    shell = tree.resolve("/bin/sh") or ""
    for name, entry in there.items():
        if entry is None or entry.kind != "file":
            continue
        path = f"{directory}/{name}"
        if not entry.mode & 0o111:
            yield _found("S2I002", path)
        if entry.content is None:
            continue
        contents[name] = entry.content
        program = interpreter(entry.content)
        if program and tree.find(program) is None:
            yield _found("S2I006", path, 1, f"`{program}`")
        place = Place(
            path,
            name,
            directory,
            contract.destination,
            (contract.assemble_user or runtime.user).partition(":")[0] in ("", "0", "root"),
            sh_is_bash=posixpath.basename(shell) == "bash",
            sh_is_busybox=posixpath.basename(shell) == "busybox",
        )
        yield from check_script(entry.content, place)


def _missing(names: frozenset[str], where: str, *, of_source: bool) -> Iterator[Finding]:
    if of_source:
        return
    wanted = ["run"] if "assemble-runtime" in names else ["assemble", "run"]
    for name in wanted:
        if name not in names:
            yield _found("S2I001", where, 0, f"`{name}`")
    if "usage" not in names and "assemble" in names:
        yield _found("S2I008", where)


def _closed_files(tree: Tree, scripts: str, working_dir: str) -> Iterator[Finding]:
    """Files of scripts and application that a user of group 0 cannot read."""
    tops = {scripts, working_dir} - {"", "/"}
    closed = sorted(
        {
            path
            for top in tops
            for path, entry in tree.below(top)
            if entry.kind in ("file", "directory")
            and not _may(entry, -1, 0o5 if entry.kind == "directory" else 0o4)
        }
    )
    for path in closed[:_MOST_FILES]:
        yield _found("S2I025", path)
    if len(closed) > _MOST_FILES:
        yield _found("S2I025", "", 0, f"{len(closed) - _MOST_FILES} more")


def _parameters(
    label: str | None, file: bytes | None, path: str, label_path: str, scripts: Sequence[bytes]
) -> Iterator[Finding]:
    if label is not None and file is not None:
        yield _found("S2I042", path)
    text: str | bytes | None = label if label is not None else file
    if text is None:
        return
    place = label_path if label is not None else path
    try:
        declaration = parse_declaration(text, "it")
    except ImageError as error:
        why = error.message.partition("cannot be used: ")[2]
        yield _found("S2I040", place, 0, why)
        return
    if scripts:
        yield from _unread(declaration, place, scripts)


def _unread(declaration: Declaration, path: str, scripts: Sequence[bytes]) -> Iterator[Finding]:
    known = frozenset().union(*map(words_of, scripts))
    for one in declaration.parameters:
        # The application itself may read those of the running image.
        if one.in_build and one.name not in known and not _of_tools(one.name):
            yield _found("S2I041", path, 0, f"`{one.name}`")


def _of_tools(name: str) -> bool:
    """What programs that scripts start read themselves."""
    return bool(
        re.fullmatch(
            r"(?i)(https?|no|all|ftp)_proxy|(maven|java|npm|pip|go|cargo|gradle|yarn)_\w+|GO(FLAGS|PROXY|PATH|OS|ARCH|SUMDB|PRIVATE)"
            r"|CC|CXX|CFLAGS|LDFLAGS|TZ|LANG|LC_ALL",
            name,
        )
    )


# --- a directory ------------------------------------------------------------------------------


def check_context(context: Context) -> list[Finding]:
    """All faults of scripts in a directory, and of the Dockerfile that belongs to them."""
    instructions = last_stage(read_dockerfile(context.dockerfile))
    directory = _directory_in_image(context, instructions)
    label = _label(instructions, _LABEL)
    if not directory and label:
        directory = image_directory(label) or ""
    destination = _label(instructions, "io.openshift.s2i.destination") or "/tmp"  # noqa: S108
    user = next((one.rest for one in reversed(instructions) if one.name == "USER"), None)
    findings = [*_missing(frozenset(context.files), context.path, of_source=context.of_source)]
    modes_set = _sets_modes(instructions)
    for name, file in context.files.items():
        if not file.executable and not modes_set and not context.of_source:
            findings.append(_found("S2I002", file.path))
        is_root = user is not None and user.partition(":")[0] in ("root", "0")
        place = Place(file.path, name, directory, destination, is_root)
        findings += check_script(file.content, place)
    if context.dockerfile:
        findings += _dockerfile(context, instructions, directory)
    text = _label(instructions, PARAMETERS_LABEL)
    contents = [file.content for file in context.files.values()]
    where = f"{context.path}/{PARAMETERS_FILE}"
    findings += _parameters(text, context.parameters, where, context.dockerfile_path, contents)
    return sorted(findings, key=lambda one: (one.path, one.line, one.rule.code))


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction of a Dockerfile: `rest` is on one line, continued ones joined."""

    name: str
    rest: str
    line: int


def read_dockerfile(text: str) -> list[Instruction]:
    """Its instructions; here-documents are not known, their lines pass as instructions do."""
    found: list[Instruction] = []
    parts: list[str] = []
    start = 0
    for number, line in enumerate(text.splitlines(), start=1):
        stripped = line.strip()
        if stripped.startswith("#") or (not stripped and parts):
            continue
        start = start if parts else number
        parts.append(stripped.removesuffix("\\"))
        if stripped.endswith("\\"):
            continue
        name, _, rest = " ".join(parts).strip().partition(" ")
        parts = []
        if name:
            found.append(Instruction(name.upper(), rest.strip(), start))
    return found


def last_stage(instructions: Sequence[Instruction]) -> list[Instruction]:
    """What makes the image: the instructions from the last FROM on."""
    at = max((n for n, one in enumerate(instructions) if one.name == "FROM"), default=0)
    return list(instructions[at:])


def _pairs(rest: str) -> dict[str, str]:
    try:
        words = shlex.split(rest)
    except ValueError:
        return {}
    if len(words) >= 2 and "=" not in words[0]:
        return {words[0]: " ".join(words[1:])}
    return dict(word.partition("=")[::2] for word in words if "=" in word)


def _label(instructions: Sequence[Instruction], name: str) -> str | None:
    values = [_pairs(one.rest).get(name) for one in instructions if one.name == "LABEL"]
    return next((value for value in reversed(values) if value is not None), None)


def _copies(instructions: Sequence[Instruction]) -> Iterator[tuple[str, str, Instruction]]:
    """From and to of each COPY and ADD of a directory of the context."""
    for one in instructions:
        words = one.rest.split()
        flags = [word for word in words if word.startswith("--")]
        paths = [word.strip("\"'[],") for word in words if not word.startswith("--")]
        if one.name in ("COPY", "ADD") and not any(flag.startswith("--from") for flag in flags):
            for source in paths[:-1]:
                yield posixpath.normpath(source), paths[-1], one


def _directory_in_image(context: Context, instructions: Sequence[Instruction]) -> str:
    """Where COPY puts the scripts; empty when that cannot be told."""
    for source, target, _ in _copies(instructions):
        inner = posixpath.relpath(context.relative or ".", source)
        if inner.startswith("..") or not target.startswith("/"):
            continue
        return posixpath.normpath(posixpath.join(target, inner))
    return ""


def _sets_modes(instructions: Sequence[Instruction]) -> bool:
    return any(
        ("--chmod=" in one.rest and one.name in ("COPY", "ADD"))
        or (one.name == "RUN" and "chmod" in one.rest)
        for one in instructions
    )


def _dockerfile(
    context: Context, instructions: Sequence[Instruction], directory: str
) -> Iterator[Finding]:
    path = context.dockerfile_path
    base = next((one.rest for one in instructions if one.name == "FROM"), "")
    label = _label(instructions, _LABEL)
    knows_nothing = not _S2I_BASE.search(base)
    if label is None:
        old = _label(instructions, SCRIPTS_URL_LABELS[1]) or any(
            SCRIPTS_URL_VARIABLE in _pairs(one.rest) for one in instructions if one.name == "ENV"
        )
        if old:
            yield _found("S2I032", path)
        elif knows_nothing:
            yield _found("S2I030", path)
    else:
        named = image_directory(label)
        copied = _directory_in_image(context, instructions)
        if "$" not in label and (
            named is None or (copied and "$" not in copied and named != copied)
        ):
            detail = f"`{label}`" + (f", COPY puts them into `{copied}`" if copied else "")
            yield _found("S2I031", path, _line(instructions, "LABEL", _LABEL), detail)
    yield from _commands(context, instructions, directory)
    users = [one for one in instructions if one.name == "USER"]
    if users and "$" not in users[-1].rest:
        yield from _user(users[-1].rest, path, users[-1].line)
    if knows_nothing and not any(one.name == "WORKDIR" for one in instructions):
        yield _found("S2I036", path)
    for one in instructions:
        if one.name == "ONBUILD":
            yield _found("S2I038", path, one.line)
    yield from _owners(instructions, path)


def _line(instructions: Sequence[Instruction], name: str, text: str) -> int:
    lines = [one.line for one in instructions if one.name == name and text in one.rest]
    return lines[-1] if lines else 0


def _commands(
    context: Context, instructions: Sequence[Instruction], directory: str
) -> Iterator[Finding]:
    """CMD and ENTRYPOINT that name one of the scripts where it is not."""
    for one in instructions:
        if one.name not in ("CMD", "ENTRYPOINT"):
            continue
        for word in _argv(one.rest)[:1]:
            parent, name = posixpath.split(word)
            if not directory or not parent.startswith("/") or "$" in word:
                continue
            in_scripts = posixpath.normpath(parent) == directory
            if (in_scripts and name not in context.files) or (
                not in_scripts and name in SCRIPT_NAMES and "s2i" in parent
            ):
                yield _found("S2I033", context.dockerfile_path, one.line, f"`{word}`")


def _argv(rest: str) -> list[str]:
    if rest.startswith("["):
        try:
            value = json.loads(rest)
        except (ValueError, RecursionError):
            return []
        return [word for word in value if isinstance(word, str)]
    return rest.split()


_CHOWN = re.compile(r"(?:chown\s+(?:-\S+\s+)*|--chown=)([\w.-]+):([\w.-]+)")
_FOR_GROUP = re.compile(r"chgrp\s.*\b(0|root)\b|chown\s+(-\S+\s+)*[\w.-]*:(0|root)\b|g\+rwX?|g=u")


def _owners(instructions: Sequence[Instruction], path: str) -> Iterator[Finding]:
    if any(_FOR_GROUP.search(one.rest) for one in instructions if one.name == "RUN"):
        return
    for one in instructions:
        if one.name not in ("RUN", "COPY", "ADD"):
            continue
        for user, group in _CHOWN.findall(one.rest):
            if group not in ("0", "root"):
                yield _found("S2I025", path, one.line, f"they are of {user}:{group}")
                break
