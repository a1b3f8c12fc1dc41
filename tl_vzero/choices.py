"""What a caller chose: layers, heads, positions, counts, names, functions. Read and checked at the door."""

from collections.abc import Callable, Iterable, Sequence
from operator import index as index_of
from typing import Any, TypeVar

import numpy as np

from tl_vzero.errors import InputError, InputTypeError, did_you_mean, foreign_errors_as, shortened, shown, unknown_name

Name = TypeVar("Name")
Token = TypeVar("Token", bound=int | str)
Position = int | str  # in a sentence; a str is the text of a token that occurs once
Positions = Iterable[int | str] | int | str | None
A_POSITION = "a position (int) or the text of a token (str)"
LISTED_LENGTH = 200  # characters of a sentence that an error lists


def chosen(name: str, values: Iterable[int] | int | None, count: int, holder: str) -> tuple[int, ...] | None:
    """Resolve chosen indices against how many there are; negative ones count from the end."""
    indices = integers(name, values)
    if indices is None:
        return None
    for index in indices:
        if not -count <= index < count:
            raise InputError(
                f"{name} holds {index}: expected 0 to {count - 1}, or -{count} to -1 from the end ({holder} {count})"
            )
    resolved = tuple(index % count for index in indices)
    repeated = sorted({index for index in resolved if resolved.count(index) > 1})
    if repeated:
        raise InputError(f"{name} holds {repeated} more than once: expected each at most once")
    return resolved


def chosen_heads(values: Iterable[int] | int | None, n_value_heads: int, n_query_heads: int) -> tuple[int, ...] | None:
    """Resolve chosen heads of the values: under grouped queries there are fewer than heads of the pattern."""
    shared = f"{n_query_heads} query heads share the value heads, of which the model has"
    return chosen("heads", values, n_value_heads, "values have" if n_value_heads == n_query_heads else shared)


def place_of(name: str, position: object, tokens: Sequence[str], positions: Sequence[int]) -> int:
    """Where on an axis a position is (negative: from the axis's end), or the token of a text that occurs once.

    Raises InputError for one that is not there, with the nearest token, or with all places of a token that occurs
    several times; InputTypeError for what is neither.
    """
    if isinstance(position, str):
        texts = [token.strip() for token in tokens]
        places = [place for place, text in enumerate(texts) if text == position.strip()]
        if len(places) == 1:
            return places[0]
        if places:
            listing = ", ".join(str(positions[place]) for place in places)
            raise InputError(
                f"{name} {shown(position)} occurs {len(places)} times, at positions {listing}: expected a token that "
                "occurs once; give one of these positions"
            )
        present = f"{shortened(', '.join(texts), LISTED_LENGTH)}, or a position{did_you_mean(position.strip(), texts)}"
        raise InputError(f"{name} {shown(position)} is none of the tokens: expected one of {present}")
    with foreign_errors_as(InputTypeError, f"{name} is {type(position).__name__}: expected {A_POSITION}"):
        at = index_of(None if isinstance(position, bool) else position)  # type: ignore[arg-type]
    if at in positions:
        return positions.index(at)
    count = len(positions)
    if -count <= at < 0:
        return count + at
    present = f"0 to {count - 1}" if list(positions) == list(range(count)) else f"one of {shown(list(positions))}"
    raise InputError(
        f"{name} {at} is outside the sentence, or this part of it: expected {present}, or -{count} to -1 from the end"
    )


def positions_in(tokens: Sequence[str], name: str, values: Positions) -> tuple[int, ...]:
    """Resolve chosen positions of a sentence, `None` to all of them; raises what `chosen` and `place_of` raise."""
    read = positions(name, values)
    if read is None:
        return tuple(range(len(tokens)))
    every = range(len(tokens))
    places = [place_of(name, at, tokens, every) if isinstance(at, str) else at for at in read]
    return chosen(name, places, len(tokens), "the sentence has") or ()


def positions(name: str, values: Positions) -> tuple[Position, ...] | None:
    """Read one position or several as `integers` does; the text of a token is one, too."""
    return _several(name, values, int | str, "positions (int) or texts of tokens (str), such as [0, 'hat']")


def integers(name: str, values: Iterable[int] | int | None, *, empty: bool = False) -> tuple[int, ...] | None:
    """Read one integer or several from an integer, list, range or tensor; `None` stays `None`."""
    return _several(name, values, int, "integers, such as [0, 3]", empty=empty)


def _several(name: str, values: Any, kinds: Any, expected: str, *, empty: bool = False) -> tuple[Any, ...] | None:
    if values is None:
        return None
    read = listed(name, values)
    if not isinstance(read, list | kinds):
        raise InputTypeError(f"{name} is {type(values).__name__}: expected {expected}, or None for all")
    read = read if isinstance(read, list) else [read]
    for value in read:
        if isinstance(value, bool) or not isinstance(value, kinds):
            raise InputTypeError(f"{name} holds {shown(value)} ({type(value).__name__}): expected {expected}")
    if not read and not empty:
        raise InputError(f"{name} is empty: expected at least one, or None for all")
    return tuple(read)


def listed(name: str, values: Any) -> Any:
    """What a tensor, an array or another iterable holds, as a list; an integer or a string stays what it is."""
    with foreign_errors_as(InputError, f"{name} cannot be read"):
        if hasattr(values, "tolist"):
            return values.tolist()
        return list(values) if isinstance(values, Iterable) and not isinstance(values, str) else values


def flag(name: str, value: bool) -> bool:
    """Check what is either so or not."""
    if not isinstance(value, bool | np.bool_):
        raise InputTypeError(f"{name} is {type(value).__name__}: expected True or False")
    return bool(value)


def integer(name: str, value: object, expected: str = "an integer") -> int:
    """Check an integer that must be there; raises InputTypeError."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputTypeError(f"{name} is {type(value).__name__}: expected {expected}")
    return value


def at_least_one(name: str, value: object, expected: str = "a positive integer", *, otherwise: str = "") -> int:
    """Check a count that must be there; raises InputTypeError or InputError, with what else one may do."""
    count = integer(name, value, expected)
    if count < 1:
        raise InputError(f"{name} is {count}: expected at least 1{otherwise}")
    return count


def positive(name: str, value: int | None) -> int | None:
    """Check a count that may be left open; `None` stays `None`."""
    if value is None:
        return None
    return at_least_one(name, value, "a positive integer or None", otherwise=", or None to let the engine choose")


def one_of(kind: str, name: object, names: Iterable[Name]) -> Name:
    """Check a name against those that there are; raises InputError."""
    names = list(names)
    if name not in names:
        raise unknown_name(kind, name, map(str, names))
    return names[names.index(name)]


def good_and_bad(
    good: Token | None, bad: Token | None, names: tuple[str, str] = ("good", "bad")
) -> Token | tuple[Token, Token] | None:
    """What `target_ids` are where both words were given apart; `names` are what they were given as.

    Raises InputError for a bad word without a good one.

    >>> good_and_bad("are", "is"), good_and_bad("are", None), good_and_bad(None, None)
    (('are', 'is'), 'are', None)
    """
    if good is None and bad is not None:
        raise InputError(f"{names[1]} {shown(bad)} given without {names[0]}: expected {names[0]} WORD, or both")
    return good if good is None or bad is None else (good, bad)


def callable_name(function: Callable[..., Any]) -> str:
    """What metadata call a function of the caller's: never by a name that the library has for something else."""
    return f"{getattr(function, '__qualname__', type(function).__qualname__)} (a callable)"
