"""The page of an encoder-decoder in a headless Chromium, from a file with the network off."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from support.models import loaded
from support.opened import four_digits
from support.paired import PAIRED

from tl_vzero.report import Translation, make_report

pytestmark = pytest.mark.browser

SHOWN = "#panels:not(.waiting)"


@pytest.fixture(scope="module")
def translation() -> Translation:
    return make_report(loaded(PAIRED["BART"].tiny()), "the dogs bark", decoder_inputs="marcus is near")


def drawn(page: Any, figure: str) -> Any:
    return page.evaluate("id => document.getElementById(`map-${id}`).data[0].z", figure)


def shades(page: Any, line: str) -> list[str]:
    shown: list[str] = page.evaluate(
        "id => [...document.getElementById(id).children].map(t => t.style.background)", line
    )
    return shown


def summed(rows: Sequence[Sequence[float]]) -> list[float]:
    return [sum(row) for row in rows]


def test_three_maps_and_the_joint_rollout_have_the_numbers_of_the_json(
    open_page: Callable[..., Any], translation: Translation
) -> None:
    page, _ = open_page(translation.to_html(), wait_for=SHOWN)
    of_method, written = translation.to_dict()["methods"]["value_zeroing"], len(translation.decoder_tokens)
    last = of_method["shares"][-1]
    assert drawn(page, "decoder") == four_digits([row[:written] for row in last])
    assert drawn(page, "cross") == four_digits([row[written:] for row in last])
    assert drawn(page, "joint") == four_digits(of_method["joint_rollout"][-1])
    assert summed(drawn(page, "encoder")) == pytest.approx([1] * len(translation.encoder_tokens), abs=1e-3)
    for figure, (rows, columns) in {
        "cross": ("decoder: destination (row)", "encoder: source (column)"),
        "encoder": ("destination (row)", "source (column)"),
    }.items():
        titles = page.locator(f"#map-{figure} .ytitle, #map-{figure} .xtitle").all_text_contents()
        assert set(titles) == {rows, columns}
    page.locator("#layer").fill("0")
    page.locator("#encoder-layer").fill("1")
    assert drawn(page, "cross") == four_digits([row[written:] for row in of_method["shares"][0]])
    assert drawn(page, "encoder") == four_digits(
        translation.methods["value_zeroing"].encoder.normalized().values[1].tolist()
    )


def test_a_step_shades_what_it_draws_on_and_what_is_not_written_yet_is_faint(
    open_page: Callable[..., Any], translation: Translation
) -> None:
    page, _ = open_page(translation.to_html(), wait_for=SHOWN)
    steps, before = len(translation.steps), shades(page, "text-read")
    page.locator("#text-written button").nth(2).click()
    assert page.locator("#text-written .chosen").text_content() == "is"
    assert shades(page, "text-read") != before
    assert [shade == "none" for shade in shades(page, "text-written")] == [False] * 3 + [True] * (steps - 2)
    assert page.locator("#text-written .later").count() == steps - 3
    shares = translation.methods["value_zeroing"].shares[-1, 2].tolist()
    largest = max(range(len(shares)), key=shares.__getitem__)
    line, at = ("written", largest) if largest < steps else ("read", largest - steps)
    title = page.locator(f"#text-{line} > *").nth(at).get_attribute("title")
    assert four_digits(shares[largest]) == float(title.split("(")[1].rstrip(")"))
    assert "marcus" not in page.locator("#step-title").text_content()
    page.keyboard.press("ArrowRight")
    assert page.locator("#text-written .chosen").text_content() == "near"
    page.locator("#back").click()
    page.locator("#back").click()
    assert "marcus" in page.locator("#step-title").text_content()
    of_layers = drawn(page, "step")
    page.locator("label:has-text('joint rollout')").click()
    assert drawn(page, "step") != of_layers
    assert drawn(page, "step")[-1] == four_digits(translation.methods["value_zeroing"].joint.values[-1, 1].tolist())
    page.locator("#method").select_option("1")
    assert page.locator("#half-limit").is_visible()


def test_without_scripts_the_steps_stand_in_a_table(browser: Any, tmp_path: Any, translation: Translation) -> None:
    file = tmp_path / "page.html"
    file.write_text(translation.to_html(), encoding="utf-8")
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(file.as_uri())
    assert page.locator("#all-steps tr").count() == len(translation.steps)
    assert page.locator("#all-steps").is_visible()
    context.close()
