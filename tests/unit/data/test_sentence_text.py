"""Words, contractions and number: what is written out, and what is left alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from demos.agreement_mini.lexicon import VERBS
from tl_vzero.data.examples import expand_contractions, number_of, split_words, word_of_chunk, write_words
from tl_vzero.errors import InputError

CONTRACTED = {
    "isn't": "is not",
    "aren't": "are not",
    "wasn't": "was not",
    "weren't": "were not",
    "hasn't": "has not",
    "haven't": "have not",
    "hadn't": "had not",
    "doesn't": "does not",
    "don't": "do not",
    "didn't": "did not",
    "couldn't": "could not",
    "wouldn't": "would not",
    "shouldn't": "should not",
    "mustn't": "must not",
    "can't": "cannot",
    "won't": "will not",
    "shan't": "shall not",
    "Won't": "Will not",
    "Can't": "Cannot",
    "don’t": "do not",
    "Lawrence's": "Lawrence's",
    "they're": "they're",
    "not": "not",
}


@pytest.mark.parametrize(("word", "written_out"), CONTRACTED.items())
def test_contractions_are_written_out(word: str, written_out: str) -> None:
    assert expand_contractions([word]) == tuple(written_out.split())


def test_cannot_may_be_two_words() -> None:
    assert expand_contractions(["Can't"], cannot="can not") == ("Can", "not")


def test_a_contraction_of_several_verbs_is_refused() -> None:
    with pytest.raises(InputError, match="ain't"):
        expand_contractions(["it", "ain't", "so"])


@pytest.mark.parametrize(
    ("text", "words", "chunks"),
    [
        ("Dogs bark.", ("Dogs", "bark", "."), (0, 1)),
        ("Dogs, cats; mice?!", ("Dogs", ",", "cats", ";", "mice", "?!"), (0, 2, 4)),
        ("the hat [MASK] old.", ("the", "hat", "[MASK]", "old", "."), (0, 1, 2, 3)),
        ("an ex-wife , alone", ("an", "ex-wife", ",", "alone"), (0, 1, 2, 3)),
        ("It costs 3.50 now", ("It", "costs", "3.50", "now"), (0, 1, 2, 3)),
        ("...", ("...",), (0,)),
    ],
)
def test_closing_marks_are_words(text: str, words: tuple[str, ...], chunks: tuple[int, ...]) -> None:
    assert split_words(text) == words
    assert word_of_chunk(text) == chunks


@given(st.lists(st.text(alphabet="ab,.'", min_size=1, max_size=5), min_size=1, max_size=8))
def test_spans_hold_the_words(words: list[str]) -> None:
    written = write_words(words)
    assert [written.text[begin:end] for begin, end in written.spans] == words


@given(st.lists(st.from_regex(r"[ab]{1,3}[.,]{0,2}", fullmatch=True), min_size=1, max_size=8))
def test_words_written_and_split_are_the_same(chunks: list[str]) -> None:
    words = split_words(" ".join(chunks))
    assert split_words(write_words(words).text) == words


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb.base != verb.third], ids=lambda verb: verb.base)
def test_number_of_a_verb(verb) -> None:
    assert number_of(verb.third, verb.base) == "singular"
    assert number_of(verb.base, verb.third) == "plural"


@pytest.mark.parametrize(
    ("good", "bad", "number"),
    [
        ("is", "were", "singular"),
        ("Those", "that", "plural"),
        ("themselves", None, "plural"),
        ("itself", "themselves", "singular"),
        ("worries", "worry", "singular"),
        ("pass", "passes", "plural"),
        ("barks", None, None),
        ("cat", "dog", None),
    ],
)
def test_number(good: str, bad: str | None, number: str | None) -> None:
    assert number_of(good, bad) == number
