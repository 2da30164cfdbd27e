"""Fetches a source by the `git` program: clone, check out, submodules, and what the commit says.

git's exit status decides; its words only become part of a message, or choose a hint. It runs with
a built environment in which no variable of a repository around us is left, never asks at the
terminal, and speaks only the transports listed here.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from ocis2i import proc
from ocis2i.errors import SourceError, shown
from ocis2i.events import Notice, Report
from ocis2i.lazy_dataclass import dataclass
from ocis2i.limits import counted
from ocis2i.s2i import SourceInfo, redact_url
from ocis2i.settings import Settings
from ocis2i.sources.copying import copy_file
from ocis2i.sources.ignore import DEFAULT_EXCLUDE
from ocis2i.sources.local import CopyOrder, Fetched, copy_tree
from ocis2i.sources.paths import open_directory, open_real

TRANSPORTS = ("https", "http", "ssh", "git", "file")
TIMEOUT_SECONDS = 30 * 60.0
QUESTION_SECONDS = 120.0

# What `git rev-parse --local-env-vars` lists, and what else ties git to a repository around us.
# GIT_CONFIG_COUNT stays: continuous integration hands over credentials with it.
_OF_A_REPOSITORY = frozenset(
    "GIT_ALTERNATE_OBJECT_DIRECTORIES GIT_CONFIG GIT_CONFIG_PARAMETERS GIT_OBJECT_DIRECTORY "
    "GIT_DIR GIT_WORK_TREE GIT_IMPLICIT_WORK_TREE GIT_GRAFT_FILE GIT_INDEX_FILE GIT_COMMON_DIR "
    "GIT_NO_REPLACE_OBJECTS GIT_REPLACE_REF_BASE GIT_PREFIX GIT_SHALLOW_FILE GIT_NAMESPACE "
    "GIT_INTERNAL_SUPER_PREFIX GIT_QUARANTINE_PATH GIT_TEMPLATE_DIR GIT_EXTERNAL_DIFF "
    "GIT_PAGER GIT_EDITOR".split()
)
_FULL_ID = re.compile(r"[0-9a-fA-F]{40}(?:[0-9a-fA-F]{24})?\Z")
# What no name and no revision of a commit has (git-check-ref-format(1)); `:` would be a refspec.
_FORBIDDEN_IN_REF = re.compile(r"[\x00-\x20\x7f:?*\[\\]|\.\.")
# Sections of git's configuration that decide what a checkout has (git-config(1)).
_OF_A_CHECKOUT = r"^(core|filter|lfs|submodule|init|checkout|protocol)\."
# What forges keep beside branches: GitHub, Bitbucket, GitLab, Gerrit.
_REQUEST = re.compile(r"(?:pull|pull-requests|merge-requests|changes)/[0-9]+(?:/|\Z)")


@dataclass(frozen=True, slots=True)
class GitSource:
    """A git repository; `url` carries no fragment, `local` is its path when it is on this host.

    `depth` is how many commits a clone brings, all of them when None.
    """

    url: str
    ref: str | None = None
    context_dir: str = ""
    ignore_submodules: bool = False
    exclude: str = DEFAULT_EXCLUDE
    local: Path | None = None
    depth: int | None = None


def check_ref(ref: str | None) -> None:
    """Raises `SourceError` for a ref that git would take for an option, or that cannot be one."""
    if ref is None:
        return
    if ref.startswith("-") or _FORBIDDEN_IN_REF.search(ref):
        raise SourceError(f"invalid ref `{shown(ref)}`", hint="give a branch, a tag or a commit id")


def find_git(settings: Settings) -> str | None:
    """The path of the `git` program."""
    return proc.find_program("git", settings.environment.get("PATH"))


def fetch_repository(
    source: GitSource, into: Path, *, program: str, settings: Settings, report: Report
) -> Fetched:
    """Puts the committed content of `source` into the empty directory `into`.

    The clone is made beside `into` and is gone afterwards. Raises `SourceError`.
    """
    check_ref(source.ref)
    with tempfile.TemporaryDirectory(
        dir=into.parent, prefix="clone-", ignore_cleanup_errors=True
    ) as scratch:
        environment = _environment(settings, Path(scratch), local=source.local is not None)
        git = _Git(program, environment, Path(scratch) / "source", redact_url(source.url))
        _clone(git, source)
        if source.local:
            _warn_of_uncommitted(source, source.local, git, report)
        _check_out(git, source)
        if not source.ignore_submodules:
            _fetch_submodules(git, source.depth)
        info = _describe(git, source)
        order = CopyOrder(
            source.context_dir,
            source.exclude,
            links="unfold",
            checkout=True,
            followed_limit_bytes=settings.layer_limit,
        )
        ignored = copy_tree(git.directory, into, order, report)
    return Fetched(info, ignored)


# --- running git ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Git:
    program: str
    environment: Mapping[str, str]
    directory: Path
    url: str

    def run(self, *arguments: str, timeout_seconds: float = QUESTION_SECONDS) -> proc.Finished:
        """git in the clone, or beside it before there is one."""
        return proc.run(
            [self.program, "-c", "advice.detachedHead=false", *arguments],
            environment=self.environment,
            timeout_seconds=timeout_seconds,
            cwd=self.directory if self.directory.exists() else self.directory.parent,
        )

    def do(self, doing: str, *arguments: str) -> None:
        """A step that has to succeed; raises `SourceError` saying what could not be done."""
        finished = self.run(*arguments, timeout_seconds=TIMEOUT_SECONDS)
        if finished.exit_code:
            raise _failure(f"cannot {doing}", finished)

    def ask(self, *arguments: str) -> str:
        """What git answers; empty text when it does not know."""
        finished = self.run(*arguments)
        return finished.text if finished.exit_code == 0 else ""


_TIMED_OUT = 124
_HINTS = (
    (
        r"could not read (Username|Password)|terminal prompts disabled|Authentication failed"
        r"|Permission denied \(|\b40[13]\b",
        "it needs credentials: set up a git credential helper or an ssh key that asks nothing",
    ),
    (r"Host key verification failed", "add the host's key to ~/.ssh/known_hosts"),
    (
        r"Could not resolve|unable to connect|Connection (refused|timed out)|Failed to connect"
        r"|unable to access",
        "check the name of the host, the network, and the proxy settings",
    ),
    (
        r"transport '\w+' not allowed",
        "git clones no submodules from local paths unless `git config --global "
        "protocol.file.allow always` is set; --ignore-submodules leaves them out",
    ),
    (r"not found|does not exist|does not appear", "check the URL; does the repository exist?"),
)


# What git adds to every failure of ssh, after the line that says what it was.
_BOILERPLATE = (
    "fatal: Could not read from remote repository.",
    "Please make sure you have the correct access rights",
    "and the repository exists.",
)


def _complaint(finished: proc.Finished) -> str:
    """The last lines that git, or ssh below it, printed; made safe to show."""
    lines = [line.strip() for line in finished.stderr.decode(errors="replace").splitlines()]
    telling = [line for line in lines if line and line not in _BOILERPLATE]
    return shown(redact_url("; ".join(telling[-4:] or _BOILERPLATE[:1])))


def _failure(what: str, finished: proc.Finished) -> SourceError:
    complaint = _complaint(finished)
    if finished.exit_code == _TIMED_OUT:
        return SourceError(
            f"{what}: git took longer than {TIMEOUT_SECONDS / 60:.0f} minutes",
            hint="fetch a part of its history with --depth, or clone it and build the directory",
        )
    hint = next((hint for words, hint in _HINTS if re.search(words, complaint)), None)
    return SourceError(
        f"{what}: git ended with status {finished.exit_code}: {complaint}", hint=hint
    )


def _environment(settings: Settings, scratch: Path, *, local: bool) -> dict[str, str]:
    """git's environment. For a local repository, ownership is not asked about.

    git refuses to clone a repository of another user (CVE-2022-24765), as a mounted source often
    is one. The danger is in commands that a repository's own configuration names; the program that
    serves a clone runs none of those, and no other program is ever run with that configuration.
    A `-c` option does not reach the serving program, a global configuration does; the user's own
    one is included in it.
    """
    environment = {
        name: value
        for name, value in settings.program_environment(
            GIT_TERMINAL_PROMPT="0", GIT_OPTIONAL_LOCKS="0", LC_ALL="C.UTF-8"
        ).items()
        if name not in _OF_A_REPOSITORY
    }
    environment["GIT_ALLOW_PROTOCOL"] = _allowed(settings, TRANSPORTS)
    before = _lfs_configuration(proc.find_program("git-lfs", settings.environment.get("PATH")))
    after = "[safe]\n\tdirectory = *\n" if local else ""
    if before or after:
        configuration = scratch / "config"
        usual = (
            settings.environment.get("XDG_CONFIG_HOME") or str(settings.home / ".config")
        ) + "/git/config"
        own = environment.get("GIT_CONFIG_GLOBAL")
        included = [own] if own else [usual, str(settings.home / ".gitconfig")]
        lines = [f"[include]\n\tpath = {_quoted(path)}\n" for path in included]
        text = "".join((before, *lines, after))
        configuration.write_bytes(text.encode(errors="surrogateescape"))
        environment["GIT_CONFIG_GLOBAL"] = str(configuration)
    return environment


def _lfs_configuration(program: str | None) -> str:
    """What `git lfs install` writes; it stands before the user's own words, which win."""
    if program is None:
        return ""
    command = shlex.quote(program)
    values = {
        "clean": f"{command} clean -- %f",
        "smudge": f"{command} smudge -- %f",
        "process": f"{command} filter-process",
    }
    lines = [f"\t{key} = {_quoted(value)}\n" for key, value in values.items()]
    return "".join(('[filter "lfs"]\n', *lines, "\trequired = true\n"))


