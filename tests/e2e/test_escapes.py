"""What a hostile assemble script tries on the host around it, on each rung, and in vain."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pty
import re
import socket
import struct
import subprocess
import tempfile
import termios
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from ocis2i.syscall_numbers import NUMBERS
from tests.conftest import needs
from tests.fakes.canary import WORDS, Canary
from tests.fakes.hosts import ARBITRARY, DOCKER_CAPABILITIES, ROOT, Host, bind, fresh
from tests.fakes.images import BUSYBOX, Layer, busybox_builder
from tests.fakes.program import Done, Program, program
from tests.fakes.raw_calls import Call, machine, raw_calls, results_of
from tests.host_rows import ATTEMPTS, ISOLATED, RUNGS, WEAK

pytestmark = [
    pytest.mark.sandbox,
    pytest.mark.skipif(not BUSYBOX.exists(), reason="busybox-static is not installed"),
    pytest.mark.skipif(machine() not in NUMBERS, reason=f"no system call numbers for {machine()}"),
]

NEEDS = {
    "runc": ["runc"],
    "crun": ["crun"],
    "buildah": ["buildah", "runc"],
}
NAMES = {"single": "builtin", "nested": "builtin", "chroot-root": "chroot"}
# What a build says where it is on the rung that is meant.
SAID = {"single": "one user id only", "nested": "parts of /proc are hidden here"}
TMPFS = (fresh("tmpfs", "/var/tmp", options="mode=1777"),)

# Something else that goes on in a container, and has nothing to do with the build.
NEIGHBOUR = """\
SECRET_OF_A_NEIGHBOUR='{words}' sleep 10000 &
victim=$!
echo $victim >"$0"
"$@"
code=$?
kill -0 $victim && kill $victim
echo "the neighbour ended: $?"
exit $code
"""


def rungs(attempt: str) -> pytest.MarkDecorator:
    """The rungs that have to keep a script from this."""
    (row,) = (one for one in ATTEMPTS if one.id == attempt)
    cases = []
    for rung in RUNGS:
        if rung in row.open:
            continue
        # Root of a container that may make devices takes root to make.
        caller = pytest.mark.as_root if rung.startswith("chroot") else pytest.mark.as_user
        cases.append(pytest.param(rung, id=rung, marks=[caller, needs(*NEEDS.get(rung, []))]))
    return pytest.mark.parametrize("rung", cases)


@dataclass(frozen=True)
class Stage:
    """A host with things that are nobody's business, and a rung on which scripts are started."""

    ocis2i: Program
    directory: Path
    rung: str

    @property
    def home(self) -> Path:
        """The caller's home."""
        return Path(self.ocis2i.environment["HOME"])

    @property
    def user(self) -> str:
        """The strongest that a script is on this rung: root where that is nobody outside."""
        return "1001" if self.rung in ("chroot", "in-place") else "0"

    def try_(
        self,
        script: str,
        *flags: str,
        programs: Mapping[str, Sequence[Call]] | None = None,
        user: str = "",
        before: tuple[str, ...] = (),
        variables: Mapping[str, str] | None = None,
    ) -> str:
        """Builds with this assemble script; all that was printed.

        `programs` are made of system calls and put into the source; `before` starts ocis2i.
        """
        source = self.directory / "source"
        scripts = source / ".s2i/bin"
        scripts.mkdir(parents=True)
        for name, calls in (programs or {}).items():
            (source / name).write_bytes(raw_calls(calls))
            (source / name).chmod(0o755)
        (scripts / "assemble").write_text(
            f"#!/bin/sh\necho started\n{script}\necho ended\nexit 0\n"
        )
        (scripts / "assemble").chmod(0o755)
        done = self.start(source, *flags, user=user, before=before, variables=variables or {})
        said = done.out + done.err
        assert "started" in said.splitlines(), said
        assert "ended" in said.splitlines(), said
        return said

    def start(
        self,
        source: Path,
        *flags: str,
        user: str,
        before: tuple[str, ...],
        variables: Mapping[str, str],
    ) -> Done:
        """The build itself."""
        image = self.directory / "builder"
        busybox_builder(image, "b:1", user=user or self.user, more_layers=[powerful()])
        host = self.host(image)
        launcher = host.launcher if host else ()
        running = replace(
            self.ocis2i,
            launcher=(*before, *launcher, *self.neighbour),
            environment={**self.ocis2i.environment, **self.outside, **variables},
        )
        how = ("--isolation", NAMES.get(self.rung, self.rung), "--loglevel", "3", *flags)
        done = running("build", source, f"oci:{image}:b:1", "app:1", *how)
        assert SAID.get(self.rung, "") in done.err
        return done

    def host(self, image: Path) -> Host | None:
        """Where there is this rung and no better one: a container for the weak ones."""
        if self.rung == "single":
            return Host(no_new_privs=True)
        if self.rung == "nested":
            return Host(ids="own", mounts=(bind("/dev/null", "/proc/keys"),))
        if self.rung in ISOLATED:
            return None
        host = Host(
            ids="container" if os.geteuid() else "host",
            image=(str(image), "b:1"),
            shared=(str(self.directory),),
            mounts=TMPFS,
            filter="docker",
        )
        if self.rung == "in-place":
            return replace(host, user=ARBITRARY, no_new_privs=True, kubernetes=True)
        return replace(host, user=ROOT, capabilities=tuple(DOCKER_CAPABILITIES))

    @property
    def neighbour(self) -> tuple[str, ...]:
        """Starts the neighbour in the container."""
        if self.rung not in WEAK:
            return ()
        script = NEIGHBOUR.format(words=WORDS)
        return ("/bin/sh", "-c", script, str(self.directory / "neighbour"))

    @property
    def outside(self) -> dict[str, str]:
        """What is said to ocis2i in the container."""
        in_container = {"OCIS2I_ROOT": "/var/tmp/store", "TMPDIR": "/var/tmp"}
        return in_container if self.rung in WEAK else {}


