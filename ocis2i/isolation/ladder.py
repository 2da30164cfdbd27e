"""The ladder of isolation: its rungs from the strongest to the weakest, and which one is taken.

`choose` is pure: it asks for findings one after the other, and only for those that matter. A build
answers with what it just started, `ocis2i doctor` with what it has tried.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

from ocis2i.errors import IsolationError, UsageError
from ocis2i.isolation.ground import Ids
from ocis2i.isolation.sentences import HOST, Place, Refusal, WayOut, refusal
from ocis2i.lazy_dataclass import dataclass
from ocis2i.settings import ISOLATIONS, RootfsKind

Strength: TypeAlias = Literal["isolated", "weak", "none"]
Caller: TypeAlias = Literal["user", "namespace-root", "root"]
Need: TypeAlias = Literal[
    "full",
    "single",
    "native",
    "lent",
    "proc",
    "overlay",
    "copy",
    "runc",
    "crun",
    "builtin",
    "buildah",
    "chroot",
    "in-place",
]


@dataclass(frozen=True, slots=True)
class Finding:
    """Whether something works here: what was seen or, when not, why not and the way out."""

    usable: bool
    said: str = ""
    refusal: Refusal | None = None

    @classmethod
    def refused(cls, why: Refusal) -> Finding:
        """Something that does not work."""
        return cls(usable=False, said=why.text, refusal=why)


Look = Callable[[Need], Finding]


@dataclass(frozen=True, slots=True)
class Rung:
    """One name that `--isolation` takes: what it needs, and what it protects the host from."""

    name: Need
    strength: Strength
    needs: str
    protects: str


_PROTECTS = "the host's files, processes and ids; other builds; more rights by setuid programs"

RUNGS = (
    Rung("runc", "isolated", "user namespaces, runc", _PROTECTS),
    Rung("crun", "isolated", "user namespaces, crun", _PROTECTS),
    Rung("builtin", "isolated", "user namespaces", _PROTECTS),
    Rung("buildah", "isolated", "user namespaces, buildah, and runc or crun", _PROTECTS),
    Rung(
        "chroot",
        "weak",
        "root with CAP_SYS_CHROOT, CAP_SETUID, CAP_SETGID and CAP_CHOWN",
        "accidents: scripts see the image's files, and not the container's around it",
    ),
    Rung(
        "in-place",
        "none",
        "to run in a container of the builder image",
        "nothing but what the container around it does",
    ),
)
# Nothing speaks for buildah but that somebody wants it: it takes ten times as long.
_BY_ITSELF: tuple[Need, ...] = ("runc", "crun", "builtin")


def rung(name: str) -> Rung:
    """The rung of that name; raises `UsageError`."""
    for one in RUNGS:
        if one.name == name:
            return one
    raise UsageError(f"unknown isolation `{name}`", hint=f"there are {', '.join(ISOLATIONS)}")


@dataclass(frozen=True, slots=True)
class Wish:
    """What was asked for; `allow_weak` is OCIS2I_ALLOW_WEAK_ISOLATION."""

    isolation: str = "auto"
    rootfs: str = "auto"
    allow_weak: bool = False


@dataclass(frozen=True, slots=True)
class Choice:
    """What a build works with."""

    executor: Need
    ids: Ids
    rootfs: RootfsKind | None
    fresh_proc: bool = False

    @property
    def strength(self) -> Strength:
        """How much it protects from."""
        return rung(self.executor).strength

    @property
    def label(self) -> str:
        """The strength for people, with what takes something away from it."""
        if self.strength != "isolated":
            return self.strength
        words: list[str] = [self.strength]
        words += ["single-uid"] if self.ids == "single" else []
        words += ["privileged caller"] if self.ids == "native" else []
        words += [] if self.fresh_proc else ["nested"]
        return ", ".join(words)


@dataclass(frozen=True, slots=True)
class Refused:
    """Why nothing can be chosen, the way out, and the findings that stand in the way."""

    text: str
    hint: str | None = None
    found: tuple[tuple[Need, Finding], ...] = ()

    def error(self) -> IsolationError:
        """As the failure of a build."""
        return IsolationError(self.text, hint=self.hint)


def _refused(name: Need, finding: Finding, text: str | None = None) -> Refused:
    hint = finding.refusal.way_out.hint if finding.refusal else None
    return Refused(text or finding.said, hint, ((name, finding),))


def caller(uid: int, *, whole_host: bool) -> Caller:
    """Who calls: `whole_host` says whether the user namespace is the first one."""
    if uid:
        return "user"
    return "root" if whole_host else "namespace-root"


def choose(wish: Wish, who: Caller, look: Look, place: Place = HOST) -> Choice | Refused:
    """The strongest combination that works, or the one that was named."""
    if wish.isolation != "auto" and rung(wish.isolation).strength != "isolated":
        return _weak(rung(wish.isolation).name, look)
    ids = choose_ids(who, look, place)
    if isinstance(ids, Refused):
        return _weak_instead(wish, ids, look)
    rootfs = _choose_rootfs(wish, look)
    if isinstance(rootfs, Refused):
        return rootfs
    one_id = ids == "single" or (who == "namespace-root" and not look("full").usable)
    executor = choose_executor(wish.isolation, look, one_id=one_id)
    if isinstance(executor, Refused):
        return _weak_instead(wish, executor, look)
    return Choice(executor, ids, rootfs, look("proc").usable)


def choose_ids(who: Caller, look: Look, place: Place = HOST) -> Ids | Refused:
    """The most ids that can be had: all of a container's, or one."""
    if who == "root":
        # Mapped, root of the host would own the files of every image: docs/decisions/0005.
        return _refused("native", Finding.refused(refusal("root", place)))
    if who == "namespace-root":
        native = look("native")
        return "native" if native.usable else _refused("native", native)
    if look("full").usable:
        return "full"
    # It asks for least: what stands in its way is what has to go first.
    single = look("single")
    if single.usable:
        return "single"
    # AppArmor may give user namespaces to programs that it knows (Ubuntu 23.10): buildah lends one.
    return "native" if look("lent").usable else _refused("single", single)


