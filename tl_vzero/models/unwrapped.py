"""The Hugging Face model inside what people hold: a pipeline, a SentenceTransformer, a model with adapters of PEFT."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from inspect import ismethod
from typing import Any

import torch
from torch import Tensor, nn

from tl_vzero.distance import relative_difference, widened
from tl_vzero.errors import InputTypeError, ModelError, foreign_errors_as
from tl_vzero.models.same_function import SAME_BLOCK, SAME_HALF, hidden_states

EXPECTED = "expected a name, a folder, or an in-memory Hugging Face model"


@dataclass(frozen=True)
class Held:
    """A Hugging Face model, the tokenizer that came with it, and what it is a copy of, with adapters merged."""

    model: Any
    tokenizer: Any | None
    copied_from: Any | None = None


def unwrapped(thing: Any) -> Held:
    """The model in a transformers pipeline or an object of sentence-transformers, or the model itself.

    Adapters of PEFT are merged into a copy. Raises InputTypeError for what holds no Hugging Face model,
    ModelError for weights that are quantised or elsewhere, or an adapter that cannot be merged.
    """
    from transformers import Pipeline, PreTrainedModel

    held = Held(thing, None)
    if isinstance(thing, Pipeline):
        held = Held(thing.model, getattr(thing, "tokenizer", None))
    elif _is_of(thing, "sentence_transformers") and isinstance(thing, nn.Module):
        inside = _models_in(thing)
        if len(inside) != 1:
            raise ModelError(
                f"{type(thing).__name__} holds {len(inside)} Hugging Face models ({', '.join(inside) or 'none'}): "
                "expected one; pass the model itself and its tokenizer"
            )
        held = Held(next(iter(inside.values())), _tokenizer_in(thing))
    if _is_of(held.model, "peft") and isinstance(held.model, nn.Module):
        held = Held(_inside_peft(held.model), held.tokenizer)
    if not isinstance(held.model, PreTrainedModel):
        raise InputTypeError(_no_model(held.model))
    _check_weights(held.model)
    if any(_is_of(module, "peft") for module in held.model.modules()):
        held = Held(_with_adapters_merged(held.model), held.tokenizer, held.model)
    return held


def _is_of(thing: object, package: str) -> bool:
    return any(cls.__module__.partition(".")[0] == package for cls in type(thing).__mro__)


def _models_in(module: nn.Module) -> dict[str, Any]:
    """The outermost Hugging Face models inside a module, by their paths."""
    from transformers import PreTrainedModel

    inside: dict[str, Any] = {}
    for path, part in nn.Module.named_modules(module):
        if isinstance(part, PreTrainedModel) and not any(path.startswith(f"{outer}.") for outer in inside):
            inside[path] = part
    return inside


def _tokenizer_in(thing: nn.Module) -> Any | None:
    with foreign_errors_as(ModelError, f"the tokenizer of this {type(thing).__name__} cannot be reached"):
        tokenizer = getattr(thing, "tokenizer", None)
    return tokenizer if callable(tokenizer) and hasattr(tokenizer, "save_pretrained") else None


def _no_model(thing: Any) -> str:
    """The message for what is no Hugging Face model: what it is, and what to pass."""
    kind = f"{type(thing).__module__}.{type(thing).__name__}"
    if isinstance(thing, type):
        return f"cannot load a model from the class {thing.__name__}: {EXPECTED}; make one of it, or pass a name"
    if _is_of(thing, "transformer_lens"):
        return f"this is a TransformerLens model already ({kind}): give it to value_zeroing as it is; {EXPECTED}"
    if isinstance(thing, nn.Module):
        inside = _models_in(thing)
        if inside:
            path, model = next(iter(inside.items()))
            return f"{kind} is no Hugging Face model, and holds one: pass its .{path} ({type(model).__name__})"
        return f"{kind} is no Hugging Face model (transformers.PreTrainedModel): {EXPECTED}"
    return f"cannot load a model from {kind}: {EXPECTED}"


def _check_weights(model: nn.Module) -> None:
    """Raise ModelError for weights that are not here (meta, offloaded) or are no plain numbers (quantised)."""
    name = type(model).__name__
    tensors = [*model.named_parameters(), *model.named_buffers()]
    away = [path for path, tensor in tensors if tensor.is_meta]
    if away:
        raise ModelError(
            f"{len(away)} tensors of this {name} are on the device 'meta', first {away[0]}: it is offloaded or empty, "
            "and its weights are not here to be read; load it whole, without device_map or offloading"
        )
    quantised = next(_quantised_parts(model), None)
    if quantised:
        raise ModelError(
            f"{quantised} of this {name} is quantised, and TransformerLens computes with weights that are plain float "
            "tensors: load the model without quantisation (from_pretrained with a float dtype, and no "
            "quantization_config), or call its dequantize()"
        )
    if not any(parameter.is_floating_point() for parameter in model.parameters()):
        raise ModelError(f"{name} has no parameters: expected a Hugging Face model")


def _quantised_parts(model: nn.Module) -> Iterator[str]:
    for path, module in model.named_modules():
        # Packed weights are behind a method; torch's quantised linear and embedding maps do so.
        if ismethod(getattr(module, "weight", None)) or type(module).__module__.startswith("torch.ao.nn.quantized"):
            yield f"{path} ({type(module).__name__})"
    for path, parameter in model.named_parameters():
        is_plain = type(parameter.data) is Tensor and (parameter.is_floating_point() or parameter.numel() == 0)
        if not is_plain:
            yield f"{path} ({parameter.dtype}, {type(parameter.data).__name__})"


def _inside_peft(wrapped: Any) -> Any:
    config = getattr(wrapped, "active_peft_config", None)
    if config is None or not hasattr(wrapped, "get_base_model"):
        raise ModelError(
            f"{type(wrapped).__name__} is a part of PEFT, or mixes adapters: expected a PeftModel; pass what its "
            "merge_and_unload() gives, or the model that get_base_model() gives"
        )
    if getattr(config, "is_prompt_learning", False):
        raise ModelError(
            f"this {type(wrapped).__name__} puts learned prompts ({config.peft_type}) before the text, which are no "
            "tokens and cannot be scored: pass model.get_base_model() for the model without them"
        )
    return wrapped.get_base_model()


def _with_adapters_merged(model: Any) -> Any:
    """A copy whose active adapters are in its weights, which the methods that read weights would miss otherwise."""
    name = type(model).__name__
    what = f"the PEFT adapters in this {name} cannot be merged (pass what merge_and_unload() gives)"
    with foreign_errors_as(ModelError, what), torch.no_grad():
        merged = copy.deepcopy(model).eval()
        before = hidden_states(merged)
        for path, layer in list(merged.named_modules()):
            # One inside another is gone with it.
            if path and _is_of(layer, "peft") and dict(merged.named_modules()).get(path) is layer:
                parent, _, last = path.rpartition(".")
                setattr(merged.get_submodule(parent), last, _merged_layer(layer))
        left = [path for path, part in merged.named_modules() if _is_of(part, "peft")]
        if left:
            raise ModelError(f"{what}: {left[0]} is still an adapter; expected plain modules after merging")
        after = hidden_states(merged)
    if before is not None and after is not None:
        was, now = before.outputs[""], after.outputs[""]
        apart = relative_difference(widened(now), widened(was))
        if not apart <= SAME_BLOCK.get(was.dtype, SAME_HALF):
            raise ModelError(
                f"{what}: merged, it computes other hidden states than before (relative difference {apart:.1g}), "
                "as with an adapter that is switched off or acts on more than weights"
            )
    return merged


def _merged_layer(layer: Any) -> Any:
    """The plain module that computes what a layer with adapters computes."""
    if hasattr(layer, "unload_and_optionally_merge_module"):  # a module trained whole, or attention as one module
        return layer.unload_and_optionally_merge_module(merge=True, safe_merge=True, adapter_names=None)
    if not (layer.disable_adapters or layer.merged):  # once one is merged, PEFT computes with the merged alone
        layer.merge(safe_merge=True)
    return layer.get_base_layer()
