"""Engine 2: Value Zeroing in closed form, the same numbers without running attention again.

1. Zeroing v[j] leaves the pattern A as it is, so attention's output at i loses delta_ij = sum_h A[h,i,j] u[j,h],
   with u[j,h] = v[j,h] W_O[h].
2. A norm of a - delta is that of a, changed by own_ij c(a_i) + scale_ij c(delta_ij): two scalars a pair.
3. So what enters the MLP's activation changes by a combination of one row of i and the heads' rows of j, and
   those rows go through W_in once, not once a pair (routes "factored" and "folded"; "direct" multiplies each
   pair, where there are few).
4. Only the product with W_out is done for every pair, on differences throughout, so that a distance of 1e-10
   keeps its digits in float32. Where a vector loses nearly all of itself, a difference keeps none: such pairs are
   computed from what is left, in float64.
5. Pairs that cannot feel the zeroed value are never formed: a causal model costs half.

Where no weights explain a block's MLP, its own modules read each pair instead (by_modules.py, route "modules").

Weights are read afresh at each call; what is kept between calls (kept.py) is bound to their content. A block counts
as recognised only if its form, computed from the weights, gives the output that the clean run showed.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Unpack

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tl_vzero.clean import Beside, Clean, CleanBlock, visit_clean_blocks
from tl_vzero.distance import LITTLE_LEFT, change_form, check_finite_distances, relative_difference, wide_dtype
from tl_vzero.errors import EndsRun, ModelError, foreign_errors_as
from tl_vzero.models.blocks import SAME_BLOCK, BlockModules, BlockWeights, block_modules, block_weights
from tl_vzero.models.run import FinalNorm
from tl_vzero.models.sites import Sites
from tl_vzero.zeroing.by_modules import ModulePairs, module_form
from tl_vzero.zeroing.cache import Kept, workspace_of
from tl_vzero.zeroing.chunks import Chunk, Column, Zeroed
from tl_vzero.zeroing.forms import SAME_PRODUCT, CleanForm, SeenRows, random_direction, recognise
from tl_vzero.zeroing.layout import Run, columns_of, rows_of
from tl_vzero.zeroing.pairs import PairZeroing, Route
from tl_vzero.zeroing.request import Request, Wanted

# The closed form of a whole clean run: layer by layer, while the model runs.


class NotInClosedForm(EndsRun):
    """Why a model's maps cannot be had in closed form; ends the run that found out."""


class _AlgebraError(ModelError):
    """A foreign exception within the closed form."""


class PaddingMatters(NotInClosedForm):
    """What a padded run gives is not what its sentences alone give."""


def closed_maps(
    model: nn.Module,
    sites: Sites,
    ids: Sequence[Int[Tensor, "_"] | Float[Tensor, "..."]],
    wanted: Sequence[Wanted],
    request: Request,
    kept: Kept,
    *,
    clean: Clean | None = None,
    final_norm: FinalNorm | None = None,
    advance: Callable[[float], object] = lambda sources: None,
    **beside: Unpack[Beside],
) -> tuple[list[Float[Tensor, "layer map _ _"]], tuple[str, ...]]:
    """Raw maps of sentences that share one run, padded on the right to the longest, and each layer's route.

    `beside` is what goes beside the ids, padded likewise; `clean` is their clean run, where it is known. Each block's
    maps are computed as soon as the run reaches its end, so that the activations of one block are held at a time.
    Raises NotInClosedForm for a block of no known form, PaddingMatters where the sentences must run by themselves.
    """
    by_layer: dict[int, list[Tensor]] = {}
    routes: dict[int, str] = {}
    mask = _mask(ids)
    padding_from_token = None if mask is None else mask[:, None, :, None] & ~mask[:, None, None, :]

    def visit(layer: int, block: CleanBlock) -> None:
        if padding_from_token is not None and bool(((block.pattern != 0) & padding_from_token).any()):
            raise PaddingMatters(f"attention in block {layer} reads padding")
        norm = final_norm if layer == sites.n_layers - 1 else None
        try:
            # The algebra is ours: where a block has parts that it does not fit, the model itself may run well.
            with foreign_errors_as(_AlgebraError, f"its algebra failed on block {layer}"):
                weights = block_weights(model, layer, compute_dtype(block.output))
                if weights is None:
                    raise NotInClosedForm(f"the weights of block {layer} cannot be read in TransformerLens's layout")
                modules = partial(block_modules, model, layer)
                made = closed_form_layer(weights, modules, block, run, layer, final_norm=norm)
        except _AlgebraError as error:
            raise NotInClosedForm(str(error)) from error
        if made is None:
            raise NotInClosedForm(
                f"block {layer} is of no known form: neither its weights nor its modules explain its output"
            )
        by_layer[layer], routes[layer] = made
        advance(len(run.columns))

    with workspace_of(model, pairs_bytes(request)) as workspace:
        run = Run.of(wanted, request, workspace, kept)
        if clean is None:
            padded = nn.utils.rnn.pad_sequence(list(ids), batch_first=True)
            try:
                visit_clean_blocks(model, sites, padded, request.layers, visit, mask=mask, **beside)
            except ModelError as error:
                if mask is None:
                    raise
                # A row of padding may attend to nothing at all; its NaN then spreads to the next block's values.
                raise PaddingMatters(str(error)) from error
        else:
            for layer in request.layers:
                visit(layer, clean[layer])
    maps = [torch.stack(each) for each in zip(*(by_layer[layer] for layer in request.layers), strict=True)]
    return maps, tuple(routes[layer] for layer in request.layers)


