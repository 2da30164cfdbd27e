"""The verb that says what a builder is and takes: explain."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from ocis2i.commands.context import Context, context
from ocis2i.commands.flags import JsonFlags, PlatformFlags, PullFlags, TalkFlags, option
from ocis2i.commands.state import print_json
from ocis2i.declared import label_declaration
from ocis2i.explain import Explanation, choose_language, document, render
from ocis2i.image_files import read_tree
from ocis2i.images import Layers, Obtained, PullPolicy, obtain
from ocis2i.lazy_dataclass import dataclass
from ocis2i.parameters import Declaration, parse_declaration
from ocis2i.reference import parse_location
from ocis2i.s2i import (
    PARAMETERS_FILE,
    PARAMETERS_LABEL,
    SCRIPT_NAMES,
    Contract,
    image_directory,
    parameters_path,
    read_contract,
)


@dataclass(frozen=True, kw_only=True)
class ExplainFlags(PullFlags, PlatformFlags, TalkFlags, JsonFlags):
    """`explain`."""

    builder: Annotated[str, typer.Argument(help="An S2I builder image.")]
    lang: Annotated[
        str | None,
        option("--lang", metavar="en|zh", help="The language. Default: LC_ALL, LC_MESSAGES, LANG."),
    ] = None
    files: Annotated[
        bool,
        option(
            "--files/--no-files",
            help="Read the layers too. Default: only where no label declares parameters.",
        ),
    ] = False


def explain_builder(flags: ExplainFlags) -> None:
    language = choose_language(flags.lang, os.environ)
    with context(flags) as here, here.store.in_use():
        found = obtain(
            parse_location(flags.builder),
            flags.wanted_platform,
            PullPolicy.parse(flags.pull_policy),
            here.tools.places,
            layers=Layers.ELSEWHERE,
        )
        known = _explain(found, flags, here)
        if flags.as_json:
            print_json(document(known))
        else:
            for sentence in known.contract.deprecated:
                here.recorder.warn(sentence)
            sys.stdout.write(_printable(render(known, language)))


def _printable(text: str) -> str:
    """What a terminal of another encoding cannot show is escaped."""
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, errors="backslashreplace").decode(encoding)


def _explain(found: Obtained, flags: ExplainFlags, here: Context) -> Explanation:
    config = found.image.config
    contract = read_contract(config)
    declaration = label_declaration(found)
    declared_in = f"label {PARAMETERS_LABEL}" if declaration else ""
    scripts = None
    look = flags.files or (declaration is None and "files" not in flags.given)
    if look and contract.scripts_url:
        scripts, of_file = _look(found, contract, here)
        if declaration is None and of_file:
            declaration, declared_in = of_file, parameters_path(contract.scripts_url) or ""
    return Explanation(
        flags.builder,
        found.name,
        str(found.manifest.descriptor.digest),
        str(config.platform),
        config.runtime,
        contract,
        declaration,
        declared_in,
        scripts,
    )


def declaration_of(found: Obtained, here: Context) -> Declaration | None:
    """What a builder declares, in its label or its file; raises `ImageError`."""
    declaration = label_declaration(found)
    contract = read_contract(found.image.config)
    if declaration is None and contract.scripts_url:
        _, declaration = _look(found, contract, here)
    return declaration


def _look(
    found: Obtained, contract: Contract, here: Context
) -> tuple[dict[str, str] | None, Declaration | None]:
    """The scripts in the image, and what its file declares."""
    directory = image_directory(contract.scripts_url or "")
    path = parameters_path(contract.scripts_url)
    if directory is None or path is None:
        return None, None
    tree = read_tree(found, here.tools.places, lambda name: name.endswith(f"/{PARAMETERS_FILE}"))
    scripts = {}
    for name in SCRIPT_NAMES:
        entry = tree.find(f"{directory}/{name}")
        if entry and entry.kind == "file":
            scripts[name] = f"{directory}/{name}"
    declared = tree.find(path)
    if declared is None or declared.kind != "file":
        return scripts, None
    content = declared.content
    if content is None:
        content = b" " * (declared.size or 1)  # too large: the reader says so
    return scripts, parse_declaration(content, f"`{path}` of `{found.name}`")
