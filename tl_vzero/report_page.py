"""The report as one HTML page that works offline: header in HTML, maps drawn in the browser from embedded numbers."""

import base64
import gzip
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from html import escape
from importlib.resources import files
from typing import Any

import torch
from jaxtyping import Float
from plotly.offline import get_plotlyjs
from torch import Tensor

from tl_vzero.effects import Effect
from tl_vzero.plot.labels import hover_text, short, visible
from tl_vzero.plot.maps import (
    SLIDER_HEIGHT,
    VALUE_NAMES,
    effect_map,
    heatmap,
    map_hover,
    rounded,
    row_hover,
    target_row,
)
from tl_vzero.plot.theme import DARK, FONT, LIGHT, MONO, Theme, template
from tl_vzero.report import Report
from tl_vzero.scores import Scores

SHOWN_DIGITS = 4
STACK_ABOVE = 48
TITLE_HEIGHT = 50
EMPTY_ROWS_NAMED = 6
SCORE_OPTIONS = ("distance", "heads", "final_norm")  # those that change the scores; memory and batches do not
Json = dict[str, Any]


def render_page(report: Report) -> str:
    """Fill the page's template. Tokens and names are text wherever they appear, never markup.

    Numbers are embedded with the 4 significant digits that the page shows. The maps and plotly.js are
    packed (gzip, base64) and unpacked by the browser: a page of 128 tokens and 12 layers stays under 6 MB.
    """
    units = ["pieces"] if report.value_zeroing.word_ids is None else ["pieces", "words"]
    parts = {
        "title": escape(f"{short(visible(report.text), 60)} · {report.model} · tl_vzero"),
        "theme": _theme_css(),
        "style": _asset("page.css"),
        "script": _asset("page.js"),
        "header": _header(report),
        "prediction": _prediction(report),
        "empty": _empty_rows(report.value_zeroing),
        "effect_class": "" if report.effect is not None else "without-effect",
        "stacked": "stacked" if report.value_zeroing.n_positions > STACK_ABOVE else "",
        "words_off": "" if "words" in units else "disabled",
        "last_layer": str(len(report.value_zeroing.layers) - 1),
        "data": _script_json(_page_data(report, units)),
        "maps": pack(decimal_codes(list(_page_maps(units, report)))),
        "plotly": _packed_plotly(),
    }
    # One pass, so that a sentence with {{data}} in it is not filled in again.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _asset("page.html"))


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
def _packed_plotly() -> str:
    return pack(get_plotlyjs().encode())


def _asset(name: str) -> str:
    return files("tl_vzero").joinpath("assets", "report", name).read_text(encoding="utf-8")


def _script_json(data: Json) -> str:
    """JSON that no HTML parser can take for anything else, whatever a token holds; ASCII only."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _page_maps(units: Sequence[str], report: Report) -> Iterator[Tensor]:
    """The maps in the order in which the page reads them: unit, method, view."""
    for unit in units:
        for scores in (report.value_zeroing, report.attention):
            for view in (scores.normalized(), scores.rollout()):
                yield (view.words() if unit == "words" else view).values


def _page_data(report: Report, units: Sequence[str]) -> Json:
    scores = report.value_zeroing
    return {
        "layers": list(scores.layers),
        "target": report.target,
        "start": _first_destination(report),
        "units": {name: _unit(scores.words() if name == "words" else scores) for name in units},
        "wordOf": _word_of(scores),
        "scaleNames": {"layer": VALUE_NAMES["normalized"], "rollout": VALUE_NAMES["rollout"]},
        "hover": {
            "layer": [map_hover(f"layer {layer}") for layer in scores.layers],
            "rollout": [map_hover(f"rolled out up to layer {layer}") for layer in scores.layers],
        },
        "effect": None if report.effect is None else _effect(report.effect),
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
    """One unit's labels, and the layouts of its figures as the notebook draws them."""
    labels = list(zip(unit.dest_tokens, unit.dest_positions, strict=True))
    one_layer = replace(unit, values=unit.values[:1], layers=unit.layers[:1], stage="normalized")
    hover = [hover_text(token, position, unit.unit) for token, position in labels]
    return {
        "names": [visible(token) for token, _ in labels],
        "positions": list(unit.dest_positions),
        "place": "word" if unit.unit == "word" else "position",
        "hover": hover,
        "rowHover": [row_hover(label) for label in hover],
        "map": _frame(heatmap(one_layer).to_dict()),
        "row": _frame(target_row(replace(unit, stage="normalized"), unit.dest_positions[0]).to_dict()),
    }


def _effect(effect: Effect) -> Json:
    figure = effect_map(effect).to_dict()
    return {**_frame(figure), "z": rounded(effect.values, SHOWN_DIGITS), "target": effect.target}


