"""Heat maps of Scores and of effects. Rows are destinations, columns are sources."""

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from jaxtyping import Float
from torch import Tensor

from tl_vzero.effects import Effect, PatchingEffect
from tl_vzero.errors import InputError, ScoresError
from tl_vzero.plot.labels import hover_text, plotly_text, short, tick_text, visible
from tl_vzero.plot.theme import COLOUR_BAR_HEIGHT, LIGHT, Theme, template
from tl_vzero.scores import Scores

DIGITS = 6
METHOD_NAMES = {
    "value_zeroing": "Value Zeroing",
    "attention": "Raw attention",
    "attention_norm": "Attention norm",
    "attention_norm_res": "Attention norm, residual",
    "attention_norm_res_ln": "Attention norm, residual, LN",
    "globenc": "GlobEnc",
    "alti": "ALTI",
    "decompx": "DecompX",
    "hta": "HTA",
    "gradient_x_input": "Gradient × input",
    "deep_lift": "DeepLIFT",
}
EFFECT_NAMES = {
    "zero_ablation": "zero ablation",
    "value_patching": "value patching",
    "attribution_patching": "attribution patching",
}
EFFECT_TITLES = {
    "zero_ablation": "Effect of zeroing a value on the prediction",
    "value_patching": "Effect of patching in the clean sentence's value",
    "attribution_patching": "Estimated effect of zeroing a value on the prediction",
}
VALUE_NAMES = {"raw": "raw score", "normalized": "share of the row", "rollout": "share, rolled out"}
CELL_GAP_LIMIT = 40
SLANTED_LABELS_LIMIT = 24
SENTENCE_LENGTH = 110
SLIDER_HEIGHT = 90
HEADER_HEIGHT = 150  # title, axis title and token labels
Grid = list[list[float]]


def heatmap(scores: Scores, *, layer: int | None = None, theme: Theme = LIGHT) -> go.Figure:
    """Draw `[layer, dest, src]` as a heat map with a layer slider; destinations are rows, sources columns.

    The colour scale starts at exactly 0 and ends at the largest value of the layer shown. `layer` is the
    one shown first (default: the first of the scores). The figure holds 6 significant digits.
    Raises ScoresError for scores per head, InputError for a layer that the scores do not have.

    >>> import torch
    >>> from tl_vzero.scores import Scores
    >>> maps = torch.tensor([[[1.0, 0.0], [0.5, 0.5]]])
    >>> scores = Scores(maps, "attention", (0,), ("a", "b"), ("a", "b"), (0, 1), (0, 1), 1, 2)
    >>> heatmap(scores).layout.yaxis.title.text
    'destination (row)'
    """
    _refuse_heads(scores)
    start = _layer_index(scores, layer)
    grids = [rounded(values) for values in scores.values]
    sources = _hover_labels(scores.src_tokens, scores.src_positions, scores.unit)
    destinations = _hover_labels(scores.dest_tokens, scores.dest_positions, scores.unit)
    trace = go.Heatmap(
        z=grids[start],
        x=[str(p) for p in scores.src_positions],
        y=[str(p) for p in scores.dest_positions],
        customdata=[[[dest, source] for source in sources] for dest in destinations],
        hovertemplate=map_hover(f"layer {scores.layers[start]}"),
        coloraxis="coloraxis",
        **_gaps(len(sources), len(destinations)),
    )
    figure = go.Figure(trace)
    figure.update_layout(
        template=template(theme),
        title=_title(f"{method_name(scores)}, {scores.stage}", sentence(scores)),
        xaxis=_token_axis(scores.src_tokens, scores.src_positions, "source (column)") | {"side": "top"},
        yaxis=_token_axis(scores.dest_tokens, scores.dest_positions, "destination (row)") | {"autorange": "reversed"},
        coloraxis=_from_zero(theme, top(grids[start]), VALUE_NAMES[scores.stage]),
        sliders=[_layer_slider(scores.layers, grids, start, theme)],
        height=_height(len(destinations), below=COLOUR_BAR_HEIGHT + SLIDER_HEIGHT),
    )
    return figure


