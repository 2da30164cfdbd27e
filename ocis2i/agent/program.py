"""Starts a program of the host (runc, crun, buildah) and shows it what it needs to see.

What the program shall find at another place than the agent does is mounted in a mount namespace of
its own: nobody else sees it, and it is gone with the program, however that ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, NoReturn

from ocis2i import syscalls
from ocis2i.agent.console import hold
from ocis2i.agent.container import NOT_INHERITED, mount_into
from ocis2i.agent.failure import AgentError, explain
from ocis2i.agent.tree import DIRECTORY, join, opened, opened_below, resolve, times_kept


class View(NamedTuple):
    """What a program sees otherwise: `binds` (source, target) are made first, in their order.

    `tree` is shown on `onto`, with `mounts` (as in an OCI runtime config) inside of it. A program
    that runs the container's processes beside its own gets a `pid_namespace`, which ends them.
    """

    binds: tuple[tuple[str, str], ...] = ()
    tree: str = ""
    onto: str = ""
    mounts: tuple[dict[str, Any], ...] = ()
    pid_namespace: bool = False


def start(
    argv: list[str],
    environment: dict[str, str],
    stdio: list[int],
    *,
    cwd: str = "/",
    view: View | None = None,
    no_new_privileges: bool = False,
    terminal: bool = False,
) -> int:
    """Starts a program with the given standard streams; returns its pid.

    With `terminal` the first of them is its controlling terminal. Raises `AgentError` when it
    cannot be started or its view cannot be made.
    """
    receive, send = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(receive)
        said = _become(stdio, view, cwd, no_new_privileges=no_new_privileges, terminal=terminal)
        if said is None:
            try:
                os.execve(argv[0], argv, environment)
            except OSError as error:
                message = f"`{argv[0]}` cannot be run: {error.strerror}"
                said = AgentError("isolation", message)
        os.write(send, json.dumps([said.kind, said.message, said.hint]).encode())
        os._exit(1)
    os.close(send)
    with os.fdopen(receive, "rb") as pipe:  # its end is closed by the exec
        complaint = pipe.read()
    if complaint:
        os.waitpid(pid, 0)
        raise AgentError(*json.loads(complaint))
    return pid


def _become(
    stdio: list[int], view: View | None, cwd: str, *, no_new_privileges: bool, terminal: bool
) -> AgentError | None:
    """Makes this process what the program shall be; what went wrong."""
    try:
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
        os.setsid()
        for number, fd in enumerate(stdio):
            os.dup2(fd, number, inheritable=True)
        if terminal:
            hold(0)
        if view is not None:
            syscalls.unshare(syscalls.CLONE_NEWNS)
            if view.pid_namespace:
                _enter_pid_namespace()
            _make(view)
        os.chdir(cwd)
        if no_new_privileges:
            syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
        for number in NOT_INHERITED:  # crun hands that down to the container
            signal.signal(number, signal.SIG_DFL)
    except OSError as error:
        return explain(error, "the program's surroundings cannot be made")
    except AgentError as error:
        return error
    return None


def _make(view: View) -> None:
    for source, target in view.binds:
        with contextlib.suppress(FileExistsError):
            os.mkdir(target, 0o755)
        syscalls.mount(source, target, "", syscalls.MS_BIND | syscalls.MS_REC)
    if view.tree:
        syscalls.mount(view.tree, view.onto, "", syscalls.MS_BIND | syscalls.MS_REC)
        with opened(view.onto) as root:
            for mount in view.mounts:
                mount_into(root, view.onto, mount)


def _enter_pid_namespace() -> None:
    """Goes on as process 1 of a new pid namespace; the process that was stays and waits for it."""
    syscalls.unshare(syscalls.CLONE_NEWPID)
    child = os.fork()
    if child:
        _wait(child)
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
    flags = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
    # Where parts of /proc are hidden no new one is allowed: then the agent's own has to do.
    with contextlib.suppress(PermissionError):
        syscalls.mount("proc", "/proc", "proc", flags)


def _wait(child: int) -> NoReturn:
    os.closerange(0, 1 << 16)  # the payload's pipes, and the one that `start` reads from
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    os._exit(code if code >= 0 else 128 - code)


@contextmanager
def lent(tree: str, paths: Sequence[str]) -> Iterator[None]:
    """Empty files at those `paths` of the mounted `tree` where there is nothing, until the end.

    For a program that mounts something on them and would leave them in the layer otherwise. The
    directories above keep their times; a file that is no longer empty stays, it is somebody's.
    """
    with opened(tree) as root:
        made = [_lend(root, os.fsencode(path)) for path in paths]
        try:
            yield
        finally:
            for found, parts in reversed(made):
                _take_back(root, found, parts)


def _lend(root: int, path: bytes) -> tuple[bytes, tuple[bytes, ...]]:
    """Makes a file with the directories above; the directory that was there, the names below it."""
    found, missing = resolve(root, path)
    parts = tuple(missing.split(b"/")) if missing else ()
    if not parts:
        return found, ()
    try:
        with opened_below(root, found) as directory, times_kept(directory):
            here = os.dup(directory)
            for part in parts[:-1]:
                os.mkdir(part, 0o755, dir_fd=here)
                inner = os.open(part, DIRECTORY, dir_fd=here)
                os.close(here)
                here = inner
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            os.close(os.open(parts[-1], flags, 0o644, dir_fd=here))
            os.close(here)
    except OSError as error:
        raise explain(error, f"`{os.fsdecode(path)}` cannot be made in the image") from error
    return found, parts


def _take_back(root: int, found: bytes, parts: tuple[bytes, ...]) -> None:
    """Removes what `_lend` made; the script may have taken it away, or put something beside it."""
    if not parts:
        return
    with contextlib.suppress(OSError), opened_below(root, found) as top, times_kept(top):
        for depth in range(len(parts), 0, -1):
            *above, name = parts[:depth]
            with opened_below(root, join(found, b"/".join(above))) as directory:
                facts = os.stat(name, dir_fd=directory, follow_symlinks=False)
                if stat.S_ISDIR(facts.st_mode):
                    os.rmdir(name, dir_fd=directory)
                elif stat.S_ISREG(facts.st_mode) and not facts.st_size:
                    os.unlink(name, dir_fd=directory)
                else:
                    return
