"""The contracts that a model must keep before any score of it is believed, checked once a model."""

from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn

from tl_vzero.errors import ModelError
from tl_vzero.models.facts import context_length, vocabulary_size
from tl_vzero.models.run import NamedHook, eager_attention, quiet, run_to
from tl_vzero.models.sites import Sites, hook_points, sites_of
from tl_vzero.models.weights import check_finite, warn_if_processed

PROBE_LENGTH = 4
SAME_EPS = 100  # machine epsilons that rounding in a batch can bring

_CHECKED: WeakSet[nn.Module] = WeakSet()
_VALUE_HEADS: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()


def check_contracts(model: nn.Module) -> Sites:
    """Check once that a model's hooks are there, fire and bite; returns where they are.

    One probing run holds a clean copy and a copy a layer with that layer's first value zeroed. Raises
    ModelError where a hook does not fire, pattern rows do not sum to one, a zeroed value leaves its
    block's output as it was, or changes anything before it. Warns of processed weights.
    """
    sites = sites_of(model)
    if model not in _CHECKED:
        check_finite(model)
        warn_if_processed(model)
        with quiet(model), eager_attention(model):
            seen = _probe(model, sites)
        _check_fired(sites, seen)
        _check_values(model, sites, seen)
        _check_patterns(model, sites, seen)
        for layer in range(sites.n_layers):
            _check_bite(sites, seen, layer)
        _CHECKED.add(model)
    return sites


def value_heads(model: nn.Module) -> int:
    """How many heads a value has: under grouped-query attention fewer than there are query heads."""
    if model not in _VALUE_HEADS:
        check_contracts(model)
    return _VALUE_HEADS[model]


def _probe(model: nn.Module, sites: Sites) -> dict[str, Tensor]:
    seen: dict[str, Tensor] = {}

    def keep(activation: Tensor, *, hook: Any, name: str) -> None:
        seen[name] = activation.detach()

    def zero_first(value: Tensor, *, hook: Any, copy: int) -> Tensor:
        value = value.clone()
        value[copy, 0] = 0
        return value

    hooks: list[NamedHook] = []
    for layer in range(sites.n_layers):
        for names in (sites.inputs, sites.values, sites.patterns, sites.outputs):
            hooks.append((names[layer], _bind(keep, name=names[layer])))
        hooks.append((sites.values[layer], _bind(zero_first, copy=layer + 1)))
    length = min(PROBE_LENGTH, context_length(model) or PROBE_LENGTH)
    ids = torch.arange(length) % vocabulary_size(model)
    device = next(nn.Module.parameters(model)).device
    run_to(model, ids.to(device).expand(sites.n_layers + 1, -1), hooks, last=sites.outputs[-1])
    return seen


def _bind(function: Any, **bound: Any) -> Any:
    def hook_function(activation: Tensor, *, hook: Any) -> Tensor | None:
        result: Tensor | None = function(activation, hook=hook, **bound)
        return result

    return hook_function


def _check_fired(sites: Sites, seen: dict[str, Tensor]) -> None:
    for names in (sites.inputs, sites.values, sites.patterns, sites.outputs):
        silent = [name for name in names if name not in seen]
        if silent:
            raise ModelError(
                f"hook {silent[0]} did not fire: Value Zeroing needs it; the model's attention or block "
                "is replaced by one that ignores TransformerLens's hooks"
            )


def _check_values(model: nn.Module, sites: Sites, seen: dict[str, Tensor]) -> None:
    value = seen[sites.values[0]]
    if value.ndim != 4:
        raise ModelError(f"{sites.values[0]} has shape {list(value.shape)}: expected [batch, position, head, d_head]")
    _VALUE_HEADS[model] = value.shape[2]


def _check_patterns(model: nn.Module, sites: Sites, seen: dict[str, Tensor]) -> None:
    # A user's hook may ablate a pattern on purpose.
    points = hook_points(model)
    for name in [name for name in sites.patterns if not points[name].fwd_hooks]:
        sums = seen[name].float().sum(dim=-1)
        if not torch.allclose(sums, torch.ones_like(sums), atol=2e-2):
            low, high = sums.min().item(), sums.max().item()
            raise ModelError(f"rows of {name} sum to {low:.3g} to {high:.3g}: expected 1, an attention pattern")


def _check_bite(sites: Sites, seen: dict[str, Tensor], layer: int) -> None:
    copy = layer + 1
    for earlier in range(layer + 1):
        before = seen[sites.inputs[earlier]]
        if _relative_change(before[0], before[copy]) > SAME_EPS * torch.finfo(before.dtype).eps:
            raise ModelError(
                f"zeroing {sites.values[layer]} changes the input of block {earlier}: expected that it acts "
                "only on its own block's output and on what follows"
            )
    value, output = seen[sites.values[layer]], seen[sites.outputs[layer]]
    if value[0, 0].any() and torch.equal(output[0], output[copy]):
        raise ModelError(
            f"zeroing {sites.values[layer]} does not change {sites.outputs[layer]}: this attention ignores its "
            "value hook, so there is nothing to measure"
        )


def _relative_change(clean: Tensor, changed: Tensor) -> float:
    size = clean.float().abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    return ((clean.float() - changed.float()).abs().max() / size).item()
