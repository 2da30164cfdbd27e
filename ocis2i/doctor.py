"""What a host gives to builds, which way of isolation they take, and what would give more."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Literal, TypeAlias

from ocis2i.documents import VERSION
from ocis2i.errors import Ocis2iError
from ocis2i.fs import remove_tree
from ocis2i.isolation import cgroups, ladder
from ocis2i.isolation.ids import is_whole_host, user_name
from ocis2i.isolation.ladder import Caller, Choice, Finding, Need, Refused, Step, Wish
from ocis2i.isolation.place import find_place, status_fields
from ocis2i.isolation.probes import NAMESPACES, Probes
from ocis2i.isolation.sentences import Place, refusal
from ocis2i.lazy_dataclass import dataclass
from ocis2i.limits import human_size
from ocis2i.proc import find_program, run
from ocis2i.reference import Reference
from ocis2i.registry import Registry
from ocis2i.session import session
from ocis2i.settings import Settings
from ocis2i.store import Store

# `yes` and `no` say whether it works; `info` is how it is, neither good nor bad.
State: TypeAlias = Literal["yes", "no", "info"]

# Below these the next builder image may not fit.
_LITTLE_BYTES = 1 << 30
_FEW_INODES = 10_000
# Tokens and certificates are valid from a minute on; clocks differ by seconds.
_SKEW_SECONDS = 300
_OLDEST_YEAR = 2024
_PROGRAMS: tuple[Need, ...] = ("runc", "crun", "buildah")
_NETWORK_FILE_SYSTEMS = ("nfs", "cifs", "smb", "fuse.sshfs", "9p", "afs", "ceph", "lustre")
_VERSION_SECONDS = 10.0
_USE_LOCAL = "a local disk is faster, and takes files of subordinate ids"
# A session with namespaces, in which every executor can be tried.
_ANY_EXECUTOR = "builtin"


@dataclass(frozen=True, slots=True)
class Facility:
    """One thing that a host has or lacks."""

    name: str
    state: State
    said: str = ""
    hint: str | None = None

    @classmethod
    def of(cls, name: str, finding: Finding) -> Facility:
        """As the ladder's finding has it."""
        hint = finding.refusal.way_out.hint if finding.refusal else None
        return cls(name, "yes" if finding.usable else "no", finding.said, hint)


@dataclass(frozen=True, slots=True)
class RungState:
    """A rung of the ladder, and whether it can be used here."""

    rung: ladder.Rung
    finding: Finding


@dataclass(frozen=True, slots=True)
class Report:
    """What was found. `steps` are the changes that would give more, the first one first."""

    host: Mapping[str, str]
    facilities: tuple[Facility, ...]
    rungs: tuple[RungState, ...]
    wish: Wish
    choice: Choice | Refused
    steps: tuple[Step, ...]

    @property
    def usable(self) -> bool:
        """Whether a build starts here, and strongly isolated unless something else was named."""
        if isinstance(self.choice, Refused):
            return False
        return self.choice.strength == "isolated" or self.wish.isolation != "auto"

    def document(self) -> dict[str, Any]:
        """As the JSON document; see `docs/json.md`."""
        return {
            "version": VERSION,
            "state": "succeeded" if self.usable else "failed",
            "usable": self.usable,
            "host": dict(self.host),
            "facilities": [
                {"name": one.name, "state": one.state, "said": one.said, "hint": one.hint}
                for one in self.facilities
            ],
            "rungs": [
                {
                    "name": one.rung.name,
                    "strength": one.rung.strength,
                    "usable": one.finding.usable,
                    "said": one.finding.said,
                    "needs": one.rung.needs,
                    "protects": one.rung.protects,
                }
                for one in self.rungs
            ],
            "wanted": self.wish.isolation,
            "choice": _choice_document(self.choice),
            "refusal": _refusal_document(self.choice),
            "changes": [_step_document(step) for step in self.steps],
        }


