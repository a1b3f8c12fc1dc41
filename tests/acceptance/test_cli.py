"""The command line as a user meets it."""

import json
import os
import re
import shlex
import subprocess
import sys
import time
import webbrowser
from pathlib import Path
from queue import Queue
from typing import Any

import pandas as pd
import pytest
import torch
import typer
from typer.testing import CliRunner

import tl_vzero
from tl_vzero import cli
from tl_vzero.cli import app
from tl_vzero.registry import Method

RUNNER = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"})
DEFAULT_TEXT = "the pictures of some hat [MASK] scaring marcus."


def run(*words: str | Path) -> tuple[int, str]:
    result = RUNNER.invoke(app, [str(word) for word in words])
    return result.exit_code, result.output


def test_help_is_quick_and_imports_no_torch() -> None:
    script = "import sys; sys.argv = ['tl-vzero', '--help']\nfrom tl_vzero.cli import main\ntry:\n    main()\n"
    script += "except SystemExit as end:\n    assert not end.code\nassert 'torch' not in sys.modules"
    times = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    assert min(times) < 1.5


def test_a_warning_is_a_line_of_text() -> None:
    code, output = run("map", "zork blarf gronkify", "--quiet")
    assert code == 0
    (line,) = [line for line in output.splitlines() if line.startswith("warning")]
    assert line.startswith("warning: the input: 3 of 3 tokens are unknown")
    assert "2 blarf (unknown)" in output and "[SEP] (unknown)" not in output
    assert "InputWarning" not in output and "Traceback" not in output


def test_values_are_made_and_put_in(tmp_path: Path) -> None:
    texts, mean, best = tmp_path / "two.txt", tmp_path / "mean.safetensors", tmp_path / "best.safetensors"
    texts.write_text("the authors near the hat [MASK] today.\nthe author [MASK] today.\n")
    assert run("values", texts, "--out", mean, "--quiet") == (0, f"wrote {mean}: mean of 2 texts, 13 positions\n")
    assert run("values", texts, "--out", best, "--optimise", "--steps", "1", "--quiet")[0] == 0
    model = tl_vzero.load_model("agreement-mini")
    for command in (["map", "--stage", "raw"], ["compare", "--method", "value_zeroing"]):
        for baseline in ("mean", mean, best):
            numbers = tmp_path / "map.json"
            code, output = run(*command, "--baseline", baseline, "--json", numbers, "--quiet")
            assert code == 0, output
            written = json.loads(numbers.read_text())
            written = written.get("scores", {"value_zeroing": written})["value_zeroing"]
            values = "mean" if baseline == "mean" else tl_vzero.BaselineValues.load(baseline)
            expected = tl_vzero.value_zeroing(model, DEFAULT_TEXT, baseline=values)
            torch.testing.assert_close(torch.tensor(written["values"]), expected.values)
            assert written["metadata"]["options"]["baseline"] == expected.metadata["options"]["baseline"]
    assert run("heads", "--baseline", mean, "--quiet")[0] == 0
    assert run("diff", "--compare-method", "attention", "--baseline", mean, "--quiet")[0] == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["map", "--baseline", "men"], "unknown --baseline 'men': expected one of zero, mean, a file"),
        (
            ["report", "--baseline", "none.safetensors"],
            "no file none.safetensors: expected a file written by `tl-vzero values`",
        ),
        (["map", "--baseline", "mean", "--method", "alti"], "alti zeroes no values"),
        (["diff", "--baseline", "mean", "--method", "alti", "--compare-method", "attention"], "neither method"),
        (["values", __file__, "--format", "text", "--out", "mean.pt"], "ends in .safetensors"),
        (["values", __file__, "--format", "text", "--out", "mean.safetensors", "--target", "1"], "a mean needs none"),
    ],
)
def test_what_is_no_baseline_is_refused_before_a_model_is_loaded(
    words: list[str], message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tl_vzero, "load_model", None)
    code, output = run(*words)
    assert code == 2 and message in output
    assert list(tmp_path.iterdir()) == []


def test_report_writes_a_page_and_its_numbers(tmp_path: Path) -> None:
    page, numbers = tmp_path / "report.html", tmp_path / "report.json"
    code, output = run("report", "--out", page, "--json", numbers, "--quiet")
    assert code == 0
    assert str(page) in output
    assert "<html" in page.read_text(encoding="utf-8")
    assert page.stat().st_size < 6_000_000
    written = json.loads(numbers.read_text(encoding="utf-8"))
    scores = tl_vzero.value_zeroing(tl_vzero.load_model("agreement-mini"), DEFAULT_TEXT)
    plain = json.dumps(written)
    assert DEFAULT_TEXT in plain
    raw = written["value_zeroing"]["pieces"]["raw"]
    assert torch.allclose(torch.tensor(raw), scores.values, rtol=1e-5)


