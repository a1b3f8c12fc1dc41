"""What a page opens on: its headline and the layer that tells most; predictions, and stepping through a sentence."""

import re
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from support.decoder import KEYS, TOKENS, decoder_folder
from support.made_up import made_up_report, made_up_scores
from support.opened import Opened, as_number, four_digits, in_percent

import tl_vzero
from tl_vzero.report import Report, make_report

pytestmark = pytest.mark.browser
Show = Callable[..., Opened]


@pytest.fixture(scope="module")
def decoder() -> Any:
    return tl_vzero.load_model(decoder_folder())


@pytest.fixture(scope="module")
def decoder_report(decoder: Any) -> Report:
    return make_report(decoder, KEYS)


def text_of(opened: Opened, place: str) -> str:
    """A text of the page, without the marks that isolate a token in it."""
    return re.sub("[\u2068\u2069]", "", opened.page.locator(place).text_content() or "")


def headline(opened: Opened, row: int, layer: int, stage: str = "normalized") -> str:
    """The headline on a token, beside raw attention, from the numbers of the JSON."""
    by_method = [opened.json[method]["pieces"][stage][layer][row] for method in ("value_zeroing", "attention")]
    source = opened.largest_elsewhere(by_method[0], row)
    token, other = (opened.json["tokens"][place].strip() for place in (row, source))
    shares = [in_percent(shares[source]) for shares in by_method]
    builder = f"Layer {layer} builds" if stage == "normalized" else f"Layers 0 to {layer} together build"
    return f"{builder} {token} {shares[0]} from {other}; raw attention gives it {shares[1]}."


@pytest.mark.parametrize("which", ["agreement_report", "minilm_report", "decoder_report"])
def test_the_page_opens_on_its_finding(show: Show, request: pytest.FixtureRequest, which: str) -> None:
    opened = show(request.getfixturevalue(which))
    target = opened.json["target"]["position"]
    assert opened.page.locator("#layer").input_value() == str(opened.telling_layer)
    assert text_of(opened, "#finding") == headline(opened, target, opened.telling_layer)
    assert opened.page.locator("#telling").is_hidden() and opened.page.locator("#measure").is_hidden()
    rule = text_of(opened, ".finding:not(#beside-panel) .how")
    assert "the target itself and special tokens, such as [CLS], do not count" in rule


def test_the_headline_follows_token_layer_method_and_view(show: Show, agreement_report: Report) -> None:
    opened = show(agreement_report)
    opened.page.locator("#layer").fill("1")
    assert text_of(opened, "#finding") == headline(opened, 6, 1)
    opened.page.locator("#text-value_zeroing [tabindex='0']").focus()
    for row in (7, 8):
        opened.page.keyboard.press("ArrowRight")
        assert text_of(opened, "#finding") == headline(opened, row, 1)
    opened.page.locator("label:has-text('rollout')").click()
    assert text_of(opened, "#finding") == headline(opened, 8, 1, "rollout")
    opened.page.locator("#method").select_option("alti")
    assert "; ALTI gives it " in text_of(opened, "#finding")


def test_the_full_share_is_in_the_headlines_title(show: Show, agreement_report: Report) -> None:
    opened = show(agreement_report)
    row = opened.json["target_row"]["value_zeroing"][opened.telling_layer]
    title = opened.page.locator("#finding strong").get_attribute("title")
    assert as_number(title) == four_digits(row[opened.largest_elsewhere(row, 6)])


def test_a_token_leads_to_the_layer_that_tells_most_of_it_by_keyboard(show: Show, agreement_report: Report) -> None:
    opened = show(agreement_report)
    maps = opened.json["value_zeroing"]["pieces"]["normalized"]
    for row in range(1, 10):
        opened.page.locator("#text-value_zeroing button").nth(row).click()
        opened.page.locator("#layer").fill("0")
        shares = [layer[row][opened.largest_elsewhere(layer[row], row)] for layer in maps]
        telling = opened.telling_layer_of(row)
        button = opened.page.locator("#telling")
        assert button.is_visible() == (telling != 0)
        if telling:
            assert button.text_content() == f"Layer {telling} tells most of it: {in_percent(shares[telling])}"
            button.press("Enter")
            assert opened.page.locator("#layer").input_value() == str(telling)
            assert opened.page.evaluate("document.activeElement.id") == "layer"
            assert text_of(opened, "#finding") == headline(opened, row, telling)


