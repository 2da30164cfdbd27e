"""Runs a process by the agent's own executor: no container program needed."""

from __future__ import annotations

import time

from ocis2i.isolation.agent import Agent
from ocis2i.isolation.oci_runtime import runtime_config, with_filter
from ocis2i.isolation.streams import carry
from ocis2i.runner import Availability, RootfsHandle, RunResult, RunSpec, Stdio


class Builtin:
    """A `Runner` by system calls of our own, in `ocis2i.agent.container`."""

    name = "builtin"

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    def check(self) -> Availability:
        """Always: where the agent runs, its executor does."""
        return Availability(usable=True, reason="part of ocis2i")

    def run(self, rootfs: RootfsHandle, spec: RunSpec, stdio: Stdio) -> RunResult:
        """Runs `spec` to its end; see `Runner`."""
        config = with_filter(runtime_config(spec, rootfs.path, self._agent.ground), spec.hardening)
        started = time.monotonic()
        code = carry(
            self._agent,
            lambda *fds, **more: self._agent.post(
                "execute", *fds, config=config, rootfs=rootfs.path, **more
            ),
            stdio,
            name=spec.argv[0],
            limits=spec.limits,
            terminal=spec.terminal is not None,
        )
        return RunResult(code, time.monotonic() - started)
