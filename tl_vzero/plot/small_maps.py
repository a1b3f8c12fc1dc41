"""Many maps in one figure, on one colour scale: all layers, all heads of a layer, several methods."""

from collections.abc import Mapping, Sequence
from itertools import chain
from math import ceil
from typing import Any, Unpack

import plotly.graph_objects as go
from jaxtyping import Float
from plotly.subplots import make_subplots
from torch import Tensor, stack

from tl_vzero.choices import at_least_one
from tl_vzero.errors import InputError, InputTypeError, ScoresError
from tl_vzero.plot import parts
from tl_vzero.plot.theme import LIGHT, Theme, template
from tl_vzero.registry import label_of
from tl_vzero.scores import Scores

PANEL_DIGITS = 4
PANEL_TITLE = 26  # pixels, as all sizes here
FIGURE_WIDTH = 1100  # what heights are computed for; a figure is as wide as its page
USUAL_ACROSS, MOST_ACROSS = 4, 6
HEADER, UNTITLED = 104, 36  # title, subtitle and the first names; these alone
TOKEN_LABELS = 110
GAP = 22
LABELLED_CELLS = 20_000  # of all maps together


def layer_grid(
    scores: Scores,
    *,
    columns: int | None = None,
    view: parts.View = parts.WHOLE,
    theme: Theme = LIGHT,
    **look: Unpack[parts.Look],
) -> go.Figure:
    """Draw every layer's map `[dest, src]` beside each other, on one colour scale that starts at 0.

    `columns` is how many stand in a row (default: at most 6, so that the rows are full). The figure holds 4 significant
    digits: 1.9 MB for 128 tokens in 12 layers. `view` is what of the maps is drawn.
    Raises ScoresError for scores per head, InputError for less than one column.
    Source: Mohebbi et al. 2023, whose maps are shown so.

    >>> import tl_vzero
    >>> model = tl_vzero.load_model("agreement-mini")
    >>> scores = tl_vzero.value_zeroing(model, "the pictures of some hat [MASK] scaring marcus.").normalized()
    >>> figure = layer_grid(scores)
    >>> len(figure.data), figure.layout.annotations[3].text
    (4, 'layer 3')
    """
    parts.refuse_heads(scores)
    scores, row = parts.viewed(scores, view)
    return _panels(
        scores,
        [f"layer {layer}" for layer in scores.layers],
        [("", scores.values)],
        heading=f"{parts.method_text(scores)} in every layer: {parts.STAGES[scores.stage]}",
        columns=columns,
        row=row,
        view=view,
        theme=theme,
        **look,
    )


def head_grid(
    scores: Scores,
    *,
    layer: int | None = None,
    columns: int | None = None,
    view: parts.View = parts.WHOLE,
    theme: Theme = LIGHT,
    **look: Unpack[parts.Look],
) -> go.Figure:
    """Draw every head's map of one layer beside each other, with a layer slider; one colour scale a layer.

    `scores` are per head, `[layer, head, dest, src]`; `layer` is the one shown first (default: the first),
    `view` what of the maps is drawn.
    Raises ScoresError for scores that are not per head, InputError for a layer that the scores do not have.

    >>> import tl_vzero
    >>> model = tl_vzero.load_model("agreement-mini")
    >>> scores = tl_vzero.value_zeroing(model, "the hat [MASK] old.", per_head=True).normalized()
    >>> [note.text for note in head_grid(scores, layer=1).layout.annotations][:2]
    ['head 0', 'head 1']
    """
    if scores.heads is None:
        raise ScoresError(
            "these scores are not per head: expected [layer, head, dest, src]; compute them with per_head=True, or "
            "draw them by heatmap or layer_grid"
        )
    start, names = parts.layer_index(scores, layer), [f"head {head}" for head in scores.heads]
    scores, row = parts.viewed(scores, view)
    return _panels(
        scores,
        names,
        [(str(index), values) for index, values in zip(scores.layers, scores.values, strict=True)],
        start=start,
        heading=f"{parts.method_text(scores)}, every head by itself: {parts.STAGES[scores.stage]}",
        columns=columns,
        row=row,
        view=view,
        theme=theme,
        **look,
    )


