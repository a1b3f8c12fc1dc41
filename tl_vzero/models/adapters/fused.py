"""A linear map that computes several things side by side, seen as one module for each of them."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Part(nn.Linear):
    """Some rows of a fused map's weight. They stay the fused map's own, so that nothing is held twice."""

    def __init__(self, fused: nn.Linear, rows: slice) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = fused.in_features, rows.stop - rows.start
        self._rows = rows
        # In a tuple it is no submodule: the parameters belong to one module only.
        self._fused = (fused,)

    @property
    def weight(self) -> Float[Tensor, "row feature"]:  # type: ignore[override]
        return self._fused[0].weight[self._rows]

    @property
    def bias(self) -> Float[Tensor, "row"] | None:  # type: ignore[override]
        bias = self._fused[0].bias
        return None if bias is None else bias[self._rows]


class SplitLinear(nn.Linear):
    """The fused map, computed part by part; its weight and bias are those of the one it stands for."""

    def __init__(self, fused: nn.Linear, names: Sequence[str]) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = fused.in_features, fused.out_features
        self.weight, self.bias = fused.weight, fused.bias
        self._names = tuple(names)
        size = fused.out_features // len(names)
        for number, name in enumerate(names):
            self.add_module(name, Part(self, slice(number * size, (number + 1) * size)))

    def forward(self, rows: Float[Tensor, "*row feature"]) -> Float[Tensor, "*row fused"]:
        """What the fused map computes."""
        return torch.cat([self.get_submodule(name)(rows) for name in self._names], dim=-1)


def split_in_place(parent: nn.Module, name: str, parts: Sequence[str]) -> None:
    """Put a SplitLinear in the place of a module's fused map, unless that was done before."""
    fused = parent.get_submodule(name)
    if isinstance(fused, nn.Linear) and not isinstance(fused, SplitLinear):
        setattr(parent, name, SplitLinear(fused, parts))
