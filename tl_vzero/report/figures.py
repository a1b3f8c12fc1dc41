"""What the page's script draws: labels, layouts, colours and the numbers that are not packed."""

import base64
import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import isfinite, nan
from typing import Any

import torch
from jaxtyping import Float
from plotly.offline import get_plotlyjs
from torch import Tensor

from tl_vzero.effects.measure import Effect
from tl_vzero.errors import ScoresError
from tl_vzero.plot.flows import LABELLED_ALL, LARGEST_NODE, SMALLEST_NODE, THRESHOLDS, flow_axes, line_styles
from tl_vzero.plot.maps import (
    EFFECT_NAMES,
    VALUE_NAMES,
    effect_frame,
    effect_hover,
    effect_hovers,
    effect_scale,
    layer_frame,
    map_frame,
    map_hover,
    method_name,
    rounded,
    row_hover,
    source_axis,
)
from tl_vzero.plot.parts import hover_text, source_places, visible
from tl_vzero.plot.theme import DARK, LIGHT, Theme, template
from tl_vzero.registry import METHODS
from tl_vzero.report.report import Report
from tl_vzero.scores import Scores

# Numbers and scripts in as few bytes as a page can hold them, unpacked by the browser.

SHOWN_DIGITS = 4


def pack(data: bytes) -> str:
    """Pack bytes for a browser to unpack.

    >>> gzip.decompress(base64.b64decode(pack(b"maps")))
    b'maps'
    """
    return base64.b64encode(gzip.compress(data, compresslevel=6, mtime=0)).decode()


def decimal_codes(maps: Sequence[Float[Tensor, "..."]]) -> bytes:
    """Write numbers as 16-bit decimal mantissas of 4 digits, one after the other, then their 16-bit exponents.

    Less than half of what digits or float32 take once packed, and exactly what the page shows.

    >>> import torch
    >>> list(memoryview(decimal_codes([torch.tensor([[0.1, 0.0]])])).cast("h"))
    [1000, 0, -4, 0]
    """
    numbers = torch.cat([values.detach().cpu().flatten() for values in maps]).double()
    sizes = torch.where(numbers == 0, 1.0, numbers.abs())
    exponents = torch.floor(torch.log10(sizes)) - (SHOWN_DIGITS - 1)
    mantissas = torch.round(numbers / 10.0**exponents)
    exponents = torch.where(numbers == 0, 0.0, exponents)
    return torch.cat([mantissas, exponents]).to(torch.int16).numpy().astype("<i2").tobytes()


@cache
def packed_plotly() -> str:
    """The plotly.js that the installed plotly has."""
    return pack(get_plotlyjs().encode())


def script_json(data: dict[str, Any]) -> str:
    """JSON that no HTML parser can take for anything else, whatever a token holds; ASCII only."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


# The maps that a page draws: which methods, at which stages, and what it says of each.

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


TITLE_HEIGHT = 50
FLOW_START = 0.03  # one of the thresholds
AVERAGES = ("entropy", "self_weight", "special_weight")
UNKNOWN = (nan, nan, nan)
Json = dict[str, Any]


def page_data(report: Report, drawn: list[Drawn], units: tuple[str, ...], mapped: tuple[str, ...]) -> Json:
    """Everything for the script but the packed maps, which are over the units in `mapped`."""
    scores = report.value_zeroing
    return {
        "layers": list(scores.layers),
        "target": report.target,
        "start": _first_destination(report),
        "units": {name: _unit(scores.words() if name == "words" else scores) for name in units},
        "mapped": list(mapped),
        "methods": [each.to_page(units) for each in drawn],
        "wordOf": _word_of(scores),
        "scaleNames": {"layer": VALUE_NAMES["normalized"], "rollout": VALUE_NAMES["rollout"]},
        "hover": {
            "layer": [map_hover(f"layer {layer}") for layer in scores.layers],
            "rollout": [map_hover(f"rolled out up to layer {layer}") for layer in scores.layers],
        },
        "effects": {name: _effect(effect) for name, effect in report.effects.items()},
        "agreement": {name: _agreement(report, name) for name in report.effects},
        "table": _table(report),
        "flow": _flow(scores, units, drawn[0]),
        "themes": {theme.name: _theme(theme) for theme in (LIGHT, DARK)},
    }


def _first_destination(report: Report) -> int:
    if report.target is not None:
        return report.target
    words = report.value_zeroing.word_ids or ()
    return next((position for position, word in enumerate(words) if word is not None), 0)


def _word_of(scores: Scores) -> list[int] | None:
    """The word number of every position; None where the words are unknown."""
    if scores.word_ids is None:
        return None
    numbers: list[int] = []
    for position, word in enumerate(scores.word_ids):
        joins = position > 0 and word is not None and word == scores.word_ids[position - 1]
        numbers.append(numbers[-1] + (not joins) if numbers else 0)
    return numbers


def _unit(unit: Scores) -> Json:
    """One unit's labels, and what is around its figures as a notebook has it."""
    labels = list(zip(unit.dest_tokens, unit.dest_positions, strict=True))
    hover = [hover_text(token, position, unit.unit) for token, position in labels]
    return {
        "names": [visible(token) for token, _ in labels],
        "positions": list(unit.dest_positions),
        "place": "word" if unit.unit == "word" else "position",
        "hover": hover,
        "rowHover": [row_hover(label) for label in hover],
        "map": _frame(map_frame(unit)),
        "row": _frame(layer_frame(unit.layers, source_axis(unit))),
    }


