"""One product into the MLP, its gate or its linear part, for many pairs."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tl_vzero.models.blocks import BlockWeights
from tl_vzero.zeroing.chunks import Chunk
from tl_vzero.zeroing.forms import CleanForm
from tl_vzero.zeroing.products import Keep


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
