"""Models that read an image or a sound instead of token ids: its shape, and which position shows what part of it.

An image is cut into patches, row by row, behind the model's own tokens such as [CLS]. A sound is cut into overlapping
frames by convolutions, of the waveform or of its spectrogram; frame i begins i steps of `samples_per_step` after the
start.
"""

from dataclasses import dataclass
from math import ceil, log10, prod
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tl_vzero.errors import InputError, ModelError, foreign_errors_as
from tl_vzero.models.sites import hf_model_of

# What a model reads: token ids, or images or sounds of one shape.
Read = Int[Tensor, "batch position"] | Float[Tensor, "batch *signal"]
ReadOnce = Int[Tensor, "position"] | Float[Tensor, "*signal"]

# Where no feature extractor says otherwise: of wav2vec2, HuBERT and their kin, and of Whisper.
TRAINED_AT = 16_000  # samples per second
HOP_LENGTH = 160  # samples from one column of a spectrogram to the next
COLUMNS_PER_FRAME = 2  # of a spectrogram, by the stride of Whisper's second convolution

# The tokens that a model sets before the patches, by the parameter that holds each.
_SPECIAL_TOKENS = {"cls_token": "[CLS]", "distillation_token": "[DIST]"}


@dataclass(frozen=True)
class Images:
    """What a vision model reads: images of one size, cut into patches."""

    channels: int
    size: tuple[int, int]
    patch: tuple[int, int]
    special_tokens: tuple[str, ...]

    argument = "pixel_values"  # by which a Hugging Face model takes it
    axes = ("channel", "height", "width")
    named = "an image"
    source = "as the model's image processor makes it (pixel_values: resized, scaled, normalised)"

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.size[0] // self.patch[0], self.size[1] // self.patch[1]

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.channels, *self.size)

    def fault(self, shape: tuple[int, ...]) -> str | None:
        """What is wrong with an image of that shape; None if nothing is."""
        return None if shape == self.shape else f"expected {list(self.shape)}, what this model was made for"

    def labels(self, shape: tuple[int, ...]) -> tuple[str, ...]:
        rows, columns = self.grid
        return (*self.special_tokens, *(f"r{row}c{column}" for row in range(rows) for column in range(columns)))

    def beginning(self, image: Tensor, positions: int) -> Tensor:
        """An image is read whole."""
        return image

    def probe(self, positions: int) -> Float[Tensor, "channel height width"]:
        return torch.randn(self.shape, generator=torch.Generator().manual_seed(0))

    def as_data(self) -> dict[str, Any]:
        return {"kind": "image", "grid": list(self.grid), "patch": list(self.patch)}


class Frames:
    """Positions that are pieces of time: a frame begins every `samples_per_step` samples."""

    sampling_rate: int
    samples_per_step: int

    def labels_of(self, n_frames: int) -> tuple[str, ...]:
        """When each frame begins, with as many digits as tell frames apart."""
        seconds_per_step = self.samples_per_step / self.sampling_rate
        digits = max(2, ceil(-log10(seconds_per_step)))
        return tuple(f"{frame * seconds_per_step:.{digits}f} s" for frame in range(n_frames))

    def frames(self, start: float, end: float) -> list[int]:
        """The frames that begin from `start` on and before `end`, in seconds, so that no two spans share one."""
        steps_per_second = self.sampling_rate / self.samples_per_step
        # A time such as 0.06 s is no exact multiple of 0.02 s in binary.
        first, last = (ceil(round(seconds * steps_per_second, 6)) for seconds in (start, end))
        return list(range(first, last))

    def as_data(self) -> dict[str, Any]:
        seconds = self.samples_per_step / self.sampling_rate
        return {"kind": "sound", "sampling_rate": self.sampling_rate, "seconds_a_frame": seconds}


