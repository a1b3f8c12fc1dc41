"""DecompX against plain loops, and the laws of its vectors; the norms that are measured without forming vectors."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.models import MOST_ROUTES, build, hf_bert, hf_gpt2, hf_llama, hf_neox, loaded, randomise
from support.state import left_as_found
from torch import Tensor
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2ForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

import tl_vzero
from tl_vzero.clean import CleanBlock, visit_clean_blocks
from tl_vzero.errors import ModelError
from tl_vzero.methods.decompx import carry_through, output_vectors, shares, slope
from tl_vzero.methods.layer import Layer
from tl_vzero.methods.norms import attention_norm, attention_norm_res
from tl_vzero.models.blocks import ACTIVATIONS, BlockWeights, block_weights, value_weights
from tl_vzero.models.head_steps import head_steps
from tl_vzero.models.run import quiet
from tl_vzero.models.sites import sites_of
from tl_vzero.registry import METHODS, resolved

IDS = torch.tensor([2, 5, 17, 9, 9, 31, 3])
UNGATED = [route for route in MOST_ROUTES if route.values[1] in ("bert", "gpt2")]
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}


def decompx(model: Any, ids: Tensor = IDS, **options: Any) -> Any:
    return tl_vzero.score(model, ids, method="decompx", **options)


def in_float64(hf_model: Any) -> Any:
    return tl_vzero.load_model(copy.deepcopy(hf_model), dtype=torch.float64)


def visit_layers(model: Any, visit: Callable[[Layer], None]) -> None:
    dtype = next(model.parameters()).dtype
    layers = range(sites_of(model).n_layers)

    def show(layer_index: int, block: CleanBlock) -> None:
        visit(Layer(layer_index, block, dtype, block_weights(model, layer_index, dtype)))

    with quiet(model):
        visit_clean_blocks(model, sites_of(model), IDS.unsqueeze(0), layers, show)


def sums_and_outputs(model: Any, *, propagate: bool) -> list[tuple[Tensor, Tensor]]:
    """Of each layer, what its decomposed vectors sum to, and the block's real output."""
    sums: list[tuple[Tensor, Tensor]] = []
    carried: list[Tensor] = []

    def visit(layer: Layer) -> None:
        if propagate and carried:
            carry_through(layer, carried[0], value_weights(model, layer.index, layer.dtype), True)
        else:
            carried[:] = [torch.cat([vectors for _, vectors in output_vectors(layer, True)], dim=1)]
        sums.append((carried[0].sum(dim=2), layer.block.output))

    visit_layers(model, visit)
    return sums


class Loops:
    """A BERT block's decomposed output by its definition, one vector at a time; `row[j]` is source j's vector."""

    def __init__(self, block: Any, x: Tensor, pattern: Tensor, share_biases: bool) -> None:
        self.block, self.x, self.pattern, self.share_biases = block, x, pattern, share_biases
        self.value, self.out = block.attention.self.value, block.attention.output
        self.n_heads = len(pattern)
        self.out_of_head = self.out.dense.weight.unflatten(1, (self.n_heads, -1))

    def share(self, row: list[Tensor], bias: Tensor) -> list[Tensor]:
        if not self.share_biases:
            return row
        parts = [float((u @ bias).abs()) for u in row]
        return [u + part / sum(parts) * bias for u, part in zip(row, parts, strict=True)]

    def norm(self, row: list[Tensor], clean: Tensor, layer_norm: Any) -> list[Tensor]:
        scale = (clean.var(unbiased=False) + layer_norm.eps).sqrt()
        return self.share([layer_norm.weight * (u - u.mean()) / scale for u in row], layer_norm.bias)

    def brought(self, i: int, values: Tensor) -> Tensor:
        by_head = values.view(len(values), self.n_heads, -1)
        return sum(self.out_of_head[:, h] @ (self.pattern[h, i] @ by_head[:, h]) for h in range(self.n_heads))

    def row(self, i: int, vectors: Tensor, begins: bool) -> list[Tensor]:
        """Destination i's row, from `vectors[k, j]` of what the block reads."""
        row = []
        for j in range(len(self.x)):
            values = vectors[:, j] @ self.value.weight.T
            if begins:
                values[j] += self.value.bias
            row.append(vectors[i, j] + self.brought(i, values))
        bias = self.out.dense.bias if begins else self.out.dense.bias + self.out.dense.weight @ self.value.bias
        middle = self.x[i] + self.brought(i, self.value(self.x)) + self.out.dense.bias
        row = self.norm(self.share(row, bias), middle, self.out.LayerNorm)
        return self.rest(row, self.out.LayerNorm(middle))

    def rest(self, row: list[Tensor], read: Tensor) -> list[Tensor]:
        up, down = self.block.intermediate.dense, self.block.output.dense
        before = up(read)
        after = self.block.intermediate.intermediate_act_fn(before)
        inner = [u * after / before for u in self.share([up.weight @ u for u in row], up.bias)]
        mlp = self.share([down.weight @ u for u in inner], down.bias)
        stream = [u + m for u, m in zip(row, mlp, strict=True)]
        return self.norm(stream, down(after) + read, self.block.output.LayerNorm)