def _quoted(path: str) -> str:
    escaped = path.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _allowed(settings: Settings, transports: tuple[str, ...]) -> str:
    # What the user forbids stays forbidden; helpers such as `ext::`, which run any command, are
    # never in the list.
    users = settings.environment.get("GIT_ALLOW_PROTOCOL")
    permitted = transports if users is None else users.split(":")
    return ":".join(name for name in transports if name in permitted)


# --- the steps --------------------------------------------------------------------------------


_STATUS = (
    *("-c", "core.fsmonitor=false", "status", "--porcelain", "-z", "--no-renames"),
    *("--untracked-files=all", "--ignore-submodules=all"),
)


def _warn_of_uncommitted(source: GitSource, local: Path, git: _Git, report: Report) -> None:
    """Says how many files of the working tree differ from its last commit.

    Attack: a repository whose configuration names a filter or a monitor, which `git status` runs.
    So the question is asked of our clone, whose configuration is ours; only the index, which says
    what is known to be unchanged, and the list of ignored files are taken over as files.
    """
    if not (local / ".git").exists():
        return  # a bare repository has no working tree
    index, ignored = git.directory.parent / "index", git.directory / ".git/info/exclude"
    if not _borrow(git, local, "index", index):
        return
    _borrow(git, local, "info/exclude", ignored)
    asking = replace(git, environment={**git.environment, "GIT_INDEX_FILE": str(index)})
    finished = asking.run(f"--git-dir={git.directory / '.git'}", f"--work-tree={local}", *_STATUS)
    ignored.unlink(missing_ok=True)
    count = finished.stdout.count(b"\0") if finished.exit_code == 0 else 0
    if not count:
        return
    files = f"{counted(count, 'file')} with changes"
    if len(finished.stdout) >= proc.OUTPUT_LIMIT:
        files = f"more than {files}"
    advice = "" if source.ref else "; use --copy to build the directory as it is"
    report(
        Notice(
            "warning",
            f"{files} not committed in `{shown(str(local))}` left out of the build{advice}",
        )
    )


