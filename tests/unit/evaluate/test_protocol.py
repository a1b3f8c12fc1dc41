"""The whole protocol: its parts, going on after an interruption, what it refuses, and what it says."""

import json
from math import isnan, nan
from pathlib import Path
from typing import Any

import pytest
from support.blimp import ABSENT, FOLDER
from support.evaluated import alignment, faithfulness, mass, probing, removal, reproduction
from support.models import hf_gpt2, loaded
from support.state import left_as_found

import tl_vzero
from tl_vzero.errors import DependencyError, FileFormatError, InputError, InputTypeError, ModelError, OutputPathError
from tl_vzero.evaluate import protocol
from tl_vzero.evaluate.cue_alignment import cue_alignment
from tl_vzero.evaluate.findings import findings, findings_by_baseline
from tl_vzero.evaluate.protocol import Baselines, Controls, Link, Reproduction, reproduce
from tl_vzero.evaluate.results import OPTIONS, open_store
from tl_vzero.evaluate.sentences import sentences_for
from tl_vzero.files import from_plain, to_plain
from tl_vzero.models.facts import Facts, facts_of, remember
from tl_vzero.report.reproduction_page import render_reproduction
from tl_vzero.statistics import Correlation, Estimate

LIMIT = 4


@pytest.fixture(scope="module")
def model() -> Any:
    return tl_vzero.load_model("agreement-mini")


@pytest.fixture(scope="module")
def finished(model: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Reproduction]:
    folder = tmp_path_factory.mktemp("reproduction")
    with left_as_found(model):
        result = reproduce(model, limit=LIMIT, seed=2, folder=folder)
    return folder, result


def verdict_of(result: Reproduction, claim: str) -> str:
    (one,) = [finding for finding in findings(result) if finding.claim.startswith(claim)]
    return one.verdict


def test_its_cue_alignment_is_that_of_the_evaluation_alone(model: Any, finished: tuple[Path, Reproduction]) -> None:
    examples = sentences_for(model, limit=LIMIT, seed=2).examples
    alone = cue_alignment(model, examples, ["value_zeroing", "attention"], seed=2)
    whole = {(c.method, c.layer, c.paradigm, c.measure): c for c in finished[1].alignment.cells}
    for cell in alone.cells:
        of_whole = whole[cell.method, cell.layer, cell.paradigm, cell.measure]
        assert (of_whole.aligned.mean, of_whole.chance) == pytest.approx((cell.aligned.mean, cell.chance))


def test_it_has_every_method_control_and_count(finished: tuple[Path, Reproduction]) -> None:
    result = finished[1]
    methods = {cell.method for cell in result.alignment.cells}
    signed = {name for name, method in tl_vzero.METHODS.items() if method.signed}
    assert methods == set(tl_vzero.METHODS) - signed and {*result.alignment.left_out} == signed
    assert result.cue_check is not None and result.cue_check.counts[-1].parsed == LIMIT
    assert {share.method for share in result.mass.shares} == methods
    assert result.knockout is not None and {row.method for row in result.knockout.correlations} >= {"alti", "random"}
    assert result.removal is not None and result.removal.times
    assert result.faithfulness is not None and result.accuracy is not None and result.accuracy.n == LIMIT
    assert result.controls.random_alignment is not None and result.controls.distances is not None
    assert result.baselines.names == ("mean", "corpus mean", "optimised")
    assert {row.method for row in result.baselines.faithfulness.correlations} == {
        f"value_zeroing, {name}" for name in result.baselines.names
    }
    assert result.metadata["evaluated_n"] == LIMIT and result.metadata["filters"][0]["kept"]
    assert result.probing is None and "at least 188" in result.missing["probing"]
    written = json.dumps(result.to_dict(), allow_nan=False)
    assert json.loads(written)["metadata"]["seed"] == 2
    assert all(len(table) for name, table in result.frames().items() if name != "cue_disagreements")


def test_a_second_run_reads_what_is_there(model: Any, finished: tuple[Path, Reproduction], tmp_path: Path) -> None:
    folder, first = finished
    stopped = tmp_path / "stopped"
    parts = stopped / "parts"
    parts.mkdir(parents=True)
    for path in (folder / "parts").iterdir():
        if path.name != "distances.json":
            (parts / path.name).write_bytes(path.read_bytes())
    computed: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        by_distance = protocol.rows_by_distance
        patch.setattr(
            protocol, "rows_by_distance", lambda *a, **k: computed.append("distances") or by_distance(*a, **k)
        )
        patch.setattr(protocol._Parts, "scored", lambda *a, **k: computed.append("rows"))
        patch.setattr(protocol, "faithfulness", lambda *a, **k: computed.append("faithfulness"))
        again = reproduce(model, limit=LIMIT, seed=2, folder=stopped)
    assert computed == ["distances"]
    assert again.to_dict() == first.to_dict()


def test_an_interruption_leaves_the_finished_parts(model: Any, tmp_path: Path) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, left_as_found(model):
        patch.setattr(protocol, "SLOW", {})
        patch.setattr(protocol, "faithfulness", stop)
        with pytest.raises(KeyboardInterrupt):
            reproduce(model, limit=2, folder=tmp_path)
    finished = {path.stem for path in (tmp_path / "parts").iterdir()}
    assert finished == {"options", "scores", "cues", "accuracy", "probing", "probing-paper"}


