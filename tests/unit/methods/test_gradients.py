"""The gradient family, against Captum used directly on the Hugging Face model."""

import copy
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from captum.attr import (
    IntegratedGradients,
    LayerDeepLift,
    LayerGradientXActivation,
    LayerIntegratedGradients,
)
from support import golden, references
from support.models import (
    HF_BUILDERS,
    MOST_ROUTES,
    ROUTES,
    VOCABULARY,
    bridge,
    hf_bert,
    hf_bert_headless,
    hf_gpt2,
    is_causal,
    legacy,
    loaded,
    randomise,
    third_party_warnings_ignored,
)
from support.paired import BAD as WORSE
from support.paired import GOOD as BETTER
from support.paired import IN_DOUBLE, PAIRED, READ, WRITTEN, difference, double_model, layers_of, put
from support.paired import TARGET as OUT_TARGET
from support.state import every_module, left_as_found, type_checks_off
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel

import tl_vzero
from tl_vzero.errors import DependencyError, HeadlessModelError, InputError, InputTypeError, ModelError

IDS = torch.tensor([2, 5, 17, 9, 8, 31, 3])
TARGET, GOOD, BAD = 4, 11, 25
FAMILY = ("gradient_x_input", "integrated_gradients", "deep_lift")
WITH_STEPS = "integrated_gradients"
EXACT = [pytest.param(torch.float32, 1e-5, id="float32"), pytest.param(torch.float64, 1e-9, id="float64")]


def explained(model: Any, method: str, ids: Tensor = IDS, **options: Any) -> Any:
    return tl_vzero.score(model, ids, method=method, **{"target": TARGET, "target_ids": (GOOD, BAD), **options})


def hf_relu(architecture: str) -> Any:
    """A model whose activations Captum has a rule for."""
    if architecture == "bert":
        config: Any = BertConfig(
            vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32,
            max_position_embeddings=64, hidden_act="relu",
        )  # fmt: skip
        return randomise(BertForMaskedLM(config), 3)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_embd=16, n_layer=3, n_head=2, n_positions=64, activation_function="relu",
        bos_token_id=2, eos_token_id=2,
    )  # fmt: skip
    return randomise(GPT2LMHeadModel(config), 3)


class LogitDifference(nn.Module):
    """Plain Hugging Face: ids to the difference of two logits at the target."""

    def __init__(self, hf_model: Any) -> None:
        super().__init__()
        self.hf_model = hf_model

    def forward(self, ids: Tensor) -> Tensor:
        logits = self.hf_model(ids).logits[:, TARGET]
        return logits[:, GOOD] - logits[:, BAD]


def after_block(hf_model: Any, layer: int) -> Callable[[Tensor], Tensor]:
    """The same difference as a function of what a block writes."""
    block, whole = references.blocks_of(hf_model)[layer], LogitDifference(hf_model)

    def run(outputs: Tensor) -> Tensor:
        def replace(_: nn.Module, __: Any, output: Any) -> Any:
            return (outputs, *output[1:]) if isinstance(output, tuple) else outputs

        handle = block.register_forward_hook(replace)
        try:
            return whole(IDS.expand(len(outputs), -1))
        finally:
            handle.remove()

    return run


def block_output(hf_model: Any, layer: int, ids: Tensor = IDS) -> Tensor:
    outputs: list[Tensor] = []
    handle = references.blocks_of(hf_model)[layer].register_forward_hook(
        lambda _, __, output: outputs.append(references.first_tensor(output).detach())
    )
    with torch.no_grad():
        hf_model(ids.unsqueeze(0))
    handle.remove()
    return outputs[0]


def by_layer(explainer: type, hf_model: Any, **options: Any) -> Tensor:
    """A layer method of Captum's on every block of a Hugging Face model: `[layer, position, feature]`."""
    whole, rows = LogitDifference(hf_model), []
    for block in references.blocks_of(hf_model):
        with third_party_warnings_ignored():
            attributed = explainer(whole, block).attribute(IDS.unsqueeze(0), **options)
        rows.append(references.first_tensor(attributed)[0].detach())
    return torch.stack(rows)


