"""Runs an image of the store, rootless, to try a result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ocis2i.build import identify, make_working_directory, process_environment
from ocis2i.errors import UsageError
from ocis2i.events import Report
from ocis2i.images import Obtained
from ocis2i.rootfs import prepare
from ocis2i.runner import BindMount, RunResult, RunSpec, Stdio
from ocis2i.s2i import merge_environment
from ocis2i.session import session
from ocis2i.settings import Settings
from ocis2i.store import Store
from ocis2i.unpack import unpack_layers


@dataclass(frozen=True, slots=True)
class LaunchSpec:
    """How to run an image: what differs from what the image itself says."""

    command: tuple[str, ...] = ()
    entrypoint: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    mounts: tuple[BindMount, ...] = ()
    user: str | None = None
    working_dir: str | None = None
    isolation: str | None = None


def launch(
    image: Obtained, spec: LaunchSpec, store: Store, settings: Settings, report: Report
) -> RunResult:
    """Runs the image's command in the foreground with our own standard streams.

    What it writes is gone afterwards. Raises `UsageError` when there is nothing to run.
    """
    runtime = image.image.config.runtime
    argv = command_line(runtime.entrypoint, runtime.cmd, spec)
    with session(store, settings) as here:
        layers = unpack_layers(
            image.image, store, here.agent, report, size_limit=settings.layer_limit
        )
        mounts = (*here.network_files(), *spec.mounts)
        rootfs = prepare(here.agent, here.directory, layers, mounts)
        identity = identify(spec.user or runtime.user, rootfs)
        cwd = spec.working_dir or runtime.working_dir or "/"
        make_working_directory(cwd, rootfs)
        rootfs.mount()
        environment = merge_environment(runtime.env, spec.environment)
        run = RunSpec(
            argv,
            process_environment(environment, identity, {}),
            cwd,
            identity,
            mounts,
        )
        return here.runner(spec.isolation).run(rootfs, run, Stdio())


def command_line(
    entrypoint: Sequence[str] | None, cmd: Sequence[str] | None, spec: LaunchSpec
) -> tuple[str, ...]:
    """Entrypoint and command as an engine joins them; an entrypoint given drops the image's Cmd."""
    if spec.entrypoint is not None:
        argv = (*([spec.entrypoint] if spec.entrypoint else []), *spec.command)
    else:
        argv = (*(entrypoint or ()), *(spec.command or cmd or ()))
    if not argv:
        raise UsageError("the image has no command", hint="give one after the image's name")
    return tuple(argv)
