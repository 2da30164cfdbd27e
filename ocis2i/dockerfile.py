"""An S2I build as the text of a Dockerfile. Experimental; no input or output.

`render` is for `buildah bud` and deterministic. Better than source-to-image's `--as-dockerfile`
(`pkg/build/strategies/dockerfile`):

* destination, assemble user and `USER` of the builder count, and the result has the builder's
  `USER` again, as in a direct build; `CMD` has exec form, and `ENTRYPOINT` is cleared;
* injected files and build-only variables are secrets of the one `RUN` that needs them, and in no
  layer; upstream copies them into one and removes them in the next;
* runtime images are a second stage;
* labels are sorted, and `$` in them is escaped.

What a direct build does and a Dockerfile cannot:

* labels that assemble writes to `/tmp/.s2i/image_metadata.json` reach no label;
* the builder's passwd file is not read: files of a user that is a number without a group belong
  to group 0. The group of a name is its primary one by buildah; Docker takes its uid for that;
* a place that an injected file takes is empty afterwards, also where the builder had a file;
* what assemble changes below a `VOLUME` of the builder is lost;
* variables of the result that are new come after the image's own, not before them;
* in an incremental build, a previous image that is not there ends the build: name another one with
  `--build-arg PREVIOUS=BUILDER`.
"""

from __future__ import annotations

import json
import posixpath
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field

from ocis2i.container_options import HostEntry
from ocis2i.errors import UsageError, shown
from ocis2i.lazy_dataclass import dataclass
from ocis2i.manifest import RuntimeConfig
from ocis2i.runner import BindMount, Network
from ocis2i.s2i import DEFAULT_DESTINATION, IMAGE_METADATA_PATH, Start, parse_user
from ocis2i.scripts import ScriptPlace, ScriptSet

MARK = "# Made by ocis2i"
CONTEXT = "upload"

# BuildKit and imagebuilder read lines of less than 64 KiB (bufio.MaxScanTokenSize).
LINE_LIMIT = 60_000

_CACHED = "cached"
_BUILDER = "builder"
_SAVED = "/tmp/ocis2i-saved"  # noqa: S108 - a path inside the previous image's stage
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PLAIN_USER = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.@+-]*(:[A-Za-z0-9_.][A-Za-z0-9_.@+-]*)?")
_PLAIN_IMAGE = re.compile(r"[A-Za-z0-9._/:@+~-]+")
_PLAIN_TARGET = re.compile(r"/[^\s\"',\\$`\0]*")
# `X` gives the right to execute to directories, and to files that anybody may execute; not with
# `=`, for which busybox looks at what is left.
_MODES = "a+rX,u+w,go-w,ug-s,-t"

_SAVE = (
    f'mkdir {_SAVED} {_SAVED}/new && if "$0" >{_SAVED}/tar && '
    f"{{ [ ! -s {_SAVED}/tar ] || tar -xpf {_SAVED}/tar -C {_SAVED}/new; }}; "
    f"then mv {_SAVED}/new {_SAVED}/artifacts; "
    "else echo 'Clean build will be performed because of error saving previous build artifacts' "
    f">&2; mkdir {_SAVED}/artifacts; fi"
)
_IF_THERE = 'if [ -f "$0" ]; then exec "$0"; fi'


@dataclass(frozen=True, slots=True)
class SecretFile:
    """A file of this host (`source`) that assemble sees at `target`, and no layer has."""

    id: str
    source: str
    target: str


@dataclass(frozen=True, slots=True)
class Names:
    """Empty files and directories of the context that mark where injected ones were."""

    context: str
    target: str


@dataclass(frozen=True, slots=True)
class Artifact:
    """What leaves the builder: `source` there becomes `target` in the runtime image."""

    source: str
    target: str


@dataclass(frozen=True, slots=True)
class RuntimeStage:
    """The second stage. `image` is for `FROM`, `user` is the one of assemble-runtime."""

    image: str
    base: RuntimeConfig
    artifacts: tuple[Artifact, ...]
    scripts: ScriptSet
    user: str = ""


@dataclass(frozen=True, slots=True)
class DockerfilePlan:
    """All that the text says. `builder` is for `FROM`, `base` its config.

    `environment` and `labels` are those that the builder does not have. `previous` is the image of
    an incremental build. `secret_variables` are names of variables for assemble alone,
    `build_variables` such that are no secrets. `flags` are
    words for buildah, `name` is the file's own name. `shell_scripts` are those of the context that
    only a shell can start.
    """

    builder: str
    base: RuntimeConfig
    scripts: ScriptSet
    assemble_user: str = ""
    destination: str = DEFAULT_DESTINATION
    environment: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    tag: str | None = None
    platform: str | None = None
    previous: str | None = None
    runtime: RuntimeStage | None = None
    secret_files: tuple[SecretFile, ...] = ()
    secret_variables: tuple[str, ...] = ()
    build_variables: Mapping[str, str] = field(default_factory=dict)
    names: tuple[Names, ...] = ()
    via_entrypoint: bool = False
    keep_entrypoint: bool = False
    start: Start = field(default_factory=Start)
    flags: tuple[str, ...] = ()
    name: str = "Dockerfile"
    shell_scripts: frozenset[str] = frozenset()