def _frame(figure: Json) -> Json:
    """A figure without its numbers, title, slider and colours, which the page fills in or draws itself."""
    own = ("template", "title", "sliders", "coloraxis")
    layout = {k: v for k, v in figure["layout"].items() if k not in own}
    layout["height"] -= TITLE_HEIGHT + (SLIDER_HEIGHT if "sliders" in figure["layout"] else 0)
    trace = {k: v for k, v in figure["data"][0].items() if k not in ("z", "customdata")}
    if "customdata" in figure["data"][0]:
        trace["sources"] = figure["data"][0]["customdata"][0]
    return {"layout": layout, "trace": trace, "scale": figure["layout"]["coloraxis"]}


def _theme(theme: Theme) -> Json:
    return {
        "template": template(theme).to_plotly_json(),
        "sequential": theme.sequential_ramp(),
        "diverging": theme.diverging_ramp(),
        "accent": theme.accent,
        "mark": theme.mark,
    }


def _theme_css() -> str:
    fonts = f"--sans:{FONT};--mono:{MONO}"
    dark = f"@media (prefers-color-scheme:dark){{:root{{{_variables(DARK)}}}}}"
    return f":root{{{fonts};{_variables(LIGHT)}}}\n{dark}"


def _variables(theme: Theme) -> str:
    names = ("ink", "muted", "line", "page", "panel", "accent", "mark")
    return ";".join(f"--{name}:{getattr(theme, name)}" for name in names)


def _header(report: Report) -> str:
    facts = "".join(f"<div><dt>{escape(name)}</dt><dd>{value}</dd></div>" for name, value in _facts(report).items())
    return f'<p class="sentence">{_sentence(report)}</p>\n<dl class="facts">{facts}</dl>'


def _sentence(report: Report) -> str:
    """The text as it was written, the target marked where it can be found in it."""
    if report.target is not None:
        token = report.value_zeroing.dest_tokens[report.target].strip()
        found = list(re.finditer(rf"(?<!\w){re.escape(token)}(?!\w)", report.text))
        if token and len(found) == 1:
            before, after = report.text[: found[0].start()], report.text[found[0].end() :]
            return f"{_text(before)}<mark>{_text(token)}</mark>{_text(after)}"
    return _text(report.text)


def _text(text: str) -> str:
    lines = (visible(f"|{line}|")[1:-1] for line in text.split("\n"))
    return "<br>".join(escape(line) for line in lines)


def _token(token: str) -> str:
    return f"<bdi>{escape(visible(token))}</bdi>"


def _facts(report: Report) -> dict[str, str]:
    metadata = report.metadata
    scores = report.value_zeroing
    target = "none chosen"
    if report.target is not None:
        target = f"{_token(scores.dest_tokens[report.target])} at position {report.target}"
    given = {name: metadata.get("options", {}).get(name) for name in SCORE_OPTIONS}
    options = given | {"engine": metadata.get("engine"), "dtype": metadata.get("dtype")}
    shown = {name: value for name, value in options.items() if value not in (None, False)}
    return {
        "Model": f"{escape(report.model)}, {len(scores.layers)} layers, {scores.n_positions} tokens",
        "Target": target,
        "Options": escape(", ".join(f"{name.replace('_', ' ')} {value}" for name, value in shown.items())),
        "Versions": escape(", ".join(f"{name} {v}" for name, v in metadata.get("versions", {}).items())),
    }


def _prediction(report: Report) -> str:
    effect = report.effect
    if effect is None:
        return f'<p class="notice">{escape(report.no_effect_reason or "No prediction is shown.")}</p>'
    chips = "\n".join(
        f'<li><span class="word">{_token(token)}</span> <data value="{p}">{p:.{SHOWN_DIGITS}g}</data></li>'
        for token, p in effect.predicted
    )
    place = f"{_token(report.value_zeroing.dest_tokens[effect.target])} at position {effect.target}"
    return (
        f'<div class="prediction"><p>Predicted for {place}, with probability:</p><ul>{chips}</ul>'
        f"<p>Measured: {escape(visible(effect.metric))}, {effect.clean:.{SHOWN_DIGITS}g} in the clean run.</p></div>"
    )


def _empty_rows(scores: Scores) -> str:
    rows = scores.empty_rows
    if not rows:
        return ""
    named = ", ".join(f"layer {layer} position {dest}" for layer, dest in rows[:EMPTY_ROWS_NAMED])
    more = f" and {len(rows) - EMPTY_ROWS_NAMED} more" if len(rows) > EMPTY_ROWS_NAMED else ""
    return f'<p class="how">Empty rows of Value Zeroing, in which nothing moved: {named}{more}.</p>'
