"""Intervals of means and of correlations by the percentile bootstrap.

1. Examples are drawn again with replacement, as many as there are; pairs are kept together.
2. The statistic is computed on each draw; low and high are its percentiles over the draws.

Source: Efron & Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import isnan, nan
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from tl_vzero.choices import positive
from tl_vzero.data.examples import ALL, Skipped
from tl_vzero.effects.agreement import rank_correlation
from tl_vzero.errors import InputError, InputTypeError
from tl_vzero.evaluate.sentences import TokenizedExample
from tl_vzero.rollout import normalize_rows, roll_out

RESAMPLES = 2000
FEWEST_PAIRS = 3  # two points always lie on a line
DRAWN_AT_ONCE = 2**20  # numbers of examples held for a part of the draws, so that memory does not grow with their count

Array = npt.NDArray[Any]
Numbers = Sequence[float | int] | Array | Tensor


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` examples; `low` and `high` bound its bootstrap interval, NaN where there is one example only."""

    mean: float
    low: float
    high: float
    n: int
    confidence: float = 0.95


@dataclass(frozen=True)
class Correlation:
    """A correlation over `n` pairs; `low` and `high` bound its bootstrap interval.

    All three are NaN where one side is the same for every pair. `kind` is "pearson" or "spearman".
    """

    value: float
    low: float
    high: float
    n: int
    kind: str
    confidence: float = 0.95


