"""Whisper: frames of sound and tokens against plain hooks, sounds by the feature extractor, and what it cannot read."""

import copy
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from support.models import tokenizer
from support.paired import HEARD, SPECTROGRAM, STACKS, WRITTEN, model_of, reference, stack_options
from support.signal_checks import assert_right
from support.signal_rows import own_bridge
from support.state import lens_hooks, torch_hooks, type_checks_off
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperModel

import tl_vzero
from tl_vzero import Scores
from tl_vzero.errors import InputError, InputTypeError

ROW = HEARD["Whisper"]
TIMES = ("0.00 s", "0.02 s", "0.04 s", "0.06 s", "0.08 s", "0.10 s", "0.12 s")
SOUND = torch.randn(9_000, generator=torch.Generator().manual_seed(6))

each_stack = pytest.mark.parametrize("stack", STACKS)


@each_stack
@pytest.mark.parametrize("made_by", ["load_model", "load_model of a headless one", "the user, with sdpa"])
def test_the_map_is_that_of_plain_hooks(made_by: str, stack: str) -> None:
    hf_model = copy.deepcopy(ROW.tiny())
    if made_by == "the user, with sdpa":
        model = own_bridge(hf_model, "sdpa")
    else:
        hf_model.set_attn_implementation("sdpa")
        headless = WhisperModel(hf_model.config).eval()
        headless.load_state_dict(hf_model.model.state_dict())
        model = tl_vzero.load_model(hf_model if made_by == "load_model" else headless)
    scores = tl_vzero.value_zeroing(model, SPECTROGRAM, **stack_options(stack))
    before = torch_hooks(model), lens_hooks(model)
    tl_vzero.score(model, SPECTROGRAM, "attention", **stack_options(stack))
    assert (torch_hooks(model), lens_hooks(model)) == before
    assert_right(scores, reference("Whisper", stack))
    tokens = tuple(map(str, WRITTEN))
    assert scores.dest_tokens == (TIMES if stack == "encoder" else tokens)
    assert scores.src_tokens == (tokens if stack == "decoder" else TIMES)


