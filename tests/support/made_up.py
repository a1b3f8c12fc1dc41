"""Scores, effects and reports with made-up values, for what draws and writes them."""

from collections.abc import Sequence
from typing import Any

import torch

from tl_vzero.effects import Effect
from tl_vzero.report import Report
from tl_vzero.scores import Scores
from tl_vzero.words import word_ids_of_pieces

SPECIAL = ("[CLS]", "[SEP]", "[MASK]")
PIECES = ("[CLS]", "the", "hat", "the", "[MASK]", "scar", "##ing", ".", "[SEP]")
ODD_TOKENS = (
    "[CLS]",
    "<script>window.hit=1</script>",
    "</script>",
    "<b>",
    "&amp;",
    '"quoted"',
    "'s",
    "<a href='javascript:window.hit=2'>",
    "\N{WOMAN}\u200d\N{WOMAN}",
    "\n",
    " ",
    "",
    "שלום",
    "a\u200bb",
    "\u202e",
    "\u2028",
    "$x$",
    "%{y}",
    "{{data}}",
    "[MASK]",
    "<br>",
    "the",
    "the",
    "[SEP]",
)


def made_up_scores(
    tokens: Sequence[str] = PIECES, *, layers: int = 3, method: str = "value_zeroing", **changes: Any
) -> Scores:
    """A whole raw map with random values, positive and of many sizes."""
    generator = torch.Generator().manual_seed(len(method))
    size = len(tokens)
    fields: dict[str, Any] = {
        "values": torch.rand(layers, size, size, generator=generator) ** 4 * 1e-3,
        "method": method,
        "layers": tuple(range(layers)),
        "dest_tokens": tuple(tokens),
        "src_tokens": tuple(tokens),
        "dest_positions": tuple(range(size)),
        "src_positions": tuple(range(size)),
        "n_layers": layers,
        "n_positions": size,
        "word_ids": word_ids_of_pieces(tokens, [token in SPECIAL for token in tokens]),
        "identity": method == "attention",
        "metadata": {
            "model": "made-up",
            "dtype": "float32",
            "engine": "hooks",
            "versions": {"torch": "2.13.0"},
            "options": {"distance": "cosine", "heads": None},
        },
    }
    return Scores(**{**fields, **changes})


def made_up_effect(scores: Scores, target: int, **changes: Any) -> Effect:
    """Random changes of a logit, of both signs."""
    generator = torch.Generator().manual_seed(1)
    fields: dict[str, Any] = {
        "values": torch.randn(len(scores.layers), len(scores.src_tokens), generator=generator),
        "clean": 7.25,
        "metric": "logit of 'is'",
        "target": target,
        "target_token": scores.dest_tokens[target],
        "predicted": (("is", 0.71), ("<b>are</b>", 0.125), ("was", 1e-7)),
        "layers": scores.layers,
        "src_tokens": scores.src_tokens,
        "src_positions": scores.src_positions,
        "word_ids": scores.word_ids,
    }
    return Effect(**{**fields, **changes})


def made_up_report(tokens: Sequence[str] = PIECES, *, layers: int = 3, **changes: Any) -> Report:
    """A report on the only mask token of the tokens."""
    scores = made_up_scores(tokens, layers=layers)
    target = tuple(tokens).index("[MASK]")
    fields: dict[str, Any] = {
        "model": "made-up",
        "text": " ".join(tokens),
        "value_zeroing": scores,
        "attention": made_up_scores(tokens, layers=layers, method="attention"),
        "effect": made_up_effect(scores, target),
        "no_effect_reason": None,
        "target": target,
        "metadata": scores.metadata,
    }
    return Report(**{**fields, **changes})
