"""Rows of pairs that share one product: packed once with little waste, each place as plain indexing has it."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tl_vzero.zeroing.chunks import Chunk, Column, Place, Segment, SentencePart, Workspace, chunks_of, segments_of

HEADS, WIDTH = 2, 3
LIKE = torch.zeros(1, WIDTH)


@st.composite
def sentences(draw: st.DrawFn) -> list[tuple[int, list[tuple[int, int]]]]:
    """Of each sentence: how many destinations it has, and each source's span of them; some sentences are alike."""
    shapes: list[tuple[int, list[tuple[int, int]]]] = []
    for _ in range(draw(st.integers(1, 4))):
        if shapes and draw(st.booleans()):
            shapes.append(shapes[-1])
            continue
        length = draw(st.integers(1, 7))
        if draw(st.booleans()):
            shapes.append((length, [(0, length)] * draw(st.integers(1, 5))))
            continue
        ends = st.tuples(st.integers(0, length), st.integers(0, length)).map(lambda pair: (min(pair), max(pair)))
        shapes.append((length, draw(st.lists(ends, min_size=1, max_size=5))))
    return shapes


def laid_out(of_sentences: list[tuple[int, list[tuple[int, int]]]]) -> tuple[list[Column], list[SentencePart]]:
    columns: list[Column] = []
    parts: list[SentencePart] = []
    first_row = first_cell = 0
    for sentence, (length, spans) in enumerate(of_sentences):
        first_column = len(columns)
        columns += [Column(sentence, index, low, high) for index, (low, high) in enumerate(spans)]
        pattern = 1000 * sentence + torch.arange(float(len(spans) * length * HEADS)).view(len(spans), length, HEADS)
        parts.append(SentencePart(first_row, pattern, first_cell, first_column))
        first_row += length
        first_cell += length * len(spans)
    return columns, parts


def chunks(
    columns: list[Column], parts: list[SentencePart], max_rows: int, max_columns: int
) -> Iterator[tuple[list[Segment], int, Chunk]]:
    segments = list(segments_of(columns, max_rows, max_columns))
    for together in chunks_of(segments, max_rows, max_columns):
        first = segments[0].first_column
        yield together, first, Chunk.of(together, parts, first, Workspace(), LIKE)


def pairs_of(segments: list[Segment]) -> Iterator[tuple[Column, int, int]]:
    """Every pair of a chunk in the order of its rows: its column, that column's number, its destination."""
    for segment in segments:
        for place, column in enumerate(segment.columns):
            for destination in range(segment.low, segment.high):
                yield column, segment.first_column + place, destination


RANDOM = settings(derandomize=True, deadline=None, max_examples=150, database=None)


@RANDOM
@given(sentences(), st.integers(1, 60), st.integers(1, 12))
def test_each_row_is_the_pair_that_a_plain_loop_finds_there(
    of_sentences: list[tuple[int, list[tuple[int, int]]]], max_rows: int, max_columns: int
) -> None:
    columns, parts = laid_out(of_sentences)
    for segments, _, chunk in chunks(columns, parts, max_rows, max_columns):
        clean, cells, patterns = [], [], []
        for column, _, destination in pairs_of(segments):
            part = parts[column.sentence]
            n_sources = len(of_sentences[column.sentence][1])
            clean.append(part.first_row + destination)
            cells.append(part.first_cell + destination * n_sources + column.index)
            patterns.append(part.pattern[column.index, destination].tolist())
        assert chunk.rows == len(clean)
        assert chunk.clean.tolist() == clean
        assert chunk.cells.tolist() == cells
        assert chunk.pattern.tolist() == patterns


