"""Differences of two maps, against plain loops over hand-made numbers."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from support.scores import cross_scores, make_scores, random_values
from support.state import type_checks_off

import tl_vzero
from tl_vzero import Scores
from tl_vzero.errors import InputError, InputTypeError, ScoresError

Ids = Sequence[int | None]


def whole(tokens: str, values: Any, word_ids: Ids | None = None, **labels: Any) -> Scores:
    """A map of all tokens of a sentence."""
    texts = tuple(tokens.split())
    places = tuple(range(len(texts)))
    values = torch.tensor(values, dtype=torch.float64)
    ids = None if word_ids is None else tuple(word_ids)
    fields = {"method": "attention", "word_ids": ids, **labels}
    layers = tuple(range(len(values)))
    count = {"n_layers": len(layers), "n_positions": len(texts)}
    return Scores(
        values, layers=layers, dest_tokens=texts, src_tokens=texts, dest_positions=places, src_positions=places,
        **count, **fields,
    )  # fmt: skip


def numbered(count: int, step: float, layers: int = 2) -> list[list[list[float]]]:
    """Numbers that are all different: layer, row and column can be read from them."""
    return [[[step * (100 * k + 10 * i + j) for j in range(count)] for i in range(count)] for k in range(layers)]


def shown_alignment(scores: Scores) -> Any:
    return scores.metadata["subtracted"]["alignment"]


def test_as_many_tokens_are_subtracted_position_by_position() -> None:
    one, other = numbered(3, 1.0), numbered(3, 0.5)
    difference = whole("the hat [MASK]", one) - whole("the hats [MASK]", other)
    for k, i, j in product(range(2), range(3), range(3)):
        assert difference.values[k, i, j] == one[k][i][j] - other[k][i][j]
    assert difference.dest_tokens == difference.src_tokens == ("the", "hat|hats", "[MASK]")
    assert difference.method == "attention (hat) - attention (hats)"
    assert (difference.stage, difference.signed, difference.partial) == ("difference", True, False)
    assert shown_alignment(difference) == {
        "by": "positions",
        "first": ["the", "hat", "[MASK]"],
        "second": ["the", "hats", "[MASK]"],
        "pairs": [[0, 0], [1, 1], [2, 2]],
        "left_out": {"first": [], "second": []},
    }


def pooled(values: Any, groups: Sequence[Sequence[int]]) -> list[list[list[float]]]:
    """By words: the mean over a word's rows of the sum over a word's columns."""
    return [
        [[sum(layer[i][j] for i in rows for j in columns) / len(rows) for columns in groups] for rows in groups]
        for layer in values
    ]


def test_pieces_against_words_are_subtracted_word_by_word() -> None:
    one, other = numbered(4, 1.0), numbered(3, 0.5)
    first = whole("the scar ##ing cat", one, [0, 1, 1, 2], metadata={"model": "here/small"})
    second = whole("the scaring cat", other, [0, 5, 6], metadata={"model": "there/large"})
    for minuend, subtrahend, sign in ((first, second, 1), (second, first, -1)):
        difference = minuend.difference(subtrahend)
        expected, taken = pooled(one, [[0], [1, 2], [3]]), pooled(other, [[0], [1], [2]])
        for k, i, j in product(range(2), range(3), range(3)):
            assert difference.values[k, i, j].item() == pytest.approx(sign * (expected[k][i][j] - taken[k][i][j]))
        assert difference.src_tokens == ("the", "scaring", "cat") and difference.unit == "word"
        assert shown_alignment(difference)["by"] == "words"
        assert difference.words() is difference
    assert (first - second).method.startswith("attention (small, ")


def test_words_that_are_cut_elsewhere_into_as_many_tokens_are_subtracted_word_by_word() -> None:
    one, other = numbered(3, 1.0, layers=1)[0], numbered(3, 0.5, layers=1)[0]
    difference = whole("scar ##ing hat", [one], (0, 0, 1)) - whole("scaring ha ##t", [other], (0, 1, 1))
    left, right = [(0, 1), (2,)], [(0,), (1, 2)]  # the positions of each word
    for i, k in product(range(2), range(2)):
        first = sum(one[row][column] for row, column in product(left[i], left[k])) / len(left[i])
        second = sum(other[row][column] for row, column in product(right[i], right[k])) / len(right[i])
        assert difference.values[0, i, k] == first - second
    assert difference.dest_tokens == ("scaring", "hat") and shown_alignment(difference)["by"] == "words"


def test_two_models_with_other_tokenizers_on_one_sentence() -> None:
    text = "the authors near the hats [MASK] scaring marcus."
    of_both = [
        tl_vzero.score(tl_vzero.load_model(name), text, method="attention", layers=[1]).normalized()
        for name in ("agreement-mini", "all-MiniLM-L6-v2")
    ]
    first, second = of_both
    if first.src_tokens != second.src_tokens:
        first, second = first.words(), second.words()
    difference = of_both[0] - of_both[1]
    assert torch.allclose(difference.values, first.values - second.values)
    assert difference.method.startswith("attention (agreement-mini") and "all-MiniLM-L6-v2" in difference.method


def test_without_an_alignment_the_error_shows_both_sentences_and_what_to_do() -> None:
    for ids in ((None, None), ([0, 1, 2], [0, 1])):
        first, second = (
            whole("old hats [MASK]", numbered(3, 1.0), ids[0]),
            whole("hats [MASK]", numbered(2, 1.0), ids[1]),
        )
        with pytest.raises(ScoresError) as raised:
            first - second
        said = str(raised.value)
        assert "3 tokens ['old', 'hats', '[MASK]'] and 2 tokens ['hats', '[MASK]']" in said
        assert 'alignment="tokens"' in said and "left out" in said


@pytest.mark.parametrize(
    ("alignment", "by"),
    [("tokens", "tokens"), ([("hats", 0), ("[MASK]", "[MASK]")], "pairs"), ([(-1, -1), (1, "hats")], "pairs")],
)
def test_one_word_longer_is_subtracted_by_shared_tokens_or_by_pairs(alignment: Any, by: str) -> None:
    one, other = numbered(3, 1.0), numbered(2, 0.5)
    difference = whole("old hats [MASK]", one).difference(whole("hats [MASK]", other), alignment=alignment)
    for k, i, j in product(range(2), range(2), range(2)):
        assert difference.values[k, i, j] == one[k][i + 1][j + 1] - other[k][i][j]
    assert difference.src_positions == difference.dest_positions == (1, 2) and difference.partial
    assert difference.src_tokens == ("hats", "[MASK]")
    said = shown_alignment(difference)
    assert (said["by"], said["pairs"]) == (by, [[1, 0], [2, 1]])
    assert said["left_out"] == {"first": ["old"], "second": []}
    assert difference.method == "attention (old hats [MASK]) - attention (hats [MASK])"


def test_rows_of_a_target_that_stands_elsewhere_are_paired_by_name() -> None:
    one, other = whole("old hats [MASK]", numbered(3, 1.0)), whole("hats [MASK]", numbered(2, 0.5))
    rows = [scores.at_dest("[MASK]") for scores in (one, other)]
    difference = rows[0].difference(rows[1], alignment=[("[MASK]", "[MASK]"), ("old", "hats")])
    assert difference.values[1].tolist() == [[120 - 55, 122 - 55.5]]
    assert difference.dest_positions == (2,) and difference.src_tokens == ("old|hats", "[MASK]")
    with pytest.raises(ScoresError, match="none of their destinations"):
        rows[0].difference(rows[1], alignment=[("old", "hats")])


@pytest.mark.parametrize(
    ("alignment", "kind", "reason"),
    [
        ("words", InputError, "alignment is 'words'"),
        ([("hats", "hat")], InputError, r"alignment\[0\] 'hat' is none"),
        ([(1, 0), (1, 1)], InputError, "more than once"),
        ([("hats", "hats", "hats")], InputTypeError, "expected a pair"),
        (["ab"], InputTypeError, "expected a pair"),
        ([], ScoresError, "none of their destinations"),
    ],
)
def test_what_is_no_alignment_is_told(alignment: Any, kind: type[Exception], reason: str) -> None:
    with type_checks_off(), pytest.raises(kind, match=reason):
        whole("old hats [MASK]", numbered(3, 1.0)).difference(
            whole("hats [MASK]", numbered(2, 1.0)), alignment=alignment
        )


def test_an_alignment_of_two_sequences_is_refused() -> None:
    with pytest.raises(ScoresError, match="alignment given"):
        cross_scores().difference(cross_scores(), alignment="tokens")
    assert not (cross_scores() - cross_scores()).values.any()


def test_the_name_says_what_was_subtracted() -> None:
    def named(method: str = "alti", tokens: str = "the hat", **metadata: Any) -> Scores:
        return whole(tokens, numbered(2, 1.0), method=method, metadata=metadata)

    digests = [{"model": "mini", "weights_sha256": digit * 64} for digit in "ab"]
    options = [{"options": {"baseline": name, "heads": None}} for name in ("zero", "mean")]
    for first, second, name in (
        (named(), named("attention"), "alti - attention"),
        (named(), named(), "alti - alti"),
        (named(model="a/one"), named(model="b/two/"), "alti (one) - alti (two)"),
        (named(model="a/one"), named(model="b/one"), "alti (a/one) - alti (b/one)"),
        (named(**digests[0]), named(**digests[1]), "alti (mini aaaaaaaa) - alti (mini bbbbbbbb)"),
        (named(**options[0]), named(**options[1]), "alti (baseline zero) - alti (baseline mean)"),
        (named(tokens="a hat"), named("attention"), "alti (a) - attention (the)"),
        (named(tokens="\u202ea hat", model="x"), named(model="y"), "alti (x, \\u202ea) - alti (y, the)"),
    ):
        assert (first - second).method == name


def test_words_of_a_difference_are_the_difference_of_words() -> None:
    ids = [None, 0, 0, 1]
    first, second = (
        whole("[CLS] scar ##ing cat", numbered(4, 1.0), ids),
        whole("[CLS] jump ##ed cat", numbered(4, 0.5), ids),
    )
    joined = (first - second).words()
    assert torch.allclose(joined.values, (first.words() - second.words()).values)
    assert joined.src_tokens == ("[CLS]", "scaring|jumped", "cat")
    others = whole("[CLS] the old cat", numbered(4, 0.5), [None, 0, 1, 2])
    with pytest.raises(ScoresError, match="subtract words"):
        (first - others).words()


@pytest.mark.parametrize(
    "difference",
    [
        pytest.param(lambda: make_scores() - make_scores(random_values(3, 7, 7), method="alti"), id="methods"),
        pytest.param(lambda: whole("a | \n", numbered(2, 1.0)) - whole("a b", numbered(2, 0.5)), id="sentences"),
        pytest.param(
            lambda: whole("a b c", numbered(3, 1.0), [0, 0, 1]) - whole("ab c", numbered(2, 0.5), [0, 1]), id="by_words"
        ),
        pytest.param(
            lambda: whole("a b c", numbered(3, 1.0)).difference(whole("c", numbered(1, 1.0)), alignment="tokens"),
            id="by_tokens",
        ),
    ],
)
def test_a_difference_is_saved_shown_and_drawn_as_any_map(difference: Any, tmp_path: Path) -> None:
    scores = difference()
    scores.save(tmp_path / "difference.safetensors")
    read = Scores.load(tmp_path / "difference.safetensors")
    assert torch.equal(read.values, scores.values)
    assert (read.labels(), repr(read)) == (scores.labels(), repr(scores))
    frame = read.to_frame()
    assert set(frame["stage"]) == {"difference"} and len(frame) == scores.values.numel()
    scale = read.plot().layout.coloraxis
    assert scale.cmin == -scale.cmax < 0
    with pytest.raises(ScoresError, match="undefined"):
        read.normalized()
