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

Weights are read afresh at each call; what is kept between calls (kept.py) is bound to their content. A block counts
as recognised only if its form, computed from the weights, gives the output that the clean run showed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tl_vzero.clean import CleanBlock
from tl_vzero.distance import cosine_of_change, relative_difference, wide_dtype
from tl_vzero.models.blocks import SAME_BLOCK, BlockWeights
from tl_vzero.zeroing.chunks import Chunk, SentencePart, Workspace
from tl_vzero.zeroing.forms import CleanForm, SeenRows, recognise
from tl_vzero.zeroing.kept import Kept
from tl_vzero.zeroing.packing import Column
from tl_vzero.zeroing.pairs import PairZeroing, Route
from tl_vzero.zeroing.products import SAME_PRODUCT, random_direction
from tl_vzero.zeroing.reach import reached
from tl_vzero.zeroing.request import Request

NARROW = 256  # features
FOLDS_SHARE = 0.5  # of the memory that may be held
LATER_CALLS_PAY = 0.3  # A fold is counted at this share of its cost: it is kept for calls to come.


@dataclass(frozen=True, eq=False)
class Wanted:
    """Of one sentence: its length, and which of its positions are asked for."""

    length: int
    sources: tuple[int, ...]
    destinations: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Run:
    """What all layers of one clean run share.

    `rows` are the destinations asked for, of all sentences in one axis, as places in the run's flat
    `[sentence position]`; `columns` are the sources.
    """

    wanted: tuple[Wanted, ...]
    rows: Int[Tensor, "row"]
    columns: Int[Tensor, "column"]
    request: Request
    workspace: Workspace
    kept: Kept

    @classmethod
    def of(cls, wanted: Sequence[Wanted], request: Request, workspace: Workspace, kept: Kept) -> "Run":
        """Lay out the sentences of one clean run, padded on the right to the longest."""
        width = max(each.length for each in wanted)
        rows = [n * width + i for n, each in enumerate(wanted) for i in each.destinations]
        columns = [n * width + j for n, each in enumerate(wanted) for j in each.sources]
        return cls(tuple(wanted), torch.tensor(rows), torch.tensor(columns), request, workspace, kept)


def pairs_bytes(request: Request) -> float:
    """How much may be held for pairs; the rest is for folds."""
    return request.memory_mb * 2**20 * (1 - FOLDS_SHARE)


def compute_dtype(output: Float[Tensor, "*axes feature"]) -> torch.dtype:
    """float64 for a float64 model and for narrow ones, else float32: half precision is never accumulated in.

    A change of an activation is rounded once a hidden unit, and only the sum over many units averages that out.
    Where there are few, float64 costs next to nothing and keeps the digits of small distances.
    """
    if output.dtype == torch.float64 or output.shape[-1] <= NARROW:
        return wide_dtype(output.device)
    return torch.float32


