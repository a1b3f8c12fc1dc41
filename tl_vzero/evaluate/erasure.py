"""Erasure curves: the prediction without the tokens that rank highest, and with these alone."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any, Literal, get_args

import numpy as np

from tl_vzero.errors import InputError, InputTypeError
from tl_vzero.evaluate.blanking import Blank
from tl_vzero.evaluate.laid_out import LaidOut
from tl_vzero.evaluate.statistics import Estimate
from tl_vzero.evaluate.summaries import Array, Interval, columns_of, estimates, paradigms_of

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
    examples: Sequence[LaidOut],
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
