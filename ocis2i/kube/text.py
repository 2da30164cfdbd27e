"""Manifests as YAML that every reader takes for the same: by PyYAML, and texts quoted.

YAML 1.1 and 1.2, and the readers of each, disagree about `yes`, `1e3`, `0o17`, `12:30` and more. So
a text stands without quotes only if it is a plain word that no version takes for anything else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from ocis2i.errors import UsageError
from ocis2i.kube.names import Placeholder

_PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9/_.-]*")
_WORDS = frozenset("y n yes no on off true false null nan inf".split())
EXTRA = "pip install 'ocis2i[kube]'"


def is_plain(text: str) -> bool:
    """Whether a text needs no quotes, whoever reads it. Pure."""
    return bool(_PLAIN.fullmatch(text)) and text.lower() not in _WORDS


def as_json(document: Any) -> str:
    """One document as JSON, which takes no PyYAML, with a line's end. Pure."""
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def as_yaml(documents: Sequence[Any]) -> str:
    """The documents of one file. Raises `UsageError` where PyYAML is not installed."""
    yaml = _yaml()

    class Dumper(yaml.SafeDumper):  # type: ignore[misc, name-defined] # made where PyYAML is there
        """Indents lists, repeats what stands in two places, and quotes."""

        def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
            return True

        def increase_indent(self, flow: bool = False, indentless: bool = False) -> Any:  # noqa: ARG002, FBT001, FBT002 - PyYAML's own
            return super().increase_indent(flow, False)  # noqa: FBT003

    def text(dumper: Any, data: str) -> Any:
        if "\n" in data.strip("\n") and data.endswith("\n") and is_block(data):
            return dumper.represent_scalar("tag:yaml.org,2002:str", str(data), style="|")
        style = None if is_plain(data) else '"'
        return dumper.represent_scalar("tag:yaml.org,2002:str", str(data), style=style)

    for kind in (str, Placeholder):
        Dumper.add_representer(kind, text)
    written: str = yaml.dump_all(
        documents,
        Dumper=Dumper,
        sort_keys=False,
        allow_unicode=True,
        width=1000,
        explicit_start=len(documents) > 1,
    )
    return written


def is_block(text: str) -> bool:
    """Whether a text can stand as a block, line by line: a script, as a rule. Pure."""
    lines = text.split("\n")
    return all(
        line.isprintable() and line == line.rstrip() for line in lines
    ) and not text.startswith((" ", "\n"))


def _yaml() -> Any:
    try:
        import yaml  # noqa: PLC0415 - an extra, and only for this
    except ImportError as error:
        raise UsageError("writing YAML takes PyYAML, which is not installed", hint=EXTRA) from error
    return yaml
