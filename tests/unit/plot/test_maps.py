"""The figures: what they hold, how rows and columns are named, and where the colours begin."""

from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from support.made_up import ODD_TOKENS, PIECES, made_up_effect, made_up_scores
from support.pictures import plain

from tl_vzero.effects.measure import EffectMethod
from tl_vzero.errors import InputError, ScoresError
from tl_vzero.plot import (
    difference,
    effect_map,
    flow_graph,
    heatmap,
    layer_grid,
    method_comparison,
    target_row,
    text_view,
)
from tl_vzero.plot.parts import hover_text, rounded, tick_text
from tl_vzero.plot.theme import DARK, LIGHT, Theme

THEMES = pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])


def assert_equal_grids(grid: Any, values: torch.Tensor) -> None:
    torch.testing.assert_close(torch.tensor(grid, dtype=torch.float64), values.double(), rtol=5e-6, atol=0)


def test_a_slider_step_for_each_layer_holds_its_map_and_its_scale() -> None:
    scores = made_up_scores().normalized()
    slider = plain(heatmap(scores))["layout"]["sliders"][0]
    assert [step["label"] for step in slider["steps"]] == ["0", "1", "2"]
    for layer, step in enumerate(slider["steps"]):
        trace, layout, _ = step["args"]
        assert_equal_grids(trace["z"][0], scores.values[layer])
        assert layout["coloraxis.cmax"] == pytest.approx(scores.values[layer].max().item(), rel=1e-5)
        assert f"layer {layer}<br>" in trace["hovertemplate"][0]


def test_the_chosen_layer_is_shown_first() -> None:
    scores = replace(made_up_scores(), layers=(4, 7, 9), n_layers=12)
    figure = plain(heatmap(scores, layer=7))
    assert figure["layout"]["sliders"][0]["active"] == 1
    assert_equal_grids(figure["data"][0]["z"], scores.values[1])
    assert "layer 7" in figure["data"][0]["hovertemplate"]


def test_a_layer_that_is_not_there_is_named() -> None:
    with pytest.raises(InputError, match=r"layer 5 .* \[0, 1, 2\]"):
        heatmap(made_up_scores(), layer=5)


def test_axes_are_positions_labelled_with_tokens_so_that_repeated_tokens_stay_apart() -> None:
    layout = plain(heatmap(made_up_scores()))["layout"]
    positions = [str(i) for i in range(len(PIECES))]
    for axis in (layout["xaxis"], layout["yaxis"]):
        assert axis["type"] == "category"
        assert axis["categoryarray"] == positions
        assert axis["labelalias"] == dict(zip(positions, PIECES, strict=True))
    assert layout["yaxis"]["autorange"] == "reversed"
    assert layout["yaxis"]["title"]["text"] == "destination (row)"
    assert layout["xaxis"]["title"]["text"] == "source (column)"


def test_hover_names_destination_then_source() -> None:
    scores = made_up_scores()
    trace = plain(heatmap(scores))["data"][0]
    assert trace["customdata"][2][6] == ["hat · position 2", "##ing · position 6"]
    assert trace["hovertemplate"].index("destination  %{customdata[0]}") < trace["hovertemplate"].index("source")
    assert plain(heatmap(scores.words()))["data"][0]["customdata"][5][0][0] == "scaring · word 5"


def test_a_partial_map_keeps_the_positions_of_the_sentence() -> None:
    scores = made_up_scores()
    part = replace(
        scores,
        values=scores.values[:, 2:4, 5:8],
        dest_positions=(2, 3),
        src_positions=(5, 6, 7),
        dest_tokens=PIECES[2:4],
        src_tokens=PIECES[5:8],
    )
    trace = plain(heatmap(part))["data"][0]
    assert (trace["y"], trace["x"]) == (["2", "3"], ["5", "6", "7"])
    assert plain(target_row(part, 3))["data"][0]["x"] == ["5", "6", "7"]


@THEMES
def test_the_colours_of_a_map_begin_at_exactly_0(theme: Theme) -> None:
    scale = plain(heatmap(made_up_scores(), theme=theme))["layout"]["coloraxis"]
    assert scale["cmin"] == 0
    assert scale["colorscale"][0] == [0, theme.sequential[0]]
    stops = [stop for stop, _ in scale["colorscale"]]
    assert stops == sorted(set(stops))
    assert stops[-1] == 1


