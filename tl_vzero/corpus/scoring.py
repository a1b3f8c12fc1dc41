"""Scores of a part's sentences, by every method asked for."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from torch import nn

from tl_vzero.corpus.records import Record, Refused, Source
from tl_vzero.errors import ModelError, TLVZeroError
from tl_vzero.inputs.text import Inputs, Sentence, encode, warned_before
from tl_vzero.methods.apply import scores_on_one_run
from tl_vzero.methods.plan import Planned
from tl_vzero.models.contracts import check_contracts
from tl_vzero.scores import Scores
from tl_vzero.targets import find_target

# Cutting an input into shards and parts, and tokenising the next part while this one is scored.
#
# 1. Shard k holds the records k n to (k + 1) n - 1, whoever computes it and whenever: so batches, and with them the
# last digits of the scores, do not depend on where a run was interrupted.
# 2. A shard is worked on in parts, which bound what is held at a time; also their limits follow from the records alone.

Item = TypeVar("Item")


@dataclass(frozen=True, eq=False)
class Ready:
    """A record that was tokenised; `target` is its target's position, where one is asked for."""

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


@dataclass(frozen=True)
class Tokenising:
    """How a record becomes what the model reads. `target` is None for the only mask token, if one `needs_target`."""

    model: nn.Module
    needs_target: bool
    target: int | None
    prepend_bos: bool

    def ready(self, record: Record) -> Ready | Refused:
        """A record as the model reads it, or why it cannot."""
        try:
            text = record.text if record.second is None else (record.text, record.second)
            with warned_before():  # not a warning a sentence: what was noticed is told of all together
                (sentence,) = encode(self.model, [text], prepend_bos=self.prepend_bos).sentences
            target = find_target(self.model, sentence, self.target) if self.needs_target else None
        except TLVZeroError as error:
            return Refused(record.position, record.id, str(error).removeprefix("inputs[0] "))
        return Ready(record, sentence, target)


@dataclass(eq=False)
class Parts:
    """The parts of the shards that are `wanted`, in order; iterated once.

    A part ends once its sentences have `cells_a_part` (destination, source) cells. `records` is how many the input
    holds, known once it was read to its end; `noticed` is how many sentences have notes, `first_noticed` the first.
    """

    source: Source
    tokenising: Tokenising
    shard_size: int
    wanted: Callable[[int], bool]
    cells_a_part: int
    records: int | None = None
    noticed: int = 0
    first_noticed: str = ""

    def __iter__(self) -> Iterator[Part]:
        part: Part | None = None
        position = -1
        for position, raw in enumerate(self.source.raws()):
            shard, number = divmod(position, self.shard_size)
            if not self.wanted(shard):
                continue
            part = part or Part(shard)
            self._add(part, position, raw)
            part.closes = number == self.shard_size - 1
            if part.closes or part.cells >= self.cells_a_part:
                yield part
                part = None
        self.records = position + 1
        shard, left = divmod(self.records, self.shard_size)
        if left and self.wanted(shard):
            part = part or Part(shard)
            part.closes = True
            yield part

    def _add(self, part: Part, position: int, raw: object) -> None:
        record = self.source.record(position, raw)
        found = record if isinstance(record, Refused) else self.tokenising.ready(record)
        if isinstance(found, Refused):
            part.refused.append(found)
        else:
            part.ready.append(found)
            if found.sentence.notes:
                self.noticed += 1
                self.first_noticed = self.first_noticed or f"{found.record.id}: {'; '.join(found.sentence.notes)}"
            part.cells += len(found.sentence) ** 2


def one_ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The same items, each made in a thread while the caller works on the one before."""
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
    """Methods with their options, on chosen layers; with `only_target`, of the target's row alone."""

    model: nn.Module
    plan: Sequence[Planned]
    layers: tuple[int, ...]
    only_target: bool

    def scored(self, ready: list[Ready]) -> Scored:
        """Scores of a part. Where a sentence makes a method fail, each is tried alone, and the others have theirs."""
        try:
            return Scored(ready, self._together(ready), [])
        except TLVZeroError:
            kept: list[Ready] = []
            by_method: dict[str, list[Scores]] = {each.name: [] for each in self.plan}
            refused: list[Refused] = []
            for each in ready:
                try:
                    alone = self._together([each])
                except TLVZeroError as error:
                    refused.append(Refused(each.record.position, each.record.id, str(error)))
                    continue
                kept.append(each)
                for name, own in alone.items():
                    by_method[name] += own
            return Scored(kept, by_method, refused)

    def trial(self, ready: Ready) -> dict[str, Scores]:
        """One sentence's scores; raises what a method raises that is undefined for the model."""
        return {name: own for name, (own,) in self._together([ready]).items()}

    def _together(self, ready: list[Ready]) -> dict[str, list[Scores]]:
        found: dict[str, dict[int, Scores]] = {each.name: {} for each in self.plan}
        for group in self._groups(ready):
            sentences = [replace(ready[number].sentence, row=row) for row, number in enumerate(group)]
            dest = ready[group[0]].target if self.only_target else None
            targets = [ready[number].target for number in group]
            scored = self._of_layers(sentences, dest) | self._called(sentences, dest, targets)
            for name, own in scored.items():
                found[name] |= dict(zip(group, own, strict=True))
        return {name: [own[number] for number in range(len(ready))] for name, own in found.items()}

    def _groups(self, ready: list[Ready]) -> list[list[int]]:
        """Numbers of sentences that go into one call: all, or those whose target is at one position."""
        groups: dict[int | None, list[int]] = {}
        for number, each in enumerate(ready):
            groups.setdefault(each.target if self.only_target else None, []).append(number)
        return list(groups.values())

    def _of_layers(self, sentences: list[Any], dest: int | None) -> dict[str, list[Scores]]:
        """Methods that read a layer by itself, all on the same clean runs."""
        plan = [replace(planned, destinations=None if dest is None else (dest,)) for planned in self.plan]
        encoded = Inputs(tuple(sentences), single=False)
        found = scores_on_one_run(plan, self.model, check_contracts(self.model), encoded, self.layers)
        scored: dict[str, list[Scores]] = {}
        for name, by_row in found.items():
            if isinstance(by_row, ModelError):
                raise by_row
            scored[name] = [by_row[row] for row in range(len(sentences))]
        return scored

    def _called(self, sentences: list[Any], dest: int | None, targets: list[int | None]) -> dict[str, list[Scores]]:
        """The other methods, called as a user calls them."""
        scored: dict[str, list[Scores]] = {}
        for each in self.plan:
            if each.method.layer is not None:
                continue
            ids, beside = each.read(sentences)
            arguments: dict[str, Any] = {**beside, "layers": self.layers}
            if "target" in each.method.needs:
                arguments["target"] = targets
            elif dest is not None and "destinations" in (each.method.options or ()):
                arguments["destinations"] = (dest,)
            scored[each.name] = each.called(self.model, ids, len(sentences), **arguments)
        return scored
