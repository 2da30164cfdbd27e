"""Device nodes in a container of a user namespace, as the manager of such containers gives them.

The kernel lets nobody make one there. LXD and Incus do it for the container (their setting
`security.syscalls.intercept.mknod`), and so does this: mknod(2) comes here by seccomp's user
notification (seccomp_unotify(2)), and the host's device is mounted on the name. Used by tests.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from ocis2i import syscalls
from ocis2i.syscall_numbers import NUMBERS

_DEVICES = {(1, 3): "null", (1, 5): "zero", (1, 7): "full", (1, 8): "random", (1, 9): "urandom",
            (5, 0): "tty"}  # fmt: skip
_MKNOD = 1 << syscalls.CAPABILITIES.index("CAP_MKNOD")
# include/uapi/linux/seccomp.h: struct seccomp_notif and seccomp_notif_resp.
_NOTICE = struct.Struct("=QIIiIQ6Q")
_ANSWER = struct.Struct("=QqiI")
_RECEIVE, _SEND = 0xC0502100, 0xC0182101
_SET_MODE_FILTER, _NEW_LISTENER = 1, 8
_NOTIFY, _ALLOW = 0x7FC00000, 0x7FFF0000
_CONTINUE = 1


@dataclass(frozen=True)
class Manager:
    """A process with all rights, which waits for the calls of another; `channel` leads to it."""

    channel: socket.socket

    @classmethod
    def start(cls) -> Manager:
        """Forks it, while this process may still do all that it has to do."""
        ours, theirs = socket.socketpair()
        if os.fork() == 0:
            ours.close()
            _serve(theirs)
        theirs.close()
        return cls(ours)

    def watch(self) -> None:
        """From here on calls of this process go to it."""
        numbers = NUMBERS[os.uname().machine]
        watched = [numbers[name] for name in ("mknod", "mknodat", "umount2") if name in numbers]
        code = [(0x20, 0, 0, 0)]
        for number in watched:
            code += [(0x15, 0, 1, number), (0x06, 0, 0, _NOTIFY)]
        code.append((0x06, 0, 0, _ALLOW))
        data = b"".join(struct.pack("=HBBI", *one) for one in code)
        program = ctypes.create_string_buffer(data, len(data))
        header = struct.pack("@HP", len(code), ctypes.addressof(program))
        libc = ctypes.CDLL(None, use_errno=True)
        call = (ctypes.c_long(numbers["seccomp"]), _SET_MODE_FILTER, _NEW_LISTENER)
        listener = libc.syscall(*call, ctypes.c_char_p(header))
        if listener < 0:
            raise OSError(ctypes.get_errno(), "seccomp")
        socket.send_fds(self.channel, [b"1"], [listener])
        os.close(listener)
        self.channel.close()


def _serve(channel: socket.socket) -> NoReturn:
    for number in range(3):  # whoever reads the program's output waits for its end
        os.dup2(os.open("/dev/null", os.O_RDWR), number)
    _, (listener, *_), _, _ = socket.recv_fds(channel, 1, 1)
    while True:
        notice = bytearray(_NOTICE.size)
        try:
            fcntl.ioctl(listener, _RECEIVE, notice)
            serial, pid, _, number, _, _, *arguments = _NOTICE.unpack(notice)
            error = _answer(pid, number, arguments)
            answer = (0, _CONTINUE) if error is None else (-error, 0)
            fcntl.ioctl(listener, _SEND, _ANSWER.pack(serial, 0, *answer))
        except FileNotFoundError:  # the caller is gone
            continue


def _answer(pid: int, number: int, arguments: list[int]) -> int | None:
    """What the call fails with, 0 for a success; `None`: the kernel shall decide."""
    numbers = NUMBERS[os.uname().machine]
    try:
        if number == numbers["umount2"]:
            syscalls.umount2(_text(pid, arguments[0]), arguments[1])
            return 0
        above = f"fd/{arguments.pop(0)}" if number == numbers["mknodat"] else "cwd"
        path, mode, device, *_ = arguments
        name = _DEVICES.get((os.major(device), os.minor(device)))
        if name is None or not stat.S_ISCHR(mode) or not _may_make(pid):
            return None
        place = f"/proc/{pid}/{above}/{_text(pid, path)}"
        os.close(os.open(place, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        syscalls.mount(f"/dev/{name}", place, "", syscalls.MS_BIND)
    except OSError as error:
        return error.errno or errno.EPERM
    return 0


def _may_make(pid: int) -> bool:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) & _MKNOD)
    return False


def _text(pid: int, address: int) -> str:
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        memory.seek(address)
        return os.fsdecode(memory.read(256).split(b"\0")[0])
