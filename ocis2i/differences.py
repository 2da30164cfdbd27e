"""What layers change: their entries as facts, laid over each other and held against a base. Pure.

The rules of hiding are those of image-spec `layer.md`: a whiteout takes away what lies below it, an
opaque directory all that lower layers have in it, and what is no directory whatever was in one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import field
from typing import Literal, NamedTuple

from ocis2i import tar
from ocis2i.layers import OPAQUE_MARKER, WHITEOUT_PREFIX
from ocis2i.lazy_dataclass import dataclass

State = Literal["added", "changed", "removed"]
STATES: tuple[State, ...] = ("added", "changed", "removed")

SETUID, SETGID, STICKY, WORLD_WRITABLE = 0o4000, 0o2000, 0o1000, 0o002
CAPABILITY = b"security.capability"
_USER = b"user."
_ACCESS_LISTS = b"system.posix_acl_"


class Facts(NamedTuple):
    """One entry: `kind` a type byte of `ocis2i.tar`, `size` in bytes.

    A hard link has the facts of the file that it names, and no size of its own. `content` is a
    digest where one was asked for, else empty; `capability` and `attributes` are marks of what it
    carries, see `marks_of`.
    """

    kind: bytes
    mode: int
    uid: int
    gid: int
    size: int
    target: bytes = b""
    content: bytes = b""
    capability: bytes = b""
    attributes: bytes = b""


def marks_of(xattrs: Iterable[tuple[bytes, bytes]]) -> tuple[bytes, bytes]:
    """What stands for the capabilities of a file and for its other attributes; empty for none.

    Others are those that a layer keeps: `user.*` by name and value, access lists by name alone, for
    their values have other ids in each namespace.
    """
    capability = b""
    others = []
    for name, value in xattrs:
        if name == CAPABILITY:
            # linux/capability.h, vfs_ns_cap_data: whether they are effective, and the two sets. The
            # version and the namespace's root differ between a tar and what was unpacked of it.
            capability = bytes([value[0] & 1 if value else 0]) + value[4:20].ljust(16, b"\0")
        elif name.startswith(_USER):
            others.append((name, value))
        elif name.startswith(_ACCESS_LISTS):
            others.append((name, b""))
    if not others:
        return capability, b""
    return capability, hashlib.blake2b(repr(sorted(others)).encode(), digest_size=16).digest()


@dataclass(slots=True)
class LayerFacts:
    """A layer, or several as one: what is there, and what it hides of those below."""

    entries: dict[bytes, Facts] = field(default_factory=dict)
    whiteouts: set[bytes] = field(default_factory=set)
    opaque: set[bytes] = field(default_factory=set)

    def take(self, header: tar.Header, content: bytes = b"") -> None:
        """Adds a member of the layer's tar; names that lead nowhere or out of it are passed over.

        Of two members with one name the later counts.
        """
        path = clean(header.name)
        if path is None:
            return
        parent, _, name = path.rpartition(b"/")
        if name == OPAQUE_MARKER:
            self.opaque.add(parent)
        elif name.startswith(WHITEOUT_PREFIX):
            hidden = name[len(WHITEOUT_PREFIX) :]
            if hidden and not hidden.startswith(WHITEOUT_PREFIX):
                self.whiteouts.add(parent + b"/" + hidden if parent else hidden)
        elif path:
            self.entries[path] = self._facts(header, content)

    def _facts(self, header: tar.Header, content: bytes) -> Facts:
        if header.kind == tar.HARD_LINK:
            named = self.entries.get(clean(header.target) or b"")
            if named is not None:
                return named._replace(size=0)
        kind = tar.REGULAR if header.kind == tar.HARD_LINK else header.kind
        target = header.target if kind == tar.SYMLINK else b""
        marks = marks_of(header.xattrs) if header.xattrs else ()
        return Facts(
            kind, header.mode, header.uid, header.gid, header.size, target, content, *marks
        )


def clean(name: bytes) -> bytes | None:
    """A member's name as a path from the image's root; `None` for one that leads out of it."""
    parts: list[bytes] = []
    for part in name.split(b"/"):
        if part == b"..":
            if not parts:
                return None
            parts.pop()
        elif part not in (b"", b"."):
            parts.append(part)
    return b"/".join(parts)


def ancestors(path: bytes) -> Iterator[bytes]:
    """The directories above a path, the nearest first; the root, which is empty, is the last."""
    while path:
        path = path.rpartition(b"/")[0]
        yield path


class Hiding:
    """What upper layers take from lower ones: paths with all below them, and what is inside some.

    The answer for a directory is remembered: entries come by the thousand from few of them.
    """

    def __init__(self) -> None:
        self._gone: set[bytes] = set()
        self._closed: set[bytes] = set()
        self._known: dict[bytes, bool] = {}

    def add(self, layer: LayerFacts) -> None:
        """Takes up what one more layer hides of those below it."""
        self._gone |= layer.whiteouts
        self._closed |= layer.opaque
        self._closed |= {
            path for path, facts in layer.entries.items() if facts.kind != tar.DIRECTORY
        }
        self._known.clear()

    def __call__(self, path: bytes) -> bool:
        """Whether nothing of a lower layer can be seen at `path`."""
        return path in self._gone or (bool(path) and self._inside(path.rpartition(b"/")[0]))

    def _inside(self, directory: bytes) -> bool:
        known = self._known.get(directory)
        if known is None:
            # From the nearest directory whose answer is known down to this one.
            waiting = [directory]
            for above in ancestors(directory):
                if above in self._known:
                    break
                waiting.append(above)
            for one in reversed(waiting):
                parent = one.rpartition(b"/")[0]
                known = one in self._gone or one in self._closed
                known = known or (bool(one) and self._known[parent])
                self._known[one] = known
        return bool(known)

    @property
    def roots(self) -> set[bytes]:
        """Every path that is gone, and every one that hides what was inside it."""
        return self._gone | self._closed


def merge(layers: Sequence[LayerFacts]) -> LayerFacts:
    """Several layers, the lowest first, as if they were one."""
    result = LayerFacts()
    hiding = Hiding()
    for layer in reversed(layers):
        for path, facts in layer.entries.items():
            above = result.entries.get(path)
            if above is None and not hiding(path):
                result.entries[path] = facts
            elif above and above.kind == tar.DIRECTORY and facts.kind != tar.DIRECTORY:
                result.opaque.add(path)  # it was something else in between
        hiding.add(layer)
        result.whiteouts |= layer.whiteouts
        result.opaque |= layer.opaque
    return result


class Change(NamedTuple):
    """A path that is not as the base has it. `what` says in which way a changed one differs."""

    path: bytes
    state: State
    before: Facts | None
    after: Facts | None
    what: tuple[str, ...] = ()

    @property
    def facts(self) -> Facts:
        """As it is now; of something that is gone, as it was."""
        facts = self.after or self.before
        if facts is None:
            raise ValueError("a change without facts")
        return facts

    @property
    def size(self) -> int:
        """Bytes that this adds to the image's layers: none for what is gone."""
        return self.after.size if self.after else 0


