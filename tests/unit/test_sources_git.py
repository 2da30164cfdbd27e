"""Fetching from real git repositories, friendly and hostile."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from ocis2i.errors import SourceError
from ocis2i.events import Event, Notice
from ocis2i.settings import Settings
from ocis2i.sources import GitSource, SourceInfo, fetch, parse_source

ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_AUTHOR_NAME": "Ann Author",
    "GIT_AUTHOR_EMAIL": "ann@example.com",
    "GIT_AUTHOR_DATE": "1763871000 +0100",
    "GIT_COMMITTER_NAME": "Carl Committer",
    "GIT_COMMITTER_EMAIL": "carl@example.com",
    "GIT_COMMITTER_DATE": "1763872000 +0000",
}


class Repository:
    """A repository below a test's directory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        self.git("init", "--quiet", "--initial-branch=main")

    def git(self, *arguments: str) -> str:
        environment = {**ENVIRONMENT, "HOME": str(self.path.parent)}
        finished = subprocess.run(
            ["git", *arguments], cwd=self.path, env=environment, check=True, stdout=subprocess.PIPE
        )
        return finished.stdout.decode().strip()

    def commit(self, message: str = "a commit", **files: str) -> str:
        for name, text in files.items():
            self.write(name.replace("__", "/"), text)
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "-m", message)
        return self.git("rev-parse", "HEAD")

    def write(self, name: str, text: str) -> None:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


class Fetched:
    """What came of a fetch."""

    def __init__(self, root: Path, info: SourceInfo, events: list[Event]) -> None:
        self.root = root
        self.info = info
        self.warnings = [event.message for event in events if isinstance(event, Notice)]

    @property
    def names(self) -> set[str]:
        return {str(path.relative_to(self.root)) for path in self.root.rglob("*")}


