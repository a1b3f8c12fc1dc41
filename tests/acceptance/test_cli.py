"""The command line as a user meets it."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import tl_vzero
from tl_vzero.cli import DEFAULT_TEXT, app

RUNNER = CliRunner()


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


def test_report_writes_a_page_and_its_numbers(tmp_path: Path) -> None:
    page, numbers = tmp_path / "report.html", tmp_path / "report.json"
    code, output = run("report", "--out", page, "--json", numbers, "--quiet")
    assert code == 0
    assert str(page) in output
    assert "<html" in page.read_text(encoding="utf-8")
    assert page.stat().st_size < 6_000_000
    written = json.loads(numbers.read_text(encoding="utf-8"))
    scores = tl_vzero.value_zeroing(tl_vzero.load_model("agreement-mini"), DEFAULT_TEXT)
    found = json.dumps(written)
    assert DEFAULT_TEXT in found
    raw = written["value_zeroing"]["pieces"]["raw"]
    assert torch.allclose(torch.tensor(raw), scores.values, rtol=1e-5)


def test_map_prints_a_table_and_writes_json_and_html(tmp_path: Path) -> None:
    numbers, page = tmp_path / "map.json", tmp_path / "map.html"
    code, output = run("map", "--layer", "1", "--words", "--json", numbers, "--html", page, "--quiet")
    assert code == 0
    assert "layer 1, value_zeroing, normalized" in output
    assert "pictures" in output
    written = json.loads(numbers.read_text(encoding="utf-8"))
    assert written["layers"] == [1]
    assert all(abs(sum(row) - 1) < 1e-5 for row in written["values"][0])
    assert "plotly" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("stage", ["raw", "normalized", "rollout"])
@pytest.mark.parametrize("method", list(tl_vzero.METHODS))
def test_map_of_every_method_and_stage(method: str, stage: str) -> None:
    code, output = run("map", "the authors [MASK] here.", "--method", method, "--stage", stage, "--quiet")
    assert code == 0
    shown = "rollout" if method in ("attention_rollout", "attention_flow") else stage
    assert output.count(f"{method}, {shown}") == 4


def test_methods_lists_the_registry(tmp_path: Path) -> None:
    code, output = run("methods", "--json", tmp_path / "methods.json")
    assert code == 0
    assert list(json.loads((tmp_path / "methods.json").read_text(encoding="utf-8"))) == list(tl_vzero.METHODS)
    assert all(method in output for method in tl_vzero.METHODS)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["map", "  "], "empty text"),
        (["map", "--layer", "9"], "layer 9"),
        (["map", "--method", "atention"], "did you mean 'attention'"),
        (["map", "--model", "agrement-mini"], "agreement-mini"),
        (["report", "--out", "no/such/folder/report.html"], "does not exist"),
        (["report", "--target", "99"], "outside the sentence"),
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
