"""Sources and other files as artifacts: up into a registry, and down into builds again."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import oras.provider
import pytest

from ocis2i.errors import PolicyError, SourceError
from ocis2i.events import silent
from ocis2i.images import Places
from ocis2i.keychain import Keychain
from ocis2i.reference import Digest
from ocis2i.registries import Registries
from ocis2i.registry import Registry
from ocis2i.settings import Settings
from ocis2i.sources import fetch, parse_source
from ocis2i.store import Store
from tests.conftest import needs, needs_registry
from tests.fakes.bench import Bench, error, sh
from tests.fakes.docker_registry import RegistryUnderTest
from tests.fakes.images import BUSYBOX, Layer
from tests.fakes.judges import schema_check, skopeo_copy, skopeo_raw
from tests.fakes.program import Done, Program
from tests.fakes.registry import FakeRegistry

pytestmark = [
    pytest.mark.sandbox,
    pytest.mark.registry,
    pytest.mark.skipif(not BUSYBOX.exists(), reason="busybox-static is not installed"),
    needs_registry,
]

TITLE = "org.opencontainers.image.title"
UNPACK = "io.deis.oras.content.unpack"
SOURCE = "application/vnd.ocis2i.source.v1"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
EMPTY = "application/vnd.oci.empty.v1+json"

# Says what the source is, and puts it into the image with modes and times.
ASSEMBLE = ('find /tmp/src -mindepth 1 | sort | sed "s/^/file: /"', 'cp -a /tmp/src/. "$HOME/"')
SERVE = '#!/bin/sh\ncat "$HOME/index.html"\n'


@pytest.fixture(scope="module")
def builder(shared: Program, tmp_path_factory: pytest.TempPathFactory) -> str:
    bench = Bench(shared, tmp_path_factory.mktemp("builders"))
    return bench.image("builder", {**sh(*ASSEMBLE), "run": SERVE})


@pytest.fixture
def place(server: RegistryUnderTest, bench: Bench) -> str:
    """A name in the registry that is this test's own."""
    return f"{server.host}/sources/{bench.tag.partition(':')[0]}"


def files(done_err: str) -> list[str]:
    """What assemble found."""
    lines = [line for line in done_err.splitlines() if line.startswith("file: ")]
    return [line.removeprefix("file: /tmp/src/") for line in lines]


def tree(bench: Bench) -> Path:
    root = bench.source({"bin/start": "#!/bin/sh\n", "debug.log": "x", ".s2iignore": "*.log\n"})
    (root / "bin/start").chmod(0o750)
    (root / "missing").symlink_to("not/there")
    (root / "empty").mkdir(exist_ok=True)
    for path in (root, *root.rglob("*")):
        os.utime(path, (0, 1_400_000_000), follow_symlinks=False)
    return root


def attempted(bench: Bench, source: str, builder: str, *arguments: str) -> Done:
    """Fetches a source as for a build, without running anything."""
    to = f"{bench.directory}/out/"
    return bench.ocis2i("build", source, builder, bench.tag, *arguments, "--as-dockerfile", to)


def written(bench: Bench, source: str, builder: str, *arguments: str) -> Path:
    """What such a source becomes: where a Dockerfile would take it from."""
    done = attempted(bench, source, builder, *arguments)
    assert done.code == 0, done.err
    return bench.directory / "out/upload/src"


def fetched(
    source: str,
    directory: Path,
    *,
    context_dir: str | None = None,
    limit: str | None = None,
    registries: Registries | None = None,
) -> Path:
    """What such a source becomes, without a start of the program."""
    variables = {"OCIS2I_LAYER_LIMIT": limit} if limit else {}
    settings = Settings.from_environ({"HOME": str(directory), **variables}, root=None, rootfs=None)
    (directory / "into").mkdir()
    with Registry(Keychain({}), environment={}) as registry:
        store = Store.open(directory / "store")
        places = Places(store, registry, silent, registries=registries or Registries())
        wanted = parse_source(source, cwd=directory, context_dir=context_dir)
        fetch(wanted, directory / "into", settings=settings, report=silent, places=places)
    return directory / "into"


