"""Another vector in a value's place: laws, and both engines against plain hooks in float64 on many architectures."""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from support.architecture_row import IDS
from support.architectures import ARCHITECTURES, ON_THIS_LINE
from support.laws import assert_close
from support.models import build, hf_bert, loaded
from support.paired import ON_THIS_LINE as PAIRED_HERE
from support.paired import PAIRED, READ, STACKS, stack_options
from support.plain_hooks import plain_value_zeroing, wide_copy
from support.references import row_normalized
from support.signal_rows import SIGNALS
from support.signal_rows import model_of as signal_model
from support.state import left_as_found
from torch import Tensor

import tl_vzero
from tl_vzero.clean import clean_run
from tl_vzero.models.contracts import check_contracts

SEVERAL = [
    "BERT", "RoBERTa", "DistilBERT", "ModernBERT", "GPT-2", "GPT-NeoX, Pythia", "GPT-J", "OPT", "Falcon", "Llama",
    "Mixtral", "Gemma 2", "Phi 3", "GLM 4", "OLMo 2", "Command R",
]  # fmt: skip
NAMES = [name for name in SEVERAL if name in ON_THIS_LINE]
ENGINES = ["closed_form", "hooks"]
each_engine = pytest.mark.parametrize("engine", ENGINES)


@cache
def model_of(name: str) -> Any:
    return loaded(ARCHITECTURES[name].tiny())


@cache
def in_float64(name: str) -> Any:
    """Where a row moves little, hooks on a float32 model see little but the rounding of its outputs."""
    return loaded(wide_copy((ARCHITECTURES | PAIRED)[name].tiny()))


def clean_values(model: Any, ids: list[int], stack: str | None = None) -> Tensor:
    """A sentence's values, `[layer, position, head, d_head]`."""
    sites = check_contracts(model, stack)
    blocks = clean_run(model, sites, torch.tensor([ids]), range(sites.n_layers))
    return torch.stack([blocks[layer].value[0] for layer in range(sites.n_layers)])


def mean_of(positions: slice = slice(None)) -> Callable[[int, Tensor], Tensor]:
    return lambda layer, values: values[positions].mean(dim=0).expand_as(values)


def fixed(vectors: Tensor, heads: slice = slice(None)) -> Callable[[int, Tensor], Tensor]:
    """Vectors of the caller's, as the reference takes them."""
    return lambda layer, values: vectors[layer].double()[..., heads, :].flatten(-2).expand_as(values)


def other_vectors(model: Any, ids: list[int], by_position: bool) -> Tensor:
    """Vectors about as large as a sentence's values, and nowhere near them."""
    values = clean_values(model, ids)
    noise = torch.randn(values.shape, generator=torch.Generator().manual_seed(1)) * values.std()
    return noise if by_position else noise[:, 0]


def assert_right(scores: Any, expected: Tensor, engine: str | None = None) -> None:
    assert engine is None or scores.metadata["engine"] == engine
    assert_close(row_normalized(scores.values.double()), row_normalized(expected), 5e-6)
    clear = expected >= 1e-7
    assert ((scores.values.double() - expected).abs() / expected)[clear].max() <= 1e-3


def scored(model: Any, ids: list[int] = IDS, **options: Any) -> Any:
    return tl_vzero.value_zeroing(model, torch.tensor(ids), **options)


@pytest.mark.parametrize("engine", ["auto", "hooks"])
@pytest.mark.parametrize("baseline", ["mean", "everywhere", "by position"])
@pytest.mark.parametrize("name", NAMES)
def test_each_baseline_gives_the_maps_of_plain_hooks(name: str, baseline: str, engine: str) -> None:
    model = in_float64(name) if engine == "hooks" else model_of(name)
    vectors = None if baseline == "mean" else other_vectors(model, IDS, baseline == "by position")
    put_in = mean_of() if vectors is None else fixed(vectors)
    scores = scored(model, baseline="mean" if vectors is None else vectors, engine=engine)
    assert_right(scores, ARCHITECTURES[name].reference(baseline=put_in))


@each_engine
@pytest.mark.parametrize("by_position", [False, True])
@pytest.mark.parametrize("name", ["BERT", "Llama"])
def test_parts_of_a_map_too(name: str, by_position: bool, engine: str) -> None:
    """Spans are replaced whole; heads are value heads, also where query heads share them."""
    model, row = model_of(name), ARCHITECTURES[name]
    vectors = other_vectors(model, IDS, by_position)
    spans = [[0, 3, 4], [1], [2, 8]]
    joint = scored(model, baseline=vectors, spans=spans, engine=engine)
    assert_right(joint, row.reference(baseline=fixed(vectors), spans=spans))
    of_last = row.reference(baseline=fixed(vectors, slice(1, 2)), heads=[1])
    per_head = scored(model, baseline=vectors, per_head=True, engine=engine)
    assert_close(row_normalized(per_head.values[:, 1].double()), row_normalized(of_last), 5e-6)
    one = scored(model, baseline=vectors, heads=[1], destinations=[4, -1], sources=[1, 3], engine=engine)
    assert_close(one.values.double(), of_last[:, [4, 8]][..., [1, 3]], 1e-6)


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("name", [name for name in PAIRED_HERE if name in ("T5", "BART")])
def test_an_encoder_decoder_gives_the_maps_of_plain_hooks(name: str, stack: str) -> None:
    """A mean is over the positions of the columns: of a cross map the encoder's."""
    scores = tl_vzero.value_zeroing(in_float64(name), torch.tensor(READ), **stack_options(stack), baseline="mean")
    own = slice(1, None) if stack == "decoder" else slice(None)  # the decoder starts with a special token
    assert_right(scores, PAIRED[name].reference(stack, baseline=mean_of(own)))


