"""Builds in the container that ocis2i is in: no right to do anything, and the same layer."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ocis2i import syscalls
from ocis2i.isolation.place import find_place
from tests.conftest import needs
from tests.fakes.hosts import ARBITRARY, Host, Mount, fresh
from tests.fakes.images import HOME, Layer, LayoutImage, busybox_builder
from tests.fakes.program import ARGV, PROJECT, Done, Program, called
from tests.fakes.registry import FakeRegistry

pytestmark = [pytest.mark.sandbox, needs("busybox", "newuidmap")]

STAMP = ("--timestamp", "1577836800")
VARIABLES = {"APP_ROOT": "/opt/app-root"}
IN_PLACE = ("--isolation", "in-place")
MEMORY = fresh("tmpfs", "/var/tmp", options="mode=1777")

# What group 0 may do, whoever it is, to what the image has for it and to what is its own.
ASSEMBLE = """\
#!/bin/sh
set -e
umask 002
cp -R /tmp/src/. "$HOME/"
cd /opt/app-root
mkdir -p new/deep; echo x > new/file; ln new/file new/hard; ln -s file new/soft; mkfifo new/pipe
chmod 640 new/file; chmod 2775 new/deep; echo more >> own; rm gone; cat again > copy; mv copy again
rm -r anew; mkdir anew; echo x > anew/kept
rm -r was-directory; echo x > was-directory; rm was-file; mkdir was-file; echo x > was-file/inside
printf new > same-size
echo more >> theirs; rm link; ln -s elsewhere link; rm -r gone-directory; echo hidden > .hidden
mkdir "$(printf 'new\\nline')"; echo 1 > "$(printf 'new\\nline')/$(printf 'tab\\t')"
"""


# And what the owner of its files may do besides: an edit without a trace, and none with traces.
OWNER = """\
touch -r same-size saved; printf sam > same-size; touch -r saved same-size; rm saved
printf old > as-it-was; touch -d @1577836800 as-it-was
chmod 600 own; chmod -R g+w gone-too anew 2>/dev/null || true; chmod 755 .; chmod 775 .
"""


def layer() -> Layer:
    """What `ASSEMBLE` changes."""
    made = Layer().dir("opt").dir("opt/app-root", mode=0o775, uid=1001)
    top = "opt/app-root"
    for name in ("own", "gone", "again", "was-file", "same-size", "as-it-was"):
        made.file(f"{top}/{name}", "old", uid=1001, mode=0o664)
    for name in ("anew", "was-directory", "gone-directory"):
        made.dir(f"{top}/{name}", uid=1001, mode=0o775)
        made.file(f"{top}/{name}/kept", "1\n", uid=1001, mode=0o664)
    made.file(f"{top}/theirs", "t", uid=7, gid=8, mode=0o666)
    return made.symlink(f"{top}/link", "somewhere")


@dataclass(frozen=True)
class Pods:
    """A directory that all containers share, and builds on this host to compare with."""

    ocis2i: Program
    directory: Path

    def builder(
        self, assemble: str = ASSEMBLE, name: str = "builder", *, user: str = "1001"
    ) -> str:
        """A builder image with this script, as an `oci:` location."""
        scripts = {"assemble": assemble}
        path = self.directory / name
        busybox_builder(path, "builder:latest", user=user, scripts=scripts, more_layers=[layer()])
        return f"oci:{path}:builder:latest"

    def host(
        self, *, user: tuple[int, int] = ARBITRARY, mounts: tuple[Mount, ...] = (MEMORY,)
    ) -> Host:
        """A container of the builder as Kubernetes' restricted profile has it."""
        return Host(
            ids="container",
            image=(str(self.directory / "builder"), "builder:latest"),
            shared=(str(self.directory),),
            kubernetes=True,
            user=user,
            no_new_privs=True,
            filter="docker",
            mounts=mounts,
        )

    def call(self, host: Host, *argv: str | Path, **variables: str) -> Done:
        """A program in such a container; there is no HOME, and no passwd entry for the user."""
        environment = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "PYTHONPATH": str(PROJECT),
            "PYTHONDONTWRITEBYTECODE": "1",
            "OCIS2I_ROOT": "/var/tmp/store",
            **VARIABLES,
            **variables,
        }
        return called([*host.launcher, *argv], environment)

    def arguments(self, builder: str, *more: str | Path, name: str = "here") -> list[str]:
        """A build in place; what it makes is the archive `name`."""
        output = f"oci-archive:{self.directory}/out/{name}.tar:app:latest"
        given = ("build", self.directory / "source", builder, "app:latest", "-o", output)
        return [*ARGV, *map(str, (*given, *STAMP, *IN_PLACE, *more))]

    def build(
        self, builder: str, *more: str | Path, host: Host | None = None, **variables: str
    ) -> Done:
        """A build in a fresh container."""
        return self.call(host or self.host(), *self.arguments(builder, *more), **variables)

    def ok(
        self, builder: str, *more: str | Path, host: Host | None = None, **variables: str
    ) -> Done:
        """The same, and it has to succeed."""
        done = self.build(builder, *more, host=host, **variables)
        assert done.code == 0, f"{done.out}\n{done.err}"
        return done

    def elsewhere(self, builder: str, *more: str) -> LayoutImage:
        """The same build on this host, by the builtin executor."""
        output = f"oci:{self.directory}/usual:app:latest"
        source = self.directory / "source"
        given = ("build", str(source), builder, "app:latest", "-o", output, *STAMP, *more)
        self.ocis2i.ok(*given, "--isolation", "builtin")
        return LayoutImage(self.directory / "usual", "app:latest")

    def result(self, name: str = "here") -> LayoutImage:
        """What was built in place."""
        place = self.directory / f"{name}.layout"
        with tarfile.open(self.directory / "out" / f"{name}.tar") as archive:
            archive.extractall(place)
        return LayoutImage(place, "app:latest")


