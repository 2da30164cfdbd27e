"""The story of a build, from a source and a builder image to a delivered image."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from ocis2i.allowed_hosts import AllowList
from ocis2i.compression import compress
from ocis2i.container import (
    Job,
    Site,
    Surroundings,
    check_script,
    identify,
    make_working_directory,
    run_script,
)
from ocis2i.errors import ImageError, PolicyError, UsageError
from ocis2i.events import Notice, Report, stage
from ocis2i.extended import (
    RuntimeImage,
    RuntimeSearch,
    artifacts_of,
    move,
    obtain_runtime,
    plan_runtime,
)
from ocis2i.fs import explain
from ocis2i.hidden import Hidden, hide
from ocis2i.images import Blobs, Obtained, Places, blamed_on, obtain
from ocis2i.in_place import occupy, warn
from ocis2i.incremental import Restored, Saving, restore, save_for_later
from ocis2i.injections import RESERVED
from ocis2i.isolation.network import Uplink, connected
from ocis2i.isolation.oci_runtime import MOUNT_TARGETS
from ocis2i.manifest import (
    OCI_LAYER,
    Descriptor,
    Encoded,
    History,
    Image,
    Layer,
    append_layer,
    encode_image,
)
from ocis2i.outputs import Delivered, deliver
from ocis2i.proxy import Contacts, ProxyVariables, direct_hosts
from ocis2i.rebuild import IMAGE_LABEL
from ocis2i.refusals import refuse
from ocis2i.rootfs import Changes, Rootfs, Upload, prepare
from ocis2i.runner import BindMount, RunResult
from ocis2i.s2i import (
    IMAGE_METADATA_PATH,
    REQUIRED_SCRIPTS,
    SOURCE_LOCATION_LABEL,
    Contract,
    check_label_size,
    generated_labels,
    merge_environment,
    parse_image_metadata,
    read_contract,
    result_config,
)
from ocis2i.scripts import Download, ScriptSet, read_environment, resolve
from ocis2i.session import Session, session
from ocis2i.settings import Settings
from ocis2i.sources import SourceTree, fetch
from ocis2i.spec import BuildSpec
from ocis2i.store import LayerRecord, Store
from ocis2i.transfer import push_image
from ocis2i.uids import ASSEMBLE_RUNTIME, check_allowed
from ocis2i.unpack import unpack_layers


@dataclass(frozen=True, slots=True)
class Tools:
    """What a build works with; a test gives it others."""

    settings: Settings
    places: Places
    report: Report
    cwd: Path
    download: Download | None = None
    stdin: BinaryIO | None = None

    @property
    def store(self) -> Store:
        """Where images are kept."""
        return self.places.store


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
    contacts: Contacts | None
    delivered: tuple[Delivered, ...]
    pushed: bool


@dataclass(frozen=True, slots=True)
class _Inputs:
    """What is known before anything runs."""

    builder: Obtained
    contract: Contract
    tree: SourceTree
    scripts: ScriptSet
    user_environment: Mapping[str, str]
    layers: tuple[LayerRecord, ...]
    runtime: RuntimeImage | None
    hidden: Hidden

    @property
    def base(self) -> Obtained:
        """The image that the result adds its layer to."""
        return self.runtime.obtained if self.runtime else self.builder

    @property
    def required_scripts(self) -> tuple[str, ...]:
        """The scripts that the builder's container has to have."""
        return ("assemble",) if self.runtime else REQUIRED_SCRIPTS

    @property
    def run_script(self) -> str:
        """What the result starts."""
        scripts = self.runtime.scripts if self.runtime else self.scripts
        return scripts["run"].path_in_image

    def environment(self, image: Obtained) -> tuple[str, ...]:
        """The environment of `image` with the user's variables."""
        return merge_environment(image.image.config.runtime.env, self.user_environment)


