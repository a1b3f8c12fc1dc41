"""The main job: Value Zeroing beside raw attention and the effect on the prediction, for one sentence."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from torch import Tensor, nn

from tl_vzero.api import score, value_zeroing
from tl_vzero.effects import Effect, zero_ablation
from tl_vzero.errors import HeadlessModelError, InputTypeError
from tl_vzero.inputs import encode, find_target, mask_positions
from tl_vzero.scores import Scores

FORMAT_VERSION = 1


@dataclass(frozen=True, eq=False)
class Report:
    """Everything that one page shows about one sentence.

    `value_zeroing` and `attention` are raw maps `[layer, dest, src]` over the same word pieces. `target` is
    the position whose row and prediction are in focus. Without an `effect`, `no_effect_reason` says why.
    """

    model: str
    text: str
    value_zeroing: Scores
    attention: Scores
    effect: Effect | None
    no_effect_reason: str | None
    target: int | None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """All numbers of the page as plain JSON types; a number that is not finite becomes None.

        Both methods raw, normalised and rolled out, over pieces and over words (None where the words are
        unknown); the target's row `[layer, src]` and the effect `[layer, src]`, None where there is none.
        """
        return {
            "format": "tl_vzero.report",
            "format_version": FORMAT_VERSION,
            "model": self.model,
            "text": self.text,
            "tokens": list(self.value_zeroing.dest_tokens),
            "target": None if self.target is None else _target_dict(self.value_zeroing, self.target),
            "value_zeroing": _method_dict(self.value_zeroing),
            "attention": _method_dict(self.attention),
            "target_row": None if self.target is None else self._target_rows(self.target),
            "effect": None if self.effect is None else _effect_dict(self.effect),
            "no_effect_reason": self.no_effect_reason,
            "metadata": dict(self.metadata),
        }

    def _target_rows(self, target: int) -> dict[str, Any]:
        methods = {"value_zeroing": self.value_zeroing, "attention": self.attention}
        return {name: plain_numbers(scores.normalized().row(target)) for name, scores in methods.items()}

    def to_html(self) -> str:
        """One HTML page that works offline from a file, plotly.js included."""
        from tl_vzero.report_page import render_page

        return render_page(self)


def make_report(model: nn.Module, text: str, *, target: int | None = None, progress: bool = False) -> Report:
    """Compute everything that the page of one sentence shows.

    `target` is a position (negative: from the end); by default the sentence's only mask token, and if there
    is not exactly one, the report has no target. A model without a trained head gives a report without an
    effect. Raises InputError or InputTypeError for a text or a target that cannot be used.
    """
    if not isinstance(text, str):
        raise InputTypeError(f"text is {type(text).__name__}: a report is on one sentence, given as a string")
    sentence = encode(model, text).sentences[0]
    masks = mask_positions(model, sentence)
    position = None if target is None and len(masks) != 1 else find_target(model, sentence, target)
    scores = value_zeroing(model, text, progress=progress)
    attention = score(model, text, method="attention")
    assert isinstance(scores, Scores)
    assert isinstance(attention, Scores)
    effect, reason = _effect_of(model, text, position, len(masks), progress)
    return Report(
        model=str(scores.metadata.get("model", type(model).__name__)),
        text=text,
        value_zeroing=scores,
        attention=attention,
        effect=effect,
        no_effect_reason=reason,
        target=position,
        metadata=dict(scores.metadata),
    )


def _effect_of(
    model: nn.Module, text: str, target: int | None, mask_count: int, progress: bool
) -> tuple[Effect | None, str | None]:
    if target is None:
        found = "no mask token" if mask_count == 0 else f"{mask_count} mask tokens"
        return (
            None,
            f"No prediction is shown: the sentence has {found}, and no target position was given.",
        )
    try:
        return zero_ablation(model, text, target=target, progress=progress), None
    except HeadlessModelError as error:
        return None, f"No prediction is shown: {error}."


def plain_numbers(values: Tensor) -> Any:
    """A tensor as nested lists of JSON numbers; NaN and infinities, which JSON lacks, become None.

    >>> import torch
    >>> plain_numbers(torch.tensor([[0.5, float("nan")]]))
    [[0.5, None]]
    """
    return _finite(values.tolist())


def _finite(value: Any) -> Any:
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return value if isfinite(value) else None


def _target_dict(scores: Scores, target: int) -> dict[str, Any]:
    return {"position": target, "token": scores.dest_tokens[scores.dest_positions.index(target)]}


def _method_dict(scores: Scores) -> dict[str, Any]:
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


def _effect_dict(effect: Effect) -> dict[str, Any]:
    return {
        "metric": effect.metric,
        "clean": _finite(effect.clean),
        "target": effect.target,
        "target_token": effect.target_token,
        "predicted": [[token, _finite(probability)] for token, probability in effect.predicted],
        "layers": list(effect.layers),
        "src_tokens": list(effect.src_tokens),
        "src_positions": list(effect.src_positions),
        "values": plain_numbers(effect.values),
        "metadata": dict(effect.metadata),
    }
