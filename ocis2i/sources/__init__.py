"""The application's source: which kind it is, and how it gets into a build.

The grammar of a source, and what becomes of it, follow source-to-image (`pkg/scm`); a fragment
(`#ref`) counts, while that program's command line ignores it.
"""

from __future__ import annotations

import posixpath
import re
import stat
import urllib.parse
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO, cast, get_args

from ocis2i.binaries import DEFAULT_NAME, SourceType, check_name, has_java_name
from ocis2i.errors import SourceError, UsageError, shown
from ocis2i.events import Notice, Report
from ocis2i.fs import is_full
from ocis2i.images import Places
from ocis2i.lazy_dataclass import dataclass
from ocis2i.oci_artifacts import SCHEME as ARTIFACT_SCHEME
from ocis2i.reference import Reference, RegistryLocation, short_name
from ocis2i.s2i import SourceInfo as SourceInfo
from ocis2i.s2i import redact_url
from ocis2i.settings import Settings
from ocis2i.sources.archive import ArchiveSource as ArchiveSource
from ocis2i.sources.archive import fetch_archive, is_archive
from ocis2i.sources.artifact import ArtifactSource as ArtifactSource
from ocis2i.sources.artifact import fetch_artifact
from ocis2i.sources.git import TRANSPORTS, check_ref, fetch_repository, find_git
from ocis2i.sources.git import GitSource as GitSource
from ocis2i.sources.ignore import DEFAULT_EXCLUDE as DEFAULT_EXCLUDE
from ocis2i.sources.ignore import compile_exclude
from ocis2i.sources.local import DirSource as DirSource
from ocis2i.sources.local import Fetched, fetch_directory
from ocis2i.sources.prepared import SCHEME as PREPARED_SCHEME
from ocis2i.sources.prepared import PreparedSource as PreparedSource
from ocis2i.sources.prepared import fetch_prepared
from ocis2i.sources.single import SingleSource as SingleSource
from ocis2i.sources.single import check_single, fetch_single, is_single, no_source

Source = GitSource | DirSource | ArchiveSource | ArtifactSource | PreparedSource | SingleSource

_SCHEME = re.compile(r"([A-Za-z][-A-Za-z0-9+.]*):(.*)\Z", re.DOTALL)
_LARGEST_DEPTH = (1 << 31) - 1  # git's own, where it means everything
_SCP = re.compile(r"(?:([^@/]*)@)?([^/]*):(.*)\Z", re.DOTALL)


@dataclass(frozen=True, slots=True)
class SourceTree:
    """A source that is there: `root` is the directory whose content becomes `src`.

    `ignored` is in it for the S2I scripts alone, directories before what is in them;
    `scripts.resolve` removes it.
    """

    root: Path
    info: SourceInfo
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Options:
    ref: str | None
    context_dir: str
    copy: bool
    exclude: str
    keep_symlinks: bool
    ignore_submodules: bool
    depth: int | None
    type: SourceType = "auto"
    name: str | None = None


def empty_tree(into: Path) -> SourceTree:
    """No source at all, in the empty directory `into`; nothing is read, here or elsewhere."""
    return SourceTree(into, SourceInfo())


def fetch(
    source: Source,
    into: Path,
    *,
    settings: Settings,
    report: Report,
    stdin: BinaryIO | None = None,
    places: Places | None = None,
) -> SourceTree:
    """Puts `source` into the existing empty directory `into`.

    A clone or an unpacked archive is made beside `into` first. The S2I scripts of the source are
    there whatever `.s2iignore` and `--exclude` say; `scripts.resolve` takes them away. `stdin` is
    what the source `-` is read from, `places` where an artifact is had from. Raises `SourceError`,
    `PolicyError` for an archive over the limits, and `RegistryError`.
    """
    try:
        fetched = _fetch(source, into, settings=settings, report=report, stdin=stdin, places=places)
    except OSError as error:
        if is_full(error):
            raise
        raise SourceError(
            f"cannot fetch the source: {error.strerror or error}",
            hint="look at that file, and at the space in the temporary directory (TMPDIR)",
        ) from error
    return SourceTree(into, fetched.info, fetched.ignored)


def _fetch(  # noqa: PLR0911 - a line for each kind
    source: Source,
    into: Path,
    *,
    settings: Settings,
    report: Report,
    stdin: BinaryIO | None,
    places: Places | None,
) -> Fetched:
    match source:
        case ArtifactSource():
            return fetch_artifact(source, into, places=places, settings=settings, report=report)
        case ArchiveSource():
            return fetch_archive(source, into, stdin=stdin, settings=settings, report=report)
        case SingleSource():
            return fetch_single(source, into, stdin=stdin, settings=settings, report=report)
        case PreparedSource():
            limit = settings.layer_limit
            return fetch_prepared(source, into, report, followed_limit_bytes=limit)
        case DirSource():
            return _copy(source, into, settings, report)
        case GitSource():
            program = find_git(settings)
            if program is not None:
                return fetch_repository(
                    source, into, program=program, settings=settings, report=report
                )
            return _copy(_as_directory(source, report), into, settings, report)


