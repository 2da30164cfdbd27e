"""How the agent gets into namespaces of its own, and what it finds there.

Four ways: `full`, another program maps a range of ids; `single`, the caller's id alone, which
nobody has to allow; `native`, for whom is root of a user namespace already (a pod with
`hostUsers: false`); `none`, no namespace at all.
"""

from __future__ import annotations

import errno
import os
from typing import Any

from ocis2i import syscalls
from ocis2i.agent.owners import squashed

_PROC_FLAGS = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
_OWN = syscalls.CLONE_NEWNS | syscalls.CLONE_NEWPID


def enter(ids: str) -> None:
    """Makes the namespaces for the way `ids`; with `full` the map is still to be written."""
    if ids == "full":
        syscalls.unshare(syscalls.CLONE_NEWUSER | _OWN)
    elif ids == "single":
        be_alone_as(0, 0, _OWN)
    elif ids == "native":
        syscalls.unshare(_OWN)


def become_root() -> None:
    """Takes the first id of a range that was just mapped."""
    os.setresgid(0, 0, 0)
    os.setgroups([])
    os.setresuid(0, 0, 0)


def be_alone_as(uid: int, gid: int, more: int = 0) -> None:
    """A new user namespace in which this process is `uid`:`gid`, and nobody else has a number.

    For this a process needs nothing from anybody: it may map its own ids (user_namespaces(7)).
    `more` are other namespaces to be made with it. The supplementary groups stay what they are.
    """
    outside = {"uid_map": (uid, os.geteuid()), "gid_map": (gid, os.getegid())}
    syscalls.unshare(syscalls.CLONE_NEWUSER | more)
    # First, or the kernel refuses the groups (Linux 3.19, CVE-2014-8989): who leaves a group must
    # not get what is forbidden to its members.
    _write("setgroups", "deny")
    for name, (inner, outer) in outside.items():
        _write(name, f"{inner} {outer} 1")


def _write(name: str, text: str) -> None:
    fd = os.open(f"/proc/self/{name}", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    except OSError as error:
        raise OSError(error.errno, error.strerror, name) from error
    finally:
        os.close(fd)


def settle(ids: str) -> dict[str, Any]:
    """What process 1 of the new namespaces does first; returns what it found (`Ground`)."""
    if ids == "none":
        # What a script leaves behind comes to us, and not to the host's process 1.
        syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
        # It may be of the same user: nobody looks into our memory then, or traces us (ptrace(2)).
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
        return {"fresh_proc": False, "can_mount": False, **_ids()}
    syscalls.mount("", "/", "", syscalls.MS_REC | syscalls.MS_PRIVATE)
    return {"fresh_proc": _mount_proc(), "can_mount": True, **_ids()}


def _mount_proc() -> bool:
    """A /proc of our own pid namespace; false where the one outside has to do.

    Who sees only parts of /proc, as in most containers, must not get a whole one: the kernel
    refuses (`mount_too_revealing`, Linux 4.2).
    """
    try:
        syscalls.mount("proc", "/proc", "proc", _PROC_FLAGS)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EACCES):
            raise
        return False
    return True


def _ids() -> dict[str, Any]:
    """Both id maps as one word, `inside:outside:count` with commas between them."""
    maps = []
    for name in ("uid_map", "gid_map"):
        with open(f"/proc/self/{name}", encoding="ascii") as file:
            maps.append(",".join(":".join(line.split()) for line in file))
    return {"squashed": squashed(), "map": "/".join(maps)}
