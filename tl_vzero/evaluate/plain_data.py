"""Result dataclasses as plain JSON types, and back."""

import types
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from math import isfinite, nan
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


def to_plain(value: Any) -> Any:
    """A result as plain JSON types; a number that is not finite becomes None.

    >>> from tl_vzero.evaluate.statistics import Estimate
    >>> to_plain(Estimate(0.5, float("nan"), 1.0, 1))
    {'mean': 0.5, 'low': None, 'high': 1.0, 'n': 1, 'confidence': 0.95}
    """
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(each) for key, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [to_plain(each) for each in value]
    if isinstance(value, float) and not isfinite(value):
        return None
    return value


def from_plain(kind: Any, plain: Any) -> Any:
    """The value of a type that `to_plain` wrote; None stands for NaN where the type is float.

    Raises KeyError, TypeError or ValueError for what it did not write, such as a text for a number.

    >>> from tl_vzero.evaluate.statistics import Estimate
    >>> from_plain(Estimate, {"mean": 0.5, "low": None, "high": 1.0, "n": 1, "confidence": 0.95})
    Estimate(mean=0.5, low=nan, high=1.0, n=1, confidence=0.95)
    """
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return None if plain is None else from_plain(_only_other(kind), plain)
    if origin is tuple:
        inner = get_args(kind)[0]
        return tuple(from_plain(inner, each) for each in _of_type(plain, list))
    if origin is Literal:
        if plain not in get_args(kind):
            raise ValueError(f"{plain!r} is none of {', '.join(map(repr, get_args(kind)))}")
        return plain
    if origin is not None and issubclass(origin, Mapping):
        inner = get_args(kind)[1]
        return {key: from_plain(inner, each) for key, each in _of_type(plain, dict).items()}
    if is_dataclass(kind) and isinstance(kind, type):
        hints = get_type_hints(kind)
        record = _of_type(plain, dict)
        return kind(**{field.name: from_plain(hints[field.name], record[field.name]) for field in fields(kind)})
    if kind is float:
        return nan if plain is None else float(_of_type(plain, int, float))
    return _of_type(plain, kind) if kind in (int, str, bool) else plain


def _of_type(plain: Any, *kinds: type) -> Any:
    # Not isinstance: true is no number.
    if type(plain) not in kinds:
        raise TypeError(f"{str(plain)[:80]!r} is {type(plain).__name__}: expected {kinds[-1].__name__}")
    return plain


def _only_other(kind: Any) -> Any:
    (other,) = (each for each in get_args(kind) if each is not type(None))
    return other
