"""Packing pairs into rectangles: every pair once, bounded rows, little waste."""

from hypothesis import given, settings
from hypothesis import strategies as st

from tl_vzero.zeroing.chunks import Column, chunks_of, segments_of

SPANS = st.tuples(st.integers(0, 20), st.integers(0, 20)).map(sorted)
ALL = 10**6
SENTENCES = st.lists(st.lists(SPANS, min_size=1, max_size=12), min_size=1, max_size=4)


def columns_of(sentences: list[list[list[int]]]) -> list[Column]:
    return [
        Column(number, index, low, high)
        for number, spans in enumerate(sentences)
        for index, (low, high) in enumerate(spans)
    ]


@settings(derandomize=True, deadline=None, max_examples=200, database=None)
@given(SENTENCES, st.integers(1, 60), st.integers(1, 12))
def test_every_wanted_pair_is_in_exactly_one_segment(
    sentences: list[list[list[int]]], max_rows: int, max_columns: int
) -> None:
    columns = columns_of(sentences)
    seen: list[tuple[int, int, int]] = []
    for segment in segments_of(columns, max_rows, max_columns):
        assert segment.rows <= max_rows and len(segment.columns) <= max_columns
        assert len({column.sentence for column in segment.columns}) == 1
        for place, column in enumerate(segment.columns):
            assert columns[segment.first_column + place] is column
            seen += [(column.sentence, column.index, row) for row in range(segment.low, segment.high)]
    wanted = {(c.sentence, c.index, row) for c in columns for row in range(c.low, c.high)}
    assert len(seen) == len(set(seen))
    assert wanted <= set(seen)


@settings(derandomize=True, deadline=None, max_examples=100, database=None)
@given(SENTENCES, st.integers(1, 60), st.integers(1, 12))
def test_chunks_hold_all_segments_in_order_and_no_more_rows_than_allowed(
    sentences: list[list[list[int]]], max_rows: int, max_columns: int
) -> None:
    segments = list(segments_of(columns_of(sentences), max_rows, max_columns))
    chunks = list(chunks_of(segments, max_rows, max_columns))
    assert [segment for chunk in chunks for segment in chunk] == segments
    assert all(sum(segment.rows for segment in chunk) <= max_rows for chunk in chunks)
    assert all(chunk[-1].end_column - chunk[0].first_column <= max_columns for chunk in chunks)


def test_a_triangle_wastes_little_and_a_square_nothing() -> None:
    length = 256
    square = [Column(0, j, 0, length) for j in range(length)]
    triangle = [Column(0, j, j, length) for j in range(length)]
    assert sum(segment.rows for segment in segments_of(square, 512, ALL)) == length**2
    assert sum(segment.rows for segment in segments_of(triangle, 512, ALL)) <= 1.03 * length * (length + 1) / 2
