"""Writes a build as a Dockerfile and its context, instead of doing it. Experimental.

Of images only the config is looked at. Beside the Dockerfile there is `upload/`, with all that it
copies: `src`, `scripts`, and where needed `runtime-scripts`, the names of injected files, and an
empty directory. Content that is secret is not in it. With `ocis2i generate` the user fills
`upload/src`.
"""

from __future__ import annotations

import os
import posixpath
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ocis2i.container import needs_shell
from ocis2i.declared import applied, label_declaration
from ocis2i.dockerfile import (
    CONTEXT,
    MARK,
    Artifact,
    DockerfilePlan,
    Names,
    RuntimeStage,
    SecretFile,
    build_flags,
    image_name,
    render,
)
from ocis2i.errors import OutputError, PolicyError, UsageError
from ocis2i.events import Report, stage
from ocis2i.extended import RuntimeSearch, plan_runtime, target_of
from ocis2i.fs import explain, remove_tree
from ocis2i.images import Layers, Obtained, Places, PullPolicy, blamed_on, obtain
from ocis2i.injections import InjectedFile, read_injections
from ocis2i.inputs import check_users, contract_of
from ocis2i.lazy_dataclass import dataclass
from ocis2i.mappings import PathPair
from ocis2i.parameters import Applied
from ocis2i.reference import Location, PathLocation, StoredLocation
from ocis2i.s2i import (
    DEFAULT_IMAGE_SCRIPTS_URL,
    PARAMETERS_LABEL,
    Contract,
    check_label_size,
    generated_labels,
)
from ocis2i.scripts import ScriptSet, read_environment, resolve
from ocis2i.sources import (
    ArchiveSource,
    ArtifactSource,
    DirSource,
    GitSource,
    PreparedSource,
    SingleSource,
    Source,
    SourceInfo,
    SourceTree,
    empty_tree,
    fetch,
)
from ocis2i.spec import BuildSpec, RuntimeSpec
from ocis2i.tools import Tools

_MARKER = ".ocis2i"
_EXPORTED, _GENERATED = "export\n", "generate\n"


@dataclass(frozen=True, slots=True)
class ExportSpec:
    """One export of `build`, whose tag an incremental one needs.

    Of its secret variables only the names count: the values are taken from the environment of
    buildah. `source_later` (`ocis2i generate`): its source does not count, `upload/src` is the
    user's. What only a result can have, such as outputs, has no meaning here.
    """

    build: BuildSpec
    image_scripts_url: str = DEFAULT_IMAGE_SCRIPTS_URL
    source_later: bool = False


@dataclass(frozen=True, slots=True)
class _Work:
    """What every step works with; `upload` is the context that is being made."""

    wanted: ExportSpec
    tools: Tools
    upload: Path

    @property
    def spec(self) -> BuildSpec:
        return self.wanted.build

    @property
    def report(self) -> Report:
        return self.tools.report


def export(wanted: ExportSpec, path: str, tools: Tools) -> Path:
    """Writes the Dockerfile to `path` and `upload/` beside it; where the Dockerfile is.

    `path` is a directory when it ends in `/` or is one. All is made beside first, then renamed: an
    error leaves what was there. An `upload/` or Dockerfile of somebody else is never replaced.
    Raises an `Ocis2iError`.
    """
    target = _target(path, tools.cwd)
    _check(wanted, target)
    builder, runtime = _pull(wanted.build, tools)
    check_users(wanted.build, builder, runtime)
    try:
        with _scratch(target.parent) as scratch:
            upload = scratch / CONTEXT
            _make(upload)
            plan = _plan(_Work(wanted, tools, upload), builder, runtime, target.name)
            _write(scratch / "Dockerfile", render(plan))
            _write(upload / _MARKER, _GENERATED if wanted.source_later else _EXPORTED)
            _publish(scratch, target, keep_upload=wanted.source_later)
    except OSError as error:
        what = f"the Dockerfile `{target}` cannot be written"
        raise explain(error, what, reason="DockerFileCreationFailed") from error
    return target


