"""Reading shards back, a few rows at a time. Nothing is executed or unpickled; damage is told in words."""

import json
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tl_vzero.corpus.arrow import pyarrow
from tl_vzero.corpus.columns import METADATA_KEY
from tl_vzero.errors import FileFormatError

ROWS_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class Stored:
    """A sentence that a corpus holds: the shard and the row it is in, its ids and its target, where it has one."""

    shard: int
    row: int
    id: str
    token_ids: tuple[int, ...]
    target: int | None


def about_shard(path: Path) -> dict[str, Any]:
    """What a shard says of its methods; raises FileFormatError where it cannot be read."""
    with damage_told(path):
        return _about(pyarrow().parquet.read_schema(path))


def stored_sentences(path: Path, shard: int) -> Iterator[Stored]:
    """The sentences of a shard in order, without their numbers; raises FileFormatError where it cannot be read."""
    with damage_told(path), pyarrow().parquet.ParquetFile(path, page_checksum_verification=True) as file:
        names = [name for name in ("id", "token_ids", "target") if name in file.schema_arrow.names]
        rows = (row for batch in file.iter_batches(ROWS_AT_ONCE, columns=names) for row in batch.to_pylist())
        for number, row in enumerate(rows):
            yield Stored(shard, number, row["id"], tuple(row["token_ids"]), row.get("target"))


def stored_numbers(
    path: Path, methods: Sequence[str], among: Container[int] | None = None
) -> Iterator[tuple[int, dict[str, Any], dict[str, torch.Tensor]]]:
    """Row, labels and each method's numbers, still flat, of a shard's sentences, or of those rows `among` them.

    Raises FileFormatError where the shard cannot be read.
    """
    with damage_told(path), pyarrow().parquet.ParquetFile(path, page_checksum_verification=True) as file:
        about = _about(file.schema_arrow)
        labels = [name for name in file.schema_arrow.names if name not in about["methods"]]
        first = 0
        for batch in file.iter_batches(ROWS_AT_ONCE, columns=[*labels, *methods]):
            rows = batch.select(labels).to_pylist()
            for index, row in enumerate(rows):
                if among is None or first + index in among:
                    yield first + index, row, {name: _numbers(batch.column(name), index) for name in methods}
            first += len(rows)


def _about(schema: Any) -> dict[str, Any]:
    about = json.loads(schema.metadata[METADATA_KEY])
    return {"methods": dict(about["methods"]), "n_layers": int(about["n_layers"])}


def _numbers(column: Any, row: int) -> torch.Tensor:
    """One row's list of numbers, in the precision of the file."""
    return torch.tensor(column[row].values.to_numpy(zero_copy_only=False))


@contextmanager
def damage_told(path: Path) -> Iterator[None]:
    """Within, whatever damaged bytes lead to is one error."""
    pa = pyarrow()
    damage = (pa.ArrowException, OSError, ValueError, LookupError, TypeError, RuntimeError, AttributeError)
    try:
        yield
    except damage as error:
        if isinstance(error, FileFormatError):
            raise
        raise FileFormatError(
            f"{path} cannot be read ({type(error).__name__}: {error}): the same command again computes it anew"
        ) from error
