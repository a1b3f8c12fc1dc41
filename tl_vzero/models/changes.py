"""What a model computes beside its weights' content, and whether the model that it shares weights with has changed."""

from dataclasses import dataclass
from types import FunctionType
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
import xxhash
from jaxtyping import Int
from torch import Tensor, nn

from tl_vzero.errors import ModelError
from tl_vzero.models.sites import hf_model_of

_CONFIGURED = ("act_fn", "eps", "normalization_type", "uses_rms_norm", "rmsnorm_uses_offset")
_TORCH_ATTRIBUTES = frozenset(vars(nn.Module()))
# A hook that Hugging Face sets on embeddings for gradient checkpointing, and leaves there: it computes nothing.
_FOR_GRADIENTS = "make_inputs_require_grads"
INTEGER_OF_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_PLAIN = frozenset([bool, float, str])
_COLLECTIONS = frozenset([list, tuple, set, dict])


def module_fingerprint(model: nn.Module) -> tuple[object, ...]:
    """What changes when a module is replaced, patched, by its class too, or given a hook of torch's own.

    Hooks of hook points are left out: they come and go with runs, and `acted_on` tells of them.
    """
    modules = walk([root for root in (model, hf_model_of(model)) if root is not None])
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
    before, after = nn.modules.module._global_forward_pre_hooks, nn.modules.module._global_forward_hooks
    return tuple(
        tuple([number for number, hook in hooks.items() if not str(hook.__module__).startswith("torch.")])
        for hooks in (before, after)
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


def _patched(module: nn.Module) -> tuple[object, ...] | None:
    own = module.__dict__
    if "fwd_hooks" in own and "forward" not in own:
        return None
    before, after, forward = own["_forward_pre_hooks"], own["_forward_hooks"], own.get("forward")
    # Torch numbers its hooks, and never gives a number twice.
    numbers = tuple([number for number, hook in after.items() if getattr(hook, "__name__", "") != _FOR_GRADIENTS])
    if not before and not numbers and forward is None:
        return None
    return id(module), tuple(before), numbers, id(forward)


def _code_of(modules: list[nn.Module]) -> tuple[object, ...]:
    """The modules' classes, and the functions of these, which somebody may replace."""
    kinds = tuple(map(type, modules))
    classes = dict.fromkeys(base for kind in dict.fromkeys(kinds) for base in kind.__mro__)
    return kinds, tuple([each for cls in classes for each in vars(cls).values() if type(each) is FunctionType])


@dataclass(frozen=True, eq=False)
class _Followed:
    """A Hugging Face model of the caller's, how it was at loading, and its tensors, so that no id is used again.

    `places` are where those tensors began that the loaded model has views of: a view does not follow `.data =`.
    `copied` is a fingerprint of its weights where the loaded model computes with a copy: that follows no edit.
    """

    model: ref[nn.Module]
    before: "_State"
    tensors: list[Tensor]
    places: list[tuple[Tensor, int]]
    copied: str | None

    def are_elsewhere(self) -> bool:
        """Whether a tensor has left the memory that the loaded model looks at."""
        return any(tensor.data_ptr() != place for tensor, place in self.places)


@dataclass(frozen=True)
class _State:
    """Of each module, in one order: what it is, its hooks, its tensors, and what its attributes say."""

    modules: list[ref[nn.Module]]
    hooks: list[tuple[object, ...] | None]
    tensors: list[tuple[object, ...]]
    attributes: list[list[tuple[str, object]]]
    code: tuple[object, ...]
    hooks_on_all: tuple[object, ...]


_FOLLOWED: WeakKeyDictionary[nn.Module, _Followed] = WeakKeyDictionary()


def follow(model: nn.Module, caller: nn.Module, *, copied: bool = False) -> None:
    """From now on, `check_followed` compares the model that `model` came from to what it is now.

    `model` shares its weights, or is `copied` from it, with adapters merged.
    """
    tensors = [tensor for module in walk([caller]) for tensor in _tensors_of(module)]
    inside = hf_model_of(model)
    own = [tensor for module in walk([model] if inside is None else [model, inside]) for tensor in _tensors_of(module)]
    shared = {id(tensor) for tensor in tensors}
    views = {tensor.untyped_storage().data_ptr() for tensor in own if id(tensor) not in shared}
    viewed = [(tensor, tensor.data_ptr()) for tensor in tensors if tensor.untyped_storage().data_ptr() in views]
    _FOLLOWED[model] = _Followed(
        ref(caller), _state_of(caller), tensors, viewed, _content_of(caller) if copied else None
    )


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
    if now != followed.before or followed.are_elsewhere():
        difference = _difference(followed.before, now, caller)
    elif is_copy and _content_of(caller) != followed.copied:
        difference = "its weights were edited"
    else:
        return
    shared, expected = (
        ("This model is a copy of it with its adapters merged", "as it was")
        if is_copy
        else (
            "It shares its weights with this model, but not its modules",
            "as it was, or with weights edited in place",
        )
    )
    raise ModelError(
        f"the {type(caller).__name__} that this model was loaded from has changed since: {difference}. {shared}, "
        f"and the two no longer compute the same: expected it {expected}; load it again with tl_vzero.load_model"
    )


def _content_of(caller: nn.Module) -> str:
    tensors = [tensor.detach() for module in walk([caller]) for tensor in _tensors_of(module)]
    return content_fingerprint({str(place): tensor for place, tensor in enumerate(tensors)})


def _state_of(caller: nn.Module) -> _State:
    modules = walk([caller])
    return _State(
        [ref(module) for module in modules],
        [_patched(module) for module in modules],
        [tuple([_identity(tensor) for tensor in _tensors_of(module)]) for module in modules],
        [_attributes(module) for module in modules],
        _code_of(modules),
        _hooks_on_all_modules(),
    )


def _tensors_of(module: nn.Module) -> list[Tensor]:
    """Parameters and buffers; those buffers that are not saved may be made anew by a run, as rotary frequencies are."""
    own = module.__dict__
    buffers = [each for name, each in own["_buffers"].items() if name not in own["_non_persistent_buffers_set"]]
    return [tensor for tensor in (*own["_parameters"].values(), *buffers) if tensor is not None]


def _identity(tensor: Tensor) -> tuple[object, ...]:
    # `.to()` and a resized vocabulary leave a parameter the same and change its inside.
    return id(tensor), tensor.dtype, tensor.device, tensor.shape


def _attributes(module: nn.Module) -> list[tuple[str, object]]:
    """Numbers and words on a module: an adapter's state, a norm's epsilon. Integers may count runs: left out."""
    attributes: list[tuple[str, object]] = []
    if hasattr(
        type(module), "base_model_prefix"
    ):  # a whole model of Hugging Face's keeps books, but computes by its parts
        return attributes
    for name, value in module.__dict__.items():
        kind = type(value)
        if kind in _PLAIN and not _is_of_training(name):
            attributes.append((name, value))
        elif kind in _COLLECTIONS and name not in _TORCH_ATTRIBUTES:
            items: Any = value.items() if kind is dict else value
            if all(type(item) in _PLAIN for item in (value.values() if kind is dict else value)):
                attributes.append((name, tuple(items)))
    return attributes


def _is_of_training(name: str) -> bool:
    return name == "training" or "drop" in name or name == "p" or "checkpointing" in name


def _difference(before: _State, now: _State, caller: nn.Module) -> str:
    """The first thing that differs, in words."""
    if before.modules != now.modules:
        return "modules were replaced, added or taken away"
    if before.code != now.code:
        return "the class of a module, or a function of it, was replaced"
    if before.hooks_on_all != now.hooks_on_all:
        return "hooks on all modules (register_module_forward_hook) were set or removed"
    names = {id(module): name for name, module in caller.named_modules()}
    for place, module in enumerate(walk([caller])):
        where = names.get(id(module)) or "the whole"
        if before.hooks[place] != now.hooks[place]:
            return f"hooks or the forward of {where} were set or removed"
        if before.tensors[place] != now.tensors[place]:
            return f"weights of {where} were replaced, resized, cast or moved"
        if before.attributes[place] != now.attributes[place]:
            one, other = dict(before.attributes[place]), dict(now.attributes[place])
            changed = [name for name in one | other if one.get(name) != other.get(name)]
            return f"{', '.join(changed)} of {where} changed, as when an adapter is merged, set or disabled"
    return "data of its weights were replaced"


def described(name: str, tensor: Tensor) -> bytes:
    """A tensor's name, kind and size, as they go into a hash beside its content."""
    return f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode()


def bytes_of(tensor: Tensor) -> memoryview:
    """The content of a tensor that is on the CPU."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def content_fingerprint(tensors: dict[str, Tensor]) -> str:
    """A hash of weights' content at the speed of memory: torch's version counter misses an edit through `.data`."""
    digest = xxhash.xxh3_128()
    storages: dict[int, tuple[int, torch.UntypedStorage]] = {}
    for name, tensor in tensors.items():
        digest.update(described(name, tensor))
        if tensor.device.type != "cpu":
            # Summed where they are: fetching them would take longer than the scores.
            digest.update(bytes_of(_sums(tensor).cpu()))
            continue
        # Views share a storage: its bytes are read once, as they lie, and each view says which part it shows.
        storage = tensor.untyped_storage()
        number, _ = storages.setdefault(storage.data_ptr(), (len(storages), storage))
        digest.update(f"{number} {tensor.storage_offset()} {tensor.stride()}".encode())
    for _, storage in storages.values():
        digest.update(bytes_of(torch.empty(0, dtype=torch.uint8).set_(storage)))
    return digest.hexdigest()


def _sums(tensor: Tensor) -> Int[Tensor, "sum"]:
    """Row and column sums of a tensor's bits, which any one edit changes, and nearly any several."""
    rows = torch.atleast_2d(tensor.contiguous()).flatten(end_dim=-2)
    bits = rows.view(INTEGER_OF_SIZE[rows.element_size()])
    return torch.cat([bits.sum(dim=0), bits.sum(dim=1)])
