"""What a run did, and a finished or half-finished corpus to read from."""

from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tl_vzero.corpus.folder import CorpusFolder, ShardFile, Stored, stored_numbers, stored_sentences
from tl_vzero.corpus.manifest import identity_in, read_manifest
from tl_vzero.corpus.schemas import About, corpus_hash
from tl_vzero.errors import FileFormatError, InputError, foreign_errors_as, unknown_name
from tl_vzero.files import folder_of
from tl_vzero.scores import Scores


@dataclass(frozen=True)
class CorpusRun:
    """What is in the folder after a run: `sentences` with scores, `failed` ones in the errors file.

    `computed` is how many shards this process computed now. `notes` say what was found amiss of earlier runs.
    `complete` is False where another process of the launch ended early: the same command again goes on.
    """

    folder: Path
    sentences: int
    failed: int
    shards: int
    computed: int
    seconds: float
    complete: bool
    notes: tuple[str, ...] = ()


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
        return tuple(self.manifest["options"].get("methods", ()))

    @property
    def rows(self) -> str:
        """ "all", "target" or "summary"."""
        return str(self.manifest["options"].get("rows"))

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
            yield from stored_sentences(shard)

    def scores(self, method: str = "value_zeroing") -> Iterator[tuple[str, Scores]]:
        """The id and Scores of each sentence, in the input's order: `[layer, dest, src]`, read a few at a time.

        Raises InputError for a method that is not there, or a corpus of summaries, FileFormatError for a shard that
        cannot be read, or is not what was written.
        """
        self._check_method(method)
        for shard in self._shards():
            for _, name, found in self._of_shard(shard, [method]):
                yield name, found[method]

    def scores_of(self, stored: Iterable[Stored], methods: Sequence[str]) -> Iterator[tuple[Stored, dict[str, Scores]]]:
        """The Scores of some of its `sentences` by several methods, shard by shard; raises what `scores` raises."""
        for method in methods:
            self._check_method(method)
        by_shard: dict[int, dict[int, Stored]] = {}
        for each in stored:
            by_shard.setdefault(each.shard, {})[each.row] = each
        shards = {shard.done.shard: shard for shard in self._shards()}
        for number, wanted in sorted(by_shard.items()):
            for row, _, found in self._of_shard(shards[number], methods, wanted) if number in shards else ():
                yield wanted.pop(row), found
            if wanted:
                raise FileFormatError(
                    f"{CorpusFolder(self.folder).shard(number)} has lost {len(wanted)} rows while it was read"
                )

    def _check_method(self, method: str) -> None:
        if method not in self.methods:
            raise unknown_name("method", method, self.methods)
        if self.rows == "summary":
            raise InputError(f"{self.folder} holds summaries only: read its columns by pandas, or run with rows='all'")

    def _shards(self) -> list[ShardFile]:
        folder = CorpusFolder(self.folder)
        with foreign_errors_as(FileFormatError, f"{self.folder} cannot be read"):
            done = folder.done(corpus_hash(identity_in(self.manifest)))
        return [ShardFile(folder.shard(number), each, self.verify) for number, each in done.items()]

    def _of_shard(
        self, shard: ShardFile, methods: Sequence[str], among: Container[int] | None = None
    ) -> Iterator[tuple[int, str, dict[str, Scores]]]:
        for row, labels, numbers, about in stored_numbers(shard, methods, among):
            with foreign_errors_as(FileFormatError, f"{shard.path} holds no Scores in row {row}"):
                found = {name: self._scores(labels, own, name, about) for name, own in numbers.items()}
                name = labels["id"]
            yield row, name, found

    def _scores(self, row: dict[str, Any], values: torch.Tensor, method: str, about: About) -> Scores:
        from_model = {**self.manifest["model"], "model": self.manifest.get("model_name")}
        tokens, layers, own = tuple(row["tokens"]), self.layers, about.methods[method]
        shaped = values.view(len(layers), -1, len(tokens))
        # A method of the target has one row also where whole maps were asked for.
        whole = shaped.shape[1] == len(tokens) and self.rows == "all"
        positions = tuple(range(len(tokens))) if whole else (row["target"],)
        return Scores(
            values=shaped,
            method=method,
            layers=layers,
            dest_tokens=tuple(tokens[i] for i in positions),
            src_tokens=tokens,
            dest_positions=positions,
            src_positions=tuple(range(len(tokens))),
            n_layers=about.n_layers,
            n_positions=len(tokens),
            word_ids=None if row["word_ids"] is None else tuple(row["word_ids"]),
            identity=own.identity,
            stage=own.stage,
            metadata={**from_model, "versions": self.manifest["versions"], "special": row["special"]}
            | ({"token_types": row["token_types"]} if row.get("token_types") else {}),
        )


def read_corpus(folder: str | Path, *, verify: bool = True) -> Corpus:
    """Open a folder that `run_corpus` wrote, finished or not. Nothing in it is ever executed or unpickled.

    With `verify=False` shards are not compared with what was written, which saves hashing them.

    Raises FileFormatError for a folder that is none, InputTypeError for what is no path.
    """
    where = folder_of(folder)
    with foreign_errors_as(FileFormatError, f"{where} is no corpus"):
        return Corpus(where, read_manifest(CorpusFolder(where)), verify)
