"""One destination that draws on thousands of sources: a strip of layers to zoom into, and the largest shares listed."""

from dataclasses import dataclass
from math import ceil
from typing import Any, Unpack

import plotly.graph_objects as go
import torch
from jaxtyping import Float
from torch import Tensor

from tl_vzero.choices import at_least_one
from tl_vzero.plot import parts
from tl_vzero.plot.pages import in_percent
from tl_vzero.plot.theme import COLOUR_BAR_HEIGHT, LIGHT, Theme, template
from tl_vzero.scores import Scores
from tl_vzero.words import readable_pieces

MOST_CELLS, BINS = 2000, 1000  # of a row: more sources are drawn as bins, no more of them than a screen has pixels
LONG, DESTS = 500, 20  # a row from so many sources, where there are as many sources to a destination, is a long one
LISTED = 10
UNDERLINED = '<b style="text-decoration:underline">{}</b>'
AROUND = 4  # tokens on each side of a listed one
HEADER, SLIDER, LINE = 104, 76, 48  # pixels, as all sizes here: title and axis; a line of the list is two of text
LAYER, LEAST_STRIP, LARGEST_STRIP = 18, 90, 440


@dataclass(frozen=True)
class Source:
    """A listed source: its position (of spans, its column), its share and how far that may be off, and what is around.

    `around` are the texts before it, its own, and those behind it.
    """

    position: int
    share: float
    error: float | None
    around: tuple[str, str, str]

    @property
    def size(self) -> str:
        """Its share in words."""
        return in_percent(self.share) + ("" if self.error is None else f" ± {in_percent(self.error)}")


def is_long(scores: Scores) -> bool:
    """Whether scores are few rows over very many sources."""
    count = len(scores.src_tokens) if scores.omitted is None else n_sources(scores)
    return scores.heads is None and not scores.signed and count >= max(LONG, DESTS * len(scores.dest_tokens))


