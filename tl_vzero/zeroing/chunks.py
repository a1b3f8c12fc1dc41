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
    """A segment in a chunk: its rows in the chunk's buffers, and its destinations in the clean row axis."""

    start: int
    stop: int
    n_columns: int
    clean: slice
    columns: slice

    def view(self, buffer: Float[Tensor, "row width"]) -> Float[Tensor, "column dest width"]:
        """This segment's part of a buffer."""
        return buffer[self.start : self.stop].view(self.n_columns, -1, buffer.shape[-1])


@dataclass(frozen=True, eq=False)
class Chunk:
    """Segments in one row axis. `clean` is each pair's row of the clean run, `cells` its place in the flat map."""

    places: tuple[Place, ...]
    rows: int
    clean: Int[Tensor, "row"]
    cells: Int[Tensor, "row"]
    pattern: Float[Tensor, "row head"]

    @classmethod
    def of(
        cls,
        segments: Sequence[Segment],
        parts: Sequence[SentencePart],
        workspace: Workspace,
        like: Float[Tensor, "*axes feature"],
    ) -> "Chunk":
        """Lay segments one after the other and gather their patterns."""
        rows = sum(segment.rows for segment in segments)
        pattern = workspace.buffer("pattern", rows, parts[0].pattern.shape[-1], like)
        places, clean, cells, start = [], [], [], 0
        for segment in segments:
            part, first = parts[segment.columns[0].sentence], segment.columns[0].index
            n_columns, stop = len(segment.columns), start + segment.rows
            place = Place(
                start,
                stop,
                n_columns,
                slice(part.first_row + segment.low, part.first_row + segment.high),
                slice(segment.first_column, segment.first_column + n_columns),
            )
            place.view(pattern).copy_(part.pattern[first : first + n_columns, segment.low : segment.high])
            destinations = np.arange(segment.low, segment.high)
            sources = np.arange(first, first + n_columns)[:, None]
            clean.append(np.tile(part.first_row + destinations, n_columns))
            cells.append((part.first_cell + destinations * len(part.pattern) + sources).ravel())
            places.append(place)
            start = stop
        return cls(tuple(places), rows, _index(clean, like.device), _index(cells, like.device), pattern)


def _index(parts: Sequence[NDArray[np.int64]], device: torch.device) -> Int[Tensor, "row"]:
    return torch.from_numpy(np.concatenate(parts)).to(device)
