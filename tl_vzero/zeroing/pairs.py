"""The change of a recognised block's output for many (destination, source) pairs, by the block's weights.

What attention loses goes through the norms as two scalars per pair, and through the MLP by one of three routes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol, runtime_checkable

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_vzero.distance import LITTLE_LEFT, wide_dtype
from tl_vzero.models.blocks import BlockWeights
from tl_vzero.zeroing.chunks import Changes, Chunk, Column, Group, LostValues, Outputs, SentencePart, Zeroed
from tl_vzero.zeroing.forms import CleanForm, NormState, Rows, WeightCache

Route = Literal["direct", "factored", "folded", "modules", "none"]


@dataclass(frozen=True, eq=False)
class NormChange:
    """How a norm's output changes when its input loses a vector, by two scalars per pair:

        of_clean * c(clean row) + of_change * (change - mean), times the norm's weight.

    `shrinks` is of_clean times the clean deviation: the share by which what the norm puts out shrinks by itself.
    `mean` is None where the change has none or the norm does not centre. `vanishing` marks the rows of which too
    little is left for a difference to tell what.
    """

    state: NormState
    chunk: Chunk
    centred: Float[Tensor, "*pairs feature"]
    of_clean: Float[Tensor, "row"]
    shrinks: Float[Tensor, "row"]
    of_change: Float[Tensor, "row"]
    mean: Float[Tensor, "row"] | None
    vanishing: Bool[Tensor, "row"]

    @classmethod
    def of(
        cls, state: NormState, change: Float[Tensor, "row feature"], chunk: Chunk, *, centred: bool = False
    ) -> "NormChange":
        """Compute the scalars, in float64, as they are few. `centred` says that the change is centred already."""
        features = change.shape[-1]
        rows = chunk.clean_rows("norm rows", state.centred)
        product = chunk.workspace.rows("scratch", len(change), change)
        torch.mul(chunk.grid(change), rows, out=chunk.grid(product))
        along = product.sum(dim=-1)
        wide = wide_dtype(change.device)
        square = torch.linalg.vector_norm(change, dim=-1).to(wide).square()
        mean = change.mean(dim=-1) if state.norm.centred and not centred else None
        if mean is not None:
            square = square - features * mean.to(wide).square()
        deviation = state.deviation.to(wide)[chunk.clean]
        step = (square - 2.0 * along.to(wide)) / features
        # The variance cannot fall below eps; rounding may say so.
        changed = (deviation.square() + step).clamp(min=max(state.norm.eps, torch.finfo(torch.float32).tiny)).sqrt()
        of_clean = step / (deviation * changed * (deviation + changed))
        scalars = (of_clean, of_clean * deviation, 1.0 / changed)
        of_clean, shrinks, of_change = (scalar.to(change.dtype) for scalar in scalars)
        return cls(state, chunk, rows, of_clean, shrinks, of_change, mean, changed < LITTLE_LEFT * deviation)

    def apply(self, change: Float[Tensor, "row feature"]) -> Float[Tensor, "row feature"]:
        """Turn the change of the norm's input into that of its output, in place."""
        if self.mean is not None:
            change.sub_(self.mean.unsqueeze(-1))
        change.mul_(self.of_change.unsqueeze(-1))
        self.chunk.grid(change).addcmul_(self.centred, self.chunk.grid(self.of_clean.unsqueeze(-1)))
        return change.mul_(self.state.norm.weight)


