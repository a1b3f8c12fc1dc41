"""The contracts that a model must meet before any score of it is believed, checked again whenever it changes."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tl_vzero.errors import ModelError
from tl_vzero.models.changes import (
    check_finite,
    check_followed,
    check_weights,
    has_user_hooks,
    module_fingerprint,
    weights_hash,
)
from tl_vzero.models.facts import class_head_of, context_length, facts_of, library_versions, vocabulary_size
from tl_vzero.models.run import NamedHook, eager_attention, quiet, remembering_hooks, run_to
from tl_vzero.models.signals import Read, n_positions_of, signal_of
from tl_vzero.models.sites import Sites, Stack, hook_points, kind_of, sites_of, stacks_of

# Whether values are all that carries information between the positions of a block.

SAME_EPS = 100  # machine epsilons by which the same sentence may differ with its place in a batch


def check_values_carry_all(model: nn.Module, sites: Sites, read: Tensor) -> None:
    """Raise ModelError where a block still mixes positions when all its values are zero.

    Such a block has a state space, a convolution or a second attention beside the one whose values can be zeroed, and
    zeroing values would show a part of its mixing as the whole. `read` is a sentence of at least two positions, an
    image or a sound. It is run twice; the second time each block reads another vector at its first position. Hooks of
    the user's may mix on purpose: then nothing is checked.
    """
    is_text = not read.is_floating_point()
    # A decoder block with cross-attention also has self-attention, and that mixes as it should.
    if sites.stack == "cross" or (is_text and len(read) < 2) or has_user_hooks(model):
        return
    two = torch.stack([read, read])
    outputs: dict[str, Tensor] = {}
    hooks: list[NamedHook] = [(name, _differ_at_first) for name in sites.inputs]
    hooks += [(name, lambda value, *, hook: torch.zeros_like(value)) for name in sites.values]
    hooks += remembering_hooks(sites.outputs, outputs)
    run_to(model, two, hooks, last=sites.outputs[-1], decoder_ids=_decoder_probe(model, sites, two))
    for layer, name in enumerate(sites.outputs):
        if _are_apart(*outputs[name][:, 1:]):
            raise ModelError(
                f"block {layer} mixes positions by other means than the values of {sites.values[layer]} (a state "
                "space, a convolution or another attention beside it): Value Zeroing would show only a part of what "
                "this layer mixes; expected blocks in which attention alone does"
            )


def _differ_at_first(x: Tensor, *, hook: Any) -> Tensor:
    """Two copies of a block's input that differ at the first position and nowhere else, whatever came before."""
    x = x.clone()
    x[1] = x[0]
    x[1, 0] = x[0, -1]
    return x


def check_writes_act(model: nn.Module, sites: Sites, names: Sequence[str]) -> None:
    """Raise ModelError where a hook of a block never fires, or zeroing it leaves the output of its block as it was.

    One run of two copies, each block's input the same in both. Hooks of the user's may keep a block from hearing: then
    nothing is checked.
    """
    if has_user_hooks(model):
        return
    outputs: dict[str, Tensor] = {}

    def zero_second(x: Tensor, *, hook: Any) -> Tensor:
        x = x.clone()
        x[1] = 0
        return x

    hooks: list[NamedHook] = [(name, lambda x, *, hook: x[:1].expand_as(x)) for name in sites.inputs]
    hooks += [(name, zero_second) for name in names]
    hooks += remembering_hooks(sites.outputs, outputs)
    with quiet(model), eager_attention(model):
        two = torch.stack([_probe_read(model)] * 2)
        run_to(model, two, hooks, last=sites.outputs[-1], decoder_ids=two if sites.stack else None)
    for name, output in zip(names, sites.outputs, strict=True):
        if not _are_apart(*outputs[output].split(1)):
            raise ModelError(
                f"zeroing {name} does not change {output}: this model computes on without what is written there, "
                "so patching it would show no effect where there is one; patch v or z"
            )


# Whether the hooks of a stack are there, fire and act; the results of the checks, by model.