def target_row(scores: Scores, dest: int, *, theme: Theme = LIGHT) -> go.Figure:
    """Draw one destination's row in every layer: layers are rows (first on top), sources columns.

    `dest` is a position (negative: from the end of the destinations kept).
    Raises InputError for a position that is not there, ScoresError for scores per head.
    """
    _refuse_heads(scores)
    grid = rounded(scores.row(dest))
    index = scores.dest_positions.index(dest) if dest >= 0 else dest
    position, token = scores.dest_positions[index], scores.dest_tokens[index]
    figure = _layer_by_source(grid, scores.layers, scores.src_tokens, scores.src_positions, scores.unit)
    label = hover_text(token, position, scores.unit)
    figure.update_traces(hovertemplate=row_hover(label))
    figure.update_layout(
        template=template(theme),
        title=_title(f"{method_name(scores)}, {scores.stage}: row of {label}", sentence(scores)),
        coloraxis=_from_zero(theme, top(grid), VALUE_NAMES[scores.stage]),
    )
    return figure


def effect_map(effect: Effect, *, theme: Theme = LIGHT) -> go.Figure:
    """Draw an effect `[layer, src]`: layers are rows (first on top), sources columns; 0 is the middle colour.

    Raises InputError for an effect per head.

    >>> import torch
    >>> from tl_vzero.effects import Effect, PatchingEffect
    >>> effect = Effect(torch.tensor([[-2.0, 0.5]]), 3.0, "logit of is", 1, "is", (), (0,), ("a", "b"), (0, 1))
    >>> figure = effect_map(effect)
    >>> figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax
    (-2.0, 2.0)
    """
    if effect.heads is not None:
        raise InputError(
            f"this effect is per head ({len(effect.heads)} heads): expected one row a layer; compute it without "
            "per_head"
        )
    grid = rounded(effect.values)
    extreme = max((abs(value) for row in grid for value in row), default=0.0) or 1.0
    figure = _layer_by_source(grid, effect.layers, _tokens_acted_on(effect), effect.src_positions, "token")
    figure.update_traces(hovertemplate=effect_hover())
    metric = plotly_text(visible(effect.metric))
    figure.update_layout(
        template=template(theme),
        title=_title(EFFECT_TITLES[effect.method], f"at position {effect.target}"),
        coloraxis={
            "colorscale": theme.diverging_ramp(),
            "cmin": -extreme,
            "cmax": extreme,
            "colorbar": {"title": {"text": f"change of the {metric}"}},
        },
    )
    return figure


def _tokens_acted_on(effect: Effect) -> tuple[str, ...]:
    """The sources; of patching, what is put in place of what, where the two sentences differ."""
    if not isinstance(effect, PatchingEffect):
        return effect.src_tokens
    pairs = zip(effect.src_tokens, effect.corrupted_tokens, strict=True)
    return tuple(one if one == other else f"{visible(one)} / {visible(other)}" for one, other in pairs)


def rounded(values: Float[Tensor, "row column"], digits: int = DIGITS) -> Grid:
    """A map as nested lists with as many significant digits as a figure needs.

    >>> import torch
    >>> rounded(torch.tensor([[0.1, 1.23456789e-7]]))
    [[0.1, 1.23457e-07]]
    """
    return [[float(f"{value:.{digits}g}") for value in row] for row in values.tolist()]


def top(grid: Grid) -> float:
    """The upper end of a colour scale that starts at 0: the largest value, or 1 if nothing is above 0."""
    largest = max((value for row in grid for value in row), default=0.0)
    return largest if largest > 0 else 1.0


def map_hover(place: str) -> str:
    """The hover box of a map cell, whose customdata are the destination's and the source's labels."""
    return (
        f"<b>%{{z:.4~g}}</b>  {place}<br>destination  %{{customdata[0]}}<br>source  %{{customdata[1]}}<extra></extra>"
    )


def row_hover(destination: str) -> str:
    """The hover box of a cell in a destination's row, whose customdata is the source's label."""
    return f"<b>%{{z:.4~g}}</b>  layer %{{y}}<br>destination  {destination}<br>source  %{{customdata}}<extra></extra>"


def effect_hover() -> str:
    """The hover box of an effect's cell, whose customdata is the source's label."""
    return "<b>%{z:+.4~g}</b>  layer %{y}<br>source  %{customdata}<extra></extra>"


def method_name(scores: Scores) -> str:
    """A method's name as people write it."""
    return label_of(scores.method)


def label_of(method: str) -> str:
    """A method's registered name as people write it.

    >>> label_of("alti"), label_of("attention_rollout")
    ('ALTI', 'Attention rollout')
    """
    return METHOD_NAMES.get(method, method.replace("_", " ").capitalize())


