"""Cues by spaCy's parse: what the rule reads off a parse, and how it stands beside the cues of a rule."""

import pytest
import spacy
from spacy.tokens import Doc

from tl_vzero.data import own_file
from tl_vzero.data.agreement_mini import agreement_examples
from tl_vzero.data.blimp import FIVE
from tl_vzero.data.examples import Example, ExampleSet, FilterReport, Stage
from tl_vzero.data.own_file import CueCheck, CueCount, check_cues, compare_cues, cues_by_parse, with_parsed_cues
from tl_vzero.evaluate.sentences import limited
from tl_vzero.files import from_plain, to_plain


@pytest.mark.parametrize(
    ("words", "heads", "labels", "target", "cue"),
    [
        # A verb's own subject.
        ("the dogs bark", (1, 2, 2), ("det", "nsubj", "ROOT"), 2, (1,)),
        # An auxiliary's, by its verb; a passive one too.
        ("the dogs are seen", (1, 3, 3, 3), ("det", "nsubjpass", "auxpass", "ROOT"), 2, (1,)),
        # A second verb's, by the first.
        ("dogs run and are seen", (1, 1, 1, 4, 1), ("nsubj", "ROOT", "cc", "auxpass", "conj"), 3, (0,)),
        # A copula is the verb itself.
        ("dogs are old", (1, 1, 1), ("nsubj", "ROOT", "acomp"), 1, (0,)),
        # A determiner's noun.
        ("they see this old dog", (1, 1, 4, 4, 1), ("nsubj", "ROOT", "det", "amod", "dobj"), 2, (4,)),
        # A reflexive below a preposition.
        ("dogs talk to themselves", (1, 1, 1, 2), ("nsubj", "ROOT", "prep", "pobj"), 3, (0,)),
        # A reflexive below a verb without a subject of its own.
        ("dogs try to see themselves", (1, 1, 3, 1, 3), ("nsubj", "ROOT", "aux", "xcomp", "dobj"), 4, (0,)),
        # None there.
        ("bark at dogs", (0, 0, 1), ("ROOT", "prep", "pobj"), 0, ()),
        ("see themselves", (0, 0), ("ROOT", "dobj"), 1, ()),
    ],
)
def test_the_rule_on_a_parse_written_by_hand(words, heads, labels, target, cue) -> None:
    document = Doc(spacy.blank("en").vocab, words=words.split(), heads=list(heads), deps=list(labels))
    assert own_file._cue(document[target]) == cue


def test_words_are_not_cut_again() -> None:
    sentence = "Susan 's ex-wife cannot see these well-known dogs .".split()
    assert list(cues_by_parse([sentence], [5])) == [(7,)]


def example(pair: int, cue: tuple[int, ...], parsed: tuple[int, ...] | None, paradigm: str = "sv") -> Example:
    words = ("dogs", "near", "cats", "bark")
    fields = {"words": words, "target": 3, "good": "bark", "bad": "barks", "cue_source": "template"}
    return Example(f"{paradigm}-{pair}", paradigm, cue=cue, parsed_cue=parsed, **fields)


def test_agreement_counts() -> None:
    examples = (
        example(0, (0,), (0,)),
        example(1, (0,), (2,)),
        example(2, (0,), ()),
        example(3, (0,), None),
        example(4, (0,), (0,), "other"),
    )
    example_set = ExampleSet(examples, FilterReport((Stage("read", {"sv": 4, "other": 1}),)))
    check = compare_cues(example_set)
    assert check.counts == (CueCount("sv", 3, 1, 1, 1), CueCount("other", 1, 1, 0, 0), CueCount("all", 4, 2, 1, 1))
    listed = check.disagreements_frame()
    assert listed[["id", "cue", "parsed_cue"]].to_numpy().tolist() == [["sv-1", "dogs", "cats"], ["sv-2", "dogs", ""]]


def test_the_template_stays_the_cue() -> None:
    example_set = ExampleSet((example(0, (2,), None),), FilterReport((Stage("read", {"sv": 1}),)))
    parsed = with_parsed_cues(example_set)[0]
    assert parsed.cue == (2,) and parsed.cue_source == "template" and parsed.parsed_cue is not None


def test_blimp(blimp: ExampleSet) -> None:
    """The parse agrees in most sentences of each paradigm; what it misses is why templates decide."""
    table = check_cues(blimp).to_frame().set_index("paradigm")
    assert (table["same"] + table["other"] + table["none"] == table["parsed"]).all()
    assert table.loc[list(FIVE), "parsed"].tolist() == [1000] * 5
    assert (table.loc[list(FIVE), "same"] >= 900).all()
    assert table.loc["all", "same"] < 5000


def test_every_example_is_the_same_or_listed() -> None:
    examples = limited(agreement_examples(), 24, 0)
    check = check_cues(examples)
    (*paradigms, whole) = check.counts
    assert {count.paradigm: count.parsed for count in paradigms} == examples.counts()
    assert whole.parsed == 24 == whole.same + whole.other + whole.none
    assert len(check.disagreements) == whole.other + whole.none == len(check.disagreements_frame())
    by_id = {example.id: example for example in examples}
    for disagreement in check.disagreements:
        example = by_id[disagreement.id]
        assert disagreement.cue == " ".join(example.words[i] for i in example.cue) != disagreement.parsed_cue


def test_it_comes_back_from_plain_types() -> None:
    check = check_cues(limited(agreement_examples(), 6, 0))
    assert from_plain(CueCheck, to_plain(check)) == check