def _choice_document(choice: Choice | Refused) -> dict[str, Any] | None:
    if isinstance(choice, Refused):
        return None
    return {
        "isolation": choice.executor,
        "label": choice.label,
        "strength": choice.strength,
        "ids": choice.ids,
        "rootfs": choice.rootfs,
        "own_proc": choice.fresh_proc,
    }


def _refusal_document(choice: Choice | Refused) -> dict[str, Any] | None:
    if isinstance(choice, Choice):
        return None
    return {"message": choice.text, "hint": choice.hint}


def _step_document(step: Step) -> dict[str, Any]:
    return {
        "brings": step.brings,
        "why": step.why,
        "change": step.way_out.text,
        "exact": list(step.way_out.exact),
    }


# --- looking ------------------------------------------------------------------------------------


def examine(
    settings: Settings,
    wish: Wish,
    *,
    registry: Registry,
    references: Sequence[str] = (),
    now: Callable[[], datetime],
) -> Report:
    """Tries everything. Nothing stays behind but an empty store.

    Call from the main thread (see `session`).
    """
    place = find_place()
    who = ladder.caller(
        os.geteuid(), whole_host=is_whole_host(Path("/proc/self/uid_map").read_text())
    )
    registries, skews = _ask_registries(references, registry, now)
    with _ground(settings.store_root) as ground:
        executors = _try_executors(settings, ground)
        probes = Probes(
            place,
            who,
            directory=ground.directory,
            store=ground.finding,
            search_path=settings.environment.get("PATH"),
            given=executors,
        )
        choice = ladder.choose(wish, who, probes.look, place)
        return Report(
            host=_host(place, who),
            facilities=(
                *_namespaces(probes),
                *_ids(probes, who),
                *_tree(probes),
                *_restrictions(place),
                *_devices(probes),
                _cgroup(),
                *_programs(executors, settings.environment.get("PATH")),
                *_disk(settings.store_root, ground.finding),
                clock(now(), skews),
                *registries,
            ),
            rungs=tuple(_rung(one, who, probes, place) for one in ladder.RUNGS),
            wish=wish,
            choice=choice,
            steps=ladder.steps_up(choice, who, probes.look, place),
        )


@dataclass(frozen=True, slots=True)
class _Ground:
    """Where things are tried: a build's directory in the store, or elsewhere without `store`."""

    directory: Path
    finding: Finding
    store: Store | None = None


@contextmanager
def _ground(root: Path) -> Iterator[_Ground]:
    with contextlib.ExitStack() as stack:
        try:
            store = Store.open(root)
            stack.enter_context(store.in_use())
            directory, _ = stack.enter_context(store.new_build())
            stack.callback(remove_tree, directory)
            ground = _Ground(directory, Finding(usable=True), store)
        except Ocis2iError as error:
            stack.close()
            finding = Finding.refused(refusal("no-store", said=error.message))
            try:
                directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            except OSError:
                directory = Path("/nonexistent")  # what is tried there says so
            ground = _Ground(directory, finding)
        yield ground


def _try_executors(settings: Settings, ground: _Ground) -> dict[Need, Finding]:
    """Each executor really runs something, in a session as a build has it."""
    if ground.store is None:
        return _not_tried(ground.finding.said)
    try:
        with session(
            ground.store, replace(settings, rootfs="auto"), isolation=_ANY_EXECUTOR
        ) as here:
            return {ladder.rung(one.name).name: here.find(one) for one in here.runners()}
    except Ocis2iError as error:
        return _not_tried(error.message)


def _not_tried(why: str) -> dict[Need, Finding]:
    finding = Finding(usable=False, said=f"not tried: {why}")
    return dict.fromkeys(("runc", "crun", "builtin", "buildah"), finding)


def _rung(rung: ladder.Rung, who: Caller, probes: Probes, place: Place) -> RungState:
    """Whether a rung can be used, and if not why: its own reason, or that of all containers."""
    found = ladder.choose(Wish(isolation=rung.name), who, probes.look, place)
    if isinstance(found, Choice):
        finding = probes.look(rung.name)
        if found.ids == "single" and rung.name != "builtin":
            finding = replace(finding, said=f"{finding.said}; for containers of root alone")
        return RungState(rung, finding)
    said = found.text.removeprefix(f"isolation `{rung.name}` cannot be used: ")
    return RungState(rung, Finding(usable=False, said=said))


