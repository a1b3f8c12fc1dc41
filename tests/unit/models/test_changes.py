"""A loaded model and the Hugging Face model that it came from, after somebody has changed one of them."""

import copy
import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support import references
from support.architectures import ARCHITECTURES
from support.decoder_rows import ungrouped
from support.models import (
    bridge,
    hf_bert,
    hf_bert_headless,
    hf_gpt2,
    hf_llama,
    hf_neox,
    third_party_warnings_ignored,
    tokenizer,
)
from support.plain_hooks import plain_value_zeroing
from torch import Tensor, nn

import tl_vzero
from tl_vzero.errors import HeadlessModelError, ModelError, ProcessedWeightsWarning
from tl_vzero.models.changes import _sums

IDS = [2, 5, 9, 10, 3]


def raw(model: Any, **options: Any) -> Tensor:
    return tl_vzero.value_zeroing(model, torch.tensor(IDS), **options).values


def assert_right(model: Any, hf_model: Any) -> None:
    assert (raw(model) - references.value_zeroing(hf_model, IDS)).abs().max() < 5e-6


def assert_refused(model: Any, said: str) -> None:
    """By everything that reads the model, and with what to do."""
    with pytest.raises(ModelError, match=f"changed since: .*{said}.*load_model"):
        raw(model)
    with pytest.raises(ModelError, match="changed since"):
        tl_vzero.value_zeroing_hooks(model, positions=[1])
    with pytest.raises(ModelError, match="changed since"):
        tl_vzero.score(model, torch.tensor(IDS), "attention")


# --- adapters -------------------------------------------------------------------------------------------


def llama_with_lora() -> tuple[Any, Any]:
    """The adapted model, and the Hugging Face model inside it."""
    peft = pytest.importorskip("peft", reason="peft is not installed")
    parts = ["v_proj", "o_proj", "down_proj"]
    options = peft.LoraConfig(r=4, lora_alpha=16, target_modules=parts, init_lora_weights=False)
    with torch.random.fork_rng(), third_party_warnings_ignored():
        torch.manual_seed(3)
        adapted = peft.get_peft_model(hf_llama(), options).eval()
        adapted.add_adapter("other", options)
        adapted.set_adapter("default")
    return adapted, adapted.get_base_model()


ADAPTER_CHANGES = {
    "merged": lambda adapted: adapted.merge_adapter(),
    "disabled": lambda adapted: adapted.base_model.disable_adapter_layers(),
    "another one set": lambda adapted: adapted.set_adapter("other"),
    "deleted": lambda adapted: adapted.delete_adapter("other"),
    "merged and unloaded": lambda adapted: adapted.merge_and_unload(),
}


@pytest.mark.parametrize("change", ADAPTER_CHANGES.values(), ids=list(ADAPTER_CHANGES))
def test_an_adapter_that_changes_after_loading_is_noticed(change: Callable[[Any], object]) -> None:
    adapted, inside = llama_with_lora()
    model = tl_vzero.load_model(inside)
    assert (raw(model) - plain_value_zeroing(inside, IDS, blocks="model.layers", value="self_attn.v_proj")).max() < 5e-6
    with third_party_warnings_ignored():
        change(adapted)
    assert_refused(model, "")


def test_an_adapter_that_is_disabled_and_enabled_again_is_as_it_was() -> None:
    adapted, inside = llama_with_lora()
    model = tl_vzero.load_model(inside)
    before = raw(model)
    adapted.base_model.disable_adapter_layers()
    assert_refused(model, "disable_adapters of ")
    adapted.base_model.enable_adapter_layers()
    assert torch.equal(raw(model), before)


def test_a_model_that_was_loaded_with_its_adapter_merged_does_not_lose_it() -> None:
    adapted, inside = llama_with_lora()
    before = raw(tl_vzero.load_model(inside))
    adapted.merge_adapter()
    loaded_merged = tl_vzero.load_model(inside)
    assert (raw(loaded_merged) - before).abs().max() < 1e-5
    adapted.unmerge_adapter()
    assert_refused(loaded_merged, "merged_adapters")


