"""What a container's processes may call and use up: the filter and the limits, on each executor."""

from __future__ import annotations

import base64
import errno
import json
import os
import re
import signal
from pathlib import Path

import pytest

from ocis2i.seccomp import Guard, Profile
from ocis2i.syscall_numbers import NUMBERS
from tests.conftest import CRUN, RUNC, needs
from tests.fakes.hosts import Host, bind
from tests.fakes.images import LayoutImage, busybox_builder
from tests.fakes.program import ARGV, Done, Program, called
from tests.fakes.raw_calls import Call, machine, raw_calls, results_of

NAME = "localhost/app:1"
EXECUTORS = [RUNC, CRUN, "builtin"]

pytestmark = pytest.mark.sandbox


@pytest.fixture
def run_assemble(shared: Program, source: Path, tmp_path: Path) -> Assembling:
    """Builds with a script for assemble."""
    if not Path("/bin/busybox").exists():
        pytest.skip("the package busybox-static is not installed")
    return Assembling(shared, source, tmp_path)


class Assembling:
    """Builds with a given assemble script."""

    def __init__(self, ocis2i: Program, source: Path, directory: Path) -> None:
        self.ocis2i = ocis2i
        self.source = source
        self.directory = directory
        self.launcher: tuple[str, ...] = ()

    def __call__(self, script: str, *flags: str, user: str = "1001") -> Done:
        """Builds; the image is `NAME`."""
        place = self.directory / f"builder-{user}"
        if not place.exists():
            busybox_builder(place, "b:1", user=user)
        scripts = self.source / ".s2i/bin"
        scripts.mkdir(parents=True, exist_ok=True)
        (scripts / "assemble").write_text(f"#!/bin/sh\n{script}\n")
        (scripts / "assemble").chmod(0o755)
        return called(
            [*self.launcher, *ARGV, "build", self.source, f"oci:{place}:b:1", NAME, *flags],
            self.ocis2i.environment,
        )

    def left_behind(self) -> list[Path]:
        """Directories of builds that are still there."""
        return list((self.ocis2i.store / "builds").iterdir())


def told(done: Done, name: str) -> str:
    """What the script printed after `name=`."""
    found = re.search(rf"{name}=(.*)", done.err)
    assert found, done.err
    return found[1]


# --- system calls -----------------------------------------------------------------------------

# Calls whose verdict depends on an argument, and the answer.
GUARDED = [
    ("unshare", (0x10000000,), -errno.EPERM),
    ("unshare", (0x00020000,), -errno.EPERM),
    ("clone", (0x10000000 | 17,), -errno.EPERM),
    ("clone", (0x7E020000 | 17,), -errno.EPERM),
    ("ioctl", (0, 0x5412, 0), -errno.EPERM),
    ("ioctl", (0, 0x5412 | 1 << 32, 0), -errno.EPERM),
    ("ioctl", (0, 0x541C, 0), -errno.EPERM),
    ("ioctl", (99, 0x5401, 0), -errno.EBADF),
    ("personality", (0xFFFFFFFF,), 0),
    ("personality", (0x0040000,), -errno.ENOSYS),
    ("socket", (40, 1, 0), -errno.EAFNOSUPPORT),
    ("unshare", (0,), 0),
]
NOT_THERE = [451, 467, 1000]


def make_calls(run: Assembling, calls: list[Call], *flags: str, user: str) -> list[int]:
    program = run.directory / "calls"
    program.write_bytes(raw_calls(calls))
    program.chmod(0o755)
    done = run(
        "/calls > /tmp/results; echo results=$(base64 /tmp/results | tr -d '\\n')",
        *("-v", f"{program}:/calls:ro"),
        *flags,
        user=user,
    )
    assert done.code == 0, done.err
    return results_of(base64.b64decode(told(done, "results")))


@pytest.fixture
def known_machine() -> str:
    """This host's architecture, when the profile knows it."""
    if machine() not in NUMBERS:
        pytest.skip(f"there is no seccomp profile for {machine()}")
    return machine()


