"""Text with images or sounds in it, as a model's own processor returned it, to sentences whose positions are patches by
row and column, frames by when they begin, and word pieces.
"""

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import count
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn

from tl_vzero.errors import InputError, InputTypeError, ModelError, foreign_errors_as, shown
from tl_vzero.inputs.text import ABOUT_THE_CUT, Inputs, Sentence, from_ids, warned
from tl_vzero.models.facts import facts_of
from tl_vzero.models.signals import placeholders
from tl_vzero.models.sites import hf_model_of, stacks_of

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
    sentences = tuple(_sentence(model, returned, row) for row, returned in enumerate(several))
    return warned(Inputs(sentences, single=not isinstance(inputs, list)))


def _sentence(model: nn.Module, returned: Any, row: int) -> Sentence:
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
