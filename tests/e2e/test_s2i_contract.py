"""What builder images and sources may rely on: the S2I contract, seen from inside and outside.

The scripts of the builders here tell what they see as lines `KEY: VALUE` on their output.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import struct
import subprocess
import tarfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import RUNC, needs
from tests.contract import better, refused, same
from tests.fakes.bench import Bench, sh, told
from tests.fakes.images import (
    BUSYBOX,
    HOME,
    Layer,
    busybox_builder,
    make_layout,
)
from tests.fakes.images import _architecture as architecture
from tests.fakes.processes import command_lines
from tests.fakes.program import Done, Program

pytestmark = [
    pytest.mark.sandbox,
    pytest.mark.skipif(not BUSYBOX.exists(), reason="busybox-static is not installed"),
]

Json = dict[str, Any]
ISOLATIONS = [RUNC, "builtin"]

RUN = '#!/bin/sh\necho "run of the image: $GREETING"\n'
TELL = """\
#!/bin/sh
echo "script: $0"
echo "arguments: $#"
echo "id: $(id -u):$(id -g)"
echo "groups: $(id -G)"
echo "pwd: $(pwd)"
echo "home: $HOME"
echo "path: $PATH"
echo "hostname: $HOSTNAME"
echo "stdin: $(cat | wc -c)"
echo "src: $(stat -c '%a %u %g' /tmp/src)"
echo "index: $(stat -c '%a %u %g' /tmp/src/index.html)"
echo "tmp: $(stat -c '%a' /tmp)"
echo "shm: $(stat -c '%a' /dev/shm)"
"""


def telling(*lines: str) -> dict[str, str | None]:
    """Scripts of a builder whose assemble runs these lines of shell."""
    return sh(*lines) | {"run": RUN}


@dataclass(frozen=True)
class Desk(Bench):
    """A bench whose builders tell what they see."""

    def builder(self, scripts: Mapping[str, str | None] | None = None, **how: Any) -> str:
        path = self.directory / "builder"
        busybox_builder(path, scripts={"assemble": TELL, "run": RUN} | dict(scripts or {}), **how)
        return f"oci:{path}:builder:latest"

    def builder_with(
        self,
        config: Mapping[str, Any],
        scripts: Mapping[str, str | None] | None = None,
        more_layers: Sequence[Layer] = (),
        without: Sequence[str] = (),
    ) -> str:
        """A builder whose runtime config is changed: `config` over the usual one."""
        chosen = {"assemble": TELL, "run": RUN} | dict(scripts or {})
        return self.image("builder", chosen, {**config, **dict.fromkeys(without)}, more_layers)

    def build(self, source: Path | str, builder: str, *arguments: str | Path) -> Done:
        """Builds `tag`; the build has to succeed."""
        return self.ocis2i.ok("build", source, builder, self.tag, *arguments)

    @property
    def config(self) -> Json:
        """The runtime config of what was built."""
        return self.result().config

    @property
    def env(self) -> list[str]:
        return list(self.config["Env"])

    @property
    def labels(self) -> dict[str, str]:
        return dict(self.config["Labels"])

    @property
    def layer(self) -> dict[str, tarfile.TarInfo]:
        """The members of the new layer, by name."""
        return self.result().members()

    def in_image(self, *command: str) -> str:
        """What a command prints in a container of the result."""
        return self.ocis2i.ok("run", self.tag, *command).out


@pytest.fixture
def bench(shared: Program, tmp_path: Path) -> Desk:
    return Desk(shared, tmp_path)


# --- which scripts ----------------------------------------------------------------------------


@same("io.openshift.s2i.scripts-url")
@same("scripts.url-image")
def test_scripts_of_the_image_are_run_where_they_are(bench: Desk) -> None:
    done = bench.build(bench.source(), bench.builder())
    assert told(done)["script"] == "/usr/libexec/s2i/assemble"
    assert bench.config["Cmd"] == ["/usr/libexec/s2i/run"]


@same("scripts.order")
def test_each_script_is_looked_for_by_itself(bench: Desk) -> None:
    source = bench.source({".s2i/bin/assemble": '#!/bin/sh\necho "script: $0"\n'})
    done = bench.build(source, bench.builder())
    assert told(done)["script"] == "/tmp/scripts/assemble"
    assert bench.config["Cmd"] == ["/usr/libexec/s2i/run"]


@same("scripts.moved-and-executable")
@same("s2i-directory.other-files")
@same("image.scripts-stay")
@same("image.leftovers")
def test_run_script_of_the_source_stays_in_the_image(bench: Desk) -> None:
    source = bench.source({".s2i/bin/run": "#!/bin/sh\necho mine\n", ".s2i/bin/other": "other\n"})
    bench.build(source, bench.builder())
    assert bench.config["Cmd"] == ["/tmp/scripts/run"]
    assert bench.in_image() == "mine\n"
    assert bench.in_image("stat", "-c", "%a %u %g", "/tmp/scripts/run") == "755 1001 0\n"
    # Moved, not copied; what is no script stays with the source.
    listed = bench.in_image("ls", "-A", "/tmp/src/.s2i/bin", "/tmp/scripts")
    assert listed == "/tmp/scripts:\nrun\n\n/tmp/src/.s2i/bin:\nother\n"


@same("--scripts-url")
@same("scripts.image-url-hides-source")
def test_scripts_url_inside_the_image_beats_the_source(bench: Desk) -> None:
    other = Layer().dir("other").file("other/assemble", TELL, mode=0o755)
    other.file("other/run", RUN, mode=0o755)
    source = bench.source({".s2i/bin/assemble": "#!/bin/sh\nexit 1\n"})
    builder = bench.builder(more_layers=[other])
    done = bench.build(source, builder, "--scripts-url", "image:///other")
    assert told(done)["script"] == "/other/assemble"
    assert bench.config["Cmd"] == ["/other/run"]


@same("scripts.url-file")
@same("scripts.some-at-url")
def test_scripts_url_on_the_host_beats_the_source_for_what_it_has(bench: Desk) -> None:
    scripts = bench.directory / "scripts"
    scripts.mkdir()
    (scripts / "assemble").write_text("#!/bin/sh\necho 'from: the host'\n")
    source = bench.source({
        ".s2i/bin/assemble": "#!/bin/sh\nexit 1\n", ".s2i/bin/run": "#!/bin/sh\necho source\n"
    })  # fmt: skip
    done = bench.build(source, bench.builder(), "--scripts-url", f"file://{scripts}")
    assert told(done)["from"] == "the host"
    assert bench.in_image() == "source\n"


@better("scripts.careless-urls", "`image://usr/x` means `/usr/x`")
@pytest.mark.parametrize("url", ["image:///usr/libexec/s2i/", "image://usr/libexec/s2i"])
def test_careless_scripts_urls_of_images_are_understood(bench: Desk, url: str) -> None:
    builder = bench.builder(labels={"io.openshift.s2i.scripts-url": url})
    bench.build(bench.source(), builder)
    assert bench.config["Cmd"] == ["/usr/libexec/s2i/run"]
    assert bench.labels["io.openshift.s2i.scripts-url"] == url


@same("io.s2i.scripts-url")
@same("STI_SCRIPTS_URL")
@pytest.mark.parametrize("kind", ["label", "variable"])
def test_outdated_promises_of_a_builder_count_with_a_warning(bench: Desk, kind: str) -> None:
    url = "image:///usr/libexec/s2i"
    change = (
        {"Labels": {"io.s2i.scripts-url": url}}
        if kind == "label"
        else {"Labels": {}, "Env": ["PATH=/bin", f"STI_SCRIPTS_URL={url}"]}
    )
    done = bench.build(bench.source(), bench.builder_with(change))
    assert bench.config["Cmd"] == ["/usr/libexec/s2i/run"]
    assert "deprecated" in done.err


@better("scripts.required", "looked for in the image before anything runs")
@better("scripts.missing", "one error that names the path")
@better("exit.missing-script", "4")
def test_missing_script_of_the_image_is_one_clear_error(bench: Desk) -> None:
    builder = bench.builder({"run": None})
    done = bench.ocis2i("build", bench.source(), builder, bench.tag)
    assert done.code == 4
    assert "has no script `/usr/libexec/s2i/run`" in done.err


# --- the config of the result -----------------------------------------------------------------


@same("image.cmd")
@better("image.entrypoint", "none, so that `Cmd` alone is what runs")
@same("image.working-dir")
@same("image.ports-volumes-signal-health")
@same("image.dropped-fields")
@better("assemble.entrypoint", "scripts are run directly")
def test_cmd_is_the_run_script_alone_and_all_else_is_the_builders(bench: Desk) -> None:
    kept: Json = {
        "User": "1001",
        "WorkingDir": HOME,
        "ExposedPorts": {"8080/tcp": {}, "9000/udp": {}},
        "Volumes": {"/opt/data": {}},
        "Healthcheck": {"Test": ["CMD", "true"], "Interval": 30_000_000_000, "Retries": 3},
        "StopSignal": "SIGINT",
    }
    given = {"Entrypoint": ["/bin/false"], "Cmd": ["/bin/usage", "--all"], "Shell": ["/bin/ash"]}
    # An entrypoint that fails: that the build succeeds says that it does not run.
    bench.build(bench.source(), bench.builder_with(kept | given))
    config = bench.config
    assert config["Cmd"] == ["/usr/libexec/s2i/run"]
    assert "Entrypoint" not in config
    assert "Shell" not in config
    assert {name: config[name] for name in kept} == kept


@same("image.user")
def test_user_of_the_image_is_not_the_assemble_user(bench: Desk) -> None:
    bench.build(bench.source(), bench.builder(), "--assemble-user", "0")
    assert bench.config["User"] == "1001"


@same("OnBuildForbidden")
def test_onbuild_is_refused(bench: Desk) -> None:
    builder = bench.builder_with({"OnBuild": ["COPY . /src", "RUN make"]})
    done = bench.ocis2i("build", bench.source(), builder, bench.tag, "--json")
    assert done.code == 9
    assert done.document["reason"] == "OnBuildForbidden"
    assert "ONBUILD" in done.err


# --- environment ------------------------------------------------------------------------------


ENVIRONMENT = """\
# a comment
FROM_FILE=file
IN_ALL = file
 QUOTED="as it is"
 # no comment, but no variable either
