"""The folder of a fine-tuning: what was done so far, the last epoch's checkpoint, and in the end the model.

1. After each epoch its checkpoint is written, then the state that names it; then older checkpoints go.
2. At the end the model is written in Hugging Face format, config.json last, then the state says `finished`.
An interruption at any point leaves a state and the checkpoint that belongs to it.
"""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tl_vzero.errors import FileFormatError, InputError, OutputPathError
from tl_vzero.evaluate.plain_data import from_plain, to_plain
from tl_vzero.evaluate.statistics import Estimate
from tl_vzero.files import open_regular, read_json, write_atomically, write_text
from tl_vzero.models.hugging_face import silent_transformers

STATE = "finetuning.json"
FORMAT = "tl_vzero.finetuning"
FORMAT_VERSION = "1"
CONFIG, WEIGHTS = "config.json", "model.safetensors"
MOMENTS = ("exp_avg", "exp_avg_sq")

Settings = Mapping[str, Any]
Record = dict[str, Any]


@dataclass(frozen=True)
class State:
    """How far a fine-tuning came: a record of the start, number 0, then one of each epoch; none at the very first."""

    settings: Settings
    history: tuple[Record, ...]
    finished: bool
    about: Settings

    @property
    def epochs_done(self) -> int:
        return max(0, len(self.history) - 1)


@dataclass(frozen=True)
class _Epoch:
    """A record as it stands in the file."""

    epoch: int
    loss: float | None
    accuracy: Estimate | None


@dataclass(frozen=True)
class _Written:
    """A state as it stands in the file."""

    settings: Settings
    history: tuple[_Epoch, ...]
    finished: bool
    about: Settings

    def __post_init__(self) -> None:
        if [each.epoch for each in self.history] != [*range(len(self.history))]:
            raise ValueError("the epochs of its history are not 0, 1, 2, ...")
        if self.finished and not self.history:
            raise ValueError("it is finished, and has no epoch")


def prepare(folder: Path) -> None:
    """Make the folder; raises OutputPathError where it cannot be written, or holds what is not ours to replace."""
    if folder.exists() and not folder.is_dir():
        raise OutputPathError(f"cannot write {folder}: it is a file; give a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise OutputPathError(f"cannot write into {folder}: {error}; choose another folder") from error
    if any(folder.iterdir()) and not (folder / STATE).is_file():
        raise OutputPathError(
            f"{folder} holds files, and no {STATE} of a fine-tuning: expected a new or empty folder, or one to go on in"
        )


def read_state(folder: Path) -> State | None:
    """The state in a folder; None where there is none. Raises FileFormatError for a file that is no state."""
    path = folder / STATE
    if not path.is_file():
        return None
    try:
        read = read_json(path)
        if (read["format"], read["version"]) != (FORMAT, FORMAT_VERSION):
            raise ValueError(
                f"it has format {read['format']} {read['version']}, and this version reads {FORMAT} {FORMAT_VERSION}"
            )
        state = from_plain(_Written, read)
        return State(state.settings, tuple(map(asdict, state.history)), state.finished, state.about)
    except (KeyError, TypeError, ValueError) as error:
        raise FileFormatError(
            f"{path} is no state of a fine-tuning ({type(error).__name__}: {error}): give another folder, or start "
            "anew with resume=False"
        ) from error


def check_same_settings(folder: Path, state: State, settings: Settings) -> None:
    """Raise InputError where the fine-tuning in a folder is another one, naming what differs."""
    differing = [name for name in settings if state.settings.get(name) != settings[name]]
    if differing:
        told = "; ".join(f"{name} was {state.settings.get(name)}, is {settings[name]}" for name in differing)
        raise InputError(
            f"{folder} holds a fine-tuning of other data or options ({told}): expected the same to go on; give "
            "another folder, or start anew with resume=False"
        )


def write_state(folder: Path, state: State) -> None:
    """Write how far the fine-tuning came, whole or not at all."""
    plain = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "settings": dict(state.settings),
        "epochs_done": state.epochs_done,
        "history": list(state.history),
        "finished": state.finished,
        "about": dict(state.about),
    }
    write_text(folder / STATE, json.dumps(to_plain(plain), indent=2) + "\n")


def begin(folder: Path, settings: Settings, about: Settings) -> State:
    """Start anew: the state first, as it says whose the folder is, then what an earlier fine-tuning left goes."""
    state = State(settings, (), False, about)
    write_state(folder, state)
    for path in (folder / CONFIG, folder / WEIGHTS, *_checkpoints(folder)):
        path.unlink(missing_ok=True)
    return state


def write_checkpoint(folder: Path, epoch: int, model: Any, optimizer: torch.optim.AdamW) -> None:
    """Write the weights and the optimiser's moments after an epoch."""
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        tensors[f"weight.{name}"] = parameter.detach().cpu().contiguous()
        for moment in MOMENTS:
            if parameter in optimizer.state:
                tensors[f"{moment}.{name}"] = optimizer.state[parameter][moment].cpu().contiguous()
    write_atomically(_checkpoint(folder, epoch), lambda partial: save_file(tensors, partial))


def read_checkpoint(folder: Path, epoch: int, steps: int, model: Any, optimizer: torch.optim.AdamW) -> None:
    """Put model and optimiser where they were after an epoch, `steps` steps in.

    Raises FileFormatError for a checkpoint that is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = _checkpoint(folder, epoch)
    try:
        open_regular(path).close()
        tensors = load_file(path)
        _check_shapes(model, tensors)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(tensors[f"weight.{name}"])
                if f"{MOMENTS[0]}.{name}" in tensors:
                    moments = {moment: tensors[f"{moment}.{name}"].to(parameter.device) for moment in MOMENTS}
                    optimizer.state[parameter] = {"step": torch.tensor(float(steps)), **moments}
    except (OSError, SafetensorError, KeyError, RuntimeError, ValueError) as error:
        raise FileFormatError(
            f"{path} is not the checkpoint that {STATE} names ({error}): start anew with resume=False"
        ) from error


def _check_shapes(model: Any, tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError for a tensor that is not of its parameter's shape and type: it would be spread or converted."""
    for name, parameter in model.named_parameters():
        for kind in ("weight", *MOMENTS):
            tensor = tensors.get(f"{kind}.{name}", parameter)
            if tensor.shape != parameter.shape or tensor.dtype != parameter.dtype:
                raise ValueError(
                    f"{kind}.{name} is {tensor.dtype} of {list(tensor.shape)}: expected {parameter.dtype} of "
                    f"{list(parameter.shape)}"
                )


def drop_checkpoints(folder: Path, *, but: int | None = None) -> None:
    """Take checkpoints away, all or all but one."""
    for path in _checkpoints(folder):
        if but is None or path != _checkpoint(folder, but):
            path.unlink()


def publish(folder: Path, model: Any, tokenizer: Any) -> None:
    """Write model and tokenizer in Hugging Face format; config.json comes last, so that no half model is read."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=".partial-") as partial:
        try:
            with silent_transformers():
                model.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
            for path in sorted(Path(partial).iterdir(), key=lambda path: path.name == CONFIG):
                path.replace(folder / path.name)
        except OSError as error:
            raise OutputPathError(f"cannot write the model into {folder}: {error}") from error


def check_published(folder: Path) -> None:
    """Raise FileFormatError where the state says finished, and the model is not there."""
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise FileFormatError(
                f"{folder} holds no {name}, though {STATE} says finished: start anew with resume=False"
            )


def _checkpoint(folder: Path, epoch: int) -> Path:
    return folder / f"epoch-{epoch}.safetensors"


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("epoch-*.safetensors"))
