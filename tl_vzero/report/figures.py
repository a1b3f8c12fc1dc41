"""What the page's script draws: labels, layouts, colours and the numbers that are not packed."""

from math import isfinite, nan
from typing import Any

from tl_vzero.effects import Effect
from tl_vzero.plot.flows import LABELLED_ALL, LARGEST_NODE, SMALLEST_NODE, THRESHOLDS, flow_axes, line_styles
from tl_vzero.plot.labels import hover_text, visible
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
from tl_vzero.plot.parts import source_places
from tl_vzero.plot.theme import DARK, LIGHT, Theme, template
from tl_vzero.report.drawn import Drawn
from tl_vzero.report.packed import SHOWN_DIGITS
from tl_vzero.report.result import Report
from tl_vzero.scores import Scores

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
