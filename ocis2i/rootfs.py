"""A writable tree over an image's layers: what a build's scripts see and change."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ocis2i.errors import IsolationError
from ocis2i.events import Notice, Report
from ocis2i.isolation.agent import Agent
from ocis2i.isolation.ground import Ground
from ocis2i.isolation.oci_runtime import MOUNT_TARGETS
from ocis2i.isolation.tried import disk_refusal
from ocis2i.lazy_dataclass import dataclass
from ocis2i.runner import BindMount
from ocis2i.s2i import Identity
from ocis2i.settings import RootfsKind
from ocis2i.store import LayerRecord

if TYPE_CHECKING:  # few builds load it
    from ocis2i.injections import InjectedFile


@dataclass(frozen=True, slots=True)
class Upload:
    """A tree in the session's directory (`name`) that shall be `path` in the container."""

    name: str
    path: str
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Copied:
    """What was copied from another rootfs; `skipped` are devices, pipes and sockets.

    `parents` are the directories made for it, absolute.
    """

    entries: int
    size_bytes: int
    skipped: int
    parents: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Changes:
    """What a layer's tar holds, as the agent counted it; sizes in bytes."""

    entries: int
    size_bytes: int
    sockets: int


class Rootfs:
    """An overlay in the agent's mount namespace, or a copy; `prepare` makes one."""

    def __init__(
        self,
        agent: Agent,
        directory: Path,
        session: Path,
        ours: tuple[str, ...],
        occupied: tuple[str, ...],
        *,
        layers: Sequence[LayerRecord],
        copied: bool,
    ) -> None:
        self._agent = agent
        self._session = str(session)
        self._layers = layers
        self._owner = (0, 0)
        self._ours = ours
        self._occupied = occupied
        self._mounted = False
        self._copied = copied
        self._made: set[str] = set()
        self._left_out: tuple[str, ...] = ()
        self.build = str(directory)
        self.path = f"{directory}/rootfs"

    @property
    def ground(self) -> Ground:
        """What the agent that holds the tree stands on."""
        return self._agent.ground

    @property
    def made(self) -> tuple[str, ...]:
        """The directories that were made above what was put here, absolute, sorted.

        In a tree without the image's layers they stand for directories that nobody has seen.
        """
        return tuple(sorted(self._made))

    def acting(self, identity: Identity) -> Identity:
        """Whom a script really runs as, when the image or the caller names `identity` for it."""
        return identity

    def place(self, uploads: Sequence[Upload]) -> None:
        """Puts trees into the container before it is mounted, given to their new owners."""
        listed = [[item.name, item.path, item.uid, item.gid] for item in uploads]
        for item in uploads:
            self._owner = (item.uid, item.gid)
        answer = self._agent.request(
            "place", session=self._session, build=self.build, uploads=listed
        )
        self._note_made(answer["made"])

    def put_file(self, source: Path, path: str, uid: int, gid: int, mode: int) -> None:
        """Copies a regular file of the host to `path`; what else is in its directory stays.

        A file or link of that name is replaced. Raises `ImageError` for a directory.
        """
        answer = self._agent.request(
            "put", build=self.build, source=str(source), path=path, uid=uid, gid=gid, mode=mode
        )
        self._note_made(answer["made"])

    def make_directory(self, path: str) -> None:
        """Makes a directory of root's that the image lacks; after `place`."""
        self._note_made(self._agent.request("make", build=self.build, path=path)["made"])

    def _note_made(self, paths: Iterable[str]) -> tuple[str, ...]:
        absolute = tuple(f"/{path}" for path in paths)
        self._made.update(absolute)
        return absolute

    def inject(
        self,
        items: Sequence[InjectedFile],
        *,
        uid: int,
        gid: int,
        keep_names: bool,
        reserved: Sequence[str] = (),
    ) -> tuple[BindMount, ...]:
        """Gives files of the host to the run: the mounts for its `RunSpec`, after `place`.

        Mounts the tree. The content is in memory and belongs to `uid`:`gid`, who may change and
        remove it. The layer gets nothing of it; with `keep_names` empty files and directories.
        Raises `UsageError` for a destination that cannot be, as where the container's mounts are
        or where a path of `reserved` leads; `PolicyError` for too much.
        """
        if not items:
            return ()
        self.mount()
        listed = [[one.source, one.target, one.top, one.directory, one.keep] for one in items]
        answer = self._agent.request(
            "inject",
            build=self.build,
            items=listed,
            uid=uid,
            gid=gid,
            keep_names=keep_names,
            occupied=list(self._occupied),
            reserved=list(reserved),
        )
        if not keep_names:
            self._left_out += tuple(answer["places"])
        return tuple(
            BindMount(source, target, directory=directory)
            for source, target, directory in answer["mounts"]
        )

    def copy_from(self, other: Rootfs, source: str, directory: str, uid: int, gid: int) -> Copied:
        """Copies `source` of another rootfs into `directory`, under its own name.

        Mounts the tree. Directories merge; modes are 0755, or 0644 for files that nobody may
        execute; owners `uid`:`gid`. Raises `ImageError` when there is no `source`, `UsageError`
        when the destination cannot take it.
        """
        self.mount()
        self._owner = (uid, gid)
        answer = self._agent.request(
            "transfer",
            origin=other.build,
            source=source,
            root=self.path,
            directory=directory,
            uid=uid,
            gid=gid,
        )
        parents = self._note_made(answer["parents"])
        return Copied(answer["entries"], answer["size"], answer["skipped"], parents)

    def mount(self) -> None:
        """Mounts the writable tree, once; no tree may be placed afterwards."""
        if not self._mounted:
            self._agent.request("mount", build=self.build)
            self._mounted = True

    def read_text(self, path: str, *, limit: int = 1 << 20) -> str | None:
        """A small regular file of the image or, once mounted, of the container; `None`: none."""
        return self._read(path, limit, head=False)

    def read_head(self, path: str, size: int) -> str | None:
        """The first `size` bytes of a regular file; `None`: there is none."""
        return self._read(path, size, head=True)

    def _read(self, path: str, limit: int, *, head: bool) -> str | None:
        answer = self._agent.request("read", root=self._top, path=path, limit=limit, head=head)
        return None if answer["text"] is None else str(answer["text"])

    def modes(self, paths: Sequence[str]) -> list[int | None]:
        """The mode of each path (links followed inside the tree), `None` where there is nothing."""
        answer = self._agent.request("look", root=self._top, paths=list(paths))
        return list(answer["modes"])

    def places(self, paths: Sequence[str]) -> list[str]:
        """Where each path leads inside the tree, links followed also to what is not there."""
        answer = self._agent.request("look", root=self._top, paths=list(paths))
        return list(answer["places"])

    def remove(self, path: str) -> None:
        """Removes a file or tree from the container; while it is mounted."""
        self._agent.request("drop", root=self.path, path=path)

    def write_changes(
        self, fd: int, *, clamp_mtime: int | None, unlisted: Sequence[str] = (), last: bool = False
    ) -> None:
        """Starts writing the tar of everything that changed into `fd`; see `finish_changes`.

        For the directories `unlisted` no entry is written, but what is in them is. Nobody looks
        at the tree after the `last` time: its files may be removed meanwhile.
        """
        self._agent.request("unmount", build=self.build)
        self._mounted = False
        self._agent.post(
            "diff",
            fd,
            build=self.build,
            clamp_mtime=clamp_mtime,
            ours=list(self._ours),
            unlisted=[path.strip("/") for path in unlisted],
            last=last,
            **self._ownership(),
            left_out=list(self._left_out),
        )

    def _ownership(self) -> dict[str, object]:
        """What an agent has to know that sees only its own id on the disk (`agent.owners`).

        What a script makes belongs to the user for whom something was put here last.
        """
        if not self.ground.squashed:
            return {}
        layers = [
            [str(layer.tree), list(layer.implied), dict(layer.owners)]
            for layer in reversed(self._layers)
        ]
        return {"owner": list(self._owner), "layers": layers}

    def finish_changes(self) -> Changes:
        """Waits for the end of `write_changes`; raises what went wrong."""
        answer = self._agent.reply()
        return Changes(answer["entries"], answer["size"], answer["sockets"])

    @property
    def _top(self) -> str:
        return self.path if self._mounted or self._copied else f"{self.build}/base"


