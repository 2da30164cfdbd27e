"""What the agent does: makes its namespaces, then answers its parent until told to stop.

See `docs/decisions/0001-agent.md`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import socket
import stat
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from ocis2i import syscalls
from ocis2i.agent import (
    changes,
    confine,
    container,
    copying,
    direct,
    extract,
    in_place,
    inject,
    mapping,
    memory,
    mounts,
    namespaces,
    network,
    owners,
    placing,
    program,
    running,
    transfer,
    tree,
    unpack,
)
from ocis2i.agent.below import Hashed
from ocis2i.agent.console import send as send_terminal
from ocis2i.agent.failure import AgentError, explain
from ocis2i.agent.owners import Owners
from ocis2i.agent.wire import receive, send
from ocis2i.layers import TarPolicy

Request = dict[str, Any]
Reply = dict[str, Any]


class Agent:
    """Answers requests, one at a time. Every method is one operation of the protocol."""

    def __init__(self, parent: socket.socket, ids: str) -> None:
        self._parent = parent
        self._ids = ids
        self._contained = ids != "none"
        self._placed = owners.Placed()
        self._copies: dict[str, copying.Copy] = {}
        self._containers: dict[str, in_place.Container] = {}

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

    def fork(self, _: Request, fds: list[int]) -> Reply:
        """Starts another agent, beside this one, that answers on the channel `fds[0]`."""
        running.reap()  # those that are through
        if os.fork() == 0:
            self._parent.close()
            _serve_beside(socket.socket(fileno=fds.pop(0)), self._ids)
        return {}

    def unpack(self, request: Request, fds: list[int]) -> Reply:
        """Unpacks the tar in `fds[0]` into the new directory `into`."""
        os.mkdir(request["into"], 0o755)
        limits = unpack.Limits(request["size_limit"], request["entry_limit"])
        with os.fdopen(os.dup(fds[0]), "rb", buffering=1 << 20) as stream:
            done = unpack.unpack(stream, request["into"], limits)
        return {
            "entries": done.made,
            "size": done.made_bytes,
            "devices": done.devices,
            "owners": {os.fsdecode(path): owner for path, owner in done.owners.items()},
            "whiteouts": _names(done.whiteouts),
            "opaque": _names(done.opaque),
            "implied": [os.fsdecode(path) for path in done.implied],
        }

    def prepare(self, request: Request, _: list[int]) -> Reply:
        """Mounts the base and makes the writable side of a build, or its copy."""
        build = request["build"]
        lowers = [mounts.LowerLayer(path, *map(tuple, more)) for path, *more in request["lowers"]]
        targets = [placing.Target(*target) for target in request["targets"]]
        if not request.get("copied"):
            return {"ours": mounts.prepare(build, lowers, targets)}
        changes.raise_file_limit()
        copy = self._copies[build] = copying.prepare(build, lowers, targets)
        if not self._contained:
            before = copy.before._replace(skipped=copy.before.skipped | direct.KERNELS_PLACES)
            self._copies[build] = copy._replace(before=before)
        return {"ours": list(copy.ours)}

    def occupy(self, request: Request, _: list[int]) -> Reply:
        """Takes the agent's own `/` for the tree of a build; says what is mounted in it."""
        changes.raise_file_limit()
        build = request["build"]
        found = self._containers[build] = in_place.prepare(build, request["skipped"])
        return {"mounts": [os.fsdecode(one.path) for one in found.mounts]}

    def overlay(self, request: Request, _: list[int]) -> Reply:
        """Tries overlayfs on the file system of `directory`: why it is no use, or `null`."""
        return {"refusal": mounts.overlay_refusal(request["directory"])}

    def owners(self, request: Request, _: list[int]) -> Reply:
        """Tries to give a file in `directory` to another id: why that is refused, or `null`."""
        return {"refusal": owners.giving_refusal(request["directory"])}

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
        uploads = [placing.Upload(*upload) for upload in request["uploads"]]
        session = request.get("session") or request["build"]
        done = placing.place(session, request["build"], uploads)
        for upload, path in zip(uploads, done.paths, strict=True):
            self._placed.note(request["build"], [path], done.made, (upload.uid, upload.gid))
        return _placed(done)

    def put(self, request: Request, _: list[int]) -> Reply:
        """Copies the host's file `source` into the writable side."""
        build, source, path = (request[key] for key in ("build", "source", "path"))
        owner = (request["uid"], request["gid"])
        done = placing.put_file(build, source, path, owner, request["mode"])
        self._placed.note(build, done.paths, done.made, owner)
        return _placed(done)

    def make(self, request: Request, _: list[int]) -> Reply:
        """Makes a directory in the writable side, with those above it."""
        made = placing.make_directory(request["build"], request["path"])
        self._placed.note(request["build"], [], made)
        return {"made": _names(made)}

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
        memory.keep(request["directory"], request["files"], mode=request.get("mode", 0o644))
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
        with tree.opened(request["root"]) as root:
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
        """What each of `paths` is inside `root`: its mode, or `null`; and the path it leads to."""
        modes: list[int | None] = []
        places: list[str] = []
        with tree.opened(request["root"]) as root:
            for path in map(os.fsencode, request["paths"]):
                places.append(_leads_to(root, path))
                try:
                    fd = syscalls.open_in_root(root, path, os.O_PATH)
                except OSError:
                    modes.append(None)
                    continue
                modes.append(os.fstat(fd).st_mode)
                os.close(fd)
        return {"modes": modes, "places": places}

    def network(self, request: Request, fds: list[int]) -> Reply:
        """Makes a network namespace; a listening socket of it goes through `fds[0]`."""
        channel = fds[0] if fds else None
        network.make(request["path"], port=request.get("port"), channel=channel)
        if request.get("helper"):
            network.attach(network.Helper(**request["helper"]))
        return {}

    def run(self, request: Request, fds: list[int]) -> Reply:
        """Runs a host program with `fds` as its standard streams, to its end."""
        view, wish, stdio = request.get("view"), request.get("confine") or {}, fds[:3]
        console = _console(request, fds)
        if console is not None:
            # Its own terminal goes between ours and that of the container, which it makes.
            parents, ours = os.openpty()
            fds += [parents, ours]  # closed with the others
            send_terminal(console, parents)
            stdio = [ours, ours, fds[2]]
        with program.lent(request.get("tree", "/"), request.get("lent", ())):
            with confine.entered(wish, fds[3:]):
                pid = program.start(
                    request["argv"],
                    request["environment"],
                    stdio,
                    cwd=request.get("cwd", "/"),
                    view=None if view is None else program.View(**view),
                    no_new_privileges=request.get("no_new_privileges", False),
                    terminal=console is not None,
                )
            return self._finish(pid, fds, wish, limit_seconds=request.get("limit_seconds"))

    def execute(self, request: Request, fds: list[int]) -> Reply:
        """Runs a container by the builtin executor, to its end."""
        wish = request.get("confine") or {}
        with confine.entered(wish, fds[3:]):
            console = _console(request, fds)
            pid = container.start(request["config"], request["rootfs"], fds[:3], console=console)
        return self._finish(pid, fds, wish)

    def direct(self, request: Request, fds: list[int]) -> Reply:
        """Runs a container's process in the tree `rootfs`, or with `null` where the agent is."""
        wish, root = request.get("confine") or {}, request["rootfs"]
        with contextlib.ExitStack() as stack:
            if root is not None:
                stack.enter_context(direct.furnished(root, request["files"]))
            with confine.entered(wish, fds[3:]):
                console = _console(request, fds)
                pid = direct.start(request["config"], fds[:3], root=root, console=console)
            return self._finish(pid, fds, wish)

    def _finish(
        self,
        pid: int,
        fds: list[int],
        wish: confine.Wish,
        *,
        limit_seconds: float | None = None,
    ) -> Reply:
        while fds:  # the parent waits for the end of its pipes
            os.close(fds.pop())
        watch = confine.Watch(wish)
        code = running.wait_for(
            pid,
            self._parent,
            contained=self._contained,
            limit_seconds=limit_seconds,
            watch=watch,
        )
        return {"exit": code, "limit": watch.reached}

    def diff(self, request: Request, fds: list[int]) -> Reply:
        """Writes the tar of a build's changes into `fds[0]`.

        When nobody looks at an overlay's files after this `last` time, large ones are removed.
        """
        changes.raise_file_limit()
        policy = TarPolicy(request["clamp_mtime"])
        marks = changes.Marks(
            *(
                frozenset(os.fsencode(path) for path in request.get(key, ()))
                for key in changes.Marks._fields
            )
        )
        owners_of = self._owners(request)
        scanner = self._scanner(request["build"], marks, owners_of, last=request.get("last", False))
        with os.fdopen(os.dup(fds[0]), "wb", buffering=1 << 18) as out:
            done = changes.write_changes(scanner, out, policy)
        return {"entries": done.entries, "size": done.size_bytes, "sockets": done.sockets}

    def _scanner(
        self, build: str, marks: changes.Marks, owner_of: Owners, *, last: bool
    ) -> changes.Scanner:
        container = self._containers.get(build)
        if container is not None:
            return changes.tree_scanner("/", container.before, Hashed(), marks, owner_of)
        copy = self._copies.get(build)
        if copy is None:
            return changes.overlay_scanner(build, marks, owner_of, sweep=last)
        contents = copying.LayerContents(copy.lowers)
        return changes.tree_scanner(f"{build}/rootfs", copy.before, contents, marks, owner_of)

    def _owners(self, request: Request) -> Owners:
        """Who owns what in the layer of a build, where the disk does not know."""
        container = self._containers.get(request["build"])
        if container is not None:
            return in_place.owners(container, tuple(request["owner"]))
        if not owners.squashed():
            return Owners()
        uid, gid = request["owner"]
        layers = [owners.layer_owners(*layer) for layer in request["layers"]]
        return owners.Squashed((uid, gid), layers, self._placed.of(request["build"]))

    def hold(self, _: Request, fds: list[int]) -> Reply:
        """Keeps its descriptors open for as long as the agent lives."""
        for fd in fds:
            fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0)
        return {}

    def empty(self, request: Request, _: list[int]) -> Reply:
        """Removes all that is in a build's directory but `keep`, whoever owns it.

        What is mounted in it is detached first: its content is not ours to remove.
        """
        mounts.release(request["build"])
        with tree.opened(request["build"]) as build:
            for name in os.listdir(build):
                if name != request["keep"]:
                    tree.remove_tree(build, name, by_two=True)
        return {}

    def remove(self, request: Request, _: list[int]) -> Reply:
        """Removes a tree, whoever owns what is in it. `parent` is a directory, `name` in it.

        What is mounted in it is detached first: its content is not ours to remove.
        """
        mounts.release(f"{request['parent']}/{request['name']}")
        with tree.opened(request["parent"]) as parent:
            tree.remove_tree(parent, request["name"], by_two=True)
        return {}

    def drop(self, request: Request, _: list[int]) -> Reply:
        """Removes `path` inside the mounted tree `root`, links resolved in it; none is no error."""
        changes.raise_file_limit()
        placing.drop(request["root"], request["path"])
        return {}

    def measure(self, request: Request, _: list[int]) -> Reply:
        """Counts a tree's entries and the bytes of its files."""
        entries, size = tree.measure(request["path"])
        return {"entries": entries, "size": size}


