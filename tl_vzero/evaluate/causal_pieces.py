"""An example as a causal model reads it: the words before the target, which is the next token."""

from typing import Any

import torch

from tl_vzero.data.examples import Example
from tl_vzero.data.pieces import Pieces
from tl_vzero.data.sentence_text import write_words
from tl_vzero.errors import InputError


class NotCausal(Exception):
    """Why an example cannot be read from left to right."""


def pieces_before_target(example: Example, tokenizer: Any) -> Pieces:
    """The pieces before the target, and the two forms as the next token; `target` is the last position.

    Raises NotCausal for a target that is not one known token or comes first, and a cue that does not come before it;
    InputError for a tokenizer without character offsets.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(
            f"the tokenizer is {type(tokenizer).__name__}, without character offsets: expected a fast tokenizer, as "
            "AutoTokenizer gives"
        )
    late = [word for word in example.cue if word > example.target]
    if late:
        raise NotCausal(f"the cue {example.words[late[0]]!r} comes after the target")
    before, words, good_id = _before(example, example.good, tokenizer)
    bad_id = None
    if example.bad is not None:
        before_bad, _, bad_id = _before(example, example.bad, tokenizer)
        if before_bad != before:
            raise NotCausal("the tokens before the target differ between the two forms")
    return Pieces(
        ids=torch.tensor(before),
        tokens=tuple(str(token) for token in tokenizer.convert_ids_to_tokens(before)),
        word_ids=words,
        target=len(before) - 1,
        cue=tuple(_first_piece(example, words, word) for word in example.cue),
        attractor=tuple(words.index(word) for word in example.attractor if word in words),
        good_id=good_id,
        bad_id=bad_id,
    )


def _before(example: Example, form: str, tokenizer: Any) -> tuple[list[int], tuple[int | None, ...], int]:
    """The ids before the target, the word of each, and the id of a form at the target."""
    written = write_words(example.words_with(form))
    encoding = tokenizer(written.text, return_offsets_mapping=True, verbose=False)
    ids = list(encoding["input_ids"])
    words = [
        next((word for word, (first, last) in enumerate(written.spans) if begin < last and end > first), None)
        for begin, end in encoding["offset_mapping"]
    ]
    at_target = [position for position, word in enumerate(words) if word == example.target]
    if len(at_target) != 1:
        raise NotCausal(f"{form!r} is {len(at_target)} tokens")
    (target,) = at_target
    if ids[target] == tokenizer.unk_token_id and form != tokenizer.unk_token:
        raise NotCausal(f"{form!r} is not in the vocabulary")
    if target == 0:
        raise NotCausal("there is no token before the target")
    return ids[:target], tuple(words[:target]), ids[target]


def _first_piece(example: Example, words: tuple[int | None, ...], word: int) -> int:
    if word not in words:
        raise NotCausal(f"the tokenizer drops the cue {example.words[word]!r}")
    return words.index(word)
