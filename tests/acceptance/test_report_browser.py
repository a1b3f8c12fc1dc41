"""The page in a headless Chromium: opened from a file with the network off, driven by mouse and keyboard."""

from collections.abc import Callable
from typing import Any

import pytest
from support.made_up import ODD_TOKENS, made_up_report
from support.opened import Opened, as_number, four_digits, in_percent, two

import tl_vzero
from tl_vzero.plot.maps import EFFECT_NAMES
from tl_vzero.plot.parts import visible
from tl_vzero.registry import label_of
from tl_vzero.report import Report, make_report

pytestmark = pytest.mark.browser

SCRIPT_SENTENCE = "the pictures of <script>window.hit=1</script> [MASK] scaring marcus."
SENTENCE = "the pictures of some hat [MASK] scaring marcus."
CORRUPTED = "the picture of some hat [MASK] scaring marcus."
FIGURES = {"map-value_zeroing": "value_zeroing", "map-beside": "attention"}


def test_the_page_opens_on_the_target_with_the_numbers_of_the_json(
    show: Callable[..., Opened], agreement_report: Report
) -> None:
    opened = show(agreement_report)
    data = opened.json
    assert opened.page.locator("#status").is_hidden()
    for figure, method in FIGURES.items():
        assert opened.trace(figure)["z"] == four_digits(data[method]["pieces"]["normalized"][opened.telling_layer])
    assert opened.trace("row")["z"] == four_digits(data["target_row"]["value_zeroing"])
    assert opened.trace("effect")["z"] == four_digits(data["effect"]["values"])
    token, probability = data["effect"]["predicted"][0]
    first = opened.page.locator(".prediction li").first
    assert first.locator(".word").text_content() == token
    assert first.locator("data").text_content() == in_percent(probability)
    assert as_number(first.locator("data").get_attribute("title")) == four_digits(probability)


def test_the_layer_slider_moves_by_keyboard_and_changes_both_maps(
    show: Callable[..., Opened], agreement_report: Report
) -> None:
    opened = show(agreement_report)
    opened.page.locator("#layer").fill("0")
    opened.page.locator("#layer").focus()
    opened.page.keyboard.press("ArrowRight")
    assert (opened.page.locator("#layer-name").text_content() or "").startswith("1 ")
    for figure, method in FIGURES.items():
        assert opened.trace(figure)["z"] == four_digits(opened.json[method]["pieces"]["normalized"][1])
        assert "layer 1<br>" in opened.trace(figure)["hovertemplate"]
    scales = [
        opened.page.evaluate("id => document.getElementById(id).layout.coloraxis.cmax", figure) for figure in FIGURES
    ]
    largest = max(max(max(row) for row in opened.trace(figure)["z"]) for figure in FIGURES)
    assert scales == [largest, largest]


def test_rollout_and_words_change_the_maps(show: Callable[..., Opened], minilm_report: Report) -> None:
    opened = show(minilm_report)
    opened.page.locator("#layer").fill("3")
    opened.page.locator("label:has-text('rollout')").click()
    assert opened.trace("map-beside")["z"] == four_digits(opened.json["attention"]["pieces"]["rollout"][3])
    opened.page.locator("label:has-text('words')").click()
    words = opened.json["value_zeroing"]["words"]
    assert opened.trace("map-value_zeroing")["z"] == four_digits(words["rollout"][3])
    assert "scaring" in opened.page.locator("#map-value_zeroing .ytick").all_text_contents()
    assert "##ing" not in opened.page.locator("#map-value_zeroing .ytick").all_text_contents()
    opened.page.locator("label:has-text('per layer')").click()
    assert opened.trace("map-value_zeroing")["z"] == four_digits(words["normalized"][3])


def test_a_click_on_a_row_chooses_the_destination_everywhere(
    show: Callable[..., Opened], agreement_report: Report
) -> None:
    opened = show(agreement_report)
    pieces = opened.json["value_zeroing"]["pieces"]
    size = len(pieces["dest_tokens"])
    opened.click("map-beside", 3, 5, size, size)
    opened.page.wait_for_function("document.getElementById('destination').value === '3'")
    assert opened.trace("row")["z"] == four_digits([layer[3] for layer in pieces["normalized"]])
    assert set(opened.page.locator(".chosen-name").all_text_contents()) == {"“of” (position 3)"}
    opened.page.locator("#destination").select_option("2")
    assert opened.trace("row")["z"] == four_digits([layer[2] for layer in pieces["normalized"]])
    assert opened.trace("effect")["z"] == four_digits(opened.json["effect"]["values"])


