"""The flags of `kube`, and what becomes of those of `build` there."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, cast, get_args, get_type_hints

import typer

from ocis2i import variables
from ocis2i.commands.build_flags import BuildOptions
from ocis2i.commands.flags import option
from ocis2i.errors import UsageError
from ocis2i.kube.hidden import names_in_secret
from ocis2i.kube.names import check_name, label_name
from ocis2i.kube.plan import Level, Order, Pod
from ocis2i.lazy_dataclass import dataclass
from ocis2i.limits import parse_duration, parse_size
from ocis2i.reference import Reference, RegistryLocation, parse_location
from ocis2i.s2i import parse_variable, parse_variable_file


@dataclass(frozen=True, kw_only=True)
class KubeFlags(BuildOptions):
    """`kube`: its own, and all of `build`."""

    action: Annotated[str, typer.Argument(metavar="render|run", help="What to do.")]
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KIND] SOURCE BUILDER TAG", help="As `build` takes them."),
    ] = None
    pod_security: Annotated[
        str,
        option(
            "--pod-security",
            metavar="LEVEL",
            help="restricted: in place; baseline: chroot; or user-namespace.",
        ),
    ] = "restricted"
    tool_image: Annotated[
        str | None,
        option(
            "--tool-image",
            metavar="IMAGE",
            help="The image that has ocis2i in /ocis2i/tool. Default: $OCIS2I_TOOL_IMAGE.",
        ),
    ] = None
    name: Annotated[
        str | None,
        option("--name", metavar="NAME", help="Of the object. Default: made of the tag's."),
    ] = None
    file: Annotated[
        str | None,
        option("--file", metavar="FILE", help="Write the manifest there. Default: stdout."),
    ] = None
    namespace: Annotated[
        str | None, option("--namespace", metavar="NAME", help="Default: kubectl's own.")
    ] = None
    cluster_context: Annotated[
        str | None,
        option("--context", metavar="NAME", help="Of the kubeconfig. Default: the current one."),
    ] = None
    service_account: Annotated[
        str | None,
        option("--service-account", metavar="NAME", help="Of the pod; its token is not mounted."),
    ] = None
    push_secret: Annotated[
        str | None,
        option(
            "--push-secret",
            metavar="NAME",
            help="A secret with credentials to push, for the container that pushes.",
        ),
    ] = None
    pull_secret: Annotated[
        str | None,
        option(
            "--pull-secret",
            metavar="NAME",
            help="The same for the one that fetches. Default: that of --push-secret.",
        ),
    ] = None
    image_pull_secret: Annotated[
        str | None,
        option("--image-pull-secret", metavar="NAME", help="What nodes pull the images with."),
    ] = None
    build_secret: Annotated[
        str | None,
        option(
            "--build-secret",
            metavar="NAME",
            help="A secret whose keys -P NAME and --build-env NAME, without a value, are taken "
            "from.",
        ),
    ] = None
    run_as_user: Annotated[
        str,
        option(
            "--run-as-user",
            metavar="NUMBER",
            help="Who builds in place; `cluster`: whom the cluster takes, as OpenShift does.",
        ),
    ] = "1001"
    pod_cpu: Annotated[
        str, option("--pod-cpu", metavar="QUANTITY", help="What the build asks for, as 500m or 2.")
    ] = "1"
    pod_memory: Annotated[
        str, option("--pod-memory", metavar="SIZE", help="The most memory of the build, as 2Gi.")
    ] = "2Gi"
    disk: Annotated[
        str, option("--disk", metavar="SIZE", help="The most disk of the build, as 10Gi.")
    ] = "10Gi"
    deadline: Annotated[
        str, option("--deadline", metavar="TIME", help="How long all of it may take, as 1h.")
    ] = "1h"
    pending_timeout: Annotated[
        str,
        option("--pending-timeout", metavar="TIME", help="How long `run` waits for a node."),
    ] = "5m"
    keep_job: Annotated[
        bool, option("--keep-job", help="Leave the job in the cluster for a day.")
    ] = False
    seccomp_profile: Annotated[
        str | None,
        option(
            "--seccomp-profile",
            metavar="PATH",
            help="Of the node, for --pod-security user-namespace. Default: Unconfined.",
        ),
    ] = None
    source_repository: Annotated[
        str | None,
        option(
            "--source-repository",
            metavar="NAME",
            help="Where `run` puts a local source. Default: beside the result.",
        ),
    ] = None
    document: Annotated[str | None, option("--document", hidden=True, help="For `step`.")] = None
    auth_file: Annotated[str | None, option("--auth-file", hidden=True, help="For `step`.")] = None
    result_url: Annotated[str | None, option("--result-url", hidden=True, help="For `step`.")] = (
        None
    )
    result_digest: Annotated[
        str | None, option("--result-digest", hidden=True, help="For `step`.")
    ] = None
    result_size: Annotated[str | None, option("--result-size", hidden=True, help="For `step`.")] = (
        None
    )

    @property
    def typed_parameters(self) -> tuple[str, ...]:
        """The parameters whose values were typed, and so would stand in the manifest."""
        pairs = (one.partition("=") for one in self.parameter or ())
        return tuple(name.strip() for name, equals, _ in pairs if equals)


# --- the options of build -------------------------------------------------------------------------

# Who gets which; what is named nowhere goes to `build`.
_TO_FETCH = frozenset(
    "ref context_dir copy exclude keep_symlinks ignore_submodules depth "
    "source_type source_name".split()
)
_TO_PUSH = frozenset(("upload",))
_TO_FETCH_AND_PUSH = frozenset(("jobs",))
_TO_FETCH_AND_BUILD = frozenset(("platform",))
_TO_ALL = frozenset("tls_verify registry_timeout quiet log_level".split())
# Dealt with here, on this side.
_HERE = frozenset("root as_json tags push environment_file digest_file given".split())
_HIDDEN = "a manifest is no place for files; give a value with --build-env NAME and --build-secret"
_LOCAL = "it names a file of this host, which the pod does not have"
_REFUSED: Mapping[str, str] = {
    "isolation": "--pod-security says which one it is",
    "authfile": "give --push-secret and --pull-secret, names of secrets in the cluster",
    "cert_dir": _LOCAL,
    "signature_policy": _LOCAL,
    "volume": _LOCAL,
    "inject": _HIDDEN,
    "host_mirrors": "the pod has the settings of its own network",
    "pull_policy": "the pod always asks the registry",
    "iidfile": "the digest is in the document of --json",
    "output": "the result goes to its registry",
    "parameters_file": _LOCAL,
    "record": _LOCAL,
    "events": _LOCAL,
    "save_temp_dir": _LOCAL,
    "as_dockerfile": "write it here: it takes no cluster",
    "run": "run the result where it is to run",
    "use_config": "write the options",
    "shell_on_failure": "nobody sits before a pod",
    "keep_failed": "nothing of a pod is kept",
    "cache_from": "the container that builds has no credentials",
    "cache_to": "the container that builds has no credentials",
    "incremental": "the container that builds has no credentials to fetch the previous image with",
    "remove_previous": "the pod has no previous image",
    "runtime_image": "the container that builds has no credentials to fetch it with",
}
_DOCKER = frozenset("url cert key ca tls tlsverify".split())


def options_of(flags: BuildOptions) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The options of `build` that were given: the field, and the words that say the same."""
    hints = get_type_hints(type(flags), include_extras=True)
    fields = [field.name for field in dataclasses.fields(BuildOptions)]
    for name in fields:
        if name in flags.given and name not in _HERE | _DOCKER:
            yield name, tuple(_words(hints[name], getattr(flags, name)))


