"""Tries one thing that a build needs, really, and says how it went.

Started as `python -I -S agent/probe.py NAME JSON` in a process of its own: whatever it does to
itself is gone with it. Prints one JSON object: `ok` and what was found, or the `step` that failed
with `errno` and what was `said`.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from ocis2i import syscalls
from ocis2i.agent import mapping, mounts, namespaces
from ocis2i.agent.sides import make_build
from ocis2i.agent.tree import opened, remove_tree

Facts = dict[str, Any]

_KINDS = {
    "user": syscalls.CLONE_NEWUSER,
    "mount": syscalls.CLONE_NEWNS,
    "pid": syscalls.CLONE_NEWPID,
    "ipc": syscalls.CLONE_NEWIPC,
    "uts": syscalls.CLONE_NEWUTS,
    "cgroup": syscalls.CLONE_NEWCGROUP,
    "net": syscalls.CLONE_NEWNET,
}
_PROC_FLAGS = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
# include/uapi/linux/fs.h: copies a file by sharing its blocks.
_FICLONE = 0x40049409
# The user and the group of S2I's images, and the last ids of a container.
_OWNERS = ((1001, 0), (65534, 65534))


class ProbeError(Exception):
    """Where it ended: the step, the error's number if there is one, and its words."""

    def __init__(self, step: str, number: int | None, said: str) -> None:
        super().__init__(said)
        self.step = step
        self.number = number
        self.said = said


@contextmanager
def step(name: str) -> Iterator[None]:
    """Names what is being tried."""
    try:
        yield
    except OSError as error:
        said = error.strerror or str(error)
        raise ProbeError(name, error.errno, said) from error


def enter(way: str, kind: int = 0) -> None:
    """Gets into namespaces with one id of our own (`single`) or as what we are (`native`)."""
    if way == "native":
        with step("unshare"):
            syscalls.unshare(kind)
        return
    try:
        namespaces.be_alone_as(0, 0, kind)
    except OSError as error:
        # AppArmor lets the namespace be made and forbids to map anything in it.
        where = "unshare" if error.filename == "unshare" else "map"
        raise ProbeError(where, error.errno, error.strerror or str(error)) from error


def namespace(kind: str, way: str) -> Facts:
    """A namespace of one kind."""
    enter(way, 0 if kind == "user" else _KINDS[kind])
    return {}


def mount(way: str) -> Facts:
    """A mount, in a mount namespace."""
    enter(way, syscalls.CLONE_NEWNS)
    with step("mount"):
        syscalls.mount("", "/", "", syscalls.MS_REC | syscalls.MS_PRIVATE)
        syscalls.mount("tmpfs", "/tmp", "tmpfs", syscalls.MS_NOSUID)  # noqa: S108 - hides it
    return {}


def proc(way: str) -> Facts:
    """A /proc of a new pid namespace."""
    enter(way, syscalls.CLONE_NEWNS | syscalls.CLONE_NEWPID)
    return _in_child(_mount_proc)


def _mount_proc() -> Facts:
    with step("mount"):
        syscalls.mount("", "/", "", syscalls.MS_REC | syscalls.MS_PRIVATE)
    with step("proc"):
        syscalls.mount("proc", "/proc", "proc", _PROC_FLAGS)
    return {}


def full(directory: str, mappers: list[list[str]]) -> Facts:
    """A whole range of ids by newuidmap, and files of theirs in `directory`."""
    with mapping.waiting(mappers) as waiting:
        with step("unshare"):
            syscalls.unshare(syscalls.CLONE_NEWUSER | syscalls.CLONE_NEWNS)
        refused = mapping.let_go(waiting)
    if refused:
        words = refused.said.strip().splitlines()
        tool = os.path.basename(refused.program)
        raise ProbeError(tool, None, words[-1] if words else f"exit code {refused.code}")
    with step("become"):
        namespaces.become_root()
    with step("mount"):
        syscalls.mount("", "/", "", syscalls.MS_REC | syscalls.MS_PRIVATE)
    _own_files(directory)
    return {}


def _own_files(directory: str) -> None:
    path = f"{directory}/try-owner"
    with step("owner"):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        try:
            for owner in _OWNERS:
                os.chown(path, *owner)
        finally:
            os.unlink(path)


