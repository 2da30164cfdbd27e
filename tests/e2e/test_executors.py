"""One build by each executor: the same layer, the same words, the same end, and nothing left."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.conftest import BUILDAH, CRUN, RUNC, needs
from tests.e2e.test_bad_input import Elsewhere, elsewhere, hidden
from tests.fakes.bench import Bench, content, told
from tests.fakes.images import BUSYBOX, Layer, LayoutImage, _architecture, make_layout
from tests.fakes.processes import (
    command_lines,
    descendants,
    mounts_of,
    wait_for_sleepers,
    wait_until_alone,
)
from tests.fakes.program import PROJECT, Done, Program

__all__ = ["elsewhere"]

pytestmark = pytest.mark.sandbox

EXECUTORS = [RUNC, CRUN, "builtin", BUILDAH]

SCRIPTS = "usr/libexec/s2i"
TIME = "1000000000"

# Whatever a process can notice of its container is written into the layer: equal layers are equal
# containers. What differs is named in docs/isolation.md.
ASSEMBLE = """\
#!/bin/sh
set -e
cp -R /tmp/src/. "$HOME/"
cd "$HOME"
{
    echo "ids: $(id -u):$(id -g)"
    echo "directory: $PWD"
    echo "umask: $(umask)"
    echo "host: $(hostname)"
    echo "files: $(ulimit -n)"
    echo "core: $(ulimit -c)"
    echo "arguments: $#"
    echo "input: $(wc -c)"
    echo "injected: $(wc -c </opt/injected/word)"
    echo "volume: $(cat /opt/volume/word)"
    echo "devices: $(grep -c . /proc/net/dev)"
    echo "hosts: $(grep -c example.test /etc/hosts)"
    grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status
} >facts
env -u SHLVL | sort >environment
if touch /opt/volume/new 2>/dev/null; then echo writable >>facts; fi
umask 077
mkdir -p made/here
echo x >made/here/file
ln -s file made/here/link
ln made/here/file made/hard
chmod 4755 made/hard
if [ "$(id -u)" = 0 ]; then
    rm -r /srv/old
    echo new >/srv/changed
    chown 1001:7 made/here
    mkdir /run/made
    echo 'nothing but this' >/etc/made
fi
echo words
echo complaints >&2
echo by name >/dev/stderr
printf 'no end' >&2
"""

ODD = {
    "EMPTY": "",
    "EQUALS": "a=b=c",
    "SPACES": "  two  words ",
    "SIGNS": "$HOME `id` \\n \"q\" 'r' ;|&*?",
    "LINES": "one\ntwo",
    "LETTERS": "gr\u00fc\u00df",
    "BUILDAH_RUNTIME": "/bin/false",
    "LD_PRELOAD": "",
    "GODEBUG": "x=y",
}


@pytest.fixture(scope="module")
def plain(shared: Program, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The tag of a built image, to run things in."""
    bench = Bench(shared, tmp_path_factory.mktemp("plain"))
    builder = bench.image("plain", {"assemble": "#!/bin/sh\n", "run": "#!/bin/sh\n"})
    shared.ok("build", bench.source(), builder, "plain:1")
    return "plain:1"


@dataclass
class Sample:
    """The builder, the source and the files that every executor gets."""

    bench: Bench
    user: str
    digests: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("volume", "injected"):
            directory = self.bench.directory / name
            directory.mkdir()
            (directory / "word").write_text(f"the word of {name}\n")
        more = Layer().dir("srv").dir("srv/old").file("srv/old/file", "x").file("srv/changed", "x")
        env = ["PATH=/usr/bin:/bin", "HOME=/opt/app-root/src"]
        self.builder = self.bench.image(
            "sample",
            {"assemble": ASSEMBLE, "run": "#!/bin/sh\n"},
            {"User": self.user, "Env": [*env, *(f"{name}={ODD[name]}" for name in ODD)]},
            [more],
        )
        self.source = self.bench.source()

    def build(self, executor: str, *options: str) -> tuple[Done, LayoutImage]:
        tag = self.bench.tag.replace(":1", f":{executor}")
        done = self.bench.ocis2i.ok(
            *("build", self.source, self.builder, tag, "--isolation", executor),
            *("--timestamp", TIME, "--add-host", "example.test:192.0.2.1"),
            *("--volume", f"{self.bench.directory}/volume:/opt/volume:ro"),
            *("--inject", f"{self.bench.directory}/injected:/opt/injected"),
            *options,
        )
        return done, self.bench.result(tag)


