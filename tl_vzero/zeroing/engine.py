"""Choosing between the two engines: the closed form where it is known to be right, else hooks."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tl_vzero.choices import one_of
from tl_vzero.clean import clean_from_cache, ids_of, read_by, token_types_of
from tl_vzero.errors import ModelError
from tl_vzero.inputs.text import Sentence
from tl_vzero.models.blocks import acted_on
from tl_vzero.models.changes import module_fingerprint
from tl_vzero.models.facts import context_length
from tl_vzero.models.run import FinalNorm
from tl_vzero.models.signals import signal_of
from tl_vzero.models.sites import Sites
from tl_vzero.zeroing.cache import Kept, kept_of
from tl_vzero.zeroing.closed_form import FOLDS_SHARE, NotInClosedForm, PaddingMatters, closed_maps
from tl_vzero.zeroing.hooked import hooked_maps
from tl_vzero.zeroing.request import Request, Wanted, default_request

EngineName = Literal["auto", "hooks", "closed_form"]
ENGINES: tuple[EngineName, ...] = ("auto", "hooks", "closed_form")

# Positions of padding that cost no more than another run of the model.
PADDING_A_RUN = 96

PROBE_LENGTHS = (5, 8)
# How far the engines may be apart on a probe: relatively, and as a share of the largest score. The hook engine keeps
# few digits of a small distance, also in float64 where Hugging Face's RMSNorm is float32 inside.
SAME_SCORE = {torch.float64: (1e-4, 1e-6), torch.float32: (1e-2, 1e-6)}
SAME_SCORE_HALF = (0.3, 1e-3)
# How far a block's output is from its true one, relatively, which is all that the hook engine sees: measured up to
# 3e-7 in float32; half precision rounds to eps.
OUTPUT_ROUNDING = {torch.float64: 5e-7, torch.float32: 5e-7, torch.float16: 1e-3, torch.bfloat16: 8e-3}
# A layer's largest score on a probe from which on hooks show it well; where it is less, more of a value is taken away.
CLEAR, MOST_TAKEN = 1e-4, 1e8

Maps = list[Float[Tensor, "layer map _ _"]]


@dataclass(frozen=True)
class Used:
    """Which engine ran, why not the other one, and the closed form's routes by layer."""

    engine: str
    reason: str | None = None
    routes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Work:
    """What is to be computed of a model, and by what.

    `wanted` is what is asked of each sentence, by its row; `weights_sha256` is the hash of the weights now.
    """

    model: nn.Module
    sites: Sites
    request: Request
    wanted: Mapping[int, Wanted]
    engine: str
    weights_sha256: str
    final_norm: FinalNorm | None
    cache: Any | None
    advance: Callable[[float], object]


def check_engine(engine: str) -> None:
    """Raise InputError for an engine that does not exist."""
    one_of("engine", engine, ENGINES)


def zeroed_maps(work: Work, sentences: Sequence[Sentence]) -> tuple[Maps, Used]:
    """Raw maps of each sentence, and which engine computed them; `sentences` go from short to long.

    Raises ModelError where engine="closed_form" is asked for and cannot be had.
    """
    reason: str | None = None
    if work.engine != "hooks":
        try:
            return _in_closed_form(work, sentences)
        except NotInClosedForm as given:
            reason = str(given)
        if work.engine == "closed_form":
            raise ModelError(f'engine="closed_form" cannot be used: {reason}; use engine="auto" or "hooks"')
    maps: Maps = []
    for _, alike in groupby(sentences, key=lambda each: (each.shape, work.wanted[each.row].spans)):
        maps += _by_hooks(work, list(alike))
    return maps, Used("hooks", reason=reason)


def _alike(sentences: Sequence[Sentence]) -> list[list[Sentence]]:
    """Sentences that share a run of the model without padding."""
    return [list(alike) for _, alike in groupby(sentences, key=lambda each: each.shape)]


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


def _by_hooks(work: Work, group: list[Sentence]) -> Maps:
    """Maps of sentences of one shape of which the same is asked."""
    layers = work.request.layers
    known = None if work.cache is None else clean_from_cache(work.cache, work.model, work.sites, group, layers)
    ids, beside = read_by(work.model, group)
    maps = hooked_maps(
        work.model,
        work.sites,
        ids,
        work.request,
        work.wanted[group[0].row],
        clean=known,
        final_norm=work.final_norm,
        advance=lambda sources: work.advance(sources * len(layers)),
        **beside,
    )
    return list(maps)


def _in_closed_form(work: Work, sentences: Sequence[Sentence]) -> tuple[Maps, Used]:
    if work.sites.stack is not None:
        raise NotInClosedForm(f'it reads models with one stack of blocks, and stack="{work.sites.stack}" is asked for')
    if acted_on(work.model):
        raise NotInClosedForm("hooks act on the model, and the closed form would not see them")
    kept = kept_of(work.model, work.weights_sha256, work.request.memory_mb * 2**20 * FOLDS_SHARE)
    verdict = _verdict(work, sentences[0], kept)
    if verdict == "wrong":
        raise NotInClosedForm("on a probe it did not give what the hook engine gives")
    pads = verdict == "right, padded too" and work.cache is None and sentences[0].signal is None
    maps: Maps = []
    routes: tuple[str, ...] = ()
    for group in _padded(sentences, PADDING_A_RUN) if pads else _alike(sentences):
        try:
            made, routes = _closed_group(work, group, kept)
        except PaddingMatters:
            made = []
            for alike in _alike(group):
                own, routes = _closed_group(work, alike, kept)
                made += own
        maps += made
    return maps, Used("closed_form", routes=routes)