@pytest.fixture
def pods(ocis2i: Program, tmp_path: Path) -> Iterator[Pods]:
    directory = tmp_path / "shared"
    for name in ("", "source", "source/deep", "out"):
        (directory / name).mkdir()
        (directory / name).chmod(0o755)
    (directory / "out").chmod(0o777)
    (directory / "source/index.html").write_text("hello\n")
    (directory / "source/deep/file").write_text("deep\n")
    yield Pods(ocis2i, directory)


# --- the layer --------------------------------------------------------------------------------


def entries(image: LayoutImage) -> list[tuple[object, ...]]:
    """All that the tar says of the last layer's entries."""
    return [
        (one.name, one.type, one.mode, one.uid, one.gid, one.mtime, one.size, one.linkname)
        for one in image.members().values()
    ]


def test_a_source_with_read_only_directories(pods: Pods) -> None:
    (pods.directory / "source/deep").chmod(0o555)
    argv = pods.arguments(pods.builder("#!/bin/sh\ncat /tmp/src/deep/file\nexit 3\n"))
    script = '"$@"; echo code $?; ls /var/tmp/store/builds'
    done = pods.call(pods.host(), "sh", "-c", script, "sh", *argv)
    assert "deep" in done.err.splitlines()
    assert done.out == "code 7\n"  # nothing is left of it in the store


@pytest.mark.parametrize("user", [ARBITRARY, (1001, 0), (1234, 0), (0, 0)])
def test_the_layer_is_the_same_as_elsewhere(pods: Pods, user: tuple[int, int]) -> None:
    builder = pods.builder()
    usual = pods.elsewhere(builder)
    done = pods.ok(builder, "--json", host=pods.host(user=user))
    assert entries(pods.result()) == entries(usual)
    assert pods.result().layers == usual.layers
    assert done.document["isolation"] == "in-place"


def test_what_is_only_touched_is_not_in_the_layer(pods: Pods) -> None:
    builder = pods.builder(ASSEMBLE + OWNER)
    usual = pods.elsewhere(builder)
    pods.ok(builder, host=pods.host(user=(1001, 0)))
    names = pods.result().members()
    assert "opt/app-root/as-it-was" not in names
    assert "opt/app-root/same-size" in names
    assert pods.result().layers == usual.layers


def test_the_config_is_the_same_as_elsewhere(pods: Pods) -> None:
    builder = pods.builder()
    usual = pods.elsewhere(builder, "-e", "COLOUR=blue")
    pods.ok(builder, "-e", "COLOUR=blue", SECRET="never")
    assert pods.result().config == usual.config


def test_nothing_belongs_to_a_user_that_no_image_knows(pods: Pods) -> None:
    pods.ok(pods.builder())
    owners = {name: (one.uid, one.gid) for name, one in pods.result().members().items()}
    assert owners["opt/app-root/new/file"] == owners["tmp/src/index.html"] == (1001, 0)
    assert owners["opt/app-root/theirs"] == (7, 8)
    assert set(owners.values()) == {(0, 0), (1001, 0), (7, 8)}


def test_the_upload_can_be_left_out(pods: Pods) -> None:
    builder = pods.builder()
    usual = pods.elsewhere(builder, "--prune-upload")
    pods.ok(builder, "--prune-upload")
    assert pods.result().layers == usual.layers