@torch.no_grad()
def vectors_in_plain_loops(model: Any, first: int, *, propagate: bool, share_biases: bool) -> list[Tensor]:
    """The vectors of each block's output from block `first` on, which begins with its own input."""
    run = model.bert(IDS.unsqueeze(0), output_hidden_states=True, output_attentions=True)
    every: list[Tensor] = []
    for layer_index, block in list(enumerate(model.bert.encoder.layer))[first:]:
        x, begins = run.hidden_states[layer_index][0], layer_index == first or not propagate
        vectors = torch.diag_embed(x.T).permute(1, 2, 0) if begins else every[-1]
        loops = Loops(block, x, run.attentions[layer_index][0], share_biases)
        every.append(torch.stack([torch.stack(loops.row(i, vectors, begins)) for i in range(len(x))]))
    return every


def plain(hf_model: Any) -> Any:
    model = copy.deepcopy(hf_model).double()
    model.set_attn_implementation("eager")
    return model


def in_plain_loops(hf_model: Any, *, propagate: bool = False, share_biases: bool = True) -> Tensor:
    every = vectors_in_plain_loops(plain(hf_model), 0, propagate=propagate, share_biases=share_biases)
    return torch.stack([vectors.norm(dim=-1) for vectors in every])


@torch.no_grad()
def logits_in_plain_loops(hf_model: Any, target: int, first: int, *, share_biases: bool = True) -> Tensor:
    """Each source's part of every logit at the target, `[src, logit]`, by the definition of DecompX."""
    model = plain(hf_model)
    clean = model.bert(IDS.unsqueeze(0)).last_hidden_state[0, target]
    vectors = vectors_in_plain_loops(model, first, propagate=True, share_biases=share_biases)[-1][target]
    loops = Loops(model.bert.encoder.layer[0], clean, torch.ones(2, 1, 1), share_biases)

    def linear(row: list[Tensor], module: Any) -> list[Tensor]:
        return loops.share([module.weight @ u for u in row], module.bias)

    row = list(vectors)
    if isinstance(hf_model, BertForTokenClassification):
        return torch.stack(linear(row, model.classifier))
    if isinstance(hf_model, BertForSequenceClassification):
        before = model.bert.pooler.dense(clean)
        row = [u * before.tanh() / before for u in linear(row, model.bert.pooler.dense)]
        return torch.stack(linear(row, model.classifier))
    head = model.cls.predictions
    before = head.transform.dense(clean)
    after = head.transform.transform_act_fn(before)
    row = [u * after / before for u in linear(row, head.transform.dense)]
    return torch.stack(linear(loops.norm(row, after, head.transform.LayerNorm), head.decoder))