def _plan(work: _Work, builder: Obtained, runtime: Obtained | None, name: str) -> DockerfilePlan:
    spec, config = work.spec, builder.image.config
    tree = _source(work)
    contract = contract_of(spec, builder, work.report)
    user = spec.assemble_user or contract.assemble_user or config.runtime.user
    scripts = _scripts(work, contract, tree)
    secrets, names = _secrets(work, config.runtime.working_dir or "/")
    variables = {**read_environment(tree, work.report).values, **spec.environment}
    parameters = _parameters(work, builder, variables)
    stage_of_runtime = None
    if spec.runtime and runtime:
        stage_of_runtime = _runtime_stage(work, spec.runtime, runtime, tree, scripts)
    _make(work.upload / "empty")
    return DockerfilePlan(
        builder=_from(spec.builder, builder, work.tools.cwd),
        base=config.runtime,
        scripts=scripts,
        assemble_user=user,
        destination=contract.destination,
        environment={**variables, **parameters.both, **parameters.run},
        labels=_labels(spec, builder, runtime or builder, tree.info),
        tag=spec.tag,
        platform=str(spec.platform) if spec.platform else None,
        previous=spec.tag if spec.incremental else None,
        runtime=stage_of_runtime,
        secret_files=secrets,
        secret_variables=tuple(sorted({*parameters.secret, *spec.secrets.environment})),
        build_variables=parameters.build,
        names=names,
        via_entrypoint=spec.via_entrypoint,
        keep_entrypoint=spec.keep_entrypoint,
        start=spec.start,
        flags=build_flags(spec.mounts, spec.cap_drop, spec.network, spec.add_hosts),
        name=name,
        shell_scripts=_shell_scripts(scripts, stage_of_runtime),
    )


def _parameters(work: _Work, builder: Obtained, variables: Mapping[str, str]) -> Applied:
    """The builder's parameters, by its label: of layers nothing is fetched here.

    Of secrets only the names get into the Dockerfile.
    """
    spec = work.spec
    if work.wanted.source_later:
        return Applied()  # `generate` has no flags for them: whoever fills `upload/src` sets them
    if spec.parameters is None and PARAMETERS_LABEL not in builder.image.config.runtime.labels:
        return Applied()
    declaration = label_declaration(builder)
    if declaration is None:
        raise UsageError(
            f"`{builder.name}` has no label `{PARAMETERS_LABEL}`, and for a Dockerfile its layers "
            "are not looked into",
            hint="-e NAME=VALUE sets a variable for assemble and the image",
        )
    chosen = (*variables, *spec.secrets.environment)
    return applied(builder, declaration, spec.parameters, chosen, work.report)


# --- before anything is written ---------------------------------------------------------------


def _target(path: str, cwd: Path) -> Path:
    """Where the Dockerfile will be: `X/` and an existing directory mean `X/Dockerfile`."""
    if not path or "\0" in path:
        raise UsageError("the Dockerfile needs a path", hint="such as --as-dockerfile out/")
    target = cwd / path
    if path.endswith("/") or target.is_dir():
        target /= "Dockerfile"
    if target.name in (CONTEXT, "..") or not target.name.isprintable():
        raise UsageError(
            f"the Dockerfile cannot be named `{target.name}`", hint="such as out/Dockerfile"
        )
    return target.parent.resolve() / target.name


def _check(wanted: ExportSpec, target: Path) -> None:
    spec = wanted.build
    if spec.incremental and not spec.tag:
        raise UsageError(
            "Image tag is missing for incremental build",
            hint="give the tag as third argument: the previous image has it",
        )
    if spec.incremental and spec.runtime:
        raise UsageError(
            "an incremental build with a runtime image cannot be written as a Dockerfile",
            hint="leave out --incremental or --runtime-image, or build directly",
        )
    if not wanted.source_later:
        _check_source(spec.source, target)
    _check_ours(target, fill=not wanted.source_later)


def _check_source(source: Source, target: Path) -> None:
    root = _local_root(source)
    if root is None:
        return
    root = root.resolve()
    if target.is_relative_to(root):
        raise UsageError(
            f"the Dockerfile `{target}` would be inside the source `{root}`, and be copied with it",
            hint="name a directory outside of the source",
        )
    if root.is_relative_to(target.parent / CONTEXT):
        raise UsageError(
            f"the source `{root}` is inside `{target.parent / CONTEXT}`, which is replaced",
            hint="name another directory for the Dockerfile",
        )


def _local_root(source: Source) -> Path | None:
    match source:
        case DirSource(path):
            return path
        case GitSource(local=local):
            return local
        case ArchiveSource(path):
            return path
        case PreparedSource(path):
            return path
        case SingleSource(path):
            return path
        case ArtifactSource():
            return None


