"""The model is left as it was found: after success, after an error, after Ctrl-C."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.evaluations import EXAMPLES
from support.models import (
    MOST_ROUTES,
    bridge,
    build,
    hf_bert,
    hf_bert_headless,
    hf_gpt2,
    hf_llama,
    is_causal,
    tokenizer,
)
from support.state import every_module, hook_counts, left_as_found, seeded_logits, torch_hooks
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import tl_vzero
from tl_vzero.errors import InputError

IDS = [2, 5, 9, 10, 3]
HF_BUILDERS = [hf_bert, hf_bert_headless, hf_gpt2, hf_llama]
each_route = pytest.mark.parametrize(("route", "architecture"), MOST_ROUTES)


class StoppedError(RuntimeError):
    """An error of the user's own."""


# What a caller sees of an error of their own, in a run: an error of the package that names it as its cause.
SEEN = {StoppedError: tl_vzero.TLVZeroError, KeyboardInterrupt: KeyboardInterrupt}


def run(model: Any, **options: Any) -> Any:
    return tl_vzero.value_zeroing(model, torch.tensor(IDS), **options)


def raising(error: type[BaseException], call: int = 1) -> Callable[..., Any]:
    """A function of two arguments that raises at its n-th call and is harmless before it."""
    calls = []

    def function(first: Tensor, *rest: Any, **named: Any) -> Tensor:
        calls.append(None)
        if len(calls) >= call:
            raise error("stopped")
        return first.sum(-1)

    return function


def passing_until(error: type[BaseException], call: int) -> Callable[..., None]:
    calls = []

    def hook(value: Tensor, hook: Any) -> None:
        calls.append(None)
        if len(calls) >= call:
            raise error("stopped")

    return hook


def watching(value: Tensor, hook: Any) -> None:
    """A hook that changes nothing."""


def halving(value: Tensor, hook: Any) -> Tensor:
    return value / 2


# --- every public call on a model -----------------------------------------------------------------------


def scored(method: str, **options: Any) -> Callable[[Any], Any]:
    return lambda model: tl_vzero.score(model, torch.tensor(IDS), method, **options)


def represented(model: Any) -> Any:
    from tl_vzero.evaluate.probing import representations
    from tl_vzero.evaluate.sentences import tokenize_examples

    protocol: Any = "causal" if is_causal(model.cfg.architecture.lower()[:4]) else "masked"
    return representations(model, tokenize_examples(model, EXAMPLES, protocol=protocol))


PREDICTED = {"target": 2, "target_ids": (7, 11)}
TARGETED = [name for name, method in tl_vzero.METHODS.items() if "target" in method.needs]
OF_POST_NORM = ("attention_norm_res_ln", "globenc")  # undefined for GPT-2
OF_SUMS = ("logit_contributions", "alti_logit")  # undefined for BERT
CALLS: dict[str, Callable[[Any], Any]] = {
    "value_zeroing": run,
    "value_zeroing per head": lambda model: run(model, per_head=True, layers=[1], batch_size=2),
    "value_zeroing of a long input": lambda model: run(model, destinations=[3], memory_mb=1e-6),
    "value_zeroing by hooks": lambda model: run(model, engine="hooks"),
    **{method: scored(method) for method in tl_vzero.METHODS if method not in ("value_zeroing", *TARGETED)},
    **{method: scored(method, **PREDICTED) for method in TARGETED},
    "decompx through the blocks": scored("decompx", propagate=True),
    "compare": lambda model: tl_vzero.compare(model, torch.tensor(IDS)),
    "zero_ablation": lambda model: tl_vzero.zero_ablation(model, torch.tensor(IDS), per_head=True, **PREDICTED),
    "value_patching": lambda model: tl_vzero.value_patching(
        model, torch.tensor(IDS), torch.tensor([2, 6, 9, 10, 3]), per_head=True, **PREDICTED
    ),
    "attribution_patching": lambda model: tl_vzero.attribution_patching(
        model, torch.tensor(IDS), per_head=True, **PREDICTED
    ),
    "pattern_patching": lambda model: tl_vzero.activation_patching(
        model, torch.tensor(IDS), torch.tensor([2, 6, 9, 10, 3]), "pattern", **PREDICTED
    ),
    "logit_lens": lambda model: tl_vzero.logit_lens(model, torch.tensor(IDS), **PREDICTED),
    "head_importance": lambda model: tl_vzero.head_importance(model, torch.tensor(IDS)),
    "span_interaction": lambda model: tl_vzero.span_interaction(model, torch.tensor(IDS), [[1, 2], [3]]),
    "representations": represented,
}


