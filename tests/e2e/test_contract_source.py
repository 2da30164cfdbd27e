"""Section 2 of the S2I contract: which source is meant, and what of it a build gets to see."""

from __future__ import annotations

import base64
import os
import shutil
import socket
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.conftest import needs
from tests.contract import better, refused, same
from tests.fakes.bench import Bench, content, warnings
from tests.fakes.canary import files_with
from tests.fakes.images import BUSYBOX, LayoutImage, busybox_builder
from tests.fakes.program import Done, Program
from tests.fakes.repositories import Repository
from tests.fakes.web import Answer, FakeWeb

pytestmark = [
    pytest.mark.sandbox,
    pytest.mark.skipif(not BUSYBOX.exists(), reason="busybox-static is not installed"),
]

SRC = "tmp/src"
LABEL = "io.openshift.s2i.build."
SOURCE_LABELS = ("source-location", "source-context-dir", "commit.id", "commit.ref")
ASSEMBLE = '#!/bin/sh\necho "assembled by the builder"\n'
MTIME = 1_577_836_800


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A builder that leaves the source where it is."""
    path = tmp_path_factory.mktemp("plain") / "layout"
    busybox_builder(path, "plain:1", scripts={"assemble": ASSEMBLE, "usage": ASSEMBLE})
    return f"oci:{path}:plain:1"


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """On `main` and, with another text, on `stable`, which has the tag v1."""
    made = Repository(tmp_path / "repository", {"index.html": "of main\n"})
    made.git("checkout", "--quiet", "-b", "stable")
    made.commit("second", {"index.html": "of stable\n"})
    made.git("tag", "v1")
    made.git("checkout", "--quiet", "main")
    return made


def write(directory: Path, *names: str) -> Path:
    """Files with their own names as content."""
    for name in names:
        file = directory / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{name}\n")
    return directory


def uploaded(image: LayoutImage) -> dict[str, tarfile.TarInfo]:
    """What the build got as source, by names relative to its root."""
    below = f"{SRC}/"
    members = image.members().items()
    return {name.removeprefix(below): one for name, one in members if name.startswith(below)}


def names(image: LayoutImage) -> set[str]:
    return set(uploaded(image))


def text(image: LayoutImage, name: str) -> str:
    return content(image, f"{SRC}/{name}")


def labels(image: LayoutImage) -> dict[str, str]:
    """Those that tell of the source."""
    found = {name: image.labels.get(f"{LABEL}{name}") for name in SOURCE_LABELS}
    return {name: value for name, value in found.items() if value is not None}


def check_refused(done: Done, *said: str, code: int = 3) -> None:
    """One clear error with these words in it, and nothing built."""
    assert done.code == code, done.err
    lines = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.err
    for words in said:
        assert words in done.err
    assert "Traceback" not in done.err
    assert done.out == ""


# --- 2.1: the grammar -------------------------------------------------------------------------


@same("source.url")
@same("source.git-needs-no-copy-flag")
@needs("git")
@pytest.mark.parametrize("flags", [(), ("--copy",)])
def test_url_is_cloned_with_its_query_and_whatever_copy_says(
    bench: Bench, plain: str, web: FakeWeb, repository: Repository, flags: tuple[str, ...]
) -> None:
    url = repository.serve(web, "/project.git?version=2")
    bench.ocis2i.ok("build", url, plain, bench.tag, *flags)
    assert text(bench.result(), "index.html") == "of main\n"
    assert web.asked[0] == "/project.git?version=2/info/refs&service=git-upload-pack"
    assert labels(bench.result()) == {
        "source-location": url,
        "commit.id": repository.git("rev-parse", "main"),
        "commit.ref": "main",
    }


@same("source.file-url")
@needs("git")
@pytest.mark.parametrize("slashes", ["file:", "file://", "FILE://", "file:///"])
def test_file_url_is_a_local_path(
    bench: Bench, plain: str, repository: Repository, slashes: str
) -> None:
    bench.ocis2i.ok("build", f"{slashes}{repository.path}", plain, bench.tag)
    assert text(bench.result(), "index.html") == "of main\n"


@same("source.file-url")
def test_file_url_with_a_host_is_refused(bench: Bench, plain: str) -> None:
    done = bench.ocis2i("build", "file://relative/path", plain, bench.tag)
    check_refused(done, "`file://relative/path` names a host", "file:///absolute/path")


def test_scp_form_inside_of_a_url_is_refused(bench: Bench, plain: str) -> None:
    done = bench.ocis2i("build", "ssh://git@host:org/repo", plain, bench.tag)
    check_refused(done, "invalid URL `ssh://git@host:org/repo`", "host:path")


@same("source.scp")
@needs("git")
@pytest.mark.parametrize(
    ("typed", "host"),
    [
        ("git@forge:org/project.git", "git@forge"),
        ("forge:org/project.git", "forge"),
        ("ssh://git@forge/org/project.git#stable", "git@forge"),
    ],
)
def test_scp_form_is_git_over_ssh(
    bench: Bench, plain: str, repository: Repository, typed: str, host: str
) -> None:
    (bench.directory / "org").mkdir()
    (bench.directory / "org/project.git").symlink_to(repository.path)
    ssh = bench.directory / "bin" / "ssh"
    ssh.parent.mkdir()
    asked = bench.directory / "asked"
    ssh.write_text(
        "#!/bin/sh\n"
        f'printf "%s\\n" "$@" > "{asked}"\n'
        "for command; do :; done\n"
        f'cd "{bench.directory}" && exec sh -c "$(echo "$command" | sed "s,\'/,\',")"\n'
    )
    ssh.chmod(0o755)
    path = f"{ssh.parent}:{bench.ocis2i.environment['PATH']}"
    bench.ocis2i.ok("build", typed, plain, bench.tag, PATH=path)
    wanted = "stable" if "#" in typed else "main"
    assert text(bench.result(), "index.html") == f"of {wanted}\n"
    assert labels(bench.result())["source-location"] == typed.partition("#")[0]
    words = asked.read_text().splitlines()
    assert words[-2] == host
    assert "org/project.git" in words[-1]


@same("source.path")
@same("source.copy-labels")
@same("source.directory-without-git")
@pytest.mark.parametrize("typed", [".", "../app", "./", "absolute", "app#part"])
def test_all_else_is_a_local_path_and_its_label_as_typed(
    bench: Bench, plain: str, typed: str
) -> None:
    source = write(bench.directory / "app", "index.html", "sub/page.html", "#part")
    if typed == "app#part":
        source = source.rename(bench.directory / typed)
    word = str(source) if typed == "absolute" else typed
    cwd = bench.directory if typed == "app#part" else source
    bench.ocis2i.ok("build", word, plain, bench.tag, cwd=cwd)
    assert names(bench.result()) == {"index.html", "sub", "sub/page.html", "#part"}
    assert labels(bench.result()) == {"source-location": word}


@needs("git")
def test_repository_above_a_directory_is_not_looked_for(
    bench: Bench, plain: str, repository: Repository
) -> None:
    source = write(repository.path / "part", "not-committed")
    bench.ocis2i.ok("build", source, plain, bench.tag)
    assert names(bench.result()) == {"not-committed"}
    assert labels(bench.result()) == {"source-location": str(source)}


# --- 2.2: which way ---------------------------------------------------------------------------


@same("source.empty-repository")
@needs("git")
def test_repository_without_a_commit_is_refused(bench: Bench, plain: str) -> None:
    empty = Repository(bench.directory / "empty")
    write(empty.path, "not-committed")
    done = bench.ocis2i("build", empty.path, plain, bench.tag)
    check_refused(done, "is empty, it has no commit", "--copy")
    bench.ocis2i.ok("build", empty.path, plain, bench.tag, "--copy")
    assert names(bench.result()) == {"not-committed"}


@better("source.no-git-program", "with a warning")
@needs("git")
def test_without_a_git_program_a_repository_is_copied(
    bench: Bench, plain: str, repository: Repository
) -> None:
    write(repository.path, "not-committed")
    # The program looks into /usr/bin too, whatever PATH says: so Python has to hide git there.
    (bench.directory / "sitecustomize.py").write_text(
        "import shutil\n"
        "which = shutil.which\n"
        "shutil.which = lambda name, *more, **named: (\n"
        "    None if name == 'git' else which(name, *more, **named)\n"
        ")\n"
    )
    python = f"{bench.directory}:{bench.ocis2i.environment['PYTHONPATH']}"
    done = bench.ocis2i.ok("build", repository.path, plain, bench.tag, PYTHONPATH=python)
    assert names(bench.result()) == {"index.html", "not-committed"}
    assert labels(bench.result()) == {"source-location": str(repository.path)}
    assert warnings(done)[0].startswith("`git` is not installed")
    url = "https://host.invalid/x"
    done = bench.ocis2i("build", url, plain, bench.tag, PYTHONPATH=python)
    check_refused(done, f"`{url}` needs the program `git`")


@better("source.committed-only", "a warning counts what is left out")
@needs("git")
def test_only_what_is_committed_is_built_and_the_rest_is_counted(
    bench: Bench, plain: str, repository: Repository
) -> None:
    repository.commit("ignore", {".gitignore": "*.log\n", "deleted": "x\n"})
    (repository.path / "deleted").unlink()
    write(repository.path, "new", "seen.log")
    (repository.path / "index.html").write_text("changed\n")
    done = bench.ocis2i.ok("build", repository.path, plain, bench.tag)
    assert names(bench.result()) == {".gitignore", "deleted", "index.html"}
    assert text(bench.result(), "index.html") == "of main\n"
    assert warnings(done) == [
        f"3 files with changes not committed in `{repository.path}` left out of the build; "
        "use --copy to build the directory as it is"
    ]


@better("source.worktree", "it is cloned at its own commit")
@needs("git")
def test_linked_worktree_is_a_repository(bench: Bench, plain: str, repository: Repository) -> None:
    worktree = bench.directory / "worktree"
    repository.git("worktree", "add", "--quiet", worktree, "stable")
    bench.ocis2i.ok("build", worktree, plain, bench.tag)
    assert names(bench.result()) == {"index.html"}
    assert text(bench.result(), "index.html") == "of stable\n"
    assert labels(bench.result())["commit.ref"] == "stable"


# --- 2.3: a clone -----------------------------------------------------------------------------


@same("source.remote-branch")
@same("--ref")
@better("source.fragment", "it counts, and `--ref` beats it")
@needs("git")
@pytest.mark.parametrize(
    ("fragment", "flags"), [("", ("--ref", "stable")), ("#stable", ()), ("#main", ("-r", "stable"))]
)
def test_branch_that_only_the_remote_has(
    bench: Bench,
    plain: str,
    web: FakeWeb,
    repository: Repository,
    fragment: str,
    flags: tuple[str, ...],
) -> None:
    url = repository.serve(web, "/project.git")
    bench.ocis2i.ok("build", f"{url}{fragment}", plain, bench.tag, *flags)
    assert text(bench.result(), "index.html") == "of stable\n"
    assert labels(bench.result()) == {
        "source-location": url,
        "commit.id": repository.git("rev-parse", "stable"),
        "commit.ref": "stable",
    }


@better("source.pull-request-ref", "it is fetched and checked out")
@needs("git")
@pytest.mark.parametrize("ref", ["refs/pull/7/head", "pull/7/head"])
def test_pull_request_is_checked_out(
    bench: Bench, plain: str, web: FakeWeb, repository: Repository, ref: str
) -> None:
    repository.git("checkout", "--quiet", "--detach")
    wanted = repository.commit("a request", {"index.html": "of the request\n"})
    repository.git("update-ref", "refs/pull/7/head", wanted)
    repository.git("checkout", "--quiet", "main")
    url = repository.serve(web, "/project.git")
    bench.ocis2i.ok("build", url, plain, bench.tag, "--ref", ref)
    assert text(bench.result(), "index.html") == "of the request\n"
    assert labels(bench.result())["commit.id"] == wanted


@same("source.unknown-ref")
@needs("git")
def test_unknown_ref_fails_the_build(bench: Bench, plain: str, repository: Repository) -> None:
    done = bench.ocis2i("build", repository.path, plain, bench.tag, "--ref", "absent")
    check_refused(done, "no branch, tag or commit `absent`", "git ls-remote")


@pytest.fixture
def nested(web: FakeWeb, tmp_path: Path) -> str:
    """The URL of a repository with a submodule that has one itself."""
    inner = Repository(tmp_path / "inner", {"inner.txt": "inner\n"})
    inner.serve(web, "/group/inner.git")
    middle = Repository(tmp_path / "middle", {"middle.txt": "middle\n"})
    middle.commit_submodule("below", "../inner.git", inner.git("rev-parse", "HEAD"))
    middle.serve(web, "/group/middle.git")
    outer = Repository(tmp_path / "outer", {"outer.txt": "outer\n"})
    outer.commit_submodule("sub", "../middle.git", middle.git("rev-parse", "HEAD"))
    return outer.serve(web, "/group/outer.git")


@same("source.submodules")
@same("exclude.default")
@needs("git")
def test_submodules_of_submodules_are_fetched(bench: Bench, plain: str, nested: str) -> None:
    bench.ocis2i.ok("build", nested, plain, bench.tag)
    assert names(bench.result()) == {
        *(".gitmodules", "outer.txt", "sub"),
        *("sub/.gitmodules", "sub/middle.txt", "sub/below", "sub/below/inner.txt"),
    }


@same("--ignore-submodules")
@needs("git")
def test_submodules_are_left_out_on_request(bench: Bench, plain: str, nested: str) -> None:
    bench.ocis2i.ok("build", nested, plain, bench.tag, "--ignore-submodules")
    assert names(bench.result()) == {".gitmodules", "outer.txt", "sub"}


@same("source.submodule-failure")
@needs("git")
def test_missing_submodule_fails_the_build(
    bench: Bench, plain: str, web: FakeWeb, repository: Repository
) -> None:
    repository.commit_submodule("sub", "../absent.git", repository.git("rev-parse", "HEAD"))
    url = repository.serve(web, "/project.git")
    done = bench.ocis2i("build", url, plain, bench.tag)
    check_refused(done, f"cannot fetch the submodules of `{url}`")


@same("source.git-context-dir")
@same("--context-dir")
@better("source.git-context-links", "links that leave it, and no others")
@needs("git")
def test_context_directory_of_a_clone(bench: Bench, plain: str) -> None:
    repository = Repository(bench.directory / "linked")
    write(repository.path, "shared/style.css", "web/index.html", "web/deep/page", "other")
    for name, target in {
        "style.css": "../shared/style.css",
        "shared": "../shared",
        "start": "index.html",
        "nowhere": "../absent",
        "host": "/etc/passwd",
    }.items():
        (repository.path / "web" / name).symlink_to(target)
    repository.commit("links")
    bench.ocis2i.ok("build", repository.path, plain, bench.tag, "--context-dir", "/web//deep/..")
    found = uploaded(bench.result())
    assert {name for name, one in found.items() if one.isreg()} == {
        *("index.html", "deep/page", "style.css", "shared/style.css")
    }
    assert text(bench.result(), "style.css") == "shared/style.css\n"
    links = {name: one.linkname for name, one in found.items() if one.issym()}
    assert links == {"start": "index.html", "nowhere": "../absent", "host": "/etc/passwd"}
    assert labels(bench.result())["source-context-dir"] == "web"


@same("source.git-credentials")
@needs("git")
def test_credentials_come_from_the_helper_that_git_has(
    bench: Bench, plain: str, web: FakeWeb, repository: Repository
) -> None:
    url = repository.serve(web, "/project.git")
    refs = repository.path / ".git/info/refs"
    locked = Answer(b"", 401, {"WWW-Authenticate": 'Basic realm="git"'})
    web.put("/project.git/info/refs?service=git-upload-pack", locked, refs.read_bytes())
    home = bench.directory / "home"
    home.mkdir()
    helper = "!f() { echo username=ann; echo password=s3cret; }; f"
    (home / ".gitconfig").write_text(f'[credential]\n\thelper = "{helper}"\n')
    done = bench.ocis2i.ok("build", url, plain, bench.tag, "--loglevel=5", HOME=str(home))
    assert text(bench.result(), "index.html") == "of main\n"
    expected = "Basic " + base64.b64encode(b"ann:s3cret").decode()
    assert [one.headers.get("authorization") for one in web.log[:2]] == [None, expected]
    assert "s3cret" not in done.err


@same("source.git-modes")
@needs("git")
def test_files_of_a_clone_have_two_modes(bench: Bench, plain: str) -> None:
    repository = Repository(bench.directory / "modes")
    write(repository.path, "plain", "program", "sub/plain")
    (repository.path / "program").chmod(0o700)
    (repository.path / "plain").chmod(0o600)
    repository.commit("modes")
    bench.ocis2i.ok("build", repository.path, plain, bench.tag)
    modes = {name: one.mode for name, one in uploaded(bench.result()).items()}
    assert modes == {"plain": 0o644, "program": 0o755, "sub": 0o755, "sub/plain": 0o644}


# --- 2.4: what is told of it ------------------------------------------------------------------


@better("source.credentials-in-url", "it is in no label, log or file")
@same("security.secrets")
@needs("git")
def test_password_in_the_url_goes_to_the_server_and_nowhere_else(
    bench: Bench, plain: str, web: FakeWeb, repository: Repository
) -> None:
    repository.serve(web, "/project.git")
    refs = repository.path / ".git/info/refs"
    locked = Answer(b"", 401, {"WWW-Authenticate": 'Basic realm="git"'})
    web.put("/project.git/info/refs?service=git-upload-pack", locked, refs.read_bytes())
    url = f"http://ann:s3cretword@{web.host}/project.git"
    everything = ("--exclude", "", "--loglevel=5", "--json")
    done = bench.ocis2i.ok("build", url, plain, bench.tag, *everything)
    expected = "Basic " + base64.b64encode(b"ann:s3cretword").decode()
    assert web.log[1].headers["authorization"] == expected
    assert "s3cretword" not in done.err + done.out
    assert labels(bench.result())["source-location"].endswith(f"{web.host}/project.git")
    assert web.host in text(bench.result(), ".git/config")
    assert files_with("s3cretword", bench.ocis2i.store) == []


# --- 2.5: a copy ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source with everything that git has no idea of."""
    directory = tmp_path_factory.mktemp("tree") / "tree"
    write(directory, "plain", "sub/page", "readonly/file", "secret", "setuid", "program")
    for name, mode in MODES.items():
        (directory / name).mkdir(exist_ok=True) if name.startswith("empty") else None
        os.utime(directory / name, (MTIME, MTIME))
        (directory / name).chmod(mode)
    for name, target in LINKS.items():
        (directory / name).symlink_to(target)
    return directory


