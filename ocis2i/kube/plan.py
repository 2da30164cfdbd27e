"""What a build in a cluster consists of: containers one after the other, and who holds what. Pure.

    tool    puts ocis2i where the builder's container finds it   (only to build in place)
    fetch   source, and the builder's manifest                   holds the secret to pull
    build   runs foreign code                                    holds those of its user's choice
    push    sends the result to its registry                     holds the secret to push

They share the directory `WORK` and nothing else.
"""

from __future__ import annotations

from typing import Literal

from ocis2i.errors import UsageError
from ocis2i.lazy_dataclass import dataclass

Level = Literal["restricted", "baseline", "user-namespace"]
Kind = Literal["tool", "fetch", "build", "push"]

HOME = "/ocis2i"
TOOL = f"{HOME}/tool"
PROGRAM = f"{TOOL}/bin/ocis2i"
COPY = f"{HOME}/copy"
WORK = f"{HOME}/work"
STORE = f"{WORK}/store"
SOURCE = f"{WORK}/source"
AUTH = f"{HOME}/auth"
DOCUMENT = f"{WORK}/result.json"
TERMINATION_LOG = "/dev/termination-log"

# What `--isolation` is at each level (docs/isolation.md).
ISOLATION: dict[Level, str] = {
    "restricted": "in-place",
    "baseline": "chroot",
    "user-namespace": "auto",
}


@dataclass(frozen=True, slots=True)
class Pod:
    """How the pod of a build is to be.

    `name` is a label by RFC 1123. Secrets are names; sizes are quantities of Kubernetes;
    `user` is the numeric one, `None` where the cluster chooses it (OpenShift).
    """

    name: str
    tool_image: str
    level: Level = "restricted"
    namespace: str | None = None
    service_account: str | None = None
    push_secret: str | None = None
    pull_secret: str | None = None
    image_pull_secret: str | None = None
    build_secret: str | None = None
    user: int | None = 1001
    cpu: str = "1"
    memory: str = "2Gi"
    disk: str = "10Gi"
    deadline_seconds: int = 3600
    keep_seconds: int = 86400
    seccomp_profile: str | None = None


@dataclass(frozen=True, slots=True)
class Order:
    """One build: its arguments, and the options that each of its commands gets.

    The first of `names` is the result's own. `variables` are those that `build` takes out of the
    environment of its container.
    """

    source: str
    builder: str
    names: tuple[str, ...]
    fetch: tuple[str, ...] = ()
    build: tuple[str, ...] = ()
    push: tuple[str, ...] = ()
    variables: tuple[str, ...] = ()

    @property
    def words(self) -> tuple[str, ...]:
        """All that a user wrote."""
        own = (self.source, self.builder, *self.names)
        return (*own, *self.fetch, *self.build, *self.push)


@dataclass(frozen=True, slots=True)
class Step:
    """One container: its image, the command line after `ocis2i`, and the secret it may hold.

    `values` are the keys of the secret `values_of` that it has as variables.
    """

    name: str
    kind: Kind
    image: str
    words: tuple[str, ...]
    secret: str | None = None
    values_of: str = ""
    values: tuple[str, ...] = ()


def steps(order: Order, pod: Pod, *, report: tuple[str, ...] = ()) -> tuple[Step, ...]:
    """The containers of a build, in their order; the last one gets `report` as options, too."""
    in_place = pod.level == "restricted"
    found = [Step("tool", "tool", pod.tool_image, ("kube", "copy", COPY))] if in_place else []
    pull_secret = pod.pull_secret or pod.push_secret
    found.append(Step("fetch", "fetch", pod.tool_image, _fetch(order, pod), pull_secret))
    image = order.builder if in_place else pod.tool_image
    words, values = _build(order, pod), order.variables
    found.append(
        Step("build", "build", image, words, values_of=pod.build_secret or "", values=values)
    )
    for number, name in enumerate(order.names):
        last = number == len(order.names) - 1
        words = _push(order, name, report if last else ())
        label = "push" if last else f"push-{number + 1}"
        found.append(Step(label, "push", pod.tool_image, words, pod.push_secret))
    return tuple(found)


def tag_options(order: Order) -> tuple[str, ...]:
    """What gives the result its other names in the store, where `push` looks for them."""
    return tuple(word for name in order.names[1:] for word in ("--tag", name))


def _step(*options: str) -> tuple[str, ...]:
    return ("--root", STORE, "kube", "step", f"--document={DOCUMENT}", *options, "--")


def with_options(words: tuple[str, ...], *options: str) -> tuple[str, ...]:
    """The command line of a step, with more options for the step itself."""
    place = words.index("step") + 1
    return (*words[:place], *options, *words[place:])


def _fetch(order: Order, pod: Pod) -> tuple[str, ...]:
    layers = () if pod.level == "restricted" else ("--with-layers",)
    given = ("--builder", order.builder, *layers, "--json", "--", order.source, SOURCE)
    return (*_step(), "fetch", *order.fetch, *given)


def _build(order: Order, pod: Pod) -> tuple[str, ...]:
    forced = ("--isolation", ISOLATION[pod.level], "--pull-policy", "never", "--json")
    own = (*tag_options(order), *forced)
    places = ("--", f"fetched:{SOURCE}", order.builder, order.names[0])
    return (*_step(), "build", *order.build, *own, *places)


def _push(order: Order, name: str, report: tuple[str, ...]) -> tuple[str, ...]:
    return (*_step(*report), "push", *order.push, "--json", "--", name)


def check(order: Order, pod: Pod) -> None:
    """Raises `UsageError` for what no cluster can do."""
    if not order.names:
        raise UsageError(
            "a build in a cluster needs a name to push to", hint="give the tag as third argument"
        )
    if pod.level == "restricted" and pod.user == 0:
        raise UsageError(
            "--run-as-user 0 is root, and --pod-security restricted allows everybody else",
            hint="take another number, or --pod-security baseline",
        )


def check_variables(order: Order, pod: Pod) -> None:
    """Raises `UsageError` for variables that nothing gives, and a Secret that nothing takes."""
    if order.variables and not pod.build_secret:
        raise UsageError(
            f"the value of `{order.variables[0]}` is to come out of the environment, and the "
            "pod's has none",
            hint="put it into a Secret of the namespace under that key, and give the Secret's name "
            "with --build-secret",
        )
    if pod.build_secret and not order.variables:
        raise UsageError(
            "--build-secret names a Secret that nothing is taken out of",
            hint="name what is: -P NAME for a parameter, or --build-env NAME, each without a value",
        )
