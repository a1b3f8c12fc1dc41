"""What blanking tokens does to the prediction at the target.

1. Each wanted sentence is a copy of an example with some of its tokens replaced, or removed.
2. Copies of all examples that have one length share a run, and equal copies are run once.
3. Logits are computed at the target only, where the model allows it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import ceil
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from tl_vzero.clean import device_of
from tl_vzero.distance import wide_dtype
from tl_vzero.errors import InputError, InputTypeError, ModelError, unknown_name
from tl_vzero.evaluate.statistics import Array, Estimate, Interval, columns_of, estimates, paradigms_of
from tl_vzero.evaluate.tokenized import TokenizedExample
from tl_vzero.models.facts import facts_of, vocabulary_size
from tl_vzero.models.run import LOGITS_A_BATCH, TargetLogits, quiet

Replacement = Literal["mask", "unk", "pad", "removed"]
Change = Literal["signed", "absolute"]
Over = Literal["vocabulary", "forms"]

TOKENS_PER_BATCH = 4096

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

    def positions(self, each: TokenizedExample) -> tuple[int, ...]:
        """The positions of an example that are blanked."""
        special = each.encoding.special
        return tuple(
            i for i in range(len(each)) if i != each.target_position and (self.special_tokens or not special[i])
        )


@dataclass(frozen=True)
class _Copy:
    """One sentence to run: its ids, the position that is read, and the forms that are asked for there."""

    ids: tuple[int, ...]
    read: int
    good: int
    bad: int | None


def probabilities(
    model: nn.Module,
    blanked: Sequence[tuple[TokenizedExample, Sequence[Blank]]],
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


def _copy(each: TokenizedExample, blank: Blank, token: int | None, conventions: Conventions) -> _Copy:
    ids, read = each.encoding.ids.tolist(), each.dest
    bad = each.encoding.bad_id if conventions.over == "forms" else None
    if token is not None:
        kept = [token if position in blank else number for position, number in enumerate(ids)]
        return _Copy(tuple(kept), read, each.encoding.good_id, bad)
    left = [position for position in range(len(ids)) if position not in blank]
    # Of a causal input the target is the next token: what is read is the last position that is left.
    return _Copy(
        tuple(ids[position] for position in left),
        left.index(read) if read in left else len(left) - 1,
        each.encoding.good_id,
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
        size = max(1, min(TOKENS_PER_BATCH // length, LOGITS_A_BATCH // unembedded))
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


# Erasure curves: the prediction without the tokens that rank highest, and with these alone.

Kind = Literal["comprehensiveness", "sufficiency"]
KINDS: tuple[Kind, ...] = get_args(Kind)
FRACTIONS = (0.1, 0.2, 0.3, 0.4, 0.5)


@dataclass(frozen=True)
class Curve:
    """The mean drop of p(right form) by the fraction of tokens, of one method over one paradigm (or "all").

    Comprehensiveness blanks the tokens that rank highest, sufficiency all the others. `aopc` is the mean over the
    fractions. Examples without a ranking (an empty row, no token to blank) are left out and counted in `undefined`;
    estimates are None where no example is left.
    """

    method: str
    paradigm: str
    kind: Kind
    fractions: tuple[float, ...]
    drops: tuple[Estimate | None, ...]
    aopc: Estimate | None
    undefined: int

    def records(self) -> Iterator[dict[str, Any]]:
        """A row for each fraction, and one of the AOPC, whose fraction is None."""
        own = {"method": self.method, "paradigm": self.paradigm, "kind": self.kind}
        for fraction, drop in zip((*self.fractions, None), (*self.drops, self.aopc), strict=True):
            yield {**own, "fraction": fraction, **columns_of(drop), "undefined": self.undefined}


def check_fractions(fractions: Any) -> None:
    """Raise InputError or InputTypeError for what are no shares of the tokens, from above 0 to 1."""
    if isinstance(fractions, str) or not isinstance(fractions, Sequence):
        raise InputTypeError(f"fractions is {type(fractions).__name__}: expected a list such as [0.1, 0.5], or ()")
    for each in fractions:
        if isinstance(each, bool) or not isinstance(each, int | float):
            raise InputTypeError(f"fractions hold {each!r}: expected numbers above 0, up to 1")
        if not 0 < each <= 1:
            raise InputError(f"fractions hold {each}: expected numbers above 0, up to 1, such as 0.1 for 10 %")


def blanks_of(row: Array, positions: Sequence[int], fractions: Sequence[float]) -> list[Blank]:
    """The sets of positions to blank: those that rank highest for each fraction, then all but these.

    A fraction is rounded up to whole tokens; of equal scores the first in the sentence comes first.
    """
    ranked = sorted(positions, key=lambda position: -row[position])
    tops = [frozenset(ranked[: ceil(round(fraction * len(ranked), 9))]) for fraction in fractions]
    return [*tops, *(frozenset(positions) - top for top in tops)]


def curves_of(
    examples: Sequence[TokenizedExample],
    clean: Array,
    erased: Mapping[str, Sequence[Array]],
    ranked: Mapping[str, Sequence[bool]],
    fractions: Sequence[float],
    interval: Interval,
) -> tuple[Curve, ...]:
    """The curves of p(right form), `erased[method][n]` being `[kind, fraction]` of example n.

    `ranked` says which examples have a ranking.
    """
    if not fractions:
        return ()
    found: list[Curve] = []
    for method, own in erased.items():
        drops = clean[:, None, None] - np.stack(own)
        drops[~np.array(ranked[method])] = np.nan
        # The AOPC stands behind the fractions.
        drops = np.concatenate([drops, drops.mean(axis=2, keepdims=True)], axis=2)
        for paradigm, numbers in paradigms_of(examples).items():
            for which, kind in enumerate(KINDS):
                *means, aopc = estimates(drops[numbers, which], interval)
                undefined = int(np.isnan(drops[numbers, which, -1]).sum())
                found.append(Curve(method, paradigm, kind, tuple(fractions), tuple(means), aopc, undefined))
    return tuple(found)