@dataclass(frozen=True, eq=False)
class IntoMlp:
    """One product into the MLP, its gate or its linear part, for many pairs: the matrix, and rows that went through it.

    `constant` is the part of `pre` that no norm scales: the norm's bias through the matrix, and the product's.
    `sandwich` are the rows that a sandwich adds, times scalars; elsewhere pre - constant is what the norm scales.
    """

    matrix: Float[Tensor, "feature d_mlp"]
    pre: Float[Tensor, "row d_mlp"]
    constant: Float[Tensor, "d_mlp"]
    sandwich: tuple[Float[Tensor, "row d_mlp"], ...]

    def multiply(self, buffer: Float[Tensor, "row d_mlp"], chunk: Chunk, read: Float[Tensor, "row feature"]) -> None:
        """Write what enters the activation, changed, by one product per pair."""
        torch.index_select(self.pre, 0, chunk.clean, out=buffer)
        buffer.addmm_(read, self.matrix, alpha=-1.0)

    def combine(
        self,
        buffer: Float[Tensor, "row d_mlp"],
        chunk: Chunk,
        of_clean: Sequence[Float[Tensor, "row"]],
        of_change: Float[Tensor, "row"],
        table: Float[Tensor, "column head_1 d_mlp"],
    ) -> None:
        """Write what enters the activation, changed, as a combination of rows that went through the matrix once.

        `of_change` is what the norms scale a lost vector by, `of_clean` by how much they change a destination's rows.
        """
        pattern = chunk.pattern * of_change.unsqueeze(-1)
        if self.sandwich:
            columns = [scalars.unsqueeze(-1) for scalars in of_clean]
            for place in chunk.places:
                grid, entering = place.grid(buffer), place.clean_grid(self.pre)
                for scalars, rows in zip(columns, self.sandwich, strict=True):
                    entering = torch.addcmul(
                        entering, place.grid(scalars), place.clean_grid(rows), value=-1.0, out=grid
                    )
                columnwise = place.columnwise(buffer)
                columnwise.baddbmm_(place.columnwise(pattern), table[place.columns, :-1], alpha=-1.0)
            return
        # What the norm scales shrinks by a factor per pair; the constant's share is given back by the product.
        shrinks = of_clean[0].unsqueeze(-1)
        stays, weights = 1.0 - shrinks, torch.cat([pattern, -shrinks], dim=-1)
        for place in chunk.places:
            torch.mul(place.clean_grid(self.pre), place.grid(stays), out=place.grid(buffer))
            place.columnwise(buffer).baddbmm_(place.columnwise(weights), table[place.columns], alpha=-1.0)


def into_mlp(
    weights: BlockWeights, form: CleanForm, cache: WeightCache, block: str, *, with_sandwich: bool
) -> list[IntoMlp]:
    """The products that the MLP's activation reads: one, or the gate and the linear part."""
    reader, mlp = form.between or form.first, form.mlp
    if mlp is None or weights.w_in is None:
        return []
    assert form.first is not None
    assert reader is not None
    norm_bias = reader.norm.bias
    parts = [(weights.w_in, weights.b_in, mlp.pre)]
    if weights.w_gate is not None and mlp.pre_linear is not None:
        parts = [(weights.w_gate, weights.b_gate, mlp.pre), (weights.w_in, weights.b_in, mlp.pre_linear)]
    rows: tuple[Tensor, ...] = ()
    if with_sandwich and form.between is not None:
        # What a destination's clean rows add to the change of a sandwich's MLP input, up to scalars.
        between, weighed = form.between, form.first.centred * form.first.norm.weight
        rows = between.centred * between.norm.weight, between.norm.centre(weighed) * between.norm.weight
    products = []
    for index, (matrix, bias, pre) in enumerate(parts):
        constant = matrix.new_zeros(matrix.shape[-1]) if bias is None else bias
        if norm_bias is not None:
            constant = constant + cache.vector(
                block, f"norm bias through {index}", matrix, partial(norm_bias.matmul, matrix)
            )
        products.append(IntoMlp(matrix, pre, constant, tuple(row @ matrix for row in rows)))
    return products


@dataclass(frozen=True, eq=False)
class Parts:
    """What a chunk's pairs lose: past the MLP, and between its two products, None where it never sees the change.

    `vanishing` marks the pairs of which a norm has too little left for a difference to tell.
    """

    residual: Float[Tensor, "row feature"]
    hidden: Float[Tensor, "row d_mlp"] | None
    vanishing: Bool[Tensor, "row"]

    def some(self, rows: Int[Tensor, "picked"]) -> "Parts":
        """The same of some pairs, in memory of their own."""
        hidden = None if self.hidden is None else self.hidden[rows]
        return Parts(self.residual[rows], hidden, self.vanishing[rows])

    @classmethod
    def joined(cls, several: Sequence["Parts"]) -> "Parts":
        """The same of several chunks' pairs."""
        hidden = [parts.hidden for parts in several if parts.hidden is not None]
        residual, vanishing = (torch.cat([getattr(p, name) for p in several]) for name in ("residual", "vanishing"))
        return cls(residual, torch.cat(hidden) if hidden else None, vanishing)


@runtime_checkable
class Between(Protocol):
    """Another attention of the block, which reads what this one loses before the form does.

    `row_width` is how many numbers a pair takes there.
    """

    @property
    def row_width(self) -> int: ...

    def change(
        self, chunk: Chunk, delta: Float[Tensor, "row feature"], vanishing: Bool[Tensor, "row"]
    ) -> Float[Tensor, "row feature"]:
        """What the form reads less by it, in place; marks the pairs at which a norm reads nearly nothing."""

    def output_from(self, rows: Int[Tensor, "row"], attention_output: Rows) -> Rows:
        """The block's output at some rows from another attention output."""


