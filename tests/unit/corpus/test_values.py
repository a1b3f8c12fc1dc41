"""What is in the shards: the numbers that each sentence alone gives, readable by anything that reads Parquet."""

import random
import shutil
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from support.corpora import errors_of, sentences, shards_of, table_of, text_file
from support.models import hf_bert, hf_gpt2, loaded
from support.state import left_as_found

import tl_vzero
from tl_vzero.corpus import read_corpus, run_corpus
from tl_vzero.errors import InputError

# Tiny models know few of the words.
pytestmark = pytest.mark.filterwarnings("ignore::tl_vzero.errors.InputWarning")
METHODS = ["value_zeroing", "attention", "alti", "attention_rollout"]


@pytest.fixture(scope="module")
def model() -> Any:
    return tl_vzero.load_model("agreement-mini")


def close(measured: torch.Tensor, expected: torch.Tensor, atol: float = 1e-7) -> bool:
    return torch.allclose(measured.double(), expected.double(), rtol=1e-4, atol=atol)


@pytest.fixture(scope="module")
def corpus(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("values")
    run = run_corpus(model, text_file(folder, 17), folder / "out", METHODS, shard_size=7)
    assert (run.sentences, run.failed, run.shards, run.computed, run.complete) == (17, 0, 3, 3, True)
    return folder / "out"


@pytest.mark.parametrize("method", METHODS)
def test_maps_are_those_of_each_sentence_alone(model: Any, corpus: Path, method: str) -> None:
    by_id = dict(read_corpus(corpus).scores(method))
    assert list(by_id) == [str(position) for position in range(17)]
    for text, scores in zip(sentences(17), by_id.values(), strict=True):
        alone = tl_vzero.score(model, text, method)
        # ALTI is the difference of two sums, and keeps the rounding of their size; a corpus rounds GELU without oneDNN.
        atol = 1e-6 * float(alone.values.max()) if method == "alti" else 1e-7
        assert close(scores.values, alone.values, atol)
        for label in ("method", "layers", "src_tokens", "dest_positions", "n_layers", "word_ids", "stage", "identity"):
            assert getattr(scores, label) == getattr(alone, label)
    assert close(scores.normalized().values, alone.normalized().values, atol=1e-6 if method == "alti" else 1e-7)
    assert scores.words().src_tokens == alone.words().src_tokens


def test_unknown_words_are_known_as_such_when_they_are_read_back(model: Any, tmp_path: Path) -> None:
    source = tmp_path / "in.txt"
    source.write_text("the linguist loves hats\nthe hats\n")
    first, second = dict(read_corpus(run_corpus(model, source, tmp_path / "out").folder).scores()).values()
    assert [first.src_tokens[position] for position in first.unknown_positions] == ["linguist", "loves"]
    assert second.unknown_positions == () and "unknown" not in second.metadata


def test_the_reader_knows_its_methods_and_what_is_no_corpus(corpus: Path, tmp_path: Path) -> None:
    assert read_corpus(corpus).methods == tuple(METHODS)
    with pytest.raises(tl_vzero.TLVZeroError, match="unknown method 'globenc'"):
        next(read_corpus(corpus).scores("globenc"))
    with pytest.raises(tl_vzero.TLVZeroError, match="is no corpus"):
        read_corpus(tmp_path)


def test_pandas_reads_the_folder_as_it_is(model: Any, corpus: Path) -> None:
    frame = pd.read_parquet(corpus / "shards")
    assert frame["position"].tolist() == list(range(17))
    row = frame.iloc[5]
    n = len(row["tokens"])
    expected = tl_vzero.value_zeroing(model, sentences(17)[5]).values
    assert close(torch.tensor(row["value_zeroing"].reshape(-1, n, n)), expected)
    assert row["value_zeroing"].dtype == np.float32


def test_datasets_reads_the_shards_as_they_are(corpus: Path, tmp_path: Path) -> None:
    files = [str(path) for path in shards_of(corpus)]
    loaded_rows = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path))
    assert loaded_rows["id"] == [str(position) for position in range(17)]
    assert loaded_rows[3]["tokens"] == table_of(corpus)["tokens"][3].as_py()


def test_polars_reads_the_shards_as_they_are(corpus: Path) -> None:
    polars = pytest.importorskip("polars")
    frame = polars.read_parquet(corpus / "shards" / "*.parquet")
    assert frame["value_zeroing"].to_list() == table_of(corpus)["value_zeroing"].to_pylist()