PROBE_LENGTH = 4  # tokens: a copy per layer and position is run, so few
SIGNAL_PROBES = 3  # of the many positions of an image or a sound, only so many have their values zeroed
AFFECTS = 1e-2  # a source to which some destination gives this weight must show in the block's output


@dataclass(frozen=True, eq=False)
class _Checked:
    """A stack that met its contracts, the modules that it had then, the heads of its values and patterns, how wide a
    value is, and whether no position attended to a later one.
    """

    modules: tuple[object, ...]
    sites: Sites
    value_heads: int
    head_width: int
    attention_heads: int
    is_causal: bool


# Of each model by stack, and by whether hooks of the user's acted: they may hide what is checked.
_CHECKED: WeakKeyDictionary[nn.Module, dict[tuple[str | None, bool], _Checked]] = WeakKeyDictionary()


def check_contracts(model: nn.Module, stack: str | None = None) -> Sites:
    """Check that the hooks of a model, or of an encoder-decoder's stack, are there, fire and act.

    Returns where they are. One probing run holds a clean copy and copies with one value of one layer zeroed. Its
    results are valid until the model's modules change. Raises ModelError where a hook does not fire, pattern
    rows do not sum to one, a zeroed value leaves its block's output as it was, or changes anything before it, a block
    mixes positions beside its values, or the model that this one was loaded from has changed; InputError for a stack
    that the model lacks. Warns of processed weights.
    """
    kind_of(model)
    check_followed(model)
    modules, key = module_fingerprint(model), (stack if isinstance(stack, str) else None, has_user_hooks(model))
    checked = _CHECKED.get(model, {}).get(key) if stack is None or isinstance(stack, str) else None
    if checked is None or checked.modules != modules:
        sites = sites_of(model, stack)
        checked = _Checked(modules, sites, *_check(model, sites))
        _CHECKED.setdefault(model, {})[key] = checked
    return checked.sites


def _check(model: nn.Module, sites: Sites) -> tuple[int, int, int, bool]:
    """Returns the heads and the width of a value, the heads of a pattern, and whether the patterns are causal."""
    check_finite(model)
    check_weights(model)
    with quiet(model), eager_attention(model):
        probe = _probe(model, sites)
    activations = probe.activations
    _check_fired(sites, activations)
    _check_labels(model, sites, activations)
    _check_values(sites, activations)
    _check_patterns(model, sites, activations)
    for layer in range(sites.n_layers):
        _check_zeroing_acts(sites, probe, layer)
    with quiet(model):
        check_values_carry_all(model, sites, _probe_read(model))
    is_causal = not any(activations[name].triu(1).any() for name in sites.patterns)
    return *activations[sites.values[0]].shape[2:], activations[sites.patterns[0]].shape[1], is_causal


def value_heads(model: nn.Module, stack: Stack | None = None) -> int:
    """How many heads a value has: under grouped-query attention fewer than there are query heads."""
    return _last_checked(model, stack).value_heads


def head_width(model: nn.Module, stack: Stack | None = None) -> int:
    """How many features a value has in each head."""
    return _last_checked(model, stack).head_width


def attention_heads(model: nn.Module, stack: Stack | None = None) -> int:
    """How many heads an attention pattern has."""
    return _last_checked(model, stack).attention_heads


def is_causal(model: nn.Module) -> bool:
    """Whether no position of a model with one stack attends to a later one: then each predicts the next token."""
    return not stacks_of(model) and _last_checked(model, None).is_causal


def _last_checked(model: nn.Module, stack: Stack | None) -> _Checked:
    checks = _CHECKED.get(model, {})
    checked = checks.get((stack, False)) or checks.get((stack, True))
    if checked is None:
        check_contracts(model, stack)
        return _last_checked(model, stack)
    return checked


@dataclass(frozen=True, eq=False)
class _Probe:
    """Activations by hook name: of a clean copy, then for each layer of one copy per zeroed position."""

    positions: list[int]
    activations: dict[str, Tensor]

    def copies(self, layer: int) -> range:
        """Where the copies of a layer lie."""
        first = 1 + layer * len(self.positions)
        return range(first, first + len(self.positions))