@THEMES
def test_the_colours_of_an_effect_are_centred_on_0(theme: Theme) -> None:
    effect = made_up_effect(made_up_scores(), 4)
    scale = plain(effect_map(effect, theme=theme))["layout"]["coloraxis"]
    assert scale["cmin"] == -scale["cmax"]
    assert scale["cmax"] == pytest.approx(effect.values.abs().max().item(), rel=1e-5)
    assert scale["colorscale"][4] == [0.5, theme.diverging[4]]


@THEMES
@pytest.mark.parametrize("draw", [heatmap, layer_grid, lambda scores, theme: target_row(scores, 4, theme=theme)])
def test_the_colours_of_a_difference_are_centred_on_0(theme: Theme, draw: Any) -> None:
    difference = made_up_scores().normalized() - made_up_scores(method="alti").normalized()
    layout = plain(draw(difference, theme=theme))["layout"]
    scale = layout["coloraxis"]
    assert scale["cmin"] == -scale["cmax"] < 0
    assert scale["colorscale"][4] == [0.5, theme.diverging[4]]
    assert scale["colorbar"]["title"]["text"] == "difference"
    for step, values in zip(
        layout["sliders"][0]["steps"] if "sliders" in layout else [], difference.values, strict=False
    ):
        largest = pytest.approx(values.abs().max().item(), rel=1e-5)
        assert step["args"][1] == {
            "coloraxis.cmin": pytest.approx(-largest.expected, rel=1e-5),
            "coloraxis.cmax": largest,
        }


def test_a_difference_of_two_sentences_has_both_tokens_and_a_slider_whose_scales_are_symmetric() -> None:
    first = made_up_scores().normalized()
    tokens = ("<b>new</b>", *first.src_tokens[1:])
    second = replace(made_up_scores(), values=made_up_scores().values.flip(-1), dest_tokens=tokens, src_tokens=tokens)
    second = second.normalized()
    layout = plain(figure := difference(first, second, layer=1))["layout"]
    assert_equal_grids(figure.data[0].z, first.values[1] - second.values[1])
    old = first.src_tokens[0]
    for axis in (layout["xaxis"], layout["yaxis"]):
        assert axis["labelalias"]["0"] == tick_text(f"{old}|<b>new</b>") and "<b>" not in axis["labelalias"]["0"]
        assert axis["labelalias"]["2"] == tick_text(first.src_tokens[2])
    assert "minus" in layout["title"]["text"] and "(&lt;b&gt;new&lt;/b&gt;)" in layout["title"]["text"]
    slider = layout["sliders"][0]
    assert slider["active"] == 1 and len(slider["steps"]) == 3
    for step in slider["steps"]:
        assert step["args"][1]["coloraxis.cmin"] == -step["args"][1]["coloraxis.cmax"] < 0
    with pytest.raises(ScoresError, match="stage"):
        difference(first, made_up_scores())


def test_a_difference_is_refused_where_colours_start_at_0() -> None:
    difference = made_up_scores() - made_up_scores()
    with pytest.raises(ScoresError, match="draw them by heatmap"):
        text_view(difference)
    with pytest.raises(ScoresError, match="difference"):
        flow_graph(difference, 4)
    with pytest.raises(ScoresError, match="a difference none with shares"):
        method_comparison([made_up_scores().normalized(), difference])


def test_maps_without_any_value_have_a_scale() -> None:
    scores = made_up_scores(values=torch.zeros(3, len(PIECES), len(PIECES)))
    assert plain(heatmap(scores.normalized()))["layout"]["coloraxis"]["cmax"] == 1
    effect = made_up_effect(scores, 4, values=torch.zeros(3, len(PIECES)))
    assert plain(effect_map(effect))["layout"]["coloraxis"]["cmax"] == 1


@pytest.mark.parametrize("dest", [4, -5, "[MASK]"])
def test_a_row_through_the_layers(dest: int | str) -> None:
    scores = made_up_scores().normalized()
    figure = plain(target_row(scores, dest))
    assert_equal_grids(figure["data"][0]["z"], scores.row(4))
    assert figure["data"][0]["y"] == ["0", "1", "2"]
    assert figure["layout"]["yaxis"]["title"]["text"] == "layer"
    assert "what [MASK] · position 4 draws on" in figure["layout"]["title"]["text"]
    assert "[MASK] · position 4" in figure["data"][0]["hovertemplate"]


