"""Heat maps of Scores and of effects. Rows are destinations, columns are sources. What a page draws of a map by itself,
without numbers and colours, is here as plain data."""

from collections.abc import Sequence
from dataclasses import replace
from math import isnan
from typing import Any, Unpack, get_args

import plotly.graph_objects as go
import torch

from tl_vzero.difference import Alignment, of_baseline
from tl_vzero.effects.measure import Effect, EffectMethod, PatchingEffect
from tl_vzero.errors import InputError
from tl_vzero.evaluate.averages import MeanScores
from tl_vzero.plot import parts
from tl_vzero.plot.theme import COLOUR_BAR_HEIGHT, LIGHT, Theme, template
from tl_vzero.scores import Scores

EFFECT_NAMES: dict[str, str] = {
    name: name.replace("_", " ").replace("resid pre", "resid_pre") for name in get_args(EffectMethod)
}
PATCHED_NAMES = {
    "value_patching": "value",
    "resid_pre_patching": "residual stream",
    "attn_out_patching": "attention output",
    "mlp_out_patching": "MLP output",
    "q_patching": "query",
    "k_patching": "key",
    "z_patching": "mixed values",
    "pattern_patching": "pattern row",
}
EFFECT_TITLES = {
    "zero_ablation": "Effect of zeroing a value on the prediction",
    **{name: f"Effect of patching in the clean sentence's {patched}" for name, patched in PATCHED_NAMES.items()},
    "direct_path_patching": "Effect of patching one head's path into another",
    "logit_lens": "What the model's head reads after each layer",
    "direct_logit_attribution": "What attention adds directly to the prediction",
    "attribution_patching": "Estimated effect of zeroing a value on the prediction",
    "attention_knockout": "Attention knockout: effect of cutting off a source on the prediction",
}
# Of a cell of an effect, whose customdata is the source's label.
EFFECT_HOVER = "<b>%{z:+.4~g}</b>  layer %{y}<br>source  %{customdata}<extra></extra>"
SLIDER_HEIGHT = 90
LARGEST_CELL, SMALLEST_CELL, MAP_SIZE = 40, 12, 560  # pixels
LABELS_WIDTH, LEAST_WIDTH = 200, 720  # beside a map's cells, and what a title needs
HEADER_HEIGHT = 150  # title, axis title and token labels
Json = dict[str, Any]


def heatmap(
    scores: Scores,
    *,
    layer: int | None = None,
    view: parts.View = parts.WHOLE,
    theme: Theme = LIGHT,
    **look: Unpack[parts.Look],
) -> go.Figure:
    """Draw `[layer, dest, src]` as a heat map with a layer slider; destinations are rows, sources columns.

    The colour scale starts at exactly 0 and ends at the largest value of the layer shown; that of signed scores, such
    as a difference, is centred on 0. `layer` is the one shown first (default: the first of the scores), `view` what of
    the map is drawn. The figure holds 6 significant digits: 3.3 MB for 128 tokens in 12 layers. Raises ScoresError for
    scores per head, InputError for a layer that the scores do not have.

    >>> import torch
    >>> from tl_vzero.scores import Scores
    >>> maps = torch.tensor([[[1.0, 0.0], [0.5, 0.5]]])
    >>> scores = Scores(maps, "attention", (0,), ("a", "b"), ("a", "b"), (0, 1), (0, 1), 1, 2)
    >>> heatmap(scores).layout.yaxis.title.text
    'destination (row)'
    """
    parts.refuse_heads(scores)
    start = parts.layer_index(scores, layer)
    scores, row = parts.viewed(scores, view)
    grids = [parts.rounded(values) for values in scores.values]
    trace, layout = parts.layered(scores, grids, lambda index: parts.hover_box(f"layer {index}"), start, theme, view)
    cells, axes = _map_with_slider(scores)
    trace["customdata"] = parts.cell_labels(scores)
    layout |= axes | {
        "title": parts.titled(f"{parts.method_text(scores)}: {parts.STAGES[scores.stage]}", parts.sentence(scores)),
    }
    layout["coloraxis"]["colorbar"]["len"] = 0.5  # the cells, which are square, may end before the figure does
    return parts.mark_row(parts.drawn([cells | trace], layout, **look), scores, row, theme)