def build(spec: BuildSpec, tools: Tools) -> BuildResult:
    """Builds an image. Raises an `Ocis2iError`.

    The store has the image once it is whole, also when an output or the push fails afterwards.
    """
    check(spec)
    place = session(tools.store, tools.settings, tools.report, isolation=spec.isolation)
    with place as here, ExitStack() as guard:
        if here.weak:
            refuse(here.weak, spec)
        inputs = _gather(spec, here, tools)
        guard.enter_context(inputs.hidden.guard())
        uplink = guard.enter_context(_uplink(spec, inputs, here, tools))
        site = _site(spec, inputs, uplink, here, tools)
        saving = Saving(
            site, spec, inputs.builder, inputs.scripts.get("save-artifacts"), inputs.hidden
        )
        restored = restore(saving)
        if spec.save_upload:
            _save_upload(here.directory / "upload", tools)
        with stage(site.report, "prepare", f"{len(inputs.layers)} layers, {site.runner.name}"):
            rootfs = _tree(inputs, site)
            job = _plan_assemble(spec, inputs, restored, rootfs)
            rootfs.mount()
        with stage(site.report, "assemble", inputs.scripts["assemble"].url):
            ran = run_script(site, rootfs, job)
        if inputs.runtime:
            save_for_later(saving, job, rootfs)
            environment = inputs.environment(inputs.runtime.obtained)
            rootfs = move(site, inputs.runtime, rootfs, environment, job.more)
        labels = _labels(spec, inputs, rootfs)
        with stage(site.report, "layer"):
            if spec.prune_upload:
                _prune_upload(inputs, rootfs)
            layer, changes = _write_layer(spec, inputs, rootfs, site)
            image = _compose(spec, inputs, layer, labels)
            encoded = encode_image(image)
            inputs.hidden.check(encoded.config, site.report)
        with stage(site.report, "store", spec.tag or "untagged"):
            name = str(spec.name) if spec.name else ""
            # Not of all labels: assemble may have written another place there.
            own = generated_labels(inputs.tree.info, builder=inputs.builder.name)
            tools.store.put_image(
                encoded,
                name,
                inputs.base.origin,
                built_from=own.get(SOURCE_LOCATION_LABEL, ""),
                built_with=own[IMAGE_LABEL],
            )
        delivered, pushed = _deliver(spec, inputs.base, image, encoded, tools)
    return BuildResult(
        image=image,
        encoded=encoded,
        builder=inputs.builder,
        base=inputs.base,
        changes=changes,
        assemble=ran,
        restored=restored,
        isolation=site.runner.name,
        contacts=uplink.contacts and uplink.contacts.masked(inputs.hidden.finder.mask),
        delivered=delivered,
        pushed=pushed,
    )


def check(spec: BuildSpec) -> None:
    """Raises `UsageError` for wishes that contradict each other."""
    if spec.push and spec.name is None:
        raise UsageError("--push needs a name to push to", hint="give the tag as third argument")
    if spec.name and spec.name.digest:
        raise UsageError(
            f"the result cannot be named `{spec.name}`: its digest is not known yet",
            hint="leave out the part from `@` on",
        )


# --- before anything runs ---------------------------------------------------------------------


def _gather(spec: BuildSpec, here: Session, tools: Tools) -> _Inputs:
    upload = here.directory / "upload"
    for name in ("src", "scripts"):
        (upload / name).mkdir(parents=True)
        (upload / name).chmod(0o755)  # whatever the umask of whoever builds
    with stage(tools.report, "fetch"):
        tree = fetch(
            spec.source,
            upload / "src",
            settings=tools.settings,
            report=tools.report,
            stdin=tools.stdin,
        )
    with stage(tools.report, "pull", str(spec.builder)), blamed_on("PullBuilderImageFailed"):
        builder = obtain(
            spec.builder,
            spec.platform,
            spec.pull_policy,
            tools.places,
            layers=not here.in_place,
        )
        contract = read_builder(spec, builder, tools.report)
    runtime = None
    if spec.runtime:
        with stage(tools.report, "pull-runtime", str(spec.runtime.image)):
            runtime = obtain_runtime(spec.runtime, spec, tools.places)
            artifacts_of(spec.runtime, runtime)
    check_users(spec, builder, runtime)
    scripts = resolve(
        contract.scripts_url,
        scripts_url_flag=spec.scripts_url,
        source=tree,
        into=upload / "scripts",
        wanted=("assemble",) if runtime else REQUIRED_SCRIPTS,
        optional=("save-artifacts", "run", "assemble-runtime") if runtime else ("save-artifacts",),
        destination=contract.destination,
        cwd=tools.cwd,
        report=tools.report,
        download=tools.download,
    )
    plan = None
    if spec.runtime and runtime:
        found = RuntimeSearch(tree, scripts, upload / "runtime-scripts", tools.cwd, tools.download)
        plan = plan_runtime(spec, spec.runtime, runtime, found, tools.report)
    layers: tuple[LayerRecord, ...] = ()
    if not here.in_place:
        with stage(tools.report, "unpack"):
            layers = unpack_layers(
                builder.image,
                tools.store,
                here.agent,
                tools.report,
                size_limit=tools.settings.layer_limit,
            )
    variables = {**read_environment(tree, tools.report).values, **spec.environment}
    workdir = builder.image.config.runtime.working_dir or "/"
    hidden = hide(
        spec.secrets,
        workdir,
        here.directory,
        here.agent,
        settings=tools.settings,
        cwd=tools.cwd,
        report=tools.report,
        chosen=spec.environment,
        proxies=spec.network != "proxy",
    )
    return _Inputs(builder, contract, tree, scripts, variables, layers, plan, hidden)


