"""Scores: the labelled maps that every method returns. Rows are destinations, columns are sources."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import index as index_of
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field, InstanceOf, ValidationError
from torch import Tensor

from tl_vzero.errors import FileFormatError, InputError, InputTypeError, ScoresError, escaped, foreign_errors_as, shown
from tl_vzero.files import LARGEST_LABELS, N_BYTES, parse_json, read_scores, to_plain, write_scores
from tl_vzero.rollout import empty_rows, normalize_rows, roll_out, roll_out_jointly
from tl_vzero.words import Word, encodable, group_words

if TYPE_CHECKING:
    import pandas as pd


Stage = Literal["raw", "normalized", "rollout"]

SIGNED = 1e-3  # of the largest value: what is less negative may be the rounding of a caller's own distance
REPR_LENGTH = 200  # characters of a sentence


@dataclass(frozen=True, eq=False, repr=False)
class Scores:
    """Context-mixing scores of one sentence: how much each destination draws on each source.

    `values` is `[layer, dest, src]`, or `[layer, head, dest, src]` per head. Positions count from 0 in the
    sentence; `dest_positions[i]` is the sentence position of row i. `n_layers` and `n_positions` are those
    of the whole model and sentence, so that a partial map knows that it is one.
    Where spans were zeroed jointly, `src_spans` are their positions and `src_positions` the first of each.
    A cross-attention map's columns are of another sentence: `n_src_positions` and `src_word_ids` are its own then.
    `identity` is the method's rollout rule: whether half of each token stays where it is.
    """

    values: Float[Tensor, "*axes dest src"]
    method: str
    layers: tuple[int, ...]
    dest_tokens: tuple[str, ...]
    src_tokens: tuple[str, ...]
    dest_positions: tuple[int, ...]
    src_positions: tuple[int, ...]
    n_layers: int
    n_positions: int
    heads: tuple[int, ...] | None = None
    src_spans: tuple[tuple[int, ...], ...] | None = None
    word_ids: tuple[int | None, ...] | None = None
    n_src_positions: int | None = None
    src_word_ids: tuple[int | None, ...] | None = None
    identity: bool = False
    stage: Stage = "raw"
    unit: Literal["token", "word"] = "token"
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.values.is_floating_point():
            raise ScoresError(f"values are of {self.values.dtype}: expected real numbers, such as torch.float32")
        head_axis = [] if self.heads is None else [len(self.heads)]
        expected = [len(self.layers), *head_axis, len(self.dest_positions), len(self.src_positions)]
        if list(self.values.shape) != expected:
            raise ScoresError(
                f"values have shape {list(self.values.shape)}: the labels describe {expected} "
                "(layer, head if per head, dest, src)"
            )
        if len(self.dest_tokens) != expected[-2] or len(self.src_tokens) != expected[-1]:
            raise ScoresError(
                f"{len(self.dest_tokens)} dest_tokens and {len(self.src_tokens)} src_tokens "
                f"for {expected[-2]} destinations and {expected[-1]} sources: expected one token each"
            )

    @property
    def partial(self) -> bool:
        """Whether some destinations or sources of the sentence are left out."""
        if self.src_spans is not None:
            return True
        n_sources = self.n_positions if self.n_src_positions is None else self.n_src_positions
        return not (_are_all(self.dest_positions, self.n_positions) and _are_all(self.src_positions, n_sources))

    @property
    def empty_rows(self) -> tuple[tuple[int, ...], ...]:
        """The rows in which nothing moved: (layer, dest), or (layer, head, dest) per head."""
        axes = [self.layers, *([] if self.heads is None else [self.heads]), self.dest_positions]
        rows = torch.nonzero(empty_rows(self.values)).tolist()
        return tuple(tuple(axis[i] for axis, i in zip(axes, row, strict=True)) for row in rows)

    def normalized(self) -> "Scores":
        """Divide each row by its sum; rows sum to one, and an empty row stays zero (see `empty_rows`).

        A map over chosen sources is normalised over those. What is normalised already is returned as it is.
        Raises ScoresError for signed scores: a row whose sum is negative would change every sign.
        """
        if self.stage != "raw":
            return self
        if self.values.numel() and self.values.min() < -SIGNED * self.values.max().abs():
            raise ScoresError(
                f"normalized() is undefined here: {self.method} gave negative values, down to {self.values.min():.3g}; "
                'take sizes instead (aggregate="norm" for gradient methods), or read `values` as they are'
            )
        return replace(self, values=normalize_rows(self.values), stage="normalized")

    def rollout(self) -> "Scores":
        """Multiply the normalised maps through the layers, with the method's own rule (`identity`).

        Raises ScoresError for a rollout, a partial map, a subset of layers, a map per head, over words,
        or between two different sequences.
        Source: Abnar & Zuidema 2020; Mohebbi et al. 2023, section 3 (Value Zeroing: no identity).
        """
        reason = self._why_no_rollout()
        if reason is not None:
            raise ScoresError(f"rollout() is undefined here: {reason}")
        values = roll_out(self.normalized().values, identity=self.identity)
        return replace(self, values=values, stage="rollout")

    def _why_no_rollout(self) -> str | None:
        if self.stage == "rollout":
            return "this is a rollout already"
        crosses = self.metadata.get("stack") == "cross" or self.n_src_positions is not None
        if crosses or (not self.partial and self.dest_tokens != self.src_tokens):
            return (
                "a cross-attention map joins two different sequences; joint_rollout follows it through both stacks, "
                "with the maps of encoder and decoder"
            )
        if self.heads is not None:
            return "it needs one map per layer, and this has one per head; call it on scores without per_head"
        if self.unit == "word":
            return "pieces must be rolled out before they are joined; use scores.rollout().words()"
        if self.partial:
            return (
                f"this map has {len(self.dest_positions)} destinations and {len(self.src_positions)} sources "
                f"of {self.n_positions} positions; compute it with all destinations and sources"
            )
        if not _are_all(self.layers, self.n_layers):
            return f"it needs all {self.n_layers} layers in order, and this has {list(self.layers)}"
        return None

    def at_layer(self, layer: int) -> "Scores":
        """The maps of one layer; negative numbers count from the end of those of the scores.

        Raises InputError for a layer that was not computed, InputTypeError for what is no integer.
        """
        with foreign_errors_as(InputTypeError, f"layer is {shown(layer)}: expected one of {list(self.layers)}"):
            layer = index_of(layer)
        at = layer + len(self.layers)
        if layer >= 0:
            at = self.layers.index(layer) if layer in self.layers else -1
        if at < 0:
            raise InputError(f"layer {layer} is not among the layers {list(self.layers)}: expected one of them")
        return replace(self, values=self.values[at : at + 1], layers=(self.layers[at],))

    def row(self, dest: int | str) -> Float[Tensor, "*axes src"]:
        """The scores of one destination in every layer: `[layer, src]`, or `[layer, head, src]` per head.

        `dest` is a position in the sentence (negative: from the end of the destinations)
        or the text of a destination token that occurs once. Raises InputError for one that is not there.
        """
        return self.values[..., self._dest_index(dest), :]

    @property
    def special_sources(self) -> tuple[bool, ...]:
        """Which columns hold nothing but special tokens, such as [CLS]; none where no tokenizer says."""
        word_ids = self.word_ids if self.n_src_positions is None else self.src_word_ids
        if word_ids is None:
            return (False,) * len(self.src_positions)
        if self.unit == "word":
            word_ids = tuple(word_ids[word.positions[0]] for word in _whole_words(word_ids))
        return tuple(all(word_ids[position] is None for position in column) for column in self._columns)

    @property
    def _columns(self) -> tuple[tuple[int, ...], ...]:
        return self.src_spans or tuple((position,) for position in self.src_positions)

    def telling_layer(self, target: int | str) -> int:
        """The layer to look at first: the one in which one other token has the largest share of the target's row.

        Rows are normalised; the target itself and special tokens do not count. Of equal layers it is the first, and
        per head one head is enough. `target` is as in `row`. Raises what `row` and `normalized` raise.

        >>> maps = torch.tensor([[[0.9, 0.1], [0.1, 0.9]], [[0.2, 0.8], [0.1, 0.9]]])
        >>> Scores(maps, "any", (0, 1), ("a", "b"), ("a", "b"), (0, 1), (0, 1), 2, 2).telling_layer("a")
        1
        """
        crosses = self.metadata.get("stack") == "cross"
        at = None if crosses else self.dest_positions[self._dest_index(target)]
        columns = enumerate(zip(self._columns, self.special_sources, strict=True))
        others = [index for index, (column, is_special) in columns if at not in column and not is_special]
        if not others:
            return self.layers[0]
        shares = self.normalized().row(target)[..., others].flatten(1)
        return self.layers[int(shares.amax(dim=1).argmax())]

    def _dest_index(self, dest: int | str) -> int:
        if isinstance(dest, bool) or not isinstance(dest, int | str):
            raise InputTypeError(f"dest is {type(dest).__name__}: expected a position (int) or a token (str)")
        if isinstance(dest, str):
            rows = [i for i, token in enumerate(self.dest_tokens) if token.strip() == dest.strip()]
            if len(rows) != 1:
                raise InputError(
                    f"dest {dest!r} occurs {len(rows)} times among the destinations {list(self.dest_tokens)}: "
                    "expected once; give its position instead"
                )
            return rows[0]
        if -len(self.dest_positions) <= dest < 0:
            return len(self.dest_positions) + dest
        if dest not in self.dest_positions:
            raise InputError(
                f"dest {dest} is not among the destinations {list(self.dest_positions)}: "
                "expected one of them, or a negative number counted from their end"
            )
        return self.dest_positions.index(dest)

    def words(self) -> "Scores":
        """Join word pieces: summed over the sources of a word, averaged over its destinations.

        Summed, because a word's pieces each bring their part; averaged, because each piece is a row of
        its own. Rows that sum to one still do. Special tokens stay words of their own.
        Raises ScoresError where the words are unknown.
        """
        if self.unit == "word":
            return self
        src_word_ids = self.word_ids if self.n_src_positions is None else self.src_word_ids
        if self.word_ids is None or src_word_ids is None:
            raise ScoresError(
                "words() needs to know which pieces form a word, and this was computed from ids without "
                "a tokenizer; load the model with one, or pass text"
            )
        if self.src_spans is not None:
            raise ScoresError(
                "words() joins single positions, and these columns are spans already; give each word as a span, or "
                "compute without spans"
            )
        dests = group_words([self.word_ids[p] for p in self.dest_positions], self.dest_tokens)
        sources = group_words([src_word_ids[p] for p in self.src_positions], self.src_tokens)
        summed = _pool([w.positions for w in sources], self.values, dim=-1)
        counts = torch.tensor([len(w.positions) for w in dests], dtype=summed.dtype, device=summed.device)
        values = _pool([w.positions for w in dests], summed, dim=-2) / counts.unsqueeze(-1)
        return replace(
            self,
            values=values,
            dest_tokens=tuple(w.label for w in dests),
            src_tokens=tuple(w.label for w in sources),
            dest_positions=_word_positions(self.word_ids, dests, self.dest_positions),
            src_positions=_word_positions(src_word_ids, sources, self.src_positions),
            n_positions=len(_whole_words(self.word_ids)),
            n_src_positions=None if self.n_src_positions is None else len(_whole_words(src_word_ids)),
            unit="word",
        )

    def to_frame(self) -> "pd.DataFrame":
        """A long pandas table: layer, (head,) dest, src, value, dest_token, src_token, method, stage."""
        import pandas as pd

        heads = {} if self.heads is None else {"head": self.heads}
        # Two spans may begin at one position, so columns are told apart by their index.
        columns = range(len(self.src_positions))
        axes = {"layer": self.layers, **heads, "dest": self.dest_positions, "src": columns}
        frame = pd.MultiIndex.from_product(list(axes.values()), names=list(axes)).to_frame(index=False)
        frame["value"] = self.values.detach().cpu().reshape(-1).numpy()
        # A table holds text that can be encoded, and a token may be half of a character.
        dest_tokens = dict(zip(self.dest_positions, map(encodable, self.dest_tokens), strict=True))
        frame["dest_token"] = frame["dest"].map(dest_tokens)
        frame["src_token"] = frame["src"].map(dict(enumerate(map(encodable, self.src_tokens))))
        frame["src"] = frame["src"].map(dict(enumerate(self.src_positions)))
        frame["method"], frame["stage"] = self.method, self.stage
        return frame

    def labels(self) -> dict[str, Any]:
        """Everything but the values, as plain JSON types."""
        labels = {name: to_plain(getattr(self, name)) for name in _Labels.model_fields if name != "metadata"}
        return {**labels, "metadata": dict(self.metadata)}

    def to_dict(self) -> dict[str, Any]:
        """Labels and values as plain JSON types; `values` is a nested list."""
        return {**self.labels(), "values": self.values.tolist()}

    def save(self, path: str | Path) -> None:
        """Write a safetensors file: the values, and the labels and metadata as JSON in its header.

        Raises OutputPathError if the path cannot be written; nothing is left behind then. Raises ScoresError for what
        `load` would not read back: no values, labels that contradict each other, metadata that JSON does not hold.
        """
        try:
            written = json.dumps(self.labels(), ensure_ascii=False, allow_nan=False)
            reason = _fault_of_labels(parse_json(written))
        except (TypeError, ValueError, RecursionError) as error:
            raise ScoresError(
                f"cannot save this: its labels are not what JSON holds ({error}); replace them"
            ) from error
        if self.values.element_size() not in N_BYTES.values():
            reason = f"its values are of {self.values.dtype}; convert them, as by values.float()"
        if len(json.dumps(written)) > LARGEST_LABELS:
            reason = f"its labels take more than {LARGEST_LABELS} bytes; leave metadata out"
        if reason is not None:
            raise ScoresError(f"cannot save this: {reason}")
        # Half of a surrogate pair has no UTF-8; written as JSON's own escape, it is read back as it was.
        write_scores(path, self.values, written.encode("utf-8", "backslashreplace").decode("utf-8"))

    @classmethod
    def load(cls, path: str | Path) -> "Scores":
        """Read what `save` wrote. Raises FileFormatError for anything else; no pickle is ever read."""
        values, labels = read_scores(path, lambda labels: _described_shape(path, labels))
        as_tuples: dict[str, Any] = {key: _as_tuple(value) for key, value in labels.items() if key != "metadata"}
        return cls(values=values, metadata=labels["metadata"], **as_tuples)

    def __repr__(self) -> str:
        heads = "" if self.heads is None else f", {len(self.heads)} heads"
        partial = ", partial" if self.partial else ""
        sources = " ".join(token.strip() for token in self.src_tokens)
        return escaped(
            f"Scores({self.method}, {self.stage}, {len(self.layers)} layers{heads}, "
            f"{len(self.dest_tokens)} destinations x {len(self.src_tokens)} sources{partial}: "
            f"{sources if len(sources) <= REPR_LENGTH else sources[: REPR_LENGTH - 1] + '…'!r})"
        )

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, Any]:
        from tl_vzero.plot.export import notebook_bundle

        return notebook_bundle(self)


_Count = Annotated[int, Field(strict=True, ge=0, lt=2**31)]
_Counts = Annotated[list[_Count], Field(min_length=1)]
_WordIds = list[_Count | None] | None
# A token may hold half of a surrogate pair, which pydantic's own text must not.
_Text = InstanceOf[str]


class _Labels(BaseModel):
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
        if not self.method.isprintable():
            return "method is no name that can be shown"
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
        if self.src_spans is not None and [span[0] for span in self.src_spans] != self.src_positions:
            return "src_positions are not the first of each of src_spans"
        for name, word_ids, count in (
            ("word_ids", self.word_ids, self.n_positions),
            ("src_word_ids", self.src_word_ids, self.n_src_positions),
        ):
            if word_ids is not None:
                n_units = len(word_ids) if self.unit == "token" else len(_whole_words(word_ids))
                if n_units != count:
                    return f"{name} are of {n_units} positions, and the sentence has {count}"
        return None


def _described_shape(path: object, labels: object) -> list[int]:
    """The shape that a file's labels describe; raises FileFormatError for labels that `save` did not write."""
    reason = _fault_of_labels(labels)
    if reason is not None:
        raise FileFormatError(f"{path} is no Scores file, as Scores.save writes it: {reason}")
    return _Labels.model_validate(labels).shape


