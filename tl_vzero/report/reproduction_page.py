"""A reproduction as one HTML page that works offline: what agrees with the paper, figures and tables."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from math import isnan
from typing import Any

import plotly.graph_objects as go

from tl_vzero.evaluate.cue_alignment import MEASURES, Alignment
from tl_vzero.evaluate.findings import MEASURE_NAMES, findings, findings_by_baseline
from tl_vzero.evaluate.mass import PLACES
from tl_vzero.evaluate.protocol import Reproduction
from tl_vzero.evaluate.removal import PredictionMeasure
from tl_vzero.plot.evaluations import (
    PREDICTION_TITLES,
    alignment_curves,
    compression_curves,
    control_curves,
    faithfulness_bars,
    knockout_curves,
    mass_bars,
    removal_curves,
)
from tl_vzero.plot.pages import rendered
from tl_vzero.plot.theme import DARK, LIGHT, template
from tl_vzero.registry import label_of
from tl_vzero.report.figures import packed_plotly
from tl_vzero.statistics import Correlation, Estimate

SIGNS = {"agrees": "✓", "does not agree": "✗", "undecided": "≈", "not measured": "–"}
ALL = "all"
FAITHFULNESS_KINDS = {
    "comprehensiveness": "comprehensiveness (high is good)",
    "sufficiency": "sufficiency (low is good)",
}

OVER_BECAUSE = {
    "vocabulary": "the head was trained to predict words",
    "forms": "the head was trained on two forms: its p over the vocabulary means nothing",
}
REMOVAL_MEASURES: tuple[PredictionMeasure, ...] = ("p_forms", "accuracy")


@dataclass(frozen=True)
class Table:
    """A table whose cells are texts; the first of each row is its heading."""

    caption: str
    head: Sequence[str]
    rows: Iterable[Sequence[str]]


def render_reproduction(run: Reproduction) -> str:
    """Fill the page's template; names and texts are text wherever they appear, never markup."""
    claims = findings(run)
    verdicts = [claim.verdict for claim in claims if not claim.control]
    return rendered(
        "reproduction/page.html",
        run=run,
        facts=_facts(run),
        claims=claims,
        baselines=findings_by_baseline(run),
        signs=SIGNS,
        verdicts={verdict: verdicts.count(verdict) for verdict in SIGNS if verdict in verdicts},
        measures=[(measure, MEASURE_NAMES[measure]) for measure in MEASURES],
        paradigms=[(name, "all sentences" if name == ALL else name) for name in _paradigms(run)],
        layers=[(layer, layer) for layer in _layers(run)],
        alignment=_alignment_table(run),
        links=_links_table(run),
        faithfulness=_faithfulness_table(run),
        knockout=_knockout_table(run),
        removal_measures=[(measure, PREDICTION_TITLES[measure]) for measure in REMOVAL_MEASURES],
        removal=_removal_table(run),
        times=_times_table(run),
        mass=_mass_table(run),
        counts=_counts_table(run),
        cues=_cues_table(run),
        missing={**run.missing, **{label_of(name): reason for name, reason in run.alignment.left_out.items()}},
        data=_page_data(run),
        packed_plotly=packed_plotly(),
    )


def _page_data(run: Reproduction) -> dict[str, Any]:
    """Every figure in every choice, light and dark; templates apart, as all figures share them."""
    alignment, controls, paradigms = run.alignment, run.controls, _paradigms(run)
    untrained, distances = controls.random_alignment, controls.distances
    figures = {
        "alignment": _variants(alignment_curves, alignment, measure=MEASURES, paradigm=paradigms),
        "mass": _variants(mass_bars, run.mass, layer=_layers(run), paradigm=paradigms),
        "controls": _variants(control_curves, alignment, untrained, distances, measure=MEASURES),
    }
    if run.probing is not None:
        probed = {"this model": run.probing, "random weights": controls.random_probing}
        named = [(name, result) for name, result in probed.items() if result is not None]
        figures["compression"] = _variants(compression_curves, named)
    if run.probing_paper is not None:
        as_paper = [("this model", run.probing_paper)]
        figures["compression-paper"] = _variants(compression_curves, as_paper, run.published_compression)
    if run.faithfulness is not None:
        figures["faithfulness"] = _variants(faithfulness_bars, run.faithfulness, paradigm=paradigms)
    if run.knockout is not None:
        figures["knockout"] = _variants(knockout_curves, run.knockout, paradigm=paradigms)
    if run.removal is not None:
        figures["removal"] = _variants(removal_curves, run.removal, measure=REMOVAL_MEASURES, paradigm=paradigms)
    return {"figures": figures, "templates": {theme.name: template(theme).to_plotly_json() for theme in (LIGHT, DARK)}}


