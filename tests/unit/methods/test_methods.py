"""Laws that every method keeps, and what its vectors are."""

import copy
from typing import Any

import pytest
import torch
from support import references
from support.architecture_row import WITH_CAPS
from support.models import HF_BUILDERS, build, hf_bert, hf_gpt2, is_causal, loaded, randomise
from torch import Tensor
from transformers import Gemma2Config, Gemma2ForCausalLM

import tl_vzero
from tl_vzero.errors import InputError, InputTypeError, ModelError

IDS = torch.tensor([2, 5, 17, 9, 9, 31, 3])
POST_NORM_ONLY = ("attention_norm_res_ln", "globenc")
BY_SLOPES = ("decompx",)  # needs an MLP that is neither gated nor beside attention
TARGETED = [name for name, method in tl_vzero.METHODS.items() if "target" in method.needs]  # see test_gradients
OTHERS = [name for name in tl_vzero.METHODS if name not in ("value_zeroing", *TARGETED)]
SHARES = [name for name in OTHERS if not tl_vzero.METHODS[name].signed]
READ_OFF = [name for name in OTHERS if name != "hta"]


def model_in_float64(architecture: str) -> Any:
    return tl_vzero.load_model(HF_BUILDERS[architecture](1), dtype=torch.float64)


def defined(method: str, architecture: str) -> bool:
    if method in BY_SLOPES:
        return architecture in ("bert", "gpt2")
    return architecture == "bert" or method not in POST_NORM_ONLY


CASES = [
    pytest.param(method, architecture, id=f"{method}-{architecture}")
    for method in OTHERS
    for architecture in HF_BUILDERS
    if defined(method, architecture)
]
OF_SHARES = [case for case in CASES if case.values[0] in SHARES]


def scores_of(model: Any, ids: Tensor, method: str, **options: Any) -> Any:
    return tl_vzero.score(model, ids, method=method, **options)


@pytest.mark.parametrize(("method", "architecture"), OF_SHARES)
def test_rows_sum_to_one_and_causal_maps_are_causal(method: str, architecture: str) -> None:
    values = scores_of(model_in_float64(architecture), IDS, method).normalized().values
    assert values.shape == (3, len(IDS), len(IDS))
    assert (values >= 0).all()
    assert torch.allclose(values.sum(-1), torch.ones_like(values[..., 0]))
    if is_causal(architecture):
        assert (values.triu(1) == 0).all()


@pytest.mark.parametrize(("method", "architecture"), CASES)
def test_a_padded_batch_equals_the_sentences_alone(method: str, architecture: str) -> None:
    model = model_in_float64(architecture)
    lengths = [4, 7, 4]
    ids = torch.nn.utils.rnn.pad_sequence([IDS[:n] for n in lengths], batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones(n) for n in lengths], batch_first=True)
    together = scores_of(model, ids, method, attention_mask=mask)
    for n, scores in zip(lengths, together, strict=True):
        assert torch.allclose(scores.values, scores_of(model, IDS[:n], method).values, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", OTHERS)
def test_chosen_layers_are_those_of_the_whole(method: str) -> None:
    model = model_in_float64("bert")
    part = scores_of(model, IDS, method, layers=[-1, 0])
    assert part.layers == (2, 0)
    assert torch.allclose(part.values, scores_of(model, IDS, method).values[[2, 0]], rtol=1e-12, atol=0)


@pytest.mark.parametrize("method", OTHERS)
def test_chosen_destinations_are_rows_of_the_whole(method: str) -> None:
    model = model_in_float64("bert")
    part = scores_of(model, IDS, method, destinations=[-1, 2])
    assert (part.dest_positions, part.src_positions) == ((6, 2), tuple(range(7))) and part.partial
    whole = scores_of(model, IDS, method)
    assert torch.allclose(part.values, whole.values[:, [6, 2]], rtol=1e-9, atol=1e-12)
    assert part.dest_tokens == tuple(whole.dest_tokens[i] for i in (6, 2))
    with pytest.raises(InputError, match="destinations holds 7"):
        scores_of(model, IDS, method, destinations=7)


@pytest.mark.parametrize("options", [{"propagate": True}, {"to": "embeddings"}], ids=["decompx", "hta"])
def test_chosen_destinations_through_all_layers(options: dict[str, Any]) -> None:
    model, method = model_in_float64("bert"), "decompx" if "propagate" in options else "hta"
    part = scores_of(model, IDS, method, destinations=[3], **options)
    assert torch.allclose(part.values, scores_of(model, IDS, method, **options).values[:, [3]], rtol=1e-9, atol=1e-12)


def test_chosen_destinations_of_heads_and_of_sentences_of_several_lengths() -> None:
    model = model_in_float64("gpt2")
    heads = scores_of(model, IDS, "attention", per_head=True, destinations=[1])
    assert torch.equal(heads.values, scores_of(model, IDS, "attention", per_head=True).values[:, :, [1]])
    ids = torch.nn.utils.rnn.pad_sequence([IDS[:4], IDS], batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones(4), torch.ones(7)], batch_first=True)
    short, long = scores_of(model, ids, "attention_norm", attention_mask=mask, destinations=[-1])
    assert (short.dest_positions, long.dest_positions) == ((3,), (6,))


