"""Which heads change in training: heads changed by hand are found, and chance is not; bad input in words."""

import copy
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binom, ttest_1samp
from support.evaluated import estimate, training
from support.models import hf_bert, loaded
from support.state import type_checks_off
from transformers import AutoTokenizer, BertForMaskedLM

import tl_vzero
from tl_vzero.data.agreement_mini import agreement_examples
from tl_vzero.data.examples import Example
from tl_vzero.errors import InputError, InputTypeError
from tl_vzero.evaluate.training import TrainingChanges, discoveries, p_values, training_changes
from tl_vzero.statistics import Interval

MINI = Path(tl_vzero.__file__).parent / "assets" / "agreement-mini"
PARTS = ("query", "key", "value")


def rows_of(head: int, width: int) -> slice:
    return slice(head * width, (head + 1) * width)


@torch.no_grad()
def exchange(hf_model: Any, layer: int, one: int, other: int) -> None:
    """Exchange all that two heads of a block are."""
    attention = hf_model.bert.encoder.layer[layer].attention
    width = attention.self.attention_head_size
    first, second = rows_of(one, width), rows_of(other, width)
    matrices = [weight for part in PARTS for weight in getattr(attention.self, part).parameters()]
    for weight in [*matrices, attention.output.dense.weight.T]:
        kept = weight[first].clone()
        weight[first] = weight[second]
        weight[second] = kept


@torch.no_grad()
def silence(hf_model: Any, layer: int, head: int) -> None:
    """Let a head write nothing."""
    attention = hf_model.bert.encoder.layer[layer].attention
    attention.output.dense.weight[:, rows_of(head, attention.self.attention_head_size)] = 0


@pytest.fixture(scope="module")
def mini() -> Any:
    return BertForMaskedLM.from_pretrained(MINI)


def load_mini(hf_model: Any) -> Any:
    return tl_vzero.load_model(hf_model, AutoTokenizer.from_pretrained(MINI))


@pytest.fixture(scope="module")
def before(mini: Any) -> Any:
    return load_mini(mini)


@pytest.fixture(scope="module")
def sentences() -> list[Example]:
    """The sentences of one shape, so that they run together: enough for a test of a head, in little time."""
    examples = agreement_examples()
    shapes = Counter((len(example.words), example.target) for example in examples)
    common = [shape for shape, _ in shapes.most_common(2)]
    return [example for example in examples if (len(example.words), example.target) in common]


def planted(hf_model: Any, seed: int) -> tuple[Any, set[tuple[int, int]]]:
    """A copy with two heads of one block exchanged, or silenced, and which these are."""
    rng = np.random.default_rng(seed)
    layer = int(rng.integers(hf_model.config.num_hidden_layers))
    one, other = (int(head) for head in rng.choice(hf_model.config.num_attention_heads, 2, replace=False))
    changed = copy.deepcopy(hf_model)
    if seed % 2:
        exchange(changed, layer, one, other)
    else:
        silence(changed, layer, one)
        silence(changed, layer, other)
    return changed, {(layer, one), (layer, other)}


@pytest.mark.slow
def test_heads_changed_by_hand_are_found_and_no_others(mini: Any, before: Any, sentences: list[Example]) -> None:
    right = wrong = missed = 0
    for seed in range(20, 40):  # the kinds of source and `smallest` were chosen on the seeds below
        changed, expected = planted(mini, seed)
        models = {"before": before, "after": load_mini(changed)}
        table = training_changes(models, sentences, interval=Interval(resamples=20)).heads()
        heads = set(zip(table["layer"], table["head"], strict=True))
        right += len(heads & expected)
        wrong += len(heads - expected)
        missed += len(expected - heads)
    assert right / (right + wrong) >= 0.95 and right / (right + missed) >= 0.95


@pytest.fixture(scope="module")
def changes(mini: Any, before: Any, sentences: list[Example]) -> TrainingChanges:
    """A head silenced in one later model, two heads exchanged in another."""
    silenced, exchanged = copy.deepcopy(mini), copy.deepcopy(mini)
    silence(silenced, 1, 2)
    exchange(exchanged, 3, 1, 2)
    models = {"before": before, "silenced": load_mini(silenced), "exchanged": load_mini(exchanged)}
    return training_changes(models, sentences[:30], interval=Interval(resamples=20))


def test_a_head_is_not_blamed_for_what_changed_below_it(changes: TrainingChanges) -> None:
    table = changes.to_frame().query("group == 'all' and checkpoint == 'silenced'")
    same, total = (table[table["reading"] == reading].set_index("layer") for reading in ("same input", "total"))
    assert (same.loc[[0, 2, 3], "change"] == 0).all()
    assert (total.loc[0, "change"] == 0).all() and (total.loc[[2, 3], "change"].abs() > 0.001).any()
    silent = same.loc[1].query("head == 2").set_index("place")
    assert silent["after"].drop("elsewhere").sum() == 0
    assert silent["before"].drop("elsewhere").sum() == pytest.approx(1)
    assert silent.loc["elsewhere", "after"] == pytest.approx(0.5)  # half of all that was there
    assert changes.heads().query("checkpoint == 'silenced'")[["layer", "head"]].to_numpy().tolist() == [[1, 2]]


