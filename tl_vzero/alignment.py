"""Alignment: which token of one sentence stands against which token of another."""

from collections.abc import Sequence
from difflib import SequenceMatcher

Pairs = tuple[tuple[int, int], ...]  # places in the first and in the second sentence, both ascending


def aligned(first: Sequence[str], second: Sequence[str]) -> Pairs:
    """Pair the tokens of two sentences: one by one where there are as many, else by the tokens that they share.

    Between shared tokens, stretches of as many tokens on both sides are paired one by one, too; a token without a
    counterpart is in no pair. Spaces around a token do not count.

    >>> aligned(["the", "hats", "[MASK]"], ["the", "hat", "[MASK]"])
    ((0, 0), (1, 1), (2, 2))
    >>> aligned(["the", "old", "hats", "[MASK]"], ["the", "hats", "[MASK]"])
    ((0, 0), (2, 1), (3, 2))
    """
    if len(first) == len(second):
        return tuple((place, place) for place in range(len(first)))
    texts, others = ([token.strip() for token in tokens] for tokens in (first, second))
    blocks = SequenceMatcher(None, texts, others, autojunk=False).get_opcodes()
    return tuple(
        pair
        for _, begin, end, other_begin, other_end in blocks
        if end - begin == other_end - other_begin
        for pair in zip(range(begin, end), range(other_begin, other_end), strict=True)
    )