@pytest.fixture(scope="module")
def everybodys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """One store for all: the builder is always the same, and no test looks at what is in it."""
    with program(tmp_path_factory.mktemp("everybodys")) as running:
        yield running


@pytest.fixture
def stage(rung: str, everybodys: Program, tmp_path: Path) -> Stage:
    directory = tmp_path / "stage"
    home = directory / "home"
    for path in (directory, home):
        path.mkdir(mode=0o755)
    ocis2i = replace(everybodys, environment={**everybodys.environment, "HOME": str(home)})
    return Stage(ocis2i, directory, rung)


@pytest.fixture
def victim() -> Iterator[subprocess.Popen[bytes]]:
    """A process of the host that does nothing."""
    environment = {"SECRET_OF_A_NEIGHBOUR": WORDS}
    with subprocess.Popen(["/bin/sleep", "10000"], env=environment) as process:
        yield process
        process.kill()


def powerful() -> Layer:
    """Programs that would have another user's rights: they say whose, or take them."""
    setuid = [(number("geteuid"), ()), (number("getegid"), ()), (number("setuid"), (0,))]
    layer = Layer().file("bin/setuid", raw_calls(setuid), mode=0o6755)
    # CAP_SETGID, permitted and effective: `struct vfs_cap_data` of linux/capability.h.
    xattrs = {"security.capability": "\x01\0\0\x02\x40" + "\0" * 15}
    return layer.file("bin/able", raw_calls([(number("setgid"), (5,))]), mode=0o755, xattrs=xattrs)


def ways_to(path: Path) -> str:
    """Names that a file of the host might have inside."""
    ways = [path, f"/proc/1/root{path}", f"/proc/self/root/../../..{path}", f"/../../..{path}"]
    return " ".join([*map(str, ways), f"/proc/[0-9]*/root{path}", f"/proc/[0-9]*/cwd{path}"])


