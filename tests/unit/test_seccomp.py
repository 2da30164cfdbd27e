"""The seccomp profile: a BPF interpreter says what the filter does, libseccomp's JSON the same."""

from __future__ import annotations

import errno
import re
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocis2i import seccomp
from ocis2i.seccomp import Case, Profile, complement
from ocis2i.syscall_numbers import NUMBERS

MACHINES = sorted(NUMBERS)
AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
AUDIT_I386, AUDIT_ARM = 0x40000003, 0x40000028
ALLOW = 0x7FFF0000
ERRNO = 0x00050000

# The list that the profile must have, written down a second time.
NEVER = """
mount umount2 pivot_root fsopen fsconfig fsmount fspick move_mount open_tree mount_setattr setns
keyctl add_key request_key bpf userfaultfd perf_event_open io_uring_setup io_uring_enter
io_uring_register open_by_handle_at kexec_load kexec_file_load init_module finit_module
delete_module syslog swapon swapoff reboot quotactl quotactl_fd acct settimeofday clock_settime
clock_adjtime adjtimex clone3
""".split()
NEVER_X86 = ["iopl", "ioperm", "create_module", "query_module", "_sysctl", "uselib"]
# What programs cannot do without, or compilers, debuggers and package managers use.
ALWAYS = """
read write openat close mmap mprotect execve execveat exit_group wait4 futex rt_sigaction ptrace
process_vm_readv pidfd_open pidfd_getfd chroot mknodat fchownat setresuid setgroups capset prctl
seccomp getrandom memfd_create statx openat2 close_range rseq membarrier landlock_create_ruleset
inotify_init1 epoll_pwait2 flock copy_file_range setxattr sched_setaffinity prlimit64 faccessat2
""".split()
GUARDED = {"clone", "unshare", "ioctl", "personality", "socket"}


def run_bpf(program: bytes, number: int, arch: int, arguments: tuple[int, ...] = ()) -> int:
    """What a classic BPF program returns for a `struct seccomp_data` (kernel/seccomp.c)."""
    values = (*arguments, *(0,) * (6 - len(arguments)))
    data = struct.pack("<IIQ6Q", number, arch, 0, *values)
    code = [struct.unpack_from("=HBBI", program, place) for place in range(0, len(program), 8)]
    assert len(code) <= 4096
    accumulator = position = 0
    while True:
        operation, on_true, on_false, constant = code[position]
        position += 1
        match operation:
            case 0x20:
                assert constant % 4 == 0
                (accumulator,) = struct.unpack_from("<I", data, constant)
            case 0x54:
                accumulator &= constant
            case 0x05:
                position += constant
            case 0x15:
                position += on_true if accumulator == constant else on_false
            case 0x35:
                position += on_true if accumulator >= constant else on_false
            case 0x06:
                return int(constant)
            case _:
                raise AssertionError(f"no such instruction: {operation:#x}")


def by_bpf(profile: Profile, machine: str, name: str, *arguments: int) -> int:
    """The verdict of the BPF form: 0 or an errno; -1 for an errno of 0."""
    program = seccomp.program(profile, machine)
    value = run_bpf(program, NUMBERS[machine][name], AUDIT[machine], arguments)
    return verdict(value)


def verdict(value: int) -> int:
    if value == ALLOW:
        return 0
    assert value & ~0xFFFF == ERRNO
    return (value & 0xFFFF) or -1


def by_json(profile: Profile, machine: str, name: str, *arguments: int) -> int:
    """The verdict of the form for libseccomp, by the runtime-spec's words."""
    document = seccomp.runtime_profile(profile, machine)
    found = {one for rule in document["syscalls"] for one in decide(rule, name, arguments)}
    assert len(found) <= 1, f"rules contradict each other on {name}{arguments}"
    if found:
        return int(found.pop())
    return int(document.get("defaultErrnoRet", 0))


def decide(rule: dict[str, Any], name: str, arguments: tuple[int, ...]) -> list[int]:
    if name not in rule["names"]:
        return []
    for condition in rule.get("args", ()):
        assert condition["op"] == "SCMP_CMP_MASKED_EQ"
        value = arguments[condition["index"]] if len(arguments) > condition["index"] else 0
        if value & condition["value"] != condition["valueTwo"]:
            return []
    if rule["action"] == "SCMP_ACT_ALLOW":
        return [0]
    assert rule["action"] == "SCMP_ACT_ERRNO"
    return [rule["errnoRet"] or -1]


