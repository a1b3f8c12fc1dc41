"""An example as a causal model reads it: the words before the target, which is the next token."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import nn

from tl_vzero.clean import CleanBlock, device_of, visit_clean_blocks
from tl_vzero.data.examples import Example, Skipped, write_words
from tl_vzero.data.tokens import Pieces, WhichPieces, pieces_of
from tl_vzero.errors import InputError, InputTypeError, ModelError, TLVZeroError, unknown_name
from tl_vzero.inputs.text import encode, warned_before
from tl_vzero.models.contracts import check_contracts
from tl_vzero.models.facts import facts_of
from tl_vzero.models.run import quiet


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


# Examples laid onto a model's tokens, by the masked protocol of the paper or the causal one.
#
# - masked: the whole sentence with the target masked; the row that is evaluated is that of the mask.
# - causal: the words before the target; the target is the next token, and the row is that of the last position.

Protocol = Literal["masked", "causal"]
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)
CAUSAL_STAGE = "target is the next token"


@dataclass(frozen=True, eq=False)
class TokenizedExample:
    """An example and its pieces. `target_position` is the target's; None where the target comes next."""

    example: Example
    encoding: Pieces
    target_position: int | None

    def __len__(self) -> int:
        return len(self.encoding.tokens)

    @property
    def dest(self) -> int:
        """The position whose row is evaluated."""
        return self.encoding.target

    def cue(self, which: WhichPieces) -> tuple[int, ...]:
        """The positions of the cue: the first piece of each of its words (the paper), or all pieces."""
        return self._positions(self.example.cue, which)

    def attractor(self, which: WhichPieces) -> tuple[int, ...]:
        """The positions of the words that compete with the cue, as far as they are in the input."""
        return self._positions(self.example.attractor, which)

    def _positions(self, words: Sequence[int], which: WhichPieces) -> tuple[int, ...]:
        found: list[int] = []
        for word in words:
            pieces = [position for position, owner in enumerate(self.encoding.word_ids) if owner == word]
            found += pieces[:1] if which == "first" else pieces
        return tuple(found)


@dataclass(frozen=True, eq=False)
class TokenizedSet:
    """Examples laid onto one model's tokens, in order; `skipped` are those that the protocol cannot hold, and why."""

    examples: tuple[TokenizedExample, ...]
    protocol: Protocol
    skipped: tuple[Skipped, ...] = ()


def tokenize_examples(model: nn.Module, examples: Sequence[Example], *, protocol: Protocol = "masked") -> TokenizedSet:
    """Lay examples onto a model's tokens; what the causal protocol cannot hold is listed as skipped.

    Raises InputError for no examples, a tokenizer that cannot lay them out, or a target that is not one token;
    ModelError for a causal model under the masked protocol, and the reverse.

    >>> import tl_vzero
    >>> from tl_vzero.data.agreement_mini import agreement_examples
    >>> layout = tokenize_examples(tl_vzero.load_model("agreement-mini"), agreement_examples()[:2])
    >>> layout.examples[0].encoding.tokens[layout.examples[0].dest]
    '[MASK]'
    """
    if protocol not in PROTOCOLS:
        raise unknown_name("protocol", protocol, PROTOCOLS)
    check_contracts(model)
    tokenizer = _tokenizer_of(model)
    _check_examples(examples)
    # A causal model's tokenizer may well lack a mask token: that it is causal is the reason to tell.
    causal = is_causal(model, [tokenizer.convert_tokens_to_ids(token) for token in tokenizer.tokenize("one of two")])
    if causal and protocol == "masked":
        raise ModelError(
            f"{facts_of(model).name} is causal, and the masked protocol lets the target see the words after it: "
            'expected a masked model, or protocol="causal", where the target is the next token'
        )
    if not causal and protocol == "causal":
        raise ModelError(
            f"{facts_of(model).name} attends in both directions, and the causal protocol asks for the next token: "
            'expected a causal model, or protocol="masked"'
        )
    return _causal_layout(examples, tokenizer) if causal else _masked_layout(examples, tokenizer)


