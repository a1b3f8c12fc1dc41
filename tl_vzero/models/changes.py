"""What may change in a model between two calls: its modules, hooks and weights, and the model that it came from.

Whatever is cached for a model is valid while these fingerprints are the same.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from operator import itemgetter
from types import FunctionType
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
import xxhash
from jaxtyping import Int
from torch import Tensor, nn

from tl_vzero.errors import ModelError, ProcessedWeightsWarning, warn_caller
from tl_vzero.models.blocks import weight_view
from tl_vzero.models.sites import roots_of, sites_of, stacks_of

# Fields of a model's configuration that its blocks read while they compute.
_CONFIGURED = ("act_fn", "eps", "normalization_type", "uses_rms_norm", "rmsnorm_uses_offset")
_TORCH_ATTRIBUTES = frozenset(vars(nn.Module()))
# A hook that Hugging Face sets on embeddings for gradient checkpointing, and leaves there: it computes nothing.
_FOR_GRADIENTS = "make_inputs_require_grads"
INTEGER_OF_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_PLAIN = frozenset([bool, float, str])
_COLLECTIONS = frozenset([list, tuple, set, dict])
_OF_TRAINING = re.compile("^(training|p)$|drop|checkpointing")


def module_fingerprint(model: nn.Module) -> tuple[object, ...]:
    """What changes when a module is replaced, patched, by its class too, or given a hook of torch's own.

    Hooks of hook points are left out: they come and go with runs, and `has_user_hooks` tells of them.
    """
    modules = walk(roots_of(model))
    config = getattr(model, "cfg", None)
    return (
        tuple([ref(module) for module in modules]),
        tuple([patched for patched in map(_patched, modules) if patched is not None]),
        _code_of(modules),
        tuple([getattr(config, name, None) for name in _CONFIGURED]),
        _hooks_on_all_modules(),
    )


def _hooks_on_all_modules() -> tuple[object, ...]:
    """Torch's own are left out: its counters of operations only look on."""
    tables = (nn.modules.module._global_forward_pre_hooks, nn.modules.module._global_forward_hooks)
    return tuple(
        tuple(key for key, hook in table.items() if not str(hook.__module__).startswith("torch.")) for table in tables
    )


def walk(roots: list[nn.Module]) -> list[nn.Module]:
    """Every module once, without the names that make nn.Module's own walk slow."""
    modules = {id(root): root for root in roots}
    waiting = roots[::-1]
    while waiting:
        for part in waiting.pop().__dict__["_modules"].values():
            if part is not None and id(part) not in modules:
                modules[id(part)] = part
                waiting.append(part)
    return list(modules.values())


def has_user_hooks(model: nn.Module) -> bool:
    """Whether hooks of the user's act on the model, so that its weights alone do not say what it does.

    TransformerLens's own hooks, which only pass an activation to a second hook point, do not count.
    """
    points = [point for module in walk([model]) if "fwd_hooks" in (point := module.__dict__)]
    return any(
        # More hooks of torch's than of TransformerLens's: somebody went past it.
        len(point["_forward_hooks"]) > len(point["fwd_hooks"])
        or point["_forward_pre_hooks"]
        or not all(map(_is_internal, point["fwd_hooks"]))
        for point in points
    )


def _is_internal(handle: Any) -> bool:
    function = getattr(handle, "user_hook", None)
    return str(getattr(function, "__module__", "")).partition(".")[0] == "transformer_lens"


def _patched(module: nn.Module) -> tuple[object, ...] | None:
    """The hooks of torch's own on a module, and the `forward` that stands in for its class's; None without any."""
    attributes = module.__dict__
    if "fwd_hooks" in attributes and "forward" not in attributes:  # a hook point
        return None
    forward = attributes.get("forward")
    # Torch numbers its hooks, and never gives a number twice.
    before = tuple(attributes["_forward_pre_hooks"])
    hooks = attributes["_forward_hooks"].items()
    after = tuple([key for key, hook in hooks if getattr(hook, "__name__", "") != _FOR_GRADIENTS])
    return (id(module), before, after, id(forward)) if before or after or forward is not None else None


def _code_of(modules: list[nn.Module]) -> tuple[object, ...]:
    """The modules' classes, and the functions of these, which somebody may replace."""
    kinds = tuple(map(type, modules))
    classes = dict.fromkeys(base for kind in dict.fromkeys(kinds) for base in kind.__mro__)
    return kinds, tuple([member for cls in classes for member in vars(cls).values() if type(member) is FunctionType])


# By what a change of it is called, with {} for a module, or by an attribute's name; and by the module's place.
_State = dict[tuple[str, int], object]


@dataclass(frozen=True, eq=False)
class _Followed:
    """A Hugging Face model of the caller's, how it was at loading, and its tensors, so that no id is used again.

    `places` are where those tensors began that the loaded model has views of: a view does not follow `.data =`.
    `copied` is a fingerprint of its weights where the loaded model computes with a copy: that follows no edit.
    """

    model: ref[nn.Module]
    before: _State
    tensors: list[Tensor]
    places: list[tuple[Tensor, int]]
    copied: str | None


