"""The paper's evaluations of scores, and the intervals that go with them."""

from tl_vzero.evaluate.probing import ProbingResult, online_code_length, probe_layers
from tl_vzero.statistics import (
    Correlation,
    Estimate,
    bootstrap_mean,
    bootstrap_means,
    bootstrap_pearson,
    bootstrap_spearman,
)

__all__ = [
    "Correlation",
    "Estimate",
    "ProbingResult",
    "bootstrap_mean",
    "bootstrap_means",
    "bootstrap_pearson",
    "bootstrap_spearman",
    "online_code_length",
    "probe_layers",
]
