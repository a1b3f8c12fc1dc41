"""What the figures share: the names of methods and the text of tokens, checks of a caller's choices, axes, titles,
hover boxes, colour scales and sliders."""

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import nan
from numbers import Integral
from typing import Any, Literal, TypedDict

import plotly.graph_objects as go
import torch
from jaxtyping import Float
from torch import Tensor

from tl_vzero.choices import at_least_one
from tl_vzero.errors import InputError, InputTypeError, ScoresError, shown
from tl_vzero.plot.theme import COLOUR_BAR_HEIGHT, FONT_SIZE, SCALES, Theme, template
from tl_vzero.scores import Scores
from tl_vzero.words import readable_pieces

VALUE_NAMES = {
    "raw": "raw score",
    "normalized": "share of the row",
    "rollout": "share, rolled out",
    "difference": "difference",
}
STAGES = {
    "raw": "raw scores",
    "normalized": "shares of each row",
    "rollout": "rolled out through the layers",
    "difference": "difference of two maps",
}
SHARES = ("normalized", "rollout")  # stages whose rows sum to one
DIGITS = 6  # significant ones that a map holds, unless it says otherwise
SENTENCE_LENGTH = 110  # characters below a title
JOINERS = "\u200c\u200d"
BLANK_LETTERS = "\u034f\u115f\u1160\u2800\u3164\uffa0"
TICK_LENGTH = 16
WORD_START = "▁"
CELL_GAP_LIMIT = 40  # rows or columns; the cells of a larger map have no lines between them
SLANTED_LABELS_LIMIT = 24
SLIDER_ABOVE = 84  # pixels that a figure leaves for a slider between its title and its maps

# A vertical axis that runs down, whose cells are as high as those of the horizontal one are wide.
SQUARE = {"autorange": "reversed", "scaleanchor": "x", "constrain": "domain", "constraintoward": "top"}

Grid = list[list[float]]
# A step of a slider: its label, what it changes in the traces, what in the layout.
Step = tuple[str, dict[str, Any], dict[str, Any]]
Size = int | None


class Look(TypedDict, total=False):
    """What every figure takes beside its own choices; None leaves a figure as it is.

    `width` and `height` are in pixels, and so is the `font_size` of its labels (default 12; all other texts keep their
    proportion to it); `title` stands in place of the figure's, and "" takes title and subtitle away.
    """

    width: Size
    height: Size
    font_size: Size
    title: str | None


def drawn(
    data: Any, layout: Any, *, width: Size = None, height: Size = None, font_size: Size = None, title: str | None = None
) -> go.Figure:
    """A figure with the look that was chosen; raises InputError or InputTypeError for a size that is none."""
    sizes = {"width": width, "height": height, "font_size": font_size}
    sizes = {name: at_least_one(name, size, "a size in pixels") for name, size in sizes.items() if size is not None}
    factor = (sizes.pop("font_size", None) or FONT_SIZE) / FONT_SIZE
    figure = go.Figure(data, layout).update_layout(sizes)
    if title is not None:
        before = titled("", "") | figure.layout.title.to_plotly_json()
        figure.layout.title = before | {"text": plotly_text(str(title))} if title else None
    return figure if factor == 1 else go.Figure(figure.data, _scaled(figure.layout.to_plotly_json(), factor))


def _scaled(part: Any, factor: float) -> Any:
    """A layout as plain data, the sizes of all its fonts times a factor."""
    if isinstance(part, list | tuple):
        return [_scaled(item, factor) for item in part]
    if not isinstance(part, dict):
        return part
    return {
        name: value | {"size": round(value["size"] * factor, 1)}
        if name.endswith("font") and "size" in value
        else _scaled(value, factor)
        for name, value in part.items()
    }


