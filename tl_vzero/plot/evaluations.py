"""Figures of the evaluations: curves over layers like the paper's, bars with intervals, and where the mass goes."""

from collections.abc import Sequence
from math import isnan
from typing import Any

import plotly.graph_objects as go

from tl_vzero.errors import InputError
from tl_vzero.evaluate.cue_alignment import Alignment, CueAlignment, Measure
from tl_vzero.evaluate.faithfulness import Faithfulness
from tl_vzero.evaluate.mass import PLACES, Mass
from tl_vzero.evaluate.probing import ProbingResult
from tl_vzero.plot.parts import plotly_text
from tl_vzero.plot.theme import LIGHT, Theme, template
from tl_vzero.registry import label_of
from tl_vzero.statistics import Estimate

# Told apart with any kind of colour vision, by colour and by sign; readable on light and on dark.
COLOURS = ("#2f7ed8", "#d1690e", "#1a9a78", "#c05a98", "#8f8412", "#7a66d9", "#3d9cc4", "#8d6e63")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "triangle-down", "star")
PLACE_COLOURS = {"cue": "#2f7ed8", "attractor": "#d1690e", "special": "#8d6e63", "target": "#1a9a78", "rest": "#9aa7b8"}
MEASURE_TITLES: dict[Measure, str] = {"dot": "share of the row on the cue", "average_precision": "average precision"}
CURVES_HEIGHT = 460
BAR_HEIGHT = 26
DIGITS = 4
EMBEDDINGS = -1


def alignment_curves(
    alignment: CueAlignment, *, measure: Measure = "dot", paradigm: str = "all", theme: Theme = LIGHT
) -> go.Figure:
    """Cue alignment by layer, a line for each method; dashed, chance and the published figures.

    Raises InputError for a paradigm that was not evaluated.

    >>> import tl_vzero
    >>> from tl_vzero.data.agreement_mini import agreement_examples
    >>> from tl_vzero.evaluate.cue_alignment import cue_alignment
    >>> model = tl_vzero.load_model("agreement-mini")
    >>> found = cue_alignment(model, agreement_examples()[:4], ["value_zeroing", "attention"])
    >>> [trace.name for trace in alignment_curves(found).data]
    ['Value Zeroing', 'Raw attention', 'chance']
    """
    lines: dict[str, list[Alignment]] = {}
    for cell in alignment.cells:
        if (cell.measure, cell.paradigm) == (measure, paradigm):
            lines.setdefault(cell.method, []).append(cell)
    if not lines:
        known = ", ".join(dict.fromkeys(cell.paradigm for cell in alignment.cells))
        raise InputError(f"unknown paradigm {paradigm!r}: expected one of {known}")
    figure = _curves(MEASURE_TITLES[measure], theme)
    for index, (method, cells) in enumerate(lines.items()):
        layers = [cell.layer for cell in cells]
        figure.add_trace(_line(label_of(method), layers, [cell.aligned for cell in cells], index))
        if any(cell.published is not None for cell in cells):
            figure.add_trace(_published(label_of(method), layers, [cell.published for cell in cells], index))
    first = next(iter(lines.values()))
    figure.add_trace(_dashed("chance", [cell.layer for cell in first], [cell.chance for cell in first], theme.muted))
    return figure