def test_report_puts_a_second_sentence_beside(tmp_path: Path) -> None:
    numbers = tmp_path / "report.json"
    words = ("--compare", "the authors [MASK] today.", "--compare-model", "agreement-mini", "--method", "attention")
    assert run("report", *words, "--out", tmp_path / "report.html", "--json", numbers, "--quiet")[0] == 0
    assert json.loads(numbers.read_text())["beside"]["text"] == "the authors [MASK] today."


def test_report_shows_chosen_destinations_alone(tmp_path: Path) -> None:
    files = ["--out", tmp_path / "report.html", "--json", tmp_path / "report.json", "--csv", tmp_path / "report.csv"]
    assert run("report", "--destination", "[MASK]", "--destination", 1, *files, "--quiet")[0] == 0
    rows = json.loads((tmp_path / "report.json").read_text())["rows"]
    assert "[MASK]" in rows["dest_tokens"] and 1 in rows["dest_positions"] and len(rows["dest_tokens"]) == 2
    assert (tmp_path / "report.csv").read_text().startswith("layer,dest,src,value,")
    code, output = run("report", "--destination", 1, "--method", "alti", "--out", tmp_path / "report.html")
    assert code == 2 and "the page of chosen destinations does not show it" in output


def test_report_has_heads_if_asked(tmp_path: Path) -> None:
    numbers = tmp_path / "report.json"
    files = ["--out", tmp_path / "report.html", "--json", numbers]
    assert run("report", "--heads", *files, "--quiet")[0] == 0
    assert len(json.loads(numbers.read_text())["heads"]["share"]) == 4


def test_report_takes_methods_words_and_a_corrupted_sentence(tmp_path: Path) -> None:
    numbers = tmp_path / "report.json"
    words = ["--good", "are", "--bad", "is", "--corrupted", DEFAULT_TEXT.replace("pictures", "picture")]
    files = ["--out", tmp_path / "report.html", "--json", numbers]
    code, _ = run("report", "--method", "hta", "--method", "alti", *words, *files, "--quiet")
    assert code == 0
    written = json.loads(numbers.read_text(encoding="utf-8"))
    assert list(written["methods"]) == ["value_zeroing", "hta", "alti", "attention"]
    assert list(written["effects"]) == ["zero_ablation", "attribution_patching", "value_patching"]
    assert {described["metric"] for described in written["effects"].values()} == {"logit of 'are' minus logit of 'is'"}


def test_map_prints_top_sources_and_writes_json_csv_and_html(tmp_path: Path) -> None:
    numbers, table, page = tmp_path / "map.json", tmp_path / "map.csv", tmp_path / "map.html"
    files = ["--json", numbers, "--csv", table, "--html", page]
    code, output = run("map", "--layer", "1", "--words", *files, "--quiet")
    assert code == 0
    assert "layer 1, value_zeroing, normalized" in output
    assert "6 [MASK]   ← pictures 84 %, marcus 8 %, [SEP] 3 %, scaring 1 %, rest 4 %" in output.splitlines()
    assert f"wrote {table}" in output
    frame = pd.read_csv(table)
    (share,) = frame[(frame["dest_token"] == "[MASK]") & (frame["src_token"] == "pictures")]["value"]
    assert round(share, 2) == 0.84
    written = json.loads(numbers.read_text(encoding="utf-8"))
    assert written["layers"] == [1]
    assert all(abs(sum(row) - 1) < 1e-5 for row in written["values"][0])
    assert "plotly" in page.read_text(encoding="utf-8")


