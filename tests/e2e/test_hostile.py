"""Hostile sources, archives, addresses and servers: nothing outside is changed, read or run.

The source of a build is a stranger's. Whatever is tried here, the canary beside it stays as it is,
nobody opens it, and its words are neither in an image nor in the log nor in the store.
"""

from __future__ import annotations

import gzip
import io
import os
import stat
import subprocess
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import needs
from tests.contract import refused, same
from tests.fakes.bench import Bench
from tests.fakes.canary import WORDS, Canary, files_with
from tests.fakes.images import BUSYBOX, SCRIPTS, Layer
from tests.fakes.program import Done, Program
from tests.fakes.repositories import Repository
from tests.fakes.web import Answer, FakeWeb

pytestmark = [
    pytest.mark.sandbox,
    pytest.mark.skipif(not BUSYBOX.exists(), reason="busybox-static is not installed"),
]

# Copies what it gets to a second place, and says so.
ASSEMBLE = '#!/bin/sh\ncp -R /tmp/src "$HOME/" && echo "assembled by the builder"\n'
NOTHING = "#!/bin/sh\n"
UP = "../" * 40  # to the root, from wherever it is


@pytest.fixture(scope="module")
def plain(shared: Program, tmp_path_factory: pytest.TempPathFactory) -> str:
    bench = Bench(shared, tmp_path_factory.mktemp("plain"))
    return bench.image("plain", {"assemble": ASSEMBLE, "run": NOTHING})


@pytest.fixture
def canary(tmp_path: Path) -> Canary:
    return Canary(tmp_path / "outside")


def build(
    bench: Bench,
    canary: Canary,
    builder: str,
    source: Path | str,
    *flags: str,
    stdin: Path | None = None,
    **variables: Any,
) -> Done:
    """A build that tells all it can; nobody has the canary's words after it."""
    arguments = ["--loglevel=5", "--json", *flags, "--", source, builder, bench.tag]
    with canary.watched():
        done = bench.ocis2i("build", *arguments, stdin=stdin, timeout=120, **variables)
    assert WORDS not in done.err + done.out
    assert files_with(WORDS, bench.ocis2i.store) == []
    return done


def check_refused(bench: Bench, done: Done, *said: str, code: int = 3) -> None:
    """One clear error with these words in it; nothing ran, nothing is stored or left behind."""
    assert done.code == code, done.err
    message = done.document["message"]
    for words in said:
        assert words in message
    assert "Traceback" not in done.err
    assert "assembled by" not in done.err
    index = bench.ocis2i.layout / "index.json"
    assert not index.exists() or f"/{bench.tag}" not in index.read_text()
    for name in ("builds", "tmp"):
        assert os.listdir(bench.ocis2i.store / name) == []


def links_of_the_layer(bench: Bench) -> dict[str, str]:
    members = bench.result().members()
    return {name: one.linkname for name, one in members.items() if one.issym()}


# --- the canary itself ------------------------------------------------------------------------


@pytest.mark.parametrize("deed", ["open", "write", "chmod", "replace", "add"])
def test_canary_notices_what_is_done_to_it(canary: Canary, deed: str) -> None:
    path = canary.path
    deeds: dict[str, Callable[[], object]] = {
        "open": path.read_text,
        "write": lambda: path.write_text("other"),
        "chmod": lambda: path.chmod(0o600),
        "replace": lambda: path.with_name("new").rename(path),
        "add": path.with_name("beside").touch,
    }
    if deed == "replace":
        path.with_name("new").write_text(WORDS)
    with pytest.raises(AssertionError), canary.watched():
        deeds[deed]()