@dataclass(frozen=True)
class View:
    """What of a map is drawn, and how: the plots of maps and of the sentence take one.

    `scale`: "linear", or "sqrt" for colours by the square root, which tell small shares apart. `hide`: "itself" (each
    destination as its own source) and "special" (special tokens and punctuation) are blank; rows that sum to one do so
    again without them, and the scale says so. `around`: a destination as `Scores.row` takes it, outlined, and labelled
    however little room there is (by default the plot's own, where it has one); `window`: only so many tokens on each
    side of it are drawn. Raises InputError for anything else.

    >>> View(scale="sqrt", hide=("itself", "special"), around="[MASK]", window=10).window
    10
    """

    scale: Literal["linear", "sqrt"] = "linear"
    hide: tuple[Literal["itself", "special"], ...] = ()
    around: int | str | None = None
    window: int | None = None

    def __post_init__(self) -> None:
        if self.scale not in SCALES:
            raise InputError(f"scale is {shown(self.scale)}: expected one of {list(SCALES)}")
        if not isinstance(self.hide, tuple | list) or any(name not in HIDDEN for name in self.hide):
            raise InputError(f"hide is {shown(self.hide)}: expected some of {list(HIDDEN)}, as a tuple")
        if self.window is not None and (not isinstance(self.window, Integral) or self.window < 0):
            raise InputError(f"window is {shown(self.window)}: expected a whole number of tokens on each side, or None")


HIDDEN = {"itself": "itself", "special": "special tokens and punctuation"}
WHOLE = View()


def viewed(scores: Scores, view: View, around: int | str | None = None) -> tuple[Scores, int | None]:
    """The part of scores that a view shows, with NaN for what is hidden, and the row that it is around."""
    if not isinstance(view, View):
        raise InputTypeError(f'view is {type(view).__name__}: expected a View, such as View(scale="sqrt")')
    around = view.around if around is None else around
    row = None if around is None else scores.dest_index(around)
    if view.hide:
        without_itself = "itself" in view.hide and not scores.crosses
        columns = zip(aside(scores), scores.src_spans or [(p,) for p in scores.src_positions], strict=True)
        hidden = torch.tensor(
            [
                [
                    ("special" in view.hide and apart) or (without_itself and dest in span)
                    for dest in scores.dest_positions
                ]
                for apart, span in columns
            ],
            device=scores.values.device,
        ).T
        left = replace(scores, values=scores.values.masked_fill(hidden, 0), stage="raw", error=None)
        left = left if scores.stage not in SHARES else left.normalized()
        scores = replace(left, values=left.values.masked_fill(hidden, nan), stage=scores.stage)
    if row is None or view.window is None:
        return scores, row
    centre, window = scores.dest_positions[row], view.window
    near = [i for i, position in enumerate(scores.dest_positions) if abs(position - centre) <= window]
    sources = [
        i for i, position in enumerate(scores.src_positions) if scores.crosses or abs(position - centre) <= window
    ]
    axes = {"dest_tokens": near, "dest_positions": near, "src_tokens": sources, "src_positions": sources}
    axes |= {} if scores.src_spans is None else {"src_spans": sources}
    labels: dict[str, Any] = {name: tuple(getattr(scores, name)[i] for i in places) for name, places in axes.items()}
    labels |= {"error": None, "omitted": None}  # which a picture of a part has no place for
    return replace(scores, values=scores.values[..., near, :][..., sources], **labels), near.index(row)


def value_name(scores: Scores, view: View) -> str:
    """What the colours of a view stand for."""
    without = ", ".join(HIDDEN[name] for name in view.hide)
    renormalised = ", renormalised" if without and scores.stage in SHARES else ""
    root = ", square-root scale" if view.scale == "sqrt" else ""
    return f"{VALUE_NAMES[scores.stage]}{renormalised}{root}" + (f"<br>without {without}" if without else "")


