"""The story of a build, from a source and a builder image to a delivered image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING

from ocis2i.allowed_hosts import AllowList
from ocis2i.container import (
    Failed,
    Job,
    Site,
    Surroundings,
    check_script,
    choose_runner,
    identify,
    make_working_directory,
    run_stage,
)
from ocis2i.errors import UsageError
from ocis2i.events import LastLines, stage
from ocis2i.images import Obtained
from ocis2i.in_place import occupy, warn, warn_of_credentials
from ocis2i.incremental import (
    Restored,
    plan_saving,
    restore,
    save_for_later,
    save_to_registry,
)
from ocis2i.inputs import Inputs, gather, save_upload
from ocis2i.isolation.agent import Ahead
from ocis2i.isolation.network import Uplink, connected
from ocis2i.isolation.oci_runtime import MOUNT_TARGETS
from ocis2i.lazy_dataclass import dataclass
from ocis2i.limits import counted
from ocis2i.manifest import Encoded, Image, encode_image
from ocis2i.outputs import Delivered
from ocis2i.refusals import refuse
from ocis2i.result import (
    check_budget,
    compose,
    deliver_result,
    facts_of,
    image_labels,
    push_early,
    put_names,
    store_result,
    write_layer,
)
from ocis2i.rootfs import Changes, Rootfs, Upload, prepare
from ocis2i.runner import BindMount, RunResult
from ocis2i.s2i import Identity
from ocis2i.session import Session, session
from ocis2i.spec import BuildSpec
from ocis2i.tools import Tools

if TYPE_CHECKING:
    from ocis2i.early_push import EarlyPush
    from ocis2i.extended import RuntimeImage
    from ocis2i.proxy import ProxyVariables
    from ocis2i.unchanged import Question


@dataclass(frozen=True, slots=True)
class BuildResult:
    """A finished build. `base` is what the new layer lies on: the builder or the runtime image."""

    image: Image
    encoded: Encoded
    builder: Obtained
    base: Obtained
    changes: Changes
    assemble: RunResult
    restored: Restored | None
    isolation: str
    delivered: tuple[Delivered, ...]
    pushed: bool
    cached: Delivered | None
    unchanged_since: datetime | None = None


def build(spec: BuildSpec, tools: Tools, ahead: Ahead | None = None) -> BuildResult:
    """Builds an image, by the agent `ahead` where that one fits. Raises an `Ocis2iError`.

    The store has the image once it is whole, also when an output or the push fails afterwards.
    """
    check(spec)
    question = _ask(spec, tools)
    again = _use_again(question, spec, tools, ahead) if question else None
    return again or _build(spec, tools, ahead, question)


def _build(
    spec: BuildSpec, tools: Tools, ahead: Ahead | None, question: Question | None
) -> BuildResult:
    place = session(
        tools.store, tools.settings, tools.report, isolation=spec.isolation, ahead=ahead
    )
    with place as here, ExitStack() as guard:
        if here.weak:
            refuse(here.weak, spec)
        if here.in_place:
            warn_of_credentials(tools.places.registry.credential_files, tools.report)
        inputs = gather(spec, here, tools)
        _read_beside(question, guard)
        guard.enter_context(inputs.hidden.guard())
        uplink = guard.enter_context(_uplink(spec, inputs, here, tools))
        site = _site(spec, inputs, uplink, here, tools)
        saving = plan_saving(site, spec, inputs.builder, inputs.scripts, inputs.hidden)
        restored = restore(saving)
        if spec.save_upload:
            save_upload(here.directory / "upload", tools)
        layers = counted(len(inputs.layers), "layer")
        with stage(site.report, "prepare", f"{layers}, {site.runner.name}"):
            rootfs = _tree(inputs, site)
            job = _plan_assemble(spec, inputs, restored, rootfs)
            rootfs.mount()
        early = push_early(spec, inputs, tools, guard)
        ran = run_stage(site, rootfs, job, "assemble", detail=inputs.scripts["assemble"].url)
        cached = None
        if inputs.runtime:
            cached = save_for_later(saving, job, rootfs)
            rootfs = _move_to(inputs.runtime, inputs, rootfs, site, job)
        # Where artifacts are saved from it afterwards the tree is looked at again.
        last = bool(inputs.runtime or not saving.cache)
        image, encoded, changes = _make_image(spec, inputs, rootfs, site, early, last=last)
        with stage(site.report, "store", spec.tag or "untagged"):
            store_result(spec, inputs, encoded, tools.store)
            if question:
                question.remember(inputs, encoded, changes, site.runner.name, here.agent.ground.ids)
        tools.store.note_emptied(here.directory, changes.entries)
        if last:
            here.begin_to_empty()
        facts = facts_of(inputs.builder, changes, site.runner.name, restored)
        delivered, pushed = deliver_result(
            spec, inputs.base, image, encoded, tools, facts=facts, early=early
        )
        if not inputs.runtime:
            cached = save_to_registry(saving, encoded.descriptor.digest)
    return BuildResult(
        image=image,
        encoded=encoded,
        builder=inputs.builder,
        base=inputs.base,
        changes=changes,
        assemble=ran,
        restored=restored,
        isolation=site.runner.name,
        delivered=delivered,
        pushed=pushed,
        cached=cached,
    )


def _make_image(
    spec: BuildSpec,
    inputs: Inputs,
    rootfs: Rootfs,
    site: Site,
    early: EarlyPush | None,
    *,
    last: bool,
) -> tuple[Image, Encoded, Changes]:
    """The base with what has changed, its layer's blob in the store."""
    labels = image_labels(spec, inputs, rootfs)
    with stage(site.report, "layer"):
        if spec.prune_upload:
            _prune_upload(inputs, rootfs)
        layer, changes = write_layer(spec, inputs, rootfs, site, early, last=last)
        image = compose(spec, inputs, layer, labels)
        encoded = encode_image(image)
        inputs.hidden.check(encoded.config, site.report)
    return image, encoded, changes