class InterruptedAt(TorchDispatchMode):
    """Within, the n-th matrix product is interrupted: in the middle of a run, without a hook on the model."""

    def __init__(self, product: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.left = product

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.left -= "mm" in str(function)
        if self.left == 0:
            raise KeyboardInterrupt
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("name", "make"),
    [(name, hf_bert) for name in CALLS if name not in OF_SUMS]
    + [(name, hf_gpt2) for name in CALLS if name not in OF_POST_NORM],
)
def test_every_call_in_training(name: str, make: Callable[..., Any]) -> None:
    """Hooks, modes, gradients, frozen weights and attributes of modules: after success and after an interrupt."""
    model = tl_vzero.load_model(make(dropout=0.5), tokenizer()).train()
    weights = list(model.parameters())
    weights[0].requires_grad_(False)
    weights[-1].requires_grad_(True)
    weights[-1].grad = torch.full_like(weights[-1], 0.5)
    for first in (run, scored("gradient_x_input", **PREDICTED)):  # a bridge notes on its modules that they ran
        first(model)
    attributes = {path: set(vars(module)) for path, module in every_module(model).items()}
    with left_as_found(model):
        result = CALLS[name](model)
    assert not getattr(getattr(result, "values", None), "requires_grad", False)
    with left_as_found(model), pytest.raises(KeyboardInterrupt), InterruptedAt(10):
        CALLS[name](model)
    assert {path: set(vars(module)) for path, module in every_module(model).items()} == attributes


@pytest.mark.parametrize("name", ["compare", "zero_ablation", "value_patching", "attribution_patching"])
@each_route
def test_calls_on_every_route(route: str, architecture: str, name: str) -> None:
    _, model = build(route, architecture)
    with left_as_found(model):
        CALLS[name](model)


@pytest.mark.parametrize("name", ["zero_ablation", "value_patching", "attribution_patching"])
@pytest.mark.parametrize("metric", [raising(KeyboardInterrupt), lambda logits: logits[0, 0]], ids=["stops", "wrong"])
def test_calls_with_a_metric_that_fails(name: str, metric: Callable[..., Any]) -> None:
    _, model = build("load_model", "bert")
    further = [torch.tensor([2, 6, 9, 10, 3])] if name == "value_patching" else []
    with left_as_found(model), pytest.raises((KeyboardInterrupt, InputError)):
        getattr(tl_vzero, name)(model, torch.tensor(IDS), *further, target=2, metric=metric)


# --- success, error, interrupt --------------------------------------------------------------------------


@each_route
def test_after_success(route: str, architecture: str) -> None:
    _, model = build(route, architecture)
    run(model)
    with left_as_found(model):
        run(model)
        run(model, layers=[1], heads=[0], batch_size=2)
        run(model, per_head=True)
        tl_vzero.value_zeroing_hooks(model, positions=[1])


@each_route
def test_after_the_very_first_use(route: str, architecture: str) -> None:
    """The checks that run once are gone without a trace too."""
    _, model = build(route, architecture)
    with left_as_found(model):
        run(model)


@pytest.mark.parametrize(("error", "call"), [(StoppedError, 1), (KeyboardInterrupt, 1), (KeyboardInterrupt, 2)])
@each_route
def test_after_a_distance_that_raises(route: str, architecture: str, error: type[BaseException], call: int) -> None:
    _, model = build(route, architecture)
    with left_as_found(model), pytest.raises(SEEN[error]):
        run(model, distance=raising(error, call), batch_size=2)


