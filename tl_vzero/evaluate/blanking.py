"""What blanking tokens does to the prediction at the target.

1. Each wanted sentence is a copy of an example with some of its tokens replaced, or removed.
2. Copies of all examples that have one length share a run, and equal copies are run once.
3. Logits are computed at the target only, where the model allows it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tl_vzero.clean import device_of
from tl_vzero.distance import wide_dtype
from tl_vzero.errors import InputError, ModelError, unknown_name
from tl_vzero.evaluate.laid_out import LaidOut
from tl_vzero.models.facts import facts_of, vocabulary_size
from tl_vzero.models.run import quiet
from tl_vzero.models.target_logits import LOGITS_A_BATCH, TargetLogits

Replacement = Literal["mask", "unk", "pad", "removed"]
Change = Literal["signed", "absolute"]
Over = Literal["vocabulary", "forms"]

TOKENS_A_BATCH = 4096

Blank = frozenset[int]


@dataclass(frozen=True)
class Conventions:
    """How a token is blanked and what is measured; public programs differ, so a result records it.

    - `replacement`: by the mask, unknown or padding token (which is still attended to), or the token is removed
    - `change`: the drop of p(right form) with its sign, or its size
    - `over`: p over the vocabulary, or over the two forms {right, wrong}
    - `special_tokens`: whether special tokens are blanked and ranked too

    The target's own position is never blanked. Raises InputError for an unknown choice.
    """

    replacement: Replacement = "mask"
    change: Change = "signed"
    over: Over = "vocabulary"
    special_tokens: bool = False

    def __post_init__(self) -> None:
        for name, known in (("replacement", Replacement), ("change", Change), ("over", Over)):
            if getattr(self, name) not in get_args(known):
                raise unknown_name(name, getattr(self, name), get_args(known))

    def to_dict(self) -> dict[str, Any]:
        """The choices as plain JSON types."""
        return asdict(self)

    def positions(self, each: LaidOut) -> tuple[int, ...]:
        """The positions of an example that are blanked."""
        special = each.pieces.special
        return tuple(i for i in range(len(each)) if i != each.own and (self.special_tokens or not special[i]))


@dataclass(frozen=True)
class _Copy:
    """One sentence to run: its ids, the position that is read, and the forms that are asked for there."""

    ids: tuple[int, ...]
    read: int
    good: int
    bad: int | None


def probabilities(
    model: nn.Module,
    blanked: Sequence[tuple[LaidOut, Sequence[Blank]]],
    conventions: Conventions,
    advance: Any = lambda copies: None,
) -> list[Float[Tensor, "_"]]:
    """p(right form) at the target, of each example one number for each set of blanked positions, in float64.

    Raises InputError where the tokenizer lacks the token that replaces.
    """
    token = replacing_token(model, conventions.replacement)
    wanted = [[_copy(each, blank, token, conventions) for blank in blanks] for each, blanks in blanked]
    found: dict[_Copy, float] = {}
    with quiet(model):
        logits = TargetLogits(model)
        for batch in _batches({copy: None for copies in wanted for copy in copies}, model, logits):
            ids = torch.tensor([copy.ids for copy in batch], device=device_of(model))
            read = torch.tensor([copy.read for copy in batch], device=ids.device)
            found |= zip(batch, _probabilities(logits.at(ids, read).to(wide_dtype(ids.device)), batch), strict=True)
            advance(len(batch))
    return [torch.tensor([found[copy] for copy in copies], dtype=torch.float64) for copies in wanted]


def replacing_token(model: nn.Module, replacement: Replacement) -> int | None:
    """The id of the token that stands for a blank; None where blanks are removed."""
    if replacement == "removed":
        return None
    tokenizer = facts_of(model).tokenizer
    number = getattr(tokenizer, f"{replacement}_token_id")
    if number is None:
        held = [name for name in ("mask", "unk", "pad") if getattr(tokenizer, f"{name}_token_id") is not None]
        raise InputError(
            f"replacement {replacement!r}: this tokenizer has no such token; expected one of {', '.join(held)}, removed"
            if held
            else f"replacement {replacement!r}: this tokenizer has no such token; expected removed"
        )
    return int(number)


def _copy(each: LaidOut, blank: Blank, token: int | None, conventions: Conventions) -> _Copy:
    ids, read = each.pieces.ids.tolist(), each.dest
    bad = each.pieces.bad_id if conventions.over == "forms" else None
    if token is not None:
        kept = [token if position in blank else number for position, number in enumerate(ids)]
        return _Copy(tuple(kept), read, each.pieces.good_id, bad)
    left = [position for position in range(len(ids)) if position not in blank]
    # Of a causal input the target is the next token: what is read is the last position that is left.
    return _Copy(
        tuple(ids[position] for position in left),
        left.index(read) if read in left else len(left) - 1,
        each.pieces.good_id,
        bad,
    )


def _batches(copies: Mapping[_Copy, None], model: nn.Module, logits: TargetLogits) -> Iterator[list[_Copy]]:
    """Copies of one length, as many as may share a run."""
    by_length: dict[int, list[_Copy]] = {}
    for copy in copies:
        by_length.setdefault(len(copy.ids), []).append(copy)
    for length, alike in sorted(by_length.items()):
        sample = torch.tensor([alike[0].ids], device=device_of(model))
        unembedded = logits.positions_unembedded(sample) * vocabulary_size(model)
        size = max(1, min(TOKENS_A_BATCH // length, LOGITS_A_BATCH // unembedded))
        yield from (alike[start : start + size] for start in range(0, len(alike), size))


def _probabilities(logits: Float[Tensor, "copy vocabulary"], batch: Sequence[_Copy]) -> list[float]:
    """p(right form) of each copy."""
    good = logits[range(len(batch)), [copy.good for copy in batch]]
    if batch[0].bad is None:
        found = (good - logits.logsumexp(dim=-1)).exp()
    else:
        found = (good - logits[range(len(batch)), [copy.bad for copy in batch]]).sigmoid()
    if found.isnan().any():
        raise ModelError("a probability is NaN: check the weights, and the model's dtype (float16 overflows easily)")
    numbers: list[float] = found.tolist()
    return numbers
