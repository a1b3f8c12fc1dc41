"""The coverage table says what the tests measure, no more and no less."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from support import paired
from support.architecture_row import LINE, LINES
from support.covered import NORMALISED, RAW, ROWS, errors_of, heads_of, measured, refused, scored, stacks_of
from support.paired import HEARD, PAIRED
from support.refused_rows import REFUSED
from typer.testing import CliRunner

from tl_vzero.cli import app
from tl_vzero.cli.listings import coverage, coverage_rows

TABLE = coverage()["architectures"]
MEASURE = "run `python tests/bench/measure_coverage.py` in an environment of each line"


def test_every_row_is_in_the_table_and_nothing_else() -> None:
    assert list(TABLE) == list(ROWS), MEASURE
    assert list(coverage()["refused"]) == [row.name for row in REFUSED], MEASURE


@pytest.mark.parametrize("name", ROWS)
def test_an_entry_says_what_its_row_is(name: str) -> None:
    row, entry = ROWS[name], TABLE[name]
    assert entry["class"] == type(row.tiny()).__name__
    assert entry["heads"] == heads_of(row) and entry["stacks"] == list(stacks_of(row))
    assert set(entry["lines"]) == set(LINES), MEASURE
    assert {line for line, line_entry in entry["lines"].items() if "refused" not in line_entry} == set(row.lines)


@pytest.mark.parametrize("name", ROWS)
def test_no_bound_is_above_what_must_be_reached(name: str) -> None:
    for line_entry in TABLE[name]["lines"].values():
        assert "refused" in line_entry or (line_entry["normalised"] <= NORMALISED and line_entry["raw"] <= RAW)


@pytest.mark.parametrize("name", HEARD)
def test_speech_is_within_its_bounds(name: str) -> None:
    bounds = TABLE[name]["lines"][LINE]
    for stack in stacks_of(ROWS[name]):
        scores, expected = scored(ROWS[name], paired.model_of(name), stack, "auto")
        normalised, raw = errors_of(scores, expected)
        assert normalised <= bounds["normalised"] and raw <= bounds["raw"]


def test_what_is_refused_is_refused_for_the_reason_in_the_table() -> None:
    measured_with = coverage()["measured_with"][LINE]["transformers"]
    if version("transformers") != measured_with:  # where a model fails is its library's choice; that it does is not
        assert all(entry["refused"] for entry in refused().values())
        return
    by_line: dict[str, Any] = {name: entry["lines"][LINE] for name, entry in coverage()["refused"].items()}
    assert by_line == {name: {"refused": entry["refused"]} for name, entry in refused().items()}
    for name, row in ROWS.items():
        if LINE not in row.lines:
            assert measured(row) == TABLE[name]["lines"][LINE]


def test_the_flat_rows_have_every_architecture_on_every_line() -> None:
    pairs = {(row["architecture"], row["transformer_lens"]) for row in coverage_rows()}
    named = [*TABLE, *coverage()["refused"]]
    assert pairs == {(name, line) for name in named for line in LINES}
    assert {row["architecture"] for row in coverage_rows() if row["cross"]} == {
        name for name, row in (PAIRED | HEARD).items() if row.lines
    }


def test_the_command_shows_it(tmp_path: Path) -> None:
    as_json, as_csv = tmp_path / "models.json", tmp_path / "models.csv"
    result = CliRunner().invoke(app, ["models", "--json", str(as_json), "--csv", str(as_csv)])
    assert result.exit_code == 0
    assert json.loads(as_json.read_text(encoding="utf-8")) == coverage()
    assert list(pd.read_csv(as_csv)["architecture"]) == [row["architecture"] for row in coverage_rows()]
    shown = result.output.splitlines()
    assert all(any(line.startswith(name) for line in shown) for name in TABLE)
    assert any(line.strip().startswith("Mamba (MambaForCausalLM), 3.9, 4.3: ") for line in shown)
