"""What a target draws on through all layers, as a graph: tokens stand in rows, one row per layer, joined by
curves. The pages of a report draw the same in assets/report/flow.js."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import plotly.graph_objects as go
import torch
from jaxtyping import Float
from torch import Tensor

from tl_vzero.errors import InputError, InputTypeError, ScoresError
from tl_vzero.plot.parts import (
    Step,
    dest_index,
    hover_labels,
    hover_text,
    refuse_heads,
    sentence,
    source_places,
    step_slider,
    titled,
    token_axis,
)
from tl_vzero.plot.theme import LIGHT, Theme, template
from tl_vzero.registry import label_of
from tl_vzero.scores import Scores
from tl_vzero.words import group_words

THRESHOLDS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2, 0.3, 0.5)
CURVE_POINTS = 17
THINNEST, WIDEST = 0.8, 9.0
ROW_HEIGHT = 68
AROUND = 130  # title and token labels, in pixels
SLIDER_HEIGHT = 120
LABELLED_ALL = 48  # tokens; of more, plotly chooses which labels there is room for
LARGEST_NODE, SMALLEST_NODE = 22, 4


@dataclass(frozen=True)
class Flow:
    """A target's rollout taken apart.

    `nodes[l, i]` is how much of what reaches the target is in token i below block l (the last row: above all blocks);
    `edges[l, i, j]` is how much goes from token j into token i in block l. Each row of nodes, and each block's edges,
    sum to one.
    """

    nodes: Float[Tensor, "level position"]
    edges: Float[Tensor, "layer dest src"]


def flow_graph(
    scores: Scores, dest: int | str, *, threshold: float = 0.03, words: bool = False, theme: Theme = LIGHT
) -> go.Figure:
    """Draw which ways a destination's rollout takes through the layers, with a slider for the smallest share drawn.

    The share of an edge, from source j to destination i in a layer, is the part of all that reaches the destination
    `dest` at the top which goes along it; the shares of one layer's edges sum to one. The lowest row holds the rollout
    itself. `threshold` is the share from which edges are drawn at first; `words` joins word pieces.
    Raises ScoresError where a rollout is undefined or the words are unknown, InputError for a destination that is not
    there or a threshold outside 0 to 1.
    Source: Abnar & Zuidema 2020, figure 1, drawn for one token.

    >>> import tl_vzero
    >>> model = tl_vzero.load_model("agreement-mini")
    >>> scores = tl_vzero.value_zeroing(model, "the pictures of some hat [MASK] scaring marcus.")
    >>> [step.label for step in flow_graph(scores, "[MASK]").layout.sliders[0].steps][:3]
    ['0.5 %', '1 %', '2 %']
    """
    refuse_heads(scores)
    if isinstance(threshold, bool) or not isinstance(threshold, int | float):
        raise InputTypeError(f"threshold is {type(threshold).__name__}: expected a share, such as 0.03")
    if not 0 < threshold < 1:
        raise InputError(f"threshold is {threshold}: expected a share of the target's rollout between 0 and 1")
    row = dest_index(scores, dest)
    flow = flow_into(scores, row)
    target = hover_text(scores.dest_tokens[row], scores.dest_positions[row], scores.unit, scores.unknown_dests[row])
    labels, places, unit, unknown = scores.src_tokens, source_places(scores), scores.unit, scores.unknown_sources
    if words:
        flow, labels = _over_words(scores, flow)
        places, unit, unknown = [str(index) for index in range(len(labels))], "word", scores.words().unknown_sources
    hover = hover_labels(labels, range(len(labels)), unit, unknown)
    bounds = sorted({*THRESHOLDS, threshold})
    figure = go.Figure([*_edge_traces(flow, bounds, threshold, theme), *_hover_traces(flow, bounds[0], hover, theme)])
    steps: list[Step] = [(f"{100 * bound:g} %", {"visible": [low >= bound for low in bounds]}, {}) for bound in bounds]
    slider = step_slider(steps, bounds.index(threshold), theme, prefix="edges from ")
    layout = flow_axes(labels, places, scores.layers, unknown) | {
        "template": template(theme),
        "title": titled(f"{label_of(scores.method)}: what reaches {target}", sentence(scores)),
        "sliders": [slider | {"pad": {"t": 84, "b": 8}}],
    }
    layout["height"] += SLIDER_HEIGHT
    figure.update_layout(layout)
    return figure


def flow_axes(
    labels: Sequence[str], places: Sequence[str], layers: Sequence[int], unknown: Sequence[bool]
) -> dict[str, Any]:
    """What is around a flow graph, as plain data: axes, margins and height. Tokens stand at 0, 1, ..."""
    tokens = token_axis(labels, places, "", unknown)
    style = {name: tokens[name] for name in ("autotickangles", "tickfont", "title")}
    # Nodes stand at numbers, which curves need; a label is of the number.
    aliases = {str(i): alias for i, alias in enumerate(tokens["labelalias"].values())}
    step = {"dtick": 1} if len(labels) <= LABELLED_ALL else {}
    return {
        "showlegend": False,
        "hovermode": "closest",
        "height": len(layers) * ROW_HEIGHT + AROUND,
        "margin": {"l": 24, "r": 32, "t": 24, "b": 24},
        "xaxis": style | {"type": "linear", "range": [-0.7, len(labels) - 0.3], "labelalias": aliases} | step,
        "yaxis": {
            "tickvals": list(range(len(layers) + 1)),
            "ticktext": ["input", *(f"layer {layer}" for layer in layers)],
            "range": [-0.4, len(layers) + 0.45],
        },
    }


def flow_into(scores: Scores, row: int) -> Flow:
    """Take the rollout of one destination apart into the shares of every layer's edges.

    r_L is one at the destination; edges_l = r_l[:, None] * S_l and r_(l-1) = r_l @ S_l, where S_l is layer l's step of
    the rollout (the normalised map, with the identity where the method's rule adds it). So r_0 is the rollout's row.
    """
    scores.rollout()
    steps = [
        # A rollout over one layer is that layer's step, by the method's own rule.
        replace(scores, values=values.unsqueeze(0), layers=(0,), n_layers=1).rollout().values[0]
        for values in scores.values
    ]
    nodes = [torch.nn.functional.one_hot(torch.tensor(row), scores.values.shape[-1]).to(scores.values)]
    edges = []
    for step in reversed(steps):
        edges.append(nodes[-1].unsqueeze(1) * step)
        nodes.append(edges[-1].sum(0))
    return Flow(torch.stack(nodes[::-1]), torch.stack(edges[::-1]))


def _over_words(scores: Scores, flow: Flow) -> tuple[Flow, tuple[str, ...]]:
    if scores.word_ids is None:
        raise ScoresError(
            "words=True needs to know which pieces form a word, and this was computed from ids without a tokenizer; "
            "load the model with one, or leave words out"
        )
    words = group_words(scores.word_ids, scores.src_tokens)
    joins = torch.zeros(len(words), len(scores.src_tokens), dtype=flow.nodes.dtype)
    for index, word in enumerate(words):
        joins[index, list(word.positions)] = 1
    edges = torch.einsum("wi,lij,vj->lwv", joins, flow.edges, joins)
    return Flow(flow.nodes @ joins.T, edges), tuple(word.label for word in words)


def line_styles(bounds: Sequence[float], theme: Theme) -> list[dict[str, Any]]:
    """The lines of the edges from each bound on: the larger the share, the wider and stronger."""
    colours = theme.sequential[2:-1]
    places = [index / max(len(bounds) - 1, 1) for index in range(len(bounds))]
    widths = [round(THINNEST + (WIDEST - THINNEST) * place**1.5, 2) for place in places]
    return [
        {"width": width, "color": colours[round(place * (len(colours) - 1))]}
        for place, width in zip(places, widths, strict=True)
    ]


def _edge_traces(flow: Flow, bounds: Sequence[float], threshold: float, theme: Theme) -> list[go.Scatter]:
    """A trace for the edges between two bounds, as plotly gives a line one width; the slider shows or hides traces."""
    traces = []
    for low, high, line in zip(bounds, [*bounds[1:], 2.0], line_styles(bounds, theme), strict=True):
        edges = torch.nonzero((flow.edges >= low) & (flow.edges < high)).tolist()
        curves = [_curve(src, dest, layer) for layer, dest, src in edges]
        # None parts one curve from the next.
        x, y = ([place for curve in curves for place in (*curve[axis], None)] for axis in (0, 1))
        traces.append(go.Scatter(x=x, y=y, mode="lines", line=line, visible=low >= threshold, hoverinfo="skip"))
    return traces


def _curve(src: int, dest: int, layer: int) -> tuple[list[float], list[float]]:
    """From a token below to one above, upright at both ends."""
    if src == dest:
        return [float(src), float(dest)], [float(layer), layer + 1.0]
    parts = [step / (CURVE_POINTS - 1) for step in range(CURVE_POINTS)]
    return (
        [round(src + (dest - src) * t * t * (3 - 2 * t), 3) for t in parts],
        [round(layer + t, 3) for t in parts],
    )


def _hover_traces(flow: Flow, smallest: float, hover: Sequence[str], theme: Theme) -> list[go.Scatter]:
    """The tokens, as large as their share, and points without a mark in the middle of the edges."""
    edges = [
        (layer, dest, src, flow.edges[layer, dest, src].item())
        for layer, dest, src in torch.nonzero(flow.edges >= smallest).tolist()
    ]
    middles = go.Scatter(
        x=[(dest + src) / 2 for _, dest, src, _ in edges],
        y=[layer + 0.5 for layer, _, _, _ in edges],
        mode="markers",
        marker={"size": 12, "opacity": 0},
        customdata=[[f"{share:.1%}", hover[src], hover[dest], layer] for layer, dest, src, share in edges],
        hovertemplate=(
            "<b>%{customdata[0]}</b>  layer %{customdata[3]}<br>source  %{customdata[1]}<br>"
            "destination  %{customdata[2]}<extra></extra>"
        ),
    )
    placed = [(level, token, share) for level, row in enumerate(flow.nodes.tolist()) for token, share in enumerate(row)]
    nodes = go.Scatter(
        x=[token for _, token, _ in placed],
        y=[level for level, _, _ in placed],
        mode="markers",
        marker={
            "size": [round(SMALLEST_NODE + (LARGEST_NODE - SMALLEST_NODE) * share**0.5, 1) for *_, share in placed],
            "color": [theme.mark if share >= smallest else theme.line for *_, share in placed],
            "line": {"width": 1, "color": theme.panel},
            "opacity": 1,
        },
        customdata=[[f"{share:.1%}", hover[token]] for _, token, share in placed],
        hovertemplate="<b>%{customdata[0]}</b> of what reaches the target<br>%{customdata[1]}<extra></extra>",
    )
    return [middles, nodes]