def test_a_click_on_a_layer_chooses_it(show: Callable[..., Opened], agreement_report: Report) -> None:
    opened = show(agreement_report)
    pieces = opened.json["value_zeroing"]["pieces"]
    last = len(pieces["normalized"]) - 1
    opened.click("effect", last, 5, last + 1, len(pieces["dest_tokens"]))
    opened.page.wait_for_function("last => document.getElementById('layer').value === String(last)", arg=last)
    assert opened.trace("map-value_zeroing")["z"] == four_digits(pieces["normalized"][last])


def test_the_table_shows_the_chosen_row(show: Callable[..., Opened], agreement_report: Report) -> None:
    opened = show(agreement_report)
    opened.page.locator("summary").press("Enter")
    opened.page.locator("#layer").fill("1")
    table = opened.table()
    row = opened.json["target"]["position"]
    assert [line[0] for line in table] == opened.json["tokens"]
    for column, method in ((1, "value_zeroing"), (2, "attention")):
        shares = opened.json[method]["pieces"]["normalized"][1][row]
        assert [line[column] for line in table] == [in_percent(share) for share in shares]
        cells = opened.page.locator(f"#numbers-body td:nth-child({column + 1})")
        titles = cells.evaluate_all("cells => cells.map((cell) => cell.title)")
        assert [as_number(title) for title in titles] == four_digits(shares)


def test_hover_shows_tokens_and_value(show: Callable[..., Opened], agreement_report: Report) -> None:
    opened = show(agreement_report)
    pieces = opened.json["value_zeroing"]["pieces"]
    size = len(pieces["dest_tokens"])
    opened.page.locator("#layer").fill("0")
    opened.page.mouse.move(*opened.cell("map-value_zeroing", 6, 4, size, size))
    box = opened.page.wait_for_selector("#map-value_zeroing .hovertext")
    text = box.text_content().replace("\xa0", " ")
    assert "destination  [MASK] · position 6" in text
    assert "source  some · position 4" in text
    assert as_number(text.split()[0].removesuffix("layer")) == four_digits(pieces["normalized"][0][6][4])


def test_keyboard_alone_reaches_every_control(show: Callable[..., Opened], agreement_report: Report) -> None:
    opened = show(agreement_report)
    reached = []
    for _ in range(90):
        opened.page.keyboard.press("Tab")
        reached.append(
            opened.page.evaluate(
                "() => { const e = document.activeElement; return e.id || e.name || e.tagName.toLowerCase(); }"
            )
        )
    controls = ["layer", "view", "unit", "destination", "method", "summary", "effect"]
    assert [name for name in dict.fromkeys(reached) if name in controls] == controls
    opened.page.locator("input[name=unit]:checked").press("ArrowRight")
    assert opened.page.locator("input[name=unit]:checked").get_attribute("value") == "words"


@pytest.fixture(scope="module")
def patched_report() -> Report:
    model = tl_vzero.load_model("agreement-mini")
    options: dict[str, Any] = {"target_ids": ("are", "is"), "corrupted": CORRUPTED, "methods": ["alti", "hta"]}
    effects = ["attribution_patching", "value_patching", "resid_pre_patching", "logit_lens"]
    return make_report(model, SENTENCE, effects=effects, **options)


def test_the_chooser_puts_any_method_beside_value_zeroing(
    show: Callable[..., Opened], agreement_report: Report
) -> None:
    opened = show(agreement_report)
    chooser = opened.page.locator("#method")
    assert chooser.locator("option").count() == len(agreement_report.comparison) - 1
    opened.page.locator("#layer").fill("2")
    zeroing = opened.trace("map-value_zeroing")["z"]
    for method in list(agreement_report.comparison)[1:]:
        chooser.select_option(method)
        scores = agreement_report.comparison[method]
        shown = scores if scores.stage == "rollout" else scores.normalized()
        assert opened.trace("map-beside")["z"] == four_digits(shown.values[2].tolist())
        assert opened.trace("map-value_zeroing")["z"] == zeroing
    chooser.select_option("attention_rollout")
    assert "rolled out already, identity added" in (opened.page.locator("#about-beside").text_content() or "")
    assert "rolled out up to layer 2" in opened.trace("map-beside")["hovertemplate"]
    opened.page.locator("label:has-text('rollout')").click()
    chooser.select_option("alti")
    rolled = agreement_report.comparison["alti"].rollout().values[2].tolist()
    assert opened.trace("map-beside")["z"] == four_digits(rolled)
    chooser.focus()
    opened.page.keyboard.press("ArrowDown")
    methods = list(agreement_report.comparison)
    assert chooser.input_value() == methods[methods.index("alti") + 1]


