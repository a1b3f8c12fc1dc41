"""What attention's output loses: the vectors that a zeroed value no longer brings, pair by pair."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_vzero.zeroing.chunks import Chunk, SentencePart, Workspace
from tl_vzero.zeroing.packing import Column, Segment, chunks_of, segments_of
from tl_vzero.zeroing.products import wider_product

ROWS_A_PRODUCT = 1536  # fewer make every small step weigh more; more gain nothing
COLUMNS_A_TABLE = 256  # longer products run faster, until their result leaves the cache


# Of some pairs of a chunk, what heads mix of the values that are not zeroed, and of all: in the widest dtype.
Mixed = Float[Tensor, "pair head d_head"]
MixedAt = Callable[[Chunk, Int[Tensor, "pair"]], tuple[Mixed, Mixed]]


@dataclass(frozen=True, eq=False)
class Zeroed:
    """What is zeroed in a layer: the query heads, their values of each column, who attends to them, what is left."""

    heads: Sequence[int]
    values: Float[Tensor, "column head d_head"]
    parts: Sequence[SentencePart]
    left: MixedAt


def attention_outputs(
    zeroed: Zeroed,
    chunk: Chunk,
    pairs: Int[Tensor, "pair"],
    w_o: Float[Tensor, "head d_head feature"],
    b_o: Float[Tensor, "feature"],
) -> tuple[Float[Tensor, "pair feature"], Float[Tensor, "pair feature"]]:
    """What attention still writes at pairs, and what it writes in the clean run, each summed from its own parts."""
    matrix = w_o.flatten(0, 1)
    left, whole = (wider_product(mixed.flatten(1), matrix) + b_o for mixed in zeroed.left(chunk, pairs))
    return left, whole


@dataclass(frozen=True)
class Size:
    """How many pairs share a product, and how many columns a table."""

    rows: int
    columns: int

    @classmethod
    def of(cls, numbers: float, *, a_row: int, a_column: int) -> "Size":
        """What fits into so many numbers, half of them for rows and half for columns."""
        rows, columns = int(numbers / 2 / a_row), int(numbers / 2 / a_column)
        return cls(max(1, min(ROWS_A_PRODUCT, rows)), max(1, columns))


@dataclass(frozen=True, eq=False)
class Group:
    """Columns that share tables: their values, what these write, `lost`, and the pairs chunk by chunk."""

    values: Float[Tensor, "column head d_head"]
    lost: Float[Tensor, "column head feature"]
    segments: Sequence[Sequence[Segment]]
    parts: Sequence[SentencePart]
    workspace: Workspace

    def chunks(self) -> Iterator[Chunk]:
        """The pairs of these columns, chunk by chunk; each chunk's buffers serve the next."""
        first = self.segments[0][0].first_column
        for segments in self.segments:
            yield Chunk.of(segments, self.parts, first, self.workspace, self.lost)

    def delta(self, chunk: Chunk) -> Float[Tensor, "row feature"]:
        """What attention's output loses at each pair: sum_h A[h, i, j] u[j, h]."""
        delta = self.workspace.rows("delta", chunk.rows, self.lost)
        for place in chunk.places:
            torch.bmm(place.columnwise(chunk.pattern), self.lost[place.columns], out=place.columnwise(delta))
        return delta


class LostValues:
    """u[j, h] = v[j, h] W_O[h] for all columns j and zeroed heads h, in groups of bounded size."""

    def __init__(
        self, zeroed: Zeroed, w_o: Float[Tensor, "head d_head feature"], size: Size, workspace: Workspace
    ) -> None:
        self.zeroed, self.w_o, self.size, self.workspace = zeroed, w_o, size, workspace

    def groups(self, columns: Sequence[Column]) -> Iterator[Group]:
        """All pairs of the columns, in groups that share tables; each group's buffers serve the next."""
        segments = list(segments_of(columns, self.size.rows, self.size.columns))
        for together in self._sharing_tables(list(chunks_of(segments, self.size.rows, self.size.columns))):
            values = self.zeroed.values[together[0][0].first_column : together[-1][-1].end_column]
            yield Group(values, self._lost(values), together, self.zeroed.parts, self.workspace)

    def _sharing_tables(self, chunks: Sequence[list[Segment]]) -> Iterator[list[list[Segment]]]:
        """Chunks that share tables: as many as stay in the cache, one at least."""
        limit = min(self.size.columns, COLUMNS_A_TABLE)
        together: list[list[Segment]] = []
        for chunk in chunks:
            if together and chunk[-1].end_column - together[0][0].first_column > limit:
                yield together
                together = []
            together.append(chunk)
        if together:
            yield together

    def _lost(self, values: Tensor) -> Float[Tensor, "column head feature"]:
        heads, columns = len(self.w_o), len(values)
        lost = self.workspace.rows("lost", columns * heads, self.w_o).view(heads, columns, -1)
        torch.bmm(values.transpose(0, 1), self.w_o, out=lost)
        return lost.transpose(0, 1)
