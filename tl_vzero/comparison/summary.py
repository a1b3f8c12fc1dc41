"""A comparison as a table: what each method's maps are like, layer by layer, and how their ranks agree."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tl_vzero.effects import Effect, agreement
from tl_vzero.effects.ranks import FEWEST_SOURCES
from tl_vzero.errors import ScoresError
from tl_vzero.scores import Scores

if TYPE_CHECKING:
    import pandas as pd

RESAMPLES = 2000

# numpy's own types would need each step's dtype; these are float64, [layer, dest, src] or [layer, dest].
Array = Any


def summarised(
    by_method: Mapping[str, Scores], special: Sequence[bool], effect: Effect | None, *, resamples: int
) -> "pd.DataFrame":
    """One row for each method and layer; the columns are those that `Comparison.table` describes."""
    import pandas as pd

    reference = by_method.get("value_zeroing")
    parts = [
        pd.DataFrame(
            {"method": name, "layer": scores.layers}
            | shares_by_layer(scores, special)
            | {"rank_with_value_zeroing": _rank_with(scores, reference)}
            | _rank_with_effect(scores, effect, resamples)
        )
        for name, scores in by_method.items()
    ]
    return pd.concat(parts, ignore_index=True)


def shares_by_layer(scores: Scores, special: Sequence[bool]) -> dict[str, Array]:
    """Entropy in bits, weight on the token itself and on special tokens: of each layer, its rows' mean."""
    shares = _shares(scores)
    held = shares > 0
    entropy = np.where(np.isnan(shares), np.nan, -shares * np.log2(shares, where=held, out=np.zeros_like(shares)))
    own = [
        (row, scores.src_positions.index(p)) for row, p in enumerate(scores.dest_positions) if p in scores.src_positions
    ]
    rows, columns = [row for row, _ in own], [column for _, column in own]
    is_special = [special[position] for position in scores.src_positions]
    return {
        "entropy": _mean(entropy.sum(axis=-1)),
        "self_weight": _mean(shares[:, rows, columns]),
        "special_weight": _mean(shares[:, :, is_special].sum(axis=-1)),
    }


def _shares(scores: Scores) -> Array:
    """Rows that sum to one; NaN where a row is empty or holds negative scores."""
    values = scores.values.detach().cpu().double().numpy()
    total = values.sum(axis=-1, keepdims=True)
    is_distribution = (values >= 0).all(axis=-1, keepdims=True) & (total > 0)
    return np.where(is_distribution, values / np.where(is_distribution, total, 1), np.nan)


def _mean(values: Array) -> Array:
    """Mean over the last axis of what is not NaN; NaN where nothing is left."""
    known = ~np.isnan(values)
    count = known.sum(axis=-1)
    total = np.where(known, values, 0).sum(axis=-1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _rank_with(scores: Scores, reference: Scores | None) -> Array:
    """Spearman correlation with the reference's rows, averaged over destinations, layer by layer."""
    undefined = np.full(len(scores.layers), np.nan)
    if reference is None:
        return undefined
    if scores.stage == "rollout":
        try:
            reference = reference.rollout()
        except ScoresError:
            return undefined
    dest = [p for p in scores.dest_positions if p in reference.dest_positions]
    src = [p for p in scores.src_positions if p in reference.src_positions]
    layers = [layer for layer in scores.layers if layer in reference.layers]
    if not dest or len(src) < FEWEST_SOURCES or not layers:
        return undefined
    found = _mean(_spearman(*(_picked(each, layers, dest, src) for each in (scores, reference))))
    by_layer = dict(zip(layers, found, strict=True))
    return np.array([by_layer.get(layer, np.nan) for layer in scores.layers])


def _picked(scores: Scores, layers: list[int], dest: list[int], src: list[int]) -> Array:
    values = scores.values.detach().cpu().double().numpy()
    axes = (scores.layers, layers), (scores.dest_positions, dest), (scores.src_positions, src)
    return values[np.ix_(*([known.index(each) for each in wanted] for known, wanted in axes))]


def _spearman(first: Array, second: Array) -> Array:
    """Of each row, over the sources at which not both are zero: where attention cannot reach, all methods agree."""
    from scipy.stats import rankdata

    kept = (first != 0) | (second != 0)
    count = np.maximum(kept.sum(axis=-1, keepdims=True), 1)

    def centred_ranks(rows: Array) -> Array:
        # What is not kept comes first in both, and so moves all other ranks alike.
        ranks = np.where(kept, rankdata(np.where(kept, rows, -np.inf), axis=-1), 0)
        return np.where(kept, ranks - ranks.sum(axis=-1, keepdims=True) / count, 0)

    one, other = centred_ranks(first), centred_ranks(second)
    spread = np.sqrt((one**2).sum(axis=-1) * (other**2).sum(axis=-1))
    defined = (spread > 0) & (kept.sum(axis=-1) >= FEWEST_SOURCES)
    return np.where(defined, (one * other).sum(axis=-1) / np.where(defined, spread, 1), np.nan)


def _rank_with_effect(scores: Scores, effect: Effect | None, resamples: int) -> dict[str, Array]:
    names = ("rank_with_effect", "rank_with_effect_low", "rank_with_effect_high")
    if effect is None or effect.target not in scores.dest_positions:
        return dict.fromkeys(names, np.nan)
    found = agreement(scores, effect, resamples=resamples)
    by_layer = dict(zip(found.layers, zip(found.rho, found.low, found.high, strict=True), strict=True))
    columns = zip(*(by_layer.get(layer, (np.nan,) * 3) for layer in scores.layers), strict=True)
    return dict(zip(names, columns, strict=True))
