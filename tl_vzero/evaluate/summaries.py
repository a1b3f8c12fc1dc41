"""Means of one number per example, with intervals, for each paradigm and for all examples together."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tl_vzero.data.filtering import ALL, Skipped
from tl_vzero.evaluate.laid_out import LaidOut
from tl_vzero.evaluate.statistics import RESAMPLES, Estimate, bootstrap_means

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Interval:
    """How the intervals of means are made."""

    confidence: float = 0.95
    resamples: int = RESAMPLES
    seed: int = 0


def paradigms_of(examples: Sequence[LaidOut]) -> dict[str, list[int]]:
    """The numbers of the examples of each paradigm, in the order of their first one, and of all."""
    numbers: dict[str, list[int]] = {}
    for number, each in enumerate(examples):
        numbers.setdefault(each.example.paradigm, []).append(number)
    return numbers | {ALL: list(range(len(examples)))}


def estimates(values: Array, interval: Interval) -> Sequence[Estimate | None]:
    """The mean of each column of `[example, column]` over the examples where it is defined; None where none is.

    A number that is NaN is undefined for its example.
    """
    defined = ~np.isnan(values)
    found: list[Estimate | None] = [None] * values.shape[1]
    # Columns that are defined for the same examples share their draws.
    alike: dict[bytes, list[int]] = {}
    for column in range(values.shape[1]):
        alike.setdefault(defined[:, column].tobytes(), []).append(column)
    for columns in alike.values():
        rows = defined[:, columns[0]]
        if rows.any():
            means = bootstrap_means(
                values[rows][:, columns],
                confidence=interval.confidence,
                resamples=interval.resamples,
                seed=interval.seed,
            )
            for column, mean in zip(columns, means, strict=True):
                found[column] = mean
    return found


def columns_of(estimate: Estimate | None) -> dict[str, float | int | None]:
    """An estimate as columns of a table; None where there is none."""
    if estimate is None:
        return {"mean": None, "low": None, "high": None, "n": 0}
    bounds = {"low": estimate.low, "high": estimate.high}
    return {"mean": estimate.mean, **{name: None if np.isnan(b) else b for name, b in bounds.items()}, "n": estimate.n}


def plain_skip(skipped: Skipped) -> dict[str, str]:
    """A skipped example as plain JSON types."""
    return {"id": skipped.id, "paradigm": skipped.paradigm, "reason": skipped.reason}