MODES = {
    "plain": 0o644,
    "program": 0o775,
    "secret": 0o400,
    "setuid": 0o4755,
    "sub/page": 0o666,
    "empty": 0o755,
    "empty-sticky": 0o1777,
    "empty-private": 0o700,
    "readonly/file": 0o444,
    "readonly": 0o555,
}
LINKS = {
    "to-file": "plain",
    "to-directory": "sub",
    "dangling": "absent/file",
    "dangling-absolute": "/absent/file",
}


@pytest.fixture(scope="module")
def copied(shared: Program, plain: str, tree: Path) -> LayoutImage:
    shared.ok("build", tree, plain, "copied:1")
    return LayoutImage(shared.layout, "docker.io/library/copied:1")


@same("source.empty-directories")
def test_empty_directories_are_copied(copied: LayoutImage) -> None:
    empty = {name for name, one in uploaded(copied).items() if one.isdir() and "empty" in name}
    assert empty == {"empty", "empty-sticky", "empty-private"}


@better("source.copied-modes", "times too")
@better("upload.owner", "the assemble user, root too")
def test_modes_and_times_are_kept_and_owners_are_not(copied: LayoutImage) -> None:
    found = uploaded(copied)
    assert {name: found[name].mode for name in MODES} == MODES
    assert {found[name].mtime for name in MODES} == {MTIME}
    assert {(one.uid, one.gid) for one in found.values()} == {(1001, 0)}