def _fault_of_labels(labels: object) -> str | None:
    """What is wrong with the labels of a map, None if nothing is."""
    try:
        return _Labels.model_validate(labels).contradiction()
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        return f"{'.'.join(map(str, first['loc']))[:80] or 'the labels'}: {first['msg'][:200]}"


def _are_all(numbers: Sequence[int], count: int) -> bool:
    """Whether these are 0 to count - 1 in order; a file may say any count."""
    return len(numbers) == count and list(numbers) == list(range(count))


def _whole_words(word_ids: Sequence[int | None]) -> tuple[Word, ...]:
    return group_words(word_ids, [""] * len(word_ids))


def _word_positions(
    word_ids: Sequence[int | None], words: Sequence[Word], positions: tuple[int, ...]
) -> tuple[int, ...]:
    """Where words stand among the whole sentence's, by their pieces' places among some of its positions."""
    word_at = {piece: index for index, word in enumerate(_whole_words(word_ids)) for piece in word.positions}
    return tuple(word_at[positions[word.positions[0]]] for word in words)


def _pool(groups: Sequence[Sequence[int]], values: Tensor, dim: int) -> Tensor:
    indices = [torch.tensor(list(group), device=values.device) for group in groups]
    return torch.stack([values.index_select(dim, index).sum(dim) for index in indices], dim=dim)


