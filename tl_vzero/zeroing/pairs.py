"""The change of a block's output for many (destination, source) pairs, packed into products of bounded size."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from tl_vzero.models.blocks import BlockWeights
from tl_vzero.zeroing.chunks import Chunk, SentencePart, Workspace
from tl_vzero.zeroing.forms import CleanForm
from tl_vzero.zeroing.into_mlp import IntoMlp, into_mlp
from tl_vzero.zeroing.kept import Kept
from tl_vzero.zeroing.norm_change import NormChange
from tl_vzero.zeroing.packing import Column, Segment, chunks_of, segments_of

Route = Literal["direct", "factored", "folded", "none"]

ROWS_A_PRODUCT = 1536  # fewer make every small step weigh more; more gain nothing
COLUMNS_A_TABLE = 256  # longer products run faster, until their result leaves the cache


class PairZeroing:
    """One layer with one set of heads zeroed. `changes` gives, chunk by chunk, clean minus changed output.

    `values` are those of the zeroed heads, one row a column; `heads` are query heads.
    """

    def __init__(
        self,
        weights: BlockWeights,
        form: CleanForm,
        parts: Sequence[SentencePart],
        values: Float[Tensor, "column head d_head"],
        heads: Sequence[int],
        route: Route,
        max_bytes: float,
        workspace: Workspace,
        kept: Kept,
        layer: int,
    ) -> None:
        self.weights, self.form, self.parts, self.values = weights, form, parts, values
        self.workspace, self.kept, self.layer, self.route = workspace, kept, layer, route
        self.heads = list(heads)
        whole = self.heads == list(range(len(weights.w_o)))
        self.w_o = weights.w_o if whole else weights.w_o[self.heads]
        self.into = (
            []
            if route == "none"
            else into_mlp(weights, form, partial(kept.vector, layer), with_own_rows=route != "direct")
        )
        n_in, d_mlp = len(self.into), 0 if weights.w_out is None else weights.w_out.shape[0]
        d_model = self.w_o.shape[-1]
        row = max(1, n_in) * d_mlp + 8 * d_model
        column = len(heads) * (2 * d_model + n_in * d_mlp)
        numbers = max_bytes / self.w_o.element_size()
        self.max_rows = max(1, min(ROWS_A_PRODUCT, int(numbers / 2 / row)))
        self.max_columns = max(1, int(numbers / 2 / column))

    def changes(self, columns: Sequence[Column]) -> Iterator[tuple[Chunk, Float[Tensor, "row feature"]]]:
        """Every pair of the columns with its change, which the caller may overwrite."""
        segments = list(segments_of(columns, self.max_rows, self.max_columns))
        chunks = list(chunks_of(segments, self.max_rows, self.max_columns))
        for together in self._sharing_tables(chunks):
            first = together[0][0].first_column
            values = self.values[first : together[-1][-1].end_column]
            lost = self._lost_by_source(values)
            tables = self._source_tables(values, lost)
            for chunk_segments in together:
                chunk = Chunk.of(chunk_segments, self.parts, first, self.workspace, lost)
                yield chunk, self._output_change(chunk, lost, tables)

    def _sharing_tables(self, chunks: Sequence[list[Segment]]) -> Iterator[list[list[Segment]]]:
        """Chunks that share tables: as many as stay in the cache, one at least."""
        limit = min(self.max_columns, COLUMNS_A_TABLE)
        together: list[list[Segment]] = []
        for chunk in chunks:
            if together and chunk[-1].end_column - together[0][0].first_column > limit:
                yield together
                together = []
            together.append(chunk)
        if together:
            yield together

    def _lost_by_source(self, values: Tensor) -> Float[Tensor, "column head feature"]:
        """u[j, h] = v[j, h] W_O[h]: what each head writes of a source into whoever attends to it alone.

        Centred already where only a centring norm reads it.
        """
        w_o, first = self.w_o, self.form.first
        if first is not None and not self.form.reads_change_itself:
            w_o = first.norm.centre(w_o)
        lost = self.workspace.rows("lost", len(values) * len(w_o), w_o).view(len(w_o), len(values), -1)
        torch.bmm(values.transpose(0, 1), w_o, out=lost)
        return lost.transpose(0, 1)

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

        folded = self.kept.fold(self.layer, number, into.matrix, fold)
        return folded if len(self.heads) == len(folded) else folded[self.heads]

    def _source_tables(
        self, values: Tensor, lost: Float[Tensor, "column head feature"]
    ) -> tuple[Float[Tensor, "column head_1 d_mlp"], ...]:
        """Each head's row of each source, taken through W_in (and the gate) once; last, the constant row."""
        if self.route not in ("factored", "folded"):
            return ()
        heads, columns = len(self.w_o), len(values)
        tables = []
        for number, into in enumerate(self.into):
            rows = self.workspace.rows(f"table {number}", (heads + 1) * columns, into.matrix)
            table = rows.view(heads + 1, columns, -1)
            if self.route == "folded":
                torch.bmm(values.transpose(0, 1), self._folded(number, into), out=table[:heads])
            else:
                through = rearrange(self._through_norms(lost), "column head feature -> (head column) feature")
                torch.mm(through, into.matrix, out=rows[: heads * columns])
            table[heads] = into.constant
            tables.append(table.transpose(0, 1))
        return tuple(tables)

    def _output_change(self, chunk: Chunk, lost: Tensor, tables: Sequence[Tensor]) -> Float[Tensor, "row feature"]:
        form, space = self.form, self.workspace
        delta = space.rows("delta", chunk.rows, lost)
        for place in chunk.places:
            torch.bmm(place.columnwise(chunk.pattern), lost[place.columns], out=place.columnwise(delta))
        if form.first is None or form.mlp is None or self.weights.w_out is None:
            return delta
        direct = self.route == "direct"
        first = NormChange.of(form.first, delta, chunk, centred=not form.reads_change_itself)
        own: tuple[Tensor, ...] = (first.shrinks,)
        scale = first.scale
        if form.reads_change_itself:
            residual = delta
            read = first.apply(self._copy(delta)) if direct else None
        else:
            residual = read = first.apply(delta)
        if form.between is not None:
            between = NormChange.of(form.between, residual, chunk)
            own, scale = (between.own, first.own * between.scale), first.scale * between.scale
            read = between.apply(self._copy(residual)) if direct else None
        hidden = self._hidden_change(chunk, read if direct else None, own, scale, tables)
        if form.name == "sandwich" and form.last is not None:
            written = hidden @ self.weights.w_out
            return residual.add_(NormChange.of(form.last, written, chunk).apply(written))
        change = residual.addmm_(hidden, self.weights.w_out)
        return change if form.last is None else NormChange.of(form.last, change, chunk).apply(change)

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
