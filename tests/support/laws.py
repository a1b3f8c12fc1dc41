"""Models, sentences and closeness that the laws of Value Zeroing are tested with."""

from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import Phase, settings
from hypothesis import strategies as st
from support.engines import ENGINES
from support.models import (
    MOST_ROUTES,
    ROUTES,
    VOCABULARY,
    build,
)
from torch import Tensor

import tl_vzero
from tl_vzero import Scores

IDS = st.lists(st.integers(1, VOCABULARY - 1), min_size=1, max_size=9)  # 0 is padding
SENTENCES = st.lists(IDS, min_size=1, max_size=4)
N_LAYERS = 3
# Hugging Face's RMSNorm computes in float32 inside a float64 model.
TOLERANCE = {"bert": 1e-9, "gpt2": 1e-9, "neox": 1e-9, "llama": 2e-6}


def few_examples(count: int = 4) -> Any:
    """A few small examples, the same in every run; a failing one is small already, so nothing is shrunk."""
    return settings(
        derandomize=True, deadline=None, max_examples=count, database=None, phases=[Phase.explicit, Phase.generate]
    )


@cache
def wide_model(route: str, architecture: str) -> tuple[Any, Any]:
    """(Hugging Face model, TransformerLens model) in float64; left as they are by every test."""
    hf_model = build_hf(architecture).double()
    return hf_model, ROUTES[route, architecture](hf_model)


def build_hf(architecture: str, seed: int = 0) -> Any:
    from support.models import HF_BUILDERS

    return HF_BUILDERS[architecture](seed)


@cache
def narrow_model(route: str, architecture: str) -> tuple[Any, Any]:
    return build(route, architecture)


def scores_of(model: Any, ids: list[int], **options: Any) -> Scores:
    result = tl_vzero.value_zeroing(model, torch.tensor(ids), **options)
    assert isinstance(result, Scores)
    return result


def assert_close(measured: Tensor, expected: Tensor, tolerance: float) -> None:
    assert measured.shape == expected.shape
    difference = (measured.double() - expected.double()).abs().max().item()
    assert difference <= tolerance, f"off by {difference:.2e}, allowed {tolerance:.0e}"


def assert_same_in_float32(measured: Scores, expected: Scores) -> None:
    """The same numbers up to the rounding of float32, which differs with the shape of a batch."""
    difference = (measured.values - expected.values).abs().double()
    assert (difference - 1e-5 * expected.values.abs()).max() <= 1e-6
    assert_close(measured.normalized().values, expected.normalized().values, 5e-6)


def padded(sentences: list[list[int]], side: str, pad: int = 0) -> tuple[Tensor, Tensor]:
    longest = max(map(len, sentences))
    gaps = [longest - len(sentence) for sentence in sentences]
    if side == "right":
        rows = [sentence + [pad] * gap for sentence, gap in zip(sentences, gaps, strict=True)]
        mask = [[1] * len(sentence) + [0] * gap for sentence, gap in zip(sentences, gaps, strict=True)]
    else:
        rows = [[pad] * gap + sentence for sentence, gap in zip(sentences, gaps, strict=True)]
        mask = [[0] * gap + [1] * len(sentence) for sentence, gap in zip(sentences, gaps, strict=True)]
    return torch.tensor(rows), torch.tensor(mask)


each_route = pytest.mark.parametrize(("route", "architecture"), MOST_ROUTES)
each_engine = pytest.mark.parametrize("engine", ENGINES)
