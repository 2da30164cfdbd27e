"""The verb that makes an image again: rebuild."""

from dataclasses import replace
from typing import Annotated

import typer

from ocis2i.callback import check_callback_url
from ocis2i.commands.build_flags import CommonBuildFlags
from ocis2i.commands.build_spec import common_spec
from ocis2i.commands.build_work import run_build
from ocis2i.commands.context import Context, context
from ocis2i.errors import UsageError
from ocis2i.images import Layers, PullPolicy, obtain
from ocis2i.lazy_dataclass import dataclass
from ocis2i.rebuild import Rebuild, plan_rebuild, refuse_local_places
from ocis2i.reference import Location, RegistryLocation, parse_location
from ocis2i.s2i import Start, parse_start
from ocis2i.sources import parse_source
from ocis2i.spec import BuildSpec


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class RebuildFlags(CommonBuildFlags):
    """`rebuild`."""

    image: Annotated[str, typer.Argument(help="An image that s2i or ocis2i built.")]
    tag: Annotated[
        str | None, typer.Argument(help="The name of the result. Default: the image's.")
    ] = None


def rebuild_image(flags: RebuildFlags) -> None:
    if flags.callback_url:
        check_callback_url(flags.callback_url)
    with context(flags) as here:
        location = parse_location(flags.image)
        PullPolicy.parse(flags.runtime_policy)
        tag = flags.tag or (None if flags.tags else _tag_of(location, flags.image))
        spec = common_spec(flags, here, builder=flags.image, tag=tag)
        with here.store.in_use():
            places, policy = here.tools.places, spec.pull_policy
            found = obtain(location, spec.platform, policy, places, layers=Layers.ELSEWHERE)
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
        run_build(_as_recorded(spec, plan, flags, here), flags, here)


def _tag_of(location: Location, text: str) -> str:
    """The name of the result when none is given: the image's own."""
    if not isinstance(location, RegistryLocation):
        raise UsageError(
            f"`{text}` is no name for the result", hint="write: ocis2i rebuild IMAGE NEW-TAG"
        )
    return str(location.reference) if location.explicit else text


def _start(flags: RebuildFlags, plan: Rebuild) -> Start:
    """As recorded, but for what was typed; `--keep-entrypoint` leaves no other Entrypoint."""
    given = parse_start(flags.start, flags.args)
    where = given.where if flags.start or flags.keep_entrypoint else plan.start.where
    return Start(where, plan.start.arguments if flags.args is None else given.arguments)


def _as_recorded(spec: BuildSpec, plan: Rebuild, flags: RebuildFlags, here: Context) -> BuildSpec:
    if plan.parameters:
        from ocis2i.parameters import ParameterSpec, decode_given  # noqa: PLC0415 - few have any

        given = spec.parameters or ParameterSpec()
        spec = replace(spec, parameters=replace(given, recorded=decode_given(plan.parameters)))
    return replace(
        spec,
        source=parse_source(
            plan.source,
            cwd=here.tools.cwd,
            ref=plan.ref,
            context_dir=plan.context_dir,
            copy=plan.copy,
            type="auto" if plan.file_name is None else "file",
            name=plan.file_name,
        ),
        start=_start(flags, plan),
        builder=parse_location(plan.builder),
        description=plan.description,
        application_name=plan.application_name,
    )