def render(plan: DockerfilePlan) -> str:
    """The Dockerfile. Raises `UsageError` for what none can express, such as a line break."""
    blocks = [_head(plan), _previous_stage(plan)]
    if plan.runtime is None:
        blocks += [_builder_stage(plan, None), _labels(plan.labels), _ending(plan)]
    else:
        blocks += [_builder_stage(plan, _BUILDER), _normalised(plan.runtime)]
        blocks += [_runtime_stage(plan, plan.runtime)]
    lines = [line for block in blocks for line in block]
    for line in lines:
        if len(line.encode()) > LINE_LIMIT:
            raise UsageError(
                f"`{line[:40]}...` has more than {LINE_LIMIT} bytes, no Dockerfile has such lines",
                hint="make the value shorter, or build without --as-dockerfile",
            )
    return "\n".join(lines) + "\n"


def owner(user: str) -> str:
    """Who owns what is copied in, as `--chown` has it. Raises `UsageError`."""
    _check_user(user)
    spec = parse_user(user)
    name = spec.user or "0"
    if spec.group is not None:
        return f"{name}:{spec.group}"
    # buildah takes a lone number for the group too; S2I's users without an entry have group 0.
    return f"{name}:0" if name.isdigit() else name


def image_name(text: str) -> str:
    """`text` as `FROM` can have it. Raises `UsageError`."""
    if not _PLAIN_IMAGE.fullmatch(text):
        raise UsageError(
            f"the image name `{shown(text)}` cannot be written in a Dockerfile",
            hint="choose a path of letters, digits and `._/+~-`",
        )
    return text


def build_flags(
    mounts: Sequence[BindMount] = (),
    cap_drop: Iterable[str] = (),
    network: Network = "host",
    add_hosts: Sequence[HostEntry] = (),
) -> tuple[str, ...]:
    """What no Dockerfile says about its build, as words for buildah."""
    words: list[str] = []
    for mount in mounts:
        text = f"{mount.source}:{mount.target}" + (":ro" if mount.read_only else "")
        words += ["--volume", text]
    for name in sorted(cap_drop):
        words += ["--cap-drop", name]
    if network != "host":
        words += ["--network", network]
    for entry in add_hosts:
        words += ["--add-host", f"{entry.name}:{entry.address}"]
    return tuple(words)


def build_command(plan: DockerfilePlan) -> str:
    """The command line that builds the image, to be run in the directory of the file."""
    words = ["buildah", "bud", "--identity-label=false"]
    bases = [plan.runtime.base if plan.runtime else plan.base]
    if any("Healthcheck" in base.extra for base in bases):
        words += ["--format", "docker"]  # OCI's has no place for it
    words += plan.flags
    for secret in plan.secret_files:
        words += ["--secret", f"id={secret.id},src={secret.source}"]
    for name in plan.secret_variables:
        words += ["--secret", f"id={_variable_id(name)},env={name}"]
    words += ["--file", plan.name]
    if plan.tag:
        words += ["--tag", plan.tag]
    return shlex.join([*words, "."])


# --- the parts, as lines ----------------------------------------------------------------------


def _head(plan: DockerfilePlan) -> list[str]:
    # Each on one line: a line break in a comment would begin an instruction.
    lines = [
        f"{MARK} (experimental): the steps of an S2I build. In this directory, run",
        "#",
        f"#   {shown(build_command(plan))}",
        "#",
        f"# Labels that assemble writes to {IMAGE_METADATA_PATH} do not reach the image.",
    ]
    if plan.secret_variables:
        lines.append("# Variables that are secrets are taken from the environment of buildah.")
    if plan.previous:
        word = f"--build-arg PREVIOUS={plan.builder}"
        lines.append(f"# The first time, without a previous image: {shown(word)}")
    if plan.base.volumes:
        listed = shown(", ".join(plan.base.volumes))
        lines.append(f"# Changes below the volumes of the builder are lost: {listed}")
    return [*lines, ""]


def _previous_stage(plan: DockerfilePlan) -> list[str]:
    if plan.previous is None:
        return []
    script = plan.scripts.get("save-artifacts")
    if script is None:
        return []
    lines = [f"ARG PREVIOUS={image_name(plan.previous)}", _from("${PREVIOUS}", plan, _CACHED)]
    if script.file is not None:
        source = f"{CONTEXT}/scripts/{script.name}"
        lines.append(_copy(source, script.path_in_image, owner(plan.assemble_user)))
    lines += _user(plan.assemble_user)
    return [*lines, _run(["/bin/sh", "-c", _SAVE, script.path_in_image]), ""]


