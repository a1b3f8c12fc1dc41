"""Value Zeroing of all three stacks of a T5 against plain hooks and inseq, through every class that holds it."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from support import golden
from support.architecture_row import LINE
from support.golden import assert_close
from support.paired import hooked_encoder_decoder
from support.references import row_normalized

import tl_vzero
from tl_vzero import Scores

T5_FILES = golden.files("inseq_tiny-t5_s*.npz")
NAMES = {"encoder": "enc", "decoder": "dec", "cross": "cross"}
# Hugging Face's RMSNorm is float32 inside a float64 model, and the expected values were computed with it.
TOLERANCE = {torch.float32: 5e-6, torch.float64: 1e-6}

each_file = pytest.mark.parametrize("path", T5_FILES, ids=lambda path: path.stem[-2:])
each_stack = pytest.mark.parametrize("stack", NAMES)
# A T5 that load_model gives runs on 4.3, HookedEncoderDecoder exists on 3.9.
each_dtype = pytest.mark.parametrize("dtype", TOLERANCE, ids=["float32", "float64"])


@cache
def tiny_t5(dtype: torch.dtype) -> Any:
    if LINE == "3.9":
        return hooked_encoder_decoder(golden.hf_tiny_t5(dtype))
    return tl_vzero.load_model(golden.model_folder("tiny-t5"), dtype=dtype)


def scored(path: Path, stack: str, dtype: torch.dtype = torch.float32, **options: Any) -> Scores:
    stored = golden.read(path)
    if stack != "encoder":
        options["decoder_inputs"] = torch.as_tensor(stored["decoder_input_ids"])
    return tl_vzero.value_zeroing(tiny_t5(dtype), torch.as_tensor(stored["input_ids"]), stack=stack, **options)


@each_dtype
@each_stack
@pytest.mark.parametrize("final_norm", [False, True], ids=["block_outputs", "final_norm"])
@each_file
def test_against_plain_hooks_in_float64(path: Path, final_norm: bool, stack: str, dtype: torch.dtype) -> None:
    stored = golden.read(path)[f"indep64_{NAMES[stack]}" + ("_finalnorm" if final_norm else "")]
    raw = golden.tensor(stored).nan_to_num(0.0)
    scores = scored(path, stack, dtype, final_norm=final_norm)
    assert_close(scores.values, raw, TOLERANCE[dtype])
    assert_close(scores.normalized().values, row_normalized(raw), TOLERANCE[dtype])


@each_stack
@each_file
def test_against_inseq(path: Path, stack: str) -> None:
    """inseq computes 1 - cos in float32, so only its raw distances are good to 5e-6."""
    stored = golden.read(path)
    assert_close(
        scored(path, stack, final_norm=True).values,
        golden.tensor(stored[f"raw_{NAMES[stack]}"]).nan_to_num(0.0),
        5e-6,
    )


@each_file
def test_both_texts_are_read_as_inseq_read_them(path: Path) -> None:
    if LINE == "3.9":
        pytest.skip("the HookedEncoderDecoder of these tests has another tokenizer")
    stored = golden.read(path)
    by_ids = scored(path, "cross")
    by_text = tl_vzero.value_zeroing(
        tiny_t5(torch.float32),
        str(stored["text"]),
        stack="cross",
        decoder_inputs=str(stored["target_text"]),
    )
    assert torch.equal(by_text.values, by_ids.values)
    assert by_text.dest_tokens == by_ids.dest_tokens and by_text.src_tokens == by_ids.src_tokens
    assert by_text.dest_tokens == tuple(
        token.strip("▁") or token for token in stored["out_target_tokens"].tolist()[:-1]
    )
    assert "starts the decoder" in by_text.metadata["decoder_inputs"]
    assert by_ids.metadata["decoder_inputs"] == "ids as given"