EMPTY=
TWICE=1
TWICE=2
EQUALS=a=b
"""


@same("--env")
@same("env.order")
@same("env.s2i-environment")
@same("env.persisted")
@better("env.duplicates", "each name once, with its last value")
@same("image.env")
def test_environment_comes_from_image_file_and_flag_in_this_order(bench: Desk) -> None:
    source = bench.source({".s2i/environment": ENVIRONMENT})
    show = 'echo "seen: $IN_ALL $IN_TWO $ONLY_IMAGE $FROM_FILE $QUOTED $TWICE $EQUALS"'
    builder = bench.builder(
        telling(show), env=["IN_ALL=image", "IN_TWO=image", "ONLY_IMAGE=image", "TWICE=0"]
    )
    flags = ("-e", "IN_ALL=flag", "-e", "IN_TWO=flag", "-e", "GREETING=hi there")
    done = bench.build(source, builder, *flags)
    assert told(done)["seen"] == 'flag flag image file "as it is" 2 a=b'
    env = bench.env
    names = [entry.partition("=")[0] for entry in env]
    assert len(names) == len(set(names))
    assert {
        *("IN_ALL=flag", "IN_TWO=flag", "ONLY_IMAGE=image", "FROM_FILE=file", "TWICE=2"),
        *('QUOTED="as it is"', "EQUALS=a=b", "EMPTY=", "GREETING=hi there"),
    } <= set(env)
    # The user's first, then the rest of the image's; nothing that an engine adds.
    assert names.index("FROM_FILE") < names.index("ONLY_IMAGE")
    assert "HOSTNAME" not in names
    assert bench.in_image() == "run of the image: hi there\n"


@better("env.s2i-environment", "lines that are skipped are counted in a warning")
def test_lines_of_the_environment_file_that_are_none_are_counted_not_shown(bench: Desk) -> None:
    source = bench.source({".s2i/environment": "A=1\nsecret words\n"})
    done = bench.build(source, bench.builder())
    assert "warning: `.s2i/environment`: 1 line without NAME=VALUE left out" in done.err
    assert "secret words" not in done.err


@same("env.invalid")
@pytest.mark.parametrize("variable", ["NAME", "=value", ""])
def test_variable_without_name_or_value_is_refused(bench: Desk, variable: str) -> None:
    builder = bench.builder()
    done = bench.ocis2i("build", bench.source(), builder, bench.tag, "-e", variable)
    assert done.code == 2
    assert "invalid variable" in done.err


# --- labels -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Repository:
    """A git repository with an application in `web/`, on a branch `stable` and behind it."""

    path: Path

    def __call__(self, *arguments: str) -> str:
        identity = ("-c", "user.name=Ada Ä. Lovelace", "-c", "user.email=ada@example.org")
        done = subprocess.run(
            ["git", "-C", str(self.path), *identity, *arguments],
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
            env=os.environ
            | {"GIT_AUTHOR_DATE": "2024-02-29T12:30:00+0100", "GIT_CONFIG_GLOBAL": "/dev/null"},
        )
        return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    git = Repository(tmp_path / "repository")
    (git.path / "web").mkdir(parents=True)
    git("init", "-q", "-b", "main")
    (git.path / "web/index.html").write_text("of main\n")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    git("checkout", "-q", "-b", "stable")
    (git.path / "web/index.html").write_text("of stable\n")
    git("commit", "-q", "-a", "-m", "Greet properly\n\nWith a body that is no part of the subject.")
    git("tag", "v1")
    git("checkout", "-q", "main")
    return git


@same("--ref")
@same("--context-dir")
@same("--description")
@same("source.git-context-dir")
@same("io.k8s.description")
@same("io.openshift.s2i.build.image")
@same("io.openshift.s2i.build.commit.author")
@same("io.openshift.s2i.build.commit.date")
@same("io.openshift.s2i.build.commit.id")
@same("io.openshift.s2i.build.commit.ref")
@same("io.openshift.s2i.build.commit.message")
@same("io.openshift.s2i.build.source-location")
@same("io.openshift.s2i.build.source-context-dir")
@needs("git")
def test_labels_say_where_the_source_came_from(bench: Desk, repository: Repository) -> None:
    url = f"file://{repository.path}"
    options = ("--ref", "stable", "--context-dir", "web", "--description", "It greets.")
    bench.build(url, bench.builder(labels={"vendor": "us"}), *options)
    build = "io.openshift.s2i.build."
    assert {key: value for key, value in bench.labels.items() if key.startswith(build)} == {
        f"{build}image": bench.labels[f"{build}image"],
        f"{build}commit.author": "Ada Ä. Lovelace <ada@example.org>",
        f"{build}commit.date": "Thu Feb 29 12:30:00 2024 +0100",
        f"{build}commit.id": repository("rev-parse", "stable"),
        f"{build}commit.ref": "stable",
        f"{build}commit.message": "Greet properly",
        f"{build}source-location": url,
        f"{build}source-context-dir": "web",
    }
    assert bench.labels[f"{build}image"].startswith("oci:")
    assert bench.labels["io.k8s.description"] == "It greets."
    assert bench.in_image("cat", "/tmp/src/index.html") == "of stable\n"
    assert bench.in_image("ls", "-A", "/tmp/src") == "index.html\n"


@same("--ref")
@needs("git")
@pytest.mark.parametrize("ref", ["v1", "commit"])
def test_tag_and_commit_are_refs_too(bench: Desk, repository: Repository, ref: str) -> None:
    wanted = repository("rev-parse", "stable")
    bench.build(repository.path, bench.builder(), "--ref", wanted if ref == "commit" else ref)
    assert bench.labels["io.openshift.s2i.build.commit.id"] == wanted
    assert bench.in_image("cat", "/tmp/src/web/index.html") == "of stable\n"


@better("source.fragment", "it counts, and `--ref` beats it")
@needs("git")
def test_fragment_is_a_ref_and_the_flag_beats_it(bench: Desk, repository: Repository) -> None:
    url = f"file://{repository.path}#stable"
    bench.build(url, bench.builder())
    assert bench.in_image("cat", "/tmp/src/web/index.html") == "of stable\n"
    bench.build(url, bench.builder(), "--ref", "main")
    assert bench.in_image("cat", "/tmp/src/web/index.html") == "of main\n"


@same("--copy")
@same("exclude.default")
@needs("git")
def test_local_clone_gives_committed_content_only(bench: Desk, repository: Repository) -> None:
    (repository.path / "web/index.html").write_text("not committed\n")
    bench.build(repository.path, bench.builder())
    assert bench.in_image("cat", "/tmp/src/web/index.html") == "of main\n"
    assert bench.in_image("ls", "-A", "/tmp/src") == "web\n"
    bench.build(repository.path, bench.builder(), "--copy")
    assert bench.in_image("cat", "/tmp/src/web/index.html") == "not committed\n"
    assert "io.openshift.s2i.build.commit.id" not in bench.labels


@same("--application-name")
@same("io.k8s.display-name")
@same("labels.inherited")
@same("source.copy-labels")
def test_names_in_labels_are_as_typed(bench: Desk) -> None:
    builder = bench.builder(labels={"io.k8s.display-name": "the builder", "vendor": "us"})
    bench.build(bench.source(), builder)
    assert bench.labels["io.k8s.display-name"] == bench.tag
    assert bench.labels["vendor"] == "us"
    assert bench.labels["io.openshift.s2i.build.source-location"] == str(bench.source())
    bench.build(bench.source(), builder, "--application-name", "My App")
    assert bench.labels["io.k8s.display-name"] == "My App"


METADATA = "/tmp/.s2i/image_metadata.json"


@same("labels.precedence")
@same("metadata.labels")
@same("metadata.stays")
def test_labels_that_assemble_writes_win(bench: Desk) -> None:
    document = '{"labels": [{"vendor": "assemble", "a": "1"}, {"io.k8s.display-name": "mine"}]}'
    scripts = telling("mkdir /tmp/.s2i", f"echo '{document}' > {METADATA}")
    bench.build(bench.source(), bench.builder(scripts, labels={"vendor": "us"}))
    assert bench.labels["vendor"] == "assemble"
    assert bench.labels["a"] == "1"
    assert bench.labels["io.k8s.display-name"] == "mine"
    assert "tmp/.s2i/image_metadata.json" in bench.layer


@better("metadata.links", "what the link means inside the image counts")
@same("security.metadata")
@pytest.mark.parametrize("link", ["file", "directory"])
def test_link_in_place_of_the_labels_never_reads_the_host(bench: Desk, link: str) -> None:
    secret = bench.directory / "secret"
    secret.mkdir()
    (secret / "image_metadata.json").write_text('{"labels": [{"stolen": "from the host"}]}')
    line = (
        f"mkdir /tmp/.s2i; ln -s {secret}/image_metadata.json {METADATA}"
        if link == "file"
        else f"ln -s {secret} /tmp/.s2i"
    )
    bench.build(bench.source(), bench.builder(telling(line)))
    assert "stolen" not in bench.labels


@better("metadata.invalid", "one error for whatever is wrong")
@pytest.mark.parametrize(
    "document", ["not json", "[]", "{}", '{"labels": [{"a": 1}]}', '{"labels": {"a": "b"}}']
)
def test_malformed_labels_fail_the_build(bench: Desk, document: str) -> None:
    builder = bench.builder(telling("mkdir /tmp/.s2i", f"echo '{document}' > {METADATA}"))
    done = bench.ocis2i("build", bench.source(), builder, bench.tag)
    assert done.code == 4
    assert METADATA in done.err
    assert "Traceback" not in done.err


@same("labels.limit")
def test_labels_have_a_limit_together(bench: Desk) -> None:
    builder = bench.builder(labels={"large": "x" * 10_000})
    done = bench.ocis2i("build", bench.source(), builder, bench.tag, "--description", "y" * 300)
    assert done.code == 9
    assert "the limit is 10240" in done.err


# --- where source and scripts go --------------------------------------------------------------


@same("--destination")
@same("io.openshift.s2i.destination")
@same("scripts.destination")
@same("upload.layout")
@pytest.mark.parametrize("kind", ["label", "flag", "both"])
def test_destination_of_source_and_scripts(bench: Desk, kind: str) -> None:
    labels = {"io.openshift.s2i.destination": "/opt/label"} if kind != "flag" else {}
    flags = ("--destination", "/opt/flag/deep/") if kind != "label" else ()
    place = "/opt/label" if kind == "label" else "/opt/flag/deep"
    source = bench.source({".s2i/bin/run": RUN})
    builder = bench.builder(telling(f"touch {place}/src/new"), labels=labels)
    bench.build(source, builder, *flags)
    assert bench.config["Cmd"] == [f"{place}/scripts/run"]
    assert bench.in_image("cat", f"{place}/src/index.html") == "hello\n"
    assert "tmp/src" not in bench.layer


@refused("--destination opt/x", "a relative path means nothing in an image")
def test_relative_destination_is_refused(bench: Desk) -> None:
    done = bench.ocis2i("build", bench.source(), bench.builder(), bench.tag, "-d", "opt/x")
    assert done.code == 2
    assert "--destination" in done.err


def test_destination_through_a_link_stays_inside_the_image(bench: Desk) -> None:
    link = Layer().dir("real").dir("links").symlink("links/out", "/../../../real")
    builder = bench.builder(telling("ls /real"), more_layers=[link])
    bench.build(bench.source(), builder, "--destination", "/links/out")
    assert bench.in_image("cat", "/real/src/index.html") == "hello\n"
    assert bench.layer["real/src/index.html"].isreg()


# --- who runs assemble ------------------------------------------------------------------------


@same("assemble.user-forms")
@better("upload.owner", "the assemble user, root too")
@pytest.mark.parametrize(
    ("user", "seen"),
    [
        ("1001", "1001:0"),
        ("default", "1001:0"),
        ("0", "0:0"),
        ("", "0:0"),
        ("nobody", "65534:65534"),
        ("1234", "1234:0"),
        ("1234:5678", "1234:5678"),
        ("default:nogroup", "1001:65534"),
        ("65535", "65535:0"),
    ],
)
def test_user_of_the_image_in_every_form(bench: Desk, user: str, seen: str) -> None:
    done = bench.build(bench.source(), bench.builder(user=user))
    log = told(done)
    assert log["id"] == seen
    owner = seen.replace(":", " ")
    assert log["src"] == f"755 {owner}"
    assert log["index"] == f"644 {owner}"
    assert bench.config.get("User", "") == user


@same("assemble.user-forms")
def test_supplementary_groups_come_from_the_image(bench: Desk) -> None:
    group = Layer().dir("etc").file("etc/group", "root:x:0:\na:x:50:default\nb:x:60:x,default\n")
    done = bench.build(bench.source(), bench.builder(user="default", more_layers=[group]))
    assert told(done)["groups"].split() == ["0", "50", "60"]


@same("--assemble-user")
@same("io.openshift.s2i.assemble-user")
@same("assemble.user")
@pytest.mark.parametrize(("flag", "seen"), [(None, "65534:0"), ("77:88", "77:88")])
def test_assemble_user_of_flag_beats_label_beats_user(
    bench: Desk, flag: str | None, seen: str
) -> None:
    builder = bench.builder(labels={"io.openshift.s2i.assemble-user": "65534:0"})
    flags = ("--assemble-user", flag) if flag else ()
    assert told(bench.build(bench.source(), builder, *flags))["id"] == seen


def test_unknown_user_name_is_one_clear_error(bench: Desk) -> None:
    done = bench.ocis2i(
        "build", bench.source(), bench.builder(), bench.tag, "--assemble-user", "alice"
    )
    assert done.code == 4
    assert "no user `alice`" in done.err


@same("assemble.environment")
@pytest.mark.parametrize(
    ("user", "home"),
    [("0", "/root"), ("default", HOME), ("1001", HOME), ("4321", "/"), ("nobody", "/nonexistent")],
)
def test_home_comes_from_the_images_passwd(bench: Desk, user: str, home: str) -> None:
    builder = bench.builder_with({"User": user, "Env": ["OTHER=x"]})
    log = told(bench.build(bench.source(), builder))
    assert log["home"] == home
    assert log["path"] == "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    assert bench.env == ["OTHER=x"]


# --- the container of assemble ----------------------------------------------------------------


@same("assemble.no-arguments")
@same("assemble.working-directory")
@same("assemble.shm")
def test_assemble_starts_as_the_contract_says(bench: Desk) -> None:
    log = told(bench.build(bench.source(), bench.builder()))
    assert log["arguments"] == "0"
    assert log["pwd"] == HOME
    assert log["home"] == HOME
    assert log["stdin"] == "0"
    assert log["tmp"] == "1777"
    assert log["shm"] == "1777"
    assert log["hostname"]


@same("assemble.source-is-writable")
def test_source_can_be_moved_away_by_the_assemble_user(bench: Desk) -> None:
    source = bench.source({".hidden": "h", "sub/deep/file": "d"})
    (source / "sub").chmod(0o755)
    builder = bench.builder(telling('mv /tmp/src/* /tmp/src/.hidden "$HOME"', "rmdir /tmp/src"))
    bench.build(source, builder)
    assert bench.in_image("cat", f"{HOME}/sub/deep/file") == "d"
    assert "tmp/src" not in bench.layer


@same("assemble.source-is-writable")
def test_empty_source_is_an_empty_writable_directory(bench: Desk) -> None:
    source = bench.directory / "nothing"
    source.mkdir()
    bench.build(source, bench.builder(telling('[ -z "$(ls -A /tmp/src)" ]', "touch /tmp/src/x")))
    assert bench.layer["tmp/src/x"].uid == 1001


@same("assemble.working-directory")
@pytest.mark.parametrize(("working_dir", "pwd"), [("/made/for/me", "/made/for/me"), ("", "/")])
def test_working_directory_is_there(bench: Desk, working_dir: str, pwd: str) -> None:
    builder = bench.builder_with({"WorkingDir": working_dir})
    assert told(bench.build(bench.source(), builder))["pwd"] == pwd


def test_builder_without_a_tmp_gets_a_usable_one(bench: Desk) -> None:
    gone = Layer().whiteout("tmp")
    log = told(bench.build(bench.source(), bench.builder(more_layers=[gone])))
    assert log["src"] == "755 1001 0"
    assert log["tmp"] == "1777"


@better("assemble.missing-tar", "the source is put there from outside")
@better("layered", "no second image is made")
def test_builder_without_shell_and_tar_can_assemble(bench: Desk) -> None:
    if architecture() != "amd64":
        pytest.skip("the program of this test is machine code for amd64")
    layer = Layer().dir("s2i").file("s2i/assemble", mkdir_program(b"/made"), mode=0o755)
    layer.file("s2i/run", mkdir_program(b"/running"), mode=0o755)
    path = bench.directory / "bare"
    config = {"Labels": {"io.openshift.s2i.scripts-url": "image:///s2i"}, "WorkingDir": "/app"}
    make_layout(path, "bare", [layer], config)
    bench.build(bench.source(), f"oci:{path}:bare")
    layer_of_result = bench.layer
    assert layer_of_result["made"].isdir()
    assert layer_of_result["tmp/src/index.html"].isreg()
    assert not {name for name in layer_of_result if name.startswith(("etc", "proc", "dev", "sys"))}


def mkdir_program(path: bytes) -> bytes:
    """A static program for amd64 that makes a directory and ends with 0."""
    # mov eax, 83 (mkdir); lea rdi, [rip+16]; mov esi, 0755; syscall;
    # mov eax, 60 (exit); xor edi, edi; syscall
    code = b"\xb8\x53\0\0\0" + b"\x48\x8d\x3d\x10\0\0\0" + b"\xbe\xed\x01\0\0" + b"\x0f\x05"
    code += b"\xb8\x3c\0\0\0" + b"\x31\xff" + b"\x0f\x05"
    body = code.ljust(28, b"\x90") + path + b"\0"
    address, head = 0x400000, 64 + 56
    elf = b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + struct.pack(
        "<HHIQQQIHHHHHH", 2, 0x3E, 1, address + head, 64, 0, 0, 64, 56, 1, 0, 0, 0
    )
    size = head + len(body)
    return elf + struct.pack("<IIQQQQQQ", 1, 5, 0, address, address, size, size, 4096) + body


@same("image.nothing-of-the-engine")
@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_names_are_resolved_as_on_the_host_and_nothing_of_it_is_kept(
    bench: Desk, isolation: str
) -> None:
    show = "cat /etc/resolv.conf; echo; echo between; cat /etc/hosts; echo; touch /tmp/made"
    builder = bench.builder(telling(f"echo begin; {show}; echo end"), user="0")
    done = bench.build(bench.source(), builder, "--isolation", isolation)
    _, _, shown = done.err.partition("\nbegin\n")
    resolver, _, rest = shown.partition("\nbetween\n")
    hosts, _, _ = rest.partition("\nend\n")
    assert resolver.strip() == Path("/etc/resolv.conf").read_text().strip()
    # The container's own name is added.
    assert hosts.startswith(Path("/etc/hosts").read_text().strip())
    assert not [name for name in bench.layer if name.startswith("etc")]


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_resolver_that_is_a_dangling_link_in_the_image_works(bench: Desk, isolation: str) -> None:
    # What systemd-resolved leaves in images.
    link = Layer().dir("etc").symlink("etc/resolv.conf", "../run/systemd/resolve/stub-resolv.conf")
    builder = bench.builder(
        telling("wc -c < /etc/resolv.conf", "cat /etc/resolv.conf", "touch /run/mine"),
        user="0",
        more_layers=[link],
    )
    done = bench.build(bench.source(), builder, "--isolation", isolation)
    assert Path("/etc/resolv.conf").read_text().strip() in done.err
    assert {name for name in bench.layer if name.startswith(("etc", "run"))} == {"run", "run/mine"}


# --- volumes ----------------------------------------------------------------------------------


@same("--volume")
@same("volume.not-committed")
@same("volume.read-only")
@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_volumes_are_seen_and_are_not_in_the_image(bench: Desk, isolation: str) -> None:
    shared, fixed = bench.directory / "rw", bench.directory / "ro"
    for path in (shared, fixed):
        path.mkdir()
        (path / "given").write_text(f"{path.name}\n")
        path.chmod(0o777)
    settings = bench.directory / "settings"
    settings.write_text("one file\n")
    scripts = telling(
        "echo given: $(cat /cache/given /mnt/made/here/given /etc/settings)",
        "echo new > /cache/new",
        "if echo new > /mnt/made/here/new; then echo 'ro: writable'; else echo 'ro: yes'; fi",
        "echo beside > /mnt/made/beside",
    )
    builder = bench.builder(scripts, user="0")
    done = bench.build(
        *(bench.source(), builder, "--isolation", isolation),
        *("-v", f"{shared}:/cache", "--volume", f"{fixed}:/mnt/made/here:ro"),
        *("-v", f"{settings}:/etc/settings:ro,Z"),
    )
    log = told(done)
    assert log["given"] == "rw ro one file"
    assert log["ro"] == "yes"
    assert (shared / "new").read_text() == "new\n"
    assert not (fixed / "new").exists()
    names = {name for name in bench.layer if not name.startswith(("tmp", "opt"))}
    assert names == {"mnt", "mnt/made", "mnt/made/beside"}


def test_volume_hides_what_the_image_has_there_for_the_build_only(bench: Desk) -> None:
    cache = bench.directory / "cache"
    cache.mkdir()
    (cache / "wheel").write_text("cached\n")
    layer = Layer().dir("cache").file("cache/of-the-image", "image\n")
    builder = bench.builder(telling("ls /cache", "cat /cache/wheel"), more_layers=[layer])
    bench.build(bench.source(), builder, "-v", f"{cache}:/cache")
    assert bench.in_image("ls", "/cache") == "of-the-image\n"


@same("volume.invalid")
@pytest.mark.parametrize(
    "volume", ["relative:/x", "/nowhere/at/all:/x", "/:relative", "/", "/:/", "/:/x:odd", "::"]
)
def test_volume_that_makes_no_sense_is_refused(bench: Desk, volume: str) -> None:
    done = bench.ocis2i("build", bench.source(), bench.builder(), bench.tag, "-v", volume)
    assert done.code == 2
    assert "invalid volume" in done.err


# --- output and exit codes --------------------------------------------------------------------


class Following:
    """A running build and its log, line by line; nothing waits longer than a minute."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []
        self._queue: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._queue.put(line.rstrip("\n"))
        self._queue.put(None)

    def until(self, wanted: str) -> None:
        """Reads on to this line."""
        while True:
            line = self._queue.get(timeout=60)
            assert line is not None, f"the log ended without `{wanted}`: {self.lines}"
            self.lines.append(line)
            if line == wanted:
                return

    def end(self) -> int:
        """Waits for the end; the exit code."""
        code = self.process.wait(timeout=60)
        while (line := self._queue.get(timeout=60)) is not None:
            self.lines.append(line)
        return code

    def __enter__(self) -> Following:
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_output_comes_line_by_line_while_the_script_runs(bench: Desk, isolation: str) -> None:
    go = bench.directory / "go"
    go.mkdir()
    scripts = telling(
        "echo first", "while [ ! -e /go/on ]; do sleep 0.05; done", "echo second >&2", "printf end"
    )
    builder = bench.builder(scripts)
    options = ("--isolation", isolation, "-v", f"{go}:/go")
    command = ("build", bench.source(), builder, bench.tag, *options)
    with Following(bench.ocis2i.start(*command)) as log:
        log.until("first")
        assert log.process.poll() is None
        (go / "on").touch()
        log.until("second")
        log.until("end")
        assert log.end() == 0


