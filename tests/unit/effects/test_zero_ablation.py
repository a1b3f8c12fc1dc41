"""Zero ablation: against one run for each value position, on every class; metrics, heads, choices, padding."""

from typing import Any

import pytest
import torch
from support.effects import TARGET, TEXT, double_hf_model, double_model, ids_of_text, zeroed_one_by_one
from support.models import HF_BUILDERS, MOST_ROUTES, is_causal, logits_of
from support.references import logits_with_values_zeroed
from support.state import left_as_found
from torch import Tensor

import tl_vzero
from tl_vzero.inputs.baselines import BaselineValues
from tl_vzero.models.contracts import value_heads

IDS = ids_of_text(TEXT)
LAYERS = range(3)
GOOD, BAD = 16, 17
EXACT = {"rtol": 1e-9, "atol": 1e-12}
each_route = pytest.mark.parametrize(("route", "architecture"), MOST_ROUTES)


def logit(logits: Tensor) -> Tensor:
    return logits[0, TARGET, GOOD]


def difference(logits: Tensor) -> Tensor:
    return logits[0, TARGET, GOOD] - logits[0, TARGET, BAD]


def probability(logits: Tensor) -> Tensor:
    return logits[0, TARGET].softmax(-1)[GOOD]


def spread(logits: Tensor) -> Tensor:
    """A metric of the user's, on more than the target."""
    return logits[0, 1:].logsumexp(-1).sum()


def tolerance(architecture: str) -> dict[str, float]:
    """Hugging Face computes Llama's norms in float32, also in a float64 model."""
    return {"rtol": 1e-5, "atol": 1e-5} if architecture == "llama" else EXACT


@each_route
def test_each_value_position_as_in_a_run_of_its_own(route: str, architecture: str) -> None:
    model = double_model(route, architecture)
    effect = tl_vzero.zero_ablation(model, TEXT, target=TARGET, target_ids=GOOD)
    expected = zeroed_one_by_one(model, IDS, logit, LAYERS).squeeze(1)
    torch.testing.assert_close(effect.values, expected, **tolerance(architecture))
    assert effect.clean == pytest.approx(float(logit(logits_of(model, IDS.reshape(1, -1)))), rel=1e-6)
    assert (effect.method, effect.heads, effect.head_kind) == ("zero_ablation", None, None)


@each_route
def test_each_head_as_in_a_run_of_its_own(route: str, architecture: str) -> None:
    model = double_model(route, architecture)
    effect = tl_vzero.zero_ablation(model, TEXT, target=TARGET, target_ids=(GOOD, BAD), per_head=True)
    heads = range(value_heads(model))
    assert effect.heads == tuple(heads)
    assert effect.head_kind == ("key-value" if architecture == "llama" else "query")
    expected = zeroed_one_by_one(model, IDS, difference, LAYERS, heads)
    torch.testing.assert_close(effect.values, expected, **tolerance(architecture))


@each_route
def test_a_baseline_as_in_a_run_of_its_own(route: str, architecture: str) -> None:
    model = double_model(route, architecture)
    shape, generator = tl_vzero.values_of(model, TEXT).values.shape, torch.Generator().manual_seed(0)
    by_position = torch.randn(shape, generator=generator, dtype=torch.float64)
    constant = by_position[:, 0]
    baselines: dict[str, tuple[Any, Any]] = {
        "mean": ("mean", lambda layer, values: values[1:-1].mean(dim=0).expand_as(values)),
        "tensor": (by_position, lambda layer, values: by_position[layer]),
        "constants": (BaselineValues(constant, "c", about(model)), lambda layer, _: constant[layer].expand(shape[1:])),
    }
    heads = range(value_heads(model))
    for name, (baseline, put_in) in baselines.items():
        options: Any = {"target": TARGET, "target_ids": (GOOD, BAD), "baseline": baseline}
        effect = tl_vzero.zero_ablation(model, TEXT, per_head=True, **options)
        expected = zeroed_one_by_one(model, IDS, difference, LAYERS, heads, put_in)
        torch.testing.assert_close(effect.values, expected, msg=name, **tolerance(architecture))
        whole = tl_vzero.zero_ablation(model, TEXT, layers=1, batch_size=3, **options)
        expected = zeroed_one_by_one(model, IDS, difference, [1], baseline=put_in).squeeze(1)
        torch.testing.assert_close(whole.values, expected, msg=name, **tolerance(architecture))


def about(model: Any) -> dict[str, Any]:
    return dict(tl_vzero.values_of(model, TEXT).metadata)


def test_a_baseline_of_the_clean_values_has_no_effect_and_zero_is_as_ever() -> None:
    model = double_model("load_model", "bert")
    values = tl_vzero.values_of(model, TEXT)
    effect = tl_vzero.zero_ablation(model, TEXT, baseline=values)
    torch.testing.assert_close(effect.values, torch.zeros_like(effect.values), atol=1e-12, rtol=0)
    assert effect.baseline.startswith(f"{values.name} (sha256 ") and "baseline values of '[CLS] the hat" in repr(effect)
    zero = tl_vzero.zero_ablation(model, TEXT)
    assert torch.equal(
        tl_vzero.zero_ablation(model, TEXT, baseline=torch.zeros(values.values.shape)).values, zero.values
    )
    assert zero.baseline == zero.metadata["options"]["baseline"] == "zero" and "baseline" not in repr(zero)


