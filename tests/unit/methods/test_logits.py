"""What a source adds to a logit, by the formulas from Hugging Face's own blocks."""

from functools import cache
from itertools import product
from typing import Any

import pytest
import torch
from support.models import HF_BUILDERS, hf_bert, hf_gpt2
from support.parts import Parts, parts_of
from support.references import final_norm_of, in_float64, rolled_out, row_normalized
from support.state import left_as_found, type_checks_off
from torch import Tensor
from transformers import (
    BertForSequenceClassification,
    BertForTokenClassification,
    GPT2ForSequenceClassification,
    GPT2ForTokenClassification,
)

import tl_vzero
from tl_vzero.errors import InputTypeError, ModelError, ScoresError

IDS = torch.tensor([2, 5, 17, 9, 9, 31, 3])
TARGET, GOOD, BAD = 5, 11, 25
METHODS = ("logit_contributions", "alti_logit")
each_method = pytest.mark.parametrize("method", METHODS)
each_decoder = pytest.mark.parametrize("architecture", ["gpt2", "llama"])


@cache
def loaded(architecture: str) -> Any:
    return tl_vzero.load_model(HF_BUILDERS[architecture](1), dtype=torch.float64)


def scores_of(architecture: str, method: str, **options: Any) -> Any:
    options = {"target": TARGET, "target_ids": (GOOD, BAD), **options}
    return tl_vzero.score(loaded(architecture), IDS, method=method, **options)


def assert_close(measured: Tensor, expected: Tensor) -> None:
    """Hugging Face computes Llama's norms and rotations in float32, also in a float64 model."""
    torch.testing.assert_close(measured, expected, rtol=0, atol=5e-6)


@cache
@torch.no_grad()
def by_hand(architecture: str) -> tuple[list[Parts], Any, float]:
    """Each layer's parts, the difference of the two logits as a function of a vector, and as the model has it."""
    wide = in_float64(HF_BUILDERS[architecture](1))
    norm, unembedding = final_norm_of(wide), wide.get_output_embeddings().weight
    read: list[Tensor] = []
    handle = norm.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0][0, TARGET]))
    logits = wide(IDS.unsqueeze(0)).logits[0, TARGET]
    handle.remove()
    gpt2 = architecture == "gpt2"
    z = read[0] - read[0].mean() if gpt2 else read[0]
    sigma = (z.square().mean() + (norm.eps if gpt2 else norm.variance_epsilon)).sqrt()

    @torch.no_grad()
    def logit(vector: Tensor) -> float:
        centred = vector - vector.mean() if gpt2 else vector
        return float((norm.weight * centred / sigma) @ (unembedding[GOOD] - unembedding[BAD]))

    return parts_of(wide, IDS), logit, float(logits[GOOD] - logits[BAD])


def contributions(architecture: str) -> Tensor:
    layers, logit, _ = by_hand(architecture)
    rows = [[logit(parts.by_head[:, TARGET, source].sum(0)) for source in range(len(IDS))] for parts in layers]
    return torch.tensor(rows, dtype=torch.float64)


def alti_rollout(architecture: str) -> Tensor:
    """How much nearer each source brings the residual stream, before the MLP, multiplied through the layers."""
    maps = []
    for parts in by_hand(architecture)[0]:
        raw = torch.zeros(len(IDS), len(IDS), dtype=torch.float64)
        for dest, source in product(range(len(IDS)), repeat=2):
            whole = parts.input[dest] + parts.attention[dest]
            part = parts.by_head[:, dest, source].sum(0) + (parts.input[dest] if dest == source else 0)
            raw[dest, source] = (whole.abs().sum() - (whole - part).abs().sum()).clamp(min=0)
        maps.append(row_normalized(raw))
    return rolled_out(torch.stack(maps))


@each_decoder
def test_logit_contributions_by_hand(architecture: str) -> None:
    scores = scores_of(architecture, "logit_contributions")
    assert (scores.dest_positions, scores.metadata["target_ids"]) == ((TARGET,), [GOOD, BAD])
    assert_close(scores.values[:, 0], contributions(architecture))
    good, bad = (scores_of(architecture, "logit_contributions", target_ids=one).values for one in (GOOD, BAD))
    torch.testing.assert_close(scores.values, good - bad, rtol=0, atol=1e-9)
    effect = tl_vzero.direct_logit_attribution(loaded(architecture), IDS, target=TARGET, target_ids=(GOOD, BAD))
    torch.testing.assert_close(scores.values[:, 0], effect.values, rtol=0, atol=1e-12)


@each_decoder
def test_alti_logit_by_hand(architecture: str) -> None:
    layers, logit, _ = by_hand(architecture)
    added, through = contributions(architecture), alti_rollout(architecture)
    row = torch.zeros(len(IDS), dtype=torch.float64)
    row[TARGET] = logit(layers[0].input[TARGET])
    expected = []
    for layer in range(len(layers)):
        for source, below in product(range(len(IDS)), repeat=2):
            row[source] += added[layer, below] * (through[layer - 1][below, source] if layer else below == source)
        expected.append(row.clone())
    measured = scores_of(architecture, "alti_logit").values[:, 0]
    assert_close(measured, torch.stack(expected))
    assert_close(measured[-1].sum(), added.sum() + logit(layers[0].input[TARGET]))