@pytest.mark.parametrize("user", ["1001", "0"])
@pytest.mark.parametrize("network", ["host", "none"])
@pytest.mark.parametrize("executor", [RUNC, CRUN, BUILDAH])
def test_layer_is_the_one_of_the_builtin_executor(
    bench: Bench, executor: str, user: str, network: str
) -> None:
    sample = Sample(bench, user)
    expected, reference = sample.build("builtin", "--network", network)
    done, image = sample.build(executor, "--network", network)
    assert content(image, "opt/app-root/src/facts") == content(reference, "opt/app-root/src/facts")
    assert content(image, "opt/app-root/src/environment") == content(
        reference, "opt/app-root/src/environment"
    )
    assert image.layers[-1] == reference.layers[-1]
    assert image.layers[:-1] == reference.layers[:-1]
    assert said(done) == said(expected)


def said(done: Done) -> list[str]:
    """What the script said: the lines that are not ocis2i's own, whose order is by chance."""
    lines = done.err.splitlines()
    return sorted(line for line in lines if not line.startswith(("---> ", "  ")))


@pytest.mark.parametrize("executor", EXECUTORS)
def test_container_is_as_it_should_be(bench: Bench, executor: str) -> None:
    done, image = Sample(bench, "1001").build(executor, "--network", "none")
    facts = dict(
        line.split(": ", 1)
        for line in content(image, "opt/app-root/src/facts").replace(":\t", ": ").splitlines()
    )
    assert facts["ids"] == "1001:0"
    assert facts["umask"] == "0022"
    assert facts["host"] == "ocis2i"
    assert facts["input"] == "0"
    assert facts["injected"] == "21"
    assert facts["volume"] == "the word of volume"
    assert facts["hosts"] == "1"
    assert facts["core"] == "0"
    assert facts["devices"] == "3"  # two lines of heading, and the loopback device
    assert {facts[name] for name in facts if name.startswith("Cap")} == {"0" * 16}
    assert (facts["NoNewPrivs"], facts["Seccomp"]) == ("1", "2")
    variables = content(image, "opt/app-root/src/environment").splitlines()
    assert {"LINES=one", "two"} <= set(variables)  # sorted, so one is not beside the other
    assert f"SIGNS={ODD['SIGNS']}" in variables
    assert said(done) == ["by name", "complaints", "no end", "words"]
    names = set(image.members())
    assert "etc/hostname" not in names
    assert not any(name.startswith("run") for name in names)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_streams_are_told_apart_and_bytes_stay_as_they_are(
    bench: Bench, plain: str, executor: str
) -> None:
    script = "printf 'out\\001\\377'; printf 'Error: no\\nError: ' >&2; printf E >&2; exit 3"
    done = bench.ocis2i("run", "--isolation", executor, plain, "sh", "-c", script)
    assert done.code == 3
    assert done.out == "out\x01\N{REPLACEMENT CHARACTER}"
    assert done.err == "Error: no\nError: E"


