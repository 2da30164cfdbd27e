"""The S2I contract as values: labels, scripts, paths, environment, users. No input or output.

Names and rules are those of openshift/source-to-image 1.6; where that program has a fault, the
docstring says what ocis2i does instead.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from ocis2i.errors import ImageError, PolicyError, ScriptsError, SourceError, UsageError
from ocis2i.lazy_dataclass import dataclass
from ocis2i.manifest import ImageConfig, RuntimeConfig, parse_json

LABEL_NAMESPACE = "io.openshift.s2i."
SCRIPTS_URL_LABELS = ("io.openshift.s2i.scripts-url", "io.s2i.scripts-url")
DESTINATION_LABELS = ("io.openshift.s2i.destination", "io.s2i.destination")
ASSEMBLE_USER_LABEL = "io.openshift.s2i.assemble-user"
ASSEMBLE_RUNTIME_USER_LABEL = "io.openshift.s2i.assemble-runtime-user"
ASSEMBLE_INPUT_FILES_LABEL = "io.openshift.s2i.assemble-input-files"
SOURCE_LOCATION_LABEL = f"{LABEL_NAMESPACE}build.source-location"
DESCRIPTION_LABEL = "io.k8s.description"
DISPLAY_NAME_LABEL = "io.k8s.display-name"
# What a builder can be told, see docs/parameters.md.
PARAMETERS_LABEL = "io.ocis2i.parameters"
PARAMETERS_FILE = "parameters.json"
# A source that is one file.
SOURCE_FILE_LABEL = "io.ocis2i.source.file"
SOURCE_KIND_LABEL = "io.ocis2i.source.kind"
SOURCE_SHA256_LABEL = "io.ocis2i.source.sha256"
# How the result starts, where that is not the run script alone: `entrypoint`, and a JSON list.
START_LABEL = "io.ocis2i.build.start"
ARGUMENTS_LABEL = "io.ocis2i.build.args"
OWN_LABELS = (
    SOURCE_FILE_LABEL,
    SOURCE_KIND_LABEL,
    SOURCE_SHA256_LABEL,
    START_LABEL,
    ARGUMENTS_LABEL,
)
# What a result's build was given of them, for a rebuild; never a secret.
GIVEN_PARAMETERS_LABEL = "io.ocis2i.build.parameters"

SCRIPTS_URL_VARIABLE = "STI_SCRIPTS_URL"
DESTINATION_VARIABLE = "STI_LOCATION"

DEFAULT_DESTINATION = "/tmp"  # noqa: S108 - a path inside the image, fixed by the contract
IMAGE_METADATA_PATH = "/tmp/.s2i/image_metadata.json"  # noqa: S108 - likewise
IMAGE_URL_PREFIX = "image://"
DEFAULT_IMAGE_SCRIPTS_URL = "image:///usr/libexec/s2i"

SOURCE_SCRIPT_DIRECTORIES = (".s2i/bin", ".sti/bin")
SCRIPT_NAMES = ("assemble", "run", "save-artifacts", "assemble-runtime", "usage")
REQUIRED_SCRIPTS = ("assemble", "run")
ENVIRONMENT_PATH = ".s2i/environment"

LABEL_SIZE_LIMIT = 10240
METADATA_SIZE_LIMIT = 1 << 20
ID_LIMIT = (1 << 31) - 1


@dataclass(frozen=True, slots=True)
class Contract:
    """What a builder image promises.

    `scripts_url` is as the image has it, an `image://` one cleaned to `image:///absolute/directory`;
    `destination` is absolute. `deprecated` holds a sentence for each outdated word that was used.
    """

    scripts_url: str | None
    destination: str = DEFAULT_DESTINATION
    assemble_user: str | None = None
    deprecated: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SourceInfo:
    """Where a source came from; empty text where it is not known.

    `location` carries no credentials, `author` is `Name <mail>`, `date` has git's default form,
    `commit_time` is in seconds since 1970. What begins with `file` is of a source that is one file:
    its name, SHA-256 in hex, kind (`binaries.Kind`) and a program's processor.
    """

    location: str = ""
    ref: str = ""
    commit_id: str = ""
    author: str = ""
    date: str = ""
    message: str = ""
    context_dir: str = ""
    commit_time: int | None = None
    file_name: str = ""
    file_sha256: str = ""
    file_kind: str = ""
    file_architecture: str = ""


@dataclass(frozen=True, slots=True)
class EnvironmentFile:
    """Variables of `.s2i/environment`, and the lines in it that are neither that nor comments."""

    values: Mapping[str, str]
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class UserSpec:
    """`user[:group]` as it was written; each a name or a number, `user` may be empty (root)."""

    user: str
    group: str | None = None


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a process is; `groups` are the supplementary ones, `name` is empty without an entry."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    home: str = "/"
    name: str = ""


# --- what the builder promises ----------------------------------------------------------------


def read_contract(config: ImageConfig) -> Contract:
    """The contract of a builder image, from its labels and, for old ones, its environment."""
    runtime = config.runtime
    used: list[str] = []
    url = _promise(runtime, SCRIPTS_URL_LABELS, SCRIPTS_URL_VARIABLE, used)
    destination = _promise(runtime, DESTINATION_LABELS, DESTINATION_VARIABLE, used)
    return Contract(
        scripts_url=clean_scripts_url(url) if url else None,
        destination=absolute_path(destination or DEFAULT_DESTINATION, runtime.working_dir),
        assemble_user=runtime.labels.get(ASSEMBLE_USER_LABEL) or None,
        deprecated=tuple(used),
    )


def _promise(
    runtime: RuntimeConfig, labels: tuple[str, str], variable: str, used: list[str]
) -> str | None:
    current, old = labels
    if value := runtime.labels.get(current, "").strip():
        return value
    if value := runtime.labels.get(old, "").strip():
        used.append(f"the builder's label `{old}` is deprecated, it should be `{current}`")
        return value
    if value := runtime.environment.get(variable, "").strip():
        used.append(f"the builder's variable `{variable}` is deprecated, use label `{current}`")
        return value
    return None


def clean_scripts_url(url: str) -> str:
    """`image:` URLs as `image:///directory`, without double or trailing slashes; others as is.

    `image://usr/libexec/s2i` was meant absolute: upstream only strips the prefix and joins.
    """
    directory = image_directory(url)
    return url if directory is None else f"{IMAGE_URL_PREFIX}{directory}"


def image_directory(url: str) -> str | None:
    """The absolute directory inside the image that an `image:` URL names; None for other URLs."""
    # Schemes are the same in capitals (RFC 3986, 3.1); upstream finds them so, and then trips.
    length = len(IMAGE_URL_PREFIX)
    if url[:length].lower() != IMAGE_URL_PREFIX:
        return None
    return absolute_path(url[length:])


def parameters_path(scripts_url: str | None) -> str | None:
    """Where an image with that scripts URL may declare parameters; `None`: nowhere in it."""
    directory = image_directory(scripts_url) if scripts_url else None
    return posixpath.join(directory, PARAMETERS_FILE) if directory else None


def absolute_path(path: str, below: str = "/") -> str:
    """`path` cleaned and absolute, a relative one taken below `below`."""
    joined = posixpath.join("/", below, path)
    return "/" + posixpath.normpath(joined).lstrip("/")


# --- environment ------------------------------------------------------------------------------


def parse_environment_file(text: str) -> EnvironmentFile:
    """Reads `.s2i/environment` line by line, as source-to-image's `pkg/scripts/environment.go`.

    A comment has `#` as its very first character; a line is split at its first `=`, both sides
    lose white space; quotes and `export` mean nothing; of a name written twice the last counts.
    Raises `SourceError` for a NUL byte, which no environment can hold.
    """
    if "\0" in text:
        raise SourceError(f"`{ENVIRONMENT_PATH}` holds a NUL byte", hint="is it a text file?")
    values: dict[str, str] = {}
    skipped: list[str] = []
    for line in text.split("\n"):
        name, equals, value = (part.strip() for part in line.partition("="))
        if line.startswith("#") or not line.strip():
            continue
        if equals and name:
            values[name] = value
        else:
            skipped.append(line.strip())
    return EnvironmentFile(values, tuple(skipped))


def parse_variable(text: str) -> tuple[str, str]:
    """Reads `NAME=VALUE` of `--env`; raises `UsageError`."""
    name, equals, value = (part.strip() for part in text.partition("="))
    if not equals or not name:
        shown = "=" if equals else text  # the value may be a password
        raise UsageError(f"invalid variable `{shown}`", hint="write it as NAME=VALUE")
    if "\0" in text:
        raise UsageError(
            f"the value of variable `{name}` holds a NUL byte", hint="leave that byte out"
        )
    if _as_utf8(text) != text:
        raise UsageError(
            f"variable `{_as_utf8(name)}` is not UTF-8 text, which an image config is",
            hint="write it in UTF-8",
        )
    return name, value


def parse_variable_file(text: str, name: str) -> dict[str, str]:
    """Reads the file of `--environment-file`: lines of `NAME=VALUE`; `#` and `//` begin comments.

    Lines without `=` are passed over, of a name written twice the last counts. Raises `UsageError`.
    """
    if "\0" in text:
        raise UsageError(f"`{name}` holds a NUL byte", hint="is it a text file?")
    values: dict[str, str] = {}
    for line in map(str.strip, text.split("\n")):
        if line.startswith(("#", "//")) or not line:
            continue
        variable, equals, value = (part.strip() for part in line.partition("="))
        if equals and variable:
            values[variable] = value
    return values


def absolute_flag(path: str | None, flag: str) -> str | None:
    """The value of a flag that names a path in the image; raises `UsageError`."""
    if path is None:
        return None
    if not path.startswith("/") or "\0" in path:
        raise UsageError(f"{flag} is `{path}`", hint="it must be an absolute path in the image")
    if _as_utf8(path) != path:
        raise UsageError(f"{flag} is `{path}`", hint="an image config holds UTF-8 alone")
    return path.rstrip("/") or "/"


def user_flag(user: str | None, flag: str) -> str | None:
    """The value of a flag that names a user; raises `UsageError`."""
    try:
        parse_user(user or "")
    except UsageError as error:
        raise UsageError(f"{flag}: {error.message}", hint=error.hint) from error
    return user


def merge_environment(image_env: Sequence[str], *layers: Mapping[str, str]) -> tuple[str, ...]:
    """The environment of the result: the user's variables first, then the image's others.

    Later `layers` win over earlier ones, all win over `image_env`. Each name is there once, at
    the place of its first mention with its last value.
    """
    users: dict[str, str] = {}
    for layer in layers:
        users |= layer
    images: dict[str, str] = {}
    for entry in image_env:
        images[entry.partition("=")[0]] = entry
    kept = (entry for name, entry in images.items() if name not in users)
    return (*(f"{name}={value}" for name, value in users.items()), *kept)


# --- the result's config ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Start:
    """Where the run script of a result stands, and the arguments after it.

    `cmd`: `Cmd` is the script and its arguments, and words after `docker run IMAGE` replace them
    all. `entrypoint`: the script is the `Entrypoint`, and such words replace the arguments.
    """

    where: Literal["cmd", "entrypoint"] = "cmd"
    arguments: tuple[str, ...] = ()

    @property
    def labels(self) -> dict[str, str]:
        """What a rebuild needs to know; nothing of the usual start."""
        labels: dict[str, str] = {START_LABEL: self.where} if self.where != "cmd" else {}
        if self.arguments:
            labels[ARGUMENTS_LABEL] = json.dumps(self.arguments, ensure_ascii=False)
        return labels


_AS_CMD = Start()


def parse_start(where: str | None, arguments: Sequence[str] | None) -> Start:
    """Reads `--start` and `--args`; raises `UsageError`."""
    if where not in (None, "cmd", "entrypoint"):
        raise UsageError(f"--start is `{where[:40]}`", hint="it must be cmd or entrypoint")
    for argument in arguments or ():
        if "\0" in argument:
            raise UsageError(
                "--args holds a NUL byte, which no argument of a program can",
                hint="leave that byte out",
            )
        if _as_utf8(argument) != argument:
            text = _as_utf8(argument)
            raise UsageError(
                f"--args `{text}` is not UTF-8 text, which an image config is",
                hint="write it in UTF-8",
            )
    return Start("entrypoint" if where == "entrypoint" else "cmd", tuple(arguments or ()))


def read_start(labels: Mapping[str, str]) -> Start:
    """How the labels of an image say that it starts. Raises `ImageError` for what they cannot."""
    text = labels.get(ARGUMENTS_LABEL, "")
    try:
        arguments = json.loads(text) if text else []
        is_list = isinstance(arguments, list) and all(isinstance(one, str) for one in arguments)
        if is_list:
            return parse_start(labels.get(START_LABEL) or None, arguments)
    except (ValueError, RecursionError, UsageError):
        pass
    raise ImageError(
        f"the labels `{START_LABEL}` and `{ARGUMENTS_LABEL}` do not say how an image starts",
        hint="build it anew, with --start and --args",
    )


# What Docker's commit does not take over from the base, and fields that only a container has.
_CONTAINER_ONLY = frozenset(
    "Shell StopTimeout ArgsEscaped Domainname Hostname AttachStdin AttachStdout AttachStderr "
    "Tty OpenStdin StdinOnce Image MacAddress NetworkDisabled".split()
)


def result_config(
    base: RuntimeConfig,
    *,
    run_script: str,
    environment: Sequence[str],
    labels: Mapping[str, str],
    keep_entrypoint: bool = False,
    start: Start = _AS_CMD,
) -> RuntimeConfig:
    """How a container of the result starts: `Cmd` is the run script alone, no `Entrypoint`.

    `start` adds arguments, or makes the run script the `Entrypoint`. `keep_entrypoint` leaves the
    base's, as upstream does. `User`, `WorkingDir`, ports, volumes,
    stop signal, health check and unknown fields are the base's; `OnBuild` and Docker's
    container-only fields are dropped. Raises `ScriptsError` when `run_script` is not an absolute
    path.
    """
    if not run_script.startswith("/"):
        raise ScriptsError(
            f"the run script `{run_script}` is not an absolute path in the image",
            hint="the image's scripts URL has to be image:///DIRECTORY",
        )
    is_entrypoint = start.where == "entrypoint"
    kept = base.entrypoint if keep_entrypoint else None
    return replace(
        base,
        cmd=start.arguments or None if is_entrypoint else (run_script, *start.arguments),
        entrypoint=(run_script,) if is_entrypoint else kept,
        env=tuple(environment),
        labels=dict(labels),
        on_build=(),
        extra={name: value for name, value in base.extra.items() if name not in _CONTAINER_ONLY},
    )


# --- labels -----------------------------------------------------------------------------------


def generated_labels(
    info: SourceInfo | None,
    *,
    builder: str,
    tag: str | None = None,
    description: str | None = None,
    application_name: str | None = None,
    namespace: str = LABEL_NAMESPACE,
) -> dict[str, str]:
    """The labels that a build writes by itself; those without a value are left out.

    `builder` is the normalised name, `tag` the name of the result as it was typed.
    """
    build = f"{namespace}build."
    source = info or SourceInfo()
    labels = {
        DESCRIPTION_LABEL: description,
        DISPLAY_NAME_LABEL: application_name or tag,
        f"{build}image": builder,
        f"{build}commit.author": source.author,
        f"{build}commit.date": source.date,
        f"{build}commit.id": source.commit_id,
        f"{build}commit.ref": source.ref,
        f"{build}commit.message": source.message,
        f"{build}source-location": redact_url(source.location),
        f"{build}source-context-dir": source.context_dir,
        SOURCE_FILE_LABEL: source.file_name,
        SOURCE_KIND_LABEL: source.file_kind,
        SOURCE_SHA256_LABEL: source.file_sha256,
    }
    return {key: _as_utf8(value) for key, value in labels.items() if value}


def _as_utf8(text: str) -> str:
    """`text` as JSON can hold it: bytes of a path that are no UTF-8 are written as `\\udcXX`."""
    return text.encode(errors="backslashreplace").decode()


def check_label_size(labels: Mapping[str, str]) -> None:
    """Raises `PolicyError` when keys and values, inherited ones too, exceed 10240 bytes in all."""
    size = sum(len(key.encode()) + len(value.encode()) for key, value in labels.items())
    if size > LABEL_SIZE_LIMIT:
        largest = max(labels, key=lambda key: len(labels[key]))
        raise PolicyError(
            f"the labels have {size} bytes, the limit is {LABEL_SIZE_LIMIT}",
            hint=f"the largest is `{largest}`; labels of the base image count as well",
        )


def parse_image_metadata(data: bytes) -> dict[str, str]:
    """The labels in `/tmp/.s2i/image_metadata.json`, of a key written twice the last.

    Its form is `{"labels": [{"KEY": "VALUE", ...}, ...]}`. Raises `ImageError` for any other,
    where upstream crashes.
    """
    what = f"`{IMAGE_METADATA_PATH}`"
    hint = 'assemble must write it as {"labels": [{"KEY": "VALUE"}]}'
    if len(data) > METADATA_SIZE_LIMIT:
        raise _bad_metadata(f"{what} has {len(data)} bytes, at most {METADATA_SIZE_LIMIT} are read")
    try:
        document = parse_json(data, what)
    except ImageError as error:
        raise _bad_metadata(error.message, hint) from error
    entries = document.get("labels")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise _bad_metadata(f"`labels` in {what} is not a list of objects", hint)
    labels: dict[str, str] = {}
    for key, value in _items(entries):
        if not key or not isinstance(value, str):
            raise _bad_metadata(f"label `{key}` in {what} has no text as its value", hint)
        labels[key] = value
    return labels


def _items(entries: Iterable[Mapping[str, object]]) -> Iterable[tuple[str, object]]:
    return (item for entry in entries for item in entry.items())


def _bad_metadata(message: str, hint: str | None = None) -> ImageError:
    return ImageError(message, hint=hint, reason="GenericS2IBuildFailed")


_USER_INFO = re.compile(r"(?i)\b([a-z][a-z0-9+.-]*)://([^/\s?#'\"]*)@")
_SCP_PASSWORD = re.compile(r"^([^@/:]*):[^@/]*@(?=[^/]*:)")
_SECRET_PARAMETER = re.compile(
    r"(?i)([?&][^=&#\s]*(?:token|passw|secret|key|auth|sig)[^=&#\s]*=)[^&#\s'\"]*"
)


def redact_url(text: str) -> str:
    """A URL, or text with URLs in it, without user names, passwords and tokens.

    The user name of an ssh URL stays: it is part of the address and no secret.
    """
    text = _USER_INFO.sub(_without_secret, text)
    text = _SCP_PASSWORD.sub(r"\1@", text)
    return _SECRET_PARAMETER.sub(r"\1redacted", text)


def _without_secret(match: re.Match[str]) -> str:
    scheme, user_info = match.groups()
    user = user_info.partition(":")[0]
    return f"{scheme}://{user}@" if scheme.lower() == "ssh" and user else f"{scheme}://"


# --- users ------------------------------------------------------------------------------------


def parse_user(text: str) -> UserSpec:
    """Reads `name|uid[:group|gid]`; an empty user is root, as Docker has it.

    Raises `UsageError` for white space, a second colon, or a number over 2147483647.
    """
    user, colon, group = text.partition(":")
    if ":" in group or re.search(r"[\s\0]", text) or (colon and not group):
        raise UsageError(f"invalid user `{text}`", hint="write it as USER or USER:GROUP")
    for part in (user, group):
        if (number := _number(part)) is not None and number > ID_LIMIT:
            raise UsageError(
                f"invalid user `{text}`: `{part}` is more than {ID_LIMIT}",
                hint="choose a smaller number, or a name",
            )
    return UserSpec(user, group or None)


def resolve_user(text: str, passwd: str, group: str) -> Identity:
    """Who `text` is in an image with these `/etc/passwd` and `/etc/group`, by Docker's rules.

    A number is always an id. Without an entry in passwd its group is 0 and its home `/`.
    Supplementary groups count only when no group was given (`GetExecUser` of moby/sys/user).
    Raises `ImageError` for a name that is not there, or for what is no name.
    """
    try:
        spec = parse_user(text)
    except UsageError as error:  # what is typed is read before there is an image
        raise ImageError(
            f"the image has an {error.message}",
            hint="give the number of the user, such as --assemble-user 1001",
        ) from error
    number = _number(spec.user) if spec.user else 0
    entry = _find_passwd(spec.user, number, passwd)
    if entry is None and number is None:
        raise ImageError(
            f"no user `{spec.user}` in the image's /etc/passwd",
            hint="give the number of the user, such as --assemble-user 1001",
        )
    identity = entry or Identity(number or 0, 0)
    if spec.group is not None:
        return _checked(text, replace(identity, gid=_group_id(spec.group, group)))
    members = (
        (gid for _, gid, names in _groups(group) if identity.name in names) if identity.name else ()
    )
    return _checked(text, replace(identity, groups=tuple(dict.fromkeys(members))))


def _find_passwd(user: str, number: int | None, passwd: str) -> Identity | None:
    for line in passwd.split("\n"):
        name, _, uid_text, gid_text, _, home, *_ = [*line.strip().split(":"), *[""] * 6]
        uid, gid = _number(uid_text), _number(gid_text)
        if uid is None or gid is None:
            continue
        if uid == number if number is not None else name == user:
            return Identity(uid, gid, (), home or "/", name)
    return None


def _group_id(wanted: str, group: str) -> int:
    number = _number(wanted)
    if number is not None:
        return number
    for name, gid, _ in _groups(group):
        if name == wanted:
            return gid
    raise ImageError(
        f"no group `{wanted}` in the image's /etc/group", hint="give the number of the group"
    )


def _groups(text: str) -> Iterable[tuple[str, int, list[str]]]:
    for line in text.split("\n"):
        name, _, gid_text, members, *_ = [*line.strip().split(":"), *[""] * 4]
        gid = _number(gid_text)
        if gid is not None:
            yield name, gid, members.split(",")


def _checked(text: str, identity: Identity) -> Identity:
    for number in (identity.uid, identity.gid, *identity.groups):
        if number > ID_LIMIT:
            raise ImageError(
                f"user `{text}` has id {number} in the image, over {ID_LIMIT}",
                hint="choose another user with --assemble-user",
            )
    return identity


def _number(text: str) -> int | None:
    # More digits than any id has are no number to Python's converter either (its limit is 4300).
    if not re.fullmatch(r"[0-9]{1,4000}", text):
        return None
    return int(text)
