"""Attribution patching: it is the gradient, and zero ablation where that is linear; its error table."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.effects import TARGET, TEXT, double_model, ids_of_text, logits_with
from support.models import MOST_ROUTES, bridge, hf_bert, hf_gpt2, loaded
from support.state import left_as_found
from torch import Tensor

import tl_vzero
from tl_vzero.effects.ablation import attribution_error
from tl_vzero.errors import InputError
from tl_vzero.models.contracts import value_heads

IDS = ids_of_text(TEXT)
PAIR = (16, 17)
each_route = pytest.mark.parametrize(("route", "architecture"), MOST_ROUTES)


def difference(logits: Tensor) -> Tensor:
    return logits[0, TARGET, PAIR[0]] - logits[0, TARGET, PAIR[1]]


def slope(model: Any, layer: int, head: int, source: int, step: float) -> float:
    """d metric / d (a factor on one value), by finite differences."""

    def measured(factor: float) -> float:
        def change(value: Tensor) -> None:
            value[0, source, head] *= factor

        return difference(logits_with(model, IDS, change, layer)).item()

    return (measured(1 + step) - measured(1 - step)) / (2 * step)


@each_route
def test_it_is_minus_the_slope_in_each_values_size(route: str, architecture: str) -> None:
    model = double_model(route, architecture)
    estimate = tl_vzero.attribution_patching(model, TEXT, target=TARGET, target_ids=PAIR, per_head=True)
    heads = range(value_heads(model))
    assert estimate.heads == tuple(heads) and estimate.method == "attribution_patching"
    # Llama's norms are float32: a small step would drown in their rounding.
    step, tolerance = (1e-2, 2e-3) if architecture == "llama" else (1e-4, 1e-7)
    for layer in range(3):
        for head in heads:
            for source in (0, 2, TARGET, TARGET + 1):
                expected = -slope(model, layer, head, source, step)
                assert estimate.values[layer, head, source].item() == pytest.approx(expected, abs=tolerance)


@each_route
def test_heads_sum_to_the_whole(route: str, architecture: str) -> None:
    model = double_model(route, architecture)
    whole = tl_vzero.attribution_patching(model, TEXT, target=TARGET)
    torch.testing.assert_close(
        tl_vzero.attribution_patching(model, TEXT, target=TARGET, per_head=True).values.sum(1), whole.values
    )
    exact = tl_vzero.zero_ablation(model, TEXT, target=TARGET)
    assert (whole.metric, whole.target, whole.src_tokens) == (exact.metric, exact.target, exact.src_tokens)
    assert whole.clean == pytest.approx(exact.clean, rel=1e-6) and whole.values.shape == exact.values.shape


@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_of_a_baseline_it_is_the_slope_on_the_way_to_it(architecture: str) -> None:
    model = double_model("load_model", architecture)
    mean, step = tl_vzero.mean_values(model, ["a dog near marcus."]), 1e-2 if architecture == "llama" else 1e-4
    options: Any = {"target": TARGET, "target_ids": PAIR, "per_head": True}
    estimate = tl_vzero.attribution_patching(model, TEXT, baseline=mean, **options)

    def on_the_way(part: float) -> Tensor:
        clean = tl_vzero.values_of(model, TEXT).values
        there = clean + part * (mean.values[:, None] - clean)
        return tl_vzero.zero_ablation(model, TEXT, baseline=there, **options).values

    slopes = (on_the_way(step) - on_the_way(-step)) / (2 * step)
    tolerance = 2e-3 if architecture == "llama" else 1e-7
    torch.testing.assert_close(estimate.values, slopes, atol=tolerance, rtol=tolerance)
    own_mean = tl_vzero.attribution_patching(model, TEXT, baseline="mean", **options)
    assert own_mean.baseline == own_mean.metadata["options"]["baseline"] == "mean"
    with pytest.raises(InputError, match="baseline: 'mean' in the approximate and 'zero' in the exact"):
        attribution_error(own_mean, tl_vzero.zero_ablation(model, TEXT, **options))


@torch.no_grad()
def with_faint_values(make: Callable[[], Any], size: float) -> Any:
    """A model whose values are so small that the prediction is linear in them."""
    hf_model = make().double()
    for name, weight in hf_model.named_parameters():
        if ".value." in name:
            weight *= size
        elif "c_attn" in name:
            weight[..., -weight.shape[-1] // 3 :] *= size
    return loaded(hf_model)


@pytest.mark.parametrize("make", [hf_bert, hf_gpt2])
def test_of_faint_values_it_is_zero_ablation(make: Callable[[], Any]) -> None:
    errors = []
    for size in (1e-2, 1e-3, 1e-4):
        model = with_faint_values(make, size)
        exact = tl_vzero.zero_ablation(model, TEXT, target_ids=PAIR)
        error = attribution_error(tl_vzero.attribution_patching(model, TEXT, target_ids=PAIR), exact)
        assert exact.values.abs().max() > 0.01 * size
        errors.append(error["relative_rms"].max())
    assert errors[-1] < 1e-3
    # What is left is of second order: a tenth of the values leaves a tenth of the relative error.
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.2) and errors[1] / errors[2] == pytest.approx(10, rel=0.2)


@pytest.mark.parametrize("metric", ["logit", "probability"])
def test_metrics_by_name_are_those_of_a_function(metric: str) -> None:
    model = double_model("load_model", "bert")

    def same_metric(logits: Tensor) -> Tensor:
        row = logits[0, TARGET]
        return (row if metric == "logit" else row.softmax(-1))[PAIR[0]]

    named = tl_vzero.attribution_patching(model, TEXT, target_ids=PAIR[0], metric=metric)
    torch.testing.assert_close(tl_vzero.attribution_patching(model, TEXT, metric=same_metric).values, named.values)


@pytest.mark.parametrize("per_head", [False, True])
def test_chosen_layers_and_sources_are_parts_of_the_whole(per_head: bool) -> None:
    model = double_model("load_model", "llama")
    whole, part = (
        tl_vzero.attribution_patching(model, TEXT, per_head=per_head, **options)
        for options in ({}, {"layers": [2, 0], "sources": [3, -1]})
    )
    torch.testing.assert_close(part.values, whole.values[[2, 0]][..., [3, -1]])


def test_a_padded_row_is_as_the_sentence_alone() -> None:
    model = double_model("load_model", "bert")
    row, mask = torch.cat([IDS, torch.zeros(3, dtype=torch.long)]), torch.ones(1, len(IDS) + 3)
    mask[0, -3:] = 0
    padded = tl_vzero.attribution_patching(model, row.reshape(1, -1), attention_mask=mask)
    assert torch.equal(padded.values, tl_vzero.attribution_patching(model, IDS).values)


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_in_any_grad_mode_of_the_caller(mode: Callable[[], Any]) -> None:
    model = double_model("load_model", "gpt2")
    expected = tl_vzero.attribution_patching(model, TEXT, target=-2).values
    with mode():
        before = (torch.is_grad_enabled(), torch.is_inference_mode_enabled())
        assert torch.equal(tl_vzero.attribution_patching(model, TEXT, target=-2).values, expected)
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == before


def test_frozen_weights_and_dropout_change_nothing() -> None:
    model = bridge(hf_bert(dropout=0.3))
    expected = tl_vzero.attribution_patching(model, TEXT).values
    model.train()
    model.requires_grad_(False)
    with left_as_found(model):
        assert torch.equal(tl_vzero.attribution_patching(model, TEXT).values, expected)


@pytest.mark.parametrize(
    "metric",
    [lambda logits: logits.detach().sum(), lambda logits: logits[0, 0].argmax(), lambda logits: torch.tensor(1.0)],
    ids=["detached", "argmax", "constant"],
)
def test_a_metric_without_a_gradient_is_refused(metric: Any) -> None:
    model = double_model("load_model", "bert")
    with left_as_found(model), pytest.raises(InputError, match="differentiable"):
        tl_vzero.attribution_patching(model, TEXT, metric=metric)


def test_a_logit_that_no_value_reaches_has_no_effect() -> None:
    """A causal model's first position does not read the later ones."""
    values = tl_vzero.attribution_patching(double_model("load_model", "gpt2"), TEXT, target=0).values
    assert not values[:, 1:].any() and values[:, 0].any()