def assert_same(scores: Any, expected: Tensor, tolerance: float) -> None:
    """Within a tolerance relative to the largest attribution."""
    wanted = expected.norm(dim=-1) if scores.metadata["options"]["aggregate"] == "norm" else expected.sum(-1)
    assert scores.values.shape == (len(expected), 1, len(IDS))
    assert (scores.values[:, 0] - wanted).abs().max() <= tolerance * max(1, wanted.abs().max())


def test_the_reference_runs_from_a_block_as_it_runs_whole() -> None:
    hf_model = hf_bert(1)
    with torch.no_grad():
        whole = LogitDifference(hf_model)(IDS.unsqueeze(0))
        assert torch.allclose(after_block(hf_model, 1)(block_output(hf_model, 1)), whole, atol=1e-5)


@pytest.mark.parametrize("aggregate", ["norm", "sum"])
@pytest.mark.parametrize(("dtype", "tolerance"), EXACT)
@pytest.mark.parametrize(("route", "architecture"), MOST_ROUTES)
def test_gradient_x_input(route: str, architecture: str, dtype: torch.dtype, tolerance: float, aggregate: str) -> None:
    hf_model = HF_BUILDERS[architecture](1).to(dtype)
    if architecture == "llama":
        tolerance = 1e-5  # its norm is float32 in any model
    scores = explained(ROUTES[route, architecture](hf_model), "gradient_x_input", aggregate=aggregate)
    assert scores.values.dtype == dtype
    assert_same(scores, by_layer(LayerGradientXActivation, hf_model), tolerance)


@pytest.mark.parametrize("aggregate", ["norm", "sum"])
@pytest.mark.parametrize(("dtype", "tolerance"), EXACT)
@pytest.mark.parametrize(
    ("route", "architecture"), [route for route in MOST_ROUTES if route.values[1] in ("bert", "gpt2")]
)
def test_integrated_gradients_from_a_token(
    route: str, architecture: str, dtype: torch.dtype, tolerance: float, aggregate: str
) -> None:
    hf_model = HF_BUILDERS[architecture](1).to(dtype)
    model = ROUTES[route, architecture](hf_model)
    scores = explained(model, "integrated_gradients", baseline=7, steps=60, aggregate=aggregate)
    assert scores.metadata["pieces"] == [1, 1, 1]  # else Captum's 60 points are others
    assert scores.metadata["options"] == {"aggregate": aggregate, "steps": 60, "baseline": "token 7"}
    tokens = torch.full((1, len(IDS)), 7)
    assert_same(scores, by_layer(LayerIntegratedGradients, hf_model, baselines=tokens, n_steps=60), tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), EXACT)
@pytest.mark.parametrize("route", ["load_model", "TransformerBridge", "HookedEncoder"])
def test_integrated_gradients_from_zero_and_from_a_vector(route: str, dtype: torch.dtype, tolerance: float) -> None:
    hf_model = hf_bert(1).to(dtype)
    model = ROUTES[route, "bert"](hf_model)
    vector = torch.randn(16, generator=torch.Generator().manual_seed(0)).to(dtype)
    for baseline, name in ((None, "zero"), (vector, "vector")):
        start = torch.zeros(16, dtype=dtype) if baseline is None else baseline
        expected = []
        for layer in range(3):
            output = block_output(hf_model, layer)
            captum = IntegratedGradients(after_block(hf_model, layer))
            expected.append(captum.attribute(output, baselines=start.expand_as(output).contiguous(), n_steps=50)[0])
        scores = explained(model, "integrated_gradients", baseline=baseline)
        assert scores.metadata["pieces"] == [1, 1, 1] and scores.metadata["options"]["baseline"] == name
        assert_same(scores, torch.stack(expected).detach(), tolerance)


def test_a_path_in_pieces_is_captums_path_in_very_many_steps() -> None:
    hf_model = hf_gpt2(1).double()
    scores = explained(loaded(hf_model), "integrated_gradients", steps=20)
    assert max(scores.metadata["pieces"]) > 1
    for layer in range(3):
        output = block_output(hf_model, layer)
        captum = IntegratedGradients(after_block(hf_model, layer))
        exact = captum.attribute(output, n_steps=1000, internal_batch_size=100)[0].detach().norm(dim=-1)
        assert (scores.values[layer, 0] - exact).abs().max() <= 2e-3 * exact.max()