def _mask(ids: Sequence[Tensor]) -> Bool[Tensor, "sentence position"] | None:
    """True where a sentence has a token, of sentences padded on the right; None if there is no padding."""
    lengths = torch.tensor([len(each) for each in ids], device=ids[0].device)
    longest = int(lengths.max())
    if bool((lengths == longest).all()):
        return None
    return torch.arange(longest, device=lengths.device) < lengths.unsqueeze(1)


NARROW = 256  # features
FOLDS_SHARE = 0.5  # of the memory that may be held
LATER_CALLS_PAY = 0.3  # A fold is counted at this share of its cost: it is kept for calls to come.


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
    weights: BlockWeights,
    modules_of_block: Callable[[], BlockModules],
    block: CleanBlock,
    run: Run,
    layer: int,
    *,
    final_norm: FinalNorm | None = None,
) -> tuple[list[Float[Tensor, "map _ _"]], Route] | None:
    """Raw maps of one layer, one for each sentence of the run, and the route taken; None if it is not recognised.

    The block's modules are looked up only where its weights do not explain it.
    """
    n_value_heads = block.value.shape[2]
    heads = run.request.heads if run.request.heads is not None else tuple(range(n_value_heads))
    felt = run.felt(block, heads)
    members = len(weights.w_o) // n_value_heads
    zeroed = [(head,) for head in heads] if run.request.per_head else [heads]
    query_heads = [[head * members + m for head in head_set for m in range(members)] for head_set in zeroed]
    columns = [columns_of(felt, index) for index in range(len(zeroed))]
    way = _way(weights, modules_of_block, block, run, layer, columns, len(query_heads[0]) * run.columns.shape[1])
    if way is None:
        return None
    pairs_of, route = way
    maps = torch.cat([each.flatten(1) for each in felt], dim=1).to(wide_dtype(felt[0].device))
    measure = _measure(block, run, weights.w_o.dtype, final_norm)
    for index, chosen in enumerate(query_heads):
        pairs = pairs_of(run.zeroed(block, chosen, weights.w_o.dtype, run.request.taken_in(layer)))
        for chunk, change, vanishing in pairs.changes(columns[index]):
            distances, little = measure(chunk, change)
            little |= vanishing
            if little.any():
                at = little.nonzero().squeeze(-1)
                distances[at] = _distances_of(*pairs.outputs(chunk, at), run.request, final_norm)
            maps[index, chunk.cells] *= distances
    check_finite_distances(run.request.distance_name, maps, f"block {layer}")
    by_sentence = maps.split([each[0].numel() for each in felt], dim=1)
    return [flat.view(each.shape) for flat, each in zip(by_sentence, felt, strict=True)], route