def _words(hint: Any, value: Any) -> Iterator[str]:
    (declared,) = [one for one in get_args(hint) if hasattr(one, "param_decls")]
    # In `Annotated`, Typer takes the first name for the default until it reads the function.
    names = (declared.default, *(declared.param_decls or ()))
    long = next(one for one in names if str(one).startswith("--"))
    if isinstance(value, bool):
        on, _, off = long.partition("/")
        yield (on if value else off) if off else f"{on}={str(value).lower()}"
        return
    for one in value if isinstance(value, list | tuple) else [value]:
        yield f"{long}={one}"


@dataclass(frozen=True, slots=True)
class Sorted:
    """The options by the command that gets them."""

    fetch: tuple[str, ...] = ()
    build: tuple[str, ...] = ()
    push: tuple[str, ...] = ()


def sort_options(flags: BuildOptions, cwd: Path) -> Sorted:
    """Who gets which option. Raises `UsageError` for one that a cluster cannot grant."""
    fetch: list[str] = []
    build: list[str] = []
    push: list[str] = []
    for name, words in options_of(flags):
        if name in _REFUSED:
            flag = words[0].partition("=")[0]
            raise UsageError(f"{flag} has no meaning in a cluster", hint=_REFUSED[name])
        _check_here(name, words)
        if name in _TO_FETCH | _TO_FETCH_AND_PUSH | _TO_FETCH_AND_BUILD | _TO_ALL:
            fetch += words
        if name in _TO_PUSH | _TO_FETCH_AND_PUSH | _TO_ALL:
            push += words
        if name not in _TO_FETCH | _TO_PUSH | _TO_FETCH_AND_PUSH:
            build += words
    return Sorted(tuple(fetch), (*_from_file(flags, cwd), *build), tuple(push))