_FOLLOWED: WeakKeyDictionary[nn.Module, _Followed] = WeakKeyDictionary()


def follow(model: nn.Module, caller: nn.Module, *, copied: bool = False) -> None:
    """From now on, `check_followed` compares the model that `model` came from to what it is now.

    `model` shares its weights, or is `copied` from it, with adapters merged.
    """
    tensors = _tensors_in(caller)
    shared = {id(tensor) for tensor in tensors}
    loaded = [tensor for module in walk(roots_of(model)) for tensor in _tensors_of(module)]
    views = {tensor.untyped_storage().data_ptr() for tensor in loaded if id(tensor) not in shared}
    viewed = [(tensor, tensor.data_ptr()) for tensor in tensors if tensor.untyped_storage().data_ptr() in views]
    content = _content_of(caller) if copied else None
    _FOLLOWED[model] = _Followed(ref(caller), _state_of(caller), tensors, viewed, content)


def check_followed(model: nn.Module) -> None:
    """Raise ModelError where the model that it was loaded from has changed in what is not shared.

    Weights that are edited in place are shared. Modules, their hooks and adapters are not.
    """
    followed = _FOLLOWED.get(model)
    caller = None if followed is None else followed.model()
    if followed is None or caller is None:
        return
    now = _state_of(caller)
    is_copy = followed.copied is not None
    if now != followed.before:
        difference = _difference(followed.before, now, caller)
    elif any(tensor.data_ptr() != place for tensor, place in followed.places):
        difference = "data of its weights were replaced"
    elif is_copy and _content_of(caller) != followed.copied:
        difference = "its weights were edited"
    else:
        return
    shared, expected = "It shares its weights with this model, but not its modules", ", or with weights edited in place"
    if is_copy:
        shared, expected = "This model is a copy of it with its adapters merged", ""
    raise ModelError(
        f"the {type(caller).__name__} that this model was loaded from has changed since: {difference}. {shared}, and "
        f"the two no longer compute the same: expected it as it was{expected}; load it again with tl_vzero.load_model"
    )


def _content_of(caller: nn.Module) -> str:
    return content_fingerprint({str(place): tensor.detach() for place, tensor in enumerate(_tensors_in(caller))})


def _state_of(caller: nn.Module) -> _State:
    modules = walk([caller])
    state: _State = {
        ("modules were replaced, added or taken away", 0): [ref(module) for module in modules],
        ("the class of a module, or a function of it, was replaced", 0): _code_of(modules),
        ("hooks on all modules (register_module_forward_hook) were set or removed", 0): _hooks_on_all_modules(),
    }
    for place, module in enumerate(modules):
        state["hooks or the forward of {} were set or removed", place] = _patched(module)
        # `.to()` and a resized vocabulary leave a parameter the same and change its inside.
        inside = [(id(tensor), tensor.dtype, tensor.device, tensor.shape) for tensor in _tensors_of(module)]
        state["weights of {} were replaced, resized, cast or moved", place] = inside
        state |= {(name, place): value for name, value in _attributes(module)}
    return state


def _difference(before: _State, now: _State, caller: nn.Module) -> str:
    """The first thing that differs, in words."""
    what, place = next(key for key in before | now if key not in before or before[key] != now.get(key))
    module = walk([caller])[place]
    where = next((name for name, other in caller.named_modules() if other is module), "") or "the whole"
    changed = what if " " in what else f"{what} of {{}} changed, as when an adapter is merged, set or disabled"
    return changed.replace("{}", where)


def _tensors_in(root: nn.Module) -> list[Tensor]:
    return [tensor for module in walk([root]) for tensor in _tensors_of(module)]


def _tensors_of(module: nn.Module) -> list[Tensor]:
    """Parameters and saved buffers; others may be made anew by a run, as rotary frequencies are."""
    attributes = module.__dict__
    unsaved = attributes["_non_persistent_buffers_set"]
    buffers = [buffer for name, buffer in attributes["_buffers"].items() if name not in unsaved]
    return [tensor for tensor in (*attributes["_parameters"].values(), *buffers) if tensor is not None]


def _attributes(module: nn.Module) -> Iterator[tuple[str, object]]:
    """Numbers and words on a module: an adapter's state, a norm's epsilon. Integers may count runs: left out."""
    # A whole model of Hugging Face's keeps books, but computes by its parts.
    if hasattr(type(module), "base_model_prefix"):
        return
    for name, value in module.__dict__.items():
        if type(value) in _PLAIN and not _OF_TRAINING.search(name):
            yield name, value
        elif type(value) in _COLLECTIONS and name not in _TORCH_ATTRIBUTES:
            items = list(value.items() if type(value) is dict else enumerate(value))
            if all(type(item) in _PLAIN for _, item in items):
                yield name, tuple(items)


def _described(name: str, tensor: Tensor) -> bytes:
    """A tensor's name, kind and size, as they go into a hash beside its content."""
    return f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode()


