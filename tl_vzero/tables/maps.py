"""The maps behind a table: several calls of Value Zeroing with the same options."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from tl_vzero.api import value_zeroing
from tl_vzero.errors import InputError
from tl_vzero.inputs import Text
from tl_vzero.scores import Scores


def options_without(options: Mapping[str, Any], taken: Mapping[str, str]) -> dict[str, Any]:
    """Options that several calls can read; raises InputError, with its reason, for one that the table sets itself."""
    for name, reason in taken.items():
        if name in options:
            raise InputError(f"{name}={options[name]!r} given: {reason}; leave it out")
    return {name: list(value) if isinstance(value, Iterator) else value for name, value in options.items()}


def raw_maps(model: nn.Module, inputs: Text, **options: Any) -> list[Scores]:
    """The map of each sentence, also of one alone."""
    scores = value_zeroing(model, inputs, **options)
    return scores if isinstance(scores, list) else [scores]