def difference(
    first: Scores,
    second: Scores,
    *,
    alignment: Alignment | None = None,
    layer: int | None = None,
    view: parts.View = parts.WHOLE,
    theme: Theme = LIGHT,
    **look: Unpack[parts.Look],
) -> go.Figure:
    """Draw what the first map has more than the second: as `heatmap`, with 0 as the middle colour.

    Both tokens stand on the axes where they differ, and the title says what was subtracted. `alignment` and errors are
    those of `Scores.difference`, all else is as of `heatmap`.

    >>> import torch
    >>> from tl_vzero.scores import Scores
    >>> labels = {"dest_positions": (0, 1), "src_positions": (0, 1), "n_layers": 1, "n_positions": 2}
    >>> one = Scores(torch.eye(2)[None], "alti", (0,), ("the", "hat"), ("the", "hat"), **labels)
    >>> other = Scores(torch.ones(1, 2, 2) / 2, "alti", (0,), ("the", "hats"), ("the", "hats"), **labels)
    >>> difference(one, other).layout.title.text
    'ALTI (hat) minus ALTI (hats): difference of two maps'
    """
    parts.refuse_heads(first)
    return heatmap(first.difference(second, alignment=alignment), layer=layer, view=view, theme=theme, **look)


def mean_map(
    mean: MeanScores,
    *,
    layer: int | None = None,
    head: int | None = None,
    theme: Theme = LIGHT,
    **look: Unpack[parts.Look],
) -> go.Figure:
    """Draw means over sentences as a heat map with a layer slider; a pair of groups that no sentence has is blank.

    The hover box has the interval, and how many sentences have the pair. `layer` is the one shown first (default: the
    first), and `head` the one that is drawn of means per head. Raises InputError for means per head without one, and
    for a layer or a head that they do not have.

    >>> import torch
    >>> import tl_vzero
    >>> from tl_vzero.scores import Scores
    >>> maps = torch.tensor([[[1.0, 0.0], [0.5, 0.5]]])
    >>> scores = Scores(maps, "attention", (0,), ("a", "b"), ("a", "b"), (0, 1), (0, 1), 1, 2)
    >>> mean_map(tl_vzero.mean([scores], by="word")).data[0].customdata[1][0]
    ['b', 'a', '1', '']
    """
    of_head = "" if head is None else f", head {head}"
    mean = _of_head(mean, head)
    scores = _groups_as_tokens(mean)
    start = parts.layer_index(scores, layer)
    grids = [[[None if isnan(value) else value for value in row] for row in parts.rounded(of)] for of in mean.values]

    def hover(shown: int) -> str:
        interval = f"%{{customdata[{3 + mean.layers.index(shown)}]}}"
        return parts.hover_box(f"layer {shown}{interval}<br>sentences  %{{customdata[2]}}")

    trace, layout = parts.layered(scores, grids, hover, start, theme)
    cells, axes = _map_with_slider(scores)
    trace["customdata"] = _mean_labels(mean)
    title = f"{parts.method_text(scores)}{of_head}, means by {mean.by}: {parts.STAGES[mean.stage]}"
    layout |= axes | {"title": parts.titled(title, f"up to {int(mean.n.max())} sentences")}
    return parts.drawn([cells | trace], layout, **look)


def _of_head(mean: MeanScores, head: int | None) -> MeanScores:
    """Means as one map per layer."""
    if mean.heads is None and head is None:
        return mean
    if mean.heads is None or head not in mean.heads:
        expected = (
            "no head" if mean.heads is None else f"head= of {', '.join(map(str, mean.heads))}, or read to_frame()"
        )
        raise InputError(
            f"head is {head}, of means per {'layer' if mean.heads is None else 'head'}: expected {expected}"
        )
    at = mean.heads.index(head)
    values, low, high = (part[:, at] for part in (mean.values, mean.low, mean.high))
    return replace(mean, values=values, low=low, high=high, heads=None)