def method_comparison(
    scores: Mapping[str, Scores] | Sequence[Scores],
    *,
    layer: int | None = None,
    columns: int | None = None,
    view: parts.View = parts.WHOLE,
    theme: Theme = LIGHT,
    **look: Unpack[parts.Look],
) -> go.Figure:
    """Draw several methods' maps of one sentence side by side, with a layer slider; one colour scale a layer.

    Rows must sum to one, normalised or rolled out, unless all are raw scores of one method: raw scores of different
    methods have different units. A mapping's names stand above the maps. `view` is what of the maps is drawn.
    Raises ScoresError for maps that cannot be compared, InputError for none or for a layer that is not there.

    >>> import tl_vzero
    >>> model = tl_vzero.load_model("agreement-mini")
    >>> compared = tl_vzero.compare(model, "the hat [MASK] old.", methods=["value_zeroing", "attention"])
    >>> figure = method_comparison([scores.normalized() for scores in compared.values()])
    >>> [note.text for note in figure.layout.annotations]
    ['Value Zeroing', 'Raw attention']
    """
    by_name = _by_name(scores)
    first = next(iter(by_name.values()))
    for name, other in by_name.items():
        _refuse_incomparable(first, name, other)
    by_name = {name: parts.viewed(other, view)[0] for name, other in by_name.items()}
    first, row = parts.viewed(first, view)
    return _panels(
        first,
        list(by_name),
        [
            (str(index), stack([other.values[at].to(first.values) for other in by_name.values()]))
            for at, index in enumerate(first.layers)
        ],
        start=parts.layer_index(first, layer),
        heading="Methods side by side",
        columns=columns,
        row=row,
        view=view,
        theme=theme,
        **look,
    )


def _by_name(scores: Mapping[str, Scores] | Sequence[Scores]) -> dict[str, Scores]:
    if isinstance(scores, Scores) or not isinstance(scores, Mapping | Sequence):
        raise InputTypeError(f"scores is {type(scores).__name__}: expected several Scores, as a list or by name")
    if not scores:
        raise InputError("scores are empty: expected the Scores of at least one method")
    if isinstance(scores, Mapping):
        return {of.label if name == of.method else label_of(name): of for name, of in scores.items()}
    by_name: dict[str, Scores] = {}
    for of_method in scores:
        name = of_method.label
        alike = sum(other.label == name for other in by_name.values())
        by_name[f"{name} ({alike + 1})" if alike else name] = of_method
    return by_name


def _refuse_incomparable(first: Scores, name: str, other: Scores) -> None:
    parts.refuse_heads(other)
    labels = ("layers", "dest_tokens", "src_tokens", "dest_positions", "src_positions", "src_spans")
    if any(getattr(first, label) != getattr(other, label) for label in labels):
        raise ScoresError(
            f"{name} has {len(other.layers)} layers, {len(other.dest_tokens)} destinations and {len(other.src_tokens)} "
            f"sources, {first.label} has {len(first.layers)}, {len(first.dest_tokens)} and "
            f"{len(first.src_tokens)}: expected the same layers, tokens and positions"
        )
    of_two_kinds = (first.stage, first.method) != (other.stage, other.method)
    if of_two_kinds and {"raw", "difference"} & {first.stage, other.stage}:
        raise ScoresError(
            f"{name} is {other.stage} and {first.label} is {first.stage}: raw scores share no scale with "
            "others, and a difference none with shares; call normalized() or rollout() on each"
        )


