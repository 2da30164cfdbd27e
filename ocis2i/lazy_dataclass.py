"""Dataclasses that cost little to declare: their methods are compiled when it pays, if ever.

`dataclasses.dataclass` writes the text of up to eight methods for each class and compiles them one
by one: some 0.4 ms for a class. A build declares two hundred, makes a few objects of half of them,
and compares or prints hardly any. So `dataclasses` only finds out the fields at once. A class fills
its first objects from the list of its fields, and gets a compiled `__init__` when it is asked for
more of them, or is called wrongly: then errors are the usual ones.

`fields`, `replace` and `asdict` know such a class as any other. What derives from one is to be
declared by this module, too: `dataclasses` believes that it made a class without methods, which is
not frozen.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from operator import attrgetter
from typing import TYPE_CHECKING, Any

# From so many objects on, compiling costs less than going through the list of fields (3 us each).
_OBJECTS_BEFORE_COMPILING = 40

if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass  # noqa: PLC0414 - to be imported from here
else:

    def dataclass(
        cls: type | None = None,
        /,
        *,
        repr: bool = True,  # noqa: A002 - the name that `dataclasses` gave it
        eq: bool = True,
        order: bool = False,
        frozen: bool = False,
        kw_only: bool = False,
        slots: bool = False,
    ) -> Any:
        """As `dataclasses.dataclass` with the flags that are named here; see there."""

        def declare(cls: type) -> type:
            made = dataclasses.dataclass(
                init=False, repr=False, eq=False, kw_only=kw_only, slots=slots
            )(cls)
            _add(made, "__init__", _initializer(made, frozen=frozen, slots=slots))
            if repr:
                _add(made, "__repr__", _made_by_first_call(made, "__repr__", repr=True))
            if eq:
                _add_comparison(made, frozen=frozen)
            if order:
                for name in ("__lt__", "__le__", "__gt__", "__ge__"):
                    _add(made, name, _made_by_first_call(made, name, eq=True, order=True))
            if frozen:
                _freeze(made)
            return made

        return declare if cls is None else declare(cls)


def _add(made: type, name: str, method: object) -> None:
    """Gives a class a method, unless it has one of its own."""
    if name not in made.__dict__:
        setattr(made, name, method)


# --- objects ------------------------------------------------------------------------------------


def _initializer(made: Any, *, frozen: bool, slots: bool) -> Callable[..., None]:
    """An `__init__` that is replaced by a compiled one once that is worth it."""
    begun = 0
    put = object.__setattr__ if frozen else setattr

    def initialize(self: Any, /, *values: Any, **named: Any) -> None:
        nonlocal begun
        begun += 1
        if begun > _OBJECTS_BEFORE_COMPILING or not _fill(made, put, self, values, named):
            made.__init__ = _standard(made, init=True, frozen=frozen, slots=slots).__init__
            made.__init__(self, *values, **named)
        elif hasattr(made, "__post_init__"):
            self.__post_init__()

    return initialize


def _fill(
    made: Any,
    put: Callable[[Any, str, Any], None],
    new: object,
    values: tuple[Any, ...],
    named: dict[str, Any],
) -> bool:
    """Sets the fields of a new object; whether all values were there, and none was too many."""
    given = dict(zip(made.__match_args__, values, strict=False)) | named
    if len(given) != len(values) + len(named):
        return False
    for field in dataclasses.fields(made):
        if field.init and field.name in given:
            value = given.pop(field.name)
        elif field.default is not dataclasses.MISSING:
            value = field.default
        elif field.default_factory is not dataclasses.MISSING:
            value = field.default_factory()
        else:
            return False
        put(new, field.name, value)
    return not given


def _freeze(made: Any) -> None:
    """Has fields, and any attribute of the very class, refuse to be set or deleted."""
    fields = frozenset(made.__dataclass_fields__)

    def refusing(word: str, otherwise: Callable[..., None]) -> Callable[..., None]:
        def method(self: object, name: str, *value: Any) -> None:
            if type(self) is made or name in fields:
                raise dataclasses.FrozenInstanceError(f"cannot {word} field {name!r}")
            otherwise(self, name, *value)

        return method

    made.__setattr__ = refusing("assign to", made.__setattr__)
    made.__delattr__ = refusing("delete", made.__delattr__)


# --- what is asked of them ----------------------------------------------------------------------


def _add_comparison(made: Any, *, frozen: bool) -> None:
    """Equality, and the hash that goes with it: none for what may change (language reference)."""
    own_hash = made.__dict__.get("__hash__")
    compared = _values_of(one.name for one in dataclasses.fields(made) if one.compare)

    def equal(self: object, other: object) -> Any:
        return compared(self) == compared(other) if type(self) is type(other) else NotImplemented

    def hashed(self: object) -> int:
        return hash(compared(self))

    _add(made, "__eq__", equal)
    if own_hash is None:
        made.__hash__ = hashed if frozen else None


def _values_of(names: Any) -> Callable[[object], Any]:
    """What gets the attributes of those names from an object: all in one, to be compared."""
    wanted = tuple(names)
    return attrgetter(*wanted) if wanted else lambda _: ()


def _made_by_first_call(made: type, name: str, **wanted: bool) -> Callable[..., Any]:
    def stand_in(self: object, /, *values: Any) -> Any:
        method = getattr(_standard(made, **wanted), name)
        setattr(made, name, method)
        return method(self, *values)

    return stand_in


def _standard(made: Any, **wanted: bool) -> Any:
    """A class of the same fields with the methods that `dataclasses` makes."""
    fields = made.__dataclass_fields__
    inside = {
        "__module__": made.__module__,
        "__qualname__": made.__qualname__,
        "__doc__": made.__doc__,
        "__annotations__": {name: field.type for name, field in fields.items()},
        **fields,
    }
    if hasattr(made, "__post_init__"):
        inside["__post_init__"] = made.__post_init__
    flags = {"init": False, "repr": False, "eq": False, "match_args": False} | wanted
    return dataclasses.dataclass(**flags)(type(made.__name__, (), inside))
