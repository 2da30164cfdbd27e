"""Injected files: what `--inject` brings into a build, listed file by file before it begins.

The user names a file or a directory; what is in a directory is foreign and confined to it. Links
are followed inside it only, which the mounted secrets and config maps of Kubernetes need: there a
file `password` leads to `..data/password`, and `..data` to a directory with the time in its name.

Differences from source-to-image: a link that leads out, leads nowhere or leads in circles, and a
FIFO, socket or device, are errors and not surprises of the upload; `..data` and its directories
are not brought in a second time beside the files; a file without a destination goes into the
`WORKDIR` under its own name, where upstream fails.
"""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from ocis2i.agent.inject import FILE_LIMIT, SIZE_LIMIT
from ocis2i.errors import UsageError, shown
from ocis2i.lazy_dataclass import dataclass
from ocis2i.mappings import PathPair
from ocis2i.s2i import IMAGE_METADATA_PATH, absolute_path
from ocis2i.sources.ignore import DEFAULT_EXCLUDE, Filter, compile_exclude
from ocis2i.sources.local import DEPTH_LIMIT
from ocis2i.sources.paths import DIRECTORY, find_real, identity_of, open_real, status_of

# What ocis2i itself mounts into the container or reads there, and how to have it another way.
RESERVED = {
    "/etc/group": "it is looked up before scripts run; inject to another place",
    "/etc/hosts": "add lines to it with --add-host",
    "/etc/passwd": "choose who runs assemble with --assemble-user",
    "/etc/resolv.conf": "it is the host's, or with --network none an empty one",
    IMAGE_METADATA_PATH: "let assemble write it",
}

_FLAG = "`--inject`"
_KUBERNETES_DATA = "..data"
_DROPPED = Filter(compile_exclude(DEFAULT_EXCLUDE))


@dataclass(frozen=True, slots=True)
class InjectedFile:
    """A regular file of the host and its place in the container, both absolute.

    `top` is the destination of the injection that brings it, a directory if `directory`, else
    `target` itself. `keep`: its content may stay in the image.
    """

    source: str
    target: str
    top: str
    directory: bool
    keep: bool = False


def read_injections(
    pairs: Sequence[PathPair], *, workdir: str, cwd: Path
) -> tuple[InjectedFile, ...]:
    """The files that `pairs` bring, sorted by target; of two for one target the later counts.

    Sources are relative to `cwd`, destinations to `workdir` (empty: `/`). Empty directories bring
    nothing. Raises `UsageError` for what is not there, cannot be read, leads out of its directory
    or is no regular file, for more than `FILE_LIMIT` files or `SIZE_LIMIT` bytes in all, and for a
    destination that is `RESERVED`.
    """
    listing = _Listing()
    for pair in pairs:
        _list_pair(pair, workdir, cwd, listing)
    files = {item.target: item for item in listing.found}
    _refuse_reserved(listing.found)
    for target in files:
        for above in _parents(target):
            if above in files:
                raise UsageError(
                    f"{_FLAG} would make `{shown(above)}` a file and a directory",
                    hint="give one of them another destination",
                )
    return tuple(files[target] for target in sorted(files))


def check_injections(pairs: Sequence[PathPair], *, cwd: Path) -> None:
    """Raises as `read_injections` does, for what is wrong whatever the image's `WORKDIR` is.

    So a missing file is told before anything is pulled.
    """
    listing = _Listing()
    for pair in pairs:
        before = len(listing.found)
        _list_pair(pair, "", cwd, listing)
        if pair.destination.startswith("/"):
            _refuse_reserved(listing.found[before:])


def _refuse_reserved(files: Sequence[InjectedFile]) -> None:
    for file in files:
        if file.target in RESERVED:
            raise UsageError(
                f"{_FLAG}: `{shown(file.source)}` cannot be injected as `{file.target}`, which "
                "ocis2i itself needs",
                hint=RESERVED[file.target],
            )


def read_content(file: InjectedFile) -> bytes:
    """What is in an injected file, for the search after the build. Raises `UsageError`."""
    try:
        descriptor = os.open(
            file.source, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        )
        with os.fdopen(descriptor, "rb") as stream:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise _refusal(file.source, "is no regular file any more")
            data = stream.read(SIZE_LIMIT + 1)
    except OSError as error:
        raise _unreadable(file.source, error) from error
    if len(data) > SIZE_LIMIT:
        raise _too_large()
    return data


class _Listing:
    """What was found so far, with its bounds."""

    def __init__(self) -> None:
        self.found: list[InjectedFile] = []
        self._entries = 0
        self._size_bytes = 0

    def count(self) -> None:
        # Links to directories can multiply: directories count too, though only files are brought.
        self._entries += 1
        if self._entries > FILE_LIMIT:
            raise UsageError(
                f"{_FLAG} brings more than {FILE_LIMIT} files and directories",
                hint="use --volume for a large tree",
            )

    def add(self, item: InjectedFile, size_bytes: int) -> None:
        self._size_bytes += size_bytes
        if self._size_bytes > SIZE_LIMIT:
            raise _too_large()
        self.found.append(item)


def _list_pair(pair: PathPair, workdir: str, cwd: Path, listing: _Listing) -> None:
    try:
        real = os.path.realpath(cwd / pair.source, strict=True)
        mode = Path(real).lstat().st_mode
    except OSError as error:
        raise _unreadable(pair.source, error) from error
    top = absolute_path(pair.destination, workdir)
    if stat.S_ISDIR(mode):
        _list_directory(pair.source, real, top, listing)
        return
    if pair.destination == ".":
        top = posixpath.join(top, posixpath.basename(absolute_path(pair.source)))
    parent, name = os.path.split(real)
    with _opened(parent) as parent_fd:
        listing.count()
        size = _check_file(parent_fd, name, pair.source)
    _check_names(real, top)
    listing.add(InjectedFile(real, top, top, directory=False), size)


