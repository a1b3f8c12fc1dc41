"""How a block forms its values from what its attention reads."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

ValueWeights = tuple[Float[Tensor, "value_head feature d_head"], Float[Tensor, "value_head d_head"]]


def value_weights(model: nn.Module, layer: int, dtype: torch.dtype) -> ValueWeights | None:
    """W_V and b_V, the latter 0 where there is none; None where they cannot be read in TransformerLens's layout."""
    attention: Any = model.blocks[layer].attn  # type: ignore[index, union-attr]
    try:
        weight, bias = getattr(attention, "W_V", None), getattr(attention, "b_V", None)
    except (RuntimeError, ValueError, NotImplementedError):  # a bridge may refuse a view of odd weights
        return None
    if not isinstance(weight, Tensor) or weight.ndim != 3:
        return None
    shape = (weight.shape[0], weight.shape[2])
    if bias is None:
        return weight.detach().to(dtype), torch.zeros(shape, dtype=dtype, device=weight.device)
    if bias.numel() != shape[0] * shape[1]:
        return None
    return weight.detach().to(dtype), bias.detach().to(dtype).reshape(shape)
