"""What blanking tokens does to the prediction at the target.

1. Each wanted sentence is a copy of an example with some of its tokens replaced, or removed.
2. Copies of all examples that have one length share a run, and equal copies are run once.
3. Logits are computed at the target only, where the model allows it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, nan
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from tl_vzero.choices import one_of
from tl_vzero.clean import device_of
from tl_vzero.distance import wide_dtype
from tl_vzero.errors import InputError, InputTypeError, ModelError
from tl_vzero.evaluate.results import Row, means_by_paradigm
from tl_vzero.evaluate.sentences import TokenizedExample
from tl_vzero.inputs.text import same_length_batches
from tl_vzero.models.facts import facts_of, trained_on_two_forms, vocabulary_size
from tl_vzero.models.run import LOGITS_PER_BATCH, TargetLogits, quiet
from tl_vzero.statistics import Array, Estimate, Interval, columns_of

Replacement = Literal["mask", "unk", "pad", "removed"]
Change = Literal["signed", "absolute"]
Over = Literal["vocabulary", "forms"]

TOKENS_PER_BATCH = 4096  # a choice: bounds the memory of a run, whatever the lengths of its sentences

Blank = frozenset[int]


@dataclass(frozen=True)
class Conventions:
    """How a token is blanked and what is measured; public programs differ, so a result records it.

    - `replacement`: by the mask, unknown or padding token (which is still attended to), or the token is removed
    - `change`: the drop of p(right form) with its sign, or its size
    - `over`: p over the vocabulary, or over the two forms {right, wrong}; None: over the forms for a head that was
      trained on two forms, whose p over a vocabulary means nothing, else over the vocabulary
    - `special_tokens`: whether special tokens are blanked and ranked too

    The target's own position is never blanked. Raises InputError for an unknown choice.
    """

    replacement: Replacement = "mask"
    change: Change = "signed"
    over: Over | None = None
    special_tokens: bool = False

    def __post_init__(self) -> None:
        for name, choices in (("replacement", Replacement), ("change", Change), ("over", Over)):
            if (name, getattr(self, name)) != ("over", None):
                one_of(name, getattr(self, name), get_args(choices))

    def of(self, model: nn.Module) -> "Conventions":
        """The conventions with `over` settled for a model."""
        usual: Over = "forms" if trained_on_two_forms(model) else "vocabulary"
        return replace(self, over=self.over or usual)

    def positions(self, sentence: TokenizedExample) -> tuple[int, ...]:
        """The positions of an example that are blanked."""
        special, target = sentence.encoding.special, sentence.target_position
        return tuple(i for i in range(len(special)) if i != target and (self.special_tokens or not special[i]))


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
) -> list[Float[Tensor, "over _"]]:
    """p(right form) at the target in float64: for each example one value per set of blanked positions.

    The first row is over what the conventions say, the second over the other of vocabulary and forms: of an example
    without a wrong form NaN over the forms.
    """
    token_id, over = replacing_token(model, conventions.replacement), conventions.of(model).over
    copies = [[_copy(sentence, blank, token_id) for blank in blanks] for sentence, blanks in blanked]
    p_good: dict[_Copy, tuple[float, float]] = {}
    with quiet(model):
        logits = TargetLogits(model)

        def size_of(alike: Sequence[_Copy]) -> int:
            sample = torch.tensor([alike[0].ids], device=device_of(model))
            unembedded = logits.positions_unembedded(sample) * vocabulary_size(model)
            return min(TOKENS_PER_BATCH // sample.shape[1], LOGITS_PER_BATCH // unembedded)

        different = dict.fromkeys(copy for of_example in copies for copy in of_example)
        for batch in same_length_batches(different, lambda copy: len(copy.ids), size_of):
            ids = torch.tensor([copy.ids for copy in batch], device=device_of(model))
            read = torch.tensor([copy.read for copy in batch], device=ids.device)
            good, bad = ([getattr(copy, form) for copy in batch] for form in ("good", "bad"))
            at_target = logits.at(ids, read).to(wide_dtype(ids.device))
            forms = [right if wrong is None else wrong for right, wrong in zip(good, bad, strict=True)]
            over_forms = [
                nan if wrong is None else p for p, wrong in zip(p_right(at_target, good, forms), bad, strict=True)
            ]
            p_good |= zip(batch, zip(p_right(at_target, good, None), over_forms, strict=True), strict=True)
            advance(len(batch))
    both = [torch.tensor([p_good[copy] for copy in of_example], dtype=torch.float64).T for of_example in copies]
    return [of_example.flip(0) for of_example in both] if over == "forms" else both


def replacing_token(model: nn.Module, replacement: Replacement) -> int | None:
    """The id of the token that stands for a blank; None where blanks are removed."""
    if replacement == "removed":
        return None
    tokenizer = facts_of(model).tokenizer
    token_id = getattr(tokenizer, f"{replacement}_token_id")
    if token_id is None:
        held = [name for name in ("mask", "unk", "pad") if getattr(tokenizer, f"{name}_token_id") is not None]
        expected = f"one of {', '.join(held)}, removed" if held else "removed"
        raise InputError(f"replacement {replacement!r}: this tokenizer has no such token; expected {expected}")
    return int(token_id)


def _copy(sentence: TokenizedExample, blank: Blank, token_id: int | None) -> _Copy:
    encoding, read = sentence.encoding, sentence.dest
    ids = encoding.ids.tolist()
    if token_id is not None:
        ids = [token_id if position in blank else original for position, original in enumerate(ids)]
    else:
        remaining = sorted({*range(len(ids))} - blank)
        ids = [ids[position] for position in remaining]
        # Of a causal input the target is the next token: what is read is the last position that is left.
        read = remaining.index(read) if read in remaining else len(remaining) - 1
    return _Copy(tuple(ids), read, encoding.good_id, encoding.bad_id)


def p_right(logits: Float[Tensor, "copy vocabulary"], good: Sequence[int], bad: Sequence[int] | None) -> list[float]:
    """p(right form) of each copy, over the vocabulary, or over the two forms where `bad` is given."""
    copies = range(len(good))
    right = logits[copies, good]
    p_good = (right - logits.logsumexp(dim=-1)).exp() if bad is None else (right - logits[copies, bad]).sigmoid()
    if p_good.isnan().any():
        raise ModelError("a probability is NaN: check the weights, and the model's dtype (float16 overflows easily)")
    return [*p_good.tolist()]


# Erasure curves: the prediction without the tokens that rank highest, and with these alone.

Kind = Literal["comprehensiveness", "sufficiency"]
KINDS: tuple[Kind, ...] = get_args(Kind)
FRACTIONS = (0.1, 0.2, 0.3, 0.4, 0.5)  # a choice: ERASER's own go down to 1 %, less than a token of our sentences


@dataclass(frozen=True)
class Curve(Row):
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
        """One row per fraction, and one of the AOPC, whose fraction is None."""
        curve = {"method": self.method, "paradigm": self.paradigm, "kind": self.kind}
        for fraction, drop in zip((*self.fractions, None), (*self.drops, self.aopc), strict=True):
            yield {**curve, "fraction": fraction, **columns_of(drop), "undefined": self.undefined}


def check_fractions(fractions: Any, name: str = "fractions") -> None:
    """Raise InputError or InputTypeError for what are no shares of the tokens, from above 0 to 1."""
    if isinstance(fractions, str) or not isinstance(fractions, Sequence):
        raise InputTypeError(f"{name} is {type(fractions).__name__}: expected a list such as [0.1, 0.5], or ()")
    for fraction in fractions:
        expected = f"{name} hold {fraction!r}: expected numbers above 0, up to 1, such as 0.1 for 10 %"
        if isinstance(fraction, bool) or not isinstance(fraction, int | float):
            raise InputTypeError(expected)
        if not 0 < fraction <= 1:
            raise InputError(expected)


def blanks_of(row: Array, positions: Sequence[int], fractions: Sequence[float]) -> list[Blank]:
    """The sets of positions to blank: those that rank highest for each fraction, then all but these.

    A fraction is rounded up to whole tokens; of equal scores the first in the sentence comes first.
    """
    ranked = sorted(positions, key=lambda position: -row[position])
    # Rounded first: 0.3 * 10 is a little more than 3, and would be 4 tokens.
    tops = [frozenset(ranked[: ceil(round(fraction * len(ranked), 9))]) for fraction in fractions]
    return [*tops, *(frozenset(positions) - top for top in tops)]


def curves_of(
    examples: Sequence[TokenizedExample], drops: Mapping[str, Array], fractions: Sequence[float], interval: Interval
) -> tuple[Curve, ...]:
    """The curves of each method's drops of p(right form), `[example, kind, fraction]`; NaN without a ranking."""
    curves: list[Curve] = []
    for method, of_method in drops.items() if fractions else ():
        # The AOPC stands behind the fractions.
        drop = np.concatenate([of_method, of_method.mean(axis=2, keepdims=True)], axis=2)
        for paradigm, (indices, mean) in means_by_paradigm(drop, examples, interval).items():
            for kind, (*of_fractions, aopc) in zip(KINDS, mean, strict=True):
                undefined = len(indices) - (aopc.n if aopc else 0)
                curves.append(Curve(method, paradigm, kind, tuple(fractions), tuple(of_fractions), aopc, undefined))
    return tuple(curves)
