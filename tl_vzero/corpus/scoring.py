"""Cutting an input into shards and parts, and scoring the sentences of a part by every method that was chosen.

1. Shard k holds the records k n to (k + 1) n - 1, whoever computes it and whenever: so batches, and with them the
last digits of the scores, do not depend on where a run was interrupted.
2. A shard is worked on in parts, which bound what is held at a time; also their limits follow from the records alone.
3. The next part is tokenised while this one is scored.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

from torch import nn

from tl_vzero.corpus.source import Record, Refused, Source
from tl_vzero.errors import ModelError, TLVZeroError
from tl_vzero.inputs.encoder_decoder import encode_for
from tl_vzero.inputs.text import Inputs, Sentence, encode, warned_before
from tl_vzero.methods.apply import scores_on_one_run
from tl_vzero.methods.plan import Planned
from tl_vzero.models.contracts import check_contracts
from tl_vzero.models.sites import Sites, Stack
from tl_vzero.scores import Scores
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
