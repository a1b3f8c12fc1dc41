"""A reproduction as one HTML page that works offline: what agrees with the paper, figures and tables."""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from html import escape
from importlib.resources import files
from math import isnan
from typing import Any

import plotly.graph_objects as go

from tl_vzero.evaluate.cue_alignment import MEASURES
from tl_vzero.evaluate.findings import MEASURE_NAMES, Finding, findings
from tl_vzero.evaluate.mass import PLACES
from tl_vzero.evaluate.reproduction import Reproduction
from tl_vzero.plot.evaluations import alignment_curves, compression_curves, control_curves, faithfulness_bars, mass_bars
from tl_vzero.plot.theme import DARK, FONT, LIGHT, MONO, Theme, template
from tl_vzero.registry import label_of
from tl_vzero.report.figures import packed_plotly, script_json
from tl_vzero.statistics import Correlation, Estimate

SIGNS = {"agrees": "✓", "does not agree": "✗", "undecided": "≈", "not measured": "–"}
ALL = "all"

Variants = dict[str, dict[str, Any]]
Row = Sequence[str]


def render_reproduction(found: Reproduction) -> str:
    """Fill the page's template; names and texts are text wherever they appear, never markup."""
    claims = findings(found)
    parts = {
        "title": escape(f"{found.metadata['model']} · the paper's evaluations · tl_vzero"),
        "theme": _theme_css(),
        "style": _asset("report", "page.css") + _asset("reproduction", "page.css"),
        "facts": _facts(found),
        "summary": _summary(claims),
        "paper_claims": _claims(each for each in claims if not each.control),
        "control_claims": _claims(each for each in claims if each.control),
        "measures": _options([(measure, MEASURE_NAMES[measure]) for measure in MEASURES]),
        "paradigms": _options([(each, "all sentences" if each == ALL else each) for each in _paradigms(found)]),
        "alignment_table": _alignment_table(found),
        "links": _links(found),
        "faithfulness": _faithfulness(found),
        "layers": _options([(str(layer), str(layer)) for layer in sorted({each.layer for each in found.mass.shares})]),
        "mass_table": _mass_table(found),
        "counts": _counts(found),
        "cues": _cues(found),
        "missing": _missing(found),
        "script": _asset("reproduction", "page.js"),
        "data": script_json(_page_data(found)),
        "plotly": packed_plotly(),
    }
    # One pass, so that a name with {{data}} in it is not filled in again.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _asset("reproduction", "page.html"))


def _asset(room: str, name: str) -> str:
    return files("tl_vzero").joinpath("assets", room, name).read_text(encoding="utf-8")


def _theme_css() -> str:
    fonts = f"--sans:{FONT};--mono:{MONO}"
    dark = f"@media (prefers-color-scheme:dark){{:root{{{_variables(DARK)}}}}}"
    return f":root{{{fonts};{_variables(LIGHT)}}}\n{dark}"


def _variables(theme: Theme) -> str:
    names = ("ink", "muted", "line", "page", "panel", "accent", "mark")
    return ";".join(f"--{name}:{getattr(theme, name)}" for name in names)


def _page_data(found: Reproduction) -> dict[str, Any]:
    """Every figure in every choice, light and dark; templates apart, as all figures share them."""
    alignment, controls, paradigms = found.alignment, found.controls, _paradigms(found)
    figures: dict[str, Variants] = {
        "alignment": {
            f"{measure}|{paradigm}": _both(partial(alignment_curves, alignment, measure=measure, paradigm=paradigm))
            for measure in MEASURES
            for paradigm in paradigms
        },
        "mass": {
            f"{layer}|{paradigm}": _both(partial(mass_bars, found.mass, layer, paradigm=paradigm))
            for layer in sorted({each.layer for each in found.mass.shares})
            for paradigm in paradigms
        },
        "controls": {
            measure: _both(
                partial(control_curves, alignment, controls.random_alignment, controls.distances, measure=measure)
            )
            for measure in MEASURES
        },
    }
    if found.probing is not None:
        named = [("this model", found.probing)]
        if controls.random_probing is not None:
            named.append(("random weights", controls.random_probing))
        figures["compression"] = {"": _both(partial(compression_curves, named))}
    if found.probing_paper is not None:
        as_paper = [("this model", found.probing_paper)]
        figures["compression-paper"] = {"": _both(partial(compression_curves, as_paper, found.published_compression))}
    if found.faithfulness is not None:
        figures["faithfulness"] = {
            paradigm: _both(partial(faithfulness_bars, found.faithfulness, paradigm=paradigm)) for paradigm in paradigms
        }
    templates = {theme.name: json.loads(template(theme).to_json()) for theme in (LIGHT, DARK)}
    return {"figures": figures, "templates": templates}


