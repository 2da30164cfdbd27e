"""A build's own directory and agent, and their end: nothing stays behind, however it ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ocis2i.container_options import HostEntry
from ocis2i.errors import Ocis2iError
from ocis2i.fs import Lock, remove_tree
from ocis2i.isolation.agent import Agent, agent
from ocis2i.isolation.builtin import Builtin
from ocis2i.isolation.runc import Runc
from ocis2i.runner import HOSTNAME, BindMount, Network, Runner, choose
from ocis2i.settings import Settings
from ocis2i.store import Store

_RESOLVER = "resolv.conf"
_HOSTS = "hosts"
# Whoever asks for a name in a container without network is told at once that there is none.
_NO_RESOLVER = b"# no network, no name servers\n"
_LOOPBACK = b"127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"


@dataclass(frozen=True, slots=True)
class Session:
    """What a build or a run works with: its directory and its agent."""

    agent: Agent
    directory: Path
    search_path: str | None

    def runner(self, wanted: str | None) -> Runner:
        """The executor to use; see `ocis2i.runner.choose`."""
        runners: list[Runner] = [
            Runc(self.agent, search_path=self.search_path),
            Builtin(self.agent),
        ]
        return choose(runners, wanted)

    def network_files(
        self, add_hosts: Sequence[HostEntry] = (), network: Network = "host"
    ) -> tuple[BindMount, ...]:
        """Name resolution for the containers: as the host has it, and `add_hosts` before that.

        Without network there are only `add_hosts` and the loopback device's names.
        """
        contents = {_RESOLVER: _NO_RESOLVER, _HOSTS: _LOOPBACK}
        if network == "host":
            contents = {name: _read_lines(Path("/etc", name)) for name in contents}
        contents[_HOSTS] = hosts_file(contents[_HOSTS], add_hosts)
        mounts = []
        for name, content in contents.items():
            copy = self.directory / name
            copy.write_bytes(content)
            copy.chmod(0o644)  # for every user of the container, whatever the umask
            mounts.append(BindMount(str(copy), f"/etc/{name}", read_only=True, directory=False))
        return tuple(mounts)


def hosts_file(known: bytes, add_hosts: Sequence[HostEntry]) -> bytes:
    """`/etc/hosts` with the user's entries before the `known` lines: the first one counts."""
    added = "".join(f"{entry.address}\t{entry.name}\n" for entry in add_hosts).encode()
    # The container's own name must resolve: Java, for one, asks for it.
    return added + known + f"127.0.0.1\t{HOSTNAME}\n".encode()


def _read_lines(path: Path) -> bytes:
    """A file of the host's, its last line ended; empty for none or one that is not for us."""
    try:
        content = path.read_bytes()
    except OSError:
        return b""
    return content if not content or content.endswith(b"\n") else content + b"\n"


@contextmanager
def session(store: Store, settings: Settings) -> Iterator[Session]:
    """A new session in `store`. Call from the main thread (see `isolation.agent.agent`)."""
    search_path = settings.environment.get("PATH")
    with store.in_use(), store.new_build() as (directory, lock):
        try:
            with agent(search_path=search_path, keep_open=(lock.fileno(),)) as running:
                yield Session(running, directory, search_path)
                running.request("release", build=str(directory))
                running.request("remove", parent=str(directory.parent), name=directory.name)
        except BaseException:
            remove_leftovers([directory], search_path=search_path)
            raise


def remove_leftovers(paths: Sequence[Path], *, search_path: str | None) -> list[Path]:
    """Removes trees that may belong to subordinate ids; returns those that could not be."""
    left = [path for path in paths if not remove_tree(path)]
    if not left:
        return []
    try:
        with agent(search_path=search_path) as running:
            for path in left:
                running.request("remove", parent=str(path.parent), name=path.name)
    except Ocis2iError:
        return [path for path in left if path.exists()]
    return []


def dead_builds(store: Store, *, alone: bool) -> list[Path]:
    """Directories of builds whose process is gone; `alone`: nobody else uses the store."""
    dead = []
    for directory in sorted((store.root / "builds").iterdir()):
        try:
            lock = Lock(directory / "lock", create=False)
        except FileNotFoundError:
            # Its build is about to remove it, and must not find a new file in it, or was killed
            # at that.
            if alone:
                dead.append(directory)
            continue
        try:
            if lock.acquire(wait=False):
                dead.append(directory)
        finally:
            lock.release()
    return dead
