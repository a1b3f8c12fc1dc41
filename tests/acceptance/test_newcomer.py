"""The session of a newcomer, from top to bottom: what one types without having read anything, and what comes back."""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from support.state import type_checks_off

import tl_vzero

TEXT = "the pictures of some hat [MASK] scaring marcus."
TOKENS = "[CLS] the pictures of some hat [MASK] scaring marcus . [SEP]".split()


@pytest.fixture(scope="module")
def model() -> Any:
    return tl_vzero.load_model("agreement-mini")


@pytest.fixture(scope="module")
def scores(model: Any) -> tl_vzero.Scores:
    return tl_vzero.value_zeroing(model, TEXT)


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What a notebook shows of a result."""
    ipython = ModuleType("IPython")
    ipython.get_ipython = lambda: SimpleNamespace(kernel=object())  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setattr(tl_vzero.plot.export, "_loaded_for", {id(None)})
    monkeypatch.setattr(tl_vzero.plot.export.pio.renderers["notebook"], "activate", lambda: None)

    def shown(result: Any) -> str:
        if hasattr(result, "_repr_mimebundle_"):
            return str(result._repr_mimebundle_()["text/html"])
        return str(result._repr_html_())

    return shown


def test_1_a_models_name_in_place_of_the_model() -> None:
    for call in (tl_vzero.value_zeroing, tl_vzero.compare, tl_vzero.zero_ablation, tl_vzero.head_importance):
        with type_checks_off(), pytest.raises(tl_vzero.TLVZeroError) as told:
            call("agreement-mini", TEXT)
        assert "tl_vzero.load_model('agreement-mini')" in str(told.value)


def test_2_what_are_these_scores(scores: tl_vzero.Scores) -> None:
    text = repr(scores)
    assert "\n" not in text and len(text) < 300
    for part in (
        "value_zeroing",
        "agreement-mini",
        "raw",
        "4 layers",
        "the pictures of some hat [MASK]",
        "layer 1 tells most of '[MASK]'",
    ):
        assert part in text
    assert scores.tokens == tuple(TOKENS)
    assert scores.shape == (4, 11, 11)


def test_3_the_row_of_a_token_by_its_text(scores: tl_vzero.Scores) -> None:
    assert torch.equal(scores["[MASK]"], scores.values[:, 6])
    assert torch.equal(scores[6], scores.values[:, 6])
    assert torch.equal(scores[-5], scores.values[:, 6])


def test_4_one_entry_in_every_layer(scores: tl_vzero.Scores) -> None:
    assert torch.equal(scores[6, "pictures"], scores.values[:, 6, 2])
    assert torch.equal(scores["[MASK]", 2], scores.values[:, 6, 2])


def test_5_numpy(scores: tl_vzero.Scores) -> None:
    assert np.array_equal(np.asarray(scores), scores.values.numpy())
    assert np.asarray(scores, dtype=np.float64).dtype == np.float64
    assert np.mean(scores) == pytest.approx(scores.values.mean().item())
    with pytest.raises(TypeError, match="not iterable"):
        list(scores)  # type: ignore[call-overload]


def test_6_which_tokens_does_the_mask_draw_on(scores: tl_vzero.Scores) -> None:
    table = scores.top("[MASK]", k=2, layer=1)
    assert list(table.columns) == ["layer", "source", "share"]
    assert table["source"].tolist()[0] == "pictures"
    assert table["share"].tolist() == sorted(scores.normalized().values[1, 6].tolist(), reverse=True)[:2]
    every = scores.top("[MASK]")
    assert every["layer"].tolist() == [0] * 5 + [1] * 5 + [2] * 5 + [3] * 5


def test_7_one_layer_as_a_table(scores: tl_vzero.Scores) -> None:
    table = scores.matrix(1)
    assert list(table.index) == list(table.columns) == TOKENS
    assert table.loc["[MASK]", "pictures"] == scores.values[1, 6, 2].item()


def test_8_a_picture(scores: tl_vzero.Scores) -> None:
    figure = scores.plot()
    assert figure.layout.title.text == "Value Zeroing: shares of each row, agreement-mini"
    assert figure.layout.sliders[0].active == scores.telling_layer("[MASK]") == 1
    assert figure.data[0].z[6][2] == pytest.approx(scores.normalized()[6, 2][1].item(), abs=1e-5)


def test_9_the_difference_of_two_methods(model: Any, scores: tl_vzero.Scores) -> None:
    attention = tl_vzero.score(model, TEXT, method="attention")
    difference = scores.normalized() - attention.normalized()
    assert difference.stage == "difference"
    shares = attention.values / attention.values.sum(-1, keepdim=True)
    assert torch.allclose(difference.values, scores.normalized().values - shares, atol=1e-6)
    scale = difference.plot().layout.coloraxis
    assert scale.cmin == -scale.cmax < 0
    assert scale.colorscale[len(scale.colorscale) // 2][1] == tl_vzero.plot.LIGHT.diverging[4]
    for other, reason in (
        (attention, "stage 'normalized' and 'raw'"),
        (attention.normalized().at_layer(1), r"layers \(0, 1, 2, 3\) and \(1,\)"),
        (tl_vzero.value_zeroing(model, "the authors [MASK] today.").normalized(), "as many words"),
    ):
        with pytest.raises(tl_vzero.TLVZeroError, match=reason):
            scores.normalized() - other
    with type_checks_off(), pytest.raises(TypeError, match="expected Scores"):
        scores - 1  # type: ignore[operator]


def test_10_tokens_wherever_positions_are_taken(model: Any, scores: tl_vzero.Scores) -> None:
    part = tl_vzero.value_zeroing(model, TEXT, destinations="[MASK]", sources=["pictures", "hat"])
    assert torch.equal(part.values, scores.values[:, [6]][:, :, [2, 5]])
    joint = tl_vzero.value_zeroing(model, TEXT, spans=[["some", "hat"]])
    assert joint.src_tokens == ("some hat",)
    assert tl_vzero.zero_ablation(model, TEXT, target="hat").target == 5
    assert tl_vzero.compare(model, TEXT, ["value_zeroing"], target="hat").target == 5  # type: ignore[union-attr]
    assert tl_vzero.score(model, TEXT, "gradient_x_input", target="hat").dest_tokens == ("hat",)  # type: ignore[union-attr]


def test_11_a_slip_of_the_pen(model: Any, scores: tl_vzero.Scores) -> None:
    for call in (
        lambda: scores["picture"],
        lambda: scores.top("Pictures"),
        lambda: scores[6, "pictuers"],
        lambda: tl_vzero.value_zeroing(model, TEXT, sources=["picture"]),
        lambda: tl_vzero.zero_ablation(model, TEXT, target="picture"),
    ):
        with pytest.raises(tl_vzero.TLVZeroError, match=r"did you mean 'pictures'\?"):
            call()
    twice = tl_vzero.value_zeroing(model, "the author near the hats [MASK] today.")
    with pytest.raises(tl_vzero.TLVZeroError, match="'the' occurs 2 times, at positions 1, 4"):
        twice["the"]
    with type_checks_off(), pytest.raises(TypeError, match="slice"):
        scores[1:3]  # type: ignore[index]
    for name in ("scores.json", "scores.pt", "scores.csv", "scores.npy"):
        with pytest.raises(tl_vzero.TLVZeroError, match=r"ends in \.safetensors; for JSON there is to_dict\(\)"):
            scores.save(name)


def test_12_a_notebook_shows_every_result(model: Any, scores: tl_vzero.Scores, notebook: Any) -> None:
    assert "Value Zeroing: shares of each row, agreement-mini" in notebook(scores)
    compared = tl_vzero.compare(model, TEXT, ["value_zeroing", "attention"])
    assert "<table" in notebook(compared) and "attention" in notebook(compared)
    effects = [
        tl_vzero.zero_ablation(model, TEXT),
        tl_vzero.attribution_patching(model, TEXT),
        tl_vzero.value_patching(model, TEXT, TEXT.replace("pictures", "picture")),
    ]
    for effect in effects:
        assert "Plotly.newPlot" in notebook(effect)
        assert "[MASK]" in repr(effect) and len(repr(effect)) < 300
    assert "<table" in notebook(tl_vzero.zero_ablation(model, TEXT, per_head=True))
    assert "<table" in notebook(tl_vzero.agreement(scores, effects[0]))
