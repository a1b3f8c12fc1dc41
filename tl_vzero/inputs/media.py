"""Images and sounds to sentences whose positions are patches or frames; frames from seconds, seconds of words."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from tl_vzero.errors import InputError, InputTypeError
from tl_vzero.inputs.text import Inputs, Sentence
from tl_vzero.models.signals import Frames, Images, Signal, Spectrograms, signal_of
from tl_vzero.models.sites import kind_of
from tl_vzero.scores import Scores
from tl_vzero.words import group_words

NO_SOUND = "sampling_rate given, and this model reads no sound: leave it out"
Signals = Tensor | np.ndarray | Sequence[Tensor] | Sequence[np.ndarray]


def frames(model: nn.Module, start: float, end: float) -> list[int]:
    """The positions of a speech encoder's frames that begin from `start` on and before `end`, in seconds.

    Of an encoder-decoder (Whisper) they are the encoder's positions. Made for
    `spans=[frames(model, 0.1, 0.4), frames(model, 0.4, 0.9)]`, where each span's frames are zeroed jointly; spans that
    meet share no frame. A frame is labelled by when it begins; steps are those of the model's convolutions, 0.02 s in
    wav2vec2, HuBERT and Whisper; a frame of the first two hears 0.025 s.

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
    if not isinstance(signal, Frames):
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
    positions = signal.frames(start, end)
    if not positions:
        step = signal.samples_per_step / signal.sampling_rate
        raise InputError(f"no frame begins from {start} on and before {end} s: frames begin {step:g} s apart")
    return positions


def align_words(scores: Scores) -> list[tuple[str, float, float]]:
    """When each word was heard, by a cross map: (word, start, end) in seconds, in the order of the words.

    `scores` are of `stack="cross"` of a model that hears and writes (Whisper), by "attention" as in Whisper's own
    timestamps or by any other method. Layers and heads are averaged as shares, so choose those that follow the sound.
    Where the model listens for a token is the row before the token's, which predicts it. Each frame goes to one token,
    in order, every token has one, and the sum of shares, standardised over tokens at each frame, is the largest:
    dynamic time warping. Special tokens are left out, and of a sound what lies behind its end.

    Raises InputError for scores that are no such map, or of fewer frames than tokens.
    Source: Radford et al. 2023, whisper/timing.py; without its median filter and its choice of heads.

    >>> import torch
    >>> about = {"stack": "cross", "signal": {"seconds_a_frame": 0.02}, "special": [True, False, False]}
    >>> heard = torch.tensor([[[0.8, 0.2, 0.0], [0.1, 0.2, 0.7], [0.3, 0.3, 0.4]]])
    >>> axes = {"dest_positions": (0, 1, 2), "src_positions": (0, 1, 2), "n_positions": 3, "n_layers": 1}
    >>> labels = {"dest_tokens": ("[start]", "hello", "you"), "src_tokens": ("0.00 s", "0.02 s", "0.04 s")}
    >>> align_words(Scores(heard, "attention", (0,), n_src_positions=3, metadata=about, **labels, **axes))
    [('hello', 0.0, 0.02), ('you', 0.02, 0.06)]
    """
    signal, special = scores.metadata.get("signal"), scores.metadata.get("special", [False] * scores.n_positions)
    if scores.metadata.get("stack") != "cross" or not signal or scores.src_spans or scores.unit == "word":
        raise InputError(f'{scores!r} is no map of tokens over frames: expected scores with stack="cross" of a sound')
    row_of = {position: row for row, position in enumerate(scores.dest_positions)}
    written = [position for position in row_of if position - 1 in row_of and not special[position]]
    step = signal["seconds_a_frame"]
    until = signal.get("seconds", float("inf"))
    heard = [column for column, frame in enumerate(scores.src_positions) if round(frame * step, 6) < until]
    if not 0 < len(written) <= len(heard):
        raise InputError(
            f"{len(written)} tokens to align with {len(heard)} frames: expected at least one token behind the first "
            "row, and as many frames as tokens"
        )
    shares = (
        (scores.normalized() if scores.stage == "raw" else scores).values.cpu().double().flatten(end_dim=-3).mean(0)
    )
    listened = shares[[row_of[position - 1] for position in written]][:, heard]
    centred = listened - listened.mean(0)
    deviation = centred.square().mean(0).sqrt()
    starts = _first_frames(centred / deviation.masked_fill(deviation == 0, 1))
    times = [round(scores.src_positions[heard[frame]] * step, 6) for frame in starts]
    times.append(round((scores.src_positions[heard[-1]] + 1) * step, 6))
    words = [None if scores.word_ids is None else scores.word_ids[position] for position in written]
    grouped = group_words(words, [scores.dest_tokens[row_of[position]] for position in written])
    return [(word.label, times[word.positions[0]], times[word.positions[-1] + 1]) for word in grouped]


