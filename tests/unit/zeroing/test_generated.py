"""The map of a continuation that the model generated itself: its ids go in as they come out of `generate`."""

from typing import Any

import pytest
import torch
from support import references
from support.laws import assert_close, each_engine
from support.models import MOST_ROUTES, build, is_causal, logits_of, tokenizer
from torch import Tensor

import tl_vzero
from tl_vzero import Scores

PROMPT, NEW = [17, 5, 41], 4

each_decoder = pytest.mark.parametrize(
    ("route", "architecture"), [route for route in MOST_ROUTES if is_causal(route.values[1])]
)


def generated(model: Any) -> Tensor:
    ids: Tensor = model.generate(torch.tensor([PROMPT]), max_new_tokens=NEW, do_sample=False, verbose=False)
    assert ids.shape == (1, len(PROMPT) + NEW)
    return ids


@each_engine
@each_decoder
def test_it_is_the_map_of_prompt_and_continuation(route: str, architecture: str, engine: str) -> None:
    hf_model, model = build(route, architecture)
    ids = generated(model)
    scores = tl_vzero.value_zeroing(model, ids[0], engine=engine)
    assert isinstance(scores, Scores)
    assert_close(scores.normalized().values, references.row_normalized(references.value_zeroing(hf_model, ids)), 5e-6)
    (of_row,) = tl_vzero.value_zeroing(model, ids, engine=engine)
    assert torch.equal(of_row.values, scores.values)


@each_decoder
def test_its_labels_are_those_of_the_generated_tokens(route: str, architecture: str) -> None:
    model = build(route, architecture)[1]
    ids = generated(model)
    written = range(len(PROMPT), len(PROMPT) + NEW)
    scores = tl_vzero.value_zeroing(model, ids[0], destinations=written)
    assert isinstance(scores, Scores)
    assert scores.dest_positions == tuple(written)
    expected = [tokenizer().decode([token_id]) for token_id in ids[0].tolist()]
    assert [*scores.src_tokens] == expected and [*scores.dest_tokens] == expected[len(PROMPT) :]


@each_decoder
def test_generating_and_scoring_leave_each_other_alone(route: str, architecture: str) -> None:
    """No cache of keys and values that generation filled is read later, and scoring changes no generation."""
    model = build(route, architecture)[1]
    ids = torch.tensor([[*PROMPT, 9, 31]])
    scores, logits = tl_vzero.value_zeroing(model, ids[0]), logits_of(model, ids)
    first = generated(model)
    after = tl_vzero.value_zeroing(model, ids[0])
    assert isinstance(scores, Scores) and isinstance(after, Scores)
    assert torch.equal(after.values, scores.values)
    assert torch.equal(logits_of(model, ids), logits)
    assert torch.equal(generated(model), first)
