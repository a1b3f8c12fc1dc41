"""Scores, effects and reports with made-up values, for what draws and writes them."""

from collections.abc import Sequence
from dataclasses import fields, replace
from itertools import accumulate
from typing import Any

import torch

from tl_vzero.comparison import Comparison
from tl_vzero.effects.measure import Effect, PatchingEffect
from tl_vzero.report import Report
from tl_vzero.scores import Scores

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
    "</script><img src=x onerror=window.hit=3>",
    "the",
    "the",
    "[SEP]",
)


def word_ids_of(tokens: Sequence[str]) -> tuple[int | None, ...]:
    """WordPiece's words: a token with `##` continues one, and special tokens belong to none."""
    starts = accumulate(token not in SPECIAL and not token.startswith("##") for token in tokens)
    return tuple(None if token in SPECIAL else word - 1 for token, word in zip(tokens, starts, strict=True))


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
        "word_ids": word_ids_of(tokens),
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


def made_up_patching(scores: Scores, target: int) -> PatchingEffect:
    """A patching effect into a sentence whose second token is another."""
    effect = made_up_effect(scores, target)
    changes: dict[str, Any] = {field.name: getattr(effect, field.name) for field in fields(effect)}
    tokens = (scores.src_tokens[0], "<i>another</i>", *scores.src_tokens[2:])
    changes |= {"method": "value_patching", "corrupted": -1.5, "corrupted_tokens": tokens}
    return PatchingEffect(**changes)


def made_up_comparison(scores: Sequence[Scores], effect: Effect | None, target: int | None) -> Comparison:
    """A comparison of such scores; without an effect it says that there is no <head>."""
    tokens = scores[0].dest_tokens
    return Comparison(
        scores={of_method.method: of_method for of_method in scores},
        tokens=tokens,
        special=tuple(token in SPECIAL for token in tokens),
        target=target,
        effect=effect,
        no_effect_reason=None if effect is not None else "no <head> here",
        left_out={},
        effects={} if effect is None else {effect.method: effect},
    )


def made_up_report(
    tokens: Sequence[str] = PIECES,
    *,
    layers: int = 3,
    scores: Sequence[Scores] | None = None,
    effects: Sequence[Effect] | None = None,
    target: bool = True,
    **changes: Any,
) -> Report:
    """A report on the only mask token of the tokens (on none without `target`), by default with two effects."""
    all_scores = scores or [
        made_up_scores(tokens, layers=layers, method=method) for method in ("value_zeroing", "attention")
    ]
    position = tuple(tokens).index("[MASK]") if target else None
    if effects is None:
        # The estimate is off by a tenth everywhere.
        measured = made_up_effect(all_scores[0], position or 0)
        effects = [measured, replace(measured, values=measured.values * 0.9, method="attribution_patching")]
    by_name = {effect.method: effect for effect in effects}
    predictions = tuple(effects[0].predicted for _ in tokens) if effects else ()
    compared = made_up_comparison(all_scores, by_name.get("zero_ablation"), position)
    fields: dict[str, Any] = {
        "model": "made-up",
        "text": " ".join(tokens),
        "comparison": compared,
        "effects": by_name,
        "missing": {
            name: "no <head> here"
            for name in ("zero_ablation", "attribution_patching", "value_patching")
            if name not in by_name
        },
        "predictions": predictions,
        "metadata": {**all_scores[0].metadata, "predicts": "token", "masks": [position]},
    }
    return Report(**{**fields, **changes})
