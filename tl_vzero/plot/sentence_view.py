"""The sentence itself as a picture: each token coloured by how much a chosen one draws on it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import isnan
from typing import Any, Unpack
from unicodedata import combining, east_asian_width
from uuid import uuid4

from markupsafe import Markup

from tl_vzero.plot import parts
from tl_vzero.plot.pages import rendered
from tl_vzero.plot.theme import LIGHT, RAMP_POWER, SCALES, Theme
from tl_vzero.scores import Scores
from tl_vzero.words import CONTINUATION, readable_pieces

SHADES = 48
INKS = ("#000000", "#ffffff")  # one of them has a contrast of 4.5 with any colour
TEXT_SIZE = 17  # of the tokens, in pixels
PICTURE_WIDTH, MARGIN = 760, 16
# Widths of characters in font sizes, of Helvetica and its like; a picture stretches a token's text to what is reckoned.
NARROW, WIDE = " '|.,:;!()[]fijlrtI", "mwMWOGQ@%"
NARROW_WIDTH, USUAL_WIDTH, WIDE_WIDTH, FULL_WIDTH = 0.31, 0.57, 0.82, 1.0
LATEX = {ord(sign): f"\\{sign}" for sign in "#$%&_{}"} | {
    ord(sign): f"\\text{name}{{}}" for sign, name in (("\\", "backslash"), ("~", "asciitilde"), ("^", "asciicircum"))
}


@dataclass(frozen=True)
class Token:
    """A token as it is written: whether it continues a word, its colour and ink as a source, whether it is chosen."""

    text: str
    joins: bool
    colours: tuple[str, str] | None
    is_chosen: bool
    unknown: bool

    @property
    def latex(self) -> Markup:
        """Its text for LaTeX."""
        return Markup(parts.visible(self.text).translate(LATEX))


@dataclass(frozen=True, repr=False)
class Snippet:
    """The coloured sentence. `html` stands in any page: its style and script touch nothing but itself, and without them
    it shows the row that was chosen first. `still` is that row, for pictures."""

    html: str
    title: str
    theme: Theme
    still: dict[str, Any]

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return f"Snippet({self.title!r}, {len(self.html)} characters of HTML)"

    def to_page(self) -> str:
        """A whole page with nothing else on it."""
        body = Markup(self.html)
        return rendered("plot/page.html", title=self.title, body=body, margin=16, background=self.theme.page)

    def to_inline_html(self) -> str:
        """The row that was chosen first as HTML without style sheet and script, for where these are taken away."""
        return rendered("plot/sentence.html", theme=self.theme, **self.still)

    def to_latex(self) -> str:
        r"""The row that was chosen first for a document that has `\usepackage{xcolor}`."""
        return rendered("plot/sentence.tex", theme=self.theme, **self.still)

    def to_svg(self) -> str:
        """The row that was chosen first as a picture."""
        return rendered("plot/sentence.svg", theme=self.theme, **(self.still | self.placed()))

    def placed(self) -> dict[str, Any]:
        """Where each token stands in the picture, in pixels, and the picture's size."""
        size, right = self.still["size"], self.still["width"] - MARGIN
        pad, line_height, boxes = size / 4, round(size * 1.9), []
        y = MARGIN + (round(size * 1.9) if self.still["heading"] else 0)
        for _, tokens in self.still["lines"]:
            x = float(MARGIN)
            for token in tokens:
                wide = round(size * sum(map(_width, parts.visible(token.text))) + 2 * pad, 1)
                x += 0 if token.joins or x == MARGIN else size / 3
                if x + wide > right and x > MARGIN:
                    x, y = float(MARGIN), y + line_height
                boxes.append((token, round(x, 1), y, wide))
                x += wide
            y += line_height
        return {"boxes": boxes, "pad": pad, "height": max(y + MARGIN - round(size * 0.4), self.still["height"])}


def text_view(
    scores: Scores,
    dest: int | str = 0,
    *,
    layer: int | None = None,
    view: parts.View = parts.WHOLE,
    theme: Theme = LIGHT,
    **look: Unpack[parts.Look],
) -> Snippet:
    r"""Write the sentence with each source coloured by what a destination draws on; a click chooses the destination.

    Pointing at a token shows its row for as long; the layer has a slider; all of it works by keyboard and offline.
    The darkest (in the dark theme: lightest) token is the row's largest value. `dest` and `layer` are chosen first, and
    are what stands where scripts do not run and in pictures: `save_figure` writes .svg, .png, .pdf and .tex. `view` is
    what is drawn, around `dest`.
    Where rows and columns are of different sentences, or a map is partial, the destinations have a line of their own.
    Raises ScoresError for scores per head or signed ones, InputError for a destination or a layer that is not there.

    >>> import tl_vzero
    >>> model = tl_vzero.load_model("agreement-mini")
    >>> scores = tl_vzero.value_zeroing(model, "the pictures of some hat [MASK] scaring marcus.").normalized()
    >>> view = text_view(scores, "[MASK]", layer=1)
    >>> view.title
    'Value Zeroing, shares of each row: the pictures of some hat [MASK] scaring marcus .'
    >>> print(view.to_latex().splitlines()[4])
    \colorbox[HTML]{061B45}{\textcolor[HTML]{FFFFFF}{\strut pictures}}
    """
    parts.refuse_heads(scores)
    parts.refuse_signed(scores)
    parts.drawn(None, None, **look)  # raises for a size that is none
    scores, row = parts.viewed(scores, view, dest)
    assert row is not None
    start = parts.layer_index(scores, layer)
    title, size = f"{scores.label}, {parts.STAGES[scores.stage]}", look.get("font_size") or TEXT_SIZE
    names = _names(scores.dest_tokens, scores.dest_positions, scores.unit, scores.unknown_dests)
    data = {
        "values": [parts.rounded(values) for values in scores.values],
        "layers": scores.layers,
        "layer": start,
        "dest": row,
        "dests": names,
        "sources": _names(scores.src_tokens, scores.src_positions, scores.unit, scores.unknown_sources),
        "shades": _shades(theme, view),
        "unknown": any(scores.unknown_dests + scores.unknown_sources),
    }
    lines = coloured(scores, start, row, theme, view)
    own_title = look.get("title")
    heading = f"{scores.label}, layer {scores.layers[start]}: what {names[row]} draws on"
    still = {
        "heading": heading if own_title is None else own_title,
        "lines": [(name, tokens) for name, _, tokens in lines],
        "size": size,
        "width": look.get("width") or PICTURE_WIDTH,
        "height": look.get("height") or 0,
    }
    html = rendered(
        "plot/text_view.html",
        id=f"tlv-{uuid4().hex}",
        theme=theme,
        title=f"{scores.label}: {parts.value_name(scores, view).replace('<br>', ', ')} by source"
        if own_title is None
        else own_title,
        lines=lines,
        data=data,
        still=still,
        wide=look.get("width"),
    )
    words = " ".join(parts.visible(token) for token in scores.src_tokens if token not in _specials(scores))
    return Snippet(html, f"{title}: {words}", theme, still)