def test_what_its_owner_may_not_read_is_in_the_layer(pods: Pods) -> None:
    script = "#!/bin/sh\nset -e\ncd $HOME\nmkdir shut; echo x > shut/file; echo y > secret\n"
    script += "chmod 0 shut/file secret shut; mkdir /tmp/src/shut; chmod 0 /tmp/src/shut\n"
    builder = pods.builder(script)
    usual = pods.elsewhere(builder, "--prune-upload")
    pods.ok(builder, "--prune-upload")
    members = pods.result().members()
    home = HOME.strip("/")
    assert {members[f"{home}/{name}"].mode for name in ("shut", "shut/file", "secret")} == {0}
    assert pods.result().layers == usual.layers


def test_what_ocis2i_writes_itself_is_not_in_the_layer(pods: Pods) -> None:
    script = "#!/bin/sh\nset -e\necho said; sleep 0.1; echo made > $HOME/made\n"
    command = " ".join(
        f"'{word}'" for word in pods.arguments(pods.builder(script), "--loglevel", "3")
    )
    watch = f"cd {HOME} && {command} >out 2>log; code=$?; cat log >&2; exit $code"
    root = f"{HOME}/store"
    done = pods.call(pods.host(user=(1001, 0)), "sh", "-c", watch, OCIS2I_ROOT=root)
    assert done.code == 0, done.err
    assert "said" in done.err.splitlines()
    home = HOME.strip("/")
    below = [name for name in pods.result().members() if name.startswith(home)]
    assert below == [home, f"{home}/made"]


def test_what_a_pod_mounts_is_not_in_the_layer(pods: Pods) -> None:
    script = f"#!/bin/sh\nset -e\ncp /tmp/src/index.html {HOME}/\necho x > {HOME}/cache/big\n"
    mounts = (MEMORY, fresh("tmpfs", f"{HOME}/cache", options="mode=1777"))
    image = pods.directory / "builder"
    scripts = {"assemble": script}
    more = [layer().dir(f"{HOME[1:]}/cache")]
    busybox_builder(image, "builder:latest", scripts=scripts, more_layers=more)
    pods.ok(f"oci:{image}:builder:latest", host=pods.host(mounts=mounts))
    assert [name for name in pods.result().members() if "cache" in name] == []


# --- what is not fetched ------------------------------------------------------------------------


def test_layers_are_named_and_neither_fetched_nor_unpacked(pods: Pods) -> None:
    builder = pods.builder()
    usual = pods.elsewhere(builder)
    with FakeRegistry() as registry:
        name = registry.put_layout("team/builder", "1", pods.directory / "builder")
        tag = f"{registry.host}/team/app:1"
        given = ("build", pods.directory / "source", name, tag, "--push", "--no-tls-verify")
        words = " ".join(f"'{word}'" for word in (*ARGV, *given, *STAMP, *IN_PLACE))
        done = pods.call(pods.host(), "sh", "-c", f"{words} && ls /var/tmp/store/layers/sha256")
        assert done.code == 0, done.err
        layers = LayoutImage(pods.directory / "builder", "builder:latest").layers
        fetched = {one.path.rpartition("/")[2] for one in registry.requests("GET", "/blobs/")}
        assert fetched & set(layers) == set()
        pushed = json.loads(registry.manifests["team/app"]["1"][1])
    assert len(done.out.splitlines()) == 1, "unpacked layers"
    assert [one["digest"] for one in pushed["layers"]] == usual.layers


# --- who is there already -----------------------------------------------------------------------


def test_a_container_serves_one_build(pods: Pods) -> None:
    command = " ".join(f"'{word}'" for word in pods.arguments(pods.builder()))
    done = pods.call(pods.host(), "sh", "-c", f"{command} && {command}")
    assert done.code == 6
    assert "error: `/tmp/src` is there already: this container has had a build in it" in done.err
    assert "takes a container of its own" in done.err


def test_a_read_only_root_is_refused(pods: Pods) -> None:
    flags = syscalls.MS_REMOUNT | syscalls.MS_BIND | syscalls.MS_RDONLY
    sealed = (MEMORY, ("", "/", "", flags, ""))
    done = pods.build(pods.builder(), host=pods.host(mounts=sealed))
    assert done.code == 6
    assert "isolation `in-place` cannot be used: the root file system is read-only" in done.err
    assert "readOnlyRootFilesystem" in done.err


