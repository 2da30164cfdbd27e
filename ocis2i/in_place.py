"""The container that ocis2i runs in as the tree of a build: of its image, only names are fetched.

For pods that may do nothing else. The image's layers are named and not looked at; that this
container was made of them is what the caller says, and what is checked here as far as it shows.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import ocis2i
from ocis2i.errors import IsolationError
from ocis2i.events import Notice, Report
from ocis2i.isolation.agent import Agent
from ocis2i.rootfs import Rootfs, Upload
from ocis2i.s2i import Identity

# A pod says those itself, and an engine others.
_NOT_THE_IMAGE_S = frozenset(("PATH", "HOME", "HOSTNAME", "TERM", "USER", "LANG"))
_SHOWN = 3


class InPlaceRootfs(Rootfs):
    """The agent's own `/`; `occupy` makes one."""

    def __init__(self, agent: Agent, directory: Path, mounts: Sequence[str]) -> None:
        super().__init__(agent, directory, directory, (), (), layers=(), copied=True)
        self.path = "/"
        self.mounts = tuple(mounts)

    def place(self, uploads: Sequence[Upload]) -> None:
        """Copies trees to where they shall be, for the current user; see `Rootfs.place`.

        Raises `IsolationError` when something is there: an earlier build's, whose other traces
        would be taken for the image's.
        """
        paths = [upload.path for upload in uploads]
        for path, mode in zip(paths, self.modes(paths), strict=True):
            if mode is not None:
                raise IsolationError(
                    f"`{path}` is there already: this container has had a build in it",
                    hint="each build in place takes a container of its own; if the image has "
                    "something there, choose another --destination",
                )
        mine = (os.geteuid(), os.getegid())
        super().place([replace(one, uid=mine[0], gid=mine[1]) for one in uploads])
        for upload in uploads:
            self._owner = (upload.uid, upload.gid)

    def put_file(self, source: Path, path: str, uid: int, gid: int, mode: int) -> None:
        """See `Rootfs.put_file`; the file is the current user's."""
        del uid, gid
        super().put_file(source, path, os.geteuid(), os.getegid(), mode)

    def mount(self) -> None:
        """Nothing is mounted."""

    def acting(self, identity: Identity) -> Identity:
        """The current user, with the home of the one whom the image names."""
        return replace(identity, uid=os.geteuid(), gid=os.getegid(), groups=())

    def _ownership(self) -> dict[str, object]:
        return {"owner": list(self._owner)}


def occupy(agent: Agent, directory: Path, store: Path) -> InPlaceRootfs:
    """This container as a rootfs, without the `store`, ocis2i itself and what it writes."""
    # Nor what Python would write beside the modules that are loaded from now on.
    sys.dont_write_bytecode = True
    ours = (store, Path(ocis2i.__file__).parent, *open_files((1, 2)))
    skipped = [str(path.resolve()) for path in ours]
    answer = agent.request("occupy", build=str(directory), skipped=skipped)
    return InPlaceRootfs(agent, directory, answer["mounts"])


def open_files(fds: Iterable[int]) -> Iterator[Path]:
    """The files that these descriptors lead to, where they have a name."""
    for fd in fds:
        try:
            facts = os.fstat(fd)
            path = Path(f"/proc/self/fd/{fd}").readlink()
            # The kernel may tell a name that is gone, or another file's by now.
            if stat.S_ISREG(facts.st_mode) and os.path.samestat(facts, path.lstat()):
                yield path
        except OSError:
            continue


def differences(image: Sequence[str], environment: Mapping[str, str]) -> tuple[str, ...]:
    """Names of variables that the image sets and this container does not have like that."""
    wanted = dict(entry.partition("=")[::2] for entry in image)
    return tuple(
        name
        for name, value in wanted.items()
        if name and name not in _NOT_THE_IMAGE_S and environment.get(name) != value
    )


def hidden_by_mounts(paths: Sequence[str], mounts: Sequence[str]) -> tuple[str, ...]:
    """Those of `paths` that lie in a mount: nothing of what is there gets into the image."""
    inner = [mount for mount in mounts if mount != "/"]
    return tuple(
        path
        for path in dict.fromkeys(paths)
        if any(f"{path}/".startswith(f"{mount}/") for mount in inner)
    )


def warn_of_credentials(files: Iterable[Path], report: Report) -> None:
    """Says which `files` with credentials of registries the scripts may read."""
    for path in files:
        text = (
            f"`{path}` has credentials of registries, and assemble may read it: it is the same "
            "user here. Mount it into other containers alone that share the store, for "
            "`ocis2i pull` before this build and `ocis2i push` after it"
        )
        report(Notice("warning", text))


def warn(
    name: str,
    image: Sequence[str],
    places: Sequence[str],
    *,
    rootfs: InPlaceRootfs,
    environment: Mapping[str, str],
    report: Report,
) -> None:
    """Says what speaks against a build of the image `name` here; `places` are those that count."""
    if found := differences(image, environment):
        listed = ", ".join(f"`{one}`" for one in found[:_SHOWN])
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        text = f"the variables {listed}{more} of `{name}` are not like that in this container"
        report(Notice("warning", f"{text}: is it really made of that image?"))
    for path in hidden_by_mounts(places, rootfs.mounts):
        text = f"`{path}` is mounted into this container: what is there does not get into the image"
        report(Notice("warning", text))
