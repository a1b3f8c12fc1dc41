"""Figures of the evaluations: curves over layers like the paper's, bars with intervals, and where the mass goes."""

from collections.abc import Sequence
from math import isnan
from typing import Any, TypeVar, Unpack

import plotly.graph_objects as go

from tl_vzero.choices import one_of
from tl_vzero.errors import InputError, unknown_name
from tl_vzero.evaluate.cue_alignment import Alignment, CueAlignment, Measure
from tl_vzero.evaluate.faithfulness import BlankOut, Faithfulness
from tl_vzero.evaluate.knockout_agreement import KnockoutAgreement, KnockoutCorrelation
from tl_vzero.evaluate.mass import PLACES, Mass
from tl_vzero.evaluate.planted import Measure as Recovery
from tl_vzero.evaluate.planted import PlantedTruth
from tl_vzero.evaluate.probing import EMBEDDINGS, ProbingResult
from tl_vzero.evaluate.removal import PredictionMeasure, Removed, TokenRemoval
from tl_vzero.evaluate.training import Reading, TrainingChanges
from tl_vzero.plot.parts import Look, drawn, plotly_text
from tl_vzero.plot.theme import LIGHT, Theme, template
from tl_vzero.registry import label_of
from tl_vzero.statistics import Estimate

# Told apart with any kind of colour vision, by colour and by sign; readable on light and on dark.
COLOURS = ("#2f7ed8", "#d1690e", "#1a9a78", "#c05a98", "#8f8412", "#7a66d9", "#3d9cc4", "#8d6e63")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "triangle-down", "star")
PLACE_COLOURS = {"cue": "#2f7ed8", "attractor": "#d1690e", "special": "#8d6e63", "target": "#1a9a78", "rest": "#9aa7b8"}
GREY, STRESSED_WIDTH = "#9aa7b8", 3
LABEL_STEP = 1.25  # from a line's name to the next, in font sizes
MEASURE_TITLES: dict[Measure, str] = {"dot": "share of the row on the cue", "average_precision": "average precision"}
PREDICTION_TITLES: dict[PredictionMeasure, str] = {
    "accuracy": "accuracy",
    "p_forms": "p(right form), over the two forms",
    "p_vocabulary": "p(right form), over the vocabulary",
    "beside_random": "p(right form), minus that of random removal",
}
RECOVERY_TITLES: dict[Recovery, str] = {"ap": "average precision", "auroc": "AUROC"}
CURVES_HEIGHT = 460
BAR_HEIGHT = 26
DIGITS = 4

OfParadigm = TypeVar("OfParadigm", Alignment, BlankOut, KnockoutCorrelation, Removed)


def alignment_curves(
    alignment: CueAlignment,
    *,
    measure: Measure = "dot",
    paradigm: str = "all",
    highlight: str | None = None,
    theme: Theme = LIGHT,
    **look: Unpack[Look],
) -> go.Figure:
    """Cue alignment by layer, a line for each method; dashed, chance and the published figures.

    Where there are more methods than colours, `highlight` (default: the first) has a colour and all others are grey,
    each with its name at its end.
    Raises InputError for a paradigm or a method that was not evaluated.

    >>> import tl_vzero
    >>> from tl_vzero.data.agreement_mini import agreement_examples
    >>> from tl_vzero.evaluate.cue_alignment import cue_alignment
    >>> model = tl_vzero.load_model("agreement-mini")
    >>> alignment = cue_alignment(model, agreement_examples()[:4], ["value_zeroing", "attention"])
    >>> [trace.name for trace in alignment_curves(alignment).data]
    ['Value Zeroing', 'Raw attention', 'chance']
    """
    lines = _by_method([cell for cell in alignment.cells if cell.measure == measure], paradigm)
    figure = _curves(MEASURE_TITLES[measure], theme, look)
    first = next(iter(lines)) if highlight is None else highlight
    if first not in lines:
        raise unknown_name("method", first, lines)
    crowded = highlight is not None or len(lines) > len(COLOURS)
    # What is drawn last lies on top.
    for index, method in enumerate(sorted(lines, key=first.__eq__) if crowded else lines):
        cells = lines[method]
        layers = [cell.layer for cell in cells]
        line = _line(label_of(method), layers, [cell.aligned for cell in cells], index)
        if crowded:
            line.update(_stressed(COLOURS[0]) if method == first else _grey())
        figure.add_trace(line)
        if any(cell.published is not None for cell in cells):
            published = _dashed(f"{label_of(method)}, published", layers, [c.published for c in cells], line.line.color)
            figure.add_trace(published.update(legendgroup=label_of(method), showlegend=False))
    cells = lines[first]
    figure.add_trace(_dashed("chance", [cell.layer for cell in cells], [cell.chance for cell in cells], theme.muted))
    return _labelled_at_ends(figure, theme) if crowded else figure


