"""What of the paper a reproduction agrees with, read off its numbers by one rule for every claim.

A comparison of two means counts for one side where their intervals do not overlap. Over layers, a claim agrees where
more than half of the layers count for it, does not where more than half count against it, and is undecided otherwise.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from math import isnan
from statistics import mean
from typing import Literal

import numpy as np

from tl_vzero.evaluate.cue_alignment import Alignment, CueAlignment, Measure
from tl_vzero.evaluate.mass import Mass, Place
from tl_vzero.evaluate.probing import ProbingResult
from tl_vzero.evaluate.protocol import Reproduction
from tl_vzero.statistics import Correlation, Estimate, rank_correlation

Verdict = Literal["agrees", "does not agree", "undecided", "not measured"]
MEASURE_NAMES: Mapping[Measure, str] = {"dot": "dot product", "average_precision": "average precision"}
GRADIENTS = ("gradient_x_input", "integrated_gradients", "deep_lift")
LAYERS_TO_DECIDE = 6  # a percentile bootstrap of fewer pairs may be narrow by chance
NEAR_PUBLISHED = 0.02  # published to two digits
SAME_PATTERN, OTHER_PATTERN = 0.9, 0.5  # rank correlations, set by choice

Pairs = list[tuple[Estimate, Estimate]]


@dataclass(frozen=True)
class Finding:
    """A claim, whether the numbers agree with it, and the numbers. `control` says that the claim is not the paper's."""

    claim: str
    verdict: Verdict
    evidence: str
    control: bool = False


def findings(reproduction: Reproduction) -> tuple[Finding, ...]:
    """Every claim about a reproduction, in the order of its evaluations; none is left out because of how it ends."""
    return (
        *(_leads(reproduction.alignment, measure) for measure in MEASURE_NAMES),
        *_against_chance(reproduction.alignment),
        *_published(reproduction.alignment),
        _rises(reproduction),
        _goes_with_compression(reproduction),
        _most_faithful(reproduction),
        *_mass(reproduction),
        _calibrated(reproduction.alignment),
        _above_shuffled(reproduction.alignment),
        _learned(reproduction),
        _encoded(reproduction),
        _same_pattern(reproduction),
    )


@dataclass(frozen=True)
class UnderBaselines:
    """A claim about Value Zeroing, and its verdict under each baseline; the paper's is zero."""

    claim: str
    verdicts: Mapping[str, Verdict]

    @property
    def flips(self) -> tuple[str, ...]:
        """The baselines under which the claim ends otherwise than under zero."""
        return tuple(name for name, verdict in self.verdicts.items() if verdict != self.verdicts["zero"])


def findings_by_baseline(reproduction: Reproduction) -> tuple[UnderBaselines, ...]:
    """The claims that can be measured under other baselines, with each one's verdict."""
    names = reproduction.baselines.names
    by_baseline = {name: findings(reproduction.under(name)) for name in names}
    claims = []
    for index, of_zero in enumerate(findings(reproduction)):
        verdicts = {"zero": of_zero.verdict} | {name: by_baseline[name][index].verdict for name in names}
        if "Value Zeroing" in of_zero.claim and any(verdicts[name] != "not measured" for name in names):
            claims.append(UnderBaselines(of_zero.claim, verdicts))
    return tuple(claims)


def _by_method(alignment: CueAlignment, measure: Measure = "dot") -> dict[str, dict[int, Alignment]]:
    """The cells over all paradigms, by method and layer."""
    cells: dict[str, dict[int, Alignment]] = {}
    for cell in alignment.cells:
        if cell.measure == measure and cell.paradigm == "all":
            cells.setdefault(cell.method, {})[cell.layer] = cell
    return cells


def _verdict(agreeing: int, against: int, total: int = 1) -> Verdict:
    if not total:
        return "not measured"
    if 2 * agreeing > total:
        return "agrees"
    return "does not agree" if 2 * against > total else "undecided"


def _above(one: Estimate | Correlation, other: Estimate | Correlation) -> bool:
    return one.low > other.high


