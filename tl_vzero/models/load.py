"""`load_model`: a TransformerBridge of a checkpoint, from disk, the hub or memory, with unprocessed weights."""

import copy
import tempfile
from contextlib import ExitStack, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tl_vzero.errors import (
    DependencyError,
    InputError,
    InputTypeError,
    ModelError,
    foreign_errors_as,
    install_command,
    shown,
    unknown_name,
)
from tl_vzero.models.changes import follow, remember_copied
from tl_vzero.models.class_head import ClassHead, checked_head, head_of, probe_of
from tl_vzero.models.contracts import check_contracts
from tl_vzero.models.facts import Facts, remember
from tl_vzero.models.hub import Source, find_source
from tl_vzero.models.hugging_face import (
    Checkpoint,
    architecture_of,
    from_folder_or_hub,
    from_memory,
    silent_transformers,
)
from tl_vzero.models.same_function import (
    check_same_function,
    hidden_states_before,
    media_features,
    reads_media_alike,
)
from tl_vzero.models.signals import Frames, feature_extractor_of, signal_read_by
from tl_vzero.models.sites import stacks_of
from tl_vzero.models.turns import leave_modes
from tl_vzero.models.unwrapped import unwrapped

DEVICES = ("cpu", "cuda", "mps", "xpu")  # what most machines have; torch knows more
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def load_model(
    name_or_folder_or_hf_model: Any,
    tokenizer: Any | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    *,
    trust_remote_code: bool = False,
) -> nn.Module:
    """Load a model as a TransformerBridge with unprocessed weights, ready for Value Zeroing.

    Takes `"agreement-mini"` (embedded), `"all-MiniLM-L6-v2"` (with the extra `minilm`), a local Hugging Face
    folder, a hub name, or an in-memory Hugging Face model, headless base classes too. A pipeline, a
    SentenceTransformer and a CrossEncoder give their model and tokenizer; adapters of PEFT are merged into a copy,
    which no edit reaches: after one, scoring raises ModelError too.
    From memory, the caller's model is left as it is. Unless `device` or `dtype` change, the weights are shared with
    it: weights that are edited in place, in training for one, are edited in both. Nothing else of it is followed: once
    its modules, hooks, adapters (merged, set, disabled) or weights are replaced, cast or moved, scoring raises
    ModelError, until it is loaded again or all is as it was; `train()` and `requires_grad` do not matter. Where
    `device` or `dtype` change, the loaded model is a copy that stays what it was.
    A classifier of text or images keeps its trained head, and so does one of sounds with CTC: effects and gradients
    are then on its classes, those of CTC by the tokenizer's tokens.
    `tokenizer` replaces the one that belongs to the model; without any, ids work and strings raise.
    `dtype` defaults to float32 for what is read from disk, `device` to CUDA where there is one; float64 does not go on
    "mps".
    Nothing is installed, and no code of a folder is run unless `trust_remote_code`.

    Raises ModelError for what is no model or fails its contracts, OfflineError (within 3 s) for a hub name
    without network, InputTypeError for what holds no model.

    >>> import tl_vzero
    >>> model = tl_vzero.load_model("agreement-mini")
    >>> type(model).__name__
    'TransformerBridge'
    """
    wanted, copied_from, extractor = name_or_folder_or_hf_model, None, None
    _check_options(tokenizer, device, dtype)
    with silent_transformers(), ExitStack() as left:
        # Weights that are created in inference mode never have gradients; autocast rounds what is compared.
        if not _is_of_inference_mode(wanted):
            leave_modes(left, "cpu", "cuda")
        if isinstance(wanted, str | Path):
            source = find_source(str(wanted))
            checkpoint = from_folder_or_hub(source, dtype or torch.float32, trust_remote_code)
            if tokenizer is None and _has_tokens(checkpoint.model):
                tokenizer = _tokenizer_of(source, trust_remote_code)
            device = device or ("cuda" if torch.cuda.is_available() else "cpu")
            with foreign_errors_as(ModelError, f"{source.name!r} cannot be put on {device}"):
                checkpoint.model.to(device)
                if isinstance(checkpoint.classifier, nn.Module):
                    checkpoint.classifier.to(device)
        else:
            held = unwrapped(wanted)
            tokenizer = held.tokenizer if tokenizer is None else tokenizer
            location = str(getattr(held.model.config, "name_or_path", ""))
            source = Source(location or type(held.model).__name__, location, local=True)
            checkpoint = from_memory(held.model, device, dtype)
            copied_from = held.copied_from
        if isinstance(signal_read_by(checkpoint.model), Frames):
            extractor = feature_extractor_of(source.location, source.local)
        with torch.inference_mode(next(checkpoint.model.parameters()).is_inference()):
            model = _boot(checkpoint, tokenizer, source.name, extractor)
    if checkpoint.shared_with is not None:
        follow(model, copied_from or checkpoint.shared_with, copied=copied_from is not None)
    return model