def _copy(source: DirSource, into: Path, settings: Settings, report: Report) -> Fetched:
    return fetch_directory(source, into, report, followed_limit_bytes=settings.layer_limit)


def _as_directory(source: GitSource, report: Report) -> DirSource:
    if source.local is None or source.ref is not None or not _exists(source.local / ".git"):
        raise SourceError(
            f"`{shown(redact_url(source.url))}` needs the program `git`, which is not installed",
            hint="install git, or give a directory",
        )
    report(
        Notice(
            "warning",
            f"`git` is not installed: `{shown(str(source.local))}` is copied as it is, "
            "with what is not committed",
        )
    )
    return DirSource(source.local, source.url, source.context_dir, source.exclude)


# --- reading what the user typed --------------------------------------------------------------


def parse_source(
    text: str,
    *,
    cwd: Path,
    ref: str | None = None,
    context_dir: str | None = None,
    copy: bool = False,
    exclude: str = DEFAULT_EXCLUDE,
    keep_symlinks: bool = False,
    ignore_submodules: bool = False,
    depth: int | None = None,
    type: str = "auto",  # noqa: A002 - as the flag has it
    name: str | None = None,
) -> Source:
    """Decides what `text` is: a git URL, `host:path` as scp writes it, a local path, or `-`.

    Or an artifact in a registry, `oci-artifact://REFERENCE`, or what `ocis2i fetch` has fetched,
    `fetched:DIRECTORY`.

    A directory with `.git` in it, or a bare repository, is cloned unless `copy` is set; any other
    is copied. A file is an archive or a source by itself, and so is `-`, standard input: its
    content decides, or `type`; `name` is what it is called then. So is an http URL with
    `#sha256=DIGEST`, or one of a .jar or a .war. `ref` wins over `#ref`. A relative path starts
    at `cwd`. `depth` is how many commits a clone brings, all when None; what is not cloned has no
    use for it. Raises `SourceError` for what is none of these, and `UsageError` for an `exclude`
    that is no regular expression and a `depth` below 1.
    """
    compile_exclude(exclude)
    _check_depth(depth)
    options = _Options(
        ref or None,
        _clean_context(context_dir or ""),
        copy,
        exclude,
        keep_symlinks,
        ignore_submodules,
        depth,
        read_source_type(type),
        None if name is None else check_name(name),
    )
    check_ref(options.ref)
    found = _parse(text, cwd, options)
    if options.name is not None and not isinstance(found, SingleSource):
        may_be = isinstance(found, ArchiveSource)
        raise UsageError(
            "--source-name has no meaning for this source, which is no single file",
            hint="leave it out, or add --source-type file" if may_be else "leave it out",
        )
    if options.type != "auto" and not isinstance(found, SingleSource | ArchiveSource):
        raise UsageError(
            f"--source-type {options.type} has no meaning for this source, which is no file",
            hint="leave it out",
        )
    return found


def _parse(text: str, cwd: Path, options: _Options) -> Source:  # noqa: PLR0911 - likewise
    if text == "-":
        if options.type == "archive":
            return _archive(None, text, options)
        return _single(text, options, options.name or DEFAULT_NAME)
    if not text:
        raise SourceError("the source is an empty text", hint="`.` is the current directory")
    if text.startswith((ARTIFACT_SCHEME, PREPARED_SCHEME)):
        is_artifact = text.startswith(ARTIFACT_SCHEME)
        return (
            _parse_artifact(text, options) if is_artifact else _parse_prepared(text, cwd, options)
        )
    scheme = _SCHEME.match(text)
    if scheme and not _exists(cwd / text):
        return _parse_url(text, scheme[1].lower(), scheme[2], cwd, options)
    before, _, fragment = text.partition("#")
    if _SCP.match(before) and not _exists(cwd / text):
        return _parse_scp(text, options)
    if "#" in text and not _exists(cwd / text):
        return _parse_path(cwd / before, before, _with_fragment(options, fragment))
    return _parse_path(cwd / text, text, options)


