"""The page of a reproduction in a headless Chromium: its figures are the numbers, its choosers choose."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from support.evaluated import reproduction

from tl_vzero.registry import label_of
from tl_vzero.report.reproduction_page import render_reproduction

pytestmark = pytest.mark.browser

DRAWN = "#figure-controls .scatterlayer"
OpenPage = Callable[..., tuple[Any, list[str]]]


@pytest.fixture
def page(open_page: OpenPage) -> Any:
    opened, _ = open_page(render_reproduction(reproduction()), wait_for=DRAWN)
    opened.wait_for_selector("#status", state="hidden")
    return opened


def lines(page: Any, figure: str) -> dict[str, list[float]]:
    """What a figure shows now: its traces by their names."""
    by_name: dict[str, list[float]] = page.evaluate(
        """id => Object.fromEntries(document.getElementById(id).data.filter((each) => each.name)
            .map((each) => [each.name, Array.from(each.y)]))""",
        f"figure-{figure}",
    )
    return by_name


def test_the_curves_are_the_numbers_and_the_choosers_change_them(page: Any) -> None:
    run = reproduction()
    for paradigm in ("all", "one"):
        for measure in ("dot", "average_precision"):
            choosers = page.locator('select[data-figure="alignment"]')
            choosers.nth(0).select_option(measure)
            choosers.nth(1).select_option(paradigm)
            shown = lines(page, "alignment")
            for method in ("value_zeroing", "attention", "random"):
                means = [
                    cell.aligned.mean
                    for cell in run.alignment.cells
                    if (cell.method, cell.paradigm, cell.measure) == (method, paradigm, measure)
                ]
                assert shown[label_of(method)] == pytest.approx(means)


def test_every_figure_is_drawn_and_nothing_says_it_is_not_there(page: Any) -> None:
    plots = page.locator(".plot")
    for i in range(plots.count()):
        assert plots.nth(i).locator(".main-svg").count() > 0, plots.nth(i).get_attribute("id")
    assert page.locator("#status").is_hidden()


def test_names_are_text(page: Any) -> None:
    assert page.evaluate("window.hit") is None
    assert "<img src=x onerror=hit()>" in page.locator(".facts").text_content()
    assert "</script>{{data}}" in page.locator(".facts").text_content()
    assert "it was <b>not</b> asked for" in page.locator(".absent").text_content()


def test_keyboard_alone_reaches_every_chooser_and_table(page: Any) -> None:
    wanted = page.locator("select, summary").count()
    reached = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate("""() => [...document.querySelectorAll("select, summary")].indexOf(document.activeElement)""")
        )
    assert reached - {-1} == set(range(wanted))


def test_what_is_missing_is_said(open_page: OpenPage) -> None:
    missing = {"faithfulness": "no trained prediction head", "probing": "too few", "cues": "no parser"}
    run = reproduction(faithfulness=None, probing=None, probing_paper=None, cue_check=None, missing=missing)
    page, _ = open_page(render_reproduction(run), wait_for=DRAWN)
    assert "Not measured" in page.locator("#figure-faithfulness").text_content()
    texts = page.locator("main").text_content()
    assert all(reason in texts for reason in missing.values())


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [420, 1280])
def test_nothing_is_wider_than_the_window(open_page: OpenPage, width: int, scheme: str) -> None:
    page, _ = open_page(render_reproduction(reproduction()), wait_for=DRAWN, width=width, scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(14, 19, 26)") == (scheme == "dark")


def test_the_numbers_in_the_page_are_strict_json(page: Any) -> None:
    text = page.locator("#page-data").text_content()
    assert "figures" in json.loads(text, parse_constant=lambda name: pytest.fail(name))
