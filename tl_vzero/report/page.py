"""The report as one HTML page that works offline: text in HTML, maps drawn in the browser from packed numbers."""

import re
from collections.abc import Mapping
from html import escape
from importlib.resources import files
from typing import Any

from tl_vzero.plot.export import SHARED
from tl_vzero.plot.labels import short, visible
from tl_vzero.plot.maps import label_of
from tl_vzero.plot.theme import DARK, FONT, LIGHT, MONO, Theme
from tl_vzero.report.drawn import drawn_methods
from tl_vzero.report.figures import page_data
from tl_vzero.report.packed import decimal_codes, pack, packed_plotly, script_json
from tl_vzero.report.prediction import effect_texts, prediction, token_html
from tl_vzero.report.result import Report
from tl_vzero.scores import Scores

SCRIPTS = (
    "numbers.js",
    "figures.js",
    "shades.js",
    "tables.js",
    "texts.js",
    "strips.js",
    "flow.js",
    "page.js",
)
EMPTY_ROWS_NAMED = 6
SCORE_OPTIONS = ("distance", "heads", "final_norm")  # those that change the scores; memory and batches do not
Json = dict[str, Any]


def render_page(report: Report, *, shared_plotly: bool = False) -> str:
    """The report as a page of its own. Tokens and names are text wherever they appear, never markup.

    Numbers are embedded with the 4 significant digits that the page shows. The maps and plotly.js are
    packed (gzip, base64) and unpacked by the browser: a page of 128 tokens and 12 layers stays under 6 MB.
    With `shared_plotly` the page reads plotly.min.js from its folder.
    """
    payload = page_payload(report)
    plotly = f'<script type="text/plain" id="plotly-js">{packed_plotly()}</script>'
    return filled_page(
        {
            "title": escape(f"{short(visible(report.text), 60)} · {report.model} · tl_vzero"),
            "program": f"<script>\n{page_script('whole.js')}</script>",
            "data": script_json(payload["data"]),
            "maps": payload["maps"],
            "plotly": f'<script src="{SHARED}"></script>' if shared_plotly else plotly,
            "brand": "tl_vzero report",
            **payload["parts"],
        }
    )


def page_payload(report: Report) -> Json:
    """What the page's script shows: "data", "maps" (packed), and "parts", HTML by the places of the page."""
    scores = report.value_zeroing
    units = ("pieces",) if scores.word_ids is None else ("pieces", "words")
    # Where every word is one piece, the maps over words are those over pieces.
    mapped = units if len(units) == 2 and scores.words().n_positions < scores.n_positions else ("pieces",)
    drawn, absent = drawn_methods(report, mapped)
    maps = [values for unit in mapped for each in drawn for values in each.maps(unit)]
    parts = {
        "header": _header(report),
        "absent": _absent(absent),
        "empty": _empty_rows(scores),
        "prediction": prediction(report),
        **effect_texts(report),
    }
    return {
        "data": page_data(report, drawn, units, mapped),
        "maps": pack(decimal_codes(maps)),
        "parts": parts,
    }


def filled_page(parts: Mapping[str, str]) -> str:
    """The page's template with its places filled; places that are not given stay empty."""
    known = {"theme": _theme_css(), "style": page_asset("page.css"), **parts}
    # One pass, so that a sentence with {{data}} in it is not filled in again.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: known.get(match[1], ""), page_asset("page.html"))


def page_script(last: str) -> str:
    """The page's script, which ends with the part that says where reports come from."""
    parts = "\n".join(page_asset(name) for name in (*SCRIPTS, last))
    return f'"use strict";\n(async () => {{\n{parts}}})();\n'


def page_asset(name: str) -> str:
    """A file of the page."""
    return files("tl_vzero").joinpath("assets", "report", name).read_text(encoding="utf-8")


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


def _facts(report: Report) -> dict[str, str]:
    metadata = report.metadata
    scores = report.value_zeroing
    target = "none chosen"
    if report.target is not None:
        target = f"{token_html(scores.dest_tokens[report.target])} at position {report.target}"
    given = {name: metadata.get("options", {}).get(name) for name in SCORE_OPTIONS}
    options = given | {"engine": metadata.get("engine"), "dtype": metadata.get("dtype")}
    shown = {name: value for name, value in options.items() if value not in (None, False)}
    return {
        "Model": f"{escape(report.model)}, {len(scores.layers)} layers, {scores.n_positions} tokens",
        "Target": target,
        "Options": escape(", ".join(f"{name.replace('_', ' ')} {value}" for name, value in shown.items())),
        "Versions": escape(", ".join(f"{name} {v}" for name, v in metadata.get("versions", {}).items())),
    }


def _absent(reasons: dict[str, str]) -> str:
    if not reasons:
        return ""
    named = "".join(f"<li><b>{escape(label_of(name))}</b>: {escape(why)}.</li>" for name, why in reasons.items())
    return f'<div class="how absent"><p>Not in the chooser:</p><ul>{named}</ul></div>'


def _empty_rows(scores: Scores) -> str:
    rows = scores.empty_rows
    if not rows:
        return ""
    named = ", ".join(f"layer {layer} position {dest}" for layer, dest in rows[:EMPTY_ROWS_NAMED])
    more = f" and {len(rows) - EMPTY_ROWS_NAMED} more" if len(rows) > EMPTY_ROWS_NAMED else ""
    return f'<p class="how">Empty rows of Value Zeroing, in which nothing moved: {named}{more}.</p>'
