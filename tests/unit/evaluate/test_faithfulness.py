"""Faithfulness: against scipy's correlation of plain runs; the curves by hand; what has no correlation."""

import json
from typing import Any

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
from tl_vzero.evaluate.blanking import Conventions, blanks_of
from tl_vzero.evaluate.faithfulness import Faithfulness, faithfulness
from tl_vzero.evaluate.sentences import TokenizedExample, tokenize_examples
from tl_vzero.evaluate.statistics import Interval

QUICK = Interval(resamples=20)


def plain_drop(hf_model: Any, each: TokenizedExample, blank: set[int]) -> float:
    ids, good = each.encoding.ids.tolist(), each.encoding.good_id
    masked = [id_of("[MASK]") if position in blank else number for position, number in enumerate(ids)]
    return p_good(hf_model, ids, each.dest, good) - p_good(hf_model, masked, each.dest, good)


def cell(found: Faithfulness, method: str, paradigm: str = "all") -> Any:
    (only,) = [each for each in found.correlations if (each.method, each.paradigm) == (method, paradigm)]
    return only


@pytest.mark.parametrize("change", ["signed", "absolute"])
@pytest.mark.parametrize("special", [False, True])
def test_correlations_are_scipys(change: Any, special: bool) -> None:
    hf_model, model = build("load_model", "bert")
    conventions = Conventions(change=change, special_tokens=special)
    with left_as_found(model):
        found = faithfulness(model, EXAMPLES, ["value_zeroing", "alti"], conventions=conventions, interval=QUICK)
    for method in ("value_zeroing", "alti"):
        rho = []
        for each in tokenize_examples(model, EXAMPLES).examples:
            row = tl_vzero.score(model, each.encoding.ids, method).rollout().row(each.dest)[-1]
            positions = [i for i in range(len(each)) if i != each.dest and (special or 0 < i < len(each) - 1)]
            drops = [plain_drop(hf_model, each, {position}) for position in positions]
            sizes = np.abs(drops) if change == "absolute" else drops
            rho.append(stats.spearmanr(row[positions], sizes).statistic)
        own = cell(found, method)
        assert (own.rho.mean, own.rho.n, own.undefined) == (pytest.approx(np.mean(rho)), 4, 0)
        assert cell(found, method, "plain").rho.mean == pytest.approx(rho[1])
        assert (own.layer, own.rolled_out) == (2, True)


def test_a_layer_without_rollout_and_gradients_at_the_first_block() -> None:
    hf_model, model = build("load_model", "bert")
    methods = ["gradient_x_input", "value_zeroing"]
    own_layer = faithfulness(model, EXAMPLES, methods, layer=1, rolled_out=False, interval=QUICK)
    rolled = faithfulness(model, EXAMPLES, methods, layer=1, interval=QUICK)
    assert [each.method for each in rolled.correlations[:5:4]] == methods
    places = {name: (cell(rolled, name).layer, cell(rolled, name).rolled_out) for name in methods}
    assert places == {"gradient_x_input": (0, False), "value_zeroing": (1, True)}

    def rho(method: str, layer: int, rollout: bool) -> float:
        found = []
        for each in tokenize_examples(model, EXAMPLES).examples:
            positions = [i for i in range(1, len(each) - 1) if i != each.dest]
            if method == "gradient_x_input":
                given = {"target": each.dest, "target_ids": each.encoding.good_id}
                row = tl_vzero.score(model, each.encoding.ids, method, **given).values[layer, 0]
            else:
                scores = tl_vzero.value_zeroing(model, each.encoding.ids)
                row = (scores.rollout() if rollout else scores.normalized()).row(each.dest)[layer]
            drops = [plain_drop(hf_model, each, {position}) for position in positions]
            found.append(stats.spearmanr(row[positions].detach(), drops).statistic)
        return float(np.mean(found))

    assert cell(own_layer, "value_zeroing").rho.mean == pytest.approx(rho("value_zeroing", 1, False))
    assert cell(own_layer, "gradient_x_input").rho.mean == pytest.approx(rho("gradient_x_input", 1, False))
    assert cell(rolled, "value_zeroing").rho.mean == pytest.approx(rho("value_zeroing", 1, True))
    assert cell(rolled, "gradient_x_input").rho.mean == pytest.approx(rho("gradient_x_input", 0, False))


