"""How a method's row of the target agrees with the effects on its prediction: rank correlation, source by source.

1. Take the target's row of the scores and the sizes of the effect, at the sources that both have, layer by layer.
2. rho is their Spearman correlation (tied values share their mean rank).
3. Sources are drawn again with replacement, pairs kept together; low and high are percentiles of rho over the draws.

And effects by their names, for who shows several of one prediction.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import isnan
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from tl_vzero.choices import listed, one_of
from tl_vzero.effects.ablation import attribution_patching, zero_ablation
from tl_vzero.effects.direct import check_head_reads, direct_logit_attribution, logit_lens
from tl_vzero.effects.knockout import attention_knockout
from tl_vzero.effects.measure import Effect, PatchingEffect
from tl_vzero.effects.patching import SITES, Site, activation_patching
from tl_vzero.errors import InputError, InputTypeError
from tl_vzero.inputs.text import Text
from tl_vzero.scores import Scores
from tl_vzero.statistics import RESAMPLES, Interval, bootstrap_correlation

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Agreement:
    """Spearman correlation, per layer, of a method's row of the target with the sizes of an effect.

    `low` and `high` bound the bootstrap interval of `rho` over the `n` sources. All three are NaN in the layers of
    `undefined`: there the row or the effect is the same for every source, or there are fewer than three sources.
    """

    method: str
    effect: str
    target: int
    layers: tuple[int, ...]
    rho: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    n: int
    confidence: float

    @property
    def undefined(self) -> tuple[int, ...]:
        """The layers without a rank correlation."""
        return tuple(layer for layer, rho in zip(self.layers, self.rho, strict=True) if isnan(rho))

    def to_frame(self) -> "pd.DataFrame":
        """A pandas table: method, effect, layer, rho, low, high, n."""
        import pandas as pd

        columns = {"layer": self.layers, "rho": self.rho, "low": self.low, "high": self.high, "n": self.n}
        return pd.DataFrame({"method": self.method, "effect": self.effect} | columns)

    def _repr_html_(self) -> str:
        return str(self.to_frame().to_html(index=False))


def agreement(
    scores: Scores, effect: Effect, *, resamples: int = RESAMPLES, confidence: float = 0.95, seed: int = 0
) -> Agreement:
    """Rank correlation of a method's row of the target with the size of each source's effect, per layer.

    `scores` are over tokens and without heads, at any stage (a row's ranks are the same when it is normalised);
    the layers and sources are those that both have. Of a causal map, sources after the target are left out: the target
    cannot be reached from them, and there every method agrees. The interval is a percentile bootstrap over sources;
    draws in which one side is constant say nothing and are left out.

    Raises InputError where the target is no destination of the scores, no layer or source is in both, or the two
    are of different sentences; InputTypeError for what is no Scores or Effect.
    Source: Efron & Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13.

    >>> import tl_vzero
    >>> model, text = tl_vzero.load_model("agreement-mini"), "the pictures of some hat [MASK] scaring marcus."
    >>> result = tl_vzero.agreement(tl_vzero.value_zeroing(model, text), tl_vzero.zero_ablation(model, text))
    >>> result.layers, all(low <= rho <= high for low, rho, high in zip(result.low, result.rho, result.high))
    ((0, 1, 2, 3), True)
    """
    _check(scores, effect)
    interval = Interval(confidence, resamples, seed)
    layers = [layer for layer in scores.layers if layer in effect.layers]
    sources = _common_sources(scores, effect)
    if not layers:
        raise InputError(
            f"the scores have layers {list(scores.layers)} and the effect {list(effect.layers)}: expected some in both"
        )
    rows = _picked(scores.row(effect.target), scores.layers, layers, scores.src_positions, sources)
    sizes = _picked(effect.values.abs(), effect.layers, layers, effect.src_positions, sources)
    correlations = [
        bootstrap_correlation("spearman", row, size, interval) for row, size in zip(rows, sizes, strict=True)
    ]
    rho, low, high = zip(*((c.value, c.low, c.high) for c in correlations), strict=True)
    labels = scores.method, effect.method, effect.target, tuple(layers)
    return Agreement(*labels, rho, low, high, len(sources), confidence)


def agreement_table(
    scores: Iterable[Scores],
    effects: Iterable[Effect],
    *,
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
    seed: int = 0,
) -> "pd.DataFrame":
    """The `agreement` of every map with every effect, one below the other.

    Returns a pandas table: method, effect, layer, rho, low, high, n. Raises what `agreement` raises.

    >>> import tl_vzero
    >>> model, text = tl_vzero.load_model("agreement-mini"), "the pictures of some hat [MASK] scaring marcus."
    >>> effects = [tl_vzero.zero_ablation(model, text, layers=1), tl_vzero.logit_lens(model, text, layers=1)]
    >>> tl_vzero.agreement_table([tl_vzero.value_zeroing(model, text)], effects)[["method", "effect", "layer"]].values
    array([['value_zeroing', 'zero_ablation', 1],
           ['value_zeroing', 'logit_lens', 1]], dtype=object)
    """
    import pandas as pd

    every, columns = list(effects), ["method", "effect", "layer", "rho", "low", "high", "n"]
    options: Any = {"resamples": resamples, "confidence": confidence, "seed": seed}
    tables = [agreement(of_method, effect, **options).to_frame() for of_method in scores for effect in every]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)


def rows_predict(scores: Scores, effect: Effect) -> bool:
    """Whether the target could be a row of the scores: the encoder's map has no row of what the decoder reads."""
    return ("encoder_tokens" in scores.metadata) == ("encoder_tokens" in effect.metadata)


def _check(scores: Any, effect: Any) -> None:
    if not isinstance(scores, Scores) or not isinstance(effect, Effect):
        raise InputTypeError(
            f"given {type(scores).__name__} and {type(effect).__name__}: expected one sentence's Scores and an Effect"
        )
    if scores.heads is not None or effect.heads is not None:
        raise InputError("scores or effect are per head: expected one row per layer; compute them without per_head")
    if scores.unit != "token":
        raise InputError("the scores are over words and the effect over tokens: expected the scores before words()")
    stacks = [one.metadata.get("stack") for one in (scores, effect)]
    if stacks[0] != stacks[1]:
        raise InputError(f"the scores are of stack={stacks[0]!r} and the effect of {stacks[1]!r}: expected the same")
    if not rows_predict(scores, effect):
        raise InputError(
            f"the effect's target {effect.target} ({effect.target_token!r}) is a position of the decoder, and the rows "
            "of the scores are the encoder's: expected stack='decoder' or 'cross', or a method with a row of the target"
        )
    if effect.target not in scores.dest_positions:
        raise InputError(
            f"the effect's target {effect.target} ({effect.target_token!r}) is not among the destinations "
            f"{list(scores.dest_positions)} of the scores: expected its row; compute the scores with it"
        )


def _common_sources(scores: Scores, effect: Effect) -> list[int]:
    """The reached sources that both have; of value patching, the scores may be those of either sentence."""
    tokens_scored = dict(zip(scores.src_positions, scores.src_tokens, strict=True))
    common = [position for position in effect.src_positions if position in tokens_scored]
    sentences = [effect.src_tokens]
    if isinstance(effect, PatchingEffect):
        sentences.append(effect.corrupted_tokens)
    labelled = [dict(zip(effect.src_positions, tokens, strict=True)) for tokens in sentences]
    if not common or all(any(tokens[p] != tokens_scored[p] for p in common) for tokens in labelled):
        raise InputError(
            f"the scores are over the sources {list(scores.src_tokens)} at {list(scores.src_positions)}, the effect "
            f"over {list(effect.src_tokens)} at {list(effect.src_positions)}: expected the same sentence"
        )
    later = torch.tensor(scores.src_positions) > torch.tensor(scores.dest_positions)[:, None]
    is_causal = scores.n_src_positions is None and not scores.values[:, later.to(scores.values.device)].any()
    reached = [position for position in common if position <= effect.target or not is_causal]
    return reached or common


def _picked(values: Any, layers: Any, wanted: list[int], positions: Any, sources: list[int]) -> Any:
    rows = values.detach().cpu().double().numpy()
    return rows[np.ix_([layers.index(layer) for layer in wanted], [positions.index(p) for p in sources])]


# Effects by their names.

OF_ONE: dict[str, Callable[..., Effect]] = {
    "zero_ablation": zero_ablation,
    "attribution_patching": attribution_patching,
    "attention_knockout": attention_knockout,
    "logit_lens": logit_lens,
    "direct_logit_attribution": direct_logit_attribution,
}
WITH_BASELINE = ("zero_ablation", "attribution_patching")
# Into a corrupted sentence.
PATCHED: dict[str, Site] = {"value_patching" if site == "v" else f"{site}_patching": site for site in SITES}


def effects_named(names: Sequence[str], *, corrupted: bool, stack: str | None = None) -> tuple[str, ...]:
    """The names checked, each once, zero ablation first.

    Raises InputError for a name that there is not, for one that needs a corrupted sentence where there is none, and
    for one that an encoder-decoder's stack has not.
    """
    read = listed("effects", names)
    wanted = ("zero_ablation", *(read if isinstance(read, list) else [read]))
    named = tuple(dict.fromkeys(one_of("effect", name, (*OF_ONE, *PATCHED)) for name in wanted))
    if "logit_lens" in named:
        check_head_reads(stack)
    if stack is not None and "direct_logit_attribution" in named:
        raise InputError("effects hold direct_logit_attribution, which is for models with one stack: leave it out")
    patched = [name for name in named if name in PATCHED]
    if patched and not corrupted:
        raise InputError(f"effects hold {patched[0]}, which patches into another sentence: give it as corrupted")
    return named


def measured_effect(name: str, model: nn.Module, inputs: Text, corrupted: Text | None, **options: Any) -> Effect:
    """The effect of that name, without heads; `options` are those of `zero_ablation`."""
    if name not in WITH_BASELINE:
        options = {key: value for key, value in options.items() if key != "baseline"}
    if name in OF_ONE:
        return OF_ONE[name](model, inputs, **options)
    assert corrupted is not None
    return activation_patching(model, inputs, corrupted, PATCHED[name], **options)
