"""The picture of means over sentences: what it holds, what is blank, what its hover boxes say."""

from dataclasses import replace

import pytest
import torch
from support.made_up import ODD_TOKENS, made_up_scores
from support.pictures import plain

import tl_vzero
from tl_vzero.errors import InputError
from tl_vzero.evaluate.averages import MeanScores
from tl_vzero.plot import mean_map
from tl_vzero.plot.export import notebook_bundle


def means() -> MeanScores:
    sentences = [("[CLS]", "the", "hat", "[SEP]"), ("[CLS]", "the", "lamp", "[SEP]")]
    return tl_vzero.mean([made_up_scores(tokens).normalized() for tokens in sentences], by="word")


def test_a_step_for_each_layer_and_blank_cells_where_no_sentence_has_the_pair() -> None:
    mean = means()
    figure = plain(mean_map(mean, layer=1))
    steps = figure["layout"]["sliders"][0]["steps"]
    for step, values in zip(steps, mean.values, strict=True):
        grid = step["args"][0]["z"][0]
        assert [[cell is None for cell in row] for row in grid] == values.isnan().tolist()
        drawn = torch.tensor([[0.0 if cell is None else cell for cell in row] for row in grid], dtype=torch.float64)
        torch.testing.assert_close(drawn, values.nan_to_num(), rtol=5e-6, atol=0)
    assert figure["data"][0]["z"] == steps[1]["args"][0]["z"][0]
    assert figure["layout"]["xaxis"]["labelalias"]["2"] == "hat"
    assert figure["layout"]["title"]["subtitle"]["text"] == "up to 2 sentences"


def test_the_hover_box_has_the_interval_of_its_layer_and_how_many_sentences() -> None:
    mean = means()
    figure = plain(mean_map(mean))
    cell = figure["data"][0]["customdata"][0][1]
    assert cell[:3] == ["[CLS]", "the", "2"]
    for layer, step in enumerate(figure["layout"]["sliders"][0]["steps"]):
        low, high = mean.low[layer, 0, 1], mean.high[layer, 0, 1]
        assert cell[3 + layer] == f"<br>95 % interval  {low:.4g} to {high:.4g}"
        assert f"%{{customdata[{3 + layer}]}}" in step["args"][0]["hovertemplate"][0]
    assert figure["data"][0]["customdata"][2][2] == ["hat", "hat", "1", "", "", ""]


def test_signed_means_are_around_0_also_beside_blank_cells() -> None:
    mean = means()
    scale = plain(mean_map(replace(mean, values=-mean.values, stage="raw")))["layout"]["coloraxis"]
    assert scale["cmin"] == -scale["cmax"] < 0


def test_odd_words_do_not_act_on_a_page() -> None:
    mean = tl_vzero.mean([made_up_scores(ODD_TOKENS)], by="word")
    labels = {cell[0] for row in plain(mean_map(mean))["data"][0]["customdata"] for cell in row}
    assert not any("<" in label or "$" in label for label in labels)


def test_means_are_drawn_where_scores_are_and_per_head_are_a_table() -> None:
    mean = means()
    assert plain(mean.plot()) == plain(mean_map(mean))
    assert notebook_bundle(mean)["text/plain"] == repr(mean)
    per_head = replace(made_up_scores(), values=torch.rand(3, 2, 9, 9), heads=(0, 1))
    of_heads = tl_vzero.mean([per_head], by="distance")
    assert "<table" in notebook_bundle(of_heads)["text/html"]
    with pytest.raises(InputError, match=r"per head: expected head= of 0, 1, or read to_frame\(\)"):
        of_heads.plot()
    with pytest.raises(InputError, match="head is 0, of means per layer: expected no head"):
        mean_map(mean, head=0)


def test_means_per_head_are_drawn_a_head_at_a_time() -> None:
    values = torch.rand(3, 2, 9, 9)
    per_head = tl_vzero.mean([replace(made_up_scores(), values=values, heads=(4, 7))], by="position")
    alone = tl_vzero.mean([replace(made_up_scores(), values=values[:, 1])], by="position")
    drawn, expected = plain(mean_map(per_head, head=7)), plain(mean_map(alone))
    assert ", head 7, means by position" in drawn["layout"]["title"].pop("text")
    del expected["layout"]["title"]["text"]
    assert drawn == expected


def test_a_layer_that_is_not_there_is_named() -> None:
    with pytest.raises(InputError, match=r"layer 7 .* \[0, 1, 2\]"):
        mean_map(means(), layer=7)
