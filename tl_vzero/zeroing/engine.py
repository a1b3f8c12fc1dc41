"""Choosing between the two engines: the closed form where a probe shows that it is right, else hooks.

The probe compares both on short sentences; its verdict stands while the model's weights and modules are the same.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby, zip_longest
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tl_vzero.clean import (
    Clean,
    beside_ids,
    check_fused,
    clean_from_cache,
    ids_of,
    is_long,
    read_by,
    visit_fused_blocks,
)
from tl_vzero.errors import ModelError
from tl_vzero.inputs.baselines import Baseline, own_text
from tl_vzero.inputs.text import Sentence, same_shape
from tl_vzero.models.changes import has_user_hooks, module_fingerprint
from tl_vzero.models.facts import context_length
from tl_vzero.models.fused import NotFused
from tl_vzero.models.run import Beside
from tl_vzero.models.signals import Signal, n_positions_of, signal_of
from tl_vzero.models.sites import Stack
from tl_vzero.zeroing.closed_form import FOLDS_SHARE, ClosedMaps, NotInClosedForm, PaddingMatters, closed_maps
from tl_vzero.zeroing.forms import WeightCache, weight_cache_of
from tl_vzero.zeroing.hooked import hooked_maps
from tl_vzero.zeroing.request import Request, Wanted

# Positions of padding that cost no more than another run of the model: see tests/bench/bench_closed_form.py.
PADDING_PER_RUN = 96

PROBE_LENGTHS = (5, 8)
# How far the engines may be apart on a probe: relatively, and as a share of the largest score. The hook engine keeps
# few digits of a small distance, also in float64 where Hugging Face's RMSNorm is float32 inside.
SAME_SCORE = {torch.float64: (1e-4, 1e-6), torch.float32: (1e-2, 1e-6)}
SAME_SCORE_IN_HALF = (0.3, 1e-3)
# How far a block's output is from its true one, relatively, which is all that the hook engine sees: measured up to
# 3e-7 in float32; half precision rounds to eps.
OUTPUT_ROUNDING = {torch.float64: 5e-7, torch.float32: 5e-7, torch.float16: 1e-3, torch.bfloat16: 8e-3}
# A layer's largest score on a probe from which on hooks show it well; where it is less, more of a value is taken away.
CLEAR, MOST_TAKEN = 1e-4, 1e8

How = Mapping[str, Any]
Verdict = Literal["right, padded too", "right", "wrong"]

NO_MORE: How = {}


@dataclass(frozen=True, eq=False)
class SentenceMaps:
    """A sentence's raw maps, with a tolerance how far their shares may be off, and how they were computed."""

    values: Float[Tensor, "layer map dest src"]
    error: Float[Tensor, "layer map dest src"] | None
    how: How


_VERDICTS: WeakKeyDictionary[nn.Module, dict[Stack | None, tuple[object, Verdict]]] = WeakKeyDictionary()


def zeroed_maps(
    request: Request, sentences: Sequence[Sentence], wanted: Mapping[int, Wanted], weights_sha256: str
) -> list[SentenceMaps]:
    """Raw maps of each sentence, and metadata: the engine, why not the other one, the closed form's route by layer.
    Of a long sentence also whether its attention was fused, or why not.

    `sentences` go from short to long; `wanted` is by their row in the caller's batch. Raises ModelError where
    engine="closed_form" is asked for and does not apply.
    """
    reason: str | None = None
    if request.engine != "hooks":
        try:
            return _in_closed_form(request, sentences, wanted, weights_sha256)
        except NotInClosedForm as error:
            reason = str(error)
        if request.engine == "closed_form":
            raise ModelError(f'engine="closed_form" cannot be used: {reason}; use engine="auto" or "hooks"')
    every: list[SentenceMaps] = []
    how: How = {"engine": "hooks", "engine_reason": reason, "routes": []}
    for _, alike in groupby(sentences, key=lambda sentence: (sentence.shape, wanted[sentence.row].spans)):
        for group in _together(request, [list(alike)]):
            ids, beside = read_by(request.model, group)
            clean, averaged = _cached(request, group), own_text(group)
            for maps in hooked_maps(request, ids, wanted[group[0].row], clean=clean, averaged=averaged, **beside):
                every.append(SentenceMaps(maps, None if request.tolerance is None else torch.zeros_like(maps), how))
    return every


def _cached(request: Request, group: list[Sentence]) -> Clean | None:
    """The clean run of sentences of one shape, where the caller gave it."""
    if request.cache is None:
        return None
    return clean_from_cache(request.cache, request.model, request.sites, group, request.layers)


def _together(request: Request, groups: Iterable[list[Sentence]]) -> Iterable[list[Sentence]]:
    """Sentences that share a run; each by itself where a baseline has values of a sentence, as what a run rounds
    depends on its batch, and the values may be those of the sentence itself.
    """
    return ([sentence] for group in groups for sentence in group) if request.baseline.by_position else groups


