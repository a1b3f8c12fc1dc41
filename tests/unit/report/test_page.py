"""The page and its numbers, of made-up reports: what it shows, and what a page must never do."""

from typing import Any

import pytest
import torch
from support.made_up import (
    ODD_TOKENS,
    PIECES,
    SPECIAL,
    made_up_effect,
    made_up_patching,
    made_up_report,
    made_up_scores,
)
from support.page import Page, as_json, flat, page_numbers, unpacked

import tl_vzero
from tl_vzero.effects.agreement import OF_ONE, PATCHED
from tl_vzero.plot.maps import EFFECT_NAMES
from tl_vzero.plot.parts import visible
from tl_vzero.registry import BUILT_IN
from tl_vzero.report import make_report
from tl_vzero.report.figures import decimal_codes

BY_DEFAULT = [name for name, method in BUILT_IN.items() if "clean run" in method.needs and method.reported_up_to != 0]

PAGE_LIMIT = 6_000_000


def test_the_json_holds_every_map_of_both_methods() -> None:
    report = made_up_report()
    data = as_json(report)
    for name, scores in report.comparison.items():
        stages = {"raw": scores, "normalized": scores.normalized(), "rollout": scores.rollout()}
        for stage, expected in stages.items():
            assert data[name]["pieces"][stage] == expected.values.tolist()
            assert data[name]["words"][stage] == expected.words().values.tolist()
        assert data[name]["pieces"]["dest_tokens"] == list(PIECES)
        assert data[name]["words"]["src_tokens"] == list(scores.words().src_tokens)
        assert data["target_row"][name] == scores.normalized().row(4).tolist()
    assert data["target"] == {"position": 4, "token": "[MASK]"}
    assert data["effect"]["values"] == report.effects["zero_ablation"].values.tolist()
    assert data["effect"]["predicted"][0] == ["is", 0.71]


def test_the_json_has_no_nan() -> None:
    values = torch.full((3, len(PIECES), len(PIECES)), float("nan"))
    scores = [made_up_scores(values=values), made_up_scores(method="attention")]
    effect = made_up_effect(scores[0], 4, values=torch.full((3, len(PIECES)), float("inf")), clean=float("nan"))
    data = as_json(made_up_report(scores=scores, effects=[effect]))
    assert data["value_zeroing"]["pieces"]["raw"][0][0][0] is None
    assert data["effect"]["clean"] is None
    assert data["effect"]["values"][0][0] is None


def test_the_page_shows_the_numbers_of_the_json() -> None:
    report = made_up_report()
    data = as_json(report)
    expected = [
        entry
        for unit in ("pieces", "words")
        for method in ("value_zeroing", "attention")
        for stage in ("normalized", "rollout")
        for entry in flat(data[method][unit][stage])
    ]
    page = Page(report.to_html())
    assert page_numbers(page) == [pytest.approx(float(f"{entry:.4g}"), rel=1e-12) for entry in expected]
    effect = [float(f"{entry:.4g}") for entry in flat(data["effect"]["values"])]
    assert flat(page.data()["effects"]["zero_ablation"]["z"]) == effect


def test_decimal_codes_keep_four_digits_of_any_size() -> None:
    sizes = torch.tensor([0.0, 1.0, 0.99996, 1e-12, 3.2109e-7, 0.05, 12345.0], dtype=torch.float64)
    codes = memoryview(decimal_codes([sizes])).cast("h").tolist()
    numbers = [float(f"{m}e{e}") for m, e in zip(codes[:7], codes[7:], strict=True)]
    assert numbers == [float(f"{size:.4g}") for size in sizes.tolist()]


