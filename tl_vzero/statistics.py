"""Means, correlations and their intervals by the percentile bootstrap; rank correlation of whole tables.

1. Examples are drawn again with replacement, as many as there are; pairs are kept together.
2. The statistic is computed on each draw; low and high are its percentiles over the draws.

Source: Efron & Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isnan, nan
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from torch import Tensor

from tl_vzero.choices import at_least_one
from tl_vzero.errors import InputError, InputTypeError, foreign_errors_as, shown

RESAMPLES = 2000  # enough for the percentiles of a 95 % interval (Efron & Tibshirani: 1000 or more)
FEWEST_PAIRS = 3  # two points always lie on a line
DRAWN_AT_ONCE = 2**20  # indices of examples, 8 MB: memory does not grow with the count of draws

Array = npt.NDArray[Any]
Numbers = Sequence[float | int] | Array | Tensor
Kind = Literal["pearson", "spearman"]


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


@dataclass(frozen=True)
class Interval:
    """How bootstrap intervals are made.

    Raises InputError or InputTypeError for a share or a count of draws that no interval can be made with.
    """

    confidence: float = 0.95
    resamples: int = RESAMPLES
    seed: int = 0

    def __post_init__(self) -> None:
        confidence: Any = self.confidence
        if isinstance(confidence, bool) or not isinstance(confidence, int | float):
            raise InputTypeError(f"confidence is {type(confidence).__name__}: expected a number between 0 and 1")
        if not 0 < confidence < 1:
            raise InputError(f"confidence is {confidence}: expected a number between 0 and 1, such as 0.95")
        at_least_one("resamples", self.resamples)

    @property
    def settings(self) -> dict[str, float]:
        """What an evaluation's settings say of its intervals."""
        return {"confidence": self.confidence, "resamples": self.resamples}


def bootstrap_mean(values: Numbers, *, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0) -> Estimate:
    """The mean of one number per example, with its bootstrap interval.

    Raises InputError for no numbers, or numbers that are not finite; InputTypeError for what is no row of numbers.

    >>> bootstrap_mean([0.0, 1.0, 1.0, 0.0], confidence=0.9)
    Estimate(mean=0.5, low=0.0, high=1.0, n=4, confidence=0.9)
    """
    numbers = _finite("values", values, dims=1)
    return _estimates(numbers[:, None], Interval(confidence, resamples, seed))[0]


