"""The probe takes the closed form where it is right, the more so where hooks show little, and no wrong one."""

from typing import Any

import pytest
import torch
from support.models import HF_BUILDERS, loaded
from support.plain_hooks import StaysWide, cosine_distance
from support.references import blocks_of, row_normalized, value_zeroing

import tl_vzero
from tl_vzero.errors import ModelError
from tl_vzero.zeroing.chunks import Group
from tl_vzero.zeroing.pairs import PairZeroing

IDS = torch.tensor([5, 17, 42, 8, 31, 3, 59, 20])
WRITERS = {
    "bert": "attention.output.dense",
    "gpt2": "attn.c_proj",
    "llama": "self_attn.o_proj",
    "neox": "attention.dense",
}
FACTORS = [1.0, 0.03, 1e-3, 1e-5]
each_architecture = pytest.mark.parametrize("architecture", HF_BUILDERS)
each_factor = pytest.mark.parametrize("factor", FACTORS)


def faint(architecture: str, factor: float, width: int = 16, layers: slice = slice(None)) -> Any:
    """A model with layers whose attention writes so little that the output's rounding hides it."""
    hf_model = HF_BUILDERS[architecture](width=width)
    for block in list(blocks_of(hf_model))[layers]:
        block.get_submodule(WRITERS[architecture]).weight.data *= factor
    return hf_model


@each_factor
@each_architecture
def test_a_faint_narrow_model_is_scored_in_closed_form(architecture: str, factor: float) -> None:
    hf_model = faint(architecture, factor)
    with StaysWide():
        expected = value_zeroing(hf_model, IDS, distance=cosine_distance)
    scores = tl_vzero.value_zeroing(loaded(hf_model), IDS)
    assert scores.metadata["engine"] == "closed_form", scores.metadata["engine_reason"]
    error = (row_normalized(scores.values.double()) - row_normalized(expected)).abs().max()
    assert error <= 5e-6


@pytest.mark.parametrize("layers", [slice(1), slice(1, 2), slice(2, 3)], ids=["first", "middle", "last"])
@each_architecture
def test_one_faint_layer_among_others(architecture: str, layers: slice) -> None:
    hf_model = faint(architecture, 1e-4, layers=layers)
    scores = tl_vzero.value_zeroing(loaded(hf_model), IDS)
    assert scores.metadata["engine"] == "closed_form", scores.metadata["engine_reason"]


def a_little_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    """Distances off by a tenth, which is less than rounding in the faintest of these models."""
    right = Group.delta
    monkeypatch.setattr(Group, "delta", lambda group, chunk: right(group, chunk).mul_(1.05))


def another_mlp(monkeypatch: pytest.MonkeyPatch) -> None:
    right = PairZeroing._hidden_change
    monkeypatch.setattr(PairZeroing, "_hidden_change", lambda *inputs: right(*inputs).mul_(0.7))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("wrong", [a_little_too_much, another_mlp])
@each_factor
@pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama"])
def test_a_wrong_closed_form_is_refused(
    architecture: str, factor: float, wrong: Any, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tl_vzero.load_model(faint(architecture, factor), dtype=dtype)
    wrong(monkeypatch)
    scores = tl_vzero.value_zeroing(model, IDS)
    assert scores.metadata["engine"] == "hooks"
    assert "on a probe" in scores.metadata["engine_reason"]
    with pytest.raises(ModelError, match="on a probe"):
        tl_vzero.value_zeroing(model, IDS, engine="closed_form")