@pytest.mark.skipif(
    not find_place().root_is_a_disk or find_place().kind != "host",
    reason="this is a container itself, in which such a build would be done",
)
def test_a_machine_is_no_container(ocis2i: Program, source: Path, builder: str) -> None:
    done = ocis2i("build", source, builder, "app:1", *IN_PLACE)
    assert done.code == 6
    sentence = "this is no container: scripts would write into the host itself"
    assert f"error: isolation `in-place` cannot be used: {sentence}" in done.err
    assert "hint: run ocis2i in a container of the builder image" in done.err
    refusal = ocis2i("doctor", "--json", *IN_PLACE).document["refusal"]
    assert refusal["message"] == f"isolation `in-place` cannot be used: {sentence}"


def test_an_image_that_is_not_this_container_is_told_of(pods: Pods) -> None:
    pods.builder()
    done = pods.build(pods.builder(name="other"), APP_ROOT="/somewhere")
    assert done.code == 0
    assert "warning: the variables `APP_ROOT` of" in done.err
    assert "is it really made of that image?" in done.err


def test_scripts_that_are_not_in_this_container_are_an_error(pods: Pods) -> None:
    pods.builder()
    label = {"io.openshift.s2i.scripts-url": "image:///usr/elsewhere"}
    busybox_builder(pods.directory / "other", "builder:latest", labels=label)
    done = pods.build(f"oci:{pods.directory}/other:builder:latest")
    assert done.code == 4
    assert "has no script `/usr/elsewhere/assemble`" in done.err


def test_a_mounted_place_is_told_of(pods: Pods) -> None:
    script = "#!/bin/sh\ncp /var/tmp/up/src/index.html $HOME/\n"
    done = pods.ok(pods.builder(script), "--destination", "/var/tmp/up")
    assert "warning: `/var/tmp/up` is mounted into this container" in done.err
    assert not [name for name in pods.result().members() if name.startswith("var")]


# --- what scripts see -----------------------------------------------------------------------------


def test_scripts_have_the_image_s_variables_and_nothing_of_the_pod_s(pods: Pods) -> None:
    script = "#!/bin/sh\nenv | sort\necho files $(ls /proc/self/fd)\n"
    secrets = {"TOKEN": "hidden", "KUBERNETES_SERVICE_HOST": "10.0.0.1", "REGISTRY_AUTH": "x"}
    done = pods.build(pods.builder(script), "-e", "COLOUR=blue", host=None, **secrets)
    assert done.code == 0, done.err
    names = {line.partition("=")[0] for line in done.err.splitlines() if "=" in line}
    wanted = "APP_ROOT COLOUR HOME HOSTNAME PATH PWD SHLVL SOURCE_DATE_EPOCH"
    assert names & {*wanted.split(), *secrets, "PYTHONPATH"} == set(wanted.split())
    assert f"HOME={HOME}" in done.err
    assert "files 0 1 2 3" in done.err.splitlines()  # `ls` has the directory itself open


def test_credentials_that_a_script_can_read_are_told_of(pods: Pods) -> None:
    auth = pods.directory / "auth.json"
    auth.write_text('{"auths": {"registry.invalid": {"auth": "eDp5"}}}')
    auth.chmod(0o644)
    builder = pods.builder("#!/bin/sh\nexit 3\n")
    done = pods.build(builder, REGISTRY_AUTH_FILE=str(auth))
    assert f"warning: `{auth}` has credentials of registries" in done.err
    assert "`ocis2i push` after it" in done.err


def test_without_a_home_the_ways_to_name_a_store_are_told(ocis2i: Program) -> None:
    done = ocis2i("images", HOME="", OCIS2I_ROOT="")
    assert done.code == 2
    assert "error: there is no place for the store: HOME is not set" in done.err
    assert "hint: name a directory with --root or OCIS2I_ROOT, or set HOME" in done.err


def test_the_memory_and_variables_of_ocis2i_cannot_be_read(pods: Pods) -> None:
    script = "#!/bin/sh\nfor f in /proc/[0-9]*/environ; do tr '\\0' '\\n' < $f; done\n"
    script += "for f in /proc/[0-9]*/mem; do [ $f = /proc/$$/mem ] || ! head -c1 $f; done; true\n"
    done = pods.ok(pods.builder(script), TOKEN="very-much-hidden")
    assert "very-much-hidden" not in done.out + done.err
    assert "environ: Permission denied" in done.err


def test_a_script_has_no_rights_left(pods: Pods) -> None:
    script = "#!/bin/sh\ngrep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status\n"
    done = pods.ok(pods.builder(script))
    lines = [line.split() for line in done.err.splitlines() if ":\t" in line]
    assert {name: int(value, 16) for name, value in lines} == {
        **dict.fromkeys(("CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"), 0),
        "NoNewPrivs:": 1,
        "Seccomp:": 2,
    }


