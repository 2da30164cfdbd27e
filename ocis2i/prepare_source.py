"""Puts a source into a directory, from where a build takes it that may reach nothing."""

from __future__ import annotations

from pathlib import Path

from ocis2i.events import stage
from ocis2i.fs import write_atomic
from ocis2i.s2i import SourceInfo
from ocis2i.sources import Source, fetch
from ocis2i.sources.prepared import FACTS, TREE, encode_facts
from ocis2i.tools import Tools


def prepare_source(source: Source, directory: Path, tools: Tools) -> SourceInfo:
    """Fetches `source` into the existing empty `directory`; where it came from.

    `source.json` is written last: without it, a directory is no source. Raises what
    `sources.fetch` raises.
    """
    tree = directory / TREE
    tree.mkdir(mode=0o755)
    with stage(tools.report, "fetch"), tools.store.in_use():
        found = fetch(
            source,
            tree,
            settings=tools.settings,
            report=tools.report,
            stdin=tools.stdin,
            places=tools.places,
        )
    facts = encode_facts(found.info, found.ignored)
    write_atomic(directory / FACTS, facts, scratch=directory, mode=0o600)
    return found.info