def mark_row(figure: go.Figure, scores: Scores, row: int | None, theme: Theme) -> go.Figure:
    """Outline a row in every map of a figure, and label it: where there is little room, plotly leaves labels out."""
    if row is None:
        return figure
    text, font = f"<b>{tick_text(scores.dest_tokens[row])}</b>", {"color": theme.mark, "size": 10}
    line = {"color": theme.mark, "width": 2 if len(scores.dest_tokens) <= CELL_GAP_LIMIT else 1}
    for cells in figure.data:
        x, y = f"{cells.xaxis or 'x'} domain", cells.yaxis or "y"
        box = {"x0": 0, "x1": 1, "y0": row - 0.5, "y1": row + 0.5, "line": line}
        figure.add_shape(type="rect", xref=x, yref=y, **box)
        if figure.layout[y.replace("y", "yaxis")].showticklabels is not False:
            place = {"xref": x, "x": 0, "xanchor": "right", "xshift": -2, "yref": y, "y": row}
            figure.add_annotation(text=text, showarrow=False, bgcolor=theme.panel, borderpad=1, font=font, **place)
    return figure


def visible(token: str) -> str:
    r"""Write a token so that all of it can be seen: white space and invisible characters get a sign.

    Plain spaces around a token, and SentencePiece's mark, are dropped, as they only mark where a word starts.
    (Byte-level BPE's mark, Ġ, is a letter of Maltese; tokens are decoded, so that it stands for itself.) Joiners
    inside a token stay, because emoji and many scripts need them.
    """
    core = token.rstrip(" ").lstrip(f" {WORD_START}")
    if not core:
        return "␣" * len(token) or "‹empty›"
    return "".join(_visible_character(core, i) for i in range(len(core)))


def _visible_character(text: str, place: int) -> str:
    character, category = text[place], unicodedata.category(text[place])
    if character == " " or (character in JOINERS and 0 < place < len(text) - 1):
        return character
    if character in "\n\t":
        return "⏎" if character == "\n" else "⇥"
    if category[0] in "CZ" or character in BLANK_LETTERS:
        return f"‹U+{ord(character):04X}›"
    # A mark that combines with nothing gets a circle to stand on.
    return f"◌{character}" if category[0] == "M" and place == 0 else character


def texts_of(tokens: Sequence[str]) -> list[str]:
    """The tokens of a sentence, written so that all of them can be read."""
    return [visible(token) for token in readable_pieces(tokens)]


def short(text: str, length: int = TICK_LENGTH) -> str:
    """Cut a long text for an axis; the hover label keeps all of it."""
    return text if len(text) <= length else text[: length - 1] + "…"


def plotly_text(text: str) -> str:
    """Escape a text for plotly, which reads a subset of HTML, and TeX between dollar signs, in any label.

    A right-to-left text is isolated, so that it cannot reorder the label around it.
    """
    for sign, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("$", "&#36;")):
        text = text.replace(sign, entity)
    right_to_left = any(unicodedata.bidirectional(character) in ("R", "AL", "AN") for character in text)
    return f"\u2068{text}\u2069" if right_to_left else text


def method_text(scores: Scores) -> str:
    """The method's name and baseline, for plotly; that of a difference may hold words of a sentence."""
    return plotly_text(scores.label)


def tick_text(token: str, unknown: bool = False) -> str:
    """The label of a token on an axis, for plotly; dashed where the model reads it as unknown."""
    text = plotly_text(short(visible(token)))
    return f'<span style="text-decoration:underline dashed">{text}</span>' if unknown else text


def hover_text(token: str, position: int, unit: str = "token", unknown: bool = False) -> str:
    """The label of a token in a hover box, for plotly: its text and its place."""
    place = "word" if unit == "word" else "position"
    return f"{plotly_text(visible(token))} · {place} {position}{' · unknown to the model' if unknown else ''}"


def refuse_heads(scores: Scores) -> None:
    """Raise ScoresError for scores per head, where one map per layer is drawn; InputTypeError for what is no Scores."""
    if not isinstance(scores, Scores):
        raise InputTypeError(f"a {type(scores).__name__} was to be drawn: expected Scores")
    if scores.heads is not None:
        raise ScoresError(
            f"these scores are per head ({len(scores.heads)} heads): a map shows one head; select it, "
            "for example by computing the scores with heads=[0] and without per_head, or draw all heads by head_grid"
        )


def refuse_signed(scores: Scores) -> None:
    """Raise ScoresError for signed scores, such as a difference, where colours start at 0."""
    if scores.signed:
        raise ScoresError(
            f"the colours of this picture start at 0, and these scores ({scores.stage}) go below it: draw them by "
            "heatmap, target_row or layer_grid"
        )


