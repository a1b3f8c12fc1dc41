"""The norm family in encoder-decoders, by hand from plain hooks on their Hugging Face models, in float64."""

from functools import cache
from typing import Any

import pytest
import torch
from support.paired import (
    ON_THIS_LINE,
    READ,
    STACKS,
    WRITTEN,
    hooked_encoder_decoder,
    model_of,
    stack_options,
    t5,
)
from support.plain_hooks import first_tensor
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


def shared(vectors: Tensor, bias: Tensor | None) -> Tensor:
    """A bias given to the vectors by how far each points along it."""
    if bias is None or bias.abs().max() < 1e-12:
        return vectors
    along = (vectors @ bias).abs()
    return vectors + (along / along.sum(-1, keepdim=True)).unsqueeze(-1) * bias


def normed(norm: Any, read: Tensor, vectors: Tensor) -> Tensor:
    if not hasattr(norm, "variance_epsilon"):
        return shared(through(norm, read, vectors), norm.bias)
    scale = (read.square().mean(-1) + norm.variance_epsilon).sqrt()  # T5 centres nothing
    return norm.weight * vectors / scale[:, None, None]


def decomposed(block: Sublayers, ends_in_norms: bool) -> Tensor:
    """DecompX's vectors of a block's output, by sources: the stack's own positions, then the encoder's."""
    itself, *cross = block.attentions
    n_own = len(itself.input)
    own = itself.by_head.sum(0) + torch.eye(n_own).double().unsqueeze(-1) * itself.input.unsqueeze(1)
    n_encoder = cross[0].by_head.shape[2] if cross else 0
    vectors = torch.cat([own, torch.zeros(n_own, n_encoder, own.shape[-1]).double()], dim=1)
    for place, parts in enumerate(block.attentions):
        if place:
            vectors[:, n_own:] += parts.by_head.sum(0)
        vectors = shared(vectors, (parts.attention - parts.by_head.sum((0, 2)))[0])
        vectors = normed(*block.norms[place], vectors) if ends_in_norms else vectors
    norm, read = block.norms[-1]
    if ends_in_norms:
        into, entering = block.norms[-2][0](block.norms[-2][1]), vectors
    else:
        into, entering = norm(read), normed(norm, read, vectors)
    dense = block.block.layer[-1].DenseReluDense if hasattr(block.block, "layer") else None
    up, down = (dense.wi, dense.wo) if dense else (block.block.fc1, block.block.fc2)
    before = up(into)
    after = (dense.act if dense else block.block.activation_fn)(before)
    slopes = torch.where(before == 0, 0.0, after / before).unsqueeze(1)
    inner = shared(entering @ up.weight.T, up.bias) * slopes
    vectors = vectors + shared(inner @ down.weight.T, down.bias)
    vectors = normed(norm, read, vectors) if ends_in_norms else vectors
    assert (vectors.sum(1) - block.output).abs().max() < 1e-8
    return vectors


@pytest.mark.parametrize("name", NAMES)
def test_decompx_is_that_of_plain_hooks_and_sums_to_the_output(name: str) -> None:
    for stack in STACKS:
        if "gated" in name:
            with pytest.raises(tl_vzero.TLVZeroError, match="its MLP is gated"):
                tl_vzero.score(model_of(name), IDS, "decompx", **stack_options(stack))
            continue
        with torch.no_grad():
            vectors = torch.stack([decomposed(b, name in ENDS_IN_NORMS) for b in blocks(name, stack)])
        n_own = vectors.shape[1]
        expected = (vectors[:, :, n_own:] if stack == "cross" else vectors[:, :, :n_own]).norm(dim=-1)
        scores = tl_vzero.score(model_of(name), IDS, "decompx", **stack_options(stack))
        assert isinstance(scores, tl_vzero.Scores)
        assert (scores.normalized().values.double() - row_normalized(expected)).abs().max() <= NORMALISED


def test_decompx_carries_vectors_through_an_encoder_and_not_a_decoder() -> None:
    model = model_of("BART")
    carried = tl_vzero.score(model, IDS, "decompx", stack="encoder", propagate=True)
    first = tl_vzero.score(model, IDS, "decompx", stack="encoder", layers=0)
    assert isinstance(carried, tl_vzero.Scores) and isinstance(first, tl_vzero.Scores)
    assert torch.allclose(carried.values[0], first.normalized().values[0], atol=1e-6)
    with pytest.raises(tl_vzero.TLVZeroError, match="one sequence"):
        tl_vzero.score(model, IDS, "decompx", propagate=True, **stack_options("cross"))


@pytest.mark.parametrize("stack", STACKS)
def test_hta_is_the_size_of_each_blocks_jacobian(stack: str) -> None:
    encoded = blocks("BART", "encoder")[-1].output
    scores = tl_vzero.score(model_of("BART"), IDS, "hta", **stack_options(stack))
    assert isinstance(scores, tl_vzero.Scores)
    for index, block in enumerate(blocks("BART", stack)):
        x = block.attentions[0].input
        beside = encoded if stack == "cross" else x

        def output(by: Tensor, block: Any = block.block, x: Tensor = x) -> Tensor:
            if stack == "encoder":
                return first_tensor(block(by.unsqueeze(0), attention_mask=None))[0]
            own, encoder = (x, by) if stack == "cross" else (by, encoded)
            mask = torch.full((len(x), len(x)), -1e9).double().triu(1)[None, None]
            read = {"attention_mask": mask, "encoder_hidden_states": encoder.unsqueeze(0)}
            return first_tensor(block(own.unsqueeze(0), **read))[0]

        jacobian: Any = torch.autograd.functional.jacobian(output, beside)
        expected = row_normalized(jacobian.square().sum((1, 3)).sqrt())
        assert (scores.normalized().values[index].double() - expected).abs().max() <= NORMALISED
    through = tl_vzero.score(model_of("BART"), IDS, "hta", to="embeddings", **stack_options(stack))
    assert isinstance(through, tl_vzero.Scores) and through.values.shape == scores.values.shape


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


@pytest.mark.parametrize("stack", STACKS)
def test_the_users_own_cache_and_a_part_of_the_map_give_the_same(stack: str) -> None:
    model, written = model_of("BART"), torch.tensor([WRITTEN])
    _, cache = model.run_with_cache(IDS.unsqueeze(0), decoder_input=written)
    for method in ("alti", "information_flow"):
        whole = columns(tl_vzero.score(model, IDS, method, **stack_options(stack)))
        cached = tl_vzero.score(model, IDS, method, cache=cache, **stack_options(stack))
        assert torch.allclose(columns(cached), whole, atol=1e-6)
        part = tl_vzero.score(model, IDS, method, layers=[2, 0], destinations=[-1, 1], **stack_options(stack))
        assert torch.allclose(columns(part), whole[[2, 0]][:, [-1, 1]], atol=1e-6)


def test_the_stacks_of_a_hooked_encoder_decoder() -> None:
    hf_model = t5(layers=3)
    model = hooked_encoder_decoder(hf_model)
    for stack in STACKS:
        expected = torch.stack([by_hand("alti", b, stack, False) for b in sublayers("T5", stack, hf_model)])
        measured = columns(tl_vzero.score(model, IDS, "alti", **stack_options(stack)))
        assert (row_normalized(measured) - row_normalized(expected)).abs().max() <= NORMALISED
