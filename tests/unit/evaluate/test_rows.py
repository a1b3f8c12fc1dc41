"""The target's rows of many examples: each against that method's whole map of that sentence alone."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from support.evaluations import EXAMPLES
from support.models import MOST_ROUTES, build, hf_bert_headless, is_causal, loaded
from support.state import left_as_found, type_checks_off
from torch import Tensor
from tqdm import tqdm

import tl_vzero
from tl_vzero.data.agreement_mini import agreement_examples
from tl_vzero.errors import HeadlessModelError, InputError, InputTypeError, ModelError, PluginError, ScoresError
from tl_vzero.evaluate import rows as rows_module
from tl_vzero.evaluate.rows import random_row, target_rows
from tl_vzero.evaluate.sentences import TokenizedExample, TokenizedSet, tokenize_examples

SLOW = {name for name, method in tl_vzero.METHODS.items() if method.unasked}
WITH_MAPS = [name for name, method in tl_vzero.METHODS.items() if "target" not in method.needs and name != "random"]
SIZES = {name: {"size": True} for name, method in tl_vzero.METHODS.items() if method.signed}
TARGETED = [name for name, method in tl_vzero.METHODS.items() if "target" in method.needs]


def tiny(route: str = "load_model", architecture: str = "bert") -> tuple[Any, TokenizedSet]:
    _, model = build(route, architecture)
    return model, tokenize_examples(model, EXAMPLES, protocol="causal" if is_causal(architecture) else "masked")


def alone(model: Any, method: str, sentence: TokenizedExample, **options: Any) -> Any:
    return tl_vzero.score(model, sentence.encoding.ids, method, **options)


def close(result: Tensor, expected: Tensor) -> bool:
    return torch.allclose(result, expected.double(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", WITH_MAPS)
def test_a_row_is_that_of_the_whole_map(method: str) -> None:
    model, tokenized = tiny()
    options = SIZES.get(method, {})
    named: Any = {"methods": [method], "options": {method: options}}
    result = target_rows(model, tokenized, **named).rows[method]
    raw = target_rows(model, tokenized, normalized=False, layers=[2, 0], **named).rows[method]
    for sentence, row, raw_row in zip(tokenized.examples, result, raw, strict=True):
        whole = alone(model, method, sentence, **options)
        assert close(row, whole.normalized().row(sentence.dest))
        assert close(raw_row, whole.row(sentence.dest)[[2, 0]])


@pytest.mark.parametrize("method", WITH_MAPS)
def test_a_rolled_out_row_is_that_of_the_rollout(method: str) -> None:
    model, tokenized = tiny()
    options = SIZES.get(method, {})
    result = target_rows(model, tokenized, [method], options={method: options}, rolled_out=True).rows[method]
    for sentence, row in zip(tokenized.examples, result, strict=True):
        whole = alone(model, method, sentence, **options)
        assert close(row, (whole if whole.stage == "rollout" else whole.rollout()).row(sentence.dest))


@pytest.mark.parametrize("method", TARGETED)
@pytest.mark.parametrize("logit", ["good", "difference"])
def test_methods_of_a_target_explain_the_right_form(method: str, logit: Any) -> None:
    options = SIZES.get(method, {})
    model, tokenized = tiny(architecture="gpt2" if "logit" in method else "bert")
    result = target_rows(model, tokenized, [method], options={method: options}, logit=logit).rows[method]
    for sentence, row in zip(tokenized.examples, result, strict=True):
        ids = sentence.encoding.good_id if logit == "good" else (sentence.encoding.good_id, sentence.encoding.bad_id)
        whole = alone(model, method, sentence, target=sentence.dest, target_ids=ids, **options)
        assert close(row, whole.normalized().values[:, 0])


@pytest.mark.parametrize(("route", "architecture"), MOST_ROUTES)
def test_every_kind_of_model(route: str, architecture: str) -> None:
    model, tokenized = tiny(route, architecture)
    with left_as_found(model):
        result = target_rows(model, tokenized, ["value_zeroing", "attention"])
    for method, rows in result.rows.items():
        for sentence, row in zip(tokenized.examples, rows, strict=True):
            assert close(row, alone(model, method, sentence).normalized().row(sentence.dest))


def test_calls_hold_few_sentences(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tl_vzero.load_model("agreement-mini")
    tokenized = tokenize_examples(model, agreement_examples()[:5])
    methods = ["value_zeroing", "alti", "gradient_x_input"]
    whole = target_rows(model, tokenized, methods)
    monkeypatch.setattr(rows_module, "SENTENCES_PER_CALL", 2)
    parts = target_rows(model, tokenized, methods)
    for method in methods:
        assert all(map(close, whole.rows[method], parts.rows[method]))


def test_value_zeroing_is_asked_for_one_destination(monkeypatch: pytest.MonkeyPatch) -> None:
    destinations: list[Any] = []
    method = tl_vzero.METHODS["value_zeroing"]
    model, tokenized = tiny()

    def spy(model: Any, inputs: Any, **options: Any) -> Any:
        destinations.append(options["destinations"])
        return method(model, inputs, **options)

    spied = type(method)(spy, "", "", "", ("clean run",), name="value_zeroing")
    monkeypatch.setattr(type(spied), "options", property(lambda self: ("destinations",)))
    monkeypatch.setattr(rows_module, "METHODS", {"value_zeroing": spied})
    target_rows(model, tokenized, ["value_zeroing"])
    assert sorted(destinations) == sorted({(sentence.dest,) for sentence in tokenized.examples})


def test_what_is_undefined_is_left_out_or_refused() -> None:
    model = loaded(hf_bert_headless())
    tokenized = tokenize_examples(model, EXAMPLES[:1])
    assert "no trained prediction head" in target_rows(model, tokenized).left_out["gradient_x_input"]
    with pytest.raises(HeadlessModelError):
        target_rows(model, tokenized, ["gradient_x_input"])
    _, causal = build("load_model", "gpt2")
    tokenized = tokenize_examples(causal, EXAMPLES[:1], protocol="causal")
    assert "norm" in target_rows(causal, tokenized).left_out["globenc"]
    with pytest.raises(ModelError):
        target_rows(causal, tokenized, ["globenc"])


def test_another_packages_method_answers_as_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenized = tiny()
    attention = tl_vzero.METHODS["attention"]
    theirs = {
        "good": type(attention)(attention, "", "", "", name="good"),
        "odd": type(attention)(lambda model, inputs, **options: torch.zeros(1), "", "", "", name="odd"),
    }
    monkeypatch.setattr(rows_module, "METHODS", theirs)
    result = target_rows(model, tokenized, ["good"]).rows["good"]
    assert close(
        result[0], alone(model, "attention", tokenized.examples[0]).normalized().row(tokenized.examples[0].dest)
    )
    with type_checks_off(), pytest.raises(PluginError, match="the method 'odd' gave Tensor"):
        target_rows(model, tokenized, ["odd"])


@pytest.mark.parametrize("rolled_out", [False, True])
def test_by_default_every_method_except_the_slow_ones(rolled_out: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the bar counts every row."""
    model, tokenized = tiny()
    bars: list[Any] = []

    def noted(**options: Any) -> Any:
        bars.append(tqdm(**options))
        return bars[-1]

    monkeypatch.setattr(rows_module, "tqdm", noted)
    result = target_rows(model, tokenized, rolled_out=rolled_out, progress=True)
    (bar,) = bars
    assert bar.n == bar.total == (len(tl_vzero.METHODS) - len(SLOW)) * len(tokenized.examples)
    left_out = {*TARGETED, *SLOW} if rolled_out else SLOW
    assert [*result.rows] == [name for name in tl_vzero.METHODS if name not in left_out]
    assert {*result.left_out} == left_out
    assert result.layers == (0, 1, 2)
    assert result.settings["protocol"] == "masked" and len(result.settings["weights_sha256"]) == 64