@pytest.mark.parametrize("part", ["lora_A.default.weight", "input_layernorm.weight"])
def test_an_edit_that_a_copy_with_merged_adapters_does_not_see_is_noticed(part: str) -> None:
    """Training goes on in place; through `.data` torch counts no edit."""
    _, inside = llama_with_lora()
    model = tl_vzero.load_model(inside)
    raw(model)
    next(weight for name, weight in inside.named_parameters() if name.endswith(part)).data.mul_(1.01)
    assert_refused(model, "weights were edited")


def test_a_hook_on_all_modules_is_noticed() -> None:
    """TransformerLens computes norms by itself, where torch would call the hook."""
    hf_model = hf_gpt2()
    model = tl_vzero.load_model(hf_model)
    before = raw(model)
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, inputs, output: output.tanh() if isinstance(module, nn.LayerNorm) else None
    )
    try:
        assert_refused(model, "hooks on all modules")
    finally:
        handle.remove()
    assert torch.equal(raw(model), before)


def test_operations_may_be_counted() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    hf_model = hf_gpt2()
    model = tl_vzero.load_model(hf_model)
    before = raw(model)
    with FlopCounterMode(display=False) as counted:
        assert torch.equal(raw(model), before)
    assert counted.get_total_flops() > 0


# --- modules, hooks and weights of the caller's -----------------------------------------------------------


def replace_weight(hf_model: Any) -> None:
    layer = hf_model.bert.encoder.layer[1].attention.self
    layer.value.weight = nn.Parameter(2 * layer.value.weight.detach())


def replace_module(hf_model: Any) -> None:
    hf_model.bert.encoder.layer[1].output.dense = nn.Linear(32, 16)


def add_hook(hf_model: Any) -> None:
    hf_model.bert.encoder.layer[0].register_forward_hook(lambda module, inputs, output: None)


def add_pre_hook(hf_model: Any) -> None:
    hf_model.bert.encoder.layer[0].intermediate.register_forward_pre_hook(lambda module, inputs: None)


def patch_forward(hf_model: Any) -> None:
    hf_model.bert.encoder.layer[0].attention.output.forward = lambda hidden, inputs: inputs


def assign_weights(hf_model: Any) -> None:
    hf_model.load_state_dict({name: 2 * weight for name, weight in hf_model.state_dict().items()}, assign=True)


def parametrise(hf_model: Any) -> None:
    nn.utils.parametrizations.weight_norm(hf_model.bert.encoder.layer[0].output.dense)


def change_epsilon(hf_model: Any) -> None:
    hf_model.bert.encoder.layer[0].output.LayerNorm.eps = 0.5


def swap_layers(hf_model: Any) -> None:
    layers = hf_model.bert.encoder.layer
    layers[0], layers[1] = layers[1], layers[0]


def reassign_data(hf_model: Any) -> None:
    weight = hf_model.bert.encoder.layer[0].output.dense.weight
    weight.data = 2 * weight.data


CHANGES: dict[str, tuple[Callable[[Any], object], str]] = {
    "a weight replaced": (replace_weight, "weights of bert.encoder.layer.1.attention.self.value"),
    "a module replaced": (replace_module, "modules"),
    "layers in another order": (swap_layers, "modules"),
    "a hook": (add_hook, "hooks .* bert.encoder.layer.0"),
    "a pre-hook": (add_pre_hook, "hooks .* bert.encoder.layer.0.intermediate"),
    "a forward patched": (patch_forward, "forward of bert.encoder.layer.0.attention.output"),
    "weights assigned": (assign_weights, "weights"),
    "a parametrisation": (parametrise, "modules"),
    "an epsilon": (change_epsilon, "eps of bert.encoder.layer.0.output.LayerNorm"),
    "cast": (lambda hf_model: hf_model.double(), "weights"),
    "cast to half": (lambda hf_model: hf_model.half(), "weights"),
    "embeddings resized": (lambda hf_model: hf_model.resize_token_embeddings(70), "modules|weights"),
}


