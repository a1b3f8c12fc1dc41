"""The paper's three evaluations of one model, with their controls, as one result."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tl_vzero.data.parsed_cues import CueCheck
from tl_vzero.evaluate.cue_alignment import MEASURES, CueAlignment, Measure
from tl_vzero.evaluate.faithfulness import Faithfulness
from tl_vzero.evaluate.mass import Mass
from tl_vzero.evaluate.probing import ProbingResult
from tl_vzero.evaluate.rows import TargetRows
from tl_vzero.files import to_plain
from tl_vzero.statistics import FEWEST_PAIRS, Correlation, Estimate, bootstrap_pearson, bootstrap_spearman

if TYPE_CHECKING:
    import pandas as pd


FORMAT = "tl_vzero.reproduction"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Link:
    """How a method's cue alignment goes with the compression, over a model's layers: few pairs, so wide intervals."""

    method: str
    measure: Measure
    pearson: Correlation
    spearman: Correlation


@dataclass(frozen=True)
class Controls:
    """What learned nothing, and Value Zeroing by other distances; None where it could not be made."""

    random_alignment: CueAlignment | None
    random_probing: ProbingResult | None
    distances: CueAlignment | None


@dataclass(frozen=True)
class Reproduction:
    """Cue alignment, mass, probing, their correlation, faithfulness and controls of one model.

    `metadata` has the model, the sentences with their counts at each filter, the split, seeds and versions.
    `mass_with_attractor` is over the sentences that have an attractor alone, None if none has.
    `missing` says of each part that is None why. `published_compression` is the paper's, where the model is the same.
    """

    metadata: Mapping[str, Any]
    accuracy: Estimate | None
    alignment: CueAlignment
    cue_check: CueCheck | None
    mass: Mass
    mass_with_attractor: Mass | None
    probing: ProbingResult | None
    probing_paper: ProbingResult | None
    links: tuple[Link, ...]
    faithfulness: Faithfulness | None
    controls: Controls
    published_compression: tuple[float, ...]
    missing: Mapping[str, str]

    def links_frame(self) -> "pd.DataFrame":
        """A pandas table of the correlations over layers: a row for each method, measure and kind."""
        import pandas as pd

        rows = [
            {"method": link.method, "measure": link.measure, **to_plain(each)}
            for link in self.links
            for each in (link.pearson, link.spearman)
        ]
        return pd.DataFrame(rows, columns=["method", "measure", "kind", "value", "low", "high", "n", "confidence"])

    def frames(self) -> "dict[str, pd.DataFrame]":
        """Every table, by the name of its CSV file."""
        tables = {"cue_alignment": self.alignment.to_frame(), "mass": self.mass.to_frame()}
        for name, probing in (("probing", self.probing), ("probing_paper_mode", self.probing_paper)):
            if probing is not None:
                tables[name] = probing.to_frame()
        if self.cue_check is not None:
            tables["cue_check"] = self.cue_check.to_frame()
            tables["cue_disagreements"] = self.cue_check.disagreements_frame()
        if self.mass_with_attractor is not None:
            tables["mass_with_attractor"] = self.mass_with_attractor.to_frame()
        if self.links:
            tables["alignment_with_compression"] = self.links_frame()
        if self.faithfulness is not None:
            tables["faithfulness"] = self.faithfulness.to_frame()
            tables["erasure_curves"] = self.faithfulness.curves_frame()
        if self.controls.random_alignment is not None:
            tables["control_random_weights"] = self.controls.random_alignment.to_frame()
        if self.controls.random_probing is not None:
            tables["control_random_weights_probing"] = self.controls.random_probing.to_frame()
        if self.controls.distances is not None:
            tables["control_distances"] = self.controls.distances.to_frame()
        return tables

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON types; numbers that do not exist are None."""
        controls = self.controls
        parts: dict[str, CueAlignment | CueCheck | Mass | ProbingResult | Faithfulness | None] = {
            "cue_alignment": self.alignment,
            "cue_check": self.cue_check,
            "mass": self.mass,
            "mass_with_attractor": self.mass_with_attractor,
            "probing": self.probing,
            "probing_paper_mode": self.probing_paper,
            "faithfulness": self.faithfulness,
            "control_random_weights": controls.random_alignment,
            "control_random_weights_probing": controls.random_probing,
            "control_distances": controls.distances,
        }
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "metadata": to_plain(self.metadata),
            "accuracy": to_plain(self.accuracy),
            **{name: None if part is None else to_plain(part.to_dict()) for name, part in parts.items()},
            "alignment_with_compression": to_plain(self.links),
            "published_compression": list(self.published_compression),
            "missing": dict(self.missing),
        }


# What is kept of each part of the protocol, and how parts are put together.


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
