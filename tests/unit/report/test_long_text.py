"""The page of chosen destinations of a long text."""

import json
from typing import Any

import pytest
import torch
from support.made_up import ODD_TOKENS, made_up_scores

import tl_vzero
from tl_vzero.errors import InputError
from tl_vzero.report import LongReport, make_report

SENTENCE = "the authors near the hat [MASK] today."


@pytest.fixture(scope="module")
def model() -> Any:
    return tl_vzero.load_model("agreement-mini")


def test_it_has_the_rows_of_value_zeroing(model: Any) -> None:
    report = make_report(model, SENTENCE, destinations=["[MASK]", 1])
    assert isinstance(report, LongReport)
    whole = tl_vzero.value_zeroing(model, SENTENCE).normalized()
    at = list(report.value_zeroing.dest_positions)
    assert torch.allclose(report.value_zeroing.normalized().values, whole.values[:, at], atol=1e-6)
    plain = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert plain["rows"]["dest_tokens"] == list(report.value_zeroing.dest_tokens)
    assert torch.tensor(plain["rows"]["values"]).sum(-1) + torch.tensor(plain["rows"]["omitted"]) == pytest.approx(1)
    assert set(report.to_frame()["dest"]) == set(at)


def test_options_that_it_does_not_show_are_refused(model: Any) -> None:
    for options in ({"methods": ["alti"]}, {"target": 3}, {"heads": True}, {"compare": SENTENCE}):
        with pytest.raises(InputError, match="page of chosen destinations does not show it"):
            make_report(model, SENTENCE, destinations=1, **options)


def test_a_long_text_needs_destinations(monkeypatch: pytest.MonkeyPatch, model: Any) -> None:
    monkeypatch.setattr("tl_vzero.report.make.LONGEST_MAPPED", 8)
    with pytest.raises(InputError, match=r"the text has 10 tokens.* destinations="):
        make_report(model, SENTENCE)


def test_no_token_is_markup() -> None:
    scores = made_up_scores(ODD_TOKENS).at_dest(1)
    html = LongReport("<b>model</b>", " ".join(ODD_TOKENS), scores).to_html(shared_plotly=True)
    for part in ("<script>window.hit", "<img src=x", "<a href='javascript", "<b>model</b>"):
        assert part not in html
    assert html.count("<script") == 3
