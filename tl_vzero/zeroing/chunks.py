"""(Destination, source) pairs packed into chunks of rows that share one matrix product, and what attention loses there.

Columns, each with the destinations that it affects, are cut into rectangles; alike ones share a batched product. The
buffers are written again and again.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tl_vzero.zeroing.forms import wider_product

# Rows of a segment that may be pairs that are not wanted: they cost less than one more segment.
WASTE_SHARE, WASTE_ROWS = 0.01, 6


@dataclass(frozen=True)
class Column:
    """One source of one sentence, by its index, and the destinations `low` to `high` (exclusive) that it affects."""

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
    """Cut columns into rectangles in which few pairs are of unaffected destinations: a triangle into thin strips."""
    group: list[Column] = []
    low = high = wanted = 0
    start = 0
    for position, column in enumerate(columns):
        if column.low >= column.high:
            continue
        new_low, new_high = min(low, column.low), max(high, column.high)
        new_wanted = wanted + column.high - column.low
        area = (new_high - new_low) * (len(group) + 1)
        fits = area <= max_rows and len(group) < max_columns and area <= (1 + WASTE_SHARE) * new_wanted + WASTE_ROWS
        if not (group and fits and column.sentence == group[0].sentence and position - start == len(group)):
            yield from _rectangles(group, start, low, high, max_rows)
            group, start = [], position
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


class Workspace:
    """Buffers that are written again, as fresh memory costs page faults; a call's pairs may take `max_bytes`."""

    def __init__(self, max_bytes: float = math.inf) -> None:
        self.max_bytes = max_bytes
        self._buffers: dict[tuple[str, int, torch.dtype, torch.device], Tensor] = {}

    @property
    def nbytes(self) -> int:
        """How much all buffers hold."""
        return sum(buffer.nbytes for buffer in self._buffers.values())

    def rows(self, name: str, count: int, like: Tensor, width: int | None = None) -> Float[Tensor, "row width"]:
        """`count` rows with whatever was left in them, of the dtype, device and width of `like`, or another width."""
        width = like.shape[-1] if width is None else width
        key = (name, width, like.dtype, like.device)
        if key not in self._buffers or len(self._buffers[key]) < count:
            self._buffers[key] = like.new_empty(count, width)
        return self._buffers[key][:count]


_SPARE: WeakKeyDictionary[nn.Module, list[Workspace]] = WeakKeyDictionary()


@contextmanager
def workspace_of(model: nn.Module, max_bytes: float) -> Iterator[Workspace]:
    """The buffers of a model's last call, or new ones where they are in use or larger than is allowed now.

    On a GPU torch keeps what is freed, for whoever asks next: nothing is held there between calls.
    """
    spare = _SPARE.setdefault(model, [])
    workspace = spare.pop() if spare else Workspace()
    if workspace.nbytes > max_bytes:
        workspace = Workspace()
    workspace.max_bytes = max_bytes
    try:
        yield workspace
    finally:
        spare[:] = [workspace] if next(nn.Module.parameters(model)).device.type == "cpu" else []


@dataclass(frozen=True, eq=False)
class SentencePart:
    """One sentence: where its destinations stand in the row axis, its pattern, and where its map and columns begin.

    `pattern` is of the zeroed heads; the map is `[dest, src]` in one flat buffer.
    """

    first_row: int
    pattern: Float[Tensor, "src dest head"]
    first_cell: int
    first_column: int


@dataclass(frozen=True, eq=False)
class Place:
    """Rectangles of pairs in a chunk, one per sentence and all alike: their rows, clean rows and columns."""

    n_sentences: int
    rows: slice
    clean: slice
    columns: slice

    def with_next(self, other: "Place") -> "Place | None":
        """Both in one, where the other is the same rectangle of the next sentence."""
        n, follows = self.n_sentences, self.clean.stop == other.clean.start and self.columns.stop == other.columns.start
        same_shape = _length(self.clean) == n * _length(other.clean) and _length(self.rows) == n * _length(other.rows)
        if not (follows and same_shape):
            return None
        pairs = ((self.rows, other.rows), (self.clean, other.clean), (self.columns, other.columns))
        return Place(n + 1, *(slice(a.start, b.stop) for a, b in pairs))

    def grid(self, buffer: Float[Tensor, "row width"]) -> Float[Tensor, "sentence column dest width"]:
        """These pairs' part of a buffer of the chunk."""
        destinations = _length(self.clean) // self.n_sentences
        return buffer[self.rows].view(self.n_sentences, -1, destinations, buffer.shape[-1])

    def columnwise(self, buffer: Float[Tensor, "row width"]) -> Float[Tensor, "column dest width"]:
        """The same with one axis for the columns of all sentences."""
        return self.grid(buffer).flatten(0, 1)

    def clean_grid(self, clean: Float[Tensor, "clean_row width"]) -> Float[Tensor, "sentence 1 dest width"]:
        """The clean rows that belong to `grid`, ready to broadcast over columns."""
        return clean[self.clean].view(self.n_sentences, 1, -1, clean.shape[-1])