# --- the error table ------------------------------------------------------------------------------------


def test_the_error_table_by_hand() -> None:
    exact = replace(
        tl_vzero.zero_ablation(double_model("load_model", "bert"), TEXT, layers=[0, 1, 2], sources=[0, 1, 2, 3]),
        values=torch.tensor([[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 0.0], [1.0, -1.0, 1.0, -1.0]]),
    )
    rough = replace(exact, values=torch.tensor([[1.0, 2.0, 4.0, 3.0], [0.0, 0.0, 0.0, 0.0], [1.0, -1.0, 1.0, 2.0]]))
    table = attribution_error(rough, exact)
    assert table["layer"].tolist() == [0, 1, 2]
    assert table["max_abs"].tolist() == [1.0, 0.0, 3.0]
    assert table["relative_rms"].tolist() == pytest.approx([(2 / 30) ** 0.5, 0.0, 1.5])
    assert table["spearman"][0] == pytest.approx(0.8)
    assert table["spearman"].isna().tolist() == [False, True, False]


@pytest.mark.parametrize("options", [{"layers": 0}, {"target_ids": "are"}, {"per_head": True}, {"target": 1}])
def test_effects_of_different_things_are_not_compared(options: dict[str, Any]) -> None:
    model = double_model("load_model", "bert")
    exact = tl_vzero.zero_ablation(model, TEXT, target_ids="is")
    estimate = tl_vzero.attribution_patching(model, TEXT, **{"target_ids": "is", **options})
    with pytest.raises(InputError, match="same options"):
        attribution_error(estimate, exact)
