"""What is kept of each part of the protocol, and how parts are put together."""

from dataclasses import dataclass, replace

from tl_vzero.evaluate.cue_alignment import MEASURES, CueAlignment
from tl_vzero.evaluate.cue_check import CueCheck
from tl_vzero.evaluate.faithfulness import Faithfulness
from tl_vzero.evaluate.mass import Mass
from tl_vzero.evaluate.probing import ProbingResult
from tl_vzero.evaluate.reproduction import Link
from tl_vzero.evaluate.rows import TargetRows
from tl_vzero.evaluate.statistics import FEWEST_PAIRS, Estimate, bootstrap_pearson, bootstrap_spearman


@dataclass(frozen=True)
class _Kept:
    """A part that may be missing, with the reason."""

    reason: str | None


@dataclass(frozen=True)
class KeptScores(_Kept):
    """Cue alignment and mass of some methods; the mass also over the sentences that have an attractor, if any has."""

    alignment: CueAlignment | None = None
    mass: Mass | None = None
    mass_with_attractor: Mass | None = None


@dataclass(frozen=True)
class KeptCueCheck(_Kept):
    """Cues by rule beside cues by parse."""

    check: CueCheck | None = None


@dataclass(frozen=True)
class KeptProbing(_Kept):
    """A probing of the layers."""

    probing: ProbingResult | None = None


@dataclass(frozen=True)
class KeptFaithfulness(_Kept):
    """Blank-out correlations and erasure curves."""

    faithfulness: Faithfulness | None = None


@dataclass(frozen=True)
class KeptAccuracy(_Kept):
    """How often the right form is preferred."""

    accuracy: Estimate | None = None


def some_rows(rows: TargetRows, numbers: list[int]) -> TargetRows:
    """The rows of some of the examples, by their numbers."""
    return replace(
        rows,
        examples=tuple(rows.examples[number] for number in numbers),
        rows={name: tuple(own[number] for number in numbers) for name, own in rows.rows.items()},
    )


def merged_alignment(scored: list[KeptScores], names: tuple[str, ...]) -> CueAlignment:
    """The methods of several parts as one result; what a part could not give is left out with its reason."""
    found = [each.alignment for each in scored if each.alignment is not None]
    reasons = {name: each.reason for name, each in zip(names, scored[1:], strict=True) if each.reason is not None}
    left_out = {name: why for name, why in found[0].left_out.items() if name not in names} | reasons
    return replace(found[0], cells=tuple(cell for each in found for cell in each.cells), left_out=left_out)


def merged_mass(masses: list[Mass | None]) -> Mass | None:
    """The methods of several parts as one result; None where no part has any."""
    found = [each for each in masses if each is not None]
    if not found:
        return None
    return replace(
        found[0],
        shares=tuple(share for each in found for share in each.shares),
        empty_rows={name: count for each in found for name, count in each.empty_rows.items()},
    )


def links_of(alignment: CueAlignment, probing: ProbingResult | None, seed: int) -> tuple[Link, ...]:
    """The correlation, over blocks, of each method's cue alignment with the compression after the same block."""
    if probing is None:
        return ()
    compression = dict(zip(probing.layers, probing.compression, strict=True))
    found = []
    for method in dict.fromkeys(cell.method for cell in alignment.cells):
        for measure in MEASURES:
            cells = [
                cell
                for cell in alignment.cells
                if (cell.method, cell.measure, cell.paradigm) == (method, measure, "all") and cell.layer in compression
            ]
            if len(cells) < FEWEST_PAIRS:
                continue
            one, other = [cell.aligned.mean for cell in cells], [compression[cell.layer] for cell in cells]
            found.append(
                Link(
                    method,
                    measure,
                    bootstrap_pearson(one, other, seed=seed),
                    bootstrap_spearman(one, other, seed=seed),
                )
            )
    return tuple(found)
