"""The command line on an encoder-decoder."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.models import tokenizer
from support.paired import PAIRED
from typer.testing import CliRunner

import tl_vzero
from tl_vzero.cli import app
from tl_vzero.report import generate

RUNNER = CliRunner()
READ, WRITTEN = "the dogs bark", "marcus is near"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> Path:
    path = tmp_path_factory.mktemp("bart")
    PAIRED["BART"].tiny().save_pretrained(path)
    tokenizer().save_pretrained(path)
    return path


def run(*words: object) -> tuple[int, str]:
    result = RUNNER.invoke(app, [str(word) for word in words])
    return result.exit_code, result.output


def test_a_cross_map_as_table_json_and_page(folder: Path, tmp_path: Path) -> None:
    numbers, page = tmp_path / "map.json", tmp_path / "map.html"
    options = ("--stack", "cross", "--decoder-inputs", WRITTEN, "--stage", "raw", "--words", "--quiet")
    code, output = run("map", READ, "--model", folder, *options, "--json", numbers, "--html", page)
    assert code == 0 and "marcus" in output and page.exists()
    written = json.loads(numbers.read_text(encoding="utf-8"))
    scores = tl_vzero.value_zeroing(tl_vzero.load_model(folder), READ, stack="cross", decoder_inputs=WRITTEN).words()
    assert torch.equal(torch.tensor(written["values"]), scores.values)
    assert written["dest_tokens"] == ["[SEP]", "[CLS]", "marcus", "is", "near"]
    assert written["src_tokens"] == ["[CLS]", "the", "dogs", "bark", "[SEP]"]


def test_compare_with_the_decoders_prediction(folder: Path, tmp_path: Path) -> None:
    numbers = tmp_path / "compared.json"
    methods = ("--method", "value_zeroing", "--method", "attention", "--effect", "attribution_patching")
    options = (*methods, "--stack", "cross", "--decoder-inputs", WRITTEN, "--good", "hat", "--quiet")
    code, output = run("compare", READ, "--model", folder, *options, "--json", numbers)
    assert code == 0 and "as the next token after 4 near" in output and "attribution_patching" in output
    written = json.loads(numbers.read_text(encoding="utf-8"))
    model = tl_vzero.load_model(folder)
    effect = tl_vzero.zero_ablation(model, READ, stack="cross", decoder_inputs=WRITTEN, target_ids="hat")
    assert torch.allclose(torch.tensor(written["effect"]["values"]), effect.values)
    code, output = run("compare", READ, "--model", folder, "--stack", "cross", "--quiet")
    assert code == 2 and "no --decoder-inputs given" in output


@pytest.mark.parametrize("written", [None, WRITTEN])
def test_a_report_is_of_a_text_that_is_given_or_else_generated(
    folder: Path, tmp_path: Path, written: str | None
) -> None:
    page, numbers, table = tmp_path / "page.html", tmp_path / "page.json", tmp_path / "page.csv"
    options = () if written is None else ("--decoder-inputs", written)
    files = ("--out", page, "--json", numbers, "--csv", table, "--quiet", "--shared-plotly")
    code, output = run("report", READ, "--model", folder, *options, *files)
    assert code == 0 and page.exists() and "share" in table.read_text(encoding="utf-8").splitlines()[0], output
    tokens = json.loads(numbers.read_text(encoding="utf-8"))["decoder_tokens"]
    if written is None:
        model = tl_vzero.load_model(folder)
        assert len(tokens) == len(generate(model, READ))
    else:
        assert tokens == ["[SEP]", "[CLS]", "marcus", "is", "near"]


def test_a_report_of_one_stack_takes_no_decoder_inputs(tmp_path: Path) -> None:
    code, output = run("report", "the hat [MASK] old.", "--decoder-inputs", WRITTEN, "--out", tmp_path / "page.html")
    assert code == 2 and "--decoder-inputs given" in output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "encoder-decoder"),
        (["--stack", "cross"], "no --decoder-inputs given"),
        (["--stack", "encoder", "--decoder-inputs", WRITTEN], "leave them out"),
        (["--stack", "decoders"], "unknown stack"),
        (["--stack", "cross", "--decoder-inputs", WRITTEN, "--stage", "rollout"], "two different sequences"),
    ],
)
def test_bad_stacks(folder: Path, words: list[str], message: str) -> None:
    code, output = run("map", READ, "--model", folder, "--quiet", *words)
    assert code == 2 and message in output
