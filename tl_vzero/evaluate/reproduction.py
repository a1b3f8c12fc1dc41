"""The paper's three evaluations of one model, with their controls, as one result."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tl_vzero.evaluate.cue_alignment import CueAlignment, Measure
from tl_vzero.evaluate.cue_check import CueCheck
from tl_vzero.evaluate.faithfulness import Faithfulness
from tl_vzero.evaluate.mass import Mass
from tl_vzero.evaluate.plain_data import to_plain
from tl_vzero.evaluate.probing import ProbingResult
from tl_vzero.evaluate.statistics import Correlation, Estimate

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
