"""Row normalisation and rollout on plain tensors, against loops and figures worked by hand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.references import rolled_out, row_normalized
from torch import Tensor

from tl_vzero.rollout import empty_rows, normalize_rows, roll_out

SEEDS = st.integers(0, 2**31 - 1)
SIZES = st.integers(1, 7)


def random_maps(seed: int, *shape: int) -> Tensor:
    """Positive entries spread over twelve powers of ten, as distances are."""
    generator = torch.Generator().manual_seed(seed)
    powers = torch.rand(shape, generator=generator, dtype=torch.float64) * -12
    return 10**powers


def test_a_row_is_divided_by_its_sum() -> None:
    maps = torch.tensor([[2.0, 6.0], [5.0, 0.0]])
    assert normalize_rows(maps).tolist() == [[0.25, 0.75], [1.0, 0.0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_an_empty_row_stays_zero_and_makes_no_nan(dtype: torch.dtype) -> None:
    maps = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=dtype)
    assert empty_rows(maps).tolist() == [True, False]
    assert normalize_rows(maps).tolist() == [[0.0, 0.0], [0.5, 0.5]]


@pytest.mark.parametrize("tiny", [1e-5, 1e-12, 1e-30, 1e-38])
def test_no_threshold_hides_a_small_row(tiny: float) -> None:
    maps = torch.tensor([[tiny, 3 * tiny]])
    assert empty_rows(maps).tolist() == [False]
    assert normalize_rows(maps).tolist()[0] == pytest.approx([0.25, 0.75], rel=1e-6)


@settings(derandomize=True, deadline=None, max_examples=30)
@given(SEEDS, SIZES, SIZES)
def test_rows_sum_to_one(seed: int, dests: int, sources: int) -> None:
    maps = random_maps(seed, 3, 2, dests, sources)
    normalized = normalize_rows(maps)
    assert (normalized.sum(-1) - 1).abs().max() < 1e-14
    assert (normalized - row_normalized(maps)).abs().max() < 1e-15


def test_the_input_is_not_changed() -> None:
    maps = random_maps(0, 2, 3, 3)
    before = maps.clone()
    roll_out(normalize_rows(maps), identity=True)
    assert torch.equal(maps, before)


def test_the_product_runs_from_the_first_layer_up() -> None:
    first = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    second = torch.tensor([[0.0, 1.0], [0.25, 0.75]])
    result = roll_out(torch.stack([first, second]), identity=False)
    assert result[0].tolist() == first.tolist()
    assert result[1].tolist() == [[0.5, 0.5], [0.625, 0.375]]


def test_identity_keeps_half_of_each_token() -> None:
    swap = torch.tensor([[[0.0, 1.0], [1.0, 0.0]]])
    assert roll_out(swap, identity=True)[0].tolist() == [[0.5, 0.5], [0.5, 0.5]]


@settings(derandomize=True, deadline=None, max_examples=30)
@given(SEEDS, st.integers(1, 5), SIZES, st.booleans())
def test_equals_plain_loops(seed: int, layers: int, size: int, identity: bool) -> None:
    normalized = row_normalized(random_maps(seed, layers, size, size))
    measured = roll_out(normalized, identity=identity)
    assert (measured - rolled_out(normalized, identity)).abs().max() < 1e-13
    assert (measured.sum(-1) - 1).abs().max() < 1e-13


@settings(derandomize=True, deadline=None, max_examples=20)
@given(SEEDS, SIZES)
def test_a_causal_map_stays_causal(seed: int, size: int) -> None:
    normalized = row_normalized(random_maps(seed, 4, size, size).tril())
    measured = roll_out(normalized, identity=False)
    assert torch.equal(measured, measured.tril())
    assert torch.equal(measured[:, 0, 0], torch.ones(4, dtype=torch.float64))
