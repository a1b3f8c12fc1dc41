"""The contract of Scores: labels, normalisation, rollout, rows, words and tables."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from support.references import rolled_out, row_normalized
from support.scores import (
    GROUPS,
    TOKENS,
    WORD_LABELS,
    cross_scores,
    cross_scores_of_other_length,
    make_scores,
    partial_scores,
    per_head_scores,
    random_values,
)
from support.state import type_checks_off
from torch import Tensor

import tl_vzero
from tl_vzero import Scores, TLVZeroError

# --- normalised -----------------------------------------------------------------------------------------


def test_signed_scores_are_not_normalised() -> None:
    with pytest.raises(TLVZeroError, match="negative values"):
        make_scores(random_values(3, 7, 7) - 0.5).normalized()


def test_the_rounding_of_a_callers_own_distance_is_no_sign() -> None:
    values = random_values(3, 7, 7)
    values[0, 2, 3] = -1e-7
    assert torch.allclose(make_scores(values).normalized().values.sum(-1), torch.ones(3, 7, dtype=torch.float64))


def test_raw_values_are_kept() -> None:
    scores = make_scores()
    before = scores.values.clone()
    scores.normalized()
    scores.rollout()
    scores.words()
    assert torch.equal(scores.values, before)
    assert scores.stage == "raw"


def test_normalized_rows_sum_to_one() -> None:
    scores = make_scores()
    normalized = scores.normalized()
    assert (normalized.values.sum(-1) - 1).abs().max() < 1e-14
    assert (normalized.values - row_normalized(scores.values)).abs().max() < 1e-15
    assert normalized.stage == "normalized"
    assert normalized.dest_tokens == scores.dest_tokens and normalized.layers == scores.layers


def test_normalizing_twice_is_normalizing_once() -> None:
    once = make_scores().normalized()
    assert torch.equal(once.normalized().values, once.values)


def test_an_empty_row_stays_zero_and_is_listed() -> None:
    values = random_values(3, 7, 7)
    values[1, 0] = 0
    values[2, 5] = 0
    scores = make_scores(values)
    for some in (scores, scores.normalized()):
        assert set(some.empty_rows) == {(1, 0), (2, 5)}
        assert torch.equal(some.values[1, 0], torch.zeros(7, dtype=torch.float64))
        assert not some.values.isnan().any()


def test_empty_rows_are_named_by_layer_and_destination_of_the_model() -> None:
    """Of layers (0, 2), the second map is layer 2."""
    values = random_values(2, 7, 7)
    values[1, 3] = 0
    assert make_scores(values, layers=(0, 2)).empty_rows == ((2, 3),)


def test_empty_rows_per_head() -> None:
    values = random_values(3, 2, 7, 7)
    values[1, 1, 4] = 0
    assert make_scores(values, heads=(0, 1)).empty_rows == ((1, 1, 4),)


def test_a_map_without_empty_rows_lists_none() -> None:
    assert make_scores().empty_rows == ()


def test_a_tiny_row_is_not_empty() -> None:
    values = random_values(3, 7, 7)
    values[0, 2] *= 1e-30
    scores = make_scores(values)
    assert scores.empty_rows == ()
    assert scores.normalized().values[0, 2].sum().item() == pytest.approx(1)


def test_a_partial_map_is_normalised_over_its_sources_and_flagged() -> None:
    scores = partial_scores()
    assert scores.partial and scores.normalized().partial
    assert (scores.normalized().values.sum(-1) - 1).abs().max() < 1e-14
    assert not make_scores().partial


# --- rollout --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("identity", [False, True])
def test_rollout_follows_the_rule_of_the_method(identity: bool) -> None:
    scores = make_scores(identity=identity)
    expected = rolled_out(row_normalized(scores.values), identity)
    assert (scores.rollout().values - expected).abs().max() < 1e-14
    assert (scores.normalized().rollout().values - expected).abs().max() < 1e-14
    assert scores.rollout().stage == "rollout"


def subset_of_layers() -> Scores:
    return make_scores(random_values(2, 7, 7), layers=(0, 1))


def layers_out_of_order() -> Scores:
    return make_scores(layers=(2, 1, 0))


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        pytest.param(lambda: make_scores().rollout(), "rollout|rolled out", id="rolled_out_already"),
        pytest.param(partial_scores, "partial|sources|destinations", id="partial"),
        pytest.param(subset_of_layers, "layer", id="subset_of_layers"),
        pytest.param(layers_out_of_order, "layer", id="layers_out_of_order"),
        pytest.param(per_head_scores, "head", id="per_head"),
        pytest.param(cross_scores, "sequence|cross", id="cross_attention"),
        pytest.param(
            cross_scores_of_other_length, "sequence|cross|partial|sources", id="cross_attention_of_other_length"
        ),
        pytest.param(lambda: make_scores().words(), "word", id="over_words"),
    ],
)
def test_rollout_raises_and_says_why(build: Callable[[], Scores], reason: str) -> None:
    scores = build()
    with pytest.raises(TLVZeroError, match=f"(?i){reason}") as caught:
        scores.rollout()
    assert isinstance(caught.value, ValueError)


def test_a_rollout_is_not_normalised_again() -> None:
    """Its rows sum to one already, or were empty; either way its values stay."""
    rollout = make_scores().rollout()
    assert (rollout.normalized().values - rollout.values).abs().max() < 1e-14


# --- rows -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dest", "index"), [(4, 4), (0, 0), (-1, 6), ("the", 1), ("[SEP]", 6)])
def test_row(dest: int | str, index: int) -> None:
    scores = make_scores()
    assert torch.equal(scores.row(dest), scores.values[:, index])


def test_row_of_a_partial_map_counts_in_the_sentence() -> None:
    scores = partial_scores()
    assert torch.equal(scores.row(4), scores.values[:, 1])


def test_row_per_head() -> None:
    scores = per_head_scores()
    assert torch.equal(scores.row("the"), scores.values[:, :, 1])


@pytest.mark.parametrize(("dest", "named"), [(7, "7"), (-8, "-8"), ("dog", "dog"), (1.5, "1.5|float"), (None, "None")])
def test_row_that_is_not_there(dest: Any, named: str) -> None:
    with type_checks_off(), pytest.raises(TLVZeroError, match=named) as caught:
        make_scores().row(dest)
    assert isinstance(caught.value, ValueError | TypeError)


def test_row_of_a_destination_that_was_left_out() -> None:
    with pytest.raises(TLVZeroError, match="3"):
        partial_scores().row(3)


def test_row_of_a_token_that_occurs_twice() -> None:
    tokens = ("[CLS]", "the", "cat", "the", "dog", ".", "[SEP]")
    with pytest.raises(TLVZeroError, match="the"):
        make_scores(dest_tokens=tokens, src_tokens=tokens, word_ids=None).row("the")


# --- what is typed without reading ----------------------------------------------------------------------

REPEATED = ("[CLS]", "the", "cat", "the", "dog", ".", "[SEP]")


def repeated_scores(**changes: Any) -> Scores:
    return make_scores(dest_tokens=REPEATED, src_tokens=REPEATED, word_ids=(None, 0, 1, 2, 3, 4, None), **changes)


def test_places_are_rows_and_entries() -> None:
    scores = make_scores()
    assert torch.equal(scores[4], scores.values[:, 4]) and torch.equal(scores["cat"], scores.values[:, 4])
    assert torch.equal(scores[-1, "##ing"], scores.values[:, 6, 3])
    assert torch.equal(scores[np.int64(4)], scores.values[:, 4])  # as argmax gives it
    assert torch.equal(per_head_scores()["cat", 1], per_head_scores().values[:, :, 4, 1])


def test_places_of_a_partial_map_count_in_the_sentence() -> None:
    scores = partial_scores()
    assert torch.equal(scores[4, 3], scores.values[:, 1, 3])
    with pytest.raises(TLVZeroError, match="source 'cats' is none of the tokens"):
        scores[4, "cats"]
    with pytest.raises(TLVZeroError, match=r"source 6 is outside the sentence, or this part of it: expected 0 to 4"):
        scores[4, 6]
    with pytest.raises(TLVZeroError, match=r"dest 3 .*: expected one of \[1, 4\], or -2 to -1 from the end"):
        scores[3]


@pytest.mark.parametrize("odd", [slice(1, 2), (1, 2, 3), (), 1.5, True, None, ...], ids=repr)
def test_what_is_no_place(odd: Any) -> None:
    with type_checks_off(), pytest.raises(TypeError) as caught:
        make_scores()[odd]
    assert isinstance(caught.value, TLVZeroError)


def test_tokens_of_whole_and_partial_maps() -> None:
    assert make_scores().tokens == TOKENS
    assert partial_scores().tokens == TOKENS[:5]
    spans = {"src_spans": ((1, 2), (4,)), "src_positions": (1, 4), "src_tokens": ("the scar", "cat")}
    assert make_scores(random_values(3, 7, 2), **spans).tokens == TOKENS
    of_other_length = replace(cross_scores_of_other_length(), n_src_positions=4)
    for scores in (cross_scores(), of_other_length, make_scores(metadata={"stack": "cross"})):
        with pytest.raises(TLVZeroError, match="dest_tokens or src_tokens"):
            assert scores.tokens


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_numpy_reads_the_values(dtype: torch.dtype) -> None:
    scores = make_scores(random_values(3, 7, 7).to(dtype).requires_grad_())
    assert np.array_equal(np.asarray(scores, dtype=np.float64), scores.values.detach().double().numpy())
    assert np.array(scores).shape == scores.shape == (3, 7, 7)


def test_top_has_the_largest_shares_of_each_layer_in_order() -> None:
    scores = make_scores()
    table = scores.top("cat", k=3)
    for layer in range(3):
        shares = row_normalized(scores.values)[layer, 4].tolist()
        largest = sorted(range(7), key=lambda source: -shares[source])[:3]
        of_layer = table[table["layer"] == layer]
        assert of_layer["source"].tolist() == [TOKENS[source] for source in largest]
        assert of_layer["share"].tolist() == pytest.approx([shares[source] for source in largest])
    assert scores.top("cat", k=3, layer=-1).equals(table[table["layer"] == 2].reset_index(drop=True))
    assert len(scores.top("cat", k=99, layer=0)) == 7


def test_top_per_head_and_of_what_has_no_shares() -> None:
    table = per_head_scores().top(1, k=2)
    assert list(table.columns) == ["layer", "head", "source", "share"] and len(table) == 3 * 2 * 2
    for signed in (make_scores(random_values(3, 7, 7) - 0.5), make_scores() - make_scores()):
        with pytest.raises(TLVZeroError, match="normalized"):
            signed.top(1)
    for k in (0, -1):
        with pytest.raises(TLVZeroError, match="k is"):
            make_scores().top(1, k=k)


def test_a_token_that_occurs_again_has_its_position_in_tables() -> None:
    scores = repeated_scores()
    labels = ["[CLS]", "the (1)", "cat", "the (3)", "dog", ".", "[SEP]"]
    table = scores.matrix(1)
    assert list(table.index) == list(table.columns) == labels
    assert table.loc["the (3)", "cat"] == scores.values[1, 3, 2].item()
    assert set(scores.top("cat", k=7, layer=0)["source"]) == set(labels)


def test_a_matrix_is_of_one_layer_and_map() -> None:
    assert make_scores().matrix(-1).loc["cat", "the"] == make_scores().values[2, 4, 1].item()
    with pytest.raises(TLVZeroError, match="per head"):
        per_head_scores().matrix(0)
    with pytest.raises(TLVZeroError, match="layer 3"):
        make_scores().matrix(3)


def test_a_difference_is_entry_by_entry_and_has_no_shares() -> None:
    one, other = make_scores().normalized(), make_scores(random_values(3, 7, 7, seed=1), method="alti").normalized()
    difference = one - other
    assert torch.equal(difference.values, one.values - other.values)
    assert (difference.stage, difference.method, difference.signed) == ("difference", "value_zeroing - alti", True)
    assert difference.metadata["subtracted"]["method"] == "alti"
    assert torch.allclose(difference.words().values, (one.words() - other.words()).values)
    for undefined in (difference.normalized, difference.rollout):
        with pytest.raises(TLVZeroError, match="difference"):
            undefined()


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (lambda: make_scores().normalized(), "stage 'raw' and 'normalized'"),
        (lambda: make_scores(random_values(2, 7, 7), layers=(0, 1)), "layers"),
        (partial_scores, "7 tokens"),
        (per_head_scores, "heads None"),
        (lambda: make_scores().words(), "unit 'token' and 'word'"),
        (cross_scores, "dest_tokens|src_tokens"),
        (
            lambda: make_scores(
                random_values(3, 7, 1), src_tokens=("the scar",), src_positions=(1,), src_spans=((1, 2),)
            ),
            "src_tokens",
        ),
    ],
)
def test_maps_that_have_no_difference(other: Callable[[], Scores], reason: str) -> None:
    with pytest.raises(TLVZeroError, match=f"no difference: {reason}"):
        make_scores() - other()


def test_a_picture_opens_on_what_tells_most() -> None:
    values = torch.full((3, 7, 7), 0.1)
    values[1, 2, 4] = 5
    masked = ("[CLS]", "the", "[MASK]", "##ing", "cat", "##s", "[SEP]")
    scores = make_scores(values, dest_tokens=masked, src_tokens=masked)
    assert scores.shown_dest == 2
    assert scores.plot().layout.sliders[0].active == 1
    assert "layer 1 tells most of '[MASK]'" in repr(scores)
    assert make_scores(values.tril()).shown_dest == 6  # causal: the last
    assert make_scores(values).shown_dest == 1  # the first word
    assert make_scores(values, word_ids=None).shown_dest == 0
    assert make_scores(values).words().shown_dest == 1
    assert partial_scores().shown_dest == 1


# --- the telling layer ----------------------------------------------------------------------------------


def largest_elsewhere(row: list[float], without: set[int]) -> float:
    shares = [value / sum(row) for place, value in enumerate(row) if place not in without]
    return max(shares) / sum(shares) if sum(shares) >= 0.5 else max(shares) - 1


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("target", range(len(TOKENS)))
def test_the_telling_layer_has_the_largest_share_outside_the_target_and_special_tokens(seed: int, target: int) -> None:
    scores = make_scores(random_values(3, 7, 7, seed=seed))
    by_layer = [largest_elsewhere(layer[target], {0, 6, target}) for layer in scores.values.tolist()]
    assert scores.telling_layer(target) == scores.normalized().telling_layer(target) == by_layer.index(max(by_layer))


def test_the_telling_layer_looks_past_the_target_and_special_tokens() -> None:
    values = torch.full((3, 7, 7), 0.1)
    values[0, 4, 4], values[1, 4, 0], values[2, 4, 2] = 50, 40, 1
    assert make_scores(values).telling_layer("cat") == 2
    assert make_scores(values).words().telling_layer("cats") == 2
    assert make_scores(values, word_ids=None).telling_layer(4) == 1  # nothing says which tokens are special
    assert make_scores(values, metadata={"stack": "cross"}).telling_layer(4) == 0  # columns of another sentence


def test_the_telling_layer_is_one_of_those_that_there_are() -> None:
    values = random_values(2, 7, 7)
    assert make_scores(values, layers=(5, 9), n_layers=12).telling_layer(3) in (5, 9)
    assert make_scores(torch.ones(3, 7, 7)).telling_layer(3) == 0  # of equal layers the first
    assert make_scores(torch.zeros(3, 7, 7)).telling_layer(3) == 0
    alone = {"src_positions": (3,), "src_tokens": TOKENS[3:4]}
    assert make_scores(random_values(3, 7, 1), **alone).telling_layer(3) == 0  # no other token


def test_the_telling_layer_per_head_and_of_spans() -> None:
    values = torch.full((3, 2, 7, 7), 0.1)
    values[1, 1, 4, 2] = 9
    assert replace(per_head_scores(), values=values).telling_layer(4) == 1
    spans = {"src_spans": ((0, 6), (1,), (4, 5)), "src_positions": (0, 1, 4), "src_tokens": ("x", "the", "cats")}
    scores = make_scores(torch.tensor([[[0.1, 0.5, 0.4]] * 7, [[0.1, 0.6, 0.3]] * 7, [[0.9, 0.1, 0.0]] * 7]), **spans)
    assert scores.special_sources == (True, False, False)
    assert scores.telling_layer(5) == 1


def test_the_telling_layer_of_a_target_that_is_not_there() -> None:
    with pytest.raises(TLVZeroError, match="dog"):
        make_scores().telling_layer("dog")
    with pytest.raises(TLVZeroError, match="negative values"):
        make_scores(random_values(3, 7, 7) - 0.5).telling_layer(3)


# --- words ----------------------------------------------------------------------------------------------


def joined_by_loops(values: Tensor) -> Tensor:
    """Summed over the sources of a word, averaged over its destinations."""
    result = torch.zeros(*values.shape[:-2], len(GROUPS), len(GROUPS), dtype=values.dtype)
    for row, dests in enumerate(GROUPS):
        for column, sources in enumerate(GROUPS):
            cells = [values[..., dest, source] for dest in dests for source in sources]
            result[..., row, column] = sum(cells) / len(dests)
    return result


@pytest.mark.parametrize("stage", ["raw", "normalized", "rollout"])
def test_words_sum_sources_and_average_destinations(stage: str) -> None:
    scores = make_scores()
    of_stage = scores if stage == "raw" else getattr(scores, stage)()
    words = of_stage.words()
    assert words.dest_tokens == words.src_tokens == WORD_LABELS
    assert words.unit == "word"
    assert (words.values - joined_by_loops(of_stage.values)).abs().max() < 1e-14


def test_rows_of_words_still_sum_to_one() -> None:
    assert (make_scores().normalized().words().values.sum(-1) - 1).abs().max() < 1e-14


def test_words_per_head() -> None:
    scores = per_head_scores()
    assert (scores.words().values - joined_by_loops(scores.values)).abs().max() < 1e-14


def test_words_of_a_partial_map() -> None:
    scores = partial_scores()
    words = scores.words()
    assert words.src_tokens[:3] == ("[CLS]", "the", "scaring")
    assert len(words.dest_tokens) == 2
    assert (words.values.sum(-1) - scores.values.sum(-1)).abs().max() < 1e-14


def test_words_that_are_unknown() -> None:
    with pytest.raises(TLVZeroError, match=r"(?i)word"):
        make_scores(word_ids=None).words()


def test_words_of_words_are_themselves_or_an_error() -> None:
    words = make_scores().words()
    try:
        again = words.words()
    except TLVZeroError:
        return
    assert torch.equal(again.values, words.values)


# --- tables ---------------------------------------------------------------------------------------------


def test_to_frame_has_one_line_for_each_entry() -> None:
    scores = make_scores().normalized()
    frame = scores.to_frame()
    assert len(frame) == scores.values.numel()
    assert {"layer", "dest", "src", "value", "dest_token", "src_token"} <= set(frame.columns)
    line = frame[(frame["layer"] == 2) & (frame["dest"] == 4) & (frame["src"] == 1)]
    assert line["value"].item() == pytest.approx(scores.values[2, 4, 1].item())
    assert line["dest_token"].item() == "cat" and line["src_token"].item() == "the"


def test_to_frame_of_a_partial_map_counts_in_the_sentence() -> None:
    scores = partial_scores()
    frame = scores.to_frame()
    assert set(frame["dest"]) == {1, 4} and set(frame["src"]) == {0, 1, 2, 3, 4}
    line = frame[(frame["layer"] == 1) & (frame["dest"] == 4) & (frame["src"] == 3)]
    assert line["value"].item() == pytest.approx(scores.values[1, 1, 3].item())


def test_to_frame_per_head() -> None:
    scores = per_head_scores()
    frame = scores.to_frame()
    line = frame[(frame["layer"] == 1) & (frame["head"] == 1) & (frame["dest"] == 2) & (frame["src"] == 6)]
    assert line["value"].item() == pytest.approx(scores.values[1, 1, 2, 6].item())


# --- shown and checked ----------------------------------------------------------------------------------


def test_repr_is_short_and_says_what_it_is() -> None:
    text = repr(make_scores().normalized())
    assert "Scores" in text and "value_zeroing" in text and "normalized" in text
    assert "3" in text and "7" in text
    assert len(text) < 500
    long = repr(make_scores(src_tokens=("word" * 100,) * 7))
    assert "…'" in long
    assert len(long) < 300


def test_a_notebook_gets_a_rich_representation() -> None:
    bundle = make_scores()._repr_mimebundle_()
    assert "text/plain" in bundle
    assert any(kind != "text/plain" for kind in bundle)


def test_a_notebook_escapes_tokens() -> None:
    token = "<script>alert(1)</script>"
    tokens = (token, *TOKENS[1:])
    bundle = make_scores(dest_tokens=tokens, src_tokens=tokens)._repr_mimebundle_()
    assert token not in bundle.get("text/html", "")


def test_scores_are_not_changed_in_place() -> None:
    with pytest.raises(AttributeError):
        make_scores().method = "attention"  # type: ignore[misc]


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"layers": (0, 1)}, id="too_few_layers"),
        pytest.param({"dest_tokens": TOKENS[:3]}, id="too_few_dest_tokens"),
        pytest.param({"src_positions": (0, 1)}, id="too_few_src_positions"),
        pytest.param({"heads": (0, 1)}, id="heads_without_an_axis"),
    ],
)
def test_labels_that_do_not_fit_the_values_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises((TLVZeroError, ValueError, TypeError)):
        make_scores(**changes)


def test_replace_keeps_the_checks() -> None:
    with pytest.raises((TLVZeroError, ValueError, TypeError)):
        replace(make_scores(), values=random_values(2, 7, 7))


def test_scores_is_a_public_name() -> None:
    assert tl_vzero.Scores is Scores


def test_unknown_positions_over_pieces_words_parts_and_spans() -> None:
    """TOKENS are [CLS] the scar ##ing cat ##s [SEP]."""
    scores = make_scores(metadata={"unknown": [3, 6]})
    assert scores.unknown_positions == (3, 6) and scores.normalized().unknown_positions == (3, 6)
    assert scores.unknown_dests == scores.unknown_sources == (False, False, False, True, False, False, True)
    words = scores.words()
    assert words.unknown_positions == (2, 4)
    assert words.unknown_dests == words.unknown_sources == (False, False, True, False, True)
    partial = replace(partial_scores(), metadata={"unknown": [3, 4]})
    assert (partial.unknown_dests, partial.unknown_sources) == ((False, True), (False, False, False, True, True))
    spans = make_scores(
        random_values(3, 7, 2),
        src_tokens=("the scar", "##ing cat"),
        src_positions=(1, 3),
        src_spans=((1, 2), (3, 4)),
        metadata={"unknown": [4]},
    )
    assert spans.unknown_sources == (False, True)