def overlay(directory: str, way: str, program: str) -> Facts:
    """An overlay in `directory` that keeps what a build does to it, and programs in it."""
    enter(way, syscalls.CLONE_NEWNS)
    with step("mount"):
        syscalls.mount("", "/", "", syscalls.MS_REC | syscalls.MS_PRIVATE)
    refusal = mounts.overlay_refusal(directory)
    if refusal:
        raise ProbeError("overlay", None, refusal)
    here = f"{directory}/try-execute"
    try:
        make_build(here, ("layers", "base", "upper", "work", "rootfs"))
        for name in ("layers/0", "shim"):
            os.mkdir(f"{here}/{name}")
        _write_program(f"{here}/layers/0/true", program)
        mounts.mount(here)
        _execute(f"{here}/rootfs/true", program)
    finally:
        mounts.release(here)
        _remove(directory, here)
    return {}


def copy(directory: str, program: str) -> Facts:
    """What a file system can hold of a copied image."""
    here = f"{directory}/try-copy"
    os.mkdir(here, 0o700)
    try:
        _write_program(f"{here}/true", program)
        _execute(f"{here}/true", program)
        return {"shares_blocks": _shares_blocks(here), "attributes": _takes_attributes(here)}
    finally:
        _remove(directory, here)


def _write_program(path: str, program: str) -> None:
    with step("write"), open(path, "wb", opener=_for_programs) as file:
        file.write(program.encode("latin-1"))


def _for_programs(path: str, flags: int) -> int:
    return os.open(path, flags, 0o755)


def _execute(path: str, program: str) -> None:
    if not program:
        return  # none is known for this processor
    with step("execute"):
        pid = os.posix_spawn(path, [path], {})
    _, status = os.waitpid(pid, 0)
    if status:
        raise ProbeError("execute", None, f"exit code {os.waitstatus_to_exitcode(status)}")


def _shares_blocks(here: str) -> bool:
    with open(f"{here}/true", "rb") as source, open(f"{here}/clone", "wb") as target:
        try:
            fcntl.ioctl(target.fileno(), _FICLONE, source.fileno())
        except OSError:
            return False
    return True


def _takes_attributes(here: str) -> bool:
    try:
        os.setxattr(f"{here}/true", "user.ocis2i", b"1")
    except OSError:
        return False
    return True


def _remove(directory: str, here: str) -> None:
    with contextlib.suppress(OSError), opened(directory) as above:
        remove_tree(above, os.path.basename(here))


def device(path: str) -> Facts:
    """A device of the host's."""
    with step("open"):
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    return {}


def chroot(directory: str) -> Facts:
    """What the isolation `chroot` takes: foreign owners, another root, another user."""
    here = f"{directory}/try-chroot"
    os.mkdir(here, 0o755)
    try:
        with step("chown"):
            os.chown(here, 1001, 0)
        with step("device"):
            os.mknod(f"{here}/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
            os.close(os.open(f"{here}/null", os.O_RDWR))
        return _in_child(lambda: _change_root(here))
    finally:
        _remove(directory, here)


def _change_root(here: str) -> Facts:
    with step("chroot"):
        os.chroot(here)
    with step("setgroups"):
        os.setgroups([])
    with step("setgid"):
        os.setresgid(0, 0, 0)
    with step("setuid"):
        os.setresuid(1001, 1001, 1001)
    return {}


def native(way: str = "native") -> Facts:
    """Namespaces for whom is root of a user namespace already."""
    return mount(way)


def _in_child(work: Callable[[], Facts]) -> Facts:
    """The result of `work` in a new process, which a new pid namespace begins with."""
    receive, send = os.pipe()
    pid = os.fork()
    if pid == 0:
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
        os.close(receive)
        os.write(send, json.dumps(_result(work)).encode())
        os._exit(0)
    os.close(send)
    with os.fdopen(receive, "rb") as pipe:
        text = pipe.read()
    os.waitpid(pid, 0)
    return _answered(text)


def _answered(text: bytes) -> Facts:
    answer: Facts = json.loads(text or b'{"ok": false, "step": "child", "said": "it ended"}')
    if not answer.pop("ok"):
        raise ProbeError(answer["step"], answer.get("errno"), answer["said"])
    return answer


def _result(work: Callable[[], Facts]) -> Facts:
    try:
        return {"ok": True, **work()}
    except ProbeError as error:
        return {"ok": False, "step": error.step, "errno": error.number, "said": error.said}
    except OSError as error:
        said = error.strerror or str(error)
        return {"ok": False, "step": "other", "errno": error.errno, "said": said}


PROBES: dict[str, Callable[..., Facts]] = {
    "namespace": namespace,
    "mount": mount,
    "proc": proc,
    "full": full,
    "native": native,
    "overlay": overlay,
    "copy": copy,
    "device": device,
    "chroot": chroot,
}


def main() -> None:
    """Runs the probe of the command line."""
    name, arguments = sys.argv[1:3]
    os.umask(0)
    answer = _result(lambda: PROBES[name](**json.loads(arguments)))
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