def _list_directory(typed: str, real: str, top: str, listing: _Listing) -> None:
    with _opened(real) as root_fd:
        walk = _Walk(typed, real, top, root_fd, listing)
        with open_real(root_fd, ".", DIRECTORY) as start_fd:
            walk.children(start_fd, _Place("", ".", (identity_of(start_fd),)))


@dataclass(frozen=True, slots=True)
class _Place:
    """A path of the walk: as the container has it, and where it really is below the root."""

    path: str
    real: str
    above: tuple[tuple[int, int], ...]

    def child(self, name: str) -> _Place:
        real = name if self.real == "." else f"{self.real}/{name}"
        return replace(self, path=f"{self.path}/{name}" if self.path else name, real=real)


class _Walk:
    """One walk over an injected directory."""

    def __init__(self, typed: str, root: str, top: str, root_fd: int, listing: _Listing) -> None:
        self._typed = typed
        self._root = root
        self._top = top
        self._root_fd = root_fd
        self._listing = listing

    def children(self, directory_fd: int, place: _Place) -> None:
        """Lists what is in one directory."""
        for name in _names(directory_fd):
            child = place.child(name)
            if _DROPPED.drops(child.path):
                continue
            try:
                self._entry(child)
            except OSError as error:
                raise _unreadable(self._named(child), error) from error

    def _entry(self, place: _Place) -> None:
        found = find_real(self._root_fd, place.real)
        if not found.inside:
            target = os.readlink(place.real, dir_fd=self._root_fd)
            raise UsageError(
                f"{_FLAG}: the link `{self._named(place)}` leads out of `{shown(self._typed)}`, "
                f"to `{shown(target)}`",
                hint="inject what it leads to as well, or make it a relative link inside",
            )
        if found.path is None:
            raise _refusal(self._named(place), "is a link that leads nowhere")
        if _DROPPED.excludes_within(found.path):
            return
        self._listing.count()
        status = status_of(self._root_fd, found.path)
        if stat.S_ISDIR(status.st_mode):
            self._directory(replace(place, real=found.path))
        else:
            self._file(replace(place, real=found.path))

    def _directory(self, place: _Place) -> None:
        with open_real(self._root_fd, place.real, DIRECTORY) as directory_fd:
            identity = identity_of(directory_fd)
            if identity in place.above:
                raise _refusal(self._named(place), "is a link to a directory that contains it")
            if len(place.above) > DEPTH_LIMIT:
                raise _refusal(self._named(place), f"is more than {DEPTH_LIMIT} directories deep")
            self.children(directory_fd, replace(place, above=(*place.above, identity)))

    def _file(self, place: _Place) -> None:
        parent, _, name = place.real.rpartition("/")
        with open_real(self._root_fd, parent or ".", DIRECTORY) as parent_fd:
            size = _check_file(parent_fd, name, f"{self._typed}/{place.path}")
        source = posixpath.join(self._root, place.real)
        target = posixpath.join(self._top, place.path)
        _check_names(source, target)
        self._listing.add(InjectedFile(source, target, self._top, directory=True), size)

    def _named(self, place: _Place) -> str:
        return shown(f"{self._typed}/{place.path}")


def _names(directory_fd: int) -> list[str]:
    """The names in a directory, sorted, without those that kubelet keeps for itself.

    Its writer (`pkg/volume/util/atomic_writer.go`) forbids users names that begin with `..`.
    """
    names = sorted(os.listdir(directory_fd))
    if _KUBERNETES_DATA in names:
        mode = status_of(directory_fd, _KUBERNETES_DATA).st_mode
        if stat.S_ISLNK(mode):
            return [name for name in names if not name.startswith("..")]
    return names


def _check_file(parent_fd: int, name: str, typed: str) -> int:
    """The size of a regular file that can be read; it is looked at before it is opened.

    Opening a device can do things, and a FIFO would wait.
    """
    try:
        before = status_of(parent_fd, name)
        if not stat.S_ISREG(before.st_mode):
            raise _refusal(typed, f"is {_KINDS.get(stat.S_IFMT(before.st_mode), 'special')}")
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        os.close(os.open(name, flags, dir_fd=parent_fd))
    except OSError as error:
        raise _unreadable(typed, error) from error
    return before.st_size


_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFLNK: "a link now",
}


def _check_names(source: str, target: str) -> None:
    # Mounts are told to the runtime as JSON, which has text and not bytes.
    for path in (source, target):
        try:
            path.encode()
        except UnicodeEncodeError as error:
            raise _refusal(path, "is not UTF-8 text") from error


@contextmanager
def _opened(path: str) -> Iterator[int]:
    try:
        descriptor = os.open(path, DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        raise _unreadable(path, error) from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _parents(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:end]) for end in range(2, len(parts))]


def _refusal(path: str, why: str) -> UsageError:
    return UsageError(
        f"{_FLAG}: `{shown(path)}` {why}",
        hint="name a file or directory that is there, as SRC or SRC:DST",
    )


def _unreadable(path: str, error: OSError) -> UsageError:
    absent = isinstance(error, (FileNotFoundError, NotADirectoryError))
    return UsageError(
        f"{_FLAG}: cannot read `{shown(path)}`: {error.strerror or error}",
        hint="name what is there, as SRC or SRC:DST" if absent else "let this user read it",
    )


def _too_large() -> UsageError:
    return UsageError(
        f"{_FLAG} brings more than {SIZE_LIMIT >> 20} MiB",
        hint="it is for configuration and secrets; use --volume for more",
    )