def _panels(
    scores: Scores,
    names: Sequence[str],
    steps: Sequence[tuple[str, Float[Tensor, "panel dest src"]]],
    *,
    heading: str,
    columns: int | None,
    row: int | None,
    view: parts.View,
    theme: Theme,
    start: int = 0,
    **look: Unpack[parts.Look],
) -> go.Figure:
    """A figure of maps with the labels of `scores`, one per name; a slider where there are several steps."""
    across = _across(len(names), columns)
    grids = [[parts.rounded(values, PANEL_DIGITS) for values in maps] for _, maps in steps]
    width = look.get("width") or FIGURE_WIDTH
    header = (UNTITLED if look.get("title") == "" else HEADER) + (parts.SLIDER_ABOVE if len(steps) > 1 else 0)
    figure = _axes(scores, len(names), across, theme, width, header)
    destination, source, labels = _hover(scores, len(names))
    for panel, (name, grid) in enumerate(zip(names, grids[start], strict=True)):
        place = {"row": panel // across + 1, "col": panel % across + 1}
        cells = go.Heatmap(
            z=grid,
            x=parts.source_places(scores),
            y=[str(position) for position in scores.dest_positions],
            coloraxis="coloraxis",
            hovertemplate=parts.hover_box(parts.plotly_text(name), destination, source),
            customdata=labels,
            **parts.gaps(len(scores.src_tokens) * across // 2, len(scores.dest_tokens) * across // 2),
        )
        figure.add_trace(cells, **place)
        corner = {"xref": "x domain", "yref": "y domain", "x": 0, "y": 1, "xanchor": "left", "yanchor": "bottom"}
        font = {"size": 12, "color": theme.ink}
        figure.add_annotation(text=parts.plotly_text(name), showarrow=False, font=font, **corner, **place)
    figure.update_layout(
        title=parts.titled(heading, parts.sentence(scores))
        | {"automargin": False, "yanchor": "top", "pad": {"l": 16, "t": 14}},
        coloraxis=_colours(parts.scale_of(scores, [*chain(*grids[start])], theme, view)),
    )
    if len(steps) > 1:
        changes: list[parts.Step] = [
            (label, {"z": maps}, parts.ends_of(parts.scale_of(scores, [*chain(*maps)], theme)))
            for (label, _), maps in zip(steps, grids, strict=True)
        ]
        # Between title and maps, as token labels of any length stand below.
        above = {"y": 1, "yanchor": "bottom", "pad": {"t": 0, "b": PANEL_TITLE + 4}, "len": 1, "x": 0}
        figure.update_layout(sliders=[parts.step_slider(changes, start, theme) | above])
    return parts.mark_row(parts.drawn(figure.data, figure.layout, **look), scores, row, theme)


def _across(panels: int, columns: int | None) -> int:
    """How many maps stand in a row: as many as leave the fewest places of the last row empty."""
    if columns is not None:
        return min(at_least_one("columns", columns, "a whole number of maps in a row"), panels)
    choices = range(3, MOST_ACROSS + 1)
    return panels if panels <= USUAL_ACROSS else min(choices, key=lambda n: (-panels % n, abs(n - USUAL_ACROSS)))


def _axes(scores: Scores, panels: int, across: int, theme: Theme, page_width: int, header: int) -> go.Figure:
    """A figure without maps: square cells on a page of usual width, with room for labels and titles."""
    down = ceil(panels / across)
    width = (page_width - TOKEN_LABELS - 100) / across - GAP
    square = width * len(scores.dest_tokens) / max(len(scores.src_tokens), 1)
    height = min(max(square, 90.0, len(scores.dest_tokens) * 2.0), 4 * width)
    inner = down * height + (down - 1) * PANEL_TITLE
    figure = make_subplots(
        down,
        across,
        specs=[[{} if row * across + column < panels else None for column in range(across)] for row in range(down)],
        shared_xaxes="all",  # zooming into one map zooms into all
        shared_yaxes="all",
        horizontal_spacing=GAP / (page_width - TOKEN_LABELS),
        vertical_spacing=PANEL_TITLE / inner,
    )
    margin = {"l": 24, "r": 24, "t": header, "b": 24}
    figure.update_layout(template=template(theme), height=inner + header + TOKEN_LABELS, margin=margin)
    places = [str(position) for position in scores.dest_positions]
    rows = parts.token_axis(scores.dest_tokens, places, "", scores.unknown_dests)
    columns = parts.token_axis(scores.src_tokens, parts.source_places(scores), "", scores.unknown_sources)
    columns["autotickangles"] = [-90]
    figure.update_xaxes(columns | {"tickfont": {"size": 10}, "showticklabels": False})
    figure.update_yaxes(rows | {"tickfont": {"size": 10}, "autorange": "reversed", "constrain": "domain"})
    figure.update_xaxes(constrain="domain").layout.yaxis.scaleanchor = "x"  # which the others match
    for panel in range(max(panels - across, 0), panels):  # none stands below them
        figure.update_xaxes(showticklabels=True, row=panel // across + 1, col=panel % across + 1)
    row_title, column_title = parts.axis_titles(scores)
    figure.update_xaxes(title_text=column_title, row=down, col=1)
    figure.update_yaxes(title_text=row_title, row=1, col=1)
    return figure


def _hover(scores: Scores, panels: int) -> tuple[str, str, list[list[list[str]]] | None]:
    """Destination and source in the hover box, and the cells' labels where an axis holds not all of a token.

    Labels for each cell of each map make many megabytes of a long sentence: there the hover box shows what the axis
    shows, a token cut at 16 characters and its position (a category is named by its position, which a number format
    writes; without one the axis writes the token).
    """
    cut = any(len(parts.visible(token)) > parts.TICK_LENGTH for token in (*scores.dest_tokens, *scores.src_tokens))
    few = panels * len(scores.dest_tokens) * len(scores.src_tokens) <= LABELLED_CELLS
    if scores.src_spans is not None or (cut and few):
        return "%{customdata[0]}", "%{customdata[1]}", parts.cell_labels(scores)
    place = "word" if scores.unit == "word" else "position"
    return f"%{{y}} · {place} %{{y:d}}", f"%{{x}} · {place} %{{x:d}}", None


def _colours(scale: dict[str, Any]) -> dict[str, Any]:
    """A scale at the right, as token labels stand below."""
    scale["colorbar"] |= {
        "orientation": "v",
        "x": 1.01,
        "xanchor": "left",
        "xpad": 4,
        "y": 1,
        "yanchor": "top",
        "ypad": 0,
        "lenmode": "pixels",
        "len": 180,
        "title": scale["colorbar"]["title"] | {"side": "right"},
    }
    return scale
