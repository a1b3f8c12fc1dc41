"""Token text: everything visible, nothing read as markup by plotly."""

import html
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tl_vzero.plot.parts import hover_text, plotly_text, short, tick_text, visible

ISOLATES = "\u2068\u2069"


@given(st.text())
def test_an_escaped_text_reads_back_and_holds_no_markup(text: str) -> None:
    escaped = plotly_text(text)
    assert not set("<>$") & set(escaped)
    assert html.unescape(escaped.strip(ISOLATES)) == html.unescape(html.escape(text, quote=False)).strip(ISOLATES)


@given(st.text(st.characters(exclude_categories=())))
def test_every_token_can_be_seen(token: str) -> None:
    shown = visible(token)
    assert shown.strip()
    assert not [c for c in shown[:1] + shown[-1:] if unicodedata.category(c)[0] in "CZ"]
    assert not [c for c in shown if unicodedata.category(c) in ("Cc", "Zl", "Zp", "Cs")]
    assert visible(shown) == shown
    shown.encode()


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        ("word", "word"),
        (" word", "word"),
        ("two words", "two words"),
        ("   ", "␣␣␣"),
        ("▁hat", "hat"),
        ("▁", "␣"),
        ("Ġunju", "Ġunju"),
        ("", "‹empty›"),
        ("\n", "⏎"),
        ("\t", "⇥"),
        ("\x00", "‹U+0000›"),
        ("\u200b", "‹U+200B›"),
        ("\u202eabc", "‹U+202E›abc"),
        ("\xa0", "‹U+00A0›"),
        ("\u3164", "‹U+3164›"),
        ("\u0301", "◌\u0301"),
        ("\ud800", "‹U+D800›"),
        ("\N{WOMAN}\u200d\N{WOMAN}", "\N{WOMAN}\u200d\N{WOMAN}"),
        ("\u200d", "‹U+200D›"),
        ("<script>", "<script>"),
        ("שלום", "שלום"),
    ],
)
def test_what_a_token_looks_like(token: str, shown: str) -> None:
    assert visible(token) == shown


def test_a_right_to_left_token_is_isolated() -> None:
    assert plotly_text("שלום") == "\u2068שלום\u2069"
    assert plotly_text("word") == "word"


def test_a_long_token_is_cut_on_the_axis_and_whole_in_the_hover_box() -> None:
    token = "<" * 40
    assert html.unescape(tick_text(token)) == "<" * 15 + "…"
    assert html.unescape(hover_text(token, 3)) == f"{token} · position 3"
    assert hover_text("hats", 3, "word") == "hats · word 3"
    assert short("abc", 3) == "abc"
