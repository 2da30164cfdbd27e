"""Classes that compile their methods late behave as those of `dataclasses` do."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from dataclasses import FrozenInstanceError, field
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocis2i import lazy_dataclass

Decorator = Callable[..., Any]
MANY = 100


def _usual(decorate: Decorator) -> Any:
    @decorate(frozen=True, slots=True)
    class Usual:
        """Of every kind of field."""

        a: int
        b: str = "b"
        c: list[int] = field(default_factory=list, compare=False)
        d: bytes = field(default=b"d", repr=False)
        e: float = field(default=0.5, kw_only=True)
        f: int = field(default=6, init=False)
        shared: ClassVar[int] = 7

    return Usual


def _base(decorate: Decorator) -> Any:
    @decorate(frozen=True, kw_only=True)
    class Base:
        """What another derives from."""

        a: int
        b: str = "b"

    return Base


def _derived(decorate: Decorator) -> Any:
    @decorate(frozen=True, kw_only=True)
    class Derived(_base(decorate)):  # type: ignore[misc]
        """Has what its base has, with another default."""

        b: str = "derived"
        c: tuple[int, ...] = ()

    return Derived


def _mutable(decorate: Decorator) -> Any:
    @decorate(slots=True)
    class Mutable:
        """May change, so it has no hash."""

        a: int
        b: list[int] = field(default_factory=list)

        def __post_init__(self) -> None:
            self.b = [*self.b, self.a]

    return Mutable


def _ordered(decorate: Decorator) -> Any:
    @decorate(frozen=True, slots=True, order=True)
    class Ordered:
        """Can be sorted."""

        a: int
        b: str = ""

    return Ordered


def _with_its_own(decorate: Decorator) -> Any:
    @decorate(frozen=True)
    class WithItsOwn:
        """Has methods of its own."""

        a: int

        def __eq__(self, other: object) -> bool:
            return isinstance(other, WithItsOwn)

        def __hash__(self) -> int:
            return 1

        def __repr__(self) -> str:
            return "own"

    return WithItsOwn


def _bare(decorate: Decorator) -> Any:
    @decorate(frozen=True, eq=False, repr=False)
    class Bare:
        """Is equal to itself alone."""

        a: int

    return Bare


def _empty(decorate: Decorator) -> Any:
    @decorate(frozen=True, slots=True)
    class Empty:
        """Has no field."""

    return Empty


KINDS = {
    one.__name__: one
    for one in (
        _usual, _derived, _mutable, _ordered, _with_its_own, _bare, _empty,
    )
}  # fmt: skip
CALLS: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((), {}),
    ((1,), {}),
    ((1, "x"), {}),
    ((1, 2), {}),
    ((), {"a": 1}),
    ((), {"a": 2, "b": "y"}),
    ((1,), {"a": 1}),
    ((1,), {"nothing": 1}),
    ((1, "x", [3], b"4"), {"e": 1.5}),
    ((1, "x", [3], b"4", 1.5), {}),
    ((1,), {"f": 1}),
    ((1,), {"shared": 1}),
    ((), {"a": 1, "b": "y", "c": (3,)}),
]


def told(decorate: Decorator, kind: str) -> list[object]:
    """All that can be seen of objects of a class, whose name is not told by where it was made."""
    made = KINDS[kind](decorate)
    objects, said = [], []
    for values, named in CALLS:
        try:
            objects.append(made(*values, **named))
        except TypeError as error:
            said.append(str(error))
    seen: list[object] = [said, made.__match_args__, made.__doc__]
    for one in objects:
        text = repr(one)
        seen.append(text.partition(" object at ")[0])
        seen.append({name.name: getattr(one, name.name) for name in dataclasses.fields(one)})
        seen.append([one == other for other in objects])
        seen.append([one != other for other in (None, 1, "x")])
        try:
            if made.__match_args__:
                one.a = 5
            seen.append(one.a)
        except AttributeError as error:
            seen.append((type(error), str(error)))
        try:
            seen.append([hash(one) == hash(other) for other in objects if one == other])
            seen.append([one < other for other in objects])
        except TypeError as error:
            seen.append(str(error))
    return seen


@pytest.mark.parametrize("kind", KINDS)
def test_a_class_behaves_as_one_of_the_standard_library(kind: str) -> None:
    assert told(lazy_dataclass.dataclass, kind) == told(dataclasses.dataclass, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_a_class_behaves_so_after_many_objects_as_well(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lazy_dataclass, "_OBJECTS_BEFORE_COMPILING", 0)
    assert told(lazy_dataclass.dataclass, kind) == told(dataclasses.dataclass, kind)


def test_only_many_objects_are_worth_a_compiled_method() -> None:
    made = _usual(lazy_dataclass.dataclass)
    first = made.__init__
    for number in range(lazy_dataclass._OBJECTS_BEFORE_COMPILING):
        assert made(number).a == number
    assert made.__init__ is first
    assert made(5) == made(5)
    assert made.__init__ is not first
    assert [made(number, c=[number]).c for number in range(MANY)] == [[n] for n in range(MANY)]


@given(st.lists(st.tuples(st.integers(), st.text()), max_size=9))
def test_ordered_objects_are_sorted_as_tuples_are(rows: list[tuple[int, str]]) -> None:
    made = _ordered(lazy_dataclass.dataclass)
    assert [(one.a, one.b) for one in sorted(made(*row) for row in rows)] == sorted(rows)


def test_fields_replacements_and_mappings_are_the_usual_ones() -> None:
    made = _usual(lazy_dataclass.dataclass)
    one = made(1, c=[3])
    assert [field.name for field in dataclasses.fields(made)] == [*"abcdef"]
    assert dataclasses.replace(one, b="new") == made(1, "new")
    assert dataclasses.asdict(one) == {"a": 1, "b": "b", "c": [3], "d": b"d", "e": 0.5, "f": 6}
    match one:
        case made(1, "b"):
            pass
        case _:
            pytest.fail("it has no positions")


def test_an_object_shares_no_default_with_another() -> None:
    made = _mutable(lazy_dataclass.dataclass)
    made(1).b.append(2)
    assert made(1).b == [1]


def test_an_attribute_of_a_frozen_object_cannot_be_deleted() -> None:
    one = _usual(lazy_dataclass.dataclass)(1)
    with pytest.raises(FrozenInstanceError, match="cannot delete field 'a'"):
        del one.a


def test_who_derives_without_being_a_dataclass_may_have_more() -> None:
    class More(_base(lazy_dataclass.dataclass)):  # type: ignore[misc]
        extra = 0

    one = More(a=1)
    one.extra = 5
    with pytest.raises(FrozenInstanceError):
        one.a = 2
    assert (one.extra, one.a) == (5, 1)


def test_threads_may_make_the_first_objects_together() -> None:
    for _ in range(20):
        made = _usual(lazy_dataclass.dataclass)
        found: list[int] = []
        barrier = threading.Barrier(4)

        def work(made: Any = made, found: list[int] = found, barrier: Any = barrier) -> None:
            barrier.wait()
            found.extend(made(number).a for number in range(MANY))

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(found) == sorted([*range(MANY)] * 4)