def closed_form_layer(
    weights: BlockWeights, block: CleanBlock, run: Run, layer: int, *, final_norm: nn.Module | None = None
) -> tuple[list[Float[Tensor, "map _ _"]], Route] | None:
    """Raw maps of one layer, one for each sentence of the run, and the route taken; None if it is not recognised."""
    form = _form_of(weights, block, run, layer)
    if form is None:
        return None
    n_value_heads = block.value.shape[2]
    heads = run.request.heads if run.request.heads is not None else tuple(range(n_value_heads))
    felt = [
        _pick(_pick(own, 1, wanted.destinations), 2, wanted.sources)
        for own, wanted in zip(reached(block, heads, run.request.per_head), run.wanted, strict=True)
    ]
    members = len(weights.w_o) // n_value_heads
    zeroed = [(head,) for head in heads] if run.request.per_head else [heads]
    query_heads = [[head * members + m for head in head_set for m in range(members)] for head_set in zeroed]
    columns = [_columns(felt, index) for index in range(len(zeroed))]
    route = _cheapest_route(weights, form, columns, len(query_heads[0]), (layer, run.kept))
    maps = torch.cat([each.flatten(1) for each in felt], dim=1).to(wide_dtype(felt[0].device))
    measure = _measure(block, run, weights.w_o.dtype, final_norm)
    for index, chosen in enumerate(query_heads):
        pairs = PairZeroing(
            weights,
            form,
            _parts(block, run, chosen, weights.w_o.dtype),
            _values(block, run, [head // members for head in chosen], weights.w_o.dtype),
            chosen,
            route,
            pairs_bytes(run.request),
            run.workspace,
            run.kept,
            layer,
        )
        for chunk, change in pairs.changes(columns[index]):
            maps[index, chunk.cells] *= measure(chunk, change)
    by_sentence = maps.split([each[0].numel() for each in felt], dim=1)
    return [flat.view(each.shape) for flat, each in zip(by_sentence, felt, strict=True)], route


def _rows(activation: Tensor, places: Int[Tensor, "row"], dtype: torch.dtype) -> Tensor:
    """Some positions of a run, all sentences in one axis."""
    return activation.flatten(0, 1).index_select(0, places.to(activation.device)).to(dtype)


def _pick(tensor: Tensor, axis: int, positions: tuple[int, ...]) -> Tensor:
    """Some positions of one sentence along an axis; a view where they are the first ones."""
    if positions == tuple(range(len(positions))):
        return tensor.narrow(axis, 0, len(positions))
    return tensor.index_select(axis, torch.tensor(positions, device=tensor.device))


def _form_of(weights: BlockWeights, block: CleanBlock, run: Run, layer: int) -> CleanForm | None:
    dtype = weights.w_o.dtype

    def seen(activation: Tensor | None) -> Tensor | None:
        # Half precision would round what is computed from here on.
        usable = activation is not None and activation.ndim == 3 and activation.dtype == dtype
        return _rows(activation, run.rows, dtype) if usable and activation is not None else None

    return recognise(
        weights,
        _rows(block.input, run.rows, dtype),
        _attention_output(weights, block, run, layer, seen(block.attention_output)),
        _rows(block.output, run.rows, dtype),
        SeenRows(seen(block.mlp_pre), seen(block.mlp_pre_linear), seen(block.mlp_output)),
        partial(run.kept.vector, layer),
        SAME_BLOCK.get(block.output.dtype, SAME_BLOCK[torch.float32]),
    )


def _attention_output(
    weights: BlockWeights, block: CleanBlock, run: Run, layer: int, seen: Tensor | None
) -> Float[Tensor, "row feature"]:
    """sum_h A[h] v[h] W_O[h] + b_O; `seen`, if it is just that along a random direction."""
    dtype = weights.w_o.dtype
    pattern = block.pattern.to(dtype)
    members = pattern.shape[1] // block.value.shape[2]
    if seen is not None and seen.shape[-1] == weights.w_o.shape[-1]:
        direction = random_direction(weights.w_o)
        through = run.kept.vector(layer, "direction through W_O", weights.w_o, lambda: weights.w_o @ direction)
        by_value_head = rearrange(through, "(head member) d_head -> head member d_head", member=members)
        written = torch.einsum("sjhk,hmk->shmj", block.value.to(dtype), by_value_head).flatten(1, 2)
        along = (pattern * written.unsqueeze(2)).sum(dim=(1, 3)).unsqueeze(-1)
        along = _rows(along, run.rows, dtype).squeeze(-1) + weights.b_o @ direction
        if relative_difference(along, seen @ direction) <= SAME_PRODUCT[dtype]:
            return seen
    value = block.value.to(dtype).repeat_interleave(members, dim=2).transpose(1, 2)
    mixed = rearrange(pattern @ value, "sentence head dest d_head -> sentence dest (head d_head)")
    flat = rearrange(weights.w_o, "head d_head feature -> (head d_head) feature")
    return torch.addmm(weights.b_o, _rows(mixed, run.rows, dtype), flat)


def _parts(block: CleanBlock, run: Run, heads: list[int], dtype: torch.dtype) -> list[SentencePart]:
    """Each sentence's share of the row axis and of the flat maps, with the patterns of the heads that are zeroed."""
    pattern = block.pattern if len(heads) == block.pattern.shape[1] else block.pattern[:, heads]
    by_source = rearrange(pattern.to(dtype), "sentence head dest src -> sentence src dest head").contiguous()
    parts: list[SentencePart] = []
    first_row = first_cell = 0
    for own, wanted in zip(by_source, run.wanted, strict=True):
        chosen = _pick(_pick(own, 0, wanted.sources), 1, wanted.destinations)
        parts.append(SentencePart(first_row, chosen, first_cell))
        first_row += len(wanted.destinations)
        first_cell += len(wanted.destinations) * len(wanted.sources)
    return parts


def _values(
    block: CleanBlock, run: Run, value_heads: list[int], dtype: torch.dtype
) -> Float[Tensor, "column head d_head"]:
    return _rows(block.value, run.columns, dtype)[:, value_heads]


def _columns(felt: Sequence[Bool[Tensor, "map _ _"]], index: int) -> list[Column]:
    """One column a source of each sentence, with the range of destinations that can feel it."""
    columns: list[Column] = []
    for sentence, maps in enumerate(felt):
        reached_rows = maps[index].cpu().numpy()
        low = reached_rows.argmax(axis=0)
        high = len(reached_rows) - reached_rows[::-1].argmax(axis=0)
        high[~reached_rows.any(axis=0)] = 0
        spans = zip(low.tolist(), high.tolist(), strict=True)
        columns += [Column(sentence, j, *span) for j, span in enumerate(spans)]
    return columns


def _cheapest_route(
    weights: BlockWeights,
    form: CleanForm,
    columns: Sequence[Sequence[Column]],
    n_heads: int,
    where: tuple[int, Kept],
) -> Route:
    """Count what each route costs for the first MLP product, in multiply-adds of one pair's product."""
    if form.mlp is None or weights.w_in is None:
        return "none"
    n_all_heads, d_head, d_model = weights.w_o.shape
    pairs = sum(column.high - column.low for part in columns for column in part)
    n_columns = sum(len(part) for part in columns)
    joined = pairs * n_heads / d_model
    layer, kept = where
    fold = 0.0 if kept.has_fold(layer, weights.w_in) else n_all_heads * d_head * LATER_CALLS_PAY
    costs: dict[Route, float] = {
        "direct": pairs,
        "factored": n_columns * n_heads + joined,
        "folded": fold + n_columns * n_heads * d_head / d_model + joined,
    }
    return min(costs, key=lambda route: costs[route])


def _measure(
    block: CleanBlock, run: Run, dtype: torch.dtype, final_norm: nn.Module | None
) -> Callable[[Chunk, Tensor], Float[Tensor, "row"]]:
    """How far `clean - change` is from the clean output, of a chunk's pairs."""
    outputs = _rows(block.output, run.rows, dtype)

    def measure(chunk: Chunk, change: Tensor) -> Tensor:
        clean, change = chunk.clean_rows("clean outputs", outputs), chunk.grid(change)
        if final_norm is None and run.request.distance_name == "cosine":
            return cosine_of_change(clean, change).flatten()
        changed = clean - change
        if final_norm is not None:
            own = next(final_norm.parameters()).dtype
            clean, changed = final_norm(clean.to(own)), final_norm(changed.to(own))
        return run.request.distance(clean.expand_as(changed), changed).flatten()

    return measure