def _shown(estimate: Estimate, digits: int = 3) -> str:
    return f"{estimate.mean:.{digits}f} [{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"


def _over_layers(
    claim: str, pairs: Pairs, evidence: str, missing: str = "not computed", control: bool = False
) -> Finding:
    """Whether the first of each layer's pair is above the second; the evidence's {above}, {below}, {n} are counts."""
    above, below = sum(_above(one, other) for one, other in pairs), sum(_above(other, one) for one, other in pairs)
    shown = evidence.format(above=above, below=below, n=len(pairs)) if pairs else missing
    return Finding(claim, _verdict(above, below, len(pairs)), shown, control)


def _leads(alignment: CueAlignment, measure: Measure) -> Finding:
    claim = f"Value Zeroing lies on the cue more than every other method ({MEASURE_NAMES[measure]})"
    aligned = {
        method: {layer: cell.aligned for layer, cell in cells.items()}
        for method, cells in _by_method(alignment, measure).items()
    }
    ours = aligned.pop("value_zeroing", {})
    layers = [layer for layer in ours if any(layer in theirs for theirs in aligned.values())]
    if not layers:
        return Finding(claim, "not measured", "Value Zeroing or other methods are not there")
    first = above = below = 0
    for layer in layers:
        others = [theirs[layer] for theirs in aligned.values() if layer in theirs]
        first += all(ours[layer].mean > other.mean for other in others)
        above += all(_above(ours[layer], other) for other in others)
        below += any(_above(other, ours[layer]) for other in others)
    means = {method: mean(estimate.mean for estimate in theirs.values()) for method, theirs in aligned.items()}
    best = max(means, key=lambda method: means[method])
    evidence = (
        f"highest mean in {first} of {len(layers)} layers; its interval lies above all others in {above}, below "
        f"another's in {below}. Mean over layers {mean(estimate.mean for estimate in ours.values()):.3f}; of the "
        f"others {best} has most, {means[best]:.3f}"
    )
    return Finding(claim, _verdict(above, below, len(layers)), evidence)


def _chance(cell: Alignment) -> Estimate:
    return Estimate(cell.chance, cell.chance, cell.chance, cell.aligned.n)  # without a spread


def _against_chance(alignment: CueAlignment) -> Iterator[Finding]:
    cells = _by_method(alignment)
    evidence = "dot product: interval {} chance in {{above}} of {{n}} layers, the reverse in {{below}}"
    ours = [(cell.aligned, _chance(cell)) for cell in cells.get("value_zeroing", {}).values()]
    yield _over_layers("Value Zeroing lies on the cue more than chance", ours, evidence.format("above"))
    attention = [(_chance(cell), cell.aligned) for cell in cells.get("attention", {}).values()]
    yield _over_layers("Raw attention lies on the cue less than chance", attention, evidence.format("below"))


def _above_shuffled(alignment: CueAlignment) -> Finding:
    nothing = Estimate(np.nan, np.nan, np.nan, 0)  # neither above nor below anything
    return _over_layers(
        "Value Zeroing lies on the cue more than on another word drawn by chance",
        [(cell.aligned, cell.shuffled or nothing) for cell in _by_method(alignment).get("value_zeroing", {}).values()],
        "dot product: interval above that of shuffled cues in {above} of {n} layers, the reverse in {below}",
        control=True,
    )


def _calibrated(alignment: CueAlignment) -> Finding:
    claim = "Random scores lie on the cue as much as chance, cues over tokens"
    cells = list(_by_method(alignment).get("random", {}).values())
    if not cells:
        return Finding(claim, "not measured", "not computed", control=True)
    within = sum(cell.aligned.low <= cell.chance <= cell.aligned.high for cell in cells)
    evidence = f"chance {cells[0].chance:.3f} is within the 95 % interval in {within} of {len(cells)} layers"
    return Finding(claim, _verdict(within, len(cells) - within, len(cells)), evidence, control=True)


