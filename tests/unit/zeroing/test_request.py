"""Chosen sources, destinations and heads are parts of the whole map."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import references
from support.laws import N_LAYERS, TOLERANCE, assert_close, each_engine, each_route, few_examples, scores_of, wide_model

from tl_vzero import TLVZeroError


@each_engine
@each_route
@few_examples(3)
@given(
    sources=st.lists(st.integers(0, 5), min_size=1, max_size=6, unique=True).map(sorted),
    destinations=st.lists(st.integers(0, 5), min_size=1, max_size=6, unique=True).map(sorted),
)
def test_chosen_sources_and_destinations_equal_slices_of_the_full_map(
    route: str, architecture: str, engine: str, sources: list[int], destinations: list[int]
) -> None:
    _, model = wide_model(route, architecture)
    ids = [2, 5, 9, 10, 12, 3]
    whole = scores_of(model, ids, engine=engine)
    part = scores_of(model, ids, sources=sources, destinations=destinations, engine=engine)
    assert_close(part.values, whole.values[:, destinations][:, :, sources], 1e-12 if architecture != "llama" else 1e-7)
    assert part.src_tokens == tuple(whole.src_tokens[source] for source in sources)
    assert part.dest_tokens == tuple(whole.dest_tokens[dest] for dest in destinations)
    assert part.partial == (len(sources) < 6 or len(destinations) < 6)
    sums = part.normalized().values.sum(-1)
    assert ((sums - 1).abs() < 1e-9).logical_or(sums == 0).all()


def test_only_sources_or_only_destinations_are_chosen() -> None:
    _, model = wide_model("load_model", "bert")
    ids = [2, 5, 9, 10, 12, 3]
    whole = scores_of(model, ids)
    assert_close(scores_of(model, ids, sources=[1, 4]).values, whole.values[:, :, [1, 4]], 1e-12)
    assert_close(scores_of(model, ids, destinations=[2]).values, whole.values[:, [2]], 1e-12)
    with pytest.raises(TLVZeroError):
        scores_of(model, ids, sources=[1, 4]).rollout()


COLLECTIONS = [range(1, 3), (1, 2), iter([1, 2])]


@pytest.mark.parametrize("chosen", COLLECTIONS, ids=lambda value: type(value).__name__)
def test_chosen_positions_of_any_collection(chosen: Any) -> None:
    _, model = wide_model("load_model", "bert")
    ids = [2, 5, 9, 3]
    assert_close(scores_of(model, ids, sources=chosen).values, scores_of(model, ids).values[:, :, 1:3], 1e-12)


def test_chosen_destinations_keep_the_order_of_their_labels() -> None:
    _, model = wide_model("load_model", "bert")
    ids = [2, 5, 9, 10, 3]
    part = scores_of(model, ids, destinations=[3, 1])
    assert sorted(part.dest_positions) == [1, 3]
    assert_close(part.values, scores_of(model, ids).values[:, list(part.dest_positions)], 1e-12)


def n_value_heads(architecture: str) -> int:
    return 2


@each_engine
@each_route
def test_all_heads_named_are_all_heads(route: str, architecture: str, engine: str) -> None:
    _, model = wide_model(route, architecture)
    ids = [2, 5, 9, 10, 3]
    named = scores_of(model, ids, heads=list(range(n_value_heads(architecture))), engine=engine)
    assert_close(named.values, scores_of(model, ids, engine=engine).values, 1e-12)


@each_engine
@each_route
def test_one_head_equals_the_definition(route: str, architecture: str, engine: str) -> None:
    """Under grouped-query attention a head is a value head, which several query heads share."""
    hf_model, model = wide_model(route, architecture)
    ids = [2, 5, 9, 10, 3]
    for head in range(n_value_heads(architecture)):
        expected = references.value_zeroing(hf_model, ids, heads=[head])
        assert_close(scores_of(model, ids, heads=[head], engine=engine).values, expected, TOLERANCE[architecture])


@each_engine
@each_route
def test_per_head_gives_one_map_for_each_head(route: str, architecture: str, engine: str) -> None:
    _, model = wide_model(route, architecture)
    ids = [2, 5, 9, 10, 3]
    scores = scores_of(model, ids, per_head=True, engine=engine)
    assert scores.values.shape == (N_LAYERS, n_value_heads(architecture), 5, 5)
    for head in range(n_value_heads(architecture)):
        alone = scores_of(model, ids, heads=[head], engine=engine)
        assert_close(scores.values[:, head], alone.values, 1e-12 if architecture != "llama" else 1e-7)
    normalized = scores.normalized().values.sum(-1)
    assert ((normalized - 1).abs() < 1e-9).all()


def test_per_head_of_chosen_heads_layers_and_positions() -> None:
    _, model = wide_model("load_model", "bert")
    ids = [2, 5, 9, 10, 3]
    whole = scores_of(model, ids, per_head=True)
    part = scores_of(model, ids, per_head=True, heads=[1], layers=[-1], sources=[0, 3], destinations=[2, 4])
    assert part.heads == (1,) and part.layers == (2,)
    assert_close(part.values, whole.values[2:, 1:, [2, 4]][..., [0, 3]], 1e-12)


def test_grouped_query_heads_are_named_in_the_answer() -> None:
    _, model = wide_model("load_model", "llama")
    text = str(dict(scores_of(model, [2, 5, 3], per_head=True).metadata)).lower()
    assert "kv" in text or "key-value" in text or "value head" in text