def test_the_sources_of_a_line_are_the_largest_of_its_row_and_add_up() -> None:
    text = "the hat near the authors [MASK] today."
    _, output = run("map", text, "--layer", "2", "--quiet")
    scores = tl_vzero.value_zeroing(tl_vzero.load_model("agreement-mini"), text).normalized()
    lines = [line for line in output.splitlines() if "←" in line]
    assert len(lines) == len(scores.dest_tokens)
    for line, row in zip(lines, scores.values[2], strict=True):
        named = {}
        for part in line.partition("← ")[2].split(", "):
            name, percent = part.removesuffix(" %").rsplit(" ", 1)
            named[name] = int(percent) / 100
        largest = sorted(row.tolist(), reverse=True)
        rest = named.pop("rest", 0)
        assert list(named.values()) == pytest.approx(largest[: len(named)], abs=0.006)
        assert rest == pytest.approx(sum(largest[len(named) :]), abs=0.006)
    # "the" stands there twice: its place is said.
    assert "1 the" in output and "4 the" in output and "← the" not in output and ", the" not in output


@pytest.mark.parametrize("stage", ["raw", "normalized", "rollout"])
def test_the_whole_map_has_fixed_decimals(stage: str) -> None:
    code, output = run("map", "the authors [MASK] today.", "--layer", "1", "--full", "--stage", stage, "--quiet")
    assert code == 0
    title, head, *rows = output.splitlines()
    assert title == f"layer 1, value_zeroing, {stage}" and head.split()[:3] == ["[CLS]", "the", "authors"]
    cells = [cell for row in rows for cell in row.split()[2:]]
    assert len(rows) == 7 and len({len(cell.partition(".")[2]) for cell in cells}) == 1
    scores = tl_vzero.value_zeroing(tl_vzero.load_model("agreement-mini"), "the authors [MASK] today.")
    scores = {"raw": scores, "normalized": scores.normalized(), "rollout": scores.rollout()}[stage]
    assert [float(cell) for cell in cells] == pytest.approx(scores.values[1].flatten().tolist(), abs=0.0006)


def test_a_token_that_draws_on_nothing_and_raw_scores() -> None:
    code, output = run("map", "the authors [MASK] today.", "--method", "gradient_x_input", "--stage", "raw", "--quiet")
    assert code == 0 and "%" not in output and "3 [MASK] ← " in output
    _, output = run("map", "--stage", "raw", "--layer", "1", "--quiet")
    listed = [part for line in output.splitlines()[1:] for part in line.partition("← ")[2].split(", ")]
    assert {len(part.rpartition(".")[2]) for part in listed} == {4}
    alone = tl_vzero.Scores(torch.zeros(1, 1, 2), "attention", (0,), ("a",), ("a", "b"), (0,), (0, 1), 1, 2)
    assert list(cli._top(alone)) == ["layer 0, attention, raw\n0 a ← nothing"]


OF_EACH_KIND = ("value_zeroing", "attention_rollout", "gradient_x_input")  # raw, rolled out already, a row alone


@pytest.mark.parametrize(
    ("method", "stage"),
    [
        *((name, "raw" if method.signed else "normalized") for name, method in tl_vzero.METHODS.items()),
        *((method, stage) for method in OF_EACH_KIND for stage in ("raw", "rollout")),
    ],
)
def test_map_of_every_method_and_stage(method: str, stage: str) -> None:
    code, output = run("map", "the authors [MASK] today.", "--method", method, "--stage", stage, "--quiet")
    if stage == "rollout" and "target" in tl_vzero.METHODS[method].needs:
        assert code == 2 and "1 destinations" in output  # the target's row alone
        return
    if method in ("logit_contributions", "alti_logit"):
        assert code == 2 and "a logit is no sum" in output  # of a masked model
        return
    assert code == 0
    shown = "rollout" if method in ("attention_rollout", "attention_flow") else stage
    assert output.count(f"{method}, {shown}") == 4


def test_map_passes_the_target_on(tmp_path: Path) -> None:
    numbers = tmp_path / "map.json"
    words = ("map", "the authors today.", "--method", "gradient_x_input", "--target", "2", "--json", numbers)
    assert run(*words, "--quiet")[0] == 0
    assert json.loads(numbers.read_text(encoding="utf-8"))["dest_positions"] == [2]


def test_methods_lists_the_registry(tmp_path: Path) -> None:
    code, output = run("methods", "--json", tmp_path / "methods.json")
    assert code == 0
    written = json.loads((tmp_path / "methods.json").read_text(encoding="utf-8"))
    assert list(written) == list(tl_vzero.METHODS)
    assert all(method in output for method in tl_vzero.METHODS)
    assert all(described["needs"] for described in written.values())
    assert "needs: clean run, weights" in output and "not for 'cross' of an encoder-decoder" in output