@pytest.mark.parametrize(("machine", "header"), [
    ("x86_64", "/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    ("aarch64", "/usr/include/asm-generic/unistd.h"),
])  # fmt: skip
def test_numbers_are_those_of_the_kernel(machine: str, header: str) -> None:
    path = Path(header)
    if not path.exists():
        pytest.skip(f"the kernel's headers are not installed: {header}")
    text = path.read_text()
    defined = re.findall(r"__NR_(\w+)\s+([0-9]+)\n", text)
    # Numbers that 32-bit architectures share with a call of another name: the 64-bit name counts.
    shared = dict(re.findall(r"__NR3264_(\w+)\s+([0-9]+)\n", text))
    aliases = re.findall(r"__NR_(\w+) __NR3264_(\w+)\n", text)
    defined += [(name, shared[other]) for name, other in aliases if other in shared]
    numbers = {name: int(number) for name, number in defined}
    known = NUMBERS[machine]
    newest = max(numbers.values())
    for name, number in known.items():
        assert numbers.get(name) == number or number > newest, name
    # 403 to 423 are those with 64-bit times, for 32-bit architectures.
    judged = {number for number in numbers.values() if number <= max(known.values())}
    missing = judged - set(known.values()) - set(range(403, 424))
    assert missing <= {numbers.get("arch_specific_syscall"), numbers.get("syscalls")}


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("profile", [
    Profile(),
    Profile(fake_ids=True),
    Profile(confined=False),
    Profile(confined=False, fake_ids=True),
], ids=str)  # fmt: skip
def test_both_forms_have_the_same_verdict_on_every_call(machine: str, profile: Profile) -> None:
    for name in NUMBERS[machine]:
        assert by_bpf(profile, machine, name) == by_json(profile, machine, name), name


@pytest.mark.parametrize("machine", MACHINES)
def test_every_call_has_the_verdict_of_the_profile(machine: str) -> None:
    for name in NUMBERS[machine]:
        found = by_bpf(Profile(), machine, name)
        if name in (*NEVER, *NEVER_X86):
            assert found in (errno.EPERM, errno.ENOSYS), name
        elif name in ALWAYS or name in GUARDED:
            assert found == 0, name
        else:
            assert found == seccomp._DENIED.get(name, 0), name
    assert {*NEVER, *ALWAYS, *GUARDED} <= set(NUMBERS[machine])


def test_clone3_is_as_if_it_did_not_exist() -> None:
    assert by_bpf(Profile(), "x86_64", "clone3") == errno.ENOSYS


@pytest.mark.parametrize("machine", MACHINES)
def test_numbers_beyond_the_table_do_not_exist(machine: str) -> None:
    program = seccomp.program(Profile(), machine)
    known = set(NUMBERS[machine].values())
    x32 = 0x40000000
    for number in (*range(600), 4096, x32, x32 | 165, x32 | 321, 0x7FFFFFFF, 0xFFFFFFFF):
        if number not in known:
            assert verdict(run_bpf(program, number, AUDIT[machine])) == errno.ENOSYS


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("arch", [AUDIT_I386, AUDIT_ARM, 0, 0x80000016])
def test_foreign_architectures_can_do_nothing(machine: str, arch: int) -> None:
    program = seccomp.program(Profile(), machine)
    for number in range(500):
        assert verdict(run_bpf(program, number, arch)) == errno.ENOSYS


NEW = {
    "NEWTIME": 0x80, "NEWNS": 0x20000, "NEWCGROUP": 0x2000000, "NEWUTS": 0x4000000,
    "NEWIPC": 0x8000000, "NEWUSER": 0x10000000, "NEWPID": 0x20000000, "NEWNET": 0x40000000,
}  # fmt: skip
CLONE_THREAD_FLAGS = 0x3D0F00
SIGCHLD = 17


@pytest.mark.parametrize("judge", [by_bpf, by_json])
@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("name", ["clone", "unshare"])
def test_no_namespace_can_be_made(judge: Any, machine: str, name: str) -> None:
    for kind, bit in NEW.items():
        expected = 0 if (name, kind) == ("clone", "NEWTIME") else errno.EPERM
        for more in (0, CLONE_THREAD_FLAGS, 0x7E020000, 1 << 40):
            found = judge(Profile(), machine, name, bit | more)
            assert found == (errno.EPERM if more == 0x7E020000 else expected), (kind, more)
    for harmless in (0, SIGCHLD, CLONE_THREAD_FLAGS, 0x4000 | SIGCHLD, 0x200 | 0x400):
        assert judge(Profile(), machine, name, harmless) == 0


@pytest.mark.parametrize("judge", [by_bpf, by_json])
@pytest.mark.parametrize("request_number", [0x5412, 0x541C])
def test_input_cannot_be_pushed_into_a_terminal(judge: Any, request_number: int) -> None:
    # The kernel looks at the lower half alone, CVE-2019-10063.
    for upper in (0, 1 << 32, 0xFFFFFFFF << 32):
        assert judge(Profile(), "x86_64", "ioctl", 0, request_number | upper) == errno.EPERM
    for bit in range(32):
        other = request_number ^ 1 << bit
        assert judge(Profile(), "x86_64", "ioctl", 0, other) == 0
    # As a descriptor, or what is written, the number means nothing.
    assert judge(Profile(), "x86_64", "ioctl", request_number, 0x5401, request_number) == 0


@pytest.mark.parametrize("judge", [by_bpf, by_json])
def test_only_harmless_personalities(judge: Any) -> None:
    for value in (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF):
        assert judge(Profile(), "aarch64", "personality", value) == 0
    for value in (0x40000, 0x400000, 0x100000, 0x1, 0xFFFFFFFE):
        assert judge(Profile(), "aarch64", "personality", value) == errno.ENOSYS


@pytest.mark.parametrize("judge", [by_bpf, by_json])
def test_the_hypervisor_cannot_be_talked_to(judge: Any) -> None:
    assert judge(Profile(), "x86_64", "socket", 40, 1) == errno.EAFNOSUPPORT
    for family in (1, 2, 10, 16):
        assert judge(Profile(), "x86_64", "socket", family, 40) == 0


@given(st.sampled_from(sorted(GUARDED)), st.tuples(*[st.integers(0, (1 << 64) - 1)] * 2))
def test_both_forms_agree_on_any_arguments(name: str, arguments: tuple[int, int]) -> None:
    found = by_bpf(Profile(), "x86_64", name, *arguments)
    assert found == by_json(Profile(), "x86_64", name, *arguments)


words = st.integers(0, 0xFFFFFFFF)


@given(st.lists(st.tuples(words, words), max_size=4), st.lists(words))
def test_a_complement_has_exactly_what_the_cases_have_not(
    pairs: list[tuple[int, int]], numbers: list[int]
) -> None:
    cases = [Case(mask, value & mask, 1) for mask, value in pairs]
    others = complement(cases, 0)
    for number in (*numbers, *(case.value for case in cases), *(one.value for one in others)):
        inside = any(number & case.mask == case.value for case in cases)
        outside = sum(number & case.mask == case.value for case in others)
        assert outside == (not inside)


FAKES = """
chown fchown lchown fchownat setuid setgid setreuid setregid setresuid setresgid setfsuid setfsgid
setgroups capset
""".split()


@pytest.mark.parametrize("judge", [by_bpf, by_json])
@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("confined", [True, False])
def test_faked_calls_seem_to_work(judge: Any, machine: str, confined: bool) -> None:
    profile = Profile(confined=confined, fake_ids=True)
    for name in NUMBERS[machine]:
        if name in FAKES:
            assert judge(profile, machine, name) == -1
        else:
            assert judge(profile, machine, name) == judge(Profile(confined), machine, name)


def test_nothing_has_the_verdict_of_the_default() -> None:
    # libseccomp refuses such a rule (EACCES), and runc passes over it only by chance.
    document = seccomp.runtime_profile(Profile(), "x86_64")
    assert document["defaultAction"] == "SCMP_ACT_ERRNO"
    assert document["defaultErrnoRet"] == errno.ENOSYS
    assert not [rule for rule in document["syscalls"] if rule.get("errnoRet") == errno.ENOSYS]


def test_nobody_is_traced_without_a_pid_namespace() -> None:
    for name in ("ptrace", "process_vm_readv", "process_vm_writev", "pidfd_getfd", "kcmp"):
        assert by_bpf(Profile(tracing=False), "x86_64", name) == errno.EPERM
        assert by_bpf(Profile(), "x86_64", name) == seccomp.ALLOWED