def complete(model: Any, ids: Tensor, target: int) -> None:
    """Attributions sum to the logit minus the logit with the block's output at zero."""
    scores = explained(model, "integrated_gradients", ids, target=target, target_ids=None, aggregate="sum")
    (good,) = scores.metadata["target_ids"]
    for layer, name in enumerate(tl_vzero_outputs(model)):
        with torch.no_grad():
            whole = model(ids.unsqueeze(0), return_type="logits")[0, target, good]
            zero = model.run_with_hooks(
                ids.unsqueeze(0), return_type="logits", fwd_hooks=[(name, lambda out, hook: torch.zeros_like(out))]
            )[0, target, good]
        change = (whole - zero).item()
        missed = scores.values[layer].sum().item() - change
        assert abs(missed) <= 0.01 * abs(change), (layer, scores.metadata["pieces"])
        assert scores.metadata["convergence_delta"][layer] == pytest.approx(missed, abs=1e-4 * abs(change) + 1e-5)


def tl_vzero_outputs(model: Any) -> tuple[str, ...]:
    from tl_vzero.models.sites import sites_of

    return sites_of(model).outputs


@pytest.mark.parametrize(("route", "architecture"), MOST_ROUTES)
def test_integrated_gradients_are_complete_by_default(route: str, architecture: str) -> None:
    complete(ROUTES[route, architecture](HF_BUILDERS[architecture](1)), IDS, TARGET)


def test_completeness_on_the_golden_models() -> None:
    complete(bridge(golden.hf_bert_with_fresh_head(golden.model_folder("tiny-bert"), torch.float32)), IDS, 2)
    complete(bridge(golden.hf_tiny_gpt2(torch.float32)), IDS, 6)


def test_completeness_on_the_embedded_model_and_at_the_width_of_minilm() -> None:
    model = tl_vzero.load_model("agreement-mini")
    complete(model, torch.tensor(model.tokenizer("the pictures of some hat [MASK] scaring marcus.")["input_ids"]), 6)
    complete(bridge(hf_bert(2, layers=6, heads=12, width=384)), IDS, TARGET)


@pytest.mark.parametrize("aggregate", ["norm", "sum"])
@pytest.mark.parametrize(("dtype", "tolerance"), EXACT)
@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
@pytest.mark.parametrize("route", [loaded, bridge])
def test_deep_lift_where_captum_has_a_rule(
    route: Any, architecture: str, dtype: torch.dtype, tolerance: float, aggregate: str
) -> None:
    hf_model = hf_relu(architecture).to(dtype)
    expected = by_layer(LayerDeepLift, copy.deepcopy(hf_model), baselines=torch.full((1, len(IDS)), 7))
    model = route(hf_model)
    scores = explained(model, "deep_lift", baseline=7, aggregate=aggregate)
    above = 2 if architecture == "gpt2" else 3  # BERT's head has an activation too
    assert scores.metadata["rescaled"] == [["ReLU"] * (above - layer) for layer in range(3)]
    assert_same(scores, expected, tolerance)
    plain = explained(model, "gradient_x_input", aggregate=aggregate)
    assert not torch.allclose(scores.values, plain.values, rtol=0.01)


@pytest.mark.parametrize(("route", "architecture"), MOST_ROUTES)
def test_deep_lift_where_captum_has_none_is_gradient_times_difference(route: str, architecture: str) -> None:
    hf_model = HF_BUILDERS[architecture](1)
    model = ROUTES[route, architecture](hf_model)
    scores = explained(model, "deep_lift", aggregate="sum")
    assert scores.metadata["rescaled"] == [[], [], []]
    assert torch.allclose(scores.values, explained(model, "gradient_x_input", aggregate="sum").values, atol=1e-5)
    if architecture in ("bert", "gpt2"):
        tokens = torch.full((1, len(IDS)), 7)
        assert_same(
            explained(model, "deep_lift", baseline=7, aggregate="sum"),
            by_layer(LayerDeepLift, hf_model, baselines=tokens),
            1e-5,
        )


def test_deep_lift_refuses_an_activation_that_captum_cannot_see() -> None:
    hooked = legacy("HookedTransformer")
    from transformer_lens import HookedTransformerConfig

    config = HookedTransformerConfig(
        d_model=16, d_head=8, n_heads=2, n_layers=2, n_ctx=16, d_vocab=60, act_fn="relu", seed=0, device="cpu"
    )
    with third_party_warnings_ignored():
        model = hooked(config)
    explained(model, "gradient_x_input")
    with left_as_found(model), pytest.raises(ModelError, match="relu by a function"):
        explained(model, "deep_lift")


