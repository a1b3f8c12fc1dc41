"""What is asked of the sentences of one clean run, laid out in one axis of destinations and one of columns."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from einops import rearrange
from jaxtyping import Bool, Int
from torch import Tensor

from tl_vzero.clean import CleanBlock
from tl_vzero.distance import wide_dtype
from tl_vzero.zeroing.cache import Kept
from tl_vzero.zeroing.chunks import Chunk, Column, Mixed, SentencePart, Workspace, Zeroed
from tl_vzero.zeroing.request import Request, Wanted

# Where a zeroed value can be felt at all.


def reached(block: CleanBlock, heads: tuple[int, ...], per_head: bool) -> Bool[Tensor, "sentence map dest src"]:
    """Mark the entries for which some zeroed head has a pattern entry and a value that are not exactly 0.

    Elsewhere nothing changes, and what a batched run shows there is rounding, which is no score.
    """
    value, pattern = block.value, block.pattern
    group = pattern.shape[1] // value.shape[2]
    bites = (value != 0).any(dim=-1)  # [sentence, source, value head]
    by_value_head = rearrange(
        pattern != 0, "sentence (head group) dest src -> sentence head group dest src", group=group
    )
    felt = by_value_head.any(2) & bites.transpose(1, 2).unsqueeze(2)
    felt = felt[:, list(heads)]
    return felt if per_head else felt.any(dim=1, keepdim=True)


def felt_of(marked: Bool[Tensor, "*axes dest src"], wanted: Wanted) -> Bool[Tensor, "*axes row column"]:
    """Of positions that can be felt, the rows and columns asked for: a span is felt where one of its positions is."""
    chosen = pick(marked, marked.ndim - 2, wanted.destinations)
    if wanted.zeroes_single_positions:
        return pick(chosen, marked.ndim - 1, tuple(span[0] for span in wanted.spans))
    return torch.stack([chosen[..., list(span)].any(dim=-1) for span in wanted.spans], dim=-1)


def pick(tensor: Tensor, axis: int, positions: tuple[int, ...]) -> Tensor:
    """Some positions of one sentence along an axis; a view where they are the first ones."""
    if positions == tuple(range(len(positions))):
        return tensor.narrow(axis, 0, len(positions))
    return tensor.index_select(axis, torch.tensor(positions, device=tensor.device))


@dataclass(frozen=True, eq=False)
class Run:
    """What all layers of one clean run share.

    `rows` are the destinations asked for, of all sentences in one axis, as places in the run's flat
    `[sentence position]`. `columns` are the places that each column zeroes, as many as the longest span has; `holds`
    is False where a shorter span has none left.
    """

    wanted: tuple[Wanted, ...]
    rows: Int[Tensor, "row"]
    columns: Int[Tensor, "column member"]
    holds: Bool[Tensor, "column member"]
    request: Request
    workspace: Workspace
    kept: Kept

    @classmethod
    def of(cls, wanted: Sequence[Wanted], request: Request, workspace: Workspace, kept: Kept) -> "Run":
        """Lay out the sentences of one clean run, padded on the right to the longest."""
        width = max(each.length for each in wanted)
        rows = [n * width + i for n, each in enumerate(wanted) for i in each.destinations]
        places = [[n * width + j for j in span] for n, each in enumerate(wanted) for span in each.spans]
        columns, holds = _even(places)
        return cls(tuple(wanted), torch.tensor(rows), columns, holds, request, workspace, kept)

    def zeroed(self, block: CleanBlock, heads: Sequence[int], dtype: torch.dtype, taken: float) -> Zeroed:
        """What of a block is zeroed: query heads, once for each position of a span; `taken` times as much."""
        n_members = self.columns.shape[1]
        group = block.pattern.shape[1] // block.value.shape[2]
        flat = self.columns.flatten().to(block.value.device)
        values = rows_of(block.value, flat, dtype)[:, [head // group for head in heads]]
        values = rearrange(values, "(column member) head d_head -> column (member head) d_head", member=n_members)
        if not bool(self.holds.all()):
            values = values * self.holds.repeat_interleave(len(heads), dim=1).unsqueeze(-1).to(values)
        if taken != 1.0:
            values = values * taken
        left = partial(self._left, block, list(heads), taken)
        return Zeroed(list(heads) * n_members, values, self._parts(block, list(heads), dtype), left)

    def _left(
        self, block: CleanBlock, heads: list[int], taken: float, chunk: Chunk, pairs: Int[Tensor, "pair"]
    ) -> tuple[Mixed, Mixed]:
        """Of some pairs, what all query heads mix of the values that are not zeroed, and of all values."""
        wide, device = wide_dtype(block.value.device), block.value.device
        width = block.pattern.shape[2]
        places = self.rows.to(device)[chunk.clean[pairs]]
        sentences = places // width
        whole = block.pattern[sentences, :, places % width].to(wide)
        zeroed = self.columns.to(device)[self._column_at(chunk.cells[pairs])] % width
        left = whole.clone()
        number = torch.arange(len(pairs), device=device)
        lost = number[:, None, None], torch.tensor(heads, device=device)[:, None], zeroed[:, None]
        left[lost] = left[lost] * (1.0 - taken)
        group = block.pattern.shape[1] // block.value.shape[2]
        mixed = whole.new_empty(2, *whole.shape[:2], block.value.shape[-1])
        for sentence in sentences.unique():
            of_it = sentences == sentence
            value = block.value[sentence].to(wide).repeat_interleave(group, dim=1)
            for into, pattern in zip(mixed, (left, whole), strict=True):
                into[of_it] = torch.einsum("phs,shk->phk", pattern[of_it], value)
        return mixed[0], mixed[1]

    def _column_at(self, cells: Int[Tensor, "pair"]) -> Int[Tensor, "pair"]:
        """The column of places in the flat map."""
        spans = torch.tensor([len(each.spans) for each in self.wanted], device=cells.device)
        cells_of = torch.tensor([len(each.spans) * len(each.destinations) for each in self.wanted], device=cells.device)
        sentence = torch.bucketize(cells, cells_of.cumsum(0), right=True)
        within = cells - (cells_of.cumsum(0) - cells_of)[sentence]
        return (spans.cumsum(0) - spans)[sentence] + within % spans[sentence]

    def _parts(self, block: CleanBlock, heads: list[int], dtype: torch.dtype) -> list[SentencePart]:
        """Each sentence's share of the row axis and of the flat maps, with the patterns of the heads zeroed."""
        pattern = block.pattern if len(heads) == block.pattern.shape[1] else block.pattern[:, heads]
        by_source = rearrange(pattern.to(dtype), "sentence head dest src -> sentence src dest head").contiguous()
        parts: list[SentencePart] = []
        first_row = first_cell = 0
        for own, wanted in zip(by_source, self.wanted, strict=True):
            of_columns = pick(own, 1, wanted.destinations)
            if wanted.zeroes_single_positions and self.columns.shape[1] == 1:
                of_columns = pick(of_columns, 0, tuple(span[0] for span in wanted.spans))
            else:
                members, _ = _even(wanted.spans, at_least=self.columns.shape[1])
                joined = of_columns[members.to(own.device)]
                of_columns = rearrange(joined, "column member dest head -> column dest (member head)")
            parts.append(SentencePart(first_row, of_columns, first_cell))
            first_row += len(wanted.destinations)
            first_cell += len(wanted.destinations) * len(wanted.spans)
        return parts

    def felt(self, block: CleanBlock, heads: tuple[int, ...]) -> list[Bool[Tensor, "map _ _"]]:
        """Of each sentence, the entries `[map, dest, column]` at which a zeroed value can be felt."""
        marked = reached(block, heads, self.request.per_head)
        return [felt_of(own, wanted) for own, wanted in zip(marked, self.wanted, strict=True)]


