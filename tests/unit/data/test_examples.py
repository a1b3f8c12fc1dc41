"""Words, contractions and number; examples, the sets of them, their reports and their halves."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from demos.agreement_mini.lexicon import VERBS
from tl_vzero.data.examples import (
    Example,
    ExampleSet,
    FilterReport,
    Stage,
    expand_contractions,
    number_of,
    split_in_halves,
    split_words,
    word_of_chunk,
    write_words,
)
from tl_vzero.errors import InputError


def example(pair: int = 0, paradigm: str = "sv", **changes) -> Example:
    fields = {
        "id": f"{paradigm}-{pair}",
        "paradigm": paradigm,
        "words": ("The", "dogs", "near", "us", "bark", "."),
        "target": 4,
        "good": "bark",
        "bad": "barks",
        "cue": (1,),
        "cue_source": "given",
        "pair": str(pair),
    }
    return Example(**fields | changes)


def example_set(*counts: tuple[str, int]) -> ExampleSet:
    examples = tuple(example(pair, paradigm) for paradigm, count in counts for pair in range(count))
    return ExampleSet(examples, FilterReport((Stage("read", dict(counts)),)))


def test_text_with_another_target() -> None:
    assert example().text == "The dogs near us bark."
    assert example().with_target("[MASK]") == "The dogs near us [MASK]."


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cue": (6,)}, "cue 6 outside the sentence .* expected 0 to 5"),
        ({"cue": (-1,)}, "cue -1 outside"),
        ({"cue": ()}, "no cue"),
        ({"cue": (4,)}, "target, word 4, as cue"),
        ({"attractor": (4,)}, "as cue or attractor"),
        ({"attractor": (9,)}, "attractor 9 outside"),
        ({"target": 7}, "target 7 outside"),
        ({"target": 3}, "'us' at its target: expected 'bark'"),
        ({"bad": "bark"}, "expected two forms"),
    ],
)
def test_an_impossible_example_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        example(**changes)


def test_a_filter_lists_what_it_takes_out() -> None:
    examples = example_set(("a", 4), ("b", 2))
    left = examples.filtered("even", lambda example: f"{example.pair} is odd" if int(example.pair) % 2 else None)
    left = left.filtered("no b", lambda example: "of b" if example.paradigm == "b" else None)
    assert [example.id for example in left] == ["a-0", "a-2"]
    assert left.report.to_frame().to_dict("index") == {
        "a": {"read": 4, "even": 2, "no b": 2},
        "b": {"read": 2, "even": 1, "no b": 0},
        "all": {"read": 6, "even": 3, "no b": 2},
    }
    assert left.report.skipped_frame().to_numpy().tolist() == [
        ["a-1", "a", "even", "1 is odd"],
        ["a-3", "a", "even", "3 is odd"],
        ["b-1", "b", "even", "1 is odd"],
        ["b-0", "b", "no b", "of b"],
    ]
    assert len(examples.report.stages) == 1


def test_nothing_is_lost_between_read_and_left() -> None:
    left = example_set(("a", 7)).filtered("few", lambda example: "late" if int(example.pair) > 2 else None)
    assert len(left) + len(left.report.skipped) == 7


def test_the_table_holds_every_field() -> None:
    table = example_set(("a", 3)).to_frame()
    assert table.shape[0] == 3
    assert table.loc[1, "cue"] == (1,)
    assert table.loc[1, "good"] == "bark"


def test_an_empty_set_has_tables() -> None:
    none = example_set(("a", 0))
    assert none.to_frame().empty
    assert none.report.skipped_frame().empty
    assert none.report.to_frame().loc["all", "read"] == 0


def test_a_set_is_a_sequence() -> None:
    examples = example_set(("a", 3))
    assert examples[0].id == "a-0"
    assert [example.id for example in examples[1:]] == ["a-1", "a-2"]
    assert repr(examples) == "ExampleSet(3 examples; a: 3)"


def test_each_paradigm_is_halved() -> None:
    halves = split_in_halves(example_set(("a", 100), ("b", 7)), seed=4)
    train, test = halves.half("train"), halves.half("test")
    assert [sum(example.paradigm == name for example in half) for half in (train, test) for name in "ab"] == [
        50,
        3,
        50,
        4,
    ]
    assert sorted(example.id for example in (*train, *test)) == sorted(example.id for example in halves)
    assert halves.split_seed == 4


def test_the_seed_decides_and_nothing_else() -> None:
    examples = example_set(("a", 100))
    again = ExampleSet(tuple(reversed(examples.examples)), examples.report)
    first = {example.id for example in split_in_halves(examples, seed=1).half("train")}
    assert first == {example.id for example in split_in_halves(again, seed=1).half("train")}
    assert first != {example.id for example in split_in_halves(examples, seed=2).half("train")}


def test_a_filter_moves_few_examples_to_the_other_half() -> None:
    examples = example_set(("a", 100))
    before = {example.id: example.split for example in split_in_halves(examples, seed=0)}
    fewer = examples.filtered("first 90", lambda example: "late" if int(example.pair) >= 90 else None)
    moved = sum(before[example.id] != example.split for example in split_in_halves(fewer, seed=0))
    assert moved <= 5


def test_examples_of_one_pair_stay_together() -> None:
    examples = example_set(("a", 40))
    paired = tuple(replace(example, pair=str(int(example.pair) // 2)) for example in examples)
    halves = split_in_halves(ExampleSet(paired, examples.report), seed=0)
    assert not {example.pair for example in halves.half("train")} & {example.pair for example in halves.half("test")}
    assert len(halves.half("train")) == 20


def test_halves_before_the_split() -> None:
    with pytest.raises(InputError, match="split_in_halves"):
        example_set(("a", 2)).half("train")
    with pytest.raises(InputError, match=r"unknown half 'tset'.*did you mean 'test'"):
        split_in_halves(example_set(("a", 2))).half("tset")


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
    text, spans = write_words(words)
    assert [text[begin:end] for begin, end in spans] == words


@given(st.lists(st.from_regex(r"[ab]{1,3}[.,]{0,2}", fullmatch=True), min_size=1, max_size=8))
def test_words_written_and_split_are_the_same(chunks: list[str]) -> None:
    words = split_words(" ".join(chunks))
    assert split_words(write_words(words)[0]) == words


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
