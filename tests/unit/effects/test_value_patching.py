"""Value patching: against one run for each place, and against TransformerLens's own tables; what surrounds them."""

from typing import Any

import pytest
import torch
from support.effects import CORRUPTED, TARGET, TEXT, double_model, ids_of_text, patched_one_by_one
from support.models import MOST_ROUTES, logits_of
from support.state import left_as_found
from torch import Tensor

import tl_vzero
from tl_vzero.errors import InputError
from tl_vzero.models.contracts import value_heads
from tl_vzero.models.run import eager_attention

CLEAN_IDS, CORRUPTED_IDS = ids_of_text(TEXT), ids_of_text(CORRUPTED)
LAYERS = range(3)
PAIR = (16, 17)
each_route = pytest.mark.parametrize(("route", "architecture"), MOST_ROUTES)


def difference(logits: Tensor) -> Tensor:
    return logits[0, TARGET, PAIR[0]] - logits[0, TARGET, PAIR[1]]


def total(logits: Tensor) -> Tensor:
    return logits[0, 1:].logsumexp(-1).sum()


def patched(model: Any, **options: Any) -> Any:
    return tl_vzero.value_patching(model, TEXT, CORRUPTED, **({"target": TARGET} | options))


def tolerance(architecture: str) -> dict[str, float]:
    """Hugging Face computes Llama's norms in float32, also in a float64 model."""
    return {"rtol": 1e-5, "atol": 1e-5} if architecture == "llama" else {"rtol": 1e-9, "atol": 1e-12}


@each_route
def test_each_value_position_as_in_a_run_of_its_own(route: str, architecture: str) -> None:
    model = double_model(route, architecture)
    effect = patched(model, target_ids=PAIR)
    expected = patched_one_by_one(model, CLEAN_IDS, CORRUPTED_IDS, difference, LAYERS).squeeze(1)
    torch.testing.assert_close(effect.values, expected, **tolerance(architecture))
    assert effect.values.abs().max() > 1e-3
    for baseline, ids in ((effect.clean, CLEAN_IDS), (effect.corrupted, CORRUPTED_IDS)):
        assert baseline == pytest.approx(difference(logits_of(model, ids.reshape(1, -1))).item(), rel=1e-6)


@each_route
def test_each_head_as_in_a_run_of_its_own(route: str, architecture: str) -> None:
    model = double_model(route, architecture)
    heads = range(value_heads(model))
    effect = patched(model, metric=total, per_head=True)
    assert effect.heads == tuple(heads)
    assert effect.head_kind == ("key-value" if architecture == "llama" else "query")
    expected = patched_one_by_one(model, CLEAN_IDS, CORRUPTED_IDS, total, LAYERS, heads)
    torch.testing.assert_close(effect.values, expected, **tolerance(architecture))


@each_route
def test_as_transformer_lens_itself(route: str, architecture: str) -> None:
    from transformer_lens import patching

    model = double_model(route, architecture)
    with torch.no_grad():
        _, cache = model.run_with_cache(CLEAN_IDS.reshape(1, -1))
        theirs = patching.get_act_patch_attn_head_v_by_pos(model, CORRUPTED_IDS.reshape(1, -1), cache, difference)
        whole = patching.generic_activation_patch(
            model,
            CORRUPTED_IDS.reshape(1, -1),
            cache,
            difference,
            patching.layer_pos_patch_setter,
            "v",
            index_axis_names=("layer", "pos"),
        )
    per_head, by_position = patched(model, target_ids=PAIR, per_head=True), patched(model, target_ids=PAIR)
    # Theirs are [layer, position, head], without the baseline taken off, in float32.
    torch.testing.assert_close(per_head.values.float(), theirs.transpose(1, 2) - per_head.corrupted, atol=1e-5, rtol=0)
    torch.testing.assert_close(by_position.values.float(), whole - by_position.corrupted, atol=1e-5, rtol=0)


@each_route
def test_a_place_where_nothing_differs_recovers_nothing(route: str, architecture: str) -> None:
    """In the first block the values of equal tokens are equal."""
    values = patched(double_model(route, architecture), target_ids=PAIR).values[0]
    same = CLEAN_IDS == CORRUPTED_IDS
    assert values[same].abs().max() < 1e-12 < values[~same & (torch.arange(len(same)) < TARGET)].abs().min()


def test_recovered_is_the_share_of_the_way_to_the_clean_metric() -> None:
    effect = patched(double_model("load_model", "bert"), target_ids=PAIR)
    torch.testing.assert_close(effect.recovered * (effect.clean - effect.corrupted), effect.values)


def test_equal_baselines_have_no_way_between_them() -> None:
    def constant(logits: Tensor) -> Tensor:
        return logits.sum() * 0

    effect = patched(double_model("load_model", "bert"), metric=constant)
    with pytest.raises(InputError, match="tells them apart"):
        effect.recovered  # noqa: B018


