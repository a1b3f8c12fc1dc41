"""Effects on the prediction of a decoder that reads an encoder, against plain hooks in float64."""

from typing import Any

import pytest
import torch
from support.paired import (
    BAD,
    GOOD,
    IN_DOUBLE,
    PAIRED,
    READ,
    STACKS,
    TARGET,
    WRITTEN,
    Change,
    difference,
    double_model,
    layers_of,
    sources_of,
    zeroed,
)
from torch import Tensor

import tl_vzero
from tl_vzero.errors import InputError

IDS, OUT = torch.tensor(READ), torch.tensor(WRITTEN)
CLOSE = {"rtol": 1e-6, "atol": 1e-6}  # Hugging Face computes T5's norms in float32, also in a float64 model
each_name = pytest.mark.parametrize("name", IN_DOUBLE)
each_stack = pytest.mark.parametrize("stack", STACKS)


def options_of(stack: str) -> dict[str, Any]:
    return {"stack": stack, "decoder_inputs": OUT, "target": TARGET, "target_ids": (GOOD, BAD)}


@each_stack
@each_name
def test_zero_ablation_is_a_run_with_each_value_zeroed(name: str, stack: str) -> None:
    effect = tl_vzero.zero_ablation(double_model(name), IDS, **options_of(stack))
    torch.testing.assert_close(effect.values, zeroed(name, stack, lambda source: (0, source)), **CLOSE)
    assert effect.clean == pytest.approx(difference(PAIRED[name].logits({})).item(), rel=1e-6)
    assert effect.src_positions == tuple(range(len(sources_of(stack))))
    assert (effect.target, effect.metadata["stack"], effect.metadata["predicts"]) == (TARGET, stack, "next token")


@each_stack
@each_name
def test_per_head_and_with_the_mean_in_place(name: str, stack: str) -> None:
    effect = tl_vzero.zero_ablation(double_model(name), IDS, per_head=True, baseline="mean", **options_of(stack))
    first = int(stack == "decoder")  # the token that starts the decoder is special, and no text
    for head in (0, 1):
        columns = slice(head * 8, head * 8 + 8)
        expected = zeroed(
            name,
            stack,
            lambda source, columns=columns: (0, source, columns),
            lambda out, columns=columns: out[0, first:, columns].mean(0),
        )
        torch.testing.assert_close(effect.values[:, head], expected, **CLOSE)


@each_stack
@each_name
def test_attribution_patching_is_the_gradient_times_the_change(name: str, stack: str) -> None:
    row = PAIRED[name]
    effect = tl_vzero.attribution_patching(double_model(name), IDS, **options_of(stack))
    values: dict[int, Tensor] = {}
    leaves = {layer: torch.zeros(len(sources_of(stack)), 16).double() for layer in layers_of(name, stack)}

    def add(layer: int) -> Change:
        def change(out: Tensor) -> Tensor:
            values[layer] = out.detach()[0]
            return out + leaves[layer].requires_grad_()

        return change

    difference(row.logits({row.value(stack, layer): add(layer) for layer in leaves})).backward()
    expected = torch.stack([-(leaves[layer].grad * values[layer]).sum(-1) for layer in leaves])
    torch.testing.assert_close(effect.values, expected, **CLOSE)


@each_stack
def test_the_default_target_is_where_the_decoder_goes_on(stack: str) -> None:
    model = double_model("HookedEncoderDecoder")
    effect = tl_vzero.zero_ablation(model, IDS, stack=stack, decoder_inputs=OUT, layers=0, sources=0)
    logits = PAIRED["HookedEncoderDecoder"].logits({})
    assert effect.target == len(WRITTEN) - 1
    assert effect.metadata["target_ids"] == [int(logits[-1].argmax())]
    assert effect.clean == pytest.approx(logits[-1].max().item(), rel=1e-6)


def test_what_is_refused() -> None:
    model = double_model("HookedEncoderDecoder")
    for stack in STACKS:
        with pytest.raises(InputError, match=f"stack='{stack}', and no decoder_inputs given"):
            tl_vzero.zero_ablation(model, IDS, stack=stack)
    with pytest.raises(InputError, match="no stack named"):
        tl_vzero.zero_ablation(model, IDS, decoder_inputs=OUT)
    with pytest.raises(InputError, match="no stack named"):
        tl_vzero.zero_ablation(model, IDS)
    with pytest.raises(InputError, match="one stack of blocks"):
        tl_vzero.zero_ablation(tl_vzero.load_model("agreement-mini"), "the hat [MASK] today.", stack="encoder")
    with pytest.raises(InputError, match="target"):
        tl_vzero.zero_ablation(model, IDS, stack="encoder", decoder_inputs=OUT, target=len(WRITTEN))