def _padded(sentences: Sequence[Sentence], padding: int) -> list[list[Sentence]]:
    """Sentences that share a run of the model, padded by at most so many positions together."""
    runs: list[list[Sentence]] = []
    padded = 0
    for sentence in sentences:
        if runs:
            padded += len(runs[-1]) * (len(sentence) - len(runs[-1][-1]))
        if not runs or padded > padding:
            runs.append([])
            padded = 0
        runs[-1].append(sentence)
    return runs


def _in_closed_form(
    request: Request, sentences: Sequence[Sentence], wanted: Mapping[int, Wanted], weights_sha256: str
) -> list[SentenceMaps]:
    """Maps and metadata; raises NotInClosedForm where the closed form does not apply."""
    model, stack = request.model, request.sites.stack
    if has_user_hooks(model):
        raise NotInClosedForm("hooks act on the model, and the closed form would not see them")
    weight_cache = weight_cache_of(model, weights_sha256, request.memory_mb * 2**20 * FOLDS_SHARE)
    state = (weights_sha256, module_fingerprint(model))
    verdicts = _VERDICTS.setdefault(model, {})
    if stack not in verdicts or verdicts[stack][0] != state:
        verdicts[stack] = state, _probe(request, sentences[0], weight_cache)
    verdict = verdicts[stack][1]
    if verdict == "wrong":
        raise NotInClosedForm("on a probe it did not give what the hook engine gives")

    def maps_of(group: list[Sentence]) -> ClosedMaps:
        """Of sentences that share one clean run."""
        alike = same_shape([sentence.encoder or sentence for sentence in group])
        ids = [read for sentences in alike for read in ids_of(model, sentences)]
        decoded = group[0].encoder is not None
        beside = Beside(decoder_ids=ids_of(model, group)) if decoded else beside_ids(model, group)
        selected = [wanted[sentence.row] for sentence in group]
        clean, averaged = _cached(request, group), own_text(group)
        return closed_maps(request, ids, selected, weight_cache, clean=clean, averaged=averaged, **beside)

    alone = any(sentence.signal is not None or sentence.media for sentence in sentences)
    pads = verdict == "right, padded too" and request.cache is None and not alone
    done: dict[int, SentenceMaps] = {}
    attention: dict[int, How] = {}
    for sentence in sentences if request.cache is None else ():
        if is_long(model, request.sites, sentence, wanted[sentence.row].destinations, request.memory_mb):
            try:
                check_fused(model, request.sites, sentence, weights_sha256)
                closed = _long_maps(request, sentence, wanted[sentence.row], weight_cache)
                done[sentence.row] = _by_sentence(closed, {"attention": "fused"})[0]
            except (NotFused, ModelError) as error:  # what fails for another reason fails again
                attention[sentence.row] = {"attention_reason": str(error)}
    rest = [sentence for sentence in sentences if sentence.row not in done]
    runs = _padded(rest, PADDING_PER_RUN) if pads else same_shape(rest)
    for group in _together(request, runs):
        try:
            parts = [(group, maps_of(group))]
        except PaddingMatters:
            parts = [(alike, maps_of(alike)) for alike in same_shape(group)]
        for alike, closed in parts:
            for sentence, maps in zip(alike, _by_sentence(closed), strict=True):
                done[sentence.row] = replace(maps, how={**maps.how, **attention.get(sentence.row, {})})
    return [done[sentence.row] for sentence in sentences]


def _by_sentence(closed: ClosedMaps, more: How = NO_MORE) -> list[SentenceMaps]:
    how = {"engine": "closed_form", "engine_reason": None, "routes": list(closed.routes), **more}
    return [SentenceMaps(values, error, how) for values, error in zip_longest(closed.values, closed.errors)]


def _long_maps(request: Request, sentence: Sentence, wanted: Wanted, weight_cache: WeightCache) -> ClosedMaps:
    """Some rows of one sentence, whose patterns are not formed; raises NotFused where they must be."""
    n_rows = len(wanted.destinations)
    rows = replace(wanted, length=n_rows, destinations=tuple(range(n_rows)))
    visit_blocks = partial(visit_fused_blocks, destinations=wanted.destinations)
    ids, beside = read_by(request.model, [sentence])
    averaged = own_text([sentence])
    return closed_maps(request, list(ids), [rows], weight_cache, averaged=averaged, visit_blocks=visit_blocks, **beside)


@dataclass(frozen=True, eq=False)
class _MoreTaken(Baseline):
    """Takes a value away several times in some layers: zero takes it once."""

    taken: Mapping[int, float] = field(default_factory=dict)

    def at(self, layer: int, value: Tensor, averaged: Tensor | None) -> Tensor | None:
        return value * (1.0 - self.taken[layer]) if layer in self.taken else None


