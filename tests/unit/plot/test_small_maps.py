"""Many maps in one figure: what each panel holds, one colour scale, and what cannot stand beside each other."""

import html
from dataclasses import replace
from typing import Any

import pytest
import torch
from jaxtyping import TypeCheckError
from support.made_up import ODD_TOKENS, PIECES, made_up_scores
from support.pictures import plain

from tl_vzero.errors import InputError, InputTypeError, ScoresError
from tl_vzero.plot import head_grid, layer_grid, method_comparison
from tl_vzero.scores import Scores


def per_head(heads: int = 3) -> Scores:
    values = torch.rand(3, heads, len(PIECES), len(PIECES), generator=torch.Generator().manual_seed(0))
    return made_up_scores(values=values, heads=tuple(range(heads))).normalized()


def assert_shows(trace: dict[str, Any], values: torch.Tensor) -> None:
    torch.testing.assert_close(torch.tensor(trace["z"]), values, rtol=5e-4, atol=0)


def names(figure: dict[str, Any]) -> list[str]:
    return [note["text"] for note in figure["layout"]["annotations"]]


def test_every_layer_has_its_map_on_one_scale() -> None:
    scores = made_up_scores(layers=6).normalized()
    figure = plain(layer_grid(scores))
    for trace, values in zip(figure["data"], scores.values, strict=True):
        assert_shows(trace, values)
        assert trace["coloraxis"] == "coloraxis"
    assert figure["layout"]["coloraxis"]["cmin"] == 0
    assert figure["layout"]["coloraxis"]["cmax"] == pytest.approx(scores.values.max().item(), rel=1e-3)
    assert names(figure) == [f"layer {layer}" for layer in range(6)]


def test_panels_do_not_overlap() -> None:
    layout = plain(layer_grid(made_up_scores(layers=7), columns=3))["layout"]
    places = [(*layout[f"xaxis{n or ''}"]["domain"], *layout[f"yaxis{n or ''}"]["domain"]) for n in ("", *range(2, 8))]
    for at, (left, right, low, high) in enumerate(places):
        assert 0 <= left < right <= 1 and -1e-9 <= low < high <= 1 + 1e-9
        for other_left, other_right, other_low, other_high in places[:at]:
            assert right <= other_left or other_right <= left or high <= other_low or other_high <= low


@pytest.mark.parametrize(
    ("panels", "across"), [(1, 1), (4, 4), (5, 5), (6, 3), (7, 4), (8, 4), (9, 3), (10, 5), (11, 4), (12, 4), (24, 4)]
)
def test_rows_of_maps_are_full(panels: int, across: int) -> None:
    layout = plain(layer_grid(made_up_scores(layers=panels)))["layout"]
    lefts = {round(layout[f"xaxis{n or ''}"]["domain"][0], 6) for n in ("", *range(2, panels + 1))}
    assert len(lefts) == across


def test_cells_are_square_however_wide_the_page() -> None:
    layout = plain(layer_grid(made_up_scores(layers=2)))["layout"]
    assert (layout["yaxis"]["scaleanchor"], layout["yaxis2"]["matches"], layout["xaxis2"]["matches"]) == ("x", "y", "x")
    assert {layout[axis]["constrain"] for axis in ("xaxis", "xaxis2", "yaxis", "yaxis2")} == {"domain"}


def test_every_head_of_the_layer_that_the_slider_chooses() -> None:
    scores = per_head()
    figure = plain(head_grid(scores, layer=1))
    assert names(figure) == ["head 0", "head 1", "head 2"]
    for trace, values in zip(figure["data"], scores.values[1], strict=True):
        assert_shows(trace, values)
    slider = figure["layout"]["sliders"][0]
    assert slider["active"] == 1
    for layer, step in enumerate(slider["steps"]):
        changes, layout, traces = step["args"]
        assert traces == [0, 1, 2]
        torch.testing.assert_close(torch.tensor(changes["z"]), scores.values[layer], rtol=5e-4, atol=0)
        assert layout["coloraxis.cmax"] == pytest.approx(scores.values[layer].max().item(), rel=1e-3)