def load_adapted(
    name_or_folder: str | Path,
    adapter: str | Path,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """Load a model with an adapter that PEFT saved in a folder, merged into its weights.

    Raises DependencyError without peft, ModelError for a folder without an adapter or one of another model, and what
    `load_model` raises.
    """
    if not (Path(adapter) / "adapter_config.json").is_file():
        raise ModelError(f"{adapter} holds no adapter_config.json: expected a folder that PEFT's save_pretrained wrote")
    try:
        from peft import PeftModel
    except ImportError:
        raise DependencyError(
            f"an adapter is read by peft, which is not installed: {install_command('adapters')}"
        ) from None
    _check_options(None, device, dtype)
    source = find_source(str(name_or_folder))
    with silent_transformers():
        base: Any = from_folder_or_hub(source, dtype or torch.float32, trust_remote_code=False).model
        with foreign_errors_as(ModelError, f"{adapter} cannot be read as an adapter of {source.name!r}"):
            adapted = PeftModel.from_pretrained(base, str(adapter)).eval()
    tokenizer = _tokenizer_of(source, trust_remote_code=False)
    return load_model(adapted, tokenizer, device or ("cuda" if torch.cuda.is_available() else "cpu"))


def _is_of_inference_mode(wanted: object) -> bool:
    """Whether the caller's own weights were created in inference mode: torch computes nothing with them outside."""
    model = wanted if isinstance(wanted, nn.Module) else getattr(wanted, "model", None)
    return isinstance(model, nn.Module) and any(weight.is_inference() for weight in model.parameters())


def _check_options(tokenizer: object, device: Any, dtype: object) -> None:
    """Check early what would fail deep inside; raises InputError or InputTypeError."""
    for name, value, expected, fits in (
        (
            "dtype",
            dtype,
            f"a float dtype, one of {', '.join(map(str, DTYPES))}",
            isinstance(dtype, torch.dtype) and dtype in DTYPES,
        ),
        ("device", device, "a name, as 'cpu' or 'cuda'", isinstance(device, str | torch.device)),
    ):
        if value is not None and not fits:
            raise InputTypeError(f"{name} is {shown(value)} ({type(value).__name__}): expected {expected}")
    if device is not None and torch.device("meta").type == str(device).partition(":")[0]:
        raise InputError("device 'meta' holds no numbers: expected a device that does, as 'cpu' or 'cuda'")
    try:
        torch.device(device or "cpu")
    except RuntimeError:
        raise unknown_name("device", device, DEVICES) from None
    if dtype == torch.float64 and torch.device(device or "cpu").type == "mps":
        raise InputError("dtype torch.float64 on device 'mps', which has no float64: expected torch.float32, or 'cpu'")
    with foreign_errors_as(InputError, f"device {shown(device)} cannot be used"):
        torch.empty(0, device=device)
    if tokenizer is not None and not (callable(tokenizer) and hasattr(tokenizer, "save_pretrained")):
        raise InputTypeError(f"tokenizer is {type(tokenizer).__name__}: expected a Hugging Face tokenizer")


def _boot(checkpoint: Checkpoint, tokenizer: Any | None, name: str, extractor: Any | None) -> nn.Module:
    hf_model: Any = checkpoint.model.eval()
    class_name = type(hf_model).__name__
    features: Tensor | None = None
    label = name if name == class_name else f"{name} ({class_name})"
    reads_text = signal_read_by(hf_model) is None
    from tl_vzero.models.adapters.mended import put_positions_first

    with torch.no_grad(), foreign_errors_as(ModelError, f"{label} cannot be run"):
        states = hidden_states_before(hf_model)
        with suppress(Exception):  # it may read images of another kind than the probe: text it reads all the same
            features = media_features(hf_model)
    whole = checkpoint.classifier
    head = head_of(whole.eval(), tokenizer) if isinstance(whole, nn.Module) else whole
    logits = probe_of(head) if isinstance(head, ClassHead) else None
    with foreign_errors_as(ModelError, f"TransformerLens {version('transformer-lens')} cannot read {label}"):
        with tempfile.TemporaryDirectory() as folder:
            bridge = _bridge(hf_model, _for_bridge(tokenizer, folder) if reads_text else None, name)
        if bridge.tokenizer is None:
            bridge.tokenizer = copy.deepcopy(tokenizer)
        if not reads_text:
            bridge.processor = extractor  # where TransformerLens keeps it
        bridge.eval()
        put_positions_first(bridge)
        remember_copied(bridge, check_same_function(bridge, hf_model, states))
        for stack in stacks_of(bridge) or (None,):
            check_contracts(bridge, stack)
    model: nn.Module = bridge
    if isinstance(head, ClassHead):
        head = checked_head(head, model, check_contracts(model), logits)
    alike = reads_media_alike(bridge, hf_model, features)
    remember(model, Facts(name, tokenizer, checkpoint.head, head, misreads_media=not alike))
    return model


def _bridge(hf_model: Any, tokenizer: Any | None, name: str) -> Any:
    """A bridge around a model that is there.

    Not by `boot_transformers`: that looks for a processor of every multimodal model, and where it finds none, it
    installs torchvision by `uv pip` or `pip`, and another torch with it (3.9.0, 4.3.0).
    """
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    from tl_vzero.models.adapters.mended import mend

    config = copy.deepcopy(hf_model.config)
    architecture = architecture_of(config, name, type(hf_model).__name__)

    first = next(hf_model.parameters())
    with tempfile.TemporaryDirectory() as empty:
        bridge: Any = build_bridge_from_module(
            hf_model,
            architecture,
            hf_config=config,
            tokenizer=tokenizer,
            dtype=first.dtype,
            device=first.device,
            model_name=name,
            # Some adapters import code of the model's folder here: they get a folder without any.
            post_adapter_hook=lambda adapter: mend(adapter, hf_model, empty),
        )
    if bridge.tokenizer is not None:
        # Unlike where TransformerLens 3.9 boots a model itself, it looks for a BOS here, and not for a [CLS].
        begins_with, *others = bridge.tokenizer.encode("a") or [None]
        special = (bridge.tokenizer.bos_token_id, getattr(bridge.tokenizer, "cls_token_id", None))
        bridge.cfg.tokenizer_prepends_bos = bool(others) and begins_with in special
    return bridge


def _has_tokens(hf_model: Any) -> bool:
    """Whether a model reads or writes tokens: of images and sounds, one with a decoder, or with letters per frame."""
    signal, config = signal_read_by(hf_model), hf_model.config
    return signal is None or config.is_encoder_decoder or type(hf_model).__name__.endswith("ForCTC")


def _tokenizer_of(source: Source, trust_remote_code: bool) -> Any | None:
    from transformers import AutoTokenizer

    folder, patterns = Path(source.location), ("tokenizer*", "vocab*", "*.model", "merges.txt", "spiece.*")
    if source.local and folder.is_dir() and not any(any(folder.glob(pattern)) for pattern in patterns):
        return None
    what = f"the tokenizer of {source.name!r} cannot be read"
    with foreign_errors_as(ModelError, f"{what} (pass tokenizer=, or remove its files to work with ids only)"):
        return AutoTokenizer.from_pretrained(
            source.location, local_files_only=source.local, trust_remote_code=trust_remote_code
        )


def _for_bridge(tokenizer: Any | None, folder: str) -> Any | None:
    """A copy for TransformerLens, which adds special tokens to its tokenizer and reloads it by path.

    None for a tokenizer that cannot be read from a folder alone: TransformerLens would ask the hub for it by name.
    """
    from transformers import AutoTokenizer

    if tokenizer is None:
        return None
    try:
        tokenizer.save_pretrained(folder)
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception:  # whatever it is, the model can be read without
        return None