def control_curves(
    alignment: CueAlignment,
    random_weights: CueAlignment | None,
    distances: CueAlignment | None,
    *,
    measure: Measure = "dot",
    theme: Theme = LIGHT,
) -> go.Figure:
    """Value Zeroing's cue alignment by layer beside its controls: random weights, shuffled cues, other distances."""
    figure = _curves(MEASURE_TITLES[measure], theme)
    own = _cells(alignment, "value_zeroing", measure)
    layers = [cell.layer for cell in own]
    lines: dict[str, list[Estimate | None]] = {
        "Value Zeroing": [cell.aligned for cell in own],
        "shuffled cues": [cell.shuffled for cell in own],
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
    figure.add_trace(_dashed("chance", layers, [cell.chance for cell in own], theme.muted))
    return figure


def compression_curves(
    probing: Sequence[tuple[str, ProbingResult]], published: Sequence[float] = (), *, theme: Theme = LIGHT
) -> go.Figure:
    """Compression by layer with intervals, a line for each named result; dashed, the published figures.

    `published` counts blocks from 0.
    """
    figure = _curves("compression", theme)
    for index, (name, result) in enumerate(probing):
        estimates: list[Estimate | None] = [
            Estimate(*numbers, result.n) for numbers in zip(result.compression, result.low, result.high, strict=True)
        ]
        figure.add_trace(_line(name, list(result.layers), estimates, index))
    if published:
        figure.add_trace(_dashed("published", list(range(len(published))), list(published), theme.mark))
    layers = sorted({layer for _, result in probing for layer in result.layers})
    figure.update_xaxes(tickvals=layers, ticktext=["embeddings" if n == EMBEDDINGS else str(n) for n in layers])
    return figure


def faithfulness_bars(faithfulness: Faithfulness, *, paradigm: str = "all", theme: Theme = LIGHT) -> go.Figure:
    """Mean rank correlation with blank-out, a bar with its interval for each method; diamonds, the published figures.

    Raises InputError for a paradigm that was not evaluated.
    """
    found = [each for each in faithfulness.correlations if each.paradigm == paradigm]
    if not found:
        known = ", ".join(dict.fromkeys(each.paradigm for each in faithfulness.correlations))
        raise InputError(f"unknown paradigm {paradigm!r}: expected one of {known}")
    labels = [label_of(each.method) for each in found]
    rhos = [each.rho for each in found]
    figure = go.Figure(layout=_layout("mean Spearman correlation with blank-out", theme, BAR_HEIGHT * len(found) + 110))
    figure.add_trace(
        go.Bar(
            orientation="h",
            y=labels,
            x=[None if rho is None else round(rho.mean, DIGITS) for rho in rhos],
            error_x=_errors(rhos) | {"color": theme.ink, "thickness": 1.5},
            marker={"color": COLOURS[0]},
            name="measured",
            customdata=[_told(rho) for rho in rhos],
            hovertemplate="%{y}<br>%{customdata}<extra></extra>",
        )
    )
    if any(each.published is not None for each in found):
        figure.add_trace(
            go.Scatter(
                mode="markers",
                y=labels,
                x=[each.published for each in found],
                marker={"symbol": "diamond-open", "size": 10, "color": theme.mark},
                name="published",
            )
        )
    figure.update_yaxes(autorange="reversed")
    figure.update_xaxes(zeroline=True, zerolinecolor=theme.muted)
    return figure


def mass_bars(mass: Mass, layer: int, *, paradigm: str = "all", theme: Theme = LIGHT) -> go.Figure:
    """Where each method's mass lies in one layer: stacked shares of the target's row.

    Raises InputError for a layer or a paradigm that was not evaluated.
    """
    chosen = {
        (each.method, each.place): each for each in mass.shares if (each.layer, each.paradigm) == (layer, paradigm)
    }
    if not chosen:
        layers = ", ".join(str(number) for number in sorted({each.layer for each in mass.shares}))
        known = ", ".join(dict.fromkeys(each.paradigm for each in mass.shares))
        raise InputError(f"nothing of layer {layer} in {paradigm!r}: expected layers {layers} and one of {known}")
    methods = list(dict.fromkeys(method for method, _ in chosen))
    figure = go.Figure(layout=_layout("mean share of the target's row", theme, BAR_HEIGHT * len(methods) + 110))
    for place in PLACES:
        shares = [chosen[method, place].share for method in methods]
        figure.add_trace(
            go.Bar(
                orientation="h",
                y=[label_of(method) for method in methods],
                x=[round(share.mean, DIGITS) for share in shares],
                marker={"color": PLACE_COLOURS[place]},
                name=place,
                customdata=[_told(share) for share in shares],
                hovertemplate=f"%{{y}}, {place}<br>%{{customdata}}<extra></extra>",
            )
        )
    figure.update_layout(barmode="stack")
    figure.update_xaxes(range=[0, 1])
    figure.update_yaxes(autorange="reversed")
    return figure


def _cells(alignment: CueAlignment, method: str, measure: Measure) -> list[Alignment]:
    return [cell for cell in alignment.cells if (cell.method, cell.measure, cell.paradigm) == (method, measure, "all")]


def _layout(x_title: str, theme: Theme, height: int) -> dict[str, Any]:
    return {
        "template": template(theme),
        "height": height,
        "margin": {"l": 24, "r": 24, "t": 12, "b": 48},
        "xaxis": {"title": {"text": x_title}},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "traceorder": "normal"},
    }


