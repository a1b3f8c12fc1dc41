"""What a view shows of a map: hidden sources, a window, the scale; in every plot that takes one."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from math import isnan, sqrt
from typing import Any

import pytest
import torch
from jaxtyping import TypeCheckError
from support.made_up import made_up_scores
from support.pictures import plain

from tl_vzero.errors import InputError, InputTypeError
from tl_vzero.plot import View, head_grid, heatmap, layer_grid, method_comparison, target_row, text_view
from tl_vzero.plot.parts import aside
from tl_vzero.scores import Scores

BOTH = ("itself", "special")
AWAY = [0, 4, 7, 8]  # [CLS], the made-up mask, the full stop and [SEP]


def shown_rows(scores: Scores, view: View) -> Any:
    return plain(heatmap(scores, layer=1, view=view))["data"][0]["z"]


def renormalised(row: list[float], hidden: set[int]) -> list[float | None]:
    left = sum(value for source, value in enumerate(row) if source not in hidden)
    return [None if source in hidden else value / left for source, value in enumerate(row)]


@pytest.mark.parametrize("hide", [("itself",), ("special",), BOTH])
@pytest.mark.parametrize("stage", ["normalized", "rollout"])
def test_a_row_without_what_is_hidden_sums_to_one_again(hide: Any, stage: str) -> None:
    scores = getattr(made_up_scores(), stage)()
    for dest, shown in enumerate(shown_rows(scores, View(hide=hide))):
        hidden = ({dest} if "itself" in hide else set()) | (set(AWAY) if "special" in hide else set())
        expected = renormalised(scores.values[1, dest].tolist(), hidden)
        assert [value is None for value in shown] == [value is None for value in expected]
        for value, number in zip(shown, expected, strict=True):
            assert value == (None if number is None else pytest.approx(number, rel=1e-4))


def test_raw_scores_stay_as_they_are() -> None:
    scores = made_up_scores()
    for dest, shown in enumerate(shown_rows(scores, View(hide=BOTH))):
        for source, value in enumerate(shown):
            hidden = source == dest or source in AWAY
            assert value == (None if hidden else pytest.approx(scores.values[1, dest, source].item(), rel=1e-5))


def test_special_tokens_and_punctuation_are_found_in_pieces_and_in_words() -> None:
    tokens = ("[CLS]", "don", "'", "t", "scar", "##ing", "[MASK]", "...", "\u2019\u201d", "5", "%", "[SEP]")
    scores = made_up_scores(tokens)
    away = [token for token, is_aside in zip(tokens, aside(scores), strict=True) if is_aside]
    assert away == ["[CLS]", "'", "[MASK]", "...", "\u2019\u201d", "%", "[SEP]"]  # made-up: a mask is no word here
    scores = replace(scores, word_ids=(None, 0, 1, 2, 3, 3, 4, 5, 6, 7, 8, None))
    assert not aside(scores)[6]
    words = scores.words()
    away = [token for token, is_aside in zip(words.src_tokens, aside(words), strict=True) if is_aside]
    assert away == ["[CLS]", "'", "...", "\u2019\u201d", "%", "[SEP]"]


@pytest.mark.parametrize(
    ("view", "name"),
    [
        (View(), "share of the row"),
        (View(scale="sqrt"), "share of the row, square-root scale"),
        (View(hide=("itself",)), "share of the row, renormalised<br>without itself"),
        (
            View(hide=BOTH, scale="sqrt"),
            "share of the row, renormalised, square-root scale<br>without itself, special tokens and punctuation",
        ),
    ],
)
def test_the_scale_says_what_it_shows(view: View, name: str) -> None:
    scores = made_up_scores().normalized()
    for figure in (heatmap(scores, view=view), target_row(scores, 4, view=view), layer_grid(scores, view=view)):
        assert plain(figure)["layout"]["coloraxis"]["colorbar"]["title"]["text"] == name
    assert name.replace("<br>", ", ") in text_view(scores, 4, view=view).html


def test_raw_scores_are_not_called_renormalised() -> None:
    colours = plain(heatmap(made_up_scores(), view=View(hide=("itself",))))["layout"]["coloraxis"]
    assert colours["colorbar"]["title"]["text"] == "raw score<br>without itself"


def test_the_square_root_scale_changes_colours_and_no_number() -> None:
    scores = made_up_scores().normalized()
    usual, root = (plain(heatmap(scores, view=View(scale=scale))) for scale in ("linear", "sqrt"))
    assert usual["data"][0]["z"] == root["data"][0]["z"]
    ramps = [figure["layout"]["coloraxis"]["colorscale"] for figure in (usual, root)]
    for (place, colour), (rooted, same) in zip(*ramps, strict=True):
        # The share with this colour has the square root that had it before.
        assert colour == same and sqrt(rooted) == pytest.approx(place, abs=0.008)
    shades, rooted_shades = (
        json.loads(re.findall(r'"shades":(\[\[.*?\]\])', text_view(scores, 4, view=View(scale=scale)).html)[0])
        for scale in ("linear", "sqrt")
    )
    for at, (colour, _) in enumerate(rooted_shades):
        nearest = shades[round(47 * sqrt(at / 47))][0]
        apart = [abs(int(colour[i : i + 2], 16) - int(nearest[i : i + 2], 16)) for i in (1, 3, 5)]
        assert max(apart) <= 6  # half a step of 48


def around(scores: Scores, plot: Callable[..., Any], **options: Any) -> dict[str, Any]:
    return plain(plot(scores, view=View(around="[MASK]", window=2), **options))


def test_a_window_shows_the_tokens_around_the_chosen_one() -> None:
    scores = made_up_scores().normalized()
    figure = around(scores, heatmap, layer=2)
    assert figure["data"][0]["x"] == figure["data"][0]["y"] == ["2", "3", "4", "5", "6"]
    torch.testing.assert_close(torch.tensor(figure["data"][0]["z"]), scores.values[2, 2:7, 2:7], rtol=1e-4, atol=0)
    at_the_edge = plain(heatmap(scores, view=View(around=-1, window=3)))["data"][0]
    assert at_the_edge["x"] == ["5", "6", "7", "8"]
    assert plain(heatmap(scores, view=View(around=4, window=99)))["data"][0]["x"] == [str(i) for i in range(9)]
    row = plain(target_row(scores, 4, view=View(window=1)))["data"][0]
    assert row["x"] == ["3", "4", "5"] and len(row["z"]) == 3
    assert row["z"][0] == pytest.approx(scores.values[0, 4, 3:6].tolist(), rel=1e-4)
    text = text_view(scores, 4, view=View(window=1)).html
    assert re.findall(r">([^<>]+)</span></button>", text) == ["the", "[MASK]", "scar"]


def test_the_chosen_row_is_outlined_and_labelled_in_every_map() -> None:
    scores = made_up_scores([f"word{i}" for i in range(150)]).normalized()
    view = View(around=77)
    for figure, maps in (
        (heatmap(scores, view=view), 1),
        (layer_grid(scores, view=view), 3),
        (method_comparison([scores, replace(scores, method="attention")], view=view), 2),
    ):
        layout = plain(figure)["layout"]
        assert [(shape["y0"], shape["y1"]) for shape in layout["shapes"]] == [(76.5, 77.5)] * maps
        labels = [note for note in layout["annotations"] if "word77" in note["text"]]
        assert [(note["y"], note["xanchor"]) for note in labels] == [(77, "right")]  # beside the first map of a row
    heads = replace(scores, values=scores.values.unsqueeze(1).repeat(1, 2, 1, 1), heads=(0, 1))
    assert len(plain(head_grid(heads, view=view))["layout"]["shapes"]) == 2
    assert "shapes" not in plain(heatmap(scores))["layout"]


def test_hidden_tokens_of_a_sentence_have_no_colour() -> None:
    html = text_view(made_up_scores().normalized(), 4, view=View(hide=BOTH)).html
    values = json.loads(re.findall(r'"values":(\[\[\[.*?\]\]\])', html)[0])
    assert [source for source, value in enumerate(values[0][4]) if value is None] == [0, 4, 7, 8]


def test_a_row_of_which_nothing_is_left_stays_empty() -> None:
    scores = made_up_scores(("[CLS]", "hat", "."))
    shown = shown_rows(scores.normalized(), View(hide=BOTH))
    assert shown[1] == [None, None, None] and shown[0] == [None, 1.0, None]
    assert not any(isnan(value) for row in shown for value in row if value is not None)


@pytest.mark.parametrize("wrong", [{"scale": "log"}, {"hide": ("padding",)}, {"hide": "itself"}, {"window": -1}])
def test_what_is_no_view_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises((InputError, TypeCheckError), match=r"expected|Expected"):
        View(**wrong)


def test_a_view_of_another_kind_and_a_token_that_is_not_there_are_refused() -> None:
    scores = made_up_scores()
    with pytest.raises((InputError, TypeCheckError)):
        View(window=1.5)  # type: ignore[arg-type]
    with pytest.raises((InputTypeError, TypeCheckError)):
        heatmap(scores, view="sqrt")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="occurs 2 times"):
        heatmap(scores, view=View(around="the"))