def sentence(scores: Scores) -> str:
    """The sources as one line of text, shortened, for plotly."""
    return plotly_text(short(" ".join(visible(token) for token in scores.src_tokens), SENTENCE_LENGTH))


def _layer_by_source(
    grid: Grid, layers: Sequence[int], tokens: Sequence[str], positions: Sequence[int], unit: str
) -> go.Figure:
    sources = _hover_labels(tokens, positions, unit)
    trace = go.Heatmap(
        z=grid,
        x=[str(p) for p in positions],
        y=[str(layer) for layer in layers],
        customdata=[sources for _ in layers],
        coloraxis="coloraxis",
        **_gaps(len(positions), len(layers)),
    )
    figure = go.Figure(trace)
    figure.update_layout(
        xaxis=_token_axis(tokens, positions, "source (column)") | {"side": "top"},
        yaxis={"type": "category", "title": {"text": "layer"}, "autorange": "reversed"},
        height=_height(len(layers), below=COLOUR_BAR_HEIGHT),
    )
    return figure


def _refuse_heads(scores: Scores) -> None:
    if scores.heads is not None:
        raise ScoresError(
            f"these scores are per head ({len(scores.heads)} heads): a map shows one head; select it, "
            "for example by computing the scores with heads=[0] and without per_head"
        )


def _layer_index(scores: Scores, layer: int | None) -> int:
    if layer is None:
        return 0
    if layer not in scores.layers:
        raise InputError(f"layer {layer} is not in these scores: expected one of {list(scores.layers)}")
    return scores.layers.index(layer)


def _hover_labels(tokens: Sequence[str], positions: Sequence[int], unit: str) -> list[str]:
    return [hover_text(token, position, unit) for token, position in zip(tokens, positions, strict=True)]


def _token_axis(tokens: Sequence[str], positions: Sequence[int], title: str) -> dict[str, Any]:
    # Positions are the categories and tokens only their labels: a repeated token stays two rows, and
    # plotly leaves out labels for which a long sentence has no room (it would draw every `ticktext`).
    places = [str(position) for position in positions]
    return {
        "type": "category",
        "categoryorder": "array",
        "categoryarray": places,
        "labelalias": {p: tick_text(token) for p, token in zip(places, tokens, strict=True)},
        "autotickangles": [0, -45, -90] if len(positions) <= SLANTED_LABELS_LIMIT else [0, -90],
        "tickfont": {"size": _tick_size(len(positions))},
        "title": {"text": title},
    }


def _tick_size(count: int) -> int:
    return 12 if count <= 32 else 10 if count <= 64 else 9


def _gaps(columns: int, rows: int) -> dict[str, int]:
    gap = 1 if max(columns, rows) <= CELL_GAP_LIMIT else 0
    return {"xgap": gap, "ygap": gap}


def _height(rows: int, *, below: int) -> int:
    cell = min(34, max(12, 560 // max(rows, 1)))
    return max(110, rows * cell) + HEADER_HEIGHT + below


def _title(text: str, subtitle: str) -> dict[str, Any]:
    return {"text": text, "subtitle": {"text": subtitle}, "yref": "container", "y": 1, "automargin": True}


def _from_zero(theme: Theme, maximum: float, name: str) -> dict[str, Any]:
    return {
        "colorscale": theme.sequential_ramp(),
        "cmin": 0,
        "cmax": maximum,
        "colorbar": {"title": {"text": name}},
    }


def _layer_slider(layers: Sequence[int], grids: Sequence[Grid], start: int, theme: Theme) -> dict[str, Any]:
    steps = [
        {
            "label": str(layer),
            "method": "update",
            "args": [
                {"z": [grid], "hovertemplate": [map_hover(f"layer {layer}")]},
                {"coloraxis.cmax": top(grid)},
                [0],
            ],
        }
        for layer, grid in zip(layers, grids, strict=True)
    ]
    return {
        "active": start,
        "steps": steps,
        "currentvalue": {"prefix": "layer ", "font": {"size": 14, "color": theme.ink}, "xanchor": "left"},
        "pad": {"t": COLOUR_BAR_HEIGHT + 16, "b": 8},
        "bgcolor": theme.line,
        "activebgcolor": theme.accent,
        "bordercolor": theme.line,
        "font": {"color": theme.muted},
    }