def test_unknown_sources_of_another_sentence() -> None:
    cross = replace(
        cross_scores(), n_src_positions=7, src_word_ids=None, metadata={"unknown": [1], "encoder_unknown": [2]}
    )
    assert cross.unknown_positions == (1,)
    assert cross.unknown_dests.index(True) == 1 and cross.unknown_sources.index(True) == 2
    joint = replace(cross, metadata={**cross.metadata, "encoder_from": 3})
    assert [at for at, odd in enumerate(joint.unknown_sources) if odd] == [1, 5]


# --- blocks ---------------------------------------------------------------------------------------------


def test_blocks_are_summed_over_sources_and_averaged_over_destinations() -> None:
    values = random_values(3, 7, 7)
    blocks = make_scores(values).by_blocks({"image": range(1, 4), "answer": [5, -1]})
    assert blocks.dest_tokens == blocks.src_tokens == ("image", "answer")
    assert blocks.src_spans == ((1, 2, 3), (5, 6)) and blocks.dest_positions == (1, 5)
    for row, dests in enumerate([[1, 2, 3], [5, 6]]):
        for column, sources in enumerate([[1, 2, 3], [5, 6]]):
            expected = sum(values[:, dest, source] for dest in dests for source in sources) / len(dests)
            assert torch.allclose(blocks.values[:, row, column], expected)


def test_without_names_blocks_are_the_stretches_of_one_kind() -> None:
    kinds = ["text", "text", "image", "image", "text", "text", "text"]
    scores = replace(make_scores(), metadata={"signal": {"kinds": kinds}}).normalized()
    blocks = scores.by_blocks()
    assert blocks.src_tokens == ("text 1", "image", "text 2")
    assert torch.allclose(blocks.values.sum(-1), torch.ones(3, 3, dtype=blocks.values.dtype))
    assert make_scores().by_blocks().src_tokens == ("text",)


@pytest.mark.parametrize(
    ("blocks", "said"),
    [
        ({"a": [1, 2], "b": [2]}, "overlap"),
        ({}, "there is none"),
        ({"a": [9]}, r"blocks\['a'\] holds 9"),
    ],
)
def test_blocks_that_are_none(blocks: Any, said: str) -> None:
    with pytest.raises(TLVZeroError, match=said):
        make_scores().by_blocks(blocks)
    with pytest.raises(TLVZeroError, match="a whole map of one sentence"):
        partial_scores().by_blocks()
