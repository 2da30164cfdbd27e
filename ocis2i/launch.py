"""Runs an image of the store, rootless: to try a result, or to hear what a builder says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from pathlib import Path

from ocis2i.container import (
    Job,
    Surroundings,
    check_script,
    choose_runner,
    identify,
    make_working_directory,
    runnable,
)
from ocis2i.errors import ScriptError, UsageError
from ocis2i.images import Obtained, Places
from ocis2i.isolation.in_place import InPlace
from ocis2i.lazy_dataclass import dataclass
from ocis2i.limits import Limits
from ocis2i.rootfs import Rootfs, prepare
from ocis2i.runner import BindMount, Hardening, RunResult, RunSpec, Stdio
from ocis2i.s2i import merge_environment, read_contract
from ocis2i.scripts import Download, ScriptPlace, resolve
from ocis2i.session import session
from ocis2i.settings import Settings
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
    cap_drop: frozenset[str] = frozenset()
    limits: Limits = field(default_factory=Limits)
    hardening: Hardening = field(default_factory=Hardening)


def launch(
    image: Obtained,
    spec: LaunchSpec,
    places: Places,
    settings: Settings,
    *,
    stdio: Stdio,
) -> RunResult:
    """Runs the image's command to its end.

    What it writes is gone afterwards. Raises `UsageError` when there is nothing to run.
    """
    runtime = image.image.config.runtime
    argv = command_line(runtime.entrypoint, runtime.cmd, spec)
    _refuse_in_place(spec.isolation)
    report = places.report
    with session(places.store, settings, report, isolation=spec.isolation) as here:
        layers = unpack_layers(image, places, here.agent, size_limit=settings.layer_limit)
        mounts = (*here.network_files(), *spec.mounts)
        rootfs = prepare(here.agent, here.directory, layers, mounts, kind=here.rootfs)
        identity = identify(spec.user or runtime.user, rootfs)
        cwd = spec.working_dir or runtime.working_dir or "/"
        make_working_directory(cwd, rootfs)
        rootfs.mount()
        environment = merge_environment(runtime.env, spec.environment)
        job = Job(argv, identity, cwd, environment)
        around = Surroundings(mounts, spec.cap_drop, limits=spec.limits, hardening=spec.hardening)
        run = job.spec(around.fitted(here))
        runner = choose_runner(here, spec.isolation, spec.hardening, report)
        return runner.run(rootfs, run, stdio)


def _refuse_in_place(isolation: str | None) -> None:
    if isolation == InPlace.name:
        raise UsageError(
            "--isolation in-place is for builds: it runs nothing but the container that is there",
            hint="choose another --isolation",
        )


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


def show_usage(
    builder: Obtained,
    places: Places,
    settings: Settings,
    *,
    scripts_url: str | None,
    destination: str | None,
    environment: Mapping[str, str],
    isolation: str | None,
    limits: Limits,
    hardening: Hardening,
    cwd: Path,
    download: Download | None,
) -> ScriptError | None:
    """Runs a builder's usage script with our own standard streams; its failure, if it failed.

    Nothing is kept of it, where upstream commits an image. Raises `ScriptsError` without one.
    """
    runtime = builder.image.config.runtime
    contract = read_contract(builder.image.config)
    _refuse_in_place(isolation)
    with session(places.store, settings, places.report, isolation=isolation) as here:
        (here.directory / "scripts").mkdir()
        scripts = resolve(
            contract.scripts_url,
            scripts_url_flag=scripts_url,
            source=None,
            into=here.directory / "scripts",
            wanted=("usage",),
            optional=(),
            destination=destination or contract.destination,
            cwd=cwd,
            report=places.report,
            download=download,
        )
        layers = unpack_layers(builder, places, here.agent, size_limit=settings.layer_limit)
        mounts = here.network_files()
        rootfs = prepare(here.agent, here.directory, layers, mounts, kind=here.rootfs)
        identity = identify(runtime.user, rootfs)
        script = scripts["usage"]
        check_script(script, builder.name, rootfs)
        if script.file is not None:
            rootfs.put_file(script.file, script.path_in_image, identity.uid, identity.gid, 0o755)
        directory = runtime.working_dir or "/"
        make_working_directory(directory, rootfs)
        rootfs.mount()
        merged = merge_environment(runtime.env, environment)
        job = Job((script.path_in_image,), identity, directory, merged)
        around = Surroundings(mounts, limits=limits, hardening=hardening)
        run = runnable(job.spec(around.fitted(here)), rootfs)
        runner = choose_runner(here, isolation, hardening, places.report)
        code = runner.run(rootfs, run, Stdio()).exit_code
        return _usage_failure(code, run, script, runner.name, rootfs) if code else None


def _usage_failure(
    code: int, run: RunSpec, script: ScriptPlace, isolation: str, rootfs: Rootfs
) -> ScriptError:
    """What is known of a usage script that failed; nobody but the user has seen its output."""
    from ocis2i.causes import describe_exit  # noqa: PLC0415 - few need it
    from ocis2i.script_failure import circumstances, explained  # noqa: PLC0415

    said = describe_exit(code, (), circumstances(run))
    error = ScriptError(f"`{run.argv[-1]}` failed with {said}", script_exit_code=code)
    error.failure = explained(
        error, run, script, stage="usage", isolation=isolation, tree=rootfs, lines=1
    )
    error.hint = error.failure.way_out
    return error
