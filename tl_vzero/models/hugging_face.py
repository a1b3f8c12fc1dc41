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
from tl_vzero.models.signals import signal_read_by

# Read in training only, or from the last block on: checkpoints of images and speech often lack them.
_UNREAD = ("masked_spec_embed", "mask_token", "pooler.dense.weight", "pooler.dense.bias")


@dataclass(frozen=True)
class Checkpoint:
    """A Hugging Face model with a prediction head, whether that head was trained, and whose weights it shares."""

    model: nn.Module
    head: Head
    shared_with: nn.Module | None = None


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
    """The auto class whose models have a head: for words, or for an image or a sound where the checkpoint has one."""
    import transformers
    from transformers.models.auto import modeling_auto as auto

    masked = (auto.MODEL_FOR_MASKED_LM_MAPPING, transformers.AutoModelForMaskedLM)
    causal = (auto.MODEL_FOR_CAUSAL_LM_MAPPING, transformers.AutoModelForCausalLM)
    pairs = (auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING, transformers.AutoModelForSeq2SeqLM)
    architectures = config.architectures or [""]
    of_signals = {
        "ForImageClassification": transformers.AutoModelForImageClassification,
        "ForCTC": transformers.AutoModelForCTC,
    }
    for ending, auto_class in of_signals.items():
        if architectures[0].endswith(ending):
            return auto_class
    is_causal = architectures[0].endswith(("ForCausalLM", "LMHeadModel")) or getattr(config, "is_decoder", False)
    # Half of an encoder-decoder can be read as a causal model, too.
    others = (pairs, masked, causal) if getattr(config, "is_encoder_decoder", False) else (masked, causal, pairs)
    for mapping, auto_class in (causal, masked, pairs) if is_causal else others:
        if type(config) in mapping:
            return auto_class
    return transformers.AutoModel


def _name_architecture(model: Any) -> None:
    # TransformerLens chooses its adapter by this name.
    model.config.architectures = [type(model).__name__]


def _head_from_missing(name: str, model: Any, missing: set[str]) -> Head:
    if signal_read_by(model) is not None:
        missing = {key for key in missing if not key.endswith(_UNREAD)}
    lost = sorted(key for key in missing if _is_of_base(model, key))
    if lost:
        raise ModelError(
            f"the weights of {name!r} lack {len(lost)} tensors of the model, first {lost[0]}: expected all of "
            "them; the checkpoint is incomplete or belongs to another architecture"
        )
    return "absent" if missing or _is_bare(model) else "trained"


def _is_bare(model: Any) -> bool:
    """Whether a model of images or speech has no head; one for words is given a head on loading."""
    return signal_read_by(model) is not None and model.base_model is model


def _is_of_base(model: Any, key: str) -> bool:
    """Whether a tensor belongs to the model below the prediction head; T5's class holds that part directly."""
    prefix = model.base_model_prefix
    is_within = not prefix or hasattr(model, prefix)
    return key.startswith(f"{prefix}.") if is_within else not key.startswith("lm_head.")


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
    _name_architecture(headed)
    shared_with = None if moves else hf_model
    if headed is model:
        return Checkpoint(headed, "absent" if _is_bare(headed) else "trained", shared_with)
    return Checkpoint(headed, _head_of_wrapper(headed), shared_with)


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
    base = _without_head(model, headed_class)
    if base is None:
        return model
    with torch.device("meta"):
        headed = headed_class(model.config)
    if hasattr(headed, base_class):
        setattr(headed, base_class, base)
    else:
        for name, part in base.named_children():
            setattr(headed, name, part)
    return _materialised(headed, next(model.parameters()))


def _without_head(model: Any, headed_class: Any) -> Any | None:
    """The base model of one that predicts no words: headless, or a classifier; None where there are words."""
    base_class = getattr(headed_class, "base_model_prefix", "")
    if isinstance(model, headed_class):
        return None
    if not hasattr(model, base_class):
        return model
    # Where there is no head for words at all, as for images and speech, a model's own head stays.
    has_words = issubclass(headed_class, type(getattr(model, base_class))) or model.get_output_embeddings() is not None
    return None if has_words else getattr(model, base_class)


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
    named = dict(headed.named_parameters(remove_duplicate=False))
    shared = {id(parameter) for name, parameter in named.items() if _is_of_base(headed, name)}
    return "trained" if all(id(parameter) in shared for parameter in named.values()) else "absent"
