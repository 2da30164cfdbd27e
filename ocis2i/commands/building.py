"""The verbs that make an image: build and rebuild."""

from __future__ import annotations

import sys
from dataclasses import replace

import typer

from ocis2i.build import BuildResult, build
from ocis2i.callback import check_callback_url
from ocis2i.commands.build_flags import BuildFlags, CommonBuildFlags, RebuildFlags
from ocis2i.commands.build_spec import build_spec, common_spec
from ocis2i.commands.context import (
    Context,
    State,
    context,
    print_json,
    working_directory,
)
from ocis2i.commands.exporting import export_build
from ocis2i.documents import result_document
from ocis2i.errors import Interrupted, Ocis2iError, ScriptError, UsageError
from ocis2i.events import ScriptOutput
from ocis2i.images import PullPolicy, obtain
from ocis2i.launch import LaunchSpec, launch
from ocis2i.prune import discard
from ocis2i.rebuild import Rebuild, plan_rebuild, refuse_local_places
from ocis2i.reference import Location, RegistryLocation, StoredLocation, parse_location
from ocis2i.report import printable
from ocis2i.runner import Stdio
from ocis2i.s2ifile import command_line, merge, restore, save
from ocis2i.sources import parse_source
from ocis2i.spec import BuildSpec


def build_image(flags: BuildFlags, command: typer.Context) -> None:
    """Build an image from a source and an S2I builder image."""
    if flags.use_config:
        _build_as_saved(command)
        return
    if flags.source is None or flags.builder is None:
        missing = "SOURCE" if flags.source is None else "BUILDER"
        raise UsageError(
            f"missing argument {missing}", hint="write: ocis2i build SOURCE BUILDER [TAG]"
        )
    _check_conflicts(flags)
    with context(flags) as here:
        flags = _without_aliases(flags, here)
        spec = build_spec(flags, here)
        if State.when_valid:
            State.when_valid()
        if flags.as_dockerfile:
            export_build(spec, flags, here)
        else:
            _run_build(spec, flags, here, run=flags.run)


def _build_as_saved(command: typer.Context) -> None:
    """Runs the command again with what `.s2ifile` adds to its arguments, and saves them."""
    known, given = command_line(command)
    directory = working_directory()
    merged = merge(restore(directory), given, known)
    for sentence in merged.warnings:
        sys.stderr.write(f"warning: {printable(sentence)}\n")

    def keep() -> None:
        for sentence in save(directory, merged.arguments, known):
            sys.stderr.write(f"warning: {printable(sentence)}\n")

    State.when_valid = keep
    words = merged.arguments.argv(known)
    with command.command.make_context(command.info_name, words, parent=command.parent) as again:
        command.command.invoke(again)


def _check_conflicts(flags: BuildFlags) -> None:
    if flags.as_dockerfile is not None and flags.run:
        raise UsageError(
            "--run and --as-dockerfile exclude each other", hint="build the Dockerfile, then run it"
        )
    if flags.runtime_image == "":
        raise UsageError("--runtime-image is empty", hint="name an image, or leave it out")
    runtime_flags = {"assemble_runtime_user", "runtime_policy", "assemble_runtime"}
    if given := sorted(runtime_flags & flags.given if flags.runtime_image is None else ()):
        name = f"--{given[0].replace('_', '-')}".replace(
            "--runtime-policy", "--runtime-pull-policy"
        )
        raise UsageError(
            f"{name} has no meaning without --runtime-image",
            hint="name the image that the artifacts go to",
        )
    if flags.as_dockerfile == "":
        raise UsageError("--as-dockerfile is empty", hint="name the Dockerfile to write")
    if flags.runtime_artifact and not flags.runtime_image:
        raise UsageError(
            "--runtime-artifact has no meaning without --runtime-image",
            hint="name the image that the artifacts go to",
        )
    if flags.callback_url:
        check_callback_url(flags.callback_url)


def _without_aliases(flags: BuildFlags, here: Context) -> BuildFlags:
    """Deprecated names of flags win over the new ones, as upstream has it, and are told of."""
    if flags.scripts:
        here.recorder.warn("--scripts is deprecated, use --scripts-url")
        flags = replace(flags, scripts_url=flags.scripts)
    if flags.location:
        here.recorder.warn("--location is deprecated, use --destination")
        flags = replace(flags, destination=flags.location)
    return flags


