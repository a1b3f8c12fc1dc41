"""Engine 2: Value Zeroing in closed form, the same numbers without running attention again.

1. Zeroing v[j] leaves the pattern A as it is, so attention's output at i loses delta_ij = sum_h A[h,i,j] u[j,h],
   with u[j,h] = v[j,h] W_O[h].
2. A norm of a - delta is that of a, changed by own_ij c(a_i) + scale_ij c(delta_ij): two scalars a pair.
3. So what enters the MLP's activation changes by a combination of one row of i and the heads' rows of j, and
   those rows go through W_in once, not once a pair (routes "factored" and "folded"; "direct" multiplies each
   pair, where there are few).
4. Only the product with W_out is done for every pair, on differences throughout, so that a distance of 1e-10
   keeps its digits in float32.
5. Pairs that cannot feel the zeroed value are never formed: a causal model costs half.

Everything is read afresh at each call. A block counts as recognised only if its form, computed from the
weights, gives the output that the clean run showed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from tl_vzero.clean import CleanBlock
from tl_vzero.distance import cosine_of_change, wide_dtype
from tl_vzero.models.blocks import BlockWeights
from tl_vzero.zeroing.forms import CleanForm, recognise
from tl_vzero.zeroing.packing import Column
from tl_vzero.zeroing.pairs import Measure, PairZeroing, Route, SentencePart, Workspace
from tl_vzero.zeroing.reach import reached
from tl_vzero.zeroing.request import Request

NARROW = 256  # features

# How far a form's output may be from the block's own (root mean square, relative) and still be the same block.
SAME_BLOCK = {torch.float64: 5e-7, torch.float32: 5e-6, torch.float16: 5e-3, torch.bfloat16: 3e-2}


@dataclass(frozen=True, eq=False)
class Group:
    """Sentences of one length: their clean block, and which of their positions are asked for."""

    block: CleanBlock
    sources: tuple[int, ...]
    destinations: tuple[int, ...]


def compute_dtype(output: Float[Tensor, "*axes feature"]) -> torch.dtype:
    """float64 for a float64 model and for narrow ones, else float32: half precision is never accumulated in.

    A change of an activation is rounded once a hidden unit, and only the sum over many units averages that out.
    Where there are few, float64 costs next to nothing and keeps the digits of small distances.
    """
    if output.dtype == torch.float64 or output.shape[-1] <= NARROW:
        return wide_dtype(output.device)
    return torch.float32


def closed_form_layer(
    weights: BlockWeights,
    groups: Sequence[Group],
    heads: tuple[int, ...],
    request: Request,
    *,
    memory_mb: float,
    workspace: Workspace,
    final_norm: nn.Module | None = None,
) -> tuple[list[Float[Tensor, "sentence map dest src"]], Route] | None:
    """Raw maps of one layer for several groups of sentences, and the route taken; None if not recognised.

    `heads` are the value heads that are zeroed, jointly or, per head, one by one. At most about `memory_mb`
    is held for pairs at any time.
    """
    form = _form_of(weights, groups)
    if form is None:
        return None
    wide = wide_dtype(weights.w_o.device)
    maps = [reached(g.block, heads, request.per_head, g.destinations, g.sources).to(wide) for g in groups]
    columns = [_columns(maps, index) for index in range(maps[0].shape[1])]
    members = weights.w_o.shape[0] // groups[0].block.value.shape[2]
    head_sets = [(head,) for head in heads] if request.per_head else [heads]
    query_heads = [[head * members + m for head in head_set for m in range(members)] for head_set in head_sets]
    route = _cheapest_route(weights, form, columns, len(query_heads[0]))
    outputs = torch.cat([_rows(g.block.output, g.destinations) for g in groups]).to(weights.w_o.dtype)
    measure = _measure(request, final_norm)
    for index, chosen in enumerate(query_heads):
        parts = _parts(groups, chosen, members, weights.w_o.dtype)
        zeroing = PairZeroing(weights, form, parts, chosen, route, memory_mb, workspace)
        for segment, change in zeroing.changes(columns[index]):
            part = parts[segment.columns[0].sentence]
            own = slice(part.first_row + segment.low, part.first_row + segment.high)
            first = segment.columns[0].index
            into = maps[part.group][part.row, index, segment.low : segment.high, first : first + len(segment.columns)]
            into *= measure(outputs[own], change).transpose(0, 1)
    return maps, route


def _rows(activation: Tensor, destinations: tuple[int, ...]) -> Float[Tensor, "row feature"]:
    """The rows of the destinations, all sentences in one axis."""
    whole = destinations == tuple(range(activation.shape[1]))
    chosen = activation if whole else activation[:, list(destinations)]
    return chosen.reshape(-1, activation.shape[-1])


def _form_of(weights: BlockWeights, groups: Sequence[Group]) -> CleanForm | None:
    dtype = weights.w_o.dtype
    block_input = torch.cat([_rows(g.block.input, g.destinations) for g in groups]).to(dtype)
    block_output = torch.cat([_rows(g.block.output, g.destinations) for g in groups]).to(dtype)
    mixed = torch.cat([_mixed_values(g, weights, dtype) for g in groups])
    flat = rearrange(weights.w_o, "head d_head feature -> (head d_head) feature")
    attention_output = torch.addmm(weights.b_o, mixed, flat)
    tolerance = SAME_BLOCK.get(groups[0].block.output.dtype, SAME_BLOCK[torch.float32])
    return recognise(weights, block_input, attention_output, block_output, tolerance)


def _mixed_values(group: Group, weights: BlockWeights, dtype: torch.dtype) -> Float[Tensor, "row head_feature"]:
    pattern = group.block.pattern[:, :, list(group.destinations)].to(dtype)
    members = pattern.shape[1] // group.block.value.shape[2]
    value = group.block.value.to(dtype).repeat_interleave(members, dim=2)
    mixed = pattern @ rearrange(value, "sentence src head d_head -> sentence head src d_head")
    return rearrange(mixed, "sentence head dest d_head -> (sentence dest) (head d_head)")


def _parts(groups: Sequence[Group], heads: list[int], members: int, dtype: torch.dtype) -> list[SentencePart]:
    """Each sentence's share of the row axis, with the patterns and values of the heads that are zeroed."""
    parts: list[SentencePart] = []
    first_row = 0
    for number, group in enumerate(groups):
        sources, destinations = list(group.sources), list(group.destinations)
        pattern = group.block.pattern[:, heads][:, :, destinations][..., sources].to(dtype)
        value = group.block.value[:, sources][:, :, [head // members for head in heads]].to(dtype)
        by_source = rearrange(pattern, "sentence head dest src -> sentence src dest head").contiguous()
        for row in range(len(pattern)):
            parts.append(SentencePart(number, row, first_row, by_source[row], value[row]))
            first_row += len(destinations)
    return parts


def _columns(maps: Sequence[Tensor], index: int) -> list[Column]:
    """One column a source of each sentence, with the range of destinations that can feel it."""
    columns: list[Column] = []
    sentence = 0
    for group in maps:
        felt = group[:, index] != 0  # [sentence, dest, src]
        low = felt.int().argmax(dim=1)
        high = felt.shape[1] - felt.flip(1).int().argmax(dim=1)
        high = torch.where(felt.any(dim=1), high, low)
        for lows, highs in zip(low.tolist(), high.tolist(), strict=True):
            columns += [Column(sentence, j, *span) for j, span in enumerate(zip(lows, highs, strict=True))]
            sentence += 1
    return columns


def _cheapest_route(weights: BlockWeights, form: CleanForm, columns: Sequence[Sequence[Column]], n_heads: int) -> Route:
    """Count what each route costs for the first MLP product, in multiply-adds of one pair's product."""
    if form.mlp is None or weights.w_in is None:
        return "none"
    d_head, d_model = weights.w_o.shape[1:]
    pairs = sum(column.high - column.low for part in columns for column in part)
    n_columns = sum(len(part) for part in columns)
    joined = pairs * n_heads / d_model
    costs: dict[Route, float] = {
        "direct": pairs,
        "factored": n_columns * n_heads + joined,
        "folded": (len(columns) * n_heads * d_head) + n_columns * n_heads * d_head / d_model + joined,
    }
    return min(costs, key=lambda route: costs[route])


def _measure(request: Request, final_norm: nn.Module | None) -> Measure:
    """How far `clean - change` is from `clean`, of rows `[dest, feature]` and changes `[src, dest, feature]`."""
    if final_norm is None and request.distance_name == "cosine":
        return cosine_of_change

    def measure(clean: Tensor, change: Tensor) -> Tensor:
        changed = clean - change
        if final_norm is not None:
            own = next(final_norm.parameters()).dtype
            clean, changed = final_norm(clean.to(own)), final_norm(changed.to(own))
        return request.distance(clean.expand_as(changed), changed)

    return measure