@pytest.mark.parametrize("isolation", EXECUTORS)
@pytest.mark.parametrize("user", ["0", "1001"])
def test_denied_calls_are_denied(
    run_assemble: Assembling, known_machine: str, isolation: str, user: str
) -> None:
    numbers = NUMBERS[known_machine]
    verdicts = {name: Profile().judge(name) for name in numbers}
    denied = {
        name: verdict
        for name, verdict in verdicts.items()
        if verdict and not isinstance(verdict, Guard)
    }
    calls: list[Call] = [(numbers[name], ()) for name in denied]
    calls += [(numbers[name], arguments) for name, arguments, _ in GUARDED]
    calls += [(number, ()) for number in NOT_THERE]
    results = make_calls(run_assemble, calls, "--isolation", isolation, user=user)
    names = [*denied, *(f"{name}{arguments}" for name, arguments, _ in GUARDED), *NOT_THERE]
    expected = [-verdict for verdict in denied.values()]
    expected += [result for _, _, result in GUARDED]
    expected += [-errno.ENOSYS] * len(NOT_THERE)
    found = dict(zip(names, results, strict=True))
    assert found == dict(zip(names, expected, strict=True))
    assert len(denied) > 50


@pytest.mark.parametrize("isolation", EXECUTORS)
def test_without_the_filter_the_kernel_itself_answers(
    run_assemble: Assembling, known_machine: str, isolation: str
) -> None:
    numbers = NUMBERS[known_machine]
    # Nothing at address 0; no size; a flag that does not exist.
    calls: list[Call] = [
        (numbers["mount"], ()),
        (numbers["clone3"], ()),
        (numbers["unshare"], (1 << 40,)),
    ]
    given = ("--isolation", isolation, "--security-opt", "seccomp=unconfined")
    results = make_calls(run_assemble, calls, *given, user="1001")
    assert results == [-errno.EFAULT, -errno.EINVAL, -errno.EINVAL]


@pytest.mark.parametrize("isolation", EXECUTORS)
@pytest.mark.parametrize("user", ["0", "1001"])
@pytest.mark.parametrize(("flags", "privileges", "mode"), [
    ((), "1", "2"),
    (("--security-opt", "no-new-privileges=false"), "0", "2"),
    (("--security-opt", "seccomp=unconfined"), "1", "0"),
], ids=["default", "setuid", "unconfined"])  # fmt: skip
def test_the_kernel_says_what_a_process_is_kept_from(
    run_assemble: Assembling,
    isolation: str,
    user: str,
    flags: tuple[str, ...],
    privileges: str,
    mode: str,
) -> None:
    if machine() not in NUMBERS:
        pytest.skip(f"there is no seccomp profile for {machine()}")
    if "Seccomp:\t0" not in Path("/proc/self/status").read_text():
        pytest.skip("this test itself runs under a seccomp filter")
    script = "sed -n 's/^\\(NoNewPrivs\\|Seccomp\\):\\t/\\1=/p' /proc/self/status"
    done = run_assemble(script, "--isolation", isolation, *flags, user=user)
    assert done.code == 0, done.err
    assert told(done, "NoNewPrivs") == privileges
    assert told(done, "Seccomp") == mode


@pytest.mark.parametrize("isolation", EXECUTORS)
def test_what_package_managers_do_as_root_still_works(
    run_assemble: Assembling, isolation: str
) -> None:
    script = """
        set -e
        cd /var/tmp
        echo content > file; chown 12:34 file; chmod 4755 file; ln file second
        mkfifo pipe; mkdir -p a/b; mv a c
        tar -cf tree.tar file c; mkdir out; tar -xf tree.tar -C out
        echo owner=$(stat -c %u:%g:%a out/file)
        (sleep 0 & wait)
        echo kept=$(env -i PATH=$PATH sh -c 'timeout 9 id -u')
    """
    done = run_assemble(script, "--isolation", isolation, user="0")
    assert done.code == 0, done.err
    assert told(done, "owner").startswith("12:34")
    assert told(done, "kept") == "0"


@pytest.mark.parametrize(("value", "said"), [
    ("seccomp=/some/profile.json", "profiles of one's own are not taken"),
    ("label=disable", "`--security-opt` is `label=disable`"),
    ("no-new-privileges=perhaps", "no-new-privileges=perhaps"),
])  # fmt: skip
def test_other_security_options_are_refused(
    run_assemble: Assembling, value: str, said: str
) -> None:
    done = run_assemble("true", "--security-opt", value)
    assert done.code == 2
    assert said in done.err
    assert "hint: there are seccomp=unconfined and no-new-privileges=false" in done.err


# --- limits -----------------------------------------------------------------------------------


