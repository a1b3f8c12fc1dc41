"""The text view: tokens as text, one button each, and the numbers that its script reads."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from support.made_up import ODD_TOKENS, PIECES, made_up_scores

from tl_vzero.errors import InputError, ScoresError
from tl_vzero.plot import DARK, LIGHT, Theme, heatmap, text_view
from tl_vzero.plot.parts import visible
from tl_vzero.plot.sentence_view import Snippet, contrast


class Elements(HTMLParser):
    """The elements of a page with their attributes, and the text of each button and span."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.inside = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if dict(attrs).get("class") == "token":
            self.texts.append("")
            self.inside = True

    def handle_endtag(self, tag: str) -> None:
        self.inside &= tag == "span"  # the colours of a token are inside it

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.texts[-1] += data


def data_of(view: Snippet) -> dict[str, Any]:
    line = re.search(r", d = (\{.*\});$", view.html, re.M)
    assert line is not None
    data: dict[str, Any] = json.loads(line[1])
    return data


def test_the_script_reads_the_scores() -> None:
    scores = replace(made_up_scores().normalized(), layers=(4, 7, 9), n_layers=12)
    data = data_of(text_view(scores, "[MASK]", layer=7))
    assert (data["dest"], data["layer"], data["layers"]) == (4, 1, [4, 7, 9])
    torch.testing.assert_close(torch.tensor(data["values"]), scores.values, rtol=5e-4, atol=0)
    assert data["sources"][6] == "\u2068##ing\u2069 · position 6"


def test_pieces_of_a_word_stand_without_a_mark_or_a_space() -> None:
    view = text_view(made_up_scores())
    assert ">scar</span></button><button" in view.html
    assert Elements(view.html).texts == [*PIECES[:6], "ing", *PIECES[7:]]


def test_odd_tokens_are_text_and_nothing_else() -> None:
    view = text_view(made_up_scores(ODD_TOKENS), 1)
    page = Elements(view.to_page())
    assert page.texts == [visible(token) for token in ODD_TOKENS]
    around = ["html", "head", "meta", "meta", "title", "body", "div", "style", "h3", "p", "div", "p", "label", "output"]
    assert [tag for tag, _ in page.tags if tag not in ("button", "span")] == [*around, "input", "p", "script"]
    assert "<script>" not in data_of(view)["sources"][1].replace("\u2068<script>", "")
    assert "http" not in view.html


def test_two_sentences_have_two_lines() -> None:
    scores = made_up_scores(values=torch.rand(3, len(PIECES), 2), src_tokens=("le", "chat"), src_positions=(0, 1))
    page = Elements(text_view(replace(scores, metadata={"stack": "cross"})).html)
    buttons = [attributes for tag, attributes in page.tags if tag == "button"]
    assert len(buttons) == len(PIECES) and all("data-src" not in button for button in buttons)
    assert sum("data-src" in attributes for tag, attributes in page.tags if tag == "span") == 2


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_every_shade_can_be_read(theme: Theme) -> None:
    shades = data_of(text_view(made_up_scores(), theme=theme))["shades"]
    assert shades[0][0] == theme.sequential[0] and shades[-1][0] == theme.sequential[-1]
    assert min(contrast(ink, colour) for colour, ink in shades) > 4.5


def without_scripts_and_styles(html: str) -> str:
    """What a page that trusts nobody leaves: no scripts, no style sheets, no controls."""
    html = re.sub(r"<(style|script)>.*?</\1>", "", html, flags=re.S)
    return re.sub(r"</?(button|input|output|label)[^>]*>", "", html)


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_without_a_script_the_first_row_has_its_colours(theme: Theme) -> None:
    scores = made_up_scores().normalized()
    view = text_view(scores, "[MASK]", layer=2, theme=theme)
    row = scores.values[2, 4]
    for html in (without_scripts_and_styles(view.html), view.to_inline_html()):
        colours = re.findall(r"background:(#\w{6});color:(#\w{6});padding:1px", html)
        assert colours[int(row.argmax())] == (theme.sequential[-1], "#ffffff" if theme is LIGHT else "#000000")
        assert len(colours) == len(PIECES)
        assert "layer 2: what \u2068[MASK]\u2069 · position 4 draws on" in html
    assert "<script" not in view.to_inline_html() and "<style" not in view.to_inline_html()


