"""Images and sounds, alone or in a text, to sentences whose positions are patches, frames and word pieces; frames from
seconds, seconds of words."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import count
from math import isqrt
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from tl_vzero.errors import InputError, InputTypeError, ModelError, foreign_errors_as, shown
from tl_vzero.inputs.text import ABOUT_THE_CUT, Inputs, Sentence, from_ids, warned
from tl_vzero.models.facts import facts_of
from tl_vzero.models.signals import Frames, Images, Signal, Spectrograms, placeholders, signal_of
from tl_vzero.models.sites import hf_model_of, kind_of, stacks_of
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


# Text with images or sounds in it, as a model's own processor returned it: patches by row and column, frames by when
# they begin.

# By which arguments models take images and sounds, and what belongs to these.
_SIGNALS = {"image": "pixel_values", "sound": "input_features"}
_BESIDE = (
    *_SIGNALS.values(),
    *("image_grid_thw", "image_sizes", "image_position_ids", "pixel_attention_mask", "batch_num_images"),
    *("token_type_ids", "mm_token_type_ids", "feature_attention_mask", "input_features_mask"),
)
_COLUMN = 0.01  # seconds from one column of a spectrogram to the next, in Whisper's feature extractor and its kin
_LONG = 2**12  # columns of a sound by which the length of a frame is measured


def holds_media(model: nn.Module, inputs: object) -> bool:
    """Whether inputs of a model of text and media are what a processor returned with an image or a sound in it."""
    several = inputs if isinstance(inputs, list) else [inputs]
    hf_model, names = hf_model_of(model), {*_SIGNALS.values(), "pixel_values_videos"}
    mixes = hf_model is not None and bool(placeholders(hf_model.config)) and not stacks_of(model)
    return mixes and any(isinstance(one, Mapping) and not names.isdisjoint(one) for one in several)


def encode_mixed(model: nn.Module, inputs: Any) -> Inputs:
    """Read what the model's processor returned for one prompt, or a list of such.

    Raises InputError or InputTypeError, saying what was given and what is expected.
    """
    if facts_of(model).misreads_media:
        raise ModelError(
            f"TransformerLens {version('transformer-lens')} makes something else of an image or a sound than "
            f"{type(hf_model_of(model)).__name__} itself: expected the same; it is right on text alone, and another "
            "version may read both"
        )
    several = inputs if isinstance(inputs, list) else [inputs]
    sentences = tuple(_sentence_with_media(model, returned, row) for row, returned in enumerate(several))
    return warned(Inputs(sentences, single=not isinstance(inputs, list)))


def _sentence_with_media(model: nn.Module, returned: Any, row: int) -> Sentence:
    hf_model: Any = hf_model_of(model)
    ids, media = _checked(hf_model, returned, f"inputs[{row}]")
    read = replace(from_ids(model, ids).sentences[0], row=row)
    parts = list(_parts(hf_model, media, ids, f"inputs[{row}]"))
    tokens, special, kinds = list(read.tokens), list(read.special), ["text"] * len(read)
    words, fresh = list(read.word_ids or ()), count(len(read))
    for part in parts:
        for position, label in zip(part.positions, part.labels, strict=True):
            tokens[position], special[position], kinds[position] = label, False, part.kind
            if words:
                words[position] = next(fresh)
    return replace(
        read,
        tokens=tuple(tokens),
        special=tuple(special),
        word_ids=None if read.word_ids is None else tuple(words),
        unknown=tuple(position for position in read.unknown if kinds[position] == "text"),
        media=media,
        about={"kind": "text and media", "kinds": kinds, "grids": {p.kind: list(p.grid) for p in parts if p.grid}},
    )


def _checked(hf_model: Any, returned: Any, name: str) -> tuple[Tensor, dict[str, Tensor]]:
    """The ids, and what the model takes beside them."""
    expected = 'what the model\'s processor returns for one prompt with return_tensors="pt"'
    if not isinstance(returned, Mapping):
        raise InputTypeError(f"{name} is {type(returned).__name__}: expected {expected}")
    parts = {key: value for key, value in returned.items() if value is not None and key not in ABOUT_THE_CUT}
    for key, value in parts.items():
        if not isinstance(value, Tensor):
            raise InputTypeError(f"{key!r} of {name} is {type(value).__name__}: expected a tensor, {expected}")
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise InputError(f"{key!r} of {name} holds NaN or infinity: expected finite numbers")
    ids, mask = parts.pop("input_ids", None), parts.pop("attention_mask", None)
    if ids is None or ids.ndim != 2 or len(ids) != 1:
        shape = "none" if ids is None else f"of shape {list(ids.shape)}"
        raise InputError(f"the input_ids of {name} are {shape}: expected [1, position], {expected}; several as a list")
    if mask is not None and not mask.all():
        raise InputError(f"the attention_mask of {name} has zeros: expected one prompt without padding")
    takes = inspect.signature(type(hf_model).forward).parameters
    for key in parts:
        if key not in _BESIDE or key not in takes:
            reads = ", ".join(read for read in ("input_ids", "attention_mask", *_BESIDE) if read in takes)
            raise InputError(
                f"{name} holds {key!r}, which is not read here of a {type(hf_model).__name__}: expected only {reads}; "
                "leave it out"
            )
    return ids[0].detach().cpu(), {key: value.detach() for key, value in parts.items()}


@dataclass(frozen=True)
class _Part:
    """One image or sound in a text: its kind, with its place among several, and what each of its positions shows."""

    kind: str
    positions: tuple[int, ...]
    labels: tuple[str, ...]
    grid: tuple[int, ...] = ()


def _parts(hf_model: Any, media: Mapping[str, Tensor], ids: Tensor, name: str) -> Iterator[_Part]:
    """The images and sounds in a text; raises InputError where the tokens that stand for them are not as many."""
    stands_for = placeholders(hf_model.config)
    for kind, argument in _SIGNALS.items():
        at = torch.nonzero(ids == stands_for.get(kind, -1)).flatten().tolist()
        if argument not in media:
            if at:
                raise InputError(f"{name} has {len(at)} tokens for an {kind} and no {argument!r}: expected both")
            continue
        with foreign_errors_as(
            InputError,
            f"the {kind} of {name} cannot be laid out, {argument!r} of shape {shown(list(media[argument].shape))}",
        ):
            labelled = _images(hf_model.config, media, len(at)) if kind == "image" else _sounds(hf_model, media)
        n_positions = sum(len(labels) for labels, _ in labelled)
        if n_positions != len(at) or not at:
            raise InputError(
                f"{name} has {len(at)} tokens for its {kind}s and {argument!r} makes {n_positions}: expected as many, "
                "as the model's processor writes them"
            )
        rest = iter(at)
        for n, (labels, grid) in enumerate(labelled, 1):
            positions = tuple(next(rest) for _ in labels)
            yield _Part(kind if len(labelled) == 1 else f"{kind} {n}", positions, labels, grid)


Labelled = list[tuple[tuple[str, ...], tuple[int, ...]]]  # of each image or sound its labels and its grid


def _images(config: Any, media: Mapping[str, Tensor], n_tokens: int) -> Labelled:
    """Patches row by row; of models that cut an image into tiles or pool it in ways of their own they are counted."""
    vision, pixels = config.vision_config, media["pixel_values"]
    if "image_grid_thw" in media:
        merged = vision.spatial_merge_size
        return [_patches(rows // merged, columns // merged) for _, rows, columns in media["image_grid_thw"].tolist()]
    if "image_position_ids" in media:  # (x, y) of each patch, -1 where there is none
        corners, pooled = media["image_position_ids"].amax(1) + 1, vision.pooling_kernel_size
        return [_patches(rows // pooled, columns // pooled) for columns, rows in corners.tolist()]
    if config.model_type in ("llava", "gemma3") and pixels.ndim == 4 and "image_sizes" not in media:
        n_patches, more = divmod(n_tokens, len(pixels))
        side = isqrt(getattr(config, "mm_tokens_per_image", 0))
        whole = tuple(length // vision.patch_size for length in pixels.shape[-2:])
        rows, columns = (side, side) if side else whole
        if not more and n_patches - rows * columns in (0, 1):
            before = ("[CLS]",) * (n_patches - rows * columns)
            return [_patches(rows, columns, before)] * len(pixels)
        return [_patches(rows, columns)] * len(pixels)
    return [(tuple(f"patch {n}" for n in range(n_tokens)), ())]


def _patches(rows: int, columns: int, before: tuple[str, ...] = ()) -> tuple[tuple[str, ...], tuple[int, ...]]:
    return (*before, *(f"r{row}c{column}" for row in range(rows) for column in range(columns))), (rows, columns)


def _sounds(hf_model: nn.Module, media: Mapping[str, Tensor]) -> Labelled:
    """Frames by when they begin; the model's own count of them for a sound says how long each is."""
    features, mask = media["input_features"], media.get("feature_attention_mask", media.get("input_features_mask"))
    columns = torch.full((len(features),), features.shape[-1]) if mask is None else mask.sum(-1).cpu()
    towers: list[Any] = [part for part in hf_model.modules() if hasattr(type(part), "_get_feat_extract_output_lengths")]
    frames_of = towers[0]._get_feat_extract_output_lengths
    step = _COLUMN * round(_LONG / int(frames_of(torch.tensor(_LONG))[-1]))
    return [(tuple(f"{frame * step:.2f} s" for frame in range(n)), ()) for n in frames_of(columns)[-1].tolist()]
