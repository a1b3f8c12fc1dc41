"""Encoder-decoders against plain hooks on their Hugging Face models, in float64, in every class that holds them."""

import copy
from typing import Any

import pytest
import torch
from support.architecture_row import LINE
from support.covered import errors_of
from support.models import bridge, third_party_warnings_ignored
from support.paired import (
    ON_THIS_LINE,
    PAIRED,
    READ,
    STACKS,
    hooked_encoder_decoder,
    model_of,
    reference,
    stack_options,
    t5,
)
from support.plain_hooks import plain_value_zeroing
from support.references import row_normalized
from torch import Tensor
from transformers import BartModel, T5Model

import tl_vzero
from tl_vzero.cli.listings import coverage
from tl_vzero.models.facts import facts_of
from tl_vzero.models.sites import stacks_of

NORMALISED = 5e-6
RAW, RAW_FROM = 1e-3, 1e-7

each_stack = pytest.mark.parametrize("stack", STACKS)
each_name = pytest.mark.parametrize("name", ON_THIS_LINE)


def assert_right(model: Any, stack: str, expected: Tensor) -> tl_vzero.Scores:
    scores = tl_vzero.value_zeroing(model, torch.tensor(READ), **stack_options(stack))
    measured = scores.values.double()
    assert measured.shape == expected.shape
    felt = expected >= RAW_FROM
    assert ((measured - expected).abs() / expected)[felt].max() <= RAW
    assert (scores.normalized().values.double() - row_normalized(expected)).abs().max() <= NORMALISED
    assert torch.equal(measured == 0, expected < 1e-25)
    return scores


@each_stack
@each_name
def test_the_map_is_that_of_plain_hooks(name: str, stack: str) -> None:
    scores = assert_right(model_of(name), stack, reference(name, stack))
    if name in coverage()["architectures"]:
        bounds = coverage()["architectures"][name]["lines"][LINE]
        normalised, raw = errors_of(scores, reference(name, stack))
        assert normalised <= bounds["normalised"] and raw <= bounds["raw"]


@each_name
def test_the_map_of_the_users_own_bridge_is_that_of_plain_hooks(name: str) -> None:
    hf_model = copy.deepcopy(PAIRED[name].tiny())
    if hf_model._supports_sdpa:
        hf_model.set_attn_implementation("sdpa")
    own = bridge(hf_model)
    for stack in STACKS:
        assert_right(own, stack, reference(name, stack))


@each_stack
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_hooked_encoder_decoder(stack: str, dtype: torch.dtype) -> None:
    hf_model = t5(layers=3)
    parts = {
        "encoder": ("encoder.block", "layer.0.SelfAttention.v"),
        "decoder": ("decoder.block", "layer.0.SelfAttention.v"),
        "cross": ("decoder.block", "layer.1.EncDecAttention.v"),
    }
    model = hooked_encoder_decoder(hf_model.to(dtype))
    blocks, value = parts[stack]
    written = torch.tensor([stack_options("cross")["decoder_inputs"].tolist()])
    sources = written[0].tolist() if stack == "decoder" else READ
    expected = plain_value_zeroing(
        hf_model,
        sources,
        blocks=blocks,
        value=value,
        run=lambda model, _: model(input_ids=torch.tensor([READ]), decoder_input_ids=written),
    )
    assert_right(model, stack, expected)
    assert stacks_of(model) == STACKS


@each_stack
@pytest.mark.parametrize("name", [name for name in ON_THIS_LINE if name in ("T5", "BART")])
def test_the_attention_method_gives_the_patterns(name: str, stack: str) -> None:
    hf_model = copy.deepcopy(PAIRED[name].tiny())
    hf_model.set_attn_implementation("eager")
    with torch.no_grad():
        outputs = hf_model(
            input_ids=torch.tensor([READ]),
            decoder_input_ids=stack_options("cross")["decoder_inputs"].unsqueeze(0),
            output_attentions=True,
        )
    patterns = {
        "encoder": outputs.encoder_attentions,
        "decoder": outputs.decoder_attentions,
        "cross": outputs.cross_attentions,
    }[stack]
    model = model_of(name)
    scores = tl_vzero.score(model, torch.tensor(READ), method="attention", **stack_options(stack))
    assert torch.allclose(scores.values, torch.stack([pattern[0].mean(0) for pattern in patterns]), atol=1e-6)
    heads = tl_vzero.score(model, torch.tensor(READ), method="attention", per_head=True, **stack_options(stack))
    assert torch.allclose(heads.values, torch.stack([pattern[0] for pattern in patterns]), atol=1e-6)
    assert heads.metadata["stack"] == stack


@pytest.mark.parametrize(("name", "base"), [("T5", T5Model), ("BART", BartModel)])
def test_a_headless_model_in_memory(name: str, base: Any) -> None:
    if name not in ON_THIS_LINE:
        pytest.skip("this TransformerLens's bridge does not run a T5")
    whole = PAIRED[name].tiny()
    headless = base(whole.config).eval()
    inner = whole if name == "T5" else whole.model
    headless.load_state_dict({key: inner.state_dict()[key] for key in headless.state_dict()})
    with third_party_warnings_ignored():
        model = tl_vzero.load_model(headless)
    for stack in STACKS:
        assert_right(model, stack, reference(name, stack))


@each_name
def test_from_a_folder_the_class_is_the_whole_model(name: str, tmp_path: Any) -> None:
    PAIRED[name].tiny().save_pretrained(tmp_path)
    model = tl_vzero.load_model(tmp_path)
    assert type(model.original_model) is type(PAIRED[name].tiny())
    assert facts_of(model).head == "trained"
    if name != "Marian":  # its positions are computed anew, and not the random ones of the model in memory
        assert_right(model, "cross", reference(name, "cross"))