def _length(part: slice) -> int:
    return int(part.stop - part.start)


@dataclass(frozen=True, eq=False)
class Chunk:
    """Places in one row axis. `clean` is each pair's row of the clean run, `cells` its place in the flat map."""

    places: tuple[Place, ...]
    rows: int
    clean: Int[Tensor, "row"]
    cells: Int[Tensor, "row"]
    pattern: Float[Tensor, "row head"]
    workspace: Workspace

    @classmethod
    def of(
        cls,
        segments: Sequence[Segment],
        parts: Sequence[SentencePart],
        first_column: int,
        workspace: Workspace,
        like: Float[Tensor, "*axes feature"],
    ) -> "Chunk":
        """Lay segments one after the other and gather their patterns; `first_column` is that of the tables in use."""
        rows = sum(segment.rows for segment in segments)
        pattern = workspace.rows("pattern", rows, like, parts[0].pattern.shape[-1])
        places: list[Place] = []
        corners, start = [], 0
        for segment in segments:
            part, first = parts[segment.columns[0].sentence], segment.columns[0].index
            last = first + len(segment.columns)
            place = Place(
                1,
                slice(start, start + segment.rows),
                slice(part.first_row + segment.low, part.first_row + segment.high),
                slice(segment.first_column - first_column, segment.end_column - first_column),
            )
            place.columnwise(pattern).copy_(part.pattern[first:last, segment.low : segment.high])
            n_columns, n_destinations = len(part.pattern), segment.high - segment.low
            corner = part.first_row + segment.low, part.first_cell + segment.low * n_columns + first
            corners.append((segment.rows, start, n_destinations, *corner, n_columns))
            joined = places[-1].with_next(place) if places else None
            places[-1:] = [joined] if joined else [*places[-1:], place]
            start += segment.rows
        return cls(tuple(places), rows, *_rows_and_cells(corners, rows, like.device), pattern, workspace)

    def some(self, rows: Int[Tensor, "picked"]) -> "Chunk":
        """Some pairs of the chunk, in no place together."""
        return Chunk((), len(rows), self.clean[rows], self.cells[rows], self.pattern[rows], self.workspace)

    @classmethod
    def joined(cls, chunks: Sequence["Chunk"]) -> "Chunk":
        """The pairs of several, in no place together."""
        clean, cells, pattern = (
            torch.cat([getattr(chunk, name) for chunk in chunks]) for name in ("clean", "cells", "pattern")
        )
        return cls((), len(clean), clean, cells, pattern, chunks[0].workspace)

    def grid(self, buffer: Float[Tensor, "row width"]) -> Float[Tensor, "*pairs width"]:
        """A buffer in the shape in which `clean_rows` broadcasts to it."""
        return self.places[0].grid(buffer) if len(self.places) == 1 else buffer

    def clean_rows(self, name: str, clean: Float[Tensor, "clean_row width"]) -> Float[Tensor, "*pairs width"]:
        """Each pair's clean row: a view where the chunk is one place, else gathered into a buffer of that name."""
        if len(self.places) == 1:
            return self.places[0].clean_grid(clean)
        rows = self.workspace.rows(name, self.rows, clean)
        return torch.index_select(clean, 0, self.clean, out=rows)


def _rows_and_cells(
    corners: Sequence[tuple[int, ...]], rows: int, device: torch.device
) -> tuple[Int[Tensor, "row"], Int[Tensor, "row"]]:
    """Each pair's clean row and its place in the flat map, formed on the device: the host waits for no copy.

    A corner is a segment's rows, its first one, its destinations, its first pair's clean row and cell, and how many
    columns its map has.
    """
    numbers = torch.tensor(corners).to(device, non_blocking=True)
    of_row = numbers.repeat_interleave(numbers[:, 0], dim=0, output_size=rows)
    _, start, n_destinations, clean, cell, n_columns = of_row.unbind(1)
    within = torch.arange(rows, device=device) - start
    column = within // n_destinations
    destination = within - column * n_destinations
    return clean + destination, cell + destination * n_columns + column


# What attention's output loses: the vectors that a zeroed value no longer brings, pair by pair.

# What another value costs shows tests/bench/bench_closed_form.py.
ROWS_PER_PRODUCT = 1536  # fewer make every small step weigh more; more gain nothing
COLUMNS_PER_TABLE = 256  # longer products run faster, until their result leaves the cache
ROWS_ON_GPU, COLUMNS_ON_GPU = 2**15, 2**11  # where small steps cost a launch; the memory may allow fewer


Mixed = Float[Tensor, "pair head d_head"]
Outputs = tuple[Float[Tensor, "pair feature"], Float[Tensor, "pair feature"]]
# A chunk, clean minus changed output of its pairs, and where too little is left for a difference to tell.
Changes = Iterator[tuple[Chunk, Float[Tensor, "row feature"], Bool[Tensor, "row"]]]


