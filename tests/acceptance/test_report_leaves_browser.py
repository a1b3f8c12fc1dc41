"""What leaves a report's page in a headless Chromium: pictures, numbers, links, print; and the page without scripts."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from support.made_up import ODD_TOKENS, made_up_report
from support.opened import Opened, four_digits, ramp_colour

from tl_vzero.plot.parts import visible
from tl_vzero.plot.theme import LIGHT
from tl_vzero.report import Report

pytestmark = pytest.mark.browser

PANELS = ["text", "maps", "row", "flow", "table"]
TEXT = "{http://www.w3.org/2000/svg}text"


def saved(opened: Opened, panel: str, kind: str) -> Path:
    """The file of a panel's button, pressed by keyboard."""
    button = opened.page.locator(f".panel[aria-labelledby^={panel}] .leave button", has_text=kind)
    with opened.page.expect_download() as download:
        button.press("Enter")
    assert download.value.suggested_filename.startswith(f"tl-vzero-{panel}-layer-")
    assert download.value.suggested_filename.endswith("." + {"LaTeX": "tex"}.get(kind, kind.lower()))
    path: Path = download.value.path()
    return path


def rows_of(opened: Opened, panel: str) -> list[list[str]]:
    with saved(opened, panel, "CSV").open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_every_panel_is_a_picture_of_what_it_shows(show: Callable[..., Opened], agreement_report: Report) -> None:
    opened = show(agreement_report)
    opened.page.locator("#layer").fill("1")
    tokens = opened.json["tokens"]
    for panel in PANELS:
        assert saved(opened, panel, "PNG").read_bytes().startswith(b"\x89PNG")
        svg = ElementTree.parse(saved(opened, panel, "SVG")).getroot()
        texts = ["".join(text.itertext()) for text in svg.iter(TEXT)]
        assert set(tokens if panel != "table" else ["Value Zeroing", "Raw attention"]) <= set(texts), panel
        assert "PNG" not in texts
    # The darkest token of the sentence is the one that its target draws most on, in the colour of the maps.
    svg = ElementTree.parse(saved(opened, "text", "SVG")).getroot()
    row = opened.json["target_row"]["value_zeroing"][1]
    boxes = [mark.attrib["fill"] for mark in svg if mark.attrib.get("rx") == "4"]
    assert boxes[row.index(max(row))] == "rgb({},{},{})".format(*ramp_colour(LIGHT, 1))


def shares_from_each_token(lines: list[list[str]]) -> list[tuple[float, list[float]]]:
    """Of each edge its share, and those of all edges into its destination in its layer."""
    return [(float(line[5]), [float(other[5]) for other in lines if other[:2] == line[:2]]) for line in lines]


def test_every_panel_leaves_its_numbers(show: Callable[..., Opened], agreement_report: Report) -> None:
    opened = show(agreement_report)
    opened.page.locator("#layer").fill("2")
    maps, size = opened.json["value_zeroing"]["pieces"]["normalized"], len(opened.json["tokens"])
    head, *lines = rows_of(opened, "maps")
    assert head[:5] == ["layer", "destination position", "destination", "source position", "source"]
    assert [float(line[5]) for line in lines] == four_digits([value for row in maps[2] for value in row])
    assert [line[4] for line in lines[:size]] == opened.json["tokens"] and {line[0] for line in lines} == {"2"}
    target = opened.json["target"]
    _, *lines = rows_of(opened, "text")
    assert {(line[1], line[2]) for line in lines} == {(str(target["position"]), target["token"])}
    assert [float(line[5]) for line in lines] == four_digits(maps[2][target["position"]])
    assert rows_of(opened, "finding")[1:] == lines  # the headline is of this row
    _, *lines = rows_of(opened, "row")
    assert [float(line[3]) for line in lines] == four_digits([v for layer in maps for v in layer[target["position"]]])
    assert [float(line[4]) for line in lines] == four_digits(
        [v for row in opened.json["effect"]["values"] for v in row]
    )
    _, *lines = rows_of(opened, "flow")
    points = opened.page.evaluate(
        "(({ x, y }) => x.map((at, i) => [at, y[i]]))(document.getElementById('flow').data.at(-2))"
    )
    assert points == [
        [(int(line[1]) + int(line[3])) / 2, int(line[0]) + 0.5] for line in lines
    ]  # the edges that are drawn
    assert all(share >= 0.03 or share == max(others) for share, others in shares_from_each_token(lines))
    assert [line[0] for line in rows_of(opened, "table")[1:3]] == ["Value Zeroing", "Raw attention"]