def _console(request: Request, fds: list[int]) -> int | None:
    """The socket that the other side of a terminal goes through, if one is asked for."""
    return fds[-1] if request.get("console") else None


def _leads_to(root: int, path: bytes) -> str:
    """The path inside `root` that is meant, all links followed as far as they lead."""
    try:
        return f"/{os.fsdecode(tree.join(*tree.resolve(root, path)))}"
    except OSError:  # a circle of links, or something below a file
        return os.fsdecode(path)


def _names(paths: tuple[bytes, ...]) -> list[str]:
    return [os.fsdecode(path) for path in paths]


def _placed(done: placing.Placed) -> Reply:
    return {"paths": _names(done.paths), "made": _names(done.made)}


_OPERATIONS: dict[str, Callable[[Agent, Request, list[int]], Reply]] = {
    "fork": Agent.fork,
    "unpack": Agent.unpack,
    "extract": Agent.extract,
    "prepare": Agent.prepare,
    "occupy": Agent.occupy,
    "overlay": Agent.overlay,
    "owners": Agent.owners,
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
    "network": Agent.network,
    "run": Agent.run,
    "execute": Agent.execute,
    "direct": Agent.direct,
    "diff": Agent.diff,
    "hold": Agent.hold,
    "empty": Agent.empty,
    "remove": Agent.remove,
    "drop": Agent.drop,
    "measure": Agent.measure,
}

