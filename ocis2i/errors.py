"""Every failure that ocis2i expects, the sentence a user reads and the exit code a script sees."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:  # every start of the program loads this module
    from ocis2i.failure import Failure


class Ocis2iError(Exception):
    """An expected failure: what happened, to what, with the value, and what to try.

    `reason` is a word of S2I's failure vocabulary where one exists (source-to-image
    `pkg/util/status`), else one of ours in the same form. `exit_code` ends the process. `failure`
    is what is known of the script that failed, if it was one. What to try when nobody knows better,
    as for a broken file of somebody else's, is `last_hint`.
    """

    exit_code: ClassVar[int] = 1
    default_reason: ClassVar[str] = "GenericS2IBuildFailed"
    last_hint: ClassVar[str | None] = None

    def __init__(self, message: str, *, hint: str | None = None, reason: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.reason = reason or self.default_reason
        self.failure: Failure | None = None

    @property
    def way_out(self) -> str | None:
        """What the user is told to try."""
        return self.hint or (None if self.failure else self.last_hint)


class UsageError(Ocis2iError):
    """An argument, a flag or a setting that cannot mean anything."""

    exit_code = 2
    default_reason = "InvalidUsage"
    last_hint = "`ocis2i help VERB` lists what a verb takes"


class SourceError(Ocis2iError):
    """The application's source cannot be had."""

    exit_code = 3
    default_reason = "FetchSourceFailed"
    last_hint = "look at what is named there; if it was made by a tool, make it again"


class ImageError(Ocis2iError):
    """An image, a layout or an archive that is missing, broken or not what it says it is."""

    exit_code = 4
    default_reason = "PullBuilderImageFailed"
    last_hint = "it is damaged, or not what it says: get it again, or take another one"


class ScriptsError(ImageError):
    """The builder image does not offer the S2I scripts that a build needs."""

    default_reason = "InstallScriptsFailed"
    last_hint = "take a builder that has it, or name the scripts' place with --scripts-url"


class RegistryError(Ocis2iError):
    """A registry that cannot be reached, refuses, or answers wrongly."""

    exit_code = 5
    default_reason = "RegistryFailed"
    last_hint = "try again; if it stays so, ask who runs that registry"


class IsolationError(Ocis2iError):
    """The host does not allow what a build needs from it."""

    exit_code = 6
    default_reason = "IsolationUnavailable"
    last_hint = "`ocis2i doctor` says what works on this host, and what would give it more"


class ScriptError(Ocis2iError):
    """A script of the builder ran and failed; `script_exit_code` is its own status.

    With `started` false it could not even begin, and the status is what a shell says of that.
    """

    exit_code = 7
    default_reason = "AssembleFailed"

    def __init__(
        self,
        message: str,
        *,
        script_exit_code: int,
        hint: str | None = None,
        reason: str | None = None,
        started: bool = True,
    ) -> None:
        super().__init__(message, hint=hint, reason=reason)
        self.script_exit_code = script_exit_code
        self.started = started


class OutputError(Ocis2iError):
    """The result cannot be written where it was asked for."""

    exit_code = 8
    default_reason = "ContainerCommitFailed"
    last_hint = "name a place that is there and can be written"


class PolicyError(Ocis2iError):
    """Something that is possible, but forbidden by a rule or over a limit."""

    exit_code = 9
    default_reason = "PolicyViolated"
    last_hint = "it is a fixed limit: make it less"


class Interrupted(Ocis2iError):  # noqa: N818 - named for what happened, it is not a fault
    """A signal asked for the end; the exit code is 128 plus its number, as shells have it."""

    default_reason = "Interrupted"

    def __init__(self, signal_number: int) -> None:
        names = {2: "interrupt", 15: "termination", 1: "hang-up"}
        super().__init__(f"stopped by {names.get(signal_number, f'signal {signal_number}')}")
        self.signal_number = signal_number


def exit_code_of(error: Ocis2iError) -> int:
    """The exit code of the process that ends with `error`."""
    if isinstance(error, Interrupted):
        return 128 + error.signal_number
    return error.exit_code


def shown(text: str) -> str:
    """Text of others for a message, on one line: what a terminal would obey or cannot print is
    escaped."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
