"""Runs a process by runc, inside the agent's namespaces."""

from __future__ import annotations

import json
import time
from pathlib import Path

from ocis2i.errors import IsolationError, ScriptError
from ocis2i.isolation.agent import Agent
from ocis2i.isolation.oci_runtime import runtime_config
from ocis2i.isolation.streams import carry
from ocis2i.proc import find_program
from ocis2i.runner import Availability, RootfsHandle, RunResult, RunSpec, Stdio

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Runc:
    """A `Runner` by runc: mature code for the part that security hangs on."""

    name = "runc"

    def __init__(self, agent: Agent, *, search_path: str | None) -> None:
        self._agent = agent
        self._program = find_program("runc", search_path)

    def check(self) -> Availability:
        """Whether there is a runc."""
        if self._program is None:
            return Availability(usable=False, reason="`runc` is not installed")
        return Availability(usable=True, reason=self._program)

    def run(self, rootfs: RootfsHandle, spec: RunSpec, stdio: Stdio) -> RunResult:
        """Runs `spec` to its end; see `Runner`."""
        build = Path(rootfs.build)
        bundle = build / "bundle"
        # In memory: it has the values of variables that are for the build alone.
        config = json.dumps(runtime_config(spec, rootfs.path))
        self._agent.request("keep", directory=str(bundle), files={"config.json": config})
        log = build / "runc.log"
        log.unlink(missing_ok=True)
        argv = [
            str(self._program),
            *("--root", str(build / "runc"), "--log", str(log), "--log-format", "json"),
            *("run", "--bundle", str(bundle), f"ocis2i-{build.name}"),
        ]
        started = time.monotonic()
        code = carry(
            self._agent,
            lambda *fds: self._agent.post("run", *fds, argv=argv, environment={"PATH": _PATH}),
            stdio,
            name=spec.argv[0],
        )
        if code:
            _explain_failure(log, spec)
        return RunResult(code, time.monotonic() - started)


def _explain_failure(log: Path, spec: RunSpec) -> None:
    """Raises when it was runc that failed, and not the process in the container."""
    complaint = last_error(log.read_text(errors="replace") if log.exists() else "")
    if complaint is None:
        return
    if "exec" in complaint and spec.argv[0] in complaint:
        code = 126 if "permission denied" in complaint else 127
        raise ScriptError(
            f"`{spec.argv[0]}` cannot be started: {complaint.rpartition(': ')[2]}",
            script_exit_code=code,
            hint="is it executable, and does the interpreter in its first line exist in the image?",
        )
    raise IsolationError(
        f"runc cannot run the container: {complaint}",
        hint="--isolation builtin does without runc",
    )


def last_error(log: str) -> str | None:
    """The last error in runc's log (one JSON object a line), `None` when there is none."""
    for line in reversed(log.splitlines()):
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and entry.get("level") in ("error", "fatal"):
            return str(entry.get("msg", "")).strip()
    return None