def _first_frames(gain: Float[Tensor, "token frame"]) -> list[int]:
    """Where each token begins if the frames go to tokens in order, each token having one, with the largest sum."""
    n_tokens, n_frames = gain.shape
    best = torch.full((n_tokens, n_frames), -torch.inf, dtype=gain.dtype)
    best[0] = gain[0].cumsum(0)
    for frame in range(1, n_frames):
        best[1:, frame] = gain[1:, frame] + torch.maximum(best[1:, frame - 1], best[:-1, frame - 1])
    token, starts = n_tokens - 1, [0] * n_tokens
    for frame in range(n_frames - 1, 0, -1):
        if token and best[token - 1, frame - 1] > best[token, frame - 1]:
            starts[token], token = frame, token - 1
    return starts


def encode_signals(signal: Signal, inputs: Any, *, attention_mask: object, sampling_rate: int | None) -> Inputs:
    """Read a user's images or sounds: one, a list, or a tensor with one axis more; each keeps its own length.

    Raises InputError or InputTypeError, saying what was given and what is expected.
    """
    if sampling_rate is not None and not isinstance(signal, Frames):
        raise InputError(NO_SOUND)
    if isinstance(signal, Frames) and sampling_rate not in (None, signal.sampling_rate):
        raise InputError(
            f"sampling_rate is {sampling_rate!r}: expected {signal.sampling_rate}, the samples a second that the model "
            "was trained at; resample the sound, for instance with librosa.resample or torchaudio"
        )
    if attention_mask is not None:
        raise InputError(
            f"attention_mask given with {signal.named}: expected none; give sounds of several lengths as a list, "
            "each without its padding"
        )
    signals, single = _taken_apart(signal, inputs)
    return Inputs(tuple(_sentence(signal, one, row) for row, one in enumerate(signals)), single=single)


def _expected(signal: Signal) -> str:
    axes = ", ".join(signal.axes)
    return (
        f"{signal.named}, a tensor of floats [{axes}], several as [batch, {axes}] or a list, {signal.source}: "
        "this model reads no text"
    )


def _taken_apart(signal: Signal, inputs: Any) -> tuple[list[Any], bool]:
    """The images or sounds one by one, and whether it was one rather than a list."""
    n_axes = len(signal.axes)
    if isinstance(inputs, list | tuple):
        if not inputs:
            raise InputError(f"inputs are an empty list: expected {_expected(signal)}")
        return list(inputs), False
    whole = _as_tensor(signal, inputs, "inputs")
    if whole.ndim == n_axes + 1 and len(whole):
        return list(whole), False
    return [whole], True


def _as_tensor(signal: Signal, value: Any, name: str) -> Tensor:
    values = torch.from_numpy(value) if isinstance(value, np.ndarray) and value.dtype != object else value
    if not isinstance(values, Tensor):
        raise InputTypeError(f"{name} is {type(value).__name__}: expected {_expected(signal)}")
    if not values.is_floating_point():
        raise InputTypeError(f"{name} is of {values.dtype}: expected {_expected(signal)}")
    return values.detach()


def _sentence(signal: Signal, value: Any, row: int) -> Sentence:
    values, about = _as_tensor(signal, value, f"inputs[{row}]"), signal.as_data()
    if isinstance(signal, Spectrograms) and values.ndim == 1:
        about |= {"seconds": len(values) / signal.sampling_rate}  # behind it there is only what fills it up
        _check_finite(values, row)
        values = signal.of_sound(values, f"inputs[{row}]")
    shape = tuple(values.shape)
    fault = signal.fault(shape)
    if fault is not None:
        raise InputError(f"inputs[{row}] has shape {list(shape)}: {fault}, {signal.source}")
    _check_finite(values, row)
    labels = signal.labels(shape)
    n_special = len(signal.special_tokens) if isinstance(signal, Images) else 0
    return Sentence(
        ids=torch.empty(0, dtype=torch.long),
        tokens=labels,
        special=tuple(position < n_special for position in range(len(labels))),
        word_ids=(None,) * n_special + tuple(range(len(labels) - n_special)),
        row=row,
        columns=tuple(range(len(labels))),
        signal=values,
        about=about,
    )


def _check_finite(values: Tensor, row: int) -> None:
    if not torch.isfinite(values).all():
        raise InputError(f"inputs[{row}] holds NaN or infinity: expected finite numbers")
