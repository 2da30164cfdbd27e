"""A result on a runtime image: what assemble made moves there, the builder stays behind.

Source-to-image calls it an extended build (`docs/runtime_image.md`). Its `assemble-runtime` script
is optional here, and the layers of the runtime image are fetched only when something runs in it.
"""

from __future__ import annotations

import posixpath
import re
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path

from ocis2i.container import (
    Job,
    Site,
    check_script,
    identify,
    make_working_directory,
    run_stage,
)
from ocis2i.errors import ImageError, UsageError
from ocis2i.events import Notice, Report, stage
from ocis2i.images import Layers, Obtained, Places, blamed_on, obtain
from ocis2i.lazy_dataclass import dataclass
from ocis2i.limits import counted, plural
from ocis2i.manifest import RuntimeConfig
from ocis2i.mappings import PathPair, check_artifact, parse_input_files
from ocis2i.rootfs import Rootfs, prepare
from ocis2i.s2i import (
    ASSEMBLE_INPUT_FILES_LABEL,
    ASSEMBLE_RUNTIME_USER_LABEL,
    Identity,
    read_contract,
)
from ocis2i.scripts import Download, ScriptSet, resolve
from ocis2i.sources import SourceTree
from ocis2i.spec import BuildSpec, RuntimeSpec
from ocis2i.store import LayerRecord

_SCRIPT = "assemble-runtime"
# Of the file hierarchy of Linux distributions what links to /usr or /run.
_OFTEN_LINKS = frozenset("bin sbin lib lib32 lib64 libx32 libo32 var".split())
_NUMERIC_USER = re.compile(r"[0-9]+(:[0-9]+)?")


@dataclass(frozen=True, slots=True)
class RuntimeImage:
    """The runtime image of a build: what goes where in it, and what runs there.

    Whether its layers are needed is decided before anything runs; without them the image's own
    users and directories are not known.
    """

    obtained: Obtained
    artifacts: tuple[PathPair, ...]
    user: str
    scripts: ScriptSet
    layers_needed: bool

    @property
    def cwd(self) -> str:
        """Its `WORKDIR`, where the artifacts go."""
        return self.obtained.image.config.runtime.working_dir or "/"


def obtain_runtime(runtime: RuntimeSpec, spec: BuildSpec, places: Places) -> Obtained:
    """The runtime image, without its layers yet. Raises `ImageError` or `RegistryError`."""
    with blamed_on("PullRuntimeImageFailed"):
        policy, layers = runtime.pull_policy, Layers.ELSEWHERE
        found = obtain(runtime.image, spec.platform, policy, places, layers=layers)
    if found.image.config.runtime.on_build:
        places.report(Notice("info", f"ONBUILD of the runtime image `{found.name}` is not run"))
    return found


def artifacts_of(runtime: RuntimeSpec, image: Obtained) -> tuple[PathPair, ...]:
    """What travels: the user's wishes, else those of the image's label. Raises `UsageError`."""
    label = image.image.config.runtime.labels.get(ASSEMBLE_INPUT_FILES_LABEL, "")
    pairs = runtime.artifacts or parse_input_files(label)
    if not pairs:
        raise UsageError(
            "no runtime artifacts to copy were specified",
            hint="name them with --runtime-artifact, or in the label "
            f"`{ASSEMBLE_INPUT_FILES_LABEL}` of the runtime image",
            reason="InvalidArtifactsMapping",
        )
    for pair in pairs:
        check_artifact(pair)
    return pairs


def target_of(pair: PathPair, cwd: str) -> str:
    """The path of an artifact in a runtime image with the `WORKDIR` `cwd`."""
    target = posixpath.join(cwd, pair.destination, posixpath.basename(pair.source))
    return posixpath.normpath(target)


@dataclass(frozen=True, slots=True)
class RuntimeSearch:
    """Where scripts for the runtime image may be; `builder` has those that were found already.

    What the host has of them is put into the new directory `into`.
    """

    source: SourceTree
    builder: ScriptSet
    into: Path
    cwd: Path
    download: Download | None


