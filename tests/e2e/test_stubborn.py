"""Scripts that will not stop."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.fakes.program import Program


@pytest.mark.sandbox
@pytest.mark.parametrize("isolation", ["runc", "builtin"])
def test_a_script_that_prints_for_ever_and_ignores_signals_is_killed(
    ocis2i: Program, builder: str, source: Path, isolation: str
) -> None:
    scripts = source / ".s2i/bin"
    scripts.mkdir(parents=True)
    (scripts / "assemble").write_text(
        "#!/bin/sh\ntrap '' INT TERM HUP\necho started\nwhile :; do echo on and on; done\n"
    )
    with ocis2i.start("build", source, builder, "app:1", "--isolation", isolation) as running:
        assert running.stderr
        assert any("started" in line for line in iter(running.stderr.readline, ""))
        os.kill(running.pid, signal.SIGTERM)
        while running.stderr.read(1 << 16):
            pass
    assert running.returncode == 128 + signal.SIGTERM
    assert list((ocis2i.store / "builds").iterdir()) == []