def test_a_folder_of_other_options_is_refused(model: Any, finished: tuple[Path, Reproduction]) -> None:
    with pytest.raises(InputError, match="seed was 2, is 3"):
        reproduce(model, limit=LIMIT, seed=3, folder=finished[0])


def test_without_a_trained_head_or_a_parser_parts_are_missing_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_parser() -> None:
        raise DependencyError("no English dependency parser")

    monkeypatch.setattr("tl_vzero.data.own_file.english_parser", no_parser)
    headless = tl_vzero.load_model("agreement-mini")
    facts = facts_of(headless)
    remember(headless, Facts(facts.name, facts.tokenizer, "absent"))
    result = reproduce(headless, limit=2)
    assert (
        result.faithfulness is None and result.knockout is None and result.removal is None and result.accuracy is None
    )
    assert "no trained prediction head" in result.missing["faithfulness"]
    assert result.cue_check is None and result.missing["cues"] == "no English dependency parser"
    assert verdict_of(result, "Value Zeroing, rolled out") == "not measured"


def test_bad_arguments_are_refused_before_any_work(model: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is causal"):
        reproduce(loaded(hf_gpt2()), limit=4)
    with pytest.raises(InputError, match="limit is 0"):
        reproduce(model, limit=0)
    with pytest.raises(InputTypeError, match="seed is bool"):
        reproduce(model, seed=True)
    with pytest.raises(FileFormatError, match="no folder"):
        reproduce(model, blimp=tmp_path / "none")
    with pytest.raises(InputError, match="without a folder"):
        reproduce(model, fine_tuned=True, limit=4)


def test_a_store_keeps_parts_and_refuses_what_is_not_its_own(tmp_path: Path) -> None:
    store = open_store(tmp_path / "new", {"seed": 0})
    value = Estimate(0.5, nan, 1.0, 1)
    assert isnan(store.part("one", Estimate, lambda: value).low)
    assert open_store(tmp_path / "new", {"seed": 0}).part("one", Estimate, lambda: 1 / 0).mean == 0.5  # type: ignore[arg-type, return-value]
    (tmp_path / "new" / "one.json").write_text("{", encoding="utf-8")
    with pytest.raises(FileFormatError, match="delete it"):
        store.part("one", Estimate, lambda: value)
    (tmp_path / "new" / "one.json").write_text("{}", encoding="utf-8")
    with pytest.raises(FileFormatError, match="is no Estimate"):
        store.part("one", Estimate, lambda: value)
    whole = {"mean": 0.5, "low": None, "high": 1.0, "n": 1, "confidence": 0.95}
    for change in ({"n": "1"}, {"n": 1.0}, {"n": True}, {"mean": "0.5"}, {"mean": [0.5]}, {"high": {}}, {"n": None}):
        (tmp_path / "new" / "one.json").write_text(json.dumps(whole | change), encoding="utf-8")
        with pytest.raises(FileFormatError, match="is no Estimate"):
            store.part("one", Estimate, lambda: value)
    for text in ("[" * 200_000, "9" * 5000, '{"n": NaN}', '{"n": 1, "n": 2}'):
        (tmp_path / "new" / "one.json").write_text(text, encoding="utf-8")
        with pytest.raises(FileFormatError, match="delete it"):
            store.part("one", Estimate, lambda: value)
    (tmp_path / "new" / OPTIONS).write_text("[", encoding="utf-8")
    with pytest.raises(FileFormatError, match="cannot be read"):
        open_store(tmp_path / "new", {"seed": 0})
    other = tmp_path / "other"
    other.mkdir()
    (other / "diary.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(OutputPathError, match="holds files"):
        open_store(other, {})
    with pytest.raises(OutputPathError, match="cannot make the folder"):
        open_store(other / "diary.txt", {})
    assert [path.name for path in other.iterdir()] == ["diary.txt"]


@pytest.mark.parametrize(
    "result",
    [
        alignment({"value_zeroing": [0.1, 0.2]}, published={"value_zeroing": [0.1, 0.1]}),
        mass({"attention": (0.2,) * 5}),
        probing([1.0, 2.0]),
        faithfulness({"value_zeroing": 0.4, "attention": None}),
        removal({"value_zeroing": 0.4, "attention": None}),
    ],
    ids=lambda result: type(result).__name__,
)
def test_results_come_back_from_json_as_they_were(result: Any) -> None:
    assert from_plain(type(result), json.loads(json.dumps(to_plain(result)))) == result


def test_findings_follow_the_numbers_whoever_wins() -> None:
    won = reproduction()
    assert verdict_of(won, "Value Zeroing lies on the cue more than every other method (dot") == "agrees"
    assert verdict_of(won, "Value Zeroing lies on the cue more than chance") == "agrees"
    assert verdict_of(won, "Raw attention lies on the cue less") == "agrees"
    assert verdict_of(won, "Value Zeroing, rolled out") == "agrees"
    assert verdict_of(won, "Raw attention lies on special tokens") == "agrees"
    assert verdict_of(won, "Random scores") == "agrees"
    swapped = alignment({"value_zeroing": [0.05] * 3, "attention": [0.3] * 3, "random": [0.3] * 3})
    lost = reproduction(
        alignment=swapped,
        faithfulness=faithfulness({"value_zeroing": 0.1, "attention": 0.4}),
        mass=mass({"attention": (0.6, 0.1, 0.1, 0.1, 0.1)}),
        mass_with_attractor=mass({"value_zeroing": (0.1, 0.4, 0.1, 0.2, 0.2)}),
        controls=Controls(
            alignment({"value_zeroing": [0.3] * 3}),
            probing([3.0] * 4),
            alignment({"value_zeroing, cosine": [0.1, 0.2, 0.3], "value_zeroing, euclidean": [0.3, 0.2, 0.1]}),
        ),
        probing=probing([2.0, 2.0, 1.5, 1.0]),
    )
    undecided = {"gradient_x_input", "integrated_gradients", "deep_lift", "Over layers"}
    for finding in findings(lost):
        if not any(finding.claim.startswith(name) for name in undecided):
            expected = "undecided" if "another word drawn" in finding.claim else "does not agree"
            assert finding.verdict == expected, finding


def test_claims_that_hang_on_the_baseline() -> None:
    name = "value_zeroing, mean"
    run = reproduction(
        baselines=Baselines(
            alignment=alignment({name: [0.05] * 3}),
            mass=mass({name: (0.4, 0.1, 0.1, 0.2, 0.2)}),
            mass_with_attractor=mass({name: (0.4, 0.1, 0.1, 0.2, 0.2)}),
            faithfulness=faithfulness({name: 0.05}),
        )
    )
    flips = {row.claim: row.flips for row in findings_by_baseline(run)}
    led = "Value Zeroing lies on the cue more than every other method (dot product)"
    assert flips[led] == flips["Value Zeroing, rolled out, ranks tokens more like blank-out than every other method"]
    assert flips[led] == ("mean",)
    assert flips["Value Zeroing lies on the cue more than on an attractor"] == ()
    # What is compared with a control under zero has no verdict under another baseline.
    assert not any("random weights" in claim or "distances" in claim for claim in flips)
    assert findings_by_baseline(reproduction()) == ()
    page = render_reproduction(run)
    assert "Which claims hang on zero" in page and "does not agree ≠" in page


def test_overlapping_intervals_decide_nothing() -> None:
    near = reproduction(
        alignment=alignment({"value_zeroing": [0.105] * 3, "attention": [0.1] * 3}),
        faithfulness=faithfulness({"value_zeroing": 0.105, "attention": 0.1}),
    )
    assert verdict_of(near, "Value Zeroing lies on the cue more than every other method (dot") == "undecided"
    assert verdict_of(near, "Value Zeroing, rolled out") == "undecided"


def test_a_correlation_over_few_layers_is_called_weak() -> None:
    def link(method: str, low: float, value: float, high: float, n: int = 4) -> Link:
        both = [Correlation(value, low, high, n, kind) for kind in ("pearson", "spearman")]
        return Link(method, "dot", *both)

    result = reproduction(links=(link("value_zeroing", 0.2, 0.9, 1.0), link("attention", -0.5, 0.95, 1.0)))
    (one,) = [finding for finding in findings(result) if finding.claim.startswith("Over layers")]
    assert one.verdict == "undecided"
    assert "4 layers are weak evidence" in one.evidence and "attention has most, 0.95" in one.evidence
    for n, verdict in ((4, "undecided"), (12, "agrees")):
        clear = (link("value_zeroing", 0.8, 0.9, 1.0, n), link("attention", 0.1, 0.3, 0.5, n))
        assert verdict_of(reproduction(links=clear), "Over layers") == verdict
    lost = (link("value_zeroing", 0.1, 0.3, 0.5, 12), link("attention", 0.8, 0.9, 1.0, 12))
    assert verdict_of(reproduction(links=lost), "Over layers") == "does not agree"


def test_published_figures_are_compared_where_the_model_is_the_same() -> None:
    means = {"value_zeroing": [0.1, 0.2, 0.3], "attention": [0.1, 0.1, 0.1]}
    near = reproduction(alignment=alignment(means, published=means))
    assert verdict_of(near, "The dot products are those that were published") == "agrees"
    far = {method: [value + 0.1 for value in values] for method, values in means.items()}
    assert verdict_of(reproduction(alignment=alignment(means, published=far)), "The dot products") == "does not agree"
    assert not [finding for finding in findings(reproduction()) if finding.claim.startswith("The dot products")]


@pytest.mark.skipif(not FOLDER.is_dir(), reason=ABSENT)
def test_blimp_is_evaluated_on_the_test_half() -> None:
    chosen = sentences_for(tl_vzero.load_model("all-MiniLM-L6-v2"), blimp=FOLDER, limit=10, seed=1)
    assert chosen.source == "BLiMP"
    assert list(chosen.examples.counts().values()) == [2] * 5
