"""What the registry says of a method, and how it is called."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import Parameter, signature
from typing import Any, Literal

from torch import Tensor, nn

from tl_vzero.inputs import Text
from tl_vzero.methods.layer import Layer
from tl_vzero.models.turns import takes_turn
from tl_vzero.scores import Scores
from tl_vzero.signals import Signals

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
