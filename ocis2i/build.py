"""The story of a build, from a source and a builder image to a delivered image."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ocis2i.compression import compress
from ocis2i.errors import ImageError, PolicyError, ScriptError, ScriptsError, UsageError
from ocis2i.events import Notice, Report, ScriptOutput, stage
from ocis2i.fs import explain
from ocis2i.images import Obtained, Places, obtain
from ocis2i.isolation.ids import MAPPED_IDS
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
from ocis2i.rootfs import Changes, Rootfs, Upload, prepare
from ocis2i.runner import HOSTNAME, BindMount, Runner, RunResult, RunSpec, Stdio
from ocis2i.s2i import (
    IMAGE_METADATA_PATH,
    Contract,
    Identity,
    check_label_size,
    generated_labels,
    merge_environment,
    parse_image_metadata,
    read_contract,
    resolve_user,
    result_config,
)
from ocis2i.scripts import ScriptSet, read_environment, resolve
from ocis2i.session import Session, session
from ocis2i.settings import Settings
from ocis2i.sources import SourceTree, fetch
from ocis2i.spec import BuildSpec
from ocis2i.store import LayerRecord, Store
from ocis2i.transfer import push_image
from ocis2i.unpack import unpack_layers

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class Tools:
    """What a build works with; a test gives it others."""

    settings: Settings
    places: Places
    report: Report
    cwd: Path

    @property
    def store(self) -> Store:
        """Where images are kept."""
        return self.places.store


@dataclass(frozen=True, slots=True)
class BuildResult:
    """A finished build."""

    image: Image
    encoded: Encoded
    builder: Obtained
    changes: Changes
    assemble: RunResult
    isolation: str
    delivered: tuple[Delivered, ...]
    pushed: bool


@dataclass(frozen=True, slots=True)
class _Inputs:
    """What is known before anything runs."""

    builder: Obtained
    contract: Contract
    tree: SourceTree
    scripts: ScriptSet
    environment: tuple[str, ...]
    layers: tuple[LayerRecord, ...]


def build(spec: BuildSpec, tools: Tools) -> BuildResult:
    """Builds an image. Raises an `Ocis2iError`; the store is as before then, but for the cache."""
    check(spec)
    with session(tools.store, tools.settings) as here:
        inputs = _gather(spec, here, tools)
        runner = here.runner(spec.isolation)
        mounts = (*here.network_files(), *spec.mounts)
        with stage(tools.report, "prepare", f"{len(inputs.layers)} layers, {runner.name}"):
            rootfs = prepare(here.agent, here.directory, inputs.layers, mounts)
            run = _plan_assemble(spec, inputs, rootfs, mounts)
            rootfs.mount()
            _check_interpreter(run, rootfs)
        with stage(tools.report, "assemble", inputs.scripts["assemble"].url):
            ran = _assemble(runner, rootfs, run, tools.report)
            labels = _labels(spec, inputs, rootfs)
        with stage(tools.report, "layer"):
            layer, changes = _write_layer(spec, rootfs, tools.store)
            image = _compose(spec, inputs, layer, labels)
            encoded = encode_image(image)
        with stage(tools.report, "store", spec.tag or "untagged"):
            tools.store.put_image(encoded, str(spec.name) if spec.name else "")
        delivered, pushed = _deliver(spec, inputs.builder, image, encoded, tools)
    return BuildResult(image, encoded, inputs.builder, changes, ran, runner.name, delivered, pushed)


def check(spec: BuildSpec) -> None:
    """Raises `UsageError` for wishes that contradict each other."""
    if spec.push and spec.name is None:
        raise UsageError("--push needs a name to push to", hint="give the tag as third argument")
    if spec.name and spec.name.digest:
        raise UsageError(
            f"the result cannot be named `{spec.name}`: its digest is not known yet",
            hint="leave out the part from `@` on",
        )


def _gather(spec: BuildSpec, here: Session, tools: Tools) -> _Inputs:
    upload = here.directory / "upload"
    for name in ("src", "scripts"):
        (upload / name).mkdir(parents=True)
        (upload / name).chmod(0o755)  # whatever the umask of whoever builds
    with stage(tools.report, "fetch"):
        tree = fetch(spec.source, upload / "src", settings=tools.settings, report=tools.report)
    with stage(tools.report, "pull", str(spec.builder)):
        builder = obtain(spec.builder, spec.platform, spec.pull_policy, tools.places)
        contract = _contract(spec, builder, tools.report)
        scripts = resolve(
            contract.scripts_url,
            scripts_url_flag=spec.scripts_url,
            source=tree,
            into=upload / "scripts",
            destination=contract.destination,
            cwd=tools.cwd,
            report=tools.report,
        )
    with stage(tools.report, "unpack"):
        layers = unpack_layers(
            builder.image,
            tools.store,
            here.agent,
            tools.report,
            size_limit=tools.settings.layer_limit,
        )
    file = read_environment(tree, tools.report)
    environment = merge_environment(builder.image.config.runtime.env, file.values, spec.environment)
    return _Inputs(builder, contract, tree, scripts, environment, layers)


def _contract(spec: BuildSpec, builder: Obtained, report: Report) -> Contract:
    config = builder.image.config
    if config.runtime.on_build:
        raise PolicyError(
            f"the builder `{builder.name}` has ONBUILD instructions, which need a Dockerfile build",
            hint="use a builder without ONBUILD, or build its triggers into it first",
            reason="OnBuildForbidden",
        )
    contract = read_contract(config)
    for sentence in contract.deprecated:
        report(Notice("warning", sentence))
    if spec.destination:
        return Contract(contract.scripts_url, spec.destination, contract.assemble_user)
    return contract


# --- running ----------------------------------------------------------------------------------


def _plan_assemble(
    spec: BuildSpec,
    inputs: _Inputs,
    rootfs: Rootfs,
    mounts: tuple[BindMount, ...],
) -> RunSpec:
    """Puts source and scripts into place and says what is to run."""
    runtime = inputs.builder.image.config.runtime
    user = spec.assemble_user or inputs.contract.assemble_user or runtime.user
    identity = identify(user, rootfs)
    cwd = runtime.working_dir or "/"
    _check_scripts(inputs, rootfs)
    destination = inputs.contract.destination
    uploads = [
        Upload(f"upload/{name}", f"{destination}/{name}", identity.uid, identity.gid)
        for name in ("src", "scripts")
    ]
    rootfs.place(uploads)
    make_working_directory(cwd, rootfs)
    more = {} if spec.clamp_seconds is None else {"SOURCE_DATE_EPOCH": str(spec.clamp_seconds)}
    return RunSpec(
        argv=(inputs.scripts["assemble"].path_in_image,),
        environment=process_environment(inputs.environment, identity, more),
        cwd=cwd,
        identity=identity,
        mounts=mounts,
    )


def identify(user: str, rootfs: Rootfs) -> Identity:
    """Looks a user up in the image's own passwd and group files.

    Raises `ImageError` for one that is not there, or whose ids no container here can have.
    """
    found = resolve_user(
        user, rootfs.read_text("/etc/passwd") or "", rootfs.read_text("/etc/group") or ""
    )
    largest = max(found.uid, found.gid, *found.groups)
    if largest >= MAPPED_IDS:
        raise ImageError(
            f"user `{user}` has the id {largest}, and containers have those up to {MAPPED_IDS - 1}",
            hint="choose another user with --assemble-user, or with --user of `ocis2i run`",
        )
    return found


def make_working_directory(cwd: str, rootfs: Rootfs) -> None:
    """Makes a `WORKDIR` that the image lacks, as Docker does when it makes a container."""
    if "\0" in cwd:
        raise ImageError(f"the working directory `{cwd}` of the image has a zero byte")
    mode = rootfs.modes([cwd])[0]
    if mode is None:
        rootfs.make_directory(cwd)
    elif not stat.S_ISDIR(mode):
        raise ImageError(f"the working directory `{cwd}` is no directory in the image")


def process_environment(
    environment: tuple[str, ...], identity: Identity, more: Mapping[str, str]
) -> tuple[str, ...]:
    """`environment` with what an engine adds: `PATH`, `HOME` and `HOSTNAME` where missing.

    What an image has as a name alone is not set, as Docker has it.
    """
    environment = tuple(entry for entry in environment if entry.find("=") > 0)
    names = {entry.partition("=")[0] for entry in environment}
    added = {"PATH": DEFAULT_PATH, "HOME": identity.home, "HOSTNAME": HOSTNAME}
    defaults = tuple(f"{name}={value}" for name, value in added.items() if name not in names)
    extra = tuple(f"{name}={value}" for name, value in more.items() if name not in names)
    return (*environment, *defaults, *extra)


def _check_scripts(inputs: _Inputs, rootfs: Rootfs) -> None:
    """Scripts that the image is said to bring must be in it."""
    for name in ("assemble", "run"):
        place = inputs.scripts[name]
        if place.file is not None:
            continue
        mode = rootfs.modes([place.path_in_image])[0]
        if mode is None or not stat.S_ISREG(mode):
            raise ScriptsError(
                f"the builder `{inputs.builder.name}` has no script `{place.path_in_image}`",
                hint=f"put one into .s2i/bin/{name} of the source, or name the place of the "
                "builder's scripts with --scripts-url image:///DIRECTORY",
            )
        if not mode & 0o111:
            raise ScriptsError(
                f"the script `{place.path_in_image}` of the builder `{inputs.builder.name}` "
                "is not executable"
            )


def _check_interpreter(run: RunSpec, rootfs: Rootfs) -> None:
    """A script whose first line names a program that is not there fails without a word why."""
    path = run.argv[0]
    first, _, _ = (rootfs.read_head(path, 256) or "").partition("\n")
    words = first.removeprefix("#!").split() if first.startswith("#!") else []
    if not words:
        return
    program = words[0]
    # What the user mounts is not there yet.
    mounted = any(f"{program}/".startswith(f"{mount.target}/") for mount in run.mounts)
    if not mounted and rootfs.modes([program])[0] is None:
        raise ScriptError(
            f"the script `{path}` needs `{program}`, which the builder does not have",
            script_exit_code=127,
            hint="change its first line, or add the program to the builder",
        )


def _assemble(runner: Runner, rootfs: Rootfs, run: RunSpec, report: Report) -> RunResult:
    result = runner.run(rootfs, run, Stdio(lambda stream, line: report(ScriptOutput(stream, line))))
    if result.exit_code:
        raise ScriptError(
            f"`{run.argv[0]}` failed with {describe_exit(result.exit_code)}",
            script_exit_code=result.exit_code,
            hint=f"it ran as {run.identity.uid}:{run.identity.gid} in `{run.cwd}`; "
            "its output above says more",
        )
    return result


_EXITS = {
    126: "126: something in it is not executable",
    127: "127: a command that it uses is missing in the builder",
    137: "137: it was killed, often for want of memory",
    143: "143: it was terminated",
}


def describe_exit(code: int) -> str:
    """An exit code in words."""
    return f"exit code {_EXITS.get(code, code)}"


# --- the image --------------------------------------------------------------------------------


def _labels(spec: BuildSpec, inputs: _Inputs, rootfs: Rootfs) -> dict[str, str]:
    labels = dict(inputs.builder.image.config.runtime.labels)
    labels |= generated_labels(
        inputs.tree.info,
        builder=inputs.builder.name,
        tag=spec.tag,
        description=spec.description,
        application_name=spec.application_name,
    )
    metadata = rootfs.read_text(IMAGE_METADATA_PATH)
    if metadata is not None:
        labels |= parse_image_metadata(metadata.encode(errors="surrogateescape"))
    check_label_size(labels)
    return labels


def _write_layer(spec: BuildSpec, rootfs: Rootfs, store: Store) -> tuple[Layer, Changes]:
    """The change set as a blob in the store: one pass for both digests and compression."""
    with store.scratch_file() as blob:
        read_end, write_end = os.pipe()
        with os.fdopen(read_end, "rb", buffering=1 << 20) as tar:
            try:
                rootfs.write_changes(write_end, clamp_mtime=spec.clamp_seconds)
            finally:
                os.close(write_end)
            try:
                written = compress(
                    tar,
                    blob,
                    compression=spec.compression,
                    level=spec.compression_level,
                    workers=len(os.sched_getaffinity(0)),
                )
            except OSError as error:
                raise explain(error, "the layer cannot be written") from error
        changes = rootfs.finish_changes()
        store.adopt(blob, written.digest)
    media_type = spec.compression.media_type or OCI_LAYER
    return Layer(Descriptor(media_type, written.digest, written.size), written.diff_id), changes


def _compose(spec: BuildSpec, inputs: _Inputs, layer: Layer, labels: Mapping[str, str]) -> Image:
    base = inputs.builder.image
    runtime = result_config(
        base.config.runtime,
        run_script=inputs.scripts["run"].path_in_image,
        environment=inputs.environment,
        labels=labels,
    )
    history = History.of(
        created=spec.created,
        created_by=inputs.scripts["assemble"].path_in_image,
        comment="ocis2i build",
    )
    return append_layer(base, layer, history, runtime)


def _deliver(
    spec: BuildSpec, builder: Obtained, image: Image, encoded: Encoded, tools: Tools
) -> tuple[tuple[Delivered, ...], bool]:
    delivered = []
    for output in spec.outputs:
        with stage(tools.report, "output", str(output)):
            delivered.append(deliver(output, image, encoded, tools.store, name=spec.name))
    if not spec.push or spec.name is None:
        return tuple(delivered), False
    with stage(tools.report, "push", str(spec.name)):
        mount_from = (builder.reference,) if builder.reference else ()
        push_image(
            tools.places.registry,
            spec.name,
            encoded,
            [layer.descriptor for layer in image.layers],
            tools.store,
            mount_from=mount_from,
            jobs=tools.places.jobs,
        )
    return tuple(delivered), True