def _builder_stage(plan: DockerfilePlan, stage: str | None) -> list[str]:
    """All up to assemble, and the names that injected files leave."""
    mine = owner(plan.assemble_user)
    destination = plan.destination
    lines = [_from(image_name(plan.builder), plan, stage), *_environment(plan.environment)]
    if destination not in ("/", DEFAULT_DESTINATION):
        # A destination that the image lacks is the assemble user's, what is above it root's.
        empty = f"{CONTEXT}/empty"
        lines += [_copy(empty, posixpath.dirname(destination), "0:0")]
        lines += [_copy(empty, destination, mine)]
    for name in ("src", "scripts"):
        lines.append(_copy(f"{CONTEXT}/{name}", posixpath.join(destination, name), mine))
    if plan.previous is not None and plan.scripts.get("save-artifacts"):
        target = posixpath.join(destination, "artifacts")
        lines.append(_copy(f"{_SAVED}/artifacts", target, mine, stage=_CACHED))
    # Before, so that directories have the right owner; afterwards, because buildah removes the
    # files that secrets took the places of.
    names = [_copy(one.context, one.target, mine) for one in plan.names]
    lines += names
    changes_user = plan.assemble_user != plan.base.user
    lines += _user(plan.assemble_user or "0") if changes_user else []
    lines.append(_assemble(plan))
    if stage is None:
        lines += [*names, *(_user_again(plan.base) if changes_user else [])]
    return lines


def _assemble(plan: DockerfilePlan) -> str:
    entrypoint = (plan.base.entrypoint or ()) if plan.via_entrypoint else ()
    argv = [*entrypoint, *_command(plan, plan.scripts["assemble"])]
    mounts = [_secret_mount(secret, plan.assemble_user) for secret in plan.secret_files]
    if not plan.secret_variables and not plan.build_variables:
        return _run(argv, mounts)
    exports = [
        f"export {name}={shlex.quote(_one_line(name, value))}"
        for name, value in plan.build_variables.items()
    ]
    ids = _numeric_ids(plan.assemble_user)
    for name in plan.secret_variables:
        if not _VARIABLE.fullmatch(name):
            raise UsageError(
                f"the variable `{shown(name)}` cannot be set by a shell",
                hint="a Dockerfile has only letters, digits and `_` in names of secret variables",
            )
        id_ = _variable_id(name)
        mounts.append(f"--mount=type=secret,id={id_},required=true,mode=0444{ids}")
        exports.append(f'{name}="$(cat /run/secrets/{id_})" && export {name}')
    script = " && ".join([*exports, 'exec "$@"'])
    return _run(["/bin/sh", "-c", script, "sh", *argv], mounts)


def _one_line(name: str, value: str) -> str:
    if "\n" in value or "\r" in value:
        raise UsageError(
            f"the value of the variable `{shown(name)}` has a line break, which a Dockerfile "
            "cannot hold",
            hint="leave the variable out, or build without --as-dockerfile",
        )
    return value


def _variable_id(name: str) -> str:
    return f"build-env-{name}"


def _secret_mount(secret: SecretFile, user: str) -> str:
    if not _PLAIN_TARGET.fullmatch(secret.target) or "," in secret.source:
        raise UsageError(
            f"the injected file `{shown(secret.source)}` cannot be mounted at "
            f"`{shown(secret.target)}` by a Dockerfile",
            hint="rename it: blanks, commas and quotes have no place in the names of secrets",
        )
    return (
        f"--mount=type=secret,id={secret.id},target={secret.target},required=true,mode=0666"
        f"{_numeric_ids(user)}"
    )


def _numeric_ids(user: str) -> str:
    """A secret's owner can only be numbers; of a user with a name it stays root."""
    uid, _, gid = owner(user).partition(":")
    return f",uid={uid},gid={gid}" if uid.isdigit() and gid.isdigit() else ""


def _normalised(runtime: RuntimeStage) -> list[str]:
    """Modes of artifacts are 0755 or 0644, as in a direct build; this stage is thrown away."""
    sources = list(dict.fromkeys(one.source for one in runtime.artifacts))
    return ["USER 0", _run(["chmod", "-R", _MODES, *sources]), ""]


def _runtime_stage(plan: DockerfilePlan, runtime: RuntimeStage) -> list[str]:
    theirs = owner(runtime.user)
    lines = [_from(image_name(runtime.image), plan, None), *_environment(plan.environment)]
    for place in runtime.scripts.files:
        source = f"{CONTEXT}/runtime-scripts/{place.name}"
        lines.append(_copy(source, place.path_in_image, theirs))
    lines += [_copy(one.source, one.target, theirs, stage=_BUILDER) for one in runtime.artifacts]
    script = runtime.scripts.get("assemble-runtime")
    if script is not None:
        changes_user = runtime.user != runtime.base.user
        lines += _user(runtime.user or "0") if changes_user else []
        lines.append(_assemble_runtime(plan, script))
        lines += _user_again(runtime.base) if changes_user else []
    lines += _labels(plan.labels)
    return [*lines, *_start(plan, runtime.base, runtime.scripts)]


