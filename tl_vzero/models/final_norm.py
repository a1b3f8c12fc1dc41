"""The norm after the last block, where a model has one."""

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from tl_vzero.errors import InputError
from tl_vzero.models.run import temporary_hooks
from tl_vzero.models.sites import kind_of, sites_of


class _Reached(Exception):
    """Ends the probing run at the candidate norm."""


def final_norm_of(model: nn.Module, ids: Int[Tensor, "batch position"]) -> nn.Module:
    """Find the norm that reads the last block's output directly.

    A module called `ln_final` is not enough: in a bridged BERT it is the norm inside the prediction
    head. So the model is run once on `ids`, and the norm must be handed the last block's output.
    Raises InputError where there is no such norm.
    """
    norm = getattr(model, "ln_final", None)
    if isinstance(norm, nn.Module) and _reads_last_output(model, norm, ids):
        return norm
    raise InputError(
        f"final_norm=True, and this {kind_of(model)} has no norm after its last block (its block outputs "
        "are what the head reads): leave final_norm=False"
    )


def _reads_last_output(model: nn.Module, norm: nn.Module, ids: Tensor) -> bool:
    seen: dict[str, Tensor] = {}

    def keep_output(activation: Tensor, *, hook: Any) -> None:
        seen["output"] = activation

    def keep_input(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen["norm input"] = inputs[0]
        raise _Reached

    handle = norm.register_forward_pre_hook(keep_input)
    try:
        with temporary_hooks(model, [(sites_of(model).outputs[-1], keep_output)]):
            model(ids, return_type="logits")
    except _Reached:
        pass
    finally:
        handle.remove()
    return len(seen) == 2 and torch.equal(seen["output"], seen["norm input"])
