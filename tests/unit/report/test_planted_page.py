"""The page of planted truth: every table, story and check, and markup of nobody."""

from support.evaluated import planted

from tl_vzero.report.planted_page import render_planted


def test_the_page_says_who_falls_for_a_trap_and_how_it_was_checked() -> None:
    page = render_planted(planted({"attention": 0.4, "value_zeroing": 0.95}))
    assert "The head gives nine tenths of its attention" in page
    assert "<b>1 fall for it</b>: Raw attention." in page
    assert "<b>1 do not</b>: Value Zeroing." in page
    assert ">0.987</td><td>0.012</td>" in page
    assert "GlobEnc: &lt;b&gt;no norm&lt;/b&gt;" in page
    assert "<script" not in page
