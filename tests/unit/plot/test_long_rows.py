"""Rows over thousands of sources: every share is in a cell, and the largest are listed with the text around them."""

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.made_up import ODD_TOKENS, made_up_scores
from support.pictures import plain

from tl_vzero import Scores
from tl_vzero.errors import InputError, ScoresError
from tl_vzero.plot import long_row
from tl_vzero.plot.export import figure_of
from tl_vzero.plot.long_rows import UNDERLINED, is_long
from tl_vzero.plot.theme import DARK


def row_over(n_sources: int, *, layers: int = 3, **changes: Any) -> Scores:
    """The last position of a text, in which few sources are large."""
    tokens = tuple(ODD_TOKENS[i % len(ODD_TOKENS)] if i % 2 else f"word{i}" for i in range(n_sources))
    values = torch.rand(layers, 1, n_sources, generator=torch.Generator().manual_seed(n_sources)) ** 30
    places = tuple(range(n_sources))
    numbers = tuple(range(layers))
    row = Scores(values, "value_zeroing", numbers, tokens[-1:], tokens, places[-1:], places, layers, n_sources)
    return replace(row, **changes)


def shares(scores: Scores) -> torch.Tensor:
    rows = scores.values[:, 0].double()
    return rows / rows.sum(-1, keepdim=True)


@pytest.mark.parametrize(("n_sources", "width"), [(600, 1), (2000, 1), (2001, 3), (32_768, 33)])
def test_a_cell_is_a_source_or_the_sum_of_neighbours(n_sources: int, width: int) -> None:
    scores = row_over(n_sources)
    strip = plain(long_row(scores, -1))["data"][-1]
    assert len(strip["x"]) == -(-n_sources // width) <= 2000
    for layer, row in enumerate(shares(scores)):
        cells = [part.sum().item() for part in row.split(width)]
        assert strip["z"][layer] == pytest.approx(cells, rel=1e-3, abs=1e-9)
    name = long_row(scores, -1).layout.coloraxis.colorbar.title.text
    assert (f"sum of {width} positions" in name) == (width > 1)


@pytest.mark.parametrize("is_cut", [False, True])
def test_the_largest_shares_are_listed_in_order_with_what_is_left(is_cut: bool) -> None:
    whole = row_over(3000)
    whole = replace(whole, error=torch.full((3, 1, 3000), 0.002))
    figure = plain(long_row(whole.strongest(7) if is_cut else whole, -1, layer=1, k=5))
    texts, marks, bars, _ = figure["data"]
    row = shares(whole)[1]
    largest = row.sort(descending=True).indices[:5].tolist()
    assert bars["x"] == pytest.approx(row[largest].tolist())
    for text, position in zip(texts["text"], largest, strict=False):
        assert f" ± 0.2 %  at position {position}<br>" in text
        for near in range(max(0, position - 4), min(3000, position + 5)):
            if near % 2 == 0:
                assert f"word{near}" in text  # also of sources that were left out
    left = (1 - row[largest].sum()).item()
    assert f"all other sources</b>  {float(f'{100 * left:.2g}'):g} %" in texts["text"][5]
    assert ("was left out of these scores" in texts["text"][5]) == is_cut
    assert marks["y"] == ["1"] * 5 and len(texts["text"]) == 6
    steps = figure["layout"]["sliders"][0]["steps"]
    assert [step["label"] for step in steps] == ["0", "1", "2"]
    assert steps[1]["args"][0]["text"][0] == texts["text"] and steps[1]["args"][2] == [0, 1, 2]


def test_no_token_is_markup() -> None:
    texts = plain(long_row(row_over(len(ODD_TOKENS) * 2, layers=1), -1, k=60))["data"][0]["text"]
    assert len(texts) > 40
    for text in texts:
        assert "<script" not in text and "<img" not in text and "$" not in text
        assert re.sub("<br>|<b>|</b>|" + UNDERLINED.partition("{")[0], "", text).count("<") == 0


def test_a_picture_of_few_long_rows_is_of_one_of_them() -> None:
    scores = row_over(3000)
    assert len(figure_of(scores).data) == 4 and is_long(scores.strongest(3))
    assert not is_long(row_over(400)) and not is_long(scores - scores)
    assert len(figure_of(row_over(400)).data) == len(figure_of(scores - scores).data) == 1


def test_page_size_does_not_grow_with_the_text() -> None:
    figure = long_row(row_over(32_768, layers=30).strongest(50), -1, theme=DARK)
    assert len(figure.to_json()) < 500_000


def test_what_cannot_be_drawn_is_refused() -> None:
    scores = row_over(600)
    with pytest.raises(ScoresError, match="below it"):
        long_row(scores - scores, -1)
    with pytest.raises(ScoresError, match="per head"):
        long_row(replace(scores, values=scores.values.unsqueeze(1), heads=(0,)), -1)
    for options in ({"dest": 3}, {"dest": -1, "layer": 7}, {"dest": -1, "k": 0}):
        with pytest.raises(InputError):
            long_row(scores, **options)


def test_an_empty_row_lists_nothing() -> None:
    texts = plain(long_row(row_over(600, values=torch.zeros(3, 1, 600)), -1))["data"][0]["text"]
    assert texts == ["<b>all other sources</b>  0 %"]


def test_spans_and_words_have_their_own_places() -> None:
    pieces = made_up_scores(("the", "scar", "##ing", "hat"))
    words = pieces.words().at_dest(2)
    assert "at word" in plain(long_row(words, 2))["data"][0]["text"][0]
    spans = pieces.by_blocks({"a": [0, 1], "b": [2, 3]}).at_dest(0)
    assert [name.split()[1] for name in plain(long_row(spans, 0))["data"][-1]["x"]] == ["a", "b"]