def plan_runtime(
    spec: BuildSpec, runtime: RuntimeSpec, image: Obtained, search: RuntimeSearch, report: Report
) -> RuntimeImage:
    """Finds the runtime image's scripts and decides whether its layers are needed."""
    config = image.image.config
    search.into.mkdir()
    search.into.chmod(0o755)
    scripts = resolve(
        read_contract(config).scripts_url,
        scripts_url_flag=spec.scripts_url,
        source=search.source,
        into=search.into,
        wanted=("run",),
        optional=() if runtime.run_nothing else (_SCRIPT,),
        destination=config.runtime.working_dir or "/",
        cwd=search.cwd,
        report=report,
        whose="the runtime image",
        known=search.builder,
        download=search.download,
    )
    user = runtime.user or config.runtime.labels.get(ASSEMBLE_RUNTIME_USER_LABEL, "")
    user = user or config.runtime.user
    artifacts = artifacts_of(runtime, image)
    # An image that has a place for scripts may have this one: that is only seen in its layers.
    needed = (
        scripts.get(_SCRIPT) is not None
        or not (not user or _NUMERIC_USER.fullmatch(user))
        or _must_be_seen(config.runtime, artifacts)
    )
    return RuntimeImage(image, artifacts, user, scripts, needed)


def _must_be_seen(runtime: RuntimeConfig, artifacts: Sequence[PathPair]) -> bool:
    """Whether artifacts go to a place that is a link in most distributions.

    A layer that was made without looking would replace the link, and with it what it leads to.
    """
    for pair in artifacts:
        target = target_of(pair, posixpath.join("/", runtime.working_dir))
        if target.strip("/").split("/")[0] in _OFTEN_LINKS:
            return True
    return False


def move(
    site: Site,
    plan: RuntimeImage,
    builder: Rootfs,
    environment: tuple[str, ...],
    more: Mapping[str, str],
) -> Rootfs:
    """Copies the artifacts out of the builder's container into one of the runtime image.

    Runs assemble-runtime there, if there is one. The rootfs returned is mounted.
    """
    layers: tuple[LayerRecord, ...] = ()
    if plan.layers_needed:
        with stage(site.report, "unpack-runtime", plan.obtained.name):
            layers = site.unpack(plan.obtained)
    with stage(site.report, "artifacts", plan.obtained.name):
        directory = site.here.directory
        mounts = site.around.mounts
        rootfs = prepare(
            site.here.agent,
            directory / "runtime",
            layers,
            mounts,
            session=directory,
            kind=site.here.rootfs,
        )
        identity = identify(plan.user, rootfs)
        if plan.layers_needed:
            make_working_directory(plan.cwd, rootfs)
            check_script(plan.scripts["run"], plan.obtained.name, rootfs)
        _put_scripts(plan, identity, rootfs)
        rootfs.mount()
        _copy(plan, builder, identity, rootfs, site.report)
    job = _job(plan, rootfs, identity, environment, more)
    if job:
        run_stage(
            site,
            rootfs,
            job,
            "assemble-runtime",
            detail=job.argv[0],
            reason="AssembleRuntimeFailed",
        )
    return rootfs


def _copy(
    plan: RuntimeImage, builder: Rootfs, identity: Identity, rootfs: Rootfs, report: Report
) -> None:
    for pair in plan.artifacts:
        directory = posixpath.normpath(posixpath.join(plan.cwd, pair.destination))
        try:
            copied = rootfs.copy_from(builder, pair.source, directory, identity.uid, identity.gid)
        except ImageError as error:
            error.reason = "FetchRuntimeArtifactsFailed"
            raise
        if copied.skipped:
            what = counted(copied.skipped, "device, pipe or socket", "devices, pipes or sockets")
            text = f"{what} in it {plural(copied.skipped, 'was', 'were')} left out"
            report(Notice("warning", f"artifact `{pair.source}`: {text}"))


def _put_scripts(plan: RuntimeImage, identity: Identity, rootfs: Rootfs) -> None:
    for place in plan.scripts.files:
        if place.file is not None:
            rootfs.put_file(place.file, place.path_in_image, identity.uid, identity.gid, 0o755)


def _job(
    plan: RuntimeImage,
    rootfs: Rootfs,
    identity: Identity,
    environment: tuple[str, ...],
    more: Mapping[str, str],
) -> Job | None:
    place = plan.scripts.get(_SCRIPT)
    if place is None:
        return None
    mode = rootfs.modes([place.path_in_image])[0]
    if mode is None or not stat.S_ISREG(mode):
        return None
    check_script(place, plan.obtained.name, rootfs)
    return Job((place.path_in_image,), identity, plan.cwd, environment, more, place=place)