def test_the_sentence_leaves_as_html_and_as_latex(show: Callable[..., Opened]) -> None:
    opened = show(made_up_report())
    html = saved(opened, "text", "HTML").read_text(encoding="utf-8")
    page = opened.page.context.new_page()
    page.set_content(html)
    row = opened.json["target_row"]["value_zeroing"][opened.telling_layer]
    tokens = page.locator("p").first.locator("span")
    assert tokens.count() == len(row) and "scar</span><span" in html
    darkest = tokens.nth(row.index(max(row))).evaluate("e => getComputedStyle(e).backgroundColor")
    assert darkest == "rgb({}, {}, {})".format(*ramp_colour(LIGHT, 1))
    latex = saved(opened, "text", "LaTeX").read_text(encoding="utf-8")
    assert r"{\strut scar}}%" in latex and latex.count(r"\fcolorbox[RGB]") == 2
    assert latex.count("{") == latex.count("}")
    assert r"{{{},{},{}}}{{\textcolor[RGB]{{255,255,255}}".format(*ramp_colour(LIGHT, 1)) in latex


def test_a_link_opens_the_panel_with_its_choices(show: Callable[..., Opened], agreement_report: Report) -> None:
    opened = show(agreement_report)
    opened.page.locator("#layer").fill("2")
    opened.page.locator("#destination").select_option("3")
    opened.page.locator("label:has-text('rollout')").click()
    opened.page.locator("#method").select_option("alti")
    button = opened.page.locator(".panel[aria-labelledby^=flow] .leave button", has_text="Link")
    button.press("Enter")
    opened.page.wait_for_function("location.hash.includes('panel=flow')")
    assert (button.text_content() or "").startswith("Link ")
    other = opened.page.context.new_page()
    other.on("pageerror", lambda error: opened.complaints.append(str(error)))
    other.goto(opened.page.url)
    other.wait_for_selector("#map-beside .heatmaplayer image")
    assert other.locator("#layer").input_value() == "2" and other.locator("#destination").input_value() == "3"
    assert other.locator("input[name=view]:checked").get_attribute("value") == "rollout"
    assert other.locator("#method").input_value() == "alti"
    other.wait_for_function("document.getElementById('flow-title').getBoundingClientRect().top < innerHeight")
    # A link to the same page changes what it shows.
    other.evaluate("location.hash = 'layer=1&piece=2&panel=text'")
    other.wait_for_function("document.getElementById('destination').value === '2'")
    assert other.locator("#layer").input_value() == "1"


def test_odd_tokens_are_text_in_pictures_and_numbers(show: Callable[..., Opened]) -> None:
    opened = show(made_up_report(ODD_TOKENS))
    svg = ElementTree.parse(saved(opened, "text", "SVG")).getroot()
    assert "<script>window.hit=1</script>" in ["".join(text.itertext()) for text in svg.iter(TEXT)]
    _, *lines = rows_of(opened, "text")
    assert [line[4] for line in lines] == [visible(token) for token in ODD_TOKENS]
    assert r"{\strut \$x\$}" in saved(opened, "text", "LaTeX").read_text(encoding="utf-8")
    assert "<script" not in saved(opened, "text", "HTML").read_text(encoding="utf-8")
    assert opened.page.evaluate("window.hit") is None


def test_print_has_colours_and_fits_the_paper(show: Callable[..., Opened], agreement_report: Report) -> None:
    opened = show(agreement_report, width=1400)
    opened.page.emulate_media(media="print")
    opened.page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    opened.page.wait_for_function(
        "[...document.querySelectorAll('.plot .main-svg')].every(svg => svg.getBoundingClientRect().width <= 600)"
    )
    adjust = "e => getComputedStyle(e).printColorAdjust"
    assert opened.page.locator("#text-value_zeroing .token").first.evaluate(adjust) == "exact"
    assert opened.page.locator(".leave").first.is_hidden()


@pytest.mark.parametrize("width", [420, 1400])
def test_without_scripts_there_is_a_picture_and_a_table(
    browser: Any, agreement_report: Report, tmp_path: Path, width: int
) -> None:
    file = tmp_path / "page.html"
    file.write_text(agreement_report.to_html(), encoding="utf-8")
    context = browser.new_context(java_script_enabled=False, offline=True, viewport={"width": width, "height": 900})
    page = context.new_page()
    page.goto(file.as_uri())
    shares = agreement_report.value_zeroing.normalized().row("[MASK]")
    lines = page.locator(".still p:has(span)")
    assert lines.count() == len(shares)
    for line, row in enumerate(shares):
        token = lines.nth(line).locator("span").nth(int(row.argmax()))
        background = token.evaluate("e => getComputedStyle(e).backgroundColor")
        assert background == "rgb({}, {}, {})".format(*ramp_colour(LIGHT, 1))
    cells = page.locator(".still tbody td").all_text_contents()
    assert cells == [f"{100 * share:.0f} %" for source in shares.T for share in source]
    assert page.locator("#status").is_hidden() and page.locator(".panel").first.is_hidden()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    context.close()