def _check_here(name: str, words: tuple[str, ...]) -> None:
    """Raises `UsageError` for a value that names a file of this host."""
    if name == "parameter" and (files := [one for one in words if "=@" in one]):
        raise UsageError(
            f"`{files[0].partition('=@')[0]}` is read from a file of this host",
            hint="write the value; a secret: -P NAME, without one, and --build-secret SECRET",
        )
    if name in ("scripts_url", "scripts") and words[0].partition("=")[2].startswith("file:"):
        raise UsageError(
            f"`{words[0]}` is on this host, and the pod does not have it",
            hint="put the scripts into the source, in .s2i/bin, or give an https: URL",
        )


def _from_file(flags: BuildOptions, cwd: Path) -> list[str]:
    """`--environment-file` is of this host: its variables become options."""
    if not flags.environment_file:
        return []
    try:
        text = (cwd / flags.environment_file).read_text("utf-8")
    except (OSError, UnicodeError) as error:
        raise UsageError(
            f"the environment file `{flags.environment_file}` cannot be read: {error}",
            hint="name a file in UTF-8 that is there and that you may read",
        ) from error
    found = parse_variable_file(text, flags.environment_file)
    own = dict(map(parse_variable, flags.env or ()))
    return [f"--env={name}={value}" for name, value in found.items() if name not in own]


# --- the pod --------------------------------------------------------------------------------------


def order_of(flags: KubeFlags, places: list[str], cwd: Path) -> Order:
    """The build that `[SOURCE, BUILDER, TAG]` and the options ask for. Raises `UsageError`."""
    if len(places) != 3:
        raise UsageError(
            f"a build in a cluster takes SOURCE, BUILDER and TAG, and here are {len(places)}",
            hint="write: ocis2i kube run SOURCE BUILDER TAG, "
            "or ocis2i kube render KIND SOURCE BUILDER TAG",
        )
    source, builder, tag = places
    names = [str(_registry_name(text)) for text in (tag, *(flags.tags or ()))]
    sorted_options = sort_options(flags, cwd)
    return Order(
        source,
        str(_builder(builder)),
        tuple(dict.fromkeys(names)),
        sorted_options.fetch,
        sorted_options.build,
        sorted_options.push,
        names_in_secret(flags.build_env, flags.parameter),
    )


def _builder(text: str) -> Reference:
    location = parse_location(text)
    if not isinstance(location, RegistryLocation):
        raise UsageError(
            f"the builder `{text}` is on this host, and the cluster does not have it",
            hint="push it to a registry: ocis2i push BUILDER REGISTRY/NAME:TAG",
        )
    return location.reference.with_default_tag()


def _registry_name(text: str) -> Reference:
    name = Reference.parse(text).with_default_tag()
    if name.digest:
        raise UsageError(
            f"the result cannot be named `{name}`: its digest is not known yet",
            hint="leave out the part from `@` on",
        )
    return name


_SECRETS = frozenset("push_secret pull_secret".split())
_ACCOUNT = frozenset("service_account image_pull_secret".split())
_NO_POD = _SECRETS | _ACCOUNT | frozenset("namespace run_as_user pod_cpu pod_memory disk".split())
# What a manifest of a kind has no place for.
_USELESS: Mapping[str, tuple[frozenset[str], str]] = {
    "tekton-task": (
        _SECRETS | _ACCOUNT | {"deadline"},
        "credentials come by the workspaces, and the rest is the TaskRun's",
    ),
    "shipwright-strategy": (
        _SECRETS | _ACCOUNT | {"namespace", "deadline"},
        "it is of the whole cluster, and the rest is the Build's",
    ),
    "gitlab-ci": (_NO_POD, "the runner's settings say it"),
    "github-actions": (_NO_POD | {"tool_image"}, "the job runs on a machine of GitHub's"),
}
_OF_RUN = frozenset("cluster_context pending_timeout keep_job source_repository".split())


