"""Word pieces to words."""

import pytest

from tl_vzero.words import Word, group_words, join_pieces, span_label, word_ids_of_pieces


def test_pieces_of_one_word_are_joined_in_order() -> None:
    words = group_words([None, 0, 1, 1, 1, 2, None], ["[CLS]", "a", "scar", "##i", "##ng", "cat", "[SEP]"])
    assert [word.label for word in words] == ["[CLS]", "a", "scaring", "cat", "[SEP]"]
    assert [word.positions for word in words] == [(0,), (1,), (2, 3, 4), (5,), (6,)]


def test_every_position_belongs_to_exactly_one_word() -> None:
    word_ids = [None, None, 0, 0, 1, 2, 2, None, None]
    words = group_words(word_ids, [f"p{i}" for i in range(len(word_ids))])
    assert [position for word in words for position in word.positions] == list(range(len(word_ids)))


def test_positions_without_a_word_are_never_joined() -> None:
    words = group_words([None, None, 0], ["[CLS]", "[CLS]", "a"])
    assert words == (Word("[CLS]", (0,)), Word("[CLS]", (1,)), Word("a", (2,)))


def test_the_same_text_twice_is_two_words() -> None:
    words = group_words([0, 1, 2], ["the", "the", "the"])
    assert [word.positions for word in words] == [(0,), (1,), (2,)]


def test_no_pieces_give_no_words() -> None:
    assert group_words([], []) == ()


@pytest.mark.parametrize(
    ("pieces", "word"),
    [
        (["scar", "##ing"], "scaring"),
        (["Ġscar", "ing"], "scaring"),
        (["▁scar", "ing"], "scaring"),
        ([" scar", "ing"], "scaring"),
        (["[MASK]"], "[MASK]"),
        (["cat"], "cat"),
    ],
)
def test_a_word_loses_its_tokenizer_marks(pieces: list[str], word: str) -> None:
    assert join_pieces(pieces) == word


@pytest.mark.parametrize("pieces", [["##"], ["Ġ"], ["▁"]], ids=str)
def test_a_piece_that_is_only_a_mark_keeps_a_text_label(pieces: list[str]) -> None:
    assert isinstance(join_pieces(pieces), str)


def test_wordpiece_marks_continue_a_word() -> None:
    pieces = ["[CLS]", "the", "scar", "##ing", "cat", "##s", ".", "[SEP]"]
    special = [True, *[False] * 6, True]
    assert word_ids_of_pieces(pieces, special) == (None, 0, 1, 1, 2, 2, 3, None)


def test_bpe_marks_start_a_word() -> None:
    assert word_ids_of_pieces(["the", "Ġp", "ic", "tures", "Ġof"], [False] * 5) == (0, 1, 1, 1, 2)


def test_sentencepiece_marks_start_a_word() -> None:
    assert word_ids_of_pieces(["▁the", "▁pic", "tures", "</s>"], [False, False, False, True]) == (0, 1, 1, None)


def test_words_are_numbered_without_a_gap() -> None:
    ids = word_ids_of_pieces(["[CLS]", "a", "##b", "[MASK]", "c", "[SEP]"], [True, False, False, True, False, True])
    assert ids == (None, 0, 0, None, 1, None)


def test_grouping_follows_the_numbers_of_the_pieces() -> None:
    pieces = ["[CLS]", "bark", "##ing", "dog", "##s", "[SEP]"]
    words = group_words(word_ids_of_pieces(pieces, [True, *[False] * 4, True]), pieces)
    assert [word.label for word in words] == ["[CLS]", "barking", "dogs", "[SEP]"]


@pytest.mark.parametrize(
    ("positions", "word_ids", "label"),
    [
        ([1], (None, 0, 1, 1), " the"),
        ([1, 2, 3], (None, 0, 1, 1), "the scaring"),
        ([0, 2, 3], (None, 0, 1, 1), "[CLS] scaring"),
        ([1, 2], None, "the scar"),
    ],
)
def test_a_span_is_labelled_by_its_words(positions, word_ids, label: str) -> None:
    assert span_label(positions, ["[CLS]", " the", " scar", "##ing"], word_ids) == label