def read_builder(spec: BuildSpec, builder: Obtained, report: Report) -> Contract:
    """What the builder promises. Raises `PolicyError` for one that needs a Dockerfile build."""
    if builder.image.config.runtime.on_build and not spec.ignore_onbuild:
        raise PolicyError(
            f"the builder `{builder.name}` has ONBUILD instructions, which need a Dockerfile build",
            hint="use a builder without ONBUILD, or build its triggers into it first; "
            "--ignore-onbuild builds by its S2I scripts alone",
            reason="OnBuildForbidden",
        )
    return contract_of(spec, builder, report)


def contract_of(spec: BuildSpec, builder: Obtained, report: Report) -> Contract:
    """What the labels of the builder say, with the user's destination; tells of old labels."""
    contract = read_contract(builder.image.config)
    for sentence in contract.deprecated:
        report(Notice("warning", sentence))
    if spec.destination:
        return Contract(contract.scripts_url, spec.destination, contract.assemble_user)
    return contract


def check_users(spec: BuildSpec, builder: Obtained, runtime: Obtained | None) -> None:
    """Raises `PolicyError` for a user ID that the caller does not allow.

    Upstream drops what it finds for the runtime image.
    """
    check_allowed(
        spec.allowed_uids,
        builder.name,
        builder.image.config.runtime,
        script_user=spec.assemble_user,
        is_base=runtime is None,
    )
    if runtime and spec.runtime:
        check_allowed(
            spec.allowed_uids,
            runtime.name,
            runtime.image.config.runtime,
            role=ASSEMBLE_RUNTIME,
            script_user=spec.runtime.user,
        )