def _variants(draw: Callable[..., go.Figure], *results: Any, **choices: Sequence[Any]) -> dict[str, dict[str, Any]]:
    """A figure in every combination of its choices, by their names with | between them; "" without a choice."""
    return {
        "|".join(map(str, chosen)): _both(draw, *results, **dict(zip(choices, chosen, strict=True)))
        for chosen in product(*choices.values())
    }


def _both(draw: Callable[..., go.Figure], *results: Any, **choices: Any) -> dict[str, Any]:
    drawn = {}
    for theme in (LIGHT, DARK):
        figure = json.loads(draw(*results, theme=theme, **choices).to_json())
        figure["layout"].pop("template", None)
        drawn[theme.name] = figure
    return drawn


def _paradigms(run: Reproduction) -> list[str]:
    names = list(dict.fromkeys(cell.paradigm for cell in run.alignment.cells))
    return sorted(names, key=lambda name: name != ALL)


def _layers(run: Reproduction) -> list[int]:
    return sorted({share.layer for share in run.mass.shares})


def _facts(run: Reproduction) -> dict[str, str]:
    data = run.metadata
    return {
        "Model": f"{data['model']}{', fine-tuned on the train half' if data['fine_tuned'] else ''}",
        "Sentences": f"{data['sentences']}: {data['evaluated_n']} evaluated ({data['evaluated']})",
        "Prefers the right form": f"{_in_words(run.accuracy)}, n = {run.accuracy.n}"
        if run.accuracy
        else "not measured",
        "Seed": str(data["seed"]),
        "Versions": ", ".join(f"{name} {version}" for name, version in data["versions"].items()),
    }


def _in_words(measured: Estimate | Correlation | None) -> str:
    """A mean or a correlation with its interval, where it has one."""
    if measured is None:
        return "undefined"
    value, digits = (measured.mean, 3) if isinstance(measured, Estimate) else (measured.value, 2)
    if isnan(value):
        return "undefined"
    interval = "" if isnan(measured.low) else f" [{measured.low:.{digits}f}, {measured.high:.{digits}f}]"
    return f"{value:.{digits}f}{interval}"


def _by_method(caption: str, cells: Iterable[tuple[str, str, str]]) -> Table:
    """A row per method of (method, column, text), a column per layer or share."""
    rows: dict[str, dict[str, str]] = {}
    for method, column, text in cells:
        rows.setdefault(method, {})[column] = text
    columns = next(iter(rows.values()))
    return Table(
        caption,
        ["method", *columns],
        [[label_of(method), *(row[column] for column in columns)] for method, row in rows.items()],
    )


def _alignment_table(run: Reproduction) -> Table:
    cells = [cell for cell in run.alignment.cells if cell.paradigm == ALL and cell.measure == "dot"]

    def text(cell: Alignment) -> str:
        published = "" if cell.published is None else f" (published {cell.published:.2f})"
        return f"{_in_words(cell.aligned)}{published}"

    return _by_method(
        f"Dot product with the cue, all {cells[0].aligned.n} sentences: mean and 95 % interval",
        [(cell.method, f"layer {cell.layer}", text(cell)) for cell in cells],
    )


def _links_table(run: Reproduction) -> Table | None:
    if not run.links:
        return None
    rows: dict[str, list[str]] = {}
    for link in run.links:
        correlations = [_in_words(link.pearson), _in_words(link.spearman)]
        rows.setdefault(link.method, [label_of(link.method)]).extend(correlations)
    n = run.links[0].pearson.n
    return Table(
        f"Cue alignment against compression over {n} layers; {n} layers are weak evidence, as the intervals show",
        ["method", *(f"{kind}, {MEASURE_NAMES[m]}" for m in MEASURES for kind in ("Pearson", "Spearman"))],
        rows.values(),
    )


