"""Faithfulness: against scipy's correlation of plain runs; the curves by hand; what has no correlation."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from scipy import stats
from support.evaluations import EXAMPLES, id_of, p_good
from support.models import build, hf_bert_headless, loaded
from support.state import left_as_found, type_checks_off

import tl_vzero
from tl_vzero.data.agreement_mini import agreement_examples
from tl_vzero.errors import HeadlessModelError, InputError, InputTypeError
from tl_vzero.evaluate.faithfulness import Conventions, Faithfulness, Over, blanks_of, faithfulness
from tl_vzero.evaluate.finetuning import finetune
from tl_vzero.evaluate.sentences import TokenizedExample, tokenize_examples
from tl_vzero.statistics import Interval

QUICK = Interval(resamples=20)


def plain_drop(hf_model: Any, sentence: TokenizedExample, blank: set[int]) -> float:
    ids, good = sentence.encoding.ids.tolist(), sentence.encoding.good_id
    masked = [id_of("[MASK]") if position in blank else token_id for position, token_id in enumerate(ids)]
    return p_good(hf_model, ids, sentence.dest, good) - p_good(hf_model, masked, sentence.dest, good)


def cell(result: Faithfulness, method: str, paradigm: str = "all") -> Any:
    (only,) = [entry for entry in result.correlations if (entry.method, entry.paradigm) == (method, paradigm)]
    return only


@pytest.mark.parametrize("change", ["signed", "absolute"])
@pytest.mark.parametrize("special", [False, True])
def test_correlations_are_scipys(change: Any, special: bool) -> None:
    hf_model, model = build("load_model", "bert")
    conventions = Conventions(change=change, special_tokens=special)
    with left_as_found(model):
        result = faithfulness(model, EXAMPLES, ["value_zeroing", "alti"], conventions=conventions, interval=QUICK)
    for method in ("value_zeroing", "alti"):
        rho = []
        for sentence in tokenize_examples(model, EXAMPLES).examples:
            row = tl_vzero.score(model, sentence.encoding.ids, method).rollout().row(sentence.dest)[-1]
            positions = [
                i for i in range(len(sentence)) if i != sentence.dest and (special or 0 < i < len(sentence) - 1)
            ]
            drops = [plain_drop(hf_model, sentence, {position}) for position in positions]
            sizes = np.abs(drops) if change == "absolute" else drops
            rho.append(stats.spearmanr(row[positions], sizes).statistic)
        entry = cell(result, method)
        assert (entry.rho.mean, entry.rho.n, entry.undefined) == (pytest.approx(np.mean(rho)), 4, 0)
        assert cell(result, method, "plain").rho.mean == pytest.approx(rho[1])
        assert (entry.layer, entry.rolled_out) == (2, True)


def test_a_layer_without_rollout_and_gradients_at_the_first_block() -> None:
    hf_model, model = build("load_model", "bert")
    methods = ["gradient_x_input", "value_zeroing"]
    own_layer = faithfulness(model, EXAMPLES, methods, layer=1, rolled_out=False, interval=QUICK)
    rolled = faithfulness(model, EXAMPLES, methods, layer=1, interval=QUICK)
    assert [entry.method for entry in rolled.correlations[:5:4]] == methods
    places = {name: (cell(rolled, name).layer, cell(rolled, name).rolled_out) for name in methods}
    assert places == {"gradient_x_input": (0, False), "value_zeroing": (1, True)}

    def rho(method: str, layer: int, rollout: bool) -> float:
        rhos = []
        for sentence in tokenize_examples(model, EXAMPLES).examples:
            positions = [i for i in range(1, len(sentence) - 1) if i != sentence.dest]
            if method == "gradient_x_input":
                arguments = {"target": sentence.dest, "target_ids": sentence.encoding.good_id}
                row = tl_vzero.score(model, sentence.encoding.ids, method, **arguments).values[layer, 0]
            else:
                scores = tl_vzero.value_zeroing(model, sentence.encoding.ids)
                row = (scores.rollout() if rollout else scores.normalized()).row(sentence.dest)[layer]
            drops = [plain_drop(hf_model, sentence, {position}) for position in positions]
            rhos.append(stats.spearmanr(row[positions].detach(), drops).statistic)
        return float(np.mean(rhos))

    assert cell(own_layer, "value_zeroing").rho.mean == pytest.approx(rho("value_zeroing", 1, False))
    assert cell(own_layer, "gradient_x_input").rho.mean == pytest.approx(rho("gradient_x_input", 1, False))
    assert cell(rolled, "value_zeroing").rho.mean == pytest.approx(rho("value_zeroing", 1, True))
    assert cell(rolled, "gradient_x_input").rho.mean == pytest.approx(rho("gradient_x_input", 0, False))


def test_curves_by_hand() -> None:
    hf_model, model = build("load_model", "bert")
    result = faithfulness(model, EXAMPLES, ["attention"], fractions=[0.2, 0.5], interval=QUICK)
    expected: dict[str, list[list[float]]] = {"comprehensiveness": [], "sufficiency": []}
    for sentence in tokenize_examples(model, EXAMPLES).examples:
        row = tl_vzero.score(model, sentence.encoding.ids, "attention").rollout().row(sentence.dest)[-1]
        positions = [i for i in range(1, len(sentence) - 1) if i != sentence.dest]
        order = sorted(positions, key=lambda position: row[position].item(), reverse=True)
        tops = [order[: int(np.ceil(share * len(positions)))] for share in (0.2, 0.5)]
        expected["comprehensiveness"].append([plain_drop(hf_model, sentence, {*top}) for top in tops])
        expected["sufficiency"].append([plain_drop(hf_model, sentence, {*positions} - {*top}) for top in tops])
    for curve in result.curves:
        if curve.paradigm == "all":
            drops = np.array(expected[curve.kind])
            assert [drop.mean for drop in curve.drops if drop] == pytest.approx(drops.mean(axis=0), abs=1e-6)
            assert curve.aopc is not None and curve.aopc.mean == pytest.approx(drops.mean(), abs=1e-6)
            assert curve.aopc.n == 4
    assert {(curve.kind, curve.paradigm) for curve in result.curves} == {
        (kind, paradigm) for kind in expected for paradigm in ("pp", "plain", "question", "all")
    }
    assert len(result.curves_frame()) == 2 * 4 * 3


def test_fractions_are_rounded_up_to_tokens() -> None:
    row = np.array([9.0, 0.1, 0.4, 0.3, 0.4, 0.0])
    assert blanks_of(row, [1, 2, 3, 4, 5], [0.1, 0.4, 0.6, 1.0]) == [
        {2}, {2, 4}, {2, 3, 4}, {1, 2, 3, 4, 5}, {1, 3, 4, 5}, {1, 3, 5}, {1, 5}, set()
    ]  # fmt: skip
    assert len(blanks_of(np.arange(10.0), [*range(10)], [0.3])[0]) == 3  # 0.3 * 10 is a little more than 3


def test_what_has_no_correlation_is_counted() -> None:
    """Two tokens to blank are too few."""
    _, model = build("load_model", "bert")
    short = tl_vzero.data.examples.Example("s", "short", ("dog", "is", "near"), 1, "is", "are", (0,), "given")
    result = faithfulness(model, [short, EXAMPLES[0]], ["attention"], interval=QUICK)
    assert (cell(result, "attention", "short").rho, cell(result, "attention", "short").undefined) == (None, 1)
    assert (cell(result, "attention").rho.n, cell(result, "attention").undefined) == (1, 1)
    record = result.to_frame().set_index("paradigm").loc["short"]
    assert record["n"] == 0 and record[["mean", "low", "high"]].isna().all()


def test_constant_rows_have_no_correlation_and_empty_ones_no_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    from tl_vzero.evaluate import rows as rows_module

    _, model = build("load_model", "bert")
    method = tl_vzero.METHODS["hta"]

    def empty(model: Any, inputs: Any, **options: Any) -> Any:
        scored = method(model, inputs, **options)
        return [type(scores)(**{**vars(scores), "values": torch.zeros_like(scores.values)}) for scores in scored]

    spied = type(method)(empty, "", "", "", ("gradients",), name="hta")
    monkeypatch.setattr(rows_module, "METHODS", {"hta": spied})
    result = faithfulness(model, EXAMPLES, ["hta"], interval=QUICK)
    assert (cell(result, "hta").rho, cell(result, "hta").undefined) == (None, 4)
    assert all(curve.aopc is None and set(curve.drops) == {None} for curve in result.curves)


def test_the_embedded_model() -> None:
    model = tl_vzero.load_model("agreement-mini")
    examples = agreement_examples()[:60]
    result = faithfulness(model, examples, ["value_zeroing", "random"], interval=QUICK)
    assert result.p_clean > 0.3
    assert cell(result, "value_zeroing").rho.low > cell(result, "random").rho.mean
    aopc = {
        (curve.method, curve.kind): curve.aopc.mean for curve in result.curves if curve.paradigm == "all" and curve.aopc
    }
    assert aopc["value_zeroing", "comprehensiveness"] > aopc["random", "comprehensiveness"]
    assert aopc["value_zeroing", "sufficiency"] < aopc["random", "sufficiency"]


def test_every_method_by_default_and_plain_json() -> None:
    _, model = build("load_model", "bert")
    result = faithfulness(model, EXAMPLES, conventions=Conventions(over="forms", replacement="unk"), interval=QUICK)
    methods = [*dict.fromkeys(entry.method for entry in result.correlations)]
    assert methods == [name for name in tl_vzero.METHODS if name not in result.left_out]
    assert "gradient_x_input" in methods and "hta" in result.left_out
    read = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert read["settings"]["conventions"] == {
        "replacement": "unk", "change": "signed", "over": "forms", "special_tokens": False
    }  # fmt: skip
    assert read["settings"]["published"] is None


def test_both_conventions_stand_beside_another() -> None:
    _, model = build("load_model", "bert")
    by_over = {
        over: faithfulness(model, EXAMPLES, ["value_zeroing"], conventions=Conventions(over=over), interval=QUICK)
        for over in get_args(Over)
    }
    vocabulary, forms = (cell(by_over[over], "value_zeroing") for over in ("vocabulary", "forms"))
    assert (vocabulary.rho, vocabulary.rho_otherwise) == (forms.rho_otherwise, forms.rho)
    assert vocabulary.rho != forms.rho


def test_a_head_trained_on_two_forms_is_read_over_them(tmp_path: Path) -> None:
    model = tl_vzero.load_model("agreement-mini")
    examples = agreement_examples()[:4]
    tuned = finetune(model, examples, tmp_path, half=None, epochs=1).load()
    assert Conventions().of(model).over == "vocabulary"
    assert faithfulness(tuned, examples, ["random"]).settings["conventions"]["over"] == "forms"
    one_form = [replace(example, bad=None) for example in examples]
    assert cell(faithfulness(model, one_form, ["random"]), "random").rho_otherwise is None


def test_published_correlations_stand_beside() -> None:
    _, model = build("load_model", "bert")
    result = faithfulness(model, EXAMPLES, ["value_zeroing", "random"], training="pretrained", interval=QUICK)
    assert cell(result, "value_zeroing").published == 0.26
    assert cell(result, "value_zeroing", "pp").published is None
    assert cell(result, "random").published is None


def test_a_causal_model() -> None:
    hf_model, model = build("load_model", "gpt2")
    result = faithfulness(
        model,
        EXAMPLES,
        ["value_zeroing"],
        protocol="causal",
        conventions=Conventions(replacement="unk"),
        interval=QUICK,
    )
    (sentence, *_) = tokenize_examples(model, EXAMPLES, protocol="causal").examples
    ids, good = sentence.encoding.ids.tolist(), sentence.encoding.good_id
    drops = [
        p_good(hf_model, ids, 6, good) - p_good(hf_model, [*ids[:i], id_of("[UNK]"), *ids[i + 1 :]], 6, good)
        for i in range(1, 7)
    ]
    row = tl_vzero.value_zeroing(model, sentence.encoding.ids).rollout().row(6)[-1, 1:]
    third = tokenize_examples(model, EXAMPLES, protocol="causal").examples[2]
    assert cell(result, "value_zeroing", "pp").rho.n == 2 and third.example.id == "pp-1"
    alone = faithfulness(
        model,
        EXAMPLES[:1],
        ["value_zeroing"],
        protocol="causal",
        conventions=Conventions(replacement="unk"),
        interval=QUICK,
    )
    assert cell(alone, "value_zeroing").rho.mean == pytest.approx(stats.spearmanr(row, drops).statistic)
    assert [skipped.id for skipped in result.skipped] == ["question-0"]


def test_bad_input() -> None:
    _, model = build("load_model", "bert")
    with pytest.raises(HeadlessModelError):
        faithfulness(loaded(hf_bert_headless()), EXAMPLES)
    one_form = [type(EXAMPLES[0])("x", "x", ("dog", "is"), 1, "is", None, (0,), "given")]
    with type_checks_off():
        with pytest.raises(InputError, match="1 of 1 examples have no wrong form, first x"):
            faithfulness(model, one_form, conventions=Conventions(over="forms"))
        with pytest.raises(InputError, match="layer is 3: expected 0 to 2"):
            faithfulness(model, EXAMPLES, layer=3)
        with pytest.raises(InputTypeError, match="layer is str"):
            faithfulness(model, EXAMPLES, layer="last")  # type: ignore[arg-type]
        with pytest.raises(InputError, match="fractions hold 20"):
            faithfulness(model, EXAMPLES, fractions=[20])
        with pytest.raises(InputTypeError, match="fractions is float"):
            faithfulness(model, EXAMPLES, fractions=0.2)  # type: ignore[arg-type]
        with pytest.raises(InputError, match="methods is empty"):
            faithfulness(model, EXAMPLES, [])
