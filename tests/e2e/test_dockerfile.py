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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from ocis2i.auth import Keychain
from ocis2i.errors import PolicyError, UsageError
from ocis2i.export import DEFAULT_IMAGE_SCRIPTS_URL, ExportSpec, RuntimeExport, export
from ocis2i.images import Places
from ocis2i.mappings import PathPair
from ocis2i.reference import parse_location
from ocis2i.registry import Registry
from ocis2i.settings import Settings
from ocis2i.sources import parse_source
from ocis2i.store import Store
from ocis2i.uids import parse_uid_ranges
from tests.conftest import needs
from tests.fakes.images import (
    HOME,
    Layer,
    busybox_builder,
    busybox_config,
    make_layout,
)
from tests.fakes.program import Program, program

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
    """A store for exports, and a storage for buildah."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
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
        """Runs a command line `buildah ...` with storage of its own."""
        storage = ("--root", f"{self.directory}/root", "--runroot", f"{self.directory}/runroot")
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

    def export(self, spec: ExportSpec, target: Path | str) -> Path:
        settings = Settings(self.directory / "store", self.directory)
        store = Store.open(settings.store_root)
        keychain = Keychain({}, authfile=None)
        with Registry(
            keychain, environment={}, tls_verify=True, report=lambda _event: None
        ) as registry:
            places = Places(store, registry, lambda _event: None)
            return export(spec, str(target), settings=settings, places=places, cwd=self.directory)

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


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    if os.geteuid() == 0:
        pytest.skip("the tests run as root; ocis2i builds as an ordinary user")
    directory = tmp_path / "bench"  # buildah 1.28 wants lower case
    directory.mkdir()
    yield Bench(directory)
    # Storage and store belong to subordinate ids in parts.
    subprocess.run(
        ["buildah", "unshare", "rm", "-rf", directory / "root", directory / "store"],
        env={"PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin", "HOME": str(directory)},
        check=True,
        timeout=60,
    )


@pytest.fixture
def direct(tmp_path: Path) -> Iterator[Program]:
    directory = tmp_path / "direct"
    directory.mkdir()
    with program(directory) as running:
        yield running


def build(direct: Program, source: Path, builder: str, *arguments: str) -> Built:
    layout = direct.store.parent / "layout"
    direct.ok("build", source, builder, *arguments, "-o", f"oci:{layout}:app")
    return Built(layout)


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
NOT_OURS = {"etc/resolv.conf", "run/.containerenv"}


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


def local(path: Path) -> Any:
    return parse_source(str(path), cwd=path.parent)


def make_builder(directory: Path, **more: Any) -> str:
    layout = directory / "builder"
    old = Layer().file("opt/app-root/src/old", "old", uid=1001)
    more = {"scripts": {"assemble": ASSEMBLE}, "more_layers": [old]} | more
    busybox_builder(layout, "builder:latest", **more)
    return f"oci:{layout}:builder:latest"


def spec_of(source: Path | None, builder: str, **more: Any) -> ExportSpec:
    place = local(source) if source else None
    return ExportSpec(place, parse_location(builder), **more)


# --- the same image ------------------------------------------------------------------------------


def test_dockerfile_builds_the_image_of_the_direct_build(
    bench: Bench, direct: Program, source: Path, tmp_path: Path
) -> None:
    builder = make_builder(tmp_path, env=["BOTH=image", "IMAGE=image"])
    words = ("app:1", "-e", f"NASTY={NASTY}", "-e", "EMPTY=", "--description", NASTY)
    ours = build(direct, source, builder, *words)
    spec = spec_of(
        source,
        builder,
        tag="app:1",
        environment={"NASTY": NASTY, "EMPTY": ""},
        description=NASTY,
    )
    theirs = bench.bud(bench.export(spec, "out/"))
    assert_same_image(ours, theirs)
    assert theirs.config["Cmd"] == ["/tmp/scripts/run"]
    assert theirs.config["Labels"]["io.k8s.description"] == NASTY
    tree = theirs.tree()
    assert tree["tmp/src/sub"][1:4] == ("0o711", 1001, 0)
    assert tree["tmp/scripts/run"][1:4] == ("0o755", 1001, 0)
    assert "tmp/src/ignored.log" not in tree
    assert "opt/app-root/src/old" not in tree


@pytest.mark.parametrize(
    ("image_user", "assemble_user"),
    [("", "1001"), ("default", None), ("1001", "0"), ("", None), ("0:0", "1001:1001")],
)
def test_users_and_owners_are_those_of_the_direct_build(
    bench: Bench,
    direct: Program,
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
    flags = ("--assemble-user", assemble_user) if assemble_user else ()
    ours = build(direct, source, builder, "app:1", *flags)
    spec = spec_of(source, builder, tag="app:1", assemble_user=assemble_user)
    theirs = bench.bud(bench.export(spec, "out/"))
    assert_same_image(ours, theirs)
    assert theirs.config.get("User", "") == image_user


@pytest.mark.parametrize("destination", ["/opt/s2i", "/new/deep down/$here", "/opt/app-root/src"])
def test_destination_is_made_as_in_the_direct_build(
    bench: Bench, direct: Program, source: Path, tmp_path: Path, destination: str
) -> None:
    label = {"io.openshift.s2i.destination": destination}
    builder = make_builder(
        tmp_path, labels=label, scripts={"assemble": '#!/bin/sh\ntouch "$HOME/made"\n'}
    )
    ours = build(direct, source, builder, "app:1")
    theirs = bench.bud(bench.export(spec_of(source, builder, tag="app:1"), "out/"))
    assert_same_image(ours, theirs)
    assert theirs.config["Cmd"] == [f"{destination}/scripts/run"]


def test_entrypoint_of_the_builder_is_cleared(
    bench: Bench, direct: Program, source: Path, tmp_path: Path
) -> None:
    make_builder(tmp_path)
    layers = [_as_layer(data) for data in Built(tmp_path / "builder").layers]
    config = busybox_config() | {"Entrypoint": ["/not/there"], "StopSignal": "SIGINT"}
    make_layout(tmp_path / "other", "b", layers, config)
    location = f"oci:{tmp_path / 'other'}:b"
    ours = build(direct, source, location, "app:1")
    theirs = bench.bud(bench.export(spec_of(source, location, tag="app:1"), "out/"))
    assert_same_image(ours, theirs)
    assert "Entrypoint" not in theirs.config
    assert theirs.config["StopSignal"] == "SIGINT"


def _as_layer(data: bytes) -> Layer:
    layer = Layer()
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for member in archive:
            stream = archive.extractfile(member) if member.isreg() else None
            layer.raw(member, stream.read() if stream else b"")
    return layer


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


@pytest.mark.parametrize("user", ["1001", "default"])
def test_secrets_reach_assemble_and_no_layer(
    bench: Bench, source: Path, tmp_path: Path, user: str
) -> None:
    secrets = tmp_path / "secrets"
    (secrets / "deep").mkdir(parents=True)
    (secrets / "token").write_text(SECRET)
    (secrets / "deep/other").write_text(SECRET)
    builder = make_builder(tmp_path, scripts={"assemble": SEES_SECRETS}, user=user)
    spec = spec_of(
        source,
        builder,
        tag="app:1",
        injections=(
            PathPair(str(secrets), "/tmp/injected"),
            PathPair(str(secrets / "token"), "one"),
        ),
        secret_variables=("TOKEN",),
    )
    dockerfile = bench.export(spec, "out/")
    text = dockerfile.read_text()
    assert SECRET not in text
    context = [one.read_bytes() for one in dockerfile.parent.rglob("*") if one.is_file()]
    assert not any(SECRET.encode() in data for data in context)
    image = bench.bud(dockerfile, TOKEN=SECRET)
    assert not image.holds(SECRET.encode())
    assert not any(one.startswith("TOKEN=") for one in image.config["Env"])
    tree = image.tree()
    nothing = hashlib.sha256(b"").hexdigest()
    assert f"{HOME}/seen".lstrip("/") in tree
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


def test_incremental_goes_on_from_the_previous_image(
    bench: Bench, source: Path, tmp_path: Path
) -> None:
    scripts = {"assemble": COUNTS, "save-artifacts": SAVES}
    builder = make_builder(tmp_path, scripts=scripts)
    spec = spec_of(source, builder, tag="app:1", incremental=True)
    dockerfile = bench.export(spec, "out/")
    first = bench.bud(dockerfile, "--build-arg", f"PREVIOUS={builder}")
    second = bench.bud(dockerfile)
    path = f"{HOME}/cache/count".lstrip("/")
    once, twice = (hashlib.sha256(b"one more\n" * count).hexdigest() for count in (1, 2))
    assert first.tree()[path][1:] == ("0o755", 1001, 0, once)
    assert second.tree()[path][1:] == ("0o755", 1001, 0, twice)
    assert second.tree()["tmp/artifacts"][1:] == ("0o755", 1001, 0)


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


@pytest.mark.parametrize("own_script", [True, False])
def test_runtime_image_gets_the_artifacts(
    bench: Bench, source: Path, tmp_path: Path, own_script: bool
) -> None:
    builder = make_builder(tmp_path, scripts={"assemble": MAKES_ARTIFACTS})
    runtime = tmp_path / "runtime"
    label = {"io.openshift.s2i.assemble-input-files": "/opt/app-root/src/out;" + HOME + "/out:bin"}
    busybox_builder(runtime, "r", user="1001", labels=label)
    if own_script:
        (source / ".s2i/bin/assemble-runtime").write_text(ASSEMBLE_RUNTIME)
    spec = spec_of(
        source,
        builder,
        tag="app:1",
        runtime=RuntimeExport(parse_location(f"oci:{runtime}:r")),
    )
    image = bench.bud(bench.export(spec, "out/"))
    tree = image.tree()
    for top in ("opt/app-root/src/out", "opt/app-root/src/bin/out"):
        assert tree[top][1:] == ("0o755", 1001, 0)
        assert tree[f"{top}/program"][1:4] == ("0o755", 1001, 0)
        assert tree[f"{top}/lib"][1:] == ("0o755", 1001, 0)
        assert tree[f"{top}/lib/text"][1:4] == ("0o644", 1001, 0)
        assert tree[f"{top}/lib/link"][1:] == (1001, 0, "text")
    assert ("opt/app-root/src/made" in tree) is own_script
    assert "tmp/src" not in tree
    assert image.config["Cmd"] == [f"{HOME}/scripts/run"]
    assert image.config["User"] == "1001"
    assert image.config["Labels"]["io.openshift.s2i.build.image"] == builder
    assert "FROM_FILE=file" in image.config["Env"]


def test_generated_dockerfile_builds_what_the_user_puts_into_it(
    bench: Bench, source: Path, tmp_path: Path
) -> None:
    builder = make_builder(tmp_path)
    dockerfile = bench.export(spec_of(None, builder), "out/")
    assert list((dockerfile.parent / "upload/src").iterdir()) == []
    page = dockerfile.parent / "upload/src/index.html"
    page.write_text("mine\n")
    image = bench.bud(dockerfile)
    assert f"{HOME}/index.html".lstrip("/") in image.tree()
    labels = image.config["Labels"]
    assert "io.k8s.description" not in labels
    assert labels["io.openshift.s2i.build.image"] == builder
    again = bench.export(spec_of(None, builder, environment={"NEW": "1"}), "out/")
    assert page.read_text() == "mine\n"
    assert 'ENV NEW="1"' in again.read_text()
    with pytest.raises(UsageError, match="holds a source that somebody put there"):
        bench.export(spec_of(source, builder), "out/")


# --- what is written, and what never -----------------------------------------------------------


def written(directory: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(directory)): (
            path.lstat().st_mode,
            path.read_bytes() if path.is_file() and not path.is_symlink() else b"",
        )
        for path in sorted(directory.rglob("*"))
    }


def test_export_twice_writes_the_same_and_leaves_nothing_of_before(
    bench: Bench, source: Path, tmp_path: Path
) -> None:
    builder = make_builder(tmp_path)
    spec = spec_of(source, builder, tag="app:1", environment={"B": "2", "A": "1"})
    first = bench.export(spec, "one/")
    other = bench.export(spec, "two/")
    assert written(first.parent) == written(other.parent)
    assert first.stat().st_mode & 0o777 == 0o644
    before = written(first.parent)
    (source / "gone").mkdir()
    (source / "gone/soon").write_text("")
    (source / "gone").chmod(0o555)
    bench.export(spec, "one/")
    (source / "gone").chmod(0o755)
    (source / "gone/soon").unlink()
    (source / "gone").rmdir()
    bench.export(spec, "one")
    assert written(first.parent) == before


@pytest.mark.parametrize("mine", ["Dockerfile", "upload/src/page", "upload"])
def test_what_others_made_is_never_replaced(
    bench: Bench, source: Path, tmp_path: Path, mine: str
) -> None:
    builder = make_builder(tmp_path)
    path = bench.directory / "out" / mine
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(UsageError, match="ocis2i did not make it"):
        bench.export(spec_of(source, builder), "out/")
    assert path.read_text() == "mine"
    assert {one.name for one in (bench.directory / "out").iterdir()} == {mine.partition("/")[0]}


def test_failure_leaves_nothing(bench: Bench, source: Path, tmp_path: Path) -> None:
    builder = make_builder(tmp_path)
    spec = replace(spec_of(source, builder), environment={"A": "two\nlines"})
    with pytest.raises(UsageError, match="line break"):
        bench.export(spec, "new/deep/")
    assert not (bench.directory / "new").exists()


def test_dockerfile_inside_the_source_is_refused(
    bench: Bench, source: Path, tmp_path: Path
) -> None:
    builder = make_builder(tmp_path)
    for target in (source / "Dockerfile2", source / "sub/out/"):
        with pytest.raises(UsageError, match="inside the source"):
            bench.export(spec_of(source, builder), f"{target}/")


def test_link_to_the_source_is_the_source(bench: Bench, source: Path, tmp_path: Path) -> None:
    builder = make_builder(tmp_path)
    (bench.directory / "link").symlink_to(source)
    with pytest.raises(UsageError, match="inside the source"):
        bench.export(spec_of(source, builder), "link/out/")


def test_git_directory_is_not_in_the_context(bench: Bench, source: Path, tmp_path: Path) -> None:
    for words in (
        ("init", "-q", "-b", "main"),
        ("add", "-f", "."),
        ("-c", "user.name=A", "-c", "user.email=a@b", "commit", "-q", "-m", "first $HOME"),
    ):
        subprocess.run(["git", *words], cwd=source, check=True, timeout=60)
    builder = make_builder(tmp_path)
    dockerfile = bench.export(spec_of(source, builder), "out/")
    assert not list(dockerfile.parent.rglob(".git"))
    assert '"first \\$HOME"' in dockerfile.read_text()
    assert {one.name for one in (dockerfile.parent / "upload").iterdir()} == {
        ".ocis2i",
        "empty",
        "scripts",
        "src",
    }


def test_forbidden_user_is_refused(bench: Bench, source: Path, tmp_path: Path) -> None:
    spec = spec_of(source, make_builder(tmp_path), allowed_uids=parse_uid_ranges("2000-"))
    with pytest.raises(PolicyError, match="1001") as caught:
        bench.export(spec, "out/")
    assert caught.value.reason == "AssembleUserForbidden"


def test_onbuild_is_refused(bench: Bench, source: Path, tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    make_layout(layout, "b", [Layer().dir("etc")], {"OnBuild": ["RUN x"]})
    with pytest.raises(PolicyError, match="ONBUILD") as caught:
        bench.export(spec_of(source, f"oci:{layout}:b"), "out/")
    assert caught.value.reason == "OnBuildForbidden"


def test_incremental_needs_a_tag(bench: Bench, source: Path, tmp_path: Path) -> None:
    builder = make_builder(tmp_path)
    with pytest.raises(UsageError, match="Image tag is missing for incremental build"):
        bench.export(spec_of(source, builder, incremental=True), "out/")


def test_builder_without_a_label_has_its_scripts_at_the_usual_place(
    bench: Bench, source: Path, tmp_path: Path
) -> None:
    (source / ".s2i/bin/run").unlink()
    layout = tmp_path / "layout"
    make_layout(layout, "b", [Layer().dir("etc")])
    builder = f"oci:{layout}:b"
    text = bench.export(spec_of(source, builder), "out/").read_text()
    usual = DEFAULT_IMAGE_SCRIPTS_URL.removeprefix("image://")
    assert f'RUN ["{usual}/assemble"]' in text
    assert f'CMD ["{usual}/run"]' in text
    other = spec_of(source, builder, image_scripts_url="image:///elsewhere")
    assert 'RUN ["/elsewhere/assemble"]' in bench.export(other, "out/").read_text()