@pytest.mark.parametrize("share_biases", [True, False])
@pytest.mark.parametrize("propagate", [False, True])
def test_plain_loops_give_the_same(propagate: bool, share_biases: bool) -> None:
    options = {"propagate": propagate, "share_biases": share_biases}
    expected = in_plain_loops(hf_bert(1), **options)
    if propagate:
        expected = expected / expected.sum(dim=-1, keepdim=True)
    scores = decompx(in_float64(hf_bert(1)), **options)
    assert scores.stage == ("rollout" if propagate else "raw")
    assert torch.allclose(scores.values, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("propagate", [False, True])
@pytest.mark.parametrize(("route", "architecture"), UNGATED)
def test_vectors_sum_to_the_real_block_output(
    route: str, architecture: str, propagate: bool, dtype: torch.dtype
) -> None:
    model = build(route, architecture)[1].to(dtype)
    for summed, output in sums_and_outputs(model, propagate=propagate):
        assert (summed - output).abs().max() <= TOLERANCE[dtype] * output.abs().max()


@pytest.mark.parametrize("activation", ["relu", "gelu_new", "silu"])
def test_vectors_sum_to_the_output_with_other_activations(activation: str) -> None:
    config = BertConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=64, hidden_act=activation, pad_token_id=0,
    )  # fmt: skip
    for summed, output in sums_and_outputs(in_float64(randomise(BertForMaskedLM(config), 0)), propagate=True):
        assert (summed - output).abs().max() <= 1e-9 * output.abs().max()


def test_a_bias_that_no_vector_points_along_is_the_destinations_own() -> None:
    hf_model = hf_bert()
    with torch.no_grad():
        for block in hf_model.bert.encoder.layer:
            block.intermediate.dense.weight.zero_()
    for summed, output in sums_and_outputs(in_float64(hf_model), propagate=True):
        assert (summed - output).abs().max() <= 1e-9 * output.abs().max()
    parts = shares(torch.zeros(1, 2, 3, 4), torch.ones(4), torch.eye(3, dtype=torch.bool)[1:])
    assert torch.equal(parts[0], torch.eye(3)[1:])


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_slope_at_zero_is_its_limit_from_above(name: str) -> None:
    if name == "solu":
        pytest.skip("solu's slope depends on the other neurons")
    at_zero, near = slope(ACTIVATIONS[name], torch.tensor([0.0, 1e-5], dtype=torch.float64))
    assert torch.isclose(at_zero, near, atol=1e-5)
    before = torch.tensor([0.5, -0.25, 3.0], dtype=torch.float64)
    assert torch.allclose(slope(ACTIVATIONS[name], before) * before, ACTIVATIONS[name](before.clone()))


# Of each: the model, and the position that is explained.
HEADS: dict[str, tuple[Callable[[], Any], int]] = {
    "words": (lambda: hf_bert(1), 4),
    "sentence": (lambda: hf_bert(1, kind=BertForSequenceClassification), 0),
    "tokens": (lambda: hf_bert(1, kind=BertForTokenClassification), 4),
}
each_head = pytest.mark.parametrize("head", HEADS)


def logit_parts(model: Any, **options: Any) -> Any:
    return tl_vzero.score(model, IDS, method="decompx_logit", **options)


@each_head
@pytest.mark.parametrize("share_biases", [True, False])
def test_parts_of_a_logit_by_hand(head: str, share_biases: bool) -> None:
    build_model, target = HEADS[head]
    hf_model, how = build_model(), {"target": target, "share_biases": share_biases}
    model = in_float64(hf_model)
    expected = torch.stack(
        [logits_in_plain_loops(hf_model, target, first, share_biases=share_biases) for first in range(3)]
    )
    scores = logit_parts(model, target_ids=1, **how)
    assert scores.signed and scores.dest_positions == (target,)
    torch.testing.assert_close(scores.values[:, 0], expected[..., 1], rtol=1e-8, atol=1e-10)
    pair = logit_parts(model, target_ids=(1, 0), layers=[2, 0], **how)
    torch.testing.assert_close(pair.values[:, 0], (expected[..., 1] - expected[..., 0])[[2, 0]], rtol=1e-8, atol=1e-10)


@torch.no_grad()
def logits_of(hf_model: Any, target: int) -> Tensor:
    logits = plain(hf_model)(IDS.unsqueeze(0)).logits[0]
    return logits[target] if logits.ndim == 2 else logits


