"""The closed form against the hook engine, and when it must not be used."""

import copy
from typing import Any

import pytest
import torch
from support import golden, references
from support.closed import (
    ARCHITECTURES,
    IDS,
    SHAPE,
    assert_same,
    hooked_transformer,
    maps,
    model_in_float64,
    shared_model,
    tolerance_of,
)
from support.models import MOST_ROUTES, build, hf_bert, loaded, randomise
from torch import Tensor, nn
from transformer_lens.utilities.activation_functions import SUPPORTED_ACTIVATIONS
from transformers import BertConfig, BertForMaskedLM
from transformers.activations import ACT2FN

import tl_vzero
from tl_vzero.errors import InputError, ModelError
from tl_vzero.models import sites
from tl_vzero.models.blocks import ACTIVATIONS
from tl_vzero.zeroing import closed_form

OPTIONS: list[dict[str, Any]] = [
    {},
    {"per_head": True},
    {"heads": [1]},
    {"heads": [1, 0], "per_head": True},
    {"sources": [7, 2, 3], "destinations": [9, 4]},
    {"destinations": [5], "layers": [-1, 0]},
    {"distance": "euclidean"},
    {"distance": lambda clean, changed: (clean - changed).abs().amax(-1)},
]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options) or "all")
def test_equals_the_hook_engine_on_every_recognised_architecture(architecture: str, options: dict[str, Any]) -> None:
    model = model_in_float64(architecture)
    hooked = maps(model, "hooks", **options)
    assert_same(maps(model, "closed_form", **options), hooked, tolerance_of(architecture))


