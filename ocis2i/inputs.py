"""What a build starts from: its source, images, scripts and secrets, before anything runs."""

from __future__ import annotations

import shutil
import stat
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ocis2i.binaries import runs_on
from ocis2i.errors import PolicyError, SourceError, shown
from ocis2i.events import Notice, Report, stage
from ocis2i.hidden import Hidden, hide
from ocis2i.images import Layers, Obtained, blamed_on, obtain
from ocis2i.lazy_dataclass import dataclass
from ocis2i.s2i import (
    PARAMETERS_LABEL,
    REQUIRED_SCRIPTS,
    Contract,
    merge_environment,
    parameters_path,
    read_contract,
)
from ocis2i.scripts import ScriptSet, read_environment, resolve
from ocis2i.session import Session
from ocis2i.sources import SourceInfo, SourceTree, fetch
from ocis2i.spec import BuildSpec
from ocis2i.store import LayerRecord
from ocis2i.tools import Tools
from ocis2i.uids import ASSEMBLE_RUNTIME, check_allowed
from ocis2i.unpack import unpack_layers

if TYPE_CHECKING:
    from ocis2i.extended import RuntimeImage
    from ocis2i.parameters import Applied, Declaration


@dataclass(frozen=True, slots=True)
class Inputs:
    """What is known before anything runs."""

    builder: Obtained
    contract: Contract
    tree: SourceTree
    scripts: ScriptSet
    user_environment: Mapping[str, str]
    layers: tuple[LayerRecord, ...]
    runtime: RuntimeImage | None
    hidden: Hidden
    parameters: Applied | None = None

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

    def result_environment(self) -> tuple[str, ...]:
        """The environment of the result: parameters of the running image are in it, too."""
        run = self.parameters.run if self.parameters else {}
        return merge_environment(self.base.image.config.runtime.env, self.user_environment, run)

    @property
    def build_parameters(self) -> Mapping[str, str]:
        """Parameters for the scripts of the build alone, those that are secrets not among them."""
        return self.parameters.build if self.parameters else {}


def gather(spec: BuildSpec, here: Session, tools: Tools) -> Inputs:
    """Fetches the source, obtains the images and finds what belongs to them.

    What goes into the container is in the session's `upload` then. A result that could not be
    pushed is not begun.
    """
    _check_targets(spec, tools)
    upload = _make_upload(here.directory)
    tree = _fetch(spec, upload / "src", tools)
    builder, contract = _obtain_builder(spec, here, tools)
    runtime = _obtain_runtime(spec, tools)
    if tree.info.file_architecture:
        _check_architecture(tree.info, runtime or builder)
    check_users(spec, builder, runtime)
    scripts = _find_scripts(spec, contract, tree, upload / "scripts", tools)
    plan = None
    if spec.runtime and runtime:
        from ocis2i.extended import RuntimeSearch, plan_runtime  # noqa: PLC0415 - few builds load it

        found = RuntimeSearch(tree, scripts, upload / "runtime-scripts", tools.cwd, tools.download)
        plan = plan_runtime(spec, spec.runtime, runtime, found, tools.report)
    variables = {**read_environment(tree, tools.report).values, **spec.environment}
    declared = _declared_by_label(builder)
    parameters = _apply(spec, builder, declared, variables, tools) if declared else None
    layers = () if here.in_place else _unpack(builder, here, tools)
    if parameters is None:
        declared = _declared_by_file(builder, contract, here, layers)
        parameters = _apply(spec, builder, declared, variables, tools)
    secrets = spec.secrets
    if parameters:
        variables |= parameters.both
        secrets = replace(secrets, environment={**parameters.secret, **secrets.environment})
    hidden = hide(
        secrets,
        builder.image.config.runtime.working_dir or "/",
        here.directory,
        here.agent,
        settings=tools.settings,
        cwd=tools.cwd,
        report=tools.report,
        chosen={**spec.environment, **(parameters.build if parameters else {})},
        proxies=spec.network != "proxy",
    )
    return Inputs(builder, contract, tree, scripts, variables, layers, plan, hidden, parameters)


def _declared_by_label(builder: Obtained) -> Declaration | None:
    if PARAMETERS_LABEL not in builder.image.config.runtime.labels:
        return None
    from ocis2i.declared import label_declaration  # noqa: PLC0415 - few builders have parameters

    return label_declaration(builder)


def _declared_by_file(
    builder: Obtained, contract: Contract, here: Session, layers: tuple[LayerRecord, ...]
) -> Declaration | None:
    path = parameters_path(contract.scripts_url)
    if path is None or not any(_has_file(one, path, here) for one in layer_roots(here, layers)):
        return None
    from ocis2i.declared import file_declaration  # noqa: PLC0415 - few builders have parameters

    return file_declaration(builder, path, here, layers)


