"""Corpora of pairs: a second text column, read on every route into the model with its segments."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from support.corpora import errors_of, table_of
from support.models import hf_bert
from support.pairs import ids_and_types, tokenizer

import tl_vzero
from tl_vzero.corpus import read_corpus, run_corpus
from tl_vzero.corpus.source import Record, Refused, open_source
from tl_vzero.data.agreement_mini import agreement_examples
from tl_vzero.errors import FileFormatError, InputError
from tl_vzero.evaluate.rows import corpus_rows
from tl_vzero.evaluate.sentences import tokenize_examples

ROWS: list[dict[str, Any]] = [
    {"id": "a", "premise": "the dog [MASK] near.", "hypothesis": "a hat of some dogs"},
    {"id": "b", "premise": "some hat", "hypothesis": None},
    {"id": "c", "premise": "some hat", "hypothesis": "the dog is near [MASK] of the hat."},
    {"id": "d", "premise": "", "hypothesis": "the dog"},
    {"id": "e", "premise": "dogs [MASK].", "hypothesis": "barking"},
    {"id": "f", "premise": "dogs", "hypothesis": "  "},
]
REFUSED = {"b": "of the second text: no text", "d": "the text is empty", "f": "of the second text: the text is empty"}
COLUMNS = {"text_column": "premise", "second_text_column": "hypothesis"}
METHODS = ("value_zeroing", "attention", "decompx", "hta", "gradient_x_input")
OPTIONS: dict[str, dict[str, Any]] = {"decompx": {"propagate": True}, "gradient_x_input": {"aggregate": "sum"}}


def json_lines(folder: Path) -> Path:
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return path


def csv(folder: Path) -> Path:
    path = folder / "pairs.csv"
    lines = [",".join(row[name] or "" for name in ("hypothesis", "id", "premise")) for row in ROWS]
    path.write_text("\n".join(["hypothesis,id,premise", *lines]) + "\n", encoding="utf-8")
    return path


def parquet(folder: Path) -> Path:
    path = folder / "pairs.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), path)
    return path


def dataset(folder: Path) -> Path:
    datasets.Dataset.from_list(ROWS).save_to_disk(folder / "pairs")
    return folder / "pairs"


every_format = pytest.mark.parametrize("write", [json_lines, csv, parquet, dataset])


@cache
def model() -> Any:
    return tl_vzero.load_model(hf_bert().double(), tokenizer())


@every_format
def test_a_record_has_both_texts_or_is_refused_with_its_id(write: Callable[[Path], Path], tmp_path: Path) -> None:
    source = open_source(write(tmp_path), **COLUMNS)
    records = [source.record(position, raw) for position, raw in enumerate(source.raws())]
    assert [(record.position, record.id) for record in records] == [(n, row["id"]) for n, row in enumerate(ROWS)]
    for row, record in zip(ROWS, records, strict=True):
        if isinstance(record, Refused):
            reason = REFUSED[row["id"]]
            # An empty cell of a table of text is an empty text.
            assert record.reason in (reason, reason.replace("no text", "the text is empty"))
        else:
            assert record == Record(record.position, row["id"], row["premise"], row["hypothesis"])
    assert source.origin.second_text_column == "hypothesis"


def test_the_scores_are_those_of_each_pair_alone(tmp_path: Path) -> None:
    run = run_corpus(model(), json_lines(tmp_path), tmp_path / "out", METHODS, options=OPTIONS, **COLUMNS)
    assert (run.sentences, run.failed) == (3, 3)
    assert {failure["id"] for failure in errors_of(run.folder)} == set(REFUSED)
    by_id = {row["id"]: (row["premise"], row["hypothesis"]) for row in ROWS}
    for method in METHODS:
        for name, scores in read_corpus(run.folder).scores(method):
            alone = tl_vzero.score(model(), by_id[name], method, **OPTIONS.get(method, {}))
            assert torch.allclose(scores.values, alone.values, rtol=1e-9, atol=1e-12)
            types = ids_and_types(by_id[name])[1].tolist()
            assert scores.metadata["token_types"] == types == alone.metadata["token_types"]
            assert scores.word_ids == alone.word_ids and scores.src_tokens == alone.src_tokens
    assert table_of(run.folder)["id"].to_pylist() == ["a", "c", "e"]


def test_the_second_column_is_part_of_what_a_corpus_is(tmp_path: Path) -> None:
    source = json_lines(tmp_path)
    run = run_corpus(model(), source, tmp_path / "out", **COLUMNS)
    again = run_corpus(model(), source, tmp_path / "out", **COLUMNS)
    assert (run.computed, again.computed) == (1, 0)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["input"]["second_text_column"] == "hypothesis"
    with pytest.raises(InputError, match=r"input\.second_text_column was hypothesis, is None"):
        run_corpus(model(), source, tmp_path / "out", text_column="premise")


@every_format
def test_columns_that_are_not_there_are_refused(write: Callable[[Path], Path], tmp_path: Path) -> None:
    path = write(tmp_path)
    with pytest.raises(InputError, match="text_column and second_text_column are both 'premise'"):
        open_source(path, text_column="premise", second_text_column="premise")
    if write is not json_lines:  # of which each line has its own columns
        with pytest.raises(FileFormatError, match="no column 'hypothesi' with text: expected one of"):
            open_source(path, text_column="premise", second_text_column="hypothesi")


def test_of_two_columns_with_text_the_other_one_is_the_first(tmp_path: Path) -> None:
    path = tmp_path / "two.jsonl"
    path.write_text('{"hypothesis": "the dog", "premise": "a hat"}\n')
    origin = open_source(path, second_text_column="hypothesis").origin
    assert (origin.text_column, origin.second_text_column) == ("premise", "hypothesis")


def test_plain_text_has_no_second_column(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("the dog\n")
    with pytest.raises(InputError, match="leave text_column, second_text_column and id_column out"):
        open_source(path, second_text_column="hypothesis")


def test_pairs_are_no_examples_of_an_evaluation(tmp_path: Path) -> None:
    mini = tl_vzero.load_model("agreement-mini")
    examples = agreement_examples()[:2]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps({"text": example.text, "other": "today."}) + "\n" for example in examples))
    run = run_corpus(mini, path, tmp_path / "out", second_text_column="other")
    with pytest.raises(InputError, match="holds pairs, with their second text in 'other'"):
        corpus_rows(read_corpus(run.folder), mini, tokenize_examples(mini, examples))
