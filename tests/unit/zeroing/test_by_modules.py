"""Blocks whose MLP no weights explain: their own modules run on the pairs."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from support.closed import GROUPED, IDS, SHAPE, assert_same, hooked_transformer, maps
from support.models import VOCABULARY, randomise
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

import tl_vzero
from tl_vzero.models import blocks
from tl_vzero.models.blocks import BlockModules
from tl_vzero.zeroing.by_modules import module_form
from tl_vzero.zeroing.forms import BlockRows

UNKNOWN = "mish"  # an activation without a formula here
GPT2 = {
    "vocab_size": VOCABULARY,
    "n_embd": 16,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 64,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
MODELS: dict[str, Callable[[], Any]] = {
    "bert": lambda: BertForMaskedLM(BertConfig(**SHAPE, hidden_act=UNKNOWN)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(**GPT2, activation_function=UNKNOWN)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**GROUPED, hidden_act=UNKNOWN)),
    "mixtral": lambda: MixtralForCausalLM(
        # The default product of experts knows no float64.
        MixtralConfig(**GROUPED, num_local_experts=3, num_experts_per_tok=2, experts_implementation="eager")
    ),
}
RMS = ("llama", "mixtral")  # their norm is float32 inside


def model_of(name: str, dtype: torch.dtype) -> Any:
    return tl_vzero.load_model(randomise(MODELS[name](), 1), dtype=dtype)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "options",
    [{}, {"per_head": True}, {"heads": [1], "sources": [7, 2], "destinations": [9, 4]}, {"spans": [[1, 2], [8]]}],
    ids=lambda options: "-".join(options) or "all",
)
def test_equals_the_hook_engine(name: str, options: dict[str, Any]) -> None:
    model = model_of(name, torch.float64)
    scores = tl_vzero.value_zeroing(model, IDS, **options)
    assert scores.metadata["engine"] == "closed_form", scores.metadata["engine_reason"]
    assert scores.metadata["routes"] == ["modules"] * 3
    assert_same(scores.values.double(), maps(model, "hooks", **options), 1e-6 if name in RMS else 1e-11)


@pytest.mark.parametrize("name", MODELS)
def test_float32_keeps_what_the_hook_engine_keeps(name: str) -> None:
    model = model_of(name, torch.float32)
    scores = tl_vzero.value_zeroing(model, IDS, engine="closed_form").normalized()
    expected = tl_vzero.value_zeroing(model_of(name, torch.float64), IDS, engine="hooks").normalized()
    assert (scores.values.double() - expected.values).abs().max() <= 5e-6


@pytest.mark.parametrize("memory_mb", [0.001, 1.0])
def test_the_memory_budget_changes_nothing(memory_mb: float) -> None:
    model = model_of("bert", torch.float64)
    expected = maps(model, "closed_form")
    assert torch.allclose(maps(model, "closed_form", memory_mb=memory_mb), expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    ("shape", "routes"),
    [({"act_fn": "solu_ln"}, ["modules"] * 3), ({"attn_only": True}, ["none"] * 3)],
    ids=["solu_ln", "attention only"],
)
def test_blocks_that_only_hooked_transformer_has(shape: dict[str, Any], routes: list[str]) -> None:
    model = hooked_transformer(**shape)
    scores = tl_vzero.value_zeroing(model, IDS, engine="closed_form")
    assert scores.metadata["routes"] == routes
    assert_same(scores.values.double(), maps(model, "hooks"), 1e-9)


def test_a_gate_inside_w_in_is_left_to_the_modules() -> None:
    kind = "ModernBertDecoder"
    if not hasattr(transformers, f"{kind}Config"):
        pytest.skip("this transformers has no ModernBERT decoder")
    marks = {"cls_token_id": 1, "sep_token_id": 2}
    config = getattr(transformers, f"{kind}Config")(**SHAPE, **marks)
    model = tl_vzero.load_model(randomise(getattr(transformers, f"{kind}ForCausalLM")(config), 1), dtype=torch.float64)
    scores = tl_vzero.value_zeroing(model, IDS)
    assert scores.metadata["routes"] == ["modules"] * 3
    assert_same(scores.values, maps(model, "hooks"), 1e-9)


@pytest.mark.parametrize("shape", [(16, 80), (8, 40)])
def test_matrices_that_make_no_mlp_are_none(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    model = tl_vzero.load_model(randomise(BertForMaskedLM(BertConfig(**SHAPE)), 1))
    view = blocks.weight_view
    monkeypatch.setattr(blocks, "weight_view", lambda of, name: torch.ones(shape) if name == "W_in" else view(of, name))
    weights = blocks.block_weights(model, 0, torch.float32)
    assert weights is not None
    assert weights.w_in is None and weights.w_out is None


def test_a_module_that_cannot_read_single_positions_is_of_no_form() -> None:
    def refuses(rows: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("this module wants whole sentences")

    rows = torch.ones(3, 4)
    modules = BlockModules(None, None, torch.nn.Identity(), None, refuses)
    assert module_form(modules, BlockRows(rows, rows, 5 * rows), 1e-6) is None
