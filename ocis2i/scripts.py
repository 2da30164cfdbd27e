"""Which assemble, run and save-artifacts a build uses, and from where.

The order is source-to-image's (`pkg/scripts/install.go`), for each script by itself: the scripts
URL of the user, the source's `.s2i/bin`, the builder image. Scripts of the user and of the source
are put into one directory of the host; those of an image are only named.
"""

from __future__ import annotations

import os
import posixpath
import stat
import urllib.parse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ocis2i.errors import ScriptsError, SourceError, UsageError
from ocis2i.events import Notice, Report
from ocis2i.fs import is_full
from ocis2i.s2i import (
    DEFAULT_DESTINATION,
    ENVIRONMENT_PATH,
    REQUIRED_SCRIPTS,
    SOURCE_SCRIPT_DIRECTORIES,
    EnvironmentFile,
    image_directory,
    parse_environment_file,
    redact_url,
)
from ocis2i.sources import SourceTree
from ocis2i.sources.local import copy_file, find_real, open_directory, open_real, read_text, shown

ENVIRONMENT_LIMIT = 1 << 20
SCRIPT_MODE = 0o755
_SOURCE_URL = "<source-dir>/"  # upstream's words

Origin = Literal["flag", "source", "image"]


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
class _Search:
    """Where to look, and where to put what is found."""

    flag: str | None
    contract: str | None
    source: SourceTree
    into: Path
    destination: str
    cwd: Path | None
    report: Report


def resolve(
    contract_scripts_url: str | None,
    *,
    scripts_url_flag: str | None,
    source: SourceTree,
    into: Path,
    wanted: Sequence[str] = REQUIRED_SCRIPTS,
    optional: Sequence[str] = ("save-artifacts",),
    destination: str = DEFAULT_DESTINATION,
    cwd: Path | None = None,
    report: Report,
) -> ScriptSet:
    """Finds every script of `wanted` and those of `optional` that are there.

    Scripts of the source are moved into the existing directory `into`, mode 0755, and will be run
    from `destination`/scripts. A relative `file://` URL starts at `cwd`. An `image:` URL counts
    as a place that has every script. Raises `UsageError` for a scripts URL that is none, and
    `ScriptsError` when a wanted script is nowhere (`InstallScriptsFailed`), or when the user's
    URL offers no script at all (`FetchScriptsFailed`).
    """
    if scripts_url_flag:
        _check_flag(scripts_url_flag)
    if contract_scripts_url:
        _check_promise(contract_scripts_url)
    search = _Search(scripts_url_flag, contract_scripts_url, source, into, destination, cwd, report)
    names = tuple(dict.fromkeys((*wanted, *optional)))
    try:
        found = {name: place for name in names if (place := _find(name, search)) is not None}
        _remove_taken(source, found.values())
    except OSError as error:
        if is_full(error):
            raise
        raise ScriptsError(f"cannot take the scripts: {error.strerror or error}") from error
    if scripts_url_flag and not any(place.origin == "flag" for place in found.values()):
        raise ScriptsError(
            f"`{shown(redact_url(scripts_url_flag))}` has none of the scripts {_listed(names)}",
            hint="--scripts-url must name a directory with these scripts in it",
            reason="FetchScriptsFailed",
        )
    missing = [name for name in wanted if name not in found]
    if missing:
        raise _missing(missing, search)
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
        raise SourceError(f"cannot read `{ENVIRONMENT_PATH}`: {error.strerror}") from error
    environment = parse_environment_file(text or "")
    if environment.skipped:
        count = len(environment.skipped)
        lines = "1 line" if count == 1 else f"{count} lines"
        report(Notice("warning", f"`{ENVIRONMENT_PATH}`: {lines} without NAME=VALUE left out"))
    return environment


# --- the places, best first -------------------------------------------------------------------


def _find(name: str, search: _Search) -> ScriptPlace | None:
    if search.flag and (place := _from_url(name, search.flag, "flag", search)):
        return place
    if place := _from_source(name, search):
        return place
    if search.contract:
        return _from_url(name, search.contract, "image", search)
    return None


