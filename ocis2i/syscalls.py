"""Linux system calls that Python 3.11 does not have, by ctypes. The only place with ctypes.

Names and numbers are those of the kernel headers. Each call raises `OSError` with the path or the
operation in it. Imports nothing of ocis2i and starts fast: the agent depends on it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18

MNT_DETACH = 2

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_SECCOMP = 22
PR_CAPBSET_DROP = 24
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38

# include/uapi/linux/capability.h, in the order of their numbers.
CAPABILITIES = """
CAP_CHOWN CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH CAP_FOWNER CAP_FSETID CAP_KILL CAP_SETGID CAP_SETUID
CAP_SETPCAP CAP_LINUX_IMMUTABLE CAP_NET_BIND_SERVICE CAP_NET_BROADCAST CAP_NET_ADMIN CAP_NET_RAW
CAP_IPC_LOCK CAP_IPC_OWNER CAP_SYS_MODULE CAP_SYS_RAWIO CAP_SYS_CHROOT CAP_SYS_PTRACE CAP_SYS_PACCT
CAP_SYS_ADMIN CAP_SYS_BOOT CAP_SYS_NICE CAP_SYS_RESOURCE CAP_SYS_TIME CAP_SYS_TTY_CONFIG CAP_MKNOD
CAP_LEASE CAP_AUDIT_WRITE CAP_AUDIT_CONTROL CAP_SETFCAP CAP_MAC_OVERRIDE CAP_MAC_ADMIN CAP_SYSLOG
CAP_WAKE_ALARM CAP_BLOCK_SUSPEND CAP_AUDIT_READ CAP_PERFMON CAP_BPF CAP_CHECKPOINT_RESTORE
""".split()

RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_IN_ROOT = 0x10

# The same in mount flags and in the attributes of mount_setattr(2).
MOUNT_ATTRIBUTES = MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC

# include/uapi/asm-generic/unistd.h: the same numbers on every architecture; since 5.6 and 5.12.
_SYS_OPENAT2 = 437
_SYS_MOUNT_SETATTR = 442
_AT_FDCWD = -100
_AT_RECURSIVE = 0x8000
# struct statx in include/uapi/linux/stat.h: `stx_mask` first, `stx_btime` at byte 80.
_SYS_STATX = {"x86_64": 332, "aarch64": 291, "riscv64": 291, "ppc64le": 383, "s390x": 379}
_AT_EMPTY_PATH = 0x1000
_STATX_BTIME = 0x800
_STATX_BYTES = 256
_STATX_BTIME_OFFSET = 80
_SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41, "riscv64": 41, "ppc64le": 203, "s390x": 217}
_SECCOMP_MODE_FILTER = 2
_LINUX_CAPABILITY_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_ulong,
    ctypes.c_char_p,
)
_libc.syscall.restype = ctypes.c_long


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result


def unshare(flags: int) -> None:
    """unshare(2): new namespaces for this process. A user namespace needs a single thread."""
    _check(_libc.unshare(flags), "unshare")


def setns(fd: int, kind: int) -> None:
    """setns(2): into the namespace `fd`, which must be one of the `kind`."""
    _check(_libc.setns(fd, kind), "setns")


def mount(source: str, target: str, kind: str, flags: int = 0, options: str = "") -> None:
    """mount(2)."""
    _check(
        _libc.mount(
            os.fsencode(source), os.fsencode(target), kind.encode(), flags, options.encode() or None
        ),
        f"mount {kind or 'bind'} on {target}",
    )


def mount_setattr(target: str, attributes: int) -> None:
    """mount_setattr(2): sets attributes of a mount and of all mounts below it."""
    wanted = struct.pack("=QQQQ", attributes, 0, 0, 0)
    _check(
        _libc.syscall(
            ctypes.c_long(_SYS_MOUNT_SETATTR),
            ctypes.c_int(_AT_FDCWD),
            ctypes.c_char_p(os.fsencode(target)),
            ctypes.c_uint(_AT_RECURSIVE),
            ctypes.c_char_p(wanted),
            ctypes.c_size_t(len(wanted)),
        ),
        f"mount_setattr {target}",
    )


def umount2(target: str, flags: int = 0) -> None:
    """umount2(2)."""
    _check(_libc.umount2(os.fsencode(target), flags), f"umount {target}")


def pivot_root(new_root: str, put_old: str) -> None:
    """pivot_root(2)."""
    number = _SYS_PIVOT_ROOT[os.uname().machine]
    _check(
        _libc.syscall(
            ctypes.c_long(number),
            ctypes.c_char_p(os.fsencode(new_root)),
            ctypes.c_char_p(os.fsencode(put_old)),
        ),
        f"pivot_root {new_root}",
    )


def prctl(option: int, value: int = 0, third: int = 0) -> None:
    """prctl(2) with up to two numbers."""
    _check(
        _libc.prctl(
            option,
            ctypes.c_ulong(value),
            ctypes.c_ulong(third),
            ctypes.c_ulong(0),
            ctypes.c_ulong(0),
        ),
        f"prctl {option}",
    )


def set_filter(program: bytes) -> None:
    """prctl(2), PR_SET_SECCOMP: every later system call is judged by this BPF program.

    Takes no_new_privs, or CAP_SYS_ADMIN in the own user namespace.
    """
    # struct sock_fprog: how many instructions, of 8 bytes each, and where.
    code = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("@HP", len(program) // 8, ctypes.addressof(code))
    place = ctypes.create_string_buffer(header, len(header))
    prctl(PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(place))


def capset(effective: int, permitted: int, inheritable: int) -> None:
    """capset(2): the capability sets of this thread, each a bit mask."""
    header = struct.pack("=Ii", _LINUX_CAPABILITY_VERSION_3, 0)
    words = []
    for shift in (0, 32):
        words += [(mask >> shift) & 0xFFFFFFFF for mask in (effective, permitted, inheritable)]
    _check(_libc.capset(header, struct.pack("=6I", *words)), "capset")


def open_in_root(root_fd: int, path: bytes, flags: int) -> int:
    """openat2(2) with `RESOLVE_IN_ROOT`: `path` is resolved as if `root_fd` were `/`.

    Absolute links and `..` stay inside, whoever made them. Returns a descriptor, close-on-exec.
    """
    if b"\0" in path:  # C would stop reading there, and find something else
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), os.fsdecode(path))
    how = struct.pack("=QQQ", flags | os.O_CLOEXEC, 0, RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS)
    result = _libc.syscall(
        ctypes.c_long(_SYS_OPENAT2),
        ctypes.c_int(root_fd),
        ctypes.c_char_p(path or b"."),
        ctypes.c_char_p(how),
        ctypes.c_size_t(len(how)),
    )
    return _check(int(result), os.fsdecode(path))


def birth_ns(fd: int) -> int:
    """When an open file was made (statx(2), `stx_btime`), in nanoseconds; 0: nobody knows."""
    number = _SYS_STATX.get(os.uname().machine)
    if number is None:
        return 0
    buffer = ctypes.create_string_buffer(_STATX_BYTES)
    result = _libc.syscall(
        ctypes.c_long(number),
        ctypes.c_int(fd),
        ctypes.c_char_p(b""),
        ctypes.c_int(_AT_EMPTY_PATH),
        ctypes.c_uint(_STATX_BTIME),
        buffer,
    )
    (mask,) = struct.unpack_from("=I", buffer)
    if result < 0 or not mask & _STATX_BTIME:
        return 0
    seconds, nanoseconds = struct.unpack_from("=qI", buffer, _STATX_BTIME_OFFSET)
    return int(seconds) * 1_000_000_000 + int(nanoseconds)


def sethostname(name: str) -> None:
    """sethostname(2) of the UTS namespace."""
    data = name.encode()
    _check(_libc.sethostname(data, len(data)), "sethostname")
