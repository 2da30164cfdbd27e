"""Runs a process in a copy of the image by chroot(2): for root without the rights to mount.

Weak: for a job that is root in a container with ordinary capabilities. See `ocis2i.agent.direct`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ocis2i.errors import IsolationError
from ocis2i.isolation.agent import Agent
from ocis2i.isolation.oci_runtime import runtime_config, with_filter
from ocis2i.isolation.streams import carry
from ocis2i.runner import Availability, BindMount, RootfsHandle, RunResult, RunSpec, Stdio
from ocis2i.syscalls import CAPABILITIES

# To go into a tree, to own and read what is in it as anybody, and to be somebody else there. What
# Docker and Kubernetes give to root by default has all of them.
NEEDED = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
)
# Files in the tree stand for those that are mounts elsewhere.
_FILES = ("/etc/resolv.conf", "/etc/hosts")


class Chroot:
    """A `Runner` by chroot(2); the agent must have no namespaces."""

    name = "chroot"

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    def check(self) -> Availability:
        """Whether this process has the rights that it takes."""
        reason = chroot_refusal(Path("/proc/self/status").read_text())
        return Availability(usable=reason is None, reason=reason or "chroot(2)")

    def run(self, rootfs: RootfsHandle, spec: RunSpec, stdio: Stdio) -> RunResult:
        """Runs `spec` to its end; see `Runner`."""
        files = [[mount.source, mount.target] for mount in spec.mounts if mount.target in _FILES]
        refuse_mounts(self.name, [one for one in spec.mounts if one.target not in _FILES])
        # With this one root goes into another tree, and by that out of this one (chroot(2)).
        plain = replace(spec, mounts=(), cap_drop=spec.cap_drop | {"CAP_SYS_CHROOT"})
        return run_directly(self._agent, plain, stdio, rootfs.path, files)


def run_directly(
    agent: Agent, spec: RunSpec, stdio: Stdio, tree: str | None, files: Sequence[Sequence[str]] = ()
) -> RunResult:
    """Runs `spec` without namespaces in `tree`, or in the agent's own `/`; see `Runner`.

    `files` (source, target) stand in the tree meanwhile.
    """
    config = runtime_config(spec, tree or "/", agent.ground)
    config = with_filter(config, spec.hardening, tracing=False)
    started = time.monotonic()
    code = carry(
        agent,
        lambda *fds, **more: agent.post(
            "direct", *fds, config=config, rootfs=tree, files=files, **more
        ),
        stdio,
        name=spec.argv[0],
        limits=spec.limits,
        terminal=spec.terminal is not None,
    )
    return RunResult(code, time.monotonic() - started)


def chroot_refusal(status: str) -> str | None:
    """Why a process with this /proc/self/status cannot use chroot(2) for builds. Pure."""
    facts = dict(re.findall(r"(?m)^(\w+):\s*(\w+)", status))
    if facts["Uid"] != "0":
        return f"it takes root, and this is user {facts['Uid']}"
    effective = int(facts["CapEff"], 16)
    missing = [name for name in NEEDED if not effective & 1 << CAPABILITIES.index(name)]
    if missing:
        return f"root has not the capabilities {', '.join(missing)}"
    return None


def refuse_mounts(name: str, mounts: list[BindMount]) -> None:
    """Raises `IsolationError` for what would have to be mounted."""
    if mounts:
        raise IsolationError(
            f"`{mounts[0].target}` would have to be mounted, and --isolation {name} mounts nothing",
            hint="leave it out, or choose a stronger --isolation",
        )
