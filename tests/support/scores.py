"""Scores of a made-up sentence, whole and in part."""

from typing import Any

import torch
from torch import Tensor

from tl_vzero import Scores

TOKENS = ("[CLS]", "the", "scar", "##ing", "cat", "##s", "[SEP]")
WORD_IDS = (None, 0, 1, 1, 2, 2, None)
WORD_LABELS = ("[CLS]", "the", "scaring", "cats", "[SEP]")
GROUPS = ((0,), (1,), (2, 3), (4, 5), (6,))


def random_values(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype) + 1e-3


def make_scores(values: Tensor | None = None, **changes: Any) -> Scores:
    """A whole map of three layers over seven pieces, by default."""
    positions = tuple(range(len(TOKENS)))
    fields: dict[str, Any] = {
        "values": random_values(3, 7, 7) if values is None else values,
        "method": "value_zeroing",
        "layers": (0, 1, 2),
        "dest_tokens": TOKENS,
        "src_tokens": TOKENS,
        "dest_positions": positions,
        "src_positions": positions,
        "n_layers": 3,
        "n_positions": 7,
        "word_ids": WORD_IDS,
        "metadata": {"model_name": "made up", "versions": {"torch": "2.13.0"}, "options": {"layers": None}},
    }
    return Scores(**{**fields, **changes})


def partial_scores() -> Scores:
    """Two destinations and five sources of the seven."""
    return make_scores(
        random_values(3, 2, 5),
        dest_tokens=(TOKENS[1], TOKENS[4]),
        src_tokens=TOKENS[:5],
        dest_positions=(1, 4),
        src_positions=(0, 1, 2, 3, 4),
    )


def per_head_scores() -> Scores:
    return make_scores(random_values(3, 2, 7, 7), heads=(0, 1))


def cross_scores() -> Scores:
    """Destinations of one sequence, sources of another of the same length."""
    return make_scores(src_tokens=("x", "y", "z", "u", "v", "w", "</s>"))


def cross_scores_of_other_length() -> Scores:
    return make_scores(random_values(3, 7, 4), src_tokens=("x", "y", "z", "</s>"), src_positions=(0, 1, 2, 3))