def test_a_picture_has_every_token_in_its_colour_and_none_over_another() -> None:
    view = text_view(made_up_scores(ODD_TOKENS * 2), 1, width=400, font_size=20, title="mine & yours")
    svg = ElementTree.fromstring(view.to_svg())
    title, _, *marks = svg
    assert (svg.attrib["width"], title.text) == ("400", "mine & yours")
    texts = [mark.text for mark in marks if mark.tag.endswith("text")]
    assert texts == ["mine & yours", *(visible(token) for token in ODD_TOKENS * 2)]
    boxes = [[float(mark.attrib[key]) for key in ("x", "y", "width", "height")] for mark in marks[1::2]]
    for (left, up, width, height), (next_left, next_up, _, _) in pairwise(boxes):
        assert next_left >= left + width or next_up >= up + height
    assert all(left + width <= 400 for left, _, width, _ in boxes if width < 360)
    assert boxes[-1][1] + boxes[-1][3] < float(svg.attrib["height"])


def test_latex_reads_every_sign_as_text() -> None:
    latex = text_view(made_up_scores(("[CLS]", r"\input{x}", "50%", "$a_1^2~", "##ing", "#")), 2).to_latex()
    assert r"{\strut \textbackslash{}input\{x\}}" in latex and r"{\strut 50\%}" in latex
    assert r"{\strut \$a\_1\textasciicircum{}2\textasciitilde{}}}%" in latex and r"{\strut \#}" in latex
    assert latex.count(r"\fcolorbox[HTML]{B34700}") == 1
    assert latex.count("{") == latex.count("}") + latex.count(r"\{") - latex.count(r"\}")


def test_bytes_are_read_as_the_character_that_they_form() -> None:
    tokens = ("caf", "<0xC3>", "<0xA9>", " <0xF0><0x9F>", "<0x98>", "<0x80>", "<0xE4>")
    view = text_view(made_up_scores(tokens), 1)
    assert Elements(view.html).texts == ["caf", "é₁", "é₂", "😀₁", "😀₂", "😀₃", "<0xE4>"]
    assert data_of(view)["sources"][2] == "\u2068é₂\u2069 · position 2"
    assert list(heatmap(made_up_scores(tokens)).layout.xaxis.labelalias.values())[1:3] == ["é₁", "é₂"]


def test_sizes_and_title_are_those_asked_for() -> None:
    view = text_view(made_up_scores(), width=300, height=222, font_size=30, title="<b>")
    assert "max-width:300px;min-height:222px" in view.html and "<h3>&lt;b&gt;</h3>" in view.html
    assert ".tokens{font-size:30px" in view.html and "max-width:300px" in view.to_inline_html()
    assert "<h3>" not in text_view(made_up_scores(), title="").html
    with pytest.raises(InputError, match="width is 0"):
        text_view(made_up_scores(), width=0)


def test_two_views_on_a_page_are_apart() -> None:
    scores = made_up_scores()
    assert text_view(scores).html.split('"')[1] != text_view(scores).html.split('"')[1]


def test_a_notebook_shows_it() -> None:
    view = text_view(made_up_scores())
    assert view._repr_html_() == view.html
    assert len(repr(view)) < 120


def test_what_cannot_be_shown_is_refused() -> None:
    with pytest.raises(ScoresError, match="head_grid"):
        text_view(made_up_scores(values=torch.rand(3, 2, len(PIECES), len(PIECES)), heads=(0, 1)))
    with pytest.raises(InputError, match="'cat' is none of the tokens"):
        text_view(made_up_scores(), "cat")
    with pytest.raises(InputError, match="layer 3"):
        text_view(made_up_scores(), layer=3)


def test_a_word_that_the_model_does_not_know_is_dashed() -> None:
    html = text_view(made_up_scores(metadata={"unknown": [1]})).html
    assert html.count('class="token unknown"') == 1
    assert f"{PIECES[1]}</span></button>" in html.split('class="token unknown"')[1]
    assert "Dashed</span>: unknown to the model" in html and "unknown to the model" in html.split("const root")[1]
    assert "unknown to the model" not in text_view(made_up_scores()).html
