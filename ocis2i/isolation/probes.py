"""Tries what a build needs of its host: each thing really, in a child of its own, with a limit.

The answers are findings for `ocis2i.isolation.ladder`; what was tried once is remembered.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from functools import partial
from pathlib import Path
from typing import Any

import ocis2i.agent
from ocis2i.isolation.chroot import chroot_refusal
from ocis2i.isolation.ids import MAPPED_IDS, NoIdsError, mapper_refusal, mappers, user_name
from ocis2i.isolation.in_place import in_place_refusal, root_is_read_only
from ocis2i.isolation.ladder import Caller, Finding, Need
from ocis2i.isolation.sentences import (
    Cause,
    Place,
    cause_of_mount,
    cause_of_unshare,
    refusal,
)
from ocis2i.isolation.smallest import smallest_program
from ocis2i.lazy_dataclass import dataclass
from ocis2i.proc import find_program, run

NAMESPACES = ("user", "mount", "pid", "ipc", "uts", "cgroup", "net")
LIMIT_SECONDS = 5.0

_PROGRAM = Path(ocis2i.agent.__file__).with_name("probe.py")
# What proc.run says of a program that it had to end.
_ENDED = 124


@dataclass(frozen=True, slots=True)
class Answer:
    """What a probe said: that it works, with facts, or the step, the error and the words."""

    works: bool
    step: str = ""
    number: int | None = None
    said: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


def ask(
    name: str,
    *,
    through: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    limit_seconds: float = LIMIT_SECONDS,
    **arguments: object,
) -> Answer:
    """Runs the probe `name` of `ocis2i.agent.probe` in a child, `through` another program."""
    argv = [*through, sys.executable, "-I", "-S", str(_PROGRAM), name, json.dumps(arguments)]
    done = run(argv, environment=environment or {}, timeout_seconds=limit_seconds)
    if done.exit_code == _ENDED:
        return Answer(works=False, step="time", said=f"no end after {limit_seconds:g} seconds")
    try:
        found: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        said = done.complaint or f"exit code {done.exit_code}"
        return Answer(works=False, step="start", said=said)
    if found.pop("ok"):
        return Answer(works=True, facts=found)
    return Answer(works=False, step=found["step"], number=found.get("errno"), said=found["said"])


class Probes:
    """The findings at this place, each made when it is asked for."""

    def __init__(
        self,
        place: Place,
        who: Caller,
        *,
        directory: Path,
        store: Finding,
        search_path: str | None,
        given: Mapping[Need, Finding],
    ) -> None:
        """`directory` is ours to try things in; in the store's file system when `store` is usable.

        `given` are the findings that somebody else has made.
        """
        self._place = place
        self._way = "native" if who == "namespace-root" else "single"
        self._directory = str(directory)
        self._store = store
        self._search_path = search_path
        self._known: dict[str, Finding] = {}
        self._known.update(given.items())
        payload = smallest_program(os.uname().machine) or b""
        self._payload = payload.decode("latin-1")

    def look(self, need: Need) -> Finding:
        """The finding for one of the ladder's needs."""
        return self._once(need, partial(self._trial, need))

    def _trial(self, need: Need) -> Finding:
        trials: dict[Need, Callable[[], Finding]] = {
            "full": self._try_full,
            "single": self._try_single,
            "native": self._try_native,
            "lent": self._try_lent,
            "proc": self._try_proc,
            "overlay": self._try_overlay,
            "copy": self._try_copy,
            "chroot": self._try_chroot,
            "in-place": self._try_in_place,
        }
        trial = trials.get(need)
        return trial() if trial else Finding(usable=False, said="not tried")

    def namespace(self, kind: str) -> Finding:
        """Whether a namespace of this kind can be had."""
        return self._once(f"namespace {kind}", partial(self._try_namespace, kind))

    def _once(self, name: str, trial: Callable[[], Finding]) -> Finding:
        if name not in self._known:
            self._known[name] = trial()
        return self._known[name]

    # --- ids --------------------------------------------------------------------------------

    def _try_namespace(self, kind: str) -> Finding:
        if kind == "user":
            return self._judged(ask("namespace", kind=kind, way="single"), native=False)
        return self._judged(ask("namespace", kind=kind, way=self._way))

    def _try_single(self) -> Finding:
        answer = ask("mount", way="single")
        return self._judged(answer, "the caller's id as any one id of a container")

    def _try_native(self) -> Finding:
        answer = ask("native")
        return self._judged(answer, native=True, said="root of a user namespace, which may mount")

    def _try_lent(self) -> Finding:
        program = find_program("buildah", self._search_path)
        if program is None:
            return Finding(usable=False, said="`buildah` is not installed")
        # It looks for newuidmap itself.
        environment = {"PATH": self._search_path or os.defpath}
        answer = ask("native", through=(program, "unshare"), environment=environment)
        if not answer.works:
            return Finding(usable=False, said="`buildah unshare` gets none either")
        return Finding(usable=True, said="the user namespace of `buildah unshare`")

    def _try_full(self) -> Finding:
        if self._way == "native":
            return self._count_own()
        try:
            programs = mappers(search_path=self._search_path, place=self._place)
        except NoIdsError as error:
            return Finding.refused(error.why)
        answer = ask("full", directory=self._directory, mappers=programs)
        if answer.step in ("newuidmap", "newgidmap"):
            return Finding.refused(mapper_refusal(answer.step, answer.said, self._place))
        if answer.step == "owner":
            return Finding.refused(refusal("owners-refused", self._place, said=answer.said))
        count = min(_mapped(argv) for argv in programs)
        few = "" if count >= MAPPED_IDS else f", fewer than the {MAPPED_IDS} that images may use"
        return self._judged(answer, f"{count} ids by newuidmap and newgidmap{few}")

    def _count_own(self) -> Finding:
        """The ids of the user namespace that we are root of."""
        maps = [Path(f"/proc/self/{name}").read_text() for name in ("uid_map", "gid_map")]
        count = min(sum(map(int, text.split()[2::3])) for text in maps)
        if count == 1:
            return Finding.refused(refusal("one-id", self._place))
        return Finding(usable=True, said=f"{count} ids of the user namespace that we are root of")

    def _judged(self, answer: Answer, said: str = "", *, native: bool | None = None) -> Finding:
        if answer.works:
            return Finding(usable=True, said=said)
        cause: Cause | None = None
        if answer.step in ("unshare", "map"):
            own = self._way == "native" if native is None else native
            cause = cause_of_unshare(answer.number, self._place, native=own)
        elif answer.step == "mount":
            cause = cause_of_mount(answer.number, self._place)
        if cause is None:
            return Finding(usable=False, said=f"{answer.step}: {answer.said}")
        return Finding.refused(refusal(cause, self._place))

    # --- the tree ---------------------------------------------------------------------------

    def _try_proc(self) -> Finding:
        answer = ask("proc", way=self._way)
        if answer.step == "proc":
            return Finding.refused(refusal("proc-masked", self._place))
        return self._judged(answer, "containers get a /proc of their own")

    def _try_overlay(self) -> Finding:
        if not self._store.usable:
            return self._store
        answer = ask("overlay", directory=self._directory, way=self._way, program=self._payload)
        if answer.step in ("overlay", "execute"):
            return Finding.refused(refusal("overlay-refused", self._place, said=answer.said))
        return self._judged(answer, "mounted with userxattr, and keeps its marks")

    def _try_copy(self) -> Finding:
        if not self._store.usable:
            return self._store
        answer = ask("copy", directory=self._directory, program=self._payload)
        if answer.step == "execute":
            return Finding.refused(refusal("noexec", self._place))
        if not answer.works:
            return self._judged(answer)
        shares = answer.facts["shares_blocks"]
        return Finding(
            usable=True, said="shares blocks with the layers" if shares else "of every block"
        )

    # --- weak -------------------------------------------------------------------------------

    def _try_chroot(self) -> Finding:
        answer = ask("chroot", directory=self._directory)
        if answer.works:
            return Finding(usable=True, said="root with the capabilities that it takes")
        if answer.step == "device":
            return Finding.refused(refusal("no-devices", self._place, said=answer.said))
        said = chroot_refusal(Path("/proc/self/status").read_text())
        said = said or f"{answer.step}: {answer.said}"
        return Finding.refused(refusal("no-capability", self._place, said=said))

    def _try_in_place(self) -> Finding:
        why = in_place_refusal(self._place, read_only=root_is_read_only())
        if why:
            return Finding.refused(why)
        return Finding(usable=True, said=f"by its name only, as `{user_name()}`")

    def device(self, path: str) -> Finding:
        """Whether a device file opens."""
        return self._once(path, lambda: _plain(ask("device", path=path)))


def _plain(answer: Answer) -> Finding:
    return Finding(usable=answer.works, said="" if answer.works else answer.said)


def _mapped(argv: list[str]) -> int:
    """How many ids the arguments of newuidmap map: every third one is a count."""
    return sum(map(int, argv[4::3]))
