"""What the page's script draws: labels, layouts and colours as plain data, and the maps in as few bytes as a page can
hold them, unpacked by the browser."""

import base64
import gzip
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import nan
from typing import Any

import torch
from jaxtyping import Float
from plotly.offline import get_plotlyjs
from torch import Tensor

from tl_vzero.effects.measure import Effect
from tl_vzero.errors import ScoresError
from tl_vzero.plot.flows import LABELLED_ALL, LARGEST_NODE, SMALLEST_NODE, STUB, THRESHOLDS, flow_axes, line_styles
from tl_vzero.plot.maps import (
    EFFECT_HOVER,
    effect_frame,
    effect_labels,
    effect_name,
    effect_scale,
    layer_frame,
    map_frame,
    row_hover,
    source_axis,
)
from tl_vzero.plot.pages import SHOWN_DIGITS
from tl_vzero.plot.parts import VALUE_NAMES, aside, hover_box, hover_labels, rounded, source_places, texts_of, visible
from tl_vzero.plot.theme import DARK, LIGHT, Theme, template
from tl_vzero.registry import METHODS
from tl_vzero.report.report import Report
from tl_vzero.scores import Scores

# Two methods in 12 layers of 128 tokens, each per layer and rolled out, over pieces and over words: 3.8 MB packed.
NUMBERS_DRAWN = 1_500_000
ALWAYS_DRAWN = 2  # Value Zeroing and the method to compare it with; of a second sentence or model the first alone
RULES = {True: "identity added (half of each token stays where it is)", False: "no identity added"}
TITLE_HEIGHT = 50  # pixels; of a figure's title, which the page has elsewhere
FLOW_START = 0.03  # one of the thresholds
VIEWS = ("layer", "rollout")
AVERAGES = ("entropy", "self_weight", "special_weight")
Json = dict[str, Any]


def pack(data: bytes) -> str:
    """Pack bytes for a browser to unpack."""
    return base64.b64encode(gzip.compress(data, compresslevel=6, mtime=0)).decode()


@cache
def packed_plotly() -> str:
    """The plotly.js that the installed plotly has."""
    return pack(get_plotlyjs().encode())


def decimal_codes(maps: Sequence[Float[Tensor, "..."]]) -> bytes:
    """Write numbers as 16-bit decimal mantissas of 4 digits, one after the other, then their 16-bit exponents.

    Less than half of what digits or float32 take once packed, and exactly what the page shows.
    """
    numbers = torch.cat([values.detach().cpu().flatten() for values in maps]).double()
    sizes = torch.where(numbers == 0, 1.0, numbers.abs())
    exponents = torch.floor(torch.log10(sizes)) - (SHOWN_DIGITS - 1)
    mantissas = torch.round(numbers / 10.0**exponents)
    exponents = torch.where(numbers == 0, 0.0, exponents)
    return torch.cat([mantissas, exponents]).to(torch.int16).numpy().astype("<i2").tobytes()


