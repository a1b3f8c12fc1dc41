"""The paper's three evaluations of one model, with their controls, as one result."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from tl_vzero.data.parsed_cues import CueCheck
from tl_vzero.evaluate.cue_alignment import Alignment, CueAlignment, Measure
from tl_vzero.evaluate.faithfulness import Faithfulness
from tl_vzero.evaluate.knockout_agreement import KnockoutAgreement
from tl_vzero.evaluate.mass import Mass
from tl_vzero.evaluate.probing import ProbingResult
from tl_vzero.evaluate.removal import TokenRemoval
from tl_vzero.evaluate.results import Result, Row, frame_of
from tl_vzero.files import to_plain
from tl_vzero.statistics import FEWEST_PAIRS, Correlation, Estimate, bootstrap_pearson, bootstrap_spearman

if TYPE_CHECKING:
    import pandas as pd

FORMAT = "tl_vzero.reproduction"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Link(Row):
    """How a method's cue alignment goes with the compression, over a model's layers: few pairs, so wide intervals."""

    method: str
    measure: Measure
    pearson: Correlation
    spearman: Correlation

    def records(self) -> Iterator[dict[str, Any]]:
        """One row per kind of correlation."""
        for correlation in (self.pearson, self.spearman):
            of_link = {"method": self.method, "measure": self.measure, "kind": correlation.kind}
            yield of_link | to_plain(correlation)


@dataclass(frozen=True)
class Controls:
    """What learned nothing, and Value Zeroing by other distances; None where the model does not allow it."""

    random_alignment: CueAlignment | None
    random_probing: ProbingResult | None
    distances: CueAlignment | None


@dataclass(frozen=True)
class Baselines:
    """Value Zeroing under other baselines than zero: methods "value_zeroing, BASELINE"; None where not measured."""

    alignment: CueAlignment | None = None
    mass: Mass | None = None
    mass_with_attractor: Mass | None = None
    faithfulness: Faithfulness | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The baselines, in order."""
        cells = () if self.alignment is None else self.alignment.cells
        return tuple(dict.fromkeys(cell.method.removeprefix(OURS) for cell in cells))


@dataclass(frozen=True)
class Reproduction:
    """Cue alignment, mass, probing, faithfulness, knockout, removal, controls and other baselines of one model.

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
    knockout: KnockoutAgreement | None
    removal: TokenRemoval | None
    controls: Controls
    published_compression: tuple[float, ...]
    missing: Mapping[str, str]
    baselines: Baselines = field(default_factory=Baselines)

    def under(self, baseline: str) -> "Reproduction":
        """The same with Value Zeroing's figures under another baseline; without controls, which are under zero."""
        other = self.baselines
        alignment = _under(baseline, self.alignment, other.alignment, "cells")
        return replace(
            self,
            alignment=alignment,
            mass=_under(baseline, self.mass, other.mass, "shares"),
            mass_with_attractor=_under(baseline, self.mass_with_attractor, other.mass_with_attractor, "shares"),
            links=links_of(alignment, self.probing, self.metadata["seed"]),
            faithfulness=_under(baseline, self.faithfulness, other.faithfulness, "correlations"),
            controls=Controls(None, None, None),
        )

    def _parts(self) -> dict[str, Result | CueCheck | ProbingResult | None]:
        """The results of the parts, by the names that they have in files."""
        return {
            "cue_alignment": self.alignment,
            "mass": self.mass,
            "probing": self.probing,
            "probing_paper_mode": self.probing_paper,
            "cue_check": self.cue_check,
            "mass_with_attractor": self.mass_with_attractor,
            "faithfulness": self.faithfulness,
            "knockout": self.knockout,
            "token_removal": self.removal,
            "control_random_weights": self.controls.random_alignment,
            "control_random_weights_probing": self.controls.random_probing,
            "control_distances": self.controls.distances,
            "baselines_cue_alignment": self.baselines.alignment,
            "baselines_mass": self.baselines.mass,
            "baselines_mass_with_attractor": self.baselines.mass_with_attractor,
            "baselines_faithfulness": self.baselines.faithfulness,
        }

    def frames(self) -> "dict[str, pd.DataFrame]":
        """Every table, by the name of its CSV file."""
        tables = {name: part.to_frame() for name, part in self._parts().items() if part is not None}
        if self.cue_check is not None:
            tables["cue_disagreements"] = self.cue_check.disagreements_frame()
        if self.links:
            tables["alignment_with_compression"] = frame_of(self.links)
        if self.faithfulness is not None:
            tables["erasure_curves"] = self.faithfulness.curves_frame()
        if self.removal is not None:
            tables["token_removal_times"] = frame_of(self.removal.times)
        return tables

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON types; numbers that do not exist are None."""
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "metadata": to_plain(self.metadata),
            "accuracy": to_plain(self.accuracy),
            **{name: None if part is None else to_plain(part.to_dict()) for name, part in self._parts().items()},
            "alignment_with_compression": to_plain(self.links),
            "published_compression": list(self.published_compression),
            "missing": dict(self.missing),
        }


OURS = "value_zeroing, "  # then the name of a baseline


def _under(baseline: str, ours: Any, other: Any, rows: str) -> Any:
    """A part whose rows of Value Zeroing are those of another baseline; without any where that was not measured."""
    if ours is None:
        return None
    under = [row for row in getattr(other, rows, ()) if row.method == OURS + baseline]
    others = [row for row in getattr(ours, rows) if row.method != "value_zeroing"]
    return replace(ours, **{rows: (*(replace(row, method="value_zeroing") for row in under), *others)})


def links_of(alignment: CueAlignment, probing: ProbingResult | None, seed: int) -> tuple[Link, ...]:
    """The correlation, over blocks, of each method's cue alignment with the compression after the same block."""
    compression = {} if probing is None else dict(zip(probing.layers, probing.compression, strict=True))
    by_measure: dict[tuple[str, Measure], list[Alignment]] = {}
    for cell in alignment.cells:
        if cell.paradigm == "all" and cell.layer in compression:
            by_measure.setdefault((cell.method, cell.measure), []).append(cell)
    links = []
    for (method, measure), cells in by_measure.items():
        if len(cells) >= FEWEST_PAIRS:
            pairs = [cell.aligned.mean for cell in cells], [compression[cell.layer] for cell in cells]
            correlations = (correlate(*pairs, seed=seed) for correlate in (bootstrap_pearson, bootstrap_spearman))
            links.append(Link(method, measure, *correlations))
    return tuple(links)
