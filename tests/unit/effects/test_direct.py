"""Logit lens, direct logit attribution and direct paths: by hand in float64, and TransformerLens's own functions."""

from importlib.metadata import version
from typing import Any

import pytest
import torch
from support.effects import CORRUPTED, TARGET, TEXT, double_hf_model, double_model, ids_of_text
from support.models import bridge, hf_gpt2
from support.state import left_as_found, type_checks_off
from torch import Tensor

import tl_vzero
from tl_vzero.errors import InputError, ModelError

IDS, CORRUPTED_IDS = ids_of_text(TEXT).reshape(1, -1), ids_of_text(CORRUPTED).reshape(1, -1)
GOOD, BAD = PAIR = (16, 17)
LAYERS = range(3)
is_4 = pytest.mark.skipif(version("transformer-lens").startswith("3"), reason="TransformerLens 4 has it")
ROUTES = [
    ("HookedEncoder", "bert"),
    ("HookedTransformer", "gpt2"),
    ("load_model", "bert"),
    ("load_model", "gpt2"),
    ("load_model", "llama"),
    ("load_model", "neox"),
]
each_route = pytest.mark.parametrize(("route", "architecture"), ROUTES)
each_decoder = pytest.mark.parametrize(("route", "architecture"), [route for route in ROUTES if route[1] != "bert"])


def difference(logits: Tensor) -> Tensor:
    return logits[0, TARGET, GOOD] - logits[0, TARGET, BAD]


def close(architecture: str) -> dict[str, float]:
    """Hugging Face computes Llama's norms and rotations in float32, also in a float64 model."""
    return {"rtol": 0, "atol": 5e-6 if architecture in ("llama", "neox") else 1e-9}


