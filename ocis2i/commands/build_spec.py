"""What the flags of build and rebuild ask for, as one value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime

from ocis2i.allowed_hosts import AllowList, parse_allow_host
from ocis2i.commands.build_flags import BuildFlags, CommonBuildFlags
from ocis2i.commands.context import Context
from ocis2i.compression import Compression, check_level
from ocis2i.container_options import parse_add_host, parse_cap_drop, parse_network
from ocis2i.errors import UsageError
from ocis2i.images import PullPolicy
from ocis2i.limits import parse_duration, parse_size
from ocis2i.mappings import PathPair, parse_mappings
from ocis2i.outputs import parse_output
from ocis2i.reference import Reference, parse_location, parse_registry_name
from ocis2i.remote_cache import CacheSpec
from ocis2i.runner import Network
from ocis2i.s2i import (
    Start,
    absolute_flag,
    parse_start,
    parse_variable,
    parse_variable_file,
    user_flag,
)
from ocis2i.settings import LAST_SECOND, Settings
from ocis2i.sources import parse_source
from ocis2i.spec import BuildSpec, RuntimeSpec, SecretSpec
from ocis2i.uids import parse_uid_ranges
from ocis2i.volumes import parse_volume

_FILE_LIMIT = 1 << 20


def build_spec(flags: BuildFlags, here: Context) -> BuildSpec:
    """All that `build` was asked for. Raises `UsageError` for what no flag can mean."""
    spec = common_spec(flags, here, builder=flags.builder or "", tag=flags.tag)
    return replace(
        spec,
        source=flags.parsed(flags.source or "", here.tools.cwd, depth=flags.depth),
        scripts_url=flags.scripts_url,
        assemble_user=user_flag(flags.assemble_user, "--assemble-user"),
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
        user=user_flag(flags.assemble_runtime_user, "--assemble-runtime-user"),
        run_nothing=not flags.assemble_runtime,
    )


def _pairs(texts: list[str] | None, flag: str) -> tuple[PathPair, ...]:
    return tuple(pair for text in texts or () for pair in parse_mappings(text, flag))


def common_spec(
    flags: CommonBuildFlags, here: Context, *, builder: str, tag: str | None
) -> BuildSpec:
    """A spec of all but the source and what only `build` has flags for.

    Of the result's names the first one counts, where only one can: `tag`, else the first `--tag`.
    """
    tags = [*([tag] if tag else []), *(flags.tags or ())]
    names = tuple(dict.fromkeys(Reference.parse(text).with_default_tag() for text in tags))
    settings = here.tools.settings
    clamp = _seconds(flags.timestamp, settings)
    kind, level = _compression(flags.compression, flags.compression_level)
    network, warning = parse_network(flags.network)
    if warning:
        here.recorder.warn(warning)
    environment = _environment(flags, here)
    build_environment = _build_environment(flags.build_env, settings.environment)
    parameters = None
    if flags.parameter or flags.parameters_file:
        from ocis2i.commands.given import read_parameters  # noqa: PLC0415 - few builds load it

        chosen = {
            **dict.fromkeys(environment, "-e"),
            **dict.fromkeys(build_environment, "--build-env"),
        }
        parameters = read_parameters(flags, here, chosen)
    injections = _pairs(flags.inject, "--inject")
    if injections:
        from ocis2i.injections import check_injections  # noqa: PLC0415 - few builds load it

        check_injections(injections, cwd=here.tools.cwd)
    return BuildSpec(
        source=parse_source(".", cwd=here.tools.cwd, copy=True),
        builder=parse_location(builder),
        created=datetime.now(UTC) if clamp is None else datetime.fromtimestamp(clamp, UTC),
        tag=tags[0] if tags else None,
        name=names[0] if names else None,
        more_names=names[1:],
        push=flags.push,
        outputs=tuple(map(parse_output, flags.output or ())),
        platform=flags.wanted_platform,
        pull_policy=PullPolicy.parse(flags.pull_policy),
        environment=environment,
        parameters=parameters,
        secrets=SecretSpec(
            injections=injections,
            environment=build_environment,
            host_mirrors=flags.host_mirrors,
            keep_names=flags.injection_names,
            allow_leaks=flags.allow_leaks,
        ),
        mounts=tuple(map(parse_volume, flags.volume or ())),
        cap_drop=parse_cap_drop(flags.cap_drop or ()),
        limits=flags.limits,
        hardening=flags.hardening,
        network=network,
        allowed_hosts=_allowed_hosts(_wanted_hosts(flags, network), network),
        add_hosts=tuple(map(parse_add_host, flags.add_host or ())),
        destination=absolute_flag(flags.destination, "--destination"),
        ignore_onbuild=flags.ignore_onbuild,
        via_entrypoint=flags.via_entrypoint,
        incremental=flags.incremental,
        cache=_cache(flags),
        previous_pull_policy=PullPolicy.parse(flags.previous_policy),
        keep_entrypoint=flags.keep_entrypoint,
        start=_start(flags),
        prune_upload=flags.prune_upload,
        save_upload=flags.save_temp_dir,
        shell_on_failure=flags.shell_on_failure,
        keep_failed=flags.keep_failed,
        size_budget=parse_size(flags.size_budget, "--size-budget"),
        keep_blobs=flags.keep_blobs or settings.keep_blobs,
        clamp_seconds=clamp,
        compression=kind,
        compression_level=level,
        isolation=flags.wanted_isolation,
        reuse_seconds=_reuse_seconds(flags, settings),
    )


def _start(flags: CommonBuildFlags) -> Start:
    start = parse_start(flags.start, flags.args)
    if flags.keep_entrypoint and start.where == "entrypoint":
        raise UsageError(
            "--keep-entrypoint and --start entrypoint exclude each other",
            hint="an image has one Entrypoint: the base's, or the run script",
        )
    return start


def _reuse_seconds(flags: CommonBuildFlags, settings: Settings) -> float | None:
    seconds = parse_duration(flags.reuse_within, "--reuse-within")
    return None if flags.no_cache or settings.no_cache else seconds


def _cache(flags: CommonBuildFlags) -> CacheSpec | None:
    if flags.cache_from is None and flags.cache_to is None:
        if "cache_ttl" in flags.given:
            raise UsageError(
                "--cache-ttl has no meaning without --cache-to", hint="name the place to save to"
            )
        return None
    target = parse_registry_name(flags.cache_to) if flags.cache_to is not None else None
    if target and target.digest:
        raise UsageError(
            f"--cache-to `{target}` has a digest, which is not known yet",
            hint="leave out the part from `@` on",
        )
    source = parse_registry_name(flags.cache_from) if flags.cache_from is not None else None
    seconds = parse_duration(flags.cache_ttl, "--cache-ttl") or 0
    return CacheSpec(datetime.now(UTC), source, target, seconds)


def _wanted_hosts(flags: CommonBuildFlags, network: Network) -> list[str] | None:
    """Those of the user's settings are for the proxy, wherever that is in between."""
    given = network == "proxy" or "allow_host" in flags.given
    return flags.allow_host if given else None


def _allowed_hosts(texts: list[str] | None, network: Network) -> AllowList:
    if texts and network != "proxy":
        raise UsageError(
            f"--allow-host has no meaning with --network {network}",
            hint="add --network proxy, or leave it out",
        )
    return AllowList(tuple(map(parse_allow_host, texts or ())), open=not texts)


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
            f"the environment file `{flags.environment_file}` cannot be read: {error.strerror}",
            hint="name a file that is there and that you may read",
        ) from error
    except UnicodeDecodeError:
        raise UsageError(
            f"the environment file `{flags.environment_file}` is not UTF-8",
            hint="write it in UTF-8, a line NAME=VALUE each",
        ) from None
    if len(data) > _FILE_LIMIT:
        raise UsageError(
            f"the environment file `{flags.environment_file}` is over 1 MiB",
            hint="variables of that size are no variables: give a file with --volume or --inject",
        )
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
