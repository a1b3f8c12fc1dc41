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
    good_id: int
    bad_id: int | None

    @property
    def special(self) -> tuple[bool, ...]:
        """Which positions hold special tokens; the mask stands for a word and is none of them."""
        return tuple(word is None for word in self.word_ids)

    def positions(self, words: Sequence[int], which: WhichPieces) -> tuple[int, ...]:
        """The first piece of each of some words (the paper), or all of them; words that are not there have none."""
        one_of("choice of pieces", which, WHICH_PIECES)
        by_word = [[position for position, owner in enumerate(self.word_ids) if owner == word] for word in words]
        return tuple(position for pieces in by_word for position in (pieces[:1] if which == "first" else pieces))


def pieces_of(example: Example, tokenizer: Any) -> Pieces:
    """Lay an example onto a tokenizer, its special tokens around it, the target replaced by its mask token.

    Raises InputError for a tokenizer that gives no character offsets or has no mask token, a target that is not one
    known token, and a cue or an attractor that the tokenizer drops.

    >>> import tl_vzero
    >>> from tl_vzero.data.agreement_mini import agreement_examples
    >>> tokenizer = tl_vzero.load_model("agreement-mini").tokenizer
    >>> pieces = pieces_of(agreement_examples()[2], tokenizer)
    >>> pieces.tokens
    ('[CLS]', 'her', 'professor', '[MASK]', 'praising', 'the', 'polite', 'lawyer', '.', '[SEP]')
    >>> pieces.target, pieces.positions([1, 2], "first")
    (3, (2, 3))
    """
    _check_tokenizer(tokenizer)
    good_id = _single_id(example, example.good, tokenizer)
    bad_id = None if example.bad is None else _single_id(example, example.bad, tokenizer)
    ids, word_ids = tokenize_words(example.words_with(tokenizer.mask_token), tokenizer)
    masks = [position for position, token_id in enumerate(ids) if token_id == tokenizer.mask_token_id]
    if len(masks) != 1:
        raise InputError(f"{example.id} has {len(masks)} mask tokens: expected one, at its target")
    dropped = [example.words[word] for word in (*example.cue, *example.attractor) if word not in word_ids]
    if dropped:
        raise InputError(f"{example.id}: the tokenizer drops the cue or attractor {dropped[0]!r}; expected a token")
    tokens = tuple(str(token) for token in tokenizer.convert_ids_to_tokens(ids))
    return Pieces(torch.tensor(ids), tokens, word_ids, masks[0], good_id, bad_id)


def keep_one_piece_targets(examples: ExampleSet, tokenizer: Any) -> ExampleSet:
    """The examples whose right and wrong form are one known token each; the others are listed in the report.

    Raises InputError for a tokenizer that gives no character offsets or has no mask token, and where no example is
    left.

    >>> import tl_vzero
    >>> from tl_vzero.data.agreement_mini import agreement_examples
    >>> usable = keep_one_piece_targets(agreement_examples(), tl_vzero.load_model("agreement-mini").tokenizer)
    >>> usable.report.to_frame().loc["all"].to_dict()
    {'read': 500, 'target is one token': 500}
    """
    _check_tokenizer(tokenizer)
    # Of BLiMP 4,724 are left under bert-base-uncased. The paper has 4,276: with cues of one token too, 4,273 are left.
    usable = examples.filtered(ONE_PIECE, lambda example: _why_not_one_piece(example, tokenizer))
    if not usable and examples:
        raise InputError(
            f"no example is left: this tokenizer has no target of {len(examples)} as one token, for one "
            f"{usable.report.skipped[-1].reason}; expected a model with these words in its vocabulary"
        )
    return usable


def check_fast(tokenizer: Any) -> None:
    """Raise InputError for a tokenizer that gives no character offsets."""
    if not getattr(tokenizer, "is_fast", False):
        what = type(tokenizer).__name__
        raise InputError(
            f"the tokenizer is {what}, without character offsets: expected a fast one, as of AutoTokenizer"
        )


def _check_tokenizer(tokenizer: Any) -> None:
    check_fast(tokenizer)
    if tokenizer.mask_token is None:
        raise InputError(
            "the tokenizer has no mask token: expected one of a masked language model; for a causal model, take the "
            "words before the target as the text and the target as the next token"
        )


def _why_not_one_piece(example: Example, tokenizer: Any) -> str | None:
    forms = [form for form in (example.good, example.bad) if form is not None]
    return next((reason for form in forms if isinstance(reason := _one_piece(example, form, tokenizer), str)), None)


def _single_id(example: Example, form: str, tokenizer: Any) -> int:
    token_id = _one_piece(example, form, tokenizer)
    if isinstance(token_id, str):
        raise InputError(f"{example.id}: {token_id}; expected one token, see keep_one_piece_targets")
    return token_id


def _one_piece(example: Example, form: str, tokenizer: Any) -> int | str:
    """The id of a form in its place, or why it has none: a tokenizer may cut it otherwise at the start of a text."""
    ids, word_ids = tokenize_words(example.words_with(form), tokenizer)
    pieces = [token_id for token_id, word in zip(ids, word_ids, strict=True) if word == example.target]
    if len(pieces) != 1:
        return f"{form!r} is {len(pieces)} tokens: {' '.join(tokenizer.convert_ids_to_tokens(pieces))}"
    return f"{form!r} is not in the vocabulary" if pieces[0] == tokenizer.unk_token_id else pieces[0]


def tokenize_words(words: Sequence[str], tokenizer: Any) -> tuple[list[int], tuple[int | None, ...]]:
    """The ids of a sentence, and the word of each; None for what the tokenizer puts around the sentence."""
    text, spans = write_words(words)
    encoding = tokenizer(text, return_offsets_mapping=True, return_special_tokens_mask=True, verbose=False)
    # [MASK] within the sentence counts as a word. A piece's word is the first that ends after the piece begins: a piece
    # may be, or begin with, the space before its word.
    around = encoding["special_tokens_mask"]
    word_ids = tuple(
        None if special else next((index for index, (_, end) in enumerate(spans) if end > begin), None)
        for (begin, _), special in zip(encoding["offset_mapping"], around, strict=True)
    )
    return list(encoding["input_ids"]), word_ids