def test_the_pattern_of_cross_attention_is_that_of_the_model() -> None:
    hf_model = copy.deepcopy(ROW.tiny())
    hf_model.set_attn_implementation("eager")
    with torch.no_grad():
        output = hf_model(SPECTROGRAM[None], decoder_input_ids=torch.tensor([WRITTEN]), output_attentions=True)
    scores = tl_vzero.score(model_of("Whisper"), SPECTROGRAM, "attention", per_head=True, **stack_options("cross"))
    torch.testing.assert_close(scores.values, torch.cat(output.cross_attentions), rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that hears 1 s, with its feature extractor and a tokenizer that sets the start of the decoder."""
    path = tmp_path_factory.mktemp("whisper")
    config = WhisperConfig(**{**ROW.tiny().config.to_dict(), "max_source_positions": 50, "decoder_start_token_id": 2})
    torch.manual_seed(0)
    WhisperForConditionalGeneration(config).save_pretrained(path)
    WhisperFeatureExtractor(feature_size=8, chunk_length=1).save_pretrained(path)
    tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Any:
    return tl_vzero.load_model(folder)


def test_a_sound_is_read_by_the_folders_feature_extractor(folder: Path, loaded: Any) -> None:
    model = loaded
    text = "the hat of some dog"
    scores = tl_vzero.value_zeroing(model, SOUND, stack="cross", decoder_inputs=text, sampling_rate=16_000)
    extractor = WhisperFeatureExtractor.from_pretrained(folder)
    features = extractor(SOUND.numpy(), sampling_rate=16_000, return_tensors="pt")["input_features"]
    ids = torch.tensor(tokenizer()(text)["input_ids"][:-1])
    (by_hand,) = tl_vzero.value_zeroing(model, features, stack="cross", decoder_inputs=[ids])
    assert torch.equal(scores.values, by_hand.values)
    assert scores.dest_tokens == ("[CLS]", "the", "hat", "of", "some", "dog")
    assert scores.src_tokens[-1] == "0.98 s"
    about = {"kind": "sound", "sampling_rate": 16_000, "seconds_a_frame": 0.02}
    assert by_hand.metadata["signal"] == about and scores.metadata["signal"] == {**about, "seconds": 0.5625}
    # What lies behind the sound can be left out.
    heard = tl_vzero.frames(model, 0.0, scores.metadata["signal"]["seconds"])
    part = tl_vzero.value_zeroing(model, SOUND, stack="encoder", sources=heard, destinations=heard, layers=0)
    assert part.values.shape == (1, 29, 29)


@pytest.mark.parametrize(
    ("inputs", "options", "says"),
    [
        (SOUND, {"sampling_rate": 8_000}, "sampling_rate is 8000: expected 16000.*resample"),
        (SOUND.repeat(2), {}, "18000 samples, 1.12 s: expected at most 1 s"),
        (SOUND[:0], {}, "has 0 samples"),
        (SPECTROGRAM, {}, r"shape \[8, 14\]: expected \[8, 100\], what this model was made for"),
        (SOUND * float("nan"), {}, "NaN or infinity"),
        ("hello", {}, "inputs is str: expected a spectrogram"),
        (SOUND, {"decoder_inputs": None}, "no decoder_inputs given"),
        (SOUND, {"decoder_inputs": [[2, 5], [2]]}, "decoder_inputs are a list of list"),
        (SOUND, {"attention_mask": torch.ones(9_000)}, "attention_mask given with a spectrogram"),
        (SOUND, {"stack": None, "decoder_inputs": None}, "expected stack='encoder' or 'decoder' or 'cross'"),
    ],
)
def test_what_cannot_be_read(loaded: Any, inputs: Any, options: dict[str, Any], says: str) -> None:
    asked_for = {"stack": "cross", "decoder_inputs": torch.tensor([2, 5])} | options
    with type_checks_off(), pytest.raises((InputError, InputTypeError), match=says):
        tl_vzero.value_zeroing(loaded, inputs, **asked_for)


def test_a_sound_without_a_feature_extractor() -> None:
    with pytest.raises(InputError, match=r"without the feature extractor.*preprocessor_config.json.*\[8, 14\]"):
        tl_vzero.value_zeroing(model_of("Whisper"), SOUND, stack="encoder")


def made_cross_map(bounds: list[int], **changes: Any) -> Scores:
    """Of tokens whose frames are known: token n + 1 is listened to, by row n, from bounds[n] on and before the next."""
    n_tokens, n_frames = len(bounds), bounds[-1] + 5
    weights = 0.2 * torch.rand(2, n_tokens + 1, n_frames, generator=torch.Generator().manual_seed(0))
    for row, (first, last) in enumerate(zip(bounds, [*bounds[1:], n_frames], strict=True)):
        weights[:, row, first:last] += 1
    axes = {"dest_positions": tuple(range(n_tokens + 1)), "src_positions": tuple(range(n_frames))}
    labels = {
        "dest_tokens": ("[CLS]", *(f"t{n}" for n in range(n_tokens))),
        "src_tokens": tuple(f"{0.02 * frame:.2f} s" for frame in range(n_frames)),
        "word_ids": (None, 0, 1, 1, *range(2, n_tokens - 1)),
    }
    about = {"stack": "cross", "signal": {"seconds_a_frame": 0.02}, "special": [True] + [False] * n_tokens}
    whole = {"n_positions": n_tokens + 1, "n_src_positions": n_frames, "n_layers": 2, "metadata": about}
    values = changes.pop("values", weights)
    return Scores(values, "attention", (0, 1), **{**axes, **labels, **whole, **changes})


def test_words_are_aligned_with_the_frames_that_they_were_made_for() -> None:
    words = tl_vzero.align_words(made_cross_map([0, 7, 9, 20, 31]))
    assert words == [("t0", 0.0, 0.14), ("t1t2", 0.14, 0.4), ("t3", 0.4, 0.62), ("t4", 0.62, 0.72)]
    # What lies behind the end of a sound is nobody's.
    scores = made_cross_map([0, 7, 9, 20, 31])
    ended = replace(scores, metadata={**scores.metadata, "signal": {"seconds_a_frame": 0.02, "seconds": 0.66}})
    assert tl_vzero.align_words(ended)[-1] == ("t4", 0.62, 0.66)


def test_words_of_a_model_are_in_order_and_leave_no_gap(loaded: Any) -> None:
    options: dict[str, Any] = {"stack": "cross", "decoder_inputs": "the hat of some dog"}
    words = tl_vzero.align_words(tl_vzero.score(loaded, SOUND, "attention", per_head=True, **options))
    assert [word for word, _, _ in words] == ["the", "hat", "of", "some", "dog"]
    assert words[0][1] == 0.0 and words[-1][2] == 0.58
    assert all(end == start for (_, _, end), (_, start, _) in pairwise(words))


def test_scores_that_align_nothing(loaded: Any) -> None:
    few = made_cross_map([0, 2], src_positions=(3,), src_tokens=("0.06 s",), values=torch.ones(2, 3, 1))
    for scores, says in (
        (tl_vzero.score(loaded, SOUND, "attention", stack="encoder"), "no map of tokens over frames"),
        (few, "2 tokens to align with 1 frames"),
    ):
        with pytest.raises(InputError, match=says):
            tl_vzero.align_words(scores)
