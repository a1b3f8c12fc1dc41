"""Everything of a model that an analysis must leave as it found it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jaxtyping
import torch
from support.models import logits_of
from torch import Tensor, nn

HOOK_TABLES = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
PROBE = [[2, 5, 6, 7, 30, 11, 3]]


def every_module(model: nn.Module) -> dict[str, nn.Module]:
    """The modules of a model by name; of a bridge, those of the Hugging Face model that it wraps too."""
    modules = dict(model.named_modules())
    wrapped = getattr(model, "original_model", None)
    if isinstance(wrapped, nn.Module):
        modules |= {f"original_model.{name}": module for name, module in wrapped.named_modules()}
    return modules


def torch_hooks(model: nn.Module) -> dict[str, dict[str, list[tuple[int, int]]]]:
    """Every torch hook of every module, by (key, identity of the function), in order."""
    return {
        name: {
            table: [(key, id(function)) for key, function in getattr(module, table).items()] for table in HOOK_TABLES
        }
        for name, module in every_module(model).items()
    }


def lens_hooks(model: nn.Module) -> dict[str, list[tuple[Any, ...]]]:
    """Every TransformerLens hook of every hook point, in order, with its permanence and context level."""
    return {
        name: [
            (direction, id(handle.hook), handle.is_permanent, handle.context_level)
            for direction in ("fwd_hooks", "bwd_hooks")
            for handle in getattr(point, direction)
        ]
        for name, point in getattr(model, "hook_dict", {}).items()
    }


def hook_counts(model: nn.Module) -> dict[str, int]:
    return {name: len(handles) for name, handles in lens_hooks(model).items()}


def seeded_logits(model: nn.Module) -> Tensor:
    """The logits of one fixed sentence; dropout, where it is on, draws the same numbers each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        with torch.no_grad():
            if hasattr(model, "hook_dict"):
                return logits_of(model, torch.tensor(PROBE))
            output = model(input_ids=torch.tensor(PROBE))
            return output.logits if hasattr(output, "logits") else output.last_hidden_state


def snapshot(model: nn.Module) -> dict[str, Any]:
    modules = every_module(model)
    return {
        "logits": seeded_logits(model),
        "torch hooks": torch_hooks(model),
        "TransformerLens hooks": lens_hooks(model),
        "training": {name: module.training for name, module in modules.items()},
        "module classes": {name: type(module) for name, module in modules.items()},
        "attention": {
            name: getattr(getattr(module, "config", None), "_attn_implementation", None)
            for name, module in modules.items()
        },
        "requires_grad": {name: weight.requires_grad for name, weight in model.named_parameters()},
        "grad": {
            name: None if weight.grad is None else weight.grad.clone() for name, weight in model.named_parameters()
        },
        "weights": {name: weight.detach().clone() for name, weight in model.named_parameters()},
        "dtypes": {name: weight.dtype for name, weight in model.named_parameters()},
        "context level": getattr(model, "context_level", None),
        "is caching": getattr(model, "is_caching", None),
        "grad mode": torch.is_grad_enabled(),
    }


def assert_same(before: Any, after: Any, where: str) -> None:
    """Equal, and bit-identical where there are tensors."""
    if isinstance(before, dict):
        assert before.keys() == after.keys(), f"{where}: {before.keys() ^ after.keys()}"
        for key in before:
            assert_same(before[key], after[key], f"{where} of {key}")
    elif isinstance(before, Tensor):
        assert isinstance(after, Tensor), where
        same_nan = before.isnan() & after.isnan() if before.is_floating_point() else torch.tensor(False)
        assert before.dtype == after.dtype and bool(((before == after) | same_nan).all()), where
    else:
        assert before == after, f"{where}: was {before}, is {after}"


@contextmanager
def left_as_found(*models: nn.Module) -> Iterator[None]:
    """Within, anything may happen; after it every model is as it was."""
    before = [snapshot(model) for model in models]
    yield
    for saved, model in zip(before, models, strict=True):
        after = snapshot(model)
        for part in saved:
            assert_same(saved[part], after[part], part)


@contextmanager
def type_checks_off() -> Iterator[None]:
    """Within, the run-time type checks of the test run are off, as they are for users.

    They would refuse a wrong type before the package's own check, which is the thing to test.
    """
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)