def _groups_as_tokens(mean: MeanScores) -> Scores:
    """Means as a map whose tokens are the groups, with 0 where no sentence has a pair."""
    return Scores(
        values=mean.values.nan_to_num(),
        method=mean.method,
        layers=mean.layers,
        dest_tokens=tuple(map(str, mean.dest_groups)),
        src_tokens=tuple(map(str, mean.src_groups)),
        dest_positions=tuple(range(len(mean.dest_groups))),
        src_positions=tuple(range(len(mean.src_groups))),
        n_layers=max(mean.layers) + 1,
        n_positions=len(mean.src_groups),
        stage=mean.stage,
        metadata={"options": {"baseline": mean.baseline}},
    )


def _mean_labels(mean: MeanScores) -> list[list[list[str]]]:
    """Of each cell the destination's and the source's group, the count of sentences, and each layer's interval."""
    name = f"{100 * mean.confidence:.4g} % interval"
    intervals = torch.stack([mean.low, mean.high], dim=-1).movedim(0, 2).tolist()  # [dest, src, layer, bound]
    dests, sources = (
        [parts.plotly_text(parts.visible(str(group))) for group in groups]
        for groups in (mean.dest_groups, mean.src_groups)
    )
    return [
        [
            [dest, source, str(int(mean.n[row, column]))]
            + ["" if isnan(low) else f"<br>{name}  {low:.4g} to {high:.4g}" for low, high in intervals[row][column]]
            for column, source in enumerate(sources)
        ]
        for row, dest in enumerate(dests)
    ]


def target_row(
    scores: Scores,
    dest: int | str,
    *,
    view: parts.View = parts.WHOLE,
    theme: Theme = LIGHT,
    **look: Unpack[parts.Look],
) -> go.Figure:
    """Draw one destination's row in every layer: layers are rows (first on top), sources columns.

    `dest` is a position (negative: from the end of the map's destinations), or a token that occurs once.
    Raises InputError for one that is not there, ScoresError for scores per head.
    """
    parts.refuse_heads(scores)
    scores, row = parts.viewed(scores, view, dest)
    assert row is not None
    grid = parts.rounded(scores.values[:, row])
    labels, sources = parts.axis_labels(scores)
    label = labels[row]
    cells, axes = layer_frame(scores.layers, source_axis(scores))
    trace = cells | {"z": grid, "customdata": [sources for _ in scores.layers], "hovertemplate": row_hover(label)}
    layout = axes | {
        "template": template(theme),
        "title": parts.titled(
            f"{parts.method_text(scores)}: what {label} draws on, layer by layer", parts.sentence(scores)
        ),
        "coloraxis": parts.scale_of(scores, grid, theme, view),
    }
    return parts.drawn([trace], layout, **look)


def effect_map(effect: Effect, *, theme: Theme = LIGHT, **look: Unpack[parts.Look]) -> go.Figure:
    """Draw an effect `[layer, src]`: layers are rows (first on top), sources columns; 0 is the middle colour.

    Raises InputError for an effect per head.

    >>> import torch
    >>> from tl_vzero.effects.measure import Effect, PatchingEffect
    >>> effect = Effect(torch.tensor([[-2.0, 0.5]]), 3.0, "logit of is", 1, "is", (), (0,), ("a", "b"), (0, 1))
    >>> figure = effect_map(effect)
    >>> figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax
    (-2.0, 2.0)
    """
    if effect.heads is not None:
        raise InputError(
            f"this effect is per head ({len(effect.heads)} heads): expected one row per layer; compute it without "
            "per_head"
        )
    cells, axes = effect_frame(effect)
    labels = effect_labels(effect)
    cells |= {
        "z": parts.rounded(effect.values),
        "customdata": [labels] * len(effect.layers),
        "hovertemplate": EFFECT_HOVER,
    }
    layout = axes | {
        "template": template(theme),
        "title": parts.titled(effect_title(effect), f"at position {effect.target}"),
        "coloraxis": effect_scale(effect, theme),
    }
    return parts.drawn([cells], layout, **look)


def map_frame(scores: Scores) -> tuple[Json, Json]:
    """A map without its numbers and colours, as plain data: the cells of its trace, and the axes and height around."""
    columns, rows = parts.source_places(scores), [str(position) for position in scores.dest_positions]
    axes = {
        "xaxis": source_axis(scores) | {"side": "top", "constrain": "domain", "constraintoward": "left"},
        "yaxis": parts.token_axis(scores.dest_tokens, rows, parts.axis_titles(scores)[0], scores.unknown_dests)
        | parts.SQUARE,
        "height": _height(len(rows)),
    }
    return _cells(columns, rows), axes


