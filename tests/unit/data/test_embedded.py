"""The embedded agreement sentences as examples, against the generator's own records."""

from tl_vzero.data.agreement_mini import agreement_examples, load_held_out
from tl_vzero.data.examples import split_in_halves


def test_every_sentence_is_an_example() -> None:
    for example, sentence in zip(agreement_examples(), load_held_out(), strict=True):
        assert example.with_target("[MASK]") == sentence.text
        assert (example.good, example.bad, example.cue) == (sentence.good, sentence.bad, sentence.cues)
        assert example.paradigm == sentence.paradigm
        assert set(example.attractor) <= set(sentence.attractors)
        assert bool(example.attractor) == sentence.conflicting


def test_number_is_known() -> None:
    """Both numbers occur, neither seldom, so that a probe has something to tell apart."""
    numbers = [example.number for example in agreement_examples()]
    assert None not in numbers
    assert 200 <= numbers.count("plural") <= 300


def test_halves_of_the_default() -> None:
    halves = split_in_halves(agreement_examples(), seed=0)
    assert abs(len(halves.half("train")) - len(halves.half("test"))) <= len(halves.counts())