def called(said: str, name: str = "results") -> list[int]:
    """What the system calls of a program returned."""
    found = re.search(rf"{name}=([0-9a-f]+)", said)
    assert found, said
    return results_of(bytes.fromhex(found[1]))


def printing(program_: str, name: str = "results") -> str:
    """A line of a script that starts a program and prints what its calls returned."""
    return f"echo {name}=$({program_} | od -An -v -tx1 | tr -d ' \\n')"


def number(name: str) -> int:
    """The number of a system call."""
    return NUMBERS[machine()][name]


# --- files --------------------------------------------------------------------------------------


@rungs("write-outside")
def test_nothing_is_written_outside(stage: Stage) -> None:
    canary = Canary(stage.directory / "elsewhere")
    at_home = Canary(stage.home / "private")
    names = [stage.home, stage.directory / "elsewhere", stage.home / "private", Path("/etc")]
    ways = " ".join(ways_to(path / "left-by-a-script") for path in names)
    ways += " " + " ".join(ways_to(one.path) for one in (canary, at_home))
    script = f"for way in {ways}; do echo owned 2>/dev/null >>$way; done\n"
    # The oldest way out of a tree: another root below, and up from where one still is.
    script += "mkdir -p /tmp/deeper; chroot /tmp/deeper true 2>/dev/null\n"
    script += (
        f"cd /; for n in 1 2 3 4 5 6; do cd ..; done; echo owned >.{canary.path} 2>/dev/null\n"
    )
    before = sorted(os.listdir(stage.home))
    with canary.watched(), at_home.watched():
        stage.try_(script)
    assert sorted(set(os.listdir(stage.home)) - {".cache", ".local", ".config"}) == before
    assert not Path("/etc/left-by-a-script").exists()


@rungs("read-private-file")
def test_private_files_are_not_read(stage: Stage) -> None:
    canary = Canary(stage.home / "private", mode=0o600)
    ways = f"{ways_to(canary.path)} /proc/[0-9]*/fd/*"
    with canary.watched():
        said = stage.try_(
            f"for way in {ways}; do [ -p $way ] || timeout 5 cat $way 2>/dev/null; done </dev/null"
        )
    assert WORDS not in said


@rungs("registry-credentials")
def test_credentials_are_not_found(stage: Stage) -> None:
    secret = "c2VjcmV0LXdvcmRzLXFaN3ZLMnhXOQ"
    places = [stage.home / ".docker/config.json", stage.home / ".config/containers/auth.json"]
    for place in places:
        place.parent.mkdir(parents=True)
        place.write_text(f'{{"auths": {{"registry.invalid": {{"auth": "{secret}"}}}}}}')
        place.chmod(0o600)
    ways = " ".join(ways_to(place) for place in places)
    said = stage.try_(
        f"cat {ways} 2>/dev/null\n"
        "find / -xdev '(' -name config.json -o -name auth.json ')' -exec cat {} + 2>/dev/null\n"
        "env; cat /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n'\n",
        variables={"REGISTRY_AUTH_FILE": str(places[1])},
    )
    assert secret not in said


# --- processes ----------------------------------------------------------------------------------


@rungs("list-processes")
def test_command_lines_are_not_seen(stage: Stage, victim: subprocess.Popen[bytes]) -> None:
    said = stage.try_("cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '\nps\n")
    assert victim.poll() is None
    assert "sleep 10000" not in said


@rungs("environment")
def test_environments_are_not_read(stage: Stage, victim: subprocess.Popen[bytes]) -> None:
    said = stage.try_(
        "env; for file in /proc/[0-9]*/environ /proc/[0-9]*/task/*/environ; do\n"
        "tr '\\0' '\\n' <$file; done 2>/dev/null\n",
        variables={"SECRET_OF_THE_CALLER": WORDS, "MYTOKEN": WORDS},
    )
    assert victim.poll() is None
    assert WORDS not in said