def names(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


# --- there and back -----------------------------------------------------------------------------


def test_build_from_the_artifact_is_the_build_from_the_directory(
    bench: Bench, builder: str, place: str
) -> None:
    root = tree(bench)
    pinned = bench.ocis2i.ok("upload", root, f"{place}:1").out.strip()
    assert pinned.startswith(f"{place}@sha256:")
    tag = bench.tag.partition(":")[0]
    # What is older keeps its time, what the build makes has this one.
    clamp = ("--timestamp", "1500000000")
    bench.ocis2i.ok("build", root, builder, f"{tag}:dir", *clamp)
    done = bench.ocis2i.ok("build", f"oci-artifact://{place}:1", builder, f"{tag}:tag", *clamp)
    assert files(done.err) == [
        ".s2iignore", "bin", "bin/start", "empty", "index.html", "missing",
    ]  # fmt: skip
    layer = bench.result(f"{tag}:dir").layers[-1]
    assert bench.result(f"{tag}:tag").layers[-1] == layer
    labels = bench.result(f"{tag}:tag").labels
    assert labels["io.openshift.s2i.build.source-location"] == f"oci-artifact://{pinned}"
    assert bench.ocis2i.ok("run", f"{tag}:tag").out == "hello\n"
    again = bench.ocis2i.ok("rebuild", f"{tag}:tag", f"{tag}:again", *clamp)
    assert "warning" not in again.err
    assert bench.result(f"{tag}:again").layers[-1] == layer


@needs("skopeo")
def test_same_tree_has_one_digest(bench: Bench, place: str) -> None:
    root = tree(bench)
    copy = bench.directory / "copy"
    shutil.copytree(root, copy, symlinks=True)
    (copy / "debug.log").write_text("another, and ignored")
    # What is later than this gets this time.
    os.utime(copy / "index.html", (0, 1_600_000_000))
    os.utime(root / "index.html", (0, 1_700_000_000))
    bench = bench.with_variables(SOURCE_DATE_EPOCH="1500000000")
    pinned = bench.ocis2i.ok("upload", root, place).out.strip()
    file = bench.directory / "digest"
    done = bench.ocis2i.ok("upload", copy, place, "--digest-file", file, "--json")
    assert done.document["reference"] == pinned == f"{place}@{file.read_text()}"
    assert done.document["artifact_type"] == SOURCE
    schema_check("artifact", skopeo_raw(pinned))


@needs("git")
def test_commit_has_one_artifact_that_says_which_it_is(
    bench: Bench, builder: str, place: str
) -> None:
    root = tree(bench)
    git = ("git", "-c", "user.name=A", "-c", "user.email=a@example", "-C", str(root))
    for command in (("init", "-q"), ("add", "-A"), ("commit", "-q", "-m", "first")):
        subprocess.run([*git, *command], check=True)
    clone = bench.directory / "clone"
    subprocess.run(["git", "clone", "-q", str(root), str(clone)], check=True)
    commit = subprocess.check_output([*git, "rev-parse", "HEAD"], text=True).strip()
    pinned = bench.ocis2i.ok("upload", root, place).out
    assert bench.ocis2i.ok("upload", clone, place).out == pinned
    annotations = json.loads(skopeo_raw(f"{place}:latest"))["annotations"]
    assert annotations["org.opencontainers.image.revision"] == commit
    assert str(bench.directory) not in json.dumps(annotations)
    assert ".git" not in names(written(bench, f"oci-artifact://{place}", builder))
    assert f'commit.id"="{commit}"' in (bench.directory / "out/Dockerfile").read_text()


@needs("skopeo")
def test_file_stays_the_file_it_is(bench: Bench, builder: str, place: str) -> None:
    program = bench.directory / "app.tar"
    program.write_bytes(b"\x7fELF and more")
    program.chmod(0o755)
    pinned = bench.ocis2i.ok("upload", program, place).out.strip()
    root = written(bench, f"oci-artifact://{pinned}", builder)
    assert names(root) == ["app.tar"]
    assert (root / "app.tar").read_bytes() == b"\x7fELF and more"
    assert (root / "app.tar").stat().st_mode & 0o777 == 0o755
    schema_check("artifact", skopeo_raw(pinned))


def test_part_of_an_artifact_is_a_source(tmp_path: Path, registry: FakeRegistry) -> None:
    layer = Layer().dir("web").file("web/index.html", "the web\n").file("other", "x")
    offer = offered(registry, blob(registry, layer.tar(), **{TITLE: ".", UNPACK: "true"}))
    root = fetched(offer, tmp_path, context_dir="web")
    assert names(root) == ["index.html"]
    assert (root / "index.html").read_text() == "the web\n"


def test_what_oras_has_pushed_is_built(
    bench: Bench, builder: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = bench.source({"static/style.css": "x\n"})
    monkeypatch.chdir(root)
    client = oras.provider.Registry(insecure=True)
    client.push(f"{place}:files", files=["index.html", "static/style.css"])
    root = written(bench, f"oci-artifact://{place}:files", builder)
    assert names(root) == ["index.html", "style.css"]
    assert (root / "index.html").read_text() == "hello\n"


def test_files_and_directories_of_others_come_together(
    tmp_path: Path, registry: FakeRegistry
) -> None:
    layer = Layer().dir("app").file("app/run", "x", mode=0o755)
    source = offered(
        registry,
        blob(registry, b"one", **{TITLE: "doc/one.txt"}),
        blob(registry, gzip.compress(layer.tar()), **{TITLE: "app", UNPACK: "true"}),
        blob(registry, b"without a name"),
    )
    root = fetched(source, tmp_path)
    assert names(root) == ["app", "app/run", "doc", "doc/one.txt"]
    assert (root / "app/run").stat().st_mode & 0o777 == 0o755
    assert (root / "doc/one.txt").read_text() == "one"


def test_short_name_means_what_it_means_for_images(tmp_path: Path, registry: FakeRegistry) -> None:
    offered(registry, blob(registry, b"one", **{TITLE: "one.txt"}))
    aliases = Registries(aliases={"mine": f"{registry.host}/foreign"})
    root = fetched("oci-artifact://mine:1", tmp_path, registries=aliases)
    assert names(root) == ["one.txt"]


# --- what is refused ----------------------------------------------------------------------------


def offered(registry: FakeRegistry, *layers: dict[str, Any], config: str = EMPTY) -> str:
    """An artifact of somebody else's; its place as a source."""
    blob = registry.put_blob("foreign", b"{}")
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": "application/vnd.example.v1",
        "config": {"mediaType": config, "digest": str(blob.digest), "size": 2},
        "layers": list(layers),
    }
    registry.put_manifest("foreign", "1", json.dumps(document).encode(), MANIFEST)
    return f"oci-artifact://{registry.host}/foreign:1"


def blob(registry: FakeRegistry, data: bytes, **annotations: str) -> dict[str, Any]:
    stored = registry.put_blob("foreign", data)
    return {
        "mediaType": "application/octet-stream",
        "digest": str(stored.digest),
        "size": stored.size,
        "annotations": annotations,
    }


@pytest.mark.parametrize("title", ["../evil", "/etc/evil", "a/../../evil", "a/\0b"])
def test_title_that_leads_out_is_refused(
    title: str, tmp_path: Path, registry: FakeRegistry
) -> None:
    source = offered(registry, blob(registry, b"x", **{TITLE: title}))
    with pytest.raises(SourceError, match="leads out of it"):
        fetched(source, tmp_path)


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (Layer().file("../evil", "x"), "leads out of it"),
        (Layer().symlink("way", "/etc").file("way/evil", "x"), "which is no directory"),
        (Layer().symlink("passwd", "/etc/passwd"), "leads out of the source"),
        (Layer().device("null"), "is a device"),
    ],
)
def test_tar_that_leads_out_is_refused(
    layer: Layer, said: str, tmp_path: Path, registry: FakeRegistry
) -> None:
    source = offered(registry, blob(registry, layer.tar(), **{TITLE: ".", UNPACK: "true"}))
    with pytest.raises(SourceError, match=said):
        fetched(source, tmp_path)