def test_a_method_of_the_target_alone_shows_its_row(show: Callable[..., Opened]) -> None:
    pytest.importorskip("captum")
    report = make_report(tl_vzero.load_model("agreement-mini"), SENTENCE, methods=["gradient_x_input"])
    opened = show(report)
    opened.page.locator("#layer").fill("0")
    grid = opened.trace("map-beside")["z"]
    expected = report.comparison["gradient_x_input"].normalized().values[0, 0].tolist()
    assert grid[report.target] == four_digits(expected)
    assert all(row == [None] * len(grid) for at, row in enumerate(grid) if at != report.target)
    opened.page.locator("#destination").select_option("1")
    opened.page.locator("summary").press("Enter")
    assert {line[2] for line in opened.table()} == {"–"}


def test_every_effect_is_shown_with_its_agreement(show: Callable[..., Opened], patched_report: Report) -> None:
    opened = show(patched_report)
    for effect, label in ((name, EFFECT_NAMES[name]) for name in patched_report.effects):
        opened.page.locator(f"label:has-text('{label}')").click()
        assert opened.trace("effect")["z"] == four_digits(opened.json["effects"][effect]["values"])
        lines = opened.table_of("agreement-body")
        for line, (method, by_layer) in zip(lines, opened.json["agreement"][effect].items(), strict=True):
            assert line[0] == label_of(method)
            triples = zip(by_layer["rho"], by_layer["low"], by_layer["high"], strict=True)
            assert line[1:] == [
                "–" if rho is None else f"{two(rho)}{two(low)} to {two(high)}" for rho, low, high in triples
            ]
    opened.page.locator("label:has-text('value patching')").click()
    assert opened.page.locator("[data-effect=value_patching] .sentences").is_visible()
    assert opened.page.locator("[data-effect=value_patching] .sentences mark").all_text_contents() == [
        "pictures",
        "picture",
    ]
    assert "pictures / pict…" in opened.page.locator("#effect .xtick").all_text_contents()
    opened.page.locator("label:has-text('attribution patching')").click()
    assert opened.page.locator("[data-effect=value_patching] .sentences").is_hidden()
    assert opened.page.locator("[data-effect=attribution_patching] table").is_visible()
    opened.page.locator("input[name=effect]:checked").press("ArrowLeft")
    assert opened.page.locator("input[name=effect]:checked").get_attribute("value") == "zero_ablation"


def test_the_table_of_methods_is_that_of_the_layer_in_view(show: Callable[..., Opened], patched_report: Report) -> None:
    opened = show(patched_report)
    opened.page.locator("#layer").fill("1")
    rows = [row for row in opened.json["table"] if row["layer"] == 1]
    for line, row in zip(opened.table_of("table-body"), rows, strict=True):
        assert line[0] == label_of(row["method"])
        assert as_number(line[1]) == four_digits(row["entropy"])
        assert line[2:4] == [in_percent(row[name]) for name in ("self_weight", "special_weight")]
        ranks = [row["rank_with_value_zeroing"], row["rank_with_effect"]]
        assert [as_number(cell) for cell in line[4:6]] == pytest.approx(ranks, abs=0.00501)


def test_a_headless_model_has_no_prediction_panel(show: Callable[..., Opened], minilm_report: Report) -> None:
    opened = show(minilm_report)
    assert opened.page.locator("#effect").is_hidden()
    assert "no trained prediction head" in (opened.page.locator("#part-prediction .notice").first.text_content() or "")
    assert opened.trace("row")["z"] == four_digits(opened.json["target_row"]["value_zeroing"])


@pytest.mark.filterwarnings("ignore::tl_vzero.errors.InputWarning")  # words that the model does not know are meant
def test_a_sentence_with_a_script_is_text(show: Callable[..., Opened]) -> None:
    report = make_report(tl_vzero.load_model("agreement-mini"), SCRIPT_SENTENCE)
    opened = show(report)
    assert opened.page.locator(".sentence").text_content() == SCRIPT_SENTENCE
    assert opened.page.evaluate("window.hit") is None