@each_head
def test_parts_sum_to_the_logit_and_what_biases_add_is_told_where_they_are_left_out(head: str) -> None:
    build_model, target = HEADS[head]
    logits, model = logits_of(build_model(), target), in_float64(build_model())
    best = int(logits.argmax())
    whole = logit_parts(model, target=target)
    assert whole.metadata["target_ids"] == [best]
    assert whole.metadata["logit"] == pytest.approx(float(logits[best]), rel=1e-9)
    assert whole.values.sum(-1).flatten().tolist() == pytest.approx([float(logits[best])] * 3, rel=1e-6)
    assert whole.metadata["of_no_source"] == pytest.approx([0.0] * 3, abs=1e-9)
    without = logit_parts(model, target=target, target_ids=(1, 0), share_biases=False)
    left = torch.tensor(without.metadata["of_no_source"]).double() + without.values.sum(-1).flatten()
    assert left.tolist() == pytest.approx([float(logits[1] - logits[0])] * 3, rel=1e-6)
    sizes = logit_parts(model, target=target, target_ids=(1, 0), share_biases=False, size=True)
    assert torch.equal(sizes.values, without.values.abs()) and not sizes.signed
    assert sizes.metadata["of_no_source"] == without.metadata["of_no_source"]


def small(kind: type, config: type, **names: int) -> Any:
    return randomise(kind(config(vocab_size=60, max_position_embeddings=40, pad_token_id=0, **names)), 2)


def roberta() -> Any:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return small(RobertaForSequenceClassification, RobertaConfig, **sizes)


def distilbert() -> Any:
    sizes = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32}
    return small(DistilBertForSequenceClassification, DistilBertConfig, **sizes)


@pytest.mark.parametrize(
    ("build_model", "target"),
    [
        (roberta, 0),
        (distilbert, 0),
        (lambda: hf_gpt2(1), 5),
        (lambda: hf_gpt2(1, kind=GPT2ForSequenceClassification), len(IDS) - 1),
    ],
)
def test_parts_of_other_heads_sum_to_the_logit(build_model: Callable[[], Any], target: int) -> None:
    logits = logits_of(build_model(), target)
    scores = logit_parts(in_float64(build_model()), target=target, target_ids=(1, 0))
    sums = scores.values.sum(-1).flatten().tolist()
    assert sums == pytest.approx([float(logits[1] - logits[0])] * len(sums), rel=1e-6)


@pytest.mark.parametrize(("route", "architecture"), UNGATED)
def test_parts_in_every_class_sum_to_the_logit(route: str, architecture: str) -> None:
    hf_model, model = build(route, architecture, 1)
    logits, model = logits_of(hf_model, 4), model.to(torch.float64)
    if route == "HookedEncoder":  # its head does all in one module, so that no step of it is seen
        with pytest.raises(ModelError, match="linear maps, norms and activations"):
            logit_parts(model, target=4)
        return
    scores = logit_parts(model, target=4, target_ids=(7, 11))
    assert scores.values.sum(-1).flatten().tolist() == pytest.approx([float(logits[7] - logits[11])] * 3, rel=1e-6)


def test_the_steps_of_a_head_with_an_rms_norm_give_its_logits() -> None:
    model, output = in_float64(hf_llama(1)), torch.randn(16, generator=torch.Generator().manual_seed(0)).double()

    def run() -> tuple[Tensor, Tensor]:
        return output, model.unembed(model.ln_final(output[None, None]))[0, 0]

    with quiet(model):
        logits, steps = run()[1], head_steps(model, run)
    read = output
    for step in steps:
        read = step.linear(read)
    assert len(steps) == 2 and torch.allclose(read, logits, rtol=0, atol=5e-6)  # Llama norms in float32


def test_a_head_that_is_no_chain_of_known_steps_is_refused() -> None:
    class Capped(BertForTokenClassification):  # type: ignore[misc]
        def forward(self, *arguments: Any, **named: Any) -> Any:
            output = super().forward(*arguments, **named)
            output.logits = 3 * output.logits.sin()
            return output

    model = in_float64(hf_bert(1, kind=Capped))
    with left_as_found(model), pytest.raises(ModelError, match="linear maps, norms and activations"):
        logit_parts(model, target=4)
    llama = build("load_model", "llama")[1]
    with left_as_found(llama), pytest.raises(ModelError, match="its MLP is gated"):
        logit_parts(llama, target=4)


