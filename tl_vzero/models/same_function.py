"""Whether TransformerLens computes what the Hugging Face model that it wraps computes."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten

from tl_vzero.distance import relative_difference, widened
from tl_vzero.errors import ModelError
from tl_vzero.models.run import quiet
from tl_vzero.models.signals import media_probe, placeholders, signal_read_by

PROBE_LENGTH = 6  # tokens
# How far what an attention, or a block, writes may be apart (root mean square, relative): another order of operations,
# never another function. Over all architectures of the tests both are at most 4e-7 in float32, 2e-7 in float64
# (Hugging Face's norms are float32 inside), 1.2e-3 in float16 and 9e-3 in bfloat16; but where experts are chosen,
# rounding may choose others, and a block is 2e-2 apart in bfloat16.
SAME_ATTENTION = {torch.float64: 1e-4, torch.float32: 1e-3, torch.float16: 5e-3, torch.bfloat16: 1.5e-2}
SAME_BLOCK = {torch.float64: 1e-4, torch.float32: 1e-3}
SAME_HALF = 0.1
# Of an image or a sound the same is to be made; TransformerLens 3.9 gives LLaVA's encoder the eps of its text, and is
# 3e-6 apart.
SAME_MEDIA = {torch.float64: 1e-6, torch.float32: 1e-6}

# Blocks stand in lists, and are named by their place; attentions are named so everywhere.
_BLOCK = re.compile(r"(^|\.)\d+$")
_ATTENTION = re.compile(r"att[^.]*$", re.IGNORECASE)
_NO_ATTENTION = re.compile(r"(norm|drop)[^.]*$", re.IGNORECASE)
# What TransformerLens puts between a module's name and those of its parts.
_WRAPPED = "_original_component"


@dataclass(frozen=True, eq=False)
class HiddenStates:
    """The inputs of a model's blocks, and the outputs of its blocks and attentions, by name; "" is the whole model.

    `places` are the memory addresses of the weights that it computed with.
    """

    inputs: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)
    places: set[int] = field(default_factory=set)


def hidden_states_before(hf_model: Any) -> HiddenStates | None:
    """Hidden states by the attention that a model came with; it is left with eager attention."""
    set_attention = getattr(hf_model, "set_attn_implementation", lambda _: None)
    try:
        return hidden_states(hf_model)
    except Exception:  # a fused attention may ask for another device or dtype, and fail in any way
        set_attention("eager")
        return hidden_states(hf_model)
    finally:
        set_attention("eager")


def hidden_states(hf_model: Any, inputs: dict[str, Tensor] | None = None) -> HiddenStates | None:
    """Hidden states of a short sentence, an image or a sound; None for a model that reads none of them.

    TransformerLens puts its own modules into the model that it wraps, so the same call shows what they compute. A
    block named in `inputs` reads these, so that rounding in earlier blocks does not add up.
    """
    arguments = _arguments(hf_model)
    if arguments is None:
        return None
    states = HiddenStates()
    with _watched(hf_model, states, inputs or {}):
        last: Tensor = hf_model.base_model(**arguments)[0]
    states.outputs[""] = last.detach().clone()
    return states


def media_features(hf_model: Any) -> Tensor | None:
    """What a model of text and media makes of a probing image or sound, for its blocks; None where it reads none."""
    first, features = next(hf_model.parameters()), []
    for argument, probe in media_probe(hf_model.config).items():
        arguments = {
            name: tensor.to(device=first.device, dtype=first.dtype if tensor.is_floating_point() else tensor.dtype)
            for name, tensor in probe.items()
        }
        if argument == "pixel_values":
            features.append(hf_model.base_model.get_image_features(**arguments))
        elif hasattr(hf_model.base_model, "audio_tower"):
            features.append(hf_model.base_model.audio_tower(**arguments))
    parts = [part.flatten() for part in tree_flatten(features)[0] if isinstance(part, Tensor)]
    return torch.cat(parts) if parts else None


def reads_media_alike(bridge: nn.Module, hf_model: Any, before: Tensor | None) -> bool:
    """Whether a bridged model makes the same of an image or a sound as `before` it was wrapped."""
    if before is None:
        return True
    try:
        with quiet(bridge):
            after = media_features(hf_model)
    except Exception:  # a module put in place of another may fail in any way
        return False
    allowed = SAME_MEDIA.get(before.dtype, SAME_HALF)
    return after is not None and relative_difference(widened(after), widened(before)) <= allowed


def _arguments(hf_model: Any) -> dict[str, Tensor] | None:
    config, first = hf_model.config, next(hf_model.parameters())
    size = getattr(config, "vocab_size", None) or getattr(getattr(config, "text_config", None), "vocab_size", None)
    signal = signal_read_by(hf_model)
    if signal is None and (hf_model.main_input_name != "input_ids" or not size):
        return None
    # From the end of the vocabulary: special tokens, which a model may treat apart, are mostly at its beginning.
    ids = ((size or 0) - 1 - 7 * torch.arange(PROBE_LENGTH)) % (size or 1)
    ids[torch.isin(ids, torch.tensor([*placeholders(config).values()]))] = 0  # an image that is not there
    ids = ids.unsqueeze(0).to(first.device)
    read = ids if signal is None else signal.probe(PROBE_LENGTH).to(first).unsqueeze(0)
    arguments = {hf_model.main_input_name: read}
    return arguments | ({"decoder_input_ids": ids} if hf_model.config.is_encoder_decoder else {})


@contextmanager
def _watched(hf_model: nn.Module, states: HiddenStates, inputs: dict[str, Tensor]) -> Iterator[None]:
    with _NotesPlaces(states.places), ExitStack() as hooks:
        for path, module in hf_model.named_modules(remove_duplicate=False):
            name = _unwrapped(path)
            is_block = _BLOCK.search(name) is not None
            if is_block:
                read = partial(_read, name=name, states=states, inputs=inputs)
                hooks.callback(module.register_forward_pre_hook(read, with_kwargs=True).remove)
            if is_block or (_ATTENTION.search(name) and not _NO_ATTENTION.search(name)):
                hooks.callback(module.register_forward_hook(partial(_write, name=name, states=states)).remove)
        yield


class _NotesPlaces(TorchFunctionMode):
    """Within, notes where in memory the parameters lie that torch's functions are called on."""

    def __init__(self, places: set[int]) -> None:
        super().__init__()
        self._places = places

    def __torch_function__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        for argument in (*args, *(kwargs or {}).values()):
            parts = argument if isinstance(argument, list | tuple) else [argument]
            self._places.update(_place(part) for part in parts if isinstance(part, nn.Parameter))
        return function(*args, **(kwargs or {}))