def interest(top: LayerFacts) -> Callable[[bytes], bool]:
    """Which paths of the layers below matter for `compare`: most do not, and need no memory."""
    hiding = Hiding()
    hiding.add(top)
    wanted = set(top.entries)
    for path in (*top.entries, *top.whiteouts, *top.opaque):
        for above in ancestors(path):
            if above in wanted:
                break
            wanted.add(above)
    return lambda path: path in wanted or hiding(path)


def compare(top: LayerFacts, base: Mapping[bytes, Facts]) -> list[Change]:
    """What the layer `top` makes of a merged `base`, by path.

    A directory that is in the layer only because something in it changed is no change.
    """
    found = []
    for path, after in top.entries.items():
        before = base.get(path)
        if before is None:
            found.append(Change(path, "added", None, after))
        elif what := _difference(before, after, in_layer=True):
            found.append(Change(path, "changed", before, after, what))
    hiding = Hiding()
    hiding.add(top)
    for path, before in base.items():
        if path not in top.entries and hiding(path):
            found.append(Change(path, "removed", before, None))
    return sorted(found)


def compare_trees(before: Mapping[bytes, Facts], after: Mapping[bytes, Facts]) -> list[Change]:
    """What differs between two whole trees whose facts have the digests of their contents."""
    found = []
    for path, new in after.items():
        old = before.get(path)
        if old is None:
            found.append(Change(path, "added", None, new))
        elif what := _difference(old, new, in_layer=False):
            found.append(Change(path, "changed", old, new, what))
    found += [
        Change(path, "removed", old, None) for path, old in before.items() if path not in after
    ]
    return sorted(found)


def _difference(before: Facts, after: Facts, *, in_layer: bool) -> tuple[str, ...]:
    """In what two entries of one path differ; a file that is in the layer differs in something."""
    if before.kind != after.kind:
        return ("type",)
    what = []
    is_file = after.kind == tar.REGULAR
    if before.target != after.target or (
        is_file and (before.content != after.content or before.size != after.size)
    ):
        what.append("content")
    # A symbolic link has a mode only on paper.
    if before.mode != after.mode and after.kind != tar.SYMLINK:
        what.append("mode")
    if (before.uid, before.gid) != (after.uid, after.gid):
        what.append("owner")
    if before.capability != after.capability:
        what.append("capabilities")
    if before.attributes != after.attributes:
        what.append("attributes")
    if in_layer and not what and after.kind != tar.DIRECTORY:
        what.append("content")
    return tuple(what)