def test_rows_causality_and_padding_where_vectors_are_carried_through_the_layers() -> None:
    model = in_float64(hf_gpt2(1))
    scores = decompx(model, propagate=True)
    assert torch.allclose(scores.values.sum(dim=-1), torch.ones(3, len(IDS)).double())
    assert (scores.values.triu(1) == 0).all()
    ids = torch.stack([IDS, torch.cat([IDS[:4], torch.zeros(3, dtype=torch.int64)])])
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
    whole, part = decompx(model, ids, propagate=True, attention_mask=mask)
    assert torch.allclose(whole.values, scores.values, rtol=1e-9, atol=1e-12)
    assert torch.allclose(part.values, decompx(model, IDS[:4], propagate=True).values, rtol=1e-9, atol=1e-12)
    with pytest.raises(tl_vzero.TLVZeroError, match="rollout"):
        scores.rollout()


def test_the_first_layer_is_the_same_either_way_and_chosen_layers_are_those_of_the_whole() -> None:
    model = in_float64(hf_bert())
    through = decompx(model, propagate=True)
    assert torch.allclose(through.values[0], decompx(model).normalized().values[0], rtol=1e-12, atol=0)
    part = decompx(model, propagate=True, layers=[-1, 0])
    assert part.layers == (2, 0)
    assert torch.allclose(part.values, through.values[[2, 0]], rtol=1e-12, atol=0)
    _, cache = model.run_with_cache(IDS.unsqueeze(0))
    assert torch.allclose(decompx(model, propagate=True, cache=cache).values, through.values, rtol=1e-9, atol=0)


