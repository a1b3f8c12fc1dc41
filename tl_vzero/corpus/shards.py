"""A shard: its columns, and how it is written.

The columns are what any reader of Parquet understands. A map is one list of numbers: `[layer, dest, src]`, flattened,
of which `n_layers` (in the schema's metadata) and the length of `tokens` give the shape back; a target's row is
`[layer, src]`; a summary has a number for each layer.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from tl_vzero.corpus.folder import METADATA_KEY, CorpusFolder, partial_path, publish, write_whole
from tl_vzero.corpus.hashed import HashedFile, Pieces
from tl_vzero.corpus.schemas import Done, Written
from tl_vzero.corpus.scoring import Rows, Scored, Scorer
from tl_vzero.corpus.source import Refused
from tl_vzero.inputs.text import Sentence
from tl_vzero.models.contracts import result_dtype
from tl_vzero.scores import Scores
from tl_vzero.statistics import shares_by_layer

SUMMARIES = ("entropy", "self_weight", "special_weight")
LONGEST_REASON = 10_000  # characters


# What is stored of each token of a sentence, and of what an encoder reads beside it.
LABELS = {
    "tokens": pa.string(),
    "token_ids": pa.int32(),
    "special": pa.bool_(),
    "word_ids": pa.int32(),
    "unknown": pa.int32(),
}


def _schema(scorer: Scorer, about: Mapping[str, Any]) -> Any:
    """The Arrow schema of what a scorer gives, with plain data about the shard in its metadata."""
    value = pa.float64() if result_dtype(scorer.model) == torch.float64 else pa.float32()
    names = scorer.methods
    if scorer.rows == "summary":
        names = tuple(f"{method}_{summary}" for method in names for summary in SUMMARIES)
    fields = [
        ("position", pa.int64()),
        ("id", pa.string()),
        *((name, pa.list_(kind)) for name, kind in LABELS.items()),
        *((f"encoder_{name}", pa.list_(kind)) for name, kind in (LABELS if scorer.reads_both else {}).items()),
        *([("token_types", pa.list_(pa.int32()))] if scorer.has_pairs else []),
        *([("target", pa.int32())] if scorer.needs_target else []),
        *((name, pa.list_(value)) for name in names),
    ]
    return pa.schema(fields, metadata={METADATA_KEY: json.dumps(about).encode()})


def _table(schema: Any, rows: Rows, scored: Scored) -> Any:
    """A part's sentences as rows, in order."""
    sentences = [ready.sentence for ready in scored.ready]
    columns: dict[str, Any] = {
        "position": [ready.record.position for ready in scored.ready],
        "id": [ready.record.id for ready in scored.ready],
        **_labels(sentences),
        **{f"encoder_{name}": of for name, of in _labels([s.encoder for s in sentences if s.encoder]).items()},
        "token_types": [None if sentence.token_types is None else list(sentence.token_types) for sentence in sentences],
        "target": [ready.target for ready in scored.ready],
    }
    for method, scores in scored.by_method.items():
        if rows == "summary":
            columns |= {f"{method}_{name}": means for name, means in _summaries(scores, sentences).items()}
        else:
            targets = columns["target"] if rows == "target" else [None] * len(scores)
            columns[method] = _lists([_flat(*pair) for pair in zip(scores, targets, strict=True)], schema.field(method))
    arrays = [
        column if isinstance(column := columns[field.name], pa.Array) else pa.array(column, type=field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def _labels(sentences: Sequence[Sentence]) -> dict[str, list[Any]]:
    """The columns of LABELS."""
    return {
        "tokens": [list(sentence.tokens) for sentence in sentences],
        "token_ids": [sentence.ids.tolist() for sentence in sentences],
        "special": [list(sentence.special) for sentence in sentences],
        "word_ids": [None if sentence.word_ids is None else list(sentence.word_ids) for sentence in sentences],
        "unknown": [list(sentence.unknown) for sentence in sentences],
    }


def _summaries(scores: Sequence[Scores], sentences: Sequence[Sentence]) -> dict[str, list[list[float | None]]]:
    """Of each summary its means by layer, in order; a layer whose rows are all empty or signed has no mean."""
    shares = [
        shares_by_layer(
            one.values, () if sentence.cross else one.dest_positions, one.src_positions, sentence.sources.special
        )
        for one, sentence in zip(scores, sentences, strict=True)
    ]
    return {
        name: [[None if np.isnan(mean) else float(mean) for mean in by_name[name]] for by_name in shares]
        for name in SUMMARIES
    }


def _flat(scores: Scores, target: int | None) -> Any:
    """All values in one row of numbers, or those of the target's row."""
    values = scores.values if target is None else scores.row(target)
    return values.detach().cpu().reshape(-1).numpy()


def _lists(flat: Sequence[Any], field: Any) -> Any:
    """Arrays as a column of lists; not by way of Python's numbers, which is slow."""
    offsets = np.cumsum([0, *(len(values) for values in flat)])
    values = np.concatenate(flat) if flat else np.empty(0)
    return pa.ListArray.from_arrays(pa.array(offsets, type=pa.int32()), pa.array(values, type=field.type.value_type))


class ShardWriter:
    """Writes one shard, part by part; until `finish` nothing of it has its name."""

    def __init__(self, folder: CorpusFolder, corpus: str, index: int, scorer: Scorer, about: Mapping[str, Any]) -> None:
        self._folder, self._corpus, self._index, self._rows = folder, corpus, index, scorer.rows
        self._schema = _schema(scorer, {**about, "shard": index})
        self._refused: list[Refused] = []
        self._n_rows = 0
        self._partial = partial_path(folder.path("shards", index), corpus)
        self._file = HashedFile(self._partial.open("xb"))
        self._writer = pq.ParquetWriter(
            self._file,
            self._schema,
            compression="zstd",
            # Distances hardly repeat: looking for repetitions costs time and finds none.
            use_dictionary=[field.name for field in self._schema if not pa.types.is_list(field.type)],
            write_page_checksum=True,
        )

    def add(self, scored: Scored, refused: Sequence[Refused]) -> None:
        """Write a part's rows, and keep the sentences that failed."""
        table = _table(self._schema, self._rows, scored)
        if len(table):
            self._writer.write_table(table)
        self._n_rows += len(table)
        self._refused += refused

    def finish(self) -> Done:
        """Have the shard on the disk, under its name and noted as done."""
        self._writer.close()
        scores = self._file.sync()
        self._file.close()
        errors = self._write_errors()
        publish(self._partial, self._folder.path("shards", self._index))
        self._partial.unlink(missing_ok=True)
        done = Done(
            format="tl_vzero.corpus.shard",
            corpus=self._corpus,
            shard=self._index,
            rows=self._n_rows,
            failed=len(self._refused),
            scores=scores,
            errors=errors,
        )
        note = json.dumps(done.model_dump()).encode()
        write_whole(self._folder.path("done", self._index), self._corpus, [note])
        return done

    def _write_errors(self) -> Written | None:
        if not self._refused:
            return None
        hashed, lines = Pieces(), []
        for refused in sorted(self._refused, key=lambda refused: refused.position):
            # A reason may quote half of a surrogate pair, which no JSON can hold.
            reason = refused.reason[:LONGEST_REASON].encode("utf-8", "backslashreplace").decode()
            line = f"{json.dumps({**asdict(refused), 'reason': reason}, ensure_ascii=False)}\n".encode()
            hashed.update(memoryview(line))
            lines.append(line)
        write_whole(self._folder.path("errors", self._index), self._corpus, lines)
        return hashed.written

    def abandon(self) -> None:
        """Leave nothing of the shard behind."""
        self._file.discard = True  # closing the writer would write its footer, perhaps to a full disk
        try:
            self._writer.close()
        finally:
            self._file.close()
            self._partial.unlink(missing_ok=True)
