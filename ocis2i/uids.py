"""Which users a build may run as: the ranges of `--allowed-uids`, and who is held against them.

source-to-image (`CheckAllowedUser`) looks at one user and lets the others pass; here everybody
counts: who runs assemble, whom ONBUILD would change to, and as whom the result runs. A group
behind the user (`1001:0`) never matters, and the runtime image is judged like the builder.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from ocis2i.errors import PolicyError, UsageError
from ocis2i.lazy_dataclass import dataclass
from ocis2i.manifest import RuntimeConfig
from ocis2i.s2i import ASSEMBLE_RUNTIME_USER_LABEL, ASSEMBLE_USER_LABEL, ID_LIMIT

_FLAG = "--allowed-uids"
_DIGITS = r"[0-9]{1,20}"
_RANGE = re.compile(rf"(?P<first>{_DIGITS})?(?P<dash>-)?(?P<last>{_DIGITS})?\Z")
_USER_INSTRUCTION = re.compile(r"\s*user(?:\s+(.*))?\Z", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class UidRange:
    """The user ids `first` to `last`, both of them too."""

    first: int = 0
    last: int = ID_LIMIT

    def __contains__(self, uid: int) -> bool:
        return self.first <= uid <= self.last

    def __str__(self) -> str:
        if self.first == self.last:
            return str(self.first)
        return f"{self.first}-" if self.last == ID_LIMIT else f"{self.first}-{self.last}"


@dataclass(frozen=True, slots=True)
class UidRanges:
    """The user ids that are allowed; false, and no check at all, without a range."""

    ranges: tuple[UidRange, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.ranges)

    def __str__(self) -> str:
        return ",".join(map(str, self.ranges))

    def allow(self, user: str) -> bool:
        """Whether `user[:group]` is a decimal number within a range; a name never is."""
        uid = user.partition(":")[0]
        # What `str.isdigit` takes for digits is more than a kernel does.
        return bool(re.fullmatch(_DIGITS, uid)) and any(int(uid) in one for one in self.ranges)


@dataclass(frozen=True, slots=True)
class Role:
    """A script whose user can be chosen: the flag and the label that do so."""

    script: str
    flag: str
    label: str


ASSEMBLE = Role("assemble", "--assemble-user", ASSEMBLE_USER_LABEL)
ASSEMBLE_RUNTIME = Role("assemble-runtime", "--assemble-runtime-user", ASSEMBLE_RUNTIME_USER_LABEL)


def parse_uid_ranges(text: str) -> UidRanges:
    """Reads `n`, `n-`, `-n` and `n-m`, separated by commas; empty pieces mean nothing.

    Raises `UsageError` for anything else, and for a range that ends before it begins.
    """
    pieces = (piece.strip() for piece in text.split(","))
    return UidRanges(tuple(_parse_range(piece, text) for piece in pieces if piece))


def _parse_range(piece: str, text: str) -> UidRange:
    hint = "write it as `1000`, `1-`, `-999`, `1000-1999`, or several with commas between them"
    found = _RANGE.match(piece)
    if found is None or piece == "-":
        raise UsageError(f"`{piece}` in {_FLAG} `{text}` is no range of user ids", hint=hint)
    first = int(found["first"] or 0)
    last = int(found["last"] or ID_LIMIT) if found["dash"] else first
    if max(first, last) > ID_LIMIT:
        raise UsageError(f"`{piece}` in {_FLAG} `{text}` is more than {ID_LIMIT}", hint=hint)
    if first > last:
        raise UsageError(
            f"the range `{piece}` in {_FLAG} `{text}` ends before it begins",
            hint="write the smaller number first",
        )
    return UidRange(first, last)


def check_allowed(
    ranges: UidRanges,
    image: str,
    config: RuntimeConfig,
    *,
    role: Role = ASSEMBLE,
    script_user: str | None = None,
    is_base: bool = True,
) -> None:
    """Raises `PolicyError` when somebody in `image` is not allowed; without ranges all are.

    `role` says which script runs in the image, `script_user` is the value of its flag. The result
    runs as the user of the image that `is_base`: the runtime image if there is one, else the
    builder. An image user that neither runs the script nor the result does not matter.
    """
    if not ranges:
        return
    for user in _onbuild_users(config.on_build):
        _require(
            ranges,
            user,
            f"image `{image}` includes at least one ONBUILD instruction that sets the user to "
            f"a user that is not allowed: `{user}`",
        )
    label_user = config.labels.get(role.label) or None
    if script_user:
        _require(
            ranges,
            script_user,
            f"{role.script} user must be numeric and within the range of allowed users, "
            f"{role.flag} is `{script_user}`",
        )
    elif label_user:
        _require(
            ranges,
            label_user,
            f"image `{image}` includes the `{role.label}` label whose value `{label_user}` is "
            "not within the allowed range",
            hint=f"give another user by {role.flag}, or a range that holds this one",
        )
    if is_base or not (script_user or label_user):
        _check_image_user(ranges, image, config, role, is_base=is_base)


def _check_image_user(
    ranges: UidRanges, image: str, config: RuntimeConfig, role: Role, *, is_base: bool
) -> None:
    runs = "the result runs as it" if is_base else f"{role.script} runs as it"
    _require(
        ranges,
        config.user,
        f"image `{image}` must specify a user that is numeric and within the range of allowed "
        f"users, its USER is {f'`{config.user}`' if config.user else 'not set, which is root'}",
        hint=f"{runs}: set USER in the image to a number that {_FLAG} allows",
    )


def check_result(ranges: UidRanges, user: str) -> None:
    """Raises `PolicyError` when the result, as it is about to be written, runs as another user."""
    if ranges:
        _require(
            ranges,
            user,
            "the result must specify a user that is numeric and within the range of allowed "
            f"users, its USER is {f'`{user}`' if user else 'not set, which is root'}",
        )


def _require(ranges: UidRanges, user: str, message: str, hint: str | None = None) -> None:
    if not ranges.allow(user):
        raise PolicyError(
            f"{message} ({_FLAG} `{ranges}`)",
            hint=hint or f"choose a user by its number, and one that {_FLAG} allows",
            reason="AssembleUserForbidden",
        )


def _onbuild_users(triggers: Sequence[str]) -> Iterator[str]:
    """Whom the `USER` instructions among ONBUILD triggers change to; a variable is no number."""
    for trigger in triggers:
        if found := _USER_INSTRUCTION.match(trigger):
            yield (found[1] or "").strip()
