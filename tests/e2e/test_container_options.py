"""What a container is given and denied by options, and standard output as it is."""

from __future__ import annotations

import io
import os
import socket
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

import pytest

from ocis2i.container_options import HostEntry
from ocis2i.errors import Interrupted, OutputError, PolicyError, ScriptError
from ocis2i.isolation.builtin import Builtin
from ocis2i.isolation.oci_runtime import MOUNT_TARGETS
from ocis2i.isolation.programs import OciProgram
from ocis2i.runner import HOSTNAME, Network, Runner, RunResult, RunSpec, Stdio
from ocis2i.s2i import Identity
from ocis2i.session import session
from ocis2i.settings import Settings
from ocis2i.store import Store
from tests.conftest import needs
from tests.e2e.test_agent import EXECUTORS, Rootfs
from tests.e2e.test_layer_property import SEARCH_PATH, Sandbox, sandbox
from tests.fakes.images import APPLETS, BUSYBOX, Layer

pytestmark = [pytest.mark.sandbox, needs("busybox")]
__all__ = ["sandbox"]  # the fixture, for pytest to find

USER = Identity(1001, 0)
ROOT = Identity(0, 0)


@dataclass
class Machine:
    """Runs processes in containers over one image of busybox."""

    sandbox: Sandbox
    layer: list[object]
    lines: list[tuple[str, str]] = field(default_factory=list)

    def run(self, executor: str, spec: RunSpec, stdio: Stdio | None = None) -> RunResult:
        """Runs `spec`; what it says goes to `lines` unless `stdio` says otherwise."""
        self.lines.clear()
        stdio = stdio or Stdio(self.line)
        with self.sandbox.directory() as here:
            build = self.sandbox.prepare(here / "build", [self.layer], MOUNT_TARGETS)
            self.sandbox.agent.request("mount", build=str(build))
            rootfs = Rootfs(f"{build}/rootfs", str(build))
            return self._runner(executor).run(rootfs, spec, stdio)

    def line(self, stream: str, line: str) -> None:
        """Takes a line that a process said."""
        self.lines.append((stream, line))

    @property
    def out(self) -> list[str]:
        """The lines of standard output."""
        return [line for stream, line in self.lines if stream == "stdout"]

    @property
    def err(self) -> list[str]:
        """The lines of standard error."""
        return [line for stream, line in self.lines if stream == "stderr"]

    def shell(
        self,
        executor: str,
        script: str,
        *,
        identity: Identity = USER,
        cap_drop: frozenset[str] = frozenset(),
        network: Network = "host",
    ) -> list[str]:
        """What a shell script says on standard output; it must succeed."""
        run = replace(shell(script, identity), cap_drop=cap_drop, network=network)
        result = self.run(executor, run)
        assert result.exit_code == 0, self.lines
        return self.out

    def _runner(self, name: str) -> Runner:
        if name == "runc":
            return OciProgram("runc", self.sandbox.agent, search_path=SEARCH_PATH, directory=Path())
        return Builtin(self.sandbox.agent)


def shell(script: str, identity: Identity = USER) -> RunSpec:
    """A shell script to run."""
    return RunSpec(("/bin/sh", "-c", script), ("PATH=/bin", "HOME=/tmp"), "/tmp", identity)


@pytest.fixture(scope="module")
def machine(sandbox: Sandbox) -> Iterator[Machine]:
    """The image, unpacked once."""
    layer = Layer().dir("./").dir("bin").dir("etc").dir("tmp", mode=0o1777)
    layer.file("bin/busybox", BUSYBOX.read_bytes(), mode=0o755)
    for applet in APPLETS:
        layer.symlink(f"bin/{applet}", "busybox")
    with sandbox.directory() as here:
        yield Machine(sandbox, sandbox.unpack(layer.tar(), here / "busybox"))


# --- capabilities -----------------------------------------------------------------------------

CAPABILITY_SETS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")


def capabilities(
    machine: Machine, executor: str, identity: Identity, *dropped: str
) -> Mapping[str, int]:
    """The sets that the kernel tells of, as bit masks."""
    said = machine.shell(
        executor, "grep ^Cap /proc/self/status", identity=identity, cap_drop=frozenset(dropped)
    )
    return {key: int(value, 16) for key, _, value in (line.partition(":") for line in said)}


@pytest.mark.parametrize("executor", EXECUTORS)
def test_what_is_dropped_is_in_no_set_of_root(machine: Machine, executor: str) -> None:
    found = capabilities(machine, executor, ROOT, "CAP_CHOWN", "CAP_SETUID", "CAP_SETPCAP")
    left = 0x800405FB & ~(1 << 0 | 1 << 7 | 1 << 8)
    assert found == dict.fromkeys(CAPABILITY_SETS, left) | {"CapInh": 0, "CapAmb": 0}


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("identity", [ROOT, USER], ids=["root", "user"])
def test_all_leaves_nothing(machine: Machine, executor: str, identity: Identity) -> None:
    found = capabilities(machine, executor, identity, "ALL")
    assert found == dict.fromkeys(CAPABILITY_SETS, 0)


