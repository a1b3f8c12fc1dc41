"""What a Scores says of the model it came from."""

from typing import Any

import torch
from torch import nn

from tl_vzero.models.contracts import attention_heads, value_heads
from tl_vzero.models.facts import facts_of, library_versions
from tl_vzero.models.sites import Stack, kind_of
from tl_vzero.models.weights import weights_hash


def provenance(model: nn.Module, stack: Stack | None = None) -> dict[str, Any]:
    """Name, class, weights and versions, as plain data for a file; of an encoder-decoder also the stack."""
    facts = facts_of(model)
    grouped = attention_heads(model, stack) != value_heads(model, stack)
    return {
        "model": facts.name,
        "model_class": kind_of(model),
        "model_head": facts.head,
        "weights_sha256": weights_hash(model),
        "dtype": str(next(nn.Module.parameters(model)).dtype).removeprefix("torch."),
        "value_heads": "key-value" if grouped else "query",
        "versions": library_versions(),
    }


def result_dtype(model: nn.Module) -> torch.dtype:
    """What scores are given in: float64 for a float64 model, else float32."""
    own = next(nn.Module.parameters(model)).dtype
    return torch.float64 if own == torch.float64 else torch.float32