def test_compare_prints_a_table_and_writes_json_and_csv(tmp_path: Path) -> None:
    numbers, table = tmp_path / "compared.json", tmp_path / "compared.csv"
    methods = ["value_zeroing", "attention", "alti"]
    chosen = [word for method in methods for word in ("--method", method)]
    code, output = run("compare", *chosen, "--layer", "1", "--layer", "3", "--json", numbers, "--csv", table, "--quiet")
    assert code == 0
    assert "entropy" in output and "self weight" in output and "rank value zeroing" in output
    assert "effect: zeroing a value at each position, on the logit of 'are' at 6 [MASK]" in output
    written = json.loads(numbers.read_text(encoding="utf-8"))
    assert list(written["scores"]) == methods and written["target"] == 6
    assert [(row["method"], row["layer"]) for row in written["table"]] == [(m, n) for m in methods for n in (1, 3)]
    compared = tl_vzero.compare(tl_vzero.load_model("agreement-mini"), DEFAULT_TEXT, methods, layers=[1, 3])
    assert torch.allclose(torch.tensor(written["scores"]["alti"]["values"]), compared["alti"].values, rtol=1e-5)
    read = pd.read_csv(table)
    assert list(read["method"]) == [m for m in methods for _ in range(2)]
    assert read["entropy"].tolist() == pytest.approx(compared.table()["entropy"].tolist())


PAIR = ("the authors near the hat [MASK] today.", "the author near the hats [MASK] today.")


def differing(text: str, other: str, layer: int, dest: int, method: str = "value_zeroing") -> list[float]:
    """A row of one sentence's shares minus another's, source by source."""
    model = tl_vzero.load_model("agreement-mini")
    rows = [tl_vzero.score(model, one, method=method).values[layer][dest].tolist() for one in (text, other)]  # type: ignore[union-attr]
    return [a / sum(rows[0]) - b / sum(rows[1]) for a, b in zip(*rows, strict=True)]


@pytest.mark.parametrize(("layer", "target", "dest"), [(1, [], 6), (2, ["--target", "hat"], 5)])
def test_diff_prints_what_the_target_draws_on_more_and_less(layer: int, target: list[str], dest: int) -> None:
    code, output = run("diff", PAIR[0], "--compare", PAIR[1], "--layer", str(layer), *target, "--quiet")
    title, line = output.splitlines()
    assert code == 0
    assert title == f"layer {layer}, value_zeroing (authors hat) - value_zeroing (author hats), difference"
    expected = differing(*PAIR, layer, dest)
    labels = ["[CLS]", "1 the", "authors|author", "near", "4 the", "hat|hats", "[MASK]", "today", ".", "[SEP]"]
    order = sorted(range(10), key=lambda source: -abs(expected[source]))[:4]
    listed = [f"{labels[i]} {100 * expected[i]:+.0f} %" for i in order if abs(expected[i]) >= 0.01]
    row, _, said = line.partition("← ")
    assert listed and said.split(", ") == listed
    assert row.strip() == f"{dest} {labels[dest]}"


def test_diff_of_two_methods_writes_files_and_whole_maps(tmp_path: Path) -> None:
    numbers, table, page = tmp_path / "diff.json", tmp_path / "diff.csv", tmp_path / "diff.html"
    files = ["--json", numbers, "--csv", table, "--html", page]
    words = ["--method", "alti", "--compare-method", "attention", "--layer", "2", "--full", "--words"]
    code, output = run("diff", PAIR[0], *words, *files, "--quiet")
    assert code == 0
    title, _, *rows = output.splitlines()[:12]
    assert title == "layer 2, alti - attention, difference"
    written = json.loads(numbers.read_text(encoding="utf-8"))
    model = tl_vzero.load_model("agreement-mini")
    alti, attention = (tl_vzero.score(model, PAIR[0], method=name).normalized() for name in ("alti", "attention"))  # type: ignore[union-attr]
    expected = (alti.values - attention.values)[2]
    assert torch.allclose(torch.tensor(written["values"])[0], expected, atol=1e-6)
    assert written["metadata"]["subtracted"]["method"] == "attention" and written["unit"] == "word"
    cells = [float(cell) for row in rows for cell in row.split()[2:]]
    assert cells == pytest.approx(expected.flatten().tolist(), abs=0.0006)
    read = pd.read_csv(table)
    assert read["value"].tolist() == pytest.approx(expected.flatten().tolist(), abs=1e-6)
    assert "ALTI minus" in page.read_text(encoding="utf-8")


