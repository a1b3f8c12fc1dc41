"""The change of a block's output for many (destination, source) pairs, packed into products of bounded size."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tl_vzero.distance import wide_dtype
from tl_vzero.models.blocks import BlockWeights
from tl_vzero.zeroing.forms import CleanForm, NormState
from tl_vzero.zeroing.packing import Column, Segment, chunks_of, segments_of

Route = Literal["direct", "factored", "folded", "none"]
Measure = Callable[[Tensor, Tensor], Tensor]

ROWS_A_PRODUCT = 512  # more rows gain nothing in the product, and their activations leave the cache


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
    """A norm's change: own * c(clean row) + scale * (change - mean), times the norm's weight."""

    own: Float[Tensor, "row"]
    scale: Float[Tensor, "row"]
    mean: Float[Tensor, "row"] | None


@dataclass(frozen=True, eq=False)
class _InProduct:
    """One product into the MLP (its gate or its linear part): the matrix, and rows that went through it."""

    matrix: Float[Tensor, "feature d_mlp"]
    pre: Float[Tensor, "row d_mlp"]
    own: tuple[Float[Tensor, "row d_mlp"], ...]


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
    ) -> None:
        self.weights, self.form, self.parts, self.route = weights, form, parts, route
        self.w_o = weights.w_o[list(heads)]
        self.in_products = self._in_products()
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

    @cached_property
    def _folded(self) -> tuple[Float[Tensor, "head d_head d_mlp"], ...]:
        through = self._through_norms(self.w_o)
        return tuple(through @ product.matrix for product in self.in_products)

    def _source_tables(
        self, batch: Sequence[Column], lost: Float[Tensor, "column head feature"]
    ) -> tuple[Float[Tensor, "column head d_mlp"], ...]:
        """Each head's row of each source, taken through W_in (and the gate) once."""
        if self.route == "folded":
            value = self._values(batch)
            return tuple(torch.einsum("chk,hkm->chm", value, folded) for folded in self._folded)
        if self.route == "factored":
            through = self._through_norms(lost)
            return tuple(through @ product.matrix for product in self.in_products)
        return ()

    def _in_products(self) -> tuple[_InProduct, ...]:
        w, mlp = self.weights, self.form.mlp
        if mlp is None or w.w_in is None:
            return ()
        pairs = [(w.w_in, mlp.pre)]
        if w.w_gate is not None and mlp.pre_linear is not None:
            pairs = [(w.w_gate, mlp.pre), (w.w_in, mlp.pre_linear)]
        own = () if self.route == "direct" else self._own_rows()
        return tuple(_InProduct(matrix, pre, tuple(rows @ matrix for rows in own)) for matrix, pre in pairs)

    def _own_rows(self) -> tuple[Float[Tensor, "row feature"], ...]:
        """What a destination's own clean row adds to the change of the MLP's input, but for its scalars."""
        first, between = self.form.first, self.form.between
        assert first is not None
        weighed = first.centred * first.norm.weight
        if between is None:
            return (weighed,)
        return between.centred * between.norm.weight, between.norm.centre(weighed) * between.norm.weight

    def _output_change(
        self, places: Sequence[_Place], lost: Tensor, tables: Sequence[Tensor]
    ) -> Float[Tensor, "row feature"]:
        form = self.form
        rows = sum(place.segment.rows for place in places)
        delta = lost.new_empty(rows, lost.shape[-1])
        for place in places:
            torch.bmm(place.pattern, lost[place.columns], out=place.view(delta))
        if form.first is None or form.mlp is None or self.weights.w_out is None:
            return delta
        first = _norm_change(form.first, delta, places)
        own: tuple[Tensor, ...] = (first.own,)
        scale = first.scale
        if form.name == "pre_norm":
            residual = delta
            read = _apply(form.first, first, delta.clone(), places) if self.route == "direct" else None
        else:
            residual = read = _apply(form.first, first, delta, places)
        if form.between is not None:
            between = _norm_change(form.between, residual, places)
            own, scale = (between.own, first.own * between.scale), first.scale * between.scale
            read = _apply(form.between, between, residual.clone(), places) if self.route == "direct" else None
        hidden = self._hidden_change(places, read, own, scale, tables)
        if form.name == "sandwich" and form.last is not None:
            written = hidden @ self.weights.w_out
            return residual.add_(_apply(form.last, _norm_change(form.last, written, places), written, places))
        change = torch.addmm(residual, hidden, self.weights.w_out)
        if form.last is not None:
            change = _apply(form.last, _norm_change(form.last, change, places), change, places)
        return change

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
            buffer = scale.new_empty(len(scale), product.matrix.shape[-1])
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
        view = place.view(buffer)
        pattern = place.pattern * place.scalars(scale)
        clean = product.pre[place.clean].expand_as(view)
        torch.baddbmm(clean, pattern, table[place.columns], alpha=-1.0, out=view)
        for scalars, rows in zip(own, product.own, strict=True):
            view.addcmul_(place.scalars(scalars), rows[place.clean], value=-1.0)


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
    return _NormChange(own.to(change.dtype), (1.0 / changed).to(change.dtype), mean)


def _apply(
    state: NormState, scalars: _NormChange, change: Float[Tensor, "row feature"], places: Sequence[_Place]
) -> Float[Tensor, "row feature"]:
    """Turn the change of a norm's input into that of its output, in place."""
    if scalars.mean is not None:
        change.sub_(scalars.mean.unsqueeze(-1))
    change.mul_(scalars.scale.unsqueeze(-1))
    for place in places:
        place.view(change).addcmul_(place.scalars(scalars.own), state.centred[place.clean])
    return change.mul_(state.norm.weight)
