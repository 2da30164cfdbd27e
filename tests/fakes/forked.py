"""The real program, loaded once: a new process for each call, without the time that loading takes.

What a call does is what the program does from `main` on, in a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.fakes.program import Done, Program

_SERVER = """
import json, os, sys
import ocis2i.commands.application, ocis2i.commands.builds, ocis2i.commands.resuming
import ocis2i.commands.pruning
from ocis2i import cli
for line in sys.stdin:
    words, out, err = json.loads(line)
    pid = os.fork()
    if pid == 0:
        null = os.open(os.devnull, os.O_RDONLY)
        for number, fd in enumerate((null, *(os.open(one, os.O_WRONLY) for one in (out, err)))):
            os.dup2(fd, number)
        sys.argv = ["ocis2i", *words]
        cli.main()
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


@dataclass(frozen=True)
class Forked:
    """One that waits for calls; they write into two files of a `directory`."""

    directory: Path
    server: subprocess.Popen[str]

    def __call__(self, *words: str | Path) -> Done:
        """Runs one command line to its end."""
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        out, err = self.directory / "out", self.directory / "err"
        out.write_bytes(b"")
        err.write_bytes(b"")
        call = [[*map(str, words)], str(out), str(err)]
        self.server.stdin.write(json.dumps(call) + "\n")
        self.server.stdin.flush()
        code = int(self.server.stdout.readline())
        return Done(code, out.read_text(), err.read_text())

    def ok(self, *words: str | Path) -> Done:
        """Runs one command line that has to succeed."""
        done = self(*words)
        assert done.code == 0, f"exit code {done.code}\n{done.out}\n{done.err}"
        return done


@contextmanager
def forked(program: Program, directory: Path) -> Iterator[Forked]:
    """The same program, with the same store and environment."""
    with subprocess.Popen(
        [sys.executable, "-c", _SERVER],
        env=dict(program.environment),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=os.getcwd(),
    ) as server:
        yield Forked(directory, server)
        assert server.stdin is not None
        server.stdin.close()