def _parse_artifact(text: str, options: _Options) -> ArtifactSource:
    if options.ref is not None:
        raise SourceError(
            f"ref `{shown(options.ref)}` was asked for, but the source is an artifact",
            hint="leave out the ref; `:TAG` or `@DIGEST` says which artifact",
        )
    name = text.removeprefix(ARTIFACT_SCHEME)
    try:
        location = RegistryLocation(Reference.parse(name), short=short_name(name))
    except UsageError as error:
        raise SourceError(
            f"the source `{shown(text)}` names no artifact: {error.message}",
            hint=f"write {ARTIFACT_SCHEME}REGISTRY/NAME:TAG or …@sha256:DIGEST",
        ) from error
    return ArtifactSource(location, options.context_dir, options.exclude, options.keep_symlinks)


def _parse_prepared(text: str, cwd: Path, options: _Options) -> PreparedSource:
    if options.ref is not None or options.context_dir:
        raise SourceError(
            f"a ref or a directory was asked for of `{shown(text)}`, which is fetched already",
            hint="give --ref and --context-dir to `ocis2i fetch`",
        )
    return PreparedSource((cwd / text.removeprefix(PREPARED_SCHEME)).absolute())


def _parse_url(text: str, scheme: str, rest: str, cwd: Path, options: _Options) -> Source:
    if rest.startswith(":"):
        raise _refused_transport(text, f"{scheme}::")
    if scheme not in TRANSPORTS:
        if rest.startswith("//"):
            raise _refused_transport(text, f"{scheme}://")
        # `myhost:path` reads like a scheme, but git knows no such one and uses ssh.
        return _parse_scp(text, options)
    url, _, fragment = text.partition("#")
    if scheme in ("http", "https") and _is_web_file(url, fragment, options):
        return _parse_web_file(url, fragment, text, options)
    options = _with_fragment(options, fragment)
    if scheme == "file":
        return _parse_file_url(url, cwd, options)
    try:
        parts = urllib.parse.urlsplit(url)
        host = parts.hostname if parts.port != 0 else None
    except ValueError as error:
        raise SourceError(
            f"invalid URL `{shown(redact_url(url))}`: {error}",
            hint="`host:path`, without a scheme, is the other way to write an ssh address",
        ) from error
    if not rest.startswith("//") or not host:
        raise SourceError(
            f"the URL `{shown(redact_url(url))}` names no host", hint="write https://HOST/PATH"
        )
    _refuse_option(host, url)
    _refuse_option(parts.username or "", url)
    return _git_source(url, options)


def _parse_file_url(url: str, cwd: Path, options: _Options) -> Source:
    rest = url.partition(":")[2]
    path = rest.removeprefix("//") if rest.startswith("//") else rest
    if not path.startswith("/"):
        raise SourceError(
            f"the URL `{shown(url)}` names a host", hint="write file:///absolute/path"
        )
    return _parse_path(cwd / urllib.parse.unquote(path), url, options)


def _parse_scp(text: str, options: _Options) -> GitSource:
    url, _, fragment = text.partition("#")
    user, _, host_and_path = url.rpartition("@") if "@" in url.partition(":")[0] else ("", "", url)
    host, _, path = host_and_path.partition(":")
    if not host or not path:
        raise _neither(text)
    for part in (user, host, path):
        _refuse_option(part, url)
    return _git_source(url, _with_fragment(options, fragment))


def _parse_path(path: Path, typed: str, options: _Options) -> Source:
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):
        raise _neither(typed) from None
    except OSError as error:
        raise SourceError(
            f"cannot read `{shown(typed)}`: {error.strerror}", hint="let this user read it"
        ) from error
    if not stat.S_ISDIR(mode):
        return _parse_file(path.absolute(), typed, options)
    if not options.copy and _is_repository(path):
        url = typed if typed.startswith("file://") else str(path.absolute())
        return _git_source(url, options, local=path.absolute())
    if options.ref is not None:
        # Upstream builds the directory as it is, whatever --ref says.
        raise SourceError(
            f"ref `{shown(options.ref)}` was asked for, but `{shown(typed)}` is "
            + ("copied as it is" if options.copy else "no git repository"),
            hint="leave out --copy" if options.copy else "leave out the ref",
        )
    return DirSource(
        path.absolute(), typed, options.context_dir, options.exclude, options.keep_symlinks
    )


def _parse_file(path: Path, typed: str, options: _Options) -> Source:
    check_single(path, typed)
    name = options.name or path.name
    if options.type == "archive":
        return _archive(path, typed, options)
    if options.type == "file" or is_single(path, name):
        check_name(name)
        return _single(typed, options, name, path=path)
    if not is_archive(path, typed):
        raise no_source(f"the source `{shown(typed)}` is a file, and")
    return _archive(path, typed, options)


def _is_web_file(url: str, fragment: str, options: _Options) -> bool:
    from ocis2i.web_files import is_pinned, name_in_url  # noqa: PLC0415 - few sources are one

    return options.type != "auto" or is_pinned(fragment) or has_java_name(name_in_url(url))


