"""The maps that a page draws: which methods, at which stages, and what it says of each."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tl_vzero.api import METHODS
from tl_vzero.errors import ScoresError
from tl_vzero.plot.maps import method_name
from tl_vzero.report.result import Report
from tl_vzero.scores import Scores

# Two methods in 12 layers of 128 tokens, each per layer and rolled out, over pieces and over words: 3.8 MB packed.
NUMBERS_DRAWN = 1_500_000
ALWAYS_DRAWN = 2  # Value Zeroing and one method beside it
RULES = {True: "identity added (half of each token stays where it is)", False: "no identity added"}


@dataclass(frozen=True)
class Drawn:
    """A method of the page: its maps by view ("layer", "rollout"), and a sentence on each view."""

    scores: Scores
    views: Mapping[str, Scores]
    notes: Mapping[str, str]

    def to_page(self, units: tuple[str, ...]) -> dict[str, Any]:
        """What the page's script needs of it beside the numbers."""
        method = METHODS.get(self.scores.method)
        return {
            "name": self.scores.method,
            "label": method_name(self.scores),
            "about": "" if method is None else f"{method.summary} ({method.reference})",
            "views": list(self.views),
            "notes": dict(self.notes),
            "rows": {unit: list(_over(unit, self.scores).dest_positions) for unit in units},
        }

    def maps(self, unit: str) -> Iterator[Tensor]:
        """Its maps `[layer, dest, src]` over one unit, view by view."""
        for scores in self.views.values():
            yield _over(unit, scores).values


def _over(unit: str, scores: Scores) -> Scores:
    return scores.words() if unit == "words" else scores


def drawn_methods(report: Report, units: tuple[str, ...]) -> tuple[list[Drawn], dict[str, str]]:
    """The methods that the page draws, and why each of the others is not there.

    A long sentence has room for few maps; methods are taken in their order.
    """
    drawn: list[Drawn] = []
    absent = dict(report.comparison.left_out)
    room = NUMBERS_DRAWN
    for name, scores in report.comparison.items():
        try:
            each = _drawn(scores, report.value_zeroing)
        except ScoresError as error:
            absent[name] = str(error)
            continue
        size = sum(values.numel() for unit in units for values in each.maps(unit))
        if len(drawn) >= ALWAYS_DRAWN and size > room:
            absent[name] = "its maps of a sentence this long have no room on the page: name fewer methods"
            continue
        room -= size
        drawn.append(each)
    return drawn, absent


def _drawn(scores: Scores, reference: Scores) -> Drawn:
    if scores.layers != reference.layers or scores.src_positions != reference.src_positions:
        raise ScoresError("it was computed for some layers or sources only")
    rule = RULES[scores.identity]
    if scores.stage == "rollout":
        note = f"It is rolled out already, {rule}, and so the same per layer and rolled out."
        return Drawn(scores, {"rollout": scores}, {"layer": note, "rollout": note})
    shares = scores.normalized()
    try:
        rolled = scores.rollout()
    except ScoresError as error:
        return Drawn(scores, {"layer": shares}, {"layer": "", "rollout": f"Shown per layer: {error}."})
    return Drawn(scores, {"layer": shares, "rollout": rolled}, {"layer": "", "rollout": f"Rolled out: {rule}."})
