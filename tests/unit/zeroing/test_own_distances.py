"""A user's distance: recognised by what it is, not by its name, and harmless whatever it does with its arguments."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from support import references
from support.laws import assert_close, each_engine, narrow_model, scores_of, wide_model
from support.models import hf_bert, loaded
from torch import Tensor, nn

import tl_vzero
from tl_vzero.distance import DISTANCES, cosine_of_change
from tl_vzero.errors import InputError, InputTypeError, TLVZeroError

IDS = [2, 5, 9, 10, 3]


def manhattan(clean: Tensor, changed: Tensor) -> Tensor:
    return (clean - changed).abs().sum(-1)


def named(name: str, function: Callable[[Tensor, Tensor], Any]) -> Callable[[Tensor, Tensor], Any]:
    function.__name__ = function.__qualname__ = name
    return function


# --- recognised -----------------------------------------------------------------------------------------


@each_engine
@pytest.mark.parametrize("name", ["cosine", "euclidean", "cosine_of_change"])
@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_a_name_does_not_make_a_distance_the_librarys(architecture: str, name: str, engine: str) -> None:
    """The closed form once took the built-in for any function of that name: 1.2 in place of 1583."""
    hf_model, model = wide_model("load_model", architecture)
    distance = named(name, lambda clean, changed: 1000 * manhattan(clean, changed))
    scores = scores_of(model, IDS, distance=distance, engine=engine)
    expected = references.value_zeroing(hf_model, IDS, distance=lambda a, b: 1000 * manhattan(a, b))
    assert_close(scores.values, expected, 1e-6 * expected.max().item())
    assert scores.metadata["options"]["distance"] == f"{name} (a callable)"


@each_engine
@pytest.mark.parametrize("name", DISTANCES)
def test_the_librarys_own_function_is_its_name(name: str, engine: str) -> None:
    _, model = narrow_model("load_model", "bert")
    by_name = scores_of(model, IDS, distance=name, engine=engine)
    by_function = scores_of(model, IDS, distance=getattr(tl_vzero.distance, name), engine=engine)
    assert torch.equal(by_function.values, by_name.values)
    assert by_function.metadata == by_name.metadata


def unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=-1, keepdim=True)


def standard(rows: Tensor) -> Tensor:
    return (rows - rows.mean(dim=-1, keepdim=True)) / rows.std(dim=-1, unbiased=False, keepdim=True)


PLAIN_FORMULAS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "manhattan": manhattan,
    "unit_euclidean": lambda a, b: (unit(a) - unit(b)).norm(dim=-1),
    "standardised_euclidean": lambda a, b: (standard(a) - standard(b)).norm(dim=-1),
}


@each_engine
@pytest.mark.parametrize("name", PLAIN_FORMULAS)
@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_a_name_gives_the_maps_of_its_plain_formula(architecture: str, name: str, engine: str) -> None:
    hf_model, model = narrow_model("load_model", architecture)
    expected = references.value_zeroing(hf_model, IDS, distance=PLAIN_FORMULAS[name])
    scores = scores_of(model, IDS, distance=name, engine=engine)
    assert scores.metadata["options"]["distance"] == name
    assert_close(scores.values, expected, 1e-5 * expected.max().item())


# --- what it does with what it reads --------------------------------------------------------------------


def overwriting(clean: Tensor, changed: Tensor) -> Tensor:
    distances = manhattan(clean, changed)
    clean.zero_()
    changed.fill_(float("nan"))
    return distances


def by_the_form_that_overwrites(clean: Tensor, changed: Tensor) -> Tensor:
    cosine_of_change(clean, changed)
    return torch.ones(changed.shape[:-1])


@each_engine
@pytest.mark.parametrize("final_norm", [False, True])
@pytest.mark.parametrize("per_head", [False, True])
def test_what_it_writes_changes_nothing_else(engine: str, per_head: bool, final_norm: bool) -> None:
    """Buffers are reused from chunk to chunk, and clean outputs read again for each source."""
    _, model = narrow_model("load_model", "gpt2")
    options = {"engine": engine, "per_head": per_head, "final_norm": final_norm, "memory_mb": 0.01, "batch_size": 2}
    expected = scores_of(model, IDS, distance=manhattan, **options)
    assert torch.equal(scores_of(model, IDS, distance=overwriting, **options).values, expected.values)
    scores_of(model, IDS, distance=by_the_form_that_overwrites, **options)
    assert torch.equal(scores_of(model, IDS, distance=manhattan, **options).values, expected.values)


@each_engine
def test_what_it_keeps_stays_what_it_was(engine: str) -> None:
    _, model = narrow_model("load_model", "bert")
    pairs: list[tuple[Tensor, Tensor]] = []
    copies: list[tuple[Tensor, Tensor]] = []

    def keeping(clean: Tensor, changed: Tensor) -> Tensor:
        pairs.append((clean, changed))
        copies.append((clean.clone(), changed.clone()))
        return manhattan(clean, changed)

    scores_of(model, IDS, distance=keeping, engine=engine, memory_mb=0.01, batch_size=1)
    scores_of(model, IDS[::-1], engine=engine)
    assert len(pairs) > 3
    for (clean, changed), (clean_then, changed_then) in zip(pairs, copies, strict=True):
        assert torch.equal(clean, clean_then) and torch.equal(changed, changed_then)


class Probe(nn.Module):
    """A learned distance: vectors are compared after a linear map in a dtype of its own."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.map = nn.Linear(16, 4, dtype=dtype)

    def forward(self, clean: Tensor, changed: Tensor) -> Tensor:
        return (self.map(clean) - self.map(changed)).norm(dim=-1)


