"""A product that the clean run showed is taken if and only if it is the product."""

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tl_vzero.distance import relative_difference
from tl_vzero.zeroing.forms import Keep, Product, WeightCache, random_direction

ROWS, FEATURES, WIDTH = 9, 12, 20
DTYPES = [torch.float32, torch.float64]
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-13}


def keeper() -> tuple[Keep, Counter[str]]:
    """The cache that a product takes its vector from, and how often each name was computed anew."""
    cache, computed = WeightCache("hash"), Counter[str]()

    def keep(name: str, matrix: Tensor, make: Callable[[], Tensor]) -> Tensor:
        def counted() -> Tensor:
            computed[name] += 1
            return make()

        return cache.vector("block", name, matrix, counted)

    return keep, computed


def numbers(dtype: torch.dtype, *shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


class Case:
    """rows @ matrix + bias, worked out in float64, and the Product that is to find it."""

    def __init__(self, dtype: torch.dtype, with_bias: bool = True) -> None:
        self.dtype = dtype
        self.rows = numbers(dtype, ROWS, FEATURES, seed=1)
        self.matrix = numbers(dtype, FEATURES, WIDTH, seed=2)
        self.bias = numbers(dtype, WIDTH, seed=3) if with_bias else None
        self.true = self.by_hand(self.rows)
        keep, self.computed = keeper()
        self.product = Product(self.matrix, self.bias, keep, "W_in")

    def by_hand(self, rows: Tensor) -> Tensor:
        wide = torch.einsum("rf,fw->rw", rows.double(), self.matrix.double())
        return (wide if self.bias is None else wide + self.bias.double()).to(self.dtype)

    def assert_computed(self, shown: Tensor | None) -> None:
        product = self.product.of(self.rows, shown)
        assert product is not shown
        assert torch.allclose(product, self.true, rtol=TOLERANCE[self.dtype], atol=10 * TOLERANCE[self.dtype])


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_was_shown_is_returned_where_it_is_the_product(dtype: torch.dtype, with_bias: bool) -> None:
    case = Case(dtype, with_bias)
    shown = case.true.clone()
    assert case.product.of(case.rows, shown) is shown


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_product_is_computed_where_nothing_was_shown(dtype: torch.dtype, with_bias: bool) -> None:
    Case(dtype, with_bias).assert_computed(None)


@pytest.mark.parametrize("dtype", DTYPES)
@settings(derandomize=True, deadline=None, max_examples=60, database=None)
@given(row=st.integers(0, ROWS - 1), column=st.integers(0, WIDTH - 1), change=st.sampled_from([-3.0, 0.1, 1.0, 1e4]))
def test_one_changed_entry_is_noticed(dtype: torch.dtype, row: int, column: int, change: float) -> None:
    case = Case(dtype)
    shown = case.true.clone()
    shown[row, column] += change
    case.assert_computed(shown)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_entry_that_is_no_number_is_noticed(dtype: torch.dtype, value: float) -> None:
    case = Case(dtype)
    shown = case.true.clone()
    shown[2, 3] = value
    case.assert_computed(shown)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("column", range(0, WIDTH, 5))
def test_another_bias_is_noticed(dtype: torch.dtype, column: int) -> None:
    case = Case(dtype)
    other = torch.zeros(WIDTH, dtype=dtype)
    other[column] = 0.5
    case.assert_computed(case.true + other)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_missing_bias_is_noticed(dtype: torch.dtype) -> None:
    case = Case(dtype)
    case.assert_computed(Case(dtype, with_bias=False).true)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axis", [0, 1], ids=["rows", "entries of rows"])
def test_places_that_were_exchanged_are_noticed(dtype: torch.dtype, axis: int) -> None:
    case = Case(dtype)
    order = torch.arange(case.true.shape[axis])
    order[[0, 4]] = order[[4, 0]]
    case.assert_computed(case.true.index_select(axis, order))


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_row_with_its_entries_exchanged_is_noticed(dtype: torch.dtype) -> None:
    case = Case(dtype)
    shown = case.true.clone()
    shown[5] = shown[5].flip(0)
    case.assert_computed(shown)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_product_of_other_rows_is_noticed(dtype: torch.dtype) -> None:
    case = Case(dtype)
    case.assert_computed(case.by_hand(case.rows.roll(1, dims=0)))
    case.assert_computed(case.by_hand(2 * case.rows))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rounding_in_the_last_digits_is_no_other_product(dtype: torch.dtype) -> None:
    case = Case(dtype)
    shown = case.true * (1 + torch.finfo(dtype).eps)
    assert case.product.of(case.rows, shown) is shown


@pytest.mark.parametrize("shape", [(ROWS, WIDTH + 1), (ROWS + 1, WIDTH), (WIDTH, ROWS), (ROWS, 1), (1, WIDTH)], ids=str)
def test_another_shape_is_not_the_product(shape: tuple[int, int]) -> None:
    case = Case(torch.float64)
    # Where shapes are checked at run time, `of` itself refuses these.
    assert not case.product._is_shown(case.rows, torch.zeros(shape, dtype=torch.float64))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_vector_cached_under_a_name_is_computed_once(dtype: torch.dtype) -> None:
    case = Case(dtype)
    for rows in (case.rows, case.rows[:4], case.rows.flip(0)):
        shown = case.by_hand(rows)
        assert case.product.of(rows, shown) is shown
    assert list(case.computed.values()) == [1]


def test_nothing_is_cached_where_nothing_was_shown() -> None:
    case = Case(torch.float64)
    case.product.of(case.rows, None)
    assert not case.computed


def test_products_of_two_names_keep_two_vectors() -> None:
    keep, computed = keeper()
    rows = numbers(torch.float64, ROWS, FEATURES)
    for index, name in enumerate(["W_in", "W_gate", "W_in"]):
        matrix = numbers(torch.float64, FEATURES, WIDTH, seed=index % 2)
        shown = rows @ matrix
        assert Product(matrix, None, keep, name).of(rows, shown) is shown
    assert sorted(computed.values()) == [1, 1]


@pytest.mark.parametrize("dtype", DTYPES)
def test_random_direction_is_the_same_each_time_and_zero_nowhere(dtype: torch.dtype) -> None:
    like = torch.zeros(3, 5, 40, dtype=dtype)
    state = torch.get_rng_state()
    direction = random_direction(like)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(7)
    assert torch.equal(random_direction(like), direction)
    assert direction.shape == (40,) and direction.dtype == dtype
    assert direction.unique().numel() == 40 and (direction != 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_the_relative_difference_is_relative_to_what_is_expected(dtype: torch.dtype, scale: float) -> None:
    expected = scale * numbers(dtype, 7, 5)
    size = expected.square().mean().sqrt()
    assert relative_difference(expected + 1e-3 * size, expected) == pytest.approx(1e-3, rel=1e-3)
    assert relative_difference(2 * expected, expected) == pytest.approx(1.0)
    assert relative_difference(expected, 2 * expected) == pytest.approx(0.5)
    assert relative_difference(expected, expected) == 0.0


def test_the_relative_difference_from_zeros() -> None:
    zeros, ones = torch.zeros(3, 2), torch.ones(3, 2)
    assert relative_difference(zeros, zeros) == 0.0
    assert relative_difference(ones, zeros) > 1e6
    assert relative_difference(zeros, ones) == 1.0


def test_what_is_not_finite_is_within_no_tolerance() -> None:
    bad, infinite = torch.tensor([1.0, float("nan")]), torch.tensor([1.0, float("inf")])
    ones = torch.ones(2)
    pairs = [(bad, bad), (bad, ones), (ones, bad), (infinite, infinite), (infinite, ones)]
    assert not any(relative_difference(a, b) <= 1e-3 for a, b in pairs)