def _as_tuple(value: Any) -> Any:
    return tuple(_as_tuple(item) for item in value) if isinstance(value, list) else value


# The rollout through both stacks of an encoder-decoder.

SAME_MEASURE = ("distance", "heads", "final_norm")  # options without which a row of both maps has no one sum


def joint_rollout(encoder: Scores, decoder: Scores, cross: Scores) -> Scores:
    """What each decoder position draws on, through both stacks: decoder positions first, then the encoder's.

    Takes the raw maps of one sentence pair, `stack="encoder"`, "decoder" and "cross" of one method. `values` are
    `[decoder layer, decoder position, decoder position + encoder position]`, stage "rollout", and
    `metadata["encoder_from"]` is the first column of the encoder.

    Both maps of a decoder block are distances of the same output, so a row of them has one sum, S_l + C_l = 1. With
    the encoder's rollout E at its last layer, R_l = S_l @ R_{l-1} + C_l @ [0 | E], R_0 = [1 | 0]; rows sum to one.

    Raises InputTypeError for what is no Scores, ScoresError for maps that are not whole, raw and of one sentence pair.
    Source: Mohebbi et al. 2023 (maps), Ferrando et al. 2022, "Towards Opening the Black Box of Neural Machine
    Translation", section 3 (through both stacks).

    >>> import torch, tl_vzero
    >>> def even(stack, dests, sources):
    ...     labels = (tuple(dests), tuple(sources), (0, 1), (0, 1), 2, 2)
    ...     return tl_vzero.Scores(torch.ones(2, 2, 2), "any", (0, 1), *labels, metadata={"stack": stack})
    >>> encoder, decoder, cross = even("encoder", "ab", "ab"), even("decoder", "xy", "xy"), even("cross", "xy", "ab")
    >>> joint = tl_vzero.joint_rollout(encoder, decoder, cross)
    >>> joint.src_tokens, joint.values[-1, 0].tolist()
    (('x', 'y', 'a', 'b'), [0.125, 0.125, 0.375, 0.375])
    """
    maps = {"encoder": encoder, "decoder": decoder, "cross": cross}
    for stack, scores in maps.items():
        _check_whole(stack, scores)
    _check_alike(maps)
    n_dest, n_src = cross.values.shape[-2:]
    rolled = roll_out_jointly(
        decoder.values, cross.values, encoder.rollout().values[-1].to(decoder.values), identity=decoder.identity
    )
    return replace(
        decoder,
        values=rolled,
        src_tokens=decoder.dest_tokens + cross.src_tokens,
        src_positions=tuple(range(n_dest + n_src)),
        n_src_positions=n_dest + n_src,
        src_word_ids=_words_of_both(decoder, encoder),
        stage="rollout",
        metadata={**decoder.metadata, "stack": "joint", "encoder_from": n_dest},
    )