@pytest.mark.parametrize("executor", EXECUTORS)
def test_input_of_a_run_is_ours(bench: Bench, plain: str, executor: str) -> None:
    given = bench.directory / "given"
    given.write_text("one\ntwo\n")
    done = bench.ocis2i.ok("run", "--isolation", executor, plain, "wc", "-l", stdin=given)
    assert done.out.split() == ["2"]


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize(
    ("command", "code"),
    [
        (("sh", "-c", "exit 125"), 125),
        (("sh", "-c", "exit 255"), 255),
        (("sh", "-c", "sh -c 'kill -9 $$'; exit $?"), 137),
    ],
)
def test_exit_code_is_the_one_of_the_program(
    bench: Bench, plain: str, executor: str, command: tuple[str, ...], code: int
) -> None:
    done = bench.ocis2i("run", "--isolation", executor, plain, *command)
    assert done.code == code
    assert done.err.strip() in ("", "Killed")


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize(
    ("program", "why", "way_out"),
    [("/no/such", "no such file|not found", "the interpreter in its first line"),
     ("no-such", "not found|no such file", "no directory of PATH in the container has it"),
     ("/etc", "permission denied|not permitted", "that this user may execute")],
)  # fmt: skip
def test_program_that_cannot_be_started_is_named(
    bench: Bench, plain: str, executor: str, program: str, why: str, way_out: str
) -> None:
    done = bench.ocis2i("run", "--isolation", executor, plain, program)
    (line,) = (line for line in done.err.splitlines() if line.startswith("error: "))
    assert line.startswith(f"error: `{program}` cannot be started: ")
    assert re.search(why, line, re.IGNORECASE)
    assert way_out in told(done)["hint"]
    assert done.code == 7


def test_shell_that_only_a_volume_brings_is_found_behind_a_link(bench: Bench) -> None:
    layers = Layer().dir("usr").symlink("bin", "usr/bin").dir("s2i").dir("tmp", mode=0o1777)
    for name in ("assemble", "run"):
        layers.file(f"s2i/{name}", "#!/bin/sh\necho a shell from outside\n", mode=0o755)
    config = {"User": "1001", "Labels": {"io.openshift.s2i.scripts-url": "image:///s2i"}}
    place = bench.directory / "bare"
    make_layout(place, "bare:1", [layers], config, platform=f"linux/{_architecture()}")
    programs = bench.directory / "programs"
    (programs / "bin").mkdir(parents=True)
    shutil.copy(BUSYBOX, programs / "bin/sh")
    given = ("build", bench.source(), f"oci:{place}:bare:1", bench.tag)
    done = bench.ocis2i(*given)
    assert done.code == 7
    assert "needs `/bin/sh`, which the image does not have" in done.err
    assert "a shell from outside" in bench.ocis2i.ok(*given, "-v", f"{programs}:/usr").err


# --- which one --------------------------------------------------------------------------------


def path_with_broken(bench: Bench, name: str) -> str:
    """A PATH on which this program comes first, and cannot be started."""
    directory = bench.directory / "bin"
    directory.mkdir()
    (directory / name).write_text("#!/no/such/interpreter\n")
    (directory / name).chmod(0o755)
    return f"{directory}:{bench.ocis2i.environment['PATH']}"


@pytest.mark.parametrize("executor", ["runc", "crun", "buildah"])
def test_program_that_does_not_work_is_refused_when_named(bench: Bench, executor: str) -> None:
    builder = bench.image("plain", {"assemble": "#!/bin/sh\n", "run": "#!/bin/sh\n"})
    done = bench.ocis2i(
        *("build", bench.source(), builder, bench.tag, "--isolation", executor),
        PATH=path_with_broken(bench, executor),
    )
    assert done.code == 6
    (line,) = (line for line in done.err.splitlines() if line.startswith("error: "))
    assert f"isolation `{executor}` cannot be used: " in line
    assert f"/bin/{executor}` cannot be run: No such file or directory" in line
    assert "hint: leave out --isolation to take what works" in done.err


