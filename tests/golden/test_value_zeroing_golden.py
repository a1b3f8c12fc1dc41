"""Value Zeroing against the values of the authors' own programs, through every model class."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from support import golden, models
from support.engines import ENGINES
from support.golden import assert_close
from support.references import rolled_out, row_normalized

import tl_vzero

TOLERANCE = {torch.float32: 5e-6, torch.float64: 1e-9}
DTYPES = [pytest.param(torch.float32, id="float32"), pytest.param(torch.float64, id="float64")]
MINILM_FILES = golden.files("value_zeroing_minilm_s*.npz")
GPT2_FILES = golden.files("inseq_tiny-gpt2_s*.npz")
BERT_ROUTES = ["load_model", "HookedEncoder", "TransformerBridge"]
GPT2_ROUTES = ["load_model", "HookedTransformer", "TransformerBridge"]


@cache
def minilm(route: str, dtype: torch.dtype) -> Any:
    folder = golden.minilm_folder()
    if route == "load_model":
        return tl_vzero.load_model("all-MiniLM-L6-v2", dtype=dtype)
    return _bert_by(route, folder, dtype)


@cache
def tiny_bert(route: str, dtype: torch.dtype) -> Any:
    folder = golden.model_folder("tiny-bert")
    if route == "load_model":
        return tl_vzero.load_model(folder, dtype=dtype)
    return _bert_by(route, folder, dtype)


def _bert_by(route: str, folder: Path, dtype: torch.dtype) -> Any:
    hf_model = golden.hf_bert_with_fresh_head(folder, dtype)
    return models.hooked_encoder(hf_model) if route == "HookedEncoder" else models.bridge(hf_model)


@cache
def tiny_gpt2(route: str, dtype: torch.dtype) -> Any:
    if route == "load_model":
        return tl_vzero.load_model(golden.model_folder("tiny-gpt2"), dtype=dtype)
    hf_model = golden.hf_tiny_gpt2(dtype)
    return models.hooked_transformer(hf_model) if route == "HookedTransformer" else models.bridge(hf_model)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("route", BERT_ROUTES)
@pytest.mark.parametrize("path", MINILM_FILES, ids=lambda path: path.stem[-2:])
def test_minilm(path: Path, route: str, dtype: torch.dtype, engine: str) -> None:
    model, expected = minilm(route, dtype), golden.read(path)
    scores = tl_vzero.value_zeroing(model, torch.as_tensor(expected["input_ids"]), engine=engine)
    assert_close(scores.values, golden.tensor(expected["raw"]), TOLERANCE[dtype])
    assert_close(scores.normalized().values, golden.tensor(expected["normalized"]), TOLERANCE[dtype])
    assert_close(scores.rollout().values, golden.tensor(expected["rollout"]), TOLERANCE[dtype])


@pytest.mark.parametrize("path", MINILM_FILES, ids=lambda path: path.stem[-2:])
def test_minilm_reads_the_text_as_its_own_tokenizer_does(path: Path) -> None:
    expected = golden.read(path)
    scores = tl_vzero.value_zeroing(minilm("load_model", torch.float32), str(expected["text"]))
    assert list(scores.dest_tokens) == list(scores.src_tokens) == expected["tokens"].tolist()
    assert_close(scores.normalized().values, golden.tensor(expected["normalized"]), 5e-6)


def test_minilm_sentences_of_different_length_together() -> None:
    expected = [golden.read(path) for path in MINILM_FILES]
    together = tl_vzero.value_zeroing(
        minilm("load_model", torch.float32), [str(sentence["text"]) for sentence in expected]
    )
    for scores, sentence in zip(together, expected, strict=True):
        assert_close(scores.normalized().values, golden.tensor(sentence["normalized"]), 5e-6)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("route", BERT_ROUTES)
def test_tiny_bert(route: str, dtype: torch.dtype, engine: str) -> None:
    model, expected = tiny_bert(route, dtype), golden.read(golden.files("tiny-bert__value_zeroing_toolkit.npz")[0])
    for index, ids in enumerate(golden.tiny_bert_ids()):
        normalized = golden.tensor(expected[f"norm{index}"])
        scores = tl_vzero.value_zeroing(model, torch.tensor(ids), engine=engine)
        assert_close(scores.normalized().values, normalized, TOLERANCE[dtype])
        assert_close(scores.rollout().values, rolled_out(normalized), TOLERANCE[dtype])


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("final_norm", [False, True], ids=["block_outputs", "final_norm"])
@pytest.mark.parametrize("route", GPT2_ROUTES)
@pytest.mark.parametrize("path", GPT2_FILES, ids=lambda path: path.stem[-2:])
def test_tiny_gpt2_against_plain_hooks_in_float64(
    path: Path, route: str, final_norm: bool, dtype: torch.dtype, engine: str
) -> None:
    model, expected = tiny_gpt2(route, dtype), golden.read(path)
    raw = golden.tensor(expected["indep64_dec_finalnorm" if final_norm else "indep64_dec"]).tril()
    scores = tl_vzero.value_zeroing(model, torch.as_tensor(expected["input_ids"]), engine=engine, final_norm=final_norm)
    assert_close(scores.values, raw, TOLERANCE[dtype])
    assert_close(scores.normalized().values, row_normalized(raw), TOLERANCE[dtype])
    assert_close(scores.rollout().values, rolled_out(row_normalized(raw)), TOLERANCE[dtype])


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("route", GPT2_ROUTES)
@pytest.mark.parametrize("path", GPT2_FILES, ids=lambda path: path.stem[-2:])
def test_tiny_gpt2_against_inseq(path: Path, route: str, engine: str) -> None:
    """inseq computes 1 - cos in float32, so only its raw distances are good to 5e-6."""
    model, expected = tiny_gpt2(route, torch.float32), golden.read(path)
    scores = tl_vzero.value_zeroing(model, torch.as_tensor(expected["input_ids"]), engine=engine, final_norm=True)
    assert_close(scores.values, golden.tensor(expected["raw_dec"]).nan_to_num(0.0), 5e-6)


@pytest.mark.parametrize("path", GPT2_FILES, ids=lambda path: path.stem[-2:])
def test_tiny_gpt2_reads_the_text_as_its_own_tokenizer_does(path: Path) -> None:
    expected = golden.read(path)
    scores = tl_vzero.value_zeroing(tiny_gpt2("load_model", torch.float32), str(expected["text"]))
    # inseq's map leaves out the last token; whether a label shows a space as "Ġ" or " " is not part of the contract.
    labels = [label.replace("Ġ", " ") for label in scores.src_tokens]
    assert labels[:-1] == [label.replace("Ġ", " ") for label in expected["tokens"].tolist()]
