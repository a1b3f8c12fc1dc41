"""What stands in for a value that is taken away: zero (the paper's), a mean, or the caller's own vectors.

Zero is off a model's own distribution, and other baselines answer another question: not "without this token" but "with
a usual one, or with another input's, in its place".
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from tl_vzero.difference import HASHED
from tl_vzero.distance import wide_dtype
from tl_vzero.errors import (
    FileFormatError,
    InputError,
    InputTypeError,
    ModelError,
    escaped,
    foreign_errors_as,
    shown,
    unknown_name,
)
from tl_vzero.files import path_of, read_labelled, write_labelled
from tl_vzero.inputs.text import Sentence
from tl_vzero.models.changes import weights_hash
from tl_vzero.models.contracts import head_width, value_heads
from tl_vzero.models.sites import Sites

NAMES = ("zero", "mean")


@dataclass(frozen=True, eq=False, repr=False)
class BaselineValues:
    """Vectors to put in a value's place, in all layers, with what they are and of which model.

    `values` are `[layer, head, d_head]`, the same at every position, or `[layer, position, head, d_head]`; heads are
    those that values have. `name` says in words what they are; `metadata` holds the model's `weights_sha256`, its
    stack, and what they were computed from. Made by `mean_values`, `values_of` and `optimised_values`.
    """

    values: Float[Tensor, "layer *position head d_head"]
    name: str
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def save(self, path: str | Path) -> None:
        """Write a safetensors file: the values, and the name and metadata as JSON in its header.

        Raises InputError for a name of another format or metadata that JSON does not hold, OutputPathError where the
        path cannot be written; nothing is left behind then.
        """
        if path_of(path).suffix not in ("", ".safetensors"):
            raise InputError(
                f"cannot write {path}: values are saved as safetensors, expected a name that ends in .safetensors"
            )
        labels = {"name": self.name, "shape": list(self.values.shape), "metadata": dict(self.metadata)}
        with foreign_errors_as(InputError, "cannot save these values: their metadata are not what JSON holds"):
            written = json.dumps(labels, ensure_ascii=False, allow_nan=False)
        write_labelled(path, "BaselineValues", {"values": self.values}, written)

    @classmethod
    def load(cls, path: str | Path) -> "BaselineValues":
        """Read what `save` wrote. Raises FileFormatError for anything else; no pickle is ever read."""
        tensors, labels = read_labelled(path, "BaselineValues", partial(_described_shapes, path))
        return cls(tensors["values"], labels["name"], labels["metadata"])

    def __repr__(self) -> str:
        return escaped(f"BaselineValues({self.name}, {list(self.values.shape)})")


def _described_shapes(path: object, labels: object) -> dict[str, list[int]]:
    """The shape of the values that a file's labels describe; FileFormatError for labels that `save` did not write."""
    kinds = {"name": str, "shape": list, "metadata": dict}
    if not isinstance(labels, dict) or {name: type(part) for name, part in labels.items()} != kinds:
        raise FileFormatError(f"{path} is no BaselineValues file: expected the labels {', '.join(kinds)}")
    shape: list[int] = labels["shape"]
    if len(shape) not in (3, 4) or not all(type(size) is int and size > 0 for size in shape):
        raise FileFormatError(
            f"{path} holds values of shape {shown(shape)}: expected [layer, head, d_head] or [layer, position, head, "
            "d_head]"
        )
    return {"values": shape}


