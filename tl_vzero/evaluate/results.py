"""What the results of all evaluations share: their table, their plain JSON form, their means with intervals, and the
figures that the paper published."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from tl_vzero.choices import one_of
from tl_vzero.data.examples import ALL, Skipped
from tl_vzero.evaluate.sentences import TokenizedExample
from tl_vzero.files import from_plain
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
