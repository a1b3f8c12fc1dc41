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
    put,
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


def patterns_of(outputs: Any, stack: str, layer: int) -> Tensor:
    """The pattern `[head, dest, src]` of a run."""
    by_stack = {
        "encoder": outputs.encoder_attentions,
        "decoder": outputs.decoder_attentions,
        "cross": outputs.cross_attentions,
    }
    return by_stack[stack][layer][0].double()


def written_by(name: str, stack: str, mixed: Tensor) -> Tensor:
    """What block 1 writes of what its attention mixed, `[..., position, feature]`, without a bias."""
    module = dict(PAIRED[name].tiny().named_modules())[PAIRED[name].written(stack, 1)]
    return mixed @ module.weight.double().T


def summed(pattern: Tensor, value: Tensor) -> Tensor:
    """What attention mixes, `[dest, feature]`, of a pattern by head and values `[src, feature]`."""
    heads = value.unflatten(-1, (len(pattern), -1))
    return torch.einsum("hij,jhd->ihd", pattern, heads).flatten(1)


@each_stack
@each_name
def test_knockout_takes_what_the_source_adds_to_the_destinations(name: str, stack: str) -> None:
    row, at = PAIRED[name], row_at(name, stack)
    effect = tl_vzero.attention_knockout(double_model(name), IDS, layers=1, **options_of(stack))
    shown, outputs = row.run()
    pattern, value = patterns_of(outputs, stack, 1), shown[row.value(stack, 1)][0]
    rows = range(len(READ)) if stack == "encoder" else [TARGET]
    assert effect.metadata["destinations"] == list(rows)
    expected = []
    for source in range(len(sources_of(stack))):
        cut = pattern.clone()
        cut[:, list(rows), source] = 0
        taken = written_by(name, stack, summed(cut - pattern, value))
        expected.append(difference(row.logits({at: lambda out, taken=taken: out + taken})) - difference(row.logits({})))
    torch.testing.assert_close(effect.values[0], torch.stack(expected), **CLOSE)


def row_at(name: str, stack: str) -> str:
    return PAIRED[name].written(stack, 1)


OTHER = [17, 5, 22, 9, 31, 28, 9]  # what is read, but for one token
OTHER_OUT = [3, 44, 26, 9, 23]


def patched(name: str, path: str, put_in: Tensor, at: int) -> Tensor:
    """The metric of the other sentence with what a module computes at one position taken from `put_in`."""
    return difference(PAIRED[name].logits({path: put((0, at), lambda _: put_in[at])}, OTHER, OTHER_OUT))


@each_stack
@each_name
def test_patching_each_site_is_a_run_with_the_clean_activation_put_in(name: str, stack: str) -> None:
    row, model = PAIRED[name], double_model(name)
    clean, outputs = row.run()
    corrupted, _ = row.run(OTHER, OTHER_OUT)
    value = row.value(stack, 1)
    projections = {"v": value, "q": value.replace("v_proj", "q_proj"), "k": value.replace("v_proj", "k_proj")}
    if "v_proj" not in value:
        projections = {site: f"{value.removesuffix('v')}{site}" for site in "vqk"}
    paths = {site: (path, clean[path]) for site, path in projections.items()}
    written = row_at(name, stack)
    paths["z"] = paths["attn_out"] = written, clean[written]  # a position's is a linear map of its z
    swapped = summed(patterns_of(outputs, stack, 1), corrupted[value][0]) - summed(
        patterns_of(row.run(OTHER, OTHER_OUT)[1], stack, 1), corrupted[value][0]
    )
    paths["pattern"] = written, corrupted[written] + written_by(name, stack, swapped)
    if stack != "cross":
        below = row.block(stack, 0)
        paths["resid_pre"] = below, clean[below]
    before = difference(row.logits({}, OTHER, OTHER_OUT))
    for site, (path, put_in) in paths.items():
        effect = tl_vzero.activation_patching(
            model,
            IDS,
            torch.tensor(OTHER),
            site,
            layers=1,
            corrupted_decoder_inputs=torch.tensor(OTHER_OUT),
            **options_of(stack),
        )
        expected = torch.stack([patched(name, path, put_in[0], at) for at in range(put_in.shape[1])]) - before
        assert (effect.values[0] - expected).abs().max() < 1e-6, site
        assert effect.corrupted == pytest.approx(before.item(), abs=1e-6)
        assert len(effect.corrupted_tokens) == put_in.shape[1]


