"""Every architecture of the table against plain hooks on its Hugging Face model, in float64."""

from functools import cache
from typing import Any

import pytest
import torch
from support.architecture_row import IDS, LINE
from support.architectures import ARCHITECTURES, ON_THIS_LINE, reference
from support.covered import attentions_of, errors_of, route_of, with_attention
from support.engines import ENGINES
from torch import Tensor

import tl_vzero
from tl_vzero import Scores
from tl_vzero.cli.listings import coverage
from tl_vzero.errors import InputError

# Two value heads for four query heads, or one for all, in a projection of their own or fused with the queries.
GROUPED = ["Llama", "Gemma 2", "Phi 3", "Falcon", "GPT-BigCode"]

each_engine = pytest.mark.parametrize("engine", ENGINES)


@cache
def model_of(name: str, attention: str) -> Any:
    return with_attention(ARCHITECTURES[name], attention)


def scored(name: str, attention: str = "eager", **options: Any) -> Scores:
    scores = tl_vzero.value_zeroing(model_of(name, attention), torch.tensor(IDS), **options)
    assert isinstance(scores, Scores)
    return scores


def measured(name: str) -> Any:
    lines = coverage()["architectures"].get(name, {"lines": {}})["lines"]
    assert LINE in lines, f'run `python tests/bench/measure_coverage.py "{name}"` in an environment of each line'
    return lines[LINE]


def assert_right(name: str, scores: Scores, expected: Tensor) -> None:
    """Within what the coverage table says, which is at most what must be reached."""
    assert scores.values.shape == expected.shape
    bound = measured(name)
    normalised, raw = errors_of(scores, expected)
    assert normalised <= bound["normalised"] <= 5e-6
    assert raw <= bound["raw"] <= 1e-3
    # Experts compute a token in another order of rows: in float64 what is left alone moves in the last digits.
    assert not scores.values[expected < 1e-25].any()


@each_engine
@pytest.mark.parametrize("name", ON_THIS_LINE)
def test_it_gives_the_maps_of_plain_hooks(name: str, engine: str) -> None:
    scores = scored(name, engine=engine)
    assert_right(name, scores, reference(name))
    if engine == "auto":
        assert route_of(scores) == measured(name)["route"]


@pytest.mark.parametrize("name", [name for name in ON_THIS_LINE if "sdpa" in attentions_of(ARCHITECTURES[name])])
def test_a_bridge_with_fused_attention_gives_them_too(name: str) -> None:
    """By hooks too: the closed form is taken only where it agrees with them."""
    scores = scored(name, "sdpa")
    assert_right(name, scores, reference(name))
    assert route_of(scores) in measured(name)["route"].split(" or ")


@pytest.mark.parametrize("name", ["GPT-2", *GROUPED])
def test_its_heads_are_value_heads(name: str) -> None:
    """A head of a map is one that has values of its own, and the labels say which kind that is."""
    query_heads, value_heads = ARCHITECTURES[name].heads()
    scores = scored(name, layers=[0], per_head=True)
    assert scores.heads == tuple(range(value_heads)) and scores.values.shape[1] == value_heads
    assert scores.metadata["value_heads"] == ("query" if value_heads == query_heads else "key-value")


@each_engine
@pytest.mark.parametrize("name", GROUPED)
def test_one_of_its_grouped_heads(name: str, engine: str) -> None:
    row = ARCHITECTURES[name]
    last = row.heads()[1] - 1
    expected = row.reference(heads=[last])
    for scores in (scored(name, engine=engine, heads=[last]), scored(name, engine=engine, per_head=True)):
        head_map = scores.values if scores.heads is None else scores.values[:, last]
        assert ((head_map.double() - expected).abs() / expected)[expected >= 1e-7].max() <= 1e-3


@pytest.mark.parametrize("name", GROUPED)
def test_a_query_head_is_no_head_of_a_grouped_value(name: str) -> None:
    query_heads, value_heads = ARCHITECTURES[name].heads()
    said = f"heads holds {query_heads - 1}.*{query_heads} query heads share .* of which the model has {value_heads}"
    with pytest.raises(InputError, match=said):
        scored(name, heads=[query_heads - 1])
    with pytest.raises(InputError, match=said):
        tl_vzero.value_zeroing_hooks(model_of(name, "eager"), positions=0, heads=[query_heads - 1])