def layer_roots(here: Session, layers: tuple[LayerRecord, ...]) -> tuple[str, ...]:
    """Where files of the builder are on the disk, a directory for each layer."""
    return ("/",) if here.in_place else tuple(str(layer.tree) for layer in layers)


def _has_file(root: str, path: str, here: Session) -> bool:
    # To join the layers takes longer than to look into each, and few builders have the file.
    mode = here.agent.request("look", root=root, paths=[path])["modes"][0]
    return mode is not None and stat.S_ISREG(mode)


def _apply(
    spec: BuildSpec,
    builder: Obtained,
    declaration: Declaration | None,
    variables: Mapping[str, str],
    tools: Tools,
) -> Applied | None:
    """What was given for the builder's parameters; raises `UsageError` before anything runs."""
    if declaration is None and spec.parameters is None:
        return None
    from ocis2i.declared import applied  # noqa: PLC0415 - few builds load it

    chosen = (*variables, *spec.secrets.environment)
    return applied(builder, declaration, spec.parameters, chosen, tools.report)


def _check_architecture(info: SourceInfo, base: Obtained) -> None:
    """Raises `SourceError` for a program that the image of the result cannot run."""
    platform = base.image.config.platform
    if runs_on(info.file_architecture, platform.architecture):
        return
    raise SourceError(
        f"the program `{shown(info.file_name)}` is for {info.file_architecture}, and "
        f"`{base.name}` is for {platform.architecture}",
        hint="name a program or a --platform that fits; --source-type file takes any file as it is",
    )


def _check_targets(spec: BuildSpec, tools: Tools) -> None:
    """Raises `RegistryError` where the result could not be pushed, before any work is done."""
    if not spec.push:
        return
    repositories = {name.name: name for name in spec.names}
    with stage(tools.report, "check-push", ", ".join(repositories)):
        for name in repositories.values():
            tools.places.registry.check_push(name)


def _make_upload(session: Path) -> Path:
    upload = session / "upload"
    for name in ("src", "scripts"):
        (upload / name).mkdir(parents=True)
        (upload / name).chmod(0o755)  # whatever the umask of whoever builds
    return upload


def _fetch(spec: BuildSpec, into: Path, tools: Tools) -> SourceTree:
    with stage(tools.report, "fetch"):
        return fetch(
            spec.source,
            into,
            settings=tools.settings,
            report=tools.report,
            stdin=tools.stdin,
            places=tools.places,
        )


def _obtain_builder(spec: BuildSpec, here: Session, tools: Tools) -> tuple[Obtained, Contract]:
    with stage(tools.report, "pull", str(spec.builder)), blamed_on("PullBuilderImageFailed"):
        layers = Layers.ELSEWHERE if here.in_place else _layers_of(spec)
        builder = obtain(spec.builder, spec.platform, spec.pull_policy, tools.places, layers=layers)
        return builder, read_builder(spec, builder, tools.report)


def _layers_of(spec: BuildSpec) -> Layers:
    """What the build will want of the builder's layers, so that none is fetched twice."""
    is_written = spec.outputs and spec.runtime is None
    return Layers.BLOBS if spec.keep_blobs or is_written else Layers.UNPACKED


def _obtain_runtime(spec: BuildSpec, tools: Tools) -> Obtained | None:
    if spec.runtime is None:
        return None
    from ocis2i.extended import artifacts_of, obtain_runtime  # noqa: PLC0415 - few builds load it

    with stage(tools.report, "pull-runtime", str(spec.runtime.image)):
        runtime = obtain_runtime(spec.runtime, spec, tools.places)
        artifacts_of(spec.runtime, runtime)
    return runtime


def _find_scripts(
    spec: BuildSpec, contract: Contract, tree: SourceTree, into: Path, tools: Tools
) -> ScriptSet:
    later = ("run", "assemble-runtime") if spec.runtime else ()  # the runtime image may have them
    return resolve(
        contract.scripts_url,
        scripts_url_flag=spec.scripts_url,
        source=tree,
        into=into,
        wanted=("assemble",) if spec.runtime else REQUIRED_SCRIPTS,
        optional=("save-artifacts", *later),
        destination=contract.destination,
        cwd=tools.cwd,
        report=tools.report,
        download=tools.download,
    )


def _unpack(builder: Obtained, here: Session, tools: Tools) -> tuple[LayerRecord, ...]:
    with stage(tools.report, "unpack"), blamed_on("PullBuilderImageFailed"):
        limit = tools.settings.layer_limit
        return unpack_layers(builder, tools.places, here.agent, size_limit=limit)


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


def save_upload(upload: Path, tools: Tools) -> None:
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
