"""The page of chosen destinations of a long text: what each draws on, without a map of all tokens by all tokens."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from tl_vzero.api import value_zeroing
from tl_vzero.choices import Positions
from tl_vzero.difference import HASHED
from tl_vzero.files import to_plain
from tl_vzero.inputs.baselines import BaselineValues
from tl_vzero.inputs.text import Pair, warned_before
from tl_vzero.plot.export import SHARED
from tl_vzero.plot.long_rows import LISTED, largest_sources, long_row
from tl_vzero.plot.pages import rendered
from tl_vzero.plot.parts import short, texts_of, visible
from tl_vzero.plot.theme import DARK, LIGHT, template
from tl_vzero.report.figures import packed_plotly
from tl_vzero.report.page import page_script
from tl_vzero.scores import Scores

if TYPE_CHECKING:
    import pandas as pd

IN_A_FILE = 100  # sources of a row and layer in a file; a page has bins of all of them
TEXT_SHOWN = 400  # characters
TITLE_ROOM = 60  # pixels of a figure's title, which the page has as a heading
Json = dict[str, Any]


@dataclass(frozen=True, eq=False)
class LongReport:
    """Everything that the page of chosen destinations shows: their raw rows `[layer, dest, src]` by Value Zeroing."""

    model: str
    text: str
    value_zeroing: Scores

    def to_frame(self) -> "pd.DataFrame":
        """The 100 largest shares of each row and layer, as of `Scores.to_frame`."""
        return self.value_zeroing.normalized().strongest(IN_A_FILE).to_frame()

    def to_dict(self) -> Json:
        """The 100 largest shares of each row and layer, and what the rest of it sums to, as plain JSON types."""
        rows = self.value_zeroing.normalized().strongest(IN_A_FILE).to_dict()
        plain = {"format": "tl_vzero.long_report", "format_version": 1, "model": self.model, "text": self.text}
        numbers: Json = to_plain(plain | {"rows": rows})
        return numbers

    def to_html(self, *, shared_plotly: bool = False) -> str:
        """One HTML page that works offline from a file: with plotly.js in it, or shared, as plotly.min.js beside it."""
        scores, themes = self.value_zeroing, (LIGHT, DARK)
        labels = zip(texts_of(scores.dest_tokens), scores.dest_positions, strict=True)
        rows = [scores.at_dest(position).normalized() for position in scores.dest_positions]
        metadata: Mapping[str, Any] = scores.metadata
        return rendered(
            "report/long.html",
            title=f"{short(visible(self.text), 60)} · {self.model} · tl_vzero",
            report=self,
            text=short(visible(self.text), TEXT_SHOWN),
            n_sources=len(scores.src_tokens),
            baseline=scores.baseline.partition(HASHED)[0],
            versions=metadata.get("versions", {}),
            notes=[str(note) for note in metadata.get("warnings", ())],
            rows=[
                (label, position, dict(zip(row.layers, largest_sources(row, LISTED), strict=True)))
                for (label, position), row in zip(labels, rows, strict=True)
            ],
            data={
                "templates": {theme.name: template(theme).to_plotly_json() for theme in themes},
                "rows": [_figure(row) for row in rows],
            },
            scripts=[SHARED] if shared_plotly else [],
            packed_plotly=None if shared_plotly else packed_plotly(),
            program=page_script("long", ["numbers"]),
        )


def _figure(row: Scores) -> Json:
    """The figure of one row. Its traces and a slider's steps have no colours, which are in the layout of a theme."""
    figures = {theme.name: long_row(row, row.dest_positions[0], theme=theme, title="") for theme in (LIGHT, DARK)}
    layouts = {name: figure.layout.to_plotly_json() for name, figure in figures.items()}
    steps, _ = (layout["sliders"][0].pop("steps") for layout in layouts.values())
    for layout in layouts.values():
        del layout["template"]
        layout["height"] -= TITLE_ROOM
    return {"data": figures["light"].to_plotly_json()["data"], "layouts": layouts, "steps": steps}


def make_long_report(
    model: nn.Module,
    text: str | Pair | Tensor,
    destinations: Positions,
    *,
    baseline: str | Tensor | BaselineValues = "zero",
    progress: bool = False,
) -> LongReport:
    """Compute the page of chosen destinations; `make_report(destinations=)` says what its arguments are."""
    with warned_before():
        scores = value_zeroing(model, text, destinations=destinations, baseline=baseline, progress=progress)
    assert isinstance(scores, Scores)
    shown = text if isinstance(text, str) else " ".join(token.strip() for token in scores.src_tokens)
    return LongReport(str(scores.metadata.get("model", type(model).__name__)), shown, scores)