def is_causal(model: nn.Module, ids: Sequence[int]) -> bool:
    """Whether no position attends to a later one, read off the first block's pattern for some ids."""
    ahead: list[bool] = []

    def look(_: int, block: CleanBlock) -> None:
        ahead.append(bool(block.pattern.triu(1).any()))

    with quiet(model):
        given = torch.tensor([list(ids)], device=device_of(model))
        visit_clean_blocks(model, check_contracts(model), given, [0], look)
    return not ahead[0]


def _tokenizer_of(model: nn.Module) -> Any:
    tokenizer = facts_of(model).tokenizer
    if tokenizer is None:
        raise InputError("this model has no tokenizer: load the model with tokenizer=, examples are words")
    return tokenizer


def _check_examples(examples: Any) -> None:
    if not isinstance(examples, Sequence) or not all(isinstance(each, Example) for each in examples):
        raise InputTypeError(
            f"examples is {type(examples).__name__}: expected a sequence of Example, such as agreement_examples()"
        )
    if not examples:
        raise InputError("there are no examples: expected at least one; see the filter report of their ExampleSet")


def _masked_layout(examples: Sequence[Example], tokenizer: Any) -> TokenizedSet:
    laid = [(example, pieces_of(example, tokenizer)) for example in examples]
    return TokenizedSet(tuple(TokenizedExample(example, pieces, pieces.target) for example, pieces in laid), "masked")


def _causal_layout(examples: Sequence[Example], tokenizer: Any) -> TokenizedSet:
    laid: list[TokenizedExample] = []
    skipped: list[Skipped] = []
    for example in examples:
        try:
            laid.append(TokenizedExample(example, pieces_before_target(example, tokenizer), None))
        except NotCausal as reason:
            skipped.append(Skipped(example.id, example.paradigm, CAUSAL_STAGE, str(reason)))
    if not laid:
        raise InputError(
            f"no example of {len(examples)} can be read from left to right, for one {skipped[-1].reason}: expected "
            "examples whose cue comes before a target of one token"
        )
    return TokenizedSet(tuple(laid), "causal", tuple(skipped))


# The sentences of an evaluation as text that the model reads, for `tl-vzero corpus`.


def read_texts(model: nn.Module, layout: TokenizedSet) -> list[str]:
    """The text of each example of a layout: with its target masked, or under the causal protocol what comes before it.

    Raises InputError where a text by itself gives other tokens than the example: the corpus of it would be another.

    >>> import tl_vzero
    >>> from tl_vzero.data.agreement_mini import agreement_examples
    >>> from tl_vzero.evaluate.tokenized import tokenize_examples
    >>> model = tl_vzero.load_model("agreement-mini")
    >>> read_texts(model, tokenize_examples(model, agreement_examples()[2:3]))
    ['her professor [MASK] praising the polite lawyer.']
    """
    tokenizer = facts_of(model).tokenizer
    texts = [_text_of(each, tokenizer) for each in layout.examples]
    differing = [
        each.example.id
        for each, text in zip(layout.examples, texts, strict=True)
        if _ids(model, text) != each.encoding.ids.tolist()
    ]
    if differing:
        raise InputError(
            f"the text of {len(differing)} of {len(texts)} examples gives other tokens by itself than before its "
            f"target, first {differing[0]!r}: expected sentences whose text can stand alone; evaluate without a corpus"
        )
    return texts


def _text_of(each: TokenizedExample, tokenizer: Any) -> str:
    example = each.example
    if each.target_position is not None:
        return example.with_target(tokenizer.mask_token)
    written = write_words(example.words)
    return written.text[: written.spans[example.target][0]].rstrip()


def _ids(model: nn.Module, text: str) -> list[int] | None:
    try:
        with warned_before():  # whatever is amiss with a text, the corpus of it notes
            (sentence,) = encode(model, [text]).sentences
    except TLVZeroError:
        return None
    return sentence.ids.tolist()