@rungs("signal")
def test_processes_outside_are_not_signalled(stage: Stage, victim: subprocess.Popen[bytes]) -> None:
    neighbour = stage.directory / "neighbour"
    said = stage.try_(
        # Of those in the container none is ours but the script and its own children.
        f"kill -9 {victim.pid} {os.getpid()}; kill -9 -{victim.pid}\n"
        f"kill -9 $(cat {neighbour} 2>/dev/null || echo 999999)\n",
    )
    assert victim.poll() is None
    if stage.rung in WEAK:
        assert "the neighbour ended: 0" in said


@rungs("ptrace")
def test_processes_outside_are_not_traced(stage: Stage, victim: subprocess.Popen[bytes]) -> None:
    attach, seize, peek = 16, 0x4206, 1
    # Process 1 of an isolated rung is the script itself.
    pids = [victim.pid, os.getpid(), *([] if stage.rung in ISOLATED else [1])]
    calls: list[Call] = [
        (number("ptrace"), (request, pid, 0, 0))
        for pid in pids
        for request in (attach, seize, peek)
    ]
    said = stage.try_(
        printing("/tmp/src/trace") + f"\nfor pid in {victim.pid} {os.getpid()}; do\n"
        "head -c 10 /proc/$pid/mem && echo memory was read; done 2>/dev/null\n",
        programs={"trace": calls},
    )
    assert victim.poll() is None
    status = Path(f"/proc/{victim.pid}/status").read_text()
    assert "TracerPid:\t0\n" in status
    assert all(one < 0 for one in called(said)), called(said)
    assert "memory was read" not in said


@rungs("background")
def test_no_process_stays_behind(stage: Stage) -> None:
    marker = f"1{os.getpid()}{list(RUNGS).index(stage.rung)}"
    script = f"setsid sh -c 'trap \"\" TERM HUP INT; setsid sleep {marker} & sleep {marker}' &\n"
    script += f"(setsid setsid sleep {marker} </dev/null >/dev/null 2>&1 &)\nsleep 0.2\n"
    script += f"ps | grep -c '[s]leep {marker}' || true\n"
    stage.try_(script)
    assert not [line for line in processes() if f"sleep {marker}" in line]