@pytest.mark.parametrize(
    ("error", "call", "permanent"),
    [(StoppedError, 1, True), *((KeyboardInterrupt, call, call % 2 == 0) for call in range(1, 5))],
)
@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_after_a_user_hook_that_raises(
    architecture: str, error: type[BaseException], call: int, permanent: bool
) -> None:
    _, model = build("load_model", architecture)
    run(model)
    name = "blocks.1.hook_resid_pre"
    raiser = passing_until(error, call)
    before = hook_counts(model)
    clean = seeded_logits(model)
    model.add_hook(name, raiser, is_permanent=permanent)
    with_hook = hook_counts(model)
    try:
        run(model, batch_size=1)
    except SEEN[error]:
        pass
    else:
        pytest.fail("the error of the user's own hook was swallowed")
    assert hook_counts(model) == with_hook
    model.hook_dict[name].remove_hooks("fwd", including_permanent=True)
    assert {key: count for key, count in hook_counts(model).items() if key != name} == {
        key: count for key, count in before.items() if key != name
    }
    assert torch.equal(seeded_logits(model), clean)


@each_route
def test_after_an_interrupt_the_model_still_gives_the_same_scores(route: str, architecture: str) -> None:
    _, model = build(route, architecture)
    before = run(model).values
    with pytest.raises(KeyboardInterrupt):
        run(model, distance=raising(KeyboardInterrupt))
    assert torch.equal(run(model).values, before)


# --- the user's own hooks -------------------------------------------------------------------------------


@each_route
def test_the_users_hooks_stay(route: str, architecture: str) -> None:
    _, model = build(route, architecture)
    model.add_hook("blocks.0.attn.hook_v", watching)
    model.add_hook("blocks.1.attn.hook_v", halving, is_permanent=True)
    model.add_hook("blocks.1.hook_resid_pre", watching, is_permanent=True)
    with left_as_found(model):
        run(model)
    with left_as_found(model), pytest.raises(KeyboardInterrupt):
        run(model, distance=raising(KeyboardInterrupt))


@each_route
def test_hooks_of_a_context_stay_in_it_and_go_with_it(route: str, architecture: str) -> None:
    _, model = build(route, architecture)
    of_the_user = [("blocks.1.attn.hook_v", halving), ("blocks.0.hook_resid_pre", watching)]
    with left_as_found(model), model.hooks(fwd_hooks=of_the_user):
        with left_as_found(model):
            run(model)
        with left_as_found(model), pytest.raises(InputError, match="stopped"):
            run(model, distance=raising(StoppedError))


@each_route
def test_hooks_left_by_an_earlier_run_stay(route: str, architecture: str) -> None:
    _, model = build(route, architecture)
    model.run_with_hooks(torch.tensor([IDS]), fwd_hooks=[("blocks.1.attn.hook_v", halving)], reset_hooks_end=False)
    with left_as_found(model):
        run(model)
    with left_as_found(model), pytest.raises(KeyboardInterrupt):
        run(model, distance=raising(KeyboardInterrupt))


@each_route
def test_the_users_torch_hooks_stay(route: str, architecture: str) -> None:
    _, model = build(route, architecture)
    handle = model.register_forward_hook(lambda module, inputs, output: None)
    with left_as_found(model):
        run(model)
    handle.remove()


# --- mode, gradients, number types ----------------------------------------------------------------------


@pytest.mark.parametrize("make", [hf_bert, hf_gpt2])
def test_a_training_model_stays_training_and_is_scored_without_dropout(make: Callable[..., Any]) -> None:
    model = bridge(make(dropout=0.3))
    expected = run(model).values
    model.train()
    with left_as_found(model):
        assert torch.equal(run(model).values, expected)
    assert all(module.training for module in model.modules())
    with left_as_found(model), pytest.raises(KeyboardInterrupt):
        run(model, distance=raising(KeyboardInterrupt))


def test_a_model_partly_in_training_mode_stays_so() -> None:
    model = bridge(hf_bert(dropout=0.3))
    expected = run(model).values
    list(model.modules())[-1].train()
    model.blocks[1].train()
    with left_as_found(model):
        assert torch.equal(run(model).values, expected)


@each_route
def test_gradients_and_frozen_weights_stay(route: str, architecture: str) -> None:
    _, model = build(route, architecture)
    weights = list(model.parameters())
    weights[0].requires_grad_(False)
    weights[-1].requires_grad_(True)
    weights[-1].grad = torch.full_like(weights[-1], 0.5)
    with left_as_found(model):
        scores = run(model)
    assert not scores.values.requires_grad


