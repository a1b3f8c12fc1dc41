"""The change of a block's output for many (destination, source) pairs, packed into products of bounded size."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_vzero.models.blocks import BlockWeights
from tl_vzero.zeroing.chunks import Chunk, Workspace
from tl_vzero.zeroing.forms import CleanForm
from tl_vzero.zeroing.into_mlp import IntoMlp, into_mlp
from tl_vzero.zeroing.kept import Kept
from tl_vzero.zeroing.lost import Group, LostValues, Size, Zeroed, attention_outputs
from tl_vzero.zeroing.norm_change import NormChange
from tl_vzero.zeroing.packing import Column

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