def columns_of(felt: Sequence[Bool[Tensor, "map _ _"]], index: int) -> list[Column]:
    """One column a span of each sentence, with the range of destinations that can feel it."""
    columns: list[Column] = []
    for sentence, maps in enumerate(felt):
        reached_rows = maps[index].cpu().numpy()
        low = reached_rows.argmax(axis=0)
        high = len(reached_rows) - reached_rows[::-1].argmax(axis=0)
        high[~reached_rows.any(axis=0)] = 0
        ranges = zip(low.tolist(), high.tolist(), strict=True)
        columns += [Column(sentence, j, *each) for j, each in enumerate(ranges)]
    return columns


def rows_of(activation: Tensor, places: Int[Tensor, "row"], dtype: torch.dtype) -> Tensor:
    """Some positions of a run, all sentences in one axis."""
    return activation.flatten(0, 1).index_select(0, places.to(activation.device)).to(dtype)


def _even(
    spans: Sequence[Sequence[int]], at_least: int = 1
) -> tuple[Int[Tensor, "column member"], Bool[Tensor, "column member"]]:
    """Spans as rows of one length, the shorter ones filled up with their first position, and what is not filling."""
    longest = max(at_least, *(len(span) for span in spans))
    filled = [[*span, *[span[0]] * (longest - len(span))] for span in spans]
    counts = torch.tensor([len(span) for span in spans])
    return torch.tensor(filled), torch.arange(longest) < counts.unsqueeze(1)