def _check_whole(stack: str, scores: object) -> None:
    if not isinstance(scores, Scores):
        raise InputTypeError(
            f"{stack} is {type(scores).__name__}: expected the Scores of one sentence pair with stack={stack!r}"
        )
    actual = scores.metadata.get("stack")
    if actual != stack:
        raise ScoresError(f"{stack} holds a map of stack={actual!r}: expected the Scores of stack={stack!r}")
    reason = None
    if scores.stage != "raw":
        reason = f"it is {scores.stage}, and raw maps are needed: a row is divided by the sum of both its maps"
    elif scores.heads is not None:
        reason = "it has one map per head; compute it without per_head"
    elif scores.unit != "token":
        reason = "its pieces are joined to words; call words() on the joint rollout"
    elif scores.partial or scores.layers != tuple(range(scores.n_layers)):
        reason = "it is a part of a map; compute it with all layers, destinations and sources"
    if reason is not None:
        raise ScoresError(f"joint_rollout is undefined for this {stack} map: {reason}")


def _check_alike(maps: dict[str, Scores]) -> None:
    encoder, decoder, cross = maps["encoder"], maps["decoder"], maps["cross"]
    weights = {scores.metadata.get("weights_sha256") for scores in maps.values()}
    if len({scores.method for scores in maps.values()}) > 1 or len(weights) > 1:
        raise ScoresError("the maps are of several methods or models: expected one method of one model")
    for option in SAME_MEASURE:
        of_decoder, of_cross = (scores.metadata.get("options", {}).get(option) for scores in (decoder, cross))
        if of_decoder != of_cross:
            raise ScoresError(
                f"decoder map with {option}={of_decoder!r}, cross map with {of_cross!r}: expected the same, as their "
                "rows are summed together"
            )
    read = decoder.metadata.get("encoder_tokens", list(cross.src_tokens))
    same_rows = decoder.dest_tokens == cross.dest_tokens and decoder.n_layers == cross.n_layers
    if not same_rows or encoder.src_tokens != cross.src_tokens or list(read) != list(cross.src_tokens):
        raise ScoresError(
            f"the maps are of different sentences: encoder {list(encoder.src_tokens)}, decoder "
            f"{list(decoder.dest_tokens)} beside {list(read)}, cross {list(cross.dest_tokens)} on "
            f"{list(cross.src_tokens)}; expected one sentence pair"
        )


def _words_of_both(decoder: Scores, encoder: Scores) -> tuple[int | None, ...] | None:
    if decoder.word_ids is None or encoder.word_ids is None:
        return None
    first = 1 + max((word for word in decoder.word_ids if word is not None), default=-1)
    return decoder.word_ids + tuple(None if word is None else first + word for word in encoder.word_ids)