def test_diff_of_two_models_and_of_sentences_of_other_lengths() -> None:
    code, output = run("diff", PAIR[0], "--compare-model", "all-MiniLM-L6-v2", "--layer", "1", "--quiet")
    assert code == 0 and "value_zeroing (agreement-mini) - value_zeroing (all-MiniLM-L6-v2)" in output
    shorter = ("--compare", "the hat [MASK] today.", "--alignment", "tokens", "--layer", "1")
    code, output = run("diff", PAIR[0], *shorter, "--quiet")
    row = output.splitlines()[1]
    assert code == 0 and row.startswith("6 [MASK]") and "authors" not in row and "near" not in row


def test_diff_with_a_share_that_no_layer_changes() -> None:
    _, output = run("diff", "--compare", DEFAULT_TEXT, "--layer", "0", "--quiet")
    assert output.endswith("← no share differs by 1 %\n")


def test_compare_and_report_take_effects(tmp_path: Path) -> None:
    numbers, corrupted = tmp_path / "numbers.json", DEFAULT_TEXT.replace("pictures", "picture")
    words = ["--effect", "logit_lens", "--effect", "z_patching", "--corrupted", corrupted, "--method", "attention"]
    code, output = run("compare", *words, "--layer", "1", "--json", numbers, "--quiet")
    assert code == 0 and re.search("zero_ablation +logit_lens +z_patching", output)
    names = ["zero_ablation", "logit_lens", "z_patching"]
    assert list(json.loads(numbers.read_text())["effects"]) == names
    assert run("report", *words, "--out", tmp_path / "page.html", "--json", numbers, "--quiet")[0] == 0
    assert list(json.loads(numbers.read_text())["effects"]) == names
    assert run("compare", "--effect", "z_patching")[0] == 2


