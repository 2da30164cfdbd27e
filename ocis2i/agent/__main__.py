"""The agent program: makes its namespaces, then answers its parent until told to stop.

Started as `python -I -S agent/__main__.py FD` with one end of a `SOCK_SEQPACKET` pair and an
environment that holds nothing. See `docs/decisions/0001-agent.md`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import stat
import sys

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from collections.abc import Callable
from typing import Any

from ocis2i import syscalls
from ocis2i.agent import (
    changes,
    container,
    extract,
    inject,
    memory,
    mounts,
    running,
    transfer,
    tree,
    unpack,
)
from ocis2i.agent.failure import AgentError, explain
from ocis2i.agent.wire import receive, send
from ocis2i.layers import TarPolicy

Request = dict[str, Any]
Reply = dict[str, Any]


class Agent:
    """Answers requests, one at a time. Every method is one operation of the protocol."""

    def __init__(self, parent: socket.socket) -> None:
        self._parent = parent

    def serve(self) -> None:
        """Reads and answers until the parent says `quit` or is gone."""
        while True:
            request, fds = receive(self._parent)
            if request is None or request["op"] == "quit":
                return
            try:
                reply = self._answer(request, fds)
            except AgentError as error:
                reply = {"error": error.message, "kind": error.kind, "hint": error.hint}
            finally:
                for fd in fds:
                    os.close(fd)
            send(self._parent, {"id": request.get("id"), **reply})

    def _answer(self, request: Request, fds: list[int]) -> Reply:
        operation = _OPERATIONS.get(request["op"])
        if operation is None:
            return {}  # a signal for a run that is over
        try:
            return operation(self, request, fds)
        except OSError as error:
            raise explain(error, f"`{request['op']}` failed") from error

    def unpack(self, request: Request, fds: list[int]) -> Reply:
        """Unpacks the tar in `fds[0]` into the new directory `into`."""
        os.mkdir(request["into"], 0o755)
        limits = unpack.Limits(request["size_limit"], request["entry_limit"])
        with os.fdopen(os.dup(fds[0]), "rb", buffering=1 << 20) as stream:
            done = unpack.unpack(stream, request["into"], limits)
        return {
            "entries": done.entries,
            "size": done.size_bytes,
            "devices": done.devices,
            "implied": [os.fsdecode(path) for path in done.implied],
        }

    def prepare(self, request: Request, _: list[int]) -> Reply:
        """Mounts the base and makes the writable side of a build."""
        lowers = [mounts.LowerLayer(path, tuple(implied)) for path, implied in request["lowers"]]
        targets = [mounts.Target(*target) for target in request["targets"]]
        return {"ours": mounts.prepare(request["build"], lowers, targets)}

    def extract(self, request: Request, fds: list[int]) -> Reply:
        """Extracts the artifacts in the tar `fds[0]` into the new directory `into`."""
        limits = unpack.Limits(request["size_limit"], request["entry_limit"])
        with os.fdopen(os.dup(fds[0]), "rb", buffering=1 << 20) as stream:
            done = extract.extract(stream, request["into"], limits)
        return {
            "entries": done.entries,
            "size": done.size_bytes,
            "skipped": done.skipped,
            "trailing": done.trailing_bytes,
        }

    def place(self, request: Request, _: list[int]) -> Reply:
        """Moves uploads into the writable side."""
        uploads = [mounts.Upload(*upload) for upload in request["uploads"]]
        session = request.get("session") or request["build"]
        return _placed(mounts.place(session, request["build"], uploads))

    def put(self, request: Request, _: list[int]) -> Reply:
        """Copies the host's file `source` into the writable side."""
        build, source, path = (request[key] for key in ("build", "source", "path"))
        owner = (request["uid"], request["gid"])
        return _placed(mounts.put_file(build, source, path, owner, request["mode"]))

    def make(self, request: Request, _: list[int]) -> Reply:
        """Makes a directory in the writable side, with those above it."""
        return {"made": _names(mounts.make_directory(request["build"], request["path"]))}

    def inject(self, request: Request, _: list[int]) -> Reply:
        """Prepares the mounts of injected files in the mounted rootfs."""
        done = inject.inject(
            request["build"],
            [inject.Injected(*item) for item in request["items"]],
            inject.Owner(request["uid"], request["gid"]),
            keep_names=request["keep_names"],
            occupied=request["occupied"],
            reserved=request["reserved"],
        )
        return {"mounts": [list(mount) for mount in done.mounts], "places": _names(done.places)}

    def keep(self, request: Request, _: list[int]) -> Reply:
        """Puts files into a tmpfs on `directory`."""
        memory.keep(request["directory"], request["files"])
        return {}

    def transfer(self, request: Request, _: list[int]) -> Reply:
        """Copies `source` of the build `origin` into `directory` of the mounted tree `root`."""
        changes.raise_file_limit()
        done = transfer.transfer(
            request["origin"],
            request["source"],
            request["root"],
            request["directory"],
            (request["uid"], request["gid"]),
        )
        return {
            "entries": done.entries,
            "size": done.size_bytes,
            "skipped": done.skipped,
            "parents": _names(done.parents),
        }

    def mount(self, request: Request, _: list[int]) -> Reply:
        """Mounts the rootfs."""
        mounts.mount(request["build"])
        return {}

    def unmount(self, request: Request, _: list[int]) -> Reply:
        """Detaches the rootfs."""
        mounts.unmount(request["build"])
        return {}

    def release(self, request: Request, _: list[int]) -> Reply:
        """Detaches everything below a build's directory."""
        mounts.release(request["build"])
        return {}

    def read(self, request: Request, _: list[int]) -> Reply:
        """Reads a small regular file inside `root`, or its `head`; `null` when there is none."""
        with mounts.opened(request["root"]) as root:
            try:
                fd = syscalls.open_in_root(
                    root, os.fsencode(request["path"]), os.O_RDONLY | os.O_NONBLOCK
                )
            except OSError as error:
                if error.errno in _NOTHING_THERE:
                    return {"text": None}
                raise
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return {"text": None}
            with os.fdopen(os.dup(fd), "rb") as file:
                data = file.read(request["limit"] + 1)
        finally:
            os.close(fd)
        if request.get("head"):
            data = data[: request["limit"]]
        if len(data) > request["limit"]:
            raise AgentError(
                "image", f"`{request['path']}` is larger than {request['limit']} bytes"
            )
        return {"text": data.decode(errors="surrogateescape")}

    def look(self, request: Request, _: list[int]) -> Reply:
        """What kind of thing each of `paths` is inside `root`: its mode, or `null`."""
        modes: list[int | None] = []
        with mounts.opened(request["root"]) as root:
            for path in request["paths"]:
                try:
                    fd = syscalls.open_in_root(root, os.fsencode(path), os.O_PATH)
                except OSError:
                    modes.append(None)
                    continue
                modes.append(os.fstat(fd).st_mode)
                os.close(fd)
        return {"modes": modes}

    def run(self, request: Request, fds: list[int]) -> Reply:
        """Runs a host program with `fds` as its standard streams, to its end."""
        pid = running.start_program(request["argv"], request["environment"], fds)
        return self._finish(pid, fds)

    def execute(self, request: Request, fds: list[int]) -> Reply:
        """Runs a container by the builtin executor, to its end."""
        pid = container.start(request["config"], request["rootfs"], fds)
        return self._finish(pid, fds)

    def _finish(self, pid: int, fds: list[int]) -> Reply:
        while fds:  # the parent waits for the end of its pipes
            os.close(fds.pop())
        return {"exit": running.wait_for(pid, self._parent)}

    def diff(self, request: Request, fds: list[int]) -> Reply:
        """Writes the tar of a build's changes into `fds[0]`."""
        changes.raise_file_limit()
        policy = TarPolicy(request["clamp_mtime"])
        marks = changes.Marks(
            *(
                frozenset(os.fsencode(path) for path in request.get(key, ()))
                for key in changes.Marks._fields
            )
        )
        with os.fdopen(os.dup(fds[0]), "wb", buffering=1 << 18) as out:
            done = changes.write_changes(request["build"], out, policy, marks)
        return {"entries": done.entries, "size": done.size_bytes, "sockets": done.sockets}

    def remove(self, request: Request, _: list[int]) -> Reply:
        """Removes a tree, whoever owns what is in it. `parent` is a directory, `name` in it.

        What is mounted in it is detached first: its content is not ours to remove.
        """
        mounts.release(f"{request['parent']}/{request['name']}")
        with mounts.opened(request["parent"]) as parent:
            tree.remove_tree(parent, request["name"])
        return {}

    def drop(self, request: Request, _: list[int]) -> Reply:
        """Removes `path` inside the mounted tree `root`, links resolved in it; none is no error."""
        changes.raise_file_limit()
        mounts.drop(request["root"], request["path"])
        return {}

    def measure(self, request: Request, _: list[int]) -> Reply:
        """Counts a tree's entries and the bytes of its files."""
        entries, size = tree.measure(request["path"])
        return {"entries": entries, "size": size}


