"""Hugging Face checkpoints as models that TransformerLens can wrap: reading them, checking them, giving a head."""

import copy
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from math import inf
from pathlib import Path
from threading import RLock
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tl_vzero.errors import DependencyError, ModelError, foreign_errors_as
from tl_vzero.models.class_head import HEADS_OF_TEXT, OF_NO_TEXT, OF_SIGNALS, OF_TWO_STACKS, kind_of_classifier
from tl_vzero.models.facts import Head
from tl_vzero.models.hub import Source, unreadable_because
from tl_vzero.models.signals import signal_read_by

# Read in training only, or after the last block: checkpoints of images and speech often lack them.
_UNREAD = ("masked_spec_embed", "mask_token", "pooler.dense.weight", "pooler.dense.bias")

# What a model may ask for whatever its files hold: 400 MB of float32, and the tensors of a thousand layers.
ALLOWED_NUMBERS = 100_000_000
ALLOWED_TENSORS = 20_000


@dataclass(frozen=True)
class Checkpoint:
    """A Hugging Face model with a head for words, and whether that was trained.

    `classifier` is the model around the same base whose head is for classes, or why that head is not there, as the
    end of "its head ..."; None for a model of words. `shared_with` is the caller's model whose weights it shares.
    """

    model: nn.Module
    head: Head
    classifier: nn.Module | str | None
    shared_with: nn.Module | None = None


def from_folder_or_hub(source: Source, dtype: torch.dtype, trust_remote_code: bool) -> Checkpoint:
    """Read a checkpoint, with a head even where it has none (then `head` is "absent").

    Raises ModelError for a config or weights that cannot be read, weights that lack part of the model, or a config
    that asks for far more than there are weights for.
    """
    from transformers import AutoConfig

    options: dict[str, Any] = {"local_files_only": source.local, "trust_remote_code": trust_remote_code}
    what = f"{source.location!r} cannot be read as a Hugging Face model{unreadable_because(source)}"
    with foreign_errors_as(ModelError, what):
        config = AutoConfig.from_pretrained(source.location, **options)
        named = list(getattr(config, "architectures", None) or [])
        _check_readable(config, source.name)
        with _Allowance(source), _no_conversion_service():
            eager = {"attn_implementation": "eager", "output_loading_info": True}
            classifier = _classifier_class(config, named)
            model, info = (classifier or _auto_class(config)).from_pretrained(
                source.location, config=config, dtype=dtype, **eager, **options
            )
        model.config.architectures = [type(model).__name__]  # by which TransformerLens chooses its adapter
    missing = set(info["missing_keys"])
    head = _head_from_missing(source.location, model, missing)
    if info.get("mismatched_keys"):
        raise ModelError(
            f"the weights of {source.location!r} have other shapes than its config.json says, first "
            f"{sorted(map(str, info['mismatched_keys']))[0]}: expected the config that belongs to them"
        )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in missing:  # zeros, not noise, so that nobody takes an untrained head's logits for real
                parameter.zero_()
    if classifier is None and kind_of_classifier([type(model).__name__]) in OF_SIGNALS:
        return Checkpoint(model, head, model if head == "trained" else "was never trained")
    if classifier is None:
        return Checkpoint(model, head, _why_dropped(config, named))
    with foreign_errors_as(ModelError, what):
        headed, head_for_words = _with_head(model)
        headed.config.architectures = [type(headed).__name__]
    return Checkpoint(headed, head_for_words, model if head == "trained" else "was never trained")


def _classifier_class(config: Any, named: list[str]) -> Any | None:
    """The class of transformers' own that a checkpoint of a text classifier was saved from."""
    import transformers

    offered = getattr(transformers, named[0], None) if kind_of_classifier(named[:1]) in HEADS_OF_TEXT else None
    if offered is None or offered.main_input_name != "input_ids" or type(config) is not offered.config_class:
        return None
    return None if getattr(config, "is_encoder_decoder", False) else offered


def _why_dropped(config: Any, named: list[str]) -> str | None:
    """Why a checkpoint is read without the head that it was saved with; None where that was for words, or none."""
    import transformers

    if kind_of_classifier(named) is None:
        return None
    if getattr(config, "is_encoder_decoder", False):
        return OF_TWO_STACKS
    return OF_NO_TEXT if hasattr(transformers, named[0]) else "is of a class that transformers does not have"


def _check_readable(config: Any, name: str) -> None:
    """Raise ModelError before a model is built that could not be read: building some compiles code of their own."""
    mapping = _auto_class(config)._model_mapping
    if type(config) in mapping:
        architecture_of(config, name, _class_in(mapping, config).__name__)
    if config.model_type == "rwkv":
        raise ModelError(
            f"{name!r} is an RWKV, which has no attention (and runs a compiler where it is built): Value Zeroing needs "
            "an attention whose values can be zeroed in every block"
        )