def test_duckdb_reads_the_shards_as_they_are(corpus: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    rows = duckdb.sql(
        f"select position, value_zeroing[1] from '{corpus}/shards/*.parquet' order by position"
    ).fetchall()
    expected = [(n, layer_maps[0]) for n, layer_maps in enumerate(table_of(corpus)["value_zeroing"].to_pylist())]
    assert rows == expected


def test_the_targets_row_is_that_of_the_map(model: Any, corpus: Path, tmp_path: Path) -> None:
    run_corpus(model, text_file(tmp_path, 17), tmp_path / "out", METHODS, rows="target", shard_size=7)
    for method in METHODS:
        whole = dict(read_corpus(corpus).scores(method))
        for name, scores in read_corpus(tmp_path / "out").scores(method):
            (target,) = scores.dest_positions
            assert scores.dest_tokens == ("[MASK]",)
            assert close(scores.values[:, 0], whole[name].row(target))
    assert "target" in table_of(tmp_path / "out").column_names


def test_a_target_may_be_a_token_which_is_looked_for_in_each_sentence(model: Any, tmp_path: Path) -> None:
    source = tmp_path / "three.txt"
    source.write_text("the author [MASK] today.\nthe hat near the author [MASK] today.\nthe hat [MASK] today.\n")
    run = run_corpus(model, source, tmp_path / "out", rows="target", target="author")
    assert (run.sentences, run.failed) == (2, 1)
    assert [scores.dest_positions for _, scores in read_corpus(run.folder).scores()] == [(2,), (5,)]
    assert "'author' is none of the tokens" in (tmp_path / "out" / "errors.jsonl").read_text()
    assert run_corpus(model, source, tmp_path / "out", rows="target", target="author").computed == 0


def test_a_target_may_be_counted_from_the_end(model: Any, corpus: Path, tmp_path: Path) -> None:
    run_corpus(model, text_file(tmp_path, 5), tmp_path / "out", rows="target", target=-1, layers=[3, 1])
    whole = dict(read_corpus(corpus).scores())
    for name, scores in read_corpus(tmp_path / "out").scores():
        assert scores.layers == (3, 1)
        assert close(scores.values[:, 0], whole[name].values[[3, 1], -1])


def test_a_summary_is_that_of_a_comparison(model: Any, tmp_path: Path) -> None:
    run_corpus(model, text_file(tmp_path, 4), tmp_path / "out", ["attention", "value_zeroing"], rows="summary")
    rows = table_of(tmp_path / "out").to_pylist()
    for text, row in zip(sentences(4), rows, strict=True):
        table = tl_vzero.compare(model, text, ["attention", "value_zeroing"]).table()
        for name in ("attention", "value_zeroing"):
            for column in ("entropy", "self_weight", "special_weight"):
                expected = table[table["method"] == name][column].tolist()
                assert row[f"{name}_{column}"] == pytest.approx(expected, rel=1e-4)
    with pytest.raises(tl_vzero.TLVZeroError, match="summaries only"):
        next(read_corpus(tmp_path / "out").scores())


def test_a_float64_model_gives_float64(tmp_path: Path) -> None:
    wide = loaded(hf_bert(0).double())
    source = tmp_path / "few.txt"
    source.write_text("the cat\nthe dog sat\n")
    run_corpus(wide, source, tmp_path / "out", ["value_zeroing", "decompx"])
    (_, first), (_, second) = read_corpus(tmp_path / "out").scores()
    assert first.values.dtype == torch.float64
    assert torch.allclose(second.values, tl_vzero.value_zeroing(wide, "the dog sat").values, rtol=1e-9)


def test_a_causal_models_last_token_is_a_target(tmp_path: Path) -> None:
    causal = loaded(hf_gpt2(0))
    source = tmp_path / "few.txt"
    source.write_text("the cat\nthe dog sat\n")
    with left_as_found(causal):
        run_corpus(causal, source, tmp_path / "out", ["value_zeroing", "gradient_x_input"], rows="target", target=-1)
    for text, (_, scores) in zip(
        ["the cat", "the dog sat"], read_corpus(tmp_path / "out").scores("gradient_x_input"), strict=True
    ):
        assert close(scores.values, tl_vzero.score(causal, text, "gradient_x_input", target=-1).values)


def test_methods_of_a_target_have_one_row_beside_whole_maps(model: Any, tmp_path: Path) -> None:
    source = text_file(tmp_path, 3)
    run_corpus(model, source, tmp_path / "out", ["value_zeroing", "gradient_x_input"])
    for text, (_, scores) in zip(sentences(3), read_corpus(tmp_path / "out").scores("gradient_x_input"), strict=True):
        alone = tl_vzero.score(model, text, "gradient_x_input")
        assert scores.dest_positions == alone.dest_positions
        assert close(scores.values, alone.values)


def test_options_reach_their_method(model: Any, tmp_path: Path) -> None:
    options = {"value_zeroing": {"distance": "euclidean"}}
    run_corpus(model, text_file(tmp_path, 2), tmp_path / "out", options=options)
    (_, first), _ = read_corpus(tmp_path / "out").scores()
    assert close(first.values, tl_vzero.value_zeroing(model, sentences(2)[0], distance="euclidean").values)


def test_a_baseline_is_that_of_every_sentence_and_stays_with_the_scores(model: Any, tmp_path: Path) -> None:
    source, of_other = text_file(tmp_path, 2), tl_vzero.mean_values(model, sentences(3)[2:])
    for n, baseline in enumerate(("mean", of_other)):
        run_corpus(model, source, tmp_path / f"{n}", ["value_zeroing", "attention"], baseline=baseline)
        (_, first), _ = read_corpus(tmp_path / f"{n}").scores()
        alone = tl_vzero.value_zeroing(model, sentences(2)[0], baseline=baseline)
        assert close(first.values, alone.values)
        assert first.metadata["options"]["baseline"] == alone.metadata["options"]["baseline"]
    with pytest.raises(InputError, match="positions of one sentence"):
        run_corpus(model, source, tmp_path / "not", baseline=tl_vzero.values_of(model, sentences(1)[0]))
    with pytest.raises(InputError, match="no method replaces values"):
        run_corpus(model, source, tmp_path / "not", ["attention"], baseline="mean")
    with pytest.raises(InputError, match="did you mean 'mean'"):
        run_corpus(model, source, tmp_path / "not", baseline="means")
    assert not (tmp_path / "not").exists()


def test_a_sentence_that_makes_a_method_fail_takes_no_other_with_it(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tl_vzero.corpus import shards
    from tl_vzero.errors import InputError

    real = shards.Scorer.together

    def fragile(self: Any, ready: list[Any]) -> Any:
        if any(sentence.record.position == 3 for sentence in ready):
            raise InputError("this one cannot be scored")
        return real(self, ready)

    monkeypatch.setattr(shards.Scorer, "together", fragile)
    run = run_corpus(model, text_file(tmp_path, 6), tmp_path / "out", shard_size=3)
    assert (run.sentences, run.failed) == (5, 1)
    assert errors_of(tmp_path / "out") == [{"position": 3, "id": "3", "reason": "this one cannot be scored"}]


def test_parts_of_a_shard_are_one_shard(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tl_vzero.corpus import write as run_module

    monkeypatch.setattr(run_module, "CELLS_PER_PART", 4 * 300)
    source = text_file(tmp_path, 17)
    run = run_corpus(model, source, tmp_path / "out", shard_size=10)
    assert (run.sentences, run.shards) == (17, 2)
    assert table_of(tmp_path / "out")["position"].to_pylist() == list(range(17))
    together = tl_vzero.value_zeroing(model, sentences(17))
    for expected, (_, scores) in zip(together, read_corpus(tmp_path / "out").scores(), strict=True):
        assert close(scores.values, expected.values)


@pytest.mark.parametrize("seed", range(20))
def test_a_folder_that_was_tampered_with_is_safe_to_open(corpus: Path, tmp_path: Path, seed: int) -> None:
    """Whatever the bytes are, there is a Scores or an error in words, and nothing is executed."""
    copy = shutil.copytree(corpus, tmp_path / "copy")
    draw = random.Random(seed)
    path = draw.choice([*shards_of(copy), copy / "manifest.json", copy / "done" / "00000.json"])
    content = bytearray(path.read_bytes())
    for _ in range(draw.choice([1, 20])):
        content[draw.randrange(len(content))] = draw.randrange(256)
    path.write_bytes(bytes(content))
    try:
        pairs = list(read_corpus(copy).scores())
    except tl_vzero.TLVZeroError:
        return
    assert all(isinstance(scores, tl_vzero.Scores) for _, scores in pairs)