@same("source.links-are-followed")
@same("source.dangling-links")
def test_links_are_followed_and_links_to_nowhere_stay(copied: LayoutImage) -> None:
    found = uploaded(copied)
    assert found["to-file"].isreg()
    assert found["to-directory"].isdir()
    assert text(copied, "to-file") == "plain\n"
    assert text(copied, "to-directory/page") == "sub/page\n"
    dangling = {"dangling", "dangling-absolute"}
    links = {name: one.linkname for name, one in found.items() if one.issym()}
    assert links == {name: LINKS[name] for name in dangling}


@same("--keep-symlinks")
@same("source.links-are-followed")
def test_links_are_kept_on_request(bench: Bench, plain: str, tree: Path) -> None:
    bench.ocis2i.ok("build", tree, plain, bench.tag, "--keep-symlinks")
    found = uploaded(bench.result())
    links = {name: one.linkname for name, one in found.items() if one.issym()}
    assert links == LINKS
    assert "to-directory/page" not in found


@same("source.copy-context-dir")
@same("--context-dir")
def test_context_directory_of_a_copy(bench: Bench, plain: str) -> None:
    source = write(bench.directory / "app", "web/index.html", "web/sub/page", "other")
    bench.ocis2i.ok("build", "app", plain, bench.tag, "--context-dir=web", cwd=bench.directory)
    assert names(bench.result()) == {"index.html", "sub", "sub/page"}
    assert labels(bench.result()) == {"source-location": "app", "source-context-dir": "web"}
    done = bench.ocis2i("build", source, plain, bench.tag, "--context-dir", "absent")
    check_refused(done, "no directory `absent` in the source")