@pytest.mark.parametrize("method", READ_OFF)
def test_the_users_own_cache_gives_the_same(method: str) -> None:
    model = model_in_float64("bert")
    _, cache = model.run_with_cache(IDS.unsqueeze(0))
    assert torch.allclose(
        scores_of(model, IDS, method, cache=cache).values, scores_of(model, IDS, method).values, rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("method", ["attention", "attention_norm"])
@pytest.mark.parametrize("architecture", HF_BUILDERS)
def test_maps_of_heads(method: str, architecture: str) -> None:
    scores = scores_of(model_in_float64(architecture), IDS, method, per_head=True)
    n_heads = 4 if architecture == "llama" else 2
    assert scores.values.shape == (3, n_heads, len(IDS), len(IDS)) and scores.heads == tuple(range(n_heads))
    whole = scores_of(model_in_float64(architecture), IDS, method).values
    if method == "attention":
        assert torch.allclose(scores.values.mean(1), whole)
    else:  # heads may cancel, never add to more than their sizes
        assert (whole <= scores.values.sum(1) + 1e-12).all()


@pytest.mark.parametrize("method", ["alti", "globenc", "attention_rollout", "random"])
def test_a_method_without_heads_says_so(method: str) -> None:
    with pytest.raises(InputError, match="per_head"):
        scores_of(loaded(hf_bert()), IDS, method, per_head=True)


@pytest.mark.parametrize("method", POST_NORM_ONLY)
@pytest.mark.parametrize("architecture", [name for name in HF_BUILDERS if name != "bert"])
def test_undefined_for_an_architecture(method: str, architecture: str) -> None:
    with pytest.raises(ModelError, match=f"{method} is undefined for this model"):
        scores_of(model_in_float64(architecture), IDS, method)


@pytest.mark.parametrize("stream", [1.0, 1e7], ids=["", "large stream"])
@pytest.mark.parametrize("method", ["attention_norm_res", "alti", "information_flow", *POST_NORM_ONLY])
def test_undefined_where_a_norm_stands_between_attention_and_the_residual_stream(method: str, stream: float) -> None:
    config = Gemma2Config(
        vocab_size=60, hidden_size=16, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, pad_token_id=0, bos_token_id=2, eos_token_id=3, **WITH_CAPS,
    )  # fmt: skip
    hf_model = randomise(Gemma2ForCausalLM(config), 0)
    hf_model.model.embed_tokens.weight.data *= stream
    model = tl_vzero.load_model(hf_model, dtype=torch.float64)
    with pytest.raises(ModelError, match=f"{method} is undefined"):
        scores_of(model, IDS, method)


def test_attention_norm_in_plain_loops() -> None:
    hf_model, model = build("load_model", "bert")
    hf_model.set_attn_implementation("eager")
    with torch.no_grad():
        patterns = hf_model(IDS.unsqueeze(0), output_attentions=True).attentions
        state = hf_model(IDS.unsqueeze(0), output_hidden_states=True).hidden_states[0][0]
    attention = hf_model.bert.encoder.layer[0].attention
    value = attention.self.value(state).view(len(IDS), 2, 8)
    out = attention.output.dense.weight.view(16, 2, 8)
    values = scores_of(model, IDS, "attention_norm").values[0]
    for i in range(len(IDS)):
        for j in range(len(IDS)):
            brought = sum(patterns[0][0, h, i, j] * out[:, h] @ value[j, h] for h in range(2))
            assert torch.isclose(values[i, j], brought.norm().float(), rtol=1e-4)


def test_alti_and_the_norms_of_a_lone_token() -> None:
    """All that the first norm gives comes from the only token there is."""
    model = model_in_float64("bert")
    for method in ("alti", "attention_norm_res_ln", "globenc"):
        assert torch.equal(scores_of(model, IDS[:1], method).normalized().values, torch.ones(3, 1, 1).double())


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_decomposed_vectors_sum_to_the_residual_stream_after_attention(architecture: str) -> None:
    from tl_vzero.clean import visit_clean_blocks
    from tl_vzero.methods.layer import Layer
    from tl_vzero.models.blocks import block_weights
    from tl_vzero.models.run import quiet
    from tl_vzero.models.sites import sites_of

    model = model_in_float64(architecture)
    sums: list[Tensor] = []
    streams: list[Tensor] = []

    def visit(index: int, block: Any) -> None:
        layer = Layer(index, block, torch.float64, block_weights(model, index, torch.float64))
        summed = [vectors.sum(2) for _, vectors in layer.vectors(residual=True)]
        sums.append(torch.cat(summed, dim=1) + layer.weights.b_o)
        streams.append(block.attention_output + block.input)

    with quiet(model):
        visit_clean_blocks(model, sites_of(model), IDS.unsqueeze(0), (0, 1, 2), visit)
    for summed, stream in zip(sums, streams, strict=True):
        assert (summed - stream).abs().max() <= 1e-12 * stream.abs().max()


def test_vectors_in_parts_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_in_float64("bert")
    whole = {method: scores_of(model, IDS, method).values for method in ("globenc", "alti", "attention_norm_res")}
    monkeypatch.setattr("tl_vzero.methods.layer.NUMBERS_AT_A_TIME", 1)
    for method, values in whole.items():
        assert torch.allclose(scores_of(model, IDS, method).values, values, rtol=1e-12, atol=0)


def test_flow_through_one_layer_is_that_layer_and_through_two_is_at_most_what_leaves() -> None:
    model = model_in_float64("bert")
    pattern = scores_of(model, IDS, "attention").values
    first = (pattern[0] + torch.eye(len(IDS))) / 2
    assert torch.allclose(scores_of(model, IDS, "attention_flow").values[0], first, atol=1e-8)


def test_rollout_of_attention_is_attention_rollout() -> None:
    model = model_in_float64("gpt2")
    expected = scores_of(model, IDS, "attention").rollout()
    rolled = scores_of(model, IDS, "attention_rollout")
    assert rolled.stage == expected.stage == "rollout"
    assert torch.allclose(rolled.values, expected.values, rtol=1e-12, atol=0)
    with pytest.raises(tl_vzero.TLVZeroError, match="rollout"):
        rolled.rollout()


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_hidden_token_attribution_is_the_size_of_autograds_jacobian(architecture: str) -> None:
    hf_model = HF_BUILDERS[architecture](1).double()
    model = tl_vzero.load_model(copy.deepcopy(hf_model))
    states = hf_model(IDS.unsqueeze(0), output_hidden_states=True).hidden_states
    block = references.blocks_of(hf_model)[1]

    def run(state: Tensor) -> Tensor:
        output = block(state.unsqueeze(0))
        return (output[0] if isinstance(output, tuple) else output).view_as(state)

    jacobian = torch.autograd.functional.jacobian(run, states[1][0].detach())
    scores = scores_of(model, IDS, "hta", layers=1)
    assert torch.allclose(scores.values[0], jacobian.square().sum(dim=(1, 3)).sqrt(), rtol=1e-9, atol=1e-12)


def test_hidden_token_attribution_to_the_embeddings_begins_as_the_first_layer() -> None:
    model = model_in_float64("bert")
    through = scores_of(model, IDS, "hta", to="embeddings")
    assert torch.allclose(through.values[0], scores_of(model, IDS, "hta").normalized().values[0], rtol=1e-9, atol=0)
    with pytest.raises(tl_vzero.TLVZeroError, match="rollout"):
        through.rollout()
    with pytest.raises(InputError, match="did you mean 'embeddings'"):
        scores_of(model, IDS, "hta", to="embedings")


def test_random_is_seeded() -> None:
    model = loaded(hf_gpt2())
    values = scores_of(model, IDS, "random").values
    assert torch.equal(values, scores_of(model, IDS, "random", seed=0).values)
    assert not torch.equal(values, scores_of(model, IDS, "random", seed=1).values)
    assert not torch.equal(values[0], values[1])
    with pytest.raises(InputTypeError, match="seed"):
        scores_of(model, IDS, "random", seed=True)


def test_a_hook_of_the_users_stops_what_reads_weights_and_not_what_reads_patterns() -> None:
    model = loaded(hf_bert())
    with model.hooks(fwd_hooks=[("blocks.0.attn.hook_v", lambda value, hook: 2 * value)]):
        scores_of(model, IDS, "attention")
        with pytest.raises(ModelError, match="hooks of yours"):
            scores_of(model, IDS, "attention_norm")


def test_an_unknown_option_is_named() -> None:
    with pytest.raises(TypeError, match="sed"):
        scores_of(loaded(hf_bert()), IDS, "attention", sed=1)


@pytest.mark.parametrize("method", tl_vzero.METHODS)
def test_a_method_says_what_it_is(method: str) -> None:
    entry = tl_vzero.METHODS[method]
    assert entry.summary and entry.reference and entry.defined_for
