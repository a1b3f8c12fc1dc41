"""The norm after the last block, where a model has one."""

from contextlib import suppress
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from tl_vzero.errors import EndsRun, InputError
from tl_vzero.models.run import decoder_arguments, temporary_hooks, temporary_pre_hooks, told_by_us
from tl_vzero.models.signals import Read
from tl_vzero.models.sites import Sites, kind_of

# By stack, and what the classes call it there. The norm of a speech encoder stands behind its embeddings or, where the
# blocks are pre-norm, behind its blocks, by one name.
_NAMES = {
    None: ("ln_final", "embed_ln"),
    "encoder": ("encoder_ln_final", "encoder_final_ln"),
    "decoder": ("decoder_ln_final", "decoder_final_ln"),
    "cross": ("decoder_ln_final", "decoder_final_ln"),
}


class _Reached(EndsRun):
    """Ends the probing run at the candidate norm."""


def final_norm_of(
    model: nn.Module,
    sites: Sites,
    ids: Read,
    decoder_ids: Int[Tensor, "batch decoder_position"] | None = None,
) -> nn.Module:
    """Find the norm that reads the output of a stack's last block directly.

    A module called `ln_final` is not enough: in a bridged BERT it is the norm inside the prediction
    head. So the model is run once on `ids`, and the norm must be handed the last block's output.
    Raises InputError where there is no such norm.
    """
    arguments = decoder_arguments(model, ids, decoder_ids)
    for name in _NAMES[sites.stack]:
        norm = getattr(model, name, None)
        if isinstance(norm, nn.Module) and _reads_last_output(model, sites, norm, ids, arguments):
            return norm
    raise InputError(
        f"final_norm=True, and this {kind_of(model)} has no norm after its last block (its block outputs "
        "are what the head reads): leave final_norm=False"
    )


def _reads_last_output(
    model: nn.Module, sites: Sites, norm: nn.Module, ids: Tensor, arguments: dict[str, Tensor]
) -> bool:
    seen: dict[str, Tensor] = {}

    def keep_output(activation: Tensor, *, hook: Any) -> None:
        seen["output"] = activation

    def keep_input(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen["norm input"] = inputs[0]
        raise _Reached

    hooks = [(sites.outputs[-1], keep_output)]
    with (
        suppress(_Reached),
        temporary_pre_hooks(model, [norm], keep_input),
        temporary_hooks(model, hooks),
        told_by_us(model),
    ):
        model(ids, return_type="logits", **arguments)
    return len(seen) == 2 and torch.equal(seen["output"], seen["norm input"])
