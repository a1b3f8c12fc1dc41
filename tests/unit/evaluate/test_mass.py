"""Where the mass of a row goes: by hand, and that the places share all of it."""

import json

import pytest
import torch
from support.evaluations import EXAMPLES
from support.models import build

from tl_vzero.errors import InputError
from tl_vzero.evaluate.mass import PLACES, mass, mass_of, places_of
from tl_vzero.evaluate.rows import TargetRows, target_rows
from tl_vzero.evaluate.sentences import tokenize_examples
from tl_vzero.statistics import Interval


@pytest.fixture(scope="module")
def rows() -> TargetRows:
    _, model = build("load_model", "bert")
    return target_rows(model, tokenize_examples(model, EXAMPLES), ["value_zeroing", "attention"])


def test_places_of_a_sentence(rows: TargetRows) -> None:
    """[CLS] the dog ##s near a hat [MASK] bark ##ing . [SEP]"""
    cue_pieces = ["special", "rest", "cue", "cue", "rest", "rest", "attractor", "target", *["rest"] * 3, "special"]
    assert [*places_of(rows.examples[0], "all")] == cue_pieces
    assert places_of(rows.examples[0], "first")[3] == "rest"


def test_a_cue_before_the_next_token_is_a_cue() -> None:
    _, model = build("load_model", "gpt2")
    tokenized = tokenize_examples(model, EXAMPLES[:2], protocol="causal")
    assert places_of(tokenized.examples[0], "all")[-1] == "attractor"
    assert places_of(tokenized.examples[1], "all") == ("special", "rest", "cue")


def test_shares_by_hand(rows: TargetRows) -> None:
    result = mass_of(rows, interval=Interval(resamples=10))
    where = {"cue": [[2, 3], [2, 3]], "attractor": [[6], [5]], "special": [[0, 11], [0, 11]], "target": [[7], [6]]}
    for place, positions in where.items():
        values = [
            sum(rows.rows["attention"][index][1, position].item() for position in of_example)
            for index, of_example in zip((0, 2), positions, strict=True)
        ]
        (share,) = [
            share
            for share in result.shares
            if (share.method, share.layer, share.paradigm, share.place) == ("attention", 1, "pp", place)
        ]
        assert (share.share.mean, share.share.n) == (pytest.approx(sum(values) / 2), 2)


def test_shares_sum_to_one_and_attractors_are_counted(rows: TargetRows) -> None:
    table = mass_of(rows).to_frame()
    assert table.groupby(["method", "layer", "paradigm"])["mean"].sum().tolist() == pytest.approx([1.0] * 2 * 3 * 4)
    attractors = table.query("place == 'attractor' and method == 'attention' and layer == 0")
    assert attractors.set_index("paradigm")["n_with"].to_dict() == {"pp": 2, "plain": 0, "question": 1, "all": 3}
    assert table.query("place == 'attractor' and paradigm == 'plain'")["mean"].eq(0).all()
    assert table["place"].unique().tolist() == [*PLACES]


def test_empty_rows_are_counted(rows: TargetRows) -> None:
    nothing = tuple(torch.zeros_like(row) for row in rows.rows["attention"])
    result = mass_of(TargetRows(rows.examples, rows.layers, {"nothing": nothing}, {}, (), rows.settings))
    assert result.empty_rows == {"nothing": 4 * 3}
    assert all(share.share.mean == 0 for share in result.shares)


def test_the_call_is_the_same_and_plain_json(rows: TargetRows) -> None:
    _, model = build("load_model", "bert")
    result = mass(model, EXAMPLES, ["value_zeroing", "attention"], interval=Interval(resamples=10))
    read = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert read["shares"] == mass_of(rows, interval=Interval(resamples=10)).to_dict()["shares"]


def test_rows_that_are_not_normalised_have_no_shares() -> None:
    _, model = build("load_model", "bert")
    raw = target_rows(model, tokenize_examples(model, EXAMPLES), ["value_zeroing"], normalized=False)
    with pytest.raises(InputError, match="normalized=True"):
        mass_of(raw)
