"""The agent and its containers: what is inside, what cannot get out, and that nothing stays."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ocis2i.errors import ImageError, ScriptError
from ocis2i.isolation.builtin import Builtin
from ocis2i.isolation.oci_runtime import MOUNT_TARGETS
from ocis2i.isolation.programs import OciProgram
from ocis2i.runner import ROOT_CAPABILITIES, Runner, RunSpec, Stdio
from ocis2i.s2i import Identity
from tests.conftest import RUNC, needs
from tests.e2e.test_layer_property import SEARCH_PATH, Sandbox, sandbox
from tests.fakes.images import APPLETS, BUSYBOX, Layer
from tests.fakes.program import Program

pytestmark = [pytest.mark.sandbox, needs("busybox")]
__all__ = ["sandbox"]  # the fixture, for pytest to find

EXECUTORS = [RUNC, "builtin"]
# What no test waits for; only a run that hangs gets there.
PATIENCE_SECONDS = 60.0


@dataclass
class Output:
    """What a container said, and how it ended."""

    code: int = -1
    lines: list[tuple[str, str]] = field(default_factory=list)

    @property
    def text(self) -> list[str]:
        """The lines of standard output."""
        return [line for stream, line in self.lines if stream == "stdout"]


@dataclass(frozen=True)
class Rootfs:
    """Where a container lives, as a runner wants to know it."""

    path: str
    build: str


@dataclass
class Machine:
    """Runs scripts in containers over one image of busybox."""

    sandbox: Sandbox
    layer: list[object]

    def __call__(self, executor: str, script: str, *, uid: int = 1001, argv0: str = "") -> Output:
        with self.sandbox.directory() as here:
            build = self.sandbox.prepare(here / "build", [self.layer], MOUNT_TARGETS)
            self.sandbox.agent.request("mount", build=str(build))
            rootfs = Rootfs(f"{build}/rootfs", str(build))
            identity = Identity(uid, 0)
            spec = RunSpec(
                (argv0,) if argv0 else ("/bin/sh", "-c", script),
                ("PATH=/bin", "HOME=/tmp", "GREETING=hello"),
                "/tmp",
                identity,
            )
            said = Output()
            stdio = Stdio(lambda stream, line: said.lines.append((stream, line)))
            said.code = self._runner(executor).run(rootfs, spec, stdio).exit_code
        return said

    def _runner(self, name: str) -> Runner:
        if name == "runc":
            return OciProgram("runc", self.sandbox.agent, search_path=SEARCH_PATH, directory=Path())
        return Builtin(self.sandbox.agent)


@pytest.fixture(scope="module")
def machine(sandbox: Sandbox) -> Iterator[Machine]:
    """The image, unpacked once."""
    layer = Layer().dir("./").dir("bin").dir("etc").dir("tmp", mode=0o1777)
    layer.file("bin/busybox", BUSYBOX.read_bytes(), mode=0o755)
    layer.file("bin/suidbox", BUSYBOX.read_bytes(), mode=0o4755)
    for applet in APPLETS:
        layer.symlink(f"bin/{applet}", "busybox")
    layer.file("etc/passwd", "root::0:0::/:/bin/sh\nuser:x:1001:0::/:/bin/sh\n")
    layer.file("bin/not-executable", "#!/bin/sh\n").file(
        "bin/no-such-shell", "#!/none\n", mode=0o755
    )
    with sandbox.directory() as here:
        yield Machine(sandbox, sandbox.unpack(layer.tar(), here / "busybox"))


# --- inside -----------------------------------------------------------------------------------


def status(machine: Machine, executor: str, uid: int) -> dict[str, str]:
    """What the kernel says of a process in the container."""
    lines = machine(executor, "cat /proc/self/status", uid=uid).text
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_user_has_no_capabilities_and_gets_none(machine: Machine, executor: str) -> None:
    found = status(machine, executor, 1001)
    for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(found[kind], 16) == 0, kind
    assert found["NoNewPrivs"] == "1"
    assert found["Uid"].split() == ["1001"] * 4
    assert found["Gid"].split() == ["0"] * 4
    assert found["Groups"] == ""
    assert found["Umask"] == "0022"


@pytest.mark.parametrize("executor", EXECUTORS)
def test_root_has_the_eleven_capabilities(machine: Machine, executor: str) -> None:
    found = status(machine, executor, 0)
    assert len(ROOT_CAPABILITIES) == 11
    for kind in ("CapPrm", "CapEff", "CapBnd"):
        assert int(found[kind], 16) == 0x800405FB, kind
    assert int(found["CapAmb"], 16) == int(found["CapInh"], 16) == 0
    assert found["NoNewPrivs"] == "1"


@pytest.mark.parametrize("executor", EXECUTORS)
def test_only_the_standard_streams_are_open(machine: Machine, executor: str) -> None:
    # `ls` itself opens the directory that it lists.
    assert machine(executor, "ls /proc/self/fd").text == ["0", "1", "2", "3"]


@pytest.mark.parametrize("executor", EXECUTORS)
def test_environment_and_place_are_those_that_were_asked_for(
    machine: Machine, executor: str
) -> None:
    said = machine(executor, "tr '\\0' '\\n' </proc/$$/environ; pwd; hostname")
    assert said.text == ["PATH=/bin", "HOME=/tmp", "GREETING=hello", "/tmp", "ocis2i"]


@pytest.mark.parametrize("executor", EXECUTORS)
def test_no_core_files_and_many_open_files(machine: Machine, executor: str) -> None:
    core, files = machine(executor, "ulimit -Hc; ulimit -n").text
    assert core == "0"
    assert int(files) >= 1024


@pytest.mark.parametrize("executor", EXECUTORS)
def test_only_the_container_own_processes_are_seen(machine: Machine, executor: str) -> None:
    said = machine(executor, "cat /proc/[0-9]*/comm | sort | uniq; echo $$")
    *names, pid = said.text
    # runc's script is process 1; the builtin executor keeps its own there.
    assert int(pid) <= 3
    assert {"sh", "cat"} <= set(names)
    assert len(names) <= 5


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("uid", [0, 1001])
def test_device_directory_holds_what_programs_need(
    machine: Machine, executor: str, uid: int
) -> None:
    script = (
        "ls /dev; echo x >/dev/null && head -c 3 /dev/zero | wc -c; head -c 4 /dev/urandom | wc -c;"
        "echo a >/dev/shm/f && cat /dev/shm/f; echo out >/dev/stdout"
    )
    said = machine(executor, script, uid=uid)
    assert said.text[-4:] == ["3", "4", "a", "out"]
    wanted = {"fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin"}
    wanted |= {"stdout", "tty", "urandom", "zero"}
    assert wanted <= set(said.text[:-4]) <= wanted | {"core", "console"}


@pytest.mark.parametrize("executor", EXECUTORS)
def test_masked_paths_are_empty(machine: Machine, executor: str) -> None:
    script = (
        "for f in kcore keys timer_list sched_debug interrupts latency_stats; do"
        " test -e /proc/$f && head -c 9 /proc/$f | wc -c; done;"
        "for d in /proc/acpi /proc/scsi /proc/asound /sys/firmware; do"
        " test -d $d && ls $d | wc -l; done; true"
    )
    said = machine(executor, script, uid=0)
    assert said.text
    assert set(said.text) == {"0"}


@pytest.mark.parametrize("executor", EXECUTORS)
def test_kernel_settings_are_read_only_even_for_root(machine: Machine, executor: str) -> None:
    script = (
        "for f in /proc/sys/kernel/core_pattern /proc/sysrq-trigger /proc/sys/vm/drop_caches; do"
        " echo 0 2>/dev/null >$f && echo wrote $f; done;"
        "mkdir /sys/x && echo made; mount -t tmpfs none /tmp && echo mounted;"
        "mount -o remount,rw /sys && echo remounted; mknod /tmp/n c 1 3 && echo node; true"
    )
    assert machine(executor, script, uid=0).text == []
    options = machine(executor, "awk '$5 == \"/sys\" {print $6}' /proc/self/mountinfo").text
    assert "ro" in options[0].split(",")


@pytest.mark.parametrize("executor", EXECUTORS)
def test_setuid_programs_give_no_rights(machine: Machine, executor: str) -> None:
    # busybox gives the right up itself for most applets: `su` with an empty password keeps it.
    said = machine(executor, "stat -c %a /bin/suidbox; suidbox su -c 'id -u'")
    assert said.text == ["4755"]
    assert said.code != 0


@pytest.mark.parametrize("executor", EXECUTORS)
def test_nothing_of_the_host_is_in_the_root(machine: Machine, executor: str) -> None:
    assert machine(executor, "ls /; ls -d /home /srv /oldroot; true").text == [
        *"bin dev etc proc sys tmp".split()
    ]
    # Mounted are the rootfs and what the container needs; nothing else came along.
    points = machine(executor, "awk '{print $5}' /proc/self/mountinfo").text
    assert all(p == "/" or p.startswith(("/proc", "/dev", "/sys")) for p in points), points


@pytest.mark.parametrize("executor", EXECUTORS)
def test_processes_of_the_agent_cannot_be_signalled(machine: Machine, executor: str) -> None:
    said = machine(executor, "kill -9 -1; kill -0 99999 || echo none", uid=0)
    assert said.code in (0, 137)
    assert machine(executor, "echo still here").text == ["still here"]


# --- ends and outputs -------------------------------------------------------------------------


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize(("script", "code"), [("exit 3", 3), ("kill -9 $$; sleep 0.2", None)])
def test_exit_code_is_the_script_own(
    machine: Machine, executor: str, script: str, code: int | None
) -> None:
    found = machine(executor, script).code
    # Process 1 of a pid namespace cannot kill itself: there it sleeps on.
    assert found == code if code is not None else found in (137, 0)


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("program", ["/bin/not-executable", "/bin/missing"])
def test_a_program_that_cannot_start_is_named(
    machine: Machine, executor: str, program: str
) -> None:
    with pytest.raises(ScriptError, match=program) as caught:
        machine(executor, "", argv0=program)
    assert caught.value.script_exit_code in (126, 127)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_missing_interpreter_is_told_of(machine: Machine, executor: str) -> None:
    # runc gives the exit code 1 and a line on stderr, we an error.
    try:
        said = machine(executor, "", argv0="/bin/no-such-shell")
    except ScriptError as error:
        assert "/bin/no-such-shell" in error.message
    else:
        assert said.code
        assert "/bin/no-such-shell: no such file" in said.lines[0][1]


def sleepers(mark: str) -> int:
    """Sent to the namespace: how many processes have `mark` in their command line."""
    found = 0
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            try:
                with open(f"/proc/{name}/cmdline", "rb") as file:
                    found += file.read().split(b"\0")[:2] == [b"sleep", mark.encode()]
            except OSError:
                continue
    return found


@pytest.mark.parametrize("executor", EXECUTORS)
def test_what_a_script_left_running_ends_with_it(machine: Machine, executor: str) -> None:
    said = machine(executor, "setsid sleep 98765 </dev/null >/dev/null 2>&1 & echo started")
    assert said.text == ["started"]
    assert machine.sandbox.call(sleepers, "98765") == 0


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_daemon_that_holds_the_pipe_does_not_hold_the_build(
    machine: Machine, executor: str
) -> None:
    said = machine(executor, "setsid sleep 98766 & echo started")
    assert (said.code, said.text) == (0, ["started"])
    assert machine.sandbox.call(sleepers, "98766") == 0


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_script_may_close_its_output(machine: Machine, executor: str) -> None:
    said = machine(executor, "echo first; exec >&- 2>&-; sleep 0.2; exit 5")
    assert (said.code, said.text) == (5, ["first"])


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_hundred_thousand_lines_arrive_in_order(machine: Machine, executor: str) -> None:
    said = machine(executor, "seq 100000")
    assert said.text == [str(n) for n in range(1, 100_001)]


def test_a_line_without_end_arrives_in_pieces(machine: Machine) -> None:
    said = machine("builtin", "head -c 1000000 /dev/zero | tr '\\0' x")
    assert "".join(said.text) == "x" * 1_000_000
    assert max(map(len, said.text)) <= 64 << 10


def test_binary_output_harms_nobody(machine: Machine) -> None:
    said = machine("builtin", "head -c 100000 /dev/urandom; echo; echo end >&2")
    assert said.code == 0
    assert said.lines[-1][1] == "end" or ("stderr", "end") in said.lines


# --- the agent --------------------------------------------------------------------------------


def test_environment_of_the_agent_is_empty(sandbox: Sandbox) -> None:
    assert sandbox.call(environment_of_the_agent) == b""


def environment_of_the_agent() -> bytes:
    """Sent to the namespace, where the agent is process 1."""
    with open("/proc/1/environ", "rb") as file:
        return file.read()


def test_agent_is_root_of_its_namespace_alone(sandbox: Sandbox) -> None:
    code, out, _ = sandbox.program("/bin/sh", "-c", "id -u; id -G; touch /etc/x 2>&1; true")
    assert code == 0
    assert out.decode().splitlines()[:2] == ["0", "0"]
    assert not Path("/etc/x").exists()


TRICKS: dict[str, Callable[[str], Layer]] = {
    "absolute link": lambda at: Layer().symlink("f", f"{at}/secret"),
    "link upwards": lambda at: Layer().symlink("f", "../" * 20 + at.lstrip("/") + "/secret"),
    "directory link": lambda at: Layer().symlink("d", at).symlink("f", "d/secret"),
    "directory": lambda _: Layer().dir("f"),
    "fifo": lambda _: Layer().device("f", kind="fifo"),
    "nothing": lambda _: Layer().dir("x"),
    "circle": lambda _: Layer().symlink("f", "f"),
}


@pytest.mark.parametrize("trick", TRICKS)
def test_reading_never_leaves_the_root(sandbox: Sandbox, trick: str) -> None:
    with sandbox.directory() as here:
        (here / "secret").write_text("of the host")
        sandbox.unpack(TRICKS[trick](str(here)).tar(), here / "fs")
        read = sandbox.agent.request("read", root=str(here / "fs"), path="/f", limit=99)
        found = sandbox.agent.request("look", root=str(here / "fs"), paths=["/f", "f/../../secret"])
    assert read["text"] is None
    exists = trick in ("directory", "fifo")
    assert (found["modes"][0] is not None) == exists
    assert found["modes"][1] is None


def test_reading_follows_links_inside_the_root(sandbox: Sandbox) -> None:
    layer = Layer().file("etc/real", "inside").symlink("f", "/etc/real")
    with sandbox.directory() as here:
        sandbox.unpack(layer.tar(), here / "fs")
        request = {"root": str(here / "fs"), "path": "/f"}
        assert sandbox.agent.request("read", limit=99, **request)["text"] == "inside"
        with pytest.raises(ImageError, match="larger than 3 bytes"):
            sandbox.agent.request("read", limit=3, **request)


TREES: dict[str, Layer] = {
    "modes of nothing": Layer().dir("d", mode=0).dir("d/e", mode=0).file("d/e/f", mode=0),
    "owners of all kinds": Layer().dir("d", mode=0o700, uid=65535).file("d/f", uid=1001, mode=0),
    "names of our own": Layer()
    .file(".ocis2i-0/x/y/f")
    .file(".ocis2i-1/x/y/f")
    .dir(".ocis2i-2")
    .file("a/b/c/f")
    .file("z/b/c/f"),
    "deep": Layer().file("d/" * 990 + "f"),
    "wide": Layer().raw(*Layer().dir("w").members[0]),
}


@pytest.mark.parametrize("tree", TREES)
def test_removing_leaves_nothing(sandbox: Sandbox, tree: str) -> None:
    with sandbox.directory() as here:
        sandbox.unpack(TREES[tree].tar(), here / "fs")
        sandbox.agent.request("remove", parent=str(here), name="fs")
        assert list(here.iterdir()) == []
        sandbox.agent.request("remove", parent=str(here), name="fs")  # and again: no error


def test_removing_takes_a_link_and_not_its_target(sandbox: Sandbox) -> None:
    with sandbox.directory() as here:
        (here / "kept").mkdir()
        (here / "kept/f").touch()
        (here / "gone").symlink_to("kept")
        (here / "d").mkdir()
        (here / "d/link").symlink_to("../kept")
        for name in ("gone", "d"):
            sandbox.agent.request("remove", parent=str(here), name=name)
        assert sorted(path.name for path in here.rglob("*")) == ["f", "kept"]


# --- the end of the parent --------------------------------------------------------------------


def descendants(pid: int) -> set[int]:
    """All processes that come from `pid`."""
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                text = Path("/proc", name, "stat").read_text(errors="replace")
            except OSError:
                continue
            children.setdefault(int(text.rpartition(")")[2].split()[1]), []).append(int(name))
    found: set[int] = set()
    todo = [pid]
    while todo:
        todo += (new := set(children.get(todo.pop(), [])) - found)
        found |= new
    return found


@pytest.mark.parametrize("executor", EXECUTORS)
def test_everything_dies_with_the_killed_program(
    ocis2i: Program, builder: str, executor: str
) -> None:
    running = ocis2i.start(
        "run",
        "--isolation",
        executor,
        builder,
        "sh",
        "-c",
        "setsid sleep 98767 & echo up; sleep 98768",
    )
    with running:
        assert running.stdout is not None
        assert running.stdout.readline() == "up\n"
        family = descendants(running.pid)
        assert len(family) >= 4  # agent, its process 1, and the container's
        running.send_signal(signal.SIGKILL)
        running.wait()
        until = time.monotonic() + PATIENCE_SECONDS
        while (left := {pid for pid in family if alive(pid)}) and time.monotonic() < until:
            time.sleep(0.05)
        assert left == set()
    pruned = ocis2i.ok("prune")
    assert "removed 1 dead build," in pruned.out
    assert list((ocis2i.store / "builds").iterdir()) == []


def alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        text = Path("/proc", str(pid), "stat").read_text(errors="replace")
    except OSError:
        return False
    return text.rpartition(")")[2].split()[0] != "Z"
