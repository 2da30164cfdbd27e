"""Every kind of failure, brought about: it names the thing and the way out (tests/failure_rows)."""

from __future__ import annotations

import subprocess

import pytest

from tests.conftest import needs
from tests.failure_rows import EVERY, Row
from tests.fakes.bench import RUN, Bench, error

pytestmark = [pytest.mark.sandbox, needs("busybox", "newuidmap", "git")]


@pytest.mark.parametrize("row", [row for row in EVERY if row.words], ids=lambda row: row.id)
def test_a_failure_names_the_thing_and_the_way_out(bench: Bench, row: Row) -> None:
    place = bench.directory / "place"
    place.mkdir()
    if row.id == "empty-repository":
        subprocess.run(["git", "init", "-q", str(place)], check=True)
    builder = bench.image(
        "b", {"assemble": "#!/bin/sh\n", "run": RUN} | dict(row.scripts), row.config
    )
    source = bench.source(row.files)
    known = {
        "source": str(source),
        "builder": builder,
        "tag": bench.tag,
        "place": str(place),
    }
    words = [word.format(**known) for word in row.words]
    if row.warning:
        bench.ocis2i.ok(*words)
        told = bench.ocis2i.ok(*words).err
        assert row.thing in told
        assert row.way_out in told
        return
    if "--run" in words:  # its document is that of the build, which worked
        done = bench.ocis2i(*words)
        assert done.code == row.code
        assert row.thing in error(done)
        assert f"hint: it was built and stored: `{row.way_out}" in done.err
        return
    done = bench.ocis2i(*words, "--json")
    document = done.document
    assert (document["reason"], document["exit_code"], done.code) == (
        row.reason,
        row.code,
        row.code,
    )
    assert row.thing.format(**known) in document["message"]
    assert document["hint"], document["message"]
    assert row.way_out in document["hint"]