def refuse_useless(flags: KubeFlags, kind: str) -> None:
    """Refuses flags that would change nothing in what `kube render` writes. Raises `UsageError`."""
    useless, why = _USELESS.get(kind, (frozenset(), ""))
    for name in sorted(flags.given & (useless | _OF_RUN)):
        flag = "--context" if name == "cluster_context" else f"--{name.replace('_', '-')}"
        if name in _OF_RUN:
            raise UsageError(f"{flag} is for `kube run`", hint="leave it out")
        raise UsageError(f"{flag} has no place in a `{kind}`", hint=f"leave it out: {why}")


def pod_of(
    flags: KubeFlags, order: Order, environment: Mapping[str, str], *, needs_tool: bool = True
) -> Pod:
    """The pod that the flags ask for. Raises `UsageError`."""
    if flags.pod_security not in get_args(Level):
        raise UsageError(
            f"--pod-security is `{flags.pod_security[:40]}`",
            hint=f"there are {', '.join(get_args(Level))}",
        )
    if flags.seccomp_profile and flags.pod_security != "user-namespace":
        raise UsageError(
            "--seccomp-profile is for --pod-security user-namespace",
            hint="the others have the profile of the container runtime",
        )
    tool = flags.tool_image or variables.TOOL_IMAGE.text(environment)
    if not tool and needs_tool:
        raise UsageError(
            "the cluster needs an image that has ocis2i, and none is named",
            hint="make one with scripts/tool-image, push it, and give --tool-image or "
            "OCIS2I_TOOL_IMAGE",
        )
    for name in (
        "service_account",
        "push_secret",
        "pull_secret",
        "image_pull_secret",
        "build_secret",
    ):
        if (value := getattr(flags, name)) is not None:
            check_name(value, f"--{name.replace('_', '-')}")
    if flags.namespace is not None:
        check_name(flags.namespace, "--namespace", dots=False)
    repository = Reference.parse(order.names[0]).repository if order.names else "build"
    return Pod(
        name=check_name(flags.name, "--name", dots=False)
        if flags.name is not None
        else label_name(f"ocis2i-{repository.rpartition('/')[2]}"),
        tool_image=str(_builder(tool)) if tool else "",
        level=cast(Level, flags.pod_security),
        namespace=flags.namespace,
        service_account=flags.service_account,
        push_secret=flags.push_secret,
        pull_secret=flags.pull_secret,
        image_pull_secret=flags.image_pull_secret,
        build_secret=flags.build_secret,
        user=_user(flags.run_as_user),
        cpu=_processors(flags.pod_cpu),
        memory=_size(flags.pod_memory, "--pod-memory"),
        disk=_size(flags.disk, "--disk"),
        deadline_seconds=max(1, round(parse_duration(flags.deadline, "--deadline") or 3600)),
        seccomp_profile=flags.seccomp_profile,
    )


def _user(text: str) -> int | None:
    if text == "cluster":
        return None
    if text.isascii() and text.isdigit() and int(text) < 1 << 31:
        return int(text)
    raise UsageError(f"--run-as-user is `{text[:40]}`", hint="it is a number, or `cluster`")


def _processors(text: str) -> str:
    """A quantity of processors: `500m`, `2` or `1.5`."""
    if not re.fullmatch(r"[1-9][0-9]{0,5}m|[1-9][0-9]{0,3}(\.[0-9]{1,3})?|0\.[0-9]{1,3}", text):
        raise UsageError(f"--pod-cpu is `{text[:40]}`", hint="write it as 500m or 2")
    return text


def _size(text: str, flag: str) -> str:
    """A quantity of bytes; `2g` means `2Gi`, as elsewhere in ocis2i."""
    if re.fullmatch(r"[1-9][0-9]{0,9}[KMGT]i", text):
        return text
    return str(parse_size(text, flag))