@RANDOM
@given(sentences(), st.integers(1, 60), st.integers(1, 12))
def test_places_cover_the_rows_once_and_agree_with_plain_indexing(
    of_sentences: list[tuple[int, list[tuple[int, int]]]], max_rows: int, max_columns: int
) -> None:
    columns, parts = laid_out(of_sentences)
    clean = torch.rand(sum(length for length, _ in of_sentences), WIDTH)
    for segments, first, chunk in chunks(columns, parts, max_rows, max_columns):
        pairs = list(pairs_of(segments))
        buffer = torch.rand(chunk.rows, WIDTH)
        row = 0
        for place in chunk.places:
            grid, clean_grid, columnwise = place.grid(buffer), place.clean_grid(clean), place.columnwise(buffer)
            n_columns, n_destinations = grid.shape[1:3]
            assert clean_grid.shape == (grid.shape[0], 1, n_destinations, WIDTH)
            assert len(columnwise) == grid.shape[0] * n_columns == place.columns.stop - place.columns.start
            for n in range(grid.shape[0]):
                for c in range(n_columns):
                    for d in range(n_destinations):
                        assert torch.equal(grid[n, c, d], buffer[row])
                        assert torch.equal(columnwise[n * n_columns + c, d], buffer[row])
                        assert torch.equal(clean_grid[n, 0, d], clean[chunk.clean[row]])
                        assert first + place.columns.start + n * n_columns + c == pairs[row][1]
                        row += 1
        assert row == chunk.rows


@RANDOM
@given(sentences(), st.integers(1, 60), st.integers(1, 12))
def test_clean_rows_broadcast_to_the_grid_of_the_chunk(
    of_sentences: list[tuple[int, list[tuple[int, int]]]], max_rows: int, max_columns: int
) -> None:
    columns, parts = laid_out(of_sentences)
    clean = torch.rand(sum(length for length, _ in of_sentences), WIDTH)
    for _, _, chunk in chunks(columns, parts, max_rows, max_columns):
        buffer = torch.rand(chunk.rows, WIDTH)
        difference = chunk.grid(buffer) - chunk.clean_rows("clean", clean)
        assert torch.equal(difference.reshape(-1, WIDTH), buffer - clean[chunk.clean])


def place(rows: tuple[int, int], clean: tuple[int, int], columns: tuple[int, int], n_sentences: int = 1) -> Place:
    return Place(n_sentences, slice(*rows), slice(*clean), slice(*columns))


# Two columns over three destinations: the second sentence's rows follow the first one's.
ONE = place((0, 6), (0, 3), (0, 2))
LIKE_ONE = place((6, 12), (3, 6), (2, 4))
LIKE_ONE_AGAIN = place((12, 18), (6, 9), (4, 6))


def as_bounds(place: Place | None) -> tuple[int, ...] | None:
    if place is None:
        return None
    slices = (place.rows, place.clean, place.columns)
    return (place.n_sentences, *(end for part in slices for end in (part.start, part.stop)))


def test_like_rectangles_of_consecutive_sentences_become_one_place() -> None:
    two = ONE.with_next(LIKE_ONE)
    assert as_bounds(two) == (2, 0, 12, 0, 6, 0, 4)
    assert two is not None
    assert as_bounds(two.with_next(LIKE_ONE_AGAIN)) == (3, 0, 18, 0, 9, 0, 6)


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(place((6, 10), (3, 5), (2, 4)), id="fewer destinations"),
        pytest.param(place((6, 14), (3, 7), (2, 4)), id="more destinations"),
        pytest.param(place((6, 9), (3, 6), (2, 3)), id="fewer columns"),
        pytest.param(place((6, 15), (3, 6), (2, 5)), id="more columns"),
        pytest.param(place((6, 12), (3, 5), (2, 5)), id="as many pairs in another shape"),
        pytest.param(place((6, 12), (4, 7), (2, 4)), id="destinations left out between"),
        pytest.param(place((6, 12), (3, 6), (3, 5)), id="columns left out between"),
        pytest.param(place((6, 12), (0, 3), (2, 4)), id="the same destinations"),
        pytest.param(place((6, 12), (3, 6), (0, 2)), id="the same columns"),
    ],
)
def test_other_rectangles_stay_places_of_their_own(other: Place) -> None:
    assert ONE.with_next(other) is None
    two = ONE.with_next(LIKE_ONE)
    assert two is not None
    shifted = Place(1, _moved(other.rows, 6), _moved(other.clean, 3), _moved(other.columns, 2))
    assert two.with_next(shifted) is None


def _moved(part: slice, by: int) -> slice:
    return slice(part.start + by, part.stop + by)


@pytest.mark.parametrize("n_sentences", [1, 2, 5])
def test_like_sentences_make_one_place(n_sentences: int) -> None:
    columns, parts = laid_out([(4, [(0, 4)] * 4)] * n_sentences)
    ((_, _, chunk),) = chunks(columns, parts, 1000, 1000)
    assert [place.n_sentences for place in chunk.places] == [n_sentences]


