"""Engine 2: Value Zeroing in closed form, the same numbers without running attention again.

1. Zeroing v[j] leaves the pattern A as it is, so attention's output at i loses delta_ij = sum_h A[h,i,j] u[j,h],
   with u[j,h] = v[j,h] W_O[h].
2. A norm of a - delta is that of a, changed by p_ij c(a_i) + q_ij c(delta_ij): two scalars per pair.
3. So what enters the MLP's activation changes by a combination of one row of i and the heads' rows of j, and
   those rows go through W_in once, not once per pair (routes "factored" and "folded"; "direct" multiplies each
   pair, where there are few).
4. Only the product with W_out is done for every pair, on differences throughout, so that a distance of 1e-10
   keeps its digits in float32. Where a vector loses nearly all of itself, a difference keeps none: such pairs are
   computed from what is left, in float64.
5. Pairs that a zeroed value cannot affect are never formed: a causal model costs half.

Within a tolerance, most pairs are seen in a few random directions in place of step 4 (sketch.py).

In a decoder that reads an encoder, cross-attention reads what self-attention loses at each pair (crossing.py).

Where no weights explain a block's MLP, its own modules read each pair instead (by_modules.py, route "modules").

Weights are read afresh at each call; what is cached between calls (forms.py) is bound to their content. A block counts
as recognised only if its form, computed from the weights, gives the output that the clean run showed.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Unpack

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tl_vzero.clean import Clean, CleanBlock, device_of, visit_clean_blocks
from tl_vzero.distance import LITTLE_LEFT, change_form, check_finite_distances, relative_difference, wide_dtype
from tl_vzero.errors import EndsRun, ModelError, foreign_errors_as
from tl_vzero.models.blocks import SAME_BLOCK, BlockWeights, block_modules, block_weights, norm_names
from tl_vzero.models.run import Beside, tf32_products
from tl_vzero.zeroing.by_modules import ModulePairs, module_form
from tl_vzero.zeroing.chunks import (
    ROWS_PER_PRODUCT,
    Chunk,
    Column,
    Mixed,
    SentencePart,
    Workspace,
    Zeroed,
    workspace_of,
)
from tl_vzero.zeroing.crossing import Crossing, crossing_of
from tl_vzero.zeroing.forms import SAME_PRODUCT, BlockRows, CleanForm, WeightCache, random_direction, recognise
from tl_vzero.zeroing.pairs import PairZeroing, Parts, Route
from tl_vzero.zeroing.request import Request, Wanted, pick
from tl_vzero.zeroing.sketch import can_be_sketched, sketched_maps

# What another value costs shows tests/bench/bench_closed_form.py.
NARROW = 256  # features, up to which float64 costs next to nothing
FOLDS_SHARE = 0.5  # of the memory that may be held; the rest is for pairs
LATER_CALLS_PAY = 0.3  # a fold is counted at this share of its cost: it is cached for calls to come


class NotInClosedForm(EndsRun):
    """Raised mid-run when the closed form does not apply, with the reason."""


class PaddingMatters(NotInClosedForm):
    """What a padded run gives is not what its sentences alone give."""


@dataclass(frozen=True, eq=False)
class ClosedMaps:
    """Of each sentence its raw maps, with a tolerance how far their shares may be off, and each layer's route."""

    values: list[Float[Tensor, "layer map _ _"]]
    errors: list[Float[Tensor, "layer map _ _"]]
    routes: tuple[str, ...]


