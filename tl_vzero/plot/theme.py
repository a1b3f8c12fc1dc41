"""One palette for every picture: light and dark, readable with any kind of colour vision."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import plotly.graph_objects as go

FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'
MONO = 'ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace'
FONT_SIZE = 12  # of labels, in pixels
RAMP_POWER = 1.35
SCALES = {"linear": 1, "sqrt": 2}  # the power that a scale adds
COLOUR_BAR_HEIGHT = 64  # with its labels; it lies below a map
Ramp = list[list[float | str]]


@dataclass(frozen=True)
class Theme:
    """The colours of one scheme. `sequential` starts at the colour of exactly 0; `diverging` is centred on it."""

    name: str
    ink: str
    muted: str
    line: str
    page: str
    panel: str
    accent: str
    mark: str
    sequential: tuple[str, ...]
    diverging: tuple[str, ...]

    def sequential_ramp(self, scale: str = "linear") -> Ramp:
        """Colours for 0 to the maximum. Low values get more of the ramp: rows have few large entries."""
        return _ramp(self.sequential, RAMP_POWER * SCALES[scale])

    def diverging_ramp(self) -> Ramp:
        """Colours for minus the maximum to the maximum; the middle colour is exactly 0."""
        return _ramp(self.diverging, 1.0)


LIGHT = Theme(
    name="light",
    ink="#1b2330",
    muted="#576274",
    line="#d7dde6",
    page="#f3f5f8",
    panel="#ffffff",
    accent="#1f5fae",
    mark="#b34700",
    sequential=("#f6f8fb", "#d9e6f4", "#aecbe8", "#79a9da", "#4482c5", "#1f5ba3", "#0c3674", "#061b45"),
    diverging=("#7f3b08", "#b8600f", "#e8a04c", "#f8d6a8", "#f6f6f7", "#d3cfe6", "#a79cca", "#71589f", "#35185a"),
)
DARK = Theme(
    name="dark",
    ink="#e6ebf2",
    muted="#9aa7b8",
    line="#2f3947",
    page="#0e131a",
    panel="#161d27",
    accent="#6fb0f5",
    mark="#ffb066",
    sequential=("#1c2531", "#1d3a5c", "#205388", "#2f74b5", "#5698d6", "#8dbdec", "#c3defa", "#f3f9ff"),
    diverging=("#ffc880", "#f0a04b", "#bf6f1e", "#6b4320", "#222a35", "#443a6b", "#6f5cae", "#a594e0", "#dcd2ff"),
)


def _ramp(colours: tuple[str, ...], power: float) -> Ramp:
    last = len(colours) - 1
    return [[round((i / last) ** power, 4), colour] for i, colour in enumerate(colours)]


@cache
def template(theme: Theme = LIGHT) -> go.layout.Template:
    """The plotly template of a theme: fonts, axes, hover boxes and colour bars."""
    axis: dict[str, Any] = {
        "showgrid": False,
        "zeroline": False,
        "ticks": "",
        "linecolor": theme.line,
        "tickfont": {"color": theme.ink},
        "ticklabelstandoff": 4,
        "title": {"font": {"color": theme.muted, "size": 12}, "standoff": 12},
        "automargin": True,
    }
    colour_bar = {
        "orientation": "h",
        "x": 0,
        "xanchor": "left",
        "xpad": 0,
        "y": 0,
        "yanchor": "top",
        "ypad": 12,
        "len": 1,
        "thickness": 10,
        "outlinewidth": 0,
        "nticks": 6,
        "tickformat": "~g",
        "ticks": "",
        "tickfont": {"color": theme.muted, "size": 11},
        "title": {"font": {"color": theme.muted, "size": 12}, "side": "bottom"},
    }
    return go.layout.Template(
        layout={
            "font": {"family": FONT, "size": FONT_SIZE, "color": theme.ink},
            "paper_bgcolor": theme.panel,
            "plot_bgcolor": theme.panel,
            "title": {
                "font": {"size": 17},
                "subtitle": {"font": {"size": 13, "color": theme.muted}},
                "x": 0.0,
                "xref": "container",
                "pad": {"l": 16, "t": 14, "b": 10},
            },
            "xaxis": axis,
            "yaxis": axis,
            "coloraxis": {"colorbar": colour_bar},
            "hoverlabel": {
                "bgcolor": theme.panel,
                "bordercolor": theme.accent,
                "font": {"family": FONT, "size": 13, "color": theme.ink},
                "align": "left",
            },
            "margin": {"l": 24, "r": 32, "t": 24, "b": COLOUR_BAR_HEIGHT},
        }
    )