def test_another_length_or_a_source_without_effect_starts_another_place() -> None:
    whole = [(0, 4)] * 4
    ((_, _, by_length),) = chunks(*laid_out([(4, whole), (4, whole), (5, [(0, 5)] * 5)]), 1000, 1000)
    assert [place.n_sentences for place in by_length.places] == [2, 1]
    ((_, _, with_gap),) = chunks(*laid_out([(4, whole), (4, [(0, 0), *whole[1:]]), (4, whole)]), 1000, 1000)
    assert [place.n_sentences for place in with_gap.places] == [1, 1, 1]


def test_a_workspace_gives_the_rows_asked_for_and_holds_the_most_ever_asked_for() -> None:
    space = Workspace()
    assert space.nbytes == 0
    for count in (4, 9, 2):
        assert space.rows("delta", count, LIKE).shape == (count, WIDTH)
    assert space.nbytes == 9 * WIDTH * 4
    assert space.rows("delta", 2, LIKE, 5).shape == (2, 5)
    assert space.rows("delta", 2, LIKE.double()).dtype == torch.float64


def test_two_names_never_share_a_buffer() -> None:
    space = Workspace()
    names = ["delta", "copy", "table 0", "table 1"]
    for index, name in enumerate(names):
        space.rows(name, 4, LIKE).fill_(float(index))
    held: list[Tensor] = [space.rows(name, 4, LIKE) for name in names]
    assert [int(rows.unique().item()) for rows in held] == [0, 1, 2, 3]


# Packing columns into rectangles: every pair once, bounded rows, little waste.

SPANS = st.tuples(st.integers(0, 20), st.integers(0, 20)).map(sorted)
ALL = 10**6
PACKED_SENTENCES = st.lists(st.lists(SPANS, min_size=1, max_size=12), min_size=1, max_size=4)


def packed_columns(sentences: list[list[list[int]]]) -> list[Column]:
    return [
        Column(sentence, index, low, high)
        for sentence, spans in enumerate(sentences)
        for index, (low, high) in enumerate(spans)
    ]


@settings(derandomize=True, deadline=None, max_examples=200, database=None)
@given(PACKED_SENTENCES, st.integers(1, 60), st.integers(1, 12))
def test_every_wanted_pair_is_in_exactly_one_segment(
    sentences: list[list[list[int]]], max_rows: int, max_columns: int
) -> None:
    columns = packed_columns(sentences)
    covered: list[tuple[int, int, int]] = []
    for segment in segments_of(columns, max_rows, max_columns):
        assert segment.rows <= max_rows and len(segment.columns) <= max_columns
        assert len({column.sentence for column in segment.columns}) == 1
        for place, column in enumerate(segment.columns):
            assert columns[segment.first_column + place] is column
            covered += [(column.sentence, column.index, row) for row in range(segment.low, segment.high)]
    wanted = {(c.sentence, c.index, row) for c in columns for row in range(c.low, c.high)}
    assert len(covered) == len(set(covered))
    assert wanted <= set(covered)


@settings(derandomize=True, deadline=None, max_examples=100, database=None)
@given(PACKED_SENTENCES, st.integers(1, 60), st.integers(1, 12))
def test_chunks_hold_all_segments_in_order_and_no_more_rows_than_allowed(
    sentences: list[list[list[int]]], max_rows: int, max_columns: int
) -> None:
    segments = list(segments_of(packed_columns(sentences), max_rows, max_columns))
    gathered = list(chunks_of(segments, max_rows, max_columns))
    assert [segment for chunk in gathered for segment in chunk] == segments
    assert all(sum(segment.rows for segment in chunk) <= max_rows for chunk in gathered)
    assert all(chunk[-1].end_column - chunk[0].first_column <= max_columns for chunk in gathered)


def test_a_triangle_wastes_little_and_a_square_nothing() -> None:
    length = 256
    square = [Column(0, j, 0, length) for j in range(length)]
    triangle = [Column(0, j, j, length) for j in range(length)]
    assert sum(segment.rows for segment in segments_of(square, 512, ALL)) == length**2
    assert sum(segment.rows for segment in segments_of(triangle, 512, ALL)) <= 1.03 * length * (length + 1) / 2