def closed_maps(
    request: Request,
    ids: Sequence[Int[Tensor, "_"] | Float[Tensor, "..."]],
    wanted: Sequence[Wanted],
    cache: WeightCache,
    *,
    clean: Clean | None = None,
    averaged: Bool[Tensor, "sentence position"] | None = None,
    visit_blocks: Callable[..., None] = visit_clean_blocks,
    **beside: Unpack[Beside],
) -> "ClosedMaps":
    """Raw maps of sentences that share one run, padded on the right to the longest, and each layer's route.

    `clean` is their clean run, where it is there already; else one block's activations are held at a time. `averaged`
    marks the positions that a mean goes over. `visit_blocks` makes the clean run where it is not there.
    Raises NotInClosedForm for a block of no known form, PaddingMatters where the sentences must run by themselves.
    """
    by_layer: dict[int, _Maps] = {}
    mask = _mask(ids)
    padding_from_token = None if mask is None else mask[:, None, :, None] & ~mask[:, None, None, :]

    def visit(layer: int, block: CleanBlock) -> None:
        if padding_from_token is not None and bool(((block.pattern != 0) & padding_from_token).any()):
            raise PaddingMatters(f"attention in block {layer} reads padding")
        by_layer[layer] = _layer_maps(run, layer, block)
        request.advance(len(run.columns))

    with workspace_of(request.model, request.memory_mb * 2**20 * (1 - FOLDS_SHARE)) as workspace:
        run = _Run(request, wanted, averaged, cache, workspace)
        if clean is None:
            padded = nn.utils.rnn.pad_sequence(list(ids), batch_first=True)
            try:
                visit_blocks(request.model, request.sites, padded, request.layers, visit, mask=mask, **beside)
            except ModelError as error:
                if mask is None:
                    raise
                # A row of padding may attend to nothing at all; its NaN then spreads to the next block's values.
                raise PaddingMatters(str(error)) from error
        else:
            for layer in request.layers:
                visit(layer, clean[layer])
    every = [by_layer[layer] for layer in request.layers]
    values, errors = (
        [torch.stack(layers) for layers in zip(*of_layers, strict=True)]
        for of_layers in ([maps.values for maps in every], [maps.errors for maps in every])
    )
    return ClosedMaps(values, [] if request.tolerance is None else errors, tuple(maps.route for maps in every))


def _mask(ids: Sequence[Tensor]) -> Bool[Tensor, "sentence position"] | None:
    """True where a sentence has a token, of sentences padded on the right; None if there is no padding."""
    lengths = torch.tensor([len(sentence) for sentence in ids], device=ids[0].device)
    longest = int(lengths.max())
    if bool((lengths == longest).all()):
        return None
    return torch.arange(longest, device=lengths.device) < lengths.unsqueeze(1)


def _layer_maps(run: "_Run", layer: int, block: CleanBlock) -> "_Maps":
    """One layer's maps and route; raises NotInClosedForm where it has none."""
    # The algebra is ours: where a block has parts that it does not fit, the model itself may run well.
    with foreign_errors_as(NotInClosedForm, f"its algebra failed on block {layer}"):
        stack = run.request.sites.stack
        weights = block_weights(run.request.model, layer, _compute_dtype(block.output), stack)
        if stack in ("decoder", "cross") and block.other_pattern is None:
            raise NotInClosedForm("it reads both attentions of a decoder's block, and cache= shows it one of them")
        if weights is None:
            raise NotInClosedForm(f"the weights of block {layer} cannot be read in TransformerLens's layout")
        stands_in = run.request.baseline.at(layer, block.value, run.averaged)
        result = _Layer(run, layer, block, weights, stands_in).maps()
    if result is None:
        raise NotInClosedForm(
            f"block {layer} is of no known form: neither its weights nor its modules explain its output"
        )
    return result


def _compute_dtype(output: Float[Tensor, "*axes feature"]) -> torch.dtype:
    """float64 for a float64 model and for narrow ones, whose few units do not average rounding out; else float32."""
    if output.dtype == torch.float64 or output.shape[-1] <= NARROW:
        return wide_dtype(output.device)
    return torch.float32