def test_curves_by_hand() -> None:
    hf_model, model = build("load_model", "bert")
    found = faithfulness(model, EXAMPLES, ["attention"], fractions=[0.2, 0.5], interval=QUICK)
    expected: dict[str, list[list[float]]] = {"comprehensiveness": [], "sufficiency": []}
    for each in tokenize_examples(model, EXAMPLES).examples:
        row = tl_vzero.score(model, each.encoding.ids, "attention").rollout().row(each.dest)[-1]
        positions = [i for i in range(1, len(each) - 1) if i != each.dest]
        order = sorted(positions, key=lambda position: row[position].item(), reverse=True)
        tops = [order[: int(np.ceil(share * len(positions)))] for share in (0.2, 0.5)]
        expected["comprehensiveness"].append([plain_drop(hf_model, each, {*top}) for top in tops])
        expected["sufficiency"].append([plain_drop(hf_model, each, {*positions} - {*top}) for top in tops])
    for curve in found.curves:
        if curve.paradigm == "all":
            drops = np.array(expected[curve.kind])
            assert [each.mean for each in curve.drops if each] == pytest.approx(drops.mean(axis=0), abs=1e-6)
            assert curve.aopc is not None and curve.aopc.mean == pytest.approx(drops.mean(), abs=1e-6)
            assert curve.aopc.n == 4
    assert {(curve.kind, curve.paradigm) for curve in found.curves} == {
        (kind, paradigm) for kind in expected for paradigm in ("pp", "plain", "question", "all")
    }
    assert len(found.curves_frame()) == 2 * 4 * 3


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
    found = faithfulness(model, [short, EXAMPLES[0]], ["attention"], interval=QUICK)
    assert (cell(found, "attention", "short").rho, cell(found, "attention", "short").undefined) == (None, 1)
    assert (cell(found, "attention").rho.n, cell(found, "attention").undefined) == (1, 1)
    record = found.to_frame().set_index("paradigm").loc["short"]
    assert record["n"] == 0 and record[["mean", "low", "high"]].isna().all()


def test_constant_rows_have_no_correlation_and_empty_ones_no_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    from tl_vzero.evaluate import rows as rows_module

    _, model = build("load_model", "bert")
    method = tl_vzero.METHODS["hta"]

    def empty(model: Any, inputs: Any, **options: Any) -> Any:
        scored = method.function(model, inputs, **options)
        return [type(each)(**{**vars(each), "values": torch.zeros_like(each.values)}) for each in scored]

    spied = type(method)(empty, "", "", "", ("gradients",))
    monkeypatch.setattr(rows_module, "METHODS", {"hta": spied})
    found = faithfulness(model, EXAMPLES, ["hta"], interval=QUICK)
    assert (cell(found, "hta").rho, cell(found, "hta").undefined) == (None, 4)
    assert all(curve.aopc is None and set(curve.drops) == {None} for curve in found.curves)


def test_the_embedded_model() -> None:
    model = tl_vzero.load_model("agreement-mini")
    examples = agreement_examples()[:60]
    found = faithfulness(model, examples, ["value_zeroing", "random"], interval=QUICK)
    assert found.p_clean > 0.3
    assert cell(found, "value_zeroing").rho.low > cell(found, "random").rho.mean
    aopc = {
        (curve.method, curve.kind): curve.aopc.mean for curve in found.curves if curve.paradigm == "all" and curve.aopc
    }
    assert aopc["value_zeroing", "comprehensiveness"] > aopc["random", "comprehensiveness"]
    assert aopc["value_zeroing", "sufficiency"] < aopc["random", "sufficiency"]


def test_every_method_by_default_and_plain_json() -> None:
    _, model = build("load_model", "bert")
    found = faithfulness(model, EXAMPLES, conventions=Conventions(over="forms", replacement="unk"), interval=QUICK)
    methods = [*dict.fromkeys(each.method for each in found.correlations)]
    assert methods == [name for name in tl_vzero.METHODS if name not in found.left_out]
    assert "gradient_x_input" in methods and "hta" in found.left_out
    read = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert read["settings"]["conventions"] == {
        "replacement": "unk", "change": "signed", "over": "forms", "special_tokens": False
    }  # fmt: skip
    assert read["settings"]["published"] is None


def test_published_correlations_stand_beside() -> None:
    _, model = build("load_model", "bert")
    found = faithfulness(model, EXAMPLES, ["value_zeroing", "random"], training="pretrained", interval=QUICK)
    assert cell(found, "value_zeroing").published == 0.26
    assert cell(found, "value_zeroing", "pp").published is None
    assert cell(found, "random").published is None


def test_a_causal_model() -> None:
    hf_model, model = build("load_model", "gpt2")
    found = faithfulness(
        model,
        EXAMPLES,
        ["value_zeroing"],
        protocol="causal",
        conventions=Conventions(replacement="unk"),
        interval=QUICK,
    )
    (each, *_) = tokenize_examples(model, EXAMPLES, protocol="causal").examples
    ids, good = each.encoding.ids.tolist(), each.encoding.good_id
    drops = [
        p_good(hf_model, ids, 6, good) - p_good(hf_model, [*ids[:i], id_of("[UNK]"), *ids[i + 1 :]], 6, good)
        for i in range(1, 7)
    ]
    row = tl_vzero.value_zeroing(model, each.encoding.ids).rollout().row(6)[-1, 1:]
    third = tokenize_examples(model, EXAMPLES, protocol="causal").examples[2]
    assert cell(found, "value_zeroing", "pp").rho.n == 2 and third.example.id == "pp-1"
    alone = faithfulness(
        model,
        EXAMPLES[:1],
        ["value_zeroing"],
        protocol="causal",
        conventions=Conventions(replacement="unk"),
        interval=QUICK,
    )
    assert cell(alone, "value_zeroing").rho.mean == pytest.approx(stats.spearmanr(row, drops).statistic)
    assert [skipped.id for skipped in found.skipped] == ["question-0"]


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
