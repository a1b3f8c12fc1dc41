"""Planted truth: what is claimed of each model is true of its weights, and the measures say what they should."""

from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError

import tl_vzero
from tl_vzero.errors import InputError, ModelError
from tl_vzero.evaluate.planted import (
    area_under_roc,
    average_precision,
    check_truth,
    composed,
    exchanged,
    inputs_of,
    planted_truth,
)
from tl_vzero.evaluate.planted_models import planted_models

MODELS = {planted.title: planted for planted in planted_models()}
BY_HAND = [title for title, planted in MODELS.items() if planted.kind != "trained"]
SOME = ["induction, BERT", "counting, GPT-2", "redundant cues, BERT", "own token, GPT-2"]
TRAINED = [title for title, planted in MODELS.items() if planted.kind == "trained"]


def checked(title: str, n_inputs: int = 6) -> dict[str, float]:
    planted = MODELS[title]
    return check_truth(planted, tl_vzero.load_model(planted.built()), inputs_of(planted, n_inputs, 1))


def test_there_are_enough_models_of_every_kind() -> None:
    kinds = [planted.kind for planted in MODELS.values()]
    traps = {planted.name for planted in MODELS.values() if planted.trap}
    assert kinds.count("hand-written") >= 12
    assert kinds.count("trained") >= 8
    assert len(traps) >= 8
    assert all(planted.story for planted in MODELS.values())