def coloured(
    scores: Scores, layer: int, row: int, theme: Theme = LIGHT, view: parts.View = parts.WHOLE
) -> list[tuple[str, str, list[Token]]]:
    """Name, roles and tokens of a line of tokens that are both; two where destinations and sources are not the same.

    `layer` and `row` are indices; sources have the colours of that row.
    """
    grid = parts.rounded(scores.values[layer, row : row + 1])
    shades, most = _shades(theme, view), parts.top(grid)
    colours = [None if isnan(value) else shades[round(max(value, 0) / most * (SHADES - 1))] for value in grid[0]]
    if scores.dest_positions == scores.src_positions and not scores.crosses and scores.src_spans is None:
        words = None if scores.unit == "word" or scores.partial else scores.word_ids
        return [("", "data-dest data-src", _tokens(scores.src_tokens, colours, scores.unknown_sources, row, words))]
    plain = [None] * len(scores.dest_tokens)
    return [
        ("destinations", "data-dest", _tokens(scores.dest_tokens, plain, scores.unknown_dests, row)),
        ("sources", "data-src", _tokens(scores.src_tokens, colours, scores.unknown_sources)),
    ]


def _specials(scores: Scores) -> set[str]:
    """The tokens that belong to no word, where the words are known."""
    if scores.word_ids is None or scores.crosses or scores.unit == "word":
        return set()
    return {t for t, p in zip(scores.src_tokens, scores.src_positions, strict=True) if scores.word_ids[p] is None}


def _tokens(
    tokens: Sequence[str],
    colours: Sequence[tuple[str, str] | None],
    unknown: Sequence[bool],
    row: int | None = None,
    words: Sequence[int | None] | None = None,
) -> list[Token]:
    """The tokens of a line; one that continues the word before it stands without a space."""
    joins = [words is not None and i > 0 and None is not words[i] == words[i - 1] for i in range(len(tokens))]
    return [
        Token(text.removeprefix(CONTINUATION) if join else text, join, colour, i == row, odd)
        for i, (text, join, colour, odd) in enumerate(
            zip(readable_pieces(tokens), joins, colours, unknown, strict=True)
        )
    ]


def _width(character: str) -> float:
    if combining(character):
        return 0
    if east_asian_width(character) in "WF":
        return FULL_WIDTH
    return NARROW_WIDTH if character in NARROW else WIDE_WIDTH if character in WIDE else USUAL_WIDTH


def _names(tokens: Sequence[str], positions: Sequence[int], unit: str, unknown: Sequence[bool]) -> list[str]:
    place = "word" if unit == "word" else "position"
    # Isolated, so that a right-to-left token cannot reorder what stands around it.
    return [
        f"\u2068{text}\u2069 · {place} {at}{' · unknown to the model' if odd else ''}"
        for text, at, odd in zip(parts.texts_of(tokens), positions, unknown, strict=True)
    ]


def _shades(theme: Theme, view: parts.View) -> list[tuple[str, str]]:
    """The theme's colours from 0 to the maximum in even steps, each with the ink that is read on it."""
    stops = [tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5)) for colour in theme.sequential]
    shades = []
    for shade in range(SHADES):
        # Low values get more of the ramp, as in the maps.
        place = (shade / (SHADES - 1)) ** (1 / RAMP_POWER / SCALES[view.scale]) * (len(stops) - 1)
        low = min(int(place), len(stops) - 2)
        mixed = [round(a + (b - a) * (place - low)) for a, b in zip(stops[low], stops[low + 1], strict=True)]
        colour = "#" + "".join(f"{part:02x}" for part in mixed)
        shades.append((colour, max(INKS, key=partial(contrast, colour))))
    return shades


def contrast(one: str, other: str) -> float:
    """The contrast of two colours, 1 to 21 (WCAG 2.2)."""
    dark, light = sorted((_luminance(one), _luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    channels = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