class _Allowance(TorchDispatchMode):
    """Ends the building of a model that asks for far more numbers than its files hold, before they are allocated.

    A model is built without memory first (on the device "meta"), of which nothing is real but the sizes.
    """

    def __init__(self, source: Source) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        folder = Path(source.location)
        files_of = (folder.glob(f"*.{ending}") for ending in ("safetensors", "bin"))
        on_disk = sum(path.stat().st_size for paths in files_of for path in paths) if folder.is_dir() else inf
        # A file holds a number in half a byte at least; a head may double a small model, and buffers come on top.
        self._numbers = 4 * on_disk + ALLOWED_NUMBERS
        self._tensors = on_disk / 50 + ALLOWED_TENSORS
        self._name = source.location

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        built = func(*args, **(kwargs or {}))
        if isinstance(built, Tensor) and not any(isinstance(argument, Tensor) for argument in args):
            self._numbers -= built.numel()
            self._tensors -= 1
            if min(self._numbers, self._tensors) < 0:
                raise ModelError(
                    f"the config.json of {self._name!r} asks for a model far larger than its weight files: expected "
                    "the config that belongs to them"
                )
        return built


def architecture_of(config: Any, name: str, class_name: str) -> str:
    """The name by which TransformerLens has an adapter for a model of that class.

    Raises ModelError for none, DependencyError for one that asks for a package that is not installed.
    """
    from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES
    from transformer_lens.model_bridge.sources.transformers import determine_architecture_from_hf_config

    from tl_vzero.models.adapters import register

    register()
    of_class = copy.copy(config)
    of_class.architectures = [class_name]
    try:
        architecture = str(determine_architecture_from_hf_config(of_class))
    except ValueError as error:
        # It goes on to list every architecture there is.
        reason = str(error).partition(" Available architectures")[0]
        raise ModelError(
            f"TransformerLens cannot read {name!r} ({class_name}): {reason}; expected an architecture for which it, "
            "tl_vzero or another installed package has an adapter"
        ) from error
    needed = getattr(SUPPORTED_ARCHITECTURES.get(architecture), "required_libraries", ())
    missing = [package for package in needed if find_spec(package) is None]
    if missing:
        raise DependencyError(
            f"TransformerLens reads {name!r} ({class_name}) only beside {missing[0]}, which is not installed, and "
            f"nothing is installed here: pip install {missing[0]}, in the version that belongs to your torch"
        )
    return architecture


@contextmanager
def _no_conversion_service() -> Iterator[None]:
    """Without this, transformers asks a service of the hub to convert a model that has a pytorch_model.bin only."""
    name = "DISABLE_SAFETENSORS_CONVERSION"
    before = {name: os.environ[name]} if name in os.environ else {}
    os.environ[name] = "1"
    try:
        yield
    finally:
        del os.environ[name]
        os.environ.update(before)


# transformers keeps how loud it is for the whole process: one change at a time, or it stays changed.
_LOUDNESS = RLock()


@contextmanager
def silent_transformers() -> Iterator[None]:
    """No loading bar, no table of missing keys, no configuration on the screen: our messages say what matters."""
    from transformers.utils import logging

    with _LOUDNESS, ExitStack() as before:
        before.callback(logging.set_verbosity, logging.get_verbosity())
        if logging.is_progress_bar_enabled():
            before.callback(logging.enable_progress_bar)
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        yield


def _auto_class(config: Any) -> Any:
    """The auto class whose models have a head: for words, or for an image or a sound where the checkpoint has one."""
    import transformers

    first = (config.architectures or [""])[0]
    if first.endswith("ForImageClassification"):
        return transformers.AutoModelForImageClassification
    if first.endswith("ForCTC"):
        return transformers.AutoModelForCTC
    order = ["MaskedLM", "CausalLM", "Seq2SeqLM"]
    if first.endswith(("ForCausalLM", "LMHeadModel")) or getattr(config, "is_decoder", False):
        order = ["CausalLM", "MaskedLM", "Seq2SeqLM"]
    elif getattr(config, "is_encoder_decoder", False):  # half of it can be read as a causal model, too
        order = ["SpeechSeq2Seq", "Seq2SeqLM", "MaskedLM", "CausalLM"]
    # Of those that also read images, TransformerLens wraps the whole, and reads text alone, too.
    for head in (*order, "ImageTextToText"):
        auto_class = getattr(transformers, f"AutoModelFor{head}")
        if type(config) in auto_class._model_mapping:
            return auto_class
    return transformers.AutoModel


def _class_in(mapping: Any, config: Any) -> Any:
    """The class for a configuration; of several, as for DeiT, that of the checkpoint, else the first."""
    classes = mapping[type(config)] if isinstance(mapping[type(config)], tuple) else (mapping[type(config)],)
    return next((cls for cls in classes if cls.__name__ in (config.architectures or ())), classes[0])


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
    """Whether a model of images or speech has no head; one for words always gets one."""
    return signal_read_by(model) is not None and model.base_model is model


