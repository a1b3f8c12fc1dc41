"""Spans by their name, resolved for each sentence: which positions are zeroed together."""

from collections.abc import Callable, Sequence

from tl_vzero.errors import InputError, unknown_name
from tl_vzero.inputs import Sentence
from tl_vzero.phrases import Phrase, Range, noun_chunks, root_subtrees
from tl_vzero.words import group_words

Span = tuple[int, ...]

WORDS = "words"
PHRASES: dict[str, Callable[[str, Sequence[Range]], tuple[Phrase, ...]]] = {
    "noun_chunks": noun_chunks,
    "subtrees": root_subtrees,
}


def check_span_name(name: str) -> None:
    """Raise InputError for a kind of span that does not exist."""
    if name not in (WORDS, *PHRASES):
        raise unknown_name("spans", name, (WORDS, *PHRASES, "a list of positions such as [[1, 2], [4]]"))


def named_spans(name: str, sentence: Sentence) -> tuple[Span, ...]:
    """The spans of a kind: every position is in one span, in the order of first positions; special tokens stay single.

    Raises InputError where the sentence does not say what its words are, or holds no text to parse, and
    DependencyError where there is no parser.
    """
    return _words(sentence) if name == WORDS else _phrases(name, sentence)


def _words(sentence: Sentence) -> tuple[Span, ...]:
    if sentence.word_ids is None:
        raise InputError(
            'spans="words" given, and without a tokenizer nothing says which ids form a word: load the model with '
            "tokenizer=, or give positions, such as spans=[[1, 2], [4]]"
        )
    return tuple(word.positions for word in group_words(sentence.word_ids, sentence.tokens))


def _phrases(name: str, sentence: Sentence) -> tuple[Span, ...]:
    if sentence.text is None:
        raise InputError(
            f'spans="{name}" given with ids: expected text, which the parser reads; give a string or a list of '
            "strings, or positions, such as spans=[[1, 2], [4]]"
        )
    if sentence.offsets is None:
        raise InputError(
            f'spans="{name}" given, and this tokenizer does not say where its tokens stand in the text: load the model '
            "with a fast tokenizer, or give positions, such as spans=[[1, 2], [4]]"
        )
    phrases = [phrase for start, text in sentence.texts for phrase in _phrases_in(name, text, start, sentence.offsets)]
    groups: dict[int, list[int]] = {}
    for position, piece in enumerate(sentence.offsets):
        phrase = None if sentence.special[position] else _phrase_of(piece, phrases)
        # What is in no phrase, a special token or white space, gets a number of its own.
        groups.setdefault(-1 - position if phrase is None else phrase, []).append(position)
    return tuple(sorted(tuple(group) for group in groups.values()))


def _phrases_in(name: str, text: str, start: int, pieces: Sequence[Range]) -> list[Phrase]:
    """The phrases of one text of a sentence or pair, which begins at a character of the whole."""
    within = [(begin - start, end - start) for begin, end in pieces if start <= begin and end <= start + len(text)]
    return [tuple((a + start, b + start) for a, b in phrase) for phrase in PHRASES[name](text, within)]


def _phrase_of(piece: Range, phrases: Sequence[Phrase]) -> int | None:
    """The phrase of the first word that a piece overlaps: "can" of "can't" belongs to spaCy's "ca"."""
    begin, end = piece
    found = [(word, n) for n, phrase in enumerate(phrases) for word in phrase if begin < word[1] and word[0] < end]
    return min(found)[1] if found else None
