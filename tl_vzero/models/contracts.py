"""The contracts that a model must keep before any score of it is believed, checked once a model."""

from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tl_vzero.errors import ModelError
from tl_vzero.models.facts import context_length, vocabulary_size
from tl_vzero.models.mixing import check_values_carry_all
from tl_vzero.models.run import NamedHook, eager_attention, quiet, run_to
from tl_vzero.models.signals import signal_of
from tl_vzero.models.sites import Sites, Stack, hook_points, sites_of
from tl_vzero.models.weights import check_finite, warn_if_processed

PROBE_LENGTH = 4
SAME_EPS = 100  # machine epsilons that rounding in a batch can bring


@dataclass(frozen=True)
class _Heads:
    """How many heads a checked stack's values and patterns have."""

    value: int
    attention: int


# Of each model the stacks that keep their contracts; None is the only stack of a model that has one.
_CHECKED: WeakKeyDictionary[nn.Module, dict[Stack | None, _Heads]] = WeakKeyDictionary()


def check_contracts(model: nn.Module, stack: str | None = None) -> Sites:
    """Check once that the hooks of a model, or of an encoder-decoder's stack, are there, fire and bite.

    Returns where they are. One probing run holds a clean copy and a copy a layer with that layer's first value
    zeroed. Raises ModelError where a hook does not fire, pattern rows do not sum to one, a zeroed value leaves its
    block's output as it was, or changes anything before it, or a block mixes positions beside its values; InputError
    for a stack that the model lacks. Warns of processed weights.
    """
    sites = sites_of(model, stack)
    if sites.stack not in _CHECKED.get(model, {}):
        if model not in _CHECKED:
            check_finite(model)
            warn_if_processed(model)
        with quiet(model), eager_attention(model):
            seen = _probe(model, sites)
        _check_fired(sites, seen)
        _check_labels(model, sites, seen)
        heads = _check_values(sites, seen)
        _check_patterns(model, sites, seen)
        for layer in range(sites.n_layers):
            _check_bite(sites, seen, layer)
        with quiet(model):
            check_values_carry_all(model, sites, _probe_read(model))
        _CHECKED.setdefault(model, {})[sites.stack] = heads
    return sites


def value_heads(model: nn.Module, stack: Stack | None = None) -> int:
    """How many heads a value has: under grouped-query attention fewer than there are query heads."""
    return _heads(model, stack).value


def attention_heads(model: nn.Module, stack: Stack | None = None) -> int:
    """How many heads an attention pattern has."""
    return _heads(model, stack).attention


def _heads(model: nn.Module, stack: Stack | None) -> _Heads:
    if stack not in _CHECKED.get(model, {}):
        check_contracts(model, stack)
    return _CHECKED[model][stack]


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
            hooks.append((names[layer], partial(keep, name=names[layer])))
        hooks.append((sites.values[layer], partial(zero_first, copy=layer + 1)))
    read = _probe_read(model)
    copies = read.expand(sites.n_layers + 1, *read.shape)
    run_to(model, copies, hooks, last=sites.outputs[-1], decoder_ids=copies if sites.stack else None)
    return seen


def _probe_read(model: nn.Module) -> Int[Tensor, "position"] | Float[Tensor, "..."]:
    # Another length than there are heads, so that a value whose axes lie otherwise shows it.
    length = PROBE_LENGTH + (getattr(model.cfg, "n_heads", None) == PROBE_LENGTH)
    first, signal = next(nn.Module.parameters(model)), signal_of(model)
    if signal is not None:
        return signal.probe(length).to(first)
    length = min(length, context_length(model) or length)
    return torch.arange(length, device=first.device) % vocabulary_size(model)


def _check_fired(sites: Sites, seen: dict[str, Tensor]) -> None:
    for names in (sites.inputs, sites.values, sites.patterns, sites.outputs):
        silent = [name for name in names if name not in seen]
        if silent:
            raise ModelError(
                f"hook {silent[0]} did not fire: Value Zeroing needs it; the model's attention or block "
                "is replaced by one that ignores TransformerLens's hooks"
            )


def _check_labels(model: nn.Module, sites: Sites, seen: dict[str, Tensor]) -> None:
    """Of an image or a sound the positions are counted beforehand, and their labels would stand in wrong places."""
    signal = signal_of(model)
    if signal is None:
        return
    probe, found = _probe_read(model), seen[sites.inputs[0]].shape[1]
    expected = len(signal.labels(tuple(probe.shape)))
    if found != expected:
        raise ModelError(
            f"this model has {found} positions for {signal.named} of shape {list(probe.shape)}: expected {expected} by "
            "its configuration"
        )


def _check_values(sites: Sites, seen: dict[str, Tensor]) -> _Heads:
    value = seen[sites.values[0]]
    if value.ndim != 4 or value.shape[:2] != seen[sites.inputs[0]].shape[:2]:
        raise ModelError(
            f"{sites.values[0]} has shape {list(value.shape)} on a block input of shape "
            f"{list(seen[sites.inputs[0]].shape)}: expected [batch, position, head, d_head]"
        )
    return _Heads(value=value.shape[2], attention=seen[sites.patterns[0]].shape[1])


def _check_patterns(model: nn.Module, sites: Sites, seen: dict[str, Tensor]) -> None:
    # A user's hook may ablate a pattern on purpose.
    points = hook_points(model)
    for name in [name for name in sites.patterns if not points[name].fwd_hooks]:
        sums = seen[name].float().sum(dim=-1)
        least = 0.0 if _has_sink(model, name) else 1.0
        if not ((sums >= least - 2e-2) & (sums <= 1 + 2e-2)).all():
            low, high = sums.min().item(), sums.max().item()
            raise ModelError(f"rows of {name} sum to {low:.3g} to {high:.3g}: expected 1, an attention pattern")


def _has_sink(model: nn.Module, name: str) -> bool:
    """Whether an attention gives a learned sink a part of each row, as in gpt-oss: the rest is for the sources."""
    attention = model.get_submodule(name.rpartition(".")[0])
    return any(part.rpartition(".")[2] == "sinks" for part, _ in nn.Module.named_parameters(attention))


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