def _from_url(name: str, url: str, origin: Origin, search: _Search) -> ScriptPlace | None:
    directory = image_directory(url)
    if directory is not None:
        path = posixpath.join(directory, name)
        return ScriptPlace(name, origin, f"image://{path}", path)
    host_directory = _host_directory(url, search.cwd)
    path_on_host = host_directory / name
    if not path_on_host.is_file():
        return None
    # The user named this directory: links in it are the user's own, and are followed.
    descriptor = os.open(path_on_host, os.O_RDONLY | os.O_CLOEXEC)
    try:
        file = _put(descriptor, name, search)
    finally:
        os.close(descriptor)
    return _in_destination(name, origin, path_on_host.as_uri(), file, search)


def _from_source(name: str, search: _Search) -> ScriptPlace | None:
    with open_directory(search.source.root) as root_fd:
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


# --- reading URLs -----------------------------------------------------------------------------


def _check_flag(url: str) -> None:
    """Raises `UsageError` for a URL that cannot work; upstream passes over it in silence."""
    scheme, colon, _ = url.partition(":")
    if image_directory(url) is not None or scheme == "file":
        return
    text = shown(redact_url(url))
    if scheme in ("http", "https"):
        raise UsageError(
            f"--scripts-url `{text}`: scripts cannot be loaded over HTTP yet",
            hint="download them and use file:///directory, or put them into .s2i/bin",
        )
    problem = f"unknown kind `{shown(scheme)}:`" if colon else "it is not a URL"
    raise UsageError(
        f"--scripts-url `{text}`: {problem}",
        hint="write image:///directory/in/the/image or file:///directory",
    )


def _check_promise(url: str) -> None:
    # `file:` too: a builder image has no business with the files of this host.
    if image_directory(url) is None:
        raise ScriptsError(
            f"the builder image's scripts URL `{shown(redact_url(url))}` is not supported, "
            "only image:// is",
            hint="name the directory with --scripts-url image:///directory/in/the/image",
        )


def _host_directory(url: str, cwd: Path | None) -> Path:
    rest = urllib.parse.unquote(url.partition(":")[2])
    path = Path(rest.removeprefix("//"))
    if path.is_absolute():
        return path
    if cwd is None:
        raise UsageError(
            f"scripts URL `{shown(url)}` is relative", hint="write file:///absolute/directory"
        )
    return cwd / path


# --- taking files -----------------------------------------------------------------------------


def _is_there(root_fd: int, path: str) -> bool:
    """Whether the source has such an entry, even as a link that leads nowhere."""
    directory, _, name = path.rpartition("/")
    real = find_real(root_fd, directory)
    if not real.inside:
        raise SourceError(f"`{directory}` in the source is a link that leaves the source")
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
            raise ScriptsError(f"the script `{path}` of the source is not a file")
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


def _remove(root_fd: int, directory: str, name: str) -> None:
    with open_real(root_fd, directory, os.O_RDONLY | os.O_DIRECTORY) as parent:
        mode = stat.S_IMODE(os.fstat(parent).st_mode)
        # The copy keeps the modes of the source, and a directory may be read-only.
        os.fchmod(parent, mode | stat.S_IRWXU)
        os.unlink(name, dir_fd=parent)
        os.fchmod(parent, mode)


def _missing(names: Sequence[str], search: _Search) -> ScriptsError:
    places = [f"`{directory}` of the source" for directory in SOURCE_SCRIPT_DIRECTORIES]
    if search.flag:
        places.insert(0, f"`{shown(redact_url(search.flag))}`")
    places.append(
        f"`{shown(redact_url(search.contract))}` of the builder image"
        if search.contract
        else "the builder image, which has no label `io.openshift.s2i.scripts-url`"
    )
    return ScriptsError(
        f"no script {_listed(names)}; looked in {', '.join(places)}",
        hint="is it an S2I builder image? else put the scripts into .s2i/bin, "
        "or name their place with --scripts-url",
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
