"""The report as one HTML page that works offline: text in HTML, maps drawn in the browser from packed numbers."""

import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from tl_vzero.effects.ablation import attribution_error
from tl_vzero.effects.measure import Effect, PatchingEffect
from tl_vzero.plot.export import SHARED
from tl_vzero.plot.maps import EFFECT_NAMES
from tl_vzero.plot.parts import short, visible
from tl_vzero.plot.theme import DARK, FONT, LIGHT, MONO, Theme
from tl_vzero.registry import label_of
from tl_vzero.report.figures import (
    SHOWN_DIGITS,
    decimal_codes,
    drawn_methods,
    pack,
    packed_plotly,
    page_data,
    script_json,
)
from tl_vzero.report.report import EFFECTS, Report
from tl_vzero.scores import Scores

# The patching panel in words: what is predicted, which effects there are, and what belongs to each.

EFFECT_TEXTS = {
    "zero_ablation": (
        "Zeroing the same values in the running model",
        "Orange: the measured value falls when this source's value vector is zeroed in this layer, so the source "
        "supported the prediction; violet: it rises.",
    ),
    "attribution_patching": (
        "Zeroing the same values, estimated by one backward pass",
        "The measured value is taken as linear in each value vector. Orange: the source supported the prediction; "
        "violet: it spoke against it.",
    ),
    "value_patching": (
        "Patching this sentence's values into the corrupted one",
        "The corrupted sentence runs with one value vector taken from this sentence. Violet: the measured value rises; "
        "orange: it falls.",
    ),
}


def token_html(token: str) -> str:
    """A token as text of the page, whatever it holds and whichever way it is written."""
    return f"<bdi>{escape(visible(token))}</bdi>"


def prediction(report: Report) -> str:
    """The likeliest tokens and what is measured; without a prediction, why there is none."""
    effect = report.effects.get("zero_ablation")
    if effect is None:
        reason = report.missing.get("zero_ablation", "none was measured")
        return f'<p class="notice">No prediction is shown: {escape(reason)}.</p>'
    chips = "\n".join(
        f'<li><span class="word">{token_html(token)}</span> <data value="{p}">{_number(p)}</data></li>'
        for token, p in effect.predicted
    )
    place = f"{token_html(report.value_zeroing.dest_tokens[effect.target])} at position {effect.target}"
    return (
        f'<div class="prediction"><p>Predicted for {place}, with probability:</p><ul>{chips}</ul>'
        f"<p>Measured: {escape(visible(effect.metric))}, {_number(effect.clean)} in the clean run.</p>"
        f"{_chooser(report)}</div>"
    )


def _chooser(report: Report) -> str:
    """The effects to choose from, those that are not there switched off."""
    first = next(name for name in EFFECTS if name in report.effects)
    choices = "\n".join(_choice(name, checked=name == first, off=name not in report.effects) for name in EFFECTS)
    return f'<div class="choice effects" role="radiogroup" aria-label="Effect">{choices}</div>'


def _choice(name: str, *, checked: bool, off: bool) -> str:
    state = " checked" if checked else " disabled" if off else ""
    radio = f'<input type="radio" name="effect" form="controls" value="{name}"{state}>'
    return f"<label>{radio}<span>{EFFECT_NAMES[name]}</span></label>"


def effect_texts(report: Report) -> dict[str, str]:
    """Title, reading and what else belongs to each effect, of which the page shows one; and why others are missing."""
    titles = {name: escape(EFFECT_TEXTS[name][0]) for name in report.effects}
    readings = {name: escape(EFFECT_TEXTS[name][1]) for name in report.effects}
    others = {name: _belonging(report, effect) for name, effect in report.effects.items()}
    missing = "".join(
        f'<p class="how">No {EFFECT_NAMES[name]}: {escape(reason)}.</p>' for name, reason in report.missing.items()
    )
    return {
        "effects_missing": missing,
        "effect_titles": _one_shown("span", titles),
        "effect_readings": _one_shown("span", readings),
        "effect_others": _one_shown("div", others),
    }


def _one_shown(tag: str, by_effect: dict[str, str]) -> str:
    return "".join(f'<{tag} data-effect="{name}" hidden>{html}</{tag}>' for name, html in by_effect.items())


def _belonging(report: Report, effect: Effect) -> str:
    if isinstance(effect, PatchingEffect):
        return _sentence_pair(effect)
    if effect.method == "attribution_patching":
        return _errors(effect, report.effects["zero_ablation"])
    return ""


def _sentence_pair(effect: PatchingEffect) -> str:
    """Both sentences token by token, marked where they differ."""
    ours, theirs = effect.src_tokens, effect.corrupted_tokens
    rows = (("This sentence", ours, theirs, effect.clean), ("Corrupted", theirs, ours, effect.corrupted))
    lines = "".join(
        f"<div><dt>{name}</dt><dd>{_tokens(own, other)}</dd>"
        f"<dd>{escape(visible(effect.metric))}: {_number(metric)}</dd></div>"
        for name, own, other, metric in rows
    )
    return f'<dl class="sentences">{lines}</dl>'


def _tokens(own: Sequence[str], other: Sequence[str]) -> str:
    shown = (
        token_html(token) if token == against else f"<mark>{token_html(token)}</mark>"
        for token, against in zip(own, other, strict=True)
    )
    return " ".join(shown)


def _errors(estimate: Effect, exact: Effect) -> str:
    lines = "".join(
        f'<tr><th scope="row">layer {row["layer"]}</th><td>{_number(row["max_abs"])}</td>'
        f"<td>{_percent(row['relative_rms'])}</td><td>{_rank(row['spearman'])}</td></tr>"
        for row in attribution_error(estimate, exact).to_dict("records")
    )
    return (
        '<div class="scroll"><table><caption>Its error against zero ablation</caption><thead><tr><th scope="col">layer'
        '</th><th scope="col">largest</th><th scope="col">RMS, share of the effect&#39;s</th>'
        f'<th scope="col">rank correlation</th></tr></thead><tbody>{lines}</tbody></table></div>'
    )


def _number(value: float) -> str:
    return f"{value:.{SHOWN_DIGITS}g}"


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %" if value == value else "–"


def _rank(value: float) -> str:
    return f"{value:.2f}" if value == value else "–"


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
