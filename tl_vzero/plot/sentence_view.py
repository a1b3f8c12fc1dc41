"""The sentence itself as a picture: each token coloured by how much a chosen one draws on it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from uuid import uuid4

from markupsafe import Markup

from tl_vzero.plot.pages import rendered
from tl_vzero.plot.parts import VALUE_NAMES, crosses, dest_index, layer_index, refuse_heads, rounded, visible
from tl_vzero.plot.theme import LIGHT, RAMP_POWER, Theme
from tl_vzero.registry import label_of
from tl_vzero.scores import Scores
from tl_vzero.words import CONTINUATION

SHADES = 48
INKS = ("#000000", "#ffffff")  # one of them has a contrast of 4.5 with any colour


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
        body = Markup(self.html)
        return rendered("plot/page.html", title=self.title, body=body, margin=16, background=self.theme.page)


def text_view(scores: Scores, dest: int | str = 0, *, layer: int | None = None, theme: Theme = LIGHT) -> Snippet:
    """Write the sentence with each source coloured by what a destination draws on; a click chooses the destination.

    Pointing at a token shows its row for as long; the layer has a slider; all of it works by keyboard and offline.
    The darkest (in the dark theme: lightest) token is the row's largest value. `dest` and `layer` are chosen first.
    Where rows and columns are of different sentences, or a map is partial, the destinations have a line of their own.
    Raises ScoresError for scores per head, InputError for a destination or a layer that is not there.

    >>> import tl_vzero
    >>> model = tl_vzero.load_model("agreement-mini")
    >>> scores = tl_vzero.value_zeroing(model, "the pictures of some hat [MASK] scaring marcus.").normalized()
    >>> text_view(scores, "[MASK]").title
    'Value Zeroing, normalized: the pictures of some hat [MASK] scaring marcus .'
    """
    refuse_heads(scores)
    title = f"{label_of(scores.method)}, {scores.stage}"
    data = {
        "values": [rounded(values) for values in scores.values],
        "layers": scores.layers,
        "layer": layer_index(scores, layer),
        "dest": dest_index(scores, dest),
        "dests": _names(scores.dest_tokens, scores.dest_positions, scores.unit, scores.unknown_dests),
        "sources": _names(scores.src_tokens, scores.src_positions, scores.unit, scores.unknown_sources),
        "shades": _shades(theme),
        "unknown": any(scores.unknown_dests + scores.unknown_sources),
    }
    html = rendered(
        "plot/text_view.html",
        id=f"tlv-{uuid4().hex}",
        theme=theme,
        title=title,
        value=VALUE_NAMES[scores.stage],
        lines=_lines(scores),
        data=data,
    )
    words = " ".join(visible(token) for token in scores.src_tokens if token not in _specials(scores))
    return Snippet(html, f"{title}: {words}", theme)


def _specials(scores: Scores) -> set[str]:
    """The tokens that belong to no word, where the words are known."""
    if scores.word_ids is None or crosses(scores) or scores.unit == "word":
        return set()
    return {t for t, p in zip(scores.src_tokens, scores.src_positions, strict=True) if scores.word_ids[p] is None}


def _lines(scores: Scores) -> list[tuple[str, str, list[tuple[str, bool, bool]]]]:
    """Name, roles and tokens of a line of tokens that are both; two where destinations and sources are not the same."""
    if scores.dest_positions == scores.src_positions and not crosses(scores) and scores.src_spans is None:
        words = None if scores.unit == "word" or scores.partial else scores.word_ids
        return [("", "data-dest data-src", _tokens(scores.src_tokens, scores.unknown_sources, words))]
    return [
        ("destinations", "data-dest", _tokens(scores.dest_tokens, scores.unknown_dests)),
        ("sources", "data-src", _tokens(scores.src_tokens, scores.unknown_sources)),
    ]


def _tokens(
    tokens: Sequence[str], unknown: Sequence[bool], words: Sequence[int | None] | None = None
) -> list[tuple[str, bool, bool]]:
    """The text of each token, whether it continues the word before it, without a space, and whether it is unknown."""
    joins = [words is not None and i > 0 and None is not words[i] == words[i - 1] for i in range(len(tokens))]
    texts = [t.removeprefix(CONTINUATION) if join else t for t, join in zip(tokens, joins, strict=True)]
    return list(zip(texts, joins, unknown, strict=True))


def _names(tokens: Iterable[str], positions: Iterable[int], unit: str, unknown: Iterable[bool]) -> list[str]:
    place = "word" if unit == "word" else "position"
    # Isolated, so that a right-to-left token cannot reorder what stands around it.
    return [
        f"\u2068{visible(token)}\u2069 · {place} {at}{' · unknown to the model' if odd else ''}"
        for token, at, odd in zip(tokens, positions, unknown, strict=True)
    ]


def _shades(theme: Theme) -> list[tuple[str, str]]:
    """The theme's colours from 0 to the maximum in even steps, each with the ink that is read on it."""
    stops = [tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5)) for colour in theme.sequential]
    shades = []
    for shade in range(SHADES):
        # Low values get more of the ramp, as in the maps.
        place = (shade / (SHADES - 1)) ** (1 / RAMP_POWER) * (len(stops) - 1)
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
    parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
