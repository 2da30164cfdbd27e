"""Source and destination pairs of the command line and of labels. No input or output.

The syntax is that of source-to-image's `VolumeList` (`pkg/api/types.go`), used by `--inject`, by
`--runtime-artifact` and by the label `io.openshift.s2i.assemble-input-files`.
"""

from __future__ import annotations

import posixpath

from ocis2i.errors import UsageError, shown
from ocis2i.lazy_dataclass import dataclass

# source-to-image, `pkg/api/types.go`, `invalidFilenameCharacters`
FORBIDDEN = frozenset("`;*?\"<>|%#$!+{}&[],'")
INVALID_MAPPING = "InvalidArtifactsMapping"

_LABEL = "the label `io.openshift.s2i.assemble-input-files`"
_QUOTES = "\"'"


@dataclass(frozen=True, slots=True)
class PathPair:
    """What goes where; both cleaned, `.` where nothing was written."""

    source: str
    destination: str


def parse_mappings(text: str, flag: str) -> tuple[PathPair, ...]:
    """Reads `SRC[:DST][;SRC[:DST]...]`; `flag` names where it stands, as in `--inject`.

    The last colon separates; quotes around each part are dropped. Raises `UsageError` for an empty
    part, for one of the `FORBIDDEN` characters and for what cannot be printed.
    """
    return tuple(_parse_pair(part, f"`{flag}`", None) for part in text.split(";"))


def parse_input_files(label_text: str) -> tuple[PathPair, ...]:
    """Reads the label that names the artifacts of a runtime image; none for an empty one.

    Raises `UsageError` with the reason `InvalidArtifactsMapping`.
    """
    if not label_text.strip():
        return ()
    return tuple(_parse_pair(part, _LABEL, INVALID_MAPPING) for part in label_text.split(";"))


def check_artifact(pair: PathPair) -> None:
    """Raises `UsageError` unless `pair` leads from an absolute path to one below a `WORKDIR`.

    The words are those of source-to-image (`pkg/build/strategies/sti/sti.go`).
    """
    problem = None
    if not pair.source.startswith("/"):
        problem = "source must be an absolute path"
    elif pair.destination.startswith("/"):
        problem = "destination must be a relative path"
    elif pair.destination.startswith(".."):
        problem = "destination cannot start with '..'"
    if problem:
        raise UsageError(
            f"invalid runtime artifacts mapping `{pair.source}` -> `{pair.destination}`: {problem}",
            hint="write it as /path/in/the/builder:directory/below/the/runtime/WORKDIR",
            reason=INVALID_MAPPING,
        )


def _parse_pair(text: str, where: str, reason: str | None) -> PathPair:
    if not text:
        raise UsageError(
            f"{where} has an empty mapping", hint="write it as source[:destination]", reason=reason
        )
    source, _, destination = text.rpartition(":") if ":" in text else (text, "", "")
    pair = PathPair(_clean(source), _clean(destination))
    for path in (pair.source, pair.destination):
        for character in path:
            if character in FORBIDDEN or not character.isprintable():
                raise UsageError(
                    f"{where} has the character {_quoted(character)} in {path!a}",
                    hint="copy or mount the file under another name: paths of mappings are plain",
                    reason=reason,
                )
    return pair


def _quoted(character: str) -> str:
    if character == "`":
        return "'`'"
    return f"`{shown(character)}`"


def _clean(path: str) -> str:
    """As Go's `path.Clean`; POSIX lets two slashes at the beginning be special, Go does not."""
    cleaned = posixpath.normpath(path.strip(_QUOTES))
    return f"/{cleaned.lstrip('/')}" if cleaned.startswith("/") else cleaned
