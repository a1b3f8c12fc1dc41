"""A finished or half-finished corpus to read from, a few rows at a time. Nothing is executed or unpickled.

What is read is what was written: a shard is compared with the hash in its note before it is read, and block by block
while it is read; and it must be the shard of that index of this very corpus, by what it says of itself.
"""

from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from tl_vzero.choices import one_of
from tl_vzero.corpus.checked import About, CheckedFile, Done, corpus_hash
from tl_vzero.corpus.folder import ANEW, CorpusFolder, identity_in, open_shard, read_manifest
from tl_vzero.errors import FileFormatError, InputError, foreign_errors_as
from tl_vzero.files import folder_of, open_regular
from tl_vzero.scores import Scores

ROWS_PER_BATCH = 256


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
        with open_shard(self.path, self._stream) as (file, about):
            if self.verify and (corpus_hash(about.manifest), about.shard) != (self.done.corpus, self.done.shard):
                raise FileFormatError(f"{self.path} is a shard of another corpus, or another shard: {ANEW}")
            if self.verify and file.metadata.num_rows != self.done.rows:
                raise FileFormatError(
                    f"{self.path} holds {file.metadata.num_rows} sentences, and its note says {self.done.rows}: {ANEW}"
                )
            yield file, about

    def _stream(self) -> BinaryIO:
        if not self.verify:
            return open_regular(self.path, follow_links=False)
        checked = CheckedFile(self.path, follow_links=False)
        if (checked.sha256, checked.n_bytes) != (self.done.scores.sha256, self.done.scores.n_bytes):
            raise FileFormatError(f"{self.path} is not what was written, its hash differs: {ANEW}")
        return checked.open()