class Fetcher:
    """Fetches into a new directory each time."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.environment: dict[str, str] = {**ENVIRONMENT, "HOME": str(directory)}

    def __call__(self, text: str | Path | GitSource, **options: object) -> Fetched:
        into = self.directory / "work" / "src"
        shutil.rmtree(into.parent, ignore_errors=True)
        into.mkdir(parents=True)
        events: list[Event] = []
        if isinstance(text, GitSource):
            source: object = text
        else:
            source = parse_source(str(text), cwd=self.directory, **options)  # type: ignore[arg-type]
        settings = Settings(self.directory, self.directory, environment=self.environment)
        try:
            tree = fetch(source, into, settings=settings, report=events.append)  # type: ignore[arg-type]
        finally:
            assert os.listdir(into.parent) == ["src"]
        return Fetched(tree.root, tree.info, events)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    repository = Repository(tmp_path / "repository")
    repository.commit("the first line\n\nmore", a="1")
    return repository


@pytest.fixture
def fetched(tmp_path: Path) -> Fetcher:
    return Fetcher(tmp_path)


@pytest.fixture
def with_submodule(repository: Repository) -> Repository:
    library = Repository(repository.path.parent / "library")
    library.commit(lib="x")
    repository.git(
        *("-c", "protocol.file.allow=always", "submodule", "--quiet", "add", "../library", "lib")
    )
    repository.commit()
    return repository


# --- content and information --------------------------------------------------------------------


def test_clone_brings_the_commit_and_what_it_says(repository: Repository, fetched: Fetcher) -> None:
    repository.write("run.sh", "echo")
    (repository.path / "run.sh").chmod(0o755)
    (repository.path / "link").symlink_to("/outside")
    commit = repository.commit("m" * 100, d__file="x")
    result = fetched(repository.path)
    assert result.names == {"a", "d", "d/file", "run.sh", "link"}
    assert (result.root / "link").readlink() == Path("/outside")
    assert result.info == SourceInfo(
        location=str(repository.path),
        ref="main",
        commit_id=commit,
        author="Ann Author <ann@example.com>",
        date="Sun Nov 23 05:10:00 2025 +0100",
        message="m" * 78 + "..",
        commit_time=1763872000,
    )
    assert result.warnings == []


def test_modes_do_not_depend_on_the_umask(repository: Repository, fetched: Fetcher) -> None:
    repository.write("d/run.sh", "echo")
    (repository.path / "d/run.sh").chmod(0o755)
    repository.commit()
    before = os.umask(0o077)
    try:
        root = fetched(repository.path).root
    finally:
        os.umask(before)
    modes = {name: stat.S_IMODE((root / name).stat().st_mode) for name in ("a", "d", "d/run.sh")}
    assert modes == {"a": 0o644, "d": 0o755, "d/run.sh": 0o755}


def test_user_configuration_does_not_change_the_date(
    repository: Repository, fetched: Fetcher
) -> None:
    (fetched.directory / ".gitconfig").write_text("[log]\n\tdate = iso\n\tshowSignature = true\n")
    assert fetched(repository.path).info.date == "Sun Nov 23 05:10:00 2025 +0100"


def test_file_url_and_bare_repository_are_cloned(repository: Repository, fetched: Fetcher) -> None:
    repository.git("clone", "--quiet", "--bare", ".", "../bare.git")
    assert fetched(f"file://{repository.path}").names == {"a"}
    assert fetched(f"file://{repository.path}").info.location == f"file://{repository.path}"
    assert fetched(repository.path.parent / "bare.git").names == {"a"}


def test_relative_path_starts_at_the_given_directory(
    repository: Repository, fetched: Fetcher
) -> None:
    assert fetched("./repository").names == {"a"}


def test_linked_worktree_is_cloned_at_its_own_head(
    repository: Repository, fetched: Fetcher
) -> None:
    repository.git("worktree", "add", "--quiet", "-b", "side", "../worktree")
    worktree = repository.path.parent / "worktree"
    (worktree / "b").write_text("2")
    repository.git("-C", str(worktree), "add", "b")
    repository.git("-C", str(worktree), "commit", "--quiet", "-m", "two")
    result = fetched(worktree)
    assert result.names == {"a", "b"}
    assert result.info.ref == "side"


def test_checkout_of_a_submodule_is_a_source(with_submodule: Repository, fetched: Fetcher) -> None:
    checkout = with_submodule.path / "lib"
    assert (checkout / ".git").is_file()
    (checkout / "new").write_text("x")
    result = fetched(checkout)
    assert result.names == {"lib"}
    assert result.warnings[0].startswith("1 file with changes")


def test_uncommitted_files_are_left_out_with_a_warning(
    repository: Repository, fetched: Fetcher
) -> None:
    repository.write("a", "changed")
    repository.write("new/one", "untracked")
    repository.write("new/two", "untracked")
    repository.write("staged", "not committed")
    repository.git("add", "staged")
    result = fetched(repository.path)
    assert (result.root / "a").read_text() == "1"
    assert result.names == {"a"}
    (warning,) = result.warnings
    assert warning.startswith("4 files with changes not committed")
    assert "--copy" in warning
    (warning,) = fetched(repository.path, ref="main").warnings
    assert warning.startswith("4 files")
    assert "--copy" not in warning


def test_ignored_files_are_not_missed(repository: Repository, fetched: Fetcher) -> None:
    repository.commit(**{".gitignore": "*.o\n"})
    (repository.path / ".git/info/exclude").write_text("*.mine\n")
    (fetched.directory / "global-ignore").write_text("*.all\n")
    (fetched.directory / ".gitconfig").write_text(
        f"[core]\n\texcludesFile = {fetched.directory}/global-ignore\n"
    )
    for name in ("x.o", "x.mine", "x.all"):
        repository.write(name, "x")
    assert fetched(repository.path, exclude="").warnings == []
    assert not (fetched.directory / "work/src/.git/info/exclude").exists()
    repository.write("one", "x")
    (warning,) = fetched(repository.path).warnings
    assert warning.startswith("1 file with changes")


def test_commands_of_a_repository_do_not_run(
    tmp_path: Path, repository: Repository, fetched: Fetcher
) -> None:
    repository.commit(**{".gitattributes": "* filter=evil diff=evil\n"})
    mark = tmp_path / "mark"
    program = tmp_path / "evil"
    program.write_text(f"#!/bin/sh\ntouch {mark}\ncat\n")
    program.chmod(0o755)
    for name in (
        *("filter.evil.clean", "filter.evil.smudge", "filter.evil.process", "diff.evil.textconv"),
        *("core.fsmonitor", "core.pager", "core.sshCommand", "core.editor", "gpg.program"),
        *("diff.external", "uploadpack.packObjectsHook", "alias.status", "alias.rev-parse"),
    ):
        repository.git("config", name, f"!{program}" if name.startswith("alias") else str(program))
    for hook in ("post-checkout", "post-index-change", "reference-transaction"):
        shutil.copy(program, repository.path / ".git/hooks" / hook)
    repository.write("a", "2")
    result = fetched(repository.path)
    assert (result.root / "a").read_text() == "1"
    assert result.warnings[0].startswith("1 file with changes")
    assert not mark.exists()


def test_copy_takes_a_repository_as_it_is(repository: Repository, fetched: Fetcher) -> None:
    repository.write("new", "untracked")
    result = fetched(repository.path, copy=True)
    assert result.names == {"a", "new"}
    assert result.info.commit_id == ""


def test_repository_of_another_user_is_cloned(repository: Repository, fetched: Fetcher) -> None:
    (fetched.directory / ".gitconfig").write_text('[user]\n\tname = "kept"\n')
    give_away(repository.path, "1:1")
    try:
        assert repository.path.stat().st_uid != os.getuid()
        assert fetched(repository.path).names == {"a"}
    finally:
        give_away(repository.path, "0:0")


def give_away(path: Path, owner: str) -> None:
    """Changes owners as root, or as root of a user namespace, where `0:0` is us."""
    inside = [] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--map-auto"]
    subprocess.run([*inside, "chown", "-R", owner, str(path)], check=True)


def test_variables_of_a_repository_around_us_have_no_effect(
    repository: Repository, fetched: Fetcher
) -> None:
    other = Repository(fetched.directory / "other")
    other.commit(wrong="x")
    fetched.environment |= {
        "GIT_DIR": str(other.path / ".git"),
        "GIT_WORK_TREE": str(other.path),
        "GIT_INDEX_FILE": str(other.path / ".git/index"),
        "GIT_OBJECT_DIRECTORY": str(other.path / ".git/objects"),
    }
    result = fetched(repository.path)
    assert result.names == {"a"}
    assert result.warnings == []


def test_without_git_a_local_repository_is_copied_with_a_warning(
    repository: Repository, fetched: Fetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ocis2i.sources.find_git", lambda settings: None)
    repository.write("new", "untracked")
    result = fetched(repository.path)
    assert result.names == {"a", "new"}
    assert "`git` is not installed" in result.warnings[0]
    with pytest.raises(SourceError, match="not installed"):
        fetched("https://me:secret@host/x")
    with pytest.raises(SourceError, match="not installed"):
        fetched(f"{repository.path}#main")


# --- refs ---------------------------------------------------------------------------------------


@pytest.fixture
def branched(repository: Repository) -> Repository:
    repository.git("tag", "v1")
    repository.git("checkout", "--quiet", "-b", "feature/x")
    repository.commit(b="2")
    repository.git("tag", "-a", "v2", "-m", "annotated")
    repository.git("checkout", "--quiet", "main")
    repository.commit(c="3")
    return repository


@pytest.mark.parametrize(
    ("ref", "names", "label"),
    [
        ("main", {"a", "c"}, "main"),
        ("HEAD", {"a", "c"}, "main"),
        ("feature/x", {"a", "b"}, "feature/x"),
        ("v1", {"a"}, "HEAD"),
        ("v2", {"a", "b"}, "HEAD"),
        ("HEAD~1", {"a"}, "HEAD"),
        ("refs/tags/v2", {"a", "b"}, "HEAD"),
        ("refs/heads/feature/x", {"a", "b"}, "HEAD"),
    ],
)
def test_branches_tags_and_revisions_are_checked_out(
    branched: Repository, fetched: Fetcher, ref: str, names: set[str], label: str
) -> None:
    result = fetched(f"{branched.path}#{ref}")
    assert result.names == names
    assert result.info.ref == label


def test_commit_ids_are_checked_out_long_or_short(branched: Repository, fetched: Fetcher) -> None:
    commit = branched.git("rev-parse", "feature/x")
    for ref in (commit, commit[:8]):
        result = fetched(branched.path, ref=ref)
        assert result.names == {"a", "b"}
        assert result.info.commit_id == commit


def test_pull_request_that_no_branch_reaches_is_fetched(
    branched: Repository, fetched: Fetcher
) -> None:
    branched.git("checkout", "--quiet", "--detach")
    commit = branched.commit(p="4")
    branched.git("update-ref", "refs/pull/7/head", commit)
    branched.git("checkout", "--quiet", "main")
    assert fetched(f"file://{branched.path}", ref="refs/pull/7/head").names == {"a", "c", "p"}
    assert fetched(f"file://{branched.path}", ref=commit).names == {"a", "c", "p"}


@pytest.mark.parametrize(
    "name", ["pull/7/head", "merge-requests/7/head", "changes/34/1234/5", "pull-requests/7/from"]
)
@pytest.mark.parametrize("depth", [None, 1])
def test_pull_requests_are_known_by_their_short_names(
    branched: Repository, fetched: Fetcher, name: str, depth: int | None
) -> None:
    branched.git("checkout", "--quiet", "--detach")
    commit = branched.commit(p="4")
    branched.git("update-ref", f"refs/{name}", commit)
    branched.git("checkout", "--quiet", "main")
    for ref in (name, f"refs/{name}"):
        result = fetched(f"file://{branched.path}", ref=ref, depth=depth)
        assert result.names == {"a", "c", "p"}
        assert result.info.commit_id == commit


def test_branch_named_like_a_pull_request_comes_first(
    branched: Repository, fetched: Fetcher
) -> None:
    branched.git("branch", "pull/7/head", "v1")
    branched.git("update-ref", "refs/pull/7/head", "v2")
    assert fetched(branched.path, ref="pull/7/head").names == {"a"}


@pytest.mark.parametrize("ref", ["missing", "refs/pull/1/head", "f" * 40, "a"])
def test_unknown_ref_is_named(branched: Repository, fetched: Fetcher, ref: str) -> None:
    with pytest.raises(SourceError, match=f"no branch, tag or commit `{ref}` in") as caught:
        fetched(branched.path, ref=ref)
    assert caught.value.hint


def test_ref_that_is_an_option_never_reaches_git(tmp_path: Path, fetched: Fetcher) -> None:
    mark = tmp_path / "mark"
    with pytest.raises(SourceError, match="invalid ref"):
        fetched(GitSource("https://host/x", f"--output={mark}"))
    assert not mark.exists()


# --- a part of the history ----------------------------------------------------------------------


def commits(result: Fetched) -> int:
    """How many commits a clone brought; needs `exclude=""`."""
    command = ["git", "rev-list", "--count", "--all", "HEAD"]
    output = subprocess.check_output(command, cwd=result.root, env=ENVIRONMENT)
    return int(output)


@pytest.mark.parametrize("prefix", ["", "file://"], ids=["path", "url"])
@pytest.mark.parametrize(
    ("ref", "names", "label"),
    [
        (None, {"a", "c"}, "main"),
        ("HEAD", {"a", "c"}, "main"),
        ("main", {"a", "c"}, "main"),
        ("feature/x", {"a", "b"}, "feature/x"),
        ("v1", {"a"}, "HEAD"),
        ("v2", {"a", "b"}, "HEAD"),
        ("refs/tags/v2", {"a", "b"}, "HEAD"),
        ("refs/heads/feature/x", {"a", "b"}, "HEAD"),
    ],
)
def test_depth_brings_the_last_commits_only(
    branched: Repository,
    fetched: Fetcher,
    prefix: str,
    ref: str | None,
    names: set[str],
    label: str,
) -> None:
    url = f"{prefix}{branched.path}"
    result = fetched(url, ref=ref, depth=1)
    assert result.names == names
    assert (result.info.ref, result.info.location) == (label, url)
    assert result.info == fetched(url, ref=ref).info
    kept = fetched(url, ref=ref, depth=1, exclude="")
    assert commits(kept) <= 2  # the wished one, and where that has no name, the default's
    assert (kept.root / ".git/shallow").exists() or ref == "v1"


def test_depth_counts_commits(branched: Repository, fetched: Fetcher) -> None:
    for number in range(5):
        branched.commit(f"{number}")
    assert commits(fetched(branched.path, depth=3, exclude="")) == 3
    assert commits(fetched(branched.path, depth=100, exclude="")) == 7


def test_commit_of_a_shallow_clone_is_given_in_full(branched: Repository, fetched: Fetcher) -> None:
    commit = branched.git("rev-parse", "feature/x")
    url = f"file://{branched.path}"
    assert fetched(url, ref=commit, depth=1).names == {"a", "b"}
    for ref in (commit[:8], "HEAD~1", "missing"):
        with pytest.raises(SourceError, match=f"no branch or tag `{ref}` in") as caught:
            fetched(url, ref=ref, depth=1)
        assert "full id" in (caught.value.hint or "")


@pytest.mark.parametrize("ref", ["f" * 40, "refs/pull/1/head", "pull/1/head"])
def test_unknown_commit_is_named_with_depth_too(
    branched: Repository, fetched: Fetcher, ref: str
) -> None:
    with pytest.raises(SourceError, match=f"no branch, tag or commit `{ref}` in") as caught:
        fetched(branched.path, ref=ref, depth=1)
    assert ("--depth" in (caught.value.hint or "")) is (ref == "f" * 40)


def test_missing_repository_is_one_with_depth_too(tmp_path: Path, fetched: Fetcher) -> None:
    with pytest.raises(SourceError, match="cannot clone"):
        fetched(f"git://127.0.0.1:9{tmp_path}", ref="main", depth=1)


# --- empty, missing, forbidden ------------------------------------------------------------------


def test_empty_repository_is_refused(tmp_path: Path, fetched: Fetcher) -> None:
    Repository(tmp_path / "empty")
    for depth in (None, 1):
        with pytest.raises(SourceError, match="is empty") as caught:
            fetched(tmp_path / "empty", depth=depth)
        assert "--copy" in (caught.value.hint or "")
        assert (caught.value.reason, caught.value.exit_code) == ("EmptyGitRepository", 3)


def test_repository_without_default_branch_asks_for_a_ref(
    repository: Repository, fetched: Fetcher
) -> None:
    repository.git("symbolic-ref", "HEAD", "refs/heads/gone")
    with pytest.raises(SourceError, match="no default branch"):
        fetched(repository.path)
    assert fetched(repository.path, ref="main").names == {"a"}


def test_git_directory_that_is_none_is_refused(tmp_path: Path, fetched: Fetcher) -> None:
    (tmp_path / "odd/.git").mkdir(parents=True)
    with pytest.raises(SourceError, match="cannot clone"):
        fetched(tmp_path / "odd")


def test_missing_repository_is_one_clear_line(tmp_path: Path, fetched: Fetcher) -> None:
    with pytest.raises(SourceError, match=r"cannot clone `https://127\.0\.0\.1:9/x`") as caught:
        fetched("https://me:secret@127.0.0.1:9/x")
    assert "secret" not in caught.value.message
    assert "\n" not in caught.value.message
    assert "network" in (caught.value.hint or "")


class _Locked(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(401)
        self.send_header("WWW-Authenticate", 'Basic realm="x"')
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        return


@pytest.fixture
def locked_host() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Locked) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("user", ["", "me:secret-word@"])
def test_missing_credentials_are_named_and_not_asked_for(
    locked_host: str, fetched: Fetcher, user: str
) -> None:
    with pytest.raises(SourceError, match=f"cannot clone `http://{locked_host}/x`") as caught:
        fetched(f"http://{user}{locked_host}/x")
    assert "credentials" in (caught.value.hint or "")
    assert "secret-word" not in caught.value.message


@pytest.mark.parametrize(
    ("complaint", "hint"),
    [
        ("git@host: Permission denied (publickey).", "credentials"),
        ("Host key verification failed.", "known_hosts"),
        ("ssh: Could not resolve hostname host", "name of the host"),
        ("\x1b[31mred", None),
    ],
)
def test_what_ssh_says_reaches_the_user(
    tmp_path: Path, fetched: Fetcher, complaint: str, hint: str | None
) -> None:
    (tmp_path / "ssh").write_text(f"#!/bin/sh\necho '{complaint}' >&2\nexit 255\n")
    (tmp_path / "ssh").chmod(0o755)
    fetched.environment["GIT_SSH"] = str(tmp_path / "ssh")
    with pytest.raises(SourceError, match="cannot clone `git@host:x`") as caught:
        fetched("git@host:x")
    assert complaint.replace("\x1b", "\\x1b") in caught.value.message
    assert (caught.value.hint is None) if hint is None else (hint in (caught.value.hint or ""))


def test_helper_transports_do_not_run(tmp_path: Path, fetched: Fetcher) -> None:
    mark = tmp_path / "mark"
    (fetched.directory / ".gitconfig").write_text('[protocol "ext"]\n\tallow = always\n')
    with pytest.raises(SourceError, match="not allowed"):
        fetched(GitSource(f"ext::touch {mark}"))
    assert not mark.exists()


# --- filters, context, submodules ---------------------------------------------------------------


def test_ignore_file_and_exclude_apply_to_a_clone(repository: Repository, fetched: Fetcher) -> None:
    repository.commit(**{".s2iignore": "*.log\n.s2i\n", "x.log": "", "sub__y.log": "", "e__f": ""})
    repository.commit(**{".s2i__bin__run": "", ".s2i__environment": "A=1", ".gitignore": ""})
    result = fetched(repository.path, exclude=r"(^|/)\.git(/|$)|^e$")
    assert result.names == {
        *("a", ".s2iignore", ".gitignore", "sub", "sub/y.log"),
        *(".s2i", ".s2i/bin", ".s2i/bin/run"),
    }


def test_git_directory_stays_on_request_and_holds_no_password(
    repository: Repository, fetched: Fetcher
) -> None:
    (fetched.directory / ".gitconfig").write_text(
        f'[url "{repository.path}"]\n\tinsteadOf = https://me:secret@host/x\n'
    )
    result = fetched("https://me:secret@host/x", exclude="")
    assert (result.root / ".git/HEAD").is_file()
    assert result.info.location == "https://host/x"
    files = [path for path in (result.root / ".git").rglob("*") if path.is_file()]
    assert not [path for path in files if b"secret" in path.read_bytes()]


def test_context_directory_is_the_source(repository: Repository, fetched: Fetcher) -> None:
    (repository.path / "app").mkdir()
    for name, target in {"in": "own", "beside": "../a", "out": "/etc/hostname"}.items():
        (repository.path / "app" / name).symlink_to(target)
    repository.commit(app__own="x")
    result = fetched(repository.path, context_dir="app")
    assert result.names == {"own", "in", "beside", "out"}
    assert (result.root / "in").readlink() == Path("own")
    assert (result.root / "out").readlink() == Path("/etc/hostname")
    assert not (result.root / "beside").is_symlink()
    assert (result.root / "beside").read_text() == "1"
    assert result.info.context_dir == "app"


def test_context_directory_that_is_a_link_out_is_refused(
    repository: Repository, fetched: Fetcher
) -> None:
    (repository.path / "out").symlink_to("/etc")
    repository.commit()
    with pytest.raises(SourceError, match="leads out of the source"):
        fetched(repository.path, context_dir="out")


def test_submodules_come_where_the_user_allows_it(
    with_submodule: Repository, fetched: Fetcher
) -> None:
    (fetched.directory / ".gitconfig").write_text('[protocol "file"]\n\tallow = always\n')
    assert fetched(with_submodule.path).names == {"a", ".gitmodules", "lib", "lib/lib"}


def test_submodules_come_shallow_too(with_submodule: Repository, fetched: Fetcher) -> None:
    (fetched.directory / ".gitconfig").write_text('[protocol "file"]\n\tallow = always\n')
    url = f"file://{with_submodule.path}"
    result = fetched(url, depth=1)
    assert result.names == {"a", ".gitmodules", "lib", "lib/lib"}


@pytest.mark.parametrize("url", ["../library", "{here}/library", "file://{here}/library"])
def test_submodule_urls_may_be_relative_or_local(
    with_submodule: Repository, fetched: Fetcher, url: str
) -> None:
    url = url.format(here=with_submodule.path.parent)
    with_submodule.git("config", "--file", ".gitmodules", "submodule.lib.url", url)
    with_submodule.commit()
    with pytest.raises(SourceError, match="fetch the submodules"):
        fetched(with_submodule.path)
    (fetched.directory / ".gitconfig").write_text('[protocol "file"]\n\tallow = always\n')
    assert (fetched(with_submodule.path).root / "lib/lib").read_text() == "x"


def test_submodule_by_a_helper_is_never_fetched(
    tmp_path: Path, with_submodule: Repository, fetched: Fetcher
) -> None:
    mark = tmp_path / "mark"
    with_submodule.git("config", "--file", ".gitmodules", "submodule.lib.url", f"ext::touch {mark}")
    with_submodule.commit()
    (fetched.directory / ".gitconfig").write_text('[protocol "ext"]\n\tallow = always\n')
    with pytest.raises(SourceError, match="fetch the submodules"):
        fetched(with_submodule.path)
    assert not mark.exists()


def test_submodule_from_this_host_is_refused_with_the_way_out(
    with_submodule: Repository, fetched: Fetcher
) -> None:
    with pytest.raises(SourceError, match="fetch the submodules") as caught:
        fetched(with_submodule.path)
    assert "--ignore-submodules" in (caught.value.hint or "")


def test_submodules_are_left_out_on_request(with_submodule: Repository, fetched: Fetcher) -> None:
    result = fetched(with_submodule.path, ignore_submodules=True)
    assert result.names == {"a", ".gitmodules", "lib"}


# --- Git LFS ------------------------------------------------------------------------------------

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"

# Speaks the protocol of long-running filters (gitattributes(5)): every content is in capitals.
FILTER = """
import sys