def _way(
    weights: BlockWeights,
    modules_of_block: Callable[[], BlockModules],
    block: CleanBlock,
    run: Run,
    layer: int,
    columns: Sequence[Sequence[Column]],
    n_heads: int,
) -> tuple[Callable[[Zeroed], PairZeroing | ModulePairs], Route] | None:
    """What computes the pairs, and by what route: by the block's weights, or else by its own modules."""
    dtype, budget = weights.w_o.dtype, pairs_bytes(run.request)
    seen = _seen_rows(block.attention_output, run, dtype)
    attention_output = _attention_output(weights, block, run, layer, seen)
    form = _form_of(weights, block, run, layer, attention_output)
    if form is not None:
        route = _cheapest_route(weights, form, columns, n_heads, (layer, run.kept))
        return partial(PairZeroing, weights, form, route, budget, run.workspace, run.kept, layer), route
    modules = modules_of_block()
    if _should_explain(weights, modules):
        return None  # something else acts in the block, such as a module that was replaced
    own = block.output.dtype
    reads, writes = (rows_of(each, run.rows, own) for each in (block.input, block.output))
    module = module_form(modules, reads, attention_output.to(own), writes, _tolerance(block))
    if module is None:
        return None
    route = "none" if module.adds else "modules"
    return partial(ModulePairs, module, weights.w_o, weights.b_o, budget, run.workspace), route


def _should_explain(weights: BlockWeights, modules: BlockModules) -> bool:
    """Whether all that the block has is known by its weights, so that they should give its output."""
    norms = ("norm1", "norm1_post", "norm2", "norm2_post")
    known = all(getattr(weights, name) is not None for name in norms if getattr(modules, name) is not None)
    return known and None not in (weights.w_in, weights.w_out, weights.activation)


def _tolerance(block: CleanBlock) -> float:
    return SAME_BLOCK.get(block.output.dtype, SAME_BLOCK[torch.float32])


def _seen_rows(activation: Tensor | None, run: Run, dtype: torch.dtype) -> Tensor | None:
    """What the clean run showed, of the rows asked for; half precision would round what is computed from it."""
    if activation is None or activation.ndim != 3 or activation.dtype != dtype:
        return None
    return rows_of(activation, run.rows, dtype)


def _form_of(
    weights: BlockWeights, block: CleanBlock, run: Run, layer: int, attention_output: Float[Tensor, "row feature"]
) -> CleanForm | None:
    dtype = weights.w_o.dtype
    seen = (_seen_rows(each, run, dtype) for each in (block.mlp_pre, block.mlp_pre_linear, block.mlp_output))
    return recognise(
        weights,
        rows_of(block.input, run.rows, dtype),
        attention_output,
        rows_of(block.output, run.rows, dtype),
        SeenRows(*seen),
        partial(run.kept.vector, layer),
        _tolerance(block),
        run.kept.forms,
        layer,
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
        along = rows_of(along, run.rows, dtype).squeeze(-1) + weights.b_o @ direction
        if relative_difference(along, seen @ direction) <= SAME_PRODUCT[dtype]:
            return seen
    value = block.value.to(dtype).repeat_interleave(members, dim=2).transpose(1, 2)
    mixed = rearrange(pattern @ value, "sentence head dest d_head -> sentence dest (head d_head)")
    flat = rearrange(weights.w_o, "head d_head feature -> (head d_head) feature")
    return torch.addmm(weights.b_o, rows_of(mixed, run.rows, dtype), flat)


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
    block: CleanBlock, run: Run, dtype: torch.dtype, final_norm: FinalNorm | None
) -> Callable[[Chunk, Tensor], tuple[Float[Tensor, "row"], Bool[Tensor, "row"]]]:
    """How far `clean - change` is from the clean output, of a chunk's pairs, and where too little is left to tell."""
    outputs = rows_of(block.output, run.rows, dtype)
    of_change = change_form(run.request.distance) if final_norm is None else None

    def measure(chunk: Chunk, change: Tensor) -> tuple[Tensor, Tensor]:
        clean, change = chunk.clean_rows("clean outputs", outputs), chunk.grid(change)
        if of_change is not None:
            distances, little = of_change(clean, change)
            return distances.flatten(), little.flatten()
        # A difference of float32 outputs would lose what the change still holds.
        clean = clean.to(wide_dtype(change.device)).expand_as(change)
        changed = clean - change
        little = torch.linalg.vector_norm(changed, dim=-1) < LITTLE_LEFT * torch.linalg.vector_norm(clean, dim=-1)
        return _distances_of(clean, changed, run.request, final_norm).flatten(), little.flatten()

    return measure


def _distances_of(
    clean: Float[Tensor, "*pairs feature"],
    changed: Float[Tensor, "*pairs feature"],
    request: Request,
    final_norm: FinalNorm | None,
) -> Float[Tensor, "*pairs"]:
    """The distances of outputs that are known themselves, in the widest dtype."""
    if final_norm is not None:
        clean, changed = final_norm(clean), final_norm(changed)
    return request.distance(clean, changed)