def test_words_have_a_headline_of_their_own(show: Show, minilm_report: Report) -> None:
    opened = show(minilm_report)
    opened.page.locator("label:has-text('words')").click()
    opened.page.locator("#text-value_zeroing button", has_text="scaring").click()
    assert re.fullmatch(
        r"Layer \d+ builds scaring [\d.]+ % from .+; raw attention gives it .+ %\.", text_of(opened, "#finding")
    )


def test_a_token_that_draws_on_itself_alone_says_so(show: Show) -> None:
    scores = made_up_scores()
    scores.values[:, 4] = 0
    scores.values[:, 4, [0, 4]] = 0.5
    opened = show(made_up_report(scores=[scores, made_up_scores(method="attention")]))
    assert text_of(opened, "#finding") == "Layer 0 builds [MASK] from nothing but itself and special tokens."


def predicted(opened: Opened) -> list[tuple[str, str]]:
    items = opened.page.locator("#predicted li")
    return [
        (items.nth(i).locator(".word").text_content(), items.nth(i).locator("data").text_content())
        for i in range(items.count())
    ]


def test_one_steps_through_a_decoders_sentence_by_keyboard_and_click(show: Show, decoder_report: Report) -> None:
    opened = show(decoder_report)

    def assert_predicts_after(row: int) -> None:
        assert text_of(opened, "#predicted-label") == f"Next token after “{TOKENS[row].strip()}” (position {row}):"
        expected = [(token.strip(), in_percent(share)) for token, share in opened.json["predictions"][row]]
        assert predicted(opened) == expected
        listed = ", ".join(f"{token} ({share})" for token, share in expected[:4])
        assert text_of(opened, "#predicted-here") == f"{text_of(opened, '#predicted-label')} {listed}."
        assert text_of(opened, "#finding") == headline(opened, row, opened.telling_layer) or row == 0

    assert_predicts_after(4)
    assert "next token after cabinet at position 4" in text_of(opened, ".facts")
    opened.page.locator("#text-value_zeroing [tabindex='0']").focus()
    for row in (3, 2, 1):
        opened.page.keyboard.press("ArrowLeft")
        assert_predicts_after(row)
    opened.page.locator("#text-value_zeroing button").nth(3).click()
    assert_predicts_after(3)
    assert "Measured at cabinet, position 4" in text_of(opened, ".prediction")  # the effects are the target's


def test_what_comes_after_a_word_comes_after_its_last_piece(show: Show, decoder: Any) -> None:
    opened = show(make_report(decoder, "the cabinets are", target=1))
    pieces = opened.json["tokens"]
    last = pieces.index(" are") - 1
    assert pieces[last] == "s"
    opened.page.locator("label:has-text('words')").click()
    opened.page.locator("#text-value_zeroing button", has_text="cabinets").click()
    assert text_of(opened, "#predicted-label") == f"Next token after “s” (position {last}):"


def test_a_masked_models_predictions_say_what_stands_there(show: Show, agreement_report: Report) -> None:
    opened = show(agreement_report)
    assert text_of(opened, "#predicted-label") == "In place of “[MASK]” (position 6):"
    opened.page.locator("#text-value_zeroing button").nth(2).click()
    assert text_of(opened, "#predicted-label") == "At “pictures” (position 2), not masked:"
    assert [word for word, _ in predicted(opened)] == [token for token, _ in opened.json["predictions"][2]]


# --- the explorer -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    pytest.importorskip("starlette", reason="starlette is not installed: pip install 'tl-vzero[explore]'")
    from support.served import running

    from tl_vzero.explore import Explorer

    models = {"decoder": tl_vzero.load_model(decoder_folder()), "mini": tl_vzero.load_model("agreement-mini")}
    with running(Explorer(models), None) as (address, _):
        yield address


def settle(opened: Opened) -> None:
    opened.page.wait_for_selector("#panels:not([aria-busy])")


def test_the_explorer_opens_with_a_sentence_that_fits_its_model(visit_live: Show, address: str) -> None:
    opened = visit_live(at=address)
    assert opened.page.locator("#text").input_value() == KEYS
    assert text_of(opened, "#finding").startswith(
        f"Layer {opened.page.locator('#layer').input_value()} builds cabinet "
    )
    opened.page.locator("#model").select_option("mini")
    settle(opened)
    assert opened.page.locator("#text").input_value() == "the pictures of some hat [MASK] scaring marcus."
    opened.page.locator("#text").fill("the hat [MASK] today.")
    opened.page.locator("#model").select_option("decoder")
    settle(opened)
    assert opened.page.locator("#text").input_value() == "the hat [MASK] today."  # somebody's own stays