def _published(alignment: CueAlignment) -> Iterator[Finding]:
    """How far measured figures are from the published ones; only of the model that was published."""
    differences: dict[str, list[float]] = {}
    for cell in alignment.cells:
        if cell.published is not None:
            differences.setdefault(cell.method, []).append(abs(cell.aligned.mean - cell.published))
    if differences:
        means = {method: mean(of_layers) for method, of_layers in differences.items()}
        near = sum(difference <= NEAR_PUBLISHED for difference in means.values())
        yield Finding(
            "The dot products are those that were published, within .02 in the mean over layers",
            _verdict(near, len(means) - near, len(means)),
            f"mean absolute difference: {', '.join(f'{name} {difference:.3f}' for name, difference in means.items())}",
        )


def _compression(probing: ProbingResult, index: int) -> Estimate:
    return Estimate(probing.compression[index], probing.low[index], probing.high[index], probing.n)


def _rises(reproduction: Reproduction) -> Finding:
    claim = "The compression of the number rises from the first block to the last"
    probing = reproduction.probing
    if probing is None:
        return Finding(claim, "not measured", reproduction.missing.get("probing", "not computed"))
    blocks = [index for index, layer in enumerate(probing.layers) if layer >= 0]
    first, last = (_compression(probing, index) for index in (blocks[0], blocks[-1]))
    evidence = f"{_shown(first, 2)} after the first block, {_shown(last, 2)} after the last, n = {probing.n}"
    return Finding(claim, _verdict(_above(last, first), _above(first, last)), evidence)


def _goes_with_compression(reproduction: Reproduction) -> Finding:
    claim = "Over layers, the cue alignment of Value Zeroing goes with the compression, and more than any other's"
    links = {link.method: link.pearson for link in reproduction.links if link.measure == "dot"}
    ours = links.pop("value_zeroing", None)
    if ours is None or isnan(ours.value):
        return Finding(claim, "not measured", "there are fewer than three layers with both, or one is constant")
    others = {method: link for method, link in links.items() if not isnan(link.value)}
    above = ours.low > 0 and all(_above(ours, other) for other in others.values())
    against = ours.high < 0 or any(_above(other, ours) for other in others.values())
    best = max(others, key=lambda method: others[method].value, default=None)
    beside = "" if best is None else f"; of the others {best} has most, {others[best].value:.2f}"
    evidence = (
        f"Pearson {ours.value:.2f} [{ours.low:.2f}, {ours.high:.2f}]{beside}. {ours.n} layers are weak evidence, and "
        f"neighbouring layers are no independent pairs; fewer than {LAYERS_TO_DECIDE} decide nothing"
    )
    return Finding(claim, _verdict(above, against) if ours.n >= LAYERS_TO_DECIDE else "undecided", evidence)


def _most_faithful(reproduction: Reproduction) -> Finding:
    claim = "Value Zeroing, rolled out, ranks tokens more like blank-out than every other method"
    if reproduction.faithfulness is None:
        return Finding(claim, "not measured", reproduction.missing.get("faithfulness", "not computed"))
    correlations = reproduction.faithfulness.correlations
    rhos = {row.method: row.rho for row in correlations if row.paradigm == "all" and row.rho is not None}
    ours = rhos.pop("value_zeroing", None)
    if ours is None or not rhos:
        return Finding(claim, "not measured", "Value Zeroing or other methods have no correlation")
    above = all(_above(ours, other) for other in rhos.values())
    below = any(_above(other, ours) for other in rhos.values())
    best = max(rhos, key=lambda method: rhos[method].mean)
    evidence = (
        f"mean Spearman {_shown(ours)}, n = {ours.n}; {sum(other.mean > ours.mean for other in rhos.values())} of "
        f"{len(rhos)} other methods have a higher mean, most {best} with {_shown(rhos[best])}"
    )
    return Finding(claim, _verdict(above, below), evidence)