# --- facilities ---------------------------------------------------------------------------------


def _host(place: Place, who: Caller) -> dict[str, str]:
    system = os.uname()
    return {
        "kernel": system.release,
        "machine": system.machine,
        "user": user_name(),
        "uid": str(os.geteuid()),
        "gid": str(os.getegid()),
        "caller": who,
        "place": place.kind,
    }


def _namespaces(probes: Probes) -> list[Facility]:
    return [Facility.of(f"{kind} namespace", probes.namespace(kind)) for kind in NAMESPACES]


def _ids(probes: Probes, who: Caller) -> list[Facility]:
    if who == "namespace-root":
        return [Facility.of("ids: native", probes.look("native"))]
    facilities = [
        Facility.of("ids: full", probes.look("full")),
        Facility.of("ids: single", probes.look("single")),
    ]
    if not probes.look("single").usable:
        facilities.append(Facility.of("ids: by buildah", probes.look("lent")))
    return facilities


def _tree(probes: Probes) -> list[Facility]:
    return [
        Facility.of("own /proc", probes.look("proc")),
        Facility.of("rootfs: overlay", probes.look("overlay")),
        Facility.of("rootfs: copy", probes.look("copy")),
    ]


def _restrictions(place: Place) -> list[Facility]:
    status = status_fields(_read("/proc/self/status"))
    modes = {"0": "none", "1": "strict", "2": "a filter of whoever started us"}
    switch = {True: "restricted", False: "free", None: "not on this kernel"}
    enforced = {"1": "enforcing", "0": "permissive"}.get(_read("/sys/fs/selinux/enforce"), "off")
    most = place.most_namespaces
    profile = _read("/proc/self/attr/apparmor/current") or _read("/proc/self/attr/current")
    return [
        Facility("no_new_privs", "info", "set" if place.no_new_privs else "not set"),
        Facility("seccomp", "info", modes.get(status.get("Seccomp", ""), "not on this kernel")),
        Facility(
            "AppArmor",
            "info",
            f"user namespaces: {switch[place.apparmor_restricts]}; profile: {profile or 'none'}",
        ),
        Facility("SELinux", "info", enforced),
        Facility(
            "namespace limit", "info", "not known" if most is None else f"{most} of each user"
        ),
    ]


def _devices(probes: Probes) -> list[Facility]:
    """Nice to have: no rung needs them, two of the networks do."""
    found = []
    for path, use in (
        ("/dev/fuse", "ocis2i does without"),
        ("/dev/net/tun", "for --network slirp4netns and pasta only"),
    ):
        finding = probes.device(path)
        said = "opens" if finding.usable else finding.said
        found.append(Facility(path, "info", f"{said} ({use})"))
    return found


def _cgroup() -> Facility:
    version = "2" if Path("/sys/fs/cgroup/cgroup.controllers").exists() else "1"
    if version == "1" and Path("/sys/fs/cgroup/unified").exists():
        version = "1 and 2"
    reason = cgroups.refusal()
    if reason is None:
        return Facility("cgroup", "yes", f"version {version}, delegated: exact limits")
    return Facility(
        "cgroup",
        "info",
        f"version {version}, not delegated: limits are kept by rlimits and by watching ({reason})",
        "start ocis2i by `systemd-run --user --scope -p Delegate=yes`",
    )


def _programs(executors: Mapping[Need, Finding], search_path: str | None) -> list[Facility]:
    found = []
    for name in _PROGRAMS:
        program = find_program(name, search_path)
        facility = Facility.of(name, executors[name])
        if program is not None:
            version = _version(program)
            said = "runs" if facility.state == "yes" else facility.said
            facility = replace(facility, said=f"{version}, {program}: {said}")
        found.append(facility)
    return found