def test_deep_lift_refuses_an_activation_that_blocks_share() -> None:
    hf_model = hf_relu("bert")
    blocks = references.blocks_of(hf_model)
    blocks[1].intermediate.intermediate_act_fn = blocks[2].intermediate.intermediate_act_fn
    model = loaded(hf_model)
    with left_as_found(model), pytest.raises(ModelError, match="share an activation"):
        explained(model, "deep_lift")


@pytest.mark.parametrize("method", FAMILY)
@pytest.mark.parametrize("architecture", HF_BUILDERS)
def test_only_what_the_target_can_see_counts(method: str, architecture: str) -> None:
    scores = explained(loaded(HF_BUILDERS[architecture](1)), method)
    assert scores.partial and scores.dest_positions == (TARGET,) and scores.method == method
    assert (scores.values >= 0).all() and (scores.values[:, 0, TARGET] > 0).all()
    if is_causal(architecture):
        assert (scores.values[:, 0, TARGET + 1 :] == 0).all()
        assert (scores.values[:-1, 0, :TARGET] > 0).any()
    others = [position for position in range(len(IDS)) if position != TARGET]
    assert (scores.values[-1, 0, others] == 0).all()  # the head reads each position by itself
    rows = scores.normalized().values.sum(-1)
    assert torch.allclose(rows, torch.ones_like(rows))
    with pytest.raises(tl_vzero.TLVZeroError, match="rollout"):
        scores.rollout()


@pytest.mark.parametrize("method", FAMILY)
def test_the_target_is_the_mask_token_and_the_logit_the_likeliest(method: str) -> None:
    model = tl_vzero.load_model("agreement-mini")
    text = "the pictures of some hat [MASK] scaring marcus."
    scores = tl_vzero.score(model, text, method=method)
    assert scores.dest_tokens == ("[MASK]",) and scores.values.shape == (4, 1, 11)
    (likeliest,) = scores.metadata["target_ids"]
    same = tl_vzero.score(model, text, method=method, target=scores.dest_positions[0], target_ids=likeliest)
    assert torch.equal(same.values, scores.values)
    words = tl_vzero.score(model, text, method=method, target_ids=("are", "is"))
    assert len(words.metadata["target_ids"]) == 2 and words.words().dest_tokens == ("[MASK]",)
    assert words.metadata["versions"]["captum"]


@pytest.mark.parametrize("method", FAMILY)
def test_a_logit_difference_is_the_difference_of_the_logits(method: str) -> None:
    model = loaded(hf_bert(1).double())
    good, bad, pair = (
        explained(model, method, target_ids=ids, aggregate="sum").values for ids in (GOOD, BAD, (GOOD, BAD))
    )
    assert torch.allclose(good - bad, pair, atol=1e-12)


@pytest.mark.parametrize("method", FAMILY)
def test_batches_and_layers(method: str) -> None:
    model = loaded(hf_gpt2(1).double())
    ids = torch.nn.utils.rnn.pad_sequence([IDS[:4], IDS, IDS[:5]], batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones(n) for n in (4, 7, 5)], batch_first=True)
    together = explained(model, method, ids, attention_mask=mask, target=[3, TARGET, -1], layers=[-1, 0])
    for scores, (n, target) in zip(together, [(4, 3), (7, TARGET), (5, 4)], strict=True):
        assert scores.layers == (2, 0) and scores.dest_positions == (target,)
        alone = explained(model, method, IDS[:n], target=target)
        assert torch.allclose(scores.values, alone.values[[2, 0]], rtol=1e-9, atol=1e-12)
    assert [scores.dest_positions for scores in explained(model, method, ids, attention_mask=mask, target=2)] == [
        (2,)
    ] * 3