def receive():
    lines = []
    while (size := int(sys.stdin.buffer.read(4) or b"0", 16)):
        lines.append(sys.stdin.buffer.read(size - 4))
    return lines

def send(*lines):
    for line in lines:
        sys.stdout.buffer.write(b"%04x" % (len(line) + 4) + line)
    sys.stdout.buffer.write(b"0000")
    sys.stdout.buffer.flush()

receive()
send(b"git-filter-server\\n", b"version=2\\n")
receive()
send(b"capability=smudge\\n")
while receive():
    content = b"".join(receive())
    send(b"status=success\\n")
    send(content.upper())
    send()
"""


@pytest.fixture
def with_pointers(repository: Repository) -> Repository:
    repository.commit(**{".gitattributes": "*.bin filter=lfs\n", "b.bin": POINTER, "c": "c"})
    return repository


def make_filter(path: Path, change: str = "upper") -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!{sys.executable} -IS\n{FILTER.replace('upper', change)}")
    path.chmod(0o755)
    return path


def install_lfs(fetched: Fetcher) -> None:
    directory = make_filter(fetched.directory / "my bin/git-lfs").parent
    fetched.environment["PATH"] = f"{directory}:{fetched.environment['PATH']}"


def skip_lfs(fetched: Fetcher) -> None:
    """As `git lfs install --skip-smudge` does."""
    program = make_filter(fetched.directory / "own", "strip() + bytes")
    (fetched.directory / ".gitconfig").write_text(f'[filter "lfs"]\n\tprocess = {program}\n')


@pytest.mark.parametrize("prefix", ["", "file://"], ids=["path", "url"])
def test_git_lfs_brings_contents_where_it_is_installed(
    with_pointers: Repository, fetched: Fetcher, prefix: str
) -> None:
    install_lfs(fetched)
    result = fetched(f"{prefix}{with_pointers.path}")
    assert (result.root / "b.bin").read_text() == POINTER.upper()
    assert (result.root / "c").read_text() == "c"
    assert result.warnings == []


def test_users_own_settings_of_git_lfs_win(with_pointers: Repository, fetched: Fetcher) -> None:
    install_lfs(fetched)
    skip_lfs(fetched)
    result = fetched(with_pointers.path)
    assert (result.root / "b.bin").read_text() == POINTER.strip()


def test_pointers_without_content_are_counted(with_pointers: Repository, fetched: Fetcher) -> None:
    skip_lfs(fetched)
    (warning,) = fetched(with_pointers.path).warnings
    assert warning.startswith("1 file is a Git LFS pointer without the content: `b.bin`")
    assert "git-lfs is installed" in warning


def test_git_lfs_that_fails_fails_the_build(with_pointers: Repository, fetched: Fetcher) -> None:
    install_lfs(fetched)
    (fetched.directory / "my bin/git-lfs").write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(SourceError, match="cannot check out"):
        fetched(with_pointers.path)