@pytest.mark.parametrize("architecture", HF_BUILDERS)
def test_as_in_the_hugging_face_model(architecture: str) -> None:
    model, hf_model = double_model("load_model", architecture), double_hf_model(architecture)
    effect = tl_vzero.zero_ablation(model, TEXT, target=TARGET, target_ids=GOOD)
    for layer in LAYERS:
        for source in (0, 3, TARGET):
            changed = logit(logits_with_values_zeroed(hf_model, IDS, [source], [layer])).item()
            assert effect.clean + effect.values[layer, source].item() == pytest.approx(changed, abs=1e-5)


@pytest.mark.parametrize(
    ("options", "metric"),
    [
        ({"target_ids": (GOOD, BAD)}, difference),
        ({"target_ids": GOOD, "metric": "probability"}, probability),
        ({"target_ids": (GOOD, BAD), "metric": "probability"}, probability),
        ({"metric": spread}, spread),
    ],
    ids=["difference", "probability", "probability_of_the_good", "function"],
)
def test_metrics(options: dict[str, Any], metric: Any) -> None:
    model = double_model("load_model", "bert")
    effect = tl_vzero.zero_ablation(model, TEXT, **options)
    torch.testing.assert_close(effect.values, zeroed_one_by_one(model, IDS, metric, LAYERS).squeeze(1), **EXACT)
    assert effect.clean == pytest.approx(float(metric(logits_of(model, IDS.reshape(1, -1)))), rel=1e-9)


def test_metrics_are_named() -> None:
    model = double_model("load_model", "bert")

    def name(**options: Any) -> tuple[str, Any]:
        effect = tl_vzero.zero_ablation(model, TEXT, layers=0, sources=0, **options)
        return effect.metric, effect.metadata["target_ids"]

    assert name(target_ids=("is", "are")) == ("logit of 'is' minus logit of 'are'", [GOOD, BAD])
    assert name(target_ids="is", metric="probability") == ("probability of 'is'", [GOOD])
    assert name(metric=spread) == ("metric spread", None)
    best = int(logits_of(model, IDS.reshape(1, -1))[0, TARGET].argmax())
    assert name()[1] == [best]


def test_the_likeliest_tokens_of_the_clean_run() -> None:
    model = double_model("load_model", "bert")
    effect = tl_vzero.zero_ablation(model, TEXT)
    chances = logits_of(model, IDS.reshape(1, -1))[0, TARGET].softmax(-1)
    assert effect.target_token == "[MASK]" and len(effect.predicted) == 5
    assert effect.predicted[0][1] == pytest.approx(chances.max().item())
    assert [chance for _, chance in effect.predicted] == sorted((c for _, c in effect.predicted), reverse=True)


@pytest.mark.parametrize("per_head", [False, True])
def test_chosen_layers_and_sources_are_parts_of_the_whole(per_head: bool) -> None:
    model = double_model("load_model", "gpt2")
    whole = tl_vzero.zero_ablation(model, TEXT, per_head=per_head)
    part = tl_vzero.zero_ablation(model, TEXT, per_head=per_head, layers=[-1, 0], sources=[4, 1, -4])
    assert part.layers == (2, 0) and part.src_positions == (4, 1, len(IDS) - 4)
    assert part.src_tokens == tuple(whole.src_tokens[i] for i in part.src_positions)
    expected = whole.values[[2, 0]][..., list(part.src_positions)]
    torch.testing.assert_close(part.values, expected, **EXACT)


@pytest.mark.parametrize("batch_size", [1, 4, 1000])
def test_the_batch_size_changes_nothing(batch_size: int) -> None:
    model = double_model("load_model", "bert")
    expected = tl_vzero.zero_ablation(model, TEXT).values
    torch.testing.assert_close(tl_vzero.zero_ablation(model, TEXT, batch_size=batch_size).values, expected, **EXACT)


@pytest.mark.parametrize("side", ["left", "right"])
@each_route
def test_a_padded_row_is_as_the_sentence_alone(route: str, architecture: str, side: str) -> None:
    model = double_model(route, architecture)
    padding, ones = torch.zeros(3, dtype=torch.long), torch.ones(len(IDS), dtype=torch.long)
    both = [(padding, padding), (IDS, ones)]
    row, mask = (
        torch.cat(parts).reshape(1, -1) for parts in zip(*(both if side == "left" else both[::-1]), strict=True)
    )
    padded = tl_vzero.zero_ablation(model, row, attention_mask=mask, target=TARGET)
    alone = tl_vzero.zero_ablation(model, IDS, target=TARGET)
    assert torch.equal(padded.values, alone.values) and padded.src_tokens == alone.src_tokens


@each_route
def test_the_future_has_no_effect_on_a_causal_model(route: str, architecture: str) -> None:
    values = tl_vzero.zero_ablation(double_model(route, architecture), TEXT, target=TARGET).values[:, TARGET + 1 :]
    assert bool((values.abs() < 1e-5).all()) == is_causal(architecture)


def test_a_float32_model_has_float32_effects() -> None:
    model = tl_vzero.load_model("agreement-mini")
    assert tl_vzero.zero_ablation(model, "the authors [MASK] today.").values.dtype == torch.float32


def test_hooks_of_the_user_act_and_stay() -> None:
    model = double_model("TransformerBridge", "bert")
    plain = tl_vzero.zero_ablation(model, TEXT, target_ids=GOOD)

    def halve(value: Tensor, hook: Any) -> Tensor:
        return value / 2

    model.add_hook("blocks.1.attn.hook_v", halve)
    try:
        with left_as_found(model):
            halved = tl_vzero.zero_ablation(model, TEXT, target_ids=GOOD)
            assert halved.clean == pytest.approx(float(logit(logits_of(model, IDS.reshape(1, -1)))))
    finally:
        model.reset_hooks()
    assert halved.clean != plain.clean
