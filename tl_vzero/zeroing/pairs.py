"""The change of a block's output for many (destination, source) pairs, packed into products of bounded size."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_vzero.distance import LITTLE_LEFT, wide_dtype
from tl_vzero.models.blocks import BlockWeights
from tl_vzero.zeroing.cache import Kept
from tl_vzero.zeroing.chunks import Chunk, Column, Group, LostValues, Size, Workspace, Zeroed, attention_outputs
from tl_vzero.zeroing.forms import CleanForm, Keep, NormState

# How the output of a norm changes when its input loses a vector: two scalars a pair.


@dataclass(frozen=True, eq=False)
class NormChange:
    """A norm's change: own * c(clean row) + scale * (change - mean), times the norm's weight.

    `shrinks` is own times the clean deviation: the share by which what the norm puts out shrinks by itself.
    `mean` is None where the change has none or the norm does not centre. `vanishing` marks the rows of which too
    little is left for a difference to tell what.
    """

    state: NormState
    chunk: Chunk
    centred: Float[Tensor, "*pairs feature"]
    own: Float[Tensor, "row"]
    shrinks: Float[Tensor, "row"]
    scale: Float[Tensor, "row"]
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
        own = step / (deviation * changed * (deviation + changed))
        dtype = change.dtype
        scale = (1.0 / changed).to(dtype)
        vanishing = changed < LITTLE_LEFT * deviation
        return cls(state, chunk, rows, own.to(dtype), (own * deviation).to(dtype), scale, mean, vanishing)

    def apply(self, change: Float[Tensor, "row feature"]) -> Float[Tensor, "row feature"]:
        """Turn the change of the norm's input into that of its output, in place."""
        if self.mean is not None:
            change.sub_(self.mean.unsqueeze(-1))
        change.mul_(self.scale.unsqueeze(-1))
        self.chunk.grid(change).addcmul_(self.centred, self.chunk.grid(self.own.unsqueeze(-1)))
        return change.mul_(self.state.norm.weight)


# One product into the MLP, its gate or its linear part, for many pairs.


@dataclass(frozen=True, eq=False)
class IntoMlp:
    """The matrix, and rows that went through it.

    `constant` is the part of `pre` that no norm scales: the norm's bias through the matrix, and the product's.
    `own` are the sandwich form's rows; elsewhere pre - constant is what the norm scales.
    """

    matrix: Float[Tensor, "feature d_mlp"]
    pre: Float[Tensor, "row d_mlp"]
    constant: Float[Tensor, "d_mlp"]
    own: tuple[Float[Tensor, "row d_mlp"], ...]

    def multiply(self, buffer: Float[Tensor, "row d_mlp"], chunk: Chunk, read: Float[Tensor, "row feature"]) -> None:
        """Write what enters the activation, changed, by one product a pair."""
        torch.index_select(self.pre, 0, chunk.clean, out=buffer)
        buffer.addmm_(read, self.matrix, alpha=-1.0)

    def combine(
        self,
        buffer: Float[Tensor, "row d_mlp"],
        chunk: Chunk,
        own: Sequence[Float[Tensor, "row"]],
        scale: Float[Tensor, "row"],
        table: Float[Tensor, "column head_1 d_mlp"],
    ) -> None:
        """Write what enters the activation, changed, as a combination of rows that went through the matrix once.

        `scale` is what the norms scale a lost vector by, `own` by how much they change a destination's own rows.
        """
        pattern = chunk.pattern * scale.unsqueeze(-1)
        if self.own:
            columns = [scalars.unsqueeze(-1) for scalars in own]
            for place in chunk.places:
                grid, entering = place.grid(buffer), place.clean_grid(self.pre)
                for scalars, rows in zip(columns, self.own, strict=True):
                    entering = torch.addcmul(
                        entering, place.grid(scalars), place.clean_grid(rows), value=-1.0, out=grid
                    )
                columnwise = place.columnwise(buffer)
                columnwise.baddbmm_(place.columnwise(pattern), table[place.columns, :-1], alpha=-1.0)
            return
        # What the norm scales shrinks by a factor a pair; the constant's share is given back by the product.
        shrinks = own[0].unsqueeze(-1)
        keeps, weights = 1.0 - shrinks, torch.cat([pattern, -shrinks], dim=-1)
        for place in chunk.places:
            torch.mul(place.clean_grid(self.pre), place.grid(keeps), out=place.grid(buffer))
            place.columnwise(buffer).baddbmm_(place.columnwise(weights), table[place.columns], alpha=-1.0)


