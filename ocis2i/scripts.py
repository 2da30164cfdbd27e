"""Which assemble, run and save-artifacts a build uses, and from where.

The order is source-to-image's (`pkg/scripts/install.go`), for each script by itself: the scripts
URL of the user, the source's `.s2i/bin`, the image. Scripts of the user, of the source and of a
web server are put into one directory of the host; those of an image are only named. Each script
remembers its own place, so a `--scripts-url` with some of them mixes with the others.
"""

from __future__ import annotations

import os
import posixpath
import stat
import urllib.parse
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import field
from pathlib import Path
from typing import Literal, assert_never

from ocis2i.errors import ScriptsError, SourceError, UsageError, shown
from ocis2i.events import Notice, Report
from ocis2i.fs import is_full
from ocis2i.lazy_dataclass import dataclass
from ocis2i.limits import counted
from ocis2i.net import is_web_url, redacted
from ocis2i.s2i import (
    DEFAULT_DESTINATION,
    ENVIRONMENT_PATH,
    REQUIRED_SCRIPTS,
    SCRIPTS_URL_LABELS,
    SOURCE_SCRIPT_DIRECTORIES,
    EnvironmentFile,
    image_directory,
    parse_environment_file,
    redact_url,
)
from ocis2i.sources import SourceTree
from ocis2i.sources.copying import copy_file
from ocis2i.sources.paths import find_real, open_directory, open_real, read_text

ENVIRONMENT_LIMIT = 1 << 20
SCRIPT_MODE = 0o755
SCRIPT_LIMIT = 1 << 20  # bytes of a script that comes over HTTP
_SOURCE_URL = "<source-dir>/"  # upstream's words

Origin = Literal["flag", "source", "image", "fallback"]
# From a URL and a limit in bytes to the file, None when it is not there; raises `ScriptsError`.
Download = Callable[[str, int], bytes | None]


@dataclass(frozen=True, slots=True)
class ScriptPlace:
    """One script: whose it is, the URL it came from, and its path inside the build's container.

    `file` is the script on the host, to be put at `path_in_image`; None for a script that the
    image brings, of which nobody has looked yet whether it is there.
    """

    name: str
    origin: Origin
    url: str
    path_in_image: str
    file: Path | None = None


@dataclass(frozen=True, slots=True)
class ScriptSet:
    """The scripts of a build by name; an optional one that nobody offers is not in it."""

    places: Mapping[str, ScriptPlace] = field(default_factory=dict)

    def __getitem__(self, name: str) -> ScriptPlace:
        return self.places[name]

    def get(self, name: str) -> ScriptPlace | None:
        """The place of a script, None when there is none."""
        return self.places.get(name)

    @property
    def files(self) -> tuple[ScriptPlace, ...]:
        """The scripts that have to be put into the container."""
        return tuple(place for place in self.places.values() if place.file is not None)


@dataclass(frozen=True, slots=True)
class _InImage:
    """A directory inside the image; nobody looks whether a script is there."""

    directory: str


@dataclass(frozen=True, slots=True)
class _OnHost:
    """A directory of this machine that the user named."""

    directory: Path


@dataclass(frozen=True, slots=True)
class _OnWeb:
    """An http or https URL below which the scripts are; it may hold a password."""

    url: str = field(repr=False)


