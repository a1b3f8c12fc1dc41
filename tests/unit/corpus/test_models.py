"""Which models a corpus is for, and that torch is left as it was."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support import paired, signal_rows
from support.corpora import text_file
from support.models import hf_bert, loaded

from tl_vzero.corpus import run_corpus
from tl_vzero.corpus import write as run_module
from tl_vzero.corpus.write import no_kernels_kept
from tl_vzero.errors import ModelError, OutputPathError


def refused(model: Any, folder: Path, message: str) -> None:
    source = text_file(folder, 2)
    with pytest.raises(ModelError, match=message):
        run_corpus(model, source, folder / "out")
    assert not (folder / "out").exists()


@pytest.mark.parametrize(("name", "what"), [("ViT", "an image"), ("HuBERT", "a sound")])
def test_models_of_images_and_sounds_are_refused_at_the_door(tmp_path: Path, name: str, what: str) -> None:
    refused(signal_rows.model_of(name), tmp_path, f"reads {what}, and a corpus is text")


def test_encoder_decoders_are_refused_at_the_door(tmp_path: Path) -> None:
    refused(paired.model_of("BART"), tmp_path, r"is an encoder-decoder, .* stack= \(encoder, decoder, cross\)")


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
