"""What a run did, and a finished or half-finished corpus to read from."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tl_vzero.corpus.arrow import pyarrow
from tl_vzero.corpus.columns import METADATA_KEY
from tl_vzero.corpus.manifest import read_manifest
from tl_vzero.corpus.shards import CorpusFolder
from tl_vzero.errors import FileFormatError, InputError, unknown_name
from tl_vzero.scores import Scores

ROWS_AT_ONCE = 256


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

    def scores(self, method: str = "value_zeroing") -> Iterator[tuple[str, Scores]]:
        """The id and Scores of each sentence, in the input's order: `[layer, dest, src]`, read a few at a time.

        Raises InputError for a method that is not there, or a corpus of summaries, FileFormatError for a shard that
        cannot be read.
        """
        if method not in self.methods:
            raise unknown_name("method", method, self.methods)
        if self.rows == "summary":
            raise InputError(f"{self.folder} holds summaries only: read its columns by pandas, or run with rows='all'")
        folder = CorpusFolder(self.folder)
        for number in sorted(folder.done()):
            yield from self._of_shard(folder.shard(number), method)

    def _of_shard(self, path: Path, method: str) -> Iterator[tuple[str, Scores]]:
        pa = pyarrow()
        try:
            with pa.parquet.ParquetFile(path, page_checksum_verification=True) as file:
                about = json.loads(file.schema_arrow.metadata[METADATA_KEY])
                names = [name for name in file.schema_arrow.names if name not in self.methods or name == method]
                for batch in file.iter_batches(ROWS_AT_ONCE, columns=names):
                    flat, dtype = batch.column(method), torch.float64
                    if flat.type.value_type == pa.float32():
                        dtype = torch.float32
                    for row in batch.to_pylist():
                        values = torch.tensor(row[method], dtype=dtype)
                        yield row["id"], self._scores(row, values, method, about)
        except (pa.ArrowException, OSError, ValueError, LookupError, TypeError, RuntimeError) as error:
            raise FileFormatError(
                f"{path} cannot be read ({type(error).__name__}: {error}): the same command again computes it anew"
            ) from error

    def _scores(self, row: dict[str, Any], values: torch.Tensor, method: str, about: dict[str, Any]) -> Scores:
        from_model = {**self.manifest["model"], "model": self.manifest.get("model_name")}
        tokens, layers, own = tuple(row["tokens"]), tuple(self.manifest["layers"]), about["methods"][method]
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
            metadata={**from_model, "versions": self.manifest["versions"], "special": row["special"]},
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
    return Corpus(where, manifest)