class _Run:
    """What all layers of one clean run share, of sentences padded on the right to the longest.

    `rows` are the wanted destinations, of all sentences in one axis, as places in the run's flat `[sentence position]`.
    `columns` are the places that each column zeroes, likewise in `[sentence source]`, as many as the longest span has;
    `holds` is False where a shorter span has none left.
    """

    def __init__(
        self,
        request: Request,
        wanted: Sequence[Wanted],
        averaged: Tensor | None,
        cache: WeightCache,
        workspace: Workspace,
    ) -> None:
        self.request, self.wanted, self.averaged = request, wanted, averaged
        self.cache, self.workspace = cache, workspace
        width, sources = (max(sizes) for sizes in zip(*((one.length, one.n_sources) for one in wanted), strict=True))
        rows = torch.tensor([n * width + i for n, sentence in enumerate(wanted) for i in sentence.destinations])
        spans = [[n * sources + j for j in span] for n, sentence in enumerate(wanted) for span in sentence.spans]
        columns, self.holds = _even(spans)
        self.rows, self.columns = (places.to(device_of(request.model)) for places in (rows, columns))


@dataclass(frozen=True, eq=False)
class _Maps:
    """Of each sentence its raw maps, and how far the shares of their rows may be off; the route taken."""

    values: list[Float[Tensor, "map _ _"]]
    errors: list[Float[Tensor, "map _ _"]]
    route: Route


