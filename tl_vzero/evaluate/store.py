"""Folders that a long evaluation goes on in: one run at a time, finished parts, and the state of a fine-tuning.

1. `options.json`, or a fine-tuning's `finetuning.json`, says whose the folder is; other options are refused.
2. Whatever is finished is written at once, whole or not at all, and read by the next run.
"""

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from tl_vzero.corpus.processes import take_lock
from tl_vzero.errors import FileFormatError, InputError, OutputPathError, foreign_errors_as
from tl_vzero.evaluate.results import COLUMNS, Row
from tl_vzero.files import (
    folder_of,
    from_plain,
    open_regular,
    parse_json,
    read_text,
    to_plain,
    write_atomically,
    write_text,
)
from tl_vzero.models.hugging_face import silent_transformers
from tl_vzero.statistics import Estimate

LOCKS = "locks"
OPTIONS = "options.json"
FORMAT = "tl_vzero.evaluation"
FORMAT_VERSION = "1"

Part = TypeVar("Part")
Settings = Mapping[str, Any]


@contextmanager
def claimed(folder: str | Path | None) -> Iterator[None]:
    """Make a folder and hold it for this run alone, by a lock file as that of a corpus; None holds nothing.

    Raises InputError where another run holds it, OutputPathError where it cannot be made or locked.
    """
    with ExitStack() as undo:
        if folder is not None:
            where = make_folder(folder)
            if os.access(where, os.W_OK):  # in any other folder nothing can change
                with foreign_errors_as(OutputPathError, f"cannot lock {where}"):
                    (where / LOCKS).mkdir(exist_ok=True)
                    take_lock(where / LOCKS / "00000.lock", undo)
        yield


def make_folder(folder: str | Path, marker: str | None = None) -> Path:
    """Make a folder, `~` expanded; raises OutputPathError where that fails, or it holds other files and no `marker`."""
    where = folder_of(folder)
    with foreign_errors_as(OutputPathError, f"cannot make the folder {where}, choose another one"):
        where.mkdir(parents=True, exist_ok=True)
        names = {path.name for path in where.iterdir()} - {LOCKS}
    if marker is not None and names and marker not in names:
        expected = "expected a new or empty folder, or one to go on in"
        raise OutputPathError(f"{where} holds files, and no {marker}: {expected}")
    return where


def check_same(folder: Path, what: str, before: Settings, now: Settings, instead: str = "") -> None:
    """Raise InputError where a folder holds an evaluation of other settings, naming what differs."""
    differing = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if differing:
        changes = "; ".join(f"{name} was {before.get(name)}, is {now.get(name)}" for name in differing)
        advice = f"expected the same to go on; choose another folder{instead}"
        raise InputError(f"{folder} holds {what} of other data or options ({changes}): {advice}")


@dataclass(frozen=True)
class Store:
    """Finished parts by name, one JSON file per part in a folder; without a folder nothing stays."""

    folder: Path | None

    def has(self, name: str) -> bool:
        """Whether a part is finished."""
        return self.folder is not None and self._path(name).is_file()

    def part(self, name: str, kind: type[Part], compute: Callable[[], Part]) -> Part:
        """A part that was finished before, or else computed now and stored; raises FileFormatError for another file."""
        path = self._path(name)
        # Also what is computed now goes through plain types: a result does not show whether it was interrupted.
        text = None if self.has(name) else json.dumps(to_plain(compute()), ensure_ascii=False, allow_nan=False)
        try:
            part: Part = from_plain(kind, parse_json(read_text(path) if text is None else text))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FileFormatError(
                f"{path} is no {kind.__name__} ({type(error).__name__}: {error}): delete it to have it computed again"
            ) from error
        if self.folder is not None and text is not None:
            write_text(path, text)
        return part

    def _path(self, name: str) -> Path:
        return Path(self.folder or ".") / f"{name}.json"


def open_store(folder: str | Path | None, options: Settings) -> Store:
    """The store in a folder, made if it is not there; None stores nothing.

    Raises InputError for a folder of other options, naming what differs, OutputPathError for one that cannot be
    written or holds other files.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     open_store(folder, {"seed": 0}).part("three", int, lambda: 3)
    ...     open_store(folder, {"seed": 0}).part("three", int, lambda: 4)
    3
    3
    """
    if folder is None:
        return Store(None)
    where = make_folder(folder, OPTIONS)
    plain = {"format": FORMAT, "version": FORMAT_VERSION, **to_plain(options)}
    path = where / OPTIONS
    if not path.is_file():
        write_text(path, json.dumps(plain, ensure_ascii=False, indent=2) + "\n")
    with foreign_errors_as(FileFormatError, f"{path} cannot be read, choose another folder"):
        before = {**parse_json(read_text(path))}
    check_same(where, "an evaluation", before, plain)
    return Store(where)