# --- carrying it out --------------------------------------------------------------------------


def _run_build(
    spec: BuildSpec, flags: CommonBuildFlags, here: Context, *, run: bool = False
) -> None:
    with here.web() as web:
        try:
            result = build(spec, replace(here.tools, download=web.download))
        except Ocis2iError as error:
            # Who stops a build wants it to end, and not to wait for a server: it did not fail.
            if flags.callback_url and not isinstance(error, Interrupted):
                web.call_back(flags.callback_url, success=False, labels={})
            raise
        previous = result.restored.digest if result.restored else None
        same = previous == result.encoded.descriptor.digest
        if flags.remove_previous and previous and not same:
            discard(here.store, previous, here.recorder)
        messages: tuple[str, ...] = ()
        if flags.callback_url:
            labels = result.image.config.runtime.labels
            messages = web.call_back(flags.callback_url, success=True, labels=labels)
    digest = result.encoded.descriptor.digest
    if flags.as_json:
        print_json(result_document(result, spec, here.recorder.stages, messages))
    else:
        print(f"{spec.name.name}@{digest}" if spec.name else digest)
    if run:
        sys.stdout.flush()
        # The document is out: a second one, of how the image ended, would make it unreadable.
        State.as_json = False
        _run_result(result, spec, here)


def _run_result(result: BuildResult, spec: BuildSpec, here: Context) -> None:
    """Runs the image that was just built; its output goes to standard error."""
    with here.store.in_use():
        digest = result.encoded.descriptor.digest
        image = obtain(StoredLocation(digest), None, PullPolicy.NEVER, here.tools.places)
        stdio = Stdio(lambda stream, line: here.recorder(ScriptOutput(stream, line)))
        wishes = LaunchSpec(
            isolation=spec.isolation,
            cap_drop=spec.cap_drop,
            # A server has no end, and may say what it likes.
            limits=replace(spec.limits, seconds=None, output_bytes=None),
            hardening=spec.hardening,
        )
        tools = here.tools
        ran = launch(image, wishes, here.store, tools.settings, here.recorder, stdio=stdio)
    if ran.exit_code:
        raise ScriptError(
            f"the image ran and ended with exit code {ran.exit_code}",
            script_exit_code=ran.exit_code,
            reason="RunFailed",
        )


# --- rebuild ----------------------------------------------------------------------------------


def rebuild_image(flags: RebuildFlags) -> None:
    """Build an image again, from the commit and the builder that its labels name."""
    if flags.callback_url:
        check_callback_url(flags.callback_url)
    with context(flags) as here:
        location = parse_location(flags.image)
        PullPolicy.parse(flags.runtime_policy)
        tag = flags.tag or _tag_of(location, flags.image)
        spec = common_spec(flags, here, builder=flags.image, tag=tag)
        with here.store.in_use():
            found = obtain(
                location, spec.platform, spec.pull_policy, here.tools.places, layers=False
            )
        plan = plan_rebuild(flags.image, found.image.config.runtime)
        digest = found.manifest.descriptor.digest
        refuse_local_places(
            flags.image,
            plan,
            built_from=here.store.built_from(digest),
            built_with=here.store.built_with(digest),
        )
        for sentence in plan.warnings:
            here.recorder.warn(sentence)
        _run_build(_as_recorded(spec, plan, here), flags, here)


def _tag_of(location: Location, text: str) -> str:
    """The name of the result when none is given: the image's own."""
    if not isinstance(location, RegistryLocation):
        raise UsageError(
            f"`{text}` is no name for the result", hint="write: ocis2i rebuild IMAGE NEW-TAG"
        )
    return str(location.reference) if location.explicit else text


def _as_recorded(spec: BuildSpec, plan: Rebuild, here: Context) -> BuildSpec:
    return replace(
        spec,
        source=parse_source(
            plan.source,
            cwd=here.tools.cwd,
            ref=plan.ref,
            context_dir=plan.context_dir,
            copy=plan.copy,
        ),
        builder=parse_location(plan.builder),
        description=plan.description,
        application_name=plan.application_name,
    )