# A link in a circle leads to nothing, and a socket or a device without a driver cannot be opened.
_NOTHING_THERE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENXIO)


def main() -> None:
    """Enters the namespaces that its parent asks for, and serves as their process 1."""
    # A parent that is gone, or has given up on us, needs no answer.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        _live()


def _live() -> None:
    parent_pid = os.getppid()
    parent = socket.socket(fileno=int(sys.argv[1]))
    for name in os.listdir("/proc/self/fd"):  # what buildah has open is not for our children
        if int(name) > 2:
            with contextlib.suppress(OSError):  # the listing's own descriptor
                os.set_inheritable(int(name), False)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the parent decides when it is over
    wanted, _ = receive(parent)
    if wanted is None or not _enter(parent, wanted):
        return
    ids = str(wanted["ids"])
    if ids == "none":
        # No signal at the parent's death: first what was started has to be ended, and there is
        # no pid namespace to do that. The end of the conversation says that it died.
        _serve(parent, ids)
        return
    # After the change of ids, which clears it (prctl(2)).
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        return
    child = os.fork()
    if child == 0:
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
        os.setsid()
        _serve(parent, ids)
        os._exit(0)
    parent.close()
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    # Nothing is left to do, and the parent waits for it.
    os._exit(code if code >= 0 else 128 - code)


