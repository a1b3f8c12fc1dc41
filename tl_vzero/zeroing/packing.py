"""Packing (destination, source) pairs into blocks of rows that share one matrix product."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

# Rows of a segment that may be pairs nobody asked for: they cost less than one more segment.
WASTE_SHARE, WASTE_ROWS = 0.01, 6


@dataclass(frozen=True)
class Column:
    """One source of one sentence, by its index, and the destinations `low` to `high` (exclusive) that feel it."""

    sentence: int
    index: int
    low: int
    high: int


@dataclass(frozen=True)
class Segment:
    """Consecutive columns of one sentence over one range of destinations: a rectangle of pairs."""

    columns: tuple[Column, ...]
    first_column: int
    low: int
    high: int

    @property
    def rows(self) -> int:
        return len(self.columns) * (self.high - self.low)

    @property
    def end_column(self) -> int:
        return self.first_column + len(self.columns)


def segments_of(columns: Sequence[Column], max_rows: int, max_columns: int) -> Iterator[Segment]:
    """Cut columns into rectangles of at most `max_rows` pairs and `max_columns` columns.

    Columns whose destinations differ share a rectangle only while few of its pairs are of destinations that feel
    nothing: a causal model's triangle is cut into thin strips.
    """
    group: list[Column] = []
    low = high = wanted = 0
    start = 0
    for number, column in enumerate(columns):
        if column.low >= column.high:
            continue
        new_low, new_high = min(low, column.low), max(high, column.high)
        new_wanted = wanted + column.high - column.low
        area = (new_high - new_low) * (len(group) + 1)
        fits = area <= max_rows and len(group) < max_columns and area <= (1 + WASTE_SHARE) * new_wanted + WASTE_ROWS
        if not (group and fits and column.sentence == group[0].sentence and number - start == len(group)):
            yield from _rectangles(group, start, low, high, max_rows)
            group, start = [], number
            new_low, new_high, new_wanted = column.low, column.high, column.high - column.low
        group.append(column)
        low, high, wanted = new_low, new_high, new_wanted
    yield from _rectangles(group, start, low, high, max_rows)


def _rectangles(group: list[Column], start: int, low: int, high: int, max_rows: int) -> Iterator[Segment]:
    """A group as one rectangle, or as several where a single column has too many destinations."""
    if group:
        step = max(1, max_rows // len(group))
        for at in range(low, high, step):
            yield Segment(tuple(group), start, at, min(at + step, high))


def chunks_of(segments: Sequence[Segment], max_rows: int, max_columns: int) -> Iterator[list[Segment]]:
    """Gather segments until they fill one product; the products are about equally large."""
    total = sum(segment.rows for segment in segments)
    even = math.ceil(total / max(1, math.ceil(total / max_rows)))
    limit = min(max_rows, max(even + even // 8, max((segment.rows for segment in segments), default=0)))
    chunk: list[Segment] = []
    rows = 0
    for segment in segments:
        too_wide = chunk and segment.end_column - chunk[0].first_column > max_columns
        if chunk and (rows + segment.rows > limit or too_wide):
            yield chunk
            chunk, rows = [], 0
        chunk.append(segment)
        rows += segment.rows
    if chunk:
        yield chunk