def _closed_group(work: Work, group: list[Sentence], kept: Kept) -> tuple[Maps, tuple[str, ...]]:
    """Maps of sentences that share one clean run."""
    layers = work.request.layers
    known = None if work.cache is None else clean_from_cache(work.cache, work.model, work.sites, group, layers)
    return closed_maps(
        work.model,
        work.sites,
        [ids_of(work.model, [sentence])[0] for sentence in group],
        [work.wanted[sentence.row] for sentence in group],
        work.request,
        kept,
        clean=known,
        final_norm=work.final_norm,
        advance=work.advance,
        token_types=token_types_of(work.model, group),
    )


Verdict = Literal["right, padded too", "right", "wrong"]

_VERDICTS: WeakKeyDictionary[nn.Module, tuple[object, Verdict]] = WeakKeyDictionary()


def _verdict(work: Work, sentence: Sentence, kept: Kept) -> Verdict:
    """What a probe showed: does the closed form give the hook engine's maps, of padded sentences too?

    It stands while the model's weights and modules are what they were.
    """
    probed = (work.weights_sha256, module_fingerprint(work.model))
    known = _VERDICTS.get(work.model)
    if known is None or known[0] != probed:
        known = (probed, _probe(work, sentence, kept))
        _VERDICTS[work.model] = known
    return known[1]


def _probe(work: Work, sentence: Sentence, kept: Kept) -> Verdict:
    kept.forms.clear()  # they may be of modules that are gone
    probes, wanted = _probes(work.model, sentence)
    n_layers = work.sites.n_layers

    def agreement(request: Request) -> tuple[Verdict, Tensor]:
        """What the engines' maps show, and each layer's largest score by hooks."""
        hooked = [
            hooked_maps(work.model, work.sites, each.unsqueeze(0), request, one)[0]
            for each, one in zip(probes, wanted, strict=True)
        ]

        def agrees(which: Sequence[int]) -> bool:
            ids, asked = [probes[n] for n in which], [wanted[n] for n in which]
            try:
                made, _ = closed_maps(work.model, work.sites, ids, asked, request, kept)
            except PaddingMatters:
                return False
            return all(_same_maps(maps, hooked[n], dtype) for maps, n in zip(made, which, strict=True))

        largest = torch.stack([maps.flatten(1).amax(-1) for maps in hooked]).amax(0)
        if agrees(range(len(probes))):
            return "right, padded too", largest
        return "right" if all(agrees([n]) for n in range(len(probes))) else "wrong", largest

    dtype = next(nn.Module.parameters(work.model)).dtype
    request = default_request(n_layers)
    verdict, largest = agreement(request)
    taken = {layer: _taken(score) for layer, score in enumerate(largest.tolist()) if score < CLEAR}
    if verdict != "wrong" and any(times > 1 for times in taken.values()):
        # Next to the rounding of its outputs a faint layer shows little: the forms hold for any loss, so take more.
        clearer, _ = agreement(replace(request, taken=taken))
        return "wrong" if clearer == "wrong" else verdict
    return verdict


def _taken(largest: float) -> float:
    """How many times a value is taken away so that a layer's largest score is clear: a score goes with its square."""
    return 1.0 if largest <= 0 else min(MOST_TAKEN, math.sqrt(10 * CLEAR / largest))


def _probes(model: nn.Module, sentence: Sentence) -> tuple[list[Tensor], list[Wanted]]:
    """Short sentences of the same tokens, or the beginning of the same sound; of an image a few patches are zeroed."""
    (read,) = ids_of(model, [sentence])
    longest = max(PROBE_LENGTHS)
    signal = signal_of(model)
    if signal is not None:
        beginning = signal.beginning(read, longest)
        n_positions = len(signal.labels(tuple(beginning.shape)))
        sources = tuple((j,) for j in range(min(longest, n_positions)))
        return [beginning], [Wanted(n_positions, sources, tuple(range(n_positions)))]
    longest = min(longest, context_length(model) or longest)
    ids = read.repeat(longest)[:longest]
    probes = [ids[:length] for length in PROBE_LENGTHS]
    return probes, [Wanted.whole(len(each)) for each in probes]


def _same_maps(closed: Tensor, hooked: Tensor, dtype: torch.dtype) -> bool:
    """Whether two engines' maps are the same up to what rounding explains.

    Where outputs are off by a share r, a distance d is off by up to r sqrt(2 d) + r^2 / 2.
    """
    relative, of_largest = SAME_SCORE.get(dtype, SAME_SCORE_HALF)
    rounding = OUTPUT_ROUNDING.get(dtype, OUTPUT_ROUNDING[torch.float32])
    larger = torch.maximum(hooked, closed)
    allowed = relative * larger + of_largest * larger.max() + rounding * (2 * larger).sqrt() + rounding**2 / 2
    return bool(((closed - hooked).abs() <= allowed).all())
