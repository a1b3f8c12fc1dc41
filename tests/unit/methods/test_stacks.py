"""The norm family in encoder-decoders, by hand from plain hooks on their Hugging Face models, in float64."""

from functools import cache
from typing import Any

import pytest
import torch
from support.paired import ON_THIS_LINE, READ, STACKS, model_of, stack_options
from support.references import row_normalized
from support.sublayers import ENDS_IN_NORMS, Sublayers, sublayers
from torch import Tensor

import tl_vzero

IDS = torch.tensor(READ)
NAMES = [name for name in ("T5", "T5 1.1, gated", "BART", "Marian", "Pegasus", "mBART") if name in ON_THIS_LINE]
NORMALISED = 5e-6
FAMILY = ["attention_norm", "attention_norm_res", "alti", "information_flow", "contribution_weights"]
POST_NORM = ["attention_norm_res_ln", "globenc"]


@cache
def blocks(name: str, stack: str) -> list[Sublayers]:
    return sublayers(name, stack)


def through(norm: Any, read: Tensor, vectors: Tensor) -> Tensor:
    """Vectors through a LayerNorm as far as it is linear, its scale that of what it read."""
    scale = (read.var(dim=-1, unbiased=False) + norm.eps).sqrt()
    return norm.weight * (vectors - vectors.mean(-1, keepdim=True)) / scale[:, None, None]


def by_hand(method: str, block: Sublayers, stack: str, ends_in_norms: bool) -> Tensor:
    """One map, the residual stream in the last column where the stack is "cross"."""
    place = 1 if stack == "cross" else 0
    parts = block.attentions[place]
    written = parts.by_head.sum(0)
    stream = parts.input + parts.attention
    n_dest = len(stream)
    if stack == "cross":
        vectors = torch.cat([written, parts.input.unsqueeze(1)], dim=1)
    else:
        vectors = written + torch.eye(n_dest).double().unsqueeze(-1) * parts.input.unsqueeze(1)
    if method == "attention_norm":
        return written.norm(dim=-1)
    if method == "attention_norm_res":
        return vectors.norm(dim=-1)
    if method == "attention_norm_res_ln":
        return through(*block.norms[place], vectors).norm(dim=-1)
    if method == "globenc":
        vectors = written if stack == "cross" else vectors
        for norm, read in block.norms[place:]:
            vectors = through(norm, read, vectors)
        return vectors.norm(dim=-1)
    if method == "alti":
        if ends_in_norms:
            stream, vectors = block.norms[place][0](stream), through(*block.norms[place], vectors)
        nearer = stream.abs().sum(-1, keepdim=True) - (stream.unsqueeze(1) - vectors).abs().sum(-1)
        return nearer.clamp(min=0)
    if method == "contribution_weights":
        return (written * parts.attention.unsqueeze(1)).sum(-1) / parts.attention.square().sum(-1, keepdim=True)
    assert method == "information_flow"
    heads = stream.abs().sum(-1)[None, :, None] - (stream.unsqueeze(1) - parts.by_head).abs().sum(-1)
    itself = (stream.abs() - (stream - parts.input).abs()).sum(-1)
    heads, itself = heads.clamp(min=0), itself.clamp(min=0)
    whole = heads.sum(dim=(0, 2)) + itself
    shares, rest = heads.sum(0) / whole.unsqueeze(-1), itself / whole
    return torch.cat([shares, rest.unsqueeze(-1)], dim=1) if stack == "cross" else shares + torch.diag(rest)


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("name", NAMES)
def test_every_map_is_that_of_plain_hooks(name: str, stack: str) -> None:
    for method in (*FAMILY, *POST_NORM):
        if method in POST_NORM and name not in ENDS_IN_NORMS:
            with pytest.raises(tl_vzero.TLVZeroError, match=f"{method} is undefined for this model"):
                tl_vzero.score(model_of(name), IDS, method, **stack_options(stack))
            continue
        with torch.no_grad():
            expected = torch.stack([by_hand(method, b, stack, name in ENDS_IN_NORMS) for b in blocks(name, stack)])
        measured = columns(tl_vzero.score(model_of(name), IDS, method, **stack_options(stack)))
        assert measured.shape == expected.shape, method
        if method == "contribution_weights":  # signed: a row has no sum to be a share of
            assert (measured - expected).abs().max() <= NORMALISED * expected.abs().sum(-1).max()
        else:
            assert (row_normalized(measured) - row_normalized(expected)).abs().max() <= NORMALISED, method


def columns(scores: Any) -> Tensor:
    """A map, with what the residual stream brings behind the sources where it is of no source."""
    residual = scores.metadata.get("residual")
    values: Tensor = scores.values.double()
    return values if residual is None else torch.cat([values, torch.tensor(residual).double().unsqueeze(-1)], dim=-1)
