"""What one page shows about one sentence."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import isfinite
from typing import Any

from torch import Tensor

from tl_vzero.comparison import Comparison
from tl_vzero.effects.ablation import attribution_error
from tl_vzero.effects.agreement import Agreement, agreement
from tl_vzero.effects.measure import Effect, PatchingEffect
from tl_vzero.errors import ScoresError
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
        return report_dict(self)

    def to_html(self, *, shared_plotly: bool = False) -> str:
        """One HTML page that works offline from a file: with plotly.js in it, or shared, as plotly.min.js beside it."""
        from tl_vzero.report.page import render_page

        return render_page(self, shared_plotly=shared_plotly)


# A report's numbers as plain JSON types.

FORMAT_VERSION = 2
AT_ALL_STAGES = ("value_zeroing", "attention")


def report_dict(report: Report) -> dict[str, Any]:
    """Every number of the page.

    Value Zeroing and raw attention raw, normalised and rolled out, over pieces and over words (None where the words
    are unknown); all methods' maps as they were computed; the target's row `[layer, src]` of each, the effects
    `[layer, src]`, their agreement, and the table. What there is not is None or left out, and its reason is given.
    """
    return {
        "format": "tl_vzero.report",
        "format_version": FORMAT_VERSION,
        "model": report.model,
        "text": report.text,
        "corrupted": report.corrupted,
        "tokens": list(report.value_zeroing.dest_tokens),
        "target": None if report.target is None else _target_dict(report.value_zeroing, report.target),
        **{name: _stages_dict(report.comparison[name]) for name in AT_ALL_STAGES},
        "methods": {name: _map_dict(scores) for name, scores in report.comparison.items()},
        "left_out": dict(report.comparison.left_out),
        "target_row": None if report.target is None else _target_rows(report, report.target),
        "effect": _effect_dict(report, "zero_ablation") if "zero_ablation" in report.effects else None,
        "no_effect_reason": report.missing.get("zero_ablation"),
        "effects": {name: _effect_dict(report, name) for name in report.effects},
        "missing_effects": dict(report.missing),
        "agreement": {
            effect: {method: _agreement_dict(found) for method, found in by_method.items()}
            for effect, by_method in report.agreements.items()
        },
        "table": finite(report.table),
        "metadata": dict(report.metadata),
    }


def plain_numbers(values: Tensor) -> Any:
    """A tensor as nested lists of JSON numbers; NaN and infinities, which JSON lacks, become None.

    >>> import torch
    >>> plain_numbers(torch.tensor([[0.5, float("nan")]]))
    [[0.5, None]]
    """
    return finite(values.tolist())


def finite(value: Any) -> Any:
    """The same lists and dicts, with None for each number that JSON lacks.

    >>> finite({"rho": (0.5, float("nan"))})
    {'rho': [0.5, None]}
    """
    if isinstance(value, Mapping):
        return {name: finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def _target_dict(scores: Scores, target: int) -> dict[str, Any]:
    return {"position": target, "token": scores.dest_tokens[scores.dest_positions.index(target)]}


def _target_rows(report: Report, target: int) -> dict[str, Any]:
    rows = {}
    for name, scores in report.comparison.items():
        try:
            rows[name] = plain_numbers(scores.normalized().row(target))
        except ScoresError:  # negative scores are no shares
            rows[name] = None
    return rows


def _map_dict(scores: Scores) -> dict[str, Any]:
    return {**scores.labels(), "values": plain_numbers(scores.values)}


def _stages_dict(scores: Scores) -> dict[str, Any]:
    stages = {"raw": scores, "normalized": scores.normalized(), "rollout": scores.rollout()}
    words = None
    if scores.word_ids is not None:
        words = _unit_dict({name: stage.words() for name, stage in stages.items()})
    return {
        "method": scores.method,
        "identity": scores.identity,
        "layers": list(scores.layers),
        "pieces": _unit_dict(stages),
        "words": words,
        "metadata": dict(scores.metadata),
    }


def _unit_dict(stages: Mapping[str, Scores]) -> dict[str, Any]:
    labels: Scores = stages["raw"]
    return {
        "dest_tokens": list(labels.dest_tokens),
        "src_tokens": list(labels.src_tokens),
        "dest_positions": list(labels.dest_positions),
        "src_positions": list(labels.src_positions),
        "empty_rows": [list(row) for row in labels.empty_rows],
        **{name: plain_numbers(scores.values) for name, scores in stages.items()},
    }


def _effect_dict(report: Report, name: str) -> dict[str, Any]:
    effect: Effect = report.effects[name]
    of_two = {}
    if isinstance(effect, PatchingEffect):
        of_two = {"corrupted": finite(effect.corrupted), "corrupted_tokens": list(effect.corrupted_tokens)}
    elif name == "attribution_patching":
        error = attribution_error(effect, report.effects["zero_ablation"])
        of_two = {"error": finite(error.to_dict("records"))}
    return {
        "method": effect.method,
        "metric": effect.metric,
        "clean": finite(effect.clean),
        "target": effect.target,
        "target_token": effect.target_token,
        "predicted": [[token, finite(probability)] for token, probability in effect.predicted],
        "layers": list(effect.layers),
        "src_tokens": list(effect.src_tokens),
        "src_positions": list(effect.src_positions),
        "values": plain_numbers(effect.values),
        "metadata": dict(effect.metadata),
        **of_two,
    }


def _agreement_dict(found: Agreement) -> dict[str, Any]:
    return {
        "layers": list(found.layers),
        "rho": finite(found.rho),
        "low": finite(found.low),
        "high": finite(found.high),
        "n": found.n,
        "confidence": found.confidence,
    }
