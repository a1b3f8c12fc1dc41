"""Checks for images and sounds alike."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from support.engines import ENGINES
from support.references import row_normalized
from support.signal_rows import SIGNALS, reference
from support.state import assert_same, every_module, lens_hooks, torch_hooks
from torch import Tensor

import tl_vzero
from tl_vzero import Scores

NORMALISED = 5e-6
RAW, RAW_FROM = 1e-3, 1e-7


def assert_right(scores: Scores, expected: Tensor) -> None:
    """Normalised and raw maps within what the tests of every architecture allow."""
    measured = scores.values.double()
    assert measured.shape == expected.shape
    felt = expected >= RAW_FROM
    assert ((measured - expected).abs() / expected)[felt].max() <= RAW
    assert (scores.normalized().values.double() - row_normalized(expected)).abs().max() <= NORMALISED


def assert_of_plain_hooks(name: str, model: Any) -> None:
    """Both engines give a row's maps, and the closed form is taken by itself."""
    for engine in ENGINES:
        scores = tl_vzero.value_zeroing(model, SIGNALS[name].signal, engine=engine)
        assert isinstance(scores, Scores)
        assert_right(scores, reference(name))
        assert scores.metadata["engine"] == ("hooks" if engine == "hooks" else "closed_form")


@contextmanager
def left_as_found(model: Any, signal: Tensor) -> Iterator[None]:
    """Within, anything may happen; after it the model computes and is hooked as before."""

    def state() -> dict[str, Any]:
        with torch.no_grad():
            computed = model(signal.unsqueeze(0), return_type="logits")
        modes = {name: module.training for name, module in every_module(model).items()}
        return {"computed": computed, "hooks": (torch_hooks(model), lens_hooks(model)), "modes": modes}

    before = state()
    yield
    assert_same(before, state(), "state")
