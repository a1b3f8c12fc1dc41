"""Rows of pairs that share one product: where each stands, and the buffers they are computed in."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from tl_vzero.zeroing.packing import Segment


class Workspace:
    """Buffers that are written again and again: fresh memory costs a page fault a page."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, int, torch.dtype, torch.device], Tensor] = {}

    @property
    def nbytes(self) -> int:
        """How much all buffers hold."""
        return sum(buffer.nbytes for buffer in self._held.values())

    def rows(self, name: str, count: int, like: Float[Tensor, "*axes width"]) -> Float[Tensor, "row width"]:
        """`count` rows of the width, dtype and device of `like`, with whatever was left in them."""
        return self.buffer(name, count, like.shape[-1], like)

    def buffer(self, name: str, count: int, width: int, like: Tensor) -> Float[Tensor, "row width"]:
        """`count` rows of a width, of the dtype and device of `like`, with whatever was left in them."""
        key = (name, width, like.dtype, like.device)
        if key not in self._held or len(self._held[key]) < count:
            self._held[key] = like.new_empty(count, width)
        return self._held[key][:count]


@dataclass(frozen=True, eq=False)
class SentencePart:
    """One sentence: where its destinations stand in the row axis, its pattern, and where its map begins.

    `pattern` is of the zeroed heads; the map is `[dest, src]` in one flat buffer.
    """

    first_row: int
    pattern: Float[Tensor, "src dest head"]
    first_cell: int


@dataclass(frozen=True, eq=False)
class Place:
    """Rectangles of pairs in a chunk, one a sentence and all alike: their rows, clean rows and columns."""

    n_sentences: int
    rows: slice
    clean: slice
    columns: slice

    @classmethod
    def of(cls, segment: Segment, part: SentencePart, start: int, first_column: int) -> "Place":
        """Where a segment stands; `first_column` is that of the tables in use."""
        columns = slice(segment.first_column - first_column, segment.end_column - first_column)
        clean = slice(part.first_row + segment.low, part.first_row + segment.high)
        return cls(1, slice(start, start + segment.rows), clean, columns)

    def with_next(self, other: "Place") -> "Place | None":
        """Both in one, where the other is the same rectangle of the next sentence."""
        n, follows = self.n_sentences, self.clean.stop == other.clean.start and self.columns.stop == other.columns.start
        same_shape = _length(self.clean) == n * _length(other.clean) and _length(self.rows) == n * _length(other.rows)
        if not (follows and same_shape):
            return None
        joined = (slice(a.start, b.stop) for a, b in zip(self._slices(), other._slices(), strict=True))
        return Place(n + 1, *joined)

    def _slices(self) -> tuple[slice, slice, slice]:
        return self.rows, self.clean, self.columns

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
        pattern = workspace.buffer("pattern", rows, parts[0].pattern.shape[-1], like)
        places: list[Place] = []
        clean, cells, start = [], [], 0
        for segment in segments:
            part, first = parts[segment.columns[0].sentence], segment.columns[0].index
            last = first + len(segment.columns)
            place = Place.of(segment, part, start, first_column)
            place.columnwise(pattern).copy_(part.pattern[first:last, segment.low : segment.high])
            destinations = np.arange(segment.low, segment.high)
            clean.append(np.tile(part.first_row + destinations, last - first))
            cells.append((part.first_cell + destinations * len(part.pattern) + np.arange(first, last)[:, None]).ravel())
            joined = places[-1].with_next(place) if places else None
            places[-1:] = [joined] if joined else [*places[-1:], place]
            start += segment.rows
        return cls(tuple(places), rows, _index(clean, like.device), _index(cells, like.device), pattern, workspace)

    def grid(self, buffer: Float[Tensor, "row width"]) -> Float[Tensor, "*pairs width"]:
        """A buffer in the shape in which `clean_rows` broadcasts to it."""
        return self.places[0].grid(buffer) if len(self.places) == 1 else buffer

    def clean_rows(self, name: str, clean: Float[Tensor, "clean_row width"]) -> Float[Tensor, "*pairs width"]:
        """Each pair's clean row: a view where the chunk is one place, else gathered into a buffer of that name."""
        if len(self.places) == 1:
            return self.places[0].clean_grid(clean)
        rows = self.workspace.rows(name, self.rows, clean)
        return torch.index_select(clean, 0, self.clean, out=rows)


def _index(parts: Sequence[NDArray[np.int64]], device: torch.device) -> Int[Tensor, "row"]:
    return torch.from_numpy(np.concatenate(parts)).to(device)
