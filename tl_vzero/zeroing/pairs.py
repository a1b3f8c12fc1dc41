"""The change of a block's output for many (destination, source) pairs, packed into products of bounded size."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from tl_vzero.distance import wide_dtype
from tl_vzero.models.blocks import BlockWeights
from tl_vzero.zeroing.forms import CleanForm, NormState
from tl_vzero.zeroing.packing import Column, Segment, chunks_of, segments_of

Route = Literal["direct", "factored", "folded", "none"]
Measure = Callable[[Tensor, Tensor], Tensor]

ROWS_A_PRODUCT = 1024  # more rows gain nothing in the product, and their activations leave the cache


@dataclass(frozen=True, eq=False)
class SentencePart:
    """One sentence: where its destinations stand in the row axis, and what the zeroed heads do in it."""

    group: int
    row: int
    first_row: int
    pattern: Float[Tensor, "src dest head"]
    value: Float[Tensor, "src head d_head"]


@dataclass(frozen=True, eq=False)
class _Place:
    """A segment in a chunk: its rows in the chunk's buffers, and its destinations in the clean row axis."""

    segment: Segment
    start: int
    clean: slice
    pattern: Float[Tensor, "column dest head"]
    columns: slice

    def view(self, buffer: Tensor) -> Float[Tensor, "column dest width"]:
        """This segment's part of a buffer `[row, width]`."""
        rows = buffer[self.start : self.start + self.segment.rows]
        return rows.view(len(self.segment.columns), -1, buffer.shape[-1])

    def scalars(self, per_row: Tensor) -> Float[Tensor, "column dest 1"]:
        """This segment's part of one scalar a row, ready to broadcast over features."""
        return self.view(per_row.unsqueeze(-1))


@dataclass(frozen=True, eq=False)
class _NormChange:
    """A norm's change: own * c(clean row) + scale * (change - mean), times the norm's weight.

    `shrinks` is own times the clean deviation: the share by which what the norm puts out shrinks by itself.
    """

    own: Float[Tensor, "row"]
    shrinks: Float[Tensor, "row"]
    scale: Float[Tensor, "row"]
    mean: Float[Tensor, "row"] | None


@dataclass(frozen=True, eq=False)
class _InProduct:
    """One product into the MLP (its gate or its linear part): the matrix, and rows that went through it.

    `constant` is the part of `pre` that no norm scales: the norm's bias through the matrix, and the product's.
    `own` are the sandwich form's rows; elsewhere pre - constant is what the norm scales.
    """

    matrix: Float[Tensor, "feature d_mlp"]
    pre: Float[Tensor, "row d_mlp"]
    constant: Float[Tensor, "d_mlp"]
    own: tuple[Float[Tensor, "row d_mlp"], ...]


