"""Stated errors of scores, and the strongest entries of long rows."""

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.scores import (
    WORD_LABELS,
    make_scores,
    random_values,
)
from support.state import type_checks_off

from tl_vzero import Scores
from tl_vzero.errors import InputError, ScoresError

SEEDS = st.integers(0, 2**31 - 1)


def with_errors(seed: int = 0, **changes: Any) -> tuple[Scores, Scores]:
    """Scores whose shares may be off, and exact ones within these errors, with other sums of rows."""
    exact = make_scores(random_values(3, 7, 7, seed=seed) ** 3, **changes)
    size = 10.0 ** -random_values(1, seed=seed + 1) * 0.3
    stated = exact.values * (1 + size * (random_values(3, 7, 7, seed=seed + 2) - 0.5))
    stated = make_scores(stated * random_values(3, 7, 1, seed=seed + 3), **changes)
    return replace(stated, error=(stated.normalized().values - exact.normalized().values).abs()), exact


def assert_within(stated: Scores, exact: Scores) -> None:
    assert stated.error is not None and (stated.error >= 0).all()
    assert ((stated.values - exact.values).abs() <= stated.error + 1e-12).all()


@given(SEEDS, st.booleans())
@settings(deadline=None, max_examples=30)
def test_errors_hold_in_all_that_is_made_of_scores(seed: int, identity: bool) -> None:
    stated, exact = with_errors(seed, identity=identity)
    other, other_exact = with_errors(seed + 10, identity=identity)
    for make in (
        lambda scores: scores.normalized(),
        lambda scores: scores.at_layer(2).at_dest(3).normalized(),
        lambda scores: scores.normalized().words(),
        lambda scores: scores.words().normalized(),
        lambda scores: scores.normalized().by_blocks({"a": [0, 1, 2], "b": [4, 6]}),
        lambda scores: scores.rollout(),
        lambda scores: scores.rollout().words().at_dest(2),
    ):
        assert_within(make(stated), make(exact))
    few = stated.strongest(2)
    for one in (few.normalized(), stated.normalized().strongest(2), few.strongest(1).normalized()):
        shares = exact.normalized().values[..., list(one.src_positions)]
        assert_within(one, replace(one, values=shares))
    assert_within(stated.normalized() - other.normalized(), exact.normalized() - other_exact.normalized())
    assert_within(stated.normalized() - other_exact.normalized(), exact.normalized() - other_exact.normalized())
    assert (stated.rollout().error <= 1).all()


def test_an_error_of_a_row_that_may_be_empty_covers_its_identity() -> None:
    values = torch.rand(2, 2, 2)
    values[0, 1] = 0
    labels = {"layers": (0, 1), "n_layers": 2, "n_positions": 2, "word_ids": None, "identity": True}
    labels |= dict.fromkeys(("dest_tokens", "src_tokens"), ("a", "b"))
    labels |= dict.fromkeys(("dest_positions", "src_positions"), (0, 1))
    exact = make_scores(values, **labels)
    stated = make_scores(torch.where(values == 0, 0.5, values), **labels)
    stated = replace(stated, error=(stated.normalized().values - exact.normalized().values).abs())
    assert_within(stated.rollout(), exact.rollout())
    back = replace(exact, error=stated.error)
    assert_within(back.rollout(), stated.rollout())


def test_errors_stand_in_tables_and_in_words() -> None:
    stated, exact = with_errors()
    assert list(stated.top(1).columns) == ["layer", "source", "share", "error"]
    assert stated.to_frame()["error"].tolist() == stated.error.flatten().tolist()
    assert "error" not in exact.top(1).columns and "error" not in exact.to_frame().columns
    assert f"shares off by at most {stated.error.max():.2g}" in repr(stated)
    assert stated.to_dict()["error"] == stated.error.tolist() and "error" not in exact.to_dict()


def test_what_has_no_error_is_refused() -> None:
    stated, _ = with_errors()
    for make in (lambda: stated - stated, lambda: stated.by_blocks({"a": [0]})):
        with pytest.raises(ScoresError, match=r"take normalized\(\) first"):
            make()
    with type_checks_off():
        with pytest.raises(ScoresError, match=r"error has shape \[3, 7\]: expected \[3, 7, 7\]"):
            replace(stated, error=stated.error[..., 0])
        with pytest.raises(ScoresError, match=r"omitted has shape \[3, 7, 7\]: expected \[3, 7\]"):
            replace(stated, omitted=stated.values)


@given(SEEDS, st.integers(1, 9), st.booleans(), st.booleans())
@settings(deadline=None, max_examples=30)
def test_the_strongest_and_what_is_omitted_are_the_whole_rows(seed: int, k: int, per_head: bool, ties: bool) -> None:
    shape = (3, 2, 7, 7) if per_head else (3, 7, 7)
    values = random_values(*shape, seed=seed)
    values = (values * 3).floor() if ties else values
    whole = make_scores(values, heads=(0, 1) if per_head else None)
    few = whole.strongest(k)
    assert few.values.dtype == values.dtype and few.partial
    for at in product(*map(range, shape[:-1])):
        row = values[at].tolist()
        kept = {place for place in sorted(range(7), key=lambda place: (-row[place], place))[:k] if row[place]}
        assert kept <= {*few.src_positions}
        assert few.values[at].tolist() == [row[place] if place in kept else 0 for place in few.src_positions]
        assert few.omitted[at].item() == pytest.approx(sum(row) - sum(row[place] for place in kept))
    assert torch.allclose(few.values.sum(-1) + few.omitted, values.sum(-1))
    shares = whole.normalized().values[..., list(few.src_positions)]
    of_whole = few.normalized()
    assert torch.allclose(of_whole.values, torch.where(few.values == 0, 0, shares))
    assert torch.allclose(of_whole.values.sum(-1) + of_whole.omitted, (values.sum(-1) > 0).to(values))


def test_the_strongest_of_a_long_row_is_small() -> None:
    size = 32_768
    tokens = tuple(f"w{i}" for i in range(size))
    row = make_scores(
        torch.rand(30, 1, size, generator=torch.Generator().manual_seed(0)),
        layers=tuple(range(30)),
        n_layers=30,
        dest_tokens=tokens[-1:],
        src_tokens=tokens,
        dest_positions=(size - 1,),
        src_positions=tuple(range(size)),
        n_positions=size,
        word_ids=None,
    ).strongest(8)
    assert row.values.shape[-1] <= 240 and row.shape[:-1] == (30, 1)
    assert row.metadata["src_tokens"] == list(tokens)
    assert torch.allclose(row.strongest(2).normalized().values, row.normalized().strongest(2).values)


def test_the_strongest_is_refused_where_it_is_nothing() -> None:
    few = make_scores().strongest(7)  # all of it, and still rows that were cut
    with pytest.raises(ScoresError, match="rollout"):
        few.rollout()
    with pytest.raises(ScoresError, match="left sources of them out"):
        few - few
    with pytest.raises(ScoresError, match=r"take words\(\) first"):
        few.words()
    assert make_scores().words().strongest(2).metadata["src_tokens"] == list(WORD_LABELS)
    with pytest.raises(ScoresError, match="signed"):
        (make_scores() - make_scores()).strongest(2)
    with pytest.raises(InputError, match="k is 0"):
        few.strongest(0)
    empty = make_scores(torch.zeros(3, 7, 7)).strongest(2)
    assert empty.values.shape == (3, 7, 1) and not empty.normalized().omitted.any()