def _is_of_base(model: Any, key: str) -> bool:
    """Whether a tensor belongs to the model below the prediction head; T5's class holds that part directly."""
    prefix = model.base_model_prefix
    is_within = not prefix or hasattr(model, prefix)
    return key.startswith(f"{prefix}.") if is_within else not key.startswith("lm_head.")


def from_memory(hf_model: Any, device: Any, dtype: torch.dtype | None) -> Checkpoint:
    """Wrap an in-memory model without touching it; a headless base class gets an untrained head.

    The weights are shared with the caller's model, or copied where `device` or `dtype` ask for others.
    """
    name = type(hf_model).__name__
    first = next(hf_model.parameters())
    moves = dtype not in (None, first.dtype) or (device is not None and torch.device(device) != first.device)
    with foreign_errors_as(ModelError, f"this {name} cannot be copied"):
        # New modules around the same tensors: TransformerLens replaces modules in what it wraps.
        shared = [] if moves else [*hf_model.parameters(), *hf_model.buffers()]
        model = copy.deepcopy(hf_model, {id(tensor): tensor for tensor in shared})
        if moves:
            model = model.to(device=device, dtype=dtype)
    with foreign_errors_as(ModelError, f"this {name} cannot be read"):
        headed, head = _with_head(model)
        headed.config.architectures = [type(headed).__name__]
    is_classifier = kind_of_classifier([cls.__name__ for cls in type(hf_model).__mro__])
    return Checkpoint(headed, head, model if is_classifier else None, None if moves else hf_model)


def _with_head(model: Any) -> tuple[Any, Head]:
    """The model in the class that TransformerLens reads, with a head for words, and whether that head was trained."""
    headed_class = _headed_class(model)
    if headed_class is None:
        return model, "absent" if _is_bare(model) else "trained"
    with torch.device("meta"):
        headed = headed_class(model.config)
    base_name = headed_class.base_model_prefix
    base = getattr(model, base_name, model)
    if hasattr(headed, base_name):
        setattr(headed, base_name, base)
    else:
        for name, part in base.named_children():
            setattr(headed, name, part)
    missing = _fill(headed, model)
    if missing and base is not model and model.get_output_embeddings() is not None:
        return model, "trained"  # it has words, behind another head than this class has
    lost = sorted(key for key in missing if _is_of_base(headed, key))
    if lost:
        whole = headed_class.__name__
        raise ModelError(
            f"this {type(model).__name__} lacks {len(lost)} tensors of a {whole}, as which TransformerLens reads it, "
            f"first {lost[0]}: expected a whole {whole}; pass that"
        )
    return headed, _head_of_wrapper(headed) if missing else "trained"


def _headed_class(model: Any) -> Any | None:
    """The class with a head for words that a model is put into; None where it is read as it is."""
    mapping = _auto_class(model.config)._model_mapping
    if model.base_model_prefix == "" or type(model.config) not in mapping:
        return None
    headed_class = _class_in(mapping, model.config)
    base = getattr(model, getattr(headed_class, "base_model_prefix", ""), None)
    # Where there is no head for words at all, as for images and speech, a model's own head stays.
    if isinstance(model, headed_class) or (base is not None and issubclass(headed_class, type(base))):
        return None
    # So it does in a model of images and text, of which the class for text alone is a part.
    is_whole = type(model.config).__name__ != headed_class.config_class.__name__
    return None if is_whole and model.get_output_embeddings() is not None else headed_class


def _fill(headed: Any, model: Any) -> set[str]:
    """Give a model built without memory the tensors of that name, or else zeros, whose names are returned.

    Zeros show plainly that a head was never trained.
    """
    existing = dict(_tensors_in(model))
    like = next(model.parameters())
    missing = set()
    for path in [path for path, _ in _tensors_in(headed)]:
        parent, _, name = path.rpartition(".")
        module = headed.get_submodule(parent)
        tensor = getattr(module, name)
        if not tensor.is_meta:  # a module with two paths was filled by the first
            continue
        filled = existing.get(path)
        if filled is None or filled.shape != tensor.shape:
            filled = torch.zeros(tensor.shape, dtype=like.dtype, device=like.device)
            if isinstance(tensor, nn.Parameter):
                filled = nn.Parameter(filled)
                missing.add(path)
        setattr(module, name, filled)
    headed.tie_weights()
    # What is tied to another tensor has a second name, and is never missing by itself.
    return missing & set(dict(headed.named_parameters()))


def _tensors_in(model: Any) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _head_of_wrapper(headed: Any) -> Head:
    """A head of tied embeddings alone has nothing untrained in it, as in GPT-2."""
    named = dict(headed.named_parameters(remove_duplicate=False))
    shared = {id(parameter) for name, parameter in named.items() if _is_of_base(headed, name)}
    return "trained" if all(id(parameter) in shared for parameter in named.values()) else "absent"