@dataclass(frozen=True, eq=False)
class _Layer:
    """One layer of a run, its clean block, its weights in the dtype to compute in, and what stands in for values."""

    run: _Run
    layer: int
    block: CleanBlock
    weights: BlockWeights
    stands_in: Float[Tensor, "sentence source value_head d_head"] | None

    @property
    def dtype(self) -> torch.dtype:
        return self.weights.w_o.dtype

    @property
    def name(self) -> str:
        """The hook of the block's values, by which the cache names it."""
        return self.run.request.sites.values[self.layer]

    @property
    def query_heads(self) -> int:
        """How many query heads share a value head."""
        return self.block.pattern.shape[1] // self.block.value.shape[2]

    def rows(self, activation: Tensor, dtype: torch.dtype) -> Tensor:
        """An activation at the wanted destinations."""
        return _rows_of(activation, self.run.rows, dtype)

    def maps(self) -> "_Maps | None":
        """Raw maps, one for each sentence of the run, and the route taken; None if the block is not recognised."""
        request = self.run.request
        heads = request.zeroed_heads
        # On the host, which cuts them into chunks: every further question to the device would wait for its work.
        marked = self.block.affected(heads, request.per_head, self.stands_in).cpu()
        affected = [one.affected(entries) for one, entries in zip(self.run.wanted, marked, strict=True)]
        zeroed = [(head,) for head in heads] if request.per_head else [heads]
        members = range(self.query_heads)
        head_sets = [[head * len(members) + m for head in value_heads for m in members] for value_heads in zeroed]
        columns = [_columns_of(affected, index) for index in range(len(head_sets))]
        way = self._way(columns, len(head_sets[0]) * self.run.columns.shape[1])
        if way is None:
            return None
        pairs_of, route = way
        outputs = self.rows(self.block.output, self.dtype)
        counted = torch.cat([entries.flatten(1) for entries in affected], dim=1).to(outputs.device)
        maps = torch.zeros(counted.shape, dtype=wide_dtype(outputs.device), device=outputs.device)
        errors = torch.zeros_like(maps)
        for index, query_heads in enumerate(head_sets):
            pairs = pairs_of(self._zeroed(query_heads))
            guessed = self._guessed(pairs, outputs, columns[index], [entries[index] for entries in affected])
            if guessed is not None:
                maps[index], errors[index] = guessed
                continue
            # Only where all products are of differences: a module's is of what a difference is taken of.
            rounds = request.precision is not None and isinstance(pairs, PairZeroing)
            with tf32_products(request.model) if rounds else nullcontext():
                self._measure_changes(pairs, columns[index], outputs, maps[index])
            maps[index].masked_fill_(~counted[index], 0.0)
            self._measure_outputs(pairs, maps[index])
        check_finite_distances(request.distance_name, maps, f"block {self.layer}")
        sizes = [entries[0].numel() for entries in affected]
        by_sentence = zip(maps.split(sizes, dim=1), errors.split(sizes, dim=1), affected, strict=True)
        both = [(flat.view(entries.shape), error.view(entries.shape)) for flat, error, entries in by_sentence]
        return _Maps([values for values, _ in both], [error for _, error in both], route)

    def _guessed(
        self,
        pairs: PairZeroing | ModulePairs,
        outputs: Float[Tensor, "clean_row feature"],
        columns: Sequence[Column],
        affected: Sequence[Bool[Tensor, "_ _"]],
    ) -> tuple[Tensor, Tensor] | None:
        """A map within the tolerance and its errors; None where all pairs are to be exact. A norm after the block is
        not of its form.
        """
        tolerance = self.run.request.tolerance
        if tolerance is None or self.run.request.norm_after(self.layer) is not None or not can_be_sketched(pairs):
            return None
        reached = [entries.to(outputs.device) for entries in affected]
        return sketched_maps(pairs, columns, reached, outputs, partial(self._of_parts, pairs, outputs), tolerance)

    def _of_parts(
        self, pairs: PairZeroing, outputs: Float[Tensor, "clean_row feature"], chunk: Chunk, parts: Parts
    ) -> Float[Tensor, "row"]:
        """The distances of some pairs, exactly."""
        measured, little = self._measure(outputs, chunk, pairs.change(chunk, parts))
        at = (little | parts.vanishing).nonzero().squeeze(-1)
        if len(at):
            measured[at] = self._distances(*pairs.outputs(*self._pairs_at(chunk.cells[at])))
        return measured

    # How the pairs are computed.

    def _way(
        self, columns: Sequence[Sequence[Column]], n_heads: int
    ) -> tuple[Callable[[Zeroed], PairZeroing | ModulePairs], Route] | None:
        """What computes the pairs, and by what route: by the block's weights, or else by its own modules."""
        weights, cache, stack = self.weights, self.run.cache, self.run.request.sites.stack
        tolerance = SAME_BLOCK.get(self.block.output.dtype, SAME_BLOCK[torch.float32])
        rows, crossing = self._rows_of_form(), None
        form = recognise(weights, rows, tolerance, cache, self.name)
        if stack == "decoder":
            crossing = None if form is None else self._crossing(form, rows.input, tolerance)
            if crossing is None:
                return None  # modules of single positions do not read the encoder
        if form is None:
            return self._way_by_modules(rows, tolerance)
        route = "direct" if crossing is not None else _cheapest_route(self, form, columns, n_heads)
        return partial(PairZeroing, weights, form, route, cache, self.name, crossing), route

    def _way_by_modules(
        self, rows: BlockRows, tolerance: float
    ) -> tuple[Callable[[Zeroed], ModulePairs], Route] | None:
        weights, stack = self.weights, self.run.request.sites.stack
        modules = block_modules(self.run.request.model, self.layer, stack)
        norms = norm_names(stack)
        all_norms = all(getattr(weights, name) is not None for name in norms if getattr(modules, name) is not None)
        if all_norms and None not in (weights.w_in, weights.w_out, weights.activation):
            return None  # something else acts in the block, such as a module that was replaced
        dtype = self.block.output.dtype  # the modules compute in the model's
        reads, written, output = (
            rows.input.to(dtype),
            rows.attention_output.to(dtype),
            self.rows(self.block.output, dtype),
        )
        module = module_form(modules, BlockRows(reads, written, output), tolerance)
        if module is None:
            return None
        return partial(ModulePairs, module, weights.w_o, weights.b_o), "none" if module.adds else "modules"

    def _rows_of_form(self) -> BlockRows:
        """What the block's form reads and writes; a decoder's begins behind its self-attention, whichever attention
        loses a value.
        """
        block = self.block
        reads, writes = (self.rows(activation, self.dtype) for activation in (block.input, block.output))
        written = self._attention_output()
        if self.weights.other is not None:
            other = self._other_output()
            crosses = self.run.request.sites.stack == "cross"
            reads, written = (reads + other, written) if crosses else (reads + written, other)
        shown = (self._shown_rows(part) for part in (block.mlp_pre, block.mlp_pre_linear, block.mlp_output))
        return BlockRows(reads, written, writes, *shown)

    def _shown_rows(self, activation: Tensor | None) -> Tensor | None:
        """What the run showed, at the wanted destinations; half precision would round what is computed from it."""
        if activation is None or activation.ndim != 3 or activation.dtype != self.dtype:
            return None
        return self.rows(activation, self.dtype)

    def _attention_output(self) -> Float[Tensor, "row feature"]:
        """sum_h A[h] v[h] W_O[h] + b_O; what the run showed, if it is just that along a random direction."""
        weights, block, members = self.weights, self.block, self.query_heads
        shown, pattern = self._shown_rows(block.attention_output), block.pattern.to(self.dtype)
        if shown is not None and shown.shape[-1] == weights.w_o.shape[-1]:
            direction = random_direction(weights.w_o)
            through = self.run.cache.vector(
                self.name, "direction through W_O", weights.w_o, lambda: weights.w_o @ direction
            )
            by_value_head = rearrange(through, "(head member) d_head -> head member d_head", member=members)
            written = torch.einsum("sjhk,hmk->shmj", block.value.to(self.dtype), by_value_head).flatten(1, 2)
            along = (pattern * written.unsqueeze(2)).sum(dim=(1, 3)).unsqueeze(-1)
            along = self.rows(along, self.dtype).squeeze(-1) + weights.b_o @ direction
            if relative_difference(along, shown @ direction) <= SAME_PRODUCT[self.dtype]:
                return shown
        return self._written(pattern, block.value.repeat_interleave(members, dim=2), weights.w_o, weights.b_o)

    def _other_output(self) -> Float[Tensor, "row feature"]:
        """The same of a decoder's other attention."""
        value, other = self.block.other_value, self.weights.other
        assert value is not None
        assert other is not None
        assert self.block.other_pattern is not None
        return self._written(self.block.other_pattern.to(self.dtype), value, other.w_o, other.b_o)

    def _written(self, pattern: Tensor, value: Tensor, w_o: Tensor, b_o: Tensor) -> Float[Tensor, "row feature"]:
        mixed = rearrange(
            pattern @ value.to(self.dtype).transpose(1, 2), "sentence head dest d_head -> sentence dest (head d_head)"
        )
        return torch.addmm(b_o, self.rows(mixed, self.dtype), w_o.flatten(0, 1))

    def _crossing(self, form: CleanForm, middle: Tensor, tolerance: float) -> Crossing | None:
        """The cross-attention that reads what self-attention loses; None where weights do not explain it."""
        shown = self.block.other_pattern
        assert shown is not None
        pattern = self.rows(rearrange(shown, "sentence head dest src -> sentence dest (head src)"), self.dtype)
        sentence, stream = self.run.rows // shown.shape[2], self.rows(self.block.input, self.dtype)
        return crossing_of(self.weights, form, self.block, stream, middle, sentence, pattern, tolerance)

    # What is zeroed.

    def _zeroed(self, heads: list[int]) -> Zeroed:
        """What of the block is zeroed: query heads, once for each position of a span."""
        run, n_members = self.run, self.run.columns.shape[1]
        values = _rows_of(self.block.value, run.columns.flatten(), self.dtype)
        if self.stands_in is not None:
            values = values - _rows_of(self.stands_in, run.columns.flatten(), self.dtype)
        values = values[:, [head // self.query_heads for head in heads]]
        values = rearrange(values, "(column member) head d_head -> column (member head) d_head", member=n_members)
        if not bool(run.holds.all()):
            values = values * run.holds.repeat_interleave(len(heads), dim=1).unsqueeze(-1).to(values)
        return Zeroed(heads * n_members, values, self._parts(heads), partial(self._left, heads), run.workspace)

    def _left(self, heads: list[int], rows: Int[Tensor, "pair"], columns: Int[Tensor, "pair"]) -> tuple[Mixed, Mixed]:
        """Of some pairs, what all query heads mix of values with what stands in for some, and of all the clean ones."""
        block, device = self.block, self.block.value.device
        wide, width = wide_dtype(device), block.pattern.shape[2]
        places = self.run.rows[rows]
        sentences = places // width
        whole = block.pattern[sentences, :, places % width].to(wide)
        zeroed = self.run.columns[columns] % block.pattern.shape[3]
        left = whole.clone()
        index = torch.arange(len(rows), device=device)
        lost = index[:, None, None], torch.tensor(heads, device=device)[:, None], zeroed[:, None]
        left[lost] = 0.0
        mixed = whole.new_empty(2, *whole.shape[:2], block.value.shape[-1])
        for sentence in sentences.unique():
            of_sentence = sentences == sentence
            value = block.value[sentence].to(wide).repeat_interleave(self.query_heads, dim=1)
            for into, pattern in zip(mixed, (left, whole), strict=True):
                into[of_sentence] = torch.einsum("phs,shk->phk", pattern[of_sentence], value)
            if self.stands_in is not None:
                put_in = self.stands_in[sentence].to(wide).repeat_interleave(self.query_heads, dim=1)
                gone = (whole - left)[of_sentence]
                mixed[0, of_sentence] += torch.einsum("phs,shk->phk", gone, put_in)
        return mixed[0], mixed[1]

    def _pairs_at(self, cells: Int[Tensor, "pair"]) -> tuple[Int[Tensor, "pair"], Int[Tensor, "pair"]]:
        """The clean row and the column of places in the flat map."""
        sizes = [(len(sentence.spans), len(sentence.destinations)) for sentence in self.run.wanted]
        spans, destinations = torch.tensor(sizes, device=cells.device).unbind(1)
        cells_of = spans * destinations
        sentence = torch.bucketize(cells, cells_of.cumsum(0), right=True)
        within = cells - (cells_of.cumsum(0) - cells_of)[sentence]
        row = (destinations.cumsum(0) - destinations)[sentence] + within // spans[sentence]
        return row, (spans.cumsum(0) - spans)[sentence] + within % spans[sentence]

    def _parts(self, heads: list[int]) -> list[SentencePart]:
        """Each sentence's share of the row axis and of the flat maps, with the patterns of the heads zeroed."""
        pattern, n_members = self.block.pattern, self.run.columns.shape[1]
        pattern = pattern if len(heads) == pattern.shape[1] else pattern[:, heads]
        by_source = rearrange(pattern.to(self.dtype), "sentence head dest src -> sentence src dest head").contiguous()
        parts: list[SentencePart] = []
        first_row = first_cell = first_column = 0
        for of_sentence, wanted in zip(by_source, self.run.wanted, strict=True):
            of_columns = pick(of_sentence, 1, wanted.destinations)
            if wanted.zeroes_single_positions and n_members == 1:
                of_columns = pick(of_columns, 0, tuple(span[0] for span in wanted.spans))
            else:
                members, _ = _even(wanted.spans, at_least=n_members)
                joined = of_columns[members.to(of_sentence.device)]
                of_columns = rearrange(joined, "column member dest head -> column dest (member head)")
            parts.append(SentencePart(first_row, of_columns, first_cell, first_column))
            first_row += len(wanted.destinations)
            first_cell += len(wanted.destinations) * len(wanted.spans)
            first_column += len(wanted.spans)
        return parts

    # How far outputs move.

    def _measure_changes(
        self,
        pairs: PairZeroing | ModulePairs,
        columns: Sequence[Column],
        outputs: Float[Tensor, "clean_row feature"],
        distances: Float[Tensor, "cell"],
    ) -> None:
        """Write the distance of every pair into one map, by its change; NaN where that tells too little.

        The host only hands out work here, and never waits for the device.
        """
        for chunk, change, vanishing in pairs.changes(columns):
            measured, little = self._measure(outputs, chunk, change)
            distances[chunk.cells] = measured.masked_fill_(little | vanishing, torch.nan)

    def _measure_outputs(self, pairs: PairZeroing | ModulePairs, distances: Float[Tensor, "cell"]) -> None:
        """Fill in the distances that are NaN, by the outputs themselves."""
        little, step = distances.isnan().nonzero().squeeze(-1), min(pairs.lost.max_rows, ROWS_PER_PRODUCT)
        for start in range(0, len(little), step):
            cells = little[start : start + step]
            distances[cells] = self._distances(*pairs.outputs(*self._pairs_at(cells)))

    def _measure(
        self, outputs: Float[Tensor, "clean_row feature"], chunk: Chunk, change: Float[Tensor, "row feature"]
    ) -> tuple[Float[Tensor, "row"], Bool[Tensor, "row"]]:
        """How far `clean - change` is from the clean output, of a chunk's pairs, and where too little is left."""
        request = self.run.request
        of_change = change_form(request.distance) if request.norm_after(self.layer) is None else None
        clean, change = chunk.clean_rows("clean outputs", outputs), chunk.grid(change)
        if of_change is not None:
            distances, little = of_change(clean, change)
            return distances.flatten(), little.flatten()
        # A difference of float32 outputs would lose what the change still holds.
        clean = clean.to(wide_dtype(change.device)).expand_as(change)
        changed = clean - change
        little = torch.linalg.vector_norm(changed, dim=-1) < LITTLE_LEFT * torch.linalg.vector_norm(clean, dim=-1)
        return self._distances(clean, changed).flatten(), little.flatten()

    def _distances(
        self, clean: Float[Tensor, "*pairs feature"], changed: Float[Tensor, "*pairs feature"]
    ) -> Float[Tensor, "*pairs"]:
        """The distances of outputs that are there themselves, in the widest dtype."""
        norm = self.run.request.norm_after(self.layer)
        if norm is not None:
            clean, changed = norm(clean), norm(changed)
        return self.run.request.distance(clean, changed)


def _cheapest_route(layer: _Layer, form: CleanForm, columns: Sequence[Sequence[Column]], n_heads: int) -> Route:
    """Count what each route costs for the first MLP product, in multiply-adds of one pair's product."""
    w_in = layer.weights.w_in
    if form.mlp is None or w_in is None:
        return "none"
    n_all_heads, d_head, d_model = layer.weights.w_o.shape
    pairs = sum(column.high - column.low for part in columns for column in part)
    n_columns = sum(len(part) for part in columns)
    joined = pairs * n_heads / d_model
    fold = 0.0 if layer.run.cache.has_fold(layer.name, w_in) else n_all_heads * d_head * LATER_CALLS_PAY
    costs: dict[Route, float] = {
        "direct": pairs,
        "factored": n_columns * n_heads + joined,
        "folded": fold + n_columns * n_heads * d_head / d_model + joined,
    }
    return min(costs, key=lambda route: costs[route])


def _columns_of(affected: Sequence[Bool[Tensor, "map _ _"]], index: int) -> list[Column]:
    """One column per span of each sentence, with the range of destinations that it affects."""
    columns: list[Column] = []
    for sentence, maps in enumerate(affected):
        rows = maps[index].numpy()
        low = rows.argmax(axis=0)
        high = len(rows) - rows[::-1].argmax(axis=0)
        high[~rows.any(axis=0)] = 0
        ranges = zip(low.tolist(), high.tolist(), strict=True)
        columns += [Column(sentence, j, start, end) for j, (start, end) in enumerate(ranges)]
    return columns


def _rows_of(activation: Tensor, places: Int[Tensor, "row"], dtype: torch.dtype) -> Tensor:
    """Some positions of a run, all sentences in one axis."""
    return activation.flatten(0, 1).index_select(0, places).to(dtype)


def _even(
    spans: Sequence[Sequence[int]], at_least: int = 1
) -> tuple[Int[Tensor, "column member"], Bool[Tensor, "column member"]]:
    """Spans as rows of one length, the shorter ones filled up with their first position, and what is not filling."""
    longest = max(at_least, *(len(span) for span in spans))
    filled = [[*span, *[span[0]] * (longest - len(span))] for span in spans]
    counts = torch.tensor([len(span) for span in spans])
    return torch.tensor(filled), torch.arange(longest) < counts.unsqueeze(1)