def into_mlp(weights: BlockWeights, form: CleanForm, keep: Keep, *, with_own_rows: bool) -> list[IntoMlp]:
    """The products that the MLP's activation reads: one, or the gate and the linear part."""
    mlp = form.mlp
    if mlp is None or weights.w_in is None:
        return []
    parts = [(weights.w_in, weights.b_in, mlp.pre)]
    if weights.w_gate is not None and mlp.pre_linear is not None:
        parts = [(weights.w_gate, weights.b_gate, mlp.pre), (weights.w_in, weights.b_in, mlp.pre_linear)]
    own = _own_rows(form) if with_own_rows and form.between is not None else ()
    return [
        IntoMlp(matrix, pre, _constant(form, matrix, bias, keep, number), tuple(rows @ matrix for rows in own))
        for number, (matrix, bias, pre) in enumerate(parts)
    ]


def _constant(form: CleanForm, matrix: Tensor, bias: Tensor | None, keep: Keep, number: int) -> Float[Tensor, "d_mlp"]:
    reader = form.between or form.first
    assert reader is not None
    norm_bias = reader.norm.bias
    constant = matrix.new_zeros(matrix.shape[-1]) if bias is None else bias
    if norm_bias is None:
        return constant
    return constant + keep(f"norm bias through {number}", matrix, lambda: norm_bias @ matrix)


def _own_rows(form: CleanForm) -> tuple[Float[Tensor, "row feature"], ...]:
    """What a destination's own clean rows add to the change of a sandwich's MLP input, but for scalars."""
    first, between = form.first, form.between
    assert first is not None
    assert between is not None
    weighed = first.centred * first.norm.weight
    return between.centred * between.norm.weight, between.norm.centre(weighed) * between.norm.weight


Route = Literal["direct", "factored", "folded", "modules", "none"]