def layer_index(scores: Scores, layer: int | None) -> int:
    """Where a layer is among those of the scores (default: the first); raises InputError if it is not."""
    if layer is None:
        return 0
    if not isinstance(layer, Integral) or layer not in scores.layers:
        raise InputError(f"layer {shown(layer)} is not in these scores: expected one of {list(scores.layers)}")
    return scores.layers.index(layer)


def axis_titles(scores: Scores) -> tuple[str, str]:
    """What the rows are and what the columns are."""
    if scores.crosses:
        return "decoder: destination (row)", "encoder: source (column)"
    if scores.metadata.get("stack") == "joint":
        return "decoder: destination (row)", "decoder, then encoder: source (column)"
    return "destination (row)", "source (column)"


def source_places(scores: Scores) -> list[str]:
    """A name for each column that no other column has: its position, or the positions of its span."""
    if scores.src_spans is not None:
        return ["+".join(str(position) for position in span) for span in scores.src_spans]
    return [str(position) for position in scores.src_positions]


def hover_labels(tokens: Sequence[str], positions: Sequence[int], unit: str, unknown: Sequence[bool]) -> list[str]:
    """The labels of tokens in hover boxes."""
    texts = zip(readable_pieces(tokens), positions, unknown, strict=True)
    return [hover_text(token, at, unit, odd) for token, at, odd in texts]


def axis_labels(scores: Scores) -> tuple[list[str], list[str]]:
    """The labels of destinations and of sources in hover boxes."""
    dests = hover_labels(scores.dest_tokens, scores.dest_positions, scores.unit, scores.unknown_dests)
    return dests, hover_labels(scores.src_tokens, scores.src_positions, scores.unit, scores.unknown_sources)


def cell_labels(scores: Scores) -> list[list[list[str]]]:
    """The labels [destination, source] of each cell."""
    dests, sources = axis_labels(scores)
    return [[[dest, source] for source in sources] for dest in dests]


def token_axis(tokens: Sequence[str], places: Sequence[str], title: str, unknown: Sequence[bool]) -> dict[str, Any]:
    """An axis of tokens.

    Places are its categories and tokens only their labels: a repeated token stays two rows, and plotly leaves
    out labels for which a long sentence has no room (it would draw every `ticktext`).
    """
    return {
        "type": "category",
        "categoryorder": "array",
        "categoryarray": list(places),
        "labelalias": {
            p: tick_text(token, odd) for p, token, odd in zip(places, readable_pieces(tokens), unknown, strict=True)
        },
        "autotickangles": [0, -45, -90] if len(places) <= SLANTED_LABELS_LIMIT else [0, -90],
        "tickfont": {"size": 12 if len(places) <= 32 else 10 if len(places) <= 64 else 9},
        "title": {"text": title},
    }


def aside(scores: Scores) -> list[bool]:
    """Which sources are special tokens (a mask token is a word) or punctuation."""
    columns = zip(scores.special_sources, scores.src_tokens, strict=True)
    return [is_special or all(unicodedata.category(c)[0] in "PSZ" for c in token) for is_special, token in columns]


def gaps(columns: int, rows: int) -> dict[str, int]:
    """Lines between cells, where cells are large enough."""
    return dict.fromkeys(("xgap", "ygap"), 1 if max(columns, rows) <= CELL_GAP_LIMIT else 0)