def _faithfulness_table(run: Reproduction) -> Table | None:
    faithful = run.faithfulness
    if faithful is None:
        return None
    aopc: dict[tuple[str, str], Estimate | None] = {
        (curve.method, curve.kind): curve.aopc for curve in faithful.curves if curve.paradigm == ALL
    }
    conventions = faithful.settings["conventions"].items()
    over = faithful.settings["conventions"]["over"]
    otherwise = "forms" if over == "vocabulary" else "vocabulary"
    return Table(
        f"Mean p(right form) {faithful.p_clean:.3f} of whole sentences; conventions: "
        + ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in conventions)
        + f" ({OVER_BECAUSE[over]})",
        ["method", "blank-out ρ", f"ρ over the {otherwise}", "n", "undefined", "row", *FAITHFULNESS_KINDS.values()],
        [
            [
                label_of(row.method),
                _in_words(row.rho),
                _in_words(row.rho_otherwise),
                "0" if row.rho is None else str(row.rho.n),
                str(row.undefined),
                f"layer {row.layer}, {'rolled out' if row.rolled_out else 'by itself'}",
                *(_in_words(aopc.get((row.method, kind))) for kind in FAITHFULNESS_KINDS),
            ]
            for row in faithful.correlations
            if row.paradigm == ALL
        ],
    )


def _knockout_table(run: Reproduction) -> Table | None:
    if run.knockout is None:
        return None
    rows = [row for row in run.knockout.correlations if row.paradigm == ALL]
    return _by_method(
        "Mean correlation and 95 % interval, by the layer from which a token is cut off",
        [(row.method, f"from layer {row.from_layer}", _in_words(row.rho)) for row in rows],
    )


def _removal_table(run: Reproduction) -> Table | None:
    if run.removal is None:
        return None
    rows = [row for row in run.removal.predictions if row.paradigm == ALL]
    return _by_method(
        "p(right form) over the two forms, by the share of the tokens that are left out: mean and 95 % interval",
        [(row.method, f"{row.share:.3g}" if row.share else "none", _in_words(row.p_forms)) for row in rows],
    )


def _times_table(run: Reproduction) -> Table | None:
    if run.removal is None or not run.removal.times:
        return None
    return Table(
        "Time to the prediction, over that of whole sentences: median and quartiles, measured where this page was made",
        ["tokens left out", "time", "quartiles", "repeats"],
        [
            [f"{one.removed} of {one.tokens}", f"{one.ratio:.2f}", f"{one.low:.2f} to {one.high:.2f}", str(one.repeats)]
            for one in run.removal.times
        ],
    )


def _mass_table(run: Reproduction) -> Table:
    shares = {(row.method, row.layer, row.place): row.share for row in run.mass.shares if row.paradigm == ALL}
    rows = [
        [f"{label_of(method)}, layer {layer}", *(f"{shares[method, layer, place].mean:.3f}" for place in PLACES)]
        for method, layer in dict.fromkeys((method, layer) for method, layer, _ in shares)
    ]
    return Table("Mean share of the target's row, all sentences", ["method and layer", *PLACES], rows)


def _counts_table(run: Reproduction) -> Table:
    data = run.metadata
    stages, evaluated, halves = data["filters"], data["evaluated_counts"], data["halves"]
    rows = [
        [paradigm, *(str(stage["kept"][paradigm]) for stage in stages), str(evaluated.get(paradigm, 0))]
        for paradigm in stages[0]["kept"]
    ]
    total = [ALL, *(str(sum(stage["kept"].values())) for stage in stages), str(data["evaluated_n"])]
    return Table(
        f"Sentences left at each filter; split by seed {data['split_seed']} into {halves['train']} train and "
        f"{halves['test']} test; evaluated: {data['evaluated']}",
        ["paradigm", *(str(stage["name"]) for stage in stages), "evaluated"],
        [*rows, total],
    )


def _cues_table(run: Reproduction) -> Table | None:
    if run.cue_check is None:
        return None
    return Table(
        "Cues by rule, which are evaluated, beside those of a parse; where they differ: cue_disagreements.csv",
        ["paradigm", "parsed", "same cue", "another word", "no cue found"],
        [[row.paradigm, *map(str, (row.parsed, row.same, row.other, row.none))] for row in run.cue_check.counts],
    )