@better("output.streams", "the result alone is on standard output")
def test_both_streams_are_shown_and_results_alone_are_on_stdout(bench: Desk) -> None:
    builder = bench.builder(telling("echo to stdout", "echo to stderr >&2", "printf 'a\\377b\\n'"))
    done = bench.build(bench.source(), builder)
    assert "\nto stdout\n" in done.err
    assert "\nto stderr\n" in done.err
    assert "\na\ufffdb\n" in done.err
    assert done.out.count("\n") == 1
    assert "@sha256:" in done.out


@better("--quiet", "hides what is neither error nor warning")
def test_quiet_shows_nothing(bench: Desk) -> None:
    done = bench.build(bench.source(), bench.builder(), "-q")
    assert done.err == ""
    assert "@sha256:" in done.out


@better("exit.assemble", "7, and the script's own code in the document")
@same("assemble.commit-after-success")
@same("AssembleFailed")
@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_failing_script_ends_with_its_exit_code_in_the_document(
    bench: Desk, isolation: str
) -> None:
    builder = bench.builder(telling("echo before", "exit 42"))
    options = ("--isolation", isolation, "--json")
    done = bench.ocis2i("build", bench.source(), builder, bench.tag, *options)
    assert done.code == 7
    document = done.document
    assert document["script_exit_code"] == 42
    assert document["exit_code"] == 7
    assert document["reason"] == "AssembleFailed"
    assert [stage["name"] for stage in document["stages"] if not stage["ok"]] == ["assemble"]
    assert "\nbefore\n" in done.err
    assert not bench.is_stored
    assert list((bench.ocis2i.store / "builds").iterdir()) == []