def test_what_comes_from_no_source_is_what_is_left_of_the_logit() -> None:
    """MLPs, attention's bias, and the biases of the last norm; GPT-2's unembedding has none."""
    _, logit, whole = by_hand("gpt2")
    wide = in_float64(HF_BUILDERS["gpt2"](1))
    outputs: list[Tensor] = []
    for block in wide.transformer.h:
        block.mlp.register_forward_hook(lambda _, __, out: outputs.append(out[0, TARGET]))
    with torch.no_grad():
        wide(IDS.unsqueeze(0))
        biases = sum(logit(block.attn.c_proj.bias) for block in wide.transformer.h)
        unembedding = wide.lm_head.weight[GOOD] - wide.lm_head.weight[BAD]
        left = biases + sum(map(logit, outputs)) + float(wide.transformer.ln_f.bias @ unembedding)
    assert scores_of("gpt2", "alti_logit").values[-1].sum().item() + left == pytest.approx(whole, abs=1e-9)


@each_method
def test_layers_padding_and_the_likeliest_token(method: str) -> None:
    whole = scores_of("gpt2", method).values
    torch.testing.assert_close(scores_of("gpt2", method, layers=[2, 0]).values, whole[[2, 0]], rtol=0, atol=1e-12)
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
    ids = torch.stack([IDS, IDS.masked_fill(mask[1] == 0, 0)])
    options: Any = {"method": method, "attention_mask": mask, "target": [TARGET, -1]}
    first, second = tl_vzero.score(loaded("gpt2"), ids, **options)
    alone: Any = tl_vzero.score(loaded("gpt2"), IDS[:4], method=method)
    torch.testing.assert_close(second.values, alone.values, rtol=0, atol=1e-9)
    with torch.no_grad():
        likeliest = loaded("gpt2")(IDS.unsqueeze(0), return_type="logits")[0, TARGET].argmax().item()
    assert first.metadata["target_ids"] == [likeliest] and second.dest_positions == (3,)
    torch.testing.assert_close(first.values, scores_of("gpt2", method, target_ids=likeliest).values)


@each_method
def test_signs_are_left_out_only_where_that_is_asked(method: str) -> None:
    signed = scores_of("gpt2", method)
    assert signed.signed
    for refused in (signed.normalized, signed.rollout):
        with pytest.raises(ScoresError, match=r"size=True|1 destinations"):
            refused()
    sizes = scores_of("gpt2", method, size=True)
    torch.testing.assert_close(sizes.values, signed.values.abs())
    assert sizes.normalized().values.sum(-1).allclose(torch.ones(3, 1).double())
    with type_checks_off(), pytest.raises(InputTypeError, match="size is int"):
        scores_of("gpt2", method, size=1)


@each_method
def test_a_logit_that_is_no_sum_is_refused(method: str) -> None:
    masked = tl_vzero.load_model(HF_BUILDERS["bert"](1))
    with left_as_found(masked), pytest.raises(ModelError, match="dense layer and an activation"):
        tl_vzero.score(masked, IDS, method=method, target=TARGET)


@pytest.mark.parametrize(("kind", "target"), [(GPT2ForTokenClassification, 5), (GPT2ForSequenceClassification, 6)])
def test_a_class_that_is_read_off_the_last_norm(kind: type, target: int) -> None:
    """As the same words of a GPT-2 whose unembedding holds the classes."""
    classifier, words = hf_gpt2(1, kind=kind), hf_gpt2(1)
    head: Any = classifier.classifier if kind is GPT2ForTokenClassification else classifier.score
    words.transformer.load_state_dict(classifier.transformer.state_dict())
    words.lm_head.weight = torch.nn.Parameter(torch.cat([head.weight.detach()] * 30))
    options: Any = {"target": target, "target_ids": (1, 0)}
    model, other = (tl_vzero.load_model(one, dtype=torch.float64) for one in (classifier, words))
    for method in METHODS:
        measured, expected = (tl_vzero.score(one, IDS, method=method, **options) for one in (model, other))
        torch.testing.assert_close(measured.values, expected.values, rtol=0, atol=1e-10)


@each_method
@pytest.mark.parametrize(
    ("kind", "reason"),
    [(BertForSequenceClassification, "has an activation"), (BertForTokenClassification, "block . does not add")],
)
def test_a_class_that_is_no_sum_is_refused(method: str, kind: type, reason: str) -> None:
    model = tl_vzero.load_model(hf_bert(1, kind=kind))
    with left_as_found(model), pytest.raises(ModelError, match=reason):
        tl_vzero.score(model, IDS, method=method)


def test_beside_other_methods_of_a_comparison() -> None:
    compared: Any = tl_vzero.compare(
        loaded("gpt2"), IDS, ["value_zeroing", *METHODS], target=TARGET, target_ids=(GOOD, BAD)
    )
    for method in METHODS:
        torch.testing.assert_close(compared[method].values, scores_of("gpt2", method).values)
    assert not {*METHODS} & {*tl_vzero.compare(loaded("gpt2"), IDS)}  # type: ignore[arg-type]