_Directory = _InImage | _OnHost | _OnWeb


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a script may be, whose that is, and how a list of failures names it."""

    origin: Origin
    where: _Directory | SourceTree
    words: str


@dataclass(frozen=True, slots=True)
class _Search:
    """Where to look, best first, and where to put what is found."""

    places: tuple[_Place, ...]
    known: ScriptSet
    into: Path
    destination: str
    download: Download | None
    report: Report


def resolve(
    contract_scripts_url: str | None,
    *,
    scripts_url_flag: str | None,
    source: SourceTree | None,
    into: Path,
    wanted: Sequence[str] = REQUIRED_SCRIPTS,
    optional: Sequence[str] = ("save-artifacts",),
    destination: str = DEFAULT_DESTINATION,
    cwd: Path | None = None,
    image_scripts_url: str | None = None,
    whose: str = "the builder image",
    known: ScriptSet | None = None,
    download: Download | None = None,
    report: Report,
) -> ScriptSet:
    """Finds every script of `wanted` and those of `optional` that are there.

    Scripts of the source are moved into the existing directory `into`, mode 0755, and will be run
    from `destination`/scripts. A relative `file://` URL starts at `cwd`; http URLs need `download`.
    An `image:` URL counts as a place that has every script. `contract_scripts_url` is what the
    image promises that error messages call `whose`; `image_scripts_url` is the last place of all.
    `known` is what an earlier call for the same build found: it took the scripts out of the source,
    so those of the user and of the source are copied from there.

    Raises `UsageError` for a scripts URL that is none, and `ScriptsError` when a wanted script is
    nowhere (`InstallScriptsFailed`), or when the user's URL offers no script at all or a script
    cannot be fetched (`FetchScriptsFailed`).
    """
    promise, fault = _read_promise(contract_scripts_url, whose, download)
    places = (
        _place_of_flag(scripts_url_flag, "--scripts-url", "flag", cwd, download),
        _place_of_source(source),
        promise,
        _place_of_flag(image_scripts_url, "--image-scripts-url", "fallback", cwd, download),
    )
    there = tuple(place for place in places if place is not None)
    search = _Search(there, known or ScriptSet(), into, destination, download, report)
    names = tuple(dict.fromkeys((*wanted, *optional)))
    found = _find_all(names, source, search)
    if scripts_url_flag and not _offered_by_flag(found, search.known):
        raise ScriptsError(
            f"{there[0].words} has none of the scripts {_listed(names)}",
            hint="--scripts-url must name a directory with these scripts in it",
            reason="FetchScriptsFailed",
        )
    missing = [name for name in wanted if name not in found]
    if missing:
        raise fault or _missing(missing, contract_scripts_url, whose, search)
    if fault and len(found) < len(names):
        report(Notice("warning", fault.message))
    return ScriptSet(found)


def read_environment(source: SourceTree, report: Report) -> EnvironmentFile:
    """The variables of `.s2i/environment`; none when there is no such file.

    Lines that are no variable are counted in a warning, never shown: they may be secrets. Raises
    `SourceError` when the file is a link out of the source, larger than 1 MiB, or not UTF-8.
    """
    try:
        with open_directory(source.root) as root_fd:
            text = read_text(root_fd, ENVIRONMENT_PATH, ENVIRONMENT_LIMIT)
    except OSError as error:
        raise SourceError(
            f"cannot read `{ENVIRONMENT_PATH}`: {error.strerror}", hint="let this user read it"
        ) from error
    environment = parse_environment_file(text or "")
    if environment.skipped:
        lines = counted(len(environment.skipped), "line")
        report(Notice("warning", f"`{ENVIRONMENT_PATH}`: {lines} without NAME=VALUE left out"))
    return environment


# --- the places, best first -------------------------------------------------------------------


def _place_of_flag(
    url: str | None, flag: str, origin: Origin, cwd: Path | None, download: Download | None
) -> _Place | None:
    """Raises `UsageError` for a URL that cannot work; upstream passes over it in silence."""
    if not url:
        return None
    where = _parse_url(url, cwd)
    if isinstance(where, str):
        raise UsageError(
            f"{flag} `{_without_secrets(url)}`: {where}",
            hint="write image:///directory/in/the/image, file:///directory or "
            "https://host/directory",
        )
    if isinstance(where, _OnWeb) and download is None:
        raise UsageError(
            f"{flag} `{_without_secrets(url)}`: nothing is fetched over HTTP here",
            hint="download the scripts and use file:///directory",
        )
    return _Place(origin, where, f"`{_without_secrets(url)}`")


def _place_of_source(source: SourceTree | None) -> _Place | None:
    if source is None:
        return None
    words = ", ".join(f"`{directory}` of the source" for directory in SOURCE_SCRIPT_DIRECTORIES)
    return _Place("source", source, words)


def _read_promise(
    url: str | None, whose: str, download: Download | None
) -> tuple[_Place | None, ScriptsError | None]:
    """The place that an image promises, or what is wrong with it: an error once it is needed."""
    if not url:
        return None, None
    where = _parse_url(url, None)
    # `file:` is refused: an image has no business with the files of this host.
    if isinstance(where, _InImage) or (isinstance(where, _OnWeb) and download is not None):
        return _Place("image", where, f"`{_without_secrets(url)}` of {whose}"), None
    supported = "only image:// is" if download is None else "only image:// and https:// are"
    return None, ScriptsError(
        f"the scripts URL `{_without_secrets(url)}` of {whose} is not supported, {supported}",
        hint="name the directory with --scripts-url image:///directory/in/the/image",
    )


def _parse_url(url: str, cwd: Path | None) -> _Directory | str:
    """What a scripts URL names, or in words what is wrong with it."""
    directory = image_directory(url)
    if directory is not None:
        return _InImage(directory)
    scheme, colon, rest = url.partition(":")
    if not colon:
        return "it is not a URL"
    match scheme.lower():
        case "file":
            return _parse_host_directory(rest, cwd)
        case "http" | "https":
            return _OnWeb(url) if is_web_url(url) else "it is malformed"
        case _:
            return f"unknown kind `{shown(scheme)}:`"


def _parse_host_directory(rest: str, cwd: Path | None) -> _OnHost | str:
    text = urllib.parse.unquote(rest).removeprefix("//")
    path = Path(text)
    if not text or "\0" in text:
        return "it names no directory"
    if path.is_absolute():
        return _OnHost(path)
    return "it is relative" if cwd is None else _OnHost(cwd / path)


def script_url(url: str, name: str) -> str:
    """The URL of the script `name` below `url`; a query stays where queries are."""
    parts = urllib.parse.urlsplit(url)
    path = f"{parts.path.rstrip('/')}/{name}"
    return urllib.parse.urlunsplit(parts._replace(path=path, fragment=""))


def _without_secrets(url: str) -> str:
    return shown(redacted(url) if is_web_url(url) else redact_url(url))


# --- looking ----------------------------------------------------------------------------------


def _find_all(
    names: Sequence[str], source: SourceTree | None, search: _Search
) -> dict[str, ScriptPlace]:
    try:
        reused = {name: place for name in names if (place := _reuse(name, search)) is not None}
        fresh = {
            name: place
            for name in names
            if name not in reused and (place := _find(name, search)) is not None
        }
        if source is not None:
            _remove_taken(source, fresh.values())
            _remove_ignored(source)
    except OSError as error:
        if is_full(error):
            raise
        raise ScriptsError(
            f"cannot take the scripts: {error.strerror or error}", hint="let this user read them"
        ) from error
    found = reused | fresh
    return {name: found[name] for name in names if name in found}


def _reuse(name: str, search: _Search) -> ScriptPlace | None:
    place = search.known.get(name)
    if place is None or place.file is None or place.origin not in ("flag", "source"):
        return None
    descriptor = os.open(place.file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        file = _put(descriptor, name, search)
    finally:
        os.close(descriptor)
    return _in_destination(name, place.origin, place.url, file, search)


def _find(name: str, search: _Search) -> ScriptPlace | None:
    for place in search.places:
        if found := _look(name, place, search):
            search.report(Notice("debug", f"script `{name}` from `{shown(found.url)}`"))
            return found
    return None


def _look(name: str, place: _Place, search: _Search) -> ScriptPlace | None:
    match place.where:
        case _InImage(directory):
            path = posixpath.join(directory, name)
            return ScriptPlace(name, place.origin, f"image://{path}", path)
        case _OnHost(directory):
            return _from_host(name, directory / name, place.origin, search)
        case _OnWeb(url):
            return _from_web(name, script_url(url, name), place.origin, search)
        case SourceTree() as source:
            return _from_source(name, source, search)
        case _:
            assert_never(place.where)


def _from_host(name: str, path: Path, origin: Origin, search: _Search) -> ScriptPlace | None:
    # The user named this directory: links in it are the user's own, and are followed.
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ScriptsError(
            f"cannot read the script `{shown(str(path))}`: {error.strerror}",
            reason="FetchScriptsFailed",
            hint="name scripts that are there and that you may read",
        ) from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ScriptsError(
                f"the script `{shown(str(path))}` is not a file",
                reason="FetchScriptsFailed",
                hint="put a regular file there",
            )
        file = _put(descriptor, name, search)
    finally:
        os.close(descriptor)
    return _in_destination(name, origin, path.as_uri(), file, search)


def _from_web(name: str, url: str, origin: Origin, search: _Search) -> ScriptPlace | None:
    data = search.download(url, SCRIPT_LIMIT) if search.download else None
    if data is None:
        return None
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open_directory(search.into) as into_fd:
        descriptor = os.open(name, flags, 0o600, dir_fd=into_fd)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            os.fchmod(descriptor, SCRIPT_MODE)
    return _in_destination(name, origin, redacted(url), search.into / name, search)


def _from_source(name: str, source: SourceTree, search: _Search) -> ScriptPlace | None:
    with open_directory(source.root) as root_fd:
        for directory in SOURCE_SCRIPT_DIRECTORIES:
            path = f"{directory}/{name}"
            if not _is_there(root_fd, path):
                continue
            if directory != SOURCE_SCRIPT_DIRECTORIES[0]:
                search.report(
                    Notice("warning", f"`{path}` is deprecated, move it to `.s2i/bin/{name}`")
                )
            file = _take(root_fd, path, name, search)
            return _in_destination(name, "source", f"{_SOURCE_URL}{path}", file, search)
    return None


def _in_destination(
    name: str, origin: Origin, url: str, file: Path, search: _Search
) -> ScriptPlace:
    path = posixpath.join(search.destination, "scripts", name)
    return ScriptPlace(name, origin, url, path, file)


def _offered_by_flag(found: Mapping[str, ScriptPlace], known: ScriptSet) -> bool:
    return any(place.origin == "flag" for place in (*found.values(), *known.places.values()))


# --- taking files -----------------------------------------------------------------------------


def _is_there(root_fd: int, path: str) -> bool:
    """Whether the source has such an entry, even as a link that leads nowhere."""
    directory, _, name = path.rpartition("/")
    real = find_real(root_fd, directory)
    if not real.inside:
        raise SourceError(
            f"`{directory}` in the source is a link that leaves the source",
            hint="put a directory there instead of the link",
        )
    if real.path is None:
        return False
    try:
        os.stat(f"{real.path}/{name}", dir_fd=root_fd, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _take(root_fd: int, path: str, name: str, search: _Search) -> Path:
    """Copies a script of the source; of a link, what it leads to."""
    real = find_real(root_fd, path)
    if real.path is None:
        fault = "leads nowhere" if real.inside else "leaves the source"
        # Upstream takes the builder's script instead, without a word.
        raise ScriptsError(
            f"the script `{path}` is a link that {fault}",
            hint="put the script itself there",
        )
    with open_real(root_fd, real.path, os.O_RDONLY) as descriptor:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ScriptsError(
                f"the script `{path}` of the source is not a file", hint="put a regular file there"
            )
        return _put(descriptor, name, search)


def _put(descriptor: int, name: str, search: _Search) -> Path:
    with open_directory(search.into) as into_fd:
        copy_file(descriptor, into_fd, name, SCRIPT_MODE)
    return search.into / name


def _remove_taken(source: SourceTree, places: Iterable[ScriptPlace]) -> None:
    # Only now: a script may be a link to another.
    with open_directory(source.root) as root_fd:
        for place in places:
            if place.origin == "source":
                directory, _, name = place.url.removeprefix(_SOURCE_URL).rpartition("/")
                _remove(root_fd, find_real(root_fd, directory).path or ".", name)


def _remove_ignored(source: SourceTree) -> None:
    """Removes what rules name and no build wants: scripts of other places, and directories."""
    with open_directory(source.root) as root_fd:
        for path in reversed(source.ignored):
            directory, _, name = path.rpartition("/")
            parent = find_real(root_fd, directory).path if directory else "."
            if parent is not None:
                with suppress(FileNotFoundError):  # a script that was taken
                    _remove(root_fd, parent, name)


def _remove(root_fd: int, directory: str, name: str) -> None:
    with open_real(root_fd, directory, os.O_RDONLY | os.O_DIRECTORY) as parent:
        mode = stat.S_IMODE(os.fstat(parent).st_mode)
        # The copy keeps the modes of the source, and a directory may be read-only.
        os.fchmod(parent, mode | stat.S_IRWXU)
        try:
            if stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
                os.rmdir(name, dir_fd=parent)
            else:
                os.unlink(name, dir_fd=parent)
        finally:
            os.fchmod(parent, mode)


def _missing(
    names: Sequence[str], contract: str | None, whose: str, search: _Search
) -> ScriptsError:
    places = [place.words for place in search.places]
    if not contract:
        places.append(f"{whose}, which has no label `{SCRIPTS_URL_LABELS[0]}`")
    in_source = any(place.origin == "source" for place in search.places)
    ways = "put the scripts into .s2i/bin, or " if in_source else ""
    return ScriptsError(
        f"no script {_listed(names)}; looked in {', '.join(places)}",
        hint=f"is {whose} made for S2I? else {ways}name their place with --scripts-url",
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
