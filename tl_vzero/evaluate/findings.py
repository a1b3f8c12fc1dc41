"""What of the paper a reproduction agrees with, read off its numbers by one rule for every claim.

A comparison of two means counts for one side where their intervals do not overlap. Over layers, a claim agrees where
more than half of the layers count for it, does not where more than half count against it, and is undecided otherwise.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from statistics import mean
from typing import Literal

import numpy as np

from tl_vzero.evaluate.cue_alignment import Alignment, CueAlignment, Measure
from tl_vzero.evaluate.mass import Mass, Place
from tl_vzero.evaluate.reproduction import Reproduction
from tl_vzero.statistics import Estimate, rank_correlation

Verdict = Literal["agrees", "does not agree", "undecided", "not measured"]
MEASURE_NAMES: Mapping[Measure, str] = {"dot": "dot product", "average_precision": "average precision"}
GRADIENTS = ("gradient_x_input", "integrated_gradients", "deep_lift")
LAYERS_TO_DECIDE = 6  # a percentile bootstrap of fewer pairs may be narrow by chance
SAME_PATTERN, OTHER_PATTERN = 0.9, 0.5  # rank correlations

ByLayer = dict[int, Alignment]


@dataclass(frozen=True)
class Finding:
    """A claim, whether the numbers agree with it, and the numbers. `control` says that the claim is not the paper's."""

    claim: str
    verdict: Verdict
    evidence: str
    control: bool = False


def findings(found: Reproduction) -> tuple[Finding, ...]:
    """Every claim about a reproduction, in the order of its evaluations; none is left out because of how it ends."""
    return (
        *(_leads(found.alignment, measure) for measure in MEASURE_NAMES),
        _above_chance(found.alignment),
        _attention_below_chance(found.alignment),
        *_published(found),
        _rises(found),
        _goes_with_compression(found),
        _most_faithful(found),
        *_mass(found),
        _calibrated(found.alignment),
        _above_shuffled(found.alignment),
        _learned(found),
        _encoded(found),
        _same_pattern(found),
    )


def by_method(alignment: CueAlignment, measure: Measure = "dot") -> dict[str, ByLayer]:
    """The cells over all paradigms, by method and layer."""
    cells: dict[str, ByLayer] = {}
    for cell in alignment.cells:
        if cell.measure == measure and cell.paradigm == "all":
            cells.setdefault(cell.method, {})[cell.layer] = cell
    return cells


def _verdict(agreeing: int, against: int, total: int) -> Verdict:
    if not total:
        return "not measured"
    if 2 * agreeing > total:
        return "agrees"
    return "does not agree" if 2 * against > total else "undecided"


def _above(one: Estimate, other: Estimate) -> bool:
    return one.low > other.high


def _leads(alignment: CueAlignment, measure: Measure) -> Finding:
    claim = f"Value Zeroing lies on the cue more than every other method ({MEASURE_NAMES[measure]})"
    cells = by_method(alignment, measure)
    own = cells.pop("value_zeroing", {})
    layers = [layer for layer in own if any(layer in other for other in cells.values())]
    first = above = below = 0
    for layer in layers:
        others = [other[layer].aligned for other in cells.values() if layer in other]
        first += all(own[layer].aligned.mean > other.mean for other in others)
        above += all(_above(own[layer].aligned, other) for other in others)
        below += any(_above(other, own[layer].aligned) for other in others)
    means = {name: mean(cell.aligned.mean for cell in other.values()) for name, other in cells.items() if other}
    if not layers or not own:
        return Finding(claim, "not measured", "Value Zeroing or other methods are not there")
    best = max(means, key=lambda name: means[name])
    evidence = (
        f"highest mean in {first} of {len(layers)} layers; its interval lies above all others in {above}, below "
        f"another's in {below}. Mean over layers {mean(cell.aligned.mean for cell in own.values()):.3f}; of the others "
        f"{best} has most, {means[best]:.3f}"
    )
    return Finding(claim, _verdict(above, below, len(layers)), evidence)


def _over_layers(
    claim: str, cells: Iterable[Alignment], compare: Callable[[Alignment], tuple[bool, bool]], told: str, control: bool
) -> Finding:
    pairs = [compare(cell) for cell in cells]
    agreeing, against = sum(one for one, _ in pairs), sum(other for _, other in pairs)
    evidence = f"{told} in {agreeing} of {len(pairs)} layers, the reverse in {against}" if pairs else "not computed"
    return Finding(claim, _verdict(agreeing, against, len(pairs)), evidence, control)


def _above_chance(alignment: CueAlignment) -> Finding:
    return _over_layers(
        "Value Zeroing lies on the cue more than chance",
        by_method(alignment).get("value_zeroing", {}).values(),
        lambda cell: (cell.aligned.low > cell.chance, cell.aligned.high < cell.chance),
        "dot product: interval above chance",
        control=False,
    )