@pytest.mark.parametrize(("change", "said"), CHANGES.values(), ids=list(CHANGES))
def test_a_change_of_the_callers_model_is_noticed(change: Callable[[Any], object], said: str) -> None:
    hf_model = hf_bert()
    model = tl_vzero.load_model(hf_model)
    raw(model)
    change(hf_model)
    assert_refused(model, said)


def test_a_class_that_is_patched_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    hf_model = hf_bert()
    model = tl_vzero.load_model(hf_model)
    before = raw(model)
    kind = type(hf_model.bert.encoder.layer[0].output)
    with monkeypatch.context() as patched:
        patched.setattr(kind, "forward", lambda self, hidden, inputs: inputs)
        assert_refused(model, "class")
    assert torch.equal(raw(model), before)


def test_a_hook_that_is_removed_is_noticed() -> None:
    """The loaded model has a copy of it, and keeps that."""
    hf_model = hf_bert()
    handle = hf_model.bert.encoder.layer[0].register_forward_hook(lambda module, inputs, output: None)
    model = tl_vzero.load_model(hf_model)
    raw(model)
    handle.remove()
    assert_refused(model, "hooks .* bert.encoder.layer.0")


def train_a_step(hf_model: Any) -> None:
    hf_model.train()
    optimizer = torch.optim.SGD(hf_model.parameters(), lr=0.1)
    ids = torch.tensor([IDS])
    hf_model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    hf_model.eval()


def hook_for_a_while(hf_model: Any) -> None:
    handle = hf_model.bert.encoder.layer[0].register_forward_hook(lambda module, inputs, output: None)
    hf_model(input_ids=torch.tensor([IDS]))
    handle.remove()


def edit_in_place(hf_model: Any) -> None:
    with torch.no_grad():
        for weight in hf_model.bert.parameters():
            weight.data.mul_(1.1)


def load_other_weights(hf_model: Any) -> None:
    hf_model.load_state_dict(hf_bert(seed=7).state_dict())


FOLLOWED: dict[str, Callable[[Any], object]] = {
    "train mode": lambda hf_model: hf_model.train(),
    "frozen": lambda hf_model: hf_model.requires_grad_(False),
    "gradient checkpointing": lambda hf_model: hf_model.gradient_checkpointing_enable(),
    "trained": train_a_step,
    "edited in place": edit_in_place,
    "other weights loaded": load_other_weights,
    "a weight's data replaced": reassign_data,
    "a hook that came and went": hook_for_a_while,
    "tied again": lambda hf_model: hf_model.tie_weights(),
    "moved to where it is": lambda hf_model: hf_model.to("cpu", torch.float32),
}


@pytest.mark.parametrize("make", [hf_bert, hf_llama])
@pytest.mark.parametrize("change", FOLLOWED.values(), ids=list(FOLLOWED))
def test_what_does_not_matter_or_is_shared_is_followed(
    change: Callable[[Any], object], make: Callable[[], Any]
) -> None:
    hf_model = make()
    hf_model.tie_weights()
    if make is hf_llama and change in (edit_in_place, load_other_weights, hook_for_a_while, reassign_data):
        pytest.skip("named for BERT")
    model = tl_vzero.load_model(hf_model)
    raw(model)
    with third_party_warnings_ignored():
        change(hf_model)
    assert_right(model, hf_model.eval())


def test_a_caller_that_is_gone_leaves_the_model() -> None:
    hf_model = hf_bert()
    unwrapped = copy.deepcopy(hf_model)
    model = tl_vzero.load_model(hf_model)
    del hf_model
    gc.collect()
    assert_right(model, unwrapped)


