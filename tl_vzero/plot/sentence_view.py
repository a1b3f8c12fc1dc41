"""The sentence itself as a picture: each token coloured by how much a chosen one draws on it."""

from functools import partial
from html import escape
from uuid import uuid4

from tl_vzero.plot.maps import VALUE_NAMES, method_name, rounded
from tl_vzero.plot.parts import Snippet, crosses, dest_index, layer_index, refuse_heads, script_data, visible
from tl_vzero.plot.theme import FONT, LIGHT, RAMP_POWER, Theme
from tl_vzero.scores import Scores
from tl_vzero.words import CONTINUATION

DIGITS = 6
SHADES = 48
INKS = ("#000000", "#ffffff")  # one of them has a contrast of 4.5 with any colour

STYLE = """
#ID{font-family:FONT;color:INK;background:PANEL;border:1px solid LINE;border-radius:8px;padding:14px 18px;line-height:2}
#ID h3{font-size:17px;line-height:1.3;margin:0 0 2px;font-weight:400}
#ID p{margin:6px 0;font-size:13px;line-height:1.5;color:MUTED}
#ID .tokens{font-size:17px;color:INK;line-height:2.1;overflow-wrap:anywhere}
#ID .token{display:inline-block;font:inherit;line-height:1.5;border:0;border-radius:4px;padding:1px 4px;
  margin:0;cursor:pointer;color:inherit;background:none}
#ID span.token{cursor:default}
#ID .token[aria-pressed=true]{outline:2px solid MARK;outline-offset:1px}
#ID .token:focus-visible,#ID input:focus-visible{outline:2px solid ACCENT;outline-offset:3px}
#ID input{vertical-align:middle;accent-color:ACCENT;width:min(320px,50vw)}
#ID label{color:INK;font-size:14px}
"""

SCRIPT = """
(() => {
  const root = document.getElementById("ID"), d = DATA;
  const choose = [...root.querySelectorAll("[data-dest]")], drawn = [...root.querySelectorAll("[data-src]")];
  const slider = root.querySelector("input"), told = root.querySelector("[role=status]");
  let chosen = d.dest, layer = d.layer, shown = d.dest;
  const number = value => String(Number(value.toPrecision(3)));
  function draw() {
    const row = d.values[layer][shown], top = Math.max(...row) || 1;
    drawn.forEach((token, j) => {
      const [back, ink] = d.shades[Math.round(Math.max(row[j], 0) / top * (d.shades.length - 1))];
      token.style.background = back;
      token.style.color = ink;
      token.title = d.sources[j] + ": " + number(row[j]);
    });
    choose.forEach((token, i) => token.setAttribute("aria-pressed", String(i === chosen)));
    const ranked = row.map((value, j) => [value, j]).sort((a, b) => b[0] - a[0]);
    const most = ranked.slice(0, 4).filter(([value]) => value > 0);
    root.querySelector("output").textContent = d.layers[layer];
    told.textContent = d.dests[shown] + ", layer " + d.layers[layer] + ", draws most on: " +
      (most.map(([value, j]) => d.sources[j] + " (" + number(value) + ")").join(", ") || "nothing");
  }
  choose.forEach((token, i) => {
    token.addEventListener("click", () => { chosen = shown = i; draw(); });
    token.addEventListener("mouseenter", () => { shown = i; draw(); });
    token.addEventListener("mouseleave", () => { shown = chosen; draw(); });
  });
  slider.addEventListener("input", () => { layer = Number(slider.value); draw(); });
  draw();
})();
"""


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
    name = f"tlv-{uuid4().hex}"
    start, chosen = layer_index(scores, layer), dest_index(scores, dest)
    data = {
        "values": [rounded(values, DIGITS) for values in scores.values],
        "layers": list(scores.layers),
        "layer": start,
        "dest": chosen,
        "dests": _named(scores.dest_tokens, scores.dest_positions, scores.unit),
        "sources": _named(scores.src_tokens, scores.src_positions, scores.unit),
        "shades": _shades(theme),
    }
    alike = scores.dest_positions == scores.src_positions and not crosses(scores) and scores.src_spans is None
    script = SCRIPT.replace("ID", name).replace("DATA", script_data(data))
    html = (
        f'<div id="{name}"><style>{_style(name, theme)}</style>'
        f"<h3>{escape(method_name(scores))}, {scores.stage}: {VALUE_NAMES[scores.stage]} by source</h3>"
        f"<p>Choose a token to see what it draws on.</p>"
        f"{_lines(scores, alike)}"
        f'<p><label>layer <output></output> <input type="range" aria-label="layer" min="0" '
        f'max="{len(scores.layers) - 1}" value="{start}"></label></p>'
        f'<p role="status"></p></div>\n<script>{script}</script>'
    )
    words = " ".join(visible(token) for token in scores.src_tokens if token not in _specials(scores))
    return Snippet(html, f"{method_name(scores)}, {scores.stage}: {words}", theme)


def _specials(scores: Scores) -> set[str]:
    """The tokens that belong to no word, where the words are known."""
    if scores.word_ids is None or crosses(scores) or scores.unit == "word":
        return set()
    return {t for t, p in zip(scores.src_tokens, scores.src_positions, strict=True) if scores.word_ids[p] is None}


def _style(name: str, theme: Theme) -> str:
    named = {
        "FONT": FONT,
        "INK": theme.ink,
        "PANEL": theme.panel,
        "LINE": theme.line,
        "MUTED": theme.muted,
        "MARK": theme.mark,
        "ACCENT": theme.accent,
        "ID": name,
    }
    style = STYLE
    for word, value in named.items():
        style = style.replace(word, value)
    return style


def _lines(scores: Scores, alike: bool) -> str:
    if alike:
        return f'<div class="tokens">{_tokens(scores, scores.src_tokens, ("dest", "src"))}</div>'
    return (
        f'<p>destinations</p><div class="tokens">{_tokens(scores, scores.dest_tokens, ("dest",))}</div>'
        f'<p>sources</p><div class="tokens">{_tokens(scores, scores.src_tokens, ("src",))}</div>'
    )


def _tokens(scores: Scores, tokens: tuple[str, ...], roles: tuple[str, ...]) -> str:
    """The tokens as buttons, or as plain text where nothing is chosen; pieces of a word stand without a space."""
    words = scores.word_ids if len(roles) == 2 and scores.unit == "token" and not scores.partial else None
    marks = " ".join(f"data-{role}" for role in roles)
    kind = 'button type="button"' if "dest" in roles else "span"
    written = []
    for index, token in enumerate(tokens):
        joins = words is not None and index > 0 and words[index] is not None and words[index] == words[index - 1]
        text = token.removeprefix(CONTINUATION) if joins else token
        space = "" if joins or not index else " "
        # Isolated by dir, so that a right-to-left token cannot reorder its neighbours.
        written.append(f'{space}<{kind} class="token" dir="auto" {marks}>{escape(visible(text))}</{kind.split()[0]}>')
    return "".join(written)


def _named(tokens: tuple[str, ...], positions: tuple[int, ...], unit: str) -> list[str]:
    place = "word" if unit == "word" else "position"
    return [
        f"\u2068{visible(token)}\u2069 · {place} {position}" for token, position in zip(tokens, positions, strict=True)
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
    """The contrast of two colours, 1 to 21 (WCAG 2.2).

    >>> contrast("#000000", "#ffffff")
    21.0
    """
    dark, light = sorted((_luminance(one), _luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