# The folder of a fine-tuning.
# 1. After each epoch its checkpoint is written, then the state that names it; then older checkpoints go.
# 2. At the end the model is written in Hugging Face format, config.json last, then the state says `finished`.
# An interruption at any point leaves a state and the checkpoint that belongs to it.

STATE = "finetuning.json"
TRAINING_FORMAT = "tl_vzero.finetuning"
TRAINING_FORMAT_VERSION = "1"
CONFIG, WEIGHTS = "config.json", "model.safetensors"
MOMENTS = ("exp_avg", "exp_avg_sq")
ANEW = "start anew with resume=False"


@dataclass(frozen=True)
class Epoch(Row):
    """An epoch: its mean loss in nats, and the accuracy after it on the held-out examples; epoch 0 is before all.

    `loss` is None for epoch 0, `accuracy` where nothing was held out.
    """

    epoch: int
    loss: float | None
    accuracy: Estimate | None = field(metadata={COLUMNS: ""})


@dataclass(frozen=True)
class State:
    """How far a fine-tuning came: epoch 0, the start, then every finished epoch; none at the very first."""

    settings: Settings
    history: tuple[Epoch, ...]
    finished: bool
    about: Settings

    def __post_init__(self) -> None:
        if [record.epoch for record in self.history] != [*range(len(self.history))]:
            raise ValueError("the epochs of its history are not 0, 1, 2, ...")
        if self.finished and not self.history:
            raise ValueError("it is finished, and has no epoch")

    @property
    def epochs_done(self) -> int:
        return max(0, len(self.history) - 1)


def read_state(folder: Path) -> State | None:
    """The state in a folder; None where there is none. Raises FileFormatError for a file that is no state."""
    path = folder / STATE
    if not path.is_file():
        return None
    with foreign_errors_as(FileFormatError, f"{path} is no state of a fine-tuning: give another folder, or {ANEW}"):
        record = parse_json(read_text(path))
        written, readable = (record["format"], record["version"]), (TRAINING_FORMAT, TRAINING_FORMAT_VERSION)
        if written != readable:
            raise ValueError(f"it has format {written[0]} {written[1]}, and this version reads {' '.join(readable)}")
        state: State = from_plain(State, record)
    return state


def write_state(folder: Path, state: State) -> None:
    """Write how far the fine-tuning came, whole or not at all."""
    about = {"format": TRAINING_FORMAT, "version": TRAINING_FORMAT_VERSION, "epochs_done": state.epochs_done}
    write_text(folder / STATE, json.dumps(about | to_plain(state), indent=2) + "\n")


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
    """Put model and optimiser where they were after an epoch, `steps` in; raises FileFormatError for damaged files."""
    from safetensors.torch import load_file

    path = _checkpoint(folder, epoch)
    with foreign_errors_as(FileFormatError, f"{path} is not the checkpoint that {STATE} names, {ANEW}"):
        open_regular(path).close()
        tensors = load_file(path)
        _check_shapes(model, tensors)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(tensors[f"weight.{name}"])
                if f"{MOMENTS[0]}.{name}" in tensors:
                    moments = {moment: tensors[f"{moment}.{name}"].to(parameter.device) for moment in MOMENTS}
                    optimizer.state[parameter] = {"step": torch.tensor(float(steps)), **moments}


def _check_shapes(model: Any, tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError for a tensor that is not of its parameter's shape and type: it would be spread or converted."""
    for name, parameter in model.named_parameters():
        for kind in ("weight", *MOMENTS):
            tensor = tensors.get(f"{kind}.{name}", parameter)
            if (tensor.dtype, tensor.shape) != (parameter.dtype, parameter.shape):
                expected = f"expected {parameter.dtype} of {list(parameter.shape)}"
                raise ValueError(f"{kind}.{name} is {tensor.dtype} of {list(tensor.shape)}: {expected}")


def drop_checkpoints(folder: Path, *, but: int | None = None) -> None:
    """Delete checkpoints, all or all but one."""
    for path in _checkpoints(folder):
        if but is None or path != _checkpoint(folder, but):
            path.unlink()


def publish(folder: Path, model: Any, tokenizer: Any) -> None:
    """Write model and tokenizer in Hugging Face format; config.json comes last, so that no half model is read."""
    with (
        foreign_errors_as(OutputPathError, f"cannot write the model into {folder}"),
        tempfile.TemporaryDirectory(dir=folder, prefix=".partial-") as partial,
    ):
        with silent_transformers():
            model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        for path in sorted(Path(partial).iterdir(), key=lambda path: path.name == CONFIG):
            path.replace(folder / path.name)


def check_published(folder: Path) -> None:
    """Raise FileFormatError where the state says finished, and the model is not there."""
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise FileFormatError(f"{folder} holds no {name}, though {STATE} says finished: {ANEW}")


def _checkpoint(folder: Path, epoch: int) -> Path:
    return folder / f"epoch-{epoch}.safetensors"


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("epoch-*.safetensors"))
