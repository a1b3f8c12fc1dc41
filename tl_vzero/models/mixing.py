"""Whether values are all that carries information between the positions of a block."""

from typing import Any

import torch
from torch import Tensor, nn

from tl_vzero.errors import ModelError
from tl_vzero.models.blocks import acted_on
from tl_vzero.models.run import NamedHook, run_to
from tl_vzero.models.sites import Sites

SAME_EPS = 100  # machine epsilons that rounding in a batch can bring


def check_values_carry_all(model: nn.Module, sites: Sites, read: Tensor) -> None:
    """Raise ModelError where a block still mixes positions when all its values are zero.

    Such a block has a state space, a convolution or a second attention beside the one whose values can be zeroed, and
    zeroing values would show a part of its mixing as the whole. `read` is a sentence of at least two positions, an
    image or a sound. It is run twice; the second time each block reads another vector at its first position. Hooks of
    the user's may mix on purpose: then nothing is checked.
    """
    is_text = not read.is_floating_point()
    # A decoder block with cross-attention also has self-attention, and that mixes as it should.
    if sites.stack == "cross" or (is_text and len(read) < 2) or acted_on(model):
        return
    two = torch.stack([read, read])
    seen: dict[str, Tensor] = {}
    hooks: list[NamedHook] = [(name, _differ_at_first) for name in sites.inputs]
    hooks += [(name, _zero) for name in sites.values]
    hooks += [_keep(name, seen) for name in sites.outputs]
    run_to(model, two, hooks, last=sites.outputs[-1], decoder_ids=two if sites.stack else None)
    for layer, name in enumerate(sites.outputs):
        first, second = seen[name][:, 1:].float()
        size = first.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
        if (first - second).abs().max() / size > SAME_EPS * torch.finfo(seen[name].dtype).eps:
            raise ModelError(
                f"block {layer} mixes positions by other means than the values of {sites.values[layer]} (a state "
                "space, a convolution or another attention beside it): Value Zeroing would show only a part of what "
                "this layer mixes; expected blocks in which attention alone does"
            )


def _differ_at_first(x: Tensor, *, hook: Any) -> Tensor:
    """Two copies of a block's input that differ at the first position and nowhere else, whatever came before."""
    x = x.clone()
    x[1] = x[0]
    x[1, 0] = x[0, -1]
    return x


def _zero(value: Tensor, *, hook: Any) -> Tensor:
    return torch.zeros_like(value)


def _keep(name: str, seen: dict[str, Tensor]) -> NamedHook:
    def hook_function(output: Tensor, *, hook: Any) -> None:
        seen[name] = output.detach()

    return name, hook_function