def _attention_below_chance(alignment: CueAlignment) -> Finding:
    return _over_layers(
        "Raw attention lies on the cue less than chance",
        by_method(alignment).get("attention", {}).values(),
        lambda cell: (cell.aligned.high < cell.chance, cell.aligned.low > cell.chance),
        "dot product: interval below chance",
        control=False,
    )


def _above_shuffled(alignment: CueAlignment) -> Finding:
    def compare(cell: Alignment) -> tuple[bool, bool]:
        if cell.shuffled is None:
            return False, False
        return _above(cell.aligned, cell.shuffled), _above(cell.shuffled, cell.aligned)

    return _over_layers(
        "Value Zeroing lies on the cue more than on another word drawn by chance",
        by_method(alignment).get("value_zeroing", {}).values(),
        compare,
        "dot product: interval above that of shuffled cues",
        control=True,
    )


def _calibrated(alignment: CueAlignment) -> Finding:
    claim = "Random scores lie on the cue as much as chance, cues over tokens"
    cells = list(by_method(alignment).get("random", {}).values())
    if not cells:
        return Finding(claim, "not measured", "not computed", control=True)
    within = sum(cell.aligned.low <= cell.chance <= cell.aligned.high for cell in cells)
    evidence = f"chance {cells[0].chance:.3f} is within the 95 % interval in {within} of {len(cells)} layers"
    return Finding(claim, _verdict(within, len(cells) - within, len(cells)), evidence, control=True)


def _published(found: Reproduction) -> Iterable[Finding]:
    """How far measured figures are from the published ones; only of the model that was published."""
    pairs: dict[str, list[float]] = {}
    for cell in found.alignment.cells:
        if cell.published is not None:
            pairs.setdefault(cell.method, []).append(abs(cell.aligned.mean - cell.published))
    if pairs:
        near = sum(mean(off) <= 0.02 for off in pairs.values())
        far = len(pairs) - near
        told = ", ".join(f"{method} {mean(off):.3f}" for method, off in pairs.items())
        yield Finding(
            "The dot products are those that were published, within .02 in the mean over layers",
            _verdict(near, far, len(pairs)),
            f"mean absolute difference: {told}",
        )


def _rises(found: Reproduction) -> Finding:
    claim = "The compression of the number rises from the first block to the last"
    probing = found.probing
    if probing is None:
        return Finding(claim, "not measured", found.missing.get("probing", "not computed"))
    blocks = [index for index, layer in enumerate(probing.layers) if layer >= 0]
    first, last = blocks[0], blocks[-1]
    verdict = _verdict(probing.low[last] > probing.high[first], probing.high[last] < probing.low[first], 1)
    told = [f"{probing.compression[i]:.2f} [{probing.low[i]:.2f}, {probing.high[i]:.2f}]" for i in (first, last)]
    return Finding(claim, verdict, f"{told[0]} after the first block, {told[1]} after the last, n = {probing.n}")


def _goes_with_compression(found: Reproduction) -> Finding:
    claim = "Over layers, the cue alignment of Value Zeroing goes with the compression, and more than any other's"
    links = {link.method: link.pearson for link in found.links if link.measure == "dot"}
    own = links.pop("value_zeroing", None)
    if own is None or isnan(own.value):
        return Finding(claim, "not measured", "there are fewer than three layers with both, or one is constant")
    others = {method: link for method, link in links.items() if not isnan(link.value)}
    above = own.low > 0 and all(own.low > other.high for other in others.values())
    against = own.high < 0 or any(other.low > own.high for other in others.values())
    best = max(others, key=lambda name: others[name].value, default=None)
    beside = "" if best is None else f"; of the others {best} has most, {others[best].value:.2f}"
    evidence = (
        f"Pearson {own.value:.2f} [{own.low:.2f}, {own.high:.2f}]{beside}. {own.n} layers are weak evidence, and "
        f"neighbouring layers are no independent pairs; fewer than {LAYERS_TO_DECIDE} decide nothing"
    )
    return Finding(claim, _verdict(above, against, 1) if own.n >= LAYERS_TO_DECIDE else "undecided", evidence)


def _most_faithful(found: Reproduction) -> Finding:
    claim = "Value Zeroing, rolled out, ranks tokens more like blank-out than every other method"
    if found.faithfulness is None:
        return Finding(claim, "not measured", found.missing.get("faithfulness", "not computed"))
    rhos = {
        each.method: each.rho
        for each in found.faithfulness.correlations
        if each.paradigm == "all" and each.rho is not None
    }
    own = rhos.pop("value_zeroing", None)
    if own is None or not rhos:
        return Finding(claim, "not measured", "Value Zeroing or other methods have no correlation")
    verdict = _verdict(
        all(_above(own, other) for other in rhos.values()), any(_above(other, own) for other in rhos.values()), 1
    )
    higher = [name for name, other in rhos.items() if other.mean > own.mean]
    best = max(rhos, key=lambda name: rhos[name].mean)
    evidence = (
        f"mean Spearman {_told(own)}, n = {own.n}; {len(higher)} of {len(rhos)} other methods have a higher mean, "
        f"most {best} with {_told(rhos[best])}"
    )
    return Finding(claim, verdict, evidence)


