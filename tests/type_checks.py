"""beartype for jaxtyping's import hook, which checks a function's shapes anew each time that its `def` is reached.

For a function inside another that is at every call: tens of thousands of times in a run of the tests. What the hook
hands over is no function of ours but a stand-in that has the signature only, so that equal ones can share a check.
"""

from collections.abc import Callable
from types import FunctionType
from typing import Any

from beartype import beartype

_CHECKED: dict[tuple[object, ...], Callable[..., Any]] = {}


def checked_once(stand_in: FunctionType) -> Callable[..., Any]:
    """`beartype(stand_in)`, compiled once for all stand-ins of one function with the same annotations."""
    if stand_in.__defaults__ or stand_in.__kwdefaults__ or stand_in.__closure__:
        return beartype(stand_in)
    annotations = tuple(stand_in.__annotations__.items())
    key = (stand_in.__module__, stand_in.__qualname__, stand_in.__code__, annotations)
    if key not in _CHECKED:
        _CHECKED[key] = beartype(stand_in)
    return _CHECKED[key]