@pytest.mark.parametrize("propagate", [False, True])
@pytest.mark.parametrize("hf_builder", [hf_bert, hf_gpt2])
def test_a_destination_at_a_time_gives_the_same(
    hf_builder: Callable[[], Any], propagate: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = in_float64(hf_builder())
    whole = decompx(model, propagate=propagate).values
    monkeypatch.setattr("tl_vzero.methods.layer.NUMBERS_AT_A_TIME", 1)
    assert torch.allclose(decompx(model, propagate=propagate).values, whole, rtol=1e-11, atol=0)


@pytest.mark.parametrize("propagate", [False, True])
@pytest.mark.parametrize(
    ("architecture", "reason"), [("llama", "its MLP is gated"), ("neox", "an MLP of its weights after attention")]
)
def test_undefined_for_an_architecture(architecture: str, reason: str, propagate: bool) -> None:
    model = build("load_model", architecture)[1]
    with left_as_found(model), pytest.raises(ModelError, match=f"decompx is undefined for this model.*{reason}"):
        decompx(model, propagate=propagate)


@pytest.mark.parametrize("propagate", [False, True])
@pytest.mark.parametrize(("stream", "written"), [(1e3, 1e-2), (1e4, 1.0)])
def test_an_mlp_beside_attention_is_no_mlp_after_it_though_the_stream_hides_it(
    stream: float, written: float, propagate: bool
) -> None:
    """Both fit up to the rounding of a large residual stream."""
    for parallel in (True, False):
        hf_model = hf_neox(width=64, heads=4)
        hf_model.gpt_neox.embed_in.weight.data *= stream
        for block in hf_model.gpt_neox.layers:
            block.use_parallel_residual = parallel
            for weight in block.mlp.dense_4h_to_h.parameters():
                weight.data *= written
        model = loaded(hf_model)
        if parallel:
            with pytest.raises(ModelError, match="its MLP reads what attention reads"):
                decompx(model, propagate=propagate)
        else:
            assert decompx(model, propagate=propagate).values.isfinite().all()


def test_a_replaced_mlp_and_a_hook_are_refused() -> None:
    model = loaded(hf_bert())
    with (
        model.hooks(fwd_hooks=[("blocks.1.attn.hook_v", lambda value, hook: 2 * value)]),
        pytest.raises(ModelError, match="hooks of yours"),
    ):
        decompx(model, propagate=True)
    model.cfg.act_fn = "relu"
    with pytest.raises(ModelError, match="an MLP of its weights"):
        decompx(model)


def test_values_that_their_weights_do_not_give_are_refused() -> None:
    def visit(layer: Layer) -> None:
        vectors = torch.zeros(1, len(IDS), len(IDS), 16).double()
        w_v, b_v = value_weights(model, layer.index, torch.float64)
        for weights in (None, (w_v, b_v + 1), (w_v[:1], b_v[:1])):
            with pytest.raises(ModelError, match="its value weights do not give its values"):
                carry_through(layer, vectors, weights, True)
        assert not vectors.any()

    model = in_float64(hf_bert())
    visit_layers(model, visit)


def cancelling_layer(dtype: torch.dtype, cancelling: float) -> tuple[Layer, Tensor]:
    """A layer whose two heads write nearly opposite vectors of each source, and F, formed one by one."""
    generator = torch.Generator().manual_seed(0)
    length, features = 5, 8

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    matrix = draw(4, features)
    w_o = torch.stack([matrix, -matrix + cancelling * draw(4, features)])
    value = draw(1, length, 1, 4).expand(-1, -1, 2, -1)
    pattern = draw(1, 1, length, length).softmax(dim=-1).expand(-1, 2, -1, -1)
    x = draw(1, length, features)
    absent = dict.fromkeys(("w_in", "b_in", "w_gate", "b_gate", "w_out", "b_out", "activation", "norm1_post"))
    weights = BlockWeights(w_o, torch.zeros(features, dtype=dtype), **absent, norm1=None, norm2=None, norm2_post=None)
    vectors = torch.zeros(length, length, features, dtype=torch.float64)
    for head in range(2):
        for i in range(length):
            for j in range(length):
                vectors[i, j] += pattern[0, head, i, j].double() * (value[0, j, head] @ w_o[head]).double()
    return Layer(0, CleanBlock(x, value, pattern, x), dtype, weights), vectors


@pytest.mark.parametrize("cancelling", [1.0, 1e-2, 1e-4, 1e-7])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_sizes_without_vectors_where_heads_nearly_cancel(dtype: torch.dtype, cancelling: float) -> None:
    """As near as rounding what each head writes allows, at any degree of cancelling."""
    layer, vectors = cancelling_layer(dtype, cancelling)
    sizes, expected = attention_norm(layer)[0].double(), vectors.norm(dim=-1)
    rounding = 8 * torch.finfo(dtype).eps * torch.linalg.vector_norm(layer.written, dim=-1).max()
    assert ((sizes - expected).abs() <= 8 * torch.finfo(dtype).eps * expected + rounding).all()


def test_the_residual_connection_is_in_the_diagonal_only() -> None:
    layer, vectors = cancelling_layer(torch.float64, 1.0)
    layer.__dict__["_explained"] = ("pre_norm", layer.middle)
    vectors[range(5), range(5)] += layer.input[0]
    assert torch.allclose(attention_norm_res(layer)[0], vectors.norm(dim=-1), rtol=1e-12, atol=0)


def test_a_layer_that_several_methods_share_stays_as_it_is() -> None:
    vectors_read = (
        "attention_norm",
        "attention_norm_res",
        "attention_norm_res_ln",
        "globenc",
        "alti",
        "information_flow",
    )

    def visit(layer: Layer) -> None:
        first = {name: resolved(METHODS[name].layer.maps)(layer) for name in vectors_read}
        before = {name: held.clone() for name, held in vars(layer).items() if isinstance(held, Tensor)}
        for _ in output_vectors(layer, True):
            pass
        for name, values in first.items():
            assert torch.equal(resolved(METHODS[name].layer.maps)(layer), values)
        assert {"input", "pattern", "value", "written", "middle"} <= before.keys()
        assert all(torch.equal(getattr(layer, name), held) for name, held in before.items())

    visit_layers(in_float64(hf_bert()), visit)