@torch.no_grad()
def hidden_states(architecture: str) -> tuple[Any, tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Hugging Face's model, its hidden states behind each block and its patterns."""
    hf_model = double_hf_model(architecture)
    hf_model.set_attn_implementation("eager")
    blocks = hf_model.bert.encoder.layer if architecture == "bert" else hf_model.base_model
    blocks = getattr(blocks, "h", None) or getattr(blocks, "layers", blocks)
    outputs: list[Tensor] = []
    hooks = [
        block.register_forward_hook(lambda _, __, out: outputs.append(out if isinstance(out, Tensor) else out[0]))
        for block in blocks
    ]
    patterns = hf_model(IDS, output_attentions=True).attentions
    for hook in hooks:
        hook.remove()
    return hf_model, tuple(outputs), patterns


def final_norm(hf_model: Any, architecture: str) -> Any:
    return {"gpt2": "ln_f", "llama": "norm", "neox": "final_layer_norm"}[architecture], hf_model.base_model


@each_route
def test_the_lens_is_the_head_on_each_output(route: str, architecture: str) -> None:
    effect = tl_vzero.logit_lens(double_model(route, architecture), TEXT, target=TARGET, target_ids=PAIR)
    hf_model, outputs, _ = hidden_states(architecture)
    head = hf_model.get_output_embeddings()
    if architecture == "bert":
        head = hf_model.cls
    else:
        name, base = final_norm(hf_model, architecture)
        head = torch.nn.Sequential(getattr(base, name), head)
    with torch.no_grad():
        logits = torch.stack([head(output)[0] for output in outputs])
    torch.testing.assert_close(effect.values, logits[..., GOOD] - logits[..., BAD], **close(architecture))
    assert effect.values[-1, TARGET].item() == pytest.approx(effect.clean, abs=1e-5)
    assert effect.method == "logit_lens" and "minus" in effect.metric


@each_route
def test_a_part_of_the_lens_and_its_probability(route: str, architecture: str) -> None:
    model = double_model(route, architecture)
    options: Any = {"target": TARGET, "target_ids": GOOD}
    whole = tl_vzero.logit_lens(model, TEXT, metric="probability", **options)
    part = tl_vzero.logit_lens(model, TEXT, metric="probability", layers=[-1, 0], sources=[2, TARGET], **options)
    torch.testing.assert_close(part.values, whole.values[[2, 0]][:, [2, TARGET]])
    with torch.no_grad():
        expected = model(IDS, return_type="logits")[0, TARGET].softmax(-1)[GOOD].item()
    assert part.values[0, 1].item() == pytest.approx(expected, rel=1e-6) == part.clean


@is_4
@pytest.mark.parametrize("architecture", ["gpt2", "llama", "neox"])
def test_the_lens_is_transformer_lenss(architecture: str) -> None:
    from transformer_lens.tools.analysis import logit_lens

    model = double_model("load_model", architecture)
    theirs = logit_lens(model, IDS, positions=None, vocab=PAIR, layers=range(1, 4))
    logits = theirs.readout.values
    effect = tl_vzero.logit_lens(model, TEXT, target=TARGET, target_ids=PAIR)
    torch.testing.assert_close(effect.values, (logits[..., 0] - logits[..., 1])[:, 0], atol=1e-6, rtol=0)


@each_decoder
@torch.no_grad()
def test_attribution_by_hand(route: str, architecture: str) -> None:
    """One source, head and layer at a time: what it adds, through the final norm with its scale held."""
    model = double_model(route, architecture)
    effect = tl_vzero.direct_logit_attribution(model, TEXT, target=TARGET, target_ids=PAIR, per_head=True)
    hf_model, outputs, patterns = hidden_states(architecture)
    name, base = final_norm(hf_model, architecture)
    weight, final = getattr(base, name).weight, outputs[-1][0, TARGET]
    centred = final - final.mean() * (architecture != "llama")
    scale = (centred.square().mean() + 1e-6 * (architecture == "llama") + 1e-5 * (architecture != "llama")).sqrt()
    unembed = hf_model.get_output_embeddings().weight
    _, cache = model.run_with_cache(IDS)
    expected = torch.zeros(effect.values.shape, dtype=torch.float64)
    for layer in LAYERS:
        value, w_o = cache[f"blocks.{layer}.attn.hook_v"][0], model.blocks[layer].attn.W_O
        for head in range(len(w_o)):
            for source in range(IDS.shape[1]):
                read = value[source, head * value.shape[1] // len(w_o)]
                added = patterns[layer][0, head, TARGET, source] * (read @ w_o[head])
                added = (added - added.mean() * (architecture != "llama")) / scale * weight
                expected[layer, head, source] = added @ (unembed[GOOD] - unembed[BAD])
    torch.testing.assert_close(effect.values, expected, **close(architecture))
    assert effect.values[..., TARGET + 1 :].abs().max() == 0 < effect.values.abs().max()
    whole = tl_vzero.direct_logit_attribution(model, TEXT, target=TARGET, target_ids=PAIR, layers=[2, 0], sources=[3])
    torch.testing.assert_close(whole.values, expected.sum(1)[[2, 0]][:, [3]], **close(architecture))


@is_4
def test_attribution_is_transformer_lenss() -> None:
    """Theirs asks for processed weights, and is of each head over all sources."""
    from transformer_lens.tools.analysis import direct_logit_attribution

    model = bridge(hf_gpt2().double())
    model.enable_compatibility_mode()
    theirs = direct_logit_attribution(
        model, IDS, torch.tensor([GOOD]), torch.tensor([BAD]), unit="head", pos=TARGET
    ).attribution[:-1, 0]
    with pytest.warns(tl_vzero.errors.ProcessedWeightsWarning):
        ours = tl_vzero.direct_logit_attribution(model, TEXT, target=TARGET, target_ids=PAIR, per_head=True)
    torch.testing.assert_close(ours.values.sum(-1).flatten(), theirs, atol=1e-6, rtol=0)


@pytest.mark.parametrize("route", ["HookedEncoder", "load_model"])
def test_a_masked_model_has_no_direct_attribution(route: str) -> None:
    model = double_model(route, "bert")
    with left_as_found(model), pytest.raises(ModelError, match="dense layer and an activation"):
        tl_vzero.direct_logit_attribution(model, TEXT)


def test_a_block_that_adds_something_else_has_no_direct_attribution() -> None:
    model = double_model("load_model", "gpt2")
    model.add_hook("blocks.1.hook_attn_out", lambda x, hook: x / 2)
    try:
        with pytest.raises(ModelError, match="block 1 does not add what its attention writes"):
            tl_vzero.direct_logit_attribution(model, TEXT)
    finally:
        model.reset_hooks()


@is_4
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_paths_are_transformer_lenss(architecture: str) -> None:
    """With a clean cache that differs at one position only."""
    from transformer_lens import patching

    model = double_model("load_model", architecture)
    with left_as_found(model):
        effect = tl_vzero.direct_path_patching(
            model, TEXT, CORRUPTED, (0, 1), target=TARGET, target_ids=PAIR, sources=[1, 3]
        )
    name = "blocks.0.attn.hook_z"

    def change(logits: Tensor) -> Tensor:
        """What is measured, before their table rounds it to float32."""
        return difference(logits) - effect.corrupted

    with torch.no_grad():
        clean, corrupted = (
            model.run_with_cache(ids, names_filter=name)[1][name].clone() for ids in (IDS, CORRUPTED_IDS)
        )
        theirs = []
        for source in (1, 3):
            there = corrupted.clone()
            there[:, source] = clean[:, source]
            theirs.append(
                patching.get_act_patch_direct_path(
                    model, CORRUPTED_IDS, {name: there}, {name: corrupted}, change, 0, 1, verbose=False
                )[1:]
            )
    torch.testing.assert_close(effect.values.float(), torch.stack(theirs, -1), atol=1e-6, rtol=0)
    assert effect.layers == (1, 2) and effect.values.abs().max() > 1e-5
    assert effect.metadata["source_head"] == [0, 1]
    assert torch.equal(effect.of_head(1).values, effect.values[:, 1])
    assert effect.of_head(1).heads is None


def test_paths_that_are_refused() -> None:
    model = double_model("load_model", "bert")
    reason = "needs TransformerLens 4" if version("transformer-lens").startswith("3") else "cannot patch a path"
    with left_as_found(model), pytest.raises(ModelError, match=reason):
        tl_vzero.direct_path_patching(model, TEXT, CORRUPTED, (0, 1))


@is_4
def test_bad_paths() -> None:
    model = double_model("load_model", "llama")
    with type_checks_off(), left_as_found(model):
        for source_head, mention in [((2, 0), "holds 2"), ((0, 4), "holds 4"), (1, r"expected \(layer, head\)")]:
            with pytest.raises(InputError, match=mention):
                tl_vzero.direct_path_patching(model, TEXT, CORRUPTED, source_head, target_ids=PAIR)
        with pytest.raises(InputError, match="'z'"):
            tl_vzero.direct_path_patching(model, TEXT, CORRUPTED, (0, 0), "z", target_ids=PAIR)
        with pytest.raises(ModelError, match="GQA"):
            tl_vzero.direct_path_patching(model, TEXT, CORRUPTED, (0, 0), "k", target_ids=PAIR)


def test_a_lens_reads_a_logit_or_a_probability() -> None:
    model = double_model("load_model", "bert")
    with type_checks_off(), left_as_found(model):
        for metric in ("logits", torch.sum):
            with pytest.raises(InputError, match=r"expected .*logit"):
                tl_vzero.logit_lens(model, TEXT, metric=metric)
        with pytest.raises(InputError, match="layers holds 3"):
            tl_vzero.logit_lens(model, TEXT, layers=3)
        tl_vzero.logit_lens(model, TEXT)