def planted_map(
    truth: PlantedTruth, *, measure: Recovery = "ap", theme: Theme = LIGHT, **look: Unpack[Look]
) -> go.Figure:
    """How well methods, in rows, find the flows planted in models, in columns: average precision, or AUROC.

    Raises InputError for another measure.

    >>> from tl_vzero.evaluate.planted import planted_truth
    >>> from tl_vzero.evaluate.planted_models import planted_models
    >>> figure = planted_map(planted_truth(["attention"], planted_models()[:1], n_inputs=2))
    >>> list(figure.data[0].y)
    ['Oracle', 'Raw attention']
    """
    table = truth.summary(measure)
    cells = go.Heatmap(
        x=[plotly_text(name) for name in table.columns],
        y=[plotly_text(name) for name in table.index],
        z=table.to_numpy(),
        zmin=0,
        zmax=1,
        colorscale=theme.sequential_ramp(),
        hovertemplate="%{y}<br>%{x}<br>%{z:.3f}<extra></extra>",
        colorbar={"title": RECOVERY_TITLES[measure]},
    )
    height = BAR_HEIGHT * len(table) + 220
    layout = {"template": template(theme), "height": height, "yaxis": {"autorange": "reversed"}}
    return drawn(cells, layout, **look).update_xaxes(tickangle=-50)


def removal_curves(
    removal: TokenRemoval,
    *,
    measure: PredictionMeasure = "p_forms",
    paradigm: str = "all",
    theme: Theme = LIGHT,
    **look: Unpack[Look],
) -> go.Figure:
    """What stays of the prediction by the share of tokens left out: a line for each method; dotted, random removal.

    Raises InputError for a measure or a paradigm that was not evaluated.

    >>> import tl_vzero
    >>> from tl_vzero.data.agreement_mini import agreement_examples
    >>> from tl_vzero.evaluate.removal import token_removal
    >>> model = tl_vzero.load_model("agreement-mini")
    >>> removal = token_removal(model, agreement_examples()[:4], ["value_zeroing"], repeats=0)
    >>> [trace.name for trace in removal_curves(removal).data]
    ['Value Zeroing', 'Random']
    """
    one_of("measure", measure, PREDICTION_TITLES)
    figure = _curves(PREDICTION_TITLES[measure], theme, look)
    for index, (method, rows) in enumerate(_by_method(removal.predictions, paradigm).items()):
        shares = [round(100 * row.share, 1) for row in rows]
        line = _line(label_of(method), shares, [getattr(row, measure) for row in rows], index, "share")
        if method == "random":
            line.update(line={"color": theme.muted, "dash": "dot"}, marker_color=theme.muted, error_y_color=theme.muted)
        figure.add_trace(line)
    figure.update_xaxes(title_text=f"% of tokens left out from block {removal.settings['layer']} on", dtick=25)
    return figure.update_yaxes(rangemode="normal")


def control_curves(
    alignment: CueAlignment,
    random_weights: CueAlignment | None,
    distances: CueAlignment | None,
    *,
    measure: Measure = "dot",
    theme: Theme = LIGHT,
    **look: Unpack[Look],
) -> go.Figure:
    """Value Zeroing's cue alignment by layer beside its controls: random weights, shuffled cues, other distances."""
    figure = _curves(MEASURE_TITLES[measure], theme, look)
    cells = _cells(alignment, "value_zeroing", measure)
    layers = [cell.layer for cell in cells]
    lines: dict[str, list[Estimate | None]] = {
        "Value Zeroing": [cell.aligned for cell in cells],
        "shuffled cues": [cell.shuffled for cell in cells],
    }
    if random_weights is not None:
        lines["random weights"] = [cell.aligned for cell in _cells(random_weights, "value_zeroing", measure)]
    if distances is not None:
        for name in dict.fromkeys(cell.method for cell in distances.cells):
            # Cosine is Value Zeroing itself.
            if not name.endswith(", cosine"):
                label = name.removeprefix("value_zeroing, ").replace("_", " ")
                lines[f"{label} distance"] = [cell.aligned for cell in _cells(distances, name, measure)]
    for index, (name, estimates) in enumerate(lines.items()):
        figure.add_trace(_line(name, layers, estimates, index))
    figure.add_trace(_dashed("chance", layers, [cell.chance for cell in cells], theme.muted))
    return figure


