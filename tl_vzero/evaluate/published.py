"""The figures that the paper published, to stand beside measured ones."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal, get_args

from tl_vzero.choices import one_of
from tl_vzero.files import from_plain

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