def test_labels_are_of_both_sentences() -> None:
    effect = patched(double_model("load_model", "bert"), layers=[-1], sources=[1, -2])
    assert (effect.layers, effect.src_positions) == ((2,), (1, len(CLEAN_IDS) - 2))
    assert effect.src_tokens == ("the", ".") and effect.corrupted_tokens == ("a", ".")
    assert (effect.method, effect.target, effect.target_token) == ("value_patching", TARGET, "[MASK]")
    best = logits_of(double_model("load_model", "bert"), CLEAN_IDS.reshape(1, -1))[0, TARGET].argmax()
    assert effect.metadata["target_ids"] == [int(best)]


@pytest.mark.parametrize("per_head", [False, True])
def test_chosen_layers_and_sources_are_parts_of_the_whole(per_head: bool) -> None:
    model = double_model("load_model", "llama")
    whole, part = (
        patched(model, target_ids=PAIR, per_head=per_head, **options)
        for options in ({}, {"layers": iter([2, 0]), "sources": iter([3, 1])})
    )
    torch.testing.assert_close(part.values, whole.values[[2, 0]][..., [3, 1]])


@each_route
def test_padded_rows_are_as_the_sentences_alone(route: str, architecture: str) -> None:
    model = double_model(route, architecture)
    padding = torch.zeros(2, dtype=torch.long)
    ones = torch.ones_like(CLEAN_IDS)
    padded = tl_vzero.value_patching(
        model,
        torch.cat([CLEAN_IDS, padding]).reshape(1, -1),
        torch.cat([padding, padding, CORRUPTED_IDS]).reshape(1, -1),
        attention_mask=torch.cat([ones, padding]).reshape(1, -1),
        corrupted_attention_mask=torch.cat([padding, padding, ones]).reshape(1, -1),
        target=TARGET,
        target_ids=PAIR,
    )
    assert torch.equal(padded.values, patched(model, target_ids=PAIR).values)


def test_a_training_model_is_patched_without_dropout_and_stays_training() -> None:
    """TransformerLens 4.3 refuses a model in training mode."""
    from support.models import bridge, hf_bert

    model = bridge(hf_bert(dropout=0.3))
    expected = patched(model, target_ids=PAIR).values
    model.train()
    with left_as_found(model):
        assert torch.equal(patched(model, target_ids=PAIR).values, expected)


def test_hooks_of_the_user_act_and_stay() -> None:
    model = double_model("TransformerBridge", "gpt2")

    def halve(value: Tensor, hook: Any) -> Tensor:
        return value / 2

    model.add_hook("blocks.1.attn.hook_v", halve)
    try:
        with left_as_found(model):
            effect = patched(model, target_ids=PAIR)
        corrupted = difference(logits_of(model, CORRUPTED_IDS.reshape(1, -1))).item()
    finally:
        model.reset_hooks()
    assert effect.corrupted == pytest.approx(corrupted)
    assert effect.corrupted != patched(model, target_ids=PAIR).corrupted


def test_hooks_left_by_an_earlier_run_stay() -> None:
    """TransformerLens 3.9's own run_with_hooks would take them away."""
    model = double_model("TransformerBridge", "bert")

    def watch(value: Tensor, hook: Any) -> None:
        """Changes nothing."""

    model.run_with_hooks(CLEAN_IDS.reshape(1, -1), fwd_hooks=[("blocks.1.attn.hook_v", watch)], reset_hooks_end=False)
    try:
        with left_as_found(model):
            patched(model, layers=1)
    finally:
        model.reset_hooks()


def test_bars_are_shown_on_request_only(capfd: pytest.CaptureFixture[str]) -> None:
    from transformer_lens import patching

    model, theirs = double_model("load_model", "bert"), patching.tqdm
    patched(model)
    assert capfd.readouterr() == ("", "")
    patched(model, progress=True)
    assert "value patching" in capfd.readouterr().err
    assert patching.tqdm is theirs


@each_route
def test_attention_patterns_are_scores(route: str, architecture: str) -> None:
    """TransformerLens's own patterns need no more than the method `attention`."""
    model = double_model(route, architecture)
    scores = tl_vzero.score(model, TEXT, method="attention", per_head=True)
    assert isinstance(scores, tl_vzero.Scores)
    with torch.no_grad(), eager_attention(model):
        _, cache = model.run_with_cache(CLEAN_IDS.reshape(1, -1))
    for layer in LAYERS:
        pattern = cache[f"blocks.{layer}.attn.hook_pattern"][0]
        torch.testing.assert_close(scores.values[layer], pattern.to(scores.values.dtype))
