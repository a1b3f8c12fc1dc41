"""What a comparison found for one sentence."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isnan
from typing import TYPE_CHECKING, Any

from tl_vzero.comparison.summary import RESAMPLES, summarised
from tl_vzero.effects import Effect
from tl_vzero.errors import escaped
from tl_vzero.scores import Scores

if TYPE_CHECKING:
    import pandas as pd

FORMAT_VERSION = 1


@dataclass(frozen=True, eq=False, repr=False)
class Comparison(Mapping[str, Scores]):
    """Raw scores of one sentence by the method's name, in the order asked for.

    `effect` is what zeroing each value position does to the prediction at `target`; where there is none,
    `no_effect_reason` says why. `left_out` are methods that were not named and not computed, with the reason.
    `special` says which positions hold special tokens.
    """

    scores: Mapping[str, Scores]
    tokens: tuple[str, ...]
    special: tuple[bool, ...]
    target: int | None
    effect: Effect | None
    no_effect_reason: str | None
    left_out: Mapping[str, str]

    def __getitem__(self, method: str) -> Scores:
        return self.scores[method]

    def __iter__(self) -> Iterator[str]:
        return iter(self.scores)

    def __len__(self) -> int:
        return len(self.scores)

    def __repr__(self) -> str:
        sentence = " ".join(token.strip() for token in self.tokens)
        return escaped(f"Comparison({', '.join(self.scores)}: {sentence!r})")

    def table(self, *, resamples: int = RESAMPLES) -> "pd.DataFrame":
        """One row for each method and layer, in plain numbers; NaN where one is undefined.

        - `entropy`: of a normalised row, in bits, averaged over destinations
        - `self_weight`: what a normalised row has of its own token, averaged
        - `special_weight`: what it has of special tokens together, averaged
        - `rank_with_value_zeroing`: Spearman correlation of a row with the same row of Value Zeroing, over sources
          that either of them reaches, averaged over rows of at least three such sources. A map that is rolled out is
          compared with Value Zeroing rolled out, which needs all layers.
        - `rank_with_effect`, `_low`, `_high`: of the target's row with the size of the effect, see `agreement`; with
          a bootstrap interval of 95 % from so many `resamples`

        Empty rows are left out of averages, and so are rows with negative scores, which are no shares.
        """
        return summarised(self.scores, self.special, self.effect, resamples=resamples)

    def to_dict(self) -> dict[str, Any]:
        """Maps, effect and table as plain JSON types; NaN in the table becomes None."""
        return {
            "format": "tl_vzero.comparison",
            "format_version": FORMAT_VERSION,
            "tokens": list(self.tokens),
            "special": list(self.special),
            "target": self.target,
            "scores": {name: scores.to_dict() for name, scores in self.scores.items()},
            "effect": None if self.effect is None else _effect_dict(self.effect),
            "no_effect_reason": self.no_effect_reason,
            "left_out": dict(self.left_out),
            "table": [_without_nan(row) for row in self.table().to_dict("records")],
        }


def _without_nan(row: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(name): None if isinstance(value, float) and isnan(value) else value for name, value in row.items()}


def _effect_dict(effect: Effect) -> dict[str, Any]:
    return {
        "method": effect.method,
        "metric": effect.metric,
        "clean": effect.clean,
        "target": effect.target,
        "target_token": effect.target_token,
        "predicted": [list(pair) for pair in effect.predicted],
        "layers": list(effect.layers),
        "src_positions": list(effect.src_positions),
        "values": effect.values.tolist(),
    }
