"""What every Value Zeroing map keeps, in every model class and by both engines."""

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from support import references
from support.laws import (
    IDS,
    N_LAYERS,
    TOLERANCE,
    assert_close,
    build_hf,
    each_engine,
    each_route,
    few_examples,
    narrow_model,
    scores_of,
    wide_model,
)
from support.models import (
    EVERY_ROUTE,
    MOST_ROUTES,
    is_causal,
    loaded,
    tokenizer,
)
from torch import Tensor

import tl_vzero
from tl_vzero import TLVZeroError

# --- the definition -------------------------------------------------------------------------------------


@each_engine
@each_route
@few_examples()
@given(ids=IDS)
def test_equals_the_definition(route: str, architecture: str, engine: str, ids: list[int]) -> None:
    """Ids are taken as they are, the padding token's too."""
    hf_model, model = wide_model(route, architecture)
    expected = references.value_zeroing(hf_model, ids)
    scores = scores_of(model, ids, engine=engine)
    assert_close(scores.values, expected, TOLERANCE[architecture])
    assert_close(scores.normalized().values, references.row_normalized(expected.clamp(min=0)), TOLERANCE[architecture])


@pytest.mark.parametrize(("route", "architecture"), EVERY_ROUTE)
@few_examples(3)
@given(ids=IDS)
def test_equals_the_definition_in_float32(route: str, architecture: str, ids: list[int]) -> None:
    hf_model, model = narrow_model(route, architecture)
    expected = references.value_zeroing(hf_model, ids)
    assert_close(scores_of(model, ids).values, expected, 5e-6)


@each_route
@few_examples(3)
@given(ids=IDS)
def test_rollout_is_the_product_of_the_normalised_maps(route: str, architecture: str, ids: list[int]) -> None:
    _, model = wide_model(route, architecture)
    scores = scores_of(model, ids)
    assert_close(scores.rollout().values, references.rolled_out(scores.normalized().values), 1e-12)


@pytest.mark.parametrize(
    ("route", "architecture"), [route for route in MOST_ROUTES if route.values[1] in ("gpt2", "llama", "neox")]
)
def test_final_norm_changes_the_last_layer_only(route: str, architecture: str) -> None:
    hf_model, model = wide_model(route, architecture)
    ids = [2, 8, 7, 30, 5]
    expected = references.value_zeroing(hf_model, ids, final_norm=True)
    measured = scores_of(model, ids, final_norm=True)
    assert_close(measured.values, expected, TOLERANCE[architecture])
    assert_close(measured.values[:-1], scores_of(model, ids).values[:-1], 1e-12)
    assert (measured.values[-1] - scores_of(model, ids).values[-1]).abs().max() > 1e-4


# --- rows -----------------------------------------------------------------------------------------------


@each_engine
@each_route
@few_examples()
@given(ids=IDS)
def test_rows_sum_to_one_or_are_listed_as_empty(route: str, architecture: str, engine: str, ids: list[int]) -> None:
    _, model = narrow_model(route, architecture)
    scores = scores_of(model, ids, engine=engine)
    assert torch.isfinite(scores.values).all() and (scores.values >= 0).all()
    normalized = scores.normalized()
    for layer in range(N_LAYERS):
        for dest in range(len(ids)):
            total = normalized.values[layer, dest].sum().item()
            assert total == pytest.approx(0 if (layer, dest) in scores.empty_rows else 1, abs=1e-6)
    assert scores.empty_rows == ()


@each_engine
@pytest.mark.parametrize(("route", "architecture"), [route for route in MOST_ROUTES if is_causal(route.values[1])])
@few_examples()
@given(ids=IDS)
def test_a_causal_map_is_exactly_zero_above_the_diagonal(
    route: str, architecture: str, engine: str, ids: list[int]
) -> None:
    _, model = narrow_model(route, architecture)
    scores = scores_of(model, ids, engine=engine)
    one_hot = torch.zeros(N_LAYERS, len(ids), dtype=scores.values.dtype)
    one_hot[:, 0] = 1
    for maps in (scores, scores.normalized(), scores.rollout()):
        assert torch.equal(maps.values, maps.values.tril())
    assert torch.equal(scores.normalized().values[:, 0], one_hot)
    assert torch.equal(scores.rollout().values[:, 0], one_hot)


@each_route
def test_a_value_that_is_zero_already_makes_a_zero_column_and_listed_rows(route: str, architecture: str) -> None:
    """The user's own hook ablates position 0 in layer 1: zeroing it again moves nothing there."""
    _, model = wide_model(route, architecture)
    hooks = tl_vzero.value_zeroing_hooks(model, positions=[0], layers=[1])
    with model.hooks(fwd_hooks=hooks):
        scores = scores_of(model, [2, 8, 7, 5])
    assert torch.equal(scores.values[1, :, 0], torch.zeros(4, dtype=scores.values.dtype))
    assert (scores.values[[0, 2], :, 0].sum(-1) > 0).all()
    assert scores.empty_rows == (((1, 0),) if is_causal(architecture) else ())
    assert not scores.normalized().values.isnan().any()


