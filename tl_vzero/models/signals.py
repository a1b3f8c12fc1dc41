"""Models that read an image or a sound instead of token ids: its shape, and which position shows what part of it.

An image is cut into patches, row by row, behind the model's own tokens such as [CLS]. A sound is cut into overlapping
frames by convolutions; frame i begins i steps of `samples_per_step` after the start.
"""

from dataclasses import dataclass
from math import ceil, log10, prod
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tl_vzero.errors import ModelError, foreign_errors_as
from tl_vzero.models.sites import hf_model_of

# What a model reads: token ids, or images or sounds of one shape.
Read = Int[Tensor, "batch position"] | Float[Tensor, "batch *signal"]

TRAINED_AT = 16_000  # samples per second, of wav2vec2, HuBERT and their kin, where no feature extractor says otherwise

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


@dataclass(frozen=True)
class Sounds:
    """What a speech encoder reads: waveforms of any length, cut into frames by convolutions."""

    kernels: tuple[int, ...]
    strides: tuple[int, ...]
    sampling_rate: int

    argument = "input_values"
    axes = ("sample",)
    named = "a sound"
    source = "as the model's feature extractor makes it (input_values: one channel, at the model's rate)"

    @property
    def samples_per_step(self) -> int:
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
        """When each frame begins, with as many digits as tell frames apart."""
        frames, seconds_per_step = shape[0], self.samples_per_step / self.sampling_rate
        for kernel, stride in zip(self.kernels, self.strides, strict=True):
            frames = (frames - kernel) // stride + 1
        digits = max(2, ceil(-log10(seconds_per_step)))
        return tuple(f"{frame * seconds_per_step:.{digits}f} s" for frame in range(frames))

    def frames(self, start: float, end: float) -> list[int]:
        """The frames that begin from `start` on and before `end`, in seconds, so that no two spans share one."""
        steps_per_second = self.sampling_rate / self.samples_per_step
        # A time such as 0.06 s is no exact multiple of 0.02 s in binary.
        first, last = (ceil(round(seconds * steps_per_second, 6)) for seconds in (start, end))
        return list(range(first, last))

    def beginning(self, sound: Tensor, positions: int) -> Tensor:
        """The beginning of a sound that gives that many frames, or all of it."""
        return sound[: self._samples_for(positions)]

    def probe(self, positions: int) -> Float[Tensor, "sample"]:
        return torch.randn(self._samples_for(positions), generator=torch.Generator().manual_seed(0))

    def as_data(self) -> dict[str, Any]:
        seconds = self.samples_per_step / self.sampling_rate
        return {"kind": "sound", "sampling_rate": self.sampling_rate, "seconds_a_frame": seconds}

    def _samples_for(self, frames: int) -> int:
        samples = frames
        for kernel, stride in zip(reversed(self.kernels), reversed(self.strides), strict=True):
            samples = (samples - 1) * stride + kernel
        return samples


def signal_of(model: nn.Module) -> Images | Sounds | None:
    """What a model reads in place of token ids; None where it reads ids.

    Raises ModelError for a model of images or sound that reads something else, such as a spectrogram.
    """
    config: Any = model.cfg
    if not (getattr(config, "is_visual_model", False) or getattr(config, "is_audio_model", False)):
        return None
    hf_model = hf_model_of(model)
    rate = getattr(getattr(model, "processor", None), "sampling_rate", None)
    signal = None if hf_model is None else signal_read_by(hf_model, sampling_rate=rate)
    if signal is None:
        raise ModelError(
            f"{type(hf_model).__name__} reads neither token ids, nor images cut into patches, nor waveforms: expected "
            "a text model, a vision model such as ViT, or a speech encoder such as wav2vec2 and HuBERT"
        )
    return signal


def signal_read_by(hf_model: nn.Module, *, sampling_rate: int | None = None) -> Images | Sounds | None:
    """The same of a Hugging Face model; None also where it reads anything else."""
    config: Any = hf_model.config
    argument = getattr(hf_model, "main_input_name", "input_ids")
    if argument == "pixel_values" and hasattr(config, "patch_size"):
        names = [name.rpartition(".")[2] for name, _ in nn.Module.named_parameters(hf_model)]
        special = tuple(label for name, label in _SPECIAL_TOKENS.items() if name in names)
        return Images(int(config.num_channels), _pair(config.image_size), _pair(config.patch_size), special)
    if argument == "input_values" and hasattr(config, "conv_stride"):
        return Sounds(tuple(config.conv_kernel), tuple(config.conv_stride), sampling_rate or TRAINED_AT)
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
