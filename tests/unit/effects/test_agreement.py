"""The agreement of scores with an effect: against scipy's Spearman and scipy's bootstrap; where it is undefined."""

from dataclasses import replace
from math import isnan
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from support.effects import CORRUPTED, TEXT, double_model
from support.made_up import made_up_effect, made_up_scores
from support.state import type_checks_off

import tl_vzero
from tl_vzero import Scores
from tl_vzero.errors import InputError, InputTypeError

TOKENS = tuple("abcdefghijkl")
TARGET = 4


def pair(**changes: Any) -> tuple[Scores, tl_vzero.Effect]:
    scores = made_up_scores(TOKENS)
    return scores, made_up_effect(scores, TARGET, **changes)


def test_rho_is_scipys() -> None:
    scores, effect = pair()
    ranks = tl_vzero.agreement(scores, effect)
    expected = [
        stats.spearmanr(row, size).statistic
        for row, size in zip(scores.row(TARGET).numpy(), effect.values.abs().numpy(), strict=True)
    ]
    assert ranks.rho == pytest.approx(expected)
    assert (ranks.layers, ranks.n, ranks.method, ranks.effect) == ((0, 1, 2), 12, scores.method, "zero_ablation")
    assert ranks.undefined == ()


def test_the_interval_is_scipys_percentile_bootstrap() -> None:
    scores, effect = pair()
    ranks = tl_vzero.agreement(scores, effect, resamples=500, confidence=0.9, seed=7)
    for layer in ranks.layers:
        sample = scores.row(TARGET)[layer].numpy(), effect.values[layer].abs().numpy()
        interval = stats.bootstrap(
            sample,
            lambda x, y: stats.spearmanr(x, y).statistic,
            paired=True,
            vectorized=False,
            n_resamples=500,
            confidence_level=0.9,
            method="percentile",
            random_state=np.random.default_rng(7),
        ).confidence_interval
        assert (ranks.low[layer], ranks.high[layer]) == pytest.approx((interval.low, interval.high))


def test_sources_that_a_causal_target_cannot_reach_are_left_out() -> None:
    scores, effect = pair()
    causal = tl_vzero.agreement(replace(scores, values=scores.values.tril()), effect)
    whole = tl_vzero.agreement(scores, effect)
    expected = stats.spearmanr(
        scores.values[0, TARGET, : TARGET + 1].numpy(), effect.values[0, : TARGET + 1].abs().numpy()
    )
    assert (causal.n, whole.n) == (TARGET + 1, len(TOKENS))
    assert causal.rho[0] == pytest.approx(expected.statistic)


def test_a_score_of_zero_is_a_rank_where_the_source_could_be_reached() -> None:
    scores, effect = pair()
    values = scores.values.clone()
    values[:, TARGET, TARGET + 1 :] = 0
    assert tl_vzero.agreement(replace(scores, values=values), effect).n == len(TOKENS)


def test_normalisation_changes_nothing() -> None:
    scores, effect = pair()
    assert tl_vzero.agreement(scores.normalized(), effect).rho == pytest.approx(tl_vzero.agreement(scores, effect).rho)