# --- zeroing nothing ------------------------------------------------------------------------------------


@each_route
@few_examples(3)
@given(ids=IDS)
def test_hooks_for_no_position_leave_the_logits_bit_identical(route: str, architecture: str, ids: list[int]) -> None:
    _, model = narrow_model(route, architecture)
    tokens = torch.tensor([ids])
    with torch.no_grad():
        clean = model(tokens)
        zeroed = model.run_with_hooks(tokens, fwd_hooks=tl_vzero.value_zeroing_hooks(model, positions=[]))
    assert torch.equal(clean, zeroed)


@each_engine
@each_route
def test_zeroing_no_head_gives_only_empty_rows_or_is_refused(route: str, architecture: str, engine: str) -> None:
    _, model = narrow_model(route, architecture)
    try:
        scores = scores_of(model, [2, 5, 3], heads=[], engine=engine)
    except TLVZeroError:
        return
    assert torch.equal(scores.values, torch.zeros_like(scores.values))
    assert len(scores.empty_rows) == N_LAYERS * 3


# --- layers are independent -----------------------------------------------------------------------------


@each_engine
@each_route
def test_chosen_layers_equal_those_of_the_full_map(route: str, architecture: str, engine: str) -> None:
    _, model = wide_model(route, architecture)
    ids = [2, 5, 9, 10, 3]
    whole = scores_of(model, ids, engine=engine)
    for layers, expected in [([1], (1,)), ([0, 2], (0, 2)), ([-1], (2,)), ([-3, -2], (0, 1))]:
        chosen = scores_of(model, ids, layers=layers, engine=engine)
        assert chosen.layers == expected
        assert_close(chosen.values, whole.values[list(expected)], 1e-12)


def test_layers_keep_the_order_of_their_labels() -> None:
    _, model = wide_model("load_model", "bert")
    ids = [2, 5, 9, 10, 3]
    whole = scores_of(model, ids)
    chosen = scores_of(model, ids, layers=[2, 0])
    assert sorted(chosen.layers) == [0, 2]
    assert_close(chosen.values, whole.values[list(chosen.layers)], 1e-12)


@each_engine
@pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama", "neox"])
def test_an_edited_later_layer_leaves_earlier_maps_as_they_were(architecture: str, engine: str) -> None:
    hf_model = build_hf(architecture).double()
    edited = copy.deepcopy(hf_model)
    with torch.no_grad():
        for weight in references.blocks_of(edited)[2].parameters():
            weight.mul_(1.7)
    ids = [2, 5, 9, 10, 3]
    before = scores_of(loaded(hf_model), ids, engine=engine).values
    after = scores_of(loaded(edited), ids, engine=engine).values
    assert_close(after[:2], before[:2], 1e-12)
    assert (after[2] - before[2]).abs().max() > 1e-6


# --- distances ------------------------------------------------------------------------------------------


def manhattan(clean: Tensor, changed: Tensor) -> Tensor:
    return (clean - changed).abs().sum(-1)


@each_engine
@each_route
@pytest.mark.parametrize(
    ("distance", "reference"),
    [
        pytest.param("cosine", references.cosine_distance, id="cosine"),
        pytest.param("euclidean", references.euclidean_distance, id="euclidean"),
        pytest.param(manhattan, manhattan, id="callable"),
    ],
)
def test_distances(route: str, architecture: str, engine: str, distance: Any, reference: Any) -> None:
    hf_model, model = wide_model(route, architecture)
    ids = [2, 5, 9, 10, 3]
    expected = references.value_zeroing(hf_model, ids, distance=reference)
    allowed = TOLERANCE[architecture] * max(1.0, expected.max().item())
    assert_close(scores_of(model, ids, distance=distance, engine=engine).values, expected, allowed)


# --- number types ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama", "neox"])
def test_half_precision_gives_finite_and_plausible_maps(architecture: str, dtype: torch.dtype) -> None:
    hf_model, ids = build_hf(architecture), [2, 5, 9, 10, 12, 3]
    model = tl_vzero.load_model(hf_model, tokenizer(), dtype=dtype)
    assert {weight.dtype for weight in model.parameters()} == {dtype}
    scores = scores_of(model, ids)
    assert torch.isfinite(scores.values).all() and (scores.values >= 0).all()
    normalized = scores.normalized().values.double()
    assert (normalized.sum(-1) - 1).abs().max() < 1e-2
    expected = references.row_normalized(references.value_zeroing(hf_model, ids).clamp(min=0))
    assert torch.corrcoef(torch.stack([normalized.flatten(), expected.flatten()]))[0, 1] > 0.9


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "neox"])
def test_float32_is_near_float64_in_the_smallest_entries(architecture: str) -> None:
    """1 - cos in float32 would lose them: relative to the row, 5e-6 is what was promised."""
    hf_model, ids = build_hf(architecture, seed=3), [2, 5, 9, 10, 12, 3]
    expected = references.row_normalized(references.value_zeroing(hf_model, ids).clamp(min=0))
    assert_close(scores_of(loaded(hf_model), ids).normalized().values, expected, 5e-6)
