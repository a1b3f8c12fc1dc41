"""What every figure takes: width, height, the size of its labels and a title."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError
from support.evaluated import alignment, faithfulness, knockout, mass, planted, probing, removal, training
from support.made_up import PIECES, made_up_effect, made_up_scores
from support.pictures import plain

import tl_vzero
from tl_vzero import plot
from tl_vzero.errors import InputError, InputTypeError
from tl_vzero.plot.theme import LIGHT, template

SCORES = made_up_scores().normalized()
PER_HEAD = made_up_scores(values=torch.rand(3, 2, len(PIECES), len(PIECES)), heads=(0, 1))
PATCHES = made_up_scores(("[CLS]", "r0c0", "r0c1"))
FRAMES = made_up_scores(("0.00 s", "0.02 s", "0.04 s"))
MEANS = alignment({"value_zeroing": [0.1, 0.2], "attention": [0.3, 0.4]})
FIGURES: dict[str, Callable[..., Any]] = {
    "alignment_curves": lambda **look: plot.alignment_curves(MEANS, **look),
    "compression_curves": lambda **look: plot.compression_curves([("this", probing([1.0, 1.5]))], **look),
    "control_curves": lambda **look: plot.control_curves(MEANS, None, None, **look),
    "knockout_curves": lambda **look: plot.knockout_curves(knockout({"attention": [0.4, 0.1]}), **look),
    "faithfulness_bars": lambda **look: plot.faithfulness_bars(faithfulness({"attention": 0.4}), **look),
    "mass_bars": lambda **look: plot.mass_bars(mass({"attention": (0.1, 0.2, 0.3, 0.3, 0.1)}), 1, **look),
    "planted_map": lambda **look: plot.planted_map(planted({"attention": 0.4}), **look),
    "removal_curves": lambda **look: plot.removal_curves(removal({"attention": 0.4}), **look),
    "training_curves": lambda **look: plot.training_curves(training({"step 1": 0.1}), 1, **look),
    "flow_graph": lambda **look: plot.flow_graph(SCORES, 4, **look),
    "effect_map": lambda **look: plot.effect_map(made_up_effect(SCORES, 4), **look),
    "heatmap": lambda **look: plot.heatmap(SCORES, **look),
    "long_row": lambda **look: plot.long_row(SCORES, 4, **look),
    "mean_map": lambda **look: plot.mean_map(tl_vzero.mean([SCORES], by="word"), **look),
    "difference": lambda **look: plot.difference(SCORES, SCORES, **look),
    "target_row": lambda **look: plot.target_row(SCORES, 4, **look),
    "patch_overlay": lambda **look: plot.patch_overlay(PATCHES, np.zeros((8, 16, 3)), **look),
    "time_map": lambda **look: plot.time_map(FRAMES, **look),
    "head_grid": lambda **look: plot.head_grid(PER_HEAD, **look),
    "layer_grid": lambda **look: plot.layer_grid(SCORES, **look),
    "method_comparison": lambda **look: plot.method_comparison([SCORES, SCORES], **look),
}
EVERY = pytest.mark.parametrize("draw", FIGURES.values(), ids=FIGURES)


def test_no_figure_is_left_out() -> None:
    assert {*FIGURES, "save_figure", "text_view", "LIGHT", "DARK", "Theme", "View"} == set(plot.__all__)


@EVERY
def test_sizes_and_title_are_those_asked_for(draw: Callable[..., Any]) -> None:
    layout = plain(draw(width=500, height=333, title="Where <b>it</b> looks"))["layout"]
    assert (layout["width"], layout["height"]) == (500, 333)
    assert layout["title"]["text"] == "Where &lt;b&gt;it&lt;/b&gt; looks"
    assert (
        layout["title"]["subtitle"]["text"] == plain(draw())["layout"].get("title", layout["title"])["subtitle"]["text"]
    )
    assert "text" not in plain(draw(title=""))["layout"].get("title", {})


@EVERY
def test_all_texts_grow_with_the_font_size(draw: Callable[..., Any]) -> None:
    plain_sizes, larger = (list(_font_sizes(plain(figure)["layout"])) for figure in (draw(), draw(font_size=18)))
    assert larger == [pytest.approx(size * 1.5, abs=0.05) for size in plain_sizes]
    assert len(plain_sizes) > 5
    assert template(LIGHT).layout.font.size == 12  # which all figures share


@EVERY
def test_nothing_asked_for_changes_nothing(draw: Callable[..., Any]) -> None:
    assert plain(draw(width=None, height=None, font_size=None, title=None)) == plain(draw())


@EVERY
def test_what_is_no_size_is_refused(draw: Callable[..., Any]) -> None:
    with pytest.raises(InputError, match="width is 0: expected at least 1"):
        draw(width=0)
    with pytest.raises((InputTypeError, TypeCheckError)):
        draw(font_size="large")
    with pytest.raises(TypeError, match="colour"):
        draw(colour="red")


def _font_sizes(part: Any, name: str = "") -> Any:
    if isinstance(part, dict):
        if name.endswith("font") and "size" in part:
            yield part["size"]
        for inner, value in part.items():
            yield from _font_sizes(value, inner)
    elif isinstance(part, list):
        for value in part:
            yield from _font_sizes(value)
