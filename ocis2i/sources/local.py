"""Copies a source tree by descriptors: filtered, confined to its root, flat in memory.

Every step is relative to an open directory and follows no link by itself, so a tree that changes
while it is copied cannot lead out of its root either. A link inside the tree is resolved by
`find_real`, the only place where links are read.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal

from ocis2i.errors import SourceError, shown
from ocis2i.events import Notice, Report
from ocis2i.fs import is_full
from ocis2i.lazy_dataclass import dataclass
from ocis2i.limits import counted
from ocis2i.s2i import SCRIPT_NAMES, SOURCE_SCRIPT_DIRECTORIES, SourceInfo
from ocis2i.settings import DEFAULT_LAYER_LIMIT
from ocis2i.sources.copying import Copier
from ocis2i.sources.ignore import (
    DEFAULT_EXCLUDE,
    IGNORE_FILE,
    Filter,
    IgnoreRules,
    compile_exclude,
    parse_ignore,
)
from ocis2i.sources.paths import (
    DIRECTORY,
    NO_FOLLOW,
    Real,
    find_real,
    identity_of,
    open_directory,
    open_real,
    read_text,
    status_of,
)

IGNORE_FILE_LIMIT = 256 << 10
DEPTH_LIMIT = 200
# Links to directories can multiply: two links a level, thirty levels, are a thousand million files.
FOLLOWED_LIMIT = 1_000_000
# The first line of what stands for a file in Git LFS, and how large that is at most (its spec).
_LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\n"
_LFS_POINTER_LIMIT = 1024

Links = Literal["follow", "keep", "unfold", "confine"]


@dataclass(frozen=True, slots=True)
class DirSource:
    """A directory that is copied as it is; `typed` is how the user wrote `path`.

    `own` are real paths that this build writes itself, and that are no part of it for that.
    """

    path: Path
    typed: str
    context_dir: str = ""
    exclude: str = DEFAULT_EXCLUDE
    keep_symlinks: bool = False
    own: tuple[Path, ...] = ()

    @property
    def own_inside(self) -> frozenset[str]:
        """Those of `own` that are in the context directory, relative to it."""
        root = (self.path / self.context_dir).resolve() if self.own else self.path
        inside = (path.relative_to(root) for path in self.own if path.is_relative_to(root))
        return frozenset(map(str, inside)) - {"."}


@dataclass(frozen=True, slots=True)
class DirectoryFacts:
    """Mode and time (nanoseconds since 1970) of a directory as an archive had it."""

    mode: int = 0o755
    mtime_ns: int | None = None


@dataclass(frozen=True, slots=True)
class CopyOrder:
    """How `copy_tree` goes about it.

    `links`: `follow` copies what a link inside the root leads to; `keep` copies links as links;
    `unfold` does so too, but follows those that leave the context directory inside the root;
    `confine` is `unfold` without links that leave the root.
    `checkout`: the tree is a git checkout of our own. Its files are moved, not copied, and
    modes become 0755 or 0644, the two that git knows, whatever the umask was.
    `unpacked`: the tree is an unpacked archive of our own. Its files are moved as they are, and
    these are its directories, by their paths.
    `own` are paths of the context directory that stay out, whatever `exclude` says.
    """

    context_dir: str = ""
    exclude: str = DEFAULT_EXCLUDE
    links: Links = "follow"
    checkout: bool = False
    unpacked: Mapping[str, DirectoryFacts] | None = None
    followed_limit_bytes: int = DEFAULT_LAYER_LIMIT
    own: frozenset[str] = frozenset()

    @property
    def moves(self) -> bool:
        """Whether the tree is ours, so that nothing of it has to stay."""
        return self.checkout or self.unpacked is not None


@dataclass(frozen=True, slots=True)
class Fetched:
    """What a source came from. `ignored` paths are named by a rule, and there for scripts alone.

    A directory comes before what is in it.
    """

    info: SourceInfo
    ignored: tuple[str, ...] = ()


def fetch_directory(
    source: DirSource,
    into: Path,
    report: Report,
    *,
    followed_limit_bytes: int = DEFAULT_LAYER_LIMIT,
) -> Fetched:
    """Copies `source` into the empty directory `into`. Raises `SourceError`."""
    order = CopyOrder(
        source.context_dir,
        source.exclude,
        "keep" if source.keep_symlinks else "follow",
        followed_limit_bytes=followed_limit_bytes,
        own=source.own_inside,
    )
    ignored = copy_tree(source.path, into, order, report)
    return Fetched(SourceInfo(location=source.typed, context_dir=source.context_dir), ignored)


def copy_tree(root: Path, into: Path, order: CopyOrder, report: Report) -> tuple[str, ...]:
    """Copies the context directory of `root` into `into`, filtered, but for S2I scripts.

    Returns what of these, and of their directories, a rule names. Kept are modes, times, links,
    holes and empty directories. Raises `SourceError`: for a link that leaves `root` when it would
    have to be followed, a directory inside itself, a socket, FIFO or device that no rule leaves
    out, a path that cannot be read, or `into` inside `root`.
    """
    with open_directory(root) as root_fd, open_directory(into) as into_fd:
        start = find_start(root_fd, order.context_dir)
        with open_real(root_fd, start, DIRECTORY) as start_fd:
            _refuse_target_inside(start_fd, into)
            filter_ = read_filter(start_fd, order, report)
            above = (identity_of(into_fd), identity_of(start_fd))
            with Copier(_failure) as copier:
                copy = _Copy(root_fd, start, filter_, order, copier)
                copy.children(start_fd, into_fd, _Place("", start, above=above))
    if copy.pointers:
        report(Notice("warning", _pointers_left(copy.pointers)))
    return tuple(copy.spared)


def _pointers_left(paths: list[str]) -> str:
    count = len(paths)
    what = counted(count, "file is a Git LFS pointer", "files are Git LFS pointers")
    named = ", ".join(f"`{path}`" for path in paths[:5])
    more = f" and {count - 5} more" if count > 5 else ""
    return (
        f"{what} without the content: {named}{more}; "
        "a clone has the content where git-lfs is installed and the server gives it"
    )


def find_start(root_fd: int, context_dir: str) -> str:
    """The real path of the context directory; raises `SourceError` where there is none."""
    real = find_real(root_fd, context_dir)
    if not real.inside:
        raise SourceError(
            f"the context directory `{context_dir}` leads out of the source",
            hint="name a directory below the source with --context-dir",
        )
    if real.path is None or not stat.S_ISDIR(status_of(root_fd, real.path).st_mode):
        raise SourceError(
            f"no directory `{context_dir}` in the source",
            hint="--context-dir is relative to the root of the source",
        )
    return real.path


def _refuse_target_inside(start_fd: int, into: Path) -> None:
    source = os.fstat(start_fd)
    target = into.resolve()
    for directory in (target, *target.parents):
        if os.path.samestat(source, directory.stat()):
            raise SourceError(
                f"the source would be copied into itself, to `{shown(str(target))}`",
                hint="let TMPDIR or the store be outside of the source",
            )


def read_filter(start_fd: int, order: CopyOrder, report: Report) -> Filter:
    """What a walk over the context directory leaves out; warns of lines that are no pattern."""
    exclude = compile_exclude(order.exclude)
    text = read_text(start_fd, IGNORE_FILE, IGNORE_FILE_LIMIT)
    ignore = parse_ignore(text) if text is not None else IgnoreRules()
    for line in ignore.malformed:
        report(Notice("warning", f"`{shown(line)}` in `{IGNORE_FILE}` is no pattern"))
    return Filter(exclude, ignore, _find_scripts(start_fd), order.own)


def _find_scripts(start_fd: int) -> frozenset[str]:
    # The scripts are taken out of the source before it is filtered: upstream does so after a
    # clone, and a filter that silently swaps the script for the builder's helps nobody.
    found: set[str] = set()
    for directory in SOURCE_SCRIPT_DIRECTORIES:
        scripts = {f"{directory}/{name}" for name in SCRIPT_NAMES}
        present = {path for path in scripts if find_real(start_fd, path) != Real(None)}
        if present:
            found |= present | {directory, directory.partition("/")[0]}
    return frozenset(found)


# --- copying ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Place:
    """A path of the walk: as the result has it, and where it really is below the root."""

    path: str
    real: str
    dropped: bool = False
    followed: bool = False
    depth: int = 0
    above: tuple[tuple[int, int], ...] = ()

    def child(self, name: str) -> _Place:
        path = f"{self.path}/{name}" if self.path else name
        real = name if self.real == "." else f"{self.real}/{name}"
        # Not by `replace`, which takes as long as all else that Python does for a file.
        return _Place(path, real, self.dropped, self.followed, self.depth + 1, self.above)


class _Copy:
    """One walk over a tree; `pointers` lists the files whose content is in Git LFS.

    `spared` lists what is copied although a rule names it.
    """

    def __init__(
        self, root_fd: int, start: str, filter_: Filter, order: CopyOrder, copier: Copier
    ) -> None:
        self._copier = copier
        self._root_fd = root_fd
        self._start = start
        self._filter = filter_
        self._order = order
        self._followed = 0
        self._followed_bytes = 0
        self.pointers: list[str] = []
        self.spared: list[str] = []

    def children(self, source: int, target: int, place: _Place) -> None:
        """Copies what is in one directory."""
        for name in sorted(os.listdir(source)):
            child = place.child(name)
            dropped = place.dropped or self._filter.drops(child.path)
            if dropped and child.path not in self._filter.spared:
                continue
            if dropped:
                self.spared.append(child.path)
            try:
                marked = replace(child, dropped=True) if dropped else child
                self._entry(source, target, name, marked)
            except OSError as error:
                failure = _failure(child.path, error)
                if failure is error:
                    raise
                raise failure from error

    def _entry(self, source: int, target: int, name: str, place: _Place) -> None:
        status = status_of(source, name)
        if stat.S_ISLNK(status.st_mode):
            self._link(source, target, name, place)
        elif stat.S_ISDIR(status.st_mode):
            with _open_at(source, name, DIRECTORY) as descriptor:
                self._directory(descriptor, target, name, place)
        elif not stat.S_ISREG(status.st_mode):
            raise _special(place, status)
        elif self._order.moves and not place.followed:
            self._move(source, target, name, place, status)
        else:
            with _open_at(source, name, os.O_RDONLY | os.O_NONBLOCK) as descriptor:
                self._file(descriptor, target, name, place)

    def _link(self, source: int, target: int, name: str, place: _Place) -> None:
        real = self._destination(source, name, place)
        if real is None:
            os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
            if not self._order.checkout:
                _set_times(target, name, status_of(source, name))
            return
        followed = replace(place, real=real, followed=True)
        status = status_of(self._root_fd, real)
        if stat.S_ISDIR(status.st_mode):
            with open_real(self._root_fd, real, DIRECTORY) as descriptor:
                self._directory(descriptor, target, name, followed)
        elif stat.S_ISREG(status.st_mode):
            with open_real(self._root_fd, real, os.O_RDONLY) as descriptor:
                self._file(descriptor, target, name, followed)
        else:
            raise _special(place, status)

    def _destination(self, source: int, name: str, place: _Place) -> str | None:
        """The real path whose content takes the link's place; None when it stays a link."""
        if self._order.links == "keep":
            return None
        found = find_real(self._root_fd, place.real)
        if self._leads_out(source, name, place, found):
            # Building a foreign checkout must not put the host's files into an image.
            raise SourceError(
                f"the link `{shown(place.path)}` leads out of the source, "
                f"to `{shown(os.readlink(name, dir_fd=source))}`",
                hint="use --keep-symlinks to copy links as links, or put the file into the source",
            )
        if found.path is None or self._filter.excludes_within(found.path):
            return None
        if self._order.links != "follow" and _is_below(found.path, self._start):
            return None
        return found.path

    def _leads_out(self, source: int, name: str, place: _Place, found: Real) -> bool:
        match self._order.links:
            case "follow":
                return not found.inside and _leads_somewhere(source, name)
            case "confine":
                # What is missing on the way today, somebody may make tomorrow.
                return not found.inside or _climbs(place.real, os.readlink(name, dir_fd=source))
            case _:
                return False

    def _directory(self, source: int, target: int, name: str, place: _Place) -> None:
        self._count(place)
        identity = identity_of(source)
        if identity in place.above:
            raise SourceError(
                f"directory `{shown(place.path)}` leads back to one that contains it",
                hint="use --keep-symlinks to copy links as links",
            )
        if place.depth > DEPTH_LIMIT:
            raise SourceError(
                f"the source has directories more than {DEPTH_LIMIT} deep",
                hint="look for a directory that has itself in it",
            )
        os.mkdir(name, 0o700, dir_fd=target)
        with _open_at(target, name, DIRECTORY) as made:
            self.children(source, made, replace(place, above=(*place.above, identity)))
            facts = self._facts(source, place)
            os.fchmod(made, facts.mode)
            if facts.mtime_ns is not None:
                os.utime(made, ns=(facts.mtime_ns, facts.mtime_ns))

    def _facts(self, source: int, place: _Place) -> DirectoryFacts:
        if self._order.checkout:
            return DirectoryFacts()
        if self._order.unpacked is not None:
            return self._order.unpacked.get(place.real, DirectoryFacts())
        status = os.fstat(source)
        return DirectoryFacts(stat.S_IMODE(status.st_mode), status.st_mtime_ns)

    def _move(
        self, source: int, target: int, name: str, place: _Place, status: os.stat_result
    ) -> None:
        readable = bool(status.st_mode & stat.S_IRUSR)
        if self._order.checkout or (readable and _may_be_pointer(status)):
            with _open_at(source, name, os.O_RDONLY | os.O_NONBLOCK) as descriptor:
                self._note_pointer(descriptor, status, place)
                if self._order.checkout:
                    os.fchmod(descriptor, _git_mode(status))
        os.rename(name, name, src_dir_fd=source, dst_dir_fd=target)

    def _note_pointer(self, descriptor: int, status: os.stat_result, place: _Place) -> None:
        if _may_be_pointer(status):
            begin = os.pread(descriptor, len(_LFS_POINTER), 0)
            if begin == _LFS_POINTER:
                self.pointers.append(shown(place.path))

    def _file(self, source: int, target: int, name: str, place: _Place) -> None:
        status = os.fstat(source)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.ESTALE, "it changed while it was copied")
        self._count(place, min(status.st_size, status.st_blocks * 512))
        self._note_pointer(source, status, place)
        mode = _git_mode(status) if self._order.checkout else stat.S_IMODE(status.st_mode)
        self._copier.copy(source, target, name, mode, place.path)

    def _count(self, place: _Place, size_bytes: int = 0) -> None:
        self._followed += place.followed
        self._followed_bytes += size_bytes if place.followed else 0
        if self._followed > FOLLOWED_LIMIT:
            raise _too_much(f"{FOLLOWED_LIMIT} files")
        if self._followed_bytes > self._order.followed_limit_bytes:
            raise _too_much(f"{self._order.followed_limit_bytes} bytes")


