"""Which system calls a container's processes may make: a profile, for libseccomp and as BPF.

The profile is an allow list that is closed at the top: the table of Linux 6.1 is what exists, and
each call in it was judged. What the table does not have answers `ENOSYS`, as on an older kernel,
and every libc falls back: a call that a later kernel adds is closed until somebody has looked at
it (with a deny list, `io_uring` and the new mount calls were open the day they came). What is
denied on purpose answers `EPERM`, which programs explain better. `ptrace` and its kin stay, for
debuggers and test suites, where they reach no further than a pid namespace; without one they would
lead out of the tree, into whatever else runs as the same user.

Both forms have the same verdicts. What differs: a program of a foreign architecture (32-bit x86,
x32) gets `ENOSYS` for every call from the BPF, and is killed by the runtimes' libseccomp.
"""

from __future__ import annotations

import errno
import functools
import struct
from collections.abc import Iterator, Sequence
from typing import Any

from ocis2i.lazy_dataclass import dataclass
from ocis2i.syscall_numbers import NUMBERS

# include/uapi/linux/audit.h, and what libseccomp calls the same.
_ARCHITECTURES = {
    "x86_64": (0xC000003E, "SCMP_ARCH_X86_64"),
    "aarch64": (0xC00000B7, "SCMP_ARCH_AARCH64"),
}

# A verdict: 0 lets the call through, another number is the errno that it answers instead.
# `FAKED` answers success, and nothing happens.
ALLOWED = 0
FAKED = -1

_EPERM = """
mount umount2 pivot_root move_mount open_tree fsopen fsconfig fsmount fspick mount_setattr
setns
add_key request_key keyctl
bpf perf_event_open userfaultfd io_uring_setup io_uring_enter io_uring_register
open_by_handle_at fanotify_init
kexec_load kexec_file_load init_module finit_module delete_module
settimeofday clock_settime clock_adjtime adjtimex
reboot swapon swapoff acct quotactl quotactl_fd syslog vhangup iopl ioperm sethostname setdomainname
mbind set_mempolicy get_mempolicy set_mempolicy_home_node migrate_pages move_pages
""".split()

# Old ones that kernels have dropped or should have; and clone3: its flags are behind a pointer,
# where no filter can look, and every libc goes back to clone on ENOSYS.
_ENOSYS = """
clone3
uselib ustat sysfs _sysctl lookup_dcookie nfsservctl epoll_ctl_old epoll_wait_old
create_module get_kernel_syms query_module getpmsg putpmsg afs_syscall tuxcall security vserver
""".split()

# What a root that is mapped to one user id alone cannot do: package managers and tar go on when
# it seems to work (Charliecloud's "zero-consistency root emulation").
FAKED_IDS = """
chown fchown lchown fchownat
setuid setgid setreuid setregid setresuid setresgid setfsuid setfsgid setgroups capset
""".split()


_TRACING = frozenset("ptrace process_vm_readv process_vm_writev pidfd_getfd kcmp".split())


@dataclass(frozen=True, slots=True)
class Case:
    """Holds when the lower 32 bits of an argument, those of `mask`, are `value`.

    The kernel takes no more than 32 bits of the arguments here: whoever compares all 64 lets pass
    what differs in the upper ones (CVE-2019-10063).
    """

    mask: int
    value: int
    verdict: int


@dataclass(frozen=True, slots=True)
class Guard:
    """A verdict that depends on one argument: that of the first case that holds, else `rest`."""

    argument: int
    cases: tuple[Case, ...]
    rest: int


_WORD = 0xFFFFFFFF


def _any_bit(argument: int, bits: int) -> Guard:
    found = [1 << number for number in range(32) if bits & 1 << number]
    cases = tuple(Case(bit, bit, errno.EPERM) for bit in found)
    return Guard(argument, cases, ALLOWED)


def _values(argument: int, values: Sequence[int], verdict: int, rest: int) -> Guard:
    return Guard(argument, tuple(Case(_WORD, value, verdict) for value in values), rest)