@dataclass(frozen=True)
class Sounds(Frames):
    """What a speech encoder reads: waveforms of any length, cut into frames by convolutions."""

    kernels: tuple[int, ...]
    strides: tuple[int, ...]
    sampling_rate: int

    argument = "input_values"
    axes = ("sample",)
    named = "a sound"
    source = "as the model's feature extractor makes it (input_values: one channel, at the model's rate)"

    @property
    def samples_per_step(self) -> int:  # type: ignore[override]
        """Samples from the beginning of one frame to the next."""
        return prod(self.strides)

    @property
    def samples_per_frame(self) -> int:
        """Samples that one frame is computed from."""
        return self._samples_for(1)

    def fault(self, shape: tuple[int, ...]) -> str | None:
        """What is wrong with a sound of that shape; None if nothing is."""
        least = self.samples_per_frame
        if len(shape) == 1 and shape[0] >= least:
            return None
        seconds = f"{least / self.sampling_rate:.3g} s at {self.sampling_rate} samples a second"
        return f"expected [samples], one channel, at least {least} of them ({seconds}), one frame"

    def labels(self, shape: tuple[int, ...]) -> tuple[str, ...]:
        n_frames = shape[0]
        for kernel, stride in zip(self.kernels, self.strides, strict=True):
            n_frames = (n_frames - kernel) // stride + 1
        return self.labels_of(n_frames)

    def beginning(self, sound: Tensor, positions: int) -> Tensor:
        """The beginning of a sound that gives that many frames, or all of it."""
        return sound[: self._samples_for(positions)]

    def probe(self, positions: int) -> Float[Tensor, "sample"]:
        return torch.randn(self._samples_for(positions), generator=torch.Generator().manual_seed(0))

    def _samples_for(self, frames: int) -> int:
        samples = frames
        for kernel, stride in zip(reversed(self.kernels), reversed(self.strides), strict=True):
            samples = (samples - 1) * stride + kernel
        return samples


@dataclass(frozen=True)
class Spectrograms(Frames):
    """What Whisper reads: the log-mel spectrogram of a stretch of sound, padded to its full length.

    Its second convolution halves the columns: a frame is two of them. `extractor` makes one of a waveform.
    """

    n_mels: int
    n_frames: int
    sampling_rate: int
    samples_per_step: int
    extractor: Any | None = None

    argument = "input_features"
    axes = ("mel", "column")
    named = "a spectrogram"
    source = (
        "as the model's feature extractor makes it (input_features, padded to full length), or the sound itself, a "
        "tensor of floats [sample], one channel at the model's rate"
    )

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.n_mels, COLUMNS_PER_FRAME * self.n_frames)

    def fault(self, shape: tuple[int, ...]) -> str | None:
        """What is wrong with a spectrogram of that shape; None if nothing is."""
        return None if shape == self.shape else f"expected {list(self.shape)}, what this model was made for"

    def of_sound(self, sound: Float[Tensor, "sample"], name: str) -> Float[Tensor, "mel column"]:
        """The spectrogram of a waveform; raises InputError for one that is too long or where there is no extractor."""
        if self.extractor is None:
            raise InputError(
                f"{name} is a sound of {len(sound)} samples, and this model was loaded without the feature extractor "
                "that makes its spectrograms: load it from a folder with preprocessor_config.json, or give "
                f"input_features {list(self.shape)}"
            )
        longest = self.n_frames * self.samples_per_step
        if not 0 < len(sound) <= longest:
            raise InputError(
                f"{name} has {len(sound)} samples, {len(sound) / self.sampling_rate:.3g} s: expected at most "
                f"{longest / self.sampling_rate:g} s, which this model reads at once; cut the sound"
            )
        with foreign_errors_as(InputError, f"the feature extractor cannot read {name}"):
            features = self.extractor(sound.cpu().numpy(), sampling_rate=self.sampling_rate, return_tensors="pt")
        spectrogram: Tensor = features["input_features"][0]
        return spectrogram

    def labels(self, shape: tuple[int, ...]) -> tuple[str, ...]:
        return self.labels_of(self.n_frames)

    def beginning(self, spectrogram: Tensor, positions: int) -> Tensor:
        """A spectrogram is read whole."""
        return spectrogram

    def probe(self, positions: int) -> Float[Tensor, "mel column"]:
        return torch.randn(self.shape, generator=torch.Generator().manual_seed(0))


Signal = Images | Sounds | Spectrograms


def signal_of(model: nn.Module) -> Signal | None:
    """What a model reads in place of token ids; None where it reads ids.

    Raises ModelError for a model of images or sound that reads something else, such as patches of a spectrogram.
    """
    config: Any = model.cfg
    if not (getattr(config, "is_visual_model", False) or getattr(config, "is_audio_model", False)):
        return None
    hf_model = hf_model_of(model)
    signal = None if hf_model is None else signal_read_by(hf_model, getattr(model, "processor", None))
    if signal is None:
        raise ModelError(
            f"{type(hf_model).__name__} reads neither token ids, nor images cut into patches, nor waveforms: expected "
            "a text model, a vision model such as ViT, or a speech model: wav2vec2, HuBERT, Whisper"
        )
    return signal


