"""A page of the report in a browser, with what it shows and what it should show."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import ROUND_HALF_UP, Context
from itertools import pairwise
from typing import Any

from tl_vzero.plot.theme import Theme

SPECIAL = ("[CLS]", "[SEP]")
Colour = tuple[int, ...]


@dataclass
class Opened:
    """A page, the numbers that belong to it, and whatever the browser complained about."""

    page: Any
    json: dict[str, Any]
    complaints: list[str] = field(default_factory=list)

    def trace(self, figure: str) -> dict[str, Any]:
        """The numbers that a figure shows now."""
        trace: dict[str, Any] = self.page.evaluate(
            "id => { const { z, hovertemplate } = document.getElementById(id).data[0]; return { z, hovertemplate }; }",
            figure,
        )
        return trace

    def table(self) -> list[list[str]]:
        return self.table_of("numbers-body")

    def table_of(self, body: str) -> list[list[str]]:
        rows = self.page.locator(f"#{body} tr")
        return [rows.nth(i).locator("th, td").all_text_contents() for i in range(rows.count())]

    def cell(self, figure: str, row: int, column: int, rows: int, columns: int) -> tuple[float, float]:
        """Where in the window a cell of a figure is."""
        self.page.locator(f"#{figure}").scroll_into_view_if_needed()
        box = self.page.locator(f"#{figure} .nsewdrag").bounding_box()
        return box["x"] + box["width"] * (column + 0.5) / columns, box["y"] + box["height"] * (row + 0.5) / rows

    def click(self, figure: str, row: int, column: int, rows: int, columns: int) -> None:
        """Click on a cell as a person does: go there, see its label, click."""
        place = self.cell(figure, row, column, rows, columns)
        self.page.mouse.move(*place)
        self.page.wait_for_selector(f"#{figure} .hovertext")
        self.page.mouse.click(*place)

    def outlined(self, figure: str) -> int:
        """The row of a figure that its outline surrounds."""
        shapes = self.page.evaluate("id => document.getElementById(id).layout.shapes", figure)
        assert len(shapes) == 1 and shapes[0]["y1"] - shapes[0]["y0"] == 1
        return int(shapes[0]["y0"] + 0.5)

    def largest_elsewhere(self, row: Sequence[float], chosen: int) -> int:
        """The source with the largest share, the chosen token itself and special tokens left out."""
        tokens = self.json["tokens"]
        return max((i for i in range(len(row)) if i != chosen and tokens[i] not in SPECIAL), key=lambda i: row[i])

    def telling_layer_of(self, target: int) -> int:
        """The layer in which, the target and special tokens left out, one token has most of the rest of its row."""

        def concentration(row: Sequence[float]) -> float:
            left = sum(row[i] for i in range(len(row)) if i != target and self.json["tokens"][i] not in SPECIAL)
            largest = row[self.largest_elsewhere(row, target)]
            return largest / left if left >= 0.5 else largest - 1

        by_layer = [concentration(layer[target]) for layer in self.json["value_zeroing"]["pieces"]["normalized"]]
        return by_layer.index(max(by_layer))

    @property
    def telling_layer(self) -> int:
        """The layer on which the page should open."""
        return self.telling_layer_of(self.json["target"]["position"])

    def chosen(self, box: str) -> int:
        """Which of a row is chosen; exactly one is, and buttons say so."""
        marked: list[list[Any]] = self.page.evaluate(
            """id => [...document.getElementById(id).children].map(
              each => [each.classList.contains('chosen'), each.getAttribute('aria-checked')])""",
            box,
        )
        chosen = [at for at, (is_chosen, _) in enumerate(marked) if is_chosen]
        assert len(chosen) == 1
        assert all(announced in (None, str(is_chosen).lower()) for is_chosen, announced in marked)
        return chosen[0]


def four_digits(values: Any) -> Any:
    return [four_digits(item) for item in values] if isinstance(values, list) else float(f"{values:.4g}")


def in_percent(share: float) -> str:
    """A share as the page writes it, from the 4 digits that the page holds; a half is rounded up, as in JavaScript."""
    rounded = Context(prec=2, rounding=ROUND_HALF_UP).create_decimal(100 * four_digits(share))
    return "< 0.01 %" if 0 < share < 1e-4 else f"{float(rounded):g} %"


def two(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}".replace("-", "−")


def as_number(shown: str) -> float:
    return float(shown.replace("−", "-"))


def rgb_of(hex_colour: str) -> Colour:
    return tuple(int(hex_colour[at : at + 2], 16) for at in (1, 3, 5))


def ramp_colour(theme: Theme, part: float) -> Colour:
    """The colour of a value that is this part of the largest one, as plotly draws it: linear between the stops."""
    stops = [(float(place), rgb_of(str(colour))) for place, colour in theme.sequential_ramp()]
    for (start, low), (end, high) in pairwise(stops):
        if part <= end:
            share = (part - start) / (end - start)
            return tuple(round(a + (b - a) * share) for a, b in zip(low, high, strict=True))
    return stops[-1][1]


def contrast(one: Sequence[float], other: Sequence[float]) -> float:
    """Contrast ratio of two colours, from 1 to 21. Source: WCAG 2.2, relative luminance."""

    def luminance(rgb: Sequence[float]) -> float:
        parts = [value / 255 for value in rgb]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)