@pytest.mark.parametrize("change", [replace_weight, add_hook, edit_in_place, lambda hf_model: hf_model.half()])
def test_a_copy_in_another_dtype_stays_what_it_was(change: Callable[[Any], object]) -> None:
    hf_model = hf_bert()
    model = tl_vzero.load_model(hf_model, dtype=torch.float64)
    before = raw(model)
    change(hf_model)
    assert torch.equal(raw(model), before)


@pytest.mark.parametrize("name", ["GPT-NeoX, Pythia", "CodeGen", "MPT", "BLOOM", "Falcon", "Falcon, new decoder"])
def test_a_fused_weight_that_is_split_and_then_edited_is_noticed(name: str) -> None:
    """TransformerLens runs on a copy of it, so that the edit is in one model alone."""
    row = ARCHITECTURES[name]
    hf_model = copy.deepcopy(row.tiny())
    model = tl_vzero.load_model(hf_model)
    before = raw(model)
    fused = hf_model.get_submodule(f"{row.blocks}.1.{row.value}").weight
    with torch.no_grad():
        clean = fused.clone()
        fused.data.mul_(1.5)
        for _ in range(2):
            with pytest.raises(ModelError, match=r"split into queries.*load_model"):
                raw(model)
        assert (raw(tl_vzero.load_model(hf_model)) - before).abs().max() > 1e-4
        fused.copy_(clean)
    assert torch.equal(raw(model), before)


def test_data_that_are_replaced_under_a_view_are_noticed() -> None:
    """Of GPT-2's fused weight the loaded model has three views, which follow an edit in place alone."""
    hf_model = hf_gpt2()
    model = tl_vzero.load_model(hf_model)
    weight = hf_model.transformer.h[1].attn.c_attn.weight
    with torch.no_grad():
        weight.mul_(1.5)
    assert_right(model, hf_model)
    weight.data = 2 * weight.data
    assert_refused(model, "data of its weights")


def test_a_split_weight_that_is_edited_in_the_loaded_model_counts() -> None:
    model = tl_vzero.load_model(hf_neox())
    before = raw(model)
    with torch.no_grad():
        model.blocks[1].attn.v.weight.mul_(1.5)
    assert not torch.equal(raw(model), before)


# --- the loaded model itself ------------------------------------------------------------------------------


def gpt2_with_biases() -> Any:
    return hf_gpt2(seed=2)


def test_weights_that_are_processed_after_the_first_use_are_warned_of_once() -> None:
    model = tl_vzero.load_model(gpt2_with_biases())
    raw(model)
    model.enable_compatibility_mode(disable_warnings=True)
    with pytest.warns(ProcessedWeightsWarning, match="value biases") as caught:
        raw(model)
    assert [warning.filename for warning in caught] == [__file__]
    raw(model)  # a second warning would be an error here
    with torch.no_grad():
        model.blocks[0].mlp.out.weight.mul_(1.1)
    with pytest.warns(ProcessedWeightsWarning):
        raw(model)


def test_weights_that_are_processed_are_warned_of_by_other_methods_too() -> None:
    model = tl_vzero.load_model(gpt2_with_biases())
    tl_vzero.score(model, torch.tensor(IDS), "attention")
    model.enable_compatibility_mode(disable_warnings=True)
    with pytest.warns(ProcessedWeightsWarning):
        tl_vzero.score(model, torch.tensor(IDS), "attention")


def deafen(model: Any, layer: int) -> None:
    """Let a layer's values pass by what hooks make of them, at all positions but the first."""
    point = model.blocks[layer].attn.hook_v
    kind = type(point)

    def call(self: Any, values: Tensor) -> Tensor:
        hooked: Tensor = kind.__call__(self, values)
        return torch.cat([hooked[:, :1], values[:, 1:]], dim=1)

    point.__class__ = type("Deaf", (kind,), {"__call__": call})