@each_engine
def test_an_image_gives_the_maps_of_plain_hooks(engine: str) -> None:
    """A mean is over patches, without [CLS]."""
    row, model = SIGNALS["ViT"], signal_model("ViT")
    scores = tl_vzero.value_zeroing(model, row.signal, baseline="mean", engine=engine)
    assert_right(scores, row.reference(baseline=mean_of(slice(1, None))), engine)


@each_engine
def test_a_mean_leaves_out_special_tokens_and_padding(engine: str) -> None:
    """Sentences of several lengths that share a padded run give what plain hooks give of each alone."""
    hf_model = hf_bert(layers=2)
    model = loaded(hf_model)
    sentences = [[2, 17, 5, 41, 3], [2, 9, 31, 28, 9, 52, 12, 3], [2, 3]]
    for ids, scores in zip(
        sentences, tl_vzero.value_zeroing(model, sentences, baseline="mean", engine=engine), strict=True
    ):
        own = slice(1, -1) if len(ids) > 2 else slice(None)  # there is nothing but special tokens
        expected = plain_value_zeroing(
            hf_model, ids, blocks="bert.encoder.layer", value="attention.self.value", baseline=mean_of(own)
        )
        assert_right(scores, expected, engine)


@each_engine
@pytest.mark.parametrize("name", ["BERT", "Llama", "Mixtral"])
def test_what_is_replaced_by_itself_moves_nothing(name: str, engine: str) -> None:
    model = model_of(name)
    other = [*IDS[1:], 7]
    both = tl_vzero.value_zeroing(model, [IDS, other], baseline=clean_values(model, IDS), engine=engine)
    assert not both[0].values.any() and both[1].values.any()
    spans = scored(model, baseline=clean_values(model, IDS), engine=engine, spans=[[0, 1], [3]], per_head=True)
    assert not spans.values.any()
    _, cache = model.run_with_cache(torch.tensor([IDS]))
    kept = torch.stack([cache[name][0] for name in check_contracts(model).values])
    assert not scored(model, baseline=kept, cache=cache, engine=engine).values.any()
    # Alone in a sentence, a token is its mean.
    assert not scored(model, IDS[:1], baseline="mean", engine=engine).values.any()


@each_engine
@pytest.mark.parametrize("name", ["BERT", "Llama"])
def test_zero_is_bitwise_the_default_and_vectors_of_zero_are_zero(name: str, engine: str) -> None:
    model = model_of(name)
    default = scored(model, engine=engine)
    assert torch.equal(scored(model, baseline="zero", engine=engine).values, default.values)
    of_zeros = scored(model, baseline=torch.zeros_like(clean_values(model, IDS)[:, 0]), engine=engine)
    assert_close(of_zeros.values, default.values, 1e-7)


@each_engine
def test_what_lies_far_off_is_right_where_nothing_is_left(engine: str) -> None:
    """All sources at once: attention's output is then what stands in alone, which no difference shows."""
    hf_model = hf_bert(width=288, heads=4, layers=2)  # wide enough to be computed in float32
    model = loaded(hf_model)
    vectors = 1e-3 * other_vectors(model, IDS, by_position=False)
    options: dict[str, Any] = {"spans": [list(range(len(IDS)))]}
    expected = plain_value_zeroing(
        hf_model, IDS, blocks="bert.encoder.layer", value="attention.self.value", baseline=fixed(vectors), **options
    )
    assert_close(scored(model, baseline=vectors, engine=engine, **options).values.double(), expected, 1e-5)


@pytest.mark.parametrize(("route", "architecture"), [("load_model", "bert"), ("load_model", "llama")])
def test_hooks_put_the_vectors_into_a_run(route: str, architecture: str) -> None:
    model = build(route, architecture)[1]
    ids = torch.tensor([IDS, IDS[::-1]])
    vectors = other_vectors(model, IDS, by_position=True)
    sites = check_contracts(model)

    def values_with(**options: Any) -> Tensor:
        seen: list[Tensor] = []
        hooks = tl_vzero.value_zeroing_hooks(model, [1, -1], layers=0, heads=[1], **options)
        model.run_with_hooks(ids, fwd_hooks=[*hooks, (sites.values[0], lambda value, hook: seen.append(value.clone()))])
        return seen[0]

    clean = values_with(baseline="zero")
    whole = model.run_with_cache(ids)[1][sites.values[0]]
    for options, put_in in (
        ({"baseline": vectors}, vectors[0].expand_as(whole)),
        ({"baseline": vectors[:, 2]}, vectors[0, 2].expand_as(whole)),
        ({"baseline": "mean"}, whole.double().mean(dim=1, keepdim=True).to(whole.dtype).expand_as(whole)),
        ({}, torch.zeros_like(whole)),
    ):
        expected = whole.clone()
        expected[:, [1, -1], 1] = put_in[:, [1, -1], 1]
        assert torch.equal(values_with(**options), expected)
    assert not clean[:, 1, 1].any()
    with left_as_found(model), pytest.raises(tl_vzero.TLVZeroError, match="9 positions, and this run has 4"):
        model.run_with_hooks(ids[:, :4], fwd_hooks=tl_vzero.value_zeroing_hooks(model, 1, baseline=vectors))


def test_tables_take_a_baseline() -> None:
    model = model_of("BERT")
    vectors = clean_values(model, IDS)
    table = tl_vzero.head_importance(model, torch.tensor(IDS), baseline=vectors)
    assert not table["mixing"].any() and len(table)
    joint = tl_vzero.span_interaction(model, torch.tensor(IDS), [[1, 2]], baseline="mean", layers=[1])
    spans = scored(model, spans=[[1, 2]], baseline="mean", layers=[1])
    assert joint["joint"].tolist() == spans.values.double().flatten().tolist()