# include/uapi/linux/sched.h: CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET}; for clone, CLONE_NEWTIME
# is part of the signal's number.
_NEW_NAMESPACE = 0x7E020000
_NEW_TIME = 0x80
# Input that a terminal takes for typed: whoever holds the caller's could type commands into it.
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
# PER_LINUX and PER_LINUX32, each with UNAME26, and the question: those of Docker. Others switch
# off the random places of memory, or run what has no other protection.
_PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, _WORD)
# Sockets to the hypervisor: there is no namespace for them, not even without a network.
_AF_VSOCK = 40

GUARDS = {
    "clone": _any_bit(0, _NEW_NAMESPACE),
    "unshare": _any_bit(0, _NEW_NAMESPACE | _NEW_TIME),
    "ioctl": _values(1, (_TIOCSTI, _TIOCLINUX), errno.EPERM, ALLOWED),
    "personality": _values(0, _PERSONALITIES, ALLOWED, errno.ENOSYS),
    "socket": _values(0, (_AF_VSOCK,), errno.EAFNOSUPPORT, ALLOWED),
}

_DENIED = dict.fromkeys(_EPERM, errno.EPERM) | dict.fromkeys(_ENOSYS, errno.ENOSYS)


@dataclass(frozen=True, slots=True)
class Profile:
    """What is wanted: the default `confined` or nothing, and whether changes of ids are faked.

    `tracing` of other processes is for those in a pid namespace of their own.
    """

    confined: bool = True
    fake_ids: bool = False
    tracing: bool = True

    @property
    def unknown(self) -> int:
        """The verdict on what the table does not have."""
        return errno.ENOSYS if self.confined else ALLOWED

    def judge(self, name: str) -> int | Guard:
        """The verdict on a system call of the table."""
        if self.fake_ids and name in FAKED_IDS:
            return FAKED
        if not self.confined:
            return ALLOWED
        if not self.tracing and name in _TRACING:
            return errno.EPERM
        return GUARDS.get(name) or _DENIED.get(name, ALLOWED)


def is_known(machine: str) -> bool:
    """Whether there are profiles for this architecture, as uname(2) names it."""
    return machine in _ARCHITECTURES


# --- for libseccomp ---------------------------------------------------------------------------


@functools.cache
def runtime_profile(profile: Profile, machine: str) -> dict[str, Any]:
    """`linux.seccomp` of an OCI runtime config (runtime-spec, config-linux.md). Not to be changed.

    A verdict that is the default has no rule: runc leaves those out, and libseccomp refuses them.
    """
    _, architecture = _ARCHITECTURES[machine]
    names: dict[int, list[str]] = {}
    rules: list[dict[str, Any]] = []
    for name in NUMBERS[machine]:
        verdict = profile.judge(name)
        if isinstance(verdict, Guard):
            rules += _guard_rules(name, verdict, profile.unknown)
        elif verdict != profile.unknown:
            names.setdefault(verdict, []).append(name)
    return {
        **_default(profile.unknown),
        "architectures": [architecture],
        "syscalls": [*({"names": names[one], **_action(one)} for one in sorted(names)), *rules],
    }


def _default(verdict: int) -> dict[str, Any]:
    if verdict == ALLOWED:
        return {"defaultAction": "SCMP_ACT_ALLOW"}
    return {"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": verdict}


def _action(verdict: int) -> dict[str, Any]:
    if verdict == ALLOWED:
        return {"action": "SCMP_ACT_ALLOW"}
    return {"action": "SCMP_ACT_ERRNO", "errnoRet": max(verdict, 0)}


def _guard_rules(name: str, guard: Guard, default: int) -> Iterator[dict[str, Any]]:
    # A rule without a condition would win over those with one: the rest is spelled out.
    rest = complement(guard.cases, guard.rest) if guard.rest != default else ()
    for case in (*guard.cases, *rest):
        if case.verdict != default:
            condition = {
                "index": guard.argument,
                "value": case.mask,
                "valueTwo": case.value,
                "op": "SCMP_CMP_MASKED_EQ",
            }
            yield {"names": [name], **_action(case.verdict), "args": [condition]}


