"""Which users a build may run as."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocis2i.errors import PolicyError, UsageError, exit_code_of
from ocis2i.manifest import RuntimeConfig
from ocis2i.uids import (
    ASSEMBLE_RUNTIME,
    UidRange,
    UidRanges,
    check_allowed,
    check_result,
    parse_uid_ranges,
)

NOT_ROOT = parse_uid_ranges("1-")
LABEL = "io.openshift.s2i.assemble-user"


def config(
    user: str = "1001", label: str | None = None, on_build: Sequence[str] = ()
) -> RuntimeConfig:
    labels = {} if label is None else {LABEL: label}
    return RuntimeConfig(user=user, labels=labels, on_build=tuple(on_build))


# --- ranges -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "allowed", "forbidden"),
    [
        ("5", ["5", "05"], ["4", "6", "0"]),
        ("5-", ["5", "2147483647"], ["4", "0"]),
        ("-5", ["0", "5"], ["6"]),
        ("5-7", ["5", "6", "7"], ["4", "8"]),
        ("1,5-6, 9-", ["1", "5", "9", "10"], ["0", "2", "8"]),
        (",7,", ["7"], ["0"]),
    ],
)
def test_ranges_hold_both_their_ends(text: str, allowed: list[str], forbidden: list[str]) -> None:
    ranges = parse_uid_ranges(text)
    assert [user for user in allowed if not ranges.allow(user)] == []
    assert [user for user in forbidden if ranges.allow(user)] == []


@pytest.mark.parametrize(
    "user", ["", "root", "default", "+5", "-5", " 5", "5 ", "\u0665", "5.0", "0x5"]
)
def test_only_plain_decimal_numbers_are_allowed(user: str) -> None:
    assert not parse_uid_ranges("0-").allow(user)


@pytest.mark.parametrize("user", ["4294967296", "4294967297", "2147483648", "9" * 30])
def test_a_number_that_would_wrap_around_to_root_is_not_allowed(user: str) -> None:
    assert not NOT_ROOT.allow(user)


def test_the_group_does_not_matter() -> None:
    assert NOT_ROOT.allow("1001:0")
    assert not NOT_ROOT.allow("0:1001")
    assert not NOT_ROOT.allow(":1001")


@pytest.mark.parametrize("text", ["", ",", " , "])
def test_a_list_without_a_range_switches_the_check_off(text: str) -> None:
    ranges = parse_uid_ranges(text)
    assert not ranges
    assert ranges == UidRanges()
    check_allowed(ranges, "builder", config(user="root", label="0", on_build=["USER 0"]))
    check_result(ranges, "")


@pytest.mark.parametrize(
    "text",
    ["-", "a", "1:5", "1-b", "--5", "1-2-3", "+1", "1.5", "1 2", "\u0665", "2147483648", "9" * 99],
)
def test_what_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_uid_ranges(f"1,{text}")
    assert f"`{text}`" in caught.value.message
    assert caught.value.hint


def test_a_range_that_ends_before_it_begins_is_refused() -> None:
    with pytest.raises(UsageError, match=r"`9-5`.*ends before it begins"):
        parse_uid_ranges("9-5")


numbers = st.integers(0, 2**31 - 1)


@given(st.lists(st.tuples(numbers, numbers).map(sorted), max_size=4), numbers)
def test_ranges_read_what_they_write(pairs: list[list[int]], uid: int) -> None:
    ranges = UidRanges(tuple(UidRange(first, last) for first, last in pairs))
    assert parse_uid_ranges(str(ranges)) == ranges
    assert ranges.allow(str(uid)) == any(first <= uid <= last for first, last in pairs)


@given(st.text(max_size=20))
def test_any_text_is_ranges_or_a_usage_error(text: str) -> None:
    try:
        parse_uid_ranges(text)
    except UsageError as error:
        assert error.message


# --- who is looked at -------------------------------------------------------------------------


def refused(image: RuntimeConfig, **more: object) -> PolicyError:
    with pytest.raises(PolicyError) as caught:
        check_allowed(NOT_ROOT, "quay.io/some/builder:1", image, **more)  # type: ignore[arg-type]
    assert caught.value.reason == "AssembleUserForbidden"
    assert exit_code_of(caught.value) == 9
    assert "`1-`" in caught.value.message
    return caught.value


def test_a_builder_whose_users_are_allowed_passes() -> None:
    check_allowed(NOT_ROOT, "builder", config(user="1001:0", label="1002:0"))
    check_allowed(NOT_ROOT, "builder", config(label="0"), script_user="5:0")


@pytest.mark.parametrize("user", ["root", "0", "", "0:1001", "default"])
def test_image_user_has_to_be_a_number_within_the_ranges(user: str) -> None:
    error = refused(config(user=user))
    assert "image `quay.io/some/builder:1` must specify a user that is numeric" in error.message
    assert (f"`{user}`" if user else "not set, which is root") in error.message


def test_assemble_user_of_the_flag_is_checked() -> None:
    error = refused(config(), script_user="0:5")
    assert error.message.startswith("assemble user must be numeric and within the range of allowed")
    assert "--assemble-user is `0:5`" in error.message


def test_assemble_user_of_the_label_is_checked() -> None:
    error = refused(config(label="root"))
    assert "includes the `io.openshift.s2i.assemble-user` label whose value `root`" in error.message


def test_flag_takes_the_place_of_the_label() -> None:
    check_allowed(NOT_ROOT, "builder", config(label="root"), script_user="1001")


def test_a_root_result_does_not_pass_because_assemble_is_another() -> None:
    assert "the result runs as it" in str(refused(config(user=""), script_user="1001").hint)
    assert "the result runs as it" in str(refused(config(user="0", label="1001")).hint)


def test_a_builder_that_is_no_base_is_asked_only_for_who_runs_assemble() -> None:
    check_allowed(NOT_ROOT, "builder", config(user="0"), script_user="1001", is_base=False)
    check_allowed(NOT_ROOT, "builder", config(user="0", label="1001"), is_base=False)
    assert "assemble runs as it" in str(refused(config(user="0"), is_base=False).hint)


def test_runtime_image_is_judged_by_its_own_flag_and_label() -> None:
    image = RuntimeConfig(user="0", labels={})
    assert "must specify a user" in refused(image, role=ASSEMBLE_RUNTIME).message
    image = RuntimeConfig(user="1", labels={"io.openshift.s2i.assemble-runtime-user": "0"})
    assert "assemble-runtime-user` label" in refused(image, role=ASSEMBLE_RUNTIME).message
    error = refused(RuntimeConfig(user="1"), role=ASSEMBLE_RUNTIME, script_user="root")
    assert "--assemble-runtime-user is `root`" in error.message
    # The builder's label says nothing about it.
    check_allowed(NOT_ROOT, "runtime", config(label="0"), role=ASSEMBLE_RUNTIME)


@pytest.mark.parametrize(
    "trigger", ["USER 0", "user\troot", "USER  0:5", "User $USER", "USER", " USER 0 "]
)
def test_onbuild_must_not_change_to_a_forbidden_user(trigger: str) -> None:
    error = refused(config(on_build=["RUN make", "USER 1001", trigger]))
    assert "at least one ONBUILD instruction that sets the user" in error.message


@pytest.mark.parametrize("trigger", ["USER 1001", "user 5:0", "RUN useradd 0", "USERNAME 0", ""])
def test_onbuild_without_a_forbidden_user_passes(trigger: str) -> None:
    check_allowed(NOT_ROOT, "builder", config(on_build=[trigger]))


def test_the_result_is_checked_as_it_is_written() -> None:
    check_result(NOT_ROOT, "1001:0")
    with pytest.raises(PolicyError, match=r"the result must specify a user.*not set"):
        check_result(NOT_ROOT, "")
