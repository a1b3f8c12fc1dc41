"""Cue alignment: against scikit-learn and sums by hand; chance; shuffled cues; what is left out of the row."""

import json
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch
from support.evaluations import EXAMPLES, slow_average_precision
from support.models import build
from support.state import type_checks_off

import tl_vzero
from tl_vzero.data.agreement_mini import agreement_examples
from tl_vzero.errors import InputError
from tl_vzero.evaluate.cue_alignment import (
    CueAlignment,
    alignment_of,
    average_precision,
    cue_alignment,
    expected_average_precision,
    expected_dot,
)
from tl_vzero.evaluate.rows import TargetRows, target_rows
from tl_vzero.evaluate.sentences import tokenize_examples
from tl_vzero.statistics import Interval, bootstrap_mean

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def tiny_rows() -> TargetRows:
    _, model = build("load_model", "bert")
    return target_rows(model, tokenize_examples(model, EXAMPLES), ["value_zeroing", "attention", "random"])


@pytest.fixture(scope="module")
def embedded() -> TargetRows:
    model = tl_vzero.load_model("agreement-mini")
    return target_rows(model, tokenize_examples(model, agreement_examples()), ["value_zeroing", "attention", "random"])


def cell(result: CueAlignment, **where: Any) -> Any:
    (only,) = [entry for entry in result.cells if all(getattr(entry, name) == value for name, value in where.items())]
    return only


@pytest.mark.parametrize("n_cues", [1, 2, 4])
def test_average_precision_is_scikit_learns(n_cues: int) -> None:
    rows = RNG.random((50, 9))
    tied = RNG.integers(0, 3, (50, 9)) / 4
    for scores in (rows, tied, np.zeros((1, 9))):
        cue = RNG.choice(9, n_cues, replace=False).tolist()
        expected = [slow_average_precision(row, cue) for row in torch.from_numpy(scores)]
        assert average_precision(scores, cue) == pytest.approx(expected)


@pytest.mark.parametrize(("n_cues", "n_sources"), [(1, 1), (1, 6), (2, 6), (3, 5), (4, 4)])
def test_chance_is_the_mean_over_every_order(n_cues: int, n_sources: int) -> None:
    rows = np.array([*permutations(range(1, n_sources + 1))]) / sum(range(1, n_sources + 1))
    cue = [*range(n_cues)]
    assert average_precision(rows, cue).mean() == pytest.approx(expected_average_precision(n_cues, n_sources))
    assert rows[:, cue].sum(axis=1).mean() == pytest.approx(expected_dot(n_cues, n_sources))


@pytest.mark.parametrize("which", ["first", "all"])
def test_both_measures_by_hand(tiny_rows: TargetRows, which: Any) -> None:
    result = alignment_of(tiny_rows, which=which, interval=Interval(resamples=50, seed=4))
    cues = {"first": [[2], [2], [2], [3]], "all": [[2, 3], [2], [2, 3], [3]]}[which]
    for method, rows in tiny_rows.rows.items():
        for layer in range(3):
            dots = [sum(row[layer, position].item() for position in cue) for row, cue in zip(rows, cues, strict=True)]
            precisions = [slow_average_precision(row[layer], cue) for row, cue in zip(rows, cues, strict=True)]
            for measure, values in (("dot", dots), ("average_precision", precisions)):
                for paradigm, numbers in (("all", [0, 1, 2, 3]), ("pp", [0, 2]), ("plain", [1])):
                    measured = cell(result, method=method, layer=layer, paradigm=paradigm, measure=measure).aligned
                    expected = bootstrap_mean([values[index] for index in numbers], resamples=50, seed=4)
                    assert (measured.mean, measured.n) == (pytest.approx(expected.mean), len(numbers))
                    assert (measured.low, measured.high) == pytest.approx((expected.low, expected.high), nan_ok=True)
    lengths = [len(sentence) for sentence in tiny_rows.examples]
    chance = np.mean([len(cue) / length for cue, length in zip(cues, lengths, strict=True)])
    assert cell(result, method="random", layer=0, paradigm="all", measure="dot").chance == pytest.approx(chance)


def test_nothing_is_left_out_unless_asked(tiny_rows: TargetRows) -> None:
    """[CLS], [SEP] and the target are left out, and the row sums to one again."""
    result = alignment_of(tiny_rows, without=["special", "target"])
    values = []
    for sentence, row in zip(tiny_rows.examples, tiny_rows.rows["attention"], strict=True):
        remaining = [position for position in range(1, len(sentence) - 1) if position != sentence.dest]
        values.append(row[1, sentence.cue("first")[0]].item() / row[1, remaining].sum().item())
    measured = cell(result, method="attention", layer=1, paradigm="all", measure="dot")
    assert measured.aligned.mean == pytest.approx(np.mean(values))
    assert measured.chance == pytest.approx(np.mean([1 / (len(sentence) - 3) for sentence in tiny_rows.examples]))
    assert result.settings["without"] == ["special", "target"]


def test_random_rows_give_chance(embedded: TargetRows) -> None:
    result = alignment_of(embedded)
    expected = np.mean([len(sentence.cue("first")) / len(sentence) for sentence in embedded.examples])
    for layer in embedded.layers:
        measured = cell(result, method="random", layer=layer, paradigm="all", measure="dot")
        assert measured.chance == pytest.approx(expected)
        # Four intervals of 95 %, and a little more, so that this is a law and no lottery.
        width = measured.aligned.high - measured.aligned.low
        assert measured.aligned.low - width / 4 <= measured.chance <= measured.aligned.high + width / 4
        precise = cell(result, method="random", layer=layer, paradigm="all", measure="average_precision")
        assert abs(precise.aligned.mean - precise.chance) < precise.aligned.high - precise.aligned.low