def test_shares_are_those_of_the_per_head_maps(mini: Any, before: Any) -> None:
    (example,) = [one for one in agreement_examples() if one.id == "agreement-4"]
    changed = copy.deepcopy(mini)
    exchange(changed, 0, 1, 2)
    models = {"before": before, "after": load_mini(changed)}
    table = training_changes(models, [example]).to_frame().query("reading == 'total' and group == 'all'")
    text = example.with_target("[MASK]")
    for name, model in models.items():
        scores: Any = tl_vzero.value_zeroing(model, text, per_head=True)
        tokens = list(scores.src_tokens)
        rows = scores.values[:, :, tokens.index("[MASK]")].double()
        rows = rows / rows.sum(dim=-1, keepdim=True)
        for place, words in {"cue": ["glove"], "attractor": ["brothers"], "special": ["[CLS]", "[SEP]"]}.items():
            share = rows[:, :, [tokens.index(word) for word in words]].sum(dim=-1).flatten()
            assert table[table["place"] == place][name].to_numpy() == pytest.approx(share.numpy(), abs=1e-5)


def test_sentences_show_a_head_with_the_largest_change_first(
    changes: TrainingChanges, sentences: list[Example]
) -> None:
    shown = changes.examples(3, 1, k=4)
    sizes = [abs(one.after - one.before) for one in shown]
    assert len(shown) == 4 and sizes == sorted(sizes, reverse=True)
    assert changes.examples(0, 0) == ()
    assert len({one.id for one in shown}) == 4
    assert shown[0].text in {example.text for example in sentences}
    first = shown[0]
    assert first.tokens[first.target] == "[MASK]" and set(first.rows) == {"before", "same input", "total"}
    before, after = (np.array(first.rows[reading]) for reading in ("before", "same input"))
    assert first.place == "elsewhere" and np.abs(after - before).sum() / 2 == pytest.approx(first.after, abs=5e-3)
    json.dumps(changes.to_dict(), allow_nan=False)


def test_a_head_is_named_by_a_place_that_says_something() -> None:
    (change, *_) = training({"step 1": 0.2}).changes
    by_place = {"elsewhere": 0.6, "rest": -0.5, "cue": 0.2, "target": 0.9}
    cells = [replace(change, place=place, change=estimate(by), changed=by < 0.9) for place, by in by_place.items()]
    for left, place in ((cells, "cue"), (cells[:2], "rest"), (cells[:1], "elsewhere")):
        assert TrainingChanges(tuple(left), (), (), {}).heads()["place"].tolist() == [place]


def test_p_is_that_of_one_sided_tests_against_the_smallest_change() -> None:
    changes = np.random.default_rng(0).normal(0.1, 0.2, (12, 40))
    expected = np.minimum(
        1,
        2
        * np.minimum(
            ttest_1samp(changes, 0.05, alternative="greater").pvalue,
            ttest_1samp(changes, -0.05, alternative="less").pvalue,
        ),
    )
    assert p_values(changes, 0.05) == pytest.approx(expected)
    plain = ttest_1samp(changes, 0).pvalue
    assert p_values(changes, 0.0) == pytest.approx(plain)


def test_p_where_sentences_agree_exactly_or_there_is_one() -> None:
    assert p_values(np.zeros((5, 2)), 0.0).tolist() == [1, 1]
    assert p_values(np.full((4, 1), 0.25), 0.05).tolist() == [0]
    assert p_values(np.full((4, 1), 0.05), 0.05).tolist() == [1]
    assert p_values(np.full((1, 1), 0.5), 0.05).tolist() == [1]


@pytest.mark.parametrize("truly_changed", [0, 4])
def test_at_chance_no_more_heads_than_the_rate_are_wrong(truly_changed: int) -> None:
    """Changes of random sign and size: places of a row sum to 0, and groups share sentences, as they really do."""
    rng, rate, repetitions, heads = np.random.default_rng(1), 0.1, 200, 16
    wrong_shares = []
    for _ in range(repetitions):
        changes = rng.normal(0, 0.2, (30, heads, 5))
        changes -= changes.mean(axis=-1, keepdims=True)
        changes[:, :truly_changed] += np.array([0.3, -0.3, 0.2, -0.2, 0])
        p = np.stack([p_values(changes[rows], 0.0) for rows in (slice(None), slice(15), slice(15, None))], axis=-1)
        q, cells = discoveries(p.reshape(heads, -1), rate)
        found = cells.any(axis=-1)
        assert (found == (q <= rate)).all()
        wrong_shares.append(found[truly_changed:].sum() / max(1, found.sum()))
    # Of each repetition the share lies between 0 and 1: its mean varies at most as that of so many coins.
    most = binom.ppf(0.999, repetitions, rate) / repetitions
    assert np.mean(wrong_shares) <= most


def test_bad_input_is_refused_in_words(before: Any, sentences: list[Example]) -> None:
    both = {"a": before, "b": before}
    with pytest.raises(InputError, match="at least two"):
        training_changes({"a": before}, sentences)
    with pytest.raises(InputError, match=r"rate is 1.5"):
        training_changes(both, sentences, rate=1.5)
    wrong: Any = training_changes
    with type_checks_off():
        with pytest.raises(InputTypeError, match="mapping"):
            wrong([before, before], sentences)
        with pytest.raises(InputTypeError, match=r"models\['b'\] is int"):
            wrong({"a": before, "b": 3}, sentences)
        with pytest.raises(InputTypeError, match="smallest is str"):
            wrong(both, sentences, smallest="much")
    with pytest.raises(InputError, match=r"'b' has 3 layers, 2 value heads, 16 features: expected 4 layers"):
        training_changes({"a": before, "b": loaded(hf_bert())}, sentences[:2])
