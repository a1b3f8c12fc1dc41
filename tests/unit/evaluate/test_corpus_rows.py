"""Evaluations that read a corpus folder: the same numbers as those that compute, and what does not fit is refused."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.evaluations import EXAMPLES
from support.models import build, hf_bert, hf_gpt2, loaded, tokenizer
from tokenizers.processors import TemplateProcessing

import tl_vzero
from tl_vzero.corpus import Corpus, read_corpus, run_corpus
from tl_vzero.data.agreement_mini import agreement_examples
from tl_vzero.errors import FileFormatError, InputError, ModelError
from tl_vzero.evaluate.cue_alignment import cue_alignment
from tl_vzero.evaluate.faithfulness import faithfulness
from tl_vzero.evaluate.rows import corpus_rows, target_rows
from tl_vzero.evaluate.sentences import read_texts, tokenize_examples

METHODS = ["value_zeroing", "attention_rollout", "attention"]


@pytest.fixture(scope="module")
def bert() -> Any:
    return build("load_model", "bert")[1]


@pytest.fixture(scope="module")
def whole(bert: Any, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return written(bert, tmp_path_factory.mktemp("whole"), [*METHODS, "gradient_x_input"])


def written(model: Any, folder: Path, methods: Sequence[str], protocol: Any = "masked", **options: Any) -> Corpus:
    """A corpus of EXAMPLES among other sentences, in another order, one of them twice."""
    tokenized = tokenize_examples(model, EXAMPLES, protocol=protocol)
    texts = dict(
        zip([sentence.example.id for sentence in tokenized.examples], read_texts(model, tokenized), strict=True)
    )
    rows = [("other", "the dog [MASK]"), *reversed(texts.items()), ("again", next(iter(texts.values())))]
    source = folder / "sentences.jsonl"
    source.write_text("".join(json.dumps({"id": name, "text": text}) + "\n" for name, text in rows))
    options = {"shard_size": 2, **options}
    return read_corpus(run_corpus(model, source, folder / "out", methods, **options).folder)


def assert_same_numbers(result: Any, expected: Any) -> None:
    """Two equal tables, up to float32 rounding."""
    one, other = result.to_frame(), expected.to_frame()
    assert len(one) == len(other) > 0
    for name in one:
        if one[name].dtype.kind == "f":
            assert one[name].tolist() == pytest.approx(other[name].tolist(), abs=1e-5, nan_ok=True)
        else:
            assert one[name].tolist() == other[name].tolist()


@pytest.mark.parametrize("rows", ["all", "target"])
def test_cue_alignment_is_that_of_scores_made_on_the_fly(bert: Any, whole: Corpus, tmp_path: Path, rows: str) -> None:
    corpus = whole if rows == "all" else written(bert, tmp_path, METHODS, rows="target")
    named = [*METHODS, "random"]
    result = cue_alignment(bert, EXAMPLES, named, corpus=corpus)
    assert_same_numbers(result, cue_alignment(bert, EXAMPLES, named))
    assert result.settings["corpus"]["rows"] == rows


def test_faithfulness_is_that_of_scores_made_on_the_fly(bert: Any, whole: Corpus) -> None:
    for place in ({}, {"rolled_out": False, "layer": 1}):
        result = faithfulness(bert, EXAMPLES, METHODS, corpus=whole, fractions=[0.2], **place)
        expected = faithfulness(bert, EXAMPLES, METHODS, fractions=[0.2], **place)
        assert_same_numbers(result, expected)
        assert result.curves_frame()["mean"].tolist() == pytest.approx(expected.curves_frame()["mean"].tolist())


def test_a_causal_models_rows_are_those_of_the_last_position(tmp_path: Path) -> None:
    without_end = tokenizer()  # [SEP] after a text would come between it and its next token
    without_end.backend_tokenizer.post_processor = TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 2)])
    gpt2 = tl_vzero.load_model(hf_gpt2(0), without_end)
    corpus = written(gpt2, tmp_path, ["value_zeroing"], "causal", rows="target", target=-1)
    result = cue_alignment(gpt2, EXAMPLES, ["value_zeroing"], corpus=corpus, protocol="causal")
    assert_same_numbers(result, cue_alignment(gpt2, EXAMPLES, ["value_zeroing"], protocol="causal"))


def test_a_text_that_cannot_stand_alone_is_refused() -> None:
    _, gpt2 = build("load_model", "gpt2")
    with pytest.raises(InputError, match="gives other tokens by itself than before its target, first 'pp-0'"):
        read_texts(gpt2, tokenize_examples(gpt2, EXAMPLES, protocol="causal"))


def test_rows_of_layers_in_another_order_match_their_labels(bert: Any, tmp_path: Path) -> None:
    corpus = written(bert, tmp_path, ["attention"], layers=[2, 0])
    tokenized = tokenize_examples(bert, EXAMPLES)
    for layers in (None, [0], [0, 2]):
        result = corpus_rows(corpus, bert, tokenized, layers=layers)
        expected = target_rows(bert, tokenized, ["attention"], layers=layers or [2, 0])
        assert result.layers == expected.layers
        for one, other in zip(result.rows["attention"], expected.rows["attention"], strict=True):
            assert torch.allclose(one, other, atol=1e-6)
    with pytest.raises(InputError, match=r"holds the layers \[2, 0\], and not \[1\]"):
        corpus_rows(corpus, bert, tokenized, layers=[1])
    with pytest.raises(InputError, match=r"rollout of attention needs all 3 in order"):
        corpus_rows(corpus, bert, tokenized, rolled_out=True)


def test_the_methods_are_those_of_the_folder(bert: Any, whole: Corpus) -> None:
    result = corpus_rows(whole, bert, tokenize_examples(bert, EXAMPLES))
    assert list(result.rows) == METHODS
    assert "leave the corpus out" in result.left_out["gradient_x_input"]
    for methods, message in [
        (["alti"], "does not hold the method 'alti': expected some of value_zeroing"),
        (["atention"], "did you mean 'attention'"),
        (["gradient_x_input"], "explains the logit of the token"),
        ([], "no methods"),
    ]:
        with pytest.raises(InputError, match=message):
            corpus_rows(whole, bert, tokenize_examples(bert, EXAMPLES), methods)
    with pytest.raises(InputError, match="options that it was made with"):
        cue_alignment(bert, EXAMPLES, corpus=whole, options={"attention": {}, "alti": {}})


def test_rows_that_cannot_be_rolled_out_are_refused(bert: Any, tmp_path: Path) -> None:
    corpus = written(bert, tmp_path, METHODS, rows="target")
    tokenized = tokenize_examples(bert, EXAMPLES)
    with pytest.raises(InputError, match=r"rollout of value_zeroing, attention needs whole maps.*--rows all"):
        faithfulness(bert, EXAMPLES, corpus=corpus)
    # What is rolled out by the method itself is there.
    result = corpus_rows(corpus, bert, tokenized, ["attention_rollout"], rolled_out=True)
    expected = target_rows(bert, tokenized, ["attention_rollout"], rolled_out=True)
    pairs = zip(result.rows["attention_rollout"], expected.rows["attention_rollout"], strict=True)
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in pairs)


def test_summaries_are_no_maps(bert: Any, tmp_path: Path) -> None:
    corpus = written(bert, tmp_path, ["attention"], rows="summary")
    with pytest.raises(InputError, match="holds summaries, and no maps"):
        cue_alignment(bert, EXAMPLES, corpus=corpus)


def test_another_model_is_refused(whole: Corpus) -> None:
    with pytest.raises(ModelError, match=r"is of another model.*its weights differ.*--model"):
        cue_alignment(loaded(hf_bert(1)), EXAMPLES, corpus=whole)
    with pytest.raises(ModelError, match="its weights and tokenizer differ"):
        cue_alignment(tl_vzero.load_model("agreement-mini"), agreement_examples()[:2], corpus=whole)


def test_a_shard_that_is_not_what_was_written_is_refused(bert: Any, whole: Corpus, tmp_path: Path) -> None:
    out = shutil.copytree(whole.folder, tmp_path / "out")
    first, second = out / "shards" / "00000.parquet", out / "shards" / "00001.parquet"
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    with pytest.raises(FileFormatError, match="is not what was written"):
        cue_alignment(bert, EXAMPLES, corpus=read_corpus(out))
    result = cue_alignment(bert, EXAMPLES, corpus=read_corpus(out, verify=False))
    assert_same_numbers(result, cue_alignment(bert, EXAMPLES, corpus=whole))


def test_absent_examples_are_counted_and_the_first_is_named(bert: Any, whole: Corpus) -> None:
    words = ("the", "hat", "is", "near", "marcus", ".")
    absent = replace(EXAMPLES[1], id="hat-0", words=words)
    message = (
        rf"1 of {len(EXAMPLES) + 1} examples are not among the {len(EXAMPLES) + 2} sentences of .*'hat-0'.*sentences`"
    )
    with pytest.raises(InputError, match=message):
        cue_alignment(bert, [*EXAMPLES, absent], corpus=whole)


def test_tokens_that_differ_under_one_id_are_refused(bert: Any, tmp_path: Path) -> None:
    source = tmp_path / "unmasked.jsonl"
    source.write_text("".join(json.dumps({"id": sentence.id, "text": sentence.text}) + "\n" for sentence in EXAMPLES))
    run_corpus(bert, source, tmp_path / "out", ["attention"])
    with pytest.raises(InputError, match=rf"{len(EXAMPLES)} of .*whose tokens differ in the sentence of that id"):
        cue_alignment(bert, EXAMPLES, corpus=read_corpus(tmp_path / "out"))


def test_a_row_of_another_position_is_refused(bert: Any, tmp_path: Path) -> None:
    corpus = written(bert, tmp_path, ["attention"], rows="target", target=0)
    with pytest.raises(InputError, match="holds the row of position 0 and not"):
        cue_alignment(bert, EXAMPLES, corpus=corpus)