def _effect(effect: Effect) -> Json:
    return _frame(effect_frame(effect)) | {
        "label": EFFECT_NAMES[effect.method],
        "z": rounded(effect.values, SHOWN_DIGITS),
        "target": effect.target,
        "sources": effect_hovers(effect),
        "hovertemplate": effect_hover(),
        "scale": effect_scale(effect),
    }


def _frame(parts: tuple[Json, Json]) -> Json:
    """A figure's cells and axes; its title the page has elsewhere."""
    trace, layout = parts
    return {"trace": trace, "layout": layout | {"height": layout["height"] - TITLE_HEIGHT}}


def _agreement(report: Report, effect: str) -> list[Json]:
    """A line a method: its label, and [rho, low, high] in each layer of the report."""
    lines = []
    for name, found in report.agreements[effect].items():
        ranks = dict(zip(found.layers, zip(found.rho, found.low, found.high, strict=True), strict=True))
        layers = [[_rank(value) for value in ranks.get(layer, UNKNOWN)] for layer in report.value_zeroing.layers]
        lines.append({"name": name, "label": method_name(report.comparison[name]), "n": found.n, "layers": layers})
    return lines


def _table(report: Report) -> list[Json]:
    """A line a method: its label, and [entropy, own token, special tokens, rank with Value Zeroing] in each layer."""
    lines = []
    for name, scores in report.comparison.items():
        rows = {row["layer"]: row for row in report.table if row["method"] == name}
        layers = [
            [
                *(_digits(rows.get(layer, {}).get(column, nan)) for column in AVERAGES),
                _rank(rows.get(layer, {}).get("rank_with_value_zeroing", nan)),
            ]
            for layer in report.value_zeroing.layers
        ]
        lines.append({"name": name, "label": method_name(scores), "layers": layers})
    return lines


def _digits(value: float) -> float | None:
    return float(f"{value:.{SHOWN_DIGITS}g}") if isfinite(value) else None


def _rank(value: float) -> float | None:
    """Two decimals, as the page shows them: rounded once."""
    return round(value, 2) if isfinite(value) else None


def _flow(scores: Scores, units: tuple[str, ...], zeroing: Drawn) -> Json | None:
    """The flow graph without its lines: what is around it, by unit, and its bounds; None without a rollout."""
    if "rollout" not in zeroing.views:
        return None
    layouts = {}
    for name in units:
        unit = scores.words() if name == "words" else scores
        layouts[name] = flow_axes(unit.src_tokens, source_places(unit), scores.layers)
    return {
        "layouts": layouts,
        "bounds": THRESHOLDS,
        "start": FLOW_START,
        "labelledAll": LABELLED_ALL,
        "nodes": [SMALLEST_NODE, LARGEST_NODE],
    }


def _theme(theme: Theme) -> Json:
    return {
        "lines": line_styles(THRESHOLDS, theme),
        "template": template(theme).to_plotly_json(),
        "sequential": theme.sequential_ramp(),
        "diverging": theme.diverging_ramp(),
        "accent": theme.accent,
        "mark": theme.mark,
        "line": theme.line,
        "panel": theme.panel,
    }
