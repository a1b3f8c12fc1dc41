"""What is cached of a model between calls: never stale, never too much, and gone with the model."""

import gc
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from support.models import HF_BUILDERS, hf_bert, hf_gpt2, hooked_encoder, hooked_transformer
from torch import Tensor, nn

import tl_vzero
from tl_vzero.zeroing import chunks, closed_form, forms
from tl_vzero.zeroing.chunks import workspace_of
from tl_vzero.zeroing.forms import WeightCache, weight_cache_of

IDS = torch.tensor([5, 17, 42, 8, 8, 31, 3, 59])
LAYER = 1
MEGABYTE = 2**20
PLENTY = 256.0 * MEGABYTE


@pytest.fixture
def folded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every layer takes the folded route, whatever it costs."""
    monkeypatch.setattr(closed_form, "_cheapest_route", lambda *_: "folded")


def model_in_float64(architecture: str) -> Any:
    return tl_vzero.load_model(HF_BUILDERS[architecture](1), dtype=torch.float64)


def maps(model: Any, engine: str = "closed_form", **options: Any) -> Tensor:
    scores = tl_vzero.value_zeroing(model, IDS, engine=engine, **options)
    assert scores.metadata["engine"] == engine
    if engine == "closed_form":
        assert set(scores.metadata["routes"]) <= {"folded"}
    return scores.values.double()


def folds_of(model: nn.Module) -> list[Tensor]:
    return list(forms._CACHES[model].folds.values())


def assert_same(closed: Tensor, hooked: Tensor, tolerance: float) -> None:
    assert torch.equal(closed == 0, hooked == 0)
    assert ((closed - hooked).abs() <= tolerance * hooked.abs().amax()).all()


def in_place(weight: Tensor) -> None:
    with torch.no_grad():
        weight[(0,) * weight.ndim] += 0.75


def through_data(weight: Tensor) -> None:
    weight.data[(0,) * weight.ndim] += 0.75


def weight_of(model: Any, part: str, name: str) -> Tensor:
    return getattr(getattr(model.blocks[LAYER], part), name)


def assert_an_edit_is_seen(model: Any, part: str, name: str, edit: Callable[[Tensor], None], tolerance: float) -> None:
    first, second = maps(model), maps(model)
    assert torch.equal(first, second) and len(folds_of(model)) >= 3
    edit(weight_of(model, part, name))
    edited = maps(model, "hooks")
    assert (edited - first)[LAYER].abs().amax() > 100 * tolerance * first.abs().amax()
    assert_same(maps(model), edited, tolerance)


EDITED = [
    (architecture, *weight)
    for architecture in ("bert", "gpt2", "llama")
    for weight in [
        ("attn", "W_O"),
        ("mlp", "W_in"),
        ("mlp", "b_in"),
        ("ln1", "w"),
        ("ln1", "b"),
        ("ln2", "w"),
        ("ln2", "b"),
    ]
    if architecture != "llama" or weight[1] not in ("b", "b_in")
]


@pytest.mark.usefixtures("folded")
@pytest.mark.parametrize("edit", [in_place, through_data])
@pytest.mark.parametrize(("architecture", "part", "name"), EDITED)
def test_one_edited_weight_is_never_answered_from_old_folds(
    architecture: str, part: str, name: str, edit: Callable[[Tensor], None]
) -> None:
    # Hugging Face's RMSNorm computes in float32 inside a float64 model.
    tolerance = 1e-6 if architecture == "llama" else 1e-11
    assert_an_edit_is_seen(model_in_float64(architecture), part, name, edit, tolerance)


@pytest.mark.usefixtures("folded")
@pytest.mark.parametrize("edit", [in_place, through_data])
@pytest.mark.parametrize(("part", "name"), [("attn", "W_O"), ("mlp", "W_in"), ("ln2", "w")])
@pytest.mark.parametrize("route", ["HookedEncoder", "HookedTransformer"])
def test_the_same_in_the_older_classes(route: str, part: str, name: str, edit: Callable[[Tensor], None]) -> None:
    model = hooked_encoder(hf_bert(1)) if route == "HookedEncoder" else hooked_transformer(hf_gpt2(1))
    assert_an_edit_is_seen(model.to(torch.float64), part, name, edit, 1e-11)


@pytest.mark.usefixtures("folded")
@pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama"])
def test_every_weight_of_one_layer_replaced_by_another_layers(architecture: str) -> None:
    model = model_in_float64(architecture)
    maps(model)
    for part, name in [("attn", "W_O"), ("mlp", "W_in")]:
        weight_of(model, part, name).data.copy_(getattr(getattr(model.blocks[0], part), name).data)
    assert_same(maps(model), maps(model, "hooks"), 1e-6 if architecture == "llama" else 1e-11)


@pytest.mark.usefixtures("folded")
@pytest.mark.parametrize("width", [16, 272], ids=["narrow", "wide"])
@pytest.mark.parametrize("builder", [hf_bert, hf_gpt2])
def test_a_model_moved_to_float64_is_computed_from_its_new_weights(builder: Callable[..., Any], width: int) -> None:
    model = tl_vzero.load_model(builder(1, width=width, layers=1))
    assert torch.equal(maps(model), maps(model))
    assert {fold.dtype for fold in folds_of(model)} == {torch.float64 if width == 16 else torch.float32}
    model.to(torch.float64)
    assert_same(maps(model), maps(model, "hooks"), 1e-11)
    assert {fold.dtype for fold in folds_of(model)} == {torch.float64}


@pytest.mark.usefixtures("folded")
@pytest.mark.parametrize("memory_mb", [0.001, 0.009, 0.017, 1.0])
def test_cached_folds_stay_within_their_share_of_the_memory(memory_mb: float) -> None:
    model = model_in_float64("bert")
    maps(model, memory_mb=memory_mb)
    held = sum(fold.nbytes for fold in folds_of(model))
    assert held <= memory_mb * MEGABYTE * closed_form.FOLDS_SHARE
    assert (held > 0) == (memory_mb > 0.008)


@pytest.mark.usefixtures("folded")
def test_less_memory_on_a_later_call_drops_what_is_too_much_and_changes_nothing() -> None:
    model = model_in_float64("llama")
    expected = maps(model)
    before = len(folds_of(model))
    for memory_mb in (0.02, 0.005):
        assert torch.allclose(maps(model, memory_mb=memory_mb), expected, rtol=1e-10, atol=0)
        assert sum(fold.nbytes for fold in folds_of(model)) <= memory_mb * MEGABYTE * closed_form.FOLDS_SHARE
        assert len(folds_of(model)) < before
    assert torch.allclose(maps(model), expected, rtol=1e-10, atol=0)
    assert len(folds_of(model)) == before


def test_a_fold_is_made_once_while_there_is_room_and_each_time_where_there_is_none() -> None:
    computed: list[int] = []

    def compute() -> Tensor:
        computed.append(1)
        return torch.ones(2, 3, 5)

    matrix = torch.zeros(4, 5)
    for max_bytes, times in ((0.0, 3), (1000.0, 1)):
        computed.clear()
        cache = WeightCache("hash")
        cache.limit(max_bytes)
        for _ in range(3):
            assert torch.equal(cache.fold("block", 0, matrix, compute), torch.ones(2, 3, 5))
        assert len(computed) == times and cache.has_fold("block", matrix) == (times == 1)


def test_blocks_products_and_dtypes_have_folds_of_their_own() -> None:
    cache = WeightCache("hash")
    cache.limit(PLENTY)
    matrix = torch.zeros(4, 5)
    wheres = [("a", 0, matrix), ("b", 0, matrix), ("a", 1, matrix), ("a", 0, matrix.double())]
    for _ in range(2):
        for index, (block, product, like) in enumerate(wheres):
            fold = cache.fold(block, product, like, lambda: torch.full((1, 1, 5), float(index)))  # noqa: B023
            assert fold[0, 0, 0] == index


def test_a_new_hash_starts_anew_and_the_same_one_does_not() -> None:
    model = nn.Linear(2, 2)
    first = weight_cache_of(model, "one", PLENTY)
    assert weight_cache_of(model, "one", PLENTY) is first
    assert weight_cache_of(model, "two", PLENTY) is not first


@pytest.mark.usefixtures("folded")
def test_what_is_cached_dies_with_its_model() -> None:
    gc.collect()
    before = len(forms._CACHES), len(chunks._SPARE)
    model = model_in_float64("bert")
    maps(model)
    left = [weakref.ref(thing) for thing in (model, forms._CACHES[model], *folds_of(model), *chunks._SPARE[model])]
    assert len(left) == 6
    del model
    gc.collect()
    assert [ref() for ref in left] == [None] * 6
    assert (len(forms._CACHES), len(chunks._SPARE)) == before


LIKE = torch.zeros(1, 8)


def test_a_workspace_in_use_is_not_handed_out_twice() -> None:
    model = nn.Linear(2, 2)
    for _ in range(2):
        with workspace_of(model, PLENTY) as outer, workspace_of(model, PLENTY) as inner:
            assert outer is not inner
            outer.rows("delta", 4, LIKE).fill_(1.0)
            inner.rows("delta", 4, LIKE).fill_(2.0)
            assert (outer.rows("delta", 4, LIKE) == 1.0).all()


def test_a_workspace_is_used_again_once_it_is_free() -> None:
    model = nn.Linear(2, 2)
    with workspace_of(model, PLENTY) as first:
        first.rows("delta", 4, LIKE)
    with workspace_of(model, PLENTY) as second:
        assert second is first
    with workspace_of(nn.Linear(2, 2), PLENTY) as of_another_model:
        assert of_another_model is not first


def test_a_workspace_that_a_failed_call_left_is_used_again() -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="fails"), workspace_of(model, PLENTY) as first:
        raise ValueError("fails")
    with workspace_of(model, PLENTY) as second:
        assert second is first


def test_a_workspace_larger_than_allowed_is_not_used_again() -> None:
    model = nn.Linear(2, 2)
    with workspace_of(model, PLENTY) as large:
        large.rows("delta", 1000, LIKE)
    with workspace_of(model, large.nbytes - 1.0) as small:
        assert small is not large and small.nbytes == 0
    with workspace_of(model, PLENTY) as later:
        assert later is not large


@pytest.mark.usefixtures("folded")
def test_a_call_for_another_model_from_inside_a_call_changes_neither() -> None:
    outer, inner = model_in_float64("gpt2"), model_in_float64("bert")
    expected_outer, expected_inner = maps(outer, distance="euclidean"), maps(inner)
    inner_maps: list[Tensor] = []

    def distance(clean: Tensor, changed: Tensor) -> Tensor:
        inner_maps.append(maps(inner))
        return (clean - changed).square().sum(-1).sqrt()

    assert torch.allclose(maps(outer, distance=distance), expected_outer, rtol=1e-10, atol=0)
    assert inner_maps and all(torch.allclose(values, expected_inner, rtol=1e-10, atol=0) for values in inner_maps)


def test_two_threads_with_two_models_get_what_each_alone_gets() -> None:
    models = [model_in_float64("bert"), model_in_float64("gpt2")]
    alone = [maps_on_any_route(model) for model in models]
    again = threading.Barrier(2)

    def score(model: Any) -> list[Tensor]:
        again.wait(timeout=60)
        return [maps_on_any_route(model) for _ in range(8)]

    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(score, models))
    for expected, repeated in zip(alone, together, strict=True):
        assert all(torch.allclose(values, expected, rtol=1e-10, atol=0) for values in repeated)


def maps_on_any_route(model: Any) -> Tensor:
    scores = tl_vzero.value_zeroing(model, IDS, engine="closed_form", memory_mb=0.1)
    return scores.values