def _version(program: str) -> str:
    try:
        done = run([program, "--version"], environment={}, timeout_seconds=_VERSION_SECONDS)
    except OSError as error:
        return error.strerror or str(error)
    lines = done.text.splitlines()
    found = re.search(r"\d+\.[\w.+~-]+", lines[0]) if lines else None
    return found[0] if found else "unknown version"


def _disk(root: Path, finding: Finding) -> list[Facility]:
    there = next(path for path in (root, *root.parents) if path.exists())
    facts = os.statvfs(there)
    kind = file_system(_read("/proc/self/mountinfo"), str(there.resolve()))
    noexec = ", noexec" if facts.f_flag & os.ST_NOEXEC else ""
    network = kind.startswith(_NETWORK_FILE_SYSTEMS)
    free = facts.f_bavail * facts.f_frsize
    little = free < _LITTLE_BYTES
    # btrfs and others make inodes as they need them, and count none.
    few = bool(facts.f_files) and facts.f_favail < _FEW_INODES
    inodes = f"{facts.f_favail} inodes" if facts.f_files else "inodes without limit"
    place = f"`{root}` on {kind}{noexec}"
    where = Facility("store", "yes", place)
    if not finding.usable:
        where = Facility.of("store", finding)
    elif network:
        where = Facility("store", "info", f"{place}, over the network", _USE_LOCAL)
    space = Facility(
        "disk space",
        "no" if little or few else "yes",
        f"{human_size(free)} and {inodes} free",
        "free some space (`ocis2i prune`), or use another disk with --root"
        if little or few
        else None,
    )
    return [where, space]


def file_system(mounts: str, path: str) -> str:
    """The type of the file system that `path` is on, by /proc/self/mountinfo. Pure."""
    best, kind = "", "an unknown file system"
    for line in mounts.splitlines():
        left, _, right = line.partition(" - ")
        point = left.split()[4].replace("\\040", " ")
        inside = point in ("/", path) or path.startswith(f"{point}/")
        if inside and len(point) >= len(best):
            best, kind = point, right.split()[0]
    return kind


def clock(now: datetime, skews: Mapping[str, float]) -> Facility:
    """Whether our clock can be right; `skews` are the seconds by which others are ahead. Pure."""
    if now.year < _OLDEST_YEAR:
        return Facility("clock", "no", f"it is said to be {now:%Y-%m-%d}", "set the clock")
    for registry, seconds in skews.items():
        if abs(seconds) > _SKEW_SECONDS:
            way = "behind" if seconds > 0 else "ahead of"
            said = f"{abs(seconds):.0f} seconds {way} that of `{registry}`"
            return Facility("clock", "no", said, "set the clock: tokens would not be valid")
    compared = f", as that of `{next(iter(skews))}`" if skews else ""
    return Facility("clock", "yes", f"{now:%Y-%m-%d %H:%M} UTC{compared}")


def _ask_registries(
    texts: Sequence[str], registry: Registry, now: Callable[[], datetime]
) -> tuple[list[Facility], dict[str, float]]:
    """Whether registries let us in, and by how many seconds their clocks are ahead of ours."""
    found, skews = [], {}
    for text in texts:
        reference, pull = registry_reference(text)
        name = f"registry {text}"
        try:
            reached = registry.reach(reference, pull=pull)
        except Ocis2iError as error:
            found.append(Facility(name, "no", error.message, error.hint))
            continue
        how = "with credentials" if reached.with_credentials else "anonymously"
        how += f" from {reached.source}" if reached.source else ""
        found.append(Facility(name, "yes", f"{reached.url} lets us in {how}"))
        with contextlib.suppress(ValueError):
            told = parsedate_to_datetime(reached.date)
            skews[reference.registry] = (told.astimezone(UTC) - now()).total_seconds()
    return found, skews


def registry_reference(text: str) -> tuple[Reference, bool]:
    """What `--registry` names: an image that is to be pulled, or a registry alone."""
    host = "/" not in text and ("." in text or ":" in text or text == "localhost")
    return Reference.parse(f"{text}/any" if host else text), not host


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace").strip("\0\n ")
    except OSError:
        return ""