def n_positions_of(model: nn.Module, read: ReadOnce) -> int:
    """How many positions a model makes of what it reads: a sentence's ids, an image or a sound."""
    signal = signal_of(model)
    return len(read) if signal is None else len(signal.labels(tuple(read.shape)))


def signal_read_by(hf_model: nn.Module, extractor: Any | None = None) -> Signal | None:
    """The same of a Hugging Face model; None also where it reads anything else."""
    config: Any = hf_model.config
    argument = getattr(hf_model, "main_input_name", "input_ids")
    rate = getattr(extractor, "sampling_rate", None) or TRAINED_AT
    if argument == "pixel_values" and hasattr(config, "patch_size"):
        names = [name.rpartition(".")[2] for name, _ in nn.Module.named_parameters(hf_model)]
        special = tuple(label for name, label in _SPECIAL_TOKENS.items() if name in names)
        return Images(int(config.num_channels), _pair(config.image_size), _pair(config.patch_size), special)
    if argument == "input_values" and hasattr(config, "conv_stride"):
        return Sounds(tuple(config.conv_kernel), tuple(config.conv_stride), rate)
    if argument == "input_features" and config.model_type == "whisper":
        step = COLUMNS_PER_FRAME * (getattr(extractor, "hop_length", None) or HOP_LENGTH)
        return Spectrograms(config.num_mel_bins, config.max_source_positions, rate, step, extractor)
    return None


# The tokens that stand for the parts of an image or a sound in a text, by what a configuration calls their ids.
_PLACEHOLDERS = {"image": ("image_token_id", "image_token_index"), "sound": ("audio_token_id", "audio_token_index")}


def placeholders(config: Any) -> dict[str, int]:
    """The ids at which a model of text and images, or text and sounds, reads these, by kind; none of other models."""
    named = ((kind, getattr(config, name, None)) for kind, names in _PLACEHOLDERS.items() for name in reversed(names))
    return {kind: int(token) for kind, token in named if token is not None}


def media_probe(config: Any) -> dict[str, dict[str, Tensor]]:
    """By the argument that takes it, a small image or sound, and what a model of text and media takes beside it."""
    generator, kinds = torch.Generator().manual_seed(0), placeholders(config)
    vision: Any = getattr(config, "vision_config", None)
    audio: Any = getattr(config, "audio_config", None)
    probes: dict[str, dict[str, Tensor]] = {}
    if "image" in kinds and hasattr(vision, "spatial_merge_size") and hasattr(vision, "temporal_patch_size"):
        rows, values = 2 * vision.spatial_merge_size, 3 * vision.temporal_patch_size * vision.patch_size**2
        pixels = torch.randn((rows**2, values), generator=generator)
        probes["pixel_values"] = {"pixel_values": pixels, "image_grid_thw": torch.tensor([[1, rows, rows]])}
    elif "image" in kinds and hasattr(vision, "pooling_kernel_size"):
        side = 2 * vision.pooling_kernel_size
        pixels = torch.randn((1, side**2, 3 * vision.patch_size**2), generator=generator)
        places = torch.cartesian_prod(torch.arange(side), torch.arange(side)).flip(-1)
        probes["pixel_values"] = {"pixel_values": pixels, "image_position_ids": places.unsqueeze(0)}
    elif "image" in kinds and isinstance(getattr(vision, "image_size", None), int):
        size = getattr(vision, "num_channels", 3), *_pair(vision.image_size)
        probes["pixel_values"] = {"pixel_values": torch.randn((1, *size), generator=generator)}
    if "sound" in kinds and hasattr(audio, "max_source_positions") and hasattr(audio, "num_mel_bins"):
        spectrogram = torch.randn((1, audio.num_mel_bins, 2 * audio.max_source_positions), generator=generator)
        probes["input_features"] = {"input_features": spectrogram}
    return probes


def _pair(size: Any) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)


def feature_extractor_of(location: str, local: bool) -> Any | None:
    """The feature extractor of a speech model, which knows the rate it was trained at; None where there is none.

    Raises ModelError for one that cannot be read.
    """
    from transformers import AutoFeatureExtractor

    try:
        with foreign_errors_as(ModelError, f"the feature extractor of {location!r} cannot be read"):
            return AutoFeatureExtractor.from_pretrained(location, local_files_only=local, trust_remote_code=False)
    except ModelError:
        if (Path(location) / "preprocessor_config.json").is_file():
            raise
        return None
