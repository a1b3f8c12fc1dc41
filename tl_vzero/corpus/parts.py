"""Cutting an input into shards and parts, and tokenising the next part while this one is scored.

1. Shard k holds the records k n to (k + 1) n - 1, whoever computes it and whenever: so batches, and with them the last
   digits of the scores, do not depend on where a run was interrupted.
2. A shard is worked on in parts, which bound what is held at a time; also their limits follow from the records alone.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from torch import nn

from tl_vzero.corpus.records import Record, Refused, Source
from tl_vzero.errors import TLVZeroError
from tl_vzero.inputs import Sentence, encode, warned_before
from tl_vzero.targets import find_target

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