def prepare(
    agent: Agent,
    directory: Path,
    layers: Sequence[LayerRecord],
    mounts: Sequence[BindMount],
    *,
    session: Path | None = None,
    kind: RootfsKind = "overlay",
) -> Rootfs:
    """A rootfs over `layers` (lowest first) in the build's `directory`, with places for `mounts`.

    The directory is made when it is missing. Uploads are in the directory of the `session`, which
    is the same one when nothing is said. Raises `IsolationError` when overlayfs is refused, or a
    copy could not be executed.
    """
    targets = [[path, True] for path in MOUNT_TARGETS]
    targets += [[mount.target, mount.directory] for mount in mounts]
    # Overlayfs refuses a directory twice (ELOOP), and images often have one layer several times:
    # every empty layer is the same. Whatever it brings or hides counts where it comes last.
    distinct = tuple({layer.tree: layer for layer in reversed(layers)}.values())[::-1]
    # Overlayfs does not see what a layer hides without a mark on the disk.
    copied = kind == "copy" or any(layer.whiteouts or layer.opaque for layer in distinct)
    lowers = [
        [str(layer.tree), *map(list, (layer.implied, layer.whiteouts, layer.opaque))]
        for layer in distinct
    ]
    answer = agent.request(
        "prepare", build=str(directory), lowers=lowers, targets=targets, copied=copied
    )
    occupied = tuple(str(path) for path, _ in targets)
    ours = tuple(answer["ours"])
    place = session or directory
    return Rootfs(agent, directory, place, ours, occupied, layers=distinct, copied=copied)


def choose_kind(agent: Agent, directory: Path, wanted: str, report: Report) -> RootfsKind:
    """What `prepare` shall make in the file system of `directory`: an overlay where one works.

    Raises `IsolationError` when an overlay is wanted and cannot be.
    """
    if wanted == "copy":
        return "copy"
    refusal = _overlay_refusal(agent, directory)
    if refusal is None:
        return "overlay"
    if wanted == "overlay":
        raise IsolationError(
            refusal,
            hint="--rootfs copy does without; or put the store on a local disk (ext4, xfs, btrfs) "
            "or tmpfs with --root",
        )
    if agent.ground.can_mount:
        report(Notice("info", f"{refusal}: each build gets a copy of the image"))
    return "copy"


def _overlay_refusal(agent: Agent, directory: Path) -> str | None:
    """Why no overlay can be made in the build's `directory`; `None`: it works, or lately did."""
    if not agent.ground.can_mount:
        return "nothing can be mounted here"
    return disk_refusal("overlay", directory, agent)
