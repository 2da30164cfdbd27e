"""How an image was built, read from its labels, so that it can be built again.

Better than source-to-image's `rebuild`: the recorded commit counts and not the branch's name, a
directory that was copied is copied again, and the label of the scripts' place is not taken for
`--scripts-url`, so scripts in the source's `.s2i/bin` keep their effect. Not recorded, and so not
repeated: variables, injections, volumes, the assemble user, the runtime image.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import field
from typing import Literal

from ocis2i.errors import ImageError, PolicyError, UsageError, shown
from ocis2i.lazy_dataclass import dataclass
from ocis2i.manifest import RuntimeConfig
from ocis2i.oci_artifacts import SCHEME as ARTIFACT_SCHEME
from ocis2i.reference import PathLocation, RegistryLocation, StoredLocation, parse_location
from ocis2i.s2i import (
    DESCRIPTION_LABEL,
    DISPLAY_NAME_LABEL,
    GIVEN_PARAMETERS_LABEL,
    LABEL_NAMESPACE,
    SOURCE_FILE_LABEL,
    Start,
    read_start,
    redact_url,
)

_BUILD = f"{LABEL_NAMESPACE}build."
IMAGE_LABEL = f"{_BUILD}image"
LOCATION_LABEL = f"{_BUILD}source-location"
CONTEXT_DIR_LABEL = f"{_BUILD}source-context-dir"
COMMIT_ID_LABEL = f"{_BUILD}commit.id"
COMMIT_REF_LABEL = f"{_BUILD}commit.ref"

_COMMIT_ID = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?\Z")
_REMOTE_URL = re.compile(r"(?!file:)[a-z][a-z0-9+.-]*://", re.IGNORECASE)
# git's own rule: a colon before any slash is `host:path` (git-clone(1), GIT URLS).
_SCP = re.compile(r"(?!file:)[^/]+:", re.IGNORECASE)
_ARCHIVE = re.compile(r"\.(?:tar(?:\.\w+)?|tgz|txz|tbz2?|tzst|zip|jar|war|ear)\Z", re.IGNORECASE)
# A file over HTTP, with its digest.
_PINNED = re.compile(r"#sha256=[0-9a-f]{64}\Z")
# What `redact_url` leaves of a secret in a URL's query.
_LOST_SECRET = re.compile(r"[?&][^=&#\s]*=redacted(?=[&#\s'\"]|\Z)")

_ANEW = "build it anew: ocis2i build SOURCE BUILDER TAG"

SourceKind = Literal["remote", "artifact", "directory", "archive"]


@dataclass(frozen=True, slots=True)
class Rebuild:
    """The build that the labels of an image describe; `warnings` are sentences for the user.

    `copy` is the flag `--copy`, `parameters` the label of what the builder was given. `is_local`:
    the source is a path of this host, which a hostile image may have chosen.
    """

    builder: str
    source: str
    ref: str | None = None
    context_dir: str | None = None
    description: str | None = None
    application_name: str | None = None
    copy: bool = False
    is_local: bool = False
    parameters: str = ""
    file_name: str | None = None
    start: Start = field(default_factory=Start)
    warnings: tuple[str, ...] = ()


def plan_rebuild(name: str, config: RuntimeConfig) -> Rebuild:
    """Reads what the labels of the image `name` say about its build.

    Raises `ImageError` when the builder or the source is not recorded, or cannot be had again.
    """
    labels = config.labels
    builder, location = _builder(name, labels), _location(name, labels)
    kind = _kind(location)
    commit, branch = _commit(name, labels), labels.get(COMMIT_REF_LABEL, "")
    # Upstream takes `HEAD`, which a detached checkout calls itself, for the default branch.
    ref = commit or (branch if branch != "HEAD" else "") or None
    if kind == "artifact":
        ref = None  # the commit is only where its files came from
    cloned = bool(commit or branch) or kind == "remote"
    elsewhere = kind in ("remote", "artifact")
    return Rebuild(
        builder=builder,
        source=location,
        ref=ref,
        context_dir=labels.get(CONTEXT_DIR_LABEL) or None,
        description=labels.get(DESCRIPTION_LABEL) or None,
        application_name=labels.get(DISPLAY_NAME_LABEL) or None,
        copy=kind == "directory" and not cloned,
        is_local=not elsewhere,
        parameters=labels.get(GIVEN_PARAMETERS_LABEL, ""),
        file_name=None if kind == "artifact" else labels.get(SOURCE_FILE_LABEL) or None,
        start=read_start(labels),
        warnings=(
            *_warn_of_relative("builder", builder, is_path=_is_path_location(builder)),
            *_warn_of_relative("source", location, is_path=not elsewhere),
            *(
                ()
                if kind == "artifact" or _PINNED.search(location)  # the digest says what was in it
                else _warn_of_change(location, commit, ref, cloned=cloned)
            ),
        ),
    )


def refuse_local_places(
    name: str, plan: Rebuild, *, built_from: str | None, built_with: str | None
) -> None:
    """Raises `PolicyError` when the image alone says to read something of this host.

    `built_from` and `built_with`: source and builder of a build of our own, as the store knows
    them. Labels are the image's, and what assemble writes beats what the build wrote: what they
    name would be read here, and land in the result, where the builder that they name sees it.
    """
    if (plan.source, plan.builder) == (built_from, built_with):
        return
    local = []
    if plan.is_local:
        local.append(("source", plan.source, "a path of this host", built_from))
    if kind := _local_kind(plan.builder):
        local.append(("builder", plan.builder, kind, built_with))
    if not local:
        return
    # What the image chose; or what the build had, too, and the image wants to meet another.
    what, place, kind, _ = min(local, key=lambda one: one[1] == one[3])
    raise PolicyError(
        f"image `{name}` was not built here from that, and names the {what} "
        f"`{shown(redact_url(place))}`, {kind}",
        hint=f"what an image says of itself does not choose what is read here; {_ANEW}",
    )


def lost_secret(location: str) -> bool:
    """Whether `location` is what `redact_url` left of a URL that works only with its secret."""
    return bool(_LOST_SECRET.search(location))


def is_remote(location: str) -> bool:
    """Whether a source is on another host by its form: a URL, or `host:path` as scp writes it."""
    return bool(_REMOTE_URL.match(location) or _SCP.match(location))


def _required(name: str, labels: Mapping[str, str], label: str) -> str:
    value = labels.get(label)
    if not value:
        # The words of source-to-image, `pkg/build/config.go`.
        raise ImageError(
            f"required label `{label}` not found in image `{name}`",
            hint=f"only an image that was built by S2I carries it; {_ANEW}",
        )
    return value


def _builder(name: str, labels: Mapping[str, str]) -> str:
    builder = _required(name, labels, IMAGE_LABEL)
    if "s2i-layered-temp-image-" in builder:
        # source-to-image writes this for builders without tar or a shell.
        raise ImageError(
            f"the builder of image `{name}` was `{shown(builder)}`, an image that source-to-image "
            "makes for one build and deletes",
            hint=_ANEW,
        )
    try:
        parse_location(builder)
    except UsageError as error:
        raise ImageError(
            f"label `{IMAGE_LABEL}` of image `{name}` names no builder: {shown(error.message)}",
            hint=error.hint or _ANEW,
        ) from error
    return builder


def _is_path_location(builder: str) -> bool:
    return isinstance(parse_location(builder), PathLocation)


def _local_kind(builder: str) -> str | None:
    """What of this host a builder is; `None` for a name, which anybody may have."""
    match parse_location(builder):
        case PathLocation():
            return "a path of this host"
        case StoredLocation():
            return "an image of this store"
        case RegistryLocation():
            return None


def _location(name: str, labels: Mapping[str, str]) -> str:
    location = _required(name, labels, LOCATION_LABEL)
    if location == "-":
        raise ImageError(
            f"the source of image `{name}` came from standard input, which is not kept",
            hint="give it again: ocis2i build - BUILDER TAG",
        )
    if lost_secret(location):
        raise ImageError(
            f"the source `{shown(redact_url(location))}` of image `{name}` had a secret in its "
            "URL, which the image does not hold",
            hint=f"{_ANEW}; a git credential helper keeps secrets out of URLs",
        )
    return location


def _kind(location: str) -> SourceKind:
    if location.startswith(ARTIFACT_SCHEME):
        return "artifact"
    if is_remote(location):
        return "remote"
    return "archive" if _ARCHIVE.search(location) else "directory"


def _commit(name: str, labels: Mapping[str, str]) -> str:
    commit = labels.get(COMMIT_ID_LABEL, "")
    if commit and not _COMMIT_ID.match(commit):
        raise ImageError(
            f"label `{COMMIT_ID_LABEL}` of image `{name}` is `{shown(commit)}`, which is no "
            "commit id",
            hint=_ANEW,
        )
    return commit


def _warn_of_relative(what: str, place: str, *, is_path: bool) -> Iterator[str]:
    path = re.sub(r"\A[a-z-]+:", "", place)
    if is_path and not path.startswith("/"):
        yield (
            f"the {what} `{shown(redact_url(place))}` is a relative path: it is looked for in the "
            "current directory"
        )


def _warn_of_change(location: str, commit: str, ref: str | None, *, cloned: bool) -> Iterator[str]:
    if commit:
        return
    where = shown(redact_url(location))
    if not cloned:
        yield f"`{where}` is built as it is now: the image does not say what was in it"
    elif ref:
        yield f"the image does not say which commit: `{shown(ref)}` is built as it is now"
    else:
        yield f"the image does not say which commit: the default branch of `{where}` is built"
