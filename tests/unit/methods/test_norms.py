"""Scores of parts that sum to the residual stream after attention, by their formulas from Hugging Face's own blocks."""

from typing import Any

import pytest
import torch
from support.models import HF_BUILDERS
from support.parts import Parts, parts_of
from support.state import type_checks_off
from torch import Tensor

import tl_vzero
from tl_vzero.errors import InputError, InputTypeError

IDS = torch.tensor([2, 5, 17, 9, 9, 31, 3])
each_architecture = pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama"])  # llama has shared values


def compared(architecture: str, method: str, **options: Any) -> tuple[Tensor, list[Parts]]:
    hf_model = HF_BUILDERS[architecture](1)
    model = tl_vzero.load_model(hf_model, dtype=torch.float64)
    scores = tl_vzero.score(model, IDS, method=method, **options)
    assert isinstance(scores, tl_vzero.Scores)
    return scores.values, parts_of(hf_model, IDS)


def tolerance(architecture: str) -> dict[str, float]:
    """Hugging Face computes Llama's norms and rotations in float32, also in a float64 model."""
    return {"rtol": 0, "atol": 2e-6 if architecture == "llama" else 1e-9}


def flow_by_hand(parts: Parts, least: float, threshold: float) -> tuple[Tensor, Tensor]:
    """Shares [head, dest, src] and [dest], one destination and one part at a time."""
    n_heads, length = parts.by_head.shape[:2]
    heads, itself = torch.zeros(n_heads, length, length).double(), torch.zeros(length).double()
    for dest in range(length):
        whole = parts.input[dest] + parts.attention[dest]
        every = [parts.input[dest], *parts.by_head[:, dest].flatten(0, 1)]
        nearer = torch.stack([whole.abs().sum() - (whole - part).abs().sum() for part in every]).clamp(min=least)
        shares = nearer / nearer.sum()
        shares = shares * (shares > threshold) / shares[shares > threshold].sum()
        itself[dest], heads[:, dest] = shares[0], shares[1:].view(n_heads, length)
    return heads, itself


@each_architecture
@pytest.mark.parametrize("options", [{}, {"least": 1e-5, "threshold": 0.04}], ids=["paper", "program"])
def test_information_flow_by_hand(architecture: str, options: dict[str, float]) -> None:
    values, layers = compared(architecture, "information_flow", **options)
    of_heads, _ = compared(architecture, "information_flow", per_head=True, **options)
    some, _ = compared(architecture, "information_flow", destinations=[5, 2], **options)
    for parts, measured, by_head, rows in zip(layers, values, of_heads, some, strict=True):
        heads, itself = flow_by_hand(parts, options.get("least", 0.0), options.get("threshold", 0.0))
        torch.testing.assert_close(by_head, heads, **tolerance(architecture))
        torch.testing.assert_close(measured, heads.sum(0) + itself.diag(), **tolerance(architecture))
        torch.testing.assert_close(rows, measured[[5, 2]], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["least", "threshold"])
def test_a_share_that_is_none_is_refused(name: str) -> None:
    model = tl_vzero.load_model(HF_BUILDERS["gpt2"](1))
    with type_checks_off():
        for value, error in ((-0.1, InputError), (1.0, InputError), (float("nan"), InputError), ("a", InputTypeError)):
            with pytest.raises(error, match=f"{name} is .*: expected a share from 0 to below 1"):
                tl_vzero.score(model, IDS, method="information_flow", **{name: value})
