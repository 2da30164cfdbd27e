"""What every command works with, made of the environment, the clock and its common flags."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ocis2i.auth import Keychain
from ocis2i.commands.flags import RegistryFlags, RootfsFlags, StoreFlags, TalkFlags
from ocis2i.commands.state import ReaderGoneError, State
from ocis2i.errors import UsageError
from ocis2i.images import Places
from ocis2i.registry import Registry
from ocis2i.report import Lines, Quiet, Recorder
from ocis2i.settings import Settings
from ocis2i.store import Store
from ocis2i.tools import Tools


@dataclass(frozen=True, slots=True)
class Context:
    """The tools of one command."""

    tools: Tools
    recorder: Recorder
    tls_verify: bool = True

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
    show = Quiet(sys.stderr) if talk.quiet else Lines(sys.stderr, log_level=level)
    recorder = Recorder(show, lambda: datetime.now(UTC))
    State.recorder = recorder
    _warn_of_docker(flags, recorder)
    authfile = Path(registries.authfile) if registries.authfile else None
    keychain = Keychain(settings.environment, authfile=authfile)
    store = Store.open(settings.store_root)
    with Registry(
        keychain,
        environment=settings.environment,
        tls_verify=registries.tls_verify,
        report=recorder,
    ) as registry:
        places = Places(store, registry, recorder)
        try:
            try:
                # Python has none for a descriptor that the caller closed.
                stdin = sys.stdin.buffer if sys.stdin else None
                tools = Tools(settings, places, recorder, working_directory(), stdin=stdin)
                yield Context(tools, recorder, registries.tls_verify)
            finally:
                show.close()
            sys.stdout.flush()
        except BrokenPipeError as error:
            raise ReaderGoneError from error


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
