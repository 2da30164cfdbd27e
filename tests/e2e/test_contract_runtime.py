"""Runtime images by the S2I contract: what moves there, what runs there, what the result is.

Most tests look at one build, of a small tree of artifacts with all kinds of files in it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import RUNC, needs, needs_registry
from tests.contract import better, same
from tests.e2e.test_contract_incremental import _new, assert_one_build_left, kill_in_the_middle
from tests.fakes.bench import RUN, Bench, content, facts, offer, told, warnings
from tests.fakes.docker_registry import docker_registry
from tests.fakes.images import (
    BUSYBOX,
    Layer,
    LayoutImage,
    _architecture,
    _busybox_layer,
    busybox_config,
    make_layout,
)
from tests.fakes.judges import skopeo_copy, validate_layout
from tests.fakes.program import Done, Program, program
from tests.fakes.registry import FakeRegistry

pytestmark = [
    pytest.mark.sandbox,
    pytest.mark.skipif(not BUSYBOX.exists(), reason="busybox-static is not installed"),
]

Command = tuple[str | Path, ...]

OUT = "/opt/app-root/out"
SCRIPTS_URL = "io.openshift.s2i.scripts-url"
IN_IMAGE = {SCRIPTS_URL: "image:///usr/libexec/s2i"}
INPUT_FILES = "io.openshift.s2i.assemble-input-files"
RUNTIME_USER = "io.openshift.s2i.assemble-runtime-user"

ASSEMBLE = f"""\
#!/bin/sh
set -e
cp -R /tmp/src/. "$HOME/"
mkdir -p {OUT}/tree/sub /tmp/.s2i
cd {OUT}
printf '#!/bin/sh\\necho "app says: $GREETING"\\n' >app
chmod 0700 app
echo data >tree/data
chmod 0640 tree/data
ln tree/data tree/hard
ln -s data tree/soft
ln -s /etc/passwd tree/far
echo group >tree/grouped
chmod 0614 tree/grouped
echo deep >tree/sub/deep
chmod 0600 tree/sub/deep
chmod 0700 tree/sub
mkfifo tree/pipe
echo '{{"labels": [{{"made-by": "the builder"}}]}}' >/tmp/.s2i/image_metadata.json
"""

ASSEMBLE_RUNTIME = """\
#!/bin/sh
set -e
echo "runtime by: $(id -u):$(id -g)"
echo "runtime in: $(pwd)"
echo "runtime with: ${GREETING:-none} ${OF_BUILDER:-none} ${OF_RUNTIME:-none}"
echo "runtime script: $0 $#"
echo "runtime stdin: $(cat | wc -c)"
echo "runtime finds: $(find . -mindepth 1 | sort | tr '\\n' ' ')"
mkdir -p /tmp/.s2i
echo '{"labels": [{"made-by": "the runtime image"}]}' >/tmp/.s2i/image_metadata.json
echo made >made
"""

BUILDER_RUN = '#!/bin/sh\necho "the run of the builder"\n'
RUNTIME_RUN = '#!/bin/sh\necho "run: $0"\nexec ./bin/app\n'


@dataclass(frozen=True)
class Extended(Bench):
    """A bench, a builder whose artifacts are in `OUT`, and a runtime image with all scripts."""

    builder: str
    runtime: str

    def __call__(self, *arguments: str | Path) -> Done:
        """A build of the small source; the runtime image has to be among the arguments."""
        return self.ocis2i("build", self.source(), self.builder, self.tag, *arguments)

    def ok(self, *arguments: str | Path) -> Done:
        """One that has to succeed."""
        done = self(*arguments)
        assert done.code == 0, f"exit code {done.code}\n{done.err}"
        return done

    def on(self, runtime: str, *artifacts: str) -> tuple[str, ...]:
        """The flags for a runtime image and artifacts."""
        return (
            "--runtime-image",
            runtime,
            *(word for one in artifacts for word in ("--runtime-artifact", one)),
        )

    def runtime_with(
        self,
        scripts: Mapping[str, str | None] | None = None,
        labels: Mapping[str, str] | None = None,
        **config: Any,
    ) -> str:
        """Another runtime image: its scripts, its labels, and what differs in its config."""
        chosen = {"assemble-runtime": ASSEMBLE_RUNTIME, "run": RUNTIME_RUN} | dict(scripts or {})
        wanted = RUNTIME_CONFIG | {"Labels": IN_IMAGE | dict(labels or {})} | config
        return self.image("other", chosen, wanted, [_srv()])


def _srv() -> Layer:
    return Layer().dir("srv").dir("srv/app", mode=0o750, uid=65534, gid=65534)


RUNTIME_CONFIG: dict[str, Any] = {
    "User": "nobody",
    "WorkingDir": "/srv/app",
    "Env": ["PATH=/usr/bin:/bin", "OF_RUNTIME=yes", "GREETING=of the runtime image"],
    "Entrypoint": ["/usr/bin/env"],
    "ExposedPorts": {"9090/tcp": {}},
    "StopSignal": "SIGQUIT",
    "Labels": IN_IMAGE | {"made-by": "hand", "io.k8s.description": "a runtime image"},
}


@pytest.fixture(scope="module")
def images(shared: Program, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Builder and runtime image."""
    bench = Bench(shared, tmp_path_factory.mktemp("images"))
    env = ["PATH=/usr/bin:/bin", "HOME=/opt/app-root/src", "OF_BUILDER=yes"]
    builder = bench.image("builder", {"assemble": ASSEMBLE, "run": BUILDER_RUN}, {"Env": env})
    scripts = {"assemble-runtime": ASSEMBLE_RUNTIME, "run": RUNTIME_RUN}
    return builder, bench.image("runtime", scripts, RUNTIME_CONFIG, [_srv()])