def _ask(spec: BuildSpec, tools: Tools) -> Question | None:
    from ocis2i.unchanged import ask  # noqa: PLC0415 - it stands on this module's own parts

    return ask(spec, tools)


def _read_beside(question: Question | None, guard: ExitStack) -> None:
    """Begins to read the source again, for the next build to know it by: assemble takes longer."""
    if question:
        guard.callback(question.give_up)
        question.read_source()


def _use_again(
    question: Question, spec: BuildSpec, tools: Tools, ahead: Ahead | None
) -> BuildResult | None:
    """Gives the finished image of the same input the names of this build, and delivers it.

    `None`: there is no such image.
    """
    with tools.store.in_use():
        found = question.answer()
        if found is None:
            return None
        if ahead:
            ahead.give_up()
        check_budget(spec, found.changes, found.image.layers[-1], tools.store)
        with stage(tools.report, "unchanged", found.since_when):
            put_names(spec, found.encoded, found.base.origin, found.built, tools.store)
        facts = facts_of(found.builder, found.changes, found.isolation)
        delivered, pushed = deliver_result(
            spec, found.base, found.image, found.encoded, tools, facts=facts
        )
    return BuildResult(
        image=found.image,
        encoded=found.encoded,
        builder=found.builder,
        base=found.base,
        changes=found.changes,
        assemble=RunResult(0, 0.0),
        restored=None,
        isolation=found.isolation,
        delivered=delivered,
        pushed=pushed,
        cached=None,
        unchanged_since=found.since,
    )


def _move_to(runtime: RuntimeImage, inputs: Inputs, rootfs: Rootfs, site: Site, job: Job) -> Rootfs:
    """Takes what assemble made to the tree of the runtime image."""
    from ocis2i.extended import move  # noqa: PLC0415 - few builds load it

    return move(site, runtime, rootfs, inputs.environment(runtime.obtained), job.more)


def check(spec: BuildSpec) -> None:
    """Raises `UsageError` for wishes that contradict each other."""
    if spec.push and spec.name is None:
        raise UsageError("--push needs a name to push to", hint="give the tag as third argument")
    for name in spec.names:
        if name.digest:
            raise UsageError(
                f"the result cannot be named `{name}`: its digest is not known yet",
                hint="leave out the part from `@` on",
            )


def _uplink(
    spec: BuildSpec, inputs: Inputs, here: Session, tools: Tools
) -> AbstractContextManager[Uplink]:
    return connected(
        here.agent,
        here.directory,
        spec.network,
        _allowed(spec, inputs),
        environment=tools.settings.environment,
        add_hosts=spec.add_hosts,
        report=inputs.hidden.masked(tools.report),
    )


def _allowed(spec: BuildSpec, inputs: Inputs) -> AllowList:
    """The hosts of the user, and those that the host's mirrors are on."""
    wanted = spec.allowed_hosts
    return replace(wanted, rules=(*wanted.rules, *inputs.hidden.mirror_hosts))


def _site(spec: BuildSpec, inputs: Inputs, uplink: Uplink, here: Session, tools: Tools) -> Site:
    mounts = here.network_files(spec.add_hosts, spec.network)
    tail = LastLines(tools.report)
    return Site(
        here=here,
        runner=choose_runner(here, spec.isolation, spec.hardening, tools.report),
        around=Surroundings(
            (*mounts, *spec.mounts, *inputs.hidden.mounts),
            spec.cap_drop,
            spec.network,
            spec.limits,
            spec.hardening,
            netns=uplink.netns,
            proxied=_proxied(spec, inputs) if uplink.proxy else None,
        ).fitted(here),
        places=tools.places,
        settings=tools.settings,
        report=inputs.hidden.masked(tail),
        tail=tail,
        on_failure=_on_failure(spec),
    )