def test_artifact_over_the_limit_is_not_even_fetched(
    tmp_path: Path, registry: FakeRegistry
) -> None:
    source = offered(registry, blob(registry, bytes(2048), **{TITLE: "zeros"}))
    with pytest.raises(PolicyError, match="unpacks to more than 1024 bytes"):
        fetched(source, tmp_path, limit="1024")
    assert registry.requests("GET", "blobs") == []


def test_artifact_without_files_is_refused(
    bench: Bench, builder: str, registry: FakeRegistry
) -> None:
    done = attempted(bench, offered(registry, blob(registry, b"x")), builder)
    assert done.code == 3
    assert "of type `application/vnd.example.v1` has no files" in error(done)


def test_image_is_no_source(tmp_path: Path, registry: FakeRegistry) -> None:
    image = "application/vnd.oci.image.config.v1+json"
    source = offered(registry, blob(registry, b"x"), config=image)
    with pytest.raises(SourceError, match="is a container image, not an artifact"):
        fetched(source, tmp_path)


def test_blob_that_was_changed_in_the_registry_is_refused(
    bench: Bench, builder: str, place: str, server: RegistryUnderTest
) -> None:
    pinned = bench.ocis2i.ok("upload", bench.source(), place).out.strip()
    (layer,) = json.loads(skopeo_raw(pinned))["layers"]
    _, _, hexadecimal = layer["digest"].partition(":")
    stored = server.storage / "docker/registry/v2/blobs/sha256" / hexadecimal[:2] / hexadecimal
    data = (stored / "data").read_bytes()
    (stored / "data").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    done = attempted(bench, f"oci-artifact://{pinned}", builder)
    assert done.code == 5
    assert layer["digest"] in error(done)
    (stored / "data").unlink()