def bootstrap_mean(values: Numbers, *, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """The mean of one number per example, with its bootstrap interval.

    Raises InputError for no numbers, or numbers that are not finite; InputTypeError for what is no row of numbers.

    >>> bootstrap_mean([0.0, 1.0, 1.0, 0.0], confidence=0.9)
    Estimate(mean=0.5, low=0.0, high=1.0, n=4, confidence=0.9)
    """
    numbers = _numbers("values", values, dims=1)
    return _estimates(numbers[:, None], confidence, resamples, seed)[0]


def bootstrap_means(
    values: Array | Tensor, *, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[Estimate, ...]:
    """The mean of each column of `[example, column]`, with its bootstrap interval: the same draws for every column.

    Each answer is what `bootstrap_mean` gives for that column alone, faster. Raises as `bootstrap_mean` does.

    >>> import torch
    >>> [estimate.mean for estimate in bootstrap_means(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))]
    [2.0, 5.0]
    """
    return _estimates(_numbers("values", values, dims=2), confidence, resamples, seed)


def bootstrap_pearson(
    first: Numbers, second: Numbers, *, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Correlation:
    """Pearson's correlation of two numbers per example, with its bootstrap interval.

    Draws in which one side is constant say nothing and are left out. Raises InputError for fewer than three pairs,
    unequal counts, or numbers that are not finite; InputTypeError for what is no row of numbers.

    >>> round(bootstrap_pearson([1, 2, 3, 4], [2, 4, 6, 9]).value, 3)
    0.994
    """
    return _correlated("pearson", _pearson, first, second, confidence, resamples, seed)


def bootstrap_spearman(
    first: Numbers, second: Numbers, *, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Correlation:
    """Spearman's rank correlation of two numbers per example, with its bootstrap interval; ties share their mean rank.

    Draws in which one side is constant say nothing and are left out. Raises as `bootstrap_pearson` does.

    >>> bootstrap_spearman([1, 2, 3, 4], [2, 4, 6, 9]).value
    1.0
    """
    return _correlated("spearman", rank_correlation, first, second, confidence, resamples, seed)


def check_bootstrap(confidence: Any, resamples: Any) -> None:
    """Refuse a share or a count of draws that no interval can be made with."""
    if isinstance(confidence, bool) or not isinstance(confidence, int | float):
        raise InputTypeError(f"confidence is {type(confidence).__name__}: expected a number between 0 and 1")
    if not 0 < confidence < 1:
        raise InputError(f"confidence is {confidence}: expected a number between 0 and 1, such as 0.95")
    if resamples is None:
        raise InputTypeError("resamples is None: expected a positive integer")
    positive("resamples", resamples)


def _estimates(values: Array, confidence: float, resamples: int, seed: int) -> tuple[Estimate, ...]:
    check_bootstrap(confidence, resamples)
    n, columns = values.shape
    if n == 0:
        raise InputError("values are empty: expected at least one example")
    means = values.mean(axis=0)
    bounds = np.full((2, columns), nan)
    if n > 1:
        # How often each example is drawn serves all columns by one product.
        again = [_counts(drawn) @ values / n for drawn in _draws(n, resamples, seed)]
        bounds = np.quantile(np.concatenate(again), _tails(confidence), axis=0)
    return tuple(
        Estimate(float(mean), float(low), float(high), n, confidence)
        for mean, low, high in zip(means, *bounds, strict=True)
    )


def _correlated(
    kind: str,
    correlation: Callable[[Array, Array], Array],
    first: Numbers,
    second: Numbers,
    confidence: float,
    resamples: int,
    seed: int,
) -> Correlation:
    check_bootstrap(confidence, resamples)
    one, other = _numbers("first", first, dims=1), _numbers("second", second, dims=1)
    n = len(one)
    if n != len(other):
        raise InputError(f"first has {n} numbers and second {len(other)}: expected pairs")
    if n < FEWEST_PAIRS:
        raise InputError(f"given {n} pairs: expected at least {FEWEST_PAIRS}, or every correlation is perfect")
    value = float(correlation(one, other))
    if isnan(value):
        return Correlation(nan, nan, nan, n, kind, confidence)
    again = np.concatenate([correlation(one[drawn], other[drawn]) for drawn in _draws(n, resamples, seed)])
    known = again[~np.isnan(again)]
    low, high = np.quantile(known, _tails(confidence)).tolist() if len(known) else (nan, nan)
    return Correlation(value, low, high, n, kind, confidence)


def _pearson(first: Array, second: Array) -> Array:
    """Pearson correlation of each row of `[..., n]` with its counterpart; NaN where a row is constant."""
    one, other = (each - each.mean(axis=-1, keepdims=True) for each in (first, second))
    # A constant row's mean may be off by a rounding error, and its spread with it.
    constant = (np.ptp(first, axis=-1) == 0) | (np.ptp(second, axis=-1) == 0)
    spread = np.sqrt((one**2).sum(axis=-1) * (other**2).sum(axis=-1))
    return np.where(constant, nan, (one * other).sum(axis=-1) / np.where(constant, 1, spread))


def _draws(n: int, draws: int, seed: int) -> Iterator[Array]:
    """Numbers of examples, `[draw, n]`, some draws at a time."""
    rng = np.random.default_rng(seed)
    at_once = max(1, DRAWN_AT_ONCE // n)
    for start in range(0, draws, at_once):
        yield rng.integers(0, n, (min(at_once, draws - start), n))


def _counts(drawn: Array) -> Array:
    """How often each draw holds each example, `[draw, n]`."""
    draws, n = drawn.shape
    places = drawn + n * np.arange(draws)[:, None]
    return np.bincount(places.ravel(), minlength=draws * n).reshape(draws, n).astype(np.float64)


def _tails(confidence: float) -> tuple[float, float]:
    return (1 - confidence) / 2, (1 + confidence) / 2


def _numbers(name: str, given: Any, *, dims: int) -> Array:
    what = "one number per example" if dims == 1 else "numbers as [example, column]"
    if isinstance(given, Tensor):
        given = given.detach().cpu().double().numpy()
    try:
        numbers = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputTypeError(f"{name} is {type(given).__name__} that holds no numbers: expected {what}") from None
    if numbers.ndim != dims:
        raise InputError(f"{name} has shape {list(numbers.shape)}: expected {what}")
    wrong = int((~np.isfinite(numbers)).sum())
    if wrong:
        raise InputError(f"{name} has {wrong} numbers of {numbers.size} that are not finite: leave these examples out")
    return numbers


# Means of one number per example, with intervals, for each paradigm and for all examples together.


@dataclass(frozen=True)
class Interval:
    """How the intervals of means are made."""

    confidence: float = 0.95
    resamples: int = RESAMPLES
    seed: int = 0


def paradigms_of(examples: Sequence[TokenizedExample]) -> dict[str, list[int]]:
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


# What chance gives: random rows, and the expectations of the two measures of cue alignment.


def random_row(
    length: int, dest: int, n_layers: int, *, causal: bool, rolled_out: bool, normalized: bool, seed: Sequence[int]
) -> Float[Tensor, "layer src"]:
    """A destination's row of uniform random maps, drawn anew for each seed.

    The method `random` gives every sentence of one length the same map; as a sample of examples that is one draw, and
    its mean may be far from what chance gives.
    """
    drawn = torch.from_numpy(np.random.default_rng(seed).random((n_layers, length, length)))
    maps = drawn.tril() if causal else drawn
    if rolled_out:
        maps = roll_out(normalize_rows(maps), identity=False)
    elif normalized:
        maps = normalize_rows(maps)
    return maps[:, dest]


def expected_dot(n_cues: int, n_sources: int) -> float:
    """The mean of s·c over random rows s that sum to one: each source has the same share.

    >>> expected_dot(1, 8)
    0.125
    """
    return n_cues / n_sources


def expected_average_precision(n_cues: int, n_sources: int) -> float:
    """The mean average precision over random orders of the sources.

    A cue stands at each rank r with the same probability, and of the r - 1 sources before it (cues - 1) / (sources - 1)
    are cues in the mean.

    >>> expected_average_precision(1, 2), expected_average_precision(3, 3)
    (0.75, 1.0)
    """
    others = (n_cues - 1) / (n_sources - 1) if n_sources > 1 else 0.0
    return sum((1 + (rank - 1) * others) / rank for rank in range(1, n_sources + 1)) / n_sources
