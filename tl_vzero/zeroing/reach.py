"""Where a zeroed value can be felt at all."""

from einops import rearrange
from jaxtyping import Bool
from torch import Tensor

from tl_vzero.clean import CleanBlock


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
