"""A report: what one page shows about one sentence, and all its numbers as plain JSON."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, Optional

from jaxtyping import Float
from torch import Tensor

from tl_vzero.comparison import Comparison
from tl_vzero.effects.ablation import attribution_error
from tl_vzero.effects.agreement import Agreement, agreement
from tl_vzero.effects.measure import Effect, PatchingEffect, Predictions
from tl_vzero.errors import ScoresError
from tl_vzero.files import to_plain
from tl_vzero.scores import Scores

FORMAT_VERSION = 2
AT_ALL_STAGES = ("value_zeroing", "attention")
Json = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Heads:
    """The raw maps `[layer, head, dest, src]` of every value head, and its share of its layer's mixing.

    `attention` is the pattern of the same heads: where `query_heads` of them read one value head, their mean. `share`
    is that of `head_importance`.
    """

    value_zeroing: Scores
    attention: Scores
    share: Float[Tensor, "layer head"]
    query_heads: int = 1

    def to_dict(self) -> dict[str, Any]:
        """Its numbers as plain JSON types."""
        maps = {name: getattr(self, name) for name in AT_ALL_STAGES}
        plain = {name: scores.labels() | {"values": scores.values.tolist()} for name, scores in maps.items()}
        return plain | {"share": self.share.tolist(), "query_heads": self.query_heads}


@dataclass(frozen=True, eq=False)
class Report:
    """Everything that one page shows about one sentence.

    `comparison` has the raw maps `[layer, dest, src]` of all methods, Value Zeroing first; its target is the position
    whose row and prediction are in focus. `effects` are those that could be measured, `missing` says of
    the others that were asked for why. `predictions` are the likeliest tokens at every position; none without a trained
    head or a target; `predicted_ids` are their ids. `corrupted` is the sentence that values were patched into. `beside`
    is a second report to compare with this one, `heads` are there if asked for. Where `no_word_known`, the model reads
    every word as unknown, and nothing of the page is about these words.
    """

    model: str
    text: str
    comparison: Comparison
    effects: Mapping[str, Effect]
    missing: Mapping[str, str]
    predictions: Predictions = ()
    predicted_ids: tuple[tuple[int, ...], ...] = ()
    corrupted: str | None = None
    beside: Optional["Report"] = None
    no_word_known: bool = False
    metadata: Mapping[str, Any] = field(default_factory=dict)
    heads: Heads | None = None

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
    def table(self) -> list[Json]:
        """The comparison's table, a dict per method and layer; its last three columns are those of zero ablation."""
        # The intervals are most of its work, and `agreements` has them already.
        rows = replace(self.comparison, effect=None).table().to_dict("records")
        return [{str(name): value for name, value in row.items()} | self._with_effect(row) for row in rows]

    def _with_effect(self, row: Mapping[Any, Any]) -> dict[str, float]:
        ranks = self.agreements.get("zero_ablation", {}).get(row["method"])
        if ranks is None or row["layer"] not in ranks.layers:
            return {}
        at = ranks.layers.index(row["layer"])
        columns = {"": ranks.rho, "_low": ranks.low, "_high": ranks.high}
        return {f"rank_with_effect{name}": values[at] for name, values in columns.items()}

    def to_dict(self) -> Json:
        """Every number of the page as plain JSON types; one that is not finite becomes None.

        Value Zeroing and raw attention raw, normalised and rolled out, over pieces and over words (None where the words
        are unknown); all methods' maps as they were computed; the target's row `[layer, src]` of each, the effects
        `[layer, src]`, their agreement, and the table. What there is not is None or left out, and its reason is there.
        """
        effects = {name: _effect_dict(self, effect) for name, effect in self.effects.items()}
        plain = {
            "format": "tl_vzero.report",
            "format_version": FORMAT_VERSION,
            "model": self.model,
            "text": self.text,
            "corrupted": self.corrupted,
            "tokens": self.value_zeroing.dest_tokens,
            "target": None,
            **{name: _stages_dict(self.comparison[name]) for name in AT_ALL_STAGES},
            "methods": {
                name: scores.labels() | {"values": scores.values.tolist()} for name, scores in self.comparison.items()
            },
            "left_out": self.comparison.left_out,
            "target_row": None,
            "effect": effects.get("zero_ablation"),
            "no_effect_reason": self.missing.get("zero_ablation"),
            "effects": effects,
            "missing_effects": self.missing,
            "predictions": self.predictions,
            "agreement": {
                effect: {method: _agreement_dict(ranks) for method, ranks in by_method.items()}
                for effect, by_method in self.agreements.items()
            },
            "table": self.table,
            "beside": None if self.beside is None else self.beside.to_dict(),
            "heads": None if self.heads is None else self.heads.to_dict(),
            "metadata": self.metadata,
        }
        if self.target is not None:
            row = self.value_zeroing.dest_positions.index(self.target)
            plain["target"] = {"position": self.target, "token": self.value_zeroing.dest_tokens[row]}
            plain["target_row"] = {name: _row(scores, self.target) for name, scores in self.comparison.items()}
        numbers: Json = to_plain(plain)
        return numbers

    def to_html(self, *, shared_plotly: bool = False) -> str:
        """One HTML page that works offline from a file: with plotly.js in it, or shared, as plotly.min.js beside it."""
        from tl_vzero.report.page import render_page

        return render_page(self, shared_plotly=shared_plotly)


def _row(scores: Scores, target: int) -> Any:
    try:
        return scores.normalized().row(target).tolist()
    except ScoresError:  # negative scores are no shares
        return None


def _stages_dict(scores: Scores) -> Json:
    stages = {"raw": scores, "normalized": scores.normalized(), "rollout": scores.rollout()}
    words = None
    if scores.word_ids is not None:
        words = _unit_dict({name: stage.words() for name, stage in stages.items()})
    return {
        "method": scores.method,
        "identity": scores.identity,
        "layers": scores.layers,
        "pieces": _unit_dict(stages),
        "words": words,
        "metadata": scores.metadata,
    }


def _unit_dict(stages: Mapping[str, Scores]) -> Json:
    labels = ("dest_tokens", "src_tokens", "dest_positions", "src_positions", "empty_rows")
    values = {name: scores.values.tolist() for name, scores in stages.items()}
    return {label: getattr(stages["raw"], label) for label in labels} | values


def _effect_dict(report: Report, effect: Effect) -> Json:
    labels = ("method", "metric", "clean", "target", "target_token", "predicted", "layers", "src_tokens")
    plain = {label: getattr(effect, label) for label in (*labels, "src_positions", "metadata")}
    plain["values"] = effect.values.tolist()
    if isinstance(effect, PatchingEffect):
        plain |= {"corrupted": effect.corrupted, "corrupted_tokens": effect.corrupted_tokens}
    elif effect.method == "attribution_patching":
        plain["error"] = attribution_error(effect, report.effects["zero_ablation"]).to_dict("records")
    return plain


def _agreement_dict(ranks: Agreement) -> Json:
    return {name: value for name, value in asdict(ranks).items() if name not in ("method", "effect", "target")}