@better("source.recursive-copy", "directories are compared, not names")
def test_store_inside_of_the_source_is_refused(bench: Bench, plain: str) -> None:
    source = write(bench.directory / "app", "index.html")
    store = str(source / "store")
    done = bench.ocis2i("build", source, plain, bench.tag, OCIS2I_ROOT=store)
    check_refused(done, "would be copied into itself", "outside of the source")
    # The name of this one only begins like that of the store.
    neighbour = write(Path(str(bench.ocis2i.store)[:-1]), "index.html")
    bench.ocis2i.ok("build", neighbour, plain, bench.tag)
    assert names(bench.result()) == {"index.html"}


@better("source.link-loops", "an error names the directory at once")
def test_directory_inside_itself_is_refused(bench: Bench, plain: str) -> None:
    source = write(bench.directory / "app", "sub/file")
    (source / "sub/again").symlink_to("..")
    done = bench.ocis2i("build", source, plain, bench.tag)
    check_refused(done, "`sub/again` leads back to one that contains it", "--keep-symlinks")


@better("source.special-files", "an error names it, and a rule can leave it out")
@pytest.mark.parametrize("kind", ["a FIFO", "a socket"])
def test_special_file_is_named_and_can_be_ignored(bench: Bench, plain: str, kind: str) -> None:
    source = write(bench.directory / "app", "index.html")
    special = source / "special"
    if kind == "a FIFO":
        os.mkfifo(special)
    else:
        # The path of a socket has an end at 107 bytes.
        here = os.open(source, os.O_RDONLY)
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(f"/proc/self/fd/{here}/special")
        os.close(here)
    done = bench.ocis2i("build", source, plain, bench.tag, timeout=60)
    check_refused(done, f"`special` in the source is {kind}", ".s2iignore")
    bench.ocis2i.ok("build", source, plain, bench.tag, "--exclude", "^special$")
    assert names(bench.result()) == {"index.html"}
    (source / ".s2iignore").write_text("special\n")
    bench.ocis2i.ok("build", source, plain, bench.tag)
    assert names(bench.result()) == {"index.html", ".s2iignore"}


