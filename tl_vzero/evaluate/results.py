"""What the results of all evaluations share: their table, their plain JSON form, their means with intervals, the
published figures, and the folders that a long evaluation goes on in."""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

import numpy as np

from tl_vzero.choices import one_of
from tl_vzero.corpus.processes import take_lock
from tl_vzero.data.examples import ALL, Skipped
from tl_vzero.errors import FileFormatError, InputError, OutputPathError, foreign_errors_as
from tl_vzero.evaluate.sentences import TokenizedExample
from tl_vzero.files import (
    folder_of,
    from_plain,
    parse_json,
    read_text,
    to_plain,
    write_text,
)
from tl_vzero.statistics import Array, Interval, columns_of, estimates

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = "columns"  # in the metadata of a field with an estimate: the prefix of its columns' names


@dataclass(frozen=True)
class Row:
    """A row of a result's table; a field with COLUMNS in its metadata holds an estimate: mean, low, high and n."""

    def records(self) -> Iterator[dict[str, Any]]:
        """The row as plain columns."""
        record: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if COLUMNS in field.metadata:
                record |= {f"{field.metadata[COLUMNS]}{name}": part for name, part in columns_of(value).items()}
            else:
                record[field.name] = value
        yield record


@dataclass(frozen=True)
class Result:
    """An evaluation's result, whose first field holds the rows of its table."""

    def to_frame(self) -> "pd.DataFrame":
        """A pandas table; an estimate is four columns: mean, low, high and n."""
        return frame_of(getattr(self, fields(self)[0].name))

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON types; numbers that do not exist are None."""
        return {field.name: _plain(getattr(self, field.name)) for field in fields(self)}


def frame_of(rows: Sequence[Row]) -> "pd.DataFrame":
    """Rows as a pandas table."""
    import pandas as pd

    return pd.DataFrame([record for row in rows for record in row.records()])


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [record for row in value for record in ([row.to_dict()] if isinstance(row, Skipped) else row.records())]
    return dict(value) if isinstance(value, Mapping) else value


def means_by_paradigm(
    values: Array, examples: Sequence[TokenizedExample], interval: Interval
) -> dict[str, tuple[list[int], Array]]:
    """Of each paradigm and of all: the indices of its examples, and the mean of `[example, ...]` over them.

    A mean is `[...]` of Estimate, over the examples where it is defined (not NaN), or None where it is for none.
    """
    columns = values.reshape(len(values), -1)
    by_paradigm: dict[str, list[int]] = {}
    for index, sentence in enumerate(examples):
        by_paradigm.setdefault(sentence.example.paradigm, []).append(index)
    means: dict[str, tuple[list[int], Array]] = {}
    for paradigm, indices in (by_paradigm | {ALL: [*range(len(examples))]}).items():
        mean = np.empty(columns.shape[1], dtype=object)
        mean[:] = estimates(columns[indices], interval)
        means[paradigm] = indices, mean.reshape(values.shape[1:])
    return means


# The figures that the paper published, to stand beside measured ones.

Training = Literal["pretrained", "finetuned"]


@dataclass(frozen=True)
class Published:
    """What was published of one model: by method and layer the dot product, by layer the compression, and so on.

    `faithfulness` comes from a secondary source.
    """

    model: str
    training: Training
    source: str
    dot: Mapping[str, tuple[float, ...]]
    compression: tuple[float, ...]
    faithfulness: Mapping[str, float]
    accuracy: float

    @property
    def name(self) -> str:
        """The model and its training, as settings name them."""
        return f"{self.model}, {self.training}"


def published(training: Training) -> Published:
    """The figures of BERT as published, pre-trained or fine-tuned.

    Raises InputError for another training. Source: Mohebbi et al. 2023; `source` says how its figures were read.

    >>> published("pretrained").dot["value_zeroing"][:4]
    (0.1, 0.14, 0.19, 0.21)
    """
    one_of("training", training, get_args(Training))
    figures: Published = from_plain(Published, {**_file(), **_file()[training], "training": training})
    return figures


def published_of(model_name: str, training: Training | None) -> Published | None:
    """The figures of the model by this name, None where there are none.

    `training` says it where the name does not: a fine-tuned checkpoint has a name of its own.

    >>> published_of("google-bert/bert-base-uncased", None).training
    'pretrained'
    >>> published_of("all-MiniLM-L6-v2", None) is None
    True
    """
    if training is None and model_name.rsplit("/", 1)[-1].lower() != _file()["model"]:
        return None
    return published(training or "pretrained")


@cache
def _file() -> Any:
    return json.loads(files("tl_vzero").joinpath("assets/published_numbers.json").read_text(encoding="utf-8"))


# Folders that a long evaluation goes on in: `options.json` says whose a folder is, other options are refused, and
# whatever is finished is written at once, whole or not at all, and read by the next run.

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