@pytest.mark.parametrize(("route", "architecture"), MOST_ROUTES)
def test_equals_the_hook_engine_in_every_model_class(route: str, architecture: str) -> None:
    _, model = build(route, architecture)
    hooked = maps(model, "hooks")
    assert ((maps(model, "closed_form") - hooked).abs() <= 1e-4 * hooked + 1e-7).all()


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama", "gemma2"])
def test_the_routes_give_one_answer(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_in_float64(architecture)
    answers = []
    for route in ("direct", "factored", "folded"):
        monkeypatch.setattr(closed_form, "_cheapest_route", lambda *_, route=route: route)
        scores = tl_vzero.value_zeroing(model, IDS, engine="closed_form")
        assert scores.metadata["routes"] == [route] * 3
        answers.append(scores.values)
    for other in answers[1:]:
        assert torch.allclose(answers[0], other, rtol=1e-9, atol=0)


def test_the_cheapest_route_changes_with_the_work() -> None:
    model = tl_vzero.load_model(
        randomise(BertForMaskedLM(BertConfig(**{**SHAPE, "hidden_size": 32, "num_attention_heads": 8})), 0)
    )
    one = tl_vzero.value_zeroing(model, IDS, destinations=[0], engine="closed_form")
    whole = tl_vzero.value_zeroing(model, IDS.repeat(5), engine="closed_form")
    assert one.metadata["routes"] == ["direct"] * 3
    assert set(whole.metadata["routes"]) < {"factored", "folded"}


@pytest.mark.parametrize("activation", [name for name in ACTIVATIONS if name in ACT2FN])
def test_every_activation_of_hugging_face_that_has_a_formula(activation: str) -> None:
    hf_model = randomise(BertForMaskedLM(BertConfig(**SHAPE, hidden_act=activation)), 2)
    model = tl_vzero.load_model(hf_model, dtype=torch.float64)
    scores = tl_vzero.value_zeroing(model, IDS, engine="closed_form")
    assert "modules" not in scores.metadata["routes"]
    assert_same(scores.values.double(), maps(model, "hooks"), 1e-10)


@pytest.mark.parametrize("gated", [False, True], ids=["plain", "gated"])
@pytest.mark.parametrize("activation", SUPPORTED_ACTIVATIONS)
def test_every_activation_that_transformer_lens_names(activation: str, gated: bool) -> None:
    model = hooked_transformer(act_fn=activation, gated_mlp=gated)
    assert_same(maps(model, "closed_form"), maps(model, "hooks"), 1e-9)


@pytest.mark.parametrize("memory_mb", [0.001, 0.05, 1.0])
@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_the_memory_budget_changes_nothing(architecture: str, memory_mb: float) -> None:
    model = model_in_float64(architecture)
    expected = maps(model, "closed_form")
    assert torch.allclose(maps(model, "closed_form", memory_mb=memory_mb), expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("memory_mb", [0.0, -1.0, float("inf"), float("nan")])
def test_a_memory_budget_that_is_no_size(memory_mb: Any) -> None:
    with pytest.raises(tl_vzero.TLVZeroError, match="memory_mb"):
        tl_vzero.value_zeroing(loaded(hf_bert()), IDS, memory_mb=memory_mb)


def test_a_batch_of_sentences_of_several_lengths_equals_the_sentences_alone() -> None:
    model = model_in_float64("bert")
    lengths = [3, 7, 1, 7, 11]
    ids = torch.nn.utils.rnn.pad_sequence([IDS[:n] for n in lengths], batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones(n) for n in lengths], batch_first=True)
    together = tl_vzero.value_zeroing(model, ids, attention_mask=mask, engine="closed_form")
    for length, scores in zip(lengths, together, strict=True):
        assert torch.allclose(scores.values, maps(model, "closed_form", IDS[:length]), rtol=1e-9, atol=1e-18)


NOTHING_INSIDE: dict[str, tuple[str, ...]] = {}
ANOTHER_INSIDE: list[dict[str, tuple[str, ...]]] = [
    {"mlp_output": ("hook_attn_out",)},
    {"mlp_output": ("hook_resid_mid", "mlp.hook_in")},
    {"attention_output": ("hook_mlp_out",)},
    {"attention_output": ("hook_in", "hook_resid_pre"), "mlp_output": ("hook_in", "hook_resid_pre")},
    {"mlp_pre": ("mlp.hook_post", "mlp.out.hook_in")},
    {"mlp_pre": ("mlp.hook_pre_linear",), "mlp_pre_linear": ("mlp.hook_pre",)},
]


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama", "gemma2", "neox"])
@pytest.mark.parametrize("inside", [NOTHING_INSIDE, *ANOTHER_INSIDE], ids=lambda inside: "-".join(inside) or "none")
def test_what_hooks_inside_a_block_show_is_not_believed_unchecked(
    architecture: str, inside: dict[str, tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = shared_model(architecture)
    expected = maps(model, "hooks")
    inside_names = sites._INSIDE
    shown = sites.sites_of(model).inside
    monkeypatch.setattr(sites, "_INSIDE", inside_names | inside if inside else {})
    assert sites.sites_of(model).inside != shown
    assert_same(maps(model, "closed_form"), expected, tolerance_of(architecture))


def test_final_norm() -> None:
    model = model_in_float64("gpt2")
    assert_same(maps(model, "closed_form", final_norm=True), maps(model, "hooks", final_norm=True), 1e-11)


def faint(hf_model: Any, factor: float) -> Any:
    """A model whose heads write little, so that distances are small."""
    for block in references.blocks_of(hf_model):
        block.attention.output.dense.weight.data *= factor
    return hf_model


@pytest.mark.parametrize("factor", [1.0, 1e-2, 1e-3])
def test_float32_keeps_the_digits_of_small_distances(factor: float) -> None:
    hf_model = faint(hf_bert(width=64, heads=4), factor)
    expected = references.value_zeroing(hf_model.double(), IDS)
    closed = maps(tl_vzero.load_model(hf_model.float()), "closed_form")
    relative = (closed - expected).abs() / expected
    assert (relative[expected >= 1e-8] <= 1e-4).all()
    assert (relative[(expected >= 1e-10) & (expected < 1e-8)] <= 1e-3).all()
    assert (references.row_normalized(closed) - references.row_normalized(expected)).abs().max() <= 5e-6


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 3e-2), (torch.float16, 4e-3)])
def test_half_precision_models_are_computed_in_float32(dtype: torch.dtype, tolerance: float) -> None:
    hf_model = hf_bert(width=64, heads=4).to(dtype)
    scores = tl_vzero.value_zeroing(tl_vzero.load_model(hf_model), IDS)
    assert scores.metadata["engine"] == "closed_form"
    expected = references.row_normalized(references.value_zeroing(hf_model.double(), IDS))
    assert (scores.normalized().values.double() - expected).abs().max() <= tolerance