def _probe(request: Request, sentence: Sentence, weight_cache: WeightCache) -> Verdict:
    """Does the closed form give the hook engine's maps on short sentences, and on padded ones too?

    An encoder-decoder is given no padding.
    """
    weight_cache.forms.clear()  # they may be of modules that are gone
    probes = _probes(request, sentence)
    dtype = next(nn.Module.parameters(request.model)).dtype

    def agreement(request: Request) -> tuple[Verdict, Tensor]:
        """What the engines' maps show, and each layer's largest score by hooks."""
        hooked = [hooked_maps(request, one.ids.unsqueeze(0), one.wanted, **one.beside)[0] for one in probes]

        def agrees(which: Sequence[int]) -> bool:
            ids, wanted = [probes[n].ids for n in which], [probes[n].wanted for n in which]
            try:
                closed = closed_maps(request, ids, wanted, weight_cache, **probes[which[0]].beside).values
            except PaddingMatters:
                return False
            return all(_same_maps(maps, hooked[n], dtype) for maps, n in zip(closed, which, strict=True))

        largest = torch.stack([maps.flatten(1).amax(-1) for maps in hooked]).amax(0)
        if request.sites.stack is None and agrees(range(len(probes))):
            return "right, padded too", largest
        return "right" if all(agrees([n]) for n in range(len(probes))) else "wrong", largest

    whole = Request(request.model, request.sites, tuple(range(request.sites.n_layers)))
    verdict, largest = agreement(whole)
    # Next to the rounding of its outputs a faint layer shows little: the forms hold for any loss, so take more of a
    # value there. A score goes with the square of what is taken.
    faint = {layer: score for layer, score in enumerate(largest.tolist()) if 0 < score < CLEAR}
    taken = {layer: min(MOST_TAKEN, math.sqrt(10 * CLEAR / score)) for layer, score in faint.items()}
    if verdict != "wrong" and taken:
        clearer, _ = agreement(replace(whole, baseline=_MoreTaken(taken=taken)))
        return "wrong" if clearer == "wrong" else verdict
    return verdict


@dataclass(frozen=True, eq=False)
class _ShortRun:
    """What a model reads of a probe, and what is wanted of it."""

    ids: Tensor
    wanted: Wanted
    beside: Beside = field(default_factory=Beside)


def _probes(request: Request, sentence: Sentence) -> list[_ShortRun]:
    """Short sentences of the same tokens, or the beginning of the same sound; of an image a few patches are zeroed.

    Of an encoder-decoder the two sentences are of two lengths.
    """
    model, longest, signal = request.model, max(PROBE_LENGTHS), signal_of(request.model)
    longest = min(longest, context_length(model) or longest)

    def of_tokens(sentence: Sentence) -> list[Tensor]:
        (ids,) = ids_of(model, [sentence])
        ids = ids.repeat(longest)[:longest]
        return [ids[:length] for length in PROBE_LENGTHS]

    def of_signal(sentence: Sentence, signal: Signal) -> list[Tensor]:
        (read,) = ids_of(model, [sentence])
        return [signal.beginning(read, longest)]

    if sentence.encoder is None:
        reads = of_tokens(sentence) if signal is None else of_signal(sentence, signal)
        return [_ShortRun(read, _wanted(n_positions_of(model, read))) for read in reads]
    heard = of_tokens(sentence.encoder) if signal is None else of_signal(sentence.encoder, signal) * 2
    probes = []
    for read, decoder_ids in zip(heard, reversed(of_tokens(sentence)), strict=True):
        wanted = _wanted(len(decoder_ids), n_positions_of(model, read) if sentence.cross else None)
        probes.append(_ShortRun(read, wanted, Beside(decoder_ids=decoder_ids.unsqueeze(0))))
    return probes


def _wanted(length: int, n_sources: int | None = None) -> Wanted:
    """Every destination, and each of the first sources; None for as many as there are destinations."""
    n_sources = length if n_sources is None else n_sources
    spans = tuple((j,) for j in range(min(n_sources, max(PROBE_LENGTHS))))
    return Wanted(length, n_sources, spans, tuple(range(length)))


def _same_maps(closed: Tensor, hooked: Tensor, dtype: torch.dtype) -> bool:
    """Whether two engines' maps are the same up to what rounding explains.

    Where outputs are off by a share r, a distance d is off by up to r sqrt(2 d) + r^2 / 2.
    """
    relative, of_largest = SAME_SCORE.get(dtype, SAME_SCORE_IN_HALF)
    rounding = OUTPUT_ROUNDING.get(dtype, OUTPUT_ROUNDING[torch.float32])
    larger = torch.maximum(hooked, closed)
    allowed = relative * larger + of_largest * larger.max() + rounding * (2 * larger).sqrt() + rounding**2 / 2
    return bool(((closed - hooked).abs() <= allowed).all())