@pytest.mark.parametrize("isolation", EXECUTORS)
def test_a_script_that_sleeps_for_ever_is_ended(run_assemble: Assembling, isolation: str) -> None:
    done = run_assemble(
        "trap '' TERM; sleep 100000 & wait; sleep 100000",
        *("--isolation", isolation, "--timeout", "2s", "--json"),
    )
    assert done.code == 9
    assert "runs for more than 2 seconds, and was killed" in done.err
    assert done.document["reason"] == "TimeLimitReached"
    assert run_assemble.left_behind() == []


@needs("runc")
def test_a_script_that_is_held_by_its_own_child_is_ended(
    run_assemble: Assembling, known_machine: str
) -> None:
    numbers = NUMBERS[known_machine]
    # PTRACE_ATTACH to process 1, which is the script's shell here; then nothing, for ever.
    program = run_assemble.directory / "holding"
    program.write_bytes(raw_calls([(numbers["ptrace"], (16, 1)), (numbers["ppoll"], ())]))
    program.chmod(0o755)
    script = "/holding & sleep 1; echo on its way"
    given = ("--isolation", "runc", "--timeout", "4s", "-v", f"{program}:/holding:ro")
    done = run_assemble(script, *given)
    if "on its way" in done.err:
        pytest.skip("this host lets no process trace the one that started it (Yama)")
    assert done.code == 9, done.err
    assert "runs for more than 4 seconds, and was killed" in done.err
    assert run_assemble.left_behind() == []


@pytest.mark.parametrize("isolation", EXECUTORS)
def test_a_script_that_stopped_itself_hears_the_end_of_the_build(
    ocis2i: Program, source: Path, tmp_path: Path, isolation: str
) -> None:
    stopping = """trap "echo heard; exit 3" TERM; echo now; kill -STOP $$"""
    # The shell that waits for it must not end first, and the container with it.
    assemble = f"#!/bin/sh\ntrap : TERM\nsh -c '{stopping}'\n"
    busybox_builder(tmp_path / "stopping", "b:1", scripts={"assemble": assemble})
    given = ("build", source, f"oci:{tmp_path}/stopping:b:1", "--isolation", isolation)
    with ocis2i.start(*given) as running:
        assert running.stderr
        assert any(line == "now\n" for line in iter(running.stderr.readline, ""))
        os.kill(running.pid, signal.SIGTERM)
        said = running.stderr.read()
        assert "heard\n" in said, said
    assert running.returncode == 128 + signal.SIGTERM
    assert list((ocis2i.store / "builds").iterdir()) == []


@pytest.mark.parametrize("isolation", EXECUTORS)
def test_a_script_that_prints_for_ever_is_ended(run_assemble: Assembling, isolation: str) -> None:
    done = run_assemble(
        "yes to standard output & yes to standard error >&2",
        *("--isolation", isolation, "--output-limit", "100k", "--json"),
    )
    assert done.code == 9
    assert "prints more than 100 KiB, and was killed" in done.err
    assert done.document["reason"] == "OutputLimitReached"
    assert len(done.err) < 300_000
    assert run_assemble.left_behind() == []


@pytest.mark.parametrize("user", ["0", "1001"])
@pytest.mark.parametrize("isolation", EXECUTORS)
def test_a_script_that_forks_for_ever_is_ended(
    run_assemble: Assembling, isolation: str, user: str
) -> None:
    done = run_assemble(
        "(while :; do sleep 100000 & done) 2>/dev/null & sleep 100000",
        *("--isolation", isolation, "--pids-limit", "40", "--json"),
        user=user,
    )
    assert done.code == 9, done.err
    assert "has more than 40 processes and threads at once, and was killed" in done.err
    assert "hint: raise --pids-limit" in done.err
    assert done.document["reason"] == "ProcessLimitReached"
    assert run_assemble.left_behind() == []


@pytest.mark.parametrize("isolation", EXECUTORS)
def test_a_script_that_cannot_fork_any_more_hears_of_the_limit(
    run_assemble: Assembling, isolation: str
) -> None:
    done = run_assemble(
        "while :; do sleep 100000 & done", "--isolation", isolation, "--pids-limit", "40"
    )
    # The shell gives up by itself, unless the watch is faster.
    assert done.code in (7, 9)
    assert "it may use 40 processes" in done.err or "more than 40 processes" in done.err


@pytest.mark.parametrize("isolation", EXECUTORS)
def test_a_job_below_the_limit_is_left_alone(run_assemble: Assembling, isolation: str) -> None:
    script = "for n in $(seq 30); do sleep 2 & done; wait; echo all=there"
    done = run_assemble(script, "--isolation", isolation, "--pids-limit", "40")
    assert done.code == 0, done.err
    assert told(done, "all") == "there"