def _parse_web_file(url: str, fragment: str, typed: str, options: _Options) -> SingleSource:
    from ocis2i.net import is_web_url  # noqa: PLC0415 - few sources are one
    from ocis2i.web_files import is_pinned, name_in_url, parse_pin  # noqa: PLC0415

    if not is_web_url(url):
        raise SourceError(
            f"invalid URL `{shown(redact_url(url))}`",
            hint="write https://HOST/PATH, file:///PATH or a path",
        )
    if fragment and not is_pinned(fragment):
        raise SourceError(
            f"`#{shown(fragment)}` has no meaning for `{shown(redact_url(url))}`, a file",
            hint="#sha256=DIGEST says what the file must be",
        )
    digest = parse_pin(fragment) if fragment else None
    name = options.name or name_in_url(url) or DEFAULT_NAME
    check_name(name)
    return _single(typed, options, name, url=url, digest=digest)


def _single(
    typed: str,
    options: _Options,
    name: str,
    *,
    path: Path | None = None,
    url: str | None = None,
    digest: str | None = None,
) -> SingleSource:
    if options.ref is not None:
        raise SourceError(
            f"ref `{shown(options.ref)}` was asked for, but the source is an archive or a file",
            hint="leave out the ref",
        )
    if options.context_dir and (path or options.type == "file"):
        raise SourceError(
            f"the directory `{shown(options.context_dir)}` was asked for, but a file has none",
            hint="leave out --context-dir; --source-type archive unpacks a .jar, .war or .zip",
        )
    return SingleSource(
        path,
        typed,
        name,
        url,
        digest,
        options.type,
        options.context_dir,
        options.exclude,
        options.keep_symlinks,
    )


def read_source_type(text: str) -> SourceType:
    """What `--source-type` says; raises `UsageError`."""
    for known in get_args(SourceType):
        if text == known:
            return cast(SourceType, known)
    raise UsageError(
        f"--source-type is `{shown(text[:40])}`", hint="it must be auto, file or archive"
    )


def _archive(path: Path | None, typed: str, options: _Options) -> ArchiveSource:
    if options.ref is not None:
        raise SourceError(
            f"ref `{shown(options.ref)}` was asked for, but the source is an archive",
            hint="leave out the ref",
        )
    return ArchiveSource(path, typed, options.context_dir, options.exclude, options.keep_symlinks)


def _git_source(url: str, options: _Options, *, local: Path | None = None) -> GitSource:
    return GitSource(
        url,
        options.ref,
        options.context_dir,
        options.ignore_submodules,
        options.exclude,
        local,
        options.depth,
    )


def _with_fragment(options: _Options, fragment: str) -> _Options:
    if options.ref is not None or not fragment:
        return options
    check_ref(fragment)
    return replace(options, ref=fragment)


def _clean_context(text: str) -> str:
    cleaned = posixpath.normpath(text.lstrip("/") or ".")
    if cleaned == ".." or cleaned.startswith("../") or "\0" in text:
        raise SourceError(
            f"the context directory `{shown(text)}` leads out of the source",
            hint="--context-dir is relative to the root of the source",
        )
    return "" if cleaned == "." else cleaned


def _check_depth(depth: int | None) -> None:
    if depth is not None and not 1 <= depth <= _LARGEST_DEPTH:
        raise UsageError(f"--depth is `{depth}`", hint="it must be a number of commits, 1 or more")


def _exists(path: Path) -> bool:
    try:
        path.stat()
    except (OSError, ValueError):
        return False  # among them what is too long for a name, as some URLs are
    return True


def _is_repository(path: Path) -> bool:
    return _exists(path / ".git") or _is_bare(path)


def _is_bare(path: Path) -> bool:
    try:
        return (path / "HEAD").is_file() and all((path / d).is_dir() for d in ("objects", "refs"))
    except OSError:
        return False


def _refuse_option(part: str, url: str) -> None:
    # ssh would take a host, user or path with a dash for an option (CVE-2017-1000117).
    if part.startswith("-"):
        raise SourceError(
            f"invalid URL `{shown(redact_url(url))}`: `{shown(part)}` is an option",
            hint="an address cannot begin with a hyphen",
        )


def _refused_transport(text: str, name: str) -> SourceError:
    return SourceError(
        f"`{name}` in `{shown(redact_url(text))}` is no transport that ocis2i lets git use",
        hint=f"known are {', '.join(TRANSPORTS)} and user@host:path",
    )


def _neither(text: str) -> SourceError:
    return SourceError(
        f"the source `{shown(redact_url(text))}` is neither a directory nor a git URL",
        hint="a path must exist; a URL looks like https://host/project.git, git@host:project.git "
        f"or {ARTIFACT_SCHEME}registry/name",
    )
