"""Output matrices folded into the MLP's first product, kept as long as the model's weights are what they were."""

from collections.abc import Callable
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn

Fold = Float[Tensor, "head d_head d_mlp"]
Key = tuple[int, int, torch.dtype, torch.device]


class Folds:
    """Folded matrices by layer, number of the product, dtype and device, up to a number of bytes.

    Folding costs as much as d_model pairs, for a short sentence more than its pairs.
    """

    def __init__(self, weights_sha256: str) -> None:
        self.weights_sha256 = weights_sha256
        self.max_bytes = 0.0
        self._kept: dict[Key, Fold] = {}

    def has(self, layer: int, matrix: Float[Tensor, "feature d_mlp"]) -> bool:
        """Whether the fold into a layer's first product need not be made again."""
        return (layer, 0, matrix.dtype, matrix.device) in self._kept

    def get(self, layer: int, number: int, matrix: Float[Tensor, "feature d_mlp"], make: Callable[[], Fold]) -> Fold:
        """The kept fold into a layer's product of that number, or a new one, which is kept if there is room."""
        key = (layer, number, matrix.dtype, matrix.device)
        if key in self._kept:
            return self._kept[key]
        made = make()
        held = sum(fold.nbytes for fold in self._kept.values())
        if held + made.nbytes <= self.max_bytes:
            self._kept[key] = made
        return made

    def limit(self, max_bytes: float) -> None:
        """Keep no more than this from now on."""
        self.max_bytes = max_bytes
        while self._kept and sum(fold.nbytes for fold in self._kept.values()) > max_bytes:
            self._kept.popitem()


_FOLDS: WeakKeyDictionary[nn.Module, Folds] = WeakKeyDictionary()


def folds_of(model: nn.Module, weights_sha256: str, max_bytes: float) -> Folds:
    """A model's folds, started anew when a weight has changed since: the hash is of their content."""
    folds = _FOLDS.get(model)
    if folds is None or folds.weights_sha256 != weights_sha256:
        folds = _FOLDS[model] = Folds(weights_sha256)
    folds.limit(max_bytes)
    return folds