def test_wrong_words_are_explained(bench: Bench) -> None:
    (bench.directory / "file").write_text("x")
    for arguments, code, said in (
        (("upload", ".", f"host/x@sha256:{'0' * 64}"), 2, "its digest is not known yet"),
        (("upload", "file", "127.0.0.1:1/x", "--context-dir", "x"), 2, "for a file"),
        (("upload", "file", "127.0.0.1:1/x", "--registry-timeout", "60s"), 5, "127.0.0.1:1"),
        (("attach", "127.0.0.1:1/x", "file", "--type", "sbom"), 2, "no media type"),
        (("attach", "127.0.0.1:1/x", "nothing", "--type", "a/b"), 3, "is no file"),
        (("attach", "oci:dir", "file", "--type", "a/b"), 2, "is not in a registry"),
        (("referrers", "127.0.0.1:1/x", "--registry-timeout", "x"), 2, "--registry-timeout"),
    ):
        done = bench.ocis2i(*arguments, cwd=bench.directory)
        assert done.code == code, done.err
        assert said in error(done)


def test_wrong_digest_and_missing_tag_are_told_apart_from_trouble(
    bench: Bench, builder: str, place: str
) -> None:
    bench.ocis2i.ok("upload", bench.source(), place)
    for target in (f"{place}:other", f"{place}@sha256:{'0' * 64}"):
        done = attempted(bench, f"oci-artifact://{target}", builder)
        assert done.code == 5
        assert "MANIFEST_UNKNOWN" in error(done)


# --- referrers ----------------------------------------------------------------------------------


@needs("skopeo")
def test_attached_files_are_listed_by_a_registry_that_knows_no_referrers(
    bench: Bench, builder: str, place: str
) -> None:
    # Copied as it is, as any other program would have put it there.
    skopeo_copy(builder, f"docker://{place}:1", "--dest-tls-verify=false")
    image = f"{place}@{Digest.of(skopeo_raw(f'{place}:1'))}"
    sbom = bench.directory / "sbom.json"
    sbom.write_text("{}\n")
    spdx, other = "application/spdx+json", "application/vnd.example.v1"
    attached = bench.ocis2i.ok("attach", f"{place}:1", sbom, "--type", spdx).out
    assert bench.ocis2i.ok("attach", image, sbom, "--type", spdx).out == attached
    bench.ocis2i.ok("attach", image, sbom, "--type", other)
    manifest = skopeo_raw(attached.strip())
    schema_check("artifact", manifest)
    assert json.loads(manifest)["subject"]["digest"] == image.partition("@")[2]
    digest = image.partition("@sha256:")[2]
    schema_check("index", skopeo_raw(f"{place}:sha256-{digest}"))
    found = bench.ocis2i.ok("referrers", f"{place}:1", "--json").document
    assert found["subject"] == image
    assert [one["artifact_type"] for one in found["referrers"]] == [spdx, other]
    only = bench.ocis2i.ok("referrers", image, "--type", spdx).out
    assert attached.strip().partition("@")[2] in only
    assert other not in only
