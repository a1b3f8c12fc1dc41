"""Means over sentences: against loops in plain Python, group by group."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from inspect import unwrap
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.corpora import sentences, text_file
from support.made_up import made_up_scores
from support.scores import cross_scores, make_scores, partial_scores, per_head_scores

import tl_vzero
from tl_vzero.corpus import read_corpus, run_corpus
from tl_vzero.errors import InputError, InputTypeError, ScoresError
from tl_vzero.evaluate.averages import MeanScores
from tl_vzero.scores import Scores
from tl_vzero.statistics import bootstrap_mean

BYS = ["position", "word", "pos", "dependency", "distance"]
SENTENCES = (
    ("[CLS]", "the", "author", "sleeps", ".", "[SEP]"),
    ("[CLS]", "the", "author", "[MASK]", "the", "lamp", "##s", ".", "[SEP]"),
    ("[CLS]", "the", "lamp", "[MASK]", "the", "author", "##s", ".", "[SEP]"),
)
# What an English grammar says of the words above.
POS = {"the": "DET", "author": "NOUN", "sleeps": "VERB", ".": "PUNCT"}
RELATIONS = {"the": "det", "author": "nsubj", "sleeps": "ROOT", ".": "punct"}


def maps(tokens: Sequence[Sequence[str]] = SENTENCES) -> list[Scores]:
    """Maps with unlike numbers in each."""
    made_up = [made_up_scores(sentence) for sentence in tokens]
    return [replace(scores, values=scores.values.double() * (1 + place) * 1e3) for place, scores in enumerate(made_up)]


def slow_means(scores: Sequence[Scores], groups: Callable[[Scores], tuple[Sequence[Any], Sequence[Any]]]) -> Any:
    """By (layer, destination's group, source's group): one value for each sentence that has both."""
    of_pairs = defaultdict(list)
    for one in scores:
        dests, sources = groups(one)
        for layer, dest, source in product(one.layers, dict.fromkeys(dests), dict.fromkeys(sources)):
            rows = []
            for row, of_row in enumerate(dests):
                if of_row == dest:
                    entries = [
                        one.values[layer, row, i].item() for i, of_column in enumerate(sources) if of_column == source
                    ]
                    rows.append(sum(entries))
            of_pairs[layer, dest, source].append(sum(rows) / len(rows))
    return of_pairs


def assert_means(result: MeanScores, expected: Any) -> None:
    rows = {
        (row.layer, row.dest, row.src): (row.mean, row.low, row.high, row.n)
        for row in result.to_frame().itertuples(index=False)
    }
    assert set(rows) == set(expected)
    for key, values in expected.items():
        estimate = bootstrap_mean(values)
        wanted = (estimate.mean, estimate.low, estimate.high, estimate.n)
        assert rows[key] == pytest.approx(wanted, rel=1e-9, abs=1e-12, nan_ok=True), key


def tokens_of(scores: Scores) -> tuple[Sequence[str], Sequence[str]]:
    return scores.dest_tokens, scores.src_tokens


def test_by_word_rows_are_summed_over_sources_and_averaged_over_destinations() -> None:
    result = tl_vzero.mean(maps(), by="word")
    assert_means(result, slow_means(maps(), tokens_of))
    assert result.dest_groups == ("[CLS]", "the", "author", "sleeps", ".", "[SEP]", "[MASK]", "lamp", "##s")
    at = result.dest_groups.index("sleeps"), result.src_groups.index("lamp")
    assert result.n[at] == 0
    assert result.values[0][at].isnan()


def test_by_word_of_whole_words() -> None:
    words = [scores.words() for scores in maps()]
    assert_means(tl_vzero.mean(words, by="word"), slow_means(words, tokens_of))


def test_by_position() -> None:
    alike = maps(SENTENCES[1:])
    expected = slow_means(alike, lambda scores: (scores.dest_positions, scores.src_positions))
    assert_means(tl_vzero.mean(alike, by="position"), expected)


def test_by_distance_the_entries_at_one_distance_are_averaged() -> None:
    expected = defaultdict(list)
    for one in maps():
        for layer, distance in product(one.layers, range(-one.n_positions + 1, one.n_positions)):
            entries = [
                one.values[layer, dest, source].item()
                for dest, source in product(range(one.n_positions), repeat=2)
                if source - dest == distance
            ]
            expected[layer, "all", distance].append(sum(entries) / len(entries))
    result = tl_vzero.mean(maps(), by="distance")
    assert_means(result, expected)
    assert result.src_groups == tuple(range(-8, 9))


@pytest.mark.parametrize(("by", "says"), [("pos", POS), ("dependency", RELATIONS)])
def test_by_what_a_parse_says_of_words(by: Any, says: dict[str, str]) -> None:
    one = maps(SENTENCES[:1])

    def groups(scores: Scores) -> tuple[list[str], list[str]]:
        labels = [says.get(token, token) for token in scores.src_tokens]
        return labels, labels

    assert_means(tl_vzero.mean(one, by=by), slow_means(one, groups))


@pytest.mark.parametrize("by", ["pos", "dependency"])
def test_special_tokens_and_masks_are_groups_of_their_own_and_pieces_are_joined(by: Any) -> None:
    result = tl_vzero.mean(maps(), by=by)
    assert {"[CLS]", "[SEP]", "[MASK]"} < set(result.dest_groups)
    assert not {"lamp", "##s", "lamps"} & set(result.dest_groups)
    of_cls = result.dest_groups.index("[CLS]"), result.src_groups.index("[CLS]")
    expected = sum(scores.words().values[:, 0, 0] for scores in maps()) / 3
    torch.testing.assert_close(result.values[:, of_cls[0], of_cls[1]], torch.as_tensor(expected))


@pytest.mark.parametrize("by", ["word", "pos", "dependency", "position"])
def test_shares_of_a_row_sum_to_one(by: Any) -> None:
    alike = [scores.normalized() for scores in maps((SENTENCES[1], SENTENCES[1]))]
    sums = tl_vzero.mean(alike, by=by).values.nansum(dim=-1)
    torch.testing.assert_close(sums, torch.ones_like(sums))


def test_heads_are_averaged_by_themselves() -> None:
    two = [per_head_scores(), replace(per_head_scores(), values=per_head_scores().values * 3)]
    result = tl_vzero.mean(two, by="word")
    torch.testing.assert_close(result.values, per_head_scores().values * 2)
    assert list(result.to_frame().columns) == ["layer", "head", "dest", "src", "mean", "low", "high", "n"]


def test_a_map_of_one_destination_is_parsed_by_its_sources() -> None:
    (whole,) = maps(SENTENCES[1:2])
    part = replace(whole, values=whole.values[:, 3:4], dest_tokens=("[MASK]",), dest_positions=(3,))
    result = tl_vzero.mean([part], by="pos")
    at = tl_vzero.mean([whole], by="pos")
    assert result.dest_groups == ("[MASK]",)
    torch.testing.assert_close(result.values[:, 0], at.values[:, at.dest_groups.index("[MASK]")])


def test_many_means_are_those_of_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    at_once = tl_vzero.mean(maps(), by="word").to_frame()
    monkeypatch.setattr("tl_vzero.evaluate.averages.COLUMNS_AT_ONCE", 1)
    np.testing.assert_allclose(tl_vzero.mean(maps(), by="word").to_frame()["high"], at_once["high"], rtol=1e-12)


def test_the_interval_is_as_chosen() -> None:
    values = [scores.values[1, 2, 1].item() for scores in maps(SENTENCES[1:])]
    options: Any = {"confidence": 0.5, "resamples": 30, "seed": 4}
    expected = bootstrap_mean(values, **options)
    result = tl_vzero.mean(maps(SENTENCES[1:]), by="position", **options)
    assert (result.low[1, 2, 1].item(), result.high[1, 2, 1].item()) == pytest.approx((expected.low, expected.high))
    assert result.confidence == 0.5


@pytest.mark.parametrize("by", ["word", "pos", "distance"])
@pytest.mark.parametrize("rows", ["all", "target"])
def test_a_corpus_is_as_a_list(by: Any, rows: Any, tmp_path: Path) -> None:
    model = tl_vzero.load_model("agreement-mini")
    folder = run_corpus(model, text_file(tmp_path, 5), tmp_path / "out", shard_size=2, rows=rows).folder
    corpus = read_corpus(folder)
    of_list = tl_vzero.mean([scores for _, scores in corpus.scores()], by=by)
    of_corpus = tl_vzero.mean(corpus, by=by)
    assert of_corpus.to_frame().equals(of_list.to_frame())
    if rows == "all":
        alone = tl_vzero.mean(tl_vzero.value_zeroing(model, sentences(5)), by=by)
        torch.testing.assert_close(of_corpus.values, alone.values, rtol=1e-4, atol=1e-6, equal_nan=True)


def test_a_corpus_of_several_methods_asks_for_one(tmp_path: Path) -> None:
    model = tl_vzero.load_model("agreement-mini")
    run = run_corpus(model, text_file(tmp_path, 2), tmp_path / "out", ["value_zeroing", "attention"])
    with pytest.raises(
        InputError, match=r"value_zeroing, attention: expected one; .*corpus\.scores\('value_zeroing'\)"
    ):
        tl_vzero.mean(read_corpus(run.folder), by="word")


@pytest.mark.parametrize(
    ("scores", "by", "error", "message"),
    [
        ([], "word", InputError, "empty: expected at least one Scores"),
        (make_scores(), "word", InputTypeError, "scores is Scores: expected a list"),
        (["hat"], "word", InputTypeError, r"'hat' \(str\)"),
        ([make_scores()], "postion", InputError, "did you mean 'position'"),
        ([make_scores(), make_scores(method="alti")], "word", InputError, "method 'value_zeroing' and 'alti'"),
        ([make_scores(), make_scores().normalized()], "word", InputError, "stage 'raw' and 'normalized'"),
        ([make_scores(), make_scores().at_layer(1)], "word", InputError, r"layers \(0, 1, 2\) and \(1,\)"),
        ([make_scores(), per_head_scores()], "word", InputError, r"heads None and \(0, 1\)"),
        ([make_scores(), make_scores().words()], "word", InputError, "unit 'token' and 'word'"),
        (maps()[:2], "position", InputError, "the author sleeps .*the author .MASK. the lamp ##s"),
        ([make_scores(word_ids=None)], "pos", ScoresError, "which pieces form a word"),
        ([partial_scores()], "dependency", ScoresError, "5 sources of 7 positions: compute it with all sources"),
        ([cross_scores()], "pos", ScoresError, "of two sentences"),
        ([make_scores(metadata={"stack": "cross"})], "distance", ScoresError, "of two sentences"),
    ],
)
def test_what_has_no_mean_is_refused(scores: Any, by: Any, error: type[Exception], message: str) -> None:
    as_for_users = unwrap(tl_vzero.mean)  # without the tests' own check of annotations
    with pytest.raises(error, match=message):
        as_for_users(scores, by=by)


@pytest.mark.parametrize("by", [by for by in BYS if by != "word"])
def test_columns_that_are_spans_are_averaged_by_word_only(by: Any) -> None:
    spans = make_scores(torch.ones(3, 7, 1), src_tokens=("the scaring",), src_positions=(1,), src_spans=((1, 2, 3),))
    assert tl_vzero.mean([spans], by="word").src_groups == ("the scaring",)
    with pytest.raises(ScoresError, match="spans: average by word"):
        tl_vzero.mean([spans], by=by)


def test_a_table_that_would_fill_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tl_vzero.evaluate.averages.LARGEST", 100)
    with pytest.raises(InputError, match="9 x 9 groups in 3 maps"):
        tl_vzero.mean(maps(), by="word")


def test_the_text_is_safe_for_a_terminal() -> None:
    odd = replace(make_scores(), method="odd\x1b[2J")
    assert repr(tl_vzero.mean([odd], by="word")).startswith(
        "MeanScores(odd\\x1b[2J by word, raw, 3 layers, 7 x 7 groups"
    )