@pytest.mark.parametrize("executor", EXECUTORS)
def test_dropping_what_nobody_has_changes_nothing(machine: Machine, executor: str) -> None:
    assert capabilities(machine, executor, ROOT, "CAP_SYS_ADMIN")["CapEff"] == 0x800405FB


@pytest.mark.parametrize("executor", EXECUTORS)
def test_root_without_chown_cannot_give_files_away(machine: Machine, executor: str) -> None:
    script = "touch /tmp/f; chown 5 /tmp/f 2>/dev/null && echo given; stat -c %u /tmp/f"
    assert machine.shell(executor, script, identity=ROOT) == ["given", "5"]
    dropped = frozenset({"CAP_CHOWN"})
    assert machine.shell(executor, script, identity=ROOT, cap_drop=dropped) == ["0"]


# --- network ----------------------------------------------------------------------------------


@pytest.fixture
def host_port() -> Iterator[int]:
    """A port of the host's loopback device where somebody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize("executor", EXECUTORS)
def test_network_of_the_host_is_reached_by_default(
    machine: Machine, executor: str, host_port: int
) -> None:
    said = machine.shell(executor, f"nc 127.0.0.1 {host_port} -e true && echo reached")
    assert said == ["reached"]


@pytest.mark.parametrize("executor", EXECUTORS)
def test_without_network_nobody_outside_is_reached(
    machine: Machine, executor: str, host_port: int
) -> None:
    script = (
        f"nc 127.0.0.1 {host_port} -e true 2>/dev/null && echo reached;"
        "nc -w 1 192.0.2.1 9 </dev/null 2>&1; tail -n +3 /proc/net/dev | cut -d: -f1"
    )
    said = machine.shell(executor, script, network="none")
    assert said == [
        "nc: can't connect to remote host (192.0.2.1): Network is unreachable",
        "    lo",
    ]


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("identity", [ROOT, USER], ids=["root", "user"])
def test_without_network_a_program_still_talks_to_itself(
    machine: Machine, executor: str, identity: Identity
) -> None:
    script = (
        "echo hello >/tmp/page; httpd -h /tmp -p 127.0.0.1:8080;"
        "wget -q -O - http://127.0.0.1:8080/page"
    )
    assert machine.shell(executor, script, identity=identity, network="none") == ["hello"]


@pytest.mark.parametrize("executor", EXECUTORS)
def test_devices_of_the_host_network_are_not_seen(machine: Machine, executor: str) -> None:
    assert machine.shell(executor, "ls /sys/class/net", network="none") == ["lo"]
    host = machine.shell(executor, "ls /sys/class/net")
    assert host == sorted(os.listdir("/sys/class/net"))


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("network", ["host", "none"])
def test_system_directory_is_read_only_on_both_networks(
    machine: Machine, executor: str, network: Network
) -> None:
    script = (
        "mkdir /sys/x 2>/dev/null && echo made; ls -A /sys/firmware | wc -l;"
        "mount -o remount,rw /sys 2>/dev/null && echo remounted;"
        "awk '$5 ~ \"^/sys\" {print $6}' /proc/self/mountinfo"
    )
    empty, *options = machine.shell(executor, script, identity=ROOT, network=network)
    assert empty == "0"
    assert options
    assert all("ro" in one.split(",") for one in options), options


@pytest.mark.parametrize("executor", EXECUTORS)
def test_control_groups_are_the_same_on_both_networks(machine: Machine, executor: str) -> None:
    seen = machine.shell(executor, "ls /sys/fs/cgroup")
    assert machine.shell(executor, "ls /sys/fs/cgroup", network="none") == seen


# --- what every container has -----------------------------------------------------------------


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("network", ["host", "none"])
def test_shared_memory_has_sixty_four_mebibytes(
    machine: Machine, executor: str, network: Network
) -> None:
    script = (
        "df -k /dev/shm | awk 'END {print $2}'; stat -c %a /dev/shm;"
        "head -c 67108864 /dev/zero >/dev/shm/f && echo fits;"
        "echo x 2>/dev/null >/dev/shm/g || echo full"
    )
    found = machine.shell(executor, script, network=network)
    assert found == ["65536", "1777", "fits", "full"]


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("identity", [ROOT, USER], ids=["root", "user"])
def test_a_static_program_needs_no_shell(
    sandbox: Sandbox, executor: str, identity: Identity
) -> None:
    layer = Layer().dir("./").file("busybox", BUSYBOX.read_bytes(), mode=0o755)
    with sandbox.directory() as here:
        bare = Machine(sandbox, sandbox.unpack(layer.tar(), here / "bare"))
        spec = RunSpec(("/busybox", "ls", "/"), (), "/", identity)
        assert bare.run(executor, spec).exit_code == 0
        assert bare.out == ["busybox", "dev", "proc", "sys"]
        with pytest.raises(ScriptError, match="`/bin/sh` cannot be started"):
            bare.run(executor, RunSpec(("/bin/sh", "-c", "true"), (), "/", identity))


# --- standard output as it is -----------------------------------------------------------------


def captured(
    machine: Machine, executor: str, script: str, *, limit: int | None = None
) -> tuple[RunResult, bytes]:
    """How a script ended, and the bytes of its standard output."""
    output = io.BytesIO()
    result = machine.run(executor, shell(script), Stdio(machine.line, output, limit))
    return result, output.getvalue()


@pytest.mark.parametrize("executor", EXECUTORS)
def test_bytes_of_standard_output_arrive_unchanged(machine: Machine, executor: str) -> None:
    script = "echo one >&2; printf 'a\\0\\377\\r\\n\\nlast'; printf more >/dev/stdout; echo two >&2"
    result, output = captured(machine, executor, script)
    assert (result.exit_code, output) == (0, b"a\0\xff\r\n\nlastmore")
    assert machine.lines == [("stderr", "one"), ("stderr", "two")]


@pytest.mark.parametrize("executor", EXECUTORS)
def test_an_archive_and_what_follows_it_arrive(machine: Machine, executor: str) -> None:
    # Whoever stops at the archive's end makes the script wait for ever (s2i issue 301).
    script = "cd /tmp; seq 9999 >f; tar cf - f; head -c 3000000 /dev/zero; echo done >&2"
    result, output = captured(machine, executor, script)
    assert result.exit_code == 0
    assert machine.err == ["done"]
    assert output.endswith(bytes(3_000_000))
    with tarfile.open(fileobj=io.BytesIO(output)) as archive:
        assert archive.getnames() == ["f"]


@pytest.mark.parametrize("executor", EXECUTORS)
def test_no_output_is_no_output(machine: Machine, executor: str) -> None:
    result, output = captured(machine, executor, "echo said >&2; exit 4", limit=0)
    assert (result.exit_code, output, machine.err) == (4, b"", ["said"])


@pytest.mark.parametrize("executor", EXECUTORS)
def test_both_streams_full_at_once_do_not_block(machine: Machine, executor: str) -> None:
    script = "seq 200000 >&2 & head -c 20000000 /dev/zero; wait"
    result, output = captured(machine, executor, script)
    assert (result.exit_code, len(output)) == (0, 20_000_000)
    assert machine.err == [str(n) for n in range(1, 200_001)]


@pytest.mark.parametrize("executor", EXECUTORS)
def test_output_up_to_the_limit_is_taken(machine: Machine, executor: str) -> None:
    result, output = captured(machine, executor, "head -c 100000 /dev/zero", limit=100_000)
    assert (result.exit_code, output) == (0, bytes(100_000))


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize(
    "script",
    ["head -c 100001 /dev/zero", "trap '' INT TERM HUP PIPE; while :; do cat /bin/busybox; done"],
    ids=["one too many", "for ever"],
)
def test_output_over_the_limit_ends_the_process(
    machine: Machine, executor: str, script: str
) -> None:
    output = io.BytesIO()
    with pytest.raises(PolicyError, match="`/bin/sh` writes more than 100000 bytes"):
        machine.run(executor, shell(script), Stdio(machine.line, output, 100_000))
    assert len(output.getvalue()) <= 100_000
    assert machine.shell(executor, "echo the agent goes on") == ["the agent goes on"]


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_full_disk_ends_the_process(machine: Machine, executor: str) -> None:
    with (
        Path("/dev/full").open("r+b", buffering=0) as full,
        pytest.raises(OutputError, match="`/bin/sh` cannot be kept: the disk is full"),
    ):
        machine.run(executor, shell("exec yes"), Stdio(machine.line, full))
    assert machine.shell(executor, "echo the agent goes on") == ["the agent goes on"]


@pytest.mark.parametrize("executor", EXECUTORS)
def test_an_interruption_reaches_a_process_that_is_writing(machine: Machine, executor: str) -> None:
    def interrupt(stream: str, line: str) -> None:
        machine.line(stream, line)
        if line == "ready":
            raise Interrupted(15)

    script = "trap 'echo stopped >&2; exit 3' TERM; echo ready >&2; while :; do echo x; done"
    with pytest.raises(Interrupted):
        machine.run(executor, shell(script), Stdio(interrupt, io.BytesIO()))
    assert machine.err == ["ready", "stopped"]


@pytest.mark.parametrize("executor", EXECUTORS)
def test_without_lines_complaints_go_to_our_own_stream(
    machine: Machine, executor: str, capfd: pytest.CaptureFixture[str]
) -> None:
    output = io.BytesIO()
    result = machine.run(executor, shell("echo out; echo err >&2"), Stdio(None, output))
    assert (result.exit_code, output.getvalue()) == (0, b"out\n")
    assert capfd.readouterr() == ("", "err\n")


@pytest.mark.parametrize("executor", EXECUTORS)
def test_no_descriptor_is_left_open(machine: Machine, executor: str) -> None:
    before = os.listdir("/proc/self/fd")
    captured(machine, executor, "echo x")
    with pytest.raises(PolicyError):
        captured(machine, executor, "echo x", limit=1)
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("executor", EXECUTORS)
def test_last_words_are_waited_for(
    machine: Machine, executor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whoever takes them may be slower than any deadline: here there is none.
    monkeypatch.setattr("ocis2i.isolation.streams._LAST_SECONDS", -1.0)
    result, output = captured(machine, executor, "seq 20000; seq 10000 >&2")
    assert result.exit_code == 0
    assert output == "".join(f"{n}\n" for n in range(1, 20_001)).encode()
    assert machine.err == [str(n) for n in range(1, 10_001)]


class Slow(io.RawIOBase):
    """A file that takes a few bytes at a time, as an unbuffered one may."""

    def __init__(self) -> None:
        self.taken = bytearray()

    def write(self, data: object) -> int:
        piece = memoryview(data)[:1000]  # type: ignore[arg-type]
        self.taken += piece
        return len(piece)


def test_a_file_that_takes_little_at_a_time_gets_all(machine: Machine) -> None:
    file: BinaryIO = Slow()  # type: ignore[assignment]
    machine.run("builtin", shell("seq 100000"), Stdio(machine.line, file))
    assert file.taken == "".join(f"{n}\n" for n in range(1, 100_001)).encode()  # type: ignore[attr-defined]


# --- a session --------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store; skipped where no user may have one."""
    if os.geteuid() == 0:
        pytest.skip("the tests run as root; ocis2i builds as an ordinary user")
    return Store.open(tmp_path / "store")


