"""The figures in a headless Chromium, from files and offline: what sliders, pointers and keys do."""

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.made_up import ODD_TOKENS, PIECES, made_up_scores

from tl_vzero.plot import flow_graph, head_grid, layer_grid, method_comparison, patch_overlay, save_figure, text_view
from tl_vzero.plot.export import page_of
from tl_vzero.plot.parts import visible
from tl_vzero.scores import Scores

pytestmark = pytest.mark.browser

DRAWN = ".heatmaplayer image"
LIMIT_MS = 2000  # for 128 tokens, 12 layers and 3 methods to be drawn
Open = Callable[..., tuple[Any, list[str]]]


def show(open_page: Open, figure: Any, wait_for: str = DRAWN, **options: Any) -> Any:
    return open_page(page_of(figure, plotly=True), wait_for=wait_for, **options)[0]


def shown(page: Any) -> list[Any]:
    read: list[Any] = page.evaluate("document.querySelector('.plotly-graph-div').data.map(trace => trace.z)")
    return read


def hover(page: Any, panel: int, row: int, column: int, size: tuple[int, int]) -> str:
    box = page.locator(".nsewdrag").nth(panel).bounding_box()
    page.mouse.move(
        box["x"] + box["width"] * (column + 0.5) / size[1], box["y"] + box["height"] * (row + 0.5) / size[0], steps=3
    )
    page.wait_for_selector(".hovertext")
    text: str = page.locator(".hovertext").first.text_content()
    return text


def slide(page: Any, step: int) -> None:
    rail = page.locator(".slider-rail-touch-rect")
    rail.scroll_into_view_if_needed()
    box, steps = rail.bounding_box(), page.locator(".slider-tick-rect").count()
    # The rail's ends reach half a grip beyond the first and the last step.
    edge = page.locator(".slider-grip-rect").bounding_box()["width"] / 2
    across = edge + (box["width"] - 2 * edge) * step / (steps - 1)
    page.mouse.click(box["x"] + across, box["y"] + box["height"] / 2)
    page.wait_for_timeout(150)


def test_the_slider_of_the_methods_changes_every_map(open_page: Open) -> None:
    maps = [made_up_scores(method=method).normalized() for method in ("value_zeroing", "attention")]
    page = show(open_page, method_comparison(maps))
    slide(page, 2)
    page.wait_for_function("document.querySelector('.slider-label').closest('svg').textContent.includes('layer 2')")
    for grid, scores in zip(shown(page), maps, strict=True):
        torch.testing.assert_close(torch.tensor(grid), scores.values[2], rtol=5e-4, atol=0)


def test_the_slider_of_the_heads_changes_every_head(open_page: Open) -> None:
    values = torch.rand(3, 2, len(PIECES), len(PIECES))
    scores = made_up_scores(values=values, heads=(0, 1)).normalized()
    page = show(open_page, head_grid(scores))
    slide(page, 1)
    for grid, head in zip(shown(page), scores.values[1], strict=True):
        torch.testing.assert_close(torch.tensor(grid), head, rtol=5e-4, atol=0)


def test_a_panel_names_token_and_position_under_the_pointer(open_page: Open) -> None:
    scores = made_up_scores().normalized()
    part = replace(
        scores,
        values=scores.values[:, 2:5, 5:9],
        dest_positions=(2, 3, 4),
        src_positions=(5, 6, 7, 8),
        dest_tokens=PIECES[2:5],
        src_tokens=PIECES[5:9],
    )
    page = show(open_page, layer_grid(part))
    text = hover(page, 1, 2, 1, (3, 4))
    assert "layer 1" in text
    assert "[MASK] · position 4" in text and "##ing · position 6" in text
    assert float(text.split()[0]) == pytest.approx(part.values[1, 2, 1].item(), rel=1e-3)


def test_tokens_that_look_like_markup_break_no_figure(open_page: Open) -> None:
    scores = made_up_scores(ODD_TOKENS)
    page = show(open_page, layer_grid(scores.normalized()))
    assert "<script>window.hit=1</script> · position 1" in hover(page, 0, 1, 1, (len(ODD_TOKENS),) * 2)
    flow = show(open_page, flow_graph(scores, 1), wait_for=".scatterlayer path")
    view, _ = open_page(text_view(scores, 1).to_page(), wait_for="[aria-pressed=true]")
    assert view.locator("button").all_text_contents() == [visible(token) for token in ODD_TOKENS]
    for opened in (page, flow, view):
        assert opened.evaluate("window.hit") is None