def _borrow(git: _Git, local: Path, name: str, to: Path) -> bool:
    """Copies a file of the local repository's own directory; false when there is none."""
    answer = git.ask("-C", str(local), "rev-parse", "--git-path", name)
    if not answer:
        return False
    path = local / answer
    try:
        with open_directory(path.parent) as directory, open_directory(to.parent) as target:
            to.unlink(missing_ok=True)
            with open_real(directory, path.name, os.O_RDONLY) as file:
                copy_file(file, target, to.name, 0o600)
    except (OSError, SourceError):
        return False
    return True


def _clone(git: _Git, source: GitSource) -> None:
    doing = f"clone `{shown(git.url)}`"
    clone = ["clone", "--quiet", "--no-hardlinks", "--no-checkout", "--origin", "origin"]
    named = False
    if source.depth is not None:
        # A path is cloned as by a server: else git copies everything whatever the depth.
        clone += [f"--depth={source.depth}", "--no-local"]
        named = _is_name(source.ref)
        clone += [f"--branch={source.ref}"] if named else []
    finished = git.run(
        *clone, "--", source.url, str(git.directory), timeout_seconds=TIMEOUT_SECONDS
    )
    if not finished.exit_code:
        return
    if named and git.run("ls-remote", "--quiet", "--", source.url, "HEAD").exit_code == 0:
        raise SourceError(
            f"no branch or tag `{shown(source.ref or '')}` in `{shown(git.url)}`",
            hint="with --depth, a commit is given by its full id; `git ls-remote` with the URL "
            "lists branches and tags",
        )
    raise _failure(f"cannot {doing}", finished)


