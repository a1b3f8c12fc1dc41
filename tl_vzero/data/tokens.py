"""An example as a tokenizer cuts it: ids with the target masked, and where target, cue and attractor lie."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Int
from torch import Tensor

from tl_vzero.choices import one_of
from tl_vzero.data.examples import Example, ExampleSet, write_words
from tl_vzero.errors import InputError

WhichPieces = Literal["first", "all"]
WHICH_PIECES: tuple[WhichPieces, ...] = get_args(WhichPieces)
ONE_PIECE = "target is one token"


@dataclass(frozen=True, eq=False)
class Pieces:
    """One masked sentence in the tokenizer's pieces; positions count pieces, special tokens included.

    `word_ids` gives the word of the example that each piece belongs to, None for special tokens. `good_id` and
    `bad_id` are the two forms as the tokenizer writes them at the target's place.
    """

    ids: Int[Tensor, "position"]
    tokens: tuple[str, ...]
    word_ids: tuple[int | None, ...]
    target: int
    cue: tuple[int, ...]
    attractor: tuple[int, ...]
    good_id: int
    bad_id: int | None

    @property
    def special(self) -> tuple[bool, ...]:
        """Which positions hold special tokens; the mask stands for a word and is none of them."""
        return tuple(word is None for word in self.word_ids)


def pieces_of(example: Example, tokenizer: Any, *, which: str = "first") -> Pieces:
    """Lay an example onto a tokenizer, its special tokens around it, the target replaced by its mask token.

    `which` says whether cue and attractor are the first piece of each of their words (the paper) or all pieces.
    Raises InputError for a tokenizer that gives no character offsets or has no mask token, a target that is not one
    known token, and a cue that the tokenizer drops.

    >>> import tl_vzero
    >>> from tl_vzero.data.agreement_mini import agreement_examples
    >>> tokenizer = tl_vzero.load_model("agreement-mini").tokenizer
    >>> pieces = pieces_of(agreement_examples()[2], tokenizer)
    >>> pieces.tokens
    ('[CLS]', 'her', 'professor', '[MASK]', 'praising', 'the', 'polite', 'lawyer', '.', '[SEP]')
    >>> pieces.target, pieces.cue
    (3, (2,))
    """
    one_of("choice of pieces", which, WHICH_PIECES)
    _check_tokenizer(tokenizer)
    good_id = _single_id(example, example.good, tokenizer)
    bad_id = None if example.bad is None else _single_id(example, example.bad, tokenizer)
    ids, word_ids = _tokenised(example.words_with(tokenizer.mask_token), tokenizer)
    masks = [position for position, number in enumerate(ids) if number == tokenizer.mask_token_id]
    if len(masks) != 1:
        raise InputError(
            f"{example.id} has {len(masks)} mask tokens: expected one, at its target; rewrite the sentence"
        )
    return Pieces(
        ids=torch.tensor(ids),
        tokens=tuple(str(token) for token in tokenizer.convert_ids_to_tokens(ids)),
        word_ids=word_ids,
        target=masks[0],
        cue=_positions(example, "cue", example.cue, word_ids, which),
        attractor=_positions(example, "attractor", example.attractor, word_ids, which),
        good_id=good_id,
        bad_id=bad_id,
    )


def keep_one_piece_targets(examples: ExampleSet, tokenizer: Any) -> ExampleSet:
    """The examples whose right and wrong form are one known token each; the others are listed in the report.

    Raises InputError for a tokenizer that gives no character offsets or has no mask token, and where no example is
    left.

    >>> import tl_vzero
    >>> from tl_vzero.data.agreement_mini import agreement_examples
    >>> kept = keep_one_piece_targets(agreement_examples(), tl_vzero.load_model("agreement-mini").tokenizer)
    >>> kept.report.to_frame().loc["all"].to_dict()
    {'read': 500, 'target is one token': 500}
    """
    _check_tokenizer(tokenizer)
    kept = examples.filtered(ONE_PIECE, lambda example: _why_not_one_piece(example, tokenizer))
    if not kept and examples:
        raise InputError(
            f"no example is left: this tokenizer has no target of {len(examples)} as one token, for one "
            f"{kept.report.skipped[-1].reason}; expected a model with these words in its vocabulary"
        )
    return kept


def _check_tokenizer(tokenizer: Any) -> None:
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(
            f"the tokenizer is {type(tokenizer).__name__}, without character offsets: expected a fast tokenizer, as "
            "AutoTokenizer gives"
        )
    if tokenizer.mask_token is None:
        raise InputError(
            "the tokenizer has no mask token: expected one of a masked language model; for a causal model, take the "
            "words before the target as the text and the target as the next token"
        )


def _why_not_one_piece(example: Example, tokenizer: Any) -> str | None:
    for form in (example.good, example.bad):
        if form is not None and (reason := _fault(_pieces_at_target(example, form, tokenizer), form, tokenizer)):
            return reason
    return None


def _single_id(example: Example, form: str, tokenizer: Any) -> int:
    pieces = _pieces_at_target(example, form, tokenizer)
    if reason := _fault(pieces, form, tokenizer):
        raise InputError(f"{example.id}: {reason}; expected one token, see keep_one_piece_targets")
    return pieces[0]


def _fault(pieces: Sequence[int], form: str, tokenizer: Any) -> str | None:
    if len(pieces) != 1:
        return f"{form!r} is {len(pieces)} tokens: {' '.join(tokenizer.convert_ids_to_tokens(pieces))}"
    if pieces[0] == tokenizer.unk_token_id:
        return f"{form!r} is not in the vocabulary"
    return None


def _pieces_at_target(example: Example, form: str, tokenizer: Any) -> list[int]:
    """The form's ids in its place: a tokenizer may cut it otherwise at the start of a text than after a space."""
    ids, word_ids = _tokenised(example.words_with(form), tokenizer)
    return [number for number, word in zip(ids, word_ids, strict=True) if word == example.target]


def _tokenised(words: Sequence[str], tokenizer: Any) -> tuple[list[int], tuple[int | None, ...]]:
    written = write_words(words)
    encoding = tokenizer(written.text, return_offsets_mapping=True, return_special_tokens_mask=True, verbose=False)
    # Only what the tokenizer puts around the sentence: [MASK] within it counts as a word.
    around = encoding["special_tokens_mask"]
    word_ids = tuple(
        None if special else _word_at(begin, written.spans)
        for (begin, _), special in zip(encoding["offset_mapping"], around, strict=True)
    )
    return list(encoding["input_ids"]), word_ids


def _word_at(begin: int, spans: Sequence[tuple[int, int]]) -> int | None:
    """The first word that ends after a piece begins: a piece may be, or begin with, the space before its word."""
    return next((index for index, (_, end) in enumerate(spans) if end > begin), None)


def _positions(
    example: Example, name: str, words: Sequence[int], word_ids: Sequence[int | None], which: str
) -> tuple[int, ...]:
    found: list[int] = []
    for word in words:
        pieces = [position for position, owner in enumerate(word_ids) if owner == word]
        if not pieces:
            raise InputError(f"{example.id}: the tokenizer drops the {name} {example.words[word]!r}; expected a token")
        found.extend(pieces[:1] if which == "first" else pieces)
    return tuple(found)