class Workspace:
    """Buffers that are written again and again: fresh memory costs a page fault a page."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, int, torch.dtype, torch.device], Tensor] = {}

    def rows(self, name: str, count: int, like: Float[Tensor, "*axes width"]) -> Float[Tensor, "row width"]:
        """`count` rows of the width, dtype and device of `like`, with whatever was left in them."""
        key = (name, like.shape[-1], like.dtype, like.device)
        if key not in self._held or len(self._held[key]) < count:
            self._held[key] = like.new_empty(count, like.shape[-1])
        return self._held[key][:count]


class PairZeroing:
    """One layer with one set of heads zeroed. `changes` gives, segment by segment, clean minus changed output."""

    def __init__(
        self,
        weights: BlockWeights,
        form: CleanForm,
        parts: Sequence[SentencePart],
        heads: Sequence[int],
        route: Route,
        memory_mb: float,
        workspace: Workspace,
    ) -> None:
        self.weights, self.form, self.parts, self.route = weights, form, parts, route
        self.workspace = workspace
        self.w_o = weights.w_o[list(heads)]
        self.in_products = self._in_products()
        self.folded = [self._folded(*each) for each in enumerate(self.in_products)] if route == "folded" else []
        n_in, d_mlp = len(self.in_products), 0 if weights.w_out is None else weights.w_out.shape[0]
        bytes_of_number = self.w_o.element_size()
        budget = memory_mb * 2**20 / bytes_of_number
        d_model = self.w_o.shape[-1]
        row = max(1, n_in) * d_mlp + 6 * d_model
        column = len(heads) * (2 * d_model + n_in * d_mlp)
        self.max_rows = max(1, min(ROWS_A_PRODUCT, int(budget / 2 / row)))
        self.max_columns = max(1, int(budget / 2 / column))

    def changes(self, columns: Sequence[Column]) -> Iterator[tuple[Segment, Float[Tensor, "column dest feature"]]]:
        """Every segment of the columns with its pairs' changes, which the caller may overwrite."""
        for start in range(0, len(columns), self.max_columns):
            batch = columns[start : start + self.max_columns]
            lost = self._lost_by_source(batch)
            tables = self._source_tables(batch, lost)
            for chunk in chunks_of(segments_of(batch, self.max_rows), self.max_rows):
                places = self._places(chunk)
                change = self._output_change(places, lost, tables)
                for place in places:
                    yield place.segment, place.view(change)

    def _places(self, chunk: Sequence[Segment]) -> list[_Place]:
        places, start = [], 0
        for segment in chunk:
            first = segment.columns[0]
            part = self.parts[first.sentence]
            pattern = part.pattern[first.index : first.index + len(segment.columns), segment.low : segment.high]
            clean = slice(part.first_row + segment.low, part.first_row + segment.high)
            columns = slice(segment.first_column, segment.first_column + len(segment.columns))
            places.append(_Place(segment, start, clean, pattern, columns))
            start += segment.rows
        return places

    def _lost_by_source(self, batch: Sequence[Column]) -> Float[Tensor, "column head feature"]:
        """u[j, h] = v[j, h] W_O[h]: what each head writes of a source into whoever attends to it alone."""
        return torch.einsum("chk,hkd->chd", self._values(batch), self.w_o)

    def _values(self, batch: Sequence[Column]) -> Float[Tensor, "column head d_head"]:
        return torch.stack([self.parts[column.sentence].value[column.index] for column in batch])

    def _through_norms(self, rows: Float[Tensor, "*axes feature"]) -> Float[Tensor, "*axes feature"]:
        """A lost vector as the MLP's norms weigh it, but for their scalars."""
        for state in (self.form.first, self.form.between):
            if state is not None:
                rows = state.norm.centre(rows) * state.norm.weight
        return rows

    def _folded(self, number: int, product: _InProduct) -> Float[Tensor, "head d_head d_mlp"]:
        through = rearrange(self._through_norms(self.w_o), "head d_head feature -> (head d_head) feature")
        folded = self.workspace.rows(f"folded {number}", len(through), product.matrix)
        torch.mm(through, product.matrix, out=folded)
        return rearrange(folded, "(head d_head) d_mlp -> head d_head d_mlp", head=len(self.w_o))

    def _source_tables(
        self, batch: Sequence[Column], lost: Float[Tensor, "column head feature"]
    ) -> tuple[Float[Tensor, "column head_1 d_mlp"], ...]:
        """Each head's row of each source, taken through W_in (and the gate) once; last, the constant row."""
        if self.route not in ("factored", "folded"):
            return ()
        heads, columns = len(self.w_o), len(batch)
        through = rearrange(self._through_norms(lost), "column head feature -> head column feature")
        value = rearrange(self._values(batch), "column head d_head -> head column d_head")
        tables = []
        for number, product in enumerate(self.in_products):
            rows = self.workspace.rows(f"table {number}", (heads + 1) * columns, product.matrix)
            table = rearrange(rows, "(head column) d_mlp -> head column d_mlp", column=columns)
            if self.route == "folded":
                torch.bmm(value, self.folded[number], out=table[:heads])
            else:
                torch.matmul(through, product.matrix, out=table[:heads])
            table[heads] = product.constant
            tables.append(table.transpose(0, 1))
        return tuple(tables)

    def _in_products(self) -> tuple[_InProduct, ...]:
        w, mlp = self.weights, self.form.mlp
        if mlp is None or w.w_in is None:
            return ()
        parts = [(w.w_in, w.b_in, mlp.pre)]
        if w.w_gate is not None and mlp.pre_linear is not None:
            parts = [(w.w_gate, w.b_gate, mlp.pre), (w.w_in, w.b_in, mlp.pre_linear)]
        own = self._own_rows() if self.form.between is not None and self.route != "direct" else ()
        return tuple(
            _InProduct(matrix, pre, self._constant(matrix, bias), tuple(rows @ matrix for rows in own))
            for matrix, bias, pre in parts
        )

    def _constant(self, matrix: Tensor, bias: Tensor | None) -> Float[Tensor, "d_mlp"]:
        reader = self.form.between or self.form.first
        assert reader is not None
        constant = matrix.new_zeros(matrix.shape[-1]) if bias is None else bias
        return constant if reader.norm.bias is None else constant + reader.norm.bias @ matrix

    def _own_rows(self) -> tuple[Float[Tensor, "row feature"], ...]:
        """What a destination's own clean rows add to the change of a sandwich's MLP input, but for scalars."""
        first, between = self.form.first, self.form.between
        assert first is not None
        assert between is not None
        weighed = first.centred * first.norm.weight
        return between.centred * between.norm.weight, between.norm.centre(weighed) * between.norm.weight

    def _output_change(
        self, places: Sequence[_Place], lost: Tensor, tables: Sequence[Tensor]
    ) -> Float[Tensor, "row feature"]:
        form = self.form
        rows = sum(place.segment.rows for place in places)
        delta = self.workspace.rows("delta", rows, lost)
        for place in places:
            torch.bmm(place.pattern, lost[place.columns], out=place.view(delta))
        if form.first is None or form.mlp is None or self.weights.w_out is None:
            return delta
        first = _norm_change(form.first, delta, places)
        own: tuple[Tensor, ...] = (first.shrinks,)
        scale = first.scale
        if form.name == "pre_norm":
            residual = delta
            read = _apply(form.first, first, self._copy(delta), places) if self.route == "direct" else None
        else:
            residual = read = _apply(form.first, first, delta, places)
        if form.between is not None:
            between = _norm_change(form.between, residual, places)
            own, scale = (between.own, first.own * between.scale), first.scale * between.scale
            read = _apply(form.between, between, self._copy(residual), places) if self.route == "direct" else None
        hidden = self._hidden_change(places, read, own, scale, tables)
        if form.name == "sandwich" and form.last is not None:
            written = hidden @ self.weights.w_out
            return residual.add_(_apply(form.last, _norm_change(form.last, written, places), written, places))
        change = residual.addmm_(hidden, self.weights.w_out)
        if form.last is not None:
            change = _apply(form.last, _norm_change(form.last, change, places), change, places)
        return change

    def _copy(self, change: Float[Tensor, "row feature"]) -> Float[Tensor, "row feature"]:
        return self.workspace.rows("copy", len(change), change).copy_(change)

    def _hidden_change(
        self,
        places: Sequence[_Place],
        read: Tensor | None,
        own: Sequence[Tensor],
        scale: Tensor,
        tables: Sequence[Tensor],
    ) -> Float[Tensor, "row d_mlp"]:
        """Clean minus changed activations, between the MLP's two products."""
        assert self.form.mlp is not None
        assert self.weights.activation is not None
        entering = []
        for number, product in enumerate(self.in_products):
            buffer = self.workspace.rows(f"entering {number}", len(scale), product.matrix)
            if self.route == "direct":
                assert read is not None
                _multiply(product, buffer, places, read)
            else:
                _combine(product, buffer, places, own, scale, tables[number])
            entering.append(buffer)
        hidden = self.weights.activation(entering[0])
        for linear in entering[1:]:
            hidden.mul_(linear)
        for place in places:
            view = place.view(hidden)
            torch.sub(self.form.mlp.hidden[place.clean], view, out=view)
        return hidden