def test_value_zeroing_finds_the_cue_and_not_shuffled_ones(embedded: TargetRows) -> None:
    result = alignment_of(embedded)
    best = max(
        (
            entry
            for entry in result.cells
            if (entry.method, entry.paradigm, entry.measure) == ("value_zeroing", "all", "dot")
        ),
        key=lambda entry: entry.aligned.mean,
    )
    assert best.aligned.n == 500 and best.shuffled is not None
    assert best.aligned.low > max(best.chance, best.shuffled.high)


def test_a_shuffled_cue_is_another_word(tiny_rows: TargetRows) -> None:
    """With all mass on the cue's word, the shuffled cue has none; and no special token or target is one."""
    only_cue = [torch.zeros(1, len(sentence)).double() for sentence in tiny_rows.examples]
    never = [torch.zeros(1, len(sentence)).double() for sentence in tiny_rows.examples]
    for sentence, row, other in zip(tiny_rows.examples, only_cue, never, strict=True):
        row[:, list(sentence.cue("all"))] = 1 / len(sentence.cue("all"))
        other[:, [0, sentence.dest, len(sentence) - 1]] = 1 / 3
    rows = TargetRows(
        tiny_rows.examples, (0,), {"cue": tuple(only_cue), "never": tuple(never)}, {}, (), tiny_rows.settings
    )
    for seed in range(20):
        result = alignment_of(rows, which="all", seed=seed, interval=Interval(resamples=10))
        assert cell(result, method="cue", paradigm="all", measure="dot").aligned.mean == 1
        for method in ("cue", "never"):
            assert cell(result, method=method, paradigm="all", measure="dot").shuffled.mean == 0


def test_shuffled_cues_are_seeded(tiny_rows: TargetRows) -> None:
    first, again, other = (alignment_of(tiny_rows, seed=seed).to_dict() for seed in (0, 0, 1))
    assert first["cells"] == again["cells"] != other["cells"]


def test_an_example_without_other_words_has_no_shuffled_cue() -> None:
    """Of "dogs are", with both pieces of "dogs" the cue, nothing is left to shuffle to."""
    from dataclasses import replace

    _, model = build("load_model", "bert")
    short = replace(EXAMPLES[0], words=("dogs", "are"), target=1, cue=(0,), attractor=())
    result = cue_alignment(model, [short], ["attention"], which="all")
    assert all(entry.shuffled is None for entry in result.cells)
    assert result.to_frame()["shuffled_n"].eq(0).all()


def test_published_figures_stand_beside(tiny_rows: TargetRows) -> None:
    result = alignment_of(tiny_rows, training="finetuned")
    assert cell(result, method="value_zeroing", layer=1, paradigm="all", measure="dot").published == 0.14
    assert cell(result, method="attention", layer=0, paradigm="all", measure="dot").published == 0.06
    assert cell(result, method="attention", layer=0, paradigm="pp", measure="dot").published is None
    assert cell(result, method="attention", layer=0, paradigm="all", measure="average_precision").published is None
    assert result.settings["published"] == "bert-base-uncased, finetuned"
    assert all(entry.published is None for entry in alignment_of(tiny_rows).cells)


def test_the_result_is_a_table_and_plain_json(tiny_rows: TargetRows) -> None:
    result = alignment_of(tiny_rows, interval=Interval(resamples=20))
    table = result.to_frame()
    assert len(table) == 3 * 3 * 4 * 2 == len(result.cells)
    assert set(table["n"][table["paradigm"] == "all"]) == {4}
    read = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert read["cells"][0]["method"] == "value_zeroing"
    assert read["settings"]["resamples"] == 20


def test_a_causal_model_by_the_causal_protocol() -> None:
    _, model = build("load_model", "gpt2")
    result = cue_alignment(model, EXAMPLES, ["value_zeroing"], protocol="causal")
    measured = cell(result, layer=0, paradigm="plain", measure="dot")
    ids = tokenize_examples(model, EXAMPLES, protocol="causal").examples[1].encoding.ids
    assert measured.aligned.mean == pytest.approx(
        tl_vzero.value_zeroing(model, ids).normalized().values[0, -1, 2].item()
    )
    assert [skip.id for skip in result.skipped] == ["question-0"]
    assert result.to_dict()["skipped"][0]["reason"] == "the cue 'dog' comes after the target"


def test_bad_input(tiny_rows: TargetRows) -> None:
    with type_checks_off():
        with pytest.raises(InputError, match="expected a list of special, target"):
            alignment_of(tiny_rows, without="special")  # type: ignore[arg-type]
        with pytest.raises(InputError, match="without is"):
            cue_alignment(None, EXAMPLES, without=["cls"])  # type: ignore[arg-type, list-item]
        with pytest.raises(InputError, match="unknown choice of pieces 'last'"):
            alignment_of(tiny_rows, which="last")  # type: ignore[arg-type]
        with pytest.raises(InputError, match="unknown training"):
            alignment_of(tiny_rows, training="trained")  # type: ignore[arg-type]