def _place(weight: Tensor) -> int:
    return weight.untyped_storage().data_ptr()


def _read(
    _: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    name: str,
    states: HiddenStates,
    inputs: dict[str, Tensor],
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    x = args[0] if args else kwargs.get("hidden_states")
    if not isinstance(x, Tensor) or not x.is_floating_point():
        return None
    states.inputs[name] = x.detach().clone()
    replayed = inputs.get(name)
    if replayed is None or replayed.shape != x.shape:
        return None
    replayed = replayed.clone()
    return ((replayed, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": replayed})


def _write(_: nn.Module, args: Any, output: Any, *, name: str, states: HiddenStates) -> None:
    first = output[0] if isinstance(output, tuple) and output else output
    if isinstance(first, Tensor) and first.is_floating_point():
        states.outputs[name] = first.detach().clone()


def check_same_function(bridge: nn.Module, hf_model: Any, before: HiddenStates | None) -> dict[str, Tensor]:
    """Raise ModelError where a bridged model's blocks or attentions write other than `before` it was wrapped.

    Each is compared by itself: what an attention adds may be little beside the residual stream. Returns the weights
    that nothing reads any more, since TransformerLens runs on a copy of them.
    """
    if before is None:
        return {}
    library, name = f"TransformerLens {version('transformer-lens')}", type(hf_model).__name__
    try:
        with quiet(bridge):
            after = hidden_states(hf_model, before.inputs)
    except Exception as error:  # a module put in place of another may fail in any way
        raise ModelError(f"{library} cannot run {name}, which runs by itself: {error}") from error
    assert after is not None
    dtype = next(hf_model.parameters()).dtype
    for path, output in before.outputs.items():
        wrapped = after.outputs.get(path)
        if wrapped is None or wrapped.shape != output.shape:
            continue
        allowed = SAME_ATTENTION if _ATTENTION.search(path) else SAME_BLOCK
        apart = relative_difference(widened(wrapped), widened(output))
        if not apart <= allowed.get(dtype, SAME_HALF):
            raise ModelError(
                f"{library} computes other hidden states than {name} itself (relative difference {apart:.1g} at "
                f"{path or 'the last'}): its scores would be those of another model; expected the same up to rounding; "
                "another version may read it, or the model with another attn_implementation"
            )
    unused = before.places - after.places
    return {
        _unwrapped(name): weight for name, weight in nn.Module.named_parameters(hf_model) if _place(weight) in unused
    }


def _unwrapped(path: str) -> str:
    return ".".join(part for part in path.split(".") if part != _WRAPPED)
