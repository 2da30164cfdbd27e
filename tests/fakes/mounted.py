"""Runs a program where a directory is a file system of another kind; used by tests.

    python mounted.py KIND DIRECTORY PROGRAM [ARGUMENT…]

It has the caller's own id in a user namespace with nothing else in it, so that the program finds a
host without subordinate ids; what is in the directory is gone with it, but for an `overlay`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ocis2i import syscalls

# Without attributes of users, like an old NFS, is `ramfs`.
KINDS = {
    "tmpfs": ("tmpfs", 0, ""),
    "small": ("tmpfs", 0, "size=12m"),
    "tiny": ("tmpfs", 0, "size=2m"),
    "noexec": ("tmpfs", syscalls.MS_NOEXEC, ""),
    "ramfs": ("ramfs", 0, ""),
    "overlay": ("overlay", 0, "userxattr,lowerdir={0}.lower,upperdir={0}.upper,workdir={0}.work"),
}


def enter(kind: str, directory: str) -> None:
    """Puts this process into such a world."""
    uid, gid = os.getuid(), os.getgid()
    syscalls.unshare(syscalls.CLONE_NEWUSER | syscalls.CLONE_NEWNS)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    name, flags, options = KINDS[kind]
    for part in ("", ".lower", ".upper", ".work") if kind == "overlay" else ("",):
        os.makedirs(directory + part, exist_ok=True)
    syscalls.mount(name, directory, name, flags, options.format(directory))


if __name__ == "__main__":
    enter(sys.argv[1], sys.argv[2])
    os.execvp(sys.argv[3], sys.argv[3:])