def sentence(scores: Scores) -> str:
    """The sources as one line of text, shortened, for plotly; where they are of another sentence, both."""

    def line(tokens: Sequence[str], length: int) -> str:
        return plotly_text(short(" ".join(texts_of(tokens)), length))

    note = " (dashed: unknown to the model)" if any(scores.unknown_sources + scores.unknown_dests) else ""
    if not scores.crosses:
        return line(scores.src_tokens, SENTENCE_LENGTH) + note
    return " → ".join(line(tokens, SENTENCE_LENGTH // 2) for tokens in (scores.src_tokens, scores.dest_tokens)) + note


def rounded(values: Float[Tensor, "row column"], digits: int = DIGITS) -> Grid:
    """A map as nested lists with as many significant digits as a figure needs."""
    return [[float(f"{value:.{digits}g}") for value in row] for row in values.tolist()]


def top(grid: Sequence[Sequence[float | None]]) -> float:
    """The upper end of a colour scale that starts at 0: the largest value, or 1 if nothing is above 0."""
    return max((value for row in grid for value in row if value is not None and value > 0), default=1.0)


def hover_box(place: str, destination: str = "%{customdata[0]}", source: str = "%{customdata[1]}") -> str:
    """The hover box of a map's cell; by default its customdata are the destination's and the source's labels."""
    return f"<b>%{{z:.4~g}}</b>  {place}<br>destination  {destination}<br>source  {source}<extra></extra>"


def titled(text: str, subtitle: str) -> dict[str, Any]:
    """A title that takes its own room above the figure."""
    return {"text": text, "subtitle": {"text": subtitle}, "yref": "container", "y": 1, "automargin": True}


def from_zero(theme: Theme, maximum: float, name: str, scale: str = "linear") -> dict[str, Any]:
    """A colour scale that starts at exactly 0."""
    ramp = theme.sequential_ramp(scale)
    return {"colorscale": ramp, "cmin": 0, "cmax": maximum, "colorbar": {"title": {"text": name}}}


def around_zero(theme: Theme, grid: Grid, name: str) -> dict[str, Any]:
    """A colour scale whose middle is exactly 0 and whose ends are the largest size in the grid."""
    extreme = max((abs(value) for row in grid for value in row if value is not None), default=0.0) or 1.0
    ends = {"cmin": -extreme, "cmax": extreme}
    return {"colorscale": theme.diverging_ramp(), **ends, "colorbar": {"title": {"text": name}}}


def scale_of(scores: Scores, grid: Grid, theme: Theme, view: View = WHOLE) -> dict[str, Any]:
    """The colour scale of a grid of scores: around 0 for signed ones, such as a difference, else from 0."""
    name = value_name(scores, view)
    return around_zero(theme, grid, name) if scores.signed else from_zero(theme, top(grid), name, view.scale)


def ends_of(scale: dict[str, Any]) -> dict[str, Any]:
    """What a step of a slider changes in the layout for another colour scale."""
    return {f"coloraxis.{end}": scale[end] for end in ("cmin", "cmax")}


def layered(
    scores: Scores, grids: Sequence[Any], hover: Callable[[int], str], start: int, theme: Theme, view: View = WHOLE
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of a map that has a grid for each layer: the trace's values, and the layout's colours and slider.

    A step of the slider changes the values, the hover box and the ends of the colour scale.
    """
    steps: list[Step] = [
        (str(layer), {"z": [grid], "hovertemplate": [hover(layer)]}, ends_of(scale_of(scores, grid, theme)))
        for layer, grid in zip(scores.layers, grids, strict=True)
    ]
    trace = {"z": grids[start], "hovertemplate": hover(scores.layers[start]), "coloraxis": "coloraxis"}
    layout = {
        "template": template(theme),
        "coloraxis": scale_of(scores, grids[start], theme, view),
        "sliders": [step_slider(steps, start, theme)],
    }
    return trace, layout


def step_slider(steps: Sequence[Step], start: int, theme: Theme, *, prefix: str = "layer ") -> dict[str, Any]:
    """A slider below the figure, whose steps change the first traces as many as they have values for."""
    return {
        "active": start,
        "steps": [
            {"label": label, "method": "update", "args": [traces, layout, list(range(max(map(len, traces.values()))))]}
            for label, traces, layout in steps
        ],
        "currentvalue": {"prefix": prefix, "font": {"size": 14, "color": theme.ink}, "xanchor": "left"},
        "pad": {"t": COLOUR_BAR_HEIGHT + 16, "b": 8},
        "bgcolor": theme.line,
        "activebgcolor": theme.accent,
        "bordercolor": theme.line,
        "font": {"color": theme.muted},
    }