@pytest.mark.parametrize("isolation", ISOLATIONS)
@pytest.mark.parametrize(("line", "code"), [("kill -9 $$", 137), ("no-such-program", 127)])
def test_script_that_is_killed_or_lacks_a_program_has_the_exit_code_of_a_shell(
    bench: Desk, isolation: str, line: str, code: int
) -> None:
    builder = bench.builder(telling(f"sh -c '{line}'"))
    options = ("--isolation", isolation, "--json")
    done = bench.ocis2i("build", bench.source(), builder, bench.tag, *options)
    assert (done.code, done.document["script_exit_code"]) == (7, code)


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_script_whose_interpreter_is_missing_fails_and_says_so(bench: Desk, isolation: str) -> None:
    builder = bench.builder({"assemble": "#!/no/such/shell\n"})
    options = ("--isolation", isolation, "--json")
    done = bench.ocis2i("build", bench.source(), builder, bench.tag, *options)
    assert (done.code, done.document["script_exit_code"]) == (7, 127)
    assert "`/no/such/shell`" in done.err


# --- stopping ---------------------------------------------------------------------------------


def processes_with(token: str) -> list[str]:
    """The command lines of all processes on this host that have this word in them."""
    return [
        line.replace(b"\0", b" ").decode(errors="replace")
        for _, line in command_lines()
        if token.encode() in line
    ]


