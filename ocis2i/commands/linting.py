"""The verb that looks for faults in builders: lint."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from ocis2i.builder_checks import Context as Subject
from ocis2i.builder_checks import ScriptFile, check_context, check_image
from ocis2i.commands.context import context
from ocis2i.commands.flags import JsonFlags, PlatformFlags, PullFlags, TalkFlags, option
from ocis2i.commands.state import State, print_json
from ocis2i.errors import PolicyError, ScriptsError, SourceError, shown
from ocis2i.image_files import read_tree
from ocis2i.images import Layers, PullPolicy, obtain
from ocis2i.lazy_dataclass import dataclass
from ocis2i.reference import parse_location
from ocis2i.rules import Finding, document, parse_codes
from ocis2i.s2i import PARAMETERS_FILE, SCRIPT_NAMES, read_contract
from ocis2i.script_checks import SCRIPT_LIMIT

_DEEPEST = 4
_MOST_DIRECTORIES = 5000
_DOCKERFILES = ("Dockerfile", "Containerfile")


@dataclass(frozen=True, kw_only=True)
class LintFlags(PullFlags, PlatformFlags, TalkFlags, JsonFlags):
    """`lint`."""

    builder: Annotated[
        str, typer.Argument(help="A directory with S2I scripts in it, or a builder image.")
    ]
    strict: Annotated[bool, option("--strict", help="Fail on warnings, too.")] = False
    ignore: Annotated[
        list[str] | None,
        option("--ignore", metavar="CODE", help="A rule that does not count; repeatable."),
    ] = None


def lint_builder(flags: LintFlags) -> None:
    ignored = parse_codes(flags.ignore or ())
    State.as_json = flags.as_json
    directory = Path(flags.builder)
    # As for `build`: what is a directory is one; an image of that name is `docker://NAME`.
    is_directory = bool(flags.builder) and directory.is_dir()
    if not is_directory and _is_path(flags.builder):
        raise SourceError(
            f"`{shown(flags.builder)}` is no directory", hint="name a directory or an image"
        )
    found = _directory(directory) if is_directory else _image(flags)
    findings = [one for one in found if one.rule.code not in ignored]
    errors = sum(one.rule.severity == "error" for one in findings)
    failed = bool(errors or (flags.strict and findings))
    if flags.as_json:
        print_json(document(flags.builder, findings, failed=failed))
    else:
        encoding = sys.stdout.encoding or "utf-8"
        for one in findings:
            text = one.text().encode(encoding, errors="backslashreplace").decode(encoding)
            sys.stdout.write(text)
        count = f"errors: {errors}, warnings: {len(findings) - errors}"
        sys.stderr.write(f"{count if findings else 'nothing found'}\n")
    sys.stdout.flush()
    if failed:
        raise typer.Exit(PolicyError.exit_code)


def _is_path(text: str) -> bool:
    """Whether it can only be a path: no name of an image begins or ends so."""
    return text.startswith(("/", "./", "../")) or text.endswith("/")


def _image(flags: LintFlags) -> list[Finding]:
    with context(flags) as here, here.store.in_use():
        found = obtain(
            parse_location(flags.builder),
            flags.wanted_platform,
            PullPolicy.parse(flags.pull_policy),
            here.tools.places,
            layers=Layers.ELSEWHERE,
        )
        names = frozenset((*SCRIPT_NAMES, PARAMETERS_FILE))
        tree = read_tree(found, here.tools.places, lambda path: path.rpartition("/")[2] in names)
        config = found.image.config
        return check_image(config.runtime, read_contract(config), tree)


# --- directories ------------------------------------------------------------------------------


def _directory(top: Path) -> list[Finding]:
    subjects = list(_subjects(top))
    if not subjects:
        raise ScriptsError(
            f"there are no S2I scripts in `{top}`",
            hint="name a directory with assemble and run in it, or a repository as "
            "`ocis2i create` makes one",
        )
    findings = {one: None for subject in subjects for one in check_context(subject)}
    return list(findings)


def _subjects(top: Path) -> Iterator[Subject]:
    """The directories with scripts at most `_DEEPEST` below `top`; links are not followed."""
    walk = os.walk(top, onerror=_unreadable)
    for seen, (path, directories, files) in enumerate(walk):
        here = Path(path)
        depth = len(here.relative_to(top).parts)
        directories[:] = sorted(
            name
            for name in directories
            if depth < _DEEPEST and (not name.startswith(".") or name in (".s2i", ".sti"))
        )
        if seen >= _MOST_DIRECTORIES:
            raise SourceError(
                f"`{top}` has more than {_MOST_DIRECTORIES} directories",
                hint="name the one with the scripts",
            )
        there = set(files) & set(SCRIPT_NAMES)
        # A lone `run` is a test's, or anything.
        if there & {"assemble", "assemble-runtime"} or len(there) > 1:
            yield _subject(top, here)


def _unreadable(error: OSError) -> None:
    raise SourceError(
        f"`{error.filename}` cannot be read: {error.strerror}", hint="let this user read it"
    ) from error


def _subject(top: Path, scripts: Path) -> Subject:
    files = {}
    for name in SCRIPT_NAMES:
        path = scripts / name
        content = _read(path)
        if content is not None:
            executable = bool(path.stat().st_mode & 0o111)
            files[name] = ScriptFile(str(path), content, executable)
    dockerfile, home = _dockerfile(top, scripts)
    text = (_read(dockerfile) or b"").decode(errors="replace") if dockerfile else ""
    return Subject(
        str(scripts),
        files,
        text,
        str(dockerfile) if dockerfile else "",
        str(scripts.relative_to(home)) if home else "",
        any(part in (".s2i", ".sti") for part in scripts.parts[-2:]),
        _read(scripts / PARAMETERS_FILE),
    )


def _dockerfile(top: Path, scripts: Path) -> tuple[Path | None, Path | None]:
    """The Dockerfile nearest above the scripts, not above `top`, and its directory."""
    for directory in (scripts, *scripts.parents):
        if not directory.is_relative_to(top):
            break
        for name in _DOCKERFILES:
            if (directory / name).is_file():
                return directory / name, directory
        if directory == top:
            break
    return None, None


def _read(path: Path) -> bytes | None:
    """A regular file; raises `SourceError` for what is too large or cannot be read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SourceError(
            f"`{path}` cannot be read: {error.strerror}", hint="let this user read it"
        ) from error
    with os.fdopen(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return None
        data = file.read(SCRIPT_LIMIT + 1)
    if len(data) > SCRIPT_LIMIT:
        raise SourceError(
            f"`{path}` has over {SCRIPT_LIMIT} bytes, which no script has",
            hint="name the directory of the scripts",
        )
    return data
