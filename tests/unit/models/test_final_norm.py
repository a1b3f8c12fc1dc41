"""Scores after the norm behind the last block, whatever kind of norm it is."""

import copy
from typing import Any

import pytest
import torch
from support import references
from support.closed import hooked_transformer
from support.decoder_rows import DECODERS
from support.engines import ENGINES
from support.laws import assert_close
from support.models import loaded
from support.plain_hooks import StaysWide, cosine_distance
from torch import Tensor, nn

import tl_vzero

IDS = torch.tensor([17, 5, 41, 9, 31, 28, 52])
# With a weight and a bias, a weight, a weight stored minus 1, no parameters at all.
NORMS = ["GPT-2", "Llama", "Gemma", "GLM 4", "OLMo"]
each_engine = pytest.mark.parametrize("engine", ENGINES)


def tiny(name: str) -> Any:
    return next(row for row in DECODERS if row.name == name).tiny()


@each_engine
@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
@pytest.mark.parametrize("name", NORMS)
def test_every_kind_of_norm(name: str, distance: str, engine: str) -> None:
    with StaysWide():
        expected = references.value_zeroing(
            tiny(name), IDS, final_norm=True, distance=getattr(references, f"{distance}_distance")
        )
    scores = tl_vzero.value_zeroing(loaded(tiny(name)), IDS, final_norm=True, distance=distance, engine=engine)
    measured = scores.values.double()
    # Hooks see float32 outputs: a euclidean distance is off by their rounding, whatever its own size.
    rounding = 5e-7 * expected.max() if engine == "hooks" and distance == "euclidean" else 0.0
    assert ((measured - expected).abs() <= 1e-3 * expected + rounding)[expected >= 1e-7].all()
    assert_close(references.row_normalized(measured), references.row_normalized(expected.clamp(min=0)), 5e-6)


@each_engine
@pytest.mark.parametrize("name", ["GPT-2", "Llama"])
def test_float32_keeps_small_distances_after_the_norm(name: str, engine: str) -> None:
    """What little is written into a stream of ordinary size would be lost between two float32 results of the norm."""
    hf_model = copy.deepcopy(tiny(name))
    for block in references.blocks_of(hf_model):
        written = block.attn.c_proj if name == "GPT-2" else block.self_attn.o_proj
        written.weight.data *= 1e-3
    with StaysWide():
        expected = references.value_zeroing(hf_model, IDS, final_norm=True, distance=cosine_distance)
    scores = tl_vzero.value_zeroing(loaded(hf_model), IDS, final_norm=True, engine=engine).values.double()
    allowed = 1e-4 if engine == "auto" else 2e-2
    assert expected[-1][expected[-1] > 0].min() < 1e-7
    assert ((scores - expected).abs() <= allowed * expected)[expected >= 1e-9].all()


class Halved(nn.Module):
    """A norm of the user's own, which the weights beside it do not explain."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.w, self.b = inner, inner.w, inner.b

    def forward(self, rows: Tensor) -> Tensor:
        return self.inner(rows) + 0.5 * rows.abs()


@each_engine
def test_a_norm_that_its_weights_do_not_explain_is_run_itself(engine: str) -> None:
    model = hooked_transformer(act_fn="gelu")
    plain = tl_vzero.value_zeroing(model, IDS, final_norm=True, engine=engine)
    model.ln_final = Halved(model.ln_final)
    halved = tl_vzero.value_zeroing(model, IDS, final_norm=True, engine=engine)
    before = tl_vzero.value_zeroing(model, IDS, engine="hooks")
    assert torch.allclose(halved.values[:-1], before.values[:-1], rtol=1e-9, atol=1e-15)
    assert (halved.values[-1] - plain.values[-1]).abs().max() > 1e-4