def _probe(model: nn.Module, sites: Sites) -> _Probe:
    read = _probe_read(model)
    written = _decoder_probe(model, sites, read.unsqueeze(0))
    of_decoder = written is not None and sites.stack == "decoder"
    n_positions = written.shape[1] if written is not None and of_decoder else n_positions_of(model, read)
    positions = list(range(n_positions))
    if signal_of(model) is not None and not of_decoder:
        positions = sorted({(n_positions - 1) * n // (SIGNAL_PROBES - 1) for n in range(SIGNAL_PROBES)})
    probe = _Probe(positions, {})

    def zero_one_per_copy(value: Tensor, *, hook: Any, layer: int) -> Tensor:
        value = value.clone()
        if value.ndim > 1 and value.shape[1] > positions[-1]:  # axes that lie otherwise are refused afterwards
            value[list(probe.copies(layer)), positions] = 0
        return value

    hooks: list[NamedHook] = []
    for layer in range(sites.n_layers):
        hooks += remembering_hooks(sites.at(layer), probe.activations)
        hooks.append((sites.values[layer], partial(zero_one_per_copy, layer=layer)))
    copies = read.expand(probe.copies(sites.n_layers - 1).stop, *read.shape)
    run_to(model, copies, hooks, last=sites.outputs[-1], decoder_ids=_decoder_probe(model, sites, copies))
    return probe


def _decoder_probe(model: nn.Module, sites: Sites, copies: Read) -> Int[Tensor, "copy position"] | None:
    """What a decoder reads beside copies of a probe: the same ids, or beside a sound a few of its own."""
    if sites.stack is None or not copies.is_floating_point():
        return copies if sites.stack else None
    return (torch.arange(PROBE_LENGTH, device=copies.device) % vocabulary_size(model)).expand(len(copies), -1)


def _probe_read(model: nn.Module) -> Int[Tensor, "position"] | Float[Tensor, "..."]:
    # Another length than there are heads, so that a value whose axes lie otherwise shows it.
    length = PROBE_LENGTH + (getattr(model.cfg, "n_heads", None) == PROBE_LENGTH)
    first, signal = next(nn.Module.parameters(model)), signal_of(model)
    if signal is not None:
        return signal.probe(length).to(first)
    length = min(length, context_length(model) or length)
    return torch.arange(length, device=first.device) % vocabulary_size(model)


def _check_fired(sites: Sites, activations: dict[str, Tensor]) -> None:
    for names in (sites.inputs, sites.values, sites.patterns, sites.outputs):
        silent = [name for name in names if name not in activations]
        if silent:
            raise ModelError(
                f"hook {silent[0]} did not fire: Value Zeroing needs it; the model's attention or block "
                "is replaced by one that ignores TransformerLens's hooks"
            )


def _check_labels(model: nn.Module, sites: Sites, activations: dict[str, Tensor]) -> None:
    """Of an image or a sound the positions are counted beforehand: a wrong count would put labels in wrong places."""
    signal = signal_of(model)
    if signal is None or sites.stack == "decoder":
        return
    probe = _probe_read(model)
    n_positions = activations[(sites.values if sites.stack else sites.inputs)[0]].shape[1]
    expected = n_positions_of(model, probe)
    if n_positions != expected:
        raise ModelError(
            f"this model has {n_positions} positions for {signal.named} of shape {list(probe.shape)}: expected "
            f"{expected} by its configuration"
        )


def _check_values(sites: Sites, activations: dict[str, Tensor]) -> None:
    value, block_input = activations[sites.values[0]], activations[sites.inputs[0]]
    # What a decoder reads at the encoder's positions has as many values as those.
    axes = 1 if sites.stack == "cross" else 2
    if value.ndim != 4 or value.shape[:axes] != block_input.shape[:axes]:
        raise ModelError(
            f"{sites.values[0]} has shape {list(value.shape)} on a block input of shape {list(block_input.shape)}: "
            "expected [batch, position, head, d_head], as tl_vzero.load_model has it of multi-head latent attention"
        )
    for name, patterns in zip(sites.values, sites.patterns, strict=True):
        n_value, n_query = activations[name].shape[2], activations[patterns].shape[1]
        if n_query % n_value:
            raise ModelError(
                f"{name} has {n_value} heads and {patterns} {n_query}: expected as many, or some query heads for each "
                "value head; check that the model's config says how many heads its weights have"
            )


def _check_patterns(model: nn.Module, sites: Sites, activations: dict[str, Tensor]) -> None:
    # A user's hook may ablate a pattern on purpose.
    points = hook_points(model)
    for name in [name for name in sites.patterns if not points[name].fwd_hooks]:
        sums = activations[name].float().sum(dim=-1)
        least = 0.0 if _has_sink(model, name) else 1.0
        if not ((sums >= least - 2e-2) & (sums <= 1 + 2e-2)).all():
            low, high = sums.min().item(), sums.max().item()
            raise ModelError(f"rows of {name} sum to {low:.3g} to {high:.3g}: expected 1, an attention pattern")


def _has_sink(model: nn.Module, name: str) -> bool:
    """Whether an attention gives a learned sink a part of each row, as in gpt-oss: the rest is for the sources."""
    attention = model.get_submodule(name.rpartition(".")[0])
    return any(part.rpartition(".")[2] == "sinks" for part, _ in nn.Module.named_parameters(attention))


def _check_zeroing_acts(sites: Sites, probe: _Probe, layer: int) -> None:
    copies = list(probe.copies(layer))
    for earlier in range(layer + 1):
        before = probe.activations[sites.inputs[earlier]]
        if _are_apart(before[:1], before[copies]):
            raise ModelError(
                f"zeroing {sites.values[layer]} changes the input of block {earlier}: expected that it acts "
                "only on its own block's output and on what follows"
            )
    _, value, pattern, output = (probe.activations[name] for name in sites.at(layer))
    written = [position for position in probe.positions if value[0, position].any()]
    # A source's weight is sometimes too small to move any digit of what is added to it.
    least = max(AFFECTS, torch.finfo(output.dtype).eps * SAME_EPS)
    affected = [position for position in written if pattern[0, ..., position].max() > least]
    zeroed = zip(probe.positions, copies, strict=True)
    changed = {position for position, copy in zeroed if not output[copy].equal(output[0])}
    if (written and not changed) or not changed.issuperset(affected):
        raise ModelError(
            f"zeroing {sites.values[layer]} does not change {sites.outputs[layer]}: this attention ignores its "
            "value hook, so there is nothing to measure"
        )


def _are_apart(clean: Tensor, changed: Tensor) -> bool:
    apart, size = (clean.float() - changed.float()).abs().max(), clean.float().abs().max()
    return bool(apart / size.clamp_min(torch.finfo(torch.float32).tiny) > SAME_EPS * torch.finfo(clean.dtype).eps)


# What a Scores says about the model it came from.


def provenance(model: nn.Module, stack: Stack | None = None) -> dict[str, Any]:
    """Name, class, weights and versions, as plain data for a file; of an encoder-decoder also the stack."""
    facts = facts_of(model)
    grouped = attention_heads(model, stack) != value_heads(model, stack)
    return {
        "model": facts.name,
        "model_class": kind_of(model),
        "model_head": facts.head if class_head_of(model) is None else "trained",
        "weights_sha256": weights_hash(model),
        "dtype": str(next(nn.Module.parameters(model)).dtype).removeprefix("torch."),
        "value_heads": "key-value" if grouped else "query",
        "versions": library_versions(),
    }


def result_dtype(model: nn.Module) -> torch.dtype:
    """The dtype of scores: float64 for a float64 model, else float32."""
    dtype = next(nn.Module.parameters(model)).dtype
    return torch.float64 if dtype == torch.float64 else torch.float32