def _bytes_of(tensor: Tensor) -> memoryview:
    """The content of a tensor that is on the CPU."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def content_fingerprint(tensors: dict[str, Tensor]) -> str:
    """A hash of weights' content at the speed of memory: torch's version counter misses an edit through `.data`."""
    digest = xxhash.xxh3_128()
    storages: dict[int, tuple[int, torch.UntypedStorage]] = {}
    for name, tensor in tensors.items():
        digest.update(_described(name, tensor))
        if tensor.device.type != "cpu":
            # Summed where they are: fetching them would take longer than the scores.
            digest.update(_bytes_of(_sums(tensor).cpu()))
            continue
        # Views share a storage: its bytes are read once, as they lie, and each view says which part it shows.
        storage = tensor.untyped_storage()
        storage_index, _ = storages.setdefault(storage.data_ptr(), (len(storages), storage))
        digest.update(f"{storage_index} {tensor.storage_offset()} {tensor.stride()}".encode())
    for _, storage in storages.values():
        digest.update(_bytes_of(torch.empty(0, dtype=torch.uint8).set_(storage)))
    return digest.hexdigest()


def _sums(tensor: Tensor) -> Int[Tensor, "sum"]:
    """Row and column sums of a tensor's bits, which any one edit changes, and nearly any several."""
    rows = torch.atleast_2d(tensor.contiguous()).flatten(end_dim=-2)
    bits = rows.view(INTEGER_OF_SIZE[rows.element_size()])
    return torch.cat([bits.sum(dim=0), bits.sum(dim=1)])


# The weights' content: a SHA-256 for files, a fast fingerprint for every call, and signs of processing or damage.

CENTRED_BELOW = 1e-4  # mean of a centred row over its mean size; random rows are at about 1/sqrt(d_model)

# Of each model, by the content of its weights: their SHA-256, and the contents that were checked.
_HASHES: WeakKeyDictionary[nn.Module, tuple[str, str]] = WeakKeyDictionary()
_CHECKED: WeakKeyDictionary[nn.Module, set[str]] = WeakKeyDictionary()
# Of each model the weights that it runs on a copy of, as TransformerLens splits them, and their content then.
_COPIED: WeakKeyDictionary[nn.Module, tuple[dict[str, Tensor], str]] = WeakKeyDictionary()


def weights_hash(model: nn.Module) -> str:
    """SHA-256 over every parameter and buffer, name by name.

    SHA-256 is slow, so it is cached until `content_fingerprint` changes. Raises ModelError and warns as
    `check_weights` does.
    """
    content = check_weights(model)
    cached_content, cached_hash = _HASHES.get(model, (None, ""))
    if cached_content != content:
        cached_hash = hash_of_tensors(_tensors(model))
        _HASHES[model] = (content, cached_hash)
    return cached_hash


def hash_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over tensors and their names, in the order of the names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(_described(name, tensor))
        digest.update(_bytes_of(tensor.detach().cpu()))
    return digest.hexdigest()


def check_weights(model: nn.Module) -> str:
    """Check a model's weights whenever their content is new, and return a fingerprint of it.

    Warns of processed weights, once for each content. Raises ModelError where weights were edited that the model
    runs on a copy of.
    """
    content, checked = content_fingerprint(_tensors(model)), _CHECKED.setdefault(model, set())
    if content not in checked:
        _check_copied(model)
        _warn_if_processed(model)
        checked.add(content)
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
    tensors = [*nn.Module.named_parameters(model), *nn.Module.named_buffers(model)]
    return {name: tensor.detach() for name, tensor in sorted(tensors, key=itemgetter(0)) if not tensor.is_meta}


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


def _warn_if_processed(model: nn.Module) -> None:
    """Warn where the weights show signs of processing that changes Value Zeroing."""
    attentions = _attentions(model)
    views = {name: [weight_view(attention, name) for attention in attentions] for name in ("b_Q", "b_K", "b_V", "W_O")}
    b_q, b_k, b_v, w_o = ([view for view in of_name if view is not None] for of_name in views.values())
    reasons = []
    # An architecture without attention biases has zeros everywhere; folding leaves only b_V at zero.
    if b_v and any(bias.any() for bias in b_q + b_k) and not any(bias.any() for bias in b_v):
        reasons.append("value biases are folded into b_O, so zeroing hook_v leaves them in the output")
    sizes = [(weight.float().mean(dim=-1).abs().mean(), weight.float().abs().mean()) for weight in w_o]
    centred = [mean <= CENTRED_BELOW * size for mean, size in sizes if size > 0]
    if centred and all(centred):
        reasons.append("writing weights are centred over d_model, which changes cosine distances between block outputs")
    if reasons:
        warn_caller(
            f"this model's weights were processed: {'; '.join(reasons)}. Normalised maps move by up to 7e-2 "
            "(measured on GPT-2). Load without processing, for instance with tl_vzero.load_model or "
            "from_pretrained_no_processing.",
            ProcessedWeightsWarning,
        )


def _attentions(model: nn.Module) -> list[nn.Module]:
    stacks = stacks_of(model)
    if not stacks:
        return [block.attn for block in model.blocks]  # type: ignore[union-attr]
    values = [name for stack in stacks for name in sites_of(model, stack).values]
    return [model.get_submodule(name.rpartition(".")[0]) for name in values]
