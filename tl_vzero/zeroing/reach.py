"""Where a zeroed value can be felt at all."""

import torch
from einops import rearrange
from jaxtyping import Bool
from torch import Tensor

from tl_vzero.clean import CleanBlock
from tl_vzero.zeroing.request import Wanted


def reached(block: CleanBlock, heads: tuple[int, ...], per_head: bool) -> Bool[Tensor, "sentence map dest src"]:
    """Mark the entries for which some zeroed head has a pattern entry and a value that are not exactly 0.

    Elsewhere nothing changes, and what a batched run shows there is rounding, which is no score.
    """
    value, pattern = block.value, block.pattern
    group = pattern.shape[1] // value.shape[2]
    bites = (value != 0).any(dim=-1)  # [sentence, source, value head]
    by_value_head = rearrange(
        pattern != 0, "sentence (head group) dest src -> sentence head group dest src", group=group
    )
    felt = by_value_head.any(2) & bites.transpose(1, 2).unsqueeze(2)
    felt = felt[:, list(heads)]
    return felt if per_head else felt.any(dim=1, keepdim=True)


def felt_of(marked: Bool[Tensor, "*axes dest src"], wanted: Wanted) -> Bool[Tensor, "*axes row column"]:
    """Of positions that can be felt, the rows and columns asked for: a span is felt where one of its positions is."""
    chosen = pick(marked, marked.ndim - 2, wanted.destinations)
    if wanted.zeroes_single_positions:
        return pick(chosen, marked.ndim - 1, tuple(span[0] for span in wanted.spans))
    return torch.stack([chosen[..., list(span)].any(dim=-1) for span in wanted.spans], dim=-1)


def pick(tensor: Tensor, axis: int, positions: tuple[int, ...]) -> Tensor:
    """Some positions of one sentence along an axis; a view where they are the first ones."""
    if positions == tuple(range(len(positions))):
        return tensor.narrow(axis, 0, len(positions))
    return tensor.index_select(axis, torch.tensor(positions, device=tensor.device))