def test_random_rows_are_drawn_for_each_example() -> None:
    model, tokenized = tiny()
    twice = TokenizedSet((tokenized.examples[0], *tokenized.examples), "masked")
    first, second, *others = target_rows(model, twice, ["random"]).rows["random"]
    assert not torch.equal(first, second)
    assert all(torch.allclose(row.sum(dim=1), torch.ones(3).double()) for row in (first, second, *others))
    again = target_rows(model, twice, ["random"], options={"random": {"seed": 1}}).rows["random"]
    assert not torch.equal(first, again[0])
    assert torch.equal(second, target_rows(model, twice, ["random", "attention"]).rows["random"][1])


def test_a_random_row_of_a_causal_model_and_its_rollout() -> None:
    row = random_row(6, 3, 2, causal=True, rolled_out=False, normalized=True, seed=(0, 0))
    assert bool((row[:, 4:] == 0).all()) and bool((row[:, :4] > 0).all())
    drawn = np.random.default_rng((0, 0)).random((2, 6, 6))
    maps = drawn / drawn.sum(axis=2, keepdims=True)
    rolled = random_row(6, 3, 2, causal=False, rolled_out=True, normalized=True, seed=(0, 0))
    assert torch.allclose(rolled[0], torch.tensor(maps[0, 3]))
    assert torch.allclose(rolled[1], torch.tensor((maps[1] @ maps[0])[3]))


@pytest.mark.parametrize("as_tensor", [True, False])
def test_settings_name_vectors_and_stay_plain(as_tensor: bool) -> None:
    _, model = build("load_model", "bert")
    examples = tokenize_examples(model, EXAMPLES[:2])
    usual = tl_vzero.mean_values(model, [one.encoding.ids for one in examples.examples])
    options = {"value_zeroing": {"baseline": usual.values if as_tensor else usual}}
    settings = target_rows(model, examples, ["value_zeroing"], options=options).settings["options"]
    assert " (sha256 " in json.loads(json.dumps(settings))["value_zeroing"]["baseline"]


def test_bad_input() -> None:
    model, tokenized = tiny()
    with type_checks_off():
        with pytest.raises(InputError, match=r"unknown method 'alt'.*did you mean 'alti'"):
            target_rows(model, tokenized, ["alt"])
        with pytest.raises(InputError, match="unknown logit 'bad'"):
            target_rows(model, tokenized, logit="bad")  # type: ignore[arg-type]
        with pytest.raises(InputError, match="a rollout goes through all layers"):
            target_rows(model, tokenized, rolled_out=True, layers=[0])
        with pytest.raises(InputError, match="layers holds 7"):
            target_rows(model, tokenized, layers=[7])
        with pytest.raises(InputTypeError, match="seed is str"):
            target_rows(model, tokenized, ["random"], options={"random": {"seed": "a"}})
    with pytest.raises(ScoresError, match="negative values"):
        target_rows(model, tokenized, ["gradient_x_input"], options={"gradient_x_input": {"aggregate": "sum"}})
    with pytest.raises(ScoresError, match="rollout"):
        target_rows(model, tokenized, ["gradient_x_input"], rolled_out=True)