def compression_curves(
    probing: Sequence[tuple[str, ProbingResult]],
    published: Sequence[float] = (),
    *,
    theme: Theme = LIGHT,
    **look: Unpack[Look],
) -> go.Figure:
    """Compression by layer with intervals, a line for each named result; dashed, the published figures.

    `published` counts blocks from 0.
    """
    figure = _curves("compression", theme, look)
    for index, (name, result) in enumerate(probing):
        estimates: list[Estimate | None] = [
            Estimate(*bounds, result.n) for bounds in zip(result.compression, result.low, result.high, strict=True)
        ]
        figure.add_trace(_line(name, list(result.layers), estimates, index))
    if published:
        figure.add_trace(_dashed("published", list(range(len(published))), list(published), theme.mark))
    layers = sorted({layer for _, result in probing for layer in result.layers})
    figure.update_xaxes(tickvals=layers, ticktext=["embeddings" if n == EMBEDDINGS else str(n) for n in layers])
    return figure


def faithfulness_bars(
    faithfulness: Faithfulness, *, paradigm: str = "all", theme: Theme = LIGHT, **look: Unpack[Look]
) -> go.Figure:
    """Mean rank correlation with blank-out: one bar with its interval per method; diamonds, the published figures.

    Raises InputError for a paradigm that was not evaluated.
    """
    correlations = [row for rows in _by_method(faithfulness.correlations, paradigm).values() for row in rows]
    labels = [label_of(row.method) for row in correlations]
    figure = _bars("mean Spearman correlation with blank-out", len(labels), theme, look)
    rhos = [row.rho for row in correlations]
    errors = _errors(rhos) | {"color": theme.ink, "thickness": 1.5}
    figure.add_trace(_bar("measured", labels, rhos, COLOURS[0], "%{y}", error_x=errors))
    if any(row.published is not None for row in correlations):
        marker = {"symbol": "diamond-open", "size": 10, "color": theme.mark}
        published = [row.published for row in correlations]
        figure.add_trace(go.Scatter(mode="markers", y=labels, x=published, marker=marker, name="published"))
    figure.update_xaxes(zeroline=True, zerolinecolor=theme.muted)
    return figure


def knockout_curves(
    agreement: KnockoutAgreement, *, paradigm: str = "all", theme: Theme = LIGHT, **look: Unpack[Look]
) -> go.Figure:
    """Mean rank correlation of rolled-out rows with knockout, by the layer it begins at: a line for each method.

    Raises InputError for a paradigm that was not evaluated.
    """
    figure = _curves("mean Spearman correlation with knockout", theme, look)
    for index, (method, rows) in enumerate(_by_method(agreement.correlations, paradigm).items()):
        layers, rhos = [row.from_layer for row in rows], [row.rho for row in rows]
        figure.add_trace(_line(label_of(method), layers, rhos, index, "from layer"))
    figure.update_xaxes(title_text="cut off from layer")
    return figure.update_yaxes(zeroline=True, zerolinecolor=theme.muted)


def mass_bars(
    mass: Mass, layer: int, *, paradigm: str = "all", theme: Theme = LIGHT, **look: Unpack[Look]
) -> go.Figure:
    """Where each method's mass lies in one layer: stacked shares of the target's row.

    Raises InputError for a layer or a paradigm that was not evaluated.
    """
    chosen = {
        (row.method, row.place): row.share for row in mass.shares if (row.layer, row.paradigm) == (layer, paradigm)
    }
    if not chosen:
        layers = ", ".join(map(str, sorted({row.layer for row in mass.shares})))
        paradigms = ", ".join(dict.fromkeys(row.paradigm for row in mass.shares))
        raise InputError(f"nothing of layer {layer} in {paradigm!r}: expected layers {layers} and one of {paradigms}")
    methods = list(dict.fromkeys(method for method, _ in chosen))
    labels = [label_of(method) for method in methods]
    figure = _bars("mean share of the target's row", len(methods), theme, look)
    for place in PLACES:
        shares = [chosen[method, place] for method in methods]
        figure.add_trace(_bar(place, labels, shares, PLACE_COLOURS[place], f"%{{y}}, {place}"))
    figure.update_layout(barmode="stack")
    figure.update_xaxes(range=[0, 1])
    return figure


