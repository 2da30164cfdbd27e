"""A writable tree over an image's layers: what a build's scripts see and change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ocis2i.isolation.agent import Agent
from ocis2i.isolation.oci_runtime import MOUNT_TARGETS
from ocis2i.runner import BindMount
from ocis2i.store import LayerRecord


@dataclass(frozen=True, slots=True)
class Upload:
    """A tree in the build's directory (`name`) that shall be `path` in the container."""

    name: str
    path: str
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Changes:
    """What a layer's tar holds, as the agent counted it; sizes in bytes."""

    entries: int
    size_bytes: int
    sockets: int


class Rootfs:
    """An overlay in the agent's mount namespace; `prepare` makes one."""

    def __init__(self, agent: Agent, directory: Path, ours: tuple[str, ...]) -> None:
        self._agent = agent
        self._ours = ours
        self._mounted = False
        self.build = str(directory)
        self.path = f"{directory}/rootfs"

    def place(self, uploads: Sequence[Upload]) -> None:
        """Puts trees into the container before it is mounted, given to their new owners."""
        listed = [[item.name, item.path, item.uid, item.gid] for item in uploads]
        self._agent.request("place", build=self.build, uploads=listed)

    def make_directory(self, path: str) -> None:
        """Makes a directory of root's that the image lacks; after `place`, before `mount`."""
        self._agent.request("make", build=self.build, path=path)

    def mount(self) -> None:
        """Mounts the writable tree; nothing may be placed afterwards."""
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

    def write_changes(self, fd: int, *, clamp_mtime: int | None) -> None:
        """Starts writing the tar of everything that changed into `fd`; see `finish_changes`."""
        self._agent.request("unmount", build=self.build)
        self._mounted = False
        self._agent.post(
            "diff", fd, build=self.build, clamp_mtime=clamp_mtime, ours=list(self._ours)
        )

    def finish_changes(self) -> Changes:
        """Waits for the end of `write_changes`; raises what went wrong."""
        answer = self._agent.reply()
        return Changes(answer["entries"], answer["size"], answer["sockets"])

    @property
    def _top(self) -> str:
        return self.path if self._mounted else f"{self.build}/base"


def prepare(
    agent: Agent, directory: Path, layers: Sequence[LayerRecord], mounts: Sequence[BindMount]
) -> Rootfs:
    """A rootfs over `layers` (lowest first) in the build's `directory`, with places for `mounts`.

    Raises `IsolationError` when overlayfs is refused.
    """
    targets = [[path, True] for path in MOUNT_TARGETS]
    targets += [[mount.target, mount.directory] for mount in mounts]
    # Overlayfs refuses a directory twice (ELOOP), and images often have one layer several times:
    # every empty layer is the same. Whatever it brings or hides counts where it comes last.
    distinct = {layer.tree: layer for layer in reversed(layers)}
    lowers = [[str(layer.tree), list(layer.implied)] for layer in reversed(distinct.values())]
    answer = agent.request("prepare", build=str(directory), lowers=lowers, targets=targets)
    return Rootfs(agent, directory, tuple(answer["ours"]))