def long_row(
    scores: Scores,
    dest: int | str,
    *,
    layer: int | None = None,
    k: int = LISTED,
    theme: Theme = LIGHT,
    **look: Unpack[parts.Look],
) -> go.Figure:
    """Draw what one destination of a long text draws on: a strip `[layer, src]`, and the k largest shares of a layer.

    Shares are of the whole row; drag over the strip to zoom in. Of more than 2,000 sources a cell is a bin of
    neighbours, and its colour their sum. Each listed source has its position, its share, by how much that may be off
    (where `scores.error` is there), and the text around it; the last line is the rest of the row, with what was left
    out of the scores. `layer` is listed first (default: that of `telling_layer`), the others by a slider.
    Raises InputError for a destination or layer that is not there, ScoresError for scores per head or signed ones.

    >>> import torch
    >>> from tl_vzero.scores import Scores
    >>> tokens, places = tuple(f"w{i}" for i in range(3000)), tuple(range(3000))
    >>> row = Scores(torch.rand(2, 1, 3000), "alti", (0, 1), tokens[-1:], tokens, places[-1:], places, 2, 3000)
    >>> len(long_row(row.strongest(10), -1).data[-1].x)
    1000
    """
    parts.refuse_heads(scores)
    parts.refuse_signed(scores)
    k = at_least_one("k", k)
    row = scores.at_dest(dest).normalized()
    (label,) = parts.hover_labels(row.dest_tokens, row.dest_positions, row.unit, row.unknown_dests)
    start = parts.layer_index(row, row.telling_layer(row.dest_positions[0]) if layer is None else layer)
    cells, names, width = _strip(row)
    count, of_row = n_sources(row), len(row.src_tokens)
    listed = largest_sources(row, k)
    steps: list[parts.Step] = [
        (str(at), _list(sources, row, index, [names[source.position // width] for source in sources]), {})
        for index, (at, sources) in enumerate(zip(row.layers, listed, strict=True))
    ]
    text, mark, bar = ({name: values[trace] for name, values in steps[start][1].items()} for trace in range(3))
    unit = "word" if row.unit == "word" else "position"
    summed = f", sum of {width} {unit}s" if width > 1 else ""
    traces = [
        text | {"type": "scatter", "mode": "text", "textposition": "middle right", "yaxis": "y2", "xaxis": "x2"},
        mark | {"type": "scatter", "mode": "markers", "hovertemplate": "%{text}<extra></extra>"},
        bar | {"type": "bar", "orientation": "h", "yaxis": "y2", "xaxis": "x2", "width": 0.2, "hoverinfo": "skip"},
        {
            "type": "heatmap",
            "x": names,
            "y": [str(at) for at in row.layers],
            "z": parts.rounded(cells, 4),
            "coloraxis": "coloraxis",
            "hovertemplate": f"<b>%{{z:.4~g}}</b>  layer %{{y}}<br>{unit}  %{{x}}<extra></extra>",
        },
    ]
    traces[0] |= {"hoverinfo": "skip", "cliponaxis": True}
    traces[1] |= {"marker": {"size": 9, "symbol": "circle-open", "line": {"width": 2}}}
    name = f"{parts.VALUE_NAMES[row.stage]}{summed}, square-root scale"
    layout = _frame(len(row.layers), k + 1, theme) | {
        "title": parts.titled(
            f"{parts.method_text(row)}: what {label} draws on, layer by layer",
            f"{'' if count == of_row else f'{of_row:,} of '}{count:,} sources · drag over the strip to zoom in",
        ),
        "coloraxis": parts.from_zero(theme, parts.top(cells.tolist()), name, "sqrt"),
    }
    slider, bar_place = layout.pop("places")
    layout["coloraxis"]["colorbar"] |= {"y": bar_place}
    layout["xaxis"] |= {
        "categoryorder": "array",
        "categoryarray": names,
        "labelalias": {name: str(index * width) for index, name in enumerate(names)},
        "range": [-0.5, len(names) - 0.5],
        "title": {"text": f"{unit} of the source"},
    }
    layout["yaxis"] |= {"categoryorder": "array", "categoryarray": [str(at) for at in row.layers]}
    layout["sliders"] = [parts.step_slider(steps, start, theme, prefix="largest shares of layer ") | slider]
    return parts.drawn(traces, layout, **look)


def largest_sources(row: Scores, k: int) -> list[list[Source]]:
    """In each layer, the k sources with the largest shares of a normalised row, the largest first; none without any."""
    texts = _texts(row)
    places = _places(row)
    listed = []
    for layer, shares in enumerate(row.values[:, 0]):
        order = shares.sort(descending=True, stable=True).indices[:k].tolist()
        listed.append(
            [
                Source(
                    places[at],
                    float(shares[at]),
                    None if row.error is None else float(row.error[layer, 0, at]),
                    _around(texts, places[at]),
                )
                for at in order
                if shares[at] > 0
            ]
        )
    return listed


def remainder(row: Scores, layer: int, listed: list[Source]) -> tuple[float, float]:
    """What a normalised row has beside the listed sources, and the part of it that was left out of the scores."""
    omitted = 0.0 if row.omitted is None else float(row.omitted[layer, 0])
    whole = float(row.values[layer, 0].double().sum()) + omitted
    return max(whole - sum(source.share for source in listed), omitted), omitted


@dataclass(frozen=True)
class _Texts:
    """The text of each source of a sentence by its position, "…" where it is not there; a file may say any count."""

    count: int
    tokens: dict[int, str]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, at: int) -> str:
        return parts.visible(self.tokens[at]) if at in self.tokens else "…"


def _texts(scores: Scores) -> _Texts:
    """The texts of all sources, also of those that were left out; of spans, by column."""
    tokens = scores.metadata.get("src_tokens")
    if scores.src_spans is not None or tokens is None:
        places = zip(_places(scores), readable_pieces(scores.src_tokens), strict=True)
        return _Texts(n_sources(scores), dict(places))
    return _Texts(len(tokens), dict(enumerate(readable_pieces(tokens))))


def n_sources(scores: Scores) -> int:
    """How many sources the sentence has; of spans, how many spans there are."""
    if scores.src_spans is not None:
        return len(scores.src_spans)
    return scores.n_positions if scores.n_src_positions is None else scores.n_src_positions


def _places(scores: Scores) -> tuple[int, ...]:
    return scores.src_positions if scores.src_spans is None else tuple(range(len(scores.src_spans)))


def _around(texts: _Texts, at: int) -> tuple[str, str, str]:
    before = [texts[i] for i in range(max(0, at - AROUND), at)]
    behind = [texts[i] for i in range(at + 1, min(len(texts), at + AROUND + 1))]
    return " ".join(map(parts.short, before)), texts[at], " ".join(map(parts.short, behind))


def _strip(row: Scores) -> tuple[Float[Tensor, "layer cell"], list[str], int]:
    """The shares of all sources, or of bins of neighbours, what these are called, and the sources to a cell."""
    texts = _texts(row)
    width = 1 if len(texts) <= MOST_CELLS else ceil(len(texts) / BINS)
    starts = range(0, len(texts), width)
    at = torch.tensor(_places(row), device=row.values.device) // width
    cells = torch.zeros(len(row.layers), len(starts), dtype=row.values.dtype, device=row.values.device)
    cells.index_add_(1, at, row.values[:, 0])
    if width == 1:
        return cells, [f"{i} {parts.plotly_text(parts.short(texts[i]))}" for i in starts], width
    return cells, [f"{i}–{min(i + width, len(texts)) - 1}" for i in starts], width


def _list(sources: list[Source], row: Scores, layer: int, names: list[str]) -> dict[str, list[Any]]:
    """What a layer changes in the traces of the list's texts, of the marks on the strip and of the bars."""
    unit = "word" if row.unit == "word" else "position"
    texts, marks = [], []
    for source in sources:
        before, token, behind = map(parts.plotly_text, source.around)
        text = parts.plotly_text(parts.short(source.around[1]))
        size = parts.plotly_text(source.size)
        marks.append(f"{text} · {unit} {source.position} · {size}")
        around = f"{before} {UNDERLINED.format(token)} {behind}".strip()
        texts.append(f"<b>{text}</b>  {size}  at {unit} {source.position}<br>{around}")
    rest, omitted = remainder(row, layer, sources)
    left_out = (
        f"<br>{parts.plotly_text(in_percent(omitted))} of the row was left out of these scores" if omitted else ""
    )
    texts.append(f"<b>all other sources</b>  {parts.plotly_text(in_percent(rest))}{left_out}")
    lines = range(len(texts))
    return {
        "x": [[0.0] * len(texts), names, [source.share for source in sources]],
        "y": [
            [line - 0.08 for line in lines],
            [str(row.layers[layer])] * len(sources),
            [line + 0.33 for line in lines],
        ],
        "text": [texts, marks, []],
    }


def _frame(layers: int, lines: int, theme: Theme) -> dict[str, Any]:
    """Axes and sizes of the strip above the list, and where a slider and a colour bar stand between them."""
    strip, gap, below = min(LARGEST_STRIP, max(LEAST_STRIP, layers * LAYER)), COLOUR_BAR_HEIGHT + SLIDER, lines * LINE
    inside = strip + gap + below
    strip_from, list_to = 1 - strip / inside, below / inside
    return {
        "template": template(theme),
        "colorway": [theme.ink, theme.mark, theme.accent],
        "showlegend": False,
        "height": inside + HEADER + 24,
        "margin": {"b": 24},
        "xaxis": {
            "type": "category",
            "side": "top",
            "anchor": "y",
            "nticks": 6,
            "tickangle": 0,
        },
        "yaxis": {
            "type": "category",
            "title": {"text": "layer"},
            "autorange": "reversed",
            "domain": [strip_from, 1],
            "fixedrange": True,
        },
        "xaxis2": {"anchor": "y2", "rangemode": "tozero", "visible": False, "fixedrange": True},
        "yaxis2": {"range": [lines - 0.4, -0.6], "domain": [0, list_to], "visible": False, "fixedrange": True},
        "places": (
            {"y": list_to + (SLIDER - 4) / inside, "yanchor": "top", "pad": {"t": 0, "b": 0}},
            strip_from,
        ),
    }
