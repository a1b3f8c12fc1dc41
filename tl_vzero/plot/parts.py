"""What the figures share: the names of methods and the text of tokens, checks of a caller's choices, axes, titles,
hover boxes, colour scales and sliders."""

import unicodedata
from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any

from jaxtyping import Float
from torch import Tensor

from tl_vzero.errors import InputError, InputTypeError, ScoresError, shown
from tl_vzero.plot.theme import COLOUR_BAR_HEIGHT, Theme, template
from tl_vzero.scores import Scores

VALUE_NAMES = {"raw": "raw score", "normalized": "share of the row", "rollout": "share, rolled out"}
DIGITS = 6  # significant ones that a map holds, unless it says otherwise
SENTENCE_LENGTH = 110  # characters below a title
JOINERS = "\u200c\u200d"
BLANK_LETTERS = "\u034f\u115f\u1160\u2800\u3164\uffa0"
TICK_LENGTH = 16
WORD_START = "▁"
CELL_GAP_LIMIT = 40  # rows or columns; the cells of a larger map have no lines between them
SLANTED_LABELS_LIMIT = 24
SLIDER_ABOVE = 84  # pixels that a figure leaves for a slider between its title and its maps

Grid = list[list[float]]
# A step of a slider: its label, what it changes in the traces, what in the layout.
Step = tuple[str, dict[str, Any], dict[str, Any]]


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


def layer_index(scores: Scores, layer: int | None) -> int:
    """Where a layer is among those of the scores (default: the first); raises InputError if it is not."""
    if layer is None:
        return 0
    if not isinstance(layer, Integral) or layer not in scores.layers:
        raise InputError(f"layer {shown(layer)} is not in these scores: expected one of {list(scores.layers)}")
    return scores.layers.index(layer)


def dest_index(scores: Scores, dest: int | str) -> int:
    """The row of a destination, given as `Scores.row` takes it, with the same errors."""
    scores.row(dest)
    if isinstance(dest, str):
        return [token.strip() for token in scores.dest_tokens].index(dest.strip())
    return scores.dest_positions.index(dest) if dest >= 0 else len(scores.dest_positions) + dest


def crosses(scores: Scores) -> bool:
    """Whether rows and columns are of two different sentences."""
    return scores.metadata.get("stack") == "cross"


def axis_titles(scores: Scores) -> tuple[str, str]:
    """What the rows are and what the columns are."""
    if crosses(scores):
        return "decoder: destination (row)", "encoder: source (column)"
    return "destination (row)", "source (column)"


def source_places(scores: Scores) -> list[str]:
    """A name for each column that no other column has: its position, or the positions of its span."""
    if scores.src_spans is not None:
        return ["+".join(str(position) for position in span) for span in scores.src_spans]
    return [str(position) for position in scores.src_positions]


def hover_labels(tokens: Sequence[str], positions: Sequence[int], unit: str, unknown: Sequence[bool]) -> list[str]:
    """The labels of tokens in hover boxes."""
    return [hover_text(token, at, unit, odd) for token, at, odd in zip(tokens, positions, unknown, strict=True)]


def token_axis(tokens: Sequence[str], places: Sequence[str], title: str, unknown: Sequence[bool]) -> dict[str, Any]:
    """An axis of tokens.

    Places are its categories and tokens only their labels: a repeated token stays two rows, and plotly leaves
    out labels for which a long sentence has no room (it would draw every `ticktext`).
    """
    return {
        "type": "category",
        "categoryorder": "array",
        "categoryarray": list(places),
        "labelalias": {p: tick_text(token, odd) for p, token, odd in zip(places, tokens, unknown, strict=True)},
        "autotickangles": [0, -45, -90] if len(places) <= SLANTED_LABELS_LIMIT else [0, -90],
        "tickfont": {"size": 12 if len(places) <= 32 else 10 if len(places) <= 64 else 9},
        "title": {"text": title},
    }


def gaps(columns: int, rows: int) -> dict[str, int]:
    """Lines between cells, where cells are large enough."""
    return dict.fromkeys(("xgap", "ygap"), 1 if max(columns, rows) <= CELL_GAP_LIMIT else 0)


def sentence(scores: Scores) -> str:
    """The sources as one line of text, shortened, for plotly; where they are of another sentence, both."""

    def line(tokens: Sequence[str], length: int) -> str:
        return plotly_text(short(" ".join(map(visible, tokens)), length))

    note = " (dashed: unknown to the model)" if any(scores.unknown_sources + scores.unknown_dests) else ""
    if not crosses(scores):
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


def from_zero(theme: Theme, maximum: float, name: str) -> dict[str, Any]:
    """A colour scale that starts at exactly 0."""
    return {"colorscale": theme.sequential_ramp(), "cmin": 0, "cmax": maximum, "colorbar": {"title": {"text": name}}}


def layered(
    scores: Scores, grids: Sequence[Any], hover: Callable[[int], str], start: int, theme: Theme
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Of a map that has a grid for each layer: the trace's values, and the layout's colours and slider.

    A step of the slider changes the values, the hover box and the end of the colour scale.
    """
    steps: list[Step] = [
        (str(layer), {"z": [grid], "hovertemplate": [hover(layer)]}, {"coloraxis.cmax": top(grid)})
        for layer, grid in zip(scores.layers, grids, strict=True)
    ]
    trace = {"z": grids[start], "hovertemplate": hover(scores.layers[start]), "coloraxis": "coloraxis"}
    layout = {
        "template": template(theme),
        "coloraxis": from_zero(theme, top(grids[start]), VALUE_NAMES[scores.stage]),
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