def test_words_of_the_canary_are_found_in_compressed_files(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(gzip.compress(f"x{WORDS}x".encode()))
    (tmp_path / "plain").write_text(WORDS)
    (tmp_path / "other").write_text("nothing")
    assert sorted(files_with(WORDS, tmp_path)) == [str(tmp_path / n) for n in ("blob", "plain")]


# --- trees: each as a copy, as a clone and as an archive --------------------------------------

Way = Callable[[Path], tuple[str, ...]]


def as_copy(tree: Path) -> tuple[str, ...]:
    return "--copy", str(tree)


def as_clone(tree: Path) -> tuple[str, ...]:
    Repository(tree).commit("all of it")
    return (str(tree),)


def as_archive(tree: Path) -> tuple[str, ...]:
    archive = tree.with_suffix(".tar.gz")
    subprocess.run(["tar", "-czf", archive, "-C", tree, "."], check=True, timeout=60)
    return (str(archive),)


ALL_WAYS = [as_copy, pytest.param(as_clone, marks=needs("git")), as_archive]


def make_tree(bench: Bench) -> Path:
    return bench.source({"sub/page": "page\n"})


def build_tree(bench: Bench, canary: Canary, builder: str, tree: Path, way: Way) -> Done:
    *flags, source = way(tree)
    return build(bench, canary, builder, source, *flags)


@same("security.s2iignore")
@refused("s2iignore.climbing", "the pattern is named, and nothing is built")
@pytest.mark.parametrize("way", ALL_WAYS)
@pytest.mark.parametrize(
    "pattern",
    ["../outside/canary", "sub/../../outside/*", "!../outside/canary", "/../outside", UP + "{}"],
)
def test_ignore_file_that_climbs(
    bench: Bench, canary: Canary, plain: str, way: Way, pattern: str
) -> None:
    line = pattern.replace("{}", str(canary.path)[1:])
    tree = make_tree(bench)
    (tree / ".s2iignore").write_text(f"page\n{line}\n")
    done = build_tree(bench, canary, plain, tree, way)
    check_refused(bench, done, f"`{line}` in `.s2iignore` leads out of the source")


@same("security.s2iignore")
@pytest.mark.parametrize("way", ALL_WAYS)
def test_ignore_file_that_is_a_link(bench: Bench, canary: Canary, plain: str, way: Way) -> None:
    tree = make_tree(bench)
    (tree / ".s2iignore").symlink_to(canary.path)
    done = build_tree(bench, canary, plain, tree, way)
    check_refused(bench, done, "`.s2iignore` is a link that leaves the source")


@same("security.s2iignore")
def test_ignore_file_without_an_end(bench: Bench, canary: Canary, plain: str) -> None:
    tree = make_tree(bench)
    (tree / ".s2iignore").write_text("a*\n" * 100_000)
    check_refused(bench, build(bench, canary, plain, tree), "`.s2iignore` is larger than")


@pytest.mark.parametrize("way", ALL_WAYS)
@pytest.mark.parametrize("how", ["script", "directory", "above"])
def test_script_that_is_a_link_out(
    bench: Bench, plain: str, tmp_path: Path, way: Way, how: str
) -> None:
    canary = Canary(tmp_path / "outside/bin", "assemble")
    tree = make_tree(bench)
    link = {"script": ".s2i/bin/assemble", "directory": ".s2i/bin", "above": ".s2i"}[how]
    target = {"script": canary.path, "directory": canary.path.parent}.get(how, tmp_path / "outside")
    (tree / link).parent.mkdir(parents=True, exist_ok=True)
    (tree / link).symlink_to(target)
    done = build_tree(bench, canary, plain, tree, way)
    check_refused(bench, done, ".s2i", "link", code=done.code)
    assert done.code in (3, 4)


@pytest.mark.parametrize("way", ALL_WAYS)
def test_environment_that_is_a_link_out(bench: Bench, canary: Canary, plain: str, way: Way) -> None:
    tree = make_tree(bench)
    (tree / ".s2i").mkdir()
    (tree / ".s2i/environment").symlink_to(canary.path)
    done = build_tree(bench, canary, plain, tree, way)
    check_refused(bench, done, ".s2i/environment", "link")


@same("security.source-links")
@pytest.mark.parametrize("way", ALL_WAYS)
@pytest.mark.parametrize("link", ["directly", "by another link", "on the way", "climbing"])
def test_context_directory_that_is_a_link_out(
    bench: Bench, canary: Canary, plain: str, way: Way, link: str
) -> None:
    tree = make_tree(bench)
    outside = canary.path.parent
    context = "web"
    if link == "directly":
        (tree / "web").symlink_to(outside)
    elif link == "by another link":
        (tree / "web").symlink_to("sub/other")
        (tree / "sub/other").symlink_to(outside)
    elif link == "on the way":
        (tree / "way").symlink_to(outside.parent)
        context = "way/outside"
    else:
        (tree / "web").symlink_to(f"{UP}{str(outside)[1:]}")
    *flags, source = way(tree)
    done = build(bench, canary, plain, source, "--context-dir", context, *flags)
    check_refused(bench, done, f"`{context}` leads out of the source")


@same("security.source-links")
@pytest.mark.parametrize("context", ["../outside", "sub/../../outside", "/../outside", ".."])
def test_context_directory_that_climbs(
    bench: Bench, canary: Canary, plain: str, context: str
) -> None:
    flags = ("--context-dir", context)
    with canary.watched():
        done = bench.ocis2i("build", *flags, make_tree(bench), plain, bench.tag, "--json")
    assert done.code == 3
    assert f"`{context}` leads out of the source" in done.document["message"]


LINKS = {
    "to a file": {"stolen": "{}"},
    "to a directory": {"stolen": "{}/.."},
    "by another": {"stolen": "sub/other", "sub/other": "{}"},
    "through a directory": {"way": "{}/..", "stolen": "way/canary"},
    "climbing": {"stolen": f"{UP}.{{}}"},
    "to what gives without end": {"stolen": "/dev/zero"},
    "to our own memory": {"stolen": "/proc/self/environ"},
}


def lay(tree: Path, canary: Canary, how: str) -> dict[str, str]:
    outside = canary.path.parent
    links = {
        name: target.replace("{}/..", str(outside)).replace("{}", str(canary.path))
        for name, target in LINKS[how].items()
    }
    for name, target in links.items():
        (tree / name).symlink_to(target)
    return links


@same("security.source-links")
@pytest.mark.parametrize("way", [as_copy, as_archive])
@pytest.mark.parametrize("how", LINKS)
def test_link_out_of_a_copy_is_refused(
    bench: Bench, canary: Canary, plain: str, way: Way, how: str
) -> None:
    tree = make_tree(bench)
    lay(tree, canary, how)
    done = build_tree(bench, canary, plain, tree, way)
    check_refused(bench, done, "leads out of the source")


@same("security.source-links")
@pytest.mark.parametrize("way", ["clone", "context directory", "copy", "archive"])
def test_link_out_is_at_most_a_link(bench: Bench, canary: Canary, plain: str, way: str) -> None:
    tree = bench.source({"web/page": "page\n"})
    top = tree / "web" if way == "context directory" else tree
    links = {"file": str(canary.path), "directory": str(canary.path.parent)}
    for name, target in links.items():
        (top / name).symlink_to(target)
    flags: tuple[str, ...] = ("--keep-symlinks",)
    source = str(tree)
    if way in ("clone", "context directory"):
        as_clone(tree)
        flags = ("--context-dir", "web") if way == "context directory" else ()
    elif way == "archive":
        (source,) = as_archive(tree)
    done = build(bench, canary, plain, source, *flags)
    assert done.code == 0, done.err
    found = links_of_the_layer(bench)
    assert {name: found[f"tmp/src/{name}"] for name in links} == links


@pytest.mark.parametrize("way", ["copy", pytest.param("clone", marks=needs("git")), "archive"])
def test_links_that_multiply_come_to_an_end(
    bench: Bench, canary: Canary, plain: str, way: str
) -> None:
    # Two links a level, forty levels: a million million files.
    tree = make_tree(bench)
    for level in range(40):
        (tree / f"level{level}").mkdir()
        for name in ("a", "b"):
            (tree / f"level{level}/{name}").symlink_to(f"../level{level + 1}")
    (tree / "level40").mkdir()
    (tree / "level40/file").write_text("x" * 1_000_000)
    (tree / "web").mkdir()
    (tree / "web/start").symlink_to("../level0")
    *flags, source = {"copy": as_copy, "clone": as_clone, "archive": as_archive}[way](tree)
    # What a link inside of an archive or a clone leads to is there, unless it is elsewhere.
    context = ("--context-dir", "web") if way != "copy" else ()
    limit = "8000000"  # bytes; enough for the builder
    done = build(bench, canary, plain, source, *flags, *context, OCIS2I_LAYER_LIMIT=limit)
    check_refused(bench, done, f"links in the source lead to more than {limit} bytes")


# --- archives ---------------------------------------------------------------------------------


@dataclass
class Tar:
    """A tar archive member by member."""

    path: Path

    def __post_init__(self) -> None:
        self._members: list[tuple[tarfile.TarInfo, bytes]] = []
        self.file("first", b"first\n")

    def file(self, name: str, data: bytes = b"overwritten\n", **pax: str) -> Tar:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        info.pax_headers = pax
        self._members.append((info, data))
        return self

    def other(self, name: str, kind: bytes, target: str = "", **pax: str) -> Tar:
        info = tarfile.TarInfo(name)
        info.type, info.linkname, info.pax_headers = kind, target, pax
        self._members.append((info, b""))
        return self

    def write(self) -> Path:
        with tarfile.open(self.path, "w", format=tarfile.PAX_FORMAT) as archive:
            for info, data in self._members:
                archive.addfile(info, io.BytesIO(data))
        return self.path


SYMLINK, HARD_LINK = tarfile.SYMTYPE, tarfile.LNKTYPE

# What is in the archive, by the canary's path, and words of the error.
TARS: dict[str, tuple[Callable[[Tar, str], Tar], str]] = {
    "absolute": (lambda made, path: made.file(path), "leads out of it"),
    "climbing": (lambda made, path: made.file(f"{UP}.{path}"), "leads out of it"),
    "climbing in the middle": (
        lambda made, path: made.file(f"first/{UP}.{path}"),
        "leads out of it",
    ),
    "absolute directory": (
        lambda made, path: made.other(f"{path}.d", tarfile.DIRTYPE),
        "leads out of it",
    ),
    "by an extended header": (
        lambda made, path: made.file("harmless", path=path),
        "leads out of it",
    ),
    "through a link": (
        lambda made, path: made.other("d", SYMLINK, os.path.dirname(path)).file("d/canary"),
        "leads through `d`, which is no directory",
    ),
    "through two links": (
        lambda made, path: (
            made.other("d", SYMLINK, "e").other("e", SYMLINK, os.path.dirname(path))
        ).file("d/new"),
        "leads through `d`, which is no directory",
    ),
    "hard link": (lambda made, path: made.other("stolen", HARD_LINK, path), "leads out of it"),
    "climbing hard link": (
        lambda made, path: made.other("stolen", HARD_LINK, f"{UP}.{path}"),
        "leads out of it",
    ),
    "hard link through a link": (
        lambda made, path: made.other("d", SYMLINK, os.path.dirname(path)).other(
            "stolen", HARD_LINK, "d/canary"
        ),
        "leads through `d`, which is no directory",
    ),
    "hard link to a link": (
        lambda made, path: (
            made.other("d", SYMLINK, path).other("stolen", HARD_LINK, "d").file("end")
        ),
        "leads out of the source",
    ),
    "hard link by an extended header": (
        lambda made, path: made.other("stolen", HARD_LINK, "first", linkpath=path),
        "leads out of it",
    ),
    "FIFO": (lambda made, _: made.other("fifo", tarfile.FIFOTYPE), "`fifo`"),
    "device": (lambda made, _: made.other("zero", tarfile.CHRTYPE), "`zero`"),
    "file over a directory": (
        lambda made, _: made.other("d", tarfile.DIRTYPE).file("d"),
        "is there twice",
    ),
    "below a file": (lambda made, _: made.file("first/below"), "which is no directory"),
    "very deep": (lambda made, _: made.file("d/" * 5000 + "x"), "deep"),
}


@same("security.archives")
@pytest.mark.parametrize("given", ["file", "standard input"])
@pytest.mark.parametrize("case", TARS)
def test_tar_writes_nothing_outside(
    bench: Bench, canary: Canary, plain: str, case: str, given: str
) -> None:
    make, said = TARS[case]
    archive = make(Tar(bench.directory / "app.tar"), str(canary.path)).write()
    if given == "file":
        done = build(bench, canary, plain, archive)
    else:
        done = build(bench, canary, plain, "-", stdin=archive)
    check_refused(bench, done, said)


@same("security.archives")
def test_absolute_names_of_tar_itself(bench: Bench, canary: Canary, plain: str) -> None:
    archive = bench.directory / "app.tar"
    other = Canary(bench.directory / "packed")
    command = ["tar", "--absolute-names", "-cf", str(archive), str(other.path)]
    subprocess.run(command, check=True, timeout=60)
    with other.watched():
        done = bench.ocis2i("build", archive, plain, bench.tag, "--json")
    check_refused(bench, done, "leads out of it")


@same("security.archives")
def test_file_after_a_link_of_its_name_takes_the_links_place(
    bench: Bench, canary: Canary, plain: str
) -> None:
    archive = Tar(bench.directory / "app.tar").other("x", SYMLINK, str(canary.path)).file("x")
    done = build(bench, canary, plain, archive.write())
    assert done.code == 0, done.err
    assert bench.result().members()["tmp/src/x"].isreg()


def zipped(path: Path, *members: tuple[str, bytes, int]) -> Path:
    """A zip archive of names, contents and Unix modes."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, data, mode in members:
            info = zipfile.ZipInfo("x")
            info.filename, info.create_system = name, 3
            info.external_attr = mode << 16
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # of a name that is there twice
                archive.writestr(info, data)
    return path


FILE, LINK = stat.S_IFREG | 0o644, stat.S_IFLNK | 0o777


@same("security.archives")
@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("absolute", "leads out of it"),
        ("climbing", "leads out of it"),
        ("through a link", "which is no directory"),
        ("link", "leads out of the source"),
        ("twice", "is there twice"),
        ("device", "is a"),
    ],
)
def test_zip_writes_nothing_outside(
    bench: Bench, canary: Canary, plain: str, case: str, said: str
) -> None:
    path = str(canary.path)
    data = b"overwritten\n"
    outside = os.fsencode(canary.path.parent)
    members = {
        "absolute": [(path, data, FILE)],
        "climbing": [(f"{UP}.{path}", data, FILE)],
        "through a link": [("d", outside, LINK), ("d/canary", data, FILE)],
        "link": [("stolen", os.fsencode(path), LINK)],
        "twice": [("stolen", os.fsencode(path), LINK), ("stolen", data, FILE)],
        "device": [("zero", b"", stat.S_IFCHR | 0o644)],
    }[case]
    archive = zipped(bench.directory / "app.zip", *members)
    check_refused(bench, build(bench, canary, plain, archive), said)


@same("security.archives")
@pytest.mark.parametrize("kind", ["gz", "xz", "zip"])
def test_bomb_does_not_go_off(bench: Bench, canary: Canary, plain: str, kind: str) -> None:
    archive = bench.directory / f"app.{kind}"
    data = bytes(20 << 20)
    if kind == "zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as made:
            made.writestr("zeros", data)
    else:
        info = tarfile.TarInfo("zeros")
        info.size = len(data)
        compressed: Any = f"w:{kind}"
        with tarfile.open(archive, compressed) as packed:
            packed.addfile(info, io.BytesIO(data))
    done = build(bench, canary, plain, archive, OCIS2I_LAYER_LIMIT=str(1 << 20))
    check_refused(bench, done, f"unpacks to more than {1 << 20} bytes", code=9)


# --- git --------------------------------------------------------------------------------------


@same("security.git-transports")
@needs("git")
@pytest.mark.parametrize(
    "url", ["ext::sh -c touch% {}", "ext::touch {}", "fd::17/x", "EXT::touch {}", "transport::x"]
)
def test_address_that_is_a_command(bench: Bench, canary: Canary, plain: str, url: str) -> None:
    made = bench.directory / "made"
    url = url.replace("{}", str(made))
    variables: dict[str, Any] = {"GIT_ALLOW_PROTOCOL": "ext:fd:file:https", "GIT_CONFIG_COUNT": "1"}
    variables |= {"GIT_CONFIG_KEY_0": "protocol.allow", "GIT_CONFIG_VALUE_0": "always"}
    done = build(bench, canary, plain, url, **variables)
    assert done.code == 3
    assert "is no transport that ocis2i lets git use" in done.document["message"]
    assert not made.exists()


@same("security.git-transports")
@needs("git")
def test_submodule_that_is_a_command(
    bench: Bench, canary: Canary, plain: str, web: FakeWeb
) -> None:
    made = bench.directory / "made"
    repository = Repository(bench.directory / "app", {"index.html": "hello\n"})
    head = repository.git("rev-parse", "HEAD")
    repository.commit_submodule("sub", f"ext::sh -c touch% {made}", head)
    url = repository.serve(web, "/app.git")
    (bench.directory / "home").mkdir()
    (bench.directory / "home/.gitconfig").write_text("[protocol]\n\tallow = always\n")
    done = build(bench, canary, plain, url, HOME=str(bench.directory / "home"))
    check_refused(bench, done, f"cannot fetch the submodules of `{url}`")
    assert not made.exists()


@same("security.git-transports")
@needs("git")
def test_submodule_from_afar_fetches_nothing_of_this_host(
    bench: Bench, canary: Canary, plain: str, web: FakeWeb
) -> None:
    private = Repository(bench.directory / "private", {"secret": WORDS})
    outer = Repository(bench.directory / "app", {"index.html": "hello\n"})
    outer.commit_submodule("sub", f"file://{private.path}", private.git("rev-parse", "HEAD"))
    url = outer.serve(web, "/app.git")
    done = build(bench, canary, plain, url)
    check_refused(bench, done, "transport 'file' not allowed")


@same("security.git-refs")
@needs("git")
@pytest.mark.parametrize(
    "ref", ["--upload-pack=touch {}", "-ux", "--", "--output={}", "a..b", "main:{}", "x\n-y", "@{{"]
)
@pytest.mark.parametrize("how", ["flag", "fragment"])
def test_ref_that_is_an_option(
    bench: Bench, canary: Canary, plain: str, ref: str, how: str
) -> None:
    made = bench.directory / "made"
    ref = ref.replace("{}", str(made))
    repository = Repository(bench.directory / "app", {"index.html": "hello\n"})
    source = f"{repository.path}#{ref}" if how == "fragment" else str(repository.path)
    flags = (f"--ref={ref}",) if how == "flag" else ()
    done = build(bench, canary, plain, source, *flags)
    assert done.code == 3
    assert "ref `" in done.document["message"] or "commit `" in done.document["message"]
    assert not made.exists()


@same("security.git-refs")
@needs("git")
@pytest.mark.parametrize(
    "source",
    [
        "ssh://-oProxyCommand=touch {}/x",
        "-oProxyCommand=touch {}:x",
        "ssh://-l@host/x",
        "host:-x",
        "--upload-pack=touch {}",
    ],
)
def test_address_that_is_an_option(bench: Bench, canary: Canary, plain: str, source: str) -> None:
    made = bench.directory / "made"
    done = build(bench, canary, plain, source.replace("{}", str(made)))
    assert done.code == 3
    assert not made.exists()


@needs("git")
def test_commands_of_a_local_repository_do_not_run(
    bench: Bench, canary: Canary, plain: str
) -> None:
    made = bench.directory / "made"
    command = f"touch {made}"
    repository = Repository(bench.directory / "app", {"index.html": "hello\n"})
    repository.commit("attributes", {".gitattributes": "* filter=evil diff=evil\n"})
    for key in (
        *("core.fsmonitor", "core.pager", "core.editor", "core.sshCommand", "core.gitProxy"),
        *("filter.evil.smudge", "filter.evil.clean", "filter.evil.process"),
        *("diff.evil.command", "diff.evil.textconv", "uploadpack.packObjectsHook"),
        *("credential.helper", "gpg.program", "diff.external"),
    ):
        repository.git("config", key, command)
    hooks = repository.path / ".git/hooks"
    hooks.mkdir(exist_ok=True)
    for name in ("post-checkout", "post-index-change", "reference-transaction", "pre-commit"):
        (hooks / name).write_text(f"#!/bin/sh\n{command}\n")
        (hooks / name).chmod(0o755)
    made.unlink(missing_ok=True)
    done = build(bench, canary, plain, repository.path)
    assert done.code == 0, done.err
    assert "tmp/src/index.html" in bench.result().members()
    assert not made.exists()


@needs("git")
@pytest.mark.parametrize("name", ["index", "info/exclude", "logs"])
def test_links_in_a_local_git_directory_are_not_followed(
    bench: Bench, canary: Canary, plain: str, name: str
) -> None:
    repository = Repository(bench.directory / "app", {"index.html": "hello\n"})
    link = repository.path / ".git" / name
    if link.is_dir():
        link.rename(link.with_name("before"))
    else:
        link.unlink(missing_ok=True)
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(canary.path)
    done = build(bench, canary, plain, repository.path, "--exclude", "")
    assert done.code == 0, done.err
    assert "tmp/src/index.html" in bench.result().members()


# --- scripts ----------------------------------------------------------------------------------

PAGE = b"<!DOCTYPE html>\n<html><body>404: sorry</body></html>\n"


@same("security.scripts-over-http")
@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Answer(PAGE, headers={"Content-Type": "text/html; charset=utf-8"}), "web page"),
        (Answer(b"#!/bin/sh\n", headers={"Content-Type": "TEXT/HTML"}), "web page"),
        (Answer(PAGE, headers={"Content-Type": "text/plain"}), "web page"),
        (Answer(b"\xef\xbb\xbf \n<HTML>", 201), "web page"),
        (Answer(b""), "the answer is empty"),
        (Answer(NOTHING.encode(), headers={"Content-Encoding": "gzip"}), "compressed"),
        (Answer(b"#" * ((1 << 20) + 1)), "1048576"),
    ],
)
def test_answer_that_is_no_script(
    bench: Bench, canary: Canary, plain: str, web: FakeWeb, answer: Answer, said: str
) -> None:
    web.put("/s2i/assemble", NOTHING.encode())
    web.put("/s2i/run", answer)
    flags = ("--scripts-url", f"{web.url}/s2i")
    done = build(bench, canary, plain, make_tree(bench), *flags)
    check_refused(bench, done, f"{web.url}/s2i/run", said, code=4)


@same("security.scripts-over-http")
@pytest.mark.parametrize("target", ["file://{}", "ftp://host{}", "//"])
def test_redirect_never_leaves_the_web(
    bench: Bench, canary: Canary, plain: str, web: FakeWeb, target: str
) -> None:
    location = target.replace("{}", str(canary.path))
    web.put("/s2i/assemble", Answer(b"", 302, {"Location": location}))
    flags = ("--scripts-url", f"{web.url}/s2i")
    done = build(bench, canary, plain, make_tree(bench), *flags)
    check_refused(bench, done, f"{web.url}/s2i/assemble", code=4)


@same("security.source-links")
def test_image_names_no_directory_of_this_host(bench: Bench, tmp_path: Path) -> None:
    canary = Canary(tmp_path / "outside", "assemble")
    label = {"io.openshift.s2i.scripts-url": canary.path.parent.as_uri()}
    scripts = {"assemble": ASSEMBLE, "run": NOTHING}
    builder = bench.image("builder", scripts, {"Labels": label})
    done = build(bench, canary, builder, make_tree(bench))
    check_refused(bench, done, "of the builder image is not supported", code=4)


@pytest.mark.parametrize("how", ["script", "directory"])
def test_links_of_an_image_mean_what_is_inside(bench: Bench, tmp_path: Path, how: str) -> None:
    canary = Canary(tmp_path / "outside", "assemble")
    layer = Layer().dir("usr").dir("usr/libexec")
    if how == "script":
        layer.symlink(f"{SCRIPTS[1:]}/assemble", str(canary.path))
        builder = bench.image("builder", {"run": NOTHING}, more_layers=[layer])
    else:
        layer.symlink("opt/scripts", str(canary.path.parent))
        label = {"io.openshift.s2i.scripts-url": "image:///opt/scripts"}
        builder = bench.image("builder", {"run": NOTHING}, {"Labels": label}, [layer])
    done = build(bench, canary, builder, make_tree(bench))
    check_refused(bench, done, "has no script", code=4)
