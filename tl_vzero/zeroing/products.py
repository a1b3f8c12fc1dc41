"""Products that the clean run has done already: taken from it, once it is known that they are the same."""

from collections.abc import Callable
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from tl_vzero.distance import relative_difference

# Keeps a vector that went through a matrix, under a name: (name, matrix, how to make it).
Keep = Callable[[str, Tensor, Callable[[], Tensor]], Tensor]

# How far a product may be from the clean run's own (root mean square, relative) and still be the same. What is farther
# is computed: Hugging Face's RMSNorm is float32 inside a float64 model.
SAME_PRODUCT = {torch.float64: 1e-12, torch.float32: 5e-6}

NUMBERS_WIDENED = 2**21  # of a matrix at a time, 16 MB


def random_direction(like: Float[Tensor, "*axes feature"]) -> Float[Tensor, "feature"]:
    """The same random vector each time, as wide as `like`.

    Vectors that differ anywhere differ along it, but for a chance of probability zero; so a product of matrices is
    checked at the price of a product with one vector (Freivalds 1979).
    """
    generator = torch.Generator().manual_seed(0)
    return torch.randn(like.shape[-1], generator=generator, dtype=torch.float64).to(like)


def wider_product(
    rows: Float[Tensor, "row feature"], matrix: Float[Tensor, "feature width"]
) -> Float[Tensor, "row width"]:
    """The product in the rows' dtype, some columns of the matrix at a time: it is never widened as a whole."""
    parts = matrix.split(max(1, NUMBERS_WIDENED // len(matrix)), dim=-1)
    return torch.cat([rows @ part.to(rows.dtype) for part in parts], dim=-1)


class Product:
    """rows @ matrix + bias, done once more only where the clean run does not show it."""

    def __init__(
        self, matrix: Float[Tensor, "feature width"], bias: Float[Tensor, "width"] | None, keep: Keep, name: str
    ) -> None:
        self.matrix, self.bias, self.keep, self.name = matrix, bias, keep, name

    def of(self, rows: Float[Tensor, "row feature"], seen: Float[Tensor, "_ _"] | None) -> Float[Tensor, "row width"]:
        """The product of rows; `seen`, if it is that product."""
        if seen is not None and self._gives(rows, seen):
            return seen
        if rows.dtype != self.matrix.dtype:
            product = wider_product(rows, self.matrix)
            return product if self.bias is None else product + self.bias
        return rows @ self.matrix if self.bias is None else torch.addmm(self.bias, rows, self.matrix)

    def _gives(self, rows: Tensor, seen: Tensor) -> bool:
        if seen.shape != (len(rows), self.matrix.shape[-1]):
            return False
        along = rows @ self._through
        if self.bias is not None:
            along = along + self.bias @ self._direction
        return relative_difference(along, seen @ self._direction) <= SAME_PRODUCT[rows.dtype]

    @cached_property
    def _direction(self) -> Float[Tensor, "width"]:
        return random_direction(self.matrix)

    @property
    def _through(self) -> Float[Tensor, "feature"]:
        return self.keep(f"direction through {self.name}", self.matrix, lambda: self.matrix @ self._direction)
