"""Runs a process by runc or crun, inside the agent's namespaces."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from typing import Any, Literal

from ocis2i.errors import IsolationError, ScriptError
from ocis2i.isolation.agent import Agent
from ocis2i.isolation.ground import check_one_id
from ocis2i.isolation.oci_runtime import runtime_config
from ocis2i.isolation.sentences import start_way_out
from ocis2i.isolation.smallest import smallest_program
from ocis2i.isolation.streams import carry
from ocis2i.proc import find_program
from ocis2i.runner import Availability, RootfsHandle, RunResult, RunSpec, Stdio
from ocis2i.s2i import Identity

PROGRAM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# A runtime that has not run a program of three instructions by then never will.
PROBE_SECONDS = 15.0

_UNIFIED = Path("/sys/fs/cgroup/unified")
_STARTING = re.compile(r"open executable|executable file|exec container process|\bexec: ")
_NOT_EXECUTABLE = re.compile(
    r"permission denied|not permitted|format error|is a directory", re.IGNORECASE
)

# runc reads /proc/PID/fd of its container, crun /proc/PID/stat: outside the number is another's,
# and it depends on what runs there whether that fails.
OUTER_PROC = "it looks for its container in /proc, and here that is the one outside"
# What is run to see whether anything can be.
TRIAL = RunSpec(("/true",), (), "/", Identity(0, 0), cap_drop=frozenset({"ALL"}))


class OciProgram:
    """A `Runner` by an OCI runtime: mature code for the part that security hangs on."""

    def __init__(
        self,
        name: Literal["runc", "crun"],
        agent: Agent,
        *,
        search_path: str | None,
        directory: Path,
    ) -> None:
        """`directory` is the session's; the probe works in it. `program` is the path found."""
        self.name = name
        self._agent = agent
        self.program = find_program(name, search_path)
        self._directory = directory
        self._checked: Availability | None = None

    def check(self) -> Availability:
        """Whether the program is there and really runs something; tried once."""
        if self._checked is None:
            self._checked = self._try()
        return self._checked

    def _try(self) -> Availability:
        place = self._directory / "try"
        early = prepare_trial(self.name, self.program, self._agent, place)
        if early:
            return early
        call = self._call(TRIAL, rootfs=str(place), build=self._directory)
        null = os.open(os.devnull, os.O_RDWR)
        try:
            done = self._agent.request("run", *[null] * 3, **call, limit_seconds=PROBE_SECONDS)
        except IsolationError as error:
            return Availability(usable=False, reason=error.message)
        finally:
            os.close(null)
        if done["exit"] == 0:
            return Availability(usable=True, reason=str(self.program))
        said = self._complaint(self._directory) or f"exit code {done['exit']}"
        return Availability(usable=False, reason=f"`{self.program}` does not work here: {said}")

    def run(self, rootfs: RootfsHandle, spec: RunSpec, stdio: Stdio) -> RunResult:
        """Runs `spec` to its end; see `Runner`."""
        check_one_id(self.name, self._agent.ground, spec)
        build = Path(rootfs.build)
        call = self._call(spec, rootfs=rootfs.path, build=build)
        started = time.monotonic()
        code = carry(
            self._agent,
            lambda *fds, **more: self._agent.post("run", *fds, **call, **more),
            stdio,
            name=spec.argv[0],
            limits=spec.limits,
            terminal=spec.terminal is not None,
        )
        if code:
            self._explain_failure(self._complaint(build), spec)
        return RunResult(code, time.monotonic() - started)

    def _call(self, spec: RunSpec, *, rootfs: str, build: Path) -> dict[str, Any]:
        """Writes the bundle; the agent's request `run` for it."""
        place = build / self.name
        config = runtime_config(spec, rootfs, self._agent.ground)
        view = None
        if self.name == "crun" and is_hybrid():
            view, config = hybrid_view(config, build)
        # In memory: it has the values of variables that are for the build alone.
        files = {"config.json": json.dumps(config)}
        self._agent.request("keep", directory=str(place), files=files)
        log = build / f"{self.name}.log"
        log.unlink(missing_ok=True)
        argv = [
            str(self.program),
            *("--root", str(place / "state"), "--log", str(log), "--log-format", "json"),
            *("run", "--bundle", str(place), f"ocis2i-{build.name}"),
        ]
        return {"argv": argv, "environment": {"PATH": PROGRAM_PATH}, "view": view}

    def _complaint(self, build: Path) -> str | None:
        log = build / f"{self.name}.log"
        return last_error(log.read_text(errors="replace") if log.exists() else "")

    def _explain_failure(self, complaint: str | None, spec: RunSpec) -> None:
        """Raises when it was the runtime that failed, and not the process in the container."""
        if complaint is None:
            return
        raise_not_started(complaint, spec.argv[0])
        raise IsolationError(
            f"{self.name} cannot run the container: {complaint}",
            hint=f"--isolation builtin does without {self.name}",
        )


def prepare_trial(name: str, program: str | None, agent: Agent, place: Path) -> Availability | None:
    """Makes `place` the rootfs that `TRIAL` runs in; the answer where trying is of no use."""
    if program is None:
        return Availability(usable=False, reason=f"`{name}` is not installed")
    if not agent.ground.fresh_proc:
        return Availability(usable=False, reason=OUTER_PROC)
    payload = smallest_program(os.uname().machine)
    if payload is None:
        return Availability(usable=True, reason=f"{program}, not tried")
    files = {"true": payload.decode("latin-1")}
    agent.request("keep", directory=str(place), files=files, mode=0o755)
    return None


def is_hybrid(unified: Path = _UNIFIED) -> bool:
    """Whether cgroups v1 and v2 share the controllers: crun then refuses to do anything.

    It looks before it reads its options (`libcrun_get_cgroup_mode`), so none of them helps.
    """
    try:
        return bool((unified / "cgroup.controllers").read_text().strip())
    except OSError:
        return False


def hybrid_view(config: dict[str, Any], build: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What crun alone sees on such a host, version 2 where it looks, and the config that fits.

    The container gets /sys as it was, from a second place: with every executor it is the same.
    """
    aside = f"{build}/sys"
    binds = [["/sys", aside], [str(_UNIFIED), str(_UNIFIED.parent)]]
    mounts = [
        {**mount, "source": aside + mount["source"].removeprefix("/sys")}
        if f"{mount['source']}/".startswith("/sys/")
        else mount
        for mount in config["mounts"]
    ]
    return {"binds": binds}, {**config, "mounts": mounts}


def raise_not_started(complaint: str, program: str) -> None:
    """Raises `ScriptError` when the complaint is that the container's program cannot be started."""
    code = start_failure(complaint, program)
    if code is not None:
        raise ScriptError(
            f"`{program}` cannot be started: {complaint.rpartition(': ')[2]}",
            script_exit_code=code,
            started=False,
            hint=start_way_out(program, code),
        )


def start_failure(complaint: str, program: str) -> int | None:
    """What a shell says of such a program: 126 or 127; `None` when it is about something else."""
    named = program in complaint or "open executable" in complaint  # crun does not say which
    if not named or not _STARTING.search(complaint):
        return None
    return 126 if _NOT_EXECUTABLE.search(complaint) else 127


def last_error(log: str) -> str | None:
    """The last error in a runtime's log (one JSON object a line), `None` when there is none."""
    for line in reversed(log.splitlines()):
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and entry.get("level") in ("error", "fatal"):
            return str(entry.get("msg", "")).strip()
    return None
