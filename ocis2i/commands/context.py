"""What every command works with, made of the environment, the clock and its common flags."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import field
from datetime import UTC, datetime
from pathlib import Path

from ocis2i.commands.connection import open_registry
from ocis2i.commands.display import display
from ocis2i.commands.flags import (
    DEFAULT_JOBS,
    DigestFileFlags,
    RegistryFlags,
    RootfsFlags,
    StoreFlags,
    TalkFlags,
    TransferFlags,
)
from ocis2i.commands.state import ReaderGoneError, State
from ocis2i.credentials import Given
from ocis2i.errors import UsageError
from ocis2i.images import Places
from ocis2i.lazy_dataclass import dataclass
from ocis2i.outputs.files import ResultFile
from ocis2i.policy import Policy
from ocis2i.registries import Registries
from ocis2i.report import Recorder
from ocis2i.settings import Settings
from ocis2i.store import Store
from ocis2i.tools import Tools


@dataclass(frozen=True, slots=True)
class Context:
    """The tools of one command."""

    tools: Tools
    recorder: Recorder
    registries: RegistryFlags = field(default_factory=RegistryFlags)
    conclude: Callable[[str | None], None] = lambda _: None

    @property
    def store(self) -> Store:
        """Where images are kept."""
        return self.tools.store


@contextmanager
def context(flags: StoreFlags) -> Iterator[Context]:
    """Makes the tools and closes them. Raises `UsageError`, or what opening the store raises."""
    State.as_json = bool(getattr(flags, "as_json", False))
    talk = flags if isinstance(flags, TalkFlags) else TalkFlags()
    registries = flags if isinstance(flags, RegistryFlags) else RegistryFlags()
    rootfs = flags.rootfs if isinstance(flags, RootfsFlags) else None
    settings = Settings.from_environ(os.environ, root=flags.root or State.root, rootfs=rootfs)
    level = max(talk.log_level, State.log_level)
    State.quiet = talk.quiet
    show = display(quiet=talk.quiet, log_level=level)
    recorder = Recorder(show, lambda: datetime.now(UTC))
    State.recorder = recorder
    _warn_of_docker(flags, recorder)
    # A verb that asks no registry does not mind how they are set up.
    rules, policy = Registries(), Policy()
    given: Given | None = {}
    if isinstance(flags, RegistryFlags):
        rules = Registries.load(settings.environment)
        chosen = Path(flags.signature_policy) if flags.signature_policy else None
        policy = Policy.load(settings.environment, path=chosen)
        given = None
    store = Store.open(settings.store_root)
    with open_registry(
        registries, settings.environment, recorder, registries=rules, given=given
    ) as registry:
        jobs = flags.jobs if isinstance(flags, TransferFlags) else DEFAULT_JOBS
        places = Places(store, registry, recorder, jobs, registries=rules, policy=policy)
        try:
            try:
                # Python has none for a descriptor that the caller closed.
                stdin = sys.stdin.buffer if sys.stdin else None
                tools = Tools(settings, places, recorder, working_directory(), stdin=stdin)
                yield Context(tools, recorder, registries, show.conclude)
            finally:
                show.close()
            sys.stdout.flush()
        except BrokenPipeError as error:
            raise ReaderGoneError from error


def digest_file(flags: DigestFileFlags, here: Context) -> ResultFile | None:
    """Where the digest goes; raises `OutputError` when it cannot be written."""
    return result_file(flags.digest_file, "--digest-file", here)


def result_file(path: str | None, flag: str, here: Context) -> ResultFile | None:
    """A file that a flag names, tried before the work begins."""
    if path is None:
        return None
    if not path:
        raise UsageError(f"{flag} is empty", hint="name a file, or leave it out")
    return ResultFile(here.tools.cwd / path, flag)


def _warn_of_docker(flags: StoreFlags, recorder: Recorder) -> None:
    given = dict.fromkeys([*State.docker_only, *flags.docker_only()])
    if given:
        recorder.warn(f"{', '.join(given)}: ignored, ocis2i uses no Docker daemon")


def working_directory() -> Path:
    """The current directory; raises `UsageError` when it was removed."""
    try:
        return Path.cwd()
    except OSError as error:
        raise UsageError(
            f"there is no current directory: {error.strerror}", hint="change to one that exists"
        ) from error
