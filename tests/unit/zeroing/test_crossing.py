"""Encoder-decoders in closed form: the same numbers as by hooks, and what cross-attention makes of a lost value."""

import copy
from functools import cache
from typing import Any

import pytest
import torch
from support.closed import assert_same
from support.models import loaded
from support.paired import (
    ON_THIS_LINE,
    PAIRED,
    READ,
    STACKS,
    T5_PARTS,
    WRITTEN,
    Paired,
    model_of,
    reference,
    stack_options,
    t5,
)
from support.references import row_normalized
from torch import Tensor

import tl_vzero
from tl_vzero.zeroing.crossing import _lost_by

IDS = torch.tensor(READ)
KINDS = [name for name in ON_THIS_LINE if name in ("T5", "T5 1.1, gated", "BART", "Pegasus")]
each_stack = pytest.mark.parametrize("stack", STACKS)


@cache
def in_float64(name: str) -> Any:
    return loaded(copy.deepcopy(PAIRED[name].tiny()).double())


def maps(model: Any, engine: str, stack: str, **options: Any) -> Tensor:
    scores = tl_vzero.value_zeroing(model, IDS, engine=engine, **stack_options(stack), **options)
    assert scores.metadata["engine"] == engine
    return scores.values.double()


@each_stack
@pytest.mark.parametrize("name", ON_THIS_LINE)
def test_it_is_what_is_used_by_itself(name: str, stack: str) -> None:
    scores = tl_vzero.value_zeroing(model_of(name), IDS, **stack_options(stack))
    assert scores.metadata["engine"] == "closed_form", scores.metadata["engine_reason"]
    assert scores.metadata["engine_reason"] is None and "modules" not in scores.metadata["routes"]
    expected = reference(name, stack)
    assert (scores.normalized().values.double() - row_normalized(expected)).abs().max() <= 5e-6


@each_stack
@pytest.mark.parametrize("name", KINDS)
def test_parts_of_a_map_equal_the_hook_engines(name: str, stack: str) -> None:
    model, tolerance = in_float64(name), 1e-6 if name.startswith("T5") else 1e-11
    vectors = torch.randn(model_layers(name, stack), 2, 8, generator=torch.Generator().manual_seed(0)).double()
    for options in (
        {},
        {"per_head": True},
        {"heads": [1], "spans": [[0, 3], [1], [2, 4]], "destinations": [1, -1]},
        {"baseline": "mean", "distance": "euclidean"},
        {"baseline": vectors, "sources": [0, -1], "final_norm": name != "BART", "layers": [-1]},
    ):
        closed, hooked = (maps(model, engine, stack, **options) for engine in ("closed_form", "hooks"))
        assert_same(closed, hooked, tolerance)


def model_layers(name: str, stack: str) -> int:
    config = PAIRED[name].tiny().config
    by_stack = (config.num_layers, config.num_decoder_layers) if name.startswith("T5") else (3, 3)
    return by_stack[stack != "encoder"]


@each_stack
def test_sentences_that_share_a_run_are_those_alone(stack: str) -> None:
    """Of one shape or several, each with destinations of its own; few pairs fit into memory at a time."""
    model = in_float64("Pegasus")
    read = [READ, [5, 9, 31, 8], READ[::-1]]
    written = [torch.tensor(ids) for ids in (WRITTEN, [3, 12], [3, *WRITTEN[:0:-1]])]
    options: dict[str, Any] = {} if stack == "encoder" else {"decoder_inputs": written}
    for more in ({}, {"destinations": [-1]}, {"memory_mb": 0.02}):
        together = tl_vzero.value_zeroing(model, read, stack=stack, engine="closed_form", **options, **more)
        for n, scores in enumerate(together):
            decoder_inputs = {name: ids[n] for name, ids in options.items()}
            alone = tl_vzero.value_zeroing(
                model, torch.tensor(read[n]), stack=stack, engine="hooks", **decoder_inputs, **more
            )
            assert_same(scores.values.double(), alone.values.double(), 1e-10)


@each_stack
@pytest.mark.parametrize("name", [name for name in KINDS if name in ("T5", "Pegasus")])
def test_rows_that_lose_nearly_all(name: str, stack: str) -> None:
    """Where the stream holds little but what attention writes, its norms read nearly nothing once that is lost."""
    hf_model = copy.deepcopy(PAIRED[name].tiny()).double()
    with torch.no_grad():
        for path, weight in hf_model.named_parameters():
            if path in ("shared.weight", "model.shared.weight"):
                weight *= 1e-5
            if path.endswith(("out_proj.bias", "embed_positions.weight")):
                weight *= 1e-5
    model = loaded(hf_model)
    assert_same(maps(model, "closed_form", stack), maps(model, "hooks", stack), 1e-5)


def test_an_attention_that_its_weights_do_not_explain_goes_by_hooks() -> None:
    hf_model = copy.deepcopy(PAIRED["BART"].tiny())
    for block in hf_model.model.decoder.layers:
        block.encoder_attn.scaling *= 0.7
    model = loaded(hf_model)
    scores = tl_vzero.value_zeroing(model, IDS, **stack_options("decoder"))
    assert scores.metadata["engine"] == "hooks" and "block 0" in scores.metadata["engine_reason"]
    assert tl_vzero.value_zeroing(model, IDS, **stack_options("cross")).metadata["engine"] == "closed_form"


@each_stack
@pytest.mark.skipif("T5" not in ON_THIS_LINE, reason="this TransformerLens's bridge does not run a T5")
def test_an_mlp_that_no_weights_explain_is_its_modules(stack: str) -> None:
    """A module does not read the encoder at one pair, so that a decoder's own values go by hooks."""
    row = Paired("mish", lambda: t5(feed_forward_proj="mish"), *T5_PARTS)
    scores = tl_vzero.value_zeroing(loaded(row.tiny()), IDS, **stack_options(stack))
    assert scores.metadata["engine"] == ("hooks" if stack == "decoder" else "closed_form")
    assert set(scores.metadata["routes"]) == (set() if stack == "decoder" else {"modules"})
    expected = row_normalized(row.reference(stack))
    assert (scores.normalized().values.double() - expected).abs().max() <= 5e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1e-6, 1e-2, 1.0, 30.0, 1e3])
def test_what_a_pattern_loses_is_the_difference_of_two_softmaxes(size: float, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    scores, moved = (torch.randn(40, 9, generator=generator, dtype=torch.float64) for _ in range(2))
    scores[:, 3] = -torch.inf
    pattern, moved = scores.softmax(-1).to(dtype), (size * moved + 5.0 * size).to(dtype)
    clean = pattern.double() / pattern.double().sum(-1, keepdim=True)  # float32 rows sum to 1 up to its rounding
    expected = clean - (clean.log() + moved.double()).softmax(-1)
    lost = _lost_by(pattern, moved).double()
    assert not lost[:, 3].any()
    # The reference, a difference of numbers near 1, has no more than 1e-15.
    assert (lost - expected).abs().max() <= 100 * torch.finfo(dtype).eps * size + 1e-15
