"""A long sentence in the page: what is hidden and renormalised, the window, the scale, and the time it takes; and rows
of a text that is too long for a map."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.made_up import made_up_report, made_up_scores
from support.opened import Opened, four_digits

from tl_vzero.plot.theme import LIGHT
from tl_vzero.report import LongReport, Report
from tl_vzero.scores import Scores

pytestmark = pytest.mark.browser

PAGE_BYTES, DRAWN_SECONDS = 6_000_000, 2.0
SENTENCE = ["[CLS]", *[f"word{i}" if i % 5 else "," for i in range(1, 58)], "[MASK]", "[SEP]"]
TARGET = 58
AWAY = [i for i, token in enumerate(SENTENCE) if token in ("[CLS]", ",", "[SEP]")]
Show = Callable[..., Opened]


def report_of(tokens: list[str], methods: tuple[str, ...], layers: int) -> Report:
    words = tuple(None if token in ("[CLS]", "[SEP]") else i for i, token in enumerate(tokens))
    scores = [made_up_scores(tokens, layers=layers, method=method, word_ids=words) for method in methods]
    report = made_up_report(tokens, scores=scores)
    vars(report)["agreements"] = {effect: {} for effect in report.effects}  # short, and long to compute
    return report


@pytest.fixture(scope="module")
def sentence_of_60() -> Report:
    return report_of(SENTENCE, ("value_zeroing", "attention"), 4)


def without(row: list[float], hidden: set[int]) -> list[Any]:
    """A row as the page shows it: blank where it is hidden, the rest a share of what is left."""
    left = sum(value for source, value in enumerate(row) if source not in hidden)
    return [None if source in hidden else value / left for source, value in enumerate(row)]


def assert_row(shown: list[Any], row: list[float], hidden: set[int]) -> None:
    for value, number in zip(shown, without(four_digits(row), hidden), strict=True):
        assert value == (None if number is None else pytest.approx(number))


def test_what_is_hidden_is_blank_everywhere_and_the_rest_is_renormalised(show: Show, sentence_of_60: Report) -> None:
    opened = show(sentence_of_60, width=1400)
    normalized = opened.json["value_zeroing"]["pieces"]["normalized"]
    opened.page.locator("[name=itself]").focus()
    opened.page.keyboard.press("Space")
    for row in (0, 5, TARGET):
        assert_row(opened.trace("map-value_zeroing")["z"][row], normalized[0][row], {row})
    opened.page.keyboard.press("Tab")
    opened.page.keyboard.press("Space")
    hidden = {TARGET, *AWAY}
    attention = opened.json["attention"]["pieces"]["normalized"][0]
    assert_row(opened.trace("map-beside")["z"][TARGET], attention[TARGET], hidden)
    for layer, row in enumerate(opened.trace("row")["z"]):
        assert_row(row, normalized[layer][TARGET], hidden)
    blank = opened.page.evaluate(
        """() => [...document.querySelectorAll('#text-value_zeroing .token')]
            .flatMap(({ style }, i) => (style.background === 'none' || style.background === '' ? [i] : []))"""
    )
    assert set(blank) == hidden
    opened.page.locator("#numbers summary").press("Enter")
    assert {i for i, line in enumerate(opened.table()) if line[1] == "–"} == hidden
    said = "Hidden: itself, special tokens and punctuation. Each row is renormalised: divided by what is left of it."
    assert set(opened.page.locator(".hidden-note").all_text_contents()) == {said}
    assert said in (opened.page.locator("#numbers-caption").text_content() or "")
    titles = opened.page.locator(".cbtitle text").all_text_contents()
    assert [title.startswith("share of the row, renormalised") for title in titles[:3]] == [True] * 3
    for name in ("itself", "special"):
        opened.page.locator(f"[name={name}]").press("Space")
    assert opened.trace("map-value_zeroing")["z"] == four_digits(normalized[0])
    assert set(opened.page.locator(".hidden-note").all_text_contents()) == {""}


def test_the_square_root_scale_is_of_all_colours_and_no_number(show: Show, sentence_of_60: Report) -> None:
    opened = show(sentence_of_60, width=1400)
    before = opened.trace("map-value_zeroing")["z"]
    opened.page.locator("[name=scale]").press("Space")
    assert opened.trace("map-value_zeroing")["z"] == before
    ramp = [[place, colour] for place, colour in LIGHT.sequential_ramp("sqrt")]
    for figure in ("map-value_zeroing", "map-beside", "row"):
        scale, title = opened.page.evaluate(
            "id => (({ colorscale, colorbar }) => [colorscale, colorbar.title.text])"
            "(document.getElementById(id).layout.coloraxis)",
            figure,
        )
        assert scale == ramp and title.endswith("square-root scale")


def test_a_window_follows_the_chosen_token(show: Show, sentence_of_60: Report) -> None:
    opened = show(sentence_of_60, width=1400)

    def ranges(figure: str) -> Any:
        return opened.page.evaluate(
            "id => (({ xaxis, yaxis }) => [xaxis.range, yaxis.range])(document.getElementById(id)._fullLayout)", figure
        )

    opened.page.locator("#window").focus()
    opened.page.keyboard.press("ArrowDown")
    opened.page.keyboard.press("ArrowDown")  # 10 tokens on each side
    assert ranges("map-value_zeroing") == [[TARGET - 10.5, 59.5], [59.5, TARGET - 10.5]]
    opened.page.locator("#text-value_zeroing button").nth(30).click()
    for figure in ("map-value_zeroing", "map-beside"):
        assert ranges(figure) == [[19.5, 40.5], [40.5, 19.5]]
    assert ranges("row")[0] == ranges("effect")[0] == [19.5, 40.5]
    opened.click("map-value_zeroing", 3, 5, 21, 21)  # the fourth row in view
    opened.page.wait_for_function("document.getElementById('destination').value === '23'")
    assert ranges("map-beside") == [[12.5, 33.5], [33.5, 12.5]]
    opened.page.locator("#window").select_option("")
    assert ranges("map-value_zeroing") == [[-0.5, 59.5], [59.5, -0.5]]


def test_maps_of_60_tokens_stand_side_by_side_and_name_the_chosen_row(show: Show, sentence_of_60: Report) -> None:
    opened = show(sentence_of_60, width=1400)
    one, other = (opened.page.locator(f"#map-{side}").bounding_box() for side in ("value_zeroing", "beside"))
    assert one["y"] == other["y"] and one["x"] + one["width"] <= other["x"]
    for row in (TARGET, 31, 32, 33):
        opened.page.locator("#destination").select_option(str(row))
        for side in ("value_zeroing", "beside"):
            labels = opened.page.locator(f"#map-{side} .annotation-text")
            assert set(labels.all_text_contents()) == {SENTENCE[row]}
            frame, label = (
                opened.page.locator(selector).first.bounding_box()
                for selector in (f"#map-{side}", f"#map-{side} .annotation-text")
            )
            assert frame["x"] <= label["x"] and label["x"] + label["width"] <= frame["x"] + frame["width"]


def test_a_long_page_of_three_methods_is_small_and_drawn_in_time(browser: Any, tmp_path: Any) -> None:
    tokens = ["[CLS]", *[f"word{i}" for i in range(125)], "[MASK]", "[SEP]"]
    html = report_of(tokens, ("value_zeroing", "attention", "alti"), 12).to_html()
    assert len(html.encode()) < PAGE_BYTES
    (tmp_path / "page.html").write_text(html, encoding="utf-8")
    times = []
    for _ in range(3):
        context = browser.new_context(viewport={"width": 1400, "height": 900}, offline=True)
        page = context.new_page()
        # Seconds of the processor in the page, as others use the machine too.
        session = context.new_cdp_session(page)
        session.send("Performance.enable", {"timeDomain": "threadTicks"})
        page.goto((tmp_path / "page.html").as_uri())
        page.wait_for_selector("#flow .scatterlayer path", timeout=60_000)
        metrics = {metric["name"]: metric["value"] for metric in session.send("Performance.getMetrics")["metrics"]}
        assert page.locator("#method option").count() == 2
        times.append(metrics["TaskDuration"])
        context.close()
    assert min(times) < DRAWN_SECONDS, times


def long_report(n_sources: int, layers: int) -> LongReport:
    """The last position of a text; source 7 and, in layer 1, source 12,000 are the largest."""
    tokens = tuple("<b>odd</b>" if i % 9 == 7 else f"word{i}" for i in range(n_sources))
    values = torch.rand(layers, 1, n_sources, generator=torch.Generator().manual_seed(0)) * 1e-3
    values[:, 0, 7], values[1, 0, 12_000] = 40.0, 900.0
    places, numbers = tuple(range(n_sources)), tuple(range(layers))
    row = Scores(values, "value_zeroing", numbers, tokens[-1:], tokens, places[-1:], places, layers, n_sources)
    return LongReport("made-up", " ".join(tokens), replace(row, error=torch.full_like(values, 0.01)))


@pytest.mark.parametrize(("width", "scheme"), [(1400, "light"), (420, "dark")])
def test_a_row_of_a_long_text_is_a_strip_and_a_list(open_page: Any, width: int, scheme: str) -> None:
    html = long_report(32_768, 30).to_html(shared_plotly=False)
    assert len(html.encode()) < PAGE_BYTES
    page, complaints = open_page(html, wait_for="#row-0 .heatmaplayer image", width=width, scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width

    def listed() -> list[str]:
        texts: list[str] = page.locator("#row-0 .textpoint").all_text_contents()
        return texts

    assert listed()[0].startswith("word12000") and "± 1 %" in listed()[0] and "at position 12000" in listed()[0]
    assert "word11999" in listed()[0] and listed()[1].startswith("<b>odd</b>")
    assert listed()[-1].startswith("all other sources")
    page.locator("#row-0 .slider-rail-touch-rect").scroll_into_view_if_needed()
    handle = page.locator("#row-0 .slider-rail-touch-rect").bounding_box()
    page.mouse.click(handle["x"] + handle["width"] - 2, handle["y"] + handle["height"] / 2)
    page.wait_for_function("document.querySelector('#row-0 .textpoint').textContent.startsWith('<b>odd')")
    page.locator("#row-0 .nsewdrag").first.scroll_into_view_if_needed()
    box = page.locator("#row-0 .nsewdrag").first.bounding_box()
    for place, act in ((0.3, "down"), (0.5, "up")):
        page.mouse.move(box["x"] + box["width"] * place, box["y"] + box["height"] / 2, steps=4)
        getattr(page.mouse, act)()
    shown = page.evaluate("document.getElementById('row-0').layout.xaxis.range")
    assert 250 < shown[0] < shown[1] < 550
    page.locator("summary").click()
    cells = page.locator("tbody tr").nth(10).locator("td").all_text_contents()
    assert cells[:3] == ["1", "12000", cells[2]] and "± 1 %" in cells[2] and "word11999" in cells[3]
    assert complaints == []