def test_methods_stand_beside_each_other() -> None:
    maps = [made_up_scores(method=method).normalized() for method in ("value_zeroing", "attention", "alti")]
    figure = plain(method_comparison(maps, layer=2))
    assert names(figure) == ["Value Zeroing", "Raw attention", "ALTI"]
    for trace, scores in zip(figure["data"], maps, strict=True):
        assert_shows(trace, scores.values[2])
    by_name = plain(method_comparison({"<b>": maps[0], "mine": maps[0]}))
    assert names(by_name) == ["&lt;b&gt;", "Mine"]
    assert names(plain(method_comparison([maps[0], maps[0]]))) == ["Value Zeroing", "Value Zeroing (2)"]


def test_a_rollout_stands_beside_a_normalized_map() -> None:
    scores = made_up_scores()
    assert len(method_comparison([scores.normalized(), made_up_scores(method="alti").rollout()]).data) == 2


def test_what_has_no_common_scale_or_tokens_is_refused() -> None:
    scores = made_up_scores()
    other = made_up_scores(method="attention")
    with pytest.raises(ScoresError, match=r"raw scores share no scale .* normalized\(\)"):
        method_comparison([scores, other])
    with pytest.raises(ScoresError, match=r"attention is normalized and Value Zeroing is raw"):
        method_comparison([scores, other.normalized()])
    with pytest.raises(ScoresError, match="same layers, tokens and positions"):
        method_comparison([scores.normalized(), made_up_scores(layers=2).normalized()])
    with pytest.raises(InputError, match="at least one method"):
        method_comparison([])
    with pytest.raises((InputTypeError, TypeCheckError)):
        method_comparison(scores)  # type: ignore[arg-type]


def test_scores_of_the_wrong_kind_and_places_that_are_not_there_are_named() -> None:
    with pytest.raises(ScoresError, match="head_grid"):
        layer_grid(per_head())
    with pytest.raises(ScoresError, match="per_head=True"):
        head_grid(made_up_scores())
    with pytest.raises(InputError, match="layer 9"):
        head_grid(per_head(), layer=9)
    with pytest.raises(InputError, match="at least 1"):
        layer_grid(made_up_scores(), columns=0)
    with pytest.raises((InputTypeError, TypeCheckError)):
        layer_grid(made_up_scores(), columns=2.5)  # type: ignore[arg-type]


def test_a_cross_attention_map_names_both_sentences() -> None:
    scores = replace(
        made_up_scores(values=torch.rand(3, len(PIECES), 2)[..., :2], src_tokens=("le", "chat"), src_positions=(0, 1)),
        metadata={"stack": "cross"},
    )
    layout = plain(layer_grid(scores))["layout"]
    assert layout["xaxis"]["title"]["text"] == "encoder: source (column)"
    assert layout["yaxis"]["title"]["text"] == "decoder: destination (row)"
    assert "le chat → " in layout["title"]["subtitle"]["text"]


def test_spans_that_begin_at_one_position_stay_two_columns() -> None:
    scores = made_up_scores(
        values=torch.rand(3, len(PIECES), 2),
        src_tokens=("the", "the hat"),
        src_positions=(1, 1),
        src_spans=((1,), (1, 2)),
    )
    assert plain(layer_grid(scores))["data"][0]["x"] == ["1", "1+2"]


def test_odd_tokens_are_text_and_long_ones_are_whole_in_the_hover_box() -> None:
    figure = plain(layer_grid(made_up_scores(ODD_TOKENS)))
    trace = figure["data"][0]
    shown = [*figure["layout"]["xaxis"]["labelalias"].values(), *names(figure)]
    shown += [label for cell in trace["customdata"][1] for label in cell]
    assert not [text for text in shown if set("<>$\n") & set(text)]
    assert "<script>window.hit=1</script> · position 1" in [html.unescape(text) for text in trace["customdata"][0][1]]


def test_a_long_sentence_holds_no_labels_for_each_cell() -> None:
    figure = plain(layer_grid(made_up_scores(["internationalisation"] * 128, layers=12)))
    assert all("customdata" not in trace for trace in figure["data"])
    assert "%{y} · position %{y:d}" in figure["data"][0]["hovertemplate"]