def test_one_order_agrees_fully_and_signs_do_not_count() -> None:
    scores, effect = pair()
    row = scores.row(TARGET).float()
    signs = torch.tensor([1.0, -1.0]).repeat(len(TOKENS) // 2)
    ranks = tl_vzero.agreement(scores, replace(effect, values=row.exp() * signs))
    assert ranks.rho == ranks.low == ranks.high == pytest.approx((1, 1, 1))
    opposite = tl_vzero.agreement(scores, replace(effect, values=(-row).exp()))
    assert opposite.rho == pytest.approx((-1, -1, -1))


def test_the_seed_decides_the_interval() -> None:
    scores, effect = pair()
    assert tl_vzero.agreement(scores, effect, seed=1) == tl_vzero.agreement(scores, effect, seed=1)
    assert tl_vzero.agreement(scores, effect, seed=1).low != tl_vzero.agreement(scores, effect, seed=2).low


def test_a_constant_row_is_undefined_and_said_so() -> None:
    scores, effect = pair()
    values = effect.values.clone()
    values[1] = 0
    ranks = tl_vzero.agreement(scores, replace(effect, values=values))
    assert ranks.undefined == (1,)
    assert [isnan(x) for x in (*ranks.rho, *ranks.low, *ranks.high)] == [False, True, False] * 3


def test_few_sources_leave_draws_out_that_say_nothing() -> None:
    """Of three sources, a draw in nine is one source alone."""
    scores = made_up_scores(TOKENS[:3])
    ranks = tl_vzero.agreement(scores, made_up_effect(scores, 1))
    assert ranks.undefined == () and all(
        -1 <= low <= high <= 1 for low, high in zip(ranks.low, ranks.high, strict=True)
    )


def test_two_sources_have_no_rank_correlation() -> None:
    scores = made_up_scores(TOKENS[:2])
    assert tl_vzero.agreement(scores, made_up_effect(scores, 1)).undefined == (0, 1, 2)


def test_layers_and_sources_are_those_in_both() -> None:
    model = double_model("load_model", "bert")
    scores = tl_vzero.value_zeroing(model, TEXT, layers=[2, 1], sources=[6, 2, 1, 0], destinations=[5])
    whole = tl_vzero.value_zeroing(model, TEXT)
    assert isinstance(scores, Scores) and isinstance(whole, Scores)
    part = tl_vzero.zero_ablation(model, TEXT, layers=[0, 2], sources=[0, 1, 2, 3, 6])
    ranks = tl_vzero.agreement(scores, part)
    common = [0, 1, 2, 6]
    expected = stats.spearmanr(whole.row(5)[2, common], part.values[1, [0, 1, 2, 4]].abs()).statistic
    assert (ranks.layers, ranks.n, ranks.rho) == ((2,), 4, pytest.approx((expected,)))


def test_patching_agrees_with_scores_of_either_sentence() -> None:
    model = double_model("load_model", "bert")
    effect = tl_vzero.value_patching(model, TEXT, CORRUPTED)
    for sentence in (TEXT, CORRUPTED):
        scores = tl_vzero.value_zeroing(model, sentence)
        assert isinstance(scores, Scores)
        assert tl_vzero.agreement(scores, effect).effect == "value_patching"


def test_the_table() -> None:
    scores, effect = pair()
    ranks = tl_vzero.agreement(scores, effect)
    table = ranks.to_frame()
    assert table.columns.tolist() == ["method", "effect", "layer", "rho", "low", "high", "n"]
    assert table["rho"].tolist() == list(ranks.rho) and set(table["n"]) == {12}


# --- bad input ------------------------------------------------------------------------------------------


def refused(scores: Any, effect: Any, match: str, error: type[Exception] = InputError, **options: Any) -> None:
    with type_checks_off(), pytest.raises(error, match=match):
        tl_vzero.agreement(scores, effect, **options)


def test_a_target_that_is_no_destination_is_refused() -> None:
    scores, effect = pair()
    part = replace(scores, values=scores.values[:, :2], dest_tokens=TOKENS[:2], dest_positions=(0, 1))
    refused(part, effect, r"target 4 \('e'\) is not among the destinations \[0, 1\]")


def test_no_layer_in_common_is_refused() -> None:
    scores, effect = pair()
    refused(scores, replace(effect, layers=(7, 8, 9)), r"layers \[0, 1, 2\] and the effect \[7, 8, 9\]")


def test_another_sentence_is_refused() -> None:
    scores, effect = pair()
    refused(scores, replace(effect, src_tokens=(*TOKENS[:-1], "z")), "expected the same sentence")


def test_no_source_in_common_is_refused() -> None:
    scores, effect = pair()
    elsewhere = tuple(range(20, 20 + len(TOKENS)))
    refused(scores, replace(effect, src_positions=elsewhere), "expected the same sentence")


def test_heads_and_words_are_refused() -> None:
    scores, effect = pair()
    refused(replace(scores, values=scores.values.unsqueeze(1), heads=(0,)), effect, "per head")
    refused(scores, replace(effect, values=effect.values.unsqueeze(1), heads=(0,)), "per head")
    refused(scores.words(), effect, "over words")


@pytest.mark.parametrize("confidence", [0, 1, -0.5, 95, float("nan")])
def test_a_confidence_outside_0_and_1_is_refused(confidence: float) -> None:
    refused(*pair(), "confidence", confidence=confidence)


@pytest.mark.parametrize("resamples", [0, -3])
def test_no_resamples_are_refused(resamples: int) -> None:
    refused(*pair(), "resamples", resamples=resamples)


def test_other_types_are_refused() -> None:
    scores, effect = pair()
    refused([scores], effect, "list and Effect", InputTypeError)
    refused(scores, effect.values, "Scores and Tensor", InputTypeError)
    refused(scores, effect, "confidence is str", InputTypeError, confidence="0.9")
    refused(scores, effect, "resamples is float", InputTypeError, resamples=10.5)