def test_the_explorer_measures_effects_where_one_stepped_to_by_keyboard(
    visit_live: Show, address: str, decoder: Any
) -> None:
    opened = visit_live(at=address)
    opened.page.locator("#text-value_zeroing [tabindex='0']").focus()
    for _ in range(3):
        opened.page.keyboard.press("ArrowLeft")
    button = opened.page.locator("#measure")
    assert text_of(opened, "#measure") == "Measure the effects on what is predicted at “keys”"
    button.press("Enter")
    opened.page.wait_for_selector(".prediction p:has-text('Measured at keys, position 1')")
    settle(opened)
    assert opened.trace("effect")["z"] == four_digits(tl_vzero.zero_ablation(decoder, KEYS, target=1).values.tolist())
    assert button.is_hidden() and "target=1" in opened.page.url
    assert opened.page.evaluate("document.activeElement.textContent") == "keys"
    opened.page.go_back()
    opened.page.wait_for_selector(".prediction p:has-text('Measured at cabinet, position 4')")
    opened.page.go_forward()
    opened.page.wait_for_selector(".prediction p:has-text('Measured at keys, position 1')")


def test_a_target_that_was_stepped_to_does_not_stay_for_another_sentence(visit_live: Show, address: str) -> None:
    opened = visit_live(at=address)
    opened.page.locator("#text-value_zeroing button").nth(1).click()
    opened.page.locator("#measure").click()
    opened.page.wait_for_selector(".prediction p:has-text('Measured at keys, position 1')")
    settle(opened)
    opened.page.locator("#text").fill("The cabinet")
    opened.page.locator("#text").press("Enter")
    settle(opened)
    assert opened.page.locator("#destination").input_value() == "1" and "target=" not in opened.page.url
    assert "Measured at cabinet, position 1" in text_of(opened, ".prediction")


def test_another_sentence_opens_on_its_own_finding_unless_a_layer_was_chosen(visit_live: Show, address: str) -> None:
    mini = tl_vzero.load_model("agreement-mini")
    opened = visit_live("?model=mini&text=the%20hat%20%5BMASK%5D%20here.", at=address)
    for text in (
        "the author near the houses [MASK] praising books.",
        "the pictures of some hat [MASK] scaring marcus.",
    ):
        opened.page.locator("#text").fill(text)
        opened.page.locator("#text").press("Enter")
        settle(opened)
        assert opened.page.locator("#layer").input_value() == str(
            tl_vzero.value_zeroing(mini, text).telling_layer("[MASK]")
        )
    opened.page.locator("#layer").fill("3")
    opened.page.locator("#text").fill("the hat [MASK] today.")
    opened.page.locator("#text").press("Enter")
    settle(opened)
    assert opened.page.locator("#layer").input_value() == "3"


# --- a good word and its foil -------------------------------------------------------------------------------

MINI = "?model=mini&text=the%20pictures%20of%20some%20hat%20%5BMASK%5D%20scaring%20marcus."
SENTENCE = "the pictures of some hat [MASK] scaring marcus."


def address_says(opened: Opened) -> dict[str, str]:
    query = parse_qs(urlsplit(opened.page.url).query)
    return {name: query[name][0] for name in ("target", "good", "bad") if name in query}


def assert_measures(opened: Opened, words: str, **effect: Any) -> None:
    """The line, the metric and the effect on the page are those of chosen words."""
    settle(opened)
    good, *bad = words.split(" − ")
    metric = f"logit of '{good}'" + "".join(f" minus logit of '{word}'" for word in bad)
    assert text_of(opened, "#measured-words") == f"Measured: {words}."
    assert f": {metric}, " in text_of(opened, ".prediction")
    direct = tl_vzero.zero_ablation(
        tl_vzero.load_model("agreement-mini"), SENTENCE, target_ids=(good, *bad) if bad else good, **effect
    )
    assert opened.trace("effect")["z"] == four_digits(direct.values.tolist())


