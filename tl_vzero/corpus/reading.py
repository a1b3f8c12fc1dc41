"""Reading shards back, a few rows at a time. Nothing is executed or unpickled; damage is told in words.

What is read is what was written: a shard is compared with the hash in its note before it is read, and block by block
while it is read; and it must be the shard of that number of this very corpus, by what it says of itself.
"""

from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tl_vzero.corpus.arrow import pyarrow
from tl_vzero.corpus.columns import METADATA_KEY
from tl_vzero.corpus.hashed import CheckedFile
from tl_vzero.corpus.schemas import About, Done, corpus_hash, parsed
from tl_vzero.errors import FileFormatError, foreign_errors_as
from tl_vzero.files import open_regular

ROWS_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class Stored:
    """A sentence that a corpus holds: the shard and the row it is in, its ids and its target, where it has one."""

    shard: int
    row: int
    id: str
    token_ids: tuple[int, ...]
    target: int | None


@dataclass(frozen=True, slots=True)
class ShardFile:
    """A shard on the disk, with its note; with `verify`, it is read only where it is what was written."""

    path: Path
    done: Done
    verify: bool

    @contextmanager
    def opened(self) -> Iterator[tuple[Any, About]]:
        """The Parquet file and what it says of itself.

        Raises FileFormatError where it cannot be read or, with `verify`, is another one than was written.
        """
        with _damage_told(self.path), self._stream() as stream, _parquet(stream) as file:
            about = _about(file.schema_arrow, self.path)
            if self.verify and (corpus_hash(about.manifest), about.shard) != (self.done.corpus, self.done.shard):
                raise FileFormatError(f"{self.path} is a shard of another corpus, or another shard: {ANEW}")
            if self.verify and file.metadata.num_rows != self.done.rows:
                raise FileFormatError(
                    f"{self.path} holds {file.metadata.num_rows} sentences, and its note says {self.done.rows}: {ANEW}"
                )
            yield file, about

    def _stream(self) -> Any:
        if not self.verify:
            return open_regular(self.path, follow_links=False)
        checked = CheckedFile(self.path, follow_links=False)
        if (checked.sha256, checked.n_bytes) != (self.done.scores.sha256, self.done.scores.n_bytes):
            raise FileFormatError(f"{self.path} is not what was written, its hash differs: {ANEW}")
        return checked.open()


ANEW = "move it away, and the same command again computes it anew"


def about_shard(path: Path) -> About:
    """What a file says of itself as a shard; raises FileFormatError where it is none."""
    with _damage_told(path), open_regular(path, follow_links=False) as stream, _parquet(stream) as file:
        return _about(file.schema_arrow, path)


def rows_in_shard(path: Path) -> int:
    """How many sentences a shard holds; raises FileFormatError where it is none."""
    with _damage_told(path), open_regular(path, follow_links=False) as stream, _parquet(stream) as file:
        return int(file.metadata.num_rows)


def stored_sentences(shard: ShardFile) -> Iterator[Stored]:
    """The sentences of a shard in order, without their numbers; raises what `opened` raises."""
    with shard.opened() as (file, _):
        names = [name for name in ("id", "token_ids", "target") if name in file.schema_arrow.names]
        rows = (row for batch in file.iter_batches(ROWS_AT_ONCE, columns=names) for row in batch.to_pylist())
        for number, row in enumerate(rows):
            yield Stored(shard.done.shard, number, row["id"], tuple(row["token_ids"]), row.get("target"))


def stored_numbers(
    shard: ShardFile, methods: Sequence[str], among: Container[int] | None = None
) -> Iterator[tuple[int, dict[str, Any], dict[str, torch.Tensor], About]]:
    """Row, labels and each method's numbers, still flat, of a shard's sentences, or of those rows `among` them.

    With each, what the shard says of itself. Raises what `opened` raises.
    """
    with shard.opened() as (file, about):
        labels = [name for name in file.schema_arrow.names if name not in about.methods]
        first = 0
        for batch in file.iter_batches(ROWS_AT_ONCE, columns=[*labels, *methods]):
            rows = batch.select(labels).to_pylist()
            for index, row in enumerate(rows):
                if among is None or first + index in among:
                    yield first + index, row, {name: _numbers(batch.column(name), index) for name in methods}, about
            first += len(rows)


def _parquet(stream: Any) -> Any:
    return pyarrow().parquet.ParquetFile(stream, page_checksum_verification=True)


def _about(schema: Any, path: Path) -> About:
    about, _ = parsed(About, schema.metadata[METADATA_KEY], f"what {path} says of itself")
    return about


def _numbers(column: Any, row: int) -> torch.Tensor:
    """One row's list of numbers, in the precision of the file."""
    return torch.tensor(column[row].values.to_numpy(zero_copy_only=False))


def _damage_told(path: Path) -> Any:
    """Within, whatever damaged bytes lead to is one error."""
    return foreign_errors_as(FileFormatError, f"{path} cannot be read: {ANEW}")
