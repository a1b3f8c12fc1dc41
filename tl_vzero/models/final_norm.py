"""The norm after the last block, where a model has one."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tl_vzero.distance import relative_difference, wide_dtype
from tl_vzero.errors import EndsRun, InputError
from tl_vzero.models.blocks import SAME_BLOCK, norm_of
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


# The norm as a function of rows in any float dtype; gives them in the widest.
FinalNorm = Callable[[Float[Tensor, "*rows feature"]], Float[Tensor, "*rows feature"]]


class _Reached(EndsRun):
    """Ends the probing run at the candidate norm."""


def final_norm_of(
    model: nn.Module,
    sites: Sites,
    ids: Read,
    decoder_ids: Int[Tensor, "batch decoder_position"] | None = None,
) -> FinalNorm:
    """Find the norm that reads the output of a stack's last block directly, and give what it computes.

    A module called `ln_final` is not enough: in a bridged BERT it is the norm inside the prediction
    head. So the model is run once on `ids`, and the norm must be handed the last block's output.
    Where its weights explain what it does they are taken, in the widest dtype: two float32 results
    differ by their rounding, and a small distance between them would be lost.
    Raises InputError where there is no such norm.
    """
    arguments = decoder_arguments(model, ids, decoder_ids)
    for name in _NAMES[sites.stack]:
        norm = getattr(model, name, None)
        if isinstance(norm, nn.Module):
            read = _last_output_as_read(model, sites, norm, ids, arguments)
            if read is not None:
                return _function_of(model, name, norm, read)
    raise InputError(
        f"final_norm=True, and this {kind_of(model)} has no norm after its last block (its block outputs "
        "are what the head reads): leave final_norm=False"
    )


def _function_of(model: nn.Module, name: str, norm: nn.Module, read: Float[Tensor, "*rows feature"]) -> FinalNorm:
    """By the norm's weights where they explain what it does to `read`, else by the module itself."""
    wide = wide_dtype(read.device)
    exact = norm_of(model, model, name, wide)
    expected = norm(read).to(wide)
    tolerance = SAME_BLOCK.get(read.dtype, SAME_BLOCK[torch.float32])
    if exact is not None and relative_difference(exact(read.to(wide)), expected) <= tolerance:
        return lambda rows: exact(rows.to(wide))
    return lambda rows: norm(rows.to(read.dtype)).to(wide)


def _last_output_as_read(
    model: nn.Module, sites: Sites, norm: nn.Module, ids: Tensor, arguments: dict[str, Tensor]
) -> Float[Tensor, "*rows feature"] | None:
    """The last block's output, if that is what the norm reads."""
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
    reads_it = len(seen) == 2 and torch.equal(seen["output"], seen["norm input"])
    return seen["output"] if reads_it else None
