"""Raw attention, the score that Value Zeroing is most often compared with."""

from jaxtyping import Float
from torch import Tensor

from tl_vzero.clean import CleanBlock


def attention(block: CleanBlock) -> Float[Tensor, "sentence dest src"]:
    """The attention pattern, averaged over heads.

    Its rollout adds the identity and normalises: half of each token stays (Abnar & Zuidema 2020).
    """
    return block.pattern.mean(dim=1)


def attention_heads(block: CleanBlock) -> Float[Tensor, "sentence head dest src"]:
    """The attention pattern of every query head."""
    return block.pattern