def complement(cases: Sequence[Case], verdict: int) -> tuple[Case, ...]:
    """Cases, of that verdict, that hold exactly where none of `cases` does."""
    return tuple(_outside(tuple((case.mask, case.value) for case in cases), 0, 0, verdict))


def _outside(
    taken: tuple[tuple[int, int], ...], mask: int, value: int, verdict: int
) -> Iterator[Case]:
    open_bits = 0
    for other, _ in taken:
        open_bits |= other & ~mask
    if not taken:
        yield Case(mask, value, verdict)
        return
    if any(not other & ~mask for other, _ in taken):
        return  # one of them has all that is left
    bit = 1 << (open_bits.bit_length() - 1)
    for chosen in (0, bit):
        left = tuple(
            (other, wanted) for other, wanted in taken if not other & bit or wanted & bit == chosen
        )
        yield from _outside(left, mask | bit, value | chosen, verdict)


# --- as classic BPF ---------------------------------------------------------------------------

# include/uapi/linux/{bpf_common,filter,seccomp}.h.
_INSTRUCTION = struct.Struct("=HBBI")
_LOAD, _AND = 0x20, 0x54
_JUMP, _IF_EQUAL, _IF_NOT_LESS = 0x05, 0x15, 0x35
_RETURN = 0x06
_RET_ALLOW, _RET_ERRNO = 0x7FFF0000, 0x00050000
# struct seccomp_data: where the number, the architecture and (little endian) the arguments are.
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16

_Instruction = tuple[int, int, int, int]


@functools.cache
def program(profile: Profile, machine: str) -> bytes:
    """The filter for seccomp(2): an array of `struct sock_filter`."""
    audit, _ = _ARCHITECTURES[machine]
    search, blocks = _search(_segments(profile, machine))
    code: list[_Instruction] = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_IF_EQUAL, 1, 0, audit),
        _give(profile.unknown),
        (_LOAD, 0, 0, _NUMBER),
    ]
    starts = {}
    length = len(search)
    for guard in blocks:
        starts[guard] = length
        length += len(_block(guard))
    for place, instruction in enumerate(search):
        # A jump has room for the distance: a guard's block is behind all of the search.
        code.append(
            (_JUMP, 0, 0, starts[instruction] - place - 1)
            if isinstance(instruction, Guard)
            else instruction
        )
    code += [instruction for guard in blocks for instruction in _block(guard)]
    return b"".join(_INSTRUCTION.pack(*instruction) for instruction in code)


def _segments(profile: Profile, machine: str) -> list[tuple[int, int | Guard]]:
    """From which number on which verdict holds; the first is from 0 on."""
    numbers = {number: name for name, number in NUMBERS[machine].items()}
    segments: list[tuple[int, int | Guard]] = []
    for number in range(max(numbers) + 2):
        name = numbers.get(number)
        verdict = profile.unknown if name is None else profile.judge(name)
        if not segments or segments[-1][1] != verdict:
            segments.append((number, verdict))
    return segments


def _search(
    segments: list[tuple[int, int | Guard]],
) -> tuple[list[_Instruction | Guard], list[Guard]]:
    """A binary search for the segment, and the guards that it ends in."""
    if len(segments) == 1:
        verdict = segments[0][1]
        if isinstance(verdict, Guard):
            return [verdict], [verdict]
        return [_give(verdict)], []
    middle = len(segments) // 2
    below, some = _search(segments[:middle])
    above, others = _search(segments[middle:])
    first: _Instruction = (_IF_NOT_LESS, len(below), 0, segments[middle][0])
    return [first, *below, *above], [*some, *others]


def _block(guard: Guard) -> list[_Instruction]:
    code: list[_Instruction] = []
    for case in guard.cases:
        code += [
            (_LOAD, 0, 0, _ARGUMENTS + 8 * guard.argument),
            (_AND, 0, 0, case.mask),
            (_IF_EQUAL, 0, 1, case.value),
            _give(case.verdict),
        ]
    return [*code, _give(guard.rest)]


def _give(verdict: int) -> _Instruction:
    return (_RETURN, 0, 0, _RET_ALLOW if verdict == ALLOWED else _RET_ERRNO | max(verdict, 0))