def test_a_click_measures_a_predicted_word_and_a_shift_click_makes_it_the_foil(visit_live: Show, address: str) -> None:
    opened = visit_live(MINI, at=address)
    words = [word for word, _ in predicted(opened)]
    buttons = opened.page.locator("#predicted button")
    assert opened.page.locator("#without-good").is_hidden() and opened.page.locator("#without-bad").is_hidden()
    assert text_of(opened, "#measured-words") == ""
    buttons.nth(1).click()
    assert_measures(opened, words[1])
    assert address_says(opened) == {"good": words[1]} and opened.page.locator("#without-bad").is_hidden()
    buttons.nth(2).click(modifiers=["Shift"])
    assert_measures(opened, f"{words[1]} − {words[2]}")
    assert address_says(opened) == {"good": words[1], "bad": words[2]}
    assert text_of(opened, "#predicted .good") == words[1] and text_of(opened, "#predicted .bad") == words[2]
    again = visit_live(f"?{urlsplit(opened.page.url).query}", at=address)
    assert_measures(again, f"{words[1]} − {words[2]}")
    assert again.page.locator("#good").input_value() == words[1] and again.page.locator("#bad").is_visible()
    opened.page.go_back()
    opened.page.wait_for_selector("#without-bad", state="hidden")
    assert_measures(opened, words[1])
    opened.page.go_forward()
    opened.page.wait_for_selector("#without-bad")
    opened.page.locator("#without-bad").click()
    assert_measures(opened, words[1])
    opened.page.locator("#without-good").press("Enter")
    settle(opened)
    assert address_says(opened) == {} and text_of(opened, "#measured-words") == ""
    assert opened.page.evaluate("document.activeElement.textContent") == words[0]


def test_where_there_is_no_shift_a_button_makes_the_next_word_the_foil(visit_live: Show, address: str) -> None:
    opened = visit_live(MINI, at=address)
    words = [word for word, _ in predicted(opened)]
    opened.page.locator("#as-foil").click()
    opened.page.locator("#predicted button").nth(2).click()
    assert_measures(opened, f"{words[0]} − {words[2]}")
    assert opened.page.locator("#as-foil").get_attribute("aria-pressed") == "false"  # of that word only


def test_words_are_chosen_by_keyboard(visit_live: Show, address: str) -> None:
    opened = visit_live(MINI, at=address)
    words = [word for word, _ in predicted(opened)]
    opened.page.locator("#predicted button").nth(3).press("Shift+Enter")
    assert_measures(opened, f"{words[0]} − {words[3]}")  # against the likeliest, where none was chosen
    assert opened.page.evaluate("document.activeElement.textContent") == words[3]
    opened.page.keyboard.press("Enter")
    assert_measures(opened, words[3])  # it is no foil of itself
    assert address_says(opened) == {"good": words[3]}


def test_a_word_that_is_predicted_elsewhere_moves_the_target_there(visit_live: Show, address: str) -> None:
    opened = visit_live(f"{MINI}&good=are&bad=is", at=address)
    assert_measures(opened, "are − is")
    opened.page.locator("#text-value_zeroing button").nth(2).click()
    word = predicted(opened)[1][0]
    opened.page.locator("#predicted button").nth(1).click()
    assert_measures(opened, word, target=2)
    assert address_says(opened) == {"target": "2", "good": word}


def test_words_are_written_too_and_what_cannot_be_measured_is_told(visit_live: Show, address: str) -> None:
    opened = visit_live(MINI, at=address)
    opened.page.locator(".more summary").click()
    for field, word, told in (
        ("bad", "is", "bad 'is' given without good"),
        ("good", "linguist", "good and bad hold 'linguist', which is no single token"),
    ):
        opened.page.locator(f"#{field}").fill(word)
        opened.page.locator(f"#{field}").press("Enter")
        settle(opened)
        assert told in text_of(opened, "#status")
    opened.page.locator("#good").fill("are")
    opened.page.locator("#good").press("Enter")
    assert_measures(opened, "are − is")
    opened.page.locator("#text").fill("the picture of some hat [MASK] scaring marcus.")
    opened.page.locator("#text").press("Enter")
    settle(opened)
    assert address_says(opened) == {"good": "are", "bad": "is"}  # of a minimal pair


def test_a_report_has_nothing_to_measure_by_a_click(show: Show, agreement_report: Report) -> None:
    opened = show(agreement_report)
    assert opened.page.locator("#predicted button").count() == 0 and opened.page.locator("#measured").count() == 0