@needs("unshare", "setpriv")
@pytest.mark.parametrize("executor", [RUNC, CRUN, BUILDAH])
def test_program_that_is_not_installed_is_refused_when_named(
    elsewhere: Elsewhere, builder: str, source: Path, executor: str
) -> None:
    done = elsewhere(
        *("build", source, builder, "app:1", "--isolation", executor), mounts=hidden(executor)
    )
    assert done.code == 6
    assert (
        f"error: isolation `{executor}` cannot be used: `{executor}` is not installed\n"
        "hint: leave out --isolation to take what works\n"
    ) in done.err


@needs("crun")
def test_program_that_does_not_work_is_passed_over(bench: Bench) -> None:
    builder = bench.image("plain", {"assemble": "#!/bin/sh\n", "run": "#!/bin/sh\n"})
    arguments = ("build", bench.source(), builder, bench.tag, "--json")
    path = path_with_broken(bench, "runc")
    assert bench.ocis2i.ok(*arguments, PATH=path).document["isolation"] == "crun"
    shutil.copy(bench.directory / "bin/runc", bench.directory / "bin/crun")
    assert bench.ocis2i.ok(*arguments, PATH=path).document["isolation"] == "builtin"


@needs("buildah", "runc")
def test_buildah_is_taken_by_nobody_who_does_not_name_it(bench: Bench) -> None:
    builder = bench.image("plain", {"assemble": "#!/bin/sh\n", "run": "#!/bin/sh\n"})
    done = bench.ocis2i.ok("build", bench.source(), builder, bench.tag, "--json")
    assert done.document["isolation"] != "buildah"
    done = bench.ocis2i(
        *("build", bench.source(), builder, bench.tag, "--isolation", "buildah"),
        OCIS2I_BUILDAH_ISOLATION="vm",
    )
    assert done.code == 2
    assert "`OCIS2I_BUILDAH_ISOLATION` is `vm`" in done.err


@needs("buildah")
def test_buildah_works_by_chroot_for_who_asks_for_it(bench: Bench) -> None:
    builder = bench.image(
        "plain",
        {
            "assemble": "#!/bin/sh\nset -e\nid -u\necho fine >&2\nsetsid sleep 1000 &\n"
            'cp /tmp/src/* "$HOME/"\nexit 4\n',
            "run": "#!/bin/sh\n",
        },
    )
    before = sleepers()
    done = bench.ocis2i(
        *("build", bench.source(), builder, bench.tag, "--isolation", "buildah"),
        OCIS2I_BUILDAH_ISOLATION="chroot",
    )
    assert done.code == 7, done.err
    assert "warning: OCIS2I_BUILDAH_ISOLATION is `chroot`: scripts see this host's /dev" in done.err
    assert "failed with exit code 4" in done.err
    assert [line for line in said(done) if ": " not in line] == ["1001", "fine"]
    assert sleepers() <= before
    done = bench.ocis2i(
        *("build", bench.source(), builder, bench.tag, "--isolation", "buildah"),
        *("--network", "none"),
        OCIS2I_BUILDAH_ISOLATION="chroot",
    )
    assert done.code == 6
    assert "`buildah run --isolation chroot` has no network of its own" in done.err


def sleepers() -> set[int]:
    """Processes that sleep for long."""
    return {pid for pid, line in command_lines() if line == b"sleep\x001000\0"}


@needs("buildah", "runc")
def test_what_buildah_mounts_itself_cannot_be_a_volume(bench: Bench) -> None:
    builder = bench.image("plain", {"assemble": "#!/bin/sh\n", "run": "#!/bin/sh\n"})
    source = bench.source()
    done = bench.ocis2i(
        *("build", source, builder, bench.tag, "--isolation", "buildah"),
        *("--volume", f"{source}:/dev/data"),
    )
    assert done.code == 6
    assert "buildah cannot mount anything on `/dev/data`" in done.err


