"""Shards: how an input is cut into them, scored by every method that was chosen, and written.

1. Shard k holds the records k n to (k + 1) n - 1, whoever computes it and whenever: so batches, and with them the
last digits of the scores, do not depend on where a run was interrupted.
2. A shard is worked on in parts, which bound what is held at a time; also their limits follow from the records alone.
3. The next part is tokenised while this one is scored.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

from tl_vzero.corpus.checked import Done, HashedFile, Pieces, Written
from tl_vzero.corpus.folder import METADATA_KEY, CorpusFolder, partial_path, publish, write_whole
from tl_vzero.corpus.source import Record, Refused, Source
from tl_vzero.errors import ModelError, TLVZeroError
from tl_vzero.inputs.encoder_decoder import encode_for
from tl_vzero.inputs.text import Inputs, Sentence, encode, warned_before
from tl_vzero.methods.apply import scores_on_one_run
from tl_vzero.methods.plan import Planned
from tl_vzero.models.contracts import check_contracts, result_dtype
from tl_vzero.models.sites import Sites, Stack
from tl_vzero.scores import Scores
from tl_vzero.statistics import shares_by_layer
from tl_vzero.targets import find_target

Item = TypeVar("Item")
Rows = Literal["target", "all", "summary"]


@dataclass(frozen=True, eq=False)
class Ready:
    """A record that was tokenised; `target` is its target's position, where one is needed."""

    record: Record
    sentence: Sentence
    target: int | None


@dataclass(eq=False)
class Part:
    """Records of one shard that are scored together; the last one `closes` its shard."""

    shard: int
    ready: list[Ready] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    closes: bool = False
    cells: int = 0


@dataclass(eq=False)
class Parts:
    """The parts of the shards that are `wanted`, in order; iterated once.

    A part ends once its sentences have `cells_per_part` (destination, source) cells. `records` is how many the input
    holds, once it was read to its end; `noticed` is how many sentences have notes, `first_noticed` the first.
    """

    source: Source
    scorer: "Scorer"
    shard_size: int
    wanted: Callable[[int], bool]
    cells_per_part: int
    records: int | None = None
    noticed: int = 0
    first_noticed: str = ""

    def __iter__(self) -> Iterator[Part]:
        part: Part | None = None
        position = -1
        for position, raw in enumerate(self.source.raws()):
            shard, in_shard = divmod(position, self.shard_size)
            if not self.wanted(shard):
                continue
            part = part or Part(shard)
            self._add(part, position, raw)
            part.closes = in_shard == self.shard_size - 1
            if part.closes or part.cells >= self.cells_per_part:
                yield part
                part = None
        self.records = position + 1
        shard, left = divmod(self.records, self.shard_size)
        if left and self.wanted(shard):
            part = part or Part(shard)
            part.closes = True
            yield part

    def _add(self, part: Part, position: int, raw: object) -> None:
        ready = self.scorer.ready(self.source.record(position, raw))
        if isinstance(ready, Refused):
            part.refused.append(ready)
            return
        part.ready.append(ready)
        part.cells += len(ready.sentence) * len(ready.sentence.sources)
        if ready.sentence.notes:
            self.noticed += 1
            self.first_noticed = self.first_noticed or f"{ready.record.id}: {'; '.join(ready.sentence.notes)}"


def one_ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The same items, the next one computed in a thread while the caller works on this one."""
    end = object()
    with ThreadPoolExecutor(1, thread_name_prefix="tokenising") as thread:
        coming = thread.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = thread.submit(next, items, end)
            yield item  # type: ignore[misc]


@dataclass(frozen=True, eq=False)
class Scored:
    """Sentences with each method's scores, in order, and those that no method could score."""

    ready: list[Ready]
    by_method: dict[str, list[Scores]]
    refused: list[Refused]


