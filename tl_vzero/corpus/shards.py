"""The folder of a corpus: shards, the sentences that failed, and a note for each shard that is finished.

    manifest.json          what the corpus is: options, versions, hashes
    shards/00000.parquet   the scores
    errors/00000.jsonl     the sentences of that shard that failed, where there are any
    done/00000.json        that the shard is finished, with the sizes and hashes of its files
    errors.jsonl           all failed sentences, once the whole corpus is finished

A shard counts once its note is there, which is written last. Everything is written aside, synced and renamed.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tl_vzero.corpus.arrow import pyarrow
from tl_vzero.corpus.durable import (
    HashedFile,
    hash_of,
    partial_files,
    partial_path,
    rename_durably,
    write_durably,
)
from tl_vzero.corpus.records import Refused

PARTS = ("shards", "errors", "done")


@dataclass(frozen=True)
class Done:
    """What is noted of a finished shard: rows and failed sentences, and its files' sizes and hashes."""

    shard: int
    rows: int
    failed: int
    n_bytes: int
    sha256: str
    errors_sha256: str | None


@dataclass(frozen=True)
class CorpusFolder:
    """Where each file of a corpus is."""

    root: Path

    @property
    def manifest(self) -> Path:
        """What the corpus is."""
        return self.root / "manifest.json"

    @property
    def all_errors(self) -> Path:
        """Every failed sentence, once all shards are finished."""
        return self.root / "errors.jsonl"

    @property
    def locks(self) -> Path:
        """Where running processes say that they are at work."""
        return self.root / "locks"

    def shard(self, number: int) -> Path:
        """A shard's scores."""
        return self.root / "shards" / f"{number:05d}.parquet"

    def errors(self, number: int) -> Path:
        """A shard's failed sentences."""
        return self.root / "errors" / f"{number:05d}.jsonl"

    def note(self, number: int) -> Path:
        """That a shard is finished."""
        return self.root / "done" / f"{number:05d}.json"

    def make(self) -> None:
        """Make the folders that are not there."""
        for name in PARTS:
            (self.root / name).mkdir(parents=True, exist_ok=True)

    def done(self) -> dict[int, Done]:
        """The finished shards, as their notes say; notes that cannot be read are left out."""
        found = (read_note(path) for path in sorted((self.root / "done").glob("*.json")))
        return {each.shard: each for each in found if each is not None}


def read_note(path: Path) -> Done | None:
    """A note, or None for what is none."""
    try:
        done = Done(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
    whole = (done.shard, done.rows, done.failed, done.n_bytes)
    if not all(type(each) is int and each >= 0 for each in whole) or path.stem != f"{done.shard:05d}":
        return None
    return done


def check_shards(folder: CorpusFolder) -> list[str]:
    """Take away what is not whole, so that it is computed again; what was found, in words."""
    told = []
    for name in PARTS:
        for partial in partial_files(folder.root / name):
            told.append(f"{name}/{partial.name} was left open when a run was interrupted: removed")
            partial.unlink(missing_ok=True)
    for path in sorted((folder.root / "done").glob("*.json")):
        fault = _fault_of(folder, path)
        if fault is not None:
            told.append(f"shard {path.stem} is damaged ({fault}): computed again")
            path.unlink(missing_ok=True)
    noted = {path.stem for path in (folder.root / "done").glob("*.json")}
    for path in sorted((folder.root / "shards").glob("*.parquet")):
        if path.stem not in noted:
            told.append(f"shard {path.stem} was not finished: computed again")
            path.unlink()
    return told


def _fault_of(folder: CorpusFolder, path: Path) -> str | None:
    done = read_note(path)
    if done is None:
        return f"its note done/{path.name} cannot be read"
    shard, errors = folder.shard(done.shard), folder.errors(done.shard)
    if not shard.is_file():
        return f"shards/{shard.name} is not there"
    if shard.stat().st_size != done.n_bytes:
        return f"shards/{shard.name} has {shard.stat().st_size} bytes, and {done.n_bytes} were written"
    if hash_of(shard) != done.sha256:
        return f"shards/{shard.name} is not what was written: its hash differs"
    if done.errors_sha256 is not None and (not errors.is_file() or hash_of(errors) != done.errors_sha256):
        return f"errors/{errors.name} is not what was written"
    return None


class ShardWriter:
    """Writes one shard, part by part; until `finish` nothing of it has its name."""

    def __init__(self, folder: CorpusFolder, number: int, schema: Any) -> None:
        self._folder, self._number, self._schema = folder, number, schema
        self._refused: list[Refused] = []
        self._rows = 0
        self._partial = partial_path(folder.shard(number))
        self._file = HashedFile(self._partial)
        numbers = [field.name for field in schema if pyarrow().types.is_list(field.type)]
        # Distances hardly repeat: looking for repetitions costs time and finds none.
        texts = [name for name in schema.names if name not in numbers]
        self._writer = pyarrow().parquet.ParquetWriter(
            self._file, schema, compression="zstd", use_dictionary=texts, write_page_checksum=True
        )

    def add(self, table: Any, refused: Sequence[Refused]) -> None:
        """Write a part's rows, and keep the sentences that failed."""
        if len(table):
            self._writer.write_table(table)
        self._rows += len(table)
        self._refused += refused

    def finish(self) -> Done:
        """Have the shard on the disk, under its name and noted as done."""
        self._writer.close()
        sha256 = self._file.sync()
        self._file.close()
        errors_sha256 = self._write_errors()
        rename_durably(self._partial, self._folder.shard(self._number))
        done = Done(self._number, self._rows, len(self._refused), self._file.n_bytes, sha256, errors_sha256)
        write_durably(self._folder.note(self._number), json.dumps(asdict(done)).encode())
        return done

    def _write_errors(self) -> str | None:
        path = self._folder.errors(self._number)
        if not self._refused:
            path.unlink(missing_ok=True)
            return None
        in_order = sorted(self._refused, key=lambda each: each.position)
        lines = [json.dumps(asdict(each), ensure_ascii=False) for each in in_order]
        write_durably(path, "".join(f"{line}\n" for line in lines).encode("utf-8", "backslashreplace"))
        return hash_of(path)

    def abandon(self) -> None:
        """Leave nothing of the shard behind."""
        self._file.discard = True  # closing the writer would write its footer, perhaps to a full disk
        try:
            self._writer.close()
        finally:
            self._file.close()
            self._partial.unlink(missing_ok=True)


def join_errors(folder: CorpusFolder) -> None:
    """Write all failed sentences into one file, in order."""
    partial = partial_path(folder.all_errors)
    try:
        with partial.open("wb") as file:
            for number, done in sorted(folder.done().items()):
                if done.failed:
                    file.write(folder.errors(number).read_bytes())
        rename_durably(partial, folder.all_errors)
    finally:
        partial.unlink(missing_ok=True)