def test_a_script_that_fails_is_named(pods: Pods) -> None:
    done = pods.build(pods.builder("#!/bin/sh\nexit 3\n"))
    assert done.code == 7
    assert "`/usr/libexec/s2i/assemble` failed with exit code 3" in done.err
    assert f"it ran as 1000660000:0 in `{HOME}`" in done.err


def test_nothing_stays_behind(pods: Pods) -> None:
    script = "#!/bin/sh\nsetsid sleep 1234 &\n(setsid setsid sleep 1234 &)\nexit 0\n"
    builder = pods.builder(script)
    command = " ".join(f"'{word}'" for word in pods.arguments(builder))
    done = pods.call(pods.host(), "sh", "-c", f"{command} && ps && ls /var/tmp/store/builds")
    assert done.code == 0, done.err
    assert "sleep 1234" not in done.out
    # The last line is that of `ps` itself, or of whoever runs it.
    assert {"ps", "sh"} & set(done.out.splitlines()[-1].split())


# Each process of it lives as long as a shell takes to start the next one.
CHAIN = """\
#!/bin/sh
case $1 in
on) [ -e /tmp/late ] || setsid "$0" on & ;;
*) for n in 1 2 3 4; do setsid "$0" on & done; (sleep 20; touch /tmp/late) & sleep 0.3 ;;
esac
"""


def test_a_chain_of_processes_is_ended(pods: Pods) -> None:
    command = " ".join(f"'{word}'" for word in pods.arguments(pods.builder(CHAIN)))
    done = pods.call(pods.host(), "sh", "-c", f"{command} >/dev/null && ps")
    assert done.code == 0, done.err
    assert "assemble" not in done.out
    assert "sleep" not in done.out


def test_an_agent_that_is_killed_takes_the_script_along(pods: Pods) -> None:
    script = "#!/bin/sh\nsetsid sleep 1234 &\nkill -9 $PPID\nsleep 1234\n"
    command = " ".join(f"'{word}'" for word in pods.arguments(pods.builder(script)))
    done = pods.call(pods.host(), "sh", "-c", f"{command}; echo ended $?; ps")
    assert "ended 6" in done.out, done.err
    assert "the build agent ended unexpectedly (signal 9)" in done.err
    assert "sleep 1234" not in done.out


@pytest.mark.parametrize("signal", ["TERM", "KILL"])
def test_an_end_from_outside_is_the_end_of_all(pods: Pods, signal: str) -> None:
    script = "#!/bin/sh\nsetsid sleep 1234 &\necho up > /tmp/up\nsleep 1234\n"
    command = " ".join(f"'{word}'" for word in pods.arguments(pods.builder(script)))
    watch = (
        f"{command} & pid=$!; until [ -e /tmp/up ]; do sleep 0.1; done; kill -{signal} $pid; "
        "wait $pid; echo ended $?; for n in $(seq 50); do ps | grep -q '[s]leep 1234' || break; "
        "sleep 0.1; done; ps"
    )
    done = pods.call(pods.host(), "sh", "-c", watch)
    assert f"ended {143 if signal == 'TERM' else 137}" in done.out
    assert "sleep 1234" not in done.out


# --- what cannot be had ---------------------------------------------------------------------------

# All of them are in tests/unit/test_weak_isolation.py.
REFUSED = {
    "volume": ("--volume", "/tmp:/data", "--volume for `/data`", "copy it into the source"),
    "runtime": ("--runtime-image", "app:2", "--runtime-image", "a Dockerfile"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_takes_mounts_or_another_tree_is_refused_by_name(pods: Pods, case: str) -> None:
    flag, value, named, way_out = REFUSED[case]
    done = pods.build(pods.builder(), flag, value)
    assert done.code == 6
    (error,) = (line for line in done.err.splitlines() if line.startswith("error: "))
    assert named in error
    assert "--isolation in-place" in error
    assert way_out in done.err


def test_nothing_runs_in_place_of_an_image(ocis2i: Program, builder: str) -> None:
    done = ocis2i("run", *IN_PLACE, builder)
    assert done.code == 2
    assert "--isolation in-place is for builds" in done.err


def test_auto_never_takes_it(ocis2i: Program, source: Path, builder: str) -> None:
    # Allowed, it would still change files of this very host.
    done = ocis2i("build", source, builder, "app:1", "--json", OCIS2I_ALLOW_WEAK_ISOLATION="1")
    assert done.code == 0, done.err
    assert json.loads(done.out)["isolation"] not in ("in-place", "chroot")