@pytest.mark.parametrize("isolation", EXECUTORS)
def test_memory_of_all_processes_together_is_limited(
    run_assemble: Assembling, isolation: str
) -> None:
    # Each keeps the last 40 MiB of something without end.
    done = run_assemble(
        "for n in 1 2 3 4; do tail -c 41943040 /dev/zero & done; wait",
        *("--isolation", isolation, "--memory", "100m", "--json"),
    )
    assert done.code == 9, done.err
    assert "use more than 100 MiB of memory, and were killed" in done.err
    assert done.document["reason"] == "MemoryLimitReached"
    assert run_assemble.left_behind() == []


@pytest.mark.parametrize("isolation", EXECUTORS)
def test_files_in_memory_count_as_memory(run_assemble: Assembling, isolation: str) -> None:
    done = run_assemble(
        "dd if=/dev/zero of=/dev/shm/file bs=1M count=50; sleep 100000",
        *("--isolation", isolation, "--memory", "40m", "--json"),
    )
    assert done.code == 9, done.err
    assert done.document["reason"] == "MemoryLimitReached"


def test_memory_that_processes_share_is_limited(
    run_assemble: Assembling, known_machine: str
) -> None:
    numbers = NUMBERS[known_machine]
    # PROT_READ|PROT_WRITE, MAP_SHARED|MAP_ANONYMOUS|MAP_POPULATE; then nothing, for ever.
    calls: list[Call] = [(numbers["mmap"], (0, 64 << 20, 3, 0x8021, (1 << 64) - 1, 0))]
    calls += [(numbers["ppoll"], ())]
    program = run_assemble.directory / "sharing"
    program.write_bytes(raw_calls(calls))
    program.chmod(0o755)
    given = ("--isolation", "builtin", "--memory", "40m", "-v", f"{program}:/sharing:ro")
    done = run_assemble("/sharing", *given)
    assert done.code == 9, done.err
    assert "use more than 40 MiB of memory, and were killed" in done.err


@pytest.mark.parametrize("isolation", EXECUTORS)
def test_four_gibibytes_at_once_are_refused(run_assemble: Assembling, isolation: str) -> None:
    done = run_assemble(
        "dd if=/dev/zero of=/dev/null bs=4G count=1", "--isolation", isolation, "--memory", "100m"
    )
    assert done.code == 7, done.err
    assert "it may use 100 MiB of memory" in done.err


@pytest.mark.parametrize("isolation", EXECUTORS)
def test_memory_below_the_limit_is_left_alone(run_assemble: Assembling, isolation: str) -> None:
    done = run_assemble(
        "timeout 2 tail -c 41943040 /dev/zero; echo still=here",
        *("--isolation", isolation, "--memory", "100m"),
    )
    assert done.code == 0, done.err
    assert told(done, "still") == "here"


@pytest.mark.parametrize("isolation", EXECUTORS)
def test_a_script_sees_its_processors_alone(run_assemble: Assembling, isolation: str) -> None:
    done = run_assemble("echo processors=$(nproc)", "--isolation", isolation, "--cpus", "1")
    assert done.code == 0, done.err
    has_all = len(os.sched_getaffinity(0)) == int(told(done, "processors"))
    assert told(done, "processors") == "1" or has_all  # a cgroup limits time, not the number


def test_parts_of_a_processor_take_a_cgroup(run_assemble: Assembling) -> None:
    done = run_assemble("true", "--cpus", "0.5")
    if done.code == 0:
        pytest.skip("a cgroup is delegated to this user")
    assert done.code == 6
    assert "`--cpus` is 0.5: parts of a processor take a cgroup" in done.err
    assert "hint: give a whole number" in done.err


@pytest.mark.parametrize("isolation", EXECUTORS)
def test_an_image_that_runs_is_limited_too(
    ocis2i: Program, builder: str, isolation: str, tmp_path: Path
) -> None:
    done = ocis2i(
        *("run", "--isolation", isolation, "--timeout", "1", builder, "sleep", "100000"),
    )
    assert done.code == 9
    assert "`sleep` runs for more than 1 second, and was killed" in done.err


def test_a_usage_script_is_limited_too(ocis2i: Program, tmp_path: Path) -> None:
    busybox_builder(tmp_path / "slow", "b:1", scripts={"usage": "#!/bin/sh\nsleep 100000\n"})
    done = ocis2i("usage", f"oci:{tmp_path}/slow:b:1", "--timeout", "1")
    assert done.code == 9
    assert "runs for more than 1 second" in done.err


