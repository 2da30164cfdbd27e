"""A network namespace for the containers of a build, and what is to be in it.

There is the loopback device. A socket that listens on it may be handed to the parent, which serves
it from outside; or a program (slirp4netns, pasta) adds a second device and stays beside us.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import signal
import socket
from typing import NamedTuple, NoReturn

from ocis2i import syscalls
from ocis2i.agent.container import raise_loopback
from ocis2i.agent.failure import AgentError
from ocis2i.agent.program import start

_BACKLOG = 128
_COMPLAINT_LIMIT = 2000

# In place of the descriptor by which a program says that it is ready.
READY = "{ready}"


class Helper(NamedTuple):
    """A program that adds a device. It is ready when it says so on `READY`, or when it ends well.

    `device` is the file that it needs, and that has to open.
    """

    argv: list[str]
    environment: dict[str, str]
    device: str
    limit_seconds: float


def make(path: str, *, port: int | None = None, channel: int | None = None) -> None:
    """Makes a network namespace and mounts it on the new file `path`.

    With a `port` a socket that listens on it goes through `channel`, the end of a socket pair.
    Raises `AgentError`.
    """
    receive, send = os.pipe()
    pid = os.fork()
    if pid == 0:
        _settle(path, port, channel, send)
    os.close(send)
    with os.fdopen(receive, "rb") as pipe:
        complaint = pipe.read()
    os.waitpid(pid, 0)
    if complaint:
        raise AgentError(*json.loads(complaint))


def _settle(path: str, port: int | None, channel: int | None, errors: int) -> NoReturn:
    """In a child: the agent itself stays in the network namespace that it is in."""
    try:
        syscalls.unshare(syscalls.CLONE_NEWNET)
        raise_loopback()
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        syscalls.mount("/proc/self/ns/net", path, "", syscalls.MS_BIND)
        if port is not None and channel is not None:
            # The socket keeps its namespace, whoever has it (network_namespaces(7)).
            with (
                socket.create_server(("127.0.0.1", port), backlog=_BACKLOG) as listener,
                socket.socket(fileno=channel) as parent,
            ):
                socket.send_fds(parent, [b"listener"], [listener.fileno()])
    except OSError as error:
        hint = "raise the sysctl user.max_net_namespaces" if error.errno == errno.ENOSPC else None
        said = ("isolation", f"no network namespace can be made: {error}", hint)
        os.write(errors, json.dumps(said).encode())
        os._exit(1)
    os._exit(0)


def attach(helper: Helper) -> None:
    """Starts a program that adds a device, and waits until that is there. Raises `AgentError`."""
    name = os.path.basename(helper.argv[0])
    try:
        os.close(os.open(helper.device, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        raise AgentError(
            "isolation",
            f"`--network {name}` needs `{helper.device}`, which cannot be opened: {error.strerror}",
            "give this user the device, or use --network proxy, which needs none",
        ) from error
    ready, said = os.pipe()
    os.set_inheritable(said, True)  # for the program; the agent closes its own at once
    words = os.memfd_create("complaint")
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    argv = [one.replace(READY, str(said)) for one in helper.argv]
    try:
        pid = start(argv, helper.environment, [null, null, words])
        os.close(said)
        said = -1
        complaint = _wait(pid, ready, helper, waits=argv != helper.argv)
        if complaint is not None:
            text = os.pread(words, _COMPLAINT_LIMIT, 0).decode(errors="replace").strip()
            last = text.splitlines()[-1:] or [complaint]
            raise AgentError(
                "isolation",
                f"`{helper.argv[0]}` cannot connect the container: {last[0]}",
                "--network proxy needs no other program",
            )
    finally:
        for fd in (ready, words, null, said):
            if fd >= 0:
                os.close(fd)


def _wait(pid: int, ready: int, helper: Helper, *, waits: bool) -> str | None:
    """Why the program is of no use; `None` when it works. `waits`: it says when it is ready."""
    pidfd = os.pidfd_open(pid)
    try:
        fds = [pidfd, ready] if waits else [pidfd]
        found, _, _ = select.select(fds, [], [], helper.limit_seconds)
        if ready in found and os.read(ready, 1):
            return None
        if not found:
            # pasta of Debian 12 waits for ever where it may not have a device.
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return f"it was not ready in {helper.limit_seconds:.0f} seconds"
        _, status = os.waitpid(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        return None if code == 0 and not waits else f"exit code {code}"
    finally:
        os.close(pidfd)
