"""Sentences as words and back: where words end, and the contractions that hide one word in another."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tl_vzero.errors import InputError

CANNOT = ("cannot", "can not")

CLOSING_MARKS = ".,;:!?"
_CLOSING = re.compile(rf"^(.*[^{CLOSING_MARKS}])([{CLOSING_MARKS}]+)$")
_NEGATED = re.compile(r"^(?P<verb>.+)n['’]t$", re.IGNORECASE)
# Where the verb is not what is left when "n't" is taken away.
_IRREGULAR = {"wo": "will", "sha": "shall"}
# "ain't" stands for am, is, are, has and have.
_AMBIGUOUS = {"ai"}


@dataclass(frozen=True, slots=True)
class SpacedText:
    """A sentence written out, and where each of its words begins and ends in it, in characters."""

    text: str
    spans: tuple[tuple[int, int], ...]


def split_words(text: str) -> tuple[str, ...]:
    """The words of a sentence; closing punctuation is a word of its own.

    >>> split_words("Susan's dogs, they bark.")
    ("Susan's", 'dogs', ',', 'they', 'bark', '.')
    """
    return tuple(word for chunk in text.split() for word in _without_closing_marks(chunk))


def word_of_chunk(text: str) -> tuple[int, ...]:
    """For each chunk between spaces, the index of its word as `split_words` counts.

    >>> word_of_chunk("The dogs, they bark.")
    (0, 1, 3, 4)
    """
    indices, count = [], 0
    for chunk in text.split():
        indices.append(count)
        count += len(_without_closing_marks(chunk))
    return tuple(indices)


def _without_closing_marks(chunk: str) -> tuple[str, ...]:
    found = _CLOSING.match(chunk)
    return (chunk,) if found is None else (found[1], found[2])


def write_words(words: Sequence[str]) -> SpacedText:
    """Words as running text, closing punctuation without a space before it.

    >>> write_words(["Dogs", "bark", "."])
    SpacedText(text='Dogs bark.', spans=((0, 4), (5, 9), (9, 10)))
    """
    text, spans = "", []
    for word in words:
        if text and word.strip(CLOSING_MARKS):
            text += " "
        spans.append((len(text), len(text) + len(word)))
        text += word
    return SpacedText(text, tuple(spans))


def expand_contractions(words: Sequence[str], *, cannot: str = "cannot") -> tuple[str, ...]:
    """Write negated verbs out, so that "isn't" and "aren't" differ in the verb alone.

    Returns the words with each "n't" as a word "not"; "can't" becomes one word or two, as `cannot` says. Other
    contractions stay: "'s" may be a possessive.
    Raises InputError for one that stands for several verbs (ain't).

    >>> expand_contractions(["Dogs", "won't", "bark"])
    ('Dogs', 'will', 'not', 'bark')
    """
    return tuple(part for word in words for part in _expanded(word, cannot))


def _expanded(word: str, cannot: str) -> tuple[str, ...]:
    found = _NEGATED.match(word)
    if found is None:
        return (word,)
    verb = found["verb"]
    if verb.lower() in _AMBIGUOUS:
        raise InputError(f"the contraction {word!r} stands for several verbs: expected it written out")
    if verb.lower() == "ca":
        return tuple(_cased_like(word, cannot).split())
    return (_cased_like(word, _IRREGULAR.get(verb.lower(), verb)), "not")


def _cased_like(word: str, replacement: str) -> str:
    return replacement[0].upper() + replacement[1:] if word[0].isupper() else replacement
