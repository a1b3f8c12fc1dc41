"""Attacks on the law of a tolerance: of each row, with the confidence, every share is within its error of the exact one.

First the statistics by themselves, by simulation; then whole calls on models that make it hard.
"""

import math

import numpy as np
import pytest
import torch
from scipy.stats import gamma
from torch import Tensor

from tl_vzero.zeroing import sketch
from tl_vzero.zeroing.request import Tolerance

RISKS = (0.1, 0.01)
ROUNDING = {torch.float64: 1e-9, torch.float32: 2e-5}  # of a share, between two exact calls

# --- the statistics by themselves -----------------------------------------------------------------------

N_GROUPS, IN_GROUP, FEATURES = 10, 4, 5


def configuration(name: str) -> np.ndarray:
    """Vectors `[group, entry, feature]` whose directions and sizes are as hard as the name says."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(N_GROUPS, IN_GROUP, FEATURES))
    aligned = np.broadcast_to(np.eye(FEATURES)[0], vectors.shape)
    return {
        "any": vectors,
        "aligned": aligned,
        "orthogonal": np.broadcast_to(np.eye(FEATURES)[:IN_GROUP], vectors.shape),
        "low rank": vectors * (np.arange(FEATURES) < 2),
        "one dominates": aligned * np.array([1e3, 1.0, 1e-2, 0.0])[:, None],
        "heavy tails": aligned * np.exp(2.5 * rng.normal(size=(N_GROUPS, 1, 1))),
        "one group": aligned * (np.arange(N_GROUPS) == 3)[:, None, None],
        "tiny": 1e-9 * vectors,
        "huge": 1e7 * vectors,
    }[name]


CONFIGURATIONS = (
    "any",
    "aligned",
    "orthogonal",
    "low rank",
    "one dominates",
    "heavy tails",
    "one group",
    "tiny",
    "huge",
)


def no_more_often_than(risk: float, violated: np.ndarray | Tensor) -> bool:
    """Whether a share of rows is at most the risk, up to four standard deviations of what chance does to it."""
    violated = np.asarray(violated)
    return bool(violated.mean() <= risk + 4 * math.sqrt(risk * (1 - risk) / violated.size))


each_configuration = pytest.mark.parametrize("name", CONFIGURATIONS)


def drawn_sizes(vectors: np.ndarray, directions: int, draws: int, seed: int) -> np.ndarray:
    """What random directions of each group show of its vectors' squared sizes, `[draw, group, entry]`."""
    rng = np.random.default_rng(seed)
    shown = np.stack([np.matmul(vectors, rng.normal(size=(N_GROUPS, FEATURES, directions))) for _ in range(draws)])
    return np.square(shown).mean(-1)


@each_configuration
@pytest.mark.parametrize("directions", [8, 24])
def test_sums_and_entries_are_outside_their_ranges_as_seldom_as_the_risk_says(name: str, directions: int) -> None:
    vectors, draws = configuration(name), 1500
    truth = np.square(vectors).sum(-1)
    estimates = drawn_sizes(vectors, directions, draws, seed=directions)
    of_groups = torch.from_numpy(estimates.sum(-1))
    limits = torch.from_numpy(truth.sum(-1)).expand_as(of_groups)  # no others are as tight
    entries = torch.full((draws, 1), float(truth.size), dtype=torch.float64)
    for risk in RISKS:
        low = sketch._sum_at_least(of_groups, directions, risk)
        high = sketch._sum_at_most(of_groups, limits, directions, risk)
        assert no_more_often_than(risk, low > truth.sum() * (1 + 1e-9))
        assert no_more_often_than(risk, high < truth.sum() * (1 - 1e-9))
        least, most = (factor.numpy()[:, :, None] for factor in sketch._entry_factors(directions, entries, risk))
        outside = (estimates < least * truth * (1 - 1e-9)) | (estimates > most * truth * (1 + 1e-9))
        assert no_more_often_than(risk, outside.any((1, 2)))