@pytest.mark.parametrize("used", [False, True], ids=["at first use", "after use"])
def test_an_attention_that_hears_hooks_at_the_first_position_alone_is_refused(used: bool) -> None:
    model = bridge(hf_bert())
    if used:
        raw(model)
    deafen(model, 1)
    with pytest.raises(ModelError, match=r"blocks\.1\.attn\.hook_v.*ignores its value hook"):
        raw(model)


def test_a_class_that_is_patched_changes_the_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    hf_model = hf_bert()
    model = bridge(hf_model)
    before = raw(model)
    kind = type(hf_model.bert.encoder.layer[0].intermediate.intermediate_act_fn)
    monkeypatch.setattr(kind, "forward", lambda self, x: torch.tanh(x))
    assert not torch.equal(raw(model), before)
    assert (raw(model) - raw(model, engine="hooks")).abs().max() < 5e-6
    assert_right(model, hf_model)


def test_a_hook_of_torchs_on_a_hook_point_acts() -> None:
    """Set past TransformerLens, which does not list it."""
    model = bridge(hf_bert())
    before = raw(model)
    handle = model.blocks[1].attn.hook_v.register_forward_hook(lambda point, inputs, output: 2 * output)
    scores = tl_vzero.value_zeroing(model, torch.tensor(IDS))
    assert scores.metadata["engine"] == "hooks" and (scores.values - before).abs().max() > 1e-4
    handle.remove()
    assert torch.equal(raw(model), before)


def test_a_deep_copy_knows_what_the_model_knows() -> None:
    model = tl_vzero.load_model(hf_bert_headless(), tokenizer())
    copied = copy.deepcopy(model)
    with pytest.raises(HeadlessModelError):
        tl_vzero.zero_ablation(copied, "the [MASK] dog")
    one, other = (tl_vzero.value_zeroing(scored_model, "the dog") for scored_model in (model, copied))
    assert one.metadata["model"] == other.metadata["model"] and one.dest_tokens == other.dest_tokens
    with torch.no_grad():
        next(copied.parameters()).mul_(2)
    assert torch.equal(tl_vzero.value_zeroing(model, "the dog").values, one.values)


# --- the same function ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_an_attention_that_computes_something_else_is_refused(dtype: torch.dtype) -> None:
    """Of Falcon's ALiBi, Hugging Face's fused attention computes something else than its eager one."""
    hf_model = ungrouped("Falcon", bias=True, alibi=True)().to(dtype)
    assert hf_model.config._attn_implementation == "sdpa"
    with pytest.raises(ModelError, match=r"self_attention.*attn_implementation"):
        tl_vzero.load_model(hf_model)


def test_it_is_read_in_the_attention_that_is_the_same() -> None:
    hf_model = ungrouped("Falcon", bias=True, alibi=True, attn_implementation="eager")()
    row = ARCHITECTURES["Falcon"]
    expected = plain_value_zeroing(hf_model, IDS, blocks=row.blocks, value=row.value, columns=row.columns)
    assert (raw(tl_vzero.load_model(hf_model)) - expected).abs().max() < 5e-6


# --- the fingerprint of weights on another device -------------------------------------------------------

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (5,), (3, 4), (2, 3, 4)], ids=str)
def test_sums_on_another_device_show_one_edit(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    tensor = (torch.randn(shape) > 0).to(dtype)
    edited = tensor.clone()
    edited.view(-1)[-1] = edited.view(-1)[-1] == 0
    assert torch.equal(_sums(tensor), _sums(tensor.clone()))
    assert not torch.equal(_sums(tensor), _sums(edited))


@pytest.mark.parametrize("order", [[1, 0, 2], [2, 1, 0]])
@pytest.mark.parametrize("axis", [0, 1])
def test_sums_on_another_device_show_exchanged_rows_and_columns(order: list[int], axis: int) -> None:
    torch.manual_seed(0)
    tensor: Tensor = torch.randn(3, 3)
    assert not torch.equal(_sums(tensor), _sums(tensor.index_select(axis, torch.tensor(order))))


def test_sums_of_nothing() -> None:
    assert not _sums(torch.zeros(0, 4)).any()
