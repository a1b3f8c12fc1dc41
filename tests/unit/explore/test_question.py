"""An address read as a question."""

import pytest

from tl_vzero.errors import InputError
from tl_vzero.explore import LONGEST_TEXT, LONGEST_WORD, Question, read_question

TWO = {"model": "agreement-mini", "text": "the hat [MASK] today."}


def test_a_sentence_and_a_model_are_enough() -> None:
    assert read_question(TWO) == Question("agreement-mini", "the hat [MASK] today.")


def test_target_and_corrupted_sentence_are_read() -> None:
    read = read_question({**TWO, "target": " 3 ", "corrupted": "the hats [MASK] today."})
    assert (read.target, read.corrupted) == (3, "the hats [MASK] today.")
    assert read_question({**TWO, "target": "-1"}).target == -1


def test_empty_fields_are_no_answers() -> None:
    assert read_question({**TWO, "target": "  ", "corrupted": ""}) == Question(
        "agreement-mini", "the hat [MASK] today."
    )


def test_a_good_word_and_its_foil_are_read() -> None:
    read = read_question({**TWO, "good": "are ", "bad": " is"})
    assert (read.good, read.bad) == ("are", " is")
    assert read_question({**TWO, "good": "  ", "bad": ""}) == read_question(TWO)


def test_a_foil_alone_is_refused_in_the_words_of_the_command_line() -> None:
    with pytest.raises(InputError, match=r"^bad 'is' given without good: expected good WORD, or both$"):
        read_question({**TWO, "bad": "is"})


@pytest.mark.parametrize("name", ["good", "bad"])
def test_a_word_is_no_text(name: str) -> None:
    written = {**TWO, "good": "are", name: "a" * (LONGEST_WORD + 1)}
    with pytest.raises(InputError, match=f"{name} has {LONGEST_WORD + 1} characters: expected at most {LONGEST_WORD}"):
        read_question(written)


def test_what_the_page_alone_needs_is_ignored() -> None:
    assert read_question({**TWO, "layer": "2", "view": "rollout"}) == read_question(TWO)


@pytest.mark.parametrize("name", ["model", "text"])
@pytest.mark.parametrize("written", [None, "", " \t\n"])
def test_a_missing_part_is_named(name: str, written: str | None) -> None:
    query = {key: value for key, value in TWO.items() if key != name}
    with pytest.raises(InputError, match=f"no {name} was given: "):
        read_question(query if written is None else {**query, name: written})


@pytest.mark.parametrize("name", ["text", "corrupted", "compare"])
def test_a_text_may_be_as_long_as_is_said_and_no_longer(name: str) -> None:
    assert getattr(read_question({**TWO, name: "a" * LONGEST_TEXT}), name) == "a" * LONGEST_TEXT
    with pytest.raises(InputError, match=f"{name} has {LONGEST_TEXT + 1} characters: expected at most {LONGEST_TEXT}"):
        read_question({**TWO, name: "a" * (LONGEST_TEXT + 1)})


@pytest.mark.parametrize("written", ["three", "1.5", "3,4", "0x2", "[MASK]", "∞", "9" * 5000, "9" * 4000])
def test_a_target_that_is_no_position_is_told_and_cut_short(written: str) -> None:
    with pytest.raises(InputError, match=r"expected a position, such as 3, or nothing") as caught:
        read_question({**TWO, "target": written})
    assert repr(written[:40]) in str(caught.value) and len(str(caught.value)) < 120


def test_a_second_sentence_and_model_are_read() -> None:
    read = read_question({**TWO, "compare": "the hats [MASK] today.", "compare_model": "tiny"})
    assert (read.compare, read.compare_model, read.corrupted) == ("the hats [MASK] today.", "tiny", None)
    assert read_question({**TWO, "compare": "", "compare_model": ""}) == read_question(TWO)


def test_heads_are_asked_for_by_1() -> None:
    assert read_question({**TWO, "heads": "1"}).heads
    assert not read_question({**TWO, "heads": ""}).heads
    with pytest.raises(InputError, match="heads is 'yes': expected 1 for the maps of every head, or nothing"):
        read_question({**TWO, "heads": "yes"})