@refused("upload.unreadable", "the image would lack it in silence")
def test_unreadable_file_is_an_error_and_can_be_ignored(bench: Bench, plain: str) -> None:
    source = write(bench.directory / "app", "index.html", "locked")
    (source / "locked").chmod(0)
    done = bench.ocis2i("build", source, plain, bench.tag)
    check_refused(done, "cannot copy `locked`: Permission denied")
    bench.ocis2i.ok("build", source, plain, bench.tag, "--exclude", "^locked$")
    assert names(bench.result()) == {"index.html"}


# --- 2.6: .s2iignore --------------------------------------------------------------------------

IGNORE = "\n".join(
    [
        "# *.html",
        "  # index.html",
        "",
        "   ",
        "*.log",
        "one/?.tmp",
        ".h*",
        "**/*.md",
        "[ab].cfg",
        "[^a].ini",
        "\\*.txt",
        "/rooted",
        "directory/",
        ".//dotted",
        "  spaced  ",
        "\ttabbed",
        "windows\r",
        "*.keep",
        "!b.keep",
        "!c.keep",
        "c.k*",
        "whole",
        "!whole/saved",
        "{x,y}.brace",
        "[.broken",
        "",
    ]
)
STAY = {
    *("index.html", "one/b.log", "one/xx.tmp", "one/.hidden", "x.md", "one/two/x.md"),
    *("c.cfg", "a.ini", "y.txt", "one/rooted", "tabbed", "b.keep", "x.brace", "one/index.html"),
    *("one/.s2iignore", ".s2iignore"),
}
GO = {
    *("a.log", "one/x.tmp", ".hidden", "one/x.md", "a.cfg", "b.ini", "*.txt", "rooted"),
    *("directory/file", "dotted", "spaced", "windows", "a.keep", "c.keep", "whole/saved"),
}


