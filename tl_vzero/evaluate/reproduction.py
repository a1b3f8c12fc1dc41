"""The paper's three evaluations of one model, with their controls, as one result."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tl_vzero.data.parsed_cues import CueCheck
from tl_vzero.evaluate.cue_alignment import Alignment, CueAlignment, Measure
from tl_vzero.evaluate.faithfulness import Faithfulness
from tl_vzero.evaluate.knockout_agreement import KnockoutAgreement
from tl_vzero.evaluate.mass import Mass
from tl_vzero.evaluate.probing import ProbingResult
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
class Reproduction:
    """Cue alignment, mass, probing, their correlation, faithfulness, knockout and controls of one model.

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
    controls: Controls
    published_compression: tuple[float, ...]
    missing: Mapping[str, str]

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
            "control_random_weights": self.controls.random_alignment,
            "control_random_weights_probing": self.controls.random_probing,
            "control_distances": self.controls.distances,
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