def assert_gone(ocis2i: Program, token: str) -> None:
    """No process of the build is left; an ending pid namespace gets some seconds."""
    deadline = time.monotonic() + 20
    while (left := processes_with(token)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == []
    assert list((ocis2i.store / "builds").iterdir()) == []
    assert list((ocis2i.store / "tmp").iterdir()) == []


@better("assemble.signals", "the scripts get the signal, and nothing is left behind")
@better("exit.signal", "128 and the signal's number")
@pytest.mark.parametrize("isolation", ISOLATIONS)
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_signal_stops_the_whole_container_and_leaves_nothing(
    bench: Desk, isolation: str, number: signal.Signals, code: int
) -> None:
    token = f"{os.getpid()}{number}{len(isolation)}.75"
    # A shell runs its traps between two commands: short ones, or the end would have to wait.
    loop = "while :; do sleep 0.1; done"
    scripts = telling("trap 'exit 1' INT TERM HUP", f"setsid sleep {token} &", "echo ready", loop)
    builder = bench.builder(scripts)
    command = ("build", bench.source(), builder, bench.tag, "--isolation", isolation)
    with Following(bench.ocis2i.start(*command)) as log:
        log.until("ready")
        # As a terminal does it: everything in the foreground gets the signal.
        os.killpg(log.process.pid, number)
        assert log.end() == code
    assert log.lines[-1].startswith("error: stopped by")
    assert_gone(bench.ocis2i, token)
    assert not bench.is_stored


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_second_signal_ends_a_script_that_ignores_the_first(bench: Desk, isolation: str) -> None:
    token = f"{os.getpid()}99{len(isolation)}.75"
    scripts = telling(
        "trap 'echo not now' INT TERM",
        "echo ready",
        f"while :; do sh -c 'trap : INT TERM; sleep 0.1' || true; : {token}; done",
    )
    builder = bench.builder(scripts)
    command = ("build", bench.source(), builder, bench.tag, "--isolation", isolation)
    with Following(bench.ocis2i.start(*command)) as log:
        log.until("ready")
        log.process.send_signal(signal.SIGTERM)
        log.until("not now")
        log.process.send_signal(signal.SIGTERM)
        assert log.end() == 143
    assert_gone(bench.ocis2i, token)


def test_json_document_of_an_interrupted_build_says_so(bench: Desk) -> None:
    builder = bench.builder(
        telling("trap 'exit 1' TERM", "echo ready", "while :; do sleep 0.1; done")
    )
    command = ("build", bench.source(), builder, bench.tag, "--json")
    with Following(bench.ocis2i.start(*command)) as log:
        log.until("ready")
        log.process.terminate()
        assert log.end() == 143
        assert log.process.stdout is not None
        document = json.load(log.process.stdout)
    assert (document["reason"], document["exit_code"]) == ("Interrupted", 143)
