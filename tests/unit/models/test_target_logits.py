"""Logits at one position: the quick ways give what whole runs give, and are left where they would not."""

from typing import Any

import pytest
import torch
from support.models import MOST_ROUTES, build, hf_bert, loaded
from torch import Tensor

from tl_vzero.models.run import TargetLogits, quiet, run_logits
from tl_vzero.models.sites import sites_of

IDS = torch.tensor([[5, 6, 7, 8, 9], [9, 8, 7, 6, 5], [5, 5, 6, 6, 7]])
POSITIONS = torch.tensor([0, 4, 2])


def whole_logits(model: Any, site: str, outputs: Tensor, ids: Tensor, position: int) -> Tensor:
    """One copy after the other, every position and every block."""
    rows = []
    for output in outputs:
        hooks = [(site, lambda _, *, hook, output=output: output.unsqueeze(0))]
        rows.append(run_logits(model, ids.unsqueeze(0), hooks)[0, position])
    return torch.stack(rows)


def outputs_at(model: Any, site: str, ids: Tensor) -> Tensor:
    outputs: list[Tensor] = []
    run_logits(model, ids, [(site, lambda output, *, hook: outputs.append(output.detach()))])
    return outputs[0]


@pytest.mark.parametrize(("route", "architecture"), MOST_ROUTES)
def test_they_are_those_of_whole_runs(route: str, architecture: str) -> None:
    _, model = build(route, architecture)
    with quiet(model):
        target_logits, logits = TargetLogits(model), run_logits(model, IDS, [])
        assert torch.allclose(target_logits.at(IDS, POSITIONS), logits[range(3), POSITIONS], rtol=1e-4, atol=1e-5)
        assert target_logits.positions_unembedded(IDS) == 1
        for site in sites_of(model).outputs:
            outputs = outputs_at(model, site, IDS) * torch.tensor([1.0, 0.3, -2.0])[:, None, None]
            expected = whole_logits(model, site, outputs, IDS[1], 3)
            assert torch.allclose(target_logits.after(site, outputs, IDS[1], 3), expected, rtol=1e-4, atol=1e-5)
        assert target_logits._spreads


def test_gradients_pass_through() -> None:
    model = loaded(hf_bert().double())
    site = sites_of(model).outputs[0]
    with quiet(model):
        outputs = outputs_at(model, site, IDS)
        with torch.enable_grad():
            gradients = []
            for function in (TargetLogits(model).after, lambda *arguments: whole_logits(model, *arguments)):
                leaf = outputs.clone().requires_grad_()
                gradients += torch.autograd.grad(function(site, leaf, IDS[0], 2)[:, 7].sum(), leaf)
    assert torch.allclose(gradients[0], gradients[1], rtol=1e-9, atol=1e-12)


def test_where_the_model_counts_on_the_whole_it_is_run_as_it_is() -> None:
    model = loaded(hf_bert())
    site = sites_of(model).outputs[0]
    whole = IDS.shape[1]

    def count_positions(logits: Tensor, *, hook: Any) -> Tensor:
        return logits * logits.shape[1] / whole

    model.add_hook("unembed.hook_out", count_positions)
    with quiet(model):
        target_logits = TargetLogits(model)
        assert target_logits.positions_unembedded(IDS) == whole
        expected = run_logits(model, IDS, [])[range(3), POSITIONS]
        assert torch.allclose(target_logits.at(IDS, POSITIONS), expected, rtol=1e-4, atol=1e-5)
    model.reset_hooks()

    spread = loaded(hf_bert())
    first = sites_of(spread).inputs[0]

    def by_count(activation: Tensor, *, hook: Any) -> Tensor:
        counted.append(len(activation))
        return activation

    counted: list[int] = []
    spread.add_hook(first, by_count)
    # What lies above takes a factor from below: the copies below must be as many as above.
    spread.add_hook(sites_of(spread).inputs[1], lambda activation, *, hook: activation * counted[-1])
    with quiet(spread):
        outputs = outputs_at(spread, site, IDS)
        target_logits = TargetLogits(spread)
        target_logits.after(site, outputs, IDS[0], 1)
    assert not target_logits._spreads and counted[-1] == len(IDS)
    spread.reset_hooks()
