"""A folder of finished parts, so that a long evaluation goes on where it was.

1. `options.json` says of what the parts are; a folder of other options is refused.
2. Each part is one JSON file, written whole or not at all as soon as it is finished.
"""

import json
import tempfile
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from math import isfinite, nan
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from tl_vzero.errors import FileFormatError, InputError, OutputPathError
from tl_vzero.files import folder_of, open_regular, read_json, write_atomically, write_text
from tl_vzero.models.hugging_face import silent_transformers
from tl_vzero.statistics import Estimate

# Result dataclasses as plain JSON types, and back.


def to_plain(value: Any) -> Any:
    """A result as plain JSON types; a number that is not finite becomes None.

    >>> from tl_vzero.statistics import Estimate
    >>> to_plain(Estimate(0.5, float("nan"), 1.0, 1))
    {'mean': 0.5, 'low': None, 'high': 1.0, 'n': 1, 'confidence': 0.95}
    """
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(each) for key, each in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [to_plain(each) for each in value]
    if isinstance(value, float) and not isfinite(value):
        return None
    return value


def from_plain(kind: Any, plain: Any) -> Any:
    """The value of a type that `to_plain` wrote; None stands for NaN where the type is float.

    Raises KeyError, TypeError or ValueError for what it did not write, such as a text for a number.

    >>> from tl_vzero.statistics import Estimate
    >>> from_plain(Estimate, {"mean": 0.5, "low": None, "high": 1.0, "n": 1, "confidence": 0.95})
    Estimate(mean=0.5, low=nan, high=1.0, n=1, confidence=0.95)
    """
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return None if plain is None else from_plain(_only_other(kind), plain)
    if origin is tuple:
        inner = get_args(kind)[0]
        return tuple(from_plain(inner, each) for each in _of_type(plain, list))
    if origin is Literal:
        if plain not in get_args(kind):
            raise ValueError(f"{plain!r} is none of {', '.join(map(repr, get_args(kind)))}")
        return plain
    if origin is not None and issubclass(origin, Mapping):
        inner = get_args(kind)[1]
        return {key: from_plain(inner, each) for key, each in _of_type(plain, dict).items()}
    if is_dataclass(kind) and isinstance(kind, type):
        hints = get_type_hints(kind)
        record = _of_type(plain, dict)
        return kind(**{field.name: from_plain(hints[field.name], record[field.name]) for field in fields(kind)})
    if kind is float:
        return nan if plain is None else float(_of_type(plain, int, float))
    return _of_type(plain, kind) if kind in (int, str, bool) else plain


def _of_type(plain: Any, *kinds: type) -> Any:
    # Not isinstance: true is no number.
    if type(plain) not in kinds:
        raise TypeError(f"{str(plain)[:80]!r} is {type(plain).__name__}: expected {kinds[-1].__name__}")
    return plain


def _only_other(kind: Any) -> Any:
    (other,) = (each for each in get_args(kind) if each is not type(None))
    return other


OPTIONS = "options.json"
FORMAT = "tl_vzero.evaluation"
FORMAT_VERSION = "1"

Part = TypeVar("Part")


@dataclass(frozen=True)
class Store:
    """Parts by name, in a folder; without a folder nothing is kept."""

    folder: Path | None

    def has(self, name: str) -> bool:
        """Whether a part is finished."""
        return self.folder is not None and self._path(name).is_file()

    def part(self, name: str, kind: type[Part], compute: Callable[[], Part]) -> Part:
        """A part that was finished before, or else computed now and kept.

        Raises FileFormatError for a file that holds no such part.
        """
        # Also what is computed now goes through plain types: a result does not show whether it was interrupted.
        plain = self._read(name) if self.has(name) else json.loads(json.dumps(to_plain(compute()), allow_nan=False))
        try:
            made: Part = from_plain(kind, plain)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FileFormatError(
                f"{self._path(name)} is no {kind.__name__} ({type(error).__name__}: {error}): delete it to have it "
                "computed again"
            ) from error
        if self.folder is not None and not self.has(name):
            write_text(self._path(name), json.dumps(plain, ensure_ascii=False, allow_nan=False))
        return made

    def _path(self, name: str) -> Path:
        return Path(self.folder or ".") / f"{name}.json"

    def _read(self, name: str) -> Any:
        path = self._path(name)
        try:
            return read_json(path)
        except FileFormatError as error:
            raise FileFormatError(f"{path} cannot be read ({error}): delete it to have it computed again") from error


def open_store(folder: str | Path | None, options: Mapping[str, Any]) -> Store:
    """The store in a folder, made if it is not there; None keeps nothing.

    Raises InputError for a folder of other options, naming what differs, OutputPathError for one that cannot be
    written or holds other files.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     open_store(folder, {"seed": 0}).part("number", int, lambda: 3)
    ...     open_store(folder, {"seed": 0}).part("number", int, lambda: 4)
    3
    3
    """
    if folder is None:
        return Store(None)
    where = folder_of(folder)
    try:
        where.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # a name that is too long, or holds a NUL character
        raise OutputPathError(f"cannot make the folder {where}: {error}; choose another one") from error
    plain = {"format": FORMAT, "version": FORMAT_VERSION, **to_plain(options)}
    path = where / OPTIONS
    if path.is_file():
        _check_same(where, _options(path), plain)
    elif any(where.iterdir()):
        raise OutputPathError(
            f"{where} holds files, and no {OPTIONS}: expected a new or empty folder, or one to go on in"
        )
    else:
        write_text(path, json.dumps(plain, ensure_ascii=False, indent=2) + "\n")
    return Store(where)


def _options(path: Path) -> Mapping[str, Any]:
    try:
        read = read_json(path)
    except FileFormatError as error:
        raise FileFormatError(f"{path} cannot be read ({error}): choose another folder") from error
    if not isinstance(read, dict):
        raise FileFormatError(f"{path} holds no options: choose another folder")
    return read


def _check_same(where: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    differing = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if differing:
        told = "; ".join(f"{name} was {before.get(name)}, is {now.get(name)}" for name in differing)
        raise InputError(
            f"{where} holds an evaluation of other options ({told}): expected the same to go on; choose another folder"
        )


# The folder of a fine-tuning: what was done so far, the last epoch's checkpoint, and in the end the model.
#
# 1. After each epoch its checkpoint is written, then the state that names it; then older checkpoints go.
# 2. At the end the model is written in Hugging Face format, config.json last, then the state says `finished`.
# An interruption at any point leaves a state and the checkpoint that belongs to it.

STATE = "finetuning.json"
TRAINING_FORMAT = "tl_vzero.finetuning"
TRAINING_FORMAT_VERSION = "1"
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
        if (read["format"], read["version"]) != (TRAINING_FORMAT, TRAINING_FORMAT_VERSION):
            raise ValueError(
                f"it has format {read['format']} {read['version']}, and this version reads "
                f"{TRAINING_FORMAT} {TRAINING_FORMAT_VERSION}"
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
        "format": TRAINING_FORMAT,
        "version": TRAINING_FORMAT_VERSION,
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