def _command(plan: DockerfilePlan, script: ScriptPlace) -> list[str]:
    shell = ["/bin/sh"] if script.name in plan.shell_scripts else []
    return [*shell, script.path_in_image]


def _assemble_runtime(plan: DockerfilePlan, script: ScriptPlace) -> str:
    if script.file is not None:
        return _run(_command(plan, script))
    # Nobody has looked whether the image has it; it need not.
    return _run(["/bin/sh", "-c", _IF_THERE, script.path_in_image])


def _ending(plan: DockerfilePlan) -> list[str]:
    return _start(plan, plan.base, plan.scripts)


def _start(plan: DockerfilePlan, base: RuntimeConfig, scripts: ScriptSet) -> list[str]:
    script, arguments = scripts["run"].path_in_image, plan.start.arguments
    if plan.start.where == "entrypoint":
        return [f"ENTRYPOINT {_json([script])}", f"CMD {_arguments(arguments)}"]
    clear = base.entrypoint is not None and not plan.keep_entrypoint
    lines = ["ENTRYPOINT []"] if clear else []
    return [*lines, f"CMD {_arguments([script, *arguments]) if arguments else _json([script])}"]


def _arguments(words: Sequence[str]) -> str:
    """The exec form of any words: what a line cannot hold, JSON escapes."""
    return json.dumps(list(words), ensure_ascii=not all(map(str.isprintable, words)))


# --- instructions -----------------------------------------------------------------------------


def _from(image: str, plan: DockerfilePlan, stage: str | None) -> str:
    platform = f"--platform={image_name(plan.platform)} " if plan.platform else ""
    return f"FROM {platform}{image}" + (f" AS {stage}" if stage else "")


def _copy(source: str, target: str, chown: str, *, stage: str | None = None) -> str:
    where = f"--from={stage} " if stage else ""
    # The paths of COPY are words of a shell, in JSON too.
    paths = [_escaped(path, "\\$\"'") for path in (source, target)]
    return f"COPY {where}--chown={chown} {_json(paths)}"


def _run(argv: Sequence[str], mounts: Sequence[str] = ()) -> str:
    return " ".join(["RUN", *mounts, _json(argv)])


def _user(user: str) -> list[str]:
    _check_user(user)
    return [f"USER {user}"] if user else []


def _user_again(base: RuntimeConfig) -> list[str]:
    return _user(base.user) or ['USER ""']


def _labels(labels: Mapping[str, str]) -> list[str]:
    return _pairs("LABEL", [(_quoted(key, key), key, labels[key]) for key in sorted(labels)])


def _environment(variables: Mapping[str, str]) -> list[str]:
    pairs = []
    for name, value in variables.items():
        word = name if _VARIABLE.fullmatch(name) else _quoted(name, name)
        pairs.append((word, name, value))
    return _pairs("ENV", pairs)


def _pairs(instruction: str, pairs: Sequence[tuple[str, str, str]]) -> list[str]:
    """One instruction, a pair a line; each is its name as written, its name, and its value."""
    lines = [f"{word}={_quoted(value, name)}" for word, name, value in pairs]
    first, indent = f"{instruction} ", " " * (len(instruction) + 1)
    last = len(lines) - 1
    return [
        f"{indent if number else first}{line}" + (" \\" if number < last else "")
        for number, line in enumerate(lines)
    ]


def _quoted(text: str, name: str) -> str:
    if re.search(r"[\n\r\0]", text):
        raise UsageError(
            f"`{shown(name)}` holds a line break, which no Dockerfile can write",
            hint="leave it out, or build directly",
        )
    return '"' + _escaped(text, '\\"$') + '"'


def _escaped(text: str, special: str) -> str:
    return "".join(f"\\{char}" if char in special else char for char in text)


def _json(words: Sequence[str]) -> str:
    for word in words:
        # A line break would be harmless here, but the paths of comments and messages have none.
        if not word.isprintable():
            raise UsageError(
                f"`{shown(word)}` cannot be written in a Dockerfile",
                hint="choose a name without such characters, or build without --as-dockerfile",
            )
    return json.dumps(list(words), ensure_ascii=False)


def _check_user(user: str) -> None:
    if user and not _PLAIN_USER.fullmatch(user):
        raise UsageError(
            f"the user `{shown(user)}` cannot be written in a Dockerfile",
            hint="give the number of the user with --assemble-user",
        )