def _multiply(product: _InProduct, buffer: Tensor, places: Sequence[_Place], read: Tensor) -> None:
    """The changed activation's input by one product a pair."""
    for place in places:
        place.view(buffer).copy_(product.pre[place.clean])
    buffer.addmm_(read, product.matrix, alpha=-1.0)


def _combine(
    product: _InProduct,
    buffer: Tensor,
    places: Sequence[_Place],
    own: Sequence[Tensor],
    scale: Tensor,
    table: Tensor,
) -> None:
    """The changed activation's input as a combination of rows that went through the matrix once."""
    for place in places:
        view, pattern = place.view(buffer), place.pattern * place.scalars(scale)
        columns = table[place.columns]
        if product.own:
            entering = product.pre[place.clean].unsqueeze(0)
            for scalars, rows in zip(own, product.own, strict=True):
                entering = torch.addcmul(entering, place.scalars(scalars), rows[place.clean], value=-1.0, out=view)
            view.baddbmm_(pattern, columns[:, :-1], alpha=-1.0)
        else:
            # What the norm scales shrinks by a factor a pair; the constant's share is given back by the product.
            shrinks = place.scalars(own[0])
            torch.mul(product.pre[place.clean], 1.0 - shrinks, out=view)
            view.baddbmm_(torch.cat([pattern, -shrinks], dim=-1), columns, alpha=-1.0)


def _norm_change(state: NormState, change: Float[Tensor, "row feature"], places: Sequence[_Place]) -> _NormChange:
    """How a norm's two scalars change when its input loses `change`; in float64, as they are few."""
    features = change.shape[-1]
    along = torch.cat([(place.view(change) * state.centred[place.clean]).sum(-1).flatten() for place in places])
    wide = wide_dtype(change.device)
    square = torch.linalg.vector_norm(change, dim=-1).to(wide).square()
    mean = change.mean(dim=-1) if state.norm.centred else None
    if mean is not None:
        square = square - features * mean.to(wide).square()
    clean = torch.cat(
        [state.deviation[place.clean].expand(len(place.segment.columns), -1).flatten() for place in places]
    ).to(wide)
    step = (square - 2.0 * along.to(wide)) / features
    # The variance cannot fall below eps; rounding may say so.
    changed = (clean.square() + step).clamp(min=max(state.norm.eps, torch.finfo(torch.float32).tiny)).sqrt()
    own = step / (clean * changed * (clean + changed))
    dtype = change.dtype
    return _NormChange(own.to(dtype), (own * clean).to(dtype), (1.0 / changed).to(dtype), mean)


def _apply(
    state: NormState, scalars: _NormChange, change: Float[Tensor, "row feature"], places: Sequence[_Place]
) -> Float[Tensor, "row feature"]:
    """Turn the change of a norm's input into that of its output, in place."""
    scale = scalars.scale.unsqueeze(-1)
    if scalars.mean is None:
        change.mul_(scale)
    else:
        torch.addcmul(-scalars.mean.unsqueeze(-1) * scale, change, scale, out=change)
    for place in places:
        place.view(change).addcmul_(place.scalars(scalars.own), state.centred[place.clean])
    return change.mul_(state.norm.weight)