def _check_ours(target: Path, *, fill: bool) -> None:
    """Nothing is replaced that somebody else made. `fill`: `upload/src` will be ours."""
    upload = target.parent / CONTEXT
    hint = "remove it, or name another directory for the Dockerfile"
    if os.path.lexists(target) and not _begins_with(target, MARK):
        raise UsageError(f"`{target}` exists, and ocis2i did not make it", hint=hint)
    if not os.path.lexists(upload):
        return
    if upload.is_symlink() or not (upload / _MARKER).is_file():
        raise UsageError(f"`{upload}` exists, and ocis2i did not make it", hint=hint)
    source = upload / "src"
    if (
        fill
        and _begins_with(upload / _MARKER, _GENERATED)
        and source.is_dir()
        and any(source.iterdir())
    ):
        raise UsageError(f"`{source}` holds a source that somebody put there", hint=hint)


def _begins_with(path: Path, text: str) -> bool:
    if path.is_symlink() or not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(text)) == text.encode()


def _pull(spec: BuildSpec, tools: Tools) -> tuple[Obtained, Obtained | None]:
    """The builder and the runtime image, if there is one, without their layers."""
    runtime = None
    with tools.store.in_use(), stage(tools.report, "pull", str(spec.builder)):
        with blamed_on("PullBuilderImageFailed"):
            builder = _obtain(spec.builder, spec.pull_policy, spec, tools.places)
        if spec.runtime:
            wanted = spec.runtime
            with blamed_on("PullRuntimeImageFailed"):
                runtime = _obtain(wanted.image, wanted.pull_policy, spec, tools.places)
    return builder, runtime


def _obtain(location: Location, policy: PullPolicy, spec: BuildSpec, places: Places) -> Obtained:
    if isinstance(location, StoredLocation):
        raise UsageError(
            f"`{location}` is an image of the store of ocis2i, buildah does not find it",
            hint=f"write it to a layout with `ocis2i push {location} oci:DIR:TAG` and name that",
        )
    found = obtain(location, spec.platform, policy, places, layers=Layers.ELSEWHERE)
    if found.image.config.runtime.on_build:
        raise PolicyError(
            f"the image `{found.name}` has ONBUILD instructions, which S2I builds do not run",
            hint="use an image without ONBUILD, or build its triggers into it first",
            reason="OnBuildForbidden",
        )
    return found


def _from(location: Location, found: Obtained, cwd: Path) -> str:
    """The image as `FROM` can have it, from whatever directory it is built."""
    if isinstance(location, PathLocation):
        name = f":{location.name}" if location.name else ""
        return image_name(f"{location.transport}:{(cwd / location.path).resolve()}{name}")
    return image_name(found.name)


# --- what goes into the context ---------------------------------------------------------------


def _source(work: _Work) -> SourceTree:
    into = work.upload / "src"
    _make(into)
    if work.wanted.source_later:
        return empty_tree(into)
    with stage(work.report, "fetch"):
        return fetch(
            work.spec.source,
            into,
            settings=work.tools.settings,
            report=work.report,
            stdin=work.tools.stdin,
            places=work.tools.places,
        )


def _scripts(work: _Work, contract: Contract, tree: SourceTree) -> ScriptSet:
    _make(work.upload / "scripts")
    spec = work.spec
    return resolve(
        contract.scripts_url,
        scripts_url_flag=spec.scripts_url,
        source=tree,
        into=work.upload / "scripts",
        wanted=("assemble",) if spec.runtime else ("assemble", "run"),
        optional=("save-artifacts",) if spec.incremental else (),
        destination=contract.destination,
        cwd=work.tools.cwd,
        report=work.report,
        image_scripts_url=work.wanted.image_scripts_url,
        download=work.tools.download,
    )


def _shell_scripts(scripts: ScriptSet, runtime: RuntimeStage | None) -> frozenset[str]:
    """Of the scripts in the context those without a `#!`; in an image nobody has looked."""
    files = [*scripts.files, *(runtime.scripts.files if runtime else ())]
    names = set()
    for place in files:
        if place.file is not None:
            with place.file.open("rb") as file:
                head = file.read(256).decode(errors="surrogateescape")
            names |= {place.name} if needs_shell(head) else set()
    return frozenset(names)


def _runtime_stage(
    work: _Work, wanted: RuntimeSpec, image: Obtained, tree: SourceTree, builder: ScriptSet
) -> RuntimeStage:
    into = work.upload / "runtime-scripts"
    search = RuntimeSearch(tree, builder, into, work.tools.cwd, work.tools.download)
    plan = plan_runtime(work.spec, wanted, image, search, work.report)
    return RuntimeStage(
        image=_from(wanted.image, image, work.tools.cwd),
        base=image.image.config.runtime,
        artifacts=tuple(_artifact(pair, plan.cwd) for pair in plan.artifacts),
        scripts=plan.scripts,
        user=plan.user,
    )