@needs("buildah", "runc")
def test_values_for_the_build_alone_are_on_no_command_line_and_no_disk(bench: Bench) -> None:
    word = "kW7pQz-Vb4tR_x9Lm2"
    builder = bench.image("plain", {"assemble": "#!/bin/sh\nsleep 1000\n", "run": "#!/bin/sh\n"})
    process = bench.ocis2i.start(
        *("build", bench.source(), builder, bench.tag, "--isolation", "buildah"),
        *("--build-env", "SECRET"),
        SECRET=word,
    )
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if line.startswith("---> assembling"):
                break
        wait_for_sleepers(process.pid, 1)
        lines = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in descendants(process.pid)]
        assert any(b"buildah" in line for line in lines)
        assert not any(word.encode() in line for line in lines)
        for path in (bench.ocis2i.store / "builds").rglob("*"):
            if path.is_file() and os.access(path, os.R_OK):
                assert word.encode() not in path.read_bytes(), path
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)


# --- the end ----------------------------------------------------------------------------------

# Some work of its own, and processes that leave their session and do not listen.
STUBBORN = """\
#!/bin/sh
trap '' TERM HUP
setsid sh -c 'trap "" TERM HUP INT; sleep 1000; sleep 1000' &
(sleep 1000; true) &
sleep 1000
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("executor", EXECUTORS)
def test_nothing_goes_on_when_the_build_is_ended(
    ocis2i: Program, tmp_path: Path, _orphans: None, executor: str, how: signal.Signals
) -> None:
    bench = Bench(ocis2i, tmp_path)
    builder = bench.image("stubborn", {"assemble": STUBBORN, "run": "#!/bin/sh\n"})
    before = descendants(os.getpid())
    process = ocis2i.start(*("build", bench.source(), builder, bench.tag, "--isolation", executor))
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("---> assembling"):
            break
    wait_for_sleepers(process.pid)
    process.send_signal(how)
    _, err = process.communicate(timeout=60)
    wait_until_alone(before)
    assert process.returncode == (-9 if how == signal.SIGKILL else 128 + how), err
    assert mounts_of(ocis2i.store) == []
    if how == signal.SIGKILL:
        ocis2i.ok("prune")
    assert os.listdir(ocis2i.store / "builds") == []
    assert os.listdir(ocis2i.store / "tmp") == []
    home = Path(ocis2i.environment["HOME"])
    assert not [path for path in home.rglob("*") if "containers" in path.name]


@pytest.mark.parametrize("executor", EXECUTORS)
def test_one_build_may_have_several_containers(bench: Bench, executor: str) -> None:
    builder = bench.image(
        "incremental",
        {
            "assemble": '#!/bin/sh\ncp /tmp/src/* .\necho "restored: $(ls /tmp/artifacts)"\n',
            "save-artifacts": "#!/bin/sh\ntar cf - index.html\necho saved >&2\n",
            "run": "#!/bin/sh\n",
        },
    )
    arguments = ("build", bench.source(), builder, bench.tag, "--isolation", executor)
    bench.ocis2i.ok(*arguments)
    done = bench.ocis2i.ok(*arguments, "--incremental")
    assert told(done)["restored"] == "index.html"
    assert "saved" in done.err.splitlines()


def test_benchmark_prints_what_each_executor_costs(bench: Bench) -> None:
    done = subprocess.run(
        [
            *(sys.executable, PROJECT / "benchmarks/isolation_overhead"),
            *("--json", "--rounds", "2", "--builds", "1", "--files", "1"),
            *("builtin", "in-place", "vm"),
        ],
        env=dict(bench.ocis2i.environment),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    builtin, in_place, unknown = json.loads(done.stdout)["executors"]
    assert builtin["reason"] == ""
    assert builtin["times"] == 1.0
    assert 0 < builtin["run_seconds"] < builtin["build_seconds"]
    assert builtin["peak_bytes"] > 10 << 20
    assert (in_place["reason"], in_place["run_seconds"]) == ("", None)
    assert in_place["build_seconds"] > 0
    assert unknown["reason"] == "unknown isolation `vm`"