@each_engine
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_a_learned_distance(architecture: str, dtype: torch.dtype, engine: str) -> None:
    hf_model, model = narrow_model("load_model", architecture)
    probe, wide = Probe(dtype), Probe(dtype).double()
    expected = references.value_zeroing(hf_model, IDS, distance=wide)
    scores = scores_of(model, IDS, distance=probe, engine=engine)
    assert_close(scores.values, expected, 2e-6)
    assert not scores.values.requires_grad and all(weight.grad is None for weight in probe.parameters())


def by_a_gradient(clean: Tensor, changed: Tensor) -> Tensor:
    """The size of the gradient of half the squared distance: the distance."""
    changed.requires_grad_()
    (gradient,) = torch.autograd.grad((clean - changed).square().sum() / 2, changed)
    return gradient.norm(dim=-1)


@each_engine
@pytest.mark.parametrize("mode", [nullcontext, torch.no_grad, torch.inference_mode])
def test_a_distance_that_needs_gradients(mode: Callable[[], Any], engine: str) -> None:
    _, model = narrow_model("load_model", "bert")
    expected = scores_of(model, IDS, distance="euclidean", engine=engine).values
    with mode():
        before = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        measured = scores_of(model, IDS, distance=by_a_gradient, engine=engine).values
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == before
    assert_close(measured, expected, 2e-6)


@each_engine
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_a_plain_formula_keeps_the_digits(dtype: torch.dtype, engine: str) -> None:
    """1 - cos of float32 rows would keep nothing of distances of 1e-7."""
    hf_model = hf_bert(width=64, heads=4).to(dtype)
    for block in references.blocks_of(hf_model):
        block.attention.output.dense.weight.data *= 0.003
    model = loaded(hf_model)
    values = scores_of(model, IDS, distance=references.cosine_distance, engine=engine).values
    built_in = scores_of(model, IDS, engine=engine).values
    assert built_in[built_in > 0].min() < 1e-6
    assert ((values - built_in).abs() <= 1e-4 * built_in + 1e-14).all()


# --- what it returns ------------------------------------------------------------------------------------


@each_engine
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float16], ids=str)
def test_any_real_numbers_are_distances(dtype: torch.dtype, engine: str) -> None:
    _, model = narrow_model("load_model", "bert")
    scores = scores_of(model, IDS, distance=lambda a, b: torch.ones_like(a[..., 0], dtype=dtype), engine=engine)
    assert torch.equal(scores.values, torch.ones_like(scores.values))


@each_engine
def test_a_signed_function_is_given_as_it_is_and_has_no_shares(engine: str) -> None:
    _, model = narrow_model("load_model", "bert")
    signed = scores_of(model, IDS, distance=lambda clean, changed: (clean - changed).sum(-1), engine=engine)
    assert signed.values.min() < 0
    with pytest.raises(TLVZeroError, match="negative values"):
        signed.normalized()


def failing(clean: Tensor, changed: Tensor) -> Tensor:
    raise LookupError("no such word")


WRONG: list[Any] = [
    pytest.param(failing, "mine.*failed: LookupError: no such word", id="raises"),
    pytest.param(lambda a, b: a[..., 0] / 0 * 0, "mine.*NaN or infinity", id="nan"),
    pytest.param(lambda a, b: a[..., 0] + float("inf"), "mine.*NaN or infinity", id="infinite"),
    pytest.param(lambda a, b: (a - b).sum(-1) * 1j, "mine.*complex", id="complex"),
    pytest.param(lambda a, b: a - b, "mine.*shape", id="keeps the features"),
    pytest.param(lambda a, b: (a - b).sum(), "mine.*shape", id="one number"),
    pytest.param(lambda a, b: (a - b).sum(-1).tolist(), "mine.*list", id="a list"),
    pytest.param(lambda a, b: (a - b).sum(-1).to("meta"), "mine.*failed", id="no device"),
    pytest.param(lambda a: a[..., 0], "mine.*failed: TypeError", id="one argument"),
]


@each_engine
@pytest.mark.parametrize("final_norm", [False, True])
@pytest.mark.parametrize(("wrong", "said"), WRONG)
def test_what_is_no_distance_is_refused_in_words(
    wrong: Callable[..., Any], said: str, final_norm: bool, engine: str
) -> None:
    _, model = narrow_model("load_model", "gpt2")
    with pytest.raises((InputError, InputTypeError), match=said):
        scores_of(model, IDS, distance=named("mine", wrong), engine=engine, final_norm=final_norm)


def test_the_cause_is_chained() -> None:
    _, model = narrow_model("load_model", "bert")
    with pytest.raises(InputError) as caught:
        scores_of(model, IDS, distance=failing)
    assert isinstance(caught.value.__cause__, LookupError)