def _is_name(ref: str | None) -> bool:
    """Whether it can only be the name of a branch or a tag, by which a part can be cloned."""
    if ref is None or ref == "HEAD":
        return False
    return not (ref.startswith("refs/") or _FULL_ID.match(ref) or _REQUEST.match(ref))


def _check_out(git: _Git, source: GitSource) -> None:
    ref = source.ref
    if ref is None or ref == "HEAD":
        if not _commit(git, "HEAD"):
            raise _nothing_to_check_out(git)
        git.do("check out the default branch", "checkout", "--quiet", "HEAD")
        return
    doing = f"check out `{shown(ref)}`"
    if _exists(git, f"refs/heads/{ref}"):
        git.do(doing, "checkout", "--quiet", ref, "--")
    elif _exists(git, f"refs/remotes/origin/{ref}") and not _exists(git, f"refs/tags/{ref}"):
        git.do(doing, "checkout", "--quiet", "-B", ref, f"refs/remotes/origin/{ref}", "--")
    else:
        commit = (
            _commit(git, f"refs/tags/{ref}")
            or _commit(git, ref)
            or _fetch_explicitly(git, ref, source.depth)
        )
        git.do(doing, "checkout", "--quiet", "--detach", commit, "--")


def _exists(git: _Git, ref: str) -> bool:
    return git.run("show-ref", "--verify", "--quiet", "--", ref).exit_code == 0


def _commit(git: _Git, revision: str) -> str:
    return git.ask("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")


def _fetch_explicitly(git: _Git, ref: str, depth: int | None) -> str:
    """A commit that a plain clone does not bring: `refs/pull/1/head`, or one of no branch."""
    wanted = ref if ref.startswith("refs/") or _FULL_ID.match(ref) else f"refs/{ref}"
    if wanted == ref or "/" in ref:
        shallow = [f"--depth={depth}"] if depth is not None else []
        fetch = ("fetch", "--quiet", "--no-tags", *shallow, "origin", wanted)
        finished = git.run(*fetch, timeout_seconds=TIMEOUT_SECONDS)
        if finished.exit_code == 0 and (commit := _commit(git, "FETCH_HEAD")):
            return commit
    hint = "`git ls-remote` with the URL lists branches and tags"
    if depth is not None and _FULL_ID.match(ref):
        hint = "try without --depth: not every server hands out single commits"
    raise SourceError(f"no branch, tag or commit `{shown(ref)}` in `{shown(git.url)}`", hint=hint)


def _nothing_to_check_out(git: _Git) -> SourceError:
    if git.ask("for-each-ref", "--count=1"):
        return SourceError(
            f"the repository `{shown(git.url)}` has no default branch",
            hint="choose a branch with --ref",
        )
    return SourceError(
        f"the repository `{shown(git.url)}` is empty, it has no commit",
        hint="commit something, or use --copy for a local directory",
        reason="EmptyGitRepository",
    )


def _fetch_submodules(git: _Git, depth: int | None) -> None:
    if not (git.directory / ".gitmodules").is_file():
        return
    # A repository from afar must not fetch others from this host by a `file` URL
    # (CVE-2022-39253) unless the user's own configuration says so.
    transports: tuple[str, ...] = TRANSPORTS
    if git.ask("config", "--get", "protocol.file.allow") != "always":
        transports = tuple(name for name in TRANSPORTS if name != "file")
    allowed = [
        name for name in git.environment["GIT_ALLOW_PROTOCOL"].split(":") if name in transports
    ]
    limited = replace(git, environment={**git.environment, "GIT_ALLOW_PROTOCOL": ":".join(allowed)})
    limited.do(
        f"fetch the submodules of `{shown(git.url)}`",
        "submodule",
        "--quiet",
        "update",
        "--init",
        "--recursive",
        *([] if depth is None else [f"--depth={depth}"]),
    )


