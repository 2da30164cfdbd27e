"""Runs a process right where ocis2i is, in the container that is the builder image.

No isolation at all, for pods that may do nothing: with any user id and no capability.
"""

from __future__ import annotations

import os
from dataclasses import replace

from ocis2i.isolation.agent import Agent
from ocis2i.isolation.chroot import refuse_mounts, run_directly
from ocis2i.isolation.sentences import Place, Refusal, refusal
from ocis2i.runner import Availability, RootfsHandle, RunResult, RunSpec, Stdio


class InPlace:
    """A `Runner` by fork(2) and exec(2); the agent must have no namespaces."""

    name = "in-place"

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    def check(self) -> Availability:
        """Always: it takes nothing but a container that is the builder."""
        return Availability(usable=True, reason="no isolation")

    def run(self, rootfs: RootfsHandle, spec: RunSpec, stdio: Stdio) -> RunResult:  # noqa: ARG002
        """Runs `spec` to its end as the current user; see `Runner`."""
        refuse_mounts(self.name, list(spec.mounts))
        # Who is in one tree with the host does not go into another.
        plain = replace(spec, cap_drop=spec.cap_drop | {"CAP_SYS_CHROOT"})
        return run_directly(self._agent, plain, stdio, None)


def in_place_refusal(place: Place, *, read_only: bool) -> Refusal | None:
    """Why no builder image's container is here to build in, `/` being `read_only` or not. Pure.

    A place without a mark may still be a container: then its root is no disk.
    """
    if place.kind == "host" and place.root_is_a_disk:
        return refusal("no-container", place)
    return refusal("read-only-root", place) if read_only else None


def root_is_read_only() -> bool:
    """Whether `/` cannot be written, whoever one is."""
    return bool(os.statvfs("/").f_flag & os.ST_RDONLY)