def processes() -> list[str]:
    """The command lines of all processes."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            words = Path("/proc", name, "cmdline").read_bytes()
            found.append(words.replace(b"\0", b" ").decode(errors="replace"))
    return found


# --- the kernel ---------------------------------------------------------------------------------


@rungs("mount")
def test_nothing_can_be_mounted(stage: Stage) -> None:
    user_namespace = 0x10000000
    calls: list[Call] = [
        (number("mount"), (0, 0, 0, 0, 0)),
        (number("umount2"), (0, 2)),
        (number("pivot_root"), (0, 0)),
        (number("fsopen"), (0, 0)),
        (number("open_tree"), (-100 & 0xFFFFFFFF, 0, 1)),
        (number("mount_setattr"), (0, 0, 0, 0, 0)),
        (number("unshare"), (user_namespace,)),
        (number("unshare"), (user_namespace | 0x20000,)),
        (number("clone"), (user_namespace | 17, 0, 0, 0, 0)),
        (number("setns"), (0, 0)),
    ]
    before = Path("/proc/self/mountinfo").read_text()
    said = stage.try_(
        "mkdir -p /tmp/there; mount -t tmpfs none /tmp/there && echo mounted\n"
        "mount -o bind / /tmp/there && echo mounted\n"
        "mount -o remount,rw /sys && echo mounted\numount /proc && echo mounted\n"
        + printing("/tmp/src/calls"),
        programs={"calls": calls},
    )
    assert "mounted" not in said.splitlines()
    denied = {-errno.EPERM, -errno.ENOSYS}
    assert set(called(said)) <= denied, called(said)
    assert Path("/proc/self/mountinfo").read_text() == before


@rungs("module")
def test_the_kernel_takes_no_code(stage: Stage) -> None:
    names = "init_module finit_module delete_module kexec_load bpf perf_event_open"
    more = "userfaultfd io_uring_setup open_by_handle_at swapon reboot acct"
    calls: list[Call] = [(number(name), (0, 0, 0)) for name in f"{names} {more}".split()]
    said = stage.try_(printing("/tmp/src/calls"), programs={"calls": calls})
    assert set(called(said)) <= {-errno.EPERM, -errno.ENOSYS}, called(said)


@rungs("keyring")
def test_keyrings_are_not_used(stage: Stage) -> None:
    session, user, get, describe, read = -3, -4, 0, 6, 11
    calls: list[Call] = [
        (number("keyctl"), (operation, ring & 0xFFFFFFFF, 0, 0))
        for ring in (session, user)
        for operation in (get, describe, read)
    ]
    calls += [(number("add_key"), (0, 0, 0, 0, 0)), (number("request_key"), (0, 0, 0, 0))]
    said = stage.try_(printing("/tmp/src/calls"), programs={"calls": calls})
    assert set(called(said)) <= {-errno.EPERM, -errno.ENOSYS}, called(said)


@rungs("shared-memory")
def test_shared_memory_of_the_host_is_not_filled(stage: Stage) -> None:
    name = f"left-by-a-script-{os.getpid()}"
    said = stage.try_(
        f"head -c 80m /dev/zero >/dev/shm/{name}\necho bytes=$(wc -c </dev/shm/{name})\n"
    )
    assert not Path("/dev/shm", name).exists()
    if stage.rung in ISOLATED:
        found = re.search("bytes=([0-9]+)", said)
        assert found
        assert int(found[1]) <= 64 << 20


# --- sockets ------------------------------------------------------------------------------------

# Where the program's input is in its memory.
_ADDRESS = 0x10000000


def connecting(length: int) -> list[Call]:
    """Calls that read an address from standard input and connect to it; the last one tells."""
    memory = (_ADDRESS, 4096, 3, 0x32, 0xFFFFFFFFFFFFFFFF, 0)
    return [
        (number("mmap"), memory),
        (number("read"), (0, _ADDRESS, length)),
        (number("socket"), (socket.AF_UNIX, socket.SOCK_STREAM, 0)),
        (number("connect"), (3, _ADDRESS, length)),
    ]


def address(path: bytes) -> bytes:
    """A `struct sockaddr_un`."""
    return struct.pack("=H", socket.AF_UNIX) + path


def knocks_at(listener: socket.socket) -> bool:
    """Whether somebody has connected."""
    listener.setblocking(False)
    try:
        listener.accept()[0].close()
    except BlockingIOError:
        return False
    return True


def knock(stage: Stage, path: bytes, *flags: str, variables: Mapping[str, str]) -> list[int]:
    data = address(path)
    octal = "".join(f"\\{byte:03o}" for byte in data)
    said = stage.try_(
        printing(f"printf '{octal}' | /tmp/src/knock"),
        *flags,
        programs={"knock": connecting(len(data))},
        variables=variables,
    )
    results = called(said)
    assert results[1:3] == [len(data), 3], "the program is wrong"
    return results


@rungs("agent-socket")
def test_sockets_of_agents_are_not_reached(stage: Stage) -> None:
    # Paths of sockets are short, those of tests are not.
    with tempfile.TemporaryDirectory() as short, socket.socket(socket.AF_UNIX) as listener:
        Path(short).chmod(0o777)
        path = f"{short}/agent"
        listener.bind(path)
        Path(path).chmod(0o777)
        listener.listen()
        variables = {"SSH_AUTH_SOCK": path, "DOCKER_HOST": f"unix://{path}"}
        results = knock(stage, path.encode() + b"\0", variables=variables)
        assert not knocks_at(listener)
    assert results[3] == -errno.ENOENT


@rungs("abstract-socket")
def test_abstract_sockets_are_not_reached(stage: Stage) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        name = f"\0ocis2i-test-{os.getpid()}".encode()
        listener.bind(name)
        listener.listen()
        results = knock(stage, name, "--network", "none", variables={})
        assert not knocks_at(listener)
    assert results[3] == -errno.ECONNREFUSED


# --- what is inherited --------------------------------------------------------------------------


@rungs("descriptor")
def test_open_files_of_the_caller_are_not_written(stage: Stage) -> None:
    canary = stage.directory / "open"
    canary.write_text(WORDS)
    canary.chmod(0o666)
    script = 'for n in 3 4 5 6 7 8 9; do ( eval "echo owned >&$n" ) 2>/dev/null; done\n'
    if stage.rung != "in-place":  # where those of other processes are the same user's
        script += f"for fd in /proc/[0-9]*/fd/*; do case $(readlink $fd) in {canary}) "
        script += "echo owned >>$fd;; esac; done 2>/dev/null\n"
    stage.try_(
        script,
        before=("/bin/sh", "-c", 'exec 9>>"$0"; exec "$@"', str(canary)),
    )
    assert canary.read_text() == WORDS


@rungs("terminal")
def test_terminals_take_no_input_from_scripts(stage: Stage) -> None:
    # From the first bytes of the program itself, which are no zeros.
    some_memory = 0x400000
    calls: list[Call] = [
        (number("ioctl"), (fd, termios.TIOCSTI, some_memory)) for fd in (0, 1, 2, 3)
    ]
    leader, follower = pty.openpty()
    try:
        # ocis2i with a terminal as its standard input and of its own session.
        launch = ("setsid", "--wait", "/bin/sh", "-c")
        terminal = os.ttyname(follower)
        before = (*launch, 'exec "$@" <"$0"', terminal)
        said = stage.try_(
            printing("/tmp/src/push 3<>/dev/tty"), programs={"push": calls}, before=before
        )
        waiting = struct.unpack("i", fcntl.ioctl(follower, termios.FIONREAD, b"\0" * 4))[0]
    finally:
        os.close(leader)
        os.close(follower)
    assert waiting == 0
    found = re.search("results=([0-9a-f]*)", said)
    # Without a terminal /dev/tty does not open, and the program is not even started.
    assert found
    assert all(one < 0 for one in results_of(bytes.fromhex(found[1])))


@rungs("setuid")
def test_setuid_programs_give_nothing(stage: Stage) -> None:
    calls: list[Call] = [
        (number("setuid"), (0,)),
        (number("setresuid"), (0, 0, 0)),
        (number("setgroups"), (0, 0)),
    ]
    said = stage.try_(
        'echo "I am $(id -u)"\n'
        + "\n".join(
            printing(path, name)
            for path, name in {
                "/bin/setuid": "setuid",
                "/bin/able": "able",
                "/tmp/src/calls": "results",
            }.items()
        )
        + "\ngrep -E '^(CapEff|CapPrm|NoNewPrivs)' /proc/self/status\n",
        programs={"calls": calls},
        user="1001",
    )
    me = str(ARBITRARY[0]) if stage.rung == "in-place" else "1001"
    assert f"I am {me}" in said.splitlines()
    # With one user id there is nobody else to become.
    denied = -errno.EINVAL if stage.rung in ("single", "nested") else -errno.EPERM
    assert called(said, "setuid") == [int(me), 0, denied]
    if "/bin/able: Operation not permitted" in said:  # execve(2) of what nobody could permit
        said = said.replace("able=\n", f"able={struct.pack('=q', -errno.EPERM).hex()}\n")
    assert called(said, "able") == [-errno.EPERM]
    assert all(one < 0 for one in called(said))
    if NAMES.get(stage.rung, stage.rung) != "chroot":  # where there is no /proc
        assert "NoNewPrivs:\t1" in said
        assert re.findall("Cap(?:Eff|Prm):\t(.*)", said) == ["0" * 16] * 2