def _curves(y_title: str, theme: Theme) -> go.Figure:
    figure = go.Figure(layout=_layout("layer", theme, CURVES_HEIGHT))
    figure.update_layout(legend={"orientation": "v", "x": 1.02, "xanchor": "left", "y": 1, "yanchor": "top"})
    figure.update_xaxes(dtick=1)
    figure.update_yaxes(title={"text": y_title}, showgrid=True, gridcolor=theme.line, rangemode="tozero")
    return figure


def _line(name: str, layers: list[int], estimates: Sequence[Estimate | None], index: int) -> go.Scatter:
    colour = COLOURS[index % len(COLOURS)]
    return go.Scatter(
        x=layers,
        y=[None if each is None else round(each.mean, DIGITS) for each in estimates],
        error_y=_errors(estimates) | {"color": colour, "thickness": 1, "width": 2},
        mode="lines+markers",
        line={"color": colour, "width": 2},
        # Past the colours, the sign goes on: no two lines of up to 64 are alike.
        marker={"symbol": SYMBOLS[(index + index // len(COLOURS)) % len(SYMBOLS)], "size": 8},
        name=plotly_text(name),
        legendgroup=name,
        customdata=[_told(each) for each in estimates],
        hovertemplate=f"{plotly_text(name)}, layer %{{x}}<br>%{{customdata}}<extra></extra>",
    )


def _published(name: str, layers: list[int], values: Sequence[float | None], index: int) -> go.Scatter:
    line = _dashed(f"{name}, published", layers, values, COLOURS[index % len(COLOURS)])
    line.update(legendgroup=name, showlegend=False)
    return line


def _dashed(name: str, layers: list[int], values: Sequence[float | None], colour: str) -> go.Scatter:
    return go.Scatter(
        x=layers,
        y=[None if each is None else round(each, DIGITS) for each in values],
        mode="lines",
        line={"color": colour, "width": 1.5, "dash": "dash"},
        name=plotly_text(name),
        hovertemplate=f"{plotly_text(name)}, layer %{{x}}: %{{y}}<extra></extra>",
    )


def _errors(estimates: Sequence[Estimate | None]) -> dict[str, Any]:
    """Arms from the mean to the bounds of the interval; none where there is no interval."""
    above, below = [], []
    for each in estimates:
        known = each is not None and not isnan(each.low)
        above.append(round(each.high - each.mean, DIGITS) if known and each is not None else 0)
        below.append(round(each.mean - each.low, DIGITS) if known and each is not None else 0)
    return {"type": "data", "symmetric": False, "array": above, "arrayminus": below}


def _told(estimate: Estimate | None) -> str:
    if estimate is None:
        return "undefined"
    interval = "" if isnan(estimate.low) else f", 95 % interval {estimate.low:.3f} to {estimate.high:.3f}"
    return f"{estimate.mean:.3f}{interval}, n = {estimate.n}"
