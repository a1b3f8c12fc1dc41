"""The labels of a map in a file of scores, and what is wrong with those that `Scores.save` did not write."""

import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, InstanceOf, ValidationError
from torch import Tensor

from tl_vzero.difference import baseline_in
from tl_vzero.errors import FileFormatError, ScoresError
from tl_vzero.files import LARGEST_LABELS, N_BYTES, parse_json
from tl_vzero.words import whole_words

Stage = Literal["raw", "normalized", "rollout", "difference"]

_Count = Annotated[int, Field(strict=True, ge=0, lt=2**31)]
_Counts = Annotated[list[_Count], Field(min_length=1)]
_WordIds = list[_Count | None] | None
# A token may hold half of a surrogate pair, which pydantic's own text must not.
_Text = InstanceOf[str]


class Labels(BaseModel):
    """The labels of a map as they stand in a file: types and bounds."""

    model_config = ConfigDict(strict=True, extra="forbid")

    method: _Text
    stage: Stage
    unit: Literal["token", "word"]
    identity: bool
    layers: _Counts
    heads: _Counts | None
    dest_tokens: list[_Text]
    src_tokens: list[_Text]
    dest_positions: _Counts
    src_positions: _Counts
    src_spans: list[_Counts] | None
    word_ids: _WordIds
    n_layers: _Count
    n_positions: _Count
    n_src_positions: _Count | None
    src_word_ids: _WordIds
    metadata: dict[_Text, Any]

    @property
    def shape(self) -> list[int]:
        """The shape of the values that have these labels."""
        heads = [] if self.heads is None else [len(self.heads)]
        return [len(self.layers), *heads, len(self.dest_positions), len(self.src_positions)]

    def contradiction(self) -> str | None:
        """What two labels say against each other, if they do."""
        n_sources = self.n_positions if self.n_src_positions is None else self.n_src_positions
        counted = {
            "layers": (self.layers, self.n_layers),
            "heads": (self.heads or [], None),
            "dest_positions": (self.dest_positions, self.n_positions),
            "src_positions": ([] if self.src_spans else self.src_positions, n_sources),
            **{f"src_spans[{index}]": (span, n_sources) for index, span in enumerate(self.src_spans or [])},
        }
        if not (self.method + baseline_in(self.metadata)).isprintable():
            return "method or baseline is no name that can be shown"
        for name, (numbers, count) in counted.items():
            if len(set(numbers)) < len(numbers):
                return f"{name} holds a number twice"
            if count is not None and numbers and max(numbers) >= count:
                return f"{name} holds {max(numbers)} of {count}"
        for name, tokens, positions in (
            ("dest", self.dest_tokens, self.dest_positions),
            ("src", self.src_tokens, self.src_positions),
        ):
            if len(tokens) != len(positions):
                return f"there are {len(tokens)} {name}_tokens for {len(positions)} {name}_positions"
        for name in ("unknown", "encoder_unknown"):
            positions = self.metadata.get(name, [])
            if not isinstance(positions, list) or not all(type(position) is int for position in positions):
                return f"metadata[{name!r}] holds no positions"
        texts = self.metadata.get("src_tokens")
        is_list = isinstance(texts, list) and all(isinstance(text, str) for text in texts)
        if texts is not None and not (is_list and len(texts) == n_sources):
            return f"metadata['src_tokens'] does not hold the texts of {n_sources} sources"
        signal, n_tokens = self.metadata.get("signal", {}), len(self.word_ids or range(self.n_positions))
        kinds = signal.get("kinds", [""] * n_tokens) if isinstance(signal, dict) else None
        if not isinstance(kinds, list) or [type(kind) for kind in kinds] != [str] * n_tokens:
            return f"metadata['signal'] does not hold the kinds of {n_tokens} positions"
        if self.src_spans is not None and [span[0] for span in self.src_spans] != self.src_positions:
            return "src_positions are not the first of each of src_spans"
        for name, word_ids, count in (
            ("word_ids", self.word_ids, self.n_positions),
            ("src_word_ids", self.src_word_ids, self.n_src_positions),
        ):
            if word_ids is not None:
                n_units = len(word_ids) if self.unit == "token" else len(whole_words(word_ids))
                if n_units != count:
                    return f"{name} are of {n_units} positions, and the sentence has {count}"
        return None


def described_shapes(path: object, labels: object) -> dict[str, list[int]]:
    """The shapes of the tensors that a file's labels describe, by name.

    Raises FileFormatError for labels that `save` did not write.
    """
    reason = fault_of_labels(labels)
    if reason is not None:
        raise FileFormatError(f"{path} is no Scores file, as Scores.save writes it: {reason}")
    shape = Labels.model_validate(labels).shape
    return {"values": shape, "error": shape, "omitted": shape[:-1]}


def written_labels(labels: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    """The labels of a map as JSON; raises ScoresError where a file with them and these tensors would not be read."""
    try:
        written = json.dumps(labels, ensure_ascii=False, allow_nan=False)
        reason = fault_of_labels(parse_json(written)) or fault_of_error(tensors)
    except (TypeError, ValueError, RecursionError) as error:
        raise ScoresError(f"cannot save this: its labels are not what JSON holds ({error}); replace them") from error
    for name, tensor in tensors.items():
        if tensor.element_size() not in N_BYTES.values():
            reason = f"its {name} are of {tensor.dtype}; convert them, as by {name}.float()"
    if len(json.dumps(written)) > LARGEST_LABELS:
        reason = f"its labels take more than {LARGEST_LABELS} bytes; leave metadata out"
    if reason is not None:
        raise ScoresError(f"cannot save this: {reason}")
    return written


def fault_of_error(tensors: dict[str, Tensor]) -> str | None:
    """Why the error of scores cannot be by how much shares may be off, None if it can or there is none."""
    exact = "error" not in tensors or bool((tensors["error"] >= 0).all())
    return None if exact else "its error is negative, or no number, somewhere"


def fault_of_labels(labels: object) -> str | None:
    """What is wrong with the labels of a map, None if nothing is."""
    try:
        return Labels.model_validate(labels).contradiction()
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        return f"{'.'.join(map(str, first['loc']))[:80] or 'the labels'}: {first['msg'][:200]}"
