"""Scores of parts that sum to the residual stream after attention, by their formulas from Hugging Face's own blocks."""

from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from support.models import HF_BUILDERS
from support.parts import Parts, parts_of
from support.state import type_checks_off
from torch import Tensor

import tl_vzero
from tl_vzero.errors import InputError, InputTypeError, ScoresError
from tl_vzero.report import make_report

TEXT = "the authors near the hat [MASK] today."
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


@each_architecture
def test_contribution_weights_by_hand(architecture: str) -> None:
    values, layers = compared(architecture, "contribution_weights")
    of_heads, _ = compared(architecture, "contribution_weights", per_head=True)
    sizes, _ = compared(architecture, "contribution_weights", size=True)
    for parts, measured, by_head in zip(layers, values, of_heads, strict=True):
        shares = torch.zeros_like(by_head)
        for head, dest, source in product(*map(range, shares.shape)):
            output = parts.attention[dest]
            shares[head, dest, source] = parts.by_head[head, dest, source] @ output / output.norm() ** 2
        torch.testing.assert_close(by_head, shares, **tolerance(architecture))
        torch.testing.assert_close(measured, shares.sum(0), **tolerance(architecture))
        without_bias = architecture == "llama"
        assert torch.allclose(measured.sum(-1), torch.ones(len(IDS)).double(), rtol=0, atol=1e-9) == without_bias
    assert (values < 0).any() == (architecture != "gpt2") and torch.equal(sizes, values.abs())


def test_signed_scores_are_no_shares_unless_their_sizes_are_wanted() -> None:
    model = tl_vzero.load_model("agreement-mini")
    signed: Any = tl_vzero.score(model, TEXT, method="contribution_weights")
    assert signed.signed and signed.plot()
    for refused in (signed.normalized, signed.rollout, partial(tl_vzero.plot.text_view, signed, "hat")):
        with pytest.raises(ScoresError, match=r"size=True|go below"):
            refused()
    sizes: Any = tl_vzero.score(model, TEXT, method="contribution_weights", size=True)
    assert (sizes.rollout().values >= 0).all()
    with pytest.raises(InputError, match="contribution_weights's scores have signs"):
        make_report(model, TEXT, methods=["contribution_weights"])
    assert "size=True" in tl_vzero.compare(model, TEXT).left_out["contribution_weights"]  # type: ignore[union-attr]
    named: Any = tl_vzero.compare(model, TEXT, ["contribution_weights"])
    assert torch.allclose(named["contribution_weights"].values, signed.values)


@pytest.mark.parametrize("name", ["least", "threshold"])
def test_a_share_that_is_none_is_refused(name: str) -> None:
    model = tl_vzero.load_model(HF_BUILDERS["gpt2"](1))
    with type_checks_off():
        for value, error in ((-0.1, InputError), (1.0, InputError), (float("nan"), InputError), ("a", InputTypeError)):
            with pytest.raises(error, match=f"{name} is .*: expected a number from 0 to below 1"):
                tl_vzero.score(model, IDS, method="information_flow", **{name: value})