@pytest.mark.parametrize("tokens", [PIECES, ODD_TOKENS], ids=["plain", "odd"])
def test_the_page_loads_nothing(tokens: tuple[str, ...]) -> None:
    html = made_up_report(tokens).to_html()
    page = Page(html)
    assert [tag for tag, _ in page.tags].count("script") == 4
    assert not {"link", "img", "iframe", "object", "base", "a"} & {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        assert not {"src", "href", "srcset", "data-src", "onload", "onerror"} & set(attributes), tag
    written = html.replace(page.scripts["plotly-js"], "").replace(page.scripts["report-maps"], "")
    for loader in ("http:", "https:", "url(", "@import", "import(", "fetch(", "XMLHttpRequest"):
        assert loader not in written
    assert len(html.encode()) < PAGE_LIMIT


def test_plotly_is_in_the_page_once() -> None:
    from plotly.offline import get_plotlyjs

    page = Page(made_up_report().to_html())
    assert unpacked(page, "plotly-js").decode() == get_plotlyjs()


def test_odd_tokens_are_text() -> None:
    report = made_up_report(ODD_TOKENS, text="<script>window.hit=1</script> {{data}} [MASK] </title>\n<b>")
    html = report.to_html()
    page = Page(html)
    assert page.data()["units"]["pieces"]["names"] == [visible(token) for token in ODD_TOKENS]
    assert "<script>window.hit=1</script> {{data}} [MASK] </title>" in page.text
    assert ("mark", {}) in page.tags
    assert "b" not in [tag for tag, _ in page.tags][: [tag for tag, _ in page.tags].index("main")]
    assert not {"\u2028", "\u2029", "\u202e"} & set(html)
    data = page.scripts["report-data"]
    assert data.isascii()
    assert not set("<>&") & set(data)


def test_the_page_names_model_sentence_target_versions_and_options() -> None:
    text = Page(made_up_report(text="the hat the [MASK] scaring.").to_html()).text
    for part in (
        "made-up",
        "the hat the [MASK] scaring.",
        "at position 4",
        "torch 2.13.0",
        "distance cosine, engine hooks",
    ):
        assert part in text


def test_the_page_shows_the_prediction() -> None:
    text = " ".join(Page(made_up_report().to_html()).text.split())
    assert "In place of “\u2068[MASK]\u2069” (position 4):" in text
    assert "is 71 % <b>are</b> 12 % was < 0.01 %" in text
    assert "Measured at [MASK], position 4: logit of 'is', 7.25 in the clean run" in text


def test_predictions_are_labelled_by_what_they_predict() -> None:
    def labels(**metadata: Any) -> list[str]:
        data = Page(made_up_report(metadata={"masks": [4], **metadata}).to_html()).data()
        return [prediction["label"].replace("\u2068", "").replace("\u2069", "") for prediction in data["predictions"]]

    assert labels()[3:5] == ["At “the” (position 3), not masked", "In place of “[MASK]” (position 4)"]
    assert labels(predicts="next token")[3] == "Next token after “the” (position 3)"
    report = made_up_report(metadata={"predicts": "next token"})
    assert "next token after [MASK] at position 4" in " ".join(Page(report.to_html()).text.split())


def test_the_page_opens_on_the_telling_layer_of_the_target_or_of_the_first_word() -> None:
    for seed in range(4):
        values = torch.rand(5, 9, 9, generator=torch.Generator().manual_seed(seed))
        scores = [made_up_scores(layers=5, values=values), made_up_scores(layers=5, method="attention")]
        for target, start in ((True, 4), (False, 1)):
            data = Page(made_up_report(scores=scores, effects=[], target=target).to_html()).data()
            assert (data["start"], data["opens"]) == (start, scores[0].telling_layer(start))
        pieces, words = data["units"]["pieces"], data["units"]["words"]
        assert pieces["telling"] == [scores[0].telling_layer(position) for position in range(9)]
        assert words["telling"] == [scores[0].normalized().words().telling_layer(word) for word in range(8)]
        assert pieces["special"] == [token in SPECIAL for token in PIECES]  # as the made-up mask has no word


def test_nothing_is_said_of_what_nobody_asked_for() -> None:
    report = make_report(tl_vzero.load_model("agreement-mini"), "the pictures of some hat [MASK] scaring marcus.")
    page = Page(report.to_html())
    assert "No value patching" not in page.text and "orrupted" not in page.text
    effects = [attributes["value"] for tag, attributes in page.tags if attributes.get("name") == "effect"]
    assert effects == ["zero_ablation", "attribution_patching"]


def test_effects_that_are_named_are_offered_or_said_to_be_undefined() -> None:
    model, text = tl_vzero.load_model("agreement-mini"), "the author near the hats [MASK] today."
    names = [*OF_ONE, *PATCHED]
    report = make_report(model, text, corrupted=text.replace("author", "authors"), effects=names)
    page = Page(report.to_html())
    offered = [attributes["value"] for tag, attributes in page.tags if attributes.get("name") == "effect"]
    assert offered == [name for name in EFFECT_NAMES if name in report.effects]
    assert {*offered} == {"zero_ablation", *names} - {"direct_logit_attribution"}
    assert "No direct logit attribution: the head of this" in page.text
    assert "Patching this sentence's residual stream into the corrupted one" in page.text
    assert {*page.data()["agreement"]} == {*offered}


def test_without_an_effect_the_page_says_why() -> None:
    page = Page(made_up_report(effects=[]).to_html())
    assert "No prediction is shown: no <head> here." in page.text
    assert page.data()["effects"] == {}


def test_without_a_target_the_first_word_is_chosen() -> None:
    report = made_up_report(effects=[], target=False)
    data = Page(report.to_html()).data()
    assert (data["target"], data["start"]) == (None, 1)
    assert as_json(report)["target_row"] is None
    assert as_json(report)["target"] is None


def test_without_known_words_only_pieces_are_shown() -> None:
    report = made_up_report(scores=[made_up_scores(method=m, word_ids=None) for m in ("value_zeroing", "attention")])
    assert as_json(report)["value_zeroing"]["words"] is None
    page = Page(report.to_html())
    assert list(page.data()["units"]) == ["pieces"]


def test_empty_rows_are_reported() -> None:
    scores = made_up_scores()
    scores.values[1, 3] = 0
    report = made_up_report(scores=[scores, made_up_scores(method="attention")])
    assert "nothing moved: layer 1 position 3." in Page(report.to_html()).text
    assert as_json(report)["value_zeroing"]["pieces"]["empty_rows"] == [[1, 3]]


def test_a_long_sentence_on_a_large_model_stays_under_the_limit() -> None:
    tokens = ["[CLS]", *["scar", "##ing", "the", "hat", "of"] * 25, "[MASK]", "[SEP]"]
    scores = [made_up_scores(tokens, layers=12, method=method) for method in BY_DEFAULT]
    effect = made_up_effect(scores[0], tokens.index("[MASK]"))
    # Their agreement with the effect is short, and long to compute.
    report = made_up_report(tokens, scores=scores, effects=[effect])
    vars(report)["agreements"] = {"zero_ablation": {}}
    html = report.to_html()
    assert len(html.encode()) < PAGE_LIMIT
    assert [method["name"] for method in Page(html).data()["methods"]] == BY_DEFAULT[:2]
    vars(report)["beside"] = report
    assert len(report.to_html().encode()) < PAGE_LIMIT + 1_000_000


def test_a_long_sentence_has_room_for_few_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tl_vzero.report.figures.NUMBERS_DRAWN", 1)
    names = ["value_zeroing", "attention", "alti"]
    page = Page(made_up_report(scores=[made_up_scores(method=name) for name in names]).to_html())
    assert [method["name"] for method in page.data()["methods"]] == names[:2]
    assert "ALTI: its maps of a sentence this long have no room" in page.text
    assert [line["name"] for line in page.data()["table"]] == names


def test_signed_scores_are_not_drawn() -> None:
    signed = made_up_scores(method="alti")
    report = made_up_report(scores=[made_up_scores(), made_up_scores(method="attention"), signed])
    signed.values.neg_()
    page = Page(report.to_html())
    assert "ALTI: normalized() is undefined here" in page.text
    assert as_json(report)["target_row"]["alti"] is None


def test_the_page_shows_both_sentences_of_a_patching() -> None:
    scores = [made_up_scores(method=name) for name in ("value_zeroing", "attention")]
    effects = [made_up_effect(scores[0], 4), made_up_patching(scores[0], 4)]
    page = Page(made_up_report(scores=scores, effects=effects).to_html())
    text = " ".join(page.text.split())
    assert "This sentence[CLS] the hat the [MASK] scar ##ing . [SEP]logit of 'is': 7.25" in text
    assert "Corrupted[CLS] <i>another</i> hat the [MASK] scar ##ing . [SEP]logit of 'is': -1.5" in text
    labels = page.data()["effects"]["value_patching"]["layout"]["xaxis"]["labelalias"]
    assert labels["1"].startswith("the / &lt;i&gt;") and labels["2"] == "hat"
    assert "No attribution patching: no <head> here." in text
    assert {attributes.get("value") for _, attributes in page.tags} & {*EFFECT_NAMES} == {
        "zero_ablation",
        "value_patching",
    }


def test_the_page_states_the_error_of_the_estimate() -> None:
    report = made_up_report()
    largest = (report.effects["zero_ablation"].values * 0.1).abs().amax(-1).tolist()
    text = " ".join(Page(report.to_html()).text.split())
    for layer, error in enumerate(largest):
        assert f"layer {layer}{error:.4g}10 %1.00" in text
