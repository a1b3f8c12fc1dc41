"""The page of what training changed: it says every number, draws every head, and takes names for text."""

import re
from dataclasses import replace

import pytest
from support.evaluated import training
from support.page import Page

from tl_vzero.evaluate.training import Shown, TrainingChanges
from tl_vzero.report.training_page import render_training

HOSTILE = "step <img src=x onerror=hit()>"
TOKENS = ("the", "<script>hit()</script>", "[MASK]")


def changes(names: tuple[str, ...] = (HOSTILE, "step 2"), found: bool = True) -> TrainingChanges:
    """Two heads in each of two layers; head 1 of layer 1 passed, by 0.3 more on the cue, a sentence shows it."""
    by_name = {name: 0.3 if name == names[-1] else 0.1 for name in names}
    tested = [
        replace(one, changed=found and (one.layer, one.head, one.checkpoint) == (1, 1, names[-1]))
        for one in training(by_name).changes
    ]
    own = [replace(one, reading="total", after=0.55, p=None, q=None, changed=None) for one in tested]
    rows = {"before": (0.2, 0.4, 0.4), "same input": (0.1, 0.8, 0.1), "total": (0.3, 0.5, 0.2)}
    text = "the <b>cue</b> [works|work]"
    shown = [Shown(names[-1], 1, 1, "one", text, "cue", 0.4, 0.8, TOKENS, 2, rows)] if found else []
    models: dict[str, dict[str, str]] = {name: {} for name in ("first & base", *names)}
    settings = {"models": models, "rate": 0.05, "smallest": 0.02, "confidence": 0.95}
    return TrainingChanges((*tested, *own), tuple(shown), (), settings)


def test_it_says_what_changed_by_how_much_and_how_sure() -> None:
    text = " ".join(Page(render_training(changes(), source="mine.csv")).text.split())
    for said in (
        "1 of 4 heads changed",
        "4 heads in each of 2 later models: 1 passed. The false-discovery rate is 5 %",
        "larger than 0.02",
        "50: mine.csv",
        "Layer 1, head 1: more on the cue",
        "0.40 → 0.70 (change +0.30, 95 % interval +0.29 to +0.31, 50 sentences of “all”)",
        "later on its own inputs: cue 0.40 → 0.70 → 0.55.",
        "passed in 1 of 2 models, first in step 2",
    ):
        assert said in text


def test_every_head_has_a_line_and_those_that_passed_a_name() -> None:
    html = render_training(changes())
    charts = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    assert len(charts) == 4  # two layers, two readings
    assert [len(re.findall("<polyline", chart)) for chart in charts] == [2] * 4
    named = [re.findall(r'class="name"[^>]*>(.*?)<', chart) for chart in charts]
    assert named == [[], ["head 1"], [], ["head 1"]]
    # From the first model's share, 0.4, over 0.5 to 0.7, on a scale that ends at 0.8: 10 to 146 pixels from above.
    points = re.findall(r'<polyline points="(.*?)"', charts[3])[-1]
    assert points == "30,78 137,61 244,27"


def test_a_sentence_has_a_line_for_each_reading_coloured_by_its_shares() -> None:
    page = Page(render_training(changes()))
    parts = [attributes["style"] for tag, attributes in page.tags if tag == "span" and attributes.get("style")]
    assert parts == [f"--part:{share / 0.8:.2f}" for share in (0.2, 0.4, 0.4, 0.1, 0.8, 0.1, 0.3, 0.5, 0.2)]
    assert [attributes.get("class") for tag, attributes in page.tags if tag == "span"].count("target") == 3


def test_names_and_tokens_are_text_and_nothing_is_fetched_or_run() -> None:
    page = Page(render_training(changes(names=("step 1", HOSTILE))))
    assert not {"img", "script"} & {tag for tag, _ in page.tags}
    assert HOSTILE in page.text and TOKENS[1] in page.text and "first & base" in page.text
    assert not [value for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "href")]


@pytest.mark.parametrize("names", [("after",), ("step 1", "step 2")])
def test_no_head_found_is_said(names: tuple[str, ...]) -> None:
    page = Page(render_training(changes(names, found=False)))
    assert "No head of 4 changed" in page.text and "The heads that changed most" not in page.text
    assert ("in each of 2 later models" in page.text) == (len(names) > 1)