def _describe(git: _Git, source: GitSource) -> SourceInfo:
    """What the commit says of itself; a question without an answer leaves its field empty."""
    location = git.ask("config", "--get", "remote.origin.url")
    if redact_url(location) != location:
        # `--exclude ""` keeps `.git`, and no password may reach an image.
        git.do("forget the credentials", "remote", "set-url", "origin", redact_url(location))
    answer = git.ask(
        "-c",
        "log.showSignature=false",
        "show",
        "--no-patch",
        "--encoding=UTF-8",
        "--date=default",
        "--format=%an%x00%ae%x00%ad%x00%ct%x00%<(80,trunc)%s",
        "HEAD",
    )
    name, mail, date, seconds, message, *_ = [*answer.split("\0"), *[""] * 5]
    return SourceInfo(
        location=redact_url(location),
        ref=git.ask("rev-parse", "--abbrev-ref", "HEAD"),
        commit_id=git.ask("rev-parse", "--verify", "HEAD"),
        author=f"{name} <{mail}>" if name else "",
        date=date,
        message=message.strip(),
        context_dir=source.context_dir,
        commit_time=int(seconds) if re.fullmatch(r"[0-9]{1,12}", seconds) else None,
    )


# --- asking only ------------------------------------------------------------------------------


def tell_commit(
    source: GitSource, *, program: str, settings: Settings, report: Report
) -> tuple[str, str] | None:
    """The commit that `fetch_repository` would check out, and the branch (`HEAD` for none).

    Without fetching it: a server is asked for its names, a repository of this host is looked at,
    with the warning of what is not committed there. `None` where only a clone can tell.
    """
    ref = None if source.ref == "HEAD" else source.ref
    with tempfile.TemporaryDirectory(prefix="ocis2i-", ignore_cleanup_errors=True) as scratch:
        environment = _environment(settings, Path(scratch), local=source.local is not None)
        git = _Git(program, environment, Path(scratch) / "source", redact_url(source.url))
        patterns = ("HEAD",) if ref is None else (f"refs/heads/{ref}", f"refs/tags/{ref}*")
        asked = git.run("ls-remote", "--quiet", "--symref", "--", source.url, *patterns)
        if asked.exit_code or not (found := read_names(asked.text, ref)):
            return None
        if source.local and (source.local / ".git").exists():
            flags = ("--quiet", "--shared", "--no-checkout", "--origin", "origin")
            if git.run("clone", *flags, "--", source.url, str(git.directory)).exit_code:
                return None
            _warn_of_uncommitted(source, source.local, git, report)
    return found


def tell_checkout(*, program: str, settings: Settings) -> str:
    """A digest of what the user's own configuration of git says of how files are checked out.

    `core.autocrlf`, filters and the like make other files of the same commit. Of credentials, and
    of addresses that may have some, nothing is in it.
    """
    with tempfile.TemporaryDirectory(prefix="ocis2i-", ignore_cleanup_errors=True) as scratch:
        environment = _environment(settings, Path(scratch), local=False)
        git = _Git(program, environment, Path(scratch), "")
        answer = git.run("config", "--null", "--get-regexp", _OF_A_CHECKOUT)
        named = git.ask("config", "--type=path", "--get", "core.attributesFile")
    found = hashlib.sha256(answer.stdout)
    base = settings.environment.get("XDG_CONFIG_HOME") or str(settings.home / ".config")
    for path in (Path("/etc/gitattributes"), Path(named or f"{base}/git/attributes")):
        with suppress(OSError, ValueError):
            if path.is_file():
                found.update(b"\0" + path.read_bytes())
    return found.hexdigest()[:16]


def read_names(text: str, ref: str | None) -> tuple[str, str] | None:
    """Commit and branch in an answer of `git ls-remote --symref`, where it has just one for `ref`.

    `None` is the default branch, a full id names its commit.
    """
    if ref and _FULL_ID.match(ref):
        return (ref.lower(), "HEAD")
    names: dict[str, str] = {}
    for line in text.splitlines():
        value, _, name = line.partition("\t")
        names[name if not value.startswith("ref: ") else f"ref {name}"] = value
    if ref is None:
        branch = names.get("ref HEAD", "").removeprefix("ref: refs/heads/")
        return (names["HEAD"], branch) if branch and "HEAD" in names else None
    head, tag = names.get(f"refs/heads/{ref}"), names.get(f"refs/tags/{ref}")
    if bool(head) == bool(tag):
        return None  # none, or a branch and a tag of one name
    return (head, ref) if head else (names.get(f"refs/tags/{ref}^{{}}", tag or ""), "HEAD")
