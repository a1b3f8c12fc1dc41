"""Speech encoders: frames as positions, spans in seconds, the maps of plain hooks, and sounds that cannot be read."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.models import hf_bert, loaded
from support.signal_checks import assert_of_plain_hooks, assert_right, left_as_found
from support.signal_rows import ON_THIS_LINE, SIGNALS, SOUND, SPEECH, model_of, own_bridge, reference, signal_model
from support.state import type_checks_off
from transformers import ASTConfig, ASTForAudioClassification, Wav2Vec2FeatureExtractor

import tl_vzero
from tl_vzero.errors import InputError, InputTypeError, ModelError
from tl_vzero.models.facts import facts_of
from tl_vzero.models.signals import Sounds

NAMES = [name for name in ON_THIS_LINE if SIGNALS[name].signal is SOUND]
SHORT = torch.randn(95, generator=torch.Generator().manual_seed(5))
# As wav2vec2 and HuBERT are published.
PUBLISHED = Sounds((10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2), 16_000)

each_name = pytest.mark.parametrize("name", NAMES)


@each_name
def test_the_map_is_that_of_plain_hooks(name: str) -> None:
    assert_of_plain_hooks(name, model_of(name))


@each_name
def test_the_map_of_the_users_own_bridge_is_that_of_plain_hooks(name: str) -> None:
    assert_of_plain_hooks(name, own_bridge(SIGNALS[name].tiny()))


@each_name
def test_a_model_is_left_as_it_was(name: str) -> None:
    model = own_bridge(SIGNALS[name].tiny())
    with left_as_found(model, SOUND):
        tl_vzero.value_zeroing(model, SOUND)
        tl_vzero.score(model, [SOUND, SHORT], "attention")
        with pytest.raises(InputError):
            tl_vzero.value_zeroing(model, [SOUND, SOUND[:5]])
        with pytest.raises(InputError):
            tl_vzero.value_zeroing(model, SOUND, spans=[[3, 40]])


def test_sounds_of_several_lengths_are_as_each_alone() -> None:
    model, sounds = model_of("HuBERT"), [SOUND, SHORT, SOUND[:212]]
    scores = tl_vzero.value_zeroing(model, sounds)
    assert [len(of_sound.dest_tokens) for of_sound in scores] == [10, 4, 10]
    for of_sound, sound in zip(scores, sounds, strict=True):
        alone = tl_vzero.value_zeroing(model, sound, engine="hooks")
        assert ((of_sound.values - alone.values).abs() / alone.values).max() < 1e-3
        assert of_sound.metadata["engine"] == "closed_form"


def test_a_batch_of_one_and_an_array() -> None:
    (scores,) = tl_vzero.value_zeroing(model_of("HuBERT"), SOUND.unsqueeze(0))
    assert_right(scores, reference("HuBERT"))
    assert_right(tl_vzero.value_zeroing(model_of("HuBERT"), SOUND.double().numpy()), reference("HuBERT"))


def test_frames_are_labelled_by_when_they_begin() -> None:
    scores = tl_vzero.value_zeroing(model_of("HuBERT"), SOUND, sampling_rate=16_000)
    assert scores.dest_tokens[:5] == ("0.000 s", "0.001 s", "0.003 s", "0.004 s", "0.005 s")
    assert scores.metadata["signal"] == {"kind": "sound", "sampling_rate": 16_000, "seconds_a_frame": 0.00125}
    assert PUBLISHED.samples_per_frame == 400 and PUBLISHED.samples_per_step == 320
    labels = PUBLISHED.labels((16_000,))
    assert len(labels) == 49 and labels[16] == "0.32 s"


def test_a_frame_hears_the_samples_that_its_label_tells() -> None:
    """Before anything is normalised over time or mixed, one sample reaches only the frames that cover it."""
    model = model_of("HuBERT, pre-norm")
    changed = SOUND.clone()
    changed[105] += 1  # of frames that hear 30 samples and begin at 80 and 100
    features = [
        model.run_with_cache(sound.unsqueeze(0))[1]["audio_feature_extractor.hook_out"][0] for sound in (SOUND, changed)
    ]
    moved = (features[0] - features[1]).abs().sum(0) > 0
    assert moved.nonzero().flatten().tolist() == [4, 5]
    assert tl_vzero.frames(model, 80 / 16_000, 101 / 16_000) == [4, 5]


def test_spans_in_seconds_are_zeroed_jointly() -> None:
    model = model_of("HuBERT")
    spans = [tl_vzero.frames(model, 0.0, 0.005), tl_vzero.frames(model, 0.005, 0.01)]
    assert spans == [[0, 1, 2, 3], [4, 5, 6, 7]]
    closed = tl_vzero.value_zeroing(model, SOUND, spans=spans)
    hooked = tl_vzero.value_zeroing(model, SOUND, spans=spans, engine="hooks")
    assert closed.values.shape == (3, 10, 2)
    assert ((closed.values - hooked.values).abs() / hooked.values).max() < 1e-3


def test_times_that_binary_fractions_miss() -> None:
    for first in range(60):
        assert PUBLISHED.frames(first * 0.02, first * 0.02 + 0.06) == [first, first + 1, first + 2]
    assert PUBLISHED.frames(0.01, 0.05) == [1, 2]


@pytest.mark.parametrize(
    ("start", "end", "said"),
    [
        (0.5, 0.2, "expected 0 <= start < end"),
        (-1.0, 0.2, "expected 0 <= start < end"),
        (0.0, float("nan"), "expected 0 <= start < end"),
        (0.0001, 0.0002, "no frame begins from 0.0001 .* begin 0.00125 s apart"),
        ("0", 1.0, "start is str: expected seconds"),
    ],
)
def test_times_that_are_no_span(start: Any, end: Any, said: str) -> None:
    with type_checks_off(), pytest.raises((InputError, InputTypeError), match=said):
        tl_vzero.frames(model_of("HuBERT"), start, end)


def test_a_span_past_the_end_of_the_sound() -> None:
    with pytest.raises(InputError, match="spans"):
        tl_vzero.value_zeroing(model_of("HuBERT"), SOUND, spans=[tl_vzero.frames(model_of("HuBERT"), 0.01, 1.0)])


def test_frames_of_a_model_without_sound() -> None:
    with pytest.raises(InputError, match="this model reads token ids: give positions"):
        tl_vzero.frames(loaded(hf_bert()), 0.0, 1.0)
    with pytest.raises(InputError, match="this model reads an image"):
        tl_vzero.frames(model_of("ViT"), 0.0, 1.0)


def test_the_norm_behind_pre_norm_blocks_and_only_there() -> None:
    model = model_of("HuBERT, pre-norm")
    closed = tl_vzero.value_zeroing(model, SOUND, final_norm=True)
    hooked = tl_vzero.value_zeroing(model, SOUND, final_norm=True, engine="hooks")
    plain = tl_vzero.value_zeroing(model, SOUND)
    assert torch.allclose(closed.values, hooked.values, rtol=1e-2, atol=1e-7)
    assert torch.equal(closed.values[:-1], plain.values[:-1])
    assert not torch.allclose(closed.values[-1], plain.values[-1], rtol=0.01, atol=0)
    with pytest.raises(InputError, match="no norm after its last block"):
        tl_vzero.value_zeroing(model_of("HuBERT"), SOUND, final_norm=True)


def test_attention_takes_a_rate_too() -> None:
    scores = tl_vzero.score(model_of("HuBERT"), SOUND, "attention", sampling_rate=16_000)
    assert torch.allclose(scores.values.sum(-1), torch.ones(3, 10), atol=1e-5)
    with pytest.raises(InputError, match="expected 16000"):
        tl_vzero.score(model_of("HuBERT"), SOUND, "attention", sampling_rate=8_000)


def test_the_rate_is_that_of_the_folders_feature_extractor(tmp_path: Path) -> None:
    SIGNALS["HuBERT"].tiny().save_pretrained(tmp_path)
    assert _rate_of(tmp_path) == 16_000
    Wav2Vec2FeatureExtractor(sampling_rate=8_000).save_pretrained(tmp_path)
    model = tl_vzero.load_model(tmp_path)
    assert facts_of(model).head == "trained"
    scores = tl_vzero.value_zeroing(model, SOUND, sampling_rate=8_000)
    assert_right(scores, reference("HuBERT"))
    assert scores.dest_tokens[2] == "0.005 s"
    with pytest.raises(InputError, match=r"sampling_rate is 16000: expected 8000.*resample"):
        tl_vzero.value_zeroing(model, SOUND, sampling_rate=16_000)


def _rate_of(folder: Path) -> int:
    scores = tl_vzero.value_zeroing(tl_vzero.load_model(folder), SOUND, layers=[0])
    return int(scores.metadata["signal"]["sampling_rate"])


def test_a_feature_extractor_that_cannot_be_read(tmp_path: Path) -> None:
    SIGNALS["HuBERT"].tiny().save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(ModelError, match=r"feature extractor of .* cannot be read"):
        tl_vzero.load_model(tmp_path)


def test_a_checkpoint_without_what_only_training_reads(tmp_path: Path) -> None:
    """wav2vec2-base-960h is such."""
    hf_model = signal_model("HubertForCTC", SPEECH)
    weights = {name: tensor for name, tensor in hf_model.state_dict().items() if "masked_spec_embed" not in name}
    assert len(weights) < len(hf_model.state_dict())
    hf_model.save_pretrained(tmp_path, state_dict=weights)
    model = tl_vzero.load_model(tmp_path)
    assert facts_of(model).head == "trained"
    assert_right(tl_vzero.value_zeroing(model, SOUND), reference("HuBERT"))


@pytest.mark.skipif("wav2vec2" in ON_THIS_LINE, reason="this TransformerLens line reads wav2vec2")
def test_wav2vec2_is_refused_where_transformer_lens_lacks_it() -> None:
    with pytest.raises(ModelError, match="TransformerLens cannot read 'Wav2Vec2ForCTC'"):
        tl_vzero.load_model(SIGNALS["wav2vec2"].build())


def test_a_model_of_spectrograms_is_refused(tmp_path: Path) -> None:
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    patches = {"max_length": 64, "num_mel_bins": 16, "patch_size": 8, "frequency_stride": 8, "time_stride": 8}
    hf_model = ASTForAudioClassification(ASTConfig(**shape, **patches))
    hf_model.config._name_or_path = str(tmp_path)  # where TransformerLens looks for its feature extractor
    with pytest.raises(ModelError, match="ASTForAudioClassification reads neither token ids, nor images"):
        tl_vzero.load_model(hf_model)


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ("hello", r"inputs is str: expected a sound.*\[sample\].*feature extractor"),
        ((1000 * SOUND).to(torch.int16), "inputs is of torch.int16: expected a sound, a tensor of floats"),
        (SOUND[:29], r"inputs\[0\] has shape \[29\]: .*at least 30 .*0.00187 s at 16000 .*one frame"),
        ([SOUND, SOUND.unsqueeze(0)], r"inputs\[1\] has shape \[1, 215\]: expected \[samples\], one channel"),
        (SOUND.view(1, 1, -1), r"inputs\[0\] has shape \[1, 1, 215\]"),
        (torch.full((215,), float("inf")), "NaN or infinity"),
        ([], "empty list"),
    ],
)
def test_what_is_no_sound_is_refused(inputs: Any, said: str) -> None:
    with type_checks_off(), pytest.raises((InputError, InputTypeError), match=said):
        tl_vzero.value_zeroing(model_of("HuBERT"), inputs)


def test_a_mask_beside_a_sound_and_a_rate_beside_text() -> None:
    with pytest.raises(InputError, match=r"attention_mask given with a sound.*as a list"):
        tl_vzero.value_zeroing(model_of("HuBERT"), SOUND, attention_mask=torch.ones(1, 215))
    with pytest.raises(InputError, match="this model reads no sound"):
        tl_vzero.value_zeroing(loaded(hf_bert()), "the hat", sampling_rate=16_000)