def test_steps_in_parts_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded(hf_bert(1).double())
    whole = explained(model, WITH_STEPS)
    monkeypatch.setattr("tl_vzero.methods.gradients.LOGITS_PER_BATCH", 1)
    assert torch.allclose(explained(model, WITH_STEPS).values, whole.values, rtol=1e-7, atol=0)


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
@pytest.mark.parametrize("method", FAMILY)
def test_nothing_is_left_in_a_model_that_the_rescale_rule_changes(method: str, architecture: str) -> None:
    model = loaded(hf_relu(architecture)).train()
    explained(model, "gradient_x_input")  # a bridge notes on its modules that they ran
    names = {name: set(vars(module)) for name, module in every_module(model).items()}
    for frozen in (False, True):
        model.requires_grad_(not frozen)
        with left_as_found(model):
            explained(model, method)
        with left_as_found(model), stopped_in_a_backward_pass(), pytest.raises(KeyboardInterrupt):
            explained(model, method)
        assert {name: set(vars(module)) for name, module in every_module(model).items()} == names


@contextmanager
def stopped_in_a_backward_pass() -> Iterator[None]:
    def stop(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.autograd, "grad", stop)
        yield


@pytest.mark.parametrize("method", FAMILY)
def test_warnings_of_the_users_stay_as_they_were(method: str) -> None:
    before = list(warnings.filters)
    explained(loaded(hf_bert()), method)
    assert warnings.filters == before


BAD_OPTIONS = [
    pytest.param({"target": None}, InputError, "no target given", id="no_target"),
    pytest.param({"target": 7}, InputError, "outside the sentence", id="target_outside"),
    pytest.param({"target": 1.5}, InputTypeError, "target is float", id="target_of_a_wrong_type"),
    pytest.param({"target": [1, 2]}, InputError, "2 positions for 1 sentences", id="too_many_targets"),
    pytest.param({"target_ids": 60}, InputError, "vocabulary", id="target_id_outside"),
    pytest.param({"target_ids": "xyzzy"}, InputError, "one token", id="target_word_unknown"),
    pytest.param({"aggregate": "nrm"}, InputError, "did you mean 'norm'", id="aggregate"),
    pytest.param({"layers": 3}, InputError, "layers holds 3", id="layers"),
]
BAD_BASELINES = [
    pytest.param({"baseline": 60}, InputError, "vocabulary", id="token_outside"),
    pytest.param({"baseline": True}, InputTypeError, "baseline is bool", id="bool"),
    pytest.param({"baseline": "zero"}, InputTypeError, "baseline is str", id="word"),
    pytest.param({"baseline": torch.zeros(7, 16)}, InputError, r"expected \[16\]", id="shape"),
    pytest.param({"baseline": torch.full((16,), torch.nan)}, InputError, "finite", id="nan"),
]
BAD_STEPS = [
    pytest.param({"steps": 0}, InputError, "at least 1", id="no_steps"),
    pytest.param({"steps": -5}, InputError, "at least 1", id="negative_steps"),
    pytest.param({"steps": 2.0}, InputTypeError, "steps is float", id="float_steps"),
    pytest.param({"steps": True}, InputTypeError, "steps is bool", id="bool_steps"),
]
CASES = [
    *[(method, *case.values) for method in FAMILY for case in BAD_OPTIONS],
    *[(method, *case.values) for method in FAMILY[1:] for case in BAD_BASELINES],
    *[(WITH_STEPS, *case.values) for case in BAD_STEPS],
]


@pytest.mark.parametrize(("method", "options", "error", "said"), CASES)
def test_bad_input(method: str, options: dict[str, Any], error: type[Exception], said: str) -> None:
    model = loaded(hf_bert())
    with type_checks_off(), left_as_found(model), pytest.raises(error, match=said):
        explained(model, method, **options)


@pytest.mark.parametrize("method", FAMILY)
def test_a_model_without_a_head(method: str) -> None:
    model = loaded(hf_bert_headless())
    with left_as_found(model), pytest.raises(HeadlessModelError, match="no trained prediction head"):
        explained(model, method)


@pytest.mark.parametrize("method", FAMILY)
def test_without_captum_the_error_says_what_to_install(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "captum", None)
    monkeypatch.delitem(sys.modules, "captum.attr")
    with pytest.raises(DependencyError, match=r"pip install '.*\[gradients\]'"):
        explained(loaded(hf_bert()), method)


