"""A piece of HTML that a notebook shows and `save_figure` writes."""

import json
from dataclasses import dataclass
from html import escape
from typing import Any

from tl_vzero.plot.theme import Theme


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