def bootstrap_means(
    values: Array | Tensor, *, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[Estimate, ...]:
    """The mean of each column of `[example, column]`, with its bootstrap interval: the same draws for every column.

    Each answer is what `bootstrap_mean` gives for that column alone, faster. Raises as `bootstrap_mean` does.

    >>> import torch
    >>> [estimate.mean for estimate in bootstrap_means(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))]
    [2.0, 5.0]
    """
    return _estimates(_finite("values", values, dims=2), Interval(confidence, resamples, seed))


def bootstrap_pearson(
    first: Numbers, second: Numbers, *, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Correlation:
    """Pearson's correlation of two numbers per example, with its bootstrap interval.

    Draws in which one side is constant say nothing and are left out. Raises InputError for fewer than three pairs,
    unequal counts, or numbers that are not finite; InputTypeError for what is no row of numbers.

    >>> round(bootstrap_pearson([1, 2, 3, 4], [2, 4, 6, 9]).value, 3)
    0.994
    """
    return bootstrap_correlation("pearson", *_pairs(first, second), Interval(confidence, resamples, seed))


def bootstrap_spearman(
    first: Numbers, second: Numbers, *, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Correlation:
    """Spearman's rank correlation of two numbers per example, with its bootstrap interval; ties share their mean rank.

    Draws in which one side is constant say nothing and are left out. Raises as `bootstrap_pearson` does.

    >>> bootstrap_spearman([1, 2, 3, 4], [2, 4, 6, 9]).value
    1.0
    """
    return bootstrap_correlation("spearman", *_pairs(first, second), Interval(confidence, resamples, seed))


def bootstrap_correlation(kind: Kind, first: Array, second: Array, interval: Interval) -> Correlation:
    """The correlation of two rows of as many numbers; NaN for fewer than three pairs, and where one holds NaN."""
    correlation = _pearson if kind == "pearson" else rank_correlation
    n = len(first)
    value = float(correlation(first, second)) if n >= FEWEST_PAIRS else nan
    low = high = nan
    if not isnan(value):
        again = np.concatenate([correlation(first[drawn], second[drawn]) for drawn in _draws(n, interval)])
        defined = again[~np.isnan(again)]
        low, high = np.quantile(defined, _tails(interval)).tolist() if len(defined) else (nan, nan)
    return Correlation(value, low, high, n, kind, interval.confidence)


def rank_correlation(first: Array, second: Array, *, where: Array | None = None) -> Array:
    """Spearman correlation of each row of `[..., n]` with its counterpart; NaN where a row is constant or has NaN.

    Only the numbers that `where` marks are ranked, or all of them.

    >>> rank_correlation(np.array([[1, 2, 3], [1, 1, 1]]), np.array([[3, 2, 1], [1, 2, 3]]))
    array([-1., nan])
    """
    from scipy.stats import rankdata

    def centred(rows: Array) -> Array:
        if where is None:
            ranks = rankdata(rows, axis=-1)
            return np.asarray(ranks - ranks.mean(axis=-1, keepdims=True))
        # What is left out is ranked lowest on both sides, and so moves all other ranks alike.
        ranks = np.where(where, rankdata(np.where(where, rows, -np.inf), axis=-1), 0)
        count = np.maximum(where.sum(axis=-1, keepdims=True), 1)
        return np.where(where, ranks - ranks.sum(axis=-1, keepdims=True) / count, 0)

    return _correlation(centred(first), centred(second))


def _pearson(first: Array, second: Array) -> Array:
    """Pearson correlation of each row of `[..., n]` with its counterpart; NaN where a row is constant."""
    # A constant row's mean may be off by a rounding error, and its spread with it.
    constant = (np.ptp(first, axis=-1) == 0) | (np.ptp(second, axis=-1) == 0)
    one, other = (rows - rows.mean(axis=-1, keepdims=True) for rows in (first, second))
    return _correlation(one, other, constant)


def _correlation(one: Array, other: Array, constant: Any = False) -> Array:
    """The correlation of centred rows, NaN where `constant`."""
    spread = np.sqrt((one**2).sum(axis=-1) * (other**2).sum(axis=-1))
    undefined = constant | (spread == 0)
    with np.errstate(invalid="ignore"):
        correlation: Array = (one * other).sum(axis=-1) / np.where(undefined, 1, spread)
    return np.where(undefined, nan, correlation)


def estimates(values: Array, interval: Interval) -> list[Estimate | None]:
    """The mean of each column of `[example, column]` over the examples where it is defined; None where none is.

    A number that is NaN is undefined for its example.

    >>> [mean and mean.mean for mean in estimates(np.array([[1.0, nan], [3.0, nan]]), Interval())]
    [2.0, None]
    """
    defined = ~np.isnan(values)
    means: list[Estimate | None] = [None] * values.shape[1]
    # Columns that are defined for the same examples share their draws.
    alike: dict[bytes, list[int]] = {}
    for column in range(values.shape[1]):
        alike.setdefault(defined[:, column].tobytes(), []).append(column)
    for columns in alike.values():
        rows = defined[:, columns[0]]
        if rows.any():
            shared = _estimates(_finite("values", values[rows][:, columns], dims=2), interval)
            for column, mean in zip(columns, shared, strict=True):
                means[column] = mean
    return means


def columns_of(estimate: Estimate | None) -> dict[str, float | int | None]:
    """An estimate as columns of a table; None where there is none."""
    if estimate is None:
        return {"mean": None, "low": None, "high": None, "n": 0}
    low, high = (None if isnan(bound) else bound for bound in (estimate.low, estimate.high))
    return {"mean": estimate.mean, "low": low, "high": high, "n": estimate.n}


def _estimates(values: Array, interval: Interval) -> tuple[Estimate, ...]:
    n, columns = values.shape
    if n == 0:
        raise InputError("values are empty: expected at least one example")
    bounds = np.full((2, columns), nan)
    if n > 1:
        # How often each example is drawn serves all columns by one product.
        again = [_counts(drawn) @ values / n for drawn in _draws(n, interval)]
        bounds = np.quantile(np.concatenate(again), _tails(interval), axis=0)
    return tuple(
        Estimate(float(mean), float(low), float(high), n, interval.confidence)
        for mean, low, high in zip(values.mean(axis=0), *bounds, strict=True)
    )


def _draws(n: int, interval: Interval) -> Iterator[Array]:
    """Indices of examples, `[draw, n]`, some draws at a time."""
    with foreign_errors_as(InputError, f"no samples can be drawn with the seed {shown(interval.seed)}"):
        rng = np.random.default_rng(interval.seed)
    at_once = max(1, DRAWN_AT_ONCE // n)
    for start in range(0, interval.resamples, at_once):
        yield rng.integers(0, n, (min(at_once, interval.resamples - start), n))


def _counts(drawn: Array) -> Array:
    """How often each draw holds each example, `[draw, n]`."""
    draws, n = drawn.shape
    places = drawn + n * np.arange(draws)[:, None]
    return np.bincount(places.ravel(), minlength=draws * n).reshape(draws, n).astype(np.float64)


def _tails(interval: Interval) -> tuple[float, float]:
    return (1 - interval.confidence) / 2, (1 + interval.confidence) / 2


def _pairs(first: Any, second: Any) -> tuple[Array, Array]:
    one, other = _finite("first", first, dims=1), _finite("second", second, dims=1)
    if len(one) != len(other):
        raise InputError(f"first has {len(one)} numbers and second {len(other)}: expected pairs")
    if len(one) < FEWEST_PAIRS:
        raise InputError(f"given {len(one)} pairs: expected at least {FEWEST_PAIRS}, or every correlation is perfect")
    return one, other


def _finite(name: str, values: Any, *, dims: int) -> Array:
    what = "one number per example" if dims == 1 else "numbers as [example, column]"
    if isinstance(values, Tensor):
        values = values.detach().cpu().double().numpy()
    try:
        numbers = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputTypeError(f"{name} is {type(values).__name__} that holds no numbers: expected {what}") from None
    if numbers.ndim != dims:
        raise InputError(f"{name} has shape {list(numbers.shape)}: expected {what}")
    wrong = int((~np.isfinite(numbers)).sum())
    if wrong:
        raise InputError(f"{name} has {wrong} numbers of {numbers.size} that are not finite: leave these examples out")
    return numbers


# What the rows of a map are like, layer by layer.


def shares_by_layer(
    maps: Tensor, dest_positions: Sequence[int], src_positions: Sequence[int], special: Sequence[bool]
) -> dict[str, Array]:
    """Entropy in bits, weight on the token itself and on special tokens: of each layer, its rows' mean.

    A row that is empty or holds negative scores is no distribution, and is left out.
    """
    values = maps.detach().cpu().double().numpy()
    total = values.sum(axis=-1, keepdims=True)
    is_distribution = (values >= 0).all(axis=-1, keepdims=True) & (total > 0)
    shares = np.where(is_distribution, values / np.where(is_distribution, total, 1), nan)
    logarithms = np.log2(shares, where=shares > 0, out=np.zeros_like(shares))
    entropy = np.where(np.isnan(shares), nan, -shares * logarithms)
    both = [position for position in dest_positions if position in src_positions]
    rows = [dest_positions.index(position) for position in both]
    columns = [src_positions.index(position) for position in both]
    is_special = [special[position] for position in src_positions]
    return {
        "entropy": defined_mean(entropy.sum(axis=-1)),
        "self_weight": defined_mean(shares[:, rows, columns]),
        "special_weight": defined_mean(shares[:, :, is_special].sum(axis=-1)),
    }


def defined_mean(values: Array) -> Array:
    """Mean over the last axis of what is not NaN; NaN where nothing is left."""
    defined = ~np.isnan(values)
    count = defined.sum(axis=-1)
    total = np.where(defined, values, 0).sum(axis=-1)
    return np.where(count > 0, total / np.maximum(count, 1), nan)
