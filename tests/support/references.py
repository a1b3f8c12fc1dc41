"""Slow and obvious Value Zeroing on plain Hugging Face models, by plain torch hooks.

Nothing here comes from tl_vzero. The references run in float64; the authors' loop runs as its authors ran
it: one Hugging Face layer at a time on its clean input, batch 1, eager attention, 1 - cos.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Distance = Callable[[Tensor, Tensor], Tensor]


@dataclass
class BlockCall:
    """One block of the clean run: what it was called with, and what it gave."""

    block: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Tensor

    def again(self) -> Tensor:
        return first_tensor(self.block(*self.args, **self.kwargs))


def first_tensor(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def blocks_of(model: nn.Module) -> Sequence[nn.Module]:
    """The layers of a BERT, GPT-2, Llama or GPT-NeoX, with or without its head."""
    body = body_of(model)
    return body.encoder.layer if hasattr(body, "encoder") else body.h if hasattr(body, "h") else body.layers


def body_of(model: nn.Module) -> nn.Module:
    for name in ("bert", "transformer", "gpt_neox", "model"):
        if hasattr(model, name):
            return getattr(model, name)
    return model


def final_norm_of(model: nn.Module) -> nn.Module:
    body = body_of(model)
    for name in ("ln_f", "norm", "final_layer_norm"):
        if hasattr(body, name):
            return getattr(body, name)
    raise ValueError(f"{type(model).__name__} has no final norm")


def value_projection(block: nn.Module, config: Any) -> tuple[nn.Module, Tensor]:
    """The module that computes the values, and the columns of its output that are values: [head, column]."""
    n_heads = config.num_attention_heads
    d_head = getattr(config, "head_dim", None) or config.hidden_size // n_heads
    if hasattr(block, "attention") and hasattr(block.attention, "self"):
        return block.attention.self.value, torch.arange(n_heads * d_head).view(n_heads, d_head)
    if hasattr(block, "attn"):
        return block.attn.c_attn, 2 * config.n_embd + torch.arange(config.n_embd).view(n_heads, d_head)
    if hasattr(block, "self_attn"):
        n_kv = config.num_key_value_heads
        return block.self_attn.v_proj, torch.arange(n_kv * d_head).view(n_kv, d_head)
    columns = torch.arange(3 * n_heads * d_head).view(n_heads, 3, d_head)
    return block.attention.query_key_value, columns[:, 2]


@contextmanager
def values_zeroed(
    block: nn.Module, config: Any, positions: Sequence[int], heads: Sequence[int] | None = None
) -> Iterator[None]:
    """Within, the values of `positions` are 0 in `heads` (default: all), their bias included."""
    projection, columns = value_projection(block, config)
    chosen = (columns if heads is None else columns[list(heads)]).flatten()

    def zero(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        output = output.clone()
        for position in positions:
            output[:, position, chosen] = 0
        return output

    handle = projection.register_forward_hook(zero)
    try:
        yield
    finally:
        handle.remove()


def clean_calls(model: nn.Module, ids: Tensor, attention_mask: Tensor | None = None) -> list[BlockCall]:
    """Run the model once and keep every block's arguments and output."""
    calls: list[BlockCall] = []
    blocks = blocks_of(model)
    waiting: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        waiting.append((args, {name: value for name, value in kwargs.items() if "past" not in name}))

    def after(module: nn.Module, inputs: Any, output: Any) -> None:
        args, kwargs = waiting.pop()
        calls.append(BlockCall(module, args, kwargs, first_tensor(output)))

    handles = [block.register_forward_pre_hook(before, with_kwargs=True) for block in blocks]
    handles += [block.register_forward_hook(after) for block in blocks]
    try:
        body_of(model)(input_ids=ids, attention_mask=attention_mask, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def cosine_distance(clean: Tensor, changed: Tensor) -> Tensor:
    return 1 - torch.nn.functional.cosine_similarity(clean, changed, dim=-1)


def euclidean_distance(clean: Tensor, changed: Tensor) -> Tensor:
    return (clean - changed).pow(2).sum(-1).sqrt()


def in_float64(model: nn.Module) -> nn.Module:
    """A copy in float64, with sdpa attention: Hugging Face's eager softmax is float32 for Llama and GPT-NeoX."""
    wide = copy.deepcopy(model).double().eval()
    wide.set_attn_implementation("sdpa")
    return wide


@torch.no_grad()
def value_zeroing(
    model: nn.Module,
    ids: Sequence[int] | Tensor,
    *,
    attention_mask: Tensor | None = None,
    heads: Sequence[int] | None = None,
    final_norm: bool = False,
    distance: Distance = cosine_distance,
) -> Tensor:
    """Value Zeroing by its definition, in float64: raw maps `[layer, dest, src]`."""
    wide = in_float64(model)
    calls = clean_calls(wide, _one_row(ids), attention_mask)
    maps = []
    for layer, call in enumerate(calls):
        is_last = layer == len(calls) - 1
        read = final_norm_of(wide) if final_norm and is_last else nn.Identity()
        maps.append(_one_map(call, wide.config, heads, read, distance))
    return torch.stack(maps)


def _one_map(call: BlockCall, config: Any, heads: Sequence[int] | None, read: nn.Module, distance: Distance) -> Tensor:
    columns = []
    for source in range(call.output.shape[1]):
        with values_zeroed(call.block, config, [source], heads):
            changed = call.again()
        columns.append(distance(read(call.output)[0], read(changed)[0]))
    return torch.stack(columns, dim=-1)


def _one_row(ids: Sequence[int] | Tensor) -> Tensor:
    return torch.as_tensor(ids).reshape(1, -1)


@torch.no_grad()
def authors_loop(model: nn.Module, ids: Tensor) -> Tensor:
    """The authors' loop, in the model's own dtype: the thing that the hook engine must be faster than.

    For each layer and each position: that one Hugging Face layer on its clean input, batch 1, with the value
    projection's output zeroed at the position, then the cosine distance of every row.
    The model must have eager attention and be in eval mode.
    """
    return torch.stack(
        [
            _one_map(call, model.config, None, nn.Identity(), cosine_distance)
            for call in clean_calls(model, _one_row(ids))
        ]
    )


@torch.no_grad()
def logits_with_values_zeroed(
    model: nn.Module,
    ids: Sequence[int] | Tensor,
    positions: Sequence[int],
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
) -> Tensor:
    """The logits of a running float64 model in which the chosen values are zero."""
    wide = in_float64(model)
    blocks = blocks_of(wide)
    managers = [
        values_zeroed(blocks[layer], wide.config, positions, heads)
        for layer in (range(len(blocks)) if layers is None else layers)
    ]
    for manager in managers:
        manager.__enter__()
    try:
        return wide(input_ids=_one_row(ids)).logits
    finally:
        for manager in managers:
            manager.__exit__(None, None, None)


def row_normalized(maps: Tensor) -> Tensor:
    totals = maps.sum(-1, keepdim=True)
    return torch.where(totals == 0, torch.zeros_like(maps), maps / totals)


def rolled_out(normalized: Tensor, identity: bool = False) -> Tensor:
    """R_1 = N_1, R_l = N_l R_{l-1}, by plain loops."""
    positions = range(normalized.shape[-1])
    result: list[list[list[float]]] = []
    for layer in normalized.double().tolist():
        if identity:
            layer = [[(layer[i][j] + (i == j)) / 2 for j in positions] for i in positions]
        if result:
            below = result[-1]
            layer = [[sum(layer[i][k] * below[k][j] for k in positions) for j in positions] for i in positions]
        result.append(layer)
    return torch.tensor(result, dtype=torch.float64)
