"""Attention knockout: chosen destinations no longer attend to chosen sources in a window of layers.

1. The clean run says what each destination's attention z = sum_j A[j] v[j] is made of, in every layer.
2. The first block of a window reads what it read in the clean run, and z changes at the destinations only. So the rows
   of all copies go through it as the positions of one sequence: behind z, a block computes position by position.
3. From the next block on there is one copy per window and source, down to the metric. A run starts with one clean copy,
   and grows where a window begins. In later layers of a window a copy's attention is its own.
4. Where the rows of the clean run do not come out of step 2 as they were, or a copy run by itself gives other logits,
   all copies run from the first block on.

A pattern that is overwritten does not act in many classes, so z is. Where z comes before the pattern, a copy has
shadows that read what it reads: with the values of its sources at zero, z is what is left without them.

Source: Geva et al. 2023, "Dissecting Recall of Factual Associations in Auto-Regressive Language Models", section 5.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from tqdm.auto import tqdm

from tl_vzero.choices import Position, Positions, flag, listed, positions_in, positive
from tl_vzero.clean import read_by
from tl_vzero.distance import relative_difference
from tl_vzero.effects.measure import (
    Effect,
    Intervention,
    MetricFunction,
    Numbers,
    intervene,
    metric_for,
    one_sentence,
)
from tl_vzero.errors import EndsRun, InputError, ModelError, shown
from tl_vzero.inputs.encoder_decoder import DecoderInputs
from tl_vzero.inputs.text import Ids, Sentence, Text
from tl_vzero.models.blocks import SAME_BLOCK
from tl_vzero.models.changes import has_user_hooks
from tl_vzero.models.contracts import result_dtype
from tl_vzero.models.run import SAME, NamedHook, TargetLogits, copied, eager_attention, quiet, remembering_hooks
from tl_vzero.models.sites import hook_points
from tl_vzero.models.turns import takes_turn
from tl_vzero.targets import TargetIds
from tl_vzero.words import span_label

TOKENS_PER_BATCH = 1024  # of all copies; what another value costs shows tests/bench/bench_knockout.py


@takes_turn
def attention_knockout(
    model: nn.Module,
    inputs: Text,
    *,
    sources: Positions = None,
    spans: Iterable[Positions] | None = None,
    destinations: Positions = None,
    layers: Numbers = None,
    window: int | None = 1,
    renormalise: bool = False,
    target: Position | None = None,
    target_ids: TargetIds | None = None,
    metric: str | MetricFunction = "logit",
    attention_mask: Ids | None = None,
    token_type_ids: Ids | None = None,
    batch_size: int | None = None,
    progress: bool = False,
    prepend_bos: bool = False,
    decoder_inputs: DecoderInputs | None = None,
    stack: str | None = None,
) -> Effect:
    """Cut the attention of some destinations to each source, in the running model, and follow it to the prediction.

    Row l of the values `[layer, src]` has the pattern's entries set to 0 in all heads of the layers l to l +
    `window` - 1, or from l to the last with `window=None`; the unit is that of the metric. `destinations` are cut off
    together, by default the target alone. `sources` are cut one by one; positions that are to be cut together are
    `spans`, such as [[1, 2], [4]]. With `renormalise` what is left of a row is scaled to its former sum, which is one.
    `layers` are where windows begin, by default wherever one fits. `target`, `target_ids`, `metric` and the rest are
    those of `zero_ablation`; `batch_size` counts copies. Of an encoder-decoder `stack` says what is cut: the decoder's
    attention to itself or, "cross", to the encoder, or the encoder's to itself; the destinations of the last are the
    encoder's positions, by default all of them.

    A source that no destination attends to has the effect 0. Raises InputError where one is named that has no
    effect in any window, where a window does not fit, or where renormalising leaves nothing of a row; ModelError for
    an attention that does not sum values by its pattern; and what `zero_ablation` raises.
    Source: Geva et al. 2023, section 5.

    >>> import tl_vzero
    >>> model = tl_vzero.load_model("agreement-mini")
    >>> effect = tl_vzero.attention_knockout(model, "the authors [MASK] today.", target_ids=("are", "is"), window=None)
    >>> effect.src_tokens[effect.values[0].argmin()]
    'authors'
    """
    sentence = one_sentence(model, inputs, attention_mask, token_type_ids, prepend_bos, stack, decoder_inputs)
    base = intervene(model, sentence, target, layers, None, per_head=False, stack=stack)
    stops = _windows(base.layers if layers is not None else None, window, base.sites.n_layers)
    if destinations is None and stack != "encoder":
        destinations = base.target
    cut = positions_in((sentence.sources if stack == "encoder" else sentence).tokens, "destinations", destinations)
    columns = _columns(sentence.sources, sources, spans)
    make_metric, size = metric_for(model, metric, target_ids), positive("batch_size", batch_size)
    whole = stack is not None or not isinstance(metric, str)
    knockout = _Knockout(base, columns, cut, stops, flag("renormalise", renormalise), whole)
    with quiet(model), eager_attention(model):
        logits = knockout.clean_run()
        knockout.check_acts(sources is not None or spans is not None)
        measure = make_metric(base.target, logits[0, base.target])
        clean = measure(logits)
        values = clean.new_zeros(len(stops), len(columns))
        if not knockout.whole:  # the logits of a copy are those of the target alone
            measure = make_metric(0, logits[0, base.target])
        for part, after in knockout.batches(size, progress):
            begins, places = zip(*part, strict=True)
            values[[list(stops).index(layer) for layer in begins], places] = measure(after) - clean
    read = sentence.sources
    labels = replace(base, layers=tuple(stops), sources=()).labels(measure, clean, logits) | {
        "src_tokens": tuple(
            read.tokens[span[0]] if spans is None else span_label(span, read.tokens, read.word_ids) for span in columns
        ),
        "src_positions": tuple(span[0] for span in columns),
        "word_ids": read.word_ids,
    }
    labels["metadata"] |= {"window": window, "destinations": list(cut), "renormalise": renormalise}
    labels["metadata"] |= {} if spans is None else {"src_spans": [list(span) for span in columns]}
    return Effect(values=values.to(result_dtype(model)), method="attention_knockout", **labels)


def _columns(read: Sentence, sources: Positions, spans: Iterable[Positions] | None) -> tuple[tuple[int, ...], ...]:
    """The positions that are cut together in each column."""
    if spans is None:
        return tuple((position,) for position in positions_in(read.tokens, "sources", sources))
    if sources is not None:
        raise InputError("sources and spans given: expected one of them, single positions or positions cut together")
    several = listed("spans", spans)
    if not isinstance(several, list) or not several or None in several:
        raise InputError(f"spans is {shown(spans)}: expected the positions of at least one span, such as [[1, 2], [4]]")
    return tuple(positions_in(read.tokens, f"spans[{n}]", span) for n, span in enumerate(several))


def _windows(layers: Sequence[int] | None, window: int | None, n_layers: int) -> dict[int, int]:
    """Where each window begins and, behind its last layer, stops."""
    length = positive("window", window)
    fitting = range(n_layers if length is None else n_layers - length + 1)
    outside = [layer for layer in layers or () if layer not in fitting]
    if outside or not fitting:
        raise InputError(
            f"a window of {length} layers does not fit at layer {outside[0] if outside else 0}: the model has "
            f"{n_layers} layers; expected layers in 0 to {n_layers - (length or 1)}, or a shorter window"
        )
    return {layer: n_layers if length is None else layer + length for layer in layers or fitting}


Place = tuple[int, int]  # the layer where a window begins, and the column of its source


class _RowsDiffer(EndsRun):
    """Ends a run whose blocks do not compute position by position."""


@dataclass(frozen=True, eq=False)
class _Copies:
    """The copies in a batch whose window begins at a layer: they themselves, then as many shadows of each kind."""

    layer: int
    stop: int
    gone: Bool[Tensor, "copy src"]
    first: int
    kinds: int

    def kind(self, kind: int) -> slice:
        """Where the copies (0) or shadows of a kind are in the batch."""
        return slice(self.first + kind * len(self.gone), self.first + (kind + 1) * len(self.gone))


@dataclass(frozen=True, eq=False)
class _Attention:
    """What the destinations attend to in one layer of the clean run; values are those of the pattern's heads."""

    pattern: Float[Tensor, "head dest src"]
    value: Float[Tensor, "src head d_head"]


