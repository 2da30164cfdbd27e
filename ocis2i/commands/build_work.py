"""Carries out `build`, once its flags make sense, and says what came of it."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

from ocis2i.build import BuildResult, build, check
from ocis2i.commands.build_flags import BuildFlags, CommonBuildFlags
from ocis2i.commands.build_spec import build_spec
from ocis2i.commands.context import Context, context, digest_file, result_file
from ocis2i.commands.recording import close_journal, open_journal, without_own
from ocis2i.commands.state import State, print_json
from ocis2i.commands.web import web
from ocis2i.documents import result_document
from ocis2i.errors import Interrupted, Ocis2iError, ScriptError, UsageError
from ocis2i.events import ScriptOutput
from ocis2i.images import PullPolicy, obtain
from ocis2i.isolation.agent import Ahead
from ocis2i.outputs.files import ResultFile
from ocis2i.reference import StoredLocation
from ocis2i.runner import Stdio
from ocis2i.spec import BuildSpec


def make_image(flags: BuildFlags, ahead: Ahead | None) -> None:
    """Builds by the agent `ahead`, or writes the Dockerfile of the build."""
    with context(flags) as here:
        flags = _without_aliases(flags, here)
        _warn_without_runtime(flags, here)
        spec = build_spec(flags, here)
        if State.when_valid:
            State.when_valid()
        if flags.as_dockerfile:
            from ocis2i.commands.exporting import export_build  # noqa: PLC0415 - few want it

            export_build(spec, flags, here)
        else:
            run_build(spec, flags, here, ahead=ahead, run=flags.run)


# What only a runtime image gives a meaning: upstream passes over it in silence.
_OF_RUNTIME = {
    "assemble_runtime_user": "--assemble-runtime-user",
    "runtime_artifact": "--runtime-artifact",
    "runtime_policy": "--runtime-pull-policy",
    "assemble_runtime": "--assemble-runtime",
}


def _warn_without_runtime(flags: BuildFlags, here: Context) -> None:
    given = [name for field, name in _OF_RUNTIME.items() if field in flags.given]
    if given and flags.runtime_image is None:
        here.recorder.warn(f"{', '.join(given)}: ignored without --runtime-image")


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


def run_build(
    spec: BuildSpec,
    flags: CommonBuildFlags,
    here: Context,
    *,
    ahead: Ahead | None = None,
    run: bool = False,
) -> None:
    """Builds, and says what came of it."""
    _check_terminal(spec)
    files = _result_files(flags, here)
    check(spec)
    spec = replace(spec, source=without_own(spec.source, flags, here.tools.cwd))
    open_journal(spec, flags, here)
    with web(here) as servers:
        try:
            result = build(spec, replace(here.tools, download=servers.download), ahead)
        except Ocis2iError as error:
            # Who stops a build wants it to end, and not to wait for a server: it did not fail.
            if flags.callback_url and not isinstance(error, Interrupted):
                servers.call_back(flags.callback_url, success=False, labels={})
            raise
        previous = result.restored.digest if result.restored else None
        same = previous == result.encoded.descriptor.digest
        if flags.remove_previous and previous and not same:
            from ocis2i.prune import discard  # noqa: PLC0415 - few builds load it

            discard(here.store, previous, here.recorder)
        messages: tuple[str, ...] = ()
        if flags.callback_url:
            labels = result.image.config.runtime.labels
            messages = servers.call_back(flags.callback_url, success=True, labels=labels)
    digest = result.encoded.descriptor.digest
    for file, value in zip(files, (digest, result.encoded.config_descriptor.digest), strict=True):
        if file:
            file.write(str(value))
    recorded = here.recorder
    document = close_journal(
        result_document(result, spec, recorded.stages, messages, recorded.network)
    )
    here.conclude(str(spec.name) if spec.name else None)
    _print_result(document, flags)
    if run:
        sys.stdout.flush()
        # The document is out: a second one, of how the image ended, would make it unreadable.
        State.as_json = False
        _run_result(result, spec, here)


def _print_result(document: dict[str, Any], flags: CommonBuildFlags) -> None:
    """On standard output, unless the last event had it there."""
    if flags.as_json:
        print_json(document)
    elif flags.events != "-":
        print(document["reference"] or document["digest"])


def _check_terminal(spec: BuildSpec) -> None:
    """Somebody has to sit there for a shell; raises `UsageError` before the build."""
    if spec.shell_on_failure:
        from ocis2i.failed_shell import check_terminal  # noqa: PLC0415 - few want it

        check_terminal()


def _result_files(
    flags: CommonBuildFlags, here: Context
) -> tuple[ResultFile | None, ResultFile | None]:
    """Where digest and image ID go; what cannot be written is said before the build."""
    if flags.digest_file and not flags.push:
        raise UsageError(
            "--digest-file has no meaning without --push",
            hint="add --push; --iidfile is for the image that was built",
        )
    return digest_file(flags, here), result_file(flags.iidfile, "--iidfile", here)


def _run_result(result: BuildResult, spec: BuildSpec, here: Context) -> None:
    """Runs the image that was just built; its output goes to standard error."""
    from ocis2i.launch import LaunchSpec, launch  # noqa: PLC0415 - few want it

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
        ran = launch(image, wishes, tools.places, tools.settings, stdio=stdio)
    if ran.exit_code:
        from ocis2i.causes import describe_exit  # noqa: PLC0415 - few want it

        raise ScriptError(
            f"the image ran and ended with {describe_exit(ran.exit_code)}",
            script_exit_code=ran.exit_code,
            hint=f"it was built and stored: `ocis2i run {spec.name or digest}` runs it again",
            reason="RunFailed",
        )
