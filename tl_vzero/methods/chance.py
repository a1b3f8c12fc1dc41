"""Random scores: what a method must beat."""

import torch
from jaxtyping import Float
from torch import Tensor

from tl_vzero.errors import InputTypeError
from tl_vzero.methods.layer import Layer


def random(layer: Layer, seed: int = 0) -> Float[Tensor, "sentence dest src"]:
    """Uniform between 0 and 1 where attention can reach at all; the same for a sentence alone and in a batch."""
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise InputTypeError(f"seed is {type(seed).__name__}: expected an integer")
    generator = torch.Generator().manual_seed(seed * 10_007 + layer.number)
    one = torch.rand(*layer.pattern.shape[-2:], generator=generator, dtype=torch.float64).to(layer.pattern)
    return one * (layer.pattern != 0).any(dim=1)