def _uplink(
    spec: BuildSpec, inputs: _Inputs, here: Session, tools: Tools
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


def _allowed(spec: BuildSpec, inputs: _Inputs) -> AllowList:
    """The hosts of the user, and those that the host's mirrors are on."""
    wanted = spec.allowed_hosts
    return replace(wanted, rules=(*wanted.rules, *inputs.hidden.mirror_hosts))


def _site(spec: BuildSpec, inputs: _Inputs, uplink: Uplink, here: Session, tools: Tools) -> Site:
    chosen = frozenset((*inputs.user_environment, *spec.secrets.environment))
    direct = direct_hosts(_allowed(spec, inputs))
    mounts = here.network_files(spec.add_hosts, spec.network)
    return Site(
        here=here,
        runner=here.runner(spec.isolation),
        around=Surroundings(
            (*mounts, *spec.mounts, *inputs.hidden.mounts),
            spec.cap_drop,
            spec.network,
            spec.limits,
            spec.hardening,
            netns=uplink.netns,
            proxied=ProxyVariables(direct, chosen) if uplink.proxy else None,
        ).fitted(here),
        places=tools.places,
        settings=tools.settings,
        report=inputs.hidden.masked(tools.report),
    )


# --- running ----------------------------------------------------------------------------------


def _tree(inputs: _Inputs, site: Site) -> Rootfs:
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
    spec: BuildSpec, inputs: _Inputs, restored: Restored | None, rootfs: Rootfs
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
    hidden = inputs.hidden
    injected = rootfs.inject(
        hidden.injected,
        uid=identity.uid,
        gid=identity.gid,
        keep_names=spec.secrets.keep_names,
        reserved=(*RESERVED, *(place.path_in_image for place in inputs.scripts.places.values())),
    )
    script = inputs.scripts["assemble"].path_in_image
    entrypoint = (runtime.entrypoint or ()) if spec.via_entrypoint else ()
    environment = inputs.environment(inputs.builder)
    more = dict(hidden.environment)
    if spec.clamp_seconds is not None and "SOURCE_DATE_EPOCH" not in _names(environment):
        more.setdefault("SOURCE_DATE_EPOCH", str(spec.clamp_seconds))
    return Job((*entrypoint, script), rootfs.acting(identity), cwd, environment, more, injected)


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


def _save_upload(upload: Path, tools: Tools) -> None:
    """A copy for the user to look at, of what is about to go into the container."""
    directory = tools.settings.environment.get("TMPDIR") or None
    try:
        kept = Path(tempfile.mkdtemp(prefix="s2i-", dir=directory))
        shutil.copytree(upload, kept / "upload", symlinks=True)
    except OSError as error:
        where = directory or tempfile.gettempdir()
        tools.report(
            Notice(
                "warning",
                f"--save-temp-dir: what was uploaded cannot be kept in `{where}`: "
                f"{_why_not_copied(error)}; set TMPDIR to a directory with room",
            )
        )
    else:
        tools.report(Notice("warning", f"what was uploaded is kept in `{kept}`"))


def _why_not_copied(error: OSError) -> str:
    if isinstance(error, shutil.Error):
        # A list of what failed, each with both paths and a text.
        _, first, text = error.args[0][0]
        why = str(text).partition("] ")[2].partition(": '")[0]  # of `[Errno 28] why: 'path'`
        return f"{why or text} (`{first}`)"
    named = isinstance(error.filename, str)
    return (error.strerror or str(error)) + (f" (`{error.filename}`)" if named else "")


def _names(environment: tuple[str, ...]) -> set[str]:
    return {entry.partition("=")[0] for entry in environment}


def _prune_upload(inputs: _Inputs, rootfs: Rootfs) -> None:
    """Takes source and artifacts out of the result, where assemble left any."""
    if inputs.runtime is None:
        for name in ("src", "artifacts"):
            rootfs.remove(f"{inputs.contract.destination}/{name}")


# --- the image --------------------------------------------------------------------------------


def _labels(spec: BuildSpec, inputs: _Inputs, rootfs: Rootfs) -> dict[str, str]:
    labels = dict(inputs.base.image.config.runtime.labels)
    labels |= generated_labels(
        inputs.tree.info,
        builder=inputs.builder.name,
        tag=spec.tag,
        description=spec.description,
        application_name=spec.application_name,
    )
    try:
        metadata = rootfs.read_text(IMAGE_METADATA_PATH)
    except ImageError as error:
        error.reason = "GenericS2IBuildFailed"  # nothing that was pulled
        raise
    if metadata is not None:
        labels |= parse_image_metadata(metadata.encode(errors="surrogateescape"))
    check_label_size(labels)
    return labels


def _write_layer(
    spec: BuildSpec, inputs: _Inputs, rootfs: Rootfs, site: Site
) -> tuple[Layer, Changes]:
    """The change set as a blob in the store: one pass for both digests and compression."""
    # What lies above the artifacts is in a runtime image that nobody has seen.
    unseen = rootfs.made if inputs.runtime and not inputs.runtime.layers_needed else ()
    with site.places.store.scratch_file() as blob:
        read_end, write_end = os.pipe()
        with os.fdopen(read_end, "rb", buffering=1 << 20) as tar:
            try:
                rootfs.write_changes(write_end, clamp_mtime=spec.clamp_seconds, unlisted=unseen)
            finally:
                os.close(write_end)
            try:
                with closing(inputs.hidden.finder.stream(tar, "the layer")) as searched:
                    written = compress(
                        searched,
                        blob,
                        compression=spec.compression,
                        level=spec.compression_level,
                        workers=len(os.sched_getaffinity(0)),
                    )
            except OSError as error:
                what = "the layer cannot be written"
                raise explain(error, what, reason="ContainerCommitFailed") from error
        changes = rootfs.finish_changes()
        inputs.hidden.refuse_leaks()
        site.places.store.adopt(blob, written.digest)
    media_type = spec.compression.media_type or OCI_LAYER
    return Layer(Descriptor(media_type, written.digest, written.size), written.diff_id), changes


def _compose(spec: BuildSpec, inputs: _Inputs, layer: Layer, labels: Mapping[str, str]) -> Image:
    base = inputs.base
    runtime = result_config(
        base.image.config.runtime,
        run_script=inputs.run_script,
        environment=inputs.environment(base),
        labels=labels,
        keep_entrypoint=spec.keep_entrypoint,
    )
    history = History.of(
        created=spec.created,
        created_by=inputs.scripts["assemble"].path_in_image,
        comment="ocis2i build",
    )
    return append_layer(base.image, layer, history, runtime)


def _deliver(
    spec: BuildSpec, base: Obtained, image: Image, encoded: Encoded, tools: Tools
) -> tuple[tuple[Delivered, ...], bool]:
    delivered = []
    blobs = Blobs(tools.places, base.origin)
    for output in spec.outputs:
        with stage(tools.report, "output", str(output)):
            delivered.append(deliver(output, image, encoded, blobs, name=spec.name))
    if not spec.push or spec.name is None:
        return tuple(delivered), False
    with stage(tools.report, "push", str(spec.name)):
        push_image(
            tools.places.registry,
            spec.name,
            encoded,
            [layer.descriptor for layer in image.layers],
            blobs,
            mount_from=(base.reference,) if base.reference else (),
            jobs=tools.places.jobs,
        )
    return tuple(delivered), True