def metric_of_output(name: str, stack: str, layer: int, output: Tensor) -> tuple[Tensor, Tensor]:
    """The difference of the decoder's logits where a block writes this, and its gradient, by plain hooks."""
    leaf = output.clone().requires_grad_()
    put_in = {PAIRED[name].block(stack, layer): lambda out: (leaf, *out[1:]) if isinstance(out, tuple) else leaf}
    measured = difference(PAIRED[name].logits(put_in))
    return measured.detach(), torch.autograd.grad(measured, leaf)[0]


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
@pytest.mark.parametrize("name", IN_DOUBLE)
def test_an_encoder_decoders_logit_by_plain_hooks(name: str, stack: str) -> None:
    """To the encoder's tokens and to the decoder's; by integrated gradients from a vector, and in sum."""
    vector = torch.linspace(-1, 1, 16, dtype=torch.float64)
    options: dict[str, Any] = {"stack": stack, "decoder_inputs": torch.tensor(WRITTEN), "target": OUT_TARGET}
    call = torch.tensor(READ), "gradient_x_input"
    model, options = double_model(name), options | {"target_ids": (BETTER, WORSE)}
    scores = tl_vzero.score(model, *call, **options)
    options |= {"aggregate": "sum", "baseline": vector, "layers": 0}
    integrated = tl_vzero.score(model, call[0], "integrated_gradients", **options)
    shown, _ = PAIRED[name].run()
    for layer in layers_of(name, stack):
        output = shown[PAIRED[name].block(stack, layer)]
        expected = (metric_of_output(name, stack, layer, output)[1] * output)[0].norm(dim=-1)
        torch.testing.assert_close(scores.values[layer, 0], expected, rtol=1e-5, atol=1e-6)
        if layer == 0:
            change = metric_of_output(name, stack, 0, output)[0]
            change = change - metric_of_output(name, stack, 0, vector.expand_as(output))[0]
    missed = integrated.metadata["convergence_delta"][0]
    assert integrated.values.sum().item() - missed == pytest.approx(change.item(), abs=1e-5)
    assert abs(missed) <= 0.01 * abs(change.item())
    assert (scores.dest_positions, scores.crosses) == ((OUT_TARGET,), stack == "encoder")
    assert len(scores.src_tokens) == len(READ if stack == "encoder" else WRITTEN)


def test_a_token_is_the_baseline_of_what_a_stack_reads() -> None:
    name, options = IN_DOUBLE[-1], {"target_ids": BETTER, "aggregate": "sum", "baseline": 9, "layers": 1}
    for stack in ("encoder", "decoder"):
        of_stack = {"stack": stack, "decoder_inputs": torch.tensor(WRITTEN)}
        scores = tl_vzero.score(double_model(name), torch.tensor(READ), "integrated_gradients", **of_stack, **options)
        read = ([9] * len(READ), WRITTEN) if stack == "encoder" else (READ, [9] * len(WRITTEN))
        blank = PAIRED[name].run(*read)[0][PAIRED[name].block(stack, 1)]
        put_in = put(slice(None), lambda _, blank=blank: blank)
        changed = PAIRED[name].logits({PAIRED[name].block(stack, 1): put_in})
        change = (PAIRED[name].logits({}) - changed)[-1, BETTER]
        missed = scores.metadata["convergence_delta"][0]
        assert scores.values.sum().item() - missed == pytest.approx(change.item(), abs=1e-5)


def test_of_an_encoder_decoder_deep_lift_is_gradient_times_output_without_a_rule_and_cross_is_refused() -> None:
    model, options = double_model(IN_DOUBLE[-1]), {"decoder_inputs": torch.tensor(WRITTEN), "target_ids": BETTER}
    with pytest.raises(InputError, match="expected 'encoder' or 'decoder'"):
        tl_vzero.score(model, torch.tensor(READ), "gradient_x_input", stack="cross", **options)
    with pytest.raises(InputError, match="no decoder_inputs given"):
        tl_vzero.score(model, torch.tensor(READ), "gradient_x_input", stack="encoder")
    if IN_DOUBLE[-1] == "BART":  # GELU has no rule
        call = torch.tensor(READ), "gradient_x_input"
        expected = tl_vzero.score(model, *call, stack="encoder", **options)
        lifted = tl_vzero.score(model, call[0], "deep_lift", stack="encoder", **options)
        torch.testing.assert_close(lifted.values, expected.values, rtol=1e-6, atol=1e-9)