def test_compare_says_why_there_is_no_effect_and_what_is_left_out() -> None:
    code, output = run("compare", "the authors " * 16 + "today.", "--layer", "0", "--quiet")
    assert code == 0
    assert "no effect on a prediction: the sentence has 0 mask tokens" in output
    assert "left out: attention_flow: a sentence has" in output


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["map", "  "], "empty text"),
        (["map", "--layer", "9"], "--layer holds 9: expected 0 to 3"),
        (["map", "--method", "atention"], "did you mean 'attention'"),
        (["map", "--model", "agrement-mini"], "agreement-mini"),
        (["report", "--out", "no/such/folder/report.html"], "does not exist"),
        (["report", "--target", "picture"], "did you mean 'pictures'?"),
        (["compare", "--target", "hot"], "did you mean 'hat'?"),
        (["report", "--target", "99"], "outside the sentence"),
        (["report", "--method", "atention"], "did you mean 'attention'"),
        (["report", "--bad", "is"], "without --good"),
        (["report", "--good", "arre"], "no single token"),
        (["report", "--compare", " "], "--compare is an empty text"),
        (["diff", "--compare", " "], "--compare is an empty text"),
        (["report", "--corrupted", "the picture [MASK] marcus."], "expected as many"),
        (["map", "--target", "3"], "value_zeroing needs none"),
        (["map", "--open"], "add --html map.html"),
        (["diff"], "expected --compare TEXT, --compare-model NAME or --compare-method NAME"),
        (["diff", "--compare", "  "], "empty text"),
        (["diff", "--compare-method", "ALTY"], "did you mean 'alti'"),
        (["diff", "--compare-model", "agrement-mini"], "did you mean 'agreement-mini'"),
        (["diff", "--compare-method", "attention", "--target", "hot"], "did you mean 'hat'?"),
        (["diff", "--compare-method", "attention", "--open"], "add --html map.html"),
        (["diff", "--compare", "the authors [MASK] today."], "give --alignment tokens for the tokens that both have"),
        (["diff", "--compare-method", "attention_rollout"], "stage 'normalized' and 'rollout'"),
        (["compare", "  "], "empty text"),
        (["compare", "--layer", "9"], "--layer holds 9: expected 0 to 3"),
        (["compare", "--method", "atention"], "did you mean 'attention'"),
        (["compare", "--method", "alti", "--method", "alti"], "more than once"),
        (["compare", "--target", "99"], "outside the sentence"),
        (["compare", "--csv", "no/such/folder/table.csv"], "does not exist"),
        (["compare", "the hat.", "--method", "gradient_x_input"], "no target given"),
    ],
)
def test_bad_input_is_told_in_one_line_and_leaves_nothing(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, output = run(*words, "--quiet")
    assert code == 2
    assert output.startswith("error: ")
    assert said in output
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_planted_truth_writes_a_page_and_tables(tmp_path: Path) -> None:
    code, output = run(
        "evaluate", "planted", "--quick", "--quiet", "--method", "random", "--out", str(tmp_path / "out")
    )
    assert code == 0, output
    assert "Oracle: AP 1.000, AUROC 1.000, falls for 0 traps" in output
    assert {"planted.html", "planted.json", "planted.csv"} <= {file.name for file in (tmp_path / "out").iterdir()}


READS_A_MODEL = {
    "report": [],
    "map": [],
    "compare": [],
    "diff": ["--compare-method", "attention"],
    "heads": [],
    "explore": ["--port", "0"],
    "corpus": ["none.txt", "--out", "out"],
    "reproduce": ["--out", "out"],
    "evaluate sentences": ["--out", "sentences.jsonl"],
    "evaluate cue-alignment": [],
    "evaluate probing": [],
    "evaluate faithfulness": [],
    "evaluate knockout": [],
    "evaluate removal": [],
    "evaluate training": ["--checkpoint", "all-MiniLM-L6-v2"],
}
TYPOS = {
    "--model": ("agrement-mini", "did you mean 'agreement-mini'?"),
    "--dtype": ("flaot32", "did you mean 'float32'?"),
    "--device": ("cdua", "did you mean 'cuda'?"),
    "--method": ("ALTY", "did you mean 'alti'?"),
    "--layer": ("9", "--layer holds 9: expected 0 to 3"),
}


@pytest.mark.parametrize("command", READS_A_MODEL)
def test_a_typo_is_told_before_a_model_is_loaded_with_the_nearest_name(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("tl_vzero.models.load.from_folder_or_hub", None)  # what reads weights
    taken = run(*command.split(), "--help")[1]
    assert "--model" in taken and "--device" in taken and "--dtype" in taken
    for option, (typo, said) in TYPOS.items():
        if f" {option} " in taken:
            code, output = run(*command.split(), *READS_A_MODEL[command], option, typo)
            assert code == 2 and said in " ".join(output.split()), (option, output)


def commands() -> list[tuple[str, Any]]:
    """Every command and group with its words."""
    group = typer.main.get_command(app)
    below = [(f"{name} ", one) for name, one in group.commands.items()]
    return [("", group), *below, *((f"evaluate {name} ", one) for name, one in below[-1][1].commands.items())]


@pytest.mark.parametrize(("words", "command"), commands())
def test_every_help_has_examples_that_can_be_typed(words: str, command: Any) -> None:
    title, *examples = command.epilog.split("\n\n")
    assert title == "Examples:" and examples and all(len(example) < 100 for example in examples)
    for example in examples:
        first, *typed = shlex.split(example)
        assert first == "tl-vzero" and example.startswith(f"tl-vzero {words}".rstrip())
        at, context = typer.main.get_command(app), None
        while hasattr(at, "commands"):
            at = at.commands[typed.pop(0)]
        context = at.make_context("", typed)  # raises for an option that there is not
        assert context is not None
    assert examples[0] in run(*words.split(), "--help")[1]


def test_a_table_can_be_had_as_csv_and_a_page_be_opened() -> None:
    takes = {words.strip(): {name for one in command.params for name in one.opts} for words, command in commands()}
    tables = "report map compare diff methods heads models".split()
    assert all("--csv" in takes[name] for name in (*tables, *(name for name in takes if "-" in name or "prob" in name)))
    pages = {"report", "map", "diff", "explore", "reproduce", "evaluate training", "evaluate planted"}
    assert {name for name, options in takes.items() if "--open" in options} == pages


def test_the_version_is_that_of_the_package_and_names_what_computes() -> None:
    code, output = run("--version")
    assert code == 0 and output.startswith(f"tl-vzero {tl_vzero.__version__} (transformer-lens ")
    assert f"torch {torch.__version__}" in output and output.count("\n") == 1


def test_a_model_takes_its_dtype_and_device_from_the_command_line(tmp_path: Path) -> None:
    numbers = tmp_path / "map.json"
    words = ("--dtype", "float64", "--device", "cpu", "--stage", "raw", "--json", numbers, "--quiet")
    assert run("map", *words)[0] == 0
    model = tl_vzero.load_model("agreement-mini", dtype=torch.float64)
    expected = tl_vzero.value_zeroing(model, DEFAULT_TEXT).values
    assert torch.equal(torch.tensor(json.loads(numbers.read_text())["values"], dtype=torch.float64), expected)


@pytest.mark.parametrize("is_there", [True, False, webbrowser.Error()], ids=repr)
def test_a_page_opens_in_the_browser_or_a_line_says_where_it_is(
    is_there: bool | Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def answer(address: str) -> bool:
        opened.append(address)
        if isinstance(is_there, Exception):
            raise is_there
        return is_there

    monkeypatch.setattr(webbrowser, "open", answer)
    page = tmp_path / "a map.html"
    code, output = run("map", "--layer", "1", "--html", page, "--open", "--quiet")
    assert code == 0 and opened == [page.as_uri()]
    assert (f"no browser here to open the page: it is at {page.as_uri()}" in output) == (is_there is not True)


def test_the_report_and_the_explorer_open_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: Queue[str] = Queue()
    monkeypatch.setattr(webbrowser, "open", lambda address: opened.put(address) or True)
    page = tmp_path / "report.html"
    assert run("report", "--method", "attention", "--out", page, "--open", "--quiet")[0] == 0
    assert opened.get(timeout=5) == page.as_uri()
    monkeypatch.setattr("tl_vzero.explore.serve", lambda app, bound: None)
    code, output = run("explore", "--port", "0", "--open")
    assert code == 0 and opened.get(timeout=5) in output.split()


def test_a_second_text_makes_a_pair(tmp_path: Path) -> None:
    pair = ("the authors [MASK] today.", "the hat is near.")
    model, numbers = tl_vzero.load_model("agreement-mini"), tmp_path / "numbers.json"
    words = [pair[0], "--pair", pair[1], "--json", numbers, "--quiet"]
    assert run("map", *words, "--stage", "raw")[0] == 0
    expected = tl_vzero.value_zeroing(model, pair)
    written = json.loads(numbers.read_text(encoding="utf-8"))
    assert written["metadata"].get("token_types") == expected.metadata.get("token_types")
    assert torch.allclose(torch.tensor(written["values"]), expected.values, rtol=1e-5)
    assert run("compare", *words, "--method", "attention", "--method", "value_zeroing")[0] == 0
    written = json.loads(numbers.read_text(encoding="utf-8"))
    assert written["tokens"] == list(expected.src_tokens)
    corrupted = ["--corrupted", pair[0].replace("authors", "author"), "--method", "alti", "--out", tmp_path / "a.html"]
    assert run("report", *words, *corrupted)[0] == 0
    assert json.loads(numbers.read_text(encoding="utf-8"))["text"] == "\n".join(pair)
    code, output = run("map", pair[0], "--pair", " ")
    assert code == 2 and "inputs[0][1] is an empty text" in output


def test_map_of_phrases(tmp_path: Path) -> None:
    numbers = tmp_path / "map.json"
    code, output = run("map", "--spans", "noun_chunks", "--heads", "0,-1", "--json", numbers, "--quiet")
    assert code == 0 and "the pictures" in output
    written = json.loads(numbers.read_text(encoding="utf-8"))
    assert written["src_spans"][:4] == [[0], [1, 2], [3], [4, 5]]
    assert written["metadata"]["options"]["heads"] == [0, 3]


def test_map_of_each_head() -> None:
    code, output = run("map", "--per-head", "--heads", "1,2", "--layer", "0", "--stage", "raw", "--quiet")
    assert code == 0
    assert "layer 0, head 1, value_zeroing, raw" in output and "layer 0, head 2, value_zeroing, raw" in output
    assert "head 0" not in output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--heads", "9"], "heads holds 9: expected 0 to 3"),
        (["--heads", "first"], "--heads 'first': expected numbers with commas"),
        (["--spans", "words", "--method", "alti"], "--spans given, and alti zeroes no values"),
        (["--per-head", "--method", "alti"], "--per-head given, and alti zeroes no values"),
        (["--per-head", "--html", "map.html"], "a page shows one map per layer"),
        (["--spans", "phrases"], "noun_chunks"),
    ],
)
def test_bad_heads_and_spans(words: list[str], message: str) -> None:
    code, output = run("map", *words, "--quiet")
    assert code == 2 and message in output


def test_heads_prints_a_table_and_writes_json_and_csv(tmp_path: Path) -> None:
    numbers, table = tmp_path / "heads.json", tmp_path / "heads.csv"
    texts = [DEFAULT_TEXT, "the authors [MASK] today."]
    code, output = run("heads", *texts, "--layer", "1", "--json", numbers, "--csv", table, "--quiet")
    assert code == 0 and "context" in output
    expected = tl_vzero.head_importance(tl_vzero.load_model("agreement-mini"), texts, layers=[1])
    written = json.loads(numbers.read_text(encoding="utf-8"))["heads"]
    assert [row["head"] for row in written] == [0, 1, 2, 3] and {row["n"] for row in written} == {2}
    assert [row["lost"] for row in written] == pytest.approx(expected["lost"].tolist())
    assert pd.read_csv(table)["share"].tolist() == pytest.approx(expected["share"].tolist())
    assert run("heads", "--layer", "9", "--quiet")[0] == 2


ACTING = "\x1b[31m \x1b]0;title\x07 \x9b1m \u202eevil\u2066 \r \x08 \x7f"


def acts(output: str) -> bool:
    """Whether something in an output acts on a terminal or reorders its line."""
    return not output.replace("\n", "").replace("\t", "").isprintable()


def test_no_token_acts_on_the_terminal() -> None:
    text = f"the hat {ACTING} [MASK] today."
    code, output = run("map", text, "--quiet", "--layer", "0")
    assert code == 0 and "[MASK]" in output and not acts(output)
    code, output = run("compare", text, "--method", "attention", "--quiet")
    assert code == 0 and not acts(output)


def test_no_name_acts_on_the_terminal(tmp_path: Path) -> None:
    for words in (
        ("map", "--model", f"no-such-folder/{ACTING}"),
        ("map", "--method", ACTING),
        ("report", "--out", tmp_path / ACTING / "page.html"),
        ("corpus", tmp_path / f"{ACTING}.txt", "--out", tmp_path / "out", "--quiet"),
        ("evaluate", "cue-alignment", "--examples", tmp_path / f"{ACTING}.csv"),
        ("map", ACTING, ACTING),
        ("map", f"--{ACTING}"),
        (ACTING,),
    ):
        code, output = run(*words)
        assert code == 2 and not acts(output), words


def test_no_method_of_a_plugin_acts_on_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    evil = Method(lambda: None, ACTING, ACTING, ACTING)
    monkeypatch.setattr("tl_vzero.METHODS", {f"evil{ACTING}": evil})
    code, output = run("methods")
    assert code == 0 and "evil" in output and not acts(output)


SAYS = r"""
import sys
from tl_vzero import cli
if sys.argv[1:] != ["--help"]:
    cli.app = lambda **_: cli.common.say("h\u00e4t \U0001f44b \ud800 [MASK]")
cli.main()
"""


@pytest.mark.parametrize(
    "environment",
    [{"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "latin-1:strict"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}],
    ids=str,
)
def test_no_character_is_too_much_for_a_terminal(environment: dict[str, str]) -> None:
    for words in ((), ("--help",)):
        command = [sys.executable, "-c", SAYS, *words]
        ended = subprocess.run(command, capture_output=True, env=os.environ | environment, check=False)
        assert ended.returncode == 0, ended.stderr
        assert words or (b"[MASK]" in ended.stdout and rb"\ud800" in ended.stdout)
        if "latin" in str(environment) and not words:
            assert b"h\xe4t" in ended.stdout and rb"\U0001f44b" in ended.stdout


def test_what_is_written_to_the_output_can_be_piped_on() -> None:
    command = [sys.executable, "-m", "tl_vzero", "methods", "--json", "/dev/stdout"]
    written = subprocess.run(command, capture_output=True, check=True).stdout.decode()
    assert "value_zeroing" in json.loads(written[written.index("{") :])


def test_a_cell_of_csv_is_data_whatever_it_begins_with(tmp_path: Path) -> None:
    """Tokens are written as they are, and numbers below zero are numbers; nothing is a formula to us."""
    table = tmp_path / "models.csv"
    covered = {"architectures": {"=1+1": {"class": "@SUM(A1)", "lines": {"-4": {"normalised": -0.5}}}}, "refused": {}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tl_vzero.cli.listings.coverage", lambda: covered | {"measured_with": {}})
        patch.setattr("tl_vzero.cli.listings._table", lambda covered: "")
        code, _ = run("models", "--csv", table)
    assert code == 0
    read = pd.read_csv(table)
    assert list(read.loc[0, ["architecture", "class", "normalised"]]) == ["=1+1", "@SUM(A1)", -0.5]