@pytest.mark.parametrize(("flag", "value"), [
    ("--memory", "lots"), ("--memory", "1k"), ("--cpus", "0"), ("--cpus", "two"),
    ("--pids-limit", "many"), ("--timeout", "later"), ("--timeout", "0"), ("--output-limit", ""),
])  # fmt: skip
def test_a_limit_that_means_nothing_is_refused(
    run_assemble: Assembling, flag: str, value: str
) -> None:
    done = run_assemble("true", flag, value)
    assert done.code == 2
    assert f"`{flag}` is `{value}`" in done.err


def test_a_dockerfile_has_no_limits(run_assemble: Assembling, tmp_path: Path) -> None:
    done = run_assemble("true", "--timeout", "5m", "--as-dockerfile", str(tmp_path / "D"), "--json")
    assert done.code == 0, done.err
    assert "--timeout has no meaning with --as-dockerfile" in done.err
    assert json.loads(done.out)["state"] == "succeeded"


def test_limit_on_namespaces_is_no_full_disk(run_assemble: Assembling) -> None:
    # The agent takes one user namespace, and with one id a user who is not root a second one.
    limit = ("/proc/sys/user/max_user_namespaces", "1")
    # Without subordinate ids none is taken in vain before: the kernel may count that for a while.
    no_ids = bind("/dev/null", "/etc/subuid")
    run_assemble.launcher = Host(ids="own", mounts=(no_ids,), writes=(limit,)).launcher
    done = run_assemble("true")
    assert done.code == 6
    assert "this host allows no (more) namespaces" in done.err
    assert "hint: raise the sysctls user.max_*_namespaces" in done.err


# --- a root with one id -----------------------------------------------------------------------

# Under no_new_privs newuidmap gains nothing: there is one user id, and root is it.
ONE_ID = ("setpriv", "--no-new-privs")
PRETEND = """
set -e
cd /var/tmp
touch file
chown 12:34 file; chgrp 5 file; tar -C / -cf tree.tar etc; tar -xf tree.tar
echo owner=$(stat -c %u:%g file)
echo settings=$(cat $APT_CONFIG)
rm -r etc tree.tar file
"""


@needs("setpriv")
@pytest.mark.parametrize("isolation", EXECUTORS)
def test_with_one_id_root_may_pretend_to_change_owners(
    run_assemble: Assembling, isolation: str
) -> None:
    run_assemble.launcher = ONE_ID
    done = run_assemble(PRETEND, "--isolation", isolation, user="0")
    assert done.code == 0, done.err
    assert told(done, "owner") == "0:0"
    assert told(done, "settings") == 'APT::Sandbox::User "root";'
    names = LayoutImage(run_assemble.ocis2i.layout, NAME).members()
    assert not [name for name in names if "apt" in name or name.startswith("dev")]


@needs("setpriv")
@pytest.mark.parametrize("isolation", EXECUTORS)
def test_with_one_id_set_id_calls_answer_success(
    run_assemble: Assembling, known_machine: str, isolation: str
) -> None:
    run_assemble.launcher = ONE_ID
    numbers = NUMBERS[known_machine]
    names = ["setuid", "setgid", "setresuid", "setresgid", "setreuid", "setfsuid", "setgroups"]
    calls: list[Call] = [(numbers[name], (42, 42, 42)) for name in names]
    calls += [(numbers["geteuid"], ()), (numbers["capset"], ()), (numbers["mount"], ())]
    results = make_calls(run_assemble, calls, "--isolation", isolation, user="0")
    assert results == [*[0] * len(names), 0, 0, -errno.EPERM]


@pytest.mark.parametrize("isolation", EXECUTORS)
def test_with_all_ids_nothing_is_faked(run_assemble: Assembling, isolation: str) -> None:
    script = "touch /var/tmp/file; chown 12:34 /var/tmp/file; stat -c owner=%u:%g /var/tmp/file"
    done = run_assemble(script, "--isolation", isolation, user="0")
    assert done.code == 0, done.err
    assert told(done, "owner") == "12:34"


@needs("setpriv")
def test_with_one_id_another_user_may_not_pretend(run_assemble: Assembling) -> None:
    run_assemble.launcher = ONE_ID
    script = "touch /var/tmp/file; chown 12:34 /var/tmp/file || echo refused=${APT_CONFIG:-yes}"
    done = run_assemble(script, user="1001")
    assert done.code == 0, done.err
    assert told(done, "refused") == "yes"
