"""The command line of source-to-image: flags, `.s2ifile`, output, credentials, exit codes, reasons.

The sections 1, 10.1 and 10.2 of the contract, seen through the program.
"""

from __future__ import annotations

import base64
import json
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.contract import better, ignored, same
from tests.fakes.bench import Maker, error, warnings
from tests.fakes.images import BUSYBOX, HOME, Layer, busybox_builder, make_layout
from tests.fakes.images import _architecture as architecture
from tests.fakes.program import Done, Program
from tests.fakes.registry import FakeRegistry
from tests.fakes.web import FakeWeb

pytestmark = [
    pytest.mark.sandbox,
    pytest.mark.skipif(not BUSYBOX.exists(), reason="busybox-static is not installed"),
]

Json = dict[str, Any]
SHELL = "#!/bin/sh\n"
USER, PASSWORD = "jane", "correct horse"
NO_DAEMON = "--url, --cert, --key, --ca, --tls, --tlsverify: ignored, ocis2i uses no Docker daemon"
DOCKER_FLAGS = [
    *("--url", "unix:///no/socket", "--cert", "/no/cert.pem", "--key", "/no/key.pem"),
    *("--ca", "/no/ca.pem", "--tls", "--tlsverify"),
]


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The layout of a builder that works."""
    path = tmp_path_factory.mktemp("builder") / "layout"
    busybox_builder(path)
    return path


def read(program: Program, image: str, path: str) -> str:
    """A file of an image, as a container of it sees it."""
    return program.ok("run", image, "cat", path).out


# --- flags of a Docker daemon -----------------------------------------------------------------


@ignored("--url", "there is no daemon")
@ignored("--cert", "there is no daemon")
@ignored("--key", "there is no daemon")
@ignored("--ca", "there is no daemon")
@ignored("--tls", "there is no daemon")
@ignored("--tlsverify", "there is no daemon")
@pytest.mark.parametrize("place", ["before the verb", "behind it", "both"])
def test_flags_of_a_docker_daemon_are_one_warning(
    shared: Program, builder: str, source: Path, place: str
) -> None:
    before = [] if place == "behind it" else DOCKER_FLAGS
    after = [] if place == "before the verb" else DOCKER_FLAGS
    done = shared.ok(*before, "build", source, builder, *after)
    assert warnings(done) == [NO_DAEMON]
    assert done.out.startswith("sha256:")


@pytest.mark.parametrize("verb", ["rebuild", "usage", "create", "generate"])
def test_other_verbs_of_s2i_take_them_too(
    shared: Program, builder: str, source: Path, tmp_path: Path, verb: str
) -> None:
    words: dict[str, list[str | Path]] = {
        "rebuild": ["app:of-docker"],
        "usage": [builder],
        "create": ["acme/x", tmp_path / "new"],
        "generate": [builder, tmp_path / "out" / "Dockerfile"],
    }
    (tmp_path / "out").mkdir()
    if verb == "rebuild":
        shared.ok("build", source, builder, "app:of-docker")
    done = shared.ok(verb, *words[verb], "-U", "unix:///no/socket")
    assert [line for line in warnings(done) if line.startswith("--url: ignored")]


@ignored("DOCKER_HOST", "there is no daemon; nothing is said")
@ignored("DOCKER_CERT_PATH", "there is no daemon; nothing is said")
@ignored("DOCKER_TLS", "there is no daemon; nothing is said")
@ignored("DOCKER_TLS_VERIFY", "there is no daemon; nothing is said")
def test_variables_of_a_docker_daemon_have_no_effect(
    shared: Program, builder: str, source: Path
) -> None:
    done = shared.ok(
        *("build", source, builder),
        DOCKER_HOST="tcp://127.0.0.1:1",
        DOCKER_CERT_PATH="/nowhere",
        DOCKER_TLS="0",
        DOCKER_TLS_VERIFY="1",
    )
    assert warnings(done) == []


# --- log levels -------------------------------------------------------------------------------


@same("--loglevel")
def test_higher_log_levels_tell_more(shared: Program, builder: str, source: Path) -> None:
    def told(*words: str) -> list[str]:
        return shared.ok(*words, "build", source, builder).err.splitlines()

    least, more, most = told(), told("--loglevel", "2"), told("--loglevel=5")
    script = "script `assemble` from `image:///usr/libexec/s2i/assemble`"
    assert "---> Installing application source" in least
    assert script not in least
    assert script in more
    assert set(least) < set(more) <= set(most)
    behind = shared.ok("build", source, builder, "--loglevel", "2").err.splitlines()
    assert behind == more


@pytest.mark.parametrize("level", ["6", "-1", "high"])
def test_log_level_that_is_none_is_refused(shared: Program, level: str) -> None:
    done = shared(f"--loglevel={level}", "images")
    assert done.code == 2
    assert "--loglevel" in error(done)


# --- arguments --------------------------------------------------------------------------------


@better("cli.conflicts", "end with 2; a runtime image goes with `--as-dockerfile`")
def test_run_and_as_dockerfile_exclude_each_other(
    shared: Program, builder: str, source: Path, tmp_path: Path
) -> None:
    path = tmp_path / "Dockerfile"
    done = shared("build", source, builder, "--run", "--as-dockerfile", path)
    assert (done.code, done.out) == (2, "")
    assert error(done) == "error: --run and --as-dockerfile exclude each other"
    assert not path.exists()


@better("cli.missing-arguments", "end with 2 and a sentence that names the first of them")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["build"], "missing argument SOURCE"),
        (["build", "."], "missing argument BUILDER"),
        (["rebuild"], "missing argument 'image'"),
        (["usage"], "missing argument 'builder'"),
        (["create", "name"], "missing argument 'directory'"),
        (["generate", "builder"], "missing argument 'output'"),
    ],
)
def test_missing_arguments_are_named(shared: Program, words: list[str], said: str) -> None:
    done = shared(*words)
    assert (done.code, done.out) == (2, "")
    assert error(done) == f"error: {said}"


def test_no_verb_shows_the_help_and_fails(shared: Program) -> None:
    done = shared()
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("Usage: ocis2i ")


@better("cli.env-with-comma", "is one value, without a warning")
def test_variable_with_commas_is_one_value(shared: Program, builder: str, source: Path) -> None:
    done = shared.ok("build", source, builder, "app:comma", "-e", "OPTIONS=-Da=1,-Db=2")
    assert warnings(done) == []
    env = shared.ok("inspect", "app:comma").document["config"]["Env"]
    assert [one for one in env if one.startswith("OPTIONS")] == ["OPTIONS=-Da=1,-Db=2"]


@better("cli.tag-and-digest", "the digest counts, without a warning")
def test_builder_with_a_tag_and_a_digest(
    ocis2i: Program, registry: FakeRegistry, layout: Path, source: Path
) -> None:
    name = registry.put_layout("team/b", "1", layout)
    digest = next(key for key in registry.manifests["team/b"] if key.startswith("sha256:"))
    done = ocis2i.ok("build", source, f"{name}@{digest}", "app:pinned")
    assert warnings(done) == []
    labels = ocis2i.ok("inspect", "app:pinned").document["config"]["Labels"]
    assert labels["io.openshift.s2i.build.image"] == f"{name}@{digest}"
    asked = [one.path for one in registry.requests("GET", "/manifests/")]
    assert asked == [f"/v2/team/b/manifests/{digest}"]


@same("--location")
def test_location_is_the_outdated_name_of_destination(
    shared: Program, make: Maker, source: Path
) -> None:
    builder = make({"assemble": f"{SHELL}ls -d /opt/given/src /opt/loser/src\ntrue\n"})
    done = shared.ok("build", source, builder, "-l", "/opt/given", "-d", "/opt/loser")
    assert warnings(done) == ["--location is deprecated, use --destination"]
    assert "\n/opt/given/src\n" in done.err
    assert "\n/opt/loser/src\n" not in done.err


@same("--scripts")
def test_scripts_is_the_outdated_name_of_scripts_url(
    shared: Program, builder: str, source: Path, tmp_path: Path
) -> None:
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "assemble").write_text(f"{SHELL}echo of the outdated flag\n")
    url = f"file://{tmp_path}/scripts"
    done = shared.ok("build", source, builder, "--scripts", url, "--scripts-url", "file:///nowhere")
    assert "--scripts is deprecated, use --scripts-url" in warnings(done)
    assert "\nof the outdated flag\n" in done.err


@better("--save-temp-dir", "keeps a copy of what was uploaded, and always says where")
def test_uploaded_files_are_kept_on_demand(
    shared: Program, builder: str, source: Path, tmp_path: Path
) -> None:
    (tmp_path / "tmp").mkdir()
    (source / ".s2i" / "bin").mkdir(parents=True)
    (source / ".s2i" / "bin" / "assemble").write_text(f"{SHELL}echo mine\n")
    words = ("build", source, builder, "--save-temp-dir")
    (line,) = warnings(shared.ok(*words, TMPDIR=str(tmp_path / "tmp")))
    (kept,) = (tmp_path / "tmp").iterdir()
    assert line == f"what was uploaded is kept in `{kept}`"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o700
    assert (kept / "upload/src/index.html").read_text() == "hello from the source\n"
    assert (kept / "upload/scripts/assemble").read_text() == f"{SHELL}echo mine\n"


def test_nothing_is_kept_without_the_flag(
    shared: Program, builder: str, source: Path, tmp_path: Path
) -> None:
    (tmp_path / "tmp").mkdir()
    shared.ok("build", source, builder, TMPDIR=str(tmp_path / "tmp"))
    assert list((tmp_path / "tmp").iterdir()) == []
    assert list((shared.store / "builds").iterdir()) == []


# --- pull policies ----------------------------------------------------------------------------


@same("--pull-policy")
@same("--incremental-pull-policy")
@same("--runtime-pull-policy")
@pytest.mark.parametrize("verb", ["build", "rebuild", "usage"])
@pytest.mark.parametrize("flag", ["", "incremental-", "runtime-"])
def test_policy_that_is_none_is_refused(
    shared: Program, builder: str, source: Path, verb: str, flag: str
) -> None:
    words: dict[str, list[str | Path]] = {
        "build": [source, builder, *(["--runtime-image", "x:1"] if flag == "runtime-" else [])],
        "rebuild": ["app:1"],
        "usage": [builder],
    }
    done = shared(verb, *words[verb], f"--{flag}pull-policy", "sometimes")
    assert (done.code, done.out) == (2, "")
    assert error(done) == "error: invalid pull policy `sometimes`"
    assert "hint: there are always, never, if-not-present" in done.err


@same("--pull-policy")
@better("exit.pull", "4: it is not there; 5: its registry cannot be asked")
def test_policy_never_asks_no_registry(
    ocis2i: Program, registry: FakeRegistry, layout: Path, source: Path
) -> None:
    name = registry.put_layout("b", "1", layout)
    done = ocis2i("build", source, name, "-p", "never")
    assert done.code == 4
    assert "policy is `never`" in error(done)
    assert registry.log == []


@same("--pull-policy")
@better("cli.offline", "a builder that is in the store is not asked for anywhere")
def test_registry_is_asked_when_the_policy_says_so(
    ocis2i: Program, registry: FakeRegistry, layout: Path, make: Maker, source: Path
) -> None:
    name = registry.put_layout("b", "1", layout)
    ocis2i.ok("build", source, name)
    asked = len(registry.log)
    assert asked > 0
    for policy in ("if-not-present", "never"):
        ocis2i.ok("build", source, name, "--pull-policy", policy)
    assert len(registry.log) == asked
    newer = make({"assemble": f"{SHELL}echo of the newer builder\n"})
    registry.put_layout("b", "1", Path(newer.split(":")[1]))
    done = ocis2i.ok("build", source, name, "--pull-policy", "always")
    assert "\nof the newer builder\n" in done.err


# --- credentials ------------------------------------------------------------------------------


@pytest.fixture
def guarded(layout: Path) -> Iterator[FakeRegistry]:
    """A registry with one user, which has a builder."""
    with FakeRegistry("basic", users={USER: PASSWORD}) as fake:
        fake.put_layout("b", "1", layout)
        yield fake


def auths(**hosts: str) -> str:
    encoded = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    return json.dumps({"auths": {host: {"auth": encoded} for host in hosts.values()}})


@same("--dockercfg-path")
def test_file_of_credentials(
    ocis2i: Program, guarded: FakeRegistry, source: Path, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(auths(host=guarded.host))
    name = f"{guarded.host}/b:1"
    assert ocis2i("build", source, name).code == 5
    done = ocis2i.ok("build", source, name, "--dockercfg-path", tmp_path / "config.json")
    assert PASSWORD not in done.out + done.err


@better("DOCKER_CONFIG", "is the directory of the credentials")
def test_directory_of_credentials(
    ocis2i: Program, guarded: FakeRegistry, source: Path, tmp_path: Path
) -> None:
    (tmp_path / "docker").mkdir()
    (tmp_path / "docker" / "config.json").write_text(auths(host=guarded.host))
    ocis2i.ok("build", source, f"{guarded.host}/b:1", DOCKER_CONFIG=str(tmp_path / "docker"))


@better("credentials.helpers", "`credHelpers`, `credsStore` and `identitytoken` count")
@pytest.mark.parametrize("how", ["credHelpers", "credsStore"])
def test_credential_helper_is_asked(
    ocis2i: Program, guarded: FakeRegistry, source: Path, tmp_path: Path, how: str
) -> None:
    answer = json.dumps({"ServerURL": guarded.host, "Username": USER, "Secret": PASSWORD})
    (tmp_path / "bin").mkdir()
    helper = tmp_path / "bin" / "docker-credential-box"
    helper.write_text(f"{SHELL}[ $(cat) = {guarded.host} ] && echo '{answer}'\n")
    helper.chmod(0o755)
    wanted = (
        {"credHelpers": {guarded.host: "box"}} if how == "credHelpers" else {"credsStore": "box"}
    )
    (tmp_path / "config.json").write_text(json.dumps(wanted))
    path = f"{tmp_path}/bin:{ocis2i.environment['PATH']}"
    name = f"{guarded.host}/b:1"
    ocis2i.ok("build", source, name, "--dockercfg-path", tmp_path / "config.json", PATH=path)


@better("credentials.helpers", "`credHelpers`, `credsStore` and `identitytoken` count")
def test_identity_token_counts(ocis2i: Program, layout: Path, source: Path, tmp_path: Path) -> None:
    with FakeRegistry("bearer", users={USER: PASSWORD}) as fake:
        fake.identity_tokens.add("of-identity")
        name = fake.put_layout("b", "1", layout)
        auth = {"auths": {fake.host: {"identitytoken": "of-identity"}}}
        (tmp_path / "config.json").write_text(json.dumps(auth))
        ocis2i.ok("build", source, name, "--dockercfg-path", tmp_path / "config.json")


@better("credentials.fallback", "they go to Docker Hub alone")
@better("security.registry-credentials", "a registry gets its own, or none")
def test_credentials_of_docker_hub_go_to_no_other_registry(
    ocis2i: Program, guarded: FakeRegistry, source: Path, tmp_path: Path
) -> None:
    hub = auths(first="https://index.docker.io/v1/", second="docker.io", third="index.docker.io")
    (tmp_path / "config.json").write_text(hub)
    done = ocis2i(
        *("build", source, f"{guarded.host}/b:1", "--dockercfg-path", tmp_path / "config.json")
    )
    assert done.code == 5
    assert guarded.log != []
    assert [one for one in guarded.log if "authorization" in one.headers] == []


# --- .s2ifile ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Desk:
    """A current directory with its `.s2ifile`."""

    ocis2i: Program
    path: Path

    def build(self, *words: str | Path) -> Done:
        return self.ocis2i("build", *words, "--use-config", cwd=self.path)

    @property
    def saved(self) -> Json:
        value: Json = json.loads((self.path / ".s2ifile").read_bytes())
        return value

    def save(self, name: str = ".s2ifile", **document: Any) -> None:
        (self.path / name).write_text(json.dumps(document))

    def config(self, tag: str) -> Json:
        config: Json = self.ocis2i.ok("inspect", tag).document["config"]
        return config


@pytest.fixture
def desk(shared: Program, tmp_path: Path) -> Desk:
    (tmp_path / "desk").mkdir()
    return Desk(shared, tmp_path / "desk")


@same("--use-config")
@same("s2ifile.restore")
def test_arguments_of_the_last_build_are_those_of_the_next(
    desk: Desk, builder: str, source: Path
) -> None:
    first = desk.build(source, builder, "saved:1", "--description", "first", "-n", "A name")
    assert first.code == 0, first.err
    assert desk.saved == {
        "source": str(source),
        "builderImage": builder,
        "tag": "saved:1",
        "flags": {"description": "first", "application-name": "A name"},
    }
    second = desk.build("--description", "second")
    assert second.code == 0, second.err
    labels = desk.config("saved:1")["Labels"]
    assert labels["io.k8s.description"] == "second"
    assert labels["io.k8s.display-name"] == "A name"
    assert desk.saved["flags"]["description"] == "second"
    # Two words or more say it all: the stored tag is not theirs.
    third = desk.build(source, builder, "--json")
    assert (third.code, third.document["name"]) == (0, None)


@better("s2ifile.env", "stored are the names, told to the user; with `-e` the new ones count")
def test_values_of_variables_are_not_stored(desk: Desk, builder: str, source: Path) -> None:
    first = desk.build(source, builder, "saved:2", "-e", "TOKEN=s3cret", "-e", "COLOUR=red")
    assert first.code == 0, first.err
    assert desk.saved["flags"] == {"env-0": "TOKEN", "env-1": "COLOUR"}
    told = "`.s2ifile` does not hold the values of --env: TOKEN, COLOUR"
    assert warnings(first) == [told]
    second = desk.build()
    assert second.code == 0
    (line, *_) = warnings(second)
    assert "does not hold the values of --env TOKEN, --env COLOUR: give them again" in line
    assert not [one for one in desk.config("saved:2")["Env"] if one.startswith("TOKEN")]
    # A file of source-to-image holds values, and any `-e` puts all of them aside.
    desk.save(source=str(source), builderImage=builder, tag="saved:2", flags={"env-0": "OLD=1"})
    assert desk.build().code == 0
    assert "OLD=1" in desk.config("saved:2")["Env"]
    desk.save(source=str(source), builderImage=builder, tag="saved:2", flags={"env-0": "OLD=1"})
    assert desk.build("-e", "NEW=2").code == 0
    env = desk.config("saved:2")["Env"]
    assert "NEW=2" in env
    assert "OLD=1" not in env


@same("s2ifile.deprecated")
def test_outdated_file_is_read_with_a_warning(desk: Desk, builder: str, source: Path) -> None:
    desk.save(".stifile", source=str(source), builderImage=builder, tag="saved:3")
    done = desk.build()
    assert done.code == 0, done.err
    assert warnings(done) == ["`.stifile` is deprecated, use `.s2ifile` instead"]
    assert desk.saved["tag"] == "saved:3"


@better("s2ifile.mode", "the file is the owner's alone, and holds no secret")
def test_file_is_private_and_holds_no_password(desk: Desk, builder: str) -> None:
    url = "https://jane:hunter2@127.0.0.1:1/app.git"
    assert desk.build(url, builder, "-e", "TOKEN=s3cret").code == 3
    path = desk.path / ".s2ifile"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "hunter2" not in path.read_text()
    assert "s3cret" not in path.read_text()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", ".s2ifile"),
        ('{"source": 1}', "`source` in"),
        ('{"source": ".", "builderImage": "b", "flags": {"frobnicate": "1"}}', "frobnicate"),
    ],
)
def test_file_that_is_none_is_refused(desk: Desk, text: str, said: str) -> None:
    (desk.path / ".s2ifile").write_text(text)
    done = desk.build()
    assert done.code == 2
    assert said in error(done)
    assert (desk.path / ".s2ifile").read_text() == text


def test_without_a_file_source_and_builder_are_missing(desk: Desk) -> None:
    done = desk.build()
    assert done.code == 2
    assert "there is no `.s2ifile` here" in error(done)
    assert list(desk.path.iterdir()) == []


# --- output -----------------------------------------------------------------------------------


@better("output.lines", "lines stay as they are")
def test_lines_keep_their_indentation(shared: Program, make: Maker, source: Path) -> None:
    script = "printf '    four blanks  \\n\\n\\tand a tab\\n'; printf '  of stderr \\n' >&2"
    done = shared.ok("build", source, make({"assemble": f"{SHELL}{script}\n"}))
    assert "\n    four blanks  \n\n\tand a tab\n" in done.err
    assert "\n  of stderr \n" in done.err


# --- exit codes and reasons -------------------------------------------------------------------


def runtime_image(directory: Path, **config: Any) -> str:
    """An image without anything that could run, as a runtime image for errors."""
    path = directory / f"runtime-{len(list(directory.iterdir()))}"
    layer = Layer().dir("etc").dir("usr")
    make_layout(path, "r:1", [layer], config, platform=f"linux/{architecture()}")
    return f"oci:{path}:r:1"


@dataclass(frozen=True)
class World:
    """What cases of failures are made of."""

    make: Maker
    source: Path
    builder: str
    web: FakeWeb

    @property
    def directory(self) -> Path:
        return self.make.directory

    def closed(self) -> Path:
        path = self.directory / "closed"
        path.mkdir(mode=0o555)
        return path


def _with_run(world: World) -> Path:
    """The source with a run script of its own: a runtime image without scripts needs one."""
    directory = world.source / ".s2i" / "bin"
    directory.mkdir(parents=True)
    (directory / "run").write_text(f"{SHELL}exec sleep 1\n")
    return world.source


def _writing_metadata(text: str) -> str:
    return f"{SHELL}mkdir -p /tmp/.s2i && echo '{text}' > /tmp/.s2i/image_metadata.json\n"


def _with_onbuild(world: World) -> str:
    path = world.directory / "onbuild"
    config = {"OnBuild": ["COPY . /app"]}
    make_layout(path, "b:1", [Layer().dir("etc")], config, platform=f"linux/{architecture()}")
    return f"oci:{path}:b:1"


@pytest.mark.parametrize(
    ("reason", "code", "words"),
    [
        pytest.param(
            "PullBuilderImageFailed",
            5,
            lambda w: [w.source, f"{w.web.host}/no/builder:1"],
            marks=same("PullBuilderImageFailed"),
        ),
        pytest.param(
            "PullBuilderImageFailed",
            4,
            lambda w: [w.source, "no/builder:1", "--pull-policy=never"],
            id="PullBuilderImageFailed-never",
            marks=same("PullBuilderImageFailed"),
        ),
        pytest.param(
            "PullRuntimeImageFailed",
            5,
            lambda w: [
                w.source,
                w.builder,
                "--runtime-image",
                f"{w.web.host}/no/runtime:1",
                "-a",
                "/x",
            ],
            marks=better("PullRuntimeImageFailed", "the runtime image cannot be had"),
        ),
        pytest.param(
            "PullRuntimeImageFailed",
            4,
            lambda w: [
                w.source,
                w.builder,
                "--runtime-image=x:1",
                "-a/x",
                "--runtime-pull-policy=never",
            ],
            id="PullRuntimeImageFailed-never",
            marks=better("PullRuntimeImageFailed", "the runtime image cannot be had"),
        ),
        pytest.param(
            "FetchSourceFailed",
            3,
            lambda w: [f"http://{w.web.host}/no.git", w.builder],
            marks=same("FetchSourceFailed"),
        ),
        pytest.param(
            "FetchScriptsFailed",
            4,
            lambda w: [w.source, w.builder, "--scripts-url", f"{w.web.url}/nothing"],
            marks=same("FetchScriptsFailed"),
        ),
        pytest.param(
            "InstallScriptsFailed",
            4,
            lambda w: [w.source, w.make({"run": None})],
            marks=same("InstallScriptsFailed"),
        ),
        pytest.param(
            "InvalidArtifactsMapping",
            2,
            lambda w: [
                w.source,
                w.builder,
                "--runtime-image",
                runtime_image(w.directory),
                "-a",
                "/x:/y",
            ],
            marks=same("InvalidArtifactsMapping"),
        ),
        pytest.param(
            "FetchRuntimeArtifactsFailed",
            4,
            lambda w: [
                *(_with_run(w), w.builder, "--runtime-image"),
                *(runtime_image(w.directory, User="1001"), "-a", "/not/there"),
            ],
            marks=same("FetchRuntimeArtifactsFailed"),
        ),
        pytest.param(
            "AssembleUserForbidden",
            9,
            lambda w: [w.source, w.builder, "--allowed-uids", "2000-"],
            marks=[
                better("AssembleUserForbidden", "for every build"),
                better("exit.forbidden-user", "9"),
            ],
        ),
        pytest.param(
            "DockerFileCreationFailed",
            8,
            lambda w: [w.source, w.builder, "--as-dockerfile", w.closed() / "Dockerfile"],
            marks=same("DockerFileCreationFailed"),
        ),
        pytest.param(
            "FileSystemOperationFailed",
            8,
            lambda w: [w.source, w.builder, "--root", w.closed() / "store"],
            marks=same("FileSystemOperationFailed"),
        ),
        pytest.param(
            "ContainerCommitFailed",
            8,
            lambda w: [w.source, w.builder, "-o", f"oci-archive:{w.closed()}/image.tar"],
            marks=same("ContainerCommitFailed"),
        ),
        pytest.param(
            "GenericS2IBuildFailed",
            4,
            lambda w: [w.source, w.make({"assemble": _writing_metadata("no json")})],
            marks=same("GenericS2IBuildFailed"),
        ),
        pytest.param(
            "OnBuildForbidden",
            9,
            lambda w: [w.source, _with_onbuild(w)],
            marks=better("DockerImageBuildFailed", "there is no such build: `OnBuildForbidden`"),
        ),
        pytest.param(
            "AssembleFailed", 7, lambda w: [w.source, w.make({"assemble": f"{SHELL}exit 13\n"})]
        ),
        pytest.param("InvalidUsage", 2, lambda w: [w.source, w.builder, "UPPER"]),
    ],
)
def test_failure_has_its_reason_and_its_exit_code(
    shared: Program,
    make: Maker,
    source: Path,
    builder: str,
    reason: str,
    code: int,
    words: Callable[[World], list[str | Path]],
) -> None:
    with FakeWeb() as web:
        done = shared("build", *words(World(make, source, builder, web)), "--json")
    assert done.code == code, done.err
    document = done.document
    assert (document["state"], document["exit_code"]) == ("failed", code)
    assert error(done) == f"error: {document['message']}"
    failure = {"reason": reason, "message": document["message"]}
    assert document["build_info"]["failureReason"] == failure
    assert document["reason"] == reason


# --- stages and steps -------------------------------------------------------------------------

SAVES = {
    "assemble": f"{SHELL}echo cached > $HOME/cache\n",
    "save-artifacts": f"{SHELL}tar -C $HOME -cf - cache\n",
}


def steps(document: Json) -> list[str]:
    """The steps of `build_info`, each after its stage; checks what all of them have."""
    found = []
    for stage in document["build_info"]["stages"]:
        assert set(stage) == {"name", "startTime", "durationMilliseconds", "steps"}
        assert stage["startTime"] == stage["steps"][0]["startTime"]
        for step in stage["steps"]:
            assert set(step) == {"name", "startTime", "durationMilliseconds"}
            assert 0 <= step["durationMilliseconds"] <= stage["durationMilliseconds"]
            assert step["startTime"].endswith("Z")
            found.append(f"{stage['name']}/{step['name']}")
    return found


@same("stages.builder")
@better("stages.assemble", "after a failure too, and without the commit's time")
@better("stages.commit", "after `Assemble`, in the order of time")
def test_stages_of_a_plain_build(shared: Program, builder: str, source: Path) -> None:
    document = shared.ok("build", source, builder, "--json").document
    assert steps(document) == [
        "PullImages/PullBuilderImage",
        "Assemble/AssembleBuildScripts",
        "CommitContainer/CommitContainer",
    ]
    assert document["build_info"]["failureReason"] == {"reason": "", "message": ""}


@better("stages.assemble", "after a failure too, and without the commit's time")
def test_stages_of_a_build_that_fails(shared: Program, make: Maker, source: Path) -> None:
    done = shared("build", source, make({"assemble": f"{SHELL}exit 13\n"}), "--json")
    assert (done.code, done.document["script_exit_code"]) == (7, 13)
    assert steps(done.document) == ["PullImages/PullBuilderImage", "Assemble/AssembleBuildScripts"]


@same("stages.previous")
@same("stages.artifacts")
@better("PullPreviousImageFailed", "a warning; a build that succeeds has no reason of a failure")
def test_stages_of_incremental_builds(shared: Program, make: Maker, source: Path) -> None:
    builder = make(SAVES)
    more = ("--incremental", "--incremental-pull-policy", "never", "--json")
    words = ("build", source, builder, "stages:1", *more)
    first, second = shared.ok(*words), shared.ok(*words)
    assert any("no previous image, a clean build" in line for line in warnings(first))
    assert steps(first.document)[:2] == [
        "PullImages/PullBuilderImage",
        "PullImages/PullPreviousImage",
    ]
    assert [stage["name"] for stage in first.document["stages"] if not stage["ok"]] == [
        "pull-previous"
    ]
    assert first.document["build_info"]["failureReason"] == {"reason": "", "message": ""}
    assert steps(second.document) == [
        "PullImages/PullBuilderImage",
        "PullImages/PullPreviousImage",
        "RetrieveArtifacts/RetrievePreviousArtifacts",
        "Assemble/AssembleBuildScripts",
        "CommitContainer/CommitContainer",
    ]
    assert second.document["incremental"] is True


@same("stages.runtime")
def test_stages_of_a_build_on_a_runtime_image(
    shared: Program, make: Maker, builder: str, source: Path
) -> None:
    runtime = make({"assemble-runtime": f"{SHELL}echo there\n"})
    words = ("build", source, builder, "--runtime-image", runtime, "-a", f"{HOME}/index.html")
    document = shared.ok(*words, "--json").document
    assert steps(document) == [
        "PullImages/PullBuilderImage",
        "PullImages/PullRuntimeImage",
        "Assemble/AssembleBuildScripts",
        "Assemble/AssembleRuntimeScripts",
        "CommitContainer/CommitContainer",
    ]


@better("AssembleRuntimeFailed", "is its own reason")
def test_failing_assemble_runtime_has_a_reason(
    shared: Program, make: Maker, builder: str, source: Path
) -> None:
    runtime = make({"assemble-runtime": f"{SHELL}exit 21\n"})
    words = ("build", source, builder, "--runtime-image", runtime, "-a", f"{HOME}/index.html")
    done = shared(*words, "--json")
    assert (done.code, done.document["reason"]) == (7, "AssembleRuntimeFailed")
    assert done.document["script_exit_code"] == 21
