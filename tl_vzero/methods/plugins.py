"""Methods of third parties, found by the entry-point group `tl_vzero.methods`."""

import warnings
from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Any, NoReturn

from tl_vzero.errors import MethodNameWarning, PluginError
from tl_vzero.methods.method import Method

GROUP = "tl_vzero.methods"


class Methods(Mapping[str, Method]):
    """The package's own methods, then those of installed packages, by name.

    An entry point names a `Method`, or a function that is called like `value_zeroing`. Entry points are read at first
    use, and a package is imported when its method is taken. A name that is taken already stays with who has it, and
    a MethodNameWarning says so.
    """

    def __init__(self, own: Mapping[str, Method]) -> None:
        self._own = dict(own)
        self._loaded: dict[str, Method] = {}

    @cached_property
    def _found(self) -> dict[str, EntryPoint]:
        found: dict[str, EntryPoint] = {}
        for point in entry_points(group=GROUP):
            if point.name in self._own or point.name in found:
                holder = _package_of(found[point.name]) if point.name in found else "tl_vzero"
                warnings.warn(
                    f"the package {_package_of(point)} brings a method {point.name!r}, a name that {holder} has: it is "
                    f"left out; rename it in the entry points ({GROUP}) of {_package_of(point)}",
                    MethodNameWarning,
                    stacklevel=2,
                )
            else:
                found[point.name] = point
        return found

    def __getitem__(self, name: str) -> Method:
        if name in self._own:
            return self._own[name]
        if name not in self._loaded:
            self._loaded[name] = _load(self._found[name])
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        yield from self._own
        yield from self._found

    def __len__(self) -> int:
        return len(self._own) + len(self._found)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (name in self._own or name in self._found)


def _package_of(point: EntryPoint) -> str:
    return point.value if point.dist is None else f"{point.dist.name} {point.dist.version}"


def _load(point: EntryPoint) -> Method:
    """A plugin's method; one that cannot be loaded says so when it is used, so that the others still work."""
    package = _package_of(point)
    try:
        given = point.load()
    except Exception as error:
        return _unusable(point, f"{point.value} cannot be loaded ({type(error).__name__}: {error})", error)
    if isinstance(given, Method):
        return given
    if not callable(given):
        return _unusable(point, f"{point.value} is {type(given).__name__}: expected a Method or a function", None)
    summary = (given.__doc__ or "").strip().partition("\n")[0].rstrip(".")
    return Method(given, summary or "no description", f"the package {package}", "what its package says")


def _unusable(point: EntryPoint, reason: str, cause: Exception | None) -> Method:
    package = _package_of(point)

    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise PluginError(
            f"the method {point.name!r} of the package {package} cannot be used: {reason}; update or uninstall the "
            "package"
        ) from cause

    return Method(refuse, f"cannot be used: {reason}", f"the package {package}", "nothing")
