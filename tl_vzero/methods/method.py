"""What the registry says of a method, and how it is called."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from inspect import Parameter, signature
from typing import Any, Literal, NoReturn

from torch import Tensor, nn

from tl_vzero.errors import MethodNameWarning, PluginError
from tl_vzero.inputs.media import Signals
from tl_vzero.inputs.text import Text
from tl_vzero.methods.layer import Layer
from tl_vzero.models.turns import takes_turn
from tl_vzero.scores import Scores

Need = Literal["clean run", "weights", "gradients", "target", "trained head", "captum"]

PATTERN: tuple[Need, ...] = ("clean run",)
VECTORS: tuple[Need, ...] = ("clean run", "weights")


@dataclass(frozen=True)
class LayerMethod:
    """A method that reads its maps off the clean run: `maps` gives a Layer's raw map, `heads` each head's.

    `rows` gives the map's rows of some destinations, where they cost less than the whole map. `through` follows maps
    through the layers to some destinations. `identity` is its rollout rule: whether half of each token stays where
    it is. The rest is as in `Method`.
    """

    maps: Callable[..., Tensor]
    summary: str
    reference: str
    defined_for: str
    needs: tuple[Need, ...] = PATTERN
    identity: bool = False
    compared_up_to: int | None = None
    heads: Callable[[Layer], Tensor] | None = None
    rows: Callable[..., Tensor] | None = None
    through: Callable[[Tensor, Sequence[int]], Tensor] | None = None

    @property
    def options(self) -> tuple[str, ...]:
        """The names of its own options, beyond those that all methods share."""
        return tuple(signature(self.maps).parameters)[1:]


@dataclass(frozen=True)
class Method:
    """A context-mixing method: call it like `value_zeroing`; `reference` is its paper.

    `needs` is what it reads. One that reads the clean run takes `cache=` and is part of a comparison without being
    named, of sentences of up to `compared_up_to` tokens where its cost grows fast. One that reads a target takes
    `target=` and `target_ids=`. `layer` is there for a method that may share each layer of one run with others.
    """

    function: Callable[..., Scores | list[Scores]]
    summary: str
    reference: str
    defined_for: str
    needs: tuple[Need, ...] = ()
    compared_up_to: int | None = None
    layer: LayerMethod | None = None

    def __call__(self, model: nn.Module, inputs: Text | Signals, **options: Any) -> Scores | list[Scores]:
        return takes_turn(self.function)(model, inputs, **options)

    @property
    def options(self) -> tuple[str, ...] | None:
        """The names of the options it takes; None where its function takes any."""
        if self.layer is not None:
            return self.layer.options
        try:
            parameters = signature(self.function).parameters
        except (TypeError, ValueError):  # a function of C may have no signature
            return None
        if any(each.kind is Parameter.VAR_KEYWORD for each in parameters.values()):
            return None
        return tuple(parameters)[2:]


# Methods of third parties, found by the entry-point group `tl_vzero.methods`.

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