def test_a_row_that_is_not_there_is_named() -> None:
    with pytest.raises(InputError, match="dest 9 is outside the sentence"):
        target_row(made_up_scores(), 9)


def test_an_effect_through_the_layers() -> None:
    effect = made_up_effect(made_up_scores(), 4)
    figure = plain(effect_map(effect))
    assert_equal_grids(figure["data"][0]["z"], effect.values)
    assert figure["data"][0]["customdata"][0][5] == "scar · position 5"
    assert figure["layout"]["coloraxis"]["colorbar"]["title"]["text"] == "change of the logit of 'is'"


@pytest.mark.parametrize("draw", [heatmap, lambda scores: target_row(scores, 0)], ids=["heatmap", "row"])
def test_scores_per_head_ask_for_a_head(draw: Any) -> None:
    values = torch.rand(3, 2, len(PIECES), len(PIECES))
    with pytest.raises(ScoresError, match="select it"):
        draw(made_up_scores(values=values, heads=(0, 1)))


def test_an_effect_says_what_was_done_to_the_values() -> None:
    scores = made_up_scores()
    titles = {
        method: plain(effect_map(made_up_effect(scores, 4, method=method)))["layout"]["title"]["text"]
        for method in get_args(EffectMethod)
    }
    assert len(set(titles.values())) == len(titles)
    assert "clean sentence" in titles["value_patching"] and "Estimated" in titles["attribution_patching"]


def test_an_effect_per_head_is_refused() -> None:
    effect = made_up_effect(made_up_scores(), 4, values=torch.rand(3, 2, len(PIECES)), heads=(0, 1))
    with pytest.raises(InputError, match="without per_head"):
        effect_map(effect)


def test_odd_tokens_are_text_wherever_they_stand() -> None:
    scores = made_up_scores(ODD_TOKENS).normalized()
    effect = made_up_effect(scores, 1, metric="logit of '<b>'")
    for figure in (heatmap(scores), target_row(scores, 1), effect_map(effect)):
        layout = plain(figure)["layout"]
        trace = plain(figure)["data"][0]
        labels = [tick_text(token) for token in ODD_TOKENS]
        assert list(layout["xaxis"]["labelalias"].values()) == labels
        texts = [layout["title"]["text"], layout["title"]["subtitle"]["text"], *labels]
        texts.append(layout["coloraxis"]["colorbar"]["title"]["text"])
        texts += [hover_text(token, i) for i, token in enumerate(ODD_TOKENS)]
        assert not [text for text in texts if set("<>$\n\u2028\u202e\u200b") & set(text)]
        markup = trace["hovertemplate"]
        for tag in ("<b>", "</b>", "<br>", "<extra></extra>"):
            markup = markup.replace(tag, "")
        assert "<" not in markup


def test_a_long_sentence_gets_room_for_every_row() -> None:
    tokens = [f"word{i}" for i in range(128)]
    layout = plain(heatmap(made_up_scores(tokens, layers=1)))["layout"]
    assert layout["height"] > 128 * 12 and layout["width"] > 128 * 12
    assert plain(heatmap(made_up_scores(layers=1)))["layout"]["height"] < 700


def test_figures_hold_six_digits() -> None:
    assert rounded(torch.tensor([[1 / 3, 0.0]], dtype=torch.float64)) == [[0.333333, 0.0]]


def test_unknown_words_are_dashed_on_axes_and_named_in_hover() -> None:
    scores = made_up_scores(metadata={"unknown": [1]})
    figure = heatmap(scores).to_plotly_json()
    for axis in ("xaxis", "yaxis"):
        aliases = figure["layout"][axis]["labelalias"]
        assert [place for place, alias in aliases.items() if "underline dashed" in alias] == ["1"]
    assert "dashed: unknown to the model" in figure["layout"]["title"]["subtitle"]["text"]
    dest, source = figure["data"][0]["customdata"][1][1]
    assert dest == source and dest.endswith("position 1 · unknown to the model")
    assert "dashed" not in str(heatmap(made_up_scores()).layout)