def _told(estimate: Estimate) -> str:
    return f"{estimate.mean:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def _mass(found: Reproduction) -> Iterable[Finding]:
    attracted = found.mass_with_attractor
    yield _more_on(
        attracted, "value_zeroing", "cue", "attractor", "Value Zeroing lies on the cue more than on an attractor"
    )
    for method in GRADIENTS:
        yield _more_on(attracted, method, "attractor", "cue", f"{method} lies on an attractor more than on the cue")
    yield _more_on(
        found.mass, "attention", "special", "cue", "Raw attention lies on special tokens more than on the cue"
    )


def _more_on(mass: Mass | None, method: str, place: Place, other: Place, claim: str) -> Finding:
    if mass is None:
        return Finding(claim, "not measured", "no sentence has an attractor")
    shares = {
        (each.layer, each.place): each.share for each in mass.shares if (each.method, each.paradigm) == (method, "all")
    }
    pairs = [(share, shares[layer, other]) for (layer, at), share in shares.items() if at == place]
    if not pairs:
        return Finding(claim, "not measured", "the method was not computed")
    agreeing = sum(_above(one, two) for one, two in pairs)
    against = sum(_above(two, one) for one, two in pairs)
    means = mean(one.mean for one, _ in pairs), mean(two.mean for _, two in pairs)
    evidence = (
        f"interval above in {agreeing} of {len(pairs)} layers, below in {against}; mean share over layers "
        f"{means[0]:.3f} ({place}) and {means[1]:.3f} ({other}), n = {pairs[0][0].n}"
    )
    return Finding(claim, _verdict(agreeing, against, len(pairs)), evidence)


def _learned(found: Reproduction) -> Finding:
    claim = "With random weights, Value Zeroing lies on the cue less than after training"
    control = found.controls.random_alignment
    if control is None:
        return Finding(claim, "not measured", found.missing.get("random-scores", "not computed"), control=True)
    trained, untrained = (by_method(each).get("value_zeroing", {}) for each in (found.alignment, control))
    pairs = [(trained[layer].aligned, untrained[layer].aligned) for layer in trained if layer in untrained]
    agreeing, against = sum(_above(*pair) for pair in pairs), sum(_above(two, one) for one, two in pairs)
    evidence = (
        f"dot product: interval above that of random weights in {agreeing} of {len(pairs)} layers, below in {against}"
    )
    return Finding(claim, _verdict(agreeing, against, len(pairs)), evidence, control=True)


def _encoded(found: Reproduction) -> Finding:
    claim = "With random weights, the last block's compression is lower than after training"
    trained, untrained = found.probing, found.controls.random_probing
    if trained is None or untrained is None:
        reason = found.missing.get("random-probing", found.missing.get("probing", "not computed"))
        return Finding(claim, "not measured", reason, control=True)
    verdict = _verdict(trained.low[-1] > untrained.high[-1], trained.high[-1] < untrained.low[-1], 1)
    told = [f"{each.compression[-1]:.2f} [{each.low[-1]:.2f}, {each.high[-1]:.2f}]" for each in (trained, untrained)]
    return Finding(claim, verdict, f"{told[0]} trained, {told[1]} with random weights", control=True)


def _same_pattern(found: Reproduction) -> Finding:
    claim = "With other distances, and with normalised representations, the pattern of Value Zeroing stays"
    control = found.controls.distances
    if control is None:
        return Finding(claim, "not measured", found.missing.get("distances", "not computed"))
    profiles: dict[str, list[float]] = {}
    for cell in control.cells:
        if cell.measure == "dot" and cell.paradigm != "all":
            profiles.setdefault(cell.method.removeprefix("value_zeroing, "), []).append(cell.aligned.mean)
    own = profiles.pop("cosine", [])
    if len(own) < 3 or not profiles:
        return Finding(claim, "not measured", "there are too few layers and paradigms to rank")
    ranks = {name: _rank(own, other) for name, other in profiles.items()}
    told = ", ".join(f"{name} {rho:.2f}" for name, rho in ranks.items())
    agrees, against = min(ranks.values()) >= SAME_PATTERN, min(ranks.values()) < OTHER_PATTERN
    evidence = (
        f"Spearman correlation with the cosine distance, of mean dot products over {len(own)} (layer, paradigm) pairs: "
        f"{told}; agrees from {SAME_PATTERN} in all, does not below {OTHER_PATTERN} in any"
    )
    return Finding(claim, _verdict(agrees, against, 1), evidence)


def _rank(one: Sequence[float], other: Sequence[float]) -> float:
    return float(rank_correlation(np.array(one), np.array(other)))
