"""The fingerprint that tells whether a hash of the weights still stands."""

import pytest
import torch
from torch import Tensor

from tl_vzero.models.changes import _sums

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (5,), (3, 4), (2, 3, 4)], ids=str)
def test_sums_on_another_device_tell_one_edit(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    tensor = (torch.randn(shape) > 0).to(dtype)
    edited = tensor.clone()
    edited.view(-1)[-1] = edited.view(-1)[-1] == 0
    assert torch.equal(_sums(tensor), _sums(tensor.clone()))
    assert not torch.equal(_sums(tensor), _sums(edited))


@pytest.mark.parametrize("order", [[1, 0, 2], [2, 1, 0]])
@pytest.mark.parametrize("axis", [0, 1])
def test_sums_on_another_device_tell_rows_and_columns_that_change_places(order: list[int], axis: int) -> None:
    torch.manual_seed(0)
    tensor: Tensor = torch.randn(3, 3)
    assert not torch.equal(_sums(tensor), _sums(tensor.index_select(axis, torch.tensor(order))))


def test_sums_of_nothing() -> None:
    assert not _sums(torch.zeros(0, 4)).any()