@dataclass(frozen=True, eq=False)
class Baseline:
    """A baseline as the engines use it, read by `baseline_of`."""

    name: str = "zero"
    values: Float[Tensor, "layer *position head d_head"] | None = None

    @property
    def identity(self) -> str:
        """What tells baselines apart in metadata and files: the name, with a hash of the caller's own vectors."""
        if self.values is None:
            return self.name
        digest = hashlib.sha256(self.values.cpu().double().contiguous().numpy().tobytes())
        return f"{self.name}{HASHED}{digest.hexdigest()[:16]})"

    @property
    def by_position(self) -> bool:
        """Whether the caller's vectors are of the positions of one sentence."""
        return self.values is not None and self.values.ndim == 4

    def check_length(self, length: int, named: str) -> None:
        """Raise InputError where vectors by position are of another length than what they are to stand in."""
        if self.values is not None and self.by_position and self.values.shape[1] != length:
            raise InputError(
                f"baseline is of {self.values.shape[1]} positions, and {named} has {length}: expected as many; give "
                f"vectors of a sentence of {length} positions, or the same at every position, [layer, head, d_head]"
            )

    def at(
        self,
        layer: int,
        value: Float[Tensor, "sentence position head d_head"],
        averaged: Bool[Tensor, "sentence position"] | None,
    ) -> Float[Tensor, "sentence position head d_head"] | None:
        """What stands in for each value of a layer, given the clean values and in their dtype; None for zero.

        "mean" goes over the positions marked in `averaged`, as by `own_text`; over all of them where it is None.
        """
        if self.values is not None:
            of_layer = self.values[layer].to(value)
            return (of_layer if of_layer.ndim == 3 else of_layer.unsqueeze(0)).unsqueeze(0).expand_as(value)
        if self.name == "zero":
            return None
        averaged = value.new_ones(value.shape[:2], dtype=torch.bool) if averaged is None else averaged.to(value.device)
        counted = averaged[..., None, None]
        # What stands at padding may be NaN.
        summed = value.to(wide_dtype(value.device)).where(counted, 0).sum(dim=1, keepdim=True)
        return (summed / counted.sum(dim=1, keepdim=True)).to(value.dtype).expand_as(value)


ZERO = Baseline()


def own_text(sentences: Sequence[Sentence]) -> Bool[Tensor, "sentence position"]:
    """Mark the positions of the sentences' own text, padded on the right: no special tokens, or all of nothing else."""
    special = [torch.tensor(sentence.sources.special) for sentence in sentences]
    return nn.utils.rnn.pad_sequence([marks if marks.all() else ~marks for marks in special], batch_first=True)


def baseline_of(baseline: str | Tensor | BaselineValues, model: nn.Module, sites: Sites) -> Baseline:
    """Read a caller's baseline for a stack at the door; lengths are for `check_length`.

    Raises InputError or InputTypeError for a wrong name, shape, dtype or number, ModelError for another model's.
    """
    if isinstance(baseline, str):
        if baseline not in NAMES:
            raise unknown_name("baseline", baseline, (*NAMES, "a tensor of vectors"))
        return Baseline(baseline)
    name, values = "tensor", baseline
    if isinstance(baseline, BaselineValues):
        name, values = baseline.name, baseline.values
        if not isinstance(name, str) or not name.isprintable() or HASHED in name:
            raise InputError(f"baseline has the name {shown(name)}: expected a text that can be shown")
        _check_same_model(baseline, model, sites)
    if not isinstance(values, Tensor):
        raise InputTypeError(
            f"baseline is {type(values).__name__}: expected one of {', '.join(NAMES)}, a torch.Tensor of vectors, or "
            "what tl_vzero.mean_values or tl_vzero.values_of returns"
        )
    if not values.is_floating_point():
        raise InputTypeError(f"baseline is of {values.dtype}: expected real numbers, such as torch.float32")
    expected = [sites.n_layers, value_heads(model, sites.stack), head_width(model, sites.stack)]
    shape = list(values.shape)
    if values.ndim not in (3, 4) or [shape[0], *shape[-2:]] != expected:
        raise InputError(
            f"baseline has shape {shape}: expected [layer, head, d_head], {expected}, or [layer, position, head, "
            f"d_head], [{expected[0]}, positions, {expected[1]}, {expected[2]}], with the heads that values have"
        )
    if not torch.isfinite(values).all():
        raise InputError("baseline holds NaN or infinite numbers: expected finite ones")
    return Baseline(name, values.detach())


def _check_same_model(baseline: BaselineValues, model: nn.Module, sites: Sites) -> None:
    """Vectors of other weights, or of another stack, may well have the same shape."""
    weights, stack = baseline.metadata.get("weights_sha256"), baseline.metadata.get("stack")
    if weights != weights_hash(model):
        raise ModelError(
            f"baseline {shown(baseline.name)} is of a model with other weights: expected one of this model; compute it "
            "again, or pass its values as a tensor"
        )
    if stack != sites.stack:
        raise InputError(f"baseline {shown(baseline.name)} is of stack={stack!r}: expected stack={sites.stack!r}")