@dataclass(frozen=True, eq=False)
class Scorer:
    """How every sentence is read and scored, checked: methods with their options, on chosen layers.

    `rows` is what is stored of each map. `target` is None for the default, if a sentence `needs_target`.
    """

    model: nn.Module
    plan: Sequence[Planned]
    layers: tuple[int, ...]
    rows: Rows
    target: int | str | None
    needs_target: bool
    has_pairs: bool
    prepend_bos: bool
    stack: Stack | None = None

    @property
    def sites(self) -> Sites:
        """The hooks of the model, or of its stack."""
        return check_contracts(self.model, self.stack)

    @property
    def reads_both(self) -> bool:
        """Whether a record is what an encoder reads and what its decoder reads."""
        return self.stack in ("decoder", "cross")

    @property
    def methods(self) -> tuple[str, ...]:
        """The names of the methods."""
        return tuple(planned.name for planned in self.plan)

    def ready(self, record: Record | Refused) -> Ready | Refused:
        """A record as the model reads it, or why it cannot."""
        if isinstance(record, Refused):
            return record
        try:
            text = record.text if record.second is None or self.reads_both else (record.text, record.second)
            with warned_before():  # not one warning per sentence: a note counts them all
                if self.stack is None:
                    encoded = encode(self.model, [text], prepend_bos=self.prepend_bos)
                else:
                    second: Any = [record.second] if self.reads_both else None
                    encoded = encode_for(self.model, self.stack, [text], second, prepend_bos=self.prepend_bos)
                (sentence,) = encoded.sentences
            target = find_target(self.model, sentence, self.target) if self.needs_target else None
        except TLVZeroError as error:
            return Refused(record.position, record.id, str(error).removeprefix("inputs[0] "))
        return Ready(record, sentence, target)

    def scored(self, ready: list[Ready]) -> Scored:
        """Scores of a part. Where a sentence makes a method fail, each is tried alone, and the others have theirs."""
        try:
            return Scored(ready, self.together(ready), [])
        except TLVZeroError:
            scored = Scored([], {name: [] for name in self.methods}, [])
        for sentence in ready:
            try:
                alone = self.together([sentence])
            except TLVZeroError as error:
                scored.refused.append(Refused(sentence.record.position, sentence.record.id, str(error)))
                continue
            scored.ready.append(sentence)
            for name, scores in alone.items():
                scored.by_method[name] += scores
        return scored

    def together(self, ready: list[Ready]) -> dict[str, list[Scores]]:
        """Scores by method, in order; raises what a method raises that is undefined for the model or a sentence."""
        # What goes into one call: all sentences, or those whose target is at one position.
        groups: dict[int | None, list[int]] = {}
        for index, sentence in enumerate(ready):
            groups.setdefault(sentence.target if self.rows == "target" else None, []).append(index)
        scores: dict[str, dict[int, Scores]] = {name: {} for name in self.methods}
        for dest, group in groups.items():
            sentences = [replace(ready[index].sentence, row=row) for row, index in enumerate(group)]
            targets = [ready[index].target for index in group]
            scored = self._of_layers(sentences, dest) | self._called(sentences, dest, targets)
            for name, of_group in scored.items():
                scores[name] |= dict(zip(group, of_group, strict=True))
        return {name: [by_index[index] for index in range(len(ready))] for name, by_index in scores.items()}

    def _of_layers(self, sentences: list[Sentence], dest: int | None) -> dict[str, list[Scores]]:
        """Methods that read a layer by itself, all on the same clean runs."""
        plan = [replace(planned, destinations=None if dest is None else (dest,)) for planned in self.plan]
        encoded = Inputs(tuple(sentences), single=False)
        by_method = scores_on_one_run(plan, self.model, self.sites, encoded, self.layers)
        scored: dict[str, list[Scores]] = {}
        for name, by_row in by_method.items():
            if isinstance(by_row, ModelError):
                raise by_row
            scored[name] = [by_row[row] for row in range(len(sentences))]
        return scored

    def _called(
        self, sentences: list[Sentence], dest: int | None, targets: list[int | None]
    ) -> dict[str, list[Scores]]:
        """The other methods, called as a user calls them; raises PluginError for what is no list of Scores."""
        scored: dict[str, list[Scores]] = {}
        for planned in self.plan:
            if planned.method.layer is not None:
                continue
            ids, beside = planned.read([sentence.encoder or sentence for sentence in sentences])
            of_stack = planned.of_stack(sentences, self.stack)
            arguments: dict[str, Any] = {**beside, **of_stack, "layers": self.layers}
            if "target" in planned.method.needs:
                arguments["target"] = targets
            elif dest is not None and "destinations" in (planned.method.options or ()):
                arguments["destinations"] = (dest,)
            scored[planned.name] = planned.called(self.model, ids, len(sentences), **arguments)
        return scored


# A shard's columns, and how it is written. The columns are what any reader of Parquet understands. A map is one list of
# numbers: `[layer, dest, src]`, flattened, of which `n_layers` (in the schema's metadata) and the length of `tokens`
# give the shape back; a target's row is `[layer, src]`; a summary has a number for each layer.

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
