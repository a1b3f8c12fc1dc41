"""What the figures of Scores share: checks at the door, axes of tokens, titles, colour scales and sliders."""

import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from numbers import Integral
from typing import Any

from tl_vzero.errors import InputError, InputTypeError, ScoresError, shown
from tl_vzero.plot.theme import COLOUR_BAR_HEIGHT, Theme
from tl_vzero.scores import Scores

# Token text in pictures: everything visible, nothing taken for markup.

JOINERS = "\u200c\u200d"
BLANK_LETTERS = "\u034f\u115f\u1160\u2800\u3164\uffa0"
TICK_LENGTH = 16
WORD_START = "▁"


def visible(token: str) -> str:
    r"""Write a token so that all of it can be seen: white space and invisible characters get a sign.

    Plain spaces around a token, and SentencePiece's mark, are dropped, as they only mark where a word starts.
    (Byte-level BPE's mark, Ġ, is a letter of Maltese; tokens are decoded, so that it stands for itself.) Joiners
    inside a token stay, because emoji and many scripts need them.

    >>> visible(" hat"), visible(" "), visible("a\nb"), visible("a\u200b")
    ('hat', '␣', 'a⏎b', 'a‹U+200B›')
    >>> visible("")
    '‹empty›'
    """
    core = token.rstrip(" ").lstrip(f" {WORD_START}")
    if not core:
        return "␣" * len(token) or "‹empty›"
    last = len(core) - 1
    return "".join(_visible_character(c, inside=0 < i < last, first=i == 0) for i, c in enumerate(core))


def _visible_character(character: str, *, inside: bool, first: bool) -> str:
    if character == " " or (character in JOINERS and inside):
        return character
    if character in "\n\t":
        return "⏎" if character == "\n" else "⇥"
    category = unicodedata.category(character)
    if category[0] in "CZ" or character in BLANK_LETTERS:
        return f"‹U+{ord(character):04X}›"
    if category[0] == "M" and first:
        return f"◌{character}"
    return character


def short(text: str, length: int = TICK_LENGTH) -> str:
    """Cut a long text for an axis; the hover label keeps all of it.

    >>> short("internationalisation", 10)
    'internati…'
    """
    return text if len(text) <= length else text[: length - 1] + "…"


def plotly_text(text: str) -> str:
    """Escape a text for plotly, which reads a subset of HTML, and TeX between dollar signs, in any label.

    A right-to-left text is isolated, so that it cannot reorder the label around it.

    >>> plotly_text("<b>&amp; $x$")
    '&lt;b&gt;&amp;amp; &#36;x&#36;'
    """
    for sign, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("$", "&#36;")):
        text = text.replace(sign, entity)
    right_to_left = any(unicodedata.bidirectional(character) in ("R", "AL", "AN") for character in text)
    return f"\u2068{text}\u2069" if right_to_left else text


def tick_text(token: str) -> str:
    """The label of a token on an axis, for plotly.

    >>> tick_text(" <s>")
    '&lt;s&gt;'
    """
    return plotly_text(short(visible(token)))


def hover_text(token: str, position: int, unit: str = "token") -> str:
    """The label of a token in a hover box, for plotly: its text and its place.

    >>> hover_text(" hat", 5)
    'hat · position 5'
    """
    place = "word" if unit == "word" else "position"
    return f"{plotly_text(visible(token))} · {place} {position}"


# A piece of HTML that a notebook shows and `save_figure` writes.


@dataclass(frozen=True, repr=False)
class Snippet:
    """HTML that stands in any page: its style and script touch nothing but itself."""

    html: str
    title: str
    theme: Theme

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return f"Snippet({self.title!r}, {len(self.html)} characters of HTML)"

    def to_page(self) -> str:
        """A whole page with nothing else on it."""
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width">'
            f"<title>{escape(self.title)}</title></head>"
            f'<body style="margin:16px;background:{self.theme.page}">\n{self.html}\n</body></html>\n'
        )


def script_data(data: Any) -> str:
    """Plain data as JSON that a script element can hold: nothing in it ends the element.

    >>> script_data("</script>")
    '"\\\\u003c/script>"'
    """
    # A lone surrogate is no UTF-8; as an escape it is.
    return json.dumps(data, ensure_ascii=True, separators=(",", ":")).replace("<", "\\u003c")


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