# --- sums -------------------------------------------------------------------------------------


@dataclass(slots=True)
class Sum:
    """Counts of changes by state, and their bytes: what is new, and what is gone."""

    added: int = 0
    changed: int = 0
    removed: int = 0
    bytes_new: int = 0
    bytes_removed: int = 0

    def count(self, change: Change) -> None:
        """Takes up one change."""
        if change.state == "added":
            self.added += 1
        elif change.state == "changed":
            self.changed += 1
        else:
            self.removed += 1
            self.bytes_removed += change.facts.size
        self.bytes_new += change.size

    def include(self, other: Sum) -> None:
        """Takes up what another one counted."""
        self.added += other.added
        self.changed += other.changed
        self.removed += other.removed
        self.bytes_new += other.bytes_new
        self.bytes_removed += other.bytes_removed

    @property
    def entries(self) -> int:
        """How many changes there are."""
        return self.added + self.changed + self.removed


def total(changes: Iterable[Change]) -> Sum:
    """All changes together."""
    result = Sum()
    for change in changes:
        result.count(change)
    return result


class Tree:
    """Sums by directory: `below` with all that is under it, `inside` without other directories.

    A directory that was itself added, changed or removed counts as inside itself (`own`).
    """

    def __init__(self, changes: Iterable[Change]) -> None:
        self.own: set[bytes] = set()
        self.inside: dict[bytes, Sum] = {}
        self.below: dict[bytes, Sum] = {b"": Sum()}
        self.children: dict[bytes, list[bytes]] = {}
        for change in changes:
            place = change.path.rpartition(b"/")[0]
            if change.facts.kind == tar.DIRECTORY:
                place = change.path
                self.own.add(place)
            self.inside.setdefault(place, Sum()).count(change)
        for directory, counted in self.inside.items():
            self._lift(directory, counted)
        for path in self.below:
            if path:
                self.children.setdefault(path.rpartition(b"/")[0], []).append(path)
        for names in self.children.values():
            names.sort(key=self._rank)

    def _lift(self, directory: bytes, counted: Sum) -> None:
        self.below.setdefault(directory, Sum()).include(counted)
        for above in ancestors(directory):
            self.below.setdefault(above, Sum()).include(counted)

    def _rank(self, path: bytes) -> tuple[int, int, bytes]:
        summed = self.below[path]
        return (-summed.bytes_new, -summed.entries, path)


class Row(NamedTuple):
    """A line of the sums by directory; `rest` stands for what is in `path` and has no line."""

    path: bytes
    summed: Sum
    rest: bool = False


def rows_of_depth(tree: Tree, depth: int) -> list[Row]:
    """Every directory that is at most `depth` below the root, the largest first."""
    rows = [
        Row(path, summed)
        for path, summed in tree.below.items()
        if path and path.count(b"/") < depth
    ]
    if b"" in tree.inside:
        rows.append(Row(b"", tree.inside[b""], rest=True))
    return _largest_first(rows)


def telling_rows(tree: Tree, number: int) -> list[Row]:
    """At most `number` rows that together are all changes: where most is, it goes deepest.

    It begins at the root and opens the largest row as long as there is room. A directory of very
    many opens to its largest ones and a rest, if these are at least half of it.
    """
    rows = [Row(b"", tree.below[b""])]
    closed: list[Row] = []
    while rows:
        row = max(rows, key=lambda one: (one.summed.bytes_new, one.summed.entries, one.path))
        rows.remove(row)
        parts = _opened(tree, row, number - len(rows) - len(closed))
        closed += [part for part in parts if part.rest or part == row]
        rows += [part for part in parts if not part.rest and part != row]
    return _largest_first(closed)


def _opened(tree: Tree, row: Row, room: int) -> list[Row]:
    """What is in a row, in no more than `room` rows; the row itself where that says more."""
    children = tree.children.get(row.path)
    if not children:
        return [row]
    parts = [Row(child, tree.below[child]) for child in children]
    own = tree.inside.get(row.path)
    # A directory that only holds others needs no row for having been made.
    if own and own.entries > (row.path in tree.own):
        parts.append(Row(row.path, own, rest=True))
    if len(parts) <= room:
        return parts
    largest = parts[: room - 1] if room > 3 else []
    if not largest or sum(one.summed.bytes_new for one in largest) * 2 < row.summed.bytes_new:
        return [row]
    rest = Sum()
    for part in parts[room - 1 :]:
        rest.include(part.summed)
    return [*largest, Row(row.path, rest, rest=True)]


