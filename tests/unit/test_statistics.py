"""Intervals: against scipy's bootstrap and by hand; what has no interval; bad input."""

from math import isnan
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from support.state import type_checks_off

from tl_vzero import statistics
from tl_vzero.errors import InputError, InputTypeError
from tl_vzero.statistics import bootstrap_mean, bootstrap_means, bootstrap_pearson, bootstrap_spearman, rank_correlation

RNG = np.random.default_rng(5)
FIRST = RNG.normal(size=40)
SECOND = FIRST + RNG.normal(size=40)
CORRELATIONS = [(bootstrap_pearson, stats.pearsonr), (bootstrap_spearman, stats.spearmanr)]


def scipys_interval(sample: tuple[Any, ...], statistic: Any, *, resamples: int, confidence: float, seed: int) -> Any:
    return stats.bootstrap(
        sample,
        statistic,
        paired=len(sample) > 1,
        vectorized=False,
        n_resamples=resamples,
        confidence_level=confidence,
        method="percentile",
        random_state=np.random.default_rng(seed),
    ).confidence_interval


def test_the_interval_of_a_mean_is_scipys() -> None:
    found = bootstrap_mean(FIRST, confidence=0.9, resamples=700, seed=3)
    expected = scipys_interval((FIRST,), np.mean, resamples=700, confidence=0.9, seed=3)
    assert (found.mean, found.n, found.confidence) == (pytest.approx(FIRST.mean()), 40, 0.9)
    assert (found.low, found.high) == (pytest.approx(expected.low), pytest.approx(expected.high))


@pytest.mark.parametrize(("ours", "theirs"), CORRELATIONS)
def test_the_interval_of_a_correlation_is_scipys(ours: Any, theirs: Any) -> None:
    found = ours(FIRST, SECOND, confidence=0.8, resamples=300, seed=9)
    expected = scipys_interval(
        (FIRST, SECOND), lambda x, y: theirs(x, y).statistic, resamples=300, confidence=0.8, seed=9
    )
    assert found.value == pytest.approx(theirs(FIRST, SECOND).statistic)
    assert (found.low, found.high) == (pytest.approx(expected.low), pytest.approx(expected.high))
    assert (found.n, found.kind) == (40, ours.__name__.removeprefix("bootstrap_"))


def test_two_examples_by_hand() -> None:
    """Draws of (0, 1) have the means 0, 1/2, 1/2, 1 equally often: the outer two are each a quarter of them."""
    wide = bootstrap_mean([0.0, 1.0], confidence=0.9)
    narrow = bootstrap_mean([0.0, 1.0], confidence=0.4)
    assert (wide.mean, wide.low, wide.high) == (0.5, 0.0, 1.0)
    assert (narrow.mean, narrow.low, narrow.high) == (0.5, 0.5, 0.5)


def test_the_interval_is_about_two_standard_errors_wide() -> None:
    values = np.random.default_rng(0).normal(size=4000)
    found = bootstrap_mean(values)
    error = values.std() / np.sqrt(4000)
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.1)


def test_columns_are_estimated_as_if_alone() -> None:
    table = np.stack([FIRST, SECOND, np.full(40, 0.25)], axis=1)
    together = bootstrap_means(torch.from_numpy(table), resamples=300, seed=2)
    alone = [bootstrap_mean(column, resamples=300, seed=2) for column in table.T]
    for one, other in zip(together, alone, strict=True):
        assert (one.mean, one.low, one.high) == pytest.approx((other.mean, other.low, other.high))
        assert one.n == other.n == 40
    assert (together[2].low, together[2].high) == (0.25, 0.25)


@pytest.mark.parametrize("at_once", [1, 90, 4000])
def test_draws_in_parts_are_the_same_draws(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = bootstrap_mean(FIRST, resamples=200), bootstrap_spearman(FIRST, SECOND, resamples=200)
    monkeypatch.setattr(statistics, "DRAWN_AT_ONCE", at_once)
    parts = bootstrap_mean(FIRST, resamples=200), bootstrap_spearman(FIRST, SECOND, resamples=200)
    for one, other in zip(whole, parts, strict=True):
        assert (one.low, one.high) == (pytest.approx(other.low), pytest.approx(other.high))


def test_a_seed_gives_one_answer_and_another_seed_another() -> None:
    assert bootstrap_mean(FIRST, seed=1) == bootstrap_mean(torch.from_numpy(FIRST), seed=1)
    assert bootstrap_mean(FIRST, seed=1) != bootstrap_mean(FIRST, seed=2)
    assert bootstrap_pearson(FIRST, SECOND, seed=1) == bootstrap_pearson(FIRST, SECOND, seed=1)


def test_one_example_has_no_interval() -> None:
    found = bootstrap_mean([3.0])
    assert (found.mean, found.n) == (3.0, 1)
    assert isnan(found.low) and isnan(found.high)


@pytest.mark.parametrize("correlate", [bootstrap_pearson, bootstrap_spearman])
def test_a_constant_side_has_no_correlation(correlate: Any) -> None:
    found = correlate([0.1] * 7, range(7))
    assert isnan(found.value) and isnan(found.low) and isnan(found.high)


@pytest.mark.parametrize("correlate", [bootstrap_pearson, bootstrap_spearman])
def test_constant_draws_are_left_out(correlate: Any) -> None:
    """Of three pairs, one draw in nine is constant."""
    found = correlate([1.0, 2.0, 3.0], [1.0, 3.0, 2.0])
    assert -1 <= found.low <= found.value <= found.high <= 1


def test_ties_share_their_rank() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 4, (5, 20)), rng.integers(0, 4, (5, 20))
    expected = [stats.spearmanr(one, other).statistic for one, other in zip(first, second, strict=True)]
    assert rank_correlation(first, second) == pytest.approx(expected)


def test_only_marked_numbers_are_ranked() -> None:
    rng = np.random.default_rng(1)
    first, second, marked = rng.normal(size=(4, 12)), rng.normal(size=(4, 12)), rng.random((4, 12)) < 0.6
    expected = [
        stats.spearmanr(one[w], other[w]).statistic for one, other, w in zip(first, second, marked, strict=True)
    ]
    assert rank_correlation(first, second, where=marked) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: bootstrap_mean([]), InputError, "at least one example"),
        (lambda: bootstrap_mean([1.0, float("nan"), float("inf")]), InputError, "2 numbers of 3 that are not finite"),
        (lambda: bootstrap_mean(["a", "b"]), InputTypeError, "holds no numbers"),
        (lambda: bootstrap_mean([[1.0], [2.0]]), InputError, r"shape \[2, 1\]: expected one number per example"),
        (lambda: bootstrap_means(torch.zeros(3)), InputError, r"shape \[3\]: expected numbers as \[example, column\]"),
        (lambda: bootstrap_mean([1.0, 2.0], confidence=95), InputError, "such as 0.95"),
        (lambda: bootstrap_mean([1.0, 2.0], confidence="high"), InputTypeError, "between 0 and 1"),
        (lambda: bootstrap_mean([1.0, 2.0], resamples=0), InputError, "resamples is 0"),
        (lambda: bootstrap_pearson([1, 2, 3], [1, 2]), InputError, "first has 3 numbers and second 2"),
        (lambda: bootstrap_spearman([1, 2], [1, 2]), InputError, "given 2 pairs: expected at least 3"),
    ],
)
def test_bad_input(call: Any, error: type[Exception], says: str) -> None:
    with type_checks_off(), pytest.raises(error, match=says):
        call()
