"""The weights of the values, in one layout for every class."""

from typing import Any

import pytest
import torch
from support.models import MOST_ROUTES, build, hf_bert, loaded

from tl_vzero.clean import clean_run
from tl_vzero.models.blocks import block_weights, value_weights
from tl_vzero.models.run import quiet
from tl_vzero.models.sites import sites_of

IDS = torch.tensor([[2, 5, 17, 9, 31, 3]])


@pytest.mark.parametrize(("route", "architecture"), MOST_ROUTES)
def test_they_give_the_values_of_the_clean_run(route: str, architecture: str) -> None:
    model = build(route, architecture)[1]
    with quiet(model):
        clean = clean_run(model, sites_of(model), IDS, (1,))[1]
    weights, norm1 = value_weights(model, 1, torch.float32), block_weights(model, 1, torch.float32).norm1
    read = clean.input if architecture == "bert" else norm1(clean.input)
    value = torch.einsum("sjd,hdk->sjhk", read, weights[0]) + weights[1]
    assert torch.allclose(value, clean.value, rtol=1e-4, atol=1e-5)


class Unreadable:
    """An attention that has no such weight, or refuses to show it."""

    def __init__(self, weight: Any) -> None:
        self._weight = weight

    @property
    def W_V(self) -> Any:  # noqa: N802
        if self._weight is None:
            raise NotImplementedError
        return self._weight


@pytest.mark.parametrize("weight", [None, torch.zeros(3, 4)])
def test_none_where_they_cannot_be_read(weight: torch.Tensor | None, monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded(hf_bert())
    monkeypatch.setitem(model.blocks[0]._modules, "attn", Unreadable(weight))
    assert value_weights(model, 0, torch.float32) is None