@each_name
def test_the_logit_lens_reads_each_block_of_the_decoder_by_the_head(name: str) -> None:
    row, options = PAIRED[name], {"decoder_inputs": OUT, "target_ids": (GOOD, BAD)}
    effect = tl_vzero.logit_lens(double_model(name), IDS, stack="decoder", **options)
    shown, _ = row.run()
    for layer in layers_of(name, "decoder"):
        output = shown[row.block("decoder", layer)]
        logits = row.logits({row.block("decoder", 2): put(slice(None), lambda _, output=output: output)})
        torch.testing.assert_close(effect.values[layer], logits[:, GOOD] - logits[:, BAD], **CLOSE)
    for stack in ("encoder", "cross"):
        with pytest.raises(InputError, match="expected stack='decoder'"):
            tl_vzero.logit_lens(double_model(name), IDS, stack=stack, **options)


@each_stack
def test_optimised_constants_begin_at_the_mean_whose_loss_is_that_of_plain_hooks(stack: str) -> None:
    name, last = IN_DOUBLE[-1], len(WRITTEN) - 1
    model, row = double_model(name), PAIRED[IN_DOUBLE[-1]]
    constants = tl_vzero.optimised_values(model, [IDS], stack=stack, decoder_inputs=[OUT], steps=1)
    shown, path = row.run()[0], row.value(stack, 1)
    mean = shown[path][0, int(stack == "decoder") :, :8].mean(0)  # the token that starts the decoder is no text
    changed = row.logits({path: put((0, slice(None), slice(8)), lambda _: mean)})[last].log_softmax(-1)
    clean = row.logits({})[last].log_softmax(-1)
    loss = (clean.exp() * (clean - changed)).sum().item()
    assert constants.metadata["loss"]["mean"][1][0] == pytest.approx(loss, rel=1e-5, abs=1e-9)
    assert constants.metadata["targets"] == [last]
    effect = tl_vzero.zero_ablation(model, IDS, baseline=constants, layers=1, sources=0, **options_of(stack))
    put_in = constants.values[1].flatten()
    expected = difference(row.logits({path: put((0, 0), lambda _: put_in)})) - difference(row.logits({}))
    assert effect.values.item() == pytest.approx(expected.item(), abs=1e-6)


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


def test_effects_of_two_stacks_are_of_different_blocks() -> None:
    model, options = double_model(IN_DOUBLE[-1]), {"decoder_inputs": OUT, "target_ids": GOOD, "layers": 1}
    cross, encoder = (tl_vzero.zero_ablation(model, IDS, stack=stack, **options) for stack in ("cross", "encoder"))
    with pytest.raises(InputError, match="stack"):
        tl_vzero.attribution_error(cross, encoder)
    scores = tl_vzero.value_zeroing(model, IDS, stack="cross", decoder_inputs=OUT)
    assert tl_vzero.agreement(scores, cross).layers == (1,)
    with pytest.raises(InputError, match="of stack='cross' and the effect of 'encoder'"):
        tl_vzero.agreement(scores, encoder)


def test_what_patching_refuses() -> None:
    model, other = double_model("HookedEncoderDecoder"), torch.tensor(OTHER)
    for site in ("resid_pre", "mlp_out"):
        with pytest.raises(InputError, match="expected stack='decoder'"):
            tl_vzero.activation_patching(model, IDS, other, site, stack="cross", decoder_inputs=OUT)
    with pytest.raises(InputError, match="the clean sentence has 7 tokens and the corrupted one 6"):
        tl_vzero.value_patching(model, IDS, other[:-1], stack="decoder", decoder_inputs=OUT)
    with pytest.raises(InputError, match="the clean sentence has 5 tokens and the corrupted one 4"):
        tl_vzero.value_patching(
            model, IDS, other, stack="encoder", decoder_inputs=OUT, corrupted_decoder_inputs=OUT[:-1]
        )
    with pytest.raises(InputError, match="the same tokens"):
        tl_vzero.value_patching(model, IDS, IDS, stack="encoder", decoder_inputs=OUT)
