"""Reading a model: embedded, from a folder, from the hub or from memory, always with unprocessed weights."""

import copy
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tl_vzero.errors import InputError, InputTypeError, ModelError
from tl_vzero.models.changes import follow
from tl_vzero.models.contracts import check_contracts
from tl_vzero.models.facts import Facts, Head, remember
from tl_vzero.models.hub import Source, find_source
from tl_vzero.models.hugging_face import Checkpoint, from_folder_or_hub, from_memory
from tl_vzero.models.same_function import check_same_function, own_hidden_states
from tl_vzero.models.signals import Sounds, feature_extractor_of, signal_read_by
from tl_vzero.models.sites import stacks_of
from tl_vzero.models.weights import remember_copied


def load_model(
    name_or_folder_or_hf_model: str | Path | nn.Module,
    tokenizer: Any | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    *,
    trust_remote_code: bool = False,
) -> nn.Module:
    """Load a model as a TransformerBridge with unprocessed weights, ready for Value Zeroing.

    Takes `"agreement-mini"` (embedded), `"all-MiniLM-L6-v2"` (with the extra `minilm`), a local Hugging Face
    folder, a hub name, or an in-memory Hugging Face model, headless base classes too. From memory, the
    caller's model is left as it is. Unless `device` or `dtype` change, the weights are shared with it: weights that
    are edited in place, in training for one, are edited in both. Nothing else of it is followed: once its modules,
    hooks, adapters (merged, set, disabled) or weights are replaced, cast or moved, scoring raises ModelError, until it
    is loaded again or all is as it was; `train()` and `requires_grad` do not matter. Where `device` or `dtype`
    change, the loaded model is a copy that stays what it was.
    `tokenizer` replaces the one that belongs to the model; without any, ids work and strings raise.
    `dtype` defaults to float32 for what is read from disk, `device` to CUDA where there is one.

    Raises ModelError for what is no model or fails its contracts, OfflineError (within 3 s) for a hub name
    without network.

    >>> import tl_vzero
    >>> model = tl_vzero.load_model("agreement-mini")
    >>> type(model).__name__
    'TransformerBridge'
    """
    wanted: object = name_or_folder_or_hf_model
    _check_options(tokenizer, device, dtype)
    if isinstance(wanted, str | Path):
        source = find_source(str(wanted))
        checkpoint = from_folder_or_hub(source, dtype or torch.float32, trust_remote_code)
        reads_text = signal_read_by(checkpoint.model) is None
        own_tokenizer = tokenizer or (_tokenizer_of(source, trust_remote_code) if reads_text else None)
        location, local = source.location, source.local
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        checkpoint.model.to(device)
        name = source.name
    elif isinstance(wanted, nn.Module) and hasattr(wanted, "config"):
        checkpoint = from_memory(wanted, device, dtype)
        own_tokenizer = tokenizer
        location, local = getattr(wanted.config, "name_or_path", ""), True
        name = location or type(wanted).__name__
    else:
        raise InputTypeError(
            f"cannot load a model from {type(wanted).__name__}: expected a name, a folder, "
            "or an in-memory Hugging Face model"
        )
    extractor = None
    if isinstance(signal_read_by(checkpoint.model), Sounds):
        extractor = feature_extractor_of(str(location), local)
    model = _boot(checkpoint, own_tokenizer, str(name), checkpoint.head, extractor)
    if checkpoint.shared_with is not None:
        follow(model, checkpoint.shared_with)
    return model


def _check_options(tokenizer: object, device: object, dtype: object) -> None:
    """Check at the door what only shows deep inside otherwise; raises InputError or InputTypeError."""
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise InputTypeError(f"dtype is {dtype!r} ({type(dtype).__name__}): expected a float dtype, as torch.float32")
    if device is not None and not isinstance(device, str | torch.device):
        raise InputTypeError(f"device is {device!r} ({type(device).__name__}): expected a name, as 'cpu' or 'cuda'")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}") from error
    if tokenizer is not None and not (callable(tokenizer) and hasattr(tokenizer, "save_pretrained")):
        raise InputTypeError(f"tokenizer is {type(tokenizer).__name__}: expected a Hugging Face tokenizer")


def _boot(checkpoint: Checkpoint, tokenizer: Any | None, name: str, head: Head, extractor: Any | None) -> nn.Module:
    from transformer_lens.model_bridge import TransformerBridge

    from tl_vzero.models.adapters import register

    register()
    hf_model = checkpoint.model.eval()
    first = next(hf_model.parameters())
    reads_text = signal_read_by(hf_model) is None
    with torch.no_grad():
        states = own_hidden_states(hf_model)
    with tempfile.TemporaryDirectory() as folder:
        try:
            bridge: nn.Module = TransformerBridge.boot_transformers(
                # Under its own name, TransformerLens would look for the model's processor on the hub.
                name if reads_text else folder,
                hf_model=hf_model,
                tokenizer=_for_bridge(tokenizer, folder) if reads_text else None,
                device=str(first.device),
                dtype=first.dtype,
            )
        except (ValueError, KeyError, NotImplementedError, AttributeError) as error:
            # It goes on to list every architecture there is.
            reason = str(error).partition(" Available architectures")[0]
            raise ModelError(
                f"TransformerLens cannot read {name!r} ({type(hf_model).__name__}): {reason}; expected an architecture "
                "for which it, tl_vzero or another installed package has an adapter"
            ) from error
    if tokenizer is None:
        bridge.tokenizer = None  # type: ignore[assignment]
    if not reads_text:
        bridge.processor = extractor  # type: ignore[assignment]  # where TransformerLens keeps it
    bridge.eval()
    remember_copied(bridge, check_same_function(bridge, hf_model, states))
    for stack in stacks_of(bridge) or (None,):
        check_contracts(bridge, stack)
    remember(bridge, Facts(name=name, tokenizer=tokenizer, head=head))
    return bridge


def _tokenizer_of(source: Source, trust_remote_code: bool) -> Any | None:
    from transformers import AutoTokenizer

    if source.local and Path(source.location).is_dir() and not _has_tokenizer_files(Path(source.location)):
        return None
    try:
        return AutoTokenizer.from_pretrained(
            source.location, local_files_only=source.local, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"the tokenizer of {source.name!r} cannot be read ({error}); pass tokenizer=, or remove its files "
            "to work with ids only"
        ) from error


def _has_tokenizer_files(folder: Path) -> bool:
    patterns = ("tokenizer*", "vocab*", "*.model", "merges.txt", "spiece.*")
    return any(True for pattern in patterns for _ in folder.glob(pattern))


def _for_bridge(tokenizer: Any | None, folder: str) -> Any:
    """A copy for TransformerLens, which adds special tokens to what it is given and reloads it by path."""
    if tokenizer is None:
        return _stand_in(folder)
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(folder)
    try:
        return AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError):
        return copy.deepcopy(tokenizer)


def _stand_in(folder: str) -> Any:
    """A tokenizer of two words: without any, TransformerLens would look for one on the hub."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({"[UNK]": 0, "[PAD]": 1}, unk_token="[UNK]"))
    stand_in = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]")
    stand_in.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)
