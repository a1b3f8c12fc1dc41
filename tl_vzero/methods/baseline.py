"""What an attribution starts from: zero, a vector of the caller's, or what the block writes for a token."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tl_vzero.errors import InputError, InputTypeError
from tl_vzero.methods.prediction import Prediction
from tl_vzero.models.facts import vocabulary_size

Baseline = int | Float[Tensor, "feature"] | None


def check_baseline(model: nn.Module, baseline: Baseline) -> None:
    """Raise InputError or InputTypeError for what is no baseline of the model."""
    if baseline is None:
        return
    if isinstance(baseline, Tensor):
        width = int(model.cfg.d_model)  # type: ignore[union-attr, arg-type]
        if list(baseline.shape) != [width] or not bool(torch.isfinite(baseline).all()):
            raise InputError(
                f"baseline has shape {list(baseline.shape)}: expected [{width}], one finite number a feature"
            )
        return
    if isinstance(baseline, bool) or not isinstance(baseline, int):
        raise InputTypeError(
            f"baseline is {type(baseline).__name__}: expected a token's id, a tensor [feature], or None for zero"
        )
    size = vocabulary_size(model)
    if not 0 <= baseline < size:
        raise InputError(f"baseline is token {baseline}: expected 0 to {size - 1}, the model's vocabulary")


def baseline_at(
    prediction: Prediction, layer: int, output: Float[Tensor, "1 position feature"], baseline: Baseline
) -> Float[Tensor, "1 position feature"]:
    """The baseline of a block's output."""
    if baseline is None:
        return torch.zeros_like(output)
    if isinstance(baseline, Tensor):
        return baseline.detach().to(output).expand_as(output)
    return prediction.output_for(baseline, layer)


def name_of(baseline: Baseline) -> str:
    """What the metadata calls it."""
    if baseline is None:
        return "zero"
    return "vector" if isinstance(baseline, Tensor) else f"token {baseline}"
