"""The effects of single value positions on one prediction."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

from tl_vzero.errors import InputError


@dataclass(frozen=True, eq=False)
class Effect:
    """The effect on one prediction of changing each value position in each layer of the running model.

    `values[layer, src]`, or `values[layer, head, src]` per head, is the metric with the position changed minus the
    metric without: where values are zeroed, negative where the source supported the prediction. `metric` names it in
    words; `clean` is its value in the clean run. `predicted` are the likeliest tokens at the target with their
    probabilities, in the clean run. `method` says what was done to the values. Per head, `heads` are numbers of the
    heads that values have, and `head_kind` says which those are: under grouped-query attention key-value heads.
    """

    values: Float[Tensor, "layer *head src"]
    clean: float
    metric: str
    target: int
    target_token: str
    predicted: tuple[tuple[str, float], ...]
    layers: tuple[int, ...]
    src_tokens: tuple[str, ...]
    src_positions: tuple[int, ...]
    word_ids: tuple[int | None, ...] | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    method: Literal["zero_ablation", "value_patching", "attribution_patching"] = "zero_ablation"
    heads: tuple[int, ...] | None = None
    head_kind: Literal["query", "key-value"] | None = None


@dataclass(frozen=True, eq=False)
class PatchingEffect(Effect):
    """The effect on a corrupted sentence of each value position of a clean one.

    `values` are the metric of the patched run minus `corrupted`, the metric of the corrupted sentence. `src_tokens`
    are the clean sentence's, `corrupted_tokens` what stands at the same positions of the corrupted one.
    """

    corrupted: float = field(kw_only=True)
    corrupted_tokens: tuple[str, ...] = field(kw_only=True)

    @property
    def recovered(self) -> Float[Tensor, "layer *head src"]:
        """The share of the way from the corrupted metric to the clean one; 1 where all of it is restored.

        Raises InputError where both sentences have the same metric, so that there is no way to go.
        """
        if self.clean == self.corrupted:
            raise InputError(
                f"the {self.metric} is {self.clean:.6g} for the clean and for the corrupted sentence: expected a "
                "metric that tells them apart; look at values, or choose other target_ids"
            )
        return self.values / (self.clean - self.corrupted)
