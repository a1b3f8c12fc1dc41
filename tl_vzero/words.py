"""Word pieces to words: which positions of a sentence belong to one word."""

from collections.abc import Sequence
from dataclasses import dataclass

CONTINUATION = "##"
WORD_STARTS = ("Ġ", "▁")


@dataclass(frozen=True)
class Word:
    """One word of a tokenised sentence: its label and the positions of its pieces."""

    label: str
    positions: tuple[int, ...]


def group_words(word_ids: Sequence[int | None], pieces: Sequence[str]) -> tuple[Word, ...]:
    """Group consecutive positions with one word id; a position without an id is a word of its own.

    >>> group_words([None, 0, 1, 1, None], ["[CLS]", "the", "scar", "##ing", "[SEP]"])[2]
    Word(label='scaring', positions=(2, 3))
    """
    groups: list[list[int]] = []
    for position, word_id in enumerate(word_ids):
        joins = position > 0 and word_id is not None and word_id == word_ids[position - 1]
        if joins:
            groups[-1].append(position)
        else:
            groups.append([position])
    return tuple(Word(join_pieces([pieces[p] for p in group]), tuple(group)) for group in groups)


def join_pieces(pieces: Sequence[str]) -> str:
    """Write a word's pieces as one word, without the tokenizer's marks.

    >>> join_pieces([" scar", "##ing"])
    'scaring'
    """
    plain = [pieces[0].lstrip("".join(WORD_STARTS)), *(piece.removeprefix(CONTINUATION) for piece in pieces[1:])]
    joined = "".join(plain).strip()
    return joined or "".join(pieces)


def span_label(positions: Sequence[int], pieces: Sequence[str], word_ids: Sequence[int | None] | None) -> str:
    """Label positions that are one column: the piece itself, or several words with spaces between them.

    >>> span_label([1, 2, 3], ["[CLS]", "the", "scar", "##ing", "[SEP]"], [None, 0, 1, 1, None])
    'the scaring'
    """
    if len(positions) == 1:
        return pieces[positions[0]]
    own = [None if word_ids is None else word_ids[p] for p in positions]
    return " ".join(word.label for word in group_words(own, [pieces[p] for p in positions]))


def word_ids_of_pieces(pieces: Sequence[str], special: Sequence[bool]) -> tuple[int | None, ...]:
    """Number the words of a sentence from the marks in its pieces (WordPiece, byte-level BPE, SentencePiece).

    Special tokens belong to no word. Used where ids were given, so that no text says where words end.

    >>> word_ids_of_pieces(["[CLS]", "scar", "##ing", "it"], [True, False, False, False])
    (None, 0, 0, 1)
    >>> word_ids_of_pieces(["The", "Ġdog", "s"], [False, False, False])
    (0, 1, 1)
    """
    marks_starts = any(piece.startswith(WORD_STARTS) for piece in pieces)
    ids: list[int | None] = []
    word, previous_special = -1, True
    for piece, is_special in zip(pieces, special, strict=True):
        if is_special:
            ids.append(None)
        else:
            continues = not piece.startswith(WORD_STARTS) if marks_starts else piece.startswith(CONTINUATION)
            if previous_special or not continues:
                word += 1
            ids.append(word)
        previous_special = is_special
    return tuple(ids)