class _Knockout:
    """The runs of one knockout."""

    def __init__(
        self,
        base: Intervention,
        columns: Sequence[Sequence[int]],
        destinations: Sequence[int],
        stops: Mapping[int, int],
        renormalise: bool,
        whole: bool,
    ) -> None:
        self.base, self.sites, self.stops, self.renormalise, self.whole = base, base.sites, stops, renormalise, whole
        self.mixed = [name.removesuffix("hook_v") + "hook_z" for name in base.sites.values]
        self.device = base.ids.device
        self.dest = torch.tensor(destinations, device=self.device)
        self.gone = torch.zeros(len(columns), len(base.sentence.sources), dtype=torch.bool, device=self.device)
        for column, span in enumerate(columns):
            self.gone[column, list(span)] = True
        self.target_logits = TargetLogits(base.model)
        self.clean: dict[int, _Attention] = {}
        self.kinds = 1
        # None: a first run will tell. A user's hook may count on a batch of whole runs.
        self.restarts: bool | None = False if has_user_hooks(base.model) or self.sites.stack else None

    def clean_run(self) -> Float[Tensor, "1 position vocabulary"]:
        """Keep what the destinations attend to, and check that it is all that attention writes; returns the logits."""
        missing = [name for name in self.mixed if name not in hook_points(self.base.model)]
        if missing:
            raise ModelError(f"this model has no hook {missing[0]}: knockout changes what attention sums up there")
        layers = range(min(self.stops), max(self.stops.values()))
        activations: dict[str, Tensor] = {}
        names = [name for layer in layers for name in (*self.sites.at(layer)[1:3], self.mixed[layer])]
        logits = self.base.logits(remembering_hooks(names, activations))
        for layer in layers:
            _, value, pattern, _ = self.sites.at(layer)
            mixed, rows = activations[self.mixed[layer]], activations[pattern][0, :, self.dest]
            attention = _Attention(rows, _of_heads(activations[value], len(rows))[0])
            written = _sum(rows[None], attention.value[None])[0]
            tolerance = SAME_BLOCK.get(mixed.dtype, SAME_BLOCK[torch.float32])
            if mixed[0, self.dest].shape != written.shape or not (
                relative_difference(mixed[0, self.dest], written) <= tolerance
            ):
                raise ModelError(
                    f"{self.mixed[layer]} is not the sum of {value} by {pattern}: knockout is undefined for an "
                    "attention that does more than sum values by its pattern"
                )
            self.clean[layer] = attention
        order, is_long = list(activations), any(stop > first + 1 for first, stop in self.stops.items())
        if is_long and order.index(self.mixed[layers[0]]) < order.index(self.sites.patterns[layers[0]]):
            self.kinds = 3 if self.renormalise else 2
        return logits

    def check_acts(self, is_named: bool) -> None:
        """Raise InputError for named sources that nothing attends to, and for rows of which nothing is left."""
        idle = [column for column in range(len(self.gone)) if not any(self._acts(at, column) for at in self.stops)]
        if is_named and idle:
            spans = [gone.nonzero().flatten().tolist() for gone in self.gone[idle]]
            raise InputError(
                f"sources {spans} are not attended to by destinations {self.dest.tolist()} in layers "
                f"{sorted(self.clean)} (a causal model's later positions, or outside an attention's window): expected "
                "sources that are"
            )
        for layer, attention in self.clean.items() if self.renormalise else ():
            left = (attention.pattern[None] * ~self.gone[:, None, None]).sum(-1) == 0
            if left.any():
                column, _, row = left.nonzero()[0].tolist()
                raise InputError(
                    f"without sources {self.gone[column].nonzero().flatten().tolist()} nothing is left of the pattern "
                    f"of destination {self.dest[row].item()} in layer {layer}, and renormalise=True has nothing to "
                    "scale: leave out such sources, or renormalise=False"
                )

    def _acts(self, layer: int, column: int) -> bool:
        window = range(layer, self.stops[layer])
        return any(bool(self.clean[at].pattern[..., self.gone[column]].any()) for at in window)

    def batches(self, size: int | None, progress: bool) -> Iterator[tuple[list[Place], Tensor]]:
        """The places whose source is attended to, in batches, and the logits of their copies."""
        places = [
            (layer, column)
            for layer in sorted(self.stops)
            for column in range(len(self.gone))
            if self._acts(layer, column)
        ]
        size = size or max(1, TOKENS_PER_BATCH // (self.gone.shape[1] * self.kinds))
        with tqdm(total=len(places), disable=not progress, desc="knockout", unit="source", leave=False) as bar:
            for start in range(0, len(places), size):
                part = places[start : start + size]
                yield part, self.logits(part)
                bar.update(len(part))

    def logits(self, part: Sequence[Place]) -> Tensor:
        """The logits of copies, `[copy, position, vocabulary]`; where a first run agrees, restarted."""
        if self.restarts is None:
            with suppress(_RowsDiffer, ModelError):
                quick, plain = self._run(part, True), self._run(part[-1:], False)
                self.restarts = torch.allclose(quick[-1:], plain, rtol=SAME, atol=SAME)
                if self.restarts:
                    return quick
            self.restarts = False
        return self._run(part, self.restarts)

    def _run(self, part: Sequence[Place], restarts: bool) -> Tensor:
        by_layer = {layer: [column for _, column in some] for layer, some in groupby(part, key=lambda place: place[0])}
        batch, first = [], 1
        for layer, columns in by_layer.items():
            batch.append(_Copies(layer, self.stops[layer], self.gone[columns], first, self.kinds))
            first += self.kinds * len(columns)
        hooks = [
            hook
            for layer in range(batch[0].layer, max(c.stop for c in batch))
            for hook in self._on(layer, batch, restarts)
        ]
        runs = 1 if restarts else first
        copies = [index for of_layer in batch for index in range(first)[of_layer.kind(0)]]
        if self.whole:
            return self.base.logits(hooks, copies=runs)[copies]
        read = torch.full((first,), self.base.target, device=self.device)
        ids, beside = read_by(self.base.model, [self.base.sentence])
        ids = ids.expand(runs, *ids.shape[1:])
        return self.target_logits.at(ids, read, hooks, **copied(beside, runs))[copies].unsqueeze(1)

    def _on(self, layer: int, batch: Sequence[_Copies], restarts: bool) -> list[NamedHook]:
        """The hooks on one block of a run."""
        begins = [copies for copies in batch if copies.layer == layer]
        goes_on = [copies for copies in batch if copies.layer < layer < copies.stop]
        block_input, value, pattern, output = self.sites.at(layer)
        activations: dict[str, Tensor] = {}
        hooks: list[NamedHook] = []
        if goes_on and self.kinds == 1:
            hooks += remembering_hooks([value, pattern], activations)
        elif goes_on:
            hooks.append((value, partial(self._hide_from_shadows, goes_on)))
        if begins and restarts:
            hooks += [(block_input, partial(self._rows_in, begins[0])), (output, partial(self._copies_out, begins[0]))]

        def mix(z: Tensor, *, hook: Any) -> Tensor:
            z = z.clone(memory_format=torch.contiguous_format)
            for copies in goes_on:
                if self.kinds == 1:
                    rows = activations[pattern][copies.kind(0)][:, :, self.dest]
                    values = _of_heads(activations[value][copies.kind(0)], rows.shape[1])
                    z[copies.kind(0), self.dest] = self._cut(rows, values, copies.gone)
                else:
                    self._mix_from_shadows(z, copies)
            for copies in begins:
                attention = self.clean[layer]
                cut = self._cut(attention.pattern[None], attention.value[None], copies.gone).to(z.dtype)
                if restarts:
                    z[copies.first :] = z[0, self.dest[0]]
                    z[copies.first :].flatten(0, 1)[: cut.shape[0] * cut.shape[1]] = cut.flatten(0, 1)
                else:
                    for kind in range(self.kinds):
                        z[copies.kind(kind)][:, self.dest] = cut
            return z

        return [*hooks, (self.mixed[layer], mix)] if begins or goes_on else hooks

    def _cut(
        self,
        pattern: Float[Tensor, "#copy head dest src"],
        value: Float[Tensor, "#copy src head d_head"],
        gone: Bool[Tensor, "copy src"],
    ) -> Float[Tensor, "copy dest head d_head"]:
        left = pattern * ~gone[:, None, None]
        if self.renormalise:
            left = left * (pattern.sum(-1, keepdim=True) / left.sum(-1, keepdim=True))
        return _sum(left, value)

    # Step 2: the destinations' rows of all copies as the positions of a few sequences, and the copies behind the block.

    def _rows_in(self, copies: _Copies, x: Tensor, *, hook: Any) -> Tensor:
        length, rows = x.shape[1], len(copies.gone) * len(self.dest)
        sequences = rows // length + 1  # at least one position more, which is left as it was
        carried = x[:1, self.dest[:1]].repeat(sequences, length, 1)
        carried.flatten(0, 1)[:rows] = x[0, self.dest].repeat(len(copies.gone), 1)
        return torch.cat([x, carried])

    def _copies_out(self, copies: _Copies, x: Tensor, *, hook: Any) -> Tensor:
        carried = x[copies.first :].flatten(0, 1)
        if not relative_difference(carried[-1], x[0, self.dest[0]]) <= SAME_BLOCK.get(
            x.dtype, SAME_BLOCK[torch.float32]
        ):
            raise _RowsDiffer
        changed = x[:1].repeat(len(copies.gone), 1, 1)
        changed[:, self.dest] = carried[: len(copies.gone) * len(self.dest)].unflatten(0, (len(copies.gone), -1))
        return torch.cat([x[: copies.first], *[changed] * copies.kinds])

    # Shadows: the first kind has no values at the sources that are gone; the second has values of 1 elsewhere, which
    # sum to the weight that is left.

    def _hide_from_shadows(self, batch: Sequence[_Copies], value: Tensor, *, hook: Any) -> Tensor:
        value = value.clone()
        for copies in batch:
            gone = copies.gone[..., None, None]
            value[copies.kind(1)] = value[copies.kind(1)].masked_fill(gone, 0)
            if self.renormalise:
                value[copies.kind(2)] = (~gone).to(value.dtype)
        return value

    def _mix_from_shadows(self, z: Tensor, copies: _Copies) -> None:
        left = z[copies.kind(1)][:, self.dest]
        if self.renormalise:
            left = left / z[copies.kind(2)][:, self.dest]
        z[copies.kind(0)][:, self.dest] = left
        for kind in range(1, copies.kinds):
            z[copies.kind(kind)] = z[copies.kind(0)]


def _of_heads(value: Float[Tensor, "copy src value_head d_head"], heads: int) -> Float[Tensor, "copy src head d_head"]:
    """The values that each head of the pattern reads."""
    return value.repeat_interleave(heads // value.shape[2], dim=2)


def _sum(
    pattern: Float[Tensor, "copy head dest src"], value: Float[Tensor, "#copy src head d_head"]
) -> Float[Tensor, "copy dest head d_head"]:
    """What attention writes, before its output projection."""
    return (pattern @ value.transpose(1, 2)).transpose(1, 2)
