"""What a run did, and a finished or half-finished corpus to read from."""

from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tl_vzero.corpus.manifest import FORMAT_VERSION, read_manifest
from tl_vzero.corpus.reading import Stored, about_shard, damage_told, stored_numbers, stored_sentences
from tl_vzero.corpus.shards import CorpusFolder
from tl_vzero.errors import FileFormatError, InputError, unknown_name
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
    """A folder that `run_corpus` wrote, to read Scores from; `rows` is what it holds of each map."""

    folder: Path
    manifest: dict[str, Any]

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
        return str(next((about_shard(path)["methods"][method]["stage"] for _, path in self._shards()), "raw"))

    def sentences(self) -> Iterator[Stored]:
        """Every sentence without its numbers, in the input's order, read a few at a time.

        Raises FileFormatError for a shard that cannot be read.
        """
        for number, path in self._shards():
            yield from stored_sentences(path, number)

    def scores(self, method: str = "value_zeroing") -> Iterator[tuple[str, Scores]]:
        """The id and Scores of each sentence, in the input's order: `[layer, dest, src]`, read a few at a time.

        Raises InputError for a method that is not there, or a corpus of summaries, FileFormatError for a shard that
        cannot be read.
        """
        self._check_method(method)
        for number, _ in self._shards():
            for _, name, found in self._of_shard(number, [method]):
                yield name, found[method]

    def scores_of(self, stored: Iterable[Stored], methods: Sequence[str]) -> Iterator[tuple[Stored, dict[str, Scores]]]:
        """The Scores of some of its `sentences` by several methods, shard by shard; raises what `scores` raises."""
        for method in methods:
            self._check_method(method)
        by_shard: dict[int, dict[int, Stored]] = {}
        for each in stored:
            by_shard.setdefault(each.shard, {})[each.row] = each
        for number, wanted in sorted(by_shard.items()):
            for row, _, found in self._of_shard(number, methods, wanted):
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

    def _shards(self) -> Iterator[tuple[int, Path]]:
        folder = CorpusFolder(self.folder)
        for number in sorted(folder.done()):
            yield number, folder.shard(number)

    def _of_shard(
        self, number: int, methods: Sequence[str], among: Container[int] | None = None
    ) -> Iterator[tuple[int, str, dict[str, Scores]]]:
        path = CorpusFolder(self.folder).shard(number)
        with damage_told(path):
            about = about_shard(path)
            for row, labels, numbers in stored_numbers(path, methods, among):
                found = {name: self._scores(labels, own, name, about) for name, own in numbers.items()}
                yield row, labels["id"], found

    def _scores(self, row: dict[str, Any], values: torch.Tensor, method: str, about: dict[str, Any]) -> Scores:
        from_model = {**self.manifest["model"], "model": self.manifest.get("model_name")}
        tokens, layers, own = tuple(row["tokens"]), self.layers, about["methods"][method]
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
            n_layers=about["n_layers"],
            n_positions=len(tokens),
            word_ids=None if row["word_ids"] is None else tuple(row["word_ids"]),
            identity=own["identity"],
            stage=own["stage"],
            metadata={**from_model, "versions": self.manifest["versions"], "special": row["special"]}
            | ({"token_types": row["token_types"]} if row.get("token_types") else {}),
        )


def read_corpus(folder: str | Path) -> Corpus:
    """Open a folder that `run_corpus` wrote, finished or not. Nothing in it is ever executed or unpickled.

    Raises FileFormatError for a folder that is none.
    """
    where = Path(folder).expanduser()
    manifest = read_manifest(CorpusFolder(where))
    options = manifest.get("options")
    parts = [manifest.get("model"), manifest.get("versions"), options]
    if not all(isinstance(each, dict) for each in parts) or not isinstance(manifest.get("layers"), list):
        raise FileFormatError(f"{where} holds a manifest.json of another kind: expected that of `tl-vzero corpus`")
    if manifest.get("version") != FORMAT_VERSION:
        raise FileFormatError(
            f"{where} holds a corpus in version {manifest.get('version')} of its format: expected {FORMAT_VERSION}; "
            "write it anew in another folder"
        )
    return Corpus(where, manifest)