def test_odd_tokens_are_text_on_axes_in_hover_and_in_controls(show: Callable[..., Opened]) -> None:
    opened = show(made_up_report(ODD_TOKENS))
    ticks = opened.page.locator("#map-value_zeroing .ytick").all_text_contents()
    for token in ("<b>", "&amp;", "<br>", "$x$", "%{y}", "</script>", "{{data}}", "<script>window.…"):
        assert token in ticks
    assert ticks.count("the") == 2
    options = opened.page.locator("#destination option").all_text_contents()
    assert [option.split(": ", 1)[1].removesuffix(" (target)") for option in options] == [
        visible(token) for token in ODD_TOKENS
    ]
    size = len(ODD_TOKENS)
    opened.page.mouse.move(*opened.cell("map-value_zeroing", 1, 7, size, size))
    text = opened.page.wait_for_selector("#map-value_zeroing .hovertext").text_content()
    assert "<script>window.hit=1</script>" in text
    assert "<a href='javascript:window.hit=2'>" in text
    assert opened.page.locator("#map-value_zeroing a").count() == opened.page.locator("#map-beside a").count()
    opened.page.locator("label:has-text('words')").click()
    assert opened.page.evaluate("window.hit") is None


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [420, 1280])
def test_nothing_is_wider_than_the_window(
    show: Callable[..., Opened], agreement_report: Report, width: int, scheme: str
) -> None:
    opened = show(agreement_report, width=width, scheme=scheme)
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
    background = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(14, 19, 26)") == (scheme == "dark")
    clipped = opened.page.evaluate(
        """() => [...document.querySelectorAll('.plot')].flatMap((plot) => {
            const frame = plot.getBoundingClientRect();
            return [...plot.querySelectorAll('.xtick text, .ytick text, .xtitle, .ytitle, .cbtitle text')]
                .map((text) => [text.textContent, text.getBoundingClientRect()])
                .filter(([, box]) => box.left < frame.left - 1 || box.right > frame.right + 1
                    || box.top < frame.top - 1 || box.bottom > frame.bottom + 1)
                .map(([name]) => `${plot.id}: ${name}`);
        })"""
    )
    assert clipped == []


@pytest.mark.filterwarnings("ignore::tl_vzero.errors.InputWarning")  # words that the model does not know are meant
@pytest.mark.parametrize(("width", "scheme"), [(1400, "light"), (420, "dark")])
def test_unknown_words_are_dashed_wherever_they_stand(show: Callable[..., Opened], width: int, scheme: str) -> None:
    report = make_report(tl_vzero.load_model("agreement-mini"), "The linguist loves [MASK].", methods=["attention"])
    opened = show(report, width=width, scheme=scheme)
    page = opened.page
    assert page.locator(".sentence .unknown").all_text_contents() == ["linguist", "loves"]
    dashed = page.locator("#text-value_zeroing .unknown")
    assert dashed.all_text_contents() == ["linguist", "loves"]
    styles = dashed.evaluate_all("all => all.map((e) => getComputedStyle(e).textDecorationStyle)")
    assert styles == ["dashed", "dashed"]
    assert dashed.first.get_attribute("aria-label") == "linguist, position 2, unknown to the model"
    assert page.locator("#text-unknown").is_visible()
    assert "2: linguist (unknown)" in page.locator("#destination option").all_text_contents()
    assert opened.table()[2][0] == "linguist (unknown)"
    ticks = page.locator("#map-value_zeroing .ytick text tspan[style*=dashed]").all_text_contents()
    assert sorted(ticks) == ["linguist", "loves"]
    page.locator("label:has-text('words')").click()
    assert dashed.all_text_contents() == ["linguist", "loves"]


def test_known_words_are_not_dashed(show: Callable[..., Opened], agreement_report: Report) -> None:
    opened = show(agreement_report)
    assert opened.page.locator(".token.unknown").count() == 0
    assert opened.page.locator("#text-unknown").is_hidden()


@pytest.mark.filterwarnings("ignore::tl_vzero.errors.InputWarning")
def test_a_sentence_of_unknown_words_has_no_finding(show: Callable[..., Opened]) -> None:
    opened = show(make_report(tl_vzero.load_model("agreement-mini"), "Zork blarf gronk.", methods=["attention"]))
    assert "no finding" in opened.page.locator("header .notice").first.text_content()
    assert "No finding" in opened.page.locator("#text-summary").text_content()
