"""Looking at a model's weights: their hash, their health, and signs of processing."""

import hashlib
import inspect
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import itemgetter
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from tl_vzero.errors import ModelError, ProcessedWeightsWarning
from tl_vzero.models.blocks import weight_view
from tl_vzero.models.changes import bytes_of, content_fingerprint, described
from tl_vzero.models.sites import sites_of, stacks_of

CENTRED_BELOW = 1e-4  # mean of a centred row over its mean size; random rows are at about 1/sqrt(d_model)

_HASHES: WeakKeyDictionary[nn.Module, tuple[str, str]] = WeakKeyDictionary()


@dataclass(eq=False)
class _Looked:
    """The content of a model's weights at the last look, and the contents that were warned of."""

    content: str | None = None
    warned: set[str] = field(default_factory=set)


_LOOKED: WeakKeyDictionary[nn.Module, _Looked] = WeakKeyDictionary()

# Of each model the weights that it runs on a copy of, as TransformerLens splits them, and their content then.
_COPIED: WeakKeyDictionary[nn.Module, tuple[dict[str, Tensor], str]] = WeakKeyDictionary()


def weights_hash(model: nn.Module) -> str:
    """SHA-256 over every parameter and buffer, name by name.

    SHA-256 takes long, so it is kept while a fingerprint of all the weights' content stands, which is read at
    the speed of memory: torch's own version counter misses an edit through `.data`. Raises ModelError and warns as
    `check_weights` does.
    """
    key = check_weights(model)
    known = _HASHES.get(model)
    if known is not None and known[0] == key:
        return known[1]
    result = hash_of_tensors(_tensors(model))
    _HASHES[model] = (key, result)
    return result


def hash_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over tensors and their names, in the order of the names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(described(name, tensor))
        digest.update(bytes_of(tensor.detach().cpu()))
    return digest.hexdigest()


def check_weights(model: nn.Module) -> str:
    """Look at a model's weights whenever their content is new, and return a fingerprint of it.

    Warns of processed weights, once for each content. Raises ModelError where weights were edited that the model
    runs on a copy of.
    """
    looked = _LOOKED.setdefault(model, _Looked())
    content = content_fingerprint(_tensors(model))
    if content != looked.content:
        _check_copied(model)
        if content not in looked.warned and _warn_if_processed(model):
            looked.warned.add(content)
        looked.content = content
    return content


def remember_copied(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Note the weights, by what their owner calls them, that a model runs on a copy of."""
    if weights:
        _COPIED[model] = (weights, content_fingerprint(weights))


def _check_copied(model: nn.Module) -> None:
    weights, before = _COPIED.get(model, ({}, ""))
    if weights and content_fingerprint(weights) != before:
        raise ModelError(
            f"{next(iter(weights))} or another fused weight was edited after loading: TransformerLens runs on a copy "
            "of these weights, split into queries, keys and values, and does not see the edit; load the model again "
            "with tl_vzero.load_model, or edit the parts that it runs on (blocks.0.attn.v.weight and the like)"
        )


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    # nn.Module's own walk: a bridge's state_dict renames, and its parameters() may leave some out.
    walk = [*nn.Module.named_parameters(model), *nn.Module.named_buffers(model)]
    return {name: tensor.detach() for name, tensor in sorted(walk, key=itemgetter(0)) if not tensor.is_meta}


def check_finite(model: nn.Module) -> None:
    """Raise ModelError if a parameter is NaN or infinite, naming the tensors.

    Buffers are left out: an attention mask may hold minus infinity.
    """
    bad = [
        name
        for name, tensor in nn.Module.named_parameters(model)
        if tensor.is_floating_point() and not tensor.is_meta and not torch.isfinite(tensor).all()
    ]
    if bad:
        raise ModelError(
            f"weights are NaN or infinite in {len(bad)} tensors, first {bad[0]}: expected finite numbers; "
            "load the checkpoint again or repair it"
        )


def _warn_if_processed(model: nn.Module) -> bool:
    """Warn where the weights show signs of processing that changes Value Zeroing."""
    reasons = [reason for reason in (_folded_value_biases(model), _centred_writing(model)) if reason]
    if reasons:
        warnings.warn(
            f"this model's weights were processed: {'; '.join(reasons)}. Normalised maps move by up to 7e-2 "
            "(measured on GPT-2). Load without processing, for instance with tl_vzero.load_model or "
            "from_pretrained_no_processing.",
            ProcessedWeightsWarning,
            stacklevel=_levels_to_the_caller(),
        )
    return bool(reasons)


def _levels_to_the_caller() -> int:
    """How many frames above what warns the code lies that called the package, as warnings count them."""
    names = [str(frame.frame.f_globals.get("__name__")) for frame in inspect.stack(context=0)]
    return max(level for level, name in enumerate(names, start=1) if name.partition(".")[0] == "tl_vzero")


def _attentions(model: nn.Module) -> list[nn.Module]:
    stacks = stacks_of(model)
    if not stacks:
        return [block.attn for block in model.blocks]  # type: ignore[union-attr]
    values = [name for stack in stacks for name in sites_of(model, stack).values]
    return [model.get_submodule(name.rpartition(".")[0]) for name in values]


def _weights(modules: list[nn.Module], name: str) -> list[Tensor]:
    views = [weight_view(module, name) for module in modules]
    return [view for view in views if view is not None]


def _folded_value_biases(model: nn.Module) -> str | None:
    attentions = _attentions(model)
    value_biases = _weights(attentions, "b_V")
    other_biases = [*_weights(attentions, "b_Q"), *_weights(attentions, "b_K")]
    # An architecture without attention biases has zeros everywhere; folding leaves only b_V at zero.
    has_biases = any(bias.any() for bias in other_biases)
    if value_biases and has_biases and not any(bias.any() for bias in value_biases):
        return "value biases are folded into b_O, so zeroing hook_v leaves them in the output"
    return None


def _centred_writing(model: nn.Module) -> str | None:
    written = _weights(_attentions(model), "W_O")
    sizes = [weight.float().abs().mean() for weight in written]
    means = [weight.float().mean(dim=-1).abs().mean() for weight in written]
    centred = [mean <= CENTRED_BELOW * size for mean, size in zip(means, sizes, strict=True) if size > 0]
    if centred and all(centred):
        return "writing weights are centred over d_model, which changes cosine distances between block outputs"
    return None
