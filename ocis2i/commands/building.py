"""The verbs that make an image: build and rebuild."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Annotated

import typer

from ocis2i.build import BuildResult, build
from ocis2i.callback import check_callback_url
from ocis2i.commands.context import (
    Context,
    State,
    context,
    print_json,
    working_directory,
)
from ocis2i.commands.flags import (
    ContainerFlags,
    DockerFlags,
    JsonFlags,
    PlatformFlags,
    PullFlags,
    TalkFlags,
    option,
)
from ocis2i.compression import Compression, check_level
from ocis2i.container_options import parse_add_host, parse_cap_drop, parse_network
from ocis2i.documents import result_document
from ocis2i.errors import Ocis2iError, ScriptError, UsageError
from ocis2i.events import ScriptOutput
from ocis2i.export import DEFAULT_IMAGE_SCRIPTS_URL, ExportSpec, RuntimeExport, export
from ocis2i.images import PullPolicy, obtain
from ocis2i.launch import LaunchSpec, launch
from ocis2i.mappings import PathPair, parse_mappings
from ocis2i.outputs import parse_output
from ocis2i.prune import discard
from ocis2i.rebuild import Rebuild, plan_rebuild, refuse_local_places
from ocis2i.reference import (
    Location,
    Platform,
    Reference,
    RegistryLocation,
    StoredLocation,
    parse_location,
)
from ocis2i.report import printable
from ocis2i.runner import Stdio
from ocis2i.s2i import absolute_flag, parse_variable, parse_variable_file
from ocis2i.s2ifile import command_line, merge, restore, save
from ocis2i.settings import LAST_SECOND, Settings
from ocis2i.sources import DEFAULT_EXCLUDE, parse_source
from ocis2i.spec import BuildSpec, RuntimeSpec, SecretSpec
from ocis2i.uids import parse_uid_ranges
from ocis2i.volumes import parse_volume

_POLICIES = "always, never or if-not-present."
_FILE_LIMIT = 1 << 20


@dataclass(frozen=True, kw_only=True)
class CommonBuildFlags(ContainerFlags, PullFlags, PlatformFlags, TalkFlags, JsonFlags, DockerFlags):
    """What `build` and `rebuild` have alike."""

    incremental: Annotated[
        bool, option("--incremental", help="Go on from what the last build of the tag saved.")
    ] = False
    remove_previous: Annotated[
        bool, option("--rm", help="After an incremental build, delete the previous image.")
    ] = False
    previous_policy: Annotated[
        str,
        option(
            "--incremental-pull-policy",
            metavar="POLICY",
            help=f"When to ask for the previous image: {_POLICIES}",
        ),
    ] = "if-not-present"
    runtime_policy: Annotated[
        str,
        option(
            "--runtime-pull-policy",
            metavar="POLICY",
            help=f"When to ask for the runtime image: {_POLICIES}",
        ),
    ] = "if-not-present"
    callback_url: Annotated[
        str | None,
        option("--callback-url", metavar="URL", help="POST success and labels there at the end."),
    ] = None
    save_temp_dir: Annotated[
        bool, option("--save-temp-dir", help="Keep a copy of what went into the container.")
    ] = False
    destination: Annotated[
        str | None,
        option("--destination", "-d", metavar="DIR", help="Where source and scripts go."),
    ] = None
    environment_file: Annotated[
        str | None,
        option(
            "--environment-file", "-E", metavar="FILE", help="Variables, a line each; --env wins."
        ),
    ] = None
    build_env: Annotated[
        list[str] | None,
        option(
            "--build-env",
            metavar="NAME[=VALUE]",
            help="A variable for the build's scripts that the image never gets; without a "
            "value, the caller's; repeatable.",
        ),
    ] = None
    inject: Annotated[
        list[str] | None,
        option(
            "--inject",
            "-i",
            metavar="SRC[:DST]",
            help="Files that assemble sees and the image never gets; repeatable.",
        ),
    ] = None
    injection_names: Annotated[
        bool,
        option(
            "--injection-names/--no-injection-names",
            help="Whether injected files stay in the image as empty files.",
        ),
    ] = True
    allow_leaks: Annotated[
        bool,
        option("--allow-leaks", help="Build even if an injected value is in the layer or the log."),
    ] = False
    host_mirrors: Annotated[
        bool,
        option(
            "--host-mirrors",
            help="Give the build, not the image, this host's package mirrors, proxies and CAs.",
        ),
    ] = False
    cap_drop: Annotated[
        list[str] | None,
        option("--cap-drop", metavar="NAME", help="A capability to drop, or ALL; repeatable."),
    ] = None
    network: Annotated[
        str | None, option("--network", metavar="MODE", help="host or none. Default: host.")
    ] = None
    add_host: Annotated[
        list[str] | None,
        option("--add-host", metavar="HOST:IP", help="A line for /etc/hosts; repeatable."),
    ] = None
    push: Annotated[bool, option("--push", help="Push the result to its registry.")] = False
    output: Annotated[
        list[str] | None,
        option(
            "--output",
            "-o",
            metavar="TRANSPORT:PATH",
            help="Write the result to oci:, oci-archive: or docker-archive: too; repeatable.",
        ),
    ] = None
    keep_entrypoint: Annotated[
        bool, option("--keep-entrypoint", help="Keep the base image's Entrypoint, as s2i does.")
    ] = False
    via_entrypoint: Annotated[
        bool, option("--via-entrypoint", help="Run assemble through the builder's Entrypoint.")
    ] = False
    prune_upload: Annotated[
        bool, option("--prune-upload", help="Leave uploaded source and artifacts out of the image.")
    ] = False
    ignore_onbuild: Annotated[
        bool,
        option("--ignore-onbuild", help="Use a builder's scripts although it has ONBUILD."),
    ] = False
    timestamp: Annotated[
        str | None,
        option(
            "--timestamp",
            metavar="SECONDS",
            help="Latest time in the image, for repeatable digests; beats SOURCE_DATE_EPOCH.",
        ),
    ] = None
    compression: Annotated[
        str, option("--compression", metavar="NAME", help="gzip, zstd or none.")
    ] = "gzip"
    compression_level: Annotated[
        int | None,
        option("--compression-level", help="0 to 9 for gzip, 1 to 19 for zstd."),
    ] = None


@dataclass(frozen=True, kw_only=True)
class BuildFlags(CommonBuildFlags):
    """`build`."""

    source: Annotated[
        str | None,
        typer.Argument(help="A directory, git URL or archive, - for an archive on stdin; #REF."),
    ] = None
    builder: Annotated[
        str | None,
        typer.Argument(help="The S2I builder image: a name, or oci:, oci-archive:, ..."),
    ] = None
    tag: Annotated[str | None, typer.Argument(help="The name of the result.")] = None
    ref: Annotated[
        str | None, option("--ref", "-r", help="Branch, tag, commit or pull request to build.")
    ] = None
    depth: Annotated[
        int | None,
        option("--depth", metavar="N", min=1, help="Clone no more than the last N commits."),
    ] = None
    context_dir: Annotated[
        str | None, option("--context-dir", metavar="DIR", help="Directory in the source.")
    ] = None
    copy: Annotated[
        bool, option("--copy", "-c", help="Copy a local directory even if it is a clone.")
    ] = False
    exclude: Annotated[
        str, option("--exclude", metavar="REGEX", help="Files of the source to leave out.")
    ] = DEFAULT_EXCLUDE
    keep_symlinks: Annotated[
        bool, option("--keep-symlinks", help="When copying, copy links as links.")
    ] = False
    ignore_submodules: Annotated[
        bool, option("--ignore-submodules", help="Leave git submodules out.")
    ] = False
    scripts_url: Annotated[
        str | None,
        option(
            "--scripts-url",
            "-s",
            metavar="URL",
            help="Where the scripts are: image:///DIR, file:///DIR or https://HOST/DIR.",
        ),
    ] = None
    scripts: Annotated[
        str | None, option("--scripts", metavar="URL", help="Deprecated: --scripts-url.")
    ] = None
    image_scripts_url: Annotated[
        str,
        option(
            "--image-scripts-url",
            metavar="URL",
            help="Where an image without a label has its scripts; for --as-dockerfile.",
        ),
    ] = DEFAULT_IMAGE_SCRIPTS_URL
    location: Annotated[
        str | None, option("--location", "-l", metavar="DIR", help="Deprecated: --destination.")
    ] = None
    assemble_user: Annotated[
        str | None, option("--assemble-user", metavar="USER", help="Who runs assemble.")
    ] = None
    assemble_runtime_user: Annotated[
        str | None,
        option("--assemble-runtime-user", metavar="USER", help="Who runs assemble-runtime."),
    ] = None
    allowed_uids: Annotated[
        str | None,
        option("--allowed-uids", "-u", metavar="RANGES", help="User IDs allowed, as 1-,5-10."),
    ] = None
    runtime_image: Annotated[
        str | None,
        option("--runtime-image", metavar="IMAGE", help="Put artifacts on this image instead."),
    ] = None
    runtime_artifact: Annotated[
        list[str] | None,
        option(
            "--runtime-artifact",
            "-a",
            metavar="SRC[:DST]",
            help="What goes from the builder to the runtime image; repeatable.",
        ),
    ] = None
    assemble_runtime: Annotated[
        bool,
        option(
            "--assemble-runtime/--no-assemble-runtime",
            help="Whether the runtime image's assemble-runtime runs, if it has one.",
        ),
    ] = True
    description: Annotated[
        str | None, option("--description", help="Label io.k8s.description.")
    ] = None
    application_name: Annotated[
        str | None, option("--application-name", "-n", help="Label io.k8s.display-name.")
    ] = None
    as_dockerfile: Annotated[
        str | None,
        option(
            "--as-dockerfile",
            metavar="PATH",
            help="Experimental: write a Dockerfile and its context instead of building.",
        ),
    ] = None
    run: Annotated[bool, option("--run", help="Run the result after the build.")] = False
    use_config: Annotated[
        bool, option("--use-config", help="Take arguments from .s2ifile, and save them there.")
    ] = False


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
        spec = _build_spec(flags, here)
        if State.when_valid:
            State.when_valid()
        if flags.as_dockerfile:
            _export(spec, flags, here)
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


def _build_spec(flags: BuildFlags, here: Context) -> BuildSpec:
    spec = _common_spec(flags, here, builder=flags.builder or "", tag=flags.tag)
    return replace(
        spec,
        source=parse_source(
            flags.source or "",
            cwd=here.tools.cwd,
            ref=flags.ref,
            context_dir=flags.context_dir,
            copy=flags.copy,
            exclude=flags.exclude,
            keep_symlinks=flags.keep_symlinks,
            ignore_submodules=flags.ignore_submodules,
            depth=flags.depth,
        ),
        scripts_url=flags.scripts_url,
        assemble_user=flags.assemble_user,
        allowed_uids=parse_uid_ranges(flags.allowed_uids or ""),
        description=flags.description,
        application_name=flags.application_name,
        runtime=_runtime(flags),
    )


def _runtime(flags: BuildFlags) -> RuntimeSpec | None:
    policy = PullPolicy.parse(flags.runtime_policy)
    if not flags.runtime_image:
        return None
    return RuntimeSpec(
        image=parse_location(flags.runtime_image),
        artifacts=_pairs(flags.runtime_artifact, "--runtime-artifact"),
        pull_policy=policy,
        user=flags.assemble_runtime_user,
        run_nothing=not flags.assemble_runtime,
    )


def _pairs(texts: list[str] | None, flag: str) -> tuple[PathPair, ...]:
    return tuple(pair for text in texts or () for pair in parse_mappings(text, flag))


def _common_spec(
    flags: CommonBuildFlags, here: Context, *, builder: str, tag: str | None
) -> BuildSpec:
    """A spec of all but the source and what only `build` has flags for."""
    settings = here.tools.settings
    clamp = _seconds(flags.timestamp, settings)
    kind, level = _compression(flags.compression, flags.compression_level)
    network, warning = parse_network(flags.network)
    if warning:
        here.recorder.warn(warning)
    return BuildSpec(
        source=parse_source(".", cwd=here.tools.cwd, copy=True),
        builder=parse_location(builder),
        created=datetime.now(UTC) if clamp is None else datetime.fromtimestamp(clamp, UTC),
        tag=tag,
        name=Reference.parse(tag).with_default_tag() if tag else None,
        push=flags.push,
        outputs=tuple(map(parse_output, flags.output or ())),
        platform=Platform.parse(flags.platform) if flags.platform else None,
        pull_policy=PullPolicy.parse(flags.pull_policy),
        environment=_environment(flags, here),
        secrets=SecretSpec(
            injections=_pairs(flags.inject, "--inject"),
            environment=_build_environment(flags.build_env, settings.environment),
            host_mirrors=flags.host_mirrors,
            keep_names=flags.injection_names,
            allow_leaks=flags.allow_leaks,
        ),
        mounts=tuple(map(parse_volume, flags.volume or ())),
        cap_drop=parse_cap_drop(flags.cap_drop or ()),
        network=network,
        add_hosts=tuple(map(parse_add_host, flags.add_host or ())),
        destination=absolute_flag(flags.destination, "--destination"),
        ignore_onbuild=flags.ignore_onbuild,
        via_entrypoint=flags.via_entrypoint,
        incremental=flags.incremental,
        previous_pull_policy=PullPolicy.parse(flags.previous_policy),
        keep_entrypoint=flags.keep_entrypoint,
        prune_upload=flags.prune_upload,
        save_upload=flags.save_temp_dir,
        clamp_seconds=clamp,
        compression=kind,
        compression_level=level,
        isolation=flags.isolation,
    )


def _environment(flags: CommonBuildFlags, here: Context) -> dict[str, str]:
    """`--environment-file`, then `--env`, which wins."""
    given = dict(map(parse_variable, flags.env or ()))
    if not flags.environment_file:
        return given
    path = here.tools.cwd / flags.environment_file
    try:
        with path.open("rb") as file:
            data = file.read(_FILE_LIMIT + 1)
        text = data.decode()
    except OSError as error:
        raise UsageError(
            f"the environment file `{flags.environment_file}` cannot be read: {error.strerror}"
        ) from error
    except UnicodeDecodeError:
        raise UsageError(f"the environment file `{flags.environment_file}` is not UTF-8") from None
    if len(data) > _FILE_LIMIT:
        raise UsageError(f"the environment file `{flags.environment_file}` is over 1 MiB")
    from_file = parse_variable_file(text, flags.environment_file)
    both = sorted(name for name in given if from_file.get(name, given[name]) != given[name])
    if both:
        here.recorder.warn(f"--env wins over --environment-file for {', '.join(both)}")
    return {**from_file, **given}


def _build_environment(texts: list[str] | None, environment: Mapping[str, str]) -> dict[str, str]:
    values: dict[str, str] = {}
    for text in texts or ():
        if "=" in text:
            name, value = parse_variable(text)
        elif text in environment:
            name, value = parse_variable(f"{text}={environment[text]}")
        else:
            raise UsageError(
                f"--build-env `{text}`: there is no such variable here",
                hint="set it, or write --build-env NAME=VALUE",
            )
        values[name] = value
    return values


def _seconds(timestamp: str | None, settings: Settings) -> int | None:
    if timestamp is None:
        return settings.source_date_epoch
    is_number = timestamp.isascii() and timestamp.isdigit() and len(timestamp) < 20
    if not is_number or int(timestamp) > LAST_SECOND:
        raise UsageError(
            f"--timestamp is `{timestamp[:40]}`", hint="it must be a number of seconds since 1970"
        )
    return int(timestamp)


def _compression(name: str, level: int | None) -> tuple[Compression, int | None]:
    try:
        kind = Compression(name)
    except ValueError:
        known = ", ".join(one.value for one in Compression)
        raise UsageError(f"unknown compression `{name}`", hint=f"there are {known}") from None
    check_level(kind, level)
    return kind, level


# --- carrying it out --------------------------------------------------------------------------


def _run_build(
    spec: BuildSpec, flags: CommonBuildFlags, here: Context, *, run: bool = False
) -> None:
    with here.web() as web:
        try:
            result = build(spec, replace(here.tools, download=web.download))
        except Ocis2iError:
            if flags.callback_url:
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
        wishes = LaunchSpec(isolation=spec.isolation, cap_drop=spec.cap_drop)
        tools = here.tools
        ran = launch(image, wishes, here.store, tools.settings, here.recorder, stdio=stdio)
    if ran.exit_code:
        raise ScriptError(
            f"the image ran and ended with exit code {ran.exit_code}",
            script_exit_code=ran.exit_code,
            reason="RunFailed",
        )


def _export(spec: BuildSpec, flags: BuildFlags, here: Context) -> None:
    runtime = spec.runtime
    wanted = ExportSpec(
        source=spec.source,
        builder=spec.builder,
        tag=spec.tag,
        platform=spec.platform,
        pull_policy=spec.pull_policy,
        environment=spec.environment,
        secret_variables=tuple(spec.secrets.environment),
        injections=spec.secrets.injections,
        keep_names=spec.secrets.keep_names,
        mounts=spec.mounts,
        cap_drop=spec.cap_drop,
        network=spec.network,
        add_hosts=spec.add_hosts,
        scripts_url=spec.scripts_url,
        image_scripts_url=flags.image_scripts_url,
        destination=spec.destination,
        assemble_user=spec.assemble_user,
        allowed_uids=spec.allowed_uids,
        description=spec.description,
        application_name=spec.application_name,
        incremental=spec.incremental,
        runtime=RuntimeExport(
            image=runtime.image,
            artifacts=runtime.artifacts,
            pull_policy=runtime.pull_policy,
            user=runtime.user,
            run_nothing=runtime.run_nothing,
        )
        if runtime
        else None,
        via_entrypoint=spec.via_entrypoint,
        keep_entrypoint=spec.keep_entrypoint,
    )
    for name, given in (
        ("--host-mirrors", flags.host_mirrors),
        ("--prune-upload", flags.prune_upload),
        ("--push", flags.push),
        ("--output", bool(flags.output)),
        ("--callback-url", bool(flags.callback_url)),
        ("--rm", flags.remove_previous),
        ("--save-temp-dir", flags.save_temp_dir),
        ("--timestamp", flags.timestamp is not None),
        ("--compression", "compression" in flags.given),
        ("--allow-leaks", flags.allow_leaks),
        ("--isolation", flags.isolation is not None),
    ):
        if given:
            here.recorder.warn(f"{name} has no meaning with --as-dockerfile")
    write_dockerfile(
        wanted, flags.as_dockerfile or "", here, as_json=flags.as_json, quiet=flags.quiet
    )


def write_dockerfile(
    wanted: ExportSpec, path: str, here: Context, *, as_json: bool = False, quiet: bool = False
) -> None:
    """Writes a Dockerfile and its context, and says where it is."""
    tools = here.tools
    with here.web() as web, here.store.in_use():
        written = export(
            wanted,
            path,
            settings=tools.settings,
            places=tools.places,
            cwd=tools.cwd,
            download=web.download,
            stdin=tools.stdin,
        )
    if not quiet:
        sys.stderr.write(f"Application dockerfile generated in {written}\n")
    if as_json:
        print_json({"version": 1, "state": "succeeded", "dockerfile": str(written)})
    else:
        print(written)


# --- rebuild ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class RebuildFlags(CommonBuildFlags):
    """`rebuild`."""

    image: Annotated[str, typer.Argument(help="An image that s2i or ocis2i built.")]
    tag: Annotated[
        str | None, typer.Argument(help="The name of the result. Default: the image's.")
    ] = None


def rebuild_image(flags: RebuildFlags) -> None:
    """Build an image again, from the commit and the builder that its labels name."""
    if flags.callback_url:
        check_callback_url(flags.callback_url)
    with context(flags) as here:
        location = parse_location(flags.image)
        PullPolicy.parse(flags.runtime_policy)
        tag = flags.tag or _tag_of(location, flags.image)
        spec = _common_spec(flags, here, builder=flags.image, tag=tag)
        with here.store.in_use():
            found = obtain(
                location, spec.platform, spec.pull_policy, here.tools.places, layers=False
            )
        plan = plan_rebuild(flags.image, found.image.config.runtime)
        if here.store.built_from(found.manifest.descriptor.digest) != plan.source:
            refuse_local_places(flags.image, plan)
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