def _failure(path: str, error: OSError) -> Exception:
    """What went wrong with one file; that there is no more room is no fault of it."""
    if is_full(error):
        return error
    return SourceError(
        f"cannot copy `{shown(path)}`: {error.strerror or error}",
        hint="let this user read it, or leave it out by .s2iignore",
    )


def _too_much(what: str) -> SourceError:
    return SourceError(
        f"links in the source lead to more than {what}",
        hint="use --keep-symlinks to copy links as links",
    )


def _special(place: _Place, status: os.stat_result) -> SourceError:
    # Upstream waits for ever at a FIFO, and fails at a socket without a word of where it is.
    kinds = {stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
    what = kinds.get(stat.S_IFMT(status.st_mode), "a device")
    return SourceError(
        f"`{shown(place.path)}` in the source is {what}, which no image can have",
        hint=f"name it in `{IGNORE_FILE}`, or use --exclude",
    )


@contextmanager
def _open_at(directory: int, name: str, flags: int) -> Iterator[int]:
    descriptor = os.open(name, flags | NO_FOLLOW, dir_fd=directory)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _leads_somewhere(directory: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=directory)
    except OSError as error:
        return error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
    return True


def _is_below(path: str, start: str) -> bool:
    return start in (".", path) or path.startswith(f"{start}/")


def _may_be_pointer(status: os.stat_result) -> bool:
    return len(_LFS_POINTER) <= status.st_size <= _LFS_POINTER_LIMIT


def _climbs(link: str, target: str) -> bool:
    """Whether a link's words alone lead above the root."""
    depth = link.count("/")
    for part in target.split("/"):
        depth += 0 if part in ("", ".") else -1 if part == ".." else 1
        if depth < 0:
            return True
    return False


def _git_mode(status: os.stat_result) -> int:
    return 0o755 if status.st_mode & stat.S_IXUSR else 0o644


def _set_times(directory: int, name: str, status: os.stat_result) -> None:
    times = (status.st_mtime_ns, status.st_mtime_ns)
    os.utime(name, ns=times, dir_fd=directory, follow_symlinks=False)
