"""The real program in a process of its own, with a private store and home; used by tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ARGV = (sys.executable, "-m", "ocis2i")
PROJECT = Path(__file__).parent.parent.parent


@dataclass(frozen=True)
class Done:
    """How a call ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """Standard output as one JSON document."""
        value = json.loads(self.out)
        assert isinstance(value, dict)
        return value


def called(
    argv: Sequence[str | Path],
    environment: Mapping[str, str],
    *,
    cwd: Path | None = None,
    stdin: Path | None = None,
    timeout: float = 300,
) -> Done:
    """Runs any program to its end, with the file `stdin` as standard input."""
    with Path(stdin or os.devnull).open("rb") as given:
        done = subprocess.run(
            [*map(str, argv)],
            env=dict(environment),
            cwd=cwd,
            stdin=given,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
        )
    return Done(done.returncode, done.stdout, done.stderr)


@dataclass(frozen=True)
class Program:
    """ocis2i with one store; `environment` is all that it gets to see.

    The `launcher` starts it somewhere else (see `tests/fakes/hosts.py`).
    """

    store: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    launcher: tuple[str, ...] = ()

    def __call__(
        self,
        *arguments: str | Path,
        timeout: float = 300,
        cwd: Path | None = None,
        stdin: Path | None = None,
        **variables: str,
    ) -> Done:
        """Runs one command line to its end, with the file `stdin` as standard input."""
        argv = [*self.launcher, *ARGV, *map(str, arguments)]
        environment = {**self.environment, **variables}
        return called(argv, environment, cwd=cwd, stdin=stdin, timeout=timeout)

    def ok(
        self,
        *arguments: str | Path,
        timeout: float = 300,
        cwd: Path | None = None,
        stdin: Path | None = None,
        **variables: str,
    ) -> Done:
        """Runs one command line that has to succeed."""
        done = self(*arguments, timeout=timeout, cwd=cwd, stdin=stdin, **variables)
        assert done.code == 0, f"exit code {done.code}\n{done.out}\n{done.err}"
        return done

    def start(self, *arguments: str | Path, **variables: str) -> subprocess.Popen[str]:
        """Starts a command line that goes on beside the test."""
        return subprocess.Popen(
            [*self.launcher, *ARGV, *map(str, arguments)],
            env={**self.environment, **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    @property
    def layout(self) -> Path:
        """The store's images, an OCI image layout."""
        return self.store / "images"


@contextmanager
def program(directory: Path) -> Iterator[Program]:
    """A program with store and home in `directory`; the store is emptied at the end."""
    home = directory / "home"
    home.mkdir()
    kept = {
        name: value
        for name, value in os.environ.items()
        if name.startswith(("LC_", "PYTHON")) or name in ("LANG", "TMPDIR")
    }
    environment = kept | {
        "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin",
        "HOME": str(home),
        "OCIS2I_ROOT": str(directory / "store"),
        "PYTHONPATH": str(PROJECT),
        "PYTHONDONTWRITEBYTECODE": "1",
        # Who tests builds wants them to be built; tests/e2e/test_unchanged.py takes it away.
        "OCIS2I_NO_CACHE": "1",
    }
    ocis2i = Program(directory / "store", environment)
    try:
        yield ocis2i
    finally:
        # What belongs to subordinate ids cannot be removed by the test's own clean-up.
        pruned = ocis2i("prune", "--all")
    assert pruned.code == 0, pruned.err
