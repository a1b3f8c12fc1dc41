"""What attention writes, taken apart by zeroing values in a plain Hugging Face block; nothing here is tl_vzero's."""

from dataclasses import dataclass
from typing import Any

import torch
from support.references import blocks_of, clean_calls, in_float64, values_zeroed
from torch import Tensor, nn


@dataclass
class Parts:
    """Of one layer: its input, attention's output with its bias, and `[head, dest, src, feature]` that it sums."""

    input: Tensor
    attention: Tensor
    by_head: Tensor


def output_projection(block: nn.Module) -> tuple[nn.Module, Tensor]:
    """The module that joins the heads, and its weight `[column, feature]`."""
    if hasattr(block, "attn"):
        return block.attn.c_proj, block.attn.c_proj.weight
    module = block.self_attn.o_proj if hasattr(block, "self_attn") else block.attention.output.dense
    return module, module.weight.T


@torch.no_grad()
def parts_of(hf_model: Any, ids: Tensor) -> list[Parts]:
    """Every layer of a BERT, GPT-2 or Llama in float64: what is missing when one source's value is 0 is its part."""
    wide = in_float64(hf_model)
    layers = []
    for block, call in zip(blocks_of(wide), clean_calls(wide, ids.reshape(1, -1)), strict=True):
        module, weight = output_projection(block)
        shown: list[tuple[Tensor, Tensor]] = []
        handle = module.register_forward_hook(lambda _, inputs, out, shown=shown: shown.append((inputs[0][0], out[0])))
        call.again()
        for source in range(ids.numel()):
            with values_zeroed(block, wide.config, [source]):
                call.again()
        handle.remove()
        (joined, attention), *without = shown
        n_heads = wide.config.num_attention_heads
        lost = torch.stack([joined - left for left, _ in without], dim=1).unflatten(-1, (n_heads, -1))
        by_head = torch.einsum("ijhk,hkd->hijd", lost, weight.unflatten(0, (n_heads, -1)))
        block_input = call.args[0] if call.args else call.kwargs["hidden_states"]
        layers.append(Parts(block_input[0], attention, by_head))
    return layers