class PairZeroing:
    """One layer of a recognised block with values zeroed; `changes` gives clean minus changed output, in chunks."""

    def __init__(
        self,
        weights: BlockWeights,
        form: CleanForm,
        route: Route,
        max_bytes: float,
        workspace: Workspace,
        kept: Kept,
        layer: int,
        zeroed: Zeroed,
    ) -> None:
        self.weights, self.form, self.heads = weights, form, list(zeroed.heads)
        self.workspace, self.kept, self.layer, self.route = workspace, kept, layer, route
        self.into = (
            []
            if route == "none"
            else into_mlp(weights, form, partial(kept.vector, layer), with_own_rows=route != "direct")
        )
        d_model, n_in = weights.w_o.shape[-1], len(self.into)
        d_mlp = 0 if weights.w_out is None else weights.w_out.shape[0]
        size = Size.of(
            max_bytes / weights.w_o.element_size(),
            a_row=max(1, n_in) * d_mlp + 8 * d_model,
            a_column=len(self.heads) * (2 * d_model + n_in * d_mlp),
        )
        w_o = _heads_of(weights.w_o, self.heads)
        # Centred already where only a centring norm reads it.
        if form.first is not None and not form.reads_change_itself:
            w_o = form.first.norm.centre(w_o)
        self.zeroed = zeroed
        self.lost = LostValues(zeroed, w_o, size, workspace)

    def changes(
        self, columns: Sequence[Column]
    ) -> Iterator[tuple[Chunk, Float[Tensor, "row feature"], Bool[Tensor, "row"]]]:
        """Every pair of the columns with its change, which the caller may overwrite, and where a norm reads nothing."""
        for group in self.lost.groups(columns):
            tables = self._source_tables(group)
            for chunk in group.chunks():
                vanishing = torch.zeros(chunk.rows, dtype=torch.bool, device=chunk.clean.device)
                yield chunk, self._output_change(chunk, group.delta(chunk), tables, vanishing), vanishing

    def outputs(
        self, chunk: Chunk, pairs: Int[Tensor, "pair"]
    ) -> tuple[Float[Tensor, "pair feature"], Float[Tensor, "pair feature"]]:
        """The clean and the changed outputs of some pairs themselves, from what is left, in the widest dtype."""
        assert self.form.again is not None
        left, whole = attention_outputs(self.zeroed, chunk, pairs, self.weights.w_o, self.weights.b_o)
        rows = chunk.clean[pairs]
        return self.form.again(rows, whole), self.form.again(rows, left)

    def _through_norms(self, rows: Float[Tensor, "*axes feature"]) -> Float[Tensor, "*axes feature"]:
        """A lost vector as the MLP's norms weigh it, but for their scalars."""
        for state in (self.form.first, self.form.between):
            if state is not None:
                rows = state.norm.centre(rows) * state.norm.weight
        return rows

    def _folded(self, number: int, into: IntoMlp) -> Float[Tensor, "head d_head d_mlp"]:
        def fold() -> Tensor:
            through = rearrange(self._through_norms(self.weights.w_o), "head d_head feature -> (head d_head) feature")
            d_head = self.weights.w_o.shape[1]
            return rearrange(through @ into.matrix, "(head d_head) d_mlp -> head d_head d_mlp", d_head=d_head)

        return _heads_of(self.kept.fold(self.layer, number, into.matrix, fold), self.heads)

    def _source_tables(self, group: Group) -> tuple[Float[Tensor, "column head_1 d_mlp"], ...]:
        """Each head's row of each source, taken through W_in (and the gate) once; last, the constant row."""
        if self.route not in ("factored", "folded"):
            return ()
        heads, columns = len(self.heads), len(group.values)
        tables = []
        for number, into in enumerate(self.into):
            rows = self.workspace.rows(f"table {number}", (heads + 1) * columns, into.matrix)
            table = rows.view(heads + 1, columns, -1)
            if self.route == "folded":
                torch.bmm(group.values.transpose(0, 1), self._folded(number, into), out=table[:heads])
            else:
                through = rearrange(self._through_norms(group.lost), "column head feature -> (head column) feature")
                torch.mm(through, into.matrix, out=rows[: heads * columns])
            table[heads] = into.constant
            tables.append(table.transpose(0, 1))
        return tuple(tables)

    def _output_change(
        self, chunk: Chunk, delta: Tensor, tables: Sequence[Tensor], vanishing: Bool[Tensor, "row"]
    ) -> Float[Tensor, "row feature"]:
        """Clean minus changed output; marks the pairs at which a norm reads nearly nothing as `vanishing`."""
        form = self.form
        if form.first is None or form.mlp is None or self.weights.w_out is None:
            return delta
        direct = self.route == "direct"
        first = NormChange.of(form.first, delta, chunk, centred=not form.reads_change_itself)
        vanishing |= first.vanishing
        own: tuple[Tensor, ...] = (first.shrinks,)
        scale = first.scale
        if form.reads_change_itself:
            residual = delta
            read = first.apply(self._copy(delta)) if direct else None
        else:
            residual = read = first.apply(delta)
        if form.between is not None:
            between = NormChange.of(form.between, residual, chunk)
            vanishing |= between.vanishing
            own, scale = (between.own, first.own * between.scale), first.scale * between.scale
            read = between.apply(self._copy(residual)) if direct else None
        hidden = self._hidden_change(chunk, read if direct else None, own, scale, tables)
        if form.name == "sandwich" and form.last is not None:
            written = hidden @ self.weights.w_out
            last = NormChange.of(form.last, written, chunk)
            vanishing |= last.vanishing
            return residual.add_(last.apply(written))
        change = residual.addmm_(hidden, self.weights.w_out)
        if form.last is None:
            return change
        last = NormChange.of(form.last, change, chunk)
        vanishing |= last.vanishing
        return last.apply(change)

    def _copy(self, change: Float[Tensor, "row feature"]) -> Float[Tensor, "row feature"]:
        return self.workspace.rows("copy", len(change), change).copy_(change)

    def _hidden_change(
        self,
        chunk: Chunk,
        read: Tensor | None,
        own: Sequence[Tensor],
        scale: Tensor,
        tables: Sequence[Tensor],
    ) -> Float[Tensor, "row d_mlp"]:
        """Clean minus changed activations, between the MLP's two products; `read` is what the direct route reads."""
        assert self.form.mlp is not None
        assert self.weights.activation is not None
        entering = []
        for number, into in enumerate(self.into):
            buffer = self.workspace.rows(f"entering {number}", chunk.rows, into.matrix)
            if read is not None:
                into.multiply(buffer, chunk, read)
            else:
                into.combine(buffer, chunk, own, scale, tables[number])
            entering.append(buffer)
        hidden = self.weights.activation(entering[0])
        for linear in entering[1:]:
            hidden.mul_(linear)
        for place in chunk.places:
            grid = place.grid(hidden)
            torch.sub(place.clean_grid(self.form.mlp.hidden), grid, out=grid)
        return hidden


def _heads_of(
    per_head: Float[Tensor, "head d_head width"], heads: Sequence[int]
) -> Float[Tensor, "picked d_head width"]:
    """Some heads' matrices; as they are where all are meant in order."""
    return per_head if list(heads) == list(range(len(per_head))) else per_head[list(heads)]
