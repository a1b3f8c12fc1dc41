"""How a block forms its values from what its attention reads."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tl_vzero.models.blocks import weight_view

ValueWeights = tuple[Float[Tensor, "value_head feature d_head"], Float[Tensor, "value_head d_head"]]


def value_weights(model: nn.Module, layer: int, dtype: torch.dtype) -> ValueWeights | None:
    """W_V and b_V, the latter 0 where there is none; None where they cannot be read in TransformerLens's layout."""
    attention: Any = model.blocks[layer].attn  # type: ignore[index, union-attr]
    weight, bias = weight_view(attention, "W_V"), weight_view(attention, "b_V")
    if weight is None or weight.ndim != 3:
        return None
    shape = (weight.shape[0], weight.shape[2])
    if bias is None:
        return weight.to(dtype), torch.zeros(shape, dtype=dtype, device=weight.device)
    if bias.numel() != shape[0] * shape[1]:
        return None
    return weight.to(dtype), bias.to(dtype).reshape(shape)