@dataclass(frozen=True)
class Corpus:
    """A folder that `run_corpus` wrote, to read Scores from; `rows` is what it holds of each map.

    With `verify`, every shard is compared with what was written, and with the manifest, before and while it is read.
    """

    folder: Path
    manifest: dict[str, Any]
    verify: bool = True

    @property
    def methods(self) -> tuple[str, ...]:
        """The names of its methods."""
        return tuple(self.manifest["options"]["methods"])

    @property
    def rows(self) -> str:
        """ "all", "target" or "summary"."""
        return str(self.manifest["options"]["rows"])

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers of each map, in order."""
        return tuple(self.manifest["layers"])

    def stage(self, method: str) -> str:
        """What a method's numbers are, "raw" or "rollout"; raises what `scores` raises."""
        self._check_method(method)
        for shard in self._shards():
            with shard.opened() as (_, about):
                return str(about.methods[method].stage)
        return "raw"

    def sentences(self) -> Iterator[Stored]:
        """Every sentence without its numbers, in the input's order, read a few at a time.

        Raises FileFormatError for a shard that cannot be read, or is not what was written.
        """
        for shard in self._shards():
            with shard.opened() as (file, _):
                names = [name for name in ("id", "token_ids", "target") if name in file.schema_arrow.names]
                rows = (row for batch in file.iter_batches(ROWS_PER_BATCH, columns=names) for row in batch.to_pylist())
                for index, row in enumerate(rows):
                    yield Stored(shard.done.shard, index, row["id"], tuple(row["token_ids"]), row.get("target"))

    def scores(self, method: str = "value_zeroing") -> Iterator[tuple[str, Scores]]:
        """The id and Scores of each sentence, in the input's order: `[layer, dest, src]`, read a few at a time.

        Raises InputError for a method that is not there, or a corpus of summaries, FileFormatError for a shard that
        cannot be read, or is not what was written.
        """
        self._check_method(method)
        for shard in self._shards():
            for _, name, scores in self._rows_of(shard, [method]):
                yield name, scores[method]

    def scores_of(self, stored: Iterable[Stored], methods: Sequence[str]) -> Iterator[tuple[Stored, dict[str, Scores]]]:
        """The Scores of some of its `sentences` by several methods, shard by shard; raises what `scores` raises."""
        for method in methods:
            self._check_method(method)
        by_shard: dict[int, dict[int, Stored]] = {}
        for sentence in stored:
            by_shard.setdefault(sentence.shard, {})[sentence.row] = sentence
        shards = {shard.done.shard: shard for shard in self._shards()}
        for index, wanted in sorted(by_shard.items()):
            for row, _, scores in self._rows_of(shards[index], methods, wanted) if index in shards else ():
                yield wanted.pop(row), scores
            if wanted:
                raise FileFormatError(
                    f"{CorpusFolder(self.folder).path('shards', index)} has lost {len(wanted)} rows while it was read"
                )

    def _check_method(self, method: str) -> None:
        one_of("method", method, self.methods)
        if self.rows == "summary":
            raise InputError(f"{self.folder} holds summaries only: read its columns by pandas, or run with rows='all'")

    def _shards(self) -> list[ShardFile]:
        folder = CorpusFolder(self.folder)
        with foreign_errors_as(FileFormatError, f"{self.folder} cannot be read"):
            notes = folder.done(corpus_hash(identity_in(self.manifest)))
        return [ShardFile(folder.path("shards", index), done, self.verify) for index, done in notes.items()]

    def _rows_of(
        self, shard: ShardFile, methods: Sequence[str], among: Container[int] | None = None
    ) -> Iterator[tuple[int, str, dict[str, Scores]]]:
        """Row, id and Scores by method of a shard's sentences, or of those rows `among` them."""
        with shard.opened() as (file, about):
            labels = [name for name in file.schema_arrow.names if name not in about.methods]
            first = 0
            for batch in file.iter_batches(ROWS_PER_BATCH, columns=[*labels, *methods]):
                for index, row in enumerate(batch.select(labels).to_pylist()):
                    if among is not None and first + index not in among:
                        continue
                    values = {name: _values(batch.column(name), index) for name in methods}
                    with foreign_errors_as(FileFormatError, f"{shard.path} holds no Scores in row {first + index}"):
                        scores = {name: self._scores(row, values[name], name, about) for name in methods}
                        sentence_id = row["id"]
                    yield first + index, sentence_id, scores
                first += len(batch)

    def _scores(self, row: dict[str, Any], values: torch.Tensor, method: str, about: About) -> Scores:
        from_model = {**self.manifest["model"], "model": self.manifest.get("model_name")}
        options = self.manifest["options"]["methods"].get(method)
        tokens, stack = tuple(row["tokens"]), self.manifest["options"].get("stack")
        of_encoder = "encoder_" if stack == "cross" else ""
        sources = tuple(row[f"{of_encoder}tokens"])
        shaped = values.view(len(self.layers), -1, len(sources))
        # A method of the target has one row also where whole maps were asked for.
        is_whole = shaped.shape[1] == len(tokens) and self.rows == "all"
        positions = tuple(range(len(tokens))) if is_whole else (row["target"],)
        return Scores(
            values=shaped,
            method=method,
            layers=self.layers,
            dest_tokens=tuple(tokens[position] for position in positions),
            src_tokens=sources,
            dest_positions=positions,
            src_positions=tuple(range(len(sources))),
            n_layers=about.n_layers,
            n_positions=len(tokens),
            word_ids=_tuple(row["word_ids"]),
            n_src_positions=len(sources) if of_encoder else None,
            src_word_ids=_tuple(row["encoder_word_ids"]) if of_encoder else None,
            identity=about.methods[method].identity,
            stage=about.methods[method].stage,
            metadata={**from_model, "versions": self.manifest["versions"], "special": row["special"]}
            | {name: row[name] for name in ("token_types", "unknown", "encoder_unknown") if row.get(name)}
            | {name: row[name] for name in ("encoder_tokens", "encoder_special") if name in row}
            | ({"stack": stack} if stack else {})
            | ({"options": options} if options else {}),
        )


def _tuple(labels: list[Any] | None) -> tuple[Any, ...] | None:
    return None if labels is None else tuple(labels)


def _values(column: Any, row: int) -> torch.Tensor:
    """One row's list of numbers, in the precision of the file."""
    return torch.tensor(column[row].values.to_numpy(zero_copy_only=False))


def read_corpus(folder: str | Path, *, verify: bool = True) -> Corpus:
    """Open a folder that `run_corpus` wrote, finished or not. Nothing in it is ever executed or unpickled.

    With `verify=False` shards are not compared with what was written, which saves hashing them.

    Raises FileFormatError for a folder that is none, InputTypeError for what is no path.
    """
    where = folder_of(folder)
    with foreign_errors_as(FileFormatError, f"{where} is no corpus"):
        return Corpus(where, read_manifest(CorpusFolder(where)), verify)
