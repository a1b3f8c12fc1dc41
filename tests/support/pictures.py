"""Figures as a browser reads them."""

import json
from typing import Any


def plain(figure: Any) -> dict[str, Any]:
    """The figure as a browser reads it; fails on anything that JSON lacks."""
    data: dict[str, Any] = json.loads(figure.to_json())
    return data