@dataclass(frozen=True, eq=False)
class Zeroed:
    """What is zeroed in a layer: the query heads, their values of each column, and who attends to them.

    `left` gives what heads mix, at some pairs, of the values that are not zeroed, and of all: in the widest dtype. It
    reads the pairs' clean rows and columns.
    """

    heads: Sequence[int]
    values: Float[Tensor, "column head d_head"]
    parts: Sequence[SentencePart]
    left: Callable[[Int[Tensor, "pair"], Int[Tensor, "pair"]], tuple[Mixed, Mixed]]
    workspace: Workspace

    def attention_outputs(
        self, rows: Int[Tensor, "pair"], columns: Int[Tensor, "pair"], w_o: Tensor, b_o: Tensor
    ) -> Outputs:
        """What attention still writes at pairs, and what it writes in the clean run, apart from each other."""
        left, whole = (wider_product(mixed.flatten(1), w_o.flatten(0, 1)) + b_o for mixed in self.left(rows, columns))
        return left, whole


@dataclass(frozen=True, eq=False)
class Group:
    """Columns that share tables: their values, what these write, `lost`, and the pairs chunk by chunk."""

    values: Float[Tensor, "column head d_head"]
    lost: Float[Tensor, "column head feature"]
    segments: Sequence[Sequence[Segment]]
    zeroed: Zeroed

    def chunks(self) -> Iterator[Chunk]:
        """The pairs of these columns, chunk by chunk; each chunk's buffers serve the next."""
        first = self.segments[0][0].first_column
        for segments in self.segments:
            yield Chunk.of(segments, self.zeroed.parts, first, self.zeroed.workspace, self.lost)

    def delta(self, chunk: Chunk) -> Float[Tensor, "row feature"]:
        """What attention's output loses at each pair: sum_h A[h, i, j] u[j, h]."""
        delta = chunk.workspace.rows("delta", chunk.rows, self.lost)
        for place in chunk.places:
            torch.bmm(place.columnwise(chunk.pattern), self.lost[place.columns], out=place.columnwise(delta))
        return delta


class LostValues:
    """u[j, h] = v[j, h] W_O[h] for all columns j and zeroed heads h, in groups of bounded size.

    `row_width` and `column_width` are how many numbers a pair's row and a column's tables take: half of what the
    workspace may hold is for rows, half for tables.
    """

    def __init__(
        self, zeroed: Zeroed, w_o: Float[Tensor, "head d_head feature"], row_width: int, column_width: int
    ) -> None:
        self.zeroed, self.w_o = zeroed, w_o
        half = zeroed.workspace.max_bytes / w_o.element_size() / 2
        sizes = (ROWS_PER_PRODUCT, COLUMNS_PER_TABLE), (ROWS_ON_GPU, COLUMNS_ON_GPU)
        most_rows, self.most_sharing = sizes[w_o.device.type != "cpu"]
        self.max_rows = max(1, min(most_rows, int(half / row_width)))
        self.max_columns = max(1, int(half / column_width))

    def groups(self, columns: Sequence[Column]) -> Iterator[Group]:
        """All pairs of the columns, in groups that share tables; each group's buffers serve the next."""
        segments = list(segments_of(columns, self.max_rows, self.max_columns))
        for together in self._sharing_tables(list(chunks_of(segments, self.max_rows, self.max_columns))):
            values = self.zeroed.values[together[0][0].first_column : together[-1][-1].end_column]
            lost = self.zeroed.workspace.rows("lost", len(values) * len(self.w_o), self.w_o)
            by_head = lost.view(len(self.w_o), len(values), -1)
            torch.bmm(values.transpose(0, 1), self.w_o, out=by_head)
            yield Group(values, by_head.transpose(0, 1), together, self.zeroed)

    def of_pairs(
        self, part: SentencePart, source: Int[Tensor, "pair"], dest: Int[Tensor, "pair"]
    ) -> Float[Tensor, "pair feature"]:
        """What attention's output loses at some pairs of a sentence, in the order of their sources."""
        delta = self.w_o.new_empty(len(source), self.w_o.shape[-1])
        columns, counts = source.unique_consecutive(return_counts=True)
        pattern = part.pattern[source, dest].to(delta)
        ends = counts.cumsum(0).tolist()
        for column, start, end in zip(columns.tolist(), [0, *ends], ends, strict=False):
            written = torch.einsum("hk,hkd->hd", self.zeroed.values[part.first_column + column], self.w_o)
            torch.mm(pattern[start:end], written, out=delta[start:end])
        return delta

    def _sharing_tables(self, chunks: Sequence[list[Segment]]) -> Iterator[list[list[Segment]]]:
        """Chunks that share tables: as many as stay in the cache, one at least."""
        limit = min(self.max_columns, self.most_sharing)
        together: list[list[Segment]] = []
        for chunk in chunks:
            if together and chunk[-1].end_column - together[0][0].first_column > limit:
                yield together
                together = []
            together.append(chunk)
        if together:
            yield together