def doubled(activation: Tensor, hook: Any) -> Tensor:
    return 2 * activation


@pytest.mark.parametrize("site", ["blocks.1.attn.hook_z", "blocks.1.attn.hook_v", "blocks.0.hook_out"])
def test_a_hook_of_the_users_sends_the_call_to_the_hook_engine(site: str) -> None:
    model = loaded(hf_bert())
    clean = maps(model, "closed_form")
    with model.hooks(fwd_hooks=[(site, doubled)]):
        steered = tl_vzero.value_zeroing(model, IDS)
        assert steered.metadata["engine"] == "hooks"
        assert "hooks act" in steered.metadata["engine_reason"]
        assert torch.equal(steered.values.double(), maps(model, "hooks"))
        with pytest.raises(ModelError, match="hooks act"):
            tl_vzero.value_zeroing(model, IDS, engine="closed_form")
    assert torch.equal(maps(model, "closed_form"), clean)


class Doubled(nn.Module):
    """A module whose output is twice another's."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *inputs: Any, **keywords: Any) -> Any:
        return 2 * self.inner(*inputs, **keywords)


@pytest.mark.parametrize("seen_before", [False, True])
def test_a_replaced_module_falls_back_and_says_so(seen_before: bool) -> None:
    model = loaded(hf_bert())
    if seen_before:
        maps(model, "closed_form")
    layer = model.original_model.bert.encoder.layer[1]
    layer.intermediate.intermediate_act_fn = Doubled(nn.GELU())
    scores = tl_vzero.value_zeroing(model, IDS)
    assert scores.metadata["engine"] == "hooks"
    assert "block 1" in scores.metadata["engine_reason"]
    assert torch.equal(scores.values.double(), maps(model, "hooks"))
    with pytest.raises(ModelError, match="block 1"):
        tl_vzero.value_zeroing(model, IDS, engine="closed_form")


def test_a_failure_of_its_own_algebra_falls_back_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    model = loaded(hf_bert())
    monkeypatch.setattr("tl_vzero.zeroing.closed_form.recognise", fails)
    scores = tl_vzero.value_zeroing(model, IDS)
    assert scores.metadata["engine"] == "hooks"
    assert "block 0: RuntimeError: mat1 and mat2" in scores.metadata["engine_reason"]
    assert torch.equal(scores.values.double(), maps(model, "hooks"))
    with pytest.raises(ModelError, match="block 0"):
        tl_vzero.value_zeroing(model, IDS, engine="closed_form")


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama"])
def test_edited_weights_are_seen_at_once(architecture: str) -> None:
    model = model_in_float64(architecture)
    before = maps(model, "closed_form")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.data.mul_(1.1)
    after = maps(model, "closed_form")
    assert not torch.allclose(before, after)
    assert_same(after, maps(model, "hooks"), 1e-6)


def test_a_copy_of_the_model() -> None:
    model = loaded(hf_bert())
    maps(model, "closed_form")
    assert torch.equal(maps(copy.deepcopy(model), "closed_form"), maps(model, "closed_form"))


def test_an_unknown_engine_is_named() -> None:
    with pytest.raises(InputError, match="did you mean 'closed_form'"):
        tl_vzero.value_zeroing(loaded(hf_bert()), IDS, engine="closed-form")


@pytest.mark.parametrize("index", range(4))
def test_minilm_golden(index: int) -> None:
    expected = golden.read(golden.files("value_zeroing_minilm_s*.npz")[index])
    model = tl_vzero.load_model("all-MiniLM-L6-v2")
    scores = tl_vzero.value_zeroing(model, golden.tensor(expected["input_ids"]).long(), engine="closed_form")
    difference = scores.normalized().values.double() - golden.tensor(expected["normalized"])
    assert difference.abs().max() <= 5e-6