def _both(make: Callable[..., go.Figure]) -> dict[str, Any]:
    drawn = {}
    for theme in (LIGHT, DARK):
        figure = json.loads(make(theme=theme).to_json())
        figure["layout"].pop("template", None)
        drawn[theme.name] = figure
    return drawn


def _paradigms(found: Reproduction) -> list[str]:
    names = list(dict.fromkeys(cell.paradigm for cell in found.alignment.cells))
    return sorted(names, key=lambda name: name != ALL)


def _facts(found: Reproduction) -> str:
    data = found.metadata
    accuracy = "not measured" if found.accuracy is None else f"{_short(found.accuracy)}, n = {found.accuracy.n}"
    facts = {
        "Model": f"{data['model']}{', fine-tuned on the train half' if data['fine_tuned'] else ''}",
        "Sentences": f"{data['sentences']}: {data['evaluated_n']} evaluated ({data['evaluated']})",
        "Prefers the right form": accuracy,
        "Seed": str(data["seed"]),
        "Versions": ", ".join(f"{name} {version}" for name, version in data["versions"].items()),
    }
    return "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(fact)}</dd></div>" for name, fact in facts.items())


def _summary(claims: Iterable[Finding]) -> str:
    verdicts = [each.verdict for each in claims if not each.control]
    told = ", ".join(f"{verdict}: {verdicts.count(verdict)}" for verdict in SIGNS if verdict in verdicts)
    return escape(f"Of {len(verdicts)} claims of the paper that are tested here, {told}.")


def _claims(claims: Iterable[Finding]) -> str:
    return "".join(
        f'<tr class="{each.verdict.replace(" ", "-")}"><td class="verdict"><span aria-hidden="true">'
        f"{SIGNS[each.verdict]}</span> {escape(each.verdict)}</td>"
        f"<td><b>{escape(each.claim)}</b><br>{escape(each.evidence)}.</td></tr>"
        for each in claims
    )


def _options(choices: Iterable[tuple[str, str]]) -> str:
    return "".join(f'<option value="{escape(value)}">{escape(label)}</option>' for value, label in choices)


def _table(caption: str, head: Row, rows: Iterable[Row]) -> str:
    """A table whose cells are texts; the first of each row is its heading."""
    names = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>' + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:]) + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table>'
        f"<caption>{escape(caption)}</caption><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _short(estimate: Estimate | None) -> str:
    if estimate is None:
        return "undefined"
    interval = "" if isnan(estimate.low) else f" [{estimate.low:.3f}, {estimate.high:.3f}]"
    return f"{estimate.mean:.3f}{interval}"


def _interval_of(each: Correlation) -> str:
    if isnan(each.value):
        return "undefined"
    interval = "" if isnan(each.low) else f" [{each.low:.2f}, {each.high:.2f}]"
    return f"{each.value:.2f}{interval}"


def _alignment_table(found: Reproduction) -> str:
    cells = [cell for cell in found.alignment.cells if cell.paradigm == ALL and cell.measure == "dot"]
    layers = list(dict.fromkeys(cell.layer for cell in cells))
    by_place = {(cell.method, cell.layer): cell for cell in cells}
    rows = []
    for method in dict.fromkeys(cell.method for cell in cells):
        row = [label_of(method)]
        for layer in layers:
            cell = by_place[method, layer]
            beside = "" if cell.published is None else f" (published {cell.published:.2f})"
            row.append(f"{_short(cell.aligned)}{beside}")
        rows.append(row)
    n = cells[0].aligned.n
    return _table(
        f"Dot product with the cue, all {n} sentences: mean and 95 % interval",
        ["method", *(f"layer {layer}" for layer in layers)],
        rows,
    )