@pytest.fixture(
    scope="module", params=["copy", pytest.param("clone", marks=needs("git")), "context"]
)
def filtered(
    request: pytest.FixtureRequest,
    shared: Program,
    plain: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> LayoutImage:
    """What a build got of a source with the ignore file above."""
    directory = tmp_path_factory.mktemp("filtered")
    top = directory / "web" if request.param == "context" else directory
    write(top, *STAY, *GO)
    (top / ".s2iignore").write_text(IGNORE)
    (top / "one/.s2iignore").write_text("index.html\n")
    flags: tuple[str, ...] = ()
    if request.param == "clone":
        Repository(directory).commit("all")
    if request.param == "context":
        (directory / ".s2iignore").write_text("index.html\n")
        flags = ("--context-dir", "web")
    tag = f"filtered-{request.param}:1"
    done = shared.ok("build", directory, plain, tag, *flags)
    assert warnings(done) == ["`[.broken` in `.s2iignore` is no pattern"]
    return LayoutImage(shared.layout, f"docker.io/library/{tag}")


@same("s2iignore.globs")
@same("s2iignore.comments")
@same("s2iignore.exceptions")
@same("s2iignore.place")
def test_ignore_file_removes_what_its_globs_name(filtered: LayoutImage) -> None:
    found = uploaded(filtered)
    assert {name for name, one in found.items() if one.isreg()} == STAY
    assert {name for name, one in found.items() if one.isdir()} == {"one", "one/two"}


OWN_ASSEMBLE = '#!/bin/sh\necho "assembled by the source, GREETING=$GREETING"\n'


@better("s2iignore.scripts", "scripts of the source count, whatever it says")
@needs("git")
@pytest.mark.parametrize("way", ["copy", "clone"])
@pytest.mark.parametrize("pattern", [".s2i", ".s2i/bin/assemble", "*"])
def test_ignored_script_is_used_and_gone(bench: Bench, plain: str, way: str, pattern: str) -> None:
    source = write(bench.directory / "app", "index.html", ".s2i/bin/other")
    (source / ".s2i/bin/assemble").write_text(OWN_ASSEMBLE)
    (source / ".s2i/environment").write_text("GREETING=hello\n")
    (source / ".s2iignore").write_text(f"{pattern}\n")
    if way == "clone":
        Repository(source).commit("all")
    done = bench.ocis2i.ok("build", source, plain, bench.tag)
    kept = "GREETING=hello" if pattern == ".s2i/bin/assemble" else "GREETING="
    assert f"assembled by the source, {kept}\n" in done.err
    files = {name for name, one in uploaded(bench.result()).items() if one.isreg()}
    assert (
        files
        == {
            ".s2i": {"index.html", ".s2iignore"},
            "*": set[str](),
            ".s2i/bin/assemble": {
                *("index.html", ".s2iignore", ".s2i/environment", ".s2i/bin/other")
            },
        }[pattern]
    )


@better("s2iignore.odd-directory", "rules know nothing of the source's own path")
@pytest.mark.parametrize("name", ["my[app]", "a*b?c", "back\\slash"])
def test_source_in_a_directory_with_glob_characters(bench: Bench, plain: str, name: str) -> None:
    source = write(bench.directory / name, "stays", "goes.log")
    (source / ".s2iignore").write_text("*.log\n")
    bench.ocis2i.ok("build", source, plain, bench.tag)
    assert names(bench.result()) == {"stays", ".s2iignore"}


@better("s2iignore.no-source", "without a source no ignore file counts")
@pytest.mark.parametrize("verb", ["usage", "generate"])
def test_verbs_without_a_source_leave_the_current_directory_alone(
    bench: Bench, plain: str, verb: str
) -> None:
    here = write(bench.directory / "here", "precious", "sub/precious")
    (here / ".s2iignore").write_text("*\n")
    output = (str(bench.directory / "out/Dockerfile"),) if verb == "generate" else ()
    bench.ocis2i.ok(verb, plain, *output, cwd=here)
    left = {str(one.relative_to(here)) for one in here.rglob("*")}
    assert left == {".s2iignore", "precious", "sub", "sub/precious"}


# --- 2.7: --exclude ---------------------------------------------------------------------------


@same("exclude.default")
@same("exclude.none")
@same("--exclude")
@needs("git")
@pytest.mark.parametrize("way", ["copy", "clone"])
def test_git_directories_stay_out_unless_exclude_is_empty(
    bench: Bench, plain: str, repository: Repository, way: str
) -> None:
    repository.commit("ignore", {".gitignore": "*.log\n", "sub/.gitkeep": ""})
    flags = ("--copy",) if way == "copy" else ()
    if way == "copy":
        write(repository.path, "sub/.git")  # as a submodule has it
    bench.ocis2i.ok("build", repository.path, plain, bench.tag, *flags)
    assert names(bench.result()) == {".gitignore", "index.html", "sub", "sub/.gitkeep"}
    bench.ocis2i.ok("build", repository.path, plain, bench.tag, "--exclude", "", *flags)
    found = names(bench.result())
    assert {".git", ".git/HEAD", ".git/config", "index.html"} <= found
    assert ("sub/.git" in found) == (way == "copy")


@better("exclude.relative-paths", "paths of the source")
@better("exclude.no-empty-files", "they are gone")
@better("exclude.scripts", "scripts always count")
@better("--exclude", "matches paths of the source")
@needs("git")
@pytest.mark.parametrize("way", ["copy", "clone"])
def test_exclude_matches_paths_of_the_source(bench: Bench, plain: str, way: str) -> None:
    source = write(bench.directory / "app/upload/src", *("index.html", "app", "one/app.log"))
    write(source, "uploads/page", "src/code", "one/page", ".git-notes")
    (source / ".s2i/bin").mkdir(parents=True)
    (source / ".s2i/bin/assemble").write_text(OWN_ASSEMBLE)
    repository = Repository(source)
    repository.commit("all")
    flags = ("--copy",) if way == "copy" else ()
    expression = r"^app|^uploads/|(^|/)src/|\.log$|scripts|\.s2i|assemble"
    done = bench.ocis2i.ok("build", source, plain, bench.tag, "--exclude", expression, *flags)
    assert "assembled by the source" in done.err
    files = {name for name, one in uploaded(bench.result()).items() if one.isreg()}
    assert files == {"index.html", "one/page", ".git-notes"}


@same("exclude.bad-expression")
def test_expression_that_is_none_is_an_error(bench: Bench, plain: str) -> None:
    done = bench.ocis2i("build", bench.source(), plain, bench.tag, "--exclude", "(")
    check_refused(done, "--exclude `(` is not a regular expression", code=2)


# --- 2.8: .s2i --------------------------------------------------------------------------------


@same("s2i-directory.sti")
@pytest.mark.parametrize("also", [False, True])
def test_outdated_directory_is_looked_into_last(bench: Bench, plain: str, also: bool) -> None:
    files = {".sti/bin/assemble": "#!/bin/sh\necho assembled by the outdated one\n"}
    if also:
        files[".s2i/bin/assemble"] = OWN_ASSEMBLE
    done = bench.ocis2i.ok("build", bench.source(files), plain, bench.tag)
    assert ("assembled by the source" in done.err) == also
    assert ("assembled by the outdated one" in done.err) == (not also)
    assert warnings(done) == (
        [] if also else ["`.sti/bin/assemble` is deprecated, move it to `.s2i/bin/assemble`"]
    )


@same("s2i-directory.environment")
@same("s2i-directory.other-files")
def test_environment_file_and_foreign_files_stay(bench: Bench, plain: str) -> None:
    source = bench.source(
        {
            ".s2i/environment": "GREETING=hello\n",
            ".s2i/bin/helper": "helper\n",
            ".s2i/bin/assemble": OWN_ASSEMBLE,
            ".s2i/bin/save-artifacts": "#!/bin/sh\n",
        }
    )
    bench.ocis2i.ok("build", source, plain, bench.tag)
    files = {name for name, one in uploaded(bench.result()).items() if one.isreg()}
    assert files == {"index.html", ".s2i/environment", ".s2i/bin/helper"}
    assert text(bench.result(), ".s2i/environment") == "GREETING=hello\n"
    assert "GREETING=hello" in bench.result().config["Env"]


# --- 2.9: the upload --------------------------------------------------------------------------


@same("upload.layout")
@better("upload.owner", "the assemble user, root too")
def test_upload_has_source_and_scripts_of_the_assemble_user(bench: Bench, plain: str) -> None:
    source = bench.source({".s2i/bin/assemble": OWN_ASSEMBLE})
    bench.ocis2i.ok("build", source, plain, bench.tag, "--assemble-user", "0")
    members = bench.result().members()
    found = {name: (one.mode, one.uid, one.gid) for name, one in members.items()}
    below = {name: facts for name, facts in found.items() if name.startswith("tmp/")}
    assert below == {
        "tmp/scripts": (0o755, 0, 0),
        "tmp/scripts/assemble": (0o755, 0, 0),
        "tmp/src": (0o755, 0, 0),
        "tmp/src/.s2i": (0o755, 0, 0),
        "tmp/src/.s2i/bin": (0o755, 0, 0),
        "tmp/src/index.html": (0o644, 0, 0),
    }


# --- archives, which source-to-image does not know --------------------------------------------


def pack(kind: str, source: Path, archive: Path) -> None:
    """An archive of a directory, by somebody who is not us."""
    if kind == "zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as made:
            for one in sorted(source.rglob("*")):
                made.write(one, one.relative_to(source))
    elif kind == "tarfile":
        with tarfile.open(archive, "w:xz") as packed:
            packed.add(source, ".")
    else:
        subprocess.run(["tar", kind, "-cf", archive, "-C", source, "."], check=True, timeout=60)


@pytest.mark.parametrize("given", ["file", "standard input"])
@pytest.mark.parametrize("kind", ["zip", "tarfile", "--gzip", "--format=v7", "--format=gnu"])
def test_archive_is_a_source(bench: Bench, plain: str, kind: str, given: str) -> None:
    source = write(bench.directory / "app", "index.html", "sub/page")
    (source / "empty").mkdir()
    (source / ".s2i/bin").mkdir(parents=True)
    (source / ".s2i/bin/assemble").write_text(OWN_ASSEMBLE)
    (source / "index.html").chmod(0o640)
    archive = bench.directory / "app.archive"
    pack(kind, source, archive)
    shutil.rmtree(source)
    word: str | Path = archive if given == "file" else "-"
    stdin = archive if given == "standard input" else None
    done = bench.ocis2i.ok("build", word, plain, bench.tag, stdin=stdin)
    assert "assembled by the source" in done.err
    found = uploaded(bench.result())
    assert {*found} == {"index.html", "sub", "sub/page", "empty", ".s2i", ".s2i/bin"}
    assert found["index.html"].mode == 0o640
    assert text(bench.result(), "sub/page") == "sub/page\n"
    expected = {"source-location": str(archive)} if given == "file" else {}
    assert labels(bench.result()) == expected


@needs("git")
@pytest.mark.parametrize("form", ["tar", "tar.gz", "zip"])
def test_archive_of_git_says_its_commit(
    bench: Bench, plain: str, repository: Repository, form: str
) -> None:
    archive = bench.directory / f"app.{form}"
    repository.git("archive", f"--format={form}", f"--output={archive}", "stable")
    bench.ocis2i.ok("build", "-", plain, bench.tag, stdin=archive)
    assert text(bench.result(), "index.html") == "of stable\n"
    assert labels(bench.result()) == {"commit.id": repository.git("rev-parse", "stable")}


def test_context_directory_and_ignore_file_of_an_archive(bench: Bench, plain: str) -> None:
    source = write(bench.directory / "app", "web/index.html", "web/a.log", "other")
    (source / "web/.s2iignore").write_text("*.log\n")
    archive = bench.directory / "app.tar"
    pack("--format=posix", source, archive)
    bench.ocis2i.ok("build", archive, plain, bench.tag, "--context-dir", "web")
    assert names(bench.result()) == {"index.html", ".s2iignore"}


def test_nothing_on_standard_input_is_an_error(bench: Bench, plain: str) -> None:
    done = bench.ocis2i("build", "-", plain, bench.tag)
    check_refused(done, "standard input is empty", "a tar archive")
