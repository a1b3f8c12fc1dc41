"""What a caller chose: layers, heads, positions, functions."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from tl_vzero.errors import InputError, InputTypeError, foreign_errors_as, shown


def chosen(name: str, given: Iterable[int] | int | None, count: int, holder: str) -> tuple[int, ...] | None:
    """Resolve chosen numbers against how many there are; negative ones count from the end.

    >>> chosen("layers", [-1, 0], 4, "the model has")
    (3, 0)
    """
    numbers = integers(name, given)
    if numbers is None:
        return None
    resolved = tuple(_within(name, number, count, holder) for number in numbers)
    repeated = sorted({number for number in resolved if resolved.count(number) > 1})
    if repeated:
        raise InputError(f"{name} holds {repeated} more than once: expected each at most once")
    return resolved


def chosen_heads(given: Iterable[int] | int | None, n_value_heads: int, n_query_heads: int) -> tuple[int, ...] | None:
    """Resolve chosen heads of the values: under grouped queries there are fewer than heads of the pattern.

    >>> chosen_heads([-1], 2, 4)
    (1,)
    """
    shared = f"{n_query_heads} query heads share the value heads, of which the model has"
    return chosen("heads", given, n_value_heads, "values have" if n_value_heads == n_query_heads else shared)


def _within(name: str, number: int, count: int, holder: str) -> int:
    if not -count <= number < count:
        raise InputError(
            f"{name} holds {number}: expected 0 to {count - 1}, or -{count} to -1 from the end ({holder} {count})"
        )
    return number % count


def integers(name: str, given: Iterable[int] | int | None, *, empty: bool = False) -> tuple[int, ...] | None:
    """Read one integer or several from a number, list, range or tensor; `None` stays `None`."""
    if given is None:
        return None
    read = listed(name, given)
    if not isinstance(read, list | int):
        raise InputTypeError(f"{name} is {type(given).__name__}: expected integers, such as [0, 3], or None for all")
    numbers = read if isinstance(read, list) else [read]
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int):
            raise InputTypeError(f"{name} holds {shown(number)} ({type(number).__name__}): expected integers")
    if not numbers and not empty:
        raise InputError(f"{name} is empty: expected at least one, or None for all")
    return tuple(numbers)


def listed(name: str, given: Any) -> Any:
    """What a tensor, an array or another iterable holds, as a list; a number or a string stays what it is.

    >>> listed("layers", range(2)), listed("layers", 3), listed("spans", "words")
    ([0, 1], 3, 'words')
    """
    with foreign_errors_as(InputError, f"{name} cannot be read"):
        if hasattr(given, "tolist"):
            return given.tolist()
        return list(given) if isinstance(given, Iterable) and not isinstance(given, str) else given


def flag(name: str, given: bool) -> bool:
    """Check what is either so or not.

    >>> flag("per_head", True)
    True
    """
    if not isinstance(given, bool | np.bool_):
        raise InputTypeError(f"{name} is {type(given).__name__}: expected True or False")
    return bool(given)


def positive(name: str, given: int | None) -> int | None:
    """Check a count that may be left open; `None` stays `None`.

    >>> positive("batch_size", 3)
    3
    """
    if given is None:
        return None
    if isinstance(given, bool) or not isinstance(given, int):
        raise InputTypeError(f"{name} is {type(given).__name__}: expected a positive integer or None")
    if given < 1:
        raise InputError(f"{name} is {given}: expected at least 1, or None to let the engine choose")
    return given


def callable_name(function: Callable[..., Any]) -> str:
    """What metadata call a function of the caller's: never by a name that the library has for something else.

    >>> callable_name(max), callable_name(lambda rows: rows)
    ('max (a callable)', '<lambda> (a callable)')
    """
    return f"{getattr(function, '__qualname__', type(function).__qualname__)} (a callable)"