def _map_with_slider(scores: Scores) -> tuple[Json, Json]:
    """A map's frame with room for a slider below."""
    cells, axes = map_frame(scores)
    width = max(LEAST_WIDTH, len(scores.src_tokens) * _cell(len(scores.dest_tokens)) + LABELS_WIDTH)
    return cells, axes | {"height": axes["height"] + SLIDER_HEIGHT, "width": width}


def layer_frame(layers: Sequence[int], columns: Json) -> tuple[Json, Json]:
    """A picture of layers (rows, first on top) and sources without its numbers and colours, as plain data."""
    axes = {
        "xaxis": columns | {"side": "top"},
        "yaxis": {"type": "category", "title": {"text": "layer"}, "autorange": "reversed"},
        "height": _height(len(layers)),
    }
    return _cells(columns["categoryarray"], [str(layer) for layer in layers]), axes


def effect_frame(effect: Effect) -> tuple[Json, Json]:
    """An effect without its numbers and colours, as plain data: the cells of its trace, and what is around."""
    places = [str(position) for position in effect.src_positions]
    columns = parts.token_axis(_effect_sources(effect), places, "source (column)", _unknown_sources(effect))
    return layer_frame(effect.layers, columns)


def source_axis(scores: Scores) -> Json:
    """The axis of a map's sources."""
    places, title = parts.source_places(scores), parts.axis_titles(scores)[1]
    return parts.token_axis(scores.src_tokens, places, title, scores.unknown_sources)


def effect_title(effect: Effect) -> str:
    """What an effect is of, with what took a value's place where that is not zero; as plotly's text."""
    title, behind = EFFECT_TITLES[effect.method], of_baseline(effect.metadata)
    return title.replace("zeroing", "replacing") + parts.plotly_text(behind) if behind else title


def effect_name(effect: Effect) -> str:
    """An effect's name in lists, with its baseline where that is not zero."""
    return EFFECT_NAMES[effect.method] + of_baseline(effect.metadata)


def effect_labels(effect: Effect) -> list[str]:
    """The labels of an effect's sources in hover boxes."""
    return parts.hover_labels(_effect_sources(effect), effect.src_positions, "token", _unknown_sources(effect))


def effect_scale(effect: Effect, theme: Theme = LIGHT) -> Json:
    """A colour scale whose middle is exactly 0 and whose ends are the largest size of the effect."""
    shown = {"logit_lens": "", "direct_logit_attribution": "part of the "}.get(effect.method, "change of the ")
    name = f"{shown}{parts.plotly_text(parts.visible(effect.metric))}"
    return parts.around_zero(theme, parts.rounded(effect.values), name)


def row_hover(destination: str) -> str:
    """The hover box of a cell in a destination's row, whose customdata is the source's label."""
    return parts.hover_box("layer %{y}", destination, "%{customdata}")


def _effect_sources(effect: Effect) -> tuple[str, ...]:
    """The sources; of patching, what is put in place of what, where the two sentences differ."""
    if not isinstance(effect, PatchingEffect):
        return effect.src_tokens
    pairs = zip(effect.src_tokens, effect.corrupted_tokens, strict=True)
    return tuple(one if one == other else f"{parts.visible(one)} / {parts.visible(other)}" for one, other in pairs)


def _unknown_sources(effect: Effect) -> list[bool]:
    return [position in effect.metadata.get("unknown", ()) for position in effect.src_positions]


def _cells(columns: list[str], rows: list[str]) -> Json:
    return {"type": "heatmap", "x": columns, "y": rows, "coloraxis": "coloraxis", **parts.gaps(len(columns), len(rows))}


def _cell(rows: int) -> int:
    return min(LARGEST_CELL, max(SMALLEST_CELL, MAP_SIZE // max(rows, 1)))


def _height(rows: int) -> int:
    return max(110, rows * _cell(rows)) + HEADER_HEIGHT + COLOUR_BAR_HEIGHT