def _mass(reproduction: Reproduction) -> Iterator[Finding]:
    attracted = partial(_more_on, reproduction.mass_with_attractor)
    yield attracted("value_zeroing", "cue", "attractor", "Value Zeroing lies on the cue more than on an attractor")
    for method in GRADIENTS:
        yield attracted(method, "attractor", "cue", f"{method} lies on an attractor more than on the cue")
    claim = "Raw attention lies on special tokens more than on the cue"
    yield _more_on(reproduction.mass, "attention", "special", "cue", claim)


def _more_on(mass: Mass | None, method: str, place: Place, other: Place, claim: str) -> Finding:
    if mass is None:
        return Finding(claim, "not measured", "no sentence has an attractor")
    rows = [row for row in mass.shares if (row.method, row.paradigm) == (method, "all")]
    ours, theirs = ([row.share for row in rows if row.place == wanted] for wanted in (place, other))
    pairs = list(zip(ours, theirs, strict=True))
    if not pairs:
        return Finding(claim, "not measured", "the method was not computed")
    means = [mean(share.mean for share in shares) for shares in (ours, theirs)]
    evidence = (
        f"interval above in {{above}} of {{n}} layers, below in {{below}}; mean share over layers {means[0]:.3f} "
        f"({place}) and {means[1]:.3f} ({other}), n = {ours[0].n}"
    )
    return _over_layers(claim, pairs, evidence)


def _learned(reproduction: Reproduction) -> Finding:
    claim = "With random weights, Value Zeroing lies on the cue less than after training"
    control = reproduction.controls.random_alignment
    trained = _by_method(reproduction.alignment).get("value_zeroing", {})
    untrained = {} if control is None else _by_method(control).get("value_zeroing", {})
    pairs = [(trained[layer].aligned, untrained[layer].aligned) for layer in trained if layer in untrained]
    evidence = "dot product: interval above that of random weights in {above} of {n} layers, below in {below}"
    return _over_layers(claim, pairs, evidence, reproduction.missing.get("random-scores", "not computed"), control=True)


def _encoded(reproduction: Reproduction) -> Finding:
    claim = "With random weights, the last block's compression is lower than after training"
    probing, control, missing = reproduction.probing, reproduction.controls.random_probing, reproduction.missing
    if probing is None or control is None:
        reason = missing.get("random-probing", missing.get("probing", "not computed"))
        return Finding(claim, "not measured", reason, control=True)
    trained, untrained = _compression(probing, -1), _compression(control, -1)
    evidence = f"{_shown(trained, 2)} trained, {_shown(untrained, 2)} with random weights"
    return Finding(claim, _verdict(_above(trained, untrained), _above(untrained, trained)), evidence, control=True)


def _same_pattern(reproduction: Reproduction) -> Finding:
    claim = "With other distances, and with normalised representations, the pattern of Value Zeroing stays"
    control = reproduction.controls.distances
    if control is None:
        return Finding(claim, "not measured", reproduction.missing.get("distances", "not computed"))
    profiles: dict[str, list[float]] = {}
    for cell in control.cells:
        if cell.measure == "dot" and cell.paradigm != "all":
            profiles.setdefault(cell.method.removeprefix("value_zeroing, "), []).append(cell.aligned.mean)
    cosine = np.array(profiles.pop("cosine", []))
    if len(cosine) < 3 or not profiles:
        return Finding(claim, "not measured", "there are too few layers and paradigms to rank")
    rhos = {name: float(rank_correlation(cosine, np.array(profile))) for name, profile in profiles.items()}
    shown = ", ".join(f"{name} {rho:.2f}" for name, rho in rhos.items())
    evidence = (
        f"Spearman correlation with the cosine distance, of mean dot products over {len(cosine)} (layer, paradigm) "
        f"pairs: {shown}; agrees from {SAME_PATTERN} in all, does not below {OTHER_PATTERN} in any"
    )
    agrees, against = min(rhos.values()) >= SAME_PATTERN, min(rhos.values()) < OTHER_PATTERN
    return Finding(claim, _verdict(agrees, against), evidence)