def test_the_threshold_shows_and_hides_edges(open_page: Open) -> None:
    page = show(open_page, flow_graph(made_up_scores(), 4), wait_for=".scatterlayer path")
    counts = []
    for step in (0, 4, 9):
        slide(page, step)
        page.wait_for_timeout(100)
        counts.append(page.locator(".scatterlayer .js-line").count())
    assert counts == sorted(counts, reverse=True) and counts[0] > counts[-1]


def colours(page: Any) -> list[str]:
    read: list[str] = page.evaluate(
        "[...document.querySelectorAll('[data-src]')].map(e => e.firstChild.style.background)"
    )
    return read


def sentence_of(page: Any) -> str:
    text: str = page.locator("[role=status]").text_content()
    return text.replace("\u2068", "").replace("\u2069", "")


def assert_tells(page: Any, scores: Scores, layer: int, dest: int) -> None:
    """The sentence below the view names this row's largest entry, with its value."""
    read = re.search(r"draws most on: (.*?) · position (\d+) \(([\d.e-]+)\)", sentence_of(page))
    assert read is not None
    source = int(scores.values[layer, dest].argmax())
    assert (read[1], int(read[2])) == (visible(scores.src_tokens[source]), source)
    assert float(read[3]) == pytest.approx(scores.values[layer, dest, source].item(), rel=6e-3)


def test_the_text_view_is_worked_by_mouse_and_by_keyboard(open_page: Open) -> None:
    scores = made_up_scores().normalized()
    page, _ = open_page(text_view(scores, "[MASK]").to_page(), wait_for="[aria-pressed=true]")
    buttons = page.locator("button")
    assert_tells(page, scores, 0, 4)
    before = colours(page)
    buttons.nth(2).hover()
    assert sentence_of(page).startswith("hat · position 2, layer 0") and colours(page) != before
    page.mouse.move(5, 500)
    assert sentence_of(page).startswith("[MASK] · position 4") and colours(page) == before
    buttons.nth(7).click()
    assert buttons.nth(7).get_attribute("aria-pressed") == "true"
    page.mouse.move(5, 500)
    assert_tells(page, scores, 0, 7)

    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.mouse.move(5, 500)
    assert sentence_of(page).startswith("[SEP] · position 8")
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    assert sentence_of(page).startswith("[SEP] · position 8, layer 1")
    assert_tells(page, scores, 1, 8)


def test_patches_cover_the_picture_exactly(open_page: Open) -> None:
    tokens = ("[CLS]", *(f"r{row}c{column}" for row in range(3) for column in range(3)))
    page = show(open_page, patch_overlay(made_up_scores(tokens), torch.rand(30, 30, 3).numpy(), 0))
    picture, patches = page.locator(".imagelayer image").bounding_box(), page.locator(DRAWN).bounding_box()
    for side in ("x", "y", "width", "height"):
        assert picture[side] == pytest.approx(patches[side], abs=1.5)


def drawing_ms(page: Any) -> float:
    """How long the page needs to draw its figure a second time, until it is painted."""
    assert page.locator(DRAWN).count() == 3
    took: float = page.evaluate(
        """async () => {
          const drawn = document.querySelector('.plotly-graph-div'), again = document.createElement('div');
          document.body.append(again);
          const start = performance.now();
          await Plotly.newPlot(again, structuredClone(drawn.data), structuredClone(drawn.layout));
          await new Promise(painted => requestAnimationFrame(() => setTimeout(painted)));
          return performance.now() - start;
        }"""
    )
    return took


@pytest.mark.parametrize("width", [1280, 420])
def test_128_tokens_12_layers_and_3_methods_are_drawn_in_time(open_page: Open, width: int) -> None:
    methods = ("value_zeroing", "attention", "alti")
    maps = [made_up_scores([f"word{i}" for i in range(128)], layers=12, method=method) for method in methods]
    figure = method_comparison([scores.normalized() for scores in maps])
    # A machine that others use too is given three tries, each on a new page.
    took = min(drawing_ms(show(open_page, figure, width=width)) for _ in range(3))
    assert took < LIMIT_MS


@pytest.mark.parametrize(("ending", "start"), [("png", b"\x89PNG"), ("svg", b"<svg"), ("pdf", b"%PDF")])
def test_a_figure_becomes_a_picture(tmp_path: Path, ending: str, start: bytes) -> None:
    pytest.importorskip("kaleido", reason="kaleido is not installed: pip install 'tl-vzero[images]'")
    if not any(os.environ.get(name) for name in ("BROWSER_PATH", "CHROMIUM")) and shutil.which("chromium") is None:
        pytest.skip("no Chromium found: apt-get install chromium, or set CHROMIUM to its path")
    path = save_figure(layer_grid(made_up_scores(ODD_TOKENS).normalized()), tmp_path / f"map.{ending}")
    assert path.read_bytes().startswith(start)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