def _largest_first(rows: list[Row]) -> list[Row]:
    return sorted(
        rows,
        key=lambda row: (-row.summed.bytes_new, -row.summed.entries, row.path, row.rest),
    )


def owners(changes: Iterable[Change]) -> list[tuple[int, int, Sum]]:
    """Whose the new and changed entries are: uid, gid and their sum, the largest first."""
    found: dict[tuple[int, int], Sum] = {}
    for change in changes:
        if change.after:
            found.setdefault((change.after.uid, change.after.gid), Sum()).count(change)
    rows = [(uid, gid, summed) for (uid, gid), summed in found.items()]
    return sorted(rows, key=lambda row: (-row[2].bytes_new, -row[2].entries, row[:2]))


# --- notes ------------------------------------------------------------------------------------

NOTE_PATHS = 10

# Directories that programs make for themselves; most results run without them.
_CACHES = frozenset(
    b"__pycache__ .cache .npm .yarn .pnpm-store .gradle .m2 .ivy2 .cargo .git .svn .hg "
    b".tox .pytest_cache .mypy_cache .ruff_cache .bundle .nuget node_modules".split()
)


@dataclass(slots=True)
class Note:
    """Something about the result that its owner may want to know.

    `paths` are the first few, of caches the directories; `count` and `bytes_new` of all entries.
    """

    kind: str
    paths: list[bytes] = field(default_factory=list)
    count: int = 0
    bytes_new: int = 0


NOTES = {
    "setuid": "runs as its owner, whoever starts it (setuid)",
    "setgid": "runs as its group, whoever starts it (setgid)",
    "capabilities": "carries capabilities",
    "world-writable": "can be written by everybody",
    "device": "is a device or a pipe",
    "large": "is large",
    "cache": "is a cache, or the data of a tool",
    "upload": "is the source as it was put in; --prune-upload leaves it out",
}


def notes(changes: Iterable[Change], *, large_bytes: int) -> list[Note]:
    """What stands out in the new and changed entries; a file of `large_bytes` or more is large."""
    found = {kind: Note(kind) for kind in NOTES}
    caches: dict[bytes, int] = {}
    for change in changes:
        if change.after is None:
            continue
        for kind in _kinds(change.after, large_bytes):
            _note(found[kind], change.path, change.size)
        cache = _cache(change.path, is_directory=change.after.kind == tar.DIRECTORY)
        if cache is not None:
            caches[cache] = caches.get(cache, 0) + change.size
            found["cache"].count += 1
            found["cache"].bytes_new += change.size
        if change.path.startswith((b"tmp/src/", b"tmp/artifacts/")):
            _note(found["upload"], change.path, change.size)
    found["cache"].paths = sorted(caches, key=lambda path: (-caches[path], path))[:NOTE_PATHS]
    return [note for note in found.values() if note.count]


def _note(note: Note, path: bytes, size: int) -> None:
    note.count += 1
    note.bytes_new += size
    if len(note.paths) < NOTE_PATHS:
        note.paths.append(path)


def _kinds(facts: Facts, large_bytes: int) -> Iterator[str]:
    if facts.kind == tar.REGULAR:
        if facts.mode & SETUID:
            yield "setuid"
        # Without the group's execute bit it means a lock, and of directories it is harmless.
        if facts.mode & SETGID and facts.mode & 0o010:
            yield "setgid"
        if facts.capability:
            yield "capabilities"
        if facts.size >= large_bytes:
            yield "large"
    if facts.kind in (tar.CHARACTER, tar.BLOCK_DEVICE, tar.FIFO):
        yield "device"
    if facts.mode & WORLD_WRITABLE and (
        facts.kind == tar.REGULAR or (facts.kind == tar.DIRECTORY and not facts.mode & STICKY)
    ):
        yield "world-writable"


def _cache(path: bytes, *, is_directory: bool) -> bytes | None:
    """The outermost directory of a cache that a path is in, or is."""
    parts = path.split(b"/")
    for depth, part in enumerate(parts):
        if part in _CACHES and (depth < len(parts) - 1 or is_directory):
            return b"/".join(parts[: depth + 1])
    return None


def largest(changes: Iterable[Change], number: int) -> list[Change]:
    """The `number` biggest files that are new or changed."""
    with_size = (change for change in changes if change.size)
    return sorted(with_size, key=lambda change: (-change.size, change.path))[:number]
