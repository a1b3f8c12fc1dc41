"""Examples laid onto a model's tokens, by the masked protocol of the paper or the causal one.

- masked: the whole sentence with the target masked; the row that is evaluated is that of the mask.
- causal: the words before the target; the target is the next token, and the row is that of the last position.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import nn

from tl_vzero.clean import CleanBlock, device_of, visit_clean_blocks
from tl_vzero.data.examples import Example
from tl_vzero.data.filtering import Skipped
from tl_vzero.data.pieces import Pieces, WhichPieces, pieces_of
from tl_vzero.errors import InputError, InputTypeError, ModelError, unknown_name
from tl_vzero.evaluate.causal_pieces import NotCausal, pieces_before_target
from tl_vzero.models.contracts import check_contracts
from tl_vzero.models.facts import facts_of
from tl_vzero.models.run import quiet

Protocol = Literal["masked", "causal"]
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)
CAUSAL_STAGE = "target is the next token"


@dataclass(frozen=True, eq=False)
class LaidOut:
    """An example and its pieces. `own` is the position of the target itself; None where the target comes next."""

    example: Example
    pieces: Pieces
    own: int | None

    def __len__(self) -> int:
        return len(self.pieces.tokens)

    @property
    def dest(self) -> int:
        """The position whose row is evaluated."""
        return self.pieces.target

    def cue(self, which: WhichPieces) -> tuple[int, ...]:
        """The positions of the cue: the first piece of each of its words (the paper), or all pieces."""
        return self._positions(self.example.cue, which)

    def attractor(self, which: WhichPieces) -> tuple[int, ...]:
        """The positions of the words that compete with the cue, as far as they are in the input."""
        return self._positions(self.example.attractor, which)

    def _positions(self, words: Sequence[int], which: WhichPieces) -> tuple[int, ...]:
        found: list[int] = []
        for word in words:
            pieces = [position for position, owner in enumerate(self.pieces.word_ids) if owner == word]
            found += pieces[:1] if which == "first" else pieces
        return tuple(found)


@dataclass(frozen=True, eq=False)
class Layout:
    """Examples laid onto one model's tokens, in order; `skipped` are those that the protocol cannot hold, and why."""

    examples: tuple[LaidOut, ...]
    protocol: Protocol
    skipped: tuple[Skipped, ...] = ()


def lay_out(model: nn.Module, examples: Sequence[Example], *, protocol: Protocol = "masked") -> Layout:
    """Lay examples onto a model's tokens; what the causal protocol cannot hold is listed as skipped.

    Raises InputError for no examples, a tokenizer that cannot lay them out, or a target that is not one token;
    ModelError for a causal model under the masked protocol, and the reverse.

    >>> import tl_vzero
    >>> from tl_vzero.data.embedded import agreement_examples
    >>> layout = lay_out(tl_vzero.load_model("agreement-mini"), agreement_examples()[:2])
    >>> layout.examples[0].pieces.tokens[layout.examples[0].dest]
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


def _masked_layout(examples: Sequence[Example], tokenizer: Any) -> Layout:
    laid = [(example, pieces_of(example, tokenizer)) for example in examples]
    return Layout(tuple(LaidOut(example, pieces, pieces.target) for example, pieces in laid), "masked")


def _causal_layout(examples: Sequence[Example], tokenizer: Any) -> Layout:
    laid: list[LaidOut] = []
    skipped: list[Skipped] = []
    for example in examples:
        try:
            laid.append(LaidOut(example, pieces_before_target(example, tokenizer), None))
        except NotCausal as reason:
            skipped.append(Skipped(example.id, example.paradigm, CAUSAL_STAGE, str(reason)))
    if not laid:
        raise InputError(
            f"no example of {len(examples)} can be read from left to right, for one {skipped[-1].reason}: expected "
            "examples whose cue comes before a target of one token"
        )
    return Layout(tuple(laid), "causal", tuple(skipped))
