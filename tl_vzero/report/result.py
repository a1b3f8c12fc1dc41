"""What one page shows about one sentence."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from tl_vzero.comparison import Comparison
from tl_vzero.effects import Agreement, Effect, agreement
from tl_vzero.scores import Scores

EFFECTS = ("zero_ablation", "attribution_patching", "value_patching")


@dataclass(frozen=True, eq=False)
class Report:
    """Everything that one page shows about one sentence.

    `comparison` has the raw maps `[layer, dest, src]` of all methods, Value Zeroing first; its target is the position
    whose row and prediction are in focus. `effects` are those of `EFFECTS` that could be measured, `missing` says of
    the others why. `corrupted` is the sentence that values were patched into.
    """

    model: str
    text: str
    comparison: Comparison
    effects: Mapping[str, Effect]
    missing: Mapping[str, str]
    corrupted: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def value_zeroing(self) -> Scores:
        """The raw map that all others stand beside."""
        return self.comparison["value_zeroing"]

    @property
    def target(self) -> int | None:
        """The position in focus."""
        return self.comparison.target

    @cached_property
    def agreements(self) -> dict[str, dict[str, Agreement]]:
        """By effect and method: the rank correlation of the method's row of the target with the effect."""
        return {
            name: {method: agreement(scores, effect) for method, scores in self.comparison.items()}
            for name, effect in self.effects.items()
        }

    @cached_property
    def table(self) -> list[dict[str, Any]]:
        """The comparison's table, a dict a method and layer; its last three columns are those of zero ablation."""
        # The intervals are most of its work, and `agreements` has them already.
        rows = replace(self.comparison, effect=None).table().to_dict("records")
        return [{str(name): value for name, value in row.items()} | self._with_effect(row) for row in rows]

    def _with_effect(self, row: Mapping[Any, Any]) -> dict[str, float]:
        found = self.agreements.get("zero_ablation", {}).get(row["method"])
        if found is None or row["layer"] not in found.layers:
            return {}
        at = found.layers.index(row["layer"])
        return {
            "rank_with_effect": found.rho[at],
            "rank_with_effect_low": found.low[at],
            "rank_with_effect_high": found.high[at],
        }

    def to_dict(self) -> dict[str, Any]:
        """All numbers of the page as plain JSON types; a number that is not finite becomes None."""
        from tl_vzero.report.numbers import report_dict

        return report_dict(self)

    def to_html(self, *, shared_plotly: bool = False) -> str:
        """One HTML page that works offline from a file: with plotly.js in it, or shared, as plotly.min.js beside it."""
        from tl_vzero.report.page import render_page

        return render_page(self, shared_plotly=shared_plotly)
