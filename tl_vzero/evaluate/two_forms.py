"""The logits of an example's two forms at its mask, by a plain Hugging Face model that may be in training."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_vzero.evaluate.laid_out import LaidOut
from tl_vzero.evaluate.rows import padded


def logits_of_forms(hf_model: Any, examples: Sequence[LaidOut]) -> Float[Tensor, "example form"]:
    """The logits [good, bad] of each example, in one padded batch.

    The head reads the target's position only: the logits of all others would cost as much as the encoder.
    """
    device = next(hf_model.parameters()).device
    ids, mask = (each.to(device) for each in padded(examples))
    rows = torch.arange(len(examples), device=device)
    targets = torch.tensor([each.dest for each in examples], device=device)

    def at_target(_module: Any, _inputs: Any, output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state[rows, targets].unsqueeze(1)
        return output

    handle = getattr(hf_model, hf_model.base_model_prefix).register_forward_hook(at_target)
    try:
        logits: Tensor = hf_model(input_ids=ids, attention_mask=mask.long()).logits
    finally:
        handle.remove()
    return logits[:, 0].gather(1, ids_of_forms(examples).to(device))


def ids_of_forms(examples: Sequence[LaidOut]) -> Int[Tensor, "example form"]:
    """The ids [good, bad] of each example."""
    return torch.tensor([[each.pieces.good_id, each.pieces.bad_id] for each in examples])


def in_batches(examples: Sequence[LaidOut], size: int) -> list[list[LaidOut]]:
    """Examples in their order, some at a time."""
    return [list(examples[start : start + size]) for start in range(0, len(examples), size)]
