"""Cues by rule beside cues by parse."""

import pytest

from tl_vzero.data import parsed_cues
from tl_vzero.data.agreement_mini import agreement_examples
from tl_vzero.data.parsed_cues import CueCheck, check_cues
from tl_vzero.errors import DependencyError
from tl_vzero.evaluate.protocol import reproduce
from tl_vzero.evaluate.sentences import limited
from tl_vzero.files import from_plain, to_plain


def test_every_example_is_the_same_or_listed() -> None:
    examples = limited(agreement_examples(), 24, 0)
    found = check_cues(examples)
    (*paradigms, whole) = found.counts
    assert {each.paradigm: each.parsed for each in paradigms} == examples.counts()
    assert whole.parsed == 24 == whole.same + whole.other + whole.none
    assert len(found.disagreements) == whole.other + whole.none == len(found.disagreements_frame())
    by_id = {each.id: each for each in examples}
    for each in found.disagreements:
        own = by_id[each.id]
        assert each.cue == " ".join(own.words[i] for i in own.cue) != each.parsed_cue


def test_it_comes_back_from_plain_types() -> None:
    found = check_cues(limited(agreement_examples(), 6, 0))
    assert from_plain(CueCheck, to_plain(found)) == found


def test_without_a_parser_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import tl_vzero

    def no_parser() -> None:
        raise DependencyError("no English dependency parser")

    monkeypatch.setattr(parsed_cues, "english_parser", no_parser)
    found = reproduce(tl_vzero.load_model("agreement-mini"), limit=2)
    assert found.cue_check is None and found.missing["cues"] == "no English dependency parser"
