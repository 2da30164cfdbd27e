"""Files that are in memory alone and that nobody but the agent's own processes can see.

Whatever a build gets that no disk shall have: a killed build leaves its directory behind, and what
is in a tmpfs of the agent's mount namespace is gone with the agent.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping

from ocis2i import syscalls
from ocis2i.agent.tree import opened

SIZE_LIMIT = 64 << 20

_NEW = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC


def keep(directory: str, files: Mapping[str, str], *, mode: int = 0o644) -> None:
    """Writes `files` (name to content, a character for a byte) into a tmpfs on `directory`.

    The directory is made when it is missing; what is there by another `keep` stays. Containers
    that get it mounted may read and not write.
    """
    with contextlib.suppress(FileExistsError):
        os.mkdir(directory, 0o700)
    if not os.path.ismount(directory):
        flags = syscalls.MS_NOSUID | syscalls.MS_NODEV
        options = f"mode=0755,size={SIZE_LIMIT}"
        syscalls.mount("ocis2i-memory", directory, "tmpfs", flags, options)
    for name in files:
        os.makedirs(os.path.dirname(f"{directory}/{name}"), mode=0o755, exist_ok=True)
    with opened(directory) as parent:
        for name, content in files.items():
            fd = os.open(name, _NEW, mode, dir_fd=parent)
            with os.fdopen(fd, "wb") as file:
                file.write(content.encode("latin-1"))
