"""Scores as columns of a table that any reader of Parquet understands.

A map is one list of numbers: `[layer, dest, src]`, flattened, of which `n_layers` (in the schema's metadata) and the
length of `tokens` give the shape back; a target's row is `[layer, src]`; a summary has a number for each layer.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

import numpy as np
import torch

from tl_vzero.comparison import shares_by_layer
from tl_vzero.corpus.scoring import Scored
from tl_vzero.errors import DependencyError
from tl_vzero.scores import Scores

# pyarrow, which the extra `corpus` brings.


def pyarrow() -> ModuleType:
    """The package pyarrow, with its Parquet module; raises DependencyError where it is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DependencyError(
            "a corpus is written as Parquet, and pyarrow is not installed: pip install 'tl-vzero[corpus]'"
        ) from error
    return pyarrow  # type: ignore[no-any-return]


Rows = Literal["target", "all", "summary"]
SUMMARIES = ("entropy", "self_weight", "special_weight")

METADATA_KEY = b"tl_vzero.corpus"


@dataclass(frozen=True)
class Columns:
    """The columns of a corpus: what every sentence has, and those of each method."""

    methods: tuple[str, ...]
    rows: Rows
    has_target: bool
    has_pairs: bool
    dtype: torch.dtype

    @property
    def number_columns(self) -> list[str]:
        """The names of the columns with numbers."""
        if self.rows == "summary":
            return [f"{method}_{name}" for method in self.methods for name in SUMMARIES]
        return list(self.methods)

    def schema(self, metadata: Mapping[str, Any]) -> Any:
        """The Arrow schema, with plain data about the corpus in its metadata."""
        pa = pyarrow()
        number = pa.float64() if self.dtype == torch.float64 else pa.float32()
        fields = [
            ("position", pa.int64()),
            ("id", pa.string()),
            ("tokens", pa.list_(pa.string())),
            ("token_ids", pa.list_(pa.int32())),
            ("special", pa.list_(pa.bool_())),
            ("word_ids", pa.list_(pa.int32())),
            *([("token_types", pa.list_(pa.int32()))] if self.has_pairs else []),
            *([("target", pa.int32())] if self.has_target else []),
            *((name, pa.list_(number)) for name in self.number_columns),
        ]
        return pa.schema(fields, metadata={METADATA_KEY: json.dumps(metadata).encode()})

    def table(self, schema: Any, scored: Scored) -> Any:
        """A part's sentences as rows, in order."""
        pa = pyarrow()
        sentences = [each.sentence for each in scored.ready]
        columns: dict[str, Any] = {
            "position": [each.record.position for each in scored.ready],
            "id": [each.record.id for each in scored.ready],
            "tokens": [list(each.tokens) for each in sentences],
            "token_ids": [each.ids.tolist() for each in sentences],
            "special": [list(each.special) for each in sentences],
            "word_ids": [None if each.word_ids is None else list(each.word_ids) for each in sentences],
            "token_types": [None if each.token_types is None else list(each.token_types) for each in sentences],
            "target": [each.target for each in scored.ready],
        }
        arrays = [
            pa.array(columns[field.name], type=field.type) if field.name in columns else self._numbers(field, scored)
            for field in schema
        ]
        return pa.Table.from_arrays(arrays, schema=schema)

    def _numbers(self, field: Any, scored: Scored) -> Any:
        pa = pyarrow()
        if self.rows == "summary":
            method, name = next(
                (method, field.name.removeprefix(f"{method}_"))
                for method in self.methods
                if field.name.removeprefix(f"{method}_") in SUMMARIES
            )
            special = [each.sentence.special for each in scored.ready]
            means = [
                _or_none(shares_by_layer(own, marked)[name])
                for own, marked in zip(scored.by_method[method], special, strict=True)
            ]
            return pa.array(means, type=field.type)
        pairs = zip(scored.by_method[field.name], scored.ready, strict=True)
        flat = [_flat(own, each.target if self.rows == "target" else None) for own, each in pairs]
        offsets = np.cumsum([0, *(len(each) for each in flat)])
        values = np.concatenate(flat) if flat else np.empty(0)
        return pa.ListArray.from_arrays(
            pa.array(offsets, type=pa.int32()), pa.array(values, type=field.type.value_type)
        )


def _flat(scores: Scores, target: int | None) -> Any:
    """All values in one row of numbers, or those of the target's row."""
    values = scores.values if target is None else scores.row(target)
    return values.detach().cpu().reshape(-1).numpy()


def _or_none(means: Iterable[float]) -> list[float | None]:
    """A layer whose rows are all empty or signed has no mean."""
    return [None if np.isnan(each) else float(each) for each in means]
