"""What stands in for a value that is taken away: zero (the paper's), a mean, or the caller's own vectors.

Zero is off a model's own distribution, and other baselines answer another question: not "without this token" but "with
a usual one, or with another input's, in its place".
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tl_vzero.errors import InputError, InputTypeError, unknown_name

NAMES = ("zero", "mean")


@dataclass(frozen=True, eq=False)
class BaselineValues:
    """Vectors to put in a value's place, in all layers, with what they are and of which model.

    `values` are `[layer, head, d_head]`, the same at every position, or `[layer, position, head, d_head]`; heads are
    those that values have. `name` says in words what they are; `metadata` holds the model's `weights_sha256`, its
    stack, and what they were computed from.
    """

    values: Float[Tensor, "layer *position head d_head"]
    name: str
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Baseline:
    """A baseline as the engines use it, read by `baseline_of`."""

    name: str = "zero"
    values: Float[Tensor, "layer *position head d_head"] | None = None

    @property
    def identity(self) -> str:
        """What tells baselines apart in metadata and files: the name, with a hash of the caller's own vectors."""
        if self.values is None:
            return self.name
        digest = hashlib.sha256(self.values.detach().cpu().double().contiguous().numpy().tobytes())
        return f"{self.name} (sha256 {digest.hexdigest()[:16]})"

    def at(
        self,
        layer: int,
        value: Float[Tensor, "sentence position head d_head"],
        averaged: Bool[Tensor, "sentence position"],
    ) -> Float[Tensor, "#sentence #position head d_head"] | None:
        """What stands in for each value of a layer, given the clean values; None for zero.

        `averaged` marks the positions of a sentence's own text, over which "mean" goes; where there is none, all count.
        """
        if self.name == "mean" and self.values is None:
            counted = torch.where(averaged.any(dim=1, keepdim=True), averaged, True)[..., None, None]
            return (value * counted).sum(dim=1, keepdim=True) / counted.sum(dim=1, keepdim=True)
        if self.values is None:
            return None
        of_layer = self.values[layer].to(value)
        return of_layer.unsqueeze(0) if of_layer.ndim == 3 else of_layer[None, None]


ZERO = Baseline()


def baseline_of(
    baseline: "str | Tensor | BaselineValues", weights_sha256: str, n_layers: int, n_heads: int, d_head: int
) -> Baseline:
    """Read a caller's baseline at the door; raises InputError or InputTypeError: wrong name, shape, dtype or model."""
    raise NotImplementedError
