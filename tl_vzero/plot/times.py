"""Maps of sounds: rows and columns are frames, and the axes are time."""

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import plotly.graph_objects as go

from tl_vzero.errors import ScoresError
from tl_vzero.plot.maps import VALUE_NAMES, method_name, rounded, top
from tl_vzero.plot.parts import Step, from_zero, layer_index, refuse_heads, step_slider, titled
from tl_vzero.plot.theme import COLOUR_BAR_HEIGHT, LIGHT, Theme, template
from tl_vzero.scores import Scores

DIGITS = 4
HEIGHT = 560
_SECONDS = re.compile(r"(\d+(?:\.\d+)?) s")


def time_map(scores: Scores, *, layer: int | None = None, theme: Theme = LIGHT) -> go.Figure:
    """Draw a speech encoder's `[layer, dest, src]` over time in seconds, with a layer slider.

    A frame is labelled by when it begins ("0.32 s"), and its cell reaches to the next; time runs down the rows, which
    are destinations, and to the right. `layer` is the one shown first.
    Raises ScoresError for scores per head, of spans or whose labels are no times, InputError for a layer that the
    scores do not have.

    >>> import torch
    >>> from tl_vzero.scores import Scores
    >>> frames = ("0.00 s", "0.02 s")
    >>> scores = Scores(torch.eye(2)[None], "attention", (0,), frames, frames, (0, 1), (0, 1), 1, 2)
    >>> time_map(scores).data[0].x
    (0.01, 0.03)
    """
    refuse_heads(scores)
    if scores.src_spans is not None:
        raise ScoresError("these columns are spans of frames, which have no one length; draw them by heatmap")
    start = layer_index(scores, layer)
    sources, destinations = _times(scores.src_tokens), _times(scores.dest_tokens)
    grids = [rounded(values, DIGITS) for values in scores.values]
    figure = go.Figure(
        go.Heatmap(
            z=grids[start],
            x=_middles(sources, destinations),
            y=_middles(destinations, sources),
            coloraxis="coloraxis",
            customdata=[[[dest, source] for source in scores.src_tokens] for dest in scores.dest_tokens],
            hovertemplate=_hover(scores.layers[start]),
        )
    )
    steps: list[Step] = [
        (str(layer), {"z": [grid], "hovertemplate": [_hover(layer)]}, {"coloraxis.cmax": top(grid)})
        for layer, grid in zip(scores.layers, grids, strict=True)
    ]
    figure.update_layout(
        template=template(theme),
        title=titled(f"{method_name(scores)}, {scores.stage}", f"{len(sources)} frames up to {scores.src_tokens[-1]}"),
        xaxis=_time_axis("source (column)") | {"side": "top"},
        yaxis=_time_axis("destination (row)") | {"autorange": "reversed"},
        coloraxis=from_zero(theme, top(grids[start]), VALUE_NAMES[scores.stage]),
        sliders=[step_slider(steps, start, theme)],
        height=HEIGHT + COLOUR_BAR_HEIGHT + 150,
    )
    return figure


def _times(labels: Sequence[str]) -> list[float]:
    found = [_SECONDS.fullmatch(label.strip()) for label in labels]
    if not labels or None in found:
        raise ScoresError(
            f"these positions are no frames of a sound: expected labels such as '0.32 s', and found "
            f"{list(labels[:4])}; compute the scores of a speech encoder, or draw them by heatmap"
        )
    return [float(match[1]) for match in found if match is not None]


def _middles(times: Sequence[float], others: Sequence[float]) -> list[float]:
    """The middles of the frames' cells: half the shortest step after each begins."""
    steps = [after - before for each in (times, others) for before, after in pairwise(each)]
    return [round(time + min(steps, default=0.02) / 2, 6) for time in times]


def _time_axis(title: str) -> dict[str, Any]:
    return {"type": "linear", "ticksuffix": " s", "title": {"text": f"{title}, when the frame begins"}}


def _hover(layer: int) -> str:
    return (
        f"<b>%{{z:.4~g}}</b>  layer {layer}<br>destination  %{{customdata[0]}}<br>source  %{{customdata[1]}}"
        "<extra></extra>"
    )
