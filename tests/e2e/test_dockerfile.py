"""An exported build, made by a real `buildah bud`, is the image that the direct build makes."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shlex
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import needs
from tests.contract import better, refused, same
from tests.fakes.bench import offer, warnings
from tests.fakes.images import (
    HOME,
    Layer,
    busybox_builder,
    busybox_config,
    make_layout,
)
from tests.fakes.program import Done, Program
from tests.fakes.registry import FakeRegistry

pytestmark = [pytest.mark.sandbox, needs("buildah", "newuidmap")]

Json = dict[str, Any]
Tree = dict[str, tuple[Any, ...]]

NASTY = "a $HOME ${PATH} \"double\" 'single' \\ `back` #no %s <é> tail\\"

ASSEMBLE = """\
#!/bin/sh
set -e
cp -R /tmp/src/. "$HOME/"
rm "$HOME/old"
mkdir -p "$HOME/made/empty"
echo "$NASTY" >"$HOME/made/variable"
chmod 600 "$HOME/made/variable"
ln -s ../nowhere "$HOME/made/link"
id -u >"$HOME/made/id"
pwd >"$HOME/made/cwd"
"""


# --- the two ways ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Built:
    """An image in a layout, as the tests look at it."""

    layout: Path

    @property
    def _manifest(self) -> Json:
        index = json.loads((self.layout / "index.json").read_bytes())
        return dict(json.loads(self._blob(index["manifests"][0]["digest"])))

    def _blob(self, digest: str) -> bytes:
        return (self.layout / "blobs" / digest.replace(":", "/")).read_bytes()

    @property
    def config(self) -> Json:
        return dict(json.loads(self._blob(self._manifest["config"]["digest"]))["config"])

    @property
    def layers(self) -> list[bytes]:
        return [self._blob(layer["digest"]) for layer in self._manifest["layers"]]

    def tree(self) -> Tree:
        """Every path: type, mode, owner, and content, target or the first name of a hard link."""
        tree: Tree = {}
        for data in self.layers:
            with tarfile.open(fileobj=io.BytesIO(data)) as archive:
                _apply(archive, tree)
        return tree

    def holds(self, secret: bytes) -> bool:
        """Whether any layer, or a document, has these bytes in it."""
        blobs = [path.read_bytes() for path in (self.layout / "blobs/sha256").iterdir()]
        plain = []
        for data in self.layers:
            with tarfile.open(fileobj=io.BytesIO(data)) as archive:
                plain += [archive.extractfile(one).read() for one in archive if one.isreg()]  # type: ignore[union-attr]
        return any(secret in data for data in blobs + plain)


def _apply(archive: tarfile.TarFile, tree: Tree) -> None:
    members = [(member.name.removeprefix("./").strip("/"), member) for member in archive]
    for path, _ in members:
        parent, _, name = path.rpartition("/")
        if name == ".wh..wh..opq":
            _remove(tree, f"{parent}/")
        elif name.startswith(".wh."):
            gone = f"{parent}/{name[4:]}".lstrip("/")
            tree.pop(gone, None)
            _remove(tree, f"{gone}/")
    for path, member in members:
        if path in ("", ".") or path.rpartition("/")[2].startswith(".wh."):
            continue
        facts: tuple[Any, ...] = (member.type, oct(member.mode & 0o7777), member.uid, member.gid)
        if member.islnk():
            tree[path] = tree[member.linkname.removeprefix("./").strip("/")]
            continue
        if member.issym():
            facts = (member.type, member.uid, member.gid, member.linkname)
        elif member.isreg():
            stream = archive.extractfile(member)
            assert stream is not None
            facts += (hashlib.sha256(stream.read()).hexdigest(),)
        if not member.isdir():
            _remove(tree, f"{path}/")
        tree[path] = facts


def _remove(tree: Tree, below: str) -> None:
    for path in [one for one in tree if one.startswith(below)]:
        del tree[path]


class Bench:
    """ocis2i and buildah, each with what it keeps images in, and a directory for one test."""

    def __init__(self, directory: Path, ocis2i: Program, storage: Path) -> None:
        self.directory = directory
        self.ocis2i = ocis2i
        self._storage = storage
        self._environment = {
            "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin",
            "HOME": str(directory),
            "XDG_RUNTIME_DIR": str(directory / "run"),
            "TMPDIR": str(directory),
            "BUILDAH_ISOLATION": "chroot",
            "LANG": "C.UTF-8",
        }
        (directory / "run").mkdir(mode=0o700)

    def buildah(self, command: list[str], cwd: Path | None = None, **more: str) -> str:
        """Runs a command line `buildah ...` with the tests' storage."""
        storage = ("--root", f"{self._storage}/root", "--runroot", f"{self._storage}/runroot")
        done = subprocess.run(
            ["buildah", *storage, "--storage-driver", "vfs", *command[1:]],
            cwd=cwd,
            env=self._environment | more,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def export(self, source: Path, builder: str, *words: str | Path, to: str = "out/") -> Path:
        """`build --as-dockerfile`, which has to succeed; where the Dockerfile is."""
        flags = (*words, "--as-dockerfile", to)
        done = self.ocis2i.ok("build", source, builder, *flags, cwd=self.directory)
        written = Path(done.out.removesuffix("\n"))
        assert f"Application dockerfile generated in {written}\n" in done.err
        return written

    def refuse(self, source: Path, builder: str, *words: str | Path, to: str = "out/") -> Done:
        """`build --as-dockerfile`, which has to fail with a sentence."""
        flags = (*words, "--json", "--as-dockerfile", to)
        done = self.ocis2i("build", source, builder, *flags, cwd=self.directory)
        assert done.code != 0
        assert "Traceback" not in done.err
        return done

    def generate(self, builder: str, *words: str | Path, to: str = "out/") -> Path:
        """`generate`, which has to succeed; where the Dockerfile is."""
        done = self.ocis2i.ok("generate", builder, to, *words, cwd=self.directory)
        return Path(done.out.removesuffix("\n"))

    def build(self, source: Path, builder: str, *words: str | Path) -> Built:
        """The same as a direct build, with the same words."""
        layout = self.directory / f"direct-{len(list(self.directory.glob('direct-*')))}"
        self.ocis2i.ok("build", source, builder, *words, "-o", f"oci:{layout}:app")
        return Built(layout)

    def bud(self, dockerfile: Path, *more: str, **variables: str) -> Built:
        """Runs the very command that the Dockerfile's head names."""
        command = command_of(dockerfile)
        assert command[:2] == ["buildah", "bud"]
        if "--tag" not in command:
            more = (*more, "--tag", "untagged")
        self.buildah([*command[:-1], *more, "."], cwd=dockerfile.parent, **variables)
        name = (*command, *more)[(*command, *more).index("--tag") + 1]
        layout = self.directory / f"pushed-{len(list(self.directory.glob('pushed-*')))}"
        self.buildah(["buildah", "push", "--quiet", name, f"oci:{layout}:app"])
        return Built(layout)


def command_of(dockerfile: Path) -> list[str]:
    lines = dockerfile.read_text().split("\n")
    return shlex.split(next(line for line in lines if "buildah bud" in line).removeprefix("#"))


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One storage of buildah for all tests: each builds what it looks at."""
    directory = tmp_path_factory.mktemp("buildah")
    yield directory
    # It belongs to subordinate ids in parts.
    subprocess.run(
        ["buildah", "unshare", "rm", "-rf", directory / "root"],
        env={"PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin", "HOME": str(directory)},
        check=True,
        timeout=60,
    )


@pytest.fixture
def bench(shared: Program, storage: Path, tmp_path: Path) -> Bench:
    directory = tmp_path / "bench"  # buildah 1.28 wants lower case
    directory.mkdir()
    return Bench(directory, shared, storage)


def assert_same_image(ours: Built, theirs: Built) -> None:
    """Same files and same start; the order of variables is buildah's."""
    trees = [{path: facts for path, facts in built.tree().items() if path not in NOT_OURS}
             for built in (ours, theirs)]  # fmt: skip
    different = {
        path: [tree.get(path) for tree in trees]
        for path in set(trees[0]) | set(trees[1])
        if trees[0].get(path) != trees[1].get(path)
    }
    assert different == {}
    expected, found = ours.config, theirs.config
    expected["Env"], found["Env"] = sorted(expected["Env"]), sorted(found["Env"])
    assert found == expected


# What every `RUN` of buildah adds.
NOT_OURS = {"etc/resolv.conf", "run/.containerenv", "run/secrets"}


# --- a source and builders ----------------------------------------------------------------------


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A source with everything that copying could change."""
    root = tmp_path / "source"
    (root / ".s2i/bin").mkdir(parents=True)
    (root / "sub/empty").mkdir(parents=True)
    (root / "index.html").write_text("hello from the source\n")
    (root / "sub/tool").write_text("#!/bin/sh\n")
    (root / "sub/tool").chmod(0o750)
    (root / "sub/secret").write_text("quiet\n")
    (root / "sub/secret").chmod(0o400)
    (root / "dangling").symlink_to("nowhere/at all")
    (root / "sub").chmod(0o711)
    (root / "Dockerfile").write_text("FROM nothing\n")
    (root / ".dockerignore").write_text("*\n")
    (root / ".s2iignore").write_text("*.log\n")
    (root / "ignored.log").write_text("not for the image\n")
    (root / ".s2i/bin/run").write_text("#!/bin/sh\nexec sleep 1\n")
    (root / ".s2i/environment").write_text("FROM_FILE=file\nBOTH=file\n")
    return root


def make_builder(directory: Path, **more: Any) -> str:
    layout = directory / "builder"
    old = Layer().file("opt/app-root/src/old", "old", uid=1001)
    more = {"scripts": {"assemble": ASSEMBLE}, "more_layers": [old]} | more
    busybox_builder(layout, "builder:latest", **more)
    return f"oci:{layout}:builder:latest"


# --- the same image ------------------------------------------------------------------------------


@same("--as-dockerfile")
@same("dockerfile.source")
@same("dockerfile.assemble")
@same("dockerfile.env")
@better("dockerfile.labels", "sorted, and `$` is a character like others")
@better("dockerfile.cmd", "in exec form")
def test_dockerfile_builds_the_image_of_the_direct_build(
    bench: Bench, source: Path, tmp_path: Path
) -> None:
    builder = make_builder(tmp_path, env=["BOTH=image", "IMAGE=image"])
    words = ("app:1", "-e", f"NASTY={NASTY}", "-e", "EMPTY=", "--description", NASTY)
    ours = bench.build(source, builder, *words)
    theirs = bench.bud(bench.export(source, builder, *words))
    assert_same_image(ours, theirs)
    assert theirs.config["Cmd"] == ["/tmp/scripts/run"]
    assert theirs.config["Labels"]["io.k8s.description"] == NASTY
    tree = theirs.tree()
    assert tree["tmp/src/sub"][1:4] == ("0o711", 1001, 0)
    assert tree["tmp/scripts/run"][1:4] == ("0o755", 1001, 0)
    assert "tmp/src/ignored.log" not in tree
    assert "opt/app-root/src/old" not in tree


@better("dockerfile.default-user", "the builder's, and its `USER` stays that of the result")
@pytest.mark.parametrize(
    ("image_user", "assemble_user"),
    [("", "1001"), ("default", None), ("1001", "0"), ("", None), ("0:0", "1001:1001")],
)
def test_users_and_owners_are_those_of_the_direct_build(
    bench: Bench,
    source: Path,
    tmp_path: Path,
    image_user: str,
    assemble_user: str | None,
) -> None:
    script = '#!/bin/sh\nid -u >"$HOME/id"\nid -g >>"$HOME/id"\n'
    more = [Layer().dir("opt/app-root/src", mode=0o777)]
    builder = make_builder(
        tmp_path, user=image_user, scripts={"assemble": script}, more_layers=more
    )
    words = ("app:1", *(("--assemble-user", assemble_user) if assemble_user else ()))
    ours = bench.build(source, builder, *words)
    theirs = bench.bud(bench.export(source, builder, *words))
    assert_same_image(ours, theirs)
    assert theirs.config.get("User", "") == image_user


@better("dockerfile.destination", "the flag, then the builder's label")
@better("dockerfile.place-labels", "none are written, as in a direct build")
@pytest.mark.parametrize(
    ("destination", "flag"),
    [("/opt/s2i", True), ("/new/deep down/$here", False), ("/opt/app-root/src", False)],
)
def test_destination_is_made_as_in_the_direct_build(
    bench: Bench, source: Path, tmp_path: Path, destination: str, flag: bool
) -> None:
    label = {"io.openshift.s2i.destination": "/opt/label" if flag else destination}
    builder = make_builder(
        tmp_path, labels=label, scripts={"assemble": '#!/bin/sh\ntouch "$HOME/made"\n'}
    )
    words = ("app:1", *(("--destination", destination) if flag else ()))
    ours = bench.build(source, builder, *words)
    theirs = bench.bud(bench.export(source, builder, *words))
    assert_same_image(ours, theirs)
    assert theirs.config["Cmd"] == [f"{destination}/scripts/run"]


@pytest.mark.parametrize("flags", [(), ("--keep-entrypoint",), ("--via-entrypoint",)])
def test_entrypoint_is_that_of_the_direct_build(
    bench: Bench, source: Path, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    make_builder(tmp_path)
    layers = [_as_layer(data) for data in Built(tmp_path / "builder").layers]
    config = busybox_config() | {"Entrypoint": ["/bin/env", "SEEN=1"], "StopSignal": "SIGINT"}
    make_layout(tmp_path / "other", "b", layers, config)
    location = f"oci:{tmp_path / 'other'}:b"
    (source / ".s2i/bin/assemble").write_text('#!/bin/sh\necho "$SEEN" >"$HOME/seen"\n')
    ours = bench.build(source, location, "app:1", *flags)
    theirs = bench.bud(bench.export(source, location, "app:1", *flags))
    assert_same_image(ours, theirs)
    kept = ["/bin/env", "SEEN=1"] if flags == ("--keep-entrypoint",) else None
    assert theirs.config.get("Entrypoint") == kept
    assert theirs.config["StopSignal"] == "SIGINT"


def _as_layer(data: bytes) -> Layer:
    layer = Layer()
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for member in archive:
            stream = archive.extractfile(member) if member.isreg() else None
            layer.raw(member, stream.read() if stream else b"")
    return layer


def test_scripts_without_a_first_line_are_run_by_the_shell(
    bench: Bench, source: Path, tmp_path: Path
) -> None:
    (source / ".s2i/bin/assemble").write_text('echo "$0" >"$HOME/made"\n')
    builder = make_builder(tmp_path)
    ours = bench.build(source, builder, "app:1")
    theirs = bench.bud(bench.export(source, builder, "app:1"))
    assert_same_image(ours, theirs)
    assert "opt/app-root/src/made" in theirs.tree()


# --- secrets --------------------------------------------------------------------------------------

SECRET = "correct-horse-battery-staple"

SEES_SECRETS = """\
#!/bin/sh
set -e
test "$(cat /tmp/injected/token)" = correct-horse"-battery-staple"
test "$(cat /tmp/injected/deep/other)" = correct-horse"-battery-staple"
test "$(cat "$HOME/one")" = correct-horse"-battery-staple"
test "$TOKEN" = correct-horse"-battery-staple"
echo seen >"$HOME/seen"
"""


@better("dockerfile.injections", "secrets of the one step that needs them, files too")
@pytest.mark.parametrize(("user", "names"), [("1001", True), ("default", True), ("1001", False)])
def test_secrets_reach_assemble_and_no_layer(
    bench: Bench, source: Path, tmp_path: Path, user: str, names: bool
) -> None:
    secrets = tmp_path / "secrets"
    (secrets / "deep").mkdir(parents=True)
    (secrets / "token").write_text(SECRET)
    (secrets / "deep/other").write_text(SECRET)
    builder = make_builder(tmp_path, scripts={"assemble": SEES_SECRETS}, user=user)
    injections = ("--inject", f"{secrets}:/tmp/injected", "-i", f"{secrets}/token:one")
    words = ("app:1", *injections, "--build-env", f"TOKEN={SECRET}")
    flags = () if names else ("--no-injection-names",)
    dockerfile = bench.export(source, builder, *words, *flags)
    text = dockerfile.read_text()
    assert SECRET not in text
    context = [one.read_bytes() for one in dockerfile.parent.rglob("*") if one.is_file()]
    assert not any(SECRET.encode() in data for data in context)
    image = bench.bud(dockerfile, TOKEN=SECRET)
    assert not image.holds(SECRET.encode())
    assert not any(one.startswith("TOKEN=") for one in image.config["Env"])
    tree = image.tree()
    assert f"{HOME}/seen".lstrip("/") in tree
    if not names:
        return
    assert_same_image(bench.build(source, builder, *words), image)
    nothing = hashlib.sha256(b"").hexdigest()
    for path in ("tmp/injected/token", "tmp/injected/deep/other", "opt/app-root/src/one"):
        assert tree[path][1:] == ("0o644", 1001, 0, nothing)
    assert tree["tmp/injected/deep"][1:] == ("0o755", 1001, 0)


# --- incremental, runtime image, generate --------------------------------------------------------

SAVES = """\
#!/bin/sh
cd "$HOME" && tar -cf - cache
"""
COUNTS = """\
#!/bin/sh
set -e
mkdir -p "$HOME/cache"
test ! -e /tmp/artifacts/cache || mv /tmp/artifacts/cache/* "$HOME/cache/"
echo one more >>"$HOME/cache/count"
chmod 755 "$HOME/cache/count"
"""


@same("dockerfile.incremental")
@pytest.mark.parametrize("whose", ["builder", "source"])
def test_incremental_goes_on_from_the_previous_image(
    bench: Bench, source: Path, tmp_path: Path, whose: str
) -> None:
    scripts = {"assemble": COUNTS} | ({"save-artifacts": SAVES} if whose == "builder" else {})
    if whose == "source":
        (source / ".s2i/bin/save-artifacts").write_text(SAVES)
    builder = make_builder(tmp_path, scripts=scripts)
    words = (f"counted-{whose}:1", "--incremental")
    dockerfile = bench.export(source, builder, *words)
    first = bench.bud(dockerfile, "--build-arg", f"PREVIOUS={builder}")
    second = bench.bud(dockerfile)
    path = f"{HOME}/cache/count".lstrip("/")
    once, twice = (hashlib.sha256(b"one more\n" * count).hexdigest() for count in (1, 2))
    assert first.tree()[path][1:] == ("0o755", 1001, 0, once)
    assert second.tree()[path][1:] == ("0o755", 1001, 0, twice)
    assert second.tree()["tmp/artifacts"][1:] == ("0o755", 1001, 0)
    alone = (*words, "--incremental-pull-policy=never")
    bench.build(source, builder, *alone)
    assert_same_image(bench.build(source, builder, *alone), second)


@better("dockerfile.incremental-needs-a-tag", "2")
def test_incremental_needs_a_tag(bench: Bench, source: Path, tmp_path: Path) -> None:
    done = bench.refuse(source, make_builder(tmp_path), "--incremental")
    assert done.code == 2
    assert "Image tag is missing for incremental build" in done.err


MAKES_ARTIFACTS = """\
#!/bin/sh
set -e
mkdir -p "$HOME/out/lib"
cd "$HOME/out"
echo program >program
chmod 700 program
echo text >lib/text
chmod 640 lib/text
ln -s text lib/link
chmod 700 lib
"""
ASSEMBLE_RUNTIME = """\
#!/bin/sh
set -e
test "$FROM_FILE" = file
id -u >made
"""


@better("dockerfile.runtime-image", "a second stage")
@pytest.mark.parametrize("own_script", ["none", "#!", "plain"])
def test_runtime_image_gets_the_artifacts(
    bench: Bench, source: Path, tmp_path: Path, own_script: str
) -> None:
    builder = make_builder(tmp_path, scripts={"assemble": MAKES_ARTIFACTS})
    runtime = tmp_path / "runtime"
    label = {"io.openshift.s2i.assemble-input-files": "/opt/app-root/src/out;" + HOME + "/out:bin"}
    busybox_builder(runtime, "r", user="1001", labels=label)
    if own_script != "none":
        text = ASSEMBLE_RUNTIME if own_script == "#!" else ASSEMBLE_RUNTIME.partition("\n")[2]
        (source / ".s2i/bin/assemble-runtime").write_text(text)
    words = ("app:1", "--runtime-image", f"oci:{runtime}:r")
    image = bench.bud(bench.export(source, builder, *words))
    assert_same_image(bench.build(source, builder, *words), image)
    tree = image.tree()
    for top in ("opt/app-root/src/out", "opt/app-root/src/bin/out"):
        assert tree[top][1:] == ("0o755", 1001, 0)
        assert tree[f"{top}/program"][1:4] == ("0o755", 1001, 0)
        assert tree[f"{top}/lib"][1:] == ("0o755", 1001, 0)
        assert tree[f"{top}/lib/text"][1:4] == ("0o644", 1001, 0)
        assert tree[f"{top}/lib/link"][1:] == (1001, 0, "text")
    assert ("opt/app-root/src/made" in tree) is (own_script != "none")
    assert "tmp/src" not in tree
    assert image.config["Cmd"] == [f"{HOME}/scripts/run"]
    assert image.config["User"] == "1001"
    assert image.config["Labels"]["io.openshift.s2i.build.image"] == builder
    assert "FROM_FILE=file" in image.config["Env"]


def test_incremental_with_a_runtime_image_is_refused(
    bench: Bench, source: Path, tmp_path: Path
) -> None:
    builder = make_builder(tmp_path)
    done = bench.refuse(source, builder, "app", "--incremental", "--runtime-image", builder)
    assert done.code == 2
    assert "cannot be written as a Dockerfile" in done.err


@same("generate")
@same("generate.no-source")
@same("generate --env")
@better("generate.labels", "those that a build writes")
def test_generated_dockerfile_builds_what_the_user_puts_into_it(
    bench: Bench, source: Path, tmp_path: Path
) -> None:
    builder = make_builder(tmp_path)
    dockerfile = bench.generate(builder)
    assert dockerfile == bench.directory / "out/Dockerfile"
    assert list((dockerfile.parent / "upload/src").iterdir()) == []
    page = dockerfile.parent / "upload/src/index.html"
    page.write_text("mine\n")
    image = bench.bud(dockerfile)
    assert f"{HOME}/index.html".lstrip("/") in image.tree()
    labels = image.config["Labels"]
    assert "io.k8s.description" not in labels
    assert labels["io.openshift.s2i.build.image"] == builder
    again = bench.generate(builder, "-e", "NEW=1")
    assert page.read_text() == "mine\n"
    assert 'ENV NEW="1"' in again.read_text()
    done = bench.refuse(source, builder)
    assert done.code == 2
    assert "holds a source that somebody put there" in done.err
    assert page.read_text() == "mine\n"


@better("generate --assemble-user", "the builder's by default")
@pytest.mark.parametrize(("flags", "user"), [((), "default"), (("--assemble-user", "7"), "7")])
def test_user_of_a_generated_dockerfile(
    bench: Bench, tmp_path: Path, flags: tuple[str, ...], user: str
) -> None:
    builder = make_builder(tmp_path, user="default")
    lines = bench.generate(builder, *flags).read_text().splitlines()
    chown = "7:0" if user == "7" else user
    assert f'COPY --chown={chown} ["upload/src", "/tmp/src"]' in lines
    assert [one for one in lines if one.startswith("USER")] == (
        ["USER 7", "USER default"] if user == "7" else []
    )


@same("generate --assemble-runtime-user")
@better("generate --quiet", "hides what is neither error nor warning")
def test_quiet_generate_says_nothing_and_the_runtime_user_changes_nothing(
    bench: Bench, tmp_path: Path
) -> None:
    builder = make_builder(tmp_path)
    text = bench.generate(builder).read_text()
    words = ("--assemble-runtime-user", "7", "--quiet")
    done = bench.ocis2i.ok("generate", builder, "other/", *words, cwd=bench.directory)
    assert done.err == ""
    assert Path(done.out.removesuffix("\n")).read_text() == text


@better("generate.current-directory", "nothing of it is read or removed")
def test_generate_leaves_the_current_directory_alone(bench: Bench, tmp_path: Path) -> None:
    (bench.directory / ".s2iignore").write_text("*\n")
    (bench.directory / "mine").write_text("mine")
    bench.generate(make_builder(tmp_path))
    assert (bench.directory / "mine").read_text() == "mine"


# --- what is written, and what never -----------------------------------------------------------


def written(directory: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(directory)): (
            path.lstat().st_mode,
            path.read_bytes() if path.is_file() and not path.is_symlink() else b"",
        )
        for path in sorted(directory.rglob("*"))
    }


@same("dockerfile.path")
def test_path_of_the_dockerfile(bench: Bench, source: Path, tmp_path: Path) -> None:
    builder = make_builder(tmp_path)
    for to, path in (
        ("new/dir/", "new/dir/Dockerfile"),
        ("new/dir", "new/dir/Dockerfile"),
        ("new/Containerfile", "new/Containerfile"),
        ("Other", "Other"),
    ):
        found = bench.export(source, builder, to=to)
        assert found == bench.directory / path
        assert found.is_file()
        assert (found.parent / "upload/src/index.html").is_file()


@better("dockerfile.again", "all is replaced, and nothing that somebody else made")
@better("dockerfile.same-bytes", "the same file")
def test_export_twice_writes_the_same_and_leaves_nothing_of_before(
    bench: Bench, source: Path, tmp_path: Path
) -> None:
    builder = make_builder(tmp_path)
    words = ("app:1", "-e", "B=2", "-e", "A=1", "--description", "d", "-n", "name")
    first = bench.export(source, builder, *words, to="one/")
    other = bench.export(source, builder, *words, to="two/")
    assert written(first.parent) == written(other.parent)
    assert first.stat().st_mode & 0o777 == 0o644
    before = written(first.parent)
    (source / "gone").mkdir()
    (source / "gone/soon").write_text("")
    (source / "gone").chmod(0o555)
    bench.export(source, builder, *words, to="one/")
    assert "upload/src/gone/soon" in written(first.parent)
    (source / "gone").chmod(0o755)
    (source / "gone/soon").unlink()
    (source / "gone").rmdir()
    bench.export(source, builder, *words, to="one")
    assert written(first.parent) == before


@better("dockerfile.again", "all is replaced, and nothing that somebody else made")
@pytest.mark.parametrize("mine", ["Dockerfile", "upload/src/page", "upload"])
def test_what_others_made_is_never_replaced(
    bench: Bench, source: Path, tmp_path: Path, mine: str
) -> None:
    builder = make_builder(tmp_path)
    path = bench.directory / "out" / mine
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    done = bench.refuse(source, builder)
    assert done.code == 2
    assert "ocis2i did not make it" in done.err
    assert path.read_text() == "mine"
    assert {one.name for one in (bench.directory / "out").iterdir()} == {mine.partition("/")[0]}


def test_failure_leaves_nothing(bench: Bench, source: Path, tmp_path: Path) -> None:
    builder = make_builder(tmp_path)
    done = bench.refuse(source, builder, "-e", "A=two\nlines", to="new/deep/")
    assert done.code == 2
    assert "line break" in done.err
    assert not (bench.directory / "new").exists()


@same("dockerfile.inside-the-source")
def test_dockerfile_inside_the_source_is_refused(
    bench: Bench, source: Path, tmp_path: Path
) -> None:
    builder = make_builder(tmp_path)
    (bench.directory / "link").symlink_to(source)
    before = written(source)
    for target in (source / "Dockerfile2", f"{source}/sub/out/", "link/out/"):
        done = bench.refuse(source, builder, to=str(target))
        assert done.code == 2
        assert "inside the source" in done.err
    assert written(source) == before


@better("dockerfile.context", "`.git` is never in it")
def test_git_directory_is_not_in_the_context(bench: Bench, source: Path, tmp_path: Path) -> None:
    for words in (
        ("init", "-q", "-b", "main"),
        ("add", "-f", "."),
        ("-c", "user.name=A", "-c", "user.email=a@b", "commit", "-q", "-m", "first $HOME"),
    ):
        subprocess.run(["git", *words], cwd=source, check=True, timeout=60)
    builder = make_builder(tmp_path)
    dockerfile = bench.export(source, builder)
    assert not list(dockerfile.parent.rglob(".git"))
    assert '"first \\$HOME"' in dockerfile.read_text()
    assert set(written(dockerfile.parent)) == {
        "Dockerfile",
        "upload",
        "upload/.ocis2i",
        "upload/empty",
        "upload/scripts",
        "upload/scripts/run",
        "upload/src",
        "upload/src/.dockerignore",
        "upload/src/.s2i",
        "upload/src/.s2i/bin",
        "upload/src/.s2i/environment",
        "upload/src/.s2iignore",
        "upload/src/Dockerfile",
        "upload/src/dangling",
        "upload/src/index.html",
        "upload/src/sub",
        "upload/src/sub/secret",
        "upload/src/sub/tool",
    }


@same("dockerfile.no-engine")
def test_no_layer_is_fetched_and_nothing_is_run(bench: Bench, source: Path, tmp_path: Path) -> None:
    location = make_builder(tmp_path)
    with FakeRegistry() as registry:
        name = offer(registry, location, "team/builder", "1")
        dockerfile = bench.export(source, name, "--no-tls-verify")
        assert len(registry.requests("GET", "/manifests/")) == 1
        assert len(registry.requests("GET", "/blobs/")) == 1  # the config
    assert f"FROM {name}" in dockerfile.read_text().splitlines()


@better("dockerfile.forbidden-user", "the result's user too")
@pytest.mark.parametrize("words", [("-u", "2000-"), ("-u", "1001", "--assemble-user", "0")])
def test_forbidden_user_is_refused(
    bench: Bench, source: Path, tmp_path: Path, words: tuple[str, ...]
) -> None:
    done = bench.refuse(source, make_builder(tmp_path), *words)
    assert done.code == 9
    assert done.document["reason"] == "AssembleUserForbidden"
    assert not (bench.directory / "out").exists()


def test_builder_that_cannot_be_had_is_blamed(bench: Bench, source: Path) -> None:
    done = bench.refuse(source, "no/image:1", "--pull-policy=never")
    assert done.code == 4
    assert done.document["reason"] == "PullBuilderImageFailed"


def test_runtime_image_that_cannot_be_had_is_blamed(
    bench: Bench, source: Path, tmp_path: Path
) -> None:
    words = ("--runtime-image=no/image:1", "--runtime-pull-policy=never")
    done = bench.refuse(source, make_builder(tmp_path), *words)
    assert done.code == 4
    assert done.document["reason"] == "PullRuntimeImageFailed"


@pytest.mark.parametrize("flags", [(), ("--ignore-onbuild",)])
def test_onbuild_is_refused(
    bench: Bench, source: Path, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    """Whoever builds the Dockerfile would run the triggers, whatever we ignore."""
    layout = tmp_path / "layout"
    make_layout(layout, "b", [Layer().dir("etc")], {"OnBuild": ["RUN x"]})
    done = bench.refuse(source, f"oci:{layout}:b", *flags)
    assert done.code == 9
    assert done.document["reason"] == "OnBuildForbidden"


@same("dockerfile.image-scripts")
@same("--image-scripts-url")
def test_place_of_the_images_scripts(bench: Bench, source: Path, tmp_path: Path) -> None:
    (source / ".s2i/bin/run").unlink()
    layout = tmp_path / "layout"
    bare = [Layer().dir("etc")]
    label = {"Labels": {"io.openshift.s2i.scripts-url": "image:///of/label"}}
    make_layout(layout, "bare", bare)
    make_layout(layout, "labelled", bare, label)
    other = ("--image-scripts-url", "image:///elsewhere")
    flag = ("--scripts-url", "image:///of/flag", *other)
    for image, flags, place in (
        ("bare", (), "/usr/libexec/s2i"),
        ("bare", other, "/elsewhere"),
        ("labelled", other, "/of/label"),
        ("labelled", flag, "/of/flag"),
    ):
        text = bench.export(source, f"oci:{layout}:{image}", *flags).read_text()
        assert f'RUN ["{place}/assemble"]' in text
        assert f'CMD ["{place}/run"]' in text


@same("dockerfile.scripts")
def test_scripts_of_the_host_are_copied_and_those_of_the_image_are_not(
    bench: Bench, source: Path, tmp_path: Path
) -> None:
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts/assemble").write_text("#!/bin/sh\n")
    words = ("--scripts-url", f"file://{tmp_path}/scripts")
    dockerfile = bench.export(source, make_builder(tmp_path), *words)
    lines = dockerfile.read_text().splitlines()
    assert 'COPY --chown=1001:0 ["upload/scripts", "/tmp/scripts"]' in lines
    assert 'RUN ["/tmp/scripts/assemble"]' in lines
    assert 'CMD ["/tmp/scripts/run"]' in lines
    scripts = dockerfile.parent / "upload/scripts"
    assert {one.name: one.stat().st_mode & 0o777 for one in scripts.iterdir()} == {
        "assemble": 0o755,
        "run": 0o755,
    }


@better("dockerfile.ignored-flags", "they are in the command that the file names, or warned of")
def test_flags_of_the_container_are_flags_of_buildah(
    bench: Bench, source: Path, tmp_path: Path
) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    volume.chmod(0o755)
    (volume / "file").write_text("of the host\n")
    lines = ("cat /mounted/file", "grep '^192.0.2.7[[:space:]]*db' /etc/hosts")
    script = "\n".join(["#!/bin/sh", "set -e", *lines, 'touch "$HOME/made"', ""])
    builder = make_builder(tmp_path, scripts={"assemble": script})
    words: tuple[str, ...] = ("--volume", f"{volume}:/mounted:ro", "--add-host", "db:192.0.2.7")
    words = (*words, "--cap-drop", "CHOWN,kill")
    dockerfile = bench.export(source, builder, *words)
    command = command_of(dockerfile)
    assert shlex.join(command).count(f"--volume {volume}:/mounted:ro") == 1
    assert "--cap-drop CAP_CHOWN --cap-drop CAP_KILL" in shlex.join(command)
    assert "--add-host db:192.0.2.7" in shlex.join(command)
    image = bench.bud(dockerfile)
    assert "opt/app-root/src/made" in image.tree()
    assert "mounted/file" not in image.tree()
    other = bench.export(source, builder, "--network", "none")
    assert "--network none" in shlex.join(command_of(other))


def test_flags_without_a_meaning_are_warned_of(bench: Bench, source: Path, tmp_path: Path) -> None:
    words = ("--push", "--prune-upload", "-o", f"oci:{tmp_path}/no")
    done = bench.ocis2i.ok(
        *("build", source, make_builder(tmp_path), "app", *words),
        *("--callback-url", "http://127.0.0.1:1/", "--as-dockerfile", "out/"),
        cwd=bench.directory,
    )
    assert warnings(done) == [
        f"{flag} has no meaning with --as-dockerfile"
        for flag in ("--prune-upload", "--push", "--output", "--callback-url")
    ]
    assert not (tmp_path / "no").exists()


@refused("--as-dockerfile --run", "there is no image yet")
def test_a_dockerfile_is_not_run(bench: Bench, source: Path, tmp_path: Path) -> None:
    done = bench.refuse(source, make_builder(tmp_path), "app", "--run")
    assert done.code == 2
    assert "--run and --as-dockerfile exclude each other" in done.err
