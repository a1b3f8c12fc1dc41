"""What the figures of Scores share: checks at the door, axes of tokens, titles, colour scales and sliders."""

from collections.abc import Sequence
from numbers import Integral
from typing import Any

from tl_vzero.errors import InputError, InputTypeError, ScoresError, shown
from tl_vzero.plot.labels import hover_text, tick_text
from tl_vzero.plot.theme import COLOUR_BAR_HEIGHT, Theme
from tl_vzero.scores import Scores

CELL_GAP_LIMIT = 40
SLANTED_LABELS_LIMIT = 24
# A step of a slider: its label, what it changes in the traces, what in the layout.
Step = tuple[str, dict[str, Any], dict[str, Any]]
SLIDER_ABOVE = 84  # pixels that a figure keeps for a slider between its title and its maps


def refuse_heads(scores: Scores) -> None:
    """Raise ScoresError for scores per head, where one map a layer is drawn; InputTypeError for what is no Scores."""
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


def hover_labels(tokens: Sequence[str], positions: Sequence[int], unit: str) -> list[str]:
    """The labels of tokens in hover boxes."""
    return [hover_text(token, position, unit) for token, position in zip(tokens, positions, strict=True)]


def token_axis(tokens: Sequence[str], places: Sequence[str], title: str) -> dict[str, Any]:
    """An axis of tokens.

    Places are its categories and tokens only their labels: a repeated token stays two rows, and plotly leaves
    out labels for which a long sentence has no room (it would draw every `ticktext`).
    """
    return {
        "type": "category",
        "categoryorder": "array",
        "categoryarray": list(places),
        "labelalias": {p: tick_text(token) for p, token in zip(places, tokens, strict=True)},
        "autotickangles": [0, -45, -90] if len(places) <= SLANTED_LABELS_LIMIT else [0, -90],
        "tickfont": {"size": _tick_size(len(places))},
        "title": {"text": title},
    }


def _tick_size(count: int) -> int:
    return 12 if count <= 32 else 10 if count <= 64 else 9


def gaps(columns: int, rows: int) -> dict[str, int]:
    """Lines between cells, where cells are large enough."""
    gap = 1 if max(columns, rows) <= CELL_GAP_LIMIT else 0
    return {"xgap": gap, "ygap": gap}


def titled(text: str, subtitle: str) -> dict[str, Any]:
    """A title that takes its own room above the figure."""
    return {"text": text, "subtitle": {"text": subtitle}, "yref": "container", "y": 1, "automargin": True}


def from_zero(theme: Theme, maximum: float, name: str) -> dict[str, Any]:
    """A colour scale that starts at exactly 0."""
    return {
        "colorscale": theme.sequential_ramp(),
        "cmin": 0,
        "cmax": maximum,
        "colorbar": {"title": {"text": name}},
    }


def step_slider(steps: Sequence[Step], start: int, theme: Theme, *, prefix: str = "layer ") -> dict[str, Any]:
    """A slider below the figure, whose steps change the first traces as many as they have values for."""
    return {
        "active": start,
        "steps": [
            {"label": label, "method": "update", "args": [traces, layout, list(range(_traces_changed(traces)))]}
            for label, traces, layout in steps
        ],
        "currentvalue": {"prefix": prefix, "font": {"size": 14, "color": theme.ink}, "xanchor": "left"},
        "pad": {"t": COLOUR_BAR_HEIGHT + 16, "b": 8},
        "bgcolor": theme.line,
        "activebgcolor": theme.accent,
        "bordercolor": theme.line,
        "font": {"color": theme.muted},
    }


def _traces_changed(traces: dict[str, Any]) -> int:
    return max(len(values) for values in traces.values())