@pytest.mark.parametrize("directions", sketch.CHOICES)
def test_what_bounds_sums_from_below_is_one_on_average_at_most(directions: int) -> None:
    """By integration; C is convex, so that no sum of several numbers with one mean does worse."""
    bend = directions / 2 * (1 - math.sqrt(2 / directions))

    def log_c(y: np.ndarray) -> np.ndarray:
        before, slope = np.minimum(y, bend), 1 - 2 * bend / directions
        return before - before**2 / directions + np.log1p(slope * np.maximum(y - bend, 0))

    y = np.linspace(0, 4 * bend, 4001)
    assert (np.diff(np.exp(log_c(y) - log_c(y[-1:])), 2) >= -1e-12).all()
    r = np.linspace(1e-6, 8, 100_001)
    density = gamma.pdf(r, directions / 2, scale=2 / directions)
    for mean in np.geomspace(1e-3, 1e4, 60):
        assert np.trapezoid(density * np.exp(log_c(mean * r) - mean), r) <= 1 + 1e-9


def simulated(sizes: np.ndarray, rows: int, seed: int, directions: int) -> tuple[Tensor, Tensor, Tensor]:
    """The truth, what directions show of it, and groups, all `[row, src]`: in a group vectors are nearly parallel."""
    rng, width = np.random.default_rng(seed), len(sizes)
    group = np.arange(width) // 4
    shared = rng.normal(size=(rows, group.max() + 1, directions))[:, group]
    own = rng.normal(size=(rows, width, directions))
    estimates = sizes * np.square(np.sqrt(0.9) * shared + np.sqrt(0.1) * own).mean(-1)
    truth = np.broadcast_to(sizes, estimates.shape).copy()
    return torch.from_numpy(truth), torch.from_numpy(estimates), torch.from_numpy(group).expand(rows, width)


SIZES = {
    "even": np.full(40, 1e-3),
    "steep": np.geomspace(1e-8, 1.0, 40),
    "large": np.full(40, 5.0),
    "some beyond all bounds": np.concatenate([[1e4, 3e3], np.full(38, 0.3)]),
    "many beyond all bounds": np.concatenate([np.full(20, 1e5), np.full(20, 1e-2)]),
    "one beyond all bounds": np.concatenate([[1e4], np.full(39, 0.01)]),
    "one alone": np.concatenate([[1.0], np.zeros(39)]),
    "tiny": np.full(40, 1e-20),
}


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize(("directions", "share"), [(24, 0.9), (24, 0.05), (24, 0.01), (104, 0.05)])
def test_simulated_rows_keep_to_the_law_whatever_is_made_exact(name: str, directions: int, share: float) -> None:
    truth, estimates, group = simulated(SIZES[name], 1000, 3, directions)
    values = 1 - 1 / (1 + truth).sqrt()
    values = torch.where(truth < 1e-6, truth / 2, values)
    shares = values / values.sum(-1, keepdim=True)
    for confidence in (0.9, 0.99):
        everything = torch.ones_like(truth, dtype=torch.bool)
        # What is computed for another reason, whatever directions show of it.
        cancelled = torch.rand(truth.shape, generator=torch.Generator().manual_seed(0)) < 0.2
        guesses = sketch.Guesses(
            directions,
            Tolerance(share, confidence, 0),
            everything,
            cancelled,
            torch.where(cancelled, values, 0.0),
            *(estimates.clone() for _ in range(3)),
            group,
        )
        guessed, error = guesses.bounded()
        while (far := guesses.too_far(error)).any():
            guesses.values[far] = values[far]
            guesses.exact |= far
            guessed, error = guesses.bounded()
        assert error.max() <= share
        off = (guessed / guessed.sum(-1, keepdim=True) - shares).abs() > error + 1e-12
        assert no_more_often_than(1 - confidence, off.any(-1))
