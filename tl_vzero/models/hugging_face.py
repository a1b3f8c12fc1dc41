"""Hugging Face checkpoints as models that TransformerLens can wrap, and what is known of their heads."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from tl_vzero.errors import ModelError
from tl_vzero.models.facts import Head
from tl_vzero.models.hub import Source, offline_choices


@dataclass(frozen=True)
class Checkpoint:
    """A Hugging Face model with a prediction head, and whether that head was trained."""

    model: nn.Module
    head: Head


def from_folder_or_hub(source: Source, dtype: torch.dtype, trust_remote_code: bool) -> Checkpoint:
    """Read a checkpoint, with a head even where it has none (then `head` is "absent").

    Raises ModelError for a config or weights that cannot be read, or weights that lack part of the model.
    """
    from safetensors import SafetensorError
    from transformers import AutoConfig

    options: dict[str, Any] = {
        "local_files_only": source.local,
        "trust_remote_code": trust_remote_code,
    }
    try:
        config = AutoConfig.from_pretrained(source.location, **options)
        with silent_transformers():
            model, info = _auto_class(config).from_pretrained(
                source.location,
                config=config,
                dtype=dtype,
                attn_implementation="eager",
                output_loading_info=True,
                **options,
            )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"{source.location!r} cannot be read as a Hugging Face model: {error}; {offline_choices()}"
        ) from error
    _name_architecture(model)
    missing = set(info["missing_keys"])
    head = _head_from_missing(source.location, model, missing)
    _zero(model, missing)
    return Checkpoint(model, head)


@contextmanager
def silent_transformers() -> Iterator[None]:
    """No loading bar and no table of missing keys: a missing head is told in words where it matters."""
    from logging import ERROR

    from transformers.utils import logging

    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(ERROR)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()


def _zero(model: nn.Module, names: set[str]) -> None:
    """A head that was never trained holds zeros, not noise, so that nobody takes its logits for real."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in names:
                parameter.zero_()


def _auto_class(config: Any) -> Any:
    """The auto class whose models have a prediction head: masked, causal or sequence to sequence."""
    import transformers
    from transformers.models.auto import modeling_auto as auto

    masked = (auto.MODEL_FOR_MASKED_LM_MAPPING, transformers.AutoModelForMaskedLM)
    causal = (auto.MODEL_FOR_CAUSAL_LM_MAPPING, transformers.AutoModelForCausalLM)
    pairs = (auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING, transformers.AutoModelForSeq2SeqLM)
    architectures = config.architectures or [""]
    is_causal = architectures[0].endswith(("ForCausalLM", "LMHeadModel")) or getattr(config, "is_decoder", False)
    for mapping, auto_class in (causal, masked, pairs) if is_causal else (masked, causal, pairs):
        if type(config) in mapping:
            return auto_class
    return transformers.AutoModel


def _name_architecture(model: Any) -> None:
    # TransformerLens chooses its adapter by this name.
    model.config.architectures = [type(model).__name__]


def _head_from_missing(name: str, model: Any, missing: set[str]) -> Head:
    base = f"{model.base_model_prefix}."
    lost = sorted(key for key in missing if key.startswith(base))
    if lost:
        raise ModelError(
            f"the weights of {name!r} lack {len(lost)} tensors of the model, first {lost[0]}: expected all of "
            "them; the checkpoint is incomplete or belongs to another architecture"
        )
    return "absent" if missing else "trained"


def from_memory(hf_model: nn.Module, device: Any, dtype: torch.dtype | None) -> Checkpoint:
    """Wrap an in-memory model without touching it; a headless base class gets an untrained head.

    The weights are shared with the caller's model, or copied where `device` or `dtype` ask for others.
    """
    first = next(hf_model.parameters(), None)
    if first is None:
        raise ModelError(f"{type(hf_model).__name__} has no parameters: expected a Hugging Face model")
    moves = (dtype is not None and dtype != first.dtype) or (
        device is not None and torch.device(device) != first.device
    )
    model = copy.deepcopy(hf_model) if moves else _sharing_copy(hf_model)
    if moves:
        model = model.to(device=device, dtype=dtype)
    headed = _with_head(model)
    if hasattr(headed, "set_attn_implementation"):
        headed.set_attn_implementation("eager")
    _name_architecture(headed)
    return Checkpoint(headed, "trained" if headed is model else _head_of_wrapper(headed))


def _sharing_copy(model: nn.Module) -> Any:
    """New modules around the same tensors: TransformerLens replaces modules in what it wraps."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def _with_head(model: Any) -> Any:
    auto_class = _auto_class(model.config)
    if not hasattr(auto_class, "_model_mapping") or model.base_model_prefix == "":
        return model
    headed_class = auto_class._model_mapping[type(model.config)]
    base_class = getattr(headed_class, "base_model_prefix", "")
    is_base = not hasattr(model, base_class) and not isinstance(model, headed_class)
    if not is_base:
        return model
    with torch.device("meta"):
        headed = headed_class(model.config)
    setattr(headed, headed_class.base_model_prefix, model)
    return _materialised(headed, next(model.parameters()))


def _materialised(headed: Any, like: nn.Parameter) -> Any:
    """Fill the new head with zeros: it was never trained, and zeros show it plainly."""
    for module in headed.modules():
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for name, tensor in own:
            if not tensor.is_meta:
                continue
            zeros = torch.zeros(tensor.shape, dtype=like.dtype, device=like.device)
            is_parameter = isinstance(tensor, nn.Parameter)
            setattr(module, name, nn.Parameter(zeros) if is_parameter else zeros)
    headed.tie_weights()
    return headed.eval()


def _head_of_wrapper(headed: Any) -> Head:
    """A head of tied embeddings alone has nothing untrained in it, as in GPT-2."""
    base = getattr(headed, headed.base_model_prefix)
    shared = {id(parameter) for parameter in base.parameters()}
    return "trained" if all(id(p) in shared for p in headed.parameters()) else "absent"
