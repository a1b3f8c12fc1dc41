"""What is kept of a model between calls, as long as its weights are what they were."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tl_vzero.zeroing.chunks import Workspace

Key = tuple[int, str, torch.dtype, torch.device]
Make = Callable[[], Tensor]


class Kept:
    """Of each layer: output matrices folded into the MLP's first products, vectors that went through a product, forms.

    Folding costs as much as d_model pairs, for a short sentence more than its pairs. Folds are kept up to a number of
    bytes. `forms` are the forms that layers were recognised as.
    """

    def __init__(self, weights_sha256: str) -> None:
        self.weights_sha256 = weights_sha256
        self._max_bytes = 0.0
        self._folds: dict[Key, Tensor] = {}
        self._vectors: dict[Key, Tensor] = {}
        self.forms: dict[int, str] = {}

    def has_fold(self, layer: int, matrix: Float[Tensor, "feature d_mlp"]) -> bool:
        """Whether the fold into a layer's first product need not be made again."""
        return _key(layer, "0", matrix) in self._folds

    def fold(
        self, layer: int, number: int, matrix: Float[Tensor, "feature d_mlp"], make: Make
    ) -> Float[Tensor, "head d_head d_mlp"]:
        """The kept fold into a layer's product of that number, or a new one, which is kept if there is room."""
        key = _key(layer, str(number), matrix)
        if key in self._folds:
            return self._folds[key]
        made = make()
        held = sum(fold.nbytes for fold in self._folds.values())
        if held + made.nbytes <= self._max_bytes:
            self._folds[key] = made
        return made

    def vector(self, layer: int, name: str, matrix: Tensor, make: Make) -> Tensor:
        """A vector that went through one of a layer's matrices."""
        key = _key(layer, name, matrix)
        if key not in self._vectors:
            self._vectors[key] = make()
        return self._vectors[key]

    def limit(self, max_bytes: float) -> None:
        """Keep no more folds than this from now on."""
        self._max_bytes = max_bytes
        while self._folds and sum(fold.nbytes for fold in self._folds.values()) > max_bytes:
            self._folds.popitem()


def _key(layer: int, name: str, matrix: Tensor) -> Key:
    return layer, name, matrix.dtype, matrix.device


_KEPT: WeakKeyDictionary[nn.Module, Kept] = WeakKeyDictionary()
_SPARE: WeakKeyDictionary[nn.Module, list[Workspace]] = WeakKeyDictionary()


def kept_of(model: nn.Module, weights_sha256: str, max_bytes: float) -> Kept:
    """What is kept of a model, started anew when a weight has changed since: the hash is of their content."""
    kept = _KEPT.get(model)
    if kept is None or kept.weights_sha256 != weights_sha256:
        kept = _KEPT[model] = Kept(weights_sha256)
    kept.limit(max_bytes)
    return kept


def forget_kept(model: nn.Module) -> None:
    """Keep nothing of a model: what the next calls round does not depend on the calls before then."""
    _KEPT.pop(model, None)


@contextmanager
def workspace_of(model: nn.Module, max_bytes: float) -> Iterator[Workspace]:
    """The buffers of a model's last call, or new ones where they are in use or larger than is allowed now."""
    spare = _SPARE.setdefault(model, [])
    workspace = spare.pop() if spare else Workspace()
    if workspace.nbytes > max_bytes:
        workspace = Workspace()
    try:
        yield workspace
    finally:
        spare[:] = [workspace]
