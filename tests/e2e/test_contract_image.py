"""The image that a build makes: every entry of its layer, every field of its config, its labels."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.contract import better, refused, same
from tests.fakes.bench import RUN, Bench, content, facts, sh, told
from tests.fakes.images import BUSYBOX, HOME, Layer, LayoutImage, make_layout
from tests.fakes.images import _architecture as architecture
from tests.fakes.images import _busybox_layer as busybox_layer
from tests.fakes.images import _scripts_layer as scripts_layer

pytestmark = [
    pytest.mark.sandbox,
    pytest.mark.skipif(not BUSYBOX.exists(), reason="busybox-static is not installed"),
]

Json = dict[str, Any]
S2I = "io.openshift.s2i."
SCRIPTS_URL = f"{S2I}scripts-url"


def document(image: LayoutImage) -> Json:
    """The whole image config."""
    value: Json = json.loads(image.blob(image.manifest["config"]["digest"]).read_bytes())
    return value


# --- every entry ------------------------------------------------------------------------------

SAVE = '#!/bin/sh\ncd "$HOME"\nexec tar -cf - cache\n'
ASSEMBLE = """\
#!/bin/sh
set -e
mkdir -p "$HOME/cache/deep"
[ -e "$HOME/cache/file" ] || echo saved >"$HOME/cache/file"
chmod 600 "$HOME/cache/file"
cp /tmp/src/index.html "$HOME/"
mkdir -p "$HOME/out/lib"
cp /tmp/src/index.html "$HOME/out/lib/page"
printf 'program' >"$HOME/out/program"
chmod 700 "$HOME/out/program" "$HOME/out/lib"
ln -s lib/page "$HOME/out/link"
"""


@pytest.fixture
def source(bench: Bench) -> Path:
    """A source with every kind of entry and many modes, and all scripts."""
    scripts = {f".s2i/bin/{name}": text for name, text in (("save-artifacts", SAVE), ("run", RUN))}
    root = bench.source(
        {"empty/x": "", "tool": "#!/bin/sh\n", "secret": "", "deep/er/page": "", "open": ""}
        | scripts
        | {".s2i/bin/assemble": ASSEMBLE, ".s2i/environment": "A=1\n", ".s2i/bin/other": ""}
    )
    (root / "empty/x").unlink()
    (root / "link").symlink_to("deep/er")
    (root / "dangling").symlink_to("/nowhere/at all")
    for name, mode in (
        ("tool", 0o755),
        ("secret", 0o400),
        ("open", 0o666),
        ("deep", 0o711),
        ("deep/er", 0o2775),
        ("index.html", 0o640),
        (".", 0o700),
    ):
        (root / name).chmod(mode)
    return root


ABOVE = {
    "opt": "0755 0:0",
    "opt/app-root": "0775 1001:0",
    "opt/app-root/src": "0775 1001:0",
}
OURS = "1001:0"


@same("upload.layout")
@same("image.leftovers")
@same("image.scripts-stay")
@same("incremental.modes")
def test_every_entry_of_the_layer_has_the_expected_mode_and_owner(
    bench: Bench, source: Path
) -> None:
    builder = bench.image("builder", sh())
    secrets = bench.directory / "secrets"
    (secrets / "below").mkdir(parents=True)
    (secrets / "token").write_text("a secret of the test")
    (secrets / "below/other").write_text("another secret of the test")
    words: tuple[str, ...] = ("--copy", "--keep-symlinks", "--inject", f"{secrets}:/etc/injected")
    words = (*words, "--inject", f"{secrets}/token:one")
    bench.ocis2i.ok("build", source, builder, bench.tag, *words)
    bench.ocis2i.ok("build", source, builder, bench.tag, *words, "--incremental")
    found = facts(bench.result())
    names = {name: found.pop(name) for name in list(found) if name.startswith("etc")}
    assert found == {
        **ABOVE,
        "opt/app-root/src/cache": f"0755 {OURS}",
        "opt/app-root/src/cache/deep": f"0755 {OURS}",
        "opt/app-root/src/cache/file": f"0600 {OURS}",
        "opt/app-root/src/index.html": f"0640 {OURS}",
        "opt/app-root/src/one": f"0644 {OURS}",
        "opt/app-root/src/out": f"0755 {OURS}",
        "opt/app-root/src/out/lib": f"0700 {OURS}",
        "opt/app-root/src/out/lib/page": f"0640 {OURS}",
        "opt/app-root/src/out/link": "-> lib/page",
        "opt/app-root/src/out/program": f"0700 {OURS}",
        "tmp": "1777 0:0",
        "tmp/artifacts": f"0755 {OURS}",
        "tmp/artifacts/cache": f"0755 {OURS}",
        "tmp/artifacts/cache/deep": f"0755 {OURS}",
        "tmp/artifacts/cache/file": f"0600 {OURS}",
        "tmp/scripts": f"0755 {OURS}",
        "tmp/scripts/assemble": f"0755 {OURS}",
        "tmp/scripts/run": f"0755 {OURS}",
        "tmp/scripts/save-artifacts": f"0755 {OURS}",
        "tmp/src": f"0755 {OURS}",
        "tmp/src/.s2i": f"0755 {OURS}",
        "tmp/src/.s2i/bin": f"0755 {OURS}",
        "tmp/src/.s2i/bin/other": f"0644 {OURS}",
        "tmp/src/.s2i/environment": f"0644 {OURS}",
        "tmp/src/dangling": "-> /nowhere/at all",
        "tmp/src/deep": f"0711 {OURS}",
        "tmp/src/deep/er": f"2775 {OURS}",
        "tmp/src/deep/er/page": f"0644 {OURS}",
        "tmp/src/empty": f"0755 {OURS}",
        "tmp/src/index.html": f"0640 {OURS}",
        "tmp/src/link": "-> deep/er",
        "tmp/src/open": f"0666 {OURS}",
        "tmp/src/secret": f"0400 {OURS}",
        "tmp/src/tool": f"0755 {OURS}",
    }
    assert names == {
        "etc": "0755 0:0",
        "etc/injected": f"0755 {OURS}",
        "etc/injected/below": f"0755 {OURS}",
        "etc/injected/below/other": f"0644 {OURS}",
        "etc/injected/token": f"0644 {OURS}",
    }
    members = bench.result().members()
    assert [members[name].size for name in (*names, "opt/app-root/src/one")] == [0] * 6
    links = [one for one in members.values() if one.issym()]
    assert {(one.uid, one.gid) for one in links} == {(1001, 0)}


@same("runtime.modes")
@better("runtime.owner", "the user of assemble-runtime")
@better("runtime.marker", "there is none")
@same("runtime.nothing-of-the-builder")
@pytest.mark.parametrize("user", ["1001", "77:88"])
def test_every_entry_on_a_runtime_image_has_the_expected_mode_and_owner(
    bench: Bench, source: Path, user: str
) -> None:
    builder = bench.image("builder", sh())
    config = {"User": user, "WorkingDir": "/srv/www"}
    runtime = bench.image("runtime", {"run": RUN}, config, [Layer().dir("srv", mode=0o750)])
    words = ("--runtime-image", runtime, "-a", f"{HOME}/out:.;{HOME}/out/program:bin/deep")
    bench.ocis2i.ok("build", source, builder, bench.tag, *words)
    theirs = "1001:0" if user == "1001" else user
    assert facts(bench.result()) == {
        "srv": "0750 0:0",
        "srv/www": "0755 0:0",
        "srv/www/bin": f"0755 {theirs}",
        "srv/www/bin/deep": f"0755 {theirs}",
        "srv/www/bin/deep/program": f"0755 {theirs}",
        "srv/www/out": f"0755 {theirs}",
        "srv/www/out/lib": f"0755 {theirs}",
        "srv/www/out/lib/page": f"0644 {theirs}",
        "srv/www/out/link": "-> lib/page",
        "srv/www/out/program": f"0755 {theirs}",
        "srv/www/scripts": f"0755 {theirs}",
        "srv/www/scripts/run": f"0755 {theirs}",
    }
    assert bench.result().config["Cmd"] == ["/srv/www/scripts/run"]
    assert bench.result().config["User"] == user


@better("image.below-volumes", "it is in the layer")
def test_what_assemble_writes_below_a_volume(bench: Bench) -> None:
    data = Layer().dir("data").file("data/old", "of the builder")
    scripts = sh("echo new >/data/new", "rm /data/old")
    config = {"User": "0", "Volumes": {"/data": {}}}
    bench.built(bench.image("builder", scripts, config, [data]))
    assert bench.result().config["Volumes"] == {"/data": {}}
    assert {name for name in facts(bench.result()) if name.startswith("data")} == {
        "data",
        "data/.wh.old",
        "data/new",
    }


# --- every field ------------------------------------------------------------------------------

BASE_CONFIG: Json = {
    "User": "1001:0",
    "WorkingDir": HOME,
    "Env": ["PATH=/usr/bin:/bin", "B=image", "C=image", "EMPTY="],
    "Entrypoint": ["/bin/env"],
    "Cmd": ["/bin/sh", "-c", "usage"],
    "ExposedPorts": {"8080/tcp": {}, "53/udp": {}},
    "Volumes": {"/data": {}, "/cache": {}},
    "StopSignal": "SIGINT",
    "Healthcheck": {"Test": ["CMD", "true"], "Interval": 5_000_000_000},
    "Labels": {SCRIPTS_URL: "image:///usr/libexec/s2i", "vendor": "us", "io.k8s.description": "b"},
    "OnBuild": ["RUN no"],
    "Shell": ["/bin/bash", "-c"],
    "StopTimeout": 7,
    "ArgsEscaped": True,
    "Hostname": "abc",
    "Domainname": "example",
    "AttachStdout": True,
    "OpenStdin": True,
    "Tty": True,
    "Image": "sha256:old",
    "MacAddress": "00:00:00:00:00:00",
}
EXTRA: Json = {
    "author": "somebody",
    "container": "abc",
    "docker_version": "20",
    "variant": "v1",
    "os.version": "12.3",
    "os.features": ["x"],
}


@same("image.cmd")
@better("image.entrypoint", "none, so that `Cmd` alone is what runs")
@same("image.user")
@same("image.env")
@same("image.working-dir")
@same("image.ports-volumes-signal-health")
@same("image.dropped-fields")
@same("image.platform")
@same("image.one-layer")
@same("image.history")
@same("labels.inherited")
@better("image.created", "`--timestamp` and `SOURCE_DATE_EPOCH` count")
def test_every_field_of_the_config(bench: Bench) -> None:
    layers = [busybox_layer(), scripts_layer(sh("echo built >$HOME/made"))]
    path = bench.directory / "builder"
    platform = f"linux/{architecture()}"
    make_layout(path, "b", layers, BASE_CONFIG, platform=platform, extra=EXTRA)
    base = document(LayoutImage(path, "b"))
    bench.source({".s2i/environment": "A=file\nB=file\n"})
    flags: tuple[str, ...] = (
        "-e",
        "B=flag value",
        "-e",
        "NEW=1",
        "--ignore-onbuild",
        "--timestamp",
        "1700000000",
    )
    flags = (*flags, "--assemble-user", "1001", "--description", "of the app")
    bench.built(f"oci:{path}:b", *flags)
    found = document(bench.result())
    rootfs, history = found.pop("rootfs"), found.pop("history")
    assert found == {
        "created": "2023-11-14T22:13:20Z",
        "architecture": architecture(),
        "os": "linux",
        "variant": "v1",
        "os.version": "12.3",
        "os.features": ["x"],
        "config": {
            "User": "1001:0",
            "WorkingDir": HOME,
            "Env": ["A=file", "B=flag value", "NEW=1", "PATH=/usr/bin:/bin", "C=image", "EMPTY="],
            "Cmd": ["/usr/libexec/s2i/run"],
            "ExposedPorts": {"8080/tcp": {}, "53/udp": {}},
            "Volumes": {"/data": {}, "/cache": {}},
            "StopSignal": "SIGINT",
            "Healthcheck": {"Test": ["CMD", "true"], "Interval": 5_000_000_000},
            "Labels": {
                SCRIPTS_URL: "image:///usr/libexec/s2i",
                "vendor": "us",
                "io.k8s.description": "of the app",
                "io.k8s.display-name": bench.tag,
                f"{S2I}build.image": f"oci:{path}:b",
                f"{S2I}build.source-location": str(bench.source()),
            },
        },
    }
    assert rootfs["type"] == "layers"
    assert rootfs["diff_ids"][:-1] == base["rootfs"]["diff_ids"]
    assert len(rootfs["diff_ids"]) == len(layers) + 1
    assert history[:-1] == base["history"]
    assert history[-1] == {
        "created": "2023-11-14T22:13:20Z",
        "created_by": "/usr/libexec/s2i/assemble",
        "comment": "ocis2i build",
    }
    manifest, theirs = bench.result().manifest, LayoutImage(path, "b").manifest
    assert manifest["layers"][:-1] == theirs["layers"]
    assert manifest["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    assert set(manifest) == {"schemaVersion", "mediaType", "config", "layers"}


@better(
    "image.user-of-userless", "it stays without one, for the assemble user is of the build alone"
)
@pytest.mark.parametrize("kind", ["flag", "label"])
def test_assemble_user_is_not_the_user_of_an_image_without_one(bench: Bench, kind: str) -> None:
    labels = {SCRIPTS_URL: "image:///usr/libexec/s2i"}
    if kind == "label":
        labels[f"{S2I}assemble-user"] = "77"
    builder = bench.image("builder", sh('echo "id: $(id -u)"'), {"User": None, "Labels": labels})
    done = bench.built(builder, *(("--assemble-user", "77") if kind == "flag" else ()))
    assert told(done)["id"] == "77"
    assert "User" not in bench.result().config


@same("image.latest")
@same("--application-name")
def test_a_tag_without_a_version_is_latest_and_its_label_is_as_typed(bench: Bench) -> None:
    builder = bench.image("builder", sh())
    name = bench.tag.partition(":")[0]
    done = bench.ocis2i.ok("build", bench.source(), builder, f"team/{name}")
    assert done.out.startswith(f"docker.io/team/{name}@sha256:")
    (image,) = (
        one for one in bench.ocis2i.ok("images", "--json").document["images"] if name in one["name"]
    )
    assert image["name"] == f"docker.io/team/{name}:latest"
    result = LayoutImage(bench.ocis2i.layout, f"docker.io/team/{name}:latest")
    assert result.labels["io.k8s.display-name"] == f"team/{name}"


@refused("image.tag-with-digest", "the digest is not known before")
def test_a_tag_with_a_digest_is_refused(bench: Bench) -> None:
    builder = bench.image("builder", sh("echo ran"))
    name = f"app@sha256:{'0' * 64}"
    done = bench.ocis2i("build", bench.source(), builder, name)
    assert done.code == 2
    assert "its digest is not known yet" in done.err
    assert "\nran\n" not in done.err


# --- labels -----------------------------------------------------------------------------------


def git(directory: Path, *words: str) -> None:
    subprocess.run(["git", *words], cwd=directory, check=True, timeout=60, capture_output=True)


@same("io.openshift.s2i.build.image")
@same("io.openshift.s2i.build.commit.author")
@same("io.openshift.s2i.build.commit.date")
@same("io.openshift.s2i.build.commit.id")
@same("io.openshift.s2i.build.commit.ref")
@same("io.openshift.s2i.build.commit.message")
@same("io.openshift.s2i.build.source-location")
@same("io.openshift.s2i.build.source-context-dir")
@same("io.k8s.description")
@same("io.k8s.display-name")
def test_every_label_of_a_clone(bench: Bench) -> None:
    source = bench.source({"app/index.html": "hello\n"})
    subject = "A subject that is more than eighty columns long, for nobody reads about line lengths"
    who = ("-c", "user.name=Änne O'Neil", "-c", "user.email=a@example")
    git(source, "init", "-q", "-b", "main")
    git(source, "add", ".")
    git(
        source,
        *who,
        *("commit", "-q", "-m", f"{subject}\n\nand a body", "--date", "1700000000 +0100"),
    )
    commit = (source / ".git/refs/heads/main").read_text().strip()
    builder = bench.image("builder", sh(), {"Labels": {SCRIPTS_URL: "image:///usr/libexec/s2i"}})
    bench.ocis2i.ok(
        *("build", f"file://{source}", builder, bench.tag),
        *("--context-dir", "app", "--description", "It's $HOME", "-n", "The App"),
    )
    assert bench.result().labels == {
        SCRIPTS_URL: "image:///usr/libexec/s2i",
        "io.k8s.description": "It's $HOME",
        "io.k8s.display-name": "The App",
        f"{S2I}build.image": builder,
        f"{S2I}build.commit.author": "Änne O'Neil <a@example>",
        f"{S2I}build.commit.date": "Tue Nov 14 23:13:20 2023 +0100",
        f"{S2I}build.commit.id": commit,
        f"{S2I}build.commit.message": subject[:78] + "..",
        f"{S2I}build.commit.ref": "main",
        f"{S2I}build.source-context-dir": "app",
        f"{S2I}build.source-location": f"file://{source}",
    }


@better("io.openshift.builder-version", "a label of the result too, which `inspect` shows")
@better("io.openshift.builder-base-version", "a label of the result too, which `inspect` shows")
def test_versions_of_the_builder_are_labels_of_the_result(bench: Bench) -> None:
    versions = {"io.openshift.builder-version": "1.2", "io.openshift.builder-base-version": "9"}
    config = {"Labels": versions | {SCRIPTS_URL: "image:///usr/libexec/s2i"}}
    bench.built(bench.image("builder", sh(), config))
    shown = json.loads(bench.ocis2i.ok("inspect", bench.tag).out)["config"]["Labels"]
    assert shown.items() >= versions.items()


METADATA = "/tmp/.s2i/image_metadata.json"


def writes(*lines: str) -> dict[str, str | None]:
    return sh("mkdir -p /tmp/.s2i", *lines)


@same("labels.precedence")
@same("metadata.labels")
@same("metadata.stays")
def test_labels_of_base_build_and_assemble_in_this_order(bench: Bench) -> None:
    text = '{"labels": [{"io.k8s.description": "assemble", "a": "1"}, {"a": "2", "b": ""}, {}]}'
    labels = dict.fromkeys(("a", "vendor", "io.k8s.description", "io.k8s.display-name"), "base")
    config = {"Labels": labels | {SCRIPTS_URL: "image:///usr/libexec/s2i"}}
    builder = bench.image("builder", writes(f"echo '{text}' >{METADATA}"), config)
    bench.built(builder, "--description", "flag", "--destination", "/opt/else")
    found = bench.result().labels
    assert found == {
        SCRIPTS_URL: "image:///usr/libexec/s2i",
        "a": "2",
        "b": "",
        "vendor": "base",
        "io.k8s.description": "assemble",
        "io.k8s.display-name": bench.tag,
        f"{S2I}build.image": builder,
        f"{S2I}build.source-location": str(bench.source()),
    }
    assert content(bench.result(), METADATA[1:]) == text + "\n"


@same("metadata.absent")
@pytest.mark.parametrize(
    "line", ["true", f"mkdir {METADATA}", f"mkfifo {METADATA}", f"ln -s x {METADATA}"]
)
def test_without_a_file_there_are_no_labels_of_it(bench: Bench, line: str) -> None:
    builder = bench.image("builder", writes(line))
    bench.built(builder)
    assert set(bench.result().labels) == {
        SCRIPTS_URL,
        "io.k8s.display-name",
        f"{S2I}build.image",
        f"{S2I}build.source-location",
    }


@same("metadata.labels")
def test_labels_of_a_file_that_the_builder_has(bench: Bench) -> None:
    baked = Layer().dir("tmp/.s2i").file(METADATA[1:], '{"labels": [{"baked": "in"}]}')
    bench.built(bench.image("builder", sh(), more_layers=[baked]))
    assert bench.result().labels["baked"] == "in"
    assert METADATA[1:] not in facts(bench.result())


@better("metadata.invalid", "one error for whatever is wrong")
@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("printf 'no json'", "image_metadata.json"),
        ("printf ''", "image_metadata.json"),
        ("printf '\\377\\376'", "image_metadata.json"),
        ("printf '[]'", "image_metadata.json"),
        ("printf '{}'", "is not a list of objects"),
        ("""printf '{"labels": {"a": "b"}}'""", "is not a list of objects"),
        ("""printf '{"labels": ["a"]}'""", "is not a list of objects"),
        ("""printf '{"labels": [{"a": 1}]}'""", "label `a`"),
        ("""printf '{"labels": [{"a": null}]}'""", "label `a`"),
        ("""printf '{"labels": [{"": "b"}]}'""", "label ``"),
        ("head -c 2000000 /dev/zero", "is larger than 1048576 bytes"),
        ("yes '[' | head -n 100000 | tr -d '\\n'", "image_metadata.json"),
    ],
)
def test_labels_that_are_none_fail_the_build(bench: Bench, line: str, words: str) -> None:
    builder = bench.image("builder", writes(f"{line} >{METADATA}"))
    done = bench.ocis2i("build", bench.source(), builder, bench.tag, "--json")
    assert done.code == 4, done.err
    assert words in done.document["message"]
    assert METADATA in done.document["message"]
    assert done.document["reason"] == "GenericS2IBuildFailed"
    assert "Traceback" not in done.err
    assert f"/{bench.tag}" not in (bench.ocis2i.layout / "index.json").read_text()


@better("metadata.links", "what the link means inside the image counts")
@same("security.metadata")
@pytest.mark.parametrize("link", ["file", "directory", "relative", "loop"])
def test_a_link_in_place_of_the_labels_reads_nothing_of_the_host(bench: Bench, link: str) -> None:
    canary = bench.directory / "canary"
    canary.mkdir()
    (canary / "image_metadata.json").write_text('{"labels": [{"stolen": "from the host"}]}')
    line = {
        "file": f"mkdir /tmp/.s2i; ln -s {canary}/image_metadata.json {METADATA}",
        "directory": f"ln -s {canary} /tmp/.s2i",
        "relative": f"ln -s {'../' * 20}{canary} /tmp/.s2i",
        "loop": "ln -s .s2i /tmp/.s2i",
    }[link]
    bench.built(bench.image("builder", sh(line)))
    assert "stolen" not in bench.result().labels


@better("metadata.links", "what the link means inside the image counts")
def test_a_link_in_place_of_the_labels_is_followed_in_the_image(bench: Bench) -> None:
    text = '{"labels": [{"found": "inside"}]}'
    builder = bench.image("builder", writes(f"echo '{text}' >$HOME/m", f"ln -s $HOME/m {METADATA}"))
    bench.built(builder)
    assert bench.result().labels["found"] == "inside"


@same("labels.limit")
@pytest.mark.parametrize(("more", "code"), [(0, 0), (1, 9)])
def test_labels_have_a_limit_in_bytes_together(bench: Bench, more: int, code: int) -> None:
    known = {
        SCRIPTS_URL: "image:///usr/libexec/s2i",
        "io.k8s.display-name": bench.tag,
        f"{S2I}build.image": f"oci:{bench.directory}/builder:builder:1",
        f"{S2I}build.source-location": str(bench.source()),
    }
    size = sum(len(key.encode()) + len(value.encode()) for key, value in known.items())
    free = 10240 - size - len("x") + more
    text = "é" * (free // 2) + "x" * (free % 2)
    labels = Layer().file("opt/labels", json.dumps({"labels": [{"x": text}]}))
    config = {"Labels": {SCRIPTS_URL: "image:///usr/libexec/s2i"}}
    builder = bench.image("builder", writes(f"cp /opt/labels {METADATA}"), config, [labels])
    done = bench.ocis2i("build", bench.source(), builder, bench.tag)
    assert done.code == code, done.err
    if code:
        assert "the labels have 10241 bytes, the limit is 10240" in done.err
        assert f"/{bench.tag}" not in (bench.ocis2i.layout / "index.json").read_text()
