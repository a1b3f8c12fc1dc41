"""The user's own cache, hooks and weights, and the labels of the answer."""

import copy

import pytest
import torch
from support import references
from support.laws import N_LAYERS, assert_close, each_engine, each_route, narrow_model, padded, scores_of, wide_model
from support.models import (
    hf_bert,
    loaded,
    mask_argument,
)

import tl_vzero

# --- the user's own cache, hooks and runs ---------------------------------------------------------------


@each_route
def test_the_users_own_cache_gives_the_same(route: str, architecture: str) -> None:
    _, model = wide_model(route, architecture)
    ids = [2, 5, 9, 10, 3]
    _, clean = model.run_with_cache(torch.tensor([ids]))
    assert_close(scores_of(model, ids, cache=clean).values, scores_of(model, ids).values, 1e-12)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_a_cache_of_a_padded_batch_gives_the_same(architecture: str, side: str) -> None:
    _, model = wide_model("load_model", architecture)
    ids, mask = padded([[2, 5, 9, 10, 3], [2, 7, 3]], side)
    if architecture == "bert" and side == "left":
        pytest.skip("BERT numbers positions from the left, so a left-padded clean run is that of no sentence alone")
    _, clean = model.run_with_cache(ids, **mask_argument(model, mask))
    together = tl_vzero.value_zeroing(model, ids, attention_mask=mask, cache=clean)
    for scores, alone in zip(together, tl_vzero.value_zeroing(model, ids, attention_mask=mask), strict=True):
        assert_close(scores.values, alone.values, 1e-9)


@each_route
@pytest.mark.parametrize("where", [{}, {"layers": [1]}, {"layers": [0, -1]}, {"heads": [1]}], ids=str)
def test_hooks_in_a_running_model_equal_the_reference(
    route: str, architecture: str, where: dict[str, list[int]]
) -> None:
    hf_model, model = wide_model(route, architecture)
    ids, positions = [2, 5, 9, 10, 3], [1, 3]
    hooks = tl_vzero.value_zeroing_hooks(model, positions=positions, **where)
    with torch.no_grad():
        measured = model.run_with_hooks(torch.tensor([ids]), fwd_hooks=hooks)
    layers = [layer % N_LAYERS for layer in where["layers"]] if "layers" in where else None
    expected = references.logits_with_values_zeroed(hf_model, ids, positions, layers, where.get("heads"))
    assert_close(measured, expected, 1e-9 if architecture != "llama" else 1e-5)
    assert (measured - model(torch.tensor([ids]))).abs().max() > 1e-3


@each_route
def test_a_cache_of_a_hooked_run_shows_the_zeroed_values(route: str, architecture: str) -> None:
    _, model = narrow_model(route, architecture)
    tokens = torch.tensor([[2, 5, 9, 10, 3], [2, 6, 8, 12, 3]])
    _, clean = model.run_with_cache(tokens)
    with model.hooks(fwd_hooks=tl_vzero.value_zeroing_hooks(model, positions=[0, 3], layers=[1], heads=[1])):
        _, zeroed = model.run_with_cache(tokens)
    name = "blocks.{}.attn.hook_v"
    assert torch.equal(zeroed[name.format(0)], clean[name.format(0)])
    expected = clean[name.format(1)].clone()
    expected[:, [0, 3], 1] = 0
    assert torch.equal(zeroed[name.format(1)], expected)


@each_route
def test_hook_names_exist_in_the_model(route: str, architecture: str) -> None:
    _, model = narrow_model(route, architecture)
    names = [name for name, _ in tl_vzero.value_zeroing_hooks(model, positions=[1])]
    assert len(names) == N_LAYERS and set(names) <= set(model.hook_dict)


@each_engine
def test_the_users_own_hooks_act_in_the_scores(engine: str) -> None:
    """A steering vector on the values is the same model with another value bias."""
    hf_model = hf_bert().double()
    steering = torch.randn(2, 8, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    steered = copy.deepcopy(hf_model)
    with torch.no_grad():
        steered.bert.encoder.layer[1].attention.self.value.bias += steering.flatten()
    model, ids = loaded(hf_model), [2, 5, 9, 10, 3]
    with model.hooks(fwd_hooks=[("blocks.1.attn.hook_v", lambda value, hook: value + steering)]):
        measured = scores_of(model, ids, engine=engine)
    assert_close(measured.values, references.value_zeroing(steered, ids), 1e-9)
    assert (measured.values - scores_of(model, ids, engine=engine).values).abs().max() > 1e-6


# --- labels of the answer -------------------------------------------------------------------------------


@each_route
def test_labels_and_metadata(route: str, architecture: str) -> None:
    _, model = narrow_model(route, architecture)
    scores = scores_of(model, [2, 5, 9, 3])
    assert scores.method == "value_zeroing"
    assert scores.layers == (0, 1, 2)
    assert len(scores.dest_tokens) == len(scores.src_tokens) == 4
    text = str(dict(scores.metadata)).replace("-", "_")
    for expected in ("tl_vzero", "transformer_lens", "torch", "engine", "distance", "cosine", "sha256"):
        assert expected in text, expected


def test_the_weights_hash_tells_models_apart() -> None:
    ids = [2, 5, 3]
    same = [dict(scores_of(loaded(hf_bert(seed=1)), ids).metadata) for _ in range(2)]
    other = dict(scores_of(loaded(hf_bert(seed=2)), ids).metadata)
    (name,) = [key for key in other if "sha256" in key]
    assert same[0][name] == same[1][name] != other[name]


@pytest.mark.parametrize(
    "by",
    ["in_place", "data"],
)
def test_the_weights_hash_follows_an_edit_of_one_weight(by: str) -> None:
    model, ids = loaded(hf_bert()), [2, 5, 3]
    before = scores_of(model, ids).metadata["weights_sha256"]
    weight = dict(model.named_parameters())[
        next(name for name, parameter in model.named_parameters() if parameter.ndim == 2)
    ]
    with torch.no_grad():
        (weight.data if by == "data" else weight)[1, 1] += 0.5
    assert scores_of(model, ids).metadata["weights_sha256"] != before


def test_score_by_name_gives_the_same_as_value_zeroing() -> None:
    _, model = narrow_model("load_model", "bert")
    assert "value_zeroing" in tl_vzero.METHODS and "value_zeroing" in list(tl_vzero.METHODS)
    by_name = tl_vzero.score(model, torch.tensor([2, 5, 9, 3]), method="value_zeroing", layers=[1])
    assert torch.equal(by_name.values, scores_of(model, [2, 5, 9, 3], layers=[1]).values)