def _links(found: Reproduction) -> str:
    if not found.links:
        return '<p class="how">No correlation: it needs three layers and a probing.</p>'
    n = found.links[0].pearson.n
    rows: dict[str, list[str]] = {}
    for link in found.links:
        rows.setdefault(link.method, [label_of(link.method)]).extend(
            [_interval_of(link.pearson), _interval_of(link.spearman)]
        )
    head = ["method", *(f"{kind}, {MEASURE_NAMES[m]}" for m in MEASURES for kind in ("Pearson", "Spearman"))]
    caption = f"Cue alignment against compression over {n} layers; {n} layers are weak evidence, as the intervals show"
    return _table(caption, head, rows.values())


def _faithfulness(found: Reproduction) -> str:
    faithful = found.faithfulness
    if faithful is None:
        return f'<p class="how">Not measured: {escape(found.missing.get("faithfulness", "not computed"))}.</p>'
    aopc = {(curve.method, curve.kind): curve.aopc for curve in faithful.curves if curve.paradigm == ALL}
    rows = [
        [
            label_of(each.method),
            _short(each.rho),
            "0" if each.rho is None else str(each.rho.n),
            str(each.undefined),
            f"layer {each.layer}, {'rolled out' if each.rolled_out else 'by itself'}",
            _short(aopc.get((each.method, "comprehensiveness"))),
            _short(aopc.get((each.method, "sufficiency"))),
        ]
        for each in faithful.correlations
        if each.paradigm == ALL
    ]
    head = [
        "method",
        "blank-out ρ",
        "n",
        "undefined",
        "row",
        "comprehensiveness (high is good)",
        "sufficiency (low is good)",
    ]
    conventions = ", ".join(
        f"{name.replace('_', ' ')} {value}" for name, value in faithful.settings["conventions"].items()
    )
    caption = f"Mean p(right form) {faithful.p_clean:.3f} of whole sentences; conventions: {conventions}"
    return _table(caption, head, rows)


def _mass_table(found: Reproduction) -> str:
    shares = {(each.method, each.layer, each.place): each.share for each in found.mass.shares if each.paradigm == ALL}
    rows = [
        [f"{label_of(method)}, layer {layer}", *(f"{shares[method, layer, place].mean:.3f}" for place in PLACES)]
        for method, layer in dict.fromkeys((method, layer) for method, layer, _ in shares)
    ]
    return _table("Mean share of the target's row, all sentences", ["method and layer", *PLACES], rows)


def _counts(found: Reproduction) -> str:
    stages: Sequence[Mapping[str, Any]] = found.metadata["filters"]
    evaluated: Mapping[str, int] = found.metadata["evaluated_counts"]
    rows = [
        [paradigm, *(str(stage["kept"][paradigm]) for stage in stages), str(evaluated.get(paradigm, 0))]
        for paradigm in stages[0]["kept"]
    ]
    total = [ALL, *(str(sum(stage["kept"].values())) for stage in stages), str(found.metadata["evaluated_n"])]
    halves = found.metadata["halves"]
    caption = (
        f"Sentences left at each filter; split by seed {found.metadata['split_seed']} into "
        f"{halves['train']} train and {halves['test']} test; evaluated: {found.metadata['evaluated']}"
    )
    return _table(caption, ["paradigm", *(str(stage["name"]) for stage in stages), "evaluated"], [*rows, total])


def _cues(found: Reproduction) -> str:
    check = found.cue_check
    if check is None:
        reason = escape(found.missing.get("cues", "not computed"))
        return f'<p class="how">Cues were not compared with a parse: {reason}.</p>'
    rows = [[each.paradigm, *map(str, (each.parsed, each.same, each.other, each.none))] for each in check.counts]
    caption = "Cues by rule, which are evaluated, beside those of a parse; where they differ: cue_disagreements.csv"
    return _table(caption, ["paradigm", "parsed", "same cue", "another word", "no cue found"], rows)


def _missing(found: Reproduction) -> str:
    reasons = {**found.missing, **{label_of(name): why for name, why in found.alignment.left_out.items()}}
    if not reasons:
        return ""
    listed = "".join(f"<li><b>{escape(name)}</b>: {escape(why)}.</li>" for name, why in reasons.items())
    return f'<div class="how absent"><p>Not measured:</p><ul>{listed}</ul></div>'