@pytest.mark.parametrize("error", [None, StoppedError, KeyboardInterrupt])
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_the_grad_mode_of_the_caller_stays(mode: Callable[[], Any], error: type[BaseException] | None) -> None:
    _, model = build("load_model", "bert")
    with mode():
        before = (torch.is_grad_enabled(), torch.is_inference_mode_enabled())
        if error is None:
            run(model)
        else:
            with pytest.raises(SEEN[error]):
                run(model, distance=raising(error))
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == before


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_the_number_type_stays(dtype: torch.dtype) -> None:
    model = bridge(hf_gpt2().to(dtype))
    with left_as_found(model):
        run(model)
    assert {weight.dtype for weight in model.parameters()} == {dtype}


def test_the_global_random_state_stays() -> None:
    _, model = build("load_model", "bert")
    torch.manual_seed(3)
    before = torch.get_rng_state()
    run(model)
    assert torch.equal(torch.get_rng_state(), before)


# --- the user's ids, mask and cache ---------------------------------------------------------------------


def test_the_users_tensors_stay() -> None:
    _, model = build("load_model", "bert")
    ids, mask = torch.tensor([[2, 5, 9, 3], [2, 3, 0, 0]]), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    _, cache = model.run_with_cache(torch.tensor([IDS]))
    before = {name: value.clone() for name, value in cache.items() if isinstance(value, Tensor)}
    copies = ids.clone(), mask.clone()
    tl_vzero.value_zeroing(model, ids, attention_mask=mask)
    run(model, cache=cache)
    assert torch.equal(ids, copies[0]) and torch.equal(mask, copies[1])
    assert all(torch.equal(cache[name], value) for name, value in before.items())


# --- the user's Hugging Face model ----------------------------------------------------------------------


def hf_facts(hf_model: Any) -> dict[str, Any]:
    return {
        "names of modules": [name for name, _ in hf_model.named_modules()],
        "classes": [type(module) for module in hf_model.modules()],
        "weights": {name: id(weight) for name, weight in hf_model.named_parameters()},
        "state": list(hf_model.state_dict()),
        "training": [module.training for module in hf_model.modules()],
        "requires_grad": [weight.requires_grad for weight in hf_model.parameters()],
        "hooks": torch_hooks(hf_model),
        "attention": hf_model.config._attn_implementation,
        "architectures": copy.copy(hf_model.config.architectures),
        "dtype": hf_model.dtype,
    }


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", [None, torch.float64], ids=str)
@pytest.mark.parametrize("make", HF_BUILDERS)
def test_the_users_hugging_face_model_works_as_before(
    make: Callable[..., Any], dtype: torch.dtype | None, training: bool
) -> None:
    hf_model = make().train(training)
    before, logits = hf_facts(hf_model), seeded_logits(hf_model)
    model = tl_vzero.load_model(hf_model, tokenizer(), dtype=dtype)
    run(model)
    with pytest.raises(KeyboardInterrupt):
        run(model, distance=raising(KeyboardInterrupt))
    after = hf_facts(hf_model)
    for fact in before:
        assert after[fact] == before[fact], fact
    assert torch.equal(seeded_logits(hf_model), logits)


def test_the_users_hugging_face_model_can_be_trained_after_loading() -> None:
    hf_model = hf_bert().train()
    model = tl_vzero.load_model(hf_model, tokenizer())
    run(model)
    ids = torch.tensor([IDS])
    hf_model(input_ids=ids, labels=ids).loss.backward()
    assert all(weight.grad is not None for name, weight in hf_model.named_parameters() if "encoder" in name)


def test_one_hugging_face_model_can_be_loaded_twice() -> None:
    hf_model = hf_gpt2()
    first = run(tl_vzero.load_model(hf_model, tokenizer())).values
    assert torch.equal(run(tl_vzero.load_model(hf_model, tokenizer())).values, first)


def test_the_users_tokenizer_stays() -> None:
    mine = tokenizer()
    before = (len(mine), mine.padding_side, mine.special_tokens_map, mine("the dog")["input_ids"])
    tl_vzero.value_zeroing(tl_vzero.load_model(hf_gpt2(), mine), ["the dog", "a dog is near"])
    assert (len(mine), mine.padding_side, mine.special_tokens_map, mine("the dog")["input_ids"]) == before
