"""The sublayers of an encoder-decoder's blocks, read off a plain Hugging Face model in float64; nothing is tl_vzero's.

A block has two sublayers, or three beside an encoder; each adds what it writes to what it read. BART's kind norms
behind the sum, T5's and Pegasus's before.
"""

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from support.paired import PAIRED, READ, WRITTEN
from support.parts import Parts
from support.plain_hooks import StaysWide, first_tensor, module_at, wide_copy
from torch import Tensor, nn

ENDS_IN_NORMS = ("BART", "Marian")


@dataclass
class Sublayers:
    """Of one block: the parts of each of its attentions, and every norm with what it read, in order of their work."""

    attentions: list[Parts]
    norms: list[tuple[nn.Module, Tensor]]
    block: nn.Module
    output: Tensor


@torch.no_grad()
def sublayers(name: str, stack: str, hf_model: Any = None) -> list[Sublayers]:
    """Every block of the encoder or the decoder, on `READ` and `WRITTEN`, of the row's model or another of its kind."""
    row = PAIRED[name]
    wide = wide_copy(hf_model or row.tiny())
    is_t5, is_encoder = "T5" in name, stack == "encoder"
    blocks = list(module_at(wide, row.encoder if is_encoder else row.decoder))  # type: ignore[call-overload]
    values = [row.encoder_value] if is_encoder else [row.decoder_value, row.cross_value]
    if is_t5:
        norms = [f"layer.{place}.layer_norm" for place in range(2 if is_encoder else 3)]
    else:
        norms = ["self_attn_layer_norm", *([] if is_encoder else ["encoder_attn_layer_norm"]), "final_layer_norm"]
    shown: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def show(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        read = args[0] if args else kwargs["hidden_states"]
        shown[module] = read[0], first_tensor(output)[0]

    with ExitStack() as hooks, StaysWide():
        watched = list(blocks)
        for block in blocks:
            watched += [module_at(block, path) for path in (*norms, *values)]
            for value in values:
                attention = module_at(block, value.rpartition(".")[0])
                watched += [attention.o if is_t5 else attention.out_proj]
        for module in watched:
            hooks.callback(module.register_forward_hook(show, with_kwargs=True).remove)
        outputs = wide(
            input_ids=torch.tensor([READ]), decoder_input_ids=torch.tensor([WRITTEN]), output_attentions=True
        )
    names = ["encoder_attentions"] if is_encoder else ["decoder_attentions", "cross_attentions"]
    ends_in_norms = name in ENDS_IN_NORMS
    layers = []
    for index, block in enumerate(blocks):
        seen = [(module_at(block, path), shown[module_at(block, path)][0]) for path in norms]
        attentions = []
        for place, (value, patterns) in enumerate(zip(values, names, strict=True)):
            attention = module_at(block, value.rpartition(".")[0])
            joins = attention.o if is_t5 else attention.out_proj
            pattern = outputs[patterns][index][0]
            by_value = shown[module_at(block, value)][1].unflatten(-1, (len(pattern), -1))
            weight = joins.weight.T.unflatten(0, (len(pattern), -1))
            by_head = torch.einsum("hij,jhk,hkd->hijd", pattern, by_value, weight)
            written = shown[joins][1]
            # What the next norm read is the sum; before it, the sum of the sublayer before, normed where norms end it.
            added_to = seen[place][1] - written if ends_in_norms else seen[place][1]
            attentions.append(Parts(added_to, written, by_head))
        layers.append(Sublayers(attentions, seen, block, shown[block][1]))
    return layers