def _enter(parent: socket.socket, wanted: Request) -> bool:
    """Makes the namespaces; false when that cannot be, of which the parent knows."""
    # The programs that map ids have to be outside of the namespace, where we are for now.
    with mapping.waiting(wanted["mappers"]) as mappers:
        try:
            namespaces.enter(wanted["ids"])
            send(parent, {"entered": True})
            if wanted["ids"] != "full":
                return True
            refused = mapping.let_go(mappers)
            if refused is None:
                # AppArmor lets everybody have a user namespace, but nothing in it (Ubuntu 23.10 and
                # later): then it is the change of ids that fails.
                namespaces.become_root()
                return True
            send(parent, {"mapper": refused.program, "exit": refused.code, "said": refused.said})
        except OSError as error:
            send(parent, {"error": str(error), "errno": error.errno})
    return False


def _serve(parent: socket.socket, ids: str) -> None:
    os.umask(0)
    sys.setrecursionlimit(10_000)  # directories may lie a thousand levels deep
    try:
        found = namespaces.settle(ids)
    except OSError as error:
        send(parent, {"error": str(error), "errno": error.errno})
        return
    send(parent, {"ready": True, **found})
    Agent(parent, ids).serve()


def _serve_beside(parent: socket.socket, ids: str) -> NoReturn:
    try:
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            Agent(parent, ids).serve()
    except BaseException:  # noqa: BLE001 - nothing of it may come to the agent that was forked
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(0)