def training_curves(
    changes: TrainingChanges,
    layer: int,
    *,
    place: str = "cue",
    group: str = "all",
    reading: Reading = "same input",
    theme: Theme = LIGHT,
    **look: Unpack[Look],
) -> go.Figure:
    """How the share on one place changed since the first model, along the later ones: a line for each head of a layer.

    Raises InputError for a layer, a place, a group or a reading that is not among the changes.

    >>> import tl_vzero
    >>> from tl_vzero.data.agreement_mini import agreement_examples
    >>> from tl_vzero.evaluate.training import training_changes
    >>> model = tl_vzero.load_model("agreement-mini")
    >>> changes = training_changes({"before": model, "after": model}, agreement_examples()[:2])
    >>> [trace.name for trace in training_curves(changes, 1).data]
    ['head 0', 'head 1', 'head 2', 'head 3']
    """
    wanted = {"layer": layer, "place": place, "group": group, "reading": reading}
    for kind, name in wanted.items():
        names = dict.fromkeys(str(getattr(one, kind)) for one in changes.changes)
        if str(name) not in names:
            raise unknown_name(kind, str(name), names)
    cells = [one for one in changes.changes if all(getattr(one, kind) == name for kind, name in wanted.items())]
    checkpoints = list(dict.fromkeys(one.checkpoint for one in cells))
    places = list(range(1, len(checkpoints) + 1))
    where = "elsewhere" if place == "elsewhere" else f"on {place}"
    figure = _curves(f"change of the share {where}, layer {layer}", theme, look)
    for head in dict.fromkeys(one.head for one in cells):
        estimates = [one.change for one in cells if one.head == head]
        figure.add_trace(_line(f"head {head}", places, estimates, head, along="model"))
    labels = [plotly_text(name) for name in checkpoints]
    return figure.update_xaxes(title_text="model", tickvals=places, ticktext=labels)


def _labelled_at_ends(figure: go.Figure, theme: Theme) -> go.Figure:
    """Write the name of each line right of its end, apart from each other, in place of the legend."""
    lines = [line for line in figure.data if not line.name.endswith(", published")]
    size = figure.layout.template.layout.font.size
    top = max(value for line in figure.data for value in line.y if value is not None) * 1.08
    first, last = lines[0].x[0], lines[0].x[-1]
    step = top * LABEL_STEP * size / (figure.layout.height - 60)
    floor = -step
    for end, line in sorted(((line.y[-1] or 0.0, line) for line in lines), key=lambda pair: pair[0]):
        floor = max(end, floor + step)
        is_first = line.line.width == STRESSED_WIDTH
        figure.add_annotation(
            {"x": last, "y": end, "ax": last * 1.02 + 0.1, "ay": floor, "axref": "x", "ayref": "y", "xanchor": "left"},
            text=f"<b>{line.name}</b>" if is_first else line.name,
            font={"size": size, "color": line.line.color if is_first else theme.muted},
            arrowhead=0,
            arrowwidth=0.7,
            arrowcolor=GREY,
        )
    room = max(len(line.name) for line in lines) * size * 0.6 + 24
    return (
        figure.update_layout(showlegend=False, margin_r=room)
        .update_yaxes(range=[0, max(top, floor + step)])
        .update_xaxes(range=[first - 0.2, last + 0.05])
    )


def _stressed(colour: str) -> dict[str, Any]:
    marker = {"color": colour, "symbol": "circle"}
    return {"line": {"color": colour, "width": STRESSED_WIDTH}, "marker": marker, "error_y_color": colour}


def _grey() -> dict[str, Any]:
    return {"line": {"color": GREY, "width": 1.2}, "marker": {"color": GREY, "size": 4}, "error_y_visible": False}