@pytest.mark.parametrize("title", SOME)
def test_the_claims_are_true(title: str) -> None:
    checks = checked(title)
    assert checks["accuracy"] == checks["changed by a flow"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("title", [title for title in BY_HAND if title not in SOME])
def test_the_claims_are_true_of_every_other_model_by_hand(title: str) -> None:
    checks = checked(title)
    assert checks["accuracy"] == checks["changed by a flow"] == 1


@pytest.mark.slow
def test_the_claims_are_true_of_enough_trained_models() -> None:
    result = planted_truth(["random"], [MODELS[title] for title in TRAINED], n_inputs=32)
    assert len(result.checks) >= 8
    assert result.checks.keys() | result.rejected.keys() == set(TRAINED)
    assert {row.title for row in result.recovered} == set(result.checks)


@pytest.mark.parametrize("part", ["key", "value"])
def test_permuted_weights_fail_the_check(part: str) -> None:
    planted = MODELS["lookup, BERT"]
    hf_model = planted.built()
    weight = getattr(hf_model.bert.encoder.layer[1].attention.self, part).weight
    order = torch.randperm(weight.shape[1], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        weight.copy_(weight[:, order])
    with pytest.raises(ModelError, match=r"the flows planted in 'lookup' .* are not true of its weights"):
        check_truth(planted, tl_vzero.load_model(hf_model), inputs_of(planted, 6, 1))


def test_a_claim_that_is_false_fails_the_check() -> None:
    planted = MODELS["copying, GPT-2"]
    inputs = inputs_of(planted, 6, 1)
    inputs.flows[:, 1] = inputs.flows[:, 1].roll(1, dims=-1) & torch.ones(8, 8, dtype=torch.bool).tril()
    with pytest.raises(ModelError, match="are not true of its weights"):
        check_truth(planted, tl_vzero.load_model(planted.built()), inputs)


class Plain:
    """A plain GPT-2 and one exchange in it, by forward hooks; the values are the last third of `c_attn`."""

    def __init__(self, hf_model: Any) -> None:
        self.hf_model, self.blocks = hf_model, hf_model.transformer.h

    def run(self, ids: torch.Tensor, hooks: list[tuple[Any, Any]]) -> torch.Tensor:
        handles = [module.register_forward_hook(hook) for module, hook in hooks]
        logits = self.hf_model(input_ids=ids).logits
        for handle in handles:
            handle.remove()
        return logits.argmax(-1)

    def remembered(self, ids: torch.Tensor, module: Any) -> torch.Tensor:
        outputs: list[Any] = []
        self.run(ids, [(module, lambda _, __, output: outputs.append(output))])
        return outputs[0][0] if isinstance(outputs[0], tuple) else outputs[0]

    def exchanged(self, ids: torch.Tensor, other: torch.Tensor, layer: int, dest: int, sources: list[int]) -> Any:
        block = self.blocks[layer]
        values = self.remembered(other, block.attn.c_attn)
        clean = self.remembered(ids, block)

        def exchange(_: Any, __: Any, whole: torch.Tensor) -> torch.Tensor:
            whole = whole.clone()
            third = whole.shape[-1] * 2 // 3
            whole[0, sources, third:] = values[0, sources, third:]
            return whole

        def leave_others(_: Any, __: Any, output: Any) -> Any:
            left = clean.clone()
            left[0, dest] = (output[0] if isinstance(output, tuple) else output)[0, dest]
            return (left, *output[1:]) if isinstance(output, tuple) else left

        return self.run(ids, [(block.attn.c_attn, exchange), (block, leave_others)])[0]


@torch.no_grad()
@pytest.mark.parametrize("title", ["induction, GPT-2", "cancelling pair, GPT-2"])
def test_an_exchange_equals_one_by_hooks_on_the_plain_model(title: str) -> None:
    planted = MODELS[title]
    inputs, plain = inputs_of(planted, 2, 3), Plain(planted.built())
    changed = exchanged(tl_vzero.load_model(plain.hf_model), inputs)
    for index in range(2):
        ids, other = inputs.ids[[index]], inputs.other[[index]]
        asked = inputs.answered[1][inputs.answered[0] == index]
        before = plain.run(ids, [])[0, asked]
        for layer in range(2):
            for dest in range(ids.shape[1]):
                for source in range(dest):
                    sources = [place for place in inputs.together[index, source].nonzero().flatten() if place != dest]
                    after = plain.exchanged(ids, other, layer, dest, sources)[asked]
                    assert changed[index, layer, dest, source] == bool((after != before).any())


def test_measures_of_a_ranking_equal_their_definitions() -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        true = np.zeros(7, dtype=bool)
        true[random.choice(7, random.integers(1, 7), replace=False)] = True
        scores = random.integers(0, 4, 7).astype(float)
        above = [1.0 if a > b else 0.5 if a == b else 0.0 for a in scores[true] for b in scores[~true]]
        assert area_under_roc(true, scores) == pytest.approx(sum(above) / len(above))
        precisions = [sum(true[scores >= scores[one]]) / sum(scores >= scores[one]) for one in np.flatnonzero(true)]
        assert average_precision(true, scores) == pytest.approx(sum(precisions) / len(precisions))


def test_flows_compose_over_layers() -> None:
    flows = torch.zeros(1, 2, 4, 4, dtype=torch.bool)
    flows[0, 0, 2, 1] = flows[0, 1, 3, 2] = True
    assert composed(flows)[0, 1].nonzero().tolist() == [[2, 1], [3, 1], [3, 2]]


def test_an_oracle_is_perfect_and_random_is_at_chance() -> None:
    result = planted_truth(["random"], [MODELS["lookup, GPT-2"], MODELS["induction, BERT"]], n_inputs=32)
    measured = [row for row in result.recovered if row.auroc is not None and row.ap is not None]
    assert {row.method for row in measured} == {"oracle", "random"}
    for row in measured:
        if row.method == "oracle":
            assert row.ap.mean == row.auroc.mean == 1.0
        else:
            assert row.auroc.low <= 0.5 <= row.auroc.high


def test_one_seed_gives_one_table_and_a_folder_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = [MODELS["sink, BERT"], MODELS["sorting, GPT-2"]]
    names = ["value_zeroing", "random"]
    once = planted_truth(names, models, n_inputs=5, folder=tmp_path)
    assert planted_truth(names, models, n_inputs=5).to_dict() == once.to_dict()
    monkeypatch.setattr("tl_vzero.evaluate.planted.check_truth", None)  # nothing is computed again
    assert planted_truth(names, models, n_inputs=5, folder=tmp_path).to_dict() == once.to_dict()
    with pytest.raises(InputError, match="n_inputs"):
        planted_truth(names, models, n_inputs=6, folder=tmp_path)


def test_who_falls_for_a_trap() -> None:
    result = planted_truth(["value_zeroing", "attention"], [MODELS["sink, BERT"]], n_inputs=12)
    falls = result.falls()["sink, BERT"]
    assert falls["Raw attention"]
    assert not falls["Value Zeroing (zero)"]
    assert result.summary("auroc").loc["Value Zeroing (zero)", "sink, BERT"] == 1.0
    with pytest.raises((InputError, TypeCheckError), match="measure"):
        result.summary("accuracy")  # type: ignore[arg-type]


def test_signed_scores_count_by_size_and_undefined_methods_are_left_out() -> None:
    result = planted_truth(["logit_contributions", "globenc"], [MODELS["agreement, GPT-2"]], n_inputs=4)
    assert result.summary().loc["Logit contributions", "mean"] == 1.0
    assert "globenc" in result.left_out["agreement, GPT-2"]


def test_inputs_are_of_one_layout_and_differ_in_content() -> None:
    for planted in MODELS.values():
        one = planted.drawn(Random(5))
        assert len(one.ids) == len(one.other)
        sources = {source for _, _, *unit in one.flows for source in unit}
        assert all(one.ids[source] != one.other[source] for source in sources)
