"""Scores: the labelled maps that every method returns. Rows are destinations, columns are sources."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from operator import index as index_of
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tl_vzero.choices import Positions, at_least_one, place_of, positions_in
from tl_vzero.difference import (
    Alignment,
    baseline_in,
    both_tokens,
    common_words,
    described,
    distinct,
    first_unlike,
    matched,
    name_of,
    of_baseline,
    words_of_both,
)
from tl_vzero.errors import (
    FileFormatError,
    InputError,
    InputTypeError,
    ScoresError,
    escaped,
    foreign_errors_as,
    shortened,
    shown,
)
from tl_vzero.files import path_of, read_labelled, to_plain, write_labelled
from tl_vzero.labels import Labels, Stage, described_shapes, fault_of_error, written_labels
from tl_vzero.registry import label_of
from tl_vzero.rollout import Parts, empty_rows, join, roll_out, rollout_error, shares, strongest
from tl_vzero.words import encodable, group_words, stretches, whole_words, word_positions

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go


Place = SupportsIndex | str  # a position, also one of numpy's, or the text of a token that occurs once

SIGNED = 1e-3  # of the largest value: what is less negative may be the rounding of a caller's own distance
REPR_LENGTH = 120  # characters of a sentence
MASKS = ("[MASK]", "<mask>")  # as nearly all tokenizers of masked models write it
ALIKE = ("layers", "heads", "unit", "stage")  # of two maps that have a difference


class Drawn:
    """A result that a notebook shows as a figure."""

    def plot(self) -> "go.Figure":
        """The figure that a notebook shows; `tl_vzero.plot` has more.

        Of scores a heat map with a layer slider, or per head all heads of a layer, opened on the most telling layer;
        rows are shares where values are no signed ones. Of an effect or of means its map; raises
        InputError for one per head.
        """
        from tl_vzero.plot.export import figure_of

        return figure_of(self)

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, Any]:
        from tl_vzero.plot.export import notebook_bundle

        return notebook_bundle(self)


@dataclass(frozen=True, eq=False, repr=False)
class Scores(Drawn):
    """Context-mixing scores of one sentence: how much each destination draws on each source.

    `values` is `[layer, dest, src]`, or `[layer, head, dest, src]` per head. Positions count from 0 in the
    sentence; `dest_positions[i]` is the sentence position of row i. `n_layers` and `n_positions` are those
    of the whole model and sentence, so that a partial map knows that it is one.
    Where spans were zeroed jointly, `src_spans` are their positions and `src_positions` the first of each.
    A cross-attention map's columns are of another sentence: `n_src_positions` and `src_word_ids` are its own then.
    `identity` is the method's rollout rule: whether half of each token stays where it is.
    `error`, of the shape of `values`, is by how much each share, an entry of the normalised map, may be off; None where
    scores are exact up to rounding. `omitted`, `[layer, dest]`, or `[layer, head, dest]` per head, is what rows have in
    sources that were left out (see `strongest`), in the unit of `values`.

    `scores[dest]` is `row(dest)`, and `scores[dest, src]` one entry in every layer; both by position or by text.

    >>> import tl_vzero
    >>> model = tl_vzero.load_model("agreement-mini")
    >>> scores = tl_vzero.value_zeroing(model, "the pictures of some hat [MASK] scaring marcus.")
    >>> scores["[MASK]"].shape, scores[6, "pictures"].shape
    (torch.Size([4, 11]), torch.Size([4]))
    >>> scores.top("[MASK]", k=2, layer=1).round(2)
       layer    source  share
    0      1  pictures   0.84
    1      1    marcus   0.08
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
    error: Float[Tensor, "*axes dest src"] | None = None
    omitted: Float[Tensor, "*axes dest"] | None = None

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
        for name, shape in (("error", expected), ("omitted", expected[:-1])):
            if name in self._tensors and list(self._tensors[name].shape) != shape:
                raise ScoresError(f"{name} has shape {list(self._tensors[name].shape)}: expected {shape}")
        if len(self.dest_tokens) != expected[-2] or len(self.src_tokens) != expected[-1]:
            raise ScoresError(
                f"{len(self.dest_tokens)} dest_tokens and {len(self.src_tokens)} src_tokens "
                f"for {expected[-2]} destinations and {expected[-1]} sources: expected one token each"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of `values`: (layer, dest, src), or (layer, head, dest, src) per head."""
        return tuple(self.values.shape)

    @property
    def _tensors(self) -> Parts:
        """What there is of `values`, `error` and `omitted`, by name."""
        tensors = {"values": self.values, "error": self.error, "omitted": self.omitted}
        return {name: tensor for name, tensor in tensors.items() if tensor is not None}

    def _part(self, at: tuple[Any, ...], **labels: Any) -> "Scores":
        """The same for a part of the layers, heads and destinations."""
        labels |= {name: tensor[at] for name, tensor in self._tensors.items()}
        return replace(self, **labels)

    @property
    def tokens(self) -> tuple[str, ...]:
        """The sentence's tokens in order, as far as the map has them; ScoresError where it joins two sentences."""
        if self.joins_two:
            raise ScoresError(
                "tokens is undefined here: rows and columns are of two sentences; take dest_tokens or src_tokens"
            )
        sources = {} if self.src_spans else dict(zip(self.src_positions, self.src_tokens, strict=True))
        by_position = sources | dict(zip(self.dest_positions, self.dest_tokens, strict=True))
        return tuple(by_position[position] for position in sorted(by_position))

    @property
    def signed(self) -> bool:
        """Whether values below 0 mean something: of a difference, and of attributions that were summed."""
        below = bool(self.values.numel()) and bool(self.values.min() < -SIGNED * self.values.max().abs())
        return below or self.stage == "difference"

    @property
    def baseline(self) -> str:
        """What was put in the place of a value, "zero" by default; the caller's own vectors have a hash behind."""
        return baseline_in(self.metadata)

    @property
    def label(self) -> str:
        """The method as people write it, with the baseline where it is not zero, without the hash."""
        return label_of(self.method) + of_baseline(self.metadata)

    @property
    def crosses(self) -> bool:
        """Whether rows are a decoder's positions and columns an encoder's, as in cross-attention."""
        stack = self.metadata.get("stack")
        return stack == "cross" or (stack == "encoder" and self.n_src_positions is not None)

    @property
    def joins_two(self) -> bool:
        """Whether rows and columns are of two sentences: a cross-attention map, or one whose labels say so."""
        return (
            self.crosses
            or self.n_src_positions is not None
            or (not self.partial and self.dest_tokens != self.src_tokens)
        )

    @property
    def partial(self) -> bool:
        """Whether some destinations or sources of the sentence are left out."""
        if self.src_spans is not None or self.omitted is not None:
            return True
        n_sources = self.n_positions if self.n_src_positions is None else self.n_src_positions
        return not (_are_all(self.dest_positions, self.n_positions) and _are_all(self.src_positions, n_sources))

    @property
    def empty_rows(self) -> tuple[tuple[int, ...], ...]:
        """The rows in which nothing moved: (layer, dest), or (layer, head, dest) per head."""
        axes = [self.layers, *([] if self.heads is None else [self.heads]), self.dest_positions]
        rows = torch.nonzero(empty_rows(self.values)).tolist()
        return tuple(tuple(axis[i] for axis, i in zip(axes, row, strict=True)) for row in rows)

    @property
    def unknown_positions(self) -> tuple[int, ...]:
        """The positions whose token the model reads as unknown (of `words()`: the words that hold one).

        Their labels are what was written. Of a cross-attention map they are the decoder's positions.
        """
        return self._units_with(self.metadata.get("unknown", ()), self.word_ids)

    @property
    def unknown_dests(self) -> tuple[bool, ...]:
        """Of each of `dest_tokens`, whether the model reads it as unknown."""
        unknown = self.unknown_positions
        return tuple(position in unknown for position in self.dest_positions)

    @property
    def unknown_sources(self) -> tuple[bool, ...]:
        """Of each of `src_tokens`, whether the model reads it, or a part of it, as unknown."""
        unknown = self.metadata.get("unknown", ())
        if self.n_src_positions is not None:
            first = self.metadata.get("encoder_from", 0)
            behind = [first + position for position in self.metadata.get("encoder_unknown", ())]
            unknown = [*(unknown if first else ()), *behind]
        whole = self._units_with(unknown, self.word_ids if self.n_src_positions is None else self.src_word_ids)
        return tuple(not set(column).isdisjoint(whole) for column in self._columns)

    def _units_with(self, pieces: Sequence[int], word_ids: Sequence[int | None] | None) -> tuple[int, ...]:
        """Positions as they are, or the words that they belong to."""
        if self.unit == "token" or word_ids is None:
            return tuple(pieces)
        words = enumerate(whole_words(word_ids))
        return tuple(index for index, word in words if not set(pieces).isdisjoint(word.positions))

    @property
    def kinds(self) -> tuple[str, ...]:
        """What each position of the sentence is: "text", "image" or "sound"; of several, "image 1", "image 2"."""
        about = self.metadata.get("signal", {})
        of_tokens = about.get("kinds") or [about.get("kind", "text")] * self.n_positions
        if self.unit == "token" or self.word_ids is None or "kinds" not in about:
            return tuple(of_tokens)
        return tuple(of_tokens[word.positions[0]] for word in whole_words(self.word_ids))

    def normalized(self) -> "Scores":
        """Divide each row by its sum; rows sum to one, and an empty row stays zero (see `empty_rows`).

        What a row has in sources that were left out (`omitted`) is part of its sum. A map over chosen sources is
        normalised over those. What is normalised already is returned as it is.
        Raises ScoresError for signed scores: a row whose sum is negative would change every sign.
        """
        if self.stage in ("normalized", "rollout"):
            return self
        if self.stage == "difference":
            raise ScoresError("normalized() is undefined for a difference: take that of two normalised maps")
        if self.signed:
            raise ScoresError(
                f"normalized() is undefined here: {self.method} gave negative values, down to {self.values.min():.3g}; "
                'take sizes instead (aggregate="norm" for gradient methods, size=True for others), or the raw `values`'
            )
        parts: dict[str, Any] = shares(self._tensors)
        return replace(self, **parts, stage="normalized")

    def strongest(self, k: int) -> "Scores":
        """Keep the k largest entries of each row; what the rest sums to is in `omitted`.

        The rest is 0, and sources that no row keeps are dropped, so that a row over thousands of sources takes a few
        numbers. Of equal entries the first stay. `metadata["src_tokens"]` has the text of all sources. Where shares may
        be off, `error` of an entry that was set to 0 covers what was there. The result is a partial map.
        Raises InputError for k below 1, ScoresError for signed scores, such as a difference.

        >>> tokens, places = ("a", "hat", "barks"), (0, 1, 2)
        >>> maps = torch.tensor([[[1.0, 6.0, 3.0]]])
        >>> scores = Scores(maps, "attention", (0,), tokens[2:], tokens, places[2:], places, 1, 3).strongest(1)
        >>> scores.src_tokens, scores.values.tolist(), scores.omitted.tolist()
        (('hat',), [[[6.0]]], [[4.0]])
        """
        k = at_least_one("k", k)
        if self.signed:
            raise ScoresError("strongest() is undefined for signed scores: what is left out has no one size")
        cut, at = strongest(self._tensors, k)
        labels: dict[str, Any] = {**cut, "src_spans": self.src_spans and tuple(self.src_spans[i] for i in at)}
        n_sources = self.n_positions if self.n_src_positions is None else self.n_src_positions
        whole = self.src_spans is None and _are_all(self.src_positions, n_sources)
        if whole:
            labels["metadata"] = {**self.metadata, "src_tokens": list(self.src_tokens)}
        tokens = tuple(self.src_tokens[i] for i in at)
        return replace(self, src_tokens=tokens, src_positions=tuple(self.src_positions[i] for i in at), **labels)

    def rollout(self) -> "Scores":
        """Multiply the normalised maps through the layers, with the method's own rule (`identity`).

        Raises ScoresError for a rollout, a partial map, a subset of layers, a map per head, over words,
        or between two different sequences.
        Source: Abnar & Zuidema 2020; Mohebbi et al. 2023, section 3 (Value Zeroing: no identity).
        """
        reason = self._why_no_rollout()
        if reason is not None:
            raise ScoresError(f"rollout() is undefined here: {reason}")
        steps, error = self.normalized().values, self.error
        if error is not None:
            error = rollout_error(steps, error, identity=self.identity)
        return replace(self, values=roll_out(steps, identity=self.identity), error=error, stage="rollout")

    def _why_no_rollout(self) -> str | None:
        if self.stage == "rollout":
            return "this is a rollout already"
        if self.joins_two:
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
            return f"it needs all {self.n_layers} layers in order, not {list(self.layers)}: compute it with all layers"
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
        return self._part((slice(at, at + 1),), layers=(self.layers[at],))

    def at_dest(self, dest: Place) -> "Scores":
        """The same with one destination; `dest` and errors are those of `row`."""
        row = self.dest_index(dest)
        tokens, positions = (self.dest_tokens[row],), (self.dest_positions[row],)
        at = (*[slice(None)] * (self.values.ndim - 2), [row])
        return self._part(at, dest_tokens=tokens, dest_positions=positions)

    def row(self, dest: Place) -> Float[Tensor, "*axes src"]:
        """The scores of one destination in every layer: `[layer, src]`, or `[layer, head, src]` per head.

        `dest` is a position in the sentence (negative: from the end of the destinations)
        or the text of a destination token that occurs once. Raises InputError for one that is not there.
        """
        return self.values[..., self.dest_index(dest), :]

    @property
    def special_sources(self) -> tuple[bool, ...]:
        """Which columns hold nothing but special tokens, such as [CLS]; none where no tokenizer says."""
        word_ids = self.word_ids if self.n_src_positions is None else self.src_word_ids
        if word_ids is None:
            return (False,) * len(self.src_positions)
        if self.unit == "word":
            word_ids = tuple(word_ids[word.positions[0]] for word in whole_words(word_ids))
        return tuple(all(word_ids[position] is None for position in column) for column in self._columns)

    @property
    def _columns(self) -> tuple[tuple[int, ...], ...]:
        return self.src_spans or tuple((position,) for position in self.src_positions)

    def telling_layer(self, target: Place) -> int:
        """The layer to look at first: the one in which the target's row is most concentrated on one other token.

        The target itself and special tokens are left out of the row; of what is left, one token has the largest part.
        Layers in which less than half of the row is left come last. Of equal layers it is the one with the largest
        share, then the first; per head one head is enough. `target` is as in `row`. Raises what `row` and `normalized`
        raise.

        >>> maps = torch.tensor([[[0.9, 0.1], [0.1, 0.9]], [[0.2, 0.8], [0.1, 0.9]]])
        >>> Scores(maps, "any", (0, 1), ("a", "b"), ("a", "b"), (0, 1), (0, 1), 2, 2).telling_layer("a")
        1
        """
        at = None if self.crosses else self.dest_positions[self.dest_index(target)]
        columns = enumerate(zip(self._columns, self.special_sources, strict=True))
        others = [index for index, (column, is_special) in columns if at not in column and not is_special]
        if not others:
            return self.layers[0]
        shares = self.at_dest(target).normalized().values[..., 0, others].reshape(len(self.layers), -1, len(others))
        left, largest = shares.sum(dim=-1), shares.amax(dim=-1)  # [layer, head]
        concentration = torch.where(left >= 0.5, largest / left, largest - 1).amax(dim=1)
        ties = concentration >= concentration.max() - 1e-6  # the rounding of float32
        return self.layers[int(largest.amax(dim=1).where(ties, -1.0).argmax())]

    @property
    def shown_dest(self) -> int:
        """The destination that a picture opens on: the only mask, the last one of a causal map, else the first word."""
        named = zip(self.dest_positions, self.dest_tokens, strict=True)
        masks = [position for position, token in named if token.strip() in MASKS]
        if len(masks) == 1:
            return masks[0]
        first = min(self.dest_positions)
        later = [column for column, position in enumerate(self.src_positions) if position > first]
        if later and not self.row(first)[..., later].any():  # of a causal map the first row draws on nothing later
            return max(self.dest_positions)
        is_special = dict(zip(self.src_positions, self.special_sources, strict=True))
        return next((place for place in self.dest_positions if not is_special.get(place)), self.dest_positions[0])

    def dest_index(self, dest: Place) -> int:
        """Where the row of a destination is in `values`; `dest` and errors are those of `row`."""
        return place_of("dest", dest, self.dest_tokens, self.dest_positions)

    def __getitem__(self, place: Place | tuple[Place, Place]) -> Float[Tensor, "*axes"]:
        """The row of a destination, `[layer, src]`, or with a source its entries, `[layer]`; errors are as of `row`."""
        if not isinstance(place, tuple):
            return self.row(place)
        if len(place) != 2:
            raise InputTypeError(
                f"scores[...] holds {len(place)} places: expected a destination, or a destination and a source; "
                "values[layer, ...] takes layers and slices"
            )
        return self.row(place[0])[..., place_of("source", place[1], self.src_tokens, self.src_positions)]

    __iter__ = None  # or Python would iterate by counting positions

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """The values for numpy; those of bfloat16, which numpy lacks, as float32."""
        values = self.values.detach().cpu()
        values = values.float() if values.dtype == torch.bfloat16 else values
        return (np.array if copy else np.asarray)(values.numpy(), dtype=dtype)

    def __sub__(self, other: "Scores") -> "Scores":
        """`difference(other)`."""
        return self.difference(other)

    def difference(self, other: "Scores", *, alignment: Alignment | None = None) -> "Scores":
        """What this map has more than another, entry by entry, at stage "difference", in the unit of both.

        Of two sentences, models, methods or options. It is word by word where both have as many words, cut at other
        places, else position by position where both have as many tokens; where two differ a label is both, "hat|hats".
        `alignment` says otherwise: pairs (first, second) of positions or tokens that occur once, or "tokens" for those
        that both have; the rest is left out. Positions are those of this map; `method` says what was subtracted,
        and `metadata["subtracted"]["alignment"]` has both sentences, the pairs and what was left out.
        Raises InputTypeError for what is no Scores or no pair, InputError for a token that is not there or is paired
        twice, ScoresError for maps of other layers, heads, units or stages, and where nothing says which tokens pair.

        >>> def row(*tokens: str) -> Scores:
        ...     places = tuple(range(len(tokens)))
        ...     shares = torch.full((1, 1, len(tokens)), 1 / len(tokens))
        ...     return Scores(shares, "attention", (0,), tokens[-1:], tokens, places[-1:], places, 1, len(tokens))
        >>> pair = row("hat", "is").difference(row("hats", "are"))
        >>> pair.src_tokens, pair.method
        (('hat|hats', 'is|are'), 'attention (hat is) - attention (hats are)')
        >>> row("hats", "are").difference(row("old", "hats", "are"), alignment="tokens").values
        tensor([[[0.1667, 0.1667]]])
        """
        if not isinstance(other, Scores):
            raise InputTypeError(f"{type(other).__name__} given to subtract from Scores: expected Scores")
        unlike = first_unlike(self, other, ALIKE)
        if unlike is not None:
            raise ScoresError(
                f"these maps have no difference: {unlike}; expected two maps with the same layers and options, and "
                "both raw, normalized() or rollout()"
            )
        if self.omitted is not None or other.omitted is not None:
            raise ScoresError(
                "these maps have no difference: strongest() left sources of them out; subtract whole maps"
            )
        if self.stage == "raw":
            self._refuse_raw_errors("difference()")
            other._refuse_raw_errors("difference()")
        both = matched(self, other, alignment)
        errors = [one.error for one in (both.first, both.second) if one.error is not None]
        subtracted = {"method": other.method, **other.metadata, "alignment": described(self, other, both)}
        return replace(
            both.first,
            values=both.first.values - both.second.values.to(both.first.values),
            error=sum(errors[1:], errors[0]) if errors else None,
            dest_tokens=both_tokens(both.first.dest_tokens, both.second.dest_tokens),
            src_tokens=both_tokens(both.first.src_tokens, both.second.src_tokens),
            word_ids=common_words(both),
            method=name_of(self, other),
            stage="difference",
            metadata={**self.metadata, "subtracted": subtracted},
        )

    def top(self, dest: Place, k: int = 5, layer: int | None = None) -> "pd.DataFrame":
        """The sources that a destination draws on most, as shares: a pandas table of layer, (head,) source, share.

        Where shares may be off, `error` says by how much. `k` of each layer, or of one, largest first; a source whose
        token occurs again has its position behind it.
        `dest`, `layer` and errors are those of `row`, `at_layer` and `normalized`.
        """
        k, row = at_least_one("k", k), self.at_dest(dest).normalized()
        row = replace(row, src_tokens=distinct(self.src_tokens, self.src_positions))
        table = (
            (row if layer is None else row.at_layer(layer))
            .to_frame()
            .rename(columns={"src_token": "source", "value": "share"})
        )
        axes = ["layer"] if self.heads is None else ["layer", "head"]
        table = table.sort_values([*axes, "share"], ascending=[True] * len(axes) + [False], ignore_index=True)
        columns = [*axes, "source", "share", *(["error"] if self.error is not None else [])]
        return table.groupby(axes).head(k)[columns].reset_index(drop=True)

    def matrix(self, layer: int) -> "pd.DataFrame":
        """One layer's map as a pandas table with tokens as labels: destinations are rows, sources are columns.

        A token that occurs again has its position behind it. Raises ScoresError for scores per head, and what
        `at_layer` raises.
        """
        import pandas as pd

        if self.heads is not None:
            raise ScoresError("matrix() is of one map, and these scores are per head: compute them without per_head")
        rows, columns = (
            distinct(self.dest_tokens, self.dest_positions),
            distinct(self.src_tokens, self.src_positions),
        )
        table = pd.DataFrame(np.asarray(self.at_layer(layer))[0], index=list(rows), columns=list(columns))
        return table.rename_axis(index="destination", columns="source")

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
                "words() needs to know which pieces form a word, and this was computed from ids without a tokenizer, "
                "or is a difference between other words; load the model with one, or pass text, or subtract words()"
            )
        if self.src_spans is not None:
            raise ScoresError(
                "words() joins single positions, and these columns are spans already; give each word as a span, or "
                "compute without spans"
            )
        if self.omitted is not None:
            raise ScoresError("words() joins whole rows, and strongest() left parts of these out: take words() first")
        grouped = words_of_both if self.stage == "difference" else group_words
        dests = grouped([self.word_ids[p] for p in self.dest_positions], self.dest_tokens)
        sources = grouped([src_word_ids[p] for p in self.src_positions], self.src_tokens)
        groups = [word.positions for word in dests], [word.positions for word in sources]
        joined: dict[str, Any] = join(self._tensors, *groups, raw=self.stage == "raw")
        return replace(
            self,
            **joined,
            dest_tokens=tuple(w.label for w in dests),
            src_tokens=tuple(w.label for w in sources),
            dest_positions=word_positions(self.word_ids, dests, self.dest_positions),
            src_positions=word_positions(src_word_ids, sources, self.src_positions),
            n_positions=len(whole_words(self.word_ids)),
            n_src_positions=None if self.n_src_positions is None else len(whole_words(src_word_ids)),
            unit="word",
        )

    def _refuse_raw_errors(self, what: str) -> None:
        if self.stage == "raw" and self.error is not None:
            raise ScoresError(
                f"{what} is undefined for raw scores whose shares may be off: there is no error of what it would give; "
                "take normalized() first"
            )

    def by_blocks(self, blocks: Mapping[str, Positions] | None = None) -> "Scores":
        """Join positions into blocks: summed over the sources of a block, averaged over its destinations.

        `blocks` are positions by name, such as {"image": range(1, 577), "question": [577, 578], "answer": [579]};
        what is in none is left out. None takes the stretches of one kind in their order: "text 1", "image", "text 2".
        Of shares of each row (`normalized()`) an entry is the share of what a block of destinations draws from one
        of sources. Raises InputError for blocks that overlap or lie outside the sentence, ScoresError for part of a
        map, or one of two sentences.

        >>> scores = Scores(torch.eye(3)[None], "attention", (0,), *[("a", "hat", "barks")] * 2, *[(0, 1, 2)] * 2, 1, 3)
        >>> scores.by_blocks({"who": [0, 1], "what": "barks"}).values.tolist()
        [[[1.0, 0.0], [0.0, 1.0]]]
        """
        if self.partial or self.joins_two:
            raise ScoresError("by_blocks() joins positions of a whole map of one sentence: expected such a map")
        self._refuse_raw_errors("by_blocks()")
        if blocks is None:
            blocks = stretches(self.kinds)
        places = {name: positions_in(self.tokens, f"blocks[{name!r}]", at) for name, at in blocks.items()}
        every = [position for at in places.values() for position in at]
        if not every or len(set(every)) < len(every):
            raise InputError("blocks overlap, or there is none: expected each position in one block at most")
        groups = [*places.values()]
        joined: dict[str, Any] = join(self._tensors, groups, groups, raw=self.stage == "raw")
        first = tuple(at[0] for at in places.values())
        return replace(
            self,
            **joined,
            dest_tokens=tuple(places),
            src_tokens=tuple(places),
            dest_positions=first,
            src_positions=first,
            src_spans=tuple(groups),
        )

    def to_frame(self) -> "pd.DataFrame":
        """A long pandas table: layer, (head,) dest, src, value, (error,) dest_token, src_token, method, stage."""
        import pandas as pd

        heads = {} if self.heads is None else {"head": self.heads}
        # Two spans may begin at one position, so columns are told apart by their index.
        columns = range(len(self.src_positions))
        axes = {"layer": self.layers, **heads, "dest": self.dest_positions, "src": columns}
        frame = pd.MultiIndex.from_product(list(axes.values()), names=list(axes)).to_frame(index=False)
        frame["value"] = np.asarray(self).reshape(-1)
        if self.error is not None:
            frame["error"] = np.asarray(replace(self, values=self.error)).reshape(-1)
        # A table holds text that can be encoded, and a token may be half of a character.
        dest_tokens = dict(zip(self.dest_positions, map(encodable, self.dest_tokens), strict=True))
        frame["dest_token"] = frame["dest"].map(dest_tokens)
        frame["src_token"] = frame["src"].map(dict(enumerate(map(encodable, self.src_tokens))))
        frame["src"] = frame["src"].map(dict(enumerate(self.src_positions)))
        frame["method"], frame["stage"] = self.method, self.stage
        return frame

    def labels(self) -> dict[str, Any]:
        """Everything but the values, as plain JSON types."""
        labels = {name: to_plain(getattr(self, name)) for name in Labels.model_fields if name != "metadata"}
        return {**labels, "metadata": dict(self.metadata)}

    def to_dict(self) -> dict[str, Any]:
        """Labels and values as plain JSON types; `values`, and `error` and `omitted` if there, are nested lists."""
        return {**self.labels(), **{name: tensor.tolist() for name, tensor in self._tensors.items()}}

    def save(self, path: str | Path) -> None:
        """Write a safetensors file: the values, and the labels and metadata as JSON in its header.

        Raises InputError for a name that ends in another format's suffix, OutputPathError if the path cannot be
        written; nothing is left behind then. Raises ScoresError for what `load` would not read back: no values, labels
        that contradict each other, metadata that JSON does not hold.
        """
        if path_of(path).suffix not in ("", ".safetensors"):
            raise InputError(
                f"cannot write {path}: Scores are saved as safetensors, expected a name that ends in .safetensors; for "
                "JSON there is to_dict(), for a table (CSV) to_frame(), for numpy and torch `values`"
            )
        written = written_labels(self.labels(), self._tensors)
        write_labelled(path, "Scores", self._tensors, written)

    @classmethod
    def load(cls, path: str | Path) -> "Scores":
        """Read what `save` wrote. Raises FileFormatError for anything else; no pickle is ever read."""
        tensors, labels = read_labelled(path, "Scores", lambda labels: described_shapes(path, labels))
        fault = fault_of_error(tensors)
        if fault is not None:
            raise FileFormatError(f"{path} is no Scores file, as Scores.save writes it: {fault}")
        as_tuples: dict[str, Any] = {key: _as_tuple(value) for key, value in labels.items() if key != "metadata"}
        return cls(metadata=labels["metadata"], **{**as_tuples, **tensors})

    def __repr__(self) -> str:
        model = f" of {shortened(str(self.metadata['model']), REPR_LENGTH)}" if "model" in self.metadata else ""
        heads = "" if self.heads is None else f", {len(self.heads)} heads"
        partial = ", partial" if self.partial else ""
        partial += "" if self.error is None else f", shares off by at most {self.error.max():.2g}"
        partial += f", {len(self.unknown_positions)} unknown to the model" if self.unknown_positions else ""
        sources = shortened(" ".join(token.strip() for token in self.src_tokens), REPR_LENGTH)
        telling = ""
        # Signed scores have no shares, and labels that were made by hand may not fit.
        with suppress(ScoresError, LookupError):
            token = self.dest_tokens[self.dest_index(self.shown_dest)].strip()
            telling = f", layer {self.telling_layer(self.shown_dest)} tells most of {token!r}"
        return escaped(
            f"Scores({self.method}{model}, {self.stage}{of_baseline(self.metadata)}, {len(self.layers)} layers{heads}, "
            f"{len(self.dest_tokens)} destinations x {len(self.src_tokens)} sources{partial}: {sources!r}{telling})"
        )


def _are_all(numbers: Sequence[int], count: int) -> bool:
    """Whether these are 0 to count - 1 in order; a file may say any count."""
    return len(numbers) == count and list(numbers) == list(range(count))


def _as_tuple(value: Any) -> Any:
    return tuple(_as_tuple(item) for item in value) if isinstance(value, list) else value