def _artifact(pair: PathPair, cwd: str) -> Artifact:
    if pair.source == "/":
        raise UsageError(
            "`/` is the whole image, and no artifact",
            reason="InvalidArtifactsMapping",
            hint="name a directory or a file in it",
        )
    return Artifact(pair.source, target_of(pair, cwd))


def _labels(spec: BuildSpec, builder: Obtained, base: Obtained, info: SourceInfo) -> dict[str, str]:
    labels = spec.start.labels | generated_labels(
        info,
        builder=builder.name,
        tag=spec.tag,
        description=spec.description,
        application_name=spec.application_name,
    )
    check_label_size({**base.image.config.runtime.labels, **labels})
    return labels


def _secrets(work: _Work, workdir: str) -> tuple[tuple[SecretFile, ...], tuple[Names, ...]]:
    """Injected files as secrets; only their names are in the context."""
    wanted = work.spec.secrets
    if not wanted.injections:
        return (), ()
    files = read_injections(wanted.injections, workdir=workdir, cwd=work.tools.cwd)
    secrets = tuple(
        SecretFile(f"injection-{number}", file.source, file.target)
        for number, file in enumerate(files, 1)
    )
    if not wanted.keep_names:
        return secrets, ()
    tops = list(dict.fromkeys(file.top for file in files))
    names = tuple(_names(work, number, top, files) for number, top in enumerate(tops, 1))
    return secrets, names


def _names(work: _Work, number: int, top: str, files: tuple[InjectedFile, ...]) -> Names:
    """Empty twins of the files of one injection, which becomes `top`."""
    base = work.upload / "injections" / str(number)
    _make(base)
    for file in files:
        if file.top != top:
            continue
        relative = posixpath.relpath(file.target, top) if file.directory else "file"
        twin = base / relative
        # The walk made these names; a `..` in one would still be ours to refuse.
        if not twin.resolve().is_relative_to(base.resolve()):
            raise UsageError(
                f"the injected file `{file.source}` leaves its directory",
                hint="name a directory whose links stay inside",
            )
        _make(twin.parent)
        _write(twin, "")
        if not file.directory:
            return Names(f"{CONTEXT}/injections/{number}/file", top)
    return Names(f"{CONTEXT}/injections/{number}", top)


# --- the disk ---------------------------------------------------------------------------------


def _make(directory: Path) -> None:
    """`mkdir -p` with mode 0755, whatever the umask of whoever exports."""
    for one in reversed((directory, *directory.parents)):
        try:
            one.mkdir()
        except FileExistsError:
            continue
        one.chmod(0o755)


def _write(path: Path, text: str) -> None:
    with path.open("x", encoding="utf-8", newline="\n") as file:
        file.write(text)
    path.chmod(0o644)


@contextmanager
def _scratch(directory: Path) -> Iterator[Path]:
    """A directory in `directory`, which is made when missing; what failed leaves nothing."""
    missing = [one for one in (directory, *directory.parents) if not one.exists()]
    try:
        _make(directory)
        scratch = Path(tempfile.mkdtemp(prefix=".ocis2i-", dir=directory))
        try:
            yield scratch
        finally:
            _remove(scratch)
    except BaseException:
        for one in missing:
            _remove_empty(one)
        raise


def _remove_empty(directory: Path) -> None:
    try:
        directory.rmdir()
    except OSError:  # somebody else put something there
        return


def _remove(tree: Path) -> None:
    """Removes a tree of ours, with directories in it that a source made read-only."""
    for directory, names, _ in os.walk(tree, followlinks=False):
        for name in names:
            path = Path(directory, name)
            if not path.is_symlink():
                path.chmod(stat.S_IMODE(path.lstat().st_mode) | stat.S_IRWXU)
    if not remove_tree(tree):
        raise OutputError(f"`{tree}` cannot be removed", hint="remove it yourself")


def _publish(scratch: Path, target: Path, *, keep_upload: bool) -> None:
    """Puts the finished context and Dockerfile into place, and takes the old ones away."""
    upload = target.parent / CONTEXT
    _check_ours(target, fill=not keep_upload)
    there = os.path.lexists(upload)
    # What the user put into a generated one stays.
    if not (keep_upload and there and _begins_with(upload / _MARKER, _GENERATED)):
        if there:
            upload.rename(scratch / "old")
        try:
            (scratch / CONTEXT).rename(upload)
        except OSError:
            if there:
                (scratch / "old").rename(upload)
            raise
    (scratch / "Dockerfile").replace(target)
