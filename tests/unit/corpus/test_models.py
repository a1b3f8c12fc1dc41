"""Which models a corpus is for, and that torch is left as it was."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support import paired, signal_rows
from support.corpora import table_of, text_file
from support.models import hf_bert, loaded

import tl_vzero
from tl_vzero.corpus import read_corpus, run_corpus
from tl_vzero.corpus import write as run_module
from tl_vzero.corpus.write import no_kernels_kept
from tl_vzero.errors import InputError, ModelError, OutputPathError


def refused(model: Any, folder: Path, message: str) -> None:
    source = text_file(folder, 2)
    with pytest.raises(ModelError, match=message):
        run_corpus(model, source, folder / "out")
    assert not (folder / "out").exists()


@pytest.mark.parametrize(("name", "what"), [("ViT", "an image"), ("HuBERT", "a sound")])
def test_models_of_images_and_sounds_are_refused_at_the_door(tmp_path: Path, name: str, what: str) -> None:
    refused(signal_rows.model_of(name), tmp_path, f"reads {what}, and a corpus is text")


PAIRS = [("a", "the dogs bark .", "a hat"), ("b", "some hat of marcus", "the dogs of some hat"), ("c", "a dog", "hat")]


def pairs(folder: Path) -> Path:
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(dict(zip(("id", "text", "out"), row, strict=True))) + "\n" for row in PAIRS))
    return path


@pytest.mark.parametrize("stack", paired.STACKS)
def test_a_stack_of_an_encoder_decoder_is_as_it_is_alone(tmp_path: Path, stack: str) -> None:
    """Its labels too, in a run that was interrupted after a shard and goes on."""
    model, methods = paired.model_of("BART"), ("value_zeroing", "attention")
    options: dict[str, Any] = {"stack": stack, "shard_size": 2}
    options |= {} if stack == "encoder" else {"second_text_column": "out"}
    run = run_corpus(model, pairs(tmp_path), tmp_path / "out", methods, **options)
    next((run.folder / "done").glob("*1*")).unlink()
    assert run_corpus(model, pairs(tmp_path), tmp_path / "out", methods, **options).computed == 1
    for method in methods:
        for (name, scores), (expected_name, text, out) in zip(
            read_corpus(run.folder).scores(method), PAIRS, strict=True
        ):
            beside = {} if stack == "encoder" else {"decoder_inputs": out}
            alone = tl_vzero.score(model, text, method, stack=stack, **beside)
            assert name == expected_name and torch.allclose(scores.values, alone.values, rtol=1e-4, atol=1e-9)
            for label in ("dest_tokens", "src_tokens", "n_src_positions", "word_ids", "src_word_ids", "crosses"):
                assert getattr(scores, label) == getattr(alone, label), label
            assert scores.metadata.get("encoder_tokens") == alone.metadata.get("encoder_tokens")
            assert scores.words().src_tokens == alone.words().src_tokens


def test_of_an_encoder_decoder_the_targets_row_and_means(tmp_path: Path) -> None:
    model, both = paired.model_of("BART"), {"stack": "cross", "second_text_column": "out"}
    methods = ["value_zeroing", "attention"]
    run = run_corpus(model, pairs(tmp_path), tmp_path / "rows", methods, rows="target", **both)
    (_, scores), *_ = read_corpus(run.folder).scores("value_zeroing")
    alone = tl_vzero.value_zeroing(model, PAIRS[0][1], stack="cross", decoder_inputs=PAIRS[0][2])
    assert torch.allclose(scores.values[:, 0], alone.values[:, -1], rtol=1e-4)
    run = run_corpus(model, pairs(tmp_path), tmp_path / "means", methods, rows="summary", **both)
    assert table_of(run.folder).column("attention_self_weight").to_pylist() == [[None] * 3] * 3


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({}, InputError, "no stack named"),
        ({"stack": "cross"}, InputError, "what the decoder reads"),
        ({"stack": "encoder", "second_text_column": "out"}, InputError, "reads one text"),
        ({"stack": "encoder", "rows": "target"}, InputError, "no row of an encoder's map"),
        (
            {"stack": "cross", "second_text_column": "out", "methods": ["logit_contributions"]},
            ModelError,
            "logits are followed through",
        ),
        ({"stack": "cross", "second_text_column": "out", "methods": ["attention_flow"]}, ModelError, "cross map"),
    ],
)
def test_what_a_corpus_of_an_encoder_decoder_is_refused(
    tmp_path: Path, options: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        run_corpus(paired.model_of("BART"), pairs(tmp_path), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_onednn_keeps_no_kernels_and_is_as_it_was_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In full precision, where MKL has the products; also after an error."""
    model = loaded(hf_bert(0))
    switches = []

    def failing(*_: Any) -> None:
        switches.append(torch.backends.mkldnn.enabled)
        raise OutputPathError("no room")

    monkeypatch.setattr(run_module, "_write_part", failing)
    before = torch.backends.mkldnn.enabled
    source = tmp_path / "one.txt"
    source.write_text("the dog [MASK]\n")
    with pytest.raises(OutputPathError, match="no room"):
        run_corpus(model, source, tmp_path / "out")
    assert switches == [before and not torch.backends.mkl.is_available()]
    assert torch.backends.mkldnn.enabled == before
    with no_kernels_kept(torch.nn.Linear(2, 2, dtype=torch.bfloat16)):
        assert torch.backends.mkldnn.enabled == before