class PairZeroing:
    """A recognised block with values zeroed; `changes` gives clean minus changed output, in chunks.

    With another attention `between`, the MLP reads more than combinations of lost vectors: the route is "direct".
    """

    def __init__(
        self,
        weights: BlockWeights,
        form: CleanForm,
        route: Route,
        cache: WeightCache,
        block: str,
        between: Between | None,
        zeroed: Zeroed,
    ) -> None:
        self.weights, self.form, self.route, self.cache, self.block = weights, form, route, cache, block
        self.between, self.centred = between, between is None and not form.reads_change_itself
        self.zeroed, self.heads, self.workspace = zeroed, list(zeroed.heads), zeroed.workspace
        self.into = [] if route == "none" else into_mlp(weights, form, cache, block, with_sandwich=route != "direct")
        # Before any pair: they stay with the model, whatever precision the pairs are computed in.
        self.folds = [self._folded(*numbered) for numbered in enumerate(self.into)] if route == "folded" else []
        d_model, n_in = weights.w_o.shape[-1], len(self.into)
        d_mlp = 0 if weights.w_out is None else weights.w_out.shape[0]
        w_o = _heads_of(weights.w_o, self.heads)
        # Centred already where only a centring norm reads it.
        if form.first is not None and self.centred:
            w_o = form.first.norm.centre(w_o)
        row_width = max(1, n_in) * d_mlp + 8 * d_model + (0 if between is None else between.row_width)
        self.lost = LostValues(zeroed, w_o, row_width, len(self.heads) * (2 * d_model + n_in * d_mlp))

    def changes(self, columns: Sequence[Column]) -> Changes:
        """Every pair of the columns with its change, which the caller may overwrite, and where norms read nothing."""
        for chunk, parts in self.parts(columns):
            yield chunk, self.change(chunk, parts), parts.vanishing

    def parts(self, columns: Sequence[Column]) -> Iterator[tuple[Chunk, "Parts"]]:
        """Every pair of the columns with what its change is made of, before the MLP's second product."""
        for group in self.lost.groups(columns):
            tables = self._source_tables(group)
            for chunk in group.chunks():
                vanishing = torch.zeros(chunk.rows, dtype=torch.bool, device=chunk.clean.device)
                lost = group.delta(chunk)
                if self.between is not None:
                    lost = self.between.change(chunk, lost, vanishing)
                yield chunk, self._parts(chunk, lost, tables, vanishing)

    def outputs(self, rows: Int[Tensor, "pair"], columns: Int[Tensor, "pair"]) -> Outputs:
        """The clean and the changed outputs of some pairs themselves, from what is left, in the widest dtype."""
        output_from = self.form.output_from if self.between is None else self.between.output_from
        assert output_from is not None
        left, whole = self.zeroed.attention_outputs(rows, columns, self.weights.w_o, self.weights.b_o)
        return output_from(rows, whole), output_from(rows, left)

    def _through_norms(self, rows: Float[Tensor, "*axes feature"]) -> Float[Tensor, "*axes feature"]:
        """A lost vector as the MLP's norms weigh it, but for their scalars."""
        for state in (self.form.first, self.form.between):
            if state is not None:
                rows = state.norm.centre(rows) * state.norm.weight
        return rows

    def _folded(self, index: int, into: IntoMlp) -> Float[Tensor, "head d_head d_mlp"]:
        def fold() -> Tensor:
            through = rearrange(self._through_norms(self.weights.w_o), "head d_head feature -> (head d_head) feature")
            d_head = self.weights.w_o.shape[1]
            return rearrange(through @ into.matrix, "(head d_head) d_mlp -> head d_head d_mlp", d_head=d_head)

        return _heads_of(self.cache.fold(self.block, index, into.matrix, fold), self.heads)

    def _source_tables(self, group: Group) -> tuple[Float[Tensor, "column head_1 d_mlp"], ...]:
        """Every head's row of every source, taken through W_in (and the gate) once; last, the constant row."""
        if self.route not in ("factored", "folded"):
            return ()
        heads, columns = len(self.heads), len(group.values)
        tables = []
        for index, into in enumerate(self.into):
            rows = self.workspace.rows(f"table {index}", (heads + 1) * columns, into.matrix)
            table = rows.view(heads + 1, columns, -1)
            if self.route == "folded":
                torch.bmm(group.values.transpose(0, 1), self.folds[index], out=table[:heads])
            else:
                through = rearrange(self._through_norms(group.lost), "column head feature -> (head column) feature")
                torch.mm(through, into.matrix, out=rows[: heads * columns])
            table[heads] = into.constant
            tables.append(table.transpose(0, 1))
        return tuple(tables)

    def scattered(self, part: SentencePart, wanted: Bool[Tensor, "dest src"]) -> Iterator[tuple[Chunk, Parts]]:
        """The same of any pairs of a sentence, whatever rectangles they are in, at the cost of both products."""
        direct = PairZeroing(self.weights, self.form, "direct", self.cache, self.block, self.between, self.zeroed)
        sources, destinations = wanted.T.nonzero(as_tuple=True)
        for some in torch.arange(len(sources), device=wanted.device).split(self.lost.max_rows):
            source, dest = sources[some], destinations[some]
            delta = self.lost.of_pairs(part, source, dest)
            clean, cells = part.first_row + dest, part.first_cell + dest * wanted.shape[1] + source
            chunk = Chunk((), len(some), clean, cells, delta[:, :0], self.workspace)
            vanishing = torch.zeros(len(some), dtype=torch.bool, device=wanted.device)
            if self.between is not None:
                delta = self.between.change(chunk, delta, vanishing)
            yield chunk, direct._parts(chunk, delta, (), vanishing)

    def _parts(self, chunk: Chunk, delta: Tensor, tables: Sequence[Tensor], vanishing: Bool[Tensor, "row"]) -> "Parts":
        """What goes past the MLP and what is in it; marks the pairs at which a norm reads nearly nothing."""
        form = self.form
        if form.first is None or form.mlp is None or self.weights.w_out is None:
            return Parts(delta, None, vanishing)
        direct = self.route == "direct"
        first = NormChange.of(form.first, delta, chunk, centred=self.centred)
        vanishing |= first.vanishing
        of_clean: tuple[Tensor, ...] = (first.shrinks,)
        of_change = first.of_change
        if form.reads_change_itself:
            residual = delta
            read = first.apply(self._copy(delta)) if direct else None
        else:
            residual = read = first.apply(delta)
        if form.between is not None:
            between = NormChange.of(form.between, residual, chunk)
            vanishing |= between.vanishing
            of_clean = between.of_clean, first.of_clean * between.of_change
            of_change = of_change * between.of_change
            read = between.apply(self._copy(residual)) if direct else None
        hidden = self._hidden_change(chunk, read if direct else None, of_clean, of_change, tables)
        return Parts(residual, hidden, vanishing)

    def change(self, chunk: Chunk, parts: "Parts") -> Float[Tensor, "row feature"]:
        """Clean minus changed output of a chunk's pairs, in the place of what went past the MLP."""
        form, residual, hidden = self.form, parts.residual, parts.hidden
        if hidden is None or self.weights.w_out is None:
            return residual
        if form.name == "sandwich" and form.last is not None:
            written = hidden @ self.weights.w_out
            last = NormChange.of(form.last, written, chunk)
            parts.vanishing.logical_or_(last.vanishing)
            return residual.add_(last.apply(written))
        change = residual.addmm_(hidden, self.weights.w_out)
        if form.last is None:
            return change
        last = NormChange.of(form.last, change, chunk)
        parts.vanishing.logical_or_(last.vanishing)
        return last.apply(change)

    def _copy(self, change: Float[Tensor, "row feature"]) -> Float[Tensor, "row feature"]:
        return self.workspace.rows("copy", len(change), change).copy_(change)

    def _hidden_change(
        self,
        chunk: Chunk,
        read: Tensor | None,
        of_clean: Sequence[Tensor],
        of_change: Tensor,
        tables: Sequence[Tensor],
    ) -> Float[Tensor, "row d_mlp"]:
        """Clean minus changed activations, between the MLP's two products; `read` is what the direct route reads."""
        assert self.form.mlp is not None
        assert self.weights.activation is not None
        entering = []
        for index, into in enumerate(self.into):
            buffer = self.workspace.rows(f"entering {index}", chunk.rows, into.matrix)
            if read is not None:
                into.multiply(buffer, chunk, read)
            else:
                into.combine(buffer, chunk, of_clean, of_change, tables[index])
            entering.append(buffer)
        hidden = self.weights.activation(entering[0])
        for linear in entering[1:]:
            hidden.mul_(linear)
        if not chunk.places:
            return torch.sub(self.form.mlp.hidden[chunk.clean], hidden, out=hidden)
        for place in chunk.places:
            grid = place.grid(hidden)
            torch.sub(place.clean_grid(self.form.mlp.hidden), grid, out=grid)
        return hidden


def _heads_of(
    per_head: Float[Tensor, "head d_head width"], heads: Sequence[int]
) -> Float[Tensor, "picked d_head width"]:
    """Some heads' matrices; as they are where all are meant in order."""
    return per_head if list(heads) == list(range(len(per_head))) else per_head[list(heads)]