def _names(paths: tuple[bytes, ...]) -> list[str]:
    return [os.fsdecode(path) for path in paths]


def _placed(done: mounts.Placed) -> Reply:
    return {"paths": _names(done.paths), "made": _names(done.made)}


_OPERATIONS: dict[str, Callable[[Agent, Request, list[int]], Reply]] = {
    "unpack": Agent.unpack,
    "extract": Agent.extract,
    "prepare": Agent.prepare,
    "place": Agent.place,
    "put": Agent.put,
    "make": Agent.make,
    "inject": Agent.inject,
    "keep": Agent.keep,
    "transfer": Agent.transfer,
    "mount": Agent.mount,
    "unmount": Agent.unmount,
    "release": Agent.release,
    "read": Agent.read,
    "look": Agent.look,
    "run": Agent.run,
    "execute": Agent.execute,
    "diff": Agent.diff,
    "remove": Agent.remove,
    "drop": Agent.drop,
    "measure": Agent.measure,
}

# A link in a circle leads to nothing, and a socket or a device without a driver cannot be opened.
_NOTHING_THERE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENXIO)

_NAMESPACES = syscalls.CLONE_NEWUSER | syscalls.CLONE_NEWNS | syscalls.CLONE_NEWPID


def main() -> None:
    """Becomes root of a new user namespace, then process 1 of a new pid namespace, then serves."""
    parent_pid = os.getppid()
    parent = socket.socket(fileno=int(sys.argv[1]))
    for name in os.listdir("/proc/self/fd"):  # the build's lock is for us, not for our children
        if int(name) > 2:
            with contextlib.suppress(OSError):  # the listing's own descriptor
                os.set_inheritable(int(name), False)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the parent decides when it is over
    try:
        syscalls.unshare(_NAMESPACES)
    except OSError as error:
        send(parent, {"error": error.strerror, "errno": error.errno})
        return
    send(parent, {"unshared": True})
    answer, _ = receive(parent)
    if answer is None or not answer.get("mapped"):
        return
    os.setresgid(0, 0, 0)
    os.setgroups([])
    os.setresuid(0, 0, 0)
    # After the change of ids, which clears it (prctl(2)).
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        return
    child = os.fork()
    if child == 0:
        _first_process(parent)
        os._exit(0)
    parent.close()
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    sys.exit(code if code >= 0 else 128 - code)


def _first_process(parent: socket.socket) -> None:
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
    os.umask(0)
    os.setsid()
    sys.setrecursionlimit(10_000)  # directories may lie a thousand levels deep
    try:
        syscalls.mount("", "/", "", syscalls.MS_REC | syscalls.MS_PRIVATE)
        flags = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
        syscalls.mount("proc", "/proc", "proc", flags)
    except OSError as error:
        send(parent, {"error": str(error), "errno": error.errno})
        return
    send(parent, {"ready": True})
    Agent(parent).serve()


if __name__ == "__main__":
    # A parent that is gone, or has given up on us, needs no answer.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        main()
