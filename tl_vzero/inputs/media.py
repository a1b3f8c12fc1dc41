"""Images and sounds to sentences whose positions are patches or frames, and spans of frames given in seconds."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tl_vzero.errors import InputError, InputTypeError
from tl_vzero.inputs.text import Inputs, Sentence
from tl_vzero.models.signals import Images, Sounds, signal_of
from tl_vzero.models.sites import kind_of

Signals = Tensor | np.ndarray | Sequence[Tensor] | Sequence[np.ndarray]


def frames(model: nn.Module, start: float, end: float) -> list[int]:
    """The positions of a speech encoder's frames that begin from `start` on and before `end`, in seconds.

    Made for `spans=[frames(model, 0.1, 0.4), frames(model, 0.4, 0.9)]`, where each span's frames are zeroed jointly;
    spans that meet share no frame. A frame is labelled by when it begins; steps are those of the model's
    convolutions, 0.02 s in wav2vec2 and HuBERT, whose frames hear 0.025 s each.

    Raises InputError for a model that reads no sound, and for times between which no frame begins.

    >>> from transformers import HubertConfig, HubertModel
    >>> import tl_vzero
    >>> config = HubertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    >>> model = tl_vzero.load_model(HubertModel(config))
    >>> tl_vzero.frames(model, 0.1, 0.18)
    [5, 6, 7, 8]
    """
    kind_of(model)
    signal = signal_of(model)
    if not isinstance(signal, Sounds):
        raise InputError(
            "frames are parts of a sound, and this model reads "
            + ("token ids" if signal is None else signal.named)
            + ": give positions, such as spans=[[1, 2], [4]]"
        )
    for name, seconds in (("start", start), ("end", end)):
        if isinstance(seconds, bool) or not isinstance(seconds, int | float):
            raise InputTypeError(f"{name} is {type(seconds).__name__}: expected seconds, such as 0.4")
    if not 0 <= start < end < float("inf"):
        raise InputError(f"frames from {start} to {end} s: expected 0 <= start < end")
    found = signal.frames(start, end)
    if not found:
        step = signal.samples_a_step / signal.sampling_rate
        raise InputError(f"no frame begins from {start} on and before {end} s: frames begin {step:g} s apart")
    return found


def encode_signals(
    signal: Images | Sounds, inputs: Any, *, attention_mask: object, sampling_rate: int | None
) -> Inputs:
    """Read images or sounds at the door: one, a list, or a tensor with one axis more; each keeps its own length.

    Raises InputError or InputTypeError, saying what was given and what is expected.
    """
    _check_rate(signal, sampling_rate)
    if attention_mask is not None:
        raise InputError(
            f"attention_mask given with {signal.named}: expected none; give sounds of several lengths as a list, "
            "each without its padding"
        )
    given, single = _taken_apart(signal, inputs)
    return Inputs(tuple(_sentence(signal, each, row) for row, each in enumerate(given)), single=single)


def _expected(signal: Images | Sounds) -> str:
    axes = ", ".join(signal.axes)
    return (
        f"{signal.named}, a tensor of floats [{axes}], several as [batch, {axes}] or a list, {signal.given_by}: "
        "this model reads no text"
    )


def check_no_rate(sampling_rate: int | None) -> None:
    """Raise InputError for a sampling rate of what is no sound."""
    if sampling_rate is not None:
        raise InputError("sampling_rate given, and this model reads no sound: leave it out")


def _check_rate(signal: Images | Sounds, sampling_rate: int | None) -> None:
    if not isinstance(signal, Sounds):
        check_no_rate(sampling_rate)
    elif sampling_rate is not None and sampling_rate != signal.sampling_rate:
        raise InputError(
            f"sampling_rate is {sampling_rate!r}: expected {signal.sampling_rate}, the samples a second that the model "
            "was trained at; resample the sound, for instance with librosa.resample or torchaudio"
        )


def _taken_apart(signal: Images | Sounds, inputs: Any) -> tuple[list[Any], bool]:
    """The images or sounds one by one, and whether one was given rather than a list."""
    n_axes = len(signal.axes)
    if isinstance(inputs, list | tuple):
        if not inputs:
            raise InputError(f"inputs are an empty list: expected {_expected(signal)}")
        return list(inputs), False
    whole = _as_tensor(signal, inputs, "inputs")
    if whole.ndim == n_axes + 1 and len(whole):
        return list(whole), False
    return [whole], True


def _as_tensor(signal: Images | Sounds, given: Any, name: str) -> Tensor:
    values = torch.from_numpy(given) if isinstance(given, np.ndarray) and given.dtype != object else given
    if not isinstance(values, Tensor):
        raise InputTypeError(f"{name} is {type(given).__name__}: expected {_expected(signal)}")
    if not values.is_floating_point():
        raise InputTypeError(f"{name} is of {values.dtype}: expected {_expected(signal)}")
    return values.detach()


def _sentence(signal: Images | Sounds, given: Any, row: int) -> Sentence:
    values = _as_tensor(signal, given, f"inputs[{row}]")
    shape = tuple(values.shape)
    fault = signal.fault(shape)
    if fault is not None:
        raise InputError(f"inputs[{row}] has shape {list(shape)}: {fault}, {signal.given_by}")
    if not torch.isfinite(values).all():
        raise InputError(f"inputs[{row}] holds NaN or infinity: expected finite numbers")
    labels = signal.labels(shape)
    n_own = len(signal.own_tokens) if isinstance(signal, Images) else 0
    return Sentence(
        ids=torch.empty(0, dtype=torch.long),
        tokens=labels,
        special=tuple(position < n_own for position in range(len(labels))),
        word_ids=(None,) * len(labels),
        row=row,
        columns=tuple(range(len(labels))),
        signal=values,
        about=signal.as_data(),
    )