def settings_for(store: Store) -> Settings:
    """Nothing but what is needed to find programs."""
    return Settings(store.root, store.root, environment={"PATH": SEARCH_PATH})


def test_a_session_with_several_rootfs_leaves_nothing(store: Store, tmp_path: Path) -> None:
    layer = tmp_path / "layer"
    layer.mkdir()
    (layer / "kept").write_text("of the store")
    with session(store, settings_for(store)) as here:
        for place in (here.directory, here.directory / "previous", here.directory / "runtime"):
            place.mkdir(exist_ok=True)
            lowers = [[str(layer), []]]
            here.agent.request("prepare", build=str(place), lowers=lowers, targets=[])
            here.agent.request("mount", build=str(place))
    assert list((store.root / "builds").iterdir()) == []
    assert (layer / "kept").read_text() == "of the store"


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("network", ["host", "none"])
def test_names_of_the_user_are_known_in_a_container(
    store: Store, executor: str, network: Network
) -> None:
    layer = Layer().dir("./").file("busybox", BUSYBOX.read_bytes(), mode=0o755)
    said: list[str] = []
    with session(store, settings_for(store)) as here:
        build = str(here.directory)
        (here.directory / "layer.tar").write_bytes(layer.tar())
        with (here.directory / "layer.tar").open("rb") as file:
            limits = {"size_limit": 1 << 30, "entry_limit": 100}
            here.agent.request("unpack", file.fileno(), into=f"{build}/layer", **limits)
        mounts = here.network_files([HostEntry("db", "192.0.2.7")], network)
        targets: list[list[object]] = [[path, True] for path in MOUNT_TARGETS]
        targets += [[mount.target, mount.directory] for mount in mounts]
        lowers = [[f"{build}/layer", []]]
        here.agent.request("prepare", build=build, lowers=lowers, targets=targets)
        here.agent.request("mount", build=build)
        argv = ("/busybox", "cat", "/etc/hosts", "/etc/resolv.conf")
        spec = RunSpec(argv, (), "/", USER, mounts, network=network)
        stdio = Stdio(lambda _, line: said.append(line))
        result = here.runner(executor).run(Rootfs(f"{build}/rootfs", build), spec, stdio)
    assert result.exit_code == 0
    assert said[0] == "192.0.2.7\tdb"
    assert f"127.0.0.1\t{HOSTNAME}" in said
    assert ("# no network, no name servers" in said) == (network == "none")