def _by_method(rows: Sequence[OfParadigm], paradigm: str) -> dict[str, list[OfParadigm]]:
    """The rows of a paradigm, by method; raises InputError for a paradigm that was not evaluated."""
    by_method: dict[str, list[OfParadigm]] = {}
    for row in rows:
        if row.paradigm == paradigm:
            by_method.setdefault(row.method, []).append(row)
    if not by_method:
        paradigms = ", ".join(dict.fromkeys(row.paradigm for row in rows))
        raise InputError(f"unknown paradigm {paradigm!r}: expected one of {paradigms}")
    return by_method


def _cells(alignment: CueAlignment, method: str, measure: Measure) -> list[Alignment]:
    return [cell for cell in alignment.cells if (cell.method, cell.measure, cell.paradigm) == (method, measure, "all")]


def _figure(x_title: str, theme: Theme, height: int, look: Look) -> go.Figure:
    legend = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "traceorder": "normal"}
    margin = {"l": 24, "r": 24, "t": 12, "b": 48}
    layout = {"template": template(theme), "height": height, "margin": margin, "legend": legend}
    return drawn(None, layout, **look).update_xaxes(title_text=x_title)


def _curves(y_title: str, theme: Theme, look: Look) -> go.Figure:
    figure = _figure("layer", theme, CURVES_HEIGHT, look)
    figure.update_layout(legend={"orientation": "v", "x": 1.02, "xanchor": "left", "y": 1, "yanchor": "top"})
    figure.update_yaxes(title_text=y_title, showgrid=True, gridcolor=theme.line, rangemode="tozero")
    return figure.update_xaxes(dtick=1)


def _bars(x_title: str, bars: int, theme: Theme, look: Look) -> go.Figure:
    return _figure(x_title, theme, BAR_HEIGHT * bars + 110, look).update_yaxes(autorange="reversed")


def _bar(
    name: str, labels: list[str], estimates: Sequence[Estimate | None], colour: str, hover: str, **options: Any
) -> go.Bar:
    return go.Bar(
        orientation="h",
        y=labels,
        x=_means(estimates),
        marker={"color": colour},
        name=name,
        customdata=[_words(estimate) for estimate in estimates],
        hovertemplate=f"{hover}<br>%{{customdata}}<extra></extra>",
        **options,
    )


def _line(
    name: str, places: Sequence[int | float], estimates: Sequence[Estimate | None], index: int, along: str = "layer"
) -> go.Scatter:
    colour = COLOURS[index % len(COLOURS)]
    return go.Scatter(
        x=list(places),
        y=_means(estimates),
        error_y=_errors(estimates) | {"color": colour, "thickness": 1, "width": 2},
        mode="lines+markers",
        line={"color": colour, "width": 2},
        # Past the colours, the sign goes on: no two lines of up to 64 are alike.
        marker={"symbol": SYMBOLS[(index + index // len(COLOURS)) % len(SYMBOLS)], "size": 8},
        name=plotly_text(name),
        legendgroup=name,
        customdata=[_words(estimate) for estimate in estimates],
        hovertemplate=f"{plotly_text(name)}, {along} %{{x}}<br>%{{customdata}}<extra></extra>",
    )


def _dashed(name: str, layers: list[int], values: Sequence[float | None], colour: str) -> go.Scatter:
    return go.Scatter(
        x=layers,
        y=[None if value is None else round(value, DIGITS) for value in values],
        mode="lines",
        line={"color": colour, "width": 1.5, "dash": "dash"},
        name=plotly_text(name),
        hovertemplate=f"{plotly_text(name)}, layer %{{x}}: %{{y}}<extra></extra>",
    )


def _means(estimates: Sequence[Estimate | None]) -> list[float | None]:
    return [None if estimate is None else round(estimate.mean, DIGITS) for estimate in estimates]


def _errors(estimates: Sequence[Estimate | None]) -> dict[str, Any]:
    """Arms from the mean to the bounds of the interval; none where there is no interval."""
    arms = [
        (0.0, 0.0) if one is None or isnan(one.low) else (one.high - one.mean, one.mean - one.low) for one in estimates
    ]
    above, below = ([round(arm[side], DIGITS) for arm in arms] for side in (0, 1))
    return {"type": "data", "symmetric": False, "array": above, "arrayminus": below}


def _words(estimate: Estimate | None) -> str:
    if estimate is None:
        return "undefined"
    interval = "" if isnan(estimate.low) else f", 95 % interval {estimate.low:.3f} to {estimate.high:.3f}"
    return f"{estimate.mean:.3f}{interval}, n = {estimate.n}"
