"""What chance gives: random rows, and the expectations of the two measures of cue alignment."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tl_vzero.rollout import normalize_rows, roll_out


def random_row(
    length: int, dest: int, n_layers: int, *, causal: bool, rolled_out: bool, normalized: bool, seed: Sequence[int]
) -> Float[Tensor, "layer src"]:
    """A destination's row of uniform random maps, drawn anew for each seed.

    The method `random` gives every sentence of one length the same map; as a sample of examples that is one draw, and
    its mean may be far from what chance gives.
    """
    drawn = torch.from_numpy(np.random.default_rng(seed).random((n_layers, length, length)))
    maps = drawn.tril() if causal else drawn
    if rolled_out:
        maps = roll_out(normalize_rows(maps), identity=False)
    elif normalized:
        maps = normalize_rows(maps)
    return maps[:, dest]


def expected_dot(n_cues: int, n_sources: int) -> float:
    """The mean of s·c over random rows s that sum to one: each source has the same share.

    >>> expected_dot(1, 8)
    0.125
    """
    return n_cues / n_sources


def expected_average_precision(n_cues: int, n_sources: int) -> float:
    """The mean average precision over random orders of the sources.

    A cue stands at each rank r with the same probability, and of the r - 1 sources before it (cues - 1) / (sources - 1)
    are cues in the mean.

    >>> expected_average_precision(1, 2), expected_average_precision(3, 3)
    (0.75, 1.0)
    """
    others = (n_cues - 1) / (n_sources - 1) if n_sources > 1 else 0.0
    return sum((1 + (rank - 1) * others) / rank for rank in range(1, n_sources + 1)) / n_sources