def choose_executor(wanted: str, look: Look, *, one_id: bool) -> Need | Refused:
    """Who runs the containers; `one_id`: there is no second one for them."""
    if wanted != "auto":
        name = rung(wanted).name
        finding = look(name)
        return name if finding.usable else _named(name, finding)
    # With one id that is the builtin one, which alone can give it the number of any user.
    candidates: tuple[Need, ...] = ("builtin",) if one_id else _BY_ITSELF
    found = []
    for name in candidates:
        finding = look(name)
        if finding.usable:
            return name
        found.append((name, finding))
    reasons = "; ".join(f"{name}: {finding.said}" for name, finding in found)
    return Refused(f"no way to run a container here: {reasons}", found=tuple(found))


def _named(name: Need, finding: Finding) -> Refused:
    said = f"isolation `{name}` cannot be used: {finding.said}"
    return Refused(said, "leave out --isolation to take what works", ((name, finding),))


def _choose_rootfs(wish: Wish, look: Look) -> RootfsKind | Refused:
    refused: list[Refused] = []
    kinds: tuple[RootfsKind, ...] = ("overlay", "copy")
    for kind in kinds:
        if wish.rootfs not in ("auto", kind):
            continue
        finding = look(kind)
        if finding.usable:
            return kind
        refused.append(_refused(kind, finding))
    # A copy asks for less, and what stands in its way stands in that of an overlay too.
    return refused[-1]


def _weak_instead(wish: Wish, refused: Refused, look: Look) -> Choice | Refused:
    """In place of what is refused, where somebody said in advance that it may be."""
    if wish.isolation == "auto" and wish.allow_weak and look("chroot").usable:
        return Choice("chroot", "none", "copy")
    return refused


def _weak(name: Need, look: Look) -> Choice | Refused:
    finding = look(name)
    if not finding.usable:
        return _refused(name, finding, f"isolation `{name}` cannot be used: {finding.said}")
    return Choice(name, "none", "copy" if name == "chroot" else None)


# --- the next rung ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Step:
    """One thing better than it is: what it would bring, why it is not so, the one change."""

    need: Need
    brings: str
    why: str
    way_out: WayOut


_BRINGS: tuple[tuple[Need, str], ...] = (
    ("single", "containers, with one user id at least"),
    ("native", "containers"),
    ("full", "containers with all their user ids"),
    ("proc", "containers that see no other processes"),
    ("overlay", "builds without a copy of the image"),
    ("runc", "containers by runc, the most widely tried program for them"),
)


def steps_up(choice: Choice | Refused, who: Caller, look: Look, place: Place) -> tuple[Step, ...]:
    """What keeps the choice from being a stronger one, the first thing to change first."""
    if who == "root":
        why = refusal("root", place)
        return (Step("native", "containers", why.text, why.way_out),)
    if (store := look("copy").refusal) and store.cause == "no-store":
        return (Step("copy", "builds", store.text, store.way_out),)
    skipped: set[Need] = {"native"} if who == "user" else {"single"}
    if isinstance(choice, Choice):
        skipped |= {"runc"} if choice.executor in ("runc", "crun") else set()
        skipped |= {"single"} if choice.ids in ("full", "native") else set()
    found: dict[WayOut, Step] = {}
    for need, brings in _BRINGS:
        finding = None if need in skipped else look(need)
        if finding and not finding.usable and finding.refusal:
            step = Step(need, brings, finding.said, finding.refusal.way_out)
            found.setdefault(step.way_out, step)  # one change may bring several things
    return tuple(found.values())
