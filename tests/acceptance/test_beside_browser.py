"""Two sentences or models side by side, in headless Chromium: what stands where, and the numbers of the difference."""

from collections.abc import Callable
from typing import Any

import pytest
from support.opened import Opened

import tl_vzero
from tl_vzero.difference import aligned
from tl_vzero.report import Report, make_report

pytestmark = pytest.mark.browser

SENTENCE = "the pictures of some hat [MASK] scaring marcus."
LONGER = "the picture of some old hat [MASK] scaring marcus."


@pytest.fixture(scope="module")
def both() -> Report:
    return make_report(tl_vzero.load_model("agreement-mini"), SENTENCE, compare=LONGER, methods=["attention"])


def numbers(opened: Opened, figure: str) -> Any:
    return opened.trace(f"pair-{figure}")["z"]


def expected_difference(report: Report, stage: str, layer: int) -> list[list[float | None]]:
    """First minus second over the aligned tokens, the others empty."""
    assert report.beside is not None
    first, second = (getattr(one.value_zeroing, stage)() for one in (report, report.beside))
    pairs = aligned(first.dest_tokens, second.dest_tokens)
    grid: list[list[float | None]] = [[None] * first.n_positions for _ in range(first.n_positions)]
    for dest, dest2 in pairs:
        for source, source2 in pairs:
            grid[dest][source] = float(first.values[layer, dest, source] - second.values[layer, dest2, source2])
    return grid


def assert_close(shown: Any, expected: list[list[float | None]]) -> None:
    """Equal to what the 4 digits of both maps allow."""
    assert len(shown) == len(expected)
    for row, wanted in zip(shown, expected, strict=True):
        for value, right in zip(row, wanted, strict=True):
            assert (value is None) == (right is None)
            assert right is None or value == pytest.approx(right, abs=1.01e-4)


@pytest.mark.parametrize(("stage", "label"), [("normalized", "per layer"), ("rollout", "rollout")])
def test_the_difference_is_first_minus_second(
    show: Callable[..., Opened], both: Report, stage: str, label: str
) -> None:
    opened = show(both)
    opened.page.locator(f"label:has-text('{label}')").click()
    for layer in ("0", "2"):
        opened.page.locator("#layer").fill(layer)
        assert_close(numbers(opened, "difference"), expected_difference(both, stage, int(layer)))
        scales = [
            opened.page.evaluate("id => document.getElementById(id).layout.coloraxis", f"pair-{figure}")
            for figure in ("0", "1", "difference")
        ]
        assert scales[0]["cmax"] == scales[1]["cmax"] and scales[2]["cmin"] == -scales[2]["cmax"] < 0
    labels = opened.page.evaluate("Object.values(document.getElementById('pair-difference').layout.xaxis.labelalias)")
    assert "pictures|picture" in labels  # as in a table of the difference


def test_a_hidden_source_is_hidden_on_both_sides(show: Callable[..., Opened], both: Report) -> None:
    opened = show(both)
    opened.page.locator("[name=itself]").press("Space")
    for figure in ("0", "1"):
        grid = numbers(opened, figure)
        for at, row in enumerate(grid):
            assert [value is None for value in row] == [source == at for source in range(len(row))]
            assert sum(value for value in row if value is not None) == pytest.approx(1, abs=1e-3)


def test_a_token_of_either_side_is_chosen_in_both_by_mouse_and_by_keyboard(
    show: Callable[..., Opened], both: Report
) -> None:
    opened = show(both)
    columns = opened.page.locator("#beside-text .column")
    assert columns.count() == 12
    assert [columns.nth(5).locator("*").nth(at).text_content() for at in (0, 1)] == ["", "old"]
    columns.nth(6).locator(".token").nth(1).click()  # the second sentence's "hat"
    assert opened.page.locator("#destination").input_value() == "5"
    assert [opened.outlined(f"pair-{at}") for at in ("0", "1", "difference")] == [5, 6, 5]
    opened.page.locator("#beside-text [tabindex='0']").press("ArrowLeft")
    assert [opened.outlined(f"pair-{at}") for at in ("0", "1", "difference")] == [4, 4, 4]
    columns.nth(5).locator(".token").click()  # stands against nothing: nothing to choose in the first
    assert opened.page.locator("#destination").input_value() == "4"
    opened.click("pair-1", 7, 3, 12, 12)
    assert opened.page.locator("#destination").input_value() == "6"
    assert opened.page.locator("#beside-text .chosen").all_text_contents() == ["[MASK]", "[MASK]"]
    marked = opened.page.locator("#beside-text .token.differs").all_text_contents()
    assert marked == ["pictures", "picture", "old"]


def test_the_headline_and_the_predictions_are_those_of_both(show: Callable[..., Opened], both: Report) -> None:
    opened = show(both)
    opened.page.locator("#layer").fill("1")
    said = opened.page.locator("#beside-finding").text_content() or ""
    assert said.startswith("Layer 1: [MASK] draws 84 % on pictures in the first sentence, and ")
    assert said.endswith(" on picture in the second sentence.")
    lines = opened.page.locator("#beside-predictions dd").all_text_contents()
    assert both.beside is not None
    for line, report in zip(lines, (both, both.beside), strict=True):
        assert report.predictions[report.target or 0][0][0] in line


def test_a_layer_that_one_model_lacks_is_told(show: Callable[..., Opened], minilm_report: Report) -> None:
    models = [tl_vzero.load_model(name) for name in ("all-MiniLM-L6-v2", "agreement-mini")]
    opened = show(make_report(models[0], SENTENCE, compare_model=models[1], methods=["attention"]), width=420)
    opened.page.locator("#layer").fill("5")
    said = "Layer 5 is not in agreement-mini, which has layers 0 to 3: choose one of these."
    assert opened.page.locator("#beside-missing").text_content() == said
    assert opened.page.locator("#beside-both").is_hidden()
    opened.page.locator("#layer").fill("3")
    opened.page.locator("label:has-text('words')").click()
    assert opened.page.locator("#beside-both").is_visible()
    assert " in all-MiniLM-L6-v2, and " in (opened.page.locator("#beside-finding").text_content() or "")
    assert opened.page.evaluate("document.documentElement.scrollWidth") == 420


def test_a_page_of_one_sentence_has_no_such_panel(show: Callable[..., Opened], agreement_report: Report) -> None:
    assert show(agreement_report).page.locator("#beside-panel").is_hidden()