def _on_failure(spec: BuildSpec) -> Callable[[Failed], None] | None:
    """What is done with the tree of a script that failed."""
    if not (spec.shell_on_failure or spec.keep_failed):
        return None

    def care(failed: Failed) -> None:
        if spec.keep_failed:
            from ocis2i.kept import keep  # noqa: PLC0415 - few builds load it

            keep(failed, spec)
        if spec.shell_on_failure:
            from ocis2i.failed_shell import open_shell  # noqa: PLC0415 - few builds load it

            open_shell(failed)

    return care


def _proxied(spec: BuildSpec, inputs: Inputs) -> ProxyVariables:
    from ocis2i.proxy import ProxyVariables, direct_hosts  # noqa: PLC0415 - few builds load it

    given = (*spec.secrets.environment, *inputs.build_parameters)
    chosen = frozenset((*inputs.user_environment, *given))
    return ProxyVariables(direct_hosts(_allowed(spec, inputs)), chosen)


def _tree(inputs: Inputs, site: Site) -> Rootfs:
    """What assemble sees and changes: the builder's layers, or the container that we are in."""
    here = site.here
    if not here.in_place:
        mounts = site.around.mounts
        return prepare(here.agent, here.directory, inputs.layers, mounts, kind=here.rootfs)
    rootfs = occupy(here.agent, here.directory, site.places.store.root)
    runtime = inputs.builder.image.config.runtime
    warn(
        inputs.builder.name,
        runtime.env,
        (inputs.contract.destination, runtime.working_dir or "/"),
        rootfs=rootfs,
        environment=site.settings.environment,
        report=site.report,
    )
    return rootfs


def _plan_assemble(
    spec: BuildSpec, inputs: Inputs, restored: Restored | None, rootfs: Rootfs
) -> Job:
    """Puts source, scripts, artifacts and secrets into place and says what is to run."""
    runtime = inputs.builder.image.config.runtime
    identity = identify(spec.assemble_user or inputs.contract.assemble_user or runtime.user, rootfs)
    cwd = runtime.working_dir or "/"
    for name in inputs.required_scripts:
        check_script(inputs.scripts[name], inputs.builder.name, rootfs)
    destination = inputs.contract.destination
    names = ("src", "scripts", "artifacts") if restored else ("src", "scripts")
    _check_visible(destination, names, spec.mounts)
    rootfs.place(
        [
            Upload(f"upload/{name}", f"{destination}/{name}", identity.uid, identity.gid)
            for name in names
        ]
    )
    make_working_directory(cwd, rootfs)
    injected = _inject(spec, inputs, identity, rootfs) if inputs.hidden.injected else ()
    place = inputs.scripts["assemble"]
    entrypoint = (runtime.entrypoint or ()) if spec.via_entrypoint else ()
    environment = inputs.environment(inputs.builder)
    more = {**inputs.build_parameters, **inputs.hidden.environment}
    if spec.clamp_seconds is not None and "SOURCE_DATE_EPOCH" not in _names(environment):
        more.setdefault("SOURCE_DATE_EPOCH", str(spec.clamp_seconds))
    argv = (*entrypoint, place.path_in_image)
    return Job(argv, rootfs.acting(identity), cwd, environment, more, injected, place)


def _inject(
    spec: BuildSpec, inputs: Inputs, identity: Identity, rootfs: Rootfs
) -> tuple[BindMount, ...]:
    from ocis2i.injections import RESERVED  # noqa: PLC0415 - few builds load it

    scripts = [place.path_in_image for place in inputs.scripts.places.values()]
    return rootfs.inject(
        inputs.hidden.injected,
        uid=identity.uid,
        gid=identity.gid,
        keep_names=spec.secrets.keep_names,
        reserved=(*RESERVED, *scripts),
    )


def _check_visible(destination: str, names: Sequence[str], mounts: Sequence[BindMount]) -> None:
    """Refuses a destination that a mount hides: the script would not find its source."""
    hiding = (*MOUNT_TARGETS, *(mount.target for mount in mounts))
    for name in names:
        path = f"{destination}/{name}/"
        for target in hiding:
            if path.startswith(f"{target}/"):
                raise UsageError(
                    f"`{target}` is mounted in the container and would hide `{destination}/{name}`",
                    hint="choose another --destination, or another place for the volume",
                )


def _names(environment: tuple[str, ...]) -> set[str]:
    return {entry.partition("=")[0] for entry in environment}


def _prune_upload(inputs: Inputs, rootfs: Rootfs) -> None:
    """Takes source and artifacts out of the result, where assemble left any."""
    if inputs.runtime is None:
        for name in ("src", "artifacts"):
            rootfs.remove(f"{inputs.contract.destination}/{name}")