@pytest.fixture
def bench(shared: Program, images: tuple[str, str], tmp_path: Path) -> Extended:
    return Extended(shared, tmp_path, *images)


# --- one build, from all sides --------------------------------------------------------------------


@dataclass(frozen=True)
class Made:
    """A finished build on the runtime image."""

    bench: Extended
    done: Done

    @property
    def image(self) -> LayoutImage:
        return self.bench.result()

    @property
    def seen(self) -> dict[str, str]:
        return told(self.done)


@pytest.fixture(scope="module")
def made(
    shared: Program, images: tuple[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Made:
    bench = Extended(shared, tmp_path_factory.mktemp("made"), *images)
    artifacts = f"{OUT}/app:bin;{OUT}/tree"
    flags = (*bench.on(bench.runtime, artifacts), "-e", "GREETING=hello world", "--json")
    return Made(bench, bench.ok(*flags))


@same("--runtime-image")
@same("--runtime-artifact")
@same("runtime.several-artifacts")
@same("runtime.destination-is-a-directory")
@better("runtime.modes", "executable is what anybody may execute, its owner too")
@better("runtime.owner", "the user of the runtime image")
def test_artifacts_are_in_the_layer_with_modes_and_owners(made: Made) -> None:
    who = "65534:65534"
    assert facts(made.image) == {
        "srv": "0755 0:0",
        "srv/app": f"0750 {who}",
        "srv/app/bin": f"0755 {who}",
        "srv/app/bin/app": f"0755 {who}",
        "srv/app/made": f"0644 {who}",
        "srv/app/tree": f"0755 {who}",
        "srv/app/tree/data": f"0644 {who}",
        "srv/app/tree/far": "-> /etc/passwd",
        "srv/app/tree/grouped": f"0755 {who}",
        "srv/app/tree/hard": "= srv/app/tree/data",
        "srv/app/tree/soft": "-> data",
        "srv/app/tree/sub": f"0755 {who}",
        "srv/app/tree/sub/deep": f"0644 {who}",
        "tmp": "1777 0:0",
        "tmp/.s2i": f"0755 {who}",
        "tmp/.s2i/image_metadata.json": f"0644 {who}",
    }
    assert content(made.image, "srv/app/tree/sub/deep") == "deep\n"


@same("runtime.nothing-of-the-builder")
@better("runtime.marker", "nothing but the artifacts and what `assemble-runtime` made")
def test_the_rest_is_the_runtime_image_as_it_was(made: Made) -> None:
    base = LayoutImage(Path(made.bench.runtime.split(":")[1]), "runtime:1")
    assert made.image.layers[:-1] == base.layers
    tmp = made.bench.ocis2i.ok("run", "--entrypoint", "", made.bench.tag, "find", "/tmp")
    assert sorted(tmp.out.split()) == ["/tmp", "/tmp/.s2i", "/tmp/.s2i/image_metadata.json"]


def test_special_files_are_left_out_with_a_warning(made: Made) -> None:
    text = f"artifact `{OUT}/tree`: 1 device, pipe or socket in it was left out"
    assert warnings(made.done) == [text]


@same("runtime.assemble-runtime")
def test_assemble_runtime_runs_in_the_runtime_image(made: Made) -> None:
    seen = made.seen
    assert seen["runtime script"] == "/usr/libexec/s2i/assemble-runtime 0"
    assert seen["runtime in"] == "/srv/app"
    assert seen["runtime with"] == "hello world none yes"
    assert seen["runtime stdin"] == "0"
    assert seen["runtime finds"].split() == [
        *("./bin", "./bin/app", "./tree", "./tree/data", "./tree/far", "./tree/grouped"),
        *("./tree/hard", "./tree/soft", "./tree/sub", "./tree/sub/deep"),
    ]


@same("runtime.user")
def test_without_a_wish_the_user_is_the_runtime_images(made: Made) -> None:
    assert made.seen["runtime by"] == "65534:65534"
    assert made.image.config["User"] == "nobody"


@better("runtime.run-script", "an absolute path, of the runtime image's own script")
def test_run_is_the_runtime_images(made: Made) -> None:
    assert made.image.config["Cmd"] == ["/usr/libexec/s2i/run"]
    ran = made.bench.ocis2i.ok("run", made.bench.tag)
    assert ran.out == "run: /usr/libexec/s2i/run\napp says: hello world\n"


@same("runtime.config")
def test_config_is_the_runtime_images_with_the_users_variables(made: Made) -> None:
    config = made.image.config
    assert config["WorkingDir"] == "/srv/app"
    assert config["ExposedPorts"] == {"9090/tcp": {}}
    assert config["StopSignal"] == "SIGQUIT"
    assert sorted(config["Env"]) == [
        "GREETING=hello world",
        "OF_RUNTIME=yes",
        "PATH=/usr/bin:/bin",
    ]
    assert "Entrypoint" not in config


@same("runtime.metadata")
def test_labels_are_those_of_the_runtime_image_and_of_its_container(made: Made) -> None:
    labels = made.image.labels
    assert labels[SCRIPTS_URL] == "image:///usr/libexec/s2i"
    assert labels["io.k8s.description"] == "a runtime image"
    assert labels["io.k8s.display-name"] == made.bench.tag
    assert labels["io.openshift.s2i.build.image"] == made.bench.builder
    assert labels["made-by"] == "the runtime image"


@same("runtime.assemble-runtime")
def test_document_names_builder_base_and_steps(made: Made) -> None:
    document = made.done.document
    assert document["builder"]["name"] == made.bench.builder
    assert document["base"]["name"] == made.bench.runtime
    stages = document["build_info"]["stages"]
    steps = [(stage["name"], step["name"]) for stage in stages for step in stage["steps"]]
    assert steps == [
        ("PullImages", "PullBuilderImage"),
        ("PullImages", "PullRuntimeImage"),
        ("Assemble", "AssembleBuildScripts"),
        ("Assemble", "AssembleRuntimeScripts"),
        ("CommitContainer", "CommitContainer"),
    ]


def test_entrypoint_is_kept_when_asked(bench: Extended) -> None:
    bench.ok(*bench.on(bench.runtime, f"{OUT}/app:bin"), "--keep-entrypoint")
    assert bench.result().config["Entrypoint"] == ["/usr/bin/env"]


# --- which artifacts ------------------------------------------------------------------------------


@same("runtime.mapping-syntax")
def test_mapping_is_cleaned_and_its_destination_is_a_directory(bench: Extended) -> None:
    mappings = (
        f"{OUT}/app",
        f"{OUT}/tree/hard:",
        f"{OUT}/tree/soft:.",
        f"'{OUT}/tree/grouped':\"some/where\"",
        f"//{OUT}/./tree/../app/:a//b/../c/",
    )
    bench.ok(*bench.on(bench.runtime, *mappings), "--no-assemble-runtime")
    assert facts(bench.result()).keys() == {
        *("srv", "srv/app", "srv/app/app", "srv/app/hard", "srv/app/soft"),
        *("srv/app/some", "srv/app/some/where", "srv/app/some/where/grouped"),
        *("srv/app/a", "srv/app/a/c", "srv/app/a/c/app"),
    }


@same("runtime.mapping-syntax")
def test_last_colon_separates(bench: Extended) -> None:
    # The part before it is a path with a colon, which is not there.
    done = bench(*bench.on(bench.runtime, f"{OUT}/a:b:c"))
    assert done.code == 4
    assert f"there is no `{OUT}/a:b` in the builder's container" in done.err


@better("runtime.destination-like-source", "works like any other")
def test_destination_may_begin_with_the_artifacts_own_name(bench: Extended) -> None:
    bench.ok(*bench.on(bench.runtime, f"{OUT}/tree:tree/tree"))
    assert content(bench.result(), "srv/app/tree/tree/tree/sub/deep") == "deep\n"


@same("runtime.mapping-rules")
@pytest.mark.parametrize(
    ("mapping", "words"),
    [
        ("relative/path", "source must be an absolute path"),
        (f"{OUT}/app:/srv", "destination must be a relative path"),
        (f"{OUT}/app:../up", "destination cannot start with '..'"),
        (f"{OUT}/app:a/../../up", "destination cannot start with '..'"),
        (f"{OUT}/app:..more", "destination cannot start with '..'"),
    ],
)
def test_mapping_that_breaks_a_rule_is_told_before_assemble(
    bench: Extended, mapping: str, words: str
) -> None:
    done = bench(*bench.on(bench.runtime, mapping), "--json")
    assert done.code == 2
    assert done.document["reason"] == "InvalidArtifactsMapping"
    assert words in done.document["message"]
    assert "---> assembling" not in done.err


@same("runtime.mapping-syntax")
@pytest.mark.parametrize(
    "mapping", [f"{OUT}/*", f"{OUT}/c++", f"{OUT}/app:a,b", f"{OUT}/app;", f"{OUT}/a$b", "/a`b"]
)
def test_special_characters_and_empty_mappings_are_refused_at_once(
    bench: Extended, mapping: str
) -> None:
    done = bench(*bench.on(bench.runtime, mapping))
    assert done.code == 2
    assert "`--runtime-artifact` has " in done.err
    assert "--->" not in done.err


def test_flags_of_a_runtime_image_mean_nothing_without_one(bench: Extended) -> None:
    given = ("--runtime-artifact", f"{OUT}/app", "--runtime-pull-policy", "always")
    done = bench.ok(*given, "--assemble-runtime-user", "7")
    names = "--assemble-runtime-user, --runtime-artifact, --runtime-pull-policy"
    assert f"warning: {names}: ignored without --runtime-image" in done.err


@same("runtime.artifacts-of-the-label")
@same("io.openshift.s2i.assemble-input-files")
def test_label_names_the_artifacts(bench: Extended) -> None:
    runtime = bench.runtime_with(labels={INPUT_FILES: f"{OUT}/app:from-label;{OUT}/tree/data"})
    bench.ok(*bench.on(runtime))
    names = facts(bench.result())
    assert "srv/app/from-label/app" in names
    assert "srv/app/data" in names
    assert "srv/app/tree" not in names


@same("runtime.artifacts-of-the-label")
def test_flag_beats_the_label(bench: Extended) -> None:
    runtime = bench.runtime_with(labels={INPUT_FILES: "/no/such/thing"})
    bench.ok(*bench.on(runtime, f"{OUT}/app"))
    assert "srv/app/app" in facts(bench.result())


@same("runtime.no-artifacts")
@same("InvalidArtifactsMapping")
@pytest.mark.parametrize("label", [None, "", "relative:x", "/a:/b"])
def test_without_an_artifact_nothing_is_built(bench: Extended, label: str | None) -> None:
    runtime = bench.runtime_with(labels={} if label is None else {INPUT_FILES: label})
    done = bench(*bench.on(runtime), "--json")
    assert done.code == 2
    assert done.document["reason"] == "InvalidArtifactsMapping"
    if not label:
        assert done.document["message"] == "no runtime artifacts to copy were specified"
    assert "---> assembling" not in done.err


@same("FetchRuntimeArtifactsFailed")
def test_missing_artifact_fails_and_names_it(bench: Extended) -> None:
    done = bench(*bench.on(bench.runtime, f"{OUT}/nothing"), "--json")
    assert done.code == 4
    assert done.document["reason"] == "FetchRuntimeArtifactsFailed"
    assert done.document["message"] == f"there is no `{OUT}/nothing` in the builder's container"
    assert bench.ocis2i("inspect", bench.tag).code == 4


# --- who ------------------------------------------------------------------------------------------


@same("runtime.user")
@same("--assemble-runtime-user")
@same("io.openshift.s2i.assemble-runtime-user")
@better("runtime.owner", "the user of the runtime image")
@pytest.mark.parametrize(
    ("flag", "label", "who"),
    [("4242:7", "1001", "4242:7"), (None, "1001", "1001:0"), ("0", None, "0:0")],
)
def test_user_is_that_of_flag_then_label(
    bench: Extended, flag: str | None, label: str | None, who: str
) -> None:
    open_place = {"assemble-runtime": '#!/bin/sh\necho "runtime by: $(id -u):$(id -g)"\n'}
    runtime = bench.runtime_with(open_place, {RUNTIME_USER: label} if label else None)
    user = ("--assemble-runtime-user", flag) if flag else ()
    # `WORKDIR` belongs to `nobody` and is closed for others.
    done = bench.ok(*bench.on(runtime, f"{OUT}/app"), *user, "--cap-drop", "CHOWN")
    assert told(done)["runtime by"] == who
    assert facts(bench.result())["srv/app/app"] == f"0755 {who}"
    assert bench.result().config["User"] == "nobody"


@better("uids.runtime-image", "the verdict counts")
def test_allowed_uids_count_for_the_runtime_image(bench: Extended) -> None:
    done = bench(*bench.on(bench.runtime, f"{OUT}/app"), "--allowed-uids", "1-", "--json")
    assert done.code == 9
    assert bench.runtime in done.document["message"]
    assert "---> assembling" not in done.err


# --- scripts --------------------------------------------------------------------------------------


@better("runtime.assemble-runtime-optional", "the artifacts are copied, and that is all")
def test_assemble_runtime_may_be_missing(bench: Extended) -> None:
    runtime = bench.runtime_with({"assemble-runtime": None})
    done = bench.ok(*bench.on(runtime, f"{OUT}/app:bin"))
    assert "---> assemble-runtime" not in done.err
    assert bench.result().config["Cmd"] == ["/usr/libexec/s2i/run"]
    assert sorted(facts(bench.result())) == ["srv", "srv/app", "srv/app/bin", "srv/app/bin/app"]


@better("runtime.assemble-runtime-optional", "the artifacts are copied, and that is all")
def test_assemble_runtime_can_be_left_out(bench: Extended) -> None:
    done = bench.ok(*bench.on(bench.runtime, f"{OUT}/app:bin"), "--no-assemble-runtime")
    assert "runtime by" not in told(done)
    assert "srv/app/made" not in facts(bench.result())
    assert bench.ocis2i.ok("run", bench.tag).out.startswith("run: /usr/libexec/s2i/run\n")


@better("runtime.run-script", "an absolute path, of the runtime image's own script")
def test_scripts_of_the_source_are_put_below_workdir(bench: Extended) -> None:
    bench.source(
        {
            ".s2i/bin/assemble-runtime": '#!/bin/sh\necho "runtime script: $0"\n',
            ".s2i/bin/run": '#!/bin/sh\necho "run of the source: $0"\n',
        }
    )
    done = bench.ok(*bench.on(bench.runtime, f"{OUT}/app"))
    assert told(done)["runtime script"] == "/srv/app/scripts/assemble-runtime"
    assert bench.result().config["Cmd"] == ["/srv/app/scripts/run"]
    seen = facts(bench.result())
    assert seen["srv/app/scripts/run"] == "0755 65534:65534"
    assert seen["srv/app/scripts/assemble-runtime"] == "0755 65534:65534"
    ran = bench.ocis2i.ok("run", "-w", "/", bench.tag)
    assert ran.out == "run of the source: /srv/app/scripts/run\n"


@better("runtime.run-script", "an absolute path, of the runtime image's own script")
def test_run_of_the_builder_does_not_count(bench: Extended) -> None:
    runtime = bench.runtime_with({"run": None})
    done = bench(*bench.on(runtime, f"{OUT}/app"), "--json")
    assert done.code == 4
    assert done.document["reason"] == "InstallScriptsFailed"
    assert "/usr/libexec/s2i/run" in done.document["message"]
    assert runtime in done.document["message"]


def test_runtime_image_without_a_place_for_scripts_needs_run_in_the_source(
    bench: Extended,
) -> None:
    runtime = bench.runtime_with(Labels=None)
    done = bench(*bench.on(runtime, f"{OUT}/app"), "--json")
    assert done.code == 4
    assert done.document["reason"] == "InstallScriptsFailed"
    assert "---> assembling" not in done.err


@same("runtime.failure")
@better("AssembleRuntimeFailed", "is its own reason")
def test_failing_assemble_runtime_fails_the_build(bench: Extended) -> None:
    runtime = bench.runtime_with({"assemble-runtime": "#!/bin/sh\necho said >&2\nexit 42\n"})
    done = bench(*bench.on(runtime, f"{OUT}/app"), "--json")
    assert done.code == 7
    assert "said\n" in done.err
    assert done.document["reason"] == "AssembleRuntimeFailed"
    assert done.document["script_exit_code"] == 42
    assert "assemble-runtime` failed with exit code 42" in done.document["message"]
    assert bench.ocis2i("inspect", bench.tag).code == 4


@same("runtime.failure")
def test_quiet_build_shows_the_output_of_a_failing_assemble_runtime(bench: Extended) -> None:
    runtime = bench.runtime_with({"assemble-runtime": "#!/bin/sh\necho said >&2\nexit 42\n"})
    done = bench(*bench.on(runtime, f"{OUT}/app"), "--quiet")
    assert done.code == 7
    assert "said\n" in done.err


def test_failing_assemble_never_gets_to_the_runtime_image(bench: Extended) -> None:
    bench.source({".s2i/bin/assemble": "#!/bin/sh\nexit 3\n"})
    done = bench(*bench.on(bench.runtime, f"{OUT}/app"), "--json")
    assert done.code == 7
    assert done.document["reason"] == "AssembleFailed"
    assert "runtime by" not in told(done)


# --- what the runtime image may do against us -----------------------------------------------------


@better("security.archives", "such an archive is refused as a whole")
def test_links_of_both_images_lead_nowhere_on_the_host(bench: Extended, tmp_path: Path) -> None:
    host = _new(tmp_path / "host")
    host.chmod(0o777)
    (host / "canary").write_text("untouched")
    hostile = Layer().dir("srv").symlink("srv/app", str(host))
    scripts = {"run": RUN, "assemble-runtime": None}
    runtime = bench.image("hostile", scripts, RUNTIME_CONFIG, [hostile])
    bench.source(
        {
            ".s2i/bin/assemble": "#!/bin/sh\ncd /opt/app-root\necho gone >canary\n"
            f"ln -s {host}/canary link\nln -s {host} dir\n"
        }
    )
    bench.ok(*bench.on(runtime, "/opt/app-root/canary"))
    # The link of the runtime image was followed inside of it.
    assert content(bench.result(), f"{str(host).lstrip('/')}/canary") == "gone\n"
    for artifact in ("/opt/app-root/link", "/opt/app-root/dir/canary"):
        done = bench(*bench.on(runtime, artifact))
        assert done.code == 4
        assert f"there is no `{artifact}` in the builder's container" in done.err
    assert (host / "canary").read_text() == "untouched"
    assert os.listdir(host) == ["canary"]


# --- layers that nobody needs ---------------------------------------------------------------------


@dataclass(frozen=True)
class Far:
    """A registry with a runtime image whose one layer no other image has."""

    registry: FakeRegistry
    name: str
    layer: str

    @property
    def fetched(self) -> int:
        """How often that layer was fetched."""
        return len(self.registry.requests("GET", f"blobs/{self.layer}"))


def _far(bench: Extended, registry: FakeRegistry, *, tag: str = "1", **config: Any) -> Far:
    usual = {"WorkingDir": "/srv/app", "User": "1001:5", "Labels": {"kind": "small"}}
    scripts = Layer().dir("usr").dir("usr/libexec").dir("usr/libexec/s2i")
    layer = _busybox_layer().dir("srv").dir("srv/app", mode=0o2775, uid=3, gid=4)
    layer.members += scripts.file("usr/libexec/s2i/run", RUN, mode=0o755).members[-3:]
    layer.file("srv/noise", os.urandom(1000))
    path = bench.directory / f"far-{tag}"
    merged = busybox_config() | usual | config
    make_layout(path, "far:1", [layer], merged, platform=f"linux/{_architecture()}")
    name = offer(registry, f"oci:{path}:far:1", "base/far", tag)
    return Far(registry, name, LayoutImage(path, "far:1").layers[0])


RUN_OF_THE_SOURCE = {".s2i/bin/run": "#!/bin/sh\ncat noted; exec ./bin/app\n"}


def test_layers_of_the_runtime_image_stay_in_the_registry(
    bench: Extended, registry: FakeRegistry, tmp_path: Path
) -> None:
    far = _far(bench, registry)
    source = bench.source(RUN_OF_THE_SOURCE)
    tag = f"{registry.host}/team/app:1"
    flags = bench.on(far.name, f"{OUT}/app:bin", f"{OUT}/tree/data:deep/er")
    build: Command = ("build", source, bench.builder, tag, *flags)
    bench.ocis2i.ok(*build, "--push")
    assert far.fetched == 0
    image = bench.result(tag)
    assert image.layers[0] == far.layer
    assert not image.blob(far.layer).exists()
    # Of directories that the runtime image may have nothing is known, and nothing is said.
    assert facts(image) == {
        "srv/app/bin/app": "0755 1001:5",
        "srv/app/deep/er/data": "0644 1001:5",
        "srv/app/scripts/run": "0755 1001:5",
    }
    # In the registry the image is whole.
    assert set(registry.blobs["team/app"]) >= set(image.layers)

    # What is left in the store is good for everything, at need.
    bench.ocis2i.ok("prune")
    assert far.fetched == 0
    ran = bench.ocis2i.ok("run", tag, "stat", "-c", "%n %a %u:%g", "/srv/app", "bin/app", "deep")
    assert ran.out.splitlines()[:2] == ["/srv/app 2775 3:4", "bin/app 755 1001:5"]
    assert far.fetched == 1
    bench.ocis2i.ok("run", tag, "true")
    assert far.fetched == 1


@needs("skopeo")
def test_pushed_image_is_whole_for_others(
    bench: Extended, registry: FakeRegistry, tmp_path: Path
) -> None:
    far = _far(bench, registry)
    tag = f"{registry.host}/team/app:1"
    flags = bench.on(far.name, f"{OUT}/app:bin")
    bench.ocis2i.ok("build", bench.source(RUN_OF_THE_SOURCE), bench.builder, tag, *flags, "--push")
    target = tmp_path / "copied"
    skopeo_copy(f"docker://{tag}", f"oci:{target}:app", "--src-tls-verify=false")
    assert LayoutImage(target, "app").layers == bench.result(tag).layers
    assert LayoutImage(target, "app").size > 0


def test_registry_that_mounts_nothing_gets_the_layers_all_the_same(
    bench: Extended, registry: FakeRegistry
) -> None:
    registry.allow_mount = False
    far = _far(bench, registry)
    tag = f"{registry.host}/team/app:1"
    flags = bench.on(far.name, f"{OUT}/app:bin")
    bench.ocis2i.ok("build", bench.source(RUN_OF_THE_SOURCE), bench.builder, tag, *flags, "--push")
    assert set(registry.blobs["team/app"]) >= set(bench.result(tag).layers)


@pytest.mark.parametrize("later", [False, True])
def test_archive_fetches_the_layers_that_it_needs(
    bench: Extended, registry: FakeRegistry, tmp_path: Path, later: bool
) -> None:
    far = _far(bench, registry)
    bench.source(RUN_OF_THE_SOURCE)
    flags = bench.on(far.name, f"{OUT}/app:bin")
    target = tmp_path / "written"
    if later:
        bench.ok(*flags)
        assert far.fetched == 0
        bench.ocis2i.ok("push", bench.tag, f"oci:{target}:app")
    else:
        bench.ok(*flags, "-o", f"oci:{target}:app")
    assert far.fetched == 1
    image = LayoutImage(target, "app")
    assert image.layers == bench.result().layers
    assert all(image.blob(one).exists() for one in image.layers)


def test_later_push_to_another_registry_fetches_the_layers(
    bench: Extended, registry: FakeRegistry
) -> None:
    far = _far(bench, registry)
    bench.source(RUN_OF_THE_SOURCE)
    bench.ok(*bench.on(far.name, f"{OUT}/app:bin"))
    with FakeRegistry() as other:
        bench.ocis2i.ok("push", bench.tag, f"{other.host}/moved:1")
        assert set(other.blobs["moved"]) >= set(bench.result().layers)
    assert far.fetched == 1


def test_layers_that_are_gone_are_told(bench: Extended, registry: FakeRegistry) -> None:
    far = _far(bench, registry)
    bench.source(RUN_OF_THE_SOURCE)
    bench.ok(*bench.on(far.name, f"{OUT}/app:bin"))
    del registry.blobs["base/far"][far.layer]
    done = bench.ocis2i("run", bench.tag, "true")
    assert done.code in (4, 5)
    assert "error: " in done.err
    assert "Traceback" not in done.err


@better("runtime.assemble-runtime-optional", "the artifacts are copied, and that is all")
def test_without_assemble_runtime_a_place_for_scripts_needs_no_layers(
    bench: Extended, registry: FakeRegistry
) -> None:
    far = _far(bench, registry, Labels=IN_IMAGE)
    bench.ok(*bench.on(far.name, f"{OUT}/app:bin"), "--no-assemble-runtime")
    assert far.fetched == 0
    assert bench.result().config["Cmd"] == ["/usr/libexec/s2i/run"]
    assert bench.ocis2i.ok("run", bench.tag).out == "run: /usr/libexec/s2i/run\n"
    assert far.fetched == 1


@pytest.mark.parametrize(
    "config", [{"Labels": IN_IMAGE}, {"User": "default"}], ids=["scripts", "user's name"]
)
def test_layers_are_fetched_when_something_has_to_be_seen_in_them(
    bench: Extended, registry: FakeRegistry, config: dict[str, Any]
) -> None:
    far = _far(bench, registry, **config)
    bench.source(RUN_OF_THE_SOURCE)
    bench.ok(*bench.on(far.name, f"{OUT}/app:bin"))
    assert far.fetched == 1
    assert facts(bench.result())["srv/app"] == "2775 3:4"


def test_artifacts_are_the_same_with_layers_and_without(
    bench: Extended, registry: FakeRegistry
) -> None:
    look = ("find", "/srv", "-exec", "stat", "-c", "%n %a %u:%g", "{}", ";")
    seen = []
    for tag, labels in (("lazy", {}), ("eager", IN_IMAGE)):
        far = _far(bench, registry, tag=tag, Labels=labels)
        bench.source(RUN_OF_THE_SOURCE)
        bench.ok(*bench.on(far.name, f"{OUT}/app:bin", f"{OUT}/tree:new/place"))
        found = bench.ocis2i.ok("run", "-u", "0", bench.tag, *look).out.splitlines()
        seen.append({line.partition(" ")[::2] for line in found})
    lazy, eager = map(dict, seen)
    assert lazy.keys() == eager.keys()
    differing = {name for name in lazy if lazy[name] != eager[name]}
    # Directories above the artifacts may be the image's own: of those nothing is said.
    assert differing == {f"/srv/app/{name}" for name in ("bin", "new", "new/place", "scripts")}
    assert {lazy[name] for name in differing} == {"755 0:0"}


@pytest.mark.registry
@needs_registry
def test_real_registry_gets_a_whole_image(bench: Extended, tmp_path: Path) -> None:
    with docker_registry(tmp_path / "registry") as running, FakeRegistry() as fake:
        far = _far(bench, fake)
        base = f"{running.host}/base/far:1"
        bench.ocis2i.ok("pull", far.name)
        bench.ocis2i.ok("push", far.name, base)
        tag = f"{running.host}/team/app:1"
        with program(_new(tmp_path / "fresh")) as fresh:
            source = bench.source(RUN_OF_THE_SOURCE)
            flags = bench.on(base, f"{OUT}/app:bin")
            fresh.ok("build", source, bench.builder, tag, *flags, "--push")
            assert not LayoutImage(fresh.layout, tag).blob(far.layer).exists()
        bench.ocis2i.ok("pull", tag)
        image = bench.result(tag)
        assert image.layers[0] == far.layer
        ran = bench.ocis2i.ok("run", "-e", "GREETING=hello", tag, "./bin/app")
        assert ran.out == "app says: hello\n"


# --- where it comes from --------------------------------------------------------------------------


@same("--runtime-pull-policy")
def test_policy_never_wants_the_runtime_image_in_the_store(
    bench: Extended, registry: FakeRegistry
) -> None:
    far = _far(bench, registry, Labels=IN_IMAGE)
    flags = (*bench.on(far.name, f"{OUT}/app:bin"), "--runtime-pull-policy", "never")
    done = bench(*flags, "--json")
    assert done.code == 4
    assert done.document["reason"] == "PullRuntimeImageFailed"
    assert "pull policy is `never`" in done.document["message"]
    assert registry.log == []
    bench.ocis2i.ok("pull", far.name)
    asked = len(registry.log)
    bench.ok(*flags)
    assert len(registry.log) == asked


@same("--runtime-pull-policy")
@pytest.mark.parametrize("policy", ["if-not-present", "always"])
def test_policies_differ_when_the_store_has_an_older_runtime_image(
    bench: Extended, registry: FakeRegistry, policy: str
) -> None:
    bench.source(RUN_OF_THE_SOURCE)
    old = _far(bench, registry)
    bench.ocis2i.ok("pull", old.name)
    new = _far(bench, registry, tag="2")
    registry.manifests["base/far"]["1"] = registry.manifests["base/far"]["2"]
    bench.ok(*bench.on(old.name, f"{OUT}/app"), "--runtime-pull-policy", policy)
    assert bench.result().layers[0] == (new if policy == "always" else old).layer


@same("--runtime-pull-policy")
def test_unknown_policy_is_an_error_before_anything_is_done(bench: Extended) -> None:
    done = bench(*bench.on(bench.runtime, f"{OUT}/app"), "--runtime-pull-policy", "x")
    assert done.code == 2
    assert "invalid pull policy `x`" in done.err
    assert "--->" not in done.err


@better("PullRuntimeImageFailed", "the runtime image cannot be had")
def test_runtime_image_that_cannot_be_had_fails_before_assemble(
    bench: Extended, registry: FakeRegistry
) -> None:
    done = bench(*bench.on(f"{registry.host}/no/such:1", f"{OUT}/app"), "--json")
    assert done.code in (4, 5)
    assert done.document["reason"] == "PullRuntimeImageFailed"
    assert "---> assembling" not in done.err


def test_runtime_image_of_another_platform_is_refused(bench: Extended) -> None:
    path = bench.directory / "foreign"
    make_layout(path, "foreign:1", [Layer().dir("srv")], RUNTIME_CONFIG, platform="linux/s390x")
    done = bench(*bench.on(f"oci:{path}:foreign:1", f"{OUT}/app"), "--json")
    assert done.code == 4
    assert "is for `linux/s390x`" in done.document["message"]
    assert "---> assembling" not in done.err


# --- with --incremental ---------------------------------------------------------------------------

CACHING = """\
#!/bin/sh
set -e
echo "artifacts: $(ls /tmp/artifacts 2>/dev/null | tr '\\n' ' ')"
mkdir -p /opt/app-root/cache /opt/app-root/out
cp /tmp/artifacts/log /opt/app-root/cache/log 2>/dev/null || true
echo x >>/opt/app-root/cache/log
cp /opt/app-root/cache/log /opt/app-root/out/result
"""
SAVE = '#!/bin/sh\necho "saved by: $(id -u)" >&2\ncd /opt/app-root/cache && tar -cf - log\n'


def _caching(bench: Extended, **more: str) -> Command:
    scripts = {"assemble": CACHING, "run": BUILDER_RUN, "save-artifacts": SAVE} | more
    builder = bench.image("caching", scripts)
    flags = bench.on(bench.runtime, f"{OUT}/result")
    return ("build", bench.source(), builder, bench.tag, *flags, "--incremental", "--json")


@better("incremental.with-runtime-image", "what `save-artifacts` gives is kept in the store")
def test_incremental_builds_on_a_runtime_image(bench: Extended) -> None:
    build = _caching(bench)
    first = bench.ocis2i.ok(*build)
    assert told(first)["artifacts"] == ""
    assert told(first)["saved by"] == "1001"
    assert first.document["incremental"] is False
    assert warnings(first) == ["no artifacts of an earlier build, a clean build"]
    second = bench.ocis2i.ok(*build)
    assert told(second)["artifacts"] == "log "
    assert second.document["incremental"] is True
    assert content(bench.result(), "srv/app/result") == "x\nx\n"
    assert not [name for name in facts(bench.result()) if "cache" in name or "artifacts" in name]
    # They are kept as long as there is such an image, and not longer.
    bench.ocis2i.ok("prune")
    assert told(bench.ocis2i.ok(*build))["artifacts"] == "log "
    bench.ocis2i.ok("rm", bench.tag)
    bench.ocis2i.ok("prune")
    assert told(bench.ocis2i.ok(*build))["artifacts"] == ""


@better("incremental.with-runtime-image", "what `save-artifacts` gives is kept in the store")
@same("--rm")
def test_rm_removes_the_previous_image_on_a_runtime_image(bench: Extended) -> None:
    build = _caching(bench)
    first = bench.ocis2i.ok(*build, "--rm").document["digest"]
    second = bench.ocis2i.ok(*build, "--rm").document["digest"]
    assert first != second
    assert bench.ocis2i("inspect", first).code == 4
    assert bench.ocis2i.ok("inspect", second).document["digest"] == second


@better("incremental.with-runtime-image", "what `save-artifacts` gives is kept in the store")
@pytest.mark.parametrize(
    "script",
    ["#!/bin/sh\nexit 3\n", "#!/bin/sh\necho words\n", None],
    ids=["fails", "no tar", "missing"],
)
def test_artifacts_that_cannot_be_saved_are_a_warning(bench: Extended, script: str | None) -> None:
    build = _caching(bench, **({"save-artifacts": script} if script else {}))
    if script is None:
        path = bench.directory / "source/.s2i/bin"
        path.mkdir(parents=True)
        (path / "save-artifacts").write_text("#!/bin/nowhere\n")
    for _ in range(2):
        done = bench.ocis2i.ok(*build)
        assert told(done)["artifacts"] == ""
        assert done.document["incremental"] is False
        assert warnings(done)
    assert content(bench.result(), "srv/app/result") == "x\n"


# --- killed in the middle -------------------------------------------------------------------------


@pytest.mark.parametrize("isolation", [RUNC, "builtin"])
def test_kill_in_assemble_runtime_leaves_a_valid_store(
    bench: Extended, ocis2i: Program, isolation: str
) -> None:
    slow = "#!/bin/sh\necho here\nsleep 1000\n"
    source = bench.source({".s2i/bin/assemble-runtime": slow})
    flags = (*bench.on(bench.runtime, f"{OUT}/app"), "--isolation", isolation)
    build: Command = ("build", source, bench.builder, "killed:1", *flags)
    kill_in_the_middle(ocis2i, *build)
    assert ocis2i("inspect", "killed:1").code == 4
    assert_one_build_left(ocis2i)
    bench.source({".s2i/bin/assemble-runtime": "#!/bin/sh\necho there\n"})
    assert "there\n" in ocis2i.ok(*build).err
    validate_layout(ocis2i.layout, strict=False)
    assert json.loads(ocis2i.ok("inspect", "killed:1", "--config").out)["config"]["Cmd"]
