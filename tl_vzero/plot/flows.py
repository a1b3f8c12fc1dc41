"""What a target draws on through all layers, as a graph: tokens stand in rows, one row per layer, joined by
curves. The pages of a report draw the same in assets/report/flow.js."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Unpack

import plotly.graph_objects as go
import torch
from jaxtyping import Float
from torch import Tensor

from tl_vzero.choices import at_least_one
from tl_vzero.errors import InputError, InputTypeError, ScoresError
from tl_vzero.plot import parts
from tl_vzero.plot.pages import in_percent
from tl_vzero.plot.theme import LIGHT, Theme, template
from tl_vzero.scores import Scores
from tl_vzero.words import group_words

THRESHOLDS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2, 0.3, 0.5)
CURVE_POINTS = 25
THINNEST, WIDEST = 0.8, 9.0
ROW_HEIGHT = 68
AROUND = 130  # title and token labels, in pixels
SLIDER_HEIGHT = 120
LABELLED_ALL = 48  # tokens; of more, plotly chooses which labels there is room for
LARGEST_NODE, SMALLEST_NODE = 22, 4
STUB = 0.3  # of the way to the next token and layer
LEAST_STUB = 0.001  # of a smaller share no stub is drawn
NO_LABEL = "\u00a0"  # where a label was empty once, plotly writes none later
CHANGED = ("x", "y", "customdata", "text", "marker")  # of the traces, by the slider
STUB_HOVER = "<b>%{customdata[0]}</b> goes on along edges that are not drawn<br>%{customdata[1]}<extra></extra>"
EDGE_HOVER = (
    "<b>%{customdata[0]}</b>  layer %{customdata[3]}<br>source  %{customdata[1]}<br>destination  %{customdata[2]}<br>"
    "path  %{customdata[4]}<extra></extra>"
)
NODE_HOVER = "<b>%{customdata[0]}</b> of what reaches the target<br>%{customdata[1]}<extra></extra>"
Edge = tuple[int, int, int]  # layer, dest, src, as in `Flow.edges`


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
    scores: Scores,
    dest: int | str,
    *,
    threshold: float = 0.03,
    top: int | None = 3,
    words: bool = False,
    theme: Theme = LIGHT,
    **look: Unpack[parts.Look],
) -> go.Figure:
    """Draw which ways a destination's rollout takes through the layers, with a slider for the smallest share drawn.

    The share of an edge, from source j to destination i in a layer, is the part of all that reaches the destination
    `dest` at the top which goes along it; the shares of one layer's edges sum to one. The lowest row holds the rollout
    itself. Every edge is on an unbroken path from the input to `dest`: from each token that is reached, the `top`
    largest edges go on (None: all) whose share is at least `threshold`, and the largest in any case. What goes on from
    a token along other edges is a dotted stub with its share. The box of an edge names the path along the strongest
    edges up and down from it. `words` joins word pieces.
    Raises ScoresError where a rollout is undefined or the words are unknown, InputError for a destination that is not
    there, a threshold outside 0 to 1 or a `top` below 1.
    Source: Abnar & Zuidema 2020, figure 1, drawn for one token.

    >>> import tl_vzero
    >>> model = tl_vzero.load_model("agreement-mini")
    >>> scores = tl_vzero.value_zeroing(model, "the pictures of some hat [MASK] scaring marcus.")
    >>> [step.label for step in flow_graph(scores, "[MASK]").layout.sliders[0].steps][:3]
    ['0.5 %', '1 %', '2 %']
    """
    parts.refuse_heads(scores)
    if isinstance(threshold, bool) or not isinstance(threshold, int | float):
        raise InputTypeError(f"threshold is {type(threshold).__name__}: expected a share, such as 0.03")
    if not 0 < threshold < 1:
        raise InputError(f"threshold is {threshold}: expected a share of the target's rollout between 0 and 1")
    top = None if top is None else at_least_one("top", top, "how many edges go on from a token", otherwise=", or None")
    row = scores.dest_index(dest)
    flow = flow_into(scores, row)
    target = parts.axis_labels(scores)[0][row]
    labels, places, unit, unknown = scores.src_tokens, parts.source_places(scores), scores.unit, scores.unknown_sources
    if words:
        flow, labels = _over_words(scores, flow)
        row = int(flow.nodes[-1].argmax())
        places, unit, unknown = [str(index) for index in range(len(labels))], "word", scores.words().unknown_sources
    hover = parts.hover_labels(labels, range(len(labels)), unit, unknown)
    bounds = sorted({*THRESHOLDS, threshold})
    edges = [connected(flow, row, bound, top) for bound in bounds]
    steps_drawn = [_traces(flow, e, bound, bounds, hover, theme) for e, bound in zip(edges, bounds, strict=True)]
    # A long sentence has no room for all its labels: those stay through which a path goes.
    ticks = [{"xaxis.tickvals": sorted({end for edge in e for end in edge[1:]} | {row})} for e in edges]
    if len(labels) <= LABELLED_ALL:
        ticks = [{} for _ in edges]
    steps: list[parts.Step] = [
        (f"{100 * b:g} %", {name: [trace.get(name) for trace in traces] for name in CHANGED}, labelled)
        for b, traces, labelled in zip(bounds, steps_drawn, ticks, strict=True)
    ]
    slider = parts.step_slider(steps, bounds.index(threshold), theme, prefix="branches from ")
    layout = flow_axes(labels, places, scores.layers, unknown) | {
        "template": template(theme),
        "title": parts.titled(
            f"{parts.method_text(scores)}: what reaches {target} through all layers", parts.sentence(scores)
        ),
        "sliders": [slider | {"pad": {"t": 84, "b": 8}}],
    }
    layout["height"] += SLIDER_HEIGHT
    shown_first = bounds.index(threshold)
    figure = parts.drawn(steps_drawn[shown_first], layout, **look)
    return figure.update_layout(ticks[shown_first])


def flow_axes(
    labels: Sequence[str], places: Sequence[str], layers: Sequence[int], unknown: Sequence[bool]
) -> dict[str, Any]:
    """What is around a flow graph, as plain data: axes, margins and height. Tokens stand at 0, 1, ..."""
    tokens = parts.token_axis(labels, places, "", unknown)
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


def connected(flow: Flow, row: int, threshold: float, top: int | None) -> list[Edge]:
    """The edges that are drawn, the lowest layer first: all on unbroken paths from the input to a destination.

    From the destination down, each token that is reached goes on along its `top` largest edges of at least `threshold`,
    and in any case along its largest, so that no path breaks off; a token whose row is empty leads nowhere.
    """
    reached, down = {row}, list[list[Edge]]()
    for layer in reversed(range(len(flow.edges))):
        down.append([])
        for dest in sorted(reached):
            shares = sorted(((-share, src) for src, share in enumerate(flow.edges[layer, dest].tolist()) if share > 0))
            branches = [src for negative, src in shares[:top] if -negative >= threshold]
            down[-1] += [(layer, dest, src) for src in branches or [src for _, src in shares[:1]]]
        reached = {src for _, _, src in down[-1]}
    whole = list[Edge]()
    for edges in reversed(down):
        unbroken = [edge for edge in edges if edge[0] == 0 or edge[2] in reached]
        reached = {dest for _, dest, _ in unbroken}
        whole += unbroken
    return whole


def dropped(flow: Flow, edges: Sequence[Edge]) -> dict[tuple[int, int], float]:
    """What goes on from a token on the paths, (level, token), along edges that are not drawn."""
    shares = {(layer + 1, dest): flow.nodes[layer + 1, dest].item() for layer, dest, _ in edges}
    for layer, dest, src in edges:
        shares[layer + 1, dest] -= flow.edges[layer, dest, src].item()
    return {place: share for place, share in shares.items() if share >= LEAST_STUB}


def strongest_paths(flow: Flow, edges: Sequence[Edge]) -> list[list[int]]:
    """Of each drawn edge the path through it, the input first: up and down along the strongest drawn edges."""
    weakest_first = sorted(edges, key=lambda edge: flow.edges[edge].item())
    below = {(layer, dest): src for layer, dest, src in weakest_first}
    above = {(layer, src): dest for layer, dest, src in weakest_first}
    paths = []
    for layer, dest, src in edges:
        paths.append([src, dest])
        for upper in range(layer + 1, len(flow.edges)):
            paths[-1].append(above[upper, paths[-1][-1]])
        for lower in reversed(range(layer)):
            paths[-1].insert(0, below[lower, paths[-1][0]])
    return paths


def _traces(
    flow: Flow, edges: Sequence[Edge], bound: float, bounds: Sequence[float], hover: Sequence[str], theme: Theme
) -> list[dict[str, Any]]:
    """The stubs, the edges, points in the middle of the edges for the pointer, and the tokens, as large as their share.

    The edges between two bounds are one trace, as plotly gives a line one width. None parts one curve from the next.
    """
    shares = [flow.edges[edge].item() for edge in edges]
    stubs = dropped(flow, edges).items()
    names = [label.rpartition(" · ")[0] for label in hover]
    paths = [" → ".join(names[token] for token in path) for path in strongest_paths(flow, edges)]
    on_paths = {(layer + 1, dest) for layer, dest, _ in edges} | {(layer, src) for layer, _, src in edges}
    placed = [(level, token, share) for level, row in enumerate(flow.nodes.tolist()) for token, share in enumerate(row)]
    faint = {"width": 2, "dash": "dot", "color": theme.line}
    traces: list[dict[str, Any]] = [
        {
            "mode": "lines",
            "hoverinfo": "skip",
            "line": faint,
            "x": [x for (_, token), _ in stubs for x in (token, token + STUB, None)],
            "y": [y for (level, _), _ in stubs for y in (level, level - STUB, None)],
        },
        {
            "mode": "markers+text",
            "marker": {"size": 8, "opacity": 0},
            "cliponaxis": False,
            "textposition": "middle right",
            "textfont": {"size": 10, "color": theme.muted},
            "x": [token + STUB for (_, token), _ in stubs],
            "y": [level - STUB for (level, _), _ in stubs],
            "text": [in_percent(share) if share >= bound else NO_LABEL for _, share in stubs],
            "customdata": [[f"{share:.1%}", hover[token]] for (_, token), share in stubs],
            "hovertemplate": STUB_HOVER,
        },
    ]
    for low, high, line in zip([0.0, *bounds[1:]], [*bounds[1:], 2.0], line_styles(bounds, theme), strict=True):
        curves = [_curve(*edge) for edge, share in zip(edges, shares, strict=True) if low <= share < high]
        x, y = ([place for curve in curves for place in (*curve[axis], None)] for axis in (0, 1))
        traces.append({"mode": "lines", "hoverinfo": "skip", "line": line, "x": x, "y": y})
    middles = {
        "mode": "markers",
        "marker": {"size": 12, "opacity": 0},
        "x": [(dest + src) / 2 for _, dest, src in edges],
        "y": [layer + 0.5 for layer, _, _ in edges],
        "customdata": [
            [f"{share:.1%}", hover[src], hover[dest], layer, path]
            for (layer, dest, src), share, path in zip(edges, shares, paths, strict=True)
        ],
        "hovertemplate": EDGE_HOVER,
    }
    nodes = {
        "mode": "markers",
        "marker": {
            "size": [round(SMALLEST_NODE + (LARGEST_NODE - SMALLEST_NODE) * share**0.5, 1) for *_, share in placed],
            "color": [theme.mark if place[:2] in on_paths else theme.line for place in placed],
            "line": {"width": 1, "color": theme.panel},
            "opacity": 1,
        },
        "x": [token for _, token, _ in placed],
        "y": [level for level, _, _ in placed],
        "customdata": [[f"{share:.1%}", hover[token]] for _, token, share in placed],
        "hovertemplate": NODE_HOVER,
    }
    return [*traces, middles, nodes]


def _curve(layer: int, dest: int, src: int) -> tuple[list[float], list[float]]:
    """From a token below to one above, upright at both ends."""
    if src == dest:
        return [float(src), float(dest)], [float(layer), layer + 1.0]
    along = [step / (CURVE_POINTS - 1) for step in range(CURVE_POINTS)]
    return (
        [round(src + (dest - src) * t * t * (3 - 2 * t), 3) for t in along],
        [round(layer + t, 3) for t in along],
    )