@dataclass(frozen=True)
class Drawn:
    """A method of the page: its maps by view ("layer", "rollout"), and a sentence on each view."""

    scores: Scores
    views: Mapping[str, Scores]
    notes: Mapping[str, str]

    def to_page(self, units: tuple[str, ...]) -> dict[str, Any]:
        """What the page's script needs of it, except the numbers."""
        method = METHODS.get(self.scores.method)
        return {
            "name": self.scores.method,
            "label": self.scores.label,
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


def room_of(sides: int) -> int:
    """How many numbers each of the sentences or models of a page may have."""
    return NUMBERS_DRAWN // sides


def drawn_methods(
    report: Report, units: tuple[str, ...], room: int, always: int = ALWAYS_DRAWN
) -> tuple[list[Drawn], dict[str, str]]:
    """The methods that the page draws, and why each of the others is not there.

    A long sentence has room for few maps; methods are taken in their order, the first ones `always`.
    """
    drawn: list[Drawn] = []
    absent = dict(report.comparison.left_out)
    for name, scores in report.comparison.items():
        try:
            method = _drawn(scores, report.value_zeroing)
        except ScoresError as error:
            absent[name] = str(error)
            continue
        size = sum(values.numel() for unit in units for values in method.maps(unit))
        if len(drawn) >= always and size > room:
            absent[name] = "its maps of a sentence this long have no room on the page: name fewer methods"
            continue
        room -= size
        drawn.append(method)
    return drawn, absent


def drawn_heads(
    report: Report, units: tuple[str, ...], room: int, always: int = ALWAYS_DRAWN
) -> tuple[list[Tensor], Json | None]:
    """The maps `[head, layer, dest, src]` of every head, by unit and method, and the rest.

    There are no maps where there is no room for them beside the methods that are drawn `always`.
    """
    heads = report.heads
    if heads is None:
        return [], None
    both = (heads.value_zeroing.normalized(), heads.attention.normalized())
    maps = [_over(unit, scores).values.transpose(0, 1) for unit in units for scores in both]
    absent = ""
    of_methods = always * len(VIEWS) * sum(_over(unit, report.value_zeroing).values.numel() for unit in units)
    if sum(values.numel() for values in maps) > room - of_methods:
        maps, absent = [], "The maps of all heads of a sentence this long have no room on the page: shorten it."
    shares = rounded(heads.share, SHOWN_DIGITS)
    return maps, {"absent": absent, "share": shares, "queryHeads": heads.query_heads}


def _drawn(scores: Scores, reference: Scores) -> Drawn:
    if scores.layers != reference.layers or scores.src_positions != reference.src_positions:
        raise ScoresError("it was computed for some layers or sources only")
    rule = RULES[scores.identity]
    if scores.stage == "rollout":
        note = f"It is rolled out already, {rule}, and so the same per layer and rolled out."
        return Drawn(scores, {"rollout": scores}, {"layer": note, "rollout": note})
    views = {"layer": scores.normalized()}
    try:
        views["rollout"] = scores.rollout()
        note = f"Rolled out: {rule}."
    except ScoresError as error:
        note = f"Shown per layer: {error}."
    return Drawn(scores, views, {"layer": "", "rollout": note})


def page_data(report: Report, drawn: list[Drawn], units: tuple[str, ...], mapped: tuple[str, ...]) -> Json:
    """Everything for the script but the packed maps, which are over the units in `mapped`."""
    scores, start = report.value_zeroing, first_destination(report)
    normalized = scores.normalized()
    return {
        "model": report.model,
        "text": visible(report.text),
        "layers": scores.layers,
        "target": report.target,
        "noWordKnown": report.no_word_known,
        "start": start,
        "opens": scores.layers.index(normalized.telling_layer(start)),
        "predicts": report.metadata.get("predicts", "token"),
        "predictions": _predictions(report),
        "units": {unit: _unit(_over(unit, normalized)) for unit in units},
        "mapped": mapped,
        "methods": [method.to_page(units) for method in drawn],
        "wordOf": _word_of(scores),
        "scaleNames": {"layer": VALUE_NAMES["normalized"], "rollout": VALUE_NAMES["rollout"]},
        "hover": {
            "layer": [hover_box(f"layer {layer}") for layer in scores.layers],
            "rollout": [hover_box(f"rolled out up to layer {layer}") for layer in scores.layers],
        },
        "effects": {name: _effect(effect) for name, effect in report.effects.items()},
        "agreement": {name: _agreement(report, name) for name in report.effects},
        "table": _table(report),
        "flow": _flow(scores, units) if "rollout" in drawn[0].views else None,
        "themes": {theme.name: theme_data(theme) for theme in (LIGHT, DARK)},
    }


def first_destination(report: Report) -> int:
    """The position that a page chooses first: the target, else the first word."""
    if report.target is not None:
        return report.target
    words = report.value_zeroing.word_ids or ()
    return next((position for position, word in enumerate(words) if word is not None), 0)


def _predictions(report: Report) -> list[Json]:
    """Of every position what its prediction is of, in words, and the likeliest (tokens or classes) with their ids."""
    labelled: list[Json] = []
    for position, likeliest in enumerate(report.predictions):
        place = f"“\u2068{visible(report.value_zeroing.dest_tokens[position])}\u2069” (position {position})"
        label = f"In place of {place}" if position in report.metadata.get("masks", ()) else f"At {place}, not masked"
        if report.metadata.get("predicts") == "next token":
            label = f"Next token after {place}"
        elif report.metadata.get("predicts") == "class":
            label = f"Class predicted at {place}" if likeliest else f"No probabilities of classes at {place}"
        shown = [[visible(token), float(f"{share:.{SHOWN_DIGITS}g}")] for token, share in likeliest]
        ids = report.predicted_ids[position] if report.predicted_ids else ()
        labelled.append({"label": label, "likeliest": shown, "ids": ids})
    return labelled


def _word_of(scores: Scores) -> list[int] | None:
    """The index of every position's word; None where the words are unknown."""
    if scores.word_ids is None:
        return None
    words: list[int] = []
    for position, word in enumerate(scores.word_ids):
        joins = position > 0 and word is not None and word == scores.word_ids[position - 1]
        words.append(words[-1] + (not joins) if words else 0)
    return words


def _unit(unit: Scores) -> Json:
    """One unit's labels, and what is around its figures as a notebook has it."""
    hover = hover_labels(unit.dest_tokens, unit.dest_positions, unit.unit, unit.unknown_dests)
    return {
        "names": texts_of(unit.dest_tokens),
        "aside": aside(unit),
        "unknown": unit.unknown_dests,
        "positions": unit.dest_positions,
        "special": unit.special_sources,
        "telling": [unit.layers.index(unit.telling_layer(position)) for position in unit.dest_positions],
        "place": "word" if unit.unit == "word" else "position",
        "hover": hover,
        "rowHover": [row_hover(label) for label in hover],
        "map": frame(map_frame(unit)),
        "row": frame(layer_frame(unit.layers, source_axis(unit))),
    }


def _effect(effect: Effect) -> Json:
    return frame(effect_frame(effect)) | {
        "label": effect_name(effect),
        "z": rounded(effect.values, SHOWN_DIGITS),
        "target": effect.target,
        "sources": effect_labels(effect),
        "hovertemplate": EFFECT_HOVER,
        "scale": effect_scale(effect),
    }


def frame(parts: tuple[Json, Json]) -> Json:
    """A figure's frame without the room for a title, which the page has elsewhere."""
    trace, layout = parts
    return {"trace": trace, "layout": layout | {"height": layout["height"] - TITLE_HEIGHT}}


def _agreement(report: Report, effect: str) -> list[Json]:
    """One line per method: its label, and [rho, low, high] in each layer of the report, as the page rounds them."""
    lines = []
    for name, agreement in report.agreements[effect].items():
        ranks = dict(zip(agreement.layers, zip(agreement.rho, agreement.low, agreement.high, strict=True), strict=True))
        layers = [[round(rank, 2) for rank in ranks.get(layer, (nan,) * 3)] for layer in report.value_zeroing.layers]
        lines.append({"name": name, "label": report.comparison[name].label, "n": agreement.n, "layers": layers})
    return lines


def _table(report: Report) -> list[Json]:
    """One line per method: its label, and [entropy, own token, special tokens, rank with Value Zeroing] by layer."""
    rows = {(row["method"], row["layer"]): row for row in report.table}

    def cells(name: str, layer: int) -> list[float]:
        row = rows.get((name, layer), {})
        averages = [float(f"{row.get(column, nan):.{SHOWN_DIGITS}g}") for column in AVERAGES]
        return [*averages, round(row.get("rank_with_value_zeroing", nan), 2)]

    layers = report.value_zeroing.layers
    return [
        {"name": name, "label": report.comparison[name].label, "layers": [cells(name, layer) for layer in layers]}
        for name in report.comparison
    ]


def _flow(scores: Scores, units: tuple[str, ...]) -> Json:
    """The flow graph without its lines: what is around it, by unit, and its bounds."""
    by_unit = {unit: _over(unit, scores) for unit in units}
    return {
        "layouts": {
            unit: flow_axes(over.src_tokens, source_places(over), scores.layers, over.unknown_sources)
            for unit, over in by_unit.items()
        },
        "bounds": THRESHOLDS,
        "start": FLOW_START,
        "labelledAll": LABELLED_ALL,
        "nodes": [SMALLEST_NODE, LARGEST_NODE],
        "stub": STUB,
    }


def theme_data(theme: Theme) -> Json:
    """A theme's colours for the script."""
    return {
        "lines": line_styles(THRESHOLDS, theme),
        "template": template(theme).to_plotly_json(),
        "sequential": theme.sequential_ramp(),
        "sequentialSqrt": theme.sequential_ramp("sqrt"),
        "diverging": theme.diverging_ramp(),
        "accent": theme.accent,
        "mark": theme.mark,
        "line": theme.line,
        "panel": theme.panel,
    }
